"""How programs compare: ratios of their times, distances of their results, bars and verdicts."""

import dataclasses
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
from numpy.typing import ArrayLike

Times = Mapping[str, Sequence[float]]  # program -> milliseconds in each round


@dataclasses.dataclass(frozen=True)
class Bar:
    """How many times as fast as another a program is to be: at least, and as we want it.

    Attributes:
      what: the comparison, as a line names it.
    """

    what: str
    program: str
    other: str
    least: float
    goal: float


def speed_ratio(times: Times, program: str, other: str) -> float | None:
    """How many times as fast as `other`, median over rounds; None where one is missing."""
    if program not in times or other not in times:
        return None
    return float(np.median(np.divide(times[other], times[program])))


def median_and_range(times: Sequence[float], digits: int) -> str:
    """As in "2.0 (1.0..3.5)"."""
    low, middle, high = (f"{f(times):.{digits}f}" for f in (min, np.median, max))
    return f"{middle} ({low}..{high})"


def relative_difference(found: ArrayLike, exact: ArrayLike) -> float:
    """|found - exact| / |exact| of two arrays of one shape."""
    return float(np.linalg.norm(np.subtract(found, exact)) / np.linalg.norm(exact))


def judge_bars(bars: Sequence[Bar], times: Times, cold: Times = MappingProxyType({})) -> list[str]:
    """One line for every bar: its figure, a verdict, and the figure with cold caches, if any."""
    lines = []
    for bar in bars:
        ratio = speed_ratio(times, bar.program, bar.other)
        if ratio is None:
            lines.append(f"{bar.what}: not measured")
            continue
        verdict = verdict_of(ratio >= bar.least, ratio >= bar.goal)
        line = f"{bar.what}: {ratio:.2f} x (bar {bar.least}, goal {bar.goal}) {verdict}"
        evicted = speed_ratio(cold, bar.program, bar.other)
        lines.append(line if evicted is None else f"{line}; cold caches: {evicted:.2f} x")
    return lines


def verdict_of(passed: bool, goal: bool = False) -> str:
    """Of a bar that may have a goal beyond it."""
    return "PASS, goal met" if passed and goal else "PASS" if passed else "short"


def goal_verdict(met: bool) -> str:
    """Of what has a goal, and no bar to pass."""
    return "goal met" if met else "goal missed"
