"""Straight-through functions: values, and gradients equal to arrays written by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dual_precision.primitives.ste import (
    in_steps,
    midrise_code,
    midrise_ste,
    round_ste,
    scale_gradient,
    uniform_ste,
)


def gradients(function, *arguments):
    """Of the sum of what comes out, with the cotangents 1, 2, 3, ... to tell elements apart."""

    @jax.jit
    def there_and_back(*arguments):
        out, pull = jax.vjp(function, *arguments)
        return out, pull(jnp.arange(1, out.size + 1, dtype=out.dtype).reshape(out.shape))

    out, back = there_and_back(*arguments)
    return np.asarray(out), [np.asarray(g) for g in back]


def test_round():
    value, (gradient,) = gradients(round_ste, jnp.array([-2.5, -0.5, 0.0, 0.5, 1.5, 2.4]))
    np.testing.assert_array_equal(value, [-2.0, 0.0, 0.0, 0.0, 2.0, 2.0])  # ties to even
    np.testing.assert_array_equal(gradient, [1, 2, 3, 4, 5, 6])


@pytest.mark.parametrize("factor", [0.5, 0.0, -2.0])
def test_scale_gradient(factor):
    value, (gradient,) = gradients(lambda x: scale_gradient(x, factor), jnp.array([1.0, -3.0]))
    np.testing.assert_array_equal(value, [1.0, -3.0])
    np.testing.assert_array_equal(gradient, [1 * factor, 2 * factor])


def test_scale_gradient_keeps_a_narrow_dtype():
    gradient = jax.grad(scale_gradient)(jnp.bfloat16(2), jnp.bfloat16(0.5))
    assert gradient.dtype == jnp.bfloat16


def test_in_steps_is_the_product_with_the_reciprocal():
    """In every program alike, also where XLA would take a quotient; both roundings in float32."""
    generator = np.random.default_rng(0)
    x, step = (generator.uniform(0.01, 10, 1000).astype(np.float32) for _ in range(2))
    expected = x * (np.float32(1) / step)
    assert (expected != x / step).any()
    np.testing.assert_array_equal(in_steps(x, step), expected)
    np.testing.assert_array_equal(jax.jit(in_steps)(x, step), expected)
    for one in step[:3]:
        np.testing.assert_array_equal(jax.jit(in_steps)(x, one), x * (np.float32(1) / one))
        constant = jax.jit(lambda x, one=one: in_steps(x, one))
        np.testing.assert_array_equal(constant(x), x * (np.float32(1) / one))


# A grid of 2 bits stored at 3: cells of 2 steps of 0.5, so edges at -2, -1, 0, 1, 2.
STEP, CELL, HALF = jnp.full((1,), 0.5), jnp.float32(2), jnp.float32(2)


def test_midrise_inside_at_edges_and_outside():
    w = jnp.array([-9.0, -2.0, -1.5, -1.0, -0.25, 0.0, 0.75, 1.0, 1.75, 2.0, 9.0])
    value, (to_w, to_step, to_cell, to_half) = gradients(midrise_ste, w, STEP, CELL, HALF)
    np.testing.assert_array_equal(
        value, [-1.5, -1.5, -1.5, -0.5, -0.5, 0.5, 0.5, 1.5, 1.5, 1.5, 1.5]
    )
    # The lower edge of the grid belongs to it, the upper one does not.
    np.testing.assert_array_equal(to_w, [0, 2, 3, 4, 5, 6, 7, 8, 9, 0, 0])
    # (code + 1/2) * cell - w / step inside, (code + 1/2) * cell outside.
    slopes = [-3, -3 + 4, -3 + 3, -1 + 2, -1 + 0.5, 1, 1 - 1.5, 3 - 2, 3 - 3.5, 3, 3]
    expected = sum(slope * g for g, slope in enumerate(slopes, start=1))
    np.testing.assert_array_equal(to_step, [expected])
    np.testing.assert_array_equal(to_cell, 0.0)
    np.testing.assert_array_equal(to_half, 0.0)


def test_midrise_step_gradient_stays_with_its_channel():
    w = jnp.array([[0.25, 0.25], [-0.75, 9.0]])
    _, (_, to_step, _, _) = gradients(
        midrise_ste, w, jnp.array([[0.5, 1.0]]), jnp.float32(1), jnp.float32(1)
    )
    # Channel 0: codes 0, -1 (clipped); channel 1: codes 0, 0 (clipped). Cotangents 1 2 / 3 4.
    np.testing.assert_array_equal(to_step, [[1 * (0.5 - 0.5) + 3 * -0.5, 2 * 0.25 + 4 * 0.5]])


@pytest.mark.parametrize("w", [-3.0e38, -1.0e-40, 0.0, 1.0e-40, 3.0e38])
def test_midrise_extremes_stay_finite(w):
    out, back = gradients(midrise_ste, jnp.array([w]), jnp.full((1,), 1e-3), CELL, HALF)
    assert np.isfinite(out).all()
    assert all(np.isfinite(g).all() for g in back)


def test_codes_are_integers_in_range():
    w = jnp.linspace(-3, 3, 101)
    codes = np.asarray(midrise_code(w, STEP, CELL, HALF))
    assert set(codes) == {-2.0, -1.0, 0.0, 1.0}
    assert (np.diff(codes) >= 0).all()


# low and top, inputs, cotangents 1, 2, 3, ...; by hand at a step of 0.5; ties go to even.
UNIFORM = {
    "unsigned": (
        (0, 3),
        [-1.0, 0.0, 0.1, 0.25, 0.75, 1.25, 1.5, 9.0],
        [0, 0, 0, 0, 1.0, 1.0, 1.5, 1.5],
        [0, 0, 3, 4, 5, 6, 0, 0],  # low < x / step < top
        [0, 0, 0 - 0.2, 0 - 0.5, 2 - 1.5, 2 - 2.5, 3, 3],
    ),
    "signed": (
        (-2, 1),
        [-9.0, -1.0, -0.75, -0.25, -0.1, 0.0, 0.25, 0.4, 0.5, 9.0],
        [-1.0, -1.0, -1.0, 0, 0, 0, 0, 0.5, 0.5, 0.5],
        [0, 0, 3, 4, 5, 6, 7, 8, 0, 0],
        [-2, -2, -2 + 1.5, 0.5, 0.2, 0, -0.5, 1 - 0.8, 1, 1],
    ),
}


@pytest.mark.parametrize("case", UNIFORM)
def test_uniform_inside_at_edges_and_outside(case):
    codes, x, values, slopes_of_x, slopes_of_step = UNIFORM[case]
    low, top = (jnp.float32(code) for code in codes)
    value, (to_x, to_step, *to_codes) = gradients(
        uniform_ste, jnp.array(x), jnp.float32(0.5), low, top
    )
    np.testing.assert_array_equal(value, values)
    np.testing.assert_array_equal(to_x, slopes_of_x)
    expected = (np.float32(slopes_of_step) * np.arange(1, len(x) + 1)).sum()
    np.testing.assert_allclose(to_step, expected, rtol=1e-6)
    np.testing.assert_array_equal(to_codes, 0.0)
