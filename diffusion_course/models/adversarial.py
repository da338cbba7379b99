"""A generator and a discriminator, the games that they play, and the penalty that calms them.

The discriminator's output is a logit: log p(x)/q(x), if it is the best against samples of density q
of data of density p (in the first two games). No likelihood comes out of it, and no encoder.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from diffusion_course import checks
from diffusion_course.models import doors
from diffusion_course.models.layers import Linear, label_vectors
from diffusion_course.models.vae import Decoder, Encoder, coarse_grid


class Generator(nnx.Module):
    """``generator(z [B, latents], cond) -> images [B, H, W, C]`` in (−1, 1), from normal noise z.

    A dense layer makes a coarse grid of the noise and the label, and a `vae.Decoder` an image of
    that.

    Args:
      image_size: (H, W), multiples of f = stem·2^(levels − 1); one number for square images.
      image_channels: C.
      latents: numbers of the noise.
      channels, blocks, stem: as in `vae.Decoder`.
      num_classes: number of labels, or None; with labels ``null_label = num_classes``.
      rngs: random number streams of the initialisation.

    Raises: ValueError for sizes that do not fit.
    Source: Goodfellow et al. 2014 (arXiv:1406.2661); with labels: Mirza & Osindero 2014
    (arXiv:1411.1784).

    >>> model = Generator(8, latents=5, channels=(8,), num_classes=10, rngs=nnx.Rngs(0))
    >>> jax.eval_shape(model, jnp.zeros((2, 5)), jnp.array([3, 7])).shape
    (2, 8, 8, 1)
    """

    def __init__(
        self, image_size: int | tuple[int, int], image_channels: int = 1, *, latents: int = 32,
        channels: tuple[int, ...] = (64,), blocks: int = 1, stem: int = 2,
        num_classes: int | None = None, rngs: nnx.Rngs,
    ):  # fmt: skip
        self.grid = coarse_grid(image_size, channels, stem)
        self.latents, self.null_label = checks.integer("latents", latents, 1), num_classes
        self.label = label_vectors(num_classes, latents, rngs=rngs)
        told = latents if num_classes is None else 2 * latents
        rows, cols, width = self.grid
        self.first = Linear(told, rows * cols * width, rngs=rngs)
        self.decoder = Decoder(
            image_channels, width, tuple(channels), blocks=blocks, stem=stem, rngs=rngs
        )

    def __call__(self, z: Array, cond: Array | None = None) -> Array:
        """Images of the noise z and labels [B] in 0 … num_classes, or None for no label.

        Raises: ValueError for an argument of another shape, dtype or range.
        """
        z = doors.state(z, ("B", self.latents))
        cond = doors.labels(cond, len(z), self.null_label)
        told = z if cond is None else jnp.concatenate([z, self.label(cond)], axis=-1)
        return jnp.tanh(self.decoder(self.first(told).reshape(-1, *self.grid)))

    def noise(self, key: Array, count: int) -> Array:
        """Noise for `count` images: [count, latents]."""
        return jax.random.normal(key, (checks.integer("count", count, 1), self.latents))


class Discriminator(nnx.Module):
    """``discriminator(x [B, H, W, C], cond) -> logits [B]``: large for images that look real.

    The logit is the sum of a part that sees the image alone and the product of its features with a
    vector of the label. Norms are taken within an image: an example's logit must not depend on the
    rest of its batch, or the gradient penalty would have no meaning.

    Args:
      image_size, image_channels, channels, blocks, stem, num_classes, rngs: as in `Generator`.
      features: width of the last hidden layer.

    Raises: ValueError for sizes that do not fit.
    Source: Miyato & Koyama 2018, eq. 3 (arXiv:1802.05637).
    """

    def __init__(
        self, image_size: int | tuple[int, int], image_channels: int = 1, *, features: int = 64,
        channels: tuple[int, ...] = (64,), blocks: int = 1, stem: int = 2,
        num_classes: int | None = None, rngs: nnx.Rngs,
    ):  # fmt: skip
        rows, cols, width = coarse_grid(image_size, channels, stem)
        checks.integer("features", features, 1)
        image_channels = checks.integer("image_channels", image_channels, 1)
        self.image_shape = (*doors.sides(image_size), image_channels)
        self.null_label = num_classes
        self.encoder = Encoder(
            image_channels, width, tuple(channels), blocks=blocks, stem=stem, rngs=rngs
        )
        self.dense = Linear(rows * cols * width, features, rngs=rngs)
        self.last = Linear(features, 1, rngs=rngs)
        self.label = label_vectors(num_classes, features, rngs=rngs)

    def __call__(self, x: Array, cond: Array | None = None) -> Array:
        """Logits of images x and labels [B] in 0 … num_classes, or None for no label.

        Raises: ValueError for an argument of another shape, dtype or range.
        """
        grid = jax.nn.silu(self.encoder(doors.state(x, ("B", *self.image_shape))))
        cond = doors.labels(cond, len(grid), self.null_label)
        features = jax.nn.silu(self.dense(grid.reshape(len(grid), -1)))
        logits = self.last(features)[:, 0]
        if cond is None:
            return logits
        # Divided by the root of the width, the product of two rows of unit scale is of that scale.
        products = (features * self.label(cond)).sum(axis=-1)
        return logits + products / jnp.sqrt(features.shape[-1])


# --------------------------------------------------------------------------------------------
# Games. Every loss takes logits of any shape and is minimised.
# --------------------------------------------------------------------------------------------


class Game(NamedTuple):
    """What the two players pay, each a function of the discriminator's logits.

    Attributes:
      real: what the discriminator pays for data.
      fake: what it pays for samples.
      generator: what the generator pays for its samples.
    """

    real: Callable[[Array], Array]
    fake: Callable[[Array], Array]
    generator: Callable[[Array], Array]


def saturating() -> Game:
    """The game of one value: what one player pays, the other gains.

    Against the best discriminator, log p/q, the value ``E_p log D + E_q log(1 − D)`` is twice the
    Jensen–Shannon divergence of data and samples, less log 4. The generator's gradient vanishes
    where the discriminator is sure: early in training.

    Source: Goodfellow et al. 2014, eq. 1 and theorem 1 (arXiv:1406.2661).

    >>> game = saturating()
    >>> value = -(game.real(0.0) + game.fake(0.0))  # equal distributions: D cannot tell
    >>> print(value.round(4), -jnp.log(4.0).round(4))
    -1.3863 -1.3863
    """
    return Game(lambda d: jax.nn.softplus(-d), jax.nn.softplus, lambda d: -jax.nn.softplus(d))


def non_saturating() -> Game:
    """The same discriminator; the generator maximises log D instead of minimising log(1 − D).

    Its gradient is largest where the discriminator is sure that a sample is none of the data. With
    the best discriminator it is that of KL(q ‖ p) − 2·JSD.

    Source: Goodfellow et al. 2014, section 3 (arXiv:1406.2661); the gradient: Arjovsky & Bottou
    2017, theorem 2.5 (arXiv:1701.04862).
    """
    return saturating()._replace(generator=lambda d: jax.nn.softplus(-d))


def hinge() -> Game:
    """The discriminator pays for logits on the wrong side of ±1 and gains nothing beyond.

    Against the best one it pays 2·Σ min(p, q), which is 2 less twice the total variation.

    Source: Lim & Ye 2017 (arXiv:1705.02894); Miyato et al. 2018, eq. 16 and 17 (arXiv:1802.05957).
    """
    return Game(lambda d: jax.nn.relu(1 - d), lambda d: jax.nn.relu(1 + d), lambda d: -d)


def gradient_penalty(discriminator, x: Array, cond: Array | None = None) -> Array:
    """``‖∇_x D(x)‖²`` of each example, at real images the penalty R1: [B].

    Where the samples already equal the data, a discriminator with a slope would push them away
    again. Half of it, times a weight γ, is added to the discriminator's loss.

    Args:
      discriminator: ``discriminator(x, cond) -> logits [B]``; the logit of one example must not
        depend on the others.
      x: images [B, …].
      cond: labels [B] or None.

    Source: Mescheder, Geiger & Nowozin 2018, eq. 9 (arXiv:1801.04406).

    >>> print(gradient_penalty(lambda x, cond: 3 * x[:, 0] - 4 * x[:, 1], jnp.ones((1, 2))))
    [25.]
    """
    slope = jax.grad(lambda x: discriminator(x, cond).sum())(checks.state("x", x))
    return (slope**2).reshape(len(slope), -1).sum(axis=1)


def discriminator_loss(
    discriminator, game: Game, real: Array, fake: Array, cond: Array | None, penalty: float = 0.0
) -> Array:
    """What the discriminator pays for a batch of data and one of samples: a scalar.

    Args:
      discriminator: ``discriminator(x, cond) -> logits [B]``.
      game: see `Game`.
      real: data [B, …].
      fake: samples of the same shape and of the same labels.
      cond: labels [B] or None, of both.
      penalty: γ, the weight of half the `gradient_penalty` at the data, at least 0.

    Raises: ValueError for samples of another shape, or a negative weight.
    """
    checks.same_shape("fake", fake, "real", real)
    checks.within("penalty", penalty, 0, jnp.inf, ends="[)")
    slope = gradient_penalty(discriminator, real, cond)
    pays = game.real(discriminator(real, cond)) + game.fake(discriminator(fake, cond))
    return (pays + penalty / 2 * slope).mean()


def generator_loss(generator, discriminator, game: Game, z: Array, cond: Array | None) -> Array:
    """What the generator pays for the samples of the noise z [B, latents]: a scalar.

    Args:
      generator: ``generator(z, cond) -> samples [B, …]``.
      discriminator: ``discriminator(x, cond) -> logits [B]``.
      game: see `Game`.
      z: noise.
      cond: labels [B] or None.
    """
    return game.generator(discriminator(generator(z, cond), cond)).mean()
