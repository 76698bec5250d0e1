"""What layers say of themselves: the facts that others would else have to guess from their class.

A module that is a layer or a normalisation, or that multiplies activations with each other, has a
method `facts(x, y)`, of the input and output of one call: a Layer, a Norm, a FloatProduct, or None
where it has nothing to say. Who traces a model, see structure.py, asks each module that has it.
"""

import dataclasses

import jax
from flax.core import FrozenDict

from dual_precision.precision import Precision


@dataclasses.dataclass(frozen=True)
class Layer:
    """A layer with quantized weights, over all of its calls.

    Attributes:
      table: mode name -> Precision of this layer, float included.
      kernel: its shape, outputs last.
      macs: multiply-accumulates per example, of all calls.
      inputs: numbers in its inputs, per example, of all calls.
      stored: width at which the weights are stored; None is float.
      nested: whether its weights and inputs are on the grids of `QuantizedLayer`, and nothing else
        is done to them: what is packed, and every deployed form, computes with these.
      signed: whether its inputs may be negative.
      matrix: whether it is the product of a matrix with the last axis of its input.
      recurrent: whether it is that of a matrix with its own last output, see layers/lstm.py.
      rows: whether what it gives are rows of its kernel, see layers/embed.py.
      calls: in one forward pass.
    """

    table: FrozenDict[str, Precision]
    kernel: tuple[int, ...]
    macs: int
    inputs: int
    stored: int | None = None
    nested: bool = False
    signed: bool = False
    matrix: bool = False
    recurrent: bool = False
    rows: bool = False
    calls: int = 1

    def called_again(self, other: "Layer") -> "Layer":
        """The facts of both calls together."""
        return dataclasses.replace(
            self,
            macs=self.macs + other.macs,
            inputs=self.inputs + other.inputs,
            calls=self.calls + other.calls,
        )


@dataclasses.dataclass(frozen=True)
class FloatProduct:
    """Products of activations with activations, floats in every mode, over all calls of a module.

    Attributes:
      macs: multiply-accumulates per example, of all calls.
      inputs: numbers in their operands, per example, of all calls.
    """

    macs: int
    inputs: int

    def called_again(self, other: "FloatProduct") -> "FloatProduct":
        """The facts of both calls together."""
        return FloatProduct(self.macs + other.macs, self.inputs + other.inputs)


@dataclasses.dataclass(frozen=True)
class Norm:
    """A normalisation that is y = x * gain + offset at inference, by its statistics.

    Attributes:
      epsilon: gain = scale / sqrt(var + epsilon), offset = bias - mean * gain.
      momentum: share of the old statistics that a training batch leaves.
    """

    epsilon: float
    momentum: float = 0.9

    def affine(
        self, scale: jax.Array, bias: jax.Array, mean: jax.Array, var: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Gain and offset, [channels], with the bits that the norm computes with."""
        return _affine(scale, bias, mean, var, self.epsilon)


def gain_and_offset(
    scale: jax.Array, bias: jax.Array, mean: jax.Array, var: jax.Array, epsilon: float
) -> tuple[jax.Array, jax.Array]:
    """scale / sqrt(var + epsilon), and bias - mean * gain."""
    gain = scale * jax.lax.rsqrt(var + epsilon)
    return gain, bias - mean * gain


# As one program, which rounds the offset once, as the programs that a norm is a part of do.
_affine = jax.jit(gain_and_offset, static_argnames="epsilon")
