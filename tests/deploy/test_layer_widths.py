"""Other widths in some layers of a trained network: codes stay, input steps keep their range."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dual_precision import modes
from dual_precision.deploy.layer_widths import with_layer_widths
from dual_precision.models import MLP
from dual_precision.precision import parse
from dual_precision.primitives.nested import encode, truncate
from dual_precision.structure import structure_of
from dual_precision.tasks.classification import Classification
from dual_precision.training.state import initial_variables
from experiments.deploy.report import parts_with

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


def test_what_is_not_named_keeps_its_own_widths():
    """Of a layer with an entry of its own: the other mode, its input step and its logits too."""
    own = modes({"dense2": {"low": "w4a4", "high": "w6a6"}}, low="w2a2", high="w8a8")
    model = MODEL.clone(modes=own)
    variables = initial_variables(model, EXAMPLE, seed=0)
    other, changed = with_layer_widths(model, variables, EXAMPLE, {"dense2": {"high": "w4a4"}})
    table = other.modes.at(("dense2",))
    assert {name: str(table[name]) for name in own.default} == {"low": "w4a4", "high": "w4a4"}
    steps = (tree["params"]["dense2"]["input_step"]["low"] for tree in (variables, changed))
    assert next(steps) == next(steps)


@pytest.mark.parametrize("asked", ["dense2", "dens*2"])
def test_a_report_has_the_widths_that_packing_has(asked):
    """Of a layer whose own entry is a pattern, which its name would hide."""
    own = modes({"dense[23]": {"low": "w1a2"}}, low="w2a2", high="w8a8")
    model, widths = MODEL.clone(modes=own), {asked: {"high": "w4a4"}}
    packed, _ = with_layer_widths(model, initial_variables(model, EXAMPLE, 0), EXAMPLE, widths)
    network = {"name": "mlp", "num_classes": MODEL.num_classes, "hidden": [*MODEL.hidden]}
    info = SimpleNamespace(network={**network, **own.to_json()}, example=EXAMPLE)
    reported = parts_with(info, widths).layers
    expected = structure_of(packed, EXAMPLE).layers
    assert {path: layer.table for path, layer in reported.items()} == {
        path: layer.table for path, layer in expected.items()
    }


@pytest.mark.parametrize("before", ["dense2", "dense[23]"])
@pytest.mark.parametrize("asked", ["dense2", "dens*2"])
def test_a_pattern_reaches_layers_that_have_an_entry(before, asked):
    own = modes({before: {"low": "w4a4"}}, low="w2a2", high="w8a8")
    model = MODEL.clone(modes=own)
    variables = initial_variables(model, EXAMPLE, seed=0)
    other, _ = with_layer_widths(model, variables, EXAMPLE, {asked: {"high": "w3a3"}})
    for layer in ("dense1", "dense2", "dense3"):
        wanted = {**own.at((layer,))} | ({"high": parse("w3a3")} if layer == "dense2" else {})
        assert other.modes.at((layer,)) == wanted


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ({"dense9": {"low": "w1a1"}}, "unknown layers.*expected some of"),
        ({"dense2": {"medium": "w1a1"}}, "has modes .'medium'.: expected some of"),
        ({"dense1": {"low": "w8a4"}}, "no input step"),
        ({"dense2": {"low": "2"}}, "expected w<bits>a<bits>"),
        ({"d*2": {"low": "w1a1"}, "*2": {"low": "w3a3"}}, "different widths by 2 patterns"),
    ],
)
def test_what_cannot_be_is_refused(variables, widths, message):
    with pytest.raises(ValueError, match=message):
        with_layer_widths(MODEL, variables, EXAMPLE, widths)
