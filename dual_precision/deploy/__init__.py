"""The packed file: integer planes of a trained network, its narrowest mode first; its predictor."""

from dual_precision.deploy.cascade import Cascade
from dual_precision.deploy.container import PackedError
from dual_precision.deploy.packed import PackedInfo, inspect_packed, load_packed, save_packed
from dual_precision.deploy.predictor import Predictor

__all__ = [
    "Cascade",
    "PackedError",
    "PackedInfo",
    "Predictor",
    "inspect_packed",
    "load_packed",
    "save_packed",
]
