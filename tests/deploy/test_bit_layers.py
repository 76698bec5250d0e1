"""Networks on planes: as good as the network they came from, and no more planes than asked for."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from dual_precision import Widths, modes
from dual_precision.deploy import load_packed, save_packed
from dual_precision.deploy.planes.bit_layers import (
    BitDense,
    to_bit_layers,
)
from dual_precision.deploy.planes.bit_lstm import BitLSTMCell
from dual_precision.deploy.planes.packing import join_gates, pack_dense, pack_lstm
from dual_precision.layers import Dense, SwitchableBatchNorm
from dual_precision.models import MLP, build
from dual_precision.primitives.bitserial import plane_product, unpack_words
from dual_precision.primitives.nested import decode, encode
from dual_precision.primitives.quantizers import quantize_weights
from dual_precision.tasks.classification import Classification

SHAPE = (8, 8, 1)
EXAMPLE = Classification(SHAPE).example
ROWS = 9  # too many for the GPU kernel, which would be traced for every precision
DUAL = modes(low="w2a2", high="w8a8")
PLAIN = MLP(num_classes=4, modes=DUAL, hidden=(64,), norm=None)
NORMED = MLP(num_classes=4, modes=DUAL, hidden=(64,))


def trained(model):
    """Variables away from where init puts them; compiles nothing."""
    rng = np.random.default_rng(0)
    init = partial(model.init, precision="float")
    tree = jax.eval_shape(init, jax.random.key(0), jax.ShapeDtypeStruct((1, *SHAPE), jnp.uint8))

    def value(path, leaf):
        if path[-1] == "kernel":
            return rng.normal(size=leaf.shape) / np.sqrt(leaf.shape[0])
        if "step" in path:  # of codes that reach 4 standard deviations
            return np.full(leaf.shape, 4 / 8 / 128)
        positive = {"input_step", "scale", "var"} & set(path)
        return rng.uniform(0.5, 2, leaf.shape) if positive else rng.normal(size=leaf.shape)

    leaves = {path: value(path, leaf) for path, leaf in flatten_dict(tree).items()}
    return unflatten_dict({path: jnp.asarray(a, jnp.float32) for path, a in leaves.items()})


def images(count=ROWS):
    return jnp.asarray(np.random.default_rng(1).integers(0, 256, (count, *SHAPE)), jnp.uint8)


@partial(jax.jit, static_argnames=("model", "precision"))
def logits(model, variables, precision):
    return model.apply(variables, images(), precision=precision)


def relative(found, wanted):
    """Root mean square of the difference, over that of what is wanted."""
    found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    return np.sqrt(np.mean((found - wanted) ** 2) / np.mean(wanted**2))


def test_words_for_precisions():
    packed = {"params": pack_dense(jnp.asarray(weights()))}
    layer, x = BitDense(64, use_bias=False), jnp.asarray(weights(1, 2))
    layer.apply(packed, x, precision="w1a8")
    for name in ("w9a8", "w0a8", "low", "w4a7", "w4", "w4a8 "):
        with pytest.raises(ValueError, match=rf"precision '{name}' is unknown: .*'w1a8'.*'w8a32'"):
            layer.apply(packed, x, precision=name)
    for other in ("float", Widths("float", weights=4)):
        with pytest.raises(ValueError, match=r"expected w1 to w8 and one of a8, a16, a32"):
            layer.apply(packed, x, precision=other)


def test_widths_as_values():
    """The one door: a mode by name, and a number of planes as a value, traced or not."""
    packed = {"params": pack_dense(jnp.asarray(weights()[:32, :8]))}
    layer, x = BitDense(8, use_bias=False), jnp.asarray(weights(1, 1)[:, :32])

    def program(precision):
        return str(jax.make_jaxpr(partial(layer.apply, precision=precision))(packed, x))

    assert program(Widths("w8a8", weights=3)) == program("w3a8") != program("w8a8")
    traces = []

    @jax.jit
    def run(planes):
        traces.append(planes)
        return layer.apply(packed, x, precision=Widths("w8a8", weights=planes))

    own = packed["params"]
    for n in (2, 5):
        wanted = product(x, own["words"], own["scales"], n, 8)
        np.testing.assert_array_equal(run(jnp.int32(n)), wanted)
    for n in (0, 9):  # traced, they cannot be refused
        assert jnp.isnan(run(jnp.int32(n))).all()
    assert len(traces) == 1
    with pytest.raises(ValueError, match="width 9: expected 1 to 8 bits"):
        program(Widths("w8a8", weights=9))
    with pytest.raises(ValueError, match="which mode 'w8a8' keeps in float"):
        program(Widths("w8a8", activations=8))


# -- one product -----------------------------------------------------------------------------------


def weights(seed=0, inputs=64):
    return np.random.default_rng(seed).standard_normal((inputs, 64)).astype(np.float32)


product = jax.jit(plane_product, static_argnames=("planes", "activations", "form"))


@pytest.mark.parametrize(("activations", "bound"), [(8, 8e-3), (16, 4e-5), (32, 1e-6)])
def test_a_product_is_that_of_the_weights_values(activations, bound):
    """What is left of the difference is rounding of activations: half of 1 in 127 * 256^(D-1)."""
    packed = pack_dense(jnp.asarray(weights()))
    x = weights(1, ROWS)
    values = np.asarray(unpack_words(packed["words"][:3], 64)) + 0.5
    wanted = x.astype(np.float64) @ (values * np.asarray(packed["scales"])[2])
    found = product(jnp.asarray(x), packed["words"], packed["scales"], 3, activations)
    assert relative(found, wanted) < bound


def test_only_the_planes_asked_for_matter():
    packed = pack_dense(jnp.asarray(weights()))
    x = jnp.asarray(weights(1, ROWS))
    other = {
        "words": packed["words"].at[3:].set(jnp.uint32(2**32 - 1)),
        "scales": packed["scales"].at[3:].set(jnp.nan).at[:2].set(jnp.nan),
    }
    for form in ("xla", None):
        wanted = product(x, packed["words"], packed["scales"], 3, 8, form)
        found = product(x, other["words"], other["scales"], 3, 8, form)
        np.testing.assert_array_equal(found, wanted)


def test_bias():
    bias = jnp.arange(64, dtype=jnp.float32)
    packed = pack_dense(jnp.asarray(weights()), bias)
    x = jnp.asarray(weights(1, ROWS))
    found = BitDense(64).apply({"params": packed}, x, precision="w3a8")
    without = plane_product(x, packed["words"], packed["scales"], 3, 8)
    np.testing.assert_array_equal(found, without + bias[None])


def test_inputs_of_any_rank():
    packed = {"params": pack_dense(jnp.asarray(weights()))}
    layer, x = BitDense(64, use_bias=False), jnp.asarray(weights(1, 12))
    wanted = layer.apply(packed, x, precision="w3a8")
    for shape in ((3, 4), (3, 2, 2)):
        found = layer.apply(packed, x.reshape(*shape, 64), precision="w3a8")
        np.testing.assert_array_equal(found, wanted.reshape(*shape, 64))
    assert layer.apply(packed, x[0], precision="w3a8").shape == (64,)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"codes": np.full((64, 64), 128, np.int32)}, "codes from 128 to 128: expected -128 to 12"),
        ({"codes": np.zeros((64, 64), np.float32)}, "codes of dtype float32: expected integers"),
        ({"codes": np.zeros((63, 64), np.int32)}, r"codes of \[63, 64\]: expected \[64, 64\]"),
        ({"bias": np.zeros(63, np.float32)}, r"a bias of \[63\]: expected \[64\]"),
        ({"bias": np.full(64, np.nan, np.float32)}, "infinities or NaN"),
        ({"kernel": np.zeros(64, np.float32)}, r"weights float32\[64\]: expected float32 \[inputs"),
        ({"kernel": np.zeros((2, 2), np.float16)}, r"weights float16\[2, 2\]: expected float32"),
        ({"kernel": np.full((64, 64), np.inf, np.float32), "codes": np.zeros((64, 64), np.int8)},
         "infinities or NaN"),
    ],
)  # fmt: skip
def test_what_makes_no_planes(arguments, says):
    with pytest.raises(ValueError, match=says):
        pack_dense(**{"kernel": jnp.asarray(weights())} | jax.tree.map(jnp.asarray, arguments))


def test_layers_without_planes():
    x = jnp.zeros((1, 64))
    with pytest.raises(ValueError, match=r"has no planes: expected .*there is no init"):
        BitDense(64).init(jax.random.key(0), x, precision="w4a8")
    packed = pack_dense(jnp.asarray(weights()))
    with pytest.raises(ValueError, match="has no planes"):  # no bias
        BitDense(64).apply({"params": packed}, x, precision="w4a8")


# -- networks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [PLAIN, NORMED], ids=["plain", "normed"])
def test_a_network_in_float(model):
    """More planes are nearer, 8 are near; all bits of the activations add nothing that is seen."""
    variables = trained(model)
    layered, planes = to_bit_layers(model, variables, EXAMPLE)
    wanted = logits(model, variables, "float")
    found = {p: logits(layered, planes, p) for p in ("w2a8", "w4a8", "w8a16", "w8a32")}
    errors = [relative(found[p], wanted) for p in ("w2a8", "w4a8", "w8a32")]
    assert errors[0] > errors[1] > errors[2]
    assert errors[1] < 0.3
    assert errors[2] < 0.07
    assert relative(found["w8a16"], found["w8a32"]) < 1e-3


def test_a_mode_of_eight_bits_keeps_its_weights():
    variables = trained(NORMED)
    _, planes = to_bit_layers(NORMED, variables, EXAMPLE, mode="high")
    own, packed = variables["params"]["dense1"], planes["params"]["dense1"]
    codes = encode(own["kernel"], own["step"], 8, 8)
    np.testing.assert_array_equal(unpack_words(packed["words"], 64), codes)
    values = quantize_weights(own["kernel"], own["step"], 8, 8)
    found = (np.asarray(codes) + 0.5) * np.asarray(packed["scales"][7])
    np.testing.assert_allclose(found, values, rtol=1e-5)
    for n in (2, 4):
        narrow = np.asarray(codes) >> (8 - n)
        prefix = decode(jnp.asarray(narrow), own["step"], n, 8)
        assert relative((narrow + 0.5) * np.asarray(packed["scales"][n - 1]), values) < relative(
            prefix, values
        )


def test_a_mode_with_its_normalisation():
    """Against the network of the mode in numpy, its weights and statistics, activations float."""
    variables = trained(NORMED)
    layered, planes = to_bit_layers(NORMED, variables, EXAMPLE, mode="high")
    params = variables["params"]
    first, last = (
        np.asarray(quantize_weights(params[name]["kernel"], params[name]["step"], 8, 8))
        for name in ("dense1", "classifier")
    )
    affine, running, bias = jax.tree.map(
        np.asarray,
        (
            params["norm1"]["high"],
            variables["batch_stats"]["norm1"]["high"],
            params["classifier"]["bias"],
        ),
    )
    x = np.asarray(images(), np.float32).reshape(ROWS, 64) / 255
    x = (x - 0.5) / 0.25 @ first
    x = (x - running["mean"]) / np.sqrt(running["var"] + SwitchableBatchNorm.epsilon)
    wanted = np.maximum(x * affine["scale"] + affine["bias"], 0) @ last + bias
    assert relative(logits(layered, planes, "w8a32"), wanted) < 1e-5


def test_a_mode_of_few_bits():
    """Where weights have four values, two planes are enough for them."""
    model = PLAIN.clone(hidden=(64, 64))
    variables = trained(model)
    _, planes = to_bit_layers(model, variables, EXAMPLE, mode="low")
    own, packed = variables["params"]["dense2"], planes["params"]["dense2"]
    values = quantize_weights(own["kernel"], own["step"], 2, 8)
    narrow = np.asarray(unpack_words(packed["words"][:2], 64)) + 0.5
    np.testing.assert_allclose(narrow * np.asarray(packed["scales"][1]), values, rtol=1e-5)


def test_widths_of_single_layers():
    """A network on planes knows its layers by their planes."""
    variables = trained(PLAIN)
    layered, planes = to_bit_layers(PLAIN, variables, EXAMPLE)
    every = dict.fromkeys(planes["params"], 3)
    apply = partial(layered.apply, planes, images())
    np.testing.assert_array_equal(
        apply(precision=Widths("w8a8", weights=every)), apply(precision="w3a8")
    )
    one = apply(precision=Widths("w8a8", weights={"dense1": 1}))
    for other in ("w8a8", "w1a8"):
        assert float(jnp.max(jnp.abs(one - apply(precision=other)))) > 0
    with pytest.raises(ValueError, match=r"unknown layers \['dense9'\]: expected .*'classifier'"):
        apply(precision=Widths("w8a8", weights={"dense9": 1}))


def test_one_trace_for_each_precision():
    layered, planes = to_bit_layers(PLAIN, trained(PLAIN), EXAMPLE)
    traced = []

    @partial(jax.jit, static_argnames="precision")
    def run(planes, x, precision):
        traced.append(precision)
        return layered.apply(planes, x, precision=precision)

    for precision in ("w1a8", "w2a8", "w1a8", "w2a8", "w1a16", "w1a8"):
        run(planes, images(1), precision)
    assert traced == ["w1a8", "w2a8", "w1a16"]


def test_networks_refused():
    layered, planes = to_bit_layers(NORMED, trained(NORMED), EXAMPLE)
    for name, message in {"float": "expected w1 to w8", "w9a8": "is unknown"}.items():
        with pytest.raises(ValueError, match=f"precision '{name}'.*{message}"):
            layered.apply(planes, images(1), precision=name)
    with pytest.raises(ValueError, match="for inference: train the network they came from"):
        layered.apply(planes, images(1), precision="w1a8", train=True)
    with pytest.raises(ValueError, match=re.escape("'middle'")):
        to_bit_layers(NORMED, trained(NORMED), EXAMPLE, mode="middle")
    resnet = build("resnet8", num_classes=4, modes=DUAL)
    with pytest.raises(ValueError, match=r"of ResNet, where \['stem', .* no products of a matrix"):
        to_bit_layers(resnet, {}, EXAMPLE)


@pytest.mark.parametrize("norm", [None, SwitchableBatchNorm])
def test_values_that_are_not_there_are_missed(norm, tmp_path):
    """A file read up to low is a network of low alone; no mode of a file has float weights."""
    model = PLAIN.clone(norm=norm)
    widths = {"low": "w2a2", "high": "w8a8"}
    description = {"name": "mlp", "num_classes": 4, "hidden": [64], "modes": widths}
    description |= {} if norm else {"norm": None}
    save_packed(tmp_path / "net", model, trained(model), description, EXAMPLE)
    _, packed = load_packed(tmp_path / "net", "low")
    to_bit_layers(model, packed, EXAMPLE, mode="low")
    with pytest.raises(ValueError, match=r"without .*classifier/input_step/high.* 'high'; load"):
        to_bit_layers(model, packed, EXAMPLE, mode="high")
    message = r"without batch_stats/norm1/float/mean" if norm else "which holds codes alone"
    for last in ("low", "high"):
        _, packed = load_packed(tmp_path / "net", last)
        with pytest.raises(ValueError, match=message):
            to_bit_layers(model, packed, EXAMPLE)
    with pytest.raises(ValueError, match=r"'params/dense1/kernel' of shape \(64, 64\)"):
        to_bit_layers(model, packed, Classification((4, 4, 1)).example, mode="low")


@pytest.mark.parametrize(
    "classes", [{"dense": partial(Dense)}, {"norm": partial(SwitchableBatchNorm, epsilon=0.1)}]
)
def test_layers_that_no_attribute_names_are_refused(classes):
    model = NORMED.clone(**classes)
    with pytest.raises(ValueError, match="keeps its class"):
        to_bit_layers(model, trained(model), EXAMPLE)


# -- LSTM ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", [nn.OptimizedLSTMCell, nn.LSTMCell])
def test_lstm_cell(cell):
    rng = np.random.default_rng(0)
    x, c, h = (jnp.asarray(rng.normal(size=(ROWS, n)), jnp.float32) for n in (16, 16, 16))
    variables = jax.eval_shape(cell(16).init, jax.random.key(0), (c, h), x)
    variables = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) / 4, jnp.float32), variables
    )
    packed = {"params": pack_lstm(variables["params"])}
    run = jax.jit(BitLSTMCell(16).apply, static_argnames="precision")
    wanted = cell(16).apply(variables, (c, h), x)
    fine = run(packed, (c, h), x, precision="w8a32")
    zeros = BitLSTMCell(16).initialize_carry(jax.random.key(0), x.shape)
    jax.tree.map(
        np.testing.assert_array_equal, zeros, cell(16).initialize_carry(jax.random.key(0), x.shape)
    )
    assert jax.tree.structure(fine) == jax.tree.structure(wanted)
    for ours, theirs in zip(jax.tree.leaves(fine), jax.tree.leaves(wanted), strict=True):
        assert ours.shape == theirs.shape
        assert relative(ours, theirs) < 0.05
    _, coarse = run(packed, (c, h), x, precision="w2a8")
    assert 0.05 < relative(coarse, wanted[1]) < 0.6


def test_lstm_of_other_variables():
    with pytest.raises(ValueError, match=r"an LSTM cell of \['hf'\]: expected \['ii', "):
        pack_lstm({"hf": {}})


def test_an_lstm_cell_is_packed_as_its_two_products_are():
    """For the planes that will be read, and with codes that the weights have already."""
    rng = np.random.default_rng(0)
    cell = {
        side + gate: {"kernel": jnp.asarray(rng.normal(size=(16, 16)), jnp.float32)}
        | ({"bias": jnp.ones(16)} if side == "h" else {})
        for side in "ih"
        for gate in "ifgo"
    }
    inputs, hidden, bias = join_gates(cell)
    codes = jnp.asarray(rng.integers(-128, 128, (16, 64)), jnp.int32)
    found = pack_lstm(cell, {"hidden": codes}, read=(2,))
    wanted = {
        "input": pack_dense(inputs, read=(2,)),
        "hidden": pack_dense(hidden, bias, codes),
    }
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
    assert not np.array_equal(found["input"]["words"], pack_lstm(cell)["input"]["words"])
    with pytest.raises(ValueError, match=r"codes of \['hh'\]: expected those of 'input'"):
        pack_lstm(cell, {"hh": codes})
