"""`python -m experiments.benchmark inference`: bit planes, switching under load, the cascade.

Every part prints its bars, and is in the JSON file, when it is done.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from dual_precision import data
from dual_precision.deploy import Cascade, Predictor, inspect_packed
from dual_precision.deploy.cascade.calibration import calibrate
from dual_precision.deploy.cascade.rule import mirrored
from experiments.benchmark import inference_times as inference
from experiments.benchmark import switching
from experiments.benchmark.timing import machine, verdict_of
from experiments.deploy import cascade
from experiments.workdir import write_whole

BATCH = 64  # of the cascade's two data sets
POINTS, SHARE, GOAL = -0.1, 50, 30  # to high's accuracy; percent of its BitOps: bar, goal
NO_LOOK, LOOK = "without a mirrored look", "low looks at the mirrored image too"


def check(path: Path) -> cascade.Settings:
    """What the cascade needs, told before the minutes that the rest takes.

    Raises:
      ValueError: not a packed file, one of a single mode, or one that names no data set.
      OSError: no such file.
    """
    info = inspect_packed(path)
    cascade.costs_of(info)
    return cascade.read_settings(
        info, dataset=None, accuracy=POINTS, cost=None, mirror=None, blend=None
    )


def cascade_lines(path: Path, settings: cascade.Settings) -> list[str]:
    """The cascade on the file's data set, calibrated anew, with and without the mirrored look.

    One line each, for the bar. High alone has one look; so a further line says what another one
    would give it, at twice its BitOps.
    """
    print(f"\nthe cascade of {path} on {settings.dataset}", flush=True)
    try:
        dataset = data.load(settings.dataset)
    except data.DataError as error:
        return [f"cascade: not measured, {error}"]
    low, *_, high = inspect_packed(path).bytes_read
    predictor = Predictor(path, (BATCH,), cascade=Cascade(low, high, 0.0))
    held_out, test = dataset.validation, dataset.test
    evidence = cascade.collect(predictor, held_out.images, held_out.labels, settings)
    ways = {NO_LOOK: dataclasses.replace(evidence, mirror=None, blend=0.0)}
    if settings.mirror:
        ways = {LOOK: evidence, **ways}
    lines = []
    for way, own in ways.items():
        chosen = calibrate(own, low, high, accuracy=settings.accuracy)
        rows = cascade.on_test(predictor, chosen, test, own.costs)
        lines.append(cascade_line(way, rows))
    if settings.mirror:
        both = (predictor.predict(images, high) for images in (test.images, mirrored(test.images)))
        right = sum(both, np.float32(0)).argmax(axis=1) == test.labels
        lines.append(
            f"for comparison, high with a mirrored look of its own: {100 * right.mean():.2f} % at"
            " 200 % of its BitOps (mean of both logits)"
        )
    return lines


def cascade_line(way: str, rows: cascade.Rows) -> str:
    """Low, the cascade and high of `cascade.on_test`, against the bar."""
    low, auto, high = rows
    passed = auto["difference"] >= POINTS and auto["relative"] <= SHARE
    return (
        f"cascade on the test set, {way}: {auto['accuracy']:.2f} %, low {low['accuracy']:.2f}, high"
        f" {high['accuracy']:.2f} (one look each), at {auto['relative']:.1f} % of high's BitOps"
        f" (bar: high - {-POINTS} at {SHARE} %, goal {GOAL} %)"
        f" {verdict_of(passed, auto['relative'] <= GOAL)}"
    )


def run(path: Path, repeats: int, steps: int, requests: int, out: str | None) -> None:
    """Measures everything; errors as `check`.

    Args:
      path: the packed file that is switched.
      repeats, steps: rounds, and requests of a program in a round, of inference.py.
      requests: of the load of switching.py.
      out: a JSON file.
    """
    settings = check(path)
    about = {
        **machine(),
        **inference.conditions(),
        "repeats": repeats,
        "requests a round": steps,
    }
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    print(f"\n{inference.CACHES}", flush=True)
    found: dict[str, Any] = {"about": about, "milliseconds": {}, "cold": {}, "bars": []}

    def save() -> None:
        if out:
            write_whole(Path(out), json.dumps(found, indent=2) + "\n")

    def keep(lines: list[str]) -> None:
        print(*(f"- {line}" for line in lines), sep="\n", flush=True)
        found["bars"] += lines
        save()

    save()  # a folder that is not there is told now
    for group in inference.GROUPS:
        warm, cold, lines = inference.measure(group, repeats, steps)
        found["milliseconds"][group], found["cold"][group] = warm, cold
        keep(lines)
    keep(switching.measure(path, requests))
    keep(cascade_lines(path, settings))
