"""Trains a dual-precision language model on bytes of text, both modes from one tree.

    python -m experiments.lm --mode=two_phase

The preset quick is for two CPU cores; see docs/language.md for what it reaches. Add
`--dataset=pydoc --preset=smoke` for a smoke test that downloads no data.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
from absl import flags

from dual_precision.data.text import TEXTS, Text, check_text_name, load_text
from dual_precision.models import TEXT_MODELS, build_from
from dual_precision.tasks.language import NextByte, perplexity
from experiments.figures.language import language_table, plot_bits
from experiments.recipes.course import Problem, train
from experiments.recipes.flags import (
    define_field_flags,
    define_run_flags,
    define_shared_flags,
    settings_asked,
)
from experiments.recipes.language_config import (
    PRESETS_OF_TEXT,
    TEXT_MODES,
    LanguageConfig,
    make_language_config,
    text_preset,
)
from experiments.recipes.names import run_folder
from experiments.recipes.run_config import every_field


def define_language_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """The flags of `train_command`."""
    string = partial(flags.DEFINE_string, flag_values=values)
    string("model", None, ", ".join(TEXT_MODELS))
    string("dataset", None, f"{', '.join(TEXTS)}, or the path of a file")
    about = "of initial weights, and of where windows begin"
    flags.DEFINE_integer("seed", None, about, flag_values=values)
    string("preset", None, f"{', '.join(PRESETS_OF_TEXT)}: defaults; quick if none is given")
    define_field_flags(TEXT_MODES, "w2a8", values)
    define_run_flags(values)
    define_shared_flags(values)


def read_language_config(
    named: Mapping[str, Any], assigned: Sequence[str], widths: str | None, preset: str | None
) -> tuple[LanguageConfig, str]:
    """The config that the flags ask for, and the name of its preset; see `settings_asked`.

    Raises:
      ValueError: an unknown name or value, or a setting that the recipe does not have.
    """
    settings = settings_asked(assigned, named, widths, every_field(LanguageConfig))
    preset = preset or "quick"
    config = make_language_config(preset, settings)
    check_text_name(config.dataset)  # here alone: a run is read back where its text is gone, too
    return config, preset


def train_command(
    *,
    mode: str | None = None,
    order: str | None = None,
    low: str | None = None,
    high: str | None = None,
    model: str | None = None,
    dataset: str | None = None,
    init: str | None = None,
    seed: int | None = None,
    set: Sequence[str] = (),  # the name of the flag
    widths: str | None = None,
    preset: str | None = None,
    resume: bool = True,
    test: bool = True,
    tensorboard: bool = False,
    workdir: str | None = None,
    data_dir: str | None = None,
    archive: str | None = None,
) -> None:
    """What the command does where no word says another thing; its arguments are the flags."""
    named: dict[str, Any] = {"mode": mode, "order": order, "low": low, "high": high, "model": model}
    named |= {"dataset": dataset, "init": init, "seed": seed}
    config, preset = read_language_config(named, set, widths, preset)
    train(
        config,
        preset,
        Path(workdir or default_language_workdir(config, preset)),
        lambda: problem_of_text(config, read_text(config, test, data_dir, archive)),
        resume=resume,
        test=test,
        tensorboard=tensorboard,
    )


def default_language_workdir(config: LanguageConfig, preset: str) -> Path:
    """runs/austen-transformer-two_phase-joint-w2a8-w8a8-quick-seed0"""
    subject = [Path(config.dataset).stem, config.model]
    return run_folder(subject, config, preset, text_preset(preset, config.model))


def read_text(
    config: LanguageConfig, test: bool, data_dir: str | None = None, archive: str | None = None
) -> Text:
    """The text, and what each of its parts is for; `test`: its test part will be read."""
    text = load_text(config.dataset, data_dir=data_dir, archive=archive)
    last = "read once, at the end" if test else "not read (--test=false)"
    print(
        f"{text.name}: {len(text.train):,} bytes train, {config.epoch_bytes:,} of them an epoch;"
        f" {len(text.validation):,} validate and select; the {len(text.test):,} of the test text"
        f" are {last}"
    )
    return text


def problem_of_text(config: LanguageConfig, text: Text) -> Problem:
    """What a run on text is trained on; its rows have bits per byte.

    Raises:
      ValueError: a part of the text is too short for one batch of evaluation.
    """
    task = language_task(config)
    for part in (text.train, text.validation, text.test):
        next(task.batches(part, task.evaluation_rows))
    return Problem(config.network(), task, text, _columns, language_table, plot_bits)


def _columns(split: str, found: Mapping[str, float]) -> dict[str, float]:
    """Without a perplexity where that is infinite: of a run that diverged, and JSON has none."""
    of_a_byte = perplexity(found["bits"])
    return {
        f"{split}_bits": found["bits"],
        **({} if math.isinf(of_a_byte) else {f"{split}_perplexity": of_a_byte}),
        f"{split}_accuracy": 100 * found["accuracy"],
    }


def language_task(config: LanguageConfig) -> NextByte:
    """The task of a run; the network says whether a row carries something, and what."""
    model: Any = build_from(config.network())
    empty = jax.eval_shape(lambda: model.empty_carry(1)) if hasattr(model, "empty_carry") else ()
    carried = tuple(tuple(state.shape[1:] for state in layer) for layer in empty)
    return NextByte(config.context, config.epoch_bytes, carried)
