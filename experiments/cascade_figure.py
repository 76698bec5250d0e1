"""The figure of `python -m experiments.deploy cascade`: accuracy against cost and latency."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.report import COLOURS

_AUTO, _PLAIN = "#6a4c93", "#adb5bd"


def plot_cascade(found: Mapping[str, Any], chosen: str, path: Path) -> None:
    """Validation accuracy over BitOps and over the latency of a batch, as PNG.

    Args:
      found: what `experiments.cascade.run` gives.
      chosen: the row of its sweep to mark.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), sharey=True, layout="constrained")
    curves = {"curve": ("auto", _AUTO)}
    if "curve_without_mirror" in found:
        curves["curve_without_mirror"] = ("auto without the mirrored look", _PLAIN)
    for key, (label, colour) in reversed(curves.items()):
        points = [point for point in found[key] if point["relative"] <= 1.05]
        left.plot(
            [100 * point["relative"] for point in points],
            [point["accuracy"] for point in points],
            color=colour,
            label=label,
        )
    low, *autos, high = found["sweep"]
    right.plot(
        [row["full"] for row in autos if row["way"] != chosen],
        [row["accuracy"] for row in autos if row["way"] != chosen],
        "o-",
        ms=4,
        color=_AUTO,
        label="auto",
    )
    for axes, key in ((left, "relative"), (right, "full")):
        for row, colour in ((low, COLOURS["low"]), (high, COLOURS["high"])):
            axes.plot(row[key], row["accuracy"], "s", ms=8, color=colour, label=row["way"])
        mark = next(row for row in autos if row["way"] == chosen)
        axes.plot(mark[key], mark["accuracy"], "*", ms=15, color=_AUTO, label="chosen")
        axes.axhline(high["accuracy"], color=COLOURS["high"], lw=0.8, ls=":")
        axes.grid(alpha=0.3)
    left.set(
        xlabel=f"average BitOps per image, % of {high['way']}'s",
        ylabel="validation accuracy, %",
        xlim=(0, 108),
    )
    right.set(xlabel=f"ms per image in the largest batch, {found['device']}", xlim=(0, None))
    left.legend(loc="lower right")
    figure.savefig(path, dpi=144)
    plt.close(figure)
