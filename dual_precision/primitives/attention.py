"""Attention of a decoder and its normalisation, for whole texts, and row by row with a cache.

What is computed row by row has the same bits for a row whatever the number of rows. XLA gives no
such promise for its matrix products, its softmax or, from 8 rows on, the mean of a row: they sum
in an order that depends on the shape.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dual_precision.primitives.native import decoder

BASE = 10_000.0  # of the wave lengths of rotary positions


def row_by_row(function: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
    """[rows, ...] of `function` of each row, by one body whose shape knows no number of rows.

    One row is computed twice: XLA would take a loop of one into the program around it, and there
    round otherwise.

    >>> row_by_row(jnp.sum, jnp.ones((1, 3))).tolist()
    [3.0]
    """
    rows = arrays[0].shape[0]
    if rows == 1:
        arrays = tuple(jnp.concatenate([array, array]) for array in arrays)
    return lax.map(lambda given: function(*given), arrays)[:rows]


def rms_normalize(x: jax.Array, scale: jax.Array, epsilon: float) -> jax.Array:
    """x / sqrt(mean(x^2) + epsilon) * scale over the last axis (Zhang and Sennrich 2019, arXiv
    1910.07467).

    >>> rms_normalize(jnp.array([3.0, -3.0]), jnp.ones(2), 0.0)
    Array([ 1., -1.], dtype=float32)
    """
    power = jnp.mean(x * x, axis=-1, keepdims=True)
    return x * lax.rsqrt(power + epsilon) * scale.reshape((1,) * (x.ndim - 1) + scale.shape)


def rms_normalize_by_row(x: jax.Array, scale: jax.Array, epsilon: float) -> jax.Array:
    """`rms_normalize` of x [rows, channels], whose bits do not depend on the number of rows.

    For inference: where there is a compiled kernel, it has no derivative, and `rms_normalize` has.
    """

    def by_xla(x: jax.Array, scale: jax.Array) -> jax.Array:
        return row_by_row(lambda row: rms_normalize(row, scale, epsilon), x)

    def by_kernel(x: jax.Array, scale: jax.Array) -> jax.Array:
        return decoder.rms_normalize_rows(x, scale, epsilon)

    if not decoder.available():
        return by_xla(x, scale)
    return lax.platform_dependent(x, scale, cpu=by_kernel, default=by_xla)


def rotated(x: jax.Array, positions: jax.Array) -> jax.Array:
    """x [..., T, heads, D] turned by its position (Su et al. 2021, arXiv 2104.09864).

    Args:
      x: float32; D is even, and feature i goes with i + D / 2.
      positions: int32 [..., T].
    """
    half = x.shape[-1] // 2
    turns = positions.astype(jnp.float32)[..., None, None] * _waves(half).reshape(
        (1,) * (positions.ndim + 1) + (half,)
    )
    first, second = x[..., :half], x[..., half:]
    cos, sin = jnp.cos(turns), jnp.sin(turns)
    return jnp.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1)


def _waves(half: int) -> np.ndarray:
    """Turns of each pair of features from one position to the next: float32 [half]. An angle is the
    float32 product of position and wave in every program: far behind, its last bit counts."""
    return (BASE ** (-np.arange(half, dtype=np.float64) / half)).astype(np.float32)


def causal_attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """softmax(q k^T / sqrt(D), of positions up to its own) v; each [N, T, heads, D], float32."""
    length = q.shape[1]
    scores = jnp.einsum("nqhd,nkhd->nhqk", q, k) * q.shape[-1] ** -0.5
    seen = jnp.tril(jnp.ones((length, length), jnp.bool_))[None, None]
    weights = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1)
    return jnp.einsum("nhqk,nkhd->nqhd", weights, v)


def attend_row(q: jax.Array, keys: jax.Array, values: jax.Array, position: jax.Array) -> jax.Array:
    """One row of `causal_attention`: q [heads, D] at a position; keys, values [S, heads, D]."""
    scores = jnp.einsum("hd,khd->hk", q, keys) * q.shape[-1] ** -0.5
    seen = (jnp.arange(keys.shape[0], dtype=jnp.int32) <= position)[None]
    weights = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1)
    return jnp.einsum("hk,khd->hd", weights, values)


def cached_attention(
    qkv: jax.Array, keys: jax.Array, values: jax.Array, length: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`causal_attention` of some rows that follow what is in a cache, row by row; without a
    derivative, as `rms_normalize_by_row`.

    Args:
      qkv: [N, T, 3, heads, D], float32, queries, keys and values, not rotated yet.
      keys, values: [N, S, heads, D], of the positions before `length`; what stands behind is
        written over. Rows beyond S are not kept, and what is attended to from there means nothing.
      length: int32 [N].

    Returns:
      [N, T, heads, D]; keys and values with the new rows.
    """
    given = (qkv, keys, values, length)
    if 0 in qkv.shape:  # no row
        return jnp.zeros((*qkv.shape[:2], *qkv.shape[3:]), jnp.float32), keys, values
    if not decoder.available():
        return _attention_by_xla(*given)
    half = qkv.shape[-1] // 2
    turns = np.arange(keys.shape[1], dtype=np.float32)[:, None] * _waves(half)[None]
    cos, sin = np.cos(turns), np.sin(turns)
    return lax.platform_dependent(
        *given,
        cpu=partial(decoder.attend_rows, cos=cos, sin=sin),
        default=_attention_by_xla,
    )


def _attention_by_xla(
    qkv: jax.Array, keys: jax.Array, values: jax.Array, length: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    texts, rows, _, heads, size = qkv.shape
    positions = length[:, None] + jnp.arange(rows, dtype=jnp.int32)[None]
    which = jnp.broadcast_to(jnp.arange(texts, dtype=jnp.int32)[:, None], (texts, rows))

    def flat(array: jax.Array) -> jax.Array:
        return array.reshape(texts * rows, *array.shape[2:])

    pair = flat(qkv[:, :, :2].reshape(texts, rows, 2 * heads, size))
    turned = row_by_row(rotated, pair, flat(positions))
    turned = turned.reshape(texts, rows, 2, heads, size)
    keys = keys.at[which, positions].set(turned[:, :, 1], mode="drop")
    values = values.at[which, positions].set(qkv[:, :, 2], mode="drop")

    def attend(query: jax.Array, text: jax.Array, position: jax.Array) -> jax.Array:
        own_keys, own_values = keys[text], values[text]
        return attend_row(query, own_keys, own_values, position)

    attended = row_by_row(attend, flat(turned[:, :, 0]), flat(which), flat(positions))
    return attended.reshape(texts, rows, heads, size), keys, values
