"""Vector quantisation: a grid of whole numbers, each the index of a vector in a codebook."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from diffusion_course import checks
from diffusion_course.models.vae import Decoder, Encoder


class Quantised(NamedTuple):
    """Vectors, and the codebook's vectors in their place.

    Attributes:
      z: the codebook's nearest vectors, [..., D].
      index: their indices, int32 [...].
    """

    z: Array
    index: Array


def nearest_code(codebook: Array, z: Array) -> Quantised:
    """Each vector's nearest one in the codebook; of equally near ones the first.

    Args:
      codebook: [K, D].
      z: [..., D].

    Raises: ValueError for other shapes.
    Source: van den Oord, Vinyals & Kavukcuoglu 2017, eq. 1–2 (arXiv:1711.00937).

    >>> found = nearest_code(jnp.array([[0.0], [1.0]]), jnp.array([[0.2], [7.0], [0.6]]))
    >>> found.index.tolist(), found.z[:, 0].tolist()
    ([0, 1, 1], [0.0, 1.0, 1.0])
    """
    codebook, z = checks.state("codebook", codebook), checks.state("z", z)
    if codebook.ndim != 2 or 0 in codebook.shape:
        raise ValueError(f"codebook must have shape [K, D], got shape {list(codebook.shape)}")
    if z.ndim == 0 or z.shape[-1] != codebook.shape[1]:
        raise ValueError(
            f"z must have shape [..., D] with D = {codebook.shape[1]}, got shape {list(z.shape)}"
        )
    # ‖z − e‖² without ‖z‖², which is the same for all codes and leaves the comparison.
    products = jnp.matmul(z, codebook.T, precision="highest")
    index = jnp.argmin((codebook**2).sum(axis=1) / 2 - products, axis=-1)
    return Quantised(codebook[index], index)


def straight_through(z: Array, quantised: Array) -> Array:
    """The value of `quantised` with the gradient of z: rounding has none of its own.

    Source: Bengio, Léonard & Courville 2013 (arXiv:1308.3432); here van den Oord et al. 2017,
    section 3.2 (arXiv:1711.00937).

    >>> print(jax.grad(lambda z: 3 * straight_through(z, jnp.round(z)))(0.7))
    3.0
    """
    checks.same_shape("quantised", quantised, "z", z)
    return z + jax.lax.stop_gradient(quantised - z)


def codebook_loss(z: Array, quantised: Array) -> Array:
    """Mean squared distance of each example that moves the codes, and not the encoder: [B].

    Source: van den Oord et al. 2017, eq. 3, second term (arXiv:1711.00937).
    """
    return _squared(jax.lax.stop_gradient(z) - quantised)


def commitment_loss(z: Array, quantised: Array) -> Array:
    """The same distance, moving the encoder and not the codes: [B].

    Without it the encoder may run away from a codebook that follows too slowly.

    Source: van den Oord et al. 2017, eq. 3, third term (arXiv:1711.00937).
    """
    return _squared(z - jax.lax.stop_gradient(quantised))


def _squared(difference: Array) -> Array:
    return (difference**2).reshape(len(difference), -1).mean(axis=1)


def usage(index: Array, codes: int) -> Array:
    """How often each code is used: shares [K], which add up to 1.

    Args:
      index: whole numbers of any shape, in 0 … codes − 1.
      codes: K.

    Raises: ValueError for other indices, or none.
    """
    codes = checks.integer("codes", codes, 1)
    checks.labels("index", index, np.shape(index), codes - 1)
    if not np.size(index):
        raise ValueError("index must hold at least one index, got none")
    return jnp.bincount(jnp.ravel(index), length=codes) / np.size(index)


def perplexity(index: Array, codes: int) -> Array:
    """How many codes are in use: the exponential of the entropy of their shares, in [1, K].

    Args:
      index: whole numbers of any shape, in 0 … codes − 1.
      codes: K.

    Raises: ValueError as `usage`.

    >>> print(perplexity(jnp.array([0, 1, 2, 3]), 8), perplexity(jnp.array([5, 5, 5, 5]), 8))
    4.0 1.0
    """
    share = usage(index, codes)
    # 0·log 0 is 0.
    return jnp.exp(-jnp.sum(share * jnp.log(jnp.where(share > 0, share, 1.0))))


def revive(codebook: Array, share: Array, z: Array, key: Array, least: float = 0.0) -> Array:
    """Moves codes that are hardly used to where the encoder's vectors are.

    A code that is nobody's nearest gets no gradient: it stays dead unless it is moved.

    Args:
      codebook: [K, D].
      share: of each code, [K], from `usage`.
      z: vectors of the encoder, [..., D]; the new places are drawn from them.
      key: a random key.
      least: codes with at most this share are moved, in [0, 1).

    Returns: the new codebook [K, D].
    Raises: ValueError for other shapes, or another value of least.
    Source: Dhariwal et al. 2020, section 3.1, random restart (arXiv:2005.00341).
    """
    codebook, z, share = (
        checks.state(*pair) for pair in (("codebook", codebook), ("z", z), ("share", share))
    )
    nearest_code(codebook, z)  # the shapes
    if share.shape != codebook.shape[:1]:
        raise ValueError(
            f"share must have shape [K] = {list(codebook.shape[:1])}, got {list(share.shape)}"
        )
    checks.within("least", least, 0, 1, ends="[)")
    vectors = z.reshape(-1, z.shape[-1])
    # Without replacement where there are enough: two codes at one place are one code.
    drawn = jax.random.choice(key, vectors, codebook.shape[:1], replace=len(vectors) < len(share))
    return jnp.where((share <= least)[:, None], drawn, codebook)


class VQVAE(nnx.Module):
    """An autoencoder whose grid holds vectors of a codebook, and nothing in between.

    Args:
      image_channels: C of the images.
      latent_channels: D, the length of the vectors.
      codes: K, their number.
      channels, blocks, stem, rngs: as in `vae.Encoder`.

    Source: van den Oord, Vinyals & Kavukcuoglu 2017 (arXiv:1711.00937).
    """

    def __init__(
        self, image_channels: int = 1, latent_channels: int = 4, codes: int = 64,
        channels: tuple[int, ...] = (32, 64), *, blocks: int = 1, stem: int = 2, rngs: nnx.Rngs,
    ):  # fmt: skip
        sizes = {"channels": channels, "blocks": blocks, "stem": stem}
        self.codes = checks.integer("codes", codes, 1)
        self.encoder = Encoder(image_channels, latent_channels, **sizes, rngs=rngs)
        self.decoder = Decoder(image_channels, latent_channels, **sizes, rngs=rngs)
        self.codebook = nnx.Param(jax.random.normal(rngs.params(), (codes, latent_channels)))

    def quantise(self, z: Array) -> Quantised:
        """The nearest codes of vectors z [..., D]."""
        return nearest_code(self.codebook[...], z)

    def latents(self, x: Array) -> Array:
        """The codes of images x [B, H, W, C], as vectors: [B, H/f, W/f, D]."""
        return self.quantise(self.encoder(x)).z

    def index(self, x: Array) -> Array:
        """The codes of images x [B, H, W, C], as whole numbers: int32 [B, H/f, W/f]."""
        return self.quantise(self.encoder(x)).index

    def decode_index(self, index: Array) -> Array:
        """The images of whole numbers [B, h, w] in 0 … K − 1, [B, H, W, C]; not clipped."""
        checks.labels("index", index, np.shape(index), self.codes - 1)
        return self.decoder(self.codebook[...][index])

    def decode(self, z: Array) -> Array:
        """The images of vectors z, [B, H, W, C]; not clipped. Each becomes its nearest code first.

        So a model that draws vectors need not hit the codes exactly.
        """
        return self.decoder(self.quantise(z).z)
