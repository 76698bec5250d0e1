"""Modes are data: parsed, compared, hashed; what cannot work is refused with the way out."""

import dataclasses

import pytest

from dual_precision import FLOAT, Modes, Precision, modes, parse
from dual_precision.precision import stored_bits


@pytest.mark.parametrize("weights", [*range(1, 9), None])
@pytest.mark.parametrize("activations", [1, 8, None])
def test_text_and_precision_are_inverse(weights, activations):
    precision = Precision(weights, activations)
    assert parse(str(precision)) == precision


@pytest.mark.parametrize("text", ["", "w0a2", "w9a2", "a33", "w2", "w2a0", "w2a9", "W2A2", "w2a2 "])
def test_parse_refuses(text):
    with pytest.raises(ValueError, match=r"expected w<bits>a<bits>, bits from 1 to 8"):
        parse(text)


@pytest.mark.parametrize("bits", [0, 9, -1])
def test_precision_refuses_widths(bits):
    with pytest.raises(ValueError, match="expected 1 to 8"):
        Precision(bits, 2)
    with pytest.raises(ValueError, match="expected 1 to 8"):
        Precision(2, bits)


def test_float_is_always_a_mode():
    assert Modes().names == ("float",)
    assert modes(low="w2a2").names == ("float", "low")
    assert modes(low="w2a2").at(("anything",))["float"] == FLOAT


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"'lowest'.*\['float', 'low', 'high'\]"):
        modes(low="w2a2", high="w8a8").check_name("lowest")


@pytest.mark.parametrize("name", ["float", "two bits", "2bit", ""])
def test_mode_names_that_cannot_be(name):
    with pytest.raises(ValueError, match="expected an identifier"):
        modes(**{name: "w2a2"})


def test_equal_modes_are_one_static_value():
    one, other = (modes({"conv": {"low": "w4a4"}}, low="w2a2") for _ in range(2))
    assert one == other
    assert hash(one) == hash(other)
    assert one != modes(low="w2a2")
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.default = {}


def test_a_layer_may_have_its_own():
    own = modes({"block/conv": {"low": "w4a3"}}, low="w2a2")
    assert own.at(("block", "conv"))["low"] == Precision(4, 3)
    assert own.at(("block", "other"))["low"] == Precision(2, 2)
    assert own.at(("conv",))["low"] == Precision(2, 2)


def test_a_layer_gives_every_mode_a_precision():
    with pytest.raises(ValueError, match="expected \\['high', 'low'\\]"):
        modes({"conv": {"low": "w4a4"}}, low="w2a2", high="w8a8")


def test_pin_leaves_layers_of_their_own():
    pinned = modes({"stem": {"low": "w4a4"}}, low="w2a2").pin(8, None)
    assert pinned.at(("stem",))["low"] == Precision(4, 4)
    assert pinned.at(("classifier",))["low"] == Precision(8, None)


def test_weights_are_stored_at_the_widest_mode():
    assert stored_bits(modes(low="w2a2", mid="w5a5", high="w4a8").at(())) == 5
    assert stored_bits(modes(low="w3a2", high="w32a8").at(())) == 3
    assert stored_bits(Modes().at(())) is None
