"""What nearest neighbours tell: precision, recall, density, and copies of training images.

A set's support is estimated as the union of balls, one around each of its rows, that reach to the
row's k-th neighbour in the set. `metrics.coverage` belongs to the same family.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from scipy.stats import betabinom

from diffusion_course import checks
from diffusion_course.evaluation import distances


def precision(x, real, k: int = 3) -> float:
    """Share of samples that lie in the support of the real examples: how many look real.

    One outlier among the real examples has a large ball, which then accepts bad samples: `density`
    counts the balls. Measured in the features of a judge; it depends on both numbers and on k.

    Args:
      x: features of samples [N, D].
      real: of real examples [M, D], with M > k.
      k: which neighbour's distance is the radius, at least 1.

    Raises: ValueError for empty sets, other widths, values that are not finite, or too few real
      examples.
    >>> precision(np.array([[0.5], [3.0]]), np.array([[0.0], [1.0]]), k=1)
    0.5

    Source: Kynkäänniemi et al. 2019, eq. 1 and 2 (arXiv:1904.06991).
    """
    x, real = distances.pair(x, real, least=1, names=("x", "real"))
    return _share_inside(x, real, "real", k)


def recall(x, real, k: int = 3) -> float:
    """Share of real examples that lie in the support of the samples: how many could be drawn.

    `precision` with the roles exchanged: the balls are those of the samples.

    Args:
      x: features of samples [N, D], with N > k.
      real: of real examples [M, D].
      k: which neighbour's distance is the radius, at least 1.

    Raises: ValueError for empty sets, other widths, values that are not finite, or too few samples.
    >>> recall(np.array([[0.5], [3.0]]), np.array([[0.0], [1.0]]), k=1)
    1.0

    Source: Kynkäänniemi et al. 2019, eq. 1 and 2 (arXiv:1904.06991).
    """
    x, real = distances.pair(x, real, least=1, names=("x", "real"))
    return _share_inside(real, x, "x", k)


def density(x, real, k: int = 5) -> float:
    """Mean number of real examples' balls that a sample lies in, divided by k.

    On average 1 for equal distributions, whatever they are and however many samples. Above 1 where
    samples gather in the densest parts of the data.

    Args:
      x: features of samples [N, D].
      real: of real examples [M, D], with M > k.
      k: which neighbour's distance is the radius, at least 1.

    Raises: as `precision`.
    >>> density(np.array([[0.5], [3.0]]), np.array([[0.0], [1.0]]), k=1)  # two balls, and none
    1.0

    Source: Naeem et al. 2020 (arXiv:2002.09797).
    """
    x, real = distances.pair(x, real, least=1, names=("x", "real"))
    return float(sum(inside.sum() for inside in _inside(x, real, "real", k)) / (k * len(x)))


def _share_inside(points: np.ndarray, of: np.ndarray, name: str, k: int) -> float:
    inside = [block.any(axis=1) for block in _inside(points, of, name, k)]
    return float(np.concatenate(inside).mean())


def _inside(points: np.ndarray, of: np.ndarray, name: str, k: int) -> Iterator[np.ndarray]:
    """Which points lie in which ball, [rows, M] for a block of points at a time."""
    radii = distances.squared_radii(name, of, k)
    return (distances.squared(rows, of) <= radii for rows in distances.blocks(points))


def nearness(x, train, k: int = 50) -> tuple[np.ndarray, np.ndarray]:
    """How much nearer the nearest training image is than the k nearest are on average.

    A plain image is near to many training images, a detailed one to none. The ratio compares an
    image with its own neighbourhood: near 1 is usual, near 0 is a copy. Of an image that the
    training set holds k times, no copy can be told.

    Args:
      x: images or features [N, …].
      train: what the model was trained on, [M, …], with M >= k.
      k: how many neighbours, at least 2.

    Returns: the ratios [N] in [0, 1], and the index of the nearest training image [N].
    Raises: ValueError for empty sets, other widths, values that are not finite, or fewer than k
      training images.
    >>> print(*nearness(np.array([[1.0], [4.0]]), np.array([[0.0], [6.0], [1.0]]), k=2))
    [0.  0.8] [2 1]

    Source: Carlini et al. 2023 (arXiv:2301.13188).
    """
    x, train = distances.pair(x, train, least=1, names=("x", "train"))
    k = checks.integer("k", k, minimum=2)
    if len(train) < k:
        raise ValueError(f"train must have at least k = {k} rows, got {len(train)}")
    ratio, index = [], []
    for rows in distances.blocks(x):
        squared = distances.squared(rows, train)
        near = np.sqrt(np.partition(squared, k - 1, axis=1)[:, :k])
        mean = near.mean(axis=1)
        ratio.append(np.divide(near.min(axis=1), mean, out=np.zeros_like(mean), where=mean > 0))
        index.append(squared.argmin(axis=1))
    return np.concatenate(ratio), np.concatenate(index)


class Copies(NamedTuple):
    """What `copies` found.

    Attributes:
      flagged: bool [N], which samples are nearer to a training image than the rate allows.
      nearest: index of each sample's nearest training image [N].
      ratio: `nearness` of each sample [N].
      threshold: below it a sample is flagged.
      rate: probability that one unseen image is flagged. Times N, the false alarms to expect.
      chance: probability of as many flags or more, if samples were like unseen images.
    """

    flagged: np.ndarray
    nearest: np.ndarray
    ratio: np.ndarray
    threshold: float
    rate: float
    chance: float


def copies(x, train, unseen, rate: float = 0.005, k: int = 50) -> Copies:
    """Samples that are nearer to a training image than unseen images are, at a known rate.

    The threshold is the m-th smallest `nearness` of n unseen images. One more image of their kind
    falls below it with probability m/(n + 1), whatever the distribution; m is the largest that
    keeps this at most `rate`. So a model that copies nothing has about ``rate·N`` flags.

    Args:
      x: samples [N, …], as images or as features.
      train: what the model was trained on, [M, …], with M >= k.
      unseen: images [n, …] of the kind of `train` that are not in it.
      rate: of false alarms, in (0, 1), at least 1/(n + 1).
      k: how many neighbours make the neighbourhood of `nearness`.

    Raises: ValueError for sets that `nearness` refuses, or a rate that n images cannot give.
    Source: Carlini et al. 2023 (arXiv:2301.13188); the threshold is conformal: Bates et
      al. 2023 (arXiv:2104.08279).
    """
    checks.within("rate", rate, 0, 1, ends="()")
    distances.pair(unseen, train, least=1, names=("unseen", "train"))  # an error names `unseen`
    ratio, nearest = nearness(x, train, k)
    usual = np.sort(nearness(unseen, train, k)[0])
    n = len(usual)
    m = math.floor(rate * (n + 1) + 1e-9)  # 0.07·100 is 7.000000000000001, 0.29·100 below 29
    if m == 0:
        raise ValueError(f"rate must be at least 1/(n + 1) for n = {n} unseen images, got {rate}")
    flagged = ratio < usual[m - 1]
    # Beta-binomial, not binomial: all samples share one threshold, which is itself random.
    chance = betabinom.sf(flagged.sum() - 1, len(ratio), m, n + 1 - m)
    return Copies(flagged, nearest, ratio, float(usual[m - 1]), m / (n + 1), float(chance))
