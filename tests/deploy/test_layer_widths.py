"""Other widths in some layers of a trained network: codes stay, input steps keep their range."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dual_precision import modes
from dual_precision.deploy.layer_widths import with_layer_widths
from dual_precision.models import MLP
from dual_precision.primitives.nested import encode, truncate
from dual_precision.tasks.classification import Classification
from dual_precision.training.state import initial_variables

EXAMPLE = Classification((4, 4, 1)).example
MODEL = MLP(num_classes=3, modes=modes(low="w2a2", high="w8a8"), hidden=(8, 8))


@pytest.fixture(scope="module")
def variables():
    return initial_variables(MODEL, EXAMPLE, seed=0)


def test_codes_are_truncated_and_ranges_stay(variables):
    model, changed = with_layer_widths(MODEL, variables, EXAMPLE, {"dense2": {"high": "w4a4"}})
    assert str(model.modes.at(("dense2",))["high"]) == "w4a4"
    before, after = (tree["params"]["dense2"] for tree in (variables, changed))
    np.testing.assert_array_equal(before["kernel"], after["kernel"])
    codes = [encode(after["kernel"], after["step"], bits, 8) for bits in (4, 8)]
    np.testing.assert_array_equal(codes[0], truncate(codes[1], 4, 8))
    steps = [tree["input_step"]["high"] for tree in (before, after)]
    assert steps[0] * 255 == pytest.approx(steps[1] * 15)


def test_other_layers_and_modes_stay(variables):
    model, changed = with_layer_widths(MODEL, variables, EXAMPLE, {"dense2": {"high": "w4a4"}})
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (4, 4, 4, 1)), jnp.uint8)
    now, then = (
        jax.jit(m.apply, static_argnames="precision")(v, images, precision="low")
        for m, v in ((MODEL, variables), (model, changed))
    )
    np.testing.assert_array_equal(now, then)


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ({"dense9": {"low": "w1a1"}}, "unknown layers.*expected some of"),
        ({"dense2": {"medium": "w1a1"}}, "has modes .'medium'.: expected some of"),
        ({"dense1": {"low": "w8a4"}}, "no input step"),
        ({"dense2": {"low": "2"}}, "expected w<bits>a<bits>"),
    ],
)
def test_what_cannot_be_is_refused(variables, widths, message):
    with pytest.raises(ValueError, match=message):
        with_layer_widths(MODEL, variables, EXAMPLE, widths)
