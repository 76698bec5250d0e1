"""The train step beside plain flax, Qwix, AQT and PyTorch, same network and batch, in one run.

    python -m experiments.benchmark train --repeats=7 --batch_size=128 --model=resnet20

Some minutes on two CPU cores, a minute and a half of them for the rounds, the rest for compiling.
Prints a Markdown table, the bars that the project set itself, and what each peer can express.
Expected on an AMD EPYC: the quantized step has 0.8 times the speed of our float step, which is 1.6
times as fast as plain flax with the default options of JAX. The peers need the extra [benchmark].
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dual_precision.deploy.file.writer import check_replaceable
from dual_precision.models import IMAGE_MODELS
from dual_precision.models.resnet import ResNet
from dual_precision.precision import modes
from dual_precision.structure import structure_of
from dual_precision.tasks.classification import Classification
from dual_precision.tasks.task import Network
from dual_precision.training.compilation import RUNS_ONCE, compiler_options, keep_freed_memory
from dual_precision.training.phases import Phase, stages_of
from dual_precision.training.state import TrainState, initial_variables
from dual_precision.training.step import compile_steps
from experiments.benchmark import train_peers
from experiments.benchmark.comparison import (
    Bar,
    Times,
    judge_bars,
    median_and_range,
    speed_ratio,
    verdict_of,
)
from experiments.benchmark.machine import describe_machine
from experiments.benchmark.timing import time_rounds, timed
from experiments.benchmark.train_torch import TORCH, TORCH_BF16, TorchStep, torch_steps
from experiments.figures.tables import markdown_table
from experiments.recipes.single import Float, High, Low
from experiments.recipes.two_phase import TwoPhase
from experiments.workdir import write_whole

IMAGE, CLASSES = (32, 32, 3), 10
RATE = 0.01  # for every program: a step costs the same at any rate, and none diverges at this one
SWITCHES = 100
STEPS = 2  # in a row of one program, by default

PLAIN, QWIX, AQT = train_peers.PEERS
OPTIONS = ", our compiler options"
SIZES = ("stage_sizes", "widths", "space_to_depth")  # of a network, for its peers
OURS = FLOAT, HIGH, LOW, BOTH = "ours float", "ours w8a8", "ours w2a2", "ours w8a8 and w2a2"

BARS = (
    Bar("quantized step against our float step, high", HIGH, FLOAT, 1.0, 1.5),
    Bar("quantized step against our float step, low", LOW, FLOAT, 1.0, 1.5),
    Bar("quantized step against that of Qwix", HIGH, QWIX, 1.0, 1.5),
    Bar("quantized step against that of AQT", HIGH, AQT, 1.0, 1.5),
    Bar("quantized step against PyTorch in float32", HIGH, TORCH, 1.0, 1.7),
    Bar("quantized step against PyTorch in bfloat16", HIGH, TORCH_BF16, 0.6, 1.0),
    Bar("float step against plain flax", FLOAT, PLAIN, 1.0, 2.0),
)
_COLUMNS = (
    ("program", "program", "{}"),
    ("milliseconds", "ms/step, median (min..max)", "{}"),
    ("images", "images/s", "{:.0f}"),
    (PLAIN, "x plain flax", "{:.2f}"),
    (QWIX, "x Qwix", "{:.2f}"),
    ("difference", "logits off float, %", "{:.1f}"),
)


class Measured(Protocol):
    """What is measured: see `Program`."""

    difference: float | None

    def run(self, steps: int) -> float: ...


@dataclasses.dataclass
class Program:
    """A compiled train step, the state it carries, and how far its logits are from float logits."""

    step: Callable[[Any], tuple[Any, jax.Array]]
    state: Any
    difference: float | None = None

    def run(self, steps: int) -> float:
        """Milliseconds per step, over so many steps in a row.

        Raises:
          ValueError: the loss is not finite.
        """
        taken, loss = timed(partial(self._train, steps))
        if not np.isfinite(float(loss)):
            raise ValueError("the loss is not finite: what was timed is not training")
        return taken / steps

    def _train(self, steps: int) -> jax.Array:
        for _ in range(steps):
            self.state, loss = self.step(self.state)
        jax.block_until_ready(self.state)
        return loss


def build_resnet(name: str) -> ResNet:
    """The network under test.

    Raises:
      ValueError: not one of the residual networks.
    """
    known = sorted(key for key in IMAGE_MODELS if key.startswith("resnet"))
    if name not in known:
        raise ValueError(f"model {name!r}: expected one of {known}, which the peers have too")
    return IMAGE_MODELS[name](num_classes=CLASSES, modes=modes(low="w2a2", high="w8a8"))


def random_batch(batch_size: int) -> tuple[jax.Array, jax.Array]:
    """Images uint8 [N, 32, 32, 3] and labels int32 [N]."""
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.integers(0, 256, (batch_size, *IMAGE), dtype=np.uint8))
    return images, jnp.asarray(rng.integers(0, CLASSES, batch_size, dtype=np.int32))


def our_programs(
    model: ResNet, images: jax.Array, labels: jax.Array, names: Sequence[str] = OURS
) -> dict[str, Program]:
    """The programs that `fit` runs, one update per dispatch; the batch is not augmented."""
    task = Classification(IMAGE)
    network, structure = Network(model, task), structure_of(model, task.example)
    variables = initial_variables(model, task.example, seed=0)
    arrays = {"images": images, "labels": labels}
    order = jnp.arange(len(images), dtype=jnp.int32)[None]
    logits = jax.jit(partial(_our_logits, model), static_argnames="precision")
    exact = logits(variables, images[:8], precision="float")

    def program(phase: Phase) -> Program:
        rates = dict.fromkeys(phase.schedules, constant_rate)
        (stage,) = stages_of([dataclasses.replace(phase, schedules=rates)], structure, 1)
        own = jax.tree.map(jnp.copy, variables)  # the step donates its state
        carry = dict.fromkeys(phase.precisions, ())
        opt_state = jax.jit(stage.optimizer.init)(own["params"])
        state = TrainState(jnp.int32(0), **own, carry=carry, opt_state=opt_state)
        step = partial(one_update, compile_steps(network, stage, jax.random.key(0)), arrays, order)
        if phase.precisions in (("high",), ("low",)):
            found = logits(variables, images[:8], precision=phase.precisions[0])
            return Program(step, state, train_peers.quantized_difference(found, exact))
        return Program(step, state)

    phases = {
        FLOAT: Float().phases()[0],
        HIGH: High().phases()[0],
        LOW: Low().phases()[0],
        BOTH: TwoPhase().phases()[-1],
    }
    return {name: program(phases[name]) for name in names}


def constant_rate(updates: int) -> optax.Schedule:
    """A schedule of a phase that has no other, see RATE."""
    del updates
    return optax.constant_schedule(RATE)


def one_update(
    chunk: Callable, arrays: Mapping[str, jax.Array], order: jax.Array, state: TrainState
) -> tuple[TrainState, jax.Array]:
    """(state, loss) of what `compile_steps` gave, for an order of one batch."""
    state, metrics = chunk(state, arrays, order)
    return state, metrics["loss"][0]


def _our_logits(model: ResNet, variables: Any, images: jax.Array, *, precision: str) -> jax.Array:
    """In training mode, so that normalisation takes the statistics of the batch."""
    settings: dict[str, Any] = {"train": True, "mutable": ["batch_stats"]}
    logits: Any = model.apply(variables, images, precision=precision, **settings)[0]
    return logits


def peer_programs(
    names: Sequence[str], model: ResNet, images: jax.Array, labels: jax.Array
) -> tuple[dict[str, Program], list[str]]:
    """The peers with the default options of JAX and with ours; a line on what each quantizes."""
    sizes = {key: getattr(model, key) for key in SIZES}
    pixels = images.astype(jnp.float32) / 127.5 - 1  # once: no part of their steps
    init = jax.jit(train_peers.plain(**sizes).init, compiler_options=RUNS_ONCE)
    variables = init(jax.random.key(0), pixels[:1])
    optimizer = optax.sgd(RATE, momentum=0.9, nesterov=True)
    # Elsewhere than on a CPU we have no options, and the rows would be the same.
    choices = {"": None} | ({OPTIONS: compiler_options()} if compiler_options() else {})
    networks, notes = train_peers.runnable_peers(names, sizes, variables, pixels[:8])
    programs = {}
    for name, (network, found) in networks.items():
        update = train_peers.peer_step(network, optimizer)
        exact = networks[PLAIN][1]
        difference = None if name == PLAIN else train_peers.quantized_difference(found, exact)
        for suffix, options in choices.items():
            step = jax.jit(update, donate_argnums=0, compiler_options=options)
            take = partial(_take_step, step, pixels, labels)
            state = train_peers.initial_state(variables, optimizer)
            programs[name + suffix] = Program(take, state, difference)
    return programs, notes


def _take_step(step: Callable, pixels: jax.Array, labels: jax.Array, state: Any) -> Any:
    return step(state, pixels, labels)


def count_new_traces(model: ResNet, images: jax.Array) -> int:
    """Traces that switching low <-> high adds once each mode has run."""
    traces = 0

    @partial(jax.jit, static_argnames="precision")
    def predict(variables: Any, images: jax.Array, *, precision: str) -> Any:
        nonlocal traces
        traces += 1  # Python runs when jax traces, and not when it takes a compiled program
        return model.apply(variables, images, precision=precision)

    variables = initial_variables(model, Classification(IMAGE).example, seed=0)
    for precision in ("low", "high"):
        predict(variables, images, precision=precision)
    warm = traces
    for switch in range(SWITCHES):
        jax.block_until_ready(predict(variables, images, precision=("low", "high")[switch % 2]))
    return traces - warm


def steps_table(times: Times, programs: Mapping[str, Measured], batch_size: int) -> str:
    """One line per program, in Markdown."""
    rows: list[dict[str, Any]] = []
    for name, rounds in times.items():
        off = programs[name].difference
        rows.append(
            {
                "program": name,
                "milliseconds": median_and_range(rounds, digits=1),
                "images": batch_size / float(np.median(rounds)) * 1e3,
                **{other: speed_ratio(times, name, other) for other in (PLAIN, QWIX)},
                "difference": None if off is None else 100 * off,
            }
        )
    return markdown_table(rows, _COLUMNS, left=["program"])


def measure_train_step(
    *,
    model: str,
    batch_size: int,
    repeats: int,
    steps: int | None = None,
    peers: bool,
    out: str | None = None,
) -> None:
    """The sub-command `train`; its arguments are the flags."""
    if out:
        check_replaceable(out)
    kept = keep_freed_memory()  # for all programs alike; it has to come first
    network = build_resnet(model)
    about = {
        **describe_machine(),
        "model": model,
        "batch_size": batch_size,
        "repeats": repeats,
        "steps": steps or STEPS,
        "memory_kept_between_steps": kept,
    }
    print(", ".join(f"{key} {value}" for key, value in about.items()) + "\n", flush=True)
    images, labels = random_batch(batch_size)
    wanted = (PLAIN, QWIX, AQT) if peers else (PLAIN,)
    programs: dict[str, Program | TorchStep] = {}
    found, notes = peer_programs(wanted, network, images, labels)
    programs |= found
    programs |= our_programs(network, images, labels)
    if peers:
        sizes = {key: getattr(network, key) for key in SIZES}
        others, lines = torch_steps(sizes, images, labels, RATE)
        programs, notes = {**programs, **others}, notes + lines
    # Compilation and one step come first.
    time_rounds({f"compiling {name}": partial(p.run, 2) for name, p in programs.items()}, 1)
    each = {name: partial(p.run, steps or STEPS) for name, p in programs.items()}
    times = time_rounds(each, repeats)
    new, lines = count_new_traces(network, images[:8]), judge_bars(BARS, times)
    lines.append(f"new traces over {SWITCHES} switches: {new} (bar 0) {verdict_of(new == 0)}")
    bullets = [f"- {line}" for line in lines + notes]
    print(steps_table(times, programs, batch_size), "", *bullets, sep="\n")
    if out:
        results = {"about": about, "milliseconds": times, "bars": lines, "notes": notes}
        write_whole(Path(out), json.dumps(results, indent=2) + "\n")
