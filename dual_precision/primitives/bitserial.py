"""Products with weights kept as bit planes: AND and population count, any number of planes.

A weight of n planes is the odd integer 2 c_n + 1 (times half a step); with u = c_n + 2^(n-1), whose
bit b has the weight 2^(n-1-b), b = 0 first, and signed integers x,

    plane_dot = sum_k x_k (2 c_k + 1) = 2 sum_k x_k u_k - (2^n - 1) sum_k x_k
    sum_k x_k u_k = sum_b 2^(n-1-b) sum_j w_j popcount(plane_b AND bit_j(x))

where w_j = 2^j, and -2^7 for the sign bit.

Words rather than the bytes of `bitplanes` because this is how a product reads them: 32 inputs of
one output in a word, neighbouring outputs in neighbouring words. Planes are most significant
first, so that fewer planes are a prefix. The idea is PrecisionBatching's (Lam et al. 2020, arXiv
2003.00822); there planes are two's complement and rounding is to nearest, so that they do not nest.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from dual_precision.primitives import bitserial_gpu
from dual_precision.primitives.fixed_point import fixed_point
from dual_precision.primitives.native import planes as native
from dual_precision.primitives.nested import check_bits, check_codes
from dual_precision.primitives.plane_operands import (
    DIGIT,
    WORD,
    check_product,
    check_words,
    step_and_ends,
)
from dual_precision.primitives.quantizers import InputGrid
from dual_precision.primitives.ste import uniform_code

_ROWS = 8  # in one program of XLA's form
_GPU_ROWS = 64  # in one call of the GPU kernel, whose sums of parts of the inputs take memory


def pack_words(codes: jax.Array, bits: int) -> jax.Array:
    """Signed codes of `bits` bits [K, N] as planes of words.

    Returns:
      uint32 [bits, ceil(K / 32), N], plane 0 the most significant; bit i of word w is input
      32 w + i. What fills up the last word is zero.

    Raises:
      ValueError: not two axes, not integers, or a concrete code that does not fit.

    >>> pack_words(jnp.array([[-2], [1]]), 2).tolist()
    [[[2]], [[2]]]
    """
    check_bits(bits, 8)
    check_codes(codes, bits)
    if codes.ndim != 2:
        raise ValueError(f"codes of shape {list(codes.shape)}: expected [inputs, outputs]")
    return _pack(codes, bits)


@partial(jax.jit, static_argnames="bits")
def _pack(codes: jax.Array, bits: int) -> jax.Array:
    inputs, outputs = codes.shape
    words = -(-inputs // WORD)
    unsigned = (codes.astype(jnp.int32) + 2 ** (bits - 1)).astype(jnp.uint32)
    unsigned = jnp.pad(unsigned, ((0, words * WORD - inputs), (0, 0)))
    unsigned = unsigned.reshape(1, words, WORD, outputs)
    place = jnp.arange(WORD, dtype=jnp.uint32).reshape(1, 1, WORD, 1)
    shift = jnp.arange(bits - 1, -1, -1, dtype=jnp.uint32).reshape(-1, 1, 1, 1)
    return jnp.sum(((unsigned >> shift) & 1) << place, axis=2, dtype=jnp.uint32)


def unpack_words(words: jax.Array, inputs: int) -> jax.Array:
    """Signed codes [inputs, N] of as many bits as there are planes; the inverse of `pack_words`.

    >>> unpack_words(pack_words(jnp.array([[-2], [1]]), 2)[:1], 2).tolist()  # the sign alone
    [[-1], [0]]
    """
    bits = words.shape[0]
    check_words(words, inputs, bits)
    place = jnp.arange(WORD, dtype=jnp.uint32).reshape(1, 1, WORD, 1)
    digits = ((words[:, :, None] >> place) & 1).astype(jnp.int32)
    weights = (1 << jnp.arange(bits - 1, -1, -1, dtype=jnp.int32)).reshape(-1, 1, 1, 1)
    unsigned = jnp.sum(digits * weights, axis=0, dtype=jnp.int32)
    return unsigned.reshape(words.shape[1] * WORD, words.shape[2])[:inputs] - 2 ** (bits - 1)


def bit_words(x: jax.Array) -> jax.Array:
    """int8 [B, K], K a multiple of 32, as words of its bits: uint32 [8, B, K / 32], lowest first.

    >>> bit_words(jnp.full((1, 32), -1, jnp.int8))[:, 0, 0].tolist() == [2**32 - 1] * 8
    True
    """
    unsigned = lax.bitcast_convert_type(x, jnp.uint8).astype(jnp.uint32)
    unsigned = unsigned.reshape(1, x.shape[0], x.shape[1] // WORD, WORD)
    shift = jnp.arange(DIGIT, dtype=jnp.uint32).reshape(-1, 1, 1, 1)
    place = jnp.arange(WORD, dtype=jnp.uint32).reshape(1, 1, 1, -1)
    return jnp.sum(((unsigned >> shift) & 1) << place, axis=-1, dtype=jnp.uint32)


def plane_product(
    x: jax.Array,
    words: jax.Array,
    scales: jax.Array,
    planes: int,
    activations: int,
    form: str | None = None,
    grid: InputGrid | None = None,
) -> jax.Array:
    """x @ w with w = (c_n + 1/2) * scale_n of the first n planes, and x in fixed point.

        y = scale_n * step / 2 * sum_d 256^d plane_dot(digit_d)

    The sums are exact integers; float32 roundings follow, one for each digit and each factor. The
    bits of a row do not depend on the number of rows, as long as a compiler takes nothing that
    follows into the last rounding.

    With a `grid`, x is clip(round(x * (1/step)), low, top) * step instead, the same step for all
    rows, as a trained network has it; y then has the bits of `code_product`.

    Args:
      x: [B, K], float32; a row that is not finite gives NaN; on a grid, NaN alone.
      words: uint32 [bits, ceil(K / 32), N], see `pack_words`; only `planes` of them are read.
      scales: [bits, N], float32, of one plane first.
      planes: n, 1 to bits.
      activations: 8, 16 or 32 bits, see `fixed_point`.
      form: "xla", everywhere; "native", a compiled CPU kernel, where `native.available()`;
        "pallas", a GPU kernel. None takes the fastest of the platform.
        They differ by the roundings at most.
      grid: see `quantizers.input_grid`; codes of -128 to 127, and activations=8. Traced codes
        beyond give NaN.

    Returns:
      float32 [B, N].

    Raises:
      ValueError: shapes or dtypes that do not fit; more inputs than int32 sums allow; concrete
        codes of a grid that int8 does not hold; a form that cannot run here.

    >>> words = pack_words(jnp.array([[-2], [1]]), 2)  # weights -1.5 and 1.5, times a scale of 2
    >>> y = plane_product(jnp.array([[5.0, 7.0]]), words, jnp.full((2, 1), 2.0), 2, 32)
    >>> round(y.item(), 5)
    6.0
    """
    check_product(x, words, scales, planes, activations, grid)
    ways = _ways(planes, activations)
    if form not in (None, *ways):
        raise ValueError(f"form {form!r}: expected one of {list(ways)}")
    if x.shape[0] == 0:
        return jnp.zeros((0, words.shape[2]), jnp.float32)
    given = (x, words, scales, *step_and_ends(grid))
    if form is not None:
        return ways[form](*given)
    on_cpu = "native" if native.available() else "xla"
    on_gpu = "pallas" if bitserial_gpu.has_triton() else "xla"
    return lax.platform_dependent(*given, cpu=ways[on_cpu], cuda=ways[on_gpu], default=ways["xla"])


def _ways(planes: int, activations: int) -> dict[str, Callable[..., jax.Array]]:
    """Form -> the product of (x, words, scales, step, ends)."""
    ways: dict[str, Callable[..., jax.Array]] = {
        "xla": partial(_product, dot=plane_dot),
        "native": native.plane_product_native,
        "pallas": partial(_product, dot=plane_dot_pallas),
    }
    return {name: partial(w, planes=planes, activations=activations) for name, w in ways.items()}


def _product(
    x, words, scales, step, ends, *, planes: int, activations: int, dot: Callable
) -> jax.Array:
    if step.size:
        codes = uniform_code(x, step[0], ends[0], ends[1])
        sums = dot(codes.astype(jnp.int8), words, planes).astype(jnp.float32)
        lost = jnp.any(jnp.isnan(x), axis=1, keepdims=True)
        return sums * ((0.5 * scales[planes - 1][None]) * jnp.where(lost, jnp.nan, step[0]))
    digits, own = fixed_point(x, activations)
    count, rows, inputs = digits.shape
    # Digits are rows of one product: the weights are read once for all of them.
    sums = dot(digits.reshape(count * rows, inputs), words, planes)
    parts = sums.reshape(count, rows, -1).astype(jnp.float32)
    y = parts[count - 1]
    for d in reversed(range(count - 1)):
        y = y * 2**DIGIT + parts[d]
    return y * (0.5 * own) * scales[planes - 1][None]


@partial(jax.jit, static_argnames="planes")
def plane_dot(x: jax.Array, words: jax.Array, planes: int) -> jax.Array:
    """sum_k x_k (2 c_k + 1) with the first `planes` planes of the weights: exact integers.

    The reference: a loop over the words of one output, vectorised over the outputs. One big AND
    with a sum over words takes 4 to 40 times as long on a CPU: it writes the ANDs to memory, where
    the loop keeps a row of sums in the cache.

    Args:
      x: int8 [B, K].
      words: uint32 [bits, ceil(K / 32), N], see `pack_words`.
      planes: 1 to bits.

    Returns:
      int32 [B, N].

    >>> words = pack_words(jnp.array([[-2], [1]]), 2)  # weights -3 and 3
    >>> plane_dot(jnp.array([[5, 7]], jnp.int8), words, 2).item()
    6
    """
    x = _filled(x, words, planes)
    rows = x.shape[0]
    if rows > _ROWS:  # more would be a program of that many times the length
        return _in_parts(x, _ROWS, lambda part: plane_dot(part, words, planes))
    bits = bit_words(x)

    def of_word(row: jax.Array, word: jax.Array) -> jax.Array:
        total = jnp.zeros(words.shape[2], jnp.int32)
        for b in range(planes):
            plane = lax.dynamic_index_in_dim(words[b], word, keepdims=False)
            total += _counts(plane, lax.dynamic_index_in_dim(row, word, 1, False)) << (
                planes - 1 - b
            )
        return total

    def add(word: jax.Array, sums: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        return tuple(total + of_word(bits[:, r], word) for r, total in enumerate(sums))

    start = tuple(jnp.zeros(words.shape[2], jnp.int32) for _ in range(rows))
    return centred(jnp.stack(lax.fori_loop(0, words.shape[1], add, start)), x, planes)


@jax.jit  # traced once, where each row and plane would trace it again; XLA takes it in
def _counts(plane: jax.Array, bits: jax.Array) -> jax.Array:
    """One word of every output [N] with one of x, given as its bits [8]: int32 [N]."""
    counts = jnp.zeros(plane.shape, jnp.int32)
    for j in range(DIGIT):
        weight = 2**j if j < DIGIT - 1 else -(2**j)
        counts += weight * lax.population_count(plane & bits[j]).astype(jnp.int32)
    return counts


def plane_dot_pallas(
    x: jax.Array, words: jax.Array, planes: int, interpret: bool = False
) -> jax.Array:
    """As `plane_dot`, by the GPU kernel. `interpret` runs it anywhere, slowly."""
    x = _filled(x, words, planes)
    if x.shape[0] > _GPU_ROWS:
        own = partial(plane_dot_pallas, words=words, planes=planes, interpret=interpret)
        return _in_parts(x, _GPU_ROWS, own)
    return centred(bitserial_gpu.plane_dot_gpu(bit_words(x), words, planes, interpret), x, planes)


def _in_parts(x: jax.Array, size: int, dot: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """`dot` of so many rows after the other, zeros behind the last."""
    parts = jnp.pad(x, ((0, -len(x) % size), (0, 0))).reshape(-1, size, x.shape[1])
    sums = lax.map(dot, parts)
    return sums.reshape(-1, sums.shape[-1])[: len(x)]


def _filled(x: jax.Array, words: jax.Array, planes: int) -> jax.Array:
    """x with zeros up to whole words."""
    check_words(words, x.shape[1], planes)
    if x.dtype != jnp.int8:
        raise ValueError(f"inputs of dtype {x.dtype}: expected int8, as fixed_point() gives")
    return jnp.pad(x, ((0, 0), (0, words.shape[1] * WORD - x.shape[1])))


def centred(sums: jax.Array, x: jax.Array, planes: int) -> jax.Array:
    """sum x (2 c + 1) from sum x u; where twice the sum leaves int32, what wraps comes back."""
    return 2 * sums - (2**planes - 1) * jnp.sum(x, axis=1, keepdims=True, dtype=jnp.int32)
