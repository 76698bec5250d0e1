"""Text: what a row reads, what counts, and a recurrent network that goes on where it ended."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from dual_precision.layers import Recurrence
from dual_precision.models import LSTM, MODELS, TEXT_MODELS, build
from dual_precision.precision import Widths, modes
from dual_precision.structure import structure_of
from dual_precision.tasks.language import NextByte, perplexity
from dual_precision.training.metrics import evaluate
from dual_precision.training.phases import Phase
from dual_precision.training.state import initial_variables
from experiments.lm.training import _columns, language_task
from experiments.recipes.language_config import make_language_config

TEXT = np.random.default_rng(0).integers(97, 123, 2000).astype(np.uint8)
WINDOWS = NextByte(16, 512, evaluation_rows=4)
STATE = (((8,), (8,)), ((8,), (8,)))
CARRIED = NextByte(16, 512, carried=STATE, evaluation_rows=4)
BOTH = modes(low="w2a8", high="w8a8")


@pytest.fixture(scope="module")
def lstm():
    model = build("lstm", modes=BOTH, features=8, depth=2)
    return model, initial_variables(model, CARRIED.example, 0)


@pytest.mark.parametrize("task", [WINDOWS, CARRIED])
def test_a_row_reads_windows_of_the_text_and_what_follows(task):
    order = task.order(TEXT, 4, jax.random.key(0))
    assert order.shape == (8, 4)
    assert order.dtype == np.int32
    if task.carried:
        np.testing.assert_array_equal(np.diff(order, axis=0), 16)
    batch = task.draw(task.arrays(TEXT), jnp.asarray(order[-1]), jax.random.key(1))
    for row, start in enumerate(order[-1]):
        np.testing.assert_array_equal(batch["inputs"][row], TEXT[start : start + 16])
        np.testing.assert_array_equal(batch["next"][row], TEXT[start + 1 : start + 17])


def test_every_byte_counts_once_in_evaluation():
    counts = np.zeros(len(TEXT) + 1, int)
    for batch, _mask in WINDOWS.batches(np.arange(2000).astype(np.uint8), 4):
        assert batch["inputs"].shape == (4, 16)
        assert (batch["counted"].sum(axis=1) == 8).all()
    places = [np.arange(start + 8, start + 16) for start in range(0, 2000 - 16, 8)]
    np.add.at(counts, np.concatenate(places), 1)
    assert set(counts[8:1984]) == {1}
    read = [batch["inputs"] for batch, _ in CARRIED.batches(TEXT, 4)]
    np.testing.assert_array_equal(np.concatenate(read, 1)[1], TEXT[499 : 499 + 16 * 31])


def test_measures_of_a_model_that_knows_nothing_are_eight_bits():
    batch, _ = next(WINDOWS.batches(TEXT, 4))
    found = WINDOWS.measures(jnp.zeros((4, 16, 256)), batch)
    np.testing.assert_allclose(found["bits"], 8, rtol=1e-6)
    assert found["loss"].shape == (4,)
    assert not found["accuracy"].any()


def test_a_run_that_diverged_has_no_perplexity():
    """Beyond what a float holds; it was an OverflowError at the end of the training."""
    assert (perplexity(3.0), perplexity(1024.0)) == (8.0, math.inf)
    assert perplexity(np.nextafter(1024.0, 0)) < math.inf
    row = _columns("test", {"bits": 4500.0, "accuracy": 0.25})
    assert row == {"test_bits": 4500.0, "test_accuracy": 25.0}
    assert _columns("test", {"bits": 2.0, "accuracy": 0.25})["test_perplexity"] == 4.0


@pytest.mark.parametrize("precision", ["float", "low", "high"])
def test_a_text_in_parts_gives_what_it_gives_whole(lstm, precision):
    model, variables = lstm
    text = jnp.asarray(TEXT[:64].reshape(2, 32))
    call = jax.jit(partial(model.apply, precision=precision))
    whole = call(variables, text)
    first, carry = call(variables, text[:, :10], model.empty_carry(2))
    second, _ = call(variables, text[:, 10:], carry)
    np.testing.assert_allclose(jnp.concatenate([first, second], 1), whole, atol=1e-5)


def test_the_recurrence_is_that_of_flax(lstm):
    layer = Recurrence(8, modes=BOTH)
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.normal(size=(3, 5, 8)), jnp.float32)
    kernels = jnp.asarray(rng.normal(size=(2, 8, 32)), jnp.float32)
    bias = jnp.asarray(rng.normal(size=32), jnp.float32)
    zeros = jnp.zeros((3, 8))
    given = (x @ kernels[0], (zeros, zeros))
    variables = jax.jit(partial(layer.init, precision="float"))(jax.random.key(0), *given)
    own = {**variables["params"], "kernel": kernels[1], "bias": bias}
    ours, _ = jax.jit(partial(layer.apply, precision="float"))({"params": own}, *given)
    theirs = {}
    for index, gate in enumerate("ifgo"):
        part = slice(8 * index, 8 * index + 8)
        theirs[f"i{gate}"] = {"kernel": kernels[0][:, part]}
        theirs[f"h{gate}"] = {"kernel": kernels[1][:, part], "bias": bias[part]}
    expected = nn.RNN(nn.OptimizedLSTMCell(8)).apply({"params": {"cell": theirs}}, x)
    np.testing.assert_allclose(ours, expected, atol=2e-6)


def test_the_recurrent_layer_is_called_for_every_byte(lstm):
    layers = structure_of(lstm[0], CARRIED.example).layers
    hidden, given = layers["hidden1",], layers["input1",]
    assert hidden.calls == 16
    assert hidden.macs == given.macs == 16 * 8 * 32
    assert hidden.signed


def test_widths_are_values_for_the_recurrence_too(lstm):
    model, variables = lstm
    text, traces = jnp.asarray(TEXT[:32].reshape(2, 16)), []

    @jax.jit
    def run(bits):
        traces.append(bits)
        return model.apply(variables, text, precision=Widths("high", weights=bits))

    whole = jax.jit(partial(model.apply, precision="high"))(variables, text)
    np.testing.assert_allclose(run(jnp.int32(8)), whole, atol=1e-5)
    assert jnp.any(run(jnp.int32(2)) != run(jnp.int32(4)))
    assert len(traces) == 1


@pytest.mark.parametrize(
    ("text", "carry", "message"),
    [
        (jnp.zeros((2, 4), jnp.int32), None, "expected bytes"),
        (jnp.zeros((2, 0), jnp.uint8), None, "expected bytes"),
        (jnp.zeros((2, 4), jnp.uint8), ((jnp.zeros((2, 8)),) * 2,), "a carry of"),
    ],
)
def test_what_no_text_and_no_carry_is(lstm, text, carry, message):
    with pytest.raises(ValueError, match=message):
        lstm[0].apply(lstm[1], text, carry, precision="low")


def test_a_context_longer_than_the_text():
    with pytest.raises(ValueError, match="take a longer text, or less context"):
        WINDOWS.order(TEXT[:16], 4, jax.random.key(0))
    with pytest.raises(ValueError, match="epoch_bytes=512: expected 528 or more, one batch of 33"):
        WINDOWS.order(TEXT, 33, jax.random.key(0))
    assert WINDOWS.order(TEXT, 32, jax.random.key(0)).shape == (1, 32)
    with pytest.raises(ValueError, match="take a longer text, or less context"):
        next(WINDOWS.batches(TEXT[:16], 4))
    with pytest.raises(ValueError, match="expected 65 or more"):
        next(CARRIED.batches(TEXT[:60], 4))


def test_evaluation_goes_on_where_the_rows_ended(lstm):
    model, variables = lstm
    found = evaluate(model, variables, TEXT, task=CARRIED, precision="high")
    rows = jnp.asarray(TEXT[: 4 * 499].reshape(4, 499)[:, :496])
    logits = jax.jit(partial(model.apply, precision="high"))(variables, rows)
    follows = np.stack([TEXT[499 * r + 1 : 499 * r + 497] for r in range(4)]).astype(np.int32)
    logs = jnp.take_along_axis(nn.log_softmax(logits), follows[..., None], -1)
    np.testing.assert_allclose(found["loss"], -jnp.mean(logs), rtol=1e-4)


@pytest.mark.parametrize("mode", ["two_phase", "cyclic", "static", "truncate", "float"])
def test_presets_make_a_recipe_of_each_mode(mode):
    for model in ("lstm", "transformer"):
        config = make_language_config("smoke", {"mode": mode, "model": model, "dataset": "pydoc"})
        assert all(isinstance(phase, Phase) for phase in config.recipe.phases())
        assert config.recipe.optimizer == "adam"
        assert config.low == ("w5a5g8" if mode in ("cyclic", "static") else "w2a8")


def test_a_network_of_text_is_asked_for_what_it_has(monkeypatch):
    """A new one is an entry in a table: its sizes, its context and what it carries are its own."""
    for table in (MODELS, TEXT_MODELS):
        monkeypatch.setitem(table, "small", partial(LSTM, features=8, depth=1))
    config = make_language_config("quick", {"model": "small"})
    assert (config.features, config.depth, config.recipe.passes) == (8, 1, 24.0)
    assert "context" not in config.network()
    assert language_task(config).carried == (((8,), (8,)),)
    with pytest.raises(ValueError, match="on split batches of model 'small'"):
        make_language_config("quick", {"model": "small", "distillation": 0.5})
    plain = make_language_config("quick", {"model": "transformer_512", "context": 16})
    assert (plain.features, plain.network()["context"]) == (512, 16)
    assert language_task(plain).carried == ()


def test_settings_that_text_does_not_have():
    with pytest.raises(ValueError, match="'mean' is unknown"):
        make_language_config("smoke", {"mean": "0.5"})
    for mode in ("bsq", "supernet"):  # a supernet of text was trained, and no command searched it
        with pytest.raises(ValueError, match=rf"mode '{mode}' is of images, .*experiments.cifar`"):
            make_language_config("smoke", {"mode": mode})
    with pytest.raises(ValueError, match="split=false with it, or model 'transformer'"):
        make_language_config("smoke", {"model": "lstm", "distillation": 0.5})
    with pytest.raises(
        ValueError, match=r"'resnet20' reads images, .* `python -m experiments.cifar`"
    ):
        make_language_config("smoke", {"model": "resnet20"})
    with pytest.raises(ValueError, match="optimizer 'lion' is unknown"):
        make_language_config("smoke", {"optimizer": "lion"})
