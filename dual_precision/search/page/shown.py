"""What the views show of a state, as columns: no widgets here."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from dual_precision.search.alternatives import SKIP, area, reads_pixels, widths_in
from dual_precision.search.edits import Edit
from dual_precision.search.evolve import Evaluated, fitness_of, front_of
from dual_precision.search.space import Block, Space
from dual_precision.search.state import SearchState

Columns = dict[str, list[Any]]
_REMOVED = 0.12  # opacity of a block that is removed
_UNSEEN = 100  # paths that nobody has evaluated, shown in grey
SET_OPERATIONS = ("union", "intersection", "complement")
# Name -> which alternatives a layer keeps of those that the session began with. What may be left
# out may be so in all of them.
PRESETS: dict[str, Callable[[str], bool]] = {
    "all widths": lambda text: True,
    "equal bits, such as w2a2": lambda text: reads_pixels(text) or len({*widths_in(text)}) == 1,
    "weights of 2 bits or less": lambda text: reads_pixels(text) or widths_in(text)[0] <= 2,
    "activations of 2 bits or more": lambda text: text == SKIP or widths_in(text)[1] >= 2,
}


def all_blocks(known: Sequence[Block], state: SearchState) -> list[Block]:
    """`known`, and behind them the blocks that have come since: a row keeps its place."""
    spaces = [space for space, _ in state.history] + [state.space]
    found = [block for space in spaces for block in space.blocks]
    return list(dict.fromkeys([*known, *found]))


def block_lines(state: SearchState, columns: Mapping[str, Any], rows: Sequence[int]) -> list[str]:
    """What is said of some rows of `block_columns`."""
    lines = []
    for row in rows:
        layer, text = columns["layer"][row], columns["alternative"][row]
        there = "removed" if columns["alpha"][row] < 1 else "in the space"
        lines.append(
            f"<b>{layer} {text}</b>: {state.space.price((layer, text)):,} BitOps, fitness"
            f" {columns['fitness'][row]:.3f}, in {columns['count'][row]} candidates, {there}"
        )
    return lines


def block_columns(state: SearchState, blocks: Sequence[Block], marked: set[Block]) -> Columns:
    """A row for every block; those that are removed are fainter than any other, selected or not."""
    fitness, present = fitness_of(state.space, state.evaluated), set(state.space.blocks)
    counts: dict[Block, int] = {}
    for one in state.evaluated:
        for block in zip(state.space.layers, one.candidate, strict=True):
            counts[block] = counts.get(block, 0) + 1
    rank = _ranks(blocks)
    worth = [fitness[block][0] if block in present else 0.0 for block in blocks]
    return {
        "layer": [layer for layer, _ in blocks],
        "alternative": [text for _, text in blocks],
        "x": [state.space.layers.index(layer) for layer, _ in blocks],
        "y": [rank[text] for _, text in blocks],
        "fitness": worth,
        "count": [counts.get(block, 0) for block in blocks],
        "alpha": [1.0 if block in present else _REMOVED for block in blocks],
        "pale": [0.55 if block in present else _REMOVED for block in blocks],
        "ink": [_ink(block in present, own) for block, own in zip(blocks, worth, strict=True)],
        "mark": ["#d1495b" if block in marked else "#ffffff" for block in blocks],
    }


def _ink(present: bool, fitness: float) -> str:
    """A colour of text that can be read on a block: the palette is light from 0.6 on."""
    if not present:
        return "#6c757d"
    return "black" if fitness > 0.6 else "white"


def shown_candidates(state: SearchState) -> list[Evaluated]:
    """The evaluated ones in their order; then those of earlier weights and some that nobody has
    evaluated, without an accuracy. No candidate is there twice: a selection is known by them."""
    seen = {one.candidate for one in state.evaluated}
    generator = np.random.default_rng(state.settings.seed)
    even = [dict.fromkeys(own, 1.0) for own in state.space.alternatives]
    drawn = {state.space.draw(even, generator) for _ in range(_UNSEEN)}
    old = {one.candidate for one in state.before}
    rest = [Evaluated(c, math.nan, state.space.cost(c)) for c in sorted((drawn | old) - seen)]
    return [*state.evaluated, *rest]


def candidate_columns(candidates: Sequence[Evaluated]) -> Columns:
    """A row for every candidate, with its place in the projection."""
    places = projected([one.candidate for one in candidates])
    return {
        "px": places[:, 0].tolist(),
        "py": places[:, 1].tolist(),
        "accuracy": [one.accuracy for one in candidates],
        "size": [4 if math.isnan(one.accuracy) else 7 for one in candidates],  # grey hides less
        "cost": [one.cost for one in candidates],
        "text": [" ".join(one.candidate) for one in candidates],
    }


def projected(candidates: Sequence[Sequence[str]]) -> np.ndarray:
    """[candidates, 2]: the first two principal components of bits of weights and activations.

    Of the mask with an entry for every block, alternatives of as many bits being alike: a mask
    alone makes w1a1 as far from w1a2 as from w4a4.
    """
    if len(candidates) < 3:
        return np.zeros((len(candidates), 2))
    bits = [[bits for text in c for bits in widths_in(text)] for c in candidates]
    table = np.asarray(bits, float)
    table -= table.mean(axis=0)
    _, axes = np.linalg.eigh(table.T @ table)  # ascending
    first = axes[:, :-3:-1]
    return np.asarray(table @ (first * np.where(first.sum(axis=0) < 0, -1, 1)))  # a fixed sign


def common_blocks(space: Space, candidates: Sequence[Evaluated], operation: str) -> set[Block]:
    """What some candidates have in common: blocks that one of them has (union), that all have
    (intersection), or that none has (complement)."""
    own = [set(zip(space.layers, one.candidate, strict=True)) for one in candidates]
    if not own:
        return set()
    union = set.union(*own)
    if operation == "union":
        return union
    return set.intersection(*own) if operation == "intersection" else set(space.blocks) - union


def front_columns(state: SearchState) -> Columns:
    """The front, cheapest first."""
    front = front_of(state.evaluated)
    return {"cost": [one.cost for one in front], "accuracy": [one.accuracy for one in front]}


def path_columns(state: SearchState, blocks: Sequence[Block]) -> Columns:
    """Lines over the graph: the members of the front, and in red what is cut.

    Args:
      blocks: those of `block_columns`, so that a line is drawn through them.
    """
    rank = _ranks(blocks)
    lines: Columns = {"xs": [], "ys": [], "colour": []}
    for one in front_of(state.evaluated):
        if all(text in rank for text in one.candidate):
            lines["xs"].append(list(range(len(one.candidate))))
            lines["ys"].append([rank[text] for text in one.candidate])
            lines["colour"].append("#8d99ae")
    for index, first, second in sorted(state.space.cut):
        lines["xs"].append([index, index + 1])
        lines["ys"].append([rank[first], rank[second]])
        lines["colour"].append("#d1495b")
    return lines


def preset_edits(state: SearchState, name: str) -> list[Edit]:
    """The edits that leave every layer the alternatives of a preset; a layer that would have none
    left keeps what it has."""
    edits = []
    for layer, own, began in zip(
        state.space.layers, state.space.alternatives, state.begun.alternatives, strict=True
    ):
        wanted = [text for text in began if PRESETS[name](text)]
        if wanted:
            edits += [Edit("add", layer, text) for text in wanted if text not in own]
            edits += [Edit("remove", layer, text) for text in own if text not in wanted]
    return edits


def _ranks(blocks: Sequence[Block]) -> dict[str, int]:
    """Alternative -> its row in the graph, the cheapest first."""
    texts = sorted({text for _, text in blocks}, key=lambda t: (area(t), t))
    return {text: index for index, text in enumerate(texts)}
