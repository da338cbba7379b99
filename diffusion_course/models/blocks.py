"""Blocks of transformers, and the way through a stack of them."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from diffusion_course.models.attention import attention, rotate, split_heads
from diffusion_course.models.cross import CrossAttention
from diffusion_course.models.layers import Linear, RMSNorm, layer_norm


class Block(nnx.Module):
    """Attention and a dense network over tokens, both scaled, shifted and gated (adaLN-Zero).

    [B, N, C], and what the block is told -> [B, N, C]. With adaptive norms the gates start at zero,
    so the block starts as the identity (or, after a long skip, as that skip's linear layer).

    Args:
      width: C.
      heads: their number.
      conditioning: how the block is told what the network knows beside the image.
        "adaln-zero": an embedding [B, C], from which the block computes its own modulation.
        "adaln-single": a modulation [B, 6·C], the same for all blocks, to which the block adds a
        table of its own.
        "in-context": nothing, since its tokens x hold it already.
        "cross-attention": tokens [B, L, C], to which it attends between its two parts.
      captioned: whether an adaptive block is told a caption beside, to which it attends between its
        two parts. The last layer of this attention starts at zero: at first no word is heard.
      long_skip: whether it first joins x with the output of an earlier block.
      qk_norm: whether queries and keys are normalised.
      dtype: of the computation.
      rngs: random number streams of the initialisation.

    Source: Peebles & Xie 2023, section 3.2 (arXiv:2212.09748); adaLN-single: Chen et al. 2024,
    section 2.3 (arXiv:2310.00426); long skips: Bao et al. 2023, section 3 (arXiv:2209.12152);
    normalised queries and keys: Esser et al. 2024, section 5.3.2 (arXiv:2403.03206); captions read
    beside adaptive norms: Chen et al. 2024, section 2.3 (arXiv:2310.00426).
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        conditioning: str = "adaln-zero",
        captioned: bool = False,
        long_skip: bool = False,
        qk_norm: bool = False,
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        options = {"dtype": dtype, "rngs": rngs}
        self.heads, self.conditioning = heads, conditioning
        self.skip = Linear(2 * width, width, **options) if long_skip else None
        own, shared = conditioning == "adaln-zero", conditioning == "adaln-single"
        self.modulation = Linear(width, 6 * width, zero=True, **options) if own else None
        self.table = nnx.Param(jnp.zeros(6 * width)) if shared else None
        self.qkv = Linear(width, 3 * width, **options)
        self.q_norm = RMSNorm(width // heads, rngs=rngs) if qk_norm else None
        self.k_norm = RMSNorm(width // heads, rngs=rngs) if qk_norm else None
        self.out = Linear(width, width, **options)
        crossing, more = conditioning == "cross-attention", {"qk_norm": qk_norm, "zero": captioned}
        self.cross = (
            CrossAttention(width, heads, **more, **options) if crossing or captioned else None
        )
        self.mlp_in = Linear(width, 4 * width, **options)
        self.mlp_out = Linear(4 * width, width, **options)

    def __call__(
        self,
        x: Array,
        told: Array | None,
        skip: Array | None = None,
        angles: Array | None = None,
        caption: tuple[Array, Array] | None = None,
    ) -> Array:
        """Tokens x [B, N, C], what it is told (see above), an earlier block's output [B, N, C],
        rotary angles [N, d/2], and a caption's tokens [B, L, C] with which of them count, booleans
        [B, L] -> [B, N, C]."""
        if self.skip is not None:
            x = self.skip(jnp.concatenate([x, skip], axis=-1))
        six = self.six(told)
        mixed = attention(*self.qkv_of(x, six, angles))
        # Without a caption, what a block with cross-attention reads is all that it is told.
        return self.finish(x, mixed, six, *((told,) if caption is None else caption))

    def six(self, told: Array | None):
        """Shift, scale and gate of the attention, then of the dense network."""
        if self.modulation is not None:
            six = self.modulation(jax.nn.silu(told))
        elif self.table is not None:
            six = told + self.table[...].astype(told.dtype)
        else:
            # A plain block. A learned scale and shift would add nothing: the layer that reads the
            # normalised tokens is linear and can learn them itself.
            return 0.0, 0.0, 1.0, 0.0, 0.0, 1.0
        return jnp.split(six[:, None], 6, axis=-1)

    def qkv_of(self, x: Array, six, angles: Array | None) -> tuple[Array, Array, Array]:
        """Queries, keys and values of the tokens, each [B, H, N, d]."""
        shift, scale = six[:2]
        q, k, v = split_heads(self.qkv(layer_norm(x) * (1 + scale) + shift), self.heads)
        if self.q_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        return q, k, v

    def finish(
        self, x: Array, mixed: Array, six, context: Array | None = None, mask: Array | None = None
    ) -> Array:
        """What follows the attention, whose result `mixed` [B, N, C] is; `context` [B, L, C] is
        read by a block with cross-attention, where `mask` [B, L] says that it counts."""
        gate_a, shift_m, scale_m, gate_m = six[2:]
        x = x + gate_a * self.out(mixed)
        if self.cross is not None:
            x = x + self.cross(layer_norm(x), context, mask)
        h = layer_norm(x) * (1 + scale_m) + shift_m
        return x + gate_m * self.mlp_out(jax.nn.gelu(self.mlp_in(h)))


def stack(make, depth: int, rngs: nnx.Rngs) -> nnx.Module:
    """Blocks ``make(rngs=rngs)`` in one: every parameter has a leading axis of length depth."""

    @nnx.split_rngs(splits=depth)
    @nnx.vmap
    def stacked(rngs: nnx.Rngs) -> nnx.Module:
        return make(rngs=rngs)

    return stacked(rngs)


# So few blocks are written out instead of looped over. A CPU then neither copies what the backward
# pass needs into arrays of all blocks and out again, nor computes any of it twice. A training step
# takes a sixth less time, but up to 1.6 times the memory for its intermediate results: four blocks
# take more than five in a loop do. More blocks would also take too long to compile.
WRITTEN_OUT = 4


def through(step, blocks: nnx.Module, state, inputs=None, keep: bool = False):
    """Passes stacked blocks one after the other.

    Up to `WRITTEN_OUT` blocks are compiled one by one. More are one loop: a single block is
    compiled, whatever the depth, and inside a jit it keeps for the backward pass only its input and
    its products with weights.

    Args:
      step: ``step(block, state, input) -> state``, what one block does.
      blocks: from `stack`.
      state: what goes from block to block: an array, or several.
      inputs: one for each block, along the first axis; None for none.
      keep: whether to return the state after each block.

    Returns: the last state, and that after each block along a new first axis (None without `keep`).
    """
    graph, params = nnx.split(blocks)
    depth = len(jax.tree.leaves(params)[0])

    def body(state, block):
        params, given = block
        state = step(nnx.merge(graph, params), state, given)
        return state, state if keep else None

    if depth <= WRITTEN_OUT:
        return jax.lax.scan(body, state, (params, inputs), unroll=depth)
    # What lies between the products takes less time to compute again than to store.
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    body = jax.checkpoint(body, prevent_cse=False, policy=policy)
    return jax.lax.scan(body, state, (params, inputs))
