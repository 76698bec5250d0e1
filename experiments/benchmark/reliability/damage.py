"""What damaged and forged files do: they load with the right numbers, or are refused.

    python -m experiments.benchmark damage --cases=10000 --seed=0

Each case damages one file: a packed file whose bytes are changed, a packed file that an attacker
sealed anew with something else in it, a checkpoint, the JSON of a run, an image. A child process
opens them one after the other; the parent counts what it says, and what ends it.

Counted: `right` (it loads, and every mode gives the same bits as before), `refused` (an error that
says why), and what must not be: `wrong` (it loads, and gives other numbers although nobody sealed
it anew), `crash` (any other exception, or the end of the process), `slow` (over 5 s of processor
time, or no answer in a minute), `large` (over 512 MiB more memory). A traceback that a library
prints beside an error is bad too: nobody can act on it.
"""

import collections
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from tqdm import tqdm

SECONDS, LARGEST_GROWTH = 5.0, 512 << 20
STARTED, SILENT = 120.0, 60.0  # seconds that a child may take to start, and between two answers
READY = "ready"
BAD = ("wrong", "crash", "slow", "large")
KINDS = ("bytes", "resealed", "checkpoint", "json", "image")

Outcome = tuple[str, int, str, str]  # kind, number, outcome, what was said


def measure_damage(*, cases: int = 2000, seed: int = 0) -> None:
    """The sub-command `damage`; its arguments are the flags.

    Raises:
      ValueError: something happened that must not.
    """
    found: dict[str, collections.Counter] = {kind: collections.Counter() for kind in KINDS}
    bad: list[str] = []
    with TemporaryDirectory() as folder, tqdm(total=cases, unit=" cases", disable=None) as bar:
        for kind, number, outcome, about in outcomes(Path(folder), cases, seed):
            found[kind][outcome] += 1
            bar.update()
            if outcome in BAD:
                bad.append(f"{kind} case {number}: {outcome}, {about}")
                tqdm.write(bad[-1])
        if printed := _errors(Path(folder)).read_text().count("Traceback"):
            bad.append(f"{printed} tracebacks were printed")
    for kind, counts in found.items():
        print(f"{kind}: {', '.join(f'{name} {count}' for name, count in sorted(counts.items()))}")
    if bad:
        raise ValueError(f"{len(bad)} of {cases} cases of seed {seed} ended badly: {bad[0]}")
    print(f"{cases} cases, seed {seed}: none of {', '.join(BAD)}")


def outcomes(folder: Path, cases: int, seed: int) -> Iterator[Outcome]:
    """What came of every case; a child that ends is started anew behind the case that ended it.

    Raises:
      ValueError: a child does not start.
    """
    number = 0
    while number < cases:
        with Child(folder, cases, seed, number) as child:
            if child.next_line(STARTED) != READY:
                raise ValueError(f"the process that opens files does not start: {child.why()[1]}")
            line: str | None = READY
            while number < cases and line is not None:
                line = child.next_line(SILENT)
                outcome, about = child.why() if line is None else json.loads(line)
                yield kind_of(number), number, outcome, about
                number += 1


def _errors(folder: Path) -> Path:
    """What the children print on stderr."""
    return folder / "errors"


def kind_of(number: int) -> str:
    """The kinds take turns."""
    return KINDS[number % len(KINDS)]


class Child:
    """The process that opens damaged files from case `first` on."""

    def __init__(self, folder: Path, cases: int, seed: int, first: int) -> None:
        module = "experiments.benchmark.reliability.damage_child"
        with _errors(folder).open("a") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, str(folder), str(cases), str(seed), str(first)],
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={
                    **os.environ,
                    "JAX_PLATFORMS": "cpu",
                    "JAX_COMPILATION_CACHE_DIR": str(folder / "programs"),
                    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                },
            )
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self._lines.put(line.strip())
        self._lines.put(None)

    def next_line(self, seconds: float) -> str | None:
        """What it says next; None if it says nothing for so long, or has ended."""
        try:
            return self._lines.get(timeout=seconds)
        except queue.Empty:
            return None

    def why(self) -> tuple[str, str]:
        """The outcome where there was no line."""
        status = self._process.poll()
        if status is None:
            return "slow", f"no answer in {SILENT:g} s"
        return "crash", f"exit status {status}"
