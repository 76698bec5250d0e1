"""What makes XLA's CPU programs faster; nothing of it has an effect elsewhere."""

import ctypes
import functools
import sys

import jax
import jax.numpy as jnp

# XLA's CPU backend hands convolutions and matrix products to a library that is slow for the
# small channel counts of CIFAR networks; its reductions and element-wise kernels are fast.
# Measured on two cores, ResNet-20 train step: 187 images/s by default, 328 with this.
_CPU_OPTIONS = {
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE,LIBRARY_FUSION_TYPE_ELTWISE"
}


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


def keep_freed_memory() -> bool:
    """Has glibc keep what XLA's CPU programs free, for the next step; True where it could.

    Every program launch allocates and frees its temporary arrays. By default they go back to the
    kernel each time, and the next step pays a page fault for every 4 KiB: a fifth of a ResNet-20
    step. Commands call this once at their start; a library should not decide it for its process.
    """
    if not sys.platform.startswith("linux") or jax.default_backend() != "cpu":
        return False
    mmap_max, trim_threshold, top_pad, arena_max = -4, -1, -2, -8  # malloc.h's M_...
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library: it has its own ways
        return False
    settings = ((arena_max, 1), (mmap_max, 0), (trim_threshold, -1), (top_pad, 64 << 20))
    accepted = [mallopt(name, value) for name, value in settings]
    return all(accepted)
