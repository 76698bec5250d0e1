"""What the widgets of the page do, without a browser: selections, messages, pauses."""

import math

import pytest

from dual_precision.search.edits import Edit, edited
from dual_precision.search.evolve import Settings
from dual_precision.search.page import shown
from dual_precision.search.page.server import Worker
from dual_precision.search.session import Session
from dual_precision.search.space import Space
from dual_precision.search.state import SearchState

CHOICES = tuple(f"w{w}a{a}" for w in range(1, 4) for a in range(1, 4))
SPACE = Space("low", ("a", "b"), (CHOICES,) * 2, (100, 200), 50)


def score(space, candidate):
    return float(sum(int(text[1]) for text in candidate))


def views_of(space, path):
    """Those of one browser, of a session with 10 candidates that no thread goes on with."""
    pytest.importorskip("bokeh", reason="the page needs the extra [pages]")
    from dual_precision.search.page.views import Views

    session = Session(path, space, Settings(), {}, score, lambda space: [1.0])
    session.run(10)
    return Views(Worker(session, 1000), "one")


@pytest.fixture
def views(tmp_path):
    return views_of(SPACE, tmp_path / "log")


@pytest.mark.parametrize("name", shown.PRESETS)
def test_no_preset_makes_a_block_mandatory(name):
    lists = ((*CHOICES, "skip"),) * 2
    space = Space("low", ("x/a", "x/b"), lists, (1, 1), 5, skippable=("x",))
    for edit in shown.preset_edits(SearchState(space, Settings(), {}), name):
        space = edited(space, edit)
    assert all("skip" in own for own in space.alternatives)
    assert all(len(own) > 1 for own in space.alternatives)


def select_grey(views):
    """All that nobody has evaluated; the last row is one of them."""
    rows = [i for i, one in enumerate(views._candidates) if math.isnan(one.accuracy)]
    assert rows[-1] == len(views._candidates) - 1
    views.candidates.selected.indices = rows
    return {views._candidates[i].candidate for i in rows}


def selected(views):
    return {views._candidates[i].candidate for i in views.candidates.selected.indices}


def test_a_selection_follows_its_candidates(views):
    """Rows of those that nobody has evaluated move when one more has been, and shrink with the
    space: it was an IndexError that left a preset half done."""
    picked = select_grey(views)
    views.session.run(14)
    views.refresh()
    assert selected(views) == picked  # evaluated or not: the same candidates
    assert f"union of {len(picked)}<" in views.common.text
    views.preset.value = "equal bits, such as w2a2"
    texts = ("w1a1", "w2a2", "w3a3")
    assert views.session.state.space.alternatives == (texts, texts)
    assert views.preset.value == "preset"
    assert selected(views) <= picked
    assert f"union of {len(selected(views))}<" in views.common.text
    left = selected(views)
    views.session.train()
    views.refresh()
    assert selected(views) == left
    views.candidates.selected.indices = [0, 10_000]  # of rows that are gone meanwhile
    assert "union of 1<" in views.common.text


def test_what_one_edit_of_several_could_not_do_is_said(views):
    """The second edit was made, and what it said, nothing, had erased the error of the first."""
    rows = [views._blocks.index(block) for block in (("a", "w1a1"), ("b", "w1a1"))]
    views.blocks.selected.indices = rows
    views.session.edit(Edit("remove", "a", "w1a1"), "two")
    views._edit_chosen("remove")
    assert "'a' has no 'w1a1', or no longer" in views.message.text
    assert "w1a1" not in views.session.state.space.alternatives[1]
    views._edit_chosen("remove")
    assert views.message.text.count("no longer") == 2
    views._do(views.session.undo)
    assert views.message.text == ""


@pytest.mark.parametrize("kind", ["cut", "join"])
def test_only_neighbours_are_connected(tmp_path, kind):
    """An edit names the first layer alone: it was another block of the next one that was cut."""
    space = Space("low", ("a", "b", "c"), (CHOICES,) * 3, (1, 2, 3), 5)
    space = edited(space, Edit("cut", "a", "w1a1", "w2a2"))
    views = views_of(space, tmp_path / "log")

    def connect(*blocks):
        views.blocks.selected.indices = [views._blocks.index(block) for block in blocks]
        views._connect(kind)

    first = ("a", "w1a1")
    for others in ([("a", "w2a2")], [("c", "w2a2")], [], [("b", "w2a2"), ("c", "w2a2")]):
        connect(first, *others)
        assert "expected two blocks of neighbouring layers" in views.message.text
    assert views.session.state.space == space
    connect(("b", "w2a2"), first)
    assert (views.session.state.space == space) == (kind == "cut")  # which it is already


def test_trouble_is_said_while_there_is_some(views):
    views._say("an edit that cannot be")
    views.worker.trouble = "ValueError: no data"
    views.refresh()
    assert "an edit that cannot be<br>ValueError: no data" in views.message.text
    views._do()
    assert "ValueError: no data" in views.message.text
    views.worker.trouble = ""
    views.refresh()
    assert views.message.text == ""


def test_a_search_that_finds_nothing_new_is_said(views):
    worker = views.worker
    worker.session.edit(Edit("bound", most=350.0))  # the cheapest path alone
    worker.session.run(1000)
    assert not worker._one()
    views.refresh()
    assert "no new candidate is found" in views.status.text
    worker.session.edit(Edit("bound", most=None))
    assert worker._one()
    views.refresh()
    assert "<b>searching</b>" in views.status.text


def test_training_is_said_also_when_the_search_is_paused_or_done(views):
    views.worker.training, views.worker.evaluations = True, 10
    views.refresh()
    assert "<b>training</b>" in views.status.text
    views.session.pause(True)
    views.refresh()
    assert "<b>training</b>" in views.status.text
    views.worker.training = False
    views.refresh()
    assert "<b>paused</b>" in views.status.text


def test_blocks_can_be_read(views):
    """White text stood on blocks of high fitness, which are yellow, and on removed ones."""
    views.session.edit(Edit("remove", "a", "w1a1"))
    columns = shown.block_columns(views.session.state, views._blocks, set())
    names = ("alpha", "pale", "fitness", "ink")
    for alpha, pale, fitness, ink in zip(*(columns[name] for name in names), strict=True):
        assert (ink == "white") == (alpha == 1 and fitness <= 0.6)
        assert (pale > 0.5) == (alpha == 1)  # also where another block is selected
    assert {"white", "black"} < set(columns["ink"])


def test_candidates_without_an_accuracy_are_smaller(views):
    """They are drawn over the others."""
    columns = views.candidates.data
    for accuracy, size in zip(columns["accuracy"], columns["size"], strict=True):
        assert (size < 7) == math.isnan(accuracy)


def test_what_an_error_says_is_no_markup(views):
    views.blocks.selected.indices = [0]
    views.text.value = "w9a2"
    views._add_text()
    assert "expected w&lt;bits&gt;a&lt;bits&gt;" in views.message.text
    views.text.value = "<b>"
    views._add_text()
    assert "'&lt;b&gt;'" in views.message.text


def test_the_bound_is_in_the_status(views):
    assert "bound none" in views.status.text
    views.bound.value = "1e3"
    views._set_bound()
    assert "bound 1,000 BitOps" in views.status.text


def test_one_network_that_is_left_is_said(views):
    worker = views.worker
    for layer, text in (("a", "w3a1"), ("b", "w1a2")):
        worker.session.edit(Edit("keep", layer, text))
    while worker._one():
        pass
    views.refresh()
    assert worker.exhausted
    assert "one network is left, and it is evaluated" in views.status.text


def test_what_others_do_erases_no_message(views):
    """A pause by another analyst moves the button, which is not a click."""
    views._say("an edit that cannot be")
    views.session.pause(True, "two")
    views.refresh()
    assert views.pause.active
    assert "an edit that cannot be" in views.message.text
    views.pause.active = False
    assert not views.session.state.paused
    assert views.message.text == ""


def test_a_log_that_cannot_be_written_is_said(views, monkeypatch):
    def full(event):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(views.session, "_write", full)
    views.pause.active = True
    assert "No space left on device" in views.message.text
    assert not views.pause.active
    views._edit([Edit("remove", "a", text) for text in CHOICES[:2]])
    assert views.message.text.count("No space left") == 1
    assert views.session.state.space == SPACE
