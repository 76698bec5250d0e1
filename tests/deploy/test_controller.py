"""The laws of the controller: it reacts, it recovers, it does not flap, it holds its mean."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dual_precision.deploy.controller import (
    MOST_PATIENCE,
    ControlState,
    LatencyBudget,
    MeanBudget,
    Observation,
)

LATENCY = LatencyBudget(target=100.0, modes=2)
IDLE = (0.1, 0.2)


def run(budget, state, observations):
    """The choices, after every window."""
    choices = []
    for seen in observations:
        state = budget.next(state, seen)
        choices.append(state.choice)
    return state, choices


def seen(p95, load=IDLE):
    return Observation(10, p95, load)


@given(st.lists(st.floats(60.0, 100.0), max_size=50), st.integers(0, 1))
def test_nothing_changes_inside_the_band(p95s, start):
    state = LATENCY.start() if start else run(LATENCY, LATENCY.start(), [seen(150.0)])[0]
    _, choices = run(LATENCY, state, [seen(p95) for p95 in p95s])
    assert choices == [start] * len(p95s)


@given(st.integers(2, 8), st.floats(100.001, 1e6))
def test_a_slow_window_is_answered_in_it(modes, p95):
    budget = LatencyBudget(100.0, modes)
    state = budget.next(budget.start(), Observation(1, p95, (0.0,) * modes))
    assert state.choice == (0 if p95 > 200 else modes - 2)


def test_a_load_that_the_mode_cannot_carry_is_answered_before_anything_is_slow():
    assert LATENCY.next(LATENCY.start(), seen(20.0, (0.6, 1.2))).choice == 0


@given(st.integers(1, 8), st.integers(2, 6))
def test_it_recovers_one_mode_every_so_many_calm_windows(patience, modes):
    budget = LatencyBudget(100.0, modes, patience=patience)
    load = (0.1,) * modes
    state = budget.next(budget.start(), Observation(1, 500.0, load))
    assert state.choice == 0
    _, choices = run(budget, state, [Observation(1, 10.0, load)] * patience * (modes - 1))
    assert choices[-1] == modes - 1
    assert choices == sorted(choices)
    _, quiet = run(budget, state, [Observation(0, None, load)] * patience)
    assert quiet[-1] == 1, "where nobody asks, too"


def test_a_load_that_only_the_cheapest_carries_is_not_tried():
    state, _ = run(LATENCY, LATENCY.start(), [seen(300.0)])
    _, choices = run(LATENCY, state, [seen(10.0, (0.5, 1.1))] * 100)
    assert set(choices) == {0}


def test_what_fails_is_tried_ever_more_rarely():
    """A mode that is slow whatever the load says: the time between two tries doubles."""
    state, tries = LATENCY.start(), []
    for window in range(1000):
        before = state.choice
        state = LATENCY.next(state, seen(10.0 if state.choice == 0 else 150.0))
        if state.choice > before:
            tries.append(window)
    gaps = [b - a for a, b in itertools.pairwise(tries)]
    assert gaps == sorted(gaps)  # they double, up to the most
    assert gaps[-1] > MOST_PATIENCE
    assert len(tries) < 1000 / MOST_PATIENCE + 6


COSTS = (1.0, 8.0)


@given(
    st.floats(1.0, 10.0),
    st.lists(st.integers(0, 64) | st.integers(0, 5000), min_size=1, max_size=300),
)
def test_the_mean_is_held(target, windows):
    """Whatever comes: to within a horizon's worth, and what one window overdraws."""
    budget = MeanBudget(target, COSTS)
    state, spent, images = budget.start(), 0.0, 0
    for count in windows:
        cost = count * COSTS[state.choice]
        spent, images = spent + cost, images + count
        state = budget.next(state, Observation(count, 1.0, (0.0, 0.0), cost))
    most = budget.horizon * target + max(windows) * COSTS[-1]
    assert spent <= images * target + most


def test_windows_of_more_images_than_the_horizon_do_not_raise_the_mean():
    budget, count, spent = MeanBudget(2.0, COSTS), 5000, 0.0
    state = budget.start()
    for _ in range(200):
        cost = count * COSTS[state.choice]
        spent += cost
        state = budget.next(state, Observation(count, 1.0, (0.0, 0.0), cost))
    assert spent <= 200 * count * 2.0 + budget.horizon * 2.0 + count * COSTS[-1]


def test_a_mean_between_two_modes_is_used_and_switches_are_rare():
    budget = MeanBudget(4.5, COSTS)
    state, spent, switches = budget.start(), 0.0, 0
    for _ in range(1000):
        cost = 8 * COSTS[state.choice]
        before = state.choice
        spent += cost
        state = budget.next(state, Observation(8, 1.0, (0.0, 0.0), cost))
        switches += state.choice != before
    assert spent / 8000 == pytest.approx(4.5, rel=0.05)
    assert switches <= 1000 / 3


@given(st.floats(0.2, 20.0), st.lists(st.floats(1.0, 60.0), min_size=1, max_size=6))
def test_a_dearer_mode_is_one_that_the_credit_pays_for(saved, dearer):
    """By hand, of the equation: T = 2, and band * horizon = 10 images."""
    budget = MeanBudget(2.0, (1.0, *sorted(dearer)), horizon=100, band=0.1)
    state = ControlState(0, credit=10.0 * saved)
    state = budget.next(state, Observation(0, None, ()))
    assert state.credit == min(10.0 * saved, 200.0)
    paid = 2.0 + state.credit / 10.0
    wanted = budget.costs.index(max(own for own in budget.costs if own <= paid))
    chosen = budget.costs[state.choice]
    assert chosen == (budget.costs[wanted] if state.credit >= 20.0 else 1.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LatencyBudget(0.0, 2), "a target above 0"),
        (lambda: LatencyBudget(float("nan"), 2), "a target above 0"),
        (lambda: LatencyBudget(1.0, 0), "at least one mode"),
        (lambda: LatencyBudget(1.0, 2, patience=0), "expected 1 to"),
        (lambda: MeanBudget(1.0, (2.0, 1.0)), "expected them ascending"),
        (lambda: MeanBudget(1.0, (2.0, 3.0)), "expected at least 2"),
    ],
)
def test_budgets_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
