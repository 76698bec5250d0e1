"""Figures of notebooks/02_two_phase.ipynb on what the modes answer; numbers come as arguments."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.figures.training import COLOURS
from experiments.figures.two_phase_numbers import VERDICTS, Reliability

STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "figure.dpi": 110,
    "font.size": 9,
    "legend.frameon": False,
}
LOW, HIGH = COLOURS["low"], COLOURS["high"]
_GREY = "#8d99ae"
_DASHES = (0, (4, 3))
_OFFSETS = {"low": -0.14, "high": 0.14, "float": 0.0}


# Accuracy.


def draw_accuracy(pairs: Sequence[Mapping[str, Any]], split: str) -> Figure:
    """Each method's modes, a panel per pair on one scale: means as dots, seeds as strokes.

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
            axes.axvline(found["mean"], color=COLOURS[mode], lw=1, ls=_DASHES, alpha=0.8)


def _accuracy_key(pairs: Sequence[Mapping[str, Any]]) -> list:
    methods = {method for pair in pairs for method in pair["methods"]}
    marks = [
        plt.Line2D([], [], marker="o", ls="", color=COLOURS[mode], label=mode)
        for mode in ("low", "high", "float")
        if mode != "float" or mode in methods
    ]
    marks.append(plt.Line2D([], [], marker="|", ls="", color="k", ms=9, label="one seed"))
    if "twins" in methods:
        marks.append(plt.Line2D([], [], color="k", lw=1, ls=_DASHES, label="the mode's twin"))
    return marks


def _limits(pairs: Sequence[Mapping[str, Any]], split: str) -> tuple[float, float]:
    values = [
        value
        for pair in pairs
        for method, summary in pair["methods"].items()
        for found in summary["accuracy"][split].values()
        for value in found["values"]
        if not method.startswith("truncate") or len(pair["methods"]) == 1
    ]
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


# Disagreement.


def draw_verdicts(counts: Mapping[str, int]) -> Figure:
    """Who is right how often: a bar for each of VERDICTS."""
    figure, axes = plt.subplots(figsize=(7, 1.9), layout="constrained")
    total = sum(counts.values())
    shares = [100 * counts[name] / total for name in VERDICTS]
    bars = axes.barh(VERDICTS, shares, color=["#c3cad6", LOW, HIGH, _GREY, _GREY], height=0.65)
    labels = [
        f"{counts[name]:,} ({share:.1f} %)" for name, share in zip(VERDICTS, shares, strict=True)
    ]
    axes.bar_label(bars, labels, padding=4)
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.set(xlabel=f"of {total:,} validation images, %", xlim=(0, max(shares) * 1.2))
    return figure


def draw_disagreements(
    images: np.ndarray,
    labels: np.ndarray,
    probabilities: Mapping[str, np.ndarray],
    margins: np.ndarray,
    class_names: Sequence[str],
    columns: int = 6,
) -> Figure:
    """The images with both answers, how sure each is of its own, and the label; ✓ is right."""
    rows = -(-len(images) // columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=(1.62 * columns, 2.35 * rows), layout="constrained", squeeze=False
    )
    for axes in grid.flat[len(images) :]:
        axes.set_visible(False)
    for i, axes in enumerate(grid.flat[: len(images)]):
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set(visible=True, color="#c3cad6", lw=0.6)
        axes.imshow(images[i].squeeze(), cmap="gray_r", interpolation="nearest")
        lines = [(f"label: {class_names[labels[i]]}", "k")]
        for mode in ("high", "low"):
            answer = probabilities[mode][i].argmax()
            tick = " ✓" if answer == labels[i] else ""
            share = f"{100 * probabilities[mode][i].max():.0f} %"
            lines.append((f"{mode}: {class_names[answer]}, {share}{tick}", COLOURS[mode]))
        lines.append((f"margin {margins[i]:.2f}", "#6c757d"))
        for height, (text, colour) in enumerate(lines):
            axes.annotate(
                text,
                (0, 1),
                (0, 3 + 10.5 * height),
                xycoords="axes fraction",
                textcoords="offset points",
                fontsize=8,
                color=colour,
            )
    return figure


# Calibration.


def draw_reliability(modes: Mapping[str, Reliability]) -> Figure:
    """Accuracy over confidence, bin by bin, and below how many answers are in each."""
    figure, grid = plt.subplots(
        2,
        len(modes),
        figsize=(0.6 + 3.4 * len(modes), 4.3),
        height_ratios=(3, 1),
        sharex=True,
        sharey="row",
        layout="constrained",
    )
    for (upper, lower), (mode, found) in zip(grid.T, modes.items(), strict=True):
        width, centres = np.diff(found.edges), (found.edges[:-1] + found.edges[1:]) / 2
        upper.bar(centres, found.accuracy, 0.92 * width, color=COLOURS[mode], alpha=0.55)
        upper.plot([0, 1], [0, 1], color="k", lw=0.9, ls=_DASHES)
        upper.plot(found.confidence, found.accuracy, "o", color=COLOURS[mode], ms=4)
        upper.set_title(f"{mode}: expected calibration error {100 * found.error:.1f} %")
        lower.bar(centres, 100 * found.count / found.count.sum(), 0.92 * width, color=_GREY)
        lower.set(xlabel="confidence", xlim=(0, 1))
    grid[0, 0].set(ylabel="accuracy", ylim=(0, 1.02))
    grid[1, 0].set_ylabel("answers, %")
    return figure
