"""The command that says what a PyTorch state dict is, and the training that starts from one."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dual_precision import data
from dual_precision.loading import load_trained
from dual_precision.tasks.classification import Classification
from experiments.cifar import network_of
from experiments.deploy.importing import import_command
from experiments.recipes.config import make_config

FILES = Path(__file__).parents[1] / "deploy" / "pytorch"


def test_every_tensor_is_shown_and_written_under_our_names(tmp_path, capsys):
    out = tmp_path / "net.safetensors"
    import_command(str(FILES / "legacy.pt"), out=str(out))
    said = capsys.readouterr().out
    assert "legacy.pt: 47 tensors, 5,361 numbers" in said
    rows = [[cell.strip() for cell in line.split("|")] for line in said.splitlines()]
    assert ["", "conv1.weight", "stem/kernel", "[3, 3, 3, 4]", ""] in rows
    assert "num_classes=5); zero channels of shortcuts: both" in said
    assert f"for --init={out}" in said
    first, second = (
        load_trained(path, Classification((8, 8, 3)).example) for path in (FILES / "legacy.pt", out)
    )
    kernel = "stage3_block1", "conv1", "kernel"
    np.testing.assert_array_equal(
        first.variables["params"][kernel[0]][kernel[1]][kernel[2]],
        second.variables["params"][kernel[0]][kernel[1]][kernel[2]],
    )
    assert first.modes == second.modes == ("float",)


def test_what_does_not_fit_ends_the_command_after_the_report(tmp_path, capsys):
    path = tmp_path / "net.safetensors"
    state = {
        "conv1.weight": np.zeros((4, 3, 7, 7), np.float32), "bn1.weight": np.zeros(4, np.float32),
        "layer1.0.conv1.weight": np.zeros((4, 4, 3, 3), np.float32),
        "layer1.0.conv2.weight": np.zeros((4, 4, 3, 3), np.float32),
        "layer1.0.bn1.weight": np.zeros(4, np.float32), "fc.weight": np.zeros((2, 4), np.float32),
        "layer1.0.bn2.weight": np.zeros(4, np.float32),
    }  # fmt: skip
    save_file(state, path)
    with pytest.raises(
        ValueError, match=r"11 tensors do not fit: stem/kernel <- conv1\.weight: \["
    ):
        import_command(str(path), out=str(tmp_path / "out"))
    assert "| layer1.0.conv1.weight | stage1_block1/conv1/kernel" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"mean": "0.5"}, "--mean=0.5 and --std=None: expected both or none"),
        ({"mean": "0.5", "std": "0.5"}, "no effect without a --dataset"),
        ({"data_dir": "x"}, "no effect without --dataset"),
        ({"dataset": "digits", "test": False}, "--dataset=digits has no effect with --notest, but"),
        (
            {"dataset": "digits", "test": False, "model": "mlp", "names": "x", "archive": "x"},
            "--archive have no effect without --dataset, or with --notest",
        ),
        ({"padding": "left"}, "padding='left'.*give one of"),
        ({"model": "mlp"}, "--model and --names go together"),
        ({"names": "x", "model": "mlp"}, "--model and --names go together, with the --dataset"),
        ({"dataset": "digits", "mean": "x", "std": "1"}, "mean='x': expected a number for each"),
        ({"dataset": "digits", "mean": "1", "std": "0"}, "std='0': expected a number for each"),
        ({"dataset": "imagenet"}, "imagenet"),
    ],
)
def test_flags_that_make_no_sense(flags, message):
    with pytest.raises(ValueError, match=message):
        import_command(str(FILES / "both.pt"), **flags)


def test_a_network_of_ones_own_is_measured(
    tmp_path, capsys, digits_study: Path, child_environment: Any
):
    """Its names in a file; what it answers on digits is what its one weight says."""
    path, names = tmp_path / "net.safetensors", tmp_path / "names.json"
    save_file({"last.weight": np.zeros((10, 256), np.float32)}, path)
    names.write_text(json.dumps({"classifier": "last"}))
    given = {"model": "mlp", "names": str(names), "dataset": "digits", "test": False}
    with pytest.raises(ValueError, match="dense2/kernel: no name for it"):
        import_command(str(path), **given)
    out = tmp_path / "out.safetensors"
    widths = {"dense1": (256, 64), "dense2": (256, 256), "dense3": (256, 256)}
    state = {"classifier.weight": np.zeros((10, 256), np.float32)}
    state["classifier.bias"] = np.eye(10, dtype="f4")[3]
    for number, (name, shape) in enumerate(widths.items(), start=1):
        state[f"{name}.weight"] = np.zeros(shape, np.float32)
        for end in ("weight", "bias", "running_mean", "running_var"):
            state[f"norm{number}.{end}"] = np.ones(256, np.float32)
    save_file(state, path)
    own = [*widths, "norm1", "norm2", "norm3", "classifier"]
    names.write_text(json.dumps({name: name for name in own}))
    folder = str(digits_study.parent / "data")
    import_command(str(path), **{**given, "test": True}, data_dir=folder, out=str(out))
    labels = data.load("digits", data_dir=folder).test.labels
    right = f"float: {100 * np.mean(labels == 3):.2f} % of {len(labels)} test images"
    assert right in capsys.readouterr().out, "it answers 3 whatever it sees"
    assert "dense3/kernel" in load_file(out)


def test_a_training_takes_the_normalisation_of_its_images_by_name():
    class Dataset:
        name, num_classes, mean, std = "digits", 10, (0.3,), (0.4,)

    def network(**settings: str) -> Any:
        config = make_config("digits", {"dataset": "digits", **settings})
        return network_of(config, Dataset)  # type: ignore[arg-type]

    assert (network()["mean"], network()["std"]) == ([0.3], [0.4])
    own = network(mean="0.25", std="0.5")
    assert (own["mean"], own["std"]) == ([0.25], [0.5])
    with pytest.raises(ValueError, match="expected 1 numbers each, as images of digits have"):
        network(mean="0.1,0.2,0.3", std="0.1,0.2,0.3")
    with pytest.raises(ValueError, match=r"mean='0\.5' and std='': expected both or none"):
        network(mean="0.5")
