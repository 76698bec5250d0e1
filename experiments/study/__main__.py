"""Is one dual-precision network as good as two networks trained apart? A matrix of runs answers.

`python -m experiments.study --preset=quick --seeds=3`: two to three hours on two CPU cores,
CIFAR-10, resnet8_fast, 6 passes a network. Stopped and started again it goes on where it was. It
leaves results.json, results.md and plots in runs/study-<preset>, and every run under cells/ there.
"""

import dataclasses
import json
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
from absl import flags

from dual_precision import data
from dual_precision.loading import build_from
from dual_precision.training.state import initial_variables
from experiments import cli
from experiments.recipes.config import Config
from experiments.recipes.recipes import passes_of
from experiments.study.matrix import (
    METHODS,
    PLANS,
    Cell,
    Entry,
    Plan,
    ablation_cells,
    base_config,
    cells_of,
    entries,
    read_pairs,
)
from experiments.study.results import collect
from experiments.study.runner import command, finished, passes_done, run_cells, usable_cores
from experiments.study.tables import plot_pair, report
from experiments.workdir import CONFIG, differences, only_user, write_whole

_MIB = 2**20
# Of one checkpoint, in floats for every parameter: itself, the optimizer's, statistics; rounded up.
_FLOATS_PER_PARAMETER = 3
_REPLACED = ".replaced"


def define_flags() -> None:
    flags.DEFINE_enum("preset", "quick", sorted(PLANS), "scale of the study")
    flags.DEFINE_integer("seeds", 3, "seeds of the main pair, from 0", lower_bound=1)
    flags.DEFINE_string("pairs", None, "low/high,...: the preset's by default")
    flags.DEFINE_list("methods", None, f"rows of the tables, of {list(METHODS)}")
    flags.DEFINE_bool("ablations", None, "run them too; else only without --pairs, --methods")
    flags.DEFINE_integer(
        "jobs", 0, "runs at once; 0: one for each core, at most 8; 1 for paper", lower_bound=0
    )
    flags.DEFINE_bool("run", True, "train what is missing; --run=false only writes the results")
    cli.define_shared_flags()


def main() -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stop as for Ctrl-C
    # What computes is started as processes of its own; this one must not hold an accelerator.
    jax.config.update("jax_platforms", "cpu")
    clock = cli.Stopwatch()
    FLAGS = cli.FLAGS
    plan = PLANS[FLAGS.preset]
    base = base_config(plan, cli.read_settings(FLAGS.set))
    rows, ablations = choose(plan, base)
    cells = cells_of(rows, [cell for cell, _ in ablations.values()])
    workdir = Path(FLAGS.workdir or f"runs/study-{FLAGS.preset}")
    arguments = [text for text in sys.argv[1:] if not text.startswith("--run=")]
    about = {
        "command": shlex.join(["python", "-m", "experiments.study", *arguments]),
        "preset": FLAGS.preset,
        "model": base.model,
        "dataset": base.dataset,
    }
    with only_user(workdir):
        folder = workdir / "cells"
        sort_out(cells, folder, FLAGS.run)

        def line(cell: Cell) -> list[str]:
            extra = [f"--data_dir={FLAGS.data_dir}"] if FLAGS.data_dir else []
            extra += [f"--archive={FLAGS.archive}"] if FLAGS.archive else []
            return command(cell, FLAGS.preset, folder / cell.name, extra)

        def write() -> str:
            return write_results(collect(rows, ablations, folder, about, line), workdir)

        failures = train(cells, folder, base, line, write) if FLAGS.run else {}
        print(f"\n{write()}\n\nin {workdir}: results.json, results.md, plots; {clock} in all")
        if failures:
            listed = "; ".join(f"{name}: {why}" for name, why in failures.items())
            raise ValueError(
                f"{len(failures)} of {len(cells)} cells failed: {listed}."
                " Start the same command again to try them again"
            )


def choose(plan: Plan, base: Config) -> tuple[list[Entry], dict[str, tuple[Cell, str]]]:
    """The rows that the flags ask for, and title -> (cell, title compared with) of ablations.

    What is asked for by name runs with every seed, whatever the plan leaves out by itself.

    Raises:
      ValueError: an unknown method, or a pair that cannot be read.
    """
    FLAGS = cli.FLAGS
    unknown = [method for method in FLAGS.methods or () if method not in METHODS]
    if unknown:
        raise ValueError(f"--methods {unknown[0]!r} is unknown: expected some of {list(METHODS)}")
    if FLAGS.methods:
        plan = dataclasses.replace(plan, main_only=())
    if FLAGS.pairs:
        plan = dataclasses.replace(plan, other_seeds=None)
    pairs = read_pairs(FLAGS.pairs) if FLAGS.pairs else [plan.main, *plan.others]
    rows = entries(plan, base, FLAGS.seeds, pairs, FLAGS.methods or METHODS)
    whole = not (FLAGS.pairs or FLAGS.methods)
    wanted = whole if FLAGS.ablations is None else FLAGS.ablations
    cells = ablation_cells(plan, base) if wanted else {}
    return rows, {title: (cell, plan.ablations[title].against) for title, cell in cells.items()}


def train(
    cells: Sequence[Cell],
    folder: Path,
    base: Config,
    line: Callable[[Cell], list[str]],
    write: Callable[[], object],
) -> dict[str, str]:
    """Says what is ahead, then trains it; returns what failed, and why."""
    FLAGS = cli.FLAGS
    if FLAGS.preset != "paper":  # several at once would not share an accelerator
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
    jobs = FLAGS.jobs or (1 if FLAGS.preset == "paper" else min(len(usable_cores()), 8))
    dataset = data.load(base.dataset, data_dir=FLAGS.data_dir, archive=FLAGS.archive)
    ahead = [cell for cell in cells if not finished(folder / cell.name)]
    passes = sum(passes_of(c.config) - passes_done(c.config, folder / c.name) for c in ahead)
    print(
        f"{len(cells)} cells, {len(cells) - len(ahead)} of them finished; {passes:.0f} passes over"
        f" {len(dataset.train.images):,} images ahead, {jobs} at once, each in {folder}/<name>"
    )
    check_room(cells, jobs, base, dataset, folder)
    return run_cells(cells, folder, jobs, line, write)


def sort_out(cells: Sequence[Cell], folder: Path, run: bool = True) -> None:
    """Says which cells of an earlier study stay, and moves those with another config aside.

    Raises:
      ValueError: some have another config, and nothing is to be run.
    """
    if not folder.is_dir():
        return
    names = {cell.name for cell in cells}
    kept: list[str] = []
    changed: list[tuple[str, dict]] = []
    for cell in cells:
        path = folder / cell.name / CONFIG
        if path.exists():
            other = differences(path, dataclasses.asdict(cell.config))
            if other:
                changed.append((cell.name, other))
            else:
                kept.append(cell.name)
    left = [p.parent.name for p in sorted(folder.glob(f"*/{CONFIG}")) if p.parent.name not in names]
    print(f"{folder}: keeps {len(kept)} cells of an earlier start")
    if changed and not run:
        raise ValueError(
            f"{len(changed)} cells in {folder} were run with other settings,"
            f" {changed[0][0]} for one: give the settings of that study, or leave out"
            " --run=false, and they are run again"
        )
    for name, other in changed:
        fields = ", ".join(f"{key} was {old!r}, is {new!r}" for key, (old, new) in other.items())
        number = sum(1 for _ in folder.glob(f"{name}{_REPLACED}*")) + 1
        aside = folder / f"{name}{_REPLACED}{number}"  # hours of work: for its owner to delete
        (folder / name).rename(aside)
        print(f"  runs {name} again: {fields}; the old run is {aside}")
    outside = [name for name in left if _REPLACED not in name]
    if outside:
        few = ", ".join([*outside[:3], *(["..."] if len(outside) > 3 else [])])
        print(f"  {len(outside)} cells are not in this matrix and stay unread: {few}")


def check_room(
    cells: Sequence[Cell], jobs: int, base: Config, dataset: data.Dataset, folder: Path
) -> None:
    """Prints the most that the study will write; refuses where there is less room.

    Finished cells keep the end of each of their two phases, running ones two more and the best.
    """
    network = {
        "name": base.model,
        "num_classes": dataset.num_classes,
        "modes": {"low": base.low, "high": base.high},
    }
    start = partial(initial_variables, build_from(network), dataset.image_shape, 0)
    floats = sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(start)["params"]))
    checkpoint = 4 * _FLOATS_PER_PARAMETER * floats + _MIB
    most = (2 * len(cells) + 3 * jobs) * checkpoint
    files = [path for cell in cells for path in (folder / cell.name).rglob("*")]
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


def write_results(results: Mapping[str, Any], workdir: Path) -> str:
    """results.json, results.md and the plots, of what is finished by now; returns the tables."""
    text = report(results)
    write_whole(workdir / "results.json", json.dumps(results, indent=1) + "\n")
    write_whole(workdir / "results.md", text)
    for pair in results["pairs"]:
        if pair["methods"]:
            plot_pair(pair, workdir / f"{pair['low']}-{pair['high']}")
    return text


if __name__ == "__main__":
    define_flags()
    cli.run(main, trains=False)
