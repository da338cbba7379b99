"""How well a score tells two kinds apart."""

from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata


class Curve(NamedTuple):
    """A receiver operating characteristic, from (0, 0) to (1, 1).

    Attributes:
      false_alarms: share of negatives at or above each threshold [K].
      found: share of positives at or above it [K].
      thresholds: falling; the first one is infinite [K].
    """

    false_alarms: np.ndarray
    found: np.ndarray
    thresholds: np.ndarray


def roc(negative, positive) -> Curve:
    """Every pair of error rates that a threshold can buy.

    Args:
      negative: scores of what must pass [N].
      positive: scores of what must be found [M]; higher means more suspicious.

    Raises: ValueError for an empty set, another shape, or NaN.
    Source: Fawcett 2006, algorithm 1.

    >>> curve = roc([0.1, 0.4], [0.4, 0.9])
    >>> curve.false_alarms.tolist(), curve.found.tolist()
    ([0.0, 0.0, 0.5, 1.0], [0.0, 0.5, 1.0, 1.0])
    """
    negative, positive = _scores("negative", negative), _scores("positive", positive)
    thresholds = np.append(np.inf, np.unique(np.concatenate([negative, positive]))[::-1])

    def share(scores):
        return 1 - np.searchsorted(np.sort(scores), thresholds, side="left") / len(scores)

    return Curve(share(negative), share(positive), thresholds)


def auc(negative, positive) -> float:
    """Probability that a positive scores higher than a negative, with ties counted as one half.

    It is the area under `roc`.

    Args:
      negative: as in `roc`.
      positive: as in `roc`.

    Raises: ValueError as `roc`. Source: Hanley & McNeil 1982.

    >>> auc([0.1, 0.4], [0.4, 0.9])
    0.875
    """
    negative, positive = _scores("negative", negative), _scores("positive", positive)
    n, m = len(negative), len(positive)
    ranks = rankdata(np.concatenate([negative, positive]))[n:].sum()
    return float((ranks - m * (m + 1) / 2) / (n * m))


def _scores(name: str, given) -> np.ndarray:
    scores = np.asarray(given, np.float64)
    if scores.ndim != 1 or not scores.size or np.isnan(scores).any():
        raise ValueError(f"{name} must hold numbers [N], N at least 1, without NaN")
    return scores
