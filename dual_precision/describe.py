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
    """

    table: FrozenDict[str, Precision]
    kernel: tuple[int, ...]
    macs: int

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
            found[module.path] = Layer(module.modes.at(module.path), shape, macs)
        return result

    def init(images: jax.Array) -> Any:
        with nn.intercept_methods(note):
            return model.init(jax.random.key(0), images, precision=FLOAT_NAME)

    jax.eval_shape(init, jax.ShapeDtypeStruct((1, *image_shape), jnp.uint8))
    return found


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one mode costs.

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


def mode_cost(layers: Mapping[Path, Layer], mode: str) -> Cost:
    """The cost of a mode. Inputs of the first layer that no mode quantizes are 8-bit pixels."""
    size, operations, macs = 0.0, 0, 0
    for path, layer in layers.items():
        own = layer.table[mode]
        bits = own.weights or FLOAT_BITS
        size += math.prod(layer.kernel) * bits / 8 + (4 * layer.kernel[-1] if own.weights else 0)
        pixels = path == pixel_layer(layers)
        inputs = own.activations or (PIXEL_BITS if pixels and mode != FLOAT_NAME else FLOAT_BITS)
        operations += layer.macs * bits * inputs
        macs += layer.macs
    return Cost(math.ceil(size), operations, macs)


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
