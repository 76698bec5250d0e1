"""What a model computes between its layers and normalisations, step by step, from one trace.

A layer or a norm is opaque: its input and its output are marked in the trace of mode "float", and
what stands between the marks is read for its product alone, a convolution or a matrix, whose
strides and padding are wanted. Everything else is a few primitives of JAX.
"""

import dataclasses
from collections.abc import Collection, Iterator
from typing import Any, cast

import jax
import numpy as np
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from dual_precision.deploy.integer.programs import called_by
from dual_precision.precision import FLOAT_NAME
from dual_precision.primitives.convolution import xla_alone
from dual_precision.structure import Example, LayerPath, Structure, batch_of

_IN, _OUT = "in of ", "out of "
_PRODUCTS = ("conv_general_dilated", "dot_general")
_BESIDE = ("add", "broadcast_in_dim", "reshape")  # what a layer may do beside it: add a bias


@dataclasses.dataclass(frozen=True)
class Part:
    """A call of a layer or a norm: where it takes its input, and the product in it, if any."""

    path: LayerPath
    source: Any
    product: Any


@dataclasses.dataclass(frozen=True, eq=False)
class Steps:
    """The forward of one row and more.

    Attributes:
      inputs, output: variables of the trace.
      made: variable -> the equation that makes it, calls taken apart.
      same: variable -> another one with the same value: an argument of a call, a result of one.
      parts: variable -> the call of a layer or norm that makes it.
      known: variable -> value that does not depend on the inputs.
      users: variable -> paths of the layers and norms that take it.
    """

    inputs: list[Any]
    output: Any
    made: dict[Any, Any]
    same: dict[Any, Any]
    parts: dict[Any, Part]
    known: dict[Any, np.ndarray]
    users: dict[Any, list[LayerPath]]

    def origin(self, var: Any) -> Any:
        """The variable, or literal, that has the value first."""
        while not hasattr(var, "val") and var in self.same:
            var = self.same[var]
        return var


def trace_steps(model: nn.Module, structure: Structure, example: Example) -> Steps:
    """The steps of a model of one input array and one output array.

    Raises:
      ValueError: more inputs or outputs; a layer whose product is no single convolution or matrix.
    """
    parts: set[LayerPath] = {*structure.layers, *structure.norms}

    def note(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        path = context.module.path
        if path not in parts or context.method_name != "__call__":
            return call(*args, **kwargs)
        name = "/".join(path)
        y = call(checkpoint_name(args[0], _IN + name), *args[1:], **kwargs)
        if not isinstance(y, jax.Array):
            raise ValueError(
                f"layer {name!r} gives more than one array: expected one convolution or matrix, as"
                " ONNX has; leave this layer class out of what is exported"
            )
        return checkpoint_name(y, _OUT + name)

    def forward(variables: Any, *inputs: Any) -> Any:
        with nn.intercept_methods(note):
            return model.apply(variables, *inputs, precision=FLOAT_NAME)

    from jax import export

    rows = batch_of(example, cast(int, export.symbolic_shape("rows")[0]))
    variables = jax.eval_shape(
        lambda *given: model.init(*given, precision=FLOAT_NAME),
        jax.random.key(0),
        *batch_of(example, 1),
    )
    with xla_alone():
        closed = jax.make_jaxpr(forward)(variables, *rows)
    jaxpr = closed.jaxpr
    given = len(jax.tree.leaves(rows))
    if given != 1 or len(jaxpr.outvars) != 1:
        raise ValueError(
            f"a network of {given} inputs and {len(jaxpr.outvars)} outputs: expected one array of"
            " each, as an engine is given; export a network without a state"
        )
    steps = Steps(jaxpr.invars[-given:], jaxpr.outvars[0], {}, {}, {}, {}, {})
    steps.known.update(zip(jaxpr.constvars, map(np.asarray, closed.consts), strict=True))
    _read(steps, jaxpr, structure.layers)
    return steps


def _read(steps: Steps, jaxpr: Any, layers: Collection[LayerPath]) -> None:
    marks: dict[str, list[Any]] = {}
    for eqn in _flat(steps, jaxpr):
        for var in eqn.outvars:
            steps.made[var] = eqn
        if eqn.primitive.name != "name":
            continue
        steps.same[eqn.outvars[0]] = eqn.invars[0]
        name = eqn.params["name"]
        if name.startswith(_IN):
            marks.setdefault(name.removeprefix(_IN), []).append(eqn.outvars[0])
            path = tuple(name.removeprefix(_IN).split("/"))
            steps.users.setdefault(steps.origin(eqn.invars[0]), []).append(path)
        elif name.startswith(_OUT):
            own = name.removeprefix(_OUT)
            start = marks[own].pop()
            path = tuple(own.split("/"))
            product = _product(steps, eqn.invars[0], start, own) if path in layers else None
            steps.parts[eqn.outvars[0]] = Part(path, start, product)
            del steps.same[eqn.outvars[0]]


def _flat(steps: Steps, jaxpr: Any) -> Iterator[Any]:
    """The equations in their order, those of called functions in the place of the call."""
    for eqn in jaxpr.eqns:
        called = called_by(eqn)
        if called is None:
            yield eqn
            continue
        inner, values = called
        # One function that is called twice has the same variables in both: take them apart.
        fresh = _renamed(inner)
        for own, outside in zip(fresh.invars, eqn.invars, strict=True):
            steps.same[own] = outside
        steps.known.update(zip(fresh.constvars, map(np.asarray, values), strict=True))
        yield from _flat(steps, fresh)
        for outside, own in zip(eqn.outvars, fresh.outvars, strict=True):
            steps.same[outside] = own


@dataclasses.dataclass(frozen=True)
class _Body:
    constvars: list[Any]
    invars: list[Any]
    outvars: list[Any]
    eqns: list[Any]


def _renamed(jaxpr: Any) -> _Body:
    """The body of a called function with variables of its own."""
    names: dict[Any, Any] = {}

    def own(var: Any) -> Any:
        if hasattr(var, "val"):
            return var
        return names.setdefault(var, type(var)(var.aval))

    eqns = [
        eqn.replace(invars=[own(v) for v in eqn.invars], outvars=[own(v) for v in eqn.outvars])
        for eqn in jaxpr.eqns
    ]
    constants = [own(v) for v in jaxpr.constvars]
    return _Body(constants, [*map(own, jaxpr.invars)], [*map(own, jaxpr.outvars)], eqns)


def _product(steps: Steps, end: Any, start: Any, name: str) -> Any:
    """The one convolution or matrix product between two marks."""
    found, others, waiting, seen = [], set(), [end], set()
    while waiting:
        var = waiting.pop()
        if hasattr(var, "val") or var is start or var in seen:
            continue
        seen.add(var)
        if var in steps.same:
            waiting.append(steps.same[var])
        elif var in steps.made:
            eqn = steps.made[var]
            if eqn.primitive.name in _PRODUCTS:
                found.append(eqn)
            elif eqn.primitive.name not in _BESIDE:
                others.add(eqn.primitive.name)
            waiting += eqn.invars
    if len(found) != 1 or others:
        beside = f" and {', '.join(sorted(others))}" if others else ""
        raise ValueError(
            f"layer {name!r} is {len(found)} products{beside}: expected one convolution or matrix,"
            " as ONNX has, and a bias; leave this layer class out of what is exported"
        )
    return found[0]
