"""Programs in which convolutions take along what follows them number by number.

    chained(flatten(jax.make_jaxpr(forward)(*arguments)))

finds, behind every sum that the library for CPUs makes, the factor, the normalisation, the
shortcut, the rectifier and the rounding to the next codes, and makes one link of `native.chains` of
them; links that follow each other become one call. A program without such sums stays as it is.
Bits: a product that goes into one sum alone is not rounded before it, as XLA's programs for CPUs
have it.
"""

import dataclasses
import itertools
from collections import Counter
from typing import TypeVar

import numpy as np

from dual_precision.deploy.integer.programs import Node, TracedGraph
from dual_precision.primitives.native.chain_steps import RESULTS, Step, in_few_passes
from dual_precision.primitives.native.chains import (
    Chain,
    Link,
    Sums,
    run_links,
    runs_here,
    tag_of,
    traced_sum,
)

CALL = "chains"  # a node that stands for links
_Part = TypeVar("_Part", Node, Link)

_ALIKE = {
    "mul": "multiply",
    "add": "add",
    "sub": "subtract",
    "max": "max",
    "min": "min",
    "round": "round",
}
_FUSED = {"add": ("fused", "fused"), "sub": ("fused minus", "minus fused")}
_FOLLOWERS = {*_ALIKE, "clamp", "convert_element_type"}


def chained(graph: TracedGraph) -> TracedGraph:
    """The graph with chains in the place of what they do; the same where there are none."""
    sums = {at: how for at, node in enumerate(graph.nodes) if (how := _sums(graph, node))}
    followers: dict[int, list[int]] = {}  # of a sum: the nodes that it takes along
    taken: set[int] = set()
    # What follows two of them goes to the later one: the other is then ready before it.
    for start in reversed(sums):
        if found := _followers(graph, start, taken):
            taken.update(found)
            followers[start] = found
    if not followers:
        return graph
    links = [_link(graph, at, followers[at], sums[at]) for at in sorted(followers)]
    own = {*followers, *taken}
    others = [node for at, node in enumerate(graph.nodes) if at not in own]
    return _in_few_calls(graph, links, others) or graph


def _in_few_calls(graph: TracedGraph, links: list[Link], others: list[Node]) -> TracedGraph | None:
    """The graph of these, as many links as can be in each call; None: there is no such order."""
    ready = {*graph.inputs, *graph.constants}
    nodes: list[Node] = []
    while links or others:
        before = len(nodes)
        run, others = _runnable(others, ready)
        nodes += run
        at_once, links = _runnable(links, ready)
        later = {value for node in others for value in node.inputs}.union(graph.outputs)
        # In their order: one may need what one of another batch gives.
        calls = [
            (batch, [*own])
            for batch, own in itertools.groupby(at_once, lambda link: graph.avals[link.x].shape[0])
        ]
        for index, (batch, own) in enumerate(calls):
            behind = [*itertools.chain(*(after for _, after in calls[index + 1 :])), *links]
            wanted = later.union(value for link in behind for value in _inputs(link))
            nodes.append(_call(own, wanted, batch))
        if len(nodes) == before:
            return None
    return dataclasses.replace(graph, nodes=nodes)


def _runnable(parts: list[_Part], ready: set[int]) -> tuple[list[_Part], list[_Part]]:
    """(those that can run, one after the other; the rest). What they make is ready then."""
    now: list[_Part] = []
    later: list[_Part] = []
    for part in parts:
        if ready.issuperset(_inputs(part)):
            ready.update(part.outputs if isinstance(part, Node) else part.results)
            now.append(part)
        else:
            later.append(part)
    return now, later


def _inputs(part: Node | Link) -> tuple[int, ...]:
    return part.inputs if isinstance(part, Node) else (part.x, part.kernel, *part.operands)


def _call(links: list[Link], later: set[int], batch: int) -> Node:
    """One node for links that follow each other, of so many images."""
    made = {value for link in links for value in link.results}
    inputs = [*dict.fromkeys(v for link in links for v in _inputs(link) if v not in made)]
    wanted = [value for link in links for value in link.results if value in later]

    def run(*arrays):
        return run_links(links, dict(zip(inputs, arrays, strict=True)), wanted, batch)

    return Node(CALL, tuple(inputs), tuple(wanted), {}, run)


def _sums(graph: TracedGraph, node: Node) -> Sums | None:
    """How a node sums, if a link can begin with it on this CPU."""
    if not runs_here():
        return None
    found = traced_sum(node.params) if node.primitive == "ffi_call" else None
    if found is None or found.bits:
        return found
    floats = all(graph.avals[value].dtype == np.float32 for value in node.inputs)
    return found if floats else None


def _followers(graph: TracedGraph, start: int, taken: set[int]) -> list[int]:
    """The nodes behind a sum that work number by number on it, and on what is ready before it."""
    (total,) = graph.nodes[start].outputs
    shape = graph.avals[total].shape
    inside, behind, found = {total}, {total}, []
    for at in range(start + 1, len(graph.nodes)):
        node = graph.nodes[at]
        if not behind.intersection(node.inputs):
            continue
        behind.update(node.outputs)
        others = [value for value in node.inputs if value not in inside]
        if (
            at not in taken
            and inside.intersection(node.inputs)
            and not behind.intersection(others)
            and _can_follow(graph, node, shape)
            and all(_operand(graph, value, shape) for value in others)
        ):
            found.append(at)
            if graph.avals[node.outputs[0]].dtype == np.float32:
                inside.update(node.outputs)
    return found


def _can_follow(graph: TracedGraph, node: Node, shape: tuple[int, ...]) -> bool:
    if node.primitive not in _FOLLOWERS or len(node.outputs) != 1:
        return False
    made = graph.avals[node.outputs[0]]
    if node.primitive == "round" and node.params["rounding_method"].name != "TO_NEAREST_EVEN":
        return False
    to_codes = node.primitive == "convert_element_type"
    return made.shape == shape and made.dtype == (np.uint8 if to_codes else np.float32)


def _operand(graph: TracedGraph, value: int, shape: tuple[int, ...]) -> tuple[str, int] | None:
    """(kind, the value that a chain takes), or None where it takes no such value."""
    maker = graph.makers.get(value)
    if maker is not None and maker.primitive == "broadcast_in_dim":
        (source,) = maker.inputs
        to_last = maker.params["broadcast_dimensions"][-1:] in ((), (len(shape) - 1,))
        if graph.avals[value].shape == shape and to_last:
            value = source
    aval = graph.avals[value]
    if aval.dtype != np.float32:
        return None
    if aval.shape == shape:
        return "array", value
    if aval.size == 1:
        return "number", value
    return ("channels", value) if aval.shape[-1] == aval.size == shape[-1] else None


def _link(graph: TracedGraph, start: int, followers: list[int], sums: Sums) -> Link:
    """A sum and its followers."""
    call = graph.nodes[start]
    (total,) = call.outputs
    x, kernel = call.inputs
    shape = graph.avals[total].shape
    own = [graph.nodes[at] for at in followers]
    inner = Counter(value for node in own for value in node.inputs)
    slots, operands, kinds = _slots(graph, total, own, shape)
    products = {
        node.outputs[0]: node
        for node in own
        if node.primitive == "mul" and graph.uses[node.outputs[0]] == 1
    }
    made = (total, *(node.outputs[0] for node in own))
    given = [value for value in made if graph.uses[value] > inner[value]]
    steps = [step for node in own for step in _steps(node, slots, products)]
    steps += [
        Step(graph.avals[value].dtype.name, at, (slots[value],)) for at, value in enumerate(given)
    ]
    read = {slot for step in steps for slot in step.of}
    steps = [step for step in steps if step.operation in RESULTS or step.to in read]
    results = tuple(graph.avals[value].dtype.name for value in given)
    numbers = {slot for slot, kind in enumerate(kinds, 1) if kind == "number"}
    passes = in_few_passes([Step("sums", slots[total]), *steps], numbers)
    chain = Chain(passes, tuple(kinds), len(slots), results)
    image, window = graph.avals[x].shape[1:], graph.avals[kernel].shape
    tag = tag_of(graph.held[kernel]) if sums.bits and kernel in graph.held else 0
    return Link(x, kernel, image, window, sums, chain, tuple(operands), tuple(given), tag)


def _slots(
    graph: TracedGraph, total: int, own: list[Node], shape: tuple[int, ...]
) -> tuple[dict[int, int], list[int], list[str]]:
    """Where every value stands; what is given from outside, and of which kind it is."""
    made = {total, *(node.outputs[0] for node in own)}
    found: dict[tuple[str, int], int] = {}
    slots = {total: 0}
    for node in own:
        for value in node.inputs:
            if value not in made:
                operand = _operand(graph, value, shape)
                assert operand is not None, "_followers took such values alone"
                slots[value] = found.setdefault(operand, len(found) + 1)
    after = len(found) + 1
    for at, node in enumerate(own):
        slots[node.outputs[0]] = after + at
    return slots, [value for _, value in found], [kind for kind, _ in found]


def _steps(node: Node, slots: dict[int, int], products: dict[int, Node]) -> list[Step]:
    """The steps of a node; none for a product that the one sum behind it takes in."""
    (to,) = node.outputs
    at = [slots[value] for value in node.inputs]
    name = node.primitive
    if name == "convert_element_type":
        slots[to] = at[0]  # the last step of all writes it as what it is
        return []
    if name == "clamp":
        low, x, high = at
        return [Step("clamp", slots[to], (x, low, high))]
    if name in _FUSED:
        for side in (0, 1):
            product = products.get(node.inputs[side])
            if product is not None:
                a, b = (slots[value] for value in product.inputs)
                return [Step(_FUSED[name][side], slots[to], (a, b, at[1 - side]))]
    return [Step(_ALIKE[name], slots[to], tuple(at))]
