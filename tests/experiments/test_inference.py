"""The inference benchmark: what it compares computes the same, and it sees what goes wrong."""

import dataclasses
import json
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from dual_precision.deploy import inspect_packed
from experiments.benchmark import (
    cascade_accuracy,
    cascade_speed,
    inference_peers,
    plane_speed,
    switching,
)
from experiments.benchmark.comparison import judge_bars
from experiments.benchmark.inference import measure_inference

ROOT = Path(__file__).parents[2]
NETWORK = ROOT / "notebooks" / "networks" / "cifar10-w2a2-w8a8.safetensors"


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


def test_a_thread_that_fails_is_not_silent():
    def fail(logits):
        raise ArithmeticError("on purpose")

    with pytest.raises(ArithmeticError, match="on purpose"):
        switching.under_load(Echo(fail), 8)


class Slow(Echo):
    """Takes longer where the mode is another one than before."""

    def __init__(self, seconds):
        super().__init__(lambda logits: logits)
        self.seconds = seconds
        self.before = None

    def predict(self, images, precision):
        if precision != self.before:
            time.sleep(self.seconds)
        self.before = precision
        return super().predict(images, precision)


def test_the_cost_of_a_switch():
    cost, none = (switching.switch_cost(Slow(seconds), 40) for seconds in (0.002, 0.0))
    assert cost > 0.5
    assert none < cost


def lstm():
    """Parameters of a small cell, and (x, h, c) for it."""
    keys = jax.random.split(jax.random.key(0), 4)
    x, h, c = (jax.random.normal(key, (1, 8)) for key in keys[:3])
    return nn.OptimizedLSTMCell(8).init(keys[3], (c, h), x)["params"], x, h, c


def test_the_plain_step_is_flax_s():
    params, x, h, c = lstm()
    wanted = nn.OptimizedLSTMCell(8).apply({"params": params}, (c, h), x)
    kernels, bias = plane_speed.stack_gates(params)
    found = plane_speed.plain_step(kernels, bias, (c, h), x)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), found, wanted)


def test_pytorch_has_the_same_networks():
    pytest.importorskip("torch")
    params, x, h, c = lstm()
    wanted = nn.OptimizedLSTMCell(8).apply({"params": params}, (c, h), x)[1]
    given = (np.asarray(x), np.asarray(h), np.asarray(c))
    for request in inference_peers.torch_lstm(params, given, "plain", "int8").values():
        np.testing.assert_allclose(request()[1], wanted, atol=0.05)
    layers = [
        {"kernel": jax.random.normal(jax.random.key(i), (8, 8)), "bias": jnp.arange(8.0)}
        for i in range(2)
    ]
    dense = [own["bias"][None] for own in layers]
    y = jax.nn.relu(x @ layers[0]["kernel"] + dense[0]) @ layers[1]["kernel"] + dense[1]
    for request in inference_peers.torch_mlp(layers, np.asarray(x), "plain", "int8").values():
        np.testing.assert_allclose(request(), y, rtol=0.05, atol=0.5)


def cells_of(table):
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]


def test_tables_name_what_is_faster():
    times = {plane_speed.JAX: [4.0, 4.0], plane_speed.TORCH: [2.0, 2.0], "w2a8": [3.0, 3.0]}
    table = plane_speed.requests_table(times, dict.fromkeys(times, 0.1))
    *_, plain, peer, ours = cells_of(table)
    assert [row[-1] for row in (plain, peer)] == [plane_speed.TORCH, ""]
    assert ours == ["w2a8", "3.000 (3.000..3.000)", "1.33", "0.67", "10.0", plane_speed.TORCH]


def test_tables_with_cold_caches():
    times = {plane_speed.JAX: [4.0], "w2a8": [1.0]}
    cold = {plane_speed.JAX: [6.0], "w2a8": [2.0]}
    table = plane_speed.requests_table(times, dict.fromkeys(times, 0.1), cold)
    head, _, _, ours = cells_of(table)
    assert head[3:5] == ["cold: ms", "cold: x JAX float32"]
    assert ours == ["w2a8", "1.000 (1.000..1.000)", "4.00", "2.000", "3.00", "10.0", ""]


def test_rounds_time_every_program_warm_and_cold(monkeypatch):
    monkeypatch.setattr(plane_speed, "WARM_SECONDS", 0.0)
    calls = []
    requests = {name: partial(calls.append, name) for name in ("a", "b", "c")}
    warm, cold = plane_speed.time_requests(requests, repeats=2, steps=3, cold_steps=1)
    assert {name: len(own) for name, own in warm.items()} == dict.fromkeys("abc", 2)
    assert {name: len(own) for name, own in cold.items()} == dict.fromkeys("abc", 2)
    assert calls.count("b") == 2 * (plane_speed.WARM + 3 + 1)
    assert plane_speed.time_requests(requests, 1, 1, 0)[1] == {}


def test_bars():
    times = {plane_speed.JAX: [8.0], "w2a8": [2.0], "w1a8": [0.1]}
    lines = [line for bars in plane_speed.BARS.values() for line in judge_bars(bars, times)]
    verdicts = {line.split(" against ")[0]: line.split(") ")[-1] for line in lines if "JAX" in line}
    assert verdicts[f"{plane_speed.ONE}: w2a8"] == "PASS"
    assert verdicts[f"{plane_speed.ONE}: w1a8"] == "PASS, goal met"
    assert sum(line.endswith("not measured") for line in lines) == 7
    cold = judge_bars(
        plane_speed.BARS[plane_speed.CELL], times, {plane_speed.JAX: [8.0], "w2a8": [4.0]}
    )
    assert cold[0].endswith("PASS; cold caches: 2.00 x")


def test_without_dynamic_int8_the_row_is_left_out(monkeypatch, capsys):
    torch = pytest.importorskip("torch")
    monkeypatch.delattr(torch.ao.quantization, "quantize_dynamic")
    layers = [{"kernel": np.ones((4, 4), np.float32), "bias": np.ones(4, np.float32)}]
    found = inference_peers.torch_mlp(layers, np.ones((1, 4), np.float32), "plain", "int8")
    assert list(found) == ["plain"]
    assert "dynamic int8: not measured" in capsys.readouterr().out


def test_the_verdict_of_the_cascade():
    def line(difference, relative):
        auto = {"accuracy": 82.0, "difference": difference, "relative": relative}
        rows = [{"accuracy": 80.0}, auto, {"accuracy": 82.0}]
        return cascade_accuracy.cascade_line("without", rows)

    assert line(-0.1, 50).endswith(" PASS")
    assert line(0.3, 29.8).endswith("PASS, goal met")
    assert line(0.3, 50.8).endswith("short")
    assert line(-0.2, 20).endswith("short")


def measure(out):
    """The whole sub-command, as short as it can be."""
    file = None if out is None else str(out)
    measure_inference(network=str(NETWORK), repeats=1, steps=1, requests=100, out=file)


def test_what_the_cascade_needs_is_checked_first(tmp_path, monkeypatch):
    settings = cascade_accuracy.check_cascade(NETWORK)
    assert (settings.dataset, settings.mirror) == ("cifar10", True)
    info = inspect_packed(NETWORK)
    one = dataclasses.replace(info, bytes_read={"high": 1})
    unknown = dataclasses.replace(info, metadata={})
    for own, says in ((one, "expected two trained modes"), (unknown, "does not say on what")):
        monkeypatch.setattr(cascade_accuracy, "inspect_packed", lambda path, own=own: own)
        with pytest.raises(ValueError, match=says):
            measure(None)


def test_each_part_is_saved_when_it_is_done(tmp_path, monkeypatch):
    out = tmp_path / "out.json"

    def stop(path, requests):
        raise KeyboardInterrupt

    times = {"w1a8": [1.0]}
    monkeypatch.setattr(plane_speed, "measure_group", lambda *_: (times, {}, ["a line"]))
    monkeypatch.setattr(switching, "measure_switching", stop)
    with pytest.raises(KeyboardInterrupt):
        measure(out)
    found = json.loads(out.read_text())
    assert found["milliseconds"] == dict.fromkeys(plane_speed.GROUPS, times)
    assert {"cores", "CPU", "torch", "last-level cache"} <= set(found["about"])
    with pytest.raises(ValueError, match="there is no folder"):
        measure(tmp_path / "nowhere" / "out.json")


def test_the_command_refuses():
    arguments = ["inference", "--network=nowhere.st"]
    command = [sys.executable, "-m", "experiments.benchmark", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "nowhere.st" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_cascade_is_timed_beside_both_modes(monkeypatch):
    monkeypatch.setattr(cascade_speed, "SIZES", (1, 2))
    monkeypatch.setattr(cascade_speed, "IMAGES", 4)
    images = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), np.uint8)
    loaded = SimpleNamespace(test=SimpleNamespace(images=images))
    monkeypatch.setattr(cascade_speed.data, "load", lambda name: loaded)
    rows, lines = cascade_speed.cascade_times(NETWORK, "cifar10", 1)
    assert [row["way"] for row in rows] == ["low", "auto", "high"]
    assert all({"images_1", "images_2"} <= row.keys() for row in rows)
    assert [line.split(" x as fast")[0].rsplit(" ", 1)[0] for line in lines] == [
        "cascade, 1 images a request:",
        "cascade, 2 images a request:",
    ]
