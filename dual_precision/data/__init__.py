"""Data: whole image sets through TFDS as uint8 arrays, and augmentation in JAX."""

from dual_precision.data.arrays import Images
from dual_precision.data.augment import augment
from dual_precision.data.catalog import SPECS
from dual_precision.data.errors import DamagedData, DataError, DataUnavailable
from dual_precision.data.images import Dataset, load

NAMES = tuple(SPECS)

__all__ = [
    "NAMES",
    "DamagedData",
    "DataError",
    "DataUnavailable",
    "Dataset",
    "Images",
    "augment",
    "load",
]
