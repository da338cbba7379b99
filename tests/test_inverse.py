"""DPS, ΠGDM and DDNM against exact posteriors and against their formulas in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import PROCESSES
from scipy.stats import multivariate_normal

from diffusion_course import (
    denoiser,
    guidance,
    inverse,
    linear_gaussian,
    operators,
    samplers,
    sampling,
)

rng = np.random.default_rng(192)
KEY = jax.random.key(192)
o = PROCESSES["vp_cosine"]  # without signal at t = 1
p = o.process
ROWS = rng.normal(size=(2, 3))
A = operators.matrix(ROWS)
MEAN, STD, SIGMA_Y = np.array([0.6, -0.3, 0.2]), 0.7, 0.35
Y = np.array([[0.9, -0.5]])
gaussian = denoiser.gaussian_mixture(p, MEAN[None], [STD], [1.0])
exact = linear_gaussian.posterior(
    p, MEAN[None], STD**2 * np.eye(3)[None], [1.0], A, Y[0], SIGMA_Y
).posterior
x = jnp.asarray(rng.normal(0.2, 1.1, (6, 3)), jnp.float32)
t = np.float32([0.02, 0.2, 0.45, 0.6, 0.9, 1.0])


def linear(x, t):
    """A denoiser whose Jacobian is a constant, and not symmetric."""
    return x @ LINEAR + 0.3


LINEAR = np.float32(rng.normal(size=(3, 3)))


# ------------------------------------------------------------------------------------- ΠGDM


def test_pigdm_is_the_exact_posterior_denoiser_for_a_round_gaussian():
    D = inverse.pigdm(gaussian.denoise, p, A, Y, SIGMA_Y, data_std=STD)
    wanted = exact.denoise(x, t)
    # At t = .02 the factor sigma²/alpha and the Jacobian undo each other.
    np.testing.assert_allclose(jax.jit(D)(x, t), wanted, rtol=1e-4, atol=1e-5)
    assert np.abs(wanted - gaussian.denoise(x, t))[1:].max(axis=1).min() > 0.1
    # Without noise it is the limit of less and less of it.
    none = inverse.pigdm(gaussian.denoise, p, A, Y, 0.0, data_std=STD)
    little = inverse.pigdm(gaussian.denoise, p, A, Y, 1e-4, data_std=STD)
    np.testing.assert_allclose(none(x, t), little(x, t), atol=1e-4)


def test_a_sampler_with_pigdm_draws_from_the_posterior_of_a_round_gaussian():
    D = inverse.pigdm(gaussian.denoise, p, A, Y, SIGMA_Y, data_std=STD)
    n = 4000
    start = sampling.start_noise(p, KEY, (n, 3))
    draws = jax.jit(lambda x: sampling.sample(samplers.ddim(p), D, x, sampling.uniform(60), KEY)[0])
    x0 = np.float64(draws(start))
    # Four standard errors, and as much again for 60 steps.
    error = 8 * np.sqrt(np.diag(exact.covariance()).max() / n)
    np.testing.assert_allclose(x0.mean(axis=0), exact.mean(), atol=error)
    np.testing.assert_allclose(np.cov(x0.T), exact.covariance(), atol=error)


def test_pigdm_follows_its_formula_with_any_denoiser():
    D = inverse.pigdm(linear, p, A, Y, SIGMA_Y, data_std=1.3)
    found = D(x[:4], t[:4])
    alpha, sigma = o.alpha(np.float64(t)), o.sigma(np.float64(t))
    for i in range(4):
        x0 = np.float64(x[i]) @ LINEAR + 0.3
        variance = 1.3**2 * sigma[i] ** 2 / (1.3**2 * alpha[i] ** 2 + sigma[i] ** 2)
        spread = variance * ROWS @ ROWS.T + SIGMA_Y**2 * np.eye(2)
        score = LINEAR @ ROWS.T @ np.linalg.solve(spread, Y[0] - ROWS @ x0)
        np.testing.assert_allclose(found[i], x0 + sigma[i] ** 2 / alpha[i] * score, rtol=1e-4)


# -------------------------------------------------------------------------------------- DPS


def test_dps_adds_the_slope_of_the_likelihood_at_the_estimate():
    found = inverse.dps(linear, p, A, Y, SIGMA_Y)(x, t)
    alpha, sigma = o.alpha(np.float64(t)), o.sigma(np.float64(t))
    for i in range(5):

        def log_p(x):
            apart = Y[0] - ROWS @ (x @ LINEAR + 0.3)
            return multivariate_normal.logpdf(apart, cov=SIGMA_Y**2 * np.eye(2))

        here, h = np.float64(x[i]), 1e-4  # of a quadratic, central differences are exact
        slope = [(log_p(here + h * e) - log_p(here - h * e)) / (2 * h) for e in np.eye(3)]
        wanted = here @ LINEAR + 0.3 + sigma[i] ** 2 / alpha[i] * np.array(slope)
        np.testing.assert_allclose(found[i], wanted, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found[5], linear(x, t)[5], rtol=1e-6)  # no signal: as it was


def test_dps_pushes_too_hard_by_what_it_takes_for_certain():
    # For a round Gaussian and rows without overlap both pushes are known: they differ by the
    # uncertainty of the estimate, r²·A Aᵀ beside sigma_y².
    A = operators.mask([True, False, True])
    y = np.array([[0.9, 0.0, -0.5]])
    t = np.float32(0.45)
    x0 = gaussian.denoise(x, t)
    dps = inverse.dps(gaussian.denoise, p, A, y, SIGMA_Y)(x, t) - x0
    pigdm = inverse.pigdm(gaussian.denoise, p, A, y, SIGMA_Y, data_std=STD)(x, t) - x0
    alpha, sigma = o.alpha(np.float64(t)), o.sigma(np.float64(t))
    variance = STD**2 * sigma**2 / (STD**2 * alpha**2 + sigma**2)
    np.testing.assert_allclose(dps, pigdm * (variance + SIGMA_Y**2) / SIGMA_Y**2, atol=1e-4)
    assert (np.abs(dps) > 1e-2)[:, [0, 2]].all()


def test_a_dps_step_goes_down_the_norm_of_the_residual():
    sampler = samplers.ddim(p)
    stepped = inverse.dps_steps(sampler, A, Y, step_size=0.3)
    found, _ = stepped.step(linear, x, 0.6, 0.4, KEY, ())
    plain, _ = sampler.step(linear, x, 0.6, 0.4, KEY, ())
    for i in range(6):
        apart = Y[0] - ROWS @ (np.float64(x[i]) @ LINEAR + 0.3)
        slope = -LINEAR @ ROWS.T @ apart / np.linalg.norm(apart)
        np.testing.assert_allclose(found[i], np.float64(plain[i]) - 0.3 * slope, rtol=1e-4)


def test_a_dps_step_stands_still_where_nothing_is_wrong_and_keeps_the_memory():
    sampler = samplers.dpm_solver_pp_2m(p)
    y = A.apply(linear(x, 0.5))
    stepped = inverse.dps_steps(sampler, A, y, step_size=0.3)
    state = stepped.init(x)
    for t, s in ((0.6, 0.4), (0.4, 0.3)):
        found, after = stepped.step(lambda z, t: linear(x + 0 * z, t), x, t, s, KEY, state)
        plain, state = sampler.step(lambda z, t: linear(x, t), x, t, s, KEY, state)
        np.testing.assert_allclose(found, plain, atol=1e-6)
        np.testing.assert_allclose(after[0], state[0])


# ------------------------------------------------------------------------------------- DDNM

PICTURES = {
    "mask": operators.mask(rng.uniform(size=(4, 6, 1)) < 0.5),
    "average": operators.average((4, 6, 1), 2),
    "blur": operators.blur((4, 6, 1), operators.gaussian_kernel(3, 0.6)),
}


@pytest.mark.parametrize("name", PICTURES)
def test_a_sampler_with_ddnm_ends_in_a_picture_that_agrees_with_y(name):
    A = PICTURES[name]
    truth = jnp.asarray(rng.normal(size=(2, *A.shape)), jnp.float32)
    y = operators.measure(A, truth, 0.0, KEY)
    D = inverse.ddnm(lambda x, t: 0.5 * x, A, y)
    start = sampling.start_noise(p, KEY, truth.shape)
    x0, _ = sampling.sample(samplers.ddpm(p), D, start, sampling.uniform(3), KEY)
    np.testing.assert_allclose(A.apply(x0), y, atol=1e-5)
    # What y says nothing about is still the denoiser's.
    rest = (x0 - A.pseudo_inverse(A.apply(x0))).std()
    assert rest > 0.1 if name != "blur" else rest < 1e-4


def test_ddnm_contains_inpainting_and_matching_a_coarse_picture():
    x = jnp.asarray(rng.normal(size=(2, 4, 6, 1)), jnp.float32)

    def D(x, t):
        return jnp.tanh(x)

    seen = np.asarray(PICTURES["mask"].spectrum) > 0
    whole = inverse.ddnm(D, PICTURES["mask"], x)  # pixels of y that the mask hides do not count
    np.testing.assert_allclose(whole(x, 0.5), guidance.inpaint(D, x, seen)(x, 0.5), atol=1e-6)
    coarse = jnp.asarray(rng.normal(size=(1, 2, 3, 1)), jnp.float32)
    found = inverse.ddnm(D, PICTURES["average"], coarse)(x, 0.5)
    np.testing.assert_allclose(found, guidance.match_coarse(D, coarse)(x, 0.5), atol=1e-6)


# ------------------------------------------------------------------------------- likelihood


def test_the_log_likelihood_is_the_gaussian_of_what_is_measured():
    found = inverse.log_likelihood(A, Y, SIGMA_Y)(x)
    wanted = multivariate_normal.logpdf(Y - np.float64(x) @ ROWS.T, cov=SIGMA_Y**2 * np.eye(2))
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    # Of the hidden pixels nothing counts, whatever y holds there.
    mask, y = operators.mask([True, False, True]), np.array([[0.4, 9.0, -0.2]])
    found = inverse.log_likelihood(mask, y, 0.5)(x)
    apart = (y - np.float64(x))[:, [0, 2]]
    wanted = multivariate_normal.logpdf(apart, cov=0.25 * np.eye(2))
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


METHODS = {
    "dps": lambda y: inverse.dps(linear, p, A, y, SIGMA_Y),
    "pigdm": lambda y: inverse.pigdm(linear, p, A, y, SIGMA_Y),
    "ddnm": lambda y: inverse.ddnm(linear, A, y),
}


@pytest.mark.parametrize("name", METHODS)
def test_examples_keep_apart_and_one_measurement_serves_them_all(name):
    make = METHODS[name]
    each = rng.normal(size=(6, 2))
    together = make(each)(x, t)
    np.testing.assert_allclose(make(each[2:3])(x, t)[2], together[2], rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="y must hold one measurement, or one per example, 6; got"):
        make(each[:2])(x, t)
    with pytest.raises(ValueError, match=r"y must have shape \[B, 2\].*got shape \[6, 3\]"):
        make(rng.normal(size=(6, 3)))
    with pytest.raises(ValueError, match="y must be floating-point numbers"):
        make(np.ones((6, 2), int))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: inverse.dps(linear, p, A, Y, 0.0), "sigma_y must be positive"),
        (lambda: inverse.log_likelihood(A, Y, -1.0), "sigma_y must be positive"),
        (lambda: inverse.pigdm(linear, p, A, Y, -0.1), "sigma_y must be in"),
        (lambda: inverse.pigdm(linear, p, A, Y, 0.1, 0.0), "data_std must be positive"),
        (lambda: inverse.dps_steps(samplers.ddim(p), A, Y, -1.0), "step_size must be in"),
        (
            lambda: inverse.ddnm(lambda x, t: x[:, :2], A, Y)(x, 0.5),
            r"D\(x, t\) must have shape \[B, 3\]",
        ),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_one_deviation_is_asked_for():
    y, A = jnp.ones((1, 2)), operators.mask(np.ones(2, bool))
    p = PROCESSES["vp_cosine"].process
    with pytest.raises(ValueError, match="data_std must be one number"):
        inverse.pigdm(lambda x, t: x, p, A, y, 0.1, data_std=np.array([1.0, 2.0]))
