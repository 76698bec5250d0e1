"""Where arrays are: a one-dimensional mesh over all devices of all processes.

One device is the special case. Every process holds the same host arrays, and puts what belongs to
its own devices there: nothing is sent.
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dual_precision.primitives.shared_batch import BATCH


def batch_mesh(batch_size: int) -> Mesh:
    """All devices along the axis "batch".

    Raises:
      ValueError: they cannot share `batch_size` evenly.
    """
    devices = jax.devices()
    if batch_size % len(devices):
        raise ValueError(
            f"batch of {batch_size} images over {len(devices)} devices:"
            f" expected a multiple of {len(devices)}"
        )
    return Mesh(np.asarray(devices), (BATCH,))


def mesh_of(tree: Any) -> Mesh | None:
    """The mesh that the arrays of a tree are laid over; None where it is one device."""
    for leaf in jax.tree.leaves(tree):
        mesh = getattr(getattr(leaf, "sharding", None), "mesh", None)
        if isinstance(mesh, Mesh) and mesh.size > 1:
            return mesh
    return None


def replicate(tree: Any, mesh: Mesh) -> Any:
    """The tree whole on every device; abstract leaves get the sharding only."""
    return _placed(tree, NamedSharding(mesh, PartitionSpec()))


def place_batches(order: np.ndarray | jax.Array, mesh: Mesh) -> jax.Array:
    """Indices [steps, batch], the batch divided over the devices."""
    return _placed(order, NamedSharding(mesh, PartitionSpec(None, BATCH)))


def divide(tree: Any, mesh: Mesh) -> Any:
    """Arrays whose first axis, a multiple of the devices, is divided over them."""
    return _placed(tree, NamedSharding(mesh, PartitionSpec(BATCH)))


def share_rows(tree: Any, mesh: Mesh) -> Any:
    """As `divide` of first axes of any length: rows of zeros, which nothing reads, are added."""

    def padded(leaf: Any) -> np.ndarray:
        host = np.asarray(leaf)
        return np.pad(host, ((0, -len(host) % mesh.size), *[(0, 0)] * (host.ndim - 1)))

    return divide(jax.tree.map(padded, tree), mesh)


def _placed(tree: Any, sharding: NamedSharding) -> Any:
    def place(leaf: Any) -> Any:
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
        if jax.process_count() == 1 or not getattr(leaf, "is_fully_addressable", True):
            return jax.device_put(leaf, sharding)
        host = np.asarray(leaf)  # device_put would compare it with the one of the other processes
        return jax.make_array_from_callback(host.shape, sharding, lambda part: host[part])

    return jax.tree.map(place, tree)
