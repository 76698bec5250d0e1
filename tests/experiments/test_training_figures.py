"""The table and the plot that a run leaves."""

import pytest

from experiments.figures.tables import markdown_table
from experiments.figures.training import plot_training, results_table

ROWS = [
    {
        "mode": "low",
        "bits": "w2a2",
        "validation": 86.0465,
        "test": 89.7,
        "weight_bytes": 54824,
        "bit_operations": 1736704,
        "macs": 150016,
    },
    {
        "mode": "high",
        "bits": "w8a8",
        "validation": 100.0,
        "test": 9.5,
        "weight_bytes": 1234567,
        "bit_operations": 9601024,
        "macs": 150016,
    },
]


def record(epoch: int, phase: str, **accuracies: float) -> dict:
    values = {f"validation_{mode}_accuracy": value for mode, value in accuracies.items()}
    return {
        "epoch": epoch,
        "phase": phase,
        **values,
        **{f"{mode}_loss": 1.0 for mode in accuracies},
    }


def test_table():
    assert results_table(ROWS).splitlines() == [
        "| mode | bits | validation % | test % | weight bytes | BitOps/image |",
        "|-----:|-----:|-------------:|-------:|-------------:|-------------:|",
        "|  low | w2a2 |        86.05 |  89.70 |       54,824 |     1.74e+06 |",
        "| high | w8a8 |       100.00 |   9.50 |    1,234,567 |      9.6e+06 |",
    ]


def test_table_of_a_run_that_did_not_read_the_test_set():
    """A column that no row has is left out; a cell that one row lacks is empty."""
    rows = [{key: value for key, value in row.items() if key != "test"} for row in ROWS]
    del rows[1]["validation"]
    lines = results_table(rows).splitlines()
    assert "test %" not in lines[0]
    assert lines[3].startswith("| high | w8a8 |              |")


def test_columns_on_the_left_and_missing_cells():
    rows = [{"name": "a", "n": 1}, {"name": "bcd", "n": None}, {"n": 22, "none": None}]
    columns = [("name", "name", "{}"), ("n", "number", "{:d}"), ("none", "none", "{}")]
    assert markdown_table(rows, columns, left=["name"], missing="-").splitlines() == [
        "| name | number |",
        "|:-----|-------:|",
        "| a    |      1 |",
        "| bcd  |      - |",
        "| -    |     22 |",
    ]


TWO_PHASES = [
    record(1, "high", high=0.5),
    record(2, "high", high=0.7),
    record(3, "both", high=0.8, low=0.6),
    record(4, "both", high=0.9, low=0.7),
]
TRUNCATED = [record(1, "high", high=0.5), record(2, "high", high=0.7)]
TRUNCATED[-1]["validation_low_accuracy"] = 0.3


@pytest.mark.parametrize(
    ("records", "rows"),
    [
        (TWO_PHASES, ROWS),
        (TRUNCATED, ROWS),
        ([record(1, "float", float=0.5)], [{"mode": "float", "bits": "float"}]),
    ],
    ids=["two phases", "truncate", "a single record"],
)
def test_plot(tmp_path, records, rows):
    path = tmp_path / "training.png"
    plot_training(records, rows, path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.stat().st_size > 5_000


def test_plot_shows_each_mode_from_where_it_was_trained(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    curves = {}
    plot = Axes.plot

    def noting(axes, x, y, *rest, **more):
        curves[more["label"]] = (list(x), [round(value, 6) for value in y])
        return plot(axes, x, y, *rest, **more)

    monkeypatch.setattr(Axes, "plot", noting)
    plot_training(TWO_PHASES, ROWS, tmp_path / "two.png")
    assert curves == {
        "high (w8a8)": ([1, 2, 3, 4], [50, 70, 80, 90]),
        "low (w2a2)": ([3, 4], [60, 70]),
    }
    plot_training(TRUNCATED, ROWS, tmp_path / "truncated.png")
    assert curves["low (w2a2)"] == ([2], [30])
