"""Trains a dual-precision language model on bytes of text, both modes from one tree.

    python -m experiments.lm --mode=two_phase

The preset quick is for two CPU cores; see docs/language.md for what it reaches. Add
`--dataset=pydoc --preset=smoke` for a smoke test that downloads no data.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
from absl import flags

from dual_precision.costs import mode_cost
from dual_precision.data.text import TEXTS, Text, load_text
from dual_precision.models import TEXT_MODELS, build_from
from dual_precision.structure import structure_of
from dual_precision.tasks.language import NextByte, perplexity
from dual_precision.training.fit import fit
from dual_precision.training.log import read_records
from dual_precision.training.metrics import evaluate
from experiments import cli
from experiments.figures.language import language_table, plot_bits
from experiments.recipes.flags import define_shared_flags, settings_asked
from experiments.recipes.language_config import (
    PRESETS_OF_TEXT,
    TEXT_MODES,
    LanguageConfig,
    make_language_config,
    text_preset,
)
from experiments.recipes.names import run_folder
from experiments.recipes.run_config import every_field
from experiments.workdir import RESULTS, only_user, open_workdir, write_whole


def define_language_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """The flags of `train`."""
    string = partial(flags.DEFINE_string, flag_values=values)
    switch = partial(flags.DEFINE_bool, flag_values=values)
    string("mode", None, f"recipe: {', '.join(TEXT_MODES)}")
    string("order", None, "of two_phase: joint (high first) or refine (low first)")
    string("low", None, 'what precision="low" means, as in w2a8')
    string("high", None, 'what precision="high" means, as in w8a8')
    string("widths", None, 'JSON file: {layer or pattern: {mode: "w4a8"}}')
    string("model", None, ", ".join(TEXT_MODELS))
    string("dataset", None, f"{', '.join(TEXTS)}, or the path of a file")
    about = "of initial weights, and of where windows begin"
    flags.DEFINE_integer("seed", None, about, flag_values=values)
    string("preset", None, f"{', '.join(PRESETS_OF_TEXT)}: defaults; quick if none is given")
    switch("resume", True, "go on where the workdir stands")
    switch("test", True, "read the test text, once, at the end")
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
    return make_language_config(preset, settings), preset


def train(
    *,
    mode: str | None = None,
    order: str | None = None,
    low: str | None = None,
    high: str | None = None,
    model: str | None = None,
    dataset: str | None = None,
    seed: int | None = None,
    set: Sequence[str] = (),  # the name of the flag
    widths: str | None = None,
    preset: str | None = None,
    resume: bool = True,
    test: bool = True,
    workdir: str | None = None,
    data_dir: str | None = None,
    archive: str | None = None,
) -> None:
    """What the command does where no word says another thing; its arguments are the flags."""
    clock = cli.Stopwatch()
    named: dict[str, Any] = {"mode": mode, "order": order, "low": low, "high": high, "model": model}
    named |= {"dataset": dataset, "seed": seed}
    config, preset = read_language_config(named, set, widths, preset)
    folder = Path(workdir or default_language_workdir(config, preset))
    with only_user(folder):
        say_run(config, preset, folder)
        text = load_text(config.dataset, data_dir=data_dir, archive=archive)
        say_text(text, test)
        rows = _trained_rows(folder, config, preset, text, resume, test)
        picture = folder / "training.png"
        plot_bits(read_records(folder / "metrics.jsonl"), rows, picture)
        write_whole(folder / RESULTS, json.dumps({"rows": rows}, indent=2) + "\n")
    print(f"\n{language_table(rows)}\n\nplot: {picture}\n{clock} in all")
    print(f"use it: model, variables = dual_precision.load({str(folder)!r})")


def _trained_rows(
    folder: Path, config: LanguageConfig, preset: str, text: Text, resume: bool, test: bool
) -> list[dict[str, Any]]:
    """Trains in a folder that is held; see `language_rows`."""
    network = config.network()
    model, task = build_from(network), language_task(config)
    task.order(text.train, config.batch_size, jax.random.key(0))  # too short a text, at once
    for part in (text.validation, text.test):
        next(task.batches(part, task.evaluation_rows))
    description = {
        "preset": preset,
        "experiment": config.to_json(),
        "network": network,
        "trained": list(config.recipe.reported),
    }
    structure_of(model, task.example)  # wrong widths leave the workdir free
    open_workdir(folder, description, resume)
    state = fit(
        model,
        task,
        config.recipe.phases(),
        text.train,
        text.validation,
        config.fit_options(),
        folder,
        config=description,
    )
    return language_rows(config, model, task, state.variables, text, test)


def default_language_workdir(config: LanguageConfig, preset: str) -> Path:
    """runs/austen-transformer-two_phase-joint-w2a8-w8a8-quick-seed0"""
    subject = [Path(config.dataset).stem, config.model]
    return run_folder(subject, config, preset, text_preset(preset, config.model))


def say_run(config: LanguageConfig, preset: str, workdir: Path) -> None:
    """What the run is on, what it costs."""
    devices = jax.local_devices()
    print(
        f"device: {len(devices)} x {devices[0].device_kind}; preset: {preset}; workdir: {workdir}"
    )
    parts = ", ".join(f"{phase.name} {phase.epochs}" for phase in config.recipe.phases())
    print(f"epochs of {config.epoch_bytes:,} bytes: {parts}; {config.recipe.cost:g} passes")


def say_text(text: Text, test: bool) -> None:
    """The text, and what each of its parts is for."""
    last = "read once, at the end" if test else "not read (--test=false)"
    print(
        f"{text.name}: {len(text.train):,} bytes train, {len(text.validation):,} validate and"
        f" select; the {len(text.test):,} of the test text are {last}"
    )


def language_task(config: LanguageConfig) -> NextByte:
    """The task of a run; the network says whether a row carries something, and what."""
    model: Any = build_from(config.network())
    empty = jax.eval_shape(lambda: model.empty_carry(1)) if hasattr(model, "empty_carry") else ()
    carried = tuple(tuple(state.shape[1:] for state in layer) for layer in empty)
    return NextByte(config.context, config.epoch_bytes, carried)


def language_rows(
    config: LanguageConfig,
    model: Any,
    task: NextByte,
    variables: Any,
    text: Text,
    test: bool = True,
) -> list[dict[str, Any]]:
    """One row per mode. The only place that reads the test text, and not if `test` is false."""
    structure = structure_of(model, task.example)
    rows = []
    for name in config.recipe.reported:
        row = {"mode": name, "bits": "float" if name == "float" else getattr(config, name)}
        for split in ("validation", *(["test"] if test else [])):
            found = evaluate(model, variables, getattr(text, split), task=task, precision=name)
            row[f"{split}_bits"] = found["bits"]
            row[f"{split}_perplexity"] = perplexity(found["bits"])
            row[f"{split}_accuracy"] = 100 * found["accuracy"]
        cost = mode_cost(structure, name)
        rows.append({**row, **dataclasses.asdict(cost)})
    return rows
