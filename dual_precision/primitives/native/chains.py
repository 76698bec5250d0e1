"""A convolution of codes and what follows it number by number, as one call of a compiled kernel.

What lies between two layers, a factor, a normalisation, a shortcut, a rectifier, a rounding to
codes, takes longer than the convolution where every step reads and writes whole arrays. Here a
tile of some pixels goes through all of them while its sums are in the cache: see chain.h.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

TARGET = "dual_precision_chain"
NEEDED = {"avx2", "fma"}  # of the CPU
# The order of chain.h: a * b, a + b, a - b, max, min, round to even, a * b + c, a * b - c,
# c - a * b with one rounding each; then the results, float32 or uint8.
OPERATIONS = (
    *("multiply", "add", "subtract", "max", "min", "round"),
    *("fused", "fused minus", "minus fused", "float32", "uint8"),
)
KINDS = ("number", "channels", "array")

_TAGS = itertools.count()


class Step(NamedTuple):
    """slots[to] = operation(slots[a], slots[b], slots[c]); or result `to` is slots[a]."""

    operation: str
    to: int
    a: int
    b: int = 0
    c: int = 0


@dataclasses.dataclass(frozen=True)
class Chain:
    """What follows the sums, each of them by itself.

    Attributes:
      steps: slot 0 has the sums, rounded once to float32; the next ones are the operands.
      kinds: of the operands, all float32: a number (), a vector of the channels, or an array like
        the sums.
      slots: how many the steps use.
      results: dtypes, float32 or uint8; a number that becomes uint8 is a code.
    """

    steps: tuple[Step, ...]
    kinds: tuple[str, ...]
    slots: int
    results: tuple[str, ...]


SUMS = Chain((Step("float32", 0, 0),), (), 1, ("float32",))


def convolve_codes(
    x: jax.Array,
    codes: jax.Array,
    shape: tuple[int, ...],
    stride: int,
    bits: int,
    shift: int,
    chain: Chain = SUMS,
    operands: Sequence[jax.Array] = (),
) -> list[jax.Array]:
    """The results of a chain on the sums of `convolution.conv2d_codes`; on a CPU.

    Args:
      x, codes, stride: see there; no axis is empty.
      bits: of the weights, after codes >> shift.
      shape: of the sums.
      operands: of the kinds that the chain says.
    """
    results = [jax.ShapeDtypeStruct(shape, jnp.dtype(dtype)) for dtype in chain.results]
    call = jax.ffi.ffi_call(TARGET, results, vmap_method="sequential")
    steps = [(OPERATIONS.index(step.operation), *step[1:]) for step in chain.steps]
    found = call(
        x,
        codes,
        *operands,
        stride=np.int64(stride),
        bits=np.int64(bits),
        shift=np.int64(shift),
        tag=np.int64(next(_TAGS)),  # the kernel keeps a layout of its own for each call
        slots=np.int64(chain.slots),
        kinds=np.array([KINDS.index(kind) for kind in chain.kinds], np.int64),
        steps=np.array(steps, np.int64).reshape(-1),
    )
    return list(found)
