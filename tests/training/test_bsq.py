"""Bit-level sparsity: the price of bits, the events, a run that is stopped in an adjustment."""

import dataclasses
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dual_precision import data, modes
from dual_precision.models import MLP
from dual_precision.precision import modes_from
from dual_precision.primitives.signed_bits import adjusted, to_signed_bits
from dual_precision.structure import structure_of
from dual_precision.tasks.classification import Classification
from dual_precision.tasks.task import Network
from dual_precision.training.fit import fit
from dual_precision.training.initialize import FitInputSteps
from dual_precision.training.manifest import manifest
from dual_precision.training.methods.bsq import (
    Adjust,
    BitLoss,
    BitOptimizer,
    ToBits,
    WriteKernels,
    keep_bits_in_range,
    price_of,
)
from dual_precision.training.methods.trained_bits import (
    bits_found,
    bits_of,
    mean_bits,
    widths_found,
    widths_within,
    with_bits,
)
from dual_precision.training.optimizers import RATE, STEP_RATE, Sgd
from dual_precision.training.options import FitOptions
from dual_precision.training.phases import Phase
from dual_precision.training.schedules import warmup_cosine
from dual_precision.training.state import TrainState, initial_variables

pytestmark = pytest.mark.usefixtures("compiled_quickly")

OWN = modes(low="w32a4", high="w32a4")
MODEL = MLP(num_classes=4, modes=OWN, hidden=(12, 12))
TASK = Classification((8, 8, 1))
STRUCTURE = structure_of(MODEL, TASK.example)
NETWORK = Network(MODEL, TASK)
BITWISE = ("dense2",)  # first layer and classifier have 8-bit weights in every mode


def split(size: int, seed: int) -> data.Images:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 4, size).astype(np.int32)
    images = generator.integers(0, 128, (size, 8, 8, 1)).astype(np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[2 * label : 2 * label + 2] += 100
    return data.Images(images, labels)


TRAIN, VALIDATION = split(96, 0), split(40, 1)


EVERY = 5  # epochs between adjustments
EVENTS = ((1, WriteKernels()), (EVERY, Adjust()))


def bsq_phase(alpha: float, events=EVENTS, epochs=4 * EVERY) -> Phase:
    peaks = {RATE: 0.1, STEP_RATE: 1e-2}
    return Phase(
        "bsq",
        epochs,
        ("high",),
        BitLoss("high", alpha),
        BitOptimizer(Sgd()),
        {name: partial(warmup_cosine, peak=peak, warmup=0.1) for name, peak in peaks.items()},
        at_start=(FitInputSteps("high"), ToBits("high")),
        events=events,
        at_end=(Adjust(),),
    )


def run(workdir, phase, **more):
    options = FitOptions(batch_size=16, epochs_per_evaluation=EVERY)
    return fit(MODEL, TASK, (phase,), TRAIN, VALIDATION, options, workdir, **more)


@pytest.fixture(scope="module")
def state() -> TrainState:
    """With bits, some of them moved as training moves them."""
    variables = initial_variables(MODEL, TASK.example, seed=0)
    start = TrainState(jnp.int32(0), **variables, carry={"high": ()}, opt_state=())
    moment = type("Moment", (), {"structure": STRUCTURE, "epoch": 3})
    made = ToBits("high")(start, moment)
    noise = np.random.default_rng(1).uniform(0, 2, made.params["dense2"]["bits"]["positive"].shape)
    made.params["dense2"]["bits"]["positive"] = jnp.asarray(noise, jnp.float32)
    return made


MOMENT = type("Moment", (), {"structure": STRUCTURE, "epoch": 3})


def loss_and_logits(params, statistics):
    moving = {"batch_stats": statistics, "carry": {}}
    batch = {"inputs": jnp.asarray(TRAIN.images), "labels": jnp.asarray(TRAIN.labels)}
    (_, (_, metrics)) = BitLoss("high", 0.1)(NETWORK, params, moving, batch, None, {})
    return metrics["high_loss"]


def test_layers_that_get_bits(state):
    assert [*bits_of(state.params)] == [BITWISE]
    assert state.opt_state is None


def test_an_adjustment_leaves_the_function_bit_for_bit(state):
    before = WriteKernels()(state, MOMENT)
    after = Adjust()(state, MOMENT)
    assert after.opt_state is None, "the optimizer begins anew"
    predict = jax.jit(partial(MODEL.apply, precision="high"))
    logits = [predict(s.variables, jnp.asarray(VALIDATION.images)) for s in (before, after)]
    np.testing.assert_array_equal(*logits)
    one, other = (loss_and_logits(s.params, s.batch_stats) for s in (state, after))
    assert float(one) == float(other)
    positive = after.params["dense2"]["bits"]["positive"]
    assert {*np.unique(positive)} <= {0.0, 1.0}


def test_the_price_of_bits(state):
    """Every layer by its share of the weights, times its bits; by hand for one of two layers."""
    small, large = ((jnp.ones((2, 3)), 3), (jnp.ones((5, 9)), 9))
    bits = {}
    for name, (ones, _) in (("small", small), ("large", large)):
        own = bits_of(state.params)[BITWISE]
        bits[name,] = own._replace(positive=ones, negative=0 * ones)
    expected = (3 * 2 / 12) * 2 * 3**0.5 + (9 * 5 / 12) * 5 * 9**0.5
    assert float(price_of(bits)) == pytest.approx(expected, rel=1e-6)


def test_bits_stay_in_range():
    params = {"a": {"bits": {"positive": jnp.array([0.1, 1.9, 1.0]), "step": jnp.float32(1)}}}
    moves = {"a": {"bits": {"positive": jnp.array([-0.5, 0.5, 0.5]), "step": jnp.float32(-3)}}}
    keep = keep_bits_in_range()
    found, _ = keep.update(moves, keep.init(params), params)
    after = params["a"]["bits"]["positive"] + found["a"]["bits"]["positive"]
    np.testing.assert_allclose(after, [0, 2, 1.5], atol=1e-6)
    assert float(found["a"]["bits"]["step"]) == -3, "a step is no bit"


@pytest.fixture(scope="module")
def trained(compiled_quickly, tmp_path_factory):
    """Uninterrupted, at a price at which bits go."""
    workdir, records = tmp_path_factory.mktemp("bsq"), []
    state = run(workdir, bsq_phase(0.03), listeners=[records.append])
    return state, records, workdir


def test_bits_go_where_they_cost_something(trained, tmp_path):
    state, records, _ = trained
    free = run(tmp_path, bsq_phase(0.0))
    assert bits_found(state.params)[BITWISE] < bits_found(free.params)[BITWISE]
    bits = [record["trained_bits_per_weight"] for record in records]
    assert bits[0] == 8
    assert sorted(bits, reverse=True) == bits
    for part in ("positive", "negative"):
        left = state.params["dense2"]["bits"][part]
        assert left.shape[0] == max(bits_found(state.params)[BITWISE], 1)
    assert records[-1]["validation_high_accuracy"] > 0.25


@dataclasses.dataclass(frozen=True)
class Stops:
    """An event that ends the run at an epoch, in the middle of an adjustment, the first time."""

    epoch: int
    happened: list = dataclasses.field(default_factory=list)

    def __call__(self, state, moment):
        if moment.epoch == self.epoch and not self.happened:
            self.happened.append(moment.epoch)
            raise KeyboardInterrupt
        return state


def without_speed(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [{**json.loads(line), "examples_per_second": 0} for line in lines]


@pytest.mark.parametrize("epoch", [EVERY, 4 * EVERY])
def test_a_run_stopped_in_an_adjustment_ends_with_the_same_bits(trained, tmp_path, epoch):
    events = (*EVENTS, (EVERY, Stops(epoch)))
    phase = bsq_phase(0.03, events)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, phase)
    again = run(tmp_path, phase)
    assert manifest(dataclasses.asdict(again)) == manifest(dataclasses.asdict(trained[0]))
    assert without_speed(tmp_path) == without_speed(trained[2])


# -- what was found --------------------------------------------------------------------------------


def test_the_widths_found_are_a_map_that_the_project_reads(trained):
    state, _, _ = trained
    found = widths_found(state.params, STRUCTURE, "high")
    bits = bits_found(state.params)[BITWISE]
    assert found == {"dense2": {"high": f"w{min(bits + 1, 8)}a4"}}, "the sign is a bit too"
    described = {"modes": {"low": "w2a2", "high": "w8a8"}, "layers": found, "stored": 8}
    own = modes_from(described)
    table = structure_of(dataclasses.replace(MODEL, modes=own), TASK.example).layers[BITWISE].table
    assert str(table["high"]) == found["dense2"]["high"]


def test_widths_of_low_take_no_more_than_a_uniform_one():
    """Of two layers, the one that needed more bits keeps more."""
    own = MLP(num_classes=4, modes=OWN, hidden=(12, 12, 12))
    structure = structure_of(own, TASK.example)
    params = initial_variables(own, TASK.example, seed=0)["params"]
    bits = {("dense2",): 5, ("dense3",): 2}
    kernel = params["dense2"]["kernel"]
    found = {path: adjusted(to_signed_bits(kernel, count)) for path, count in bits.items()}
    params = with_bits(params, found)
    assert bits_found(params) == bits
    for mean, widths in ((2.0, (3, 1)), (3.0, (4, 2)), (3.5, (5, 2)), (1.0, (1, 1)), (8.0, (8, 8))):
        own_widths = widths_within(params, structure, "low", mean)
        expected = {"dense2": widths[0], "dense3": widths[1]}
        assert own_widths == {name: {"low": f"w{w}a4"} for name, w in expected.items()}
    with pytest.raises(ValueError, match=r"0\.5 bits per weight: expected 1 to 8"):
        widths_within(params, structure, "low", 0.5)
    busy = dataclasses.replace(structure.layers["dense2",], macs=3 * 12 * 12)
    other = dataclasses.replace(structure, layers={**structure.layers, ("dense2",): busy})
    for by, wide in (("bytes", "w3a4"), ("bitops", "w2a4")):
        own_widths = widths_within(params, other, "low", 2.0, by)
        assert own_widths == {"dense2": {"low": wide}, "dense3": {"low": "w1a4"}}
    with pytest.raises(ValueError, match="a cost in 'flops': expected one of"):
        widths_within(params, structure, "low", 2.0, "flops")


def test_bits_per_weight_count_eight_as_eight_and_zeros_as_none():
    """As the map of widths cannot: the sign takes the last of 8 bits there, and zeros take one."""
    own = MLP(num_classes=4, modes=OWN, hidden=(12, 12, 12))
    layers = structure_of(own, TASK.example).layers
    params = initial_variables(own, TASK.example, seed=0)["params"]
    kernels = [params["dense2"]["kernel"], jnp.zeros_like(params["dense3"]["kernel"])]
    found = {("dense2",): adjusted(to_signed_bits(kernels[0], 8))}
    assert mean_bits(bits_found(with_bits(params, found)), layers) == 8
    found["dense3",] = adjusted(to_signed_bits(kernels[1], 8))
    assert mean_bits(bits_found(with_bits(params, found)), layers) == 4


def test_a_layer_that_needs_no_bits():
    variables = initial_variables(MODEL, TASK.example, seed=0)
    params = jax.tree.map(jnp.zeros_like, variables["params"])
    state = ToBits("high")(TrainState(jnp.int32(0), params, {}, {}, ()), MOMENT)
    assert bits_found(state.params) == {BITWISE: 0}
    assert widths_found(state.params, STRUCTURE, "high") == {"dense2": {"high": "w1a4"}}


# -- what cannot work ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "own", "says"),
    [
        (BitLoss("high", -0.1), OWN, "alpha=-0.1: expected a finite number, 0 or more"),
        (BitLoss("high", float("nan")), OWN, "alpha=nan: expected"),
        (BitLoss("high", 0.1), modes(high="w8a8"), "are float in 'high', which is w8a8: expected"),
        (BitLoss("float", 0.1), OWN, "are float in 'float', which is float: expected one such"),
        (BitLoss("medium", 0.1), OWN, "'medium' is unknown: expected one of"),
        (ToBits("high", 9), OWN, "width 9: expected 1 to 8"),
    ],
    ids=str,
)
def test_bits_that_cannot_be(part, own, says):
    with pytest.raises(ValueError, match=says):
        part.check(own, bsq_phase(0.1))


def test_layers_that_all_have_widths_leave_no_bit_to_train(tmp_path):
    """By default weights are float, and the one layer that could have bits has codes."""
    own = modes({"dense2": {"high": "w4a4"}}, low="w32a4", high="w32a4")
    model, options = MODEL.clone(modes=own), FitOptions(batch_size=16)
    with pytest.raises(ValueError, match=r"no layer has float weights in 'high'.*'dense2'"):
        fit(model, TASK, (bsq_phase(0.1),), TRAIN, VALIDATION, options, tmp_path)
