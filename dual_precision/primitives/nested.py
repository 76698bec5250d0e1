"""Nested integer codes: the code of a narrow mode is a prefix of that of the wide mode."""

import jax
import jax.numpy as jnp
import numpy as np

from dual_precision.primitives.normalization import per_channel
from dual_precision.primitives.ste import midrise_code

Bits = int | jax.Array

# The best step of an n-bit mid-rise grid for a standard normal variable, in standard deviations
# (least mean squared error; checked by a test that integrates it). n = 1 is 2 * sqrt(2/pi).
GAUSSIAN_STEP = {
    1: 1.5958,
    2: 0.9957,
    3: 0.5860,
    4: 0.3352,
    5: 0.1881,
    6: 0.1041,
    7: 0.0569,
    8: 0.0308,
}


# Between these a step and its reciprocal are normal numbers: XLA takes smaller ones for zero.
SMALLEST_STEP, LARGEST_STEP = 2.0**-126, 2.0**126


def power_of_two(exponent: Bits) -> jax.Array:
    """2^exponent as float32, exact, for 0 <= exponent <= 30, traced or not; else NaN.

    So a traced width that does not exist, which nobody can refuse, gives no numbers.

    >>> float(power_of_two(3))
    8.0
    """
    power = jnp.asarray(exponent, jnp.int32)
    known = (power >= 0) & (power <= 30)
    return jnp.where(known, (jnp.int32(1) << power).astype(jnp.float32), jnp.nan)


def top_of(bits: Bits) -> jax.Array:
    """2^n - 1, the largest code without a sign, of 1 to 8 bits; NaN of another traced width.

    >>> float(top_of(8))
    255.0
    """
    width = jnp.asarray(bits, jnp.int32)
    return power_of_two(jnp.where((width >= 1) & (width <= 8), width, -1)) - 1


def cell_of(bits: Bits, stored: Bits) -> jax.Array:
    """2^(N-n), the width of a cell at n of N bits, in steps of the store; float32 ().

    >>> float(cell_of(2, 8))
    64.0
    """
    return power_of_two(jnp.asarray(stored, jnp.int32) - jnp.asarray(bits, jnp.int32))


def half_of(bits: Bits) -> jax.Array:
    """2^(n-1), half of the codes of n bits; float32 ().

    >>> float(half_of(8))
    128.0
    """
    return power_of_two(jnp.asarray(bits, jnp.int32) - 1)


def encode(w: jax.Array, step: jax.Array, bits: Bits, stored: Bits) -> jax.Array:
    """Codes of the `bits`-wide mode of weights that are stored with `stored` bits.

        c_n = clip(floor(w * (1/step) * 2^-(N-n)), -2^(n-1), 2^(n-1) - 1)

    Args:
      w: weights [..., out], float32, finite.
      step: step of the stored grid [out] (delta_N), float32, positive.
      bits: n, 1 to `stored`; may be traced.
      stored: N, up to 8.

    Returns:
      int32 codes [..., out]. `encode(w, step, n, N) == encode(w, step, N, N) >> (N - n)`.

    Raises:
      ValueError: if `w` is concrete and not finite, `step` is concrete and no step (see
        `check_steps`), or `bits` is concrete and out of range.

    >>> encode(jnp.array([-0.3, 0.1, 0.9]), jnp.array([0.25]), 2, 3)
    Array([-1,  0,  1], dtype=int32)
    """
    check_bits(bits, stored)
    check_finite(w)
    check_steps(step)
    cell, half = cell_of(bits, stored), half_of(bits)
    return midrise_code(w, per_channel(step, w.ndim), cell, half).astype(jnp.int32)


def truncate(codes: jax.Array, bits: Bits, stored: Bits) -> jax.Array:
    """Drops the low `stored - bits` bits: an arithmetic shift, exact for every code.

    >>> truncate(jnp.array([-4, -1, 3]), 2, 3)
    Array([-2, -1,  1], dtype=int32)
    """
    check_bits(bits, stored)
    if isinstance(bits, int) and bits == stored:
        return codes
    return codes >> (jnp.asarray(stored, codes.dtype) - jnp.asarray(bits, codes.dtype))


def decode(codes: jax.Array, step: jax.Array, bits: Bits, stored: Bits) -> jax.Array:
    """Values of `bits`-wide codes: (c_n + 1/2) * step * 2^(N-n), float32 [..., out].

    Raises:
      ValueError: as `encode`, of step and bits.

    >>> decode(jnp.array([-2, -1, 0, 1]), jnp.array([0.25]), 2, 3)
    Array([-0.75, -0.25,  0.25,  0.75], dtype=float32)
    """
    check_bits(bits, stored)
    check_steps(step)
    cell = cell_of(bits, stored)
    return (codes.astype(jnp.float32) + 0.5) * (cell * per_channel(step, codes.ndim))


def check_bits(bits: Bits, stored: Bits) -> None:
    """Raises ValueError unless 1 <= bits <= stored <= 8, integers; traced: unless integers."""
    for width in (bits, stored):
        kind = getattr(width, "dtype", type(width))
        if kind is not int and not jnp.issubdtype(kind, jnp.integer):
            what = kind if isinstance(width, jax.core.Tracer) else repr(width)
            raise ValueError(f"a width of {what}: expected an integer")
        if shape := getattr(width, "shape", ()):
            raise ValueError(f"widths of shape {list(shape)}: expected an integer, shape ()")
    top = 8
    if not isinstance(stored, jax.core.Tracer):
        if not 1 <= int(stored) <= 8:
            raise ValueError(f"stored width {stored}: expected 1 to 8 bits")
        top = int(stored)
    if not isinstance(bits, jax.core.Tracer) and not 1 <= int(bits) <= top:
        raise ValueError(f"width {bits}: expected 1 to {top} bits, the stored width")


def check_codes(codes: jax.Array, bits: int) -> None:
    """Raises ValueError unless `codes` are integers that fit; traced ones: unless integers."""
    if not jnp.issubdtype(codes.dtype, jnp.integer):
        raise ValueError(f"codes of dtype {codes.dtype}: expected integers, as encode() gives")
    half = 2 ** (bits - 1)
    if not isinstance(codes, jax.core.Tracer) and codes.size:
        values = np.asarray(codes)  # of a constant of a program too, which jax.numpy would trace
        low, high = int(values.min()), int(values.max())
        if low < -half or high >= half:
            raise ValueError(
                f"codes from {low} to {high}: expected {-half} to {half - 1} at {bits} bits"
            )


def check_finite(w: jax.Array) -> None:
    """Raises ValueError where a concrete array holds an infinity or NaN; traced ones pass."""
    if not isinstance(w, jax.core.Tracer) and not np.isfinite(np.asarray(w)).all():
        raise ValueError(
            "weights hold infinities or NaN: no code stands for them; look for a diverged step"
        )


def check_steps(step: jax.Array | np.ndarray) -> None:
    """Raises ValueError where a concrete step is not SMALLEST_STEP to LARGEST_STEP: no code
    is made with one that is 0, negative or NaN; traced ones pass."""
    if isinstance(step, jax.core.Tracer):
        return
    values = np.asarray(step)
    if not ((values >= SMALLEST_STEP) & (values <= LARGEST_STEP)).all():
        raise ValueError(
            f"steps from {values.min():g} to {values.max():g}: expected positive numbers, 2^-126 to"
            " 2^126; look for a diverged training"
        )
