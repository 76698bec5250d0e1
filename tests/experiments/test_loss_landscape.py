"""The loss along a line: where codes change on it, against small cases done by hand."""

import itertools

import hypothesis
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from hypothesis import strategies

from dual_precision.primitives.nested import encode
from experiments.figures import layer_weights, loss_landscape


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


def test_one_low_code_changes_from_stretch_to_stretch(network) -> None:
    layers = layer_weights.switching_layers(network.layers)
    params = network.variables["params"]
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
