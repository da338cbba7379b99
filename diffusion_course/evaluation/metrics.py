"""Measures of sample quality. Each depends on the number of samples, so report that too."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_course import checks
from diffusion_course.evaluation import distances


class Moments(NamedTuple):
    """What the Fréchet distance needs to know of a set of features.

    Attributes:
      mean: float64 [D].
      covariance: float64 [D, D], with the denominator N − 1.
      count: N, how many features they were computed from.
    """

    mean: np.ndarray
    covariance: np.ndarray
    count: int


def moments(x) -> Moments:
    """Mean and covariance of features [N, D], so that a large set need not be kept.

    Raises: ValueError for fewer than 2 rows or values that are not finite.
    """
    return _moments("x", x)


def _moments(name: str, x) -> Moments:
    x = distances.feature_set(name, x, 2)
    return Moments(x.mean(0), np.atleast_2d(np.cov(x.T)), len(x))


def frechet(x, y) -> float:
    """Fréchet distance between Gaussians fitted to two sets of features.

    ``‖m_x − m_y‖² + trace(C_x + C_y − 2(C_x C_y)^½)``. It falls with the sample count even for
    equal distributions: compare it with a floor of real against real at the same counts.

    Args:
      x: features [N, D], or their `moments`.
      y: features [M, D], or their `moments`.

    Raises: ValueError for fewer than 2 rows, other widths or values that are not finite.
    >>> x = np.array([[0.0], [2.0]])
    >>> round(frechet(x, x + 3), 6)  # of equal spread: the square of the shift
    9.0

    Source: Dowson & Landau 1982; Heusel et al. 2017, eq. 6 (arXiv:1706.08500).
    """
    (mean_x, cov_x, _), (mean_y, cov_y, _) = (
        z if isinstance(z, Moments) else _moments(name, z) for name, z in (("x", x), ("y", y))
    )
    distances.check_widths(len(mean_x), len(mean_y))
    # trace (C_x C_y)^½ is the trace of the root of the symmetric C_x^½ C_y C_x^½.
    values, vectors = np.linalg.eigh(cov_x)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ cov_y @ root), 0)).sum()
    mean = ((mean_x - mean_y) ** 2).sum()
    return float(mean + np.trace(cov_x) + np.trace(cov_y) - 2 * cross)


def frechet_error(x, y) -> float:
    """Standard error of `frechet(x, y)`, from the scatter of the samples x alone.

    The delta method: one more sample changes the distance by its influence,
    ``2(m_x − m_y)·u + uᵀ(I − T)u`` with u = x_i − m_x, less its mean. T is the matrix of the
    optimal map between the two Gaussians. It tells how far another draw of as many samples would
    lie from this one, and nothing about the bias of both.

    Args:
      x: features of samples [N, D].
      y: features [M, D], or their `moments`, which count as exact.

    Raises: as `frechet`.
    >>> x = np.arange(100.0)[:, None]  # against the same, shifted by 3: 2·3 times the mean's error
    >>> print(f"{frechet_error(x, x + 3):.3f}, {2 * 3 * x.std(ddof=1) / 10:.3f}")
    17.407, 17.407

    Source: of the gradient, Bhatia, Jain & Lim 2019 (Expositiones Mathematicae 37), section 3; of
    the method, van der Vaart 1998, chapter 20.
    """
    x = distances.feature_set("x", x, 2)
    mean_y, cov_y, _ = y if isinstance(y, Moments) else _moments("y", y)
    distances.check_widths(x.shape[1], len(mean_y))
    u = x - x.mean(0)
    values, vectors = np.linalg.eigh(np.atleast_2d(np.cov(x.T)))
    # Directions in which the samples do not vary have no influence.
    kept = values > 1e-10 * values.max(initial=0)
    values, vectors = values[kept], vectors[:, kept]
    root, inverse = ((vectors * values**power) @ vectors.T for power in (0.5, -0.5))
    inner, axes = np.linalg.eigh(root @ cov_y @ root)
    transport = inverse @ (axes * np.sqrt(np.maximum(inner, 0))) @ axes.T @ inverse
    influence = 2 * u @ (x.mean(0) - mean_y) + (u**2).sum(1) - ((u @ transport) * u).sum(1)
    return float(influence.std(ddof=1) / np.sqrt(len(x)))


def mmd(x, y, bandwidth: float | None = None) -> float:
    """Unbiased squared maximum mean discrepancy with the kernel ``exp(−d²/(2·bandwidth²))``.

    Near 0, and as often below as above, if the distributions are equal.

    Args:
      x: [N, …].
      y: [M, …] of the same width.
      bandwidth: of the kernel; by default the median distance within y.

    Raises: ValueError for fewer than 2 rows, other widths, or a bandwidth that is not positive.
    Source: Gretton et al. 2012, eq. 3 (JMLR 13).
    """
    x, y = distances.pair(x, y)
    yy = distances.squared(y, y)
    if bandwidth is None:
        bandwidth = float(np.sqrt(np.median(yy[~np.eye(len(y), dtype=bool)])))
        if bandwidth == 0:
            raise ValueError("bandwidth must be given where most rows of y are equal, got None")
    checks.above("bandwidth", bandwidth, 0)

    def kernel(squared):
        return np.exp(-squared / (2 * bandwidth**2))

    def mean_off_diagonal(k):
        return (k.sum() - np.trace(k)) / (len(k) * (len(k) - 1))

    within = mean_off_diagonal(kernel(distances.squared(x, x))) + mean_off_diagonal(kernel(yy))
    return float(within - 2 * kernel(distances.squared(x, y)).mean())


def nearest(x, reference, exclude_self: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Each row's nearest row of a reference set, by Euclidean distance.

    Args:
      x: [N, …].
      reference: [M, …] of the same width.
      exclude_self: row i of x may not find row i of the reference (for a set against itself).

    Returns: indices [N] and distances [N].
    Raises: ValueError for empty sets, other widths, values that are not finite, or with
      exclude_self fewer than 2 rows in the reference or fewer than in x.
    """
    x, reference = distances.pair(x, reference, least=1)
    if exclude_self and len(reference) < max(2, len(x)):
        raise ValueError(
            "reference must be x itself, of at least 2 rows, for exclude_self, "
            f"got {len(reference)} rows for {len(x)}"
        )
    index, distance = np.empty(len(x), np.int64), np.empty(len(x))
    for start in range(0, len(x), distances.ROWS):  # all at once would take gigabytes against MNIST
        squared = distances.squared(x[start : start + distances.ROWS], reference)
        rows = np.arange(len(squared))
        if exclude_self:
            squared[rows, start + rows] = np.inf
        index[start + rows] = squared.argmin(axis=1)
        distance[start + rows] = np.sqrt(squared.min(axis=1))
    return index, distance


def coverage(x, real, k: int = 5) -> float:
    """Share of real examples that have a sample nearer than their own k-th real neighbour.

    It falls where the samples leave out some of the data, however good each of them is. In the
    features of a judge, as the Fréchet distance. Equal distributions and numbers N and M = N have
    ``1 − (N − 1)…(N − k)/((2N − 1)…(2N − k))`` on average: about 31/32 for k = 5.

    Args:
      x: features of samples [N, D].
      real: of real examples [M, D], with M > k.
      k: which neighbour's distance is the radius, at least 1.

    Raises: ValueError for empty sets, other widths, values that are not finite, or too few real
      examples.
    >>> coverage(np.array([[0.1]]), np.array([[0.0], [1.0], [9.0], [9.5]]), k=1)
    0.5

    Source: Naeem et al. 2020, eq. 9 and lemma 2 (arXiv:2002.09797).
    """
    x, real = distances.pair(x, real, least=1)
    radii = distances.squared_radii("real", real, k)
    nearest_sample = [distances.squared(rows, x).min(axis=1) for rows in distances.blocks(real)]
    return float((np.concatenate(nearest_sample) <= radii).mean())


def class_accuracy(predicted, labels) -> float:
    """Share of predictions [N] that equal the labels [N].

    Raises: ValueError for other shapes, no entries, or entries that are not whole numbers.
    """
    predicted, labels = np.asarray(predicted), np.asarray(labels)
    if predicted.shape != labels.shape or predicted.ndim != 1 or predicted.size == 0:
        raise ValueError(
            f"predicted and labels must both have shape [N], got {list(predicted.shape)}, "
            f"{list(labels.shape)}"
        )
    for name, values in {"predicted": predicted, "labels": labels}.items():
        if not np.issubdtype(values.dtype, np.integer):
            raise ValueError(f"{name} must be whole numbers, got dtype {values.dtype}")
    return float((predicted == labels).mean())


def per_class_accuracy(predicted, labels, num_classes: int) -> np.ndarray:
    """Share of each class's samples that are recognised as it: [num_classes], NaN for none.

    A hole shows here that a mean over all classes hides.

    Args:
      predicted: whole numbers [N].
      labels: whole numbers [N] in 0 … num_classes − 1.
      num_classes: number of classes.

    Raises: ValueError for other shapes, dtypes or labels.
    """
    num_classes = checks.integer("num_classes", num_classes, minimum=1)
    class_accuracy(predicted, labels)  # the same rules for both arguments
    predicted, labels = np.asarray(predicted), np.asarray(labels)
    checks.labels("labels", labels, labels.shape, num_classes - 1)
    count = np.bincount(labels, minlength=num_classes)
    right = np.bincount(labels[predicted == labels], minlength=num_classes)
    return np.where(count > 0, right / np.maximum(count, 1), np.nan)


def loss_by_time(error: Callable, model, x0, cond, times, key, repeats: int = 8) -> np.ndarray:
    """Mean error at each of several times: what a practitioner looks at first.

    Args:
      error: ``error(model, x0, eps, t, cond) -> [B]``; pass the same function for several models
        or data sets, and they share one compiled program.
      model: the network.
      x0: data [B, …].
      cond: labels [B] or None.
      times: [N], in [0, 1].
      key: a random key; the same noise is used at every time, so that times compare fairly.
      repeats: draws of noise per time.

    Returns: [N].
    Raises: ValueError if x0 is not a floating-point array [B, …], times are not [N] in [0, 1], or
      repeats < 1.
    """
    x0, repeats = checks.state("x0", x0), checks.integer("repeats", repeats, minimum=1)
    if x0.ndim == 0:
        raise ValueError("x0 must have shape [B, …], got shape []")
    if np.ndim(times) != 1:
        raise ValueError(f"times must have shape [N], got shape {list(np.shape(times))}")
    checks.time("times", times)
    times = jnp.asarray(times, jnp.float32)
    return np.asarray(_loss_by_time(error, repeats, model, x0, cond, times, key))


@partial(jax.jit, static_argnums=(0, 1))
def _loss_by_time(error, repeats, model, x0, cond, times, key):
    def at(t):
        def once(k):
            eps = jax.random.normal(k, x0.shape, x0.dtype)
            return error(model, x0, eps, jnp.broadcast_to(t, x0.shape[:1]), cond).mean()

        return jax.lax.map(once, jax.random.split(key, repeats)).mean()

    return jax.lax.map(at, times)
