"""Modes of a packed network as GGUF, one file each, for readers that know its tensors.

    save_gguf("low.gguf", "net.safetensors", "low")
    tensors = read_gguf("low.gguf")
    model, variables = load_gguf("low.gguf")
    model.apply(variables, tokens, precision="float")  # its weights, activations in floats

A kernel [in, out] is a tensor of `out` rows, in blocks of 32 inputs, of the narrowest type that
holds its numbers. A weight of n bits is an odd number o = 2 c + 1, |o| < 2^n, times half a step:

    n <= 3      Q4_0   w = d (q - 8)    q = o + 8         d = step / 2
    n = 4, 5    Q4_1, Q5_1   w = d q + m    q = c + 2^(n-1)   d = step, m = -(2^n - 1) step / 2
    n = 6, 7    Q8_0   w = d q          q = o             d = step / 2
    n = 8       Q8_0   likewise, of the nearest numbers of each block: o has 9 bits

so that up to 7 bits only d and m are rounded, to float16: a weight by at most 2^-10 of the range of
its channel, (2^n - 1) step. A table, whose step is another for each feature, is rounded as 8 bits
are: by at most 2^-7 of the largest in its row. What would come back with more, as steps below 1e-4
may, where float16 has few numbers, is float32; so is what is no multiple of 32 long, and all the
rest. Steps and widths of activations are in the metadata.

No engine knows the architecture: llama.cpp has none of these blocks, see docs/engines.md.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from dual_precision.deploy.export.extras import needed
from dual_precision.deploy.file.contents import check_shapes
from dual_precision.deploy.file.examples import example_from_json, example_to_json
from dual_precision.deploy.file.packed import PackedFile, Source
from dual_precision.deploy.file.writer import write_parts
from dual_precision.deploy.integer.conversion import stored_codes
from dual_precision.models import build_from
from dual_precision.precision import FLOAT_NAME
from dual_precision.structure import Layer, Structure, structure_of

ARCHITECTURE = "dual_precision"
_BLOCK = 32  # inputs that share a scale
_PURPOSE = "a GGUF file"


def save_gguf(path: str | os.PathLike, source: Source, precision: str) -> None:
    """Writes a mode of a packed file.

    Raises:
      ValueError: gguf is missing; no such mode; layers of float weights; see `write_parts`.
      PackedError, OSError: as `load_packed`.
    """
    gguf = needed("gguf", _PURPOSE)
    with PackedFile(source) as file:
        info, structure = file.info, file.structure
        _, variables = file.load(precision)
    leaves: dict[Any, Any] = dict(flatten_dict(variables))
    widths = {"/".join(p): str(own.table[precision]) for p, own in structure.layers.items()}
    about = {
        "network": json.dumps(info.network),
        "example": json.dumps(example_to_json(info.example)),
        "precision": precision,
        "widths": json.dumps(widths),
    }
    tensors = _tensors(gguf, structure, leaves, precision)
    write_parts(path, [_content(gguf, str(info.network["name"]), about, tensors)])


def _content(
    gguf: Any, name: str, about: Mapping[str, str], tensors: Mapping[str, tuple[np.ndarray, Any]]
) -> bytes:
    """A whole file. The writer takes a name alone: it gets one in a folder of its own."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "content")
        writer = gguf.GGUFWriter(path, ARCHITECTURE)
        writer.add_name(name)
        for key, text in about.items():
            writer.add_string(f"{ARCHITECTURE}.{key}", text)
        for tensor, (array, kind) in tensors.items():
            writer.add_tensor(tensor, array, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path.read_bytes()


def _tensors(
    gguf: Any, structure: Structure, leaves: dict[Any, Any], precision: str
) -> dict[str, tuple[np.ndarray, Any]]:
    """Name -> (bytes, type), or (floats, None)."""
    found: dict[str, tuple[np.ndarray, Any]] = {}
    for leaf, value in leaves.items():
        path = leaf[1:-1]
        if leaf[-1] == "step" and path in structure.layers:
            continue  # in the blocks
        if leaf[-1] == "kernel" and path in structure.layers:
            layer = structure.layers[path]
            found["/".join(leaf)] = _kernel(gguf, path, layer, leaves, precision)
        elif structure.is_read(leaf, [precision]):
            found["/".join(leaf)] = np.atleast_1d(np.asarray(value, np.float32)), None
    return found


def _kernel(
    gguf: Any, path: Any, layer: Layer, leaves: dict[Any, Any], precision: str
) -> tuple[np.ndarray, Any]:
    whole = stored_codes(path, layer, leaves).astype(np.int32)
    bits, stored = layer.table[precision].weights, layer.stored
    assert bits is not None, "stored_codes refuses float weights"
    assert stored is not None, "stored_codes refuses float weights"
    codes = whole >> stored - bits
    step = np.asarray(leaves["params", *path, "step"], np.float32) * np.float32(2) ** (
        stored - bits
    )
    values = (codes.astype(np.float32) + np.float32(0.5)) * step
    kinds = gguf.GGMLQuantizationType
    if not layer.macs:  # a table: a row is read, and each feature has a step of its own
        rows = np.ascontiguousarray(values)
        if rows.shape[-1] % _BLOCK:
            return rows, None
        with np.errstate(all="ignore"):  # likewise below
            made = gguf.quantize(rows, kinds.Q8_0)
            return _close(gguf, rows, made, kinds.Q8_0, 2.0**-7 * np.abs(rows).max(axis=-1))
    rows = np.ascontiguousarray(values.reshape(-1, values.shape[-1]).T)
    if rows.shape[1] % _BLOCK:
        return rows, None
    with np.errstate(all="ignore"):  # of a scale that float16 does not hold: it is seen below
        made, kind = _of_channels(gguf, rows, codes.reshape(-1, codes.shape[-1]).T, step, bits)
        most = 2.0**-7 * np.abs(rows).max(axis=1) if bits == 8 else 2.0**-10 * (2**bits - 1) * step
        return _close(gguf, rows, made, kind, most)


def _close(
    gguf: Any, rows: np.ndarray, made: np.ndarray, kind: Any, most: np.ndarray
) -> tuple[np.ndarray, Any]:
    """What was made of rows, or the rows, if a number of one comes back with an error above `most`,
    float32 [rows]."""
    apart = np.abs(gguf.dequantize(made, kind) - rows).max(axis=1)
    return (made, kind) if (apart <= most).all() else (rows, None)  # NaN is not close


def _of_channels(
    gguf: Any, rows: np.ndarray, flat: np.ndarray, step: np.ndarray, bits: int
) -> tuple[np.ndarray, Any]:
    """The blocks of weights [out, in] with these codes, and their type."""
    kinds = gguf.GGMLQuantizationType
    if bits == 8:
        return gguf.quantize(rows, kinds.Q8_0), kinds.Q8_0
    if bits <= 3:
        return _nibbles(2 * flat + 9, step / 2, None, False), kinds.Q4_0
    if bits <= 5:
        lowest = -(2**bits - 1) * step / 2
        numbers, has_fifth = flat + 2 ** (bits - 1), bits == 5
        made = _nibbles(numbers, step, lowest, has_fifth)
        return made, kinds.Q5_1 if has_fifth else kinds.Q4_1
    return _bytes(2 * flat + 1, step / 2), kinds.Q8_0


def _blocks(numbers: np.ndarray) -> np.ndarray:
    return numbers.reshape(len(numbers), -1, _BLOCK)


def _halves(values: np.ndarray, blocks: int) -> np.ndarray:
    """A float16 of each row, as two bytes of each block."""
    own = np.asarray(values, np.float16).view(np.uint8).reshape(-1, 1, 2)
    return np.repeat(own, blocks, axis=1)


def _nibbles(
    numbers: np.ndarray, scale: np.ndarray, lowest: np.ndarray | None, has_fifth: bool
) -> np.ndarray:
    """Q4_0, Q4_1 or Q5_1: the first 16 numbers in the low halves of bytes, fifth bits before.

    Q5_1 alone has fifth bits, and always: the numbers of a mode of 5 bits may all be below 16.
    """
    own = _blocks(numbers.astype(np.uint32))
    packed = (own[..., :16] & 15 | (own[..., 16:] & 15) << 4).astype(np.uint8)
    parts = [_halves(scale, own.shape[1])]
    if lowest is not None:
        parts.append(_halves(lowest, own.shape[1]))
    if has_fifth:
        fifth = (own >> 4 & 1) << np.arange(_BLOCK, dtype=np.uint32)
        parts.append(fifth.sum(-1, dtype=np.uint32)[..., None].view(np.uint8))
    return np.concatenate([*parts, packed], axis=-1).reshape(len(numbers), -1)


def _bytes(numbers: np.ndarray, scale: np.ndarray) -> np.ndarray:
    own = _blocks(numbers.astype(np.int8).view(np.uint8))
    return np.concatenate([_halves(scale, own.shape[1]), own], axis=-1).reshape(len(own), -1)


def read_gguf(path: str | os.PathLike) -> Mapping[str, np.ndarray]:
    """Name -> float32 values of each tensor, as the package `gguf` dequantizes them.

    Raises:
      ValueError: gguf is missing; no such file, or one cut off or damaged. OSError: it cannot be
        read.
    """
    return _read(path)[0]


def _read(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], Mapping[str, Any]]:
    """The values of each tensor, and the fields of the metadata."""
    gguf = needed("gguf", _PURPOSE)
    try:
        reader = gguf.GGUFReader(os.fspath(path))
        tensors = {own.name: (own.data, own.tensor_type) for own in reader.tensors}
        values = {name: gguf.dequantize(data, kind) for name, (data, kind) in tensors.items()}
        return values, reader.fields
    except Exception as error:  # the package raises a dozen kinds on a damaged file
        if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
            raise
        raise ValueError(
            f"{path}: no GGUF file, cut off or damaged ({error}): export it again"
        ) from None


def load_gguf(path: str | os.PathLike) -> tuple[nn.Module, Any]:
    """(model, variables) of a file of `save_gguf`, for mode "float" alone.

    Raises:
      ValueError, OSError: as `read_gguf`; a file of another network.
    """
    tensors, fields = _read(path)
    try:
        about = [
            fields[f"{ARCHITECTURE}.{name}"].contents()
            for name in ("network", "example", "precision")
        ]
        model = build_from(json.loads(about[0]))
        structure = structure_of(model, example_from_json(json.loads(about[1])))
        leaves = _leaves_of(structure, tensors, about[2])
        check_shapes(
            {path: leaf for path, leaf in leaves.items() if "input_step" not in path},
            structure.leaves_of([FLOAT_NAME]),
        )
    except Exception as error:  # damaged texts lead anywhere
        raise ValueError(
            f"{path}: a network of others, or damaged ({error}): expected a file of save_gguf"
        ) from None
    return model, unflatten_dict(leaves)


def _leaves_of(
    structure: Structure, tensors: Mapping[str, np.ndarray], precision: str
) -> dict[Any, Any]:
    """The leaves that mode "float" reads, of the tensors of a mode."""
    here, there = structure.modes.norm_of(precision), structure.modes.norm_of(FLOAT_NAME)
    leaves: dict[Any, Any] = {}
    for name, value in tensors.items():
        leaf, layer = tuple(name.split("/")), structure.layers.get(tuple(name.split("/")[1:-1]))
        if layer is not None and leaf[-1] == "kernel" and layer.macs:
            value = value.T.reshape(layer.kernel)
        if "input_step" in leaf:  # a scalar, of one entry in the file
            leaves[leaf] = jnp.asarray(value[0])
        else:
            leaves[tuple(there if part == here else part for part in leaf)] = jnp.asarray(value)
    for path, layer in structure.layers.items():  # of no use without codes, and asked for
        leaves["params", *path, "step"] = jnp.ones(layer.kernel[-1], jnp.float32)
    return leaves
