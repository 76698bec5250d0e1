"""What an analyst may change of a space, as data."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from dual_precision.search.space import Space, SpaceError


@dataclasses.dataclass(frozen=True)
class Edit:
    """One change.

    Attributes:
      kind: remove or add an alternative; keep it alone; cut it from one of the next layer, or join
        them again; bound the cost.
      layer, alternative: of remove, add, keep, cut and join.
      next: of cut and join: the alternative of the next layer.
      most: of bound: BitOps, None is none.
    """

    kind: str
    layer: str = ""
    alternative: str = ""
    next: str = ""
    most: float | None = None

    def __str__(self) -> str:
        if self.kind == "bound":
            return "bound " + ("off" if self.most is None else f"{self.most:,.0f} BitOps")
        end = f" > {self.next}" if self.next else ""
        return f"{self.kind} {self.layer} {self.alternative}{end}"

    def to_json(self) -> dict[str, Any]:
        """JSON types, which `edit_from` reads."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value != ""}


def edit_from(found: Mapping[str, Any]) -> Edit:
    """The edit that `Edit.to_json` wrote.

    Raises:
      SpaceError: it is something else.
    """
    known = {field.name for field in dataclasses.fields(Edit)}
    kind = found.get("kind") if isinstance(found, Mapping) else None
    if not isinstance(kind, str) or set(found) - known or kind not in _KINDS:
        raise SpaceError(f"edit {found!r:.200}: expected a kind of {list(_KINDS)}, of {known}")
    edit = Edit(**found)
    texts = (edit.layer, edit.alternative, edit.next)
    if not all(isinstance(text, str) for text in texts) or not (
        edit.most is None or (type(edit.most) in (int, float) and math.isfinite(edit.most))
    ):
        raise SpaceError(
            f"edit {found!r:.200}: expected texts, and of most a finite number or null"
        )
    return edit


def edited(space: Space, edit: Edit) -> Space:
    """The space after an edit.

    Raises:
      SpaceError: it names what is not there, changes nothing, or leaves no path.
    """
    if edit.kind not in _KINDS:
        raise SpaceError(f"edit {edit.kind!r} is unknown: expected one of {list(_KINDS)}")
    return _KINDS[edit.kind](space, edit)


def _index(space: Space, edit: Edit) -> int:
    if edit.layer not in space.layers:
        raise SpaceError(f"layer {edit.layer!r} is unknown: expected one of {list(space.layers)}")
    return space.layers.index(edit.layer)


def _with(space: Space, index: int, own: tuple[str, ...]) -> Space:
    """Another list for one layer; connections of what is gone are gone too."""
    lists = (*space.alternatives[:index], own, *space.alternatives[index + 1 :])
    cut = frozenset((i, a, b) for i, a, b in space.cut if a in lists[i] and b in lists[i + 1])
    return dataclasses.replace(space, alternatives=lists, cut=cut)


def _present(space: Space, index: int, alternative: str) -> None:
    own = space.alternatives[index]
    if alternative not in own:
        raise SpaceError(
            f"layer {space.layers[index]!r} has no {alternative!r}, or no longer: expected one of"
            f" {list(own)}"
        )


def _remove(space: Space, edit: Edit) -> Space:
    index = _index(space, edit)
    _present(space, index, edit.alternative)
    own = tuple(text for text in space.alternatives[index] if text != edit.alternative)
    if not own:
        raise SpaceError(
            f"{edit.alternative!r} is the last alternative of layer {edit.layer!r}: without it no"
            " path is left; add another one first"
        )
    return _with(space, index, own)


def _add(space: Space, edit: Edit) -> Space:
    index = _index(space, edit)
    if edit.alternative in space.alternatives[index]:
        raise SpaceError(f"layer {edit.layer!r} has {edit.alternative!r} already")
    return _with(space, index, (*space.alternatives[index], edit.alternative))


def _keep(space: Space, edit: Edit) -> Space:
    index = _index(space, edit)
    _present(space, index, edit.alternative)
    if len(space.alternatives[index]) == 1:
        raise SpaceError(f"layer {edit.layer!r} has {edit.alternative!r} alone already")
    return _with(space, index, (edit.alternative,))


def _cut(space: Space, edit: Edit) -> Space:
    step = _step(space, edit)
    if step in space.cut:
        raise SpaceError(f"{edit}: that connection is cut already")
    return dataclasses.replace(space, cut=space.cut | {step})


def _join(space: Space, edit: Edit) -> Space:
    step = _step(space, edit)
    if step not in space.cut:
        raise SpaceError(f"{edit}: that connection is there")
    return dataclasses.replace(space, cut=space.cut - {step})


def _step(space: Space, edit: Edit) -> tuple[int, str, str]:
    index = _index(space, edit)
    if index + 1 == len(space.layers):
        raise SpaceError(f"layer {edit.layer!r} is the last: nothing follows on it")
    _present(space, index, edit.alternative)
    _present(space, index + 1, edit.next)
    return index, edit.alternative, edit.next


def _bound(space: Space, edit: Edit) -> Space:
    if edit.most == space.most:
        raise SpaceError(f"{edit}: that is the bound already")
    return dataclasses.replace(space, most=edit.most)


_KINDS: dict[str, Callable[[Space, Edit], Space]] = {
    "remove": _remove,
    "add": _add,
    "keep": _keep,
    "cut": _cut,
    "join": _join,
    "bound": _bound,
}
