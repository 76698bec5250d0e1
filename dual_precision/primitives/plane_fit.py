"""Planes for weights that were not trained for them: one grid for every number of planes."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from dual_precision.primitives.nested import check_bits, check_finite, encode, truncate

_TRIED = 24  # clipping points from the largest weight down, each 0.93 of the one before
# The numbers of planes that choose among them where nobody says which will be read. One is the
# sign, whatever the step; more than five leave less than 0.4 % of the power of a normal variable at
# any of the clips that these choose.
FEW_PLANES = (2, 3, 4, 5)


def _scales(
    w: jax.Array, codes: jax.Array, stored: int, widths: Sequence[int]
) -> tuple[jax.Array, jax.Array]:
    """Least-squares scale of each of the widths [widths, N], and the share of power it leaves."""
    power = jnp.maximum(jnp.sum(w * w, axis=0), 1e-30)
    found, left = [], []
    for bits in widths:
        middle = truncate(codes, bits, stored).astype(jnp.float32) + 0.5
        along, square = jnp.sum(w * middle, axis=0), jnp.sum(middle * middle, axis=0)
        found.append(along / square)
        left.append(1 - along * along / (square * power))
    return jnp.stack(found), jnp.stack(left)


@partial(jax.jit, static_argnames=("stored", "choose"))
def _fit(w: jax.Array, stored: int, choose: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    peak = jnp.maximum(jnp.max(jnp.abs(w), axis=0), 1e-30)

    def attempt(best: tuple[jax.Array, jax.Array], clip: jax.Array):
        codes = encode(w, clip * peak / 2 ** (stored - 1), stored, stored)
        # The mean of logarithms asks the same relative gain of every width.
        left = _scales(w, codes, stored, choose)[1]
        score = jnp.mean(jnp.log(jnp.maximum(left, 1e-12)), axis=0)
        better = score < best[0]
        return (jnp.where(better, score, best[0]), jnp.where(better, clip, best[1])), None

    start = (jnp.full_like(peak, jnp.inf), jnp.ones_like(peak))
    (_, clip), _ = lax.scan(attempt, start, 0.93 ** jnp.arange(_TRIED, dtype=jnp.float32))
    codes = encode(w, clip * peak / 2 ** (stored - 1), stored, stored)
    return codes, _scales(w, codes, stored, range(1, stored + 1))[0]


def fit_planes(
    w: jax.Array, stored: int = 8, read: Sequence[int] = FEW_PLANES
) -> tuple[jax.Array, jax.Array]:
    """Nested codes of float weights, with a scale for every number of planes; no data, no training.

        w ~ (c_n + 1/2) * scale_n,   c_n = c_N >> (N - n)

    Codes are on the mid-rise grid; its clipping point is searched per output, for the smallest
    mean over the n of `read` of the log of the squared error. scale_n is then the least-squares one
    for that n, which that of the nested grid (step * 2^(N-n)) is not: cells at the clips are wider.

    No clip is the best of every n. What few planes want costs many of them: of 2 to 5 the clip is
    nearer than the largest weight, and at 8 planes the error is then that of the clip.

    Args:
      w: [K, N], float32, finite.
      stored: planes to keep, 2 to 8.
      read: numbers of planes that will be read: (8,) where all of them are, (2, 8) for two modes.
        Those above `stored` do not count.

    Returns:
      int32 codes [K, N] of `stored` bits; float32 scales [stored, N], of 1 plane first.

    >>> codes, scales = fit_planes(jnp.array([[-1.0], [1.0]]), 2)
    >>> (codes[:, 0].astype(jnp.float32) + 0.5) * scales[1]  # two planes
    Array([-1.,  1.], dtype=float32)
    """
    check_bits(stored, 8)
    if int(stored) < 2:
        raise ValueError(f"stored={stored}: expected 2 to 8 planes; one plane is the sign alone")
    check_finite(w)
    if w.ndim != 2:
        raise ValueError(f"weights of shape {list(w.shape)}: expected [inputs, outputs]")
    chosen = tuple(sorted({bits for bits in read if bits <= stored}))
    if not chosen or chosen[0] < 1:
        raise ValueError(f"read={tuple(read)}: expected some of 1 to {stored}, numbers of planes")
    return _fit(w, stored, chosen)


@partial(jax.jit, static_argnames="stored")
def plane_scales(w: jax.Array, codes: jax.Array, stored: int = 8) -> jax.Array:
    """The scales of `fit_planes`, float32 [stored, N], for codes that there are already [K, N].

    >>> w = jnp.array([[-0.75], [0.25]])  # the values of two bits with a step of 0.5
    >>> plane_scales(w, jnp.array([[-2], [0]]), 2).tolist()  # one plane, two planes
    [[1.0], [0.5]]
    """
    return _scales(w, codes, stored, range(1, stored + 1))[0]
