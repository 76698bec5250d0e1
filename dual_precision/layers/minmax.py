"""Layers with the quantizers of Cyclic Precision Training: between a minimum and a maximum.

For comparison with its figures. Modes do not share codes here: each width is a grid of its own.
"""

from typing import Any

import jax
import jax.numpy as jnp

from dual_precision.layers.linear import Conv, Dense
from dual_precision.layers.quantized import Grid, QuantizedLayer, check_present
from dual_precision.precision import Resolved
from dual_precision.primitives.minmax import quantize_between, range_of_batch, range_of_channels

_MOMENTUM = 0.9  # share of the old range that a training batch leaves


class MinMaxLayer(QuantizedLayer):
    """Weights between the extremes of every output channel; inputs between those of a batch.

    In training the range is the one of the batch at hand; a running average of it, one for every
    mode, is used in evaluation. Training is where "batch_stats" may change.
    """

    def stored_bits(self) -> int | None:
        return None

    def grid_of_weights(self, asked: Resolved, kernel: jax.Array) -> Grid:
        if asked.weights is None:
            return None
        return (*jax.lax.stop_gradient(range_of_channels(kernel)), asked.weights)

    def weights_on(self, kernel: jax.Array, grid: Grid) -> jax.Array:
        return quantize_between(kernel, *grid)

    def inputs_on(self, x: jax.Array, grid: Grid) -> jax.Array:
        return quantize_between(x, *grid)

    def fits_inputs(self) -> bool:
        return self.is_mutable_collection("batch_stats") and not self.is_initializing()

    def grid_of_inputs(self, asked: Resolved, x: jax.Array) -> Grid:
        names = [mode for mode, p in self.modes.at(self.path).items() if p.activations]
        if not names:
            return None
        ranges = self.variable("batch_stats", "range", _initial_ranges, names)
        if asked.activations is None or asked.own.activations is None:
            return None
        check_present(asked.mode, ranges.value)
        running = ranges.value[asked.mode]
        if not self.fits_inputs():
            return running["least"], running["span"], asked.activations
        least, span = jax.lax.stop_gradient(range_of_batch(x))
        moved = {
            name: _MOMENTUM * running[name] + (1 - _MOMENTUM) * new
            for name, new in (("least", least), ("span", span))
        }
        ranges.value = {**ranges.value, asked.mode: moved}
        return least, span, asked.activations


def _initial_ranges(modes: list[str]) -> dict[str, Any]:
    return {mode: {"least": jnp.float32(0), "span": jnp.float32(1)} for mode in modes}


class MinMaxConv(Conv, MinMaxLayer):
    """`Conv` with these quantizers."""


class MinMaxDense(Dense, MinMaxLayer):
    """`Dense` with these quantizers; without a bias, as the networks that were measured."""

    use_bias: bool = False
