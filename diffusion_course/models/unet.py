"""A small U-Net that denoises images."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from diffusion_course.models.layers import (
    Attention,
    GroupNorm,
    ResidualBlock,
    TimeEmbedding,
    depth_to_space,
    space_to_depth,
    upsample,
    zero_conv,
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
      num_classes: number of labels, or None for a model without labels. A labelled model has one
        class more, ``null_label = num_classes``, which stands for "no label".
      rngs: random number streams of the initialisation.

    Raises: ValueError for no levels, or widths that do not fit.
    Source: Ho, Jain & Abbeel 2020, appendix B (arXiv:2006.11239), reduced; zero-initialised
    output and FiLM: Dhariwal & Nichol 2021 (arXiv:2105.05233).
    """

    def __init__(
        self,
        image_channels: int = 1,
        channels: tuple[int, ...] = (32, 64),
        *,
        blocks: int = 1,
        stem: int = 1,
        num_classes: int | None = None,
        rngs: nnx.Rngs,
    ):
        if not channels:
            raise ValueError("channels must name at least one level, got ()")
        if blocks < 1:
            raise ValueError(f"blocks must be at least 1, got {blocks}")
        self.stem, self.levels, self.blocks = stem, len(channels), blocks
        self.null_label = num_classes
        dim = 4 * channels[0]
        self.time = TimeEmbedding(dim, rngs=rngs)
        self.label = None if num_classes is None else nnx.Embed(num_classes + 1, dim, rngs=rngs)

        self.conv_in = nnx.Conv(stem**2 * image_channels, channels[0], (3, 3), rngs=rngs)
        down, halve, skips, width = [], [], [channels[0]], channels[0]
        for level, c in enumerate(channels):
            for _ in range(blocks):
                down.append(ResidualBlock(width, c, dim, rngs=rngs))
                width = c
                skips.append(width)
            if level < self.levels - 1:
                halve.append(nnx.Conv(width, width, (3, 3), strides=2, rngs=rngs))
        self.middle = ResidualBlock(width, width, dim, rngs=rngs)
        self.attention = Attention(width, rngs=rngs)
        up, double = [], []
        for level, c in reversed(list(enumerate(channels))):
            for _ in range(blocks):
                up.append(ResidualBlock(width + skips.pop(), c, dim, rngs=rngs))
                width = c
            if level > 0:
                double.append(nnx.Conv(width, width, (3, 3), rngs=rngs))
        # nnx.data marks lists of modules as part of the model, in old and new versions of Flax.
        self.down, self.halve = nnx.data(down), nnx.data(halve)
        self.up, self.double = nnx.data(up), nnx.data(double)
        self.norm_out = GroupNorm(width + skips[0], rngs=rngs)
        self.conv_out = zero_conv(width + skips.pop(), stem**2 * image_channels, rngs=rngs)

    def __call__(self, x: Array, t: Array, cond: Array | None = None) -> Array:
        """Predicts for x [B, H, W, C] at times t [B]; cond: labels [B], None for no label.

        Raises: ValueError for labels without label classes, or an image size that the levels
        (and the stem) cannot halve.
        """
        self._check_size(x)
        emb = self._embed(t, cond)
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
        return depth_to_space(self.conv_out(jax.nn.silu(self.norm_out(h))), self.stem)

    def _embed(self, t: Array, cond: Array | None) -> Array:
        emb = self.time(t)
        if self.label is None:
            if cond is not None:
                raise ValueError("cond must be None: this model has no labels (num_classes=None)")
            return emb
        if cond is None:
            cond = jnp.full(t.shape, self.null_label)
        return emb + self.label(cond)

    def _check_size(self, x: Array) -> None:
        multiple = self.stem * 2 ** (self.levels - 1)
        if x.ndim != 4 or x.shape[1] % multiple or x.shape[2] % multiple:
            raise ValueError(
                f"x must have shape [B, H, W, C] with H and W multiples of {multiple}, "
                f"got shape {x.shape}"
            )
