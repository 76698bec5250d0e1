"""The CPU kernel for the recurrence of an LSTM on bit planes; it needs what planes.py does."""

import dataclasses
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from dual_precision.primitives.native import build, planes

_HERE = Path(__file__).parent
_TARGET = "dual_precision_recurrence"
KERNEL = dataclasses.replace(
    planes.KERNEL,
    name="recurrence",
    purpose="recurrences on bit planes",
    sources=(_HERE / "recurrence.cc", *planes.HEADERS),
    targets=(_TARGET,),
    needed=planes.KERNEL.needed | {"avx512dq"},
)
available = partial(build.available, KERNEL)


def recurrence_native(
    gates: jax.Array,
    c: jax.Array,
    h: jax.Array,
    bias: jax.Array,
    words: jax.Array,
    scales: jax.Array,
    step: jax.Array,
    ends: jax.Array,
    planes: int,
    activations: int,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """As `recurrence.plane_recurrence`; on a CPU.

    Raises:
      ValueError: it is not `available()`, whose log line says why.
    """
    build.check_available(KERNEL)
    state = jax.ShapeDtypeStruct(h.shape, jnp.float32)
    shown = jax.ShapeDtypeStruct((*gates.shape[:2], h.shape[1]), jnp.float32)
    call = jax.ffi.ffi_call(
        _TARGET, (shown, state, state), vmap_method="sequential", input_output_aliases={1: 1, 2: 2}
    )
    numbers = {"planes": np.int64(planes), "digits": np.int64(activations // 8)}
    out, c, h = call(gates, c, h, bias, words, scales, step, ends, **numbers)
    return out, (c, h)
