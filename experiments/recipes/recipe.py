"""What every recipe has: a frozen record of its own fields, which gives its phases.

Costs are counted in passes: one pass is one mode run forward and backward over one epoch of
examples. Every recipe spends its `passes`, except those that train one mode, which spend half of
them each: two twins cost what one dual network costs.
"""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

from dual_precision.structure import Structure
from dual_precision.training.initialize import CopyNorms, FitInputSteps, FitWeightSteps
from dual_precision.training.methods.modes import Together
from dual_precision.training.optimizers import RATE, STEP_RATE, Adam, Sgd
from dual_precision.training.phases import Event, Phase, passes_of
from dual_precision.training.schedules import warmup_cosine

Phases = tuple[Phase, ...]
OPTIMIZERS: dict[str, type[Sgd | Adam]] = {"sgd": Sgd, "adam": Adam}
LARGEST = 1e300  # of a setting; an int may be too large for a float
MOST_PASSES = 1_000_000  # updates are counted in int32


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A way to train.

    Attributes:
      reported: the modes that it trains, or makes: the rows of its table.
      shares: fields that are a share, 0 to 1.
      starts_trained: whether it needs a network to start from (--init).
      defaults: of fields of a run that this recipe has other defaults for.
    """

    passes: float = 400.0  # over all phases; one is one mode over one epoch
    optimizer: str = "sgd"  # with Nesterov momentum 0.9, or adam, with decoupled weight decay
    learning_rate: float = 0.1  # peak
    step_learning_rate: float = 1e-2  # peak, relative change of quantizer steps per update
    weight_decay: float = 5e-4  # on kernels only
    warmup: float = 0.1  # share of each phase, but of one that goes on at the rate of the last
    label_smoothing: float = 0.0

    reported: ClassVar[tuple[str, ...]] = ("low", "high")
    shares: ClassVar[tuple[str, ...]] = ("warmup", "label_smoothing")
    starts_trained: ClassVar[bool] = False
    defaults: ClassVar[Mapping[str, Any]] = {}

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if isinstance(value, float | int) and not 0 <= value < LARGEST:
                raise ValueError(f"{name}={value!r:.99}: expected a finite number, 0 or more")
        if self.optimizer not in OPTIMIZERS:
            known = sorted(OPTIMIZERS)
            raise ValueError(f"optimizer {self.optimizer!r} is unknown: expected one of {known}")
        if not 0 < self.passes <= MOST_PASSES:
            raise ValueError(f"passes={self.passes}: expected more than 0, up to {MOST_PASSES:,}")
        for name in self.shares:
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name}={value}: expected 0 to 1")

    def phases(self) -> Phases:
        """The phases, in order."""
        raise NotImplementedError

    def check(self, structure: Structure) -> None:
        """Raises ValueError where the network has no place for what the recipe trains."""
        del structure

    def leaves(self, params: Any, structure: Structure) -> dict[str, Any]:
        """File name -> JSON that a finished run leaves in its folder, besides its results."""
        del params, structure
        return {}

    @property
    def cost(self) -> float:
        """Passes that a run takes: whole epochs of each phase, and so not always `passes`."""
        return sum(phase.epochs * phase.passes for phase in self.phases())


def phase(
    recipe: Recipe,
    name: str,
    passes: float,
    precisions: tuple[str, ...],
    *,
    rate: float = 1.0,
    warmup: float | None = None,
    final: float = 0.0,
    loss: Any = None,
    protect: str | None = None,
    **more: Any,
) -> Phase:
    """A phase with the rates of the recipe whose cost is about `passes`.

    Args:
      rate: peak of the learning rate, relative to the one of the recipe.
      final: where the cosine ends, relative to the peak.
      loss: None runs every mode on every batch.
      protect: a mode that must stay as it is, see `Sgd`.
    """
    loss = loss or Together(precisions)
    warmup = recipe.warmup if warmup is None else warmup
    peaks = {RATE: recipe.learning_rate * rate, STEP_RATE: recipe.step_learning_rate}
    return Phase(
        name,
        max(round(passes / passes_of(loss, precisions)), 1),
        precisions,
        loss,
        OPTIMIZERS[recipe.optimizer](weight_decay=recipe.weight_decay, protect=protect),
        schedules={
            field: partial(warmup_cosine, peak=peak, warmup=warmup, final=final)
            for field, peak in peaks.items()
        },
        **more,
    )


def fitted(mode: str, grid: str | None = None) -> tuple[Event, ...]:
    """Steps fitted to the network at hand: weights for the width of `grid`, inputs of `mode`."""
    if mode == "float":
        return ()
    return (FitWeightSteps(grid or mode), FitInputSteps(mode))


def taken_over(mode: str, source: str) -> tuple[Event, ...]:
    """`mode` starts from the normalisation of `source`, and fits its input steps to a batch."""
    return (CopyNorms(mode, source), FitInputSteps(mode))
