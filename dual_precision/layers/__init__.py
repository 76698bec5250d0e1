"""Layers whose precision is an argument of the call."""

from dual_precision.layers.attention import Attention, KVCache
from dual_precision.layers.embed import Embed
from dual_precision.layers.linear import Conv, Dense
from dual_precision.layers.lstm import Recurrence
from dual_precision.layers.minmax import MinMaxConv, MinMaxDense
from dual_precision.layers.named import check_named_layers
from dual_precision.layers.norms import SwitchableBatchNorm, SwitchableRMSNorm
from dual_precision.layers.quantized import CALIBRATION, ROUNDING, QuantizedLayer

__all__ = [
    "CALIBRATION",
    "ROUNDING",
    "Attention",
    "Conv",
    "Dense",
    "Embed",
    "KVCache",
    "MinMaxConv",
    "MinMaxDense",
    "QuantizedLayer",
    "Recurrence",
    "SwitchableBatchNorm",
    "SwitchableRMSNorm",
    "check_named_layers",
]
