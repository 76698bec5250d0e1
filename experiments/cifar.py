"""Trains a dual-precision network on CIFAR-10 (or --dataset=...), both modes from one tree.

Commands, on two CPU cores (a busy machine), with the expected test accuracy:

- `python -m experiments.cifar --mode=two_phase`: preset quick, 8 to 15 minutes, low (w2a2) 80 %,
  high (w8a8) 83 %
- `python -m experiments.cifar --mode=two_phase --dataset=digits`: no network, half a minute,
  low 97.8 %, high 98.1 %
"""

import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from clu import parameter_overview

from dual_precision import data
from dual_precision.costs import mode_cost
from dual_precision.data.catalog import lookup
from dual_precision.loading import build_from
from dual_precision.structure import describe_layers
from dual_precision.training.fit import FitOptions, fit
from dual_precision.training.log import read_records
from dual_precision.training.metrics import evaluate
from dual_precision.training.state import TrainState, initial_variables
from experiments import cli
from experiments.figures import training as report
from experiments.recipes.config import Config
from experiments.recipes.recipes import RECIPES, reported_modes
from experiments.workdir import default_workdir, only_user, open_workdir, write_whole

RESULTS = "results.json"


def describe_run(config: Config, preset: str, dataset: data.Dataset) -> dict[str, Any]:
    """What config.json holds: the experiment, and the network that `load` builds again."""
    network = {
        "name": config.model,
        "num_classes": dataset.num_classes,
        "modes": {"low": config.low, "high": config.high},
        "mean": [float(value) for value in dataset.mean],
        "std": [float(value) for value in dataset.std],
    }
    return {"preset": preset, "experiment": dataclasses.asdict(config), "network": network}


def train(config: Config, description: dict[str, Any], dataset: data.Dataset, workdir: Path):
    """Runs the recipe; returns the model and its last state."""
    model = build_from(description["network"])
    options = FitOptions(
        batch_size=config.batch_size,
        seed=config.seed,
        steps_per_dispatch=config.steps_per_dispatch,
        epochs_per_evaluation=config.epochs_per_evaluation,
    )
    state = fit(
        model,
        RECIPES[config.mode](config),
        dataset.train,
        dataset.validation,
        partial(data.augment, padding=dataset.padding, flip=dataset.flip),
        options,
        workdir,
        config=description,
        listeners=_listeners(workdir),
    )
    return model, state


def _listeners(workdir: Path) -> list:
    if not cli.FLAGS.tensorboard:
        return []
    from experiments.figures.tensorboard import listener

    return [listener(workdir)]


def results(
    config: Config, model: Any, state: TrainState, dataset: data.Dataset, test: bool = True
) -> report.Rows:
    """One row per mode. The only place that reads the test set, and not if `test` is false."""
    layers = describe_layers(model, dataset.train.images.shape[1:])
    rows = []
    for name in reported_modes(config.mode):
        splits = {"validation": dataset.validation, **({"test": dataset.test} if test else {})}
        accuracy = {
            split: 100
            * evaluate(model, state.variables, part.images, part.labels, precision=name)["accuracy"]
            for split, part in splits.items()
        }
        bits = "float" if name == "float" else getattr(config, name)
        cost = dataclasses.asdict(mode_cost(layers, name))
        rows.append({"mode": name, "bits": bits, **accuracy, **cost})
    return rows


def write_overview(model: Any, dataset: data.Dataset, path: Path) -> None:
    """The parameter table of clu, as a file; its total on the terminal."""
    shape = dataset.train.images.shape[1:]
    params = jax.eval_shape(partial(initial_variables, model, shape, 0))["params"]
    path.write_text(parameter_overview.get_parameter_overview(params, include_stats=False) + "\n")
    total = sum(leaf.size for leaf in jax.tree.leaves(params))
    weights = sum(int(np.prod(layer.kernel)) for layer in describe_layers(model, shape).values())
    print(
        f"parameters: {total:,} in all, {weights:,} of them weights shared by every mode ({path})"
    )


def main() -> None:
    clock = cli.Stopwatch()
    config, preset = cli.read_config()
    workdir = Path(cli.FLAGS.workdir or default_workdir(config, preset))
    lookup(config.dataset)  # an unknown one leaves no folder behind
    with only_user(workdir):
        run(config, preset, workdir)
    print(f"{clock} in all")
    print(f"use it: model, variables = dual_precision.load({str(workdir)!r})")


def run(config: Config, preset: str, workdir: Path) -> None:
    """Trains, or goes on, in `workdir`, and leaves its results there."""
    devices = jax.local_devices()
    print(
        f"device: {len(devices)} x {devices[0].device_kind}; preset: {preset}; workdir: {workdir}"
    )
    dataset = data.load(config.dataset, data_dir=cli.FLAGS.data_dir, archive=cli.FLAGS.archive)
    last = "read once, at the end" if cli.FLAGS.test else "not read (--test=false)"
    print(
        f"{dataset.name}: {len(dataset.train.images):,} images train,"
        f" {len(dataset.validation.images):,} validate and select;"
        f" the {len(dataset.test.images):,} of the test set are {last}"
    )
    description = describe_run(config, preset, dataset)
    begun = open_workdir(workdir, description, cli.FLAGS.resume)
    if begun:
        print(f"going on with the run in {workdir} (--resume=false refuses to)")
    write_overview(build_from(description["network"]), dataset, workdir / "parameters.txt")
    model, state = train(config, description, dataset, workdir)
    rows = results(config, model, state, dataset, cli.FLAGS.test)
    picture = workdir / "training.png"
    report.plot_training(read_records(workdir / "metrics.jsonl"), rows, picture)
    # Last: that it is there says the run is finished.
    write_whole(workdir / RESULTS, json.dumps({"rows": rows}, indent=2) + "\n")
    print(f"\n{report.results_table(rows)}\n\nplot: {picture}")


if __name__ == "__main__":
    cli.define_flags()
    cli.run(main)
