"""What the commands share: absl flags to a Config, errors to one line and an exit status."""

import errno
import logging
import signal
import sys
import time
from collections.abc import Callable

import jax
from absl import app, flags
from absl import logging as absl_logging

from dual_precision.data import DataError
from dual_precision.training.checkpoint import CheckpointError
from dual_precision.training.compilation import keep_freed_memory
from dual_precision.training.fit import Interrupted, NonFiniteLoss
from experiments.recipes.config import Config, make_config, read_settings
from experiments.recipes.recipes import fields_without_effect

FLAGS = flags.FLAGS
# Flags that are fields of Config by the same name.
FIELDS = ("mode", "order", "low", "high", "model", "dataset", "seed")


def define_flags() -> None:
    """The flags of `python -m experiments.cifar`."""
    flags.DEFINE_string("mode", None, "recipe: float, low, high, truncate, joint or two_phase")
    flags.DEFINE_string("order", None, "of two_phase: joint (high first) or refine (low first)")
    flags.DEFINE_string("low", None, 'what precision="low" means, as in w2a2')
    flags.DEFINE_string("high", None, 'what precision="high" means, as in w8a8')
    flags.DEFINE_string("model", None, "mlp, resnet8_fast, resnet8, resnet20, resnet32, resnet56")
    flags.DEFINE_string("dataset", None, "cifar10, cifar100, mnist, fashion_mnist or digits")
    flags.DEFINE_integer("seed", None, "of initial weights, data order and augmentation")
    flags.DEFINE_string("preset", None, "quick (CPU), paper (accelerator) or digits")
    flags.DEFINE_bool("resume", True, "go on where the workdir stands")
    flags.DEFINE_bool("test", True, "read the test set, once, at the end")
    flags.DEFINE_bool("tensorboard", False, "write TensorBoard events (extra [tensorboard])")
    define_shared_flags()


def define_shared_flags() -> None:
    """The flags that every training command has."""
    flags.DEFINE_multi_string("set", [], "name=value for any field of experiments/config.py")
    flags.DEFINE_string("workdir", None, "folder of the run; by default one under runs/")
    flags.DEFINE_string("data_dir", None, "folder of prepared TFDS data sets")
    flags.DEFINE_string("archive", None, "archive of the data set, where it cannot be fetched")
    flags.DEFINE_bool("traceback", False, "on an error, show where it came from")


def read_config() -> tuple[Config, str]:
    """The Config that the flags ask for, and the name of its preset.

    Raises:
      ValueError: an unknown name or value, or a setting that has no effect on the recipe.
    """
    settings = read_settings(FLAGS.set)
    for name in FIELDS:
        value = getattr(FLAGS, name)
        if value is not None:
            if name in settings:
                raise ValueError(f"--{name} and --set {name}=...: expected one of them")
            settings[name] = value
    config = make_config(preset := _preset(settings.get("dataset")), settings)
    idle = fields_without_effect(config) & set(settings)
    if idle:
        raise ValueError(
            f"{sorted(idle)} has no effect with --mode={config.mode}"
            f"{f' --order={config.order}' if config.mode == 'two_phase' else ''}"
            f"{' and split=True' if 'distillation' in idle else ''}: leave it out"
        )
    return config, preset


def _preset(dataset: str | None) -> str:
    if FLAGS.preset is not None:
        return FLAGS.preset
    if dataset == "digits":
        return "digits"
    return "quick" if jax.default_backend() == "cpu" else "paper"


def run(main: Callable[..., None], trains: bool = True, words: bool = False) -> None:
    """Runs `main` under absl; what users can mend ends as one line and exit status 1 or more.

    Args:
      trains: this process trains, and not only others that it starts.
      words: `main` takes what is not a flag on the command line.
    """

    def guarded(argv: list[str]) -> None:
        _logs_to_stderr()
        if trains:
            keep_freed_memory()
        if argv[1:] and not words:
            sys.exit(f"error: unexpected arguments {argv[1:]}: flags have the form --name=value")
        try:
            main(*argv[1:])
        except Interrupted as stop:
            print(stop, file=sys.stderr)
            sys.exit(128 + stop.signum)
        except KeyboardInterrupt:  # outside of training, where nothing waits to be saved
            print("stopped: start the same command again to go on", file=sys.stderr)
            sys.exit(128 + signal.SIGINT)
        except (ValueError, OSError, DataError, CheckpointError, NonFiniteLoss) as error:
            if FLAGS.traceback:
                raise
            room = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
            way_out = "; make room and start the same command again: it goes on" if room else ""
            sys.exit(f"error: {' '.join(str(error).split())}{way_out}")

    app.run(guarded, flags_parser=_parse_flags)


def _parse_flags(argv: list[str]) -> list[str]:
    try:
        return FLAGS(argv)
    except flags.Error as error:
        sys.exit(f"error: {' '.join(str(error).split())}; --help lists the flags")


def _logs_to_stderr() -> None:
    """Our own log lines, plain; of the libraries nothing: what goes wrong there is raised too."""
    absl_logging.set_verbosity(absl_logging.FATAL)
    logging.getLogger("jax").setLevel(logging.ERROR)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    own = logging.getLogger("dual_precision")
    own.addHandler(handler)
    own.setLevel(logging.INFO)
    own.propagate = False


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def __str__(self) -> str:
        seconds = time.perf_counter() - self._start
        return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"
