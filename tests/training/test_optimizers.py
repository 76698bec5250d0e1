"""What a phase may move, and how far: leaves of other modes stay, weights keep their cells."""

import functools

import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.core import FrozenDict
from flax.traverse_util import flatten_dict
from hypothesis import given
from hypothesis import strategies as st

from dual_precision import FLOAT, Precision, modes
from dual_precision.models import MLP
from dual_precision.primitives.nested import encode
from dual_precision.structure import Layer, describe_layers
from dual_precision.training.optimizers import (
    in_log_domain,
    keep_in_cells,
    label_leaves,
    phase_optimizer,
    trained_leaves,
)
from dual_precision.training.phases import Phase

SHAPE = (5, 3)
MOVES = hnp.arrays(np.float32, SHAPE, elements=st.floats(-(2.0**100), 2.0**100, width=32))
STEPS = hnp.arrays(np.float32, 3, elements=st.floats(2.0**-20, 2.0**10, width=32))


@functools.cache
def trimmer(low, stored):
    """`keep_in_cells` for one layer of these widths, as a program."""
    table = {"float": FLOAT, "low": Precision(low, 2), "high": Precision(stored, 8)}
    layers = {("dense",): Layer(FrozenDict(table), SHAPE, 0, 0)}
    return jax.jit(keep_in_cells("low", layers).update)


def confined(w, move, step, low, stored):
    """The weights after an update that `keep_in_cells` trimmed."""
    params = {"dense": {"kernel": jnp.asarray(w), "step": jnp.asarray(step)}}
    updates = {"dense": {"kernel": jnp.asarray(move), "step": jnp.zeros(3)}}
    trimmed, _ = trimmer(low, stored)(updates, optax.EmptyState(), params)
    return optax.apply_updates(params, trimmed)["dense"]["kernel"]


widths = st.sampled_from([(1, 2), (1, 8), (2, 8), (4, 5)])


@given(MOVES, STEPS, widths, st.integers(-1, 1), st.integers(0, 2**16))
def test_no_update_leaves_its_cell(move, step, width, ulps, seed):
    """From the very edges of cells, and the floats next to them, by moves of any size."""
    low, stored = width
    half = 2 ** (low - 1)
    edge = np.random.default_rng(seed).integers(-half - 1, half + 2, SHAPE)
    w = (edge * 2.0 ** (stored - low)).astype(np.float32) * step
    w = np.nextafter(w, np.float32(ulps * np.inf)) if ulps else w
    after = confined(w, move, step, low, stored)
    codes = (encode(jnp.asarray(v), jnp.asarray(step), low, stored) for v in (w, after))
    np.testing.assert_array_equal(*codes)


@given(STEPS, widths, st.integers(0, 2**16))
def test_a_weight_may_move_inside_its_cell(step, width, seed):
    """A tenth of a cell around the middle is an update that nothing has to trim."""
    low, stored = width
    generator = np.random.default_rng(seed)
    cell = np.float32(2.0 ** (stored - low)) * step
    w = (generator.integers(-(2 ** (low - 1)), 2 ** (low - 1), SHAPE) + np.float32(0.5)) * cell
    move = np.float32(generator.uniform(-0.1, 0.1, SHAPE)) * cell
    after = confined(np.float32(w), np.float32(move), step, low, stored)
    np.testing.assert_allclose(after, w + move, rtol=1e-6)


def test_the_outermost_cells_are_open():
    w = np.float32([[-1, 1, 0.2]] * 5)
    move = np.float32([[-50, 50, 50]] * 5)
    after = confined(w, move, np.full(3, 0.125, np.float32), 2, 4)
    np.testing.assert_array_equal(after[:, :2], (w + move)[:, :2])
    assert (after[:, 2] < 0.5).all()


@given(
    hnp.arrays(np.float32, 4, elements=st.floats(2.0**-20, 2.0**20, width=32)),
    hnp.arrays(np.float32, 4, elements=st.floats(-(2.0**60), 2.0**60, width=32)),
)
def test_steps_stay_positive(step, gradient):
    transform = in_log_domain(optax.chain(optax.scale_by_sign(), optax.scale(-30.0)))
    step = jnp.asarray(step)
    updates, _ = transform.update(jnp.asarray(gradient), transform.init(step), step)
    after = np.asarray(optax.apply_updates(step, updates))
    assert (after > 0).all()


def test_log_domain_descends_on_the_logarithm():
    transform = in_log_domain(optax.sgd(0.1))
    step, gradient = jnp.asarray([0.5, 4.0]), jnp.asarray([1.0, -0.25])
    updates, _ = transform.update(gradient, transform.init(step), step)
    expected = np.exp(np.log([0.5, 4.0]) - 0.1 * np.asarray([1.0, -0.25]) * [0.5, 4.0])
    np.testing.assert_allclose(optax.apply_updates(step, updates), expected, rtol=1e-6)


@pytest.mark.parametrize("transform", [in_log_domain(optax.sgd(1)), keep_in_cells("low", {})])
def test_transforms_say_that_they_need_the_parameters(transform):
    with pytest.raises(ValueError, match="needs the parameters"):
        transform.update({}, optax.EmptyState())


def labels(phase, network):
    flat = flatten_dict(label_leaves(network.variables["params"], phase, network.layers))
    return {"/".join(path): label for path, label in flat.items()}


def test_what_a_phase_trains(network):
    found = labels(Phase("high", 1, ("high",), 0.1), network)
    assert {p for p, label in found.items() if label == "kernel"} == {
        "dense1/kernel",
        "dense2/kernel",
        "classifier/kernel",
    }
    assert {p for p, label in found.items() if label == "step"} == {
        "dense1/step",
        "dense2/step",
        "dense2/input_step/high",
        "classifier/step",
        "classifier/input_step/high",
    }
    assert {p for p, label in found.items() if label == "other"} == {
        "classifier/bias",
        *(f"norm{n}/high/{leaf}" for n in (1, 2) for leaf in ("scale", "bias")),
    }


def test_what_a_protecting_phase_trains(network):
    """What lies below low's bits, and what is high's alone."""
    found = labels(Phase("refine", 1, ("high",), 0.1, protect="low"), network)
    assert {p for p, label in found.items() if label != "frozen"} == {
        "dense2/kernel",
        "dense2/input_step/high",
        "classifier/input_step/high",
        *(f"norm{n}/high/{leaf}" for n in (1, 2) for leaf in ("scale", "bias")),
    }


def test_a_protected_layer_with_no_bits_below_is_frozen():
    own = modes({"dense2": {"low": "w8a8", "high": "w8a8"}}, low="w2a2", high="w8a8")
    model = MLP(num_classes=2, modes=own, hidden=(3, 3, 3))
    layers = describe_layers(model, (2, 2, 1))
    params = {path[0]: {"kernel": jnp.zeros(layer.kernel)} for path, layer in layers.items()}
    found = label_leaves(params, Phase("refine", 1, ("high",), 0.1, protect="low"), layers)
    assert {name for name, leaf in found.items() if leaf["kernel"] == "kernel"} == {"dense3"}


def test_trained_leaves_count_every_value_once(network):
    counts = trained_leaves(
        network.variables["params"], Phase("low", 1, ("low",), 0.1), network.layers
    )
    total = sum(leaf.size for leaf in jax.tree.leaves(network.variables["params"]))
    assert sum(counts.values()) == total
    assert counts["kernel"] == 64 * 16 + 16 * 16 + 16 * 4


def test_weight_decay_is_for_kernels(network):
    """With no gradient, one update is -rate * decay * (1 + momentum) * kernel, and nothing else."""
    phase = Phase("low", 1, ("low",), 0.1, weight_decay=0.5)
    rate = optax.constant_schedule(0.1)
    optimizer = phase_optimizer(phase, network.layers, rate, rate)
    params = network.variables["params"]
    zero = jax.tree.map(jnp.zeros_like, params)
    with jax.numpy_dtype_promotion("standard"):
        state = jax.jit(optimizer.init)(params)
        updates, _ = jax.jit(optimizer.update)(zero, state, params)
    kernels = flatten_dict(params)
    for path, update in flatten_dict(updates).items():
        decay = -0.1 * 0.5 * 1.9 * kernels[path] if path[-1] == "kernel" else 0.0
        np.testing.assert_allclose(update, decay, rtol=1e-5, atol=1e-12)
