"""ONNX graphs of the modes: ONNX Runtime answers as the network does, and says so where not."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from dual_precision import modes
from dual_precision.deploy import load_packed, save_packed
from dual_precision.deploy.export.extras import needed
from dual_precision.deploy.export.onnx.steps import trace_steps
from dual_precision.layers import Dense
from dual_precision.models import build_from
from dual_precision.precision import Asked, Modes
from dual_precision.structure import structure_of
from dual_precision.tasks.classification import Classification
from dual_precision.training.state import initial_variables

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from dual_precision.deploy.export.onnx import nibbles
from dual_precision.deploy.export.onnx.file import (
    EngineNetwork,
    runs_on_integers,
    save_onnx,
)
from dual_precision.deploy.export.onnx.floats import save_float_onnx

pytestmark = pytest.mark.slow

RESNET: dict[str, Any] = {
    "name": "resnet8", "num_classes": 3, "widths": [4, 8], "stage_sizes": [1, 1],
    "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4],
}  # fmt: skip
NETWORKS = {
    "option A": (RESNET, (8, 8, 3)),
    "option B": ({**RESNET, "projections": True}, (8, 8, 3)),
    "transitions": ({**RESNET, "transitions": True, "space_to_depth": 2}, (8, 8, 3)),
    "mlp": ({"name": "mlp", "num_classes": 3, "hidden": [16, 8]}, (4, 4, 1)),
    "no norm": ({"name": "mlp_4096", "num_classes": 3, "hidden": [16, 8]}, (4, 4, 1)),
}
WIDTHS = {"low": "w2a2", "middle": "w4a4", "high": "w8a8"}


def packed(folder: Any, name: str, widths: dict[str, str] | None = None) -> Any:
    """A packed network in which every number is another one, and images for it."""
    network, shape = NETWORKS[name]
    network = {**network, **modes(**(widths or WIDTHS)).to_json()}
    model, example = build_from(network), Classification(shape).example
    generator = np.random.default_rng(0)
    leaves = flatten_dict(initial_variables(model, example, 0))
    for path, leaf in leaves.items():
        if path[-1] in ("scale", "var"):
            leaves[path] = jnp.asarray(generator.uniform(0.5, 2, leaf.shape), jnp.float32)
            if path[-1] == "scale":  # of a channel that is turned round, and one that is shut
                leaves[path] = leaves[path].at[0].multiply(-1).at[1].set(0)
        elif path[-1] in ("bias", "mean"):
            leaves[path] = jnp.asarray(generator.normal(0, 0.3, leaf.shape), jnp.float32)
    save_packed(folder / "net", model, unflatten_dict(leaves), network, example)
    return folder / "net", generator.integers(0, 256, (6, *shape), np.uint8)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_exact_form_answers_as_the_network(tmp_path, name):
    """All modes in one file. A code may fall on the other side where rounding differs: of these
    images none does."""
    path, images = packed(tmp_path, name)
    save_onnx(tmp_path / "net.onnx", path)
    engine = EngineNetwork(tmp_path / "net.onnx")
    assert engine.precisions == ("low", "middle", "high")
    model, variables = load_packed(path)
    for mode in engine.precisions:
        expected = model.apply(variables, images, precision=mode)
        found = engine.predict(images, mode)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4, err_msg=mode)
        np.testing.assert_allclose(engine.predict(images[:1], mode), found[:1], atol=1e-4)


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "no norm"])
def test_the_integer_form_is_integers_between_the_first_and_the_last_layer(tmp_path, name):
    path, images = packed(tmp_path, name)
    save_onnx(tmp_path / "net.onnx", path, ["low", "high"], "integer", images)
    engine = EngineNetwork(tmp_path / "net.onnx")
    model, variables = load_packed(path)
    for mode, most in (("low", 1e-4), ("high", 0.25)):
        expected = np.asarray(model.apply(variables, images, precision=mode))
        difference = np.abs(engine.predict(images, mode) - expected).max()
        assert difference < most * expected.std(axis=0).max(), (mode, difference)
    onnx = needed("onnx", "a test")
    save_onnx(tmp_path / "high.onnx", path, ["high"], "integer", images)
    graph = onnx.load(tmp_path / "high.onnx").graph
    kinds = {tensor.data_type for tensor in graph.initializer if len(tensor.dims) > 1}
    assert onnx.TensorProto.INT8 in kinds
    products = [node for node in graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    makers = {node.output[0]: node.op_type for node in graph.node}
    for node in products[1:]:
        assert [makers[given] for given in node.input] == ["DequantizeLinear"] * len(node.input)
    for node in graph.node:
        if node.op_type in ("Slice", "Pad"):  # of a shortcut
            assert makers[node.input[0]] in ("QuantizeLinear", "Slice")
    read = {given for node in graph.node for given in node.input}
    assert all(node.output[0] in read or node.op_type == "Identity" for node in graph.node)
    # A rectifier before a quantizer of unsigned codes would be one more pass.
    assert [node.op_type for node in graph.node].count("Relu") <= 1


@pytest.mark.parametrize(("form", "together"), [("integer", 128), ("vnni", 2 * 127)])
def test_sums_of_two_products_stay_in_sixteen_bits(tmp_path, form, together):
    """Kernels for processors without VNNI add two products of UINT8 and INT8 in 16 bits."""
    path, images = packed(tmp_path, "option A")
    save_onnx(tmp_path / "net.onnx", path, ["high"], form, images)
    onnx = needed("onnx", "a test")
    for tensor in onnx.load(tmp_path / "net.onnx").graph.initializer:
        if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) == 4:
            flat = np.sort(onnx.numpy_helper.to_array(tensor).reshape(tensor.dims[0], -1), axis=1)
            two = np.abs([flat[:, -2:].sum(1, np.int32), flat[:, :2].sum(1, np.int32)])
            assert 0 < two.max() <= together


def test_halves_of_codes_are_shared_by_both_modes(tmp_path, monkeypatch):
    """The wide mode goes on from the sum of the narrow one: low in one file with high adds no
    weights, and a run computes one of them. Inputs are rounded to 8 bits for each block, by the
    engine."""
    monkeypatch.setattr(nibbles, "LEAST", 1)
    own = {"low": "w4a32", "high": "w8a32"}
    network = {
        "name": "mlp_4096", "num_classes": 3, "hidden": [64, 40],
        **modes({"dense1": own}, **own).to_json(),
    }  # fmt: skip
    model, example = build_from(network), Classification((15, 10, 1)).example
    variables = initial_variables(model, example, 0)
    save_packed(path := tmp_path / "net", model, variables, network, example)
    images = np.random.default_rng(0).integers(0, 256, (6, 15, 10, 1), np.uint8)
    sizes = {}
    for names in (["high"], ["low", "high"]):
        save_onnx(file := tmp_path / "net.onnx", path, names, "nibbles")
        sizes[len(names)] = file.stat().st_size
    halves = 2 * (256 * 64 + 128 * 40) // 2  # inputs are filled up to whole blocks
    assert halves < sizes[1] < sizes[2] < sizes[1] + halves / 4
    engine = EngineNetwork(tmp_path / "net.onnx")
    model, packed_variables = load_packed(path)
    for mode in own:
        expected = np.asarray(model.apply(packed_variables, images, precision=mode))
        found = engine.predict(images, mode)
        assert np.linalg.norm(found - expected) < 0.02 * np.linalg.norm(expected)
    operators = [node.op_type for node in needed("onnx", "a test").load(file).graph.node]
    assert operators.count("If") == 4  # of each layer, and of what the classifier takes as codes


@pytest.mark.parametrize("name", ["option A", "mlp"])
def test_a_switch_between_modes_of_other_inputs(tmp_path, monkeypatch, name):
    """Whatever differs between the modes is in branches: input steps, normalisation, padding."""
    monkeypatch.setattr(nibbles, "LEAST", 1)
    path, images = packed(tmp_path, name, {"low": "w4a4", "high": "w8a8"})
    save_onnx(tmp_path / "net.onnx", path, form="nibbles")
    engine = EngineNetwork(tmp_path / "net.onnx")
    model, variables = load_packed(path)
    for mode in engine.precisions:
        expected = np.asarray(model.apply(variables, images, precision=mode))
        found = engine.predict(images, mode)
        assert np.linalg.norm(found - expected) < 0.05 * np.linalg.norm(expected), mode


def test_forms_that_are_none(tmp_path):
    path, images = packed(tmp_path, "mlp")
    with pytest.raises(ValueError, match="form 'int4' is unknown: expected one of"):
        save_onnx(tmp_path / "net.onnx", path, form="int4")
    with pytest.raises(ValueError, match="form 'integer' without calibration images: expected"):
        save_onnx(tmp_path / "net.onnx", path, form="integer")
    with pytest.raises(ValueError, match="with 0 calibration images: expected one or more"):
        save_onnx(tmp_path / "net.onnx", path, form="integer", calibration=images[:0])
    with pytest.raises(ValueError, match=r"inputs uint8 \[.*: expected uint8 \[N, 4, 4"):
        save_onnx(tmp_path / "net.onnx", path, form="integer", calibration=images[:, :2])
    with pytest.raises(ValueError, match=r"form 'nibbles' of the modes .*: expected one or two"):
        save_onnx(tmp_path / "net.onnx", path, form="nibbles")


@pytest.mark.parametrize("widths", ["w2a32", "w4a32", "w6a32"])
def test_float_activations_stay_floats(tmp_path, monkeypatch, widths):
    """ONNX Runtime rounds them to 8 bits where it joins them with weights of 4 or 8."""
    wide = {"name": "mlp", "num_classes": 10, "hidden": [256, 256]}
    monkeypatch.setitem(NETWORKS, "wide", (wide, (8, 8, 1)))
    path, images = packed(tmp_path, "wide", {"low": widths, "high": "w8a32"})
    save_onnx(tmp_path / "net.onnx", path)
    model, variables = load_packed(path)
    for mode in ("low", "high"):
        expected = np.asarray(model.apply(variables, images, precision=mode))
        apart = np.abs(EngineNetwork(tmp_path / "net.onnx").predict(images, mode) - expected)
        assert apart.max() < 1e-5 * np.abs(expected).max(), mode


def test_codes_of_few_bits_are_stored_in_four(tmp_path):
    path, _ = packed(tmp_path, "mlp", {"low": "w2a2", "high": "w4a8"})
    sizes = {}
    for mode in ("low", "high"):
        save_onnx(tmp_path / mode, path, [mode])
        model = needed("onnx", "a test").load(tmp_path / mode)
        sizes[mode] = {t.name.rsplit("_", 1)[0]: t for t in model.graph.initializer}
    four = needed("onnx", "a test").TensorProto.INT4
    assert sizes["low"]["dense2"].data_type == four
    assert len(sizes["low"]["dense2"].raw_data) * 2 == len(sizes["high"]["dense2"].raw_data)


def test_which_modes_have_an_integer_form():
    own = {**WIDTHS, "half": "w8a32"}
    network = {**NETWORKS["mlp"][0], **modes(**own).to_json()}
    structure = structure_of(build_from(network), Classification((4, 4, 1)).example)
    found = {mode: runs_on_integers(structure, mode) for mode in own}
    # The classifier of every mode takes 8-bit codes.
    assert found == {"low": False, "middle": False, "high": True, "half": True}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_float_network(tmp_path, name):
    network, shape = NETWORKS[name]
    model = build_from({**network, **modes(**WIDTHS).to_json()})
    example = Classification(shape).example
    variables = initial_variables(model, example, 0)
    images = np.random.default_rng(0).integers(0, 256, (3, *shape), np.uint8)
    save_float_onnx(tmp_path / "float.onnx", model, variables, example)
    expected = model.apply(variables, images, precision="float")
    found = EngineNetwork(tmp_path / "float.onnx").predict(images, "float")
    np.testing.assert_allclose(found, expected, atol=1e-4)


class Odd(nn.Module):
    """Something between its layers that no engine is told of."""

    modes: Modes
    how: Any
    dense: Any = Dense

    @nn.compact
    def __call__(self, x: Any, *, precision: Asked, train: bool = False) -> Any:
        x = self.dense(4, modes=self.modes, name="first")(
            x.astype(jnp.float32).reshape(x.shape[0], -1), precision=precision
        )
        return self.dense(2, modes=self.modes, name="last")(self.how(x), precision=precision)


def test_what_is_not_exported_is_said(tmp_path):
    from dual_precision.deploy.export.onnx.graph import Graph
    from dual_precision.deploy.export.onnx.network import OnnxNetwork

    example = Classification((2, 2, 1)).example
    model = Odd(modes(high="w8a8"), how=lambda x: jnp.sort(x, axis=-1))
    structure = structure_of(model, example)
    steps = trace_steps(model, structure, example)
    network = OnnxNetwork(Graph(), steps, structure, {"params": {}}, "high")
    with pytest.raises(ValueError, match="the network computes 'sort' between its layers: expect"):
        network.tensor(steps.parts[steps.output].source)
    with pytest.raises(ValueError, match="a network of 2 inputs and 1 outputs: expected one array"):
        trace_steps(
            Two(modes(high="w8a8")),
            structure_of(Two(modes(high="w8a8")), (example, example)),
            (example, example),
        )


class Two(nn.Module):
    """A network of two inputs."""

    modes: Modes

    @nn.compact
    def __call__(self, x: Any, y: Any, *, precision: Asked, train: bool = False) -> Any:
        own = (x.astype(jnp.float32) + y.astype(jnp.float32)).reshape(x.shape[0], -1)
        return Dense(2, modes=self.modes, name="one")(own, precision=precision)


def test_modes_and_files_that_are_not_there(tmp_path):
    path, images = packed(tmp_path, "mlp")
    with pytest.raises(ValueError, match=r"precisions \['float'\]: expected some of \['low', 'mi"):
        save_onnx(tmp_path / "net.onnx", path, ["float"])
    save_onnx(tmp_path / "net.onnx", path, ["low"])
    engine = EngineNetwork(tmp_path / "net.onnx")
    with pytest.raises(ValueError, match=r"precision 'high': expected one of \['low'\]"):
        engine.predict(images, "high")
    with pytest.raises(ValueError, match="inputs float64"):
        engine.predict(images / 255, "low")
    (tmp_path / "text").write_text("no graph")
    with pytest.raises(ValueError, match="ONNX Runtime does not load it"):
        EngineNetwork(tmp_path / "text")


def test_a_missing_package_is_named():
    with pytest.raises(ValueError, match=r"a test needs the package 'not_there'.*\[engines\]"):
        needed("not_there", "a test")


def test_the_network_of_the_repository_answers_the_same(tmp_path):
    """On noise: real images are asked by `python -m experiments.deploy support`."""
    path = "notebooks/networks/cifar10-w2a2-w8a8.safetensors"
    images = np.random.default_rng(1).integers(0, 256, (16, 32, 32, 3), np.uint8)
    save_onnx(tmp_path / "net.onnx", path)
    engine = EngineNetwork(tmp_path / "net.onnx")
    model, variables = load_packed(path)
    for mode in ("low", "high"):
        expected = np.asarray(jax.jit(partial(model.apply, precision=mode))(variables, images))
        differences = np.abs(engine.predict(images, mode) - expected).max(axis=1)
        assert np.median(differences) < 1e-4
        assert differences.max() < 0.05 * np.abs(expected).max()
