"""A mode as ONNX, operation by operation: for networks whose layers have calls of their own.

The trace of the forward in its mode is read from the first equation to the last. What does not
depend on the input is computed, and is an initializer; the rest are operations of floats. So the
values are those of the mode, whatever the network is made of. Two forms of the weights:

    plain      floats, and operations that ONNX had before it knew of 4 bits (opset 13)
    otherwise  whole numbers of a product, and the midpoints of a table, in the narrowest of INT4,
               INT8 and INT16 that holds them, behind a DequantizeLinear

A known array whose batch is a symbol has one row, which broadcasts.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, cast

import jax
import numpy as np
from flax import linen as nn
from jax import export

from dual_precision.deploy.export.onnx.graph import Graph
from dual_precision.deploy.export.onnx.operations import HANDLERS, Operand, Operations
from dual_precision.deploy.integer.programs import called_by
from dual_precision.primitives.convolution import xla_alone
from dual_precision.structure import Example, batch_of

_TABLE = "midrise_ste"  # the values of weights that are in no product: a table, a recurrence


def trace_mode(
    model: nn.Module, variables: Mapping[str, Any], example: Example, mode: str
) -> tuple[Any, tuple[Any, ...]]:
    """(jaxpr of the forward in a mode for any batch, shape of a row of its output).

    Raises:
      ValueError: more inputs or outputs than one array.
    """
    rows = batch_of(example, cast(int, export.symbolic_shape("rows")[0]))
    with xla_alone():
        closed = jax.make_jaxpr(partial(model.apply, variables, precision=mode))(*rows)
    inputs, outputs = closed.jaxpr.invars, closed.jaxpr.outvars
    if len(inputs) != 1 or len(outputs) != 1:
        raise ValueError(
            f"a network of {len(inputs)} inputs and {len(outputs)} outputs: expected one array of"
            " each, as an engine is given; export a network without a state"
        )
    return closed, tuple(outputs[0].aval.shape[1:])


@dataclasses.dataclass
class TracedNetwork(Operations):
    """The nodes of a trace."""

    def output(self, closed: Any) -> str:
        """The tensor of the output of a jaxpr of `trace_mode`."""
        (found,) = self._run(closed.jaxpr, closed.consts, [self.graph.image])
        return self.tensor(found)

    def _run(self, jaxpr: Any, consts: Sequence[Any], given: Sequence[Operand]) -> list[Operand]:
        """The values of what a jaxpr gives."""
        known: dict[Any, Operand] = dict(zip(jaxpr.constvars, map(np.asarray, consts), strict=True))
        known |= dict(zip(jaxpr.invars, given, strict=True))

        def read(var: Any) -> Operand:
            return np.asarray(var.val) if hasattr(var, "val") else known[var]

        for eqn in jaxpr.eqns:
            found = self._equation(eqn, [read(var) for var in eqn.invars])
            known |= dict(zip(eqn.outvars, found, strict=True))
        return [read(var) for var in jaxpr.outvars]

    def _equation(self, eqn: Any, values: list[Operand]) -> list[Operand]:
        name = eqn.primitive.name
        whole = all(isinstance(value, np.ndarray) for value in values)
        if (inner := called_by(eqn)) is not None:
            found = self._run(*inner, values)
            if whole and eqn.params.get("name") == _TABLE and not self.plain:
                return [self._table(*found, *values[1:3])]
            return found
        if whole:
            return self._computed(eqn, values)
        if name == "scan":
            return self._scan(eqn, values)
        if name not in HANDLERS:
            raise ValueError(
                f"the network computes {name!r}: expected one of {sorted([*HANDLERS, 'scan'])},"
                " which this export knows"
            )
        made = HANDLERS[name](self, eqn, *values)
        return made if isinstance(made, list) else [made]

    def _computed(self, eqn: Any, values: list[Any]) -> list[Operand]:
        """The values of an equation of known arrays."""
        params = {name: _one_row(value) for name, value in eqn.params.items()}
        found = eqn.primitive.bind(*values, **params)
        parts = found if eqn.primitive.multiple_results else [found]
        return [np.asarray(part) for part in parts]

    def _table(self, value: Any, step: Any, cell: Any) -> Operand:
        """(c + 1/2) cell step as the odd number 2 c + 1 and a factor of each output."""
        factor = np.asarray(step * (cell * np.float32(0.5)), np.float32).reshape(-1)
        odd = np.round(value / factor)
        if not np.array_equal(np.float32(odd) * factor, value):
            return cast(np.ndarray, value)
        return self.whole_numbers(odd, factor)

    def _scan(self, eqn: Any, values: list[Operand]) -> list[Operand]:
        about = eqn.params
        if about["reverse"]:
            raise ValueError("a scan from the end to the begin, which is not exported")
        first = about["num_consts"]
        last, own, body = first + about["num_carry"], about["jaxpr"], Graph(self.graph)
        before = zip(values[first:last], eqn.invars[first:last], strict=True)
        states = [self._with_rows(value, var) for value, var in before]
        given = [body.given(var.aval.dtype) for var in own.jaxpr.invars[first:]]
        inner = dataclasses.replace(self, graph=body)
        names = [info.name for info in given]
        found = inner._run(own.jaxpr, own.consts, [*values[:first], *names])
        results = [
            (inner.tensor(value), var.aval.dtype)
            for value, var in zip(found, own.jaxpr.outvars, strict=True)
        ]
        arrays = [self.tensor(value) for value in values[last:]]
        return [*self.graph.scan(body, states, arrays, given, results)]

    def _with_rows(self, value: Operand, var: Any) -> str:
        """A state with as many rows as the input has: an engine keeps its shape in a loop."""
        if isinstance(value, str):
            return value
        graph, ends = self.graph, (np.asarray([end], np.int64) for end in (0, 1))
        rows = graph.node("Slice", graph.node("Shape", graph.image), *map(graph.constant, ends))
        rest = graph.constant(np.asarray(var.aval.shape[1:], np.int64))
        return graph.node("Expand", self.tensor(value), graph.node("Concat", rows, rest, axis=0))


def _one_row(value: Any) -> Any:
    """A parameter of an equation in which a symbol is 1."""
    if isinstance(value, tuple):
        return tuple(1 if export.is_symbolic_dim(part) else part for part in value)
    return value
