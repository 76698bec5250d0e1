"""Losses of the modes of one network: what they add up, whose rows, who learns from whom."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dual_precision import Modes
from dual_precision.costs import update_cost
from dual_precision.tasks.classification import Classification
from dual_precision.tasks.task import Network
from dual_precision.training.compilation import RUNS_ONCE
from dual_precision.training.methods.modes import ENSEMBLE, Split, Together, _as_deployed
from dual_precision.training.optimizers import Sgd
from dual_precision.training.phases import Phase

KEY = jax.random.key(0)
BOTH = ("high", "low")
LOSSES = {
    "both": Together(BOTH),
    "high": Together(("high",)),
    "low": Together(("low",)),
    "taught": Together(BOTH, teacher="high", distillation=1.0),
    "ensemble": Together(BOTH, teacher=ENSEMBLE, distillation=1.0),
    "split": Split(BOTH),
    "split taught": Split(BOTH, teacher="high", distillation=1.0),
}


@pytest.fixture(scope="module")
def found(small):
    """Name -> (gradients, loss, statistics, metrics), and the logits of both modes, in one program.

    "high/0" and "low/1" are modes alone on the rows that a split batch gives them.
    """
    network, batch = small.network, small.batch

    @partial(jax.jit, compiler_options=RUNS_ONCE)
    def all_of(params, statistics, batch):
        state = {"batch_stats": statistics, "carry": {}}

        def of(loss, batch):
            value = jax.value_and_grad(loss, argnums=1, has_aux=True)
            (total, (after, metrics)), grads = value(network, params, state, batch, KEY, {})
            return {"grads": grads, "loss": total, "metrics": metrics, **after}

        def share(index):
            return {name: array[index::2] for name, array in batch.items()}

        results = {name: of(loss, batch) for name, loss in LOSSES.items()}
        for index, mode in enumerate(BOTH):
            results[f"{mode}/{index}"] = of(LOSSES[mode], share(index))
        logits = {
            mode: network(params, state, batch, precision=mode, train=True)[0] for mode in BOTH
        }
        after = {**state, "batch_stats": results["split"]["batch_stats"]}
        deployed = network(params, after, share(1), precision="high", train=False)[0]
        taught = network(params, state, share(1), precision="low", train=True)[0]
        return results, {**logits, "deployed": deployed, "low/1": taught}

    return all_of(*small.variables.values(), batch)


def allclose(one, other, rtol=1e-5, atol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), one, other)


def test_the_loss_is_the_sum_over_modes(found):
    results, logits = found
    alone = results["high"]["loss"] + results["low"]["loss"]
    assert float(results["both"]["loss"]) == pytest.approx(float(alone), rel=1e-6)
    high, low = (jax.nn.log_softmax(logits[mode]) for mode in BOTH)
    kl = jnp.mean(jnp.sum(jnp.exp(high) * (high - low), axis=-1))
    expected = float(results["both"]["metrics"]["high_loss"] + kl)
    assert float(results["taught"]["loss"]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", ["both", "taught", "split"])
def test_metrics_are_of_each_mode_by_name(found, small, name):
    """Its loss on labels, its accuracy: on all rows, or on its own where the batch is split."""
    results, logits = found
    metrics = results[name]["metrics"]
    assert set(metrics) == {f"{mode}_{what}" for mode in BOTH for what in ("loss", "accuracy")}
    if name == "split":
        for index, mode in enumerate(BOTH):
            alone = results[f"{mode}/{index}"]["metrics"]
            allclose({key: metrics[key] for key in alone}, alone, rtol=1e-6)
        return
    labels = np.asarray(small.batch["labels"])
    for mode in BOTH:
        rows = np.asarray(jax.nn.log_softmax(logits[mode]))
        loss = -np.mean(rows[np.arange(len(labels)), labels])
        assert float(metrics[f"{mode}_loss"]) == pytest.approx(loss, rel=1e-5)
        assert float(metrics[f"{mode}_accuracy"]) == np.mean(rows.argmax(-1) == labels)


def test_split_gives_each_mode_its_own_share_of_the_batch(found):
    """Loss, gradients and statistics are those of each mode alone on every second row."""
    results, _ = found
    split, high, low = (results[name] for name in ("split", "high/0", "low/1"))
    assert float(split["loss"]) == pytest.approx(float(high["loss"] + low["loss"]), rel=1e-6)
    assert split["carry"] == {}, "nothing is carried, so the state keeps its structure"
    allclose(split["grads"], jax.tree.map(jnp.add, high["grads"], low["grads"]))
    for norm, statistics in split["batch_stats"].items():
        allclose(statistics["high"], high["batch_stats"][norm]["high"])
        allclose(statistics["low"], low["batch_stats"][norm]["low"])


def test_modes_trained_together_update_their_own_statistics(found, small):
    results, _ = found
    for norm, statistics in results["both"]["batch_stats"].items():
        for mode in BOTH:
            allclose(statistics[mode], results[mode]["batch_stats"][norm][mode])
        before = small.variables["batch_stats"][norm]["float"]
        jax.tree.map(np.testing.assert_array_equal, statistics["float"], before)


def test_no_gradient_reaches_the_teacher(found):
    """With nothing but the teacher's labels in low's loss, high's own leaves see high's loss."""
    results, _ = found
    seen = 0
    for layer, leaves in results["high"]["grads"].items():
        for owner in (leaves, leaves.get("input_step", {})):
            if "high" in owner:
                taught = results["taught"]["grads"][layer]
                taught = taught if owner is leaves else taught["input_step"]
                allclose(taught["high"], owner["high"], atol=1e-7)
                seen += 1
    assert seen == 4


def test_an_ensemble_teaches_each_of_its_modes_the_mean_of_what_all_say(found):
    """No gradient reaches it: what the labels give the logits of one mode, they take from those of
    the other, so that a bias of both stays."""
    results, logits = found
    rows = np.stack([jax.nn.softmax(logits[mode]) for mode in BOTH]).astype(np.float64)
    mean = rows.mean(0)
    kl = (mean * (np.log(mean) - np.log(rows))).sum(-1).mean(-1)
    assert float(results["ensemble"]["loss"]) == pytest.approx(kl.sum(), rel=1e-4)
    np.testing.assert_allclose(results["ensemble"]["grads"]["classifier"]["bias"], 0, atol=1e-6)
    assert np.abs(results["both"]["grads"]["classifier"]["bias"]).max() > 1e-2


def test_a_teacher_of_split_batches_reads_the_rows_of_the_others_as_it_is_deployed(small, found):
    """Its labels are all that changes: not its statistics, nor the gradients of what it owns."""
    results, logits = found
    split, taught = results["split"], results["split taught"]
    high, low = (jax.nn.log_softmax(logits[name]) for name in ("deployed", "low/1"))
    kl = jnp.mean(jnp.sum(jnp.exp(high) * (high - low), axis=-1))
    expected = float(results["high/0"]["loss"] + kl)
    assert float(taught["loss"]) == pytest.approx(expected, rel=1e-4)
    jax.tree.map(np.testing.assert_array_equal, taught["batch_stats"], split["batch_stats"])
    for layer, leaves in split["grads"].items():
        if "high" in leaves:
            allclose(taught["grads"][layer]["high"], leaves["high"], atol=1e-7)
    assert Split(BOTH, "high", 0.5).passes == pytest.approx(1 + 1 / 2 / 3)
    forward = update_cost(8, 8, 0) / 2
    costs = [loss.cost(small.structure, {}) for loss in (Split(BOTH, "high", 0.5), Split(BOTH))]
    more = costs[0] - costs[1]
    assert more == pytest.approx(forward)


def test_smoothed_labels_are_in_the_loss_that_is_trained(small):
    """The measured cross entropy is plain, so that runs compare; it is what is validated."""
    smooth = Network(small.network.model, Classification((8, 8, 1), label_smoothing=0.2))
    logits = jnp.asarray([[2.0, 0.0, -1.0, 0.5]])
    batch = {"inputs": None, "labels": jnp.asarray([0])}
    targets = np.asarray([0.85, 0.05, 0.05, 0.05])
    rows = np.asarray(jax.nn.log_softmax(logits))[0]
    assert float(smooth.task.loss(logits, batch)) == pytest.approx(-(targets * rows).sum(), 1e-5)
    measured = smooth.task.measures(logits, batch)
    assert float(measured["loss"][0]) == pytest.approx(-rows[0], 1e-5)
    assert smooth.task.score({"accuracy": 0.5, "loss": 9.0}) == 0.5


# -- what cannot work ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "says"),
    [
        (Split(("high",)), r"splits batches among \('high',\): expected two modes or more"),
        (Split(("high", "high")), r"runs \('high', 'high'\): expected each mode once"),
        (Together(("low", "low")), r"runs \('low', 'low'\): expected each mode once"),
        (Split(BOTH, "high", 2.0), "distillation 2.0; expected a share, 0 to 1"),
        (Together(BOTH, "high", -0.5), "distillation -0.5; expected a share, 0 to 1"),
        (Together(BOTH, teacher="high"), "teacher 'high' with distillation 0.0; expected both or"),
        (Together(BOTH, distillation=0.5), "teacher None with distillation 0.5; expected both or"),
        (Split(BOTH, "high"), "teacher 'high' with distillation 0.0; expected both or"),
        (Together(("low",), "high", 0.5), r"teacher 'high' does not run; expected one of \('low'"),
        (Together(("low",), ENSEMBLE, 0.5), r"'ensemble' of \('low',\): expected two modes"),
        (Split(BOTH, ENSEMBLE, 0.5), "'ensemble' on split batches, .* expected split=false"),
    ],
)
def test_losses_that_cannot_be(loss, says):
    with pytest.raises(ValueError, match=says):
        loss.check(Modes(), Phase("wrong", 1, ("low",), loss, Sgd()))


def test_a_teacher_that_has_not_seen_what_came_before(small):
    """A mode with a carry goes on from its own rows, and the rows of low are not its own."""
    state = {"batch_stats": small.variables["batch_stats"], "carry": {"high": jnp.zeros((4, 2))}}
    with pytest.raises(ValueError, match=r"'high' carries values .* expected split=false with"):
        _as_deployed(small.network, small.variables["params"], state, small.batch, "high")


def test_a_batch_of_fewer_rows_than_modes(small):
    batch = jax.tree.map(lambda array: array[:1], small.batch)
    state = {"batch_stats": small.variables["batch_stats"], "carry": {}}
    with pytest.raises(ValueError, match=r"batch of 1 split among \('high', 'low'\): expected 2"):
        Split(BOTH)(small.network, small.variables["params"], state, batch, KEY, {})
