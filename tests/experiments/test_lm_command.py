"""The command of text, as it is started: both modes, resume, errors in one line."""

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import dual_precision
from dual_precision.deploy import inspect_packed
from dual_precision.models import build_from
from dual_precision.tasks.language import NextByte
from dual_precision.training.checkpoint import Checkpoints
from dual_precision.training.state import initial_variables
from experiments.lm import generate, training
from experiments.lm.trained import config_of_text_run
from experiments.recipes import course
from experiments.recipes.language_config import make_language_config
from experiments.workdir import CONFIG, RESULTS

TINY = ["--preset=smoke", "--set=features=8", "--set=passes=2", "--set=context=16"]


class Stopped(Exception):
    """Ends a command where a test has seen enough."""


@pytest.fixture
def command(child_environment):
    def run(*words):
        full = [sys.executable, "-m", "experiments.lm", *words]
        return subprocess.run(
            full, env=child_environment, capture_output=True, text=True, timeout=300
        )

    return run


@pytest.fixture
def start(command):
    return lambda *flags: command(*TINY, *flags)


def test_both_modes_and_the_same_command_again(tmp_path, command, start):
    text, workdir = tmp_path / "text.txt", tmp_path / "run"
    text.write_bytes(b"it is a truth universally acknowledged, " * 2000)
    flags = (f"--dataset={text}", f"--workdir={workdir}", "--model=lstm")
    done = start(*flags)
    assert done.returncode == 0, done.stderr
    rows = json.loads((workdir / RESULTS).read_text())["rows"]
    assert [row["mode"] for row in rows] == ["low", "high"]
    assert all(0 < row["test_bits"] < 8.5 for row in rows)
    assert (workdir / "training.png").exists()
    model, _ = dual_precision.load(workdir)
    assert model.features == 8
    again = start(*flags)
    assert again.returncode == 0
    assert "going on" in again.stdout
    other = start(*flags, "--seed=1")
    assert other.returncode == 1
    assert "seed (there 0, now 1)" in other.stderr

    packed = command("pack", f"--workdir={workdir}", f"--out={tmp_path / 'net'}")
    assert packed.returncode == 0, packed.stderr
    assert inspect_packed(tmp_path / "net").metadata["command"].endswith("--out=net")
    widths = tmp_path / "widths"
    widths.write_text(json.dumps({"hidden1": {"low": "w1a8"}}))
    packed = command(
        "pack",
        f"--workdir={workdir}",
        f"--out={tmp_path / 'w1'}",
        f"--widths={widths}",
    )
    assert packed.returncode == 0, packed.stderr
    sizes = [inspect_packed(tmp_path / name).bytes_read["low"] for name in ("net", "w1")]
    assert sizes[1] < sizes[0]
    refused = command("planes", f"--workdir={workdir}")
    assert "expected --mode=float --model=lstm" in refused.stderr


def test_a_run_is_read_back_where_its_text_is_gone(tmp_path):
    """Packing never reads it; the command that trains asks for it before it makes a folder."""
    text = tmp_path / "text"
    text.write_bytes(b"it is a truth")
    named = {"dataset": str(text), "mode": "two_phase"}
    config, _ = training.read_language_config(named, ["features=8"], None, "smoke")
    (tmp_path / CONFIG).write_text(json.dumps({"experiment": config.to_json()}))
    text.unlink()
    assert config_of_text_run(tmp_path) == config
    with pytest.raises(ValueError, match=r"dataset: got '.*text', expected one of .* path of a"):
        training.read_language_config(named, ["features=8"], None, "smoke")


def test_init_from_a_run_on_text(tmp_path, monkeypatch, capsys):
    """Both modes start from the kernels of a float run; what it has no place for starts fresh."""
    (tmp_path / "text").write_bytes(b"it is a truth universally acknowledged, " * 2000)
    settings = {"set": [word.removeprefix("--set=") for word in TINY[1:]], "preset": "smoke"}
    settings |= {"dataset": str(tmp_path / "text"), "model": "lstm"}
    got: dict[str, Any] = {}

    def fit(model, task, phases, *_, **keywords):
        got.update(keywords)
        raise Stopped

    monkeypatch.setattr(course, "fit", fit)
    with pytest.raises(Stopped):
        training.train_command(mode="float", workdir=str(tmp_path / "floats"), **settings)
    model = build_from(got["config"]["network"])
    fresh = initial_variables(model, NextByte(16).example, seed=7)
    with Checkpoints(tmp_path / "floats", got["config"]) as checkpoints:
        state = {"step": np.int32(7), **fresh, "carry": {}, "opt_state": ()}
        checkpoints.save(7, state, {"phase": 0}, score=0.5)
    with pytest.raises(Stopped):
        training.train_command(
            init=str(tmp_path / "floats"), workdir=str(tmp_path / "run"), **settings
        )
    assert f"starts from {tmp_path / 'floats'}; 0 values do not fit\n" in capsys.readouterr().out
    start, there = flatten_dict(got["variables"]), flatten_dict(fresh)
    kernels = [path for path in there if path[-1] == "kernel"]
    assert kernels
    for path in kernels:
        np.testing.assert_array_equal(start[path], there[path])


@pytest.mark.parametrize(("prompt", "count"), [("it", 120), ("it" * 20, 88), ("it" * 64, 1)])
def test_a_text_goes_on_as_far_as_the_context(monkeypatch, capfdbinary, prompt, count):
    """Of 128 bytes: 120 behind the prompt of the documentation were too many."""
    asked = []

    class Generator:
        context = 128

        def __init__(self, file):
            pass

        def stream(self, given, count, **_):
            asked.append((given, count))
            return iter([b"..."])

    monkeypatch.setattr(generate, "Generator", Generator)
    generate.generate_command("net", prompt=prompt)
    assert asked == [(prompt.encode(), count)]


def test_errors_are_one_line(tmp_path, start):
    (tmp_path / "short").write_bytes(b"short")
    short = start(f"--dataset={tmp_path / 'short'}", f"--workdir={tmp_path / 'run'}")
    assert short.returncode == 1
    assert "less context" in short.stderr
    assert len(short.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("mode", "says"),
    [
        ("refine", r"'refine' is unknown: expected one of \['float', .*'cyclic'\]$"),
        ("bsq", "'bsq' is of images, .* expected one of .*experiments.cifar"),
    ],
)
def test_modes_of_images_are_not_offered(mode, says):
    with pytest.raises(ValueError, match=says):
        make_language_config("smoke", {"mode": mode})
