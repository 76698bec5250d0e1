"""Primitives of JAX as operations of ONNX, each array with the axes that it has in the model."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dual_precision.deploy.export.onnx.graph import Graph
from dual_precision.deploy.export.onnx.nibbles import HALF, LEAST, WHOLE, narrow_sums, odd_sums

Operand = str | np.ndarray  # a tensor of the graph, or a value that does not depend on the input
_DIRECT = {
    "add": "Add", "add_any": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "max": "Max",
    "min": "Min", "pow": "Pow", "tanh": "Tanh", "logistic": "Sigmoid", "exp": "Exp", "log": "Log",
    "neg": "Neg", "sqrt": "Sqrt", "floor": "Floor", "abs": "Abs", "sign": "Sign", "cos": "Cos",
    "sin": "Sin", "gt": "Greater", "lt": "Less", "ge": "GreaterOrEqual", "le": "LessOrEqual",
    "eq": "Equal", "erf": "Erf",
}  # fmt: skip
_SAME = ("name", "stop_gradient", "copy", "copy_p", "optimization_barrier")
_NARROWEST = 8  # below, an odd number fits into INT4


@dataclasses.dataclass
class Operations:
    """What makes the node of a primitive.

    Attributes:
      plain: weights are floats.
      nibbles: large matrices of 4 and 8 bits are MatMulNBits, see nibbles.py.
    """

    graph: Graph
    plain: bool = False
    nibbles: bool = False

    def tensor(self, value: Operand) -> str:
        """The tensor of a value."""
        return value if isinstance(value, str) else self.graph.constant(value)

    def whole_numbers(self, odd: np.ndarray, factor: np.ndarray | None = None) -> str:
        """Whole numbers as a tensor of floats, times a factor of each of the last axis."""
        most = np.abs(odd).max(initial=0)
        kind = np.int8 if most <= np.iinfo(np.int8).max else np.int16
        if most < _NARROWEST:
            stored = self.graph.four_bits(odd, "w")
        else:
            stored = self.graph.constant(odd.astype(kind), "w")
        scale = np.float32(1) if factor is None else factor
        more: dict[str, Any] = {} if factor is None else {"axis": odd.ndim - 1}
        return self.graph.node("DequantizeLinear", stored, self.graph.constant(scale), **more)

    def weight(self, value: Operand) -> str:
        """The known operand of a product; whole numbers narrowly."""
        if isinstance(value, str) or self.plain or not _is_whole(value):
            return self.tensor(value)
        return self.whole_numbers(value)

    # -- primitives ------------------------------------------------------------------------------

    def direct(self, eqn: Any, *values: Operand) -> str:
        return self.graph.node(_DIRECT[eqn.primitive.name], *map(self.tensor, values))

    def same(self, eqn: Any, *values: Operand) -> list[Operand]:
        return [*values]

    def rsqrt(self, eqn: Any, x: str) -> str:
        one = self.graph.constant(np.float32(1))
        return self.graph.node("Div", one, self.graph.node("Sqrt", x))

    def integer_pow(self, eqn: Any, x: str) -> str:
        return self.graph.node("Pow", x, self.graph.constant(np.float32(eqn.params["y"])))

    def square(self, eqn: Any, x: str) -> str:
        return self.graph.node("Mul", x, x)

    def round(self, eqn: Any, x: str) -> str:
        if int(eqn.params["rounding_method"]) != 1:
            raise ValueError("halves are rounded away from zero: expected to even, as ONNX rounds")
        return self.graph.node("Round", x)

    def clamp(self, eqn: Any, low: Operand, x: Operand, top: Operand) -> str:
        x = self.graph.node("Max", self.tensor(x), self.tensor(low))
        return self.graph.node("Min", x, self.tensor(top))

    def select_n(self, eqn: Any, which: Operand, *cases: Operand) -> str:
        if len(cases) != 2:
            raise ValueError(f"a choice of {len(cases)} arrays: expected two")
        return self.graph.node("Where", *map(self.tensor, (which, cases[1], cases[0])))

    def convert_element_type(self, eqn: Any, x: str) -> str:
        dtype = np.dtype(eqn.params["new_dtype"])
        if dtype == eqn.invars[0].aval.dtype:
            return x
        return self.graph.node("Cast", x, to=self.graph.onnx.helper.np_dtype_to_tensor_dtype(dtype))

    def reshape(self, eqn: Any, x: str) -> str:
        return self._reshaped(x, eqn.outvars[0].aval.shape)

    def _reshaped(self, x: str, shape: Sequence[Any]) -> str:
        sizes = [size if isinstance(size, int) else -1 for size in shape]
        if sizes.count(-1) > 1:
            raise ValueError(f"a reshape to {shape}: expected the batch as one axis")
        return self.graph.node("Reshape", x, self.graph.constant(np.asarray(sizes, np.int64)))

    def broadcast_in_dim(self, eqn: Any, x: str) -> str:
        before, after = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
        axes, middle = eqn.params["broadcast_dimensions"], [1] * len(after)
        for axis, size in zip(axes, before, strict=True):
            middle[axis] = size
        x = self._reshaped(x, middle)
        if middle == [*after]:
            return x
        wanted = [1 if a == b else b for a, b in zip(middle, after, strict=True)]
        if not all(isinstance(size, int) for size in wanted):
            raise ValueError("an array of no batch is repeated for each row, which is not exported")
        return self.graph.node("Expand", x, self.graph.constant(np.asarray(wanted, np.int64)))

    def transpose(self, eqn: Any, x: str) -> str:
        return self._moved(x, eqn.params["permutation"])

    def _moved(self, x: Operand, order: Sequence[int]) -> Any:
        if isinstance(x, np.ndarray):
            return x.transpose(order)
        if [*order] == [*range(len(order))]:
            return x
        return self.graph.node("Transpose", x, perm=[*order])

    def reduce_sum(self, eqn: Any, x: str) -> str:
        axes = self.graph.constant(np.asarray(eqn.params["axes"], np.int64))
        return self.graph.node("ReduceSum", x, axes, keepdims=0)

    def reduce_max(self, eqn: Any, x: str) -> str:
        axes = [*eqn.params["axes"]]
        if self.graph.opset < 18:  # where axes became an input
            return self.graph.node("ReduceMax", x, axes=axes, keepdims=0)
        given = self.graph.constant(np.asarray(axes, np.int64))
        return self.graph.node("ReduceMax", x, given, keepdims=0)

    def concatenate(self, eqn: Any, *values: Operand) -> str:
        axis = eqn.params["dimension"]
        return self.graph.node("Concat", *map(self.tensor, values), axis=axis)

    def slice(self, eqn: Any, x: str) -> str:
        about, shape = eqn.params, eqn.invars[0].aval.shape
        strides = about["strides"] or (1,) * len(shape)
        ends = zip(about["start_indices"], about["limit_indices"], strides, strict=True)
        return self._cut(x, shape, [*ends])

    def split(self, eqn: Any, x: str) -> list[Operand]:
        axis, shape, ends = eqn.params["axis"], eqn.invars[0].aval.shape, [0]
        ends += itertools.accumulate(map(int, eqn.params["sizes"]))
        whole = [(0, size, 1) for size in shape]
        return [
            self._cut(x, shape, [*whole[:axis], (*pair, 1), *whole[axis + 1 :]])
            for pair in itertools.pairwise(ends)
        ]

    def _cut(self, x: str, shape: Sequence[Any], ends: Sequence[tuple]) -> str:
        last = np.iinfo(np.int64).max
        whole = [
            (axis, start, stop if isinstance(stop, int) else last, stride)
            for axis, (start, stop, stride) in enumerate(ends)
        ]
        cut = [
            own
            for own, size in zip(whole, shape, strict=True)
            if own[1:] not in ((0, size, 1), (0, last, 1))
        ]
        if not cut:
            return x
        if self.plain:  # the importer of nnabla takes the last axes, whichever are named
            cut = whole
        axes, starts, stops, steps = (np.asarray(part, np.int64) for part in zip(*cut, strict=True))
        return self.graph.node("Slice", x, *map(self.graph.constant, (starts, stops, axes, steps)))

    def pad(self, eqn: Any, x: str, fill: Operand) -> str:
        config = [tuple(map(int, part)) for part in eqn.params["padding_config"]]
        if any(part[2] or min(part) < 0 for part in config):
            raise ValueError("a padding with gaps, which is not exported")
        if not any(map(any, config)):
            return x
        places = np.asarray([part[:2] for part in config], np.int64).T.reshape(-1)
        return self.graph.node("Pad", x, self.graph.constant(places), self.tensor(fill))

    def gather(self, eqn: Any, table: Operand, index: Operand) -> str:
        """Entries of one axis: rows of a table, one part of an array, or a range of it."""
        about, shape = eqn.params["dimension_numbers"], eqn.invars[0].aval.shape
        places, rank = eqn.invars[1].aval.shape[:-1], len(eqn.outvars[0].aval.shape)
        new = [own for own in range(rank) if own not in about.offset_dims]
        sizes, axes = eqn.params["slice_sizes"], about.start_index_map
        (axis,) = axes if len(axes) == 1 else (-1,)
        others = all(size == sizes[own] for own, size in enumerate(shape) if own != axis)
        if len(axes) == 1 and others and not about.operand_batching_dims:
            if about.collapsed_slice_dims == axes and new == [*range(axis, axis + len(places))]:
                flat = self._reshaped(self.tensor(index), places)
                return self.graph.node("Gather", self.tensor(table), flat, axis=axis)
            if not about.collapsed_slice_dims and not places and isinstance(index, np.ndarray):
                start, ends = int(index.item()), [(0, size, 1) for size in shape]
                ends[axis] = (start, start + sizes[axis], 1)
                return self._cut(self.tensor(table), shape, ends)
        raise ValueError("a gather that is not along one axis, which is not exported")

    # -- products --------------------------------------------------------------------------------

    def dot_general(self, eqn: Any, left: Operand, right: Operand) -> str:
        """[batch..., left..., right...] of batch axes, one contracted axis, and one of right."""
        ((to_left, to_right), (batch_left, batch_right)) = eqn.params["dimension_numbers"]
        shapes = [var.aval.shape for var in eqn.invars]
        free = [
            [axis for axis in range(len(shape)) if axis not in (*batch, *own)]
            for shape, batch, own in zip(
                shapes, (batch_left, batch_right), (to_left, to_right), strict=True
            )
        ]
        if len(to_left) != 1 or len(free[1]) != 1 or (batch_left and len(free[0]) != 1):
            raise ValueError("a product of more axes than a matrix has, which is not exported")
        left = self.tensor(self._moved(left, [*batch_left, *free[0], *to_left]))
        right = self._moved(right, [*batch_right, *to_right, *free[1]])
        bits = self._bits(right)
        if bits is not None:
            codes = (np.asarray(right).astype(np.int32) - 1) // 2 << WHOLE - bits
            sums = narrow_sums(self.graph, left, codes, "w")
            made = odd_sums(self.graph, left, codes, bits, "w", sums)
            return self.graph.node("Mul", made, self.graph.constant(np.float32(2)))
        return self.graph.node("MatMul", left, self.weight(right))

    def _bits(self, value: Operand) -> int | None:
        """4 or 8 of a large known matrix of odd numbers, where they are to be halves of codes."""
        if not self.nibbles or isinstance(value, str) or value.ndim != 2 or value.size < LEAST:
            return None
        most = np.abs(value).max()
        if not _is_whole(value) or np.any(value % 2 != 1) or most >= 2**WHOLE:
            return None
        return HALF if most < 2**HALF else WHOLE

    def conv_general_dilated(self, eqn: Any, x: Operand, kernel: Operand) -> str:
        about, numbers = eqn.params, eqn.params["dimension_numbers"]
        if set(about["lhs_dilation"]) != {1} or about["batch_group_count"] != 1:
            raise ValueError("a transposed convolution, which is not exported")
        made = self.graph.node(
            "Conv", self.tensor(self._moved(x, numbers.lhs_spec)),
            self.weight(self._moved(kernel, numbers.rhs_spec)),
            kernel_shape=[eqn.invars[1].aval.shape[axis] for axis in numbers.rhs_spec[2:]],
            strides=[*about["window_strides"]],
            pads=[pair[side] for side in (0, 1) for pair in about["padding"]],
            dilations=[*about["rhs_dilation"]], group=about["feature_group_count"],
        )  # fmt: skip
        return str(self._moved(made, np.argsort(numbers.out_spec).tolist()))


def _is_whole(value: np.ndarray) -> bool:
    kind = np.issubdtype(value.dtype, np.floating) and value.size > 1
    return bool(kind and np.abs(value).max() < 2**15 and np.array_equal(value, np.round(value)))


Handler = Callable[..., Any]
_OWN = (
    "rsqrt", "integer_pow", "square", "round", "clamp", "select_n", "convert_element_type",
    "reshape", "broadcast_in_dim", "transpose", "reduce_sum", "reduce_max", "concatenate", "slice",
    "split", "pad", "gather", "dot_general", "conv_general_dilated",
)  # fmt: skip
HANDLERS: dict[str, Handler] = {
    **dict.fromkeys(_DIRECT, Operations.direct),
    **dict.fromkeys(_SAME, Operations.same),
    **{name: getattr(Operations, name) for name in _OWN},
    "squeeze": Operations.reshape,
    "expand_dims": Operations.reshape,
}
