"""The integer forward: the same network, computed from codes.

    integer_model, integer_variables = to_integer(model, variables, task.example)
    integer_model.apply(integer_variables, images, precision="low")

A weight of n of N stored bits is the odd number 2 c_n + 1, c_n = c_N >> (N - n), times half a
step; an activation is a code, unsigned or signed, times its step. So a layer is one sum of integers
and one factor per output channel, which a normalisation behind it takes into its own:

    acc = sum_k a_k * (2 c_k + 1)
    y   = acc * (step * 2^(N-n) / 2 * input_step) + bias

and a normalisation behind it, y * gain + offset, runs in the same pass.

The weights are held once for all modes, as int8 c_N. The sums are exact, though float32 units
compute them: XLA's integer convolutions are many times slower on CPUs, and a float32 sum of
integers is exact, in any order, while no partial sum exceeds 2^24. With P the sum of the positive
weights, M that of the negative ones without their sign, and activations from -b to t (b is 0 where
they are unsigned), none exceeds

    max(t P + b M, t M + b P)

which is known of the weights at hand, as long as a number of the output takes each weight once; a
layer beyond that is summed in groups of input channels, and the groups as int32. Codes have 8 bits,
so units that shorten their operands to bfloat16 or TF32 are exact too; a library that convolves by
Winograd's or Fourier's transform, as some on GPUs do, is not.

What no mode quantizes stays float: the pixels, which are normalised per channel and padded with
zeros after that, so that they are no integers times one step; and inputs in a mode such as w2a32.

The training forward takes the same sums of the same codes, see primitives/code_products.py, and
the same factors after them: what is deployed has its bits, for every step and every gain, as long
as XLA computes what lies between the layers alike in both programs, and no input stays float. Sums
of floats, as of the pixels, depend on their order.
"""

import dataclasses
import itertools
from collections.abc import Mapping
from functools import reduce
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core import FrozenDict
from jax.ad_checkpoint import checkpoint_name

from dual_precision.layers import QuantizedLayer
from dual_precision.precision import FLOAT_NAME, Asked, mode_of
from dual_precision.primitives.convolution import fits_int32
from dual_precision.primitives.nested import truncate
from dual_precision.primitives.normalization import per_channel, scale_and_shift
from dual_precision.primitives.quantizers import activation_codes

# The collection in which layers that see the same input in every mode leave their sums.
KEPT_SUMS = "kept"
SUMS = "sums of "  # marks them in a trace; nothing in a program

_Value = TypeVar("_Value")


@dataclasses.dataclass(frozen=True)
class LayerPlan:
    """What is known of a layer before its program is compiled.

    Attributes:
      groups: mode that there are values of -> groups of input channels that are summed apart.
      raw: it gives its sums as they are, to a FoldedNorm.
      shared: its input is the same in every mode.
      finite: its input holds no NaN, as what the network takes are integers.
    """

    groups: FrozenDict[str, int]
    raw: bool
    shared: bool
    finite: bool


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
    """The form of a layer that computes with codes, see `forms.layer_form`. Parameters:

    kernel: int8 codes of the stored width, in the shape of the kernel of the training layer.
    input_step: mode -> float32 (), of the modes that quantize the input.
    scale: mode -> float32 [features], and bias [features], where no FoldedNorm follows.

    Sums are exact in float32, or, where they may exceed 2^24, in int32 and rounded once. With the
    collection "kept" mutable, a layer whose input is the same in every mode leaves its sums there,
    under the name of the mode; given such a collection, of the same images, it goes on from the
    widest mode in it.
    """

    plans: Plans = dataclasses.field(default=FrozenDict(), kw_only=True)

    def __call__(self, x: jax.Array, *, precision: Asked) -> jax.Array:
        self.check_call(x)
        precision = _name(precision)
        path = "/".join(self.path)
        plan = self.plans[path]
        groups = _of_mode(plan.groups, precision)
        self._check_inputs(x.shape[-1])
        total = self._shared(x, precision) if plan.shared else self._sum(x, precision, groups)
        if plan.raw:
            return checkpoint_name(total, SUMS + path)
        scale = self._value("scale")[precision]
        y = total.astype(jnp.float32) * per_channel(scale, total.ndim)
        if self.has_variable("params", "bias"):
            y = y + per_channel(self._value("bias"), y.ndim)
        return y

    def _sum(self, x: jax.Array, precision: str, groups: int) -> jax.Array:
        bits, activations, stored = self._widths(precision)
        codes = self._value("kernel")
        if (
            activations is not None
            and not self.signed
            and self.codes_pay(largest := _largest(bits, activations))
            # The groups of a plan know the weights at hand; bytes are summed by the bound of all.
            and fits_int32(codes.shape, largest[0], bits)
        ):
            return self._sum_of_bytes(x, precision)
        kernel = odd_weights(codes, bits, stored)
        if activations is not None:
            step = self._value("input_step")[precision]
            x = activation_codes(x, step, activations, self.signed)
        if groups == 1:
            return self.product(x, kernel)
        ends = group_bounds(x.shape[-1], groups)
        parts = [
            self.product(x[..., first:last], kernel[..., first:last, :])
            for first, last in itertools.pairwise(ends)
        ]
        # `to_integer` refuses a layer whose whole sums may leave int32.
        total = reduce(jnp.add, [part.astype(jnp.int32) for part in parts])
        # Rounded to float32 once; an integer has no NaN, so that one is carried beside it.
        return total.astype(jnp.float32) + 0.0 * reduce(jnp.add, parts)

    def _sum_of_bytes(self, x: jax.Array, precision: str) -> jax.Array:
        """The same sums in int32, which is faster where the CPU has units for it."""
        bits, activations, stored = self._widths(precision)
        assert activations is not None
        codes = activation_codes(x, self._value("input_step")[precision], activations)
        largest = _largest(bits, activations)
        total = self.product_of_codes(
            codes.astype(jnp.uint8), self._value("kernel"), (bits, stored), largest
        )
        if self.plans["/".join(self.path)].finite:
            return total
        # An integer has no NaN, so that those of an example are carried.
        lost = jnp.any(jnp.isnan(x), axis=tuple(range(1, x.ndim)), keepdims=True)
        return jnp.where(lost, jnp.nan, total)

    def _shared(self, x: jax.Array, precision: str) -> jax.Array:
        """The sums of an input that every mode sees as it is: what other modes did is not redone.

        acc_high = acc_low * 2^(high - low) + x * residual; exact where the terms are.
        """
        bits, _, stored = self._widths(precision)
        name, kept_bits = self._widest_kept(bits)
        if name is None:
            total = self._sum(x, precision, 1)
        else:
            total = self.get_variable(KEPT_SUMS, name)
            if total.shape[0] != x.shape[0]:
                raise ValueError(
                    f"sums of {total.shape[0]} images were kept by precision {name!r}, and there"
                    f" are {x.shape[0]} now: expected the same images"
                )
            if kept_bits < bits:
                codes = self._value("kernel")
                rest = self.product(x, odd_residual(codes, kept_bits, bits, stored))
                total = total * 2.0 ** (bits - kept_bits) + rest
        if self.is_mutable_collection(KEPT_SUMS):
            self.put_variable(KEPT_SUMS, precision, total)
        return total

    def _widest_kept(self, bits: int) -> tuple[str | None, int]:
        """The mode with the most weight bits, at most `bits`, of those that left their sums."""
        best: tuple[str | None, int] = (None, 0)
        for name in self.modes.default:
            own = self._widths(name)[0]
            if best[1] < own <= bits and self.has_variable(KEPT_SUMS, name):
                best = (name, own)
        return best

    def _value(self, name: str) -> Any:
        return self.get_variable("params", name)

    def _widths(self, precision: str) -> tuple[int, int | None, int]:
        """Bits of weights and of activations (None is float) in a mode, and of the stored codes."""
        own, stored = self.modes.at(self.path)[precision], self.modes.stored_at(self.path)
        assert own.weights is not None, "to_integer refuses float weights"
        assert stored is not None, "to_integer refuses float weights"
        return own.weights, own.activations, stored


class FoldedNorm(nn.Module):
    """The form of a norm with the scale of the layer before it: sums -> float32, per mode.

        y = (acc * scale + shift) * gain + offset

    rounded where the training forward rounds. Parameters: mode -> {gain, offset}, float32
    [channels], and where a layer gives its bare sums, its scale, and its bias as the shift.
    """

    def __call__(self, x: jax.Array, *, precision: Asked, train: bool = False) -> jax.Array:
        if train:
            raise ValueError("train=True: an integer network is for inference; train a checkpoint")
        own = _of_mode(self.variables["params"], _name(precision))
        x = x.astype(jnp.float32)
        if "scale" in own:
            x = x * per_channel(own["scale"], x.ndim)
        if "shift" in own:
            x = x + per_channel(own["shift"], x.ndim)
        return scale_and_shift(x, own["gain"], own["offset"])


def _largest(bits: int, activations: int) -> tuple[int, int]:
    """The largest activation code, and the largest magnitude of an int8 weight, of a product."""
    return 2**activations - 1, 2**bits - 1 if bits < 8 else 128


def _name(precision: Asked) -> str:
    name = mode_of(precision)
    if name is not precision:
        raise ValueError(
            f"precision {precision!r}: expected the name of a mode, as an integer network was"
            " planned for the widths of its modes alone"
        )
    return name


def _of_mode(values: Mapping[str, _Value], precision: str) -> _Value:
    if precision not in values:
        why = ", and an integer network has no float weights" if precision == FLOAT_NAME else ""
        raise ValueError(
            f"these variables hold no values of precision {precision!r}{why}: expected one of"
            f" {list(values)}"
        )
    return values[precision]
