"""What a network costs, counted by hand: bytes, BitOps, energy."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from dual_precision import Modes, modes
from dual_precision.costs import (
    Cost,
    EnergyModel,
    layer_cost,
    layer_energy,
    mode_cost,
    mode_energy,
    reused_bit_operations,
)
from dual_precision.layers import Attention, Dense
from dual_precision.layers.facts import FloatProduct
from dual_precision.models import build
from dual_precision.structure import structure_of

DUAL = modes(low="w2a3", high="w8a8")
THREE = {"low": "w2a2", "middle": "w4a4", "high": "w8a8"}


def parts_of(model, *image_shape: int):
    return structure_of(model, jax.ShapeDtypeStruct(image_shape, jnp.uint8))


@pytest.mark.parametrize(
    ("name", "macs"),
    # Stem 442,368; 2,359,296 a convolution, half of it where a stage begins; classifier 640.
    [("resnet20", 40_551_040), ("resnet8", 12_239_488)],
)
def test_multiply_accumulates(name, macs):
    parts = parts_of(build(name, num_classes=10, modes=DUAL), 32, 32, 3)
    assert {mode_cost(parts, mode).macs for mode in ("float", "low", "high")} == {macs}


def test_costs_of_a_small_mlp_by_hand():
    """Layers 64x16 (pixels, 8-bit weights), 16x16 (the mode's own), 16x4 (w8a8)."""
    parts = parts_of(build("mlp", num_classes=4, modes=DUAL, hidden=(16, 16)), 8, 8, 1)
    macs = 1024 + 256 + 64
    steps = 4 * (16 + 16 + 4)
    assert mode_cost(parts, "low") == Cost(
        weight_bytes=1024 + 256 * 2 // 8 + 64 + steps,
        bit_operations=1024 * 8 * 8 + 256 * 2 * 3 + 64 * 8 * 8,
        macs=macs,
    )
    assert mode_cost(parts, "high") == Cost(1024 + 256 + 64 + steps, macs * 64, macs)
    assert mode_cost(parts, "float") == Cost(4 * macs, macs * 32 * 32, macs)


def test_float_activations_count_32_bits_behind_the_first_layer():
    weights_only = modes(low="w2a32", high="w8a32")
    parts = parts_of(build("mlp", num_classes=4, modes=weights_only, hidden=(16, 16)), 8, 8, 1)
    assert mode_cost(parts, "low").bit_operations == 1024 * 64 + 256 * 2 * 32 + 64 * 64


def test_parts_of_bytes_are_counted_up():
    own = modes({"classifier": {"low": "w1a8"}}, low="w2a2")
    parts = parts_of(build("mlp", num_classes=1, modes=own, hidden=(3,)), 1, 1, 1)
    assert mode_cost(parts, "low").weight_bytes == 3 + 4 * 3 + 1 + 4  # 3 bits are one byte


def test_what_a_second_mode_need_not_redo():
    """The pixel layer has 64x16 weights; the rest sees other inputs in other modes."""
    own = modes({"dense1": {"low": "w3a32", "middle": "w8a32", "high": "w8a32"}}, **THREE)
    parts = parts_of(build("mlp", num_classes=4, modes=own, hidden=(16, 16)), 8, 8, 1)
    assert reused_bit_operations(parts.layers, "low", "high") == 1024 * 3 * 8
    assert reused_bit_operations(parts.layers, "middle", "high") == 1024 * 8 * 8
    assert reused_bit_operations(parts.layers, "high", "low") == 0
    assert reused_bit_operations(parts.layers, "float", "high") == 0
    first = parts_of(build("mlp", num_classes=4, modes=modes(**THREE), hidden=()), 8, 8, 1)
    assert reused_bit_operations(first.layers, "low", "high") == 0  # all modes quantize pixels
    assert reused_bit_operations({}, "low", "high") == 0


class Twice(nn.Module):
    """One layer, called twice."""

    modes: Modes = DUAL

    @nn.compact
    def __call__(self, x, *, precision):
        layer = Dense(4, self.modes, name="layer")
        return layer(layer(x, precision=precision), precision=precision)


def test_a_layer_that_is_called_twice_is_stored_once_and_billed_twice():
    """Its arithmetic and activations double; of the memory it is read once, as it is one."""
    layers = structure_of(Twice(), jax.ShapeDtypeStruct((4,), jnp.float32)).layers
    assert layer_cost(layers, ("layer",), "low") == Cost(
        weight_bytes=16 * 2 // 8 + 4 * 4, bit_operations=2 * 16 * 2 * 3, macs=2 * 16
    )
    found = layer_energy(layers, ("layer",), "low", ROUND)
    assert found.arithmetic == pytest.approx(2 * 16 * (6 + 0.5) / 1000)
    assert found.weights == pytest.approx(16 * 2 * 100 / 1000)
    assert found.activations == pytest.approx(2 * 4 * 3 * 2 * 10 / 1000)


def test_products_of_activations_are_floats_in_every_mode():
    """Two blocks of attention over 6 positions of 8 features, 2 heads; layers as without them."""
    model = build("transformer", modes=DUAL, features=8, depth=2, heads=2)
    structure = structure_of(model, jax.ShapeDtypeStruct((6,), jnp.uint8))
    own = FloatProduct(macs=2 * 6 * 6 * 8, inputs=3 * 6 * 8 + 2 * 6 * 6)
    paths = [("block1", "attention"), ("block2", "attention")]
    assert structure.products == dict.fromkeys(paths, own)
    assert not structure.classes.keys() & structure.products.keys()
    without = dataclasses.replace(structure, products={})
    for mode in ("low", "high", "float"):
        layers, whole = mode_cost(without, mode), mode_cost(structure, mode)
        assert whole.weight_bytes == layers.weight_bytes
        assert whole.macs - layers.macs == 2 * own.macs
        assert whole.bit_operations - layers.bit_operations == 2 * own.macs * 32 * 32
        more = [mode_energy(parts, mode, ROUND) for parts in (without, structure)]
        assert more[1].arithmetic - more[0].arithmetic == pytest.approx(2 * own.macs * 5 / 1000)
        assert more[1].activations - more[0].activations == pytest.approx(
            2 * own.inputs * 32 * 2 * 10 / 1000
        )
        assert more[1].weights == more[0].weights


def test_an_attention_that_is_called_twice_is_billed_twice():
    class Repeated(nn.Module):
        modes: Modes = DUAL

        @nn.compact
        def __call__(self, x, *, precision):
            attention = Attention(2, self.modes, name="attention")
            for _ in range(2):
                x, _ = attention(x, precision=precision)
            return x

    structure = structure_of(Repeated(), jax.ShapeDtypeStruct((3, 4), jnp.float32))
    assert structure.products["attention",] == FloatProduct(2 * 2 * 9 * 4, 2 * (36 + 18))


# -- energy ----------------------------------------------------------------------------------------

ROUND = EnergyModel(multiply=64.0, add=0.5, float_mac=5.0, dram=6400.0, sram=640.0)


@pytest.fixture(scope="module")
def parts():
    """64x16 (pixels, 8-bit weights), 16x16 (the mode's own), 16x4 (w8a8)."""
    own = modes(low="w2a3", high="w8a8", weights="w2a32")
    return parts_of(build("mlp", num_classes=4, modes=own, hidden=(16, 16)), 8, 8, 1)


@pytest.mark.parametrize(
    ("path", "mode", "arithmetic", "weights", "activations"),
    # Arithmetic in pJ of a MAC; weights and activations in bits.
    [
        ("dense1", "low", 1024 * (64 + 0.5), 1024 * 8, 64 * 8),
        ("dense2", "low", 256 * (6 + 0.5), 256 * 2, 16 * 3),
        ("dense2", "high", 256 * (64 + 0.5), 256 * 8, 16 * 8),
        ("dense2", "weights", 256 * 5.0, 256 * 2, 16 * 32),
        ("classifier", "float", 64 * 5.0, 64 * 32, 16 * 32),
    ],
)
def test_a_layer(parts, path, mode, arithmetic, weights, activations):
    found = layer_energy(parts.layers, (path,), mode, ROUND)
    assert found.arithmetic == pytest.approx(arithmetic / 1000)
    assert found.weights == pytest.approx(weights * 100 / 1000)
    assert found.activations == pytest.approx(activations * 2 * 10 / 1000)
    assert found.total == pytest.approx(found.arithmetic + found.weights + found.activations)


def test_a_mode_is_the_sum_of_its_layers(parts):
    each = [layer_energy(parts.layers, path, "low") for path in parts.layers]
    whole = mode_energy(parts, "low")
    assert whole.total == pytest.approx(sum(one.total for one in each))
    assert whole.weights == pytest.approx((1024 * 8 + 256 * 2 + 64 * 8) / 64 * 1.3)


def test_published_figures(parts):
    """An 8-bit multiplication and a 32-bit addition take 0.3 pJ, a float pair 4.6."""
    macs = 1024 + 256 + 64
    assert mode_energy(parts, "high").arithmetic == pytest.approx(macs * 0.3 / 1000)
    assert mode_energy(parts, "float").arithmetic == pytest.approx(macs * 4.6 / 1000)
