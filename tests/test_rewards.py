"""The tilted optimum against sums over a grid; the losses against their formulas in float64."""

from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import PROCESSES, posterior64
from scipy.stats import norm

from diffusion_course import linear_gaussian, operators, rewards, samplers, sampling

rng = np.random.default_rng(194)
KEY = jax.random.key(194)
o = PROCESSES["vp_linear"]
p = o.process
MEANS = np.array([[0.9, -0.4], [-0.7, 0.5]])
COVARIANCES = np.array([[[0.3, 0.12], [0.12, 0.2]], [[0.15, -0.1], [-0.1, 0.4]]])
WEIGHTS = np.array([1.0, 2.0])
PRIOR = (p, MEANS, COVARIANCES, WEIGHTS)


# --------------------------------------------------------------------------- the best answer


def test_the_tilted_mixture_is_that_of_a_sum_over_the_plane():
    # The reward falls along one direction and grows along another, slower than the density falls.
    slope, curvature = np.array([0.5, -0.8]), np.array([[0.6, 0.4], [0.4, -1.5]])
    found, log_z = rewards.tilted(*PRIOR, slope, curvature)
    line = np.arange(-8, 8, 0.04)
    x = np.stack(np.meshgrid(line, line, indexing="ij"), axis=-1).reshape(-1, 2)
    density = 0.0
    for m, c, w in zip(MEANS, COVARIANCES, WEIGHTS / 3, strict=True):
        squared = np.einsum("nd,de,ne->n", x - m, np.linalg.inv(c), x - m)
        density = density + w * np.exp(-squared / 2) / np.sqrt(np.linalg.det(2 * np.pi * c))
    density = density * np.exp(x @ slope + np.einsum("nd,de,ne->n", x, curvature, x) / 2) * 0.04**2
    mean = density @ x / density.sum()
    covariance = (density[:, None] * (x - mean)).T @ (x - mean) / density.sum()
    assert log_z == pytest.approx(np.log(density.sum()), abs=1e-6)
    np.testing.assert_allclose(found.mean(), mean, atol=1e-5)
    np.testing.assert_allclose(found.covariance(), covariance, atol=1e-5)


def test_a_measurement_is_a_quadratic_reward():
    A, y, sigma_y = np.array([[0.8, -0.5]]), np.array([0.35]), 0.4
    exact = linear_gaussian.posterior(*PRIOR, operators.matrix(A), y, sigma_y)
    found, log_z = rewards.tilted(*PRIOR, y @ A / sigma_y**2, -A.T @ A / sigma_y**2)
    np.testing.assert_allclose(found.mean(), exact.posterior.mean(), atol=1e-6)
    np.testing.assert_allclose(found.covariance(), exact.posterior.covariance(), atol=1e-6)
    assert log_z + norm.logpdf(y[0], 0, sigma_y) == pytest.approx(exact.log_evidence, abs=1e-6)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"curvature": 3 * np.eye(2)}, "curvature must be below the precision of every component"),
        ({"curvature": [[0.0, 1.0], [0.0, 0.0]]}, "slope must have shape .* symmetric"),
        ({"slope": np.ones(3)}, r"slope must have shape \[2\].* got shapes \[3\] and \[2, 2\]"),
        ({"covariances": np.zeros((2, 2, 2))}, "covariances must have no eigenvalue of 0"),
        ({"weights": [1.0, -1.0]}, "weights must be positive"),
    ],
)
def test_what_has_no_optimum_is_refused(change, message):
    given = {"means": MEANS, "covariances": COVARIANCES, "weights": WEIGHTS}
    given |= {"slope": np.ones(2), "curvature": np.zeros((2, 2))} | change
    with pytest.raises(ValueError, match=message):
        rewards.tilted(p, **given)


# -------------------------------------------------------------------------------- preferences

GOOD = rng.normal(0.4, 1.0, (5, 3))
BAD = rng.normal(-0.3, 1.2, (5, 3))
TIMES = np.float32([0.1, 0.3, 0.5, 0.7, 0.9])


def model(factor):
    return lambda x, t, cond: factor * x + t[:, None] * 0.2


def loss(factor, reference, beta, good=GOOD, bad=BAD):
    return rewards.preference_loss(
        model(factor), model(reference), p, "eps", good, bad, KEY, beta, times=lambda key, n: TIMES
    )


def test_the_preference_loss_is_its_formula_and_log_2_at_the_reference():
    beta = 2.5
    eps = np.float64(jax.random.normal(jax.random.split(KEY)[1], GOOD.shape))
    t = np.float64(TIMES)[:, None]

    def error(factor, x0):
        x_t = o.alpha(t) * x0 + o.sigma(t) * eps
        return ((factor * x_t + 0.2 * t - eps) ** 2).mean(axis=1)

    good = error(0.6, GOOD) - error(0.4, GOOD)
    bad = error(0.6, BAD) - error(0.4, BAD)
    wanted = np.log1p(np.exp(beta * (good - bad))).mean()
    assert loss(0.6, 0.4, beta) == pytest.approx(wanted, rel=1e-5)
    assert loss(0.4, 0.4, beta) == pytest.approx(np.log(2), rel=1e-6)
    # No gradient flows into the reference.
    assert jax.grad(loss, argnums=1)(0.4, 0.4, beta) == 0
    h, slope = 0.01, jax.grad(loss)(0.4, 0.4, beta)
    difference = float(loss(0.4 + h, 0.4, beta) - loss(0.4 - h, 0.4, beta)) / (2 * h)
    assert slope == pytest.approx(difference, rel=0.01)


def test_bad_pairs_are_refused():
    with pytest.raises(ValueError, match="rejected must have the shape of preferred"):
        loss(0.4, 0.4, 1.0, bad=BAD[:, :2])
    with pytest.raises(ValueError, match="beta must be positive"):
        loss(0.4, 0.4, 0.0)


# ---------------------------------------------------------------------------- policy gradient


def test_the_density_of_a_step_is_that_of_the_posterior_of_the_estimate():
    x, x_s = (jnp.asarray(rng.normal(size=(4, 3)), jnp.float32) for _ in range(2))
    t, s = float(np.float32(0.7)), float(np.float32(0.4))
    found = rewards.transition_log_prob(p, lambda x, t: 0.3 * x + 0.2, x, x_s, t, s)
    of_x0, of_x, variance = posterior64(o, t, s)
    mean = of_x0 * (0.3 * np.float64(x) + 0.2) + of_x * np.float64(x)
    wanted = norm.logpdf(np.float64(x_s), mean, np.sqrt(variance)).sum(axis=1)
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
    with pytest.raises(ValueError, match=r"s must be in \(0, t\), got s = 0 and t = 0.5"):
        rewards.transition_log_prob(p, lambda x, t: x, x, x_s, 0.5, 0)
    with pytest.raises(ValueError, match="x_s must have the shape of x"):
        rewards.transition_log_prob(p, lambda x, t: x, x, x_s[:1], 0.5, 0.2)


def test_the_divergence_of_a_step_is_the_mean_of_its_log_ratio():
    # With one variance the log-ratio is linear in x_s, so its mean is its value at the mean.
    x = jnp.asarray(rng.normal(size=(4, 3)), jnp.float32)
    t, s = float(np.float32(0.7)), float(np.float32(0.4))

    def ours(x, t):
        return 0.3 * x + 0.2

    def theirs(x, t):
        return x**2 - 0.1

    of_x0, of_x, variance = posterior64(o, t, s)
    mean = jnp.asarray(of_x0 * ours(x, t) + of_x * x)
    both = (rewards.transition_log_prob(p, D, x, mean, t, s) for D in (ours, theirs))
    found = rewards.transition_kl(p, ours, theirs, x, t, s)
    np.testing.assert_allclose(found, np.subtract(*both), rtol=1e-4)
    apart = np.float64(ours(x, t)) - np.float64(theirs(x, t))
    np.testing.assert_allclose(found, (of_x0**2 * apart**2).sum(axis=1) / (2 * variance), rtol=1e-4)
    assert rewards.transition_kl(p, ours, ours, x, t, s).tolist() == [0.0] * 4
    with pytest.raises(ValueError, match=r"s must be in \(0, t\), got s = 0.6 and t = 0.5"):
        rewards.transition_kl(p, ours, theirs, x, 0.5, 0.6)


@pytest.mark.parametrize("n", [1, 2, 9])
def test_the_best_of_n_is_as_far_away_as_the_largest_of_n_ranks(n):
    u = (np.arange(200_000) + 0.5) / 200_000  # the midpoint rule
    log_density = np.log(n) + (n - 1) * np.log(u)
    wanted = np.mean(np.exp(log_density) * log_density)
    assert rewards.best_of_n_kl(n) == pytest.approx(wanted, abs=1e-6)


def test_best_of_none_is_refused():
    with pytest.raises(ValueError, match="n must be a whole number at least 1, got 0"):
        rewards.best_of_n_kl(0)


def test_advantages_have_mean_zero_and_deviation_one():
    values = rng.normal(3.0, 2.0, 7)
    found = rewards.group_advantages(values)
    np.testing.assert_allclose(found, (values - values.mean()) / values.std(), rtol=1e-5)
    np.testing.assert_array_equal(rewards.group_advantages(jnp.full(7, 0.1)), np.zeros(7))
    with pytest.raises(ValueError, match=r"rewards must have shape \[B\]"):
        rewards.group_advantages(np.ones((2, 3)))


def test_the_policy_loss_is_clipped_only_where_the_model_went_far_enough():
    old = np.zeros((2, 3), np.float32)
    new = np.log(np.float32([[1.05, 1.5, 0.5], [0.95, 0.5, 1.5]]))
    advantages = np.float32([2.0, 1.0, -3.0])
    found, slope = jax.value_and_grad(rewards.policy_loss)(new, old, advantages, 0.2)
    # min(rho·a, clip(rho)·a): wanted and beyond 1.2 counts 1.2; unwanted and below .8 counts .8.
    each = np.array([[2.1, 1.2, -2.4], [1.9, 0.5, -4.5]])
    assert found == pytest.approx(-each.mean(), rel=1e-5)
    # Only the two that went far enough the right way are left alone.
    pulled = np.array([[2.1, 0, 0], [1.9, 0.5, -4.5]])
    np.testing.assert_allclose(slope, -pulled / 6, rtol=1e-5)
    assert (jax.grad(rewards.policy_loss, argnums=1)(new, old, advantages, 0.2) == 0).all()
    for change, message in (
        ((new, old[:1], advantages, 0.2), "log_prob_old must have the shape of log_prob"),
        ((new, old, advantages[:2], 0.2), "advantages must broadcast to the shape of log_prob"),
        ((new, old, advantages, 0.0), "clip must be positive"),
    ):
        with pytest.raises(ValueError, match=message):
            rewards.policy_loss(*change)


# A chain in which all is Gaussian: D is linear, so each state's mean and variance are known. The
# last step adds no noise, so its D does not learn.
CLOCK = [0.9, 0.6, 0.35, 0.15, 0.0]
THETA = jnp.array([0.4, -0.3])


def linear_denoiser(theta, x, t):
    return jnp.where(t > 0.2, theta[0] * x + theta[1], 0.5 * x + 0.1)


def expected_reward(theta):
    """E[−‖x_0 − 1‖²] of two coordinates, from the mean and the variance of one of them."""
    mean, variance = 0.0, 1.0
    for t, s in pairwise(CLOCK[:-1]):
        of_x0, of_x, added = posterior64(o, t, s)
        slope = of_x0 * theta[0] + of_x
        mean, variance = slope * mean + of_x0 * theta[1], slope**2 * variance + added
    mean, variance = 0.5 * mean + 0.1, 0.5**2 * variance
    return -2 * ((mean - 1) ** 2 + variance)


def log_prob_of_moves(theta, path):
    """Of each step but the last: [3, B]."""
    D = partial(linear_denoiser, theta)
    steps = zip(path[:-2], path[1:-1], CLOCK[:-2], CLOCK[1:-1], strict=True)
    return jnp.stack([rewards.transition_log_prob(p, D, *step) for step in steps])


@pytest.fixture(scope="module")
def moves():
    """20,000 paths of the chain at THETA, their rewards, and the log-densities of their steps."""

    @jax.jit
    def draw(x):
        D = partial(linear_denoiser, THETA)
        rest = sampling.sample(samplers.ddpm(p), D, x, np.array(CLOCK), jax.random.key(7))[1]
        path = jnp.concatenate([x[None], rest])
        return path, log_prob_of_moves(THETA, path)

    path, old = draw(jax.random.normal(KEY, (20_000, 2)))
    return path, -((path[-1] - 1) ** 2).sum(axis=1), old


def test_the_policy_gradient_is_that_of_the_expected_reward(moves):
    path, earned, old = moves
    n, steps, h = len(earned), len(CLOCK) - 2, 1e-5
    here, axes = np.float64(THETA), h * np.eye(2)
    exact = np.array([expected_reward(here + d) - expected_reward(here - d) for d in axes]) / h / 2
    error = float(earned.std()) / np.sqrt(n)
    assert float(earned.mean()) == pytest.approx(expected_reward(here), abs=4 * error)

    @jax.jit
    def slopes(theta):
        def loss(theta):
            advantages = rewards.group_advantages(earned)
            return rewards.policy_loss(log_prob_of_moves(theta, path), old, advantages, 0.2)

        scores = jax.jacfwd(lambda theta: log_prob_of_moves(theta, path).sum(axis=0))(theta)
        return jax.grad(loss)(theta), scores

    found, scores = (np.float64(slope) for slope in slopes(THETA))
    # The loss is a mean over the steps of advantages in units of the rewards' deviation.
    found = -found * steps * float(earned.std())
    each = scores * (np.float64(earned) - np.float64(earned).mean())[:, None]
    np.testing.assert_allclose(found, each.mean(axis=0), rtol=1e-3)
    error = each.std(axis=0) / np.sqrt(n)
    assert (error < 0.05 * np.abs(exact)).all()  # so that a slip of a fifth would show
    assert (np.abs(found - exact) < 4 * error).all()


def test_at_ratio_one_the_clip_changes_neither_loss_nor_gradient(moves):
    path, earned, old = moves
    path, earned, old = path[:, :50], earned[:50], old[:, :50]

    def losses(theta):
        """Clipped, without the clip, and the score-function form."""
        log_prob, advantages = log_prob_of_moves(theta, path), rewards.group_advantages(earned)
        clipped = rewards.policy_loss(log_prob, old, advantages, 1e-4)
        unclipped = -(jnp.exp(log_prob - old) * advantages).mean()
        return jnp.stack([clipped, unclipped, -(log_prob * advantages).mean()])

    both = jax.jit(lambda theta: (losses(theta), jax.jacfwd(losses)(theta)))
    values, slopes = both(THETA)
    assert np.abs(slopes[0]).min() > 0.01
    np.testing.assert_allclose(slopes[1], slopes[0], rtol=1e-4)
    np.testing.assert_allclose(slopes[2], slopes[0], rtol=1e-4)
    # The advantages have the mean 0, and so have the losses.
    np.testing.assert_allclose(values[:2], 0, atol=1e-5)
    # Away from there the clip of 1e-4 takes the gain of what went too far the right way.
    farther = both(THETA - 0.2 * slopes[0])[0]
    assert farther[1] < -0.001 and farther[0] > farther[1] + 0.001


def test_a_tenfold_or_shifted_reward_gives_the_same_advantages():
    values = rng.normal(size=9)
    found = np.float64(rewards.group_advantages(values))
    np.testing.assert_allclose(rewards.group_advantages(10 * values - 3), found, atol=1e-5)
    np.testing.assert_allclose(rewards.group_advantages(-values), -found, atol=1e-6)
    # The deviation is that of n, not of n − 1.
    assert np.mean(found**2) == pytest.approx(1, rel=1e-5)
    assert found.mean() == pytest.approx(0, abs=1e-6)
