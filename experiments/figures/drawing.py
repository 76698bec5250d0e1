"""What all figures share: colours, and files without a screen."""

from pathlib import Path
from typing import Any

COLOURS = {"low": "#d1495b", "high": "#00798c", "float": "#6c757d"}
AUTO, GREY, DARK = "#6a4c93", "#8d99ae", "#343a40"
RECIPES = {"cyclic": AUTO, "static": GREY}  # both are trained for high: that colour tells nothing
DASHES = (0, (4, 3))
# For the notebooks: plt.rcParams.update(STYLE).
STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "figure.dpi": 110,
    "font.size": 9,
    "legend.frameon": False,
}


def pyplot_for_files() -> Any:
    """matplotlib.pyplot as commands use it: without a window, and so without a screen.

    Imported only here, so that a command which draws nothing runs without matplotlib. Notebooks
    have another backend, and do not call this.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def save_figure(figure: Any, path: Path) -> None:
    """Writes a figure of `pyplot_for_files`, in the format that its name asks for."""
    figure.savefig(path, dpi=144)
    pyplot_for_files().close(figure)
