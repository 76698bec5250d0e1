"""Widths as values: one program gives the bits of every mode; gradients have a width too."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dual_precision import Modes, Widths, modes
from dual_precision.layers import ROUNDING, Conv, Dense
from dual_precision.models import MLP
from dual_precision.primitives.nested import encode
from dual_precision.primitives.quantizers import rescaled_step
from dual_precision.training.state import initial_variables

PAIRS = [(w, a) for w in range(1, 9) for a in range(1, 9)]
DUAL = modes(low="w2a2", high="w8a8")


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def one_program(model):
    """(variables, x, precision) -> y with widths that are traced, and the traces so far."""
    traces = []

    @jax.jit
    def apply(variables, x, precision):
        traces.append(precision)
        return model.apply(variables, x, precision=precision)

    return apply, traces


# -- a layer ---------------------------------------------------------------------------------------


STEPS = [0.0123, 0.00777, 0.031, 0.1, 0.0051]
EACH = modes(**{f"w{w}a{a}": f"w{w}a{a}" for w, a in PAIRS})


@pytest.mark.parametrize(
    ("kind", "shape"), [(partial(Dense, use_bias=False), (4, 37)), (Conv, (2, 5, 6, 4))]
)
def test_one_trace_for_all_widths_gives_the_bits_of_each_mode(kind, shape):
    """All 64 pairs, as values, against a model that has each of them as a mode."""
    static, valued = kind(5, EACH), kind(5, DUAL)
    x, kernel = jnp.abs(normal(*shape)), normal(*static.kernel_shape(shape[-1]), seed=1)
    shared = {"kernel": kernel, "step": jnp.asarray(STEPS)}
    step = jnp.float32(0.0091)
    steps = {f"w{w}a{a}": rescaled_step(step, 8, a) for w, a in PAIRS}

    @jax.jit
    def by_names(params, x):
        return {mode: static.apply({"params": params}, x, precision=mode) for mode in steps}

    expected = by_names({**shared, "input_step": steps}, x)
    apply, traces = one_program(valued)
    variables = {"params": {**shared, "input_step": {"low": jnp.float32(9), "high": step}}}
    for w, a in PAIRS:
        found = apply(variables, x, Widths("high", jnp.int32(w), jnp.int32(a)))
        np.testing.assert_array_equal(found, expected[f"w{w}a{a}"], err_msg=f"w{w}a{a}")
    assert len(traces) == 1


def dense(own):
    """A layer with its variables."""
    layer = Dense(5, own, use_bias=False)
    steps = {mode: jnp.float32(0.05) for mode in own.default}
    params = {"kernel": normal(6, 5, seed=1), "step": jnp.asarray(STEPS), "input_step": steps}
    return layer, {"params": params}


def test_widths_of_float_are_on_the_grid_too():
    """Float has no input steps, but its weights have codes as soon as some mode has."""
    (layer, variables), x = dense(modes(low="w2a2")), normal(4, 6)
    found = layer.apply(variables, x, precision=Widths("float", 3))
    codes = encode(variables["params"]["kernel"], jnp.asarray(STEPS), 3, 8)
    sums = x @ (2 * codes + 1).astype(jnp.float32)
    np.testing.assert_array_equal(found, sums * (jnp.asarray(STEPS).reshape(1, -1) * 2**4))


@pytest.mark.parametrize("bits", [0, 9, 2.5, True])
def test_widths_out_of_range(bits):
    layer, variables = dense(DUAL)
    for widths in (Widths("low", bits), Widths("low", None, bits)):
        with pytest.raises(ValueError, match=r"expected (1 to 8 bits|an integer)"):
            layer.apply(variables, jnp.ones((1, 6)), precision=widths)


@pytest.mark.parametrize("bits", [-1, 0, 9, 40])
def test_traced_widths_out_of_range_give_no_numbers(bits):
    layer, variables = dense(DUAL)
    apply, traces = one_program(layer)
    for widths in (Widths("low", bits, 2), Widths("low", 2, bits)):
        assert jnp.isnan(apply(variables, jnp.ones((1, 6)), widths)).all(), widths
    assert len(traces) == 1


def test_signed_inputs_have_widths_too():
    """The range of the own width stays: codes -8 to 7 of 0.1 become -2 to 1 of 0.7."""
    layer = Dense(1, modes(low="w32a4"), signed=True, use_bias=False)
    variables = {
        "params": {"kernel": jnp.ones((1, 1)), "input_step": {"low": jnp.float32(0.1)}},
    }
    x = jnp.asarray([[-9.0], [-0.5], [0.1], [9.0]])
    found = layer.apply(variables, x, precision=Widths("low", None, 2))
    np.testing.assert_allclose(found[:, 0], [-1.4, -0.7, 0, 0.7], rtol=1e-6)
    with pytest.raises(ValueError, match="signed activations of 1 bit"):
        layer.apply(variables, x, precision=Widths("low", None, 1))


# -- a network -------------------------------------------------------------------------------------

NETWORK = partial(MLP, num_classes=3, hidden=(16, 8, 8))
IMAGES = jnp.asarray(np.random.default_rng(0).integers(0, 256, (4, 4, 4, 1)), jnp.uint8)


@pytest.fixture(scope="module")
def variables():
    """Of a network of these modes; pinned: dense1 (8 bits, pixels) and classifier (8, 8)."""
    example = jax.ShapeDtypeStruct((4, 4, 1), jnp.uint8)
    return initial_variables(NETWORK(modes=DUAL), example, seed=0)


@pytest.fixture(scope="module")
def network():
    return one_program(NETWORK(modes=DUAL))


def by_name(own, variables, mode):
    model = NETWORK(modes=own)
    return jax.jit(partial(model.apply, precision=mode))(variables, IMAGES)


def with_input_steps(variables, widths):
    """The variables, steps of mode "high" made those of other widths: layer -> width."""
    params = dict(variables["params"])
    for name, bits in widths.items():
        steps = params[name]["input_step"]
        moved = {**steps, "high": rescaled_step(steps["high"], 8, bits)}
        params[name] = {**params[name], "input_step": moved}
    return {**variables, "params": params}


@pytest.mark.parametrize("mode", ["low", "high"])
def test_widths_of_the_mode_itself_give_its_bits(variables, network, mode):
    apply, _ = network
    expected = by_name(DUAL, variables, mode)
    bits = 2 if mode == "low" else 8
    for given in (
        Widths(mode),
        Widths(mode, bits, bits),
        Widths(mode, jnp.int32(bits), None),
        Widths(mode, None, {"dense2": jnp.uint8(bits)}),
    ):
        np.testing.assert_array_equal(apply(variables, IMAGES, given), expected)


def test_pinned_layers_keep_their_widths(variables, network):
    apply, _ = network
    own = modes({"dense?": {"high": "w4a3"}, "dense1": {"high": "w8a32"}}, low="w2a2", high="w8a8")
    expected = by_name(own, with_input_steps(variables, {"dense2": 3, "dense3": 3}), "high")
    np.testing.assert_array_equal(apply(variables, IMAGES, Widths("high", 4, 3)), expected)


def test_one_trace_for_the_widths_of_each_layer(variables):
    """A mapping from layers to widths; pinned ones too, where they are named."""
    apply, traces = one_program(NETWORK(modes=DUAL))
    for second, third, last in ((2, 5, 4), (8, 1, 8)):
        widths = {"dense2": second, "dense3": third, "classifier": last}
        given = jax.tree.map(jnp.int32, widths)
        found = apply(variables, IMAGES, Widths("high", given, given))
        own = {name: {"high": f"w{bits}a{bits}"} for name, bits in widths.items()}
        expected = by_name(
            modes(own, low="w2a2", high="w8a8"), with_input_steps(variables, widths), "high"
        )
        np.testing.assert_array_equal(found, expected)
    assert len(traces) == 1


def test_layers_that_a_mapping_does_not_name_keep_their_widths(variables, network):
    apply, _ = network
    found = apply(variables, IMAGES, Widths("high", {"dense3": 3, "dense2": None}))
    own = modes({"dense3": {"high": "w3a8"}}, low="w2a2", high="w8a8")
    np.testing.assert_array_equal(found, by_name(own, variables, "high"))


@pytest.mark.parametrize("field", ["weights", "activations", "gradients"])
def test_a_mapping_with_an_unknown_layer(network, variables, field):
    apply, _ = network
    with pytest.raises(ValueError, match=r"layers \['dense9'\]: expected some of \['classifier', "):
        apply.trace(variables, IMAGES, Widths("high", **{field: {"dense9": 2}}))


def test_a_mode_of_widths_that_is_unknown(network, variables):
    apply, _ = network
    with pytest.raises(ValueError, match=r"'lowest' is unknown: expected one of \['float', 'low'"):
        apply.trace(variables, IMAGES, Widths("lowest", 2))
    apply, _ = one_program(NETWORK(modes=Modes()))
    with pytest.raises(ValueError, match="a width for weights, and no mode has codes"):
        apply.trace(variables, IMAGES, Widths("float", 2))


# -- gradients of a width --------------------------------------------------------------------------

GRADIENT = Dense(8, modes(low="w32a32g3", plain="w32a32"), use_bias=False)
EYE = {"params": {"kernel": jnp.eye(8)}}  # so that x gets the gradient that came to the output


def pulled(precision, rngs=None):
    """(y, its cotangent g -> what x gets)."""
    x = normal(16, 8)
    return jax.vjp(lambda x: GRADIENT.apply(EYE, x, precision=precision, rngs=rngs), x)


def test_gradients_of_a_width():
    """On 2^3 levels and unbiased; the forward pass is as it was; a width may be a value."""
    g = normal(16, 8, seed=1)
    plain, pull = pulled("plain")
    np.testing.assert_array_equal(pull(g)[0], g)

    @jax.jit
    def rounded(key, bits):
        y, pull = pulled(Widths("low", gradients=bits), {ROUNDING: key})
        return y, pull(g)[0]

    means = jnp.zeros_like(g)
    for key in jax.random.split(jax.random.key(2), 200):
        y, found = rounded(key, jnp.int32(3))
        np.testing.assert_array_equal(y, plain)
        means += found / 200
    assert len(np.unique(found)) <= 2**3
    step = float(g.max() - g.min()) / 7
    assert np.abs(means - g).max() <= 5 * step / 2 / np.sqrt(200)
    rounded(key, jnp.int32(6))
    assert rounded._cache_size() == 1
    _, pull = pulled("low", {ROUNDING: key})
    np.testing.assert_allclose(pull(g)[0], found, rtol=1e-5, atol=1e-6)


def test_gradients_of_a_width_without_random_numbers():
    y, pull = pulled("low")
    np.testing.assert_array_equal(y, pulled("plain")[0])
    with pytest.raises(ValueError, match=r"no random numbers: expected .*rngs=\{'rounding'"):
        pull(y)
