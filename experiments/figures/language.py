"""What a run on text leaves for its reader: a table and a plot of its modes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.figures.tables import Rows, markdown_table
from experiments.figures.training import plot_curves

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
    plot_curves(records, modes, path, "bits", "validation, bits per byte")
