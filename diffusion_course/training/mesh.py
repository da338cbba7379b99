"""Where arrays lie: devices as a mesh "data" × "model", and rules for the batch and the state.

The batch is cut along "data". The state is copied to every device, or cut among all of them (FSDP).
Work within a block of a network is divided along "model": see `tensor_parallel`.
"""

import math
import re
from collections import Counter
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from diffusion_course import checks

DATA, MODEL = "data", "model"
_ALL = (DATA, MODEL)
_COLLECTIVES = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"


def device_mesh(data: int | None = None, model: int = 1, devices=None) -> Mesh:
    """Devices in `data` rows of `model` columns, with the axes "data" and "model".

    Each row holds a part of the batch, and the devices of a row share the work on it. With the
    defaults every device is a row: data parallelism.

    >>> dict(device_mesh(devices=jax.devices()[:1]).shape)
    {'data': 1, 'model': 1}

    Automatic axes let the compiler insert the gradients' all-reduce by itself.

    Args:
      data: number of rows; by default as many as there are devices for.
      model: number of columns.
      devices: a sequence of at least one device; all of them by default.

    Raises: ValueError for no device, if data·model is not their number, or if a row would need two
      processes: a process must hold whole rows, so that it can give their part of the batch.
    """
    devices = jax.devices() if devices is None else list(devices)
    if not devices:
        raise ValueError("devices must hold at least one device, got none")
    checks.integer("model", model, minimum=1)
    data = len(devices) // model if data is None else checks.integer("data", data, minimum=1)
    if data * model != len(devices):
        raise ValueError(
            f"data·model must be the number of devices, {len(devices)}, got {data}·{model}"
        )
    types = (AxisType.Auto, AxisType.Auto)
    mesh = jax.make_mesh((data, model), (DATA, MODEL), axis_types=types, devices=devices)
    for row in mesh.devices:
        owners = sorted({device.process_index for device in row})
        if len(owners) > 1:
            raise ValueError(
                f"model must divide the number of devices of a process, got {model}: a row would "
                f"lie in the processes {owners}"
            )
    return mesh


def shard_batch(mesh: Mesh, batch):
    """Puts every array [B, …] of a tree on the mesh, split along its first axis.

    With several processes each of them gives its own rows, [B / processes, …], and the result is
    the whole batch (see `distributed.own_rows`).

    Args:
      mesh: from `device_mesh`.
      batch: a tree of arrays.

    Raises: ValueError for a number, which has no first axis, and if the mesh's rows in this process
      do not divide what it gives.
    """
    rows = mesh.local_mesh.shape[DATA]
    for leaf in jax.tree.leaves(batch):
        if not np.shape(leaf):
            raise ValueError(f"batch must hold arrays [B, …], got the number {leaf}")
        if np.shape(leaf)[0] % rows:
            kind = "devices" if mesh.shape[MODEL] == 1 else "rows of devices"
            raise ValueError(
                f"batch size must be a multiple of the {rows} {kind}, got {np.shape(leaf)[0]}"
            )
    split = NamedSharding(mesh, PartitionSpec(DATA))
    if not mesh.is_multi_process:
        return jax.device_put(batch, split)
    return jax.tree.map(
        lambda leaf: jax.make_array_from_process_local_data(split, np.asarray(leaf)), batch
    )


def replicate(mesh: Mesh, tree):
    """Puts a copy of every array of a tree on each device of the mesh.

    Args:
      mesh: from `device_mesh`.
      tree: of arrays; with several processes, the same in each of them.

    Returns: the tree, on the mesh.
    """
    return jax.tree.map(lambda leaf: _put(leaf, NamedSharding(mesh, PartitionSpec())), tree)


def _put(leaf, sharding: NamedSharding) -> Array:
    """An array that every process has, where the sharding says."""
    if not sharding.mesh.is_multi_process:
        return jax.device_put(leaf, sharding)
    if isinstance(leaf, Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = _put(jax.random.key_data(leaf), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    leaf = np.asarray(leaf)
    return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])


@dataclass(frozen=True)
class Layout:
    """Where a train state lies on a mesh.

    Attributes:
      mesh: from `device_mesh`.
      fsdp: whether the state is cut among all n devices. Each array of it is then one vector, with
        zeros behind its end up to a multiple of n, of which each device holds an n-th. For each
        step the parameters are gathered, all at once; the gradient is summed and cut. So a device
        has an n-th of parameters, average and optimiser to keep, but within the step it still
        holds all parameters and their gradient. Without it every device holds a copy of the state.

    Source: Rajbhandari et al. 2020, section 5 (ZeRO, arXiv:1910.02054); one flat vector:
    Zhao et al. 2023 (FSDP, arXiv:2304.11277), who gather block by block.
    """

    mesh: Mesh
    fsdp: bool = False

    def place(self, state):
        """Puts a state on the mesh.

        Args:
          state: a tree of arrays; with several processes, the same in each of them.

        Returns: the same tree. With FSDP its arrays are padded vectors; numbers are copied.
        """
        if not self.fsdp:
            return replicate(self.mesh, state)
        # Made on the host, so that no device needs room for the whole.
        padded = jax.tree.map(lambda leaf: self._padded(np.asarray(leaf), np), state)
        return jax.tree.map(lambda leaf: _put(leaf, self._sharding(leaf)), padded)

    def whole(self, placed, like):
        """The state in its own shapes again, a copy on each device: what `place` undoes.

        Args:
          placed: from `place`, or a step's result.
          like: a tree of arrays of these shapes.
        """
        if not self.fsdp:
            return placed

        def uncut(leaves):
            return [
                leaf[: math.prod(shape)].reshape(shape) if shape else leaf
                for leaf, shape in zip(leaves, shapes, strict=True)
            ]

        shapes = [np.shape(leaf) for leaf in jax.tree.leaves(like)]
        leaves, structure = jax.tree.flatten(placed)
        copied = NamedSharding(self.mesh, PartitionSpec())
        return jax.tree.unflatten(structure, jax.jit(uncut, out_shardings=copied)(leaves))

    def gather(self, vector: Array, size: int) -> Array:
        """All of a vector [size] that `place` has cut, on every device; for use in a compiled step.

        Args:
          vector: padded and cut, or without FSDP [size].
          size: without the padding.
        """
        if not self.fsdp:
            return vector
        everything = jax.shard_map(
            lambda part: jax.lax.all_gather(part, _ALL, tiled=True),
            mesh=self.mesh,
            in_specs=PartitionSpec(_ALL),
            out_specs=PartitionSpec(),
            check_vma=False,  # that the copies agree is beyond what this check can see
        )
        return everything(vector)[:size]

    def cut(self, vector: Array) -> Array:
        """Each device's part of a vector that every device has: what `gather` undoes."""
        if not self.fsdp:
            return vector
        padded = self._padded(vector, jnp)
        size = len(padded) // self.mesh.size

        def own(everything):
            return jax.lax.dynamic_slice_in_dim(everything, jax.lax.axis_index(_ALL) * size, size)

        return jax.shard_map(
            own, mesh=self.mesh, in_specs=PartitionSpec(), out_specs=PartitionSpec(_ALL)
        )(padded)

    def _padded(self, leaf, xp):
        return xp.pad(leaf.reshape(-1), (0, -leaf.size % self.mesh.size)) if leaf.ndim else leaf

    def _sharding(self, leaf) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec(_ALL) if leaf.ndim else PartitionSpec())


def bytes_per_device(tree) -> int:
    """The most bytes that any one device (of this process) holds of a tree of arrays.

    >>> bytes_per_device({"a": jnp.zeros(6), "b": jnp.zeros((), jnp.int32)})
    28

    Args:
      tree: of JAX arrays.
    """
    held = Counter()
    for leaf in jax.tree.leaves(tree):
        for shard in leaf.addressable_shards:
            held[shard.device] += shard.data.nbytes
    return max(held.values(), default=0)


def collectives(compiled) -> dict[str, int]:
    """How many collective operations of each kind a compiled program holds.

    An operation inside a loop counts once.

    >>> collectives("%a = f32[8] all-reduce(%b), to_apply=%sum")
    {'all-reduce': 1}

    Args:
      compiled: of ``jax.jit(f).lower(…).compile()``, or its text.
    """
    text = compiled if isinstance(compiled, str) else compiled.as_text()
    # Asynchronous ones are a pair, name-start and name-done.
    return dict(Counter(re.findall(rf" ({_COLLECTIVES})(?:-start)?\(", text)))
