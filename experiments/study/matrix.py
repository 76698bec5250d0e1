"""The study's matrix as data: which networks are trained, and which of them a table row reads.

A run is one training, a Config with a name. An entry is one row of a table for one seed: for each
mode, the run and the row of its results that the accuracy is read from. Entries share runs: a twin
of w2a2 is the same network whatever the high mode of the pair.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from dual_precision.precision import parse
from experiments.recipes.choice import resolve
from experiments.recipes.config import PRESETS, Config
from experiments.recipes.run_config import assembled, every_field, fields_of
from experiments.recipes.settings import check_choice
from experiments.study.plans import PLANS, Pair, Plan

Settings = Mapping[str, Any]  # fields of experiments/recipes/ by name
REESTIMATED = 20  # batches that the row "truncate re-estimated" estimates its statistics on
# What the matrix decides, run by run.
DECIDED = ("mode", "order", "low", "high", "widths", "seed", "reestimate")


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of `experiments.cifar`.

    Attributes:
      ablation: it never reads the test set.
      fixed: the fields that its row decides, whatever is set.
    """

    name: str
    config: Config
    ablation: bool = False
    fixed: frozenset[str] = frozenset()


Sources = Mapping[str, tuple[Run, str]]  # mode -> (run, mode in that run's results)


@dataclasses.dataclass(frozen=True)
class Entry:
    """One method on one pair and seed."""

    pair: Pair
    method: str
    seed: int
    sources: Sources

    @property
    def cost(self) -> float:
        """Passes, over the distinct runs it reads."""
        runs = {run.name: run for run, _ in self.sources.values()}
        return sum(run.config.recipe.cost for run in runs.values())


@dataclasses.dataclass(frozen=True)
class Matrix:
    """What one study trains and reads.

    Attributes:
      rows: of the tables.
      ablations: title -> its run, and the title that it is compared with.
    """

    preset: str
    rows: Sequence[Entry]
    ablations: Mapping[str, tuple[Run, str]]

    @property
    def runs(self) -> list[Run]:
        """Each distinct run once, in the order in which they are first read."""
        read = [run for row in self.rows for run, _ in row.sources.values()]
        return distinct([*read, *(run for run, _ in self.ablations.values())])

    @property
    def ablation_pair(self) -> Pair | None:
        """What low and high are in the ablations, whichever pairs the tables have."""
        pairs = {(run.config.low, run.config.high) for run, _ in self.ablations.values()}
        assert len(pairs) <= 1, pairs
        return next(iter(pairs), None)


def distinct(runs: Iterable[Run]) -> list[Run]:
    """Each run once, in order."""
    found: dict[str, Run] = {}
    for run in runs:
        assert found.setdefault(run.name, run).config == run.config, run.name
    return list(found.values())


def base_settings(plan: Plan, settings: Settings) -> Settings:
    """What every run starts from: of preset, plan and `settings`, the last that says something.

    Raises:
      ValueError: a setting that the matrix itself decides, or a name that no recipe has.
    """
    for name in settings:
        if name in DECIDED:
            raise ValueError(
                f"--set {name}=...: the study sets it itself, run by run; choose rows with"
                " --pairs, --methods and --seeds"
            )
        check_choice("setting", name, sorted(every_field(Config)))
    return {**PRESETS[plan.preset], **plan.settings, **settings}


def config_of(
    base: Settings, pair: Pair, seed: int, mode: str, order: str = "", **own: Any
) -> Config:
    """The config of a run: its own settings, and what its recipe has a use for of the base."""
    chosen = resolve({"mode": mode, "order": order})
    known = fields_of(chosen.recipe, Config)
    values = {name: value for name, value in base.items() if name in known}
    values |= {"low": pair[0], "high": pair[1], "seed": seed, **own}
    return assembled(Config, chosen, values)


def twin(base: Settings, width: str, seed: int, kind: str = "twin", **own: Any) -> Run:
    """One width trained alone. Its config does not depend on the pair that it is a twin in."""
    config = config_of(base, (width, width), seed, "high", **own)
    return Run(f"{kind}-{width}-seed{seed}", config)


def _both(base: Settings, pair: Pair, seed: int, kind: str, mode: str, **own: Any) -> Sources:
    """Low and high of one network."""
    name = "-".join([kind, *pair, f"seed{seed}"])
    run = Run(name, config_of(base, pair, seed, mode, **own), fixed=frozenset(own))
    return {"low": (run, "low"), "high": (run, "high")}


def _float(base: Settings, pair: Pair, seed: int) -> Sources:
    del pair  # the same network for all of them
    config = config_of(base, (Config.low, Config.high), seed, "float")
    return {"float": (Run(f"float-seed{seed}", config), "float")}


def _twins(base: Settings, pair: Pair, seed: int) -> Sources:
    # The high twin is the network that `truncate` cuts: trained once for a pair, read twice.
    high = _truncate(base, pair, seed)["high"]
    return {"low": (twin(base, pair[0], seed), "high"), "high": high}


def _half_batch_twins(base: Settings, pair: Pair, seed: int) -> Sources:
    """The cost of the twins, and twice the updates, as split batches have: what these alone do."""
    size = twin(base, pair[0], seed).config.batch_size // 2
    return _alone(base, pair, seed, "twin-half_batch", batch_size=size)


def _long_twins(base: Settings, pair: Pair, seed: int) -> Sources:
    passes = 2 * twin(base, pair[0], seed).config.recipe.passes
    return _alone(base, pair, seed, "long_twin", passes=passes)


def _alone(base: Settings, pair: Pair, seed: int, kind: str, **own: Any) -> Sources:
    low, high = (twin(base, width, seed, kind, **own) for width in pair)
    return {"low": (low, "high"), "high": (high, "high")}


def _truncate(base: Settings, pair: Pair, seed: int) -> Sources:
    return _both(base, pair, seed, "truncate", "truncate")


def _truncate_reestimated(base: Settings, pair: Pair, seed: int) -> Sources:
    """The same high twin, trained once more: the cut and the estimate are events at its end."""
    return _both(base, pair, seed, "truncate-reestimated", "truncate", reestimate=REESTIMATED)


def _joint(base: Settings, pair: Pair, seed: int) -> Sources:
    """As published: every batch goes through both modes."""
    return _both(base, pair, seed, "joint", "joint", split=False)


def _joint_split(base: Settings, pair: Pair, seed: int) -> Sources:
    return _both(base, pair, seed, "joint-split", "joint", split=True)


def _refine(base: Settings, pair: Pair, seed: int) -> Sources:
    return _both(base, pair, seed, "two_phase-refine", "two_phase", order="refine")


def _two_phase(base: Settings, pair: Pair, seed: int) -> Sources:
    return _both(base, pair, seed, "two_phase-joint", "two_phase", order="joint")


METHODS: dict[str, Callable[[Settings, Pair, int], Sources]] = {
    "float": _float,
    "twins": _twins,
    "half-batch twins": _half_batch_twins,
    "long twins": _long_twins,
    "truncate": _truncate,
    "truncate re-estimated": _truncate_reestimated,
    "joint": _joint,
    "joint split": _joint_split,
    "two_phase refine": _refine,
    "two_phase joint": _two_phase,
}


def entries(
    plan: Plan, base: Settings, seeds: int, pairs: Sequence[Pair], methods: Iterable[str]
) -> list[Entry]:
    """Every row of the tables, seed by seed, the main pair first."""
    methods, rows = list(methods), []
    for pair in pairs:
        own = seeds if pair == plan.main or plan.other_seeds is None else plan.other_seeds
        rows += [
            Entry(pair, method, seed, METHODS[method](base, pair, seed))
            for seed in range(min(own, seeds))
            for method in methods
            if pair == plan.main or method not in plan.main_only
        ]
    return rows


def ablation_runs(plan: Plan, base: Settings) -> dict[str, Run]:
    """What each option of the main method brings: seed 0, judged on validation alone."""
    runs = {}
    rows = (METHODS[name](base, plan.main, 0) for name in ("two_phase joint", "joint split"))
    known = {row["low"][0].config: row["low"][0] for row in rows}  # trained for the tables anyway
    for title, ablation in plan.ablations.items():
        own = dict(ablation.settings)
        mode = own.pop("mode", Config.mode)
        config = config_of(base, plan.main, 0, mode, **own)
        changes = (f"{key}={value}" for key, value in ablation.settings.items())
        name = "-".join(["ablation", *changes])
        runs[title] = known.get(config) or Run(name, config, True, frozenset(own))
    return runs


def matrix_of(
    plan: Plan,
    base: Settings,
    seeds: int,
    pairs: Sequence[Pair] | None = None,
    methods: Sequence[str] | None = None,
    ablations: bool | None = None,
) -> Matrix:
    """The rows that are asked for, and ablations: if None, only where the matrix is whole.

    What is asked for by name runs with every seed, whatever the plan leaves out by itself.

    Raises:
      ValueError: an unknown method; ablations of a plan that has none; a setting that some run
        cannot have.
    """
    if ablations and not plan.ablations:
        having = [name for name, own in PLANS.items() if own.ablations]
        raise ValueError(
            f"--ablations with --preset={plan.preset}, whose plan has none: expected one of"
            f" {having}; leave it out, or give another --preset"
        )
    for method in methods or ():
        check_choice("--methods", method, list(METHODS))
    whole = not (pairs or methods)
    if methods:
        plan = dataclasses.replace(plan, main_only=())
    if pairs:
        plan = dataclasses.replace(plan, other_seeds=None)
    rows = entries(plan, base, seeds, pairs or [plan.main, *plan.others], methods or METHODS)
    runs = ablation_runs(plan, base) if (whole if ablations is None else ablations) else {}
    compared = {title: (run, plan.ablations[title].against) for title, run in runs.items()}
    return Matrix(plan.preset, rows, compared)


def check_read(matrix: Matrix, settings: Settings) -> None:
    """Raises ValueError for settings that no run takes: they would change nothing.

    Those of presets and plans are not asked that: they are for all methods, whichever there are."""
    fields = {run: {*fields_of(type(run.config.recipe), Config)} for run in matrix.runs}
    read = {name for own in fields.values() for name in own}
    taken = {name for run, own in fields.items() for name in own - run.fixed}
    for name in settings:
        if name not in taken:
            why, others = "no network reads it", "read it"
            if name in read:
                why, others = "its rows decide it themselves", "leave it open"
            raise ValueError(
                f"--set {name}=... changes nothing in this study, as {why}: expected one of"
                f" {sorted(taken - {*DECIDED})}; leave it out, or choose --methods that {others}"
            )


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
