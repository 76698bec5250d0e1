"""How many bytes to draft: what a round costs, and what it may bring."""

import dataclasses
from collections.abc import Sequence

import numpy as np

CHOICES = (1, 2, 3, 7)  # drafts whose rows fill a tile: 2, 3, 4 and 8
_MEMORY = 0.9  # share of the old agreement that a round leaves
_TRY_AGAIN = 8  # programs of plain bytes before drafts are tried again


@dataclasses.dataclass(frozen=True)
class DraftCosts:
    """In units of one byte of the high mode alone, in a program of such bytes.

    Attributes:
      rounds: a round of 1, 2, ... 7 drafts, in a program of rounds.
    """

    rounds: Sequence[float]

    def __post_init__(self) -> None:
        if len(self.rounds) != max(CHOICES):
            raise ValueError(
                f"costs of {len(self.rounds)} rounds: expected {max(CHOICES)}, of 1 draft, 2, ..."
            )

    def gain(self, drafts: int, agreement: float) -> float:
        """Bytes per unit of time of a round, of which 1 is the high mode alone; each draft agrees
        with this probability, as long as those before do.

        >>> DraftCosts(rounds=(1.5, 2, 3, 4, 5, 6, 7)).gain(1, 0.5)
        1.0
        """
        expected = sum(agreement**i for i in range(drafts + 1))
        return expected / self.rounds[drafts - 1]


# Weights on planes -> what `benchmark language` measured, of 2 and 8 planes, on two cores of a CPU
# with AVX512-VNNI.
MEASURED = {
    820_000: DraftCosts((1.75, 2.3, 2.9, 3.72, 4.25, 4.63, 5.16)),
    12_700_000: DraftCosts((1.69, 2.19, 2.61, 3.38, 3.86, 4.34, 4.63)),
    114_000_000: DraftCosts((1.6, 2.47, 2.64, 3.26, 3.95, 3.85, 4.58)),
}


def costs_for(weights: int) -> DraftCosts:
    """Costs for a model of so many weights: between those that were measured, by the logarithm.

    >>> costs_for(1) == costs_for(min(MEASURED)) == MEASURED[min(MEASURED)]
    True
    """
    sizes, at = np.log([*MEASURED]), np.log(max(weights, 1))
    found = zip(*(costs.rounds for costs in MEASURED.values()), strict=True)
    return DraftCosts(tuple(float(np.interp(at, sizes, own)) for own in found))


class Adaptive:
    """The number of drafts that pays most by what agreed so far; 0 where none does."""

    def __init__(self, costs: DraftCosts, agreement: float = 0.8) -> None:
        self.costs = costs
        self.agreement = agreement
        self.tries = True  # nothing was seen yet, or drafts do not seem to pay: one round is enough
        self._plain = 0

    def drafts(self) -> int:
        """For the next program; drafts are tried now and then where they do not seem to pay."""
        best = max(CHOICES, key=lambda g: self.costs.gain(g, self.agreement))
        if self.costs.gain(best, self.agreement) > 1.0:
            return best
        self.tries = True
        if self._plain >= _TRY_AGAIN:
            self._plain = 0
            return 1
        self._plain += 1
        return 0

    def saw(self, drafts: int, agreed: Sequence[int]) -> None:
        """In one round of so many drafts, each text kept this many."""
        self.tries = False
        for count in agreed:
            looked = min(drafts, count + 1)  # those behind the first mistake say nothing
            share = count / looked
            memory = _MEMORY**looked
            self.agreement = memory * self.agreement + (1 - memory) * share
