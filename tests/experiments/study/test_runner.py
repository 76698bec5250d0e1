"""Cells side by side: failures, ends, how far they are."""

import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from experiments.recipes.config import make_config
from experiments.study import runner, study
from experiments.study.matrix import Run, base_settings, matrix_of
from experiments.study.plans import PLANS

ROOT = Path(__file__).parents[3]
ROW = {"mode": "high", "bits": "w8a8", "validation": 50.0, "test": 40.0}


def run_named(name: str) -> Run:
    return Run(name, make_config("digits", {"mode": "high", "dataset": "digits"}))


def line_that(folder: Path, broken: str = ""):
    """Stands for training: writes results, or fails where the run is the broken one."""

    def line(run: Run) -> list[str]:
        if run.name == broken:
            return ["python", "-c", "print('error: out of luck'); raise SystemExit(3)"]
        path = folder / run.name / "results.json"
        text = json.dumps({"rows": [ROW]})
        code = f"import pathlib as p; f = p.Path({str(path)!r}); f.parent.mkdir(parents=True)"
        return ["python", "-c", f"{code}; f.write_text({text!r})"]

    return line


def test_a_failed_run_is_reported_and_the_rest_goes_on(tmp_path, capsys):
    runs = [run_named(name) for name in ("a", "b", "c")]
    calls = []
    line = line_that(tmp_path, broken="b")
    failures = runner.train_side_by_side(runs, tmp_path, 2, line, lambda: calls.append(1))
    assert list(failures) == ["b"]
    assert "exit status 3: error: out of luck" in failures["b"]
    started = (tmp_path / "b.log").read_text().splitlines()[0]
    assert shlex.split(started) == ["$", *line(runs[1])], "it can be typed again"
    assert [runner.finished(tmp_path / name) for name in "abc"] == [True, False, True]
    assert len(calls) == 3, "results are written after every run"
    assert "b FAILED" in capsys.readouterr().out
    mended = runner.train_side_by_side(runs, tmp_path, 2, line_that(tmp_path), lambda: None)
    assert not mended, "the failed one is tried again, alone"


@pytest.mark.parametrize(("init", "said"), [({}, 1), ({"init": "trained"}, 0)])
def test_a_study_says_once_that_its_preset_is_for_a_trained_network(
    tmp_path, monkeypatch, capsys, init, said
):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    for name in ("check_room", "train_side_by_side"):
        monkeypatch.setattr(study, name, lambda *_: {})
    plan = PLANS["resnet20"]
    matrix = matrix_of(plan, base_settings(plan, init), 1, [plan.main], ["float", "twins"])
    dataset = SimpleNamespace(train=SimpleNamespace(images=()))
    study.train_missing(matrix, tmp_path, dataset, 1, line_that(tmp_path), lambda: None)
    assert capsys.readouterr().out.count("random weights; --set=init=notebooks/netw") == said


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="prctl is Linux's")
def test_a_killed_study_takes_its_runs_with_it(tmp_path):
    code = """
import pathlib, sys
from experiments.recipes.config import make_config
from experiments.study import runner
from experiments.study.matrix import Run
run = Run("a", make_config("digits", {"mode": "high", "dataset": "digits"}))
folder = pathlib.Path(sys.argv[1])
sleep = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
runner.train_side_by_side([run], folder, 1, lambda _: ["python", "-c", sleep], lambda: None)
"""
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT)
    log = tmp_path / "a.log"
    wait_until(lambda: log.exists() and log.read_text().split("\n")[-2:][0].isdigit())
    process.kill()
    process.wait()
    run = Path("/proc") / log.read_text().splitlines()[-1]
    wait_until(lambda: not run.exists() or " Z " in (run / "stat").read_text())


def wait_until(true) -> None:
    until = time.monotonic() + 120
    while not true():
        assert time.monotonic() < until, "waited too long"
        time.sleep(0.05)


def test_an_error_here_stops_what_is_running(tmp_path):
    def line(run: Run) -> list[str]:
        if run.name == "quick":
            return ["python", "-c", ""]
        return ["python", "-c", "import time, os; print(os.getpid(), flush=True); time.sleep(600)"]

    def after():
        raise OSError("disk full")

    runs = [run_named("slow"), run_named("quick")]
    with pytest.raises(OSError, match="disk full"):
        runner.train_side_by_side(runs, tmp_path, 2, line, after)
    slow = (tmp_path / "slow.log").read_text().splitlines()[1:]
    assert all(not Path(f"/proc/{pid}").exists() for pid in slow)


def test_passes_done_follow_the_log(tmp_path):
    settings = {"passes": 6.0, "split": False, "first_share": 1 / 3}
    config = make_config("quick", settings)
    assert runner.passes_done(config, tmp_path) == 0
    for epoch, done in ((1, 1), (2, 2), (3, 4), (4, 6)):  # 2 epochs of high, then 2 of both
        (tmp_path / "metrics.jsonl").write_text(json.dumps({"epoch": epoch, "step": 1}) + "\n")
        assert runner.passes_done(config, tmp_path) == done
    assert config.recipe.cost == 6
