"""Cyclic precision training and its twin at a static width: one network, both ends usable."""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

from dual_precision.training.initialize import CopyNorms, EstimateNorms, KeepRanges
from dual_precision.training.methods.cyclic import CYCLE, CyclicLoss
from dual_precision.training.phases import Phase
from dual_precision.training.schedules import cosine_cycles
from experiments.recipes.recipe import Phases, Recipe, fitted, phase, taken_over

# The bounds of the paper's CIFAR experiments: 3 to 8 bits, and 8 bits for gradients.
BOUNDS: Mapping[str, Any] = {"low": "w3a3g8", "high": "w8a8g8"}


@dataclasses.dataclass(frozen=True)
class Static(Recipe):
    """High alone, at its own width: the twin of `cyclic`, for half of the passes.

    As with `truncate`, low is what its cut gives without training, its statistics estimated again.
    """

    reestimate: int = 20  # training batches that the statistics of low are estimated on

    defaults: ClassVar[Mapping[str, Any]] = BOUNDS

    def phases(self) -> Phases:
        own = phase(
            self,
            "static",
            self.passes / 2,
            ("high",),
            at_start=fitted("high"),
            at_end=(*taken_over("low", "high"), EstimateNorms("low", self.reestimate)),
            reports=("low",),
        )
        return (own,)


@dataclasses.dataclass(frozen=True)
class Cyclic(Recipe):
    """High, at widths that swing from those of low to its own, for half of the passes.

    Low, which the cycles pass through, then takes over normalisation and ranges; its statistics
    are estimated again, as those that were trained belong to all widths.
    """

    cycles: int = 32  # half cosines from low to high
    reestimate: int = 20  # training batches that the statistics of low are estimated on

    defaults: ClassVar[Mapping[str, Any]] = BOUNDS

    def phases(self) -> Phases:
        own = phase(
            self,
            "cyclic",
            self.passes / 2,
            ("high",),
            at_start=fitted("high"),
            at_end=(
                CopyNorms("low", "high"),
                KeepRanges("low", "high"),
                EstimateNorms("low", self.reestimate),
            ),
            reports=("low",),
        )
        return (in_cycles(own, self.cycles),)


def in_cycles(own: Phase, cycles: int) -> Phase:
    """A phase of high, whose widths swing up from those of low so many times."""
    cycle = {CYCLE: partial(cosine_cycles, cycles=cycles)}
    loss = CyclicLoss("high", "low")
    return dataclasses.replace(own, loss=loss, schedules={**own.schedules, **cycle})
