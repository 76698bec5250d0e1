"""What a layer may have in a space: texts such as "w2a3", and what they cost."""

import functools

from dual_precision.costs import PIXEL_BITS
from dual_precision.precision import parse

SKIP = "skip"


@functools.cache
def reads_pixels(text: str) -> bool:
    """Whether an alternative is one of a layer whose inputs have no width to choose."""
    return text != SKIP and parse(text).activations is None


def is_width(text: str) -> bool:
    """Whether it is one of both, that all layers may have."""
    return text != SKIP and not reads_pixels(text)


@functools.cache
def widths_in(text: str) -> tuple[int, int]:
    """Bits of weights and of inputs; pixels have 8, what is left out has none."""
    if text == SKIP:
        return 0, 0
    precision = parse(text)
    return precision.weight_bits, precision.activations or PIXEL_BITS


def area(text: str) -> int:
    """BitOps of a multiply-accumulate."""
    weights, activations = widths_in(text)
    return weights * activations


def trouble_of(text: str, first: str, stored: int) -> str:
    """Why a layer cannot have an alternative, in words; "" where it can.

    Args:
      first: the first alternative of the layer: all read pixels, or none does.
      stored: bits of its stored weights: a mode reads the first ones of these, and no more.
    """
    try:
        precision = parse(text)
    except ValueError as error:
        return str(error)
    if str(precision) != text:  # it would be beside its like, as another one
        return f"{text!r}: expected {str(precision)!r}, as these widths are written"
    pixels = reads_pixels(first)
    if precision.weights is None or precision.gradients or pixels != reads_pixels(text):
        return f"{text!r}: expected {'bits of weights: w4a32' if pixels else 'bits of both: w2a3'}"
    if precision.weights > stored:
        return (
            f"{text!r} has {precision.weights}-bit weights, and {stored} bits are stored: expected"
            f" at most {stored} bits of weights"
        )
    return ""
