"""A whole mode as a graph of ONNX: its layers, and what stands between them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from dual_precision.deploy.export.onnx.arrays import Arrays
from dual_precision.deploy.export.onnx.layers import (
    EXACT,
    NIBBLES,
    VNNI,
    Seen,
    Values,
    as_codes,
    folded,
    in_range,
    rounded_input,
    seen_by,
    values_of,
    weights,
)
from dual_precision.deploy.export.onnx.nibbles import in_nibbles, narrow_sums, odd_sums
from dual_precision.deploy.export.onnx.steps import Part
from dual_precision.structure import LayerPath, Structure

Ranges = Mapping[LayerPath, tuple[float, float]]  # see file.ranges_of


@dataclasses.dataclass
class OnnxNetwork(Arrays):
    """The nodes of one mode.

    Attributes:
      form: one of FORMS of layers.py.
      ranges: norm -> the least and the largest output, for residual sums of integers; layer of
        float inputs -> those of its input. None writes "exact" layers.
      given: layer in nibbles -> its input and the sums of it, where they are computed elsewhere.
    """

    structure: Structure
    integers: Mapping[str, Any]
    mode: str
    form: str = EXACT
    ranges: Ranges | None = None
    given: dict[LayerPath, tuple[str, tuple[str, str]]] = dataclasses.field(default_factory=dict)

    # -- layers and normalisations ---------------------------------------------------------------

    def _part(self, part: Part) -> str:
        if part.path in self.structure.layers:
            return self._layer(part, None)
        norm = self.norm_values(part.path)
        layer = self.layer_before(part)
        if layer is not None:
            return self._layer(layer, norm)
        x = self.tensor(part.source)
        rank = len(self.steps.origin(part.source).aval.shape)
        shape = (1,) * (rank - 1) + (-1,)
        both = [np.asarray(norm[name]).reshape(shape) for name in ("multiplier", "offset")]
        return self.graph.node(
            "Add", self.graph.node("Mul", x, self._constant(both[0])), self._constant(both[1])
        )

    def layer_before(self, part: Part) -> Part | None:
        """The layer whose output a norm alone takes."""
        source = self.structure.sources.get(part.path)
        layer = self.steps.parts.get(self.steps.origin(part.source))
        return layer if layer is not None and layer.path == source else None

    def _params(self, path: LayerPath) -> Any:
        own: Any = self.integers["params"]
        for part in path:
            own = own[part]
        return own

    def norm_values(self, path: LayerPath) -> Any:
        """{multiplier, offset} of a normalisation, float32 [channels]."""
        return folded(self._params(path)[self.mode])

    def layer_values(self, path: LayerPath, norm: Any) -> Values:
        """The numbers of a layer, with those of the normalisation that takes its output."""
        return values_of(self.structure.layers[path], self.mode, self._params(path), norm)

    def seen(self, path: LayerPath) -> Seen:
        """How a layer sees its input."""
        return seen_by(self.structure.layers[path], self.mode, self._params(path))

    def codes_of(self, path: LayerPath) -> np.ndarray:
        """The stored codes of a layer, int8."""
        return np.asarray(self._params(path)["kernel"])

    def codes_seen(self, part: Part) -> str:
        """The input of a layer as its mode sees it."""
        return self._codes(part.source, self.seen(part.path))

    def _layer(self, part: Part, norm: Any) -> str:
        values, name = self.layer_values(part.path, norm), "/".join(part.path)
        if part.path in self.given:
            return self._in_nibbles(part.path, values, *self.given[part.path])
        known = (self.ranges or {}).get(part.path)
        if known is not None:
            values = rounded_input(values, in_range(*known))
            x = as_codes(self.graph, self.tensor(part.source), values.seen)
        else:
            x = self.codes_seen(part)
        if self.form == NIBBLES and in_nibbles(self.structure.layers[part.path], self.mode):
            sums = narrow_sums(self.graph, x, self.codes_of(part.path), name)
            return self._in_nibbles(part.path, values, x, sums)
        kernel, offset = weights(
            self.graph, values, name, self.ranges is not None, self.form == VNNI
        )
        whole = self.ranges is not None
        product = part.product
        if product.primitive.name == "dot_general":
            flat = len(product.invars[0].aval.shape) == 2
            if whole and flat:
                return self.graph.node("Gemm", x, kernel, offset)
            # As with convolutions below; a sum would become a Gemm, whose offset is rounded.
            less = self.graph.constant(-np.asarray(values.offset, np.float32))
            return self.graph.node("Sub", self.graph.node("MatMul", x, kernel), less)
        if whole:
            return self._convolution(product, name, x, kernel, offset)
        # ONNX Runtime rounds the offset of a convolution of dequantized numbers to a multiple of
        # input step times weight step, which is coarse at 2 bits: here it is added behind.
        made = self._convolution(product, name, x, kernel)
        return self.graph.node("Add", made, self._per_channel(values.offset))

    def _in_nibbles(self, path: LayerPath, values: Values, x: str, sums: tuple[str, str]) -> str:
        bits = self.structure.layers[path].table[self.mode].weights or 0
        made = odd_sums(self.graph, x, self.codes_of(path), bits, "/".join(path), sums)
        scale = 2 * values.multiplier / (1 if values.seen.step is None else values.seen.step)
        scaled = self.graph.node("Mul", made, self.graph.constant(scale.astype(np.float32)))
        return self.graph.node("Add", scaled, self.graph.constant(values.offset))

    def _per_channel(self, vector: np.ndarray) -> str:
        return self.graph.constant(np.asarray(vector, np.float32).reshape(1, -1, 1, 1))

    def _convolution(self, product: Any, name: str, *inputs: str) -> str:
        about = product.params
        if set(about["lhs_dilation"]) != {1} or about["batch_group_count"] != 1:
            raise ValueError(f"layer {name!r} is a transposed convolution, which is not exported")
        return self.graph.node(
            "Conv", *inputs,
            kernel_shape=[*product.invars[1].aval.shape[:2]],
            strides=[*about["window_strides"]],
            pads=[pair[side] for side in (0, 1) for pair in about["padding"]],
            dilations=[*about["rhs_dilation"]], group=about["feature_group_count"],
        )  # fmt: skip

    def _codes(self, var: Any, seen: Seen) -> str:
        """The input of a layer as its mode sees it; what is unsigned needs no rectifier before."""
        if seen.bits is not None and not seen.signed:
            var = self._before_rectifier(var)
        return as_codes(self.graph, self.tensor(var), seen)

    def _before_rectifier(self, var: Any) -> Any:
        var = self.steps.origin(var)
        eqn = self.steps.made.get(var)
        if var in self.steps.parts or eqn is None or eqn.primitive.name != "max":
            return var
        left, right = eqn.invars
        zero = self._known(right)
        return left if zero is not None and not zero.any() else var

    # -- residual sums of integers ---------------------------------------------------------------

    def _summand(self, var: Any) -> str:
        """An operand of a residual sum, in 8 bits where that is known to hold it.

        The output of a normalisation has the range that was measured; what a layer takes too has
        the codes that this layer sees.
        """
        var, ranges = self.steps.origin(var), self.ranges or {}
        part = self.steps.parts.get(var)
        if part is not None:
            x = self.tensor(var)
            known = ranges.get(part.path) if part.path in self.structure.norms else None
            return x if known is None else as_codes(self.graph, x, in_range(*known))
        if (seen := self._taker(var)) is not None:
            return self._codes(var, seen)
        if (move := self._move(var)) is None:
            return self.tensor(var)
        moves = [move]
        while (before := self._move(moves[0].invars[0])) is not None:
            moves.insert(0, before)
        x = self._summand(moves[0].invars[0])
        made = next((n for n in self.graph.nodes if n.output[0] == x), None)
        if made is None or made.op_type != "DequantizeLinear":
            return self._moved(x, moves)
        codes, *own = made.input  # its 0 is exact, see in_range
        return self.graph.node("DequantizeLinear", self._moved(codes, moves, own[1]), *own)

    def _taker(self, var: Any) -> Seen | None:
        """How a layer sees what it takes in 8-bit codes without a sign; None: no layer does."""
        for path in self.steps.users.get(self.steps.origin(var), ()):
            seen = self.seen(path) if path in self.structure.layers else None
            if seen is not None and seen.whole and not seen.signed:
                return seen
        return None

    def _move(self, var: Any) -> Any:
        """What makes a variable by moving numbers, or with zeros around, if no layer has codes of
        it; else None."""
        eqn = None if self._taker(var) else self.steps.made.get(self.steps.origin(var))
        if eqn is None or eqn.primitive.name not in ("slice", "pad"):
            return None
        fill = self._known(eqn.invars[1]) if eqn.primitive.name == "pad" else np.zeros(())
        return eqn if fill is not None and not fill.any() else None

    def _moved(self, x: str, moves: list[Any], zero: str | None = None) -> str:
        for eqn in moves:
            x = self._slice(eqn, x) if eqn.primitive.name == "slice" else self._pad(eqn, x, zero)
        return x

    def _sum(self, eqn: Any) -> str | None:
        if not self._is_residual_sum(eqn):
            return None
        return self.graph.node("Add", *map(self._summand, eqn.invars))

    def _is_residual_sum(self, eqn: Any) -> bool:
        """Of integers: where a layer takes the sum in 8 bits, and both operands are not known."""
        if self.ranges is None:
            return False
        return len(eqn.outvars[0].aval.shape) == 4 and all(
            self._known(var) is None for var in eqn.invars
        )
