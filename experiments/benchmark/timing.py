"""The one way to time programs that are compared: rounds in shuffled order, so that a busy machine
slows all of them alike, and none always follows the same other one."""

import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import TypeVar

import jax
import numpy as np
from tqdm import tqdm

PAUSE, WARM = 0.05, 0.05  # seconds
Name = TypeVar("Name", bound=Hashable)
Result = TypeVar("Result")


def timed(run: Callable[[], Result]) -> tuple[float, Result]:
    """Milliseconds until the result of a call is computed, and the result."""
    start = time.perf_counter()
    result = jax.block_until_ready(run())
    return 1e3 * (time.perf_counter() - start), result


def timed_request(request: Callable[[], object], steps: int) -> float:
    """Median milliseconds of so many requests, one after the other.

    A pause comes first, as idle threads of the program before may spin for a while; then requests
    until the cores run as fast as they do under load.
    """
    time.sleep(PAUSE)
    start = time.perf_counter()
    while time.perf_counter() - start < WARM:
        request()
    found = []
    for _ in range(steps):
        start = time.perf_counter()
        request()
        found.append(1e3 * (time.perf_counter() - start))
    return float(np.median(found))


def shuffled_rounds(names: Sequence[Name], repeats: int, seed: int = 0) -> Iterator[list[Name]]:
    """Every name once a round, each round in an order of its own.

    >>> [sorted(order) for order in shuffled_rounds(["b", "a"], 2)]
    [['a', 'b'], ['a', 'b']]
    """
    rng = np.random.default_rng(seed)
    for _ in range(repeats):
        yield [names[i] for i in rng.permutation(len(names))]


def time_rounds(
    programs: Mapping[Name, Callable[[], float]], repeats: int
) -> dict[Name, list[float]]:
    """What every program says in each round.

    Args:
      programs: each call runs the program, and gives the milliseconds that one unit of it took.
    """
    found: dict[Name, list[float]] = {name: [] for name in programs}
    with tqdm(total=len(programs) * repeats, disable=None, leave=False) as bar:
        for order in shuffled_rounds([*programs], repeats):
            for name in order:
                bar.set_description(str(name))
                found[name].append(programs[name]())
                bar.update()
    return found
