"""What a phase may move, and how far: leaves of other modes stay, weights keep their cells."""

import dataclasses
import functools

import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.core import FrozenDict
from flax.traverse_util import flatten_dict, unflatten_dict
from hypothesis import given
from hypothesis import strategies as st

from dual_precision import FLOAT, Precision, modes
from dual_precision.layers.facts import Layer
from dual_precision.models import MLP
from dual_precision.primitives.nested import encode
from dual_precision.structure import Structure, structure_of
from dual_precision.training.cells import keep_in_cells
from dual_precision.training.methods.modes import Together
from dual_precision.training.optimizers import (
    RATE,
    STEP_RATE,
    Adam,
    Sgd,
    in_log_domain,
    label_leaves,
)
from dual_precision.training.phases import Phase

SHAPE = (5, 3)
MOVES = hnp.arrays(np.float32, SHAPE, elements=st.floats(-(2.0**100), 2.0**100, width=32))
STEPS = hnp.arrays(np.float32, 3, elements=st.floats(2.0**-20, 2.0**10, width=32))


def of_layers(layers):
    """A structure of layers alone."""
    return Structure(modes(low="w2a2", high="w8a8"), layers, {}, {}, [], {}, {}, {})


@functools.cache
def trimmer(low, stored):
    """`keep_in_cells` for one layer of these widths, as a program."""
    table = {"float": FLOAT, "low": Precision(low, 2), "high": Precision(stored, 8)}
    layer = Layer(FrozenDict(table), SHAPE, 0, 0, stored)
    return jax.jit(keep_in_cells("low", of_layers({("dense",): layer})).update)


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


@pytest.mark.parametrize(
    "transform", [in_log_domain(optax.sgd(1)), keep_in_cells("low", of_layers({}))]
)
def test_transforms_say_that_they_need_the_parameters(transform):
    with pytest.raises(ValueError, match="needs the parameters"):
        transform.update({}, optax.EmptyState())


# -- what a phase trains ---------------------------------------------------------------------------


def labels(small, *precisions, protect=None):
    """Label -> paths of the leaves that have it."""
    found: dict[str, set[str]] = {}
    tree = label_leaves(small.variables["params"], small.structure, precisions, protect)
    for path, label in flatten_dict(tree).items():
        found.setdefault(label, set()).add("/".join(path))
    return found


def affine(mode):
    return {f"norm{n}/{mode}/{leaf}" for n in (1, 2) for leaf in ("scale", "bias")}


def test_what_a_phase_trains(small):
    found = labels(small, "high")
    assert found["kernel"] == {"dense1/kernel", "dense2/kernel", "classifier/kernel"}
    assert found["step"] == {
        "dense1/step",
        "dense2/step",
        "dense2/input_step/high",
        "classifier/step",
        "classifier/input_step/high",
    }
    assert found["other"] == {"classifier/bias", *affine("high")}
    inputs = {"dense2/input_step/low", "classifier/input_step/low"}
    assert found["frozen"] == affine("low") | affine("float") | inputs


def test_what_a_protecting_phase_trains(small):
    """What lies below low's bits, and what is high's alone."""
    found = labels(small, "high", protect="low")
    assert found["kernel"] == {"dense2/kernel"}
    assert found["step"] == {"dense2/input_step/high", "classifier/input_step/high"}
    assert found["other"] == affine("high")


def test_a_protecting_phase_freezes_a_plain_kernel(small):
    """Every mode reads it whole, so the protected one does."""
    layers = {path: own for path, own in small.structure.layers.items() if path != ("dense2",)}
    plain = dataclasses.replace(
        small, structure=dataclasses.replace(small.structure, layers=layers)
    )
    assert "dense2/kernel" in labels(plain, "high")["kernel"]
    assert "dense2/kernel" in labels(plain, "high", protect="low")["frozen"]


def sharing(small, norms):
    """The small network whose modes share a normalisation."""
    model = small.network.model
    own = dataclasses.replace(model.modes, norms=norms)
    structure = structure_of(model.clone(modes=own), small.network.task.example)
    params = flatten_dict(small.variables["params"])
    kept = {path: leaf for path, leaf in params.items() if ("params", *path) in structure.shapes}
    return dataclasses.replace(
        small, structure=structure, variables={"params": unflatten_dict(kept)}
    )


def test_a_shared_normalisation_is_trained_with_any_mode_that_reads_it(small):
    """And no other is; input steps stay those of each mode. Protected, it is frozen."""
    shared = sharing(small, FrozenDict(low="high"))
    for mode in ("low", "high"):
        found = labels(shared, mode)
        assert found["other"] == {"classifier/bias", *affine("high")}
        steps = {path for path in found["step"] if "input_step" in path}
        assert steps == {f"dense2/input_step/{mode}", f"classifier/input_step/{mode}"}
        assert affine("float") <= found["frozen"]
    assert labels(shared, "float")["frozen"] >= affine("high")
    protected = labels(shared, "high", protect="low")
    assert "other" not in protected
    assert protected["step"] == {"dense2/input_step/high", "classifier/input_step/high"}


def test_a_protected_layer_with_no_bits_below_is_frozen():
    own = modes({"dense2": {"low": "w8a8"}}, low="w2a2", high="w8a8")
    model = MLP(num_classes=2, modes=own, hidden=(3, 3, 3))
    structure = structure_of(model, jax.ShapeDtypeStruct((2, 2, 1), jnp.uint8))
    params = {
        path[0]: {"kernel": jnp.zeros(layer.kernel)} for path, layer in structure.layers.items()
    }
    found = label_leaves(params, structure, ("high",), "low")
    assert {name for name, leaf in found.items() if leaf["kernel"] == "kernel"} == {"dense3"}


def updates_of(small, optimizer, precisions, gradients):
    """The first update that an optimizer makes at a rate of 0.1."""
    rate = optax.constant_schedule(0.1)
    transform = optimizer(small.structure, precisions, {RATE: rate, STEP_RATE: rate})

    @jax.jit
    def first(gradients, params):
        return transform.update(gradients, transform.init(params), params)[0]

    with jax.numpy_dtype_promotion("standard"):
        return flatten_dict(first(gradients, small.variables["params"]))


def test_weight_decay_is_for_kernels(small):
    """With no gradient, one update is -rate * decay * (1 + momentum) * kernel, and nothing else."""
    params = small.variables["params"]
    zero = jax.tree.map(jnp.zeros_like, params)
    kernels = flatten_dict(params)
    updates = updates_of(small, Sgd(weight_decay=0.5, momentum=0.8), ("low",), zero)
    for path, update in updates.items():
        decay = -0.1 * 0.5 * 1.8 * kernels[path] if path[-1] == "kernel" else 0.0
        np.testing.assert_allclose(update, decay, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize(
    ("optimizer", "first"), [(Sgd(), 1.9), (Sgd(momentum=0.5), 1.5), (Sgd(nesterov=False), 1.0)]
)
def test_momentum_and_nesterov(small, optimizer, first):
    """The first update on a bias: -rate * (1 + momentum) * gradient with Nesterov, else without."""
    ones = jax.tree.map(jnp.ones_like, small.variables["params"])
    updates = updates_of(small, optimizer, ("low",), ones)
    np.testing.assert_allclose(updates["classifier", "bias"], -0.1 * first, rtol=1e-6)


OTHER = {"weight_decay": 0.5, "momentum": 0.5, "nesterov": False, "second": 0.5, "protect": "low"}


@pytest.mark.parametrize(
    ("optimizer", "setting"),
    [(each, field.name) for each in (Sgd, Adam) for field in dataclasses.fields(each)],
)
def test_every_setting_of_an_optimizer_has_an_effect(small, optimizer, setting):
    """On the second update: the first one of Adam is the same for all moments."""
    params = small.variables["params"]
    rate = optax.constant_schedule(0.1)

    def second(own):
        transform = own(small.structure, ("high",), {RATE: rate, STEP_RATE: rate})
        first, then = (
            jax.tree.map(lambda leaf, g=g: jnp.full_like(leaf, g), params) for g in (1, 2)
        )
        _, state = jax.jit(transform.update)(first, transform.init(params), params)
        return jax.jit(transform.update)(then, state, params)[0]

    with jax.numpy_dtype_promotion("standard"):
        plain, other = second(optimizer()), second(optimizer(**{setting: OTHER[setting]}))
    leaves = zip(jax.tree.leaves(plain), jax.tree.leaves(other), strict=True)
    assert any(np.any(one != two) for one, two in leaves)


# -- what cannot be protected ----------------------------------------------------------------------


SCHEDULES = {name: lambda updates: optax.constant_schedule(0.1) for name in (RATE, STEP_RATE)}


def checked(optimizer, own, *precisions, schedules=SCHEDULES):
    loss = Together(precisions)
    optimizer.check(own, Phase("refine", 1, precisions, loss, optimizer, schedules))


def test_an_optimizer_says_which_schedule_it_lacks():
    own = modes(low="w2a2", high="w8a8")
    with pytest.raises(ValueError, match=r"the schedules \[\]: expected \['learning_rate', 'step_"):
        checked(Sgd(), own, "low", schedules={})
    with pytest.raises(ValueError, match=r"expected \['step_learning_rate'\] too, which Adam"):
        checked(Adam(), own, "low", schedules={RATE: SCHEDULES[RATE]})


def test_what_a_phase_may_protect():
    own = modes(low="w2a2", high="w8a8")
    checked(Sgd(protect="low"), own, "high", "float")
    checked(Sgd(), own, "low")
    with pytest.raises(ValueError, match="'refine' trains 'low', which it protects: drop one"):
        checked(Sgd(protect="low"), own, "low", "high")
    with pytest.raises(ValueError, match="'lowest' is unknown"):
        checked(Sgd(protect="lowest"), own, "high")
    with pytest.raises(ValueError, match="'high' has w8a8, wider weights than w2a2"):
        checked(Sgd(protect="high"), own, "low")
    with pytest.raises(ValueError, match="'float' has w32a32, wider weights than w8a8"):
        checked(Sgd(protect="float"), own, "high")
    mixed = modes({"dense2": {"low": "w8a8", "high": "w4a4"}}, low="w2a2", high="w8a8")
    with pytest.raises(ValueError, match="dense2: mode 'low' has w8a8, wider weights than w4a4"):
        checked(Sgd(protect="low"), mixed, "high")


def test_a_mode_that_shares_a_normalisation_cannot_be_protected():
    """No optimizer keeps the statistics that the forward pass of the other mode moves."""
    for norms in ({"low": "high"}, {"high": "low"}, {"low": "float", "high": "float"}):
        own = modes(low="w2a2", high="w8a8", norms=norms)
        with pytest.raises(ValueError, match=r"trains \['high'\], whose normalisation 'low' uses"):
            checked(Sgd(protect="low"), own, "high")
    checked(Sgd(protect="low"), modes(low="w2a2", high="w8a8", norms={"low": "float"}), "high")
