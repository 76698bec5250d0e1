"""A network in service: the engine there is now, the line before it, the budget, what happened."""

import asyncio
import dataclasses
import time
from collections import deque
from typing import Any

import numpy as np

from dual_precision.deploy.controller import (
    Budget,
    ControlState,
    LatencyBudget,
    MeanBudget,
    Observation,
    check_target,
)
from dual_precision.deploy.predictor import AUTO
from dual_precision.deploy.server.batcher import BUDGET, Batcher, Reply
from dual_precision.deploy.server.engines import Engine, Priced, seconds_of_an_image
from dual_precision.deploy.server.metrics import ServerMetrics
from dual_precision.deploy.server.uploads import Refused

LOW, HIGH = "low", "high"  # also the cheapest and the dearest mode, whatever their names
_KINDS = ("latency", "bit_operations", "energy")
_HISTORY = 600  # windows that the page may see
_SMOOTH = 0.3  # weight of the last window in the rate of what comes in


@dataclasses.dataclass(frozen=True)
class BudgetSettings:
    """What a budget holds.

    Attributes:
      kind: latency, the p95 in ms; or bit_operations or energy (nJ), the mean of an image.
      target: in that unit.

    Raises:
      ValueError: another kind; a target that is not above 0 and finite.
    """

    kind: str = "latency"
    target: float = 50.0

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise ValueError(f"a budget of {self.kind!r}: expected one of {', '.join(_KINDS)}")
        check_target(self.target)

    @classmethod
    def parse(cls, text: str) -> "BudgetSettings":
        """Of "latency:50".

        Raises:
          ValueError: something else.
        """
        kind, _, number = text.partition(":")
        try:
            return cls(kind, float(number))
        except ValueError as error:
            raise ValueError(
                f"a budget {text!r} ({error}): expected one such as latency:50"
            ) from None

    def budget_of(self, engine: Engine) -> Budget:
        """The controller of an engine."""
        if self.kind == "latency":
            return LatencyBudget(self.target, len(engine.priced))
        costs = tuple(float(getattr(own, self.kind)) for own in engine.priced)
        return MeanBudget(self.target, costs)


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a server lets a client do.

    Attributes:
      rows: images of a request.
      waiting: images that may wait, of all clients.
      wait: seconds that a request waits for others to share its batch.
      read: seconds that a client has to send its request.
      window: seconds between two decisions of the budget.
    """

    rows: int = 256
    waiting: int = 2048
    wait: float = 0.002
    read: float = 10.0
    window: float = 0.1

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if not value > 0:
                raise ValueError(f"{name}={value}: expected a number above 0")

    def bytes(self, shape: tuple[int, ...]) -> int:
        """The largest body of a request: its images, and room for a header."""
        return self.rows * int(np.prod(shape)) + (1 << 16)


class Service:
    """See the top of this file. Everything runs in one event loop, except the engine itself.

    Attributes:
      engine: None until a first mode is there.
      complete: whether all modes are.
      failed: why they will not be, if so.
      history: of the last windows, for the page.
    """

    def __init__(self, settings: BudgetSettings, limits: Limits) -> None:
        self.settings, self.limits, self.metrics = settings, limits, ServerMetrics()
        self.engine: Engine | None = None
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

    def put(self, engine: Engine, seconds: dict[str, float], complete: bool) -> None:
        """Takes an engine into service, from the next batch on.

        Args:
          seconds: of an image in each of its modes, see `seconds_of_an_image`.
        """
        self._budget = self.settings.budget_of(engine)
        self._state = self._budget.start()
        self.batcher.seconds.clear()
        self.batcher.seconds.update(seconds)
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
        return self.ready.priced[self._state.choice]

    def check_asked(self, asked: str) -> None:
        """Raises Refused where nothing is called so, or it is not there yet."""
        engine = self.ready
        if asked in (HIGH, AUTO) and not self.complete:
            there = [own.name for own in engine.priced]
            raise Refused(503, f"{asked!r} is loading, {there} is there", {"Retry-After": "1"})
        if asked not in self.names:
            why = "; the network has no cascade" if asked == AUTO else ""
            raise Refused(400, f"precision {asked!r}: expected one of {sorted(self.names)}{why}")

    @property
    def names(self) -> set[str]:
        """What a request may ask for."""
        if self.engine is None:
            return {LOW, HIGH, BUDGET}
        auto = {AUTO} if self.engine.cascade else set()
        return {*(own.name for own in self.engine.priced), LOW, HIGH, BUDGET} | auto

    def _mode_of(self, asked: str) -> str:
        priced = self.ready.priced
        if asked == BUDGET:
            return self.chosen.name
        if asked == AUTO or any(own.name == asked for own in priced):
            return asked
        return priced[0 if asked == LOW else -1].name

    async def answer(self, images: np.ndarray, asked: str) -> tuple[Reply, float]:
        """(reply, BitOps of an image); errors as `check_asked` and `Batcher.submit`."""
        self.check_asked(asked)
        reply = await self.batcher.submit(images, asked)
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
        """Mean over the images; of the cascade without what high takes over from low."""
        costs = {own.name: float(getattr(own, kind)) for own in self.ready.priced}
        found = reply.found
        if found.escalated is None or found.mirrored is None:
            return costs[found.mode]
        low, high = min(costs.values()), max(costs.values())
        return low * (1 + float(found.mirrored.mean())) + high * float(found.escalated.mean())

    async def control(self) -> None:
        """Decides at the end of every window, until it is cancelled."""
        last = time.perf_counter()
        while True:
            await asyncio.sleep(self.limits.window)
            now = time.perf_counter()
            if self.engine is not None:
                self._decide(self.engine, now - last)
            last = now

    def _decide(self, engine: Engine, elapsed: float) -> None:
        line = self.batcher
        self._rate += _SMOOTH * (line.arrived / elapsed - self._rate)
        line.arrived = 0
        seconds = [line.seconds.get(own.name, 0.0) for own in engine.priced]
        times = [*self._latencies, *([] if (oldest := line.oldest()) is None else [oldest])]
        p95 = float(np.percentile(times, 95)) if times else None
        load = [self._rate * each for each in seconds]
        seen = Observation(self._answered, p95, load, self._spent)
        assert self._budget is not None
        before, self._state = self._state, self._budget.next(self._state, seen)
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
        for own in self.ready.priced:
            self.metrics.chosen.labels(own.name).set(own == self.chosen)

    def about(self) -> dict[str, Any]:
        """What the page shows."""
        engine = self.ready
        return {
            "network": engine.network,
            "shape": list(engine.shape),
            "modes": [dataclasses.asdict(own) for own in engine.priced],
            "cascade": engine.cascade,
            "complete": self.complete,
            "failed": self.failed,
            "budget": {"kind": self.settings.kind, "target": self.settings.target},
            "chosen": self.chosen.name,
            "window": self.limits.window,
        }


def measured(engine: Engine) -> tuple[Engine, dict[str, float]]:
    """An engine, and what `Service.put` takes beside it."""
    return engine, seconds_of_an_image(engine)
