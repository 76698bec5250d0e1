"""The CPU kernel for products on bit planes.

It needs a CPU with AVX512-VNNI and GFNI (since 2019), and a C++ compiler, see build.py; without,
the XLA form of the same sum is used.
"""

from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from dual_precision.primitives.native import build

_HERE = Path(__file__).parent
HEADERS = tuple(
    _HERE / f"{name}.h" for name in ("plane_product", "plane_rows", "plane_tiles", "parts", "lanes")
)
KERNEL = build.Kernel("planes", "bit planes", sources=(_HERE / "planes.cc", *HEADERS))
NEEDED = {"avx512bw", "avx512vl", "avx512_vnni", "gfni"}
UNFIT = "this CPU has no AVX512-VNNI and GFNI"
_TARGET = "dual_precision_plane_product"


def plane_product_native(
    x: jax.Array,
    words: jax.Array,
    scales: jax.Array,
    step: jax.Array,
    ends: jax.Array,
    planes: int,
    activations: int,
) -> jax.Array:
    """As `bitserial.plane_product`; on a CPU.

    Raises:
      ValueError: it is not `available()`, whose log line says why.
    """
    if not available():
        raise ValueError(f'there is no compiled kernel here, {_why_not()}: take form="xla"')
    result = jax.ShapeDtypeStruct((x.shape[0], words.shape[2]), jnp.float32)
    call = jax.ffi.ffi_call(_TARGET, result, vmap_method="sequential")
    return call(
        x, words, scales, step, ends, planes=np.int64(planes), digits=np.int64(activations // 8)
    )


def available() -> bool:
    """Whether the kernel can be called in this process; builds it if need be, once, in seconds.

    Raises:
      ValueError: DUAL_PRECISION_NATIVE is neither 0 nor 1.
    """
    return _why_not() is None


@cache
def _why_not() -> str | None:
    prepare = partial(build.prepare, KERNEL, NEEDED, UNFIT, _TARGET)
    return build.left_out(KERNEL.purpose, prepare)
