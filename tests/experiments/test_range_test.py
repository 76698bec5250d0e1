"""The precision range test: how it decides, and the command on digits."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dual_precision import data, modes
from dual_precision.models import build
from dual_precision.tasks.task import Network
from dual_precision.training.methods.cyclic import CYCLE, CyclicLoss
from experiments.cifar import task_of
from experiments.methods.range_test import (
    DEFAULTS,
    RangeTest,
    folder_of_test,
    lower_bound,
    phase_of_a_width,
    training_curves,
    way_to,
    widths_to_test,
)
from experiments.recipes.config import make_config
from experiments.recipes.flags import read_config


def rows(shares: dict[int, float], threshold: float = 0.8):
    """Of widths that learned so much of 0.5 above a chance of 0.1."""
    curves = {bits: [0.0] * 6 + [0.1 + 0.5 * share] * 4 for bits, share in shares.items()}
    return RangeTest(10, 4, threshold).judge(curves, 0.1)


def test_the_bound_is_the_narrowest_width_that_learned_enough():
    found = rows({2: 0.3, 3: 0.85, 4: 0.95, 8: 1.0})
    assert lower_bound(found) == 3
    assert [row["passed"] for row in found] == [False, True, True, True]
    assert [row["share"] for row in found] == pytest.approx([0.3, 0.85, 0.95, 1.0])
    assert [row["accuracy"] for row in found] == pytest.approx([25, 52.5, 57.5, 60])
    assert lower_bound(rows({2: 0.3, 3: 0.85, 8: 1.0}, 0.2)) == 2
    assert lower_bound(rows({2: 0.3, 3: 0.85, 8: 1.0}, 1.0)) == 8


def test_a_lucky_narrow_width_is_no_bound():
    assert lower_bound(rows({2: 0.9, 3: 0.5, 4: 0.9, 8: 1.0})) == 4


def test_only_the_window_counts():
    curve = list(np.linspace(0, 1, 11))
    assert RangeTest(11, 1).judge({8: curve}, 0.1)[0]["accuracy"] == 100
    assert RangeTest(11, 11).judge({8: curve}, 0.1)[0]["accuracy"] == pytest.approx(50)


def test_nothing_learned():
    with pytest.raises(ValueError, match=r"8 bits have a training accuracy of 0\.100"):
        RangeTest(10, 4).judge({2: [0.1] * 10, 8: [0.1] * 10}, 0.1)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((10, 11), "--window=11 of --updates=10: expected 1 to all"),
        ((10, 0), "--window=0"),
        ((10, 5, 0.0), "--threshold=0.0: expected more than 0, up to 1"),
        ((10, 5, 1.1), "--threshold=1.1"),
    ],
)
def test_tests_that_cannot_be(arguments, says):
    with pytest.raises(ValueError, match=says):
        RangeTest(*arguments)


def test_widths_are_those_between_the_modes():
    config = make_config("digits", {"mode": "cyclic", "low": "w2a2g8", "high": "w6a6g8"})
    assert widths_to_test(config) == [2, 3, 4, 5, 6]
    with pytest.raises(ValueError, match="from low=w2a4g8 to high=w8a8g8: expected the same bits"):
        widths_to_test(make_config("digits", {"mode": "cyclic", "low": "w2a4g8"}))


@pytest.mark.parametrize(("low", "high"), [(low, 8) for low in range(1, 9)] + [(2, 5), (1, 2)])
def test_the_loss_gets_each_width(low, high):
    named = modes(low=f"w{low}a{low}g8", high=f"w{high}a{high}g8")
    widths = range(low, high + 1)
    loss = CyclicLoss("high", "low")
    asked = [loss.widths(named, {CYCLE: way_to(bits, widths)}) for bits in widths]
    assert [int(own.weights) for own in asked] == list(widths)
    assert [int(own.activations) for own in asked] == list(widths)


@pytest.mark.usefixtures("compiled_quickly")
def test_what_a_width_learns_does_not_depend_on_others(child_environment):
    """The same weights, batches, augmentation and rounding, whichever widths are tested."""
    dataset = data.load("digits", data_dir=child_environment["TFDS_DATA_DIR"])

    def curves(low):
        own = {"mode": "cyclic", "dataset": "digits", "low": f"w{low}a{low}g8", "high": "w4a4g8"}
        config = make_config("digits", own)
        model = build("mlp", num_classes=10, modes=config.modes)
        network = Network(model, task_of(config, dataset))
        phase, widths = phase_of_a_width(config.recipe, 4), widths_to_test(config)
        return training_curves(network, dataset.train, phase, config, widths, 4)

    more, fewer = curves(2), curves(3)
    assert list(more) == [2, 3, 4]
    assert fewer == {3: more[3], 4: more[4]}
    assert more[2] != more[3] != more[4]


@pytest.mark.parametrize(
    ("argument", "low"),
    [("--set=low=w2a2g8", "w2a2g8"), ("--low=w3a3g8", "w3a3g8"), ("--seed=0", "w1a1g8")],
)
def test_the_low_mode_may_be_a_setting_and_a_flag(argument, low, parse):
    parse("--dataset=digits", argument)
    config, _ = read_config(DEFAULTS)
    assert (config.mode, config.low) == ("cyclic", low)


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("--noresume", "Unknown command line flag 'noresume'"),
        ("--init=net", "init=net: expected"),
        ("--set=accumulate=4", "--set accumulate=...: expected none of ['accumulate', 'cycles'"),
    ],
)
def test_a_flag_of_training_that_it_does_not_read_is_refused(argument, says, child_environment):
    command = [sys.executable, "-m", "experiments.methods.range_test", argument]
    ended = subprocess.run(
        command,
        cwd=Path(__file__).parents[2],
        env=child_environment,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: ")
    assert says in ended.stderr


def test_every_test_has_its_own_folder():
    """Another seed, rate, width or number of updates took the place of what was there."""
    others = ({}, {"seed": 1}, {"learning_rate": 0.05}, {"low": "w2a2g8"}, {"model": "resnet20"})
    configs = [make_config("digits", {**DEFAULTS, "dataset": "digits", **own}) for own in others]
    folders = {str(folder_of_test(config, "digits", RangeTest())) for config in configs}
    folders.add(str(folder_of_test(configs[0], "digits", RangeTest(30, threshold=0.9))))
    assert len(folders) == len(others) + 1
    assert "runs/range_test-digits-cyclic-w1a1g8-w8a8g8-digits-seed0" in folders


def test_the_command(tmp_path: Path, child_environment):
    arguments = ("--dataset=digits", "--updates=30", "--window=5", f"--workdir={tmp_path}")
    ended = subprocess.run(
        [sys.executable, "-m", "experiments.methods.range_test", *arguments, "--low=w2a2g8"],
        cwd=Path(__file__).parents[2],
        env=child_environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    found = json.loads((tmp_path / "range_test.json").read_text())
    assert [row["bits"] for row in found["rows"]] == list(range(2, 9))
    assert {len(curve) for curve in found["curves"].values()} == {30}
    assert f"lower bound: {found['bound']} bits" in ended.stdout
    own = {"mode": "cyclic", "dataset": "digits", "low": "w2a2g8"}
    assert found["experiment"] == make_config("digits", own).to_json()
    assert (tmp_path / "range_test.png").read_bytes().startswith(b"\x89PNG")
    assert "not read" in ended.stdout, "the test set is not touched"
