"""A diffusion transformer: the image as a sequence of patches."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from diffusion_course.checks import integer, one_of
from diffusion_course.models import doors
from diffusion_course.models.attention import count_heads
from diffusion_course.models.blocks import Block, stack, through
from diffusion_course.models.layers import TIME_SCALE, Conditioning, Linear
from diffusion_course.models.patches import Patched
from diffusion_course.models.text import TextEncoder

CONDITIONING = ("adaln-zero", "adaln-single", "in-context", "cross-attention")


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
      captions: whether it is told a caption of num_classes different words in place of a label, as
        a `UNet` with cross-attention is: a text encoder reads it, and in every block the patches
        attend to its words, between attention and dense network. ``null_label`` fills up short
        captions and counts for nothing; a caption of nothing else is the null caption. The norms
        are told the rest, so `conditioning` must be adaptive.
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
    Source: Peebles & Xie 2023 (arXiv:2212.09748); see `blocks.Block` for the rest.

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
        captions: bool = False,
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
        adaptive, single = conditioning.startswith("adaln"), conditioning == "adaln-single"
        if captions and num_classes is None:
            raise ValueError("num_classes must be the number of words for captions, got None")
        if captions and not adaptive:
            raise ValueError(
                f"conditioning must be adaln-zero or adaln-single for captions, got {conditioning}"
            )
        self._open(image_size, image_channels, patch, width, head_size, positions, options)
        self.null_label, self.conditioning = num_classes, conditioning
        labels = None if captions else num_classes
        self.embed = Conditioning(width, labels, extras=extras, time_scale=time_scale, **options)
        self.text = (
            TextEncoder(num_classes, width, head_size=head_size, **options) if captions else None
        )
        self.shared = Linear(width, 6 * width, zero=True, **options) if single else None
        heads = count_heads(width, head_size)
        choices = {"conditioning": conditioning, "captioned": captions, "qk_norm": qk_norm}
        block = partial(Block, width, heads, **choices, dtype=dtype)
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
          cond: labels [B] in 0 … num_classes, or, with captions, rows of such numbers [B, L]; None
            for no label or caption.
          extras: further numbers, float32 [B, extras]; None for zeros.

        Returns: float32 [B, H, W, C], or [B, H, W, 2C] with a learned variance.
        Raises: ValueError for an argument of another shape, dtype or range, or for labels without
          label classes.
        """
        x = doors.state(x, ("B", *self.image_shape))
        t = doors.times(t, x.shape[0])
        caption = None
        if self.text is not None:
            caption = self.text(doors.tokens(cond, x.shape[0], self.null_label))
            cond = None  # all that is known of the caption goes through the attention
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
        tokens = self._through_blocks(tokens, told, self._angles(others), caption)
        return self._pixels(tokens[:, :patches] if others else tokens, emb, x.dtype)

    def _through_blocks(self, tokens: Array, told: Array | None, angles=None, caption=None):
        """All blocks in turn; long skips bring the first half's outputs, last first."""

        def step(block, tokens, skip):
            return block(tokens, told, skip, angles, caption)

        if self.second_half is None:
            return through(step, self.blocks, tokens)[0]
        tokens, outputs = through(step, self.blocks, tokens, keep=True)
        skips = outputs[: self.skipping][::-1]
        return through(step, self.second_half, tokens, skips)[0]
