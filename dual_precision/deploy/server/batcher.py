"""Requests that wait, answered in batches: whoever is first is answered next, with those like it.

One batch is computed at a time, in a thread of its own. While it is, requests gather; when nothing
is computed, the first one waits `wait` seconds at most for others. What is asked for as "budget"
gets its mode when its batch begins, not when it came, so that a switch helps those who wait.
"""

import asyncio
import contextlib
import dataclasses
import math
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from dual_precision.deploy.server.engines import Answered, Engine
from dual_precision.deploy.server.uploads import Refused

BUDGET = "budget"


@dataclasses.dataclass(frozen=True)
class Reply:
    """An answer.

    Attributes:
      found: what the engine gave for these images.
      waited, computed: ms.
      batch: images that were computed together.
    """

    found: Answered
    waited: float
    computed: float
    batch: int


@dataclasses.dataclass
class _Waiting:
    images: np.ndarray
    asked: str
    reply: asyncio.Future
    since: float


class Batcher:
    """See the top of this file.

    Attributes:
      rows: images that wait.
      arrived: images that came since somebody set it to 0.
      seconds: mode -> seconds of an image, as measured.
    """

    def __init__(
        self,
        engine: Callable[[], Engine],
        choose: Callable[[str], str],
        seconds: dict[str, float],
        *,
        most_waiting: int,
        most_batch: int,
        wait: float,
    ) -> None:
        """Starts nothing; see `run`.

        Args:
          engine: that answers now.
          choose: what was asked for -> a mode of the engine, or "auto".
          seconds: mode -> seconds of an image, at first.
          most_waiting: images that may wait.
          most_batch: images that are computed together.
          wait: seconds that the first of a batch waits for others.
        """
        self._engine, self._choose, self.seconds = engine, choose, seconds
        self._most_waiting, self._most_batch, self._wait = most_waiting, most_batch, wait
        self._waiting: deque[_Waiting] = deque()
        self._came = asyncio.Event()
        self.rows = self.arrived = 0

    async def submit(self, images: np.ndarray, asked: str) -> Reply:
        """The answer, when it is there. Who cancels this is not computed for, if still in line.

        Raises:
          Refused: 429, too many images wait; 500, the engine failed.
        """
        if self.rows and self.rows + len(images) > self._most_waiting:
            again = {"Retry-After": str(max(1, math.ceil(self.backlog())))}
            raise Refused(429, f"{self.rows} images wait already: try again later", again)
        loop = asyncio.get_running_loop()
        entry = _Waiting(images, asked, loop.create_future(), time.perf_counter())
        self._waiting.append(entry)
        self.rows += len(images)
        self.arrived += len(images)
        self._came.set()
        return await entry.reply

    def backlog(self) -> float:
        """Seconds that what waits will take, in the slowest mode."""
        return self.rows * max(self.seconds.values(), default=0.0)

    def oldest(self, asked: str) -> float | None:
        """Ms that the first one has waited for, of those that asked so and whose client is there.

        None where there is none.
        """
        for entry in self._waiting:
            if entry.asked == asked and not entry.reply.done():
                return 1e3 * (time.perf_counter() - entry.since)
        return None

    async def run(self) -> None:
        """Answers until it is cancelled."""
        loop, busy = asyncio.get_running_loop(), False
        with ThreadPoolExecutor(1, thread_name_prefix="engine") as thread:
            while True:
                while not self._waiting:
                    busy = False
                    self._came.clear()
                    await self._came.wait()
                if not busy:
                    await self._gather()
                mode, entries = self._next()
                if entries:
                    busy = True
                    await self._answer(loop, thread, mode, entries)

    async def _gather(self) -> None:
        until = self._waiting[0].since + self._wait
        with contextlib.suppress(TimeoutError):
            while self.rows < self._most_batch and (left := until - time.perf_counter()) > 0:
                self._came.clear()
                await asyncio.wait_for(self._came.wait(), left)

    def _next(self) -> tuple[str, list[_Waiting]]:
        """The first one, and those of its mode that fit into a batch with it."""
        mode = self._choose(self._waiting[0].asked)
        taken: list[_Waiting] = []
        left, rows = deque[_Waiting](), 0
        for entry in self._waiting:
            count = len(entry.images)
            if entry.reply.done():  # its client has gone
                self.rows -= count
            elif self._choose(entry.asked) == mode and (
                not taken or rows + count <= self._most_batch
            ):
                taken.append(entry)
                rows += count
            else:
                left.append(entry)
        self._waiting = left
        self.rows -= rows
        return mode, taken

    async def _answer(
        self,
        loop: asyncio.AbstractEventLoop,
        thread: ThreadPoolExecutor,
        mode: str,
        entries: list[_Waiting],
    ) -> None:
        images = np.concatenate([entry.images for entry in entries])
        engine, start = self._engine(), time.perf_counter()
        try:
            found = await loop.run_in_executor(thread, engine.answer, images, mode)
        except Exception as error:
            for entry in entries:
                if not entry.reply.done():
                    entry.reply.set_exception(Refused(500, f"the network failed: {error}"))
            return
        taken = time.perf_counter() - start
        if len(images) >= 8:  # of few, most of the time is the call
            before = self.seconds.get(mode, taken / len(images))
            self.seconds[mode] = 0.8 * before + 0.2 * taken / len(images)
        first = 0
        for entry in entries:
            part = slice(first, first := first + len(entry.images))
            own = Answered(
                found.logits[part],
                mode,
                None if found.escalated is None else found.escalated[part],
                None if found.mirrored is None else found.mirrored[part],
            )
            if not entry.reply.done():
                waited = 1e3 * (start - entry.since)
                entry.reply.set_result(Reply(own, waited, 1e3 * taken, len(images)))
