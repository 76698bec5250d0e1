"""Figures of notebooks/02_two_phase.ipynb on weights and the loss around them."""

import itertools
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dual_precision.primitives.nested import encode
from experiments.figures.training import COLOURS

LOW, HIGH = COLOURS["low"], COLOURS["high"]
_INK = "#333333"
Losses = Mapping[str, np.ndarray]  # mode -> losses [n]


def draw_grid(
    weights: Mapping[str, tuple[np.ndarray, float]],
    widths: tuple[int, int],
    stored: int,
    title: str,
) -> Figure:
    """Latents of one channel at every stage, over its cells then; on the right, around zero.

    Args:
      weights: stage -> (latents [n], step of the stored grid).
      widths: bits of low and of high.
      stored: bits of the stored grid.
    """
    figure, (whole, zoom) = plt.subplots(
        1,
        2,
        figsize=(10, 0.9 + 1.1 * len(weights)),
        width_ratios=(3, 2),
        sharey=True,
        layout="constrained",
    )
    thick = 2 ** (stored - widths[0])
    widest = max(step for _, step in weights.values())
    reach = max(
        max(np.abs(w).max(), step * thick * 2 ** (widths[0] - 1)) for w, step in weights.values()
    )
    near = min(8 * widest * 2 ** (stored - widths[1]), 1.04 * reach)
    before = None
    for row, (w, step) in enumerate(weights.values()):
        codes = _codes(w, step, widths[0], stored)
        moved = np.zeros(len(w), bool) if before is None else codes != before
        before = codes
        for axes, limit in ((whole, 1.04 * reach), (zoom, near)):
            _draw_cells(axes, row, step * thick, widths[0], limit)
            _draw_marks(axes, row, w, moved)
        fine = step * 2 ** (stored - widths[1])
        _draw_ruler(zoom, row, fine, widths[1], near)
    whole.set_yticks(range(len(weights)), list(weights))
    whole.set(xlim=(-1.04 * reach, 1.04 * reach), ylim=(len(weights) - 0.4, -0.6))
    zoom.set(xlim=(-near, near))
    whole.set_title(f"{title}: cells and codes of low")
    zoom.set_title("around zero: cells of high, too")
    for axes in (whole, zoom):
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("weight")
        axes.xaxis.set_major_locator(MaxNLocator(5))
    handles = [
        plt.Line2D([], [], marker="o", ls="", ms=4, color=_INK, label="a weight"),
        plt.Line2D([], [], marker="o", ls="", ms=4, color=LOW, label="low's code has changed"),
        plt.Line2D([], [], color=LOW, lw=2, label="edge of low's cells"),
        plt.Line2D([], [], color=HIGH, lw=0.8, label="edge of high's"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4)
    return figure


def _codes(w: np.ndarray, step: float, bits: int, stored: int) -> np.ndarray:
    return np.asarray(encode(jnp.asarray(w), jnp.float32(step)[None], bits, stored))


def _draw_cells(axes: Axes, row: int, cell: float, bits: int, limit: float) -> None:
    """Low's cells as bands with their codes; the outer ones have no end."""
    top = 2 ** (bits - 1)
    edges = np.arange(1 - top, top) * cell
    ends = [-limit, *edges, limit]
    for code, (start, stop) in enumerate(itertools.pairwise(ends), -top):
        if start >= limit or stop <= -limit:
            continue
        start, stop = max(start, -limit), min(stop, limit)
        axes.fill_between([start, stop], row - 0.34, row + 0.34, color=LOW, alpha=0.06, lw=0)
        if stop - start > 0.04 * limit:
            axes.annotate(
                f"{code}",
                ((start + stop) / 2, row - 0.36),
                ha="center",
                va="bottom",
                fontsize=7.5,
                color=LOW,
            )
    axes.vlines(edges[np.abs(edges) < limit], row - 0.34, row + 0.34, color=LOW, lw=2)


def _draw_ruler(axes: Axes, row: int, cell: float, bits: int, limit: float) -> None:
    edges = np.arange(1 - 2 ** (bits - 1), 2 ** (bits - 1)) * cell
    inside = edges[np.abs(edges) < limit]
    axes.vlines(inside, row - 0.34, row + 0.34, color=HIGH, lw=0.8, alpha=0.7, zorder=1.5)


def _draw_marks(axes: Axes, row: int, w: np.ndarray, moved: np.ndarray) -> None:
    """Spread over the height by the golden ratio, so that neighbours in value stay apart."""
    height = row + 0.52 * ((np.arange(len(w)) * 0.618034) % 1 - 0.5)
    for mask, colour in ((~moved, _INK), (moved, LOW)):
        axes.plot(w[mask], height[mask], "o", color=colour, ms=2.6, mew=0, alpha=0.75)


def draw_landscape(
    wide: tuple[np.ndarray, Losses],
    close: tuple[np.ndarray, Losses],
    pieces: tuple[np.ndarray, np.ndarray],
    ends: tuple[np.ndarray, Losses] | None,
) -> Figure:
    """Both modes' loss along a random line, from afar and close up, and between phase ends.

    Args:
      wide, close, ends: (places [n], mode -> losses [n]).
      pieces: (edges [m + 1] of the intervals in which low's codes stay, low's loss in each [m]).
    """
    panels = 2 if ends is None else 3
    figure, grid = plt.subplots(1, panels, figsize=(0.4 + 3.3 * panels, 3.2), layout="constrained")
    _draw_losses(grid[0], *wide)
    grid[0].set(title="random direction", xlabel="t, in norms of the filters", ylabel="loss")
    _draw_staircase(grid[1], *close, *pieces)
    if ends is not None:
        _draw_losses(grid[2], *ends)
        grid[2].set(title="between the last two phase ends", ylabel="loss")
        grid[2].set_xticks([0, 0.5, 1], ["the earlier", "halfway", "the last"])
    handles = [
        plt.Line2D([], [], marker="o", ms=3, color=COLOURS[mode], label=mode)
        for mode in ("low", "high")
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=2)
    for axes in grid:
        axes.grid(alpha=0.25)
    return figure


def _draw_losses(axes: Axes, places: np.ndarray, losses: Losses) -> None:
    for mode, found in losses.items():
        axes.plot(places, found, "o-", ms=2.8, lw=1.2, color=COLOURS[mode])


def _draw_staircase(
    axes: Axes, places: np.ndarray, losses: Losses, edges: np.ndarray, steps: np.ndarray
) -> None:
    """Changes of the loss against t = 0, in thousandths; t in units of a power of ten."""
    power = int(np.floor(np.log10(edges[-1])))
    low = steps[np.searchsorted(edges, 0) - 1]
    high = losses["high"][np.argmin(np.abs(places))]
    t = places / 10.0**power
    axes.stairs(1e3 * (steps - low), edges / 10.0**power, baseline=None, color=LOW, lw=1.4)
    axes.plot(t, 1e3 * (losses["low"] - low), "o", color=LOW, ms=2.8)
    axes.plot(t, 1e3 * (losses["high"] - high), "o-", color=HIGH, ms=2.8, lw=0.8)
    axes.set(
        title="the same, close up",
        xlabel=f"t · $10^{{{-power}}}$",
        ylabel="(loss - loss at t = 0) · $10^3$",
    )
