"""Integer codes as packed bit planes, most significant first: a prefix is a narrower code.

A code c of N bits is kept as u = c + 2^(N-1), in [0, 2^N). Bit b of u, as s_b = 2 bit - 1, gives

    value_N = step * sum_{b=0..N-1} 2^(b-1) * s_b,

so the first n planes are the code of the n-bit mode, with no special case for one bit.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from dual_precision.primitives.nested import check_bits, check_codes


def pack(codes: jax.Array, bits: int) -> jax.Array:
    """Packs signed codes of `bits` bits, any shape, into planes.

    Returns:
      uint8 [bits, ceil(size / 8)], plane 0 the most significant; the codes are flattened in C
      order, eight to a byte, the first in the top bit, the last byte filled up with zeros.

    Raises:
      ValueError: `codes` is not an integer array, or a concrete code does not fit `bits`.

    >>> pack(jnp.array([-2, -1, 0, 1]), 2).tolist()
    [[48], [80]]
    """
    check_bits(bits, 8)
    check_codes(codes, bits)
    half = 2 ** (bits - 1)
    unsigned = (codes.astype(jnp.int32).reshape(-1) + half).astype(jnp.uint8)
    shifts = jnp.arange(bits - 1, -1, -1, dtype=jnp.uint8)
    return jnp.packbits((unsigned[None] >> shifts[:, None]) & jnp.uint8(1), axis=1)


def unpack(planes: jax.Array, shape: Sequence[int]) -> jax.Array:
    """Signed codes of as many bits as there are planes: the inverse of `pack`, or of a prefix.

    Args:
      planes: uint8 [n, ceil(size / 8)], most significant first.
      shape: shape of the codes.

    Returns:
      int32 codes of n bits in `shape`.

    >>> unpack(pack(jnp.array([-2, -1, 0, 1]), 2)[:1], (4,))  # the sign alone
    Array([-1, -1,  0,  0], dtype=int32)
    """
    size = math.prod(shape)
    if planes.dtype != jnp.uint8 or planes.ndim != 2 or planes.shape[1] != -(-size // 8):
        raise ValueError(
            f"planes {planes.dtype}{list(planes.shape)}: expected uint8 [planes, {-(-size // 8)}]"
            f" for codes of shape {list(shape)}"
        )
    bits = planes.shape[0]
    check_bits(bits, 8)
    digits = jnp.unpackbits(planes, axis=1, count=size).astype(jnp.int32)
    weights = jnp.int32(1) << jnp.arange(bits - 1, -1, -1, dtype=jnp.int32)
    unsigned = jnp.sum(digits * weights[:, None], axis=0, dtype=jnp.int32)
    return (unsigned - 2 ** (bits - 1)).reshape(tuple(shape))
