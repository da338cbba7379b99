"""Precision, recall, density and copies on sets whose answer is known."""

import numpy as np
import pytest
from scipy.stats import betabinom

from diffusion_course.evaluation import distances, neighbours


def radii(x, k):
    return np.array(
        [np.sort(np.linalg.norm(np.delete(x, i, 0) - p, axis=1))[k - 1] for i, p in enumerate(x)]
    )


@pytest.mark.parametrize("k", [1, 4])
def test_precision_recall_and_density_are_those_of_loops(k):
    rng = np.random.default_rng(1)
    # Asymmetric, and more rows than one block holds on either side.
    x, real = rng.normal(size=(530, 2)) * 0.7 + 0.8, rng.normal(size=(560, 2)) * [1, 2]
    inside = np.linalg.norm(x[:, None] - real, axis=2) <= radii(real, k)
    covered = np.linalg.norm(x[:, None] - real, axis=2) <= radii(x, k)[:, None]
    assert 0 < inside.any(1).mean() < 1 and 0 < covered.any(0).mean() < 1
    assert neighbours.precision(x, real, k=k) == pytest.approx(inside.any(1).mean(), rel=1e-12)
    assert neighbours.recall(x, real, k=k) == pytest.approx(covered.any(0).mean(), rel=1e-12)
    assert neighbours.density(x, real, k=k) == pytest.approx(inside.sum() / (k * 530), rel=1e-12)


def test_precision_falls_by_the_share_of_bad_samples_and_recall_by_the_share_left_out():
    mode = np.linspace(0, 1, 300)
    real = np.append(mode, mode[::3] + 50)[:, None]  # a quarter of the data lies at 50
    x = np.append(np.linspace(0.1, 0.9, 170), np.repeat([20.0, 21.0], 15))[:, None]
    assert neighbours.precision(x, real) == 1 - 30 / 200  # 30 samples lie between the two modes
    # The outermost sample's third neighbour is three spacings away: so far reaches its ball.
    reached = (np.abs(mode - 0.5) <= 0.4 + 3 * 0.8 / 169).sum()
    assert 240 < reached < 260
    assert neighbours.recall(x, real) == reached / 400
    assert neighbours.recall(real + 1e-9, real) == neighbours.precision(real + 1e-9, real) == 1


def test_an_outlier_s_ball_is_in_precision_and_hardly_in_density():
    real = np.append(np.linspace(0, 1, 101), 40.0)[:, None]
    bad = np.full((50, 1), 30.0)
    assert neighbours.precision(bad, real, k=5) == 1
    assert neighbours.density(bad, real, k=5) == pytest.approx(1 / 5)


def test_density_of_equal_distributions_is_one_on_average():
    rng = np.random.default_rng(3)
    # A sample lies within a real example's k-th of M − 1 neighbours with probability k/M: exact.
    found = [
        neighbours.density(rng.normal(size=(n, 2)), rng.normal(size=(m, 2)), k=3)
        for n, m in [(20, 30), (60, 9)] * 150
    ]
    error = np.std(found) / np.sqrt(len(found))
    assert error < 0.02
    assert np.mean(found) == pytest.approx(1, abs=4 * error)  # four standard errors


def test_nearness_is_that_of_a_loop_and_has_no_scale():
    rng = np.random.default_rng(4)
    x, train = rng.normal(size=(distances.ROWS + 5, 2, 2)), rng.normal(size=(70, 2, 2)) * 2
    away = np.linalg.norm((x[:, None] - train).reshape(len(x), 70, 4), axis=2)
    near = np.sort(away, axis=1)[:, :6]
    ratio, index = neighbours.nearness(x, train, k=6)
    np.testing.assert_allclose(ratio, near[:, 0] / near.mean(1), rtol=1e-9)
    np.testing.assert_array_equal(index, away.argmin(1))
    np.testing.assert_allclose(neighbours.nearness(7 * x, 7 * train, k=6)[0], ratio, rtol=1e-9)
    assert neighbours.nearness(np.zeros((1, 2)), np.zeros((3, 2)), k=2)[0] == [0]  # not NaN


def planted(seed):
    """2,000 samples, of which 20 are training images with a little noise; and the sets."""
    rng = np.random.default_rng(seed)
    train, unseen, x = (rng.normal(size=(n, 16)) @ MIX + 3 for n in (1500, 1200, 2000))
    where = rng.choice(2000, 20, replace=False)
    which = rng.choice(1500, 20, replace=False)
    x[where] = train[which] + rng.normal(size=(20, 16)) * 0.05
    return x, train, unseen, where, which


MIX = np.random.default_rng(0).normal(size=(16, 16))


def test_twenty_planted_copies_among_two_thousand_are_found_and_the_false_alarms_are_as_stated():
    x, train, unseen, where, which = planted(5)
    found = neighbours.copies(x, train, unseen, rate=0.005)
    assert found.flagged[where].all()
    np.testing.assert_array_equal(found.nearest[where], which)
    assert found.rate == 6 / 1201  # the largest m/(n + 1) of at most 0.005
    false = found.flagged.sum() - 20
    assert false <= betabinom.ppf(0.9999, 1980, 6, 1195)  # about 10, and 28 once in 10,000
    assert found.chance == pytest.approx(betabinom.sf(false + 19, 2000, 6, 1195))  # 20 are excess
    assert found.chance < 0.05 and (found.flagged == (found.ratio < found.threshold)).all()


def test_false_alarms_of_fresh_data_come_at_the_stated_rate_whatever_the_distribution():
    rng = np.random.default_rng(6)
    flags, chances = [], []
    for _ in range(150):
        train, unseen, x = (rng.exponential(size=(n, 3)) ** 2 for n in (60, 49, 40))
        found = neighbours.copies(x, train, unseen, rate=0.1, k=10)
        assert found.rate == 0.1  # 5 of 50
        flags.append(found.flagged.sum())
        chances.append(found.chance)
    # Their number is beta-binomial: mean 40·0.1 and a variance larger than the binomial's.
    assert np.mean(flags) == pytest.approx(4, abs=4 * betabinom(40, 5, 45).std() / np.sqrt(150))
    # As a p-value, `chance` is below 0.1 at most in a tenth of the cases, within 4 errors.
    assert 0.02 < np.mean(np.array(chances) < 0.1) < 0.1 + 4 * np.sqrt(0.09 / 150)
    # P(count >= 7) by simulation of the uniform order statistics that ratios come down to.
    threshold = np.sort(rng.uniform(size=(20000, 49)), axis=1)[:, 4]
    share = (rng.binomial(40, threshold) >= 7).mean()
    seven = [c for f, c in zip(flags, chances, strict=True) if f == 7]
    assert seven and seven[0] == pytest.approx(share, abs=4 * np.sqrt(share / 20000))


def test_a_rate_that_is_a_round_number_of_images_is_not_lost_to_rounding():
    rng = np.random.default_rng(7)
    train, unseen = rng.normal(size=(60, 2)), rng.normal(size=(99, 2))
    assert neighbours.copies(unseen, train, unseen, rate=0.29).rate == 29 / 100  # 28.999…96
    assert neighbours.copies(unseen, train, unseen, rate=0.295).rate == 29 / 100
    found = neighbours.copies(unseen, train, unseen, rate=0.01)
    assert found.rate == 1 / 100 and not found.flagged.any() and found.chance == 1


GOOD = np.arange(12.0).reshape(6, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: neighbours.precision(GOOD, GOOD[:3]),
            "real must have more than k = 3 rows, got 3",
        ),
        (lambda: neighbours.recall(GOOD[:3], GOOD), "x must have more than k = 3 rows, got 3"),
        (lambda: neighbours.density(GOOD, GOOD, k=0), "k must be a whole number at least 1, got 0"),
        (
            lambda: neighbours.density(GOOD, GOOD[:, :1]),
            "x and real must have equally many features, got 2, 1",
        ),
        (lambda: neighbours.recall(GOOD * np.nan, GOOD), "x must be finite"),
        (
            lambda: neighbours.precision(GOOD[:0], GOOD),
            r"x must have shape \[N, …\] with N >= 1, got shape \[0, 2\]",
        ),
        (lambda: neighbours.nearness(GOOD, GOOD, k=1), "k must be a whole number at least 2"),
        (lambda: neighbours.nearness(GOOD, GOOD), "train must have at least k = 50 rows, got 6"),
        (
            lambda: neighbours.copies(GOOD, GOOD, GOOD, rate=0.14, k=3),
            r"rate must be at least 1/\(n \+ 1\) for n = 6 unseen images, got 0.14",
        ),
        (
            lambda: neighbours.copies(GOOD, GOOD, GOOD, rate=1.0, k=3),
            r"rate must be in \(0, 1\), got 1",
        ),
        (
            lambda: neighbours.copies(GOOD, GOOD, GOOD[:, :1], k=3),
            "unseen and train must have equally many features, got 1, 2",
        ),
    ],
)
def test_what_cannot_be_measured_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_as_few_rows_as_allowed_are_enough():
    assert neighbours.precision(GOOD[:1], GOOD[:4]) == 1
    assert neighbours.nearness(GOOD, GOOD, k=6)[0].shape == (6,)
    assert neighbours.copies(GOOD, GOOD, GOOD, rate=1 / 7, k=6).rate == 1 / 7
