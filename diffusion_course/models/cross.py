"""Cross-attention: an image that reads a context, such as the words of a caption."""

import jax.numpy as jnp
from flax import nnx
from jax import Array

from diffusion_course.models.attention import (
    attention,
    attention_weights,
    count_heads,
    split_heads,
)
from diffusion_course.models.layers import GroupNorm, Linear, RMSNorm


class CrossAttention(nnx.Module):
    """Attention of tokens to a context: [B, N, C], [B, L, D] -> [B, N, C].

    Args:
      width: C.
      heads: their number.
      context: D, by default C.
      qk_norm: whether queries and keys are normalised.
      zero: whether the last layer starts at zero, so that nothing is heard of the context at first.
      dtype: of the computation.
      rngs: random number streams of the initialisation.

    Source: Vaswani et al. 2017, section 3.2.3 (arXiv:1706.03762).
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        context: int | None = None,
        qk_norm: bool = False,
        zero: bool = False,
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        options = {"dtype": dtype, "rngs": rngs}
        self.heads = heads
        self.q = Linear(width, width, **options)
        self.kv = Linear(width if context is None else context, 2 * width, **options)
        self.q_norm = RMSNorm(width // heads, rngs=rngs) if qk_norm else None
        self.k_norm = RMSNorm(width // heads, rngs=rngs) if qk_norm else None
        self.out = Linear(width, width, zero=zero, **options)

    def __call__(self, x: Array, context: Array, mask: Array | None = None) -> Array:
        """Tokens x, the context, and which of its tokens count, booleans [B, L] (None for all).

        Where none counts, the context says nothing: what is mixed of it is 0.
        """
        q, k, v = self._parts(x, context)
        return self.out(attention(q, k, v, mask))

    def weights(self, x: Array, context: Array, mask: Array | None = None) -> Array:
        """How much each of x attends to each token of the context, by head: [B, H, N, L]."""
        q, k, _ = self._parts(x, context)
        return attention_weights(q, k, mask)

    def _parts(self, x: Array, context: Array) -> tuple[Array, Array, Array]:
        (q,) = split_heads(self.q(x), self.heads, parts=1)
        k, v = split_heads(self.kv(context), self.heads, parts=2)
        if self.q_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        return q, k, v


class ImageCrossAttention(nnx.Module):
    """Every pixel reads a context, with a residual connection: [B, H, W, C], [B, L, D] -> the same.

    The output projection starts at zero, so that the layer starts as the identity.

    Args:
      channels: C.
      context: D.
      head_size: of an attention head.
      dtype: of the computation.
      rngs: random number streams of the initialisation.

    Source: Rombach et al. 2022, section 3.3 (arXiv:2112.10752), without its dense layer.
    """

    def __init__(
        self, channels: int, context: int, head_size: int = 16, *, dtype=jnp.float32, rngs: nnx.Rngs
    ):
        heads = count_heads(channels, head_size)
        self.norm = GroupNorm(channels, rngs=rngs)
        self.cross = CrossAttention(
            channels, heads, context=context, zero=True, dtype=dtype, rngs=rngs
        )

    def __call__(self, x: Array, context: Array, mask: Array | None = None) -> Array:
        """Images x, the context, and which of its tokens count, booleans [B, L]."""
        return x + self.cross(self._tokens(x), context, mask).reshape(x.shape)

    def maps(self, x: Array, context: Array, mask: Array | None = None) -> Array:
        """Where the image attends to each token, the mean of the heads: [B, H, W, L], sums of 1."""
        weights = self.cross.weights(self._tokens(x), context, mask).mean(axis=1)
        return weights.reshape(*x.shape[:3], -1)

    def _tokens(self, x: Array) -> Array:
        return self.norm(x).reshape(x.shape[0], -1, x.shape[-1])
