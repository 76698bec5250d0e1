"""What a file says of its widths: how wide weights are stored, whose normalisation a mode uses."""

import dataclasses
import io
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact_variables import as_trained

from dual_precision import modes
from dual_precision.deploy import (
    PackedError,
    Predictor,
    inspect_packed,
    load_packed,
    save_packed,
    to_integer,
)
from dual_precision.deploy.file import container, writer
from dual_precision.deploy.planes.bit_layers import to_bit_layers
from dual_precision.models import build_from
from dual_precision.tasks.classification import Classification

SHAPE = (4, 4, 1)
EXAMPLE = Classification(SHAPE).example
PUBLISHED = Path(__file__).parents[2] / "notebooks/networks/cifar10-w2a2-w8a8.safetensors"
PAIRS = [("w2a2", "w4a4"), ("w1a2", "w3a3"), ("w4a4", "w8a8")]
each_pair = pytest.mark.parametrize(
    ("pair", "stored"), [(p, n) for p in PAIRS for n in (4, 8) if int(p[1][1]) <= n]
)


def network_of(table):
    return {"name": "mlp", "num_classes": 16, "hidden": [16, 16], **table.to_json()}


def packed(network, variables=None):
    """(content of the file, model, variables)"""
    model = build_from(network)
    variables = as_trained(model, EXAMPLE) if variables is None else variables
    written = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "write_parts", lambda _, parts: written.append(b"".join(parts)))
        save_packed("", model, variables, network, EXAMPLE, {"note": 1})
    return written[0], model, variables


def header_of(content):
    return container.read_header(io.BytesIO(content))


def resealed(content, **about):
    """The file with other entries in its header."""
    header = header_of(content)
    tensors = container.tensors_within(header, content[header.start :])
    sections = {}
    for name, (end, _) in header.sections.items():
        known = {key for section in sections.values() for key in section}
        sections[name] = {
            key: tensors[key]
            for key, tensor in header.tensors.items()
            if tensor.end <= end and key not in known
        }
    entries = {**header.about, **about}
    return b"".join(writer.to_bytes(sections, {k: v for k, v in entries.items() if v is not None}))


def images(count=3):
    return jnp.asarray(np.random.default_rng(1).integers(0, 256, (count, *SHAPE)), jnp.uint8)


@partial(jax.jit, static_argnames=("model", "precision"))
def logits(model, variables, precision):
    return model.apply(variables, images(), precision=precision)


@each_pair
def test_modes_that_are_narrower_than_the_store(pair, stored):
    """The file holds the planes that are read; file, its prefix and integers give the same bits."""
    network = network_of(modes(low=pair[0], high=pair[1], stored=stored))
    content, model, variables = packed(network)
    low, high = (int(text[1]) for text in pair)
    names = {name for name in header_of(content).tensors if "dense2/kernel" in name}
    assert names == {f"params/dense2/kernel[{a}:{b}]" for a, b in ((0, low), (low, high))}
    info = inspect_packed(io.BytesIO(content))
    assert info.layers["dense2",].stored == info.network["stored"] == stored
    again, loaded = load_packed(io.BytesIO(content))
    prefix = load_packed(io.BytesIO(content[: info.bytes_read["low"]]), "low")[1]
    integer_model, integers = to_integer(again, loaded, EXAMPLE)
    for mode in ("low", "high"):
        wanted = logits(model, variables, mode)
        assert float(jnp.ptp(wanted)) > 0
        np.testing.assert_array_equal(logits(again, loaded, mode), wanted)
        np.testing.assert_array_equal(logits(integer_model, integers, mode), wanted)
    np.testing.assert_array_equal(logits(again, prefix, "low"), logits(model, variables, "low"))
    integer_model, integers = to_integer(again, prefix, EXAMPLE)
    np.testing.assert_array_equal(
        logits(integer_model, integers, "low"), logits(model, variables, "low")
    )


@each_pair
def test_what_was_read_is_packed_as_the_same_file(pair, stored):
    network = network_of(modes(low=pair[0], high=pair[1], stored=stored))
    content, _, _ = packed(network)
    assert packed(network, load_packed(io.BytesIO(content))[1])[0] == content


def test_the_store_is_no_matter_of_the_modes_at_hand():
    """Parameters of w2/w8 are those of w2/w4 too: the planes of low are the same bytes."""
    wide, model, variables = packed(network_of(modes(low="w2a2", high="w8a8")))
    narrow, _, _ = packed(network_of(modes(low="w2a2", high="w4a4")), variables)
    name = "params/dense2/kernel[0:2]"
    planes = [
        container.tensors_within(header_of(c), c[header_of(c).start :])[name]
        for c in (wide, narrow)
    ]
    np.testing.assert_array_equal(*planes)
    _, loaded = load_packed(io.BytesIO(narrow))
    np.testing.assert_array_equal(logits(model, loaded, "low"), logits(model, variables, "low"))


def test_a_predictor_of_four_bits(tmp_path):
    content, model, variables = packed(network_of(modes(low="w2a2", high="w4a4")))
    (tmp_path / "net").write_bytes(content)
    predictor = Predictor(tmp_path / "net", batch_sizes=(3,))
    for mode in ("low", "high"):
        found = predictor.predict(np.asarray(images()), mode)
        np.testing.assert_array_equal(found, logits(model, variables, mode))


def test_a_file_of_another_stored_width_is_refused():
    """Of its description, and of what this program makes of it."""
    content, _, _ = packed(network_of(modes(low="w2a2", high="w4a4")))
    about = header_of(content).about
    assert {entry["stored"] for entry in about["layers"].values()} == {8}
    message = r"layer 'dense2' was packed with weights stored in 8 bits, .* 'mlp' with 4: a step"
    with pytest.raises(PackedError, match=message):
        load_packed(io.BytesIO(resealed(content, network={**about["network"], "stored": 4})))
    layers = {path: {**entry, "stored": 6} for path, entry in about["layers"].items()}
    with pytest.raises(PackedError, match=r"'dense1' was packed with weights stored in 6 bits"):
        load_packed(io.BytesIO(resealed(content, layers=layers)))


def test_the_published_file_is_packed_as_the_same_sections(tmp_path):
    """What was read has the same tensors, byte for byte."""
    info = inspect_packed(PUBLISHED)
    assert info.image_shape == (32, 32, 3)
    assert {layer.stored for layer in info.layers.values()} == {8}
    save_packed(tmp_path / "net", *load_packed(PUBLISHED), info.network, info.example)
    with container.opened(PUBLISHED) as old, container.opened(tmp_path / "net") as new:
        was, now = container.read_header(old), container.read_header(new)
    assert now.sections == was.sections
    assert now.tensors == was.tensors
    assert now.about["network"] == was.about["network"]


SHARED = {
    "the widest lends": {"middle": "high"},
    "the narrowest lends": {"high": "low"},
    "one for all": {"low": "middle", "high": "middle"},
    "that of float": {"low": "float", "middle": "float"},
}


@pytest.mark.parametrize("norms", SHARED.values(), ids=SHARED)
def test_modes_share_a_normalisation(norms):
    """Its values are once in the file, where the first mode reads them; each mode is as it was."""
    table = modes(low="w2a2", middle="w4a4", high="w8a8", norms=norms)
    content, model, variables = packed(network_of(table))
    order, header = ["low", "middle", "high"], header_of(content)
    owners = [table.norm_of(mode) for mode in order]
    kept = [name for name in header.tensors if name.startswith("norm/norm1/")]
    assert kept == [f"norm/norm1/{owner}" for owner in dict.fromkeys(owners)]
    for owner in owners:
        first = order[owners.index(owner)]
        end, _ = header.sections[first]
        before = [e for e, _ in header.sections.values() if e < end]
        tensor = header.tensors[f"norm/norm1/{owner}"]
        assert max(before, default=0) <= tensor.start < tensor.end <= end
    for mode in order:
        _, loaded = load_packed(io.BytesIO(content), mode)
        wanted = logits(model, variables, mode)
        np.testing.assert_array_equal(logits(model, loaded, mode), wanted)
        found = logits(*to_integer(model, loaded, EXAMPLE), mode)
        np.testing.assert_array_equal(found, wanted)


def test_a_predictor_holds_what_its_modes_share(tmp_path):
    table = modes(low="w2a2", high="w8a8", norms={"low": "high"})
    content, model, variables = packed(network_of(table))
    (tmp_path / "net").write_bytes(content)
    alone = Predictor(tmp_path / "net", batch_sizes=(3,), precisions=["low"])
    found = alone.predict(np.asarray(images()), "low")
    np.testing.assert_array_equal(found, logits(model, variables, "low"))


def test_planes_take_the_normalisation_that_a_mode_shares():
    apart, shared = (modes(low="w2a2", high="w8a8", norms=norms) for norms in ({}, {"low": "high"}))
    model = build_from(network_of(shared))
    variables = as_trained(build_from(network_of(apart)), EXAMPLE)
    _, low = to_bit_layers(model, variables, EXAMPLE, "low")
    _, high = to_bit_layers(build_from(network_of(apart)), variables, EXAMPLE, "high")
    jax.tree.map(np.testing.assert_array_equal, low["params"]["norm1"], high["params"]["norm1"])


def test_widths_by_patterns_and_for_some_modes(tmp_path):
    """A file says the map as it was given; what it means for a layer stands in its table."""
    own = {"dense*": {"low": "w1a1"}, "dense2": {"middle": "w6a6"}}
    table = modes(own, low="w2a2", middle="w4a4", high="w8a8")
    content, model, variables = packed(network_of(table))
    info = inspect_packed(io.BytesIO(content))
    assert info.network["layers"] == own
    assert str(info.layers["dense1",].table["low"]) == "w1a1"
    assert [str(info.layers["dense2",].table[mode]) for mode in ("low", "middle", "high")] == [
        "w2a2",
        "w6a6",
        "w8a8",
    ]
    _, loaded = load_packed(io.BytesIO(content))
    integer_model, integers = to_integer(model, loaded, EXAMPLE)
    for mode in ("low", "middle", "high"):
        wanted = logits(model, variables, mode)
        np.testing.assert_array_equal(logits(model, loaded, mode), wanted)
        np.testing.assert_array_equal(logits(integer_model, integers, mode), wanted)
    unknown = {**info.network, "layers": {"conv*": {"low": "w1a1"}}}
    with pytest.raises(PackedError, match=r"unknown layers \['conv\*'\]: expected some of"):
        load_packed(io.BytesIO(resealed(content, network=unknown)))


def test_info_of_other_inputs_is_no_image():
    info = inspect_packed(io.BytesIO(packed(network_of(modes(low="w2a2")))[0]))
    for example in (jax.ShapeDtypeStruct((8,), jnp.int32), (EXAMPLE,)):
        with pytest.raises(ValueError, match=r"expected one of uint8 images \[H, W, C\]"):
            _ = dataclasses.replace(info, example=example).image_shape
