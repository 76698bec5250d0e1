"""A traced function as a flat list of nodes, which can be changed and traced again."""

import dataclasses
import functools
import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Literal, jaxpr_as_fun

_CALLS = ("jit", "pjit", "custom_jvp_call", "custom_vjp_call", "closed_call", "core_call")
SMALL = 4096  # numbers; a vector of channels, not a kernel
_SAME = {"name", "copy"}  # what goes in comes out
_CUT = {"slice", "pad"}  # that too, where nothing is cut off or added


@dataclasses.dataclass(frozen=True)
class Node:
    """One operation: values in, values out, each a number of the graph."""

    primitive: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    params: dict[str, Any]
    run: Callable[..., Sequence[Any]]


@dataclasses.dataclass(frozen=True)
class TracedGraph:
    """Nodes in an order in which they can run.

    Attributes:
      inputs, outputs: values.
      held: value -> array, of inputs that are the same in every call.
      constants: value -> array, or number of Python's.
      avals: value -> its shape and dtype.
    """

    nodes: list[Node]
    inputs: list[int]
    outputs: list[int]
    constants: dict[int, Any]
    avals: list[Any]
    held: dict[int, Any] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def uses(self) -> Counter[int]:
        """How often a value goes into a node, or is given back."""
        inputs = (value for node in self.nodes for value in node.inputs)
        return Counter(itertools.chain(inputs, self.outputs))

    @functools.cached_property
    def makers(self) -> dict[int, Node]:
        """Value -> the node that it comes from."""
        return {value: node for node in self.nodes for value in node.outputs}

    def needed(self) -> "TracedGraph":
        """Without the nodes that no output needs."""
        wanted, nodes = set(self.outputs), []
        for node in reversed(self.nodes):
            if wanted.intersection(node.outputs):
                wanted.update(node.inputs)
                nodes.append(node)
        return dataclasses.replace(self, nodes=nodes[::-1])

    def folded(self, values: dict[int, Any]) -> tuple["TracedGraph", dict[int, Any]]:
        """With what small nodes make of these values alone; and all values that are inputs then.

        What a request does not change is computed before the first one. Vectors become constants,
        as a program with few arguments starts sooner; weights do not: there is one store of them.
        """
        known = dict(values)
        available = {**self.constants, **values}
        nodes: list[Node] = []
        for node in self.nodes:
            small = all(self.avals[value].size <= SMALL for value in node.outputs)
            if small and available.keys() >= set(node.inputs):
                made = node.run(*(available[value] for value in node.inputs))
                known.update(zip(node.outputs, made, strict=True))
                available.update(known)
            else:
                nodes.append(node)
        vectors = {value: np.asarray(known[value]) for value in known if self._is_vector(value)}
        held = {value: found for value, found in known.items() if value not in vectors}
        others = [value for value in self.inputs if value not in values]
        graph = dataclasses.replace(
            self, nodes=nodes, inputs=[*held, *others], constants={**self.constants, **vectors}
        )
        return graph, held

    def _is_vector(self, value: int) -> bool:
        """Whether it is a vector or a number: of the parameters, what is no kernel."""
        shape = self.avals[value].shape
        return math.prod(shape[:-1]) == 1

    def call(self, *arguments: Any) -> list[Any]:
        """The outputs, of the inputs."""
        values = {**self.constants, **dict(zip(self.inputs, arguments, strict=True))}
        for node in self.nodes:
            found = node.run(*(values[value] for value in node.inputs))
            values.update(zip(node.outputs, found, strict=True))
        return [values[value] for value in self.outputs]


def called_by(eqn: Any) -> tuple[Any, Sequence[Any]] | None:
    """(jaxpr, its constants) of the function that an equation calls; None of any other equation."""
    if eqn.primitive.name not in _CALLS:
        return None
    inner = eqn.params.get("jaxpr") or eqn.params.get("call_jaxpr")
    return getattr(inner, "jaxpr", inner), getattr(inner, "consts", ())


def flatten(traced: ClosedJaxpr) -> TracedGraph:
    """The graph of `jax.make_jaxpr(...)(...)`, with the functions inside written out."""
    graph = TracedGraph([], [], [], {}, [])

    def add(aval: Any) -> int:
        graph.avals.append(aval)
        return len(graph.avals) - 1

    def constant(value: Any, aval: Any) -> int:
        at = add(aval)
        graph.constants[at] = value
        return at

    def walk(jaxpr: Any, consts: Sequence[Any], inputs: Sequence[int]) -> list[int]:
        names = dict(zip(jaxpr.invars, inputs, strict=True))
        for var, value in zip(jaxpr.constvars, consts, strict=True):
            names[var] = constant(value, var.aval)

        def of(atom: Any) -> int:
            return constant(atom.val, atom.aval) if isinstance(atom, Literal) else names[atom]

        for eqn in jaxpr.eqns:
            given = [of(atom) for atom in eqn.invars]
            name = eqn.primitive.name
            if (inner := called_by(eqn)) is not None:
                made = walk(*inner, given)
            elif name in _SAME or (name in _CUT and _is_whole(eqn)):
                made = given[:1]
            else:
                made = [add(var.aval) for var in eqn.outvars]
                node = Node(name, tuple(given), tuple(made), dict(eqn.params), _runner(jaxpr, eqn))
                graph.nodes.append(node)
            names.update(zip(eqn.outvars, made, strict=True))
        return [of(atom) for atom in jaxpr.outvars]

    graph.inputs.extend(add(var.aval) for var in traced.jaxpr.invars)
    graph.outputs.extend(walk(traced.jaxpr, traced.consts, graph.inputs))
    return graph.needed()


def _is_whole(eqn: Any) -> bool:
    """Whether a slice or a padding leaves all as it is."""
    moved = any(any(edges) for edges in eqn.params.get("padding_config", ()))
    return eqn.invars[0].aval.shape == eqn.outvars[0].aval.shape and not moved


def _runner(jaxpr: Any, eqn: Any) -> Callable[..., Sequence[Any]]:
    """The one equation as a function of all its inputs."""
    variables = [atom for atom in eqn.invars if not isinstance(atom, Literal)]
    own = list(dict.fromkeys(variables))
    alone = jaxpr.replace(constvars=(), invars=own, outvars=eqn.outvars, eqns=[eqn])
    function = jaxpr_as_fun(ClosedJaxpr(alone, ()))

    def run(*arguments: Any) -> Sequence[Any]:
        given = {id(atom): value for atom, value in zip(eqn.invars, arguments, strict=True)}
        return function(*(given[id(variable)] for variable in own))

    return run


class CompiledProgram:
    """A function that is compiled for one shape, with the arrays that it always takes.

    Attributes:
      output: shapes and dtypes of what it gives.
      compiled: by XLA.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        held: Any,
        *examples: Any,
        change: Callable[[TracedGraph], TracedGraph],
    ) -> None:
        """Compiles function(held, *examples).

        Args:
          held: arrays; those that nothing is made of are left out.
          examples: shapes and dtypes of the others.
          change: what is done to the graph.
        """
        traced, self.output = jax.make_jaxpr(function, return_shape=True)(held, *examples)
        own, others = jax.tree.leaves(held), jax.tree.leaves(examples)
        graph = flatten(traced)
        graph = dataclasses.replace(graph, held=dict(zip(graph.inputs, own, strict=False)))
        graph = change(graph)
        places = {value: place for place, value in enumerate(graph.inputs[len(own) :])}
        graph, known = graph.folded(graph.held)
        used = [value for value in graph.inputs if graph.uses[value]]
        ours = [value for value in used if value in known]
        theirs = [value for value in used if value not in known]
        self._held = [known[value] for value in ours]
        self._given = [places[value] for value in theirs]
        self._tree = jax.tree.structure(self.output)
        call = dataclasses.replace(graph, inputs=[*ours, *theirs]).call
        shapes = [others[place] for place in self._given]
        self.compiled = jax.jit(call).lower(*self._held, *shapes).compile()

    def __call__(self, *given: Any) -> Any:
        leaves = jax.tree.leaves(given)
        found = self.compiled(*self._held, *(leaves[place] for place in self._given))
        return jax.tree.unflatten(self._tree, found)
