"""Events that set what is not learned: steps fitted, normalisation copied or estimated."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from dual_precision import Modes, modes
from dual_precision.layers import Dense, SwitchableBatchNorm
from dual_precision.primitives.quantizers import activation_step, gaussian_weight_step
from dual_precision.structure import structure_of
from dual_precision.tasks.task import Network
from dual_precision.training.initialize import (
    CopyNorms,
    EstimateNorms,
    FitInputSteps,
    FitWeightSteps,
)
from dual_precision.training.methods.modes import Together
from dual_precision.training.optimizers import RATE, STEP_RATE, Sgd
from dual_precision.training.phases import Moment, Phase, check_recipe
from dual_precision.training.state import TrainState, initial_variables

KEY = jax.random.key(0)
DUAL = modes(low="w2a3", high="w8a8")
FEATURES = 5
RATES = {name: lambda updates: optax.constant_schedule(0.1) for name in (RATE, STEP_RATE)}


class Toy(nn.Module):
    """x -> [norm] -> dense: input steps and statistics that are counted by hand."""

    modes: Modes
    signed: bool = True
    calls: int = 1

    @nn.compact
    def __call__(self, x, *, precision, train=False):
        norm = SwitchableBatchNorm(self.modes, momentum=0.75, name="norm")
        for _ in range(self.calls):
            x = norm(x, precision=precision, train=train)
        return Dense(3, self.modes, signed=self.signed, name="dense")(x, precision=precision)


def batches(count, rows=32):
    generator = np.random.default_rng(0)
    drawn = generator.standard_normal((count, rows, FEATURES)) * [1, 2, 3, 4, 5] + [0, 1, 2, 3, 4]
    return [{"inputs": jnp.asarray(own, jnp.float32)} for own in drawn]


def at_start(event, own=DUAL, drawn=None, **more):
    """(state before, state after, structure) of one event."""
    model, example = Toy(own, **more), jax.ShapeDtypeStruct((FEATURES,), jnp.float32)
    drawn = batches(4) if drawn is None else drawn
    before = TrainState(
        jnp.int32(0), **initial_variables(model, example, 0), carry={}, opt_state="kept"
    )
    structure = structure_of(model, example)
    moment = Moment(Network(model, None), structure, lambda count: iter(drawn[:count]), KEY, 0)
    return before, event(before, moment), structure


def changed(before, after):
    """Paths of the leaves whose values are others."""
    assert after.opt_state == "kept"
    found = jax.tree_util.tree_map_with_path(
        lambda path, a, b: None if np.array_equal(a, b) else "/".join(key.key for key in path),
        before.variables,
        after.variables,
    )
    return set(jax.tree.leaves(found))


@pytest.mark.parametrize(("mode", "bits"), [("low", 2), ("high", 8)])
def test_weight_steps_suit_the_width_of_a_mode(mode, bits):
    before, after, _ = at_start(FitWeightSteps(mode))
    expected = gaussian_weight_step(before.params["dense"]["kernel"], bits, 8)
    np.testing.assert_array_equal(after.params["dense"]["step"], expected)
    assert changed(before, after) <= {"params/dense/step"}


def test_weight_steps_of_float_stay():
    before, after, _ = at_start(FitWeightSteps("float"))
    assert not changed(before, after)


def test_a_mode_takes_over_a_normalisation():
    event = CopyNorms("low", "high")
    before, _, structure = at_start(event)
    marked = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf + 2 if any(key.key == "high" for key in path) else leaf,
        before.variables,
    )
    before = dataclasses.replace(before, **marked)
    after = event(before, Moment(None, structure, None, KEY, 0))
    for tree in (after.params["norm"], after.batch_stats["norm"]):
        jax.tree.map(np.testing.assert_array_equal, tree["low"], tree["high"])
        # A buffer each: the step gives the memory of its state away.
        pairs = zip(jax.tree.leaves(tree["low"]), jax.tree.leaves(tree["high"]), strict=True)
        assert all(a.unsafe_buffer_pointer() != b.unsafe_buffer_pointer() for a, b in pairs)
    assert all("/norm/low/" in path for path in changed(before, after)), "input steps stay"


def test_modes_that_share_a_normalisation_take_over_one():
    """As source and as target: what is copied is the normalisation that the mode uses."""
    shared = dataclasses.replace(DUAL, norms={"high": "float"})
    before, _, structure = at_start(CopyNorms("low", "high"), shared)
    marked = jax.tree.map(lambda leaf: leaf + 2, before.params["norm"]["float"])
    norm = {**before.params["norm"], "float": marked}
    before = dataclasses.replace(before, params={**before.params, "norm": norm})
    moment = Moment(None, structure, None, KEY, 0)
    after = CopyNorms("low", "high")(before, moment)
    jax.tree.map(np.testing.assert_array_equal, after.params["norm"]["low"], marked)
    after = CopyNorms("high", "low")(before, moment)
    jax.tree.map(np.testing.assert_array_equal, after.params["norm"]["float"], norm["low"])


# -- input steps -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["low", "high"])
def test_input_steps_suit_what_reaches_the_layer(mode):
    """A training batch, normalised by its own statistics; other modes keep theirs."""
    before, after, _ = at_start(FitInputSteps(mode))
    x = np.asarray(batches(1)[0]["inputs"], np.float64)
    normal = jnp.asarray((x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5), jnp.float32)
    expected = activation_step(normal, 3 if mode == "low" else 8, signed=True)
    found = after.params["dense"]["input_step"][mode]
    assert float(found) == pytest.approx(float(expected), rel=1e-4)
    assert changed(before, after) == {f"params/dense/input_step/{mode}"}


def test_negative_inputs_of_an_unsigned_layer_are_refused():
    """They would count as 0 without a word."""
    says = r"'dense' takes inputs of 0 or more and gets -.*: expected a rectifier .*signed=True"
    with pytest.raises(ValueError, match=says):
        at_start(FitInputSteps("low"), signed=False)
    positive = [{"inputs": jnp.abs(batch["inputs"])} for batch in batches(1)]
    _, after, _ = at_start(FitInputSteps("low"), signed=False, drawn=positive, calls=0)
    assert float(after.params["dense"]["input_step"]["low"]) > 0


# -- statistics ------------------------------------------------------------------------------------


@pytest.mark.parametrize("own", [DUAL, dataclasses.replace(DUAL, norms={"low": "high"})])
def test_estimated_statistics_are_the_averages_over_batches(own):
    """Of mean and variance, by numpy; of the mode alone, or of the one whose norm it uses."""
    before, after, structure = at_start(EstimateNorms("low", count=3), own)
    drawn = np.asarray([batch["inputs"] for batch in batches(3)], np.float64)
    name = structure.modes.norm_of("low")
    found = after.batch_stats["norm"][name]
    np.testing.assert_allclose(found["mean"], drawn.mean(1).mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["var"], drawn.var(1).mean(0), rtol=1e-5)
    assert changed(before, after) == {f"batch_stats/norm/{name}/{leaf}" for leaf in ("mean", "var")}


def test_estimated_statistics_of_a_norm_that_is_called_twice():
    """Every call counts as its running average has it: the last one most."""
    _, after, _ = at_start(EstimateNorms("low", count=2), calls=2)
    drawn = np.asarray([batch["inputs"] for batch in batches(2)], np.float64)
    # What reaches the second call has mean 0 and variance 1.
    weights = np.asarray([0.75, 1.0]) / 1.75
    found = after.batch_stats["norm"]["low"]
    np.testing.assert_allclose(
        found["mean"], weights[0] * drawn.mean(1).mean(0), rtol=1e-4, atol=1e-5
    )
    expected = weights[0] * drawn.var(1).mean(0) + weights[1]
    np.testing.assert_allclose(found["var"], expected, rtol=1e-4)


# -- what cannot work ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "says"),
    [
        (FitWeightSteps("lowest"), "'lowest' is unknown"),
        (FitInputSteps("lowest"), "'lowest' is unknown"),
        (FitInputSteps("float"), "phase 'p' fits input steps of 'float', which has none"),
        (CopyNorms("low", "lowest"), "'lowest' is unknown"),
        (CopyNorms("lowest", "low"), "'lowest' is unknown"),
        (EstimateNorms("lowest", 3), "'lowest' is unknown"),
        (EstimateNorms("low", 0), "statistics of 0 batches: expected 1 or more"),
    ],
)
@pytest.mark.parametrize("place", ["at_start", "at_end", "events"])
def test_events_are_checked_before_anything_is_trained(event, says, place):
    given = {place: ((1, event),) if place == "events" else (event,)}
    phase = Phase("p", 1, ("low",), Together(("low",)), Sgd(), RATES, **given)
    with pytest.raises(ValueError, match=says):
        check_recipe((phase,), DUAL)
    check_recipe((dataclasses.replace(phase, **{place: ()}),), DUAL)


def test_events_of_the_whole_recipe_are_for_the_same_network():
    """A phase that is fine by itself is checked against the modes of the model at hand."""
    make = partial(Phase, "p", 1, loss=Together(("low",)), optimizer=Sgd(), schedules=RATES)
    with pytest.raises(ValueError, match="'low' is unknown"):
        check_recipe((make(precisions=("low",)),), modes(high="w8a8"))
    with pytest.raises(ValueError, match="'low' is unknown"):
        check_recipe((make(precisions=("high",), reports=("low",)),), modes(high="w8a8"))
    with pytest.raises(ValueError, match="a recipe of no phases"):
        check_recipe((), DUAL)
    for wrong in (phase := make(precisions=("high",)), [phase, "low"], {phase.name: phase}):
        with pytest.raises(ValueError, match=r"expected a tuple of Phase, as in \(phase,\)"):
            check_recipe(wrong, DUAL)
