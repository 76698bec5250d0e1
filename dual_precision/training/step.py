"""The one train step, and the program that runs several of them per dispatch."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import optax

from dual_precision.tasks.task import Batch, Network
from dual_precision.training.compilation import compiler_options
from dual_precision.training.phases import Stage
from dual_precision.training.state import TrainState


def train_step(
    state: TrainState, batch: Batch, key: jax.Array, *, network: Network, stage: Stage
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update on one batch; `key` is for the loss, see `phases.Loss`."""
    gradient = jax.value_and_grad(stage.phase.loss, argnums=1, has_aux=True)
    values = stage.values(state.step)
    (loss, (moving, metrics)), grads = gradient(
        network, state.params, state.moving, batch, key, values
    )
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam mixes its count into floats
        updates, opt_state = stage.optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    state = TrainState(state.step + 1, params, **moving, opt_state=opt_state)
    return state, {"loss": loss, **metrics}


def compile_steps(
    network: Network, stage: Stage, key: jax.Array
) -> Callable[[TrainState, Mapping[str, jax.Array], jax.Array], Any]:
    """A jitted (state, arrays, order) -> (state, metrics [updates]) over several updates.

    `arrays` are the whole training split, on the devices; `order` int32 [updates, batch] says
    which of its examples each update takes. Gathering, augmentation and the update run in one
    program, so that the device does not wait for Python between updates.
    """

    def drawn(step: jax.Array, arrays: Mapping[str, jax.Array], index: jax.Array):
        own = jax.random.fold_in(key, step)
        return network.task.draw(arrays, index, own), jax.random.fold_in(own, 1)

    def several(state: TrainState, arrays: Mapping[str, jax.Array], order: jax.Array):
        step = partial(train_step, network=network, stage=stage)
        if order.shape[0] == 1:  # a loop of one would only cost XLA its parallel CPU kernels
            state, metrics = step(state, *drawn(state.step, arrays, order[0]))
            return state, jax.tree.map(lambda value: value[None], metrics)
        return jax.lax.scan(lambda s, index: step(s, *drawn(s.step, arrays, index)), state, order)

    return jax.jit(several, donate_argnums=0, compiler_options=compiler_options())
