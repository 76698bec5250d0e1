"""A network of ours that computes what a state dict of PyTorch does, in mode "float".

    state = read_state("resnet20.th")
    found = import_resnet(state)
    found.model(mean=..., std=...).apply(found.variables, images, precision="float")

Logits are those of PyTorch up to rounding. A state dict does not say how its images were
normalised; `mean` and `std` of the model do, in units of 1. The epsilon of a normalisation is not
in it either: 1e-5 is what PyTorch has by default, and ours.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import unflatten_dict

from dual_precision.deploy.pytorch.mapping import Mapped, Names, StateDict, map_state
from dual_precision.deploy.pytorch.resnets import find_resnet
from dual_precision.models import MODELS, build_from
from dual_precision.precision import Modes
from dual_precision.structure import Example, structure_of


@dataclasses.dataclass(frozen=True, eq=False)
class Imported:
    """A network that came from PyTorch.

    Attributes:
      network: its description for `build_from`, without modes.
      example: what it takes, see `structure_of`.
      mapped: its values, whence they come, and what does not fit.
      padding: where option A put zero channels there; "" where it is not used.
    """

    network: dict[str, Any]
    example: Example
    mapped: Mapped
    padding: str = ""

    @property
    def variables(self) -> dict[str, Any]:
        """params and batch_stats of mode "float", as far as they were found."""
        found = unflatten_dict({path: jnp.asarray(a) for path, a in self.mapped.leaves.items()})
        return {"batch_stats": {}, **found}

    def model(self, mean: Sequence[float], std: Sequence[float]) -> nn.Module:
        """The float network, for uint8 images that these normalise."""
        return build_from(_described(self.network, mean, std))


def import_resnet(state: StateDict, padding: str = "") -> Imported:
    """The residual network in a state dict; see `find_resnet` for `padding` and errors."""
    found = find_resnet(state, padding)
    network = _standard(found.network)
    side = jax.ShapeDtypeStruct((32, 32, found.channels), jnp.uint8)  # of any size
    return _imported(state, network, side, found.names, found.orders, found.padding)


def import_network(
    state: StateDict, network: Mapping[str, Any], example: Example, names: Names
) -> Imported:
    """A network of ours with the values of a state dict, by a table of names.

    Args:
      network: its description for `build_from`; modes, mean and std may be missing.
      names: for every layer and norm of ours the module of theirs:
        {"dense1": "features.1", "norm1": "features.2", "classifier": "head"}.

    Raises:
      ValueError: no such network; names of layers that it does not have.
    """
    return _imported(state, dict(network), example, names, {}, "")


def _imported(
    state: StateDict, network: dict[str, Any], example: Any, names: Names, orders: Any, padding: str
) -> Imported:
    channels = example.shape[-1]
    model = build_from(_described(network, (0.5,) * channels, (0.25,) * channels))
    mapped = map_state(state, structure_of(model, example), names, orders)
    return Imported(network, example, mapped, padding)


def _described(
    network: Mapping[str, Any], mean: Sequence[float], std: Sequence[float]
) -> dict[str, Any]:
    return {"mean": [*mean], "std": [*std], **Modes().to_json(), **network}


def _standard(network: dict[str, Any]) -> dict[str, Any]:
    """The same network by the name of a published one, where it is one."""
    sizes = network["stage_sizes"]
    name = f"resnet{2 * sum(sizes) + 2}{'b' if network['projections'] else ''}"
    if name not in MODELS or network["widths"] != [16, 32, 64] or len({*sizes}) > 1:
        return network
    return {"name": name, "num_classes": network["num_classes"]}
