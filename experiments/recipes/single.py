"""Recipes that train one mode: the twins, float, and the high twin that is cut afterwards."""

import dataclasses
from typing import ClassVar

from dual_precision.training.initialize import EstimateNorms
from experiments.recipes.recipe import Phases, Recipe, fitted, phase, taken_over


@dataclasses.dataclass(frozen=True)
class Single(Recipe):
    """One mode trained by itself, for half of the passes."""

    trains: ClassVar[str] = "high"

    def phases(self) -> Phases:
        start = fitted(self.trains)
        return (phase(self, self.trains, self.passes / 2, (self.trains,), at_start=start),)


class Float(Single):
    """The same network without quantizers."""

    trains = "float"
    reported = ("float",)


class Low(Single):
    """The low twin."""

    trains = "low"
    reported = ("low",)


class High(Single):
    """The high twin."""

    trains = "high"
    reported = ("high",)


@dataclasses.dataclass(frozen=True)
class Truncate(Recipe):
    """The high twin, cut to the width of low without training: what everybody tries first.

    Low takes over the normalisation of high; its input steps are fitted to one batch after the
    cut. With `reestimate`, its statistics are then estimated again on that many training batches:
    the fair baseline.
    """

    reestimate: int = 0  # training batches that the statistics of low are estimated on; 0 is none

    def phases(self) -> Phases:
        end = taken_over("low", "high")
        if self.reestimate:
            end = (*end, EstimateNorms("low", self.reestimate))
        half = self.passes / 2
        start = fitted("high")
        return (phase(self, "high", half, ("high",), at_start=start, at_end=end, reports=("low",)),)
