"""Layers of a mode as nodes of ONNX: integers, a scale, a convolution or a product.

A weight of n of N bits is the odd number 2 c_n + 1 times half a step, and an activation a code
times its step, see deploy/integer/layers.py; a normalisation is folded into the scale of each
channel and an offset. The forms:

    exact    the odd numbers in the narrowest of INT4, INT8 and INT16 that holds them, behind a
             DequantizeLinear; the product is of floats, whose values are those of the mode. Those
             of a matrix that takes floats are INT16, see `weights`
    integer  for engines whose integer kernels take 8-bit weights and activations: numbers of 9
             bits, which a mode of 8 has, are rounded to fewer levels of a channel, and the offset
             is an integer of 32 bits. Kernels for processors without VNNI add two products of
             UINT8 and INT8 in 16 bits: no two weights of a channel are more than 128 together,
             as 255 * 128 < 2^15
    vnni     likewise, for processors that have it: one weight alone is at most 127
    nibbles  exact, but for large matrices of 4 and 8 bits, see nibbles.py
    plain    floats alone, and operations that readers of opset 13 know; see traced.py

In integer and vnni, what a first convolution takes as floats is rounded to 8 bits, as pixels are.
A mode of 8-bit activations is then all integers between its pixels and its last sums.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from dual_precision.deploy.export.onnx.graph import Graph
from dual_precision.primitives.quantizers import code_range
from dual_precision.structure import Layer, LayerPath

FORMS = EXACT, INTEGER, VNNI, NIBBLES, PLAIN = "exact", "integer", "vnni", "nibbles", "plain"
LEVELS = 127
_WIDEST_BIAS = 2**30


@dataclasses.dataclass(frozen=True, eq=False)
class Seen:
    """How a layer sees its input in a mode.

    Attributes:
      bits: of an activation; None where they are floats.
      step: of the activations, float32 (); None where they are floats.
      signed: whether they may be negative.
      zero: the code of 0.
    """

    bits: int | None
    step: np.ndarray | np.float32 | None
    signed: bool
    zero: int = 0

    @property
    def whole(self) -> bool:
        """Whether integer kernels take it: 8-bit codes, whose range is that of their type."""
        return self.bits == 8


@dataclasses.dataclass(frozen=True, eq=False)
class Values:
    """A layer in a mode: y = sum_k a_k * odd_k * multiplier + offset.

    Attributes:
      seen: its input.
      odd: int32, in the shape of the kernel.
      multiplier, offset: float32 [out]; the input step is in the multiplier.
    """

    seen: Seen
    odd: np.ndarray
    multiplier: np.ndarray
    offset: np.ndarray


def params_at(integers: Mapping[str, Any], path: LayerPath) -> Any:
    """The parameters of a layer or a norm in the variables of the integer network."""
    own: Any = integers["params"]
    for part in path:
        own = own[part]
    return own


def seen_by(layer: Layer, mode: str, params: Mapping[str, Any]) -> Seen:
    """How a layer with these parameters of the integer network sees its input."""
    bits = layer.table[mode].activations
    step = None if bits is None else np.asarray(params["input_step"][mode], np.float32)
    return Seen(bits, step, layer.signed)


def values_of(layer: Layer, mode: str, params: Mapping[str, Any], norm: Any) -> Values:
    """The numbers of a layer, from the variables of the integer network.

    Args:
      params: of the layer: kernel and, where they are, input_step, scale and bias.
      norm: {multiplier, offset} of the normalisation that takes its output, in this mode; or None.
    """
    own, stored = layer.table[mode], layer.stored
    assert own.weights is not None, "to_integer refuses float weights"
    assert stored is not None, "to_integer refuses float weights"
    odd = 2 * (np.asarray(params["kernel"], np.int32) >> (stored - own.weights)) + 1
    seen = seen_by(layer, mode, params)
    if norm is not None:
        return Values(seen, odd, *map(np.asarray, (norm["multiplier"], norm["offset"])))
    scale = np.asarray(params["scale"][mode], np.float32)
    bias = np.asarray(params.get("bias", np.zeros_like(scale)), np.float32)
    return Values(seen, odd, scale, bias)


def folded(norm: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """{multiplier, offset} of a normalisation of the integer network, float32 [channels].

    (acc * scale + shift) * gain + offset = acc * multiplier + offset', rounded once.
    """
    own = {name: np.asarray(value, np.float64) for name, value in norm.items()}
    offset = own["offset"] + own.get("shift", 0.0) * own["gain"]
    multiplier = own["gain"] * own.get("scale", 1.0)
    return {
        "multiplier": np.asarray(multiplier, np.float32),
        "offset": np.asarray(offset, np.float32),
    }


def as_codes(graph: Graph, x: str, seen: Seen) -> str:
    """The activations as floats that are codes times the input step: a Q and a DQ node."""
    if seen.bits is None or seen.step is None:
        return x
    low, top = (np.float32(code) for code in code_range(seen.bits, seen.signed))
    if not seen.whole:
        x = graph.node("Clip", x, *(graph.constant(end * seen.step) for end in (low, top)))
    return quantized(graph, x, seen.step, np.int8(0) if seen.signed else np.uint8(seen.zero))


def in_range(least: float, most: float) -> Seen:
    """Numbers of a known range as 8-bit codes, 0 among them: what padding adds stays exact."""
    least, most = min(least, 0.0), max(most, 0.0)
    step = np.float32((most - least) / 255 or 1.0)
    return Seen(8, step, False, int(np.clip(np.round(-least / step), 0, 255)))


def rounded_input(values: Values, seen: Seen) -> Values:
    """A layer of float inputs that sees them as codes instead."""
    assert values.seen.step is None
    return dataclasses.replace(values, seen=seen, multiplier=values.multiplier * seen.step)


def quantized(graph: Graph, x: str, scale: Any, zero: Any) -> str:
    """x through QuantizeLinear and DequantizeLinear."""
    own = graph.constant(np.float32(scale)), graph.constant(zero)
    return graph.node("DequantizeLinear", graph.node("QuantizeLinear", x, *own), *own)


def weights(
    graph: Graph, values: Values, name: str, integer: bool, vnni: bool = False
) -> tuple[str, str]:
    """Weights and offset as tensors of floats; those of a convolution are [out, in, h, w]."""
    scale = values.multiplier.astype(np.float64)
    if values.seen.step is not None:
        scale = scale / np.float64(values.seen.step)
    odd = values.odd * np.where(scale < 0, -1, 1)  # a scale is positive
    scale = np.where(scale == 0, 0, np.abs(scale))
    axis = odd.ndim - 1
    if odd.ndim == 4:  # [h, w, in, out] -> [out, in, h, w]
        odd, axis = odd.transpose(3, 2, 0, 1), 0
    if integer and values.seen.whole:
        return _integer_weights(graph, odd, scale, axis, values, name, vnni)
    if values.seen.step is None and integer:  # of a mode such as w8a32
        shape = [-1 if a == axis else 1 for a in range(odd.ndim)]
        plain = (odd * scale.reshape(shape)).astype(np.float32)
        return graph.constant(plain, name), graph.constant(values.offset, f"{name}_offset")
    most = int(np.abs(odd).max())
    # ONNX Runtime joins narrower weights and a product of floats to a MatMulNBits that rounds the
    # floats to 8 bits: 1e-2 of the logits at w4a32. It leaves INT16 as it is.
    fused = values.seen.step is None and odd.ndim == 2
    kind = np.int8 if most <= LEVELS and not fused else np.int16
    narrow = most < 8 and not fused
    stored = graph.four_bits(odd, name) if narrow else graph.constant(odd.astype(kind), name)
    own = graph.constant(scale.astype(np.float32), f"{name}_scale")
    made = graph.node("DequantizeLinear", stored, own, axis=axis)
    return made, graph.constant(values.offset.astype(np.float32), f"{name}_offset")


def _integer_weights(
    graph: Graph,
    odd: np.ndarray,
    scale: np.ndarray,
    axis: int,
    values: Values,
    name: str,
    vnni: bool,
) -> tuple[str, str]:
    shape = [-1 if a == axis else 1 for a in range(odd.ndim)]
    fit = np.maximum(_size(np.moveaxis(odd, axis, 0), vnni) / LEVELS, 1.0).reshape(shape)
    levels = np.round(odd / fit).astype(np.int32)
    step = np.float64(values.seen.step)
    own = scale * fit.reshape(-1)
    # The offset is an integer of 32 bits in units of step * own: a channel of no weight needs a
    # scale too.
    own = np.maximum(own, np.abs(values.offset) / step / _WIDEST_BIAS)
    own = np.where(own > 0, own, 1.0).astype(np.float32)
    zeros = np.where(scale == 0, 0, 1).reshape(shape)
    unit = np.float32(step) * own
    offset = np.round(values.offset / unit.astype(np.float64)).astype(np.int32)
    made = graph.node(
        "DequantizeLinear",
        graph.constant((levels * zeros).astype(np.int8), name),
        graph.constant(own, f"{name}_scale"),
        graph.constant(np.zeros(len(own), np.int8)),
        axis=axis,
    )
    bias = graph.node(
        "DequantizeLinear",
        graph.constant(offset, f"{name}_offset"),
        graph.constant(unit, f"{name}_unit"),
        graph.constant(np.zeros(len(own), np.int32)),
        axis=0,
    )
    return made, bias


def _size(odd: np.ndarray, vnni: bool) -> np.ndarray:
    """What must fit into the levels of each channel, the first axis: its largest number, and of
    the kernels without VNNI any two of one sign together."""
    flat = np.sort(odd.reshape(len(odd), -1), axis=1)
    most = np.maximum(flat[:, -1], -flat[:, 0])
    if vnni:
        return most
    two = flat[:, -2:].sum(axis=1), -flat[:, :2].sum(axis=1)
    return np.maximum(most, np.maximum(*two))
