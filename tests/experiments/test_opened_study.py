"""A study is opened, or the command is named that makes one."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from dual_precision import modes
from dual_precision.models import MLP
from dual_precision.structure import structure_of
from dual_precision.tasks.classification import Classification
from dual_precision.training.checkpoint import Checkpoints
from dual_precision.training.initialize import fit_weight_steps
from dual_precision.training.state import initial_variables
from experiments.figures import opened_study
from experiments.recipes.config import make_config

MODEL = MLP(num_classes=4, modes=modes(low="w2a2", high="w8a8"), hidden=(16, 16))
EXAMPLE = Classification((8, 8, 1)).example

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
    make_cell(tmp_path, "two_phase-joint-w2a2-w8a8-seed0.replaced1")
    make_cell(tmp_path, "two_phase-refine-w2a2-w8a8-seed0.replaced12")
    with pytest.raises(FileNotFoundError, match=f"--preset=digits --workdir={tmp_path}"):
        opened_study.find_network(tmp_path, RESULTS)


def test_the_first_pair_comes_before_any_other(tmp_path: Path) -> None:
    other = make_cell(tmp_path, "two_phase-joint-w1a4-w4a4-seed0")
    assert opened_study.find_network(tmp_path, RESULTS) == other
    first = make_cell(tmp_path, "two_phase-joint-w2a2-w8a8-seed0")
    assert opened_study.find_network(tmp_path, RESULTS) == first


@pytest.mark.parametrize("methods", [["truncate", "truncate re-estimated"], ["truncate"]])
def test_methods_that_are_cut_set_the_scale_where_there_are_no_others(methods: list[str]) -> None:
    found = {"low": {"values": [20.0, 24.0]}, "high": {"values": [90.0, 91.0]}}
    summary = {"accuracy": {"validation": found}}
    pair = {"methods": dict.fromkeys(methods, summary)}
    left, right = opened_study._limits([pair], "validation")
    assert left < 20 < 91 < right
    ahead = {"accuracy": {"validation": {"high": {"values": [80.0, 92.0]}}}}
    left, right = opened_study._limits(
        [{"methods": {**pair["methods"], "twins": ahead}}], "validation"
    )
    assert 20 < left < 80, "the twins set it"


@pytest.fixture(scope="module")
def fresh() -> dict[str, Any]:
    """Variables of MODEL, not trained."""
    return initial_variables(MODEL, EXAMPLE, seed=0)


@pytest.mark.parametrize("init", ["", "runs/another"])
def test_stages_are_the_start_and_the_end_of_every_phase(
    tmp_path: Path, fresh: dict[str, Any], init: str
) -> None:
    """Steps at the start are those of the grid that low will share; not where another network was
    started from."""
    config = make_config("digits", {"dataset": "digits", "init": init})
    (tmp_path / "config.json").write_text(json.dumps({"experiment": config.to_json()}))
    network = {"name": "mlp", "num_classes": 4, "hidden": [16, 16], **MODEL.modes.to_json()}
    ends = [jax.tree.map(lambda leaf, end=end: leaf + end, fresh) for end in (1.0, 2.0)]
    with Checkpoints(tmp_path, {"network": network}, milestones=[10, 20]) as checkpoints:
        for phase, end in enumerate(ends):
            state = {"step": np.int32(10 * (phase + 1)), **end, "carry": {}, "opt_state": ()}
            checkpoints.save(10 * (phase + 1), state, {"phase": phase}, score=0.0)
    found = opened_study.stages(tmp_path, MODEL, EXAMPLE)
    start = [] if init else ["before phase 1"]
    assert list(found) == [*start, "after phase 1 (high)", "after phase 2 (both)"]
    for stage, end in zip(opened_study.phase_ends(found), ends, strict=True):
        jax.tree.map(np.testing.assert_array_equal, stage, end)
    if start:
        fitted = fit_weight_steps(fresh["params"], structure_of(MODEL, EXAMPLE), "low")
        jax.tree.map(np.testing.assert_array_equal, found[start[0]]["params"], fitted)
