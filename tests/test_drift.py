"""Alarms with a known rate of false ones, and curves of two error rates."""

from itertools import combinations, product

import numpy as np
import pytest
from scipy.stats import binom

from diffusion_course.evaluation import drift, roc


def test_the_permutation_test_is_exact_for_a_distribution_that_is_not_normal():
    rng = np.random.default_rng(0)
    p = [drift.permutation_test(rng.exponential(1, (12, 2)) ** 3, rng.exponential(1, (7, 2)) ** 3,
                                repeats=19, seed=i) for i in range(600)]  # fmt: skip
    # P(p <= k/20) = k/20 exactly: 600 trials, at four standard errors.
    for k in (1, 5, 10):
        share = k / 20
        assert abs(np.mean(np.array(p) <= share + 1e-9) - share) < 4 * np.sqrt(
            share * (1 - share) / 600
        )


def test_the_permutation_test_counts_the_ways_that_there_are():
    x, y = np.array([[0.0], [1.0]]), np.array([[5.0], [9.0], [11.0]])
    both = np.concatenate([x, y])
    values = []
    for chosen in combinations(range(5), 2):
        rest = [i for i in range(5) if i not in chosen]
        values.append(drift.mean_shift(both[list(chosen)], both[rest]))
    share = np.mean(np.array(values) >= drift.mean_shift(x, y) - 1e-9)
    found = drift.permutation_test(x, y, repeats=3999)
    assert abs(found - share) < 4 * np.sqrt(share * (1 - share) / 3999)


def test_a_shift_is_found_and_equal_sets_are_not():
    rng = np.random.default_rng(1)
    x, y = rng.normal(0, 1, (60, 5)), rng.normal(0, 1, (60, 5))
    assert drift.permutation_test(x, y + 1.0) == 1 / 200
    assert drift.permutation_test(x, x[::-1]) == 1.0
    spread = lambda a, b: abs(np.log(a.std() / b.std()))  # noqa: E731
    assert drift.permutation_test(x, 3 * y, spread) == 1 / 200
    with pytest.raises(ValueError, match="repeats"):
        drift.permutation_test(x, y, repeats=0)


@pytest.mark.parametrize("fair, bet", [(0.5, 0.4), (0.2, 0.9)])
def test_wealth_has_the_mean_1_and_seldom_ever_reaches_the_bound(fair, bet):
    every = np.array(list(product((0, 1), repeat=10)))
    weight = np.prod(np.where(every, fair, 1 - fair), axis=1)
    owned = drift.wealth(every, bet, fair)
    assert owned.shape == every.shape
    np.testing.assert_allclose(weight @ owned, 1, rtol=1e-12)  # after every outcome
    for alarm in (0.3, 0.05):
        ever = (owned >= 1 / alarm).any(1)
        assert 0 < weight @ ever <= alarm
    # What it costs to look at p-values of a binomial test after each of ten outcomes.
    wins = every.cumsum(1)
    p = binom.sf(wins - 1, np.arange(1, 11), fair)
    assert weight @ (p <= 0.05).any(1) > 0.05
    with pytest.raises(ValueError, match="bet must be in"):
        drift.wealth(every, 1.0)


def test_auc_is_the_probability_of_the_right_order():
    rng = np.random.default_rng(0)
    low, high = rng.integers(0, 6, 40), rng.integers(2, 9, 25)
    pairs = high[None] - low[:, None]
    assert roc.auc(low, high) == pytest.approx((pairs > 0).mean() + (pairs == 0).mean() / 2)
    curve = roc.roc(low, high)
    assert np.trapezoid(curve.found, curve.false_alarms) == pytest.approx(roc.auc(low, high))
    assert (np.diff(curve.found) >= 0).all() and (np.diff(curve.thresholds) < 0).all()
    for alarms, found, at in zip(*curve, strict=True):
        assert alarms == pytest.approx((low >= at).mean())
        assert found == pytest.approx((high >= at).mean())
    with pytest.raises(ValueError, match="negative must hold numbers"):
        roc.auc([], [1.0])
