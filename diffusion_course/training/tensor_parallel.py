"""Tensor parallelism of a diffusion transformer: the devices of a row share every block.

A block has two pairs of dense layers, with only per-channel work between the two of a pair. The
first of a pair is cut by columns, so each device computes some of the channels in between (for
attention: some of the heads). The second is cut by rows, so each device computes one summand of
the result, and one all-reduce adds them up: two for a block's forward pass. In the backward pass
the gradients of what the devices read in common are added up: two more.
"""

from functools import partial

import jax
from flax import nnx
from jax import Array
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from diffusion_course.models.blocks import Block
from diffusion_course.models.dit import DiT
from diffusion_course.training.mesh import DATA, MODEL

# How a block's parameters are cut. What is not named here is copied: modulation, norms, the layer
# of a long skip, attention to a context, and the biases that are added to a sum. The columns of
# `qkv` are queries, keys and values by head, [C, 3, H, d]: a device takes its heads of all three.
PARTS = {
    ("qkv", "kernel"): P(None, None, MODEL, None),
    ("qkv", "bias"): P(None, MODEL, None),
    ("out", "kernel"): P(MODEL, None),
    ("mlp_in", "kernel"): P(None, MODEL),
    ("mlp_in", "bias"): P(MODEL),
    ("mlp_out", "kernel"): P(MODEL, None),
}


def divide(model: nnx.Module, mesh: Mesh) -> nnx.Module:
    """A model of the same parameters, in the same order, whose blocks the devices of a row share.

    Its result is that of the model but for the order of sums. Batches must be multiples of the
    mesh's rows.

    Args:
      model: a `DiT`; with one column in the mesh, any model, which comes back as it is.
      mesh: from `device_mesh`.

    Raises: ValueError for any other model, or if the columns do not divide its heads.
    Source: Shoeybi et al. 2019, section 3 (Megatron-LM, arXiv:1909.08053).
    """
    columns = mesh.shape[MODEL]
    if columns == 1:
        return model
    if not isinstance(model, DiT):
        raise ValueError(
            f"model must be a DiT for a mesh with {columns} columns, got {type(model).__name__}; "
            "device_mesh(model=1) takes any model"
        )
    if model.blocks.heads % columns:
        raise ValueError(
            f"the mesh's columns must divide the model's {model.blocks.heads} heads, got {columns}"
        )
    divided = nnx.merge(*nnx.split(model))  # its own structure, the same arrays
    divided.blocks = SharedBlock(divided.blocks, mesh)
    if divided.second_half is not None:
        divided.second_half = SharedBlock(divided.second_half, mesh)
    return divided


class SharedBlock(nnx.Module):
    """A `Block` that the devices of each row of a mesh compute together.

    Args:
      block: whose parameters are used.
      mesh: from `device_mesh`.
    """

    def __init__(self, block: Block, mesh: Mesh):
        self.block, self.mesh = block, mesh

    def __call__(
        self,
        x: Array,
        told: Array | None,
        skip: Array | None = None,
        angles: Array | None = None,
        caption: tuple[Array, Array] | None = None,
    ) -> Array:
        """As `Block`: tokens [B, N, C] and what it is told -> [B, N, C]."""
        graph, params = nnx.split(self.block)
        params = nnx.to_pure_dict(params)
        heads = self.block.heads

        def cut_by_head(layer):  # [..., 3·C] -> [..., 3, H, d]
            return {k: w.reshape(*w.shape[:-1], 3, heads, -1) for k, w in layer.items()}

        params["qkv"] = cut_by_head(params["qkv"])
        specs = jax.tree_util.tree_map_with_path(_part, params)
        share = jax.shard_map(
            partial(_own_part, graph),
            mesh=self.mesh,
            in_specs=(specs, P(DATA), P(DATA), P(DATA), P(), P(DATA)),
            out_specs=P(DATA),
        )
        return share(params, x, told, skip, angles, caption)


def _part(path, _) -> P:
    return PARTS.get(tuple(key.key for key in path), P())


def _own_part(graph, params, x, told, skip, angles, caption):
    """What one device does: a block with its own heads and channels only."""
    heads = params["qkv"]["bias"].shape[-2]
    params["qkv"] = {k: w.reshape(*w.shape[:-3], -1) for k, w in params["qkv"].items()}
    block = nnx.merge(graph, nnx.State(params))
    block.heads = heads
    block.out, block.mlp_out = SummedLinear(block.out), SummedLinear(block.mlp_out)
    return block(x, told, skip, angles, caption)


class SummedLinear(nnx.Module):
    """A dense layer cut by rows: each device adds its summand, and the bias is added once."""

    def __init__(self, linear: nnx.Linear):
        self.linear = linear

    def __call__(self, x: Array) -> Array:
        kernel, bias = (
            w[...].astype(self.linear.dtype) for w in (self.linear.kernel, self.linear.bias)
        )
        return jax.lax.psum(x.astype(kernel.dtype) @ kernel, MODEL) + bias
