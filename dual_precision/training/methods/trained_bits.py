"""Bits of weights that are trained: where they are in a tree, and the widths that they come to.

A layer has them beside its kernel, as the leaves "bits/positive", "bits/negative" and "bits/step";
see primitives/signed_bits.py. What trains them is in bsq.py.
"""

import dataclasses
import math
from collections.abc import Mapping

from flax.traverse_util import flatten_dict, unflatten_dict

from dual_precision.costs import input_bits
from dual_precision.layers.facts import Layer
from dual_precision.precision import MAX_BITS
from dual_precision.primitives.signed_bits import SignedBits, bits_in_use, weights_of
from dual_precision.structure import LayerPath, Structure
from dual_precision.tasks.task import Tree

BITS = "bits"


def bits_of(params: Tree) -> dict[LayerPath, SignedBits]:
    """Layer -> its bits, of those that have them."""
    flat = flatten_dict(params)
    layers = [path[:-2] for path in flat if path[-2:] == (BITS, "positive")]
    return {
        path: SignedBits(*(flat[*path, BITS, name] for name in SignedBits._fields))
        for path in layers
    }


def with_bits(params: Tree, bits: Mapping[LayerPath, SignedBits]) -> Tree:
    """The parameters with these bits, and with the kernels that they stand for."""
    flat = dict(flatten_dict(params))
    for path, own in bits.items():
        flat[*path, "kernel"] = weights_of(own)
        flat |= {(*path, BITS, name): value for name, value in own._asdict().items()}
    return unflatten_dict(flat)


def bits_found(params: Tree) -> dict[LayerPath, int]:
    """Layer -> bits of a weight without its sign; 0 where all weights are 0."""
    return {path: bits_in_use(own) for path, own in bits_of(params).items()}


def widths_found(params: Tree, structure: Structure, mode: str) -> dict[str, dict[str, str]]:
    """Widths of layers as `modes` takes them: layer -> {mode: "w4a4"}.

    The sign is a bit here, so that n bits of a magnitude become a width of n + 1, at most 8: the
    nested grid of that width has as many levels, and one more. A layer of zeros gets 1 bit.
    """
    found = {}
    for path, bits in bits_found(params).items():
        kept = structure.layers[path].table[mode]
        width = dataclasses.replace(kept, weights=min(bits + 1, MAX_BITS))
        found["/".join(path)] = {mode: str(width)}
    return found


def _weights(layers: Mapping[LayerPath, Layer], path: LayerPath, mode: str) -> int:
    return math.prod(layers[path].kernel)


def _bitops(layers: Mapping[LayerPath, Layer], path: LayerPath, mode: str) -> int:
    return layers[path].macs * input_bits(layers, path, mode)


BYTES, BITOPS = "bytes", "bitops"
BIT_COSTS = {BYTES: _weights, BITOPS: _bitops}  # what a layer costs for each bit of its weights


def widths_within(
    params: Tree, structure: Structure, mode: str, mean: float, by: str = BYTES
) -> dict[str, dict[str, str]]:
    """The map of `widths_found`, all widths moved by one number, at the cost of a uniform width.

        width = clip(round(bits + shift), 1, 8),   the largest shift of at most that cost

    Layers that needed more bits than others keep more.

    Args:
      mean: the uniform width.
      by: what it costs: "bytes" of the weights, or "bitops" of the products of a row, which count
        a layer of many pixels for more.

    Raises:
      ValueError: less than 1 bit, the fewest that a weight has; another cost.
    """
    if by not in BIT_COSTS:
        raise ValueError(f"a cost in {by!r}: expected one of {list(BIT_COSTS)}")
    if not 1 <= mean <= MAX_BITS:
        raise ValueError(f"{mean} bits per weight: expected 1 to {MAX_BITS}")
    bits = bits_found(params)
    sizes = {path: BIT_COSTS[by](structure.layers, path, mode) for path in bits}

    def shifted(shift: float) -> dict[LayerPath, int]:
        return {path: min(max(round(own + shift), 1), MAX_BITS) for path, own in bits.items()}

    def fits(shift: float) -> bool:
        total = sum(sizes[path] * width for path, width in shifted(shift).items())
        return total <= mean * sum(sizes.values())

    shift = next(s / 100 for s in range(800, -901, -1) if fits(s / 100))
    found = {}
    for path, width in shifted(shift).items():
        own = dataclasses.replace(structure.layers[path].table[mode], weights=width)
        found["/".join(path)] = {mode: str(own)}
    return found


def mean_bits(bits: Mapping[LayerPath, int], layers: Mapping[LayerPath, Layer]) -> float:
    """Bits per weight of the layers that are given, as `bits_found` counts them."""
    return mean_over(bits, {path: math.prod(layers[path].kernel) for path in bits})


def mean_over(bits: Mapping[LayerPath, int], sizes: Mapping[LayerPath, int]) -> float:
    """Over weights, of what each layer has."""
    return sum(bits[path] * size for path, size in sizes.items()) / max(sum(sizes.values()), 1)
