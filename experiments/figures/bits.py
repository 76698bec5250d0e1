"""Widths: those of a cycle, what each learns, those that BSQ found.

For experiments/methods/ and notebooks/04_cyclic_and_bsq.ipynb.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from experiments.figures.drawing import COLOURS, DARK, GREY, RECIPES
from experiments.figures.tables import Rows


def draw_sweep(rows: Rows, maps: Mapping[str, Mapping[str, int]], split: str) -> Figure:
    """Left: accuracy against bits per weight, a point for each row. Right: widths of the layers.

    Args:
      rows: with "bits_per_weight", `split` (accuracy in %) and "alpha".
      maps: name of a run -> layer -> bits.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.6, 3.2), layout="constrained")
    left.plot(
        [row["bits_per_weight"] for row in rows],
        [row[split] for row in rows],
        "o",
        color=COLOURS["high"],
    )
    for row in rows:
        left.annotate(
            f"alpha {row['alpha']:g}",
            (row["bits_per_weight"], row[split]),
            xytext=(0, 5),
            textcoords="offset points",
            ha="center",
            fontsize=7,
            color=GREY,
        )
    left.set(xlabel="bits per weight, signs not counted", ylabel=f"{split} accuracy %")
    left.margins(0.2)  # the names stand above their points
    left.grid(alpha=0.25)
    _draw_bars(right, maps)
    return figure


def _draw_bars(axes: Any, maps: Mapping[str, Mapping[str, int]]) -> None:
    names: Sequence[str] = list(next(iter(maps.values())))
    width = 0.8 / len(maps)
    colours = plt.get_cmap("viridis")(np.linspace(0.1, 0.9, len(maps)))
    for index, (run, found) in enumerate(maps.items()):
        at = np.arange(len(names)) - 0.4 + width * (index + 0.5)
        axes.bar(at, [found[name] for name in names], width, color=colours[index], label=run)
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=7)
    axes.set(ylabel="bits, with the sign")
    axes.legend(fontsize=6, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3)  # above the bars


def draw_cycles(bits: np.ndarray, cost: np.ndarray, static: float) -> Figure:
    """The width of every update, and the running cost beside that of the static twin.

    Args:
      bits, cost: [updates], of each one; static: cost of each update of the twin.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.6, 2.8), layout="constrained")
    left.step(range(len(bits)), bits, where="post", color=RECIPES["cyclic"], lw=0.9)
    left.set(xlabel="update", ylabel="bits")
    updates = np.arange(1, len(cost) + 1)
    right.plot(updates, np.cumsum(cost), color=RECIPES["cyclic"], label="cyclic")
    right.plot(updates, static * updates, color=RECIPES["static"], label="static")
    right.set(xlabel="update", ylabel="cost so far, float updates")
    right.legend()
    return figure


def draw_range_test(found: Mapping[str, Any]) -> Figure:
    """Accuracy against bits, from the lower bound on in colour.

    Args:
      found: what range_test.json holds.
    """
    figure, axes = plt.subplots(figsize=(5, 3.2), layout="constrained")
    rows, chance = found["rows"], 100 * found["chance"]
    colours = [COLOURS["high"] if row["bits"] >= found["bound"] else GREY for row in rows]
    axes.bar([row["bits"] for row in rows], [row["accuracy"] for row in rows], color=colours)
    needed = chance + found["threshold"] * (rows[-1]["accuracy"] - chance)
    label = f"{found['threshold']:g} of what the widest learned"
    axes.axhline(needed, color=COLOURS["low"], lw=1, label=label)
    axes.axhline(chance, color=DARK, lw=1, ls=":", label="chance")
    axes.set(xlabel="bits", ylabel="training accuracy %", xticks=[row["bits"] for row in rows])
    when = f"the last {found['window']} of {found['updates']} updates"
    axes.set_title(f"lower bound: {found['bound']} bits, by {when}", fontsize=10)
    axes.margins(y=0.2)  # room for the names of the lines, above all bars
    axes.legend(loc="upper left", ncols=2, fontsize=8)
    return figure
