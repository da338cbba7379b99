"""Coverage by clusters: which parts of the data have too many samples, and which too few."""

from typing import NamedTuple

import numpy as np
from scipy.cluster import vq
from scipy.stats import chi2, norm

from diffusion_course import checks
from diffusion_course.evaluation import distances


def centres(train, k: int, seed: int = 0) -> np.ndarray:
    """Centres [k, D] of k-means on a set [N, D], started by k-means++.

    Raises: ValueError for fewer than k different rows, or values that are not finite.
    Source: Arthur & Vassilvitskii 2007 for the start.
    """
    k, seed = checks.integer("k", k, minimum=2), checks.integer("seed", seed, minimum=0)
    train = distances.feature_set("train", train, least=k)
    different = len(np.unique(train, axis=0))
    if different < k:
        raise ValueError(f"train must have at least k = {k} different rows, got {different}")
    return vq.kmeans2(train, k, iter=30, minit="++", missing="warn", seed=seed)[0]


def counts(x, centres) -> np.ndarray:
    """How many rows of x [N, D] are nearest to each centre [K, D]: whole numbers [K]."""
    x, centres = distances.pair(x, centres, least=1, names=("x", "centres"))
    nearest = [distances.squared(rows, centres).argmin(axis=1) for rows in distances.blocks(x)]
    return np.bincount(np.concatenate(nearest), minlength=len(centres))


class Bins(NamedTuple):
    """Samples and real examples in the same clusters.

    Attributes:
      share: of the samples in each cluster [K].
      real: of the real examples [K].
      z: difference of the two in standard errors [K]; negative where samples are too few.
      different: how many clusters differ significantly, NDB.
      chi_square: of all K clusters together.
      p_value: probability of such a chi-square or a larger one, for equal distributions.
    """

    share: np.ndarray
    real: np.ndarray
    z: np.ndarray
    different: int
    chi_square: float
    p_value: float


def compare(x, real, centres, alpha: float = 0.05) -> Bins:
    """Compares how samples and real examples are divided among clusters.

    Each cluster has a test of two proportions: for equal distributions about ``alpha·K`` clusters
    differ by chance. Give it real examples that `centres` were not made from: clusters follow the
    chance gaps of their own examples.

    Args:
      x: features of samples [N, D].
      real: of real examples [M, D].
      centres: [K, D].
      alpha: significance level of one cluster's test, in (0, 1).

    Raises: ValueError for empty sets, other widths, or a level outside (0, 1).
    >>> found = compare([[0.0]] * 90 + [[1.0]] * 10, [[0.0]] * 50 + [[1.0]] * 50, [[0.0], [1.0]])
    >>> print(found.share, found.z.round(2), found.different)
    [0.9 0.1] [ 6.17 -6.17] 2

    Source: Richardson & Weiss 2018, section 2 (arXiv:1805.12462); Pearson 1900.
    """
    checks.within("alpha", alpha, 0, 1, ends="()")
    real = distances.pair(real, centres, least=1, names=("real", "centres"))[0]
    in_x, in_real = counts(x, centres), counts(real, centres)
    n, m = in_x.sum(), in_real.sum()
    share, real_share, pooled = in_x / n, in_real / m, (in_x + in_real) / (n + m)
    # An empty cluster, or one that holds everything, has no difference and no error.
    error = np.sqrt(pooled * (1 - pooled) * (1 / n + 1 / m))
    difference = share - real_share
    z = np.divide(difference, error, out=np.zeros_like(error), where=error > 0)
    used = pooled > 0
    chi_square = float((difference[used] ** 2 / pooled[used]).sum() / (1 / n + 1 / m))
    p_value = float(chi2.sf(chi_square, used.sum() - 1)) if used.sum() > 1 else 1.0
    different = int((np.abs(z) > norm.isf(alpha / 2)).sum())
    return Bins(share, real_share, z, different, chi_square, p_value)
