"""The README's main command: a whole run, killed, stopped, resumed; what bad input gets.

What can be seen without a process of its own is in test_training_command.py.
"""

import dataclasses
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dual_precision import load
from dual_precision.training.checkpoint import Checkpoints
from experiments.workdir import config_of_run

ROOT = Path(__file__).parents[2]
# As many passes as the small study has: XLA compiles the programs that both run once.
SHORT = ("--dataset=digits", "--set=passes=8", "--set=epochs_per_evaluation=1")
PATIENCE = 400  # seconds, on a busy machine


class Commands:
    """Starts `python -m experiments.cifar`; all share the data and the compiled programs."""

    def __init__(self, folder: Path, environment: dict[str, str]):
        self.folder, self.environment = folder, environment

    def start(self, *arguments: str) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-m", "experiments.cifar", *arguments],
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str) -> "Ended":
        return end(self.start(*arguments))


@dataclasses.dataclass
class Ended:
    """Of a process: what it said, and how it ended."""

    status: int
    stdout: str
    stderr: str

    @property
    def table(self) -> list[str]:
        return [line for line in self.stdout.splitlines() if line.startswith("|")]


def end(process: subprocess.Popen) -> Ended:
    try:
        stdout, stderr = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    return Ended(process.returncode, stdout, stderr)


def records_of(workdir: Path) -> list[dict]:
    """The whole lines of metrics.jsonl, without what differs from run to run."""
    path = workdir / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    records = [json.loads(line) for line in text.split("\n")[:-1]]
    for record in records:
        del record["examples_per_second"]
    return records


def wait_for(process: subprocess.Popen, workdir: Path, phase: str) -> None:
    """Returns as soon as the process has logged an epoch of the phase."""
    until = time.monotonic() + PATIENCE
    while not any(record["phase"] == phase for record in records_of(workdir)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until, "waited too long"
        time.sleep(0.01)


def last_manifest(workdir: Path) -> dict[str, str]:
    """sha256 of every array of the last checkpoint, the optimizer's included."""
    checkpoints = Checkpoints(workdir)
    return checkpoints.about(checkpoints.steps()[-1])["manifest"]


@pytest.fixture(scope="module")
def commands(tmp_path_factory, child_environment) -> Commands:
    return Commands(tmp_path_factory.mktemp("commands"), child_environment)


@dataclasses.dataclass
class Runs:
    """The same command, left alone (whole) and disturbed: what each start of it gave."""

    flags: tuple[str, ...]
    whole: Path
    disturbed: Path
    left_alone: Ended
    disturbances: tuple[tuple[int, Ended], ...]  # (signal, how the process ended)
    finished: Ended


def _runs(commands: Commands, order: str, *disturbances: tuple[str, int]) -> Runs:
    """Starts the command, and again with signals: (phase, signal), one start for each."""
    whole, disturbed = commands.folder / order, commands.folder / f"{order}_disturbed"
    flags = ("--mode=two_phase", f"--order={order}", *SHORT)
    left_alone = commands.run(*flags, f"--workdir={whole}")  # and compiles for those that follow
    ended = []
    for phase, signum in disturbances:
        process = commands.start(*flags, f"--workdir={disturbed}")
        wait_for(process, disturbed, phase)
        process.send_signal(signum)
        ended.append((signum, end(process)))
    finished = commands.run(*flags, f"--workdir={disturbed}")
    return Runs(flags, whole, disturbed, left_alone, tuple(ended), finished)


@pytest.fixture(scope="module")
def joint(commands) -> Runs:
    return _runs(commands, "joint", ("high", signal.SIGKILL), ("both", signal.SIGTERM))


@pytest.fixture(scope="module")
def refine(commands) -> Runs:
    return _runs(commands, "refine", ("refine", signal.SIGINT))


@pytest.fixture(params=["joint", "refine"])
def runs(request, commands) -> Runs:
    del commands  # what both are made with
    return request.getfixturevalue(request.param)


# -- a whole run -----------------------------------------------------------------------------------


def test_prints_the_table_of_both_modes(runs):
    done = runs.left_alone
    assert done.status == 0, done.stderr
    assert [line.split("|")[1].strip() for line in done.table] == ["mode", "-----:", "low", "high"]
    assert "test set are read once, at the end" in done.stdout
    assert f"dual_precision.load('{runs.whole}')" in done.stdout
    assert "Traceback" not in done.stderr
    assert "examples/s" not in done.stderr, "the progress bar is for terminals"


def test_leaves_its_files(runs):
    names = {path.name for path in runs.whole.iterdir()}
    assert names == {
        ".lock",
        "checkpoints",
        "config.json",
        "metrics.jsonl",
        "parameters.txt",
        "results.json",
        "training.png",
    }
    records = records_of(runs.whole)
    assert [record["epoch"] for record in records] == list(range(1, len(records) + 1))
    config = json.loads((runs.whole / "config.json").read_text())
    assert config["experiment"]["passes"] == 8
    assert config["trained"] == ["low", "high"]
    phases = config_of_run(runs.whole).recipe.phases()
    assert len(records) == sum(phase.epochs for phase in phases)
    assert config["network"]["modes"] == {"low": "w2a2", "high": "w8a8"}
    assert config["network"]["stored"] == 8
    rows = json.loads((runs.whole / "results.json").read_text())["rows"]
    assert [(row["mode"], row["bits"]) for row in rows] == [("low", "w2a2"), ("high", "w8a8")]
    assert all(row["test"] > 80 for row in rows), "percent; a tenth would be chance"
    assert (runs.whole / "training.png").read_bytes().startswith(b"\x89PNG")
    assert "Total" in (runs.whole / "parameters.txt").read_text()


def test_low_is_not_moved_by_the_refining_phase(refine):
    records = records_of(refine.whole)
    losses = {r["validation_low_loss"] for r in records if r["phase"] == "refine"}
    before = [r["validation_low_loss"] for r in records if r["phase"] == "low"]
    assert losses == {before[-1]}


def test_load_gives_both_modes(joint):
    model, variables = load(joint.whole)
    assert model.modes.names == ("float", "low", "high")
    assert set(variables) == {"params", "batch_stats"}
    with pytest.raises(ValueError, match=r"no checkpoint of step 1: expected one of \["):
        load(joint.whole, step=1)


def test_finished_run_is_only_reported_again(commands, joint):
    before = last_manifest(joint.whole)
    again = commands.run(*joint.flags, f"--workdir={joint.whole}")
    assert again.status == 0, again.stderr
    assert again.table == joint.left_alone.table
    assert "going on with the run" in again.stdout
    assert last_manifest(joint.whole) == before


# -- disturbed -------------------------------------------------------------------------------------


def test_killed_and_stopped_run_ends_as_one_left_alone(runs):
    """joint: SIGKILL in phase 1, then SIGTERM in phase 2; refine: SIGINT in phase 2."""
    assert runs.finished.status == 0, runs.finished.stderr
    assert last_manifest(runs.disturbed) == last_manifest(runs.whole)
    assert records_of(runs.disturbed) == records_of(runs.whole)
    assert runs.finished.table == runs.left_alone.table


def test_a_kill_is_a_kill(joint):
    (_, killed), _ = joint.disturbances
    assert killed.status == -signal.SIGKILL


def test_signal_saves_and_says_how_to_go_on(runs):
    signum, stopped = runs.disturbances[-1]
    assert stopped.status == 128 + signum
    line = stopped.stderr.splitlines()[-1]
    assert line.startswith(f"{signal.Signals(signum).name}: saved at step ")
    assert "start the same command again to go on" in line
    assert str(runs.disturbed) in line
    assert "Traceback" not in stopped.stderr
    step = int(line.split("step ")[1].split(" ")[0])
    assert f"resumed at step {step}" in runs.finished.stderr


def test_disk_that_fills_up(commands, joint, tmp_path):
    """One line, nothing lost; with more room the same command ends as if nothing had been."""
    disk = tmp_path / "disk"
    disk.mkdir()
    try:
        mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
        mounted = subprocess.run(mount, capture_output=True, timeout=20).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("mounting a file system needs root")
    try:
        command = (*joint.flags, f"--workdir={disk / 'run'}")
        failed = commands.run(*command)
        assert failed.status == 1
        line = failed.stderr.splitlines()[-1]
        assert line.startswith("error: checkpoint could not be written")
        assert "Make room and start the same command again" in line
        assert "Traceback" not in failed.stderr
        good = Checkpoints(disk / "run").steps()[-1]
        assert f"the last good one is step {good}" in line
        subprocess.run(["mount", "-o", "remount,size=40m", str(disk)], check=True, timeout=20)
        done = commands.run(*command)
        assert done.status == 0, done.stderr
        assert f"resumed at step {good}" in done.stderr
        assert last_manifest(disk / "run") == last_manifest(joint.whole)
        assert records_of(disk / "run") == records_of(joint.whole)
    finally:
        subprocess.run(["umount", str(disk)], check=True, timeout=20)


# -- bad input -------------------------------------------------------------------------------------


def error_of(done: Ended) -> str:
    """The one line of a command that refused."""
    assert done.status == 1
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert line == done.stderr.splitlines()[-1]
    return line


def test_unknown_flag(commands):
    done = commands.run("--mod=low")
    assert "Unknown command line flag 'mod'" in error_of(done)
    assert len(done.stderr.splitlines()) == 1


def test_workdir_of_another_run(commands, joint):
    before = last_manifest(joint.whole), records_of(joint.whole)
    done = commands.run(*joint.flags, f"--workdir={joint.whole}", "--seed=1", "--low=w1a1")
    line = error_of(done)
    assert "low (there 'w2a2', now 'w1a1'), seed (there 0, now 1)" in line
    assert "choose another --workdir" in line
    assert (last_manifest(joint.whole), records_of(joint.whole)) == before
