"""Recipes of both modes: two phases, in either order, and one phase for both."""

import dataclasses
from typing import ClassVar

from dual_precision.training.initialize import FitInputSteps, FitWeightSteps
from dual_precision.training.methods.modes import ENSEMBLE, Split, Together
from experiments.recipes.cyclic import in_cycles
from experiments.recipes.recipe import Phases, Recipe, fitted, phase, taken_over

BOTH = ("high", "low")
TEACHERS = ("high", ENSEMBLE)
_REFINE_RATE = 0.2  # learning rate inside of the cells of low, relative to learning_rate


def usual_distillation(split: bool) -> float:
    """Its share where nothing else is said: high teaches low where that costs nothing, both modes
    seeing every batch. On split batches it is asked for."""
    return 0.0 if split else 0.5


@dataclasses.dataclass(frozen=True)
class Joint(Recipe):
    """Both modes from the start, in one phase."""

    split: bool = True  # each mode has its own half of every batch

    def phases(self) -> Phases:
        start = (FitWeightSteps("low"), FitInputSteps("high"), FitInputSteps("low"))
        loss = Split(BOTH) if self.split else Together(BOTH)
        return (phase(self, "both", self.passes, BOTH, loss=loss, at_start=start),)


@dataclasses.dataclass(frozen=True)
class TwoPhase(Recipe):
    """Phase 1 trains high on the grid that low will share; phase 2 both (order=joint)."""

    split: bool = True  # in phase 2 each mode has its own half of every batch
    distillation: float | None = None  # share of the loss for soft labels of the teacher, phase 2
    teacher: str = "high"  # gives the soft labels: high to low; ensemble, the mean of both, to both
    first_share: float = 0.5  # of the passes, for phase 1
    cycles: int = 0  # of precision in phase 1, from low up to high; 0 trains high alone
    first_final: float = 0.7  # where phase 1 leaves its learning rate, of its peak
    second_rate: float = 0.7  # learning rate of phase 2, relative to learning_rate
    polish_share: float = 0.0  # of the passes, for a last phase inside of the cells of low
    polish_rate: float | None = None  # of that phase, relative to learning_rate; None is 0.2

    shares: ClassVar[tuple[str, ...]] = (
        *Recipe.shares,
        "distillation",
        "first_share",
        "first_final",
        "polish_share",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.teacher not in TEACHERS:
            raise ValueError(f"teacher={self.teacher!r}: expected one of {TEACHERS}")
        if not self.first_share:
            raise ValueError(
                f"first_share={self.first_share}: expected more than 0, for a phase of high comes"
                " first; both modes from the start are --mode=joint"
            )
        if self.first_share + self.polish_share >= 1:
            raise ValueError(
                f"first_share={self.first_share} and polish_share={self.polish_share}:"
                " expected a sum below 1, so that the phase of both modes has a share too"
            )
        if self.polish_rate is not None and not self.polish_share:
            raise ValueError(
                f"polish_rate={self.polish_rate} has no effect without a phase to polish: expected"
                " a polish_share above 0"
            )

    def phases(self) -> Phases:
        first, polish = self.passes * self.first_share, self.passes * self.polish_share
        high = phase(
            self,
            "high",
            first,
            ("high",),
            final=self.first_final,
            at_start=fitted("high", grid="low"),
        )
        if self.cycles:
            high = in_cycles(high, self.cycles)
        both = phase(
            self,
            "both",
            self.passes - first - polish,
            BOTH,
            rate=self.second_rate,
            warmup=0.0,  # it goes on where phase 1 left off; the rate of the steps starts anew
            loss=self._loss(),
            at_start=taken_over("low", "high"),
        )
        if not polish:
            return (high, both)
        rate = _REFINE_RATE if self.polish_rate is None else self.polish_rate
        last = phase(self, "polish", polish, ("high",), rate=rate, protect="low")
        return (high, both, last)

    def _loss(self) -> Split | Together:
        asked = self.distillation
        share = usual_distillation(self.split) if asked is None else asked
        usual = self.teacher == TEACHERS[0]
        teacher = None if usual and not share else self.teacher
        return (Split if self.split else Together)(BOTH, teacher, share)


@dataclasses.dataclass(frozen=True)
class Refine(Recipe):
    """Low first, then high inside of its cells: the logits of low stay, bit for bit."""

    low_share: float = 0.5  # of the passes, for phase 1
    refine_rate: float = _REFINE_RATE  # inside of the cells, relative to learning_rate

    shares: ClassVar[tuple[str, ...]] = (*Recipe.shares, "low_share")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.low_share < 1:
            alone = "low" if self.low_share else "high"
            raise ValueError(
                f"low_share={self.low_share}: expected more than 0 and less than 1, so that low and"
                f" high have a phase each; {alone} alone is --mode={alone}"
            )

    def phases(self) -> Phases:
        low = self.passes * self.low_share
        return (
            phase(self, "low", low, ("low",), at_start=fitted("low")),
            phase(
                self,
                "refine",
                self.passes - low,
                ("high",),
                rate=self.refine_rate,
                protect="low",
                at_start=taken_over("high", "low"),
            ),
        )
