"""A model of a step on many devices, with stated figures; nothing here is measured.

    ring     2 (n - 1) / n * bytes / bandwidth + 2 (n - 1) * latency
    tree     2 ceil(log2 n) * (bytes / bandwidth + latency)

for one all-reduce of n devices. A device computes for `compute` seconds, two thirds of them in the
backward pass. Links do not share anything, no device is slower than another, and a device computes
a small batch at the rate of a large one: real curves lie below these.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

BACKWARD = 2 / 3  # of the computation: gradients by the weights, and by the inputs
EFFICIENT = 0.5  # where less than half of the time is computation, it no longer scales


@dataclasses.dataclass(frozen=True)
class Interconnect:
    """A link of each device, as its standard states it, and what a message costs besides.

    Attributes:
      bandwidth: bytes per second, in each direction.
      latency: seconds from a message to the next one; assumed.
    """

    name: str
    bandwidth: float
    latency: float


INTERCONNECTS = (
    Interconnect("10 Gb/s Ethernet, 30 us", 10e9 / 8, 30e-6),
    Interconnect("200 Gb/s InfiniBand, 2 us", 200e9 / 8, 2e-6),
)


@dataclasses.dataclass(frozen=True)
class StepCost:
    """What one step costs on each device, with `rows` examples there.

    Attributes:
      compute: seconds.
      reduced: bytes of each all-reduce, as compiled.
      parameters: bytes of all parameters, what a single all-reduce of gradients would carry.
    """

    rows: float
    compute: float
    reduced: tuple[int, ...]
    parameters: int

    def with_rows(self, rows: float) -> "StepCost":
        """The same step with another share of the batch."""
        return dataclasses.replace(self, rows=rows, compute=self.compute * rows / self.rows)


Way = Callable[[StepCost, int, Interconnect], float]  # seconds of a step on n devices


def ring_seconds(size: int, devices: int, link: Interconnect) -> float:
    """One all-reduce in a ring."""
    hops = 2 * (devices - 1)
    return hops / devices * size / link.bandwidth + hops * link.latency


def tree_seconds(size: int, devices: int, link: Interconnect) -> float:
    """One all-reduce up and down a binary tree: fewer messages, each of all bytes."""
    return 2 * math.ceil(math.log2(devices)) * (size / link.bandwidth + link.latency)


def as_compiled(step: StepCost, devices: int, link: Interconnect) -> float:
    """Every all-reduce of the program in a ring, one after the other, nothing beside it."""
    return step.compute + sum(ring_seconds(size, devices, link) for size in step.reduced)


def with_trees(step: StepCost, devices: int, link: Interconnect) -> float:
    """As compiled, each all-reduce by the faster of ring and tree."""
    return step.compute + sum(_faster(size, devices, link) for size in step.reduced)


def overlapped(step: StepCost, devices: int, link: Interconnect) -> float:
    """One all-reduce of all gradients, sent while the backward pass goes on: what is longer counts.

    Statistics of normalisation stay on each device: this trains otherwise."""
    backward = BACKWARD * step.compute
    return step.compute - backward + max(backward, _faster(step.parameters, devices, link))


def _faster(size: int, devices: int, link: Interconnect) -> float:
    return min(ring_seconds(size, devices, link), tree_seconds(size, devices, link))


def weak_efficiency(way: Way, step: StepCost, devices: int, link: Interconnect) -> float:
    """Share of the time of a step that is computation; each device has its `rows`."""
    return step.compute / way(step, devices, link)


def strong_speedup(
    way: Way, step: StepCost, batch: float, devices: int, link: Interconnect
) -> float:
    """How many times as fast as one device, for a batch that all devices share."""
    one = step.with_rows(batch).compute
    return one / way(step.with_rows(batch / devices), devices, link)


def weak_limit(way: Way, step: StepCost, counts: Sequence[int], link: Interconnect) -> int:
    """The largest of these numbers of devices that is still EFFICIENT."""
    return max(n for n in counts if weak_efficiency(way, step, n, link) >= EFFICIENT or n == 1)


def strong_limit(
    way: Way, step: StepCost, batch: float, counts: Sequence[int], link: Interconnect
) -> int:
    """The number of devices at which a shared batch is fastest."""
    return max(counts, key=lambda n: strong_speedup(way, step, batch, n, link))
