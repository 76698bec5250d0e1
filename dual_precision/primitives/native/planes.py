"""The CPU kernel for products on bit planes.

It needs a CPU with AVX512-VNNI and GFNI (since 2019), and a C++ compiler, see build.py; without,
the XLA form of the same sum is used.
"""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from dual_precision.primitives.native import build

_HERE = Path(__file__).parent
HEADERS = tuple(
    _HERE / f"{name}.h" for name in ("plane_product", "plane_rows", "plane_tiles", "parts", "lanes")
)
_TARGET = "dual_precision_plane_product"
KERNEL = build.Kernel(
    "planes",
    "bit planes",
    sources=(_HERE / "planes.cc", *HEADERS),
    targets=(_TARGET,),
    needed=frozenset({"avx512bw", "avx512vl", "avx512_vnni", "gfni"}),
    unfit="this CPU has no AVX512-VNNI and GFNI",
)
available = partial(build.available, KERNEL)


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
    build.check_available(KERNEL)
    result = jax.ShapeDtypeStruct((x.shape[0], words.shape[2]), jnp.float32)
    call = jax.ffi.ffi_call(_TARGET, result, vmap_method="sequential")
    return call(
        x, words, scales, step, ends, planes=np.int64(planes), digits=np.int64(activations // 8)
    )
