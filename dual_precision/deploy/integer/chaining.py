"""Programs in which a convolution of codes takes along what follows it number by number.

    chained(flatten(jax.make_jaxpr(forward)(*arguments)))

finds, behind every sum of `convolution.conv2d_codes`, the factor, the normalisation, the shortcut,
the rectifier and the rounding to the next codes, and makes one call of `native.chains` of them. A
program without such sums stays as it is. Bits: a product that goes into one sum alone is not
rounded before it, as XLA's programs for CPUs have it.
"""

from collections import Counter

import numpy as np

from dual_precision.deploy.integer.programs import Node, TracedGraph
from dual_precision.primitives.native import chains
from dual_precision.primitives.native.chains import Chain, Step, convolve_codes

_ALIKE = {"mul": "multiply", "add": "add", "sub": "subtract", "max": "max", "min": "min"}
_FUSED = {"add": ("fused", "fused"), "sub": ("fused minus", "minus fused")}
_RESULTS = {"float32", "uint8"}
_FOLLOWERS = {*_ALIKE, "round", "clamp", "convert_element_type"}


def chained(graph: TracedGraph) -> TracedGraph:
    """The graph with chains in the place of what they do; the same where there are none."""
    followers: dict[int, list[int]] = {}  # of a sum: the nodes that it takes along
    taken: set[int] = set()
    # What follows two of them goes to the later one: the other is then ready before it.
    for start in reversed(range(len(graph.nodes))):
        if _is_sum(graph.nodes[start]) and (found := _followers(graph, start, taken)):
            taken.update(found)
            followers[start] = found
    if not followers:
        return graph
    nodes = [
        _lowered(graph, at, followers[at]) if at in followers else node
        for at, node in enumerate(graph.nodes)
        if at not in taken
    ]
    return graph.ordered(nodes) or graph


def _is_sum(node: Node) -> bool:
    return node.primitive == "ffi_call" and node.params["target_name"] == chains.TARGET


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


def _lowered(graph: TracedGraph, start: int, followers: list[int]) -> Node:
    """One node for a sum and its followers."""
    call = graph.nodes[start]
    (total,) = call.outputs
    shape = graph.avals[total].shape
    own = [graph.nodes[at] for at in followers]
    inner = Counter(value for node in own for value in node.inputs)
    slots, operands, kinds = _slots(graph, total, own, shape)
    products = {
        node.outputs[0]: node
        for node in own
        if node.primitive == "mul" and graph.uses[node.outputs[0]] == 1
    }
    given = [v for v in (total, *(n.outputs[0] for n in own)) if graph.uses[v] > inner[v]]
    steps = [step for node in own for step in _steps(node, slots, products)]
    steps += [
        Step(graph.avals[value].dtype.name, at, slots[value]) for at, value in enumerate(given)
    ]
    read = {slot for step in steps for slot in step[2:]}
    steps = [step for step in steps if step.operation in _RESULTS or step.to in read]
    results = tuple(graph.avals[value].dtype.name for value in given)
    chain = Chain(tuple(steps), tuple(kinds), len(slots), results)
    attributes = dict(call.params["attributes"])
    stride, bits, shift = (int(attributes[name]) for name in ("stride", "bits", "shift"))

    def run(x, codes, *numbers):
        flat = [
            number.reshape(() if kind == "number" else (-1,) if kind == "channels" else shape)
            for number, kind in zip(numbers, kinds, strict=True)
        ]
        return convolve_codes(x, codes, shape, stride, bits, shift, chain, flat)

    return Node("chain", (*call.inputs, *operands), tuple(given), {}, run)


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
        return [Step("max", slots[to], x, low), Step("min", slots[to], slots[to], high)]
    if name == "round":
        return [Step("round", slots[to], at[0])]
    if name in _FUSED:
        for side in (0, 1):
            product = products.get(node.inputs[side])
            if product is not None:
                a, b = (slots[value] for value in product.inputs)
                return [Step(_FUSED[name][side], slots[to], a, b, at[1 - side])]
    return [Step(_ALIKE[name], slots[to], *at)]
