"""The quantizer between a minimum and a maximum, and the layers that have it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dual_precision import Widths, modes
from dual_precision.layers import Embed, MinMaxDense, Recurrence
from dual_precision.layers.minmax import MinMaxLayer
from dual_precision.models import LSTM, MLP
from dual_precision.primitives.minmax import quantize_between, range_of_batch, range_of_channels
from dual_precision.structure import structure_of
from dual_precision.tasks.classification import Classification

arrays = hnp.arrays(np.float32, (5, 3), elements=st.floats(-100, 100, width=32))


@given(arrays, st.integers(1, 8))
def test_levels(x, bits):
    """2^n of them, both ends among them; nobody moves further than half a step."""
    least, span = jnp.min(x), jnp.max(x) - jnp.min(x)
    y = np.asarray(quantize_between(jnp.asarray(x), least, span, bits))
    step = max(float(span) / (2**bits - 1), 1e-8)
    assert np.abs(y - x).max() <= step * 0.501 + 1e-4
    assert len(np.unique(y)) <= 2**bits
    assert y.min() == pytest.approx(x.min(), abs=1e-4)
    assert y.max() == pytest.approx(x.max(), abs=1e-4)


@given(arrays, st.integers(1, 8))
def test_a_traced_width_is_the_same(x, bits):
    ends = (jnp.float32(-7), jnp.float32(11))
    traced = jax.jit(quantize_between)(x, *ends, jnp.int32(bits))
    np.testing.assert_allclose(traced, quantize_between(x, *ends, bits), rtol=1e-6, atol=1e-5)


def test_gradients_pass_where_values_are_clipped():
    x = jnp.array([-9.0, 0.3, 9.0])

    def total(x, least, span):
        return jnp.sum(quantize_between(x, least, span, 3) * jnp.array([1.0, 2.0, 3.0]))

    found = jax.grad(total, argnums=(0, 1, 2))(x, jnp.float32(-1), jnp.float32(2))
    np.testing.assert_array_equal(found[0], [1, 2, 3])
    assert [float(g) for g in found[1:]] == [0, 0]


def test_ranges():
    w = jnp.arange(24.0).reshape(2, 3, 4)
    least, span = range_of_channels(w)
    np.testing.assert_array_equal(least[0, 0], [0, 1, 2, 3])
    np.testing.assert_array_equal(span[0, 0], [20] * 4)
    least, span = range_of_batch(w)
    assert (float(least), float(span)) == (6, 11)


@pytest.fixture(scope="module")
def network():
    model = MLP(
        num_classes=4, modes=modes(low="w2a2", high="w8a8"), hidden=(8, 8), dense=MinMaxDense
    )
    images = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 1)).astype(np.uint8)
    return model, model.init(jax.random.key(0), images, precision="high"), images


def test_ranges_of_a_mode_move_in_training_alone(network):
    model, variables, images = network
    before = variables["batch_stats"]["dense2"]["range"]
    _, updates = model.apply(
        variables, images, precision="low", train=True, mutable=["batch_stats"]
    )
    after = updates["batch_stats"]["dense2"]["range"]
    assert after["high"] == before["high"]
    assert after["low"]["span"] != before["low"]["span"]
    assert "range" not in variables["batch_stats"].get("dense1", {}), "pixels have none"
    model.apply(variables, images, precision="low")  # nothing is mutable, nothing moves


def test_any_width_of_a_call(network):
    model, variables, images = network
    named = model.apply(variables, images, precision="high")
    given_ = model.apply(variables, images, precision=Widths("high", weights=8, activations=8))
    np.testing.assert_array_equal(named, given_)
    narrow = model.apply(variables, images, precision=Widths("high", weights=2, activations=2))
    assert np.abs(np.asarray(narrow - named)).max() > 1e-3


def test_its_weights_are_stored_as_floats(network):
    structure = structure_of(network[0], Classification((8, 8, 1)).example)
    assert {layer.stored for layer in structure.layers.values()} == {None}
    assert not [path for path in structure.shapes if path[-1] == "step"]


class MinMaxEmbed(Embed, MinMaxLayer):
    pass


class MinMaxRecurrence(Recurrence, MinMaxLayer):
    pass


class Misplaced(MinMaxLayer, Recurrence):
    """Its fields are those of any layer, which is unsigned by default."""


def lstm(recurrence):
    own = {"embed": MinMaxEmbed, "dense": MinMaxDense, "recurrence": recurrence}
    return LSTM(modes(low="w2a4", high="w8a8"), features=16, depth=1, **own)


def test_a_network_of_text_with_ranges():
    """The range of h is that of h in the batch, not of the zeros that a text begins with."""
    model, text = lstm(MinMaxRecurrence), np.arange(24, dtype=np.uint8).reshape(3, 8)
    variables = jax.jit(partial(model.init, precision="high"))(jax.random.key(0), text)
    update = jax.jit(partial(model.apply, precision="high", mutable=["batch_stats"]))
    for _ in range(40):
        found, updates = update(variables, text)
        variables = {**variables, **updates}
    moved = variables["batch_stats"]["hidden1"]["range"]
    assert -1 < moved["high"]["least"] < 0 < moved["high"]["span"] < 2
    assert moved["low"] == {"least": 0, "span": 1}
    exact, evaluated = (
        jax.jit(partial(model.apply, precision=precision))(variables, text)
        for precision in ("float", "high")
    )
    for logits in (found, evaluated):  # what is beyond the mean of the extremes is clipped
        assert float(jnp.linalg.norm(logits - exact)) < 0.15 * float(jnp.linalg.norm(exact))


def test_a_recurrence_without_a_sign_is_refused():
    text = np.zeros((1, 3), np.uint8)
    with pytest.raises(ValueError, match=r"signed=False: expected True.*class Mine\(Recurrence"):
        lstm(Misplaced).init(jax.random.key(0), text, precision="high")
