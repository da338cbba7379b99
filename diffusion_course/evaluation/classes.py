"""Scores that a classifier gives: of the samples it looks at, and as one that learnt from them."""

from collections.abc import Callable

import numpy as np
from scipy.special import xlogy

from diffusion_course import checks
from diffusion_course.evaluation import metrics


def inception_score(probabilities) -> float:
    """``exp(E KL(p(y|x) ‖ p(y)))``: from 1 to the smaller of K and N, for N samples of K classes.

    It is K if every sample is certainly of one class and the classes are equally many. Real data
    are not compared with: one sample per class, repeated, has the highest score. With few samples
    it is too low, since p(y) is their own mean.

    Args:
      probabilities: p(y|x) of each sample, [N, K], rows of sum 1.

    Raises: ValueError for another shape, or rows that are not probabilities.
    >>> round(inception_score(np.eye(10)), 6), round(inception_score(np.full((5, 10), 0.1)), 6)
    (10.0, 1.0)

    Source: Salimans et al. 2016, section 4 (arXiv:1606.03498).
    """
    p = _probabilities(probabilities)
    # Both entropies by xlogy, whose 0·log 0 is 0.
    entropy = -xlogy(p, p).sum(1).mean()
    marginal = p.mean(0)
    return float(np.exp(-xlogy(marginal, marginal).sum() - entropy))


def _probabilities(p) -> np.ndarray:
    checks.within("probabilities", p, 0, 1)
    p = np.asarray(p, np.float64)
    if p.ndim != 2 or not p.size:
        raise ValueError(f"probabilities must have shape [N, K], got shape {list(p.shape)}")
    if not np.allclose(p.sum(1), 1, atol=1e-4):  # a float32 softmax adds up to 1 ± 1e-6
        worst = int(np.abs(p.sum(1) - 1).argmax())
        raise ValueError(
            f"probabilities must have rows of sum 1, got {p[worst].sum():g} in row {worst}"
        )
    return p


def classifier_accuracy_score(fit: Callable, x, labels, real, real_labels) -> float:
    """Accuracy on real examples of a classifier that was trained on samples alone.

    It falls where samples have the wrong label, look wrong, or leave out part of a class. Compare
    it with the same classifier trained on as many real examples.

    Args:
      fit: ``fit(x, labels) -> predict`` with ``predict(real) -> `` whole numbers [M].
      x: samples [N, …].
      labels: whole numbers [N], the classes they were drawn for.
      real: unseen real examples [M, …].
      real_labels: whole numbers [M].

    Raises: ValueError for labels that are not whole numbers, one per example.
    Source: Ravuri & Vinyals 2019 (arXiv:1905.10887).
    """
    for name, values, examples in (
        ("labels", labels, x),
        ("real_labels", real_labels, real),
    ):
        checks.labels(name, values, (len(examples),), np.iinfo(np.int64).max)
    predict = fit(x, labels)
    return metrics.class_accuracy(np.asarray(predict(real)), real_labels)
