"""The cascade: one mode answers what it is sure of, the next mode the rest. NumPy alone.

    margin(z) = z's largest logit - its second largest

    first(x)                                            where margin(first(x)) >= threshold
    (then(x) + blend * first(x)) / (1 + blend)          elsewhere

and with `mirror`, for data whose mirrored image has the same label, a second look in between:

    mean = (first(x) + first(mirrored x)) / 2           where margin(first(x)) < 2 * threshold
    (then(x) + blend * mean) / (1 + blend)              and where margin(mean) < threshold too

Everything is decided by logits that are computed anyway. The threshold is calibrated on validation
data, whose labels choose it for a wanted accuracy and do not enter for a wanted cost.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

SECOND_LOOK = 2.0  # a mean of two looks is twice as sure: half of the margin is enough for it
THRESHOLDS = 501
# A wanted accuracy must hold on average over so many thresholds around: one alone may be lucky.
NEIGHBOURS = 25


@dataclasses.dataclass(frozen=True)
class Point:
    """What one threshold gives on labelled data.

    Attributes:
      threshold: in logits.
      accuracy: of the cascade, percent.
      difference: to the accuracy of the mode `then` alone, in points.
      error: standard error of that difference, in points; both answer the same rows.
      mirrored, escalated: share of the rows that take the second look, and that reach `then`.
      cost: average per image, in the unit of the costs given.
      relative: cost / cost of `then` alone.
    """

    threshold: float
    accuracy: float
    difference: float
    error: float
    mirrored: float
    escalated: float
    cost: float
    relative: float


@dataclasses.dataclass(frozen=True)
class Cascade:
    """A calibrated cascade of two modes; see the equations at the top of this file.

    Attributes:
      first, then: names of modes.
      threshold: in logits; 0 keeps every answer of `first`.
      mirror: take the second look.
      blend: weight of first's logits in the answer to an escalated row.
      expected: what the calibration measured.
    """

    first: str
    then: str
    threshold: float
    mirror: bool = False
    blend: float = 0.0
    expected: Point | None = None

    def __post_init__(self) -> None:
        for name in ("threshold", "blend"):
            value = getattr(self, name)
            if isinstance(value, bool) or not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name}={value!r}: expected a finite number, 0 or more")

    def to_json(self) -> dict[str, Any]:
        """JSON types, for a packed file's metadata."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Cascade":
        """Reads what `to_json` gave.

        Raises:
          ValueError: it is something else.
        """
        try:
            expected = value["expected"]
            return cls(**{**value, "expected": None if expected is None else Point(**expected)})
        except (TypeError, KeyError) as error:
            raise ValueError(
                f"a cascade of {value!r} ({error}): expected what Cascade.to_json gives;"
                " calibrate it again"
            ) from None


@dataclasses.dataclass(frozen=True, eq=False)
class Answer:
    """Answers of a cascade.

    Attributes:
      logits: float32 [N, classes].
      mirrored, escalated: bool [N], the rows that took the second look, and that reached `then`.
    """

    logits: np.ndarray
    mirrored: np.ndarray
    escalated: np.ndarray


def margin(logits: np.ndarray) -> np.ndarray:
    """Largest minus second largest: float [N, classes] -> [N]; at least two classes.

    >>> margin(np.array([[1.0, 4.0, 2.5]])).tolist()
    [1.5]
    """
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise ValueError(f"logits of shape {list(logits.shape)}: expected [N, 2 classes or more]")
    second, largest = np.partition(logits, logits.shape[1] - 2, axis=1)[:, -2:].T
    return largest - second


def mirrored(images: np.ndarray) -> np.ndarray:
    """[N, H, W, C], left and right exchanged."""
    return images[:, :, ::-1]


def answer(
    cascade: Cascade,
    logits: np.ndarray,
    again: Callable[[np.ndarray], np.ndarray],
    then: Callable[[np.ndarray], np.ndarray],
) -> Answer:
    """Runs the cascade from the first answers on.

    Args:
      logits: [N, classes] of the mode `first`.
      again: indices of rows -> first's logits of their mirrored images.
      then: indices of rows -> logits of the mode `then`.
    """
    logits = np.array(logits)
    sure = margin(logits)
    looked = np.zeros(len(logits), bool)
    if cascade.mirror:
        looked = sure < SECOND_LOOK * cascade.threshold
        rows = np.flatnonzero(looked)
        if rows.size:
            logits[rows] = (logits[rows] + again(rows)) / 2
            sure[rows] = margin(logits[rows])
    escalated = sure < cascade.threshold
    rows = np.flatnonzero(escalated)
    if rows.size:
        blend = np.float32(cascade.blend)
        logits[rows] = (then(rows) + blend * logits[rows]) / (1 + blend)
    return Answer(logits, looked, escalated)


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
      labels: int [N].
      costs: of one image.
      mirror: first's logits of the mirrored images, float [N, classes]; None is no second look.
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


def curve(evidence: Evidence, count: int = THRESHOLDS) -> list[Point]:
    """The cascade at `count` thresholds, from no row escalated to all of them."""
    margins = margin(evidence.first)
    mean, last = evidence.first, margins
    if evidence.mirror is not None:
        mean = (evidence.first + evidence.mirror) / 2
        last = margin(mean)
    thresholds = np.quantile(last, np.linspace(0, 1, count), method="lower")
    # The comparison is strict: the first keeps every row, the last keeps none.
    thresholds[0], thresholds[-1] = 0.0, np.nextafter(max(margins.max(), last.max()), np.inf)
    right = [
        logits.argmax(axis=1) == evidence.labels
        for logits in (evidence.first, mean, evidence.then + evidence.blend * mean, evidence.then)
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
        looked, escalated = np.zeros(len(margins), bool), last < threshold
    else:
        looked = margins < SECOND_LOOK * threshold
        escalated = looked & (last < threshold)
    own = np.where(escalated, blended, np.where(looked, mean, first))
    return measure(threshold, own, then, looked, escalated, evidence.costs)


def measure(
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


def choose(
    points: list[Point], *, accuracy: float | None = None, cost: float | None = None
) -> Point:
    """The point of a curve for a wanted accuracy or a wanted cost.

    Args:
      accuracy: difference to `then` alone, in points: the cheapest that reaches it, where the
        difference is averaged over the NEIGHBOURS thresholds around.
      cost: share of then's cost: the dearest within it.

    Raises:
      ValueError: both or neither are given; no threshold does it.
    """
    if (accuracy is None) == (cost is None):
        raise ValueError(f"accuracy={accuracy} and cost={cost}: expected one of them")
    if accuracy is None:
        within = [point for point in points if cost is None or point.relative <= cost]
        if not within:
            raise ValueError(
                f"a cost of {cost:g} of the second mode's: expected at least"
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
    """The cascade for a wanted accuracy or cost; arguments and errors as `choose`."""
    point = choose(curve(evidence), accuracy=accuracy, cost=cost)
    mirror = evidence.mirror is not None
    return Cascade(first, then, point.threshold, mirror, evidence.blend, point)
