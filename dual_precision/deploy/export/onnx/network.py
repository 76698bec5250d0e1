"""A whole mode as a graph of ONNX: its steps, one after the other, from the output backwards.

Arrays of four axes, which are [N, H, W, C] in the model, are [N, C, H, W] in the graph, as its
convolutions want; the others keep their axes.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from dual_precision.deploy.export.onnx.graph import Graph
from dual_precision.deploy.export.onnx.layers import (
    Seen,
    Values,
    codes,
    in_range,
    rounded_input,
    seen_by,
    values_of,
    weights,
)
from dual_precision.deploy.export.onnx.nibbles import in_nibbles, odd_halves
from dual_precision.deploy.export.onnx.steps import Part, Steps
from dual_precision.structure import LayerPath, Structure

Ranges = Mapping[LayerPath, tuple[float, float]]  # see file.ranges_of

_BINARY = {
    "add": "Add", "add_any": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "max": "Max",
    "min": "Min",
}  # fmt: skip
_UNARY = {"tanh": "Tanh", "logistic": "Sigmoid", "exp": "Exp", "neg": "Neg", "sqrt": "Sqrt"}
_TO_CHANNELS_FIRST, _TO_CHANNELS_LAST = (0, 3, 1, 2), (0, 2, 3, 1)
_NEW_AXIS = (0, 2, 3, 1)  # where each axis of [N, H, W, C] is in [N, C, H, W]


@dataclasses.dataclass
class Network:
    """The nodes of one mode.

    Attributes:
      ranges: norm -> the least and the largest output, for residual sums of integers; layer of
        float inputs -> those of its input. None writes "exact" layers.
      nibbles: large matrices in halves of codes, see nibbles.py.
    """

    graph: Graph
    steps: Steps
    structure: Structure
    integers: Mapping[str, Any]
    mode: str
    ranges: Ranges | None
    image: str
    nibbles: bool = False

    def __post_init__(self) -> None:
        self._made: dict[Any, str] = {}

    def output(self) -> str:
        """The tensor of the output of the network."""
        return self.tensor(self.steps.output)

    def tensor(self, var: Any) -> str:
        """The tensor with the value of a variable."""
        var = self.steps.origin(var)
        known = self._known(var)
        if known is not None:
            return self._constant(known)
        if var not in self._made:
            self._made[var] = self._make(var)
        return self._made[var]

    def _make(self, var: Any) -> str:
        steps = self.steps
        if var in steps.parts:
            return self._part(steps.parts[var])
        if any(var is own for own in steps.inputs):
            return self._first(self.image, var)
        if var not in steps.made:
            raise ValueError(
                "the network has parameters of its own beside its layers: expected layers and"
                " normalisations alone, as the others are not exported"
            )
        eqn = steps.made[var]
        name = eqn.primitive.name
        if name in _BINARY:
            return self._binary(eqn)
        if name in _UNARY:
            return self.graph.node(_UNARY[name], self.tensor(eqn.invars[0]))
        special: Callable[[Any], str] | None = getattr(self, f"_{name}", None)
        if special is None:
            raise ValueError(
                f"the network computes {name!r} between its layers: expected one of"
                f" {sorted([*_BINARY, *_UNARY, *_SPECIAL])}, which this export knows"
            )
        return special(eqn)

    # -- values that do not depend on the input --------------------------------------------------

    def _known(self, var: Any) -> np.ndarray | None:
        """The value of what does not depend on the input."""
        var = self.steps.origin(var)
        if hasattr(var, "val"):
            return np.asarray(var.val)
        if var in self.steps.known:
            return self.steps.known[var]
        eqn = self.steps.made.get(var)
        if eqn is None or var in self.steps.parts:
            return None
        values = [self._known(v) for v in eqn.invars]
        if any(value is None for value in values):
            return None
        found = np.asarray(eqn.primitive.bind(*values, **eqn.params))
        self.steps.known[var] = found
        return found

    def _constant(self, value: np.ndarray) -> str:
        return self.graph.constant(_channels_first(value))

    # -- layers and normalisations ---------------------------------------------------------------

    def _part(self, part: Part) -> str:
        if part.path in self.structure.layers:
            return self._layer(part, None)
        norm = self.norm_values(part.path)
        source = self.structure.sources.get(part.path)
        layer = self.steps.parts.get(self.steps.origin(part.source))
        if source is not None and layer is not None and layer.path == source:
            return self._layer(layer, norm)
        x = self.tensor(part.source)
        rank = len(self.steps.origin(part.source).aval.shape)
        shape = (1,) * (rank - 1) + (-1,)
        both = [np.asarray(norm[name]).reshape(shape) for name in ("multiplier", "offset")]
        return self.graph.node(
            "Add", self.graph.node("Mul", x, self._constant(both[0])), self._constant(both[1])
        )

    def _params(self, path: LayerPath) -> Any:
        own: Any = self.integers["params"]
        for part in path:
            own = own[part]
        return own

    def norm_values(self, path: LayerPath) -> Any:
        """{multiplier, offset} of a normalisation, float32 [channels]."""
        return self._params(path)[self.mode]

    def layer_values(self, path: LayerPath, norm: Any) -> Values:
        """The numbers of a layer, with those of the normalisation that takes its output."""
        return values_of(self.structure.layers[path], self.mode, self._params(path), norm)

    def seen(self, path: LayerPath) -> Seen:
        """How a layer sees its input."""
        return seen_by(self.structure.layers[path], self.mode, self._params(path))

    def _layer(self, part: Part, norm: Any) -> str:
        values, name = self.layer_values(part.path, norm), "/".join(part.path)
        known = (self.ranges or {}).get(part.path)
        if known is not None:
            values = rounded_input(values, in_range(*known))
            x = codes(self.graph, self.tensor(part.source), values.seen)
        else:
            x = self._codes(part.source, values.seen)
        if self.nibbles and in_nibbles(self.structure.layers[part.path], self.mode):
            return self._in_nibbles(part.path, x, values)
        kernel, offset = weights(self.graph, values, name, self.ranges is not None)
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

    def _in_nibbles(self, path: LayerPath, x: str, values: Values) -> str:
        bits = self.structure.layers[path].table[self.mode].weights or 0
        codes_of = np.asarray(self._params(path)["kernel"])
        made = odd_halves(self.graph, x, codes_of, bits, "/".join(path))
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
        return codes(self.graph, self.tensor(var), seen)

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
        part, eqn = self.steps.parts.get(var), self.steps.made.get(var)
        if part is not None:
            x = self.tensor(var)
            known = ranges.get(part.path) if part.path in self.structure.norms else None
            return x if known is None else codes(self.graph, x, in_range(*known))
        for path in self.steps.users.get(var, ()):
            seen = self.seen(path) if path in self.structure.layers else None
            if seen is not None and seen.whole and not seen.signed:
                return self._codes(var, seen)
        if eqn is not None and eqn.primitive.name in ("slice", "pad"):
            inner = self._summand(eqn.invars[0])
            moved = (
                self._slice(eqn, inner) if eqn.primitive.name == "slice" else self._pad(eqn, inner)
            )
            back = [n for n in self.graph.nodes if n.output[0] == inner]
            if back and back[0].op_type == "DequantizeLinear" and moved != inner:
                own = back[0].input[1:]
                return self.graph.node(
                    "DequantizeLinear", self.graph.node("QuantizeLinear", moved, *own), *own
                )
            return moved
        return self.tensor(var)

    # -- primitives ------------------------------------------------------------------------------

    def _binary(self, eqn: Any) -> str:
        left, right = eqn.invars
        name = eqn.primitive.name
        zero = self._known(right)
        if name == "max" and zero is not None and not zero.any():
            return self.graph.node("Relu", self.tensor(left))
        if self._is_residual_sum(eqn):
            return self.graph.node("Add", *map(self._summand, eqn.invars))
        return self.graph.node(_BINARY[name], *map(self.tensor, eqn.invars))

    def _is_residual_sum(self, eqn: Any) -> bool:
        """Of integers: where a layer takes the sum in 8 bits, and both operands are not known."""
        if self.ranges is None or eqn.primitive.name not in ("add", "add_any"):
            return False
        return len(eqn.outvars[0].aval.shape) == 4 and all(
            self._known(var) is None for var in eqn.invars
        )

    def _convert_element_type(self, eqn: Any) -> str:
        x, dtype = self.tensor(eqn.invars[0]), np.dtype(eqn.params["new_dtype"])
        if dtype == eqn.invars[0].aval.dtype:
            return x
        kinds = self.graph.onnx.helper.np_dtype_to_tensor_dtype
        return self.graph.node("Cast", x, to=kinds(dtype))

    def _reshape(self, eqn: Any) -> str:
        before, after = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
        x = self.tensor(eqn.invars[0])
        if before == after:
            return x
        sizes = np.asarray([size if isinstance(size, int) else -1 for size in after], np.int64)
        if (sizes < 0).sum() > 1:
            raise ValueError(f"a reshape to {after}: expected the batch as one axis")
        made = self.graph.node("Reshape", self._last(x, before), self.graph.constant(sizes))
        return self._first(made, eqn.outvars[0])

    def _squeeze(self, eqn: Any) -> str:
        return self._reshape(eqn)

    def _broadcast_in_dim(self, eqn: Any) -> str:
        if math.prod(eqn.outvars[0].aval.shape[1:]) == math.prod(eqn.invars[0].aval.shape[1:]):
            return self._reshape(eqn)
        raise ValueError("an array is repeated along an axis between layers, which is not exported")

    def _transpose(self, eqn: Any) -> str:
        before = eqn.invars[0].aval.shape
        x = self._last(self.tensor(eqn.invars[0]), before)
        made = self.graph.node("Transpose", x, perm=[*eqn.params["permutation"]])
        return self._first(made, eqn.outvars[0])

    def _reduce_sum(self, eqn: Any) -> str:
        rank = len(eqn.invars[0].aval.shape)
        axes = np.asarray([_axis(rank, axis) for axis in eqn.params["axes"]], np.int64)
        if rank - len(axes) == 4:
            raise ValueError("a sum that leaves four axes, which is not exported")
        own = self.tensor(eqn.invars[0]), self.graph.constant(np.sort(axes))
        return self.graph.node("ReduceSum", *own, keepdims=0)

    def _slice(self, eqn: Any, x: str | None = None) -> str:
        x = x or self.tensor(eqn.invars[0])
        shape = eqn.invars[0].aval.shape
        if shape == eqn.outvars[0].aval.shape:
            return x
        strides = eqn.params["strides"] or (1,) * len(shape)
        cut = [
            (_axis(len(shape), axis), start, stop, stride)
            for axis, (start, stop, stride) in enumerate(
                zip(eqn.params["start_indices"], eqn.params["limit_indices"], strides, strict=True)
            )
            if isinstance(stop, int) and (start, stop, stride) != (0, shape[axis], 1)
        ]
        axes, starts, stops, steps = (np.asarray(part, np.int64) for part in zip(*cut, strict=True))
        return self.graph.node("Slice", x, *map(self.graph.constant, (starts, stops, axes, steps)))

    def _pad(self, eqn: Any, x: str | None = None) -> str:
        x = x or self.tensor(eqn.invars[0])
        fill = self._known(eqn.invars[1])
        config = [tuple(map(int, part)) for part in eqn.params["padding_config"]]
        if fill is None or any(part[2] or min(part) < 0 for part in config):
            raise ValueError("a padding with gaps or of a computed value, which is not exported")
        if not any(map(any, config)):
            return x
        places = np.zeros((2, len(config)), np.int64)
        for axis, (low, high, _) in enumerate(config):
            places[:, _axis(len(config), axis)] = low, high
        return self.graph.node(
            "Pad", x, self.graph.constant(places.reshape(-1)), self._constant(fill)
        )

    def _first(self, x: str, var: Any) -> str:
        if len(var.aval.shape) != 4:
            return x
        return self.graph.node("Transpose", x, perm=[*_TO_CHANNELS_FIRST])

    def _last(self, x: str, shape: Sequence[Any]) -> str:
        if len(shape) != 4:
            return x
        return self.graph.node("Transpose", x, perm=[*_TO_CHANNELS_LAST])


_SPECIAL = (
    "convert_element_type", "reshape", "squeeze", "broadcast_in_dim", "transpose", "reduce_sum",
    "slice", "pad",
)  # fmt: skip


def _axis(rank: int, axis: int) -> int:
    return _NEW_AXIS[axis] if rank == 4 else axis


def _channels_first(value: np.ndarray) -> np.ndarray:
    return value.transpose(_TO_CHANNELS_FIRST) if value.ndim == 4 else value
