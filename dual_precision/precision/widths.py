"""Widths of one layer or of all: a fixed set of them, its text, and widths that are values."""

import dataclasses
import numbers
import re
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax

MAX_BITS = 8
FLOAT_BITS = 32
FLOAT_NAME = "float"
# What no mode is called: a cascade, the budget of a server and a generator go by the other words.
RESERVED = (FLOAT_NAME, "auto", "budget", "draft")

Bits = int | jax.Array

_SPEC = re.compile(r"w(\d{1,2})a(\d{1,2})(?:g(\d{1,2}))?", re.ASCII)


def is_whole(value: Any) -> bool:
    """Whether this is a whole number, of Python or of NumPy; True and False are none."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


@dataclasses.dataclass(frozen=True)
class Precision:
    """Widths in bits, 1 to 8; None is float.

    Attributes:
      weights, activations: of the kernel of a layer and of its input.
      gradients: of the gradient that comes back to the output of a layer (backward precision).
    """

    weights: int | None
    activations: int | None
    gradients: int | None = None

    def __post_init__(self) -> None:
        for what, bits in dataclasses.asdict(self).items():
            if bits is not None and (type(bits) is not int or not 1 <= bits <= MAX_BITS):
                raise ValueError(
                    f"{what} of {bits!r} bits: expected an integer from 1 to {MAX_BITS},"
                    " or None for float"
                )

    @property
    def weight_bits(self) -> int:
        """Bits of a weight, where float has 32."""
        return self.weights or FLOAT_BITS

    def __str__(self) -> str:
        gradients = f"g{self.gradients}" if self.gradients else ""
        return f"w{self.weight_bits}a{self.activations or FLOAT_BITS}{gradients}"


FLOAT = Precision(None, None)


def parse(text: str) -> Precision:
    """Reads "w4a4" as Precision(4, 4), and "w4a4g8" with 8-bit gradients; 32 stands for float.

    >>> parse("w2a32")
    Precision(weights=2, activations=None, gradients=None)
    """
    match = _SPEC.fullmatch(text) if isinstance(text, str) else None
    if match:
        widths = [int(digits or FLOAT_BITS) for digits in match.groups()]
        if all(1 <= width <= MAX_BITS or width == FLOAT_BITS for width in widths):
            return Precision(*(None if width == FLOAT_BITS else width for width in widths))
    raise ValueError(
        f"precision {text!r}: expected w<bits>a<bits> or w<bits>a<bits>g<bits>, bits from 1 to"
        f" {MAX_BITS} or {FLOAT_BITS} for float, as in w2a2, w8a8, w2a32 or w4a4g8"
    )


@flax.struct.dataclass
class Widths:
    """A precision whose widths are values, traced or not: one program for all of them.

    `model.apply(variables, x, precision=Widths("high", weights=4, activations=4))` uses the
    normalisation and the input steps of the mode "high", and other widths. A width is an integer
    or an int array of shape (), for every layer that is not pinned, or a mapping from layer paths
    to such; layers that it does not name, and None, keep the widths of the mode. The range that an
    input step covers stays: at n bits in the place of N the step is (2^N - 1) / (2^n - 1) times as
    large, and of signed inputs (2^(N-1) - 1) / (2^(n-1) - 1) times.

    Attributes:
      mode: a mode of the model; the static part.
      kept: a mapping from paths of residual blocks to 1, or to 0 where the block is left out: its
        input is its output then. None, and blocks that it does not name, are kept.
    """

    mode: str = flax.struct.field(pytree_node=False)
    weights: Any = None
    activations: Any = None
    gradients: Any = None
    kept: Any = None

    @property
    def named_layers(self) -> set[str]:
        """Paths of the layers that a mapping names."""
        given = (self.weights, self.activations, self.gradients)
        return {path for value in given if isinstance(value, Mapping) for path in value}


Asked = str | Widths  # what a call may give as `precision`


def kept_blocks(precision: Asked) -> Mapping[str, Any]:
    """Block -> 1 or 0, see `Widths.kept`.

    Raises:
      ValueError: it is no mapping; a concrete value is another one.
    """
    kept = precision.kept if isinstance(precision, Widths) else None
    if kept is None:
        return {}
    if not isinstance(kept, Mapping):
        raise ValueError(
            f"kept={kept!r:.200}: expected a mapping from blocks to 1, or to 0 of one that is left"
            ' out, as in {"stage2_block2": 0}'
        )
    for block, value in kept.items():
        if isinstance(value, jax.core.Tracer):
            continue
        scalar = getattr(value, "shape", ()) == ()
        number = value.item() if scalar and hasattr(value, "item") else value
        if not scalar or number not in (0, 1):
            raise ValueError(
                f"kept block {block!r} is {value!r:.200}: expected 1, or 0 to leave it out"
            )
    return kept


def mode_of(precision: Asked) -> str:
    """The name of the mode that a call asks for."""
    return precision.mode if isinstance(precision, Widths) else precision
