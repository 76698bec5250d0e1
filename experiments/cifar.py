"""Trains a dual-precision network on CIFAR-10 (or --dataset=...), both modes from one tree.

Commands, on two CPU cores (a busy machine), with the expected test accuracy:

- `python -m experiments.cifar --mode=two_phase`: preset quick, 4 to 15 minutes, low (w2a2) 80 %,
  high (w8a8) 82 %
- `python -m experiments.cifar --mode=two_phase --dataset=digits`: no network, half a minute,
  low 98.9 %, high 99.2 %
"""

import dataclasses
import json
import logging
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import jax
import numpy as np
from clu import parameter_overview
from flax import linen as nn

from dual_precision import data
from dual_precision.costs import mode_cost
from dual_precision.data.catalog import lookup
from dual_precision.loading import load_trained, start_from
from dual_precision.models import build_from
from dual_precision.structure import Structure, structure_of
from dual_precision.tasks.classification import Classification
from dual_precision.training.fit import fit
from dual_precision.training.log import read_records
from dual_precision.training.metrics import evaluate
from dual_precision.training.processes import is_first, together
from dual_precision.training.sharding import batch_mesh
from dual_precision.training.state import initial_variables
from experiments import cli
from experiments.figures import training as pictures
from experiments.recipes.config import Config, note_on_start
from experiments.recipes.flags import define_flags, read_config
from experiments.recipes.settings import read_channels
from experiments.workdir import (
    RESULTS,
    default_workdir,
    has_begun,
    only_user,
    open_workdir,
    write_whole,
)

log = logging.getLogger("dual_precision")


def main(
    *,
    resume: bool,
    test: bool,
    tensorboard: bool,
    shard_data: bool,
    workdir: str | None = None,
    data_dir: str | None = None,
    archive: str | None = None,
) -> None:
    """The command; its arguments are the flags, besides those that `read_config` reads."""
    clock = cli.Stopwatch()
    config, preset = read_config()
    folder = Path(workdir or default_workdir(config, preset))
    lookup(config.dataset)  # an unknown one leaves no folder behind
    with only_user(folder) if is_first() else nullcontext():
        say_where(config, preset, folder)
        dataset = load_data(config, test, data_dir, archive)
        description = describe_run(config, preset, dataset)
        model, task = build_from(description["network"]), task_of(config, dataset)
        structure, options = structure_of(model, task.example), config.fit_options(shard_data)
        # Before the workdir is claimed: wrong widths, batches or --init leave it free.
        batch_mesh(options.rows)
        task.order(dataset.train, options.batch_size, jax.random.key(0))
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
            dataset.train,
            dataset.validation,
            options,
            folder,
            config=description,
            variables=start,
            listeners=listeners(folder, tensorboard) if is_first() else [],
        )
        rows = results(config, model, task, state.variables, dataset, test)
        leaves = config.recipe.leaves(state.params, structure)
        if is_first():
            for name, found in leaves.items():
                write_whole(folder / name, json.dumps(found, indent=1) + "\n")
            leave_results(rows, folder)
    print(f"{clock} in all")
    print(f"use it: model, variables = dual_precision.load({str(folder)!r})")


def say_where(config: Config, preset: str, workdir: Path) -> None:
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


def load_data(
    config: Config, test: bool, data_dir: str | None = None, archive: str | None = None
) -> data.Dataset:
    """The data set, and what each of its parts is for; `test`: its test set will be read."""
    dataset = data.load(config.dataset, data_dir=data_dir, archive=archive)
    last = "read once, at the end" if test else "not read (--test=false)"
    print(
        f"{dataset.name}: {len(dataset.train.images):,} images train,"
        f" {len(dataset.validation.images):,} validate and select;"
        f" the {len(dataset.test.images):,} of the test set are {last}"
    )
    return dataset


def describe_run(config: Config, preset: str, dataset: data.Dataset) -> dict[str, Any]:
    """What config.json holds: the experiment, and the network that `load` builds again."""
    mean, std = (
        read_channels(name, getattr(config, name)) or getattr(dataset, name)
        for name in ("mean", "std")
    )
    if len({len(mean), len(std), len(dataset.mean)}) > 1:
        raise ValueError(
            f"mean={config.mean!r} and std={config.std!r}: expected {len(dataset.mean)} numbers"
            f" each, as images of {dataset.name} have channels"
        )
    network = {
        "name": config.model,
        "num_classes": dataset.num_classes,
        **config.modes.to_json(),
        **({"skipped": config.skipped.split()} if config.skipped else {}),
        "mean": [float(value) for value in mean],
        "std": [float(value) for value in std],
    }
    return {
        "preset": preset,
        "experiment": config.to_json(),
        "network": network,
        "trained": list(config.recipe.reported),
    }


def task_of(config: Config, dataset: data.Dataset) -> Classification:
    """The task of a run."""
    return Classification.of(dataset, config.recipe.label_smoothing)


def first_variables(
    config: Config, model: nn.Module, task: Classification, structure: Structure
) -> Any:
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
    config: Config,
    model: nn.Module,
    task: Classification,
    variables: Any,
    dataset: data.Dataset,
    test: bool = True,
) -> pictures.Rows:
    """One row per mode. The only place that reads the test set, and not if `test` is false."""
    structure = structure_of(model, task.example)
    splits = {"validation": dataset.validation, **({"test": dataset.test} if test else {})}
    rows = []
    for name in config.recipe.reported:
        accuracy = {
            split: 100 * evaluate(model, variables, part, task=task, precision=name)["accuracy"]
            for split, part in splits.items()
        }
        bits = "float" if name == "float" else getattr(config, name)
        cost = dataclasses.asdict(mode_cost(structure, name))
        rows.append({"mode": name, "bits": bits, **accuracy, **cost})
    return rows


def leave_results(rows: pictures.Rows, workdir: Path) -> None:
    """The table, the picture, and results.json, which says that the run is finished."""
    picture = workdir / "training.png"
    pictures.plot_training(read_records(workdir / "metrics.jsonl"), rows, picture)
    write_whole(workdir / RESULTS, json.dumps({"rows": rows}, indent=2) + "\n")
    print(f"\n{pictures.results_table(rows)}\n\nplot: {picture}")


def write_overview(structure: Structure, path: Path) -> None:
    """The parameter table of clu, as a file; its total on the terminal."""
    params = structure.params
    write_whole(path, parameter_overview.get_parameter_overview(params, include_stats=False) + "\n")
    total = sum(leaf.size for leaf in jax.tree.leaves(params))
    weights = sum(int(np.prod(layer.kernel)) for layer in structure.layers.values())
    print(
        f"parameters: {total:,} in all, {weights:,} of them weights shared by every mode ({path})"
    )


if __name__ == "__main__":
    define_flags()
    cli.run(main)
