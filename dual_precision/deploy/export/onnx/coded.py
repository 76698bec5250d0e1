"""What stands between the layers of a mode on integers: codes of 8 bits, where a range is known.

Residual sums, the paths that bring a summand past the layers, and the mean over the pixels before
a classifier are nodes that ONNX Runtime has integer kernels for.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from dual_precision.deploy.export.onnx.arrays import ADDITIONS, Arrays
from dual_precision.deploy.export.onnx.layers import (
    Seen,
    as_codes,
    in_range,
    params_at,
    quantized,
    seen_by,
)
from dual_precision.deploy.export.onnx.ranges import Ranges
from dual_precision.structure import LayerPath, Structure

_MOST = 2**14  # numbers of a constant that is there for speed alone: 128 x 128 channels


@dataclasses.dataclass
class CodedArrays(Arrays):
    """The arrays of one mode, its layers still unknown.

    Attributes:
      ranges: see `ranges_of`, for residual sums of integers; None: what is between layers is
        floats.
    """

    structure: Structure
    integers: Mapping[str, Any]
    mode: str
    ranges: Ranges | None = None

    def params_of(self, path: LayerPath) -> Any:
        """The parameters of a layer or a norm in the integer network."""
        return params_at(self.integers, path)

    def seen(self, path: LayerPath) -> Seen:
        """How a layer sees its input."""
        return seen_by(self.structure.layers[path], self.mode, self.params_of(path))

    def codes(self, var: Any, seen: Seen) -> str:
        """An array as it is seen; what is unsigned needs no rectifier before."""
        if seen.bits is not None and not seen.signed:
            var = self._before_rectifier(var)
        mean = self._mean(self._maker(var))
        if mean is None:
            return as_codes(self.graph, self.tensor(var), seen)
        # Codes right behind the mean, where kernels want them, and again behind its shape.
        flat = self.graph.node("Flatten", as_codes(self.graph, mean, seen))
        return as_codes(self.graph, flat, seen)

    def _before_rectifier(self, var: Any) -> Any:
        var = self.steps.origin(var)
        eqn = self._maker(var)
        if eqn is None or eqn.primitive.name != "max":
            return var
        left, right = eqn.invars
        zero = self._known(right)
        return left if zero is not None and not zero.any() else var

    # -- pixels ----------------------------------------------------------------------------------

    def _operands(self, eqn: Any) -> list[str]:
        """Those of a sum or product; a number for each channel is written for each pixel too.

        ONNX Runtime computes the first steps in the order of the image, channels last, where three
        numbers that repeat take three times as long.
        """
        whole = (1, *eqn.outvars[0].aval.shape[1:])
        numbers = len(whole) == 4 and all(isinstance(size, int) for size in whole)
        if self.ranges is None or not numbers or math.prod(whole) > _MOST:
            return super()._operands(eqn)
        known = [self._known(var) for var in eqn.invars]
        return [
            self.tensor(var)
            if value is None or value.size == 1
            else self._constant(np.broadcast_to(value, whole))
            for var, value in zip(eqn.invars, known, strict=True)
        ]

    # -- residual sums ---------------------------------------------------------------------------

    def _sum(self, eqn: Any) -> str | None:
        if not self._is_residual_sum(eqn):
            return None
        return self.graph.node("Add", *(self._summand(var)[0] for var in eqn.invars))

    def _is_residual_sum(self, eqn: Any) -> bool:
        """Of integers: where a layer takes the sum in 8 bits, and both operands are not known."""
        if self.ranges is None or eqn.primitive.name not in ADDITIONS:
            return False
        return len(eqn.outvars[0].aval.shape) == 4 and all(
            self._known(var) is None for var in eqn.invars
        )

    def _summand(self, var: Any) -> tuple[str, Seen | None]:
        """An operand of a residual sum, and the codes that it is in, if 8 bits are known to hold
        it."""
        var = self.steps.origin(var)
        if (seen := self._codes_between(var)) is not None:
            return self.codes(var, seen), seen
        if (move := self._move(var)) is None:
            return self.tensor(var), None
        moves = [move]
        while (before := self._move(moves[0].invars[0])) is not None:
            moves.insert(0, before)
        x, seen = self._summand(moves[0].invars[0])
        return (self._moved(x, moves) if seen is None else self._moved_codes(x, moves, seen)), seen

    def _codes_between(self, var: Any) -> Seen | None:
        """Codes of an array: for the output of a normalisation those of the range that was
        measured; for what a layer takes too, those that this layer sees, unless they lose much."""
        part, ranges = self.steps.parts.get(self.steps.origin(var)), self.ranges or {}
        if part is None:
            path, seen = self._taker(var)
            return in_range(*ranges[path]) if path in ranges else seen
        known = ranges.get(part.path) if part.path in self.structure.norms else None
        return None if known is None else in_range(*known)

    def _taker(self, var: Any) -> tuple[LayerPath, Seen | None]:
        """A layer that takes an array in 8-bit codes without a sign, and how it sees it; or
        none."""
        for path in self.steps.users.get(self.steps.origin(var), ()):
            seen = self.seen(path) if path in self.structure.layers else None
            if seen is not None and seen.whole and not seen.signed:
                return path, seen
        return (), None

    def _move(self, var: Any) -> Any:
        """What makes a variable by moving numbers, or with zeros around, if no layer has codes of
        it; else None."""
        eqn = None if self._taker(var)[1] is not None else self._maker(var)
        if eqn is None or eqn.primitive.name not in ("slice", "pad"):
            return None
        fill = self._known(eqn.invars[1]) if eqn.primitive.name == "pad" else np.zeros(())
        return eqn if fill is not None and not fill.any() else None

    def _moved(self, x: str, moves: list[Any], zero: str | None = None) -> str:
        for eqn in moves:
            x = self._slice(eqn, x) if eqn.primitive.name == "slice" else self._pad(eqn, x, zero)
        return x

    def _moved_codes(self, x: str, moves: list[Any], seen: Seen) -> str:
        """Dequantized codes, moved; no code changes, as 0 has one (see in_range).

        Every other pixel with more channels is a convolution by ones: one node, in the order of the
        others, in the place of two.
        """
        moves = [eqn for eqn in moves if eqn.invars[0].aval.shape != eqn.outvars[0].aval.shape]
        if not moves:
            return x
        if (found := _as_convolution(moves)) is not None:
            kernel, strides = found
            scales = np.ones(len(kernel), np.float32)
            ones = self.graph.node(
                "DequantizeLinear",
                *map(self.graph.constant, (kernel, scales, np.zeros(len(kernel), np.int8))),
                axis=0,
            )
            made = self.graph.node("Conv", x, ones, kernel_shape=[1, 1], strides=strides)
            assert seen.step is not None, "codes have a step"
            return quantized(self.graph, made, seen.step, np.uint8(seen.zero))
        (node,) = (n for n in self.graph.nodes if n.output[0] == x)
        codes, *own = node.input
        return self.graph.node("DequantizeLinear", self._moved(codes, moves, own[1]), *own)

    # -- the mean over the pixels ----------------------------------------------------------------

    def _pooled(self, var: Any) -> str:
        """Of codes, where a range is known; a rectifier before is their lower end then."""
        inner = self._before_rectifier(var)
        known = self._range(inner)
        if self.ranges is None or known is None:
            return super()._pooled(var)
        least = known[0] if inner is self.steps.origin(var) else 0.0
        x = as_codes(self.graph, self.tensor(inner), in_range(least, known[1]))
        return self.graph.node("GlobalAveragePool", x)

    def _range(self, var: Any) -> tuple[float, float] | None:
        """The least and the largest value of an array of codes, or of a sum of such; else None."""
        if (seen := self._codes_between(var)) is not None and seen.step is not None:
            return float(seen.step) * (0 - seen.zero), float(seen.step) * (255 - seen.zero)
        if (move := self._move(var)) is not None:
            return self._range(move.invars[0])
        eqn = self._maker(var)
        if eqn is None or not self._is_residual_sum(eqn):
            return None
        left, right = map(self._range, eqn.invars)
        return None if left is None or right is None else (left[0] + right[0], left[1] + right[1])


def _as_convolution(moves: list[Any]) -> tuple[np.ndarray, list[int]] | None:
    """Steps over pixels and channels of zeros as a kernel of ones, int8 [out, in, 1, 1], and its
    strides; None where they do other things, or the kernel would be large."""
    strides, channels = [1, 1], moves[0].invars[0].aval.shape[-1]
    before = after = 0
    for eqn in moves:
        shape, made = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
        if len(shape) != 4:
            return None
        if eqn.primitive.name == "pad":
            *others, (low, high, gaps) = eqn.params["padding_config"]
            if any(map(any, others)) or gaps or min(low, high) < 0:
                return None
            before, after = before + low, after + high
            continue
        steps = eqn.params["strides"] or (1,) * 4
        every = [-(-size // step) for size, step in zip(shape[1:3], steps[1:3], strict=True)]
        if any(eqn.params["start_indices"]) or [*made[1:3]] != every:
            return None
        if (made[0], made[-1]) != (shape[0], shape[-1]) or (steps[0], steps[-1]) != (1, 1):
            return None
        strides = [own * step for own, step in zip(strides, steps[1:3], strict=True)]
    whole = before + channels + after
    if whole * channels > _MOST:
        return None
    kernel = np.zeros((whole, channels, 1, 1), np.int8)
    kernel[before + np.arange(channels), np.arange(channels)] = 1
    return kernel, strides
