"""Kills at a moment, and how a killed run is compared; the whole command takes minutes."""

import dataclasses
import json
import time
from functools import partial

import numpy as np
import pytest

from experiments.benchmark.reliability import kills
from experiments.benchmark.reliability.killed_runs import (
    KillMoment,
    Workplace,
    commits,
    differing,
    is_unfinished,
    outcome_of,
    recorded,
    written,
)

pytestmark = pytest.mark.slow

# Writes a file after a while, and then would go on for long.
_WRITES = "import sys, time; open(sys.argv[1], 'w').write('x'); time.sleep(float(sys.argv[2]))"


@pytest.fixture
def place(tmp_path) -> Workplace:
    return Workplace.of(tmp_path)


def generator() -> np.random.Generator:
    return np.random.default_rng(0)


def test_a_process_is_killed_at_its_moment(place):
    path = place.folder / "file"
    moment = KillMoment("when a file appears", partial(written, path), 0.01)
    assert place.kill(["-c", _WRITES, str(path), "600"], moment, generator())
    assert path.exists()
    time.sleep(0.01)
    assert place.kill(["-c", _WRITES, str(path), "600"], moment, generator()), "a second time too"


def test_a_process_that_ends_before_is_not_killed(place):
    never = KillMoment("never", set, 0.0)
    assert not place.kill(["-c", "pass"], never, generator())


def test_a_command_that_fails_is_an_error(place):
    fails = ["-c", "import sys; sys.exit('on purpose')"]
    with pytest.raises(ValueError, match=r"exit status 1: on purpose"):
        place.finish(fails)
    with pytest.raises(ValueError, match=r"exit status 1: on purpose"):
        place.kill(fails, KillMoment("never", set, 0.0), generator())


def test_what_is_half_done_is_seen(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 3}\n')
    assert not is_unfinished(tmp_path)
    assert recorded(tmp_path) == {3}
    (tmp_path / "metrics.jsonl").write_text('{"step": 3}\n{"st')
    assert is_unfinished(tmp_path)
    assert recorded(tmp_path) == {3}
    (tmp_path / "metrics.jsonl").unlink()
    (half := tmp_path / "net.part").touch()
    assert kills.take_unfinished(tmp_path)
    assert not half.exists(), "the next kill would count it again"
    (tmp_path / "checkpoints" / "30.orbax-checkpoint-tmp").mkdir(parents=True)
    assert is_unfinished(tmp_path)
    assert len(commits(tmp_path)) == 1


def test_runs_are_compared_without_their_speed(two_phase_run, tmp_path):
    right = outcome_of(two_phase_run)
    assert {"last step", "best step", "arrays", "log", "results"} == set(right)
    assert "examples_per_second" not in right["log"]
    assert differing(right, right) == []
    other = {**right, "arrays": {}, "log": json.dumps([])}
    assert differing(other, right) == ["arrays", "log"]


class Commands(Workplace):
    """In the place of the real commands: what a killed one leaves, and then a whole one."""

    def __init__(self, folder, left, whole):
        super().__init__(folder, {})
        object.__setattr__(self, "contents", {"kill": left, "finish": whole})

    def _write(self, name):
        (self.folder / kills.NAME).write_bytes(self.contents[name])

    def kill(self, command, moment, rng):
        self._write("kill")
        return True

    def finish(self, command):
        self._write("finish")


def test_a_file_that_is_neither_old_nor_new_is_an_error(tmp_path):
    path, kill = tmp_path / kills.NAME, kills.Kill("on purpose")

    def kill_writing(left, whole):
        path.write_bytes(b"old")
        place = Commands(tmp_path, left, whole)
        return list(kills.write_killed(place, [], path, kill, b"new", generator()))

    assert kill_writing(b"old", b"new") == kill_writing(b"new", b"new") == [kill]
    with pytest.raises(ValueError, match="neither the old nor the new file"):
        kill_writing(b"half", b"new")
    with pytest.raises(ValueError, match="another one than that of the whole run"):
        kill_writing(b"old", b"third")


def test_the_table_counts_moments():
    one, two = kills.Kill("a"), dataclasses.replace(kills.Kill("b"), unfinished=True)
    rows = [line.split("|")[1:-1] for line in kills.kills_table([one, two, two]).splitlines()[2:]]
    assert [[cell.strip() for cell in row] for row in rows] == [["a", "1", "0"], ["b", "2", "2"]]
