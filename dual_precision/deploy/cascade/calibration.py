"""Chooses the threshold of a cascade on labelled data; the rule itself is in rule.py. NumPy."""

import dataclasses
import math

import numpy as np

from dual_precision.deploy.cascade.rule import (
    SECOND_LOOK,
    Cascade,
    Point,
    blended,
    margin,
    unsure,
)

THRESHOLDS = 501
# A wanted accuracy must hold on average over so many thresholds around: one alone may be lucky.
NEIGHBOURS = 25


@dataclasses.dataclass(frozen=True)
class Costs:
    """What an image costs, in any unit.

    Attributes:
      first, then: in each mode alone.
      reused: what `then` is spared of its cost where `first` ran on the same image before.
    """

    first: float
    then: float
    reused: float = 0.0


@dataclasses.dataclass(frozen=True, eq=False)
class Evidence:
    """Logits of both modes on labelled data.

    Attributes:
      first, then: float [N, classes].
      labels: int [N], each of a class.
      costs: of one image.
      mirror: logits of `first` of the mirrored images, float [N, classes]; None is no second look.
      blend: see Cascade.
    """

    first: np.ndarray
    then: np.ndarray
    labels: np.ndarray
    costs: Costs
    mirror: np.ndarray | None = None
    blend: float = 0.0

    def __post_init__(self) -> None:
        looks = (self.first, self.then, self.first if self.mirror is None else self.mirror)
        shapes = {look.shape for look in looks}
        if len(shapes) != 1 or self.labels.shape != self.first.shape[:1] or not len(self.labels):
            raise ValueError(
                f"logits of shapes {sorted(shapes)} and {self.labels.shape} labels: expected the"
                " same [N, classes] of all, and [N] labels, N at least 1"
            )
        classes = self.first.shape[-1]
        whole = np.issubdtype(self.labels.dtype, np.integer)
        if not whole or self.labels.min() < 0 or self.labels.max() >= classes:
            raise ValueError(
                f"labels {self.labels.dtype} from {self.labels.min()} to {self.labels.max()}:"
                f" expected whole numbers from 0 to {classes - 1}, as the logits have {classes}"
                " classes"
            )


def curve(evidence: Evidence, count: int = THRESHOLDS) -> list[Point]:
    """The cascade at `count` thresholds, from no row escalated to all of them.

    Rows whose margin is not finite set no threshold; those without a number are always escalated.

    Raises:
      ValueError: no row has a finite margin.
    """
    margins = margin(evidence.first)
    mean, last = evidence.first, margins
    if evidence.mirror is not None:
        mean = (evidence.first + evidence.mirror) / 2
        last = margin(mean)
    known = last[np.isfinite(last)]
    if not known.size:
        raise ValueError(
            "logits of the first mode without one finite margin: expected numbers; look for a"
            " diverged training"
        )
    thresholds = np.quantile(known, np.linspace(0, 1, count), method="lower")
    # The comparison is strict: the first keeps every row, the last keeps none.
    largest = max(own[np.isfinite(own)].max() for own in (margins, last))
    thresholds[0], thresholds[-1] = 0.0, np.nextafter(largest, np.inf)
    right = [
        logits.argmax(axis=1) == evidence.labels
        for logits in (
            evidence.first,
            mean,
            blended(evidence.then, mean, evidence.blend),
            evidence.then,
        )
    ]
    return [_point(evidence, float(t), margins, last, right) for t in thresholds]


def _point(
    evidence: Evidence,
    threshold: float,
    margins: np.ndarray,
    last: np.ndarray,
    right: list[np.ndarray],
) -> Point:
    first, mean, blended, then = right
    if evidence.mirror is None:
        looked, escalated = np.zeros(len(margins), bool), unsure(last, threshold)
    else:
        looked = unsure(margins, SECOND_LOOK * threshold)
        escalated = looked & unsure(last, threshold)
    own = np.where(escalated, blended, np.where(looked, mean, first))
    return measure_point(threshold, own, then, looked, escalated, evidence.costs)


def measure_point(
    threshold: float,
    right: np.ndarray,
    then_right: np.ndarray,
    looked: np.ndarray,
    escalated: np.ndarray,
    costs: Costs,
) -> Point:
    """The figures of a cascade on labelled rows.

    Args:
      right, then_right: bool [N], rows that the cascade, and `then` alone, answer rightly.
      looked, escalated: bool [N], see Answer.
    """
    gain = 100.0 * (right.astype(float) - then_right)
    cost = costs.first * (1 + looked.mean()) + (costs.then - costs.reused) * escalated.mean()
    return Point(
        threshold=threshold,
        accuracy=100 * float(right.mean()),
        difference=float(gain.mean()),
        error=float(gain.std() / math.sqrt(len(gain))),
        mirrored=float(looked.mean()),
        escalated=float(escalated.mean()),
        cost=float(cost),
        relative=float(cost / costs.then),
    )


def choose_point(
    points: list[Point], *, accuracy: float | None = None, cost: float | None = None
) -> Point:
    """The point of a curve for a wanted accuracy or a wanted cost.

    Args:
      accuracy: difference to `then` alone, in points: the cheapest that reaches it, where the
        difference is averaged over the NEIGHBOURS thresholds around.
      cost: share of the cost of `then`: the dearest within it.

    Raises:
      ValueError: both or neither are given; no threshold does it.
    """
    if (accuracy is None) == (cost is None):
        raise ValueError(f"accuracy={accuracy} and cost={cost}: expected one of them")
    if accuracy is not None and not math.isfinite(accuracy):
        raise ValueError(f"accuracy={accuracy}: expected a finite number of points")
    if accuracy is None:
        within = [point for point in points if cost is None or point.relative <= cost]
        if not within:
            raise ValueError(
                f"a cost of {cost:g}, where the second mode alone takes 1: expected at least"
                f" {points[0].relative:.3g}, which the first mode takes on every image"
            )
        return within[-1]
    differences = np.array([point.difference for point in points])
    window = np.ones(min(NEIGHBOURS, len(points)))
    around = np.convolve(differences, window, "same") / np.convolve(
        np.ones(len(points)), window, "same"
    )
    reached = np.flatnonzero(around >= accuracy)
    if not reached.size:
        raise ValueError(
            f"an accuracy of {accuracy:+g} points to the second mode: the most that this cascade"
            f" reaches on these data is {around.max():+.2f}; ask for less"
        )
    return points[reached[0]]


def calibrate(
    evidence: Evidence,
    first: str = "low",
    then: str = "high",
    *,
    accuracy: float | None = None,
    cost: float | None = None,
) -> Cascade:
    """The cascade for a wanted accuracy or cost; arguments and errors as `choose_point`."""
    point = choose_point(curve(evidence), accuracy=accuracy, cost=cost)
    mirror = evidence.mirror is not None
    return Cascade(first, then, point.threshold, mirror, evidence.blend, point)
