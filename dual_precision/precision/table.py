"""What the names of modes mean, for a whole network and for single layers."""

import dataclasses
import fnmatch
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from flax.core import FrozenDict

from dual_precision.precision.widths import (
    FLOAT,
    FLOAT_NAME,
    MAX_BITS,
    RESERVED,
    Asked,
    Bits,
    Precision,
    mode_of,
    parse,
)


@dataclasses.dataclass(frozen=True, eq=False)
class Resolved:
    """What one call means for one layer.

    Attributes:
      mode: whose input step is used.
      weights, activations, gradients: bits, traced or not; None is float.
      own: what the mode itself means for this layer, whose range an input step covers.
    """

    mode: str
    weights: Bits | None
    activations: Bits | None
    gradients: Bits | None
    own: Precision


@dataclasses.dataclass(frozen=True)
class Modes:
    """The named precisions of a model, and of those layers that have their own.

    Attributes:
      default: mode name -> Precision, for every layer that `layers` does not name.
      layers: layer path ("stage1_block0/conv1") or pattern ("stage3_*") -> mode name -> Precision;
        modes that an entry leaves out keep their default.
      stored: width of the stored grid. The meaning of the step of a weight depends on it alone, not
        on which modes there are.
      norms: mode name -> the mode whose normalisation it uses; others have their own.
      pinned: widths that a call gives for all layers do not reach layers of these modes.

    Hashable, so that a module may hold it and jit may use it as a static value.
    "float" is always a mode and needs no entry.
    """

    default: FrozenDict[str, Precision] = dataclasses.field(default_factory=FrozenDict)
    layers: FrozenDict[str, FrozenDict[str, Precision]] = dataclasses.field(
        default_factory=FrozenDict
    )
    stored: int = MAX_BITS
    norms: FrozenDict[str, str] = dataclasses.field(default_factory=FrozenDict)
    pinned: bool = False

    def __post_init__(self) -> None:
        layers: dict[str, FrozenDict[str, Precision]] = {
            path: FrozenDict(entry) for path, entry in self.layers.items()
        }
        for field, value in (("default", self.default), ("layers", layers), ("norms", self.norms)):
            object.__setattr__(self, field, FrozenDict(value))
        if type(self.stored) is not int or not 1 <= self.stored <= MAX_BITS:
            raise ValueError(
                f"stored={self.stored!r}: expected an integer from 1 to {MAX_BITS}, the bits of"
                " the stored grid"
            )
        for name in self.default:
            if name in RESERVED or not name.isidentifier():
                raise ValueError(
                    f"mode name {name!r}: expected an identifier other than {list(RESERVED)}, of"
                    f" which {FLOAT_NAME!r} is always there and the others let a deployed network"
                    " choose its mode"
                )
        _check_widths("the default", self.default, self.stored)
        for path, entry in self.layers.items():
            if unknown := sorted(set(entry) - set(self.default)):
                raise ValueError(
                    f"layer {path!r} has modes {unknown}: expected some of {sorted(self.default)}"
                )
            _check_widths(f"layer {path!r}", entry, self.stored)
        for name, source in self.norms.items():
            if {name, source} - set(self.names) or source in self.norms:
                raise ValueError(
                    f"norms {name!r}: {source!r}: expected modes of {list(self.names)}, the second"
                    " one with a normalisation of its own"
                )

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that a call may use, float first."""
        return (FLOAT_NAME, *self.default)

    def check_name(self, name: str) -> None:
        """Raises ValueError where `name` is not a mode of this model."""
        if name not in self.names:
            raise ValueError(f"precision {name!r} is unknown: expected one of {list(self.names)}")

    def norm_of(self, precision: Asked) -> str:
        """The mode whose normalisation a call uses."""
        name = mode_of(precision)
        self.check_name(name)
        return self.norms.get(name, name)

    def at(self, path: Sequence[str]) -> FrozenDict[str, Precision]:
        """The table of a layer: mode name -> Precision, float included.

        Raises:
          ValueError: as `own_at`.
        """
        return FrozenDict({FLOAT_NAME: FLOAT, **self.default, **self.own_at(path)})

    def own_at(self, path: Sequence[str]) -> FrozenDict[str, Precision]:
        """What `layers` says of a layer, by its name or by patterns; empty where it says nothing.

        Raises:
          ValueError: two patterns give the layer different widths.
        """
        name = "/".join(path)
        entry = self.layers.get(name)
        if entry is None:
            found = [own for pattern, own in self.layers.items() if fnmatch.fnmatch(name, pattern)]
            if len(set(found)) > 1:
                raise ValueError(
                    f"layer {name!r} has different widths by {len(found)} patterns: expected one;"
                    " name the layer itself, which goes before patterns"
                )
            entry = found[0] if found else FrozenDict()
        return entry

    def input_widths(self, path: Sequence[str], signed: bool) -> dict[str, int]:
        """Mode name -> bits of the inputs of a layer, of the modes that quantize these.

        Raises:
          ValueError: 1 bit of signed inputs, see `primitives.quantizers.code_range`. Nothing could
            be trained that a mode with it runs on.
        """
        widths = {name: p.activations for name, p in self.at(path).items() if p.activations}
        if signed and (bad := [name for name, bits in widths.items() if bits == 1]):
            raise ValueError(
                f"layer {'/'.join(path)!r} has signed inputs, and mode {bad[0]!r} gives it"
                f" {self.at(path)[bad[0]]}: expected 2 bits of activations or more, as of one bit"
                " no code is positive; give the mode, or this layer alone, more"
            )
        return widths

    def stored_at(self, path: Sequence[str]) -> int | None:
        """The stored width of a layer; None where all of its modes have float weights."""
        return self.stored if any(p.weights for p in self.at(path).values()) else None

    def check_layers(self, known: Collection[str], named: Collection[str] = ()) -> None:
        """Raises ValueError where `layers`, or a call's `named` ones, are not among the known."""
        patterns = [p for p in self.layers if not any(fnmatch.fnmatch(k, p) for k in known)]
        unknown = sorted({*patterns, *named} - {*known})
        if unknown:
            raise ValueError(
                f"own widths for unknown layers {unknown}: expected some of {sorted(known)}"
            )

    def resolve(self, path: Sequence[str], precision: Asked) -> Resolved:
        """What a call with `precision` means for the layer at `path`.

        Raises:
          ValueError: an unknown mode; a width for activations that the mode keeps in float.
        """
        name = mode_of(precision)
        self.check_name(name)
        own = self.at(path)[name]
        if isinstance(precision, str):
            return Resolved(name, own.weights, own.activations, own.gradients, own)
        layer = "/".join(path)

        def width(value: Any, default: int | None, pinned: bool) -> Bits | None:
            if isinstance(value, Mapping):
                value, pinned = value.get(layer), False  # named by itself
            return default if value is None or pinned else value

        weights = width(precision.weights, own.weights, self.pinned)
        activations = width(precision.activations, own.activations, self.pinned)
        gradients = width(precision.gradients, own.gradients, False)
        if activations is not None and own.activations is None:
            raise ValueError(
                f"layer {layer!r}: a width for activations, which mode {name!r} keeps in float:"
                " expected a mode that has input steps; name another one, or give none"
            )
        if weights is not None and self.stored_at(path) is None:
            raise ValueError(
                f"layer {layer!r}: a width for weights, and no mode has codes: expected a model"
                " with at least one mode such as low='w2a2'"
            )
        return Resolved(name, weights, activations, gradients, own)

    def pin(self, weights: int | None, activations: int | None) -> "Modes":
        """The same precision in every mode, except for layers that have their own entry."""
        pinned = {
            name: Precision(weights, activations, own.gradients)
            for name, own in self.default.items()
        }
        return dataclasses.replace(
            self,
            default=FrozenDict(pinned),
            stored=max(self.stored, weights or 0),
            pinned=True,
        )

    def to_json(self) -> dict[str, Any]:
        """JSON types, which `modes_from` reads: the part of the description of a network."""
        return {
            "modes": {name: str(p) for name, p in self.default.items()},
            "layers": {
                path: {name: str(p) for name, p in entry.items()}
                for path, entry in self.layers.items()
            },
            "stored": self.stored,
            "norms": dict(self.norms),
        }


def _check_widths(where: str, table: Mapping[str, Precision], stored: int) -> None:
    for name, precision in table.items():
        if not isinstance(precision, Precision):
            raise ValueError(
                f"{where}: mode {name!r} is {precision!r:.99}: expected a Precision; modes() takes"
                " texts"
            )
        if (precision.weights or 0) > stored:
            raise ValueError(
                f"{where}: mode {name!r} has {precision}, wider weights than the {stored} bits"
                " that are stored: expected at most these; give a larger stored="
            )


def modes(
    layers: Mapping[str, Mapping[str, str]] | None = None,
    *,
    stored: int = MAX_BITS,
    norms: Mapping[str, str] | None = None,
    **default: str,
) -> Modes:
    """Modes from texts: `layers` as in Modes, of those that have their own.

    Raises:
      ValueError: a text that is no precision, another form, or see Modes.

    >>> modes(low="w2a2", high="w8a8").at(("conv1",))["low"]
    Precision(weights=2, activations=2, gradients=None)
    """
    given = {} if layers is None else layers
    if not (isinstance(given, Mapping) and all(isinstance(e, Mapping) for e in given.values())):
        raise ValueError(
            f"layers={layers!r:.200}: expected {{layer or pattern: {{mode: widths}}}}, as in"
            ' {"conv1": {"low": "w4a4"}}; the modes of all layers are named, modes(low="w2a2")'
        )
    tables: dict[str, FrozenDict[str, Precision]] = {
        path: FrozenDict({name: parse(text) for name, text in entry.items()})
        for path, entry in given.items()
    }
    return Modes(
        FrozenDict({name: parse(text) for name, text in default.items()}),
        FrozenDict(tables),
        stored,
        FrozenDict(norms or {}),
    )


def modes_from(description: Mapping[str, Any]) -> Modes:
    """The modes that the description of a network means, see `Modes.to_json`.

    What it leaves out is as in `modes`.

    Raises:
      ValueError: as of `modes`.
    """
    given = {key: description[key] for key in ("layers", "stored", "norms") if key in description}
    return modes(**given, **description["modes"])
