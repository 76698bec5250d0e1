"""The state that training carries, and how it is made."""

from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from dual_precision.precision import FLOAT_NAME
from dual_precision.structure import Example
from dual_precision.tasks.task import State, Tree
from dual_precision.training.compilation import RUNS_ONCE

Measured = dict[str, jax.Array]  # by name, what a step tells of itself: float32, shape ()


@flax.struct.dataclass
class TrainState:
    """What the train step takes and gives.

    Attributes:
      step: int32, steps of the whole recipe that are done: updates, or parts of updates, see
        `FitOptions.accumulate`.
      carry: what the rows of a batch carry to the next one, mode by mode.
      opt_state: of the optimizer of the phase at hand; None is one that has to be made.
    """

    step: jax.Array
    params: Tree
    batch_stats: Tree
    carry: Tree
    opt_state: optax.OptState

    @property
    def variables(self) -> dict[str, Tree]:
        """What `model.apply` takes."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def moving(self) -> State:
        """What the forward pass changes."""
        return {"batch_stats": self.batch_stats, "carry": self.carry}


def initial_variables(model: nn.Module, example: Example, seed: int) -> dict[str, Any]:
    """params and batch_stats of every mode, for what the model takes; see `structure_of`."""
    inputs = example if isinstance(example, tuple) else (example,)
    batch = jax.tree.map(lambda leaf: jnp.zeros((1, *leaf.shape), leaf.dtype), inputs)
    variables = _init(jax.random.key(seed), batch, model=model)
    return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}


@partial(jax.jit, static_argnames="model", compiler_options=RUNS_ONCE)
def _init(key: jax.Array, batch: tuple[Tree, ...], *, model: nn.Module) -> dict[str, Tree]:
    return dict(model.init(key, *batch, precision=FLOAT_NAME))
