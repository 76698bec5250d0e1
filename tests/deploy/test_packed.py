"""The packed file: a mode reads its prefix and gives the same bits; no damage goes unnoticed."""

import contextlib
import dataclasses
import io
import json
import os
import re
from functools import cache, partial
from types import SimpleNamespace

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from hypothesis import strategies as st
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from dual_precision.deploy import (
    PackedError,
    PackedFile,
    Predictor,
    inspect_packed,
    load_packed,
    save_packed,
)
from dual_precision.deploy.cascade.rule import Point
from dual_precision.deploy.file import container, contents, writer
from dual_precision.models import build_from
from dual_precision.primitives import nested
from dual_precision.structure import mode_order, structure_of
from dual_precision.tasks.classification import Classification
from experiments.deploy import pack, report
from experiments.deploy.cascade_evaluation import cascade_settings

MLP = {"name": "mlp", "num_classes": 4, "modes": {"low": "w2a2", "high": "w8a8"}}
TINY = {**MLP, "num_classes": 2, "hidden": [2]}
# Every width from 1 to 8, three modes; middle needs fewer bits than low in one layer.
MIXED = {
    **MLP,
    "modes": {"high": "w8a8", "low": "w2a2", "middle": "w4a4"},
    "hidden": [8] * 4,
    "stored": 8,
    "layers": {
        "dense2": {"low": "w1a1", "middle": "w3a2", "high": "w5a32"},
        "dense3": {"low": "w6a6", "middle": "w4a4", "high": "w7a7"},
    },
}
CONV = {**MLP, "name": "resnet8", "stage_sizes": [1], "widths": [4]}
FAST = {"name": "resnet8_fast", "num_classes": 10, "modes": MLP["modes"]}
FAST |= {"mean": [0.5] * 3, "std": [0.25] * 3}


def as_if_trained(network, shape):
    """(model, variables) with every value away from where init puts it; compiles nothing."""
    model, rng = build_from(network), np.random.default_rng(0)
    init = partial(model.init, precision="float")
    tree = jax.eval_shape(init, jax.random.key(0), jax.ShapeDtypeStruct((1, *shape), jnp.uint8))

    def value(path, leaf):
        positive = {"step", "input_step", "scale", "var"} & set(path)
        scale = 0.02 if "step" in path else 1.0
        array = scale * (
            rng.uniform(0.2, 2, leaf.shape) if positive else rng.normal(size=leaf.shape)
        )
        return jnp.asarray(array, jnp.float32)

    leaves = flatten_dict(tree)
    return model, unflatten_dict({path: value(path, leaf) for path, leaf in leaves.items()})


@cache
def packed(name):
    """(content of the file, model, variables), by the name of a network above."""
    network, shape = {
        "tiny": (TINY, (1, 2, 1)),
        "mlp": ({**MLP, "hidden": [8, 8]}, (4, 4, 1)),
        "mixed": (MIXED, (4, 4, 1)),
        "conv": (CONV, (4, 4, 1)),
    }[name]
    model, variables = as_if_trained(network, shape)
    return content_of(model, variables, network, shape), model, variables


def content_of(model, variables, network, shape, **arguments):
    written = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "write_parts", lambda _, parts: written.append(b"".join(parts)))
        example = Classification(shape).example
        save_packed("", model, variables, network, example, **arguments)
    return written[0]


def load_bytes(content, precision=None):
    return load_packed(io.BytesIO(content), precision)


def images(*shape):
    return jnp.asarray(np.random.default_rng(1).integers(0, 256, (3, *shape)), jnp.uint8)


def resealed(content, change):
    """The file with `change` made to its header's JSON, and a checksum that fits."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    about = {k: json.loads(v) for k, v in header["__metadata__"].items() if k not in FIXED}
    view = SimpleNamespace(about=about, tensors=header)
    change(view)
    header["__metadata__"] = {
        **{key: header["__metadata__"][key] for key in FIXED},
        **{key: json.dumps(value) for key, value in view.about.items()},
    }
    text = json.dumps(header, separators=(",", ":")).encode()
    raw = len(text).to_bytes(8, "little") + text
    at = 8 + len(container.SEAL)
    return raw[:at] + container.header_seal(raw) + raw[at + 64 :] + content[8 + length :]


FIXED = ("format", "sha256")


@partial(jax.jit, static_argnames=("model", "precision"))
def logits(model, variables, precision):
    return model.apply(variables, images(4, 4, 1), precision=precision)


def test_every_mode_gives_the_bits_of_the_network_that_was_packed():
    content, model, variables = packed("mlp")
    again, loaded = load_bytes(content)
    assert again == model
    for mode in ("low", "high"):
        expected = logits(model, variables, mode)
        assert float(jnp.ptp(expected)) > 0
        for own in (loaded, load_bytes(content, mode)[1]):
            np.testing.assert_array_equal(logits(model, own, mode), expected)


def test_so_does_every_width_in_layers_of_their_own():
    """Not jitted: XLA rounds bias - mean * gain otherwise than within one program."""
    content, model, variables = packed("mixed")
    assert list(inspect_packed(io.BytesIO(content)).bytes_read) == ["low", "middle", "high"]
    loaded = {last: load_bytes(content, last)[1] for last in ("low", "middle", "high")}
    enough = {"low": [*loaded], "middle": ["middle", "high"], "high": ["high"]}
    for mode, prefixes in enough.items():
        expected = model.apply(variables, images(4, 4, 1), precision=mode)
        for last in prefixes:
            found = model.apply(loaded[last], images(4, 4, 1), precision=mode)
            np.testing.assert_array_equal(found, expected, err_msg=f"{mode} of {last}")


def test_so_do_convolutions():
    content, model, variables = packed("conv")
    for mode in ("low", "high"):
        found = logits(model, load_bytes(content, mode)[1], mode)
        np.testing.assert_array_equal(found, logits(model, variables, mode))


class Counting(io.FileIO):
    """A file that knows how far it was read."""

    count = farthest = 0

    def read(self, size=-1):
        part = super().read(size)
        self.count += len(part)
        self.farthest = max(self.farthest, self.tell())
        return part


def test_a_mode_reads_its_prefix_alone(tmp_path):
    content, _, _ = packed("mlp")
    path = tmp_path / "net.safetensors"
    path.write_bytes(content)
    needed = inspect_packed(path).bytes_read
    assert needed["low"] < needed["high"] == len(content)
    for mode, size in needed.items():
        with Counting(path) as file:
            load_packed(file, mode)
        assert file.count == file.farthest == size


def test_reading_on_upgrades_low(tmp_path):
    """The wider mode reads what is left, and gives what a whole load gives."""
    content, _, _ = packed("mlp")
    path = tmp_path / "net.safetensors"
    path.write_bytes(content)
    with Counting(path) as counting, PackedFile(counting) as file:
        found = [(mode, file.load(mode)[1]) for mode in ("low", "high", "low")]
        assert counting.count == counting.farthest == len(content)
    for mode, loaded in found:
        jax.tree.map(np.testing.assert_array_equal, loaded, load_bytes(content, mode)[1])
    path.write_bytes(content[: inspect_packed(path).bytes_read["low"]])
    with PackedFile(path) as file:
        file.load("low")
        with pytest.raises(PackedError, match="truncated"):
            file.load("high")


def test_what_was_not_read_is_refused():
    model, loaded = load_bytes(packed("mlp")[0], "low")
    assert not [path for path in flatten_dict(loaded) if {"high", "float"} & set(path)]
    for mode in ("high", "float"):
        with pytest.raises(ValueError, match=f"no values of precision '{mode}'.*'low'"):
            model.apply(loaded, images(4, 4, 1), precision=mode)
    for mode in ("float", "middle"):
        with pytest.raises(PackedError, match=rf"'{mode}'.*expected one of \['low', 'high'\]"):
            load_bytes(packed("mlp")[0], mode)


def test_the_beginning_of_a_file_is_the_low_model():
    content, model, variables = packed("mlp")
    begin = content[: inspect_packed(io.BytesIO(content)).bytes_read["low"]]
    found = logits(model, load_bytes(begin, "low")[1], "low")
    np.testing.assert_array_equal(found, logits(model, variables, "low"))
    with pytest.raises(PackedError, match=r"truncated.*'high' needs"):
        load_bytes(begin)


@hypothesis.given(
    st.floats(2.0**-100, 2.0**100, width=32), st.integers(1, 8), st.integers(1, 8), st.booleans()
)
def test_a_code_comes_back_from_the_middle_of_its_cell(step, bits, stored, neighbour):
    bits, stored = sorted((bits, stored))
    step = jnp.float32(np.nextafter(np.float32(step), np.float32(1)) if neighbour else step)
    codes = jnp.arange(256, dtype=jnp.int32)
    there_and_back = _there_and_back(codes, step, jnp.int32(bits), jnp.int32(stored))
    expected = np.arange(256) % 2**bits - 2 ** (bits - 1)
    np.testing.assert_array_equal(there_and_back, expected)


@jax.jit
def _there_and_back(codes, step, bits, stored):
    codes = (codes & ((1 << bits) - 1)) - (1 << (bits - 1))
    return nested.encode(nested.decode(codes, step[None], bits, stored), step[None], bits, stored)


@pytest.mark.parametrize("step", [0.0, -0.1, 1e-39, np.inf, np.nan])
def test_steps_that_codes_do_not_survive_are_refused(step):
    _, model, variables = packed("tiny")
    leaves = flatten_dict(variables)
    leaves["params", "dense1", "step"] = jnp.full(2, step, jnp.float32)
    with pytest.raises(ValueError, match="'dense1': its weights do not survive"):
        content_of(model, unflatten_dict(leaves), TINY, (1, 2, 1))


def test_a_second_mode_costs_two_percent(monkeypatch):
    """The file of one mode is all of high; low adds its normalisation and its input steps."""

    def blank(kernel, step, stored, *_):  # the size is in question, not what the planes hold
        return np.zeros((stored, -(-kernel.size // 8)), np.uint8), True

    monkeypatch.setattr(contents, "_to_planes", blank)
    both = content_of(*as_if_trained(FAST, (32, 32, 3)), FAST, (32, 32, 3))
    alone = {**FAST, "modes": {"high": "w8a8"}}
    one = content_of(*as_if_trained(alone, (32, 32, 3)), alone, (32, 32, 3))
    assert len(both) <= 1.02 * len(one)
    assert len(both) < 500_000
    assert inspect_packed(io.BytesIO(both)).bytes_read["low"] < 0.28 * len(both)


def test_it_is_a_safetensors_file():
    content, _, variables = packed("mlp")
    tensors = load_safetensors(content)
    bias = variables["params"]["classifier"]["bias"]
    np.testing.assert_array_equal(tensors["params/classifier/bias"], bias)
    assert tensors["params/dense2/kernel[0:2]"].shape == (2, 8)


def test_no_flipped_bit_goes_unnoticed():
    content, _, _ = packed("tiny")
    for at in range(len(content)):
        for bit in {0, 7, at % 8}:
            damaged = bytearray(content)
            damaged[at] ^= 1 << bit
            with pytest.raises(PackedError):
                load_bytes(bytes(damaged))


def test_no_cut_and_no_addition_goes_unnoticed():
    content, _, _ = packed("tiny")
    for end in range(len(content)):
        with pytest.raises(PackedError):
            load_bytes(content[:end])
    with pytest.raises(PackedError, match="something was added"):
        load_bytes(content + b"\0")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b"\x89PNG\r\n\x1a\n" * 20, "not a packed file"),
        (b"\xff" * 8 + b"{}", "not a packed file, or cut"),
        (
            save_safetensors({"stem/kernel": np.zeros(3, np.float32)}),
            "not a packed file, but another safetensors",
        ),
    ],
)
def test_other_files_are_told_apart(tmp_path, content, message):
    path = tmp_path / "net"
    path.write_bytes(content)
    with pytest.raises(PackedError, match=f"net: {message}") as caught:
        load_packed(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(PackedError, match="not a file"):
        load_packed(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"No such file: expected a packed file: .*gone"):
        load_packed(tmp_path / "gone")


def test_a_newer_version_is_named():
    newer = packed("tiny")[0].replace(b"packed 1", b"packed 2", 1)
    with pytest.raises(PackedError, match="format version 2, and this program reads 1"):
        load_bytes(newer)


def renamed(tensors, old, new):
    entries = {new if name == old else name: entry for name, entry in tensors.items()}
    tensors.clear()
    tensors.update(entries)


EXAMPLE = {"shape": [4, 4, 1], "dtype": "uint8"}
LIES = {
    "a huge tensor": lambda h: h.tensors["params/dense1/step"].update(shape=[2**60]),
    "many axes": lambda h: h.tensors["params/dense1/step"].update(shape=[1] * 10**5),
    "a huge end": lambda h: h.about["sections"][0].__setitem__(1, 2**60),
    "a negative end": lambda h: h.about["sections"][0].__setitem__(1, -8),
    "half a byte": lambda h: h.about["sections"][0].__setitem__(1, 0.5),
    "no sections": lambda h: h.about.update(sections=[]),
    "a negative start": lambda h: h.tensors["params/dense1/step"].update(data_offsets=[-4, 4]),
    "another shape": lambda h: h.tensors["params/classifier/bias"].update(shape=[4, 1]),
    "a billion blocks": lambda h: h.about.update(
        network={**FAST, "stage_sizes": [10**9] * 3}, example=EXAMPLE | {"shape": [32, 32, 3]}
    ),
    "huge layers": lambda h: h.about["network"].update(hidden=[2**60]),
    "huge images": lambda h: h.about["example"].update(shape=[2**40] * 3),
    "no pixels": lambda h: h.about["example"].update(shape=[0, 32, 3]),
    "a wall of pixels": lambda h: h.about["example"].update(shape=[100_000, 100_000, 3]),
    "a million axes": lambda h: h.about["example"].update(shape=[1] * 10**6),
    "no example": lambda h: h.about.pop("example"),
    "100,000 modes": lambda h: h.about["network"].update(
        modes={f"m{i}": "w2a2" for i in range(10**5)}
    ),
    "4,000 patterns": lambda h: h.about["network"].update(
        layers={f"d{i}*": {"low": "w2a2"} for i in range(4000)}
    ),
    "a million stages": lambda h: h.about.update(
        network={**FAST, "stage_sizes": [1] * 10**6}, example=EXAMPLE | {"shape": [32, 32, 3]}
    ),
    "a million means": lambda h: h.about["network"].update(mean=[0.5] * 10**6),
    "a list of metadata": lambda h: h.about.update(metadata=[]),
    "no metadata": lambda h: h.about.update(metadata=None),
    "half an image": lambda h: h.about["example"].update(shape=[4, 4, 0.5]),
    "a negative image": lambda h: h.about["example"].update(shape=[4, 4, -1]),
    "no dtype": lambda h: h.about["example"].update(dtype="O8"),
    "a dtype of no bytes": lambda h: h.about["example"].update(dtype=[["x", "uint8"]]),
    "many inputs": lambda h: h.about.update(example=[EXAMPLE] * 10**4),
    "other widths": lambda h: h.about["network"]["modes"].update(low="w3a2"),
    "another model": lambda h: h.about["network"].update(name="lenet"),
    "an unknown attribute": lambda h: h.about["network"].update(colour="red"),
    "a layer without a tensor": lambda h: h.about["layers"].update(dense3={}),
    "a lost tensor": lambda h: renamed(h.tensors, "params/dense1/step", "x"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_sealed_lie_is_refused_before_it_costs_anything(lie):
    content = resealed(packed("mlp")[0], LIES[lie])
    with pytest.raises(PackedError) as caught:
        load_bytes(content)
    assert "emory" not in str(caught.value)
    with pytest.raises(PackedError):
        Predictor(io.BytesIO(content))


def test_a_tensor_of_another_dtype_is_refused():
    """Of the right shape: such a file is of another program."""
    _, model, variables = packed("mlp")
    structure = structure_of(model, Classification((4, 4, 1)).example)
    order = mode_order(structure)
    sections = contents.to_sections(variables, structure, order)
    tensors = {name: array for section in sections.values() for name, array in section.items()}
    for name, array in tensors.items():
        other = np.float32 if array.dtype == np.uint8 else np.uint8
        changed = {**tensors, name: np.ones_like(array, dtype=other)}
        with pytest.raises(ValueError, match=r"expected (uint8|float32)$"):
            contents.from_sections(changed, structure, order, "high")


POINT = dict.fromkeys([field.name for field in dataclasses.fields(Point)], 1.0)
CASCADE = {"first": "low", "then": "high", "threshold": 1.0, "expected": POINT}


@pytest.mark.parametrize(
    "metadata",
    [
        {"results": None},
        {"results": [{"test": 97.0}]},
        {"results": [{"mode": ["low"], "validation": 97.0}]},
        {"results": [{"mode": "low", "validation": "97"}]},
        {"cascade": [1]},
        {"cascade": {**CASCADE, "threshold": 10**400}},
        {"cascade": {**CASCADE, "mirror": "yes"}},
        {"cascade": {**CASCADE, "expected": [1]}},
        {"cascade": {**CASCADE, "expected": {**POINT, "accuracy": "high"}}},
    ],
    ids=str,
)
def test_odd_metadata_are_told_by_the_report_and_harm_no_answer(metadata):
    content, model, variables = packed("mlp")
    content = resealed(content, lambda h: h.about.update(metadata=metadata))
    info = inspect_packed(io.BytesIO(content))
    with pytest.raises(PackedError, match="the metadata of the file") as caught:
        report.packed_report(info)
    assert len(str(caught.value)) < 600
    _, loaded = load_bytes(content)
    np.testing.assert_array_equal(logits(model, loaded, "low"), logits(model, variables, "low"))
    assert Predictor(io.BytesIO(content)).cascade is None


@pytest.mark.parametrize("run", [None, [], {"experiment": 3}, {"experiment": {"dataset": 4}}])
def test_a_run_that_is_none_names_no_data_set(run):
    content = resealed(packed("mlp")[0], lambda h: h.about.update(metadata={"run": run}))
    with pytest.raises(ValueError, match="does not say on what it was trained"):
        cascade_settings(inspect_packed(io.BytesIO(content)))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=4,
)


@hypothesis.given(st.data())
def test_nothing_but_a_packed_error_comes_of_any_header(data):
    """Any value in the place of any other, under a checksum that fits."""
    content, _, _ = packed("tiny")

    def change(header):
        spot = data.draw(st.sampled_from([header.about, header.tensors]))
        while True:
            keys = [key for key in spot if key != "__metadata__"]
            key = data.draw(st.sampled_from(keys))
            if not isinstance(spot[key], dict) or not spot[key] or data.draw(st.booleans()):
                break
            spot = spot[key]
        spot[key] = data.draw(json_values)

    new = resealed(content, change)
    with contextlib.suppress(PackedError):  # and none where metadata became other metadata
        load_bytes(new)


@hypothesis.given(st.binary(max_size=200), st.booleans())
def test_nothing_but_a_packed_error_comes_of_any_bytes(noise, dressed):
    with pytest.raises(PackedError):
        load_bytes(noise[:8] + container.SEAL + noise[8:] if dressed else noise)


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "net.safetensors"
    writer.write_parts(path, [b"old"])

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        writer.write_parts(path, [b"new"])
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"network": {**TINY, "num_classes": 3}}, "describes another model"),
        ({"metadata": {"test": float("nan")}}, "must be JSON"),
        ({"variables": {"params": {}}}, "variables with 'batch_stats"),
    ],
)
def test_what_cannot_be_packed_is_refused(arguments, message):
    _, model, variables = packed("tiny")
    with pytest.raises(ValueError, match=message):
        content_of(
            **{"model": model, "variables": variables, "network": TINY, **arguments},
            shape=(1, 2, 1),
        )


def test_so_is_a_layer_that_has_codes_in_some_modes_alone():
    network = {**MLP, "modes": {"low": "w2a2", "high": "w32a8"}, "hidden": [2, 2]}
    with pytest.raises(ValueError, match=r"'dense2' has float weights in \['high'\]"):
        content_of(*as_if_trained(network, (1, 2, 1)), network, (1, 2, 1))


def test_the_report_of_a_network_of_text(capsys):
    report.report_command("notebooks/networks/austen-w2a8-w8a8.safetensors")
    printed = capsys.readouterr().out
    assert ": transformer, inputs uint8 [128]\n\n| mode |" in printed
    assert re.search(r"\| +low \|.*\| +1\.91e\+10 \|", printed)
    # The two products of an attention: 2 * 128 * 128 * 128 MACs of floats.
    assert re.search(r"\| +block4/attention \| +\| 4,194,304 \| float \| float \| +0 \|", printed)


def test_what_a_run_says_of_itself_and_a_run_that_trained_no_mode(tmp_path, monkeypatch):
    """Folders are not for others to read; a mode that was not trained is none to pass on."""
    network = {**MLP, "hidden": [8, 8]}
    own = {"dataset": "digits", "mode": "high", "init": str(tmp_path / "f.st")}
    config = {"preset": "digits", "experiment": own, "network": network, "trained": ["high"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    model, variables = as_if_trained(network, (8, 8, 1))
    monkeypatch.setattr(pack, "load", lambda workdir: (model, variables))
    pack.pack_run(tmp_path, tmp_path / "net.safetensors")
    info = inspect_packed(tmp_path / "net.safetensors")
    assert info.trained == ("high",)
    assert info.metadata["run"]["experiment"] == {**own, "init": "f.st"}
    (tmp_path / "config.json").write_text(json.dumps({**config, "trained": ["float"]}))
    with pytest.raises(
        ValueError, match=r"trained \['float'\], and a packed file holds \['low', 'h"
    ):
        pack.pack_run(tmp_path, tmp_path / "none.safetensors")
    assert not (tmp_path / "none.safetensors").exists()


def test_the_command_packs_a_run_and_reports_it(tmp_path, monkeypatch, capsys):
    network = {**MLP, "hidden": [8, 8]}
    config = {"preset": "digits", "experiment": {"dataset": "digits"}, "network": network}
    rows = [{"mode": "low", "validation": 96.0, "test": 97.125}]
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "results.json").write_text(json.dumps({"rows": rows}))
    model, variables = as_if_trained(network, (8, 8, 1))
    monkeypatch.setattr(pack, "load", lambda workdir: (model, variables))
    pack.pack_run(tmp_path, tmp_path / "net.safetensors")
    info = inspect_packed(tmp_path / "net.safetensors")
    assert info.metadata["results"] == rows
    assert info.metadata["run"]["experiment"] == {"dataset": "digits"}
    lines = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in report.packed_report(info).split("\n")
    ]
    weights = 64 * 8 * 8 + 8 * 8 * 2 + 8 * 4 * 8
    assert lines[2][:3] == ["low", f"{info.bytes_read['low']:,}", f"{weights:,}"]
    assert [line[-1] for line in lines[2:4]] == ["97.12", ""]
    (dense2,) = [line for line in lines if line[:1] == ["dense2"]]
    # 64 weights of 2 or 8 bits and 8 steps; BitOps 64 * 4 and 64 * 64; see test_energy.py.
    assert dense2[1:9] == ["8x8", "64", "w2a2", "w8a8", "48", "96", "256", "4.1e+03"]
    assert "Energy is a model, not a measurement" in report.packed_report(info)
    report.report_command(str(tmp_path / "net.safetensors"))
    said = capsys.readouterr().out
    assert said.endswith(f"net.safetensors: mlp, images 8x8x1\n\n{report.packed_report(info)}\n")
    with pytest.raises(ValueError, match=r"there is no folder .*nowhere: expected"):
        pack.pack_run(tmp_path / "nowhere", tmp_path / "net.safetensors")
