"""Fake quantizers: LSQ's published step gradient and scale, traced widths, first steps."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dual_precision.primitives.nested import GAUSSIAN_STEP, decode, encode
from dual_precision.primitives.quantizers import (
    activation_codes,
    activation_step,
    code_range,
    encode_activations,
    gaussian_weight_step,
    quantize_activations,
    quantize_weights,
    rescaled_step,
)

WIDTHS = range(1, 9)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("bits", WIDTHS)
def test_weights_equal_decode_of_encode(bits):
    w, step = jnp.asarray(normal(3, 3, 5, 4)), jnp.asarray([0.01, 0.017, 0.5, 3.0])
    codes = encode(w, step, bits, 8)
    np.testing.assert_array_equal(quantize_weights(w, step, bits, 8), decode(codes, step, bits, 8))


# Signed codes of one bit are no range.
KINDS = [(bits, signed) for signed in (False, True) for bits in WIDTHS if bits > signed]


@pytest.mark.parametrize(("bits", "signed"), KINDS)
def test_activations_equal_codes_times_step(bits, signed):
    x, step = jnp.asarray(normal(40, 9)), jnp.float32(0.01)
    codes = np.asarray(encode_activations(x, step, bits, signed))
    assert (codes.min(), codes.max()) == tuple(float(end) for end in code_range(bits, signed))
    np.testing.assert_array_equal(
        quantize_activations(x, step, bits, signed), codes.astype(np.float32) * step
    )


@pytest.mark.parametrize("signed", [False, True])
def test_what_is_no_number_has_no_code(signed):
    """It stays NaN where codes are floats, and in what the network computes with."""
    x, step = jnp.asarray([[0.6, jnp.nan, -0.6]]), jnp.float32(0.5)
    codes = activation_codes(x, step, 3, signed)
    np.testing.assert_array_equal(codes, [[1, np.nan, -1 if signed else 0]])
    np.testing.assert_array_equal(quantize_activations(x, step, 3, signed), codes * step)


@pytest.mark.parametrize("signed", [False, True])
def test_zero_is_exact(signed):
    assert not quantize_activations(jnp.zeros((2, 3)), jnp.float32(0.3), 3, signed).any()


@pytest.mark.parametrize(("bits", "stored"), [(1, 1), (1, 8), (2, 3), (4, 8), (8, 8)])
def test_weight_step_gradient_is_lsq(bits, stored):
    """Esser et al. 2020, eq. 3 and section 2.2, for floor and mid-points, in float64."""
    w, step = normal(40, 3), np.float32([0.02, 0.1, 1.5])
    g = normal(40, 3, seed=1)
    out, pull = jax.vjp(lambda s: quantize_weights(jnp.asarray(w), s, bits, stored), step)
    cell, half = 2.0 ** (stored - bits), 2.0 ** (bits - 1)
    ratio = w.astype(np.float64) / step
    code = np.clip(np.floor(ratio / cell), -half, half - 1)
    slope = np.where((ratio >= -half * cell) & (ratio < half * cell), -ratio, 0)
    slope += (code + 0.5) * cell
    expected = (g * slope).sum(0) / math.sqrt(40 * 2 ** (stored - 1))
    np.testing.assert_allclose(pull(jnp.asarray(g))[0], expected, rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(out, (code + 0.5) * cell * step, rtol=1e-6)


@pytest.mark.parametrize(("bits", "signed"), KINDS)
def test_activation_step_gradient_is_lsq(bits, signed):
    """Esser et al. 2020, eq. 3, with g = 1 / sqrt(features * Q_P)."""
    x, step, g = normal(6, 5, 4), np.float32(0.2), normal(6, 5, 4, seed=1)
    _, pull = jax.vjp(lambda s: quantize_activations(jnp.asarray(x), s, bits, signed), step)
    low, top = (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) if signed else (0, 2.0**bits - 1)
    ratio = x.astype(np.float64) / step
    slope = np.where(ratio <= low, low, np.where(ratio >= top, top, np.round(ratio) - ratio))
    expected = (g * slope).sum() / math.sqrt(5 * 4 * top)
    np.testing.assert_allclose(pull(jnp.asarray(g))[0], expected, rtol=2e-5, atol=1e-6)


def test_a_traced_width_costs_one_trace_and_changes_no_bit():
    w, step = jnp.asarray(normal(7, 4)), jnp.asarray([0.01, 0.02, 0.03, 0.5])
    x, traces = jnp.abs(w), []

    @jax.jit
    def all_of(bits):
        traces.append(bits)
        return (
            quantize_weights(w, step, bits, 8),
            quantize_activations(x, step[0], bits),
            quantize_activations(w, step[0], bits, signed=True),
        )

    for bits in WIDTHS:
        of_weights, of_inputs, of_signed = all_of(jnp.int32(bits))
        np.testing.assert_array_equal(of_weights, quantize_weights(w, step, bits, 8))
        np.testing.assert_array_equal(of_inputs, quantize_activations(x, step[0], bits))
        if bits > 1:
            np.testing.assert_array_equal(of_signed, quantize_activations(w, step[0], bits, True))
    assert len(traces) == 1


@pytest.mark.parametrize("signed", [False, True])
def test_a_rescaled_step_keeps_the_range(signed):
    """The largest code stands for the same number at every width, traced or not."""
    step, own = jnp.float32(0.1), 5
    top = 15 if signed else 31
    rescaled = jax.jit(lambda step, bits: rescaled_step(step, own, bits, signed))
    for bits in range(1 + signed, 9):
        found = rescaled_step(step, own, bits, signed)
        assert float(found * code_range(bits, signed)[1]) == pytest.approx(0.1 * top, rel=1e-6)
        np.testing.assert_array_equal(rescaled(step, jnp.int32(bits)), found)
    np.testing.assert_array_equal(rescaled(step, jnp.int32(own)), step)
    assert rescaled_step(step, own, own, signed) is step


@pytest.mark.parametrize("bits", [0, 9, jnp.int32(0), jnp.int32(9), True, 2.5, None], ids=repr)
def test_widths_out_of_range(bits):
    for function in (
        lambda: quantize_weights(jnp.ones((2, 1)), jnp.ones(1), bits, 8),
        lambda: quantize_activations(jnp.ones((2, 1)), jnp.float32(1), bits),
        lambda: encode_activations(jnp.ones((2, 1)), jnp.float32(1), bits),
        lambda: code_range(bits, signed=True),
    ):
        with pytest.raises(ValueError, match=r"expected 1 to 8 bits|expected an integer"):
            function()


def test_signed_codes_of_one_bit_are_refused():
    with pytest.raises(ValueError, match="signed activations of 1 bit: expected 2 or more"):
        quantize_activations(jnp.ones((2, 1)), jnp.float32(1), 1, signed=True)


@pytest.mark.parametrize("bits", WIDTHS)
def test_gaussian_step_minimises_the_squared_error(bits):
    """By integrating the error of the mid-rise grid against the normal density."""
    x = np.linspace(-9, 9, 18_001)
    density = np.exp(-(x**2) / 2)
    half = 2.0 ** (bits - 1)

    def error(step: float) -> float:
        value = (np.clip(np.floor(x / step), -half, half - 1) + 0.5) * step
        return float(((value - x) ** 2 * density).sum())

    ratios = np.linspace(0.9, 1.1, 81)
    best = ratios[np.argmin([error(GAUSSIAN_STEP[bits] * ratio) for ratio in ratios])]
    assert abs(best - 1) <= 0.01


def test_one_bit_gaussian_step_is_known_in_closed_form():
    assert GAUSSIAN_STEP[1] == pytest.approx(2 * math.sqrt(2 / math.pi), abs=1e-4)


def test_weight_step_scales_with_its_channel_and_is_never_zero():
    w = jnp.asarray(normal(4000, 1)) * jnp.asarray([[1.0, 10.0, 0.0]])
    step = np.asarray(gaussian_weight_step(w, 2, 8))
    assert step[0] == pytest.approx(GAUSSIAN_STEP[2] / 64, rel=0.05)
    assert step[1] == pytest.approx(10 * step[0], rel=1e-5)
    assert step[2] > 0


fitted = jax.jit(activation_step, static_argnums=2)  # one program for all widths


@pytest.mark.parametrize(("bits", "signed"), KINDS)
def test_activation_step_is_near_the_best(bits, signed):
    x = normal(2000) if signed else np.maximum(normal(2000), 0)
    low, top = (float(end) for end in code_range(bits, signed))

    def error(step: float) -> float:
        value = np.clip(np.round(x / step), low, top) * step
        return float(((value - x) ** 2).mean())

    best = min(error(step) for step in np.geomspace(1e-3, np.abs(x).max(), 500))
    assert error(float(fitted(jnp.asarray(x), jnp.int32(bits), signed))) <= 1.1 * best


@pytest.mark.parametrize("signed", [False, True])
def test_activation_step_of_a_dead_layer_is_positive(signed):
    assert activation_step(jnp.zeros((2, 3)), 2, signed) > 0


def test_a_traced_width_of_one_counts_as_two_where_codes_have_a_sign():
    """No NaN, and no more than the range of the step."""
    x, step = jnp.linspace(-1, 1, 9)[None], jnp.float32(0.01)

    @jax.jit
    def quantized(bits):
        return quantize_activations(x, rescaled_step(step, 8, bits, True), bits, signed=True)

    one, two = (quantized(jnp.int32(bits)) for bits in (1, 2))
    np.testing.assert_array_equal(one, two)
    assert len(np.unique(two)) > 1
