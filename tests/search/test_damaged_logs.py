"""Session logs with damaged values: each is an error that names its line, never a traceback."""

import json

import pytest

from dual_precision.search.evolve import Settings
from dual_precision.search.session import replay
from dual_precision.search.space import Space, SpaceError, space_from
from dual_precision.search.state import begin_event

SPACE = Space("low", ("a", "b"), (("w1a1", "w2a2"),) * 2, (100, 200), 50)
HUGE = 10**400  # JSON has it, a float has not


def first_line():
    return json.loads(json.dumps(begin_event(SPACE, Settings(), {"losses": [2, 1.5]})))


def test_a_whole_log():
    events = [first_line(), {"event": "trained", "losses": [1]}]
    assert [state.losses for state in replay(events)] == [(2, 1.5), (2, 1.5, 1)]


@pytest.mark.parametrize(
    ("event", "message"),
    [
        ({"event": "edit", "edit": {"kind": []}}, "edit .*: expected a kind of"),
        ({"event": "edit", "edit": None}, "edit None: expected a kind of"),
        ({"event": "edit", "edit": {"kind": "bound", "most": HUGE}}, "expected an event as"),
        ({"event": "trained", "losses": None}, "losses None: expected a list of numbers"),
        ({"event": "trained", "losses": ["1"]}, r"losses \['1'\]: expected a list of numbers"),
        ({"event": "trained", "losses": [HUGE]}, "expected an event as"),
        ({"event": [], "by": {}}, r"event \[\] is unknown"),
        (
            {"event": "evaluated", "candidate": ["w1a1", "w1a1"], "accuracy": HUGE},
            "expected an event as",
        ),
        ({"event": "evaluated", "candidate": 5, "accuracy": 1}, "none of this space"),
    ],
)
def test_a_damaged_event(event, message):
    with pytest.raises(SpaceError, match=f"line 2 of the log: .*{message}"):
        replay([first_line(), event])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"about": {"losses": 5}}, "losses 5: expected a list of numbers"),
        ({"about": {"losses": [HUGE]}}, "expected an event as a session writes it"),
        ({"about": None}, "no settings, or no facts"),
        ({"settings": {"seed": "x"}}, "no settings"),
        ({"space": 5}, "no space"),
    ],
)
def test_a_damaged_first_line(changed, message):
    with pytest.raises(SpaceError, match=f"line 1 of the log: .*{message}"):
        replay([first_line() | changed])


@pytest.mark.parametrize(
    "changed",
    [
        {"macs": ["x", 1]},
        {"macs": [float("inf"), 1]},
        {"macs": [1]},
        {"alternatives": []},
        {"alternatives": [["w1a1", "w2a2"]]},
        {"cut": [[0, "w1a1"]]},
        {"most": HUGE},
        {"layers": None},
    ],
)
def test_a_damaged_space(changed):
    found = first_line()
    with pytest.raises(SpaceError, match=r"no space .*: expected what a session log begins with"):
        space_from(found["space"] | changed)
    with pytest.raises(SpaceError, match="line 1 of the log: no space"):
        replay([{**found, "space": found["space"] | changed}])
