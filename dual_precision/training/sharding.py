"""The batch over all local devices: a one-dimensional mesh; one device is the special case."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def batch_mesh(batch_size: int) -> Mesh:
    """All local devices along the axis "batch".

    Raises:
      ValueError: they cannot share `batch_size` evenly.
    """
    devices = jax.local_devices()
    if batch_size % len(devices):
        raise ValueError(
            f"batch of {batch_size} images over {len(devices)} devices:"
            f" expected a multiple of {len(devices)}"
        )
    return Mesh(np.asarray(devices), ("batch",))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """The tree whole on every device; abstract leaves get the sharding only."""
    sharding = NamedSharding(mesh, PartitionSpec())

    def place(leaf: Any) -> Any:
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
        return jax.device_put(leaf, sharding)

    return jax.tree.map(place, tree)


def place_batches(order: np.ndarray | jax.Array, mesh: Mesh) -> jax.Array:
    """Indices [steps, batch], the batch divided over the devices."""
    return jax.device_put(order, NamedSharding(mesh, PartitionSpec(None, "batch")))
