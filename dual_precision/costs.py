"""What a mode costs: bytes, BitOps, and energy by a model with stated figures, not a measurement.

    BitOps       MACs * w * a, of every call of a layer
    an update    MACs * (w * a + w * g + a * g) of an example, see `update_cost`; layers alone

    arithmetic   MACs * (multiply * w * a / 64 + add), or MACs * float_mac where one is float
    weights      bits of all weights, each read once per image from DRAM
    activations  inputs * 2 * a bits: written once and read once, in a 32 kB SRAM

w and a are the bits of weights and activations. An array multiplier has w * a cells, so the energy
of an 8x8-bit one is scaled by w * a / 64; the sum is kept in 32 bits. Pixels, which the first
layer takes as they are, count as 8-bit numbers. Products of activations with activations, as those
of attention, are floats in every mode, 32 * 32 BitOps each; both operands count as activations, and
no weights do. Not in it: normalisation, residual sums,
instructions, leakage, and what a real memory hierarchy reads twice. Weights dominate where an
image comes alone; in a batch they are read once for all of it.

Figures: M. Horowitz, "Computing's energy problem (and what we can do about it)", ISSCC 2014, for
45 nm at 0.9 V.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Protocol

from dual_precision.layers.facts import FloatProduct
from dual_precision.precision import FLOAT_BITS, FLOAT_NAME
from dual_precision.structure import Layer, LayerPath

PIXEL_BITS = 8


class Billable(Protocol):
    """What a network computes with: a Structure, or the PackedInfo of a file."""

    @property
    def layers(self) -> Mapping[LayerPath, Layer]: ...

    @property
    def products(self) -> Mapping[LayerPath, FloatProduct]: ...


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one mode costs, of a network or of a layer.

    Attributes:
      weight_bytes: kernels at the width of the mode, packed, and 4 bytes for every step of theirs.
      bit_operations: sum over layers of MACs * weight bits * activation bits, per image, and
        32 * 32 for a MAC of a product of activations.
      macs: multiply-accumulates per image.
    """

    weight_bytes: int
    bit_operations: int
    macs: int


def pixel_layer(layers: Mapping[LayerPath, Layer]) -> LayerPath | None:
    """The first layer, where no mode quantizes its input: so that all see the same pixels."""
    for path, layer in layers.items():
        return None if any(p.activations for p in layer.table.values()) else path
    return None


def input_bits(layers: Mapping[LayerPath, Layer], path: LayerPath, mode: str) -> int:
    """Width of the input of a layer: of the first one, 8 bits of pixels that no mode quantizes."""
    pixels = path == pixel_layer(layers) and mode != FLOAT_NAME
    return layers[path].table[mode].activations or (PIXEL_BITS if pixels else FLOAT_BITS)


def layer_cost(layers: Mapping[LayerPath, Layer], path: LayerPath, mode: str) -> Cost:
    """The cost of one layer in a mode."""
    layer = layers[path]
    bits = layer.table[mode].weights or FLOAT_BITS
    operations = layer.macs * bits * input_bits(layers, path, mode)
    return Cost(math.ceil(_stored_size(layer, mode) / 8), operations, layer.macs)


def _stored_size(layer: Layer, mode: str) -> int:
    """Bits of the kernel, and of its steps where it has codes."""
    bits = layer.table[mode].weights
    return math.prod(layer.kernel) * (bits or FLOAT_BITS) + (32 * layer.kernel[-1] if bits else 0)


def product_cost(product: FloatProduct) -> Cost:
    """The cost of products of activations, the same in every mode; they read no weights."""
    return Cost(0, product.macs * FLOAT_BITS**2, product.macs)


def mode_cost(network: Billable, mode: str) -> Cost:
    """The cost of a mode of a network: the sum over its parts, parts of bytes counted up once."""
    own = [layer_cost(network.layers, path, mode) for path in network.layers]
    own += map(product_cost, network.products.values())
    size = sum(_stored_size(layer, mode) for layer in network.layers.values())
    operations, macs = sum(cost.bit_operations for cost in own), sum(cost.macs for cost in own)
    return Cost(math.ceil(size / 8), operations, macs)


def reused_bit_operations(layers: Mapping[LayerPath, Layer], low: str, high: str) -> int:
    """The part of `mode_cost(network, high).bit_operations` that a run of `low` has done already.

    The sum of the pixel layer over the planes that `low` reads is the first part of the same sum
    in `high`: MACs * weight bits of `low` * 8, all of the layer where the widths are equal, 0
    where `low` is the wider one there. Other layers see other inputs in other modes.
    """
    path = pixel_layer(layers)
    if path is None:
        return 0
    first, last = (layers[path].table[mode].weights for mode in (low, high))
    if first is None or last is None or first > last:
        return 0
    return layers[path].macs * first * PIXEL_BITS


def update_cost(weights: Any, activations: Any, gradients: Any) -> Any:
    """Cost of a training update, where one of 32-bit floats costs 1; numbers or arrays.

        (w * a + w * g + a * g) / (3 * 32^2)

    The three products of an update: forward; gradient of the inputs; gradient of the weights. All
    layers count as if they had these widths, as the figures of Cyclic Precision Training do
    (Fu et al. 2021, arXiv 2101.09868), whose w = a makes it (w^2 + 2 w g) / (3 * 32^2). Products of
    activations with activations are not in it.

    >>> update_cost(32, 32, 32)
    1.0
    """
    products = weights * activations + weights * gradients + activations * gradients
    return products / (3 * FLOAT_BITS**2)


def update_bit_operations(layers: Mapping[LayerPath, Layer], examples: float) -> float:
    """BitOps of a float update on so many examples: what an `update_cost` of 1 stands for. Of
    layers alone: it is scaled by widths, which products of activations do not have."""
    return sum(layer.macs for layer in layers.values()) * 3 * FLOAT_BITS**2 * examples


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
    layers: Mapping[LayerPath, Layer], path: LayerPath, mode: str, model: EnergyModel = HOROWITZ
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


def product_energy(product: FloatProduct, model: EnergyModel = HOROWITZ) -> Energy:
    """The energy of products of activations, the same in every mode."""
    return Energy(
        arithmetic=product.macs * model.float_mac / 1000,
        weights=0.0,
        activations=product.inputs * 2 * FLOAT_BITS / 64 * model.sram / 1000,
    )


def mode_energy(network: Billable, mode: str, model: EnergyModel = HOROWITZ) -> Energy:
    """The energy of all layers in one mode, and of the products of activations."""
    parts = [layer_energy(network.layers, path, mode, model) for path in network.layers]
    parts += [product_energy(product, model) for product in network.products.values()]
    return Energy(
        *(sum(getattr(part, f.name) for part in parts) for f in dataclasses.fields(Energy))
    )
