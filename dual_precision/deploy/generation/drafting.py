"""How many bytes to draft: what a round costs, and what it may bring."""

import dataclasses
from collections.abc import Sequence

CHOICES = (1, 2, 3, 7)  # drafts whose rows fill a tile: 2, 3, 4 and 8
_MEMORY = 0.9  # share of the old agreement that a round leaves
_TRY_AGAIN = 16  # plain bytes before a round is tried again


@dataclasses.dataclass(frozen=True)
class DraftCosts:
    """In units of one byte of the high mode alone.

    Attributes:
      low: one byte of the low mode.
      verify: one pass of 1, 2, ... 8 rows of the high mode. The defaults were measured for the
        products of a model of 135 M parameters.
    """

    low: float = 0.35
    verify: Sequence[float] = (1.0, 1.2, 1.5, 1.55, 1.82, 1.82, 1.82, 1.82)

    def gain(self, drafts: int, agreement: float) -> float:
        """Bytes per unit of time of a round, of which 1 is the high mode alone; each draft agrees
        with this probability, as long as those before do.

        >>> DraftCosts(low=0.25, verify=(1.0, 1.25)).gain(1, 0.5)
        1.0
        """
        expected = sum(agreement**i for i in range(drafts + 1))
        return expected / (drafts * self.low + self.verify[drafts])


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
