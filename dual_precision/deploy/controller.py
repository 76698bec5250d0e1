"""On-line precision: which mode answers next, so that a budget is held. Pure: no clock, no thread.

    state = budget.start()
    state = budget.next(state, observation)  # at the end of every window of time
    modes[state.choice]                      # of modes from the cheapest to the dearest

Latency. Let p be the p95 of a window, T the target, b the band, and u_i the share of the time that
mode i would need for the load that came in:

    p > T, or u_choice > full                       -> one mode down; to the cheapest if p > 2 T
    p < (1 - b) T and u_(choice + 1) < roomy,
      in each of `patience` windows running         -> one mode up
    anything else, the band [(1 - b) T, T] with it  -> stay

A step up that is taken back within `patience` windows doubles the patience, up to `MOST_PATIENCE`;
one that holds halves it again. So a load that no mode but the cheapest can carry is tried ever more
rarely, and what p alone would say too late, as a queue has to grow first, u says at once.

Mean. Every image has T to spend. What is not spent is kept, up to `horizon` images of it; what was
spent too much is paid back, all of it, however many images a window had:

    credit <- min(credit + sum over the images of (T - cost), horizon T)
    paid = T + credit / (band * horizon), as the credit pays for band * horizon images of that cost
    credit >= band * horizon * T   -> up to the dearest mode of at most `paid`
    credit < 0                     -> down to the dearest mode of at most T
    anything else                  -> stay

so that the mean cost of n images is at most T (1 + horizon / n) and what the last window overdrew.
"""

import dataclasses
import math
from collections.abc import Sequence

MOST_PATIENCE = 64  # windows


@dataclasses.dataclass(frozen=True)
class Observation:
    """What happened in a window of time.

    Attributes:
      answered: images that were answered for the budget.
      p95: ms of their requests, waiting included; None where there were none.
      load: for every mode, cheapest first, the share of the time that it would need for all that
        came in; 1 is all of it.
      spent: cost of the images answered for the budget, in the unit of the target.
    """

    answered: int
    p95: float | None
    load: Sequence[float]
    spent: float = 0.0


@dataclasses.dataclass(frozen=True)
class ControlState:
    """What a budget remembers.

    Attributes:
      choice: index of the mode, 0 is the cheapest.
      calm: windows running that would allow a step up.
      patience: how many of them it takes.
      since: windows since the last step up.
      credit: what was not spent, of a mean.
    """

    choice: int
    calm: int = 0
    patience: int = 0
    since: int = MOST_PATIENCE + 1  # long ago
    credit: float = 0.0


@dataclasses.dataclass(frozen=True)
class LatencyBudget:
    """Holds the p95 of the requests; see the top of this file.

    Attributes:
      target: ms.
      modes: how many there are.
      band: share of the target below it within which nothing changes.
      patience: windows.
      roomy, full: loads of the next mode below which it may be taken, and of this one above which
        it is left.

    Raises:
      ValueError: a target, modes, band or patience that mean nothing.
    """

    target: float
    modes: int
    band: float = 0.4
    patience: int = 3
    roomy: float = 0.75
    full: float = 0.9

    def __post_init__(self) -> None:
        _check(self.target, self.modes, self.band)
        if not 1 <= self.patience <= MOST_PATIENCE or not 0 < self.roomy <= self.full:
            raise ValueError(
                f"patience {self.patience}, roomy {self.roomy:g}, full {self.full:g}: expected 1 to"
                f" {MOST_PATIENCE} windows, and 0 < roomy <= full"
            )

    def start(self) -> ControlState:
        """The dearest mode, until something happens."""
        return ControlState(self.modes - 1, patience=self.patience)

    def next(self, state: ControlState, seen: Observation) -> ControlState:
        """The state after a window."""
        since = min(state.since + 1, MOST_PATIENCE + 1)
        patience = state.patience
        if since == patience:  # the last step up has held
            patience = max(self.patience, patience // 2)
        slow = seen.p95 is not None and seen.p95 > self.target
        if state.choice > 0 and (slow or seen.load[state.choice] > self.full):
            too_slow = seen.p95 is not None and seen.p95 > 2 * self.target
            if since < patience:
                patience = min(2 * patience, MOST_PATIENCE)
            choice = 0 if too_slow else state.choice - 1
            return ControlState(choice, patience=patience)
        calm = state.calm + 1 if self._calm(state, seen) else 0
        if calm >= patience:
            return ControlState(state.choice + 1, patience=patience, since=0)
        return ControlState(state.choice, calm, patience, since)

    def _calm(self, state: ControlState, seen: Observation) -> bool:
        above = state.choice + 1
        fast = seen.p95 is None or seen.p95 < (1 - self.band) * self.target
        return above < self.modes and fast and seen.load[above] < self.roomy


@dataclasses.dataclass(frozen=True)
class MeanBudget:
    """Holds the mean cost of an image, BitOps or energy; see the top of this file.

    Attributes:
      target: cost of an image.
      costs: of the modes, ascending.
      horizon: images over which the mean is held.
      band: share of a horizon of credit from which a dearer mode is taken.

    Raises:
      ValueError: costs that descend; a target below the cheapest mode; as LatencyBudget.
    """

    target: float
    costs: tuple[float, ...]
    horizon: int = 256
    band: float = 0.1

    def __post_init__(self) -> None:
        _check(self.target, len(self.costs), self.band)
        if list(self.costs) != sorted(self.costs) or self.costs[0] < 0 or self.horizon < 1:
            raise ValueError(f"costs {self.costs}: expected them ascending, and a horizon from 1")
        if self.target < self.costs[0]:
            raise ValueError(
                f"a mean of {self.target:g}: expected at least {self.costs[0]:g}, which the"
                " cheapest mode costs"
            )

    def start(self) -> ControlState:
        """The dearest mode that costs no more than the target."""
        return ControlState(self._within(self.target))

    def next(self, state: ControlState, seen: Observation) -> ControlState:
        """The state after a window."""
        most = self.horizon * self.target
        credit = min(most, state.credit + seen.answered * self.target - seen.spent)
        choice = state.choice
        if credit < 0:
            choice = min(choice, self._within(self.target))
        elif credit >= self.band * most:
            choice = max(choice, self._within(self.target + credit / (self.band * self.horizon)))
        return ControlState(choice, credit=credit)

    def _within(self, cost: float) -> int:
        return max(i for i, own in enumerate(self.costs) if own <= cost)


Budget = LatencyBudget | MeanBudget


def check_target(target: float) -> None:
    """Raises ValueError where a target is not above 0, or not finite."""
    if not 0 < target < math.inf:
        raise ValueError(f"a target of {target:g}: expected a target above 0, and finite")


def _check(target: float, modes: int, band: float) -> None:
    check_target(target)
    if modes < 1 or not 0 < band < 1:
        raise ValueError(
            f"{modes} modes, a band of {band:g}: expected at least one mode, and a band between 0"
            " and 1"
        )
