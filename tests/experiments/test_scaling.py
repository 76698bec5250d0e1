"""What devices send each other, read from a program; and the equations of the model."""

import numpy as np
import pytest

from experiments.benchmark.scaling import scale
from experiments.benchmark.scaling.collectives import Collective, collectives_in
from experiments.benchmark.scaling.curves import (
    INTERCONNECTS,
    Interconnect,
    StepCost,
    as_compiled,
    ring_seconds,
    strong_speedup,
    weak_efficiency,
)

LINK = Interconnect("a link", bandwidth=1e9, latency=1e-6)
LINE = (
    "  %all-reduce.7 = (f32[32,10]{1,0}, f32[], /*index=2*/bf16[6]{0}) all-reduce(%a, %b, %c),"
    " channel_id=1, replica_groups={{0,1}}, to_apply=%sum"
)
OTHERS = """
  %gathered = s8[16]{0} all-gather(%x), dimensions={0}
  %started = f32[4]{0} all-reduce-start(%y), to_apply=%sum
  %done = f32[4]{0} all-reduce-done(%started)
  %use = f32[4]{0} add(%all-reduce.7, %done)
"""


def test_collectives_of_a_text():
    assert collectives_in(LINE) == [Collective("all-reduce", 32 * 10 * 4 + 4 + 6 * 2)]
    found = collectives_in(OTHERS)
    assert [(one.kind, one.bytes) for one in found] == [("all-gather", 16), ("all-reduce", 16)]


def test_what_is_not_known_is_refused():
    with pytest.raises(ValueError, match="all-gather-start: expected a program that waits"):
        collectives_in("%x = (f32[1]{0}, f32[2]{0}) all-gather-start(%y)")
    with pytest.raises(ValueError, match=r"--devices=1: expected one of 2 or more"):
        scale.read_counts(["1"])
    with pytest.raises(ValueError, match="lstm"):
        scale.check_scalable(["lstm"])


def test_the_equations_of_the_model():
    assert ring_seconds(1000, 1, LINK) == 0
    np.testing.assert_allclose(ring_seconds(1000, 4, LINK), 1.5 * 1e-6 + 6e-6)
    step = StepCost(rows=8, compute=1e-3, reduced=(1000, 1000), parameters=2000)
    np.testing.assert_allclose(as_compiled(step, 4, LINK), 1e-3 + 2 * 7.5e-6)
    for way in scale.WAYS.values():
        assert weak_efficiency(way, step, 1, LINK) == strong_speedup(way, step, 64, 1, LINK) == 1
        weak = [weak_efficiency(way, step, n, LINK) for n in scale.COUNTS]
        assert weak == sorted(weak, reverse=True)
        assert all(strong_speedup(way, step, 64, n, LINK) <= n for n in scale.COUNTS)


def test_a_step_for_two_devices():
    """Compiled in a child, for devices are counted before JAX starts. It sends every gradient once,
    that of both modes, and beside it little."""
    (found,) = scale.compiled_steps(["mlp"], [2], batch_size=8)
    assert (found["devices"], found["rows"]) == (2, 8)
    assert min(found["temporary"], found["operations"]) > 0
    assert found["state"] > 2 * found["parameters"] > 0  # and their momentum
    step = scale.step_cost(found, teraflops=1.0)
    assert found["parameters"] <= sum(step.reduced) <= 1.05 * found["parameters"]
    assert max(step.reduced) >= found["parameters"]  # in one message, what else is statistics
    rows = scale.scaling_rows(step)
    assert len(rows) == len(INTERCONNECTS) * (len(scale.WAYS) + 1)
