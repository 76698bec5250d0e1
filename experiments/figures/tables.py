"""Markdown tables, aligned so that a terminal shows them well too."""

from collections.abc import Mapping, Sequence
from typing import Any

Rows = Sequence[Mapping[str, Any]]
Column = tuple[str, str, str]  # key in a row, title, format of its cells


def markdown_table(
    rows: Rows, columns: Sequence[Column], left: Sequence[str] = (), missing: str = ""
) -> str:
    """One line for every row; columns that no row has are left out.

    Args:
      left: keys of the columns that are aligned on the left; the others are on the right.
      missing: the cell of a row that has no such key, or None there.

    >>> print(markdown_table([{"a": 1.5, "b": "x"}, {"a": 10}], [("a", "n", "{:.1f}")]))
    |    n |
    |-----:|
    |  1.5 |
    | 10.0 |
    """
    shown = [column for column in columns if any(row.get(column[0]) is not None for row in rows)]
    lines = [[title for _, title, _ in shown]]
    lines += [[_cell(row.get(key), form, missing) for key, _, form in shown] for row in rows]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    sides = ["<" if key in left else ">" for key, _, _ in shown]
    head, *body = [
        "| " + " | ".join(f"{c:{s}{w}}" for c, s, w in zip(line, sides, widths, strict=True)) + " |"
        for line in lines
    ]
    rules = [
        f":{'-' * (width + 1)}" if side == "<" else f"{'-' * (width + 1)}:"
        for side, width in zip(sides, widths, strict=True)
    ]
    return "\n".join([head, f"|{'|'.join(rules)}|", *body])


def _cell(value: Any, form: str, missing: str) -> str:
    return missing if value is None else form.format(value)
