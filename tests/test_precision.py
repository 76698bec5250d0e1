"""Modes are data: parsed, compared, hashed; what cannot work is refused with the way out."""

import dataclasses

import jax.numpy as jnp
import pytest

from dual_precision import FLOAT, Modes, Precision, Widths, modes, parse
from dual_precision.precision import mode_of, modes_from

DUAL = modes(low="w2a2", high="w8a8")


@pytest.mark.parametrize("weights", [*range(1, 9), None])
@pytest.mark.parametrize("activations", [1, 8, None])
@pytest.mark.parametrize("gradients", [1, 8, None])
def test_text_and_precision_are_inverse(weights, activations, gradients):
    precision = Precision(weights, activations, gradients)
    assert parse(str(precision)) == precision


def test_gradients_are_float_unless_said():
    assert parse("w4a4g8") == Precision(4, 4, 8)
    assert parse("w4a4g32") == parse("w4a4") == Precision(4, 4)
    assert str(Precision(4, 4)) == "w4a4"


@pytest.mark.parametrize(
    "text",
    ["", "w0a2", "w9a2", "a33", "w2", "w2a0", "w2a9", "W2A2", "w2a2 ", "w2a2g0", "w2a2g", "w2g2a2"],
)
def test_parse_refuses(text):
    with pytest.raises(ValueError, match=r"expected w<bits>a<bits> or .*, bits from 1 to 8"):
        parse(text)


@pytest.mark.parametrize("bits", [0, 9, -1, True, 2.5, 2.0, "2"])
@pytest.mark.parametrize("field", ["weights", "activations", "gradients"])
def test_precision_refuses_widths(field, bits):
    widths = {"weights": 2, "activations": 2, field: bits}
    with pytest.raises(ValueError, match=f"{field} of {bits!r} bits: expected an integer from 1"):
        Precision(**widths)


def test_float_is_always_a_mode():
    assert Modes().names == ("float",)
    assert modes(low="w2a2").names == ("float", "low")
    assert modes(low="w2a2").at(("anything",))["float"] == FLOAT


def test_unknown_name_lists_the_known_ones():
    for refuse in (DUAL.check_name, DUAL.norm_of, lambda name: DUAL.resolve(("conv",), name)):
        with pytest.raises(ValueError, match=r"'lowest'.*\['float', 'low', 'high'\]"):
            refuse("lowest")


@pytest.mark.parametrize("name", ["float", "two bits", "2bit", ""])
def test_mode_names_that_cannot_be(name):
    with pytest.raises(ValueError, match="expected an identifier"):
        modes(**{name: "w2a2"})


def test_equal_modes_are_one_static_value():
    one, other = (modes({"conv": {"low": "w4a4"}}, low="w2a2") for _ in range(2))
    assert one == other
    assert hash(one) == hash(other)
    assert one != modes(low="w2a2")
    assert one != modes({"conv": {"low": "w4a4"}}, low="w2a2", stored=4)
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.default = {}


@pytest.mark.parametrize("layers", ["w2a2", ["conv1"], {"conv1": "w2a2"}, 3])
def test_widths_of_another_form_are_refused(layers):
    with pytest.raises(ValueError, match=r"layers=.*: expected {layer or pattern: {mode: widths}}"):
        modes(layers, low="w2a2")


def test_texts_where_precisions_belong_are_refused():
    with pytest.raises(ValueError, match=r"mode 'low' is 'w2a2': expected a Precision; modes\(\)"):
        Modes({"low": "w2a2"})


# -- layers of their own ---------------------------------------------------------------------------


def test_a_layer_may_have_its_own():
    own = modes({"block/conv": {"low": "w4a3"}}, low="w2a2")
    assert own.at(("block", "conv"))["low"] == Precision(4, 3)
    assert own.at(("block", "other"))["low"] == Precision(2, 2)
    assert own.at(("conv",))["low"] == Precision(2, 2)


def test_modes_that_an_entry_leaves_out_keep_their_default():
    own = modes({"conv": {"low": "w4a4"}}, low="w2a2", high="w8a8")
    assert own.at(("conv",))["low"] == Precision(4, 4)
    assert own.at(("conv",))["high"] == Precision(8, 8)


def test_an_entry_has_modes_of_the_model_alone():
    with pytest.raises(ValueError, match=r"'conv' has modes \['middle'\]: .*\['high', 'low'\]"):
        modes({"conv": {"middle": "w4a4"}}, low="w2a2", high="w8a8")


def test_patterns():
    """A pattern stands for every layer that it fits; a name goes before patterns."""
    own = modes({"stage2_*": {"low": "w4a4"}, "stage2_block1/conv1": {"low": "w3a3"}}, low="w2a2")
    assert str(own.at(("stage2_block1", "conv2"))["low"]) == "w4a4"
    assert str(own.at(("stage2_block1", "conv1"))["low"]) == "w3a3"
    assert str(own.at(("stage1_block1", "conv1"))["low"]) == "w2a2"


def test_two_patterns_on_one_layer():
    """Fine where they agree, an error where they do not: none of them goes before the other."""
    agree = modes({"dense*": {"low": "w4a4"}, "*2": {"low": "w4a4"}}, low="w2a2")
    assert str(agree.at(("dense2",))["low"]) == "w4a4"
    differ = modes({"dense*": {"low": "w4a4"}, "*2": {"low": "w3a3"}}, low="w2a2")
    assert str(differ.at(("dense1",))["low"]) == "w4a4"
    with pytest.raises(ValueError, match="'dense2' has different widths by 2 patterns: expected"):
        differ.at(("dense2",))


def test_names_that_no_layer_has():
    own = modes({"conv9": {"low": "w4a4"}, "dense*": {"low": "w4a4"}}, low="w2a2")
    with pytest.raises(ValueError, match=r"layers \['conv9'\]: expected some of \['dense1'\]"):
        own.check_layers({"dense1"})
    with pytest.raises(ValueError, match=r"layers \['conv9', 'dense\*'\]"):
        own.check_layers({"conv1"})
    own.check_layers({"dense1", "conv9"})
    with pytest.raises(ValueError, match=r"layers \['stem'\]: expected some of \['conv9', 'dens"):
        own.check_layers({"dense1", "conv9"}, named={"stem"})


def test_pin_leaves_layers_of_their_own():
    pinned = modes({"stem": {"low": "w4a4"}}, low="w2a2").pin(8, None)
    assert pinned.at(("stem",))["low"] == Precision(4, 4)
    assert pinned.at(("classifier",))["low"] == Precision(8, None)


def test_pin_leaves_gradients():
    assert modes(low="w2a2g8").pin(8, None).at(("stem",))["low"] == Precision(8, None, 8)


# -- the store -------------------------------------------------------------------------------------


def test_the_stored_width_is_said_not_guessed():
    """8 whatever the modes are; a layer whose modes are all float stores none."""
    assert modes(low="w2a2", mid="w5a5", high="w4a8").stored_at(()) == 8
    assert modes(low="w3a2", high="w32a8", stored=5).stored_at(()) == 5
    assert Modes().stored_at(()) is None
    own = modes({"head": {"low": "w32a8"}}, low="w2a2")
    assert own.stored_at(("head",)) is None
    assert own.stored_at(("conv",)) == 8


def test_pinned_layers_are_stored_wide_enough():
    assert modes(low="w2a2", stored=4).pin(8, None).stored_at(("stem",)) == 8
    assert modes(low="w2a2", stored=4).pin(2, 2).stored_at(("stem",)) == 4
    assert modes(low="w2a2", stored=4).pin(None, None).stored_at(("stem",)) is None


@pytest.mark.parametrize("stored", [0, 9, True, 4.0, None, "8"])
def test_stored_widths_that_cannot_be(stored):
    with pytest.raises(ValueError, match="expected an integer from 1 to 8"):
        modes(low="w2a2", stored=stored)


def test_modes_wider_than_the_store():
    with pytest.raises(ValueError, match="'high' has w8a8, wider weights than the 4 bits"):
        modes(low="w2a2", high="w8a8", stored=4)
    with pytest.raises(ValueError, match="layer 'conv': mode 'low' has w5a2, wider"):
        modes({"conv": {"low": "w5a2"}}, low="w2a2", stored=4)
    modes(low="w4a8", high="w32a32", stored=4)  # activations are not stored, nor is float


# -- shared normalisation --------------------------------------------------------------------------


def test_modes_may_share_a_normalisation():
    own = modes(low="w2a2", mid="w4a4", high="w8a8", norms={"mid": "high", "low": "high"})
    assert [own.norm_of(name) for name in own.names] == ["float", "high", "high", "high"]
    assert own.norm_of(Widths("mid", 4)) == "high"


@pytest.mark.parametrize(
    "norms", [{"low": "none"}, {"none": "low"}, {"low": "high", "high": "float"}, {"low": "low"}]
)
def test_norms_that_cannot_be(norms):
    with pytest.raises(ValueError, match=r"expected modes of .* with a normalisation of its own"):
        modes(low="w2a2", high="w8a8", norms=norms)


# -- widths as values ------------------------------------------------------------------------------


def test_what_a_call_means_for_a_layer():
    def asked(precision, own=DUAL, path=("conv",)):
        found = own.resolve(path, precision)
        return found.mode, found.weights, found.activations, found.gradients

    assert asked("low") == ("low", 2, 2, None)
    assert asked("float") == ("float", None, None, None)
    assert asked(Widths("high")) == ("high", 8, 8, None)
    assert asked(Widths("high", 4)) == ("high", 4, 8, None)
    assert asked(Widths("high", 4, 3, 6)) == ("high", 4, 3, 6)
    assert asked(Widths("float", 4)) == ("float", 4, None, None)
    mapped = Widths("high", {"conv": 4}, {"other": 3}, {"conv": 6})
    assert asked(mapped) == ("high", 4, 8, 6)
    assert asked(mapped, path=("third",)) == ("high", 8, 8, None)
    pinned = DUAL.pin(8, 8)
    assert asked(Widths("low", 4, 4, 6), pinned) == ("low", 8, 8, 6)
    assert asked(Widths("low", {"conv": 4}), pinned) == ("low", 4, 8, None)
    assert DUAL.resolve(("conv",), Widths("low", 4)).own == Precision(2, 2)
    assert mode_of(mapped) == "high"
    assert mode_of("low") == "low"
    assert mapped.named_layers == {"conv", "other"}


def test_widths_that_a_mode_cannot_take():
    with pytest.raises(ValueError, match="'conv': a width for activations, which mode 'float'"):
        DUAL.resolve(("conv",), Widths("float", None, 4))
    with pytest.raises(ValueError, match="'conv': a width for weights, and no mode has codes"):
        Modes().resolve(("conv",), Widths("float", jnp.int32(4)))


# -- the description of a network ------------------------------------------------------------------


@pytest.mark.parametrize(
    "own",
    [
        Modes(),
        DUAL,
        modes({"conv": {"low": "w4a4g8"}}, low="w2a2", high="w8a8", norms={"low": "high"}),
        modes({"stage*": {"low": "w3a3"}}, low="w2a2", stored=5),
    ],
)
def test_what_is_written_is_read(own):
    assert modes_from(own.to_json()) == own


def test_what_a_description_leaves_out_is_as_in_modes():
    assert modes_from({"modes": {"low": "w3a3", "high": "w5a8"}}) == modes(low="w3a3", high="w5a8")


def test_a_layer_of_float_weights_is_stored_in_no_width():
    """It has no step, whose meaning could be another one."""
    own = modes({"conv": {"low": "w32a32", "high": "w32a8"}}, low="w2a2", high="w4a4", stored=4)
    assert (own.stored, own.stored_at(["conv"])) == (4, None)


@pytest.mark.parametrize("name", ["float", "auto", "budget", "draft"])
def test_words_that_choose_a_mode_name_none(name):
    with pytest.raises(ValueError, match=f"mode name '{name}': expected an identifier other than"):
        Modes({name: Precision(2, 2)})
