"""What a server is told when it starts: the budget that it holds, what it lets a client do."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from dual_precision.deploy.controller import Budget, LatencyBudget, MeanBudget, check_target
from dual_precision.deploy.server.engines import Priced

_KINDS = ("latency", "bit_operations", "energy")


@dataclasses.dataclass(frozen=True)
class BudgetSettings:
    """What a budget holds.

    Attributes:
      kind: latency, the p95 in ms; or bit_operations or energy (nJ), the mean of an image.
      target: in that unit.

    Raises:
      ValueError: another kind; a target that is not above 0 and finite.
    """

    kind: str = "latency"
    target: float = 50.0

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise ValueError(f"a budget of {self.kind!r}: expected one of {', '.join(_KINDS)}")
        check_target(self.target)

    @classmethod
    def parse(cls, text: str) -> "BudgetSettings":
        """Of "latency:50".

        Raises:
          ValueError: something else.
        """
        kind, _, number = text.partition(":")
        try:
            return cls(kind, float(number))
        except ValueError as error:
            raise ValueError(
                f"a budget {text!r} ({error}): expected one such as latency:50"
            ) from None

    def ranked(self, priced: Sequence[Priced]) -> list[Priced]:
        """Cheapest first by what the budget counts; by BitOps where that is latency.

        Not the order of the file, which is by weight bits: w4a2 has fewer BitOps than w2a8.
        """
        counted = "bit_operations" if self.kind == "latency" else self.kind
        return sorted(priced, key=lambda own: float(getattr(own, counted)))

    def choices(self, priced: Sequence[Priced]) -> list[Priced]:
        """The trained ones, ranked: the budget takes no other mode by itself.

        Raises:
          ValueError: none of them was trained.
        """
        found = [own for own in self.ranked(priced) if own.trained]
        if not found:
            raise ValueError(
                f"modes {[own.name for own in priced]}, none of which was trained: expected a"
                " trained one that the budget can choose; load the trained modes of the file"
            )
        return found

    def budget_of(self, priced: Sequence[Priced]) -> Budget:
        """The controller of `choices`.

        Raises:
          ValueError: a mean below what the cheapest of them costs; as `choices`.
        """
        found = self.choices(priced)
        if self.kind == "latency":
            return LatencyBudget(self.target, len(found))
        costs = tuple(float(getattr(own, self.kind)) for own in found)
        return MeanBudget(self.target, costs)


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a server lets a client do.

    Attributes:
      rows: images of a request.
      waiting: images that may wait, of all clients.
      wait: seconds that a request waits for others to share its batch.
      read: seconds that a client has to send its request.
      window: seconds between two decisions of the budget.
    """

    rows: int = 256
    waiting: int = 2048
    wait: float = 0.002
    read: float = 10.0
    window: float = 0.1

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if not value > 0:
                raise ValueError(f"{name}={value}: expected a number above 0")

    def bytes(self, shape: tuple[int, ...]) -> int:
        """The largest body of a request: its images, and room for a header."""
        return self.rows * int(np.prod(shape)) + (1 << 16)
