"""The packed file of a trained network, its integer forward, the predictor and the generator."""

from dual_precision.deploy.cascade.rule import Cascade
from dual_precision.deploy.file.container import PackedError
from dual_precision.deploy.file.info import PackedInfo
from dual_precision.deploy.file.packed import (
    PackedFile,
    amend_metadata,
    inspect_packed,
    load_packed,
    save_packed,
)
from dual_precision.deploy.generation.generator import Generator
from dual_precision.deploy.integer.conversion import to_integer
from dual_precision.deploy.predictor import Predictor

__all__ = [
    "Cascade",
    "Generator",
    "PackedError",
    "PackedFile",
    "PackedInfo",
    "Predictor",
    "amend_metadata",
    "inspect_packed",
    "load_packed",
    "save_packed",
    "to_integer",
]
