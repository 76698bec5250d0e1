"""The thread that searches behind the page, without the page: trouble, and logs that are full."""

import time

import pytest

from dual_precision.search.edits import Edit
from dual_precision.search.evolve import Settings
from dual_precision.search.page.server import Worker
from dual_precision.search.session import Session, read_events, replay
from dual_precision.search.space import Space
from experiments.search.__main__ import search

CHOICES = ("w1a1", "w2a2", "w4a4")
WIDE = tuple(f"w{w}a{a}" for w in range(1, 5) for a in range(1, 5))
SPACE = Space("low", ("a", "b", "c"), (CHOICES,) * 3, (100, 200, 300), 50)
WAIT = 15  # seconds, on a busy machine


def score(space, candidate):
    time.sleep(0.001)
    return float(sum(int(text[1]) for text in candidate))


def wait_for(check):
    end = time.monotonic() + WAIT
    while not check():
        assert time.monotonic() < end, f"nothing after {WAIT} s"
        time.sleep(0.01)


class FullDisk:
    """Stands for how a session writes its log, as long as `full`."""

    def __init__(self, session):
        self.full, self._write = False, session._write
        session._write = self

    def __call__(self, event):
        if self.full:
            raise OSError(28, "No space left on device")
        self._write(event)


@pytest.fixture
def worker(tmp_path):
    found = Worker(Session(tmp_path / "log", SPACE, Settings(), {}, score), 20)
    yield found
    if found._thread.is_alive():
        found.stop()


def test_a_log_that_cannot_be_written_pauses_the_search(worker):
    """It ended the thread, and the page showed a search for ever. The pause is logged when it can
    be, and "go on" goes on."""
    session, disk = worker.session, FullDisk(worker.session)
    disk.full = True
    worker.start()
    wait_for(lambda: worker.trouble)
    assert worker.trouble == "OSError: [Errno 28] No space left on device"
    wait_for(lambda: worker.halted)
    version = worker.version
    time.sleep(0.2)  # four looks: it evaluates nothing meanwhile
    assert worker.version == version
    assert worker._thread.is_alive()
    assert not session.state.evaluated
    disk.full = False
    wait_for(lambda: session.state.paused)
    assert worker.trouble
    session.pause(False)
    wait_for(lambda: len(session.state.evaluated) == 20)
    assert not worker.trouble
    assert not worker.halted
    assert replay(read_events(session.path))[-1] == session.state


def test_weights_change_when_the_log_has_the_training(tmp_path):
    """Else what is evaluated next is of other weights than those that stand beside it."""
    taken = []
    session = Session(
        tmp_path / "log", SPACE, Settings(), {}, score, lambda space: [1.0], lambda: taken.append(1)
    )
    disk = FullDisk(session)
    session.run(3)
    disk.full = True
    with pytest.raises(OSError, match="No space left"):
        session.train()
    assert not taken
    assert len(session.state.evaluated) == 3
    disk.full = False
    session.train()
    assert taken == [1]
    assert len(session.state.before) == 3


# 65,536 paths, of which the bound leaves one: too many to list, and 64 draws give that one.
NARROW = Space("low", tuple("abcd"), (WIDE,) * 4, (100,) * 4, 0, most=400)


def test_a_search_that_finds_nothing_new_says_so(tmp_path, capsys):
    """It ended without a word, and the page showed a search for ever."""
    session = Session(tmp_path / "log", NARROW, Settings(), {}, score)
    search(session, 5)
    assert [one.candidate for one in session.state.evaluated] == [("w1a1",) * 4]
    assert "stopped after 1 of 5 candidates: no new one is found" in capsys.readouterr().out


def test_a_search_of_one_network_ends(tmp_path, capsys):
    session = Session(tmp_path / "log", SPACE, Settings(), {}, score)
    for layer, text in zip(SPACE.layers, CHOICES, strict=True):
        session.edit(Edit("keep", layer, text))
    search(session, 5)
    assert [one.candidate for one in session.state.evaluated] == [CHOICES]
    assert "stopped after 1 of 5 candidates: one network is left" in capsys.readouterr().out


def test_a_worker_that_finds_nothing_new_waits_for_an_edit(tmp_path):
    worker = Worker(Session(tmp_path / "log", NARROW, Settings(), {}, score), 20)
    assert worker._one()
    assert not worker.exhausted
    version = worker.version
    assert not worker._one()
    assert worker.exhausted
    assert worker.version != version  # so that the page draws it
    worker.session.pause(True)
    assert not worker.exhausted
    assert not worker._one()
    assert not worker.exhausted  # it is paused, nothing was looked for
    worker.session.pause(False)
    assert not worker._one()
    worker.session.edit(Edit("bound", most=1000.0))
    assert not worker.exhausted
    assert worker._one()
