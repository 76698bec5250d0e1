"""The cascade of a packed file on the test set, against its bar: a part of
`python -m experiments.benchmark inference`."""

import dataclasses
from pathlib import Path

import numpy as np

from dual_precision import data
from dual_precision.deploy import Cascade, Predictor, inspect_packed
from dual_precision.deploy.cascade.calibration import calibrate
from dual_precision.deploy.cascade.rule import mirrored
from experiments.benchmark.comparison import verdict_of
from experiments.deploy.cascade_evaluation import (
    CascadeSettings,
    cascade_settings,
    collect_evidence,
    rows_on_test,
    two_modes,
)
from experiments.figures.tables import Rows

BATCH = 64  # of the two data sets
POINTS, SHARE, GOAL = -0.1, 50, 30  # to the accuracy of high; percent of its BitOps: bar, goal
NO_LOOK, LOOK = "without a mirrored look", "low looks at the mirrored image too"


def check_cascade(path: Path) -> CascadeSettings:
    """What the cascade needs, told before the minutes that the rest takes.

    Raises:
      ValueError: not a packed file, one of a single mode, or one that names no data set.
      OSError: no such file.
    """
    info = inspect_packed(path)
    two_modes(info)
    return cascade_settings(info, accuracy=POINTS)


def cascade_lines(path: Path, settings: CascadeSettings) -> list[str]:
    """The cascade on the data set of the file, calibrated anew, with and without the mirrored look.

    One line each, for the bar. High alone has one look; so a further line says what another one
    would give it, at twice its BitOps.
    """
    print(f"\nthe cascade of {path} on {settings.dataset}", flush=True)
    try:
        dataset = data.load(settings.dataset)
    except data.DataError as error:
        return [f"cascade: not measured, {error}"]
    low, high = two_modes(inspect_packed(path))
    predictor = Predictor(path, (BATCH,), cascade=Cascade(low, high, 0.0))
    held_out, test = dataset.validation, dataset.test
    evidence = collect_evidence(predictor, held_out.images, held_out.labels, settings)
    ways = {NO_LOOK: dataclasses.replace(evidence, mirror=None, blend=0.0)}
    if settings.mirror:
        ways = {LOOK: evidence, **ways}
    lines = []
    for way, found in ways.items():
        chosen = calibrate(found, low, high, accuracy=settings.accuracy)
        lines.append(cascade_line(way, rows_on_test(predictor, chosen, test, found.costs)))
    if settings.mirror:
        both = (predictor.predict(images, high) for images in (test.images, mirrored(test.images)))
        right = sum(both, np.float32(0)).argmax(axis=1) == test.labels
        lines.append(
            f"for comparison, high with a mirrored look too: {100 * right.mean():.2f} % at"
            " 200 % of its BitOps (mean of both logits)"
        )
    return lines


def cascade_line(way: str, rows: Rows) -> str:
    """Low, the cascade and high, the rows of `rows_on_test`, against the bar."""
    low, auto, high = rows
    passed = auto["difference"] >= POINTS and auto["relative"] <= SHARE
    return (
        f"cascade on the test set, {way}: {auto['accuracy']:.2f} %, low {low['accuracy']:.2f}, high"
        f" {high['accuracy']:.2f} (one look each), at {auto['relative']:.1f} % of the BitOps of"
        f" high (bar: high - {-POINTS} at {SHARE} %, goal {GOAL} %)"
        f" {verdict_of(passed, auto['relative'] <= GOAL)}"
    )
