"""GGUF: every weight of a mode, in blocks that the package `gguf` reads."""

import contextlib
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dual_precision import modes
from dual_precision.deploy import load_packed, save_packed
from dual_precision.models import build_from
from dual_precision.structure import structure_of
from dual_precision.tasks.language import NextByte
from dual_precision.training.state import initial_variables

pytest.importorskip("gguf")

from dual_precision.deploy.export.gguf import load_gguf, read_gguf, save_gguf

EXAMPLE = NextByte(4).example
KINDS = {2: "Q4_0", 4: "Q4_1", 5: "Q5_1", 7: "Q8_0", 8: "Q8_0"}


def network_of(bits, features=32, layers=None):
    return {
        "name": "transformer", "features": features, "depth": 1, "heads": 2, "context": 4,
        **modes(low=f"w{bits}a8", high="w8a8", layers=layers).to_json(),
    }  # fmt: skip


@cache
def started(features):
    """Variables for every width of low: all store 8 bits, and steps for 4 serve the others too."""
    return initial_variables(build_from(network_of(4, features)), EXAMPLE, 0)


def packed(folder, bits, features=32, layers=None, change=lambda variables: variables):
    network = network_of(bits, features, layers)
    model = build_from(network)
    own = started(features) if layers is None else initial_variables(model, EXAMPLE, 0)
    path = folder / f"{bits}"
    variables = change(jax.tree.map(lambda leaf: leaf, own))  # dicts that it may change
    save_packed(path, model, variables, network, EXAMPLE)
    return path


@pytest.mark.parametrize("bits", KINDS)
def test_weights_come_back(tmp_path, bits):
    """Up to 7 bits with the rounding of float16 alone; at 8 the nearest of a block."""
    path = packed(tmp_path, bits)
    save_gguf(tmp_path / "low.gguf", path, "low")
    reader = pytest.importorskip("gguf").GGUFReader(str(tmp_path / "low.gguf"))
    kinds = {own.name: own.tensor_type.name for own in reader.tensors}
    assert kinds["params/block1/up/kernel"] == KINDS[bits]
    found = read_gguf(tmp_path / "low.gguf")
    model, variables = load_packed(path, "low")
    own = variables["params"]["block1"]["up"]
    kernel = np.asarray(own["kernel"])  # middles of the cells of what was read
    span = np.asarray(own["step"]) * 2.0**8
    apart = np.abs(found["params/block1/up/kernel"].T - kernel) / span
    assert apart.max() < (2**-10 if bits < 8 else 2**-8)
    assert not np.array_equal(found["params/block1/up/kernel"].T, np.zeros_like(kernel))
    assert {"/".join(leaf) for leaf in structure_of(model, EXAMPLE).leaves_of(["low"])} >= {*found}


def test_five_bits_where_no_number_needs_the_fifth(tmp_path):
    """Weights below 0 alone: their blocks are as long as those of others."""

    def below_zero(variables):
        own = variables["params"]["block1"]["up"]
        own["kernel"] = -jnp.abs(own["kernel"])
        return variables

    path = packed(tmp_path, 5, change=below_zero)
    save_gguf(tmp_path / "low.gguf", path, "low")
    found = read_gguf(tmp_path / "low.gguf")["params/block1/up/kernel"].T
    own = load_packed(path, "low")[1]["params"]["block1"]["up"]
    apart = np.abs(found - np.asarray(own["kernel"])) / (np.asarray(own["step"]) * 2.0**8)
    assert apart.max() < 2**-10


@pytest.mark.parametrize("size", [1e-8, 1e-6, 1e-4, 1e-2, 1e6, 1e8])
@pytest.mark.parametrize("bits", KINDS)
def test_the_bound_holds_whatever_the_steps(tmp_path, bits, size):
    """float16 has few numbers below 1e-4, and none above 65504: such a tensor is float32."""

    def one_channel(variables):
        for own in (variables["params"]["block1"]["up"], variables["params"]["embed"]):
            own["kernel"] = own["kernel"].at[..., 0].multiply(size)
            own["step"] = own["step"].at[0].multiply(size)
        return variables

    path = packed(tmp_path, bits, change=one_channel)
    save_gguf(tmp_path / "low.gguf", path, "low")
    found, variables = read_gguf(tmp_path / "low.gguf"), load_packed(path, "low")[1]["params"]
    own, table = variables["block1"]["up"], variables["embed"]["kernel"]
    kernel, step = np.asarray(own["kernel"]), np.asarray(own["step"]) * 2.0 ** (8 - bits)
    apart = np.abs(found["params/block1/up/kernel"].T - kernel).max(axis=0)
    bound = 2**-10 * (2**bits - 1) * step if bits < 8 else 2**-7 * np.abs(kernel).max(axis=0)
    assert (apart <= bound * (1 + 1e-6)).all()
    apart = np.abs(found["params/embed/kernel"] - table).max(axis=1)
    assert (apart <= 2**-7 * np.abs(table).max(axis=1) * (1 + 1e-6)).all()


def test_a_changed_byte_gives_no_other_error(tmp_path):
    """A file of GGUF has no sum that a reader could check: of a number it may stay unseen."""
    save_gguf(tmp_path / "low.gguf", packed(tmp_path, 2), "low")
    content, generator = (tmp_path / "low.gguf").read_bytes(), np.random.default_rng(0)
    for at in generator.integers(0, 3000, 100):
        changed = bytearray(content)
        changed[at] ^= 1 << int(generator.integers(8))
        (tmp_path / "changed").write_bytes(changed)
        with contextlib.suppress(ValueError):
            load_gguf(tmp_path / "changed")


def test_the_network_on_the_weights_that_are_read(tmp_path):
    path, tokens = packed(tmp_path, 4), jnp.arange(8, dtype=jnp.uint8).reshape(2, 4)
    save_gguf(tmp_path / "low.gguf", path, "low")
    model, variables = load_gguf(tmp_path / "low.gguf")
    found = model.apply(variables, tokens, precision="float")
    network, own = load_packed(path, "low")
    expected = np.asarray(network.apply(own, tokens, precision="low"))
    assert np.abs(found - expected).max() < 0.1 * np.abs(expected).max()


def test_what_is_no_file_of_ours(tmp_path):
    path = packed(tmp_path, 2)
    with pytest.raises(
        ValueError,
        match=r"precision 'float', .*no float weights: expected one of \['low'",
    ):
        save_gguf(tmp_path / "none", path, "float")
    save_gguf(tmp_path / "low.gguf", path, "low")
    content = (tmp_path / "low.gguf").read_bytes()
    for name, part in {"cut": content[: len(content) // 2], "none": b"", "text": b"x" * 64}.items():
        (tmp_path / name).write_bytes(part)
        with pytest.raises(ValueError, match="no GGUF file, cut off or damaged"):
            load_gguf(tmp_path / name)
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(str(tmp_path / "theirs"), "llama")
    writer.add_tensor("w", np.ones((2, 32), np.float32))
    for step in ("write_header_to_file", "write_kv_data_to_file", "write_tensors_to_file"):
        getattr(writer, step)()
    writer.close()
    with pytest.raises(ValueError, match="a network of others"):
        load_gguf(tmp_path / "theirs")


def test_rows_of_no_whole_blocks_are_floats(tmp_path):
    path = packed(tmp_path, 2, features=16)
    save_gguf(tmp_path / "low.gguf", path, "low")
    found = load_packed(path, "low")[1]["params"]["block1"]["up"]
    np.testing.assert_array_equal(
        read_gguf(tmp_path / "low.gguf")["params/block1/up/kernel"].T, found["kernel"]
    )


def test_a_layer_of_float_weights_is_refused(tmp_path):
    path = packed(tmp_path, 4, layers={"block1/up": {"low": "w32a32", "high": "w32a32"}})
    with pytest.raises(ValueError, match="layer 'block1/up' has float weights in every mode"):
        save_gguf(tmp_path / "low.gguf", path, "low")
    assert [*tmp_path.iterdir()] == [path]


def test_only_the_file_that_is_named_is_written(tmp_path):
    path, neighbour = packed(tmp_path, 2), tmp_path / "low.gguf.writing"
    neighbour.write_text("of others")
    save_gguf(tmp_path / "low.gguf", path, "low")
    assert neighbour.read_text() == "of others"
    assert {*tmp_path.iterdir()} == {path, neighbour, tmp_path / "low.gguf"}
    with pytest.raises(ValueError, match=r"none.low\.gguf: there is no folder .*none: make it"):
        save_gguf(tmp_path / "none" / "low.gguf", path, "low")
