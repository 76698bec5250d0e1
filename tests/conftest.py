"""Strictness for every test; the small study that several files use."""

import contextlib
import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from dual_precision import data
from dual_precision.training import step

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

hypothesis.settings.register_profile(
    "laws", deadline=None, max_examples=30, derandomize=True, database=None
)
hypothesis.settings.load_profile("laws")


@pytest.hookimpl(tryfirst=True)  # before what is deselected by its marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test that starts a command, or reads what commands have trained, is slow."""
    for item in items:
        if "child_environment" in getattr(item, "fixturenames", ()):
            item.add_marker("slow")


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that workers which run side by side have in common."""
    workers = "PYTEST_XDIST_WORKER" in os.environ
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if workers else base) / "study"
    folder.mkdir(exist_ok=True)
    return folder


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """The others wait until the block is left."""
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def child_environment(shared_folder: Path) -> dict[str, str]:
    """For the commands that tests start: they share prepared digits, and what XLA has compiled."""
    folder = shared_folder / "data"
    with alone(shared_folder):
        if not folder.exists():
            data.load("digits", data_dir=folder)
    quick = "--xla_backend_optimization_level=1"  # small programs: compiling is most of their time
    return {
        **os.environ,
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {quick}".strip(),
        "TFDS_DATA_DIR": str(folder),
        "JAX_COMPILATION_CACHE_DIR": str(shared_folder / "programs"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


@pytest.fixture(scope="module")
def compiled_quickly(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Training programs at XLA's lowest level, each compiled once for all runs of a file.

    Compiling is most of the time of a small run, and runs that are compared are compared at one
    level.
    """
    options = step.compiler_options() | {"xla_backend_optimization_level": 0}
    settings = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("programs")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for values in (settings, before):
        for name, value in values.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        if values is settings:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(step, "compiler_options", lambda: options)
                yield


@pytest.fixture(scope="session")
def digits_study(shared_folder: Path, child_environment: dict[str, str]) -> Path:
    """The folder of a study of three cells on digits, by the real command: half a minute.

    The data set, as TFDS prepares it, is in `data` beside it.
    """
    folder = shared_folder / "digits"
    with alone(shared_folder):
        if not (folder / "results.json").exists():
            _make_study(folder, child_environment)
    return folder


@pytest.fixture(scope="session")
def two_phase_run(digits_study: Path) -> Path:
    """The folder of the run of both modes in that study."""
    (run,) = digits_study.glob("cells/two_phase*0")
    return run


def _make_study(folder: Path, environment: dict[str, str]) -> None:
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
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,  # on a busy machine
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
