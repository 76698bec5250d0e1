"""One neural network, one stored set of weights, a low and a high precision mode."""

from typing import TYPE_CHECKING, Any

from dual_precision.precision import FLOAT, Modes, Precision, Widths, modes, parse

if TYPE_CHECKING:
    from dual_precision.loading import load as load

__all__ = ["FLOAT", "Modes", "Precision", "Widths", "load", "modes", "parse"]


def __getattr__(name: str) -> Any:
    if name == "load":  # Orbax takes seconds to import; only those who load pay for it
        from dual_precision.loading import load

        return load
    raise AttributeError(f"module 'dual_precision' has no attribute {name!r}")
