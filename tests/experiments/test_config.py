"""Configuration and recipes: what each costs, what it refuses, which settings it has."""

import dataclasses
import json
from typing import Any

import pytest

from dual_precision import modes
from dual_precision.training.initialize import EstimateNorms, FitWeightSteps
from dual_precision.training.methods.modes import Split, Together
from dual_precision.training.optimizers import RATE, Sgd
from dual_precision.training.phases import Phase, check_recipe
from experiments.recipes.config import (
    ORDERED,
    ORDERS,
    PRESETS,
    RECIPES,
    Config,
    config_from,
    every_field,
    fields_of,
    make_config,
    read_settings,
    read_widths,
    recipe_of,
)
from experiments.recipes.recipe import Recipe, fitted, phase, taken_over
from experiments.recipes.single import Truncate
from experiments.recipes.two_phase import Joint, Refine, TwoPhase

EVERY = [
    *((mode, "") for mode in RECIPES if mode != ORDERED),
    *((ORDERED, order) for order in ORDERS),
]
each_recipe = pytest.mark.parametrize(("mode", "order"), EVERY)


def settings_of(mode: str, order: str = "", **more: Any) -> dict[str, Any]:
    return {"mode": mode, **({"order": order} if order else {}), **more}


def made(mode: str, order: str = "", **settings: Any) -> Recipe:
    return make_config("paper", settings_of(mode, order, **settings)).recipe


# -- recipes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", PRESETS)
def test_dual_networks_and_twins_together_cost_the_same(preset):
    """What every comparison of them rests on."""

    def spent(mode: str, order: str = "") -> float:
        return make_config(preset, settings_of(mode, order)).recipe.cost

    passes = make_config(preset, {}).recipe.passes
    assert spent("two_phase") == spent("two_phase", "refine") == spent("joint") == passes
    assert spent("low") + spent("high") == passes
    assert spent("float") == spent("truncate") == spent("high")


@each_recipe
def test_cost_is_the_passes_asked_for_to_within_an_epoch(mode, order):
    for passes in range(6, 60):
        wanted = passes if mode in ("joint", "two_phase") else passes / 2
        assert abs(made(mode, order, passes=float(passes)).cost - wanted) <= 1.5


def test_shares_divide_the_passes():
    for split, epochs in ((False, 25), (True, 50)):
        recipe = TwoPhase(passes=100.0, first_share=0.3, polish_share=0.2, split=split)
        assert [phase.epochs for phase in recipe.phases()] == [30, epochs, 20]
        assert recipe.cost == 100


@pytest.mark.parametrize("passes", [0.1, 1.0, 2.0])
@each_recipe
def test_few_passes_still_run_every_phase(mode, order, passes):
    assert all(phase.epochs >= 1 for phase in made(mode, order, passes=passes).phases())


@each_recipe
@pytest.mark.parametrize(("low", "high"), [("w2a2", "w8a8"), ("w1a1", "w4a4"), ("w2a2", "w8a32")])
def test_recipes_can_run(mode, order, low, high):
    polish = {"polish_share": 0.1} if order == "joint" else {}
    recipe = made(mode, order, low=low, high=high, **polish)
    phases = recipe.phases()
    check_recipe(phases, modes(low=low, high=high))
    trained = {name for phase in phases for name in (*phase.precisions, *phase.reports)}
    assert set(recipe.reported) <= trained
    assert len({phase.name for phase in phases}) == len(phases)


def test_refine_promises_low():
    first, second = Refine().phases()
    assert first.precisions == ("low",)
    assert second.precisions == ("high",)
    assert second.optimizer == Sgd(weight_decay=Refine().weight_decay, protect="low")
    kinds = {type(event) for event in second.start}
    assert FitWeightSteps not in kinds, "another step would be another grid for low"


def test_low_learns_from_high_where_both_see_the_same_images():
    def loss(**settings) -> Split | Together:
        return TwoPhase(**settings).phases()[1].loss

    assert loss() == Split(("high", "low"))
    assert loss(split=False) == Together(("high", "low"), "high", 0.5)
    assert loss(split=False, distillation=0.25) == Together(("high", "low"), "high", 0.25)
    assert loss(split=False, distillation=0.0) == Together(("high", "low"))


def test_the_fair_baseline_estimates_again_after_the_cut():
    """The statistics belong to the weights that are left, and come after all else is set."""
    (plain,), (fair,) = Truncate().phases(), Truncate(reestimate=20).phases()
    assert plain.end == taken_over("low", "high")
    assert fair.end == (*plain.end, EstimateNorms("low", 20))
    assert repr(dataclasses.replace(fair, end=plain.end)) == repr(plain), "the same high twin"


def test_recipes_are_refused_that_cannot_keep_their_promise():
    def refining(**more: Any) -> tuple[Phase, ...]:
        return (phase(Refine(), "refine", 1, ("high",), **more),)

    protected = refining(protect="low")
    check_recipe(protected, modes(low="w4a2", high="w4a8"))
    with pytest.raises(ValueError, match="wider weights"):
        check_recipe(protected, modes(low="w8a8", high="w2a2"))
    own = {"classifier": {"low": "w8a8", "high": "w2a2"}}
    with pytest.raises(ValueError, match=r"classifier.*wider"):
        check_recipe(protected, modes(layers=own, low="w2a2", high="w8a8"))
    for wrong in (
        (phase(Refine(), "a", 1, ("medium",)),),
        refining(start=fitted("high", grid="medium")),
        refining(end=taken_over("low", "medium")),
        refining(reports=("medium",)),
        refining(events=((1, FitWeightSteps("medium")),)),
    ):
        with pytest.raises(ValueError, match=r"'medium' is unknown: expected one of"):
            check_recipe(wrong, modes(low="w2a2", high="w8a8"))
    with pytest.raises(ValueError, match="a recipe of no phases"):
        check_recipe((), modes(low="w2a2", high="w8a8"))


@pytest.mark.parametrize(
    "arguments",
    [
        {"epochs": 0},
        {"precisions": ()},
        {"events": ((0, FitWeightSteps("low")),)},
        {"loss": Split(("high",))},
        {"loss": Together(("high",), teacher="high")},
        {"loss": Together(("high",), distillation=0.5)},
        {"loss": Together(("low",), teacher="high", distillation=0.5)},
        {"optimizer": Sgd(protect="high")},
        {"start": fitted("low", grid="low") + taken_over("float", "high")},
    ],
    ids=str,
)
def test_phases_that_contradict_themselves(arguments):
    plain = phase(Refine(), "p", 1, ("high",))
    with pytest.raises(ValueError, match=r"phase 'p'"):
        check_recipe((dataclasses.replace(plain, **arguments),), modes(low="w2a2", high="w8a8"))


def rates_of(recipe: Recipe, updates: int) -> list[float]:
    """The learning rate after every update, from none to all of them; `updates` to the epoch."""
    rates = []
    for stretch in recipe.phases():
        rate = stretch.schedules[RATE](stretch.epochs * updates)
        rates += [float(rate(float(step))) for step in range(stretch.epochs * updates + 1)]
    return rates


def test_learning_rates_rise_and_fall_in_every_phase():
    recipe = Refine(passes=16.0, learning_rate=0.1, refine_rate=0.5, warmup=0.1)
    rates = rates_of(recipe, 10)
    first, second = rates[:81], rates[81:]
    for rates, peak in ((first, 0.1), (second, 0.05)):
        assert rates[0] == 0
        assert rates[8] == max(rates) == pytest.approx(peak)
        assert rates[80] == pytest.approx(0, abs=1e-9)
        assert rates[79] < peak / 100


def test_two_phases_share_one_cycle_of_the_learning_rate():
    """Low joins while the rate is still high, and it goes on from where phase 1 left it."""
    recipe = TwoPhase(passes=16.0)
    rates = rates_of(recipe, 10)
    before, after = rates[80], rates[81]
    assert before == pytest.approx(after, rel=1e-2)
    assert before == pytest.approx(0.07, rel=1e-2)
    assert rates[-1] == pytest.approx(0, abs=1e-9)


# -- settings --------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", PRESETS)
@each_recipe
def test_presets_make_a_config_for_every_recipe(preset, mode, order):
    config = make_config(preset, settings_of(mode, order))
    assert set(PRESETS[preset]) <= set(fields_of(type(config.recipe)))
    check_recipe(config.recipe.phases(), config.modes)


def test_settings_override_the_preset_with_the_type_of_their_field():
    settings = read_settings(["passes=2", "batch_size=32", "model=resnet8"])
    config = make_config("digits", settings)
    assert (config.recipe.passes, config.batch_size, config.model) == (2.0, 32, "resnet8")
    assert isinstance(config.recipe.passes, float)
    several = read_settings(["mode=two_phase", "split=false", "distillation=0.25"])
    assert several == {"mode": "two_phase", "split": False, "distillation": 0.25}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("passes", "expected name=value"),
        ("passes=many", "expected a value of type float"),
        ("batch_size=1.5", "expected a value of type int"),
        ("reestimate=1.5", "expected a value of type int"),
        ("distillation=none", "expected a value of type float"),
        ("split=perhaps", "expected a value of type bool"),
        ("pases=3", r"setting 'pases' is unknown: expected one of \[.*'passes'"),
        ("widths={}", "setting 'widths' is unknown"),
    ],
)
def test_settings_refused(text, says):
    with pytest.raises(ValueError, match=says):
        read_settings([text])


@pytest.mark.parametrize(
    "wrong",
    [
        {"mode": "dual"},
        {"order": "low_first"},
        {"model": "vgg"},
        {"low": "w0a2"},
        {"low": "w9a9"},
        {"high": "a33"},
        {"stored": 9},
        {"stored": 4},
        {"batch_size": 0},
        {"seed": -1},
        {"passes": 0.0},
        {"passes": float("nan")},
        {"passes": float("inf")},
        {"learning_rate": float("nan")},
        {"learning_rate": -0.1},
        {"weight_decay": -1.0},
        {"steps_per_dispatch": -1},
        {"epochs_per_evaluation": 0},
        {"distillation": 1.5, "split": False},
        {"distillation": 0.5},
        {"first_share": 0.8, "polish_share": 0.2},
        {"reestimate": -1, "mode": "truncate"},
        {"low": "w8a8", "high": "w2a2", "order": "refine"},
        {"low": "w32a32", "high": "w8a8", "order": "refine"},
    ],
    ids=str,
)
def test_configs_refused(wrong):
    with pytest.raises(ValueError, match=r"expected|choose") as caught:
        make_config("paper", wrong)
    assert "\n" not in str(caught.value)
    assert str(next(iter(wrong.values()))) in str(caught.value), "says what it got"


def test_unknown_preset_and_field():
    with pytest.raises(ValueError, match=r"preset 'fast' is unknown.*'quick'"):
        make_config("fast", {})
    with pytest.raises(ValueError, match=r"setting 'lr' is unknown.*'learning_rate'"):
        make_config("quick", {"lr": 1})


def test_an_order_is_of_one_recipe_alone():
    with pytest.raises(ValueError, match=r"order='refine' with mode 'low': expected mode 'two_ph"):
        make_config("quick", {"mode": "low", "order": "refine"})
    assert recipe_of("two_phase") is recipe_of("two_phase", "joint") is TwoPhase
    assert recipe_of("joint") is Joint


@pytest.mark.parametrize(
    "settings",
    [
        {"mode": "joint", "split": False},
        {"mode": "truncate", "reestimate": 3, "low": "w1a4"},
        {"order": "refine", "widths": read_widths({"stage3_*": {"low": "w1a2"}})},
        {"split": False, "distillation": 0.25, "stored": 8},
    ],
    ids=lambda settings: "-".join(settings),
)
def test_a_config_comes_back_from_its_json(settings):
    config = make_config("quick", settings)
    told = json.loads(json.dumps(config.to_json()))
    widths = read_widths(told.pop("widths"))
    assert config_from({**told, "widths": widths}) == config
    assert hash(config) == hash(make_config("quick", settings))


# -- a recipe has its own fields -------------------------------------------------------------------

# Another value for every field that only a recipe has.
ALTERNATIVES: dict[str, Any] = {"reestimate": 2, "split": False, "passes": 50.0}


def alternative(name: str) -> Any:
    return ALTERNATIVES.get(name, 0.25)


@each_recipe
def test_every_field_of_a_recipe_changes_what_it_does(mode, order):
    """None is idle. `label_smoothing` is told to the task, see experiments/cifar.py."""
    recipe = recipe_of(mode, order)
    needs = {"distillation": {"split": False}, "refine_rate": {"polish_share": 0.1}}
    fields = [field for field in dataclasses.fields(recipe) if field.name != "label_smoothing"]
    for field in fields:
        start = needs.get(field.name, {}) if recipe is TwoPhase else {}
        plain = recipe(**start)
        changed = recipe(**start, **{field.name: alternative(field.name)})
        assert repr(plain.phases()) != repr(changed.phases()), field.name


@each_recipe
def test_a_field_of_another_recipe_is_unknown(mode, order):
    own = fields_of(recipe_of(mode, order))
    others = set(every_field()) - set(own) - {"order"}
    for name in others:
        with pytest.raises(ValueError, match=f"setting '{name}' is unknown with mode '{mode}'"):
            make_config("paper", settings_of(mode, order, **{name: alternative(name)}))


@each_recipe
def test_low_may_be_wider_where_nothing_is_refined(mode, order):
    if order != "refine":
        make_config("paper", settings_of(mode, order, low="w8a8", high="w2a2"))


def test_the_defaults_are_a_config():
    assert dataclasses.replace(Config(), order="joint") == make_config("paper", {})
