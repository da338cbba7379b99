"""Diffusion in the latents of a frozen autoencoder: the space, and how its autoencoder is trained.

A diffusion model of latents is an ordinary model, and its denoiser an ordinary denoiser: every
sampler, guidance and editing function works on latents as it does on pixels. All that is new is
`encode` before it and `decode` after it.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from diffusion_course import checks
from diffusion_course.models.classifier import Classifier, Resized, fitted
from diffusion_course.models.quantize import (
    VQVAE,
    codebook_loss,
    commitment_loss,
    straight_through,
)
from diffusion_course.models.vae import VAE, Autoencoder

_CHUNK = 500  # images that are encoded or decoded in one call, for memory


class LatentSpace(NamedTuple):
    """A frozen autoencoder, with latents of mean 0 and standard deviation 1 in each channel.

    The processes of diffusion assume data of about unit scale. An autoencoder's own latents have
    whatever scale its training gave them; shift and scale are measured on data: see `standardised`.
    It is a tree of arrays: make it an argument of the function that you jit.

    Attributes:
      model: with ``latents(x)`` and ``decode(z)``, such as `models.vae.VAE`.
      shift: mean of its own latents, [c].
      scale: 1/std of its own latents, [c].
    """

    model: nnx.Module
    shift: Array
    scale: Array

    def encode(self, x: Array) -> Array:
        """Images x [B, H, W, C] to latents [B, h, w, c]. No gradient flows to the parameters."""
        return (_frozen(self.model).latents(x) - self.shift) * self.scale

    def decode(self, z: Array) -> Array:
        """Latents z [B, h, w, c] to images [B, H, W, C], not clipped to [-1, 1].

        A gradient flows to z, and none to the parameters.
        """
        return _frozen(self.model).decode(z / self.scale + self.shift)

    def shape(self, image_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape (h, w, c) of the latents of an image of shape (H, W, C)."""
        image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
        return jax.eval_shape(self.model.latents, image).shape[1:]


def _frozen(model: nnx.Module) -> nnx.Module:
    graph, state = nnx.split(model)
    return nnx.merge(graph, jax.tree.map(jax.lax.stop_gradient, state))


def standardised(model: nnx.Module, x: np.ndarray) -> LatentSpace:
    """The latent space of an autoencoder, with shift and scale measured on images.

    A constant from a paper belongs to the autoencoder of that paper: Stable Diffusion's 0.18215
    is 1/std of its own.

    Args:
      model: with ``latents(x)`` and ``decode(z)``.
      x: images [N, H, W, C] of the training set, N >= 2.

    Raises: ValueError if x is no such array, or a channel has the same value everywhere.
    Source: Rombach et al. 2022, appendix G (arXiv:2112.10752), there one scale for all channels
    and no shift.
    """
    plain = LatentSpace(model, jnp.zeros(()), jnp.ones(()))
    z = encode_all(plain, x)
    shift, std = (part.astype(np.float64) for part in _moments(z))
    if not (std > 1e-12 * (1 + np.abs(shift))).all():
        raise ValueError(
            f"x must have latents that vary in every channel, got standard deviations {std}"
        )
    return LatentSpace(model, jnp.asarray(shift, jnp.float32), jnp.asarray(1 / std, jnp.float32))


def _moments(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel over all images and places: [c] each."""
    z = z.reshape(-1, z.shape[-1]).astype(np.float64)
    return z.mean(axis=0), z.std(axis=0)


@jax.jit
def _encode(space: LatentSpace, x: Array) -> Array:
    return space.encode(x)


@jax.jit
def _decode(space: LatentSpace, z: Array) -> Array:
    return jnp.clip(space.decode(z), -1, 1)


def encode_all(space: LatentSpace, x: np.ndarray) -> np.ndarray:
    """The latents of a whole data set, made once before training: float32 [N, h, w, c].

    Args:
      space: whose encoder is used.
      x: images [N, H, W, C], N >= 1; encoded a part at a time, for memory.

    Raises: ValueError if x is no floating-point array [N, H, W, C].
    """
    return _in_parts("x", partial(_encode, space), x)


def decode_all(space: LatentSpace, z: np.ndarray) -> np.ndarray:
    """The images of any number of latents, clipped to [-1, 1]: float32 [N, H, W, C].

    Args:
      space: whose decoder is used.
      z: latents [N, h, w, c], N >= 1; decoded a part at a time, for memory.

    Raises: ValueError if z is no floating-point array [N, h, w, c].
    """
    return _in_parts("z", partial(_decode, space), z)


def _in_parts(argument: str, function: Callable[[Array], Array], rows) -> np.ndarray:
    checks.floating(argument, rows)
    if np.ndim(rows) != 4 or not len(rows):
        raise ValueError(
            f"{argument} must be of shape [N, h, w, c] with N >= 1, got {list(np.shape(rows))}"
        )
    rows = np.asarray(rows, np.float32)
    parts = np.split(rows, range(_CHUNK, len(rows), _CHUNK))
    return np.concatenate([np.asarray(function(part)) for part in parts])


# --------------------------------------------------------------------------------------------
# Training the autoencoder. Every loss is in units of the mean squared error of a pixel value.
# --------------------------------------------------------------------------------------------


def reconstruction(x: Array, y: Array) -> Array:
    """Each image's mean squared error: [B]. It is the *distortion* of the code.

    Args:
      x: images [B, …].
      y: what became of them, of the same shape.

    Raises: ValueError if they are not floating-point arrays of one shape.
    """
    x, y = checks.state("x", x), checks.state("y", y)
    checks.same_shape("y", y, "x", x)
    return ((x - y) ** 2).reshape(len(x), -1).mean(axis=1)


def feature_loss(classifier: Classifier | Resized, x: Array, y: Array) -> Array:
    """How differently a classifier sees two images, a mean over its hidden layers: [B].

    The activations at each place are scaled to length 1, so that every layer and every contrast
    counts alike, and their squared distances are averaged. A squared error in pixels is least for
    the average of all images that would do, which is blurred; a classifier sees a blurred edge as
    another edge.

    Args:
      classifier: with released weights; it takes images of any size, with its own channels.
      x: images [B, H, W, C].
      y: what became of them, of the same shape.

    Raises: ValueError if they are not floating-point arrays of one shape.
    Source: Johnson, Alahi & Fei-Fei 2016, eq. 2 (arXiv:1603.08155); with lengths of 1: Zhang et
    al. 2018, eq. 1 (arXiv:1801.03924), there with learned weights.
    """
    x, y = checks.state("x", x), checks.state("y", y)
    checks.same_shape("y", y, "x", x)
    if isinstance(classifier, Classifier):
        classifier = fitted(classifier, x.shape[1:])
    pairs = zip(classifier.activations(x), classifier.activations(y), strict=True)
    layers = [((_unit(a) - _unit(b)) ** 2).sum(axis=-1) for a, b in pairs]
    return sum(layer.reshape(len(x), -1).mean(axis=1) for layer in layers) / len(layers)


def _unit(a: Array) -> Array:
    # The small number keeps the gradient finite where nothing is active.
    return a * jax.lax.rsqrt((a**2).sum(axis=-1, keepdims=True) + 1e-6)


class Parts(NamedTuple):
    """The parts of an autoencoder's loss before they are weighed, each [B].

    Attributes:
      distortion: mean squared error of the pixels.
      order: what keeps the latents in order: the KL divergence in nats (of a VAE), or the codebook
        loss and the weighted commitment (of a VQ-VAE); 0 of a plain autoencoder.
      features: see `feature_loss`; 0 without a classifier.
    """

    distortion: Array
    order: Array
    features: Array


def autoencoder_loss(
    model: Autoencoder | VAE | VQVAE, x: Array, key: Array, *, beta: float = 0.0,
    commitment: float = 0.25, classifier: Classifier | Resized | None = None,
    features: float = 0.0,
) -> tuple[Array, Parts]:  # fmt: skip
    """The loss of a batch, of whichever autoencoder, and its parts.

    ``mean[distortion + beta·KL/D + features·feature_loss]``, D the number of pixel values. With
    beta = 2·s² it is, up to a factor and a constant, the negative evidence lower bound of a
    decoder with normal noise of standard deviation s: beta is the exchange rate of rate and
    distortion. A VQ-VAE has its two losses in the place of the second term, with weight 1.

    Args:
      model: an `Autoencoder`, a `VAE` or a `VQVAE`.
      x: images [B, H, W, C] in [-1, 1].
      key: a random key, for the latents of a VAE.
      beta: weight of the KL divergence per pixel value of a VAE, at least 0.
      commitment: weight of the commitment of a VQ-VAE, at least 0.
      classifier: for `feature_loss`.
      features: weight of that, at least 0.

    Returns: the loss, a scalar, and its parts.
    Raises: ValueError for a weight below 0, or features without a classifier.
    Source: Kingma & Welling 2014, eq. 10 (arXiv:1312.6114); beta: Higgins et al. 2017 (ICLR);
    van den Oord et al. 2017, eq. 3 (arXiv:1711.00937).
    """
    for name, weight in {"beta": beta, "commitment": commitment, "features": features}.items():
        checks.within(name, weight, 0, np.inf, ends="[)")
    if classifier is None and checks.concrete(features) and features > 0:
        raise ValueError(f"features must be 0 without a classifier, got {features}")
    y, order, exchange = _through(model, x, key, beta, commitment)
    distortion = reconstruction(x, y)
    seen = jnp.zeros_like(distortion)
    if classifier is not None:
        seen = feature_loss(_frozen(classifier), x, y)
    total = distortion + exchange * order + features * seen
    return total.mean(), Parts(distortion, order, seen)


def _through(model, x: Array, key: Array, beta: float, commitment: float):
    """The images that come out, what keeps the latents in order, and the weight of that."""
    if isinstance(model, VAE):
        code = model.encode(x)
        return model.decode(code.sample(key)), code.kl(), beta / x[0].size
    if isinstance(model, VQVAE):
        z = model.encoder(x)
        codes = model.quantise(z).z
        order = codebook_loss(z, codes) + commitment * commitment_loss(z, codes)
        # Straight to the decoder: what `decode` does first would stop the gradient.
        return model.decoder(straight_through(z, codes)), order, 1.0
    return model.decode(model.latents(x)), jnp.zeros(len(x)), 0.0
