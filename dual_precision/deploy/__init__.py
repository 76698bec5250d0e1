"""The packed file, integer planes of a trained network, and the integer forward."""

from dual_precision.deploy.container import PackedError
from dual_precision.deploy.conversion import to_integer
from dual_precision.deploy.packed import PackedInfo, inspect_packed, load_packed, save_packed

__all__ = [
    "PackedError",
    "PackedInfo",
    "inspect_packed",
    "load_packed",
    "save_packed",
    "to_integer",
]
