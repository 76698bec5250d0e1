"""A training recipe is a tuple of phases: plain data that `fit` runs in order.

A phase carries values, not switches: what is made small is a loss, how weights move is an
optimizer, what changes from update to update is a schedule, what is set at its start, at its end
and in between is an event. A method of training is such values; nothing else knows about it.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol, TypeVar

import jax
import jax.numpy as jnp
import optax

from dual_precision.precision import Modes, is_whole
from dual_precision.structure import Structure
from dual_precision.tasks.task import Batch, Network, State, Tree
from dual_precision.training.state import Measured, TrainState

Schedule = Callable[[jax.Array], jax.Array]
AnyStep = TypeVar("AnyStep", int, jax.Array)
# What every record of the log has of its own.
_RECORD = frozenset({"step", "epoch", "phase", "loss", "examples_per_second"})
_RECORD |= {"relative_cost", "gigabitops"}
_VALIDATION = "validation_"  # what is measured at an evaluation begins so
# How a phase moves its parameters: (structure, modes of the phase, schedules by name) -> transform.
# It follows schedules by optax.scale_by_schedule, as optax.scale_by_learning_rate does: whose state
# is made anew in the middle of a phase goes on in them. It may have `check`, see `Loss`.
Optimizer = Callable[
    [Structure, Sequence[str], Mapping[str, Schedule]], optax.GradientTransformation
]


class Loss(Protocol):
    """What a phase makes small: any function, or a frozen record that can be called.

    A record may say more of itself. All of these are optional:

      check(modes: Modes, phase: Phase) -> None: called before anything is trained; raises
        ValueError where the phase cannot work. An optimizer or an event may have it too.
      cost(structure: Structure, values: Mapping[str, Array]) -> float or Array: what so many
        updates cost, see `costs.update_cost`, from `values` [updates]: [updates], or one number
        for each of them. The log tells no cost where one loss of a recipe does not say it.
      passes: float, modes that an example goes through, forward and backward, in one epoch; all
        modes of the phase where a loss does not say it.
    """

    def __call__(
        self,
        network: Network,
        params: Tree,
        state: State,
        batch: Batch,
        key: jax.Array,
        values: Mapping[str, jax.Array],
        /,
    ) -> tuple[jax.Array, tuple[State, Measured]]:
        """(loss, (the state after it, metrics)) of one batch; all but the state are shape ().

        Args:
          values: what the schedules give for this update, by name, and "step", the number of the
            update in the phase.
        """


@dataclasses.dataclass(frozen=True)
class Moment:
    """Where training stands when an event happens.

    Attributes:
      batches: count -> so many training batches, drawn as those of the next updates.
      key: of random numbers that belong to this moment.
      epoch: epochs of the phase that are over.
    """

    network: Network
    structure: Structure
    batches: Callable[[int], Iterator[Batch]]
    key: jax.Array
    epoch: int


# What is set, not learned. An event may drop the state of the optimizer (opt_state=None): it is
# then made anew, for parameters that are no longer those that it belonged to; schedules go on. It
# may have `check`, see `Loss`.
Event = Callable[[TrainState, Moment], TrainState]


@dataclasses.dataclass(frozen=True)
class Phase:
    """One stretch of training.

    Attributes:
      name: for logs.
      epochs: passes over the training split.
      precisions: the modes whose values it trains; validated at every evaluation.
      loss: see Loss.
      optimizer: see Optimizer.
      schedules: name -> (updates of the phase) -> (update -> value). The loss gets the values, the
        optimizer the schedules, the log the last values before an evaluation. No name is one that
        a record of the log has anyway; the same is true of the metrics of the loss.
      at_start, at_end: events before its first update, and after its last one.
      events: (every so many epochs, event); one that falls on the end comes before `at_end`.
      reports: more modes to validate at its end: those that an event has made.
    """

    name: str
    epochs: int
    precisions: tuple[str, ...]
    loss: Loss
    optimizer: Optimizer
    schedules: Mapping[str, Callable[[int], Schedule]] = dataclasses.field(default_factory=dict)
    at_start: tuple[Event, ...] = ()
    at_end: tuple[Event, ...] = ()
    events: tuple[tuple[int, Event], ...] = ()
    reports: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not is_whole(self.epochs) or self.epochs < 1:
            raise ValueError(
                f"phase {self.name!r} has {self.epochs!r} epochs: expected a whole number, 1 or"
                " more"
            )
        if not self.precisions:
            raise ValueError(f"phase {self.name!r} runs no mode: expected at least one")
        if bad := [every for every, _ in self.events if not is_whole(every) or every < 1]:
            raise ValueError(
                f"phase {self.name!r} has an event every {bad[0]!r} epochs: expected a whole"
                " number, 1 or more"
            )
        check_names(self.schedules, f"a schedule of phase {self.name!r}")

    @property
    def passes(self) -> float:
        """What an epoch costs, see `passes_of`."""
        return passes_of(self.loss, self.precisions)

    def due(self, epoch: int) -> tuple[Event, ...]:
        """The events after so many epochs of the phase."""
        between = tuple(event for every, event in self.events if epoch % every == 0)
        return between + (self.at_end if epoch == self.epochs else ())


def passes_of(loss: Loss, precisions: Sequence[str]) -> float:
    """Modes that an example goes through, forward and backward, in one epoch of these modes: what
    the loss says of itself, else all of them."""
    own: float = getattr(loss, "passes", len(precisions))
    return own


@dataclasses.dataclass(frozen=True)
class Stage:
    """A phase in its place: for one network, between two updates of the recipe.

    Attributes:
      index: of the phase in the recipe.
      start, end: the step before its first update, and after its last one.
      steps_per_epoch: steps in an epoch.
      accumulate: steps in an update: each has its part of a batch, see `FitOptions`.
      trained: the modes that it trains, and those of the phases before: all are validated.
      schedules: by name, update of the phase -> value.
    """

    index: int
    phase: Phase
    start: int
    end: int
    steps_per_epoch: int
    accumulate: int
    trained: tuple[str, ...]
    schedules: Mapping[str, Schedule]
    optimizer: optax.GradientTransformation

    def update_after(self, step: AnyStep) -> AnyStep:
        """The number of the update after `step`, from 0."""
        return (step - self.start) // self.accumulate

    def values(self, step: jax.Array) -> dict[str, jax.Array]:
        """What the schedules give for the update after `step`, and its number as "step"."""
        count = self.update_after(step)
        rates = {name: rate(count.astype(jnp.float32)) for name, rate in self.schedules.items()}
        return {"step": count, **rates}

    @cached_property
    def logged_values(self) -> Callable[[jax.Array], dict[str, jax.Array]]:
        """`values`, compiled once for all evaluations of the phase."""
        return jax.jit(self.values)

    def epochs_at(self, step: int) -> int:
        """Epochs of the phase that are over at `step`."""
        return (step - self.start) // self.steps_per_epoch

    def due(self, step: int) -> tuple[Event, ...]:
        """The events that happen when an epoch ends at `step`."""
        return self.phase.due(self.epochs_at(step))

    def validated(self, step: int) -> tuple[str, ...]:
        """The modes to validate at `step`."""
        made = self.phase.reports if step == self.end else ()
        return tuple(sorted({*self.trained, *made}))


def stages_of(
    phases: Sequence[Phase], structure: Structure, steps_per_epoch: int, accumulate: int = 1
) -> tuple[Stage, ...]:
    """The phases of a recipe, one after the other; `accumulate` steps make one update."""
    stages: list[Stage] = []
    start, trained = 0, set[str]()
    for index, phase in enumerate(phases):
        steps = phase.epochs * steps_per_epoch
        schedules = {name: make(steps // accumulate) for name, make in phase.schedules.items()}
        optimizer = phase.optimizer(structure, phase.precisions, schedules)
        if accumulate > 1:  # the mean gradient of its steps
            optimizer = optax.MultiSteps(optimizer, accumulate).gradient_transformation()
        trained |= {*phase.precisions}
        end = start + steps
        place = (index, phase, start, end, steps_per_epoch, accumulate)
        stages.append(Stage(*place, (*trained,), schedules, optimizer))
        start = end
    return tuple(stages)


def check_names(names: Iterable[str], what: str, taken: Iterable[str] = ()) -> None:
    """Raises ValueError where a name of what is logged stands for something else in a record."""
    for name in names:
        if name in {*_RECORD, *taken} or name.startswith(_VALIDATION):
            raise ValueError(
                f"{what} is called {name!r}, which means something else in every record: expected"
                f" a name that is not one of {sorted({*_RECORD, *taken})}, and does not begin with"
                f" {_VALIDATION!r}; give it another one"
            )


def check_recipe(phases: Sequence[Phase], modes: Modes) -> None:
    """Raises ValueError where a phase names unknown modes or cannot keep what it promises."""
    if not isinstance(phases, Sequence) or not all(isinstance(part, Phase) for part in phases):
        raise ValueError(f"phases={phases!r:.80}: expected a tuple of Phase, as in (phase,)")
    if not phases:
        raise ValueError("a recipe of no phases: expected at least one")
    for phase in phases:
        for name in (*phase.precisions, *phase.reports):
            modes.check_name(name)
        events = (event for _, event in phase.events)
        parts: list[Any] = [phase.loss, phase.optimizer, *phase.at_start, *events, *phase.at_end]
        for part in parts:
            if check := getattr(part, "check", None):
                check(modes, phase)
