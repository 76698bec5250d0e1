"""Switching modes under load: threads that ask a Predictor for either mode, and check the answers.

Part of `python -m experiments.benchmark inference`.
"""

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dual_precision.deploy import Predictor
from experiments.benchmark.comparison import goal_verdict, verdict_of
from experiments.benchmark.questions import asked, in_threads, questions_of
from experiments.benchmark.timing import timed

THREADS = 4
IMAGES = 16  # different ones, whose right answers are known
MEMORY_BAR = 1.1
SWITCH_BAR = 1.0  # ms
TAIL_GOAL = 1.05
_COMPILED = "/jax/core/compile/backend_compile_duration"


@dataclasses.dataclass(frozen=True)
class Load:
    """What a load found.

    Attributes:
      requests, wrong, compilations: counts.
      same, other: ms of the requests whose thread had asked for the same mode, or the other one.
    """

    requests: int
    wrong: int
    compilations: int
    same: np.ndarray
    other: np.ndarray


@contextlib.contextmanager
def counted_compilations() -> Iterator[list[str]]:
    """A list that grows by one with every program that XLA compiles, in any thread."""
    found: list[str] = []
    counting = True

    def listen(event: str, *_: Any, **__: Any) -> None:
        if counting and event == _COMPILED:
            found.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        counting = False  # jax before 0.9 cannot take a listener back


def under_load(predictor: Predictor, requests: int, threads: int = THREADS) -> Load:
    """`requests` requests of one image, by threads that switch modes at random.

    An answer is wrong if any bit differs from the one that the mode gave alone.
    """
    rng = np.random.default_rng(0)
    shape = (IMAGES, 1, *predictor.info.image_shape)
    images = rng.integers(0, 256, shape, dtype=np.uint8)
    questions = questions_of(predictor, [*images], predictor.precisions)
    per_thread = [requests // threads + (i < requests % threads) for i in range(threads)]

    def ask(thread: int) -> list[tuple[bool, float, bool]]:
        rows, before = [], None
        replies = asked(predictor, questions, np.random.default_rng(thread))
        for question, taken, good in itertools.islice(replies, per_thread[thread]):
            rows.append((question.mode != before, taken, good))
            before = question.mode
        return rows

    with counted_compilations() as compiled:
        rows = in_threads(ask, threads)
    flat = [row for of_thread in rows for row in of_thread[1:]]  # its first follows none
    load = Load(
        requests=sum(map(len, rows)),
        wrong=sum(not good for of_thread in rows for *_, good in of_thread),
        compilations=len(compiled),
        same=np.array([taken for switched, taken, _ in flat if not switched]),
        other=np.array([taken for switched, taken, _ in flat if switched]),
    )
    assert load.requests == requests
    return load


def switch_cost(predictor: Predictor, repeats: int = 300) -> float:
    """Ms that a request of one image takes longer, where each asks for another mode; medians."""
    image = np.zeros((1, *predictor.info.image_shape), np.uint8)
    modes = predictor.precisions
    alternating = [modes[i % len(modes)] for i in range(repeats)]
    taken = {}
    for name, order in (("blocks", sorted(alternating)), ("alternating", alternating)):
        times: dict[str, list[float]] = {mode: [] for mode in modes}
        for mode in order:
            times[mode].append(timed(partial(predictor.predict, image, mode))[0])
        taken[name] = np.mean([np.median(of_mode) for of_mode in times.values()])
    return float(taken["alternating"] - taken["blocks"])


def measure_switching(path: Path, requests: int) -> list[str]:
    """Loads a packed file both ways; a line for each bar."""
    print(f"\nswitching modes of {path}, {THREADS} threads, {requests:,} requests", flush=True)
    predictor = Predictor(path, batch_sizes=(1,))
    high = Predictor(path, batch_sizes=(1,), precisions=predictor.precisions[-1:])
    load = under_load(predictor, requests)
    cost = switch_cost(predictor)
    memory = predictor.bytes / high.bytes
    tails = [float(np.percentile(taken, 99)) for taken in (load.same, load.other)]
    tail = tails[1] / tails[0]
    return [
        f"{load.requests:,} requests, compilations: {load.compilations} (bar 0)"
        f" {verdict_of(load.compilations == 0)}",
        f"wrong answers: {load.wrong} (bar 0) {verdict_of(load.wrong == 0)}",
        f"99th percentile of a switch {tails[1]:.2f} ms, of no switch {tails[0]:.2f} ms:"
        f" {tail:.2f} x (goal {TAIL_GOAL}) {goal_verdict(tail <= TAIL_GOAL)}",
        f"one request after the other, a switch costs {cost:+.3f} ms (bar {SWITCH_BAR:g})"
        f" {verdict_of(cost < SWITCH_BAR)}",
        f"arrays held of both modes: {predictor.bytes:,} bytes, of high alone {high.bytes:,}:"
        f" {memory:.3f} x (bar {MEMORY_BAR}) {verdict_of(memory <= MEMORY_BAR)}",
    ]
