"""What a game's images are worth: accuracy, Fréchet distance, coverage, copies; with intervals."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from flax import nnx

from diffusion_course import weights
from diffusion_course.data import digits
from diffusion_course.evaluation import distances, intervals, metrics, quality
from diffusion_course.evaluation.intervals import Interval
from diffusion_course.weights import features

_NEAREST = 5  # coverage's k
_COPIES = 0.01  # share of unseen real images that would be called copies
_DEVIATIONS = 1.96  # of a normal error, for 95 %


@dataclass(frozen=True)
class Score:
    """Of one game's images, each with its 95 % interval.

    Attributes:
      accuracy: share that the judge recognises as the class asked for; Wilson's interval.
      frechet: distance to the training set in the judge's features. It is too high by a bias that
        depends on the number of images, which all submissions share; the interval is about this
        value, by `metrics.frechet_error`.
      coverage: share of unseen real images that have a generated one near them, nearer than their
        own fifth neighbour among themselves; Wilson's interval over the real images, with the
        generated ones as they are.
      copies: share nearer to a training image than 99 % of unseen real images are; Wilson's.
    """

    accuracy: Interval
    frechet: Interval
    coverage: Interval
    copies: Interval


@dataclass(frozen=True)
class Judge:
    """What real images look like; `judge` makes it.

    Attributes:
      classifier: the judge.
      moments: of the training set's features.
      train: training images [M, H, W, C].
      unseen: features of unseen real images [K, F].
      radii: squared distance of each unseen image to its fifth neighbour, in features, [K].
      near: an image nearer to a training image than this, in pixels, is a copy.
    """

    classifier: nnx.Module
    moments: metrics.Moments
    train: np.ndarray
    unseen: np.ndarray
    radii: np.ndarray
    near: float

    def score(self, x: np.ndarray, labels: np.ndarray) -> Score:
        """Measures images.

        Args:
          x: images [N, H, W, C] in [−1, 1].
          labels: the classes asked for, whole numbers [N].
        """
        predicted, found = quality.judge_all(self.classifier, x)
        right = int((predicted == labels).sum())
        covered = distances.squared(self.unseen, found.astype(np.float64)).min(1) <= self.radii
        distance = metrics.frechet(found, self.moments)
        error = _DEVIATIONS * metrics.frechet_error(found, self.moments)
        copied = metrics.nearest(x, self.train)[1] < self.near
        return Score(
            accuracy=intervals.wilson(right, len(x)),
            frechet=Interval(distance, max(0.0, distance - error), distance + error),
            coverage=intervals.wilson(int(covered.sum()), len(covered)),
            copies=intervals.wilson(int(copied.sum()), len(x)),
        )


@cache
def judge() -> Judge:
    """The judge of the digits, with what it says of real ones."""
    released = weights.load("digits_classifier")
    train, test = digits.load("train"), digits.load("test")
    unseen = quality.judge_all(released.model, test.x)[1].astype(np.float64)
    return Judge(
        classifier=released.model,
        moments=features.load("digits", released.card),
        train=train.x,
        unseen=unseen,
        radii=distances.squared_radii("unseen", unseen, _NEAREST),
        near=float(np.quantile(metrics.nearest(test.x, train.x)[1], _COPIES)),
    )
