"""The README's main command: a whole run, killed, stopped, resumed; what bad input gets."""

import dataclasses
import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from absl import flags
from experiments.recipes.recipes import RECIPES

from dual_precision import data, load
from dual_precision.training.checkpoint import Checkpoints
from experiments import cifar, cli
from experiments.recipes.config import Config
from experiments.workdir import only_user, open_workdir

ROOT = Path(__file__).parents[2]
SHORT = ("--dataset=digits", "--set=passes=16", "--set=epochs_per_evaluation=1")
PATIENCE = 120  # seconds, on a busy machine; an idle one needs ten


class Commands:
    """Starts `python -m experiments.cifar`; all share the data and the compiled programs."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.environment = {
            **os.environ,
            "TFDS_DATA_DIR": str(folder / "data"),
            "JAX_COMPILATION_CACHE_DIR": str(folder / "programs"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }

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
        del record["images_per_second"]
    return records


def wait_for(process: subprocess.Popen, workdir: Path, wanted) -> None:
    """Returns as soon as `wanted(records)` holds, while the process runs."""
    until = time.monotonic() + PATIENCE
    while not wanted(records_of(workdir)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until, "waited too long"
        time.sleep(0.01)


def phase_of(records: list[dict]) -> str | None:
    return records[-1]["phase"] if records else None


def last_manifest(workdir: Path) -> dict[str, str]:
    """sha256 of every array of the last checkpoint, the optimizer's included."""
    checkpoints = Checkpoints(workdir)
    return checkpoints.about(checkpoints.steps()[-1])["manifest"]


@pytest.fixture(scope="module")
def commands(tmp_path_factory) -> Commands:
    return Commands(tmp_path_factory.mktemp("commands"))


@dataclasses.dataclass
class Runs:
    """The same command, left alone (whole) and disturbed: what each start of it gave."""

    flags: tuple[str, ...]
    whole: Path
    disturbed: Path
    left_alone: Ended
    killed: Ended
    stopped: Ended
    finished: Ended


def _runs(commands: Commands, order: str, second_phase: str, signum: int) -> Runs:
    whole, disturbed = commands.folder / order, commands.folder / f"{order}_disturbed"
    flags = ("--mode=two_phase", f"--order={order}", *SHORT)
    left_alone = commands.run(*flags, f"--workdir={whole}")  # and compiles for those that follow
    process = commands.start(*flags, f"--workdir={disturbed}")
    wait_for(process, disturbed, lambda records: len(records) >= 1)
    process.kill()
    killed = end(process)
    process = commands.start(*flags, f"--workdir={disturbed}")
    wait_for(process, disturbed, lambda records: phase_of(records) == second_phase)
    process.send_signal(signum)
    stopped = end(process)
    finished = commands.run(*flags, f"--workdir={disturbed}")
    return Runs(flags, whole, disturbed, left_alone, killed, stopped, finished)


@pytest.fixture(scope="module")
def joint(commands) -> Runs:
    return _runs(commands, "joint", "both", signal.SIGTERM)


@pytest.fixture(scope="module")
def refine(commands) -> Runs:
    return _runs(commands, "refine", "refine", signal.SIGINT)


@pytest.fixture(params=["joint", "refine"])
def runs(request) -> Runs:
    return request.getfixturevalue(request.param)


# -- a whole run -----------------------------------------------------------------------------------


def test_prints_the_table_of_both_modes(runs):
    done = runs.left_alone
    assert done.status == 0, done.stderr
    assert [line.split("|")[1].strip() for line in done.table] == ["mode", "-----:", "low", "high"]
    assert "test set are read once, at the end" in done.stdout
    assert f"dual_precision.load('{runs.whole}')" in done.stdout
    assert "Traceback" not in done.stderr
    assert "images/s" not in done.stderr, "the progress bar is for terminals"


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
    assert config["experiment"]["passes"] == 16
    phases = RECIPES["two_phase"](Config(**config["experiment"]))
    assert len(records) == sum(phase.epochs for phase in phases)
    assert config["network"]["modes"] == {"low": "w2a2", "high": "w8a8"}
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
    """SIGKILL in phase 1, then SIGTERM (joint) or SIGINT (refine) in phase 2."""
    assert runs.killed.status == -signal.SIGKILL
    assert runs.finished.status == 0, runs.finished.stderr
    assert last_manifest(runs.disturbed) == last_manifest(runs.whole)
    assert records_of(runs.disturbed) == records_of(runs.whole)
    assert runs.finished.table == runs.left_alone.table


def test_signal_saves_and_says_how_to_go_on(runs):
    name = "SIGTERM" if "--order=joint" in runs.flags else "SIGINT"
    assert runs.stopped.status == 128 + signal.Signals[name]
    line = runs.stopped.stderr.splitlines()[-1]
    assert line.startswith(f"{name}: saved at step ")
    assert "start the same command again to go on" in line
    assert str(runs.disturbed) in line
    assert "Traceback" not in runs.stopped.stderr
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


# -- bad input, through the real command -----------------------------------------------------------


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


def test_loss_that_is_not_finite(commands, tmp_path):
    done = commands.run(*SHORT, f"--workdir={tmp_path}", "--set=learning_rate=1e30")
    line = error_of(done)
    assert "loss is not finite at step" in line
    assert "the last good checkpoint is none" in line
    assert "smaller learning rate" in line


# -- bad input, in this process --------------------------------------------------------------------


@pytest.fixture
def parse():
    """Sets the command's flags; they are put back after the test."""
    if "mode" not in flags.FLAGS:
        cli.define_flags()
    yield lambda *arguments: flags.FLAGS(["cifar", *arguments])
    for flag in flags.FLAGS.get_flags_for_module(cli.__name__):
        flag.unparse()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--mode=dual"], "mode 'dual' is unknown: expected one of ['float', 'low',"),
        (["--order=up"], "order 'up' is unknown: expected one of ['joint', 'refine']"),
        (["--model=vgg"], "model 'vgg' is unknown: expected one of ['mlp',"),
        (["--preset=fast"], "preset 'fast' is unknown: expected one of ['digits', 'paper',"),
        (["--low=w0a2"], "precision 'w0a2': expected w<bits>a<bits>, bits from 1 to 8"),
        (["--low=w9a9"], "precision 'w9a9': expected w<bits>a<bits>, bits from 1 to 8"),
        (["--high=a33"], "precision 'a33': expected w<bits>a<bits>, bits from 1 to 8"),
        (["--order=refine", "--low=w8a8", "--high=w4a4"], "low=w8a8 has wider weights than"),
        (["--set=pases=3"], "setting 'pases' is unknown: expected one of ["),
        (["--set=passes=x"], "--set 'passes=x': expected a value of type float"),
        (["--set=passes"], "--set 'passes': expected name=value"),
        (["--set=passes=inf"], "passes=inf: expected a finite number"),
        (["--seed=1", "--set=seed=2"], "--seed and --set seed=...: expected one of them"),
        (["--mode=low", "--order=refine"], "['order'] has no effect with --mode=low"),
        (
            ["--mode=float", "--set=distillation=0.1"],
            "['distillation'] has no effect with --mode=float",
        ),
        (
            ["--order=refine", "--set=distillation=0.1"],
            "['distillation'] has no effect with --mode=two_phase --order=refine",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_settings_refused(parse, arguments, says):
    parse("--dataset=digits", *arguments)
    with pytest.raises(ValueError, match=re.escape(says)) as caught:
        cli.read_config()
    assert "\n" not in str(caught.value)


def test_wrong_flags_are_one_line(parse):
    for argument, says in (("--seed=x", "--seed=x"), ("--nothing=1", "flag 'nothing'")):
        with pytest.raises(SystemExit) as stop:
            cli._parse_flags(["cifar", argument])
        assert str(stop.value.code).startswith("error: ")
        assert says in str(stop.value.code)
        assert "\n" not in str(stop.value.code)


def test_presets_follow_the_dataset_and_settings_the_flags(parse):
    parse("--dataset=digits", "--set=batch_size=32", "--mode=low")
    config, preset = cli.read_config()
    assert (preset, config.batch_size, config.mode) == ("digits", 32, "low")
    parse("--dataset=cifar10", "--preset=paper")
    assert cli.read_config()[1] == "paper"


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EDQUOT, "Quota")]
)
def test_full_disk_elsewhere_names_the_way_out(monkeypatch, error):
    def main():
        raise error

    monkeypatch.setattr(cli, "_logs_to_stderr", lambda: None)
    monkeypatch.setattr(cli, "keep_freed_memory", lambda: True)
    monkeypatch.setattr(cli.app, "run", lambda guarded, **_: guarded(["cifar"]))
    monkeypatch.setattr(cli, "FLAGS", SimpleNamespace(traceback=False))
    with pytest.raises(SystemExit) as stop:
        cli.run(main)
    assert str(stop.value.code).endswith("make room and start the same command again: it goes on")


def test_interrupted_outside_of_training(monkeypatch, capsys):
    def main():
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_logs_to_stderr", lambda: None)
    monkeypatch.setattr(cli, "keep_freed_memory", lambda: True)
    monkeypatch.setattr(cli.app, "run", lambda guarded, **_: guarded(["cifar"]))
    with pytest.raises(SystemExit) as stop:
        cli.run(main)
    assert stop.value.code == 130
    assert capsys.readouterr().err == "stopped: start the same command again to go on\n"


DESCRIPTION = {"preset": "digits", "experiment": dataclasses.asdict(Config()), "network": {}}


@pytest.mark.parametrize("below", ["", "deeper/still"])
def test_workdir_that_cannot_be_written(tmp_path, below):
    taken = tmp_path / "taken"
    taken.write_text("a file")
    wrong = r"workdir .* cannot be written .*: choose another --workdir"
    with pytest.raises(OSError, match=wrong), only_user(taken / below):
        pass
    assert taken.read_text() == "a file"


def test_workdir_is_claimed_once(tmp_path):
    assert open_workdir(tmp_path, DESCRIPTION, resume=True) is False
    assert json.loads((tmp_path / "config.json").read_text()) == DESCRIPTION
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    assert open_workdir(tmp_path, DESCRIPTION, resume=False) is False, "nothing begun yet"
    other = {**DESCRIPTION, "experiment": dataclasses.asdict(Config(seed=3, batch_size=64))}
    with pytest.raises(
        ValueError, match=r"batch_size \(there 128, now 64\), seed \(there 0, now 3"
    ):
        open_workdir(tmp_path, other, resume=True)
    (tmp_path / "checkpoints" / "6").mkdir(parents=True)
    assert open_workdir(tmp_path, DESCRIPTION, resume=True) is True
    with pytest.raises(ValueError, match=r"--resume=false was given: choose another --workdir"):
        open_workdir(tmp_path, DESCRIPTION, resume=False)
    assert (tmp_path / "checkpoints" / "6").is_dir()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"experiment": 3}', '{"other": {}}'])
def test_workdir_with_a_damaged_config(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"is not a run's config .*: use another --workdir"):
        open_workdir(tmp_path, DESCRIPTION, resume=True)
    assert (tmp_path / "config.json").read_text() == text


def test_unknown_dataset(parse, tmp_path):
    parse("--dataset=emnist", f"--workdir={tmp_path / 'run'}")
    with pytest.raises(ValueError, match="'emnist', expected one of cifar10"):
        cifar.main()
    assert not (tmp_path / "run").exists()


def test_batch_larger_than_the_split(parse, commands, tmp_path):
    where = f"--data_dir={commands.environment['TFDS_DATA_DIR']}"
    parse("--dataset=digits", "--set=batch_size=2000", f"--workdir={tmp_path}", where)
    with pytest.raises(ValueError, match="batch of 2000 images from a split of 1222: expected at"):
        cifar.main()


def test_training_does_not_see_the_test_set(parse, commands, tmp_path):
    """Of the whole command, only the report reads it, once, at the end."""
    parse("--dataset=digits", "--mode=float", "--set=passes=2")
    whole = data.load("digits", data_dir=commands.environment["TFDS_DATA_DIR"])
    without = {f.name: getattr(whole, f.name) for f in dataclasses.fields(whole)}
    del without["test"]
    config, preset = cli.read_config()
    dataset = SimpleNamespace(**without)
    cifar.train(config, cifar.describe_run(config, preset, dataset), dataset, tmp_path)
    assert Checkpoints(tmp_path).steps()
