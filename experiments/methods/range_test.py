"""The precision range test: the narrowest width that a cycle of precision should go down to.

- `python -m experiments.methods.range_test --dataset=digits`: half a minute on two busy CPU cores
- `python -m experiments.methods.range_test`: CIFAR-10, preset quick, three minutes

Every width trains a network of its own for --updates updates, from the same weights on the same
batches, alike in all that is random, in one compiled program. What a width learned is its training
accuracy, the mean over the last --window updates, above chance. The lower bound of the cycle is the
narrowest width that learned at least --threshold of what the widest one did, as all wider ones must
too. The folder gets range_test.json and range_test.png.

The defaults: a window of 25 batches of 128 holds 3,200 answers, whose mean has a standard error of
0.9 points or less; that is some 3 % of the 30 points that CIFAR-10 learns in 100 updates, and the
threshold leaves 20 %. The paper (Fu et al. 2021, arXiv 2101.09868) publishes no threshold.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from tqdm import tqdm

from dual_precision.models import build_from
from dual_precision.precision import MAX_BITS
from dual_precision.structure import structure_of
from dual_precision.tasks.task import Network, Task
from dual_precision.training.feed import Feed
from dual_precision.training.methods.cyclic import CYCLE
from dual_precision.training.moments import after_events, at_epoch, first_state
from dual_precision.training.optimizers import RATE, STEP_RATE
from dual_precision.training.options import FitOptions
from dual_precision.training.phases import Phase, Schedule, stages_of
from dual_precision.training.step import compile_steps
from experiments import cli
from experiments.cifar import load_data, network_of, task_of
from experiments.figures.drawing import pyplot_for_files, save_figure
from experiments.figures.tables import markdown_table
from experiments.recipes.config import PRESETS, Config
from experiments.recipes.cyclic import Cyclic
from experiments.recipes.flags import define_config_flags, read_config
from experiments.recipes.names import run_folder
from experiments.recipes.run_config import every_field
from experiments.recipes.settings import read_settings
from experiments.workdir import only_user, write_whole

_COLUMNS = (
    ("bits", "bits", "{}"),
    ("accuracy", "training accuracy %", "{:.2f}"),
    ("share", "of what the widest learned", "{:.2f}"),
)
DEFAULTS = {"mode": "cyclic", "low": "w1a1g8"}  # all widths that there are
_WARMUP = 0.25  # share of the updates
# Settings of `cyclic` that say how long it trains, in which parts, and what comes after.
_UNREAD = frozenset(
    ("accumulate", "cycles", "epochs_per_evaluation", "passes", "reestimate", "steps_per_dispatch")
) | {"warmup"}


@dataclasses.dataclass(frozen=True)
class RangeTest:
    """How the test decides; see the top of this file."""

    updates: int = 100
    window: int = 25
    threshold: float = 0.8

    def __post_init__(self) -> None:
        if not 1 <= self.window <= self.updates:
            raise ValueError(
                f"--window={self.window} of --updates={self.updates}: expected 1 to all of them"
            )
        if not 0 < self.threshold <= 1:
            raise ValueError(f"--threshold={self.threshold}: expected more than 0, up to 1")

    def judge(self, curves: Mapping[int, Sequence[float]], chance: float) -> list[dict[str, Any]]:
        """A row for every width, narrowest first: bits, accuracy in %, share, passed.

        Args:
          curves: bits -> training accuracy of every update, 0 to 1.
          chance: accuracy of a guess.

        Raises:
          ValueError: not even the widest learned anything.
        """
        last = {bits: float(np.mean(curves[bits][-self.window :])) for bits in sorted(curves)}
        top = last[max(last)] - chance
        if top <= 0:
            raise ValueError(
                f"after {self.updates} updates {max(last)} bits have a training accuracy of"
                f" {last[max(last)]:.3f}, no more than chance: give more --updates"
            )
        return [
            {
                "bits": bits,
                "accuracy": 100 * accuracy,
                "share": (accuracy - chance) / top,
                "passed": (accuracy - chance) / top >= self.threshold,
            }
            for bits, accuracy in last.items()
        ]


def lower_bound(rows: Sequence[Mapping[str, Any]]) -> int:
    """The narrowest width that passed, together with all wider ones."""
    bound: int = rows[-1]["bits"]
    for row in reversed(rows):
        if not row["passed"]:
            break
        bound = row["bits"]
    return bound


def phase_of_a_width(recipe: Cyclic, updates: int) -> Phase:
    """The phase of `cyclic` without its cycle, and with rates for so few updates."""
    (own,) = recipe.phases()

    def rising(peak: float) -> Schedule:
        return lambda count: peak * jnp.minimum((count + 1) / max(_WARMUP * updates, 1), 1)

    def whole(_: int, made: Schedule) -> Schedule:
        return made

    rates = {RATE: recipe.learning_rate, STEP_RATE: recipe.step_learning_rate}
    made = {name: partial(whole, made=rising(peak)) for name, peak in rates.items()}
    return dataclasses.replace(own, schedules=made)


def way_to(bits: int, widths: Sequence[int]) -> jax.Array:
    """What the loss of `cyclic` gets for a width: the share of the way from the narrowest, up to
    the widest."""
    return jnp.float32((bits - widths[0]) / max(widths[-1] - widths[0], 1))


def training_curves(
    network: Network, train: Any, phase: Phase, config: Config, bits: Sequence[int], updates: int
) -> dict[int, list[float]]:
    """bits -> training accuracy of every update; see `phase_of_a_width`.

    All that is random follows from the seed and the update, and is the same for every width.
    """
    structure = structure_of(network.model, network.task.example)
    feed = Feed(
        network.task, train, FitOptions(config.batch_size, config.seed, steps_per_dispatch=1)
    )
    (stage,) = stages_of((phase,), structure, feed.steps_per_epoch)
    fresh = at_epoch(first_state(network, feed, None), stage, feed)
    start = after_events(network, structure, stage, feed, fresh, phase.at_start)
    program, curves = compile_steps(network, stage, feed.key, feed.mesh), {}
    for width in tqdm(bits, unit=" widths", disable=None):
        state, found = jax.tree.map(jnp.copy, start), []
        values = {CYCLE: way_to(width, bits)}
        for update in range(updates):
            state, metrics = program(state, feed.arrays, feed.order(update), values)
            found.append(float(metrics["high_accuracy"][-1]))
        curves[width] = found
    return curves


def widths_to_test(config: Config) -> list[int]:
    """The widths from low to high, weights and activations alike.

    Raises:
      ValueError: the two differ, or are float.
    """
    low, high = (config.modes.default[name] for name in ("low", "high"))
    if low.weights is None or low.weights != low.activations or high.weights != high.activations:
        raise ValueError(
            f"a range test from low={low} to high={high}: expected the same bits of weights and of"
            " activations, as in --low=w1a1g8 --high=w8a8g8"
        )
    return list(range(low.weights, (high.weights or MAX_BITS) + 1))


def run_test(config: Config, network: Network, train: Any, test: RangeTest) -> dict[str, Any]:
    """What range_test.json holds."""
    bits = widths_to_test(config)
    assert isinstance(config.recipe, Cyclic)
    phase = phase_of_a_width(config.recipe, test.updates)
    chance = 1 / network.model.num_classes
    curves = training_curves(network, train, phase, config, bits, test.updates)
    rows = test.judge(curves, chance)
    return {
        "experiment": config.to_json(),
        **dataclasses.asdict(test),
        "chance": chance,
        "rows": rows,
        "bound": lower_bound(rows),
        "curves": curves,
    }


def folder_of_test(config: Config, preset: str, test: RangeTest) -> Path:
    """runs/range_test-updates=30-digits-cyclic-w1a1g8-w8a8g8-digits-seed0: another one for every
    test, see `run_folder`."""
    own, plain = dataclasses.asdict(test), dataclasses.asdict(RangeTest())
    differing = [f"{name}={value}" for name, value in own.items() if value != plain[name]]
    return run_folder(["range_test", *differing, config.dataset], config, preset, PRESETS[preset])


def main(
    *,
    updates: int,
    window: int,
    threshold: float,
    set: Sequence[str],  # the name of the flag
    workdir: str | None = None,
    data_dir: str | None = None,
    archive: str | None = None,
) -> None:
    """The command; its arguments are the flags, besides those that `read_config` reads."""
    clock, test = cli.Stopwatch(), RangeTest(updates, window, threshold)
    config, preset = read_config(DEFAULTS)
    if not isinstance(config.recipe, Cyclic):
        raise ValueError(f"--mode={config.mode}: expected cyclic, whose lower bound this finds")
    if config.init:
        raise ValueError(
            f"init={config.init}: expected none, as every width starts from fresh weights; leave it"
            " out"
        )
    if unread := sorted(_UNREAD & read_settings(set, every_field(Config)).keys()):
        raise ValueError(
            f"--set {unread[0]}=...: expected none of {sorted(_UNREAD)}, as a range test has"
            " --updates of whole batches; leave it out"
        )
    widths_to_test(config)
    folder = Path(workdir or folder_of_test(config, preset, test))
    with only_user(folder):
        dataset = load_data(config, False, data_dir, archive)
        task: Task = task_of(config, dataset)
        network = Network(build_from(network_of(config, dataset)), task)
        found = run_test(config, network, dataset.train, test)
        write_whole(folder / "range_test.json", json.dumps(found, indent=1) + "\n")
        picture = folder / "range_test.png"
        pyplot_for_files()  # before a figure is made
        from experiments.figures.bits import draw_range_test

        save_figure(draw_range_test(found), picture)
    print(f"\n{markdown_table(found['rows'], _COLUMNS)}\n")
    print(
        f"lower bound: {found['bound']} bits, the narrowest that learned {threshold:g} of what"
        f" {found['rows'][-1]['bits']} bits learned in {updates} updates (mean training accuracy"
        f" of the last {window}, above chance)\nplot: {picture}\n{clock} in all"
    )


if __name__ == "__main__":
    define_config_flags()
    flags.DEFINE_integer("updates", RangeTest.updates, "that every width is trained for")
    flags.DEFINE_integer("window", RangeTest.window, "last updates whose accuracy counts")
    flags.DEFINE_float("threshold", RangeTest.threshold, "share of what the widest learned")
    cli.run(main)
