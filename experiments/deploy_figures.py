"""Figures of notebooks/03_deploy.ipynb: a packed network at work; numbers come as arguments."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import pyplot as plt
from matplotlib import ticker
from matplotlib.figure import Figure

from dual_precision.deploy.cascade import Point
from experiments.report import COLOURS

AUTO = "#6a4c93"
_GREY, _DARK = "#8d99ae", "#343a40"
_DASHES = (0, (4, 3))
# Of curves beside the one that matters.
_BESIDE = (("#343a40", _DASHES), (_GREY, "-"))


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


def draw_cascade(
    curves: Mapping[str, Sequence[Point]],
    alone: Mapping[str, tuple[float, float]],
    chosen: Point,
    split: str,
) -> Figure:
    """Accuracy over BitOps at every threshold, the two modes alone, and the point chosen.

    Args:
      curves: name -> points; the first is the one that `chosen` is of.
      alone: mode -> (share of high's BitOps, accuracy), both in percent.
    """
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    styles = [(AUTO, "-"), *_BESIDE]
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
    for mode, (cost, accuracy) in alone.items():
        axes.plot(cost, accuracy, "s", ms=8, color=COLOURS[mode], label=mode)
    axes.axhline(alone["high"][1], color=COLOURS["high"], lw=0.8, ls=":", zorder=0)
    mark = f"chosen: {100 * chosen.escalated:.0f} % of the images reach high"
    place = 100 * chosen.relative, chosen.accuracy
    axes.plot(*place, "*", ms=17, color=AUTO, mec="w", label=mark)
    axes.set(
        xlabel="average BitOps per image, % of high's",
        ylabel=f"{split} accuracy, %",
        xlim=(0, None),
    )
    axes.margins(y=0.1)
    axes.grid(alpha=0.25)
    axes.legend(loc="lower right")
    return figure


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
    curves: Mapping[str, Sequence[float]], whole: tuple[str, float], title: str, split: str
) -> Figure:
    """Accuracy over the number of planes, from 1 on; the last curve carries its numbers.

    Args:
      curves: name -> accuracy in percent of 1, 2, ... planes.
      whole: the mode that the planes come from, and its accuracy.
    """
    figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
    last = list(curves)[-1]
    # They lie on one another: the wider line below shows at both sides of the narrower.
    for name, accuracy in curves.items():
        top = name == last
        planes = range(1, len(accuracy) + 1)
        colour = AUTO if top else "#c3b1d9"
        width = 1.4 if top else 5.0
        axes.plot(planes, accuracy, "o-", lw=width, ms=3.5 + width, color=colour, label=name)
        for count, value in zip(planes, accuracy, strict=True):
            if top:
                axes.annotate(
                    f"{value:.1f}",
                    (count, value),
                    (2, -15),
                    textcoords="offset points",
                    color=_DARK,
                )
    mode, value = whole
    label = f"{mode}, as it was trained"
    axes.axhline(value, color=COLOURS[mode], lw=1, ls=_DASHES, label=label, zorder=0)
    axes.set(xlabel="planes of the weights that are read", ylabel=f"{split} accuracy, %")
    axes.set_title(title)
    axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    axes.margins(x=0.07, y=0.15)
    axes.grid(alpha=0.25)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 0.12))
    return figure
