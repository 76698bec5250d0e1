"""What a precision mode is: a frozen pair of widths under a name, and each layer's own.

A mode is data. The call `model.apply(variables, x, precision="low")` names a mode; `Modes` says
what the name means, for the whole network or, where `layers` says so, for one layer.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence

from flax.core import FrozenDict

MAX_BITS = 8
FLOAT_BITS = 32
FLOAT_NAME = "float"

_SPEC = re.compile(r"w(\d+)a(\d+)")


@dataclasses.dataclass(frozen=True)
class Precision:
    """Widths of weights and activations in bits, 1 to 8; None is float."""

    weights: int | None
    activations: int | None

    def __post_init__(self) -> None:
        for what, bits in (("weights", self.weights), ("activations", self.activations)):
            if bits is not None and not 1 <= bits <= MAX_BITS:
                raise ValueError(
                    f"{what} of {bits} bits: expected 1 to {MAX_BITS}, or None for float"
                )

    def __str__(self) -> str:
        return f"w{self.weights or FLOAT_BITS}a{self.activations or FLOAT_BITS}"


FLOAT = Precision(None, None)


def parse(text: str) -> Precision:
    """Reads "w4a4" as Precision(4, 4); 32 stands for float ("w2a32").

    >>> parse("w2a32")
    Precision(weights=2, activations=None)
    """
    match = _SPEC.fullmatch(text)
    if match:
        widths = [int(digits) for digits in match.groups()]
        if all(1 <= width <= MAX_BITS or width == FLOAT_BITS for width in widths):
            return Precision(*(None if width == FLOAT_BITS else width for width in widths))
    raise ValueError(
        f"precision {text!r}: expected w<bits>a<bits>, bits from 1 to {MAX_BITS}"
        f" or {FLOAT_BITS} for float, as in w2a2, w8a8 or w2a32"
    )


@dataclasses.dataclass(frozen=True)
class Modes:
    """The named precisions of a model, and of those layers that have their own.

    Attributes:
      default: mode name -> Precision, for every layer that `layers` does not name.
      layers: layer path ("stage1_block0/conv1") -> its own mode name -> Precision.

    Hashable, so that a module may hold it and jit may use it as a static value.
    "float" is always a mode and needs no entry.
    """

    default: FrozenDict[str, Precision] = dataclasses.field(default_factory=FrozenDict)
    layers: FrozenDict[str, FrozenDict[str, Precision]] = dataclasses.field(
        default_factory=FrozenDict
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "default", FrozenDict(self.default))
        layers: dict[str, FrozenDict[str, Precision]] = {
            path: FrozenDict(own) for path, own in self.layers.items()
        }
        object.__setattr__(self, "layers", FrozenDict(layers))
        for name in self.default:
            if name == FLOAT_NAME or not name.isidentifier():
                raise ValueError(
                    f"mode name {name!r}: expected an identifier other than {FLOAT_NAME!r},"
                    " which is always there"
                )
        for path, own in self.layers.items():
            if set(own) != set(self.default):
                raise ValueError(
                    f"layer {path!r} has modes {sorted(own)}: expected {sorted(self.default)};"
                    " give every mode a precision"
                )

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that a call may use, float first."""
        return (FLOAT_NAME, *self.default)

    def check_name(self, name: str) -> None:
        """Raises ValueError where `name` is not a mode of this model."""
        if name not in self.names:
            raise ValueError(f"precision {name!r} is unknown: expected one of {list(self.names)}")

    def at(self, path: Sequence[str]) -> FrozenDict[str, Precision]:
        """The layer's own table: mode name -> Precision, float included."""
        own = self.layers.get("/".join(path), self.default)
        return FrozenDict({FLOAT_NAME: FLOAT, **own})

    def pin(self, weights: int | None, activations: int | None) -> "Modes":
        """The same precision in every mode, except for layers that have their own entry."""
        pinned = {name: Precision(weights, activations) for name in self.default}
        return dataclasses.replace(self, default=FrozenDict(pinned))


def modes(layers: Mapping[str, Mapping[str, str]] | None = None, **default: str) -> Modes:
    """Modes from texts.

    >>> modes(low="w2a2", high="w8a8").at(("conv1",))["low"]
    Precision(weights=2, activations=2)
    """
    tables = {path: {n: parse(t) for n, t in own.items()} for path, own in (layers or {}).items()}
    return Modes(
        FrozenDict({name: parse(text) for name, text in default.items()}),
        FrozenDict({path: FrozenDict(own) for path, own in tables.items()}),
    )


def stored_bits(table: Mapping[str, Precision]) -> int | None:
    """The width at which a layer's weights are stored: its widest mode. None if all are float."""
    widths = [precision.weights for precision in table.values() if precision.weights]
    return max(widths, default=None)
