"""What people prefer: strengths from paired judgements, and how many judgements are needed.

Two images are shown, without a word about where each is from and with sides drawn by lot; the judge
prefers one, or neither. The Bradley–Terry model gives every method a strength, so that

    P(i is preferred to j) ∝ exp(θ_i),   P(j to i) ∝ exp(θ_j),   P(tie) ∝ ν·exp((θ_i + θ_j)/2).

Judgements are taken to be independent. Many by one judge, or of one image, are not: their intervals
are too narrow.

Source: Bradley & Terry 1952 (Biometrika 39); with ties, Davidson 1970 (JASA 65).
"""

import math
from typing import NamedTuple

import numpy as np
from scipy.sparse.csgraph import connected_components
from scipy.special import softmax
from scipy.stats import binom, norm

from diffusion_course import checks
from diffusion_course.evaluation.intervals import Interval

OUTCOMES = {"first": 1, "second": -1, "tie": 0}


def tally(pairs, outcomes, methods: int) -> tuple[np.ndarray, np.ndarray]:
    """Counts judgements.

    Args:
      pairs: which two methods were compared, whole numbers [N, 2] in 0 … methods − 1.
      outcomes: [N], each "first", "second" or "tie".
      methods: how many there are, K >= 2.

    Returns: wins [K, K], where [i, j] says how often i was preferred to j, and ties [K, K],
      symmetric.
    Raises: ValueError for labels or outcomes out of range, a method against itself, or unequal
      numbers.
    >>> wins, ties = tally([[0, 1], [1, 0], [0, 1]], ["first", "second", "tie"], 2)
    >>> wins.tolist(), ties.tolist()
    ([[0, 2], [0, 0]], [[0, 1], [1, 0]])
    """
    methods = checks.integer("methods", methods, minimum=2)
    pairs = np.asarray(pairs)
    checks.labels("pairs", pairs, (len(outcomes), 2), methods - 1)
    if (pairs[:, 0] == pairs[:, 1]).any():
        row = int((pairs[:, 0] == pairs[:, 1]).argmax())
        raise ValueError(f"pairs must be of two methods, got {pairs[row].tolist()} in row {row}")
    wins, ties = np.zeros((2, methods, methods), int)
    for (i, j), outcome in zip(pairs, outcomes, strict=True):
        sign = OUTCOMES[checks.one_of("outcomes", outcome, OUTCOMES)]
        wins[i, j] += sign > 0
        wins[j, i] += sign < 0
        ties[i, j] += sign == 0
        ties[j, i] += sign == 0
    return wins, ties


class Deal(NamedTuple):
    """Which pictures a judge sees, and on which side: n rounds, in order.

    Attributes:
      pairs: the methods on the left and on the right, whole numbers [n, 2], as `tally` takes them.
      items: which of each method's pictures, whole numbers [n, 2].
    """

    pairs: np.ndarray
    items: np.ndarray


def deal(counts, rounds: int, seed: int = 0) -> Deal:
    """Deals pairs of pictures to a judge, blindly and evenly.

    Every two methods meet equally often, up to one round. The order, the sides and the pictures are
    drawn by lot, and no picture of a method comes again before all its others have been shown.

    Args:
      counts: how many pictures each of K >= 2 methods has, whole numbers [K], at least 1 each.
      rounds: how many pairs, at least 1.
      seed: of the lot.

    Raises: ValueError for fewer than two methods, a method without pictures, or no rounds.
    >>> dealt = deal([5, 5, 5], rounds=6)
    >>> sorted(sorted(pair) for pair in dealt.pairs.tolist())
    [[0, 1], [0, 1], [0, 2], [0, 2], [1, 2], [1, 2]]
    """
    counts = np.asarray(counts)
    if counts.ndim != 1 or len(counts) < 2 or counts.dtype.kind not in "iu" or (counts < 1).any():
        raise ValueError(f"counts must be at least two numbers of pictures, got {counts.tolist()}")
    rounds = checks.integer("rounds", rounds, minimum=1)
    rng = np.random.default_rng(checks.integer("seed", seed, minimum=0))
    meetings = np.stack(np.triu_indices(len(counts), 1), axis=1)
    pairs = np.resize(rng.permutation(meetings), (rounds, 2))  # repeats the list of meetings
    pairs = rng.permuted(rng.permutation(pairs), axis=1)  # the order, and then the sides
    items = np.empty_like(pairs)
    for method, count in enumerate(counts):
        shown = pairs == method
        packs = [rng.permutation(count) for _ in range(-(-shown.sum() // count))]
        items[shown] = np.concatenate([*packs, []])[: shown.sum()]
    return Deal(pairs, items)


class Strengths(NamedTuple):
    """Strengths of K methods by maximum likelihood.

    Attributes:
      theta: [K], of mean 0. A difference d means odds of e^d, ties left out.
      low: [K], lower end of each one's confidence interval.
      high: [K], upper end.
      covariance: of theta, [K, K].
      nu: how common ties are: a share ν/(2 + ν) of equals' judgements.
    """

    theta: np.ndarray
    low: np.ndarray
    high: np.ndarray
    covariance: np.ndarray
    nu: float


def bradley_terry(wins, ties=None, level: float = 0.95) -> Strengths:
    """Strengths of methods by maximum likelihood, with intervals from the curvature there.

    Each interval is of a method against the mean of all. Whether one method is better than another
    is a question to `difference`: overlapping intervals do not answer it.

    Args:
      wins: whole numbers [K, K], where [i, j] says how often i was preferred to j.
      ties: whole numbers [K, K], symmetric: how often neither of i and j was; None for no ties.
      level: of confidence of one interval, in (0, 1).

    Raises: ValueError for other shapes or values; or unless every method beats every other, itself
      or through a chain of wins (else the most likely strength may be infinite).
    >>> found = bradley_terry([[0, 30], [10, 0]])  # odds of 3
    >>> print(found.theta.round(3), np.log(3).round(3) / 2)
    [ 0.549 -0.549] 0.5495

    Source: as of the module; Ford 1957 (Amer. Math. Monthly 64) for when there is a maximum.
    """
    checks.within("level", level, 0, 1, ends="()")
    wins = _counts("wins", wins)
    ties = _counts("ties", np.zeros_like(wins) if ties is None else ties)
    checks.same_shape("ties", ties, "wins", wins)
    if (ties != ties.T).any():
        raise ValueError("ties must be symmetric, got another number for i, j than for j, i")
    _check_linked(wins)
    exponents, counts = _outcomes(wins, ties)
    K = len(wins)
    parameters, information = _maximum(exponents, counts, K)
    # Only differences of theta are known. `information` has ones added for the mean, whose inverse
    # is taken off again: what remains is the covariance of strengths of mean 0.
    covariance = np.linalg.inv(information)[:K, :K] - 1 / K**2
    theta = parameters[:K] - parameters[:K].mean()  # of mean 0 but for rounding
    half = norm.isf((1 - level) / 2) * np.sqrt(np.diag(covariance))
    nu = float(np.exp(parameters[K])) if len(parameters) > K else 0.0
    return Strengths(theta, theta - half, theta + half, covariance, nu)


def difference(found: Strengths, i: int, j: int, level: float = 0.95) -> Interval:
    """How much stronger i is than j, ``θ_i − θ_j``, with its confidence interval.

    Raises: ValueError for methods that are not there, or a level outside (0, 1).
    """
    checks.within("level", level, 0, 1, ends="()")
    i, j = (checks.integer(n, v, 0, len(found.theta) - 1) for n, v in (("i", i), ("j", j)))
    c = found.covariance
    value = float(found.theta[i] - found.theta[j])
    half = norm.isf((1 - level) / 2) * math.sqrt(max(c[i, i] + c[j, j] - 2 * c[i, j], 0))
    return Interval(value, value - half, value + half)


def _counts(name: str, given) -> np.ndarray:
    given = np.asarray(given)
    if given.ndim != 2 or given.shape[0] != given.shape[1] or len(given) < 2:
        raise ValueError(f"{name} must have shape [K, K], K >= 2, got shape {list(given.shape)}")
    checks.labels(name, given, given.shape, np.iinfo(np.int64).max)
    if np.diag(given).any():
        raise ValueError(f"{name} must have zeros on the diagonal, got {np.diag(given).tolist()}")
    return given


def _check_linked(wins: np.ndarray) -> None:
    groups, group = connected_components(wins > 0, directed=True, connection="strong")
    if groups > 1:
        apart = [np.flatnonzero(group == g).tolist() for g in range(groups)]
        raise ValueError(
            "wins must lead from every method to every other, directly or through others, "
            f"got the separate groups {apart}"
        )


def _outcomes(wins: np.ndarray, ties: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The model as a table: for each pair and outcome, its exponent's coefficients and its count.

    Returns: exponents [pairs, 3, K + 1] of the parameters (θ, log ν), and counts [pairs, 3]; both
      without ties, [pairs, 2, K] and [pairs, 2], if there were none: log ν would be −∞.
    """
    i, j = np.triu_indices(len(wins), 1)
    eye = np.eye(len(wins) + 1)
    tie = (eye[i] + eye[j]) / 2 + eye[-1]
    exponents = np.stack([eye[i], eye[j], tie], axis=1)
    counts = np.stack([wins[i, j], wins[j, i], ties[i, j]], axis=1)
    return (exponents, counts) if ties.any() else (exponents[:, :2, :-1], counts[:, :2])


def _maximum(exponents: np.ndarray, counts: np.ndarray, K: int) -> tuple[np.ndarray, ...]:
    """Newton's method on the log-likelihood, which is concave: parameters and information."""
    mean = np.zeros((exponents.shape[2],) * 2)
    mean[:K, :K] = 1  # fixes the mean strength, which no judgement tells
    total = counts.sum(1)
    parameters = np.zeros(exponents.shape[2])
    while True:
        p = softmax(exponents @ parameters, axis=1)
        expected = np.einsum("po,pok->pk", p, exponents)
        score = np.einsum("po,pok->k", counts - total[:, None] * p, exponents)
        centred = exponents - expected[:, None]
        information = mean + np.einsum("p,po,pok,pol->kl", total, p, centred, centred)
        step = np.linalg.solve(information, score)
        # Here within 3e-5 standard errors of the maximum, which the last step squares.
        if score @ step < 1e-9:
            return parameters + step, information
        # Far from the maximum a full step can lead anywhere. Where no exponent changes by more than
        # 1 beside another, the curvature changes little enough that the likelihood must rise.
        parameters = parameters + step / max(2 * np.abs(step).max(), 1)


def power(n: int, share: float, alpha: float = 0.05) -> float:
    """Probability that n judgements show a preference, if one is preferred in a `share` of them.

    By the exact two-sided binomial test against one half: it shows a preference if the outcome, or
    one further from n/2 on either side, has at most probability alpha among equals.

    Args:
      n: decided judgements (ties left out), at least 1.
      share: of the judgements in which the one is preferred, in [0, 1].
      alpha: significance level, in (0, 1).

    Raises: ValueError for a value outside its range.
    >>> round(power(100, 0.6), 3)
    0.462
    """
    n = checks.integer("n", n, minimum=1)
    checks.within("share", share, 0, 1)
    checks.within("alpha", alpha, 0, 1, ends="()")
    return float(_power(np.array(n), share, alpha))


def _power(n: np.ndarray, share: float, alpha: float) -> np.ndarray:
    # The largest c with P(X <= c) <= alpha/2 under one half; −1 if even 0 is too likely.
    c = binom.ppf(alpha / 2, n, 0.5)
    c = np.where(binom.cdf(c, n, 0.5) > alpha / 2, c - 1, c)
    return binom.cdf(c, n, share) + binom.sf(n - c - 1, n, share)


def judgements_needed(share: float, target: float = 0.8, alpha: float = 0.05) -> int:
    """How many decided judgements show a preference with probability `target`.

    From this number on the power stays at the target or above: on the way there it rises in a
    sawtooth, because counts are whole. Where a share of all judgements are ties, ask for
    1/(1 − that share) as many.

    Args:
      share: of the judgements in which the better one is preferred, in [0.51, 1].
      target: power, in (0, 0.999].
      alpha: significance level, in [1e-6, 0.5].

    Raises: ValueError for a value outside its range.
    >>> judgements_needed(0.6), judgements_needed(0.75)
    (210, 35)

    Source: Chernick & Liu 2002 (Amer. Statistician 56) for the sawtooth.
    """
    checks.within("share", share, 0.51, 1)
    checks.within("target", target, 0, 0.999, ends="(]")
    checks.within("alpha", alpha, 1e-6, 0.5)
    spread = norm.isf(alpha / 2) + max(norm.isf(1 - target), 0)
    normal = (spread / (2 * share - 1)) ** 2  # by the normal approximation; the teeth reach past it
    n = np.arange(1, int(1.3 * normal) + 100)
    enough = _power(n, share, alpha) >= target
    return int(n[~enough][-1]) + 1 if not enough.all() else 1
