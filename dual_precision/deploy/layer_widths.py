"""A trained network with other widths in some of its layers."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from flax import linen as nn
from flax.core import FrozenDict
from flax.traverse_util import flatten_dict, unflatten_dict

from dual_precision.precision import Modes, modes_from
from dual_precision.primitives.quantizers import rescaled_step
from dual_precision.structure import Example, Structure, structure_of

LayerTexts = Mapping[str, Mapping[str, str]]  # layer or pattern -> mode -> "w4a4"


def modes_with(modes: Modes, structure: Structure, widths: LayerTexts) -> Modes:
    """The modes of a network, with other widths in some layers; see `with_layer_widths`."""
    given = modes_from({**modes.to_json(), "layers": widths})
    given.check_layers({"/".join(path) for path in structure.layers})
    layers = dict(modes.layers)
    for path in structure.layers:
        if own := given.own_at(path):  # under the name of the layer, which goes before patterns
            layers["/".join(path)] = FrozenDict({**modes.own_at(path), **own})
    return dataclasses.replace(modes, layers=FrozenDict(layers))


def with_layer_widths(
    model: nn.Module, variables: Mapping[str, Any], example: Example, widths: LayerTexts
) -> tuple[nn.Module, dict[str, Any]]:
    """The same network with other widths in some layers: no training, the codes are as they were.

    Where a mode has other activations than before, its input step keeps the range that it covers.

    Args:
      widths: layer or pattern -> mode -> "w4a4". A layer and mode that it does not name, by name or
        by a pattern, keeps the widths that the model has there.

    Raises:
      ValueError: unknown layers or modes, or patterns that disagree; activations of a width where
        they were float, so that there is no input step.
    """
    before = structure_of(model, example)
    other = model.clone(modes=modes_with(model.modes, before, widths))
    after = structure_of(other, example)
    leaves = flatten_dict(dict(variables))
    for path, layer in after.layers.items():
        for mode in model.modes.default:
            leaf = ("params", *path, "input_step", mode)
            old, new = before.layers[path].table[mode].activations, layer.table[mode].activations
            if new and not old:
                raise ValueError(
                    f"layer {'/'.join(path)!r}: {mode!r} has float activations, and no input step"
                    f" for {new} bits: expected a32 there; train it at these widths"
                )
            if new and old:
                leaves[leaf] = rescaled_step(leaves[leaf], old, new, layer.signed)
            elif old:
                leaves.pop(leaf)
    return other, unflatten_dict(leaves)
