"""Cyclic precision and BSQ by the real commands: from a float run to a packed file of its map."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from dual_precision.deploy import load_packed
from dual_precision.loading import load
from dual_precision.structure import structure_of
from experiments.methods import bit_sweep, valleys

ROOT = Path(__file__).parents[2]


def command(environment, name: str, *arguments: str) -> str:
    ended = subprocess.run(
        [sys.executable, "-m", f"experiments.{name}", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    return ended.stdout


def train(environment, workdir: Path, mode: str, *arguments: str, passes: float = 4) -> Path:
    settings = ("--dataset=digits", "--test=false", f"--set=passes={passes}")
    command(environment, "cifar", f"--mode={mode}", *settings, f"--workdir={workdir}", *arguments)
    return workdir


@pytest.fixture(scope="module")
def found(tmp_path_factory, child_environment) -> Path:
    """A folder of a float run, a BSQ run from it, and a run at the widths that this found."""
    folder = tmp_path_factory.mktemp("bsq")
    start = train(child_environment, folder / "float", "float")
    bsq = ("--set=alpha=1", "--set=adjustments=2", "--set=learning_rate=0.03")
    train(child_environment, folder / "bsq", "bsq", f"--init={start}", *bsq, passes=16)
    tuned = (f"--init={folder / 'bsq'}", f"--widths={folder / 'bsq' / 'widths.json'}")
    train(child_environment, folder / "tuned", "high", *tuned)
    return folder


def test_a_map_is_for_every_command(found, child_environment):
    """Trained on at, packed, billed, computed with: all by the widths of the map."""
    widths = json.loads((found / "bsq" / "widths.json").read_text())
    assert set(widths) == {"dense2", "dense3"}
    model, variables = load(found / "tuned")
    layers = structure_of(model, jax.ShapeDtypeStruct((8, 8, 1), np.uint8)).layers
    for name, entry in widths.items():
        assert str(layers[name,].table["high"]) == entry["high"]
    packed = found / "net.safetensors"
    command(child_environment, "deploy", "pack", f"--workdir={found / 'tuned'}", f"--out={packed}")
    again, loaded = load_packed(packed)
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1)).astype(np.uint8)
    wanted, found_again = (
        jax.jit(network.apply, static_argnames="precision")(values, images, precision="high")
        for network, values in ((model, variables), (again, loaded))
    )
    np.testing.assert_array_equal(found_again, wanted)


def test_widths_of_low_fit_into_the_bytes_asked_for(found):
    widths = json.loads((found / "bsq" / "widths_low.json").read_text())
    bits = [int(entry["low"][1]) for entry in widths.values()]
    assert sum(bits) <= 2 * len(bits), "layers of one size, low_bits=2"


def test_what_was_found_is_drawn(found, tmp_path, capsys, child_environment, monkeypatch):
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    own = {"data_dir": child_environment["TFDS_DATA_DIR"]}
    bit_sweep.main(str(found / "bsq"), picture=str(tmp_path / "sweep.png"), **own)
    said = capsys.readouterr().out
    assert "| compression |" in said
    bits = json.loads((found / "bsq" / "bits.json").read_text())
    assert f" {sum(bits.values()) / 2:.2f} |" in said, "layers of one size"
    assert (tmp_path / "sweep.png").exists()
    with pytest.raises(ValueError, match="is a run of --mode=float: expected one of bsq"):
        bit_sweep.main(str(found / "float"), picture=str(tmp_path / "no.png"), **own)


def test_cyclic_and_its_twin(tmp_path, capsys, child_environment, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", child_environment["TFDS_DATA_DIR"])
    cyclic = train(child_environment, tmp_path / "cyclic", "cyclic", "--set=cycles=4")
    static = train(child_environment, tmp_path / "static", "static")
    last = [
        json.loads((run / "metrics.jsonl").read_text().splitlines()[-1]) for run in (cyclic, static)
    ]
    assert last[1]["relative_cost"] == pytest.approx(3 * 64 / 3072)
    assert 0.5 < last[0]["gigabitops"] / last[1]["gigabitops"] < 0.75
    assert (last[0]["bits_of_weights"], last[0]["cycle"]) == (8, 1)
    settings = {"radius": 0.5, "directions": 1, "picture": str(tmp_path / "valleys.png")}
    valleys.main(str(cyclic), str(static), **settings)
    lines = capsys.readouterr().out
    assert "| cyclic |" in lines
    assert "| static |" in lines
