"""Requests of several images: a Predictor beside ONNX Runtime, in turns; part of `engines`."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dual_precision.deploy import Predictor
from dual_precision.deploy.export.onnx.file import EngineNetwork
from experiments.benchmark.comparison import Bar, judge_bars, median_and_range
from experiments.benchmark.timing import time_rounds, timed_request
from experiments.figures.tables import markdown_table

SIZES = (1, 8, 64)
OURS = ("high", "low")
STEPS_OF_ONE = 8  # images of all requests of a round, for each step: large batches take long
# Images -> at least, and as we want it, against the static int8 of ONNX Runtime.
BARS = {1: (0.8, 1.2), 64: (1.0, 1.5)}

Row = dict[str, Any]


def sizes_table(rows: Sequence[Row], sizes: Sequence[int], key: str) -> str:
    """Markdown of rows that have "images_SIZE" for each of these sizes of a request.

    Args:
      key: of the first column, and its title.
    """
    columns = [(f"images_{size}", f"ms, {size} images", "{}") for size in sizes]
    return markdown_table(rows, [(key, key, "{}"), *columns], left=[key])


def measure_batch_sizes(
    packed: Path,
    engines: Mapping[str, EngineNetwork],
    images: np.ndarray,
    rounds: tuple[int, int],
    network: str = "ResNet-20",
) -> tuple[list[Row], list[str]]:
    """Rows of programs with a column for each size, and a line for each bar.

    Args:
      engines: name -> network with a mode "float"; the last one is what ours are compared with.
      images: of the test set, as many as the largest size or more.
      rounds: how many, and the requests of one image in each.
      network: its name, for the lines.
    """
    repeats, steps = rounds
    *_, other = engines
    table: dict[str, Row] = {}
    lines = []
    for size in SIZES:
        part, predictor = images[:size], Predictor(packed, batch_sizes=(size,))
        requests = {name: partial(e.predict, part, "float") for name, e in engines.items()}
        requests |= {f"our Predictor, {m}": partial(predictor.predict, part, m) for m in OURS}
        count = max(min(steps, STEPS_OF_ONE * steps // size), 1)
        times = time_rounds(
            {name: partial(timed_request, run, count) for name, run in requests.items()}, repeats
        )
        for name, found in times.items():
            row = table.setdefault(name, {"program": name})
            row[f"images_{size}"] = median_and_range(found, 2)
        bars = [
            Bar(f"{network}, Predictor, {mode}, {size} images, against {other}",
                f"our Predictor, {mode}", other, *BARS[size])
            for mode in OURS if size in BARS
        ]  # fmt: skip
        lines += judge_bars(bars, times)
    return [*table.values()], lines
