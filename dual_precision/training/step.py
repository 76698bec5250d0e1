"""The one train step, and the program that runs several of them per dispatch."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from dual_precision.tasks.losses import cross_entropy, distillation
from dual_precision.training.compilation import compiler_options
from dual_precision.training.phases import Phase
from dual_precision.training.state import TrainState, Tree

Augment = Callable[[jax.Array, jax.Array], jax.Array]


def phase_loss(
    params: Tree,
    batch_stats: Tree,
    images: jax.Array,
    labels: jax.Array,
    model: nn.Module,
    phase: Phase,
) -> tuple[jax.Array, tuple[Tree, dict[str, jax.Array]]]:
    """Sum of the losses of the phase's modes on one batch.

    A mode's loss is its cross entropy; where the phase has a teacher, the others mix in
    KL(teacher || mode). Statistics are threaded from mode to mode: each updates its own.
    """
    logits = {}
    count = len(phase.precisions) if phase.split else 1
    if len(images) < count:
        raise ValueError(
            f"a batch of {len(images)} split among {phase.precisions}: expected {count}"
        )
    # Strided, so that every device of a sharded batch holds a part of each share.
    share = {name: slice(i % count, None, count) for i, name in enumerate(phase.precisions)}
    for precision in phase.precisions:
        variables = {"params": params, "batch_stats": batch_stats}
        own = images[share[precision]]
        logits[precision], updates = model.apply(
            variables, own, precision=precision, train=True, mutable=["batch_stats"]
        )
        batch_stats = {**batch_stats, **updates.get("batch_stats", {})}
    total, metrics = jnp.float32(0.0), {}
    for precision, own in logits.items():
        target = labels[share[precision]]
        loss = cross_entropy(own, target, phase.label_smoothing)
        metrics[f"{precision}_loss"] = loss
        metrics[f"{precision}_accuracy"] = jnp.mean(
            (jnp.argmax(own, -1).astype(labels.dtype) == target).astype(jnp.float32)
        )
        if phase.teacher is not None and precision != phase.teacher:
            soft = distillation(own, logits[phase.teacher])
            loss = (1 - phase.distillation) * loss + phase.distillation * soft
        total = total + loss
    return total, (batch_stats, {"loss": total, **metrics})


def train_step(
    state: TrainState,
    images: jax.Array,
    labels: jax.Array,
    *,
    model: nn.Module,
    phase: Phase,
    optimizer: optax.GradientTransformation,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update on one batch: images uint8 [batch, H, W, C], labels int32 [batch]."""
    gradient = jax.value_and_grad(phase_loss, has_aux=True)
    (_, (batch_stats, metrics)), grads = gradient(
        state.params, state.batch_stats, images, labels, model, phase
    )
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam mixes its count into floats
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return TrainState(state.step + 1, params, batch_stats, opt_state), metrics


def compile_chunk(
    model: nn.Module,
    phase: Phase,
    optimizer: optax.GradientTransformation,
    augment: Augment,
    key: jax.Array,
) -> Callable[[TrainState, jax.Array, jax.Array, jax.Array], Any]:
    """A jitted (state, images, labels, order) -> (state, metrics [steps]) over several steps.

    `images` and `labels` are the whole training split, on the device; `order` int32
    [steps, batch] says which of them each step takes. Gathering, augmentation and the update
    run in one program, so that the device does not wait for Python between steps.
    """

    def one(state: TrainState, images: jax.Array, labels: jax.Array, index: jax.Array):
        batch = augment(jax.random.fold_in(key, state.step), images[index])
        return train_step(
            state, batch, labels[index], model=model, phase=phase, optimizer=optimizer
        )

    def several(state: TrainState, images: jax.Array, labels: jax.Array, order: jax.Array):
        if order.shape[0] == 1:  # a loop of one would only cost XLA its parallel CPU kernels
            state, metrics = one(state, images, labels, order[0])
            return state, jax.tree.map(lambda value: value[None], metrics)
        return jax.lax.scan(lambda s, index: one(s, images, labels, index), state, order)

    return jax.jit(several, donate_argnums=0, compiler_options=compiler_options())
