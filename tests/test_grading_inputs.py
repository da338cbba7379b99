"""The exact functions that exercises hand to a student's function."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_course.grading import wire
from diffusion_course.grading.answers.chapter_04 import posterior_variance
from diffusion_course.grading.inputs import (
    FUNCTIONS,
    GaussianDenoiser,
    GaussianMeanVelocity,
    SharedGaussianDenoiser,
    TwoGroupDenoiser,
)

DENOISERS = {  # with the centres of their data
    GaussianDenoiser(0.7, 1.3): (0.7,),
    TwoGroupDenoiser(-2.1, 1.4, 0.5): (-2.1, 1.4),
}
X = np.array([-3.0, -0.4, 0.1, 0.9, 2.6])
ALPHA, SIGMA = 0.8, 0.9

each_denoiser = pytest.mark.parametrize("denoise", DENOISERS, ids=repr)


def posterior(denoise):
    """Mean and variance of x0 given X, by summing Bayes' rule over a grid."""
    x0 = np.linspace(-12, 12, 24_001)  # far beyond the data, in steps far below their std
    prior = sum(np.exp(-((x0 - m) ** 2) / (2 * denoise.std**2)) for m in DENOISERS[denoise])
    weights = prior * np.exp(-((X[:, None] - ALPHA * x0) ** 2) / (2 * SIGMA**2))
    weights /= weights.sum(axis=1, keepdims=True)
    mean = weights @ x0
    return mean, weights @ x0**2 - mean**2


@each_denoiser
def test_a_denoiser_returns_the_posterior_mean(denoise):
    np.testing.assert_allclose(denoise(X, ALPHA, SIGMA), posterior(denoise)[0], rtol=1e-9)
    in_jax = denoise(jnp.asarray(X, jnp.float32), ALPHA, SIGMA)
    np.testing.assert_allclose(in_jax, posterior(denoise)[0], rtol=1e-5, atol=1e-6)


@each_denoiser
def test_the_slope_of_a_denoiser_is_the_posterior_variance(denoise):
    wanted = posterior(denoise)[1]
    np.testing.assert_allclose(posterior_variance(denoise, X, ALPHA, SIGMA), wanted, rtol=1e-9)
    slope = jax.grad(lambda x: denoise(x, ALPHA, SIGMA).sum())(jnp.asarray(X, jnp.float32))
    np.testing.assert_allclose(SIGMA**2 / ALPHA * slope, wanted, rtol=1e-4)


def test_a_shared_denoiser_returns_the_posterior_mean_of_grids():
    x = np.linspace(-2.0, 3.0, 24).reshape(2, 2, 3, 2) ** 3
    rows = x.reshape(2, 12)
    covariance = 1.3**2 * np.eye(12) + 0.6**2  # of the values of a grid
    seen = ALPHA**2 * covariance + SIGMA**2 * np.eye(12)
    wanted = 0.7 + np.linalg.solve(seen, (rows - ALPHA * 0.7).T).T @ (ALPHA * covariance)
    np.testing.assert_allclose(SHARED(x, ALPHA, SIGMA).reshape(2, 12), wanted, rtol=1e-9)
    np.testing.assert_allclose(SHARED(x[1], ALPHA, SIGMA).ravel(), wanted[1], rtol=1e-9)
    in_jax = SHARED(jnp.asarray(x, jnp.float32), ALPHA, SIGMA).reshape(2, 12)
    np.testing.assert_allclose(in_jax, wanted, rtol=1e-5, atol=1e-5)


SHARED = SharedGaussianDenoiser(0.7, 1.3, 0.6)
VELOCITY = GaussianMeanVelocity(0.7, 1.3)


@pytest.mark.parametrize("function", [*DENOISERS, SHARED, VELOCITY], ids=repr)
def test_a_function_reaches_the_sandbox_as_an_equal_one(function):
    assert type(function).__name__ in FUNCTIONS
    assert wire.unpack(wire.pack(function)) == function


def test_a_mean_velocity_is_that_of_the_denoisers_flow():
    x, denoise = X[:, None] * np.array([1.0, -1.4]), GaussianDenoiser(0.7, 1.3)
    t, s = np.array([1.0, 0.9, 0.7, 0.5, 0.6]), np.array([0.0, 0.2, 0.6, 0.5, 0.1])
    # Runge and Kutta's fourth order on dx/dt = (x − D)/t, from the later times on.
    state, steps = x, 400
    times = np.linspace(t, s, steps + 1)[..., None]

    def slope(x, t):  # at t = 0 the mean of x1 is 0: none of the noise is seen
        return (x - denoise(x, 1 - t, t)) / np.where(t, t, 1) - (t == 0) * x

    for now, then in itertools.pairwise(times):
        h, middle = then - now, (now + then) / 2
        a = slope(state, now)
        b = slope(state + h / 2 * a, middle)
        c = slope(state + h / 2 * b, middle)
        state = state + h / 6 * (a + 2 * b + 2 * c + slope(state + h * c, then))
    landed = x - (t - s)[:, None] * VELOCITY(x, t, s)
    np.testing.assert_allclose(landed, state, rtol=1e-8)


def test_a_mean_velocity_over_no_time_is_the_velocity():
    for t in (0.3, 1.0):
        wanted = (X - GaussianDenoiser(0.7, 1.3)(X, 1 - t, t)) / t
        np.testing.assert_allclose(VELOCITY(X, t, t), wanted, rtol=1e-12)
    in_jax = VELOCITY(jnp.asarray(X, jnp.float32), jnp.full(5, 0.3), 0.1)
    np.testing.assert_allclose(in_jax, VELOCITY(X, 0.3, 0.1), rtol=1e-5)
