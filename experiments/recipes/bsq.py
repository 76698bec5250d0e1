"""Bit-level sparsity: which layer needs how many bits, found while they are trained."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from dual_precision.precision import MAX_BITS
from dual_precision.structure import Structure
from dual_precision.training.initialize import FitInputSteps
from dual_precision.training.methods.bsq import Adjust, BitLoss, BitOptimizer, ToBits, WriteKernels
from dual_precision.training.methods.trained_bits import (
    BIT_COSTS,
    BYTES,
    bits_found,
    widths_found,
    widths_within,
)
from experiments.recipes.recipe import Phases, Recipe, phase

BITS_FILE = "bits.json"


@dataclasses.dataclass(frozen=True)
class Bsq(Recipe):
    """The bits of a trained network (--init), each at a price, for half of the passes.

    Leaves bits.json: the bits that it found, layer by layer; widths.json, which --widths takes to
    train on with them; and widths_low.json for the mode low: by the same bits, at the cost of a
    uniform width, `low_bits`.
    """

    alpha: float = 5e-3  # price of a bit; the one hyper-parameter of the method
    # Times that bits are made exact and unused ones dropped, the last at the end; None is 4, or one
    # for each epoch where these are fewer.
    adjustments: int | None = None
    bits: int = 8  # of every weight at the start
    low_bits: float = 2.0  # per weight, in widths_low.json
    low_by: str = BYTES  # their cost: bytes, or bitops

    reported: ClassVar[tuple[str, ...]] = ("high",)
    starts_trained: ClassVar[bool] = True
    defaults: ClassVar[Mapping[str, Any]] = {"low": "w32a4", "high": "w32a4"}

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.low_bits <= MAX_BITS:
            raise ValueError(f"low_bits={self.low_bits}: expected 1 to {MAX_BITS}")
        if self.low_by not in BIT_COSTS:
            raise ValueError(f"low_by={self.low_by!r}: expected one of {list(BIT_COSTS)}")
        (own,) = self.phases()
        if self.adjustments is not None and not 1 <= self.adjustments <= own.epochs:
            raise ValueError(
                f"adjustments={self.adjustments} in {own.epochs} epochs: expected 1 to"
                f" {own.epochs}, for each comes after an epoch"
            )

    def phases(self) -> Phases:
        own = phase(
            self,
            "bsq",
            self.passes / 2,
            ("high",),
            loss=BitLoss("high", self.alpha),
            at_start=(FitInputSteps("high"), ToBits("high", self.bits)),
            at_end=(Adjust(),),
        )
        times = min(4, own.epochs) if self.adjustments is None else self.adjustments
        after = tuple(round(own.epochs * part / times) for part in range(1, times))
        adjust = ((1, Adjust(after)),) if after else ()
        events = ((1, WriteKernels()), *adjust)
        return (dataclasses.replace(own, optimizer=BitOptimizer(own.optimizer), events=events),)

    def leaves(self, params: Any, structure: Structure) -> dict[str, Any]:
        found = widths_found(params, structure, "high")
        low = widths_within(params, structure, "low", self.low_bits, self.low_by)
        bits = {"/".join(path): count for path, count in bits_found(params).items()}
        return {BITS_FILE: bits, "widths.json": found, "widths_low.json": low}
