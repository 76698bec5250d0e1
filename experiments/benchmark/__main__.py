"""Measures the train step against plain flax, Qwix and AQT on the same network, in one run.

    python -m experiments.benchmark train --repeats=7 --batch_size=128 --model=resnet20
    python -m experiments.benchmark inference        see inference.py; two to three minutes

Prints a Markdown table, the bars that the project set itself, and what each peer can express.
The peers need the extra [benchmark]. Every round runs every program once, in shuffled order, so
that a busy machine slows all of them alike; ratios are medians over the rounds' own ratios.
"""

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags
from absl import logging as absl_logging
from tqdm import tqdm

from dual_precision.models import MODELS
from dual_precision.models.resnet import ResNet
from dual_precision.precision import modes
from dual_precision.structure import describe_layers
from dual_precision.training.compilation import compiler_options, keep_freed_memory
from dual_precision.training.optimizers import phase_optimizer
from dual_precision.training.phases import Phase
from dual_precision.training.state import TrainState, initial_variables
from dual_precision.training.step import compile_chunk
from experiments.benchmark import (
    inference as inference_command,
)
from experiments.benchmark import (
    inference_times as inference,
)
from experiments.benchmark import (
    jax_peers as peers,
)
from experiments.benchmark.timing import machine, speed_ratio, turns, verdict_of
from experiments.recipes.config import Config
from experiments.recipes.recipes import RECIPES

FLAGS = flags.FLAGS

IMAGE, CLASSES = (32, 32, 3), 10
RATE = 0.01  # for every program: a step costs the same at any rate, and none diverges at this one
SWITCHES = 100
STEPS = 2  # in a row of one program, by default
NETWORK = "notebooks/networks/cifar10-w2a2-w8a8.safetensors"

PLAIN, QWIX, AQT = peers.PEERS
OPTIONS = ", our compiler options"
FLOAT, HIGH, LOW, BOTH = "ours float", "ours w8a8", "ours w2a2", "ours w8a8 and w2a2"

# What, the program, against which other, the least ratio of images/s, and the one we want.
BARS = (
    ("quantized step against our float step, high", HIGH, FLOAT, 0.76, 0.9),
    ("quantized step against our float step, low", LOW, FLOAT, 0.76, 0.9),
    ("quantized step against Qwix's", HIGH, QWIX, 1.0, 1.5),
    ("quantized step against AQT's", HIGH, AQT, 1.0, 1.5),
    ("float step against plain flax", FLOAT, PLAIN, 1.0, 2.0),
)


@dataclasses.dataclass
class Program:
    """A compiled train step, the state it carries, and how far its logits are from float's."""

    step: Callable[[Any], tuple[Any, jax.Array]]
    state: Any
    difference: float | None = None

    def run(self, steps: int) -> float:
        """Milliseconds per step, over so many steps in a row."""
        start = time.perf_counter()
        for _ in range(steps):
            self.state, loss = self.step(self.state)
        jax.block_until_ready((self.state, loss))
        elapsed = time.perf_counter() - start
        if not np.isfinite(float(loss)):
            raise ValueError("the loss is not finite: what was timed is not training")
        return elapsed / steps * 1e3


def build_model(name: str) -> ResNet:
    """The network under test.

    Raises:
      ValueError: not one of the residual networks.
    """
    known = sorted(key for key in MODELS if key.startswith("resnet"))
    if name not in known:
        raise ValueError(f"model {name!r}: expected one of {known}, which the peers have too")
    return MODELS[name](num_classes=CLASSES, modes=modes(low="w2a2", high="w8a8"))


def random_batch(batch_size: int) -> tuple[jax.Array, jax.Array]:
    """Images uint8 [N, 32, 32, 3] and labels int32 [N]."""
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.integers(0, 256, (batch_size, *IMAGE), dtype=np.uint8))
    return images, jnp.asarray(rng.integers(0, CLASSES, batch_size, dtype=np.int32))


def our_programs(model: ResNet, images: jax.Array, labels: jax.Array) -> dict[str, Program]:
    """The programs that `fit` runs, one update per dispatch; the batch is not augmented."""
    config = Config()
    phases = {
        FLOAT: RECIPES["float"](config)[0],
        HIGH: RECIPES["high"](config)[0],
        LOW: RECIPES["low"](config)[0],
        BOTH: RECIPES["two_phase"](config)[-1],
    }
    layers = describe_layers(model, IMAGE)
    variables = initial_variables(model, IMAGE, seed=0)
    order = jnp.arange(len(images), dtype=jnp.int32)[None]
    logits = jax.jit(partial(_our_logits, model), static_argnames="precision")
    exact = logits(variables, images[:8], precision="float")

    def program(phase: Phase) -> Program:
        rate = optax.constant_schedule(RATE)
        optimizer = phase_optimizer(phase, layers, rate, rate)
        own = jax.tree.map(jnp.copy, variables)  # the step donates its state
        state = TrainState(jnp.int32(0), **own, opt_state=jax.jit(optimizer.init)(own["params"]))
        chunk = compile_chunk(model, phase, optimizer, lambda _, x: x, jax.random.key(0))

        def step(state: TrainState) -> tuple[TrainState, jax.Array]:
            state, metrics = chunk(state, images, labels, order)
            return state, metrics["loss"][0]

        if phase.precisions in (("high",), ("low",)):
            found = logits(variables, images[:8], precision=phase.precisions[0])
            return Program(step, state, peers.relative_difference(found, exact))
        return Program(step, state)

    return {name: program(phase) for name, phase in phases.items()}


def _our_logits(model: ResNet, variables: Any, images: jax.Array, *, precision: str) -> jax.Array:
    """In training mode, so that batch statistics are the batch's."""
    settings: dict[str, Any] = {"train": True, "mutable": ["batch_stats"]}
    logits: Any = model.apply(variables, images, precision=precision, **settings)[0]
    return logits


def peer_programs(
    model: ResNet, images: jax.Array, labels: jax.Array
) -> tuple[dict[str, Program], list[str]]:
    """The peers with JAX's default options and with ours; a line on what each quantizes."""
    sizes = {key: getattr(model, key) for key in ("stage_sizes", "widths", "space_to_depth")}
    pixels = images.astype(jnp.float32) / 127.5 - 1  # once: no part of their steps
    variables = jax.jit(peers.plain(**sizes).init)(jax.random.key(0), pixels[:1])
    optimizer = optax.sgd(RATE, momentum=0.9, nesterov=True)
    # Elsewhere than on a CPU we have no options, and the rows would be the same.
    choices = {"": None} | ({OPTIONS: compiler_options()} if compiler_options() else {})
    names = list(peers.PEERS) if FLAGS.peers else [PLAIN]
    networks, notes = peers.available(names, sizes, variables, pixels[:8])
    programs = {}
    for name, (network, found) in networks.items():
        update = peers.train_step(network, optimizer)
        difference = None if name == PLAIN else peers.relative_difference(found, networks[PLAIN][1])
        for suffix, options in choices.items():
            step = jax.jit(update, donate_argnums=0, compiler_options=options)
            take = partial(_take_step, step, pixels, labels)
            state = peers.initial_state(variables, optimizer)
            programs[name + suffix] = Program(take, state, difference)
    return programs, notes


def _take_step(step: Callable, pixels: jax.Array, labels: jax.Array, state: Any) -> Any:
    return step(state, pixels, labels)


def time_rounds(programs: Mapping[str, Program], repeats: int, steps: int) -> dict[str, list]:
    """Milliseconds per step of each program in each round; compilation and one step come first."""
    names = list(programs)
    times: dict[str, list[float]] = {name: [] for name in names}
    with tqdm(total=len(names) * (repeats + 1), disable=None, leave=False) as bar:
        for name in names:
            bar.set_description(f"compiling {name}")
            programs[name].run(2)
            bar.update()
        for order in turns(names, repeats):
            for name in order:
                bar.set_description(name)
                times[name].append(programs[name].run(steps))
                bar.update()
    return times


def count_new_traces(model: ResNet, images: jax.Array) -> int:
    """Traces that switching low <-> high adds once each mode has run."""
    traces = 0

    @partial(jax.jit, static_argnames="precision")
    def predict(variables: Any, images: jax.Array, *, precision: str) -> Any:
        nonlocal traces
        traces += 1  # Python runs when jax traces, and not when it takes a compiled program
        return model.apply(variables, images, precision=precision)

    variables = initial_variables(model, IMAGE, seed=0)
    for precision in ("low", "high"):
        predict(variables, images, precision=precision)
    warm = traces
    for switch in range(SWITCHES):
        jax.block_until_ready(predict(variables, images, precision=("low", "high")[switch % 2]))
    return traces - warm


def table(times: Mapping[str, Sequence[float]], programs: Mapping[str, Program], batch: int) -> str:
    """One line per program, in Markdown."""
    lines = [
        "| program | ms/step, median (min..max) | images/s | x plain flax | x Qwix"
        " | logits off float's |",
        "|:--|--:|--:|--:|--:|--:|",
    ]
    for name, own in times.items():
        middle, off = float(np.median(own)), programs[name].difference
        ratios = [speed_ratio(times, name, other) for other in (PLAIN, QWIX)]
        cells = [
            name,
            f"{middle:.1f} ({min(own):.1f}..{max(own):.1f})",
            f"{batch / middle * 1e3:.0f}",
            *("" if ratio is None else f"{ratio:.2f}" for ratio in ratios),
            "" if off is None else f"{100 * off:.1f} %",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def judge(times: Mapping[str, Sequence[float]]) -> list[str]:
    """One line per bar, with its figure and a verdict."""
    lines = []
    for what, name, other, bar, goal in BARS:
        ratio = speed_ratio(times, name, other)
        if ratio is None:
            lines.append(f"{what}: not measured")
            continue
        verdict = verdict_of(ratio >= bar, ratio >= goal)
        lines.append(f"{what}: {ratio:.2f} x (bar {bar}, goal {goal}) {verdict}")
    return lines


def train() -> None:
    """The sub-command `train`."""
    model, batch_size = build_model(FLAGS.model), FLAGS.batch_size
    steps = FLAGS.steps or STEPS
    tuned = keep_freed_memory()
    about = {
        **machine(),
        "model": FLAGS.model,
        "batch_size": batch_size,
        "repeats": FLAGS.repeats,
        "steps": steps,
        "memory_kept_between_steps": tuned,  # for all programs alike
    }
    print(", ".join(f"{key} {value}" for key, value in about.items()) + "\n", flush=True)
    images, labels = random_batch(batch_size)
    programs, notes = peer_programs(model, images, labels)
    programs |= our_programs(model, images, labels)
    times = time_rounds(programs, FLAGS.repeats, steps)
    new = count_new_traces(model, images[:8])
    lines = judge(times)
    lines.append(f"new traces over {SWITCHES} switches: {new} (bar 0) {'short' if new else 'PASS'}")
    print(
        table(times, programs, batch_size), "", *(f"- {line}" for line in lines + notes), sep="\n"
    )
    if FLAGS.out:
        results = {"about": about, "milliseconds": times, "bars": lines, "notes": notes}
        Path(FLAGS.out).write_text(json.dumps(results, indent=2) + "\n")


# The flags that only one of the sub-commands reads.
READS = {"train": ("batch_size", "model", "peers"), "inference": ("network", "requests")}


def refuse_idle(command: str, values: flags.FlagValues) -> None:
    """Raises ValueError where a flag is given that the sub-command does not read."""
    others = [name for own, names in READS.items() if own != command for name in names]
    if idle := [name for name in others if values[name].present]:
        raise ValueError(f"{idle} have no effect on {command}: leave them out")


def infer() -> None:
    """The sub-command `inference`."""
    steps = FLAGS.steps or inference.REQUESTS
    inference_command.run(Path(FLAGS.network), FLAGS.repeats, steps, FLAGS.requests, FLAGS.out)


COMMANDS = {"train": train, "inference": infer}


def main(argv: Sequence[str]) -> None:
    """Runs the sub-command; what users can mend ends as one line and exit status 1."""
    absl_logging.set_verbosity(absl_logging.ERROR)
    if len(argv) != 2 or argv[1] not in COMMANDS:
        sys.exit(f"error: command {' '.join(argv[1:])!r}: expected one of {list(COMMANDS)}")
    try:
        refuse_idle(argv[1], FLAGS)
        COMMANDS[argv[1]]()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")


def define_flags(values: flags.FlagValues = FLAGS) -> None:
    """Adds the flags of both sub-commands."""
    integer = partial(flags.DEFINE_integer, flag_values=values)
    string = partial(flags.DEFINE_string, flag_values=values)
    integer("repeats", 7, "rounds, each of which runs every program", lower_bound=1)
    about = f"steps ({STEPS}), or requests ({inference.REQUESTS}), of a program in a round"
    integer("steps", None, about, lower_bound=1)
    integer("batch_size", 128, "train: images per step", lower_bound=8)
    string("model", "resnet20", "train: one of the residual networks")
    about = "train: measure Qwix and AQT too, not only plain flax"
    flags.DEFINE_bool("peers", True, about, flag_values=values)
    string("network", NETWORK, "inference: the packed file that is switched")
    # Below that, a 99th percentile is the slowest request.
    integer("requests", 10_000, "inference: of the load on it", lower_bound=100)
    string("out", None, "a JSON file for all times")


if __name__ == "__main__":
    define_flags()
    app.run(main)
