"""Whose normalisation a candidate gets: its own, calibrated on a batch, or the one that all share.

    python -m experiments.search.norms --supernet=runs/supernet

Random candidates, each both ways on the same images: mean accuracy, how alike the two orders are
(rank correlation), and seconds for one candidate, the first one's compilation left out.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from scipy.stats import spearmanr

from dual_precision.search.space import Candidate
from experiments import cli
from experiments.figures.tables import markdown_table
from experiments.search.opened import Opened, open_supernet

_COLUMNS = (
    ("norms", "normalisation", "{}"),
    ("mean", "mean validation %", "{:.2f}"),
    ("least", "least", "{:.2f}"),
    ("most", "most", "{:.2f}"),
    ("seconds", "seconds a candidate (median)", "{:.2f}"),
)


def measure(opened: Opened, candidates: list[Candidate]) -> tuple[dict[str, Any], list[float]]:
    """A row of the table, and the accuracies."""
    found, seconds = [], []
    for candidate in candidates:
        start = time.perf_counter()
        found.append(opened.evaluate(opened.space, candidate))
        seconds.append(time.perf_counter() - start)
    row = {"mean": float(np.mean(found)), "least": min(found), "most": max(found)}
    return row | {"seconds": float(np.median(seconds[1:]))}, found


def rank_correlation(first: list[float], second: list[float]) -> float:
    """Spearman: the correlation of the ranks, where equal values share their mean rank."""
    return float(spearmanr(first, second).statistic)


def main(*, supernet: str, candidates: int, images: int, data_dir: str | None = None) -> None:
    rows, accuracies = [], []
    for name, recalibrate in (("own", True), ("shared", False)):
        opened = open_supernet(Path(supernet), images, recalibrate, data_dir)
        generator = np.random.default_rng(0)
        even: list[dict[str, float]] = [{}] * len(opened.space.layers)  # no weights: all alike
        drawn = [opened.space.draw(even, generator) for _ in range(candidates)]
        row, found = measure(opened, drawn)
        rows.append({"norms": name, **row})
        accuracies.append(found)
    print(f"\n{markdown_table(rows, _COLUMNS)}\n")
    print(f"rank correlation of the two: {rank_correlation(*accuracies):.2f}")


if __name__ == "__main__":
    flags.DEFINE_string("supernet", None, "workdir of a finished run of --mode=supernet")
    flags.DEFINE_integer("candidates", 20, "drawn at random", lower_bound=2)
    flags.DEFINE_integer("images", 0, "of the validation split; 0 is all")
    flags.DEFINE_string("data_dir", None, "folder of prepared TFDS data sets")
    cli.run(main)
