"""A phase in its place: what its schedules give."""

import jax.numpy as jnp
import optax
import pytest

from dual_precision.training.methods.modes import Together
from dual_precision.training.optimizers import RATE, STEP_RATE, Sgd
from dual_precision.training.phases import Phase, stages_of


def test_the_log_reads_all_evaluations_of_a_phase_with_one_program(small):
    """A new one for each cost a third of a second on a busy machine."""
    traces = []

    def falling(updates: int) -> optax.Schedule:
        def rate(count):
            traces.append(count)
            return 1.0 - count / updates

        return rate

    schedules = {RATE: falling, STEP_RATE: falling}
    phase = Phase("high", 2, ("high",), Together(("high",)), Sgd(), schedules)
    first, second = stages_of((phase, phase), small.structure, 10)
    read = [first.logged_values(jnp.int32(step)) for step in (0, 10, 19)]
    assert [float(values[RATE]) for values in read] == pytest.approx([1.0, 0.5, 0.05])
    assert [int(values["step"]) for values in read] == [0, 10, 19]
    assert len(traces) == 2, "once for each schedule"
    assert float(second.logged_values(jnp.int32(30))[RATE]) == 0.5
