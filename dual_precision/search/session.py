"""A search that several people watch and steer, and its log, which is all that is kept of it.

A log is a text file, a JSON object on each line: how the search began, then what happened, each
line written before it takes effect anywhere else. It is replayed without evaluating anything, and
without a page; a search goes on from its log as if it had never stopped.
"""

import dataclasses
import errno
import json
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dual_precision.replacing import replace_file
from dual_precision.search.edits import Edit
from dual_precision.search.evolve import Settings, propose
from dual_precision.search.space import Candidate, Space, SpaceError
from dual_precision.search.state import SearchEvent, SearchState, begin_event, moved, state_from

Evaluate = Callable[[Space, Candidate], float]  # accuracy in percent
Train = Callable[[Space], Sequence[float]]  # trains the shared weights on, gives the losses
LARGEST_LOG = 256 << 20  # bytes
_MOST_TOLD = 8  # differences that an error lists: a network has many layers


def read_events(path: Path) -> list[SearchEvent]:
    """The lines of a log; half a line at the end is of a process that was killed while it wrote.

    Raises:
      SpaceError: no log, or a damaged one. OSError: it cannot be read.
    """
    if path.stat().st_size > LARGEST_LOG:
        raise SpaceError(f"{path}: over {LARGEST_LOG >> 20} MiB: expected a session log")
    events: list[SearchEvent] = []
    try:
        lines = path.read_text().splitlines(keepends=True)
    except UnicodeDecodeError:
        raise SpaceError(f"{path} is no text: expected a session log") from None
    for number, line in enumerate(lines, 1):
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            event = None
        if not isinstance(event, dict):
            if number == len(lines) and number > 1 and not line.endswith("\n"):
                break
            raise SpaceError(f"{path}:{number} is no event: expected a line of a session log")
        events.append(event)
    if not events:
        raise SpaceError(f"{path} is empty: expected a session log; delete it to begin anew")
    return events


def _end_last_line(path: Path, events: int) -> None:
    """Completes the last line of a log if it is an event, and drops it else; in one step."""
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole == len(content):
        return
    if content.count(b"\n") < events:
        with path.open("ab") as log:
            log.write(b"\n")
    else:
        os.truncate(path, whole)


def replay(events: Sequence[SearchEvent]) -> list[SearchState]:
    """The state after every event of a log, that after the first event first.

    Raises:
      SpaceError: an event that cannot happen, or a damaged one; the message has its line.
    """
    states: list[SearchState] = []
    for number, event in enumerate(events, 1):
        try:
            states.append(moved(states[-1], event) if states else state_from(event))
        except SpaceError as error:
            raise SpaceError(f"line {number} of the log: {error}") from None
        except (LookupError, TypeError, ValueError, OverflowError) as error:  # of damaged values
            raise SpaceError(
                f"line {number} of the log: {error!r:.200}: expected an event as a session writes"
                " it; restore the log, or give another workdir"
            ) from None
    return states


class Session:
    """One search, whose state many threads may read and change; a change is logged first.

    Attributes:
      state: where it stands; a value, replaced at every change.
      version: how many changes there have been: those who look on compare it with what they drew.
      path: of the log.
    """

    def __init__(
        self,
        path: str | Path,
        space: Space,
        settings: Settings,
        about: Mapping[str, Any],
        evaluate: Evaluate,
        train: Train | None = None,
        take_trained: Callable[[], None] | None = None,
    ) -> None:
        """Begins a session, or goes on with the one in `path`.

        Args:
          take_trained: has candidates evaluated with the weights that `train` left. It is called
            when the log has the training: until then, those before count.

        Raises:
          SpaceError: the log there began with another space, other settings, or another `about`.
        """
        self.path, self.version = Path(path), 0
        self._evaluate, self._train, self._take_trained = evaluate, train, take_trained
        self._lock = threading.Lock()
        begin = begin_event(space, settings, about)
        if self.path.exists():
            events = read_events(self.path)
            states = replay(events)
            self._check_same(states[0], state_from(begin))
            self.state = states[-1]
            self.version = len(events) - 1
            _end_last_line(self.path, len(events))
        else:
            self.state = state_from(begin)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # As a whole or not at all: nothing goes on from a log without its first line.
            replace_file(self.path, [_line(begin)])

    def step(self) -> bool:
        """Evaluates one candidate more; False where it is paused, or no new one is found."""
        with self._lock:
            state, version = self.state, self.version
        if state.paused:
            return False
        candidate = propose(state.space, state.evaluated, state.settings)
        if candidate is None:
            return False
        accuracy = self._evaluate(state.space, candidate)
        event = {"event": "evaluated", "candidate": list(candidate), "accuracy": accuracy}
        self._happen({**event, "after": version})
        return True

    def run(self, count: int) -> None:
        """Steps until so many have been evaluated in all, or no new one is found."""
        while len(self.state.evaluated) < count and self.step():
            pass

    def edit(self, edit: Edit, by: str = "analyst") -> None:
        """Changes the space, for the next candidate on.

        Raises:
          SpaceError: see `edits.edited`; nothing has changed then.
        """
        self._happen({"event": "edit", "edit": edit.to_json(), "by": by})

    def undo(self, by: str = "analyst") -> None:
        """Takes back the last edit that stands, whoever made it.

        Raises:
          SpaceError: there is none.
        """
        self._happen({"event": "undo", "by": by})

    def pause(self, on: bool, by: str = "analyst") -> None:
        """The search waits, or goes on; without effect where it does already."""
        if self.state.paused != on:
            self._happen({"event": "pause", "on": on, "by": by})

    def train(self) -> None:
        """Trains the shared weights on, in the space as it is; what was evaluated is of before.

        Raises:
          SpaceError: this session has no training. OSError: the log cannot be written; the weights
            are those of before.
        """
        if self._train is None:
            raise SpaceError("this session has no training: expected one with a network")
        losses = self._train(self.state.space)
        self._happen({"event": "trained", "losses": [float(loss) for loss in losses]})
        if self._take_trained is not None:
            self._take_trained()

    def _happen(self, event: dict[str, Any]) -> None:
        with self._lock:
            state = moved(self.state, event)
            self._write(event)
            self.state, self.version = state, self.version + 1

    def _write(self, event: SearchEvent) -> None:
        line = _line(event)
        with self.path.open("ab", buffering=0) as log:
            before = log.seek(0, os.SEEK_END)
            if log.write(line) < len(line):  # what comes next is not to follow on half a line
                log.truncate(before)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))

    def _check_same(self, found: SearchState, wanted: SearchState) -> None:
        """Compares how two sessions began; what was edited since is no matter."""
        if found.space.digest != wanted.space.digest:
            raise SpaceError(
                f"{self.path} is a log of another space, of {[*found.space.layers]}: expected"
                " one of this network and mode; give another workdir"
            )
        if found.settings != wanted.settings:
            there, here = (dataclasses.asdict(state.settings) for state in (found, wanted))
            raise SpaceError(
                f"{self.path} was begun with {there}, now {here}: give the same, or another workdir"
            )
        if pairs := _differences(_choices_of(found.space), _choices_of(wanted.space)):
            raise SpaceError(
                f"{self.path} was begun with other choices: {pairs}; give the same, or another"
                " workdir; on the page a session that goes on can be given others"
            )
        if pairs := _differences(found.about, json.loads(json.dumps(wanted.about))):
            raise SpaceError(
                f"{self.path} is of something else: {pairs}; give the same, or another workdir"
            )


def _line(event: SearchEvent) -> bytes:
    return (json.dumps(event) + "\n").encode()


def _choices_of(space: Space) -> dict[str, Any]:
    """What the digest of a space leaves out: what an edit may change."""
    lists = zip(space.layers, space.alternatives, strict=True)
    own = {f"alternatives of {layer}": " ".join(texts) for layer, texts in lists}
    return {"bound": space.most, "cut": sorted(space.cut), **own}


def _differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """The entries that two mappings do not share, in words; "" is none."""
    names = sorted(k for k in here.keys() | there.keys() if here.get(k) != there.get(k))
    pairs = [f"{k} (there {there.get(k)!r:.60}, here {here.get(k)!r:.60})" for k in names]
    return ", ".join(pairs[:_MOST_TOLD]) + (", and more" if len(pairs) > _MOST_TOLD else "")
