"""Kills at bad moments: what is killed and started again ends as if nothing had happened.

    python -m experiments.benchmark kills --kills=100 --seed=0

A small run on digits is trained, packed and calibrated, once undisturbed. Then the same commands
are killed (SIGKILL) and started again: in the commit of a checkpoint, between two epochs, at the
end of a phase, at the end of the run, while its results are written, while a file is packed, and
while a calibration is written into it. A run is killed up to seven times. At its end, the arrays of
its last checkpoint, its log (without the speed), its best step and its results must be bit for bit
those of the undisturbed run. A packed file must at every time be the old one or the new one.

20 kills take four and a half minutes of processor time, most of it for Python and JAX to start.
"""

import collections
import dataclasses
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from tqdm import tqdm

from dual_precision.deploy import amend_metadata
from dual_precision.training.log import read_records
from experiments.benchmark.reliability.killed_runs import (
    KillMoment,
    Workplace,
    commits,
    differing,
    is_unfinished,
    outcome_of,
    recorded,
    written,
)
from experiments.figures.tables import markdown_table

TRAIN = (
    "-m",
    "experiments.cifar",
    "--mode=two_phase",
    "--dataset=digits",
    "--set=passes=8",
    "--set=epochs_per_evaluation=1",
)
PACK = ("-m", "experiments.deploy", "pack")
CALIBRATE = ("-m", "experiments.deploy", "cascade")
NAME = "net.safetensors"
COMMIT, EPOCH, PHASE, END, RESULTS = (
    "in a checkpoint's commit", "after an epoch", "at a phase's end", "at the run's end",
    "while results are written",
)  # fmt: skip
PACKING, CALIBRATION = "while a file is packed", "while a calibration is written"
_COLUMNS = (
    ("moment", "killed", "{}"),
    ("kills", "kills", "{}"),
    ("unfinished", "left something half done", "{}"),
)


@dataclasses.dataclass(frozen=True)
class Kill:
    """One kill, and whether the process left something half done."""

    moment: str
    unfinished: bool = False


@dataclasses.dataclass(frozen=True)
class Undisturbed:
    """The runs that nobody killed: their folder, and what they gave."""

    folder: Path
    outcome: dict
    phase_end: int
    last: int
    packed: bytes
    calibrated: bytes


def measure_kills(*, kills: int = 100, seed: int = 0) -> None:
    """The sub-command `kills`; its arguments are the flags.

    Raises:
      ValueError: a run that was killed did not end as the undisturbed one; a command failed.
    """
    rng = np.random.default_rng(seed)
    found: list[Kill] = []
    with TemporaryDirectory() as folder, tqdm(total=kills, unit=" kills", disable=None) as bar:
        place = Workplace.of(Path(folder))
        right = run_undisturbed(place)
        for number in range(kills):  # of rounds: each has a kill at least
            for kill in one_round(place, right, number, rng, kills - len(found)):
                found.append(kill)
                bar.update()
            if len(found) == kills:
                break
    print(kills_table(found))
    print(f"\n{len(found)} kills, seed {seed}: everything ended as if nothing had happened")


def run_undisturbed(place: Workplace) -> Undisturbed:
    """Trains, packs and calibrates; and compiles for all that follow."""
    folder = place.folder / "undisturbed"
    place.finish(train_in(folder))
    place.finish(pack_into(folder, folder))
    packed = (folder / NAME).read_bytes()
    place.finish(calibrate_in(folder))
    records = read_records(folder / "run" / "metrics.jsonl")
    first = [record["step"] for record in records if record["phase"] == records[0]["phase"]]
    return Undisturbed(
        folder,
        outcome_of(folder / "run"),
        phase_end=first[-1],
        last=records[-1]["step"],
        packed=packed,
        calibrated=(folder / NAME).read_bytes(),
    )


def train_in(folder: Path) -> list[str]:
    """The command that trains in a folder."""
    return [*TRAIN, f"--workdir={folder / 'run'}"]


def pack_into(folder: Path, trained: Path) -> list[str]:
    """The command that packs what was trained in one folder into another."""
    return [*PACK, f"--workdir={trained / 'run'}", f"--out={folder / NAME}"]


def calibrate_in(folder: Path) -> list[str]:
    """The command that writes a calibration into the file of a folder."""
    leaves = f"--workdir={folder / 'cascade'}"
    return [*CALIBRATE, str(folder / NAME), "--cost=0.5", "--write", "--notest", leaves]


def one_round(
    place: Workplace, right: Undisturbed, number: int, rng: np.random.Generator, most: int
) -> Iterator[Kill]:
    """At most so many kills: seven in a training, two in packing, one in a calibration.

    Raises:
      ValueError: something is not as in the undisturbed runs.
    """
    folder = place.folder / f"round_{number}"
    folder.mkdir()
    left = most
    for part in (train_killed, pack_killed, calibrate_killed):
        for kill in part(place, right, folder, rng, left) if left else ():
            left -= 1
            yield kill
    shutil.rmtree(folder)


def moments_of(workdir: Path, right: Undisturbed, rng: np.random.Generator) -> list[KillMoment]:
    """Seven moments of a training, in their order."""
    commit = KillMoment(COMMIT, partial(commits, workdir), 0.1)
    epoch = KillMoment(EPOCH, partial(recorded, workdir), 0.2)
    phase = KillMoment(PHASE, lambda: recorded(workdir) & {right.phase_end}, 0.3)
    end = KillMoment(END, lambda: recorded(workdir) & {right.last}, 1.0)
    results = KillMoment(RESULTS, partial(written, workdir / "training.png"), 0.02)
    some = [(commit, epoch)[rng.integers(2)] for _ in range(3)]
    return [some[0], commit, phase, *some[1:], end, results]


def train_killed(
    place: Workplace, right: Undisturbed, folder: Path, rng: np.random.Generator, most: int
) -> Iterator[Kill]:
    """Kills a training at most so often, and compares what it ends with."""
    workdir, command = folder / "run", train_in(folder)
    for moment in moments_of(workdir, right, rng)[:most]:
        if not place.kill(command, moment, rng):
            break
        yield Kill(moment.name, take_unfinished(workdir))
    place.finish(command)
    if wrong := differing(outcome_of(workdir), right.outcome):
        raise ValueError(f"a training that was killed ended with other values: {wrong}")


def pack_killed(
    place: Workplace, right: Undisturbed, folder: Path, rng: np.random.Generator, most: int
) -> Iterator[Kill]:
    """Kills the packing of a file over an older one."""
    path, command = folder / NAME, pack_into(folder, right.folder)
    for _ in range(min(2, most)):
        path.write_bytes(right.packed)
        amend_metadata(path, {"note": "an older file"})
        yield from write_killed(place, command, path, Kill(PACKING), right.packed, rng)


def calibrate_killed(
    place: Workplace, right: Undisturbed, folder: Path, rng: np.random.Generator, most: int
) -> Iterator[Kill]:
    """Kills the writing of a calibration into a packed file."""
    path, command = folder / NAME, calibrate_in(folder)
    path.write_bytes(right.packed)
    yield from write_killed(place, command, path, Kill(CALIBRATION), right.calibrated, rng)


def write_killed(
    place: Workplace,
    command: list[str],
    path: Path,
    kill: Kill,
    after: bytes,
    rng: np.random.Generator,
) -> Iterator[Kill]:
    """Kills a command that replaces a file, and lets it run again."""
    before = path.read_bytes()
    moment = KillMoment(kill.moment, lambda: written(path, *path.parent.glob("*.part")), 0.002)
    killed = place.kill(command, moment, rng)
    unfinished = take_unfinished(path.parent)
    if path.read_bytes() not in (before, after):
        raise ValueError(f"{kill.moment}: {path.name} is neither the old nor the new file")
    place.finish(command)
    if path.read_bytes() != after:
        raise ValueError(f"{kill.moment}: {path.name} is another one than that of the whole run")
    if killed:
        yield dataclasses.replace(kill, unfinished=unfinished)


def take_unfinished(folder: Path) -> bool:
    """See `is_unfinished`; deletes the parts of files, which the next kill would count again."""
    found = is_unfinished(folder)
    for part in folder.glob("*.part"):
        part.unlink()
    return found


def kills_table(found: list[Kill]) -> str:
    """How often at which moment, in Markdown."""
    counts = collections.Counter(kill.moment for kill in found)
    half = collections.Counter(kill.moment for kill in found if kill.unfinished)
    rows = [{"moment": name, "kills": n, "unfinished": half[name]} for name, n in counts.items()]
    return markdown_table(rows, _COLUMNS, left=("moment",))
