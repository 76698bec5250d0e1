"""A space of a residual network: its first layer, and blocks that may be left out."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dual_precision import modes
from dual_precision.costs import mode_cost
from dual_precision.models import build_from
from dual_precision.precision import Widths, modes_from, parse
from dual_precision.search.edits import Edit, edited
from dual_precision.search.space import SpaceError, space_from, space_of
from dual_precision.search.supernet import widths_of
from dual_precision.structure import structure_of
from dual_precision.tasks.classification import Classification
from dual_precision.tasks.task import Network
from dual_precision.training.methods import sampled
from dual_precision.training.state import initial_variables

CHOICES = ("w1a1", "w2a2", "w4a4")
DUAL = modes(low="w2a2", high="w8a8")
BLOCKS = ("stage2_block1", "stage3_block1")
RGB = Classification((8, 8, 3))


def small_resnet(**own):
    return build_from({"name": "resnet8_fast", "num_classes": 3, **DUAL.to_json(), **own})


def test_the_layer_that_reads_pixels_may_be_in_the_space():
    structure = structure_of(small_resnet(), RGB.example)
    space = space_of(structure, "low", CHOICES, {"stem": ("w4a32", "w8a32")})
    assert space.layers[0] == "stem"
    assert space.cost(space.same("w2a2")) == mode_cost(structure, "low").bit_operations
    assert [path[0] for path in space.uniform()] == ["w8a32"] * 3
    candidate = ("w4a32", "w1a1", *("w2a2",) * 5)
    assert not space.is_uniform(candidate)
    own = modes_from({**DUAL.to_json(), "layers": space.widths(candidate)})
    made = structure_of(small_resnet(**own.to_json()), RGB.example)
    assert mode_cost(made, "low").bit_operations == space.cost(candidate)
    asked = widths_of(space, candidate)
    assert "stem" in asked.weights
    assert "stem" not in asked.activations
    for wrong in ({"stem": ("w4a4",)}, {"stem": ("w4a32", "w4a4")}, {"stage2_conv": ("w4a32",)}):
        with pytest.raises(SpaceError, match="expected all"):
            space_of(structure, "low", CHOICES, wrong)
    with pytest.raises(SpaceError, match=r"choices of layers \['x'\]: expected some of"):
        space_of(structure, "low", CHOICES, {"x": CHOICES})
    with pytest.raises(SpaceError, match="expected bits of weights: w4a32"):
        edited(space, Edit("add", "stem", "w4a4"))


def test_a_block_is_left_out_whole():
    structure = structure_of(small_resnet(), RGB.example)
    space = space_of(structure, "low", CHOICES, None, BLOCKS)
    assert space_from(json.loads(json.dumps(space.to_json()))) == space
    drawn = [space.draw([{}] * len(space.layers), np.random.default_rng(s)) for s in range(60)]
    assert {space.skipped(path) for path in drawn} >= {(), BLOCKS[:1], BLOCKS[1:]}
    for path in drawn:
        assert space.contains(path)
        by_block = dict(zip(space.layers, path, strict=True))
        for block in BLOCKS:
            both = [text for layer, text in by_block.items() if layer.startswith(block)]
            assert len({text == "skip" for text in both}) == 1
    torn = ("w2a2", "skip", "w2a2", "w2a2", "w2a2", "w2a2")
    assert not space.contains(torn)
    out = ("w2a2", "skip", "skip", "w2a2", "w1a1", "w2a2")
    network = small_resnet(skipped=list(BLOCKS[:1]))
    own = modes_from({**DUAL.to_json(), "layers": space.widths(out)})
    made = structure_of(network.clone(modes=own), RGB.example)
    assert mode_cost(made, "low").bit_operations == space.cost(out)
    assert all("skip" not in path for path in space.uniform())
    with pytest.raises(SpaceError, match=r"blocks \['stem'\] to skip"):
        space_of(structure, "low", CHOICES, None, ("stem",))
    with pytest.raises(SpaceError, match="expected w<bits>a<bits>"):
        edited(space, Edit("add", "stage2_conv", "skip"))


def test_leaving_out_is_a_value_and_gives_the_network_without_the_block():
    network, images = small_resnet(), np.full((2, 8, 8, 3), 77, np.uint8)
    images[1, 2:5] = 200
    variables = initial_variables(network, RGB.example, 0)
    traces = []

    def logits(variables, kept):
        traces.append(1)
        return network.apply(variables, images, precision=Widths("low", kept=kept))

    apply = jax.jit(logits)
    for out in ((), BLOCKS[:1]):
        found = apply(variables, {block: jnp.int32(block not in out) for block in BLOCKS})
        alone = small_resnet(skipped=list(out))
        names = structure_of(alone, RGB.example).params
        part = {
            key: {name: own for name, own in tree.items() if key != "params" or name in names}
            for key, tree in variables.items()
        }
        wanted = jax.jit(lambda v, m=alone: m.apply(v, images, precision="low"))(part)
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    assert len(traces) == 1
    with pytest.raises(ValueError, match=r"skipped blocks \['stage9_block1'\]: expected some of"):
        structure_of(small_resnet(skipped=["stage9_block1"]), RGB.example)
    with pytest.raises(ValueError, match=r"kept blocks \['stem'\]"):
        network.apply(variables, images, precision=Widths("low", kept={"stem": 0}))


def test_choices_of_single_layers_leave_those_of_the_others_in_the_cost():
    """Each layer counts by its MACs: a list that is the same for one of them changes nothing."""
    structure = structure_of(small_resnet(), RGB.example)
    choices, own = (parse("w2a2"), parse("w4a4")), (parse("w4a32"), parse("w8a32"))
    means = {choices: (20 / 2 + 32 * 6) / 3072, own: (12 / 2 * 8 + 32 * 6 + 32 * 8) / 3072}
    macs = {name: layer.macs for name, layer in structure.layers.items()}
    share = macs["stem",] / sum(macs.values())
    for layers, expected in (
        ({}, means[choices]),
        ({"stage2_conv": choices}, means[choices]),
        ({"stem": own}, share * means[own] + (1 - share) * means[choices]),
        ({"/".join(path): own for path in macs}, means[own]),
    ):
        loss = sampled.SampledLoss("low", choices, layers)
        assert loss.cost(structure, {}) == pytest.approx(expected)


def test_training_leaves_blocks_out():
    loss = sampled.SampledLoss("low", (parse("w2a2"),), skippable=BLOCKS)
    path = jax.jit(lambda key: loss.path(Network(small_resnet(), RGB), key).kept)
    drawn = [path(jax.random.key(seed)) for seed in range(20)]
    assert {tuple(int(own[block]) for block in BLOCKS) for own in drawn} == {
        (0, 0), (0, 1), (1, 0), (1, 1)
    }  # fmt: skip
    loss = sampled.SampledLoss("low", (parse("w2a2"),), skippable=BLOCKS[:1], skipped=BLOCKS[1:])
    drawn = [loss.path(Network(small_resnet(), RGB), jax.random.key(seed)) for seed in range(20)]
    assert {tuple(int(own.kept[block]) for block in BLOCKS) for own in drawn} == {(0, 0), (1, 0)}
