"""Configuration: settings by name, of every run and of its recipe."""

import dataclasses
import json
import re
from typing import Any

import pytest

from dual_precision.training.phases import check_recipe
from experiments.recipes import course
from experiments.recipes.choice import RECIPES, resolve
from experiments.recipes.config import PRESETS, Config, config_from, make_config
from experiments.recipes.recipe import Recipe
from experiments.recipes.run_config import every_field, fields_of
from experiments.recipes.settings import read_settings, read_widths
from experiments.recipes.two_phase import Joint, TwoPhase

EVERY = [(mode, order) for mode, orders in RECIPES.items() for order in orders]
each_recipe = pytest.mark.parametrize(("mode", "order"), EVERY)


def settings_of(mode: str, order: str = "", **more: Any) -> dict[str, Any]:
    recipe = resolve({"mode": mode, "order": order}).recipe
    init = {"init": "trained"} if recipe.starts_trained else {}
    return {"mode": mode, **({"order": order} if order else {}), **init, **more}


def made(mode: str, order: str = "", **settings: Any) -> Recipe:
    return make_config("paper", settings_of(mode, order, **settings)).recipe


# -- settings --------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", PRESETS)
@each_recipe
def test_presets_make_a_config_for_every_recipe(preset, mode, order):
    config = make_config(preset, settings_of(mode, order))
    assert set(PRESETS[preset]) <= set(fields_of(type(config.recipe), Config))
    check_recipe(config.recipe.phases(), config.modes)


def test_a_setting_is_given_once():
    with pytest.raises(ValueError, match="--set 'passes=60': passes is set before: expected one"):
        read_settings(["passes=6", "batch_size=8", "passes=60"], every_field(Config))


def test_the_preset_of_a_data_set_is_of_that_data_set():
    """It trained its network on CIFAR-10 where no data set was named."""
    assert make_config("digits", {}).dataset == "digits"
    assert make_config("digits", {"dataset": "mnist"}).dataset == "mnist"


def test_settings_override_the_preset_with_the_type_of_their_field():
    settings = read_settings(["passes=2", "batch_size=32", "model=resnet8"], every_field(Config))
    config = make_config("digits", settings)
    assert (config.recipe.passes, config.batch_size, config.model) == (2.0, 32, "resnet8")
    assert isinstance(config.recipe.passes, float)
    several = read_settings(
        ["mode=two_phase", "split=false", "distillation=0.25"], every_field(Config)
    )
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
        read_settings([text], every_field(Config))


@pytest.mark.parametrize(
    "wrong",
    [
        {"mode": "dual"},
        {"order": "low_first"},
        {"model": "vgg"},
        {"model": "lstm"},
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
        {"distillation": 1.5},
        {"first_share": 0.8, "polish_share": 0.2},
        {"polish_rate": 0.3},
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
    assert resolve({"mode": "two_phase"}) == resolve({}) == ("two_phase", "joint", TwoPhase)
    assert resolve({"mode": "joint"}) == ("joint", "", Joint)


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
ALTERNATIVES: dict[str, Any] = {
    "optimizer": "adam",
    "reestimate": 2,
    "split": False,
    "passes": 50.0,
    "cycles": 8,
    "adjustments": 8,
    "bits": 4,
    "low_bits": 3.0,
    "low_by": "bitops",
    "choices": "w1a2 w3a4",
    "skippable": "stage2_block1",
    "own_choices": "stem:w4a32,w8a32",
    "refit": False,
    "teacher": "ensemble",
}


def alternative(name: str) -> Any:
    return ALTERNATIVES.get(name, 0.25)


@each_recipe
def test_every_field_of_a_recipe_changes_what_it_does(mode, order):
    """None is idle. `label_smoothing` is told to the task, see experiments/cifar.py; `low_bits`
    and `low_by` are for the files that a run leaves."""
    recipe = RECIPES[mode][order]
    needs = {"polish_rate": {"polish_share": 0.1}}
    told = ("label_smoothing", "low_bits", "low_by")
    fields = [field for field in dataclasses.fields(recipe) if field.name not in told]
    for field in fields:
        start = needs.get(field.name, {}) if recipe is TwoPhase else {}
        plain = recipe(**start)
        changed = recipe(**start, **{field.name: alternative(field.name)})
        assert repr(plain.phases()) != repr(changed.phases()), field.name


@each_recipe
def test_a_field_of_another_recipe_is_unknown(mode, order):
    own = fields_of(RECIPES[mode][order], Config)
    others = set(every_field(Config)) - set(own) - {"order"}
    for name in others:
        with pytest.raises(ValueError, match=f"setting '{name}' is unknown with mode '{mode}'"):
            make_config("paper", settings_of(mode, order, **{name: alternative(name)}))


@each_recipe
@pytest.mark.parametrize(("low", "high"), [("w8a8", "w2a2"), ("w2a8", "w2a4"), ("w2a32", "w2a8")])
def test_low_may_be_wider_only_where_one_of_them_is_trained_alone(mode, order, low, high):
    """As of twins, which name one width and leave the other as it is by default."""
    if mode in ("bsq", "supernet"):  # float weights; widths that are drawn
        return
    settings = settings_of(mode, order, low=low, high=high)
    if mode in ("float", "low", "high"):
        make_config("paper", settings)
    else:
        with pytest.raises(ValueError, match="swap"):
            make_config("paper", settings)


@each_recipe
@pytest.mark.parametrize(("low", "high"), [("w4a4", "w4a4"), ("w2a4", "w2a4"), ("w4a4", "w4a8")])
def test_widths_may_be_equal(mode, order, low, high):
    if mode != "bsq":
        make_config("paper", settings_of(mode, order, low=low, high=high))


def test_of_two_widths_one_may_be_larger_in_low():
    make_config("paper", {"low": "w2a8", "high": "w8a4"})


@pytest.mark.parametrize(
    ("preset", "settings", "said"),
    [
        ("resnet20", {}, True),
        ("resnet20", {"mode": "low"}, True),
        ("resnet20", {"init": "trained"}, False),
        ("resnet20", {"mode": "float"}, False),
        ("quick", {}, False),
    ],
)
def test_a_run_says_that_its_preset_is_for_a_trained_network(
    preset, settings, said, capsys, tmp_path
):
    course.say_where(make_config(preset, settings), preset, tmp_path)
    note = r"(?m)^note: preset resnet20 .* random weights; --init=notebooks/networks/resnet20-flo"
    assert bool(re.search(note, capsys.readouterr().out)) == said


def test_the_defaults_are_a_config():
    assert dataclasses.replace(Config(), order="joint") == make_config("paper", {})
