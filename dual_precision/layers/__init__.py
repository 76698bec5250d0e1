"""Layers whose precision is an argument of the call."""

from dual_precision.layers.quantized import (
    CALIBRATION,
    Conv,
    Dense,
    QuantizedLayer,
    SwitchableBatchNorm,
)

__all__ = ["CALIBRATION", "Conv", "Dense", "QuantizedLayer", "SwitchableBatchNorm"]
