"""A diffusion transformer: the image as a sequence of patches."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from diffusion_course.checks import integer
from diffusion_course.models import doors
from diffusion_course.models.layers import (
    TIME_SCALE,
    Conditioning,
    Linear,
    attend,
    count_heads,
    depth_to_space,
    space_to_depth,
)


class Block(nnx.Module):
    """Attention and a dense network over tokens, both scaled, shifted and gated (adaLN-Zero).

    [B, N, C], [B, C] -> [B, N, C]. The gates start at zero, so the block starts as the identity.

    Source: Peebles & Xie 2023, section 3.2 (arXiv:2212.09748).
    """

    def __init__(self, width: int, heads: int, *, dtype=jnp.float32, rngs: nnx.Rngs):
        options = {"dtype": dtype, "rngs": rngs}
        self.heads = heads
        self.modulation = Linear(width, 6 * width, zero=True, **options)
        self.qkv = Linear(width, 3 * width, **options)
        self.out = Linear(width, width, **options)
        self.mlp_in = Linear(width, 4 * width, **options)
        self.mlp_out = Linear(4 * width, width, **options)

    def __call__(self, x: Array, emb: Array) -> Array:
        six = jnp.split(self.modulation(jax.nn.silu(emb))[:, None], 6, axis=-1)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = six
        h = layer_norm(x) * (1 + scale_a) + shift_a
        x = x + gate_a * self.out(attend(self.qkv(h), self.heads))
        h = layer_norm(x) * (1 + scale_m) + shift_m
        return x + gate_m * self.mlp_out(jax.nn.gelu(self.mlp_in(h)))


class DiT(nnx.Module):
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
      time_scale: factor of the time and of these numbers inside their sinusoids.
      dtype: of the computation, such as bfloat16 on an accelerator; parameters and output stay
        float32.
      rngs: random number streams of the initialisation.

    Raises: ValueError for sizes that do not fit.
    Source: Peebles & Xie 2023 (arXiv:2212.09748).

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
        time_scale: float = TIME_SCALE,
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        size = doors.sides(image_size)
        integer("image_channels", image_channels, 1)
        if any(side % integer("patch", patch, 1) for side in size):
            raise ValueError(f"patch must divide image_size = {image_size}, got {patch}")
        doors.divisible("width", width, 4)
        integer("depth", depth, 1)
        options = {"dtype": dtype, "rngs": rngs}
        heads, pixels = count_heads(width, head_size), patch**2 * image_channels
        self.image_shape, self.patch = (*size, image_channels), patch
        self.null_label = num_classes
        self.patchify = Linear(pixels, width, **options)
        self.embed = Conditioning(
            width, num_classes, extras=extras, time_scale=time_scale, **options
        )

        @nnx.split_rngs(splits=depth)
        @nnx.vmap
        def stack(rngs: nnx.Rngs) -> Block:
            return Block(width, heads, dtype=dtype, rngs=rngs)

        self.blocks = stack(rngs)  # every parameter has a leading axis of length depth
        self.modulation = Linear(width, 2 * width, zero=True, **options)
        self.final = Linear(width, pixels, zero=True, **options)

    def __call__(
        self, x: Array, t: Array, cond: Array | None = None, extras: Array | None = None
    ) -> Array:
        """Predicts for images x at times t.

        Args:
          x: float32 [B, H, W, C], of the image size and channels that the model was built for.
          t: times in [0, 1], float32 [B].
          cond: labels [B] in 0 … num_classes; None for no label.
          extras: further numbers, float32 [B, extras]; None for zeros.

        Returns: float32 [B, H, W, C].
        Raises: ValueError for an argument of another shape, dtype or range, or for labels without
          label classes.
        """
        x = doors.state(x, ("B", *self.image_shape))
        emb = self.embed(doors.times(t, len(x)), cond, extras)
        patches = space_to_depth(x, self.patch)
        batch, rows, cols, _ = patches.shape
        tokens = self.patchify(patches.reshape(batch, rows * cols, -1))
        tokens = tokens + position_embedding(rows, cols, tokens.shape[-1]).astype(tokens.dtype)
        tokens = self._through_blocks(tokens, emb)
        shift, scale = jnp.split(self.modulation(jax.nn.silu(emb))[:, None], 2, axis=-1)
        pixels = self.final(layer_norm(tokens) * (1 + scale) + shift)
        return depth_to_space(pixels.reshape(batch, rows, cols, -1), self.patch).astype(x.dtype)

    def _through_blocks(self, tokens: Array, emb: Array) -> Array:
        """One loop over the stacked blocks: a single block is compiled, whatever the depth."""
        graph, params = nnx.split(self.blocks)

        # Only the matrix products are kept for the backward pass; what lies between them takes
        # less time to compute again than to store.
        @partial(jax.checkpoint, prevent_cse=False, policy=jax.checkpoint_policies.dots_saveable)
        def step(tokens, block):
            return nnx.merge(graph, block)(tokens, emb), None

        return jax.lax.scan(step, tokens, params)[0]


def layer_norm(x: Array, epsilon: float = 1e-6) -> Array:
    """Each token to mean 0 and variance 1, in float32, without parameters: [..., C] -> the same.

    Source: Ba, Kiros & Hinton 2016 (arXiv:1607.06450).
    """
    tokens = x.astype(jnp.float32)
    centred = tokens - tokens.mean(axis=-1, keepdims=True)
    variance = (centred**2).mean(axis=-1, keepdims=True)
    return (centred * jax.lax.rsqrt(variance + epsilon)).astype(x.dtype)


def position_embedding(rows: int, cols: int, dim: int) -> np.ndarray:
    """Fixed sinusoids of each patch's row (first half) and column: float32 [rows·cols, dim].

    Raises: ValueError for an empty grid, or a dim that is not a multiple of 4.
    Source: Peebles & Xie 2023, section 3.2 (arXiv:2212.09748), as in Vaswani et al. 2017.
    """
    integer("rows", rows, 1)
    integer("cols", cols, 1)
    doors.divisible("dim", dim, 4)
    frequencies = 10_000.0 ** (-np.arange(dim // 4) / (dim // 4))

    def sinusoids(count: int) -> np.ndarray:
        angles = np.arange(count)[:, None] * frequencies
        return np.concatenate([np.cos(angles), np.sin(angles)], axis=-1)

    row = np.repeat(sinusoids(rows), cols, axis=0)
    col = np.tile(sinusoids(cols), (rows, 1))
    return np.concatenate([row, col], axis=-1).astype(np.float32)
