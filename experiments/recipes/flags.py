"""The flags of a training command, and the Config that they ask for."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from absl import flags

from dual_precision.models import IMAGE_MODELS
from experiments import cli
from experiments.recipes.choice import RECIPES
from experiments.recipes.config import PRESETS, Config, make_config, preset_for
from experiments.recipes.run_config import every_field
from experiments.recipes.settings import WIDTHS, read_settings, read_widths
from experiments.workdir import read_json

FLAGS = cli.FLAGS
# Flags that are fields of Config by the same name.
FIELDS = ("mode", "order", "low", "high", "model", "dataset", "init", "seed")


def define_flags() -> None:
    """The flags of `python -m experiments.cifar`."""
    define_config_flags()
    define_run_flags()
    about = "each device holds a part of the training images, not all of them"
    flags.DEFINE_bool("shard_data", False, about)


def define_config_flags() -> None:
    """The flags that `read_config` reads, and those of every training command."""
    flags.DEFINE_string("model", None, ", ".join(sorted(IMAGE_MODELS)))
    flags.DEFINE_string("dataset", None, "cifar10, cifar100, mnist, fashion_mnist or digits")
    flags.DEFINE_integer("seed", None, "of initial weights, data order and augmentation")
    about = f"{', '.join(PRESETS)}: defaults; quick if none is given, digits for that data set"
    flags.DEFINE_string("preset", None, about)
    define_field_flags(RECIPES)
    define_shared_flags()


def define_field_flags(
    recipes: Iterable[str], low: str = "w2a2", values: flags.FlagValues = flags.FLAGS
) -> None:
    """The flags of fields that runs on images and on text have; `low`: an example."""
    string = partial(flags.DEFINE_string, flag_values=values)
    string("mode", None, f"recipe: {', '.join(recipes)}")
    string("order", None, "of two_phase: joint (high first) or refine (low first)")
    string("low", None, f'what precision="low" means, as in {low}')
    string("high", None, 'what precision="high" means, as in w8a8')
    string("widths", None, 'JSON file: {layer or pattern: {mode: "w4a4"}}')
    about = "start from this workdir, packed file, safetensors file or PyTorch state dict"
    string("init", None, about)


def define_run_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """The flags of a command that trains one network, see course.py."""
    switch = partial(flags.DEFINE_bool, flag_values=values)
    switch("resume", True, "go on where the workdir stands")
    switch("test", True, "read the test set, once, at the end")
    switch("tensorboard", False, "write TensorBoard events (extra [tensorboard])")
    cli.define_process_flags(values)


def define_shared_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """The flags that every training command has."""
    string = partial(flags.DEFINE_string, flag_values=values)
    about = "name=value for any field of experiments/recipes/"
    flags.DEFINE_multi_string("set", [], about, flag_values=values)
    string("workdir", None, "folder of the run; by default one under runs/")
    string("data_dir", None, "folder of prepared TFDS data sets")
    string("archive", None, "archive of the data set, where it cannot be fetched")


def read_config(defaults: Mapping[str, Any] = MappingProxyType({})) -> tuple[Config, str]:
    """The Config that the flags ask for, and the name of its preset: here alone they are read from
    FLAGS, for they are the same for several commands. All others are arguments of a command.

    Args:
      defaults: field -> value of a command, where no flag says another.

    Raises:
      ValueError: an unknown name or value, or a setting that the recipe does not have.
    """
    named = {name: getattr(FLAGS, name) for name in FIELDS}
    settings = {**defaults, **settings_asked(FLAGS.set, named, FLAGS.widths, every_field(Config))}
    preset = FLAGS.preset or preset_for(settings.get("dataset"))
    return make_config(preset, settings), preset


def settings_asked(
    assigned: Sequence[str],
    named: Mapping[str, Any],
    widths: str | None,
    fields: Mapping[str, Any],
) -> dict[str, Any]:
    """Field -> value of all that the flags of a training set.

    Args:
      assigned: name=value, of --set.
      named: field -> value of the flag of that name; None is not given.
      widths: JSON file of the widths of layers.
      fields: name -> type of all that there are.

    Raises:
      ValueError: an unknown name, a value of another type, a field that is set twice.
    """
    settings = read_settings(assigned, fields)
    for name, value in named.items():
        if value is not None:
            if name in settings:
                raise ValueError(f"--{name} and --set {name}=...: expected one of them")
            settings[name] = value
    if widths is not None:
        settings["widths"] = read_widths_file(widths)
    return settings


def read_widths_file(path: str) -> Any:
    """Widths of layers from a JSON file.

    Raises:
      ValueError: not such a file. OSError: it cannot be read.
    """
    try:
        return read_widths(read_json(Path(path), WIDTHS))
    except ValueError as error:
        raise ValueError(f"--widths={path}: {error}") from None
