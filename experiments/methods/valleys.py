"""How sharp the minima are that finished runs ended in, kind by kind; a minute for six runs.

    for seed in 0 1 2; do for mode in cyclic static; do
    python -m experiments.cifar --mode=$mode --dataset=digits --seed=$seed; done; done
    python -m experiments.methods.valleys runs/digits-cyclic-*-seed? runs/digits-static-*-seed?

Sharpness is the mean rise of the validation loss of mode high at a distance of --radius times the
norm of every filter, both ways along random directions (experiments/figures/valleys.py). Of runs
of each recipe the table has the mean and the sample standard deviation.
"""

import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags

from dual_precision import data
from dual_precision.loading import load
from dual_precision.structure import structure_of
from dual_precision.tasks.classification import Classification
from experiments import cli
from experiments.figures.drawing import pyplot_for_files, save_figure
from experiments.figures.tables import markdown_table
from experiments.summary import read_runs
from experiments.workdir import config_of_run

_COLUMNS = (
    ("mode", "recipe", "{}"),
    ("runs", "runs", "{}"),
    ("loss", "loss", "{}"),
    ("sharpness", "sharpness", "{}"),
)
PLACES = 17  # of each line


def _spread(values: list[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.4f}"
    return f"{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}"


def _runs_of(folders: Sequence[str]) -> tuple[dict[str, list[Path]], str]:
    """Recipe -> its runs, which differ in the seed alone; and the data set of all. Errors as of
    `main`."""
    found: dict[str, list[Path]] = {}
    names = set()
    for folder in map(Path, folders):
        config = config_of_run(folder)
        if "high" not in config.recipe.reported:
            raise ValueError(
                f"{folder} is a run of --mode={config.mode}, which trains"
                f" {[*config.recipe.reported]}: expected runs that train high"
            )
        names.add((config.dataset, config.model))
        found.setdefault(config.mode, []).append(folder)
    if len(names) != 1:
        raise ValueError(f"runs of {sorted(names)}: expected one data set and one network")
    for runs in found.values():
        read_runs(runs)
    return found, names.pop()[0]


def main(
    *folders: str, radius: float, directions: int, picture: str, data_dir: str | None = None
) -> None:
    """The command; its words are the folders of finished runs.

    Raises:
      ValueError: none are given; a radius or directions of nothing; runs of other data or networks;
        one that did not train high; of those of a recipe, see `summary.read_runs`.
    """
    if not folders:
        raise ValueError("no workdirs given: expected the folders of finished runs")
    if not radius > 0 or directions < 1:
        raise ValueError(
            f"--radius={radius} with --directions={directions}: expected more than 0, 1 or more"
        )
    pyplot_for_files()  # before a figure is made
    from experiments.figures.valleys import draw_valleys, losses_around, sharpness

    runs_of, name = _runs_of(folders)
    dataset = data.load(name, data_dir=data_dir)
    few = dataset.validation.images[:500], dataset.validation.labels[:500]
    places = np.linspace(-radius, radius, PLACES)
    found: dict[str, list[np.ndarray]] = {}
    for mode, runs in runs_of.items():
        for folder in runs:
            model, variables = load(folder)
            layers = structure_of(model, Classification.of(dataset).example).layers
            around = losses_around(model, variables, [*layers], places, *few, directions)
            found.setdefault(mode, []).append(around)
    rows = [
        {
            "mode": mode,
            "runs": len(runs),
            "loss": _spread([float(run[0, PLACES // 2]) for run in runs]),
            "sharpness": _spread([sharpness(run, places, radius) for run in runs]),
        }
        for mode, runs in found.items()
    ]
    save_figure(draw_valleys(places, found), Path(picture))
    print(f"{markdown_table(rows, _COLUMNS, left=('mode',))}\n\nplot: {picture}")


if __name__ == "__main__":
    flags.DEFINE_float("radius", 0.5, "distance, as a share of the norm of every filter")
    flags.DEFINE_integer("directions", 5, "random ones, the same for every run")
    flags.DEFINE_string("picture", "valleys.png", "where the figure goes")
    flags.DEFINE_string("data_dir", None, "folder of prepared TFDS data sets")
    cli.run(main, trains=False)
