"""Recipes: a mode of training by name, as phases.

Costs are counted in passes: one pass is one mode run forward and backward over one epoch of
images. Every recipe spends `config.passes`, except that `low`, `high`, `float` and `truncate`,
which train one mode, spend half of it each: two twins cost what one dual network costs.
"""

import itertools
from collections.abc import Callable

from dual_precision.training.phases import Phase, Preparation
from experiments.recipes.config import ORDERS, Config

Recipe = tuple[Phase, ...]


def _phase(config: Config, name: str, passes: float, precisions: tuple[str, ...], **more) -> Phase:
    """A phase with the config's rates whose cost is about `passes`."""
    settings = {
        "learning_rate": config.learning_rate,
        "step_learning_rate": config.step_learning_rate,
        "weight_decay": config.weight_decay,
        "warmup": config.warmup,
        "label_smoothing": config.label_smoothing,
    }
    at_once = 1 if more.get("split") else len(precisions)
    epochs = max(round(passes / at_once), 1)
    return Phase(name, epochs, precisions, **{**settings, **more})


def _start(mode: str, grid: str | None = None) -> Preparation:
    """Steps fitted to the fresh network: weights for the width of `grid`, inputs of `mode`."""
    if mode == "float":
        return Preparation()
    return Preparation(weight_steps=grid or mode, input_steps=(mode,))


def _take_over(mode: str, source: str) -> Preparation:
    """`mode` starts from the source's normalisation, and fits its input steps to a batch."""
    return Preparation(norms=((mode, source),), input_steps=(mode,))


def alone(mode: str) -> Callable[[Config], Recipe]:
    """One mode trained by itself: a twin."""

    def recipe(config: Config) -> Recipe:
        return (_phase(config, mode, config.passes / 2, (mode,), prepare=_start(mode)),)

    return recipe


def truncate(config: Config) -> Recipe:
    """The high twin, cut to the low width without training: what everybody tries first."""
    finish = _take_over("low", "high")
    return (
        _phase(config, "high", config.passes / 2, ("high",), prepare=_start("high"), finish=finish),
    )


def joint(config: Config) -> Recipe:
    """Both modes on each batch from the start, in one phase."""
    start = Preparation(weight_steps="low", input_steps=("high", "low"))
    return (
        _phase(config, "both", config.passes, ("high", "low"), split=config.split, prepare=start),
    )


def two_phase(config: Config) -> Recipe:
    """Phase 1 trains one mode, phase 2 the other too; `config.order` says which first."""
    return _refine(config) if config.order == "refine" else _joint_order(config)


def _refine(config: Config) -> Recipe:
    """Low first; then high inside low's cells, so that low keeps its logits bit for bit."""
    half = config.passes / 2
    return (
        _phase(config, "low", half, ("low",), prepare=_start("low")),
        _phase(
            config,
            "refine",
            half,
            ("high",),
            learning_rate=config.learning_rate * config.refine_rate,
            protect="low",
            prepare=_take_over("high", "low"),
        ),
    )


def _joint_order(config: Config) -> Recipe:
    """High first, on the grid that low will share; then both."""
    first = config.passes * config.first_share
    distillation = 0.0 if config.split else config.distillation  # which needs the same images
    polish = config.passes * config.polish_share
    phases = [
        _phase(
            config,
            "high",
            first,
            ("high",),
            final_rate=config.first_final,
            prepare=_start("high", grid="low"),
        ),
        _phase(
            config,
            "both",
            config.passes - first - polish,
            ("high", "low"),
            learning_rate=config.learning_rate * config.second_rate,
            warmup=0.0,  # it goes on where phase 1 left off
            split=config.split,
            teacher="high" if distillation else None,
            distillation=distillation,
            prepare=_take_over("low", "high"),
        ),
    ]
    if polish:
        rate = config.learning_rate * config.refine_rate
        phases.append(
            _phase(config, "polish", polish, ("high",), learning_rate=rate, protect="low")
        )
    return tuple(phases)


RECIPES: dict[str, Callable[[Config], Recipe]] = {
    "float": alone("float"),
    "low": alone("low"),
    "high": alone("high"),
    "truncate": truncate,
    "joint": joint,
    "two_phase": two_phase,
}


def passes_of(config: Config) -> int:
    """What a run costs: whole epochs of each phase, and so not always `config.passes`."""
    phases = RECIPES[config.mode](config)
    return sum(phase.epochs * phase.passes_per_epoch for phase in phases)


def reported_modes(mode: str) -> tuple[str, ...]:
    """The modes that a recipe trains, or makes: the rows of its table."""
    return (mode,) if mode in ("float", "low", "high") else ("low", "high")


def fields_without_effect(config: Config) -> set[str]:
    """Fields that only recipes read, and that this config's recipe does not."""
    every: set[str] = set()
    for mode, order, split in itertools.product(RECIPES, ORDERS, (False, True)):
        every |= _fields_read(config, mode=mode, order=order, split=split)
    return every - _fields_read(config, mode=config.mode)


def _fields_read(config: Config, mode: str, **instead) -> set[str]:
    """The fields that the recipe of `mode` looks at, with other values for some of them."""
    read: set[str] = set()

    class Recording:
        def __getattr__(self, name: str):
            read.add(name)
            return instead.get(name, getattr(config, name))

    RECIPES[mode](Recording())  # type: ignore[arg-type]
    return read
