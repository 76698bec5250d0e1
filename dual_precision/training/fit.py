"""Runs a recipe: phases in order, checkpoints, resume, validation, logs."""

import dataclasses
import logging
import signal
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from tqdm import tqdm

from dual_precision.structure import describe_layers
from dual_precision.training import schedules
from dual_precision.training.checkpoint import Checkpoints
from dual_precision.training.initialize import prepare
from dual_precision.training.log import append_record, drop_records_after
from dual_precision.training.metrics import evaluate
from dual_precision.training.optimizers import phase_optimizer, trained_leaves
from dual_precision.training.phases import Phase, Preparation, check_recipe
from dual_precision.training.sharding import batch_mesh, place_batches, replicate
from dual_precision.training.signals import Interrupted, Signals
from dual_precision.training.state import TrainState, check_layers, initial_variables
from dual_precision.training.step import Augment, compile_chunk

log = logging.getLogger(__name__)

Listener = Callable[[dict[str, Any]], None]


class NonFiniteLoss(RuntimeError):
    """The loss became NaN or infinite; nothing after the last checkpoint was saved."""


class Split(Protocol):
    """images uint8 [N, H, W, C] and labels int [N]."""

    @property
    def images(self) -> np.ndarray: ...

    @property
    def labels(self) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class FitOptions:
    """How a recipe is run, apart from what it trains.

    Attributes:
      batch_size: images per update, over all devices.
      seed: of initial weights, data order and augmentation.
      steps_per_dispatch: at most so many updates per program launch; 0 chooses: 64 on an
        accelerator, 1 on a CPU, where XLA runs what is inside a loop on a single core.
      epochs_per_evaluation: validation and a checkpoint come after so many epochs.
    """

    batch_size: int = 128
    seed: int = 0
    steps_per_dispatch: int = 0
    epochs_per_evaluation: int = 1


def fit(
    model: nn.Module,
    phases: Sequence[Phase],
    train: Split,
    validation: Split,
    augment: Augment,
    options: FitOptions,
    workdir: Path,
    config: dict[str, Any] | None = None,
    variables: Any = None,
    listeners: Sequence[Listener] = (),
) -> TrainState:
    """Trains `model` through all phases and returns the last state.

    Continues from the newest sound checkpoint in `workdir`. Data order and augmentation follow
    from the seed and the step alone, so that a run that was stopped anywhere ends with the same
    bits as one that was not.

    Args:
      model: called as model.apply(variables, images, precision=..., train=...); has `modes`.
      augment: (key, uint8 images) -> uint8 images, inside the jitted step.
      config: kept as JSON beside each checkpoint.
      variables: start from these in the place of fresh ones.
      listeners: called with every record that goes to metrics.jsonl.

    Raises:
      ValueError: a recipe or batch size that cannot work.
      NonFiniteLoss, CheckpointError, Interrupted: see there.
    """
    check_recipe(tuple(phases), model.modes)
    run = _Run(
        model, tuple(phases), train, validation, augment, options, Path(workdir), config, listeners
    )
    return run.run(variables)


class _Run:
    """The moving parts of one `fit`: what stays the same through the phases."""

    def __init__(
        self, model, phases, train, validation, augment, options, workdir, config, listeners
    ):
        self.model, self.phases, self.options = model, phases, options
        self.listeners = listeners
        self.augment, self.validation = augment, validation
        self.mesh = batch_mesh(options.batch_size)
        self.layers = describe_layers(model, train.images.shape[1:])
        check_layers(model.modes, self.layers)
        self.size = len(train.images)
        self.steps_per_epoch = self.size // options.batch_size
        if self.steps_per_epoch == 0:
            raise ValueError(
                f"batch of {options.batch_size} images from a split of {self.size}:"
                " expected at most the split; make batch_size smaller"
            )
        most = options.steps_per_dispatch or (1 if jax.default_backend() == "cpu" else 64)
        self.chunk = _largest_divisor(self.steps_per_epoch, most)
        self.starts = schedules.phase_starts(phases, self.steps_per_epoch)
        self.images = replicate(train.images, self.mesh)
        self.labels = replicate(train.labels.astype(np.int32), self.mesh)
        self.key = jax.random.key(options.seed)
        self.permutation = (-1, np.zeros(0, np.int32))  # of which epoch, and its order
        self.workdir = workdir
        self.checkpoints = Checkpoints(workdir, config, milestones=self.starts[1:])
        workdir.mkdir(parents=True, exist_ok=True)
        self.log_path = workdir / "metrics.jsonl"
        rates = ("learning_rate", "step_learning_rate")
        self.rates = {f: schedules.joined(phases, self.steps_per_epoch, f) for f in rates}

    def run(self, variables: Any) -> TrainState:
        restored = self.checkpoints.newest(self._restore)
        if restored is None:
            if variables is None:
                shape = self.images.shape[1:]
                variables = initial_variables(self.model, shape, self.options.seed)
            variables = replicate(variables, self.mesh)
            state = TrainState(replicate(jnp.int32(0), self.mesh), **variables, opt_state=())
            begun = -1
        else:
            state, begun = restored
            self.checkpoints.set_aside_after(int(state.step))
            log.info("resumed at step %d", int(state.step))
        drop_records_after(self.log_path, int(state.step))
        images = self.starts[-1] * self.options.batch_size
        bar = tqdm(total=images, unit=" images", unit_scale=True, disable=None, smoothing=0.05)
        bar.update(int(state.step) * self.options.batch_size)
        try:
            with Signals() as signals, bar:
                for index, phase in enumerate(self.phases):
                    if int(state.step) < self.starts[index + 1]:
                        state = self._phase(state, index, phase, begun >= index, bar, signals)
        finally:
            self.checkpoints.close()
        return state

    def _phase(self, state, index, phase, begun, bar, signals) -> TrainState:
        optimizer = self._optimizer(index)
        if not begun:
            state = self._set(state, phase.prepare)
            opt_state = jax.jit(optimizer.init)(state.params)
            state = replicate(dataclasses.replace(state, opt_state=opt_state), self.mesh)
            log.info(
                "phase %s trains %s", phase.name, trained_leaves(state.params, phase, self.layers)
            )
        run_chunk = compile_chunk(self.model, phase, optimizer, self.augment, self.key)
        end, every = self.starts[index + 1], self.options.epochs_per_evaluation
        started, seen = time.perf_counter(), int(state.step)
        while (step := int(state.step)) < end:
            state, metrics = run_chunk(state, self.images, self.labels, self._order(step))
            self._check_finite(metrics["loss"], step, phase)
            self._show(bar, phase, metrics)
            step += self.chunk
            epoch, rest = divmod(step, self.steps_per_epoch)
            if step == end:
                state = self._set(state, phase.finish)
            if rest == 0 and (epoch % every == 0 or step == end):
                elapsed = time.perf_counter() - started
                speed = (step - seen) * self.options.batch_size / elapsed
                self._evaluate_and_save(state, index, phase, metrics, speed)
                started, seen = time.perf_counter(), step
            if signals.received and step < self.starts[-1]:
                self._stop(state, index, signals.received)
        return state

    def _optimizer(self, index: int):
        start = self.starts[index]
        shifted = {f: partial(_shifted, rate, start) for f, rate in self.rates.items()}
        return phase_optimizer(
            self.phases[index],
            self.layers,
            shifted["learning_rate"],
            shifted["step_learning_rate"],
        )

    def _order(self, step: int) -> jax.Array:
        """Indices [chunk, batch] of the next updates; every epoch has its own permutation."""
        epoch, offset = divmod(step, self.steps_per_epoch)
        if self.permutation[0] != epoch:  # made once an epoch: on a CPU it costs a tenth of a step
            key = jax.random.fold_in(self.key, epoch)
            self.permutation = (epoch, np.asarray(_permutation(key, self.size)))
        start = offset * self.options.batch_size
        count = self.chunk * self.options.batch_size
        part = self.permutation[1][start : start + count]
        return place_batches(part.reshape(self.chunk, -1), self.mesh)

    def _set(self, state: TrainState, setting: Preparation) -> TrainState:
        if setting == Preparation():
            return state
        step = int(state.step)
        index = self._order(step - step % self.chunk)[0]
        images = self.augment(jax.random.fold_in(self.key, step), self.images[index])
        state = prepare(state, self.model, self.layers, setting, images)
        return replicate(state, self.mesh)

    def _check_finite(self, losses: jax.Array, step: int, phase: Phase) -> None:
        bad = ~np.isfinite(np.asarray(losses))
        if bad.any():
            self._refuse("loss is", step + int(bad.argmax()), phase)

    def _refuse(self, what: str, step: int, phase: Phase) -> NoReturn:
        self.checkpoints.wait()
        kept = self.checkpoints.steps()
        raise NonFiniteLoss(
            f"{what} not finite at step {step} (phase {phase.name});"
            f" the last good checkpoint is {f'step {kept[-1]}' if kept else 'none'}."
            " Try a smaller learning rate, in a new workdir"
        )

    def _show(self, bar: tqdm, phase: Phase, metrics: dict[str, jax.Array]) -> None:
        bar.set_description(phase.name)
        bar.set_postfix(loss=f"{float(metrics['loss'][-1]):.3f}", refresh=False)
        bar.update(self.chunk * self.options.batch_size)

    def _evaluate_and_save(self, state, index, phase, metrics, speed) -> None:
        step = int(state.step)
        record: dict[str, Any] = {
            "step": step,
            "epoch": step // self.steps_per_epoch,
            "phase": phase.name,
            "images_per_second": round(speed, 1),
            "learning_rate": float(self.rates["learning_rate"](float(step - 1))),
            **{name: float(np.mean(value)) for name, value in metrics.items()},
        }
        made = {name for p in self.phases[: index + 1] for name in p.precisions}
        made |= set(phase.finish.input_steps) if step == self.starts[index + 1] else set()
        for precision in sorted(made):
            result = evaluate(
                self.model,
                state.variables,
                self.validation.images,
                self.validation.labels,
                precision=precision,
            )
            record |= {f"validation_{precision}_{k}": v for k, v in result.items()}
        accuracies = {name: record[f"validation_{name}_accuracy"] for name in sorted(made)}
        score = float(np.mean(list(accuracies.values())))
        append_record(self.log_path, record)
        report = "  ".join(f"{name} {value:.4f}" for name, value in accuracies.items())
        for listener in self.listeners:
            listener(record)
        tqdm.write(f"{phase.name} epoch {record['epoch']}: validation {report}")
        self._save(state, index, score)

    def _save(self, state: TrainState, index: int, score: float) -> None:
        if not _all_finite(state.variables):  # by the last update, whose loss nobody has computed
            self._refuse("parameters are", int(state.step), self.phases[index])
        self.checkpoints.save(int(state.step), _as_dict(state), {"phase": index}, score)

    def _stop(self, state: TrainState, index: int, signum: int) -> None:
        step = int(state.step)
        self.checkpoints.wait()  # until then an evaluation's checkpoint is not among the steps
        if step not in self.checkpoints.steps():
            self._save(state, index, -1.0)
        self.checkpoints.wait()
        name = signal.Signals(signum).name
        raise Interrupted(
            f"{name}: saved at step {step} of {self.starts[-1]};"
            f" start the same command again to go on (workdir {self.workdir})",
            signum,
        )

    def _restore(self, step: int) -> tuple[TrainState, int]:
        index = int(self.checkpoints.about(step)["progress"]["phase"])
        optimizer = self._optimizer(index)

        def empty() -> TrainState:
            shape = self.images.shape[1:]
            variables = initial_variables(self.model, shape, self.options.seed)
            state = optimizer.init(variables["params"])
            return TrainState(jnp.int32(0), **variables, opt_state=state)

        target = replicate(jax.eval_shape(empty), self.mesh)
        state = self.checkpoints.restore(step, _as_dict(target))
        return TrainState(**state), index


def _as_dict(state: TrainState) -> dict[str, Any]:
    return {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}


@jax.jit
def _all_finite(tree: Any) -> jax.Array:
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]))


def _shifted(schedule: Callable, start: int, count: jax.Array) -> jax.Array:
    return schedule((count + start).astype(jnp.float32))  # optax mixes its floats into the count


@partial(jax.jit, static_argnames="size")
def _permutation(key: jax.Array, size: int) -> jax.Array:
    return jax.random.permutation(key, jnp.arange(size, dtype=jnp.int32))


def _largest_divisor(number: int, limit: int) -> int:
    return max(d for d in range(1, min(number, limit) + 1) if number % d == 0)
