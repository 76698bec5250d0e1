"""Whole image data sets in memory, as uint8, with fixed splits."""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dual_precision.data.arrays import Images
from dual_precision.data.catalog import lookup
from dual_precision.data.provision import sources


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set with all that a recipe needs to know of it.

    Attributes:
      name: as TFDS calls it.
      train, validation, test: disjoint. `train` is in random order, so that any slice of it is a
        random sample.
      num_classes: labels are 0 .. num_classes - 1.
      mean, std: per channel, of the pixels of `train` alone, in units of the range 0..1.
      padding: pixels of padding for a random crop.
      flip: whether a mirrored image is as good as the original.
      class_names: one for each class.
    """

    name: str
    train: Images
    validation: Images
    test: Images
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    padding: int
    flip: bool
    class_names: tuple[str, ...]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        height, width, channels = self.train.images.shape[1:]
        return height, width, channels


def load(
    name: str,
    *,
    data_dir: str | Path | None = None,
    archive: str | Path | None = None,
    validation: int | None = None,
    split_seed: int = 0,
    progress: bool | None = None,
) -> Dataset:
    """Loads a data set through TFDS, preparing it first where that has not been done.

    Args:
      name: cifar10, cifar100, mnist, fashion_mnist or digits.
      data_dir: a TFDS directory; None is TFDS's own default ($TFDS_DATA_DIR, else
        ~/tensorflow_datasets). What is not prepared there is prepared there.
      archive: the published archive to prepare from; not read where the set is prepared.
      validation: how many examples of the training split validate; None is the data set's own
        number (5,000; 215 of digits).
      split_seed: chooses which; the same seed and number choose the same images on every machine.
      progress: draw bars on stderr; None is: if stderr is a terminal.

    Raises:
      ValueError: an unknown name, a validation that leaves nothing to train on, no such archive,
        an archive of what comes from none.
      DataUnavailable, DamagedData, DataError: see dual_precision.data.provision.sources.provide.
    """
    spec = lookup(name)
    if progress is None:
        progress = sys.stderr.isatty()
    splits, class_names = sources.provide(
        spec, data_dir=_path(data_dir), archive=_path(archive), progress=progress
    )
    count = spec.validation if validation is None else validation
    train, held_out = split_off(splits["train"], count, seed=split_seed)
    mean, std = channel_statistics(train.images)
    return Dataset(
        name=name,
        train=train,
        validation=held_out,
        test=splits["test"],
        num_classes=spec.num_classes,
        mean=mean,
        std=std,
        padding=spec.padding,
        flip=spec.flip,
        class_names=class_names,
    )


def _path(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path).expanduser()


def split_off(examples: Images, count: int, *, seed: int) -> tuple[Images, Images]:
    """Splits into (the rest, `count` examples), each in an order that the seed fixes.

    Raises:
      ValueError: a count below 0, or that leaves nothing in the rest.
    """
    if not 0 <= count < len(examples):
        raise ValueError(
            f"validation: got {count}, expected 0 to {len(examples) - 1}, of the {len(examples)} "
            "training examples"
        )
    order = np.random.default_rng(seed).permutation(len(examples))
    return examples.take(order[count:]), examples.take(order[:count])


def channel_statistics(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of uint8 [N, H, W, C], in units of 0..1.

    Exact sums in integers, a block of images at a time, without a float copy of the images.
    """
    height, width, channels = images.shape[1:]
    total = np.zeros((2, width * channels), np.uint64)
    # At most 2^16 rows a block: 2^16 * 255^2 still fits in 32 bits, which is quicker than 64.
    block = max(1, 2**16 // height)
    for start in range(0, len(images), block):
        rows = images[start : start + block].reshape(-1, width * channels).astype(np.uint32)
        total[0] += rows.sum(axis=0, dtype=np.uint32)
        total[1] += np.einsum("nc,nc->c", rows, rows)
    pixels = len(images) * height * width
    first, second = total.reshape(2, width, channels).sum(axis=1) / pixels
    mean, std = first / 255, np.sqrt(second - first**2) / 255
    return tuple(mean.tolist()), tuple(std.tolist())
