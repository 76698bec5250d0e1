"""How programs are timed and compared: turns, ratios, verdicts."""

from functools import partial

import jax.numpy as jnp
import pytest

from experiments.benchmark import comparison, timing

TIMES = {"a": [1.0, 10.0, 2.0], "b": [2.0, 30.0, 2.0]}


def test_the_order_of_turns_is_shuffled_and_repeatable():
    names = list("abcdef")
    orders = list(timing.shuffled_rounds(names, 20))
    assert all(sorted(order) == names for order in orders)
    after = {order[order.index("a") - 1] for order in orders if order[0] != "a"}
    assert len(after) > 2
    assert orders == list(timing.shuffled_rounds(names, 20))


def test_every_program_has_its_turn_in_every_round():
    calls = []
    programs = {name: partial(calls.append, name) for name in "abc"}
    found = timing.time_rounds(
        {name: lambda run=run: run() or 2.0 for name, run in programs.items()}, 4
    )
    assert found == dict.fromkeys("abc", [2.0] * 4)
    rounds = [calls[i : i + 3] for i in range(0, 12, 3)]
    assert [sorted(order) for order in rounds] == [["a", "b", "c"]] * 4


def test_what_was_timed_is_given_too():
    taken, result = timing.timed(lambda: jnp.float32(3) + 1)
    assert taken > 0
    assert result == 4


def test_ratios_are_medians_over_rounds():
    ratio = partial(comparison.speed_ratio, TIMES, "a")
    assert ratio("b") == 2.0
    assert ratio("missing") is None


def test_a_figure_is_the_median_and_the_range():
    assert comparison.median_and_range(TIMES["a"], digits=1) == "2.0 (1.0..10.0)"


def test_the_distance_of_results():
    assert comparison.relative_difference(
        jnp.array([3.0, 0.0]), jnp.array([3.0, 4.0])
    ) == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("least", "goal", "verdict"),
    [(3.0, 4.0, "short"), (1.5, 4.0, "PASS"), (1.5, 2.0, "PASS, goal met")],
)
def test_the_verdict_on_a_bar(least, goal, verdict):
    (line,) = comparison.judge_bars([comparison.Bar("a to b", "a", "b", least, goal)], TIMES)
    assert line == f"a to b: 2.00 x (bar {least}, goal {goal}) {verdict}"


def test_a_bar_whose_program_is_missing():
    (line,) = comparison.judge_bars([comparison.Bar("a to c", "a", "c", 1, 2)], TIMES)
    assert line == "a to c: not measured"


def test_a_goal_is_not_a_bar():
    assert [comparison.goal_verdict(met) for met in (True, False)] == ["goal met", "goal missed"]
    assert comparison.verdict_of(passed=False, goal=True) == "short"
