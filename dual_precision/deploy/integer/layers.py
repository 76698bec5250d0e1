"""The integer forward: the same network, computed from codes.

    integer_model, integer_variables = to_integer(model, variables, image_shape=(32, 32, 3))
    integer_model.apply(integer_variables, images, precision="low")

A weight of n of N stored bits is the odd number 2 c_n + 1, c_n = c_N >> (N - n), times half a
step; an activation is an unsigned code times its step. So a layer is one sum of integers and one
factor per output channel, which a normalisation behind it takes into its own:

    acc = sum_k a_k * (2 c_k + 1)
    y   = acc * (step * 2^(N-n) / 2 * input_step) + bias       or, with a normalisation,
    y   = acc * multiplier + offset

The weights are held once for all modes, as int8 c_N. The sums are exact, though float32 units
compute them: XLA's integer convolutions are many times slower on CPUs, and a float32 sum of
integers is exact, in any order, while no partial sum exceeds 2^24. Activations are not negative,
so none exceeds top * max(sum of the positive weights, -sum of the negative ones), which is known
of the weights at hand; a layer beyond that is summed in groups of input channels, and the groups
as int32. Codes have 8 bits, so units that shorten their operands to bfloat16 or TF32 are exact too;
a library that convolves by Winograd's or Fourier's transform, as some on GPUs do, is not.

What no mode quantizes stays float: the pixels, which are normalised per channel and padded with
zeros after that, so that they are no integers times one step; and inputs in a mode such as w2a32.

Against the training forward, u = 2^-24, S = sum |a_k| |w_k|, K terms: bit for bit the same where
steps and gains are powers of two; a layer with the same input codes within (K + 6) u S else.
"""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core import FrozenDict

from dual_precision.layers import Conv, Dense, QuantizedLayer
from dual_precision.precision import FLOAT_NAME, Modes, stored_bits
from dual_precision.primitives.convolution import conv2d
from dual_precision.primitives.nested import truncate
from dual_precision.primitives.normalization import per_channel, scale_and_shift
from dual_precision.primitives.quantizers import encode_activations

# The collection in which layers that see the same input in every mode leave their sums.
KEPT = "kept"

Value = TypeVar("Value")


@dataclasses.dataclass(frozen=True)
class LayerPlan:
    """What is known of a layer before its program is compiled.

    Attributes:
      groups: mode that there are values of -> groups of input channels that are summed apart.
      raw: it gives its sums as they are, to a FoldedNorm.
      shared: its input is the same in every mode.
    """

    groups: FrozenDict[str, int]
    raw: bool
    shared: bool


Plans = FrozenDict[str, LayerPlan]


def group_bounds(inputs: int, groups: int) -> list[int]:
    """Where each of `groups` groups of input channels begins, and the last one ends."""
    return [inputs * index // groups for index in range(groups + 1)]


def odd_weights(codes: jax.Array, bits: int, stored: int) -> jax.Array:
    """2 c_n + 1 as float32, of int8 codes of `stored` bits."""
    return truncate(codes, bits, stored).astype(jnp.float32) * 2.0 + 1.0


def odd_residual(codes: jax.Array, low: int, high: int, stored: int) -> jax.Array:
    """(2 c_high + 1) - (2 c_low + 1) * 2^(high - low): what the planes behind `low` add; float32.

    Odd too, and less than 2^(high - low): the weight of a layer of as many bits.
    """
    shift = 2.0 ** (high - low)
    return odd_weights(codes, high, stored) - odd_weights(codes, low, stored) * shift


class IntegerLayer(QuantizedLayer):
    """What IntegerDense and IntegerConv share. Parameters:

    kernel: int8 codes of the stored width, in the shape of the training layer's kernel.
    input_step: mode -> float32 (), of the modes that quantize the input.
    scale: mode -> float32 [features], and bias [features], where no FoldedNorm follows.

    Sums are float32, or int32 where they may exceed 2^24. With the collection "kept" mutable, a
    layer whose input is the same in every mode leaves its sums there, under the mode's name; given
    such a collection, of the same images, it goes on from the widest mode in it.
    """

    plans: Plans = FrozenDict()

    def product(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        """The sum of products of float32 arrays that the layer stands for."""
        raise NotImplementedError

    def __call__(self, x: jax.Array, *, precision: str) -> jax.Array:
        plan = self.plans["/".join(self.path)]
        groups = _of_mode(plan.groups, precision)
        self._check_inputs(x.shape[-1])
        total = self._shared(x, precision) if plan.shared else self._sum(x, precision, groups)
        if plan.raw:
            return total
        scale = self._value("scale")[precision]
        y = total.astype(jnp.float32) * per_channel(scale, total.ndim)
        if self.has_variable("params", "bias"):
            y = y + per_channel(self._value("bias"), y.ndim)
        return y

    def _sum(self, x: jax.Array, precision: str, groups: int) -> jax.Array:
        bits, activations, stored = self._widths(precision)
        kernel = odd_weights(self._value("kernel"), bits, stored)
        if activations is not None:
            step = self._value("input_step")[precision]
            x = encode_activations(x, step, activations).astype(jnp.float32)
        if groups == 1:
            return self.product(x, kernel)
        ends = group_bounds(x.shape[-1], groups)
        parts = [
            self.product(x[..., first:last], kernel[..., first:last, :]).astype(jnp.int32)
            for first, last in itertools.pairwise(ends)
        ]
        return sum(parts[1:], start=parts[0])

    def _shared(self, x: jax.Array, precision: str) -> jax.Array:
        """The sums of an input that every mode sees as it is: what other modes did is not redone.

        acc_high = acc_low * 2^(high - low) + x * residual; exact where the terms are.
        """
        bits, _, stored = self._widths(precision)
        name, kept_bits = self._widest_kept(bits)
        if name is None:
            total = self._sum(x, precision, 1)
        else:
            total = self.get_variable(KEPT, name)
            if total.shape[0] != x.shape[0]:
                raise ValueError(
                    f"sums of {total.shape[0]} images were kept by precision {name!r}, and there"
                    f" are {x.shape[0]} now: expected the same images"
                )
            if kept_bits < bits:
                codes = self._value("kernel")
                rest = self.product(x, odd_residual(codes, kept_bits, bits, stored))
                total = total * 2.0 ** (bits - kept_bits) + rest
        if self.is_mutable_collection(KEPT):
            self.put_variable(KEPT, precision, total)
        return total

    def _widest_kept(self, bits: int) -> tuple[str | None, int]:
        """The mode with the most weight bits, at most `bits`, of those that left their sums."""
        best: tuple[str | None, int] = (None, 0)
        for name in self.modes.default:
            own = self._widths(name)[0]
            if best[1] < own <= bits and self.has_variable(KEPT, name):
                best = (name, own)
        return best

    def _value(self, name: str) -> Any:
        return self.get_variable("params", name)

    def _widths(self, precision: str) -> tuple[int, int | None, int]:
        """Bits of the mode's weights, of its activations (None is float), of the stored codes."""
        table = self.modes.at(self.path)
        own, stored = table[precision], stored_bits(table)
        assert own.weights is not None, "to_integer refuses float weights"
        assert stored is not None, "to_integer refuses float weights"
        return own.weights, own.activations, stored


class IntegerDense(IntegerLayer, Dense):
    """`Dense` of codes; x [..., in] float32 -> [..., features]."""

    def product(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        return x @ kernel


class IntegerConv(IntegerLayer, Conv):
    """`Conv` of codes; x [N, H, W, in] float32 -> [N, h, w, out]."""

    def product(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        return conv2d(x, kernel, self.stride)


class FoldedNorm(nn.Module):
    """A normalisation and the scale of the layer before it: sums -> float32, per mode.

    y = acc * multiplier + offset, multiplier = gain * step * 2^(N-n) / 2 * input_step,
    offset = bias - mean * gain. Parameters: mode -> {multiplier, offset}, float32 [channels].
    """

    modes: Modes

    def __call__(self, x: jax.Array, *, precision: str, train: bool = False) -> jax.Array:
        if train:
            raise ValueError("train=True: an integer network is for inference; train a checkpoint")
        own = _of_mode(self.variables["params"], precision)
        return scale_and_shift(x.astype(jnp.float32), own["multiplier"], own["offset"])


def _of_mode(values: Mapping[str, Value], precision: str) -> Value:
    if precision not in values:
        why = ", and an integer network has no float weights" if precision == FLOAT_NAME else ""
        raise ValueError(
            f"these variables hold no values of precision {precision!r}{why}: expected one of"
            f" {list(values)}"
        )
    return values[precision]
