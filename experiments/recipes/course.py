"""The course of a training command, on images or on text: from its config to what a run leaves."""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from clu import parameter_overview
from flax import linen as nn

from dual_precision.costs import mode_cost
from dual_precision.loading import load_trained, start_from
from dual_precision.models import build_from
from dual_precision.structure import Structure, structure_of
from dual_precision.tasks.task import Task
from dual_precision.training.fit import fit
from dual_precision.training.log import read_records
from dual_precision.training.metrics import evaluate
from dual_precision.training.processes import is_first, together
from dual_precision.training.sharding import batch_mesh
from dual_precision.training.state import initial_variables
from experiments import cli
from experiments.figures.tables import Rows
from experiments.recipes.config import note_on_start
from experiments.recipes.run_config import RunConfig
from experiments.workdir import (
    RESULTS,
    has_begun,
    only_user,
    open_workdir,
    read_rows,
    write_whole,
)

SPLITS = ("validation", "test")


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """What a run is trained on, and how its results are told.

    Attributes:
      network: the description of its network, see `build_from`.
      task: what an example is.
      examples: has `train`, `validation` and `test`; the last is read once, at the end.
      columns: (split, what `evaluate` found) -> entries of a row of results.
      table: rows -> Markdown.
      plot: (records of metrics.jsonl, rows, path of a PNG).
    """

    network: Mapping[str, Any]
    task: Task
    examples: Any
    columns: Callable[[str, Mapping[str, float]], Mapping[str, float]]
    table: Callable[[Rows], str]
    plot: Callable[[Sequence[Mapping[str, Any]], Rows, Path], None]


def train(
    config: RunConfig,
    preset: str,
    folder: Path,
    read: Callable[[], Problem],
    *,
    resume: bool,
    test: bool,
    tensorboard: bool,
    shard_data: bool = False,
) -> None:
    """Trains in a folder, which no other process may use, and leaves the results there.

    Args:
      read: loads the data; called when the folder is held.
      resume, test, tensorboard, shard_data: the flags of these names.

    Raises:
      ValueError: what does not fit together; then the folder is free for other settings.
    """
    clock = cli.Stopwatch()
    with only_user(folder) if is_first() else contextlib.nullcontext():
        say_where(config, preset, folder)
        problem = read()
        description = describe_run(config, preset, problem.network)
        model, task, examples = build_from(problem.network), problem.task, problem.examples
        structure = structure_of(model, task.example)
        options = dataclasses.replace(config.fit_options(), shard_data=shard_data)
        # Before the workdir is claimed: what cannot work leaves it free for other settings.
        config.recipe.check(structure)
        batch_mesh(options.rows)
        task.order(examples.train, options.batch_size, jax.random.key(0))
        told = listeners(folder, tensorboard) if is_first() else []
        together("begin")  # until then, whatever another process finds there is not of this run
        start = None if has_begun(folder) else first_variables(config, model, task, structure)
        if is_first():
            open_workdir(folder, description, resume)
            write_overview(structure, folder / "parameters.txt")
        together("workdir")
        state = fit(
            model,
            task,
            config.recipe.phases(),
            examples.train,
            examples.validation,
            options,
            folder,
            config=description,
            variables=start,
            listeners=told,
        )
        rows = results(config, model, problem, state.variables, SPLITS if test else SPLITS[:1])
        leaves = config.recipe.leaves(state.params, structure)
        if is_first():
            for name, found in leaves.items():
                write_whole(folder / name, json.dumps(found, indent=1) + "\n")
            leave_results(rows, problem, folder)
    print(f"{clock} in all")
    print(f"use it: model, variables = dual_precision.load({str(folder)!r})")


def say_where(config: RunConfig, preset: str, workdir: Path) -> None:
    """What the run is on, what it costs."""
    devices = jax.devices()
    print(
        f"device: {len(devices)} x {devices[0].device_kind}, of {jax.process_count()} processes;"
        f" preset: {preset}; workdir: {workdir}"
    )
    phases = config.recipe.phases()
    parts = ", ".join(f"{phase.name} {phase.epochs}" for phase in phases)
    print(f"epochs: {parts}; {config.recipe.cost:g} passes (passes={config.recipe.passes:g})")
    if note := note_on_start(preset, config):
        print(note)


def describe_run(config: RunConfig, preset: str, network: Mapping[str, Any]) -> dict[str, Any]:
    """What config.json holds: the experiment, and the network that `load` builds again."""
    return {
        "preset": preset,
        "experiment": config.to_json(),
        "network": {**network},
        "trained": list(config.recipe.reported),
    }


def first_variables(config: RunConfig, model: nn.Module, task: Task, structure: Structure) -> Any:
    """What training starts from where `--init` names a network; what does not fit is listed."""
    if not config.init:
        return None
    fresh = initial_variables(model, task.example, config.seed)
    variables, notes = start_from(load_trained(config.init, task.example), fresh, structure)
    print(f"starts from {config.init}; {len(notes)} values do not fit" + ":" * bool(notes))
    for note in notes:
        print(f"  {note}")
    return variables


def listeners(workdir: Path, tensorboard: bool) -> list:
    """Who else is told of every evaluation."""
    if not tensorboard:
        return []
    from experiments.figures.tensorboard import listener

    return [listener(workdir)]


def results(
    config: RunConfig,
    model: nn.Module,
    problem: Problem,
    variables: Any,
    splits: Sequence[str] = SPLITS,
) -> Rows:
    """One row per mode. The only place that reads the test examples, if they are in `splits`."""
    structure = structure_of(model, problem.task.example)
    rows = []
    for name in config.recipe.reported:
        row = {"mode": name, "bits": "float" if name == "float" else getattr(config, name)}
        for split in splits:
            examples = getattr(problem.examples, split)
            found = evaluate(model, variables, examples, task=problem.task, precision=name)
            row |= problem.columns(split, found)
        rows.append(row | dataclasses.asdict(mode_cost(structure, name)))
    return rows


def leave_results(rows: Rows, problem: Problem, workdir: Path) -> None:
    """The table, the picture, and results.json, which says that the run is finished.

    Rows that are part of those of a finished run do not take their place: it has read the test set.
    """
    with contextlib.suppress(ValueError):  # not finished, or damaged
        known = {row["mode"]: row for row in read_rows(workdir)}
        rows = [_fuller(row, known.get(row["mode"], {})) for row in rows]
    picture = workdir / "training.png"
    problem.plot(read_records(workdir / "metrics.jsonl"), rows, picture)
    write_whole(workdir / RESULTS, json.dumps({"rows": rows}, indent=2) + "\n")
    print(f"\n{problem.table(rows)}\n\nplot: {picture}")


def _fuller(row: Mapping[str, Any], old: Mapping[str, Any]) -> Mapping[str, Any]:
    """The old row where it has all of this one."""
    return old if row.items() <= old.items() else row


def write_overview(structure: Structure, path: Path) -> None:
    """The parameter table of clu, as a file; its total on the terminal."""
    params = structure.params
    write_whole(path, parameter_overview.get_parameter_overview(params, include_stats=False) + "\n")
    total = sum(leaf.size for leaf in jax.tree.leaves(params))
    weights = sum(int(np.prod(layer.kernel)) for layer in structure.layers.values())
    print(
        f"parameters: {total:,} in all, {weights:,} of them weights shared by every mode ({path})"
    )
