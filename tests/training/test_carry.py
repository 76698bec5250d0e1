"""What rows carry from batch to batch: each mode its own, anew in every epoch, over every stop.

The model here counts the batches that a row has seen; the loss puts the counts into the log.
"""

import dataclasses
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from dual_precision import Modes, modes
from dual_precision.layers import Dense
from dual_precision.tasks.task import Network
from dual_precision.training import fit as fit_module
from dual_precision.training.fit import fit
from dual_precision.training.log import read_records
from dual_precision.training.manifest import manifest
from dual_precision.training.methods.modes import Split, Together
from dual_precision.training.metrics import evaluate
from dual_precision.training.optimizers import RATE, STEP_RATE, Sgd
from dual_precision.training.options import FitOptions
from dual_precision.training.phases import Phase
from dual_precision.training.signals import Interrupted

pytestmark = pytest.mark.usefixtures("compiled_quickly")

BOTH = ("high", "low")
ROWS, UPDATES = 4, 3
KEY = jax.random.key(0)


class Counting(nn.Module):
    """(y, count + 1): y = dense([x, count])."""

    modes: Modes

    @nn.compact
    def __call__(self, x, count, *, precision, train=False):
        x = jnp.concatenate([x, count[:, None]], axis=1)
        return Dense(1, self.modes, name="dense")(x, precision=precision)[:, 0], count + 1


@dataclasses.dataclass(frozen=True)
class Sums:
    """The sum of two numbers, batch after batch in order; every row counts its batches."""

    example = (
        jax.ShapeDtypeStruct((2,), jnp.float32),
        jax.ShapeDtypeStruct((), jnp.float32),
    )

    def carry(self, rows):
        return jnp.zeros(rows)

    def arrays(self, split):
        return {"x": split}

    def order(self, split, batch_size, key):
        return np.arange(len(split), dtype=np.int32).reshape(-1, batch_size)

    def draw(self, arrays, index, key):
        return {"inputs": arrays["x"][index]}

    def batches(self, split, batch_size):
        for start in range(0, len(split), batch_size):
            rows = np.resize(split[start : start + batch_size], (batch_size, 2))
            yield {"inputs": rows}, np.arange(batch_size) < len(split) - start

    def loss(self, outputs, batch):
        return jnp.mean(self.measures(outputs, batch)["loss"])

    def measures(self, outputs, batch):
        return {"loss": (outputs - jnp.sum(batch["inputs"], axis=1)) ** 2}

    def score(self, measured):
        return -measured["loss"]


@dataclasses.dataclass(frozen=True)
class Noting:
    """A loss that also says what is carried after it."""

    inner: Together | Split

    @property
    def precisions(self):
        return self.inner.precisions

    def __call__(self, network, params, state, *more):
        loss, (state, metrics) = self.inner(network, params, state, *more)
        counts = {f"{mode}_count": jnp.sum(count) for mode, count in state["carry"].items()}
        return loss, (state, metrics | counts)


MODEL = Counting(modes(low="w2a2", high="w8a8"))
NETWORK = Network(MODEL, Sums())
X = np.random.default_rng(0).uniform(0, 1, (UPDATES * ROWS, 2)).astype(np.float32)


@pytest.fixture(scope="module")
def params():
    """Not those of `init`, which would be compiled."""
    steps = {"low": jnp.float32(0.3), "high": jnp.float32(0.01)}
    kernel = jnp.asarray([[0.5], [0.2], [0.1]])
    return {
        "dense": {
            "kernel": kernel,
            "step": jnp.asarray([0.01]),
            "bias": jnp.zeros(1),
            "input_step": steps,
        }
    }


def once(loss, params, carry):
    state = {"batch_stats": {}, "carry": carry}
    run = jax.jit(lambda *given: loss(NETWORK, *given, KEY, {}))
    _, (state, _) = run(params, state, {"inputs": jnp.asarray(X[:ROWS])})
    return jax.tree.map(np.asarray, state["carry"])


def test_each_mode_has_its_own(params):
    """Together all rows of all modes go on; one mode alone leaves what the other carries."""
    carry = {"high": jnp.zeros(ROWS), "low": jnp.arange(4.0)}
    after = once(Together(BOTH), params, carry)
    np.testing.assert_array_equal(after["high"], [1, 1, 1, 1])
    np.testing.assert_array_equal(after["low"], [1, 2, 3, 4])
    after = once(Together(("low",)), params, carry)
    np.testing.assert_array_equal(after["high"], 0)
    np.testing.assert_array_equal(after["low"], [1, 2, 3, 4])


def test_in_a_split_batch_the_rows_of_a_mode_go_on(params):
    carry = {"high": jnp.zeros(ROWS), "low": jnp.arange(4.0)}
    after = once(Split(BOTH), params, carry)
    np.testing.assert_array_equal(after["high"], [1, 0, 1, 0])
    np.testing.assert_array_equal(after["low"], [0, 2, 2, 4])


def test_evaluation_carries_from_batch_to_batch(params):
    """And starts anew each time: the count is 0, 1, 2 in batches of 4."""
    found = [
        evaluate(MODEL, {"params": params}, X, task=Sums(), precision="float", batch_size=ROWS)
        for _ in range(2)
    ]
    assert found[0] == found[1]
    count = np.repeat([0.0, 1.0, 2.0], ROWS)
    y = 0.5 * X[:, 0] + 0.2 * X[:, 1] + 0.1 * count
    assert found[0]["loss"] == pytest.approx(np.mean((y - X.sum(1)) ** 2), rel=1e-5)


def test_training_carries_within_an_epoch_and_resumes_in_the_middle(params, tmp_path, monkeypatch):
    """Counts start anew in every epoch; stopped after every update it ends with the same bits."""
    schedules = dict.fromkeys((RATE, STEP_RATE), lambda _: optax.constant_schedule(0.01))
    phase = Phase("p", 2, BOTH, Noting(Split(BOTH)), Sgd(), schedules)
    start = {"params": params}  # as model.init gives them: this network has no statistics
    options = FitOptions(batch_size=ROWS, steps_per_dispatch=1)

    def run(workdir):
        return fit(MODEL, Sums(), (phase,), X, X, options, workdir, variables=start)

    def records(workdir):
        kept = read_records(workdir / "metrics.jsonl")
        return [{k: v for k, v in r.items() if k != "examples_per_second"} for r in kept]

    whole = run(tmp_path / "whole")
    assert [record["epoch"] for record in records(tmp_path / "whole")] == [1, 2]
    for record in records(tmp_path / "whole"):  # of the last update: 3 of every second row
        assert (record["high_count"], record["low_count"]) == (6, 6)
    assert not any(count.any() for count in whole.carry.values())

    monkeypatch.setattr(fit_module, "compile_steps", stopping())
    for _ in range(2 * UPDATES - 1):
        with pytest.raises(Interrupted):
            run(tmp_path / "stopped")
    resumed = run(tmp_path / "stopped")
    assert manifest(dataclasses.asdict(resumed)) == manifest(dataclasses.asdict(whole))
    assert records(tmp_path / "stopped") == records(tmp_path / "whole")


def stopping():
    """`compile_steps` whose program asks to stop after every launch; compiled once."""
    compile_steps, kept = fit_module.compile_steps, []

    def once(*arguments):
        if not kept:
            kept.append(compile_steps(*arguments))

        def launch(*given):
            result = kept[0](*given)
            signal.raise_signal(signal.SIGTERM)
            return result

        return launch

    return once
