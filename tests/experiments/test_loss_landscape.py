"""The loss along a line: where codes change on it, against small cases done by hand."""

import itertools
from typing import Any

import hypothesis
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from hypothesis import strategies

from dual_precision import modes
from dual_precision.data import Images
from dual_precision.models import MLP
from dual_precision.primitives.nested import encode
from dual_precision.structure import structure_of
from dual_precision.tasks.classification import Classification
from dual_precision.training.metrics import evaluate
from dual_precision.training.state import initial_variables
from experiments.figures import layer_weights, loss_landscape

MODEL = MLP(num_classes=4, modes=modes(low="w2a2", high="w8a8"), hidden=(16, 16))
EXAMPLE = Classification((8, 8, 1)).example


def test_random_direction_has_every_filter_s_norm() -> None:
    kernels = {("a", "kernel"): np.arange(24, dtype=np.float32).reshape(2, 3, 4)}
    (found,) = loss_landscape.random_direction(kernels, seed=0).values()
    (kernel,) = kernels.values()
    assert found.dtype == np.float32
    for filter_, noise in zip(kernel.reshape(-1, 4).T, found.reshape(-1, 4).T, strict=True):
        assert np.linalg.norm(noise) == pytest.approx(np.linalg.norm(filter_))
    again = loss_landscape.random_direction(kernels, seed=0)
    np.testing.assert_array_equal(found, again["a", "kernel"])


def test_crossings_by_hand() -> None:
    """Step 1, two bits of three: edges at -2, 0, 2; the weight that does not move has none."""
    kernel, direction = np.float32([[1.0], [-3.0], [0.5]]), np.float32([[0.5], [1.0], [0.0]])
    found = loss_landscape.crossings(kernel, direction, np.float32([1.0]), 2, 3)
    assert found.tolist() == [-6, -2, 1, 2, 3, 5]


@hypothesis.given(seed=strategies.integers(0, 2**16), bits=strategies.integers(1, 4))
def test_codes_stay_between_crossings(seed: int, bits: int) -> None:
    generator = np.random.default_rng(seed)
    kernel, direction = generator.standard_normal((2, 3, 2)).astype(np.float32)
    step = generator.uniform(0.1, 0.4, 2).astype(np.float32)
    at = loss_landscape.crossings(kernel, direction, step, bits, 4)
    previous = None
    for start, stop in itertools.pairwise(at):
        if stop - start < 1e-4:  # within the rounding of float32
            previous = None
            continue
        codes = []
        for share in (0.2, 0.8):
            t = np.float32(start + share * (stop - start))
            codes.append(np.asarray(encode(jnp.asarray(kernel + t * direction), step, bits, 4)))
        np.testing.assert_array_equal(*codes)
        assert previous is None or (codes[0] != previous).any()
        previous = codes[1]


@pytest.fixture(scope="module")
def fresh() -> dict[str, Any]:
    """Variables of MODEL, not trained."""
    return initial_variables(MODEL, EXAMPLE, seed=0)


def test_one_low_code_changes_from_stretch_to_stretch(fresh: dict[str, Any]) -> None:
    layers = layer_weights.switching_layers(structure_of(MODEL, EXAMPLE).layers)
    params = fresh["params"]
    kernels = layer_weights.leaves(params, layers, "kernel")
    direction = loss_landscape.random_direction(kernels, seed=0)
    edges = loss_landscape.stretches(params, layers, direction, changes=6)
    assert len(edges) == 8
    assert edges[-1] == -edges[0] == np.abs(edges).max()

    flat = flatten_dict(params)

    def codes_at(t: float) -> np.ndarray:
        moved = {path: kernels[path] + np.float32(t) * direction[path] for path in kernels}
        return layer_weights.codes(unflatten_dict({**flat, **moved}), layers, "low")

    found = [[codes_at(a + s * (b - a)) for s in (0.2, 0.8)] for a, b in itertools.pairwise(edges)]
    for near, far in found:
        np.testing.assert_array_equal(near, far)
    for (_, before), (after, _) in itertools.pairwise(found):
        assert np.sum(before != after) == 1


def test_the_loss_of_low_is_a_staircase(fresh: dict[str, Any]) -> None:
    """It changes where a code does, and nowhere else; at t = 0 it is that of the network."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (32, 8, 8, 1)).astype(np.uint8)
    labels = generator.integers(0, 4, 32).astype(np.int32)
    layers = layer_weights.switching_layers(structure_of(MODEL, EXAMPLE).layers)
    kernels = layer_weights.leaves(fresh["params"], layers, "kernel")
    direction = loss_landscape.random_direction(kernels, seed=0)
    edges = loss_landscape.stretches(fresh["params"], layers, direction, changes=4)
    places = [a + s * (b - a) for a, b in itertools.pairwise(edges) for s in (0.2, 0.8)]
    along = (MODEL, fresh, direction)
    low = loss_landscape.losses_along(*along, [*places, 0.0], images, labels, "low")
    steps = low[:-1].reshape(-1, 2)
    np.testing.assert_array_equal(steps[:, 0], steps[:, 1])
    assert len(set(steps[:, 0])) > 1
    split = Images(images, labels)
    there = evaluate(MODEL, fresh, split, task=Classification((8, 8, 1)), precision="low")
    assert low[-1] == pytest.approx(there["loss"])
    assert low[-1] == steps[np.searchsorted(edges, 0) - 1, 0]
