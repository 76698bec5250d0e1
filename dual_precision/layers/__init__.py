"""Layers whose precision is an argument of the call."""

from dual_precision.layers.minmax import MinMaxConv, MinMaxDense
from dual_precision.layers.norms import SwitchableBatchNorm
from dual_precision.layers.quantized import (
    CALIBRATION,
    ROUNDING,
    Conv,
    Dense,
    QuantizedLayer,
    check_named_layers,
)

__all__ = [
    "CALIBRATION",
    "ROUNDING",
    "Conv",
    "Dense",
    "MinMaxConv",
    "MinMaxDense",
    "QuantizedLayer",
    "SwitchableBatchNorm",
    "check_named_layers",
]
