"""Weights as bits of their magnitude, positive and negative apart: the form that BSQ trains.

    w = step * clip(round(sum_b (positive_b - negative_b) * 2^b), -255, 255),   b = 0 .. n - 1

Here step = s / (2^n - 1) of the scale s of the paper: it stays where a most significant bit comes
or goes, and doubles, exactly, where a least significant one goes. Zero has a code, unlike on the
nested grid.

Source: Yang et al. 2021, "BSQ", arXiv 2102.10462, sections 3.1 and 3.3.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dual_precision.primitives.nested import check_bits
from dual_precision.primitives.ste import bounded_round_ste

MOST_BITS = 8
LARGEST_CODE = 2.0**MOST_BITS - 1
LARGEST_BIT = 2.0  # a bit is trained as a number from 0 to this


class SignedBits(NamedTuple):
    """A tensor of weights.

    Attributes:
      positive, negative: [n, ...], least significant first, 0 to LARGEST_BIT.
      step: positive, shape ().
    """

    positive: jax.Array
    negative: jax.Array
    step: jax.Array


def to_signed_bits(w: jax.Array, count: int) -> SignedBits:
    """The nearest codes of `count` bits, for the range of the largest magnitude.

    Raises:
      ValueError: `count` is not 1 to 8.

    >>> bits = to_signed_bits(jnp.array([0.5, -1.5]), 2)
    >>> bits.positive.tolist(), bits.negative.tolist(), float(bits.step)
    ([[1.0, 0.0], [0.0, 0.0]], [[0.0, 1.0], [0.0, 1.0]], 0.5)
    """
    check_bits(count, MOST_BITS)
    step = jnp.maximum(jnp.max(jnp.abs(w)), 1e-30) / (2**count - 1)
    return _split(jnp.round(w / step), count, step)


def _split(codes: jax.Array, count: int, step: jax.Array) -> SignedBits:
    size = jnp.abs(codes).astype(jnp.int32)[None]
    places = jnp.arange(count, dtype=jnp.int32).reshape(count, *[1] * codes.ndim)
    bits = (size >> places) & 1
    positive, negative = (
        jnp.where(sign * codes > 0, bits, 0).astype(jnp.float32) for sign in (1, -1)
    )
    return SignedBits(positive, negative, step)


def signed_codes(bits: SignedBits) -> jax.Array:
    """The whole numbers that the bits stand for, float32 [...], with gradient 1 to their sum.

    The sum is taken bit by bit: another program must not round it otherwise.
    """
    total = jnp.zeros(bits.positive.shape[1:], jnp.float32)
    for place in range(bits.positive.shape[0]):
        total = total + (bits.positive[place] - bits.negative[place]) * 2.0**place
    return bounded_round_ste(total, LARGEST_CODE)


def weights_of(bits: SignedBits) -> jax.Array:
    """The weights; d w / d positive_b = step * 2^b, and minus that for negative_b.

    >>> weights_of(to_signed_bits(jnp.array([0.5, -1.5]), 2)).tolist()
    [0.5, -1.5]
    """
    return bits.step * signed_codes(bits)


def adjusted(bits: SignedBits) -> SignedBits:
    """The same weights, to the last bit, by exact bits and no more of them than needed.

    Bits that are 0 in every weight are dropped at both ends; a sum that has outgrown its bits gets
    one more. One bit is always left.

    Args:
      bits: concrete; how many are left depends on them.
    """
    codes = signed_codes(bits)
    used = int(np.bitwise_or.reduce(np.abs(np.asarray(codes)).astype(np.int32), axis=None))
    if used == 0:
        return _split(codes, 1, bits.step)
    unused = (used & -used).bit_length() - 1  # at the lower end
    scale = np.float32(2.0**unused)
    return _split(codes / scale, used.bit_length() - unused, bits.step * scale)


def bits_in_use(bits: SignedBits) -> int:
    """n; 0 where every weight is 0."""
    return bits.positive.shape[0] if bool(jnp.any(signed_codes(bits) != 0)) else 0


def group_norms(bits: SignedBits) -> jax.Array:
    """sum_b sqrt(1e-8 + |positive_b|^2 + |negative_b|^2): the group Lasso over bits, shape ()."""
    axes = tuple(range(1, bits.positive.ndim))
    squares = jnp.sum(bits.positive**2 + bits.negative**2, axis=axes)
    return jnp.sum(jnp.sqrt(1e-8 + squares))
