"""Cyclic precision: one mode whose widths swing between those of two modes (CPT).

Source: Fu et al. 2021, "CPT: Efficient Deep Neural Network Training via Cyclic Precision", arXiv
2101.09868.
"""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from dual_precision.costs import update_cost
from dual_precision.precision import FLOAT_BITS, FLOAT_NAME, Modes, Widths
from dual_precision.structure import Structure
from dual_precision.tasks.task import Batch, Network, State, Tree
from dual_precision.training.methods.modes import trained_at
from dual_precision.training.state import Measured

if TYPE_CHECKING:
    from dual_precision.training.phases import Phase

CYCLE = "cycle"  # the schedule: share of the way from the lower to the upper widths, 0 to 1


@dataclasses.dataclass(frozen=True)
class CyclicLoss:
    """The loss of mode `upper` at widths between those of `lower` and its own.

        bits = round(b_lower + cycle * (b_upper - b_lower)),   ties to even

    for weights and for activations; `cycle` is a schedule, see `schedules.cosine_cycles`. Widths
    are traced: one program serves them all. Normalisation and input steps are those of `upper`;
    an input step keeps its range at every width, so that what is learned is the clip. Gradients
    have the constant width of `upper`.
    """

    upper: str
    lower: str

    def check(self, modes: Modes, phase: "Phase") -> None:
        """Raises ValueError where there is nothing between the two modes to swing through."""
        where = f"phase {phase.name!r}"
        for name in (self.upper, self.lower):
            modes.check_name(name)
            if name == FLOAT_NAME:
                raise ValueError(
                    f"{where} cycles from {self.lower!r} to {self.upper!r}: float has"
                    " no widths; expected two modes that have"
                )
        if own := sorted(modes.layers):
            raise ValueError(
                f"{where} has one width for all layers, and {own} have their own: give none,"
                " or train these with another recipe"
            )
        low, high = modes.default[self.lower], modes.default[self.upper]
        for what in ("weights", "activations"):
            ends = getattr(low, what), getattr(high, what)
            if (ends[0] or FLOAT_BITS) > (ends[1] or FLOAT_BITS):
                raise ValueError(
                    f"{where} cycles {what} from {low} up to {high}, which is narrower: expected"
                    f" the bounds the other way round; swap {self.lower!r} and {self.upper!r}"
                )
            if (ends[0] is None) != (ends[1] is None):
                raise ValueError(
                    f"{where} cycles {what} from {low} to {high}, float at one end: expected 1 to"
                    " 8 bits, or float, at both"
                )
        if low.weights is None and low.activations is None:
            raise ValueError(f"{where} cycles from {low} to {high}: expected bits of one of them")
        if low.gradients != high.gradients:
            raise ValueError(
                f"{where} keeps the width of gradients, and {low} and {high} differ in it:"
                " expected the same in both, as in w3a3g8 and w8a8g8"
            )

    def widths(self, modes: Modes, values: Mapping[str, jax.Array]) -> Widths:
        """What the network is asked for in an update."""
        low, high = modes.default[self.lower], modes.default[self.upper]

        def between(lower: int | None, upper: int | None) -> jax.Array | None:
            if lower is None or upper is None:
                return None
            return jnp.round(lower + values[CYCLE] * (upper - lower)).astype(jnp.int32)

        weights, activations = (
            between(getattr(low, what), getattr(high, what)) for what in ("weights", "activations")
        )
        return Widths(self.upper, weights=weights, activations=activations)

    def cost(self, structure: Structure, values: Mapping[str, jax.Array]) -> jax.Array:
        """The cost of an update, see `costs.update_cost`."""
        modes = structure.modes
        asked, gradients = self.widths(modes, values), modes.default[self.upper].gradients
        weights, activations = (
            jnp.full_like(values[CYCLE], FLOAT_BITS, jnp.int32) if bits is None else bits
            for bits in (asked.weights, asked.activations)
        )
        found: jax.Array = update_cost(weights, activations, gradients or FLOAT_BITS)
        return found

    def __call__(
        self,
        network: Network,
        params: Tree,
        state: State,
        batch: Batch,
        key: jax.Array,
        values: Mapping[str, jax.Array],
    ) -> tuple[jax.Array, tuple[State, Measured]]:
        asked = self.widths(network.model.modes, values)
        loss, (state, metrics) = trained_at(asked, network, params, state, batch, key)
        for what in ("weights", "activations"):
            if (bits := getattr(asked, what)) is not None:
                metrics[f"bits_of_{what}"] = bits.astype(jnp.float32)
        return loss, (state, metrics)
