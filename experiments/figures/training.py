"""What a run leaves for its reader: a table and a plot of its modes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.figures.drawing import COLOURS, pyplot_for_files, save_figure
from experiments.figures.tables import Rows, markdown_table

_COLUMNS = (
    ("mode", "mode", "{}"),
    ("bits", "bits", "{}"),
    ("validation", "validation %", "{:.2f}"),
    ("test", "test %", "{:.2f}"),
    ("weight_bytes", "weight bytes", "{:,}"),
    ("bit_operations", "BitOps/image", "{:.3g}"),
)


def results_table(rows: Rows) -> str:
    """Accuracy and cost, one row per mode, in Markdown."""
    return markdown_table(rows, _COLUMNS)


def plot_training(records: Sequence[Mapping[str, Any]], modes: Rows, path: Path) -> None:
    """Validation accuracy of each mode over the epochs, with the phases marked, as PNG."""
    plot_curves(records, modes, path, "accuracy", "validation accuracy, %", unit=0.01, rises=True)


def plot_curves(
    records: Sequence[Mapping[str, Any]],
    modes: Rows,
    path: Path,
    measure: str,
    label: str,
    unit: float = 1.0,
    rises: bool = False,
) -> None:
    """A validated measure of each mode over the epochs, with the phases marked, as PNG.

    Args:
      modes: rows with the entries "mode" and "bits".
      measure: what evaluations call it, as in validation_low_<measure>.
      label: of its axis, in units of so many as `unit`.
      rises: whether it rises as training goes on, which leaves room below for the legend.
    """
    figure, axes = pyplot_for_files().subplots(figsize=(7, 4.2), layout="constrained")
    for row in modes:
        name = row["mode"]
        curve = since_trained(records, name)
        axes.plot(
            [record["epoch"] for record in curve],
            [record[f"validation_{name}_{measure}"] / unit for record in curve],
            "o-",
            ms=3,
            color=COLOURS.get(name),
            label=f"{name} ({row['bits']})",
        )
    mark_phases(axes, records)
    axes.set(xlabel="epoch", ylabel=label, xlim=(0, records[-1]["epoch"] * 1.02))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right" if rises else "upper right")
    save_figure(figure, path)


def since_trained(records: Sequence[Mapping[str, Any]], mode: str) -> Rows:
    """The records from the first that trained the mode on; all that there are if none did."""
    trained = [index for index, record in enumerate(records) if f"{mode}_loss" in record]
    return records[trained[0] :] if trained else records[-1:]


def mark_phases(axes: Any, records: Sequence[Mapping[str, Any]]) -> None:
    """Shades the phases of a run and names them."""
    first, last = 0, len(records)
    for index, record in enumerate(records):
        end = index + 1 == last or records[index + 1]["phase"] != record["phase"]
        if end:
            axes.axvspan(first, record["epoch"], color="k", alpha=0.04 if index + 1 < last else 0)
            middle = (first + record["epoch"]) / 2
            axes.annotate(
                record["phase"],
                (middle, 1),
                xytext=(0, 3),
                textcoords="offset points",
                ha="center",
                va="bottom",
                fontsize=9,
                color="#555",
                xycoords=("data", "axes fraction"),
            )
            first = record["epoch"]
