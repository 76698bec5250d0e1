"""One-shot training: every update runs another path through a network of many widths."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from dual_precision.costs import PIXEL_BITS, update_cost
from dual_precision.precision import FLOAT_BITS, FLOAT_NAME, Modes, Precision, Widths
from dual_precision.structure import Structure, free_layers, structure_of
from dual_precision.tasks.task import Batch, Network, State, Tree
from dual_precision.training.methods.modes import trained_at
from dual_precision.training.state import Measured

if TYPE_CHECKING:
    from dual_precision.training.phases import Phase

Choices = tuple[Precision, ...]
_NONE: FrozenDict[str, Choices] = FrozenDict()


@dataclasses.dataclass(frozen=True)
class SampledLoss:
    """The loss of a mode whose free layers each take one of several widths, drawn at random.

    A new draw for every update, uniform and independent from layer to layer: the single-path
    sampling of Guo et al. 2019 (arXiv 1904.00420). Widths are traced, so that one program serves
    all paths. Normalisation and input steps are those of the mode, shared by all paths.

    Attributes:
      mode: that is trained.
      choices: of every layer that `free_layers` lists.
      layers: layer -> choices of its own, in the place of these; a layer that is not free, too. One
        whose inputs the mode does not quantize, such as pixels, has choices such as w4a32.
      skippable: residual blocks that half of the paths leave out.
      skipped: residual blocks that all paths leave out.
    """

    mode: str
    choices: Choices
    layers: Mapping[str, Choices] = _NONE
    skippable: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()

    def check(self, modes: Modes, phase: "Phase") -> None:
        """Raises ValueError where the mode has no widths, or a layer nothing to choose from."""
        modes.check_name(self.mode)
        if self.mode == FLOAT_NAME or None in (
            modes.default[self.mode].weights,
            modes.default[self.mode].activations,
        ):
            raise ValueError(
                f"phase {phase.name!r} draws widths of {self.mode!r}, which is float in part:"
                " expected a mode with bits of weights and of activations, such as low='w2a2'"
            )
        for where, choices in (("all layers", self.choices), *self.layers.items()):
            floats = {c.activations is None for c in choices}
            mixed = len(floats) != 1 or (where == "all layers" and True in floats)
            if mixed or any(c.weights is None or c.gradients for c in choices):
                raise ValueError(
                    f"phase {phase.name!r}, {where}: choices {[str(c) for c in choices]}; expected"
                    " one or more with bits of both, such as w2a2; of a layer that reads pixels,"
                    " all such as w4a32; gradients have the width of the mode, as in low='w2a2g8'"
                )
            if (widest := max(c.weight_bits for c in choices)) > modes.stored:
                raise ValueError(
                    f"phase {phase.name!r}, {where}: a choice of {widest}-bit weights, and"
                    f" {modes.stored} bits are stored: expected at most these"
                )

    def path(self, network: Network, key: jax.Array) -> Widths:
        """The widths of one update.

        Raises:
          ValueError: a choice of 1 bit for signed inputs, which a traced width of 1 would not be.
        """
        structure = structure_of(network.model, network.task.example)
        names = free_layers(structure, self.mode)
        weights, activations = {}, {}
        for index, name in enumerate(dict.fromkeys([*names, *self.layers])):
            choices = self.layers.get(name, self.choices)
            layer = structure.layers.get(tuple(name.split("/")))
            if layer and layer.signed and any(c.activations == 1 for c in choices):
                raise ValueError(
                    f"layer {name!r} has signed inputs, and choices {[str(c) for c in choices]}:"
                    " expected 2 bits of activations or more, as of one bit no code is positive"
                )
            row = jax.random.randint(jax.random.fold_in(key, index), (), 0, len(choices))
            weights[name] = jnp.asarray([c.weights for c in choices], jnp.int32)[row]
            if choices[0].activations is not None:
                activations[name] = jnp.asarray([c.activations for c in choices], jnp.int32)[row]
        chances = jax.random.split(jax.random.fold_in(key, len(weights)), len(self.skippable))
        kept = {
            block: jax.random.bernoulli(own).astype(jnp.int32)
            for block, own in zip(self.skippable, chances, strict=True)
        }
        kept |= dict.fromkeys(self.skipped, jnp.int32(0))
        return Widths(self.mode, weights, activations, kept=kept or None)

    def cost(self, structure: Structure, values: Mapping[str, jax.Array]) -> float:
        """The mean cost of an update, see `costs.update_cost`; blocks that are left out count.

        Layers that `layers` does not name count as if they drew from `choices`, each by its
        multiply-accumulates.
        """
        del values
        gradients = structure.modes.default[self.mode].gradients or FLOAT_BITS
        total = 0.0
        for path, layer in structure.layers.items():
            choices = self.layers.get("/".join(path), self.choices)
            each = [update_cost(c.weights, c.activations or PIXEL_BITS, gradients) for c in choices]
            total += layer.macs * sum(each) / len(each)
        return total / sum(layer.macs for layer in structure.layers.values())

    def __call__(
        self,
        network: Network,
        params: Tree,
        state: State,
        batch: Batch,
        key: jax.Array,
        values: Mapping[str, jax.Array],
    ) -> tuple[jax.Array, tuple[State, Measured]]:
        del values
        asked = self.path(network, jax.random.fold_in(key, 0))
        return trained_at(asked, network, params, state, batch, key)
