"""Figures of a packed network at work; numbers come as arguments.

For notebooks/03_deploy.ipynb and for the commands in deploy.py and planes.py.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dual_precision.deploy.cascade.rule import Point
from experiments.figures.training import COLOURS

AUTO = "#6a4c93"
_GREY, _DARK = "#8d99ae", "#343a40"
_DASHES = (0, (4, 3))
# Of curves beside the one that matters.
_BESIDE = ((_DARK, _DASHES), (_GREY, "-"))
# Of widths of activations.
_LINES = (("#c3b1d9", 5.0), (AUTO, 1.8), (_DARK, 0.8))


def draw_requests(milliseconds: Mapping[str, Mapping[int, float]]) -> Figure:
    """Time of every request in its turn, the median of each mode as a line.

    Requests that another process held up do not set the scale: they stand at the upper edge.

    Args:
      milliseconds: mode -> number of the request -> its time.
    """
    medians = {mode: float(np.median([*own.values()])) for mode, own in milliseconds.items()}
    top = 2.5 * max(medians.values())
    figure, axes = plt.subplots(figsize=(7, 2.8), layout="constrained")
    for mode, own in milliseconds.items():
        turns, times = np.array([*own]), np.array([*own.values()])
        held = times > top
        label = f"{mode}, median {medians[mode]:.2f} ms"
        axes.plot(turns[~held], times[~held], "o", ms=4, color=COLOURS[mode], label=label)
        axes.plot(turns[held], np.full(held.sum(), 0.98 * top), "^", ms=6, color=COLOURS[mode])
        axes.axhline(medians[mode], color=COLOURS[mode], lw=0.8, ls=_DASHES, zorder=0)
    held_up = sum(ms > top for own in milliseconds.values() for ms in own.values())
    title = f"; {held_up} above this scale (triangles)" if held_up else ""
    axes.set_title(f"one image a request, another mode each time{title}")
    axes.set(xlabel="request", ylabel="ms", ylim=(0, top))
    axes.legend(loc="lower right", ncols=2)
    return figure


def draw_margins(margins: np.ndarray, right: Mapping[str, np.ndarray], groups: int) -> Figure:
    """Low's margins where it is right and where it is wrong; both modes' accuracy along them.

    Args:
      margins: [N], of low.
      right: mode -> bool [N].
      groups: of images, equally large, from the smallest margin to the largest.
    """
    figure, (left, along) = plt.subplots(1, 2, figsize=(9, 3.3), layout="constrained")
    edges = np.linspace(0, np.quantile(margins, 0.995), 25)
    inside = np.minimum(margins, edges[-1])
    for is_right, colour in ((True, _GREY), (False, COLOURS["low"])):
        own = inside[right["low"] == is_right]
        if not len(own):
            continue
        label = f"low is {'right' if is_right else 'wrong'}: {len(own):,} images"
        share = np.full(len(own), 100 / len(own))
        left.hist(own, edges, weights=share, color=colour, alpha=0.6, label=label)
    left.set(xlabel="low's margin, in logits", ylabel="of these images, %", xlim=(0, edges[-1]))
    left.legend()

    parts = np.array_split(np.argsort(margins), groups)
    ends = np.linspace(0, 100, groups + 1)
    for mode, width in (("low", 2.2), ("high", 1.4)):
        accuracy = [100 * right[mode][part].mean() for part in parts]
        along.stairs(accuracy, ends, baseline=None, color=COLOURS[mode], lw=width, label=mode)
    along.set(
        xlabel="images, from low's smallest margin to its largest, %",
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
      modes: of the two modes, in the order of `draw_cascade`'s.
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
      alone: mode -> (share of the last one's BitOps, accuracy), both in percent; two modes.
      timed: a second panel, accuracy over latency.
    """
    size = (7, 4) if timed is None else (10.5, 4.2)
    figure, grid = plt.subplots(
        1, 1 if timed is None else 2, figsize=size, sharey=True, squeeze=False, layout="constrained"
    )
    axes, styles = grid[0, 0], [(AUTO, "-"), *_BESIDE]
    for order, (name, points) in enumerate(curves.items()):
        colour, dashes = styles[order]
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
        xlabel=f"average BitOps per image, % of {high}'s",
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


def _mark_ways(
    axes: Axes, modes: Mapping[str, tuple[float, float]], chosen: tuple[float, float], mark: str
) -> None:
    """Squares for the two modes, a line at the second one's accuracy, and a star."""
    for (name, place), colour in zip(modes.items(), ("low", "high"), strict=True):
        axes.plot(*place, "s", ms=8, color=COLOURS[colour], label=name)
    _, accuracy = [*modes.values()][-1]
    axes.axhline(accuracy, color=COLOURS["high"], lw=0.8, ls=":", zorder=0)
    axes.plot(*chosen, "*", ms=17, color=AUTO, mec="w", label=mark)
    axes.grid(alpha=0.25)


def first_kernels(values: np.ndarray, image_shape: tuple[int, ...]) -> np.ndarray:
    """A first layer's kernels as pictures: [height, width, channels, kernels].

    Args:
      values: [H * W * C, kernels] of a Dense, or [h, w, side * side * C, kernels] of a Conv whose
        stem stacked blocks of side x side pixels into channels.
      image_shape: [H, W, C].
    """
    if values.ndim == 2:
        return values.reshape(*image_shape, -1)
    height, width, inputs, count = values.shape
    channels = image_shape[-1]
    side = math.isqrt(inputs // channels)
    blocks = values.reshape(height, width, side, side, channels, count)
    return blocks.transpose(0, 2, 1, 3, 4, 5).reshape(height * side, width * side, channels, count)


def draw_kernels(kept: Mapping[int, np.ndarray]) -> Figure:
    """Kernels as images, a row for every number of planes; each on the scale of its last row.

    Args:
      kept: number of planes -> values [H, W, 1 or 3, kernels]; the last row is the whole.
    """
    *_, whole = kept.values()
    largest = np.abs(whole).max(axis=(0, 1, 2))
    count = whole.shape[-1]
    figure, grid = plt.subplots(
        len(kept), count, figsize=(0.8 + 0.72 * count, 0.78 * len(kept)), layout="constrained"
    )
    for row, (planes, values) in zip(grid, kept.items(), strict=True):
        for index, axes in enumerate(row):
            shown = np.clip(0.5 + 0.5 * values[..., index] / largest[index], 0, 1)
            axes.imshow(shown.squeeze(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        label = f"{planes} plane{'s' * (planes > 1)}"
        row[0].set_ylabel(label, rotation=0, ha="right", va="center")
    return figure


def draw_planes(
    curves: Mapping[str, Mapping[int, float]], whole: tuple[str, float], title: str, split: str
) -> Figure:
    """Error over the number of planes, a line for each width of activations.

    The axis ends at one and a half times the error of the whole network, so that a tenth of a point
    can be seen; of points above it the largest number is written.

    Args:
      curves: name -> planes -> accuracy in percent.
      whole: the mode that the planes come from, and its accuracy.
    """
    mode, value = whole
    top = max(1.5 * (100 - value), 0.5)
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    worst: dict[int, float] = {}
    # They lie on one another: the wider line below shows at both sides of the narrower.
    for (name, accuracy), (colour, width) in zip(curves.items(), _LINES, strict=False):
        errors = {planes: 100 - own for planes, own in accuracy.items()}
        counts = range(1, max(errors) + 1)  # no line over what was not measured
        drawn = [errors.get(planes, math.nan) for planes in counts]
        axes.plot(counts, drawn, "o-", color=colour, lw=width, ms=4 + width, label=name)
        worst |= {planes: max(error, worst.get(planes, 0)) for planes, error in errors.items()}
    label = f"{mode}, as it was trained"
    axes.axhline(100 - value, color=COLOURS[mode], lw=1.2, ls=_DASHES, label=label)
    for planes, error in worst.items():
        if error > top:
            axes.annotate(
                f"\u2191 {error:.1f}",
                (planes, top),
                xytext=(0, -14),
                ha="center",
                textcoords="offset points",
                color=_DARK,
            )
    lowest = min(100 - value, *(100 - own for curve in curves.values() for own in curve.values()))
    axes.set(xlabel="planes of the weights that are read", ylabel=f"{split} error, %", title=title)
    axes.set_ylim(lowest - 0.1 * top, top)
    axes.set_xticks(range(1, max(worst) + 1))
    axes.grid(alpha=0.25)
    axes.legend(loc="upper right")
    return figure


def save(figure: Figure, path: Path) -> None:
    """Writes a figure as PNG, and closes it."""
    figure.savefig(path, dpi=144)
    plt.close(figure)
