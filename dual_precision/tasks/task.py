"""What a network is trained for: the questions that `fit`, `evaluate` and the rest ask of a task.

A task says what an example is, how batches are drawn, and what is good. Nothing else in training
knows about images or text. A batch is a dict of arrays whose first axis is the batch; its entry
"inputs" is what the model takes.

A model with carried state (a recurrent one, whose next batch goes on where the last one ended)
takes it as its last argument and gives (outputs, the new state); its task gives the first one as
`carry`. Each mode has its own.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import jax
import numpy as np
from flax import linen as nn

from dual_precision.layers import ROUNDING
from dual_precision.precision import Asked, mode_of

Tree = Any
Batch = Mapping[str, Any]
State = dict[str, Any]  # {"batch_stats": ..., "carry": {mode: ...}}


class Task(Protocol):
    """What an example is and what is good. A `split` is any set of examples that the task knows.

    A task is a static argument of compiled programs, and so hashable: a frozen dataclass. It may
    have one more attribute, `evaluation_rows`: int, examples in a batch of an evaluation; 500 in
    a task that does not say it.
    """

    @property
    def example(self) -> Any:
        """What the model takes, of one example without the axis of the batch: ShapeDtypeStructs."""

    def carry(self, rows: int) -> Tree:
        """The state that `rows` rows of a batch start with; () where nothing is carried."""

    def arrays(self, split: Any) -> dict[str, Any]:
        """The examples of a split as arrays, which are put on the devices whole."""

    def order(self, split: Any, batch_size: int, key: jax.Array) -> np.ndarray:
        """Which examples the updates of one epoch take: int32 [updates, batch]."""

    def draw(self, arrays: Mapping[str, jax.Array], index: jax.Array, key: jax.Array) -> Batch:
        """The batch of one update, augmented; inside of the compiled step. index: int32 [batch]."""

    def batches(self, split: Any, batch_size: int) -> Iterator[tuple[Batch, np.ndarray]]:
        """All examples in order, for evaluation: (batch, bool [batch] of the rows that count)."""

    def loss(self, outputs: Any, batch: Batch) -> jax.Array:
        """What training makes small, a mean over the batch; shape ().

        Raises:
          ValueError: outputs that it is not for, by their shapes; `fit` asks before it begins.
        """

    def measures(self, outputs: Any, batch: Batch) -> dict[str, jax.Array]:
        """Name -> float32 [batch], what is reported of every row; "loss" is among them."""

    def score(self, measured: Mapping[str, float]) -> float:
        """The larger, the better: what the best checkpoint is chosen by."""


@dataclasses.dataclass(frozen=True)
class Network:
    """A model and the task that it is for."""

    model: nn.Module
    task: Task

    def __call__(
        self,
        params: Tree,
        state: State,
        batch: Batch,
        *,
        precision: Asked,
        train: bool = False,
        key: jax.Array | None = None,
    ) -> tuple[Any, State]:
        """(outputs, state) of a batch in a precision; in training the statistics move too.

        Args:
          state: {"batch_stats": ..., "carry": mode -> what it carries}.
          key: of random numbers that layers may ask for; None is none.
        """
        mode = mode_of(precision)
        variables = {"params": params, "batch_stats": state["batch_stats"]}
        carried = state["carry"].get(mode, ())
        outputs, updates = self.model.apply(
            variables,
            *arguments_of(batch, carried),
            precision=precision,
            train=train,
            mutable=["batch_stats"] if train else [],
            rngs=None if key is None else {ROUNDING: key},
        )
        statistics = {**state["batch_stats"], **updates.get("batch_stats", {})}
        if _is_empty(carried):
            return outputs, {**state, "batch_stats": statistics}
        outputs, carried = outputs
        carry = {**state["carry"], mode: carried}
        return outputs, {"batch_stats": statistics, "carry": carry}


def arguments_of(batch: Batch, carried: Tree) -> tuple[Tree, ...]:
    """What the model takes of a batch, and behind it the state that is carried, if any is."""
    inputs = batch["inputs"] if isinstance(batch["inputs"], tuple) else (batch["inputs"],)
    return inputs if _is_empty(carried) else (*inputs, carried)


def _is_empty(tree: Tree) -> bool:
    return not jax.tree.leaves(tree)
