"""The exact posterior of a linear measurement, against sums over a fine grid in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import PROCESSES
from scipy.stats import multivariate_normal

from diffusion_course import denoiser, linear_gaussian, operators

rng = np.random.default_rng(191)
KEY = jax.random.key(191)
o = PROCESSES["vp_linear"]
p = o.process
MEANS = np.array([[0.9, -0.4], [-0.7, 0.5]])
COVARIANCES = np.array([[[0.3, 0.12], [0.12, 0.2]], [[0.15, -0.1], [-0.1, 0.4]]])
WEIGHTS = np.array([1.0, 2.0])
ROW, Y, SIGMA_Y = np.array([[0.8, -0.5]]), np.array([0.35]), 0.4
A = operators.matrix(ROW)
exact = linear_gaussian.posterior(p, MEANS, COVARIANCES, WEIGHTS, A, Y, SIGMA_Y)

# Points of the plane with the prior's and the likelihood's densities. The sum over a grid of steps
# a tenth of a standard deviation is exact to all digits for a Gaussian.
line = np.arange(-5, 5, 0.03)
GRID = np.stack(np.meshgrid(line, line, indexing="ij"), axis=-1).reshape(-1, 2)


def normal64(apart, covariance):
    squared = np.einsum("nd,de,ne->n", apart, np.linalg.inv(covariance), apart)
    return np.exp(-squared / 2) / np.sqrt(np.linalg.det(2 * np.pi * covariance))


PRIOR = sum(
    w * normal64(GRID - m, c) for m, c, w in zip(MEANS, COVARIANCES, WEIGHTS / 3, strict=True)
)
LIKELIHOOD = normal64(Y - GRID @ ROW.T, np.array([[SIGMA_Y**2]]))
JOINT = PRIOR * LIKELIHOOD * 0.03**2


def test_the_posterior_and_the_evidence_are_those_of_a_sum_over_the_plane():
    evidence = JOINT.sum()
    mean = JOINT @ GRID / evidence
    covariance = (JOINT[:, None] * (GRID - mean)).T @ (GRID - mean) / evidence
    # The operator holds .8 in float32.
    assert exact.log_evidence == pytest.approx(np.log(evidence), abs=1e-7)
    np.testing.assert_allclose(exact.posterior.mean(), mean, atol=1e-6)
    np.testing.assert_allclose(exact.posterior.covariance(), covariance, atol=1e-6)


@pytest.mark.parametrize("t", [0.05, 0.4, 0.9])
def test_the_posterior_denoiser_is_that_of_a_sum_over_the_plane(t):
    t = float(np.float32(t))
    x = np.float64(np.float32(rng.normal(0, 1, (4, 2))))
    for density, mixture in (
        (JOINT, exact.posterior),
        (PRIOR, linear_gaussian.full_mixture(p, MEANS, COVARIANCES, WEIGHTS)),
    ):
        noisy = [
            density * normal64(x_i - o.alpha(t) * GRID, o.sigma(t) ** 2 * np.eye(2)) for x_i in x
        ]
        wanted = np.array([w @ GRID / w.sum() for w in noisy])
        # At t = .05 sigma² is .01, and float32 rounds x by 1e-7.
        np.testing.assert_allclose(mixture.denoise(jnp.float32(x), t), wanted, atol=2e-5)
    log_p = np.log([w.sum() * 0.03**2 for w in noisy])
    np.testing.assert_allclose(mixture.log_prob(jnp.float32(x), t), log_p, atol=2e-5)


def test_with_round_components_it_is_the_mixture_of_the_library():
    stds = np.array([0.3, 0.6])
    round_ = denoiser.gaussian_mixture(p, MEANS, stds, WEIGHTS)
    full = linear_gaussian.full_mixture(p, MEANS, stds[:, None, None] ** 2 * np.eye(2), WEIGHTS)
    x, t = jnp.asarray(rng.normal(size=(5, 2)), jnp.float32), jnp.array([0.0, 0.1, 0.4, 0.7, 1.0])
    np.testing.assert_allclose(full.denoise(x, t), round_.denoise(x, t), atol=1e-5)
    np.testing.assert_allclose(full.log_prob(x, t), round_.log_prob(x, t), rtol=1e-5, atol=1e-5)


def test_hidden_pixels_and_repeated_rows_are_no_evidence():
    y = np.array([0.3, 0.0])
    given = (p, MEANS, COVARIANCES, WEIGHTS)
    hidden = linear_gaussian.posterior(*given, operators.mask([True, False]), y, 0.2)
    alone = linear_gaussian.posterior(*given, operators.matrix([[1.0, 0.0]]), y[:1], 0.2)
    assert hidden.log_evidence == pytest.approx(alone.log_evidence)
    np.testing.assert_allclose(hidden.posterior.means, alone.posterior.means, rtol=1e-6)
    # Twice the same measurement of .3 is one with half the variance.
    twice = linear_gaussian.posterior(
        *given, operators.matrix([[1.0, 0.0], [1.0, 0.0]]), [0.3, 0.3], 0.2 * np.sqrt(2)
    )
    np.testing.assert_allclose(
        twice.posterior.covariance(), alone.posterior.covariance(), atol=1e-6
    )


# In the plane the eigenvectors may form a symmetric matrix, and hide a transposed one.
ROOT = rng.normal(size=(3, 3))
SPACE = ROOT @ ROOT.T + 0.1 * np.eye(3)
CENTRE = np.array([0.4, -1.1, 0.3])
solid = linear_gaussian.full_mixture(p, CENTRE[None], SPACE[None], [2.0])


def test_a_gaussian_in_space_has_its_closed_form():
    t = float(np.float32(0.35))
    x = np.float64(np.float32(rng.normal(size=(5, 3))))
    alpha, sigma = o.alpha(t), o.sigma(t)
    noisy = alpha**2 * SPACE + sigma**2 * np.eye(3)
    wanted = CENTRE + (x - alpha * CENTRE) @ np.linalg.solve(noisy, alpha * SPACE)
    np.testing.assert_allclose(solid.denoise(jnp.float32(x), t), wanted, rtol=1e-5, atol=1e-5)
    log_p = multivariate_normal.logpdf(x, alpha * CENTRE, noisy)
    np.testing.assert_allclose(solid.log_prob(jnp.float32(x), t), log_p, rtol=1e-5)
    np.testing.assert_allclose(solid.covariance(), SPACE, rtol=1e-4, atol=1e-5)


def test_draws_have_the_mean_and_the_covariance():
    n = 20000
    for mixture in (solid, exact.posterior):
        x = np.float64(mixture.sample(KEY, n))
        covariance = np.float64(mixture.covariance())
        largest = np.diag(covariance).max()
        error = 4 * np.sqrt(largest / n)  # four standard errors
        np.testing.assert_allclose(x.mean(axis=0), mixture.mean(), atol=error)
        np.testing.assert_allclose(np.cov(x.T), covariance, atol=4 * largest * np.sqrt(2 / n))


def test_a_component_that_cannot_have_made_y_leaves_finite_numbers():
    far = linear_gaussian.posterior(
        p, [[0.0], [100.0]], [[[0.01]], [[0.01]]], [1.0, 1.0], operators.matrix([[1.0]]), [0.1], 0.1
    )
    assert far.posterior.mean() == pytest.approx(0.05)
    assert np.isfinite(far.posterior.log_prob(jnp.zeros((1, 1)), 0.3)).all()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"means": np.ones(2)}, r"means must have shape \[K, D\]"),
        ({"covariances": np.ones((2, 2))}, r"covariances must have shape \[2, 2, 2\]"),
        ({"covariances": COVARIANCES - 1}, "covariances must be symmetric without negative"),
        (
            {"covariances": COVARIANCES + np.array([[0, 0.1], [0, 0]])},
            "an asymmetry of 0.1",
        ),
        ({"covariances": COVARIANCES * np.nan}, "covariances must be in"),
        ({"weights": [1.0]}, r"weights must have shape \[2\]"),
        ({"weights": [1.0, 0.0]}, "weights must be positive"),
        ({"y": [1.0, 2.0]}, r"y must be one measurement of shape \[1\], got shape \[2\]"),
        ({"sigma_y": 0.0}, "sigma_y must be positive"),
        ({"A": operators.matrix([[1.0, 2.0, 3.0]])}, r"means must have shape \[K, 3\]"),
    ],
)
def test_bad_parameters_are_refused(change, message):
    given = {"means": MEANS, "covariances": COVARIANCES, "weights": WEIGHTS}
    given |= {"A": A, "y": Y, "sigma_y": SIGMA_Y} | change
    with pytest.raises(ValueError, match=message):
        linear_gaussian.posterior(p, **given)


def test_a_state_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"x must have shape \[B, 2\], got shape \[4, 3\]"):
        exact.posterior.denoise(jnp.ones((4, 3)), 0.5)
