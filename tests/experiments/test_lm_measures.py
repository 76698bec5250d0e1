"""What is measured of trained networks on text: agreement, planes, drafts, times of a byte."""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags

from dual_precision import modes
from dual_precision.deploy import Generator
from dual_precision.models import build
from dual_precision.tasks.language import NextByte
from dual_precision.training.metrics import evaluate
from experiments.benchmark.language import measure_language
from experiments.lm import agreement, drafts, planes
from experiments.lm.__main__ import define_lm_flags
from experiments.lm.agreement import agreement_of
from experiments.recipes.language_config import make_language_config

TEXT = np.random.default_rng(0).integers(0, 256, 600, np.uint8)
DUAL = modes(low="w2a8", high="w8a8")


def initial(model):
    text = jnp.zeros((1, 4), jnp.uint8)
    return jax.jit(lambda key: model.init(key, text, precision="high"))(jax.random.key(0))


@pytest.fixture(scope="module")
def lstm():
    model = build("lstm", features=8, depth=1, modes=DUAL)
    state = (((8,), (8,)),)
    return model, initial(model), NextByte(16, carried=state, evaluation_rows=4)


@pytest.fixture(scope="module")
def transformer():
    model = build("transformer", features=16, depth=1, heads=2, context=32, modes=DUAL)
    return model, initial(model)


def test_a_mode_agrees_with_itself(lstm):
    found = agreement_of(*lstm, TEXT, modes=("low", "low"))
    assert (found.overall, found.count) == (1.0, 4 * 16 * 9)
    apart = agreement_of(*lstm, TEXT)
    assert apart.overall < 1
    assert apart.bits[0] == pytest.approx(found.bits[0]) != apart.bits[1]
    model, variables, task = lstm
    high = evaluate(model, variables, TEXT, task=task, precision="high")
    assert apart.bits[1] == pytest.approx(high["bits"])


@pytest.mark.parametrize("mode", ["float", "high", "low"])
def test_only_trained_modes_agree(monkeypatch, mode):
    """Of others it is their normalisation and steps at the start that were measured."""
    own = SimpleNamespace(config=make_language_config("smoke", {"mode": mode}))
    monkeypatch.setattr(agreement, "read_trained", lambda *_: own)
    with pytest.raises(ValueError, match=f"run of --mode={mode}, which .*: expected one that tra"):
        agreement.agreement_command(workdir="run", split="test")


def test_rounds_of_timing_are_no_negative_number():
    values = flags.FlagValues()
    define_lm_flags(values)
    with pytest.raises(flags.IllegalFlagValueError, match="--repeats=-1"):
        values(["lm", "--repeats=-1"])
    values(["lm", "--repeats=0"])


def test_planes_of_a_float_network(lstm):
    rows = planes.rows_of_planes(*lstm, TEXT, ["w8a16"])
    assert [row["precision"] for row in rows] == ["float", "w8a16"]
    assert abs(rows[1]["more"]) < 1
    assert "w8a16" in planes.planes_table(rows)


def test_drafts_are_counted(transformer):
    model, variables = transformer
    generator = Generator.of(model, variables, jax.ShapeDtypeStruct((32,), jnp.uint8))
    prompts = drafts.prompts_of(TEXT, 3, 20)
    assert all(1 <= len(prompt) <= 20 for prompt in prompts)
    with pytest.raises(
        ValueError, match="held-out text of 20 bytes: expected more than 20, the lo"
    ):
        drafts.prompts_of(TEXT[:20], 3, 20)
    (row,) = drafts.rows_of_drafts(generator, prompts, 8, [2])
    assert (row["prompts"], row["alike"]) == (3, 3)
    assert row["bytes"] == pytest.approx(1 + 2 * row["kept"] / 100)
    high, drafted = drafts.times_of_drafts(generator, prompts, 8, [2], repeats=1)
    assert high["ratio"] == 1.0
    assert drafted["ms"] > 0


def test_the_benchmark_of_a_byte(transformer, monkeypatch, capsys, tmp_path):
    model, variables = transformer
    own = Generator.of(model, variables, jax.ShapeDtypeStruct((32,), jnp.uint8))
    module = "experiments.benchmark.language"
    monkeypatch.setattr(f"{module}.random_generator", lambda: own)
    monkeypatch.setattr(f"{module}.torch_products", lambda _: None)
    monkeypatch.setattr(f"{module}.PROMPT", b"It is a truth")
    with pytest.raises(ValueError, match="there is no folder"):
        measure_language(repeats=1, steps=1, out=str(tmp_path / "none" / "bytes.json"))
    assert not capsys.readouterr().out, "before anything is measured"
    measure_language(repeats=1, steps=1, out=str(tmp_path / "bytes.json"))
    found = json.loads((tmp_path / "bytes.json").read_text())
    assert {"CPU", "cores", "jax", "steps"} <= found["about"].keys()
    assert {len(times) for times in found["milliseconds"].values()} == {1}
    table = capsys.readouterr().out.splitlines()
    assert "| high, a byte of 8 in one program |" in "\n".join(table)
    assert table[-1].startswith("7,168 weights on planes: DraftCosts(rounds=")
