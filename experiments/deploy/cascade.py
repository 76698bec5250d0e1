"""Calibrates the cascade of a packed file, and says what it gives.

    python -m experiments.deploy cascade net.safetensors --accuracy=-0.1   # points to high
    python -m experiments.deploy cascade net.safetensors --cost=0.3 --write

The first chooses the cheapest threshold around which the mean is within 0.1 points of high on
validation data, the second the best for 30 % of the BitOps of high, and writes it into the file.
Half a minute on two cores for CIFAR-10, whose test set is read once, for the threshold chosen: for
the small network in notebooks/networks 82.99 %, 0.3 points above high, at 30 % of its BitOps.
Tables, a plot and JSON are left in a folder.
"""

import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from dual_precision import data
from dual_precision.deploy import Cascade, Predictor, amend_metadata, inspect_packed
from dual_precision.deploy.cascade.calibration import calibrate, curve
from dual_precision.deploy.cascade.rule import Point
from dual_precision.deploy.file.writer import check_replaceable
from dual_precision.deploy.predictor import CASCADE
from experiments import cli
from experiments.deploy.cascade_evaluation import (
    BATCHES,
    CHOSEN,
    WAY_COLUMNS,
    CascadeSettings,
    cascade_settings,
    collect_evidence,
    rows_on_test,
    sweep,
    two_modes,
)
from experiments.deploy.pack import recorded_command
from experiments.figures.drawing import pyplot_for_files, save_figure
from experiments.figures.tables import markdown_table
from experiments.workdir import write_whole


def calibrate_cascade(
    file: str,
    *,
    workdir: str | None = None,
    dataset: str | None = None,
    accuracy: float | None = None,
    cost: float | None = None,
    mirror: bool | None = None,
    blend: float | None = None,
    test: bool,
    write: bool,
    data_dir: str | None = None,
    archive: str | None = None,
) -> None:
    """The sub-command `cascade`; its keyword arguments are the flags.

    Raises:
      ValueError: `file` is no packed file, or see `cascade_settings` and `choose_point`.
    """
    path, clock = Path(file), cli.Stopwatch()
    if write:
        check_replaceable(path)
    asked: dict[str, Any] = {"dataset": dataset, "accuracy": accuracy, "cost": cost}
    asked |= {"mirror": mirror, "blend": blend}
    settings = cascade_settings(inspect_packed(path), **asked)
    found = measure_cascade(path, settings, {"data_dir": data_dir, "archive": archive}, test)
    folder = Path(workdir or _default_folder(path, asked))
    folder.mkdir(parents=True, exist_ok=True)
    command = recorded_command(sys.argv[1:])
    plot_cascade(found, folder / "cascade.png")
    content = json.dumps({"command": command, **found}, indent=1)
    write_whole(folder / "cascade.json", f"{content}\n")
    print(f"\n{markdown_table(found['sweep'], WAY_COLUMNS)}\n")
    if test:
        print(f"test set\n\n{markdown_table(found['test'], WAY_COLUMNS)}\n")
    print(f"{folder}/cascade.png, cascade.json; {clock} in all")
    if write:
        amend_metadata(path, {CASCADE: found["cascade"], "cascade_command": command})
        print(f"{path}: calibration written; Predictor({file!r}) has it")


def _default_folder(path: Path, asked: Mapping[str, Any]) -> Path:
    """runs/cascade-networks-net-cost=0.4: another one for other files and settings."""
    given = [f"{name}={value}" for name, value in asked.items() if value is not None]
    return Path("runs") / "-".join(["cascade", path.resolve().parent.name, path.stem, *given])


def measure_cascade(
    path: Path, settings: CascadeSettings, options: Mapping[str, Any], test: bool
) -> dict[str, Any]:
    """Calibrates, measures and, if `test`, reads the test set: all that is printed and plotted.

    Args:
      options: data_dir and archive, for `data.load`.
    """
    low, high = two_modes(inspect_packed(path))
    print(f"{path}: compiling {low}, {high} and their cascade", flush=True)
    predictor = Predictor(path, BATCHES, cascade=Cascade(low, high, 0.0))
    dataset = data.load(settings.dataset, **options)
    held_out = dataset.validation
    print(f"{dataset.name}: {len(held_out):,} validation images calibrate", flush=True)
    evidence = collect_evidence(predictor, held_out.images, held_out.labels, settings)
    chosen = calibrate(evidence, low, high, accuracy=settings.accuracy, cost=settings.cost)
    print("timing", flush=True)
    points = curve(evidence)
    found = {
        "settings": dataclasses.asdict(settings),
        "device": jax.local_devices()[0].device_kind,
        "cascade": chosen.to_json(),
        "sweep": sweep(predictor, evidence, points, chosen, held_out.images),
        "curve": [dataclasses.asdict(point) for point in points],
    }
    if settings.mirror:
        plain = dataclasses.replace(evidence, mirror=None, blend=0.0)
        found["curve_without_mirror"] = [dataclasses.asdict(point) for point in curve(plain)]
    if test:
        print(f"the {len(dataset.test):,} test images, once", flush=True)
        found["test"] = rows_on_test(predictor, chosen, dataset.test, evidence.costs)
    return found


def plot_cascade(found: Mapping[str, Any], path: Path) -> None:
    """Validation accuracy over BitOps and over the latency of a batch, as PNG.

    Args:
      found: what `measure_cascade` gives.
    """
    pyplot_for_files()  # before a figure is made
    from experiments.figures import serving

    names = {"curve": "auto", "curve_without_mirror": "auto without the mirrored look"}
    curves = {names[key]: [Point(**point) for point in found[key]] for key in names if key in found}
    low, *autos, high = found["sweep"]
    places = {row["way"]: (row["full"], row["accuracy"]) for row in autos}
    timed = serving.Timed(
        modes=[(row["full"], row["accuracy"]) for row in (low, high)],
        chosen=places.pop(CHOSEN),
        autos=[*places.values()],
        device=found["device"],
    )
    alone = {row["way"]: (row["relative"], row["accuracy"]) for row in (low, high)}
    chosen = Point(**found["cascade"]["expected"])
    save_figure(serving.draw_cascade(curves, alone, chosen, "validation", timed), path)
