"""Batch normalisation of a training batch, as a pure function."""

import jax
import jax.numpy as jnp


def per_channel(vector: jax.Array, rank: int) -> jax.Array:
    """[channels] -> [1, ..., 1, channels] of that rank, so that no broadcast is implicit."""
    return vector.reshape((1,) * (rank - 1) + vector.shape)


def scale_and_shift(x: jax.Array, gain: jax.Array, offset: jax.Array) -> jax.Array:
    """x * gain + offset with one gain and one offset [channels] for the last axis of x."""
    return x * per_channel(gain, x.ndim) + per_channel(offset, x.ndim)


def normalize_batch(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """y = (x - mean) / sqrt(var + epsilon) * scale + bias over all axes but the last.

    Args:
      x: [..., channels], float32.
      scale, bias: [channels].
      epsilon: added to the variance.

    Returns:
      y like x, and the batch's mean and biased variance [channels].
    """
    axes = tuple(range(x.ndim - 1))
    mean = jnp.mean(x, axis=axes)
    var = jnp.maximum(jnp.mean(x * x, axis=axes) - mean * mean, 0.0)
    gain = scale * jax.lax.rsqrt(var + epsilon)
    return scale_and_shift(x, gain, bias - mean * gain), mean, var
