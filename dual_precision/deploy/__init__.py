"""The packed file of a trained network, its integer forward, and the predictor."""

from dual_precision.deploy.cascade import Cascade
from dual_precision.deploy.container import PackedError
from dual_precision.deploy.conversion import to_integer
from dual_precision.deploy.packed import (
    PackedFile,
    PackedInfo,
    amend_metadata,
    inspect_packed,
    load_packed,
    save_packed,
)
from dual_precision.deploy.predictor import Predictor

__all__ = [
    "Cascade",
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
