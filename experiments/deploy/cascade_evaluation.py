"""What a cascade gives: its evidence, the rows of its tables, the latency of its ways.

A way is what answers a request: one mode alone, or the cascade at some threshold.
"""

import dataclasses
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from dual_precision import data
from dual_precision.costs import mode_cost, reused_bit_operations
from dual_precision.data.catalog import lookup
from dual_precision.deploy import PackedInfo, Predictor
from dual_precision.deploy.cascade.calibration import (
    Costs,
    Evidence,
    measure_point,
)
from dual_precision.deploy.cascade.rule import Cascade, Point, mirrored
from experiments.benchmark.timing import time_rounds, timed
from experiments.deploy.trials import check_data, dataset_of
from experiments.figures.tables import Rows

BATCHES = (1, 8, 64)
COSTS = (0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6, 0.8)  # of the sweep; shares
ROUNDS = 3
CHOSEN = "auto, chosen"
SINGLES, FULL = 64, 3  # requests a round, of one image and of the largest batch

WAY_COLUMNS = (
    ("way", "answers", "{}"),
    ("threshold", "threshold", "{:.3f}"),
    ("mirrored", "looked at again %", "{:.1f}"),
    ("escalated", "escalated %", "{:.1f}"),
    ("accuracy", "accuracy %", "{:.2f}"),
    ("difference", "to high", "{:+.2f}"),
    ("error", "± se", "{:.2f}"),
    ("cost", "BitOps/image", "{:.3g}"),
    ("relative", "of high %", "{:.1f}"),
    ("unshared", "without reuse %", "{:.1f}"),
    ("single", "ms, batch 1", "{:.2f}"),
    ("full", f"ms/image, batch {BATCHES[-1]}", "{:.3f}"),
)


@dataclasses.dataclass(frozen=True)
class CascadeSettings:
    """What the command is asked for.

    Attributes:
      dataset: its validation images calibrate.
      accuracy, cost: as `choose_point` of the calibration takes; one of them is given.
      mirror: a second look of low at the mirrored image.
      blend: weight of the logits of low in the answers of high.
    """

    dataset: str
    accuracy: float | None
    cost: float | None
    mirror: bool
    blend: float


def cascade_settings(
    info: PackedInfo,
    *,
    dataset: str | None = None,
    accuracy: float | None = None,
    cost: float | None = None,
    mirror: bool | None = None,
    blend: float | None = None,
) -> CascadeSettings:
    """The settings, where None is: the data set that the network was trained on, an accuracy within
    0.1 points, mirroring where the data set allows it, and then the sum of both modes' logits.

    Raises:
      ValueError: as `check_data` of the file; mirroring where it gives another image;
        both of accuracy and cost; an accuracy that is not finite; a cost that is no share; a blend
        that is negative or not finite.
    """
    if accuracy is not None and cost is not None:
        raise ValueError(f"--accuracy={accuracy:g} and --cost={cost:g}: expected one of them")
    if accuracy is not None and not math.isfinite(accuracy):
        raise ValueError(f"--accuracy={accuracy:g}: expected a finite number of points, as -0.1")
    if cost is not None and not 0 < cost <= 1:
        raise ValueError(
            f"--cost={cost:g}: expected a share, above 0 and up to 1, of the BitOps of high"
        )
    if blend is not None and not (math.isfinite(blend) and blend >= 0):
        raise ValueError(f"--blend={blend:g}: expected a finite number, 0 or more")
    name = dataset or dataset_of(info)
    spec = lookup(name)
    check_data(spec, info.image_shape, info.network.get("num_classes"))
    if mirror and not spec.flip:
        raise ValueError(f"--mirror: a mirrored image of {name} is another image; leave it out")
    mirror = spec.flip if mirror is None else mirror
    if accuracy is None and cost is None:
        accuracy = -0.1
    return CascadeSettings(name, accuracy, cost, mirror, float(mirror) if blend is None else blend)


def collect_evidence(
    predictor: Predictor, images: np.ndarray, labels: np.ndarray, settings: CascadeSettings
) -> Evidence:
    """Both modes' logits of all images, and their BitOps."""
    low, high = two_modes(predictor.info)
    return Evidence(
        first=predictor.predict(images, low),
        then=predictor.predict(images, high),
        labels=labels,
        costs=image_costs(predictor),
        mirror=predictor.predict(mirrored(images), low) if settings.mirror else None,
        blend=settings.blend,
    )


def two_modes(info: PackedInfo) -> tuple[str, str]:
    """The modes of a cascade: the narrowest and the widest trained one of the file.

    Raises:
      ValueError: fewer than two of them.
    """
    names, held = info.choices, [*info.bytes_read]
    if len(names) < 2:
        raise ValueError(
            f"the file holds {held}, of which {[*names]} were trained: expected two trained modes,"
            " to make a cascade of"
        )
    return names[0], names[-1]


def image_costs(predictor: Predictor) -> Costs:
    """BitOps per image."""
    info = predictor.info
    low, high = two_modes(info)
    return Costs(
        mode_cost(info, low).bit_operations,
        mode_cost(info, high).bit_operations,
        reused_bit_operations(info.layers, low, high) if predictor.on_codes else 0,
    )


def point_row(point: Point, costs: Costs, way: str) -> dict[str, Any]:
    """A point as a row of the table; shares in percent."""
    row = {"way": way, **dataclasses.asdict(point)}
    for share in ("mirrored", "escalated", "relative"):
        row[share] *= 100
    row["unshared"] = row["relative"] + row["escalated"] * costs.reused / costs.then
    return row


def mode_rows(logits: Mapping[str, np.ndarray], labels: np.ndarray, costs: Costs) -> Rows:
    """The two modes alone as rows of the table: high is a cascade that shares nothing."""
    low, high = (of_mode.argmax(1) == labels for of_mode in logits.values())
    none, alone = np.zeros(len(labels), bool), dataclasses.replace(costs, first=0.0, reused=0.0)
    points = (
        measure_point(0.0, low, high, none, none, costs),
        measure_point(0.0, high, high, none, ~none, alone),
    )
    hidden = ("threshold", "mirrored", "escalated")
    rows = [point_row(point, alone, name) for name, point in zip(logits, points, strict=True)]
    return [{key: value for key, value in row.items() if key not in hidden} for row in rows]


def time_ways(
    ways: Mapping[str, Callable[[np.ndarray], Any]], images: np.ndarray
) -> dict[str, dict[str, float]]:
    """Way -> ms of a request of one image, and ms per image of the largest batch.

    Medians over rounds of the mean over different images: some of them escalate.
    """
    requests = {
        "single": [images[i : i + 1] for i in range(SINGLES)],
        "full": [images[i * BATCHES[-1] : (i + 1) * BATCHES[-1]] for i in range(FULL)],
    }
    programs = {
        (way, kind): partial(_milliseconds_per_image, run, batches)
        for way, run in ways.items()
        for kind, batches in requests.items()
    }
    times = time_rounds(programs, ROUNDS)
    return {way: {kind: statistics.median(times[way, kind]) for kind in requests} for way in ways}


def _milliseconds_per_image(
    run: Callable[[np.ndarray], Any], batches: Sequence[np.ndarray]
) -> float:
    return timed(lambda: [run(batch) for batch in batches])[0] / sum(map(len, batches))


def sweep(
    predictor: Predictor,
    evidence: Evidence,
    curve: Sequence[Point],
    chosen: Cascade,
    images: np.ndarray,
) -> list[dict[str, Any]]:
    """The modes and the cascade at COSTS and as chosen, with their latencies."""
    points = {f"auto {cost:.0%}": _within(curve, cost) for cost in COSTS}
    named = {way: point for way, point in points.items() if point is not None}
    assert chosen.expected is not None
    named[CHOSEN] = chosen.expected
    names = two_modes(predictor.info)
    alone = dict(zip(names, (evidence.first, evidence.then), strict=True))
    low, high = mode_rows(alone, evidence.labels, evidence.costs)
    middle = [point_row(point, evidence.costs, way) for way, point in named.items()]
    ways: dict[str, Callable[[np.ndarray], Any]] = {
        name: partial(predictor.predict, precision=name) for name in names
    }
    for way, point in named.items():
        cascade = dataclasses.replace(chosen, threshold=point.threshold)
        ways[way] = partial(predictor.answer, cascade=cascade)
    latencies = time_ways(ways, images)
    return [{**row, **latencies[row["way"]]} for row in (low, *middle, high)]


def _within(points: Sequence[Point], cost: float) -> Point | None:
    return next((point for point in reversed(points) if point.relative <= cost), None)


def rows_on_test(predictor: Predictor, chosen: Cascade, test: data.Images, costs: Costs) -> Rows:
    """Low, the cascade as it answers requests, and high, on the test set."""
    names = (chosen.first, chosen.then)
    logits = {name: predictor.predict(test.images, name) for name in names}
    got = predictor.answer(test.images, chosen)
    right, then = (z.argmax(1) == test.labels for z in (got.logits, logits[chosen.then]))
    point = measure_point(chosen.threshold, right, then, got.mirrored, got.escalated, costs)
    low, high = mode_rows(logits, test.labels, costs)
    return [low, point_row(point, costs, CHOSEN), high]
