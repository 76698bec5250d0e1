"""The configuration of a training run: fields that every run has, and those of its recipe.

A recipe is chosen by `--mode`, and has fields of its own (experiments/recipes/). A setting that
the chosen recipe does not have is an unknown name.
"""

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from flax.core import FrozenDict

from dual_precision.models import MODELS
from dual_precision.precision import Modes, modes, parse
from dual_precision.training.phases import check_recipe
from experiments.recipes.bsq import Bsq
from experiments.recipes.cyclic import Cyclic, Static
from experiments.recipes.recipe import Recipe
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

LayerWidths = FrozenDict[str, FrozenDict[str, str]]  # layer or pattern -> mode -> "w4a4"
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
        for name in ("batch_size", "epochs_per_evaluation", "accumulate"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)}: expected more than 0")
        if self.steps_per_dispatch < 0:
            raise ValueError(f"steps_per_dispatch={self.steps_per_dispatch}: expected 0 or more")
        if bool(self.mean) != bool(self.std):
            raise ValueError(f"mean={self.mean!r} and std={self.std!r}: expected both or none")
        for name in ("mean", "std"):
            read_channels(name, getattr(self, name))
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed={self.seed}: expected 0 to 2^32 - 1, what makes a key")
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


def read_channels(name: str, text: str) -> tuple[float, ...]:
    """The numbers in a text such as "0.485,0.456,0.406"; none of "".

    Raises:
      ValueError: something else than numbers from 0 to 1; a deviation of 0.
    """
    try:
        values = tuple(float(part) for part in text.split(",")) if text else ()
    except ValueError:
        values = (-1.0,)
    if not all(0 <= value <= 1 and (value or name == "mean") for value in values):
        raise ValueError(
            f"{name}={text!r:.99}: expected a number for each channel, in units where white is 1,"
            " as in 0.485,0.456,0.406"
        )
    return values


def check_type(name: str, value: Any, kind: Any) -> None:
    """Raises ValueError unless a field of this type can have the value; a float can be whole."""
    parts = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    kinds = [typing.get_origin(part) or part for part in parts]
    if type(value) not in (*kinds, *([int] if float in kinds else [])):
        names = " or ".join(part.__name__ for part in kinds)
        raise ValueError(f"{name}={value!r:.99}: expected a value of type {names}")


def every_field(config: type = Config) -> dict[str, Any]:
    """Name -> type of the fields of such a config, with all recipes together."""
    fields: dict[str, Any] = {}
    for recipe in (*RECIPES.values(), *ORDERS.values()):
        fields |= fields_of(recipe, config)
    return fields


def read_settings(texts: Sequence[str]) -> dict[str, Any]:
    """["learning_rate=0.2"] -> {"learning_rate": 0.2}, typed as the field is.

    Raises:
      ValueError: a name that no recipe has, or a value of another type.
    """
    return read_settings_as(texts, every_field())


def read_settings_as(texts: Sequence[str], fields: Mapping[str, Any]) -> dict[str, Any]:
    """As `read_settings`, of these fields: name -> type."""
    known = {name: kind for name, kind in fields.items() if name != "widths"}
    settings = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--set {text!r}: expected name=value")
        check_choice("setting", name, sorted(known))
        kinds = [k for k in typing.get_args(known[name]) if k is not types.NoneType]
        kind = kinds[0] if kinds else known[name]
        try:
            settings[name] = _read(kind, value)
        except (ValueError, KeyError):
            raise ValueError(f"--set {text!r}: expected a value of type {kind.__name__}") from None
    return settings


def _read(kind: type, text: str) -> Any:
    """As `kind(text)`, but "true" and "false" for bool, which takes any text for true."""
    if kind is bool:
        return {"true": True, "false": False}[text.lower()]
    return kind(text)


def read_widths(value: Any) -> LayerWidths:
    """Widths of layers from JSON: {layer or pattern: {mode: "w4a4"}}.

    Raises:
      ValueError: it has another form.
    """
    right = isinstance(value, dict) and all(
        isinstance(entry, dict) and all(isinstance(text, str) for text in entry.values())
        for entry in value.values()
    )
    if not right:
        raise ValueError(
            'widths of layers: expected JSON {"layer or pattern": {"mode": "w4a4"}},'
            ' as in {"stage3_*": {"low": "w1a2"}}'
        )
    for entry in value.values():
        for text in entry.values():
            parse(text)
    return FrozenDict({path: FrozenDict(entry) for path, entry in value.items()})


def check_choice(what: str, value: str, known: Sequence[str]) -> None:
    """Raises ValueError where `value` is not among the known."""
    if value not in known:
        raise ValueError(f"{what} {value!r} is unknown: expected one of {list(known)}")
