"""What a mode is worth: means over every example, whatever the batches are; widths as values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dual_precision import Widths, data
from dual_precision.training.metrics import evaluate

SIZE = 13


@pytest.fixture(scope="module")
def split():
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (SIZE, 8, 8, 1)).astype(np.uint8)
    return data.Images(images, generator.integers(0, 4, SIZE).astype(np.int32))


def score(small, split, precision, batch_size):
    model, task = small.network.model, small.network.task
    return evaluate(
        model, small.variables, split, task=task, precision=precision, batch_size=batch_size
    )


@pytest.mark.parametrize("batch_size", [5, 13, 20])
def test_means_over_every_example(small, split, batch_size):
    """What fills up the last batch does not count."""
    apply = jax.jit(small.network.model.apply, static_argnames="precision")
    logits = apply(small.variables, split.images, precision="low")
    rows = np.asarray(jax.nn.log_softmax(logits), np.float64)
    found = score(small, split, "low", batch_size)
    assert set(found) == {"accuracy", "loss"}
    assert found["accuracy"] == pytest.approx(np.mean(rows.argmax(1) == split.labels))
    loss = -np.mean(rows[np.arange(SIZE), split.labels])
    assert found["loss"] == pytest.approx(loss, rel=1e-5)


def test_widths_as_values_are_one_trace(small, split):
    """And those of a mode itself give what the mode gives."""
    from dual_precision.training.metrics import _batch_program

    before = _batch_program(small.network, None)._cache_size()
    found = [score(small, split, Widths("high", jnp.int32(bits)), 13) for bits in (2, 5, 8)]
    assert _batch_program(small.network, None)._cache_size() == before + 1
    assert found[2] == score(small, split, "high", 13)
    assert found[0] != found[2]
