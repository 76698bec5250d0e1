"""What the sub-commands of benchmark.py share: order of turns, ratios, verdicts, the machine."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

_CPU = Path("/proc/cpuinfo")
_CACHE = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def turns(names: Sequence[str], repeats: int, seed: int = 0) -> Iterator[list[str]]:
    """The order of the programs in each round, shuffled: none always follows the same other one.

    >>> [sorted(order) for order in turns(["b", "a"], 2)]
    [['a', 'b'], ['a', 'b']]
    """
    rng = np.random.default_rng(seed)
    for _ in range(repeats):
        yield [names[i] for i in rng.permutation(len(names))]


def speed_ratio(times: Mapping[str, Sequence[float]], name: str, other: str) -> float | None:
    """How many times as fast as `other`, median over rounds; None where one is missing."""
    if name not in times or other not in times:
        return None
    return float(np.median(np.divide(times[other], times[name])))


def verdict_of(passed: bool, goal: bool) -> str:
    """Of a bar that may have a goal beyond it."""
    return "PASS, goal met" if passed and goal else "PASS" if passed else "short"


def goal_verdict(met: bool) -> str:
    """Of what has a goal, and no bar to pass."""
    return "goal met" if met else "goal missed"


def machine() -> dict[str, Any]:
    """What is timed on, as the header and the JSON name it."""
    named = re.search(r"^model name\s*: (.*)$", _text(_CPU), re.MULTILINE)
    return {
        "device": f"{jax.local_device_count()} x {jax.devices()[0].device_kind}",
        "CPU": named[1].strip() if named else "unknown",
        "cores": os.cpu_count(),
        "jax": jax.__version__,
    }


def last_level_cache() -> int | None:
    """Bytes of the level 3 cache, where Linux tells."""
    found = re.fullmatch(r"(\d+)([KMG])", _text(_CACHE).strip())
    return int(found[1]) * _UNITS[found[2]] if found else None


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # another system than Linux
        return ""
