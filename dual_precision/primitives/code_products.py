"""Products of quantized operands as sums of integers: what is trained is what is shipped.

    x_hat = a * s,  a = clip(round(x * (1/s)), low, top)           activations, or x as it is
    w_hat = o * f,  o = 2 c + 1,  f = delta * cell / 2             weights on the nested grid
    y     = product(x_hat, w_hat) = product(a, o) * (f * s)

for a product that is linear in both operands. The sum of codes is exact in float32 while no partial
sum is beyond 2^24, in whatever order it is taken, so that y has the bits that an integer forward
computes from the same codes, for every step.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from dual_precision.primitives.normalization import per_channel
from dual_precision.primitives.quantizers import InputGrid, WeightGrid
from dual_precision.primitives.ste import (
    midrise_code,
    midrise_gradients,
    uniform_code,
    uniform_gradients,
)

Product = Callable[[jax.Array, jax.Array], jax.Array]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def code_product(
    product: Product,
    x: jax.Array,
    w: jax.Array,
    inputs: InputGrid | None,
    weights: WeightGrid,
) -> jax.Array:
    """product(x_hat, w_hat) as a sum of integers and one factor for each output channel.

    The gradients are those of `product` of the quantized values, by the straight-through rules of
    `ste.uniform_ste` and `ste.midrise_ste`: the factor of the weights goes into the gradient of y,
    and the other operand of both sums is codes again.

    Args:
      product: linear in both; float32 [..., inputs] and [..., inputs, out] -> [..., out].
      x: activations, float32.
      w: weights [..., out], float32.
      inputs: see `quantizers.input_grid`; None takes x as it is.
      weights: see `quantizers.weight_grid`.

    Returns:
      float32 [..., out].

    >>> from dual_precision.primitives.quantizers import input_grid, weight_grid
    >>> x, w = jnp.array([[0.2, 0.6]]), jnp.array([[-0.3], [0.9]])
    >>> grids = input_grid(x, jnp.array(0.5), 2), weight_grid(w, jnp.array([0.25]), 2, 3)
    >>> code_product(jnp.matmul, x, w, *grids).item()  # 0 * -0.25 + 0.5 * 0.75
    0.375
    """
    return _forward(product, x, w, inputs, weights)[0]


def _forward(product, x, w, inputs, weights):
    codes = x if inputs is None else uniform_code(x, *inputs)
    odd = midrise_code(w, *weights) * 2.0 + 1.0
    total = product(codes, odd)
    scale = _factor(weights) if inputs is None else _factor(weights) * inputs.step
    y = total * _of_outputs(scale, total.ndim)
    return y, (x, w, inputs, weights, codes, odd)


def _backward(product, residuals, g):
    x, w, inputs, weights, codes, odd = residuals
    factor = _factor(weights)
    _, transposed = jax.vjp(product, codes, odd)
    to_x, to_odd = transposed(g * _of_outputs(factor, g.ndim))
    scale = 1.0 / factor if inputs is None else inputs.step / factor
    to_w, to_weight_step = midrise_gradients(
        w, weights.step, weights.cell, weights.half, to_odd * scale
    )
    zeros = jnp.zeros_like(weights.cell), jnp.zeros_like(weights.half)
    to_weights = WeightGrid(to_weight_step, *zeros)
    if inputs is None:
        return to_x, to_w, None, to_weights
    to_x, to_step = uniform_gradients(x, inputs.step, inputs.low, inputs.top, to_x)
    to_inputs = InputGrid(to_step, jnp.zeros_like(inputs.low), jnp.zeros_like(inputs.top))
    return to_x, to_w, to_inputs, to_weights


def _factor(weights: WeightGrid) -> jax.Array:
    """w_hat / (2 c + 1), of the rank of w: exact, as the cell is a power of two."""
    return weights.step * (weights.cell * 0.5)


def _of_outputs(scale: jax.Array, rank: int) -> jax.Array:
    """[1, ..., out], of the rank of the weights -> that of the outputs."""
    return per_channel(scale.reshape(scale.shape[-1]), rank)


code_product.defvjp(_forward, _backward)
