"""Gradients of a given width: what comes back to the output of a layer, rounded at random."""

import jax
import jax.numpy as jnp

from dual_precision.primitives.nested import Bits, check_bits, top_of
from dual_precision.primitives.shared_batch import own_key, whole_extremes
from dual_precision.primitives.ste import in_steps

# Of the step of a grid, so that equal gradients stay. It is the smallest float32 that no unit takes
# for 0: a larger one would be a scale, and gradients have none of their own.
_SMALLEST = 2.0**-126


def round_at_random(g: jax.Array, bits: Bits, key: jax.Array) -> jax.Array:
    """g on the grid of 2^n levels between its minimum and its maximum, unbiased.

        step = (max g - min g) / (2^n - 1), at least 2^-126
        code = clip(round((g - min g) / step + u), 0, 2^n - 1),   u uniform in [-1/2, 1/2)
        value = code * step + min g

    2^k g becomes 2^k times what g becomes, with the bits of it, while float32 holds both.

    Args:
      g: any shape, float32; one grid for all of it.
      bits: n, 1 to 8; may be traced.
      key: of the random numbers; each device that shares a batch has its own.

    Source: the error quantizer of Banner et al. 2018 (arXiv 1805.11046) as Cyclic Precision
    Training (Fu et al. 2021, arXiv 2101.09868) uses it. Maxima over the batch are largest ones
    here; the code published with the latter takes the smallest of the maxima of the examples.

    >>> round_at_random(jnp.array([-1.0, 0.0, 2.0]), 2, jax.random.key(0))
    Array([-1.,  0.,  2.], dtype=float32)
    """
    check_bits(bits, 8)
    top = top_of(bits)
    least, most = whole_extremes(jnp.min(g), jnp.max(g))
    step = jnp.maximum((most - least) / top, _SMALLEST)
    noise = jax.random.uniform(own_key(key), g.shape, g.dtype, -0.5, 0.5)
    return jnp.clip(jnp.round(in_steps(g - least, step) + noise), 0.0, top) * step + least


@jax.custom_vjp
def quantize_gradient(y: jax.Array, bits: Bits, key: jax.Array) -> jax.Array:
    """y; the gradient that comes back is `round_at_random` of it.

    >>> key = jax.random.key(0)
    >>> jax.grad(lambda y: jnp.sum(quantize_gradient(y, 8, key) * 3))(jnp.ones(2))
    Array([3., 3.], dtype=float32)
    """
    return y


def _gradient_forward(y, bits, key):
    return y, (bits, key)


def _gradient_backward(residuals, g):
    bits, key = residuals
    return round_at_random(g, bits, key), None, None


quantize_gradient.defvjp(_gradient_forward, _gradient_backward)


@jax.custom_vjp
def refuse_gradient(y: jax.Array) -> jax.Array:
    """y, where no gradient may be asked for, as there are no random numbers to round it with."""
    return y


def _refuse(_residuals, _g):
    raise ValueError(
        "gradients with a width are rounded at random, and this call has no random numbers:"
        " expected model.apply(..., rngs={'rounding': key})"
    )


refuse_gradient.defvjp(lambda y: (y, None), _refuse)
