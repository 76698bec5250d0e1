"""The flags of the training command: what they ask for, what they are refused for."""

import json
import re
from pathlib import Path

import jax
import pytest
from absl import flags

from dual_precision.models import IMAGE_MODELS
from experiments import cli
from experiments.recipes import flags as training_flags
from experiments.recipes.choice import RECIPES
from experiments.recipes.config import PRESETS


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--mode=dual"], "mode 'dual' is unknown: expected one of ['float', 'low',"),
        (["--order=up"], "order 'up' is unknown: expected one of ['joint', 'refine']"),
        (["--model=vgg"], "model 'vgg' is unknown: expected one of ['mlp',"),
        (["--model=lstm"], "model 'lstm' reads text, and this is a run on images: expected one"),
        (["--preset=fast"], "preset 'fast' is unknown: expected one of ['digits', 'paper',"),
        (["--low=w0a2"], "precision 'w0a2': expected w<bits>a<bits>"),
        (["--low=w9a9"], "precision 'w9a9': expected w<bits>a<bits>"),
        (["--high=a33"], "precision 'a33': expected w<bits>a<bits>"),
        (["--order=refine", "--low=w8a8", "--high=w4a4"], "'low' has w8a8, wider weights than"),
        (["--set=pases=3"], "setting 'pases' is unknown: expected one of ["),
        (["--set=passes=x"], "--set 'passes=x': expected a value of type float"),
        (["--set=passes"], "--set 'passes': expected name=value"),
        (["--set=passes=inf"], "passes=inf: expected a finite number"),
        (["--set=stored=4"], "wider weights than the 4 bits that are stored"),
        (["--seed=1", "--set=seed=2"], "--seed and --set seed=...: expected one of them"),
        (["--set=passes=1e7"], "passes=10000000.0: expected more than 0, up to 1,000,000"),
        (
            ["--seed=99999999999999999999"],
            "seed=99999999999999999999: expected a whole number, 0 to 2^32 - 1",
        ),
        (["--set=seed=4294967296"], "seed=4294967296: expected a whole number, 0 to 2^32 - 1"),
        (["--low=w\uff12a2"], "precision 'w\uff12a2': expected w<bits>a<bits>"),
        (["--mode=low", "--order=refine"], "order='refine' with mode 'low': expected mode 'two_p"),
        (["--mode=joint", "--order=joint"], "order='joint' with mode 'joint': expected mode 'two"),
        (
            ["--mode=float", "--set=distillation=0.1"],
            "setting 'distillation' is unknown with mode 'float': expected one of ['mode',",
        ),
        (
            ["--order=refine", "--set=distillation=0.1"],
            "setting 'distillation' is unknown with mode 'two_phase' and order 'refine': expected",
        ),
        (["--set=reestimate=2"], "setting 'reestimate' is unknown with mode 'two_phase' and order"),
        (["--set=distillation=1.1"], "distillation=1.1: expected 0 to 1"),
        (
            ["--mode=cyclic", "--low=w8a8", "--high=w3a3"],
            "from w8a8 up to w3a3, which is narrower: expected the bounds the other way round",
        ),
        (["--mode=cyclic", "--low=w3a3"], "w3a3 and w8a8g8 differ in it: expected the same in"),
        (["--mode=cyclic", "--set=cycles=-1"], "cycles=-1: expected a finite number, 0 or more"),
        (["--mode=bsq", "--init=a", "--set=low_bits=0.5"], "low_bits=0.5: expected 1 to 8"),
        (["--mode=bsq", "--init=a", "--set=low_by=flops"], "low_by='flops': expected one of ["),
        (["--mode=bsq"], "mode 'bsq' starts from a trained network: expected --init, such as"),
        (["--mode=bsq", "--init=a", "--set=alpha=-1"], "alpha=-1.0: expected a finite number, 0"),
        (["--mode=bsq", "--init=a", "--high=w8a8"], "weights are float in 'high', which is w8a8"),
        (
            ["--mode=bsq", "--init=a", "--set=passes=4", "--set=adjustments=3"],
            "adjustments=3 in 2 epochs: expected 1 to 2, for each comes after an epoch",
        ),
        (
            ["--mode=bsq", "--init=a", "--set=adjustments=0"],
            "adjustments=0 in 60 epochs: expected 1",
        ),
        (["--mode=bsq", "--init=a", "--set=bits=9"], "width 9: expected 1 to 8 bits"),
        (["--mode=static", "--set=cycles=4"], "setting 'cycles' is unknown with mode 'static'"),
        (
            ["--mode=truncate", "--set=reestimate=-1"],
            "reestimate=-1: expected a finite number, 0 or mo",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_settings_refused(parse, arguments, says):
    parse("--dataset=digits", *arguments)
    with pytest.raises(ValueError, match=re.escape(says)) as caught:
        training_flags.read_config()
    assert "\n" not in str(caught.value)


def test_wrong_flags_are_one_line(parse):
    parse()
    for argument, says in (("--seed=x", "--seed=x"), ("--nothing=1", "flag 'nothing'")):
        with pytest.raises(SystemExit) as stop:
            cli._parse_flags(["cifar", argument])
        assert str(stop.value.code).startswith("error: ")
        assert says in str(stop.value.code)
        assert "\n" not in str(stop.value.code)


@pytest.mark.parametrize(
    "name", ["mode", "low", "high", "model", "dataset", "init", "workdir", "widths", "data_dir"]
)
def test_a_flag_without_a_value_is_not_one_that_is_left_out(parse, name):
    parse()
    with pytest.raises(SystemExit) as stop:
        cli._parse_flags(["cifar", f"--{name}="])
    says = f"error: --{name}= is empty: give a value, or leave it out; --help lists the flags"
    assert stop.value.code == says


def test_presets_follow_the_dataset_and_settings_the_flags(parse):
    parse("--dataset=digits", "--set=batch_size=32", "--mode=low")
    config, preset = training_flags.read_config()
    assert (preset, config.batch_size, config.mode) == ("digits", 32, "low")
    parse("--dataset=cifar10", "--preset=paper")
    assert training_flags.read_config()[1] == "paper"


def test_a_command_means_the_same_on_every_device(parse, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    parse()
    assert training_flags.read_config()[1] == "quick"


def test_the_help_names_what_there_is(parse):
    parse()
    for flag, table in (("mode", RECIPES), ("preset", PRESETS), ("model", IMAGE_MODELS)):
        assert set(table) <= set(re.findall(r"\w+", flags.FLAGS[flag].help)), flag


# -- widths of layers ------------------------------------------------------------------------------


def written(path: Path, widths: object) -> str:
    path.write_text(widths if isinstance(widths, str) else json.dumps(widths))
    return f"--widths={path}"


@pytest.mark.parametrize(
    ("widths", "says"),
    [
        ("{", "Expecting property name"),
        ('{"a": ', 'expected JSON {"layer or pattern": {"mode": "w4a4"}}, as in'),
        ("[" * 100_000, "recursion"),
        ("[" * 33 + "]" * 33, "nested deeper than 32 lists and fields"),
        ('{"dense2": NaN}', "NaN is no number of JSON"),
        ([], 'expected JSON {"layer or pattern": {"mode": "w4a4"}}'),
        ({"dense2": "w4a4"}, 'expected JSON {"layer or pattern": {"mode": "w4a4"}}'),
        ({"dense2": {"low": 4}}, 'expected JSON {"layer or pattern": {"mode": "w4a4"}}'),
        ({"dense2": {"low": "w9a9"}}, "precision 'w9a9': expected w<bits>a<bits>"),
        ({"dense2": {"medium": "w4a4"}}, "layer 'dense2' has modes ['medium']: expected some of"),
    ],
    ids=[
        "not JSON",
        "cut",
        "very deep",
        "deep",
        "NaN",
        "a list",
        "no modes",
        "a number",
        "no width",
        "no such mode",
    ],
)
def test_wrong_widths(parse, tmp_path, widths, says):
    parse("--dataset=digits", written(tmp_path / "widths.json", widths))
    with pytest.raises(ValueError, match=re.escape(says)) as caught:
        training_flags.read_config()
    assert "\n" not in str(caught.value)


def test_widths_that_are_not_there(parse, tmp_path):
    parse("--dataset=digits", f"--widths={tmp_path / 'gone.json'}")
    with pytest.raises(OSError, match=r"gone\.json"):
        training_flags.read_config()


def test_widths_from_a_device_without_an_end(parse):
    parse("--dataset=digits", "--widths=/dev/zero")
    with pytest.raises(ValueError, match="/dev/zero: over 64 MiB"):
        training_flags.read_config()
