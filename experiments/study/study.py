"""One study, from its matrix to its tables: what is there stays, the rest is trained, then read."""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from dual_precision import data
from experiments.recipes.config import note_on_start
from experiments.study.courses import plot_courses
from experiments.study.disk import RUNS_FOLDER, check_room, sort_out
from experiments.study.matrix import Matrix, Run
from experiments.study.results import MODES, collect
from experiments.study.runner import (
    command,
    finished,
    passes_done,
    train_side_by_side,
    usable_cores,
)
from experiments.study.tables import plot_pair, report
from experiments.workdir import only_user, read_json, write_whole

Line = Callable[[Run], list[str]]  # the command of a run
_COURSES = "-courses.png"


def run_study(
    matrix: Matrix,
    workdir: Path,
    *,
    as_typed: str,
    train: bool = True,
    jobs: int = 0,
    data_dir: str | None = None,
    archive: str | None = None,
) -> str:
    """Trains what is missing, and writes the results; returns the tables.

    Args:
      as_typed: the command of the study, for its results.
      train: False only writes the results of what is there.
      jobs: runs at once; 0 chooses.

    Raises:
      ValueError: another process is at it, or runs failed.
      OSError: too little room.
    """
    folder = workdir / RUNS_FOLDER
    extra = [f"--data_dir={data_dir}"] if data_dir else []
    extra += [f"--archive={archive}"] if archive else []

    def line(run: Run) -> list[str]:
        return command(run, matrix.preset, folder / run.name, extra)

    def write() -> str:
        found = collect(matrix, folder, about_of(matrix, as_typed), line)
        return write_results(found, workdir)

    with only_user(workdir):
        sort_out(matrix.runs, folder, train)
        failures = {}
        if train:
            dataset = data.load(common_dataset(matrix), data_dir=data_dir, archive=archive)
            failures = train_missing(matrix, folder, dataset, jobs, line, write)
        text = write()
    if failures:
        listed = "; ".join(f"{name}: {why}" for name, why in failures.items())
        print(text)
        raise ValueError(
            f"{len(failures)} of {len(matrix.runs)} runs failed: {listed}."
            " Start the same command again to try them again"
        )
    return text


def about_of(matrix: Matrix, as_typed: str) -> dict[str, str]:
    """What the results say of the study as a whole."""
    config = matrix.runs[0].config  # of model and data set all runs have the same
    about = {"command": as_typed, "preset": matrix.preset}
    return {**about, "model": config.model, "dataset": config.dataset}


def common_dataset(matrix: Matrix) -> str:
    """The data set of all runs."""
    return matrix.runs[0].config.dataset


def train_missing(
    matrix: Matrix,
    folder: Path,
    dataset: data.Dataset,
    jobs: int,
    line: Line,
    write: Callable[[], object],
) -> dict[str, str]:
    """Says what is ahead, then trains it; returns what failed, and why."""
    runs = matrix.runs
    if matrix.preset != "paper":  # several at once would not share an accelerator
        where = os.environ.setdefault("JAX_PLATFORMS", "cpu")
        print(f"runs are trained on {where}; JAX_PLATFORMS=cuda chooses a GPU")
    jobs = jobs or (1 if matrix.preset == "paper" else min(len(usable_cores()), 8))
    ahead = [run for run in runs if not finished(folder / run.name)]
    passes = sum(c.config.recipe.cost - passes_done(c.config, folder / c.name) for c in ahead)
    print(
        f"{len(runs)} runs, {len(runs) - len(ahead)} of them finished; {passes:.0f} passes over"
        f" {len(dataset.train.images):,} images ahead, {jobs} at once, each in {folder}/<name>"
    )
    notes = {note_on_start(matrix.preset, run.config, flag="--set=init") for run in ahead}
    print("".join(f"{note}\n" for note in notes if note), end="")
    check_room(runs, jobs, dataset, folder)
    return train_side_by_side(runs, folder, jobs, line, write)


def write_results(results: Mapping[str, Any], workdir: Path) -> str:
    """results.json, results.md and the plots, of what is finished by now; returns the tables.

    Plots that an earlier start drew, and that show nothing of these results, are deleted.
    """
    text = report(results)
    drawn = [pair for pair in results["pairs"] if pair["methods"]]
    stale = _plots_of(_earlier_pairs(workdir)) - _plots_of(drawn)
    for path in workdir.iterdir():
        if path.name in stale:
            path.unlink()
    write_whole(workdir / "results.json", json.dumps(results, indent=1) + "\n")
    write_whole(workdir / "results.md", text)
    for pair in drawn:
        plot_pair(pair, workdir / _stem(pair))
        courses = workdir / f"{_stem(pair)}{_COURSES}"
        if not plot_courses(results, pair, courses):
            courses.unlink(missing_ok=True)
    return text


def _stem(pair: Mapping[str, Any]) -> str:
    return f"{pair['low']}-{pair['high']}"


def _plots_of(pairs: Iterable[Mapping[str, Any]]) -> set[str]:
    """Names of the files that show them."""
    return {_stem(pair) + end for pair in pairs for end in (".png", ".svg", _COURSES)}


def _earlier_pairs(workdir: Path) -> list[Mapping[str, Any]]:
    """Pairs of the results that an earlier start left, if it left some that can be read."""
    try:
        found = read_json(workdir / "results.json")
        return [pair for pair in found["pairs"] if {*MODES} <= pair.keys()]
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return []  # all that is lost are old plots that stay
