"""Tensors by name from a file of PyTorch: the zip format, the one before it, and safetensors.

Nothing in a file is executed, and no number is read that a tensor does not have:

    zip     archive/data.pkl, the table; archive/data/KEY, the numbers of each storage, not packed
    legacy  four pickles: a magic number, a version, the machine, the table; a list of keys; then
            of each key 8 bytes with the count of its numbers, little endian, and the numbers
"""

import io
import json
import math
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dual_precision.deploy.pytorch.opcodes import (
    BFLOAT,
    STORAGES,
    ForeignFile,
    Stored,
    View,
    read_foreign,
    shown,
)

MAGIC = 0x1950A86A20F9469CFC6C
_VERSION = 1001
WRAPPERS = ("state_dict", "model_state_dict", "model", "net")  # what holds the table in a file
PARALLEL = "module."  # the prefix that DataParallel gives to every name
COUNTER = "num_batches_tracked"  # of a normalisation: no number that it computes with
_ZIP, _LEGACY = b"PK\x03\x04", b"\x80\x02\x8a\x0a"
_MOST_SHARED = 4  # bytes of all tensors to bytes of the file: tensors may have numbers in common
# Of safetensors, as PyTorch calls them; NumPy does not have all.
_DTYPES = {
    "BF16": BFLOAT, "F16": "float16", "F64": "float64", "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2", "I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64",
    "U8": "uint8", "BOOL": "bool",
}  # fmt: skip


def is_pytorch(path: str | os.PathLike) -> bool:
    """Whether a file begins as those of `torch.save` do."""
    with open(path, "rb") as file:
        head = file.read(4)
    return head in (_ZIP, _LEGACY)


def read_state(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Name -> tensor, float32, of a PyTorch or a safetensors file; nothing in it is executed.

    Wrappers around the table ("state_dict", ...) and the prefix "module." of every name are taken
    off. Counters of batches are left out.

    Raises:
      ForeignFile: it holds something else than tensors, is cut off or altered, or tensors are not
        float32. OSError: it cannot be read.

    >>> read_state("resnet20.th")["conv1.weight"].shape  # doctest: +SKIP
    (16, 3, 3, 3)
    """
    content = Path(path).read_bytes()
    try:
        if content[:4] == _ZIP:
            tensors = _read_zip(content)
        elif content[:4] == _LEGACY:
            tensors = _read_legacy(content)
        else:
            tensors = _read_safetensors(content)
        return _checked_dtypes(_without_prefix(tensors))
    except ForeignFile as error:
        raise ForeignFile(f"{path}: {error}") from None


def _without_prefix(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    kept = {name: array for name, array in tensors.items() if name.split(".")[-1] != COUNTER}
    if kept and all(name.startswith(PARALLEL) for name in kept):
        return {name.removeprefix(PARALLEL): array for name, array in kept.items()}
    return kept


def _checked_dtypes(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    if not tensors:
        raise ForeignFile("no tensors in it: expected a state dict")
    for name, array in tensors.items():
        _check_dtype(name, str(array.dtype))
    return tensors


def _check_dtype(name: str, dtype: str) -> None:
    if dtype != "float32":
        raise ForeignFile(
            f"{name!r} is {dtype}: expected float32; save"
            " {name: tensor.float() for name, tensor in model.state_dict().items()}"
        )


def load_safetensors(content: bytes) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file, float32 all but counters of batches.

    Raises:
      ForeignFile: other numbers. SafetensorError: no such file.
    """
    from safetensors.numpy import load

    _check_safetensors(content)
    return load(content)


def _check_safetensors(content: bytes) -> None:
    """Raises ForeignFile where a safetensors file has numbers that are not float32.

    By its header, as NumPy lacks some kinds, and its reader then says something else. Counters of
    batches are left out; of what is no such file nothing is said.
    """
    try:
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        dtypes = {name: entry["dtype"] for name, entry in header.items() if name != "__metadata__"}
        found = {name: _DTYPES.get(dtype, str(dtype)) for name, dtype in dtypes.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return
    for name, dtype in found.items():
        if name.split(".")[-1] != COUNTER and dtype != "F32":
            _check_dtype(name, dtype)


def _read_safetensors(content: bytes) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError

    try:
        return load_safetensors(content)
    except (SafetensorError, KeyError, TypeError) as error:
        raise ForeignFile(
            f"neither a file of torch.save nor a safetensors file ({error}): a file in the tar"
            " format of PyTorch before 0.4 must be saved again"
        ) from None


def _read_zip(content: bytes) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return _read_archive(archive, len(content))
    except ForeignFile:
        raise
    except Exception as error:  # a damaged archive raises a dozen kinds
        raise ForeignFile(f"no sound zip archive ({type(error).__name__}: {error})") from None


def _read_archive(archive: zipfile.ZipFile, size: int) -> dict[str, np.ndarray]:
    entries = archive.infolist()
    packed = [entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
    if packed or sum(entry.file_size for entry in entries) > size:
        raise ForeignFile("a packed zip archive: torch.save stores its entries as they are")
    found = [e.filename for e in entries if e.filename.split("/")[1:] == ["data.pkl"]]
    if len(found) != 1:
        raise ForeignFile(f"{len(found)} entries data.pkl: expected one, as torch.save writes")
    folder = found[0].removesuffix("/data.pkl")
    names = {entry.filename for entry in entries}
    order = f"{folder}/byteorder"
    if order in names and archive.read(order) != b"little":
        raise ForeignFile("numbers that are not little endian: save it on another machine")
    table = _table(read_foreign(io.BytesIO(archive.read(found[0]))))
    needed = {view.stored for view in table.values()}
    storages = {
        stored: _numbers(stored, archive.read(f"{folder}/data/{stored.key}")) for stored in needed
    }
    return _tensors(table, {stored.key: numbers for stored, numbers in storages.items()}, size)


def _read_legacy(content: bytes) -> dict[str, np.ndarray]:
    file = io.BytesIO(content)
    if (magic := read_foreign(file)) != MAGIC or (version := read_foreign(file)) != _VERSION:
        found = f"version {shown(version)}" if magic == MAGIC else "another number"
        raise ForeignFile(f"{found} at its beginning: expected {_VERSION}, of torch.save")
    machine = read_foreign(file)
    if not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise ForeignFile("numbers that are not little endian: save it on another machine")
    said: dict[str, Stored] = {}
    table, keys = _table(read_foreign(file, said)), read_foreign(file)
    storages = {}
    for key in keys if isinstance(keys, list) else ():
        stored = said.get(key) if isinstance(key, str) else None
        if stored is None:
            raise ForeignFile(f"a storage {shown(key)} that no tensor has")
        if (count := int.from_bytes(file.read(8), "little")) != stored.count:
            raise ForeignFile(f"a storage of {count} numbers: expected {stored.count}, as it says")
        storages[key] = _numbers(stored, file.read(count * _dtype(stored).itemsize))
    missing = [name for name, view in table.items() if view.stored.key not in storages]
    if missing:
        raise ForeignFile(f"no numbers of {missing[:3]} in it: the file is cut off")
    return _tensors(table, storages, len(content))


def _tensors(
    table: Mapping[str, View], storages: Mapping[str, np.ndarray], size: int
) -> dict[str, np.ndarray]:
    """Every tensor in an order of its own, of a file of so many bytes."""
    found, total = {}, 0
    for name, view in table.items():
        array = _view(name, view, storages[view.stored.key])
        total += array.nbytes
        if total > _MOST_SHARED * size:  # many views of the same numbers, each with a copy here
            raise ForeignFile(
                f"tensors of {total:,} bytes and more in a file of {size:,}: expected at most"
                f" {_MOST_SHARED} times as many; save tensor.clone() of those that share numbers"
            )
        found[name] = np.ascontiguousarray(array).reshape(view.shape)
    return found


def _dtype(stored: Stored) -> np.dtype:
    """Of bfloat16, which NumPy does not have, an integer as wide: to read on behind it."""
    name = STORAGES[stored.kind]
    return np.dtype("<u2" if name == BFLOAT else name)


def _numbers(stored: Stored, content: bytes) -> np.ndarray:
    dtype = _dtype(stored)
    if len(content) != stored.count * dtype.itemsize:
        raise ForeignFile(
            f"{len(content)} bytes of {stored.count} numbers {dtype}: the file is cut off"
        )
    return np.frombuffer(content, dtype)


def _table(value: Any) -> dict[str, View]:
    """The table of tensors in what a file holds: itself, or under a name that is used for it."""
    inner = next((value[k] for k in WRAPPERS if k in value), value) if _is_table(value) else value
    if not _is_table(inner) or not inner:
        raise ForeignFile("no table of tensors: expected a state dict, or one in 'state_dict'")
    strange = [name for name, view in inner.items() if not isinstance(view, View)]
    if strange:
        raise ForeignFile(
            f"{strange[:3]} are no tensors: expected a state dict, or one under one of"
            f" {list(WRAPPERS)}"
        )
    return inner


def _is_table(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) for key in value)


def _view(name: str, view: View, numbers: np.ndarray) -> np.ndarray:
    """The array of a view, as it lies; no index leaves the storage."""
    if STORAGES[view.stored.kind] == BFLOAT:
        raise ForeignFile(f"{name!r} is bfloat16: expected float32; save tensor.float()")
    shape, strides, size = view.shape, view.strides, numbers.itemsize
    last = view.offset + sum(
        (n - 1) * stride for n, stride in zip(shape, strides, strict=False) if n
    )
    count = math.prod(shape)
    if len(shape) != len(strides):
        raise ForeignFile(f"{name!r} of shape {shape} and strides {strides}: no tensor")
    if count > numbers.size or (count and last >= numbers.size):
        raise ForeignFile(f"{name!r} of shape {shape} reaches beyond its {numbers.size} numbers")
    return np.lib.stride_tricks.as_strided(
        numbers[view.offset :], shape, [size * stride for stride in strides], writeable=False
    )
