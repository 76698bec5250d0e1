"""Trains a dual-precision network on CIFAR-10 (or --dataset=...), both modes from one tree.

Commands, on two CPU cores (a busy machine), with the expected test accuracy:

- `python -m experiments.cifar --mode=two_phase`: preset quick, 3 to 15 minutes, low (w2a2) 80 %,
  high (w8a8) 82 %
- `python -m experiments.cifar --mode=two_phase --dataset=digits`: no network, half a minute,
  low 98.9 %, high 99.2 %
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dual_precision import data
from dual_precision.data.catalog import lookup
from dual_precision.tasks.classification import Classification
from experiments import cli
from experiments.figures.training import plot_training, results_table
from experiments.recipes.config import Config
from experiments.recipes.course import Problem, train
from experiments.recipes.flags import define_flags, read_config
from experiments.recipes.settings import read_channels
from experiments.workdir import default_workdir


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
    config, preset = read_config()
    lookup(config.dataset)  # an unknown one leaves no folder behind
    train(
        config,
        preset,
        Path(workdir or default_workdir(config, preset)),
        lambda: problem_of(config, load_data(config, test, data_dir, archive)),
        resume=resume,
        test=test,
        tensorboard=tensorboard,
        shard_data=shard_data,
    )


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


def problem_of(config: Config, dataset: data.Dataset) -> Problem:
    """What a run on images is trained on; its rows have accuracies in percent."""
    network, task = network_of(config, dataset), task_of(config, dataset)
    return Problem(network, task, dataset, _columns, results_table, plot_training)


def _columns(split: str, found: Mapping[str, float]) -> dict[str, float]:
    return {split: 100 * found["accuracy"]}


def network_of(config: Config, dataset: data.Dataset) -> dict[str, Any]:
    """What `models.build_from` makes the network of a run of.

    Raises:
      ValueError: a mean or deviation of pixels for another number of channels.
    """
    mean, std = (
        read_channels(name, getattr(config, name)) or getattr(dataset, name)
        for name in ("mean", "std")
    )
    if len({len(mean), len(std), len(dataset.mean)}) > 1:
        raise ValueError(
            f"mean={config.mean!r} and std={config.std!r}: expected {len(dataset.mean)} numbers"
            f" each, as images of {dataset.name} have channels"
        )
    return {
        "name": config.model,
        "num_classes": dataset.num_classes,
        **config.modes.to_json(),
        **({"skipped": config.skipped.split()} if config.skipped else {}),
        "mean": [float(value) for value in mean],
        "std": [float(value) for value in std],
    }


def task_of(config: Config, dataset: data.Dataset) -> Classification:
    """The task of a run."""
    return Classification.of(dataset, config.recipe.label_smoothing)


if __name__ == "__main__":
    define_flags()
    cli.run(main)
