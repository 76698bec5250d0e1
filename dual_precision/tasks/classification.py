"""Images and their classes."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dual_precision.data.augment import augment
from dual_precision.data.images import Dataset
from dual_precision.tasks.losses import cross_entropy
from dual_precision.tasks.task import Batch

Augment = Callable[[jax.Array, jax.Array], jax.Array]


class LabelledImages(Protocol):
    """images uint8 [N, H, W, C] and labels int [N]."""

    @property
    def images(self) -> np.ndarray: ...

    @property
    def labels(self) -> np.ndarray: ...


def as_given(key: jax.Array, images: jax.Array) -> jax.Array:
    """No augmentation."""
    del key
    return images


@dataclasses.dataclass(frozen=True)
class Classification:
    """The class of an image: cross entropy, top-1 accuracy, every epoch in an order of its own.

    Attributes:
      image_shape: [H, W, C], of uint8 pixels.
      augment: (key, uint8 images) -> uint8 images, of training batches.
      label_smoothing: of the training loss.
      classes: labels are 0 .. classes - 1; None is not known.
    """

    image_shape: tuple[int, ...]
    augment: Augment = as_given
    label_smoothing: float = 0.0
    classes: int | None = None

    @classmethod
    def of(cls, dataset: Dataset, label_smoothing: float = 0.0) -> "Classification":
        """With the random crops and mirror images that suit a data set."""
        moved = partial(augment, padding=dataset.padding, flip=dataset.flip)
        return cls(dataset.image_shape, moved, label_smoothing, dataset.num_classes)

    @property
    def example(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(self.image_shape, jnp.uint8)

    def carry(self, rows: int) -> tuple[()]:
        del rows
        return ()

    def arrays(self, split: LabelledImages) -> dict[str, np.ndarray]:
        check_labels(split.labels, len(split.images), self.classes)
        return {"images": split.images, "labels": split.labels.astype(np.int32)}

    def order(self, split: LabelledImages, batch_size: int, key: jax.Array) -> np.ndarray:
        updates = len(split.images) // batch_size
        if updates == 0:
            raise ValueError(
                f"batch of {batch_size} images from a split of {len(split.images)}: expected at"
                " most the split; make batch_size smaller"
            )
        order = np.asarray(_permutation(key, len(split.images)))
        return order[: updates * batch_size].reshape(updates, batch_size)

    def draw(self, arrays: Mapping[str, jax.Array], index: jax.Array, key: jax.Array) -> Batch:
        images = self.augment(key, arrays["images"][index])
        return {"inputs": images, "labels": arrays["labels"][index]}

    def batches(self, split: LabelledImages, batch_size: int) -> Iterator[tuple[Batch, np.ndarray]]:
        for start in range(0, len(split.images), batch_size):
            images = np.asarray(split.images[start : start + batch_size])
            labels = np.asarray(split.labels[start : start + batch_size])
            missing = batch_size - len(images)
            if missing:  # pad the last batch, so that it runs through the same program
                images = np.pad(images, ((0, missing), *[(0, 0)] * (images.ndim - 1)))
                labels = np.pad(labels, (0, missing))
            yield {"inputs": images, "labels": labels}, np.arange(batch_size) < batch_size - missing

    def loss(self, outputs: jax.Array, batch: Batch) -> jax.Array:
        self._check_outputs(outputs)
        return cross_entropy(outputs, batch["labels"], self.label_smoothing)

    def measures(self, outputs: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        self._check_outputs(outputs)
        right = jnp.argmax(outputs, -1).astype(batch["labels"].dtype) == batch["labels"]
        loss = optax.softmax_cross_entropy_with_integer_labels(outputs, batch["labels"])
        return {"accuracy": right.astype(jnp.float32), "loss": loss}

    def score(self, measured: Mapping[str, float]) -> float:
        return measured["accuracy"]

    def _check_outputs(self, outputs: jax.Array) -> None:
        """Raises ValueError for fewer logits than classes: a loss takes no notice of others."""
        if self.classes is not None and outputs.shape[-1] < self.classes:
            raise ValueError(
                f"a network of {outputs.shape[-1]} outputs: expected {self.classes}, one for each"
                f" class of the labels; make it with num_classes={self.classes}"
            )


def check_labels(labels: np.ndarray, images: int, classes: int | None) -> None:
    """Raises ValueError unless there is a class for every image: a loss takes no notice of others.

    Args:
      classes: how many there are; None is not known.
    """
    most = "" if classes is None else f" to {classes - 1}"
    expected = f"expected integers [{images}], one for each image, from 0{most}"
    if not np.issubdtype(labels.dtype, np.integer) or labels.shape != (images,):
        raise ValueError(f"labels {labels.dtype} {[*labels.shape]}: {expected}")
    if not labels.size:
        return
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or (classes is not None and high >= classes):
        raise ValueError(f"labels from {low} to {high}: {expected}")


@partial(jax.jit, static_argnames="size")
def _permutation(key: jax.Array, size: int) -> jax.Array:
    return jax.random.permutation(key, jnp.arange(size, dtype=jnp.int32))
