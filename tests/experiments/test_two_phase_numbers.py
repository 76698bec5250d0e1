"""The numbers behind notebooks/02_two_phase.ipynb, against small cases done by hand."""

import itertools
import json
from pathlib import Path
from typing import Any

import hypothesis
import jax
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
from dual_precision.training.checkpoint import Checkpoints
from dual_precision.training.initialize import fit_weight_steps
from dual_precision.training.metrics import evaluate
from dual_precision.training.state import initial_variables
from experiments.figures import two_phase_numbers as numbers
from experiments.recipes.config import make_config

MODEL = MLP(num_classes=4, modes=modes(low="w2a2", high="w8a8"), hidden=(16, 16))
EXAMPLE = Classification((8, 8, 1)).example
RESULTS = {"preset": "digits", "pairs": [{"low": "w2a2", "high": "w8a8"}]}


@pytest.fixture(scope="module")
def fresh() -> dict[str, Any]:
    """Variables of MODEL, not trained."""
    return initial_variables(MODEL, EXAMPLE, seed=0)


def make_cell(study: Path, name: str, finished: bool = True) -> Path:
    workdir = study / "cells" / name
    (workdir / "checkpoints" / "5").mkdir(parents=True)
    if finished:
        (workdir / "results.json").write_text("{}")
    return workdir


def test_no_study_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"python -m experiments\.study --preset=quick"):
        numbers.open_study(tmp_path)


def test_no_network_names_the_command(tmp_path: Path) -> None:
    make_cell(tmp_path, "joint-w2a2-w8a8-seed0")
    make_cell(tmp_path, "two_phase-joint-w2a2-w8a8-seed0", finished=False)
    make_cell(tmp_path, "two_phase-joint-w2a2-w8a8-seed0.replaced")
    with pytest.raises(FileNotFoundError, match=f"--preset=digits --workdir={tmp_path}"):
        numbers.find_network(tmp_path, RESULTS)


def test_the_first_pair_comes_before_any_other(tmp_path: Path) -> None:
    other = make_cell(tmp_path, "two_phase-joint-w1a4-w4a4-seed0")
    assert numbers.find_network(tmp_path, RESULTS) == other
    first = make_cell(tmp_path, "two_phase-joint-w2a2-w8a8-seed0")
    assert numbers.find_network(tmp_path, RESULTS) == first


@pytest.mark.parametrize("init", ["", "runs/another"])
def test_stages_are_the_start_and_the_end_of_every_phase(
    tmp_path: Path, fresh: dict[str, Any], init: str
) -> None:
    """Steps at the start are those of the grid that low will share; not where another network was
    started from."""
    config = make_config("digits", {"dataset": "digits", "init": init})
    (tmp_path / "config.json").write_text(json.dumps({"experiment": config.to_json()}))
    network = {"name": "mlp", "num_classes": 4, "hidden": [16, 16], **MODEL.modes.to_json()}
    ends = [jax.tree.map(lambda leaf, end=end: leaf + end, fresh) for end in (1.0, 2.0)]
    with Checkpoints(tmp_path, {"network": network}, milestones=[10, 20]) as checkpoints:
        for phase, end in enumerate(ends):
            state = {"step": np.int32(0), **end, "carry": {}, "opt_state": ()}
            checkpoints.save(10 * (phase + 1), state, {"phase": phase}, score=0.0)
    found = numbers.stages(tmp_path, MODEL, EXAMPLE)
    start = [] if init else ["before phase 1"]
    assert list(found) == [*start, "after phase 1 (high)", "after phase 2 (both)"]
    for stage, end in zip(list(found.values())[-2:], ends, strict=True):
        jax.tree.map(np.testing.assert_array_equal, stage, end)
    if start:
        fitted = fit_weight_steps(fresh["params"], structure_of(MODEL, EXAMPLE), "low")
        jax.tree.map(np.testing.assert_array_equal, found[start[0]]["params"], fitted)


def test_verdicts_count_every_image_once() -> None:
    labels = np.array([0, 0, 0, 0, 0, 0])
    low = np.array([0, 0, 1, 1, 1, 1])
    high = np.array([0, 1, 0, 1, 1, 2])
    assert list(numbers.verdicts(low, high, labels).values()) == [1, 1, 1, 2, 1]


def test_disagreements_come_firmest_first() -> None:
    low = np.array([[0.6, 0.4], [0.9, 0.1], [0.8, 0.2], [0.3, 0.7]])
    high = np.array([[0.4, 0.6], [0.8, 0.2], [0.1, 0.9], [0.6, 0.4]])
    rows, margins = numbers.disagreements(low, high)
    assert rows.tolist() == [2, 3, 0]
    np.testing.assert_allclose(margins, [(0.6 + 0.8) / 2, (0.4 + 0.2) / 2, 0.2])
    rows, margins = numbers.disagreements(low, low)
    assert len(rows) == len(margins) == 0


def test_reliability_bins_and_error() -> None:
    confidence = np.array([0.5, 0.52, 0.75, 0.8, 1.0])  # 0.5 and 0.75 belong to the bin they close
    probabilities = np.stack([confidence, 1 - confidence], -1)
    found = numbers.reliability(probabilities, np.array([0, 1, 0, 0, 1]), bins=4)
    assert found.count.tolist() == [0, 1, 2, 2]
    np.testing.assert_allclose(found.accuracy, [np.nan, 1, 0.5, 0.5])
    np.testing.assert_allclose(found.confidence, [np.nan, 0.5, 0.635, 0.9])
    assert found.error == pytest.approx((0.5 + 2 * 0.135 + 2 * 0.4) / 5)


def test_sure_and_right_is_calibrated() -> None:
    assert numbers.reliability(np.eye(3), np.arange(3)).error == 0


def test_random_direction_has_every_filter_s_norm() -> None:
    kernels = {("a", "kernel"): np.arange(24, dtype=np.float32).reshape(2, 3, 4)}
    (found,) = numbers.random_direction(kernels, seed=0).values()
    (kernel,) = kernels.values()
    assert found.dtype == np.float32
    for filter_, noise in zip(kernel.reshape(-1, 4).T, found.reshape(-1, 4).T, strict=True):
        assert np.linalg.norm(noise) == pytest.approx(np.linalg.norm(filter_))
    again = numbers.random_direction(kernels, seed=0)
    np.testing.assert_array_equal(found, again["a", "kernel"])


def test_crossings_by_hand() -> None:
    """Step 1, two bits of three: edges at -2, 0, 2; the weight that does not move has none."""
    kernel, direction = np.float32([[1.0], [-3.0], [0.5]]), np.float32([[0.5], [1.0], [0.0]])
    found = numbers.crossings(kernel, direction, np.float32([1.0]), 2, 3)
    assert found.tolist() == [-6, -2, 1, 2, 3, 5]


@hypothesis.given(seed=strategies.integers(0, 2**16), bits=strategies.integers(1, 4))
def test_codes_stay_between_crossings(seed: int, bits: int) -> None:
    generator = np.random.default_rng(seed)
    kernel, direction = generator.standard_normal((2, 3, 2)).astype(np.float32)
    step = generator.uniform(0.1, 0.4, 2).astype(np.float32)
    at = numbers.crossings(kernel, direction, step, bits, 4)
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


def test_one_low_code_changes_from_stretch_to_stretch(fresh: dict[str, Any]) -> None:
    layers = numbers.switching_layers(structure_of(MODEL, EXAMPLE).layers)
    params = fresh["params"]
    kernels = numbers.leaves(params, layers, "kernel")
    direction = numbers.random_direction(kernels, seed=0)
    edges = numbers.stretches(params, layers, direction, changes=6)
    assert len(edges) == 8
    assert edges[-1] == -edges[0] == np.abs(edges).max()

    flat = flatten_dict(params)

    def codes_at(t: float) -> np.ndarray:
        moved = {path: kernels[path] + np.float32(t) * direction[path] for path in kernels}
        return numbers.codes(unflatten_dict({**flat, **moved}), layers, "low")

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
    layers = numbers.switching_layers(structure_of(MODEL, EXAMPLE).layers)
    kernels = numbers.leaves(fresh["params"], layers, "kernel")
    direction = numbers.random_direction(kernels, seed=0)
    edges = numbers.stretches(fresh["params"], layers, direction, changes=4)
    places = [a + s * (b - a) for a, b in itertools.pairwise(edges) for s in (0.2, 0.8)]
    along = (MODEL, fresh, direction)
    low = numbers.losses_along(*along, [*places, 0.0], images, labels, "low")
    steps = low[:-1].reshape(-1, 2)
    np.testing.assert_array_equal(steps[:, 0], steps[:, 1])
    assert len(set(steps[:, 0])) > 1
    split = Images(images, labels)
    there = evaluate(MODEL, fresh, split, task=Classification((8, 8, 1)), precision="low")
    assert low[-1] == pytest.approx(there["loss"])
    assert low[-1] == steps[np.searchsorted(edges, 0) - 1, 0]
