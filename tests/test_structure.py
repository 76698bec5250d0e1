"""What a network costs, counted by hand."""

import pytest

from dual_precision import Modes, modes
from dual_precision.costs import Cost, mode_cost, reused_bit_operations
from dual_precision.models import build
from dual_precision.structure import describe_layers

DUAL = modes(low="w2a3", high="w8a8")


@pytest.mark.parametrize(
    ("name", "macs"),
    # Stem 442,368; 2,359,296 a convolution, half of it where a stage begins; classifier 640.
    [("resnet20", 40_551_040), ("resnet8", 12_239_488)],
)
def test_multiply_accumulates(name, macs):
    layers = describe_layers(build(name, num_classes=10, modes=DUAL), (32, 32, 3))
    assert {mode_cost(layers, mode).macs for mode in ("float", "low", "high")} == {macs}


def test_layers_come_in_the_order_of_the_forward_pass():
    layers = describe_layers(
        build("resnet8", num_classes=10, modes=DUAL, stage_sizes=(1, 1), widths=(4, 8)), (8, 8, 3)
    )
    assert ["/".join(path) for path in layers] == [
        "stem",
        "stage1_block1/conv1",
        "stage1_block1/conv2",
        "stage2_block1/conv1",
        "stage2_block1/conv2",
        "classifier",
    ]
    assert layers[("stage2_block1", "conv1")].kernel == (3, 3, 4, 8)
    assert layers[("stage2_block1", "conv1")].macs == 4 * 4 * 9 * 4 * 8


def test_costs_of_a_small_mlp_by_hand():
    """Layers 64x16 (pixels, 8-bit weights), 16x16 (the mode's own), 16x4 (w8a8)."""
    layers = describe_layers(build("mlp", num_classes=4, modes=DUAL, hidden=(16, 16)), (8, 8, 1))
    macs = 1024 + 256 + 64
    steps = 4 * (16 + 16 + 4)
    assert mode_cost(layers, "low") == Cost(
        weight_bytes=1024 + 256 * 2 // 8 + 64 + steps,
        bit_operations=1024 * 8 * 8 + 256 * 2 * 3 + 64 * 8 * 8,
        macs=macs,
    )
    assert mode_cost(layers, "high") == Cost(1024 + 256 + 64 + steps, macs * 64, macs)
    assert mode_cost(layers, "float") == Cost(4 * macs, macs * 32 * 32, macs)


def test_float_activations_count_32_bits_behind_the_first_layer():
    weights_only = modes(low="w2a32", high="w8a32")
    layers = describe_layers(
        build("mlp", num_classes=4, modes=weights_only, hidden=(16, 16)), (8, 8, 1)
    )
    assert mode_cost(layers, "low").bit_operations == 1024 * 64 + 256 * 2 * 32 + 64 * 64


def test_parts_of_bytes_are_counted_up():
    own = modes({"classifier": {"low": "w1a8"}}, low="w2a2")
    layers = describe_layers(build("mlp", num_classes=1, modes=own, hidden=(3,)), (1, 1, 1))
    assert mode_cost(layers, "low").weight_bytes == 3 + 4 * 3 + 1 + 4  # 3 bits are one byte


def test_a_float_network_stores_no_codes():
    layers = describe_layers(build("mlp", num_classes=4, modes=Modes(), hidden=(8,)), (4, 4, 1))
    assert {layer.stored for layer in layers.values()} == {None}


def test_stored_width_is_the_widest_mode():
    layers = describe_layers(
        build("mlp", num_classes=4, modes=modes(a="w3a3", b="w5a2")), (4, 4, 1)
    )
    assert layers[("dense2",)].stored == 5
    assert layers[("dense1",)].stored == 8


def test_what_a_second_mode_need_not_redo():
    """The pixel layer has 64x16 weights; the rest sees other inputs in other modes."""
    own = modes({"dense1": {"low": "w3a32", "middle": "w8a32", "high": "w8a32"}}, **THREE)
    layers = describe_layers(build("mlp", num_classes=4, modes=own, hidden=(16, 16)), (8, 8, 1))
    assert reused_bit_operations(layers, "low", "high") == 1024 * 3 * 8
    assert reused_bit_operations(layers, "middle", "high") == 1024 * 8 * 8
    assert reused_bit_operations(layers, "high", "low") == 0
    assert reused_bit_operations(layers, "float", "high") == 0
    first = describe_layers(build("mlp", num_classes=4, modes=own, hidden=()), (8, 8, 1))
    assert reused_bit_operations(first, "low", "high") == 0  # it quantizes the pixels, in each mode
    assert reused_bit_operations({}, "low", "high") == 0


THREE = {"low": "w2a2", "middle": "w4a4", "high": "w8a8"}
