"""Bits of a magnitude: what an adjustment leaves as it is, what it drops, the gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dual_precision.primitives.signed_bits import (
    SignedBits,
    adjusted,
    bits_in_use,
    group_norms,
    signed_codes,
    to_signed_bits,
    weights_of,
)


@st.composite
def trained_bits(draw) -> SignedBits:
    """Bits as training leaves them: any numbers from 0 to 2."""
    count = draw(st.integers(1, 8))
    numbers = hnp.arrays(np.float32, (2, count, 3, 2), elements=st.floats(0, 2, width=32))
    parts = draw(numbers) * np.asarray(
        draw(st.lists(st.booleans(), min_size=count, max_size=count))
    )[None, :, None, None].astype(np.float32)
    step = draw(st.floats(2.0**-20, 2.0**10, width=32))
    return SignedBits(*map(jnp.asarray, parts), jnp.float32(step))


@given(trained_bits())
def test_an_adjustment_changes_no_weight(bits):
    """Bit for bit, inside of a program and outside."""
    before, after = weights_of(bits), weights_of(adjusted(bits))
    np.testing.assert_array_equal(np.asarray(before) + 0.0, np.asarray(after) + 0.0)
    np.testing.assert_array_equal(np.asarray(jax.jit(weights_of)(bits)) + 0.0, before + 0.0)


@given(trained_bits())
def test_adjusted_bits_are_exact_and_all_needed(bits):
    after = adjusted(bits)
    count = after.positive.shape[0]
    assert 1 <= count <= 8
    assert {*np.unique(after.positive), *np.unique(after.negative)} <= {0.0, 1.0}
    assert not np.any(np.asarray(after.positive) * np.asarray(after.negative))
    both = np.asarray(after.positive + after.negative)
    if bits_in_use(after):
        assert both[0].any()
        assert both[-1].any()
    else:
        assert count == 1
    for one, other in zip(adjusted(after), after, strict=True):
        np.testing.assert_array_equal(one, other)


@given(hnp.arrays(np.float32, (4, 3), elements=st.floats(-8, 8, width=16)), st.integers(1, 8))
def test_the_first_bits_are_the_nearest(w, count):
    found = np.asarray(weights_of(to_signed_bits(jnp.asarray(w), count)))
    scale = np.abs(w).max()
    assert np.abs(found - w).max() <= scale / (2**count - 1) * 0.5001
    assert np.abs(found).max() == pytest.approx(scale)


def of(codes, count, step=1.0) -> SignedBits:
    w = jnp.asarray(codes, jnp.float32)
    bits = to_signed_bits(jnp.append(w, 2.0**count - 1), count)
    return SignedBits(bits.positive[:, :-1], bits.negative[:, :-1], jnp.float32(step))


def test_bits_are_dropped_at_both_ends_and_not_between():
    found = adjusted(of([4, -20, 0, 16], 8, 0.5))
    assert (found.positive.shape[0], float(found.step)) == (3, 2.0), "4 = 1 * 4, 20 = 5 * 4"
    np.testing.assert_array_equal(signed_codes(found), [1, -5, 0, 4])
    middle = adjusted(of([9, -1, 8], 4))
    assert middle.positive.shape[0] == 4, "bits 1 and 2 are empty and stay"


def test_a_sum_that_has_outgrown_its_bits_gets_one_more():
    bits = of([3, -1], 2)
    grown = adjusted(bits._replace(positive=bits.positive * 2))
    np.testing.assert_array_equal(signed_codes(grown), [6, -1])
    assert (grown.positive.shape[0], float(grown.step)) == (3, 1.0)
    full = of([255.0, -1], 8)
    capped = adjusted(full._replace(positive=full.positive * 2))
    np.testing.assert_array_equal(signed_codes(capped), [255, -1])


def test_a_layer_of_zeros():
    found = adjusted(of([0, 0], 5, 3.0))
    assert (found.positive.shape, float(found.step), bits_in_use(found)) == ((1, 2), 3.0, 0)
    assert bits_in_use(of([0, 1], 5)) == 5


def test_gradients_are_those_of_the_sum():
    """step * 2^b, minus that for negative parts, also where the code is at its largest."""
    bits = of([255.0, -3, 0], 8, 0.25)
    g = jnp.array([1.0, 2.0, 3.0])
    found = jax.grad(lambda b: jnp.sum(weights_of(b) * g))(bits)
    expected = 0.25 * 2.0 ** np.arange(8)[:, None] * np.asarray(g)[None]
    np.testing.assert_allclose(found.positive, expected)
    np.testing.assert_allclose(found.negative, -expected)
    assert float(found.step) == 255 - 6


def test_group_norms():
    """One group for every bit, of all its weights, positive and negative parts together."""
    bits = SignedBits(
        jnp.array([[3.0, 0.0], [0.0, 0.0]]), jnp.array([[0.0, 4.0], [0.0, 2.0]]), jnp.float32(1)
    )
    assert float(group_norms(bits)) == pytest.approx(5 + 2, rel=1e-6)


@pytest.mark.parametrize("count", [0, 9])
def test_wrong_counts(count):
    with pytest.raises(ValueError, match=f"width {count}: expected 1 to 8"):
        to_signed_bits(jnp.ones(3), count)
