"""The configuration of a run on text, and its presets."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from dual_precision.models import TEXT_MODELS, build
from dual_precision.precision import Modes
from dual_precision.training.methods.modes import Split
from experiments.recipes.choice import RECIPES, resolve
from experiments.recipes.cyclic import BOUNDS
from experiments.recipes.recipe import Recipe
from experiments.recipes.run_config import RunConfig, assembled
from experiments.recipes.settings import check_choice, check_model
from experiments.recipes.two_phase import TwoPhase

# Of a supernet: the search, which is what one is trained for, reads images alone.
_MODES_OF_IMAGES = ("bsq", "supernet")
TEXT_MODES = tuple(name for name in RECIPES if name not in _MODES_OF_IMAGES)
ADAM: dict[str, Any] = {"optimizer": "adam", "learning_rate": 3e-3, "weight_decay": 0.01}
# The bounds of the paper's LSTM: 5 to 8 bits.
BOUNDS_OF_TEXT: Mapping[str, Any] = {"low": "w5a5g8", "high": "w8a8g8"}
_DEFAULT = TwoPhase(**ADAM)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LanguageConfig(RunConfig):
    """One run on text."""

    low: str = "w2a8"
    model: str = "transformer"
    dataset: str = "austen"  # or the path of a file
    batch_size: int = 16  # windows
    features: int = 128  # of the embedding and of every layer
    depth: int = 4  # layers, or blocks
    context: int = 128  # bytes of a window
    epoch_bytes: int = 1 << 18  # that an epoch reads
    recipe: Recipe = _DEFAULT

    def __post_init__(self) -> None:
        _check_mode(self.mode)
        check_model(self.model, reads="text")
        for name in ("features", "depth", "context", "epoch_bytes"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)}: expected more than 0")
        if self.recipe.label_smoothing:
            raise ValueError(f"label_smoothing={self.recipe.label_smoothing}: expected 0 on text")
        super().__post_init__()
        losses = [phase.loss for phase in self.recipe.phases()]
        taught = any(isinstance(loss, Split) and loss.teacher for loss in losses)
        if taught and hasattr(self._built(), "empty_carry"):
            raise ValueError(
                f"distillation on split batches of model {self.model!r}: high has not seen what"
                " came before the rows of low; expected split=false with it, or model 'transformer'"
            )

    @classmethod
    def defaults_of(cls, recipe: type[Recipe]) -> dict[str, Any]:
        """Adam; of recipes with bounds for images, those for text."""
        own = super().defaults_of(recipe)
        return {**ADAM, **(BOUNDS_OF_TEXT if own == BOUNDS else own)}

    def network(self) -> dict[str, Any]:
        """What `models.build_from` makes the network of."""
        own = {"features": self.features, "depth": self.depth}
        if hasattr(self._built(), "context"):
            own["context"] = self.context
        return {"name": self.model, **self.modes.to_json(), **own}

    def _built(self) -> Any:
        """The network with what every network of text is given; what else it has, it is asked."""
        return build(self.model, modes=self.modes, features=self.features, depth=self.depth)


# What a preset changes of the defaults. `quick` is for two CPU cores, `paper` for an accelerator,
# `smoke` for tests and a first look.
PRESETS_OF_TEXT: dict[str, dict[str, Any]] = {
    # Windows of 8: of two runs of high that read 524 KB each, by validation, 2.36 bits per byte
    # where 16 have 2.55, at the same learning rate; twice the rate, 2.43.
    "quick": {"passes": 24.0, "batch_size": 8},
    "paper": {"passes": 400.0, "batch_size": 64, "epoch_bytes": 1 << 22},
    "smoke": {"passes": 4.0, "features": 32, "depth": 1, "context": 32, "epoch_bytes": 1 << 13},
}
# What a preset changes for one network, beside that.
_OF_ONE_MODEL: dict[tuple[str, str], dict[str, Any]] = {
    ("quick", "lstm"): {"passes": 12.0, "context": 64, "batch_size": 32},
    ("paper", "lstm"): {"features": 1024, "depth": 2},
    ("paper", "transformer"): {"features": 512, "depth": 8, "context": 512},
}


def text_preset(preset: str, model: str) -> dict[str, Any]:
    """Field -> value of a preset with this network; its sizes, if nothing else is said.

    Raises:
      ValueError: an unknown preset, or no network of text.
    """
    check_choice("preset", preset, sorted(PRESETS_OF_TEXT))
    check_model(model, reads="text")
    plain = TEXT_MODELS[model](modes=Modes())
    sizes = {"features": plain.features, "depth": plain.depth}
    return {**sizes, **PRESETS_OF_TEXT[preset], **_OF_ONE_MODEL.get((preset, model), {})}


def make_language_config(preset: str, settings: Mapping[str, Any]) -> LanguageConfig:
    """The values of a preset, overridden by `settings`: fields of a run and of its recipe.

    Raises:
      ValueError: unknown preset, model, mode or field; a value of another type.
    """
    model = settings.get("model", LanguageConfig.model)
    return language_config_from({**text_preset(preset, model), **settings})


def language_config_from(values: Mapping[str, Any]) -> LanguageConfig:
    """The config that `values` ask for; others by default. Errors as `make_language_config`."""
    _check_mode(values.get("mode", LanguageConfig.mode))
    return assembled(LanguageConfig, resolve(values), values)


def _check_mode(mode: str) -> None:
    """Raises ValueError unless it is one of text; `resolve` would offer those of images too."""
    if mode in _MODES_OF_IMAGES:
        raise ValueError(
            f"mode {mode!r} is of images, and this is a run on text: expected one of"
            f" {list(TEXT_MODES)}, or the command `python -m experiments.cifar`"
        )
    check_choice("mode", mode, TEXT_MODES)
