"""What a run on text leaves for its reader: a table and a plot of its modes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.figures.drawing import COLOURS, pyplot_for_files, save_figure
from experiments.figures.tables import Rows, markdown_table
from experiments.figures.training import mark_phases, since_trained

_COLUMNS = (
    ("mode", "mode", "{}"),
    ("bits", "bits", "{}"),
    ("validation_bits", "validation bits/byte", "{:.3f}"),
    ("test_bits", "test bits/byte", "{:.3f}"),
    ("test_perplexity", "test perplexity of a byte", "{:.3f}"),
    ("test_accuracy", "next byte right %", "{:.2f}"),
    ("weight_bytes", "weight bytes", "{:,}"),
)


def language_table(rows: Rows) -> str:
    """Bits per byte and cost, one row per mode, in Markdown."""
    return markdown_table(rows, _COLUMNS)


def plot_bits(records: Sequence[Mapping[str, Any]], modes: Rows, path: Path) -> None:
    """Validation bits per byte of each mode over the epochs, with the phases marked, as PNG."""
    figure, axes = pyplot_for_files().subplots(figsize=(7, 4.2), layout="constrained")
    for row in modes:
        name = row["mode"]
        curve = since_trained(records, name)
        axes.plot(
            [record["epoch"] for record in curve],
            [record[f"validation_{name}_bits"] for record in curve],
            "o-",
            ms=3,
            color=COLOURS.get(name),
            label=f"{name} ({row['bits']})",
        )
    mark_phases(axes, records)
    axes.set(xlabel="epoch", ylabel="validation, bits per byte")
    axes.grid(alpha=0.3)
    axes.legend(loc="upper right")
    save_figure(figure, path)
