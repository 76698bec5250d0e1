"""What is searched: for every layer the widths that it may have, and which may follow on which.

A space is a graph. Its blocks are (layer, alternative), an alternative is a text such as "w2a3".
Every alternative of a layer is connected to all of the next layer, except where an edit cut it.
A candidate is a path from the first layer to the last whose cost is within the bound.
"""

import dataclasses
import hashlib
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dual_precision.costs import mode_cost
from dual_precision.precision import parse
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
      fixed: BitOps of all other layers.
      cut: (index of a layer, its alternative, the one of the next layer) that may not follow.
      most: bound on the BitOps of a candidate; None is none.
    """

    mode: str
    layers: tuple[str, ...]
    alternatives: tuple[tuple[str, ...], ...]
    macs: tuple[int, ...]
    fixed: int
    cut: frozenset[tuple[int, str, str]] = frozenset()
    most: float | None = None

    def __post_init__(self) -> None:
        if not self.layers or max(map(len, self.alternatives)) < 2:
            raise SpaceError(
                f"a space of mode {self.mode!r} without alternatives, in {len(self.layers)} layers:"
                " expected a layer with two or more; add some"
            )
        for layer, own in zip(self.layers, self.alternatives, strict=True):
            if not own:
                raise SpaceError(f"layer {layer!r} has no alternative left, so that no path is")
            for text in own:
                try:
                    precision = parse(text)
                except ValueError as error:
                    raise SpaceError(f"layer {layer!r}: {error}") from None
                if None in (precision.weights, precision.activations) or precision.gradients:
                    raise SpaceError(f"{text!r} of layer {layer!r}: expected bits of both: w2a3")
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
        facts = [self.mode, self.layers, self.macs, self.fixed]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]

    def cost(self, candidate: Candidate) -> int:
        """BitOps per example: MACs * bits of weights * bits of activations, of all layers."""
        each = zip(self.macs, candidate, strict=True)
        return self.fixed + sum(macs * _area(text) for macs, text in each)

    def contains(self, candidate: Candidate) -> bool:
        """Whether it is a path of this space."""
        return (
            len(candidate) == len(self.layers)
            and all(t in own for t, own in zip(candidate, self.alternatives, strict=True))
            and not any(step in self.cut for step in self._steps(candidate))
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
            spent += self.macs[index] * _area(chosen)
        return tuple(path)

    def uniform(self) -> tuple[Candidate, ...]:
        """The paths with one alternative for all layers, the cheapest first."""
        common = [
            text for text in self.alternatives[0] if all(text in a for a in self.alternatives)
        ]
        paths = [(text,) * len(self.layers) for text in sorted(common, key=_area)]
        return tuple(path for path in paths if self.contains(path))

    def widths(self, candidate: Candidate) -> dict[str, dict[str, str]]:
        """What --widths takes: {layer: {mode: "w2a3"}}."""
        return {
            layer: {self.mode: text} for layer, text in zip(self.layers, candidate, strict=True)
        }

    def to_json(self) -> dict[str, Any]:
        """JSON types, which `space_from` reads."""
        return {**dataclasses.asdict(self), "cut": sorted(map(list, self.cut))}

    @property
    def _least(self) -> list[dict[str, float]]:
        """For every layer: alternative -> the least BitOps from there to the end; inf is no way."""
        after: dict[str, float] = {}
        found: list[dict[str, float]] = []
        for index in reversed(range(len(self.layers))):
            here = {}
            for text in self.alternatives[index]:
                ways = [c for t, c in after.items() if (index, text, t) not in self.cut]
                rest = min(ways, default=math.inf) if after else 0.0
                here[text] = self.macs[index] * _area(text) + rest
            found.insert(0, here)
            after = here
        return found

    def _leads_on(
        self, path: Sequence[str], text: str, spent: float, least: Sequence[Mapping[str, float]]
    ) -> bool:
        """Whether an alternative can follow on a path that has spent so much."""
        index = len(path)
        if path and (index - 1, path[-1], text) in self.cut:
            return False
        most = math.inf if self.most is None else self.most
        return not math.isinf(least[index][text]) and spent + least[index][text] <= most

    def _steps(self, candidate: Candidate) -> list[tuple[int, str, str]]:
        return [(index, a, b) for index, (a, b) in enumerate(itertools.pairwise(candidate))]


def _area(text: str) -> int:
    precision = parse(text)
    assert precision.weights is not None
    assert precision.activations is not None
    return precision.weights * precision.activations


def space_of(structure: Structure, mode: str, choices: Sequence[str]) -> Space:
    """All of `choices` for every free layer of a network.

    Raises:
      SpaceError: no layer is free, or there is nothing to choose.
    """
    names = free_layers(structure, mode)
    macs = tuple(structure.layers[tuple(name.split("/"))].macs for name in names)
    own = [structure.layers[tuple(name.split("/"))].table[mode] for name in names]
    pairs = zip(macs, own, strict=True)
    inside = sum(m * _area(str(dataclasses.replace(p, gradients=None))) for m, p in pairs)
    fixed = mode_cost(structure.layers, mode).bit_operations - inside
    each = tuple(dict.fromkeys(choices))
    return Space(mode, names, (each,) * len(names), macs, fixed)


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
        )
    except (KeyError, TypeError) as error:
        raise SpaceError(f"no space ({error!r}): expected what a session log begins with") from None
