"""A small U-Net that denoises images."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from diffusion_course.checks import integer
from diffusion_course.models import doors
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
      extras: how many further numbers the model is told for each example.
      time_scale: factor of the time and of these numbers inside their sinusoids.
      dtype: of the computation, such as bfloat16 on an accelerator; parameters and output stay
        float32.
      rngs: random number streams of the initialisation.

    Raises: ValueError for no levels, or sizes that do not fit.
    Source: Ho, Jain & Abbeel 2020, appendix B (arXiv:2006.11239), reduced; zero-initialised
    output and FiLM: Dhariwal & Nichol 2021 (arXiv:2105.05233).

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
        self.embed = Conditioning(dim, num_classes, extras=extras, time_scale=time_scale, **options)

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
          cond: labels [B] in 0 … num_classes; None for no label.
          extras: further numbers, float32 [B, extras]; None for zeros.

        Returns: float32 [B, H, W, C], or [B, H, W, 2C] with a learned variance.
        Raises: ValueError for an argument of another shape, dtype or range, or for labels without
          label classes.
        """
        x = self._checked(x)
        emb = self.embed(doors.times(t, len(x)), cond, extras)
        h = self.conv_in(space_to_depth(x, self.stem))
        skips, blocks = [h], iter(self.down)
        for level in range(self.levels):
            for _ in range(self.blocks):
                h = next(blocks)(h, emb)
                skips.append(h)
            if level < self.levels - 1:
                h = self.halve[level](h)
        h = self.attention(self.middle(h, emb))
        blocks = iter(self.up)
        for level in range(self.levels):
            for _ in range(self.blocks):
                h = next(blocks)(jnp.concatenate([h, skips.pop()], axis=-1), emb)
            if level < self.levels - 1:
                h = self.double[level](upsample(h))
        h = jnp.concatenate([h, skips.pop()], axis=-1)
        h = self.conv_out(jax.nn.silu(self.norm_out(h)))
        return depth_to_space(h, self.stem).astype(x.dtype)

    def _checked(self, x: Array) -> Array:
        x = doors.state(x, ("B", "H", "W", self.image_channels))
        multiple = self.stem * 2 ** (self.levels - 1)
        if any(side % multiple or side == 0 for side in x.shape[1:3]):
            raise ValueError(
                f"x must have shape [B, H, W, {self.image_channels}] with H and W multiples of "
                f"{multiple}, got {list(x.shape)}"
            )
        return x
