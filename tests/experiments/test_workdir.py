"""The folder of a run: who may use it, whose it is, and its name by default."""

import json
import re
import signal
import subprocess
import sys

import pytest

from experiments.lm.training import default_language_workdir
from experiments.recipes.config import Config, make_config
from experiments.recipes.language_config import make_language_config
from experiments.recipes.settings import read_widths
from experiments.workdir import default_workdir, has_begun, only_user, open_workdir

CONFIG = make_config("paper", {})


def description_of(config: Config) -> dict:
    network = {"name": config.model, **config.modes.to_json()}
    return {"preset": "digits", "experiment": config.to_json(), "network": network}


DESCRIPTION = description_of(CONFIG)

HOLD = """
import fcntl, sys, time
with open(sys.argv[1], "a") as handle:
    fcntl.flock(handle, fcntl.LOCK_EX)
    print("held", flush=True)
    time.sleep(600)
"""


def test_one_process_at_a_time_and_the_lock_survives_a_crash(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / ".lock")], stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(ValueError, match="in use by another process"), only_user(tmp_path):
            pass
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    with only_user(tmp_path):
        pass


@pytest.mark.parametrize("below", ["", "deeper/still"])
def test_workdir_that_cannot_be_written(tmp_path, below):
    taken = tmp_path / "taken"
    taken.write_text("a file")
    wrong = r"workdir .* cannot be written .*: choose another --workdir"
    with pytest.raises(OSError, match=wrong), only_user(taken / below):
        pass
    assert taken.read_text() == "a file"


def test_workdir_is_claimed_once(tmp_path, capsys):
    open_workdir(tmp_path, DESCRIPTION, resume=True)
    assert json.loads((tmp_path / "config.json").read_text()) == DESCRIPTION
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    open_workdir(tmp_path, DESCRIPTION, resume=False)
    assert not has_begun(tmp_path)
    other = description_of(make_config("paper", {"seed": 3, "batch_size": 64}))
    with pytest.raises(
        ValueError, match=r"batch_size \(there 128, now 64\), seed \(there 0, now 3"
    ):
        open_workdir(tmp_path, other, resume=True)
    (tmp_path / "checkpoints" / "6").mkdir(parents=True)
    assert has_begun(tmp_path)
    assert capsys.readouterr().out == ""
    open_workdir(tmp_path, DESCRIPTION, resume=True)
    assert "going on with the run in" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"--resume=false was given: choose another --workdir"):
        open_workdir(tmp_path, DESCRIPTION, resume=False)
    assert (tmp_path / "checkpoints" / "6").is_dir()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"experiment": 3}', '{"other": {}}'])
def test_workdir_with_a_damaged_config(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"is not a run's config .*: use another --workdir"):
        open_workdir(tmp_path, DESCRIPTION, resume=True)
    assert (tmp_path / "config.json").read_text() == text


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({}, "cifar10-two_phase-joint-w2a2-w8a8-quick-seed0"),
        ({"order": "refine", "seed": 2}, "cifar10-two_phase-refine-w2a2-w8a8-quick-seed2"),
        ({"mode": "joint", "low": "w1a1"}, "cifar10-joint-w1a1-w8a8-quick-seed0"),
        (
            {"passes": 28.0, "split": False, "model": "resnet20"},
            "cifar10-two_phase-joint-w2a2-w8a8-quick-model=resnet20-passes=28-split=false-seed0",
        ),
        (
            {"passes": 14.0, "model": "resnet8_fast"},
            "cifar10-two_phase-joint-w2a2-w8a8-quick-seed0",
        ),
    ],
)
def test_runs_have_folders_of_their_own(settings, name):
    assert str(default_workdir(make_config("quick", settings), "quick")) == f"runs/{name}"


def test_what_is_no_name_of_a_folder_is_told_apart_by_a_hash():
    """As are paths, and whatever is long."""
    names = set()
    for init in ("", "cifar10", "a/b", "a_b", "a" * 300, "a" * 301):
        name = default_workdir(make_config("quick", {"init": init}), "quick").name
        assert re.fullmatch(r"[\w.=+-]{1,150}", name, re.ASCII)
        names.add(name)
    assert len(names) == 6
    widths = [read_widths({"stage3_*": {"low": low}}) for low in ("w1a2", "w1a4")]
    own = {default_workdir(make_config("quick", {"widths": w}), "quick") for w in widths}
    assert len(own) == 2


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({}, "austen-transformer-two_phase-joint-w2a8-w8a8-quick-seed0"),
        ({"model": "lstm", "mode": "float"}, "austen-lstm-float-w2a8-w8a8-quick-seed0"),
        (
            {"model": "lstm", "mode": "float", "passes": 8.0},
            "austen-lstm-float-w2a8-w8a8-quick-passes=8-seed0",
        ),
    ],
)
def test_runs_on_text_have_folders_of_their_own(settings, name):
    config = make_language_config("quick", settings)
    assert str(default_language_workdir(config, "quick")) == f"runs/{name}"


def test_texts_of_one_name_are_told_apart_by_their_folder(tmp_path):
    folders = set()
    for place in ("one", "other"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "text.txt").write_text("a text")
        config = make_language_config("quick", {"dataset": str(tmp_path / place / "text.txt")})
        folders.add(default_language_workdir(config, "quick"))
    assert len(folders) == 2
    assert all(folder.name.startswith("text-transformer-") for folder in folders)
