"""Images to small grids of latents and back: an autoencoder, and a variational one.

Both have ``latents(x)``, which gives one grid of numbers for each image, and ``decode(z)``: all
that a diffusion in their latents needs to know of them.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from diffusion_course.checks import integer
from diffusion_course.models import doors
from diffusion_course.models.layers import (
    Conv3x3,
    GroupNorm,
    Linear,
    ResidualBlock,
    depth_to_space,
    space_to_depth,
    upsample,
)

# exp of these is neither 0 nor infinite in float32, with room for a square.
_LOG_VARIANCES = (-20.0, 10.0)


class Gaussian(NamedTuple):
    """Independent normal distributions, one for each number of a grid.

    Attributes:
      mean: [B, …].
      log_variance: [B, …].

    >>> code = Gaussian(jnp.array([[3.0, 0.0]]), jnp.zeros((1, 2)))
    >>> print(code.kl())  # 3²/2, and 0 for what is standard normal already
    [4.5]
    """

    mean: Array
    log_variance: Array

    def sample(self, key: Array) -> Array:
        """One draw, ``mean + std·noise``: gradients flow to the mean and the variance.

        Source: Kingma & Welling 2014, section 2.4 (arXiv:1312.6114).
        """
        noise = jax.random.normal(key, self.mean.shape, self.mean.dtype)
        return self.mean + jnp.exp(self.log_variance / 2) * noise

    def kl(self) -> Array:
        """KL(this ‖ N(0, 1)) of each example in nats: [B]. It is the *rate* of the code.

        ``Σ (mean² + variance − log variance − 1)/2``.

        Source: Kingma & Welling 2014, appendix B (arXiv:1312.6114).
        """
        # expm1: next to variance 1, where most of an unused code lies, the terms cancel.
        terms = self.mean**2 + jnp.expm1(self.log_variance) - self.log_variance
        return terms.reshape(len(terms), -1).sum(axis=1) / 2


class Encoder(nnx.Module):
    """Residual blocks at falling resolution: [B, H, W, C] -> [B, H/f, W/f, out].

    f = stem·2^(levels − 1).

    Args:
      image_channels: C of the images.
      out: channels of the grid.
      channels: width of each level, from fine to coarse; multiples of 8. Every level but the last
        halves the resolution.
      blocks: residual blocks of each level.
      stem: side of the pixel blocks that are moved into channels first; 1 leaves the pixels.
      rngs: random number streams of the initialisation.

    Raises: ValueError for no levels, or sizes that do not fit.
    """

    def __init__(
        self, image_channels: int, out: int, channels: tuple[int, ...] = (32, 64), *,
        blocks: int = 1, stem: int = 2, rngs: nnx.Rngs,
    ):  # fmt: skip
        doors.widths(channels)
        self.image_channels, self.stem = integer("image_channels", image_channels, 1), stem
        self.factor = integer("stem", stem, 1) * 2 ** (len(channels) - 1)
        self.conv_in = Conv3x3(stem**2 * image_channels, channels[0], rngs=rngs)
        layers, width = [], channels[0]
        for level, c in enumerate(channels):
            if level > 0:
                layers.append(Conv3x3(width, width, stride=2, rngs=rngs))
            for _ in range(integer("blocks", blocks, 1)):
                layers.append(ResidualBlock(width, c, None, rngs=rngs))
                width = c
        # nnx.data marks a list of modules as part of the model, in old and new versions of Flax.
        self.layers = nnx.data(layers)
        self.norm_out = GroupNorm(width, rngs=rngs)
        self.conv_out = Conv3x3(width, integer("out", out, 1), rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """The grid of images x [B, H, W, C]; H and W are multiples of f.

        Raises: ValueError for images of another shape or dtype.
        """
        x = doors.state(x, ("B", "H", "W", self.image_channels))
        if any(side % self.factor or side == 0 for side in x.shape[1:3]):
            raise ValueError(
                f"x must have shape [B, H, W, {self.image_channels}] with H and W multiples of "
                f"{self.factor}, got {list(x.shape)}"
            )
        h = self.conv_in(space_to_depth(x, self.stem))
        for layer in self.layers:
            h = layer(h)
        return self.conv_out(jax.nn.silu(self.norm_out(h)))


class Decoder(nnx.Module):
    """The way back: [B, h, w, latents] -> [B, f·h, f·w, C], with levels as in `Encoder`.

    Args:
      image_channels: C of the images.
      latent_channels: of the grid.
      channels, blocks, stem, rngs: as in `Encoder`.
    """

    def __init__(
        self, image_channels: int, latent_channels: int, channels: tuple[int, ...] = (32, 64), *,
        blocks: int = 1, stem: int = 2, rngs: nnx.Rngs,
    ):  # fmt: skip
        doors.widths(channels)
        self.latent_channels = integer("latent_channels", latent_channels, 1)
        self.stem, self.levels = integer("stem", stem, 1), len(channels)
        self.blocks = integer("blocks", blocks, 1)
        self.conv_in = Conv3x3(latent_channels, channels[-1], rngs=rngs)
        layers, double, width = [], [], channels[-1]
        for level, c in reversed(list(enumerate(channels))):
            for _ in range(blocks):
                layers.append(ResidualBlock(width, c, None, rngs=rngs))
                width = c
            if level > 0:
                double.append(Conv3x3(width, width, rngs=rngs))
        self.layers, self.double = nnx.data(layers), nnx.data(double)
        self.norm_out = GroupNorm(width, rngs=rngs)
        self.conv_out = Conv3x3(width, stem**2 * image_channels, rngs=rngs)

    def __call__(self, z: Array) -> Array:
        """Images of the grid z [B, h, w, latents]; not clipped to [-1, 1].

        Raises: ValueError for a grid of another shape or dtype.
        """
        z = doors.state(z, ("B", "h", "w", self.latent_channels))
        h, blocks = self.conv_in(z), iter(self.layers)
        for level in range(self.levels):
            for _ in range(self.blocks):
                h = next(blocks)(h)
            if level < self.levels - 1:
                h = self.double[level](upsample(h))
        return depth_to_space(self.conv_out(jax.nn.silu(self.norm_out(h))), self.stem)


class Autoencoder(nnx.Module):
    """An encoder and a decoder, and nothing that orders what lies between them.

    Args:
      image_channels: C of the images.
      latent_channels: numbers at each place of the grid.
      channels, blocks, stem, rngs: as in `Encoder`.

    Source: Rumelhart, Hinton & Williams 1986, chapter 8 of Parallel Distributed Processing.

    >>> model = Autoencoder(3, latent_channels=4, channels=(8, 16), rngs=nnx.Rngs(0))
    >>> z = jax.eval_shape(model.latents, jax.ShapeDtypeStruct((2, 32, 24, 3), jnp.float32))
    >>> z.shape
    (2, 8, 6, 4)
    """

    def __init__(
        self, image_channels: int = 1, latent_channels: int = 4,
        channels: tuple[int, ...] = (32, 64), *, blocks: int = 1, stem: int = 2, rngs: nnx.Rngs,
    ):  # fmt: skip
        sizes = {"channels": channels, "blocks": blocks, "stem": stem}
        latent_channels = integer("latent_channels", latent_channels, 1)
        self.encoder = Encoder(image_channels, latent_channels, **sizes, rngs=rngs)
        self.decoder = Decoder(image_channels, latent_channels, **sizes, rngs=rngs)

    def latents(self, x: Array) -> Array:
        """The latents of images x [B, H, W, C]: [B, H/f, W/f, latents]."""
        return self.encoder(x)

    def decode(self, z: Array) -> Array:
        """The images of latents z, [B, H, W, C]; not clipped."""
        return self.decoder(z)


class VAE(nnx.Module):
    """An autoencoder whose encoder gives a distribution of latents instead of one value.

    Trained with the KL divergence to N(0, 1), it keeps near that what the decoder does not need:
    the latents have no holes and no wild scale, and small errors in them are small in the image.

    Args:
      image_channels: C of the images.
      latent_channels: numbers at each place of the grid.
      channels, blocks, stem, rngs: as in `Encoder`.

    Source: Kingma & Welling 2014 (arXiv:1312.6114); as a grid, for diffusion: Rombach et al. 2022,
    section 3.1 (arXiv:2112.10752).

    >>> model = VAE(1, latent_channels=2, channels=(8, 16), rngs=nnx.Rngs(0))
    >>> code = jax.eval_shape(model.encode, jax.ShapeDtypeStruct((5, 28, 28, 1), jnp.float32))
    >>> code.mean.shape, code.log_variance.shape
    ((5, 7, 7, 2), (5, 7, 7, 2))
    """

    def __init__(
        self, image_channels: int = 1, latent_channels: int = 4,
        channels: tuple[int, ...] = (32, 64), *, blocks: int = 1, stem: int = 2, rngs: nnx.Rngs,
    ):  # fmt: skip
        sizes = {"channels": channels, "blocks": blocks, "stem": stem}
        latent_channels = integer("latent_channels", latent_channels, 1)
        # Two numbers for each latent: its mean and the logarithm of its variance.
        self.encoder = Encoder(image_channels, 2 * latent_channels, **sizes, rngs=rngs)
        self.decoder = Decoder(image_channels, latent_channels, **sizes, rngs=rngs)

    def encode(self, x: Array) -> Gaussian:
        """The distribution of the latents of images x [B, H, W, C]."""
        mean, log_variance = jnp.split(self.encoder(x), 2, axis=-1)
        return Gaussian(mean, jnp.clip(log_variance, *_LOG_VARIANCES))

    def latents(self, x: Array) -> Array:
        """The mean of that distribution: [B, H/f, W/f, latents]."""
        return self.encode(x).mean

    def decode(self, z: Array) -> Array:
        """The images of latents z, [B, H, W, C]; not clipped."""
        return self.decoder(z)


class ConditionalVAE(nnx.Module):
    """A variational autoencoder that is told the label, with one latent vector for each image.

    Latents at several places would be drawn independently of each other. So a dense layer makes
    one vector of the encoder's grid and the label, and another one a grid of the vector and the
    label. The decoder's output is the mean of a Gaussian whose variance, one number for all pixels,
    is learnt as well.

    Args:
      num_classes: number of labels; no label (None) is a vector of zeros.
      image_size: (H, W), multiples of f; one number for square images.
      image_channels: C of the images.
      latent_channels: length of the latent vector.
      channels, blocks, stem, rngs: as in `Encoder`.

    Raises: ValueError for sizes that do not fit.
    Source: Sohn, Lee & Yan 2015 (NeurIPS); the variance: Rybkin, Daniilidis & Levine 2021
    (arXiv:2006.13202).

    >>> model = ConditionalVAE(10, 8, latent_channels=3, channels=(8,), rngs=nnx.Rngs(0))
    >>> jax.eval_shape(model.decode, jnp.zeros((2, 3)), jnp.array([3, 7])).shape
    (2, 8, 8, 1)
    """

    def __init__(
        self, num_classes: int, image_size: int | tuple[int, int], image_channels: int = 1,
        latent_channels: int = 16, channels: tuple[int, ...] = (64,), *, blocks: int = 1,
        stem: int = 2, rngs: nnx.Rngs,
    ):  # fmt: skip
        sizes = {"channels": channels, "blocks": blocks, "stem": stem}
        self.null_label = integer("num_classes", num_classes, 1)
        self.latent_channels = integer("latent_channels", latent_channels, 1)
        self.grid = coarse_grid(image_size, channels, stem)
        self.image_shape = (*doors.sides(image_size), integer("image_channels", image_channels, 1))
        rows, cols, width = self.grid
        self.encoder = Encoder(image_channels, width, **sizes, rngs=rngs)
        self.code = Linear(rows * cols * width + num_classes, 2 * latent_channels, rngs=rngs)
        self.first = Linear(latent_channels + num_classes, rows * cols * width, rngs=rngs)
        self.decoder = Decoder(image_channels, width, **sizes, rngs=rngs)
        # Of pixels in [-1, 1]: a standard deviation of exp(-1), somewhat less than the digits' own.
        self.log_variance = nnx.Param(jnp.full((), -2.0))

    def encode(self, x: Array, cond: Array | None = None) -> Gaussian:
        """The distribution of the latent vector of images x [B, H, W, C]: [B, latents].

        Raises: ValueError for an argument of another shape, dtype or range.
        """
        x = doors.state(x, ("B", *self.image_shape))
        grid = jax.nn.silu(self.encoder(x)).reshape(len(x), -1)
        mean, log_variance = jnp.split(self.code(self._with_label(grid, cond)), 2, axis=-1)
        return Gaussian(mean, jnp.clip(log_variance, *_LOG_VARIANCES))

    def decode(self, z: Array, cond: Array | None = None) -> Array:
        """The mean images of latent vectors z [B, latents], [B, H, W, C]; not clipped.

        Raises: ValueError for an argument of another shape, dtype or range.
        """
        z = doors.state(z, ("B", self.latent_channels))
        return self.decoder(self.first(self._with_label(z, cond)).reshape(-1, *self.grid))

    def _with_label(self, vectors: Array, cond: Array | None) -> Array:
        labels = doors.labels(cond, len(vectors), self.null_label)
        # The null label has no place among num_classes and becomes zeros.
        return jnp.concatenate([vectors, jax.nn.one_hot(labels, self.null_label)], axis=-1)


def coarse_grid(
    image_size: int | tuple[int, int], channels: tuple[int, ...], stem: int
) -> tuple[int, int, int]:
    """Rows, columns and width of the coarsest grid of an `Encoder` or `Decoder`.

    Raises: ValueError for sizes that are no multiples of f, or other channels.

    >>> coarse_grid((8, 12), (16, 32), stem=2)
    (2, 3, 32)
    """
    doors.widths(channels)
    factor = integer("stem", stem, 1) * 2 ** (len(channels) - 1)
    sides = (doors.divisible("image_size", side, factor) for side in doors.sides(image_size))
    rows, cols = (side // factor for side in sides)
    return rows, cols, channels[-1]
