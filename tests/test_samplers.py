from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import (
    GAUSSIAN,
    MIXTURE,
    PROCESSES,
    Mixture1D,
    as_column,
    examples,
    posterior64,
    transition64,
    within_standard_errors,
)

from diffusion_course import denoiser, process, samplers, sampling

rng = np.random.default_rng(25)

SAMPLERS = {
    "ddpm posterior": samplers.ddpm,
    "ddpm transition": lambda p: samplers.ddpm(p, "transition"),
    "ddim": samplers.ddim,
    "ddim 0.4": lambda p: samplers.ddim(p, 0.4),
    "ddim 1": lambda p: samplers.ddim(p, 1.0),
}
every_sampler = pytest.mark.parametrize("make", SAMPLERS.values(), ids=SAMPLERS.keys())
every_process = pytest.mark.parametrize("name", PROCESSES)
some_processes = pytest.mark.parametrize(
    "name", ["linear chain", "zero-SNR chain", "sub_vp", "vp_cosine", "edm", "rectified_flow"]
)


def one_step(sampler, D, x, t, s, key):
    return sampler.step(D, x, jnp.float32(t), jnp.float32(s), key, sampler.init(x))[0]


def oracle(o, data):
    return denoiser.gaussian_mixture(o.process, data[0][:, None], *data[1:])


def marginal(o, data, t, n):
    """n exact draws of x_t as the library's float32 [n, 1]."""
    k = rng.choice(len(data[0]), n, p=data[2])
    x0 = data[0][k] + data[1][k] * rng.normal(size=n)
    return as_column(o.alpha(t) * x0 + o.sigma(t) * rng.normal(size=n))


# --------------------------------------------------------------------------- single steps, exact


@some_processes
@pytest.mark.parametrize("eta", [0.0, 0.35, 1.0])
def test_ddim_is_its_paper_s_formula(name, eta):
    o, t, s = PROCESSES[name], 0.7, 0.45
    t, s = (float(np.float32(time)) for time in (t, s))
    x0, x = rng.normal(0.4, 1.3, (2, 5)).astype(np.float32)
    n = 20_000
    step = samplers.ddim(o.process, eta)
    point = as_column(x0)
    got = jax.jit(
        jax.vmap(lambda key: one_step(step, lambda x, t: point, as_column(x), t, s, key)[:, 0])
    )(jax.random.split(jax.random.key(6), n))
    # Song, Meng & Ermon, eq. 12, with their sqrt(alpha) and sqrt(1 − alpha) as alpha and sigma;
    # eq. 16 times eta is the posterior's standard deviation.
    noise = eta**2 * posterior64(o, t, s)[2]
    eps = (x - o.alpha(t) * x0) / o.sigma(t)
    mean = o.alpha(s) * x0 + np.sqrt(o.sigma(s) ** 2 - noise) * eps
    got = np.asarray(got, np.float64)
    if eta == 0:
        scale = np.abs(mean) + float(o.sigma(s))
        assert (np.abs(got - mean) < 1e-3 * scale).all()
        assert (got == got[0]).all()
        return
    # Rounding of the mean, and 4.5 standard errors of a mean and of a variance, five times over.
    assert (np.abs(got.mean(0) - mean) < 4.5 * np.sqrt(noise / n) + 1e-3 * np.sqrt(noise)).all()
    assert np.abs(got.var(0) / noise - 1).max() < 4.5 * np.sqrt(2 / n) + 2e-3


@pytest.mark.parametrize("steps", [10, 37, 250])  # 37: a grid that doesn't divide 1000
@pytest.mark.parametrize("make", [samplers.ddpm, SAMPLERS["ddim 1"]], ids=["ddpm", "ddim 1"])
def test_eta_one_has_the_posterior_mean_and_variance_on_strided_grids(make, steps):
    o, n = PROCESSES["linear chain"], 20_000
    times = sampling.uniform(steps)
    t, s = times[:-2], times[1:-1]
    x0, x = 0.6, -1.9
    sampler = make(o.process)

    @jax.jit
    def moments(t, s, key):
        state = jnp.full((n, 1), x)
        got = one_step(sampler, lambda x, t: jnp.full_like(x, x0), state, t, s, key)
        mean = got.mean()
        return mean, ((got - mean) ** 2).mean()

    keys = jax.random.split(jax.random.key(steps), len(t))
    mean, variance = (
        np.asarray(m, np.float64) for m in jax.lax.map(lambda a: moments(*a), (t, s, keys))
    )
    of_x0, of_x, want = posterior64(o, t.astype(np.float64), s.astype(np.float64))
    # 5 standard errors (250 of each are drawn), and 1e-3 for log-SNRs in float32.
    assert (np.abs(mean - of_x0 * x0 - of_x * x) < 5 * np.sqrt(want / n) + 1e-4).all()
    assert (np.abs(variance / want - 1) < 5 * np.sqrt(2 / n) + 1e-3).all()


@some_processes
@pytest.mark.parametrize("name_of_sampler", ["ddpm posterior", "ddim", "ddim 0.4"])
def test_with_one_point_as_data_every_state_has_the_forward_marginal(name, name_of_sampler):
    o, n, point = PROCESSES[name], 20_000, 1.7
    times = sampling.uniform(9)
    start = as_column(float(o.alpha(1.0)) * point + float(o.sigma(1.0)) * rng.normal(size=n))
    sampler = SAMPLERS[name_of_sampler](o.process)
    x, path = sampling.sample(
        sampler, lambda x, t: jnp.full_like(x, point), start, times, jax.random.key(3)
    )
    for s, state in zip(times[1:-1].astype(np.float64), path[:-1], strict=True):
        within_standard_errors(state, o.alpha(s) * point, o.sigma(s), errors=4.5)
    # The trap of a chain that ends at step 1 instead of 0: residual noise.
    assert (x == np.float32(point)).all()


@every_sampler
@every_process
def test_the_last_step_returns_exactly_what_the_denoiser_says(name, make):
    p = PROCESSES[name].process
    x = jnp.asarray(rng.normal(0, 3, (4, 2, 2)), jnp.float32)
    said = jnp.asarray(rng.normal(0.2, 1, (4, 2, 2)), jnp.float32)
    asked = []

    def D(x, t):
        asked.append(t)
        return said

    for t in (0.01, 0.5, 1.0):
        got = one_step(make(p), D, x, t, 0.0, jax.random.key(0))
        np.testing.assert_array_equal(got, said)
    np.testing.assert_allclose(asked, [0.01, 0.5, 1.0], rtol=1e-7)


@pytest.mark.parametrize("name", ["linear chain", "sub_vp", "edm"])
def test_the_transition_variance_is_the_forward_step_s(name):
    o, t, s, n = PROCESSES[name], 0.75, 0.5, 100_000
    x = jnp.full((n, 1), 0.8)
    got = one_step(
        samplers.ddpm(o.process, "transition"), lambda x, t: 0.3 * x, x, t, s, jax.random.key(2)
    )
    of_x0, of_x, _ = posterior64(o, t, s)
    want = transition64(o, t, s)[1]
    within_standard_errors(got, of_x0 * 0.24 + of_x * 0.8, np.sqrt(want))


def test_after_clipping_ddim_s_noise_is_the_one_that_explains_x_t():
    o, t, s = PROCESSES["vp_linear"], 0.8, 0.55
    x = as_column(rng.normal(0, 1.2, 50))
    D = denoiser.clip(lambda x, t: 5 * x, -0.8, 0.6)
    x0 = np.clip(5 * np.asarray(x, np.float64), -0.8, 0.6)
    eps = (np.asarray(x) - o.alpha(t) * x0) / o.sigma(t)
    got = one_step(samplers.ddim(o.process), D, x, t, s, jax.random.key(0))
    np.testing.assert_allclose(got, o.alpha(s) * x0 + o.sigma(s) * eps, atol=1e-4)


# ------------------------------------------------------------------------ whole runs, stochastic


def expected_ddpm(o, data, times, variance):
    """Mean and std of DDPM's chain for a Gaussian, where each step is linear, in float64."""
    (mean,), (std,), _ = data
    m = float(o.alpha(times[0])) * mean
    v = float(o.alpha(times[0])) ** 2 * std**2 + float(o.sigma(times[0])) ** 2
    for t, s in pairwise(times):
        a, spread = o.alpha(t), o.alpha(t) ** 2 * std**2 + o.sigma(t) ** 2
        gain = a * std**2 / spread
        if s == 0:
            of_x0, of_x, added = 1.0, 0.0, 0.0
        else:
            of_x0, of_x, added = posterior64(o, t, s)
            added = transition64(o, t, s)[1] if variance == "transition" else added
        factor = of_x0 * gain + of_x
        m = factor * m + of_x0 * (mean - gain * a * mean)
        v = factor**2 * v + added
    return m, np.sqrt(v)


@pytest.mark.parametrize(
    ("name", "steps", "variance"),
    [
        ("linear chain", 10, "posterior"),
        ("linear chain", 37, "transition"),
        ("vp_cosine", 37, "posterior"),
        ("edm", 10, "transition"),
        ("edm", 37, "posterior"),
    ],
)
def test_few_steps_of_ddpm_do_to_a_gaussian_what_algebra_says(name, steps, variance):
    o, n = PROCESSES[name], 100_000
    times = sampling.uniform(steps)
    x, _ = sampling.sample(
        samplers.ddpm(o.process, variance),
        oracle(o, GAUSSIAN).denoise,
        marginal(o, GAUSSIAN, 1.0, n),
        times,
        jax.random.key(steps),
    )
    mean, std = expected_ddpm(o, GAUSSIAN, times.astype(np.float64), variance)
    within_standard_errors(x, mean, std)


@pytest.mark.parametrize("data", [GAUSSIAN, MIXTURE], ids=["gaussian", "mixture"])
def test_a_thousand_steps_of_ddpm_draw_the_data(data):
    o, n = PROCESSES["linear chain"], 10_000
    times = sampling.uniform(1000)
    x, _ = jax.jit(
        lambda x, key: sampling.sample(
            samplers.ddpm(o.process), oracle(o, data).denoise, x, times, key
        )
    )(marginal(o, data, 1.0, n), jax.random.key(9))
    mean, variance = Mixture1D(o, *data).moments()
    # 1000 steps leave a bias of 0.0039 in the std of the Gaussian, one standard error.
    within_standard_errors(x, mean, np.sqrt(variance))
    if len(data[0]) > 1:  # the modes lie six and more standard deviations from these borders
        borders = [-0.45, 1.02]
        truth = Mixture1D(o, *data).cdf(np.array(borders), 0.0)
        for border, share in zip(borders, truth, strict=True):
            got = (np.asarray(x) < border).mean()
            assert abs(got - share) < 4 * np.sqrt(share * (1 - share) / n)


def test_the_bias_of_a_thousand_steps_is_as_small_as_claimed():
    times = sampling.uniform(1000).astype(np.float64)
    mean, std = expected_ddpm(PROCESSES["linear chain"], GAUSSIAN, times, "posterior")
    assert abs(mean - 0.7) < 5e-4 and abs(std - 0.5) < 5e-3


@pytest.mark.parametrize("steps", [3, 37])
@pytest.mark.parametrize("name", ["linear chain", "vp_linear", "vp_cosine"])
def test_the_transition_variance_is_exact_for_standard_normal_data(name, steps):
    o, n = PROCESSES[name], 50_000
    normal = (np.zeros(1), np.ones(1), np.ones(1))
    times = sampling.uniform(steps)
    x, path = sampling.sample(
        samplers.ddpm(o.process, "transition"),
        oracle(o, normal).denoise,
        marginal(o, normal, 1.0, n),
        times,
        jax.random.key(steps),
    )
    for state in path[:-1]:
        within_standard_errors(state, 0, 1, errors=4.5)
    # The last step adds no noise: E[x0 | x_t] = alpha·x_t.
    within_standard_errors(x, 0, float(o.alpha(times[-2])))


# --------------------------------------------------------------------- whole runs, deterministic


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("vp_linear", GAUSSIAN),
        ("vp_linear", MIXTURE),
        ("vp_cosine", MIXTURE),
        ("rectified_flow", MIXTURE),
    ],
)
def test_ddim_converges_to_the_exact_flow_with_order_one(name, data):
    o, counts = PROCESSES[name], [24, 48, 96, 192]
    end = 0.125  # from here on a mixture's flow is only steeper
    exact = Mixture1D(o, *data)
    quantiles = np.linspace(0.03, 0.97, 41)
    start = _quantile(exact, quantiles, 1.0)
    want = exact.flow(start, 1.0, end)
    errors = []
    for n in counts:
        times = (1 - (1 - end) * np.arange(n + 1) / n).astype(np.float32)
        x, _ = sampling.sample(
            samplers.ddim(o.process),
            oracle(o, data).denoise,
            as_column(start),
            times,
            jax.random.key(0),
        )
        errors.append(np.sqrt(np.mean((np.asarray(x, np.float64)[:, 0] - want) ** 2)))
    # 192 steps still err by 1e-4 and more, ten times what float32 loses on the way.
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert 0.9 < slope < 1.2, errors
    assert errors[-1] < 1e-2


def _quantile(exact, quantiles, t):
    low, high = np.full_like(quantiles, -50.0), np.full_like(quantiles, 50.0)
    for _ in range(80):
        middle = (low + high) / 2
        below = exact.cdf(middle, t) < quantiles
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return (low + high) / 2


@pytest.mark.parametrize("name", ["linear chain", "sub_vp", "edm"])
def test_a_gaussian_flows_as_its_closed_form_says(name):
    o = PROCESSES[name]
    mean, std = 0.7, 0.5
    x = _quantile(Mixture1D(o, *GAUSSIAN), np.array([0.1, 0.5, 0.8]), 0.95)
    spread = [np.sqrt(o.alpha(t) ** 2 * std**2 + o.sigma(t) ** 2) for t in (0.95, 0.05)]
    want = o.alpha(0.05) * mean + spread[1] / spread[0] * (x - o.alpha(0.95) * mean)
    times = np.linspace(0.95, 0.05, 2001).astype(np.float32)
    got, _ = sampling.sample(
        samplers.ddim(o.process),
        oracle(o, GAUSSIAN).denoise,
        as_column(x),
        times,
        jax.random.key(0),
    )
    # Order one with 2000 steps.
    np.testing.assert_allclose(got[:, 0], want, atol=4e-3)


def test_a_thousand_steps_through_vanishing_noise_end_in_the_data():
    # On EDM's clock the second last level is 8e-20, whose square float32 cannot hold.
    p = process.edm()
    data = rng.normal(0.2, 1, (6, 3)).astype(np.float32)
    start = sampling.start_noise(p, jax.random.key(0), (20, 3))
    for sampler in (samplers.ddpm(p), samplers.ddim(p)):
        x, _ = sampling.sample(
            sampler, denoiser.ideal(p, data), start, sampling.uniform(1000), jax.random.key(1)
        )
        distance = np.abs(np.asarray(x)[:, None] - data).max(-1).min(1)
        assert (distance < 1e-5).all()


def test_eta_may_be_traced():
    o, x = PROCESSES["vp_linear"], jnp.asarray(rng.normal(size=(4, 2)), jnp.float32)

    def step(eta):
        D = lambda x, t: 0.4 * x  # noqa: E731
        return one_step(samplers.ddim(o.process, eta), D, x, 0.8, 0.5, jax.random.key(1))

    np.testing.assert_allclose(jax.jit(step)(0.6), step(0.6), atol=1e-5)
    assert np.isfinite(jax.jacfwd(step)(0.6)).all()


# ----------------------------------------------------------------------------------- bad arguments


@examples
@given(st.one_of(st.floats(max_value=-1e-9), st.floats(min_value=1.0000001), st.just(float("nan"))))
def test_an_eta_outside_the_unit_interval_is_refused(eta):
    with pytest.raises(ValueError, match=r"eta must be in \[0, 1\], got") as error:
        samplers.ddim(process.vp_cosine(), eta)
    assert str(eta) in str(error.value)


@pytest.mark.parametrize("variance", ["", "small", None, "Posterior"])
def test_an_unknown_variance_is_refused(variance):
    rule = f'variance must be "posterior" or "transition", got {variance!r}'
    with pytest.raises(ValueError, match=rule):
        samplers.ddpm(process.vp_cosine(), variance)
