"""Products on planes: every form gives the exact integers; a prefix of planes is a narrow code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dual_precision.primitives import bitserial_gpu
from dual_precision.primitives.bitserial import (
    bit_words,
    pack_words,
    plane_dot,
    plane_dot_pallas,
    plane_product,
    unpack_words,
)
from dual_precision.primitives.native import build
from dual_precision.primitives.native import planes as native
from dual_precision.primitives.nested import truncate
from dual_precision.primitives.plane_operands import MOST_INPUTS
from dual_precision.primitives.quantizers import InputGrid

PLANES = range(1, 9)


def some_codes(bits, inputs, outputs, seed=0):
    half = 2 ** (bits - 1)
    return np.random.default_rng(seed).integers(-half, half, (inputs, outputs)).astype(np.int32)


def some_inputs(rows, inputs, seed=0):
    return np.random.default_rng(seed).integers(-128, 128, (rows, inputs)).astype(np.int8)


def expected(x, codes, planes):
    """In int64, from codes of 8 bits."""
    return x.astype(np.int64) @ (2 * (codes.astype(np.int64) >> (8 - planes)) + 1)


def check(x, codes, planes):
    """All of `planes` in one program."""
    words = pack_words(jnp.asarray(codes), 8)

    @jax.jit
    def products(x, words):
        return [plane_dot(x, words, n) for n in planes]

    for n, found in zip(planes, products(jnp.asarray(x), words), strict=True):
        assert found.dtype == jnp.int32
        np.testing.assert_array_equal(found, expected(x, codes, n), err_msg=f"{n} planes")


def check_product(form, x, codes, planes):
    """Rows whose largest number is 127 have a step of 1, so that the product is the integer."""
    x = np.clip(x, -127, 127)
    x[:, 0] = 127
    words, scales = pack_words(jnp.asarray(codes), 8), jnp.full((8, codes.shape[1]), 2.0)

    @jax.jit
    def products(x, words):
        return [plane_product(x, words, scales, n, 8, form) for n in planes]

    given = jnp.asarray(x, jnp.float32)
    for n, found in zip(planes, products(given, words), strict=True):
        exact = expected(x, codes, n).astype(np.float32)
        np.testing.assert_array_equal(found, exact, err_msg=f"{n} planes")


@pytest.fixture
def quick_programs():
    """Integers come out alike however a program was optimised; this compiles sooner."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


needs_native = pytest.mark.skipif(
    not native.available(), reason="the CPU kernel is not available here: its log line says why"
)

# -- words -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1), (32, 3), (33, 17), (64, 0)], ids=str)
def test_round_trip(shape):
    @jax.jit
    def there_and_back(*codes):
        words = [pack_words(c, bits) for c, bits in zip(codes, PLANES, strict=True)]
        return [(w, unpack_words(w, shape[0])) for w in words]

    codes = [some_codes(bits, *shape) for bits in PLANES]
    for own, bits, (words, back) in zip(codes, PLANES, there_and_back(*codes), strict=True):
        assert words.dtype == jnp.uint32
        assert words.shape == (bits, -(-shape[0] // 32), shape[1])
        np.testing.assert_array_equal(back, own)


@jax.jit
def prefixes(codes):
    narrow = [truncate(codes, bits, 8) for bits in PLANES]
    return pack_words(codes, 8), [
        (c, pack_words(c, n)) for c, n in zip(narrow, PLANES, strict=True)
    ]


@given(st.integers(0, 2**16))
def test_a_prefix_of_planes_is_the_truncated_code(seed):
    codes = some_codes(8, 33, 3, seed)
    words, narrower = prefixes(codes)
    for bits, (narrow, packed) in zip(PLANES, narrower, strict=True):
        np.testing.assert_array_equal(narrow, codes >> (8 - bits))
        np.testing.assert_array_equal(packed, words[:bits])


def test_the_layout():
    """Bit i of word w is input 32 w + i, plane 0 the most significant; what fills up is zero."""
    codes = np.full((34, 2), -2, np.int32)  # 0 unsigned
    codes[3, 0], codes[33, 0], codes[31, 1] = 1, -1, 0  # 3, 1, 2
    words = pack_words(jnp.asarray(codes), 2)
    assert words.tolist() == [[[8, 2**31], [0, 0]], [[8, 0], [2, 0]]]


def test_bits_of_inputs():
    words = bit_words(jnp.asarray(some_inputs(3, 64)))
    bits = (np.asarray(words)[..., None] >> np.arange(32, dtype=np.uint32)) & 1
    weights = np.array([1, 2, 4, 8, 16, 32, 64, -128]).reshape(-1, 1, 1)
    np.testing.assert_array_equal(
        np.sum(bits.reshape(8, 3, 64).astype(np.int64) * weights, axis=0), some_inputs(3, 64)
    )


# -- products --------------------------------------------------------------------------------------


# rows, inputs, outputs; 15 rows are 8 + 4 + 2 + 1, all the parts that the kernel takes them in.
@needs_native
@pytest.mark.parametrize(
    "shape",
    [(1, 70, 37), (2, 32, 16), (3, 1, 1), (8, 100, 130), (9, 33, 15), (15, 1056, 40)],
    ids=str,
)
def test_native(shape):
    rows, inputs, outputs = shape
    check_product("native", some_inputs(rows, inputs), some_codes(8, inputs, outputs), PLANES)


@needs_native
def test_native_on_several_threads():
    """More words than one thread is given, in parts that end within a register and a tile."""
    check_product("native", some_inputs(3, 2048), some_codes(8, 2048, 1030), (4, 8))


@needs_native
def test_native_has_the_codes_of_the_xla_form_where_they_are_ties():
    """Half of the peak is one: the step of the kernel was a quotient, and its code another one."""
    peaks = np.random.default_rng(0).uniform(0.1, 1, 8).astype(np.float32)
    x = jnp.asarray(np.pad(np.stack([peaks, peaks / 2], axis=1), ((0, 0), (0, 30))))
    words, scales = pack_words(jnp.asarray(some_codes(8, 32, 16)), 8), jnp.ones((8, 16))
    product = jax.jit(plane_product, static_argnums=(3, 4, 5))
    found, exact = (product(x, words, scales, 1, 8, form) for form in ("native", "xla"))
    np.testing.assert_allclose(found, exact, rtol=1e-6, atol=1e-6)


@needs_native
@pytest.mark.parametrize("activations", [8, 16, 32])
def test_native_is_the_xla_form(activations):
    """The same digits and sums, in another order of roundings."""
    x = jax.random.normal(jax.random.key(0), (5, 70))
    words, scales = pack_words(jnp.asarray(some_codes(8, 70, 37)), 8), jnp.ones((8, 37))
    product = jax.jit(plane_product, static_argnums=(3, 4, 5))
    found, exact = (
        product(x.at[0].set(0.0), words, scales, 3, activations, form) for form in ("native", "xla")
    )
    np.testing.assert_allclose(found, exact, rtol=1e-6, atol=4e-6 * float(jnp.abs(exact).max()))


@pytest.mark.parametrize(
    ("shape", "planes"),
    [
        ((1, 70, 37), (1, 2, 5, 8)),
        ((2, 32, 128), (4,)),
        ((3, 31, 1), (2,)),
        ((8, 100, 130), (1,)),
        ((9, 64, 15), (1,)),  # one row more than a program takes
    ],
    ids=str,
)
@pytest.mark.usefixtures("quick_programs")
def test_xla(shape, planes):
    rows, inputs, outputs = shape
    check(some_inputs(rows, inputs), some_codes(8, inputs, outputs), planes)


@pytest.mark.parametrize(
    ("shape", "planes"),
    [
        ((1, 70, 37), (1, 2, 5, 8)),
        ((2, 513, 130), (1,)),  # two tiles of inputs, two of outputs
        ((3, 32, 128), (1,)),
        ((9, 100, 1), (1,)),
        ((65, 33, 2), (1,)),  # one row more than a call takes
    ],
    ids=str,
)
@pytest.mark.usefixtures("quick_programs")
def test_the_gpu_kernel_interpreted(shape, planes):
    rows, inputs, outputs = shape
    x, codes = some_inputs(rows, inputs), some_codes(8, inputs, outputs)
    words = pack_words(jnp.asarray(codes), 8)

    @jax.jit
    def products(x, words):
        return [plane_dot_pallas(x, words, n, interpret=True) for n in planes]

    for n, found in zip(planes, products(jnp.asarray(x), words), strict=True):
        np.testing.assert_array_equal(found, expected(x, codes, n), err_msg=f"{n} planes")


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")
@pytest.mark.skipif(not bitserial_gpu.has_triton(), reason="this jax has no Triton backend")
@pytest.mark.parametrize(("rows", "activations"), [(1, 8), (9, 8), (5, 16)])
def test_the_gpu_kernel_lowers_without_a_gpu(rows, activations):
    text = lowered_for_cuda(rows, activations)
    assert text.count("stablehlo.custom_call") == 1
    assert "triton" in text
    assert "popc.b32" in text
    assert "ctpop" not in text  # Triton has no such operation


def lowered_for_cuda(rows, activations):
    x = jax.ShapeDtypeStruct((rows, 70), jnp.float32)
    words = jax.ShapeDtypeStruct((8, 3, 130), jnp.uint32)
    program = jax.jit(lambda x, words: plane_product(x, words, jnp.ones((8, 130)), 1, activations))
    try:
        return program.trace(x, words).lower(lowering_platforms=("cuda",)).as_text()
    except RuntimeError as error:
        if "specify an abstract GPU device" not in str(error):
            raise
        pytest.skip("this jax asks for more than a platform")  # 0.11


@pytest.mark.usefixtures("quick_programs")
def test_the_largest_sums():
    """All inputs at -128 or 127, all codes at an end, as many inputs as are allowed."""
    codes = np.tile(np.array([[127, -128, 127]], np.int32), (MOST_INPUTS, 1))
    codes[::2, 2] = -128
    for end in (-128, 127):
        x = np.full((1, MOST_INPUTS), end, np.int8)
        check(x, codes, (1, 8))
    if native.available():
        check_product("native", x, codes, (1, 8))


def test_no_form_is_the_fastest_that_there_is(monkeypatch):
    x, codes = some_inputs(2, 40), some_codes(8, 40, 5)
    check_product(None, x, codes, (3,))
    monkeypatch.setattr(build, "_why_not", lambda kernel: "for a test")
    check_product(None, x, codes, (3,))
    with pytest.raises(ValueError, match="no compiled kernel here, for a test"):
        check_product("native", x, codes, (3,))


FORMS = [pytest.param("native", marks=needs_native), "xla", None]


@pytest.mark.parametrize("form", FORMS)
def test_rows_that_are_not_finite(form):
    """They give NaN, wherever in a row it stands, and leave the other rows alone."""
    x = np.asarray(some_inputs(5, 40), np.float32)
    x[0, 0], x[1, 17], x[2, 39], x[3, 5] = np.nan, np.nan, np.nan, np.inf
    words, scales = pack_words(jnp.asarray(some_codes(8, 40, 3)), 8), jnp.ones((8, 3))
    found = np.asarray(plane_product(jnp.asarray(x), words, scales, 2, 8, form))
    assert np.isnan(found[:4]).all()
    assert np.isfinite(found[4]).all()


@pytest.mark.parametrize("form", FORMS)
def test_no_rows(form):
    words = pack_words(jnp.asarray(some_codes(8, 40, 3)), 8)
    assert plane_product(jnp.zeros((0, 40)), words, jnp.ones((8, 3)), 2, 8, form).shape == (0, 3)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("low", "top"), [(0, 255), (-129, 127), (-128, 128)])
def test_codes_of_a_grid_that_int8_does_not_hold(form, low, top):
    """They would be other codes: an error where their ends are known, and NaN where not."""
    words, scales = pack_words(jnp.asarray(some_codes(8, 40, 3)), 8), jnp.ones((8, 3))
    x = jnp.full((2, 40), 100.0)

    def product(*ends):
        grid = InputGrid(jnp.float32(1), *ends)
        return plane_product(x, words, scales, 8, 8, form, grid)

    ends = jnp.float32(low), jnp.float32(top)
    with pytest.raises(ValueError, match=f"a grid of codes {low} to {top}: expected codes within"):
        product(*ends)
    assert jnp.isnan(jax.jit(product)(*ends)).all()
    assert jnp.isfinite(jax.jit(product)(jnp.float32(-128), jnp.float32(127))).all()


@needs_native
def test_vmap_of_the_kernel():
    x = jax.random.normal(jax.random.key(0), (2, 3, 40))
    words, scales = pack_words(jnp.asarray(some_codes(8, 40, 3)), 8), jnp.ones((8, 3))
    mapped = jax.vmap(lambda x: plane_product(x, words, scales, 2, 8, "native"))(x)
    np.testing.assert_array_equal(mapped[1], plane_product(x[1], words, scales, 2, 8, "native"))


def test_codes_of_fewer_planes():
    codes = some_codes(3, 40, 5)
    found = plane_dot(jnp.asarray(some_inputs(1, 40)), pack_words(jnp.asarray(codes), 3), 3)
    np.testing.assert_array_equal(found, some_inputs(1, 40).astype(np.int64) @ (2 * codes + 1))


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "codes", [jnp.zeros((2, 2)), jnp.zeros(2, jnp.int32), jnp.zeros((2, 2, 2), jnp.int32)], ids=str
)
def test_pack_refuses(codes):
    with pytest.raises(ValueError, match=r"expected integers, as|expected \[inputs, outputs\]"):
        pack_words(codes, 2)


@pytest.mark.parametrize("code", [2, -3, 100])
def test_pack_refuses_codes_that_do_not_fit(code):
    """Else their upper bits would be those of other codes."""
    with pytest.raises(ValueError, match="expected -2 to 1 at 2 bits"):
        pack_words(jnp.asarray([[0, code]]), 2)


@pytest.mark.parametrize("bits", [0, 9])
def test_pack_refuses_widths(bits):
    with pytest.raises(ValueError, match="expected 1 to 8"):
        pack_words(jnp.zeros((2, 2), jnp.int32), bits)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (jnp.zeros((4, 2, 3), jnp.int32), "expected uint32"),
        (jnp.zeros((4, 1, 3), jnp.uint32), r"expected uint32 \[planes, 2, outputs\] for 40"),
        (jnp.zeros((4, 2), jnp.uint32), "expected uint32"),
        (jnp.zeros((2, 2, 3), jnp.uint32), "3 planes: expected 1 to 2"),
        (jnp.zeros((0, 2, 3), jnp.uint32), "3 planes: expected 1 to 0"),
    ],
)
def test_products_refuse_words(words, says):
    with pytest.raises(ValueError, match=says):
        plane_dot(jnp.zeros((1, 40), jnp.int8), words, 3)


def test_products_refuse_inputs():
    words = jnp.zeros((4, 2, 3), jnp.uint32)
    with pytest.raises(ValueError, match="0 planes: expected 1 to 4"):
        plane_dot(jnp.zeros((1, 40), jnp.int8), words, 0)
    with pytest.raises(ValueError, match="dtype int32: expected int8"):
        plane_dot(jnp.zeros((1, 40), jnp.int32), words, 1)
    x, scales = jnp.zeros((1, 40)), jnp.ones((4, 3))
    with pytest.raises(ValueError, match=r"form 'vnni': expected one of \['xla', 'native', "):
        plane_product(x, words, scales, 1, 8, "vnni")
    for wrong in (scales[:3], scales[:, :2], scales.astype(jnp.float16), scales[0]):
        with pytest.raises(ValueError, match=r"scales float.*: expected float32 \[4, 3\]"):
            plane_product(x, words, wrong, 1, 8)
    with pytest.raises(ValueError, match=r"expected float32 \[rows, inputs\]"):
        plane_product(x[0], words, scales, 1, 8)
    with pytest.raises(ValueError, match="activations of 7 bits"):
        plane_product(x, words, scales, 1, 7)
    many = jnp.zeros((1, 2049, 1), jnp.uint32)
    with pytest.raises(ValueError, match="65568 inputs: expected 1 to 65536; split the layer"):
        plane_dot(jnp.zeros((1, 65568), jnp.int8), many, 1)
    with pytest.raises(ValueError, match="0 inputs: expected 1 to"):
        plane_dot(jnp.zeros((1, 0), jnp.int8), jnp.zeros((1, 0, 3), jnp.uint32), 1)
