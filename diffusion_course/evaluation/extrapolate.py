"""The Fréchet distance of infinitely many samples, from the way it falls with their number."""

from typing import NamedTuple

import numpy as np

from diffusion_course import checks
from diffusion_course.evaluation import distances, metrics


class Extrapolation(NamedTuple):
    """A line through Fréchet distances at several numbers of samples n: ``value + slope/n``.

    Attributes:
      value: the line at 1/n = 0.
      slope: of the line in 1/n.
      counts: the n that were measured [parts], falling.
      distances: the mean distance at each [parts].
    """

    value: float
    slope: float
    counts: np.ndarray
    distances: np.ndarray


def frechet_at_infinity(x, y, parts: int = 5, seed: int = 0) -> Extrapolation:
    """Extrapolates the Fréchet distance to infinitely many samples x.

    The distance of n samples is too large by about a constant divided by n, and the constant
    depends on the model: two models can change places as n grows. Measured at n = N, N/2, …,
    N/parts, equally spaced in 1/n, each as the mean over all the disjoint parts of that size. Only
    the bias of x's number goes; let y be as large as it can be.

    Args:
      x: features [N, D], with N/parts > D: with fewer rows the covariance is singular, and the
        distance no line in 1/n.
      y: features [M, D], or their `metrics.moments`.
      parts: into how many the set is divided at most, at least 2.
      seed: of the order in which rows are dealt to parts.

    Raises: ValueError for too few rows, other widths or values that are not finite.
    >>> x = np.random.default_rng(0).normal(size=(2000, 3))
    >>> y = metrics.Moments(np.zeros(3), np.eye(3), 2000)  # the true distance is 0
    >>> metrics.frechet(x, y) > 0.001 > abs(frechet_at_infinity(x, y).value)
    True

    Source: Chong & Forsyth 2020, section 3 (arXiv:1911.07023).
    """
    parts = checks.integer("parts", parts, minimum=2)
    x = distances.feature_set("x", x, least=2)
    if len(x) // parts <= x.shape[1]:
        raise ValueError(
            f"x must have more than parts·D = {parts}·{x.shape[1]} rows, "
            f"{parts * (x.shape[1] + 1)} at least, got {len(x)}"
        )
    if not isinstance(y, metrics.Moments):
        y = metrics.moments(distances.pair(x, y)[1])
    x = np.random.default_rng(checks.integer("seed", seed, minimum=0)).permutation(x)
    counts = len(x) // np.arange(1, parts + 1)
    found = np.array([_mean_distance(x, y, n) for n in counts])
    slope, value = np.polyfit(1 / counts, found, 1)
    return Extrapolation(float(value), float(slope), counts, found)


def _mean_distance(x: np.ndarray, y: metrics.Moments, n: int) -> float:
    starts = range(0, len(x) - n + 1, n)
    return np.mean([metrics.frechet(x[start : start + n], y) for start in starts])
