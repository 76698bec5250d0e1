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

SOURCE = Path(__file__).with_name("native_kernel.cc")
SWITCH = "DUAL_PRECISION_NATIVE"
_TARGET = "dual_precision_plane_product"
_FLAGS = ("-O3", "-std=c++17", "-ffp-contract=off", "-shared", "-fPIC", "-w")
_LOG = logging.getLogger("dual_precision")


def plane_product(
    x: jax.Array, words: jax.Array, scales: jax.Array, planes: int, activations: int
) -> jax.Array:
    """As `bitserial.plane_product`; on a CPU.

    Raises:
      ValueError: it is not `available()`, whose log line says why.
    """
    if not available():
        raise ValueError('there is no compiled kernel here (see the log): take form="xla"')
    result = jax.ShapeDtypeStruct((x.shape[0], words.shape[2]), jnp.float32)
    call = jax.ffi.ffi_call(_TARGET, result)
    return call(x, words, scales, planes=np.int64(planes), digits=np.int64(activations // 8))


@functools.cache
def available() -> bool:
    """Whether the kernel can be called in this process; builds it if need be, once, in seconds."""
    try:
        if os.environ.get(SWITCH) == "0":
            raise OSError(f"{SWITCH}=0 was set")
        library = ctypes.CDLL(str(_built()))
        if not library.dual_precision_supported():
            raise OSError("this CPU has no AVX512-VNNI and GFNI")
        handler = jax.ffi.pycapsule(library.dual_precision_plane_product)
        jax.ffi.register_ffi_target(_TARGET, handler, platform="cpu")
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        # RuntimeError: there is no home folder, or XLA does not take the kernel.
        _LOG.info("bit planes run without the compiled CPU kernel: %s", _reason(error))
        return False
    return True


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
    made_of = (SOURCE.read_bytes(), version.encode(), jax.lib.__version__.encode(), *_FLAGS)
    name = hashlib.sha256(b"\0".join(str(part).encode() for part in made_of)).hexdigest()[:20]
    library = _folder() / f"planes-{name}.so"
    if not library.exists():
        _LOG.info("building the CPU kernel for bit planes, once: %s", library)
        library.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            part = Path(folder) / library.name
            _run(compiler, *_FLAGS, f"-I{jax.ffi.include_dir()}", str(SOURCE), "-o", str(part))
            part.replace(library)  # whole or not at all, whoever else builds it too
    return library


def _folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dual_precision"


def _run(*command: str) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, errors="replace", check=True, timeout=300
    )
    return done.stdout
