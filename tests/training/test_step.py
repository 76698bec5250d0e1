"""The train step: modes do not touch each other, refining leaves low alone, seeds decide."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from dual_precision.primitives.nested import encode
from dual_precision.training.optimizers import phase_optimizer
from dual_precision.training.phases import Phase
from dual_precision.training.state import TrainState, initial_variables, owner
from dual_precision.training.step import compile_chunk, phase_loss, train_step


def train(network, phase, steps=3, rate=0.1):
    """The state after some updates on the network's batch, and the losses."""
    optimizer = phase_optimizer(
        phase, network.layers, optax.constant_schedule(rate), optax.constant_schedule(rate)
    )
    step = jax.jit(partial(train_step, model=network.model, phase=phase, optimizer=optimizer))
    variables = network.variables
    state = TrainState(
        jnp.int32(0), **variables, opt_state=jax.jit(optimizer.init)(variables["params"])
    )
    losses = []
    for _ in range(steps):
        state, metrics = step(state, network.images, network.labels)
        losses.append(float(metrics["loss"]))
    return state, losses


def flat(variables):
    return {"/".join(path): np.asarray(leaf) for path, leaf in flatten_dict(variables).items()}


def moved(before, after):
    """Paths whose bits changed."""
    before, after = flat(before), flat(after)
    assert before.keys() == after.keys()
    return {path for path in before if before[path].tobytes() != after[path].tobytes()}


def owners(network):
    return {path: owner(tuple(path.split("/")), network.layers) for path in flat(network.variables)}


@pytest.mark.parametrize("trained", ["float", "low", "high"])
def test_a_mode_leaves_the_others_alone(network, trained):
    """Under weight decay too: every leaf of another mode keeps its bits, in both collections."""
    phase = Phase(trained, 1, (trained,), 0.1, weight_decay=0.3)
    state, _ = train(network, phase)
    changed = moved(network.variables, state.variables)
    mine = {path for path, mode in owners(network).items() if mode == trained}
    shared = {path for path, mode in owners(network).items() if mode is None}
    assert changed <= mine | shared
    if trained == "float":  # its weights have no grid
        shared = {path for path in shared if not path.endswith("/step")}
    assert changed == mine | shared


def test_modes_trained_together_update_their_own_statistics(network):
    both, _ = train(network, Phase("both", 1, ("high", "low"), 0.1), steps=1)
    for mode in ("high", "low"):
        alone, _ = train(network, Phase(mode, 1, (mode,), 0.1), steps=1)
        for norm in ("norm1", "norm2"):
            jax.tree.map(
                partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6),
                both.batch_stats[norm][mode],
                alone.batch_stats[norm][mode],
            )


@pytest.mark.parametrize("rate", [0.05, 20.0])
def test_refining_keeps_every_bit_of_low(network, rate):
    phase = Phase("refine", 1, ("high",), 0.1, weight_decay=0.3, protect="low")
    state, _ = train(network, phase, steps=5, rate=rate)
    logits = jax.jit(network.model.apply, static_argnames="precision")
    before, after = (
        {
            mode: np.asarray(logits(variables, network.images, precision=mode))
            for mode in ("low", "high")
        }
        for variables in (network.variables, state.variables)
    )
    assert before["low"].tobytes() == after["low"].tobytes()
    assert not np.array_equal(before["high"], after["high"])
    changed = moved(network.variables["params"], state.params)
    assert "dense2/kernel" in changed
    assert not any("low" in path or path.endswith("/step") for path in changed)
    # Eight bits in every mode: nothing of theirs lies below low's.
    assert not changed & {"dense1/kernel", "classifier/kernel", "classifier/bias"}
    codes = [
        encode(tree["dense2"]["kernel"], tree["dense2"]["step"], 2, 8)
        for tree in (network.variables["params"], state.params)
    ]
    np.testing.assert_array_equal(*codes)


def test_without_protection_low_changes(network):
    state, _ = train(network, Phase("high", 1, ("high",), 0.1))
    assert "params/dense1/kernel" in moved(network.variables, state.variables)
    logits = [
        np.asarray(network.model.apply(variables, network.images, precision="low"))
        for variables in (network.variables, state.variables)
    ]
    assert not np.array_equal(*logits)


def test_same_seed_same_numbers(network):
    first, second = (initial_variables(network.model, (8, 8, 1), seed=7) for _ in range(2))
    assert not moved(first, second)
    assert moved(first, initial_variables(network.model, (8, 8, 1), seed=8))
    phase = Phase("both", 1, ("high", "low"), 0.1, teacher="high", distillation=0.5)
    (one, losses), (other, again) = train(network, phase), train(network, phase)
    assert losses == again
    assert not moved(one.variables, other.variables)
    assert not moved_leaves(one.opt_state, other.opt_state)


def moved_leaves(one, other):
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return [1 for a, b in pairs if np.asarray(a).tobytes() != np.asarray(b).tobytes()]


@pytest.mark.parametrize("mode", ["float", "low", "high"])
def test_training_learns(network, mode):
    _, losses = train(network, Phase(mode, 1, (mode,), 0.1), steps=25, rate=0.05)
    assert losses[-1] < 0.5 * losses[0]


def test_the_loss_is_the_sum_over_modes(network):
    def loss(*precisions, **more):
        phase = Phase("p", 1, precisions, 0.1, **more)
        variables = network.variables
        arguments = (variables["params"], variables["batch_stats"], network.images, network.labels)
        return jax.jit(phase_loss, static_argnums=(4, 5))(*arguments, network.model, phase)[1][1]

    both = loss("high", "low")
    assert float(both["loss"]) == pytest.approx(
        float(loss("high")["loss"] + loss("low")["loss"]), rel=1e-6
    )
    taught = loss("high", "low", teacher="high", distillation=1.0)
    logits = {
        mode: jax.nn.log_softmax(
            network.model.apply(
                network.variables,
                network.images,
                precision=mode,
                train=True,
                mutable=["batch_stats"],
            )[0]
        )
        for mode in ("high", "low")
    }
    kl = jnp.mean(jnp.sum(jnp.exp(logits["high"]) * (logits["high"] - logits["low"]), axis=-1))
    assert float(taught["loss"]) == pytest.approx(float(both["high_loss"] + kl), rel=1e-4)


def test_split_gives_each_mode_its_own_share_of_the_batch(network):
    def metrics(images, labels, phase):
        variables = network.variables
        arguments = (variables["params"], variables["batch_stats"], images, labels)
        return jax.jit(phase_loss, static_argnums=(4, 5))(*arguments, network.model, phase)[1][1]

    split = Phase("p", 1, ("high", "low"), 0.1, split=True)
    both = metrics(network.images, network.labels, split)
    for index, mode in enumerate(split.precisions):
        own = slice(index, None, 2)
        alone = metrics(network.images[own], network.labels[own], Phase("p", 1, (mode,), 0.1))
        assert float(both[f"{mode}_loss"]) == pytest.approx(float(alone["loss"]), rel=1e-6)


def test_no_gradient_reaches_the_teacher(network):
    """With nothing but the teacher's labels in low's loss, high's own leaves see high's loss."""

    def gradient(**more):
        phase = Phase("p", 1, ("high", "low") if more else ("high",), 0.1, **more)
        variables = network.variables
        grads = jax.jit(jax.grad(phase_loss, has_aux=True), static_argnums=(4, 5))(
            variables["params"],
            variables["batch_stats"],
            network.images,
            network.labels,
            network.model,
            phase,
        )[0]
        return {path: g for path, g in flat(grads).items() if "/high" in path}

    alone, teaching = gradient(), gradient(teacher="high", distillation=1.0)
    for path, expected in alone.items():
        np.testing.assert_allclose(teaching[path], expected, rtol=1e-5, atol=1e-7)


def test_a_chunk_is_its_steps(network):
    """Several steps in one program give what single ones give, each with its own batch."""
    phase = Phase("float", 1, ("float",), 0.1)
    rate = optax.constant_schedule(0.05)
    optimizer = phase_optimizer(phase, network.layers, rate, rate)
    run = compile_chunk(network.model, phase, optimizer, lambda _, x: x, jax.random.key(0))
    order = jnp.arange(32, dtype=jnp.int32).reshape(4, 8)

    def fresh():
        variables = jax.tree.map(jnp.copy, network.variables)  # a chunk donates its state
        return TrainState(
            jnp.int32(0), **variables, opt_state=jax.jit(optimizer.init)(variables["params"])
        )

    together, metrics = run(fresh(), network.images, network.labels, order)
    state, losses = fresh(), []
    for row in order:
        state, own = run(state, network.images, network.labels, row[None])
        losses.append(own["loss"][0])
    assert int(together.step) == int(state.step) == 4
    np.testing.assert_allclose(metrics["loss"], losses, rtol=1e-4)
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5),
        together.variables,
        state.variables,
    )
