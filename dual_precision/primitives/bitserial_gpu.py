"""`bitserial.plane_dot` as a GPU kernel in Pallas, made for few rows: there memory sets the time.

Each program takes a tile of words of all planes and meets it with every bit of every row, so that
a weight is read from memory once whatever the rows and their width. The inputs are shared out over
programs too, and their sums added afterwards: a matrix of 4096 outputs alone has too few tiles to
fill a GPU.

It is compiled by Triton, the backend of Pallas whose interpreter runs anywhere. jax 0.11 announces
that Mosaic will take its place; a jax without it runs the XLA form.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

try:
    from jax.experimental.pallas import triton
except ImportError:
    triton = None  # type: ignore[assignment]

_OUTPUTS = 128  # of a tile
_WORDS = 16  # of a tile: 512 inputs


def has_triton() -> bool:
    """Whether this jax can compile the kernel."""
    return triton is not None


def plane_dot_gpu(
    bits: jax.Array, words: jax.Array, planes: int, interpret: bool = False
) -> jax.Array:
    """sum_k x_k u_k from the bits of x and the first planes of the weights.

    Args:
      bits: uint32 [8, B, K / 32], see `bitserial.bit_words`.
      words: uint32 [stored, K / 32, N]; the first `planes` are read, where they stand. Only
        where K / 32 is no multiple of 16 or N none of 128 they are copied, filled up, before.
      interpret: run without a GPU, slowly, for tests.

    Returns:
      int32 [B, N].
    """
    rows = bits.shape[1]
    _, count, outputs = words.shape
    # Zero words add nothing, and outputs that do not exist are cut off below.
    more_words, more_outputs = -count % _WORDS, -outputs % _OUTPUTS
    bits = jnp.pad(bits, ((0, 0), (0, 0), (0, more_words)))
    words = jnp.pad(words, ((0, 0), (0, more_words), (0, more_outputs)))
    tiles = (words.shape[2] // _OUTPUTS, words.shape[1] // _WORDS)
    partial_sums = pl.pallas_call(
        partial(
            _kernel,
            rows=rows,
            planes=planes,
            ones=lax.population_count if interpret else _population_count,
        ),
        grid=tiles,
        in_specs=[
            pl.BlockSpec((*bits.shape[:2], _WORDS), lambda _, k: (0, 0, k)),
            pl.BlockSpec((planes, _WORDS, _OUTPUTS), lambda n, k: (0, k, n)),
        ],
        out_specs=pl.BlockSpec((1, rows, _OUTPUTS), lambda n, k: (k, 0, n)),
        out_shape=jax.ShapeDtypeStruct((tiles[1], rows, words.shape[2]), jnp.int32),
        compiler_params=triton.CompilerParams(num_warps=4) if has_triton() else None,
        interpret=interpret,
    )(bits, words)
    return jnp.sum(partial_sums, axis=0, dtype=jnp.int32)[:, :outputs]


def _population_count(words: jax.Array) -> jax.Array:
    """As `lax.population_count`, which Pallas writes as an operation that Triton does not have."""
    (counts,) = triton.elementwise_inline_asm(
        "popc.b32 $0, $1;",
        args=[words],
        constraints="=r,r",
        pack=1,
        result_shape_dtypes=[jax.ShapeDtypeStruct(words.shape, jnp.int32)],
    )
    return counts


def _kernel(
    bits_ref, words_ref, out_ref, *, rows: int, planes: int, ones: Callable[[jax.Array], jax.Array]
) -> None:
    shape = words_ref.shape[1:]

    def of_plane(row: jax.Array, b: jax.Array, total: jax.Array) -> jax.Array:
        plane, counts = words_ref[b], jnp.zeros(shape, jnp.int32)
        for j in range(8):
            weight = 2**j if j < 7 else -(2**7)
            common = plane & lax.broadcast_in_dim(bits_ref[j, row], shape, (0,))
            counts += weight * ones(common).astype(jnp.int32)
        return total + (counts << (planes - 1 - b))

    def of_row(row: jax.Array, _: None) -> None:
        start = jnp.zeros(shape, jnp.int32)
        total = lax.fori_loop(0, planes, partial(of_plane, row), start)
        out_ref[0, row] = jnp.sum(total, axis=0, dtype=jnp.int32)

    # Loops, not copies: 8 rows of 8 planes written out are a program of minutes to compile.
    lax.fori_loop(0, rows, of_row, None)
