"""Phases in their places: what their schedules give, when their events are due."""

import jax.numpy as jnp
import optax
import pytest

from dual_precision.training.methods.modes import Split, Together
from dual_precision.training.optimizers import RATE, STEP_RATE, Sgd
from dual_precision.training.options import FitOptions
from dual_precision.training.phases import Phase, stages_of
from dual_precision.training.schedules import warmup_cosine

BOTH = ("high", "low")
RATES = dict.fromkeys((RATE, STEP_RATE), lambda _: optax.constant_schedule(0.1))


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


def phase(name="p", epochs=1, precisions=("high",), **more):
    more = {"schedules": RATES, **more}
    return Phase(name, epochs, precisions, Together(precisions), Sgd(), **more)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"epochs": 0}, "'p' has 0 epochs: expected a whole number, 1 or more"),
        ({"epochs": 1.5}, "'p' has 1.5 epochs: expected a whole number, 1 or more"),
        ({"schedules": {"step": print}}, "a schedule of phase 'p' is called 'step', which"),
        ({"precisions": ()}, "'p' runs no mode: expected at least one"),
        ({"events": ((0, print),)}, "'p' has an event every 0 epochs: expected a whole number"),
        ({"events": ((1.5, print),)}, "'p' has an event every 1.5 epochs: expected a whole"),
    ],
)
def test_phases_that_cannot_be(fields, says):
    with pytest.raises(ValueError, match=says):
        phase(**fields)


def test_events_are_due_after_every_so_many_epochs():
    own = phase(epochs=6, events=((2, "two"), (3, "three")), at_start=("start",), at_end=("end",))
    due = {epoch: own.due(epoch) for epoch in range(1, 7)}
    assert due == {
        1: (),
        2: ("two",),
        3: ("three",),
        4: ("two",),
        5: (),
        6: ("two", "three", "end"),
    }


@pytest.mark.parametrize(
    ("loss", "passes"),
    [
        (Together(BOTH), 2),
        (Split(BOTH), 1),
        (Split(BOTH, "high", 0.5), 1 + 1 / 6),
        (lambda *_: None, 2),
    ],
)
def test_what_an_epoch_costs_is_said_by_the_loss(loss, passes):
    """A loss that does not say it is taken for one that runs all modes of the phase."""
    assert Phase("p", 1, BOTH, loss, Sgd()).passes == pytest.approx(passes)


def test_phases_follow_each_other(small):
    """Each stage begins where the one before ended; its modes are validated from then on."""
    phases = (
        phase("first", 2, ("low",), reports=("high",)),
        phase("second", 1, ("high",), at_end=("end",)),
        phase("third", 3, ("float",)),
    )
    first, second, third = stages_of(phases, small.structure, steps_per_epoch=10)
    assert [(stage.start, stage.end) for stage in (first, second, third)] == [
        (0, 20),
        (20, 30),
        (30, 60),
    ]
    assert first.validated(10) == ("low",)
    assert first.validated(20) == ("high", "low"), "what an event has made is reported at the end"
    assert second.validated(30) == ("high", "low")
    assert third.validated(40) == ("float", "high", "low")
    assert second.due(30) == ("end",)
    assert int(third.values(jnp.int32(42))["step"]) == 12


def test_schedules_are_made_for_the_length_of_a_phase(small):
    seen = []

    def make(updates):
        seen.append(updates)
        return optax.constant_schedule(0.5)

    made = dict.fromkeys((RATE, STEP_RATE, "width"), make)
    own = Phase("p", 3, ("high",), Together(("high",)), Sgd(), made)
    (stage,) = stages_of((own,), small.structure, steps_per_epoch=7)
    assert seen == [21] * 3
    assert float(stage.values(jnp.int32(0))["width"]) == 0.5


@pytest.mark.parametrize(("warmup", "first"), [(0.0, 1.0), (0.1, 0.0), (0.004, 1.0)])
def test_warmup_and_cosine(warmup, first):
    """Rises over its share, where that is an update at least; falls to its final share."""
    schedule = warmup_cosine(100, 2.0, warmup, final=0.25)
    values = [float(schedule(step)) for step in range(101)]
    assert values[0] == 2.0 * first
    assert max(values) == pytest.approx(2.0)
    assert values[100] == pytest.approx(0.5)
    top = int(100 * warmup)
    assert values[top:] == sorted(values[top:], reverse=True)
    assert values[: top + 1] == sorted(values[: top + 1])


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"seed": -1}, "seed=-1: expected a whole number, 0 to"),
        ({"seed": 2**32}, "seed=4294967296: expected a whole number, 0 to"),
        ({"seed": 1.5}, "seed=1.5: expected a whole number"),
        ({"batch_size": 0}, "batch_size=0: expected a whole number, 1 or more"),
        ({"batch_size": "16"}, "batch_size='16': expected a whole number, 1 or more"),
        ({"batch_size": True}, "batch_size=True: expected a whole number, 1 or more"),
        ({"steps_per_dispatch": -1}, "steps_per_dispatch=-1: expected a whole number, 0 or more"),
        ({"epochs_per_evaluation": 1.5}, "epochs_per_evaluation=1.5: expected a whole number, 1"),
    ],
)
def test_options_that_cannot_be(fields, says):
    with pytest.raises(ValueError, match=says):
        FitOptions(**fields)
