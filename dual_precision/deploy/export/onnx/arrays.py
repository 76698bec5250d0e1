"""What stands between layers as nodes of ONNX: sums, rectifiers, reshapes, means, paddings.

Arrays of four axes, which are [N, H, W, C] in the model, are [N, C, H, W] in the graph, as its
convolutions want; the others keep their axes. A product with a matrix takes the last axis, and so
what it takes and gives is in the order of the model, as the output of the network is.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dual_precision.deploy.export.onnx.graph import Graph
from dual_precision.deploy.export.onnx.steps import Part, Steps

_BINARY = {
    "add": "Add", "add_any": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "max": "Max",
    "min": "Min",
}  # fmt: skip
_UNARY = {"tanh": "Tanh", "logistic": "Sigmoid", "exp": "Exp", "neg": "Neg", "sqrt": "Sqrt"}
_TO_CHANNELS_FIRST, _TO_CHANNELS_LAST = (0, 3, 1, 2), (0, 2, 3, 1)
_NEW_AXIS = (0, 2, 3, 1)  # where each axis of [N, H, W, C] is in [N, C, H, W]
ADDITIONS = ("add", "add_any")


@dataclasses.dataclass
class Arrays:
    """The tensors of the steps, from the output backwards; who derives from it knows the layers."""

    graph: Graph
    steps: Steps

    def __post_init__(self) -> None:
        self._made: dict[Any, str] = {}

    def output(self) -> str:
        """The tensor of the output of the network, in the order of the model."""
        return self._last(self.tensor(self.steps.output), self.steps.output.aval.shape)

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
            return self._first(self.graph.image, var)
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

    def _part(self, part: Part) -> str:
        """A layer or a norm."""
        raise NotImplementedError

    def _sum(self, eqn: Any) -> str | None:
        """A sum, where it is another node than Add."""
        raise NotImplementedError

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

    # -- primitives ------------------------------------------------------------------------------

    def _binary(self, eqn: Any) -> str:
        left, right = eqn.invars
        name = eqn.primitive.name
        zero = self._known(right)
        if name == "max" and zero is not None and not zero.any():
            return self.graph.node("Relu", self.tensor(left))
        if name in ADDITIONS and (made := self._sum(eqn)) is not None:
            return made
        if (made := self._mean(eqn)) is not None:
            return self.graph.node("Flatten", made)
        return self.graph.node(_BINARY[name], *self._operands(eqn))

    def _operands(self, eqn: Any) -> list[str]:
        return [self.tensor(var) for var in eqn.invars]

    def _mean(self, eqn: Any) -> str | None:
        """A sum over all pixels that is divided by their number, [N, C, 1, 1]; else None."""
        if eqn is None or eqn.primitive.name != "div":
            return None
        whole, count = eqn.invars
        total = None if self._known(whole) is not None else self._maker(whole)
        if total is None or total.primitive.name != "reduce_sum":
            return None
        shape, number = total.invars[0].aval.shape, self._known(count)
        if len(shape) != 4 or tuple(total.params["axes"]) != (1, 2) or number is None:
            return None
        if number.size != 1 or number.item() != shape[1] * shape[2]:
            return None
        return self._pooled(total.invars[0])

    def _maker(self, var: Any) -> Any:
        """The equation that makes a variable; None of what a layer or a norm gives."""
        var = self.steps.origin(var)
        return None if var in self.steps.parts else self.steps.made.get(var)

    def _pooled(self, var: Any) -> str:
        """The mean [N, C, 1, 1] over the pixels of an array."""
        return self.graph.node("GlobalAveragePool", self.tensor(var))

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
        made = self.graph.node("ReduceSum", *own, keepdims=0)
        kept = [_axis(rank, axis) for axis in range(rank) if axis not in eqn.params["axes"]]
        if kept == sorted(kept):
            return made
        # What is left of [N, C, H, W] without pixels of one axis is [N, C, .]: channels last again.
        return self.graph.node("Transpose", made, perm=[sorted(kept).index(axis) for axis in kept])

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

    def _pad(self, eqn: Any, x: str | None = None, zero: str | None = None) -> str:
        """A padding; with `zero`, the tensor of the 0 of codes x, in the place of a 0 of floats."""
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
        own = self.graph.constant(places.reshape(-1)), zero or self._constant(fill)
        return self.graph.node("Pad", x, *own)

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
