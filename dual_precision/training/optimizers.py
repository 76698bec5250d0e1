"""What a phase may train, and how: optax transforms chosen leaf by leaf."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from dual_precision.precision import FLOAT_NAME, Modes, Precision
from dual_precision.structure import LayerPath, Structure
from dual_precision.tasks.task import Tree
from dual_precision.training.cells import keep_in_cells

if TYPE_CHECKING:
    from dual_precision.training.phases import Phase, Schedule

RATE, STEP_RATE = "learning_rate", "step_learning_rate"


@dataclasses.dataclass(frozen=True)
class Sgd:
    """SGD with Nesterov momentum; Adam on the logarithm of quantizer steps.

    Its schedules are "learning_rate" and "step_learning_rate", which is a relative change per
    update, the same for a step of 1e-3 and a step of 1. Leaves of modes that the phase does not
    train get no update, not even by weight decay.

    Attributes:
      weight_decay: on kernels only.
      protect: a mode whose function must not change: all that it reads is frozen, and weights
        move only inside its cells.
    """

    weight_decay: float = 5e-4
    momentum: float = 0.9
    nesterov: bool = True
    protect: str | None = None

    def __call__(
        self,
        structure: Structure,
        precisions: Sequence[str],
        schedules: "Mapping[str, Schedule]",
    ) -> optax.GradientTransformation:
        moved = optax.trace(self.momentum, nesterov=self.nesterov)
        kernel = (optax.add_decayed_weights(self.weight_decay), moved)
        return by_leaf(kernel, moved, self.protect, structure, precisions, schedules)

    def check(self, modes: Modes, phase: "Phase") -> None:
        """Raises ValueError without a schedule, or where a mode cannot be protected as asked."""
        _check_phase(self, modes, phase)


@dataclasses.dataclass(frozen=True)
class Adam:
    """Adam in the place of SGD, for text; quantizer steps, schedules and the rest as in `Sgd`.

    Gradients are cut first: those of all kernels together to a norm of 1, and those of all other
    leaves but quantizer steps, together, to a norm of 1 as well.

    Attributes:
      weight_decay: on kernels only, beside the gradient and not in it (arXiv 1711.05101).
      momentum, second: how much of the first and of the second moment an update keeps.
      protect: see `Sgd`.
    """

    weight_decay: float = 0.01
    momentum: float = 0.9
    second: float = 0.99
    protect: str | None = None

    def __call__(
        self,
        structure: Structure,
        precisions: Sequence[str],
        schedules: "Mapping[str, Schedule]",
    ) -> optax.GradientTransformation:
        adam = optax.scale_by_adam(self.momentum, self.second)
        moved = optax.chain(optax.clip_by_global_norm(1.0), adam)
        kernel = (moved, optax.add_decayed_weights(self.weight_decay))
        return by_leaf(kernel, moved, self.protect, structure, precisions, schedules)

    def check(self, modes: Modes, phase: "Phase") -> None:
        """Raises ValueError without a schedule, or where a mode cannot be protected as asked."""
        _check_phase(self, modes, phase)


def by_leaf(
    kernel: Sequence[optax.GradientTransformation],
    other: optax.GradientTransformation,
    protect: str | None,
    structure: Structure,
    precisions: Sequence[str],
    schedules: "Mapping[str, Schedule]",
) -> optax.GradientTransformation:
    """How the leaves of a phase move, each by its label, see `label_leaves`.

    Adam divides by the size of the gradient. So LSQ's factor on the gradient of a step,
    1 / sqrt(N * Q), has no effect but beside the epsilon of 1e-8, unless the width Q belongs to
    changes from update to update, as it does in cycles.

    Args:
      kernel: what becomes of the gradients of kernels, one after the other, before the rate.
      other: the same of what is neither kernel nor quantizer step.
      protect: see `Sgd`.
    """
    rate = optax.scale_by_learning_rate(_of_float(schedules[RATE]))
    step_rate = optax.scale_by_learning_rate(_of_float(schedules[STEP_RATE]))
    partition = optax.partition(
        {
            "kernel": optax.chain(*kernel, rate),
            "step": in_log_domain(optax.chain(optax.scale_by_adam(), step_rate)),
            "other": optax.chain(other, rate),
            "frozen": optax.set_to_zero(),
        },
        lambda params: label_leaves(params, structure, precisions, protect),
    )
    if protect is None:
        return partition
    return optax.chain(partition, keep_in_cells(protect, structure))


def _check_phase(optimizer: Sgd | Adam, modes: Modes, phase: "Phase") -> None:
    if missing := [name for name in (RATE, STEP_RATE) if name not in phase.schedules]:
        raise ValueError(
            f"phase {phase.name!r} has the schedules {list(phase.schedules)}: expected"
            f" {missing} too, which {type(optimizer).__name__} follows"
        )
    if optimizer.protect is not None:
        _check_protected(optimizer.protect, modes, phase)


def _check_protected(protect: str, modes: Modes, phase: "Phase") -> None:
    modes.check_name(protect)
    if protect in phase.precisions:
        raise ValueError(f"phase {phase.name!r} trains {protect!r}, which it protects: drop one")
    norm = modes.norm_of(protect)
    if sharing := [name for name in phase.precisions if modes.norm_of(name) == norm]:
        raise ValueError(
            f"phase {phase.name!r} trains {sharing}, whose normalisation {protect!r} uses"
            " and whose statistics move: expected one of its own to protect it; change norms"
        )
    for path, entry in {"the model": modes.default, **modes.layers}.items():
        table = {FLOAT_NAME: Precision(None, None), **modes.default, **entry}
        for trained in phase.precisions:
            if trained != FLOAT_NAME:
                _check_wider(path, table[protect], protect, table[trained])


def schedules_at(update: int, opt_state: optax.OptState) -> optax.OptState:
    """A new state of an optimizer whose schedules stand at `update`, the first of which is 0."""

    def is_schedule(part: object) -> bool:
        return isinstance(part, optax.ScaleByScheduleState)

    def moved(part: Any) -> Any:
        return part._replace(count=jnp.int32(update)) if is_schedule(part) else part

    return jax.tree.map(moved, opt_state, is_leaf=is_schedule)


def _check_wider(path: str, low: Precision, name: str, high: Precision) -> None:
    if low.weight_bits > high.weight_bits:
        raise ValueError(
            f"{path}: mode {name!r} has {low}, wider weights than {high}, and must stay as it is;"
            " expected it to be the narrower one; swap them, or protect neither"
        )


def _of_float(schedule: "Schedule") -> "Schedule":
    return lambda count: schedule(count.astype(jnp.float32))  # optax mixes its floats into it


def label_leaves(
    params: Tree, structure: Structure, precisions: Sequence[str], protect: str | None = None
) -> Tree:
    """For every leaf: "kernel", "step", "other", or "frozen" where a phase may not move it."""

    def label(path: LayerPath) -> str:
        if not structure.is_read(path, precisions):
            return "frozen"
        shared = structure.owner(path) is None
        if protect is not None and not _is_free(path, structure, precisions, protect, shared):
            return "frozen"
        if path[-1] == "kernel":
            return "kernel"
        return "step" if "step" in path or "input_step" in path else "other"

    return unflatten_dict({path: label(path) for path in flatten_dict(params)})


def _is_free(
    path: LayerPath, structure: Structure, precisions: Sequence[str], protect: str, shared: bool
) -> bool:
    """Whether a leaf has something that the protected mode does not read: its whole, or bits."""
    if not shared:
        return not structure.is_read(path, [protect])
    if path[-1] != "kernel":
        return False
    layer = structure.layers.get(path[:-1])
    if layer is None:  # a kernel of a plain Flax layer, which every mode reads whole
        return False
    table = layer.table
    return any(table[name].weight_bits > table[protect].weight_bits for name in precisions)


def in_log_domain(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Runs `inner` on log(p): p <- p * exp(update), with the gradient p * dL/dp.

    Keeps positive parameters positive (an update is a factor of e^-8 to e^8) and makes their
    learning rate a relative one, the same for a step of 1e-3 and a step of 1.
    """

    def update(updates, state, params=None):
        if params is None:
            raise ValueError("in_log_domain needs the parameters: call update(g, state, params)")
        logs = jax.tree.map(jnp.log, params)
        gradients = jax.tree.map(jnp.multiply, updates, params)
        moves, state = inner.update(gradients, state, logs)
        return jax.tree.map(
            lambda p, move: p * jnp.expm1(jnp.clip(move, -8, 8)), params, moves
        ), state

    return optax.GradientTransformation(inner.init, update)
