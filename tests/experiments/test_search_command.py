"""The command of the search, from a supernet to widths that training takes."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dual_precision import modes
from dual_precision.costs import mode_cost
from dual_precision.models import build_from
from dual_precision.search.edits import Edit
from dual_precision.search.evolve import Evaluated, Settings, front_of
from dual_precision.search.session import Session, read_events, replay
from dual_precision.search.space import Space, space_of
from dual_precision.search.state import SearchState, moved
from dual_precision.search.supernet import Supernet
from dual_precision.tasks.classification import Classification
from dual_precision.training.optimizers import RATE
from experiments.figures.drawing import pyplot_for_files
from experiments.figures.search import draw_front
from experiments.recipes.config import make_config
from experiments.recipes.flags import read_widths_file
from experiments.search import __main__ as search
from experiments.search import steering
from experiments.search.norms import rank_correlation
from experiments.search.opened import LOG, Opened, open_supernet, phase_in, trained_in
from experiments.search.results import beside, candidate_of, front_rows, leave_search
from experiments.search.steering import compare, evaluations_needed, interval, run_strategy
from experiments.workdir import CONFIG

ROOT = Path(__file__).parents[2]


def start(environment, command, *arguments):
    return subprocess.run(
        [sys.executable, "-m", f"experiments.{command}", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_from_a_supernet_to_widths(tmp_path, child_environment):
    supernet, folder = tmp_path / "supernet", tmp_path / "search"
    run = ("--mode=supernet", "--dataset=digits", "--set=passes=4", "--notest")
    ended = start(child_environment, "cifar", *run, f"--workdir={supernet}")
    assert ended.returncode == 0, ended.stderr[-2000:]
    own = (f"--supernet={supernet}", f"--workdir={folder}", "--images=100")
    more = ()
    for evaluations in (20, 22):  # the second goes on
        ended = start(child_environment, "search", *own, f"--evaluations={evaluations}", *more)
        assert ended.returncode == 0, ended.stderr[-2000:]
        more = (f"--widths={folder / 'widths.json'}",)
        state = replay(read_events(folder / "session.jsonl"))[-1]
        assert len(state.evaluated) == evaluations
    assert "the map of --widths: " in ended.stdout
    # A map that names no layer is the network as it is: low with one width for all layers.
    opened = open_supernet(supernet, 0, True, None)
    assert candidate_of(opened.space, {}, opened.own_path()) == ("w2a2",) * 2
    # What training on leaves counts when the log has it.
    variables = opened.supernet.variables
    assert len(opened.train_on(opened.space, 1.0, tmp_path)) > 0
    assert opened.supernet.variables is variables
    opened.take_trained()
    assert opened.supernet.variables is not variables
    assert opened.supernet.variables.keys() == variables.keys()
    assert opened.trained is None
    rows = json.loads((folder / "front.json").read_text())["rows"]
    assert [row["cost"] for row in rows] == sorted(row["cost"] for row in rows)
    widths = read_widths_file(str(folder / "widths.json"))
    config = make_config("digits", {"dataset": "digits", "widths": widths})
    assert {str(config.modes.at((layer,))["low"]) for layer in widths} == {
        entry["low"] for entry in widths.values()
    }
    ended = start(child_environment, "search", *own, "--seed=1")
    assert ended.returncode == 1
    assert "give the same, or another workdir" in ended.stderr


def test_the_scripted_analyst_removes_what_is_weak_and_keeps_the_front(tmp_path):
    choices = ("w1a1", "w2a2", "w3a3", "w4a4")
    space = Space("low", ("a", "b", "c"), (choices,) * 3, (1, 2, 3), 5)

    def score(_, candidate):
        return sum(k * int(text[1]) for k, text in zip((9, 1, 1), candidate, strict=True))

    session = Session(tmp_path / "log", space, Settings(population=10), {}, score)
    run_strategy(session, "steered", 40, 0.25)
    state = session.state
    assert state.history
    before = front_of(state.evaluated[:10])
    first = state.history[0][0].blocks
    assert all(
        pair in first for e in before for pair in zip(space.layers, e.candidate, strict=True)
    )
    assert min(map(len, state.space.alternatives)) >= 2
    ends = (space.cost(("w1a1",) * 3), space.cost(("w4a4",) * 3))
    assert evaluations_needed(state.evaluated, 0.0, ends) == 1
    assert np.isinf(evaluations_needed(state.evaluated, 1e9, ends))


@pytest.fixture
def table():
    """A space of three layers, and an accuracy for each path."""
    choices = tuple(f"w{w}a{a}" for w in range(1, 5) for a in range(1, 5))
    space = Space("low", ("a", "b", "c"), (choices,) * 3, (1, 2, 3), 5)

    def score(_, candidate):
        bits = [int(text[1]) * int(text[3]) for text in candidate]
        return sum(k * own**0.3 for k, own in zip((9, 1, 4), bits, strict=True))

    return space, score


def test_a_strategy_that_was_stopped_anywhere_goes_on_the_same(tmp_path, table):
    """After any line of its log, between two edits too. A run of fewer evaluations, or the same
    one again, changes nothing of what comes after."""
    space, score = table

    def run(name, evaluations):
        session = Session(tmp_path / name, space, Settings(population=10), {}, score)
        run_strategy(session, "steered", evaluations, 0.25)
        return session

    whole = run("whole", 35)
    text = whole.path.read_text()
    assert len(whole.state.evaluated) == 35
    assert len(whole.state.history) > 10
    lines = text.splitlines(keepends=True)
    for count in range(1, len(lines) + 1):
        (tmp_path / "stopped").write_text("".join(lines[:count]))
        assert run("stopped", 35).path.read_text() == text
    for evaluations in (10, 15, 20, 35, 20):
        run("longer", evaluations)
    assert (tmp_path / "longer").read_text() == text


def test_strategies_are_compared_at_as_many_evaluations_as_asked(tmp_path, table):
    """No multiple of a generation either; logs that go further have the same row."""
    space, score = table
    rows = {}
    for count in (10, 35, 40):
        rows[count] = compare(space, {}, score, 0, count, 0.25, tmp_path / f"{count}", 29)
        for path in (tmp_path / f"{count}").iterdir():
            assert len(replay(read_events(path))[-1].evaluated) == count
        assert rows[count]["evolve"] > 0
        needed = rows[count]["needed"]
        assert needed is None or needed > 0
    for count in (10, 35):
        assert compare(space, {}, score, 0, count, 0.25, tmp_path / "40", 29) == rows[count]


def test_a_strategy_that_never_is_as_good_needs_no_number(tmp_path, table, monkeypatch):
    """steering.json had Infinity, which is no JSON."""
    space, score = table
    answers = iter([np.inf, 10])
    monkeypatch.setattr(steering, "evaluations_needed", lambda *_: next(answers))
    row = compare(space, {}, score, 0, 20, 0.25, tmp_path, 29)
    assert row["needed"] is None
    json.dumps(row, allow_nan=False)


def test_the_best_map_is_compared_at_the_cost_of_low(tmp_path, table):
    """Whatever the widths of low: those of w2a2 were taken before."""
    space, score = table
    rows = [
        compare(space, {}, score, 0, 40, 0.25, tmp_path, space.cost((text,) * 3))
        for text in ("w1a1", "w2a2", "w4a4")
    ]
    assert [row["gain"] == 0 for row in rows] == [True, False, True]
    assert rows[0]["best"] == ["w1a1"] * 3
    assert rows[2]["best"] == ["w4a4"] * 3


@pytest.mark.parametrize("stem", [("w3a32", "w4a32"), ("w4a32", "w8a32"), None])
@pytest.mark.parametrize("widths", [{}, {"stage2_conv": {"low": "w3a4"}}])
def test_the_cost_of_low_is_that_of_its_own_widths(stem, widths):
    """Listed or not: the widest that was listed for the first layer was taken for it."""
    own = {"name": "resnet8_fast", "num_classes": 3}
    low_and_high = modes(widths, low="w2a2g8", high="w8a8")
    task = Classification((8, 8, 3))
    supernet = Supernet(build_from({**own, **low_and_high.to_json()}), {}, task, None, None)
    lists = {"stem": stem} if stem else {}
    space = space_of(supernet.structure, "low", ("w1a1", "w4a4"), lists)
    config = make_config("quick", {"mode": "supernet"})
    opened = Opened(config, None, supernet, space, ())
    assert opened.own_cost == mode_cost(supernet.structure, "low").bit_operations


def test_logs_of_another_supernet_are_refused(tmp_path, table):
    """Their accuracies were taken for those of the one that was asked for."""
    space, score = table
    evaluated = []

    def other(space, candidate):
        evaluated.append(candidate)
        return score(space, candidate)

    compare(space, {"losses": [1.0]}, score, 0, 20, 0.25, tmp_path, 29)
    bounded = dataclasses.replace(space, most=50.0)
    for own, about, quantile, what in (
        (space, {"losses": [2.0]}, 0.25, r"losses \(there \[1.0\], here \[2.0\]\)"),
        (space, {"losses": [1.0]}, 0.5, "quantile"),
        (bounded, {"losses": [1.0]}, 0.25, "bound"),
    ):
        with pytest.raises(ValueError, match=rf"{what}.*; give the same, or another workdir"):
            compare(own, about, other, 0, 20, quantile, tmp_path, 29)
    assert not evaluated


def test_a_map_of_another_method():
    choices = ("w1a1", "w2a2")
    space = Space("low", ("stem", "a", "b"), (("w4a32", "w8a32"), choices, choices), (1, 2, 3), 5)
    own = ("w8a32", "w2a3", "w2a3")  # of low: no alternative of this space
    assert candidate_of(space, {"a": {"low": "w3a4"}}, own) == ("w8a32", "w3a4", "w2a3")
    assert candidate_of(space, {"stem": {"low": "w4a32"}}, own) == ("w4a32", "w2a3", "w2a3")
    for wrong in ({"z": {"low": "w2a2"}}, {"a": {"high": "w2a2"}}, {"a": {"low": "w2a32"}}):
        with pytest.raises(ValueError, match="expected"):
            candidate_of(space, wrong, own)
    narrow = dataclasses.replace(space, stored=(8, 4, 4))
    with pytest.raises(ValueError, match="'a': 'w5a2' has 5-bit weights, and 4 bits are stored"):
        candidate_of(narrow, {"a": {"low": "w5a2"}}, own)
    seen = [Evaluated(("w8a32", "w2a2", "w1a1"), 70.0, 24.0)]
    state = SearchState(space, Settings(), {}, tuple(seen))
    text = beside(state, Evaluated(("w8a32", "w3a4", "w1a1"), 71.0, 40.0))
    assert text.startswith("the map of --widths: 71.00 %, 4.000e+01 BitOps, w8a32 w3a4 w1a1")
    assert text.endswith("beside it 70.00 % the best")


@pytest.mark.parametrize(
    ("edits", "bound", "kept"),
    [
        ([], 100, ["w4a4", "w4a4"]),
        ([], 20, ["w2a2", "w2a2"]),
        ([Edit("bound", most=20.0)], 100, ["w2a2", "w2a2"]),
        ([Edit("bound", most=100.0)], 20, ["w2a2", "w2a2"]),
        ([Edit("remove", "b", "w4a4")], 100, ["w4a4", "w2a2"]),
        ([Edit("cut", "a", "w4a4", next="w4a4")], 100, ["w4a4", "w2a2"]),
        ([Edit("remove", "b", "w4a4"), Edit("bound", most=20.0)], 100, ["w2a2", "w2a2"]),
    ],
)
def test_what_is_left_is_a_path_of_the_space_as_it_was_edited(tmp_path, edits, bound, kept):
    """A candidate of before an edit was left, with what the analyst had removed since."""
    space = Space("low", ("a", "b"), (("w1a1", "w2a2", "w4a4"),) * 2, (1, 1), 5)
    session = Session(tmp_path / "log", space, Settings(), {}, lambda _, c: float(space.cost(c)))
    session.run(9)
    for edit in edits:
        session.edit(edit)
    leave_search(session.state, tmp_path, bound)
    widths = json.loads((tmp_path / "widths.json").read_text())
    assert [widths[layer]["low"] for layer in "ab"] == kept
    assert len(json.loads((tmp_path / "front.json").read_text())["rows"]) == 6  # of all


def test_nothing_is_left_where_nothing_of_the_space_was_evaluated(tmp_path):
    space = Space("low", ("a",), (("w1a1", "w2a2", "w4a4"),), (1,), 5)
    session = Session(tmp_path / "log", space, Settings(), {}, lambda _, c: 1.0)
    session.run(1)
    session.edit(Edit("remove", "a", "w1a1"))
    with pytest.raises(ValueError, match="of 1 candidates 0 are in the space as it is now"):
        leave_search(session.state, tmp_path, 100)
    assert not (tmp_path / "widths.json").exists()


def test_which_points_are_uniform_is_no_matter_of_edits():
    """An analyst who removes w8a32 of the first layer had made those of w4a32 the uniform ones."""
    space = Space("low", ("stem", "a"), (("w4a32", "w8a32"), ("w1a1", "w2a2")), (1, 2), 5)
    found = (Evaluated(("w8a32", "w2a2"), 50.0, 77), Evaluated(("w4a32", "w2a2"), 40.0, 45))
    state = SearchState(space, Settings(), {}, found)
    edit = {"event": "edit", "edit": Edit("remove", "stem", "w8a32").to_json()}
    for own in (state, moved(state, edit)):
        assert [row["uniform"] for row in front_rows(own)] == [None, 50.0]
        pyplot_for_files()
        labels = {p.get_label(): p for p in draw_front(own).axes[0].collections}
        assert [*map(tuple, labels["one width for all layers"].get_offsets())] == [(77, 50.0)]


def test_the_figure_has_uniform_points_where_the_first_layer_is_free():
    """No two texts are alike there, as pixels have no width: w8a32 and w2a2."""
    space = Space("low", ("stem", "a"), (("w4a32", "w8a32"), ("w1a1", "w2a2")), (1, 2), 5)
    paths = (("w8a32", "w1a1"), ("w4a32", "w2a2"), ("w8a32", "w2a2"))
    found = [Evaluated(path, 50.0 + i, space.cost(path)) for i, path in enumerate(paths)]
    pyplot_for_files()
    figure = draw_front(SearchState(space, Settings(), {}, tuple(found)))
    parts = {part.get_label(): part for part in figure.axes[0].collections}
    points = parts["one width for all layers"].get_offsets()
    assert [tuple(point) for point in points] == [(71, 50.0), (77, 52.0)]


@pytest.mark.parametrize(
    ("settings", "rate"),
    [
        ({}, 0.02),
        ({"learning_rate": 0.05}, 0.01),
        ({"optimizer": "adam", "learning_rate": 1e-3}, 2e-4),
    ],
)
def test_training_on_has_a_fifth_of_the_rate_of_the_supernet(settings, rate):
    """It had 0.02 whatever the optimizer, twenty times the peak of this Adam."""
    config = make_config("quick", {"mode": "supernet", **settings})
    space = Space("low", ("a",), (("w1a1", "w2a2"),), (1,), 5)
    phase = phase_in(space, config.recipe, 2.0)
    assert type(phase.optimizer) is type(config.recipe.phases()[0].optimizer)
    assert float(phase.schedules[RATE](100)(0)) == pytest.approx(rate)


def test_training_on_draws_from_what_the_space_has_left():
    widths = ("w1a1", "w2a2")
    layers = ("free", "x/a", "x/b", "y/a", "y/b", "z/a", "z/b")
    lists = (("w2a2",), *((*widths, "skip"),) * 2, *(widths,) * 2, *(("skip",),) * 2)
    space = Space("low", layers, lists, (1,) * 7, 5, skippable=("x", "y", "z"))
    recipe = make_config("quick", {"mode": "supernet", "skippable": "x y z"}).recipe
    loss = phase_in(space, recipe, 2.0).loss
    assert (loss.skippable, loss.skipped) == (("x",), ("z",))
    assert [[*map(str, loss.layers[name])] for name in layers[:5]] == [["w2a2"], *[[*widths]] * 4]


def test_a_training_counts_when_the_log_has_it(tmp_path):
    """A process may be killed while it trains, and leave a folder without a checkpoint."""
    (tmp_path / "trained1").mkdir()
    assert trained_in(tmp_path) == []
    (tmp_path / LOG).write_text('{"event": "begin"}\n{"event": "trained", "losses": []}\n')
    (tmp_path / "trained2").mkdir()
    assert trained_in(tmp_path) == [tmp_path / "trained1"]


@pytest.mark.parametrize(
    ("command", "flag"),
    [("search", "--port=70000"), ("search", "--port=-1"), ("search.norms", "--candidates=1")],
)
def test_numbers_that_mean_nothing(child_environment, command, flag):
    ended = start(child_environment, command, "--supernet=none", flag)
    assert ended.returncode == 1
    name, _, value = flag.partition("=")
    assert ended.stderr.startswith(f"error: flag {name}={value}: {value} is not")


def test_a_quantile_is_a_share(tmp_path):
    own = {"supernets": ["none"], "evaluations": 1, "images": 0, "workdir": str(tmp_path / "new")}
    for wrong in (1.5, -0.1, float("nan")):
        with pytest.raises(ValueError, match=rf"--quantile={wrong}: expected 0 to 1"):
            steering.main(quantile=wrong, **own)
    assert not (tmp_path / "new").exists()


def test_passes_of_nothing_are_refused_before_the_page(tmp_path, monkeypatch):
    """It was said at the first click on "train on"."""
    config = make_config("quick", {"mode": "supernet"})
    space = Space("low", ("a",), (("w1a1", "w2a2"),), (1,), 5)
    opened = Opened(config, None, None, space, ())
    monkeypatch.setattr(search, "open_supernet", lambda *_: opened)
    settings = {"evaluations": 1, "strategy": "evolve", "population": 2, "seed": 0, "images": 0}
    settings |= {"recalibrate": True, "page": True, "port": 0, "workdir": str(tmp_path / "new")}
    with pytest.raises(ValueError, match=r"passes=0\.0: expected more than 0"):
        search.main(supernet="none", passes=0.0, **settings)
    assert not (tmp_path / "new").exists()


def test_an_unfinished_supernet_is_refused(tmp_path):
    config = make_config("digits", {"mode": "supernet", "dataset": "digits"})
    (tmp_path / CONFIG).write_text(json.dumps({"experiment": config.to_json()}))
    with pytest.raises(ValueError, match=r"no results\.json: expected a finished run; start its"):
        open_supernet(tmp_path, 0, True, None)


def test_intervals_and_ranks():
    rows = [{"a": 1.0, "b": 0.0}, {"a": 3.0, "b": 1.0}, {"a": 4.0, "b": 1.0}]
    assert interval(rows, "a", "b") == "+2.00 [-0.48, 4.48]"
    assert rank_correlation([1, 2, 3], [10, 20, 30]) == 1
    assert rank_correlation([1, 1, 2], [10, 20, 30]) == pytest.approx(3**0.5 / 2)  # ranks 1.5
    assert rank_correlation([1, 1, 2], [20, 10, 30]) == pytest.approx(3**0.5 / 2)
