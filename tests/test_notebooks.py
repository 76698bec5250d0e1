"""The notebooks run from top to bottom, and are stored without what they print."""

import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import nbformat
import pytest
from nbclient import NotebookClient

from dual_precision import modes
from dual_precision.deploy import save_packed
from dual_precision.models import build_from

pytestmark = pytest.mark.slow

# One more in the first two where the modes disagree.
FIGURES = {
    "01_switch_precision": 3,
    "02_two_phase": 5,
    "03_deploy": 5,
    "04_cyclic_and_bsq": 4,
    "05_language": 3,
    "06_engines": 2,
    "07_search": 2,
}
NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def test_there_are_notebooks() -> None:
    assert [path.stem for path in NOTEBOOKS] == list(FIGURES)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_stripped(path: Path) -> None:
    for cell in read(path).cells:
        if cell.cell_type == "code":
            assert not cell.outputs
            assert cell.execution_count is None


def figures(notebook: nbformat.NotebookNode) -> int:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return sum("image/png" in output.get("data", {}) for output in outputs)


def small_decoder(path: Path) -> Path:
    """A packed transformer that has read nothing: the one of the notebook takes minutes."""
    own = {"name": "transformer", "features": 16, "depth": 1, "heads": 2, "context": 48}
    network = {**own, **modes(low="w2a8", high="w8a8").to_json()}
    model, text = build_from(network), jnp.zeros((1, 4), jnp.uint8)
    variables = model.init(jax.random.key(0), text, precision="high")
    save_packed(path, model, variables, network, jax.ShapeDtypeStruct((48,), jnp.uint8))
    return path


def test_a_run_is_not_shown_under_other_settings(tmp_path: Path) -> None:
    """The notebook of methods starts a command again where its arguments are others."""
    (notebook,) = (path for path in NOTEBOOKS if path.stem.startswith("04"))
    (source,) = (cell.source for cell in read(notebook).cells if "def run(" in cell.source)
    given: dict[str, Any] = {"folder": tmp_path / "runs", "root": tmp_path, "PASSES": 3}
    lines = source.splitlines()
    kept = lines[lines.index("def run(command, *named):") :]
    exec("\n".join(["import json, subprocess, sys", *kept]), given)
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "cifar.py").write_text(OLD_FOLDER)
    train, started = given["train"], tmp_path / "started"
    (workdir,) = train(("cyclic", "--set=cycles=4"))
    assert workdir == tmp_path / "runs" / "cyclic"
    train(("cyclic", "--set=cycles=4"))
    assert len(started.read_text()) == 1, "it is there already"
    for _ in range(2):
        with pytest.raises(AssertionError, match="set another WORKDIR"):
            train(("cyclic", "--set=cycles=4"), passes=6)
    train(("cyclic", "--set=cycles=4"))
    assert len(started.read_text()) == 3


# A command that refuses a folder of other settings.
OLD_FOLDER = """
import sys
from pathlib import Path

with Path("started").open("a") as file:
    file.write(".")
there = Path(sys.argv[2].removeprefix("--workdir=")) / "config.json"
if there.exists() and there.read_text() != str(sys.argv):
    raise SystemExit(1)
there.parent.mkdir(parents=True, exist_ok=True)
there.write_text(str(sys.argv))
"""


# Jupyter's own warnings on its transport and its event loops are not this project's.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_from_top_to_bottom(
    path: Path,
    tmp_path: Path,
    child_environment: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    if path.stem.startswith("06"):
        pytest.importorskip("onnxruntime")
    for name, value in child_environment.items():  # the kernel is started with them
        monkeypatch.setenv(name, value)
    if path.stem.startswith("05"):
        monkeypatch.setenv("NETWORK", str(small_decoder(tmp_path / "net.safetensors")))
        monkeypatch.setenv("TEXT", "pydoc")
    monkeypatch.setenv("WORKDIR", str(tmp_path / "run"))
    monkeypatch.setenv("PASSES", "4")
    if "STUDY" in path.read_text():  # half a minute, which the others need not wait for
        monkeypatch.setenv("STUDY", str(request.getfixturevalue("digits_study")))
    monkeypatch.setenv("JAX_PLATFORMS", os.environ.get("JAX_PLATFORMS", "cpu"))
    notebook, resources = read(path), {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
    assert figures(notebook) >= FIGURES[path.stem]
    if path.stem.startswith("01"):  # found an empty workdir, and trained a network there
        assert (tmp_path / "run" / "results.json").exists()
