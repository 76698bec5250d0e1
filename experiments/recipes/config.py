"""The configuration of a training run: fields that every run has, and those of its recipe.

A recipe is chosen by `--mode`, and has fields of its own (experiments/recipes/). A setting that
the chosen recipe does not have is an unknown name.
"""

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from flax.core import FrozenDict

from dual_precision.models import MODELS
from dual_precision.precision import Modes, modes
from dual_precision.training.options import FitOptions
from dual_precision.training.phases import check_recipe
from experiments.recipes.bsq import Bsq
from experiments.recipes.cyclic import Cyclic, Static
from experiments.recipes.recipe import Recipe
from experiments.recipes.settings import LayerWidths, check_choice, check_type, read_channels
from experiments.recipes.single import Float, High, Low, Truncate
from experiments.recipes.supernet import SupernetRecipe
from experiments.recipes.two_phase import Joint, Refine, TwoPhase

RECIPES: dict[str, type[Recipe]] = {
    "float": Float,
    "low": Low,
    "high": High,
    "truncate": Truncate,
    "joint": Joint,
    "two_phase": TwoPhase,
    "static": Static,
    "cyclic": Cyclic,
    "bsq": Bsq,
    "supernet": SupernetRecipe,
}
ORDERS: dict[str, type[Recipe]] = {"joint": TwoPhase, "refine": Refine}
ORDERED, DEFAULT_ORDER = "two_phase", "joint"  # the recipe that has an order

AnyConfig = TypeVar("AnyConfig")
_NO_WIDTHS: LayerWidths = FrozenDict()
_DEFAULT = TwoPhase()


@dataclasses.dataclass(frozen=True)
class Config:
    """One run."""

    mode: str = "two_phase"  # name of the recipe
    order: str = ""  # of two_phase: which mode comes first, joint (high) or refine (low)
    low: str = "w2a2"  # what precision="low" means
    high: str = "w8a8"  # what precision="high" means
    widths: LayerWidths = _NO_WIDTHS  # of layers that have their own
    stored: int = 8  # bits of the stored grid
    model: str = "resnet20"
    skipped: str = ""  # residual blocks that the network leaves out, "stage2_block1 stage3_block1"
    dataset: str = "cifar10"
    init: str = ""  # a trained network to start from; "" starts from random weights
    mean: str = ""  # of pixels per channel, "0.485,0.456,0.406"; "" is that of the training images
    std: str = ""  # likewise; what `init` was trained with, if that is known
    seed: int = 0  # initial weights, data order, augmentation
    batch_size: int = 128
    steps_per_dispatch: int = 0  # at most; updates in one program launch; 0 chooses by device
    epochs_per_evaluation: int = 1  # validation and checkpoint
    accumulate: int = 1  # parts of a batch that run one after the other, to save memory
    recipe: Recipe = _DEFAULT

    def __post_init__(self) -> None:
        check_choice("model", self.model, sorted(MODELS))
        self.fit_options()  # its errors name the settings too
        if bool(self.mean) != bool(self.std):
            raise ValueError(f"mean={self.mean!r} and std={self.std!r}: expected both or none")
        for name in ("mean", "std"):
            read_channels(name, getattr(self, name))
        if self.recipe.starts_trained and not self.init:
            raise ValueError(
                f"mode {self.mode!r} starts from a trained network: expected --init, such as"
                " --init=runs/digits-float-w2a2-w8a8-digits-seed0"
            )
        check_recipe(self.recipe.phases(), self.modes)

    @property
    def modes(self) -> Modes:
        """What the names of modes mean."""
        return modes(self.widths, stored=self.stored, low=self.low, high=self.high)

    def fit_options(self, shard_data: bool = False) -> FitOptions:
        """How the recipe is run."""
        return FitOptions(
            batch_size=self.batch_size,
            seed=self.seed,
            steps_per_dispatch=self.steps_per_dispatch,
            epochs_per_evaluation=self.epochs_per_evaluation,
            accumulate=self.accumulate,
            shard_data=shard_data,
        )

    def to_json(self) -> dict[str, Any]:
        """Every field by its name, those of the recipe beside the others; JSON types."""
        return config_json(self)


def config_json(config: Any) -> dict[str, Any]:
    """Every field of a configuration, those of its recipe beside the others; JSON types."""
    own = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    recipe = dataclasses.asdict(own.pop("recipe"))
    own["widths"] = {path: dict(entry) for path, entry in config.widths.items()}
    if not config.order:
        del own["order"]
    return {**own, **recipe}


# What a preset changes of the defaults.
PRESETS: dict[str, dict[str, Any]] = {
    # 7 epochs of high, then 7 of both, each on half of every batch.
    "quick": {
        "model": "resnet8_fast",
        "passes": 14.0,
    },
    # For an accelerator: 200 epochs for each phase.
    "paper": {},
    # The standard network, from a trained float one: --init=...
    "resnet20": {
        "passes": 60.0,
        "learning_rate": 0.03,
        "step_learning_rate": 0.003,
        "weight_decay": 1e-4,
        "epochs_per_evaluation": 5,
    },
    # The smoke test, seconds on two CPU cores; what --dataset=digits takes by itself.
    "digits": {
        "model": "mlp",
        "batch_size": 64,
        "passes": 120.0,
        "epochs_per_evaluation": 10,
    },
}


def recipe_of(mode: str, order: str = "") -> type[Recipe]:
    """The class of a recipe by name.

    Raises:
      ValueError: an unknown one, or an order for a recipe that has none.
    """
    check_choice("mode", mode, list(RECIPES))
    if mode == ORDERED:
        check_choice("order", order or DEFAULT_ORDER, list(ORDERS))
        return ORDERS[order or DEFAULT_ORDER]
    if order:
        raise ValueError(f"order={order!r} with mode {mode!r}: expected mode {ORDERED!r}, or none")
    return RECIPES[mode]


def fields_of(recipe: type[Recipe], config: type = Config) -> dict[str, Any]:
    """Name -> type of every field of such a config that a run with this recipe may set."""
    types: dict[str, Any] = {}
    for part in (config, recipe):
        known = typing.get_type_hints(part)
        types |= {field.name: known[field.name] for field in dataclasses.fields(part)}
    del types["recipe"]
    return types


def make_config(preset: str, settings: Mapping[str, Any]) -> Config:
    """The values of a preset, overridden by `settings`: fields of Config and of the recipe.

    Raises:
      ValueError: unknown preset or field; the message lists the known ones.
    """
    check_choice("preset", preset, sorted(PRESETS))
    return config_from({**PRESETS[preset], **settings})


def config_from(values: Mapping[str, Any]) -> Config:
    """The Config that `values` ask for, fields of Config and of the recipe; others by default.

    Raises:
      ValueError: a field that the recipe does not have; the message lists the known ones; a value
        of another type.
    """
    return assembled(Config, {**recipe_asked(values).defaults, **values})


def recipe_asked(values: Mapping[str, Any]) -> type[Recipe]:
    """The recipe that the values of a config ask for; ValueError where there is none."""
    mode, order = values.get("mode", Config.mode), values.get("order", "")
    for name, value in (("mode", mode), ("order", order)):
        check_type(name, value, str)
    return recipe_of(mode, order)


def assembled(kind: type[AnyConfig], values: Mapping[str, Any]) -> AnyConfig:
    """A config of this class, its recipe in it, of the values of both; errors as `config_from`."""
    recipe = recipe_asked(values)
    mode = values.get("mode", Config.mode)
    order = values.get("order", "") or (DEFAULT_ORDER if mode == ORDERED else "")
    known = fields_of(recipe, kind)
    for name, value in values.items():
        if name in known:
            check_type(name, value, known[name])
        else:
            raise ValueError(
                f"setting {name!r} is unknown with mode {mode!r}"
                f"{f' and order {order!r}' if order else ''}: expected one of {list(known)}"
            )
    own = {f.name for f in dataclasses.fields(recipe)}
    record = recipe(**{name: value for name, value in values.items() if name in own})
    rest = {name: value for name, value in values.items() if name not in own}
    return kind(**{**rest, "order": order, "recipe": record})


def every_field(config: type = Config) -> dict[str, Any]:
    """Name -> type of the fields of such a config, with all recipes together."""
    fields: dict[str, Any] = {}
    for recipe in (*RECIPES.values(), *ORDERS.values()):
        fields |= fields_of(recipe, config)
    return fields
