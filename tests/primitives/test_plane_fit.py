"""Planes fitted to float weights: near the best grid at every number of planes that chooses."""

import jax.numpy as jnp
import numpy as np
import pytest

from dual_precision.primitives.nested import GAUSSIAN_STEP, truncate
from dual_precision.primitives.plane_fit import fit_planes, plane_scales

SHAPE = (1024, 8)


def normal(seed=0):
    return np.random.default_rng(seed).standard_normal(SHAPE).astype(np.float32)


def errors(w, codes, scales):
    """Relative error of 1 to 8 planes, in root mean square."""
    w, codes, scales = (np.asarray(array, np.float64) for array in (w, codes, scales))
    left = [
        w - (np.floor(codes / 2 ** (8 - n)) + 0.5) * scales[n - 1]
        for n in range(1, len(scales) + 1)
    ]
    return np.sqrt(np.mean(np.square(left), axis=(1, 2)) / np.mean(w**2))


def error_of_the_best_grid(w, bits):
    step, half = GAUSSIAN_STEP[bits], 2 ** (bits - 1)
    value = (np.clip(np.floor(w / step), -half, half - 1) + 0.5) * step
    return np.sqrt(np.mean((w - value) ** 2) / np.mean(w**2))


def test_a_normal_variable():
    """No nested grid is the best of every width; 2 to 5 planes are what it is chosen for."""
    w = normal()
    codes, scales = fit_planes(jnp.asarray(w))
    assert (codes.dtype, codes.shape) == (jnp.int32, SHAPE)
    assert (scales.dtype, scales.shape) == (jnp.float32, (8, 8))
    assert int(codes.min()) >= -128
    assert int(codes.max()) <= 127
    found = errors(w, codes, scales)
    assert (np.diff(found) < 0).all()
    best = [error_of_the_best_grid(w, bits) for bits in range(1, 9)]
    assert (found[:5] <= np.array([1.01, 1.15, 1.1, 1.1, 1.1]) * best[:5]).all(), found / best
    assert found[7] < 0.05


def test_long_tails():
    """One large weight in a thousand does not take the grid from the others."""
    w = normal()
    w[0] *= 10
    codes, scales = fit_planes(jnp.asarray(w))
    rest = errors(w[1:], codes[1:], scales)
    assert rest[3] < 0.2
    assert (np.diff(rest) < 0).all()


def test_heavy_tails_and_the_planes_that_are_read():
    """Student's t with 4 degrees of freedom: the clip of few planes costs eight of them dearly."""
    w = np.random.default_rng(0).standard_t(4, SHAPE).astype(np.float32)
    few = errors(w, *fit_planes(jnp.asarray(w)))
    all_ = errors(w, *fit_planes(jnp.asarray(w), read=(8,)))
    both = errors(w, *fit_planes(jnp.asarray(w), read=(2, 8)))
    peak = np.abs(w).max(axis=0)
    widest = (np.clip(np.floor(w / peak * 128), -128, 127) + 0.5) * peak / 128
    assert all_[7] <= 1.001 * np.sqrt(np.mean((w - widest) ** 2) / np.mean(w**2))
    assert all_[7] < 0.4 * few[7]
    assert few[1] < all_[1]
    assert min(few[1], all_[1]) <= both[1] <= max(few[1], all_[1]) * 1.001
    with pytest.raises(ValueError, match="expected some of 1 to 2"):
        fit_planes(jnp.ones((2, 2)), 2, read=(8,))


def test_outputs_are_independent():
    w = normal()
    codes, scales = fit_planes(jnp.asarray(w))
    other = w * np.float32(4) ** np.arange(8, dtype=np.float32)  # exact in float32
    other_codes, other_scales = fit_planes(jnp.asarray(other))
    np.testing.assert_array_equal(other_codes, codes)
    np.testing.assert_allclose(other_scales, scales * 4.0 ** np.arange(8)[None], rtol=1e-6)
    reordered, _ = fit_planes(jnp.asarray(w[:, ::-1]))
    np.testing.assert_array_equal(reordered, codes[:, ::-1])


def test_an_output_of_zeros():
    w = normal()
    w[:, 3] = 0
    codes, scales = fit_planes(jnp.asarray(w))
    assert np.isfinite(scales).all()
    np.testing.assert_array_equal(scales[:, 3], 0)
    np.testing.assert_array_equal(codes[:, :3], fit_planes(jnp.asarray(normal()))[0][:, :3])


def test_scales_of_codes_are_those_of_least_squares():
    """Moving the scale of any width either way makes its error larger."""
    w = normal()
    codes = jnp.asarray(np.clip(np.floor(w * 32), -128, 127), jnp.int32)
    scales = plane_scales(jnp.asarray(w), codes)
    found = errors(w, codes, scales)
    for factor in (0.99, 1.01):
        assert (errors(w, codes, scales * factor) > found).all()
    exact = (codes.astype(jnp.float32) + 0.5) / 32
    np.testing.assert_allclose(plane_scales(exact, codes)[7], 1 / 32, rtol=1e-6)


@pytest.mark.parametrize("stored", [2, 5])
def test_fewer_stored(stored):
    codes, scales = fit_planes(jnp.asarray(normal()), stored)
    assert scales.shape == (stored, 8)
    assert int(codes.min()) == -(2 ** (stored - 1))
    values = (np.asarray(truncate(codes, 2, stored)) + 0.5) * np.asarray(scales)[1]
    error = np.sqrt(np.mean(np.square(values - normal())))
    assert error <= 1.15 * error_of_the_best_grid(normal(), 2)


def test_refused():
    with pytest.raises(ValueError, match=r"shape \[3\]: expected \[inputs, outputs\]"):
        fit_planes(jnp.ones(3))
    with pytest.raises(ValueError, match="infinities or NaN"):
        fit_planes(jnp.asarray([[1.0], [jnp.inf]]))
    for stored in (1, 9):
        with pytest.raises(ValueError, match="expected"):
            fit_planes(jnp.ones((2, 2)), stored)
