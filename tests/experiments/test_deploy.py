"""The command around a packed file: the cascade, from a trained run to a file that carries it."""

import dataclasses
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from dual_precision import data
from dual_precision.deploy import (
    Cascade,
    PackedError,
    Predictor,
    amend_metadata,
    inspect_packed,
)
from experiments.deploy import pack
from experiments.deploy.cascade_evaluation import cascade_settings, two_modes
from experiments.deploy.trials import dataset_of

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def packed(two_phase_run, tmp_path_factory):
    path = tmp_path_factory.mktemp("deploy") / "digits.safetensors"
    pack.pack_run(two_phase_run, path)
    return path


def test_cascade_command(packed, digits_study, child_environment):
    """The real command; then the file answers as the command said it would."""
    before = packed.read_bytes()
    arguments = ("cascade", str(packed), "--cost=0.5", "--write", f"--workdir={packed.parent}")
    done = subprocess.run(
        [sys.executable, "-m", "experiments.deploy", *arguments],
        cwd=ROOT,
        env=child_environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "215 validation images calibrate" in done.stdout
    assert re.search(r"\| +auto, chosen \|", done.stdout)
    assert (packed.parent / "cascade.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads((packed.parent / "cascade.json").read_text())
    assert str(packed.parent) not in json.dumps([found, inspect_packed(packed).metadata])
    chosen = Cascade.from_json(found["cascade"])
    assert chosen.expected.relative <= 0.5
    assert (chosen.mirror, chosen.blend) == (False, 0.0), "a mirrored digit is another one"
    predictor = Predictor(packed, batch_sizes=(64,))
    assert predictor.cascade == chosen
    test = data.load("digits", data_dir=digits_study.parent / "data").test
    right = predictor.predict(test.images, "auto").argmax(1) == test.labels
    assert found["test"][1]["accuracy"] == pytest.approx(100 * right.mean(), abs=0.3)
    after = packed.read_bytes()
    lengths = [int.from_bytes(content[:8], "little") for content in (before, after)]
    assert before[8 + lengths[0] :] == after[8 + lengths[1] :]


def test_metadata_is_amended_and_nothing_else(packed, tmp_path):
    path = tmp_path / "net"
    path.write_bytes(packed.read_bytes())
    before, tensors = inspect_packed(path), load_file(path)
    amend_metadata(path, {"note": [1, {"a": None}]})
    after = inspect_packed(path)
    assert after.metadata == {**before.metadata, "note": [1, {"a": None}]}
    assert (after.network, after.layers) == (before.network, before.layers)
    for name, array in load_file(path).items():
        np.testing.assert_array_equal(array, tensors[name])
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(PackedError, match="altered"):
        amend_metadata(path, {"note": 2})
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"dataset": "cifar10"}, r"expected \(8, 8, 1\), as the network takes"),
        ({"dataset": "imagenet"}, "imagenet"),
        ({"mirror": True}, "a mirrored image of digits is another image"),
        ({"accuracy": -0.1, "cost": 0.5}, "--accuracy=-0.1 and --cost=0.5: expected one of them"),
        ({"cost": 7.0}, "--cost=7: expected a share, above 0 and up to 1"),
        ({"accuracy": math.nan}, "--accuracy=nan: expected a finite number"),
        ({"accuracy": -math.inf}, "--accuracy=-inf: expected a finite number"),
        ({"cost": math.nan}, "--cost=nan: expected a share"),
        ({"blend": -1.0}, "--blend=-1: expected a finite number, 0 or more"),
        ({"blend": math.nan}, "--blend=nan: expected a finite number"),
    ],
)
def test_settings_refused(packed, asked, message):
    with pytest.raises(ValueError, match=message):
        cascade_settings(inspect_packed(packed), **asked)


def test_a_cascade_is_of_trained_modes_and_of_data_of_its_classes(packed):
    info = inspect_packed(packed)
    one = dataclasses.replace(info, metadata={**info.metadata, "trained": ["high"]})
    with pytest.raises(ValueError, match=r"\['high'\] were trained: expected two trained modes"):
        two_modes(one)
    other = dataclasses.replace(info, network={**info.network, "num_classes": 7})
    with pytest.raises(ValueError, match="a network of 7 classes: expected 10, as digits has"):
        cascade_settings(other, dataset="digits")


@pytest.mark.parametrize("run", ["experiment 7", None, [], {"experiment": {"dataset": 3}}])
def test_metadata_of_another_form_name_no_data(packed, run):
    info = dataclasses.replace(inspect_packed(packed), metadata={"run": run})
    with pytest.raises(
        ValueError,
        match=r"does not say on what it was trained: give --dataset=.*digits.*`serve`.*Predictor",
    ):
        dataset_of(info)


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        (["pack", "--workdir=/home/me/run/", "--out=/o/net"], "pack --workdir=run --out=net"),
        (["pack", "--workdir", "../run", "-out", "a/net"], "pack --workdir run -out net"),
        (
            ["cascade", "/o/net", "--accuracy=-0.1", "--write"],
            "cascade net --accuracy=-0.1 --write",
        ),
    ],
)
def test_a_file_tells_no_folders(words, kept):
    assert pack.recorded_command(words) == f"python -m experiments.deploy {kept}"
