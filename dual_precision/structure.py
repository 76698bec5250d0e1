"""What a model is made of: its quantized layers, their widths in every mode, their cost."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core import FrozenDict

from dual_precision.layers import QuantizedLayer
from dual_precision.precision import FLOAT_NAME, Precision, stored_bits

Path = tuple[str, ...]


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
