"""What the networks here cost in time, beside their peers; and what they must never do.

- `python -m experiments.benchmark train`: the train step beside plain flax, Qwix and AQT, which the
  extra [benchmark] installs; see train_step.py; `train_apart`: each in a process of its own
- `python -m experiments.benchmark methods`: the steps of cyclic precision and of BSQ beside plain
  quantized ones; see method_steps.py
- `python -m experiments.benchmark inference`: bit planes beside float32 and int8, switching modes
  under load, the cascade; two to three minutes on two CPU cores; see inference.py
- `python -m experiments.benchmark engines`: modes of ours in ONNX Runtime beside its own float32
  and int8, which the extra [engines] installs; see engines.py
- `python -m experiments.benchmark language`: a byte of a decoder on planes, low beside high, and
  drafted; PyTorch beside it, which the extra [benchmark] installs; see language.py
- `python -m experiments.benchmark damage`, `kills` and `soak`: damaged files, processes that are
  killed, hours of requests; see reliability/ and docs/reliability.md
- `python -m experiments.benchmark serving`, `clients`, `first_answer`: the server in a burst, many
  clients one of which sends garbage, a slow source; see serving/ and docs/serving.md
- `python -m experiments.benchmark layouts`, `pair` and `deaths`: losses and times of one process
  and of several, and kills of one of two; see scaling/ and docs/scale.md
- `python -m experiments.benchmark scale`: the train step compiled for many devices, not run, and a
  model of how it scales; see scaling/ and docs/scale.md

Where times are measured, every round runs every program once, in shuffled order, so that a busy
machine slows all of them alike; ratios are medians over the ratios of the rounds, and Markdown
tables and the bars that the project set itself are printed. `damage`, `kills`,
`soak`, `clients`, `layouts` and `deaths` end with an error where something happened that must not.
"""

from functools import partial

from absl import flags

from experiments import cli
from experiments.benchmark.engines import measure_engines
from experiments.benchmark.inference import measure_inference
from experiments.benchmark.language import measure_language
from experiments.benchmark.method_steps import measure_method_steps
from experiments.benchmark.plane_speed import REQUESTS
from experiments.benchmark.reliability.damage import measure_damage
from experiments.benchmark.reliability.kills import measure_kills
from experiments.benchmark.reliability.soak import measure_soak
from experiments.benchmark.scaling.deaths import measure_deaths
from experiments.benchmark.scaling.layouts import measure_layouts
from experiments.benchmark.scaling.pair import measure_pair
from experiments.benchmark.scaling.scale import measure_scale
from experiments.benchmark.serving.burst import measure_serving
from experiments.benchmark.serving.clients import measure_clients
from experiments.benchmark.serving.first_answer import measure_first_answer
from experiments.benchmark.train_apart import measure_train_apart
from experiments.benchmark.train_step import STEPS, measure_train_step

NETWORK = "notebooks/networks/cifar10-w2a2-w8a8.safetensors"
COMMANDS: cli.Commands = {
    "train": measure_train_step,
    "train_apart": measure_train_apart,
    "methods": measure_method_steps,
    "inference": measure_inference,
    "engines": measure_engines,
    "language": measure_language,
    "damage": measure_damage,
    "kills": measure_kills,
    "soak": measure_soak,
    "scale": measure_scale,
    "layouts": measure_layouts,
    "pair": measure_pair,
    "deaths": measure_deaths,
    "serving": measure_serving,
    "clients": measure_clients,
    "first_answer": measure_first_answer,
}


def define_benchmark_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Adds the flags of all sub-commands."""
    integer = partial(flags.DEFINE_integer, flag_values=values)
    string = partial(flags.DEFINE_string, flag_values=values)
    integer("repeats", 7, "rounds, each of which runs every program", lower_bound=1)
    about = f"steps ({STEPS}), or requests ({REQUESTS}), of a program in a round"
    integer("steps", None, about, lower_bound=1)
    integer(
        "batch_size",
        128,
        "train, train_apart, methods, pair: images per step; scale: of a device",
        lower_bound=8,
        upper_bound=2**16,
    )
    string("model", "resnet20", "train, train_apart, methods, pair: one of the residual networks")
    about = "train: measure Qwix and AQT too, not only plain flax"
    flags.DEFINE_bool("peers", True, about, flag_values=values)
    string("checkpoint", None, "engines: the PyTorch state dict of a CIFAR-10 network")
    string("network", NETWORK, "of all that serve, and of scale: the packed file")
    string("decoder", None, "language: a packed file; by default 12.9 M random weights")
    # Below that, a 99th percentile is the slowest request.
    integer("requests", 10_000, "inference: of the load on it", lower_bound=100)
    integer("cases", 2000, "damage: files that are damaged", lower_bound=1)
    integer("kills", 100, "kills, deaths: processes that are killed", lower_bound=1)
    integer("seed", 0, "damage, kills, deaths: of what is done to them", lower_bound=0)
    about = "soak: how long requests are asked"
    flags.DEFINE_float("minutes", 10.0, about, lower_bound=0.0, flag_values=values)
    integer("threads", 8, "soak: that ask", lower_bound=1, upper_bound=1000)
    number = partial(flags.DEFINE_float, flag_values=values)
    flags.DEFINE_list("planes", ["2", "8"], "serving: of its modes", flag_values=values)
    number("deadline", 250.0, "serving: ms", lower_bound=1.0)
    number("seconds", 12.0, "serving, clients: of a run", lower_bound=1.0, upper_bound=600.0)
    number("rate", 1e6, "first_answer: bytes a second of the source", lower_bound=1000.0)
    names = ["resnet20", "resnet56", "transformer"]
    flags.DEFINE_list("models", names, "scale: that are compiled", flag_values=values)
    sets = ["digits", "cifar10"]
    flags.DEFINE_list("datasets", sets, "layouts: whose images are trained on", flag_values=values)
    flags.DEFINE_list("devices", ["1", "8", "64"], "scale: how many", flag_values=values)
    about = "scale: 10^12 operations a second that a device reaches; an assumption"
    number("teraflops", 10.0, about, lower_bound=1e-6)
    string("picture", None, "scale: where its curves are drawn, .svg or .png")
    string("out", None, "a JSON file for all times")


if __name__ == "__main__":
    define_benchmark_flags()
    cli.run(COMMANDS, trains=False)
