"""Reading checkpoints that are damaged, exchanged or forged: an error, and nothing beside it."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dual_precision.training.checkpoint import Checkpoints
from dual_precision.training.manifest import seal_of
from dual_precision.training.reading import LARGEST_RECORD, CheckpointError

LEAVES = 30  # enough of them for some to be read still when the first one fails


@pytest.fixture
def workdir(tmp_path) -> Path:
    """Checkpoints of steps 1 and 2, whose numbers tell the step."""
    with Checkpoints(tmp_path, {"network": {}}) as checkpoints:
        for step in (1, 2):
            params = {f"leaf{i}": np.full((8, 8), step + i, np.float32) for i in range(LEAVES)}
            # Arrays of both kinds, which Orbax reads side by side.
            state = {"step": np.int32(step), "params": params, "batch_stats": jax_arrays(step)}
            checkpoints.save(step, state, {"phase": 0}, score=0.5)
    return tmp_path


def jax_arrays(step: int) -> dict[str, jax.Array]:
    return {f"leaf{i}": jnp.full((8, 8), step + i, jnp.float32) for i in range(LEAVES)}


def exchange(folder: Path) -> None:
    one, two, spare = (folder / name for name in ("1", "2", "spare"))
    one.rename(spare)
    two.rename(one)
    spare.rename(two)


def test_exchanged_folders_are_told(workdir):
    exchange(workdir / "checkpoints")
    checkpoints = Checkpoints(workdir)
    for step, other in ((1, 2), (2, 1)):
        with pytest.raises(CheckpointError, match=f"step {step}: .* holds the .* of step {other}"):
            checkpoints.restore(step)
    with pytest.raises(CheckpointError, match=r"can be read: step 2: .*; step 1: "):
        checkpoints.newest(checkpoints.restore)
    with pytest.raises(CheckpointError, match="can be read"):
        checkpoints.best()


@pytest.mark.parametrize("entry", ["step", "run", "manifest"])
def test_json_that_does_not_say_all_is_refused(workdir, entry):
    path = workdir / "checkpoints" / "2" / "about" / "metadata"
    about = json.loads(path.read_text())
    del about["seal"], about[entry]
    path.write_text(json.dumps({**about, "seal": seal_of(about)}))
    with pytest.raises(CheckpointError, match=f"step 2: its JSON has no {entry}: expected all of"):
        Checkpoints(workdir).about(2)


@pytest.mark.parametrize("name", ["about/metadata", "metrics/metrics", "state/_METADATA"])
def test_a_sparse_file_of_gibibytes_is_not_read(workdir, name):
    path = workdir / "checkpoints" / "2" / name
    with path.open("r+b") as file:
        file.truncate(3 << 30)
    with pytest.raises(CheckpointError, match=f"{path.name} of 3072 MiB: expected at most"):
        Checkpoints(workdir).restore(2)
    assert LARGEST_RECORD < 3 << 30


def test_json_that_is_nested_deeply_is_refused(workdir):
    path = workdir / "checkpoints" / "2" / "about" / "metadata"
    path.write_text("[" * 100_000 + "]" * 100_000)
    with pytest.raises(CheckpointError, match="step 2 cannot be read"):
        Checkpoints(workdir).restore(2)


_READ = """
import sys, jax, numpy as np
from dual_precision.training.checkpoint import Checkpoints
from dual_precision.training.reading import CheckpointError
leaf = jax.ShapeDtypeStruct(
    (8, 8), np.float32, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0])
)
count = 0
for target in (None, {"params": {f"leaf{i}": leaf for i in range(%d)}}):
    for _ in range(5):
        try:
            Checkpoints(sys.argv[1]).restore(2, target)
        except CheckpointError:
            count += 1
print(count)
"""


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"")])
def test_no_thread_of_the_reader_says_anything(workdir, damage):
    """Orbax closes its event loop when the first array fails; what is still read then must not be
    heard of."""
    for path in (workdir / "checkpoints" / "2" / "state" / "d").iterdir():
        damage(path)
    done = subprocess.run(
        [sys.executable, "-c", _READ % LEAVES, str(workdir)],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.stdout.split() == ["10"]
    assert done.stderr == ""
