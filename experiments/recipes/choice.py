"""Which recipe a run asks for: the table of all of them, and what `--mode` and `--order` choose."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from experiments.recipes.bsq import Bsq
from experiments.recipes.cyclic import Cyclic, Static
from experiments.recipes.recipe import Recipe
from experiments.recipes.settings import check_choice, check_type
from experiments.recipes.single import Float, High, Low, Truncate
from experiments.recipes.supernet import SupernetRecipe
from experiments.recipes.two_phase import Joint, Refine, TwoPhase

# mode -> order -> class. "" is the order of a recipe that has none; the first is the default.
RECIPES: dict[str, dict[str, type[Recipe]]] = {
    "float": {"": Float},
    "low": {"": Low},
    "high": {"": High},
    "truncate": {"": Truncate},
    "joint": {"": Joint},
    "two_phase": {"joint": TwoPhase, "refine": Refine},
    "static": {"": Static},
    "cyclic": {"": Cyclic},
    "bsq": {"": Bsq},
    "supernet": {"": SupernetRecipe},
}


class Chosen(NamedTuple):
    """A recipe, and the names that choose it."""

    mode: str
    order: str  # "" where the recipe has none
    recipe: type[Recipe]


def resolve(values: Mapping[str, Any]) -> Chosen:
    """The recipe that the values of a config ask for, by their mode and order, or the defaults.

    Raises:
      ValueError: an unknown one, or an order for a recipe that has none.
    """
    mode, order = values.get("mode", "two_phase"), values.get("order", "")
    for name, value in (("mode", mode), ("order", order)):
        check_type(name, value, str)
    check_choice("mode", mode, list(RECIPES))
    orders = RECIPES[mode]
    if order and "" in orders:
        having = " or ".join(repr(name) for name, own in RECIPES.items() if "" not in own)
        raise ValueError(f"order={order!r} with mode {mode!r}: expected mode {having}, or none")
    order = order or next(iter(orders))
    check_choice("order", order, list(orders))
    return Chosen(mode, order, orders[order])
