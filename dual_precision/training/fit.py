"""Runs a recipe: phases in order, checkpoints, resume, validation, logs."""

import dataclasses
import logging
import signal
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from dual_precision.structure import Structure, structure_of
from dual_precision.tasks.task import Network, Task
from dual_precision.training.checkpoint import Checkpoints
from dual_precision.training.feed import Feed
from dual_precision.training.given import (
    check_agreed,
    check_outputs,
    check_restored,
    check_same_run,
    check_start,
    checked_config,
    description_of,
    digests_of,
)
from dual_precision.training.log import Journal, Listener, Record, open_journal
from dual_precision.training.metrics import evaluate
from dual_precision.training.moments import (
    after_events,
    at_epoch,
    at_phase,
    carry_of,
    first_state,
)
from dual_precision.training.options import FitOptions
from dual_precision.training.phases import Phase, Stage, check_recipe, stages_of
from dual_precision.training.processes import largest
from dual_precision.training.sharding import replicate
from dual_precision.training.signals import Interrupted, Signals
from dual_precision.training.state import TrainState
from dual_precision.training.step import compile_steps

log = logging.getLogger(__name__)

_DISPATCHES_BETWEEN_TALKS = 16


class NonFiniteLoss(RuntimeError):
    """The loss became NaN or infinite; nothing after the last checkpoint was saved."""


def fit(
    model: nn.Module,
    task: Task,
    phases: Sequence[Phase],
    train: Any,
    validation: Any,
    options: FitOptions,
    workdir: Path | str,
    config: dict[str, Any] | None = None,
    variables: Any = None,
    listeners: Sequence[Listener] = (),
) -> TrainState:
    """Trains `model` through all phases and returns the last state.

    Continues from the newest sound checkpoint in `workdir`, if it was given the same (phases that
    have not begun, devices and evaluations may be others). All that is random follows from the
    seed and the step alone: a run that was stopped anywhere ends with the same bits.

    Args:
      model: called as model.apply(variables, inputs, precision=..., train=...); has `modes`.
      train, validation: sets of examples of the task.
      config: kept as JSON beside each checkpoint. Its entry "network", if it has one, describes
        `model`, see `build_from`: `load` makes it of that.
      variables: start from these in the place of fresh ones.
      listeners: called with every record that goes to metrics.jsonl.

    Raises:
      ValueError: a recipe or batch size that cannot work; a model or a task that is not hashable;
        a config that is not JSON, or describes another network; variables or a workdir of another;
        a network whose outputs are not for the task.
      NonFiniteLoss, CheckpointError, Interrupted: see there.
    """
    config = checked_config(config, model, task)
    check_recipe(phases, model.modes)
    network, structure = Network(model, task), structure_of(model, task.example)
    check_start(variables, structure)
    data = digests_of(task, train, validation)
    check_agreed(options, data, config, variables)
    feed = Feed(task, train, options)
    check_outputs(task, structure, feed.arrays)
    stages = stages_of(phases, structure, feed.steps_per_epoch, options.accumulate)
    last = stages[-1].end
    run = description_of(network, phases, options, feed.steps_per_epoch, data)
    checkpoints = Checkpoints(workdir, config, [stage.end for stage in stages], run)
    found = resume(checkpoints, stages, structure, feed)
    state, begun = found or (first_state(network, feed, variables), -1)
    journal = open_journal(Path(workdir), stages, structure, state, options.rows, listeners)
    with checkpoints, journal, Signals() as signals:
        for stage in [stage for stage in stages if stage.end > int(state.step)]:
            happen = partial(after_events, network, structure, stage, feed)
            if stage.index > begun:
                state = happen(at_phase(state, stage, feed), stage.phase.at_start)
            program = compile_steps(network, stage, feed.key, feed.mesh)
            while (step := int(state.step)) < stage.end:
                state, metrics = program(state, feed.arrays, feed.order(step))
                _check_finite(metrics["loss"], step, stage, checkpoints)
                step = int(state.step)
                journal.show(stage.phase.name, float(metrics["loss"][-1]), step)
                if step % feed.steps_per_epoch == 0:
                    state = happen(at_epoch(state, stage, feed), stage.due(step))
                if _is_evaluated(step, stage, feed, options):
                    scores = _evaluate(network, state, validation, stage, metrics, journal)
                    _save(checkpoints, state, stage, scores)
                if step < last and (signum := _asked_to_stop(signals, step // feed.chunk)):
                    _stop(checkpoints, state, stage, signum, last)
    return state


def _is_evaluated(step: int, stage: Stage, feed: Feed, options: FitOptions) -> bool:
    epoch, rest = divmod(step, feed.steps_per_epoch)
    return rest == 0 and (epoch % options.epochs_per_evaluation == 0 or step == stage.end)


def _asked_to_stop(signals: Signals, dispatches: int) -> int:
    """The signal that asked to stop; 0 for none. Several processes stop together: they tell each
    other from time to time, for it costs as much as a short step."""
    if jax.process_count() == 1:
        return signals.received or 0
    return 0 if dispatches % _DISPATCHES_BETWEEN_TALKS else largest(signals.received or 0)


def resume(
    checkpoints: Checkpoints,
    stages: Sequence[Stage],
    structure: Structure,
    feed: Feed,
) -> tuple[TrainState, int] | None:
    """The newest sound checkpoint and the index of its phase; None where there is none.

    Later checkpoints, which are damaged, are set aside.

    Raises:
      CheckpointError: there are some, and none can be read.
      ValueError: they are of another run.
    """
    workdir = checkpoints.folder.parent

    def read(step: int) -> tuple[TrainState, int]:
        about = checkpoints.about(step)
        check_same_run(about, checkpoints.run, workdir)
        stage = stages[int(about["progress"]["phase"])]
        variables = checkpoints.shapes(step)
        state = TrainState(
            jax.eval_shape(lambda: jnp.int32(0)),
            variables["params"],
            variables["batch_stats"],
            jax.eval_shape(lambda: carry_of(stage, feed)),
            jax.eval_shape(stage.optimizer.init, variables["params"]),
        )
        target = replicate(_as_dict(state), feed.mesh)
        restored = TrainState(**checkpoints.restore(step, target))
        check_restored(restored.variables, structure, workdir)
        return restored, stage.index

    found: tuple[TrainState, int] | None = checkpoints.newest(read)
    if found is not None:
        step = int(found[0].step)
        checkpoints.set_aside_after(step)
        log.info("resumed at step %d", step)
    return found


def _check_finite(losses: Any, step: int, stage: Stage, checkpoints: Checkpoints) -> None:
    bad = ~np.isfinite(np.asarray(losses))
    if bad.any():
        raise _not_finite("loss is", step + int(bad.argmax()), stage, checkpoints)


def _not_finite(what: str, step: int, stage: Stage, checkpoints: Checkpoints) -> NonFiniteLoss:
    checkpoints.wait()
    kept = checkpoints.steps()
    return NonFiniteLoss(
        f"{what} not finite at step {step} (phase {stage.phase.name});"
        f" the last good checkpoint is {f'step {kept[-1]}' if kept else 'none'}."
        " Try a smaller learning rate, in a new workdir"
    )


def _evaluate(
    network: Network,
    state: TrainState,
    validation: Any,
    stage: Stage,
    metrics: Mapping[str, jax.Array],
    journal: Journal,
) -> list[float]:
    """Writes a record of all that is measured; the score of each mode."""
    step, model, task = int(state.step), network.model, network.task
    rates = stage.logged_values(jnp.int32(step - 1))
    record: Record = {"step": step, "epoch": step // stage.steps_per_epoch}
    record |= {"phase": stage.phase.name}
    record |= {name: float(rates[name]) for name in stage.schedules}
    record |= {name: float(np.mean(value)) for name, value in metrics.items()}
    scores = {}
    for mode in stage.validated(step):
        found = evaluate(model, state.variables, validation, task=task, precision=mode)
        record |= {f"validation_{mode}_{name}": value for name, value in found.items()}
        scores[mode] = task.score(found)
    journal.write(record, scores)
    return [*scores.values()]


def _save(
    checkpoints: Checkpoints, state: TrainState, stage: Stage, scores: Sequence[float]
) -> None:
    """A checkpoint with the scores of its modes; none where it comes between evaluations."""
    if not _all_finite(state.variables):  # by the last update, whose loss nobody has computed
        raise _not_finite("parameters are", int(state.step), stage, checkpoints)
    score = float(np.mean(scores)) if scores else 0.0
    progress = {"phase": stage.index}
    checkpoints.save(int(state.step), _as_dict(state), progress, score, len(scores))


def _stop(
    checkpoints: Checkpoints, state: TrainState, stage: Stage, signum: int, last: int
) -> None:
    step = int(state.step)
    checkpoints.wait()  # until then the one of an evaluation is not among the steps
    if step not in checkpoints.steps():
        _save(checkpoints, state, stage, ())
    checkpoints.wait()
    raise Interrupted(
        f"{signal.Signals(signum).name}: saved at step {step} of {last};"
        f" start the same command again to go on (workdir {checkpoints.folder.parent})",
        signum,
    )


def _as_dict(state: TrainState) -> dict[str, Any]:
    return {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}


@jax.jit
def _all_finite(tree: Any) -> jax.Array:
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]))
