"""A packed network that answers requests: their times, the margins of low, the cascade.

For notebooks/03_deploy.ipynb and `python -m experiments.deploy cascade`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dual_precision.deploy.cascade.rule import Point
from experiments.figures.drawing import AUTO, COLOURS, DARK, DASHES, GREY

# Of the curve that matters, and of those beside it by the end of their name: alike in every figure.
_MAIN, _OTHER = (AUTO, "-"), (DARK, ":")
_BESIDE = {"without reuse": (DARK, DASHES), "without the mirrored look": (GREY, "-")}


def draw_requests(milliseconds: Mapping[str, Mapping[int, float]]) -> Figure:
    """Time of every request in its turn, the median of each mode as a line.

    Requests that another process held up do not set the scale: they stand at the upper edge.

    Args:
      milliseconds: mode -> number of the request -> its time.
    """
    medians = {
        mode: float(np.median([*by_turn.values()])) for mode, by_turn in milliseconds.items()
    }
    top = 2.5 * max(medians.values())
    figure, axes = plt.subplots(figsize=(7, 2.8), layout="constrained")
    for mode, by_turn in milliseconds.items():
        turns, times = np.array([*by_turn]), np.array([*by_turn.values()])
        held = times > top
        label = f"{mode}, median {medians[mode]:.2f} ms"
        axes.plot(turns[~held], times[~held], "o", ms=4, color=COLOURS[mode], label=label)
        axes.plot(turns[held], np.full(held.sum(), 0.98 * top), "^", ms=6, color=COLOURS[mode])
        axes.axhline(medians[mode], color=COLOURS[mode], lw=0.8, ls=DASHES, zorder=0)
    held_up = sum(ms > top for by_turn in milliseconds.values() for ms in by_turn.values())
    title = f"; {held_up} above this scale (triangles)" if held_up else ""
    axes.set_title(f"one image a request, another mode each time{title}")
    axes.set(xlabel="request", ylabel="ms", ylim=(0, top))
    axes.legend(loc="lower right", ncols=2)
    return figure


def draw_margins(margins: np.ndarray, right: Mapping[str, np.ndarray], groups: int) -> Figure:
    """Margins of low, where it is right and where it is wrong; accuracy of both modes along them.

    Args:
      margins: [N], of low.
      right: mode -> bool [N].
      groups: of images, equally large, from the smallest margin to the largest.
    """
    figure, (left, along) = plt.subplots(1, 2, figsize=(9, 3.3), layout="constrained")
    edges = np.linspace(0, np.quantile(margins, 0.995), 25)
    inside = np.minimum(margins, edges[-1])
    for is_right, colour in ((True, GREY), (False, COLOURS["low"])):
        group = inside[right["low"] == is_right]
        if not len(group):
            continue
        label = f"low is {'right' if is_right else 'wrong'}: {len(group):,} images"
        share = np.full(len(group), 100 / len(group))
        left.hist(group, edges, weights=share, color=colour, alpha=0.6, label=label)
    left.set(xlabel="margin of low, in logits", ylabel="of these images, %", xlim=(0, edges[-1]))
    left.legend()

    parts = np.array_split(np.argsort(margins), groups)
    ends = np.linspace(0, 100, groups + 1)
    for mode, width in (("low", 2.2), ("high", 1.4)):
        accuracy = [100 * right[mode][part].mean() for part in parts]
        along.stairs(accuracy, ends, baseline=None, color=COLOURS[mode], lw=width, label=mode)
    along.set(
        xlabel="images, from the smallest margin of low to the largest, %",
        ylabel="right, %",
        xlim=(0, 100),
    )
    along.grid(alpha=0.25)
    along.legend(loc="lower right")
    return figure


@dataclasses.dataclass(frozen=True)
class Timed:
    """Milliseconds per image and accuracy in percent, as pairs.

    Attributes:
      modes: of the two modes, in the order that `draw_cascade` has them.
      autos: of the cascade at some thresholds; chosen: at the one chosen.
      device: where they were timed.
    """

    modes: Sequence[tuple[float, float]]
    autos: Sequence[tuple[float, float]]
    chosen: tuple[float, float]
    device: str


def draw_cascade(
    curves: Mapping[str, Sequence[Point]],
    alone: Mapping[str, tuple[float, float]],
    chosen: Point,
    split: str,
    timed: Timed | None = None,
) -> Figure:
    """Accuracy over BitOps at every threshold, the two modes alone, and the point chosen.

    Args:
      curves: name -> points; the first is the one that `chosen` is of.
      alone: mode -> (share of the BitOps of the last one, accuracy), both in percent; two modes.
      timed: a second panel, accuracy over latency.
    """
    size = (7, 4) if timed is None else (10.5, 4.2)
    figure, grid = plt.subplots(
        1, 1 if timed is None else 2, figsize=size, sharey=True, squeeze=False, layout="constrained"
    )
    axes = grid[0, 0]
    for order, (name, points) in enumerate(curves.items()):
        colour, dashes = _style_beside(name) if order else _MAIN
        axes.plot(
            [100 * point.relative for point in points],
            [point.accuracy for point in points],
            color=colour,
            ls=dashes,
            lw=1.2 if order else 2.2,
            zorder=2 - order / 10,
            label=name,
        )
    high = [*alone][-1]
    mark = f"chosen: {100 * chosen.escalated:.0f} % of the images reach {high}"
    _mark_ways(axes, alone, (100 * chosen.relative, chosen.accuracy), mark)
    axes.set(
        xlabel=f"average BitOps per image, % of those of {high}",
        ylabel=f"{split} accuracy, %",
        xlim=(0, None),
    )
    axes.margins(y=0.1)
    axes.legend(loc="lower right")
    if timed is not None:
        right = grid[0, 1]
        times, accuracies = [[pair[i] for pair in timed.autos] for i in (0, 1)]
        right.plot(times, accuracies, "o-", ms=4, color=AUTO)
        _mark_ways(right, dict(zip(alone, timed.modes, strict=True)), timed.chosen, mark)
        right.set(xlabel=f"ms per image in the largest batch, {timed.device}", xlim=(0, None))
    return figure


def _style_beside(name: str) -> tuple[str, Any]:
    """Colour and dashes of a curve beside the first."""
    return next((style for end, style in _BESIDE.items() if name.endswith(end)), _OTHER)


def _mark_ways(
    axes: Axes, modes: Mapping[str, tuple[float, float]], chosen: tuple[float, float], mark: str
) -> None:
    """Squares for the two modes, a line at the accuracy of the second, and a star."""
    for (name, place), colour in zip(modes.items(), ("low", "high"), strict=True):
        axes.plot(*place, "s", ms=8, color=COLOURS[colour], label=name)
    _, accuracy = [*modes.values()][-1]
    axes.axhline(accuracy, color=COLOURS["high"], lw=0.8, ls=":", zorder=0)
    axes.plot(*chosen, "*", ms=17, color=AUTO, mec="w", label=mark)
    axes.grid(alpha=0.25)
