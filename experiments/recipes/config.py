"""The configuration of a training run: every field here, typed, commented, defaulted."""

import dataclasses
import math
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from dual_precision.models import MODELS
from dual_precision.precision import parse

MODES = ("float", "low", "high", "truncate", "joint", "two_phase")
ORDERS = ("joint", "refine")


@dataclasses.dataclass(frozen=True)
class Config:
    """One run. Costs are in passes, see experiments/recipes.py."""

    mode: str = "two_phase"  # the recipe
    order: str = "joint"  # of two_phase: which mode comes first
    low: str = "w2a2"  # what precision="low" means
    high: str = "w8a8"  # what precision="high" means
    model: str = "resnet20"
    dataset: str = "cifar10"
    seed: int = 0  # initial weights, data order, augmentation
    batch_size: int = 128
    passes: float = 400.0  # over all phases; one is one mode over one epoch, see recipes.py
    learning_rate: float = 0.1  # peak, SGD with Nesterov momentum 0.9
    step_learning_rate: float = 1e-2  # peak, relative change of quantizer steps per update
    weight_decay: float = 5e-4  # on kernels only
    warmup: float = 0.1  # share of each phase
    label_smoothing: float = 0.0
    split: bool = True  # each mode has its own half of every batch, where both are trained
    distillation: float = 0.5  # share of high's soft labels in low's loss (order joint, no split)
    first_share: float = 0.5  # of the passes, for phase 1 (order joint)
    first_final: float = 0.7  # where phase 1 leaves its learning rate, of its peak (order joint)
    polish_share: float = 0.0  # of the passes, for a last phase inside low's cells (order joint)
    second_rate: float = 0.7  # learning rate of phase 2 (order joint), relative to learning_rate
    refine_rate: float = 0.2  # learning rate inside low's cells, relative to learning_rate
    steps_per_dispatch: int = 0  # at most; updates in one program launch; 0 chooses by device
    epochs_per_evaluation: int = 1  # validation and checkpoint

    def __post_init__(self) -> None:
        _check_choice("mode", self.mode, MODES)
        _check_choice("order", self.order, ORDERS)
        _check_choice("model", self.model, sorted(MODELS))
        low, high = parse(self.low), parse(self.high)
        refine = self.mode == "two_phase" and self.order == "refine"
        if refine and (low.weights or 99) > (high.weights or 99):
            raise ValueError(
                f"low={self.low} has wider weights than high={self.high}: order=refine puts"
                " high inside low's cells; swap them, or choose --order=joint"
            )
        for name, value in dataclasses.asdict(self).items():
            if isinstance(value, float) and not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name}={value}: expected a finite number, 0 or more")
        if self.steps_per_dispatch < 0:
            raise ValueError(f"steps_per_dispatch={self.steps_per_dispatch}: expected 0 or more")
        for name in ("batch_size", "passes", "epochs_per_evaluation"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)}: expected more than 0")
        for name in (
            "distillation",
            "warmup",
            "label_smoothing",
            "first_share",
            "first_final",
            "polish_share",
        ):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected 0 to 1")
        if self.first_share + self.polish_share >= 1:
            raise ValueError(
                f"first_share={self.first_share} and polish_share={self.polish_share}:"
                " expected a sum below 1, so that the phase of both modes has a share too"
            )


# What a preset changes of the defaults above.
PRESETS: dict[str, dict[str, Any]] = {
    # 7 epochs of high, then 7 of both, each on half of every batch.
    "quick": {
        "model": "resnet8_fast",
        "passes": 14.0,
    },
    # For an accelerator: 200 epochs for each phase.
    "paper": {},
    # The smoke test, seconds on two CPU cores; what --dataset=digits takes by itself.
    "digits": {
        "model": "mlp",
        "batch_size": 64,
        "passes": 120.0,
        "epochs_per_evaluation": 10,
    },
}


def make_config(preset: str, settings: Mapping[str, Any]) -> Config:
    """The preset's values, overridden by `settings`.

    Raises:
      ValueError: unknown preset or field; the message lists the known ones.
    """
    _check_choice("preset", preset, sorted(PRESETS))
    known = [field.name for field in dataclasses.fields(Config)]
    for name in settings:
        _check_choice("setting", name, known)
    return Config(**{**PRESETS[preset], **settings})


def read_settings(texts: Sequence[str]) -> dict[str, Any]:
    """["learning_rate=0.2"] -> {"learning_rate": 0.2}, typed as the field is."""
    types = typing.get_type_hints(Config)
    settings = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--set {text!r}: expected name=value")
        _check_choice("setting", name, sorted(types))
        try:
            settings[name] = _read(types[name], value)
        except (ValueError, KeyError):
            raise ValueError(
                f"--set {text!r}: expected a value of type {types[name].__name__}"
            ) from None
    return settings


def _read(kind: type, text: str) -> Any:
    """As `kind(text)`, but "true" and "false" for bool, which takes any text for true."""
    if kind is bool:
        return {"true": True, "false": False}[text.lower()]
    return kind(text)


def _check_choice(what: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ValueError(f"{what} {value!r} is unknown: expected one of {list(known)}")
