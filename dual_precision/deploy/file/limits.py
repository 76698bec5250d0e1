"""What a packed file may ask for: counts and sizes are bounded before anything is made of them."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax

from dual_precision.deploy.file.container import PackedError
from dual_precision.structure import Example

MOST_VALUES = 10_000  # in the description of a network: widths of layers, means, sizes of stages
MOST_MODES = 64
MOST_OWN_WIDTHS = 1000  # layers or patterns that have widths of their own
# Of a description: features, groups, bits. Models make what they count, blocks or layers, one by
# one, so that `structure_of` stops them at the number of layers that a file lists.
LARGEST_NUMBER = 2**24
_MOST_INPUTS = 64  # arrays in an example
_MOST_AXES = 8
LARGEST_AXIS = 2**20
LARGEST_EXAMPLE = 2**26  # numbers in one example


def check_network(network: Any) -> None:
    """Raises PackedError where a description of a network is no JSON object of a sensible size."""
    if not isinstance(network, Mapping) or not isinstance(network.get("modes"), Mapping):
        raise PackedError("its network is no description: expected a name, modes and attributes")
    for part, most in (("modes", MOST_MODES), ("layers", MOST_OWN_WIDTHS)):
        if len(network.get(part) or ()) > most:
            raise PackedError(f"{len(network[part])} {part}: expected at most {most}")
    count, waiting = 0, [network]
    while waiting:
        value = waiting.pop()
        count += 1
        if count > MOST_VALUES:
            raise PackedError(f"a network of over {MOST_VALUES} values: expected fewer")
        if isinstance(value, Mapping):
            waiting += [*value.values()]
        elif isinstance(value, list | tuple):
            waiting += value[: MOST_VALUES + 1]
        elif type(value) is int and abs(value) > LARGEST_NUMBER:
            raise PackedError(
                f"a network with the number {str(value)[:40]}: expected at most {LARGEST_NUMBER}"
            )


def check_layers(layers: Mapping[str, Any], tensors: Iterable[str]) -> None:
    """Raises PackedError where a layer is listed that has no tensor: it would be built in vain."""
    owners = {name.removeprefix("params/").rpartition("/")[0] for name in tensors}
    if missing := [path for path in layers if path not in owners]:
        raise PackedError(
            f"{len(missing)} layers without a tensor, such as {missing[0][:100]!r}: expected"
            " tensors of each of the layers listed"
        )


def check_example(example: Example) -> None:
    """Raises PackedError where an example is empty, or larger than a file may ask for."""
    leaves = jax.tree.leaves(example)
    if len(leaves) > _MOST_INPUTS:
        raise PackedError(f"{len(leaves)} inputs: expected at most {_MOST_INPUTS}")
    sizes = 0
    for leaf in leaves:
        if len(leaf.shape) > _MOST_AXES or not all(
            1 <= axis <= LARGEST_AXIS for axis in leaf.shape
        ):
            raise PackedError(
                f"an input of shape {list(leaf.shape)[:_MOST_AXES]}: expected at most {_MOST_AXES}"
                f" axes of 1 to {LARGEST_AXIS}"
            )
        sizes += math.prod(leaf.shape)
    if not leaves or sizes > LARGEST_EXAMPLE:
        raise PackedError(f"an input of {sizes} numbers: expected 1 to {LARGEST_EXAMPLE}")
