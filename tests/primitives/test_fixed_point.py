"""Fixed-point activations: within half a step, digits that recompose exactly, any scale."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dual_precision.primitives.fixed_point import WIDTHS, fixed_point

TINY = np.finfo(np.float32).tiny
convert = jax.jit(fixed_point, static_argnames="bits")


def integers(digits):
    """sum_d 256^d digit_d, as int64."""
    return sum(256**d * np.asarray(digit, np.int64) for d, digit in enumerate(digits))


@pytest.mark.parametrize("bits", WIDTHS)
def test_compiled_or_not_the_codes_are_the_same(bits):
    """Ties are where a step of another last bit is another code: half of the peak is one."""
    peaks = np.random.default_rng(0).uniform(0.1, 1, 500).astype(np.float32)
    x = jnp.asarray(np.stack([peaks, peaks / 2, -peaks / 2], axis=1))
    for own, other in zip(fixed_point(x, bits), convert(x, bits=bits), strict=True):
        np.testing.assert_array_equal(own, other)


@pytest.mark.parametrize("bits", WIDTHS)
@given(seed=st.integers(0, 2**16), scale=st.sampled_from([1e-38, 1e-30, 1e-3, 1.0, 1e4, 1e37]))
def test_within_half_a_step(bits, seed, scale):
    x = np.random.default_rng(seed).standard_normal((3, 7)).astype(np.float32) * np.float32(scale)
    digits, step = convert(x, bits=bits)
    assert (digits.dtype, digits.shape) == (jnp.int8, (bits // 8, 3, 7))
    assert (step.dtype, step.shape) == (jnp.float32, (3, 1))
    codes = integers(digits)
    assert np.abs(codes).max() <= 127 * 256 ** (bits // 8 - 1)
    # Float32 has 24 bits: x / step is rounded, and at 32 bits that is more than half a step. What
    # is below the smallest normal number may be taken for zero.
    rounding = 2.0**-23 * np.abs(x.astype(np.float64)) + TINY
    error = np.abs(x - np.asarray(step, np.float64) * codes)
    assert (error <= np.asarray(step, np.float64) / 2 + rounding).all()


@pytest.mark.parametrize("bits", WIDTHS)
def test_every_code_comes_back(bits):
    """Digits recompose exactly, the largest and smallest codes and carries included."""
    top = 127 * 256 ** (bits // 8 - 1)
    wanted = np.array([top, -top, 0, 1, -1, 127, -127, 64, 2**7 % top, -(2**7) % top])
    wanted = np.concatenate([wanted, np.random.default_rng(0).integers(-top, top, 200)])
    # Only what float32 can hold; the row's largest sets a step of 1.
    wanted = wanted.astype(np.float32).astype(np.int64)
    digits, step = convert(wanted.astype(np.float32)[None], bits=bits)
    assert step.item() == 1
    np.testing.assert_array_equal(integers(digits)[0], wanted)


@pytest.mark.parametrize("bits", WIDTHS)
def test_zeros_stay_zero(bits):
    x = jnp.asarray([[0.0, 0, 0], [0, -3, 0], [1e-40, 0, 0], [1e-38, 0, -3e-38]])
    digits, step = convert(x, bits=bits)
    assert (np.asarray(step) >= TINY).all()
    codes = integers(digits)
    assert not codes[0].any()
    assert not codes[1:][np.asarray(x)[1:] == 0].any()
    assert codes[1, 1] == -127 * 256 ** (bits // 8 - 1)


def test_rows_have_steps_of_their_own():
    x = jnp.asarray([[127.0, 1], [254, 2], [0.5, 0.25]])
    digits, step = convert(x, bits=8)
    np.testing.assert_allclose(step[:, 0], [1, 2, 0.5 / 127], rtol=1e-6)
    for row in range(3):
        alone, own_step = convert(x[row : row + 1], bits=8)
        np.testing.assert_array_equal(alone[:, 0], digits[:, row])
        np.testing.assert_array_equal(own_step[0], step[row])


@pytest.mark.parametrize("bits", [0, 4, 24, 64])
def test_other_widths(bits):
    with pytest.raises(ValueError, match=rf"of {bits} bits: expected one of \[8, 16, 32\]"):
        fixed_point(jnp.ones((1, 2)), bits)
