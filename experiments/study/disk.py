"""What a study finds on the disk before it runs: runs of an earlier start, and room for more."""

import itertools
import shutil
from collections.abc import Sequence
from pathlib import Path

import jax

from dual_precision import data
from dual_precision.models import build_from
from dual_precision.structure import structure_of
from dual_precision.tasks.classification import Classification
from experiments.study.matrix import Run
from experiments.workdir import CONFIG, differences, in_use

_MIB = 2**20
# Of one checkpoint, in floats for every parameter: itself, the optimizer's, statistics; rounded up.
_FLOATS_PER_PARAMETER = 3
_REPLACED = ".replaced"
# Of a study, where each run has a folder. The published results (notebooks/study-*) name their runs
# by this folder, and a study that is started again finds its runs in it.
RUNS_FOLDER = "cells"


def sort_out(runs: Sequence[Run], folder: Path, train: bool = True) -> None:
    """Says which runs of an earlier study stay, and moves those that cannot aside.

    Raises:
      ValueError: some have another config, and nothing is to be trained, or one of them is running.
    """
    if not folder.is_dir():
        return
    changed = {}
    present = [run for run in runs if (folder / run.name / CONFIG).exists()]
    for run in present:
        if other := differences(folder / run.name / CONFIG, run.config.to_json()):
            told = (f"{key} was {old!r}, is {new!r}" for key, (old, new) in other.items())
            changed[run.name] = ", ".join(told)
    print(f"{folder}: keeps {len(present) - len(changed)} runs of an earlier start")
    if changed and not train:
        raise ValueError(
            f"{len(changed)} runs in {folder} were trained with other settings,"
            f" {next(iter(changed))} for one: give the settings of that study, or leave out"
            " --run=false, and they are trained again"
        )
    # The lock would move with the folder, and who holds it would go on writing into the next folder
    # of that name.
    if held := [name for name in changed if in_use(folder / name)]:
        raise ValueError(
            f"{folder / held[0]} is in use by another process, with other settings"
            f" ({changed[held[0]]}): wait for its end or stop it, and start this command again"
        )
    for name, why in changed.items():
        print(f"  trains {name} again: {why}; the old run is {_set_aside(folder, name)}")
    names = {run.name for run in runs}
    found = [path.parent.name for path in sorted(folder.glob(f"*/{CONFIG}"))]
    outside = [name for name in found if name not in names and not is_replaced(name)]
    if outside:
        few = ", ".join([*outside[:3], *(["..."] if len(outside) > 3 else [])])
        print(f"  {len(outside)} runs are not in this matrix and stay unread: {few}")


def is_replaced(name: str) -> bool:
    """Whether a folder of this name is a run that a study has set aside."""
    return _REPLACED in name


def _set_aside(folder: Path, name: str) -> Path:
    """Under the first free number. It is hours of work: for its owner to delete, in any order."""
    names = (folder / f"{name}{_REPLACED}{number}" for number in itertools.count(1))
    aside = next(path for path in names if not path.exists())
    (folder / name).rename(aside)
    return aside


def check_room(runs: Sequence[Run], jobs: int, dataset: data.Dataset, folder: Path) -> None:
    """Prints the most that the study will write; refuses where there is less room.

    Finished runs keep the end of each of their two phases, running ones two more and the best.
    """
    checkpoint = 4 * _FLOATS_PER_PARAMETER * _parameters(runs[0], dataset) + _MIB
    most = (2 * len(runs) + 3 * jobs) * checkpoint
    files = [path for run in runs for path in (folder / run.name).rglob("*")]
    present = sum(path.stat().st_size for path in files if path.is_file())
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    print(
        f"disk: at most {most / _MIB:.0f} MiB of checkpoints in the end, {present / _MIB:.0f} MiB"
        f" of them there; {free / _MIB:.0f} MiB free"
    )
    if free < most - present:
        raise OSError(
            f"{(most - present) / _MIB:.0f} MiB may be needed in {folder} and {free / _MIB:.0f} MiB"
            " are free: make room, or choose another --workdir"
        )


def _parameters(run: Run, dataset: data.Dataset) -> int:
    """Numbers in the tree of a run; all runs have the same network."""
    config = run.config
    model = build_from(
        {
            "name": config.model,
            "num_classes": dataset.num_classes,
            **config.modes.to_json(),
        }
    )
    structure = structure_of(model, Classification(dataset.image_shape).example)
    return sum(leaf.size for leaf in jax.tree.leaves(structure.params))
