"""metrics.jsonl: one JSON line per evaluation, kept in step with the checkpoints."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def append_record(path: Path, record: Mapping[str, Any]) -> None:
    """Adds one line."""
    with path.open("a") as out:
        out.write(json.dumps(record) + "\n")


def read_records(path: Path) -> list[dict[str, Any]]:
    """Every whole record, in order: a run killed while it wrote leaves half a line at the end."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if _step_of(line) < float("inf")]


def drop_records_after(path: Path, step: int) -> None:
    """Removes what a run wrote after the checkpoint that the next one continues from."""
    if not path.exists():
        return
    lines = path.read_text().splitlines()
    kept = [line for line in lines if _step_of(line) <= step]
    if kept != lines:
        part = path.with_suffix(".part")
        part.write_text("".join(line + "\n" for line in kept))
        part.replace(path)


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):  # half a line, from a run killed while it wrote
        return float("inf")
