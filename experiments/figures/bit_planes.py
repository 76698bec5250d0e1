"""Bit planes: kernels rebuilt from the first of them, the error against how many are read.

For notebooks/03_deploy.ipynb and `python -m experiments.methods.planes`.
"""

import math
from collections.abc import Mapping

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from experiments.figures.drawing import AUTO, COLOURS, DARK, DASHES

_WIDTHS = (("#c3b1d9", 5.0), (AUTO, 1.8), (DARK, 0.8))  # colour and line, of widths of activations


def first_kernels(values: np.ndarray, image_shape: tuple[int, ...]) -> np.ndarray:
    """The kernels of a first layer as pictures: [height, width, channels, kernels].

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
    for (name, accuracy), (colour, width) in zip(curves.items(), _WIDTHS, strict=False):
        errors = {planes: 100 - percent for planes, percent in accuracy.items()}
        counts = range(1, max(errors) + 1)  # no line over what was not measured
        drawn = [errors.get(planes, math.nan) for planes in counts]
        axes.plot(counts, drawn, "o-", color=colour, lw=width, ms=4 + width, label=name)
        worst |= {planes: max(error, worst.get(planes, 0)) for planes, error in errors.items()}
    label = f"{mode}, as it was trained"
    axes.axhline(100 - value, color=COLOURS[mode], lw=1.2, ls=DASHES, label=label)
    for planes, error in worst.items():
        if error > top:
            axes.annotate(
                f"\u2191 {error:.1f}",
                (planes, top),
                xytext=(0, -14),
                ha="center",
                textcoords="offset points",
                color=DARK,
            )
    best = max(value, *(max(accuracy.values()) for accuracy in curves.values()))
    axes.set(xlabel="planes of the weights that are read", ylabel=f"{split} error, %", title=title)
    axes.set_ylim(100 - best - 0.1 * top, top)
    axes.set_xticks(range(1, max(worst) + 1))
    axes.grid(alpha=0.25)
    axes.legend(loc="upper right")
    return figure
