"""Several processes train one network. This file is also the program that they run."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from absl import flags

from dual_precision import data, modes
from dual_precision.models import MLP
from dual_precision.tasks.classification import Classification
from dual_precision.training.checkpoint import Checkpoints
from dual_precision.training.fit import fit
from dual_precision.training.initialize import FitInputSteps, FitWeightSteps
from dual_precision.training.log import read_records
from dual_precision.training.methods.modes import Split, Together
from dual_precision.training.optimizers import RATE, STEP_RATE, Sgd
from dual_precision.training.options import FitOptions
from dual_precision.training.phases import Phase
from dual_precision.training.processes import Group
from dual_precision.training.schedules import warmup_cosine
from experiments import cli

pytestmark = pytest.mark.slow

SIZE, BATCH = 96, 16
HOST = "127.0.0.2"  # loopback, and not what the name of a machine leads to
PATIENCE = 600  # seconds: a busy machine may stop for minutes
MODEL = MLP(num_classes=4, modes=modes(low="w2a2", high="w8a8"), hidden=(16,))
TASK = Classification((8, 8, 1), partial(data.augment, padding=1, flip=True))
SCHEDULES = {name: partial(warmup_cosine, peak=0.05, warmup=0.1) for name in (RATE, STEP_RATE)}
START = (FitWeightSteps("low"), FitInputSteps("high"), FitInputSteps("low"))


def phase(name, loss, epochs=1, **more):
    return Phase(name, epochs, loss.precisions, loss, Sgd(), SCHEDULES, **more)


BOTH = phase("both", Split(("high", "low")), at_start=START)
# The first is trained on one device, the second on several processes, the last on one device again.
PHASES = (phase("float", Together(("float",))), BOTH, phase("again", Together(("float",))))


def split(size: int, seed: int) -> data.Images:
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (size, 8, 8, 1)).astype(np.uint8)
    return data.Images(images, generator.integers(0, 4, size).astype(np.int32))


def train(workdir: Path, phases, seed=0, shard_data=False):
    options = FitOptions(BATCH, seed, shard_data=shard_data)
    return fit(MODEL, TASK, phases, split(SIZE, seed), split(40, 1), options, workdir, config={})


def command(*, workdir: str, phases: int, seed: int, shard_data: bool) -> None:
    """Trains the first so many phases; very long where there are none of them."""
    long = (phase("long", Together(("float",)), epochs=10_000),)
    train(Path(workdir), PHASES[:phases] or long, seed, shard_data)


def start(coordinator: str, processes: int, process: int, devices: int, workdir: Path, *more: str):
    """A process of the program."""
    words = (f"--coordinator={coordinator}", f"--processes={processes}", f"--process={process}")
    words += ("--join_seconds=300", "--silence_seconds=120")  # unless `more` says otherwise
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_NUMPY_DTYPE_PROMOTION": "strict",
        "JAX_NUMPY_RANK_PROMOTION": "raise",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path]),
    }
    return subprocess.Popen(
        [sys.executable, __file__, *words, f"--workdir={workdir}", *more],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return f"{HOST}:{probe.getsockname()[1]}"


def heard_at(pid: int) -> set[str]:
    """The addresses at which a process listens, as Linux writes them: bytes in hexadecimal."""
    files = []
    for file in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            files.append(os.readlink(file))
    found = set()
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]:
            _, local, _, state, *rest = line.split()
            if state == "0A" and f"socket:[{rest[5]}]" in files:
                found.add(local.partition(":")[0][-8:])
    return found


def ends_well(*processes: subprocess.Popen) -> list[str]:
    """What each wrote to stderr."""
    errors = [process.communicate(timeout=PATIENCE)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), errors
    return errors


def test_layouts_read_each_other_and_give_the_same_bits(tmp_path):
    folders = [tmp_path / name for name in ("eight", "two_by_four", "sharded")]
    train(folders[0], PHASES[:1])  # on one device
    for other in folders[1:]:
        shutil.copytree(folders[0], other)
    ends_well(start(free_address(), 1, 0, 8, folders[0], "--phases=2"))
    for folder, more in ((folders[1], ()), (folders[2], ("--shard_data",))):
        place = free_address()
        said = ends_well(*(start(place, 2, i, 4, folder, "--phases=2", *more) for i in range(2)))
        resumed = [f"resumed at step {SIZE // BATCH}" in lines.splitlines() for lines in said]
        assert resumed == [True, False]  # the first speaks for all
    steps = 2 * SIZE // BATCH
    found = [Checkpoints(folder).about(steps)["manifest"] for folder in folders]
    assert found[1] == found[0]  # 2 x 4 devices, and 8: the same sums in the same order
    assert found[2] == found[0]  # where the images are held changes nothing
    losses = [[r["loss"] for r in read_records(f / "metrics.jsonl")] for f in folders]
    assert losses[0] == losses[1] == losses[2]
    assert len(losses[0]) == 2  # the second process wrote none
    state = train(folders[1], PHASES)  # on one device, from the checkpoint of two processes
    assert int(state.step) == 3 * SIZE // BATCH


def test_a_death_ends_the_other(tmp_path):
    place = free_address()
    one, two = (start(place, 2, i, 1, tmp_path, "--silence_seconds=30") for i in range(2))
    try:
        deadline = time.monotonic() + PATIENCE
        while not Checkpoints(tmp_path).steps():  # a checkpoint is written while training goes on
            assert time.monotonic() < deadline
            assert one.poll() is None, one.communicate()
            time.sleep(0.2)
        assert heard_at(one.pid) == heard_at(two.pid) == {"0200007F"}
        two.send_signal(signal.SIGKILL)
        _, said = one.communicate(timeout=PATIENCE)
    finally:
        for process in (one, two):
            process.kill()
            process.communicate()
    assert one.returncode == 75, said
    (line,) = [line for line in said.splitlines() if "error" in line]
    assert "of this run ended or fell silent" in line
    assert Checkpoints(tmp_path).steps()


def test_other_settings_and_data_are_refused(tmp_path):
    place = free_address()
    both = [start(place, 2, i, 1, tmp_path, "--phases=1", f"--seed={i}") for i in range(2)]
    first, second = (process.communicate(timeout=PATIENCE)[1].strip() for process in both)
    assert [process.returncode for process in both] == [1, 1]
    assert "processes [1] were given something else than process 0" in first
    assert "data.train" in second
    assert "options.seed (there 0, here 1)" in second
    assert not Checkpoints(tmp_path).steps()


def test_a_missing_process(tmp_path):
    one = start(free_address(), 2, 0, 1, tmp_path, "--join_seconds=1")
    _, said = one.communicate(timeout=PATIENCE)
    assert one.returncode == 1
    assert said.startswith("error: process 0 of 2")
    assert said.count("\n") == 1
    assert "not all processes joined in 1 s: expected 2" in said


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (("here", 2, 0), "expected HOST:PORT"),
        (("here:1", 2, None), "expected a number each"),
        (("here:1", 2, 2), "expected 0 to 1"),
        (("auto", 2, 0), "expected none"),
        (("here:1", 2, 0, 0), "join_seconds=0"),
    ],
)
def test_a_group_that_cannot_be(fields, said):
    with pytest.raises(ValueError, match=said):
        Group(*fields)


if __name__ == "__main__":
    cli.define_process_flags()
    flags.DEFINE_string("workdir", None, "folder")
    flags.DEFINE_integer("phases", 0, "so many")
    flags.DEFINE_integer("seed", 0, "of all")
    flags.DEFINE_bool("shard_data", False, "or whole")
    cli.run(command)
