"""A small image classifier: the fixed judge of generated images, and their feature space."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from diffusion_course import checks
from diffusion_course.checks import integer
from diffusion_course.models import doors
from diffusion_course.models.layers import Conv3x3, GroupNorm, Linear


class Classifier(nnx.Module):
    """Two strided convolutions and a dense layer: [B, H, W, C] -> class logits [B, classes].

    Args:
      image_channels: C of the images.
      image_size: (H, W), multiples of 4; one number for square images.
      num_classes: number of labels.
      width: channels of the first convolution, a multiple of 8; the second has twice as many.
      features: width of the last hidden layer, the space in which distances are measured.
      rngs: random number streams of the initialisation.

    Raises: ValueError for sizes that do not fit.

    >>> model = Classifier(1, 8, num_classes=10, width=8, features=16, rngs=nnx.Rngs(0))
    >>> classes, features = judge(model, jnp.zeros((3, 8, 8, 1)))
    >>> classes.shape, features.shape
    ((3,), (3, 16))
    """

    def __init__(
        self,
        image_channels: int = 1,
        image_size: int | tuple[int, int] = 8,
        num_classes: int = 10,
        *,
        width: int = 32,
        features: int = 64,
        rngs: nnx.Rngs,
    ):
        rows, cols = (doors.divisible("image_size", side, 4) for side in doors.sides(image_size))
        doors.divisible("width", width, 8)
        integer("image_channels", image_channels, 1)
        integer("num_classes", num_classes, 1)
        integer("features", features, 1)
        self.image_shape = (rows, cols, image_channels)
        self.conv1 = Conv3x3(image_channels, width, rngs=rngs)
        self.norm1 = GroupNorm(width, rngs=rngs)
        self.conv2 = Conv3x3(width, 2 * width, stride=2, rngs=rngs)
        self.norm2 = GroupNorm(2 * width, rngs=rngs)
        self.conv3 = Conv3x3(2 * width, 2 * width, stride=2, rngs=rngs)
        self.dense = Linear(2 * width * (rows // 4) * (cols // 4), features, rngs=rngs)
        self.last = Linear(features, num_classes, rngs=rngs)

    def activations(self, x: Array) -> tuple[Array, ...]:
        """What every hidden layer says of images x [B, H, W, C], the first one first.

        Returns: three grids [B, h, w, channels], and the features [B, features].
        Raises: ValueError for images of another shape or dtype.
        """
        x = doors.state(x, ("B", *self.image_shape))
        first = jax.nn.silu(self.norm1(self.conv1(x)))
        second = jax.nn.silu(self.norm2(self.conv2(first)))
        third = jax.nn.silu(self.conv3(second))
        last = jax.nn.silu(self.dense(third.reshape(x.shape[0], -1)))
        return first, second, third, last

    def features(self, x: Array) -> Array:
        """Activations of the last hidden layer for images x [B, H, W, C]: [B, features].

        Raises: as `activations`.
        """
        return self.activations(x)[-1]

    def __call__(self, x: Array) -> Array:
        """Class logits [B, classes] of images x [B, H, W, C]. Raises: as `features`."""
        return self.last(self.features(x))


class Resized(nnx.Module):
    """A classifier for images of any size, which it first brings to the size that it knows.

    Linear interpolation, with a filter where the image shrinks.

    Args:
      classifier: whose own images have as many channels.
    """

    def __init__(self, classifier: Classifier):
        self.classifier = classifier

    def activations(self, x: Array) -> tuple[Array, ...]:
        """`Classifier.activations` of the images x [B, H, W, C], resized."""
        x = doors.state(x, ("B", "H", "W", self.classifier.image_shape[-1]))
        size = (len(x), *self.classifier.image_shape)
        return self.classifier.activations(jax.image.resize(x, size, "linear"))

    def features(self, x: Array) -> Array:
        """`Classifier.features` of the images x [B, H, W, C], resized."""
        return self.activations(x)[-1]

    def last(self, features: Array) -> Array:
        """Class logits [B, classes] of features [B, features]."""
        return self.classifier.last(features)

    def __call__(self, x: Array) -> Array:
        """Class logits [B, classes] of images x [B, H, W, C]. Raises: as `features`."""
        return self.last(self.features(x))


def fitted(classifier: Classifier, image_shape: tuple[int, ...]) -> Classifier | Resized:
    """The classifier as it takes images of this shape: as it is, or `Resized`.

    Args:
      classifier: of images with as many channels.
      image_shape: (H, W, C).
    """
    same = tuple(image_shape) == classifier.image_shape
    return classifier if same else Resized(classifier)


@jax.jit
def judge(model: Classifier | Resized, x: Array) -> tuple[Array, Array]:
    """Predicted classes [B] and features [B, F] of images [B, H, W, C], in one compiled call.

    Raises: ValueError for images of another shape or dtype than the model's.
    """
    features = model.features(x)
    return jnp.argmax(model.last(features), axis=-1), features


class AttributeClassifier(Classifier):
    """A `Classifier` that answers several questions about one image, such as colour and size.

    The questions share everything but the last layer, which has a part for each of them.

    Args:
      image_channels: C of the images.
      image_size: (H, W), multiples of 4; one number for square images.
      answers: how many answers each question has.
      width: as in `Classifier`.
      features: as in `Classifier`.
      rngs: random number streams of the initialisation.

    Raises: ValueError for sizes that do not fit, no questions, or one with fewer than two answers.

    >>> model = AttributeClassifier(3, 8, answers=(6, 2), width=8, features=16, rngs=nnx.Rngs(0))
    >>> [logits.shape for logits in model(jnp.zeros((4, 8, 8, 3)))], model.judge(
    ...     jnp.zeros((4, 8, 8, 3))
    ... ).shape
    ([(4, 6), (4, 2)], (4, 2))
    """

    def __init__(
        self,
        image_channels: int = 3,
        image_size: int | tuple[int, int] = 32,
        *,
        answers: tuple[int, ...],
        width: int = 32,
        features: int = 64,
        rngs: nnx.Rngs,
    ):
        if not isinstance(answers, tuple | list) or not answers:
            raise ValueError(f"answers must hold a number for each question, got {answers!r}")
        self.answers = tuple(integer("answers", count, 2) for count in answers)
        super().__init__(
            image_channels,
            image_size,
            sum(self.answers),
            width=width,
            features=features,
            rngs=rngs,
        )

    def __call__(self, x: Array) -> tuple[Array, ...]:
        """Logits [B, answers] of each question about images x [B, H, W, C].

        Raises: ValueError for images of another shape or dtype.
        """
        ends = np.cumsum(self.answers)[:-1].tolist()
        return tuple(jnp.split(super().__call__(x), ends, axis=-1))

    def judge(self, x: Array) -> Array:
        """The likeliest answer to each question: [B, questions]. Raises: as a call."""
        return jnp.stack([jnp.argmax(logits, axis=-1) for logits in self(x)], axis=-1)


def attribute_loss(logits: Sequence[Array], answers: Array) -> Array:
    """The sum over questions of the cross-entropy, the mean of a batch: a scalar.

    Args:
      logits: [B, answers] for each of K questions, from `AttributeClassifier`.
      answers: the right ones, whole numbers [B, K].

    Raises: ValueError for answers of another shape or dtype, or out of range.

    >>> logits, answers = [jnp.zeros((3, 4)), jnp.zeros((3, 2))], jnp.ones((3, 2), int)
    >>> print(attribute_loss(logits, answers).round(3))  # log 4 + log 2
    2.079
    """
    counts = [each.shape[-1] for each in logits]
    checks.labels("answers", answers, (len(logits[0]), len(counts)), max(counts) - 1)
    total = 0.0
    for k, each in enumerate(logits):
        checks.labels("answers", answers[:, k], (len(each),), each.shape[-1] - 1)
        right = jnp.take_along_axis(jax.nn.log_softmax(each), answers[:, k : k + 1], axis=-1)
        total = total - jnp.mean(right)
    return total
