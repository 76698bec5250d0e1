"""A study opened again: its results, its network after every phase, the accuracy of each method.

For notebooks/02_two_phase.ipynb and notebooks/03_deploy.ipynb.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flax import linen as nn
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dual_precision.loading import load
from dual_precision.structure import Example, structure_of
from dual_precision.training.checkpoint import Checkpoints
from dual_precision.training.initialize import FitWeightSteps, fit_weight_steps
from dual_precision.training.state import initial_variables
from experiments.figures.drawing import COLOURS, DASHES
from experiments.study.disk import RUNS_FOLDER, is_replaced
from experiments.study.runner import finished
from experiments.workdir import config_of_run

Variables = Mapping[str, Any]
_AFTER = "after phase"
_OFFSETS = {"low": -0.14, "high": 0.14, "float": 0.0}


def open_study(study: Path) -> dict[str, Any]:
    """The results of a study, complete or not.

    Raises:
      FileNotFoundError: there are none; the message has the command that makes some.
    """
    path = study / "results.json"
    if not path.exists():
        raise FileNotFoundError(
            f"no study in {study}: start `python -m experiments.study --preset=quick` (hours on two"
            " CPU cores; results appear while it runs), or a small one, `python -m"
            " experiments.study --preset=digits --seeds=1`, and set STUDY=runs/study-digits"
        )
    return json.loads(path.read_text())


def find_network(study: Path, results: Mapping[str, Any]) -> Path:
    """The workdir of `two_phase joint` on the first pair, else of any finished two_phase network.

    Raises:
      FileNotFoundError: none is finished; the message has the command that goes on.
    """
    pair, runs = results["pairs"][0], study / RUNS_FOLDER
    others = [p for p in sorted(runs.glob("two_phase-*")) if not is_replaced(p.name)]
    for workdir in [runs / f"two_phase-joint-{pair['low']}-{pair['high']}-seed0", *others]:
        if finished(workdir) and Checkpoints(workdir).steps():
            return workdir
    raise FileNotFoundError(
        f"no finished two_phase network in {runs}: start `python -m experiments.study"
        f" --preset={results['preset']} --workdir={study}`, which goes on where the study stands"
    )


def stages(workdir: Path, model: nn.Module, example: Example) -> dict[str, Variables]:
    """Title -> variables: before phase 1, as its start prepares them, then after every phase.

    Phases whose end the workdir no longer holds are left out, and so is the start of a run that
    began with a trained network.

    Args:
      example: what the model takes, see `structure_of`.
    """
    config = config_of_run(workdir)
    phases = config.recipe.phases()
    found: dict[str, Variables] = {}
    if not config.init:
        start = initial_variables(model, example, config.seed)
        for event in phases[0].at_start:
            if isinstance(event, FitWeightSteps):
                structure = structure_of(model, example)
                start["params"] = fit_weight_steps(start["params"], structure, event.mode)
        found["before phase 1"] = start
    checkpoints = Checkpoints(workdir)
    for step in checkpoints.phase_ends():
        index = checkpoints.about(step)["progress"]["phase"]
        found[f"{_AFTER} {index + 1} ({phases[index].name})"] = load(workdir, step)[1]
    return found


def phase_ends(found: Mapping[str, Variables]) -> list[Variables]:
    """Those of `stages` that are the end of a phase, in order."""
    return [stage for title, stage in found.items() if title.startswith(_AFTER)]


def draw_accuracy(pairs: Sequence[Mapping[str, Any]], split: str) -> Figure:
    """The modes of each method, a panel per pair on one scale: means as dots, seeds as strokes.

    A truncated network may be far behind: it does not set the scale, and is written at the edge.
    """
    methods = list(dict.fromkeys(method for pair in pairs for method in pair["methods"]))
    columns = min(len(pairs), 2)
    rows = -(-len(pairs) // columns)
    figure, grid = plt.subplots(
        rows,
        columns,
        figsize=(2.1 + 3.6 * columns, 0.8 + (0.6 + 0.34 * len(methods)) * rows),
        sharex=True,
        sharey=True,
        layout="constrained",
        squeeze=False,
    )
    for axes in grid.flat[len(pairs) :]:
        axes.set_visible(False)
    left, right = _limits(pairs, split)
    for axes, pair in zip(grid.flat, pairs, strict=False):
        _draw_twins(axes, pair, split)
        for method, summary in pair["methods"].items():
            for mode, found in summary["accuracy"][split].items():
                place = methods.index(method) + _OFFSETS[mode]
                _draw_method(axes, place, found, COLOURS[mode], left)
        axes.set_title(f"low {pair['low']}, high {pair['high']}")
        axes.grid(axis="x", alpha=0.25)
        axes.tick_params(axis="y", length=0)
        axes.set_yticks(range(len(methods)), methods)
        axes.set(xlim=(left, right), ylim=(len(methods) - 0.5, -0.5))
        axes.tick_params(labelbottom=True)
    figure.supxlabel(f"{split} accuracy, %", fontsize=9)
    key = _accuracy_key(pairs)
    figure.legend(handles=key, loc="outside upper center", ncols=len(key), columnspacing=1.3)
    return figure


def _draw_twins(axes: Axes, pair: Mapping[str, Any], split: str) -> None:
    if "twins" in pair["methods"]:
        for mode, found in pair["methods"]["twins"]["accuracy"][split].items():
            axes.axvline(found["mean"], color=COLOURS[mode], lw=1, ls=DASHES, alpha=0.8)


def _accuracy_key(pairs: Sequence[Mapping[str, Any]]) -> list:
    methods = {method for pair in pairs for method in pair["methods"]}
    marks = [
        plt.Line2D([], [], marker="o", ls="", color=COLOURS[mode], label=mode)
        for mode in ("low", "high", "float")
        if mode != "float" or mode in methods
    ]
    marks.append(plt.Line2D([], [], marker="|", ls="", color="k", ms=9, label="one seed"))
    if "twins" in methods:
        marks.append(plt.Line2D([], [], color="k", lw=1, ls=DASHES, label="the twin of that mode"))
    return marks


def _limits(pairs: Sequence[Mapping[str, Any]], split: str) -> tuple[float, float]:
    values: list[float] = []
    truncated: list[float] = []
    for method, summary in (item for pair in pairs for item in pair["methods"].items()):
        own = truncated if method.startswith("truncate") else values
        own += [value for found in summary["accuracy"][split].values() for value in found["values"]]
    values = values or truncated  # they are all there is
    room = max(0.12 * (max(values) - min(values)), 0.3)
    return min(values) - 1.5 * room, max(values) + room


def _draw_method(axes: Axes, place: float, found: Mapping[str, Any], colour: str, left: float):
    if found["mean"] < left:
        axes.plot([0.012], [place], "<", color=colour, ms=5, transform=axes.get_yaxis_transform())
        axes.annotate(
            f"{found['mean']:.1f}",
            (0.012, place),
            (5, 0),
            xycoords=axes.get_yaxis_transform(),
            textcoords="offset points",
            va="center",
            fontsize=7.5,
            color=colour,
        )
        return
    axes.plot(found["values"], [place] * len(found["values"]), "|", color=colour, ms=9)
    axes.plot(found["mean"], place, "o", color=colour, ms=5)
