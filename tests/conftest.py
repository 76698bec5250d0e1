"""Strictness for every test; the small study that several files use."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import hypothesis
import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

hypothesis.settings.register_profile(
    "laws", deadline=None, max_examples=30, derandomize=True, database=None
)
hypothesis.settings.load_profile("laws")


@pytest.fixture(scope="session")
def digits_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study of three cells on digits, by the real command: half a minute.

    The data set, as TFDS prepares it, is in `data` beside it. Workers that run side by side share
    one: the first makes it.
    """
    workers = "PYTEST_XDIST_WORKER" in os.environ
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if workers else base) / "study" / "digits"
    folder.parent.mkdir(exist_ok=True)
    with (folder.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "results.json").exists():
            _make_study(folder)
    return folder


def _make_study(folder: Path) -> None:
    arguments = (
        "--preset=digits",
        "--seeds=1",
        "--pairs=w2a2/w8a8",
        "--methods=twins,truncate,two_phase joint",
        "--set=passes=8",
        "--jobs=2",
        f"--workdir={folder}",
    )
    ended = subprocess.run(
        [sys.executable, "-m", "experiments.study", *arguments],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "TFDS_DATA_DIR": str(folder.parent / "data")},
        capture_output=True,
        text=True,
        timeout=600,  # on a busy machine
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
