"""A file that is replaced as a whole, whoever else writes it and however it ends."""

import os
import stat

import pytest

from dual_precision.replacing import replace_file


def test_two_writers_of_one_file_do_not_mix(tmp_path):
    path = tmp_path / "net"

    def slow():
        yield b"slow"
        replace_file(path, [b"quick"])
        assert path.read_bytes() == b"quick"
        yield b" and whole"

    replace_file(path, slow())
    assert path.read_bytes() == b"slow and whole"
    assert [*tmp_path.iterdir()] == [path]


def test_a_write_that_fails_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "net"
    path.write_bytes(b"old")

    def full():
        yield b"half"
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space"):
        replace_file(path, full())
    assert path.read_bytes() == b"old"
    assert [*tmp_path.iterdir()] == [path]


def test_the_rights_are_those_of_a_file_that_is_opened(tmp_path):
    before = os.umask(0o027)
    try:
        replace_file(tmp_path / "net", [b"new"])
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "net").stat().st_mode) == 0o640
