"""The kernel Inception distance: a distance of features whose estimate has no bias.

Both means and all moments up to the third enter it, where the Fréchet distance stops at the second.
"""

from typing import NamedTuple

import numpy as np

from diffusion_course import checks
from diffusion_course.evaluation import distances


class Estimate(NamedTuple):
    """A number and its standard error."""

    value: float
    error: float


def polynomial_kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """``(x·y/D + 1)³`` of every row of x [N, D] with every row of y [M, D]: [N, M]."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def kid(x, y) -> float:
    """Kernel Inception distance: unbiased squared maximum mean discrepancy, polynomial kernel.

    ``E k(x, x') + E k(y, y') − 2 E k(x, y)`` over pairs of different rows. Its mean does not depend
    on the number of samples. Near 0, and as often below as above, if the distributions are equal.

    Args:
      x: features [N, D].
      y: features [M, D].

    Raises: ValueError for fewer than 2 rows, other widths or values that are not finite.
    >>> y = np.array([[1.0], [1.0]])
    >>> kid(0 * y, y)  # all rows equal: k(0, 0) + k(1, 1) − 2 k(0, 1) = 1 + 8 − 2
    7.0

    Source: Bińkowski et al. 2018, section 4 (arXiv:1801.01401).
    """
    x, y = distances.pair(x, y)
    return float(_off_diagonal_mean(x) + _off_diagonal_mean(y) - 2 * _cross_mean(x, y))


def _off_diagonal_mean(x: np.ndarray) -> float:
    on_diagonal = (((x**2).sum(1) / x.shape[1] + 1) ** 3).sum()
    return (_kernel_sum(x, x) - on_diagonal) / (len(x) * (len(x) - 1))


def _cross_mean(x: np.ndarray, y: np.ndarray) -> float:
    return _kernel_sum(x, y) / (len(x) * len(y))


def _kernel_sum(x: np.ndarray, y: np.ndarray) -> float:
    return sum(polynomial_kernel(rows, y).sum() for rows in distances.blocks(x))


def block_kid(x, y, blocks: int = 10, seed: int = 0) -> Estimate:
    """Mean of `kid` over disjoint blocks of both sets, with its standard error.

    The blocks are independent, so the error is their standard deviation divided by √blocks. The
    subsets that are commonly reported overlap, and their spread is no standard error. The mean over
    blocks varies more than `kid` of everything; in exchange its error is known.

    Args:
      x: features [N, D].
      y: features [M, D].
      blocks: how many, at least 2. Rows that do not fill a block are left out.
      seed: of the order in which rows are dealt to blocks.

    Raises: ValueError for other widths, values that are not finite, or blocks of fewer than 2 rows.
    Source: Zaremba, Gretton & Blaschko 2013 (B-tests, arXiv:1307.1954); Bińkowski et al. 2018.
    """
    blocks = checks.integer("blocks", blocks, minimum=2)
    x, y = distances.pair(x, y, least=2 * blocks)  # two rows in each block
    rng = np.random.default_rng(checks.integer("seed", seed, minimum=0))
    parts = zip(*(_deal(rng.permutation(z), blocks) for z in (x, y)), strict=True)
    values = np.array([kid(a, b) for a, b in parts])
    return Estimate(float(values.mean()), float(values.std(ddof=1) / np.sqrt(blocks)))


def _deal(x: np.ndarray, blocks: int) -> np.ndarray:
    size = len(x) // blocks
    return x[: size * blocks].reshape(blocks, size, -1)
