"""Cyclic precision: the schedule, what it saves, one program for all widths, what it refuses."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dual_precision import modes
from dual_precision.costs import update_cost
from dual_precision.models import MLP
from dual_precision.precision import Modes
from dual_precision.tasks.classification import Classification
from dual_precision.tasks.task import Network
from dual_precision.training.initialize import KeepRanges
from dual_precision.training.methods.cyclic import CYCLE, CyclicLoss
from dual_precision.training.methods.modes import Split, Together
from dual_precision.training.optimizers import Sgd
from dual_precision.training.phases import Phase, stages_of
from dual_precision.training.schedules import SHORTEST_CYCLE, cosine_cycles
from dual_precision.training.spending import spending_of
from dual_precision.training.state import TrainState

LOSS = CyclicLoss("high", "low")
UPDATES, CYCLES = 64_000, 32  # of the paper's CIFAR runs


def between(low: int, high: int, gradients: int | None = None) -> Modes:
    g = f"g{gradients}" if gradients else ""
    return modes(low=f"w{low}a{low}{g}", high=f"w{high}a{high}{g}")


def bits_of_a_run(own: Modes) -> np.ndarray:
    """The width of weights in every update."""
    shares = cosine_cycles(UPDATES, CYCLES)(jnp.arange(UPDATES))
    asked = LOSS.widths(own, {CYCLE: shares})
    np.testing.assert_array_equal(asked.weights, asked.activations)
    return np.asarray(asked.weights)


# -- the schedule ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "shares"),
    [
        (3, 8, [0.205, 0.165, 0.131, 0.131, 0.165, 0.204]),
        (3, 6, [0.268, 0.233, 0.232, 0.268]),
        (3, 4, [0.5, 0.5]),
        (4, 8, [0.231, 0.190, 0.161, 0.190, 0.230]),
        (4, 6, [1 / 3, 1 / 3, 1 / 3]),
        (5, 8, [0.268, 0.233, 0.232, 0.268]),
    ],
)
def test_share_of_updates_at_every_width(low, high, shares):
    bits = bits_of_a_run(between(low, high))
    found = [np.mean(bits == width) for width in range(low, high + 1)]
    np.testing.assert_allclose(found, shares, atol=1e-3)
    assert (bits[0], bits[-1]) == (low, high)


@given(st.integers(1, 40), st.integers(0, 300))
def test_cycles_rise_and_end_at_the_top(cycles, more):
    """Within a cycle it never falls; what is left behind the last one stays at the top."""
    updates = SHORTEST_CYCLE * cycles + more
    length = updates // cycles
    counts = jnp.arange(540)  # of one shape, which is compiled once
    shares = np.asarray(cosine_cycles(updates, cycles)(counts))[:updates]
    assert shares.min() >= 0
    assert shares.max() <= 1
    for start in range(0, cycles * length, length):
        own = shares[start : start + length]
        assert own[0] == 0
        assert (np.diff(own) >= -1e-6).all()
    assert (shares[cycles * length :] == 1).all()


def test_every_cycle_reaches_its_upper_width():
    """From any width to any other, however short the cycle; one update less would not."""

    def last(low, high, length):
        share = cosine_cycles(length, 1)(jnp.float32(length - 1))
        return int(LOSS.widths(between(low, high), {CYCLE: share}).weights)

    for length in (SHORTEST_CYCLE, SHORTEST_CYCLE + 1, 100):
        for high in range(1, 9):
            assert [last(low, high, length) for low in range(1, high + 1)] == [high] * high
    share = (1 + np.cos(np.pi / (SHORTEST_CYCLE - 1))) / 2
    assert round(1 + share * 7) == 7


@pytest.mark.parametrize(
    ("updates", "cycles", "advice"),
    [(76, 32, "cycles 1 to 12, or"), (77, 0, "cycles 1 to 12, or"), (5, 1, "width; train for l")],
)
def test_cycles_that_are_too_short(updates, cycles, advice):
    says = rf"{cycles} cycles in a phase of {updates} updates: expected 6 updates .*{advice}"
    with pytest.raises(ValueError, match=says):
        cosine_cycles(updates, cycles)


# -- what it costs ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "gradients", "static", "saved"),
    [
        (3, 8, 8, 8, 36.67),
        (3, 6, 6, 6, 30.05),
        (3, 4, 6, 4, 14.84),
        (4, 8, 8, 8, 30.11),
        (4, 6, 6, 6, 20.69),
        (5, 8, 8, 8, 23.16),
        (5, 6, 8, 6, 10.23),
        (4, 6, 8, 6, 19.96),
    ],
)
def test_savings_of_the_paper(small, low, high, gradients, static, saved):
    """In % of the static cost at the upper bound."""
    shares = cosine_cycles(UPDATES, CYCLES)(jnp.arange(UPDATES))
    structure = dataclasses.replace(small.structure, modes=between(low, high, gradients))
    costs = LOSS.cost(structure, {CYCLE: shares})
    cyclic = np.asarray(costs, np.float64).mean()
    assert 100 * (1 - cyclic / update_cost(static, static, gradients)) == pytest.approx(
        saved, abs=0.006
    )


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (Together(("high",)), 3 * 64),
        (Together(("high", "low")), 3 * 64 + 4 + 2 * 2 * 32),
        (Split(("high", "low")), (3 * 64 + 4 + 2 * 2 * 32) / 2),
        (Together(("float",)), 3 * 1024),
    ],
)
def test_what_modes_cost(small, loss, expected):
    structure = dataclasses.replace(small.structure, modes=modes(low="w2a2", high="w8a8g8"))
    assert loss.cost(structure, {}) == pytest.approx(expected / (3 * 1024))


def stages(small, *losses, epochs=2):
    phases = [
        Phase(f"{i}", epochs, ("high",), loss, Sgd(), SCHEDULES) for i, loss in enumerate(losses)
    ]
    return stages_of(phases, small.structure, steps_per_epoch=8)


SCHEDULES = {
    "learning_rate": lambda _: lambda count: jnp.float32(0.1),
    "step_learning_rate": lambda _: lambda count: jnp.float32(0.01),
    CYCLE: partial(cosine_cycles, cycles=2),
}


def test_spending_adds_up_over_phases(small):
    """Update by update; in BitOps it is the published sum over MACs, widths and images."""
    found = spending_of(stages(small, LOSS, Together(("high",))), small.structure, rows=32)
    assert len(found.total) == 33
    shares = cosine_cycles(16, 2)(jnp.arange(16))
    widths = np.asarray(LOSS.widths(small.structure.modes, {CYCLE: shares}).weights)
    work = [w * w + 2 * w * 32 for w in [*widths, *[8] * 16]]
    macs = sum(layer.macs for layer in small.structure.layers.values())
    for step in (1, 16, 32):
        after = found.after(step)
        assert after["gigabitops"] == pytest.approx(macs * 32 * sum(work[:step]) / 1e9)
        assert after["relative_cost"] == pytest.approx(np.mean(work[:step]) / (3 * 1024))
    assert found.after(0) == {"relative_cost": 0, "gigabitops": 0}


def test_a_loss_that_does_not_say_its_cost(small):
    assert spending_of(stages(small, LOSS, lambda *_: None), small.structure, 32) is None


# -- the loss --------------------------------------------------------------------------------------


def network_of(own: Modes) -> Network:
    return Network(MLP(num_classes=4, modes=own, hidden=(16, 16)), Classification((8, 8, 1)))


def gradient_of(network, loss, small, values, key):
    state = {"batch_stats": small.variables["batch_stats"], "carry": {}}
    value = jax.value_and_grad(loss, argnums=1, has_aux=True)
    return value(network, small.variables["params"], state, small.batch, key, values)


def test_at_the_top_it_is_the_static_loss(small):
    """Loss, statistics and gradients are those of the upper mode."""
    network, key = network_of(between(2, 8)), jax.random.key(3)
    cyclic, static = (
        jax.jit(partial(gradient_of, network, loss, small))({CYCLE: jnp.float32(1)}, key)
        for loss in (LOSS, Together(("high",)))
    )
    (loss, (state, _)), grads = cyclic
    (expected, (after, _)), wanted = static
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)
    close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7)
    jax.tree.map(close, (state, grads), (after, wanted))


def test_one_program_for_all_widths(small):
    network, traces = network_of(between(1, 8, 8)), []

    @jax.jit
    def step(share, key):
        traces.append(share)
        (loss, (_, metrics)), _ = gradient_of(network, LOSS, small, {CYCLE: share}, key)
        return loss, metrics

    seen = set()
    for share in np.linspace(0, 1, 29, dtype=np.float32):
        loss, metrics = step(share, jax.random.key(0))
        assert np.isfinite(float(loss))
        assert metrics["bits_of_weights"] == metrics["bits_of_activations"]
        seen.add(float(metrics["bits_of_weights"]))
    assert seen == {*map(float, range(1, 9))}
    assert len(traces) == 1


def test_ends_may_differ_in_weights_and_activations(small):
    own = modes(low="w2a4", high="w8a8")
    asked = LOSS.widths(own, {CYCLE: jnp.float32(0)})
    assert (int(asked.weights), int(asked.activations)) == (2, 4)
    weights_alone = modes(low="w2a32", high="w8a32")
    assert LOSS.widths(weights_alone, {CYCLE: jnp.float32(0)}).activations is None
    structure = dataclasses.replace(small.structure, modes=weights_alone)
    cost = LOSS.cost(structure, {CYCLE: jnp.float32(0)})
    assert float(cost) == pytest.approx(update_cost(2, 32, 32))


def test_low_keeps_the_ranges_that_were_learned(small):
    params = jax.tree.map(lambda leaf: leaf, small.variables["params"])
    params["dense2"]["input_step"] = {"high": jnp.float32(0.01), "low": jnp.float32(9.0)}
    state = TrainState(jnp.int32(0), params, {}, {}, ())
    moment = type("Moment", (), {"structure": small.structure})
    found = KeepRanges("low", "high")(state, moment).params
    assert float(found["dense2"]["input_step"]["low"]) == pytest.approx(0.01 * 255 / 3)
    assert float(found["dense2"]["input_step"]["high"]) == pytest.approx(0.01)


# -- what cannot work ------------------------------------------------------------------------------

WITHIN = Phase("p", 1, ("high",), LOSS, Sgd())


@pytest.mark.parametrize(
    ("own", "says"),
    [
        (modes(low="w8a8", high="w3a3"), "from w8a8 up to w3a3, which is narrower: expected the"),
        (modes(low="w2a8", high="w8a4"), "cycles activations from w2a8 up to w8a4"),
        (modes(low="w2a2", high="w8a32"), "from w2a2 to w8a32, float at one end: expected 1 to 8"),
        (modes(low="w32a32", high="w32a32"), "from w32a32 to w32a32: expected bits of one"),
        (modes(low="w3a3g4", high="w8a8g8"), "keeps the width of gradients, and w3a3g4 and w8a8g8"),
        (
            modes({"dense2": {"low": "w4a4"}}, low="w3a3", high="w8a8"),
            r"one width for all layers, and \['dense2'\] have their own",
        ),
        (modes(high="w8a8"), "'low' is unknown: expected one of"),
    ],
    ids=str,
)
def test_bounds_that_cannot_be(own, says):
    with pytest.raises(ValueError, match=says) as caught:
        LOSS.check(own, WITHIN)
    assert "\n" not in str(caught.value)


def test_float_is_no_bound():
    with pytest.raises(ValueError, match="cycles from 'low' to 'float': float has no widths"):
        dataclasses.replace(LOSS, upper="float").check(between(2, 8), WITHIN)
