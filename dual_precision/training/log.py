"""What a run says: a progress bar, metrics.jsonl, and whoever listens.

metrics.jsonl has one JSON line per evaluation and is kept in step with the checkpoints. What it
says of training batches (loss, accuracy) is of the last launch of the program alone: a single batch
on a CPU. What it says of validation is of the whole set.
"""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dual_precision.replacing import replace_file
from dual_precision.structure import Structure
from dual_precision.training.phases import Stage
from dual_precision.training.processes import is_first
from dual_precision.training.spending import Spending, spending_of
from dual_precision.training.state import TrainState

Record = dict[str, Any]
Listener = Callable[[Record], None]


class Journal:
    """The log of one run, open while its block runs.

    Args:
      folder: where metrics.jsonl stands.
      total: steps of the whole run, see `TrainState`.
      done: steps that are behind it; what was written after them is dropped.
      rows: examples in a step.
      listeners: called with every record.
      spending: what the steps cost; None where nobody says.
    """

    def __init__(
        self,
        folder: Path,
        total: int,
        done: int,
        rows: int,
        listeners: Sequence[Listener],
        spending: Spending | None = None,
    ) -> None:
        self._done, self._spending = done, spending
        self.path, self.rows, self.listeners = folder / "metrics.jsonl", rows, listeners
        folder.mkdir(parents=True, exist_ok=True)
        drop_records_after(self.path, done)
        self._bar = tqdm(
            total=total * rows,
            unit=" examples",
            unit_scale=True,
            disable=None,
            smoothing=0.05,
        )
        self._bar.update(done * rows)
        self._since = (time.perf_counter(), done)

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.close()

    def show(self, phase: str, loss: float, step: int) -> None:
        """Moves the bar on, to where the run is."""
        steps, self._done = step - self._done, step
        shown = {"loss": f"{loss:.3f}"}
        if self._spending:
            shown["GBitOps"] = f"{self._spending.after(self._done)['gigabitops']:.3g}"
        self._bar.set_description(phase)
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update(steps * self.rows)

    def write(self, record: Record, scores: Mapping[str, float]) -> None:
        """Adds a record, tells the listeners, and prints a line with the scores of the modes."""
        record = record | (self._spending.after(record["step"]) if self._spending else {})
        record = record | {"examples_per_second": round(self._speed(record["step"]), 1)}
        append_record(self.path, record)
        for listener in self.listeners:
            listener(record)
        report = "  ".join(f"{mode} {score:.4f}" for mode, score in scores.items())
        tqdm.write(f"{record['phase']} epoch {record['epoch']}: validation {report}")

    def _speed(self, step: int) -> float:
        """Examples a second since the last record."""
        (since, before), now = self._since, time.perf_counter()
        self._since = (now, step)
        return (step - before) * self.rows / max(now - since, 1e-9)


class Silence(Journal):
    """The log of a process that is not the first of its run: none."""

    def __init__(self, *_: Any) -> None:
        return

    def __exit__(self, *_: Any) -> None:
        return

    def show(self, phase: str, loss: float, step: int) -> None:
        return

    def write(self, record: Record, scores: Mapping[str, float]) -> None:
        return


def open_journal(
    folder: Path,
    stages: Sequence[Stage],
    structure: Structure,
    state: TrainState,
    rows: int,
    listeners: Sequence[Listener],
) -> Journal:
    """The log of a run that stands at `state`; of several processes the first alone has one."""
    spending = spending_of(stages, structure, rows)
    said = Journal if is_first() else Silence
    return said(folder, stages[-1].end, int(state.step), rows, listeners, spending)


def append_record(path: Path, record: Mapping[str, Any]) -> None:
    """Adds one line."""
    with path.open("a") as out:
        out.write(json.dumps(record) + "\n")


def read_records(path: Path) -> list[dict[str, Any]]:
    """Every whole record, in order: a run killed while it wrote leaves half a line at the end."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if _step_of(line) < math.inf]


def drop_records_after(path: Path, step: int) -> None:
    """Removes what a run wrote after the checkpoint that the next one continues from."""
    if not path.exists():
        return
    lines = path.read_text().splitlines()
    kept = [line for line in lines if _step_of(line) <= step]
    if kept != lines:
        replace_file(path, [f"{line}\n".encode() for line in kept])


def _step_of(line: str) -> float:
    """What the record in a line says; infinite where there is none.

    Half a line is from a run killed while it wrote; other things are from another hand.
    """
    try:
        step = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return math.inf
    return step if type(step) is int else math.inf
