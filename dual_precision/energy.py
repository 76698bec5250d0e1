"""What a mode costs in energy: a model with stated figures, not a measurement.

    arithmetic   MACs * (multiply * w * a / 64 + add), or MACs * float_mac where one is float
    weights      bits of all weights, each read once per image from DRAM
    activations  inputs * 2 * a bits: written once and read once, in a 32 kB SRAM

w and a are the bits of weights and activations. An array multiplier has w * a cells, so the energy
of an 8x8-bit one is scaled by w * a / 64; the sum is kept in 32 bits. The first layer's pixels are
8-bit, as BitOps count them. Not in it: normalisation, residual sums, instructions, leakage, and
what a real memory hierarchy reads twice. Weights dominate where an image comes alone; in a batch
they are read once for all of it.

Figures: M. Horowitz, "Computing's energy problem (and what we can do about it)", ISSCC 2014, for
45 nm at 0.9 V.
"""

import dataclasses
import math
from collections.abc import Mapping

from dual_precision.describe import Layer, Path, input_bits
from dual_precision.precision import FLOAT_BITS


@dataclasses.dataclass(frozen=True)
class EnergyModel:
    """Picojoules.

    Attributes:
      multiply: 8 x 8-bit integers.
      add: 32-bit integers.
      float_mac: multiplication and addition of 32-bit floats.
      dram, sram: reading or writing 64 bits.
    """

    multiply: float = 0.2
    add: float = 0.1
    float_mac: float = 3.7 + 0.9
    dram: float = 1300.0  # the lower end of 1,300 to 2,600
    sram: float = 20.0  # 32 kB; 8 kB takes 10, 1 MB takes 100


HOROWITZ = EnergyModel()


@dataclasses.dataclass(frozen=True)
class Energy:
    """Nanojoules per image."""

    arithmetic: float
    weights: float
    activations: float

    @property
    def total(self) -> float:
        return self.arithmetic + self.weights + self.activations


def layer_energy(
    layers: Mapping[Path, Layer], path: Path, mode: str, model: EnergyModel = HOROWITZ
) -> Energy:
    """The energy of one layer in one mode, by the equations at the top of this file."""
    layer = layers[path]
    weights, inputs = layer.table[mode].weights, input_bits(layers, path, mode)
    mac = model.float_mac
    if weights is not None and inputs < FLOAT_BITS:
        mac = model.multiply * weights * inputs / 64 + model.add
    read = math.prod(layer.kernel) * (weights or FLOAT_BITS)
    return Energy(
        arithmetic=layer.macs * mac / 1000,
        weights=read / 64 * model.dram / 1000,
        activations=layer.inputs * 2 * inputs / 64 * model.sram / 1000,
    )


def mode_energy(layers: Mapping[Path, Layer], mode: str, model: EnergyModel = HOROWITZ) -> Energy:
    """The energy of all layers in one mode."""
    parts = [layer_energy(layers, path, mode, model) for path in layers]
    return Energy(
        *(sum(getattr(part, f.name) for part in parts) for f in dataclasses.fields(Energy))
    )
