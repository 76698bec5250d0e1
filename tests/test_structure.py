"""What a model is made of: layers, norms, who feeds whom, whose leaf is whose."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from dual_precision import Modes, modes
from dual_precision.layers import Dense, SwitchableBatchNorm
from dual_precision.layers.facts import Norm
from dual_precision.models import build
from dual_precision.structure import TooManyLayers, mode_order, structure_of
from dual_precision.tasks.classification import Classification

DUAL = modes(low="w2a3", high="w8a8")


def described(model, *image_shape: int, most: int | None = None):
    return structure_of(model, jax.ShapeDtypeStruct(image_shape, jnp.uint8), most)


def mlp(own=DUAL, **more):
    return build("mlp", num_classes=4, modes=own, **{"hidden": (16, 16), **more})


# -- layers ----------------------------------------------------------------------------------------


def test_layers_come_in_the_order_of_the_forward_pass():
    model = build("resnet8", num_classes=10, modes=DUAL, stage_sizes=(1, 1), widths=(4, 8))
    layers = described(model, 8, 8, 3).layers
    assert ["/".join(path) for path in layers] == [
        "stem",
        "stage1_block1/conv1",
        "stage1_block1/conv2",
        "stage2_block1/conv1",
        "stage2_block1/conv2",
        "classifier",
    ]
    conv = layers[("stage2_block1", "conv1")]
    assert conv.kernel == (3, 3, 4, 8)
    assert conv.macs == 4 * 4 * 9 * 4 * 8
    assert conv.inputs == 8 * 8 * 4
    assert (conv.calls, conv.matrix, conv.signed) == (1, False, False)
    assert layers[("classifier",)].matrix


def test_the_example_of_a_task_is_what_is_asked_for():
    assert described(mlp(), 8, 8, 1) == structure_of(mlp(), Classification((8, 8, 1)).example)


def test_a_float_network_stores_no_codes():
    layers = described(mlp(Modes()), 4, 4, 1).layers
    assert {layer.stored for layer in layers.values()} == {None}


def test_the_stored_width_is_the_one_that_is_said():
    for stored in (5, 8):
        own = modes(a="w3a3", b="w5a2", stored=stored)
        layers = described(mlp(own), 4, 4, 1).layers
        assert layers[("dense2",)].stored == stored
        assert layers[("dense1",)].stored == 8  # pinned to 8 bits


class Parts(nn.Module):
    """Norms of all kinds, a layer that is called twice, a signed one, and a second input."""

    modes: Modes = DUAL

    @nn.compact
    def __call__(self, x, state, *, precision):
        def norm(name):
            return SwitchableBatchNorm(self.modes, epsilon=0.5, momentum=0.75, name=name)

        x = norm("first")(x, precision=precision)
        shared, twice = Dense(4, self.modes, signed=True, name="shared"), norm("twice")
        for _ in range(2):
            x = twice(shared(x, precision=precision), precision=precision)
        x = norm("behind")(nn.relu(x + state["carried"]), precision=precision)
        y = Dense(2, self.modes, name="last")(x, precision=precision)
        return norm("end")(y, precision=precision), state


@pytest.fixture(scope="module")
def parts():
    float32 = jax.ShapeDtypeStruct((4,), jnp.float32)
    return structure_of(Parts(), (float32, {"carried": float32}))


def test_a_layer_that_is_called_twice(parts):
    """One layer, with the work of both calls."""
    assert list(parts.layers) == [("shared",), ("last",)]
    shared = parts.layers[("shared",)]
    assert (shared.calls, shared.macs, shared.inputs) == (2, 2 * 4 * 4, 2 * 4)
    assert shared.kernel == (4, 4)
    assert shared.signed
    assert parts.layers[("last",)].calls == 1
    assert not parts.layers[("last",)].signed


def test_norms_and_what_feeds_them(parts):
    assert parts.norms == {
        (name,): Norm(epsilon=0.5, momentum=0.75) for name in ("first", "twice", "behind", "end")
    }
    assert parts.sources == {("twice",): ("shared",), ("end",): ("last",)}
    assert list(parts.first_norms) == [("first",)]
    assert parts.norm_calls == {("first",): 1, ("twice",): 2, ("behind",): 1, ("end",): 1}


class Table(nn.Module):
    """Positions: a module that is called without an input, and says nothing of itself."""

    @nn.compact
    def __call__(self):
        return self.param("table", nn.initializers.zeros, (1, 4))


class Block(nn.Module):
    """A layer, called by position or by name."""

    modes: Modes
    by_name: bool

    @nn.compact
    def __call__(self, x, *, precision):
        layer = Dense(4, self.modes, name="inner")
        return layer(x=x, precision=precision) if self.by_name else layer(x, precision=precision)


class Named(nn.Module):
    """Calls its block by name."""

    modes: Modes = DUAL
    by_name: bool = False

    @nn.compact
    def __call__(self, x, *, precision):
        block = Block(self.modes, self.by_name, name="block")
        return block(x=x + Table(name="positions")(), precision=precision)


def test_only_layers_and_norms_are_asked_for_their_input():
    example = jax.ShapeDtypeStruct((4,), jnp.float32)
    assert list(structure_of(Named(), example).layers) == [("block", "inner")]
    message = r"layer 'block/inner' is called with \['precision', 'x'\] by name: expected its input"
    with pytest.raises(ValueError, match=message):
        structure_of(Named(by_name=True), example)


def test_too_many_layers():
    assert len(described(mlp(), 8, 8, 1, most=3).layers) == 3
    with pytest.raises(TooManyLayers, match="more layers than the 2 listed"):
        described(mlp(), 8, 8, 1, most=2)


@pytest.mark.parametrize(
    ("name", "example", "counts"),
    [
        (
            "resnet20",
            (8, 8, 1),
            {"num_classes": 4, "widths": (2,) * 3, "stage_sizes": (10**9,) * 3},
        ),
        ("lstm", (8,), {"features": 2, "depth": 10**9}),
        ("transformer", (8,), {"features": 2, "heads": 1, "depth": 10**9}),
    ],
)
def test_a_billion_layers_are_found_before_anything_is_made_of_each(name, example, counts):
    """As a forged file may ask for; a list of them would fill the memory."""
    with pytest.raises(TooManyLayers, match="more layers than the 5 listed"):
        described(build(name, modes=DUAL, **counts), *example, most=5)


# -- leaves ----------------------------------------------------------------------------------------


def test_whose_leaf_is_whose():
    structure = described(mlp(), 8, 8, 1)
    assert structure.shapes["params", "dense1", "kernel"].shape == (64, 16)
    owners = {"/".join(path): structure.owner(path) for path in structure.shapes}
    assert owners["params/dense2/kernel"] is None
    assert owners["params/dense2/step"] is None
    assert owners["params/classifier/bias"] is None
    assert owners["params/dense2/input_step/low"] == "low"
    assert owners["params/norm1/high/scale"] == "high"
    assert owners["batch_stats/norm1/float/var"] == "float"


def test_what_a_mode_reads():
    structure = described(mlp(), 8, 8, 1)

    def read(*names):
        return {"/".join(path) for path in structure.leaves_of(names)}

    shared = read()
    assert "params/dense2/kernel" in shared
    assert not any("low" in path or "high" in path or "float" in path for path in shared)
    low = {f"params/norm{n}/low/{leaf}" for n in (1, 2) for leaf in ("scale", "bias")}
    low |= {f"batch_stats/norm{n}/low/{leaf}" for n in (1, 2) for leaf in ("mean", "var")}
    low |= {"params/dense2/input_step/low", "params/classifier/input_step/low"}
    assert read("low") - shared == low
    assert read("low", "high", "float") == {"/".join(path) for path in structure.shapes}
    assert structure.leaves_of(["low"])["params", "dense2", "kernel"] == (16, 16)


def test_what_a_mode_reads_of_a_shared_normalisation():
    """The normalisation of the other mode, but input steps of its own."""
    own = modes(low="w2a2", high="w8a8", norms={"low": "high"})
    structure = described(mlp(own), 8, 8, 1)
    for read, leaf in (
        (True, "params/norm1/high/scale"),
        (True, "batch_stats/norm1/high/var"),
        (False, "params/norm1/float/scale"),
        (True, "params/dense2/input_step/low"),
        (False, "params/dense2/input_step/high"),
    ):
        assert structure.is_read(tuple(leaf.split("/")), ["low"]) is read, leaf


def test_a_range_of_inputs_is_no_part_of_a_shared_normalisation():
    """Whatever else a layer has of each mode is of that mode, as its input steps are."""
    own = modes(low="w2a2", high="w8a8", norms={"low": "high"})
    structure = described(build("mlp_minmax", num_classes=3, modes=own, hidden=(8, 8)), 8, 8, 1)
    for mode, other in (("low", "high"), ("high", "low")):
        ranges = {path for path in structure.shapes if "range" in path and mode in path}
        assert ranges
        assert all(structure.is_read(path, [mode]) for path in ranges)
        assert not any(structure.is_read(path, [other]) for path in ranges)


# -- names and orders ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["step", "kernel", "scale", "input_step", "classifier", "norm1"])
def test_a_mode_may_not_be_called_as_something_in_the_tree(name):
    with pytest.raises(ValueError, match=rf"{name}.*rename"):
        described(mlp(modes(**{name: "w2a2"})), 4, 4, 1)


def test_modes_from_the_narrowest_to_the_widest():
    """By the bits of all weights, so that a table of one layer may change the order."""
    own = modes(high="w8a8", low="w2a2", middle="w4a4")
    assert mode_order(described(mlp(own), 8, 8, 1)) == ["low", "middle", "high"]
    wide = modes({"dense2": {"low": "w8a8"}}, high="w8a8", low="w3a3", middle="w4a4")
    assert mode_order(described(mlp(wide), 8, 8, 1)) == ["middle", "high", "low"]


def test_modes_without_an_order():
    with pytest.raises(ValueError, match="a model without modes"):
        mode_order(described(mlp(Modes()), 8, 8, 1))
    with pytest.raises(ValueError, match=r"'dense2' has float weights in \['high'\]"):
        mode_order(described(mlp(modes(low="w2a2", high="w32a32")), 8, 8, 1))


def test_a_structure_is_a_value():
    one, other = described(mlp(), 8, 8, 1), described(mlp(), 8, 8, 1)
    assert one == other
    assert one != dataclasses.replace(other, first_norms=[("norm1",)])
