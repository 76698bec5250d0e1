"""What damage does to bytes, to JSON, and to a packed file that is sealed again."""

import copy
import hashlib
import json
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from dual_precision.deploy.file.container import SEAL, header_seal
from dual_precision.deploy.file.writer import sealed_header

DEEP = "a deep nest"
# What an attacker, or a careless program, may put where something else is expected.
NASTY: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2**16, 2**22, 2**31, 2**40, 2**63, 10**30, 1.5, -0.0, 1e308, "", "x",
    "w2a2", "low", "../../x", [], [[]], {}, {"": ""}, [0] * 1000, ["low", 0, "x"], "9" * 5000,
)  # fmt: skip
_NASTY_FLOATS = np.array([np.nan, np.inf, -np.inf, 0.0, -1.0, 3e38, 1e-45], "<f4")


def changed_bytes(raw: bytes, rng: np.random.Generator) -> bytes:
    """Bits turned, bytes set, parts cut, doubled, emptied or exchanged; once to three times."""
    array = np.frombuffer(raw, np.uint8).copy()
    for _ in range(rng.integers(1, 4)):
        if array.size < 4:
            break
        first, last = sorted(rng.integers(0, array.size + 1, 2))
        match rng.integers(0, 6):
            case 0:
                array[rng.integers(array.size)] ^= np.uint8(1 << rng.integers(8))
            case 1:
                array[rng.integers(array.size)] = rng.integers(256)
            case 2:
                array = array[:first] if rng.integers(2) else array[first:]
            case 3:
                array = np.concatenate([array[:last], array[first:]])
            case 4:
                array[first:last] = 0
            case _:
                array = np.concatenate([array[last:], array[first:last], array[:first]])
    return array.tobytes()


def changed_json(value: Any, rng: np.random.Generator, depth: int = 0) -> Any:
    """JSON with one thing in it replaced, left out or nested deeply."""
    if depth and (not isinstance(value, dict | list) or not value or rng.random() < 0.25):
        if rng.random() < 0.05:
            return DEEP
        return copy.deepcopy(NASTY[rng.integers(len(NASTY))])
    result = copy.copy(value)
    keys = list(result) if isinstance(result, dict) else list(range(len(result)))
    key = keys[rng.integers(len(keys))]
    if rng.random() < 0.2:
        del result[key]
    else:
        result[key] = changed_json(result[key], rng, depth + 1)
    return result


def nested_text(text: str, rng: np.random.Generator) -> str:
    """JSON with a nest in the place of DEEP, often too deep for what reads or writes JSON."""
    depth = int(10 ** rng.uniform(1, 5))
    nest = "[" * depth + "0" + "]" * depth
    for name in (json.dumps(DEEP), json.dumps(json.dumps(DEEP))[1:-1]):  # JSON in a text too
        text = text.replace(name, nest)
    return text


def forged_packed(raw: bytes, rng: np.random.Generator) -> bytes:
    """A packed file with other values, tensors or numbers in it, whose checksums are all right."""
    start = 8 + int.from_bytes(raw[:8], "little")
    table = json.loads(raw[8:start])
    meta = table.pop("__metadata__")
    about = {key: json.loads(meta[key]) for key in meta if key not in ("format", "sha256")}
    body = raw[start:]
    match rng.integers(0, 10):
        case 0 | 1:
            table = changed_json(table, rng)
        case 2:
            body = _changed_floats(body, rng)
            about["sections"] = _sums(about["sections"], body)
        case 3:
            about, table = changed_json(about, rng), changed_json(table, rng)
        case _:
            about = changed_json(about, rng)
    header = sealed_header(about, table)
    text = nested_text(header[8:].decode(), rng).encode().rstrip()
    return _sealed(text + b" " * (-len(text) % 8)) + body


def _sealed(text: bytes) -> bytes:
    raw, at = len(text).to_bytes(8, "little") + text, 8 + len(SEAL)
    return raw[:at] + header_seal(raw) + raw[at + 64 :]


def _changed_floats(body: bytes, rng: np.random.Generator) -> bytes:
    """One to three of the first floats; those of a mode stand before its planes."""
    whole = len(body) // 4 * 4
    floats = np.frombuffer(body[:whole], "<f4").copy()
    places = rng.integers(0, min(floats.size, 64), rng.integers(1, 4))
    floats[places] = rng.choice(_NASTY_FLOATS, places.size)
    return floats.tobytes() + body[whole:]


def _sums(sections: Sequence[tuple[str, int, str]], body: bytes) -> list[list[Any]]:
    starts = [0, *(end for _, end, _ in sections)]
    return [
        [name, end, hashlib.sha256(body[start:end]).hexdigest()]
        for start, (name, end, _) in zip(starts[:-1], sections, strict=True)
    ]


def forged_png(png: bytes, rng: np.random.Generator) -> bytes:
    """A PNG one of whose chunks holds something else, or is called another name; sums are right."""
    chunks, at = [], 8
    while at < len(png):
        size = int.from_bytes(png[at : at + 4], "big")
        chunks.append((png[at + 4 : at + 8], png[at + 8 : at + 8 + size]))
        at += 12 + size
    index = int(rng.integers(len(chunks)))
    tag, data = chunks[index]
    match rng.integers(0, 4):
        case 0:
            names = [b"IHDR", b"IDAT", b"PLTE", b"tRNS", b"iCCP", b"zTXt", b"acTL", b"fdAT"]
            chunks[index] = (names[rng.integers(len(names))], data)
        case 1:
            numbers = np.frombuffer(chunks[0][1], np.uint8).copy()
            numbers[rng.integers(numbers.size)] = rng.integers(256)
            chunks[0] = (b"IHDR", numbers.tobytes())
        case 2:
            bomb = b"bomb\0\0" + zlib.compress(bytes(2**24))
            chunks.insert(index, ([b"zTXt", b"iCCP", b"IDAT"][rng.integers(3)], bomb))
        case _:
            chunks[index] = (tag, changed_bytes(data, rng))
    return png[:8] + b"".join(
        struct.pack(">I", len(data)) + tag + data + struct.pack(">I", zlib.crc32(tag + data))
        for tag, data in chunks
    )
