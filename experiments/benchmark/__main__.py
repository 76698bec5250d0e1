"""What the networks here cost in time, beside their peers, in one run.

- `python -m experiments.benchmark train`: the train step beside plain flax, Qwix and AQT, which the
  extra [benchmark] installs; see train_step.py
- `python -m experiments.benchmark inference`: bit planes beside float32 and int8, switching modes
  under load, the cascade; two to three minutes on two CPU cores; see inference.py

Every round runs every program once, in shuffled order, so that a busy machine slows all of them
alike; ratios are medians over the ratios of the rounds. Each sub-command prints Markdown tables and
the bars that the project set itself.
"""

from functools import partial

from absl import flags

from experiments import cli
from experiments.benchmark.inference import measure_inference
from experiments.benchmark.plane_speed import REQUESTS
from experiments.benchmark.reliability.damage import measure_damage
from experiments.benchmark.train_step import STEPS, measure_train_step

NETWORK = "notebooks/networks/cifar10-w2a2-w8a8.safetensors"
COMMANDS: cli.Commands = {
    "train": measure_train_step,
    "inference": measure_inference,
    "damage": measure_damage,
}


def define_benchmark_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Adds the flags of both sub-commands."""
    integer = partial(flags.DEFINE_integer, flag_values=values)
    string = partial(flags.DEFINE_string, flag_values=values)
    integer("repeats", 7, "rounds, each of which runs every program", lower_bound=1)
    about = f"steps ({STEPS}), or requests ({REQUESTS}), of a program in a round"
    integer("steps", None, about, lower_bound=1)
    integer("batch_size", 128, "train: images per step", lower_bound=8)
    string("model", "resnet20", "train: one of the residual networks")
    about = "train: measure Qwix and AQT too, not only plain flax"
    flags.DEFINE_bool("peers", True, about, flag_values=values)
    string("network", NETWORK, "inference: the packed file that is switched")
    # Below that, a 99th percentile is the slowest request.
    integer("requests", 10_000, "inference: of the load on it", lower_bound=100)
    integer("cases", 2000, "damage: files that are damaged", lower_bound=1)
    integer("seed", 0, "damage: of what is done to them", lower_bound=0)
    string("out", None, "a JSON file for all times")


if __name__ == "__main__":
    define_benchmark_flags()
    cli.run(COMMANDS, trains=False)
