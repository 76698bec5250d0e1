"""The program of a process of `layouts` and `pair`: trains as it is asked on stdin.

Each line is a request, JSON: a case, the updates to make, and whether to begin anew; process 0
answers each with a line: the loss of every update, and its milliseconds.
"""

import dataclasses
import json
import os
import sys
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from dual_precision import data, modes
from dual_precision.models import IMAGE_MODELS
from dual_precision.structure import structure_of
from dual_precision.tasks.classification import Classification
from dual_precision.tasks.task import Network
from dual_precision.training.feed import Feed
from dual_precision.training.manifest import manifest
from dual_precision.training.methods.modes import Split, Together
from dual_precision.training.optimizers import RATE, STEP_RATE, Sgd
from dual_precision.training.options import FitOptions
from dual_precision.training.phases import Phase, stages_of
from dual_precision.training.processes import is_first
from dual_precision.training.schedules import warmup_cosine
from dual_precision.training.sharding import replicate
from dual_precision.training.state import TrainState, initial_variables
from dual_precision.training.step import compile_steps
from experiments import cli
from experiments.benchmark.timing import timed

PEAK = 0.05  # of the learning rates
LOSSES: dict[str, Together | Split] = {
    "float": Together(("float",)),
    "both": Split(("high", "low")),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """What is trained: a network by name, on the images in an .npz, in some modes."""

    model: str
    images: str
    loss: str
    batch_size: int
    updates: int = 200  # of its schedules


class CaseRun:
    """A case from its begin."""

    def __init__(self, case: Case) -> None:
        with np.load(case.images) as found:
            train = data.Images(found["images"], found["labels"])
        shape = train.images.shape[1:]
        model = IMAGE_MODELS[case.model](num_classes=10, modes=modes(low="w2a2", high="w8a8"))
        task = Classification(shape, partial(data.augment, padding=1, flip=True))
        self._network, loss = Network(model, task), LOSSES[case.loss]
        rates = dict.fromkeys((RATE, STEP_RATE), partial(warmup_cosine, peak=PEAK, warmup=0.1))
        phase = Phase(case.loss, 1, loss.precisions, loss, Sgd(), rates)
        structure = structure_of(model, task.example)
        (self._stage,) = stages_of([phase], structure, case.updates)
        self._feed = Feed(task, train, FitOptions(case.batch_size, steps_per_dispatch=1))
        self._program = compile_steps(self._network, self._stage, self._feed.key, self._feed.mesh)
        self.begin()

    def begin(self) -> None:
        """Fresh weights, no step made."""
        model, example = self._network.model, self._network.task.example
        variables = initial_variables(model, example, 0)
        opt_state = jax.jit(self._stage.optimizer.init)(variables["params"])
        state = TrainState(jnp.int32(0), **variables, carry={}, opt_state=opt_state)
        self._state, self._step = replicate(state, self._feed.mesh), 0

    def go_on(self, updates: int) -> dict[str, Any]:
        """Losses and milliseconds of so many updates, and digests of all variables after them."""
        losses, times = [], []
        for _ in range(updates):
            order = self._feed.order(self._step)
            step = partial(self._program, self._state, self._feed.arrays, order)
            milliseconds, (self._state, metrics) = timed(step)
            losses.append(float(metrics["loss"][-1]))
            times.append(milliseconds)
            self._step += 1
        return {
            "losses": losses,
            "milliseconds": times,
            "variables": manifest(self._state.variables),
        }


def answer_requests(*, cores: list[str]) -> None:
    """Answers requests until there are no more."""
    del cores  # since before JAX started
    runs: dict[Case, CaseRun] = {}
    for line in sys.stdin:
        asked = json.loads(line)
        case = Case(**asked["case"])
        if case not in runs:
            runs[case] = CaseRun(case)
        elif asked["anew"]:
            runs[case].begin()
        found: Any = runs[case].go_on(asked["updates"])
        if is_first():
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    cli.define_process_flags()
    flags.DEFINE_list("cores", [], "that it may use; all by default")
    wanted = [word for word in sys.argv if word.startswith("--cores=")]
    if wanted:  # JAX counts them when it starts
        os.sched_setaffinity(0, {int(core) for core in wanted[0].partition("=")[2].split(",")})
    cli.run(answer_requests)
