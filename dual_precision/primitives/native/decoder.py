"""The CPU kernel for the float parts of a decoder: norms and attention with a cache, by rows.

It needs a CPU with AVX512 and a C++ compiler, see build.py; without, XLA runs row by row. It has no
derivative.
"""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from dual_precision.primitives.native import build

_HERE = Path(__file__).parent
_NORM, _ATTENTION = "dual_precision_rms_norm", "dual_precision_attention"
KERNEL = build.Kernel(
    "decoder",
    "norms and attention of decoders",
    sources=(_HERE / "decoder.cc", _HERE / "lanes.h"),
    targets=(_NORM, _ATTENTION),
    needed=frozenset({"avx512f", "avx512dq"}),
    unfit="this CPU has no AVX512",
)
available = partial(build.available, KERNEL)


def rms_normalize_rows(x: jax.Array, scale: jax.Array, epsilon: float) -> jax.Array:
    """As `attention.rms_normalize` of x [rows, channels]; on a CPU, where there is the kernel."""
    result = jax.ShapeDtypeStruct(x.shape, jnp.float32)
    call = jax.ffi.ffi_call(_NORM, result, vmap_method="sequential")
    return call(x, scale, epsilon=np.float32(epsilon))


def attend_rows(
    qkv: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    length: jax.Array,
    cos: np.ndarray,
    sin: np.ndarray,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """As `attention.cached_attention`, of qkv [N, T, 3, heads, D]; cos, sin [S, D / 2] of the
    turns of all positions. On a CPU, where `available()`."""
    texts, rows, _, heads, size = qkv.shape
    cached = jax.ShapeDtypeStruct(keys.shape, jnp.float32)
    attended = jax.ShapeDtypeStruct((texts, rows, heads, size), jnp.float32)
    call = jax.ffi.ffi_call(
        _ATTENTION,
        (attended, cached, cached),
        vmap_method="sequential",
        input_output_aliases={1: 1, 2: 2},
    )
    y, keys, values = call(qkv, keys, values, length, cos, sin)
    return y, keys, values
