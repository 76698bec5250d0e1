"""The cascade: one mode answers what it is sure of, the next mode the rest. NumPy alone.

    margin(z) = largest logit of z - the second largest

    first(x)                                            where margin(first(x)) >= threshold
    (then(x) + blend * first(x)) / (1 + blend)          elsewhere

and with `mirror`, for data whose mirrored image has the same label, a second look in between:

    mean = (first(x) + first(mirrored x)) / 2           where margin(first(x)) < 2 * threshold
    (then(x) + blend * mean) / (1 + blend)              and where margin(mean) < threshold too

Everything is decided by logits that are computed anyway. The threshold is calibrated on validation
data, whose labels choose it for a wanted accuracy and do not enter for a wanted cost. A margin that
is no number reaches no threshold: such a row goes on, and `then` answers it alone.
"""

import dataclasses
import numbers
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

# A mean of two looks deserves more trust: half of the margin is enough for it. Of 1, 1.5, 2, 3 and
# 4, 2 and 3 were the best on the validation images of CIFAR-10, at 30 to 40 % of the BitOps of
# high.
SECOND_LOOK = 2.0


def _is_number(value: Any) -> bool:
    """Finite and real: an int of hundreds of digits is none, as no float holds it."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        return False
    try:
        return -1e300 < float(value) < 1e300
    except OverflowError:
        return False


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
      threshold: in logits; 0 keeps every answer of `first` that is of numbers.
      mirror: take the second look.
      blend: weight of the logits of `first` in the answer to an escalated row.
      expected: what the calibration measured.
    """

    first: str
    then: str
    threshold: float
    mirror: bool = False
    blend: float = 0.0
    expected: Point | None = None

    def __post_init__(self) -> None:
        for name in ("first", "then"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name}={getattr(self, name)!r}: expected the name of a mode")
        if not isinstance(self.mirror, bool | np.bool_):
            raise ValueError(f"mirror={self.mirror!r}: expected True or False")
        object.__setattr__(self, "mirror", bool(self.mirror))
        for name in ("threshold", "blend"):
            value = getattr(self, name)
            if not (_is_number(value) and value >= 0):
                raise ValueError(f"{name}={value!r}: expected a finite number, 0 or more")
            object.__setattr__(self, name, float(value))  # JSON has no numbers of NumPy

    def to_json(self) -> dict[str, Any]:
        """JSON types, for the metadata of a packed file."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Cascade":
        """Reads what `to_json` gave.

        Raises:
          ValueError: it is something else.
        """
        try:
            expected = value["expected"]
            if expected is not None:
                if not all(_is_number(number) for number in expected.values()):
                    raise TypeError("what is expected must be numbers")
                expected = Point(**expected)
            return cls(**{**value, "expected": expected})
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise ValueError(
                f"a cascade of {str(value)[:200]} ({str(error)[:200]}): expected what"
                " Cascade.to_json gives; calibrate it again"
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


def unsure(margins: np.ndarray, threshold: float) -> np.ndarray:
    """Rows that go on, bool [N]; NaN, which compares as neither smaller nor larger, does.

    >>> unsure(np.array([1.0, 2.0, np.nan]), 2.0).tolist()
    [True, False, True]
    """
    return ~(margins >= threshold)


def blended(then: np.ndarray, first: np.ndarray, blend: float) -> np.ndarray:
    """(then + blend * first) / (1 + blend), [N, classes]; `then` where `first` is not finite."""
    mean = (then + np.float32(blend) * first) / np.float32(1 + blend)
    return np.where(np.isfinite(first).all(axis=1, keepdims=True), mean, then)


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
      again: indices of rows -> logits of `first` of their mirrored images.
      then: indices of rows -> logits of the mode `then`.
    """
    logits = np.array(logits)
    sure = margin(logits)
    looked = np.zeros(len(logits), bool)
    if cascade.mirror:
        looked = unsure(sure, SECOND_LOOK * cascade.threshold)
        rows = np.flatnonzero(looked)
        if rows.size:
            logits[rows] = (logits[rows] + again(rows)) / 2
            sure[rows] = margin(logits[rows])
    escalated = unsure(sure, cascade.threshold)
    rows = np.flatnonzero(escalated)
    if rows.size:
        logits[rows] = blended(then(rows), logits[rows], cascade.blend)
    return Answer(logits, looked, escalated)
