"""What products with bit planes take: the layout of their words, checked."""

import jax
import jax.numpy as jnp

from dual_precision.primitives.fixed_point import check_width
from dual_precision.primitives.quantizers import InputGrid

WORD = 32  # inputs in a word
DIGIT = 8  # bits of x
_LOWEST, _TOP = -128, 127  # codes of x
MOST_INPUTS = 2**16  # 2^16 * 255 * 128 still fits int32


def check_product(
    x: jax.Array,
    words: jax.Array,
    scales: jax.Array,
    planes: int,
    activations: int,
    grid: InputGrid | None,
) -> None:
    """Raises ValueError unless these are arguments of `bitserial.plane_product`."""
    check_width(activations)
    if grid is not None and activations != DIGIT:
        raise ValueError(f"codes of a grid and {activations} bits: expected {DIGIT}")
    if x.ndim != 2 or x.dtype != jnp.float32:
        raise ValueError(f"inputs {x.dtype}{list(x.shape)}: expected float32 [rows, inputs]")
    _check_grid(grid)
    check_words(words, x.shape[1], planes)
    expected = (words.shape[0], words.shape[2])
    if scales.shape != expected or scales.dtype != jnp.float32:
        raise ValueError(
            f"scales {scales.dtype}{list(scales.shape)}: expected float32 {list(expected)}"
        )


def step_and_ends(grid: InputGrid | None) -> tuple[jax.Array, jax.Array]:
    """[1] and [2], or [0] each: apart, because the ends are constants of a program; put together
    with the step they would be a small program of their own before each product.

    Traced ends that int8 does not hold, which nobody can refuse, have a step of NaN. Of constants
    the compiler decides that, and no program asks it."""
    if grid is None:
        return jnp.zeros(0, jnp.float32), jnp.zeros(0, jnp.float32)
    step = grid.step
    if _is_traced(grid):
        step = jnp.where((grid.low >= _LOWEST) & (grid.top <= _TOP), step, jnp.nan)
    return step.reshape(1), jnp.stack([grid.low, grid.top])


def _is_traced(grid: InputGrid) -> bool:
    return any(isinstance(end, jax.core.Tracer) for end in (grid.low, grid.top))


def _check_grid(grid: InputGrid | None) -> None:
    """Raises ValueError where concrete codes are none of int8; traced ones pass."""
    if grid is None or _is_traced(grid):
        return
    low, top = float(grid.low), float(grid.top)
    if not _LOWEST <= low <= top <= _TOP:
        raise ValueError(
            f"a grid of codes {low:g} to {top:g}: expected codes within {_LOWEST} to"
            f" {_TOP}, as the product takes int8; give signed codes, or at most 7 bits"
        )


def check_words(words: jax.Array, inputs: int, planes: int) -> None:
    """Raises ValueError unless these are words of so many inputs, and hold so many planes."""
    expected = -(-inputs // WORD)
    if words.dtype != jnp.uint32 or words.ndim != 3 or words.shape[1] != expected:
        raise ValueError(
            f"words {words.dtype}{list(words.shape)}: expected uint32 [planes, {expected}, outputs]"
            f" for {inputs} inputs, as pack_words() gives"
        )
    if not 1 <= planes <= words.shape[0]:
        raise ValueError(f"{planes} planes: expected 1 to {words.shape[0]}, those that are stored")
    if not 1 <= inputs <= MOST_INPUTS:
        raise ValueError(f"{inputs} inputs: expected 1 to {MOST_INPUTS}; split the layer")
