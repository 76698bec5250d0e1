"""What each mode of a trained network is worth on its images: a packed file, or a run.

    python -m experiments.deploy evaluate net.safetensors
    python -m experiments.deploy evaluate runs/... --split=test

For notebooks/networks/cifar10-w2a2-w8a8.safetensors and the 5,000 images that validate: low
80.50 %, high 83.18 %; twenty seconds on one core.
"""

import math
from pathlib import Path
from typing import Any

from flax import linen as nn

from dual_precision import data
from dual_precision.costs import mode_cost
from dual_precision.deploy import inspect_packed, load_packed
from dual_precision.loading import load, trained_modes
from dual_precision.structure import structure_of
from dual_precision.tasks.classification import Classification
from dual_precision.training.metrics import evaluate
from experiments.deploy.pack import spec_of_run
from experiments.deploy.trials import check_data, dataset_of, reads_text
from experiments.figures.tables import markdown_table
from experiments.workdir import read_description

SPLITS = ("validation", "test")
_COLUMNS = (
    ("mode", "mode", "{}"),
    ("bits", "bits", "{}"),
    ("accuracy", "accuracy %", "{:.2f}"),
    ("error", "± se", "{:.2f}"),
    ("loss", "loss", "{:.4f}"),
    ("bit_operations", "BitOps/image", "{:.3g}"),
)


def evaluate_command(
    network: str,
    *,
    split: str,
    dataset: str | None = None,
    data_dir: str | None = None,
    archive: str | None = None,
) -> None:
    """The sub-command `evaluate`, of a packed file or the folder of a run.

    Raises:
      ValueError: neither of these; a network of something else than images, or of other ones than
        the data set has; no such split.
    """
    if split not in SPLITS:
        raise ValueError(f"--split={split}: expected one of {[*SPLITS]}")
    model, variables, modes, shape, trained_on = _network(Path(network))
    images = data.load(dataset or trained_on, data_dir=data_dir, archive=archive)
    check_data(images, shape, getattr(model, "num_classes", None))
    part = getattr(images, split)
    print(f"{network}: {len(part):,} images of {images.name}, {split}\n")
    rows = evaluated(model, variables, modes, images, part)
    print(markdown_table(rows, _COLUMNS, left=("mode", "bits")))


def _network(path: Path) -> tuple[nn.Module, Any, tuple[str, ...], tuple[int, ...], str]:
    """Model, variables, the modes that were trained, the shape of an image, and the data set."""
    if path.is_dir():
        description = read_description(path)
        model, variables = load(path)
        spec = spec_of_run(path, description)
        return model, variables, trained_modes(description, model), spec.image_shape, spec.name
    info = inspect_packed(path)
    if reads_text(info):
        raise ValueError(
            f"{path} reads text: expected a network of images; of a run on text,"
            " `python -m experiments.lm agreement` says how often its modes guess alike"
        )
    return *load_packed(path), info.trained, info.image_shape, dataset_of(info)


def evaluated(
    model: nn.Module,
    variables: Any,
    modes: tuple[str, ...],
    images: data.Dataset,
    part: data.Images,
) -> list[dict[str, Any]]:
    """A row for each mode; the standard error is that of a share of so many images."""
    task = Classification.of(images)
    structure, rows = structure_of(model, task.example), []
    for mode in modes:
        found = evaluate(model, variables, part, task=task, precision=mode)
        share = found["accuracy"]
        rows.append(
            {
                "mode": mode,
                "bits": str(model.modes.default.get(mode, "float32")),
                "accuracy": 100 * share,
                "error": 100 * math.sqrt(share * (1 - share) / len(part)),
                "loss": found["loss"],
                "bit_operations": mode_cost(structure, mode).bit_operations,
            }
        )
    return rows
