"""The integer forward equals the training forward, in every width; sums are reused, not redone."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact_variables import as_trained
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from dual_precision import Modes, modes
from dual_precision.deploy import to_integer
from dual_precision.layers import Conv, Dense, SwitchableBatchNorm
from dual_precision.models import MLP, build
from dual_precision.precision import Precision
from dual_precision.primitives import nested
from dual_precision.primitives.convolution import conv2d_codes
from dual_precision.tasks.classification import Classification

UNIT = 2.0**-24  # half of float32's relative spacing
DUAL = modes(low="w2a2", high="w8a8")
# Every width from 1 to 8, float inputs in one mode of one layer, three modes.
MIXED = modes(
    {
        "dense2": {"low": "w1a1", "middle": "w3a2", "high": "w5a32"},
        "dense3": {"low": "w6a6", "middle": "w4a4", "high": "w7a7"},
    },
    low="w2a2",
    middle="w4a4",
    high="w8a8",
)


# All of its kernels have one shape, so that what runs op by op compiles once.
SMALL = MLP(num_classes=16, modes=DUAL, hidden=(16, 16))
SHAPE = (4, 4, 1)


class One(nn.Module):
    """One layer, a normalisation where there is one, and something between where `apart`."""

    modes: Modes
    layer: Any = Dense
    norm: Any = None
    apart: bool = False

    @nn.compact
    def __call__(self, x, *, precision, train=False):
        x = x.astype(jnp.float32)
        x = self.layer(16, modes=self.modes, name="only")(x, precision=precision)
        if self.norm is not None:
            x = nn.relu(x) if self.apart else x
            x = self.norm(modes=self.modes, name="norm")(x, precision=precision, train=train)
        return x


def trained(model, shape, exact=True):
    return as_trained(model, Classification(shape).example, exact)


def integer(model, variables, shape):
    return to_integer(model, variables, Classification(shape).example)


def pixels(*shape):
    return jnp.asarray(np.random.default_rng(1).integers(0, 256, (3, *shape)), jnp.uint8)


def activations(*shape):
    return jnp.asarray(np.abs(np.random.default_rng(1).normal(size=(2, *shape))), jnp.float32)


def logits(model, variables, images, precision):
    return model.apply(variables, images, precision=precision)


compiled_logits = jax.jit(logits, static_argnames=("model", "precision"))


def every_width(stored):
    """Modes of every width up to `stored`; over all of them, activations of every width."""
    widths = {f"w{n}": Precision(n, (n + stored) % 8 + 1) for n in range(1, stored + 1)}
    return Modes(widths)


each_layer = pytest.mark.parametrize(("layer", "shape"), [(Dense, (1, 1, 16)), (Conv, (5, 5, 4))])


# Every mode of the widest, the ends of the others; a convolution differs in its product alone.
@pytest.mark.parametrize(
    ("layer", "shape", "stored"),
    [
        *((Dense, (1, 1, 16), stored) for stored in range(1, 9)),
        *((Conv, (5, 5, 4), stored) for stored in (5, 8)),
    ],
)
def test_a_layer_gives_the_same_bits_whatever_its_steps(layer, shape, stored):
    model = One(every_width(stored), layer)
    variables, x = trained(model, shape, exact=False), activations(*shape)
    integer_model, integers = integer(model, variables, shape)
    for mode in model.modes.default if stored == 8 else {"w1": None, f"w{stored}": None}:
        found = integer_model.apply(integers, x, precision=mode)
        expected = model.apply(variables, x, precision=mode)
        assert float(jnp.ptp(expected)) > 0
        np.testing.assert_array_equal(found, expected, err_msg=mode)


@pytest.mark.parametrize("exact", [False, True], ids=["any steps", "powers of two"])
@pytest.mark.parametrize(
    "model",
    [
        MLP(num_classes=16, modes=MIXED, hidden=(16, 16, 16)),
        MLP(num_classes=16, modes=DUAL, hidden=(16, 16), norm=None),
        build("resnet8", num_classes=16, modes=DUAL, stage_sizes=(1, 1), widths=(4, 8)),
    ],
    ids=["mixed", "mlp", "resnet"],
)
def test_so_does_a_network(model, exact):
    variables, x = trained(model, SHAPE, exact), pixels(*SHAPE)
    integer_model, integers = integer(model, variables, SHAPE)
    for mode in model.modes.default:
        expected = compiled_logits(model, variables, x, mode)
        assert float(jnp.ptp(expected)) > 0
        found = compiled_logits(integer_model, integers, x, mode)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("apart", [False, True])
def test_a_normalisation_takes_the_bias_too_and_one_apart_nothing(apart):
    model = One(DUAL, Dense, SwitchableBatchNorm, apart)
    variables, x = trained(model, (1, 1, 16), exact=False), activations(1, 1, 16)
    integer_model, integers = integer(model, variables, (1, 1, 16))
    assert ("scale" in integers["params"]["only"]) == apart
    for mode in ("low", "high"):
        found = compiled_logits(integer_model, integers, x, mode)
        expected = compiled_logits(model, variables, x, mode)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("layer", "shape"), [(Dense, (1, 1, 1500)), (Conv, (3, 3, 180))])
def test_sums_beyond_float32_are_exact(layer, shape):
    """Positive weights, inputs near the top: more than 2^24, which one float32 sum misses."""
    model = One(modes(low="w2a2", high="w8a8"), layer, SwitchableBatchNorm)
    leaves = flatten_dict(trained(model, shape))
    kernel = leaves["params", "only", "kernel"]
    leaves["params", "only", "step"] = jnp.full(16, 1 / 64, jnp.float32)
    leaves["params", "only", "kernel"] = kernel = jnp.abs(kernel) + 0.5
    leaves["params", "only", "input_step", "high"] = jnp.float32(1)
    if layer is Dense:
        leaves["params", "only", "bias"] = jnp.zeros(16)
    for name, value in {"scale": 1.0, "bias": 0.0}.items():
        leaves["params", "norm", "high", name] = jnp.full(16, value, jnp.float32)
    leaves["batch_stats", "norm", "high", "mean"] = jnp.zeros(16)
    integer_model, integers = integer(model, unflatten_dict(leaves), shape)
    plan = integer_model.layer.keywords["plans"]["only"]
    assert plan.groups["low"] == 1 < plan.groups["high"]
    x = np.random.default_rng(2).integers(200, 256, (2, *shape))
    odd = 2 * np.asarray(nested.encode(kernel, jnp.full(16, 1 / 64), 8, 8), np.int64) + 1
    sums = x.reshape(2, -1) @ odd.reshape(-1, 16)  # of the middle pixel, which sees all others
    assert sums.min() > 2**24
    found = compiled_logits(integer_model, integers, jnp.asarray(x, jnp.float32), "high")
    middle = np.asarray(found)[:, shape[0] // 2, shape[1] // 2]
    np.testing.assert_array_equal(middle, sums.astype(np.float32) / 128)


def test_sums_beyond_int32_are_refused():
    """33,100 products of 255 and 255: groups are added as int32, which must hold them all."""
    model, shape = One(DUAL), (1, 1, 33_100)
    leaves = flatten_dict(trained(model, shape))
    leaves["params", "only", "kernel"] = jnp.full((33_100, 16), 100.0)
    with pytest.raises(ValueError, match=r"sums up to 2152327500 in precision 'high': .*2\^31"):
        integer(model, unflatten_dict(leaves), shape)


class ByBytes(Conv):
    """On any machine as on one whose CPU multiplies bytes."""

    def codes_pay(self, largest):
        return True

    def product_of_codes(self, x, codes, widths, largest):
        return conv2d_codes(x, codes, self.stride, widths, largest)


@pytest.mark.parametrize("inputs", [8, 3_700])
def test_what_is_converted_runs_wherever_bytes_pay(inputs):
    """3,700 inputs at 3x3: weights of both signs stay in int32, and all of one sign would not."""
    model, shape = One(modes(high="w8a8"), ByBytes), (1, 1, inputs)
    variables = trained(model, shape)
    variables["params"]["only"]["input_step"]["high"] = jnp.float32(1)
    integer_model, integers = integer(model, variables, shape)
    x = np.random.default_rng(2).integers(0, 256, (2, *shape))
    found = compiled_logits(integer_model, integers, jnp.asarray(x, jnp.float32), "high")
    own = integers["params"]["only"]
    odd = 2 * np.asarray(own["kernel"], np.int64)[1, 1] + 1
    sums = (x.reshape(2, inputs) @ odd).astype(np.float32)
    wanted = sums * np.asarray(own["scale"]["high"])
    np.testing.assert_array_equal(found.reshape(2, 16), wanted)


def test_the_weights_are_int8_and_there_once():
    model = MLP(num_classes=16, modes=DUAL, hidden=(64, 64, 64))
    variables = trained(model, (8, 8, 1))
    _, integers = integer(model, variables, (8, 8, 1))
    leaves = flatten_dict(integers["params"])
    kernels = {path[0]: leaf for path, leaf in leaves.items() if leaf.ndim > 1}
    assert list(kernels) == ["dense1", "dense2", "dense3", "classifier"]
    assert {leaf.dtype for leaf in kernels.values()} == {jnp.dtype(jnp.int8)}
    size = sum(leaf.nbytes for leaf in leaves.values())
    assert size < 0.32 * sum(leaf.nbytes for leaf in jax.tree.leaves(variables))


WIDER = modes(
    {"dense1": {"low": "w3a32", "middle": "w3a32", "high": "w8a32"}},
    low="w2a2",
    middle="w4a4",
    high="w8a8",
)


def test_high_goes_on_from_what_low_kept():
    model = MLP(num_classes=16, modes=WIDER, hidden=(16, 16))
    integer_model, integers = integer(model, trained(model, SHAPE), SHAPE)
    x = pixels(*SHAPE)
    dyadic = x.astype(jnp.float32) / 64 - 2  # so that every product and sum is exact
    for mode in ("middle", "high"):
        low, kept = integer_model.apply(integers, dyadic, precision="low", mutable=["kept"])
        assert set(kept["kept"]["dense1"]) == {"low"}
        np.testing.assert_array_equal(low, integer_model.apply(integers, dyadic, precision="low"))
        found, both = integer_model.apply(
            {**integers, **kept}, dyadic, precision=mode, mutable=["kept"]
        )
        expected, own = integer_model.apply(integers, dyadic, precision=mode, mutable=["kept"])
        assert set(both["kept"]["dense1"]) == {"low", mode}
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(both["kept"]["dense1"][mode], own["kept"]["dense1"][mode])


def test_sums_of_floats_are_reused_within_a_bound():
    """(K + 1) u (2^d |x| |w_low| + |x| |residual| + |x| |w_high|): two sums against one."""
    model = MLP(num_classes=16, modes=WIDER, hidden=(16, 16))
    integer_model, integers = integer(model, trained(model, SHAPE), SHAPE)
    x = jnp.asarray(np.random.default_rng(3).normal(size=(3, 4, 4, 1)), jnp.float32)
    _, kept = integer_model.apply(integers, x, precision="low", mutable=["kept"])
    _, reused = integer_model.apply({**integers, **kept}, x, precision="high", mutable=["kept"])
    _, fresh = integer_model.apply(integers, x, precision="high", mutable=["kept"])
    high = 2 * np.asarray(integers["params"]["dense1"]["kernel"], np.float64) + 1
    low = 2 * np.floor((high - 1) / 2 / 32) + 1
    inputs = np.abs(np.asarray(x, np.float64).reshape(3, 16))
    bound = 17 * UNIT * (inputs @ (32 * np.abs(low) + np.abs(high - 32 * low) + np.abs(high)))
    error = reused["kept"]["dense1"]["high"] - fresh["kept"]["dense1"]["high"]
    assert np.abs(error).max() > 0
    assert np.all(np.abs(error) <= bound * 1.001)


def products(model, variables, images, precision):
    jaxpr = jax.make_jaxpr(partial(model.apply, precision=precision))(variables, images)
    return str(jaxpr).count("dot_general[")


def test_a_layer_of_the_same_width_costs_nothing():
    model = MLP(num_classes=16, modes=DUAL, hidden=(16, 16))
    integer_model, integers = integer(model, trained(model, SHAPE, False), SHAPE)
    x = pixels(*SHAPE)
    _, kept = integer_model.apply(integers, x, precision="low", mutable=["kept"])
    found = integer_model.apply({**integers, **kept}, x, precision="high")
    np.testing.assert_array_equal(found, integer_model.apply(integers, x, precision="high"))
    assert products(integer_model, integers, x, "high") == 3
    assert products(integer_model, {**integers, **kept}, x, "high") == 2
    with pytest.raises(ValueError, match=r"sums of 3 images were kept by precision 'low'.*are 2"):
        integer_model.apply({**integers, **kept}, x[:2], precision="high")


def test_nothing_is_taken_from_a_wider_mode():
    model = MLP(num_classes=16, modes=WIDER, hidden=(16, 16))
    integer_model, integers = integer(model, trained(model, SHAPE), SHAPE)
    x = pixels(*SHAPE)
    _, kept = integer_model.apply(integers, x, precision="high", mutable=["kept"])
    found = integer_model.apply({**integers, **kept}, x, precision="low")
    np.testing.assert_array_equal(found, integer_model.apply(integers, x, precision="low"))


def test_variables_of_low_alone_are_enough_for_low():
    variables = trained(SMALL, SHAPE, exact=False)
    leaves = {path: leaf for path, leaf in flatten_dict(variables).items() if "high" not in path}
    whole = integer(SMALL, variables, SHAPE)
    part = integer(SMALL, unflatten_dict(leaves), SHAPE)
    found, expected = (own.apply(v, pixels(*SHAPE), precision="low") for own, v in (part, whole))
    np.testing.assert_array_equal(found, expected)
    assert not [path for path in flatten_dict(part[1]) if "high" in path]
    for mode, message in {"high": r"'high': expected one of \['low'\]", "float": "float w"}.items():
        with pytest.raises(ValueError, match=message):
            part[0].apply(part[1], pixels(*SHAPE), precision=mode)
    with pytest.raises(ValueError, match="for inference"):
        part[0].apply(part[1], pixels(*SHAPE), precision="low", train=True)
    with pytest.raises(ValueError, match="got 64 channels: expected 16"):
        part[0].apply(part[1], pixels(8, 8, 1), precision="low")


class OtherDense(Dense):
    """A class whose call no integer layer stands for."""

    def __call__(self, x, *, precision):
        return 2 * super().__call__(x, precision=precision)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"modes": modes(low="w32a8", high="w32a32")}, "'dense2' has float weights in every mode"),
        ({"modes": modes(low="w2a2", high="w32a8")}, r"'dense2' has float weights in \['high'\]"),
        ({"dense": OtherDense}, "class OtherDense have a call of their own"),
    ],
)
def test_what_has_no_integer_forward_is_refused(arguments, message):
    model = MLP(**{"num_classes": 16, "modes": DUAL, "hidden": (16, 16), **arguments})
    variables = trained(model, SHAPE)
    with pytest.raises(ValueError, match=message):
        integer(model, variables, SHAPE)


class Wired(nn.Module):
    """Two layers and a normalisation, put together in a way of its own."""

    modes: Modes
    way: str
    dense: Any = Dense
    norm: Any = SwitchableBatchNorm

    @nn.compact
    def __call__(self, x, *, precision, train=False):
        x = x.astype(jnp.float32).reshape(x.shape[0], -1)
        norm = self.norm(modes=self.modes, name="norm")
        if self.way == "norm first":
            x = norm(x, precision=precision, train=train)
        layer = Dense if self.way == "hard-coded" else self.dense
        y = layer(16, modes=self.modes.pin(8, None), name="one")(x, precision=precision)
        if self.way in ("skip", "norm twice"):
            skip = norm(y, precision=precision, train=train)
            y = y + skip if self.way == "skip" else norm(skip, precision=precision, train=train)
        return self.dense(16, modes=self.modes, name="two")(y, precision=precision)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"way": "hard-coded"}, "layer 'one' keeps its class Dense: expected one that an attr"),
        ({"way": "", "dense": partial(Dense)}, "layer 'one' keeps its class Dense"),
        ({"way": "skip", "norm": partial(SwitchableBatchNorm)}, "'norm' keeps its class Switch"),
        ({"way": "skip"}, "output of layer 'one' goes to a normalisation and elsewhere"),
        ({"way": "norm twice"}, "normalisation 'norm' is called 2 times"),
    ],
)
def test_so_are_networks_put_together_in_other_ways(arguments, message):
    model = Wired(DUAL, **arguments)
    with pytest.raises(ValueError, match=message):
        integer(model, trained(model, SHAPE), SHAPE)


def test_a_layer_behind_a_normalisation_shares_nothing():
    """Its input is another one in every mode, though none quantizes it."""
    model = Wired(DUAL, "norm first")
    variables, x = trained(model, SHAPE), pixels(*SHAPE)
    integer_model, integers = integer(model, variables, SHAPE)
    assert not integer_model.dense.keywords["plans"]["one"].shared
    _, kept = integer_model.apply(integers, x, precision="low", mutable=["kept"])
    assert not kept
    assert integer(SMALL, trained(SMALL, SHAPE), SHAPE)[0].dense.keywords["plans"]["dense1"].shared


def test_so_are_values_that_are_missing_or_not_finite():
    leaves = flatten_dict(trained(SMALL, SHAPE))
    few = {path: leaf for path, leaf in leaves.items() if path[0] == "params"}
    with pytest.raises(ValueError, match="variables with 'batch_stats"):
        integer(SMALL, unflatten_dict(few), SHAPE)
    leaves["params", "dense2", "kernel"] = jnp.full((16, 16), jnp.inf)
    with pytest.raises(ValueError, match="infinities"):
        integer(SMALL, unflatten_dict(leaves), SHAPE)
