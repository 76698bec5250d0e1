"""Gradients of a width: on 2^n levels, unbiased, and the forward pass as it was."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dual_precision.primitives.gradients import (
    quantize_gradient,
    refuse_gradient,
    round_at_random,
)

WIDTHS = range(1, 9)
KEY = jax.random.key(0)
SOME = jnp.asarray(np.random.default_rng(0).standard_normal((16, 5)), jnp.float32)
COUNT = 400


@jax.jit
def rounded_often(g, bits):
    """[COUNT, ...], each with a key of its own."""
    return jax.vmap(lambda key: round_at_random(g, bits, key))(jax.random.split(KEY, COUNT))


@pytest.mark.parametrize("bits", WIDTHS)
def test_levels_and_mean(bits):
    """Each value is one of the two levels beside g, and their mean is g: within 5 deviations."""
    values = np.asarray(rounded_often(SOME, jnp.int32(bits)), np.float64)
    g = np.asarray(SOME, np.float64)
    step = (g.max() - g.min()) / (2**bits - 1)
    codes = (values - g.min()) / step
    np.testing.assert_allclose(codes, np.round(codes), atol=1e-3)
    assert set(np.round(codes).ravel()) <= set(range(2**bits))
    assert np.abs(values - g).max() <= step * (1 + 1e-3)
    deviation = step / 2 / np.sqrt(COUNT)  # of a mean; the variance of one is step^2 / 4 at most
    assert np.abs(values.mean(0) - g).max() <= 5 * deviation
    assert np.abs((values - g).mean()) <= 5 * deviation / np.sqrt(g.size)


def test_one_program_for_all_widths():
    for bits in WIDTHS:
        rounded_often(SOME, jnp.int32(bits))
    assert rounded_often._cache_size() == 1


def test_the_extremes_are_levels():
    found = np.asarray(rounded_often(SOME, jnp.int32(2))).reshape(COUNT, -1)
    for at in (jnp.argmin(SOME), jnp.argmax(SOME)):
        np.testing.assert_allclose(found[:, at], SOME.ravel()[at], rtol=1e-6)


@pytest.mark.parametrize("power", [-95, -40, 3, 100])
def test_gradients_have_no_scale(power):
    """A power of two before is the same power of two after, bit for bit."""
    factor = np.float32(2.0**power)
    found = rounded_often(SOME * factor, jnp.int32(8))
    np.testing.assert_array_equal(found, rounded_often(SOME, jnp.int32(8)) * factor)


@pytest.mark.parametrize("power", [-126, -124, -120, -118])
def test_at_the_smallest_floats_levels_are_fewer_and_no_value_is_lost(power):
    """A range of few smallest steps, or of none that the machine tells from 0: nothing overflows,
    and no value is further from its gradient than a step."""
    ramp = np.linspace(0, 1, 16, dtype=np.float32)
    for g in (np.ldexp(ramp, power), np.ldexp(1 + ramp, power)):
        found = np.asarray(rounded_often(jnp.asarray(g), jnp.int32(8)), np.float64)
        step = max((float(g.max()) - float(g.min())) / 255, 2.0**-126)
        assert np.abs(found - g).max() <= step * (1 + 1e-3)


@pytest.mark.parametrize("value", [0.0, -3.5, 1e-30, -1e30, 2.0**-126])
def test_equal_gradients_stay(value):
    g = jnp.full_like(SOME, value)
    np.testing.assert_array_equal(rounded_often(g, jnp.int32(3))[0], g)


def test_forward_as_it_was_and_backward_rounded():
    @jax.jit
    def there_and_back(y, g, bits):
        value, pull = jax.vjp(lambda y: quantize_gradient(y, bits, KEY), y)
        return value, pull(g)[0], round_at_random(g, bits, KEY)

    value, found, expected = there_and_back(SOME, SOME[::-1], jnp.int32(3))
    np.testing.assert_array_equal(value, SOME)
    np.testing.assert_array_equal(found, expected)
    assert len(np.unique(found)) <= 2**3


@pytest.mark.parametrize("bits", [0, 9, 2.5])
def test_other_widths(bits):
    with pytest.raises(ValueError, match="expected"):
        round_at_random(SOME, bits, KEY)


def test_without_random_numbers_only_a_gradient_is_refused():
    np.testing.assert_array_equal(jax.jit(refuse_gradient)(SOME), SOME)
    with pytest.raises(ValueError, match=r"no random numbers: expected .*rngs="):
        jax.jit(jax.grad(lambda y: jnp.sum(refuse_gradient(y))))(SOME)
