"""A study without training, for the files that read one."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments.study.matrix import Matrix

MakeStudy = Callable[..., None]


@pytest.fixture
def make_study() -> MakeStudy:
    """(folder of the runs, matrix, recipe=points, ...) -> results that depend on names alone.

    Low has 60 %, high 70 %, the seed is added to it, and the points of the run's recipe.
    """

    def make(folder: Path, matrix: Matrix, **points: float) -> None:
        read = {(run.name, mode) for row in matrix.rows for run, mode in row.sources.values()}
        for run in matrix.runs:
            workdir = folder / run.name
            (workdir / "checkpoints" / "7").mkdir(parents=True)
            described = {"experiment": run.config.to_json(), "network": {"stored": 8}}
            (workdir / "config.json").write_text(json.dumps(described))
            bonus = run.config.seed + points.get(run.config.mode, 0)
            rows = [
                {"mode": mode, "bits": "-", "validation": value + 1, "test": value}
                for mode, start in (("low", 60.0), ("high", 70.0), ("float", 60.0))
                if (run.name, mode) in read
                for value in [start + bonus]
            ]
            (workdir / "results.json").write_text(json.dumps({"rows": rows}))

    return make
