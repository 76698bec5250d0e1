"""Products of a matrix, and convolutions: what most networks are made of."""

import math
from typing import ClassVar

import jax
from flax import linen as nn

from dual_precision.layers.quantized import Initializer, QuantizedLayer
from dual_precision.primitives.convolution import codes_pay, conv2d, conv2d_codes, conv2d_integers


class Dense(QuantizedLayer):
    """y = quantize(x) @ quantize(kernel) + bias; x [..., in] -> [..., features]."""

    use_bias: bool = True

    matrix: ClassVar[bool] = True
    channelwise: ClassVar[bool] = True

    def kernel_shape(self, inputs: int) -> tuple[int, ...]:
        return (inputs, self.features)

    def product(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        # As rows: XLA copies what has more axes element by element, for the gradient of the kernel.
        rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
        return (rows @ kernel).reshape(*x.shape[:-1], kernel.shape[-1])


class Conv(QuantizedLayer):
    """Two-dimensional convolution, zero padding; x [N, H, W, in] -> [N, h, w, out].

    The padding is symmetric, (kernel - 1) / 2 on every side, as in the published CIFAR networks
    (XLA's "SAME" pads strided convolutions on one side only): `kernel_size` is odd.
    """

    kernel_size: int = 3
    stride: int = 1

    channelwise: ClassVar[bool] = True
    kernel_init: ClassVar[Initializer] = staticmethod(nn.initializers.he_normal())

    def check_call(self, x: jax.Array) -> None:
        super().check_call(x)
        for what in ("kernel_size", "stride"):
            self._check_count(what, getattr(self, what))
        if self.kernel_size % 2 == 0:
            raise ValueError(
                f"{self._named} has kernel_size={self.kernel_size}: expected an odd number, as the"
                " padding is the same on every side"
            )
        if x.ndim != 4:
            raise ValueError(f"{self._named} got {list(x.shape)}: expected [N, H, W, channels]")

    def kernel_shape(self, inputs: int) -> tuple[int, ...]:
        return (self.kernel_size, self.kernel_size, inputs, self.features)

    def product(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        return conv2d(x, kernel, self.stride)

    def product_of_integers(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        return conv2d_integers(x, kernel, self.stride)

    def codes_pay(self, largest: tuple[int, int]) -> bool:
        return codes_pay(largest)

    def product_of_codes(
        self, x: jax.Array, codes: jax.Array, widths: tuple[int, int], largest: tuple[int, int]
    ) -> jax.Array:
        return conv2d_codes(x, codes, self.stride, widths, largest)
