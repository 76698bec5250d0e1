"""Recipes as phases: what each costs, in what order, what it refuses to promise."""

import dataclasses
from typing import Any

import pytest

from dual_precision import modes
from dual_precision.training.initialize import EstimateNorms, FitWeightSteps
from dual_precision.training.methods.bsq import Adjust
from dual_precision.training.methods.cyclic import CYCLE, CyclicLoss
from dual_precision.training.methods.modes import Split, Together
from dual_precision.training.optimizers import RATE, Sgd
from dual_precision.training.phases import Phase, check_recipe, passes_of
from experiments.recipes.choice import RECIPES, resolve
from experiments.recipes.config import PRESETS, make_config
from experiments.recipes.recipe import Recipe, fitted, phase, taken_over
from experiments.recipes.single import Truncate
from experiments.recipes.supernet import SupernetRecipe
from experiments.recipes.two_phase import Refine, TwoPhase

EVERY = [(mode, order) for mode, orders in RECIPES.items() for order in orders]
each_recipe = pytest.mark.parametrize(("mode", "order"), EVERY)


def settings_of(mode: str, order: str = "", **more: Any) -> dict[str, Any]:
    recipe = resolve({"mode": mode, "order": order}).recipe
    init = {"init": "trained"} if recipe.starts_trained else {}
    return {"mode": mode, **({"order": order} if order else {}), **init, **more}


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


@each_recipe
def test_the_passes_of_a_phase_are_those_of_its_loss(mode, order):
    """Of `Together` every mode, of split batches one and what a teacher reads, of others one."""
    for own in made(mode, order).phases():
        loss = own.loss
        said = loss.passes if isinstance(loss, Split | Together) else 1
        assert own.passes == said == passes_of(loss, own.precisions)


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
    if mode == "cyclic" and high == "w8a32":
        pytest.skip("between 2 bits and float there are no widths")
    if mode == "bsq":
        low, high = (f"w32a{text.partition('a')[2]}" for text in (low, high))
    polish = {"polish_share": 0.1} if order == "joint" else {}
    recipe = made(mode, order, low=low, high=high, **polish)
    phases = recipe.phases()
    check_recipe(phases, modes(low=low, high=high))
    trained = {name for phase in phases for name in (*phase.precisions, *phase.reports)}
    assert set(recipe.reported) <= trained
    assert len({phase.name for phase in phases}) == len(phases)


@pytest.mark.parametrize(
    ("passes", "asked", "after"),
    [
        (14.0, None, (2, 4, 5)),
        (14.0, 7, (1, 2, 3, 4, 5, 6)),
        (22.0, 4, (3, 6, 8)),
        (8.0, 1, ()),
        (2.0, None, ()),
    ],
)
def test_bits_are_adjusted_so_many_times_and_the_last_time_at_the_end(passes, asked, after):
    (own,) = made("bsq", "", passes=passes, adjustments=asked).phases()
    between = [event.after for _, event in own.events if isinstance(event, Adjust)]
    assert between == ([after] if after else [])
    assert own.at_end == (Adjust(),)


def test_refine_promises_low():
    first, second = Refine().phases()
    assert first.precisions == ("low",)
    assert second.precisions == ("high",)
    assert second.optimizer == Sgd(weight_decay=Refine().weight_decay, protect="low")
    kinds = {type(event) for event in second.at_start}
    assert FitWeightSteps not in kinds, "another step would be another grid for low"


def test_low_may_have_most_of_the_passes_before_high_is_refined():
    low, refine = Refine(passes=42, low_share=0.9).phases()
    assert (low.epochs, refine.epochs) == (38, 4)
    low, refine = Refine(passes=42).phases()
    assert (low.epochs, refine.epochs) == (21, 21)


@pytest.mark.parametrize(
    ("recipe", "field", "value", "instead"),
    [
        (TwoPhase, "first_share", 0.0, "joint"),
        (Refine, "low_share", 0.0, "high"),
        (Refine, "low_share", 1.0, "low"),
    ],
)
def test_a_phase_without_a_share_is_another_recipe(recipe, field, value, instead):
    """It would have an epoch all the same, as a small share has."""
    with pytest.raises(ValueError, match=f"{field}={value}: expected more .* --mode={instead}$"):
        recipe(**{field: value})
    assert recipe(passes=2.0, **{field: 0.01}).phases()[0].epochs == 1


def test_low_learns_from_high_where_that_costs_nothing_or_where_it_is_asked_for():
    def loss(**settings) -> Split | Together:
        return TwoPhase(**settings).phases()[1].loss

    assert loss() == Split(("high", "low"))
    assert loss(distillation=0.25) == Split(("high", "low"), "high", 0.25)
    assert loss(split=False) == Together(("high", "low"), "high", 0.5)
    assert loss(split=False, distillation=0.25) == Together(("high", "low"), "high", 0.25)
    assert loss(split=False, distillation=0.0) == Together(("high", "low"))


def test_the_fair_baseline_estimates_again_after_the_cut():
    """The statistics belong to the weights that are left, and come after all else is set."""
    (plain,), (fair,) = Truncate().phases(), Truncate(reestimate=20).phases()
    assert plain.at_end == taken_over("low", "high")
    assert fair.at_end == (*plain.at_end, EstimateNorms("low", 20))
    assert repr(dataclasses.replace(fair, at_end=plain.at_end)) == repr(plain), "the same high twin"


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
        refining(at_start=fitted("high", grid="medium")),
        refining(at_end=taken_over("low", "medium")),
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
        {"at_start": fitted("low", grid="low") + taken_over("float", "high")},
    ],
    ids=str,
)
def test_phases_that_contradict_themselves(arguments):
    plain = phase(Refine(), "p", 1, ("high",))
    with pytest.raises(ValueError, match=r"phase 'p'"):
        check_recipe((dataclasses.replace(plain, **arguments),), modes(low="w2a2", high="w8a8"))


def test_cycles_swing_between_the_modes():
    """And have a twin that differs in nothing else."""
    (cyclic,), (static,) = made("cyclic").phases(), made("static").phases()
    assert cyclic.loss == CyclicLoss("high", "low")
    assert cyclic.schedules.keys() - static.schedules.keys() == {CYCLE}
    for field in ("epochs", "optimizer", "at_start", "reports", "passes"):
        assert getattr(cyclic, field) == getattr(static, field)
    config = make_config("paper", {"mode": "cyclic"})
    assert (config.low, config.high) == ("w3a3g8", "w8a8g8"), "the bounds of the paper"
    assert make_config("paper", {"mode": "cyclic", "low": "w4a4g8"}).low == "w4a4g8"


def test_phase_1_may_swing():
    first, second = made("two_phase", "joint", cycles=8).phases()
    plain = made("two_phase", "joint").phases()
    assert first.loss == CyclicLoss("high", "low")
    assert first.schedules[CYCLE].keywords == {"cycles": 8}
    assert repr(second) == repr(plain[1])
    assert repr(dataclasses.replace(first, loss=plain[0].loss, schedules={})) == repr(
        dataclasses.replace(plain[0], schedules={})
    )


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


def test_choices_of_single_layers():
    recipe = SupernetRecipe(own_choices="stem:w4a32,w8a32 stage2_conv:w2a2")
    assert recipe.own_lists() == {"stem": ("w4a32", "w8a32"), "stage2_conv": ("w2a2",)}
    for text in ("w4a32", ":w4a32", "stem:"):
        with pytest.raises(ValueError, match="expected a layer and its choices"):
            SupernetRecipe(own_choices=text).phases()
