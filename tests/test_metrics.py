"""Metrics against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion_course.evaluation import distances, metrics

RNG = np.random.default_rng(5)


def with_moments(n, mean, cov):
    """n points whose sample mean and covariance are exactly these."""
    x = RNG.normal(size=(n, len(mean)))
    x -= x.mean(0)
    white = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T))).T
    return white @ np.linalg.cholesky(cov).T + mean


def test_frechet_is_the_closed_form_for_commuting_covariances():
    # With one set of axes the distance is ‖Δm‖² + Σ (√λ − √μ)².
    axes = np.linalg.qr(RNG.normal(size=(3, 3)))[0]
    first, second = np.array([0.3, 2.0, 5.0]), np.array([1.5, 0.2, 7.0])
    shift = np.array([0.4, -1.0, 2.0])
    x = with_moments(400, np.zeros(3), axes @ np.diag(first) @ axes.T)
    y = with_moments(300, shift, axes @ np.diag(second) @ axes.T)
    expected = (shift**2).sum() + ((first**0.5 - second**0.5) ** 2).sum()
    assert metrics.frechet(x, y) == pytest.approx(expected, rel=1e-9)


def test_frechet_agrees_with_the_matrix_root_when_covariances_do_not_commute():
    import scipy.linalg

    a, b = (m @ m.T + 0.1 * np.eye(4) for m in RNG.normal(size=(2, 4, 4)))
    x, y = with_moments(50, np.zeros(4), a), with_moments(60, np.ones(4), b)
    expected = 4 + np.trace(a + b - 2 * scipy.linalg.sqrtm(a @ b).real)
    assert metrics.frechet(x, y) == pytest.approx(expected, rel=1e-8)


def test_frechet_is_symmetric_zero_on_itself_and_survives_constant_features():
    x, y = RNG.normal(size=(30, 5)), RNG.normal(1, 2, (40, 5))
    x[:, 2] = y[:, 2] = 0.7
    assert metrics.frechet(x, x) == pytest.approx(0, abs=1e-6)  # root of float64 rounding
    # The constant feature has eigenvalues of float64 rounding, 1e-16, whose roots are 1e-8.
    assert metrics.frechet(x, y) == pytest.approx(metrics.frechet(y, x), rel=1e-7)


def test_frechet_of_moments_is_that_of_the_features():
    x, y = RNG.normal(size=(30, 5)), RNG.normal(1, 2, (40, 5))
    expected = metrics.frechet(x, y)
    assert metrics.frechet(x, metrics.moments(y)) == expected
    assert metrics.frechet(metrics.moments(x), y) == expected
    assert metrics.moments(y).count == 40
    with pytest.raises(ValueError, match="equally many features, got 4, 5"):
        metrics.frechet(x[:, :4], metrics.moments(y))


def test_mmd_agrees_with_the_double_sum():
    x, y = RNG.normal(size=(7, 2)), RNG.normal(0.5, 1.3, (9, 2))

    def k(a, b):
        return np.exp(-((a - b) ** 2).sum() / (2 * 0.8**2))

    within = sum(
        np.mean([k(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j])
        for z in (x, y)
    )
    expected = within - 2 * np.mean([k(a, b) for a in x for b in y])
    assert metrics.mmd(x, y, bandwidth=0.8) == pytest.approx(expected, rel=1e-9)


def test_mmd_is_unbiased_for_equal_distributions_and_sees_a_shift():
    values = [metrics.mmd(RNG.normal(size=(60, 2)), RNG.normal(size=(50, 2))) for _ in range(60)]
    # 4 standard errors of the mean of 60 independent estimates.
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(60)
    assert min(values) < 0  # an unbiased estimate of 0 falls below it too
    assert metrics.mmd(RNG.normal(size=(60, 2)), RNG.normal(1, 1, (50, 2))) > max(values)


def test_nearest_is_the_brute_force_answer_and_can_leave_itself_out():
    x, reference = RNG.normal(size=(12, 3, 2)), RNG.normal(size=(20, 3, 2))
    index, distance = metrics.nearest(x, reference)
    brute = np.sqrt(((x[:, None] - reference[None]) ** 2).sum((2, 3)))
    np.testing.assert_array_equal(index, brute.argmin(1))
    np.testing.assert_allclose(distance, brute.min(1), rtol=1e-6)
    assert (metrics.nearest(x, x)[0] == np.arange(12)).all()
    assert (metrics.nearest(x, x, exclude_self=True)[0] != np.arange(12)).all()


def test_nearest_works_through_more_rows_than_it_keeps_in_memory():
    x = RNG.normal(size=(2 * distances.ROWS + 7, 3))
    index, distance = metrics.nearest(x, x[::-1])
    np.testing.assert_array_equal(index, np.arange(len(x))[::-1])
    np.testing.assert_allclose(distance, 0, atol=1e-6)  # root of float64 cancellation
    assert (metrics.nearest(x, x, exclude_self=True)[0] != np.arange(len(x))).all()


def test_a_hole_in_one_class_shows_per_class_and_hides_in_the_mean():
    labels = np.repeat([0, 1, 3], [50, 48, 2])
    predicted = np.where(labels == 3, 0, labels)
    assert metrics.class_accuracy(predicted, labels) == 0.98
    np.testing.assert_array_equal(
        metrics.per_class_accuracy(predicted, labels, 4), [1, 1, np.nan, 0]
    )


def test_loss_by_time_is_the_mean_of_the_error_at_each_time():
    x0 = jnp.arange(6.0).reshape(3, 2)

    def error(model, x0, eps, t, cond):
        return model * t**2 + 0 * eps.sum(1) + cond

    times = [0.1, 0.5, 0.9]
    found = metrics.loss_by_time(error, 1.0, x0, x0[:, 0], times, jax.random.key(0), repeats=3)
    np.testing.assert_allclose(found, np.square(times) + 2.0, rtol=1e-5)


def test_loss_by_time_uses_the_same_noise_at_every_time_and_fresh_noise_per_repeat():
    def error(model, x0, eps, t, cond):
        return eps[:, 0]

    key, x0 = jax.random.key(1), jnp.zeros((50, 2))
    found = metrics.loss_by_time(error, None, x0, None, [0.2, 0.8], key, repeats=4)
    assert found[0] == found[1] != 0
    assert found[0] != metrics.loss_by_time(error, None, x0, None, [0.2], key, repeats=1)[0]


@pytest.mark.parametrize("function", [metrics.frechet, metrics.mmd, metrics.nearest])
def test_sets_that_cannot_be_compared_are_named(function):
    good = np.ones((4, 3))
    with pytest.raises(ValueError, match="x and y must have equally many features, got 2, 3"):
        function(np.ones((5, 2)), good)
    with pytest.raises(
        ValueError, match=r"y must have shape \[N, …\] with N >= \d, got shape \[[01],"
    ):
        function(good, good[: 0 if function is metrics.nearest else 1])
    with pytest.raises(ValueError, match="x must be finite"):
        function(np.full((4, 3), np.nan), good)


@given(st.floats(max_value=0, allow_nan=False))
def test_a_bandwidth_that_is_not_positive_is_named(bandwidth):
    with pytest.raises(ValueError, match="bandwidth must be positive"):
        metrics.mmd(np.eye(3), np.eye(3), bandwidth=bandwidth)


@pytest.mark.parametrize(("predicted", "labels"), [([1, 2], [1]), ([], []), ([[1]], [[1]])])
def test_accuracy_needs_two_equal_lists(predicted, labels):
    with pytest.raises(ValueError, match=r"predicted and labels must both have shape \[N\]"):
        metrics.class_accuracy(predicted, labels)


def test_loss_by_time_compiles_once_for_several_models():
    traces = []

    def error(model, x0, eps, t, cond):
        traces.append(1)
        return model * t

    for model in (1.0, 2.0, 3.0):
        found = metrics.loss_by_time(error, model, np.ones((4, 2)), None, [0.5], jax.random.key(0))
        assert found[0] == pytest.approx(0.5 * model)
    assert len(traces) == 1


def test_labels_out_of_range_are_named():
    with pytest.raises(ValueError, match=r"labels must be in 0 … 9, got 1 … 12"):
        metrics.per_class_accuracy([1, 2], [1, 12], 10)


def test_coverage_is_that_of_a_loop_over_the_real_examples():
    rng = np.random.default_rng(3)
    x, real = rng.normal(size=(13, 3)) * 2, rng.normal(size=(600, 3)) + 0.3  # more than one block
    for k in (1, 4):
        covered = 0
        for i, point in enumerate(real):
            others = np.sort(np.linalg.norm(np.delete(real, i, axis=0) - point, axis=1))
            covered += np.linalg.norm(x - point, axis=1).min() <= others[k - 1]
        assert 0 < covered < 600
        assert metrics.coverage(x, real, k=k) == covered / 600


def test_coverage_of_equal_distributions_is_what_theory_says_and_falls_with_a_missing_mode():
    rng = np.random.default_rng(4)
    n, k = 400, 3
    found = [metrics.coverage(*rng.normal(size=(2, n, 2)), k=k) for _ in range(20)]
    expected = 1 - np.prod([(n - i) / (2 * n - i) for i in range(1, k + 1)])
    # 20 repeats with standard deviation .02 each: four standard errors.
    assert np.mean(found) == pytest.approx(expected, abs=0.02)
    place = np.where(np.arange(n) % 4 == 0, 5, 0)[:, None]  # a quarter lies elsewhere
    modes, both = rng.normal(size=(2, n, 2)) * 0.1 + place
    assert metrics.coverage(rng.normal(size=(n, 2)) * 0.1, modes) < 0.76
    assert metrics.coverage(both, modes) > 0.9


@pytest.mark.parametrize(
    ("x", "real", "k", "message"),
    [
        (np.zeros((2, 3)), np.zeros((5, 2)), 1, "equally many features, got 3, 2"),
        (np.zeros((2, 3)), np.zeros((5, 3)), 5, "real must have more than k = 5 rows, got 5"),
        (np.zeros((2, 3)), np.zeros((5, 3)), 0, "k must be a whole number at least 1"),
    ],
)
def test_coverage_names_what_it_cannot_use(x, real, k, message):
    with pytest.raises(ValueError, match=message):
        metrics.coverage(x, real, k=k)
