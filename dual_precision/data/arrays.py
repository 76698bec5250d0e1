"""A labelled image array: its checks, its canonical order and its digests."""

import hashlib
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Images:
    """Images and their labels.

    Attributes:
      images: uint8 [N, H, W, C].
      labels: int32 [N].

    Raises:
      ValueError: a wrong dtype or shape, or not one label per image.
    """

    images: np.ndarray
    labels: np.ndarray

    def __post_init__(self) -> None:
        check_images(self.images)
        if self.labels.dtype != np.int32 or self.labels.shape != self.images.shape[:1]:
            raise ValueError(
                f"labels: got {self.labels.dtype} {list(self.labels.shape)}, expected int32 "
                f"[{len(self.images)}], one for each image; convert with labels.astype('int32')"
            )

    def __len__(self) -> int:
        return len(self.images)

    def take(self, index: np.ndarray) -> "Images":
        """The examples at `index` (integers [M]), copied."""
        return Images(self.images[index], self.labels[index])


def check_images(images: object) -> None:
    """Checks for a uint8 [N, H, W, C] array (numpy, jax or traced); ValueError otherwise."""
    dtype, shape = getattr(images, "dtype", None), getattr(images, "shape", None)
    if dtype is None or shape is None:
        raise ValueError(
            f"images: got {type(images).__name__}, expected a uint8 array [N, H, W, C]; "
            "convert with np.asarray(images, dtype='uint8')"
        )
    if dtype != np.uint8 or len(shape) != 4:
        raise ValueError(
            f"images: got {dtype} {list(shape)}, expected uint8 [N, H, W, C]; give the raw pixels "
            "0..255 (a network makes the floats) with an axis for the batch and one for channels"
        )


def canonical(examples: Images, ids: np.ndarray | None = None) -> Images:
    """Puts examples into an order that does not depend on how they were stored.

    TFDS stores a split shuffled by hashed keys. With `ids` ('train_00000', ...) the official order
    is restored. Without, the examples are sorted by the bytes of their pixels, then their label:
    the same order, hence the same splits and digests, wherever the data came from.

    Args:
      examples: N examples.
      ids: bytes or str [N], or None.
    """
    if ids is not None:
        return examples.take(np.argsort(ids, kind="stable"))
    rows = np.concatenate(
        [examples.images.reshape(len(examples), -1), examples.labels.astype(np.uint8)[:, None]],
        axis=1,
    )
    # One opaque element per row: numpy compares such elements like memcmp.
    keys = rows.view(np.dtype((np.void, rows.shape[1])))[:, 0]
    return examples.take(np.argsort(keys, kind="stable"))


def digests(examples: Images) -> tuple[str, str]:
    """sha256 of the C-contiguous uint8 pixels and of the labels as uint8 (below 256 classes)."""
    labels = examples.labels.astype(np.uint8)
    return (
        hashlib.sha256(np.ascontiguousarray(examples.images).data).hexdigest(),
        hashlib.sha256(labels.data).hexdigest(),
    )
