"""The CPU kernel for products on bit planes: built on first use, left out where it cannot be.

It needs a C++ compiler and a CPU with AVX512-VNNI and GFNI (since 2019); without, the XLA form of
the same sum is used. The library stands in the user's cache, named after all that it was made of.
DUAL_PRECISION_NATIVE=0 leaves it out.
"""

import ctypes
import functools
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

SOURCE = Path(__file__).with_name("planes.cc")
_MADE_OF = (SOURCE, Path(__file__).with_name("plane_tiles.h"))
SWITCH = "DUAL_PRECISION_NATIVE"
_TARGET = "dual_precision_plane_product"
_FLAGS = ("-O3", "-std=c++17", "-ffp-contract=off", "-shared", "-fPIC")
_NEEDED = {"avx512bw", "avx512vl", "avx512_vnni", "gfni"}
_CPU = Path("/proc/cpuinfo")
_UNFIT = "this CPU has no AVX512-VNNI and GFNI"
_LOG = logging.getLogger("dual_precision")


def plane_product(
    x: jax.Array, words: jax.Array, scales: jax.Array, planes: int, activations: int
) -> jax.Array:
    """As `bitserial.plane_product`; on a CPU.

    Raises:
      ValueError: it is not `available()`, whose log line says why.
    """
    if not available():
        raise ValueError(f'there is no compiled kernel here, {_why_not()}: take form="xla"')
    result = jax.ShapeDtypeStruct((x.shape[0], words.shape[2]), jnp.float32)
    call = jax.ffi.ffi_call(_TARGET, result, vmap_method="sequential")
    return call(x, words, scales, planes=np.int64(planes), digits=np.int64(activations // 8))


def available() -> bool:
    """Whether the kernel can be called in this process; builds it if need be, once, in seconds.

    Raises:
      ValueError: DUAL_PRECISION_NATIVE is neither 0 nor 1.
    """
    return _why_not() is None


@functools.cache
def _why_not() -> str | None:
    """Makes the kernel ready; why it cannot be, in one line, which is logged."""
    switch = os.environ.get(SWITCH, "1")
    if switch not in ("0", "1"):
        raise ValueError(f"{SWITCH}={switch}: expected 0, without the compiled kernel, or 1")
    try:
        if switch == "0":
            raise OSError(f"{SWITCH}=0 was set")
        _check_cpu()
        library = ctypes.CDLL(str(_built()))
        if not library.dual_precision_supported():
            raise OSError(_UNFIT)
        handler = jax.ffi.pycapsule(library.dual_precision_plane_product)
        jax.ffi.register_ffi_target(_TARGET, handler, platform="cpu")
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        # RuntimeError: there is no home folder, or XLA does not take the kernel.
        reason = _reason(error)
        _LOG.warning("bit planes run without the compiled CPU kernel: %s", reason)
        return reason
    return None


def _check_cpu() -> None:
    """Raises OSError where it is plain, before anything is built, that the CPU cannot do it."""
    words = set(_CPU.read_text().split()) if _CPU.exists() else _NEEDED
    if not words >= _NEEDED:
        raise OSError(_UNFIT)


def _reason(error: Exception) -> str:
    """In one line; of a compiler its first words, which say more than the whole command."""
    text = str(error)
    if isinstance(error, subprocess.CalledProcessError):
        text = f"{error.cmd[0]} ended with status {error.returncode}: {error.stderr}"
    return " ".join(text.split())[:300]


def _built() -> Path:
    """The library, from the cache or built now.

    Raises:
      OSError: no compiler; no place to write. SubprocessError: the compiler failed.
    """
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if compiler is None:
        raise OSError("no C++ compiler was found")
    version = _run(compiler, "--version")
    made_of = (*(path.read_text() for path in _MADE_OF), version, jax.lib.__version__, *_FLAGS)
    name = hashlib.sha256("\0".join(made_of).encode()).hexdigest()[:20]
    library = _folder() / f"planes-{name}.so"
    if not library.exists():
        _LOG.info("building the CPU kernel for bit planes, once: %s", library)
        library.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            part = Path(folder) / library.name
            _run(compiler, *_FLAGS, *include(), str(SOURCE), "-o", str(part))
            part.chmod(0o700)
            part.replace(library)  # whole or not at all, whoever else builds it too
    _check_ours(library)
    return library


def include() -> tuple[str, str]:
    """The compiler's flags for jaxlib's header, whose warnings are not ours."""
    return "-isystem", jax.ffi.include_dir()


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
