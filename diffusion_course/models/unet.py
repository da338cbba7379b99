"""A small U-Net that denoises images."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from diffusion_course.checks import integer, one_of
from diffusion_course.models import doors
from diffusion_course.models.cross import ImageCrossAttention
from diffusion_course.models.layers import (
    TIME_SCALE,
    Attention,
    Conditioning,
    Conv3x3,
    GroupNorm,
    ResidualBlock,
    depth_to_space,
    space_to_depth,
    upsample,
)
from diffusion_course.models.text import TextEncoder

CONDITIONING = ("film", "cross-attention")


class UNet(nnx.Module):
    """``model(x, t, cond)``: residual blocks at falling and then rising resolution, with skips.

    Every level but the last halves the resolution. Self-attention stands in the middle, where
    the image is smallest. The output convolution starts at zero: the untrained network is 0.

    Args:
      image_channels: C of the images.
      channels: width of each level, from fine to coarse; multiples of 8 (16 or more, so that a
        group of the norm has more than one channel), the last of 32.
      blocks: residual blocks per level (the way up has as many).
      stem: side of the pixel blocks that are moved into channels first; 1 leaves the pixels.
      learned_variance: whether the output has 2C channels, the last C for `bound.learned`.
      num_classes: number of labels, or None for a model without labels. A labelled model has one
        class more, ``null_label = num_classes``, which stands for "no label".
      conditioning: how it is told the label. "film": its embedding is added to the time's. With
        "cross-attention" it is told a caption instead, of num_classes different words: a text
        encoder reads it, and in the middle every pixel attends to the words. ``null_label`` fills
        up short captions and counts for nothing; a caption of nothing else is the null caption.
      extras: how many further numbers the model is told for each example.
      time_scale: factor of the time and of these numbers inside their sinusoids.
      dtype: of the computation, such as bfloat16 on an accelerator; parameters and output stay
        float32.
      rngs: random number streams of the initialisation.

    Raises: ValueError for no levels, or sizes that do not fit.
    Source: Ho, Jain & Abbeel 2020, appendix B (arXiv:2006.11239), reduced; zero-initialised
    output and FiLM: Dhariwal & Nichol 2021 (arXiv:2105.05233); cross-attention: Rombach et al.
    2022, section 3.3 (arXiv:2112.10752).

    >>> model = UNet(1, (16, 32), num_classes=10, rngs=nnx.Rngs(0))
    >>> model.null_label
    10
    >>> x = jax.ShapeDtypeStruct((4, 8, 12, 1), jnp.float32)  # H and W: any multiples of 2
    >>> jax.eval_shape(model, x, jnp.full(4, 0.5), jnp.arange(4)).shape
    (4, 8, 12, 1)
    """

    def __init__(
        self,
        image_channels: int = 1,
        channels: tuple[int, ...] = (32, 64),
        *,
        blocks: int = 1,
        stem: int = 1,
        learned_variance: bool = False,
        num_classes: int | None = None,
        conditioning: str = "film",
        extras: int = 0,
        time_scale: float = TIME_SCALE,
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        doors.widths(channels)
        if channels[-1] % 32:
            raise ValueError(f"channels must end in a multiple of 32, got {channels}")
        self.image_channels = integer("image_channels", image_channels, 1)
        self.blocks, self.stem = integer("blocks", blocks, 1), integer("stem", stem, 1)
        self.levels, self.null_label = len(channels), num_classes
        dim = 4 * channels[0]
        options = {"dtype": dtype, "rngs": rngs}
        captioned = one_of("conditioning", conditioning, CONDITIONING) == "cross-attention"
        if captioned and num_classes is None:
            raise ValueError("num_classes must be the number of words for captions, got None")
        labels = None if captioned else num_classes
        self.embed = Conditioning(dim, labels, extras=extras, time_scale=time_scale, **options)

        self.conv_in = Conv3x3(stem**2 * image_channels, channels[0], **options)
        down, halve, skips, width = [], [], [channels[0]], channels[0]
        for level, c in enumerate(channels):
            for _ in range(blocks):
                down.append(ResidualBlock(width, c, dim, **options))
                width = c
                skips.append(width)
            if level < self.levels - 1:
                halve.append(Conv3x3(width, width, stride=2, **options))
        self.middle = ResidualBlock(width, width, dim, **options)
        self.attention = Attention(width, **options)
        self.text = TextEncoder(num_classes, width, **options) if captioned else None
        self.cross = ImageCrossAttention(width, width, **options) if captioned else None
        up, double = [], []
        for level, c in reversed(list(enumerate(channels))):
            for _ in range(blocks):
                up.append(ResidualBlock(width + skips.pop(), c, dim, **options))
                width = c
            if level > 0:
                double.append(Conv3x3(width, width, **options))
        # nnx.data marks lists of modules as part of the model, in old and new versions of Flax.
        self.down, self.halve = nnx.data(down), nnx.data(halve)
        self.up, self.double = nnx.data(up), nnx.data(double)
        width += skips.pop()
        out = stem**2 * image_channels * (2 if learned_variance else 1)
        self.norm_out = GroupNorm(width, rngs=rngs)
        self.conv_out = Conv3x3(width, out, zero=True, **options)

    def __call__(
        self, x: Array, t: Array, cond: Array | None = None, extras: Array | None = None
    ) -> Array:
        """Predicts for images x at times t.

        Args:
          x: float32 [B, H, W, C]; H and W are multiples of stem·2^(levels − 1).
          t: times in [0, 1], float32 [B].
          cond: labels [B] in 0 … num_classes, or, with cross-attention, captions [B, L] of such
            numbers; None for no label or caption.
          extras: further numbers, float32 [B, extras]; None for zeros.

        Returns: float32 [B, H, W, C], or [B, H, W, 2C] with a learned variance.
        Raises: ValueError for an argument of another shape, dtype or range, or for labels without
          label classes.
        """
        x = self.checked(x)
        emb, caption = self.told(t, cond, extras, x.shape[0])
        h, skips = self.encode(x, emb, caption)
        return self.decode(h, skips, emb).astype(x.dtype)

    def told(self, t: Array, cond: Array | None, extras: Array | None, count: int):
        """What it is told of `count` examples: the embedding [B, dim], and the caption's tokens
        with which of them count (None without captions)."""
        t = doors.times(t, count)
        if self.text is None:
            return self.embed(t, cond, extras), None
        caption = self.text(doors.tokens(cond, count, self.null_label))
        return self.embed(t, None, extras), caption

    def encode(self, x: Array, emb: Array, caption=None, added: Array | float = 0.0):
        """The way down and the middle: images -> the middle's output, and the skips, fine first.

        Args:
          x: images [B, H, W, C].
          emb: from `told`.
          caption: from `told`.
          added: what is added behind the first convolution.
        """
        h, skips = self._down(x, emb, added)
        h = self.attention(self.middle(h, emb))
        return (h if caption is None else self.cross(h, *caption)), skips

    def _down(self, x: Array, emb: Array, added: Array | float = 0.0):
        h = self.conv_in(space_to_depth(x, self.stem)) + added
        skips, blocks = [h], iter(self.down)
        for level in range(self.levels):
            for _ in range(self.blocks):
                h = next(blocks)(h, emb)
                skips.append(h)
            if level < self.levels - 1:
                h = self.halve[level](h)
        return h, skips

    def decode(self, h: Array, skips: list[Array], emb: Array) -> Array:
        """The way up: what `encode` returns -> the prediction [B, H, W, C]."""
        skips, blocks = list(skips), iter(self.up)
        for level in range(self.levels):
            for _ in range(self.blocks):
                h = next(blocks)(jnp.concatenate([h, skips.pop()], axis=-1), emb)
            if level < self.levels - 1:
                h = self.double[level](upsample(h))
        h = jnp.concatenate([h, skips.pop()], axis=-1)
        h = self.conv_out(jax.nn.silu(self.norm_out(h)))
        return depth_to_space(h, self.stem)

    def attention_maps(self, x: Array, t: Array, cond: Array) -> Array:
        """Where the image attends to each word of its caption: [B, h, w, 1 + L].

        The weights of the cross-attention, the mean of its heads, at the resolution of the middle;
        at each place they add up to 1. The first are those of the encoder's own token, which stands
        before the words.

        Args:
          x: images at times t, as in a call.
          t: times [B].
          cond: captions [B, L].

        Raises: ValueError as a call, or for a model without captions.
        """
        if self.cross is None:
            raise ValueError(
                'attention_maps needs a model with conditioning="cross-attention", got "film"'
            )
        x = self.checked(x)
        emb, caption = self.told(t, cond, None, len(x))
        h, _ = self._down(x, emb)
        return self.cross.maps(self.attention(self.middle(h, emb)), *caption)

    def checked(self, x: Array) -> Array:
        """Images x as float32. Raises: ValueError for another shape or dtype."""
        x = doors.state(x, ("B", "H", "W", self.image_channels))
        multiple = self.stem * 2 ** (self.levels - 1)
        if any(side % multiple or side == 0 for side in x.shape[1:3]):
            raise ValueError(
                f"x must have shape [B, H, W, {self.image_channels}] with H and W multiples of "
                f"{multiple}, got {list(x.shape)}"
            )
        return x
