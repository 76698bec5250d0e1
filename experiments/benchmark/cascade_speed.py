"""Low, the cascade and high of a packed file in turns: a part of
`python -m experiments.benchmark inference`."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from dual_precision import data
from dual_precision.deploy import Predictor
from dual_precision.deploy.predictor import AUTO
from experiments.benchmark.batch_sizes import SIZES, Row, sizes_table
from experiments.benchmark.comparison import median_and_range, speed_ratio
from experiments.benchmark.timing import time_rounds, timed

IMAGES = 512  # of the test set: as many are escalated as in use


def cascade_times(path: Path, dataset: str, repeats: int) -> tuple[list[Row], list[str]]:
    """Rows of ways with the milliseconds of a request of each size, and a line for each size.

    A request takes its mean time over the images, as some are escalated and others not.
    """
    predictor = Predictor(path, SIZES)
    if predictor.cascade is None:
        return [], [f"the time of a cascade: {path} has none"]
    images = data.load(dataset).test.images[:IMAGES]
    ways = (predictor.cascade.first, AUTO, predictor.cascade.then)
    table: dict[str, Row] = {way: {"way": way} for way in ways}
    lines = []
    for size in SIZES:
        passes = {way: pass_over(predictor, images, size, way) for way in ways}
        times = time_rounds(passes, repeats)
        for way, found in times.items():
            table[way][f"images_{size}"] = median_and_range(found, 2)
        ratio = speed_ratio(times, AUTO, ways[-1])
        lines.append(f"cascade, {size} images a request: {ratio:.2f} x as fast as high alone")
    print(f"\n{sizes_table([*table.values()], SIZES, 'way')}\n", flush=True)
    return [*table.values()], lines


def pass_over(
    predictor: Predictor, images: np.ndarray, size: int, precision: str
) -> Callable[[], float]:
    """Milliseconds of a request, the mean of a pass over the images."""
    parts = [images[start : start + size] for start in range(0, len(images), size)]

    def requests() -> None:
        for part in parts:
            predictor.predict(part, precision)

    return lambda: timed(requests)[0] / len(parts)
