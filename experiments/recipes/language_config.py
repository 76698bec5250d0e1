"""The configuration of a run on text: what it shares with runs on images, and its own fields."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from dual_precision.data.text import check_text_name
from dual_precision.precision import Modes, modes
from dual_precision.training.methods.modes import Split
from dual_precision.training.options import FitOptions
from dual_precision.training.phases import check_recipe
from experiments.recipes.config import RECIPES, assembled, config_json, recipe_asked
from experiments.recipes.recipe import Recipe
from experiments.recipes.settings import LayerWidths, check_choice
from experiments.recipes.two_phase import TwoPhase

TEXT_MODELS = ("lstm", "transformer")
TEXT_MODES = tuple(name for name in RECIPES if name != "bsq")
ADAM: dict[str, Any] = {"optimizer": "adam", "learning_rate": 3e-3, "weight_decay": 0.01}
_DEFAULT = TwoPhase(**ADAM)


@dataclasses.dataclass(frozen=True)
class LanguageConfig:
    """One run on text."""

    mode: str = "two_phase"  # name of the recipe
    order: str = ""  # of two_phase: which mode comes first, joint (high) or refine (low)
    low: str = "w2a8"  # what precision="low" means
    high: str = "w8a8"  # what precision="high" means
    widths: LayerWidths = dataclasses.field(default_factory=LayerWidths)  # of layers that have own
    stored: int = 8  # bits of the stored grid
    model: str = "transformer"
    features: int = 128  # of the embedding and of every layer
    depth: int = 4  # layers, or blocks
    dataset: str = "austen"  # or the path of a file
    context: int = 128  # bytes of a window
    epoch_bytes: int = 1 << 18  # that an epoch reads
    seed: int = 0  # initial weights, where windows begin
    batch_size: int = 16  # windows
    epochs_per_evaluation: int = 1  # validation and checkpoint
    recipe: Recipe = _DEFAULT

    def __post_init__(self) -> None:
        check_choice("mode", self.mode, TEXT_MODES)
        check_choice("model", self.model, TEXT_MODELS)
        self.fit_options()  # its errors name the settings too
        for name in ("features", "depth", "context", "epoch_bytes"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)}: expected more than 0")
        if self.recipe.label_smoothing:
            raise ValueError(f"label_smoothing={self.recipe.label_smoothing}: expected 0 on text")
        check_text_name(self.dataset)
        check_recipe(self.recipe.phases(), self.modes)
        losses = [phase.loss for phase in self.recipe.phases()]
        if self.model == "lstm" and any(isinstance(x, Split) and x.teacher for x in losses):
            raise ValueError(
                "distillation on split batches of model 'lstm': high has not seen what came before"
                " the rows of low; expected split=false with it, or model 'transformer'"
            )

    @property
    def modes(self) -> Modes:
        """What the names of modes mean."""
        return modes(self.widths, stored=self.stored, low=self.low, high=self.high)

    def fit_options(self) -> FitOptions:
        """How the recipe is run."""
        return FitOptions(
            batch_size=self.batch_size,
            seed=self.seed,
            epochs_per_evaluation=self.epochs_per_evaluation,
        )

    def to_json(self) -> dict[str, Any]:
        """Every field by its name, those of the recipe beside the others; JSON types."""
        return config_json(self)

    def network(self) -> dict[str, Any]:
        """What `models.build_from` makes the network of."""
        own: dict[str, Any] = {"features": self.features, "depth": self.depth}
        if self.model == "transformer":
            own["context"] = self.context
        return {"name": self.model, **self.modes.to_json(), **own}


# Of each model, what a preset changes of the defaults. `quick` is for two CPU cores, `smoke` for
# tests and a first look.
PRESETS_OF_TEXT: dict[str, dict[str, dict[str, Any]]] = {
    "quick": {
        # Windows of 8: of two runs of high that read 524 KB each, by validation, 2.36 bits per byte
        # where 16 have 2.55, at the same learning rate; twice the rate, 2.43.
        "transformer": {"passes": 24.0, "batch_size": 8},
        "lstm": {"passes": 12.0, "features": 256, "depth": 2, "context": 64, "batch_size": 32},
    },
    "paper": {
        "transformer": {
            **{"passes": 400.0, "features": 512, "depth": 8, "context": 512},
            **{"batch_size": 64, "epoch_bytes": 1 << 22},
        },
        "lstm": {
            **{"passes": 400.0, "features": 1024, "depth": 2, "context": 128},
            **{"batch_size": 64, "epoch_bytes": 1 << 22},
        },
    },
    "smoke": {
        name: {"passes": 4.0, "features": 32, "depth": 1, "context": 32, "epoch_bytes": 1 << 13}
        for name in TEXT_MODELS
    },
}


def make_language_config(preset: str, settings: Mapping[str, Any]) -> LanguageConfig:
    """The values of a preset, overridden by `settings`: fields of a run and of its recipe.

    Raises:
      ValueError: unknown preset, model, mode or field; a value of another type.
    """
    check_choice("preset", preset, sorted(PRESETS_OF_TEXT))
    model = settings.get("model", LanguageConfig.model)
    check_choice("model", model, TEXT_MODELS)
    check_choice("mode", settings.get("mode", LanguageConfig.mode), TEXT_MODES)
    defaults = _defaults_of(recipe_asked(settings))
    return assembled(
        LanguageConfig, {**ADAM, **defaults, **PRESETS_OF_TEXT[preset][model], **settings}
    )


def _defaults_of(recipe: type[Recipe]) -> dict[str, Any]:
    """Of recipes that cycle: the bounds of the paper's LSTM, 5 to 8 bits."""
    return {"low": "w5a5g8", "high": "w8a8g8"} if recipe.defaults else {}
