"""Files of PyTorch: every tensor as it is, nothing executed, and what is no such file refused."""

import contextlib
import io
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from dual_precision.deploy.pytorch.opcodes import ForeignFile, read_foreign
from dual_precision.deploy.pytorch.state import is_pytorch, read_state
from dual_precision.loading import load_trained

FOLDER = Path(__file__).parent
PICKLES = [*range(2, pickle.HIGHEST_PROTOCOL + 1)]


def zipped(path: Path, table: bytes, **entries: bytes) -> Path:
    """A file as torch.save writes it, around a pickle."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", table)
        for name, content in entries.items():
            archive.writestr(f"archive/data/{name.removeprefix('_')}", content)
    return path


def opened(*words: bytes) -> Any:
    return read_foreign(io.BytesIO(b"\x80\x02" + b"".join(words) + b"."))


def storage(kind: bytes = b"FloatStorage", count: int = 4) -> bytes:
    """The words of a storage under the key "0"."""
    return (
        b"(X\x07\x00\x00\x00storagectorch\n" + kind + b"\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
        b"K" + bytes([count]) + b"tQ"
    )


def tensor(offset: int, shape: bytes, strides: bytes, of: bytes = storage()) -> bytes:
    """A table with one tensor "w"."""
    return (
        b"}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n(" + of + b"K" + bytes([offset])
        + shape + strides + b"\x89}tRs"
    )  # fmt: skip


FOUR = np.arange(4, dtype="<f4").tobytes()


def test_a_view_is_read_as_it_lies(tmp_path):
    """Offsets, strides that are not those of a fresh array, and a tensor without axes."""
    table = b"\x80\x02" + tensor(0, b"K\x02K\x02\x86", b"K\x01K\x02\x86") + b"."
    found = read_state(zipped(tmp_path / "net.pt", table, _0=FOUR))
    np.testing.assert_array_equal(found["w"], [[0, 2], [1, 3]])
    assert found["w"].flags.c_contiguous
    scalar = b"\x80\x02" + tensor(3, b")", b")") + b"."
    assert read_state(zipped(tmp_path / "one.pt", scalar, _0=FOUR))["w"] == 3


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (tensor(0, b"K\x05\x85", b"K\x01\x85"), "reaches beyond its 4 numbers"),
        (tensor(2, b"K\x03\x85", b"K\x01\x85"), "reaches beyond its 4 numbers"),
        (tensor(0, b"K\x02K\x02\x86", b"K\x03K\x01\x86"), "reaches beyond its 4 numbers"),
        # A stride of 0 makes an array of any size of one number.
        (tensor(0, b"J\x00\x00\x00\x7f\x85", b"K\x00\x85"), "reaches beyond its 4 numbers"),
        (tensor(0, b"J\xff\xff\xff\xff\x85", b"K\x01\x85"), "a size of -1"),
        (tensor(0, b"K\x02\x85", b"K\x01K\x01\x86"), "no tensor"),
        (tensor(0, b"K\x04\x85", b"K\x01\x85", storage(count=5)), "the file is cut off"),
        (tensor(0, b"K\x02\x85", b"K\x01\x85", storage(b"DoubleStorage", 2)), "float64: expected"),
        (tensor(0, b"K\x08\x85", b"K\x01\x85", storage(b"HalfStorage", 8)), "float16: expected"),
        (tensor(0, b"K\x08\x85", b"K\x01\x85", storage(b"BFloat16Storage", 8)), "bfloat16: exp"),
        (tensor(0, b"K\x04\x85", b"K\x01\x85", storage(b"QInt8Storage")), "it needs 'torch.QInt8"),
        (b"}", "no table of tensors"),
        (b"]", "no table of tensors"),
        (b"}X\x01\x00\x00\x00wK\x01s", r"\['w'\] are no tensors"),
        (b"}K\x01K\x01s", "no table of tensors"),
    ],
)  # fmt: skip
def test_tables_that_are_none(tmp_path, table, message):
    with pytest.raises(ForeignFile, match=message):
        read_state(zipped(tmp_path / "net.pt", b"\x80\x02" + table + b".", _0=FOUR))


class Runs:
    """What a plain reader of pickles would run."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call[0], tuple(self.call[1:])


@pytest.mark.parametrize("protocol", PICKLES)
@pytest.mark.parametrize("place", ["alone", "in a table", "in a wrapper"])
def test_a_malicious_file_runs_nothing(tmp_path, protocol, place):
    mark = tmp_path / "ran"
    bad: Any = Runs(os.mkdir, str(mark))
    value = {"alone": bad, "in a table": {"w": bad}, "in a wrapper": {"x": bad, "state_dict": {}}}
    path = zipped(tmp_path / "net.pt", pickle.dumps(value[place], protocol))
    with pytest.raises(ForeignFile, match=r"it needs 'posix.mkdir', which is no tensor: save the"):
        read_state(path)
    assert not mark.exists()


@pytest.mark.parametrize(
    "call",
    [(eval, "1"), (OrderedDict, [("a", 1)]), (getattr, 1, "real"), (np.zeros, 3), (bytearray, 9)],
)
def test_no_call_but_those_of_tensors(call):
    with pytest.raises(ForeignFile, match=r"it needs|a call of"):
        read_foreign(io.BytesIO(pickle.dumps({"w": Runs(*call)}, 2)))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((b"cos\nsystem\nX\x01\x00\x00\x00x\x85R",), "it needs 'os.system'"),
        ((b"cbuiltins\neval\n",), "it needs 'builtins.eval'"),
        ((b"ctorch._utils\n_rebuild_tensor_v3\n",), "it needs 'torch._utils._rebuild_tensor_v3'"),
        ((b"(X\x01\x00\x00\x00xios\nsystem\n",), "the word INST"),
        ((b"cos\nsystem\n)\x81",), "it needs 'os.system'"),
        ((b"ccollections\nOrderedDict\n)\x81",), "the word NEWOBJ"),
        ((b"\x82\x01",), "the word EXT1"),
        ((b"X\x01\x00\x00\x00xP1\n",), "PERSID|no sound pickle"),
        ((b"ctorch\nFloatStorage\n)R",), "a call of 'torch.FloatStorage'"),
        ((b"K\x01}b",), "in a place where a state dict has none"),
        ((b"R",), "takes more values than it has"),
        ((b"(K\x01", b"R"), "takes more values than it has"),
        ((b"h\x07",), "no sound pickle"),
        ((b"u",), "no sound pickle"),
        ((b"}(K\x01u",), "no sound pickle"),
        ((b"K\x01K\x02",), "leaves 2 values"),
        ((b"X\xff\xff\xff\x7fx",), "no sound pickle"),
        ((b"\xff",), "no sound pickle"),
    ],
)
def test_words_that_no_state_dict_has(words, message):
    with pytest.raises(ForeignFile, match=message):
        opened(*words)


NEST = b")" + 60 * b"q\x00h\x00\x86"  # a tuple of itself twice, 60 times: 2^60 tuples to print


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (b"}" + NEST + b"K\x01s", "in a place where a state dict has none"),
        (NEST + b")R", "in a place where a state dict has none"),
        (b"(" + NEST + 4 * b"K\x01" + b"tQ", "expected a storage"),
        (b"}X\x01\x00\x00\x00w" + NEST + b"s", "are no tensors"),
        (tensor(0, 9 * b"(" + 9 * b"t", b"K\x01\x85"), "in a place where a state dict has none"),
        (tensor(0, b"(" + 9 * b"K\x01" + b"t", b"K\x01\x85"), "a tensor of 9 axes: expected at"),
    ],
    ids=["key", "call", "reference", "value", "shape of tuples", "long shape"],
)
def test_a_few_bytes_that_stand_for_very_much(tmp_path, words, message):
    with pytest.raises(ForeignFile, match=message):
        read_state(zipped(tmp_path / "net.pt", b"\x80\x02" + words + b".", _0=FOUR))


def test_so_in_the_format_before_zip(tmp_path):
    path = tmp_path / "net.pt"
    magic = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
    path.write_bytes(magic + b"\x80\x02" + NEST + b".")
    with pytest.raises(ForeignFile, match=r"version \(.*expected 1001"):
        read_state(path)
    version, machine = b"M\xe9\x03", b"}X\x0d\x00\x00\x00little_endian\x88s"
    rest = (version, machine, tensor(0, b")", b")"), b"]" + NEST + b"a")  # the keys are a nest
    path.write_bytes(magic + b"".join(b"\x80\x02" + own + b"." for own in rest))
    with pytest.raises(ForeignFile, match=r"a storage \(.*that no tensor has"):
        read_state(path)


def test_views_of_the_same_numbers(tmp_path):
    """As weights that two layers share are; each is a copy here, so that their sum has a bound."""

    def read(views: int) -> Any:
        numbers = np.arange(10_000, dtype="<f4")
        of = storage().replace(b"K\x04", b"M" + struct.pack("<H", 10_000))
        turned = b"K\x64K\x64\x86", b"K\x01K\x64\x86"  # [100, 100], transposed
        whole = tensor(0, *turned, of)
        table = b"".join(whole[1:].replace(b"w", b"%c" % (65 + i), 1) for i in range(views))
        path = zipped(tmp_path / "net.pt", b"\x80\x02}" + table + b".", _0=numbers.tobytes())
        return read_state(path)

    two = read(2)
    np.testing.assert_array_equal(two["A"], np.arange(10_000).reshape(100, 100).T)
    with pytest.raises(ForeignFile, match=r"in a file of 4.*: expected at most 4 times as m"):
        read(8)


def test_every_cut_of_a_file_is_refused(tmp_path):
    for name in ("both.pt", "legacy.pt"):
        content, path = (FOLDER / name).read_bytes(), tmp_path / name
        for end in {*range(0, len(content), 997), len(content) - 1}:
            path.write_bytes(content[:end])
            with pytest.raises(ForeignFile):
                read_state(path)


def test_a_changed_byte_gives_no_other_error(tmp_path):
    """Of a number it may stay unseen: a file of PyTorch has no sum that the reader could check."""
    content = (FOLDER / "legacy.pt").read_bytes()
    generator = np.random.default_rng(0)
    path = tmp_path / "legacy.pt"
    for at in generator.integers(0, 12_000, 300):
        changed = bytearray(content)
        changed[at] ^= 1 << int(generator.integers(8))
        path.write_bytes(changed)
        with contextlib.suppress(ForeignFile):
            read_state(path)


def test_archives_that_torch_does_not_write(tmp_path):
    """A packed one of a few bytes can hold gigabytes."""
    path = tmp_path / "packed.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
    with pytest.raises(ForeignFile, match="a packed zip archive"):
        read_state(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("something", b"else")
    with pytest.raises(ForeignFile, match=r"0 entries data\.pkl"):
        read_state(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
        archive.writestr("archive/byteorder", b"big")
    with pytest.raises(ForeignFile, match="not little endian"):
        read_state(path)


def test_an_optimizer_beside_the_table_is_not_read(tmp_path):
    """Its storages stand between those of the tensors, in the format before zip without names."""
    torch = pytest.importorskip("torch")
    weight = torch.arange(3.0)
    about = {"optimizer": [torch.zeros(5, dtype=torch.float64)], "state_dict": {"w": weight}}
    for new in (True, False):
        path = tmp_path / f"{new}.pt"
        torch.save(about, path, _use_new_zipfile_serialization=new)
        np.testing.assert_array_equal(read_state(path)["w"], [0, 1, 2])


def test_prefixes_wrappers_and_counters():
    zip_, legacy = read_state(FOLDER / "both.pt"), read_state(FOLDER / "legacy.pt")
    assert zip_.keys() == legacy.keys()
    assert "conv1.weight" in zip_
    assert not [name for name in zip_ if "num_batches" in name or name.startswith("module.")]
    for name, array in zip_.items():
        np.testing.assert_array_equal(array, legacy[name])


def test_safetensors_and_what_is_neither(tmp_path):
    path = tmp_path / "net.safetensors"
    save_file({"module.w": np.ones(2, np.float32), "module.n": np.zeros(1, np.float32)}, path)
    assert read_state(path).keys() == {"w", "n"}
    assert not is_pytorch(path)
    save_file({"w": np.ones(2, np.float64)}, path)
    with pytest.raises(ForeignFile, match=r"'w' is float64: expected float32"):
        read_state(path)
    for dtype, name in {"BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn", "F4": "F4"}.items():
        header = b'{"w":{"dtype":"%s","shape":[2],"data_offsets":[0,4]}}' % dtype.encode()
        path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
        for read in (read_state, partial(load_trained, example=None)):
            with pytest.raises(ValueError, match=f"'w' is {name}: expected float32; save"):
                read(path)
    counted = {"w": np.ones(2, np.float32), "n.num_batches_tracked": np.ones((), np.int64)}
    save_file(counted, path)
    assert read_state(path).keys() == {"w"}
    for content in (b"", b"text", struct.pack("<Q", 1 << 60), b"\x80\x04\x95", b"PK\x03\x04"):
        path.write_bytes(content)
        with pytest.raises(ForeignFile, match=r"net\.safetensors: "):
            read_state(path)
