"""The CPU kernel for the recurrence of an LSTM on bit planes; it needs what planes.py does."""

from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from dual_precision.primitives.native import build, planes

_HERE = Path(__file__).parent
KERNEL = build.Kernel(
    "recurrence",
    "recurrences on bit planes",
    sources=(_HERE / "recurrence.cc", *planes.HEADERS),
)
NEEDED, UNFIT = {*planes.NEEDED, "avx512dq"}, planes.UNFIT
_TARGET = "dual_precision_recurrence"


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
    if not available():
        raise ValueError(f'there is no compiled kernel here, {_why_not()}: take form="xla"')
    state = jax.ShapeDtypeStruct(h.shape, jnp.float32)
    shown = jax.ShapeDtypeStruct((*gates.shape[:2], h.shape[1]), jnp.float32)
    call = jax.ffi.ffi_call(
        _TARGET, (shown, state, state), vmap_method="sequential", input_output_aliases={1: 1, 2: 2}
    )
    numbers = {"planes": np.int64(planes), "digits": np.int64(activations // 8)}
    out, c, h = call(gates, c, h, bias, words, scales, step, ends, **numbers)
    return out, (c, h)


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
