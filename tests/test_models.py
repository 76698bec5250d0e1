"""Networks: the published sizes, one tree for every mode, one trace for each, clear refusals."""

import re
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from dual_precision import Modes, Widths, modes
from dual_precision.models import IMAGE_MODELS, build, build_from
from dual_precision.models.resnet import shortcut, space_to_depth
from dual_precision.structure import structure_of
from dual_precision.training.compilation import RUNS_ONCE

DUAL = modes(low="w2a2", high="w8a8")
MLP = partial(build, "mlp", num_classes=3, hidden=(16, 16))
TINY_RESNET = partial(
    build,
    "resnet8",
    num_classes=3,
    stage_sizes=(1, 1),
    widths=(4, 8),
    mean=(0.5,) * 3,
    std=(1,) * 3,
)
TINY = {"mlp": (MLP, (2, 8, 8, 1)), "resnet": (TINY_RESNET, (2, 8, 8, 3))}
tiny = pytest.mark.parametrize("name", TINY)


def layers_of(model, *image_shape: int):
    return structure_of(model, jax.ShapeDtypeStruct(image_shape, jnp.uint8)).layers


def pixels(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).integers(0, 256, shape), jnp.uint8)


def initialise(model, images, **arguments):
    init = jax.jit(partial(model.init, **arguments), compiler_options=RUNS_ONCE)
    return init(jax.random.key(0), images)


@cache
def made(name: str, own: Modes = DUAL):
    factory, shape = TINY[name]
    model, images = factory(modes=own), pixels(*shape)
    return model, initialise(model, images, precision="float"), images


@cache
def program(name: str, own: Modes = DUAL):
    """(variables, images, precision=...) -> logits, one program for every test, and its traces."""
    model, _, _ = made(name, own)
    traces = []

    @partial(jax.jit, static_argnames="precision")
    def logits(variables, images, *, precision):
        traces.append((precision, images.shape, images.dtype))
        return model.apply(variables, images, precision=precision)

    return logits, traces


@pytest.mark.parametrize(
    ("name", "count"),
    [
        # He et al. 2015, table 6: 0.27 M, 0.46 M, 0.85 M and 1.7 M. Six more layers are a block of
        # each stage more, 97,216.
        ("resnet20", 269_722),
        ("resnet32", 464_154),
        ("resnet38", 269_722 + 3 * 97_216),
        ("resnet56", 853_018),
        ("resnet74", 269_722 + 9 * 97_216),
        ("resnet110", 1_727_962),
        ("resnet152", 269_722 + 22 * 97_216),
        # Projections: 512 + 64 and 2,048 + 128.
        ("resnet38b", 269_722 + 3 * 97_216 + 2_752),
        # Stem 432 + 32, stages 4,608 + 64, 13,824 + 128 and 55,296 + 256, classifier 650.
        ("resnet8", 75_290),
    ],
)
def test_parameter_counts_of_the_float_networks(name, count):
    model = build(name, num_classes=10, modes=Modes())
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.uint8)
    init = partial(model.init, precision="float")
    shapes = jax.eval_shape(init, jax.random.key(0), images)["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count


@tiny
def test_the_tree_is_the_same_whichever_mode_made_it(name):
    model, variables, images = made(name)
    expected = jax.eval_shape(lambda: variables)
    for precision in model.modes.names:
        for train in (False, True):
            init = partial(model.init, precision=precision, train=train)
            assert jax.eval_shape(init, jax.random.key(0), images) == expected


def test_so_are_its_values():
    model, variables, images = made("mlp")
    other = initialise(model, images, precision="low", train=True)
    jax.tree.map(np.testing.assert_array_equal, other, variables)


@tiny
def test_a_float_tree_is_part_of_the_quantized_one(name):
    """So that a float checkpoint starts a quantized run, from the same seed even bit for bit."""
    _, variables, _ = made(name)
    _, plain, _ = made(name, Modes())
    quantized = flatten_dict(variables["params"])
    for path, leaf in flatten_dict(plain["params"]).items():
        np.testing.assert_array_equal(quantized[path], leaf)


@tiny
def test_one_trace_for_each_precision(name):
    _, variables, images = made(name)
    logits, traces = program(name)
    seen = {}
    for _ in range(20):
        for precision in ("low", "high", "float"):
            out = np.asarray(logits(variables, images, precision=precision))
            np.testing.assert_array_equal(seen.setdefault(precision, out), out)
    own = [precision for precision, *of in traces if of == [images.shape, images.dtype]]
    assert sorted(own) == ["float", "high", "low"]
    assert len({out.tobytes() for out in seen.values()}) == 3


def test_jit_of_apply_itself_has_one_program_for_each_precision():
    model, variables, images = made("mlp")
    logits = jax.jit(model.apply, static_argnames=("precision", "train"))
    for _ in range(5):
        for precision in ("low", "high", "float"):
            assert logits(variables, images, precision=precision).shape == (2, 3)
    assert logits._cache_size() == 3


@tiny
def test_precision_is_named_in_every_call(name):
    model, variables, images = made(name)
    with pytest.raises(TypeError, match="precision"):
        model.apply(variables, images)
    with pytest.raises(TypeError, match="positional"):
        model.apply(variables, images, "low")


@tiny
@pytest.mark.parametrize("wrong", ["lower", "", "w2a2"])
def test_an_unknown_precision_lists_the_known_ones(name, wrong):
    model, variables, images = made(name)
    with pytest.raises(ValueError, match=r"is unknown: expected one of \['float', 'low', 'high'\]"):
        model.apply(variables, images, precision=wrong)


def test_an_unknown_model_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"'resnet18' is unknown.*resnet20"):
        build("resnet18", num_classes=3, modes=DUAL)


# Of more blocks than resnet56 and not otherwise different: that they are made is tested above.
DEEPER = ("resnet74", "resnet110", "resnet152")


@pytest.mark.parametrize("name", [name for name in IMAGE_MODELS if name.rstrip("b") not in DEEPER])
def test_every_model_runs(name):
    model = build(name, num_classes=3, modes=DUAL)
    images = jax.ShapeDtypeStruct((2, 16, 16, 1), jnp.uint8)
    call = partial(model.init_with_output, precision="high")
    logits, _ = jax.eval_shape(call, jax.random.key(0), images)
    assert (logits.shape, logits.dtype) == ((2, 3), jnp.float32)


@tiny
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x: x[0], r"expected \[N, H, W, C\]; add the axis"),
        (lambda x: x[None], r"expected \[N, H, W, C\]; leave out the axis"),
        (lambda x: x[:, :0], r"expected \[N, H, W, C\]; only N may be 0"),
        (lambda x: x.astype(jnp.int32), "expected uint8"),
        (lambda x: x.astype(jnp.bool_), "expected uint8"),
        (lambda x: jnp.concatenate([x, x], axis=-1), "channels: expected"),
    ],
)
def test_images_of_another_shape_or_dtype(name, spoil, message):
    model, variables, images = made(name)
    with pytest.raises(ValueError, match=message):
        model.apply(variables, spoil(images), precision="low")


def test_an_mlp_has_one_image_size():
    model, variables, _ = made("mlp")
    with pytest.raises(ValueError, match="81 channels: expected 64"):
        model.apply(variables, pixels(2, 9, 9, 1), precision="low")


@tiny
def test_no_images_give_no_logits(name):
    _, variables, images = made(name)
    logits, _ = program(name)
    assert logits(variables, images[:0], precision="low").shape == (0, 3)


@tiny
def test_normalised_floats_equal_pixels(name):
    model, variables, images = made(name)
    logits, _ = program(name)
    scaled = images.astype(jnp.float32) / 255
    mean, std = model.mean[0], model.std[0]
    np.testing.assert_allclose(
        logits(variables, (scaled - mean) / std, precision="float"),
        logits(variables, images, precision="float"),
        rtol=1e-4,
        atol=1e-5,
    )


@tiny
def test_images_do_not_see_each_other(name):
    _, variables, images = made(name)
    logits, _ = program(name)
    together = logits(variables, images, precision="low")
    alone = logits(variables, images[:1], precision="low")
    np.testing.assert_allclose(together[:1], alone, rtol=1e-5, atol=1e-5)


def test_a_layer_uses_its_own_width():
    """Dense2's low mode at 8 bits of weights computes as its high mode does on the same codes."""
    own = modes({"dense2": {"low": "w8a2"}}, low="w2a2", high="w8a8")
    model, variables, images = made("mlp", own)
    layers = layers_of(model, 8, 8, 1)
    assert str(layers[("dense2",)].table["low"]) == "w8a2"
    assert str(layers[("dense1",)].table["low"]) == "w8a32"
    same = modes({"dense2": {"low": "w2a2", "high": "w8a8"}}, low="w2a2", high="w8a8")
    plain, mixed, explicit = (
        program("mlp", modes_of)[0](variables, images, precision="low")
        for modes_of in (DUAL, own, same)
    )
    assert not np.array_equal(plain, mixed)
    np.testing.assert_array_equal(plain, explicit)


def test_widths_reach_the_layers_inside_blocks():
    own = modes({"stage2_*/conv1": {"low": "w5a3"}}, low="w2a2", high="w8a8")
    layers = layers_of(TINY_RESNET(modes=own), 8, 8, 3)
    assert str(layers[("stage2_block1", "conv1")].table["low"]) == "w5a3"
    assert str(layers[("stage2_block1", "conv1")].table["high"]) == "w8a8"
    assert str(layers[("stage2_block1", "conv2")].table["low"]) == "w2a2"
    assert str(layers[("stage1_block1", "conv1")].table["low"]) == "w2a2"


def test_stem_and_classifier_keep_8_bits():
    layers = layers_of(TINY_RESNET(modes=DUAL), 8, 8, 3)
    assert str(layers[("stem",)].table["low"]) == "w8a32"
    assert str(layers[("classifier",)].table["low"]) == "w8a8"


@tiny
@pytest.mark.parametrize("name_or_pattern", ["conv9", "stage3_*"])
def test_widths_of_an_unknown_layer_are_refused(name, name_or_pattern):
    """When it is initialised, called, and described, each time with the known ones."""
    _, variables, images = made(name)
    own = modes({name_or_pattern: {"low": "w4a4"}}, low="w2a2", high="w8a8")
    model = TINY[name][0](modes=own)
    says = rf"unknown layers \['{re.escape(name_or_pattern)}'\]: expected some of \['classifier'"
    with pytest.raises(ValueError, match=says):
        jax.eval_shape(partial(model.init, precision="low"), jax.random.key(0), images)
    with pytest.raises(ValueError, match=says):
        jax.eval_shape(partial(model.apply, precision="low"), variables, images)
    with pytest.raises(ValueError, match=says):
        layers_of(model, *images.shape[1:])


@pytest.mark.parametrize(
    ("name", "kept", "says"),
    [
        ("mlp", {"dense2": 0}, r"kept blocks \['dense2'\]: expected none, the blocks that this"),
        (
            "resnet",
            {"dense2": 0},
            r"kept blocks \['dense2'\]: expected some of \['stage1_block1'\]",
        ),
        ("resnet", {"stage1_block1": 7}, "kept block 'stage1_block1' is 7: expected 1, or 0 to"),
        ("resnet", {"stage1_block1": 0.5}, "is 0.5: expected 1, or 0"),
        ("resnet", {"stage1_block1": np.ones(2)}, "expected 1, or 0"),
        ("resnet", ["stage1_block1"], r"kept=\['stage1_block1'\]: expected a mapping from blocks"),
    ],
)
def test_blocks_that_cannot_be_left_out(name, kept, says):
    model, variables, images = made(name)
    with pytest.raises(ValueError, match=says):
        model.apply(variables, images, precision=Widths("low", kept=kept))


@pytest.mark.parametrize(
    ("name", "wrong", "says"),
    [
        ("resnet", {"widths": (4,)}, r"stage_sizes=\(1, 1\) and widths=\(4,\): expected as many"),
        ("resnet", {"widths": (8, 4)}, r"widths=\(8, 4\): expected none below the one before"),
        ("resnet", {"space_to_depth": 0}, "space_to_depth=0: expected 1 or more"),
        ("resnet", {"std": (1,)}, "expected as many of both"),
        ("mlp", {"std": (0.0,)}, r"std=\(0.0,\): expected .* no std of 0"),
    ],
)
def test_attributes_that_make_no_model(name, wrong, says):
    factory, shape = TINY[name]
    with pytest.raises(ValueError, match=says):
        layers_of(factory(modes=DUAL, **wrong), *shape[1:])


def test_widths_may_shrink_where_no_shortcut_changes_them():
    for changed in ({"transitions": True}, {"projections": True}):
        made = layers_of(TINY["resnet"][0](modes=DUAL, widths=(8, 4), **changed), 8, 8, 3)
        assert made["classifier",].kernel == (4, 3), changed


def test_modes_that_share_a_normalisation():
    """One set of leaves for both; the float tree stays a part of it."""
    own = modes(low="w2a2", high="w8a8", norms={"low": "high"})
    model, variables, images = made("mlp", own)
    assert set(variables["params"]["norm1"]) == set(variables["batch_stats"]["norm1"])
    assert set(variables["params"]["norm1"]) == {"float", "high"}
    assert set(variables["params"]["dense2"]["input_step"]) == {"low", "high"}
    train = jax.jit(partial(model.apply, precision="low", train=True, mutable=["batch_stats"]))
    _, updates = train(variables, images)
    moved = updates["batch_stats"]["norm1"]
    assert np.any(moved["high"]["mean"] != 0)
    np.testing.assert_array_equal(moved["float"]["mean"], 0)


def test_shortcut_has_no_parameters():
    x = jnp.arange(2.0 * 4 * 4 * 3).reshape(2, 4, 4, 3)
    out = shortcut(x, 5, 2)
    np.testing.assert_array_equal(out[..., :3], x[:, ::2, ::2])
    np.testing.assert_array_equal(out[..., 3:], 0.0)


def test_space_to_depth_moves_pixels_only():
    x = jnp.arange(4 * 6 * 2.0).reshape(1, 4, 6, 2)
    out = space_to_depth(x, 2)
    assert out.shape == (1, 2, 3, 8)
    np.testing.assert_array_equal(out[0, 1, 2], x[0, 2:4, 4:6].reshape(-1))
    with pytest.raises(ValueError, match="expected a multiple of 2"):
        space_to_depth(x[:, :3], 2)


@pytest.mark.parametrize(
    ("description", "says"),
    [
        ({}, "a network of {}: expected a name, modes and attributes"),
        ({"name": "mlp"}, "expected a name, modes and attributes"),
        ({"name": ["mlp"], "modes": {}}, "expected a name, modes and attributes"),
        ({"name": "mlp", "modes": ["low"]}, "expected a name, modes and attributes"),
        ({"name": "mlp", "modes": {"low": 2}, "num_classes": 3}, "precision 2: expected w<bits>"),
        ({"name": "mlp", "modes": {}, "layers": [1], "stored": 8}, r"layers=\[1\]: expected {"),
        ({"name": "mlp", "modes": {}, "norms": 3, "stored": 8}, "network 'mlp': .*: expected"),
        ({"name": "mlp", "modes": {}, "stored": "8"}, "stored='8': expected an integer"),
        ({"name": "mlp", "modes": {}}, "network 'mlp': .*num_classes.*: expected what that model"),
        ({"name": "mlp", "modes": {}, "num_classes": 3, "colour": 1}, "'colour'.*: expected what"),
    ],
    ids=str,
)
def test_descriptions_of_no_network(description, says):
    with pytest.raises(ValueError, match=says):
        build_from(description)


def test_a_list_is_as_good_as_a_tuple():
    given, same = (build("mlp", num_classes=3, modes=DUAL, hidden=own) for own in ([8], (8,)))
    assert (given, hash(given)) == (same, hash(same))
