"""The train step: modes do not touch each other, refining leaves low alone, seeds decide."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from dual_precision import modes
from dual_precision.primitives.nested import encode
from dual_precision.training.compilation import RUNS_ONCE
from dual_precision.training.methods.modes import Together
from dual_precision.training.optimizers import Sgd
from dual_precision.training.phases import Phase, stages_of
from dual_precision.training.state import TrainState, initial_variables
from dual_precision.training.step import compile_steps, train_step

KEY = jax.random.key(0)


def staged(small, loss, rate=0.1, **sgd):
    """A phase of one epoch of 100 updates, at a constant rate, in its place."""
    schedules = dict.fromkeys(
        ("learning_rate", "step_learning_rate"), lambda _: optax.constant_schedule(rate)
    )
    phase = Phase("only", 1, loss.precisions, loss, Sgd(**sgd), schedules)
    return stages_of([phase], small.structure, steps_per_epoch=100)[0]


def fresh(small, stage):
    variables = jax.tree.map(jnp.copy, small.variables)  # compiled steps donate their state
    opt_state = jax.jit(stage.optimizer.init)(variables["params"])
    return TrainState(jnp.int32(0), **variables, carry={}, opt_state=opt_state)


def compiled(small, stage):
    """(state, batch, key) -> (state, metrics); few updates are not worth XLA's highest level."""
    step = partial(train_step, network=small.network, stage=stage)
    return jax.jit(step, compiler_options=RUNS_ONCE)


def train(small, stage, steps=3, step=None):
    """The state after some updates on the network's batch, and the losses."""
    step = step or compiled(small, stage)
    state, losses = fresh(small, stage), []
    for number in range(steps):
        state, metrics = step(state, small.batch, jax.random.fold_in(KEY, number))
        losses.append(float(metrics["loss"]))
    return state, losses


@pytest.fixture(scope="module")
def alone(small):
    """mode -> (state, losses, again) of 25 updates of that mode alone, under weight decay."""
    trained = {}
    for mode in ("float", "low", "high"):
        stage = staged(small, Together((mode,)), rate=0.05, weight_decay=0.1)
        again = partial(train, small, stage, steps=25, step=compiled(small, stage))
        trained[mode] = (*again(), again)
    return trained


@pytest.fixture(scope="module")
def logits(small):
    """(variables, mode) -> what the network gives for the batch."""
    apply = jax.jit(small.network.model.apply, static_argnames="precision")
    return lambda variables, mode: np.asarray(
        apply(variables, small.batch["inputs"], precision=mode)
    )


def flat(variables):
    return {"/".join(path): np.asarray(leaf) for path, leaf in flatten_dict(variables).items()}


def moved(before, after):
    """Paths whose bits changed."""
    before, after = flat(before), flat(after)
    assert before.keys() == after.keys()
    return {path for path in before if before[path].tobytes() != after[path].tobytes()}


def owners(small):
    return {path: small.structure.owner(tuple(path.split("/"))) for path in flat(small.variables)}


# -- one mode, two modes ---------------------------------------------------------------------------


@pytest.mark.parametrize("trained", ["float", "low", "high"])
def test_a_mode_leaves_the_others_alone(small, alone, trained):
    """Under weight decay too: every leaf of another mode keeps its bits, in both collections."""
    state, _, _ = alone[trained]
    changed = moved(small.variables, state.variables)
    mine = {path for path, mode in owners(small).items() if mode == trained}
    shared = {path for path, mode in owners(small).items() if mode is None}
    assert changed <= mine | shared
    if trained == "float":  # its weights have no grid
        shared = {path for path in shared if not path.endswith("/step")}
    assert changed == mine | shared


@pytest.mark.parametrize("mode", ["float", "low", "high"])
def test_training_learns(alone, mode):
    _, losses, _ = alone[mode]
    assert losses[-1] < 0.5 * losses[0]


def test_without_protection_low_changes(small, alone, logits):
    state, _, _ = alone["high"]
    assert "params/dense1/kernel" in moved(small.variables, state.variables)
    assert not np.array_equal(logits(small.variables, "low"), logits(state.variables, "low"))


@pytest.mark.parametrize("rate", [0.05, 20.0])
def test_refining_keeps_every_bit_of_low(small, logits, rate):
    stage = staged(small, Together(("high",)), rate, weight_decay=0.3, protect="low")
    state, _ = train(small, stage, steps=5)
    before, after = (
        {mode: logits(variables, mode) for mode in ("low", "high")}
        for variables in (small.variables, state.variables)
    )
    assert before["low"].tobytes() == after["low"].tobytes()
    assert not np.array_equal(before["high"], after["high"])
    changed = moved(small.variables["params"], state.params)
    assert "dense2/kernel" in changed
    assert not any("low" in path or path.endswith("/step") for path in changed)
    # Eight bits in every mode: nothing of theirs lies below low's.
    assert not changed & {"dense1/kernel", "classifier/kernel", "classifier/bias"}
    codes = [
        encode(tree["dense2"]["kernel"], tree["dense2"]["step"], 2, 8)
        for tree in (small.variables["params"], state.params)
    ]
    np.testing.assert_array_equal(*codes)


def test_modes_of_one_normalisation_train_the_same_leaves(small):
    """Either of them moves its values and statistics; those of float and input steps stay."""
    model = small.network.model
    model = model.clone(modes=dataclasses.replace(model.modes, norms={"low": "high"}))
    shared = dataclasses.replace(
        small,
        network=dataclasses.replace(small.network, model=model),
        variables=initial_variables(model, small.network.task.example, seed=0),
    )
    shared = dataclasses.replace(
        shared, structure=dataclasses.replace(small.structure, modes=model.modes)
    )
    state, _ = train(shared, staged(shared, Together(("low",))), steps=1)
    changed = moved(shared.variables, state.variables)
    assert {path for path in changed if "norm" in path} == {
        *(f"params/norm{n}/high/{leaf}" for n in (1, 2) for leaf in ("scale", "bias")),
        *(f"batch_stats/norm{n}/high/{leaf}" for n in (1, 2) for leaf in ("mean", "var")),
    }
    assert {path for path in changed if "input_step" in path} == {
        "params/dense2/input_step/low",
        "params/classifier/input_step/low",
    }


# -- what decides ----------------------------------------------------------------------------------


def test_same_seed_same_numbers(small, alone):
    first, second = (
        initial_variables(small.network.model, small.network.task.example, seed=7) for _ in range(2)
    )
    assert not moved(first, second)
    assert moved(first, small.variables)
    state, losses, again = alone["low"]
    other_state, other_losses = again()
    assert losses == other_losses
    for one, other in zip(jax.tree.leaves(state), jax.tree.leaves(other_state), strict=True):
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


def test_gradients_of_a_width_train(small):
    """The key of an update reaches the layers, each mode with its own, and decides."""
    model = small.network.model.clone(modes=modes(low="w2a2g4", high="w8a8g8"))
    small = dataclasses.replace(small, network=dataclasses.replace(small.network, model=model))
    stage = staged(small, Together(("high", "low")))
    step = compiled(small, stage)

    def kernel(key):
        state, metrics = step(fresh(small, stage), small.batch, key)
        assert np.isfinite(float(metrics["loss"]))
        return np.asarray(state.params["dense2"]["kernel"])

    np.testing.assert_array_equal(kernel(KEY), kernel(KEY))
    assert not np.array_equal(kernel(KEY), kernel(jax.random.key(1)))


@pytest.mark.parametrize("steps", [1, 2])
def test_metrics_are_numbers_under_names_of_their_own(small, steps):
    """A plain float is one; a name that a record of the log has is refused, a schedule's too."""

    @dataclasses.dataclass(frozen=True)
    class Measuring(Together):
        name: str = "one"

        def __call__(self, *given):
            loss, (state, _) = super().__call__(*given)
            return loss, (state, {self.name: 1.0})

    def run(name):
        stage = staged(small, Measuring(("float",), name=name))
        arrays = {"images": small.batch["inputs"], "labels": small.batch["labels"]}
        order = jnp.tile(jnp.arange(32), (steps, 1))
        return compile_steps(small.network, stage, KEY)(fresh(small, stage), arrays, order)[1]

    np.testing.assert_array_equal(run("one")["one"], np.ones(steps))
    for name in ("loss", "epoch", "learning_rate", "validation_high_loss"):
        with pytest.raises(ValueError, match=f"a metric of the loss is called '{name}', which"):
            run(name)


def test_several_updates_in_one_program(small):
    """They give what single ones give, each with its own batch."""
    stage = staged(small, Together(("float",)), rate=0.05)
    run = compile_steps(small.network, stage, KEY)
    order = jnp.arange(32, dtype=jnp.int32).reshape(4, 8)
    arrays = {"images": small.batch["inputs"], "labels": small.batch["labels"]}
    together, metrics = run(fresh(small, stage), arrays, order)
    state, losses = fresh(small, stage), []
    for row in order:
        state, own = run(state, arrays, row[None])
        losses.append(own["loss"][0])
    assert int(together.step) == int(state.step) == 4
    np.testing.assert_allclose(metrics["loss"], losses, rtol=1e-4)
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5),
        together.variables,
        state.variables,
    )


def test_a_given_value_goes_before_that_of_a_schedule(small):
    """To the loss; and another value takes no other program."""

    class Telling(Together):
        def __call__(self, *given):
            loss, (state, _) = super().__call__(*given)
            return loss, (state, {"told": given[-1]["learning_rate"]})

    stage = staged(small, Telling(("float",)), rate=0.1)
    run = compile_steps(small.network, stage, KEY)
    arrays = {"images": small.batch["inputs"], "labels": small.batch["labels"]}

    def told(*given):
        order = jnp.tile(jnp.arange(32), (2, 1))
        return run(fresh(small, stage), arrays, order, *given)[1]["told"].tolist()

    assert told() == pytest.approx([0.1, 0.1])
    assert told({"learning_rate": jnp.float32(0.5)}) == [0.5, 0.5]
    programs = run._cache_size()
    assert told({"learning_rate": jnp.float32(0.25)}) == [0.25, 0.25]
    assert run._cache_size() == programs
