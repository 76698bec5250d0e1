"""The energy model, by hand."""

import pytest

from dual_precision import modes
from dual_precision.costs import EnergyModel, layer_energy, mode_energy
from dual_precision.models import build
from dual_precision.structure import describe_layers

ROUND = EnergyModel(multiply=64.0, add=0.5, float_mac=5.0, dram=6400.0, sram=640.0)


@pytest.fixture(scope="module")
def layers():
    """64x16 (pixels, 8-bit weights), 16x16 (the mode's own), 16x4 (w8a8)."""
    own = modes(low="w2a3", high="w8a8", weights="w2a32")
    return describe_layers(build("mlp", num_classes=4, modes=own, hidden=(16, 16)), (8, 8, 1))


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
def test_a_layer(layers, path, mode, arithmetic, weights, activations):
    found = layer_energy(layers, (path,), mode, ROUND)
    assert found.arithmetic == pytest.approx(arithmetic / 1000)
    assert found.weights == pytest.approx(weights * 100 / 1000)
    assert found.activations == pytest.approx(activations * 2 * 10 / 1000)
    assert found.total == pytest.approx(found.arithmetic + found.weights + found.activations)


def test_a_mode_is_the_sum_of_its_layers(layers):
    parts = [layer_energy(layers, path, "low") for path in layers]
    whole = mode_energy(layers, "low")
    assert whole.total == pytest.approx(sum(part.total for part in parts))
    assert whole.weights == pytest.approx((1024 * 8 + 256 * 2 + 64 * 8) / 64 * 1.3)


def test_published_figures(layers):
    """An 8-bit multiplication and a 32-bit addition take 0.3 pJ, a float pair 4.6."""
    macs = 1024 + 256 + 64
    assert mode_energy(layers, "high").arithmetic == pytest.approx(macs * 0.3 / 1000)
    assert mode_energy(layers, "float").arithmetic == pytest.approx(macs * 4.6 / 1000)
