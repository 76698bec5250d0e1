"""Means and extremes over a batch of which each device has its own rows.

The train step runs on every device for the rows that are there, inside `jax.shard_map` over an axis
named BATCH; all devices have as many. What normalisation and ranges ask of the whole batch, they
ask here: one message for all that a call is given. Where nothing is shared, what is given comes
back, bit for bit.
"""

import jax
import jax.numpy as jnp

BATCH = "batch"


def is_shared() -> bool:
    """Whether what is traced sees some rows of the batch only."""
    return BATCH in jax.sharding.get_abstract_mesh().manual_axes


def whole_means(*means: jax.Array) -> tuple[jax.Array, ...]:
    """Means over the whole batch, of means over the rows that are here; all of one shape.

    >>> whole_means(jnp.float32(1.5))
    (Array(1.5, dtype=float32),)
    """
    if not is_shared():
        return means
    whole = jnp.split(jax.lax.pmean(jnp.concatenate([*map(jnp.ravel, means)]), BATCH), len(means))
    return tuple(own.reshape(like.shape) for own, like in zip(whole, means, strict=True))


def whole_extremes(least: jax.Array, most: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Minimum and maximum of the whole batch, of those of the rows that are here.

    >>> whole_extremes(jnp.float32(-1), jnp.float32(2))
    (Array(-1., dtype=float32), Array(2., dtype=float32))
    """
    if not is_shared():
        return least, most
    low, high = jax.lax.pmax(jnp.stack([-least, most]), BATCH)
    return -low, high


def own_key(key: jax.Array) -> jax.Array:
    """The key of random numbers for the rows that are here."""
    return jax.random.fold_in(key, jax.lax.axis_index(BATCH)) if is_shared() else key
