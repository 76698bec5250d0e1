"""Fake quantizers: float arrays in, float arrays with quantized values out, trainable steps."""

import jax
import jax.numpy as jnp

from dual_precision.primitives import nested
from dual_precision.primitives.nested import Bits, power_of_two
from dual_precision.primitives.normalization import per_channel
from dual_precision.primitives.ste import midrise_ste, scale_gradient, unsigned_ste


def quantize_weights(w: jax.Array, step: jax.Array, bits: Bits, stored: Bits) -> jax.Array:
    """The nested mid-rise grid at width n of N, differentiable in `w` and `step`.

        value = (clip(floor(w / step * 2^-(N-n)), -2^(n-1), 2^(n-1) - 1) + 1/2) * step * 2^(N-n)

    Equal, bit for bit, to `nested.decode(nested.encode(w, ...), ...)`. The gradient of `step` is
    scaled by 1 / sqrt(weights per step * 2^(N-1)), LSQ's factor at the stored width.

    Args:
      w: weights [..., out], float32.
      step: step of the stored grid [out], float32, positive.
      bits: n, the width of this mode; may be traced.
      stored: N, the width of the store.

    Returns:
      float32 [..., out].

    >>> quantize_weights(jnp.array([-0.3, 0.1, 0.9]), jnp.array([0.25]), 2, 3)
    Array([-0.25,  0.25,  0.75], dtype=float32)
    """
    nested.check_bits(bits, stored)
    per_step = max(w.size // max(step.size, 1), 1)
    scale = jax.lax.rsqrt(per_step * power_of_two(jnp.asarray(stored) - 1))
    step = per_channel(scale_gradient(step, scale), w.ndim)
    cell = power_of_two(jnp.asarray(stored) - bits)
    return midrise_ste(w, step, cell, power_of_two(jnp.asarray(bits) - 1))


def quantize_activations(x: jax.Array, step: jax.Array, bits: Bits) -> jax.Array:
    """Unsigned codes times a learned step, zero exact: clip(round(x/step), 0, 2^n - 1) * step.

    The gradient of `step` is LSQ's, scaled by 1 / sqrt(values per example * (2^n - 1)).

    Args:
      x: activations [batch, ...], float32; what is negative becomes 0.
      step: positive, shape ().
      bits: n, 1 to 8; may be traced.

    >>> quantize_activations(jnp.array([-1.0, 0.2, 0.6, 9.0]), jnp.array(0.5), 2)
    Array([0. , 0. , 0.5, 1.5], dtype=float32)
    """
    nested.check_bits(bits, 8)
    top = power_of_two(bits) - 1
    per_example = max(x.size // max(x.shape[0], 1), 1)
    return unsigned_ste(x, scale_gradient(step, jax.lax.rsqrt(per_example * top)), top)


def encode_activations(x: jax.Array, step: jax.Array, bits: Bits) -> jax.Array:
    """The integer codes that `quantize_activations` multiplies by its step; int32.

    >>> encode_activations(jnp.array([-1.0, 0.2, 0.6, 9.0]), jnp.array(0.5), 2)
    Array([0, 0, 1, 3], dtype=int32)
    """
    nested.check_bits(bits, 8)
    return jnp.clip(jnp.round(x / step), 0.0, power_of_two(bits) - 1).astype(jnp.int32)


def gaussian_weight_step(w: jax.Array, bits: int, stored: int) -> jax.Array:
    """A first step [out] for weights [..., out]: the best `bits`-wide grid for a normal variable.

    The standard deviation is taken per output channel, around zero, as the grid is.
    """
    nested.check_bits(bits, stored)
    spread = jnp.sqrt(jnp.mean(w**2, axis=tuple(range(w.ndim - 1))))
    floor = jnp.float32(1e-6)  # a channel of zeros still needs a positive step
    return jnp.maximum(spread * nested.GAUSSIAN_STEP[bits] / 2 ** (stored - bits), floor)


def activation_step(x: jax.Array, bits: int) -> jax.Array:
    """A first step, shape (), for non-negative activations: least squares over a ladder of clips.

    Tries clipping points from the maximum down and keeps the step with the smallest squared
    error on `x`.
    """
    nested.check_bits(bits, 8)
    top = power_of_two(bits) - 1
    peak = jnp.maximum(jnp.max(x), 1e-6)

    def error(step: jax.Array) -> jax.Array:
        return jnp.mean((jnp.clip(jnp.round(x / step), 0.0, top) * step - x) ** 2)

    ladder = peak / top * 0.92 ** jnp.arange(48, dtype=jnp.float32)
    return ladder[jnp.argmin(jax.lax.map(error, ladder))]
