"""The inference benchmark: what it compares computes the same, and it sees what goes wrong."""

import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from experiments import inference, switching, torch_peers

ROOT = Path(__file__).parents[1]


class Echo:
    """In the place of a Predictor: logits that tell the mode, and what else a test wants."""

    precisions = ("low", "high")
    info = SimpleNamespace(image_shape=(2, 2, 1))

    def __init__(self, late):
        self.calls = 0
        self.late = late  # what happens at the requests of the load itself

    def predict(self, images, precision):
        self.calls += 1
        logits = images.reshape(1, -1) + np.float32(self.precisions.index(precision))
        return logits if self.calls <= 2 * switching.IMAGES else self.late(logits)


def test_a_load_counts_wrong_answers_and_compilations():
    load = switching.under_load(Echo(lambda logits: logits), 103)
    assert (load.requests, load.wrong, load.compilations) == (103, 0, 0)
    assert len(load.same) + len(load.other) == 103 - switching.THREADS
    off = Echo(lambda logits: np.nextafter(logits, np.float32(np.inf)))  # by one bit
    assert switching.under_load(off, 20).wrong == 20

    def compile_something(logits):
        jax.jit(lambda x: x * 3)(jnp.ones(7)).block_until_ready()
        return logits

    assert switching.under_load(Echo(compile_something), 4).compilations >= 1


def test_a_switch_without_cost():
    assert abs(switching.switch_cost(Echo(lambda logits: logits), 20)) < 1000


def lstm():
    """Parameters of a small cell, and (x, h, c) for it."""
    keys = jax.random.split(jax.random.key(0), 4)
    x, h, c = (jax.random.normal(key, (1, 8)) for key in keys[:3])
    return nn.OptimizedLSTMCell(8).init(keys[3], (c, h), x)["params"], x, h, c


def test_the_plain_step_is_flax_s():
    params, x, h, c = lstm()
    wanted = nn.OptimizedLSTMCell(8).apply({"params": params}, (c, h), x)
    kernels, bias = inference.joined(params)
    found = inference.plain_step(kernels, bias, (c, h), x)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), found, wanted)


def test_pytorch_has_the_same_networks():
    pytest.importorskip("torch")
    params, x, h, c = lstm()
    wanted = nn.OptimizedLSTMCell(8).apply({"params": params}, (c, h), x)[1]
    given = (np.asarray(x), np.asarray(h), np.asarray(c))
    for request in torch_peers.lstm(params, given, "plain", "int8").values():
        np.testing.assert_allclose(request()[1], wanted, atol=0.05)
    layers = [
        {"kernel": jax.random.normal(jax.random.key(i), (8, 8)), "bias": jnp.arange(8.0)}
        for i in range(2)
    ]
    dense = [own["bias"][None] for own in layers]
    y = jax.nn.relu(x @ layers[0]["kernel"] + dense[0]) @ layers[1]["kernel"] + dense[1]
    for request in torch_peers.mlp(layers, np.asarray(x), "plain", "int8").values():
        np.testing.assert_allclose(request(), y, rtol=0.05, atol=0.5)


def test_tables_name_what_is_faster():
    times = {inference.JAX: [4.0, 4.0], inference.TORCH: [2.0, 2.0], "w2a8": [3.0, 3.0]}
    *_, plain, peer, ours = inference.table(times, dict.fromkeys(times, 0.1)).splitlines()
    assert plain.endswith(f"| {inference.TORCH} |")
    assert peer.endswith("|  |")
    assert ours == f"| w2a8 | 3.000 (3.000..3.000) | 1.33 | 0.67 | 10.0 % | {inference.TORCH} |"


def test_bars():
    times = {inference.JAX: [8.0], "w2a8": [2.0], "w1a8": [0.1]}
    groups = dict.fromkeys(inference.GROUPS, times)
    lines = inference.judge(groups)
    verdicts = {line.split(" against ")[0]: line.split(") ")[-1] for line in lines if "JAX" in line}
    assert verdicts[f"{inference.ONE}: w2a8"] == "PASS"
    assert verdicts[f"{inference.ONE}: w1a8"] == "PASS, goal met"
    assert sum(line.endswith("not measured") for line in lines) == 7


@pytest.mark.parametrize(
    ("flag", "says"),
    [("--model=mlp", "['model'] have no effect"), ("--repeats=0", "repeats"), ("", "nowhere.st")],
)
def test_the_command_refuses(flag, says):
    arguments = [flag or "--network=nowhere.st"]
    command = [sys.executable, "-m", "experiments.benchmark", "inference", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    assert says in done.stderr
    assert "Traceback" not in done.stderr
