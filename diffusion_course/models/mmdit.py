"""A diffusion transformer of two streams: tokens of the image and tokens of a context."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from diffusion_course.checks import integer
from diffusion_course.models import doors
from diffusion_course.models.attention import attention, count_heads, split_heads
from diffusion_course.models.blocks import Block, stack, through
from diffusion_course.models.layers import (
    STANDARD_NORMAL,
    TIME_SCALE,
    Conditioning,
    Linear,
    RMSNorm,
    layer_norm,
)
from diffusion_course.models.patches import Patched, sinusoids


class JointBlock(nnx.Module):
    """A block for each stream, with weights of its own; the attention is over both together.

    ([B, N, C], [B, L, C]) -> the same.

    Source: Esser et al. 2024, section 4 and figure 2 (arXiv:2403.03206).
    """

    def __init__(self, width: int, heads: int, *, qk_norm: bool, dtype, rngs: nnx.Rngs):
        options = {"qk_norm": qk_norm, "dtype": dtype, "rngs": rngs}
        self.image = Block(width, heads, **options)
        self.context = Block(width, heads, **options)

    def __call__(self, streams, emb: Array, mask: Array, angles: Array | None = None):
        """Both streams, the embedding [B, C], which tokens count [B, N + L], angles [N, d/2]."""
        x, c = streams
        six_x, six_c = self.image.six(emb), self.context.six(emb)
        own, other = self.image.qkv_of(x, six_x, angles), self.context.qkv_of(c, six_c, None)
        q, k, v = (jnp.concatenate(pair, axis=2) for pair in zip(own, other, strict=True))
        mixed = attention(q, k, v, mask)
        patches = x.shape[1]
        x = self.image.finish(x, mixed[:, :patches], six_x)
        return x, self.context.finish(c, mixed[:, patches:], six_c)


class LastBlock(nnx.Module):
    """The last block, after which nobody reads the context: it gives keys and values alone.

    [B, N, C], [B, L, C] -> [B, N, C].
    """

    def __init__(self, width: int, heads: int, *, qk_norm: bool, dtype, rngs: nnx.Rngs):
        options = {"dtype": dtype, "rngs": rngs}
        self.image = Block(width, heads, qk_norm=qk_norm, **options)
        self.modulation = Linear(width, 2 * width, zero=True, **options)
        self.kv = Linear(width, 2 * width, **options)
        self.k_norm = RMSNorm(width // heads, rngs=rngs) if qk_norm else None

    def __call__(self, streams, emb: Array, mask: Array, angles: Array | None = None) -> Array:
        """As in `JointBlock`, but for what it returns."""
        x, c = streams
        six = self.image.six(emb)
        q, k, v = self.image.qkv_of(x, six, angles)
        shift, scale = jnp.split(self.modulation(jax.nn.silu(emb))[:, None], 2, axis=-1)
        h = self.kv(layer_norm(c) * (1 + scale) + shift)
        k_c, v_c = split_heads(h, self.image.heads, parts=2)
        if self.k_norm is not None:
            k_c = self.k_norm(k_c)
        k, v = jnp.concatenate([k, k_c], axis=2), jnp.concatenate([v, v_c], axis=2)
        return self.image.finish(x, attention(q, k, v, mask), six)


class MMDiT(Patched):
    """``model(x, t, cond)``: image and context are two streams of tokens that attend to each other.

    The context is a sequence of token numbers, such as a caption's words, or one label. Numbers
    0 … num_classes − 1 are tokens; ``null_label = num_classes`` fills up shorter sequences and
    counts for nothing: its keys have the logit −∞. A context of nothing else is no context. The
    time alone modulates the norms, so all that is known of the context goes through the attention.

    The output layer starts at zero: the untrained network is 0.

    Args:
      image_size: (H, W) of the images, multiples of patch; one number for square images.
      image_channels: C of the images.
      patch: side of a patch.
      width: of a token; a multiple of head_size and of 4.
      depth: number of blocks.
      head_size: width of an attention head.
      num_classes: number of labels, or of different tokens.
      positions: "sin-cos" or "rotary", of the patches; see `DiT`. Tokens of the context have the
        sinusoids of their place in the sequence.
      qk_norm: whether queries and keys are normalised, in each stream by itself.
      learned_variance: whether the output has 2C channels, the last C for `bound.learned`.
      time_scale: factor of the time inside its sinusoids.
      dtype: of the computation, such as bfloat16 on an accelerator; parameters and output stay
        float32.
      rngs: random number streams of the initialisation.

    Raises: ValueError for sizes that do not fit, or an unknown choice.
    Source: Esser et al. 2024, section 4 (arXiv:2403.03206), without its text encoders and without
    the caption's summary in the modulation.

    >>> model = MMDiT((8, 12), 3, patch=4, width=32, depth=2, num_classes=9, rngs=nnx.Rngs(0))
    >>> x = jax.ShapeDtypeStruct((2, 8, 12, 3), jnp.float32)
    >>> captions = jnp.array([[4, 0, 8], [7, 9, 9]])  # of three tokens and of one
    >>> jax.eval_shape(model, x, jnp.full(2, 0.5), captions).shape
    (2, 8, 12, 3)
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
        num_classes: int,
        positions: str = "sin-cos",
        qk_norm: bool = True,
        learned_variance: bool = False,
        time_scale: float = TIME_SCALE,
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        options = {"dtype": dtype, "rngs": rngs}
        integer("depth", depth, 1)
        self._open(image_size, image_channels, patch, width, head_size, positions, options)
        self.null_label = integer("num_classes", num_classes, 1)
        self.embed = Conditioning(width, None, time_scale=time_scale, **options)
        self.context = nnx.Embed(
            num_classes, width, embedding_init=STANDARD_NORMAL, dtype=dtype, rngs=rngs
        )
        heads = count_heads(width, head_size)

        def block(rngs: nnx.Rngs) -> JointBlock:
            return JointBlock(width, heads, qk_norm=qk_norm, dtype=dtype, rngs=rngs)

        self.blocks = stack(block, depth - 1, rngs) if depth > 1 else None
        self.last = LastBlock(width, heads, qk_norm=qk_norm, **options)
        self._close(width, True, learned_variance, options)

    def __call__(self, x: Array, t: Array, cond: Array | None = None) -> Array:
        """Predicts for images x at times t.

        Args:
          x: float32 [B, H, W, C], of the image size and channels that the model was built for.
          t: times in [0, 1], float32 [B].
          cond: token numbers [B, L] in 0 … num_classes, of any length L; or labels [B], which are
            sequences of length 1; None for no context.

        Returns: float32 [B, H, W, C], or [B, H, W, 2C] with a learned variance.
        Raises: ValueError for an argument of another shape, dtype or range.
        """
        x = doors.state(x, ("B", *self.image_shape))
        emb = self.embed(doors.times(t, x.shape[0]), None)
        ids = doors.tokens(cond, len(x), self.null_label)
        tokens = self._tokens(x)
        counts = jnp.concatenate([jnp.ones(tokens.shape[:2], bool), ids < self.null_label], axis=1)
        # The filler has no embedding. Its tokens have some other token's, which nobody reads.
        context = self.context(jnp.minimum(ids, self.null_label - 1))
        places = sinusoids(ids.shape[1], context.shape[-1])
        streams, angles = (tokens, context + places.astype(context.dtype)), self._angles()
        if self.blocks is not None:
            streams, _ = through(
                lambda block, streams, _: block(streams, emb, counts, angles), self.blocks, streams
            )
        return self._pixels(self.last(streams, emb, counts, angles), emb, x.dtype)
