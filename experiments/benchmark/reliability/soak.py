"""Requests for hours: every answer has the bits of its mode alone, and memory stays flat.

    python -m experiments.benchmark soak --minutes=10 --threads=8

Threads ask a Predictor of a packed file for all of its modes, and for "auto" where the file has a
cascade, with requests of 1 to 150 images. Every answer is compared with what the same request gave
before, alone. The memory of the process is looked at all the while: in the last third of the time
it must not be more than 5 %, or 32 MiB where that is more, above that of the first third.
"""

import collections
import dataclasses
import math
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dual_precision.deploy import Predictor
from dual_precision.deploy.predictor import AUTO
from experiments.benchmark.comparison import verdict_of
from experiments.benchmark.machine import process_memory
from experiments.benchmark.questions import asked, in_threads, questions_of
from experiments.benchmark.switching import counted_compilations

BATCHES = (1, 8, 64)
ROWS = (1, 2, 5, 8, 40, 64, 150)  # of the requests; each runs in other programs than the rest
GROWTH, GROWN_BYTES = 0.05, 32 << 20
_NONE: collections.Counter[str] = collections.Counter()
SAMPLES, SECONDS = 30, 1.0  # of memory: at least so many, and at least one in so many seconds


@dataclasses.dataclass(frozen=True)
class Soaked:
    """What was found.

    Attributes:
      answers: mode -> requests.
      wrong: mode -> answers with a bit that differs from the answer alone.
      images, compilations: counts.
      memory: bytes of the process, in the order of time.
    """

    answers: collections.Counter[str]
    wrong: collections.Counter[str]
    images: int
    compilations: int
    memory: Sequence[int]

    @property
    def thirds(self) -> tuple[float, float]:
        """Mean memory of the first and of the last third of the time."""
        part = max(1, len(self.memory) // 3)
        return float(np.mean(self.memory[:part])), float(np.mean(self.memory[-part:]))

    @property
    def flat(self) -> bool:
        """Whether memory stayed within what is allowed."""
        first, last = self.thirds
        return last - first <= max(GROWTH * first, GROWN_BYTES)


def soak(predictor: Predictor, seconds: float, threads: int) -> Soaked:
    """Threads that ask for so long, each for what it likes."""
    rng = np.random.default_rng(0)
    shape = predictor.info.image_shape
    requests = [rng.integers(0, 256, (rows, *shape), dtype=np.uint8) for rows in ROWS]
    modes = [*predictor.precisions, *([AUTO] if predictor.cascade else [])]
    questions = questions_of(predictor, requests, modes)
    over = threading.Event()
    memory: list[int] = []

    def ask(thread: int) -> list[collections.Counter[str]]:
        answers, wrong, images = (collections.Counter[str]() for _ in range(3))
        try:
            for reply in asked(predictor, questions, np.random.default_rng(1 + thread)):
                mode = reply.question.mode
                answers[mode] += 1
                wrong[mode] += not reply.right
                images[mode] += len(reply.question.images)
                if over.is_set():
                    break
        finally:
            over.set()  # one that fails ends the others
        return [answers, wrong, images]

    def watch() -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and not over.wait(min(SECONDS, seconds / SAMPLES)):
            memory.append(process_memory())
        over.set()

    with counted_compilations() as compiled:
        counts = in_threads(ask, threads, watch)
    answers, wrong, images = (sum(each, _NONE) for each in zip(*counts, strict=True))
    return Soaked(answers, wrong, images.total(), len(compiled), memory)


def measure_soak(*, network: str, minutes: float = 10.0, threads: int = 8) -> None:
    """The sub-command `soak`; its arguments are the flags.

    Raises:
      ValueError: no time to soak for; an answer was wrong, something was compiled, or memory grew.
    """
    if not 0 < minutes < math.inf:
        raise ValueError(f"minutes={minutes:g}: expected a number above 0, and an end")
    predictor = Predictor(Path(network), BATCHES)
    print(f"{network}: {threads} threads, {minutes:g} minutes", flush=True)
    found = soak(predictor, 60 * minutes, threads)
    first, last = (mean / 2**20 for mean in found.thirds)
    for mode, count in sorted(found.answers.items()):
        print(f"{mode}: {count:,} requests, {found.wrong[mode]} wrong")
    print(f"{found.images:,} images, {found.compilations} compilations")
    print(
        f"memory: {first:.0f} MiB in the first third, {last:.0f} MiB in the last"
        f" ({len(found.memory)} samples) {verdict_of(found.flat)}"
    )
    if found.wrong.total() or found.compilations or not found.flat:
        raise ValueError(
            f"{found.wrong.total()} wrong answers, {found.compilations} compilations, memory from"
            f" {first:.0f} to {last:.0f} MiB: expected 0, 0 and flat"
        )
