"""The library convolves as XLA does, which convolves as the written out sum does."""

import contextlib
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dual_precision.primitives.convolution import (
    codes_pay,
    conv2d,
    conv2d_codes,
    conv2d_integers,
    xla_alone,
)
from dual_precision.primitives.native import convolution as native

needs_library = pytest.mark.skipif(
    not native.floats("float32"), reason="there is no library here: its log line says why"
)
# batch, height, width, inputs, outputs, kernel, stride
SHAPES = [
    (1, 8, 8, 16, 16, 3, 1),
    (5, 9, 7, 3, 10, 3, 2),
    (2, 6, 6, 17, 33, 1, 2),
    (3, 1, 2, 1, 1, 3, 1),
    (4, 12, 12, 8, 64, 5, 2),
    (0, 4, 4, 2, 3, 3, 1),
]
# A row is shorter than the stride there.
NARROW = [
    (3, 64, 1, 16, 16, 3, 2),
    (8, 32, 1, 16, 32, 3, 2),
    (2, 9, 2, 17, 48, 5, 3),
    (1, 6, 1, 8, 16, 1, 2),
    (5, 5, 3, 3, 8, 7, 4),
]


def some_integers(shape, low=-8, high=8):
    return np.random.default_rng(3).integers(low, high, shape)


def operands(batch, height, width, inputs, outputs, kernel, stride):
    """Integers, so that every order of the sums is exact."""
    x = jnp.asarray(some_integers((batch, height, width, inputs)), jnp.float32)
    w = jnp.asarray(some_integers((kernel, kernel, inputs, outputs)), jnp.float32)
    y = (batch, -(-height // stride), -(-width // stride), outputs)
    return x, w, jnp.asarray(some_integers(y), jnp.float32)


def all_three(x, w, g, stride, product=conv2d):
    """The sum, and its gradients of x and w, as one program."""

    @jax.jit
    def whole(x, w, g):
        y, back = jax.vjp(lambda x, w: product(x, w, stride), x, w)
        return y, *back(g)

    return whole(x, w, g)


@needs_library
@pytest.mark.parametrize("product", [conv2d, conv2d_integers])
@pytest.mark.parametrize("shape", [*SHAPES, *NARROW])
def test_the_library_and_xla(shape, product):
    x, w, g = operands(*shape)
    with xla_alone():
        wanted = all_three(x, w, g, shape[-1])
    for found, right in zip(all_three(x, w, g, shape[-1], product), wanted, strict=True):
        np.testing.assert_array_equal(found, right)
        assert found.dtype == right.dtype


@needs_library
def test_of_integers_only_the_gradient_is_rounded():
    """To 8 bits, where the CPU has units for that; forward the largest codes are exact."""
    x = jnp.asarray(some_integers((2, 6, 6, 16), 0, 256), jnp.float32)
    w = 2.0 * jnp.asarray(some_integers((3, 3, 16, 16), -128, 128), jnp.float32) + 1.0
    g = jnp.asarray(np.random.default_rng(1).normal(size=(2, 6, 6, 16)), jnp.float32)
    found, wanted = (all_three(x, w, g, 1, product) for product in (conv2d_integers, conv2d))
    np.testing.assert_array_equal(found[0], wanted[0])
    sizes = all_three(jnp.abs(x), jnp.abs(w), jnp.abs(g), 1)
    for rounded, right, size in zip(found[1:], wanted[1:], sizes[1:], strict=True):
        assert (jnp.abs(rounded - right) <= 2.0**-8 * size).all()


@needs_library
def test_a_network_knows_who_computes():
    x, w, _ = operands(*SHAPES[0])
    text = str(jax.make_jaxpr(lambda x, w: conv2d(x, w, 1))(x, w))
    with xla_alone():
        alone = str(jax.make_jaxpr(lambda x, w: conv2d(x, w, 1))(x, w))
    assert "ffi_call" in text
    assert "ffi_call" not in alone


@needs_library
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite(value):
    """It reaches the outputs whose window holds it, and no other."""
    x, w, _ = operands(2, 6, 6, 4, 4, 3, 1)
    w = jnp.where(w == 0, 1.0, w)
    x = x.at[1, 2, 3, 0].set(value)
    y = conv2d(x, w, 1)
    with xla_alone():
        np.testing.assert_array_equal(y, conv2d(x, w, 1))
    reached = np.zeros((2, 6, 6), bool)
    reached[1, 1:4, 2:5] = True
    np.testing.assert_array_equal(~np.isfinite(y).all(axis=-1), reached)


@needs_library
def test_mapped():
    x, w, _ = operands(6, 5, 5, 4, 4, 3, 1)
    several = x.reshape(3, 2, 5, 5, 4)
    mapped = jax.vmap(lambda x: conv2d(x, w, 1))(several)
    np.testing.assert_array_equal(mapped.reshape(6, 5, 5, 4), conv2d(x, w, 1))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("top", "widths"), [(3, (2, 2)), (15, (3, 8)), (255, (8, 8))])
def test_codes(shape, top, widths):
    """Exact at the largest sums, whoever computes them."""
    *sizes, inputs, outputs, kernel, stride = shape
    bits, stored = widths
    x = some_integers((*sizes, inputs), 0, top + 1)
    codes = some_integers(
        (kernel, kernel, inputs, outputs), -(2 ** (stored - 1)), 2 ** (stored - 1)
    )
    x[:1], codes[..., 0] = top, -(2 ** (stored - 1))
    largest = (top, 2**bits - 1 if bits < 8 else 128)
    found = jax.jit(lambda x, codes: conv2d_codes(x, codes, stride, widths, largest))(
        jnp.asarray(x, jnp.uint8), jnp.asarray(codes, jnp.int8)
    )
    with xla_alone():
        weights = jnp.asarray(2 * (codes >> (stored - bits)) + 1, jnp.float32)
        right = conv2d(jnp.asarray(x, jnp.float32), weights, stride)
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, right)


@pytest.mark.parametrize("alone", [False, True], ids=["library", "XLA"])
def test_sums_of_codes_stay_in_32_bits(alone):
    """The largest sum that is allowed is exact; one more input channel is refused."""
    most = (2**31 - 1) // (9 * 255 * 255)

    def summed(inputs):
        x = jnp.full((1, 3, 3, inputs), 255, jnp.uint8)
        codes = jnp.full((3, 3, inputs, 1), 127, jnp.int8)
        return conv2d_codes(x, codes, 1, (8, 8), (255, 128))[0, 1, 1, 0]

    with xla_alone() if alone else contextlib.nullcontext():
        assert summed(most) == np.float32(9 * 255 * 255 * most)
        with pytest.raises(
            ValueError, match=r"may reach 2147.*, expected less than 2\^31; convolve"
        ):
            summed(most + 1)


@pytest.mark.parametrize("alone", [False, True], ids=["library", "XLA"])
@pytest.mark.parametrize(
    ("x", "codes"), [("int8", "int8"), ("uint8", "uint8"), ("int32", "int8"), ("uint8", "int32")]
)
def test_codes_of_other_dtypes_are_refused(x, codes, alone):
    """The library would read their bytes as its own, and XLA would convert them."""
    given = jnp.ones((1, 4, 4, 2), x), jnp.ones((3, 3, 2, 2), codes)
    says = f"of {x} and of weights {codes}: expected uint8 and int8"
    with (
        xla_alone() if alone else contextlib.nullcontext(),
        pytest.raises(ValueError, match=says),
    ):
        conv2d_codes(*given, 1, (8, 8), (255, 128))


@needs_library
def test_a_program_of_codes_is_one_and_the_same(caplog):
    """Two traces give one text, which a cache finds again, and eager calls compile once."""
    x, codes = jnp.ones((1, 4, 3, 16), jnp.uint8), jnp.ones((3, 3, 16, 16), jnp.int8)

    def summed(x, codes):
        return conv2d_codes(x, codes, 1, (8, 8), (255, 128))

    texts = {jax.jit(lambda *given: summed(*given)).lower(x, codes).as_text() for _ in range(2)}
    assert len(texts) == 1
    for first in (True, False):
        caplog.clear()
        with jax.log_compiles():
            summed(x, codes)
        assert any("Compiling" in message for message in caplog.messages) == first


@needs_library
def test_codes_of_one_place_may_change_and_are_read_at_every_width():
    """What is kept of them, in the layout of the library, is of what they are and of the width."""
    x = jnp.asarray(some_integers((2, 5, 5, 16), 0, 3), jnp.uint8)
    for seed in range(4):
        drawn = np.random.default_rng(seed).integers(-8, 8, (3, 3, 16, 16))
        codes = jnp.asarray(drawn, jnp.int8)
        for widths in ((2, 4), (4, 4), (8, 8), (2, 4)):
            found = conv2d_codes(x, codes, 1, widths, (3, 128))
            with xla_alone():
                wanted = conv2d_codes(x, codes, 1, widths, (3, 128))
            np.testing.assert_array_equal(found, wanted)
        del codes  # the next ones may stand where they stood


@needs_library
def test_codes_pay_where_their_sums_are_exact():
    for smaller, larger in itertools.pairwise([(3, 3), (15, 15), (255, 128)]):
        assert codes_pay(smaller) >= codes_pay(larger)


@needs_library
def test_what_the_library_lacks_is_left_to_xla():
    """A program that oneDNN has nowhere: it says so, and nothing is raised."""
    a, b = (np.ones((1, 4, 4, 2)), "uint8"), (np.ones((3, 3, 2, 2)), "uint8")
    assert native._tried("forward", a, b, (1, 4, 4, 2), "int32", 1) is None
