"""What a packed network is asked in another engine, images or texts, and how right it is.

A score is the percentage of images that are classified right, or the bits of a byte of text: of
windows of the context's length, each read from its begin, whose second half counts.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from dual_precision import data
from dual_precision.data.catalog import SPECS, Spec
from dual_precision.data.text import load_text
from dual_precision.deploy import PackedInfo
from dual_precision.tasks.language import NextByte

CALIBRATE = 256  # images of training, that ranges are measured on
_BATCH, _ROWS = 500, 32  # images, windows
TEXT = 1 << 16  # bytes of a text that are read for a score
Ask = Callable[[np.ndarray], Any]


@dataclasses.dataclass(frozen=True)
class Trial:
    """
    Attributes:
      inputs: uint8 [N, ...].
      score: of what answers such inputs.
      unit: of the score.
      calibration: images such as those of training; None for text.
    """

    inputs: np.ndarray
    score: Callable[[Ask], float]
    unit: str
    calibration: np.ndarray | None


def dataset_of(info: PackedInfo) -> str:
    """The data set that a packed network was trained on.

    Raises:
      ValueError: the file does not say.
    """
    entry: Any = info.metadata  # whose entries may be anything
    for key in ("run", "experiment", "dataset"):
        entry = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(entry, str) or not entry:
        raise ValueError(
            "the file does not say on what it was trained: give --dataset=..., one of"
            f" {', '.join(SPECS)}, or a text where it reads text; of other data `report`, `serve`,"
            " dual_precision.deploy.Predictor and the functions of dual_precision.deploy.export"
            " take any file"
        )
    return entry


def check_data(images: Spec | data.Dataset, shape: tuple[int, ...], classes: int | None) -> None:
    """Checks that a network can be asked about these data, before anything is compiled.

    Args:
      shape: [H, W, C] that the network takes.
      classes: that it tells apart; None where it does not say.

    Raises:
      ValueError: data of other images, or of other classes.
    """
    if images.image_shape != shape:
        raise ValueError(
            f"images of {images.name} are {images.image_shape}: expected {shape}, as the network"
            " takes; give another --dataset"
        )
    if classes not in (None, images.num_classes):
        raise ValueError(
            f"a network of {classes} classes: expected {images.num_classes}, as {images.name} has;"
            " give the --dataset that it was trained on"
        )


def reads_text(info: PackedInfo) -> bool:
    """Whether a network takes bytes of text."""
    own = info.example
    return not isinstance(own, tuple) and own.dtype == jnp.uint8 and len(own.shape) == 1


def trial_of(
    info: PackedInfo,
    asked: int,
    *,
    part: str,
    dataset: str | None = None,
    most: int | None = None,
    **options: Any,
) -> Trial:
    """Inputs for a packed network.

    Args:
      asked: how many are compared.
      part: validation or test.
      dataset: None is the one that it was trained on.
      most: images that a score is of; None is all.
      options: data_dir and archive, of `data.load` and `load_text`.

    Raises:
      ValueError: the file does not say what it was trained on; data of other shapes or classes.
      DataError: as those.
    """
    name = dataset or dataset_of(info)
    if reads_text(info):
        text = getattr(load_text(name, **options), part)[:TEXT]
        return text_trial(text, info.example.shape[0], asked)
    loaded = data.load(name, **options)
    check_data(loaded, info.image_shape, info.network.get("num_classes"))
    return image_trial(loaded, part, asked, most)


def image_trial(loaded: Any, part: str, asked: int, most: int | None = None) -> Trial:
    """Images of a part of a data set."""
    split = getattr(loaded, part)
    images, labels = split.images[:most], split.labels[:most]

    def score(ask: Ask) -> float:
        parts = range(0, len(images), _BATCH)
        found = [np.argmax(ask(images[start : start + _BATCH]), 1) for start in parts]
        return float(100 * np.mean(np.concatenate(found) == labels))

    return Trial(images[:asked], score, "%", loaded.train.images[:CALIBRATE])


def text_trial(text: np.ndarray, context: int, asked: int) -> Trial:
    """Windows of a text."""
    task = NextByte(context)
    inputs = np.resize(text, (asked, context))

    def score(ask: Ask) -> float:
        found, rows = 0.0, 0
        for batch, real in task.batches(text, _ROWS):
            logits = jnp.asarray(ask(batch["inputs"]))
            bits = np.asarray(task.measures(logits, batch)["bits"])
            found, rows = found + float(bits[real].sum()), rows + int(real.sum())
        return found / rows

    return Trial(inputs, score, "bits per byte", None)


def compared(found: Any, own: np.ndarray) -> dict[str, float]:
    """The largest difference of a logit as a share of the largest, and likeliest answers alike.

    Raises:
      ValueError: an engine gives another shape, or what is no number.
    """
    found = np.asarray(found)
    if found.shape != own.shape or not np.isfinite(found).all():
        raise ValueError(
            f"the engine gives {[*found.shape]}"
            f"{'' if np.isfinite(found).all() else ' with numbers that are not finite'}: expected"
            f" finite {[*own.shape]}, as the network itself gives"
        )
    return {
        "difference": float(np.abs(found - own).max() / np.abs(own).max()),
        "agree": float(100 * np.mean(found.argmax(-1) == own.argmax(-1))),
    }
