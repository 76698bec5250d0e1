"""Scaling curves of a model: efficiency, and speed-up, over the number of devices."""

from collections.abc import Mapping
from pathlib import Path

from experiments.figures.drawing import AUTO, COLOURS, GREY, pyplot_for_files, save_figure

Curve = Mapping[int, float]  # devices -> value
# Model -> (interconnect, way) -> (weak efficiency, strong speed-up).
Curves = Mapping[str, Mapping[tuple[str, str], tuple[Curve, Curve]]]
_LINES = ("--", "-", ":")  # of interconnects


def plot_scaling(curves: Curves, path: Path) -> None:
    """A row for each model: weak scaling on the left, strong on the right."""
    plt = pyplot_for_files()
    size = (9, 0.6 + 2.8 * len(curves))
    figure, grid = plt.subplots(len(curves), 2, figsize=size, layout="constrained", squeeze=False)
    for (weak, strong), (model, lines) in zip(grid, curves.items(), strict=True):
        links = list(dict.fromkeys(link for link, _ in lines))
        ways = list(dict.fromkeys(way for _, way in lines))
        colours = dict(zip(ways, (COLOURS["low"], AUTO, COLOURS["high"], GREY), strict=False))
        for (link, way), values in lines.items():
            style = _LINES[links.index(link) % len(_LINES)]
            for axes, curve in zip((weak, strong), values, strict=True):
                label = f"{way}; {link}"
                axes.plot(*zip(*curve.items(), strict=True), style, color=colours[way], label=label)
        weak.set(title=f"{model}: weak, share of time that computes", xscale="log", ylim=(0, 1.05))
        strong.set(title=f"{model}: strong, speed-up", xscale="log", yscale="log")
        for axes in (weak, strong):
            axes.set_xlabel("devices")
            axes.spines[["top", "right"]].set_visible(False)
    figure.legend(
        *grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=7
    )
    save_figure(figure, path)
