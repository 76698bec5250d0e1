"""What a phase may train, and how: optax transforms chosen leaf by leaf."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from dual_precision.primitives.nested import power_of_two
from dual_precision.primitives.normalization import per_channel
from dual_precision.primitives.ste import midrise_code
from dual_precision.structure import Layer, Path
from dual_precision.training.phases import Phase
from dual_precision.training.state import Tree, owner

Layers = Mapping[Path, Layer]

MOMENTUM = 0.9
# How near to its cell's edge a weight may come, in cells: far above float32's rounding.
_MARGIN = 2.0**-10


def phase_optimizer(
    phase: Phase, layers: Layers, schedule: optax.Schedule, step_schedule: optax.Schedule
) -> optax.GradientTransformation:
    """The optimizer of one phase: SGD with Nesterov momentum, Adam on the log of the steps.

    Leaves of modes that the phase does not run get no update, not even by weight decay.
    """
    momentum = optax.trace(MOMENTUM, nesterov=True)
    rate = optax.scale_by_learning_rate(schedule)
    steps = optax.chain(optax.scale_by_adam(), optax.scale_by_learning_rate(step_schedule))
    partition = optax.partition(
        {
            "kernel": optax.chain(optax.add_decayed_weights(phase.weight_decay), momentum, rate),
            "step": in_log_domain(steps),
            "other": optax.chain(momentum, rate),
            "frozen": optax.set_to_zero(),
        },
        lambda params: label_leaves(params, phase, layers),
    )
    if phase.protect is None:
        return partition
    return optax.chain(partition, keep_in_cells(phase.protect, layers))


def label_leaves(params: Tree, phase: Phase, layers: Layers) -> Tree:
    """For every leaf: "kernel", "step", "other", or "frozen" where the phase may not move it."""
    flat = flatten_dict(params)
    return unflatten_dict({path: _label(path, phase, layers) for path in flat})


def _label(path: Path, phase: Phase, layers: Layers) -> str:
    mode = owner(path, layers)
    if mode is not None and mode not in phase.precisions:
        return "frozen"
    if mode is None and phase.protect is not None and not _below(path, phase, layers):
        return "frozen"
    if path[-1] == "kernel":
        return "kernel"
    return "step" if "step" in path or "input_step" in path else "other"


def _below(path: Path, phase: Phase, layers: Layers) -> bool:
    """Whether a shared leaf has bits that the phase trains and the protected mode does not read."""
    if path[-1] != "kernel":
        return False
    table = layers[path[:-1]].table
    protected = table[phase.protect or ""].weights or 99
    return any((table[name].weights or 99) > protected for name in phase.precisions)


def in_log_domain(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Runs `inner` on log(p): p <- p * exp(update), with the gradient p * dL/dp.

    Keeps positive parameters positive (an update is a factor of e^-8 to e^8) and makes their
    learning rate a relative one, the same for a step of 1e-3 and a step of 1.
    """

    def update(updates, state, params=None):
        if params is None:
            raise ValueError("in_log_domain needs the parameters: call update(g, state, params)")
        logs = jax.tree.map(jnp.log, params)
        gradients = jax.tree.map(jnp.multiply, updates, params)
        moves, state = inner.update(gradients, state, logs)
        return jax.tree.map(
            lambda p, move: p * jnp.expm1(jnp.clip(move, -8, 8)), params, moves
        ), state

    return optax.GradientTransformation(inner.init, update)


def keep_in_cells(mode: str, layers: Layers) -> optax.GradientTransformation:
    """Trims updates so that no weight leaves its cell of `mode`: that mode's codes stay.

    A cell is [c, c + 1) * step * 2^(N-n); the outermost ones are open outwards. Kernels whose
    `mode` is float are left alone (their phase freezes them). Follows the learning rate in a
    chain, where an update is what `optax.apply_updates` will add.
    """

    def update(updates, state, params=None):
        if params is None:
            raise ValueError("keep_in_cells needs the parameters: call update(g, state, params)")
        flat, weights = flatten_dict(updates), flatten_dict(params)
        for path in flat:
            if path[-1] != "kernel":
                continue
            layer = layers[path[:-1]]
            bits, stored = layer.table[mode].weights, layer.stored
            if bits is not None and stored is not None:
                step = weights[(*path[:-1], "step")]
                flat[path] = _confine(weights[path], flat[path], step, bits, stored)
        return unflatten_dict(flat), state

    return optax.GradientTransformation(lambda _: optax.EmptyState(), update)


def _confine(w: jax.Array, move: jax.Array, step: jax.Array, bits: int, stored: int) -> jax.Array:
    step = per_channel(step, w.ndim)
    cell, half = power_of_two(stored - bits), power_of_two(bits - 1)
    code = midrise_code(w, step, cell, half)
    width = cell * step
    lower = jnp.where(code > -half, (code + _MARGIN) * width, -jnp.inf)
    upper = jnp.where(code < half - 1, (code + 1 - _MARGIN) * width, jnp.inf)
    trimmed = jnp.clip(w + move, lower, upper) - w
    # The sum that the caller will take is rounded; what it gives is what has to be in the cell.
    kept = midrise_code(w + trimmed, step, cell, half) == code
    return jnp.where((move != 0) & kept, trimmed, 0.0)


def trained_leaves(params: Tree, phase: Phase, layers: Layers) -> Mapping[str, Any]:
    """Number of values that the phase trains, by kind; for logs."""
    labels, flat = flatten_dict(label_leaves(params, phase, layers)), flatten_dict(params)
    kinds = sorted(set(labels.values()))
    return {
        kind: sum(flat[path].size for path, label in labels.items() if label == kind)
        for kind in kinds
    }
