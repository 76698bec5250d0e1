"""A network in service: the engine there is now, the line before it, the budget, what happened."""

import asyncio
import dataclasses
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np

from dual_precision.deploy.controller import Budget, ControlState, Observation
from dual_precision.deploy.predictor import AUTO
from dual_precision.deploy.server.batcher import BUDGET, Batcher, Reply
from dual_precision.deploy.server.engines import Engine, Priced, seconds_of_an_image
from dual_precision.deploy.server.metrics import ServerMetrics
from dual_precision.deploy.server.settings import BudgetSettings, Limits
from dual_precision.deploy.server.uploads import Refused

LOW, HIGH = "low", "high"  # also the cheapest and the dearest trained mode, whatever their names
_HISTORY = 600  # windows that the page may see
_SMOOTH = 0.3  # weight of the last window in the rate of what comes in


class Service:
    """See the top of this file. Everything runs in one event loop, except the engine itself.

    Args:
      now, sleep: the clock of the windows, in seconds; a test may have one of its own.

    Attributes:
      engine: None until a first mode is there.
      modes: of the engine, see `BudgetSettings.ranked`.
      choices: those that the budget takes, see `BudgetSettings.choices`.
      complete: whether all modes are.
      failed: why they will not be, if so.
      history: of the last windows, for the page.
    """

    def __init__(
        self,
        settings: BudgetSettings,
        limits: Limits,
        now: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.settings, self.limits, self.metrics = settings, limits, ServerMetrics()
        self._now, self._sleep = now, sleep
        self.engine: Engine | None = None
        self.modes: list[Priced] = []
        self.choices: list[Priced] = []
        self._expected: set[str] = set()
        self.complete, self.failed = False, ""
        self.history: deque[dict[str, Any]] = deque(maxlen=_HISTORY)
        self._state: ControlState = ControlState(0)
        self._budget: Budget | None = None
        self._latencies: list[float] = []
        self._answered, self._spent, self._rate, self._images = 0, 0.0, 0.0, 0
        self.batcher = Batcher(
            lambda: self.ready,
            self._mode_of,
            {},
            most_waiting=limits.waiting,
            most_batch=64,
            wait=limits.wait,
        )

    @property
    def ready(self) -> Engine:
        """The engine; Refused with 503 where there is none yet."""
        if self.engine is None:
            raise Refused(503, self.failed or "the network is loading", {"Retry-After": "1"})
        return self.engine

    def expect(self, priced: Sequence[Priced]) -> None:
        """Says what will be put into service; until then a request for it is told to wait.

        Raises:
          ValueError: as `BudgetSettings.budget_of`, before anything is loaded.
        """
        self.settings.budget_of(priced)
        self._expected = {own.name for own in priced}

    def put(self, engine: Engine, seconds: dict[str, float], complete: bool) -> None:
        """Takes an engine into service, from the next batch on.

        Args:
          seconds: of an image in each of its modes, see `seconds_of_an_image`.
          complete: whether these are all modes. Before, the budget has no choice: it takes the
            cheapest of those that are there and trained.

        Raises:
          ValueError: as `BudgetSettings.budget_of`.
        """
        choices = self.settings.choices(engine.priced)
        self._budget = self.settings.budget_of(engine.priced) if complete else None
        self._state = self._budget.start() if self._budget else ControlState(0)
        self.batcher.seconds.clear()
        self.batcher.seconds.update(seconds)
        self.modes, self.choices = self.settings.ranked(engine.priced), choices
        self.engine, self.complete = engine, complete
        self.metrics.complete.set(complete)
        self._show_choice()

    @property
    def hopeless(self) -> bool:
        """Whether loading failed before any mode was there: nothing will ever answer."""
        return bool(self.failed) and self.engine is None

    @property
    def chosen(self) -> Priced:
        """The mode that the budget takes now."""
        return self.choices[self._state.choice]

    def check_asked(self, asked: str) -> None:
        """Raises Refused where nothing is called so, or it is not there yet."""
        _ = self.ready
        there = [own.name for own in self.modes]
        if asked in there:
            return
        if not self.complete and asked in {HIGH, AUTO, *self._expected}:
            rest = f"{', '.join(there)} is there"
            if self.failed:
                raise Refused(503, f"{self.failed}; {rest}")
            raise Refused(503, f"{asked!r} is loading, {rest}", {"Retry-After": "1"})
        if asked not in self.names:
            why = "; the network has no cascade" if asked == AUTO else ""
            raise Refused(400, f"precision {asked!r}: expected one of {sorted(self.names)}{why}")

    @property
    def names(self) -> set[str]:
        """What a request may ask for, now or when all modes are there."""
        none = self.complete and not self.ready.cascade
        there = {own.name for own in self.modes}
        return {*there, *self._expected, LOW, HIGH, BUDGET} | (set() if none else {AUTO})

    def _mode_of(self, asked: str) -> str:
        if asked == AUTO or any(own.name == asked for own in self.modes):
            return asked
        if asked == BUDGET:
            return self.chosen.name
        return self.choices[0 if asked == LOW else -1].name

    async def answer(self, images: np.ndarray, asked: str) -> tuple[Reply, float]:
        """(reply, BitOps of an image).

        Raises:
          Refused: as `check_asked` and `Batcher.submit`; 500 where a logit is not finite.
        """
        self.check_asked(asked)
        reply = await self.batcher.submit(images, asked)
        if not np.isfinite(reply.found.logits).all():  # JSON has no word for it
            raise Refused(
                500,
                f"the logits of {reply.found.mode!r} are not finite: expected numbers; look for a"
                " diverged training",
            )
        cost = self._cost_of(reply, "bit_operations")
        rows, mode = len(images), reply.found.mode
        self._images += rows
        self.metrics.images.labels(asked, mode).inc(rows)
        self.metrics.seconds.labels(mode).observe((reply.waited + reply.computed) / 1e3)
        self.metrics.bit_operations.inc(rows * cost)
        if asked == BUDGET:
            self._latencies.append(reply.waited + reply.computed)
            self._answered += rows
            if self.settings.kind != "latency":
                self._spent += rows * self._cost_of(reply, self.settings.kind)
        return reply, cost

    def _cost_of(self, reply: Reply, kind: str) -> float:
        """Mean over the images; of the cascade the whole of each mode, sums taken over included."""
        costs = {own.name: float(getattr(own, kind)) for own in self.modes}
        found, pair = reply.found, self.ready.cascade
        if pair is None or found.escalated is None or found.mirrored is None:
            return costs[found.mode]
        first, then = (costs[name] for name in pair)
        return first * (1 + float(found.mirrored.mean())) + then * float(found.escalated.mean())

    async def control(self) -> None:
        """Decides at the end of every window, until it is cancelled."""
        last = self._now()
        while True:
            await self._sleep(self.limits.window)
            now = self._now()
            if self.engine is not None:
                self._decide(now - last)
            last = now

    def _decide(self, elapsed: float) -> None:
        line = self.batcher
        self._rate += _SMOOTH * (line.arrived / elapsed - self._rate)
        line.arrived = 0
        seconds = [line.seconds.get(own.name, 0.0) for own in self.choices]
        oldest = line.oldest(BUDGET)
        times = [*self._latencies, *([] if oldest is None else [oldest])]
        p95 = float(np.percentile(times, 95)) if times else None
        load = [self._rate * each for each in seconds]
        seen = Observation(self._answered, p95, load, self._spent)
        before = self._state
        if self._budget is not None:
            self._state = self._budget.next(before, seen)
        self.history.append(
            {
                "time": round(time.time(), 2),
                "images": round(self._images / elapsed, 1),
                "load": round(load[-1], 3),
                "p95": None if p95 is None else round(p95, 2),
                "waiting": line.rows,
                "mode": self.chosen.name,
            }
        )
        self._latencies, self._answered, self._spent, self._images = [], 0, 0.0, 0
        self.metrics.waiting.set(line.rows)
        if before.choice != self._state.choice:
            self.metrics.switches.inc()
            self._show_choice()

    def _show_choice(self) -> None:
        for own in self.modes:
            self.metrics.chosen.labels(own.name).set(own == self.chosen)

    def about(self) -> dict[str, Any]:
        """What the page shows."""
        engine = self.ready
        return {
            "network": engine.network,
            "shape": list(engine.shape),
            "modes": [dataclasses.asdict(own) for own in self.modes],
            "cascade": engine.cascade is not None,
            "complete": self.complete,
            "failed": self.failed,
            "budget": {"kind": self.settings.kind, "target": self.settings.target},
            "chosen": self.chosen.name,
            "window": self.limits.window,
        }


def measured(engine: Engine) -> tuple[Engine, dict[str, float]]:
    """An engine, and what `Service.put` takes beside it."""
    return engine, seconds_of_an_image(engine)
