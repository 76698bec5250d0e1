"""Losses of the modes of one network: each on its own share of a batch, or all on all of it."""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from dual_precision.costs import update_cost
from dual_precision.precision import FLOAT, FLOAT_BITS, FLOAT_NAME, Asked, Modes, mode_of
from dual_precision.primitives.shared_batch import is_shared
from dual_precision.structure import Structure
from dual_precision.tasks.losses import distillation, ensemble
from dual_precision.tasks.task import Batch, Network, State, Tree
from dual_precision.training.state import Measured

if TYPE_CHECKING:
    from dual_precision.training.phases import Phase

ENSEMBLE = "ensemble"  # a teacher of every mode: the mean of what all of them say


@dataclasses.dataclass(frozen=True)
class Split:
    """Each mode runs on its own rows of every batch; the loss is the sum of their losses.

    A pass over the data then costs the work of one mode, not of all, and every update moves the
    weights that the modes share for each of them. A teacher reads the rows of the others too, as
    it is deployed (running statistics, no gradient): a third of a mode that is trained.

    Attributes:
      precisions: in the order in which they run: statistics go from one to the next.
      teacher: the mode whose outputs (logits) the others learn from; None is none.
      distillation: share of the soft labels of the teacher in the loss of the others.
    """

    precisions: tuple[str, ...]
    teacher: str | None = None
    distillation: float = 0.0

    @property
    def passes(self) -> float:
        """Modes that an example goes through forward and backward; forward alone is a third."""
        taught = 0 if self.teacher is None else len(self.precisions) - 1
        return 1 + taught / len(self.precisions) / 3

    def check(self, modes: Modes, phase: "Phase") -> None:
        """Raises ValueError where there is nothing to split, or where the teacher cannot teach."""
        del modes
        _check_distinct(self, phase)
        if len(self.precisions) < 2:
            raise ValueError(
                f"phase {phase.name!r} splits batches among {self.precisions}: expected two modes"
                " or more"
            )
        if self.teacher == ENSEMBLE:
            raise ValueError(
                f"phase {phase.name!r}: teacher {ENSEMBLE!r} on split batches, where no two modes"
                " see a row; expected split=false"
            )
        _check_teacher(self, phase)

    def cost(self, structure: Structure, values: Mapping[str, jax.Array]) -> float:
        """The cost of an update, see `costs.update_cost`: the mean of those of the modes, and
        forward alone that of the teacher on the rows of the others."""
        del values
        count, modes = len(self.precisions), structure.modes
        trained = sum(_cost_of(modes, mode) for mode in self.precisions) / count
        if self.teacher is None:
            return trained
        return trained + (count - 1) / count * _cost_of(modes, self.teacher, backward=False)

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
        count, rows = len(self.precisions), _rows_of(batch)
        if rows < count and not is_shared():
            raise ValueError(f"a batch of {rows} split among {self.precisions}: expected {count}")
        if is_shared() and rows % count:
            raise ValueError(
                f"{rows} rows of a batch on each device, split among {self.precisions}: expected a"
                f" multiple of {count}; make the batch one of {count} x the devices"
            )
        outputs, shares = {}, {}
        for index, mode in enumerate(self.precisions):
            # Strided: the shares are the same rows, however many devices have a part of the batch.
            share = slice(index, None, count)
            shares[mode] = jax.tree.map(lambda array, own=share: array[own], batch)
            outputs[mode], state = _run_share(
                network, params, state, shares[mode], mode, share, jax.random.fold_in(key, index)
            )
        total = jnp.float32(0.0)
        metrics: Measured = {}
        for mode, found in outputs.items():
            loss, own = loss_of(network, mode, found, shares[mode])
            if self.teacher is not None and mode != self.teacher:
                taught = _as_deployed(network, params, state, shares[mode], self.teacher)
                loss = _taught(loss, found, taught, self.distillation)
            total, metrics = total + loss, metrics | own
        return total, (state, metrics)


@dataclasses.dataclass(frozen=True)
class Together:
    """Every mode runs on all of every batch; the loss is the sum of their losses.

    Attributes:
      precisions: in the order in which they run: statistics go from one to the next.
      teacher: the mode whose outputs (logits) the others learn from; ENSEMBLE: every mode learns
        from the mean of what all of them say (Zhu et al. 2018, arXiv 1806.04606); None is none.
      distillation: share of the soft labels of the teacher in the loss of the others.
    """

    precisions: tuple[str, ...]
    teacher: str | None = None
    distillation: float = 0.0

    @property
    def passes(self) -> float:
        """Modes that an example goes through forward and backward."""
        return len(self.precisions)

    def check(self, modes: Modes, phase: "Phase") -> None:
        """Raises ValueError where a mode runs twice, or the teacher not at all, or for nothing."""
        del modes
        _check_distinct(self, phase)
        _check_teacher(self, phase)

    def cost(self, structure: Structure, values: Mapping[str, jax.Array]) -> float:
        """The cost of an update, see `costs.update_cost`: the sum of those of the modes."""
        del values
        return sum(_cost_of(structure.modes, mode) for mode in self.precisions)

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
        outputs = {}
        for index, mode in enumerate(self.precisions):
            outputs[mode], state = network(
                params,
                state,
                batch,
                precision=mode,
                train=True,
                key=jax.random.fold_in(key, index),
            )
        total = jnp.float32(0.0)
        metrics: Measured = {}
        teacher = ensemble(list(outputs.values())) if self.teacher == ENSEMBLE else None
        if self.teacher in outputs:
            teacher = outputs[self.teacher]
        for mode, found in outputs.items():
            loss, own = loss_of(network, mode, found, batch)
            metrics |= own
            if teacher is not None and mode != self.teacher:
                loss = _taught(loss, found, teacher, self.distillation)
            total = total + loss
        return total, (state, metrics)


def _check_distinct(loss: Split | Together, phase: "Phase") -> None:
    if len({*loss.precisions}) < len(loss.precisions):
        raise ValueError(
            f"phase {phase.name!r} runs {loss.precisions}: expected each mode once, for a second"
            " one takes the place of the first"
        )


def _check_teacher(loss: Split | Together, phase: "Phase") -> None:
    if not 0 <= loss.distillation <= 1:
        raise ValueError(
            f"phase {phase.name!r}: distillation {loss.distillation}; expected a share, 0 to 1,"
            " of what the teacher says in the loss"
        )
    if (loss.teacher is None) != (loss.distillation == 0.0):
        raise ValueError(
            f"phase {phase.name!r}: teacher {loss.teacher!r} with distillation"
            f" {loss.distillation}; expected both or neither"
        )
    if loss.teacher == ENSEMBLE and len(loss.precisions) < 2:
        raise ValueError(
            f"phase {phase.name!r}: teacher {ENSEMBLE!r} of {loss.precisions}: expected two modes"
            " or more, as one learns nothing from itself"
        )
    if loss.teacher not in (None, ENSEMBLE, *loss.precisions):
        raise ValueError(
            f"phase {phase.name!r}: teacher {loss.teacher!r} does not run;"
            f" expected one of {loss.precisions}, or {ENSEMBLE!r}"
        )


def _taught(loss: jax.Array, outputs: Any, teacher: Any, share: float) -> jax.Array:
    """The loss on labels and the loss on the soft labels of a teacher, by their shares."""
    return (1 - share) * loss + share * distillation(outputs, teacher)


def _as_deployed(network: Network, params: Tree, state: State, batch: Batch, mode: str) -> Any:
    """What a mode gives for rows that it does not train on: nothing is estimated, or carried on.

    Raises:
      ValueError: a network whose modes carry values from batch to batch. The teacher has not seen
        what came before these rows.
    """
    if jax.tree.leaves(state["carry"].get(mode, ())):
        raise ValueError(
            f"mode {mode!r} carries values from batch to batch, and was to teach another on rows"
            " of a split batch, whose past it did not see; expected split=false with distillation"
        )
    params, state = jax.lax.stop_gradient((params, state))
    return network(params, state, batch, precision=mode, train=False)[0]


def _cost_of(modes: Modes, mode: str, backward: bool = True) -> float:
    own = FLOAT if mode == FLOAT_NAME else modes.default[mode]
    widths = [bits or FLOAT_BITS for bits in (own.weights, own.activations, own.gradients)]
    if not backward:
        widths[2] = 0  # bits of gradients: their products are not made
    found: float = update_cost(*widths)
    return found


def _rows_of(batch: Batch) -> int:
    rows: int = jax.tree.leaves(batch)[0].shape[0]
    return rows


def _run_share(
    network: Network,
    params: Tree,
    state: State,
    batch: Batch,
    mode: str,
    share: slice,
    key: jax.Array,
) -> tuple[Any, State]:
    """Runs a mode on its rows, which alone go on from what they carry."""
    run = partial(network, params, batch=batch, precision=mode, train=True, key=key)
    carry = state["carry"].get(mode, ())
    if not jax.tree.leaves(carry):
        return run(state=state)
    own = {**state["carry"], mode: jax.tree.map(lambda array: array[share], carry)}
    outputs, after = run(state={**state, "carry": own})
    moved = jax.tree.map(lambda whole, part: whole.at[share].set(part), carry, after["carry"][mode])
    return outputs, {**after, "carry": {**state["carry"], mode: moved}}


def trained_at(
    precision: Asked, network: Network, params: Tree, state: State, batch: Batch, key: jax.Array
) -> tuple[jax.Array, tuple[State, Measured]]:
    """What a loss gives that runs one precision on all of a batch; see `phases.Loss`."""
    outputs, state = network(params, state, batch, precision=precision, train=True, key=key)
    loss, metrics = loss_of(network, mode_of(precision), outputs, batch)
    return loss, (state, metrics)


def loss_of(network: Network, mode: str, outputs: Any, batch: Batch) -> tuple[jax.Array, Measured]:
    """The loss of the task for the outputs of a mode, and what is logged of them."""
    loss, measured = network.task.loss(outputs, batch), network.task.measures(outputs, batch)
    metrics = {f"{mode}_{name}": jnp.mean(value) for name, value in measured.items()}
    return loss, {**metrics, f"{mode}_loss": loss}
