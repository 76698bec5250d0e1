"""The study's matrix as data: which networks are trained, and which of them a table row reads.

A cell is one training run, a Config with a name. An entry is one row of a table for one seed: for
each mode, the cell and the row of its results that the accuracy is read from. Entries share
cells: a twin of w2a2 is the same network whatever the high mode of the pair.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from dual_precision.precision import parse
from experiments.recipes.config import Config, make_config
from experiments.recipes.recipes import fields_without_effect, passes_of

Pair = tuple[str, str]  # what low and high mean


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of `experiments.cifar`; `ablation` cells never read the test set."""

    name: str
    config: Config
    ablation: bool = False


@dataclasses.dataclass(frozen=True)
class Entry:
    """One method on one pair and seed: mode -> (cell, mode in that cell's results)."""

    pair: Pair
    method: str
    seed: int
    sources: Mapping[str, tuple[Cell, str]]

    @property
    def cost(self) -> int:
        """Passes, over the distinct cells it reads."""
        cells = {cell.name: cell for cell, _ in self.sources.values()}
        return sum(passes_of(cell.config) for cell in cells.values())


@dataclasses.dataclass(frozen=True)
class Plan:
    """A study at one scale.

    Attributes:
      preset: of experiments/config.py.
      settings: what the study changes of it.
      main: the pair that runs with every seed and method.
      others: these run with `other_seeds` of the seeds, and without the methods of `main_only`.
    """

    preset: str
    settings: Mapping[str, Any]
    main: Pair
    others: tuple[Pair, ...]
    other_seeds: int | None
    main_only: tuple[str, ...]
    ablations: Mapping[str, "Ablation"]


@dataclasses.dataclass(frozen=True)
class Ablation:
    """What is set otherwise than in the row `against`, which says what the change brings."""

    settings: Mapping[str, Any]
    against: str = "as it is"


OTHERS = (("w2a2", "w4a4"), ("w4a4", "w8a8"), ("w1a4", "w4a4"))
# Of `two_phase --order=joint` on the main pair. Both modes on every batch take two passes an
# epoch, and six passes have no half for that: hence the rows with a third.
_THIRD = {"first_share": 0.33}
_TOGETHER = {**_THIRD, "split": False, "distillation": 0.0}
ABLATIONS: dict[str, Ablation] = {
    "as it is": Ablation({}),
    "no phase 1: split batches from the start": Ablation({"mode": "joint"}),
    "phase 1 a sixth of the passes": Ablation({"first_share": 0.17}),
    "phase 1 a third": Ablation(_THIRD),
    "a third, then both modes on every batch": Ablation(_TOGETHER, "phase 1 a third"),
    "the same, low distilled from high": Ablation(
        {**_THIRD, "split": False}, "a third, then both modes on every batch"
    ),
}
_MAIN_ONLY = ("float", "half-batch twins", "joint split")
PLANS: dict[str, Plan] = {
    # 258 passes, two to three hours on two CPU cores.
    "quick": Plan("quick", {"passes": 6.0}, ("w2a2", "w8a8"), OTHERS, 1, _MAIN_ONLY, ABLATIONS),
    # For an accelerator.
    "paper": Plan("paper", {}, ("w2a2", "w8a8"), OTHERS, None, (), ABLATIONS),
    # Tries the machinery in minutes; nothing is learned from 1,797 digits.
    "digits": Plan(
        "digits", {"dataset": "digits", "passes": 24.0}, ("w2a2", "w8a8"), (), None, (), {}
    ),
}


def twin(base: Config, width: str, seed: int, kind: str = "twin", **settings) -> Cell:
    """One width trained alone. Its config does not depend on the pair that it is a twin in."""
    config = _config(base, (width, width), seed, mode="high", **settings)
    return Cell(f"{kind}-{width}-seed{seed}", config)


def _config(base: Config, pair: Pair, seed: int, **settings) -> Config:
    """A cell's config; what has no effect on its recipe has its default, whatever `base` says."""
    config = dataclasses.replace(base, low=pair[0], high=pair[1], seed=seed, **settings)
    idle = {name: getattr(Config(), name) for name in fields_without_effect(config)}
    return dataclasses.replace(config, **idle)


def _both(base: Config, pair: Pair, seed: int, mode: str, **settings) -> dict:
    """Low and high of one network."""
    marks = [name if value is True else value for name, value in settings.items() if value]
    name = "-".join([mode, *marks, *pair, f"seed{seed}"])
    cell = Cell(name, _config(base, pair, seed, mode=mode, **settings))
    return {"low": (cell, "low"), "high": (cell, "high")}


def _float(base: Config, pair: Pair, seed: int) -> dict:
    config = _config(base, (base.low, base.high), seed, mode="float")
    return {"float": (Cell(f"float-seed{seed}", config), "float")}


def _twins(base: Config, pair: Pair, seed: int) -> dict:
    # The high twin is the network that `truncate` cuts: trained once for a pair, read twice.
    high = _both(base, pair, seed, "truncate")["high"]
    return {"low": (twin(base, pair[0], seed), "high"), "high": high}


def _long_twins(base: Config, pair: Pair, seed: int) -> dict:
    return _alone(base, pair, seed, "long_twin", passes=2 * base.passes)


def _half_batch_twins(base: Config, pair: Pair, seed: int) -> dict:
    """The twins' cost, and as many updates as a phase of split batches has: what those alone do."""
    return _alone(base, pair, seed, "twin-half_batch", batch_size=base.batch_size // 2)


def _alone(base: Config, pair: Pair, seed: int, kind: str, **settings) -> dict:
    low, high = (twin(base, width, seed, kind, **settings) for width in pair)
    return {"low": (low, "high"), "high": (high, "high")}


METHODS: dict[str, Callable[[Config, Pair, int], dict]] = {
    "float": _float,
    "twins": _twins,
    "half-batch twins": _half_batch_twins,
    "long twins": _long_twins,
    "truncate": lambda base, pair, seed: _both(base, pair, seed, "truncate"),
    # As published: every batch goes through both modes.
    "joint": lambda base, pair, seed: _both(base, pair, seed, "joint", split=False),
    "joint split": lambda base, pair, seed: _both(base, pair, seed, "joint", split=True),
    "two_phase refine": lambda base, pair, seed: _both(
        base, pair, seed, "two_phase", order="refine"
    ),
    "two_phase joint": lambda base, pair, seed: _both(base, pair, seed, "two_phase", order="joint"),
}


def base_config(plan: Plan, settings: Mapping[str, Any]) -> Config:
    """The config that every cell starts from.

    Raises:
      ValueError: a setting that the matrix itself decides, or an unknown one.
    """
    own = sorted({"mode", "order", "low", "high", "seed"} & set(settings))
    if own:
        raise ValueError(
            f"--set {own[0]}=...: the study sets it itself, cell by cell; choose rows with --pairs,"
            " --methods and --seeds"
        )
    return make_config(plan.preset, {**plan.settings, **settings})


def entries(
    plan: Plan, base: Config, seeds: int, pairs: Sequence[Pair], methods: Iterable[str]
) -> list[Entry]:
    """Every row of the tables, seed by seed, the main pair first."""
    rows = []
    for pair in pairs:
        own = seeds if pair == plan.main or plan.other_seeds is None else plan.other_seeds
        rows += [
            Entry(pair, method, seed, METHODS[method](base, pair, seed))
            for seed in range(min(own, seeds))
            for method in methods
            if pair == plan.main or method not in plan.main_only
        ]
    return rows


def ablation_cells(plan: Plan, base: Config) -> dict[str, Cell]:
    """What each option of the main method brings: seed 0, judged on validation alone."""
    cells = {}
    rows = (METHODS[name](base, plan.main, 0) for name in ("two_phase joint", "joint split"))
    known = {row["low"][0].config: row["low"][0] for row in rows}  # trained for the tables anyway
    for title, ablation in plan.ablations.items():
        settings = ablation.settings
        method = {"mode": "two_phase", "order": "joint", **settings}
        config = _config(base, plan.main, 0, **method)
        name = "-".join(["ablation", *(f"{key}={value}" for key, value in settings.items())])
        cells[title] = known.get(config) or Cell(name, config, ablation=True)
    return cells


def cells_of(rows: Iterable[Entry], ablations: Iterable[Cell]) -> list[Cell]:
    """Each distinct cell once, in the order in which they are first read."""
    found: dict[str, Cell] = {}
    for cell in [*(c for row in rows for c, _ in row.sources.values()), *ablations]:
        assert found.setdefault(cell.name, cell).config == cell.config, cell.name
    return list(found.values())


def read_pairs(text: str) -> list[Pair]:
    """ "w2a2/w8a8,w4a4/w8a8" -> pairs.

    Raises:
      ValueError: not of that form.
    """
    pairs = []
    for item in text.split(","):
        low, slash, high = item.strip().partition("/")
        if not slash:
            raise ValueError(f"--pairs {item!r}: expected low/high, as in w2a2/w8a8")
        pairs.append((str(parse(low)), str(parse(high))))
    return pairs
