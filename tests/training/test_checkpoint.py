"""Checkpoints: a damaged one is reported and set aside, the one before it is used."""

import errno
import gc
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dual_precision.training import checkpoint
from dual_precision.training.checkpoint import Checkpoints
from dual_precision.training.manifest import manifest
from dual_precision.training.reading import CheckpointError

CONFIG = {"network": {"name": "none"}}
PROGRESS = {"phase": 0}


def state_at(step: int) -> dict:
    """A small state of several dtypes whose numbers tell the step."""
    return {
        "step": jnp.int32(step),
        "params": {"kernel": jnp.arange(12, dtype=jnp.float32).reshape(3, 4) + step},
        "batch_stats": {},
        "opt_state": (jnp.full((5,), step, jnp.float32), ()),
    }


def abstract(state):
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), state
    )


def same(left, right) -> bool:
    return manifest(left) == manifest(right)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A workdir with checkpoints of steps 10 and 20; tests damage copies of it."""
    workdir = tmp_path_factory.mktemp("saved")
    checkpoints = Checkpoints(workdir, CONFIG)
    for step in (10, 20):
        checkpoints.save(step, state_at(step), PROGRESS, score=step / 100)
    checkpoints.close()
    assert checkpoints.steps() == [10, 20]
    return workdir


@pytest.fixture
def workdir(saved, tmp_path) -> Iterator[Path]:
    copy = tmp_path / "run"
    shutil.copytree(saved, copy)
    yield copy
    gc.collect()  # what Orbax left behind belongs to this test, not to a later one


def newest(checkpoints: Checkpoints) -> dict:
    return checkpoints.newest(lambda step: checkpoints.restore(step, abstract(state_at(step))))


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def largest(folder: Path) -> Path:
    return max(files_of(folder), key=lambda path: path.stat().st_size)


# -- what is written -------------------------------------------------------------------------------


def test_restores_what_was_saved(workdir):
    checkpoints = Checkpoints(workdir)
    assert same(checkpoints.restore(20, abstract(state_at(20))), state_at(20))
    about = checkpoints.about(20)
    assert about["config"] == CONFIG
    assert about["progress"] == {"phase": 0, "score": 0.2, "validated": 1}
    assert about["manifest"] == manifest(state_at(20))


def test_restore_without_a_target_gives_what_load_needs(workdir):
    state = Checkpoints(workdir).restore(20)
    assert same(state["params"], state_at(20)["params"])
    assert isinstance(state["params"]["kernel"], np.ndarray)


_SAVE_ON_EIGHT = """
import sys, jax.numpy as jnp
from dual_precision.training.checkpoint import Checkpoints
from dual_precision.training.sharding import batch_mesh, replicate
state = {"params": {"kernel": jnp.arange(6, dtype=jnp.float32)}, "opt_state": ()}
checkpoints = Checkpoints(sys.argv[1])
checkpoints.save(1, replicate(state, batch_mesh(8)), {}, 0.0)
checkpoints.close()
"""


def test_saved_from_eight_devices_read_on_those_there_are(tmp_path):
    command = [sys.executable, "-W", "ignore", "-c", _SAVE_ON_EIGHT, str(tmp_path)]
    flag = "--xla_force_host_platform_device_count=8"
    subprocess.run(command, check=True, timeout=100, env={**os.environ, "XLA_FLAGS": flag})
    checkpoints = Checkpoints(tmp_path)
    kernel = checkpoints.restore(1)["params"]["kernel"]
    np.testing.assert_array_equal(kernel, np.arange(6))
    target = {"params": {"kernel": jnp.zeros(6, jnp.float32)}, "opt_state": ()}
    kernel = checkpoints.restore(1, abstract(target))["params"]["kernel"]
    assert kernel.sharding.device_set == {jax.devices()[0]}


def test_restore_as_another_structure_is_refused(workdir):
    other = {**state_at(20), "params": {"kernel": jnp.zeros((3, 5), jnp.float32)}}
    with pytest.raises(CheckpointError, match="step 20"):
        Checkpoints(workdir).restore(20, abstract(other))


def test_manifest_tells_names_values_shapes_and_dtypes():
    leaf = np.zeros((2, 3), np.float32)
    names = manifest({"a": leaf, "b": {"c": leaf}})
    assert sorted(names) == ["['a']", "['b']['c']"]
    assert len({*names.values()}) == 1
    negative_zero = -leaf
    others = [leaf.reshape(3, 2), leaf.astype(np.int32), negative_zero, leaf[:1]]
    assert len({manifest({"a": other})["['a']"] for other in [leaf, *others]}) == 5
    assert manifest({"a": jnp.asarray(leaf)}) == manifest({"a": leaf.T.copy().T})


def test_keeps_the_latest_two_and_the_best(tmp_path):
    checkpoints = Checkpoints(tmp_path, CONFIG)
    for step, score in ((1, 0.1), (2, 0.9), (3, 0.2), (4, 0.3), (5, -1.0)):
        checkpoints.save(step, state_at(step), PROGRESS, score)
    checkpoints.close()
    assert checkpoints.steps() == [2, 4, 5]
    assert checkpoints.best() == 2


def test_a_score_of_more_modes_ranks_before_those_of_fewer(tmp_path):
    """A mode that is not trained yet cannot pull the mean down; what was not measured is last."""
    checkpoints = Checkpoints(tmp_path, CONFIG)
    for step, score, modes in ((1, 0.9, 1), (2, -3.0, 2), (3, -3.5, 2), (4, 0.0, 0)):
        checkpoints.save(step, state_at(step), PROGRESS, score, modes)
    checkpoints.close()
    assert checkpoints.steps() == [2, 3, 4]
    assert checkpoints.best() == 2


def test_two_in_a_row_without_waiting(tmp_path):
    checkpoints = Checkpoints(tmp_path, CONFIG)
    state = state_at(1)
    checkpoints.save(1, state, PROGRESS, 0.0)
    jax.tree.map(lambda leaf: leaf.delete(), state)  # as the next step does, by donating it
    checkpoints.save(2, state_at(2), PROGRESS, 0.0)
    checkpoints.close()
    assert same(checkpoints.restore(1, abstract(state_at(1))), state_at(1))


def test_no_checkpoint_yet(tmp_path):
    checkpoints = Checkpoints(tmp_path / "missing")
    assert checkpoints.steps() == []
    assert newest(checkpoints) is None
    checkpoints.wait()
    checkpoints.close()
    assert not (tmp_path / "missing").exists()


# -- what is damaged -------------------------------------------------------------------------------


def truncate(step: Path) -> None:
    path = largest(step / "state")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def delete_file(step: Path) -> None:
    largest(step / "state").unlink()


def empty_folder(step: Path) -> None:
    shutil.rmtree(step)
    step.mkdir()


def break_json(step: Path) -> None:
    for path in files_of(step / "about"):
        path.write_text(path.read_text()[:-20])


def alter_json(step: Path) -> None:
    (path,) = [p for p in files_of(step / "about") if b"manifest" in p.read_bytes()]
    about = json.loads(path.read_text())
    about["progress"]["phase"] = 7
    path.write_text(json.dumps(about))


def empty_files(step: Path) -> None:
    for path in files_of(step):
        path.write_bytes(b"")


def replace_state(step: Path) -> None:
    """A sound state, of another step."""
    shutil.rmtree(step / "state")
    shutil.copytree(step.with_name("10") / "state", step / "state")


DAMAGE = [
    truncate, delete_file, empty_folder, break_json, alter_json, empty_files, replace_state
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_step_is_said_and_the_one_before_taken(workdir, caplog, damage):
    damage(workdir / "checkpoints" / "20")
    checkpoints = Checkpoints(workdir, CONFIG)
    with caplog.at_level(logging.WARNING, "dual_precision"):
        assert same(newest(checkpoints), state_at(10))
    (line,) = caplog.messages
    assert line.startswith("checkpoint skipped: step 20")
    assert "\n" not in line
    assert checkpoints.steps() == [10, 20]  # reading moves nothing
    checkpoints.set_aside_after(10)
    assert checkpoints.steps() == [10]
    assert [path.name for path in (workdir / "checkpoints_damaged").iterdir()] == ["20_0"]
    # Training goes on: the same step is written again, and later ones.
    for step in (20, 30):
        checkpoints.save(step, state_at(step), PROGRESS, score=0.5)
    checkpoints.close()
    assert same(newest(Checkpoints(workdir)), state_at(30))
    assert same(checkpoints.restore(20, abstract(state_at(20))), state_at(20))


def test_a_checkpoint_under_another_number_is_not_that_step(workdir):
    """Every digest in it is right; its own step is in what was sealed."""
    folder = workdir / "checkpoints"
    (folder / "20").rename(folder / "30")
    checkpoints = Checkpoints(workdir)
    with pytest.raises(
        CheckpointError, match="step 30: its folder holds the checkpoint of step 20"
    ):
        checkpoints.about(30)
    assert same(newest(checkpoints), state_at(10))


def test_set_aside_twice(workdir):
    for step in (20, 10):
        Checkpoints(workdir).set_aside(step)
    assert sorted(p.name for p in (workdir / "checkpoints_damaged").iterdir()) == ["10_1", "20_0"]


@pytest.mark.parametrize("damage", [truncate, break_json])
def test_all_damaged(workdir, damage):
    for step in ("10", "20"):
        damage(workdir / "checkpoints" / step)
    with pytest.raises(CheckpointError, match=r"step 20.*step 10.*another workdir") as caught:
        newest(Checkpoints(workdir))
    assert "\n" not in str(caught.value)
    assert Checkpoints(workdir).steps() == [10, 20], "nothing is moved where nothing can be read"


def test_half_written_folder_is_not_a_checkpoint(workdir):
    half = workdir / "checkpoints" / "30.orbax-checkpoint-tmp"
    shutil.copytree(workdir / "checkpoints" / "20", half)
    (half / "_CHECKPOINT_METADATA").unlink()
    (half / "commit_success.txt").unlink()
    checkpoints = Checkpoints(workdir, CONFIG)
    assert checkpoints.steps() == [10, 20]
    assert same(newest(checkpoints), state_at(20))
    checkpoints.save(30, state_at(30), PROGRESS, 0.0)
    checkpoints.close()
    assert same(newest(Checkpoints(workdir)), state_at(30))


@pytest.mark.parametrize("bit", [0, 6])
def test_one_flipped_bit_in_any_file_never_gives_wrong_numbers(saved, workdir, bit):
    """In the middle of every file of the newest step in turn: passed over, or without effect."""
    detected = []
    target = abstract(state_at(20))
    for path in files_of(saved / "checkpoints" / "20"):
        content = bytearray(path.read_bytes())
        if not content:
            continue
        content[len(content) // 2] ^= 1 << bit
        relative = path.relative_to(saved / "checkpoints" / "20")
        damaged = workdir / "checkpoints" / "20" / relative
        damaged.write_bytes(content)
        checkpoints = Checkpoints(workdir)
        try:
            about, state = checkpoints.about(20), checkpoints.restore(20, target)
            assert same(state, state_at(20)), relative
            assert about["progress"] == {"phase": 0, "score": 0.2, "validated": 1}, relative
        except CheckpointError:
            detected.append(relative)
        shutil.copy(path, damaged)
    assert any(path.parts[0] == "state" for path in detected)
    assert any(path.parts[0] == "about" for path in detected)


@pytest.mark.parametrize("item", ["metrics", "_CHECKPOINT_METADATA"])
def test_training_goes_on_beside_damage_that_restoring_does_not_meet(workdir, item):
    """Orbax reads the scores and times of all steps when the next is saved."""
    step = workdir / "checkpoints" / "20"
    for path in files_of(step / item) if (step / item).is_dir() else [step / item]:
        path.write_bytes(path.read_bytes()[:3])
    checkpoints = Checkpoints(workdir, CONFIG)
    found = newest(checkpoints)
    assert same(found, state_at(int(found["step"])))
    checkpoints.save(30, state_at(30), PROGRESS, 0.0)
    checkpoints.close()
    assert same(newest(Checkpoints(workdir)), state_at(30))


def test_best_passes_over_a_damaged_step(workdir):
    alter_json(workdir / "checkpoints" / "20")
    assert Checkpoints(workdir).best() == 10


@pytest.mark.parametrize("damage", DAMAGE)
def test_the_best_that_is_sound(workdir, damage):
    damage(workdir / "checkpoints" / "20")
    checkpoints = Checkpoints(workdir)
    assert same(checkpoints.best_sound(lambda step: checkpoints.restore(step)), state_at(10))


# -- what cannot be written ------------------------------------------------------------------------


def full(*_args, **_kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("method", ["save", "wait_until_finished", "check_for_errors"])
def test_full_disk_is_one_line_with_the_way_out(workdir, monkeypatch, method):
    checkpoints = Checkpoints(workdir, CONFIG)

    def save_and_wait():
        checkpoints.save(30, state_at(30), PROGRESS, 0.0)
        checkpoints.wait()

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.ocp.CheckpointManager, method, full)
        with pytest.raises(CheckpointError, match="Make room and start the same comm") as caught:
            save_and_wait()
    assert "No space left on device" in str(caught.value)
    assert "\n" not in str(caught.value)
    checkpoints.close()
    step = checkpoints.steps()[-1]
    assert step >= 20
    assert same(newest(Checkpoints(workdir)), state_at(step))


def test_too_little_room_is_said_before_anything_is_written(workdir, monkeypatch):
    checkpoints = Checkpoints(workdir, CONFIG)
    usage = shutil.disk_usage(workdir)._replace(free=2**20)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(CheckpointError, match=r"1 MiB free.*no space left.*last good one is step"):
        checkpoints.save(30, state_at(30), PROGRESS, 0.0)
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["10", "20"]


_FILL = """
import sys, jax.numpy as jnp
from dual_precision.training.checkpoint import Checkpoints
from dual_precision.training.reading import CheckpointError
checkpoints = Checkpoints(sys.argv[1])
try:
    for step in range(1, 9):
        state = {"params": jnp.arange(step * 250_000, dtype=jnp.float32) ** 0.5, "opt_state": ()}
        checkpoints.save(step, state, {}, 0.0)
        checkpoints.wait()
except CheckpointError as error:
    sys.exit(f"error: {error}")
"""


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 8 MiB, where the test may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, timeout=20).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("mounting a file system needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True, timeout=20)


def test_disk_that_fills_up(small_disk):
    """The process ends, says it in one line, and what was good before can still be read."""
    command = [sys.executable, "-W", "ignore", "-c", _FILL, str(small_disk)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: checkpoint could not be written")
    assert "Make room" in last
    checkpoints = Checkpoints(small_disk)
    good = checkpoints.steps()
    assert good
    assert f"the last good one is step {good[-1]}" in last
    assert len(done.stderr.splitlines()) == 1
    assert len(checkpoints.restore(good[-1])["params"]) == good[-1] * 250_000


_KILLED = """
import os, signal, sys, jax.numpy as jnp
from dual_precision.training.checkpoint import Checkpoints
checkpoints = Checkpoints(sys.argv[1])
state = {"params": jnp.arange(2_000_000, dtype=jnp.float32), "opt_state": ()}
checkpoints.save(1, state, {}, 0.0)
checkpoints.wait()
checkpoints.save(2, state, {}, 0.0)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_killed_while_writing(tmp_path):
    command = [sys.executable, "-W", "ignore", "-c", _KILLED, str(tmp_path)]
    assert subprocess.run(command, timeout=100).returncode == -signal.SIGKILL
    checkpoints = Checkpoints(tmp_path)
    left = os.listdir(checkpoints.folder)
    assert 1 in checkpoints.steps()
    newest_step = checkpoints.newest(lambda step: (checkpoints.restore(step), step)[1])
    assert newest_step in (1, 2), left
    checkpoints.save(3, state_at(3), {}, 0.0)
    checkpoints.close()
    assert checkpoints.steps()[-1] == 3
    assert not [name for name in os.listdir(checkpoints.folder) if not name.isdigit()]
