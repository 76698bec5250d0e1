"""Weights of the layers whose width the modes switch: their codes, and their place in the cells.

For notebooks/02_two_phase.ipynb and notebooks/03_deploy.ipynb.
"""

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dual_precision.primitives.nested import encode
from dual_precision.structure import Layer
from experiments.figures.drawing import COLOURS

TreePath = tuple[str, ...]
Leaves = dict[TreePath, np.ndarray]  # some leaves of a parameter tree: ("conv1", "kernel") -> array
LOW, HIGH = COLOURS["low"], COLOURS["high"]
_INK = "#333333"


def switching_layers(layers: Mapping[TreePath, Layer]) -> dict[TreePath, Layer]:
    """Layers whose weights the two modes read with different widths."""
    return {
        path: layer
        for path, layer in layers.items()
        if layer.table["low"].weights != layer.table["high"].weights
    }


def width(layer: Layer, mode: str) -> int:
    """Bits of the codes that a mode reads; all stored ones where it reads float latents."""
    bits = layer.table[mode].weights or layer.stored
    assert bits is not None, "every layer of a two_phase network is on the grid"
    return bits


def leaves(params: Mapping[str, Any], paths: Iterable[TreePath], *names: str) -> Leaves:
    """The named leaves ("kernel", ...) of the layers at `paths`."""
    flat = flatten_dict(params)
    return {(*path, name): np.asarray(flat[(*path, name)]) for path in paths for name in names}


def codes(params: Mapping[str, Any], layers: Mapping[TreePath, Layer], mode: str) -> np.ndarray:
    """The codes that a mode reads, of all weights of the layers, in one row."""
    found = []
    for path, layer in layers.items():
        kernel, step = leaves(params, [path], "kernel", "step").values()
        assert layer.stored is not None
        each = encode(jnp.asarray(kernel), jnp.asarray(step), width(layer, mode), layer.stored)
        found.append(np.ravel(each))
    return np.concatenate(found)


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
        plt.Line2D([], [], marker="o", ls="", ms=4, color=LOW, label="its low code has changed"),
        plt.Line2D([], [], color=LOW, lw=2, label="edge of a low cell"),
        plt.Line2D([], [], color=HIGH, lw=0.8, label="edge of a high cell"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4)
    return figure


def _codes(w: np.ndarray, step: float, bits: int, stored: int) -> np.ndarray:
    return np.asarray(encode(jnp.asarray(w), jnp.float32(step)[None], bits, stored))


def _draw_cells(axes: Axes, row: int, cell: float, bits: int, limit: float) -> None:
    """The cells of low as bands with their codes; the outer ones have no end."""
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
