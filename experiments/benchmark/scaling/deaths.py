"""One of two processes is killed at random moments: when the other ends, and what a resumed run is.

    python -m experiments.benchmark deaths --kills=10 --seed=0

Two processes train on digits, once undisturbed. Then one of the two, drawn at random, is killed
(SIGKILL) at a random moment after they have joined; the other must end by itself within a minute,
with exit status 75. Both are started again with the same command, and killed again. A run that
comes to its end must have the last checkpoint, log, best step and results of the undisturbed one,
bit for bit. Eight minutes for 10 kills on two busy CPU cores.

A machine that stops this program and the two for seconds lets them count as silent, and as dead:
that is told apart, and no kill.
"""

import dataclasses
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from tqdm import tqdm

from dual_precision.training.deaths import EXIT_STATUS
from experiments.benchmark.reliability.killed_runs import (
    PATIENCE,
    Workplace,
    differing,
    outcome_of,
)
from experiments.benchmark.reliability.kills import train_in
from experiments.benchmark.scaling.layouts import free_address
from experiments.figures.tables import markdown_table

BAR = 60.0  # seconds until the other has to end
_LOOK = 0.02  # seconds between two looks
_STOPPED = 2.0  # a look that comes so late: somebody has stopped this machine
_COLUMNS = (
    ("killed", "killed", "{}"),
    ("after", "s after joining", "{:.1f}"),
    ("seconds", "s until the other ends", "{:.2f}"),
    ("step", "last step kept", "{}"),
)


@dataclasses.dataclass(frozen=True)
class Death:
    """One kill: of which process, when, and what came of it.

    Attributes:
      seconds: until the other ended; None where the machine stood still meanwhile.
      step: of the last record, from which the next start goes on; 0 is none.
    """

    killed: int
    after: float
    seconds: float | None
    step: int


class Pair:
    """Two processes that train in one folder."""

    def __init__(self, place: Workplace, folder: Path) -> None:
        self._place, address = place, free_address()
        self.processes = [self._start(index, address, folder) for index in range(2)]

    def _start(self, index: int, address: str, folder: Path) -> subprocess.Popen:
        words = [f"--coordinator={address}", "--processes=2", f"--process={index}"]
        return subprocess.Popen(
            [sys.executable, *train_in(folder), *words, "--join_seconds=300"],
            env={**self._place.environment, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"},
            stdout=self._output(index, "said").open("w"),
            stderr=self._output(index, "errors").open("w"),
        )

    def _output(self, index: int, name: str) -> Path:
        return self._place.folder / f"{name}_{index}"

    def ended(self) -> bool:
        return all(process.poll() is not None for process in self.processes)

    def has_joined(self) -> bool:
        return "device:" in self._output(0, "said").read_text()

    def finished(self) -> bool:
        """Whether both ended well; False where they took each other for dead.

        Raises:
          ValueError: one of them failed.
        """
        statuses = [process.wait() for process in self.processes]
        if not {*statuses} <= {0, EXIT_STATUS}:
            said = [self._output(index, "errors").read_text()[-500:] for index in range(2)]
            raise ValueError(f"two processes ended with {statuses}: {said}")
        return statuses == [0, 0]

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


def comes_before_end(pair: Pair, what: Callable[[], bool]) -> bool:
    """Waits for something; whether it came before the end of the pair.

    Raises:
      ValueError: nothing came in a long time.
    """
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        if pair.ended():
            return False
        if what():
            return True
        time.sleep(_LOOK)
    raise ValueError(f"two processes did not join in {PATIENCE:g} s")


def passed(seconds: float) -> Callable[[], bool]:
    """Whether so long has passed since this was asked for."""
    end = time.monotonic() + seconds
    return lambda: time.monotonic() > end


def seconds_to_end(process: subprocess.Popen) -> float | None:
    """How long a process goes on; None where the machine stood still meanwhile.

    Raises:
      ValueError: longer than the bar.
    """
    begin = last = time.monotonic()
    stopped = False
    while process.poll() is None:
        now = time.monotonic()
        stopped, last = stopped or now - last > _STOPPED, now
        if now - begin > BAR and not stopped:
            raise ValueError(f"the other process went on for {BAR:g} s after one was killed")
        time.sleep(_LOOK)
    return None if stopped else time.monotonic() - begin


def run_to_its_end(place: Workplace, folder: Path) -> float:
    """Seconds from joining to the end of a run; it is started again where it was disturbed."""
    while True:
        pair = Pair(place, folder)
        try:
            comes_before_end(pair, pair.has_joined)
            begin = time.monotonic()
            if pair.finished():
                return time.monotonic() - begin
        finally:
            pair.end()


def kill_once(
    place: Workplace, folder: Path, span: float, rng: np.random.Generator
) -> Death | None:
    """Starts the pair and kills one of it; None where both ended before that.

    Raises:
      ValueError: the other went on too long, or did not end as it should.
    """
    victim, after = int(rng.integers(2)), float(rng.uniform(0, span))
    pair = Pair(place, folder)
    try:
        joined = comes_before_end(pair, pair.has_joined)
        if not (joined and comes_before_end(pair, passed(after))):
            pair.finished()
            return None
        other = pair.processes[1 - victim]
        if pair.processes[victim].poll() is None:
            pair.processes[victim].send_signal(signal.SIGKILL)
        seconds = seconds_to_end(other)
        if other.returncode not in (0, EXIT_STATUS):  # 0: it had come to the end already
            raise ValueError(f"the other ended with {other.returncode}, expected {EXIT_STATUS}")
        steps = [0, *_steps_in(folder)]
        return Death(victim, after, seconds, steps[-1])
    finally:
        pair.end()


def _steps_in(folder: Path) -> list[int]:
    found = (folder / "run" / "checkpoints").glob("[0-9]*")
    return sorted(int(path.name) for path in found if path.name.isdecimal())


def measure_deaths(*, kills: int = 10, seed: int = 0) -> None:
    """The sub-command `deaths`; its arguments are the flags.

    Raises:
      ValueError: a process went on, or a resumed run ended with something else.
    """
    rng, found = np.random.default_rng(seed), list[Death]()
    with TemporaryDirectory() as name, tqdm(total=kills, unit=" kills", disable=None) as bar:
        place, folder, runs = Workplace.of(Path(name)), Path(name) / "killed", 0
        run_to_its_end(place, Path(name) / "first")  # compiles for all that follow
        span = run_to_its_end(place, Path(name) / "undisturbed")
        right = outcome_of(Path(name) / "undisturbed" / "run")
        while len(found) < kills:
            if death := kill_once(place, folder, span, rng):
                found.append(death)
                bar.update()
                print(f"{len(found)}: {death}", file=sys.stderr, flush=True)
            if len(found) == kills:
                run_to_its_end(place, folder)
            if (folder / "run" / "results.json").exists():
                if wrong := differing(outcome_of(folder / "run"), right):
                    raise ValueError(f"a run that was killed ended with other values: {wrong}")
                shutil.rmtree(folder)
                runs += 1
                print("a killed run is as the undisturbed one", file=sys.stderr, flush=True)
    print(deaths_table(found))
    print(
        f"\n{len(found)} kills, seed {seed}; {runs} runs came to their end and were as the"
        f" undisturbed one, bit for bit; that takes {span:.1f} s"
    )


def deaths_table(found: list[Death]) -> str:
    """One line for every kill, in Markdown."""
    return markdown_table([dataclasses.asdict(death) for death in found], _COLUMNS)
