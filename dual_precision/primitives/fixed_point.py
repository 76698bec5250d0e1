"""Fixed-point activations as int8 digits of base 256, so that wider ones are more rows."""

import jax
import jax.numpy as jnp

from dual_precision.primitives.ste import in_steps

WIDTHS = (8, 16, 32)
_TOP = 127  # the largest digit
_BASE = 256


def fixed_point(x: jax.Array, bits: int) -> tuple[jax.Array, jax.Array]:
    """Each row of x as integers times a step: x = step * sum_d 256^d digit_d, rounded to nearest.

    The step is max|x| * (1 / (127 * 256^(D-1))) of each row, D = bits / 8, so that nothing is
    clipped and no calibration is needed; it is never less than 2^-126, the smallest normal float32.
    Digits are balanced, -128 to 127, so that each is a signed byte and a wide activation is a small
    batch of narrow ones. A row that is not finite has a step of NaN, and its digits mean nothing.

    Args:
      x: [B, K], float32.
      bits: 8, 16 or 32. A float32 has 24 bits, so 32 keep all of what the largest value of a row
        leaves room for.

    Returns:
      int8 digits [D, B, K], lowest first; step [B, 1], float32, positive.

    >>> digits, step = fixed_point(jnp.array([[254.0, -100.0]]), 8)
    >>> digits.tolist(), step.item()
    ([[[127, -50]]], 2.0)
    """
    check_width(bits)
    count = bits // 8
    top = float(_TOP * _BASE ** (count - 1))
    peak = jnp.max(jnp.abs(x), axis=1, keepdims=True)
    # The reciprocal is written out: XLA takes it in compiled programs, and a quotient elsewhere.
    # At least the smallest number: for rows of zeros, and where the step would be rounded to zero.
    step = jnp.maximum(peak * float(1 / top), float(jnp.finfo(jnp.float32).tiny))
    code = jnp.clip(jnp.round(in_steps(x, step)), -top, top).astype(jnp.int32)
    step = jnp.where(jnp.isfinite(peak), step, jnp.nan)
    digits = []
    for _ in range(count - 1):
        digit = ((code + _BASE // 2) & (_BASE - 1)) - _BASE // 2
        digits.append(digit.astype(jnp.int8))
        code = (code - digit) >> 8
    return jnp.stack([*digits, code.astype(jnp.int8)]), step


def check_width(bits: int) -> None:
    """Raises ValueError unless activations may have so many bits."""
    if bits not in WIDTHS:
        raise ValueError(f"fixed-point activations of {bits} bits: expected one of {list(WIDTHS)}")
