"""Processes that are killed at a chosen moment; what a finished run left, to compare."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dual_precision.training.checkpoint import Checkpoints
from dual_precision.training.log import read_records
from experiments.workdir import RESULTS

LOOKS = 0.0005  # seconds between two looks at a folder
PATIENCE = 600.0  # seconds that a command may take
_METRICS = "metrics.jsonl"


@dataclasses.dataclass(frozen=True)
class KillMoment:
    """When a process is killed.

    Attributes:
      look: what there is now; the moment has come when it finds something that was not there.
      seconds: the kill comes up to so long after.
    """

    name: str
    look: Callable[[], set[Any]]
    seconds: float


def commits(workdir: Path) -> set[Any]:
    """The checkpoints that are being written."""
    return _stamps((workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*"))


def recorded(workdir: Path) -> set[int]:
    """The steps in the log."""
    return {record["step"] for record in read_records(workdir / _METRICS)}


def written(*paths: Path) -> set[Any]:
    """These files, each time that they are written."""
    return _stamps(paths)


def _stamps(paths: Any) -> set[Any]:
    found = set()
    for path in paths:
        try:
            status = path.stat()
        except OSError:  # gone, or not there yet
            continue
        found.add((path.name, status.st_ino, status.st_mtime_ns if path.is_file() else 0))
    return found


@dataclasses.dataclass(frozen=True)
class Workplace:
    """Where commands are started.

    Attributes:
      folder: of the runs.
      environment: of the processes; they share data, and what XLA has compiled.
    """

    folder: Path
    environment: Mapping[str, str]

    @classmethod
    def of(cls, folder: Path) -> "Workplace":
        """Everything stays within `folder`."""
        return cls(
            folder,
            {
                **os.environ,
                "TFDS_DATA_DIR": str(folder / "data"),
                "JAX_COMPILATION_CACHE_DIR": str(folder / "programs"),
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            },
        )

    def finish(self, command: Sequence[str]) -> None:
        """Runs a command to its end.

        Raises:
          ValueError: it fails.
        """
        self._wait(self._start(command), command)

    def kill(self, command: Sequence[str], moment: KillMoment, rng: np.random.Generator) -> bool:
        """Runs a command and kills it at the moment; False if it ended before.

        Raises:
          ValueError: it fails.
        """
        seen, until = moment.look(), time.monotonic() + PATIENCE
        process = self._start(command)
        try:
            while process.poll() is None and time.monotonic() < until:
                now = moment.look()
                if now - seen:
                    time.sleep(rng.uniform(0, moment.seconds))
                    break
                seen = now
                time.sleep(LOOKS)
        finally:
            process.kill()
        if process.wait() == -signal.SIGKILL and time.monotonic() < until:
            return True
        self._wait(process, command)
        return False

    def _start(self, command: Sequence[str]) -> subprocess.Popen:
        with (self.folder / "errors").open("w") as errors:
            return subprocess.Popen(
                [sys.executable, *command],
                env=dict(self.environment),
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )

    def _wait(self, process: subprocess.Popen, command: Sequence[str]) -> None:
        try:
            status = process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            status = None
        if status != 0:
            ended = f"exit status {status}" if status else f"no end in {PATIENCE:g} s"
            said = (self.folder / "errors").read_text()[-500:]
            raise ValueError(f"{' '.join(command)}: {ended}: {said}")


def is_unfinished(folder: Path) -> bool:
    """Whether the process died with something half done: a commit, a line, a file."""
    half = (folder / _METRICS).exists() and not (folder / _METRICS).read_text().endswith("\n")
    return half or bool(commits(folder)) or any(folder.glob("*.part"))


def outcome_of(workdir: Path) -> dict[str, Any]:
    """What two runs of one command have in common, bit for bit.

    sha256 of every array of the last checkpoint, which is read for it; the step of the best one;
    the log without the speed; the results.
    """
    checkpoints = Checkpoints(workdir)
    last = checkpoints.steps()[-1]
    checkpoints.restore(last)  # raises where it is not what its manifest says
    records = read_records(workdir / _METRICS)
    slow = "examples_per_second"
    return {
        "last step": last,
        "best step": checkpoints.best(),
        "arrays": checkpoints.about(last)["manifest"],
        "log": json.dumps([{k: v for k, v in own.items() if k != slow} for own in records]),
        "results": (workdir / RESULTS).read_bytes(),
    }


def differing(found: Mapping[str, Any], right: Mapping[str, Any]) -> list[str]:
    """Names of what is not the same."""
    return [name for name, value in right.items() if found.get(name) != value]
