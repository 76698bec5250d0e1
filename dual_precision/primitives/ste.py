"""Straight-through estimators: the only surrogate gradients in the project.

Each function has the exact quantized value going forward and a stated surrogate going back.
Widths arrive as float arrays of shape (), so that a traced width costs no new trace.
"""

import jax
import jax.numpy as jnp


@jax.custom_vjp
def round_ste(x: jax.Array) -> jax.Array:
    """Nearest integer, ties to even; gradient 1 (Bengio et al. 2013, arXiv 1308.3432).

    >>> float(jax.grad(round_ste)(0.3))
    1.0
    """
    return jnp.round(x)


round_ste.defvjp(lambda x: (jnp.round(x), None), lambda _, g: (g,))


@jax.custom_vjp
def bounded_round_ste(x: jax.Array, top: float) -> jax.Array:
    """clip(round(x), -top, top); gradient 1 everywhere, also where it is clipped.

    >>> float(bounded_round_ste(9.7, 8.0)), float(jax.grad(bounded_round_ste)(9.7, 8.0))
    (8.0, 1.0)
    """
    return jnp.clip(jnp.round(x), -top, top)


bounded_round_ste.defvjp(lambda x, top: (bounded_round_ste(x, top), None), lambda _, g: (g, None))


@jax.custom_vjp
def scale_gradient(x: jax.Array, factor: float | jax.Array) -> jax.Array:
    """x, with its gradient multiplied by `factor` (which gets none).

    >>> float(jax.grad(scale_gradient)(2.0, 0.5))
    0.5
    """
    return x


scale_gradient.defvjp(
    lambda x, factor: (x, factor),
    lambda factor, g: ((g * factor).astype(g.dtype), jnp.zeros_like(factor)),
)


def in_steps(x: jax.Array, step: jax.Array) -> jax.Array:
    """x in units of a step: x * (1 / step), the reciprocal rounded to float32, then the product.

    Every code in the project is made of this number. A quotient would be another one in the last
    bit, and XLA takes the reciprocal where it divides by a broadcast number, but not elsewhere:
    written out, all programs, and the compiled kernel, get the same.

    >>> float(in_steps(jnp.float32(5.0), jnp.float32(10.0)))
    0.5
    """
    return x * (1.0 / step)


def midrise_code(w: jax.Array, step: jax.Array, cell: jax.Array, half: jax.Array) -> jax.Array:
    """clip(floor(floor(w * (1/step)) / cell), -half, half - 1), as floats with integer values.

    The inner floor makes nesting hold by construction, also where w * (1/step) is subnormal.
    """
    return jnp.clip(jnp.floor(jnp.floor(in_steps(w, step)) / cell), -half, half - 1)


@jax.custom_vjp
def midrise_ste(w: jax.Array, step: jax.Array, cell: jax.Array, half: jax.Array) -> jax.Array:
    """Mid-rise value of the nested weight grid, with LSQ's gradients for this grid.

        code  = clip(floor(floor(r) / cell), -half, half - 1),   r = w * (1/step), see in_steps
        value = (code + 1/2) * cell * step
        d value / d w    = 1 where -half*cell <= r < half*cell, else 0
        d value / d step = (code + 1/2) * cell - (r where inside, else 0)

    Args:
      w: weights [..., out], float32.
      step: step of the stored grid, float32, positive, of a shape that w.ndim axes broadcast.
      cell: 2^(N-n), the width of a cell of this mode in stored steps; shape ().
      half: 2^(n-1), half the number of levels; shape ().

    Source: the step gradient is LSQ's (Esser et al. 2020, arXiv 1902.08153) with floor and
    mid-point in the place of round.
    """
    return (midrise_code(w, step, cell, half) + 0.5) * (cell * step)


def _midrise_forward(w, step, cell, half):
    return midrise_ste(w, step, cell, half), (w, step, cell, half)


def midrise_gradients(
    w: jax.Array, step: jax.Array, cell: jax.Array, half: jax.Array, g: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The gradients of w and step, of `midrise_ste`, for a gradient g of its value."""
    ratio = in_steps(w, step)
    inside = (ratio >= -half * cell) & (ratio < half * cell)
    level = (midrise_code(w, step, cell, half) + 0.5) * cell
    slope = level - jnp.where(inside, ratio, 0.0)
    shared = tuple(axis for axis in range(w.ndim) if step.shape[axis] == 1)
    to_step = jnp.sum(g * slope, axis=shared, keepdims=True)
    return jnp.where(inside, g, 0.0), to_step


def _midrise_backward(residuals, g):
    w, step, cell, half = residuals
    return *midrise_gradients(w, step, cell, half, g), jnp.zeros_like(cell), jnp.zeros_like(half)


midrise_ste.defvjp(_midrise_forward, _midrise_backward)


def uniform_code(x: jax.Array, step: jax.Array, low: jax.Array, top: jax.Array) -> jax.Array:
    """clip(round(x * (1/step)), low, top), as floats with integer values."""
    return jnp.clip(jnp.round(in_steps(x, step)), low, top)


@jax.custom_vjp
def uniform_ste(x: jax.Array, step: jax.Array, low: jax.Array, top: jax.Array) -> jax.Array:
    """Uniform quantizer with zero exact, with LSQ's gradients.

        value = clip(round(r), low, top) * step,   r = x * (1/step), see in_steps
        d value / d x    = 1 where low < r < top, else 0
        d value / d step = round(r) - r inside; low below; top above

    Args:
      x: activations, any shape, float32.
      step: positive step, shape ().
      low, top: the smallest and the largest code, shape (): 0 and 2^n - 1 for what is never
        negative, -2^(n-1) and 2^(n-1) - 1 for what has a sign.

    Source: Esser et al. 2020, "Learned Step Size Quantization", arXiv 1902.08153, eq. 1 to 5.
    """
    return uniform_code(x, step, low, top) * step


def _uniform_forward(x, step, low, top):
    return uniform_ste(x, step, low, top), (x, step, low, top)


def uniform_gradients(
    x: jax.Array, step: jax.Array, low: jax.Array, top: jax.Array, g: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The gradients of x and step, of `uniform_ste`, for a gradient g of its value."""
    ratio = in_steps(x, step)
    inside = (ratio > low) & (ratio < top)
    slope = jnp.clip(jnp.round(ratio), low, top) - jnp.where(inside, ratio, 0.0)
    to_step = jnp.sum(g * slope)
    return jnp.where(inside, g, 0.0), to_step


def _uniform_backward(residuals, g):
    x, step, low, top = residuals
    return *uniform_gradients(x, step, low, top, g), jnp.zeros_like(low), jnp.zeros_like(top)


uniform_ste.defvjp(_uniform_forward, _uniform_backward)
