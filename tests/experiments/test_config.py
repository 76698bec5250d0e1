"""Configuration and recipes: what each costs, what it refuses, which settings it reads."""

import dataclasses
import itertools

import pytest
from experiments.recipes.recipes import RECIPES, fields_without_effect, reported_modes

from dual_precision import modes
from dual_precision.training.phases import Phase, Preparation, check_recipe
from dual_precision.training.schedules import joined, phase_starts
from experiments.recipes.config import MODES, ORDERS, PRESETS, Config, make_config, read_settings

EVERY = [
    *((mode, "joint") for mode in MODES if mode != "two_phase"),
    *(("two_phase", order) for order in ORDERS),
]


def cost(recipe: tuple[Phase, ...]) -> int:
    """In passes: epochs times modes run."""
    return sum(phase.epochs * phase.passes_per_epoch for phase in recipe)


def recipe_of(mode: str, order: str = "joint", **settings) -> tuple[Phase, ...]:
    return RECIPES[mode](Config(mode=mode, order=order, **settings))


# -- recipes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", PRESETS)
def test_dual_networks_and_twins_together_cost_the_same(preset):
    """What every comparison of them rests on."""

    def spent(mode: str, order: str = "joint") -> int:
        return cost(RECIPES[mode](make_config(preset, {"mode": mode, "order": order})))

    passes = make_config(preset, {}).passes
    assert spent("two_phase") == spent("two_phase", "refine") == spent("joint") == passes
    assert spent("low") + spent("high") == passes
    assert spent("float") == spent("truncate") == spent("high")


@pytest.mark.parametrize(("mode", "order"), EVERY)
def test_cost_is_the_passes_asked_for_to_within_an_epoch(mode, order):
    for passes in range(6, 60):
        wanted = passes if mode in ("joint", "two_phase") else passes / 2
        assert abs(cost(recipe_of(mode, order, passes=float(passes))) - wanted) <= 1.5


def test_shares_divide_the_passes():
    for split, epochs in ((False, 25), (True, 50)):
        phases = recipe_of(
            "two_phase", passes=100.0, first_share=0.3, polish_share=0.2, split=split
        )
        assert [phase.epochs for phase in phases] == [30, epochs, 20]
        assert cost(phases) == 100


@pytest.mark.parametrize("passes", [0.1, 1.0, 2.0])
@pytest.mark.parametrize(("mode", "order"), EVERY)
def test_few_passes_still_run_every_phase(mode, order, passes):
    assert all(phase.epochs >= 1 for phase in recipe_of(mode, order, passes=passes))


@pytest.mark.parametrize(("mode", "order"), EVERY)
@pytest.mark.parametrize(("low", "high"), [("w2a2", "w8a8"), ("w1a1", "w4a4"), ("w2a2", "w8a32")])
def test_recipes_can_run(mode, order, low, high):
    known = modes(low=low, high=high)
    phases = recipe_of(mode, order, low=low, high=high, polish_share=0.1)
    check_recipe(phases, known)
    made = {name for phase in phases for name in (*phase.precisions, *phase.finish.input_steps)}
    assert set(reported_modes(mode)) <= made
    assert len({phase.name for phase in phases}) == len(phases)


def test_refine_promises_low():
    first, second = recipe_of("two_phase", "refine")
    assert first.precisions == ("low",)
    assert (second.precisions, second.protect) == (("high",), "low")
    assert second.prepare.weight_steps is None, "another step would be another grid for low"


def test_low_learns_from_high_where_both_see_the_same_images():
    assert recipe_of("two_phase", split=False)[1].teacher == "high"
    assert recipe_of("two_phase", split=False, distillation=0.0)[1].teacher is None
    assert recipe_of("two_phase", split=True)[1].teacher is None


def test_recipes_are_refused_that_cannot_keep_their_promise():
    phase = Phase("refine", 1, ("high",), 0.1, protect="low")
    check_recipe((phase,), modes(low="w4a2", high="w4a8"))
    with pytest.raises(ValueError, match="wider weights"):
        check_recipe((phase,), modes(low="w8a8", high="w2a2"))
    own = {"classifier": {"low": "w8a8", "high": "w2a2"}}
    with pytest.raises(ValueError, match=r"classifier.*wider"):
        check_recipe((phase,), modes(layers=own, low="w2a2", high="w8a8"))
    for wrong in (
        Phase("a", 1, ("medium",), 0.1),
        Phase("a", 1, ("low",), 0.1, prepare=Preparation(weight_steps="medium")),
        Phase("a", 1, ("low",), 0.1, finish=Preparation(norms=(("low", "medium"),))),
    ):
        with pytest.raises(ValueError, match=r"'medium' is unknown: expected one of"):
            check_recipe((wrong,), modes(low="w2a2", high="w8a8"))


@pytest.mark.parametrize(
    "arguments",
    [
        {"epochs": 0},
        {"precisions": ()},
        {"teacher": "high"},
        {"split": True},
        {"split": True, "precisions": ("high", "low"), "teacher": "high", "distillation": 0.5},
        {"distillation": 0.5},
        {"teacher": "high", "distillation": 0.5, "precisions": ("low",)},
        {"protect": "high"},
    ],
)
def test_phases_that_contradict_themselves(arguments):
    with pytest.raises(ValueError, match=r"phase 'p'"):
        Phase(
            **{"name": "p", "epochs": 1, "precisions": ("high",), "learning_rate": 1, **arguments}
        )


def test_learning_rates_are_joined_over_the_phases():
    first = Phase("first", 8, ("high",), 0.1, warmup=0.1)
    second = Phase("second", 4, ("high",), 0.05, warmup=0.0)
    assert phase_starts((first, second), 10) == [0, 80, 120]
    rate = joined((first, second), 10, "learning_rate")
    values = [float(rate(float(step))) for step in range(121)]
    assert values[0] == 0
    assert values[8] == max(values) == pytest.approx(0.1)
    assert values[79] < 1e-4
    assert values[80] == pytest.approx(0.05)
    assert values[120] == pytest.approx(0, abs=1e-9)


def test_two_phases_share_one_cycle_of_the_learning_rate():
    """Low joins while the rate is still high, and it goes on from where phase 1 left it."""
    phases = recipe_of("two_phase")
    rate = joined(phases, 10, "learning_rate")
    end = phase_starts(phases, 10)[1]
    before, after = float(rate(end - 1.0)), float(rate(float(end)))
    assert before == pytest.approx(after, rel=1e-2)
    assert before == pytest.approx(0.07, rel=1e-2)


# -- settings --------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_make_a_config(preset):
    config = make_config(preset, {})
    assert set(PRESETS[preset]) <= {field.name for field in dataclasses.fields(Config)}
    check_recipe(RECIPES[config.mode](config), modes(low=config.low, high=config.high))


def test_settings_override_the_preset_with_the_type_of_their_field():
    settings = read_settings(["passes=2", "batch_size=32", "model=resnet8"])
    config = make_config("digits", settings)
    assert (config.passes, config.batch_size, config.model) == (2.0, 32, "resnet8")
    assert isinstance(config.passes, float)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("passes", "expected name=value"),
        ("passes=many", "expected a value of type float"),
        ("batch_size=1.5", "expected a value of type int"),
        ("pases=3", r"setting 'pases' is unknown: expected one of \[.*'passes'"),
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
        {"batch_size": 0},
        {"passes": 0.0},
        {"passes": float("nan")},
        {"passes": float("inf")},
        {"learning_rate": float("nan")},
        {"learning_rate": -0.1},
        {"weight_decay": -1.0},
        {"steps_per_dispatch": -1},
        {"epochs_per_evaluation": 0},
        {"distillation": 1.5},
        {"first_share": 0.8, "polish_share": 0.2},
        {"order": "refine", "low": "w8a8", "high": "w2a2"},
        {"order": "refine", "low": "w32a32", "high": "w8a8"},
    ],
    ids=str,
)
def test_configs_refused(wrong):
    with pytest.raises(ValueError, match=r"expected|choose") as caught:
        Config(**wrong)
    assert "\n" not in str(caught.value)
    assert str(next(iter(wrong.values()))) in str(caught.value), "says what it got"


def test_unknown_preset_and_field():
    with pytest.raises(ValueError, match=r"preset 'fast' is unknown.*'quick'"):
        make_config("fast", {})
    with pytest.raises(ValueError, match=r"setting 'lr' is unknown.*'learning_rate'"):
        make_config("quick", {"lr": 1})


# -- settings without effect -----------------------------------------------------------------------

# Another value for every field that a recipe may read.
ALTERNATIVES = {
    "order": "refine",
    **{f.name: 0.25 for f in dataclasses.fields(Config) if f.type is float},
    "passes": 50.0,
    "split": False,
}


@pytest.mark.parametrize(("mode", "order"), EVERY)
def test_fields_without_effect_are_those_that_do_not_change_the_recipe(mode, order):
    config = Config(mode=mode, order=order)
    idle = fields_without_effect(config)
    for field, value in ALTERNATIVES.items():
        value = "joint" if field == "order" and order == "refine" else value
        changed = dataclasses.replace(config, **{field: value})
        same = RECIPES[mode](changed) == RECIPES[mode](config)
        assert same == (field in idle), field
    assert idle <= set(ALTERNATIVES)


@pytest.mark.parametrize("mode", MODES)
def test_low_may_be_wider_where_nothing_is_refined(mode):
    """Asking what has no effect must not ask for another recipe's conditions."""
    fields_without_effect(Config(mode=mode, order="joint", low="w8a8", high="w2a2"))


def test_what_no_recipe_reads_always_counts_as_having_an_effect():
    for (mode, order), name in itertools.product(EVERY, ("seed", "batch_size", "model", "low")):
        assert name not in fields_without_effect(Config(mode=mode, order=order))
