"""Did anything change? Tests whose false alarms are counted beforehand, once or day after day."""

from collections.abc import Callable

import numpy as np

from diffusion_course import checks
from diffusion_course.evaluation import distances


def mean_shift(x: np.ndarray, y: np.ndarray) -> float:
    """Squared distance between the means of x [N, D] and y [M, D]."""
    return float(((x.mean(0) - y.mean(0)) ** 2).sum())


def permutation_test(
    x, y, statistic: Callable[..., float] = mean_shift, repeats: int = 199, seed: int = 0
) -> float:
    """The p-value of "both sets come from one distribution", exact for any sizes and distribution.

    If nothing changed, every way to deal the N + M rows to the two sets is as likely as the given
    one. So P(p ≤ a) ≤ a, with equality where a·(repeats + 1) is a whole number and no two values
    of the statistic are equal.

    Args:
      x: [N, D].
      y: [M, D].
      statistic: ``statistic(x, y)``, larger where the sets differ more.
      repeats: how many ways of dealing are drawn, at least 1. The smallest possible p-value is
        1/(repeats + 1).
      seed: of these.

    Raises: ValueError for empty sets, other widths, or values that are not finite.
    Source: Phipson & Smyth 2010, eq. 2 (why the 1 is added): the given order is one of the ways.

    >>> permutation_test(np.arange(20.0)[:, None], np.arange(20.0)[:, None] + 100)
    0.005
    """
    repeats = checks.integer("repeats", repeats, 1)
    x, y = distances.pair(x, y, least=1)
    rng, both, observed = np.random.default_rng(seed), np.concatenate([x, y]), statistic(x, y)
    as_large = 1
    for _ in range(repeats):
        order = rng.permutation(len(both))
        value = statistic(both[order[: len(x)]], both[order[len(x) :]])
        # Sums in another order differ in their last digits; the same set must count as equal.
        as_large += value >= observed * (1 - 1e-12)
    return as_large / (repeats + 1)


def wealth(outcomes, bet: float = 0.5, fair: float = 0.5) -> np.ndarray:
    """What a gambler owns who bets against "wins have the probability `fair`" again and again.

    It starts at 1. A win multiplies it by ``1 + bet·(1 − fair)/fair`` and a loss by ``1 − bet``.
    If the statement is true its mean stays 1, and the probability that it *ever* reaches 1/a is at
    most a: one may look after every outcome and stop when one likes.

    Args:
      outcomes: 1 for a win, 0 for a loss, in their order [..., N].
      bet: the share of the money that is bet on a win, in (0, 1).
      fair: the probability that is doubted, in (0, 1).

    Returns: after each outcome [..., N].
    Raises: ValueError for other outcomes, or a value outside its range.
    Source: Ville 1939; Shafer 2021, section 2; Waudby-Smith & Ramdas 2024 (arXiv:2010.09686).

    >>> wealth([1, 1, 0], bet=0.5).tolist()
    [1.5, 2.25, 1.125]
    """
    won = checks.binary("outcomes", outcomes)
    checks.within("bet", bet, 0, 1, ends="()")
    checks.within("fair", fair, 0, 1, ends="()")
    factors = np.where(np.asarray(won, bool), 1 + bet * (1 - fair) / fair, 1 - bet)
    return np.cumprod(factors, axis=-1)
