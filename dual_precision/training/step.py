"""The one train step, and the program that runs several of them per dispatch."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dual_precision.primitives.shared_batch import BATCH
from dual_precision.tasks.task import Batch, Network, State, Tree
from dual_precision.training.compilation import compiler_options
from dual_precision.training.phases import Loss, Stage, check_names
from dual_precision.training.state import Measured, TrainState

# (params, moving, batch, key, values) as a `Loss` takes them -> gradients, what moves, metrics.
Gradients = Callable[..., tuple[Tree, State, Measured]]
_WHOLE, _ROWS = PartitionSpec(), PartitionSpec(BATCH)


def train_step(
    state: TrainState,
    batch: Batch,
    key: jax.Array,
    *,
    network: Network,
    stage: Stage,
    mesh: Mesh | None = None,
    values: Mapping[str, jax.Array] | None = None,
) -> tuple[TrainState, Measured]:
    """One step: an update on one batch, or on a part of it, see `FitOptions`.

    Args:
      key: is for the loss, see `phases.Loss`.
      mesh: the devices that share the batch, if there are several.
      values: name -> value, in the place of what a schedule of this name gives the loss.
    """
    loss, values = stage.phase.loss, {**stage.values(state.step), **(values or {})}
    gradients = _gradients(loss, network)
    if mesh is not None and mesh.size > 1:
        gradients = _shared_gradients(loss, network, mesh)
    grads, moving, measured = gradients(state.params, state.moving, batch, key, values)
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam mixes its count into floats
        updates, opt_state = stage.optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return TrainState(state.step + 1, params, **moving, opt_state=opt_state), measured


def _gradients(loss: Loss, network: Network) -> Gradients:
    """For a batch that one device has."""
    gradient = jax.value_and_grad(loss, argnums=1, has_aux=True)

    def gradients(*arguments: Any) -> tuple[Tree, State, Measured]:
        (value, (moving, metrics)), grads = gradient(network, *arguments)
        *_, values = arguments
        check_names(metrics, "a metric of the loss", taken=values)
        return grads, moving, {"loss": value, **jax.tree.map(jnp.asarray, metrics)}

    return gradients


def _shared_gradients(loss: Loss, network: Network, mesh: Mesh) -> Gradients:
    """As `_gradients`: each device has those of its rows, of all modes; one message sums them.

    XLA, asked to divide the program itself, sums the gradient of a weight for each mode alone, for
    between the two sums stand the grids of the modes; and it joins so many arrays only in one
    message. What a loss draws at random is the same on all devices.
    """

    def part(*arguments: Any) -> Any:
        value, (after, metrics) = loss(*arguments)
        return value / mesh.size, (after, jax.tree.map(lambda own: own / mesh.size, metrics))

    def of_rows(*arguments: Any) -> tuple[Tree, State, Measured]:
        grads, moving, measured = _gradients(part, network)(*arguments)
        flat, parted = ravel_pytree((grads, measured))
        grads, measured = parted(jax.lax.psum(flat, BATCH))
        return grads, moving, measured

    layout = {"batch_stats": _WHOLE, "carry": _ROWS}
    shared = jax.shard_map(
        of_rows,
        mesh=mesh,
        in_specs=(_WHOLE, layout, _ROWS, _WHOLE, _WHOLE),
        out_specs=(_WHOLE, layout, _WHOLE),
        check_vma=False,  # with it, JAX would sum the gradient at each use of a parameter
    )

    def gradients(*arguments: Any) -> tuple[Tree, State, Measured]:
        grads, moving, measured = shared(*arguments)
        whole = NamedSharding(mesh, _WHOLE)  # as `fit` and checkpoints have it
        carry = jax.lax.with_sharding_constraint(moving["carry"], whole)
        return grads, {**moving, "carry": carry}, measured

    return gradients


def compile_steps(
    network: Network, stage: Stage, key: jax.Array, mesh: Mesh | None = None
) -> Callable[..., Any]:
    """A jitted (state, arrays, order, values=None) -> (state, metrics [steps]), several steps.

    `arrays` are the whole training split, on the devices; `order` int32 [steps, batch] says
    which of its examples each step takes. Gathering, augmentation and the step run in one
    program, so that the device does not wait for Python between steps. `values`: see
    `train_step`; others take no other program.

    Args:
      mesh: the devices that share each batch; None is one device.
    """

    def drawn(step: jax.Array, arrays: Mapping[str, jax.Array], index: jax.Array):
        own = jax.random.fold_in(key, step)
        return network.task.draw(arrays, index, own), jax.random.fold_in(own, 1)

    def several(
        state: TrainState,
        arrays: Mapping[str, jax.Array],
        order: jax.Array,
        values: Mapping[str, jax.Array] | None = None,
    ):
        step = partial(train_step, network=network, stage=stage, mesh=mesh, values=values)
        if order.shape[0] == 1:  # a loop of one would only cost XLA its parallel CPU kernels
            state, metrics = step(state, *drawn(state.step, arrays, order[0]))
            return state, jax.tree.map(lambda value: value[None], metrics)
        return jax.lax.scan(lambda s, index: step(s, *drawn(s.step, arrays, index)), state, order)

    return jax.jit(several, donate_argnums=0, compiler_options=compiler_options())
