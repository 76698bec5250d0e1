"""What the models take: classes of layers, and uint8 pixels, which they normalise, or floats."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from dual_precision.primitives.normalization import per_channel

ModuleDef = Any  # a class of layers, or a partial of one


def prepare_images(x: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """float32 [N, H, W, C]: (x / 255 - mean) / std for uint8 pixels, floats as they are.

    Raises:
      ValueError: `x` is not [N, H, W, C], has no pixels, or is neither uint8 nor floating; mean
        and std that do not fit.
    """
    if x.ndim != 4 or 0 in x.shape[1:]:
        if x.ndim == 4:
            way = "only N may be 0"
        elif x.ndim < 4:
            way = "add the axis that is missing"
        else:
            way = "leave out the axis that is too many"
        raise ValueError(f"images of shape {list(x.shape)}: expected [N, H, W, C]; {way}")
    if x.dtype == jnp.uint8:
        if len(mean) != len(std) or 0 in std:
            raise ValueError(
                f"mean={tuple(mean)} and std={tuple(std)}: expected as many of both, one or one for"
                " each channel, and no std of 0"
            )
        scale = jnp.asarray([1 / (255 * s) for s in std], jnp.float32)
        offset = jnp.asarray([m / s for m, s in zip(mean, std, strict=True)], jnp.float32)
        if scale.size not in (1, x.shape[-1]):
            raise ValueError(
                f"images of {x.shape[-1]} channels: expected {scale.size}, as mean and std have;"
                " channels are the last axis"
            )
        return x.astype(jnp.float32) * per_channel(scale, 4) - per_channel(offset, 4)
    if jnp.issubdtype(x.dtype, jnp.floating):
        return x.astype(jnp.float32)
    raise ValueError(
        f"images of dtype {x.dtype}: expected uint8 pixels (0 to 255) or floats that are"
        " already normalised; convert with x.astype('uint8')"
    )
