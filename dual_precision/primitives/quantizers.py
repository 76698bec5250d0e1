"""Fake quantizers: float arrays in, float arrays with quantized values out, trainable steps."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dual_precision.primitives import nested
from dual_precision.primitives.nested import Bits, top_of
from dual_precision.primitives.normalization import per_channel
from dual_precision.primitives.ste import midrise_ste, scale_gradient, uniform_code, uniform_ste


class WeightGrid(NamedTuple):
    """The nested mid-rise grid at a width, as `ste.midrise_ste` takes it.

    Attributes:
      step: of the store, [1, ..., 1, out], of the rank of the weights; float32.
      cell, half: see there; shape ().
    """

    step: jax.Array
    cell: jax.Array
    half: jax.Array


class InputGrid(NamedTuple):
    """The codes of activations, as `ste.uniform_ste` takes them: float32, all of shape ()."""

    step: jax.Array
    low: jax.Array
    top: jax.Array


def weight_grid(w: jax.Array, step: jax.Array, bits: Bits, stored: Bits) -> WeightGrid:
    """The grid of `quantize_weights`, the gradient of its step scaled; arguments as there."""
    nested.check_bits(bits, stored)
    nested.check_steps(step)
    per_step = max(w.size // max(step.size, 1), 1)
    scale = jax.lax.rsqrt(per_step * nested.half_of(stored))
    step = per_channel(scale_gradient(step, scale), w.ndim)
    return WeightGrid(step, nested.cell_of(bits, stored), nested.half_of(bits))


def input_grid(x: jax.Array, step: jax.Array, bits: Bits, signed: bool = False) -> InputGrid:
    """The grid of `quantize_activations`, the gradient of its step scaled; arguments as there."""
    nested.check_steps(step)
    low, top = code_range(bits, signed)
    per_example = max(x.size // max(x.shape[0], 1), 1)
    return InputGrid(scale_gradient(step, jax.lax.rsqrt(per_example * top)), low, top)


def quantize_weights(w: jax.Array, step: jax.Array, bits: Bits, stored: Bits) -> jax.Array:
    """The nested mid-rise grid at width n of N, differentiable in `w` and `step`.

        value = (clip(floor(r * 2^-(N-n)), -2^(n-1), 2^(n-1) - 1) + 1/2) * step * 2^(N-n)
        r = w * (1/step), see ste.in_steps

    Equal, bit for bit, to `nested.decode(nested.encode(w, ...), ...)`. The gradient of `step` is
    scaled by 1 / sqrt(weights per step * 2^(N-1)), LSQ's factor at the stored width. Adam, which
    divides by the size of a gradient, takes no notice of a constant factor, but for its epsilon.

    Args:
      w: weights [..., out], float32.
      step: step of the stored grid [out], float32, positive.
      bits: n, the width of this mode; may be traced.
      stored: N, the width of the store.

    Returns:
      float32 [..., out].

    Raises:
      ValueError: a concrete width that is out of range, a concrete step that is none.

    >>> quantize_weights(jnp.array([-0.3, 0.1, 0.9]), jnp.array([0.25]), 2, 3)
    Array([-0.25,  0.25,  0.75], dtype=float32)
    """
    return midrise_ste(w, *weight_grid(w, step, bits, stored))


def code_range(bits: Bits, signed: bool) -> tuple[jax.Array, jax.Array]:
    """The smallest and the largest code of activations, float32 (): 0 and 2^n - 1, or, signed,
    -2^(n-1) and 2^(n-1) - 1.

    Signed codes have 2 bits at least. Of one bit the largest code is 0, so that no step covers a
    range: a concrete width of 1 is an error, and a traced one, which nobody can refuse, counts as
    2. A call that gives widths as values may so ask all layers for 1 bit; a mode may not, see
    `Modes.input_widths`. Traced widths that are not 1 to 8 give NaN.

    Raises:
      ValueError: a width that is not 1 to 8; signed codes of one bit, of which none is positive.

    >>> [float(code) for code in code_range(4, signed=True)]
    [-8.0, 7.0]
    """
    nested.check_bits(bits, 8)
    if not signed:
        return jnp.float32(0.0), top_of(bits)
    if isinstance(bits, jax.core.Tracer):
        bits = jnp.where(bits == 1, 2, bits)
    elif int(bits) == 1:
        raise ValueError("signed activations of 1 bit: expected 2 or more; -1 and 0 are no range")
    half = (top_of(bits) + 1) / 2
    return -half, half - 1


def quantize_activations(
    x: jax.Array, step: jax.Array, bits: Bits, signed: bool = False
) -> jax.Array:
    """Codes times a learned step, zero exact: clip(round(x * (1/step)), low, top) * step.

    The gradient of `step` is LSQ's, scaled by 1 / sqrt(values per example * top), where the first
    axis of this call is taken for that of the examples: the values of [inputs] without a batch
    count as one each, and a recurrence, which is called for every byte, counts those of one. Adam,
    which divides by the size of a gradient, takes no notice of that factor where the width stays
    the same, but for its epsilon.

    Args:
      x: activations [batch, ...], float32; unsigned, what is negative becomes 0.
      step: positive, shape ().
      bits: n, 1 to 8; may be traced.
      signed: see `code_range`.

    Raises:
      ValueError: a concrete width that is out of range, a concrete step that is none.

    >>> quantize_activations(jnp.array([-1.0, 0.2, 0.6, 9.0]), jnp.array(0.5), 2)
    Array([0. , 0. , 0.5, 1.5], dtype=float32)
    """
    return uniform_ste(x, *input_grid(x, step, bits, signed))


def rescaled_step(step: jax.Array, own: int, bits: Bits, signed: bool = False) -> jax.Array:
    """The step at `bits` that covers the range of `step` at `own` bits; the same bits where equal.

        step * top(own) / top(bits)

    >>> float(rescaled_step(jnp.array(0.1), 8, 2))
    8.5
    """
    if isinstance(bits, int) and bits == own:
        return step
    return step * (code_range(own, signed)[1] / code_range(bits, signed)[1])


def encode_activations(
    x: jax.Array, step: jax.Array, bits: Bits, signed: bool = False
) -> jax.Array:
    """The integer codes that `quantize_activations` multiplies by its step; int32.

    NaN has no code, and becomes 0: where an input may hold it, take `activation_codes`.

    >>> encode_activations(jnp.array([-1.0, 0.2, 0.6, 9.0]), jnp.array(0.5), 2)
    Array([0, 0, 1, 3], dtype=int32)
    """
    return activation_codes(x, step, bits, signed).astype(jnp.int32)


def activation_codes(x: jax.Array, step: jax.Array, bits: Bits, signed: bool = False) -> jax.Array:
    """The codes of `encode_activations` as float32, with a NaN for every NaN of x.

    Raises:
      ValueError: a concrete width that is out of range, a concrete step that is none.

    >>> activation_codes(jnp.array([0.6, jnp.nan]), jnp.array(0.5), 2)
    Array([ 1., nan], dtype=float32)
    """
    nested.check_steps(step)
    low, top = code_range(bits, signed)
    return uniform_code(x, step, low, top)


def gaussian_weight_step(w: jax.Array, bits: int, stored: int) -> jax.Array:
    """A first step [out] for weights [..., out]: the best `bits`-wide grid for a normal variable.

    The standard deviation is taken per output channel, around zero, as the grid is.
    """
    nested.check_bits(bits, stored)
    spread = jnp.sqrt(jnp.mean(w**2, axis=tuple(range(w.ndim - 1))))
    floor = jnp.float32(1e-6)  # a channel of zeros still needs a positive step
    return jnp.maximum(spread * nested.GAUSSIAN_STEP[bits] / 2 ** (stored - bits), floor)


def activation_step(x: jax.Array, bits: int, signed: bool = False) -> jax.Array:
    """A first step, shape (), for activations: least squares over a ladder of clips.

    Tries clipping points from the largest magnitude down and keeps the step with the smallest
    squared error on `x`.
    """
    low, top = code_range(bits, signed)
    peak = jnp.maximum(jnp.max(jnp.abs(x) if signed else x), 1e-6)

    def error(step: jax.Array) -> jax.Array:
        return jnp.mean((uniform_code(x, step, low, top) * step - x) ** 2)

    ladder = peak / top * 0.92 ** jnp.arange(48, dtype=jnp.float32)
    return ladder[jnp.argmin(jax.lax.map(error, ladder))]
