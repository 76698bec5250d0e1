"""What a caller asks of a generator: checked before a first byte, whole numbers as Python's own.

A whole number of NumPy has a width, past which a sum of it starts again at 0; and a program is
found by the hash of what it was made for.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from dual_precision.precision import MAX_BITS, Asked, Modes, Widths, is_whole, mode_of

DRAFT = "draft"
COLDEST = 1e-30  # temperature: logits up to 1e8 that are divided by it stay finite in float32


def checked_count(prompts: Sequence[bytes], count: int, context: int) -> int:
    """Bytes to add to each of the prompts, if a model of this context can."""
    if isinstance(prompts, bytes) or not prompts:
        raise ValueError("no list of prompts: expected one or more, as in [b'It is']")
    if not is_whole(count):
        raise ValueError(f"count={count!r}: expected a whole number of bytes to follow")
    count = int(count)
    for prompt in prompts:
        if not isinstance(prompt, bytes) or not prompt:
            raise ValueError(f"a prompt of {prompt!r}: expected bytes, one or more")
        if count < 1 or len(prompt) + count > context:
            raise ValueError(
                f"a prompt of {len(prompt)} bytes and {count} to follow: expected 1 or more to"
                f" follow, and at most {context} together, the context of this model"
            )
    return count


def checked_precision(precision: Asked, modes: Modes) -> Asked:
    """A mode of codes, such a one with other widths, or "draft"."""
    name, known = mode_of(precision), list(modes.default)
    if name not in known and precision != DRAFT:
        raise ValueError(
            f"precision {name!r} of a generation: expected {DRAFT!r}, or one of {known}, the modes"
            " of codes"
        )
    return _checked_widths(precision, modes) if isinstance(precision, Widths) else precision


def _checked_widths(asked: Widths, modes: Modes) -> Widths:
    if asked.gradients is not None or asked.kept is not None:
        raise ValueError(
            f"gradients={asked.gradients} and kept={asked.kept} of a generation: expected none of"
            " them, which it does not read"
        )
    found: dict[str, Any] = {}
    for what, most in (("weights", modes.stored), ("activations", MAX_BITS)):
        bits = getattr(asked, what)
        if bits is None:
            continue
        if not (is_whole(bits) and 1 <= bits <= most):
            raise ValueError(
                f"{what}={bits!r} of a generation: expected a whole number from 1 to {most}, for"
                " all layers; dual_precision.deploy.layer_widths.with_layer_widths makes a model"
                " with widths of single layers"
            )
        found[what] = int(bits)
    if found.get("activations") and modes.default[asked.mode].activations is None:
        raise ValueError(
            f"activations={asked.activations} of mode {asked.mode!r}, which keeps them in float:"
            " expected none, or a mode that has input steps"
        )
    return dataclasses.replace(asked, **found)


def checked_drafts(drafts: int | None, costs: Any, precision: Asked, most: int) -> int | None:
    """Bytes in a round, up to `most`; None where the costs say how many pay."""
    if precision != DRAFT and (drafts is not None or costs is not None):
        raise ValueError(
            f"drafts={drafts} and costs={costs} with precision {precision!r}: expected"
            f" none of them, which {DRAFT!r} alone reads"
        )
    if drafts is None:
        return None
    if not (is_whole(drafts) and 1 <= drafts <= most):
        raise ValueError(
            f"drafts={drafts!r}: expected a whole number from 1 to {most}, as a pass has"
            f" {most + 1} rows"
        )
    if costs is not None:
        raise ValueError("costs with a fixed number of drafts: expected one of them")
    return int(drafts)


def check_samples(temperature: float, seed: int | None) -> None:
    """Raises ValueError where bytes cannot be drawn so."""
    if not np.isfinite(temperature) or (temperature != 0 and temperature < COLDEST):
        raise ValueError(
            f"a temperature of {temperature}: expected {COLDEST} or more, which logits are divided"
            " by, or 0, which takes the likeliest byte"
        )
    if temperature == 0 and seed is not None:
        raise ValueError(
            f"seed={seed} at a temperature of 0, which takes the likeliest byte and draws none:"
            " expected no seed, or a temperature above 0"
        )
    # A key takes 32 bits: of a larger number the rest would be dropped without a word.
    if seed is not None and not (is_whole(seed) and 0 <= seed < 2**32):
        raise ValueError(f"seed={seed}: expected 0 to 2^32 - 1, what makes a key")
