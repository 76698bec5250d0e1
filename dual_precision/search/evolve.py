"""The search: which candidate comes next, and what the blocks are worth by those before.

The distance of a candidate c from the front is what the best one of its cost or less has more:

    d(c) = max {accuracy(e) : cost(e) <= cost(c)} - accuracy(c),   0 on the front

The fitness of a block b is the mean closeness of the n candidates that contain it, begun with one
of 1/2 (so that a block that nobody has sampled has 1/2, and all are equal at the start):

    fitness(b) = (1/2 + sum over c that contain b of exp(-d(c) / D)) / (1 + n)

D is the median distance of all candidates. Its chance in the next generation, among the
alternatives of its layer, is fitness^SHARPNESS / sum of fitness^SHARPNESS. Half of a generation is
drawn by these chances alone; the other half are children of two members of the front: each layer
from one or the other parent, and with chance 1 / layers drawn anew.

NAS-Navigator (Tyagi et al. 2020, arXiv 2009.13008) says that the fitness of a block comes from the
candidates that contain it and is its sampling probability; the formula is ours.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np

from dual_precision.search.space import Block, Candidate, Space, SpaceError, Weights

SHARPNESS = 4
_TRIES = 64  # draws of a candidate that nobody has evaluated
_MOST_LISTED = 20_000  # paths of a space that are gone through for the last ones


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """A candidate, its accuracy in percent, its BitOps."""

    candidate: Candidate
    accuracy: float
    cost: float


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a search goes on.

    Attributes:
      strategy: "evolve", or "random": layer by layer, the same chance for each alternative from
        which the path can go on. All paths have the same chance only where nothing is cut, skipped
        or beyond a bound.
      population: candidates of a generation, which one fitness serves.
      seed: of all that is drawn.
    """

    strategy: str = "evolve"
    population: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        if self.strategy not in ("evolve", "random"):
            raise SpaceError(f"strategy {self.strategy!r}: expected 'evolve' or 'random'")
        if self.population < 1 or not 0 <= self.seed < 2**32:
            raise SpaceError(
                f"population={self.population}, seed={self.seed}: expected 1 or more, and 0 to"
                " 2^32 - 1"
            )


def front_of(evaluated: Sequence[Evaluated]) -> list[Evaluated]:
    """Those that no other one is as cheap and as accurate as, or better; cheapest first."""
    front: list[Evaluated] = []
    for one in sorted(evaluated, key=lambda e: (e.cost, -e.accuracy)):
        if not front or one.accuracy > front[-1].accuracy:
            front.append(one)
    return front


def best_within(front: Sequence[Evaluated], cost: float) -> Evaluated | None:
    """The most accurate of a front whose cost is at most this; None where there is none."""
    inside = [one for one in front if one.cost <= cost]
    return inside[-1] if inside else None


def distances(evaluated: Sequence[Evaluated]) -> np.ndarray:
    """d of each, see the top of this file."""
    front = front_of(evaluated)
    costs = np.asarray([one.cost for one in front])
    accuracies = np.asarray([one.accuracy for one in front])
    at = np.searchsorted(costs, [one.cost for one in evaluated], side="right") - 1
    return accuracies[at] - np.asarray([one.accuracy for one in evaluated])


def fitness_of(space: Space, evaluated: Sequence[Evaluated]) -> dict[Block, tuple[float, int]]:
    """Block of the space -> (fitness, candidates that contain it)."""
    sums = dict.fromkeys(space.blocks, (0.5, 0))
    if evaluated:
        found = distances(evaluated)
        scale = float(np.median(found)) or 1.0
        for one, distance in zip(evaluated, found, strict=True):
            for block in zip(space.layers, one.candidate, strict=True):
                if block in sums:
                    total, count = sums[block]
                    sums[block] = total + math.exp(-float(distance) / scale), count + 1
    return {block: (total / (1 + count), count) for block, (total, count) in sums.items()}


def propose(space: Space, evaluated: Sequence[Evaluated], settings: Settings) -> Candidate | None:
    """The next candidate to evaluate; None where no new one is found.

    Of a space of at most 20,000 paths, all have been evaluated then. Of a larger one, 64 draws in
    a row gave candidates that have been: few are left, or a cut or a bound leaves few.

    It follows from its arguments alone. The first ones are those with one alternative for all
    layers. Fitness and front are those at the end of the last generation; the space is as it is.
    """
    seen = {one.candidate for one in evaluated}
    for candidate in space.uniform():
        if candidate not in seen:
            return candidate
    generator = np.random.default_rng([settings.seed, len(evaluated)])
    known = evaluated[: len(evaluated) - len(evaluated) % settings.population]
    chances = chances_of(space, known, settings.strategy)
    front = [e for e in front_of(known) if len(e.candidate) == len(space.layers)]
    for _ in range(_TRIES):
        bred = settings.strategy == "evolve" and front and generator.random() < 0.5
        weights = _child(front, chances, generator) if bred else chances
        candidate = space.draw(weights, generator)
        if candidate not in seen:
            return candidate
    if space.size <= _MOST_LISTED:
        for candidate in itertools.product(*space.alternatives):
            if candidate not in seen and space.contains(candidate):
                return candidate
    return None


def chances_of(space: Space, evaluated: Sequence[Evaluated], strategy: str) -> Weights:
    """For every layer: alternative -> its chance, not yet scaled to a sum of 1."""
    if strategy == "random":
        return [dict.fromkeys(own, 1.0) for own in space.alternatives]
    found = fitness_of(space, evaluated)
    pairs = zip(space.layers, space.alternatives, strict=True)
    return [{text: found[layer, text][0] ** SHARPNESS for text in own} for layer, own in pairs]


def _child(
    front: Sequence[Evaluated], chances: Weights, generator: np.random.Generator
) -> list[dict[str, float]]:
    """Weights that leave a child of two parents its genes, but for what is drawn anew."""
    first, second = (front[int(generator.integers(len(front)))].candidate for _ in range(2))
    child: list[dict[str, float]] = []
    for one, other, own in zip(first, second, chances, strict=True):
        text = one if generator.random() < 0.5 else other
        child.append(dict(own) if generator.random() < 1 / len(chances) else {text: 1.0})
    return child


def front_accuracy(evaluated: Sequence[Evaluated], cheapest: float, dearest: float) -> float:
    """Mean accuracy of the front over the logarithm of cost, between two costs.

    Where nothing is as cheap, it counts as 0. The larger the better: the area under the front,
    which one number compares two searches by.
    """
    if not 0 < cheapest < dearest:
        raise ValueError(f"costs from {cheapest} to {dearest}: expected 0 < first < second")
    steps = [one for one in front_of(evaluated) if one.cost < dearest]
    edges = [max(one.cost, cheapest) for one in steps] + [dearest]
    total = 0.0
    for one, start, end in zip(steps, edges, edges[1:], strict=False):
        total += one.accuracy * math.log(end / start)
    return total / math.log(dearest / cheapest)
