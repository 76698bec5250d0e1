"""Nesting: the code of a narrow mode is the wide code without its low bits, for every weight."""

import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dual_precision.primitives.bitplanes import pack
from dual_precision.primitives.bitserial import pack_words
from dual_precision.primitives.nested import check_bits, decode, encode, power_of_two, truncate
from dual_precision.primitives.plane_fit import fit_planes
from dual_precision.primitives.quantizers import (
    activation_codes,
    encode_activations,
    quantize_activations,
    quantize_weights,
)

STORED = st.integers(1, 8)
# Subnormal and huge values included; strategies of numpy arrays know float32.
WEIGHTS = hnp.arrays(
    np.float32, (6, 3), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)
)
STEPS = hnp.arrays(np.float32, 3, elements=st.floats(2.0**-60, 2.0**60, width=32))


def assert_nested(w, step, stored):
    w, step = jnp.asarray(w), jnp.asarray(step)
    widest = encode(w, step, stored, stored)
    for bits in range(1, stored + 1):
        codes = np.asarray(encode(w, step, bits, stored))
        np.testing.assert_array_equal(codes, np.asarray(widest) >> (stored - bits))
        np.testing.assert_array_equal(codes, truncate(widest, bits, stored))
        assert -(2 ** (bits - 1)) <= codes.min() <= codes.max() < 2 ** (bits - 1)


@given(WEIGHTS, STEPS, STORED)
def test_codes_nest(w, step, stored):
    assert_nested(w, step, stored)


@given(STEPS, STORED, st.integers(-1, 1))
def test_codes_nest_at_cell_edges(step, stored, ulps):
    """Every edge of every cell, and the floats next to it on either side."""
    edges = np.arange(-260, 261, dtype=np.float32)[:, None] * step
    if ulps:
        edges = np.nextafter(edges, np.float32(ulps * np.inf))
    assert_nested(edges, step, stored)


@given(WEIGHTS, STEPS, STORED)
def test_codes_of_a_traced_width(w, step, stored):
    w, step = jnp.asarray(w), jnp.asarray(step)
    for bits in range(1, stored + 1):
        traced = _encode(w, step, jnp.int32(bits), jnp.int32(stored))
        np.testing.assert_array_equal(traced, encode(w, step, bits, stored))


_encode = jax.jit(encode)


def test_every_width_is_one_trace():
    traces = []

    @jax.jit
    def round_trip(w, step, bits):
        traces.append(bits)
        codes = truncate(encode(w, step, 8, 8), bits, 8)
        return decode(codes, step, bits, 8)

    w, step = jnp.linspace(-1, 1, 12).reshape(6, 2), jnp.asarray([0.01, 0.3])
    for bits in range(1, 9):
        expected = decode(encode(w, step, bits, 8), step, bits, 8)
        np.testing.assert_array_equal(round_trip(w, step, jnp.int32(bits)), expected)
    assert len(traces) == 1


def test_codes_by_hand():
    w = jnp.asarray([-9, -0.5, -0.3, -0.25, -0.01, 0, 0.2, 0.25, 0.49, 0.5, 9])[:, None]
    step = jnp.asarray([0.25])
    three = [-4, -2, -2, -1, -1, 0, 0, 1, 1, 2, 3]
    np.testing.assert_array_equal(encode(w, step, 3, 3)[:, 0], three)
    np.testing.assert_array_equal(encode(w, step, 1, 3)[:, 0], np.sign(np.add(three, 0.5)) // 2)


@given(STORED, STEPS)
def test_a_value_encodes_to_its_own_code(stored, step):
    """Mid-points lie in their cells, at every width."""
    for bits in range(1, stored + 1):
        half = 2 ** (bits - 1)
        codes = np.clip(np.arange(-128, 128, dtype=np.int32), -half, half - 1)
        codes = jnp.asarray(np.repeat(codes[:, None], 3, axis=1))
        values = decode(codes, jnp.asarray(step), bits, stored)
        np.testing.assert_array_equal(encode(values, jnp.asarray(step), bits, stored), codes)


@given(STORED, st.integers(-20, 20))
def test_a_value_is_a_sum_of_planes(stored, exponent):
    """value_n = step * sum of the first n terms 2^(N-1-i) * s_i, s_i in {-1, +1}."""
    step = np.float32(2.0**exponent)
    codes = np.arange(-(2 ** (stored - 1)), 2 ** (stored - 1))
    unsigned = codes + 2 ** (stored - 1)
    total = np.zeros(codes.shape)
    for plane in range(stored):
        sign = 2 * ((unsigned >> (stored - 1 - plane)) & 1) - 1
        total += float(step) * 2.0 ** (stored - 2 - plane) * sign
        bits = plane + 1
        narrow = truncate(jnp.asarray(codes)[:, None], bits, stored)
        values = decode(narrow, jnp.asarray([step]), bits, stored)
        np.testing.assert_array_equal(values[:, 0], total)


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_what_has_no_code_is_refused(bad):
    with pytest.raises(ValueError, match="infinities or NaN"):
        encode(jnp.asarray([[0.1], [bad]]), jnp.ones(1), 2, 8)


@pytest.mark.parametrize(
    ("bits", "stored"),
    [
        (0, 8),
        (9, 8),
        (3, 2),
        (1, 0),
        (1, 9),
        (np.int64(9), 8),
        (jnp.int32(0), 8),
        (3, jnp.int32(2)),
        (True, 8),
        (2.5, 8),
        (jnp.float32(2), 8),
        (2, 8.0),
        (None, 8),
        ("2", 8),
        (np.asarray([2, 3]), 8),
    ],
    ids=repr,
)
def test_widths_out_of_range_are_refused(bits, stored):
    codes, step = jnp.zeros((2, 1), jnp.int32), jnp.ones(1)
    for function in (
        lambda: encode(jnp.zeros((2, 1)), step, bits, stored),
        lambda: truncate(codes, bits, stored),
        lambda: decode(codes, step, bits, stored),
        lambda: check_bits(bits, stored),
    ):
        with pytest.raises(ValueError, match=r"expected 1 to|expected an integer"):
            function()


def test_a_traced_width_that_is_no_integer_is_refused():
    """Else a width of 2.5 would be one of 2 without a word."""
    with pytest.raises(ValueError, match="a width of float32: expected an integer"):
        jax.jit(check_bits)(jnp.float32(2), 8)


def test_powers_of_two_are_exact():
    for exponent in range(31):
        assert float(power_of_two(exponent)) == 2.0**exponent
        assert float(jax.jit(power_of_two)(exponent)) == 2.0**exponent


@pytest.mark.parametrize("wrong", [0.0, -0.0, -0.5, 1e-39, np.inf, np.nan, 2.0**127], ids=repr)
def test_steps_that_are_none_are_refused(wrong):
    w, codes = jnp.ones((2, 2)), jnp.zeros((2, 2), jnp.int32)
    step = jnp.asarray([0.5, wrong], jnp.float32)
    for function in (encode, quantize_weights):
        with pytest.raises(ValueError, match=r"expected positive numbers, 2\^-126 to 2\^126"):
            function(w, step, 2, 8)
    with pytest.raises(ValueError, match="expected positive numbers"):
        decode(codes, step, 2, 8)
    for function in (quantize_activations, encode_activations, activation_codes):
        with pytest.raises(ValueError, match="expected positive numbers"):
            function(w, step[1], 2)


def test_traced_steps_pass():
    """A program cannot refuse a number."""
    step = jnp.zeros(2)
    for function in (encode, quantize_weights):
        jax.jit(function, static_argnums=(2, 3))(jnp.ones((2, 2)), step, 2, 8)
    for function in (quantize_activations, activation_codes):
        jax.jit(function, static_argnums=2)(jnp.ones((2, 2)), step[0], 2)


def test_constants_of_a_program_are_checked():
    """They are concrete, and what is computed of them is traced."""
    w, step, codes = jnp.ones((2, 3)), jnp.ones(3), jnp.asarray([[-2, 1]])
    endless = jnp.full((2, 3), jnp.inf)
    for function in (
        lambda: encode(w, step, 4, 8),
        lambda: fit_planes(w, 4)[0],
        lambda: pack(codes, 2),
        lambda: pack_words(codes, 2),
    ):
        np.testing.assert_array_equal(jax.jit(function)(), function())
    with pytest.raises(ValueError, match="infinities or NaN"):
        jax.jit(lambda: encode(endless, step, 4, 8))()
    with pytest.raises(ValueError, match="expected -1 to 0 at 1 bits"):
        jax.jit(lambda: pack(codes, 1))()


def test_the_smallest_and_the_largest_step_are_steps():
    steps = jnp.asarray([2.0**-126, 2.0**126], jnp.float32)
    w = jnp.asarray([[1.0], [-1.0]], jnp.float32) * steps[None]
    np.testing.assert_array_equal(encode(w, steps, 3, 3), [[1, 1], [-1, -1]])
