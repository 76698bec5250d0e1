"""The controller in a burst: fixed high, fixed low and the budget under the same open-loop load.

    python -m experiments.benchmark serving --network=mnist.safetensors

Requests of 64 test images come as a Poisson process that does not wait for answers: a third of the
time at a base rate, a third at three times that, a third at the base rate again. The base is a
share of the requests that high can answer, measured at first. A latency counts from the moment at
which the request was due. Each of three seeds has its own arrivals, the same for each way. The load
is bounded in count and time (where it would be more requests, the run is shorter, and this is
said), and comes to a server on loopback, a process of its own.
"""

import asyncio
import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from dual_precision import data
from dual_precision.deploy import inspect_packed
from dual_precision.deploy.file.writer import check_replaceable
from experiments.benchmark.comparison import verdict_of
from experiments.benchmark.machine import describe_machine
from experiments.benchmark.serving.child import as_npy, served
from experiments.deploy.trials import dataset_of
from experiments.figures.tables import markdown_table
from experiments.workdir import write_whole

ROWS = 64  # images of a request
BODIES = 100  # different ones
BASE, BURST = 0.4, 3.0  # of the capacity of high; times that
MOST = 5000  # requests of a run, on average
MEASURED, REST = 3.0, 2.0  # seconds that a capacity is measured for; between two runs
WAYS = ("high", "low", "budget")
BAR = 1 / 3
SEEDS = (0, 1, 2)
_COLUMNS = (
    ("way", "way", "{}"),
    ("p50", "p50 ms", "{:.0f}"),
    ("p95", "p95 ms", "{:.0f}"),
    ("p99", "p99 ms", "{:.0f}"),
    ("refused", "refused %", "{:.2f}"),
    ("late", "over the deadline %", "{:.2f}"),
    ("spread", "± over seeds", "{:.2f}"),
    ("accuracy", "accuracy %", "{:.2f}"),
    ("low", "answered by low %", "{:.1f}"),
    ("switches", "switches a run", "{:.1f}"),
)


@dataclasses.dataclass(frozen=True)
class Sent:
    """A request: ms from when it was due; what answered, None where nothing did; right images."""

    milliseconds: float
    mode: str | None
    right: int


def arrivals(seed: int, base: float, seconds: float) -> list[float]:
    """Seconds at which requests are due: Poisson, three times the base in the middle third."""
    found: list[float] = []
    rng, now = np.random.default_rng(seed), 0.0
    while True:
        inside = seconds / 3 <= now < 2 * seconds / 3
        now += rng.exponential(1 / (base * (BURST if inside else 1.0)))
        if now >= seconds:
            return found
        found.append(now)


def length_of_run(base: float, seconds: float) -> float:
    """Seconds in which MOST requests come, where they are fewer than those asked for: a run that
    ended at so many would end in its burst."""
    return min(seconds, MOST / (base * (2 + BURST) / 3))


class Questions:
    """Requests whose right classes are known."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        rng = np.random.default_rng(0)
        rows = [rng.integers(0, len(images), ROWS) for _ in range(BODIES)]
        self.bodies = [as_npy(images[own]) for own in rows]
        self.labels = [labels[own] for own in rows]

    async def ask(self, client: httpx.AsyncClient, number: int, way: str, due: float) -> Sent:
        """Sends one, due at a moment of time.perf_counter()."""
        index = number % BODIES
        try:
            answer = await client.post(f"/predict?precision={way}", content=self.bodies[index])
            found = answer.json() if answer.status_code == 200 else None
        except httpx.HTTPError:
            found = None
        taken = 1e3 * (time.perf_counter() - due)
        if found is None:
            return Sent(taken, None, 0)
        return Sent(taken, found["mode"], int(np.sum(found["classes"] == self.labels[index])))


async def run_load(
    questions: Questions, address: str, way: str, times: Sequence[float]
) -> list[Sent]:
    """Sends every request when it is due, whatever became of those before."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=100)
    async with httpx.AsyncClient(
        base_url=address, verify=False, timeout=30, limits=limits
    ) as client:
        await questions.ask(client, 0, "low", time.perf_counter())
        start = time.perf_counter() + 0.1
        tasks = []
        for number, at in enumerate(times):
            await asyncio.sleep(max(0.0, start + at - time.perf_counter()))
            tasks.append(asyncio.create_task(questions.ask(client, number, way, start + at)))
        return await asyncio.gather(*tasks)


async def capacity(questions: Questions, address: str, way: str) -> float:
    """Requests a second that are answered where four clients ask one after the other."""
    async with httpx.AsyncClient(base_url=address, verify=False, timeout=30) as client:
        end = time.perf_counter() + MEASURED

        async def asking() -> int:
            count = 0
            while time.perf_counter() < end:
                await questions.ask(client, count, way, time.perf_counter())
                count += 1
            return count

        counts = await asyncio.gather(*(asking() for _ in range(4)))
    return sum(counts) / MEASURED


def switches(address: str) -> float:
    """Changes of mode since the server started."""
    text = httpx.get(f"{address}metrics", verify=False).text
    (line,) = [
        row for row in text.splitlines() if row.startswith("dual_precision_budget_switches_total")
    ]
    return float(line.split()[-1])


def measure_serving(
    *,
    network: str,
    planes: Sequence[str],
    deadline: float = 250.0,
    seconds: float = 12.0,
    out: str | None = None,
) -> None:
    """The sub-command `serving`; its arguments are the flags.

    Raises:
      ValueError: a network of which the data set is not known; a server that does not start.
    """
    if out:
        check_replaceable(out)
    test = data.load(dataset_of(inspect_packed(network))).test
    questions = Questions(test.images, test.labels)
    budget = f"--budget=latency:{deadline / 3:g}"
    rows: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    with served(network, f"--planes={','.join(planes)}", budget, "--nosamples") as (address, _):
        most = {way: asyncio.run(capacity(questions, address, way)) for way in ("high", "low")}
        base = BASE * most["high"]
        if (shorter := length_of_run(base, seconds)) < seconds:
            print(f"runs of {shorter:.1f} s and not {seconds:g}: {MOST:,} requests are the most")
            seconds = shorter
        about = {
            **describe_machine(), "deadline ms": deadline, "planes": ",".join(planes),
            "requests/s of high": round(most["high"], 1), "of low": round(most["low"], 1),
            "base": round(base, 1), "burst": round(BURST * base, 1), "seconds": round(seconds, 3),
        }  # fmt: skip
        print(", ".join(f"{key} {value}" for key, value in about.items()), flush=True)
        for seed in SEEDS:
            times = arrivals(seed, base, seconds)
            for way in np.random.default_rng(seed).permutation(WAYS):
                before = switches(address)
                found = asyncio.run(run_load(questions, address, str(way), times))
                changed = switches(address) - before if way == "budget" else 0.0
                rows[str(way)].append(summary(found, deadline, planes[0]) | {"switches": changed})
                time.sleep(REST)  # so that the budget is at rest again
    table = [merged(way, rows[way]) for way in WAYS]
    print(f"\n{markdown_table(table, _COLUMNS)}\n")
    if out:
        write_whole(Path(out), json.dumps({"about": about, "runs": rows}, indent=1) + "\n")
    print(lateness_lines(table[0], table[-1]))


def lateness_lines(high: Mapping[str, Any], budget: Mapping[str, Any]) -> str:
    """Two lines, of the rows of two ways: what was late, and what accuracy that took."""
    late = "over the deadline, budget to high:"
    if high["late"]:
        share = budget["late"] / high["late"]
        late += f" {share:.3f} x (bar {BAR:.2f}) {verdict_of(share <= BAR)}"
    else:
        late += " not measured, high never was; give a shorter --deadline"
    lost = high["accuracy"] - budget["accuracy"]
    return f"- {late}\n- accuracy lost: {lost:+.2f} points (goal 1) {verdict_of(lost <= 1)}"


def summary(found: Sequence[Sent], deadline: float, low: str) -> dict[str, Any]:
    """Figures of one run; `low` is the number of planes of the cheapest mode.

    The percentiles are of what was answered: a refusal comes at once and is no fast answer. It is
    over the deadline, though.

    Raises:
      ValueError: nothing was answered.
    """
    answered = [own for own in found if own.mode is not None]
    if not answered:
        raise ValueError(
            f"{len(found)} requests, and none was answered: expected one; look at what the server"
            " says to a single one"
        )
    times = [own.milliseconds for own in answered]
    late = sum(own.mode is None or own.milliseconds > deadline for own in found)
    return {
        "requests": len(found),
        **{f"p{q}": float(np.percentile(times, q)) for q in (50, 95, 99)},
        "refused": 100 * (len(found) - len(answered)) / len(found),
        "late": 100 * late / len(found),
        "accuracy": 100 * sum(own.right for own in answered) / (ROWS * len(answered)),
        "low": 100 * sum(str(own.mode).startswith(f"w{low}a") for own in answered) / len(found),
    }


def merged(way: str, runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over the seeds, and the spread of what was late."""
    late = [run["late"] for run in runs]
    means = {key: float(np.mean([run[key] for run in runs])) for key in runs[0]}
    return {"way": way, **means, "spread": float(np.std(late, ddof=1))}
