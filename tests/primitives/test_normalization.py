"""Batch normalisation: value and closed-form gradients equal the plain expression's."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dual_precision.primitives.normalization import normalize_batch, per_channel, scale_and_shift

EPSILON = 1e-5


def naive(x, scale, bias):
    axes = tuple(range(x.ndim - 1))
    mean = jnp.mean(x, axes, keepdims=True)
    var = jnp.mean((x - mean) ** 2, axes, keepdims=True)
    normal = (x - mean) / jnp.sqrt(var + EPSILON)
    return normal * per_channel(scale, x.ndim) + per_channel(bias, x.ndim)


def drawn(shape, offset=0.0, seed=0):
    generator = np.random.default_rng(seed)
    x = generator.standard_normal(shape) * 2 + offset
    channel = generator.uniform(0.5, 2, (2, shape[-1]))
    g = generator.standard_normal(shape)
    return (jnp.asarray(a, jnp.float32) for a in (x, *channel, g))


@partial(jax.jit, static_argnums=0)
def there_and_back(function, g, *arguments):
    value, pull = jax.vjp(function, *arguments)
    return value, pull(g)


def normalized(x, scale, bias):
    return normalize_batch(x, scale, bias, EPSILON)[0]


def batch_variance(x, scale, bias):
    return normalize_batch(x, scale, bias, EPSILON)[2]


@pytest.mark.parametrize("shape", [(8, 3), (4, 5, 6, 3), (1, 4, 4, 1)], ids=str)
@pytest.mark.parametrize("offset", [0.0, 5.0])
def test_value_and_gradients(shape, offset):
    *arguments, g = drawn(shape, offset)
    value, gradients = there_and_back(normalized, g, *arguments)
    expected, plain = there_and_back(naive, g, *arguments)
    np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-4)
    for own, other in zip(gradients, plain, strict=True):
        np.testing.assert_allclose(own, other, rtol=1e-3, atol=1e-4)


def test_statistics():
    x, scale, bias, _ = drawn((7, 5, 3), 1.0)
    _, mean, var = normalize_batch(x, scale, bias, EPSILON)
    np.testing.assert_allclose(mean, np.mean(np.float64(x), (0, 1)), rtol=1e-5)
    np.testing.assert_allclose(var, np.var(np.float64(x), (0, 1)), rtol=1e-4)


def test_a_constant_channel():
    """No variance: the value is the bias, nothing divides by zero, no gradient is NaN."""
    x, scale, bias = jnp.full((4, 2), 3.0), jnp.ones(2), jnp.asarray([0.5, -0.5])
    value, gradients = there_and_back(normalized, jnp.ones((4, 2)), x, scale, bias)
    np.testing.assert_allclose(value, np.broadcast_to(bias, (4, 2)), atol=1e-3)
    assert all(np.isfinite(g).all() for g in gradients)


def test_gradients_to_the_statistics_are_dropped():
    x, scale, bias, _ = drawn((6, 3))
    _, gradients = there_and_back(batch_variance, jnp.ones(3), x, scale, bias)
    assert not any(g.any() for g in gradients)


def test_scale_and_shift_goes_by_the_last_axis():
    x = jnp.ones((2, 3, 2))
    y = scale_and_shift(x, jnp.asarray([2.0, 3.0]), jnp.asarray([0.0, 1.0]))
    np.testing.assert_array_equal(y, np.broadcast_to([2.0, 4.0], (2, 3, 2)))
