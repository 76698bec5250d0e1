"""What is written replaces regular files alone: whatever else has the name stays as it is."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest

from dual_precision.deploy import amend_metadata, save_packed
from dual_precision.deploy.file.writer import check_replaceable, write_parts
from dual_precision.loading import save_floats
from dual_precision.models import build_from
from dual_precision.precision import modes
from dual_precision.structure import structure_of
from dual_precision.tasks.classification import Classification
from dual_precision.training.state import initial_variables
from experiments.benchmark.inference import measure_inference
from experiments.benchmark.train_step import measure_train_step
from experiments.deploy.cascade import calibrate_cascade
from experiments.deploy.pack import pack_command
from experiments.workdir import write_whole

NETWORK = {
    "name": "mlp", "num_classes": 2, "hidden": [2], **modes(low="w2a2", high="w8a8").to_json()
}  # fmt: skip
EXAMPLE = Classification((1, 2, 1)).example


def save(path: Path) -> None:
    model = build_from(NETWORK)
    save_packed(path, model, initial_variables(model, EXAMPLE, 0), NETWORK, EXAMPLE)


def floats(path: Path) -> None:
    model = build_from(NETWORK)
    structure = structure_of(model, EXAMPLE)
    save_floats(path, jax.tree.map(np.asarray, initial_variables(model, EXAMPLE, 0)), structure)


WRITERS: dict[str, Callable[[Path], object]] = {
    "parts": lambda path: write_parts(path, [b"new"]),
    "text": lambda path: write_whole(path, "new"),
    "packed": save,
    "floats": floats,
    "command": lambda path: pack_command(workdir="nowhere", out=str(path)),
    "train": lambda path: measure_train_step(
        model="resnet8", batch_size=8, repeats=1, peers=False, out=str(path)
    ),
    "inference": lambda path: measure_inference(
        network="nowhere", requests=100, repeats=1, out=str(path)
    ),
}


@pytest.fixture
def precious(tmp_path) -> Path:
    path = tmp_path / "precious"
    path.write_bytes(b"old")
    return path


@pytest.mark.parametrize("writer", WRITERS)
def test_a_link_is_not_replaced_and_neither_is_what_it_names(tmp_path, precious, writer):
    for name, target in (("link", precious), ("dangling", tmp_path / "gone"), ("dev", "/dev/null")):
        link = tmp_path / name
        link.symlink_to(target)
        with pytest.raises(ValueError, match=f"{name} is not a regular file: expected the name"):
            WRITERS[writer](link)
        assert link.is_symlink()
    assert precious.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "dangling", "dev", "link", "precious"
    ]  # fmt: skip


@pytest.mark.parametrize("writer", WRITERS)
def test_neither_is_a_pipe_or_a_folder(tmp_path, writer):
    pipe, folder = tmp_path / "pipe", tmp_path / "folder"
    os.mkfifo(pipe)  # as a device node, without its rights
    folder.mkdir()
    for path in (pipe, folder):
        with pytest.raises(ValueError, match=f"{path.name} is not a regular file"):
            WRITERS[writer](path)
    assert stat.S_ISFIFO(os.lstat(pipe).st_mode)


@pytest.mark.parametrize("writer", WRITERS)
def test_a_folder_that_is_not_there_is_told_before_any_work(tmp_path, writer):
    with pytest.raises(ValueError, match=r"there is no folder .*nowhere: make it"):
        WRITERS[writer](tmp_path / "nowhere" / "file")


def test_a_regular_file_is_replaced_and_nothing_beside_it(tmp_path, precious):
    (other := tmp_path / "other").write_bytes(b"other")
    (beside := tmp_path / "precious.part").symlink_to(other)
    check_replaceable(precious)
    write_parts(precious, [b"n", b"ew"])
    assert (precious.read_bytes(), other.read_bytes()) == (b"new", b"other")
    assert {*tmp_path.iterdir()} == {precious, other, beside}


def test_metadata_is_not_amended_through_a_link(tmp_path):
    path, link = tmp_path / "net", tmp_path / "link"
    save(path)
    before = path.read_bytes()
    link.symlink_to(path)
    with pytest.raises(ValueError, match="link is not a regular file"):
        amend_metadata(link, {"note": 1})
    with pytest.raises(ValueError, match="link is not a regular file"):
        calibrate_cascade(str(link), test=False, write=True)
    assert link.is_symlink()
    assert path.read_bytes() == before
