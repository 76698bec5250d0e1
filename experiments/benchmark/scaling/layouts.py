"""The losses of one training on one device, on eight, and on two processes of four.

    python -m experiments.benchmark layouts --steps=200

A small network on digits and on CIFAR-10, in float and in both modes at once; the
same first weights, order of examples and schedules in every layout, and nothing read but losses.
Printed are the largest relative difference from one device, and how many updates it stays within
1e-5. A few minutes on two CPU cores.
"""

import dataclasses
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from dual_precision import data
from dual_precision.deploy.file.writer import check_replaceable
from experiments.benchmark.scaling.layout_child import LOSSES, Case
from experiments.figures.tables import markdown_table
from experiments.workdir import write_whole

BOUND = 1e-5
MODEL, BATCH = "mlp", 32
IMAGES = 1024  # of each data set
STEPS = 200
_COLUMNS = (
    ("dataset", "data", "{}"),
    ("loss", "trains", "{}"),
    ("layout", "layout", "{}"),
    ("largest", "largest difference", "{:.1e}"),
    ("within", "updates within 1e-5", "{}"),
)


@dataclasses.dataclass(frozen=True)
class Layout:
    """How many processes, and devices of each; a group of one joins itself, and sums as all do."""

    name: str
    processes: int
    devices: int
    joined: bool = True
    cores: tuple[str, ...] = ()  # of each process, "0,1"; none: all of the machine


LAYOUTS = (
    Layout("1 device", 1, 1, joined=False),
    Layout("8 devices", 1, 8),
    Layout("2 processes x 4", 2, 4),
)


def free_address() -> str:
    """A port on loopback that nobody has."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


class Running:
    """The processes of a layout."""

    def __init__(self, layout: Layout, folder: Path) -> None:
        self._layout, self._folder, address = layout, folder, free_address()
        self._processes = [self._start(index, address) for index in range(layout.processes)]

    def _start(self, index: int, address: str) -> subprocess.Popen:
        layout, words = self._layout, []
        if layout.joined:
            words = [f"--coordinator={address}", f"--processes={layout.processes}"]
            words += [f"--process={index}", "--join_seconds=120", "--silence_seconds=300"]
        if layout.cores:
            words.append(f"--cores={layout.cores[index]}")
        asked = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(layout.devices)}
        return subprocess.Popen(
            [sys.executable, "-m", "experiments.benchmark.scaling.layout_child", *words],
            env={**os.environ, **asked},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said(index).open("w"),
            text=True,
        )

    def _said(self, index: int) -> Path:
        return self._folder / f"errors_{self._layout.processes}_{index}"

    def ask(self, case: Case, updates: int, anew: bool = True) -> dict[str, list[float]]:
        """What process 0 answers: see layout_child.

        Raises:
          ValueError: a process has ended.
        """
        request = {"case": dataclasses.asdict(case), "updates": updates, "anew": anew}
        for process in self._processes:
            assert process.stdin is not None
            print(json.dumps(request), file=process.stdin, flush=True)
        assert self._processes[0].stdout is not None
        while line := self._processes[0].stdout.readline():
            if line.startswith("{"):  # gloo has lines of its own
                found: dict[str, list[float]] = json.loads(line)
                return found
        said = [self._said(index).read_text()[-500:] for index in range(self._layout.processes)]
        raise ValueError(f"{self._layout.name}: a process ended: {said}")

    def end(self) -> None:
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()
        for process in self._processes:
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def running(layout: Layout, folder: Path) -> Iterator[Running]:
    """The processes of a layout, which end with the block."""
    started = Running(layout, folder)
    try:
        yield started
    finally:
        started.end()


def keep_images(dataset: str, folder: Path) -> str:
    """Some training images of a data set, in a file that `Case` names."""
    train = data.load(dataset).train.take(np.arange(IMAGES))
    path = folder / f"{dataset}.npz"
    np.savez(path, images=train.images, labels=train.labels)
    return str(path)


def losses_of(
    layout: Layout, cases: Mapping[Any, Case], updates: int, folder: Path
) -> dict[Any, np.ndarray]:
    """The loss of every update, for each case."""
    found = {}
    with running(layout, folder) as started:
        for name, case in cases.items():
            found[name] = np.asarray(started.ask(case, updates)["losses"])
            print(f"trained {name} on {layout.name}", file=sys.stderr, flush=True)
    return found


def compare_losses(found: np.ndarray, right: np.ndarray) -> dict[str, Any]:
    """Largest relative difference of losses, and how many updates come before one above BOUND."""
    apart = np.abs(found - right) / np.abs(right)
    above = np.flatnonzero(apart > BOUND)
    return {"largest": apart.max(), "within": int(above[0]) if len(above) else len(apart)}


def measure_layouts(
    *,
    steps: int | None = None,
    datasets: Sequence[str] = ("digits", "cifar10"),
    out: str | None = None,
) -> None:
    """The sub-command `layouts`; its arguments are the flags.

    Raises:
      ValueError: eight devices and two processes of four do not have the same bits.
    """
    if out:
        check_replaceable(out)
    updates = steps or STEPS
    with TemporaryDirectory() as name:
        folder = Path(name)
        cases = {
            (dataset, loss): Case(MODEL, images, loss, BATCH, updates=updates)
            for dataset, images in [(own, keep_images(own, folder)) for own in datasets]
            for loss in LOSSES
        }
        found = {own.name: losses_of(own, cases, updates, folder) for own in LAYOUTS}
    one, *others = found
    rows = [
        {"dataset": name[0], "loss": name[1], "layout": other}
        | compare_losses(found[other][name], found[one][name])
        for name in cases
        for other in others
    ]
    print(markdown_table(rows, _COLUMNS, left=("dataset", "loss", "layout")))
    if out:
        kept = {own: {"/".join(k): v.tolist() for k, v in found[own].items()} for own in found}
        write_whole(Path(out), json.dumps(kept) + "\n")
    eight, two = (found[other] for other in others)
    if unequal := [name for name in cases if not np.array_equal(eight[name], two[name])]:
        raise ValueError(
            f"{unequal}: 8 devices and 2 x 4 have other losses: expected the same bits"
        )
    print("\n8 devices and 2 processes of 4: the same bits in every loss")
