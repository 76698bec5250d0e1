"""Mean and spread of several finished runs that differ in their seed, one row per mode; seconds.

Accuracy of runs on images, bits per byte of runs on text.

    for seed in 0 1 2; do python -m experiments.cifar --mode=two_phase --seed=$seed; done
    python -m experiments.summary runs/cifar10-two_phase-joint-w2a2-w8a8-quick-seed*

Expected of these three, the preset quick on CIFAR-10: test accuracy of low about 80 %, of high
about 82 %.
"""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments import cli
from experiments.figures.tables import Rows, markdown_table
from experiments.workdir import read_description, read_rows

_COLUMNS = (
    ("mode", "mode", "{}"),
    ("bits", "bits", "{}"),
    ("validation", "validation %", "{}"),
    ("test", "test %", "{}"),
    ("validation_bits", "validation bits/byte", "{}"),
    ("test_bits", "test bits/byte", "{}"),
    ("runs", "runs", "{}"),
)
# What is measured of images, and of text -> digits behind the point.
_DIGITS = {"validation": 2, "test": 2, "validation_bits": 3, "test_bits": 3}


def read_runs(workdirs: Sequence[Path]) -> list[list[dict[str, Any]]]:
    """The rows of the results of every run.

    Raises:
      ValueError: a run is not finished, the runs differ in more than their seed, or two do not
        differ in it.
    """
    runs, configs, seeds = [], set(), []
    for workdir in workdirs:
        runs.append(read_rows(workdir))
        experiment = read_description(workdir)["experiment"]
        configs.add(json.dumps({**experiment, "seed": None}))
        seeds.append(experiment.get("seed"))
    if len(configs) != 1:
        raise ValueError(
            f"{len(configs)} configs in {len(runs)} runs: expected all but the seed alike"
        )
    _check_apart(workdirs, seeds)
    for workdir, run in zip(workdirs, runs, strict=True):
        if _modes_of(run) != _modes_of(runs[0]):
            raise ValueError(
                f"{workdir} has rows of {_modes_of(run)}, and {workdirs[0]} of"
                f" {_modes_of(runs[0])}: expected the same modes in every run"
            )
    return runs


def _check_apart(workdirs: Sequence[Path], seeds: Sequence[Any]) -> None:
    """Raises ValueError for two runs that would say how far seeds are apart, and are of one."""
    for at, (workdir, seed) in enumerate(zip(workdirs, seeds, strict=True)):
        if seed in seeds[:at]:
            other = workdirs[seeds.index(seed)]
            same = workdir.resolve() == other.resolve()
            what = "are one folder" if same else f"have the same seed, {seed!r:.99}"
            raise ValueError(
                f"{other} and {workdir} {what}: expected runs of different seeds; name each once"
            )


def _modes_of(run: Rows) -> list[tuple[str, str]]:
    return [(row["mode"], row.get("bits", "")) for row in run]


def summary_table(runs: Sequence[Rows]) -> str:
    """Mean and sample standard deviation over the runs, in Markdown; a split that not all of them
    read is left out.

    Raises:
      ValueError: nothing is measured in all of them.
    """
    rows = []
    for each in zip(*runs, strict=True):
        shared = [name for name in _DIGITS if all(name in row for row in each)]
        if not shared:
            raise ValueError(
                f"the rows of {each[0]['mode']!r} have no results in common: expected one of"
                f" {list(_DIGITS)} in every run; start the commands of these runs again"
            )
        spreads = {name: _spread([row[name] for row in each], _DIGITS[name]) for name in shared}
        about = {"mode": each[0]["mode"], "bits": each[0].get("bits", "")}
        rows.append({**about, **spreads, "runs": len(each)})
    return markdown_table(rows, _COLUMNS, left=("mode", "bits"))


def _spread(values: Sequence[float], digits: int) -> str:
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def main(*folders: str) -> None:
    """The command; its words are the folders of the runs.

    Raises:
      ValueError: none are given, or see `read_runs`.
    """
    if not folders:
        raise ValueError("no workdirs given: expected the folders of finished runs")
    print(summary_table(read_runs([Path(folder) for folder in folders])))


if __name__ == "__main__":
    cli.run(main, trains=False)
