from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
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
from runs import ALL, EXTREME, SAMPLERS, noise_of, one_of_all, quantile, run

from diffusion_course import denoiser, process, samplers, sampling

rng = np.random.default_rng(25)
N = 10_000  # draws in every run of this file, so that they share their programs
POINTS = 50  # where nothing is drawn
NORMAL = (np.zeros(1), np.ones(1), np.ones(1))
every_sampler = pytest.mark.parametrize("name", SAMPLERS)
some_processes = pytest.mark.parametrize(
    "of", ["linear chain", "zero-SNR chain", "sub_vp", "vp_cosine", "edm", "rectified_flow"]
)


def one_step(sampler, D, x, t, s, key):
    return sampler.step(D, x, jnp.float32(t), jnp.float32(s), key, sampler.init(x))[0]


def marginal(o, data, t):
    """N exact draws of x_t."""
    k = rng.choice(len(data[0]), N, p=data[2])
    x0 = data[0][k] + data[1][k] * rng.normal(size=N)
    return o.alpha(t) * x0 + o.sigma(t) * rng.normal(size=N)


# --------------------------------------------------------------------------- single steps, exact


@jax.jit
def ddim_steps(index, eta, x0, x, t, s, key):
    """2·N DDIM steps of each of five states: [2·N, 5]."""
    sampler = samplers.ddim(one_of_all(index), eta)
    states = jnp.broadcast_to(x, (2 * N, 5))
    return one_step(sampler, lambda x, t: jnp.broadcast_to(x0, x.shape), states, t, s, key)


@some_processes
@pytest.mark.parametrize("eta", [0.0, 0.35, 1.0])
def test_ddim_is_its_paper_s_formula(of, eta):
    o, t, s = PROCESSES[of], 0.7, 0.45
    t, s = (float(np.float32(time)) for time in (t, s))
    x0, x = rng.normal(0.4, 1.3, (2, 5)).astype(np.float32)
    got = ddim_steps(list(ALL).index(of), eta, x0, x, t, s, jax.random.key(6))
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
    assert (np.abs(got.mean(0) - mean) < 4.5 * np.sqrt(noise / 2 / N) + 1e-3 * np.sqrt(noise)).all()
    assert np.abs(got.var(0) / noise - 1).max() < 4.5 * np.sqrt(1 / N) + 2e-3


@jax.jit
def moments(t, s, keys):
    """Means and variances of DDPM's and of DDIM's steps (eta = 1) of one state: two [2, steps]."""
    x0, x, p = 0.6, -1.9, PROCESSES["linear chain"].process

    def both(arguments):
        t, s, key = arguments
        state, D = jnp.full((2 * N, 1), x), lambda x, t: jnp.full_like(x, x0)
        draws = (one_step(make(p), D, state, t, s, key) for make in
                 (samplers.ddpm, SAMPLERS["ddim 1"]))  # fmt: skip
        draws = jnp.stack([draw[:, 0] for draw in draws])
        return draws.mean(1), draws.var(1)

    return jax.lax.map(both, (t, s, keys))


@pytest.mark.parametrize("steps", [10, 37, 250])  # 37: a grid that doesn't divide 1000
def test_eta_one_has_the_posterior_mean_and_variance_on_strided_grids(steps):
    times = sampling.uniform(steps)
    # Forty of the grid's steps, or all of them several times over.
    chosen = np.linspace(0, steps - 2, 40).astype(int)
    t, s = times[chosen], times[chosen + 1]
    mean, variance = (
        np.asarray(m, np.float64)
        for m in moments(t, s, jax.random.split(jax.random.key(steps), 40))
    )
    of_x0, of_x, want = posterior64(
        PROCESSES["linear chain"], *(np.float64(time)[:, None] for time in (t, s))
    )
    # 5 standard errors (240 of each are drawn), and 1e-3 for log-SNRs in float32.
    assert (np.abs(mean - of_x0 * 0.6 + of_x * 1.9) < 5 * np.sqrt(want / 2 / N) + 1e-4).all()
    assert (np.abs(variance / want - 1) < 5 * np.sqrt(1 / N) + 1e-3).all()


@some_processes
@pytest.mark.parametrize("name", ["ddpm posterior", "ddim", "ddim 0.4"])
def test_with_one_point_as_data_every_state_has_the_forward_marginal(of, name):
    o, point = PROCESSES[of], 1.7
    data, times = ([point], [0.0], [1.0]), sampling.uniform(9)
    start = float(o.alpha(1.0)) * point + float(o.sigma(1.0)) * rng.normal(size=N)
    for n in (1, 4, 8):
        s = float(times[n])
        state = run(name, of, data, start, times[: n + 1], seed=3)
        within_standard_errors(state, o.alpha(s) * point, o.sigma(s), errors=4.5)
    # The trap of a chain that ends at step 1 instead of 0: residual noise.
    assert (run(name, of, data, start, times, seed=3) == np.float32(point)).all()


@every_sampler
def test_the_last_step_returns_exactly_what_the_denoiser_says(name):
    # The denoiser of one point says that point, whatever x and t.
    x, point = rng.normal(0, 3, N), np.float32(-0.8)
    for of in ALL:
        for t in (0.01, 0.5, 1.0):
            got = run(name, of, ([point], [0.0], [1.0]), x, [t, 0.0])
            assert (got == point).all(), (of, t)
            if of in runs.WATCHED:
                np.testing.assert_allclose(runs.evaluated(name, of, [t, 0.0]), [t], rtol=1e-7)


@every_sampler
def test_runs_on_extreme_schedules_are_finite_and_draw_the_data(name):
    # float32 cannot hold the signal at their ends, or cannot tell neighbouring levels apart.
    for of in (*EXTREME, "zero-SNR chain", "variance_exploding"):
        for steps in (3, 60):
            got = run(name, of, GAUSSIAN, noise_of(of, N), sampling.uniform(steps))
            assert np.isfinite(got).all(), of
        # 60 steps, of which the extreme schedules leave a few to the part with any signal.
        assert abs(got.mean() - 0.7) < 0.08 and abs(got.std() / 0.5 - 1) < 0.3, of


@pytest.mark.parametrize("of", ["linear chain", "sub_vp", "edm"])
def test_the_transition_variance_is_the_forward_step_s(of):
    o, t, s = PROCESSES[of], 0.75, 0.5
    # A Gaussian of mean 0 has D = gain·x.
    gain = o.alpha(t) * 0.5**2 / (o.alpha(t) ** 2 * 0.5**2 + o.sigma(t) ** 2)
    got = run("ddpm transition", of, ([0.0], [0.5], [1.0]), np.full(N, 0.8), [t, s], seed=2)
    of_x0, of_x, _ = posterior64(o, t, s)
    want = transition64(o, t, s)[1]
    within_standard_errors(got, of_x0 * gain * 0.8 + of_x * 0.8, np.sqrt(want))


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
    ("of", "steps", "variance"),
    [
        ("linear chain", 10, "posterior"),
        ("linear chain", 37, "transition"),
        ("vp_cosine", 37, "posterior"),
        ("edm", 10, "transition"),
        ("edm", 37, "posterior"),
    ],
)
def test_few_steps_of_ddpm_do_to_a_gaussian_what_algebra_says(of, steps, variance):
    o, times = PROCESSES[of], sampling.uniform(steps)
    x = [
        run(f"ddpm {variance}", of, GAUSSIAN, marginal(o, GAUSSIAN, 1.0), times, seed)
        for seed in range(5)
    ]
    mean, std = expected_ddpm(o, GAUSSIAN, times.astype(np.float64), variance)
    within_standard_errors(np.concatenate(x), mean, std)


def test_a_thousand_steps_of_ddpm_draw_the_data():
    o, data = PROCESSES["linear chain"], MIXTURE
    start, times = marginal(o, data, 1.0), sampling.uniform(1000)
    x = run("ddpm posterior", "linear chain", data, start, times, seed=9)
    mean, variance = Mixture1D(o, *data).moments()
    within_standard_errors(x, mean, np.sqrt(variance))
    # The modes lie six and more standard deviations from these borders.
    borders = [-0.45, 1.02]
    truth = Mixture1D(o, *data).cdf(np.array(borders), 0.0)
    for border, share in zip(borders, truth, strict=True):
        assert abs((x < border).mean() - share) < 4 * np.sqrt(share * (1 - share) / N)


def test_the_bias_of_a_thousand_steps_is_as_small_as_claimed():
    times = sampling.uniform(1000).astype(np.float64)
    mean, std = expected_ddpm(PROCESSES["linear chain"], GAUSSIAN, times, "posterior")
    assert abs(mean - 0.7) < 5e-4 and abs(std - 0.5) < 5e-3


@pytest.mark.parametrize("steps", [3, 37])
@pytest.mark.parametrize("of", ["linear chain", "vp_linear", "vp_cosine"])
def test_the_transition_variance_is_exact_for_standard_normal_data(of, steps):
    o, times = PROCESSES[of], sampling.uniform(steps)
    # After the first two steps, the last but one, and some between.
    for n in sorted({1, 2, steps // 3, steps - 1}):
        states = [
            run("ddpm transition", of, NORMAL, marginal(o, NORMAL, 1.0), times[: n + 1], seed)
            for seed in range(3)
        ]
        within_standard_errors(states, 0, 1, errors=4.5)
    # The last step adds no noise: E[x0 | x_t] = alpha·x_t.
    x = run("ddpm transition", of, NORMAL, marginal(o, NORMAL, 1.0), times, steps)
    within_standard_errors(x, 0, float(o.alpha(times[-2])))


# --------------------------------------------------------------------- whole runs, deterministic


@pytest.mark.parametrize(
    ("of", "data"),
    [
        ("vp_linear", GAUSSIAN),
        ("vp_linear", MIXTURE),
        ("vp_cosine", MIXTURE),
        ("rectified_flow", MIXTURE),
    ],
)
def test_ddim_converges_to_the_exact_flow_with_order_one(of, data):
    counts = [24, 48, 96, 192]
    end = 0.125  # from here on a mixture's flow is only steeper
    exact = Mixture1D(PROCESSES[of], *data)
    start = quantile(exact, np.linspace(0.03, 0.97, POINTS), 1.0)
    want = exact.flow(start, 1.0, end)
    errors = []
    for n in counts:
        times = 1 - (1 - end) * np.arange(n + 1) / n
        x = run("ddim", of, data, start, times)
        errors.append(np.sqrt(np.mean((x - want) ** 2)))
    # 192 steps still err by 1e-4 and more, ten times what float32 loses on the way.
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert 0.9 < slope < 1.2, errors
    assert errors[-1] < 1e-2


@pytest.mark.parametrize("of", ["linear chain", "sub_vp", "edm"])
def test_a_gaussian_flows_as_its_closed_form_says(of):
    o = PROCESSES[of]
    mean, std = 0.7, 0.5
    x = quantile(Mixture1D(o, *GAUSSIAN), np.array([0.1, 0.5, 0.8]), 0.95)
    spread = [np.sqrt(o.alpha(t) ** 2 * std**2 + o.sigma(t) ** 2) for t in (0.95, 0.05)]
    want = o.alpha(0.05) * mean + spread[1] / spread[0] * (x - o.alpha(0.95) * mean)
    times = np.linspace(0.95, 0.05, 1001)
    got = run("ddim", of, GAUSSIAN, np.resize(x, POINTS), times)[:3]
    # Order one with 1000 steps.
    np.testing.assert_allclose(got, want, atol=8e-3)


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


def test_eta_may_be_traced_and_has_a_slope_at_both_ends_of_a_run():
    # The traced eta is the one of `ddim_steps`; here it is differentiated, through a step from
    # pure noise and one to the data, where the roots of the formula are 0.
    p, x = PROCESSES["vp_cosine"].process, jnp.asarray(rng.normal(size=(4, 2)), jnp.float32)

    @jax.jit
    @jax.value_and_grad
    def total(eta):
        D = lambda x, t: 0.4 * x  # noqa: E731
        times = [1.0, 0.6, 0.3, 0.0]
        return sampling.sample(samplers.ddim(p, eta), D, x, times, jax.random.key(1))[0].sum()

    (low, _), (_, slope), (high, _) = (total(eta) for eta in (0.59, 0.6, 0.61))
    np.testing.assert_allclose(slope, (high - low) / 0.02, rtol=5e-3)


# ----------------------------------------------------------------------------------- temperature


@pytest.mark.parametrize("make", [samplers.ddpm, lambda p, **k: samplers.ddim(p, 0.8, **k)])
def test_temperature_multiplies_the_noise_and_nothing_else(make):
    p = process.vp_linear()
    x = jnp.asarray(rng.normal(0.5, 1.0, (6, 2)), jnp.float32)
    results = [
        make(p, temperature=temperature).step(
            lambda x, t: 0.4 * x, x, jnp.float32(0.6), jnp.float32(0.4), jax.random.key(1), ()
        )[0]
        for temperature in (0.0, 0.5, 1.0)
    ]
    np.testing.assert_allclose(results[1] - results[0], (results[2] - results[0]) / 2, atol=1e-6)
    assert np.abs(results[2] - results[0]).min() > 1e-4


# ----------------------------------------------------------------------------------- bad arguments


@examples
@given(st.one_of(st.floats(max_value=-1e-9), st.floats(min_value=1.0000001), st.just(float("nan"))))
def test_an_eta_outside_the_unit_interval_is_refused(eta):
    with pytest.raises(ValueError, match=r"eta must be in \[0, 1\], got") as error:
        samplers.ddim(process.vp_cosine(), eta)
    assert str(eta) in str(error.value)


@pytest.mark.parametrize("variance", ["", "small", None, "Posterior"])
def test_an_unknown_variance_is_refused(variance):
    rule = f"variance must be one of posterior, transition, got {variance!r}"
    with pytest.raises(ValueError, match=rule):
        samplers.ddpm(process.vp_cosine(), variance)


@pytest.mark.parametrize("temperature", [-1, float("nan"), float("inf")])
def test_a_negative_or_infinite_temperature_is_refused(temperature):
    for make in (samplers.ddpm, samplers.ddim):
        with pytest.raises(ValueError, match=r"temperature must be in \[0, inf\), got"):
            make(process.vp_linear(), temperature=temperature)


@pytest.mark.parametrize("given", [[0.2, 0.4], np.ones((3, 1)), "0.5", None])
def test_what_is_no_single_number_is_refused(given):
    # One per example would be one per channel.
    p = process.vp_linear()
    with pytest.raises(ValueError, match="eta must be one number, got"):
        samplers.ddim(p, given)
    for make in (samplers.ddpm, samplers.ddim):
        with pytest.raises(ValueError, match="temperature must be one number, got"):
            make(p, temperature=given)
