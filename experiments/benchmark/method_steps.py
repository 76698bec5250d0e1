"""The train step of cyclic precision and of BSQ beside the plain quantized one, in one run.

    python -m experiments.benchmark methods --model=resnet8_fast --batch_size=128

About two minutes on two CPU cores. Both cyclic steps run one program at every width of the cycle.
The bits of BSQ are 8 of every weight, as many as there ever are.
"""

import dataclasses
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dual_precision.deploy.file.writer import check_replaceable
from dual_precision.models import IMAGE_MODELS
from dual_precision.precision import modes
from dual_precision.structure import structure_of
from dual_precision.tasks.classification import Classification
from dual_precision.tasks.task import Network
from dual_precision.training.methods.bsq import ToBits
from dual_precision.training.methods.cyclic import CYCLE
from dual_precision.training.phases import Moment, Phase, stages_of
from dual_precision.training.schedules import cosine_cycles
from dual_precision.training.state import TrainState, initial_variables
from dual_precision.training.step import compile_steps
from experiments.benchmark.comparison import Times, median_and_range, verdict_of
from experiments.benchmark.timing import time_rounds
from experiments.benchmark.train_step import (
    IMAGE,
    STEPS,
    Program,
    constant_rate,
    one_update,
    random_batch,
)
from experiments.figures.tables import markdown_table
from experiments.recipes.bsq import Bsq
from experiments.recipes.cyclic import Cyclic, Static
from experiments.recipes.single import High
from experiments.workdir import write_whole

PLAIN, STATIC, CYCLIC, BITS = "w8a8", "static w8a8g8", "cyclic w3a3g8 to w8a8g8", "BSQ, 8 bits, a4"
_CYCLE = 64  # updates
# (program, the one that it is compared to, most times as long, goal)
BARS = ((CYCLIC, STATIC, 1.05, 1.0), (BITS, PLAIN, 2.5, 1.5))


class TrainingStep(Program):
    """A phase of a recipe for one model: its program, its state."""

    def __init__(self, name: str, phase: Phase, model: str, batch_size: int, low: str, high: str):
        images, labels = random_batch(batch_size)
        task = Classification(IMAGE)
        built = IMAGE_MODELS[model](num_classes=10, modes=modes(low=low, high=high))
        network, structure = Network(built, task), structure_of(built, task.example)
        rates: dict[str, Any] = dict.fromkeys(phase.schedules, constant_rate)
        if CYCLE in rates:
            rates[CYCLE] = lambda _: _endless_cycles
        (stage,) = stages_of([dataclasses.replace(phase, schedules=rates)], structure, 1)
        variables = initial_variables(built, task.example, seed=0)
        state = TrainState(jnp.int32(0), **variables, carry={"high": ()}, opt_state=None)
        moment = Moment(network, structure, lambda count: iter(()), jax.random.key(0), 0)
        for event in [event for event in phase.at_start if isinstance(event, ToBits)]:
            state = event(state, moment)
        opt_state = jax.jit(stage.optimizer.init)(state.params)
        self._chunk: Any = compile_steps(network, stage, jax.random.key(0))
        arrays = {"images": images, "labels": labels}
        order = jnp.arange(batch_size, dtype=jnp.int32)[None]
        step = partial(one_update, self._chunk, arrays, order)
        super().__init__(step, dataclasses.replace(state, opt_state=opt_state))
        self.name = name
        self.bytes = sum(leaf.nbytes for leaf in jax.tree.leaves((state.params, opt_state)))

    @property
    def traces(self) -> int:
        """Programs that were compiled for it."""
        return int(self._chunk._cache_size())


def _endless_cycles(count: jax.Array) -> jax.Array:
    return cosine_cycles(_CYCLE, 1)(jnp.mod(count, _CYCLE))


def measure_method_steps(
    *,
    repeats: int,
    batch_size: int,
    model: str,
    steps: int | None = None,
    out: str | None = None,
) -> None:
    """The command `methods`; its arguments are the flags.

    Raises:
      ValueError: an unknown model.
    """
    if model not in IMAGE_MODELS:
        raise ValueError(f"model {model!r}: expected one of {sorted(IMAGE_MODELS)}")
    if out:
        check_replaceable(Path(out))
    make = partial(TrainingStep, model=model, batch_size=batch_size)
    programs = [
        make(PLAIN, High().phases()[0], low="w2a2", high="w8a8"),
        make(STATIC, Static().phases()[0], low="w3a3g8", high="w8a8g8"),
        make(CYCLIC, Cyclic().phases()[0], low="w3a3g8", high="w8a8g8"),
        make(BITS, Bsq().phases()[0], low="w32a4", high="w32a4"),
    ]
    for each in programs:
        each.run(3)
    count = steps or STEPS * 4
    times = time_rounds({p.name: partial(p.run, count) for p in programs}, repeats)
    _report(programs, times, model, batch_size)
    if out:
        write_whole(Path(out), json.dumps({"milliseconds": times}, indent=1) + "\n")


def _report(programs: Sequence[TrainingStep], times: Times, model: str, batch_size: int) -> None:
    size = {program.name: program.bytes for program in programs}
    rows = [
        {
            "program": program.name,
            "milliseconds": median_and_range(times[program.name], 1),
            "megabytes": program.bytes / 1e6,
            "programs": program.traces,
        }
        for program in programs
    ]
    columns = (
        ("program", "step", "{}"),
        ("milliseconds", "ms/step, median (min..max)", "{}"),
        ("megabytes", "MB of parameters and optimizer", "{:.2f}"),
        ("programs", "programs", "{}"),
    )
    print(
        f"{model}, batches of {batch_size}\n\n{markdown_table(rows, columns, left=('program',))}\n"
    )
    for name, other, bar, goal in BARS:
        ratio = float(np.median(np.divide(times[name], times[other])))
        state = size[name] / size[other]
        print(
            f"{name} against {other}: {ratio:.2f} x the time (bar {bar}, goal {goal})"
            f" {verdict_of(ratio <= bar, ratio <= goal)}; {state:.2f} x the state"
        )
