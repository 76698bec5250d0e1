"""Requests whose right answers are known, asked of a Predictor by threads."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple, TypeVar

import numpy as np

from dual_precision.deploy import Predictor
from experiments.benchmark.timing import timed

T = TypeVar("T")


class Question(NamedTuple):
    """A request, and the answer of its mode where nobody else asks."""

    mode: str
    images: np.ndarray
    right: np.ndarray


class TimedAnswer(NamedTuple):
    """How a request went; it is right if every bit is that of the answer alone."""

    question: Question
    milliseconds: float
    right: bool


def questions_of(
    predictor: Predictor, requests: Sequence[np.ndarray], modes: Sequence[str]
) -> list[Question]:
    """Every request in every mode, answered now, one after the other."""
    pairs = [(mode, images) for mode in modes for images in requests]
    return [Question(mode, images, predictor.predict(images, mode)) for mode, images in pairs]


def asked(
    predictor: Predictor, questions: Sequence[Question], rng: np.random.Generator
) -> Iterator[TimedAnswer]:
    """Asks for ever, at random."""
    while True:
        question = questions[int(rng.integers(len(questions)))]
        taken, found = timed(partial(predictor.predict, question.images, question.mode))
        yield TimedAnswer(question, taken, found.tobytes() == question.right.tobytes())


def in_threads(
    work: Callable[[int], T], threads: int, meanwhile: Callable[[], object] = lambda: None
) -> list[T]:
    """What `work(thread)` gives in each thread, while `meanwhile` runs in this one.

    Raises what a thread raised.
    """
    with ThreadPoolExecutor(threads) as pool:
        workers = [pool.submit(work, thread) for thread in range(threads)]
        meanwhile()
    return [worker.result() for worker in workers]
