"""What a study finds on the disk: cells that stay, cells that run again, and room."""

import json

import pytest

from experiments.study import disk
from experiments.study.matrix import base_settings, matrix_of
from experiments.study.plans import PLANS
from experiments.study.runner import finished
from experiments.workdir import config_of_run, differences

PLAN = PLANS["quick"]
BASE = base_settings(PLAN, {})
NAME = "joint-w2a2-w8a8-seed0"


def test_a_changed_matrix_says_what_stays_and_what_runs_again(tmp_path, capsys, make_study):
    matrix = matrix_of(PLAN, BASE, 1, [PLAN.main], ["twins", "joint"])
    make_study(tmp_path, matrix)
    longer = base_settings(PLAN, {"passes": 8.0})
    cells = matrix_of(PLAN, longer, 1, [PLAN.main], ["joint"]).cells
    disk.sort_out(matrix.cells, tmp_path)
    assert "keeps 3 cells" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"1 cells in .* were run with other settings, joint-w2a2"):
        disk.sort_out(cells, tmp_path, run=False)
    capsys.readouterr()
    disk.sort_out(cells, tmp_path)
    out = capsys.readouterr().out
    assert "keeps 0 cells" in out
    assert f"runs {NAME} again: passes was 6.0, is 8.0" in out
    assert "2 cells are not in this matrix and stay unread" in out
    assert not (tmp_path / NAME).exists()
    assert finished(tmp_path / f"{NAME}.replaced1")


def test_what_was_set_aside_stays_whatever_its_owner_has_deleted(tmp_path, make_study):
    base, name = tmp_path / NAME, f"{NAME}.replaced"
    (tmp_path / f"{name}2").mkdir()
    (tmp_path / f"{name}2" / "old").touch()
    for number, passes in ((1, 8.0), (3, 10.0)):
        make_study(tmp_path, matrix_of(PLAN, BASE, 1, [PLAN.main], ["joint"]))
        longer = base_settings(PLAN, {"passes": passes})
        disk.sort_out(matrix_of(PLAN, longer, 1, [PLAN.main], ["joint"]).cells, tmp_path)
        assert not base.exists()
        assert finished(tmp_path / f"{name}{number}")
    assert (tmp_path / f"{name}2" / "old").exists()


# config.json of an earlier version: every field of every recipe, whatever the recipe read.
FLAT = {
    "mode": "two_phase",
    "order": "joint",
    "low": "w2a2",
    "high": "w8a8",
    "model": "resnet8_fast",
    "dataset": "cifar10",
    "seed": 0,
    "batch_size": 128,
    "passes": 6.0,
    "learning_rate": 0.1,
    "step_learning_rate": 0.01,
    "weight_decay": 0.0005,
    "warmup": 0.1,
    "label_smoothing": 0.0,
    "split": True,
    "distillation": 0.5,
    "first_share": 0.5,
    "first_final": 0.7,
    "polish_share": 0.0,
    "second_rate": 0.7,
    "refine_rate": 0.2,
    "steps_per_dispatch": 0,
    "epochs_per_evaluation": 1,
}
THIRD = {"first_share": 0.33}
BEFORE = {
    "float-seed0": {"mode": "float"},
    "twin-w2a2-seed0": {"mode": "high", "high": "w2a2"},
    "truncate-w2a2-w8a8-seed0": {"mode": "truncate"},
    "twin-half_batch-w8a8-seed0": {"mode": "high", "low": "w8a8", "batch_size": 64},
    "long_twin-w2a2-seed0": {"mode": "high", "high": "w2a2", "passes": 12.0},
    "joint-w2a2-w8a8-seed0": {"mode": "joint", "split": False},
    "joint-split-w2a2-w8a8-seed0": {"mode": "joint"},
    "two_phase-refine-w2a2-w8a8-seed0": {"order": "refine"},
    "two_phase-joint-w2a2-w8a8-seed0": {},
    "ablation-first_share=0.33-split=False": {**THIRD, "split": False},
    "ablation-first_share=0.33-split=False-distillation=0.0": {
        **THIRD,
        "split": False,
        "distillation": 0.0,
    },
}


@pytest.mark.parametrize("name", BEFORE)
def test_cells_of_before_are_kept(name, tmp_path):
    (cell,) = [cell for cell in matrix_of(PLAN, BASE, 1).cells if cell.name == name]
    path = tmp_path / "config.json"

    def changed(**fields: object) -> list[str]:
        path.write_text(json.dumps({"experiment": {**FLAT, **BEFORE[name], **fields}}))
        return list(differences(path, cell.config.to_json()))

    assert not changed()
    assert config_of_run(tmp_path) == cell.config
    assert changed(seed=1) == ["seed"]
    assert changed(learning_rate=0.2, passes=7.0) == ["learning_rate", "passes"]
    reads = "first_share" in cell.config.to_json()
    assert changed(first_share=0.9) == (["first_share"] if reads else [])


def test_fields_that_did_not_exist_yet_were_as_they_are_by_default(tmp_path):
    old = {name: value for name, value in FLAT.items() if name != "split"} | {"mode": "joint"}
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"experiment": old}))
    cells = {cell.name: cell for cell in matrix_of(PLAN, BASE, 1).cells}
    assert not differences(path, cells["joint-w2a2-w8a8-seed0"].config.to_json())
    split = cells["joint-split-w2a2-w8a8-seed0"].config.to_json()
    assert differences(path, split) == {"split": (False, True)}


def test_a_cell_that_an_earlier_version_left_unfinished_runs_again(tmp_path, capsys, make_study):
    """Its accuracy is worth as much as ever; its optimizer state is of no use."""
    matrix = matrix_of(PLAN, BASE, 1, [PLAN.main], ["joint"])
    make_study(tmp_path, matrix)
    path = tmp_path / NAME / "config.json"
    path.write_text(json.dumps({"experiment": {**FLAT, **BEFORE[NAME]}, "network": {}}))
    disk.sort_out(matrix.cells, tmp_path)
    assert "keeps 1 cells" in capsys.readouterr().out
    (tmp_path / NAME / "results.json").unlink()
    disk.sort_out(matrix.cells, tmp_path)
    assert f"runs {NAME} again: an earlier version began it" in capsys.readouterr().out
    assert not (tmp_path / NAME).exists()


def test_too_little_room_is_said_before_anything_runs(tmp_path, monkeypatch):
    class Digits:
        num_classes, image_shape = 10, (8, 8, 1)

    plan = PLANS["digits"]
    cells = matrix_of(plan, base_settings(plan, {}), 1, None, ["twins"]).cells
    usage = disk.shutil.disk_usage(tmp_path)._replace(free=1)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OSError, match=r"MiB may be needed in .* make room"):
        disk.check_room(cells, 2, Digits(), tmp_path)
