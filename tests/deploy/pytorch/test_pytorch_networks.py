"""Networks that come from PyTorch compute what they did there."""

import sys
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file

from dual_precision.deploy.pytorch.network import import_network, import_resnet
from dual_precision.deploy.pytorch.state import read_state
from dual_precision.loading import load_trained, save_floats, start_from
from dual_precision.models import build_from
from dual_precision.precision import modes
from dual_precision.structure import structure_of
from dual_precision.tasks.classification import Classification
from dual_precision.training.state import initial_variables

FOLDER = Path(__file__).parent


def _references() -> Any:
    spec = util.spec_from_file_location("references", FOLDER / "references.py")
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    sys.modules["references"] = module
    spec.loader.exec_module(module)
    return module


REFERENCES = _references()
EXAMPLE = Classification((8, 8, 3)).example
each_network = pytest.mark.parametrize("name", REFERENCES.NETWORKS)


def logits_of(found: Any) -> np.ndarray:
    model = found.model(REFERENCES.MEAN, REFERENCES.STD)
    return np.asarray(model.apply(found.variables, REFERENCES.images(), precision="float"))


@each_network
def test_logits_are_those_that_pytorch_gave(name):
    found = import_resnet(read_state(FOLDER / f"{name}.pt"))
    assert not found.mapped.problems
    assert found.padding == ("" if "conv" in name else name)
    stored = load_file(FOLDER / "logits.safetensors")[name]
    assert stored.std(axis=0).max() > 0.2, "different images, different answers"
    np.testing.assert_allclose(logits_of(found), stored, atol=1e-4, rtol=0)


@each_network
@pytest.mark.parametrize("biased", [False, True])
def test_logits_are_those_of_pytorch(name, biased, tmp_path):
    """With torch: also of convolutions with biases, which ours do not have."""
    torch = pytest.importorskip("torch")
    network = REFERENCES.make_network(name, biased)
    torch.save(network.state_dict(), path := tmp_path / "net.pt")
    found = import_resnet(read_state(path))
    assert not found.mapped.problems
    expected = REFERENCES.answers(network)
    np.testing.assert_allclose(logits_of(found), expected, atol=1e-4, rtol=0)
    if not biased:
        stored = load_file(FOLDER / "logits.safetensors")[name]
        np.testing.assert_allclose(expected, stored, atol=1e-5)


def test_the_other_padding_is_another_function():
    """So the file must not be read without knowing it."""
    state = read_state(FOLDER / "both.pt")
    other = import_resnet(state, padding="behind")
    assert not other.mapped.problems
    stored = load_file(FOLDER / "logits.safetensors")["both"]
    assert np.abs(logits_of(other) - stored).max() > 0.1
    renamed = {name.replace("linear", "fc"): array for name, array in state.items()}
    with pytest.raises(ValueError, match=r"names with 'fc' do not say .* give one of \['both', 'b"):
        import_resnet(renamed)
    np.testing.assert_allclose(logits_of(import_resnet(renamed, "both")), stored, atol=1e-4)
    with pytest.raises(ValueError, match="padding='both' has no effect on a network whose shortc"):
        import_resnet(read_state(FOLDER / "convolutions.pt"), "both")


def test_a_training_run_starts_from_such_a_file(tmp_path):
    """--init: in every mode with its normalisation, and what does not fit under both names."""
    network = {
        "name": "resnet8", "stage_sizes": [2, 1, 1], "widths": [4, 8, 16], "num_classes": 7,
        "mean": list(REFERENCES.MEAN), "std": list(REFERENCES.STD),
        **modes(low="w2a2", high="w8a8").to_json(),
    }  # fmt: skip
    model = build_from(network)
    structure, fresh = structure_of(model, EXAMPLE), initial_variables(model, EXAMPLE, 0)
    state = read_state(FOLDER / "both.pt")
    path = tmp_path / "net.safetensors"
    save_file({**state, "head.weight": np.zeros(3, np.float32)}, path)
    for source, more in ((FOLDER / "legacy.pt", []), (path, ["head.weight [3]: only there"])):
        variables, notes = start_from(load_trained(source, EXAMPLE), fresh, structure)
        assert notes == [
            "params/classifier/bias <- linear.bias: [5] there, [7] here, starts fresh",
            "params/classifier/kernel <- linear.weight: [16, 5] there, [16, 7] here, starts fresh",
            *(f"{line}, left out" for line in more),
        ]
        found = import_resnet(state).mapped.leaves
        leaves = flatten_dict(variables)
        for mode in ("float", "low", "high"):
            leaf = "batch_stats", "stage3_block1", "norm2", mode, "var"
            np.testing.assert_array_equal(leaves[leaf], found[*leaf[:3], "float", "var"])


def test_what_is_missing_or_of_another_shape_is_listed_under_both_names():
    state = read_state(FOLDER / "both.pt")
    del state["layer2.0.bn1.running_var"]
    state["layer1.1.conv2.weight"] = np.zeros((4, 4, 5, 5), np.float32)
    state["layer1.0.conv3.weight"] = np.zeros((2, 2, 1, 1), np.float32)
    assert import_resnet(state).mapped.problems == [
        "stage1_block2/conv2/kernel <- layer1.1.conv2.weight: [4, 4, 5, 5] there,"
        " expected [4, 4, 3, 3]",
        "stage2_block1/norm1/var <- layer2.0.bn1.running_var: missing there",
        "layer1.0.conv3.weight [2, 2, 1, 1]: only there",
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer1": "blocks1"}, "no residual network of names such as|without 'stem'"),
        ({"bn1.weight": "norm.weight"}, "a residual network without 'stem_norm': expected one of"),
        ({"layer2.0": "layer2.1"}, "no residual network"),
        ({"layer2": "layer7"}, "no residual network"),
    ],
)
def test_networks_that_are_none_of_ours(changes, message):
    state = read_state(FOLDER / "both.pt")
    for old, new in changes.items():
        state = {name.replace(old, new): array for name, array in state.items()}
    with pytest.raises(ValueError, match=message):
        import_resnet(state)


def test_a_network_of_ones_own_by_a_table_of_names(tmp_path):
    generator = np.random.default_rng(0)

    def numbers(*shape: int) -> np.ndarray:
        return generator.uniform(0.1, 1, shape).astype(np.float32)

    def norm(name: str) -> dict[str, np.ndarray]:
        ends = ("weight", "bias", "running_mean", "running_var")
        return {f"{name}.{end}": numbers(4) for end in ends}

    state = {
        "a.weight": numbers(4, 6), "a.bias": numbers(4), **norm("b"),
        "head.weight": numbers(3, 4), "head.bias": numbers(3),
    }  # fmt: skip
    names = {"dense1": "a", "norm1": "b", "classifier": "head"}
    network = {"name": "mlp", "hidden": [4], "num_classes": 3}
    example = Classification((2, 3, 1)).example
    found = import_network(state, network, example, names)
    assert not found.mapped.problems
    images = generator.integers(0, 256, (5, 2, 3, 1), np.uint8)
    x = (images.reshape(5, 6) / 255 - 0.5) / 0.25
    x = x @ state["a.weight"].T + state["a.bias"]
    x = (x - state["b.running_mean"]) / np.sqrt(state["b.running_var"] + 1e-5)
    x = np.maximum(x * state["b.weight"] + state["b.bias"], 0)
    expected = x @ state["head.weight"].T + state["head.bias"]
    logits = found.model((0.5,), (0.25,)).apply(found.variables, images, precision="float")
    np.testing.assert_allclose(logits, expected, rtol=1e-5)
    structure = structure_of(found.model((0.5,), (0.25,)), example)
    save_floats(tmp_path / "net", found.variables, structure)
    assert "dense1/kernel" in load_file(tmp_path / "net")
    with pytest.raises(ValueError, match=r"names of layers \['conv'\]: expected some of \['classi"):
        import_network(state, network, example, {**names, "conv": "a"})
    missing = import_network(state, network, example, {"classifier": "head"}).mapped.problems
    assert "dense1/kernel: no name for it" in missing
    assert "a.weight [4, 6]: only there" in missing
