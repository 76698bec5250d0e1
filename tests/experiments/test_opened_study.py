"""A study is opened, or the command is named that makes one."""

from pathlib import Path

import pytest

from experiments.figures import opened_study

RESULTS = {"preset": "digits", "pairs": [{"low": "w2a2", "high": "w8a8"}]}


def make_cell(study: Path, name: str, finished: bool = True) -> Path:
    workdir = study / "cells" / name
    (workdir / "checkpoints" / "5").mkdir(parents=True)
    if finished:
        (workdir / "results.json").write_text("{}")
    return workdir


def test_no_study_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"python -m experiments\.study --preset=quick"):
        opened_study.open_study(tmp_path)


def test_no_network_names_the_command(tmp_path: Path) -> None:
    make_cell(tmp_path, "joint-w2a2-w8a8-seed0")
    make_cell(tmp_path, "two_phase-joint-w2a2-w8a8-seed0", finished=False)
    make_cell(tmp_path, "two_phase-joint-w2a2-w8a8-seed0.replaced")
    with pytest.raises(FileNotFoundError, match=f"--preset=digits --workdir={tmp_path}"):
        opened_study.find_network(tmp_path, RESULTS)


def test_the_first_pair_comes_before_any_other(tmp_path: Path) -> None:
    other = make_cell(tmp_path, "two_phase-joint-w1a4-w4a4-seed0")
    assert opened_study.find_network(tmp_path, RESULTS) == other
    first = make_cell(tmp_path, "two_phase-joint-w2a2-w8a8-seed0")
    assert opened_study.find_network(tmp_path, RESULTS) == first
