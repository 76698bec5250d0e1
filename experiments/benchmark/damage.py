"""What damaged and forged files do: they load with the right numbers, or are refused.

    python -m experiments.benchmark damage --cases=10000 --seed=0

Five minutes on two CPU cores. Each case damages one file: a packed file whose bytes are changed, a
packed file that an attacker sealed anew with another header, a checkpoint, the JSON of a run. A
child process opens them one after the other; the parent counts what it says, and what ends it.

Counted: `right` (it loads, and every mode gives the same bits as before), `refused` (an error that
says why), and what must not be: `wrong` (it loads, and gives other numbers although nobody sealed
it anew), `crash` (any other exception, or the end of the process), `slow` (over 5 s), `large` (over
512 MiB more memory).
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

SECONDS, MEBIBYTES = 5.0, 512
STARTED = 120.0  # seconds that a child may take to start
BAD = ("wrong", "crash", "slow", "large")
KINDS = ("bytes", "resealed", "checkpoint", "json")


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
    for kind, counts in found.items():
        print(f"{kind}: {', '.join(f'{name} {count}' for name, count in sorted(counts.items()))}")
    if bad:
        raise ValueError(f"{len(bad)} of {cases} cases ended badly: {'; '.join(bad[:5])}")
    print(f"{cases} cases, seed {seed}: none of {', '.join(BAD)}")


def outcomes(folder: Path, cases: int, seed: int) -> Iterator[tuple[str, int, str, str]]:
    """(kind, number, outcome, what was said) of every case; a child that ends is started anew."""
    number = 0
    while number < cases:
        with Child(folder, cases, seed, number) as child:
            limit = STARTED
            while number < cases:
                line = child.next_line(limit)
                if line == "ready":
                    limit = SECONDS
                    continue
                outcome, about = child.ended() if line is None else json.loads(line)
                yield kind_of(number), number, outcome, about
                number += 1
                if line is None:
                    break


def kind_of(number: int) -> str:
    """The kinds take turns."""
    return KINDS[number % len(KINDS)]


class Child:
    """The process that opens damaged files from case `first` on."""

    def __init__(self, folder: Path, cases: int, seed: int, first: int) -> None:
        words = [str(folder), str(cases), str(seed), str(first)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "experiments.benchmark.damage_cases", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line.strip())
        self._lines.put(None)

    def next_line(self, limit: float) -> str | None:
        """What it says next; None if it says nothing for `limit` seconds, or has ended."""
        try:
            return self._lines.get(timeout=limit)
        except queue.Empty:
            return None

    def ended(self) -> tuple[str, str]:
        """Why there was no line."""
        status = self._process.poll()
        if status is None:
            return "slow", f"no answer in {SECONDS:g} s"
        return "crash", f"exit status {status}"
