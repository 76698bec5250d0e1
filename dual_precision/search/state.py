"""Where a search stands: a value, and how each line of a session log moves it on."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from dual_precision.search.edits import edit_from, edited
from dual_precision.search.evolve import Evaluated, Settings
from dual_precision.search.space import Space, SpaceError, space_from

_FORMAT = "dual_precision search 1"
SearchEvent = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class SearchState:
    """After so many events.

    Attributes:
      space: as the analysts have edited it.
      about: what the session is of, for its user: network, data.
      evaluated: in order, of the weights that are searched now.
      before: those of earlier weights, which training has changed since.
      history: the spaces that can be come back to, and what was done in each, the oldest first.
      losses: of the training of the supernet, one for each record.
      paused: whether the search waits.
      last: what happened last, for those who look on.
    """

    space: Space
    settings: Settings
    about: Mapping[str, Any]
    evaluated: tuple[Evaluated, ...] = ()
    before: tuple[Evaluated, ...] = ()
    history: tuple[tuple[Space, str], ...] = ()
    losses: tuple[float, ...] = ()
    paused: bool = False
    last: str = ""

    @property
    def begun(self) -> Space:
        """The space before any edit."""
        return self.history[0][0] if self.history else self.space


def begin_event(space: Space, settings: Settings, about: Mapping[str, Any]) -> dict[str, Any]:
    """The first line of a log."""
    own = {"space": space.to_json(), "settings": dataclasses.asdict(settings)}
    return {"event": "begin", "format": _FORMAT, "digest": space.digest, **own, "about": {**about}}


def state_from(event: SearchEvent) -> SearchState:
    """The state that a log begins with.

    Raises:
      SpaceError: the event is something else.
    """
    if event.get("event") != "begin" or event.get("format") != _FORMAT:
        raise SpaceError(f"a log that begins with {str(event)[:120]}: expected {_FORMAT!r}")
    try:
        settings = Settings(**event["settings"])
        about = dict(event["about"])
        losses = _losses_of(about)
    except (KeyError, TypeError, ValueError) as error:
        raise SpaceError(
            f"a log whose first line has no settings, or no facts of its network: {error}"
        ) from None
    space = space_from(event.get("space", {}))
    if space.digest != event.get("digest"):
        raise SpaceError("a log whose space is not the one that its digest is of: it was changed")
    return SearchState(space, settings, about, losses=losses)


def moved(state: SearchState, event: SearchEvent) -> SearchState:
    """The state after an event.

    Raises:
      SpaceError: an unknown event, or one that cannot happen in this state.
    """
    kind, by = event.get("event"), event.get("by", "")
    if kind == "evaluated":
        return _evaluated(state, event)
    if kind == "edit":
        edit = edit_from(event.get("edit", {}))
        history = (*state.history, (state.space, str(edit)))
        space = edited(state.space, edit)
        return dataclasses.replace(state, space=space, history=history, last=f"{by}: {edit}")
    if kind == "undo":
        if not state.history:
            raise SpaceError("nothing to undo: no edit is left")
        space, what = state.history[-1]
        history = state.history[:-1]
        return dataclasses.replace(state, space=space, history=history, last=f"{by}: undo {what}")
    if kind == "pause":
        paused = bool(event.get("on"))
        return dataclasses.replace(
            state, paused=paused, last=f"{by}: {'pause' if paused else 'go on'}"
        )
    if kind == "trained":
        losses = (*state.losses, *_losses_of(event))
        before = (*state.before, *state.evaluated)
        return dataclasses.replace(
            state, evaluated=(), before=before, losses=losses, last="trained on"
        )
    raise SpaceError(f"event {kind!r} is unknown: expected evaluated, edit, undo, pause, trained")


def _losses_of(event: Mapping[str, Any]) -> tuple[float, ...]:
    found = event.get("losses", ())
    numbers = isinstance(found, list | tuple) and all(type(one) in (int, float) for one in found)
    if not numbers:
        raise SpaceError(f"losses {found!r:.80}: expected a list of numbers")
    return tuple(map(float, found))


def _evaluated(state: SearchState, event: SearchEvent) -> SearchState:
    try:
        candidate = tuple(map(str, event["candidate"]))
        one = Evaluated(candidate, float(event["accuracy"]), state.space.cost(candidate))
    except (KeyError, TypeError, ValueError) as error:
        raise SpaceError(
            f"an evaluation that is none of this space ({error}): expected a log of a search over"
            f" {list(state.space.layers)}"
        ) from None
    return dataclasses.replace(
        state, evaluated=(*state.evaluated, one), last=f"evaluated: {one.accuracy:.2f} %"
    )
