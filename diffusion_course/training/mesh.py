"""Data parallelism over every device: the batch is split, the parameters are copied."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXIS = "data"


def data_mesh(devices=None) -> Mesh:
    """A one-dimensional mesh, axis "data", over all devices (or the given ones).

    Automatic axes let the compiler insert the gradients' all-reduce by itself.

    Args:
      devices: a sequence of at least one device; all of them by default.

    Raises: ValueError for no device.
    """
    devices = jax.devices() if devices is None else list(devices)
    if not devices:
        raise ValueError("devices must hold at least one device, got none")
    return jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def shard_batch(mesh: Mesh, batch):
    """Puts every array [B, …] of a tree on the mesh, split along its first axis.

    Args:
      mesh: from `data_mesh`.
      batch: a tree of arrays.

    Raises: ValueError for a number, which has no first axis, and if the number of devices does not
      divide B.
    """
    for leaf in jax.tree.leaves(batch):
        if not np.shape(leaf):
            raise ValueError(f"batch must hold arrays [B, …], got the number {leaf}")
        if np.shape(leaf)[0] % mesh.size:
            raise ValueError(
                f"batch size must be a multiple of the {mesh.size} devices, got {np.shape(leaf)[0]}"
            )
    return jax.device_put(batch, NamedSharding(mesh, PartitionSpec(AXIS)))


def replicate(mesh: Mesh, tree):
    """Puts a copy of every array of a tree on each device of the mesh.

    Args:
      mesh: from `data_mesh`.
      tree: of arrays.

    Returns: the tree, on the mesh.
    """
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))
