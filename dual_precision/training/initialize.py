"""What is set, not learned, when a phase starts: steps fitted to weights and to activations."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from dual_precision.layers import CALIBRATION
from dual_precision.primitives.quantizers import gaussian_weight_step
from dual_precision.structure import Layer, Path
from dual_precision.training.phases import Preparation
from dual_precision.training.state import TrainState, Tree


def prepare(
    state: TrainState,
    model: nn.Module,
    layers: Mapping[Path, Layer],
    setting: Preparation,
    images: jax.Array,
) -> TrainState:
    """Carries out a phase's `prepare` or `finish`: weight steps, normalisation, input steps.

    Args:
      images: uint8 [batch, H, W, C], the batch that input steps are fitted to.
    """
    params, batch_stats = state.params, state.batch_stats
    if setting.weight_steps is not None:
        params = fit_weight_steps(params, layers, setting.weight_steps)
    for mode, source in setting.norms:
        params = copy_mode(params, mode, source)
        batch_stats = copy_mode(batch_stats, mode, source)
    for mode in setting.input_steps:
        params = fit_input_steps(params, batch_stats, model, mode, images)
    return dataclasses.replace(state, params=params, batch_stats=batch_stats)


def fit_weight_steps(params: Tree, layers: Mapping[Path, Layer], mode: str) -> Tree:
    """Every kernel's step, set to the best grid of `mode`'s width for a normal variable."""
    flat = flatten_dict(params)
    for path in [p for p in flat if p[-1] == "step"]:
        layer = layers[path[:-1]]
        bits, stored = layer.table[mode].weights, layer.stored
        if bits is not None and stored is not None:
            flat[path] = gaussian_weight_step(flat[(*path[:-1], "kernel")], bits, stored)
    return unflatten_dict(flat)


def copy_mode(tree: Tree, mode: str, source: str) -> Tree:
    """Normalisation values of `source` for `mode`; input steps, which depend on widths, stay."""
    flat: dict[tuple[str, ...], Any] = flatten_dict(tree)
    for path in flat:
        if mode in path and "input_step" not in path:
            from_path = tuple(source if key == mode else key for key in path)
            flat[path] = jnp.copy(flat[from_path])  # one buffer each: the step donates its state
    return unflatten_dict(flat)


def fit_input_steps(
    params: Tree, batch_stats: Tree, model: nn.Module, mode: str, images: jax.Array
) -> Tree:
    """Input steps of `mode`, layer after layer, least squares on what reaches each of them."""

    @jax.jit
    def measure(params: Tree, batch_stats: Tree, images: jax.Array) -> Tree:
        variables = {"params": params, "batch_stats": batch_stats}
        collections = [CALIBRATION, "batch_stats"]
        _, updates = model.apply(variables, images, precision=mode, train=True, mutable=collections)
        return updates.get(CALIBRATION, {})

    fitted = flatten_dict(measure(params, batch_stats, images))
    return unflatten_dict({**flatten_dict(params), **fitted})
