"""What the configurations of all runs share, on images and on text, and how one is put together.

A recipe is chosen by `--mode`, and has fields of its own (experiments/recipes/). A setting that
the chosen recipe does not have is an unknown name.
"""

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from flax.core import FrozenDict

from dual_precision.precision import FLOAT_BITS, Modes, modes
from dual_precision.training.options import FitOptions
from dual_precision.training.phases import check_recipe
from experiments.recipes.choice import RECIPES, Chosen, resolve
from experiments.recipes.recipe import Recipe
from experiments.recipes.settings import LayerWidths, check_type
from experiments.recipes.two_phase import TwoPhase

_NO_WIDTHS: LayerWidths = FrozenDict()
_DEFAULT = TwoPhase()


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run: the fields that every run has. Those of its recipe are in `recipe`."""

    mode: str = "two_phase"  # name of the recipe
    order: str = ""  # of two_phase: which mode comes first, joint (high) or refine (low)
    low: str  # what precision="low" means
    high: str = "w8a8"  # what precision="high" means
    widths: LayerWidths = _NO_WIDTHS  # of layers that have their own
    stored: int = 8  # bits of the stored grid
    model: str
    dataset: str
    init: str = ""  # a trained network to start from; "" starts from random weights
    seed: int = 0  # initial weights, data order, augmentation
    batch_size: int  # examples of an update
    epochs_per_evaluation: int = 1  # validation and checkpoint
    recipe: Recipe = _DEFAULT

    def __post_init__(self) -> None:
        if self.recipe.starts_trained and not self.init:
            raise ValueError(
                f"mode {self.mode!r} starts from a trained network: expected --init, such as"
                " --init=runs/digits-float-w2a2-w8a8-digits-seed0"
            )
        self.fit_options()  # its errors name the settings too
        check_recipe(self.recipe.phases(), self.modes)
        if {"low", "high"} <= {*self.recipe.reported}:
            self._check_order()

    @classmethod
    def defaults_of(cls, recipe: type[Recipe]) -> dict[str, Any]:
        """Fields that have another default with this recipe."""
        return {**recipe.defaults}

    @property
    def modes(self) -> Modes:
        """What the names of modes mean."""
        return modes(self.widths, stored=self.stored, low=self.low, high=self.high)

    def _check_order(self) -> None:
        """Raises ValueError where low is wider than high in one width, and narrower in none."""
        own = (self.modes.default["low"], self.modes.default["high"])
        pairs = zip(*((p.weight_bits, p.activations or FLOAT_BITS) for p in own), strict=True)
        more = {(low > high) - (low < high) for low, high in pairs}
        if max(more) > 0 and min(more) >= 0:
            raise ValueError(
                f"low={self.low} is wider than high={self.high}, and mode {self.mode!r} makes both:"
                " expected low to be the narrower one; swap --low and --high"
            )

    def fit_options(self) -> FitOptions:
        """How the recipe is run."""
        return FitOptions(
            batch_size=self.batch_size,
            seed=self.seed,
            epochs_per_evaluation=self.epochs_per_evaluation,
        )

    def to_json(self) -> dict[str, Any]:
        """Every field by its name, those of the recipe beside the others; JSON types."""
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        recipe = dataclasses.asdict(own.pop("recipe"))
        own["widths"] = {path: dict(entry) for path, entry in self.widths.items()}
        if not self.order:
            del own["order"]
        return {**own, **recipe}


AnyConfig = TypeVar("AnyConfig", bound=RunConfig)


def fields_of(recipe: type[Recipe], kind: type[RunConfig]) -> dict[str, Any]:
    """Name -> type of every field of such a config that a run with this recipe may set."""
    types: dict[str, Any] = {}
    for part in (kind, recipe):
        known = typing.get_type_hints(part)
        types |= {field.name: known[field.name] for field in dataclasses.fields(part)}
    del types["recipe"]
    return types


def every_field(kind: type[RunConfig]) -> dict[str, Any]:
    """Name -> type of the fields of such a config, with all recipes together."""
    fields: dict[str, Any] = {}
    for orders in RECIPES.values():
        for recipe in orders.values():
            fields |= fields_of(recipe, kind)
    return fields


def assembled(kind: type[AnyConfig], chosen: Chosen, values: Mapping[str, Any]) -> AnyConfig:
    """A config of this class with the chosen recipe, of the values of both; others by default.

    Raises:
      ValueError: a field that the recipe does not have; the message lists the known ones; a value
        of another type.
    """
    mode, order, recipe = chosen
    known = fields_of(recipe, kind)
    for name, value in values.items():
        if name in known:
            check_type(name, value, known[name])
        else:
            raise ValueError(
                f"setting {name!r} is unknown with mode {mode!r}"
                f"{f' and order {order!r}' if order else ''}: expected one of {list(known)}"
            )
    values = {**kind.defaults_of(recipe), **values}
    own = {f.name for f in dataclasses.fields(recipe)}
    record = recipe(**{name: value for name, value in values.items() if name in own})
    rest = {name: value for name, value in values.items() if name not in own}
    return kind(**{**rest, "mode": mode, "order": order, "recipe": record})


def changed_from(config: RunConfig, preset: Mapping[str, Any]) -> dict[str, Any]:
    """Field -> value, of what a run has otherwise than by default with the values of its preset;
    JSON types, in the order of the fields."""
    kind, recipe = type(config), type(config.recipe)
    usual = {f.name: f.default for part in (kind, recipe) for f in dataclasses.fields(part)}
    mode, order, _ = resolve({})
    usual |= {"mode": mode, "order": order, "widths": {}, **kind.defaults_of(recipe), **preset}
    return {name: value for name, value in config.to_json().items() if value != usual[name]}
