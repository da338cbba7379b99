"""The design space of EDM: its demands written out in float64, and exact denoisers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import GAUSSIAN, PROCESSES, as_column, within_standard_errors
from scipy.stats import norm

from diffusion_course import denoiser, edm, parameterization, process, samplers, sampling
from diffusion_course.denoiser import gaussian_mixture

rng = np.random.default_rng(92)


# ------------------------------------------------------------------------------- preconditioning


@pytest.mark.parametrize("sigma_data", [0.3, 1.7])
def test_the_coefficients_meet_the_demands_that_they_follow_from(sigma_data):
    sigma = np.array([0.002, 0.4, 1.1, 80.0])
    c = edm.preconditioning(sigma, sigma_data)
    skip, out, scale, noise = (np.asarray(part, np.float64) for part in c)
    # Unit mean square in, for x0 and eps that are uncorrelated.
    np.testing.assert_allclose(scale**2 * (sigma_data**2 + sigma**2), 1, rtol=1e-6)

    # The target (x0 − skip·x)/out = ((1 − skip)·x0 − skip·sigma·eps)/out has unit mean square.
    def target(skip):
        return (1 - skip) ** 2 * sigma_data**2 + skip**2 * sigma**2

    # The smallest levels leave 1 − skip a few digits of float32.
    np.testing.assert_allclose(target(skip) / out**2, 1, rtol=2e-2)
    # And out is the least possible: with any other skip the target would be larger.
    for other in (skip + 0.01, skip - 0.01, 0 * skip, 0 * skip + 1):
        assert (target(other) >= out**2 * (1 - 1e-4)).all()
    np.testing.assert_allclose(noise, np.log(sigma) / 4, rtol=1e-6)


def test_they_are_the_row_of_kind_edm():
    p = process.edm(80.0, sigma_data=0.6)
    t = np.array([0.3, 0.55, 0.9], np.float32)
    c = edm.preconditioning(p.sigma(t), 0.6)
    x0, eps = (jnp.asarray(rng.normal(size=(3, 5)), jnp.float32) for _ in range(2))
    x = process.add_noise(p, x0, eps, t)
    wanted = (x0 - c.skip[:, None] * x) / c.out[:, None]
    got = parameterization.target("edm", p, x0, eps, t)
    # The target of least noise is a difference of nearly equal numbers.
    np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-3)
    seen = []
    denoiser.network_output(lambda x, t, cond: seen.append(x) or x, p, "edm", x, t)
    np.testing.assert_allclose(seen[0], c.scale[:, None] * x, rtol=1e-5)


# --------------------------------------------------------------------------------- noise levels


@pytest.mark.parametrize("name", ["edm", "vp_cosine", "linear chain", "rectified_flow"])
def test_the_levels_are_log_normal_within_the_process(name):
    p, levels = PROCESSES[name].process, PROCESSES[name]
    t = np.asarray(edm.log_normal_times(p, -0.7, 0.9)(jax.random.key(3), 40_000), np.float64)
    log_sigma = np.log(levels.sigma(t) / levels.alpha(t))
    # Up to a level that every one of them reaches. 40,000 draws: the largest distance of two
    # distribution functions exceeds 1.95/sqrt(n) = .0098 once in a thousand times. A chain's
    # levels between its steps are the library's own.
    inside = np.linspace(-3.2, 1.2, 50)
    share = (log_sigma[:, None] <= inside).mean(0)
    assert np.abs(share - norm.cdf(inside, -0.7, 0.9)).max() < 0.01
    assert (t > 0).all() and (t < 1).all()


def test_levels_beyond_the_process_are_its_last():
    p = process.edm(1.0)
    t = np.asarray(edm.log_normal_times(p, 4.0, 0.1)(jax.random.key(0), 100))
    np.testing.assert_allclose(t, 1, atol=2e-5)


# ----------------------------------------------------------------------------------------- churn


def test_the_share_is_capped():
    assert edm.churn_share(8.0, 40) == 0.2
    assert edm.churn_share(80.0, 40) == np.sqrt(2) - 1
    assert edm.churn_share(0.0, 3) == 0.0


@pytest.mark.parametrize("name", ["edm", "vp_linear", "rectified_flow", "sub_vp"])
def test_a_churned_step_starts_from_the_marginal_of_its_higher_level(name):
    o, gamma = PROCESSES[name], 0.3
    seen = []

    def D(x, t):
        seen.append((np.asarray(x, np.float64), float(t)))
        return 0 * x

    t = 0.5
    x0 = 0.7 + 0.5 * rng.normal(size=40_000)
    x = as_column(o.alpha(t) * x0 + o.sigma(t) * rng.normal(size=40_000))
    step = edm.churn(samplers.ddim(o.process), o.process, gamma).step
    step(D, x, jnp.float32(t), jnp.float32(0.4), jax.random.key(1), ())
    (x_seen, higher), = seen  # fmt: skip
    ratio = [o.sigma(u) / o.alpha(u) for u in (higher, t)]
    np.testing.assert_allclose(ratio[0] / ratio[1], 1 + gamma, rtol=1e-4)
    mean, variance = o.alpha(higher) * 0.7, (o.alpha(higher) * 0.5) ** 2 + o.sigma(higher) ** 2
    within_standard_errors(x_seen, mean, np.sqrt(variance))


@pytest.mark.parametrize("name", ["edm", "vp_cosine"])
def test_churned_samples_have_the_moments_of_the_data(name):
    p = PROCESSES[name].process
    D = gaussian_mixture(p, GAUSSIAN[0][:, None], *GAUSSIAN[1:]).denoise
    times = sampling.karras(p, 160, sigma_max=60.0)

    @jax.jit
    def samples(gamma, key):
        x = sampling.start_noise(p, key, (20_000, 1))
        sampler = edm.churn(samplers.heun(p), p, gamma)
        return sampling.sample(sampler, D, x, times, jax.random.key(5))[0]

    churned, plain = samples(10 / 160, jax.random.key(6)), samples(0.0, jax.random.key(6))
    # Heun's own error on these steps is .002 with churn: less than a standard error.
    within_standard_errors(churned, 0.7, 0.5)
    within_standard_errors(plain, 0.7, 0.5)
    # A sample no longer follows from its start.
    assert np.corrcoef(churned[:, 0], plain[:, 0])[0, 1] < 0.9


def test_without_churn_the_sampler_is_itself():
    p = process.edm(20.0)
    D = gaussian_mixture(p, GAUSSIAN[0][:, None], *GAUSSIAN[1:]).denoise
    x, key = as_column(rng.normal(0, 20, 7)), jax.random.key(2)
    plain = samplers.heun(p).step(D, x, 0.9, 0.7, key, ())[0]
    for options in ({"gamma": 0.0}, {"gamma": 0.4, "low": 12.0}, {"gamma": 0.4, "high": 9.0}):
        churned = edm.churn(samplers.heun(p), p, **options).step(D, x, 0.9, 0.7, key, ())[0]
        np.testing.assert_array_equal(churned, plain)
    assert 9 < p.sigma(0.9) < 12


def test_there_is_no_level_beyond_the_last_to_churn_to():
    p = process.edm(20.0)
    seen = []
    step = edm.churn(samplers.ddim(p), p, 0.1).step
    for t in (1.0, 0.995):  # (1/.995)^7 = 1.036 lies within, 1.1 beyond
        step(
            lambda x, t: seen.append(float(t)) or x, jnp.ones((2, 1)), t, 0.5, jax.random.key(0), ()
        )
    np.testing.assert_array_equal(seen, np.float32([1.0, 0.995]))


def test_the_size_of_the_fresh_noise_is_a_factor():
    p = process.edm(20.0)
    seen = []
    x = jnp.zeros((40_000, 1))
    step = edm.churn(samplers.ddim(p), p, 0.4, noise=1.5).step
    step(lambda x, t: seen.append(x) or x, x, 0.8, 0.5, jax.random.key(0), ())
    added = 1.5 * float(p.sigma(0.8)) * np.sqrt(1.4**2 - 1)
    within_standard_errors(seen[0], 0.0, added)


def test_the_gradient_with_respect_to_gamma_is_finite_with_and_without_churn():
    p = process.edm(20.0)
    for gamma in (0.0, 0.2):
        slope = jax.grad(
            lambda gamma: (
                edm.churn(samplers.ddim(p), p, gamma)
                .step(lambda x, t: 0.5 * x, jnp.ones((2, 1)), 0.6, 0.3, jax.random.key(0), ())[0]
                .sum()
            )
        )(gamma)
        assert np.isfinite(slope)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: edm.preconditioning([1.0, 0.0]), "sigma must be positive and finite, got 0"),
        (lambda: edm.preconditioning(1.0, -0.5), "sigma_data must be positive.*got -0.5"),
        (lambda: edm.log_normal_times(process.edm(), np.inf), r"mean must be in \(-inf, inf\)"),
        (lambda: edm.log_normal_times(process.edm(), 0.0, 0.0), "std must be positive"),
        (lambda: edm.churn_share(-1.0, 3), r"amount must be in \[0, inf\), got -1.0"),
        (lambda: edm.churn_share(1.0, 0), "n must be .*, got 0"),
        (lambda: churned(gamma=0.5), r"gamma must be in \[0, 0.414214\], got 0.5"),
        (lambda: churned(gamma=0.1, noise=-1.0), r"noise must be in \[0, inf\), got -1.0"),
        (lambda: churned(gamma=0.1, low=2.0, high=2.0), "high must be above low, 2.0, got 2.0"),
        (
            lambda: edm.churn(samplers.pndm(process.edm()), process.edm(), 0.1).init(jnp.ones(3)),
            "sampler must have no memory of earlier steps.*got one that remembers 2 arrays",
        ),
    ],
)
def test_what_cannot_be_used_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def churned(**options):
    return edm.churn(samplers.heun(process.edm()), process.edm(), **options)


# --------------------------------------------------------------------------------------- time_at


@pytest.mark.parametrize("name", PROCESSES)
def test_the_time_of_a_log_snr_is_found_again(name):
    p = PROCESSES[name].process
    t = np.float32([0.02, 0.37, 0.5, 0.98])
    again = np.asarray(process.time_at(p, p.log_snr(t)))
    # Where the log-SNR is flat, its rounding is an error in time: a slope below 4 is that flat
    # for a log-SNR of up to 14 with 24 bits.
    np.testing.assert_allclose(again, t, atol=2e-6)
    ends = process.time_at(p, jnp.array([jnp.inf, -jnp.inf, 1e3, -1e3]))
    np.testing.assert_array_equal(ends, [0, 1, ends[2], 1])
    assert ends[2] < 1e-6


def test_one_number_is_asked_for_where_one_number_counts():
    p = process.edm()
    with pytest.raises(ValueError, match="noise must be one number"):
        edm.churn(samplers.heun(p), p, 0.3, noise=np.array([1.0, 5.0]))
    with pytest.raises(ValueError, match="sigma_data must be one number"):
        edm.preconditioning(0.5, np.array([0.5, 0.6]))
