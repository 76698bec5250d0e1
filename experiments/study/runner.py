"""Trains the runs of a study side by side, each as a command in a process of its own.

One that fails, for want of memory say, takes nothing else with it. Each that is running has its
share of the CPU cores for itself: two single-core runs train more images a second than two runs
in turn on both cores (1,730 against 1,500, resnet8_fast).
"""

import dataclasses
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tqdm import tqdm

from dual_precision.training.checkpoint import Checkpoints
from dual_precision.training.log import read_records
from dual_precision.training.reading import CheckpointError
from experiments.recipes.config import PRESETS, Config
from experiments.recipes.flags import FIELDS
from experiments.recipes.run_config import changed_from
from experiments.study.matrix import Run
from experiments.workdir import RESULTS, in_use, read_rows

_POLL = 0.5  # seconds
# On Linux a study that is killed takes its runs with it, which save themselves; elsewhere they
# finish on their own. Set by the new process, since a fork hook would run beside JAX's threads.
_TIE = """\
import ctypes, os, signal, sys
PR_SET_PDEATHSIG = 1
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
_TIED = ["-c", _TIE] if sys.platform.startswith("linux") else []


def command(run: Run, preset: str, workdir: Path, extra: Sequence[str] = ()) -> list[str]:
    """The command line that trains the run, as a user would type it: what the preset lacks."""
    arguments = [
        f"--{name}={value}" if name in FIELDS else f"--set={name}={value}"
        for name, value in changed_from(run.config, PRESETS[preset]).items()
    ]
    test = ["--test=false"] if run.ablation else []
    start = ["python", "-m", "experiments.cifar", f"--preset={preset}", f"--workdir={workdir}"]
    return [*start, *arguments, *test, *extra]


def finished(workdir: Path) -> bool:
    """Whether the run there needs no more training."""
    return (workdir / RESULTS).exists()


def passes_done(config: Config, workdir: Path) -> float:
    """How much of its cost a run has behind it, by its log."""
    records = read_records(workdir / "metrics.jsonl")
    return passes_behind(config, records[-1]["epoch"] if records else 0)


def passes_behind(config: Config, epochs: int) -> float:
    """The passes of the first `epochs` epochs of a run."""
    done = 0.0
    for phase in config.recipe.phases():
        done += min(epochs, phase.epochs) * phase.passes
        epochs -= min(epochs, phase.epochs)
    return done


@dataclasses.dataclass
class _Running:
    run: Run
    process: subprocess.Popen
    slot: int
    started: float


def train_side_by_side(
    runs: Sequence[Run],
    folder: Path,
    jobs: int,
    line: Callable[[Run], list[str]],
    after: Callable[[], object],
) -> dict[str, str]:
    """Trains what is not finished yet, `jobs` at once; returns run name -> why it failed.

    Args:
      folder: every run has its workdir and its log, <name>.log, there.
      line: the command of a run.
      after: called whenever a run ended.

    Raises:
      KeyboardInterrupt: stopped; the running runs have saved themselves.
    """
    for run in runs:
        if finished(folder / run.name):  # by a study that was stopped right after it
            _prune(folder / run.name)
    waiting = [run for run in runs if not finished(folder / run.name)]
    running: list[_Running] = []
    failures: dict[str, str] = {}
    total = sum(run.config.recipe.cost for run in waiting)
    bar = tqdm(total=total, unit="pass", disable=None, bar_format=_BAR)
    try:
        with bar:
            while waiting or running:
                while len(running) < jobs and (ready := _next(waiting, folder)):
                    waiting.remove(ready)
                    slot = min(set(range(jobs)) - {other.slot for other in running})
                    running.append(_start(ready, folder, slot, jobs, line))
                time.sleep(_POLL)
                for one in [r for r in running if r.process.poll() is not None]:
                    running.remove(one)
                    _end(one, folder, failures)
                    after()
                behind = sum(passes_done(r.run.config, folder / r.run.name) for r in running)
                ahead = sum(r.run.config.recipe.cost for r in running)
                ahead += sum(run.config.recipe.cost for run in waiting)
                _show(bar, total - ahead + behind, [r.run.name for r in running])
    finally:
        for one in running:
            one.process.terminate()
        for one in running:
            one.process.wait()
    return failures


_BAR = "{percentage:3.0f}% |{bar}| {n:.0f}/{total:.0f} passes [{elapsed}<{remaining}] {desc}"


def _next(waiting: Sequence[Run], folder: Path) -> Run | None:
    """The first that nobody holds: a run of a killed study may still be saving itself."""
    return next((run for run in waiting if not in_use(folder / run.name)), None)


def _prune(workdir: Path) -> None:
    try:
        Checkpoints(workdir).prune()
    except CheckpointError as error:  # the results are there all the same
        tqdm.write(f"{workdir.name}: checkpoints not pruned, {error}")


def _show(bar: tqdm, done: float, names: Sequence[str]) -> None:
    bar.set_description_str(", ".join(names), refresh=False)
    bar.update(done - bar.n)
    bar.refresh()


def _start(run: Run, folder: Path, slot: int, jobs: int, line) -> _Running:
    arguments = line(run)
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"{run.name}.log"
    environment = {
        "JAX_COMPILATION_CACHE_DIR": str(folder.parent / "programs"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        **os.environ,
    }
    with log.open("a") as out, _Cores(slot, jobs):
        out.write(f"$ {shlex.join(arguments)}\n")
        out.flush()
        process = subprocess.Popen(
            [sys.executable, *_TIED, *arguments[1:]],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches the study alone, which tells its runs once
        )
    return _Running(run, process, slot, time.monotonic())


def usable_cores() -> set[int]:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux: a task set or container may have fewer
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


class _Cores:
    """Processes started inside have one job's share of the cores, where the system can do that."""

    def __init__(self, slot: int, jobs: int):
        self.every = usable_cores()
        self.own = set(sorted(self.every)[slot::jobs])

    def __enter__(self) -> None:
        self._allow(self.own)

    def __exit__(self, *_) -> None:
        self._allow(self.every)

    def _allow(self, cores: set[int]) -> None:
        if cores and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, cores)


def _end(one: _Running, folder: Path, failures: dict[str, str]) -> None:
    workdir = folder / one.run.name
    minutes = (time.monotonic() - one.started) / 60
    if one.process.returncode == 0 and finished(workdir):
        _prune(workdir)
        rows = read_rows(workdir)
        accuracy = ", ".join(f"{row['mode']} {row['validation']:.2f} %" for row in rows)
        tqdm.write(f"{one.run.name}: validation {accuracy} ({minutes:.1f} min)")
        return
    log = folder / f"{one.run.name}.log"
    status = one.process.returncode
    how = f"exit status {status}" if status >= 0 else signal.Signals(-status).name
    why = f"{how}: {_last_words(log)} (log: {log})"
    failures[one.run.name] = why
    tqdm.write(f"{one.run.name} FAILED, {why}")


def _last_words(log: Path) -> str:
    """The error of the last start, else its last line."""
    text = log.read_text(errors="replace").rpartition("$ python ")[2]
    lines = [line for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error:")]
    return (errors or lines)[-1][:300]
