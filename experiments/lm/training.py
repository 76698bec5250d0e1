"""Trains a dual-precision language model on bytes of text, both modes from one tree.

    python -m experiments.lm --mode=two_phase

The preset quick is for two CPU cores; see docs/language.md for what it reaches. Add
`--dataset=pydoc --preset=smoke` for a smoke test that downloads no data.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
from absl import flags

from dual_precision.costs import mode_cost
from dual_precision.data.text import TEXTS, Text, load_text
from dual_precision.models import build_from
from dual_precision.structure import structure_of
from dual_precision.tasks.language import NextByte, perplexity
from dual_precision.training.fit import FitOptions, fit
from dual_precision.training.log import read_records
from dual_precision.training.metrics import evaluate
from experiments import cli
from experiments.figures.language import language_table, plot_bits
from experiments.recipes.config import ORDERS, RECIPES, read_settings_as
from experiments.recipes.flags import define_shared_flags, read_widths_file
from experiments.recipes.language_config import (
    TEXT_MODELS,
    TEXT_MODES,
    LanguageConfig,
    language_fields,
    make_language_config,
)
from experiments.workdir import RESULTS, only_user, open_workdir, write_whole

FLAGS = cli.FLAGS
FIELDS = ("mode", "order", "low", "high", "model", "dataset", "seed")


def define_language_flags() -> None:
    """The flags of `python -m experiments.lm`."""
    flags.DEFINE_string("mode", None, f"recipe: {', '.join(TEXT_MODES)}")
    flags.DEFINE_string("order", None, "of two_phase: joint (high first) or refine (low first)")
    flags.DEFINE_string("low", None, 'what precision="low" means, as in w2a8')
    flags.DEFINE_string("high", None, 'what precision="high" means, as in w8a8')
    flags.DEFINE_string("widths", None, 'JSON file: {layer or pattern: {mode: "w4a8"}}')
    flags.DEFINE_string("model", None, ", ".join(TEXT_MODELS))
    flags.DEFINE_string("dataset", None, f"{', '.join(TEXTS)}, or the path of a file")
    flags.DEFINE_integer("seed", None, "of initial weights, and of where windows begin")
    flags.DEFINE_string("preset", None, "quick (CPU), paper (accelerator) or smoke")
    flags.DEFINE_bool("resume", True, "go on where the workdir stands")
    flags.DEFINE_bool("test", True, "read the test text, once, at the end")
    define_shared_flags()


def read_language_config() -> tuple[LanguageConfig, str]:
    """The config that the flags ask for, and the name of its preset.

    Raises:
      ValueError: an unknown name or value, or a setting that the recipe does not have.
    """
    known: dict[str, Any] = {}
    for recipe in (*RECIPES.values(), *ORDERS.values()):
        known |= language_fields(recipe)
    settings = read_settings_as(FLAGS.set, known)
    for name in FIELDS:
        if (value := getattr(FLAGS, name)) is not None:
            if name in settings:
                raise ValueError(f"--{name} and --set {name}=...: expected one of them")
            settings[name] = value
    if FLAGS.widths is not None:
        settings["widths"] = read_widths_file(FLAGS.widths)
    preset = FLAGS.preset or ("quick" if jax.default_backend() == "cpu" else "paper")
    return make_language_config(preset, settings), preset


def train(
    *,
    seed: int | None = None,
    dataset: str | None = None,
    workdir: str | None = None,
    data_dir: str | None = None,
    archive: str | None = None,
) -> None:
    """What the command does where no word says another thing; FLAGS has its other flags."""
    del seed, dataset  # of the config
    clock = cli.Stopwatch()
    config, preset = read_language_config()
    folder = Path(workdir or default_language_workdir(config, preset))
    with only_user(folder):
        say_run(config, preset, folder)
        text = load_text(config.dataset, data_dir=data_dir, archive=archive)
        say_text(text)
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
        open_workdir(folder, description, FLAGS.resume)
        state = fit(
            model,
            task,
            config.recipe.phases(),
            text.train,
            text.validation,
            FitOptions(
                batch_size=config.batch_size,
                seed=config.seed,
                epochs_per_evaluation=config.epochs_per_evaluation,
            ),
            folder,
            config=description,
        )
        rows = language_rows(config, model, task, state.variables, text, FLAGS.test)
        picture = folder / "training.png"
        plot_bits(read_records(folder / "metrics.jsonl"), rows, picture)
        write_whole(folder / RESULTS, json.dumps({"rows": rows}, indent=2) + "\n")
    print(f"\n{language_table(rows)}\n\nplot: {picture}\n{clock} in all")
    print(f"use it: model, variables = dual_precision.load({str(folder)!r})")


def default_language_workdir(config: LanguageConfig, preset: str) -> Path:
    """runs/austen-transformer-two_phase-joint-w2a8-w8a8-quick-seed0"""
    order = [config.order] if config.order else []
    parts = [Path(config.dataset).stem, config.model, config.mode, *order, config.low, config.high]
    return Path("runs") / "-".join([*parts, preset, f"seed{config.seed}"])


def say_run(config: LanguageConfig, preset: str, workdir: Path) -> None:
    """What the run is on, what it costs."""
    devices = jax.local_devices()
    print(
        f"device: {len(devices)} x {devices[0].device_kind}; preset: {preset}; workdir: {workdir}"
    )
    parts = ", ".join(f"{phase.name} {phase.epochs}" for phase in config.recipe.phases())
    print(f"epochs of {config.epoch_bytes:,} bytes: {parts}; {config.recipe.cost:g} passes")


def say_text(text: Text) -> None:
    """The text, and what each of its parts is for."""
    last = "read once, at the end" if FLAGS.test else "not read (--test=false)"
    print(
        f"{text.name}: {len(text.train):,} bytes train, {len(text.validation):,} validate and"
        f" select; the {len(text.test):,} of the test text are {last}"
    )


def language_task(config: LanguageConfig) -> NextByte:
    """The task of a run."""
    state = ((config.features,), (config.features,))
    carried = (state,) * config.depth if config.model == "lstm" else ()
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
    layers = structure_of(model, task.example).layers
    rows = []
    for name in config.recipe.reported:
        row = {"mode": name, "bits": "float" if name == "float" else getattr(config, name)}
        for split in ("validation", *(["test"] if test else [])):
            found = evaluate(model, variables, getattr(text, split), task=task, precision=name)
            row[f"{split}_bits"] = found["bits"]
            row[f"{split}_perplexity"] = perplexity(found["bits"])
            row[f"{split}_accuracy"] = 100 * found["accuracy"]
        rows.append({**row, **dataclasses.asdict(mode_cost(layers, name))})
    return rows
