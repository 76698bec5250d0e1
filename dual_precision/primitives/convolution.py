"""Two-dimensional convolution, and who computes it.

On CPUs oneDNN does where it is installed, see native/convolution.py; XLA does everywhere else,
inside `xla_alone()`, and in programs that XLA divides over devices. In XLA other formulations
(im2col and one product, nine products, batch innermost) were measured on two CPU cores and are
slower than its own once its library fusions are off, see training/compilation.py.
"""

import contextlib
import math
from collections.abc import Iterator
from contextvars import ContextVar
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from dual_precision.primitives.native import convolution as native
from dual_precision.primitives.native.chains import Sums, convolve_codes
from dual_precision.primitives.nested import truncate
from dual_precision.primitives.shared_batch import is_shared

_XLA_ALONE = ContextVar("xla_alone", default=False)


@contextlib.contextmanager
def xla_alone() -> Iterator[None]:
    """What is traced inside is a program of XLA alone: one that may leave this process."""
    token = _XLA_ALONE.set(True)
    try:
        yield
    finally:
        _XLA_ALONE.reset(token)


def _is_alone() -> bool:
    """XLA does not cut a call to a library into one for each device: where devices share a batch,
    the library is for what each of them runs by itself."""
    return _XLA_ALONE.get() or (jax.device_count() > 1 and not is_shared())


def conv2d(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Cross-correlation with symmetric zero padding (k - 1) / 2 on every side.

    Args:
      x: [N, H, W, in], float32.
      kernel: [k, k, in, out], float32, k odd.
      stride: in both directions.

    Returns:
      float32 [N, ceil(H / stride), ceil(W / stride), out].

    >>> conv2d(jnp.ones((1, 2, 2, 1)), jnp.ones((3, 3, 1, 1)), 2).item()
    4.0
    """
    if not _is_alone() and x.size and kernel.size and native.floats("float32"):
        return _by_library(x, kernel, stride)
    return _by_xla(x, kernel, stride, jnp.float32)


def conv2d_integers(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """As `conv2d`, of integers from -256 to 256: bfloat16 holds them, and y has the same bits.

    On CPUs with units for bfloat16, they sum such products in float32; there the gradient of y is
    rounded to bfloat16, to 8 significant bits, and nothing else is.

    >>> conv2d_integers(jnp.ones((1, 2, 2, 1)), jnp.full((3, 3, 1, 1), 255.0), 2).item()
    1020.0
    """
    # A fault of oneDNN (package 2023.2.0): its weight gradient of bfloat16 is any numbers, or NaN,
    # where a row is shorter than the stride, except at 1x1. That of float32 is right.
    sound = x.shape[2] >= stride or kernel.shape[0] == 1
    if sound and not _is_alone() and x.size and kernel.size and native.fast_bfloat16():
        return _of_integers(x, kernel, stride)
    return conv2d(x, kernel, stride)


def conv2d_codes(
    x: jax.Array,
    codes: jax.Array,
    stride: int,
    widths: tuple[int, int],
    largest: tuple[int, int],
) -> jax.Array:
    """As `conv2d`, of codes and the odd weights that nested codes stand for; without a gradient.

        y = sum x (2 (codes >> (N - n)) + 1), exact, and rounded once

    Args:
      x: [N, H, W, in], uint8.
      codes: [k, k, in, out], int8, of N bits.
      stride: in both directions.
      widths: n, N.
      largest: no code of x, no weight (of 8 bits: no code), is above these.

    Returns:
      float32 [N, ceil(H / stride), ceil(W / stride), out].

    Raises:
      ValueError: other dtypes; a window so large that sums may leave int32, see `fits_int32`: above
        3,669 inputs at 3x3 and 8 bits.

    >>> x, codes = jnp.ones((1, 2, 2, 1), jnp.uint8), jnp.full((3, 3, 1, 1), 5, jnp.int8)
    >>> conv2d_codes(x, codes, 2, (8, 8), (1, 5)).item(), 4 * (2 * 5 + 1)
    (44.0, 44)
    >>> conv2d_codes(x, codes, 2, (3, 4), (1, 5)).item(), 4 * (2 * (5 >> 1) + 1)
    (20.0, 20)
    """
    bits, stored = widths
    if x.dtype != jnp.uint8 or codes.dtype != jnp.int8:
        raise ValueError(
            f"codes of {x.dtype} and of weights {codes.dtype}: expected uint8 and int8; convert"
            " them, x.astype(jnp.uint8) and codes.astype(jnp.int8)"
        )
    if not fits_int32(codes.shape, largest[0], bits):
        raise ValueError(
            f"a convolution with a kernel of {[*codes.shape]}, codes up to {largest[0]} and weights"
            f" of {bits} bits: its sums may reach {_most(codes.shape, largest[0], bits)}, expected"
            " less than 2^31; convolve parts of the input channels and add them in float32, or take"
            " fewer bits"
        )
    if codes_pay(largest) and x.size and codes.size:
        shape = _shape(x, codes, stride)
        return convolve_codes(x, codes, shape, Sums(stride, bits, stored - bits))
    weights = 2 * truncate(codes, bits, stored).astype(jnp.int32) + 1
    return _by_xla(x.astype(jnp.int32), weights, stride, jnp.int32).astype(jnp.float32)


def fits_int32(kernel: tuple[int, ...], top: int, bits: int) -> bool:
    """Whether int32 holds all sums of codes up to `top` and of any weights of `bits` bits."""
    return _most(kernel, top, bits) < 2**31


def _most(kernel: tuple[int, ...], top: int, bits: int) -> int:
    """k k in top (2^n - 1)."""
    return math.prod(kernel[:-1]) * top * (2**bits - 1)


def codes_pay(largest: tuple[int, int]) -> bool:
    """Whether `conv2d_codes` is exact and faster here than `conv2d` of the same numbers."""
    return not _is_alone() and native.exact_bytes(*largest)


def _by_xla(x, kernel, stride, dtype):
    pad = (kernel.shape[0] - 1) // 2
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=((pad, pad), (pad, pad)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        preferred_element_type=dtype,
    )


def _shape(x, kernel, stride):
    n, height, width, _ = x.shape
    return n, -(-height // stride), -(-width // stride), kernel.shape[-1]


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _by_library(x, kernel, stride):
    shape = _shape(x, kernel, stride)
    return native.convolve("forward", x, kernel, shape, jnp.float32, stride)


def _forward(x, kernel, stride):
    return _by_library(x, kernel, stride), (x, kernel)


def _backward(stride, residuals, g):
    x, kernel = residuals
    to_x = native.convolve("input gradient", g, kernel, x.shape, jnp.float32, stride)
    return to_x, native.convolve("weight gradient", x, g, kernel.shape, jnp.float32, stride)


_by_library.defvjp(_forward, _backward)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _of_integers(x, kernel, stride):
    return _forward_of_integers(x, kernel, stride)[0]


def _forward_of_integers(x, kernel, stride):
    x, kernel = x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
    return _by_library(x, kernel, stride), (x, kernel)


def _backward_of_integers(stride, residuals, g):
    return _backward(stride, residuals, g.astype(jnp.bfloat16))


_of_integers.defvjp(_forward_of_integers, _backward_of_integers)
