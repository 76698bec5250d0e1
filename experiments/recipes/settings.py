"""Values of settings: from the text of a command line, and checked against their types."""

import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from flax.core import FrozenDict

from dual_precision.models import IMAGE_MODELS, TEXT_MODELS
from dual_precision.precision import parse

# As a file has them.
WIDTHS = '{"layer or pattern": {"mode": "w4a4"}}, as in {"stage3_*": {"low": "w1a2"}}'
LayerWidths = FrozenDict[str, FrozenDict[str, str]]  # layer or pattern -> mode -> "w4a4"
# What networks read -> those that do, and the command that trains them.
_READERS: dict[str, tuple[Mapping[str, Any], str]] = {
    "images": (IMAGE_MODELS, "experiments.cifar"),
    "text": (TEXT_MODELS, "experiments.lm"),
}


def check_choice(what: str, value: str, known: Sequence[str]) -> None:
    """Raises ValueError where `value` is not among the known."""
    if value not in known:
        raise ValueError(f"{what} {value!r} is unknown: expected one of {list(known)}")


def check_model(model: str, reads: str) -> None:
    """Raises ValueError where `model` is no network of what is read: "images" or "text"."""
    known = sorted(_READERS[reads][0])
    for other, (models, command) in _READERS.items():
        if other != reads and model in models:
            raise ValueError(
                f"model {model!r} reads {other}, and this is a run on {reads}: expected one of"
                f" {known}, or the command `python -m {command}`"
            )
    check_choice("model", model, known)


def check_type(name: str, value: Any, kind: Any) -> None:
    """Raises ValueError unless a field of this type can have the value; a float can be whole."""
    parts = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    kinds = [typing.get_origin(part) or part for part in parts]
    if type(value) not in (*kinds, *([int] if float in kinds else [])):
        names = " or ".join(part.__name__ for part in kinds)
        raise ValueError(f"{name}={value!r:.99}: expected a value of type {names}")


def read_settings(texts: Sequence[str], fields: Mapping[str, Any]) -> dict[str, Any]:
    """["learning_rate=0.2"] -> {"learning_rate": 0.2}, typed as its field is; name -> type.

    Raises:
      ValueError: a name that is not among the fields, or is there twice; a value of another type.
    """
    known = {name: kind for name, kind in fields.items() if name != "widths"}
    settings: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--set {text!r}: expected name=value")
        check_choice("setting", name, sorted(known))
        if name in settings:
            raise ValueError(f"--set {text!r}: {name} is set before: expected one of them")
        kinds = [k for k in typing.get_args(known[name]) if k is not types.NoneType]
        kind = kinds[0] if kinds else known[name]
        try:
            settings[name] = _read(kind, value)
        except (ValueError, KeyError):
            raise ValueError(f"--set {text!r}: expected a value of type {kind.__name__}") from None
    return settings


def _read(kind: type, text: str) -> Any:
    """As `kind(text)`, but "true" and "false" for bool, which takes any text for true."""
    if kind is bool:
        return {"true": True, "false": False}[text.lower()]
    return kind(text)


def read_widths(value: Any) -> LayerWidths:
    """Widths of layers from JSON: {layer or pattern: {mode: "w4a4"}}.

    Raises:
      ValueError: it has another form.
    """
    right = isinstance(value, dict) and all(
        isinstance(entry, dict) and all(isinstance(text, str) for text in entry.values())
        for entry in value.values()
    )
    if not right:
        raise ValueError(f"widths of layers: expected JSON {WIDTHS}")
    for entry in value.values():
        for text in entry.values():
            parse(text)
    return FrozenDict({path: FrozenDict(entry) for path, entry in value.items()})


def read_channels(name: str, text: str) -> tuple[float, ...]:
    """The numbers in a text such as "0.485,0.456,0.406"; none of "".

    Raises:
      ValueError: something else than numbers from 0 to 1; a deviation of 0.
    """
    try:
        values = tuple(float(part) for part in text.split(",")) if text else ()
    except ValueError:
        values = (-1.0,)
    if not all(0 <= value <= 1 and (value or name == "mean") for value in values):
        raise ValueError(
            f"{name}={text!r:.99}: expected a number for each channel, in units where white is 1,"
            " as in 0.485,0.456,0.406"
        )
    return values
