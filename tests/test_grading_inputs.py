"""The exact denoisers that exercises hand to a student's function."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_course.grading import wire
from diffusion_course.grading.answers.chapter_04 import posterior_variance
from diffusion_course.grading.inputs import FUNCTIONS, GaussianDenoiser, TwoGroupDenoiser

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


@each_denoiser
def test_a_denoiser_reaches_the_sandbox_as_an_equal_one(denoise):
    assert type(denoise).__name__ in FUNCTIONS
    assert wire.unpack(wire.pack(denoise)) == denoise
