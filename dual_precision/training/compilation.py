"""What makes XLA's CPU programs faster."""

import ctypes
import functools
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp

# XLA's CPU backend hands convolutions and matrix products to a library that is slow for the small
# channel counts of CIFAR networks; its reductions are fast. Its element-wise kernels are not asked
# for: they write out what is broadcast, an array for each gain of a channel. Measured on two cores,
# ResNet-20 train step: 187 images/s by default, 328 with this; then, with the convolutions of
# oneDNN and bfloat16, 242 ms with the element-wise kernels and 157 without.
_CPU_OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}

# For a program that runs once and is large: what XLA's highest level adds does not come back.
# The first weights of ResNet-20: 5 s of compiling in the place of 16, and the same bits.
RUNS_ONCE = {"xla_backend_optimization_level": 1}


@functools.cache
def compiler_options() -> dict[str, str]:
    """For `jax.jit(..., compiler_options=...)`: what this jaxlib knows of them, on this backend."""
    if jax.default_backend() != "cpu":
        return {}
    try:
        jax.jit(lambda x: x + 1, compiler_options=_CPU_OPTIONS).lower(jnp.float32(0)).compile()
    except Exception:  # another jaxlib, without this option: its own defaults then
        return {}
    return _CPU_OPTIONS


def keep_freed_memory(start: Callable[[], object] = jax.devices) -> bool:
    """Has glibc keep what XLA's CPU programs free, for the next step; True where it could.

    Every program launch allocates and frees its temporary arrays. By default they go back to the
    kernel each time, and the next step pays a page fault for every 4 KiB: 75,000 of them in a
    ResNet-20 step of batch 128, a quarter of its time. So the heap keeps what is freed, and is
    given a first gigabyte in huge pages. Commands call this once at their start, before anything
    asks JAX for its devices: a thread of XLA's that was started earlier has an arena of its own,
    which holds 64 MiB at most and maps whatever is larger anew at each launch. A library should
    not decide it for its process.

    Args:
      start: what asks JAX for its devices first, such as joining other processes: called once.
    """
    kept = _keep_freed()
    start()
    if kept and jax.default_backend() == "cpu":
        _touch_huge_pages(ctypes.CDLL("libc.so.6"), 1 << 30)
    return kept


def _keep_freed() -> bool:
    if not sys.platform.startswith("linux"):
        return False
    mmap_max, trim_threshold, top_pad, arena_max = -4, -1, -2, -8  # malloc.h's M_...
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another C library: it has its own ways
        return False
    settings = ((arena_max, 1), (mmap_max, 0), (trim_threshold, -1), (top_pad, 64 << 20))
    accepted = [mallopt(name, value) for name, value in settings]
    return all(accepted)


def _touch_huge_pages(libc: ctypes.CDLL, size: int) -> None:
    """Takes `size` bytes into the heap as huge pages, and frees them into it."""
    page, madvise_hugepage = 2 << 20, 14
    libc.malloc.restype = ctypes.c_void_p
    libc.malloc.argtypes = [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    block = libc.malloc(size)
    if not block:  # so little memory is left that the default is the better choice
        return
    start = -(-block // page) * page
    length = (block + size - start) // page * page
    libc.madvise(start, length, madvise_hugepage)
    ctypes.memset(start, 0, length)
    libc.free(block)
