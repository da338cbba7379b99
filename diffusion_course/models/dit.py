"""A diffusion transformer: the image as a sequence of patches."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from diffusion_course.checks import integer, one_of
from diffusion_course.models import doors
from diffusion_course.models.attention import attention, count_heads, rotate, split_heads
from diffusion_course.models.cross import CrossAttention
from diffusion_course.models.layers import TIME_SCALE, Conditioning, Linear, RMSNorm, layer_norm
from diffusion_course.models.patches import Patched

CONDITIONING = ("adaln-zero", "adaln-single", "in-context", "cross-attention")


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
      long_skip: whether it first joins x with the output of an earlier block.
      qk_norm: whether queries and keys are normalised.
      dtype: of the computation.
      rngs: random number streams of the initialisation.

    Source: Peebles & Xie 2023, section 3.2 (arXiv:2212.09748); adaLN-single: Chen et al. 2024,
    section 2.3 (arXiv:2310.00426); long skips: Bao et al. 2023, section 3 (arXiv:2209.12152);
    normalised queries and keys: Esser et al. 2024, section 5.3.2 (arXiv:2403.03206).
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        conditioning: str = "adaln-zero",
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
        crossing = conditioning == "cross-attention"
        self.cross = CrossAttention(width, heads, qk_norm=qk_norm, **options) if crossing else None
        self.mlp_in = Linear(width, 4 * width, **options)
        self.mlp_out = Linear(4 * width, width, **options)

    def __call__(
        self, x: Array, told: Array | None, skip: Array | None = None, angles: Array | None = None
    ) -> Array:
        """Tokens x [B, N, C], what it is told (see above), an earlier block's output [B, N, C],
        and rotary angles [N, d/2] -> [B, N, C]."""
        if self.skip is not None:
            x = self.skip(jnp.concatenate([x, skip], axis=-1))
        six = self.six(told)
        mixed = attention(*self.qkv_of(x, six, angles))
        return self.finish(x, mixed, six, told)

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

    def finish(self, x: Array, mixed: Array, six, told: Array | None = None) -> Array:
        """What follows the attention, whose result `mixed` [B, N, C] is."""
        gate_a, shift_m, scale_m, gate_m = six[2:]
        x = x + gate_a * self.out(mixed)
        if self.cross is not None:
            x = x + self.cross(layer_norm(x), told)
        h = layer_norm(x) * (1 + scale_m) + shift_m
        return x + gate_m * self.mlp_out(jax.nn.gelu(self.mlp_in(h)))


class DiT(Patched):
    """``model(x, t, cond)``: patches become tokens, pass through blocks, and become pixels again.

    The output layer starts at zero: the untrained network is 0.

    Args:
      image_size: (H, W) of the images, multiples of patch; one number for square images.
      image_channels: C of the images.
      patch: side of a patch.
      width: of a token; a multiple of head_size and of 4.
      depth: number of blocks.
      head_size: width of an attention head.
      num_classes: number of labels, or None; with labels, ``null_label = num_classes``.
      extras: how many further numbers the model is told for each example.
      conditioning: how the blocks are told time, label and these numbers. "adaln-zero": from their
        sum, each block computes scales, shifts and gates. "adaln-single": one layer computes them
        for all blocks, and each block adds a learned table. "in-context": they are further tokens
        beside the patches. "cross-attention": the patches attend to them in every block.
      positions: "sin-cos" adds fixed sinusoids of row and column to the tokens; "rotary" turns
        queries and keys instead, so that attention sees differences of rows and columns alone.
      long_skips: whether each block of the second half also reads the output of its counterpart in
        the first half, the last block that of the first; needs a depth of at least 2.
      qk_norm: whether queries and keys are normalised, which bounds the logits of the attention.
      learned_variance: whether the output has 2C channels, the last C for `bound.learned`.
      time_scale: factor of the time and of these numbers inside their sinusoids.
      dtype: of the computation, such as bfloat16 on an accelerator; parameters and output stay
        float32.
      rngs: random number streams of the initialisation.

    Raises: ValueError for sizes that do not fit, or an unknown choice.
    Source: Peebles & Xie 2023 (arXiv:2212.09748); see `Block` for the rest.

    >>> model = DiT((8, 12), 3, patch=4, width=32, depth=1, num_classes=10, rngs=nnx.Rngs(0))
    >>> x = jax.ShapeDtypeStruct((4, 8, 12, 3), jnp.float32)  # six patches each
    >>> jax.eval_shape(model, x, jnp.full(4, 0.5), jnp.arange(4)).shape
    (4, 8, 12, 3)
    """

    def __init__(
        self,
        image_size: int | tuple[int, int],
        image_channels: int = 1,
        *,
        patch: int = 2,
        width: int = 128,
        depth: int = 4,
        head_size: int = 32,
        num_classes: int | None = None,
        extras: int = 0,
        conditioning: str = "adaln-zero",
        positions: str = "sin-cos",
        long_skips: bool = False,
        qk_norm: bool = False,
        learned_variance: bool = False,
        time_scale: float = TIME_SCALE,
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        options = {"dtype": dtype, "rngs": rngs}
        one_of("conditioning", conditioning, CONDITIONING)
        if integer("depth", depth, 1) < 2 and long_skips:
            raise ValueError(f"depth must be at least 2 for long_skips, got {depth}")
        self._open(image_size, image_channels, patch, width, head_size, positions, options)
        self.null_label, self.conditioning = num_classes, conditioning
        self.embed = Conditioning(
            width, num_classes, extras=extras, time_scale=time_scale, **options
        )
        adaptive, single = conditioning.startswith("adaln"), conditioning == "adaln-single"
        self.shared = Linear(width, 6 * width, zero=True, **options) if single else None
        heads = count_heads(width, head_size)
        block = partial(
            Block, width, heads, conditioning=conditioning, qk_norm=qk_norm, dtype=dtype
        )
        # With an odd depth, the block in the middle has no counterpart.
        self.skipping = depth // 2 if long_skips else 0
        self.blocks = stack(block, depth - self.skipping, rngs)
        skipping = partial(block, long_skip=True)
        self.second_half = stack(skipping, self.skipping, rngs) if long_skips else None
        self._close(width, adaptive, learned_variance, options)

    def __call__(
        self, x: Array, t: Array, cond: Array | None = None, extras: Array | None = None
    ) -> Array:
        """Predicts for images x at times t.

        Args:
          x: float32 [B, H, W, C], of the image size and channels that the model was built for.
          t: times in [0, 1], float32 [B].
          cond: labels [B] in 0 … num_classes; None for no label.
          extras: further numbers, float32 [B, extras]; None for zeros.

        Returns: float32 [B, H, W, C], or [B, H, W, 2C] with a learned variance.
        Raises: ValueError for an argument of another shape, dtype or range, or for labels without
          label classes.
        """
        x = doors.state(x, ("B", *self.image_shape))
        t = doors.times(t, x.shape[0])
        if self.modulation is None:  # not adaptive
            emb, context = None, self.embed.tokens(t, cond, extras)
        else:
            emb, context = self.embed(t, cond, extras), None
        tokens, others = self._tokens(x), 0
        patches = tokens.shape[1]
        if self.conditioning == "in-context":
            tokens, others = jnp.concatenate([tokens, context], axis=1), context.shape[1]
        told = emb if self.shared is None else self.shared(jax.nn.silu(emb))
        told = context if self.conditioning == "cross-attention" else told
        tokens = self._through_blocks(tokens, told, self._angles(others))
        return self._pixels(tokens[:, :patches] if others else tokens, emb, x.dtype)

    def _through_blocks(self, tokens: Array, told: Array | None, angles=None) -> Array:
        """A loop over the stacked blocks; with long skips a second one, last output first."""

        def step(block, tokens, skip):
            return block(tokens, told, skip, angles)

        if self.second_half is None:
            return through(step, self.blocks, tokens)[0]
        tokens, outputs = through(step, self.blocks, tokens, keep=True)
        skips = outputs[: self.skipping][::-1]
        return through(step, self.second_half, tokens, skips)[0]


def stack(make, depth: int, rngs: nnx.Rngs) -> nnx.Module:
    """Blocks ``make(rngs=rngs)`` in one: every parameter has a leading axis of length depth."""

    @nnx.split_rngs(splits=depth)
    @nnx.vmap
    def stacked(rngs: nnx.Rngs) -> nnx.Module:
        return make(rngs=rngs)

    return stacked(rngs)


def through(step, blocks: nnx.Module, state, inputs=None, keep: bool = False):
    """One loop over stacked blocks: a single block is compiled, whatever the depth.

    Args:
      step: ``step(block, state, input) -> state``, what one block does.
      blocks: from `stack`.
      state: what goes from block to block: an array, or several.
      inputs: one for each block, along the first axis; None for none.
      keep: whether to return the state after each block.

    Returns: the last state, and that after each block along a new first axis (None without `keep`).
    """
    graph, params = nnx.split(blocks)

    # Only the matrix products are kept for the backward pass; what lies between them takes
    # less time to compute again than to store.
    @partial(jax.checkpoint, prevent_cse=False, policy=jax.checkpoint_policies.dots_saveable)
    def body(state, block):
        params, given = block
        state = step(nnx.merge(graph, params), state, given)
        return state, state if keep else None

    return jax.lax.scan(body, state, (params, inputs))
