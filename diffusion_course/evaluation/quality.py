"""How good are a model's samples? Accuracy, coverage, Fréchet distance and copies, in one run."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx

from diffusion_course import checks, samplers, sampling
from diffusion_course.data import Dataset
from diffusion_course.evaluation import metrics
from diffusion_course.latent import LatentSpace, decode_all
from diffusion_course.models.classifier import judge
from diffusion_course.process import Process

_CHUNK = 1000  # samples that are drawn in one call, for memory


@dataclass(frozen=True)
class Quality:
    """Measured quality of conditional samples at one guidance scale.

    Attributes:
      w: guidance scale.
      samples: how many, equally many of each class.
      steps: of DDIM.
      accuracy: share that the judge recognises as the class asked for.
      worst_class: the same share for the class where it is lowest.
      frechet: distance of the first `frechet_samples` to the training set, in the judge's features.
      frechet_floor: the same for equally many unseen real images.
      frechet_samples: how many.
      nearest: median distance to the nearest training image.
      nearest_real: the same for unseen real images: a copying model lies far below it.
      exact_copies: share closer than a tenth of nearest_real.
    """

    w: float
    samples: int
    steps: int
    accuracy: float
    worst_class: float
    frechet: float
    frechet_floor: float
    frechet_samples: int
    nearest: float
    nearest_real: float
    exact_copies: float


class Reference(NamedTuple):
    """What real images look like to a judge; `reference` makes it once for many comparisons.

    Attributes:
      moments: of the training set's features.
      floor: Fréchet distance of `unseen` unseen images to them.
      unseen: how many.
      nearest: median distance of (up to 1,000) unseen images to the nearest training image.
    """

    moments: metrics.Moments
    floor: float
    unseen: int
    nearest: float


def reference(classifier: nnx.Module, train: Dataset, test: Dataset, samples: int) -> Reference:
    """Measures real images, for as many samples as will be compared with them (or fewer).

    Args:
      classifier: the judge.
      train: what the model was trained on.
      test: unseen images of the same kind.
      samples: how many will be compared, at least 2.

    Raises: ValueError for fewer samples, or sets of images of another shape.
    """
    checks.integer("samples", samples, minimum=2)
    if train.x.shape[1:] != test.x.shape[1:]:
        raise ValueError(
            f"train and test must hold examples of one shape, got {list(train.x.shape[1:])} and "
            f"{list(test.x.shape[1:])}"
        )
    # The Fréchet distance depends on the count, so samples and unseen images are equally many.
    n = min(samples, len(test))
    near = metrics.nearest(_spread(test.x, min(_CHUNK, len(test))), train.x)[1]
    moments = metrics.moments(judge_all(classifier, train.x)[1])
    return Reference(
        moments=moments,
        floor=metrics.frechet(judge_all(classifier, _spread(test.x, n))[1], moments),
        unseen=n,
        nearest=float(np.median(near)),
    )


def _spread(x: np.ndarray, n: int) -> np.ndarray:
    """n rows from all over x: the first half of MNIST's test set is by other people's hands."""
    return x[np.linspace(0, len(x) - 1, n).round().astype(int)]


def measure(
    model: nnx.Module, p: Process, kind: str, classifier: nnx.Module, train: Dataset, test: Dataset,
    *, scales: Sequence[float], samples: int = 500, steps: int = 50, seed: int = 1,
    space: LatentSpace | None = None,
) -> dict[float, Quality]:  # fmt: skip
    """Draws samples of every class with DDIM at each guidance scale, and measures them.

    Args:
      model: class-conditional, with a null class.
      p: the process that it was trained with.
      kind: what it predicts.
      classifier: the judge, for `judge`.
      train: what the model was trained on.
      test: unseen images of the same kind.
      scales: values of w.
      samples: per scale.
      steps: of DDIM.
      seed: of the samples; the same noise is used at every scale.
      space: of a model of latents, whose samples are decoded before they are measured.

    Returns: w -> `Quality`.
    Raises: ValueError for a value outside its range.
    """
    scales = [float(w) for w in scales]
    checks.within("scales", scales, -1e6, 1e6)
    checks.integer("samples", samples, minimum=2)
    checks.integer("steps", steps, minimum=1)
    checks.integer("seed", seed, minimum=0)
    shape = train.x.shape[1:] if space is None else space.shape(train.x.shape[1:])
    generate = sampling.generator(p, kind, samplers.ddim(p), sampling.uniform(steps), shape)
    labels = np.arange(samples) % train.num_classes
    real = reference(classifier, train, test, samples)
    found = {}
    for w in scales:
        x = np.concatenate(
            [
                generate(model, jax.random.key(seed + i), len(part), part, w)
                for i, part in enumerate(np.split(labels, range(_CHUNK, samples, _CHUNK)))
            ]
        )
        x = x if space is None else decode_all(space, x)
        found[w] = compare(x, labels, classifier, real, train, w=w, steps=steps)
    return found


def compare(
    x: np.ndarray, labels: np.ndarray, classifier: nnx.Module, real: Reference, train: Dataset,
    *, w: float, steps: int,
) -> Quality:  # fmt: skip
    """Measures samples that were asked to be of these labels.

    Args:
      x: samples [N, …] of the shape of the training images.
      labels: whole numbers [N], each a class of `train`.
      classifier: the judge.
      real: from `reference`, for the same judge.
      train: what the model was trained on.
      w: guidance scale, which is noted in the result.
      steps: of the sampler, which are noted in the result.

    Raises: ValueError for samples or labels of another kind, shape or range.
    """
    x, labels = np.asarray(x), np.asarray(labels)
    checks.floating("x", x)
    if x.shape[1:] != train.x.shape[1:] or len(x) < 2:
        raise ValueError(
            f"x must hold at least 2 samples of shape {list(train.x.shape[1:])}, "
            f"got shape {list(x.shape)}"
        )
    checks.labels("labels", labels, x.shape[:1], train.num_classes - 1)
    predicted, features = judge_all(classifier, x)
    near = metrics.nearest(x, train.x)[1]
    by_class = metrics.per_class_accuracy(predicted, labels, train.num_classes)
    return Quality(
        w=w,
        samples=len(x),
        steps=steps,
        accuracy=metrics.class_accuracy(predicted, labels),
        worst_class=float(np.nanmin(by_class)),
        frechet=metrics.frechet(features[: real.unseen], real.moments),
        frechet_floor=real.floor,
        frechet_samples=real.unseen,
        nearest=float(np.median(near)),
        nearest_real=real.nearest,
        exact_copies=float((near < 0.1 * real.nearest).mean()),
    )


def judge_all(classifier: nnx.Module, x: np.ndarray, chunk: int = 5000):
    """Classes [N] and features [N, F] of any number of images, a chunk at a time for memory.

    Args:
      classifier: the judge.
      x: images [N, H, W, C], at least one, of floating-point numbers.
      chunk: how many are judged in one call.

    Raises: ValueError for no images, images of whole numbers, or a chunk below 1.
    """
    checks.integer("chunk", chunk, minimum=1)
    checks.floating("x", x)
    if np.ndim(x) != 4 or not len(x):
        raise ValueError(f"x must hold images [N, H, W, C], got shape {list(np.shape(x))}")
    parts = [judge(classifier, x[i : i + chunk]) for i in range(0, len(x), chunk)]
    return tuple(np.concatenate([np.asarray(part[k]) for part in parts]) for k in (0, 1))
