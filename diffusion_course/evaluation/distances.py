"""Sets of features as arrays [N, D], and the distances between their rows, a block at a time."""

from collections.abc import Iterator

import numpy as np

from diffusion_course import checks

ROWS = 512  # rows of a distance matrix that are in memory at a time


def feature_set(name: str, x, least: int) -> np.ndarray:
    """`x` as float64 [N, D], of N >= `least` rows; everything after the first axis is one row.

    Raises: ValueError for fewer rows, no features, or values that are not finite real numbers.
    """
    try:
        x = np.asarray(x, np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be an array of real numbers, got {x!r}") from None
    if x.ndim < 2 or x.shape[0] < least or not x.size:
        raise ValueError(
            f"{name} must have shape [N, …] with N >= {least}, got shape {list(x.shape)}"
        )
    if not np.isfinite(x).all():
        raise ValueError(f"{name} must be finite, got NaN or infinite values")
    return x.reshape(x.shape[0], -1)


def check_widths(x: int, y: int, names: tuple[str, str] = ("x", "y")) -> None:
    """ValueError unless two sets have equally many features."""
    if x != y:
        raise ValueError(f"{names[0]} and {names[1]} must have equally many features, got {x}, {y}")


def pair(x, y, least: int = 2, names: tuple[str, str] = ("x", "y")) -> tuple[np.ndarray, ...]:
    """Two sets as `feature_set` gives them; ValueError unless they have equally many features."""
    x, y = feature_set(names[0], x, least), feature_set(names[1], y, least)
    check_widths(x.shape[1], y.shape[1], names)
    return x, y


def squared(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Squared Euclidean distances [N, M] between the rows of two sets."""
    distances = (x**2).sum(1)[:, None] + (y**2).sum(1)[None] - 2 * x @ y.T
    return np.maximum(distances, 0)


def blocks(x: np.ndarray) -> Iterator[np.ndarray]:
    """The rows of a set, ROWS at a time: all at once would take gigabytes against MNIST."""
    return (x[start : start + ROWS] for start in range(0, len(x), ROWS))


def squared_radii(name: str, x: np.ndarray, k: int) -> np.ndarray:
    """Each row's squared distance to its k-th nearest other row: [N].

    Raises: ValueError unless k is a whole number in 1 … N − 1.
    """
    k = checks.integer("k", k, minimum=1)
    if len(x) <= k:
        raise ValueError(f"{name} must have more than k = {k} rows, got {len(x)}")
    radii = np.empty(len(x))
    for start in range(0, len(x), ROWS):
        within = squared(x[start : start + ROWS], x)
        rows = np.arange(len(within))
        within[rows, start + rows] = np.inf
        radii[start + rows] = np.partition(within, k - 1, axis=1)[:, k - 1]
    return radii
