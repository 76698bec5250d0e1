"""What is searched: for every layer the widths that it may have, and which may follow on which.

A space is a graph. Its blocks are (layer, alternative), an alternative is a text such as "w2a3".
The layers of a residual block that may be left out have "skip" too: all of them take it, or none.
A layer that reads pixels has alternatives such as "w4a32": only its weights have a width. No weight
is wider than the store. Every alternative of a layer is connected to all of the next layer, except
where an edit cut it.
A candidate is a path from the first layer to the last whose cost is within the bound.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dual_precision.costs import mode_cost, pixel_layer
from dual_precision.precision import MAX_BITS
from dual_precision.search.alternatives import SKIP, area, is_width, reads_pixels, trouble_of
from dual_precision.structure import Structure, free_layers

Candidate = tuple[str, ...]  # an alternative for every layer, in the order of the space
Block = tuple[str, str]  # layer, alternative
Weights = Sequence[Mapping[str, float]]  # for every layer: alternative -> its chance, unscaled


class SpaceError(ValueError):
    """A space, or an edit of one, that cannot be searched."""


@dataclasses.dataclass(frozen=True)
class Space:
    """A graph of alternatives.

    Attributes:
      mode: whose widths are searched.
      layers: paths of the free layers, in the order of the forward pass.
      alternatives: of every layer.
      macs: multiply-accumulates of every layer, per example.
      fixed: BitOps of all other layers, and of products of activations.
      cut: (index of a layer, its alternative, the one of the next layer) that may not follow.
      most: bound on the BitOps of a candidate; None is none.
      skippable: paths of the blocks that may be left out.
      stored: bits of the stored weights of every layer, which no alternative exceeds; () is 8 for
        all, as of logs that do not say it.
    """

    mode: str
    layers: tuple[str, ...]
    alternatives: tuple[tuple[str, ...], ...]
    macs: tuple[int, ...]
    fixed: int
    cut: frozenset[tuple[int, str, str]] = frozenset()
    most: float | None = None
    skippable: tuple[str, ...] = ()
    stored: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.layers:
            raise SpaceError(f"a space of mode {self.mode!r} without layers: expected one or more")
        stored = self.stored or (MAX_BITS,) * len(self.layers)
        for layer, own, bits in zip(self.layers, self.alternatives, stored, strict=True):
            if not own:
                raise SpaceError(f"layer {layer!r} has no alternative left, so that no path is")
            may_skip = block_of(layer) in self.skippable
            for text in own:
                skipped = text == SKIP and may_skip
                if not skipped and (why := trouble_of(text, own[0], bits)):
                    raise SpaceError(f"layer {layer!r}: {why}")
        if self.most is not None and not math.isfinite(self.most):
            raise SpaceError(f"a bound of {self.most} BitOps: expected a number, or none")
        least = min(self._least[0].values())
        if math.isinf(least):
            raise SpaceError("no path from the first layer to the last is left: join some blocks")
        if self.most is not None and self.fixed + least > self.most:
            raise SpaceError(
                f"a bound of {self.most:,.0f} BitOps leaves no path: the cheapest takes"
                f" {self.fixed + least:,.0f}; give a larger bound"
            )

    @property
    def blocks(self) -> tuple[Block, ...]:
        """All of them, layer by layer."""
        pairs = zip(self.layers, self.alternatives, strict=True)
        return tuple((layer, text) for layer, own in pairs for text in own)

    @property
    def size(self) -> int:
        """Paths, those of cut connections and beyond the bound counted too."""
        return math.prod(map(len, self.alternatives))

    @property
    def digest(self) -> str:
        """What tells the network of one space from another: an edited space keeps it."""
        facts: list[Any] = [self.mode, self.layers, self.macs, self.fixed, *self.skippable]
        if min(self.stored, default=MAX_BITS) < MAX_BITS:  # logs of before have no stored bits
            facts.append(self.stored)
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]

    def cost(self, candidate: Candidate) -> int:
        """BitOps per example: MACs * bits of weights * bits of activations, of all layers."""
        each = zip(self.macs, candidate, strict=True)
        return self.fixed + sum(macs * area(text) for macs, text in each)

    def contains(self, candidate: Candidate) -> bool:
        """Whether it is a path of this space."""
        return (
            len(candidate) == len(self.layers)
            and all(t in own for t, own in zip(candidate, self.alternatives, strict=True))
            and not any(self._apart(*step) for step in self._steps(candidate))
            and (self.most is None or self.cost(candidate) <= self.most)
        )

    def draw(self, weights: Weights, generator: np.random.Generator) -> Candidate:
        """A path, layer by layer, each alternative by its weight among those that lead on.

        What leads nowhere, or only beyond the bound, has no chance; where none of the rest has a
        weight, they are equal.
        """
        path: list[str] = []
        spent, least = float(self.fixed), self._least
        for index, own in enumerate(self.alternatives):
            allowed = [text for text in own if self._leads_on(path, text, spent, least)]
            chances = np.asarray([weights[index].get(text, 0.0) for text in allowed], float)
            if chances.sum() <= 0:
                chances = np.ones(len(allowed))
            chosen = allowed[int(generator.choice(len(allowed), p=chances / chances.sum()))]
            path.append(chosen)
            spent += self.macs[index] * area(chosen)
        return tuple(path)

    def same(self, text: str) -> Candidate:
        """One alternative for all layers; those that read pixels are as wide as they may be."""
        widest = [max(own, key=area) if reads_pixels(own[0]) else text for own in self.alternatives]
        return tuple(widest)

    def uniform(self) -> tuple[Candidate, ...]:
        """The paths with one alternative for all layers, see `same`; the cheapest first."""
        texts = dict.fromkeys(text for own in self.alternatives for text in own)
        paths = [self.same(text) for text in sorted(texts, key=area) if is_width(text)]
        return tuple(path for path in paths if self.contains(path))

    def is_uniform(self, candidate: Candidate) -> bool:
        """Whether it is what `same` gives for one of its alternatives."""
        return any(candidate == self.same(text) for text in dict.fromkeys(candidate))

    def widths(self, candidate: Candidate) -> dict[str, dict[str, str]]:
        """As widths are given layer by layer: {layer: {mode: "w2a3"}}."""
        pairs = zip(self.layers, candidate, strict=True)
        return {layer: {self.mode: text} for layer, text in pairs if text != SKIP}

    def skipped(self, candidate: Candidate) -> tuple[str, ...]:
        """The blocks that a candidate leaves out."""
        pairs = zip(self.layers, candidate, strict=True)
        return tuple(dict.fromkeys(block_of(layer) for layer, text in pairs if text == SKIP))

    def price(self, block: Block) -> int:
        """BitOps of a block."""
        layer, text = block
        return self.macs[self.layers.index(layer)] * area(text)

    def to_json(self) -> dict[str, Any]:
        """JSON types, which `space_from` reads."""
        return {**dataclasses.asdict(self), "cut": sorted(map(list, self.cut))}

    @functools.cached_property
    def _least(self) -> list[dict[str, float]]:
        """For every layer: alternative -> the least BitOps from there to the end; inf is no way."""
        after: dict[str, float] = {}
        found: list[dict[str, float]] = []
        for index in reversed(range(len(self.layers))):
            here = {}
            for text in self.alternatives[index]:
                ways = [c for t, c in after.items() if not self._apart(index, text, t)]
                rest = min(ways, default=math.inf) if after else 0.0
                here[text] = self.macs[index] * area(text) + rest
            found.insert(0, here)
            after = here
        return found

    def _leads_on(
        self, path: Sequence[str], text: str, spent: float, least: Sequence[Mapping[str, float]]
    ) -> bool:
        """Whether an alternative can follow on a path that has spent so much."""
        index = len(path)
        if path and self._apart(index - 1, path[-1], text):
            return False
        most = math.inf if self.most is None else self.most
        return not math.isinf(least[index][text]) and spent + least[index][text] <= most

    def _apart(self, index: int, text: str, following: str) -> bool:
        """Whether the second may not follow on the first, an alternative of layer `index`."""
        own, other = (block_of(layer) for layer in self.layers[index : index + 2])
        torn = own == other and own in self.skippable and (text == SKIP) != (following == SKIP)
        return torn or (index, text, following) in self.cut

    def _steps(self, candidate: Candidate) -> list[tuple[int, str, str]]:
        return [(index, a, b) for index, (a, b) in enumerate(itertools.pairwise(candidate))]


def block_of(layer: str) -> str:
    """The path of the block that a layer is in: "stage2_block1" of "stage2_block1/conv1"."""
    return layer.rpartition("/")[0]


def space_of(
    structure: Structure,
    mode: str,
    choices: Sequence[str],
    own: Mapping[str, Sequence[str]] | None = None,
    skippable: Sequence[str] = (),
) -> Space:
    """All of `choices` for every free layer of a network.

    Args:
      own: layer -> choices of its own; a layer that is not free is one by this. The one that reads
        pixels has choices such as "w4a32".
      skippable: residual blocks that may be left out, by their paths.

    Raises:
      SpaceError: no layer is free, or there is nothing to choose; no such layer; choices with and
        without a width of activations where its inputs have none, or one; weights wider than those
        that are stored.
    """
    lists = dict.fromkeys(free_layers(structure, mode), tuple(choices)) | dict(own or {})
    names = tuple(name for name in map("/".join, structure.layers) if name in lists)
    if unknown := sorted(lists.keys() - set(names)):
        raise SpaceError(f"choices of layers {unknown}: expected some of {_names(structure)}")
    if unknown := sorted(set(skippable) - {block_of(name) for name in names}):
        raise SpaceError(f"blocks {unknown} to skip: expected such as have layers of {list(names)}")
    for name in own or {}:
        pixels = tuple(name.split("/")) == pixel_layer(structure.layers)
        if any(reads_pixels(text) != pixels for text in lists[name]):
            wanted = "such as w4a32, as it reads pixels" if pixels else "with bits of both"
            raise SpaceError(f"choices {[*lists[name]]} of layer {name!r}: expected all {wanted}")
    macs = tuple(structure.layers[tuple(name.split("/"))].macs for name in names)
    tables = [structure.layers[tuple(name.split("/"))].table[mode] for name in names]
    pairs = zip(macs, tables, strict=True)
    inside = sum(m * area(str(dataclasses.replace(p, gradients=None))) for m, p in pairs)
    fixed = mode_cost(structure, mode).bit_operations - inside
    extra = {name: (SKIP,) if block_of(name) in skippable else () for name in names}
    each = tuple(tuple(dict.fromkeys((*lists[n], *extra[n]))) for n in names)
    if not names or max(map(len, each)) < 2:  # edits may narrow it to one path, none begins so
        raise SpaceError(
            f"a space of mode {mode!r} without alternatives, in {len(names)} layers: expected a"
            " layer with two or more; add some"
        )
    own_bits = (structure.layers[tuple(name.split("/"))].stored for name in names)
    stored = tuple(bits or MAX_BITS for bits in own_bits)  # floats are cut at any width
    return Space(mode, names, each, macs, fixed, skippable=tuple(skippable), stored=stored)


def _names(structure: Structure) -> list[str]:
    return ["/".join(path) for path in structure.layers]


def space_from(found: Mapping[str, Any]) -> Space:
    """The space that `Space.to_json` wrote.

    Raises:
      SpaceError: it is something else.
    """
    try:
        return Space(
            str(found["mode"]),
            tuple(map(str, found["layers"])),
            tuple(tuple(map(str, own)) for own in found["alternatives"]),
            tuple(map(int, found["macs"])),
            int(found["fixed"]),
            frozenset((int(i), str(a), str(b)) for i, a, b in found["cut"]),
            None if found["most"] is None else float(found["most"]),
            tuple(map(str, found["skippable"])),
            tuple(map(int, found.get("stored", ()))),
        )
    except SpaceError:
        raise
    except (LookupError, TypeError, ValueError, OverflowError) as error:
        raise SpaceError(f"no space ({error!r}): expected what a session log begins with") from None
