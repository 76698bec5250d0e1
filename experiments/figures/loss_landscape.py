"""The loss of both modes while the weights move along a line.

For notebooks/02_two_phase.ipynb.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dual_precision.data import Images
from dual_precision.structure import Layer
from dual_precision.tasks.classification import Classification
from dual_precision.training.metrics import evaluate
from experiments.figures.drawing import COLOURS
from experiments.figures.layer_weights import HIGH, LOW, Leaves, TreePath, leaves, width

Losses = Mapping[str, np.ndarray]  # mode -> losses [n]


def random_direction(kernels: Leaves, seed: int) -> Leaves:
    """Normal noise, scaled so that every filter (output channel) has its norm in the kernel.

    Source: Li et al. 2018, "Visualizing the Loss Landscape of Neural Nets", arXiv 1712.09913.
    """
    generator = np.random.default_rng(seed)
    found = {}
    for path, kernel in kernels.items():
        noise = generator.standard_normal(kernel.shape)
        axes = tuple(range(kernel.ndim - 1))
        norms = [np.sqrt((x.astype(np.float64) ** 2).sum(axes)) for x in (kernel, noise)]
        found[path] = (noise * (norms[0] / norms[1])).astype(np.float32)
    return found


def crossings(
    kernel: np.ndarray, direction: np.ndarray, step: np.ndarray, bits: int, stored: int
) -> np.ndarray:
    """Every t at which a weight of kernel + t * direction changes its `bits`-wide code; sorted.

    Between two of them, of all kernels that move, a mode of that width computes the same numbers.
    """
    top = 2 ** (bits - 1)
    edges = np.arange(1 - top, top) * 2.0 ** (stored - bits)  # inner ones: the outer cells are open
    with np.errstate(divide="ignore", invalid="ignore"):
        at = (edges * step[:, None] - kernel[..., None]) / direction[..., None]
    return np.sort(at[np.isfinite(at)])


def stretches(
    params: Mapping[str, Any], layers: Mapping[TreePath, Layer], direction: Leaves, changes: int
) -> np.ndarray:
    """The intervals around t = 0 within which the codes of low stay: edges [changes + 2], sorted.

    Args:
      layers: those that `direction` moves.
      changes: how many changes of a code, the nearest ones, the edges hold between their ends.
    """
    found = []
    for path, layer in layers.items():
        kernel, step = leaves(params, [path], "kernel", "step").values()
        assert layer.stored is not None
        bits = width(layer, "low")
        found.append(crossings(kernel, direction[(*path, "kernel")], step, bits, layer.stored))
    at = np.concatenate(found)
    at = at[np.argsort(np.abs(at))][: changes + 1]
    reach = np.abs(at[-1])
    return np.sort([-reach, *at[:-1], reach])


def losses_along(
    model: nn.Module,
    variables: Mapping[str, Any],
    direction: Leaves,
    places: Sequence[float] | np.ndarray,
    images: np.ndarray,
    labels: np.ndarray,
    precision: str,
) -> np.ndarray:
    """Mean cross entropy of a mode at parameters + t * direction, for each t of `places`."""
    task, split = Classification(images.shape[1:]), Images(images, labels)
    flat, losses = flatten_dict(variables["params"]), []
    for t in places:
        moved = {p: np.asarray(flat[p]) + np.float32(t) * each for p, each in direction.items()}
        there = {**variables, "params": unflatten_dict({**flat, **moved})}
        result = evaluate(
            model, there, split, task=task, precision=precision, batch_size=len(images)
        )
        losses.append(result["loss"])
    return np.array(losses)


def draw_landscape(
    wide: tuple[np.ndarray, Losses],
    close: tuple[np.ndarray, Losses],
    pieces: tuple[np.ndarray, np.ndarray],
    ends: tuple[np.ndarray, Losses] | None,
) -> Figure:
    """The loss of both modes along a random line, from afar and close up, and between phase ends.

    Args:
      wide, close, ends: (places [n], mode -> losses [n]).
      pieces: (edges [m + 1] of the intervals in which the codes of low stay, its loss in each [m]).
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
