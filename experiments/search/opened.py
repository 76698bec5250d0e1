"""A trained supernet, opened for a search: its network, its data, how it is trained on."""

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dual_precision import data
from dual_precision.data.arrays import Images
from dual_precision.loading import load
from dual_precision.precision import Precision, parse
from dual_precision.search.alternatives import SKIP
from dual_precision.search.session import read_events
from dual_precision.search.space import Candidate, Space, block_of
from dual_precision.search.supernet import Supernet
from dual_precision.training.checkpoint import Checkpoints
from dual_precision.training.fit import fit
from dual_precision.training.log import read_records
from dual_precision.training.methods.sampled import SampledLoss
from dual_precision.training.phases import Phase
from experiments.cifar import task_of
from experiments.recipes.config import Config
from experiments.recipes.recipe import Recipe
from experiments.recipes.supernet import SupernetRecipe
from experiments.workdir import config_of_run, read_description, read_rows

CALIBRATION = 1000  # training images that normalisation is calibrated on
RATE_ON = 0.2  # peak of the learning rate where a supernet is trained on, of the peak it had
LOG = "session.jsonl"
_LOSS = "low_loss"


@dataclasses.dataclass
class Opened:
    """What a search of one run of --mode=supernet needs.

    Attributes:
      space: all choices of the run, for every free layer.
      losses: training loss of the mode, of every record of the run.
      trained: variables that `train_on` left, until `take_trained`; None is none.
    """

    config: Config
    dataset: data.Dataset
    supernet: Supernet
    space: Space
    losses: tuple[float, ...]
    trained: dict[str, Any] | None = None

    def own_path(self) -> Candidate:
        """The widths that the network has in the mode that is searched, whatever is listed."""
        layers = self.supernet.structure.layers
        tables = [layers[tuple(name.split("/"))].table for name in self.space.layers]
        own = [table[self.space.mode] for table in tables]
        return tuple(str(dataclasses.replace(precision, gradients=None)) for precision in own)

    @property
    def own_cost(self) -> int:
        """BitOps of the mode that is searched, with the widths that the network has."""
        return self.space.cost(self.own_path())

    def evaluate(self, space: Space, candidate: Candidate) -> float:
        """See `search.session.Evaluate`."""
        return self.supernet.accuracy(space, candidate)

    def go_on(self, folders: Sequence[Path]) -> None:
        """Takes the weights that training on has left, if there was any."""
        if folders:
            found = Checkpoints(folders[-1]).newest(Checkpoints(folders[-1]).restore)
            kept = {"params": found["params"], "batch_stats": found["batch_stats"]}
            self.supernet.variables = jax.tree.map(jnp.asarray, kept)

    def train_on(self, space: Space, passes: float, folder: Path) -> Sequence[float]:
        """Trains the shared weights in a space, see `phase_in`, in a new folder inside of `folder`;
        its losses.

        Candidates are evaluated with the weights of before until `take_trained`: a log that cannot
        be written has no training, and what it has evaluated is of one set of weights.
        """
        workdir = folder / f"trained{len(trained_in(folder)) + 1}"
        if workdir.exists():  # of a process that was killed before its log had the training
            shutil.rmtree(workdir)
        network = self.supernet.network
        state = fit(
            network.model,
            network.task,
            (phase_in(space, self.config.recipe, passes),),
            self.dataset.train,
            self.dataset.validation,
            dataclasses.replace(self.config.fit_options(), epochs_per_evaluation=1),
            workdir,
            variables=self.supernet.variables,
        )
        self.trained = dict(state.variables)
        return _losses(workdir)

    def take_trained(self) -> None:
        """Evaluates with the weights that `train_on` left."""
        if self.trained is not None:
            self.supernet.variables, self.trained = self.trained, None


def phase_in(space: Space, recipe: Recipe, passes: float) -> Phase:
    """The phase that trains the shared weights on in a space.

    Every layer draws from its alternatives, each as often, and by itself: cuts and the bound of the
    space, which tie layers to each other, are left to the search. A block that has "skip" and
    widths is left out by half of the paths, one that has "skip" alone by all.
    """
    rate = recipe.learning_rate * RATE_ON
    (phase,) = dataclasses.replace(recipe, passes=passes, learning_rate=rate, warmup=0.0).phases()
    assert isinstance(phase.loss, SampledLoss)
    own: dict[str, tuple[Precision, ...]] = {}
    kept, out = set(), set()  # blocks
    for layer, texts in zip(space.layers, space.alternatives, strict=True):
        # A layer that is left out by all paths is computed all the same, at some width.
        own[layer] = tuple(parse(text) for text in texts if text != SKIP) or phase.loss.choices
        if SKIP not in texts:
            kept.add(block_of(layer))
        elif texts == (SKIP,):
            out.add(block_of(layer))
    blocks = tuple(block for block in space.skippable if block not in kept | out)
    never = tuple(block for block in space.skippable if block in out)
    loss = dataclasses.replace(phase.loss, layers=own, skippable=blocks, skipped=never)
    return dataclasses.replace(phase, loss=loss, at_start=())


def trained_in(folder: Path) -> list[Path]:
    """The folders of the trainings that the log of a session has, the oldest first."""
    log = folder / LOG
    events = read_events(log) if log.exists() else []
    count = sum(event.get("event") == "trained" for event in events)
    return [folder / f"trained{number + 1}" for number in range(count)]


def open_supernet(workdir: Path, images: int, recalibrate: bool, data_dir: str | None) -> Opened:
    """The supernet of a run.

    Args:
      images: of the validation split, that a candidate is evaluated on; 0 is all.

    Raises:
      ValueError: it is no finished run of --mode=supernet; more images than there are.
      CheckpointError: there is no checkpoint.
    """
    config = config_of_run(workdir)
    if not isinstance(config.recipe, SupernetRecipe):
        raise ValueError(
            f"{workdir} is a run of --mode={config.mode}: expected one of --mode=supernet, which"
            " trains all widths at once"
        )
    read_rows(workdir)  # which only a finished run has
    model, variables = load(workdir)
    dataset = data.load(config.dataset, data_dir=data_dir)
    task = task_of(config, dataset)
    found = dataset.validation
    if not 0 <= images <= len(found.images):
        raise ValueError(
            f"--images={images}: expected up to {len(found.images)}, as many as validate; 0 is all"
        )
    split = found if images == 0 else found.take(np.arange(images))
    batch = calibration_of(dataset.train) if recalibrate else None
    size = min(500, len(split.images))
    supernet = Supernet(model, variables, task, split, batch, size)
    space = config.recipe.space(supernet.structure)
    return Opened(config, dataset, supernet, space, _losses(workdir))


def calibration_of(train: Images) -> dict[str, Any]:
    """The batch that statistics are calibrated on: as given, as what validates is."""
    return {"inputs": train.images[:CALIBRATION], "labels": train.labels[:CALIBRATION]}


def describe_opened(opened: Opened, source: Path) -> dict[str, Any]:
    """What a session log says of its network."""
    network = read_description(source)["network"]
    names = ("model", "dataset", "seed")
    run = {name: getattr(opened.config, name) for name in names}
    return {**run, "network": network, "losses": list(opened.losses)}


def _losses(workdir: Path) -> tuple[float, ...]:
    records = read_records(workdir / "metrics.jsonl")
    return tuple(float(record[_LOSS]) for record in records if _LOSS in record)
