"""What a study finds on the disk: runs that stay, runs that are trained again, and room."""

import pytest

from experiments.study import disk
from experiments.study.matrix import base_settings, matrix_of
from experiments.study.plans import PLANS
from experiments.study.runner import finished
from experiments.workdir import only_user

PLAN = PLANS["quick"]
BASE = base_settings(PLAN, {})
NAME = "joint-w2a2-w8a8-seed0"


def test_a_changed_matrix_says_what_stays_and_what_runs_again(tmp_path, capsys, make_study):
    matrix = matrix_of(PLAN, BASE, 1, [PLAN.main], ["twins", "joint"])
    make_study(tmp_path, matrix)
    longer = base_settings(PLAN, {"passes": 8.0})
    runs = matrix_of(PLAN, longer, 1, [PLAN.main], ["joint"]).runs
    disk.sort_out(matrix.runs, tmp_path)
    assert "keeps 3 runs" in capsys.readouterr().out
    with pytest.raises(
        ValueError, match=r"1 runs in .* were trained with other settings, joint-w2a2"
    ):
        disk.sort_out(runs, tmp_path, train=False)
    capsys.readouterr()
    disk.sort_out(runs, tmp_path)
    out = capsys.readouterr().out
    assert "keeps 0 runs" in out
    assert f"trains {NAME} again: passes was 6.0, is 8.0" in out
    assert "2 runs are not in this matrix and stay unread" in out
    assert not (tmp_path / NAME).exists()
    assert finished(tmp_path / f"{NAME}.replaced1")


def test_what_was_set_aside_stays_whatever_its_owner_has_deleted(tmp_path, make_study):
    base, name = tmp_path / NAME, f"{NAME}.replaced"
    (tmp_path / f"{name}2").mkdir()
    (tmp_path / f"{name}2" / "old").touch()
    for number, passes in ((1, 8.0), (3, 10.0)):
        make_study(tmp_path, matrix_of(PLAN, BASE, 1, [PLAN.main], ["joint"]))
        longer = base_settings(PLAN, {"passes": passes})
        disk.sort_out(matrix_of(PLAN, longer, 1, [PLAN.main], ["joint"]).runs, tmp_path)
        assert not base.exists()
        assert finished(tmp_path / f"{name}{number}")
    assert (tmp_path / f"{name}2" / "old").exists()


def test_a_run_that_another_process_writes_is_not_moved(tmp_path, make_study):
    """Its lock would move too, and two processes would write into the folder of that name."""
    make_study(tmp_path, matrix_of(PLAN, BASE, 1, [PLAN.main], ["twins", "joint"]))
    longer = base_settings(PLAN, {"passes": 8.0})
    runs = matrix_of(PLAN, longer, 1, [PLAN.main], ["twins", "joint"]).runs
    says = rf"{NAME} is in use by another process, with other settings \(passes was 6.0, is 8.0\)"
    with only_user(tmp_path / NAME), pytest.raises(ValueError, match=says):
        disk.sort_out(runs, tmp_path)
    assert all(finished(tmp_path / run.name) for run in runs), "none is moved"
    disk.sort_out(runs, tmp_path)
    assert finished(tmp_path / f"{NAME}.replaced1")


def test_too_little_room_is_said_before_anything_runs(tmp_path, monkeypatch):
    class Digits:
        num_classes, image_shape = 10, (8, 8, 1)

    plan = PLANS["digits"]
    runs = matrix_of(plan, base_settings(plan, {}), 1, None, ["twins"]).runs
    usage = disk.shutil.disk_usage(tmp_path)._replace(free=1)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OSError, match=r"MiB may be needed in .* make room"):
        disk.check_room(runs, 2, Digits(), tmp_path)
