"""Is one dual-precision network as good as two networks trained apart? A matrix of runs answers.

`python -m experiments.study --preset=quick --seeds=3`: two to three hours on two CPU cores,
CIFAR-10, resnet8_fast, 6 passes a network. Stopped and started again it goes on where it was. It
leaves results.json, results.md and plots in runs/study-<preset>, and every run under cells/ there.
"""

import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
from absl import flags

from experiments import cli
from experiments.recipes.config import Config
from experiments.recipes.flags import define_shared_flags
from experiments.recipes.run_config import every_field
from experiments.recipes.settings import read_settings
from experiments.study.matrix import METHODS, base_settings, check_read, matrix_of, read_pairs
from experiments.study.plans import PLANS
from experiments.study.study import run_study

MOST_SEEDS = 1000


def define_flags() -> None:
    flags.DEFINE_enum("preset", "quick", sorted(PLANS), "scale of the study")
    about = "seeds of the main pair, from 0"
    flags.DEFINE_integer("seeds", 3, about, lower_bound=1, upper_bound=MOST_SEEDS)
    flags.DEFINE_string("pairs", None, "low/high,...: the preset's by default")
    flags.DEFINE_list("methods", None, f"rows of the tables, of {list(METHODS)}")
    flags.DEFINE_bool("ablations", None, "run them too; else only without --pairs, --methods")
    flags.DEFINE_integer(
        "jobs", 0, "runs at once; 0: one for each core, at most 8; 1 for paper", lower_bound=0
    )
    flags.DEFINE_bool("run", True, "train what is missing; --run=false only writes the results")
    define_shared_flags()


def main(
    *,
    preset: str,
    seeds: int,
    jobs: int,
    run: bool,
    set: Sequence[str],  # the name of the flag
    pairs: str | None = None,
    methods: Sequence[str] | None = None,
    ablations: bool | None = None,
    workdir: str | None = None,
    data_dir: str | None = None,
    archive: str | None = None,
) -> None:
    """The command; its arguments are the flags."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stop as for Ctrl-C
    # What computes is started as processes of its own; this one must not hold an accelerator.
    jax.config.update("jax_platforms", "cpu")
    clock = cli.Stopwatch()
    plan = PLANS[preset]
    settings = read_settings(set, every_field(Config))
    base = base_settings(plan, settings)
    asked = None if pairs is None else read_pairs(pairs)
    matrix = matrix_of(plan, base, seeds, asked, methods, ablations)
    check_read(matrix, settings)
    folder = Path(workdir or f"runs/study-{preset}")
    typed = [text for text in sys.argv[1:] if not text.startswith("--run=")]
    tables = run_study(
        matrix,
        folder,
        as_typed=shlex.join(["python", "-m", "experiments.study", *typed]),
        train=run,
        jobs=jobs,
        data_dir=data_dir,
        archive=archive,
    )
    print(f"\n{tables}\n\nin {folder}: results.json, results.md, plots; {clock} in all")


if __name__ == "__main__":
    define_flags()
    cli.run(main, trains=False)
