"""How many bytes to draft: what a round costs, and what it may bring."""

import dataclasses
from collections.abc import Sequence

import numpy as np

CHOICES = (1, 2, 3, 7)  # drafts whose rows fill a tile: 2, 3, 4 and 8
_MEMORY = 0.9  # share of the old agreement that a round leaves
_TRY_AGAIN = 8  # programs of plain bytes before a round is tried again


@dataclasses.dataclass(frozen=True)
class DraftCosts:
    """In units of one byte of the high mode alone.

    Attributes:
      low: one byte of the low mode in a round, where nothing is started or fetched between two.
      verify: one pass of 1, 2, ... 8 rows of the high mode.
    """

    low: float
    verify: Sequence[float]

    def gain(self, drafts: int, agreement: float) -> float:
        """Bytes per unit of time of a round, of which 1 is the high mode alone; each draft agrees
        with this probability, as long as those before do.

        >>> DraftCosts(low=0.25, verify=(1.0, 1.25)).gain(1, 0.5)
        1.0
        """
        expected = sum(agreement**i for i in range(drafts + 1))
        return expected / (drafts * self.low + self.verify[drafts])


# Weights on planes -> what `benchmark language` measured, of 2 and 8 planes, on two cores of a CPU
# with AVX512-VNNI. A round is a program of its own, plain bytes are eight in one: of small models a
# round costs most to start.
MEASURED = {
    820_000: DraftCosts(0.47, (1.0, 4.25, 4.67, 4.72, 4.46, 4.46, 4.46, 4.46)),
    12_700_000: DraftCosts(0.43, (1.0, 2.11, 2.61, 2.61, 3.01, 3.01, 3.01, 3.01)),
    114_000_000: DraftCosts(0.4, (1.0, 1.54, 1.78, 1.78, 1.95, 1.95, 1.95, 1.95)),
}


def costs_for(weights: int) -> DraftCosts:
    """Costs for a model of so many weights: between those that were measured, by the logarithm.

    >>> costs_for(1) == costs_for(min(MEASURED)) == MEASURED[min(MEASURED)]
    True
    """
    sizes = np.log([*MEASURED])
    at = np.log(max(weights, 1))

    def between(values: Sequence[float]) -> float:
        return float(np.interp(at, sizes, values))

    found = [*MEASURED.values()]
    verify = [between(own) for own in zip(*(costs.verify for costs in found), strict=True)]
    return DraftCosts(between([costs.low for costs in found]), tuple(verify))


class Adaptive:
    """The number of drafts that pays most by what agreed so far; 0 where none does."""

    def __init__(self, costs: DraftCosts, agreement: float = 0.8) -> None:
        self.costs = costs
        self.agreement = agreement
        self._plain = 0

    def drafts(self) -> int:
        """For the next round; a round is tried now and then where it does not seem to pay."""
        best = max(CHOICES, key=lambda g: self.costs.gain(g, self.agreement))
        if self.costs.gain(best, self.agreement) > 1.0:
            return best
        if self._plain >= _TRY_AGAIN:
            self._plain = 0
            return 1
        self._plain += 1
        return 0

    def saw(self, drafts: int, agreed: Sequence[int]) -> None:
        """Of so many drafts, each text kept this many."""
        for count in agreed:
            looked = min(drafts, count + 1)  # those behind the first mistake say nothing
            share = count / looked
            memory = _MEMORY**looked
            self.agreement = memory * self.agreement + (1 - memory) * share
