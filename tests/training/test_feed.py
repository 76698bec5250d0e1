"""Which examples each update takes: all of it follows from the seed and the step."""

import dataclasses

import jax
import numpy as np
import pytest

from dual_precision import data
from dual_precision.tasks.classification import Classification
from dual_precision.training.feed import Feed
from dual_precision.training.options import FitOptions

SIZE, BATCH = 100, 16
STEPS = SIZE // BATCH
TASK = Classification((2, 2, 1))
SPLIT = data.Images(
    np.arange(SIZE * 4, dtype=np.int64).reshape(SIZE, 2, 2, 1).astype(np.uint8),
    np.arange(SIZE, dtype=np.int32),
)


def feed(seed=0, most=64):
    return Feed(TASK, SPLIT, FitOptions(BATCH, seed, steps_per_dispatch=most))


def orders(own, steps=3 * STEPS):
    return [np.asarray(own.order(step)) for step in range(0, steps, own.chunk)]


@dataclasses.dataclass
class Unchecked:
    """What a user may give in the place of `data.Images`."""

    images: np.ndarray
    labels: np.ndarray


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        (np.arange(1, SIZE + 1), "from 1 to 100"),
        (np.full(SIZE, -1), "from -1 to -1"),
        (np.full(SIZE, 0.7), r"float64 \[100\]"),
        (np.zeros(8, np.int8), r"int8 \[8\]"),
    ],
)
def test_labels_that_no_class_has(labels, found):
    """A loss would take no notice of them."""
    task = dataclasses.replace(TASK, classes=SIZE)
    with pytest.raises(ValueError, match=rf"labels {found}: expected integers \[100\].* 0 to 99"):
        Feed(task, Unchecked(SPLIT.images, labels), FitOptions(BATCH))


@pytest.mark.parametrize(("most", "chunk"), [(1, 1), (2, 2), (4, 3), (5, 3), (64, 6)])
def test_dispatches_divide_the_epoch(most, chunk):
    """So that evaluation and checkpoints fall between two of them; the order is the same."""
    own = feed(most=most)
    assert (own.chunk, own.steps_per_epoch) == (chunk, STEPS)
    assert own.order(0).shape == (chunk, BATCH)
    np.testing.assert_array_equal(np.concatenate(orders(own)), np.concatenate(orders(feed())))


def test_every_epoch_has_an_order_of_its_own():
    epochs = np.concatenate(orders(feed())).reshape(3, STEPS * BATCH)
    for epoch in epochs:
        assert len(np.unique(epoch)) == STEPS * BATCH
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert set(np.unique(epochs)) <= set(range(SIZE))


def test_the_seed_decides():
    np.testing.assert_array_equal(orders(feed(3)), orders(feed(3)))
    assert not np.array_equal(orders(feed(3)), orders(feed(4)))


def test_any_step_may_be_asked_for():
    """As a run that goes on does, and as an event does, which looks ahead."""
    own = feed(most=2)
    forward = orders(own)
    for index in (5, 0, 8, 2):
        np.testing.assert_array_equal(own.order(2 * index), forward[index])


def test_batches_of_an_event_are_those_of_the_next_updates():
    own = feed(most=2)
    forward = np.concatenate(orders(own))
    for start, count in ((0, 1), (3, 5), (STEPS, 2)):  # from within a chunk, over an epoch's end
        batches = list(own.batches(start, count))
        assert len(batches) == count
        for index, batch in zip(forward[start:], batches, strict=False):
            np.testing.assert_array_equal(batch["labels"], index)
            np.testing.assert_array_equal(batch["inputs"], SPLIT.images[index])


def test_arrays_are_on_the_devices_whole():
    arrays = feed().arrays
    assert set(arrays) == {"images", "labels"}
    assert all(isinstance(array, jax.Array) for array in arrays.values())
    np.testing.assert_array_equal(arrays["images"], SPLIT.images)


def test_a_batch_larger_than_the_split():
    with pytest.raises(ValueError, match="batch of 101 images from a split of 100: expected at"):
        Feed(TASK, SPLIT, FitOptions(101))
