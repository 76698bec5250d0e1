"""The container of a packed file: named tensors in sections that can be read one after another.

    8 bytes     n, the length of the header, little endian
    n bytes     header, JSON, filled up with spaces to a multiple of 8
    the rest    the tensors without gaps, section after section

    {"__metadata__": {"format": "dual_precision packed 1",
                      "sha256": of the 8 + n bytes above, without these 64 digits themselves,
                      "sections": [[name, end, sha256], ...],     JSON in a string,
                      ...: what the caller says about the file},  as every value from here on
     tensor: {"dtype": "F32" or "U8", "shape": [...], "data_offsets": [start, end]}, ...}

This is a safetensors file: `safetensors.numpy.load_file` opens it and shows the tensors. Written
(in writer.py) and read (here) without that library: its writer sorts tensors by dtype and name,
where a prefix must hold the floats and planes of one mode together; its reader wants the whole file
and checks no sums.

Nothing in a file is believed before its checksum, and no length before it is compared with the
size of the file.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import math
import os
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

VERSION = 1
LONGEST_HEADER = 2**24  # bytes; 100 bytes a tensor make room for 160,000 of them
_MOST_AXES = 8

DTYPES: dict[str, np.dtype] = {"F32": np.dtype("<f4"), "U8": np.dtype("u1")}
_FORMAT = b'{"__metadata__":{"format":"dual_precision packed '
HEAD = 8 + len(_FORMAT) + 10  # bytes that tell this format and its version
SEAL = _FORMAT + b'%d","sha256":"' % VERSION

AGAIN = "copy the file again, or pack the network again"


class PackedError(ValueError):
    """A file is not a sound packed file; the message says what was found and what to do."""


@dataclasses.dataclass(frozen=True)
class Tensor:
    """Where a tensor stands, in bytes after the header."""

    dtype: np.dtype
    shape: tuple[int, ...]
    start: int
    end: int


@dataclasses.dataclass(frozen=True)
class Header:
    """What the header says.

    Attributes:
      about: what the caller gave.
      tensors: in the order of the file.
      sections: name -> (its end in bytes after the header, sha256), in the order of the file.
      start: bytes before the first tensor.
    """

    about: dict[str, Any]
    tensors: dict[str, Tensor]
    sections: dict[str, tuple[int, str]]
    start: int

    def end(self, section: str) -> int:
        """Bytes from the begin of the file to the end of a section."""
        return self.start + self.sections[section][0]


def begins_packed(raw: bytes) -> bool:
    """Whether the first bytes of a file are those of a packed file."""
    return raw[8:].startswith(_FORMAT)


def header_seal(raw: bytes) -> bytes:
    """The checksum of a header, 64 digits; `raw` is the 8 + n bytes, with any 64 in its place."""
    at = 8 + len(SEAL)
    digest = hashlib.sha256(raw[:at])
    digest.update(raw[at + 64 :])
    return digest.hexdigest().encode()


@contextlib.contextmanager
def opened(source: str | os.PathLike | BinaryIO) -> Iterator[BinaryIO]:
    """The file to read, unbuffered; a PackedError from within names it.

    Raises:
      PackedError: a folder or a device. OSError: it is not there or may not be read.
    """
    with contextlib.ExitStack() as stack:
        name, file = "the packed file", source
        if isinstance(source, str | os.PathLike):
            name = os.fspath(source)
            if os.path.exists(name) and not os.path.isfile(name):  # opening a pipe would wait
                raise PackedError(f"{name}: not a file: give the name of a packed file")
            try:
                file = stack.enter_context(open(name, "rb", buffering=0))
            except FileNotFoundError as error:
                said = "No such file: expected a packed file"
                raise FileNotFoundError(error.errno, said, name) from None
        try:
            yield file  # type: ignore[misc]
        except PackedError as error:
            raise PackedError(f"{name}: {error}") from error.__cause__


def read_header(file: BinaryIO) -> Header:
    """Reads and verifies the header; nothing behind it is read.

    Raises:
      PackedError: empty, truncated, altered, of another program, or of a newer version.
    """
    size = _size(file)
    if not size:
        raise PackedError(f"it is empty: {AGAIN}")
    raw = _read(file, min(size, HEAD))
    found = re.match(rb"(\d+)\"", raw[8 + len(_FORMAT) :])
    if raw[8:].startswith(b'{"') and b"dual_precision" not in raw:
        raise PackedError(
            "not a packed file, but another safetensors file, such as one of float parameters that"
            " a training starts from: expected one that save_packed wrote; pack a trained network"
        )
    if not begins_packed(raw) or not found:
        raise PackedError(f"not a packed file, or cut or altered in its first {HEAD} bytes")
    if int(found[1]) != VERSION:
        raise PackedError(
            f"format version {int(found[1])}, and this program reads {VERSION}: install a newer"
            " dual_precision, or pack the network again with this one"
        )
    length = int.from_bytes(raw[:8], "little")
    if not len(SEAL) + 64 <= length <= min(size - 8, LONGEST_HEADER):
        raise PackedError(
            f"{size} bytes, and a header that claims {length}: truncated or altered; {AGAIN}"
        )
    raw += _read(file, 8 + length - len(raw))
    at = 8 + len(SEAL)
    if raw[8:at] != SEAL or raw[at : at + 64] != header_seal(raw):
        raise PackedError(f"its header does not match its checksum: altered; {AGAIN}")
    with consistent():
        return _parse(json.loads(raw[8:]), len(raw))


@contextlib.contextmanager
def consistent() -> Iterator[None]:
    """Turns what goes wrong in reading a sealed but senseless header into a PackedError.

    No accident makes one, only another program. What it says goes to the class of a
    model, which may raise anything.
    """
    try:
        yield
    except PackedError:
        raise
    except Exception as error:
        line = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise PackedError(
            f"its header is sound but does not fit this program: {line}; pack the network again"
        ) from error


def _parse(header: dict[str, Any], start: int) -> Header:
    meta = header.pop("__metadata__")
    about = {k: json.loads(text) for k, text in meta.items() if k not in ("format", "sha256")}
    tensors, offset = {}, 0
    for name, entry in header.items():
        shape, (first, end) = entry["shape"], entry["data_offsets"]
        dtype = DTYPES[entry["dtype"]]
        # Few and small factors, so that the product below is not the work of an hour.
        if len(shape) > _MOST_AXES or not all(
            type(n) is int and 0 <= n < 2**48 for n in (*shape, first, end)
        ):
            raise PackedError(f"tensor {name!r} of shape {shape}: expected {_MOST_AXES} axes")
        if first != offset or end - first != math.prod(shape) * dtype.itemsize:
            raise PackedError(f"tensor {name!r} at {first} to {end}: expected {shape} at {offset}")
        tensors[name] = Tensor(dtype, tuple(shape), first, offset := end)
    sections = {name: (end, sha) for name, end, sha in about.pop("sections")}
    ends = [end for end, _ in sections.values()]
    whole = all(type(end) is int for end in ends)
    if not whole or [0, *ends] != sorted([0, *ends]) or ends[-1] != offset:
        raise PackedError(f"sections end at {ends}: expected the last at {offset}")
    return Header(about, tensors, sections, start)


def read_content(file: BinaryIO, header: Header, last: str, begin: bytes = b"") -> bytes:
    """What stands in every section up to `last`, verified; what follows is not read.

    Args:
      begin: what was read before, whole sections: it is not read again.

    Raises:
      PackedError: truncated or altered.
    """
    size, needed = _size(file), header.end(last)
    if size < needed:
        raise PackedError(
            f"truncated: {size} bytes, and {last!r} needs the first {needed}; {AGAIN}"
            " (a narrower mode may be whole: load_packed(path, precision=...))"
        )
    if last == list(header.sections)[-1] and size != needed:
        raise PackedError(f"{size} bytes: expected {needed}, something was added; {AGAIN}")
    file.seek(header.start + len(begin))
    content = begin
    for name, (end, sha) in header.sections.items():
        if end > len(begin):
            body = _read(file, end - len(content))
            if hashlib.sha256(body).hexdigest() != sha:
                raise PackedError(f"section {name!r} does not match its checksum: altered; {AGAIN}")
            content += body
        if name == last:
            break
    return content


def tensors_within(header: Header, content: bytes) -> dict[str, np.ndarray]:
    """The tensors of the sections that were read."""
    within = {name: tensor for name, tensor in header.tensors.items() if tensor.end <= len(content)}
    return {name: _array(content, tensor) for name, tensor in within.items()}


def _array(content: bytes, tensor: Tensor) -> np.ndarray:
    flat = np.frombuffer(content[tensor.start : tensor.end], tensor.dtype)
    return flat.reshape(tensor.shape).astype(tensor.dtype.newbyteorder("="))


def _size(file: BinaryIO) -> int:
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    return size


def _read(file: BinaryIO, count: int) -> bytes:
    """Exactly so many bytes: an unbuffered read may give fewer."""
    parts = []
    while count:
        part = file.read(count)
        if not part:
            raise PackedError(f"it ended {count} bytes early while it was read: {AGAIN}")
        parts.append(part)
        count -= len(part)
    return b"".join(parts)
