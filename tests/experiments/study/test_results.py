"""The statistics of a study, and its tables and plots."""

import json
import shlex
import shutil
from pathlib import Path

import pytest

from experiments.study.courses import course_of, plot_courses
from experiments.study.matrix import METHODS, Matrix, Run, base_settings, config_of, matrix_of
from experiments.study.plans import PLANS
from experiments.study.results import collect, spread
from experiments.study.study import run_study, write_results
from experiments.study.tables import ablation_table, pair_table, plot_pair, report

PLAN = PLANS["quick"]
BASE = base_settings(PLAN, {})
SHOWN = Path(__file__).parents[3] / "notebooks" / "study-quick"
ABOUT = {"command": "study", "preset": "quick", "model": "m", "dataset": "d"}


@pytest.fixture
def collected(tmp_path, make_study):
    matrix = matrix_of(PLAN, BASE, 3, [PLAN.main], METHODS)
    make_study(tmp_path / "cells", matrix, two_phase=2.0)
    return collect(matrix, tmp_path / "cells", ABOUT, lambda run: ["train", run.name])


def test_spread_is_students():
    value = spread([1.0, 2.0, 3.0])
    assert (value["mean"], value["sd"]) == (2.0, 1.0)
    # t(0.975, 2 degrees of freedom) = 4.30265, from a table
    assert value["interval"] == pytest.approx(
        [2 - 4.30265 / 3**0.5, 2 + 4.30265 / 3**0.5], abs=1e-5
    )
    assert spread([5.0])["interval"] is None


def test_gaps_are_paired_by_seed(collected):
    method = collected["pairs"][0]["methods"]["two_phase joint"]
    # Its twins sit in the rows "high" of two single-mode runs: 70 + seed.
    assert method["accuracy"]["test"]["low"]["mean"] == pytest.approx(63.0)
    assert method["gap"]["test"]["low"]["values"] == pytest.approx([-8.0] * 3)
    assert method["gap"]["test"]["high"]["values"] == pytest.approx([2.0] * 3)
    assert method["gap"]["test"]["worse"]["interval"] == pytest.approx([-8.0, -8.0])
    methods = collected["pairs"][0]["methods"]
    assert not methods["float"]["gap"]
    lead = collected["pairs"][0]["ours_less"]["joint"]["test"]
    assert lead["low"]["values"] == pytest.approx([2.0] * 3)


def test_what_is_the_twin_has_no_gap_to_it(collected):
    methods = collected["pairs"][0]["methods"]
    for method in ("truncate", "truncate re-estimated"):
        assert methods[method]["cost"] == 3
        assert set(methods[method]["accuracy"]["test"]) == {"low", "high"}
        assert "low" in methods[method]["gap"]["test"]
    assert "high" not in methods["truncate"]["gap"]["test"], "it is the twin"


def test_every_run_links_to_its_config_and_checkpoint(collected, tmp_path):
    assert not collected["missing"]
    for links in collected["runs"].values():
        assert (tmp_path / links["config"]).is_file()
        assert (tmp_path / links["checkpoint"]).is_dir()
    json.dumps(collected, allow_nan=False)


def test_checkpoints_may_be_deleted_to_save_space(tmp_path, make_study):
    matrix = matrix_of(PLAN, BASE, 1, [PLAN.main], ["twins", "joint"])
    make_study(tmp_path / "cells", matrix)
    for run in matrix.runs:
        shutil.rmtree(tmp_path / "cells" / run.name / "checkpoints")
    logged = next(run.name for run in matrix.runs if run.config.mode == "joint")
    (tmp_path / "cells" / logged / "metrics.jsonl").write_text('{"step": 7, "epoch": 1}\n')
    found = collect(matrix, tmp_path / "cells", ABOUT, lambda _: [])
    assert not found["missing"]
    assert {run["checkpoint"] for run in found["runs"].values()} == {None}
    methods = found["pairs"][0]["methods"]
    assert [methods[name]["updates"] for name in ("joint", "twins")] == [7, None]
    assert "| joint " in report(found)


def test_the_command_of_a_run_can_be_typed_again(tmp_path, make_study):
    matrix = matrix_of(PLAN, BASE, 1, [PLAN.main], ["twins"])
    make_study(tmp_path, matrix)
    words = ["python", "-m", "experiments.cifar", "--set=choices=w1a1 w2a2", "--init=my net"]
    runs = collect(matrix, tmp_path, ABOUT, lambda _: words)["runs"]
    assert [shlex.split(run["command"]) for run in runs.values()] == [words] * len(runs)


def test_a_study_under_way_shows_what_is_finished(tmp_path, make_study):
    both = matrix_of(PLAN, BASE, 2, [PLAN.main], ["twins", "joint"])
    make_study(tmp_path, matrix_of(PLAN, BASE, 1, [PLAN.main], ["twins", "joint"]))
    results = collect(both, tmp_path, ABOUT, lambda _: [])
    assert results["pairs"][0]["methods"]["joint"]["seeds"] == [0]
    assert "joint-w2a2-w8a8-seed1" in results["missing"]
    assert "Not finished: " in report(results)


def test_ablations_show_validation_alone(tmp_path):
    config = config_of(BASE, PLAN.main, 0, "two_phase")
    runs = {name: Run(name, config, ablation=True) for name in ("as", "less")}
    for name, value in (("as", 70.0), ("less", 68.5)):
        (tmp_path / name / "checkpoints" / "1").mkdir(parents=True)
        rows = [{"mode": mode, "validation": value} for mode in ("low", "high")]
        (tmp_path / name / "results.json").write_text(json.dumps({"rows": rows}))
    matrix = Matrix("quick", [], {name: (run, "as") for name, run in runs.items()})
    found = collect(matrix, tmp_path, ABOUT, lambda _: [])["ablations"]
    assert [row["change"]["low"] for row in found] == [0.0, -1.5]
    rows = cells_of(ablation_table(found))
    assert rows[2:] == [["as", "-", "70.00", "70.00"], ["less", "as", *["68.50 (-1.50)"] * 2]]


def test_ablations_are_named_by_their_own_pair(tmp_path, make_study):
    """They are of the main pair, whichever pairs the tables are asked for."""
    matrix = matrix_of(PLAN, BASE, 1, [("w4a4", "w8a8")], ["twins"], ablations=True)
    assert matrix.ablation_pair == PLAN.main
    make_study(tmp_path, matrix)
    for run, _ in matrix.ablations.values():  # which no row of the tables reads
        rows = [{"mode": mode, "validation": 70.0} for mode in ("low", "high")]
        (tmp_path / run.name / "results.json").write_text(json.dumps({"rows": rows}))
    found = collect(matrix, tmp_path, ABOUT, lambda _: [])
    assert "\nlow w2a2, high w8a8, seed 0, validation accuracy alone" in report(found)
    assert matrix_of(PLAN, BASE, 1, None, ["twins"]).ablation_pair is None


def test_without_differences_there_is_no_heading_for_them(tmp_path, make_study):
    matrix = matrix_of(PLAN, BASE, 1, [PLAN.main], ["float", "two_phase joint"])
    make_study(tmp_path, matrix)
    assert "Paired differences" not in report(collect(matrix, tmp_path, ABOUT, lambda _: []))


def cells_of(table: str) -> list[list[str]]:
    """The cells of every line of a table."""
    return [[run.strip() for run in line.split("|")[1:-1]] for line in table.splitlines()]


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


def test_a_study_that_only_reads_leaves_its_results(tmp_path, make_study):
    """--run=false: nothing is trained, and what is there makes tables, numbers and pictures."""
    matrix = matrix_of(PLAN, BASE, 2, [PLAN.main], ["twins", "two_phase joint"])
    make_study(tmp_path / "cells", matrix_of(PLAN, BASE, 1, [PLAN.main], ["twins"]))
    text = run_study(matrix, tmp_path, as_typed="study --seeds=2", train=False)
    assert "| twins " in text
    assert "Not finished: " in text
    assert (tmp_path / "results.md").read_text() == text
    found = json.loads((tmp_path / "results.json").read_text())
    assert (found["command"], found["preset"]) == ("study --seeds=2", "quick")
    assert (found["model"], found["dataset"]) == ("resnet8_fast", "cifar10")
    assert "two_phase-joint-w2a2-w8a8-seed0" in found["missing"]
    assert {path.suffix for path in tmp_path.glob("w2a2-w8a8.*")} == {".png", ".svg"}


def test_plots_show_the_results_beside_them(tmp_path, make_study):
    """Those of pairs that a later start leaves out are deleted; no other file is."""

    def start(pairs):
        matrix = matrix_of(PLAN, BASE, 1, pairs, ["twins"])
        make_study(tmp_path / "cells", matrix)
        write_results(collect(matrix, tmp_path / "cells", ABOUT, lambda _: []), tmp_path)
        shutil.rmtree(tmp_path / "cells")
        return {path.name for path in tmp_path.iterdir() if path.suffix in (".png", ".svg")}

    mine = {"w2a2-w4a4-mine.png", "w1a1-w2a2.png"}
    for name in (*mine, "w4a4-w8a8-courses.png"):
        (tmp_path / name).touch()
    both = {f"{stem}{end}" for stem in ("w2a2-w4a4", "w4a4-w8a8") for end in (".png", ".svg")}
    assert start([("w2a2", "w4a4"), ("w4a4", "w8a8")]) == both | mine, "no course was logged"
    assert start([("w4a4", "w8a8")]) == {"w4a4-w8a8.png", "w4a4-w8a8.svg"} | mine
    (tmp_path / "results.json").write_text("[]")
    assert start([("w2a2", "w8a8")]) > mine


def test_both_cuts_are_named_for_what_they_are(collected):
    text = report(collected)
    for method in ("truncate", "truncate re-estimated"):
        assert f"\n| {method} " in text
        assert f"\n- `{method}`: " in text, "the legend says what it is"
    assert "estimated again, on 20 training batches" in text


def test_the_study_that_is_shown_is_what_its_numbers_give():
    results = json.loads((SHOWN / "results.json").read_text())
    assert (SHOWN / "results.md").read_text() == report(results)


def test_courses_of_twins_and_of_both(collected, tmp_path):
    """A twin runs its width as "high", and two of them cost twice what each does by then."""
    pair, runs = collected["pairs"][0], collected["runs"]
    assert not plot_courses(collected, pair, tmp_path / "none.png"), "nothing was logged"
    records = [
        {"epoch": epoch, "validation_high_accuracy": 0.5 + epoch / 100} for epoch in (1, 2, 3)
    ]
    twin = config_of(BASE, ("w2a2", "w2a2"), 0, "high")
    course = course_of(twin, records)
    assert course[-1] == {"passes": 3, "high": 53.0}
    both = config_of(BASE, PLAN.main, 0, "joint", split=False)
    assert course_of(both, records)[0]["passes"] == 2
    for run in runs.values():
        run["course"] = course
    assert plot_courses(collected, pair, tmp_path / "courses.png")
    assert (tmp_path / "courses.png").read_bytes().startswith(b"\x89PNG")
