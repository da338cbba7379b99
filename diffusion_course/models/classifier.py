"""A small image classifier: the fixed judge of generated images, and their feature space."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from diffusion_course.models.layers import Conv3x3, GroupNorm, Linear


class Classifier(nnx.Module):
    """Two strided convolutions and a dense layer: [B, H, W, C] -> class logits [B, classes].

    Args:
      image_channels: C of the images.
      image_size: H = W, a multiple of 4.
      num_classes: number of labels.
      width: channels of the first convolution, a multiple of 8; the second has twice as many.
      features: width of the last hidden layer, the space in which distances are measured.
      rngs: random number streams of the initialisation.

    Raises: ValueError for an image_size that is not a multiple of 4.
    """

    def __init__(
        self,
        image_channels: int = 1,
        image_size: int = 8,
        num_classes: int = 10,
        *,
        width: int = 32,
        features: int = 64,
        rngs: nnx.Rngs,
    ):
        if image_size % 4:
            raise ValueError(f"image_size must be a multiple of 4, got {image_size}")
        self.conv1 = Conv3x3(image_channels, width, rngs=rngs)
        self.norm1 = GroupNorm(width, rngs=rngs)
        self.conv2 = Conv3x3(width, 2 * width, stride=2, rngs=rngs)
        self.norm2 = GroupNorm(2 * width, rngs=rngs)
        self.conv3 = Conv3x3(2 * width, 2 * width, stride=2, rngs=rngs)
        self.dense = Linear(2 * width * (image_size // 4) ** 2, features, rngs=rngs)
        self.last = Linear(features, num_classes, rngs=rngs)

    def features(self, x: Array) -> Array:
        """Activations of the last hidden layer: [B, features]."""
        h = jax.nn.silu(self.norm1(self.conv1(x)))
        h = jax.nn.silu(self.norm2(self.conv2(h)))
        h = jax.nn.silu(self.conv3(h)).reshape(x.shape[0], -1)
        return jax.nn.silu(self.dense(h))

    def __call__(self, x: Array) -> Array:
        return self.last(self.features(x))


@jax.jit
def judge(model: Classifier, x: Array) -> tuple[Array, Array]:
    """Predicted classes [B] and features [B, F] of images [B, H, W, C], in one compiled call."""
    features = model.features(x)
    return jnp.argmax(model.last(features), axis=-1), features
