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
from absl import flags
from flax import linen as nn

from dual_precision.deploy import inspect_packed
from experiments.benchmark import (
    __main__ as benchmark,
)
from experiments.benchmark import (
    inference as inference_command,
)
from experiments.benchmark import (
    inference_times as inference,
)
from experiments.benchmark import (
    switching,
    torch_peers,
)
from experiments.benchmark import (
    timing as measuring,
)

ROOT = Path(__file__).parents[2]
NETWORK = ROOT / benchmark.NETWORK


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


def test_tables_with_cold_caches():
    times = {inference.JAX: [4.0], "w2a8": [1.0]}
    head, _, plain, ours = inference.table(
        times, dict.fromkeys(times, 0.1), {inference.JAX: [6.0], "w2a8": [2.0]}
    ).splitlines()
    assert "| cold: ms | cold: x JAX float32 |" in head
    assert {line.count("|") for line in (head, plain, ours)} == {8}
    assert ours == "| w2a8 | 1.000 (1.000..1.000) | 4.00 | 2.000 | 3.00 | 10.0 % |  |"


def test_rounds_time_every_program_warm_and_cold(monkeypatch):
    monkeypatch.setattr(inference, "WARM_SECONDS", 0.0)
    calls = []
    requests = {name: partial(calls.append, name) for name in ("a", "b", "c")}
    warm, cold = inference.time_rounds(requests, repeats=2, steps=3, cold_steps=1)
    assert {name: len(own) for name, own in warm.items()} == dict.fromkeys("abc", 2)
    assert {name: len(own) for name, own in cold.items()} == dict.fromkeys("abc", 2)
    assert calls.count("b") == 2 * (inference.WARM + 3 + 1)
    assert inference.time_rounds(requests, 1, 1, 0)[1] == {}


def test_the_order_of_turns_is_shuffled_and_repeatable():
    names = list("abcdef")
    orders = list(measuring.turns(names, 20))
    assert all(sorted(order) == names for order in orders)
    after = {order[order.index("a") - 1] for order in orders if order[0] != "a"}
    assert len(after) > 2
    assert orders == list(measuring.turns(names, 20))


def test_bars():
    times = {inference.JAX: [8.0], "w2a8": [2.0], "w1a8": [0.1]}
    lines = [line for group in inference.GROUPS for line in inference.judge(group, times)]
    verdicts = {line.split(" against ")[0]: line.split(") ")[-1] for line in lines if "JAX" in line}
    assert verdicts[f"{inference.ONE}: w2a8"] == "PASS"
    assert verdicts[f"{inference.ONE}: w1a8"] == "PASS, goal met"
    assert sum(line.endswith("not measured") for line in lines) == 7
    cold = inference.judge(inference.CELL, times, {inference.JAX: [8.0], "w2a8": [4.0]})
    assert cold[0].endswith("PASS; cold caches: 2.00 x")


def test_a_goal_is_not_a_bar():
    assert [measuring.goal_verdict(met) for met in (True, False)] == ["goal met", "goal missed"]
    assert measuring.verdict_of(passed=False, goal=True) == "short"


def test_without_dynamic_int8_the_row_is_left_out(monkeypatch, capsys):
    torch = pytest.importorskip("torch")
    monkeypatch.delattr(torch.ao.quantization, "quantize_dynamic")
    layers = [{"kernel": np.ones((4, 4), np.float32), "bias": np.ones(4, np.float32)}]
    found = torch_peers.mlp(layers, np.ones((1, 4), np.float32), "plain", "int8")
    assert list(found) == ["plain"]
    assert "dynamic int8: not measured" in capsys.readouterr().out


def test_the_verdict_of_the_cascade():
    def line(difference, relative):
        auto = {"accuracy": 82.0, "difference": difference, "relative": relative}
        rows = [{"accuracy": 80.0}, auto, {"accuracy": 82.0}]
        return inference_command.cascade_line("without", rows)

    assert line(-0.1, 50).endswith(" PASS")
    assert line(0.3, 29.8).endswith("PASS, goal met")
    assert line(0.3, 50.8).endswith("short")
    assert line(-0.2, 20).endswith("short")


def test_what_the_cascade_needs_is_checked_first(tmp_path, monkeypatch):
    settings = inference_command.check(NETWORK)
    assert (settings.dataset, settings.mirror) == ("cifar10", True)
    info = inspect_packed(NETWORK)
    one = dataclasses.replace(info, bytes_read={"high": 1})
    unknown = dataclasses.replace(info, metadata={})
    for own, says in ((one, "expected two modes"), (unknown, "does not say on what")):
        monkeypatch.setattr(inference_command, "inspect_packed", lambda path, own=own: own)
        with pytest.raises(ValueError, match=says):
            inference_command.run(NETWORK, 1, 1, 100, None)


def test_each_part_is_saved_when_it_is_done(tmp_path, monkeypatch):
    out = tmp_path / "out.json"

    def stop(path, requests):
        raise KeyboardInterrupt

    times = {"w1a8": [1.0]}
    monkeypatch.setattr(inference, "measure", lambda *_: (times, {}, ["a line"]))
    monkeypatch.setattr(switching, "measure", stop)
    with pytest.raises(KeyboardInterrupt):
        inference_command.run(NETWORK, 1, 1, 100, str(out))
    found = json.loads(out.read_text())
    assert found["milliseconds"] == dict.fromkeys(inference.GROUPS, times)
    assert {"cores", "CPU", "torch", "last-level cache"} <= set(found["about"])
    with pytest.raises(FileNotFoundError):
        inference_command.run(NETWORK, 1, 1, 100, str(tmp_path / "nowhere" / "out.json"))


def parsed(*arguments):
    values = flags.FlagValues()
    benchmark.define_flags(values)
    values(["benchmark", *arguments])
    return values


@pytest.mark.parametrize(
    ("command", "argument"),
    [
        ("inference", "--model=mlp"),
        ("inference", "--nopeers"),
        ("train", "--network=net.safetensors"),
        ("train", "--requests=100"),
    ],
)
def test_flags_without_effect_are_refused(command, argument):
    values = parsed(argument, "--steps=1", "--out=out.json")
    with pytest.raises(ValueError, match=f"have no effect on {command}"):
        benchmark.refuse_idle(command, values)
    (other,) = set(benchmark.COMMANDS) - {command}
    benchmark.refuse_idle(other, values)


@pytest.mark.parametrize("argument", ["--repeats=0", "--steps=0", "--steps=-1", "--requests=99"])
def test_flags_below_their_bounds_are_refused(argument):
    with pytest.raises(flags.IllegalFlagValueError, match="is not"):
        parsed(argument)
    assert parsed().steps is None


def test_the_command_refuses():
    arguments = ["inference", "--network=nowhere.st"]
    command = [sys.executable, "-m", "experiments.benchmark", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "nowhere.st" in done.stderr
    assert done.stderr.count("\n") == 1
