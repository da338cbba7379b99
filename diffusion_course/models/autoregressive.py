"""An autoregressive model of images: a grid of whole numbers, one after the other.

The pixels have an order, row by row and from left to right, and the network gives each of them a
distribution that depends on the earlier ones alone. Their product is the probability of an image,
exactly. The numbers may be grey levels, or the indices of a codebook (`quantize.VQVAE`).
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from diffusion_course import checks
from diffusion_course.models import doors
from diffusion_course.models.layers import STANDARD_NORMAL, Conv3x3, Linear, label_vectors


def to_levels(x: Array, levels: int) -> Array:
    """Images in [−1, 1] as the numbers of their nearest grey levels: int32 of x's shape.

    Args:
      x: floating-point numbers; what lies outside [−1, 1] gets the first or the last level.
      levels: K, at least 2; level k stands for ``2k/(K − 1) − 1``.

    Raises: ValueError for fewer than 2 levels, or whole numbers.

    >>> to_levels(jnp.array([-1.0, 0.1, 1.0]), 17).tolist()
    [0, 9, 16]
    """
    last = checks.integer("levels", levels, 2) - 1
    return jnp.round(jnp.clip((checks.state("x", x) + 1) / 2, 0, 1) * last).astype(jnp.int32)


def from_levels(index: Array, levels: int) -> Array:
    """Grey levels as numbers in [−1, 1]: the inverse of `to_levels`. Raises: ValueError as there.

    >>> from_levels(jnp.array([0, 9, 16]), 17).tolist()
    [-1.0, 0.125, 1.0]
    """
    last = checks.integer("levels", levels, 2) - 1
    checks.labels("index", index, np.shape(index), last)
    return 2 * jnp.asarray(index, jnp.float32) / last - 1


class PixelCNN(nnx.Module):
    """``model(x [B, H, W], cond) -> logits [B, H, W, K]``; those of a pixel see earlier ones only.

    Two stacks of layers run side by side. One sees the rows above, in all their width; the other
    sees what lies to the left in the same row, and reads the first. With masked kernels in a
    single stack, pixels above and to the right would stay out of sight. Nothing is masked here:
    what a layer reads is moved down or to the right first.

    The output layer starts at zero: the untrained network gives all levels the same probability.

    Args:
      levels: K.
      image_size: (H, W), or one number for square images.
      width: of the hidden layers.
      depth: number of layers. Each widens the view above by a pixel on either side.
      num_classes: number of labels, or None; with labels ``null_label = num_classes``.
      rngs: random number streams of the initialisation.

    Raises: ValueError for a size that is not a positive whole number, or a single level.
    Source: van den Oord et al. 2016, section 2 and eq. 2 and 4 (arXiv:1606.05328); moved instead of
    masked: Salimans et al. 2017 (arXiv:1701.05517).

    >>> model = PixelCNN(17, 8, width=16, depth=1, num_classes=10, rngs=nnx.Rngs(0))
    >>> x = jax.ShapeDtypeStruct((2, 8, 8), jnp.int32)
    >>> jax.eval_shape(model, x, jnp.array([3, 7])).shape
    (2, 8, 8, 17)
    """

    def __init__(
        self, levels: int, image_size: int | tuple[int, int], *, width: int = 64, depth: int = 6,
        num_classes: int | None = None, rngs: nnx.Rngs,
    ):  # fmt: skip
        self.levels, self.size = checks.integer("levels", levels, 2), doors.sides(image_size)
        checks.integer("width", width, 1)
        self.null_label = num_classes
        self.level = nnx.Embed(levels, width, embedding_init=STANDARD_NORMAL, rngs=rngs)
        self.label = label_vectors(num_classes, width, rngs=rngs)
        # A digit lies in the middle of its image: where a pixel is says much about its level.
        self.place = nnx.Param(STANDARD_NORMAL(rngs.params(), (*self.size, width)))
        layers = [CausalLayer(width, rngs=rngs) for _ in range(checks.integer("depth", depth, 1))]
        self.layers = nnx.data(layers)
        self.final = Linear(width, levels, zero=True, rngs=rngs)

    def __call__(self, x: Array, cond: Array | None = None) -> Array:
        """Logits of every level at every pixel.

        Args:
          x: whole numbers [B, H, W] in 0 … K − 1. The last pixel is not read.
          cond: labels [B] in 0 … num_classes, or None for no label.

        Returns: float32 [B, H, W, K].
        Raises: ValueError for an argument of another shape, dtype or range.
        """
        shape = np.shape(x)
        if shape[1:] != self.size:
            rows, cols = self.size
            raise ValueError(f"x must have shape [B, {rows}, {cols}], got {list(shape)}")
        checks.labels("x", x, shape, self.levels - 1)
        cond = doors.labels(cond, len(x), self.null_label)
        told = None if cond is None else self.label(cond)[:, None, None]
        pixels = self.level(jnp.asarray(x))
        above = moved(pixels, down=1) + self.place[...]
        left = moved(pixels, right=1) + self.place[...]
        for layer in self.layers:
            above, left = layer(above, left, told)
        return self.final(jax.nn.silu(left))


class CausalLayer(nnx.Module):
    """A layer of both stacks, with residual connections: two grids [B, H, W, C] -> the same.

    Source: van den Oord et al. 2016, figure 2 and eq. 4 (arXiv:1606.05328).
    """

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.rows = Conv3x3(width, 2 * width, rngs=rngs)
        self.row = Linear(3 * width, 2 * width, rngs=rngs)
        self.down = Linear(2 * width, 2 * width, rngs=rngs)
        self.told = Linear(width, 4 * width, use_bias=False, rngs=rngs)
        self.out = Linear(width, width, rngs=rngs)

    def __call__(self, above: Array, left: Array, told: Array | None) -> tuple[Array, Array]:
        # Under a row of zeros, the 3×3 kernel around a pixel covers its own row and the two above.
        # The last row goes after the convolution: gone before, its pixels would not see it.
        seen_above = self.rows(jnp.pad(above, ((0, 0), (1, 0), (0, 0), (0, 0))))[:, :-1]
        near = [moved(left, right=n) for n in range(3)]
        seen_left = self.row(jnp.concatenate(near, axis=-1)) + self.down(seen_above)
        if told is not None:
            to_above, to_left = jnp.split(self.told(told), 2, axis=-1)
            seen_above, seen_left = seen_above + to_above, seen_left + to_left
        return above + gated(seen_above), left + self.out(gated(seen_left))


def gated(x: Array) -> Array:
    """``tanh(a)·sigmoid(b)`` of the two halves of the channels: [..., 2C] -> [..., C]."""
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.tanh(a) * jax.nn.sigmoid(b)


def moved(x: Array, down: int = 0, right: int = 0) -> Array:
    """The grid x [B, H, W, C] moved by some pixels; zeros come in.

    >>> moved(jnp.arange(1, 5).reshape(1, 2, 2, 1), down=1)[0, :, :, 0].tolist()
    [[0, 0], [1, 2]]
    """
    _, rows, cols, _ = x.shape
    return jnp.pad(x, ((0, 0), (down, 0), (right, 0), (0, 0)))[:, :rows, :cols]


def log_prob(model: PixelCNN, x: Array, cond: Array | None = None) -> Array:
    """Log-probability of images under the model, in nats, exactly: [B].

    Args:
      model: the network.
      x: whole numbers [B, H, W] in 0 … K − 1.
      cond: labels [B], or None.

    Raises: ValueError for an argument of another shape, dtype or range.

    >>> model = PixelCNN(4, 3, width=8, depth=1, rngs=nnx.Rngs(0))
    >>> print(log_prob(model, jnp.zeros((1, 3, 3), int)) / jnp.log(2))  # nine pixels of two bits
    [-18.]
    """
    log_p = jax.nn.log_softmax(model(x, cond))
    each = jnp.take_along_axis(log_p, jnp.asarray(x)[..., None], axis=-1)
    return each.reshape(len(x), -1).sum(axis=1)


def sample(
    model: PixelCNN, count: int, key: Array, cond: Array | None = None, temperature: float = 1.0
) -> Array:
    """Draws images pixel by pixel, with one evaluation of the network for each pixel.

    Args:
      model: the network.
      count: B.
      key: a random key; pixel i uses ``fold_in(key, i)``.
      cond: labels [B], or None.
      temperature: divides the logits; positive. At 1 the images have the model's distribution.

    Returns: int32 [B, H, W].
    Raises: ValueError for a count below 1, or a temperature that is not positive.
    Source: van den Oord, Kalchbrenner & Kavukcuoglu 2016, section 2 (arXiv:1601.06759).
    """
    count, (rows, cols) = checks.integer("count", count, 1), model.size
    checks.above("temperature", temperature, 0)
    checks.random_key("key", key)

    def draw_pixel(i, x):
        row, col = i // cols, i % cols
        logits = model(x, cond)[:, row, col] / temperature
        # mode="high": the usual noise of float32 never draws what is rarer than about 1e-7.
        new = jax.random.categorical(jax.random.fold_in(key, i), logits, mode="high")
        return x.at[:, row, col].set(new.astype(jnp.int32))

    start = jnp.zeros((count, rows, cols), jnp.int32)
    return jax.lax.fori_loop(0, rows * cols, draw_pixel, start)
