"""Layers, norms and inputs that the package has not heard of are packed, converted and served."""

import dataclasses
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact_variables import as_trained
from flax import linen as nn
from flax.traverse_util import flatten_dict

from dual_precision import Modes, Widths, modes
from dual_precision.deploy import (
    Cascade,
    Predictor,
    inspect_packed,
    load_packed,
    save_packed,
    to_integer,
)
from dual_precision.deploy.batching import checked_inputs
from dual_precision.deploy.file.examples import example_from_json, example_to_json
from dual_precision.deploy.planes.bit_layers import to_bit_layers
from dual_precision.layers import Dense, QuantizedLayer, SwitchableBatchNorm
from dual_precision.models import MODELS, build
from dual_precision.primitives import nested
from dual_precision.structure import batch_of, structure_of
from dual_precision.training.state import initial_variables

DUAL = modes(low="w2a2", high="w8a8")
LENGTH, WORDS, WIDE = 6, 11, 8
TOKENS = jax.ShapeDtypeStruct((LENGTH,), jnp.int32)
CARRIED = (
    jax.ShapeDtypeStruct((WIDE,), jnp.float32),
    (jax.ShapeDtypeStruct((WIDE,), jnp.float32),),
)


class Mixing(QuantizedLayer):
    """x @ kernel times a number, of inputs of either sign; no bias by default."""

    signed: bool = True
    gain: float = 2.0
    matrix: ClassVar[bool] = True

    def kernel_shape(self, inputs):
        return (inputs, self.features)

    def product(self, x, kernel):
        return x @ kernel


class Flipped(QuantizedLayer):
    """The last axis of the kernel from the back: no matrix product as it stands."""

    signed: bool = True

    def kernel_shape(self, inputs):
        return (inputs, self.features)

    def product(self, x, kernel):
        return x @ kernel[:, ::-1]


class MyNorm(SwitchableBatchNorm):
    """With another epsilon by default, and an attribute of its own."""

    epsilon: float = 0.25
    name_of_it: str = ""


class Reader(nn.Module):
    """Words [N, length] -> logits [N, length, words]: a table, a layer called twice, a norm."""

    modes: Modes
    mixing: Any = Mixing
    norm: Any = MyNorm
    dense: Any = Dense

    @nn.compact
    def __call__(self, x, *, precision, train=False):
        table = self.param("table", nn.initializers.normal(1.0), (WORDS, WIDE), jnp.float32)
        x = table[x]
        mixing = self.mixing(WIDE, modes=self.modes, gain=3.0, name="mixing")
        x = mixing(jnp.tanh(mixing(x, precision=precision)), precision=precision)
        norm = self.norm(modes=self.modes, name_of_it="one", name="norm")
        x = nn.relu(norm(jnp.tanh(x), precision=precision, train=train))
        return self.dense(WORDS, modes=self.modes, name="head")(x, precision=precision)


class Carrier(nn.Module):
    """(x, (h,)) -> (y, (h,)): one step of a network with a state."""

    modes: Modes
    dense: Any = Mixing

    @nn.compact
    def __call__(self, x, carry, *, precision, train=False):
        h = jnp.tanh(
            self.dense(WIDE, modes=self.modes, name="cell")(x + carry[0], precision=precision)
        )
        return self.dense(WIDE, modes=self.modes, name="out")(h, precision=precision), (h,)


@pytest.fixture(autouse=True)
def known(monkeypatch):
    """A file says a network by its name."""
    monkeypatch.setitem(MODELS, "reader", Reader)
    monkeypatch.setitem(MODELS, "carrier", Carrier)


def words(count=3):
    return jnp.asarray(np.random.default_rng(1).integers(0, WORDS, (count, LENGTH)), jnp.int32)


@pytest.fixture(scope="module")
def reader():
    model = Reader(DUAL)
    return model, as_trained(model, TOKENS)


def run(model, variables, precision, *inputs):
    return jax.jit(partial(model.apply, precision=precision))(variables, *inputs)


def save(path, model, variables, name, example):
    save_packed(path, model, variables, {"name": name, **DUAL.to_json()}, example)
    return path


def test_a_network_of_words_is_packed_and_served(reader, tmp_path):
    model, variables = reader
    path = save(tmp_path / "net", model, variables, "reader", TOKENS)
    info = inspect_packed(path)
    assert info.example == TOKENS
    assert info.layers["mixing",].signed
    assert info.layers["mixing",].calls == 2
    again, loaded = load_packed(path)
    integer_model, integers = to_integer(again, loaded, info.example)
    predictor = Predictor(path, batch_sizes=(4,))
    assert predictor.output == jax.ShapeDtypeStruct((LENGTH, WORDS), jnp.float32)
    for mode in ("low", "high"):
        wanted = run(model, variables, mode, words())
        assert float(jnp.ptp(wanted)) > 0
        np.testing.assert_array_equal(run(again, loaded, mode, words()), wanted)
        np.testing.assert_array_equal(run(integer_model, integers, mode, words()), wanted)
        np.testing.assert_array_equal(predictor.predict(np.asarray(words()), mode), wanted)
    assert predictor.predict(np.zeros((0, LENGTH), np.int32), "low").shape == (0, LENGTH, WORDS)
    with pytest.raises(ValueError, match=r"inputs int64 \[1, 6\]: expected int32 \[N, 6\]"):
        predictor.predict(np.zeros((1, LENGTH), np.int64), "low")


def test_integers_of_both_signs(reader):
    """Inputs below zero are codes below zero; unsigned ones would be cut off."""
    model, variables = reader
    integer_model, integers = to_integer(model, variables, TOKENS)
    own = integer_model.mixing(WIDE, modes=DUAL, name="mixing")
    assert (own.signed, own.gain, own.use_bias) == (True, 2.0, False)
    assert integer_model.dense(1, modes=DUAL, name="x").use_bias
    assert flatten_dict(integers)["params", "mixing", "kernel"].dtype == jnp.int8
    np.testing.assert_array_equal(integers["params"]["table"], variables["params"]["table"])
    with pytest.raises(ValueError, match="planned for the widths of its modes alone"):
        integer_model.apply(integers, words(), precision=Widths("high", weights=4))


class Single(nn.Module):
    """One layer of a class."""

    modes: Modes
    layer: Any

    @nn.compact
    def __call__(self, x, *, precision, train=False):
        return self.layer(4, modes=self.modes, name="only")(x, precision=precision)


@pytest.mark.parametrize("layer", [Mixing, Flipped])
def test_the_bound_of_signed_sums(layer):
    """Weights and inputs of the same sign: twice what the positive weights alone add up to."""
    inputs = 600
    model, example = Single(DUAL, layer), jax.ShapeDtypeStruct((inputs,), jnp.float32)
    variables = as_trained(model, example)
    signs = np.where(np.arange(inputs) % 2, 1, -1)
    only = variables["params"]["only"]
    only["kernel"] = jnp.asarray(np.tile(signs[:, None] * 0.99, (1, 4)), jnp.float32)
    only["step"] = jnp.full(4, 1 / 128, jnp.float32)
    only["input_step"]["high"] = jnp.float32(1)
    integer_model, integers = to_integer(model, variables, example)
    plan = integer_model.layer.keywords["plans"]["only"]
    assert plan.groups["low"] == 1 < plan.groups["high"]
    rng = np.random.default_rng(2)
    x = np.where(signs < 0, -128, 127 - rng.integers(0, 2, (5, inputs)))
    codes = nested.encode(only["kernel"], only["step"], 8, 8)
    sums = x @ (2 * np.asarray(codes, np.int64) + 1)
    assert sums.min() > 2**24
    assert 127 * 255 * inputs / 2 < 2**24  # so that the positive weights alone would do
    found = run(integer_model, integers, "high", jnp.asarray(x, jnp.float32))
    np.testing.assert_array_equal(found, sums.astype(np.float32) / 256)


class Twice(nn.Module):
    """A layer that is called twice, and whose last output goes to a normalisation."""

    modes: Modes
    dense: Any = Dense
    norm: Any = SwitchableBatchNorm

    @nn.compact
    def __call__(self, x, *, precision, train=False):
        layer = self.dense(WIDE, modes=self.modes, name="layer")
        x = nn.relu(layer(x, precision=precision))
        return self.norm(modes=self.modes, name="norm")(
            layer(x, precision=precision), precision=precision
        )


def test_bare_sums_of_two_calls_are_refused():
    model, example = Twice(DUAL), jax.ShapeDtypeStruct((WIDE,), jnp.float32)
    message = r"layer 'layer' is called 2 times, and its output goes to the normalisation 'norm'"
    with pytest.raises(ValueError, match=message):
        to_integer(model, as_trained(model, example), example)


def test_a_first_layer_that_is_called_twice_keeps_no_sums():
    """What it left in its first call must not be taken for its second."""
    table = modes({"mixing": {"low": "w2a32", "high": "w8a32"}}, low="w2a2", high="w8a8")
    model = Reader(table)
    integer_model, integers = to_integer(model, as_trained(model, TOKENS), TOKENS)
    assert not integer_model.mixing.keywords["plans"]["mixing"].shared
    wanted = integer_model.apply(integers, words(), precision="low")
    found, kept = integer_model.apply(integers, words(), precision="low", mutable=["kept"])
    np.testing.assert_array_equal(found, wanted)
    assert not kept


def test_a_network_with_a_state(tmp_path):
    """Its example is a tuple; what gives more than one array is no matter of a Predictor."""
    model = Carrier(DUAL)
    path = save(tmp_path / "net", model, as_trained(model, CARRIED), "carrier", CARRIED)
    again, loaded = load_packed(path)
    example = inspect_packed(path).example
    assert example == CARRIED
    integer_model, integers = to_integer(again, loaded, example)
    rng = np.random.default_rng(3)
    inputs = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), batch_of(example, 2)
    )
    for mode in ("low", "high"):
        jax.tree.map(
            np.testing.assert_array_equal,
            run(integer_model, integers, mode, *inputs),
            run(model, loaded, mode, *inputs),
        )
    with pytest.raises(ValueError, match=r"gives \(\(1, 8\), \(\(1, 8\),\)\) for one row"):
        Predictor(path)


def test_planes_of_words(reader):
    """The table is carried along; the layer of an own class keeps its attributes, and its sign."""
    model, variables = reader
    layered, planes = to_bit_layers(model, variables, TOKENS, mode="low")
    np.testing.assert_array_equal(planes["params"]["table"], variables["params"]["table"])
    own = layered.mixing(WIDE, modes=DUAL, name="mixing")
    assert (own.signed, own.gain, own.use_bias) == (True, 2.0, False)
    found = run(layered, planes, "w2a8", words(1))
    fine = model.clone(modes=modes(low="w2a32", high="w8a8"))
    wanted = run(fine, variables, "low", words(1))
    np.testing.assert_allclose(found, wanted, atol=0.03 * float(jnp.ptp(wanted)))


def test_what_is_no_product_of_a_matrix_has_no_planes():
    model, example = Single(DUAL, Flipped), jax.ShapeDtypeStruct((WIDE,), jnp.float32)
    with pytest.raises(ValueError, match=r"of Single, where \['only'\] .* no products of a matrix"):
        to_bit_layers(model, as_trained(model, example), example)


class Loud(Dense):
    """A layer that calls that of its base: one call, and one that no form computes."""

    def __call__(self, x, *, precision):
        return 2 * super().__call__(x, precision=precision)


def test_a_call_of_its_own_is_one_call_and_has_no_form():
    model, example = Single(DUAL, Loud), jax.ShapeDtypeStruct((WIDE,), jnp.float32)
    layer = structure_of(model, example).layers["only",]
    assert (layer.calls, layer.macs) == (1, WIDE * 4)
    for convert in (to_integer, to_bit_layers):
        with pytest.raises(ValueError, match="Loud have a call of their own: expected a class"):
            convert(model, as_trained(model, example), example)


@pytest.mark.parametrize("example", [TOKENS, CARRIED, (TOKENS,), ((), TOKENS)])
def test_examples_survive_json(example):
    assert example_from_json(example_to_json(example)) == example


@pytest.mark.parametrize("example", [(8, 8, 1), {"x": TOKENS}, "image"])
def test_what_is_no_example_is_refused(example, reader):
    with pytest.raises(ValueError, match=r"expected jax\.ShapeDtypeStruct\(shape, dtype\)"):
        example_to_json(example)
    if not isinstance(example, dict):
        with pytest.raises(ValueError, match=r"expected jax\.ShapeDtypeStruct\(shape, dtype\)"):
            to_integer(*reader, example)


def test_a_cascade_needs_logits_and_a_mirror_needs_images(tmp_path, reader, monkeypatch):
    path = save(tmp_path / "net", *reader, "reader", TOKENS)
    cascade = Cascade("low", "high", 1.0)
    with pytest.raises(ValueError, match=r"gives \[6, 11\] a row: expected logits"):
        Predictor(path, (1,), cascade=cascade)
    single, example = partial(Single, layer=Mixing), jax.ShapeDtypeStruct((WIDE,), jnp.float32)
    monkeypatch.setitem(MODELS, "single", single)
    model = single(DUAL)
    save(path, model, as_trained(model, example), "single", example)
    predictor = Predictor(path, (2,), cascade=cascade)
    x = np.random.default_rng(4).normal(size=(3, WIDE)).astype(np.float32)
    answer = predictor.answer(x)
    wanted = np.where(
        answer.escalated[:, None], *(predictor.predict(x, m) for m in ("high", "low"))
    )
    np.testing.assert_allclose(answer.logits, wanted, rtol=1e-5, atol=1e-5)
    assert set(answer.escalated.tolist()) == {False, True}
    mirror = dataclasses.replace(cascade, mirror=True)
    with pytest.raises(ValueError, match=r"expected one of uint8 images \[H, W, C\]"):
        predictor.answer(x, mirror)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (
            np.zeros((2, WIDE), np.float32),
            r"inputs <class '.*ndarray'>: expected float32 \[N, 8\], ",
        ),
        ((np.zeros((2, WIDE), np.float32), (np.zeros((3, WIDE), np.float32),)), r"\[2, 3\] rows"),
        ((np.float32(0), (np.float32(0),)), r"inputs float32 \[\], float32 \[\]: expected"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(inputs, message):
    with pytest.raises(ValueError, match=message):
        checked_inputs(inputs, batch_of(CARRIED, 1))


def test_a_network_with_an_embedding_is_predicted(tmp_path):
    """By the training forward, as it is exported: an Embed has a call of its own."""
    text = jax.ShapeDtypeStruct((LENGTH,), jnp.uint8)
    own = {"features": 8, "depth": 1, "heads": 1, "hidden": 8, "context": LENGTH}
    model = build("transformer", modes=DUAL, **own)
    variables = initial_variables(model, text, seed=0)
    description = {"name": "transformer", **own, **DUAL.to_json()}
    save_packed(tmp_path / "net", model, variables, description, text)
    predictor = Predictor(tmp_path / "net", (2,))
    assert not predictor.on_codes
    x = np.random.default_rng(2).integers(0, 256, (3, LENGTH), np.uint8)
    again, loaded = load_packed(tmp_path / "net")
    for mode in ("low", "high"):
        found = predictor.predict(x, mode)
        np.testing.assert_allclose(found, run(again, loaded, mode, x), rtol=1e-5, atol=1e-5)
