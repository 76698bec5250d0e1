"""The matrix of the study: which networks are trained, what each costs, which row reads which."""

import pytest

from experiments.recipes.flags import FLAGS, read_config
from experiments.study.matrix import (
    METHODS,
    REESTIMATED,
    Run,
    Settings,
    base_settings,
    check_read,
    config_of,
    entries,
    matrix_of,
    read_pairs,
)
from experiments.study.plans import PLANS
from experiments.study.runner import command

PLAN = PLANS["quick"]
BASE = base_settings(PLAN, {})
PAIRS = [PLAN.main, *PLAN.others]
MATRIX = matrix_of(PLAN, BASE, seeds=3)
ROWS, RUNS = MATRIX.rows, MATRIX.runs
SINGLE = ("float", "truncate", "truncate re-estimated")


def first_run(method: str, base: Settings = BASE) -> Run:
    """The first run of a method on the main pair."""
    return next(iter(METHODS[method](base, PLAN.main, 0).values()))[0]


def test_twins_together_cost_what_one_dual_network_costs():
    for row in ROWS:
        if row.method not in (*SINGLE, "long twins"):
            assert row.cost == BASE["passes"], row.method
        if row.method == "long twins":
            assert row.cost == 2 * BASE["passes"], "the whole cost for each of the two"
        if row.method in SINGLE:
            assert row.cost == BASE["passes"] / 2, row.method


def test_the_main_pair_has_every_seed_and_the_others_one():
    seeds = {pair: {row.seed for row in ROWS if row.pair == pair} for pair in PAIRS}
    assert seeds == {PLAN.main: {0, 1, 2}, **{pair: {0} for pair in PLAN.others}}


def test_twins_are_shared_among_pairs():
    low = {r.pair: r.sources["low"][0] for r in ROWS if r.method == "long twins" and r.seed == 0}
    high = {r.pair: r.sources["high"][0] for r in ROWS if r.method == "long twins" and r.seed == 0}
    assert low["w4a4", "w8a8"] == high["w2a2", "w4a4"] == high["w1a4", "w4a4"]
    assert len({run.name for run in RUNS}) == len(RUNS)


def test_rows_read_networks_of_their_own():
    """No two rows read the same networks, but for the high twin, which `truncate` cuts."""
    rows = [row for row in ROWS if row.pair == PLAN.main and row.seed == 0]
    assert [row.method for row in rows] == list(METHODS)
    read = {row.method: {run.name for run, _ in row.sources.values()} for row in rows}
    for method, runs in read.items():
        for other, theirs in read.items():
            if method != other and {method, other} != {"twins", "truncate"}:
                assert not runs & theirs, (method, other)


def test_the_fair_baseline_is_the_same_twin_estimated_again():
    plain, fair = first_run("truncate").config, first_run("truncate re-estimated").config
    other = fair.to_json() | {"reestimate": 0}
    assert (fair.recipe.reestimate, other) == (REESTIMATED, plain.to_json())
    assert plain.recipe.cost == fair.recipe.cost
    pairs = {row.pair for row in ROWS if row.method == "truncate re-estimated"}
    assert pairs == {PLAN.main}


def test_a_setting_does_not_reach_the_recipes_that_have_no_use_for_it():
    base = base_settings(PLAN, {"first_share": 0.9, "refine_rate": 0.3})
    assert first_run("two_phase joint", base).config.recipe.first_share == 0.9
    assert first_run("two_phase refine", base).config.recipe.refine_rate == 0.3
    for method in ("two_phase refine", "joint", "float", "twins", "truncate"):
        told = first_run(method, base).config.to_json()
        assert "first_share" not in told, method
    assert first_run("joint", base) == first_run("joint")


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_the_command_of_a_run_gives_its_config(run, tmp_path, parse):
    parse(*command(run, "quick", tmp_path)[3:])
    assert read_config() == (run.config, "quick")
    assert FLAGS.test is not run.ablation


def test_a_command_says_only_what_the_preset_does_not():
    run = Run("a", config_of(BASE, PLAN.main, 0, "two_phase", "joint"))
    start = ["python", "-m", "experiments.cifar", "--preset=quick", "--workdir=folder"]
    assert command(run, "quick", "folder") == [*start, "--set=passes=6.0"]
    other = Run("b", config_of(BASE, ("w1a1", "w8a8"), 3, "two_phase", "refine"), ablation=True)
    assert command(other, "quick", "folder", ["--data_dir=x"])[5:] == [
        *("--order=refine", "--low=w1a1", "--seed=3", "--set=passes=6.0", "--test=false"),
        "--data_dir=x",
    ]


def test_ablations_change_one_thing_each():
    runs = {title: run for title, (run, _) in MATRIX.ablations.items()}
    assert set(runs) == set(PLAN.ablations)
    for title, (run, against) in MATRIX.ablations.items():
        own, start = run.config.to_json(), runs[against].config.to_json()
        known = own.keys() & start.keys()  # of another recipe, only what both have compares
        changed = {name for name in known if own[name] != start[name]}
        if own.get("split") != start.get("split"):
            changed -= {"distillation"}  # which is none by itself on split batches
        assert len(changed) == (title != "as it is"), title


def test_an_ablation_that_is_in_the_tables_is_not_trained_again():
    as_it_is, _ = MATRIX.ablations["as it is"]
    assert as_it_is == first_run("two_phase joint")
    known, _ = MATRIX.ablations["no phase 1: split batches from the start"]
    assert known == first_run("joint split")


def test_what_is_asked_for_by_name_runs_with_every_seed():
    chosen = matrix_of(PLAN, BASE, 3, [PLAN.others[0]], ["truncate re-estimated"])
    assert [(row.method, row.seed) for row in chosen.rows] == [
        ("truncate re-estimated", seed) for seed in range(3)
    ]
    assert not chosen.ablations, "they belong to the whole matrix"
    assert matrix_of(PLAN, BASE, 1, None, ["float"], ablations=True).ablations
    assert not matrix_of(PLAN, BASE, 1, ablations=False).ablations


def test_cost_is_of_the_epochs_that_are_run():
    odd = base_settings(PLAN, {"passes": 7.0})
    costs = {r.method: r.cost for r in entries(PLAN, odd, 1, [PLAN.main], METHODS)}
    assert costs["twins"] == 2 * 4, "half of 7 passes, as whole epochs"
    assert costs["joint split"] == 7


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"order": "refine"}, "--set order=...: the study sets it itself"),
        ({"reestimate": 5}, "--set reestimate=...: the study sets it itself"),
        ({"lr": 1}, "setting 'lr' is unknown: expected one of"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_wrong_settings_are_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        base_settings(PLAN, settings)


@pytest.mark.parametrize(
    ("settings", "methods", "unread"),
    [
        ({"first_share": 0.25, "passes": 8.0}, ["two_phase joint", "twins"], None),
        ({"low_share": 0.9}, None, None),
        ({"low_share": 0.9}, ["twins"], "low_share"),
        ({"passes": 8.0, "alpha": 0.3}, ["twins"], "alpha"),
        ({"alpha": 0.3}, None, "alpha"),
        ({"split": False}, ["two_phase joint", "joint"], None),
        ({"batch_size": 64, "passes": 8.0}, ["half-batch twins", "long twins"], None),
    ],
)
def test_a_setting_that_no_run_reads_is_refused(settings, methods, unread):
    """Some run is enough; of what a preset sets nobody asks that."""
    matrix = matrix_of(PLAN, base_settings(PLAN, settings), 1, None, methods)
    if unread is None:
        check_read(matrix, settings)
        return
    says = rf"--set {unread}=\.\.\. changes nothing in this study, as no network reads it: expected"
    with pytest.raises(ValueError, match=says):
        check_read(matrix, settings)


@pytest.mark.parametrize("methods", [["joint"], ["joint", "joint split", "twins"]])
def test_a_setting_that_the_rows_fix_is_refused(methods):
    settings = {"split": False}
    matrix = matrix_of(PLAN, base_settings(PLAN, settings), 1, None, methods)
    says = (
        r"--set split=\.\.\. changes nothing in this study, as its rows decide it themselves: exp"
    )
    with pytest.raises(ValueError, match=says):
        check_read(matrix, settings)


def test_ablations_are_asked_of_a_plan_that_has_some():
    plan = PLANS["resnet20"]
    base = base_settings(plan, {"init": "net"})
    with pytest.raises(ValueError, match=r"--preset=resnet20, .* expected one of \['quick', 'pap"):
        matrix_of(plan, base, 1, None, ["float"], ablations=True)
    assert not matrix_of(plan, base, 1).ablations, "the whole matrix of this plan has none"


def test_wrong_matrices_are_refused():
    with pytest.raises(ValueError, match=r"--methods 'twin' is unknown: expected one of \['float'"):
        matrix_of(PLAN, BASE, 1, methods=["twin"])
    with pytest.raises(ValueError, match=r"--pairs 'w2a2': expected low/high"):
        read_pairs("w2a2")
    with pytest.raises(ValueError, match=r"precision 'w9a9'"):
        read_pairs("w2a2/w8a8,w9a9/w8a8")
    with pytest.raises(ValueError, match="wider weights"):
        matrix_of(PLAN, BASE, 1, [("w8a8", "w2a2")], ["two_phase refine"])
    assert read_pairs("w2a2/w8a8, w4a4/w8a8") == [("w2a2", "w8a8"), ("w4a4", "w8a8")]
