"""Compiled CPU kernels: built on first use, left out with one log line where they cannot be.

A kernel needs a C++ compiler, and what else its own module says. Its library stands in the user's
cache, named after all that it was made of. DUAL_PRECISION_NATIVE=0 leaves all of them out.
"""

import ctypes
import dataclasses
import functools
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax

SWITCH = "DUAL_PRECISION_NATIVE"
_FLAGS = ("-O3", "-std=c++17", "-ffp-contract=off", "-shared", "-fPIC")
_CPU = Path("/proc/cpuinfo")
_LOG = logging.getLogger("dual_precision")


@dataclasses.dataclass(frozen=True)
class Kernel:
    """What a library is made of.

    Attributes:
      name: of the file in the cache.
      purpose: what it computes, in log lines.
      sources: what is compiled, and then what that includes.
      targets: the functions that XLA calls, each by its own name.
      needed: instruction sets, in the words of the system.
      unfit: what is said of a CPU without them.
      flags: of the compiler, beside those of every kernel; part of the name of the library.
    """

    name: str
    purpose: str
    sources: tuple[Path, ...]
    targets: tuple[str, ...]
    needed: frozenset[str] = frozenset()
    unfit: str = ""
    flags: tuple[str, ...] = ()


def available(kernel: Kernel) -> bool:
    """Whether it can be called in this process; builds it if need be, once, in seconds.

    Raises:
      ValueError: DUAL_PRECISION_NATIVE is neither 0 nor 1.
    """
    return _why_not(kernel) is None


def check_available(kernel: Kernel) -> None:
    """Raises ValueError, with the reason, where it is not `available`."""
    if reason := _why_not(kernel):
        raise ValueError(f'there is no compiled kernel here, {reason}: take form="xla"')


@functools.cache
def _why_not(kernel: Kernel) -> str | None:
    return left_out(kernel.purpose, lambda: prepare(kernel))


def left_out(purpose: str, prepare: Callable[[], None]) -> str | None:
    """Makes a kernel ready; why it cannot be, in one line, which is logged.

    Args:
      purpose: see `Kernel`.
      prepare: builds and registers it. An OSError, RuntimeError or SubprocessError says why not.

    Raises:
      ValueError: DUAL_PRECISION_NATIVE is neither 0 nor 1.
    """
    switch = os.environ.get(SWITCH, "1")
    if switch not in ("0", "1"):
        raise ValueError(f"{SWITCH}={switch}: expected 0, without the compiled kernels, or 1")
    try:
        if switch == "0":
            raise OSError(f"{SWITCH}=0 was set")
        prepare()
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        # RuntimeError: there is no home folder, or XLA does not take the kernel.
        reason = _reason(error)
        _LOG.warning("%s run without the compiled CPU kernel: %s", purpose, reason)
        return reason
    return None


def check_cpu(kernel: Kernel) -> None:
    """Raises OSError where it is plain, before anything is built, that the CPU cannot do it."""
    words = cpu_words()
    if words is not None and not words >= kernel.needed:
        raise OSError(kernel.unfit)


def cpu_words() -> set[str] | None:
    """What the system says of the CPU, its instruction sets in it; None where it says nothing."""
    return set(_CPU.read_text().split()) if _CPU.exists() else None


def built(kernel: Kernel) -> Path:
    """The library, from the cache or built now.

    Raises:
      OSError: no compiler; no place to write. SubprocessError: the compiler failed.
    """
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if compiler is None:
        raise OSError("no C++ compiler was found")
    version = _run(compiler, "--version")
    flags = (*_FLAGS, *kernel.flags)
    texts = (path.read_text() for path in kernel.sources)
    made_of = (*texts, version, jax.lib.__version__, *flags)
    name = hashlib.sha256("\0".join(made_of).encode(errors="surrogateescape")).hexdigest()[:20]
    library = _folder() / f"{kernel.name}-{name}.so"
    if not library.exists():
        _LOG.info("building the CPU kernel for %s, once: %s", kernel.purpose, library)
        library.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            part = Path(folder) / library.name
            # The source comes before the libraries that it needs: linkers ask for that order.
            _run(compiler, *include(), str(kernel.sources[0]), *flags, "-o", str(part))
            part.chmod(0o700)
            with part.open("rb") as handle:
                os.fsync(handle.fileno())  # or its name may outlive its content
            part.replace(library)  # whole or not at all, whoever else builds it too
    _check_ours(library)
    return library


def loaded(kernel: Kernel) -> ctypes.CDLL:
    """The library in this process. One that cannot be loaded is built once more: it is damaged, or
    of another machine with the same home and other system libraries.

    Raises:
      OSError, SubprocessError: as `built`, or it cannot be loaded then either.
    """
    library = built(kernel)
    try:
        return ctypes.CDLL(str(library))
    except OSError as error:
        _LOG.info("building it again, as it cannot be loaded: %s", _reason(error))
        library.unlink(missing_ok=True)
        return ctypes.CDLL(str(built(kernel)))


def prepare(kernel: Kernel) -> None:
    """Builds a kernel of our own, and registers it.

    Raises:
      OSError: a CPU that it is unfit for; and what `built` raises. RuntimeError: see `register`.
    """
    check_cpu(kernel)
    library = loaded(kernel)
    if not library.dual_precision_supported():
        raise OSError(kernel.unfit)
    register(kernel, library)


def register(kernel: Kernel, library: ctypes.CDLL) -> None:
    """Makes its functions known to XLA; RuntimeError where XLA does not take them."""
    for name in kernel.targets:
        handler = jax.ffi.pycapsule(getattr(library, name))
        jax.ffi.register_ffi_target(name, handler, platform="cpu")


def include() -> tuple[str, str]:
    """The compiler's flags for jaxlib's header, whose warnings are not ours."""
    return "-isystem", jax.ffi.include_dir()


def _reason(error: Exception) -> str:
    """In one line; of a compiler its first words, which say more than the whole command."""
    text = str(error)
    if isinstance(error, subprocess.CalledProcessError):
        text = f"{error.cmd[0]} ended with status {error.returncode}: {error.stderr}"
    return " ".join(text.split())[:300]


def _check_ours(library: Path) -> None:
    """Raises OSError where another user may have put the library there, or may change it."""
    for path in (library, library.parent):
        status = path.stat()
        if status.st_uid != os.getuid() or status.st_mode & 0o022:
            raise OSError(f"{path} is not this user's alone to write: chmod go-w, or delete it")


def _folder() -> Path:
    caches = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # The standard of that variable says so: a relative path is none.
    return (caches if caches.is_absolute() else Path.home() / ".cache") / "dual_precision"


def _run(*command: str) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, errors="replace", check=True, timeout=300
    )
    return done.stdout
