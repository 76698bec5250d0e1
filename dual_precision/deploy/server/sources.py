"""Where a packed file is read from, as it comes: a slow disk, an HTTP server that knows ranges.

with opened_source("http://127.0.0.1:8000/net.safetensors") as file:
    low = PredictorEngine(file, ["low"])  # reads the first part
    both = PredictorEngine(file)          # reads on: what was read is kept
"""

import contextlib
import io
import math
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import BinaryIO, cast

from dual_precision.deploy.file.packed import inspect_packed

SECONDS = 30.0  # without a byte, after which a source is given up
_PIECE = 1 << 18  # bytes asked for at a time


class PrefixFile(io.RawIOBase):
    """A file of which every byte is fetched once, from the begin on."""

    def __init__(self, size: int, fetch: Callable[[int], bytes]) -> None:
        """fetch(count) gives the next bytes, at least one and at most so many."""
        super().__init__()
        self._size, self._fetch, self._content, self._at = size, fetch, bytearray(), 0

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is; what is in between is fetched when something behind it is read."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """As files do."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        """As files do."""
        left = max(0, self._size - self._at)
        end = self._at + (left if size is None or size < 0 else min(size, left))
        while len(self._content) < end:
            if self.closed:  # by another thread, as the server ends
                raise ValueError("a source that was closed: nothing more is fetched")
            part = self._fetch(min(_PIECE, end - len(self._content)))
            if not part:
                raise OSError(f"it ended at byte {len(self._content)} of {self._size}")
            self._content += part
        found = bytes(self._content[self._at : end])
        self._at = max(self._at, end)
        return found


def check_source(source: str, rate: float | None = None) -> None:
    """Checks what shows before a server starts; arguments as `opened_source`.

    Of a path it is the header of the file; an address, which may be slow, is not asked.

    Raises:
      ValueError: a rate that is none; a network that takes no images.
      PackedError, OSError: as `inspect_packed`.
    """
    _check_rate(rate)
    if not _is_address(source):
        _ = inspect_packed(source).image_shape


@contextlib.contextmanager
def opened_source(source: str, rate: float | None = None) -> Iterator[BinaryIO]:
    """A file by its path, or by its address.

    Args:
      source: a path, or http:// or https:// of a server that answers Range.
      rate: bytes a second at most, to see what a slow source does; None is no limit.

    Raises:
      ValueError: a server without ranges; a rate that is none. OSError: it cannot be read.
    """
    _check_rate(rate)
    with contextlib.ExitStack() as stack:
        if _is_address(source):
            size, fetch = _remote(source)
        else:
            size, fetch = _local(stack.enter_context(open(source, "rb")))
        own = PrefixFile(size, fetch if rate is None else _slow(fetch, rate))
        stack.callback(own.close)
        yield cast(BinaryIO, own)


def _is_address(source: str) -> bool:
    return re.match(r"https?://", source) is not None


def _check_rate(rate: float | None) -> None:
    if rate is not None and not 0 < rate < math.inf:
        raise ValueError(f"a rate of {rate:g} bytes a second: expected a number above 0, or none")


def _local(file: BinaryIO) -> tuple[int, Callable[[int], bytes]]:
    return os.fstat(file.fileno()).st_size, file.read


def _slow(fetch: Callable[[int], bytes], rate: float) -> Callable[[int], bytes]:
    begin, given = 0.0, 0

    def slow(count: int) -> bytes:
        nonlocal begin, given
        begin = begin or time.monotonic()
        part = fetch(min(count, max(1, int(rate / 50))))
        given += len(part)
        time.sleep(max(0.0, begin + given / rate - time.monotonic()))
        return part

    return slow


def _remote(address: str) -> tuple[int, Callable[[int], bytes]]:
    """(size, fetch) of a file behind HTTP."""
    at = 0

    def ask(first: int, count: int) -> tuple[int, bytes]:
        asked = urllib.request.Request(
            address, headers={"Range": f"bytes={first}-{first + count - 1}"}
        )
        with urllib.request.urlopen(asked, timeout=SECONDS) as answer:
            said = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", answer.headers.get("Content-Range") or "")
            if answer.status != 206 or not said or int(said[1]) != first:
                raise ValueError(
                    f"{address}: its server gave no range of it (status {answer.status}): expected"
                    " one that does; or copy the file"
                )
            return int(said[2]), answer.read(count)

    size, begin = ask(0, 1)

    def fetch(count: int) -> bytes:
        nonlocal at
        if at == 0 and count == 1:
            part = begin
        else:
            total, part = ask(at, count)
            if total != size:
                raise OSError(f"{address}: it changed while it was read: start again")
        at += len(part)
        return part

    return size, fetch
