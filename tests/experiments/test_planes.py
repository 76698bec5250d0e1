"""The command that draws accuracy against planes: its table, its files, what it refuses."""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dual_precision import modes
from dual_precision.data.arrays import Images
from dual_precision.models import MLP
from experiments.methods import planes

SHAPE = (4, 4, 1)


def tiny_network():
    """An MLP of random weights without norm: 16 x 8 and 8 x 2."""
    model = MLP(num_classes=2, modes=modes(low="w2a2", high="w8a8"), hidden=(8,), norm=None)
    init = jax.jit(model.init, static_argnames="precision")
    params = init(jax.random.key(0), jnp.zeros((1, *SHAPE), jnp.uint8), precision="float")
    return model, {**params, "batch_stats": {}}


def tiny_set(seed):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (500, *SHAPE)).astype(np.uint8)
    return Images(images, rng.integers(0, 2, 500).astype(np.int32))


@pytest.fixture
def run(monkeypatch, tmp_path):
    """`main` on the folder of a run; the network and the data are in memory."""

    def run(test=True, mode="float"):
        experiment = {"mode": mode, "dataset": "digits", "model": "mlp", "passes": 4, "seed": 0}
        experiment["widths"] = {}
        (tmp_path / "config.json").write_text(json.dumps({"experiment": experiment}))
        splits = {"validation": tiny_set(0), **({"test": tiny_set(1)} if test else {})}
        monkeypatch.setattr(planes, "load", lambda workdir: tiny_network())
        monkeypatch.setattr(planes.data, "load", lambda *_, **__: SimpleNamespace(**splits))
        planes.main(workdir=str(tmp_path), activations=["8"], test=test)
        return tmp_path

    return run


def test_the_whole_command(run, capsys, monkeypatch):
    monkeypatch.setattr(planes, "STORED", 3)  # of 8: fewer programs to compile
    folder = run()
    table = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if "|" in line]
    names = [line[0].strip() for line in (table[0], *table[2:])]
    assert names == ["precision", "float", "w1a8", "w2a8", "w3a8"]
    assert table[0][-1].strip() == "difference to float"
    content = json.loads((folder / "planes.json").read_text())
    assert content["run"] == {"dataset": "digits", "model": "mlp", "passes": 4, "seed": 0}
    first, *others = content["rows"]
    assert first["megabytes"] * 1e6 == 4 * (16 * 8 + 8 * 2)
    for n, row in enumerate(others, start=1):
        # 16 and 8 inputs fill up a word each; a scale for every output.
        assert row["megabytes"] * 1e6 == pytest.approx(n * 4 * (8 + 2) + 4 * (8 + 2))
        assert row["difference"] == row["test"] - first["test"]
    assert (folder / "planes.png").read_bytes().startswith(b"\x89PNG")


def test_without_the_test_set(run, capsys, monkeypatch):
    """It is not there at all; one precision is enough to see that."""
    monkeypatch.setattr(planes, "STORED", 1)
    folder = run(test=False)
    assert "test %" not in capsys.readouterr().out
    content = json.loads((folder / "planes.json").read_text())
    assert content["split_of_difference"] == "validation"
    assert [row["precision"] for row in content["rows"]] == ["float", "w1a8"]


def test_a_perfect_network_is_drawn_too(tmp_path):
    rows = [
        {"validation": 100.0},
        *({"planes": n, "activations": 8, "validation": 100.0} for n in range(1, 9)),
    ]
    planes.plot_planes(rows, "perfect", tmp_path / "planes.png")
    assert (tmp_path / "planes.png").stat().st_size > 0


def test_refused(run, tmp_path):
    with pytest.raises(ValueError, match="a run of --mode=two_phase: expected one of --mode=float"):
        run(mode="two_phase")
    with pytest.raises(ValueError, match=r"there is no folder .*nowhere: expected"):
        planes.main(workdir=str(tmp_path / "nowhere"), activations=["8"], test=True)
    for names in ([], ["4"], ["8", "8"], ["8", ""]):
        with pytest.raises(ValueError, match="expected some of 8, 16, 32, each once"):
            planes.activation_widths(names)
    assert planes.activation_widths(["16", "8"]) == [16, 8]


ODD = [
    "{}",
    "[" * 100_000,
    '{"experiment": {"widths": {}, "mode": "float"' + ', "x": {"y": ' * 40 + "1" + "}}" * 40 + "}}",
    '{"experiment": {}}',
    '{"experiment": {"widths": {}, "mode": ["float"]}}',
    '{"experiment": {"widths": {}, "mode": "float", "dataset": 3}}',
    '{"experiment": {"widths": {}, "mode": "float", "passes": "many"}}',
    '{"experiment": {"widths": {}, "mode": "float", "passes": 1' + "0" * 400 + "}}",
    '{"experiment": {"widths": {}, "mode": "float", "seed": 1.5}}',
    '{"experiment": {"widths": {}, "mode": "float", "seed": 99999999999999999999}}',
    '{"experiment": {"mode": "float", "widths": 4}}',
    '{"experiment": {"widths": {}, "mode": "float", "learning_rate": NaN}}',
]


@pytest.mark.parametrize("text", ODD, ids=lambda text: text[:50])
def test_odd_configs_are_refused_before_anything_is_loaded(tmp_path, monkeypatch, text):
    monkeypatch.setattr(planes, "load", lambda workdir: pytest.fail("loads"))
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"expected|is not a run's config") as caught:
        planes.main(workdir=str(tmp_path), activations=["8"], test=True)
    assert len(str(caught.value)) < 900
