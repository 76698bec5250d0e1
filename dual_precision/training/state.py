"""The state that training carries, and how it is made."""

from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from dual_precision.precision import Modes
from dual_precision.structure import Layer, Path

Tree = Any


@flax.struct.dataclass
class TrainState:
    """step counts updates over the whole recipe; opt_state belongs to the phase at hand."""

    step: jax.Array
    params: Tree
    batch_stats: Tree
    opt_state: optax.OptState

    @property
    def variables(self) -> dict[str, Tree]:
        """What `model.apply` takes."""
        return {"params": self.params, "batch_stats": self.batch_stats}


def initial_variables(model: nn.Module, image_shape: tuple[int, ...], seed: int) -> dict[str, Tree]:
    """params and batch_stats of every mode, for images [H, W, C]."""

    def init(key: jax.Array) -> dict[str, Tree]:
        images = jnp.zeros((1, *image_shape), jnp.uint8)
        return dict(model.init(key, images, precision="float"))

    variables = jax.jit(init)(jax.random.key(seed))
    return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}


def check_layers(modes: Modes, layers: Mapping[Path, Layer]) -> None:
    """Raises ValueError where `modes` does not fit the model.

    Its `layers` may name only layers that are there; no mode may be called as something in the
    tree is, since a mode's own values are told by its name in their path.
    """
    taken = {"kernel", "bias", "step", "input_step", "scale", "mean", "var"}
    taken |= {part for path in layers for part in path}
    if clash := sorted(taken & set(modes.names)):
        raise ValueError(f"mode names {clash} are names in the model's tree: rename the modes")
    known = ["/".join(path) for path in layers]
    unknown = sorted(set(modes.layers) - set(known))
    if unknown:
        raise ValueError(f"own widths for unknown layers {unknown}: expected some of {known}")


def owner(path: Path, layers: Mapping[Path, Layer]) -> str | None:
    """The mode that a leaf of the tree belongs to alone; None where modes share it."""
    names = next(iter(layers.values())).table
    return next((key for key in path if key in names), None)
