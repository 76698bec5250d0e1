"""The study: its matrix, its runs side by side, its statistics, its resume."""

import dataclasses
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from absl import flags
from experiments.recipes.recipes import fields_without_effect, passes_of

from experiments import cli
from experiments.recipes.config import Config, make_config
from experiments.study import __main__ as study
from experiments.study import results as evidence
from experiments.study import runner
from experiments.study.matrix import (
    METHODS,
    PLANS,
    Cell,
    Entry,
    ablation_cells,
    base_config,
    cells_of,
    entries,
    read_pairs,
)
from experiments.study.tables import ablation_table, pair_table, plot_pair, report
from experiments.workdir import differences, only_user

ROOT = Path(__file__).parents[2]
PLAN = PLANS["quick"]
BASE = base_config(PLAN, {})
PAIRS = [PLAN.main, *PLAN.others]
ROWS = entries(PLAN, BASE, 3, PAIRS, METHODS)
CELLS = cells_of(ROWS, ablation_cells(PLAN, BASE).values())


# -- the matrix ------------------------------------------------------------------------------------


def test_twins_together_cost_what_one_dual_network_costs():
    for row in ROWS:
        if row.method not in ("float", "truncate", "long twins"):
            assert row.cost == BASE.passes, row.method
        if row.method == "long twins":
            assert row.cost == 2 * BASE.passes, "the whole cost for each of the two"


def test_the_main_pair_has_every_seed_and_the_others_one():
    seeds = {pair: {row.seed for row in ROWS if row.pair == pair} for pair in PAIRS}
    assert seeds == {PLAN.main: {0, 1, 2}, **{pair: {0} for pair in PLAN.others}}


def test_twins_are_shared_among_pairs():
    low = {r.pair: r.sources["low"][0] for r in ROWS if r.method == "long twins" and r.seed == 0}
    high = {r.pair: r.sources["high"][0] for r in ROWS if r.method == "long twins" and r.seed == 0}
    assert low["w4a4", "w8a8"] == high["w2a2", "w4a4"] == high["w1a4", "w4a4"]
    assert len({cell.name for cell in CELLS}) == len(CELLS)


def test_a_setting_does_not_reach_the_recipes_that_have_no_use_for_it():
    base = base_config(PLAN, {"first_share": 0.9})
    configs = {
        row.method: next(iter(row.sources.values()))[0].config
        for row in entries(PLAN, base, 1, [PLAN.main], METHODS)
    }
    assert configs["two_phase joint"].first_share == 0.9
    assert configs["joint"].first_share == configs["float"].first_share == Config().first_share


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
def test_a_cells_command_gives_its_config(cell, tmp_path):
    if "mode" not in flags.FLAGS:
        cli.define_flags()
    line = runner.command(cell, "quick", tmp_path)
    flags.FLAGS(["cifar", *line[3:]])
    try:
        assert cli.read_config() == (cell.config, "quick")
        assert flags.FLAGS.test is not cell.ablation
    finally:
        for flag in flags.FLAGS.get_flags_for_module(cli.__name__):
            flag.unparse()


def test_ablations_change_one_thing_each():
    cells = ablation_cells(PLAN, BASE)
    for title, cell in cells.items():
        own = dataclasses.asdict(cell.config)
        start = dataclasses.asdict(cells[PLAN.ablations[title].against].config)
        changed = {name for name in own if own[name] != start[name]}
        changed -= fields_without_effect(cell.config)
        if own["split"] != start["split"]:
            changed -= {"distillation"}  # which split batches cannot have
        assert len(changed) == (title != "as it is"), title


def test_an_ablation_that_is_in_the_tables_is_not_trained_again():
    cells = ablation_cells(PLAN, BASE)
    rows = {row.method: row for row in ROWS if row.pair == PLAN.main and row.seed == 0}
    assert cells["as it is"] == rows["two_phase joint"].sources["low"][0]
    known = cells["no phase 1: split batches from the start"]
    assert known == rows["joint split"].sources["low"][0]


def test_cost_is_of_the_epochs_that_are_run():
    odd = base_config(PLAN, {"passes": 7})
    costs = {r.method: r.cost for r in entries(PLAN, odd, 1, [PLAN.main], METHODS)}
    assert costs["twins"] == 2 * 4, "half of 7 passes, as whole epochs"
    assert costs["joint split"] == 7


def test_wrong_matrices_are_refused():
    with pytest.raises(ValueError, match=r"--set order=...: the study sets it itself"):
        base_config(PLAN, {"order": "refine"})
    with pytest.raises(ValueError, match=r"--pairs 'w2a2': expected low/high"):
        read_pairs("w2a2")
    with pytest.raises(ValueError, match=r"precision 'w9a9'"):
        read_pairs("w2a2/w8a8,w9a9/w8a8")


# -- runs side by side -----------------------------------------------------------------------------

ROW = {"mode": "high", "bits": "w8a8", "validation": 50.0, "test": 40.0}


def cell_named(name: str) -> Cell:
    return Cell(name, make_config("digits", {"mode": "high", "dataset": "digits"}))


def line_that(folder: Path, broken: str = ""):
    """Stands for training: writes results, or fails where the cell is the broken one."""

    def line(cell: Cell) -> list[str]:
        if cell.name == broken:
            return ["python", "-c", "print('error: out of luck'); raise SystemExit(3)"]
        path = folder / cell.name / "results.json"
        text = json.dumps({"rows": [ROW]})
        code = f"import pathlib as p; f = p.Path({str(path)!r}); f.parent.mkdir(parents=True)"
        return ["python", "-c", f"{code}; f.write_text({text!r})"]

    return line


def test_a_failed_cell_is_reported_and_the_rest_goes_on(tmp_path, capsys):
    cells = [cell_named(name) for name in ("a", "b", "c")]
    calls = []
    line = line_that(tmp_path, broken="b")
    failures = runner.run_cells(cells, tmp_path, 2, line, lambda: calls.append(1))
    assert list(failures) == ["b"]
    assert "exit status 3: error: out of luck" in failures["b"]
    assert [runner.finished(tmp_path / name) for name in "abc"] == [True, False, True]
    assert len(calls) == 3, "results are written after every cell"
    assert "b FAILED" in capsys.readouterr().out
    mended = runner.run_cells(cells, tmp_path, 2, line_that(tmp_path), lambda: None)
    assert not mended, "the failed one is tried again, alone"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="prctl is Linux's")
def test_a_killed_study_takes_its_cells_with_it(tmp_path):
    code = """
import pathlib, sys
from experiments.study import runner
from tests.test_study import cell_named
folder = pathlib.Path(sys.argv[1])
sleep = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
runner.run_cells([cell_named("a")], folder, 1, lambda _: ["python", "-c", sleep], lambda: None)
"""
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT)
    log = tmp_path / "a.log"
    wait_until(lambda: log.exists() and log.read_text().split("\n")[-2:][0].isdigit())
    process.kill()
    process.wait()
    cell = Path("/proc") / log.read_text().splitlines()[-1]
    wait_until(lambda: not cell.exists() or " Z " in (cell / "stat").read_text())


def wait_until(true) -> None:
    until = time.monotonic() + 120
    while not true():
        assert time.monotonic() < until, "waited too long"
        time.sleep(0.05)


def test_an_error_here_stops_the_running_cells(tmp_path):
    def line(cell: Cell) -> list[str]:
        if cell.name == "quick":
            return ["python", "-c", ""]
        return ["python", "-c", "import time, os; print(os.getpid(), flush=True); time.sleep(600)"]

    def after():
        raise OSError("disk full")

    cells = [cell_named("slow"), cell_named("quick")]
    with pytest.raises(OSError, match="disk full"):
        runner.run_cells(cells, tmp_path, 2, line, after)
    slow = (tmp_path / "slow.log").read_text().splitlines()[1:]
    assert all(not Path(f"/proc/{pid}").exists() for pid in slow)


# -- statistics ------------------------------------------------------------------------------------


ABOUT = {"command": "study", "preset": "quick", "model": "m", "dataset": "d"}


def fake_study(folder: Path, rows: list[Entry], **changes: float) -> None:
    """Results for every cell: chance figures that only depend on the cell's name."""
    for cell in cells_of(rows, []):
        modes = [mode for row in rows for c, mode in row.sources.values() if c == cell]
        workdir = folder / cell.name
        (workdir / "checkpoints" / "7").mkdir(parents=True)
        (workdir / "config.json").write_text(
            json.dumps({"experiment": dataclasses.asdict(cell.config)})
        )
        by_mode = {
            m: 60.0 + 10 * (m == "high") + cell.config.seed + changes.get(cell.config.mode, 0)
            for m in modes
        }
        results = [
            {"mode": mode, "bits": "-", "validation": value + 1, "test": value}
            for mode, value in by_mode.items()
        ]
        (workdir / "results.json").write_text(json.dumps({"rows": results}))


@pytest.fixture
def collected(tmp_path):
    rows = entries(PLAN, BASE, 3, [PLAN.main], METHODS)
    fake_study(tmp_path / "cells", rows, two_phase=2.0)
    return evidence.collect(rows, {}, tmp_path / "cells", ABOUT, lambda cell: ["train", cell.name])


def test_spread_is_students():
    value = evidence.spread([1.0, 2.0, 3.0])
    assert (value["mean"], value["sd"]) == (2.0, 1.0)
    # t(0.975, 2 degrees of freedom) = 4.30265, from a table
    assert value["interval"] == pytest.approx(
        [2 - 4.30265 / 3**0.5, 2 + 4.30265 / 3**0.5], abs=1e-5
    )
    assert evidence.spread([5.0])["interval"] is None


def test_gaps_are_paired_by_seed(collected):
    method = collected["pairs"][0]["methods"]["two_phase joint"]
    # Its twins sit in the rows "high" of two single-mode runs: 70 + seed.
    assert method["accuracy"]["test"]["low"]["mean"] == pytest.approx(63.0)
    assert method["gap"]["test"]["low"]["values"] == pytest.approx([-8.0] * 3)
    assert method["gap"]["test"]["high"]["values"] == pytest.approx([2.0] * 3)
    assert method["gap"]["test"]["worse"]["interval"] == pytest.approx([-8.0, -8.0])
    methods = collected["pairs"][0]["methods"]
    assert not methods["float"]["gap"]
    assert "high" not in methods["truncate"]["gap"]["test"], "it is the twin"
    lead = collected["pairs"][0]["ours_less"]["joint"]["test"]
    assert lead["low"]["values"] == pytest.approx([2.0] * 3)


def test_every_cell_links_to_its_config_and_checkpoint(collected, tmp_path):
    assert not collected["missing"]
    for links in collected["cells"].values():
        assert (tmp_path / links["config"]).is_file()
        assert (tmp_path / links["checkpoint"]).is_dir()
    json.dumps(collected, allow_nan=False)


def test_a_study_under_way_shows_what_is_finished(tmp_path):
    rows = entries(PLAN, BASE, 2, [PLAN.main], ["twins", "joint"])
    fake_study(tmp_path, [row for row in rows if row.seed == 0])
    results = evidence.collect(rows, {}, tmp_path, ABOUT, lambda _: [])
    assert results["pairs"][0]["methods"]["joint"]["seeds"] == [0]
    assert "joint-w2a2-w8a8-seed1" in results["missing"]
    assert "Not finished: " in report(results)


def test_ablations_show_validation_alone(tmp_path):
    cells = {name: Cell(name, dataclasses.replace(BASE), ablation=True) for name in ("as", "less")}
    for name, value in (("as", 70.0), ("less", 68.5)):
        (tmp_path / name / "checkpoints" / "1").mkdir(parents=True)
        rows = [{"mode": mode, "validation": value} for mode in ("low", "high")]
        (tmp_path / name / "results.json").write_text(json.dumps({"rows": rows}))
    against = {name: (cell, "as") for name, cell in cells.items()}
    found = evidence.collect([], against, tmp_path, ABOUT, lambda _: [])["ablations"]
    assert [row["change"]["low"] for row in found] == [0.0, -1.5]
    assert "| less | as | 68.50 (-1.50) | 68.50 (-1.50) |" in ablation_table(found)


def test_the_table_and_the_plots(collected, tmp_path):
    pair = collected["pairs"][0]
    lines = pair_table(pair).splitlines()
    assert len(lines) == 2 + len(METHODS)
    assert len({line.count("|") for line in lines}) == 1
    row = next(line for line in lines if "two_phase joint" in line)
    assert "63.00 ± 1.00" in row
    assert "+2.00 [+2.00, +2.00]" in row
    png, svg = plot_pair(pair, tmp_path / "plot")
    assert png.read_bytes().startswith(b"\x89PNG")
    first = svg.read_bytes()
    assert plot_pair(pair, tmp_path / "plot")[1].read_bytes() == first, "the same figure, each time"


# -- resume, and who may use the folder ------------------------------------------------------------


def test_a_changed_matrix_says_what_stays_and_what_runs_again(tmp_path, capsys):
    rows = entries(PLAN, BASE, 1, [PLAN.main], ["twins", "joint"])
    fake_study(tmp_path, rows)
    longer = base_config(PLAN, {"passes": 8})
    cells = cells_of(entries(PLAN, longer, 1, [PLAN.main], ["joint"]), [])
    study.sort_out(cells_of(rows, []), tmp_path)
    assert "keeps 3 cells" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"1 cells in .* were run with other settings, joint-w2a2"):
        study.sort_out(cells, tmp_path, run=False)
    capsys.readouterr()
    study.sort_out(cells, tmp_path)
    out = capsys.readouterr().out
    assert "keeps 0 cells" in out
    assert "runs joint-w2a2-w8a8-seed0 again: passes was 6.0, is 8" in out
    assert "2 cells are not in this matrix and stay unread" in out
    assert not (tmp_path / "joint-w2a2-w8a8-seed0").exists()
    assert runner.finished(tmp_path / "joint-w2a2-w8a8-seed0.replaced1")


def test_only_fields_that_matter_make_another_run(tmp_path):
    path = tmp_path / "config.json"
    old = dataclasses.asdict(Config(mode="joint", split=False))
    del old["split"]  # as in runs from before there was a choice
    path.write_text(json.dumps({"experiment": old}))
    assert not differences(path, dataclasses.asdict(Config(mode="joint", split=False)))
    assert not differences(
        path, dataclasses.asdict(Config(mode="joint", split=False, distillation=0.1))
    )
    assert list(differences(path, dataclasses.asdict(Config(mode="joint")))) == ["split"]


HOLD = """
import fcntl, sys, time
with open(sys.argv[1], "a") as handle:
    fcntl.flock(handle, fcntl.LOCK_EX)
    print("held", flush=True)
    time.sleep(600)
"""


def test_one_process_at_a_time_and_the_lock_survives_a_crash(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / ".lock")], stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(ValueError, match="in use by another process"), only_user(tmp_path):
            pass
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    with only_user(tmp_path):
        pass


def test_too_little_room_is_said_before_anything_runs(tmp_path, monkeypatch):
    class Digits:
        num_classes, image_shape = 10, (8, 8, 1)

    base = base_config(PLANS["digits"], {})
    usage = study.shutil.disk_usage(tmp_path)._replace(free=1)
    monkeypatch.setattr(study.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OSError, match=r"MiB may be needed in .* make room"):
        study.check_room([cell_named("a")] * 9, 2, base, Digits(), tmp_path)


def test_passes_done_follow_the_log(tmp_path):
    config = dataclasses.replace(BASE, mode="two_phase", split=False, first_share=1 / 3)
    assert runner.passes_done(config, tmp_path) == 0
    for epoch, done in ((1, 1), (2, 2), (3, 4), (4, 6)):  # 2 epochs of high, then 2 of both
        (tmp_path / "metrics.jsonl").write_text(json.dumps({"epoch": epoch, "step": 1}) + "\n")
        assert runner.passes_done(config, tmp_path) == done
    assert passes_of(config) == 6
