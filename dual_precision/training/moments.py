"""What becomes of the state between two launches of the program.

A run begins, a phase, an epoch; then `after_events`, which makes the state one that the train step
takes.
"""

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from dual_precision.structure import Structure
from dual_precision.tasks.task import Network
from dual_precision.training.feed import Feed
from dual_precision.training.optimizers import schedules_at
from dual_precision.training.phases import Event, Moment, Stage
from dual_precision.training.sharding import replicate
from dual_precision.training.state import TrainState, initial_variables

log = logging.getLogger(__name__)


def first_state(network: Network, feed: Feed, variables: Any) -> TrainState:
    """The state before the first phase, of these variables; None is fresh ones."""
    if variables is None:
        variables = initial_variables(network.model, network.task.example, feed.options.seed)
    variables = jax.tree.map(jnp.copy, dict(variables))  # the step reuses their memory
    statistics = variables.get("batch_stats", {})  # some networks have none
    state = TrainState(jnp.int32(0), variables["params"], statistics, carry={}, opt_state=None)
    return replicate(state, feed.mesh)


def carry_of(stage: Stage, feed: Feed) -> dict[str, Any]:
    """What the rows of a batch start with, mode by mode."""
    return {mode: feed.task.carry(feed.options.rows) for mode in stage.phase.precisions}


def at_epoch(state: TrainState, stage: Stage, feed: Feed) -> TrainState:
    """At the begin of an epoch nothing is carried."""
    return dataclasses.replace(state, carry=carry_of(stage, feed))


def at_phase(state: TrainState, stage: Stage, feed: Feed) -> TrainState:
    """At the begin of a phase the state of the optimizer, which is of the phase before, goes."""
    updates = (stage.end - stage.start) // stage.accumulate
    log.info("phase %s: %d updates", stage.phase.name, updates)
    return dataclasses.replace(at_epoch(state, stage, feed), opt_state=None)


def after_events(
    network: Network,
    structure: Structure,
    stage: Stage,
    feed: Feed,
    state: TrainState,
    events: Sequence[Event],
) -> TrainState:
    """What the events make of the state, one after the other; ready for the train step."""
    step = int(state.step)
    for event in events:
        moment = Moment(
            network,
            structure,
            batches=lambda count: feed.batches(step, count),
            key=jax.random.fold_in(jax.random.fold_in(feed.key, step), 2),
            epoch=stage.epochs_at(step),
        )
        state = event(state, moment)
    return _with_optimizer(state, stage, feed.mesh)


def _with_optimizer(state: TrainState, stage: Stage, mesh: Mesh) -> TrainState:
    """The state as the train step takes it: whole on every device, with a state of the optimizer.

    Where it has none, because a phase begins or an event has dropped it, one is made, whose
    schedules stand where the phase stands.
    """
    if state.opt_state is None:
        opt_state = jax.jit(stage.optimizer.init)(state.params)
        opt_state = schedules_at(stage.update_after(int(state.step)), opt_state)
        state = dataclasses.replace(state, opt_state=opt_state)
    return replicate(state, mesh)
