"""Kernel distance, class scores, clusters, extrapolation and intervals, against exact answers."""

import numpy as np
import pytest
from scipy.stats import binom, norm

from diffusion_course.evaluation import (
    classes,
    clusters,
    distances,
    extrapolate,
    intervals,
    kernels,
    metrics,
)


def gaussian(rng, n, mean, root):
    return rng.normal(size=(n, len(mean))) @ np.transpose(root) + mean


# The two Gaussians: asymmetric, not of unit scale, in D = 3.
RNG = np.random.default_rng(0)
MEAN_X, MEAN_Y = np.array([0.5, -1.0, 0.3]), np.array([0.1, 0.4, -0.2])
ROOT_X, ROOT_Y = RNG.normal(size=(3, 3)), RNG.normal(size=(3, 3)) * 0.8


# ---------------------------------------------------------------------------------------- kernels


def mean_kernel(m, root_m, w, root_w):
    """E (x·y/D + 1)³ of independent Gaussians, from their moments up to the third."""
    d = len(m)
    seconds, thirds = [], []
    for mean, c in ((m, root_m @ root_m.T), (w, root_w @ root_w.T)):
        seconds.append(c + np.outer(mean, mean))
        third = np.einsum("i,jk->ijk", mean, c)
        third = third + third.transpose(1, 0, 2) + third.transpose(2, 1, 0)
        thirds.append(third + np.einsum("i,j,k->ijk", mean, mean, mean))
    first, second, third = m @ w / d, (seconds[0] * seconds[1]).sum(), (thirds[0] * thirds[1]).sum()
    return 1 + 3 * first + 3 * second / d**2 + third / d**3


def test_kid_s_mean_is_the_closed_form_of_two_gaussians():
    x, y = (MEAN_X, ROOT_X), (MEAN_Y, ROOT_Y)
    expected = mean_kernel(*x, *x) + mean_kernel(*y, *y) - 2 * mean_kernel(*x, *y)
    rng = np.random.default_rng(1)
    found = [kernels.kid(gaussian(rng, 30, *x), gaussian(rng, 17, *y)) for _ in range(3000)]
    error = np.std(found) / np.sqrt(3000)
    assert error < 0.06 * expected
    assert np.mean(found) == pytest.approx(expected, abs=4 * error)  # four standard errors
    # The biased estimate, with the diagonal, would lie E k(x, x)/30 higher: 20 errors.


def test_kid_of_equal_distributions_is_zero_on_average_at_any_number():
    rng = np.random.default_rng(2)
    for n, m in [(2, 3), (25, 10)]:
        found = [
            kernels.kid(gaussian(rng, n, MEAN_X, ROOT_X), gaussian(rng, m, MEAN_X, ROOT_X))
            for _ in range(2000)
        ]
        assert abs(np.mean(found)) < 4 * np.std(found) / np.sqrt(2000)
        assert min(found) < 0


def test_kid_is_the_double_sum_through_more_rows_than_a_block():
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(distances.ROWS + 9, 2)), rng.normal(0.4, 2, size=(40, 2))

    def mean(a, b, own):
        k = (a @ b.T / 2 + 1) ** 3
        return (k.sum() - own * np.trace(k)) / (k.size - own * len(a))

    expected = mean(x, x, 1) + mean(y, y, 1) - 2 * mean(x, y, 0)
    assert kernels.kid(x, y) == pytest.approx(expected, rel=1e-9)


def test_block_kid_s_error_is_the_spread_of_its_value():
    rng = np.random.default_rng(4)
    found = [
        kernels.block_kid(
            gaussian(rng, 83, MEAN_X, ROOT_X), gaussian(rng, 60, MEAN_Y, ROOT_Y), blocks=8
        )
        for _ in range(300)
    ]
    values, errors = np.transpose(found)
    # Heavy tails: the ratio of the two has an error of about 7 %.
    assert np.sqrt((errors**2).mean()) == pytest.approx(values.std(), rel=0.25)


def test_block_kid_uses_disjoint_blocks_and_its_seed():
    # One feature whose value names the row: with the rows 0 and 1 in blocks of 2 all else follows.
    x, y = np.arange(5.0)[:, None], np.arange(4.0)[:, None] * 0
    values = []
    for seed in range(60):
        order = np.random.default_rng(seed).permutation(x)
        halves = [kernels.kid(part, y[:2]) for part in (order[:2], order[2:4])]
        estimate = kernels.block_kid(x, y, blocks=2, seed=seed)
        assert estimate.value == pytest.approx(np.mean(halves))
        assert estimate.error == pytest.approx(abs(halves[0] - halves[1]) / 2)
        values.append(estimate.value)
    assert len(np.unique(np.round(values, 6))) > 5


# ---------------------------------------------------------------------------------------- classes


def test_inception_score_is_that_of_a_loop_and_at_most_the_number_of_classes():
    p = np.random.default_rng(5).dirichlet([0.3, 1, 2, 0.5], size=23)
    marginal = p.mean(0)
    divergence = np.mean(
        [sum(q * np.log(q / m) for q, m in zip(r, marginal, strict=True)) for r in p]
    )
    assert classes.inception_score(p) == pytest.approx(np.exp(divergence), rel=1e-9)
    assert classes.inception_score(np.repeat(np.eye(7), 3, axis=0)) == pytest.approx(7)
    assert classes.inception_score(np.eye(7)[:4]) == pytest.approx(4)  # four samples at most 4
    assert classes.inception_score(p[:1]) == pytest.approx(1)
    # Three classes in shares 1/2, 1/4, 1/4: exp of the entropy.
    assert classes.inception_score(np.eye(3)[[0, 0, 1, 2]]) == pytest.approx(2**1.5)


@pytest.mark.parametrize(
    ("p", "message"),
    [
        ([0.5, 0.5], r"probabilities must have shape \[N, K\], got shape \[2\]"),
        (np.ones((0, 3)), r"got shape \[0, 3\]"),
        ([[0.5, 0.5], [0.5, 0.6]], "probabilities must have rows of sum 1, got 1.1 in row 1"),
        ([[1.5, -0.5]], r"probabilities must be in \[0, 1\], got 1.5"),
        ([[np.nan, 1]], "got nan"),
    ],
)
def test_inception_score_names_what_are_no_probabilities(p, message):
    with pytest.raises(ValueError, match=message):
        classes.inception_score(p)


def nearest_mean(x, labels):
    means = np.array([x[labels == c].mean(0) for c in range(2)])
    return lambda y: np.abs(y[:, None] - means).sum(2).argmin(1)


def test_classifier_accuracy_score_trains_on_samples_and_tests_on_real():
    real, real_labels = np.array([[-2.0], [-1], [0.4], [3]]), np.array([0, 0, 1, 1])
    x, labels = np.array([[-1.0], [-1], [2], [2], [1]]), np.array([0, 0, 1, 1, 1])
    # Of the samples the border is at 1/3; of the real ones at 0.1; with means −1 and 5 at 2.
    assert classes.classifier_accuracy_score(nearest_mean, x, labels, real, real_labels) == 1
    far = np.where(x > 0, 5, x)
    assert classes.classifier_accuracy_score(nearest_mean, far, labels, real, real_labels) == 0.75
    with pytest.raises(ValueError, match=r"labels must be whole numbers of shape \[5\]"):
        classes.classifier_accuracy_score(nearest_mean, x, labels[:4], real, real_labels)
    with pytest.raises(ValueError, match=r"real_labels must be whole numbers of shape \[4\]"):
        classes.classifier_accuracy_score(nearest_mean, x, labels, real, real_labels / 2)


# --------------------------------------------------------------------------------------- clusters


def test_a_missing_mode_is_found_in_its_own_cluster():
    rng = np.random.default_rng(6)
    modes = np.array([[0, 0], [9, 0], [0, 9], [9, 9], [20, 3.0]])
    train, real = (modes[rng.integers(5, size=600)] + rng.normal(size=(600, 2)) for _ in range(2))
    x = modes[rng.integers(4, size=400)] + rng.normal(size=(400, 2))  # never the fifth
    centres = clusters.centres(train, 5, seed=1)
    away = np.linalg.norm(modes[:, None] - centres, axis=2)
    assert away.min(1).max() < 0.5  # every mode has its centre
    found = clusters.compare(x, real, centres)
    fifth = away[4].argmin()
    assert found.share[fifth] == 0 and found.z.argmin() == fifth and found.z[fifth] < -5
    assert found.different >= 1 and found.p_value < 1e-9
    assert found.share.sum() == pytest.approx(1) and found.real.sum() == pytest.approx(1)
    assert clusters.counts(x, centres).sum() == 400


def test_equal_distributions_differ_at_the_stated_level():
    rng = np.random.default_rng(7)
    centres = np.array([[-1.2], [-0.3], [0.2], [1.0], [99.0]])  # nothing is near the last one
    found = [
        clusters.compare(rng.normal(size=(300, 1)), rng.normal(size=(200, 1)), centres, alpha=0.1)
        for _ in range(500)
    ]
    # Four clusters in use, each 0.1: four errors of 2,000 tests, a little more as they depend.
    assert np.mean([f.different for f in found]) == pytest.approx(0.4, abs=0.13)
    # A chi-square of 3 degrees of freedom: mean 3 and variance 6.
    assert np.mean([f.chi_square for f in found]) == pytest.approx(3, abs=4 * np.sqrt(6 / 500))
    low = np.mean([f.p_value < 0.2 for f in found])
    assert low == pytest.approx(0.2, abs=4 * np.sqrt(0.16 / 500))


def test_z_and_chi_square_are_the_textbook_s():
    from scipy.stats import chi2_contingency

    centres = np.array([[0.0], [1], [2]])
    x, real = np.repeat([0, 1, 2], [30, 50, 7])[:, None], np.repeat([0, 1, 2], [20, 25, 9])[:, None]
    found = clusters.compare(x, real, centres)
    expected = chi2_contingency([[30, 50, 7], [20, 25, 9]], correction=False)
    assert found.chi_square == pytest.approx(expected.statistic, rel=1e-9)
    assert found.p_value == pytest.approx(expected.pvalue, rel=1e-9)
    for c, (a, b) in enumerate([(30, 20), (50, 25), (7, 9)]):
        # Of a table of two the chi-square is the square of z.
        square = chi2_contingency([[a, 87 - a], [b, 54 - b]], correction=False).statistic
        assert found.z[c] == pytest.approx(np.sign(a / 87 - b / 54) * np.sqrt(square), rel=1e-9)
    assert clusters.compare(x, x, centres[:1]).p_value == 1
    assert clusters.compare(x, x, centres[:1]).z == [0]


def test_clusters_that_cannot_be_made_are_named():
    with pytest.raises(ValueError, match="train must have at least k = 3 different rows, got 2"):
        clusters.centres([[0.0], [1], [1], [0]], 3)
    with pytest.raises(ValueError, match="k must be a whole number at least 2, got 1"):
        clusters.centres([[0.0], [1]], 1)
    with pytest.raises(ValueError, match="real and centres must have equally many features"):
        clusters.compare(np.ones((3, 1)), np.ones((3, 2)), np.ones((2, 1)))
    with pytest.raises(ValueError, match="x and centres must have equally many features"):
        clusters.compare(np.ones((3, 2)), np.ones((3, 1)), np.ones((2, 1)))
    with pytest.raises(ValueError, match=r"alpha must be in \(0, 1\)"):
        clusters.compare(np.ones((3, 1)), np.ones((3, 1)), np.ones((2, 1)), alpha=0)


# ---------------------------------------------------------------------------------- extrapolation


def test_extrapolation_recovers_the_true_distance_of_two_gaussians():
    cov_x, cov_y = ROOT_X @ ROOT_X.T, ROOT_Y @ ROOT_Y.T
    exact = metrics.Moments(MEAN_Y, cov_y, 10**6)
    true = metrics.frechet(metrics.Moments(MEAN_X, cov_x, 10**6), exact)
    rng = np.random.default_rng(8)
    found = [
        extrapolate.frechet_at_infinity(gaussian(rng, 100, MEAN_X, ROOT_X), exact, parts=4).value
        for _ in range(60)
    ]
    error = np.std(found) / np.sqrt(60)
    assert np.mean(found) == pytest.approx(true, abs=4 * error)  # four standard errors


@pytest.mark.parametrize("dimension", [9, 17])
def test_the_bias_of_equal_distributions_is_taken_off(dimension):
    # The truth is 0 and the bias large beside the spread: what is left of it is of order 1/n².
    exact = metrics.Moments(np.zeros(dimension), np.eye(dimension), 10**6)
    rng = np.random.default_rng(9)
    plain, found, slopes = [], [], []
    for _ in range(20):
        x = rng.normal(size=(1000, dimension))
        one = extrapolate.frechet_at_infinity(x, exact)
        plain.append(metrics.frechet(x, exact))
        found.append(one.value)
        slopes.append(one.slope)
        assert one.counts.tolist() == [1000, 500, 333, 250, 200]
        assert one.distances[0] == pytest.approx(plain[-1], rel=1e-9)
    assert abs(np.mean(found)) < 0.1 * np.mean(plain)
    # Mean: D/n. Covariance: E ‖√Ĉ − 1‖² is about D(D + 1)/4n.
    expected = dimension + dimension * (dimension + 1) / 4
    assert np.mean(slopes) == pytest.approx(expected, rel=0.1)


def test_a_line_is_met_exactly_and_every_part_counts():
    rng = np.random.default_rng(10)
    x, y = rng.normal(size=(31, 2)), rng.normal(size=(50, 2)) + 1
    found = extrapolate.frechet_at_infinity(x, y, parts=3, seed=4)
    mixed = np.random.default_rng(4).permutation(x)
    thirds = [metrics.frechet(mixed[i : i + 10], y) for i in (0, 10, 20)]
    halves = [metrics.frechet(mixed[i : i + 15], y) for i in (0, 15)]
    expected = [metrics.frechet(x, y), np.mean(halves), np.mean(thirds)]
    np.testing.assert_allclose(found.distances, expected, rtol=1e-9)
    design = np.stack([np.ones(3), 1 / np.array([31, 15, 10])], axis=1)
    line = np.linalg.lstsq(design, expected, rcond=None)[0]
    np.testing.assert_allclose([found.value, found.slope], line, rtol=1e-6)


def test_extrapolation_refuses_parts_with_a_singular_covariance():
    rng = np.random.default_rng(11)
    assert extrapolate.frechet_at_infinity(rng.normal(size=(12, 2)), rng.normal(size=(9, 2)), 4)
    with pytest.raises(ValueError, match=r"x must have more than parts·D = 4·2 rows, 12 at least"):
        extrapolate.frechet_at_infinity(rng.normal(size=(11, 2)), rng.normal(size=(9, 2)), 4)
    with pytest.raises(ValueError, match="equally many features, got 2, 3"):
        extrapolate.frechet_at_infinity(np.ones((50, 2)), np.ones((9, 3)))
    with pytest.raises(ValueError, match="parts must be a whole number at least 2, got 1"):
        extrapolate.frechet_at_infinity(np.ones((50, 2)), np.ones((9, 2)), parts=1)


# -------------------------------------------------------------------------------------- intervals


def test_bootstrap_of_means_has_the_normal_interval():
    rng = np.random.default_rng(12)
    x, y = rng.normal(2, 1, size=200), rng.normal(0, 3, size=(90, 1))
    value, low, high = intervals.bootstrap(
        lambda a, b: a.mean() - b.mean(), x, y, repeats=3000, level=0.9
    )
    error = np.sqrt(x.var() / 200 + y.var() / 90)
    assert value == x.mean() - y.mean()
    # A quantile of 3,000 has an error of 0.04 standard errors here.
    assert (high - value) / error == pytest.approx(norm.ppf(0.95), abs=0.16)
    assert (value - low) / error == pytest.approx(norm.ppf(0.95), abs=0.16)


def test_bootstrap_gives_the_basic_interval():
    # Of two rows the resamples are known: the squared mean is 0, 1/4, 1 in shares 1/4, 1/2, 1/4.
    found = intervals.bootstrap(lambda x: x.mean() ** 2, [0.0, 1.0], repeats=500, level=0.9)
    assert found == (0.25, 0.5 - 1, 0.5 - 0)
    inner = intervals.bootstrap(lambda x: x.mean() ** 2, [0.0, 1.0], repeats=500, level=0.3)
    assert inner == (0.25, 0.25, 0.25)


def test_bootstrap_covers_a_biased_distance_and_keeps_rows_whole():
    exact = metrics.Moments(np.ones(4), np.eye(4), 10**6)
    rng = np.random.default_rng(13)

    def distance(x):
        return metrics.frechet(x, exact)

    inside = 0
    for seed in range(60):
        found = intervals.bootstrap(distance, rng.normal(size=(150, 4)), repeats=60, seed=seed)
        inside += found.low <= 4 <= found.high
    assert inside >= 49  # of 57 expected: four binomial errors, and a little for 60 repeats
    pairs = np.stack([np.arange(30), np.arange(30)], axis=1)
    assert intervals.bootstrap(lambda z: (z[:, 0] == z[:, 1]).mean(), pairs) == (1, 1, 1)


def test_bootstrap_names_what_it_cannot_resample():
    with pytest.raises(
        ValueError, match=r"sets must be arrays .* of at least one row, got shapes none"
    ):
        intervals.bootstrap(np.mean)
    with pytest.raises(ValueError, match=r"got shapes \[2\], \[0, 3\]"):
        intervals.bootstrap(np.mean, [1, 2], np.ones((0, 3)))
    with pytest.raises(ValueError, match="repeats must be a whole number at least 2, got 1"):
        intervals.bootstrap(np.mean, [1, 2], repeats=1)
    with pytest.raises(ValueError, match=r"level must be in \(0, 1\), got 95"):
        intervals.bootstrap(np.mean, [1, 2], level=95)


@pytest.mark.parametrize("function", [kernels.kid, kernels.block_kid])
def test_kid_names_sets_it_cannot_compare(function):
    with pytest.raises(ValueError, match="x and y must have equally many features, got 2, 3"):
        function(np.ones((50, 2)), np.ones((50, 3)))
    with pytest.raises(ValueError, match=r"y must have shape \[N, …\] with N >= (2|20), got shape"):
        function(np.ones((50, 2)), np.ones((1, 2)))
    with pytest.raises(ValueError, match="x must be finite"):
        function(np.full((50, 2), np.inf), np.ones((50, 2)))


def test_block_kid_needs_two_rows_in_each_block():
    assert kernels.block_kid(np.ones((4, 1)), np.ones((5, 1)), blocks=2) == (0, 0)
    with pytest.raises(ValueError, match=r"x must have shape .* with N >= 4"):
        kernels.block_kid(np.ones((3, 1)), np.ones((5, 1)), blocks=2)
    with pytest.raises(ValueError, match="blocks must be a whole number at least 2, got 1"):
        kernels.block_kid(np.ones((4, 1)), np.ones((5, 1)), blocks=1)


@pytest.mark.parametrize("share, count", [(0.02, 200), (0.4, 50)])
def test_wilson_s_interval_covers(share, count):
    found = [intervals.wilson(k, count) for k in range(count + 1)]
    covered = [low <= share <= high for _, low, high in found]
    assert 0.92 < binom.pmf(np.arange(count + 1), count, share) @ covered < 0.98
    assert intervals.wilson(count, count).high == 1.0 and intervals.wilson(0, count).low == 0.0
    with pytest.raises(ValueError, match="successes"):
        intervals.wilson(3, 2)
