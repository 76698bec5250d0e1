"""What a precision mode is: a frozen set of widths under a name, and those of each layer.

A mode is data. The call `model.apply(variables, x, precision="low")` names a mode; `Modes` says
what the name means, for the whole network or, where `layers` says so, for one layer. A call may
also name a mode and give widths as values, `precision=Widths("high", weights=4)`: one program
serves them all. Either way `Modes.resolve` says what the call means for a layer.
"""

from dual_precision.precision.table import Modes, Resolved, modes, modes_from
from dual_precision.precision.widths import (
    FLOAT,
    FLOAT_BITS,
    FLOAT_NAME,
    MAX_BITS,
    Asked,
    Bits,
    Precision,
    Widths,
    is_whole,
    kept_blocks,
    mode_of,
    parse,
)

__all__ = [
    "FLOAT",
    "FLOAT_BITS",
    "FLOAT_NAME",
    "MAX_BITS",
    "Asked",
    "Bits",
    "Modes",
    "Precision",
    "Resolved",
    "Widths",
    "is_whole",
    "kept_blocks",
    "mode_of",
    "modes",
    "modes_from",
    "parse",
]
