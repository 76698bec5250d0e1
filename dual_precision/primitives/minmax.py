"""The affine quantizer between a minimum and a maximum, which Cyclic Precision Training used.

Nothing of it is learned, and its codes do not nest: a narrower one is another grid.
"""

import jax
import jax.numpy as jnp

from dual_precision.primitives.nested import Bits, check_bits, top_of
from dual_precision.primitives.shared_batch import whole_means
from dual_precision.primitives.ste import in_steps

_SMALLEST = 1e-8  # of the step of a grid: an array of one value stays as it is


def range_of_channels(w: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Minimum and span of the weights of every output: [..., out] -> two of [1, ..., 1, out].

    >>> range_of_channels(jnp.array([[-1.0, 0.0], [3.0, 2.0]]))[1]
    Array([[4., 2.]], dtype=float32)
    """
    axes = tuple(range(w.ndim - 1))
    least = jnp.min(w, axes, keepdims=True)
    return least, jnp.max(w, axes, keepdims=True) - least


def range_of_batch(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Minimum and span of activations [batch, ...], each the mean over the examples; shapes ().

    >>> [float(value) for value in range_of_batch(jnp.array([[-1.0, 3.0], [0.0, 2.0]]))]
    [-0.5, 3.0]
    """
    axes = tuple(range(1, x.ndim))
    least, most = whole_means(jnp.mean(jnp.min(x, axes)), jnp.mean(jnp.max(x, axes)))
    return least, most - least


@jax.custom_vjp
def quantize_between(x: jax.Array, least: jax.Array, span: jax.Array, bits: Bits) -> jax.Array:
    """The nearest of 2^n levels between `least` and `least + span`; gradient 1 everywhere.

        step = max(span / (2^n - 1), 1e-8)
        value = round(clip((x - least) * (1/step), 0, 2^n - 1)) * step + least

    Args:
      x: any shape, float32; its gradient is not cut where x is clipped, the ends get none.
      least, span: shapes that x.ndim axes broadcast, or ().
      bits: n, 1 to 8; may be traced.

    Raises:
      ValueError: a concrete width that is out of range.

    Source: Banner et al. 2018 (arXiv 1805.11046), as Cyclic Precision Training uses it (Fu et al.
    2021, arXiv 2101.09868).

    >>> quantize_between(jnp.array([-1.0, 0.2, 2.0]), jnp.float32(-1), jnp.float32(3), 2)
    Array([-1.,  0.,  2.], dtype=float32)
    """
    check_bits(bits, 8)
    top = top_of(bits)
    step = jnp.maximum(span / top, _SMALLEST)
    return jnp.round(jnp.clip(in_steps(x - least, step), 0.0, top)) * step + least


def _forward(x, least, span, bits):
    return quantize_between(x, least, span, bits), (least, span)


def _backward(residuals, g):
    least, span = residuals
    return g, jnp.zeros_like(least), jnp.zeros_like(span), None


quantize_between.defvjp(_forward, _backward)
