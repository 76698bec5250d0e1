"""The command of text, as it is started: both modes, resume, errors in one line."""

import json
import subprocess
import sys

import pytest

import dual_precision
from dual_precision.deploy import inspect_packed
from experiments.workdir import RESULTS

TINY = ["--preset=smoke", "--set=features=8", "--set=passes=2", "--set=context=16"]


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


def test_errors_are_one_line(tmp_path, start):
    (tmp_path / "short").write_bytes(b"short")
    short = start(f"--dataset={tmp_path / 'short'}", f"--workdir={tmp_path / 'run'}")
    assert short.returncode == 1
    assert "less context" in short.stderr
    assert len(short.stderr.strip().splitlines()) == 1
