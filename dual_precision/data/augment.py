"""Normalisation, random crop and flip: pure functions of jax arrays, to run inside jit and scan."""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from dual_precision.data.arrays import check_images


def normalize(images: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """(images / 255 - mean) / std, per channel, as one multiply-add.

    Args:
      images: uint8 [N, H, W, C].
      mean, std: C floats each, in units of the range 0..1.

    Returns:
      float32 [N, H, W, C].

    Raises:
      ValueError: images of another dtype or rank; not one mean and std for each channel; std <= 0.

    >>> normalize(jnp.full((1, 1, 1, 1), 255, jnp.uint8), [0.5], [0.25]).item()
    2.0
    """
    check_images(images)
    mean_, std_ = np.asarray(mean, np.float64), np.asarray(std, np.float64)
    if mean_.shape != images.shape[3:] or std_.shape != mean_.shape or not np.all(std_ > 0):
        raise ValueError(
            f"normalize: got mean {mean_.tolist()} and std {std_.tolist()}, expected one of each, "
            f"std above 0, for each of the {images.shape[3]} channels; take them from the Dataset"
        )
    scale = jnp.asarray(1 / (255 * std_), jnp.float32)
    shift = jnp.asarray(-mean_ / std_, jnp.float32)
    broadcast = (1, 1, 1, -1)
    return images.astype(jnp.float32) * scale.reshape(broadcast) + shift.reshape(broadcast)


def augment(
    key: jax.Array,
    images: jax.Array,
    *,
    padding: int,
    flip: bool,
    mode: Literal["constant", "reflect"] = "constant",
) -> jax.Array:
    """A random window of each padded image, mirrored left to right with probability 1/2.

    Each image draws its own offset, uniform over the (2 padding + 1)^2 windows, and its own flip.
    The window is gathered one axis at a time. On a two-core CPU at batch 128 x 32 x 32 x 3 in a
    scan this takes 0.15 ms; one gather of pixels 0.21 ms, vmap of dynamic_slice 0.47 to 2.5 ms.

    Args:
      key: a jax random key.
      images: uint8 [N, H, W, C].
      padding: pixels added on each side before the crop; 0 for no crop.
      flip: whether to mirror.
      mode: what is padded: "constant" zeros (the standard CIFAR recipe), or "reflect".

    Returns:
      uint8 [N, H, W, C].

    Raises:
      ValueError: images of another dtype or rank, a negative padding, a padding that "reflect"
        cannot fill (it needs padding < min(H, W)), or an unknown mode.
    """
    check_images(images)
    n, height, width, _ = images.shape
    if mode not in ("constant", "reflect"):
        raise ValueError(f"mode: got {mode!r}, expected 'constant' or 'reflect'")
    if padding < 0 or (mode == "reflect" and padding >= min(height, width)):
        raise ValueError(
            f"padding: got {padding} with mode {mode!r} for images of {height} x {width}, expected "
            "0 or more, and below the image's size where the padding reflects it"
        )
    crop_key, flip_key = jax.random.split(key)
    if padding:
        spread = ((0, 0), (padding, padding), (padding, padding), (0, 0))
        images = jnp.pad(images, spread, mode=mode)
    offsets = jax.random.randint(crop_key, (2, n, 1), 0, 2 * padding + 1, dtype=jnp.int32)
    rows = jnp.arange(height, dtype=jnp.int32)[None, :]
    columns = jnp.arange(width, dtype=jnp.int32)[None, :]
    if flip:
        mirrored = jax.random.bernoulli(flip_key, shape=(n, 1))
        columns = jnp.where(mirrored, width - 1 - columns, columns)
    if padding:
        images = _gather(images, (rows + offsets[0])[:, :, None, None], axis=1)
        columns = columns + offsets[1]
    if padding or flip:
        images = _gather(images, columns[:, None, :, None], axis=2)
    return images


def _gather(images: jax.Array, index: jax.Array, axis: int) -> jax.Array:
    # The indices are in bounds by construction; saying so saves XLA the clamps.
    return jnp.take_along_axis(images, index, axis=axis, mode="promise_in_bounds")
