"""How sure is a measured number? Intervals by resampling, and of a share."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.special import ndtri

from diffusion_course import checks


class Interval(NamedTuple):
    """An estimate with its confidence interval [low, high]."""

    value: float
    low: float
    high: float


def bootstrap(
    metric: Callable[..., float], *sets, repeats: int = 200, level: float = 0.95, seed: int = 0
) -> Interval:
    """Confidence interval of any metric, from sets that are drawn anew from their own rows.

    The basic interval: how the metric of a resampled set lies about that of the set is taken for
    how the set's lies about the truth. So a bias is taken off, which the plain quantiles would
    count twice: of a Fréchet distance they can lie above the measured value altogether. The
    interval may leave the metric's range.

    Equal rows disturb measures of neighbours: do not resample the set whose radii they take.

    Args:
      metric: ``metric(*sets) -> `` a number.
      sets: arrays [N, …], each resampled for itself. Rows that belong together, such as predictions
        and labels, come as one array; a set that stays as it is comes inside `metric`.
      repeats: how often, at least 2. Quantiles far out need many.
      level: of confidence, in (0, 1).
      seed: of the rows that are drawn.

    Raises: ValueError for no sets, a set without rows, or a value outside its range.
    >>> right = np.array([1.0] * 90 + [0.0] * 10)
    >>> value, low, high = bootstrap(np.mean, right)
    >>> low < value == 0.9 < high
    True

    Source: Davison & Hinkley 1997, section 5.2.
    """
    repeats = checks.integer("repeats", repeats, minimum=2)
    checks.within("level", level, 0, 1, ends="()")
    rng = np.random.default_rng(checks.integer("seed", seed, minimum=0))
    arrays = [np.asarray(rows) for rows in sets]
    if not arrays or not all(rows.ndim and len(rows) for rows in arrays):
        shapes = ", ".join(str(list(rows.shape)) for rows in arrays) or "none"
        raise ValueError(f"sets must be arrays [N, …] of at least one row, got shapes {shapes}")

    def resampled():
        return metric(*(rows[rng.integers(len(rows), size=len(rows))] for rows in arrays))

    value = float(metric(*arrays))
    low, high = np.quantile(
        [resampled() for _ in range(repeats)], [(1 - level) / 2, (1 + level) / 2]
    )
    return Interval(value, float(2 * value - high), float(2 * value - low))


def wilson(successes: int, n: int, level: float = 0.95) -> Interval:
    """Confidence interval of a share, from independent yes-or-no outcomes.

    It stays in [0, 1], and has a width also where the share is 0 or 1: after 0 of n it ends near
    z²/(n + z²), with z = 1.96 for 95 %.

    Args:
      successes: how many, 0 … n.
      n: of how many, at least 1.
      level: of confidence, in (0, 1).

    Raises: ValueError for a value outside its range.
    >>> print(*(f"{end:.3f}" for end in wilson(0, 100)))
    0.000 0.000 0.037

    Source: Wilson 1927 (JASA 22); Brown, Cai & DasGupta 2001, eq. 4 (Statistical Science 16).
    """
    n = checks.integer("n", n, minimum=1)
    successes = checks.integer("successes", successes, minimum=0, maximum=n)
    checks.within("level", level, 0, 1, ends="()")
    z, share = float(ndtri((1 + level) / 2)), successes / n
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    # Rounding must not leave the range, nor the share its own interval.
    low, high = max(0.0, middle - half), min(1.0, middle + half)
    return Interval(share, min(low, share), max(high, share))
