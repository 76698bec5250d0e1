"""What a model is made of: its quantized layers, their widths in every mode, their cost."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core import FrozenDict

from dual_precision.layers import QuantizedLayer
from dual_precision.precision import FLOAT_BITS, FLOAT_NAME, Precision, stored_bits

Path = tuple[str, ...]
PIXEL_BITS = 8


@dataclasses.dataclass(frozen=True)
class Layer:
    """One Dense or Conv of a model.

    Attributes:
      table: mode name -> Precision of this layer, float included.
      kernel: its shape, outputs last.
      macs: multiply-accumulates per image.
      inputs: numbers in its input, per image.
    """

    table: FrozenDict[str, Precision]
    kernel: tuple[int, ...]
    macs: int
    inputs: int

    @property
    def stored(self) -> int | None:
        """Width at which the weights are stored; None is float."""
        return stored_bits(self.table)


def describe_layers(model: nn.Module, image_shape: tuple[int, ...]) -> dict[Path, Layer]:
    """Path in the parameter tree -> Layer, in the order of the forward pass; computes nothing.

    Args:
      image_shape: [H, W, C].
    """
    found: dict[Path, Layer] = {}

    def note(call, args, kwargs, context):
        result = call(*args, **kwargs)
        module = context.module
        if isinstance(module, QuantizedLayer) and context.method_name == "__call__":
            shape = module.kernel_shape(args[0].shape[-1])
            macs = math.prod(result.shape[1:-1]) * math.prod(shape)
            inputs = math.prod(args[0].shape[1:])
            found[module.path] = Layer(module.modes.at(module.path), shape, macs, inputs)
        return result

    def init(images: jax.Array) -> Any:
        with nn.intercept_methods(note):
            return model.init(jax.random.key(0), images, precision=FLOAT_NAME)

    jax.eval_shape(init, jax.ShapeDtypeStruct((1, *image_shape), jnp.uint8))
    return found


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one mode costs, of a network or of a layer.

    Attributes:
      weight_bytes: kernels at the mode's width, packed, and 4 bytes for every step of theirs.
      bit_operations: sum over layers of MACs * weight bits * activation bits, per image.
      macs: multiply-accumulates per image.
    """

    weight_bytes: int
    bit_operations: int
    macs: int


def pixel_layer(layers: Mapping[Path, Layer]) -> Path | None:
    """The first layer, where no mode quantizes its input: so that all see the same pixels."""
    for path, layer in layers.items():
        return None if any(p.activations for p in layer.table.values()) else path
    return None


def input_bits(layers: Mapping[Path, Layer], path: Path, mode: str) -> int:
    """Width of a layer's input. Inputs of the first layer that no mode quantizes: 8-bit pixels."""
    pixels = path == pixel_layer(layers) and mode != FLOAT_NAME
    return layers[path].table[mode].activations or (PIXEL_BITS if pixels else FLOAT_BITS)


def layer_cost(layers: Mapping[Path, Layer], path: Path, mode: str) -> Cost:
    """The cost of one layer in a mode."""
    layer = layers[path]
    bits = layer.table[mode].weights or FLOAT_BITS
    operations = layer.macs * bits * input_bits(layers, path, mode)
    return Cost(math.ceil(_stored_size(layer, mode) / 8), operations, layer.macs)


def _stored_size(layer: Layer, mode: str) -> int:
    """Bits of the kernel, and of its steps where it has codes."""
    bits = layer.table[mode].weights
    return math.prod(layer.kernel) * (bits or FLOAT_BITS) + (32 * layer.kernel[-1] if bits else 0)


def mode_cost(layers: Mapping[Path, Layer], mode: str) -> Cost:
    """The cost of a mode: the sum over its layers, parts of bytes counted up once."""
    own = [layer_cost(layers, path, mode) for path in layers]
    size = sum(_stored_size(layer, mode) for layer in layers.values())
    operations, macs = sum(cost.bit_operations for cost in own), sum(cost.macs for cost in own)
    return Cost(math.ceil(size / 8), operations, macs)


def reused_bit_operations(layers: Mapping[Path, Layer], low: str, high: str) -> int:
    """The part of `mode_cost(layers, high).bit_operations` that a run of `low` has done already.

    The pixel layer's sum over the planes that `low` reads is the first part of the same sum in
    `high`: MACs * low's weight bits * 8, all of the layer where the widths are equal, 0 where
    `low` is the wider one there. Other layers see other inputs in other modes.
    """
    path = pixel_layer(layers)
    if path is None:
        return 0
    first, last = (layers[path].table[mode].weights for mode in (low, high))
    if first is None or last is None or first > last:
        return 0
    return layers[path].macs * first * PIXEL_BITS
