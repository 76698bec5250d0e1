"""Layers with the quantizers of Cyclic Precision Training: between a minimum and a maximum.

For comparison with its figures. Modes do not share codes here: each width is a grid of its own.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from dual_precision.layers.facts import Layer
from dual_precision.layers.quantized import Conv, Dense, Grid, QuantizedLayer, check_present
from dual_precision.precision import Resolved
from dual_precision.primitives.minmax import quantize_between, range_of_batch, range_of_channels

_MOMENTUM = 0.9  # share of the old range that a training batch leaves


class MinMaxLayer(QuantizedLayer):
    """Weights between the extremes of every output channel; inputs between those of a batch.

    In training the range is the one of the batch at hand; a running average of it, one for every
    mode, is used in evaluation. Training is where "batch_stats" may change.
    """

    def facts(self, x: jax.Array, y: jax.Array) -> Layer:
        """As of every layer, but its weights are stored as floats."""
        return dataclasses.replace(super().facts(x, y), stored=None)

    def _multiplied(
        self, x: jax.Array, kernel: jax.Array, inputs: Grid, weights: Grid
    ) -> jax.Array:
        x = x if inputs is None else quantize_between(x, *inputs)
        return self.product(x, kernel if weights is None else quantize_between(kernel, *weights))

    def _kernel(self, asked: Resolved, inputs: int) -> tuple[jax.Array, Grid]:
        self._check_inputs(inputs)
        kernel = self.param("kernel", self.kernel_init, self.kernel_shape(inputs), jnp.float32)
        if asked.weights is None:
            return kernel, None
        return kernel, (*jax.lax.stop_gradient(range_of_channels(kernel)), asked.weights)

    def _input(self, asked: Resolved, x: jax.Array) -> Grid:
        names = [mode for mode, p in self.modes.at(self.path).items() if p.activations]
        if not names:
            return None
        ranges = self.variable("batch_stats", "range", _initial_ranges, names)
        if asked.activations is None or asked.own.activations is None:
            return None
        check_present(asked.mode, ranges.value)
        running = ranges.value[asked.mode]
        if not self.is_mutable_collection("batch_stats") or self.is_initializing():
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


class MinMaxConv(MinMaxLayer, Conv):
    """`Conv` with these quantizers."""


class MinMaxDense(MinMaxLayer, Dense):
    """`Dense` with these quantizers."""
