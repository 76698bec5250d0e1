"""Readers of the files in which the data sets are published. Nothing is unpickled or extracted."""

import gzip
import io
import json
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from dual_precision.data.arrays import Images
from dual_precision.data.catalog import Spec
from dual_precision.data.errors import DataError

# What reading a file raises that is damaged, unreadable or no archive.
UNREADABLE = (OSError, EOFError, ValueError, tarfile.TarError, zlib.error)

_BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))
_IDX = {"train": "train", "test": "t10k"}


@dataclass(frozen=True)
class Raw:
    """A data set as it was published, in its order."""

    train: Images
    test: Images
    class_names: tuple[str, ...] | None = None
    # CIFAR-100's second label, kept because TFDS's own data set has it; nothing here reads it.
    coarse: dict[str, np.ndarray] | None = None  # split -> uint8 [N]
    coarse_names: tuple[str, ...] | None = None


def read(spec: Spec, path: Path) -> Raw:
    """Reads a tar archive, or a folder with its files.

    Args:
      spec: the data set.
      path: a folder, or a tar archive under any compression that tarfile knows.

    Raises:
      DataError: it cannot be read, or does not hold this data set; says what is accepted.
    """
    try:
        files = dict(_folder(path) if path.is_dir() else _tar(path))
        readers = {"cifar10": _cifar10, "cifar100": _cifar100, "idx": _idx}
        return readers[spec.layout](spec, files)
    except KeyError as error:
        found = f"has no {error.args[0]}"
    except UNREADABLE as error:
        found = f"{type(error).__name__}: {error}"
    raise DataError(
        f"archive: got {path}, which {_is(found)}; expected, for {spec.name}, {spec.archives}"
    )


def _is(found: str) -> str:
    return found if found.startswith("has") else f"cannot be read ({found})"


def _wanted(name: str) -> bool:
    """Whether a file belongs to one of the layouts: all else in an archive is left alone."""
    stems = ("data_batch_", "test_batch", "train", "test", "t10k-", "fine_label", "coarse_label")
    return name.startswith(stems)


def _folder(path: Path) -> Iterator[tuple[str, bytes]]:
    for file in sorted(path.iterdir()):
        if file.is_file() and _wanted(file.name):
            yield _unzip(file.name, file.read_bytes())


def _tar(path: Path) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(path) as tar:
        for member in tar:
            name = member.name.rsplit("/", 1)[-1]
            file = tar.extractfile(member) if member.isfile() and _wanted(name) else None
            if file is not None:
                yield _unzip(name, file.read())


def _unzip(name: str, content: bytes) -> tuple[str, bytes]:
    if name.endswith(".gz"):
        return name.removesuffix(".gz"), gzip.decompress(content)
    return name, content


def _images(spec: Spec, images: np.ndarray, labels: np.ndarray) -> Images:
    """Reshapes, checks and contiguously stores what a reader found."""
    images = np.ascontiguousarray(images.reshape(-1, *spec.image_shape))
    if len(labels) != len(images) or not len(labels):
        raise ValueError(f"{len(images)} images and {len(labels)} labels")
    if labels.min() < 0 or labels.max() >= spec.num_classes:
        raise ValueError(f"labels up to {labels.max()}, expected below {spec.num_classes}")
    return Images(images, labels.astype(np.int32))


def _cifar10(spec: Spec, files: dict[str, bytes]) -> Raw:
    if "data_batch_1.png" in files:
        return _cifar10_png(spec, files)
    if "data_batch_1" in files:
        raise ValueError("the python version is made of pickles, which can run any code; not read")
    return Raw(
        train=_cifar_binary(spec, [files[f"{batch}.bin"] for batch in _BATCHES], 1),
        test=_cifar_binary(spec, [files["test_batch.bin"]], 1),
    )


def _cifar100(spec: Spec, files: dict[str, bytes]) -> Raw:
    if "train" in files:
        raise ValueError("the python version is made of pickles, which can run any code; not read")
    train, test = files["train.bin"], files["test.bin"]
    height, width, channels = spec.image_shape
    record = 2 + height * width * channels
    return Raw(
        train=_cifar_binary(spec, [train], 2),
        test=_cifar_binary(spec, [test], 2),
        class_names=tuple(files["fine_label_names.txt"].decode().split()),
        coarse={
            "train": np.frombuffer(train, np.uint8)[::record],
            "test": np.frombuffer(test, np.uint8)[::record],
        },
        coarse_names=tuple(files["coarse_label_names.txt"].decode().split()),
    )


def _cifar_binary(spec: Spec, batches: list[bytes], label_bytes: int) -> Images:
    """Records of `label_bytes` labels, the last of which is the class, and planes C, H, W."""
    height, width, channels = spec.image_shape
    size = label_bytes + height * width * channels
    records = np.frombuffer(b"".join(batches), np.uint8).reshape(-1, size)
    planes = records[:, label_bytes:].reshape(-1, channels, height, width)
    return _images(spec, planes.transpose(0, 2, 3, 1), records[:, label_bytes - 1])


def _cifar10_png(spec: Spec, files: dict[str, bytes]) -> Raw:
    """One PNG per batch, one image a row. 'lables' is the package's spelling."""

    def split(batches: tuple[str, ...], labels: str) -> Images:
        rows = [Image.open(io.BytesIO(files[f"{batch}.png"])).convert("RGB") for batch in batches]
        pixels = np.concatenate([np.asarray(row) for row in rows])
        return _images(spec, pixels, np.asarray(json.loads(files[labels]), np.int64))

    return Raw(
        train=split(_BATCHES, "train_lables.json"),
        test=split(("test_batch",), "test_lables.json"),
    )


def _idx(spec: Spec, files: dict[str, bytes]) -> Raw:
    def split(prefix: str) -> Images:
        images = _idx_array(files[f"{prefix}-images-idx3-ubyte"], 3)
        labels = _idx_array(files[f"{prefix}-labels-idx1-ubyte"], 1)
        return _images(spec, images, labels)

    return Raw(train=split(_IDX["train"]), test=split(_IDX["test"]))


def _idx_array(content: bytes, rank: int) -> np.ndarray:
    """IDX: two zero bytes, 8 for uint8, the rank, each size as big-endian uint32, the values."""
    head = 4 + 4 * rank
    if content[:4] != bytes((0, 0, 8, rank)):
        raise ValueError(f"an IDX file starts with {content[:4]!r}, expected uint8 of rank {rank}")
    shape = np.frombuffer(content[4:head], ">u4").astype(np.int64)
    return np.frombuffer(content[head:], np.uint8).reshape(shape)
