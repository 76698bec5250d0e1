"""Writes a packed file; what it looks like is in container.py."""

import hashlib
import json
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dual_precision.deploy.file.container import DTYPES, LONGEST_HEADER, SEAL, header_seal
from dual_precision.replacing import replace_file

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def to_bytes(
    sections: Mapping[str, Mapping[str, np.ndarray]], about: Mapping[str, Any]
) -> list[bytes]:
    """The whole file, in parts: the header, then each section.

    Args:
      sections: name -> tensor name -> float32 or uint8 array.
      about: JSON types.

    Raises:
      ValueError: another dtype; not JSON; a header longer than a reader accepts.
    """
    table: dict[str, Any] = {}
    ends, bodies, offset = [], [], 0
    for section, tensors in sections.items():
        parts = []
        for name, array in tensors.items():
            if array.dtype not in _NAMES:
                raise ValueError(f"{name!r} is {array.dtype}: expected float32 or uint8")
            parts.append(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes())
            place = [offset, offset + len(parts[-1])]
            table[name] = {
                "dtype": _NAMES[array.dtype],
                "shape": list(array.shape),
                "data_offsets": place,
            }
            offset = place[1]
        bodies.append(b"".join(parts))
        ends.append([section, offset, hashlib.sha256(bodies[-1]).hexdigest()])
    return [sealed_header({"sections": ends, **about}, table), *bodies]


def sealed_header(about: Mapping[str, Any], table: Mapping[str, Any]) -> bytes:
    """The first part of a file: its length, the values of `about`, the table of tensors, sealed.

    Raises:
      ValueError: not JSON; longer than a reader accepts.
    """
    meta = {key: _dump(value) for key, value in about.items()}
    text = SEAL + b"0" * 64 + b'",' + _dump(meta)[1:].encode() + b"," + _dump(table)[1:].encode()
    text += b" " * (-len(text) % 8)
    if len(text) > LONGEST_HEADER:
        raise ValueError(
            f"a header of {len(text)} bytes: expected at most {LONGEST_HEADER}; give less metadata"
        )
    raw = len(text).to_bytes(8, "little") + text
    at = 8 + len(SEAL)
    return raw[:at] + header_seal(raw) + raw[at + 64 :]


def _dump(value: Any) -> str:
    try:
        return json.dumps(value, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"what goes into the header must be JSON: {error}") from None


def check_replaceable(path: str | os.PathLike) -> None:
    """Raises ValueError where `write_parts` would refuse to write: for before long work.

    What may be replaced is a regular file. Another name for one, a symbolic link, is no such: what
    is behind it would stay as it was, under a name that nobody reads any more.
    """
    path = Path(path)
    if os.path.lexists(path) and not stat.S_ISREG(os.lstat(path).st_mode):
        raise ValueError(
            f"{path} is not a regular file: expected the name of a new file, or of one to replace"
        )
    if not path.parent.is_dir():
        raise ValueError(f"{path}: there is no folder {path.parent}: make it, or give another name")
    if not os.access(path.parent, os.W_OK):
        raise ValueError(f"{path}: the folder {path.parent} may not be written: give another name")


def write_parts(path: str | os.PathLike, parts: Sequence[bytes]) -> None:
    """Writes a file that is either there as a whole or not at all; see `replace_file`.

    Raises:
      ValueError: see `check_replaceable`.
      OSError: it cannot be written; what stood under `path` is as it was.
    """
    path = Path(path)
    check_replaceable(path)
    replace_file(path, parts)
