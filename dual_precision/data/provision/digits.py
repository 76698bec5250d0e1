"""scikit-learn's 8x8 digits as a TFDS data set: real images that need no network."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from dual_precision.data.errors import DataUnavailable
from dual_precision.data.provision.png import encode_png

TEST_EXAMPLES = 360


class Digits(tfds.core.GeneratorBasedBuilder):
    """1,797 handwritten digits, 8 x 8 x 1: 1,437 train, 360 test, stratified by class."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> Any:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(),
                    "image": tfds.features.Image(shape=(8, 8, 1)),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager  # nothing to download
        images, labels = _load()
        test = stratified(labels, TEST_EXAMPLES, seed=0)
        train = np.setdiff1d(np.arange(len(labels)), test)
        return {
            split: self._generate_examples(split, images[index], labels[index])
            for split, index in (("train", train), ("test", test))
        }

    def _generate_examples(
        self, split: str, images: np.ndarray, labels: np.ndarray
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield (
                i,
                {
                    "id": f"{split}_{i:05d}",
                    "image": encode_png(image[:, :, None]),
                    "label": int(label),
                },
            )


def stratified(labels: np.ndarray, count: int, *, seed: int) -> np.ndarray:
    """Indices (int64 [count], ascending) of a fixed subset with each class in proportion.

    Examples are ranked inside their class, at random; taking the smallest relative ranks takes the
    same share of every class, to within one example.

    Args:
      labels: integers [N].
      count: 0..N.
      seed: of the ranking.
    """
    rng = np.random.default_rng(seed)
    share = np.empty(len(labels))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        share[members] = (rng.permutation(len(members)) + 0.5) / len(members)
    return np.sort(np.argsort(share, kind="stable")[:count])


def _load() -> tuple[np.ndarray, np.ndarray]:
    """uint8 [1797, 8, 8] and int64 [1797]."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataUnavailable(
            "dataset=digits: its images are inside the package scikit-learn, which is not "
            "installed; pip install scikit-learn"
        ) from error
    digits = load_digits()
    # The values of the file are 0..16; 0..255 in integers, rounded to nearest.
    images = (digits.images.astype(np.int64) * 255 + 8) // 16
    return images.astype(np.uint8), digits.target
