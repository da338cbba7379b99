"""Images and captions in one space: what belongs together lies close together."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from diffusion_course import checks
from diffusion_course.models.classifier import Classifier
from diffusion_course.models.layers import Linear
from diffusion_course.models.text import TextEncoder

# Logits are cosines times the scale. It starts at 1/0.07 and may grow to 100: with a larger one
# a single pair decides a step.
FIRST_SCALE, LARGEST_SCALE = 1 / 0.07, 100.0


class Contrastive(nnx.Module):
    """An image tower and a text tower whose outputs are unit vectors [B, D].

    Args:
      image_size: (H, W) of the images, multiples of 4; one number for square images.
      image_channels: C of the images.
      num_words: number of words; ``num_words`` itself is the padding of captions.
      dim: D, of the common space.
      width: channels of the image tower's first convolution, a multiple of 8.
      text_width: of the text tower, a multiple of 16.
      rngs: random number streams of the initialisation.

    Raises: ValueError for sizes that do not fit.
    Source: Radford et al. 2021, section 2.3 and figure 3 (arXiv:2103.00020), with small towers.

    >>> pair = Contrastive(8, 3, num_words=5, width=8, text_width=16, rngs=nnx.Rngs(0))
    >>> x, captions = jnp.ones((4, 8, 8, 3)), jnp.array([[0, 1], [2, 5], [3, 4], [5, 5]])
    >>> pair(x, captions).shape, pair.score(x, captions).shape
    ((4, 4), (4,))
    """

    def __init__(
        self,
        image_size: int | tuple[int, int],
        image_channels: int = 3,
        *,
        num_words: int,
        dim: int = 64,
        width: int = 32,
        text_width: int = 64,
        rngs: nnx.Rngs,
    ):
        checks.integer("dim", dim, 2)
        # Its last layer, made for class logits, is the projection into the common space.
        self.image = Classifier(
            image_channels, image_size, dim, width=width, features=2 * dim, rngs=rngs
        )
        self.text = TextEncoder(num_words, text_width, rngs=rngs)
        self.project = Linear(text_width, dim, rngs=rngs)
        self.log_scale = nnx.Param(jnp.full((), math.log(FIRST_SCALE)))

    def images(self, x: Array) -> Array:
        """Unit vectors [B, D] of images [B, H, W, C]. Raises: ValueError as `Classifier`."""
        return normalise(self.image(x))

    def captions(self, captions: Array) -> Array:
        """Unit vectors [B, D] of captions [B, L]. Raises: ValueError as `TextEncoder`."""
        return normalise(self.project(self.text(captions)[0][:, 0]))

    def score(self, x: Array, captions: Array) -> Array:
        """The cosine between each image and its caption, in [−1, 1]: [B].

        Raises: ValueError for another number of captions than images, or as the towers do.
        """
        if len(x) != len(captions):
            raise ValueError(
                f"captions must be one for each of the {len(x)} images, got {len(captions)}"
            )
        return jnp.sum(self.images(x) * self.captions(captions), axis=-1)

    def scale(self) -> Array:
        """What cosines are multiplied with, the inverse of the learned temperature."""
        return jnp.minimum(jnp.exp(self.log_scale[...]), LARGEST_SCALE)

    def __call__(self, x: Array, captions: Array) -> Array:
        """Logits [B, N] of images [B, H, W, C] (rows) with captions [N, L] (columns)."""
        return self.scale() * self.images(x) @ self.captions(captions).T


def normalise(vectors: Array, epsilon: float = 1e-12) -> Array:
    """Vectors [..., D] divided by their lengths; a vector of zeros stays one.

    >>> normalise(jnp.array([[3.0, 4.0], [0.0, 0.0]])).round(1).tolist()
    [[0.6..., 0.8...], [0.0, 0.0]]
    """
    square = jnp.sum(vectors**2, axis=-1, keepdims=True)
    # Under the root, so that the slope at 0 is finite.
    return vectors * jax.lax.rsqrt(jnp.maximum(square, epsilon))


def info_nce(logits: Array, captions: Array | None = None) -> Array:
    """The contrastive loss of a batch of pairs, a scalar: which caption is whose image's, and back.

    The mean of two cross-entropies: of each row's right column, and of each column's right row.
    Where all logits are equal it is log B.

    Args:
      logits: [B, B]; the pairs that belong together on the diagonal.
      captions: [B, L]. If they are given, a pair of an image and another image's caption that
        reads like its own is no wrong answer, and is left out of the sums (its logit is −∞).

    Raises: ValueError for logits of another shape, or another number of captions.
    Source: Radford et al. 2021, figure 3 (arXiv:2103.00020); the loss of van den Oord et al. 2018,
    eq. 4 (arXiv:1807.03748), both ways.

    >>> print(info_nce(jnp.zeros((8, 8))).round(4))  # log 8
    2.0794
    """
    shape = np.shape(logits)
    if len(shape) != 2 or shape[0] != shape[1] or not shape[0]:
        raise ValueError(f"logits must have shape [B, B] with B >= 1, got {list(shape)}")
    own = jnp.eye(shape[0], dtype=bool)
    if captions is not None:
        captions = jnp.asarray(captions)
        if captions.ndim != 2 or len(captions) != shape[0]:
            raise ValueError(
                f"captions must have shape [{shape[0]}, L], got {list(captions.shape)}"
            )
        twins = (captions[:, None] == captions[None]).all(axis=-1) & ~own
        logits = jnp.where(twins, -jnp.inf, logits)
    right = jnp.diagonal(logits)
    rows, columns = (jax.nn.logsumexp(logits, axis=axis) for axis in (1, 0))
    return jnp.mean((rows + columns) / 2 - right)
