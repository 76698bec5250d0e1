"""The train benchmark compares like with like: the same network, peers that quantize and train."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from dual_precision.tasks.classification import Classification
from dual_precision.training import step
from dual_precision.training.compilation import RUNS_ONCE
from dual_precision.training.state import initial_variables
from experiments.benchmark import train_peers as peers
from experiments.benchmark import train_step as benchmark
from experiments.benchmark.comparison import judge_bars, relative_difference

ROOT = Path(__file__).parents[2]
SIZES = {"stage_sizes": (1, 1, 1), "widths": (4, 8, 16), "space_to_depth": 2}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "experiments.benchmark", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture(name="pixels")
def normal_pixels() -> jax.Array:
    return jax.random.normal(jax.random.key(0), (8, 16, 16, 3))


def initialized(network, pixels: jax.Array):
    return jax.jit(network.init, compiler_options=RUNS_ONCE)(jax.random.key(1), pixels)


def test_plain_network_is_ours_in_float(pixels: jax.Array) -> None:
    plain = peers.plain(**SIZES)
    variables = initialized(plain, pixels)
    model = benchmark.build_resnet("resnet8").clone(**SIZES)
    initial = initial_variables(model, Classification(pixels.shape[1:]).example, seed=0)
    ours = flatten_dict(initial["params"])
    for path, value in flatten_dict(variables["params"]).items():
        norm = path[-1] == "scale" or (path[-1] == "bias" and "classifier" not in path)
        own = (*path[:-1], "float", path[-1]) if norm else path
        assert ours[own].shape == value.shape
        ours[own] = value
    tree = {**initial, "params": unflatten_dict(ours)}
    settings = {"precision": "float", "train": True, "mutable": ["batch_stats"]}
    found = jax.jit(lambda tree: model.apply(tree, pixels, **settings)[0])(tree)
    np.testing.assert_allclose(found, peers.logits(plain, variables, pixels), rtol=2e-4, atol=2e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("library", "make"), [("qwix", peers.qwix), ("aqt", peers.aqt)])
def test_peers_quantize_and_have_the_gradient_of_float(library, make, pixels: jax.Array) -> None:
    pytest.importorskip(library)
    labels = jnp.arange(8)
    variables = initialized(peers.plain(**SIZES), pixels)
    networks = [peers.plain(**SIZES), make(**SIZES)]
    with jax.numpy_dtype_promotion("standard"):
        exact, found = (peers.logits(network, variables, pixels) for network in networks)
        gradients = [gradient(network, variables, pixels, labels) for network in networks]
    assert 1e-3 < relative_difference(found, exact) < 0.1
    for path, expected in flatten_dict(gradients[0]).items():
        if path[-1] == "kernel":
            own = flatten_dict(gradients[1])[path]
            cosine = jnp.vdot(own, expected) / (jnp.linalg.norm(own) * jnp.linalg.norm(expected))
            assert cosine > 0.8, path


def gradient(network, variables, pixels, labels):
    """From one step of plain gradient descent with rate 1."""
    optimizer = optax.sgd(1.0)
    state = peers.initial_state(variables, optimizer)
    (params, _, _), loss = jax.jit(peers.peer_step(network, optimizer))(state, pixels, labels)
    assert np.isfinite(loss)
    return jax.tree.map(jnp.subtract, variables["params"], params)


def test_a_network_that_quantizes_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing is quantized"):
        peers.quantized_difference(jnp.ones(3), jnp.ones(3))


def test_a_loss_that_is_not_finite_is_refused() -> None:
    program = benchmark.Program(lambda state: (state, jnp.float32(jnp.nan)), jnp.zeros(()))
    with pytest.raises(ValueError, match="not finite"):
        program.run(1)


def test_bars() -> None:
    times = {benchmark.HIGH: [10.0], benchmark.FLOAT: [12.0], benchmark.LOW: [20.0]}
    high, low, qwix, *_ = judge_bars(benchmark.BARS, times)
    assert high.endswith("1.20 x (bar 1.0, goal 1.5) PASS")
    assert low.endswith("short")
    assert qwix.endswith("not measured")


@pytest.fixture(name="tiny")
def of_one_block():
    return benchmark.build_resnet("resnet8").clone(stage_sizes=(0, 1, 0), widths=(4, 4, 4))


def test_switching_adds_no_trace(tiny) -> None:
    images, _ = benchmark.random_batch(1)
    assert benchmark.count_new_traces(tiny, images) == 0


def test_bad_arguments_give_one_line() -> None:
    done = run("train", "--model=mlp")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert "'resnet20'" in done.stderr


def test_what_it_prints_and_leaves(tiny, tmp_path: Path, monkeypatch, capsys) -> None:
    """In this process, of one block, compiled in haste: whole networks take XLA half a minute."""
    monkeypatch.setattr(benchmark, "build_resnet", lambda name: tiny)
    monkeypatch.setattr(benchmark, "keep_freed_memory", lambda: False)  # for a whole process only
    for module in (benchmark, step):
        monkeypatch.setattr(module, "compiler_options", lambda: RUNS_ONCE)
    out = tmp_path / "out.json"
    settings = {"batch_size": 8, "repeats": 1, "steps": 1, "peers": False, "out": str(out)}
    benchmark.measure_train_step(model="resnet8", **settings)
    printed = capsys.readouterr().out
    names = [line.split("|")[1].strip() for line in printed.splitlines() if line[:1] == "|"]
    assert {"plain flax", benchmark.FLOAT, benchmark.HIGH, benchmark.LOW} <= {*names}
    assert "new traces over 100 switches: 0 (bar 0) PASS" in printed
    results = json.loads(out.read_text())
    assert {benchmark.FLOAT, benchmark.HIGH, benchmark.LOW} <= set(results["milliseconds"])
