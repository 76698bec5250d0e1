"""A layer computes what its integers say, in every mode, from one tree of parameters.

With codes a in [0, 2^n) of step s and codes c of step d, a layer's exact output is
s * d / 2 * sum a (2 c + 1): an integer sum and one scale.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dual_precision import Modes, Widths, modes
from dual_precision.layers import CALIBRATION, Conv, Dense, SwitchableBatchNorm
from dual_precision.layers.attention import Attention
from dual_precision.layers.minmax import MinMaxDense
from dual_precision.primitives.nested import encode, truncate
from dual_precision.primitives.quantizers import encode_activations, quantize_activations
from dual_precision.structure import structure_of

# Every width of weights as a mode of one layer; activations run the other way.
ALL_WIDTHS = modes(**{f"w{n}": f"w{n}a{9 - n}" for n in range(1, 9)})
ULP = 2.0**-24


def dense_integers(codes, weights):
    return codes @ weights


def conv_integers(codes, weights, stride):
    """Cross-correlation of int64 codes, zero padding (k - 1) / 2, one pixel at a time."""
    k = weights.shape[0]
    pad = (k - 1) // 2
    padded = np.pad(codes, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    rows, columns = (range(0, size, stride) for size in codes.shape[1:3])
    out = [
        [np.tensordot(padded[:, r : r + k, c : c + k], weights, axes=3) for c in columns]
        for r in rows
    ]
    return np.moveaxis(np.asarray(out), 2, 0)


LAYERS = {
    "dense": (Dense(5, ALL_WIDTHS, use_bias=False), (4, 37), dense_integers),
    "conv3": (Conv(5, ALL_WIDTHS), (2, 5, 6, 4), lambda a, c: conv_integers(a, c, 1)),
    "conv3/2": (Conv(5, ALL_WIDTHS, stride=2), (2, 6, 5, 4), lambda a, c: conv_integers(a, c, 2)),
    "conv1": (
        Conv(5, ALL_WIDTHS, kernel_size=1),
        (2, 3, 3, 9),
        lambda a, c: conv_integers(a, c, 1),
    ),
}


def drawn(layer, shape, steps, input_step):
    generator = np.random.default_rng(0)
    x = jnp.asarray(np.maximum(generator.standard_normal(shape), 0), jnp.float32)
    kernel = generator.standard_normal(layer.kernel_shape(shape[-1]))
    params = {
        "kernel": jnp.asarray(kernel, jnp.float32),
        "step": jnp.asarray(steps, jnp.float32),
        "input_step": {name: jnp.float32(input_step) for name in ALL_WIDTHS.default},
    }
    return x, params


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def started(layer, inputs):
    """Parameters for so many input channels, drawn by numpy: the programs of init take longer."""
    generator = np.random.default_rng(0)
    init = partial(layer.init, precision="float")
    tree = jax.eval_shape(init, jax.random.key(0), jnp.ones((1, 3, 3, inputs)))
    assert set(tree) == {"params"}

    def draw(path, leaf):
        kernel = path[-1].key == "kernel"
        values = generator.standard_normal(leaf.shape)
        return jnp.asarray(values if kernel else 0.01 + 0.1 * abs(values), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, tree["params"])


@pytest.mark.parametrize("name", LAYERS)
def test_powers_of_two_equal_integers_exactly(name):
    layer, shape, integers = LAYERS[name]
    steps = 2.0 ** np.asarray([-8, -7, -6, -5, -4])
    x, params = drawn(layer, shape, steps, 2.0**-5)
    w = np.float64(params["kernel"])
    for bits in range(1, 9):
        top, half, step = 2 ** (9 - bits) - 1, 2 ** (bits - 1), steps * 2.0 ** (8 - bits)
        a = np.clip(np.round(np.float64(x) * 2**5), 0, top).astype(np.int64)
        c = np.clip(np.floor(w / step), -half, half - 1).astype(np.int64)
        expected = integers(a, 2 * c + 1) * (2.0**-5 * step / 2)
        got = layer.apply({"params": params}, x, precision=f"w{bits}")
        np.testing.assert_array_equal(np.float64(got), expected)


@pytest.mark.parametrize("name", LAYERS)
def test_any_step_equals_integers_within_rounding(name):
    """|float - exact| <= (K + 3) * 2^-24 * sum |a s| |(c + 1/2) d|, K terms in the sum:
    one rounding in each factor, one in each product, one in each addition.
    """
    layer, shape, integers = LAYERS[name]
    steps = [0.0123, 0.00777, 0.031, 0.1, 0.0051]
    x, params = drawn(layer, shape, steps, 0.0371)
    step, terms = np.float64(params["step"]), params["kernel"][..., 0].size
    for bits in range(1, 9):
        mode = f"w{bits}"
        input_step = params["input_step"][mode]
        a = np.asarray(encode_activations(x, input_step, 9 - bits), np.int64)
        c = np.asarray(encode(params["kernel"], params["step"], bits, 8), np.int64)
        scale = float(input_step) * step * 2.0 ** (8 - bits) / 2
        got = np.float64(layer.apply({"params": params}, x, precision=mode))
        bound = (terms + 3) * ULP * integers(a, np.abs(2 * c + 1)) * scale
        assert (np.abs(got - integers(a, 2 * c + 1) * scale) <= bound).all()


def test_bias_is_added_once():
    layer = Dense(3, modes(low="w2a2"))
    x = jnp.ones((2, 4))
    biased = {**started(layer, 4), "bias": jnp.asarray([1.0, 2.0, 4.0])}
    for name in ("float", "low"):
        without = layer.apply({"params": {**biased, "bias": jnp.zeros(3)}}, x, precision=name)
        with_bias = layer.apply({"params": biased}, x, precision=name)
        np.testing.assert_allclose(with_bias - without, [[1, 2, 4]] * 2, rtol=1e-5)


@pytest.mark.parametrize("layer", [Dense(3, modes(low="w2a2")), Conv(3, modes(low="w2a2"))])
def test_float_reads_the_latent_kernel_and_no_step(layer):
    x = jnp.linspace(-1, 1, 2 * 4 * 4 * 2).reshape(2, 4, 4, 2)
    params = started(layer, 2)
    moved = {**params, "step": params["step"] * 3, "input_step": {"low": jnp.float32(9)}}
    plain = type(layer)(3, Modes())
    bare = {k: v for k, v in params.items() if k in ("kernel", "bias")}
    expected = plain.apply({"params": bare}, x, precision="float")
    np.testing.assert_array_equal(layer.apply({"params": moved}, x, precision="float"), expected)


@pytest.mark.parametrize("spec", ["w2a32", "w32a2", "w32a32"])
def test_only_what_is_quantized_has_a_step(spec):
    layer = Dense(3, modes(low=spec))
    params = started(layer, 4)
    quantized = {"step"} if spec.startswith("w2") else set()
    quantized |= {"input_step"} if spec.endswith("a2") else set()
    assert set(params) == {"kernel", "bias"} | quantized


def test_the_first_input_step_serves_signed_inputs_too():
    """LSQ's guess for half of a normal variable; for the whole one its own guess is worse."""
    layer = Dense(3, modes(low="w2a5", high="w8a8"), signed=True)
    init = jax.jit(partial(layer.init, precision="float"))
    steps = init(jax.random.key(0), jnp.ones((1, 4)))["params"]["input_step"]
    assert steps == pytest.approx({"low": 0.8 / 31**0.5, "high": 0.8 / 255**0.5})
    x = normal(10**5)

    def error(step, bits):
        return float(jnp.mean((quantize_activations(x, step, bits, signed=True) - x) ** 2))

    for mode, bits in {"low": 5, "high": 8}.items():
        guess = jnp.float32(1.6 / (2 ** (bits - 1) - 1) ** 0.5)
        assert error(steps[mode], bits) < 0.6 * error(guess, bits)
    assert error(steps["high"], 8) == pytest.approx(2.1e-4, rel=0.05)


def test_calibration_fits_the_input_step_of_the_mode_at_hand():
    layer = Dense(3, modes(low="w2a2", high="w8a8"))
    x = jnp.abs(normal(64, 10)) * 7
    calibrate = jax.jit(partial(layer.apply, precision="low", mutable=[CALIBRATION]))
    _, updates = calibrate({"params": started(layer, 10)}, x)
    fitted = updates[CALIBRATION]["input_step"]
    assert set(fitted) == {"low"}
    assert 1.0 < float(fitted["low"]) < 8.0  # 3 steps span most of |N(0, 7)|


@pytest.mark.parametrize("layer", [Dense(3, modes(low="w2a2")), Conv(3, modes(low="w2a2"))])
def test_inputs_of_other_channels_are_refused(layer):
    with pytest.raises(ValueError, match="5 channels: expected 2"):
        layer.apply({"params": started(layer, 2)}, jnp.ones((1, 4, 4, 5)), precision="low")


# -- what is true of one product ------------------------------------------------------------------


class Backwards:
    """A product whose output channel j is not that of column j."""

    def product(self, x, kernel):
        return (x @ kernel)[..., ::-1]


class Mixed(Backwards, Dense):
    pass


class MixedAgain(Mixed):
    pass


class MixedWithFacts(Backwards, Dense):
    matrix = True


class Derived(Dense):
    def product(self, x, kernel):
        return (x @ kernel)[..., ::-1]


@pytest.mark.parametrize("cls", [Mixed, MixedAgain, MixedWithFacts, Derived])
def test_another_product_has_none_of_the_facts_of_the_first(cls):
    """Wherever it comes from; what is said beside or before it stays."""
    assert (cls.channelwise, cls.matrix) == (False, cls is MixedWithFacts)
    own = modes(low="w2a2")
    x, params = jnp.abs(normal(2, 5)), {**started(Dense(3, own), 5), "bias": jnp.zeros(3)}
    params["step"] = jnp.asarray([0.01, 0.1, 1.0])
    found, wanted = (
        layer(3, own).apply({"params": params}, x, precision="low") for layer in (cls, Dense)
    )
    np.testing.assert_allclose(found, wanted[:, ::-1], rtol=1e-6)


# -- the stored grid -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "shape", "says"),
    [
        (Dense(3, ALL_WIDTHS), (), r"got \[\]: expected \[..., inputs\]"),
        (Dense(3, ALL_WIDTHS), (2, 0), r"got \[2, 0\]: expected \[..., inputs\], 1 or more"),
        (Dense(0, ALL_WIDTHS), (2, 4), "features=0: expected an integer, 1 or more"),
        (Dense(2.5, ALL_WIDTHS), (2, 4), "features=2.5: expected an integer"),
        (Dense(True, ALL_WIDTHS), (2, 4), "features=True: expected an integer"),
        (Conv(0, ALL_WIDTHS), (1, 4, 4, 2), "features=0"),
        (Conv(3, ALL_WIDTHS), (4, 4, 2), r"got \[4, 4, 2\]: expected \[N, H, W, channels\]"),
        (Conv(3, ALL_WIDTHS), (1, 1, 4, 4, 2), r"expected \[N, H, W, channels\]"),
        (Conv(3, ALL_WIDTHS, kernel_size=2), (1, 4, 4, 2), "kernel_size=2: expected an odd number"),
        (Conv(3, ALL_WIDTHS, kernel_size=0), (1, 4, 4, 2), "kernel_size=0: expected an integer"),
        (Conv(3, ALL_WIDTHS, stride=0), (1, 4, 4, 2), "stride=0: expected an integer, 1 or more"),
        (Conv(3, ALL_WIDTHS, stride=(2, 2)), (1, 4, 4, 2), r"stride=\(2, 2\): expected an integer"),
    ],
)
def test_what_makes_no_layer_is_refused(layer, shape, says):
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    with pytest.raises(ValueError, match=says):
        jax.eval_shape(partial(layer.init, precision="w2"), jax.random.key(0), x)


def test_the_same_tree_means_the_same_in_a_model_of_other_modes():
    """Trained as w2 / w8, loaded as w2 / w4: the 4-bit mode truncates the codes of 8 bits."""
    x = jnp.abs(normal(6, 9))
    wide, narrow = (
        Dense(5, modes(low="w2a2", high=high), use_bias=False) for high in ("w8a32", "w4a32")
    )
    params = started(wide, 9)
    low = [layer.apply({"params": params}, x, precision="low") for layer in (wide, narrow)]
    np.testing.assert_array_equal(*low)
    codes = truncate(encode(params["kernel"], params["step"], 8, 8), 4, 8)
    found = narrow.apply({"params": params}, x, precision="high")
    sums = x @ (2 * codes + 1).astype(jnp.float32)
    np.testing.assert_array_equal(found, sums * (params["step"].reshape(1, -1) * 2**3))


def test_the_first_step_suits_the_narrowest_mode_on_the_stored_grid():
    x = jnp.ones((1, 9))
    steps = [
        Dense(5, own).init(jax.random.key(0), x, precision="low")["params"]["step"]
        for own in (modes(low="w2a2"), modes(low="w2a2", high="w8a8"), modes(low="w2a2", stored=4))
    ]
    np.testing.assert_array_equal(steps[0], steps[1])
    np.testing.assert_array_equal(steps[2], steps[0] * 2**4)


# -- inputs with a sign ----------------------------------------------------------------------------


def test_signed_inputs_keep_their_sign_and_have_a_gradient():
    """A kernel of ones, 3-bit codes -4 to 3 of step 0.5; the gradient of x and of the step by
    hand."""
    layer = Dense(1, modes(low="w32a3"), signed=True, use_bias=False)
    x = jnp.asarray([[-9.0], [-2.0], [-1.1], [-0.2], [0.0], [0.6], [1.5], [9.0]])
    params = {"kernel": jnp.ones((1, 1)), "input_step": {"low": jnp.float32(0.5)}}

    def apply(params, x):
        return layer.apply({"params": params}, x, precision="low")

    y, pull = jax.vjp(apply, params, x)
    np.testing.assert_array_equal(y[:, 0], [-2, -2, -1, 0, 0, 0.5, 1.5, 1.5])
    to_params, to_x = pull(jnp.arange(1.0, 9.0)[:, None])
    np.testing.assert_array_equal(to_x[:, 0], [0, 0, 3, 4, 5, 6, 0, 0])
    slopes = np.asarray([-4, -4, -2 + 2.2, 0 + 0.4, 0, 1 - 1.2, 3, 3])
    expected = (slopes * np.arange(1, 9)).sum() / np.sqrt(3)  # one value an example, top code 3
    np.testing.assert_allclose(to_params["input_step"]["low"], expected, rtol=1e-5)


@pytest.mark.parametrize("layer", ["qkv", "*"])
def test_a_mode_of_one_bit_for_signed_inputs_is_refused_at_once(layer):
    """Whichever mode a call names: training would find out at its end."""
    own = modes({layer: {"low": "w2a1"}}, low="w2a2", high="w8a8")
    x = jax.ShapeDtypeStruct((2, 4), jnp.float32)
    structure_of(Attention(1, modes(low="w2a2", high="w8a8")), x)
    with pytest.raises(ValueError, match=r"layer 'qkv' has signed inputs, and mode 'low' .* w2a1"):
        structure_of(Attention(1, own), x)


@pytest.mark.parametrize(("cls", "signed"), [(Dense, False), (MinMaxDense, True)])
def test_one_bit_is_a_range_of_unsigned_inputs_and_of_other_grids(cls, signed):
    layer = cls(3, modes(low="w2a1"), signed=signed)
    layer.init(jax.random.key(0), jnp.ones((1, 4)), precision="low")


def test_unsigned_inputs_below_zero_count_as_zero():
    layer = Dense(1, modes(low="w32a3"), use_bias=False)
    params = {"kernel": jnp.ones((1, 1)), "input_step": {"low": jnp.float32(0.5)}}
    y = layer.apply({"params": params}, jnp.asarray([[-9.0], [-0.3], [0.6]]), precision="low")
    np.testing.assert_array_equal(y[:, 0], [0, 0, 0.5])


def test_calibration_of_signed_inputs_covers_both_signs():
    layer = Dense(3, modes(low="w2a4"), signed=True)
    x = normal(64, 10) * 7
    calibrate = jax.jit(partial(layer.apply, precision="low", mutable=[CALIBRATION]))
    _, updates = calibrate({"params": started(layer, 10)}, x)
    step = float(updates[CALIBRATION]["input_step"]["low"])
    assert 7 < step * 8 < 4 * 7
    assert float(updates[CALIBRATION]["least"]["low"]) == float(x.min())


# -- normalisation ---------------------------------------------------------------------------------


def test_norm_of_a_mode_uses_and_updates_its_own():
    norm = SwitchableBatchNorm(modes(low="w2a2", high="w8a8"), momentum=0.75)
    x = normal(32, 3) * 2 + 1
    variables = norm.init(jax.random.key(0), x, precision="low")
    _, updates = norm.apply(variables, x, precision="low", train=True, mutable=["batch_stats"])
    after = updates["batch_stats"]
    for name in ("float", "high"):
        jax.tree.map(np.testing.assert_array_equal, after[name], variables["batch_stats"][name])
    np.testing.assert_allclose(after["low"]["mean"], 0.25 * np.mean(x, 0), rtol=1e-4)
    np.testing.assert_allclose(after["low"]["var"], 0.75 + 0.25 * np.var(x, 0), rtol=1e-4)
    trained = {**variables, "batch_stats": after}
    high, low = (norm.apply(trained, x, precision=name) for name in ("high", "low"))
    np.testing.assert_array_equal(high, norm.apply(variables, x, precision="high"))
    mean, var = after["low"]["mean"], after["low"]["var"]
    np.testing.assert_allclose(
        low, (x - mean[None]) / jnp.sqrt(var[None] + 1e-5), rtol=1e-4, atol=1e-5
    )


def test_norm_without_train_updates_nothing():
    norm = SwitchableBatchNorm(modes(low="w2a2"))
    x = jnp.ones((4, 3))
    variables = norm.init(jax.random.key(0), x, precision="low", train=True)
    _, updates = norm.apply(variables, x, precision="low", mutable=["batch_stats"])
    jax.tree.map(np.testing.assert_array_equal, updates["batch_stats"], variables["batch_stats"])
    np.testing.assert_array_equal(variables["batch_stats"]["low"]["mean"], 0.0)


def test_modes_that_share_a_normalisation_have_one_set_of_leaves():
    own = modes(low="w2a2", mid="w4a4", high="w8a8", norms={"mid": "high"})
    norm = SwitchableBatchNorm(own)
    x = normal(32, 3) * 2 + 1
    variables = norm.init(jax.random.key(0), x, precision="mid")
    assert set(variables["params"]) == set(variables["batch_stats"]) == {"float", "low", "high"}
    after = [
        norm.apply(variables, x, precision=name, train=True, mutable=["batch_stats"])[1]
        for name in ("mid", "high", Widths("mid", 3))
    ]
    for other in after[1:]:
        jax.tree.map(np.testing.assert_array_equal, after[0], other)
    for name in ("float", "low"):
        own, before = (tree["batch_stats"][name] for tree in (after[0], variables))
        jax.tree.map(np.testing.assert_array_equal, own, before)
    trained = {**variables, **after[0]}
    mid, high, low = (norm.apply(trained, x, precision=name) for name in ("mid", "high", "low"))
    np.testing.assert_array_equal(mid, high)
    assert not np.array_equal(mid, low)


@pytest.mark.parametrize(
    "layer", [Dense(2, Modes()), Conv(2, Modes()), SwitchableBatchNorm(Modes())]
)
def test_layers_refuse_unknown_precisions(layer):
    with pytest.raises(ValueError, match=r"'low' is unknown: expected one of \['float'\]"):
        layer.init(jax.random.key(0), jnp.ones((1, 4, 4, 2)), precision="low")
