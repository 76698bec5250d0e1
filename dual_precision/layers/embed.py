"""A table of vectors, one for each byte or word."""

import math
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from dual_precision.layers.facts import Layer
from dual_precision.layers.quantized import Initializer, QuantizedLayer
from dual_precision.precision import Asked


class Embed(QuantizedLayer):
    """y = quantize(kernel)[x]; x [..., T], whole numbers below `vocabulary` -> [..., T, features].

    A layer as the others are, its step one for each feature: it is the product of a one-hot vector
    with the kernel, of which nothing needs to be multiplied. Its input has no width.
    """

    vocabulary: int = 256

    kernel_init: ClassVar[Initializer] = staticmethod(nn.initializers.normal(1.0))

    def kernel_shape(self, inputs: int) -> tuple[int, ...]:
        del inputs
        return (self.vocabulary, self.features)

    def check_call(self, x: jax.Array) -> None:
        super().check_call(x)
        self._check_count("vocabulary", self.vocabulary)
        if not jnp.issubdtype(x.dtype, jnp.integer):
            raise ValueError(f"{self._named} got {x.dtype}: expected whole numbers, such as uint8")

    @nn.compact
    def __call__(self, x: jax.Array, *, precision: Asked) -> jax.Array:
        self.check_call(x)
        asked = self.modes.resolve(self.path, precision)
        kernel = self._kernel(self.vocabulary)
        grid = self.grid_of_weights(asked, kernel)
        # Few numbers: the rows that are read are quantized, not the table. A size that is a symbol,
        # of an export for any batch, is not few.
        few = isinstance(x.size, int) and x.size < self.vocabulary
        rows = kernel[x.reshape(-1)] if few else kernel
        if grid is not None:
            rows = self.weights_on(rows, grid)
        return self._output(asked, rows.reshape(*x.shape, self.features) if few else rows[x])

    def facts(self, x: jax.Array, y: jax.Array) -> Layer:
        """No multiply-accumulates: a row of the table is read for every number."""
        kernel = self.kernel_shape(self.vocabulary)
        return Layer(
            table=self.modes.at(self.path),
            kernel=kernel,
            macs=0,
            inputs=math.prod(x.shape[1:]),
            stored=self.stored_bits(),
            nested=self._nested,
            rows=type(self).__call__ is Embed.__call__,
        )
