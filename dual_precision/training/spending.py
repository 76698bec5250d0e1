"""What a recipe has cost so far: bit operations, update by update."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from dual_precision.costs import update_bit_operations
from dual_precision.structure import Structure
from dual_precision.training.phases import Stage


@dataclasses.dataclass(frozen=True)
class Spending:
    """The cost of a run, which follows from its recipe alone.

    Attributes:
      total: float64 [steps + 1], cost after so many steps, see `TrainState`; one in float costs 1.
      unit: billions of BitOps of a step in float.
    """

    total: np.ndarray
    unit: float

    def after(self, step: int) -> dict[str, float]:
        """relative_cost: the mean of the steps so far, against float; gigabitops: their sum."""
        spent = float(self.total[step])
        return {"relative_cost": spent / max(step, 1), "gigabitops": spent * self.unit}


def spending_of(stages: Sequence[Stage], structure: Structure, rows: int) -> Spending | None:
    """By the `cost` of the losses, see `phases.Loss`; None where one does not say it.

    Args:
      rows: examples in a step.
    """
    costs = [np.zeros(1)]
    for stage in stages:
        if (cost := getattr(stage.phase.loss, "cost", None)) is None:
            return None

        @jax.jit
        def of_all(steps: jax.Array, stage: Stage = stage, cost=cost) -> jax.Array:
            found = cost(structure, jax.vmap(stage.values)(steps))
            return jnp.broadcast_to(jnp.asarray(found, jnp.float32), steps.shape)

        steps = jnp.arange(stage.start, stage.end, dtype=jnp.int32)
        costs.append(np.asarray(of_all(steps), np.float64))
    unit = update_bit_operations(structure.layers, rows) / 1e9
    return Spending(np.cumsum(np.concatenate(costs)), unit)
