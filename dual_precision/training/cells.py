"""Weights that move inside the cells of a mode only: its codes, and so its function, stay."""

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from dual_precision.primitives.nested import cell_of, half_of
from dual_precision.primitives.normalization import per_channel
from dual_precision.primitives.ste import midrise_code
from dual_precision.structure import Structure

# How near to the edge of its cell a weight may come, in cells: far above the rounding of float32.
_MARGIN = 2.0**-10


def keep_in_cells(mode: str, structure: Structure) -> optax.GradientTransformation:
    """Trims updates so that no weight leaves its cell of `mode`, whose codes stay so.

    A cell is [c, c + 1) * step * 2^(N-n); the outermost ones are open outwards. Kernels whose
    `mode` is float are left alone (their phase freezes them). Follows the learning rate in a
    chain, where an update is what `optax.apply_updates` will add.
    """

    def update(updates, state, params=None):
        if params is None:
            raise ValueError("keep_in_cells needs the parameters: call update(g, state, params)")
        flat, weights = flatten_dict(updates), flatten_dict(params)
        for path, layer in structure.layers.items():
            kernel, bits = (*path, "kernel"), layer.table[mode].weights
            if bits is not None and layer.stored is not None and kernel in flat:
                step = weights[*path, "step"]
                flat[kernel] = _confine(weights[kernel], flat[kernel], step, bits, layer.stored)
        return unflatten_dict(flat), state

    return optax.GradientTransformation(lambda _: optax.EmptyState(), update)


def _confine(w: jax.Array, move: jax.Array, step: jax.Array, bits: int, stored: int) -> jax.Array:
    step = per_channel(step, w.ndim)
    cell, half = cell_of(bits, stored), half_of(bits)
    code = midrise_code(w, step, cell, half)
    width = cell * step
    lower = jnp.where(code > -half, (code + _MARGIN) * width, -jnp.inf)
    upper = jnp.where(code < half - 1, (code + 1 - _MARGIN) * width, jnp.inf)
    trimmed = jnp.clip(w + move, lower, upper) - w
    # The sum that the caller will take is rounded; what it gives is what has to be in the cell.
    kept = midrise_code(w + trimmed, step, cell, half) == code
    return jnp.where((move != 0) & kept, trimmed, 0.0)
