"""Processes as stochastic differential equations, and the samplers made from their score."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import (
    CHAINS,
    GAUSSIAN,
    MIXTURE,
    NO_SIGNAL_AT_ONE,
    PROCESSES,
    Mixture1D,
    as_column,
    posterior64,
    slope64,
    within_standard_errors,
)
from runs import ALL, one_of_all

from diffusion_course import denoiser, process, samplers, sampling, sde, sde_samplers

rng = np.random.default_rng(90)
KEY = jax.random.key(9)
N = 4000  # draws in every run, so that runs share their programs
STEPS = 400


def mixture_of(p, data):
    means, stds, weights = (jnp.asarray(part, jnp.float32) for part in data)
    return denoiser.GaussianMixture(p, means[:, None], stds, weights)


# ------------------------------------------------------------------------- drift and diffusion


def rates64(o, t):
    """f and g² from the process's definition in float64."""
    f = slope64(lambda t: np.log(o.alpha(t)), t)
    return f, slope64(lambda t: o.sigma(t) ** 2, t) - 2 * f * o.sigma(t) ** 2


@pytest.mark.parametrize("of", PROCESSES)
def test_drift_and_diffusion_are_those_of_the_levels(of):
    # Off the knots of the chains, where their slope jumps: k/7 and k/1000.
    t = np.float64(np.float32([0.0213, 0.1312, 0.2501, 0.4772, 0.6333, 0.8115, 0.9504]))
    o = PROCESSES[of]
    f, g2 = rates64(o, t)
    # Differences of neighbours in a table of 1,000 float32 levels lose four digits.
    rtol = 2e-3 if of in CHAINS else 2e-5
    np.testing.assert_allclose(sde.drift(o.process, t), f, rtol=rtol, atol=1e-6)
    np.testing.assert_allclose(sde.diffusion_squared(o.process, t), g2, rtol=rtol)


@pytest.mark.parametrize("of", PROCESSES)
def test_at_the_data_the_diffusion_is_its_limit(of):
    # sigma ~ √t has no slope at 0; sigma² has one, since sigma(0) = 0.
    o, h = PROCESSES[of], 1e-7
    got = sde.diffusion_squared(o.process, np.float32([[0.0]]))
    assert got.shape == (1, 1) and got.min() >= 0
    np.testing.assert_allclose(got, o.sigma(h) ** 2 / h, rtol=1e-3, atol=1e-6)
    assert np.isfinite(sde.drift(o.process, 0.0))


def test_diffusion_is_minus_the_variance_times_the_slope_of_log_snr():
    p = process.sub_vp(0.2, 15.0)
    t = rng.uniform(0.05, 0.95, (3, 2)).astype(np.float32)
    slope = jax.vmap(jax.vmap(jax.grad(p.log_snr)))(t)
    np.testing.assert_allclose(sde.diffusion_squared(p, t), -(p.sigma(t) ** 2) * slope, rtol=1e-4)


@pytest.mark.parametrize("of", ALL)
def test_rates_are_finite_wherever_there_is_signal(of):
    p = ALL[of]
    t = np.linspace(0, 1, 201, dtype=np.float32)
    t = t[np.isfinite(jnp.log(p.alpha(t)) if p.log_alpha is None else p.log_alpha(t))]
    f, g2 = (np.asarray(rate(p, t)) for rate in (sde.drift, sde.diffusion_squared))
    assert len(t) > 190 and np.isfinite(f).all() and np.isfinite(g2).all()
    assert (f <= 0).all() and (g2 >= 0).all()


@pytest.mark.parametrize("of", NO_SIGNAL_AT_ONE)
def test_a_time_without_signal_is_refused_and_infinite_where_it_is_not_known(of):
    p = ALL[of]
    for rate in (sde.drift, sde.diffusion_squared):
        for t in (1.0, np.float32([0.3, 1.0])):
            with pytest.raises(ValueError, match=r"t must be a time with signal, .* got 1\.0"):
                rate(p, t)
        with pytest.raises(ValueError, match=r"t must be in \[0, 1\], got 1.5"):
            rate(p, 1.5)
        assert np.isinf(jax.jit(lambda t, rate=rate: rate(p, t))(1.0))
    for t in ([0.0, 0.5, 1.0], np.array([0.0, 0.5, 1.0])):
        with pytest.raises(ValueError, match=r"times must end where signal is left, .* got 1\.0"):
            sde.forward(p, np.ones((2, 3)), t, KEY)


# ------------------------------------------------------------------------------------- forwards


@jax.jit
def forwards(index, x0, times, key):
    return sde.forward(one_of_all(index), x0, times, key)[1]


@pytest.mark.parametrize(
    ("of", "end"),
    [
        ("variance_exploding", 1.0),
        ("vp_linear", 1.0),
        ("sub_vp", 1.0),
        ("linear chain", 1.0),
        ("edm", 1.0),
        ("vp_cosine", 0.9),
        ("rectified_flow", 0.9),
    ],
)
def test_simulated_marginals_are_the_closed_form(of, end):
    o, (mean, std, _) = PROCESSES[of], GAUSSIAN
    x0 = as_column(mean + std * rng.normal(size=N))
    times = np.linspace(0, end, STEPS + 1, dtype=np.float32)
    path = forwards(list(ALL).index(of), x0, times, KEY)[:, :, 0]
    half = STEPS // 2 - 1
    for i in (half, STEPS - 1):
        t = float(times[i + 1])
        spread = np.sqrt((o.alpha(t) * std[0]) ** 2 + o.sigma(t) ** 2)
        within_standard_errors(path[i], o.alpha(t) * mean[0], spread)
    # One path hangs together: x_t is scale·x_s and noise that x_s knows nothing of.
    scale = o.alpha(times[-1]) / o.alpha(times[half + 1])
    early, rest = (np.asarray(x, np.float64) for x in (path[half], path[-1] - scale * path[half]))
    assert abs(np.corrcoef(early, rest)[0, 1]) < 4 / np.sqrt(N)


def test_a_brownian_path_is_the_same_on_a_coarser_grid():
    times = np.sort(rng.uniform(0, 1, 201))
    dw = np.asarray(sde.brownian(KEY, times, (300, 2)), np.float64)
    gaps = np.diff(times.astype(np.float32))[:, None]
    scaled = dw.reshape(200, -1) / np.sqrt(gaps)
    within_standard_errors(scaled, 0, 1)
    assert dw.shape == (200, 300, 2)
    within_standard_errors(dw[40:120].sum(0), 0, np.sqrt(times[120] - times[40]))


def order(counts, errors):
    return -np.polyfit(np.log(counts), np.log(errors), 1)[0]


COUNTS, FINE = [16, 32, 64, 128], 2048


def strong_errors(drift, diffusion, exact):
    """Mean absolute errors at t = 1 of grids that see the same Brownian paths."""
    start = jnp.ones((1000, 1))
    fine = sde.brownian(KEY, np.linspace(0, 1, FINE + 1), start.shape)

    def run(n):
        increments = fine.reshape(n, FINE // n, *start.shape).sum(1)
        return sde.euler_maruyama(drift, diffusion, start, np.linspace(0, 1, n + 1), increments)[0]

    want = exact(start, fine.sum(0)) if exact else run(FINE)
    return [float(jnp.abs(run(n) - want).mean()) for n in COUNTS]


def test_euler_maruyama_has_strong_order_one_where_the_noise_is_additive():
    p = process.vp_linear(0.3, 3.0)
    errors = strong_errors(
        lambda x, t: sde.drift(p, t) * x, lambda x, t: jnp.sqrt(sde.diffusion_squared(p, t)), None
    )
    # The reference has an error of its own, a sixteenth of the smallest: it adds .04 to the order.
    assert 0.9 < order(COUNTS, errors) < 1.15, errors


def test_euler_maruyama_has_strong_order_one_half_where_the_noise_is_multiplicative():
    # Geometric Brownian motion, whose solution is known.
    errors = strong_errors(
        lambda x, t: 0.3 * x, lambda x, t: 0.8 * x,
        lambda x, w: x * jnp.exp(0.3 - 0.8**2 / 2 + 0.8 * w),
    )  # fmt: skip
    # 1,000 paths: .03 of scatter in the fitted order.
    assert 0.4 < order(COUNTS, errors) < 0.6, errors


def linear_moments(p, n, end=1.0):
    """Mean of a path from 1, and variance of one from 0, of Euler–Maruyama, without any draw.

    The end is linear in the increments: the variance is the sum of the squares of its answers to
    one standard deviation of each of them.
    """
    times = np.linspace(0, end, n + 1)
    one_each = np.diag(np.sqrt(np.diff(times)))[:, :, None]
    start = np.zeros((n + 1, 1))
    start[n] = 1
    increments = np.concatenate([one_each, np.zeros((n, 1, 1))], axis=1)
    last, _ = sde.euler_maruyama(
        lambda x, t: sde.drift(p, t) * x,
        lambda x, t: jnp.sqrt(sde.diffusion_squared(p, t)),
        start,
        times,
        increments,
    )
    last = np.asarray(last, np.float64)[:, 0]
    return last[n], (last[:n] ** 2).sum()


def test_euler_maruyama_has_weak_order_one():
    p, counts = process.vp_linear(0.3, 3.0), [20, 40, 80]
    want = float(p.alpha(1.0)), float(p.sigma(1.0)) ** 2
    found = np.abs(np.array([linear_moments(p, n) for n in counts]) - want)
    for errors in found.T:
        assert 0.9 < order(counts, errors) < 1.1, errors


@pytest.mark.parametrize("steps", [50, 200])
def test_up_to_a_time_without_signal_the_variance_becomes_two(steps):
    # The last step has f·h = −1, so that nothing is left of the state, and g²·h = 2.
    assert linear_moments(process.rectified_flow(), steps)[1] == pytest.approx(2.0, rel=0.03)
    # `forward` refuses it (above), and is right where it stops before.
    o = PROCESSES["rectified_flow"]
    assert linear_moments(o.process, 200, 0.9)[1] == pytest.approx(o.sigma(0.9) ** 2, rel=0.05)


def test_what_does_not_fit_a_simulation_is_refused():
    p, x, times = process.vp_linear(), np.ones((2, 3)), [0.0, 0.5, 1.0]
    with pytest.raises(ValueError, match=r"times must rise .* got 0\.5 and then 0\.5"):
        sde.forward(p, x, [0.0, 0.5, 0.5], KEY)
    with pytest.raises(ValueError, match=r"times must be in \[0, 1\], got 2"):
        sde.forward(p, x, [0, 1, 2], KEY)
    for short in ([0.5], [[0.0, 1.0]]):
        with pytest.raises(ValueError, match=r"times must have shape \[n \+ 1\] with n >= 1"):
            sde.forward(p, x, short, KEY)
    with pytest.raises(ValueError, match="x0 must be floating-point"):
        sde.forward(p, np.ones((2, 3), int), times, KEY)
    with pytest.raises(ValueError, match="key must be one random key"):
        sde.forward(p, x, times, 0)
    with pytest.raises(ValueError, match=r"increments must have shape \[2, 2, 3\], got \[2, 3\]"):
        sde.euler_maruyama(lambda x, t: x, lambda x, t: 1.0, x, times, x)


# ------------------------------------------------------------------------- the reverse-time family


@jax.jit
def reverse_steps(index, eta, x0, x, t, s, key):
    """2·N steps in time and in log-SNR from each of five states: two [2·N, 5]."""
    p, states = one_of_all(index), jnp.broadcast_to(x, (2 * N, 5))
    D = lambda x, t: jnp.broadcast_to(x0, x.shape)  # noqa: E731
    makes = sde_samplers.reverse_sde, sde_samplers.reverse_sde_log_snr
    return [make(p, eta).step(D, states, t, s, key, ())[0] for make in makes]


@pytest.mark.parametrize("of", ["linear chain", "sub_vp", "vp_cosine", "edm", "rectified_flow"])
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0, 1.7])
def test_a_reverse_step_is_its_formula(of, eta):
    o = PROCESSES[of]
    t, s = (float(np.float32(time)) for time in (0.7003, 0.6251))
    x0, x = rng.normal(0.4, 1.3, (2, 5)).astype(np.float32)
    got = reverse_steps(list(ALL).index(of), eta, x0, x, np.float32(t), np.float32(s), KEY)
    f, g2 = rates64(o, t)
    score = (o.alpha(t) * x0 - x) / o.sigma(t) ** 2
    in_time = x + (f * x - (1 + eta**2) / 2 * g2 * score) * (s - t), eta**2 * g2 * (t - s)
    ratio = (o.alpha(t) * o.sigma(s) / (o.alpha(s) * o.sigma(t))) ** 2  # of the two SNRs
    kept = ratio ** (eta**2)
    eps = (x - o.alpha(t) * x0) / o.sigma(t)
    exact = o.alpha(s) * x0 + o.sigma(s) * np.sqrt(kept) * eps, o.sigma(s) ** 2 * (1 - kept)
    for draws, (mean, variance) in zip(got, (in_time, exact), strict=True):
        draws = np.asarray(draws, np.float64)
        # 4.5 standard errors of a mean and of a variance, five times over; rounding, and the
        # chains' tables.
        rounding = 2e-3 * (np.abs(mean) + o.sigma(s))
        error = np.abs(draws.mean(0) - mean)
        assert (error < 4.5 * np.sqrt(variance / 2 / N) + rounding).all()
        assert (np.abs(draws.var(0) - variance) <= variance * (4.5 / np.sqrt(N) + 4e-3)).all()
        if eta == 0:
            assert (draws == draws[0]).all()


def test_in_log_snr_eta_zero_is_ddim_and_eta_one_is_ddpm():
    x = jnp.asarray(rng.normal(0.5, 1.0, (7, 2)), jnp.float32)
    for of in ("zero-SNR chain", "sub_vp", "variance_exploding", "rectified_flow"):
        p = ALL[of]
        for t, s in ((1.0, 0.4), (0.6, 0.55), (0.3, 0.0)):
            step = lambda sampler: sampler.step(lambda x, t: 0.4 * x, x, t, s, KEY, ())[0]  # noqa: E731, B023
            for eta, same in ((0.0, samplers.ddim(p)), (1.0, samplers.ddpm(p))):
                got, want = step(sde_samplers.reverse_sde_log_snr(p, eta)), step(same)
                np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-4)


def test_in_log_snr_the_fresh_share_is_ddim_s_for_small_steps_only():
    o, eta = PROCESSES["vp_linear"], 0.6
    gap = []
    for s in (0.69, 0.5):
        kept = (o.alpha(0.7) * o.sigma(s) / (o.alpha(s) * o.sigma(0.7))) ** (2 * eta**2)
        ddim = eta**2 * posterior64(o, 0.7, s)[2]
        gap.append(o.sigma(s) ** 2 * (1 - kept) / ddim - 1)
    assert 0 < gap[0] < 0.05 < 0.3 < gap[1]


@jax.jit
def in_time(index, eta, data, x, times, key):
    p = one_of_all(index)
    sampler, gm = sde_samplers.reverse_sde(p, eta), denoiser.GaussianMixture(p, *data)
    return sampling.sample(sampler, gm.denoise, x, times, key)[0]


@jax.jit
def in_log_snr(index, eta, data, x, times, key):
    p = one_of_all(index)
    sampler, gm = sde_samplers.reverse_sde_log_snr(p, eta), denoiser.GaussianMixture(p, *data)
    return sampling.sample(sampler, gm.denoise, x, times, key)[0]


def draw(program, of, eta, t, key):
    """N states from exact draws at time t, on a grid that is uniform in time."""
    means, stds, weights = MIXTURE
    o, k = PROCESSES[of], rng.choice(len(means), N, p=weights)
    x0 = means[k] + stds[k] * rng.normal(size=N)
    x = as_column(o.alpha(t) * x0 + o.sigma(t) * rng.normal(size=N))
    data = tuple(jnp.asarray(a, jnp.float32) for a in (means[:, None], stds, weights))
    times = np.linspace(t, 0, STEPS + 1, dtype=np.float32)
    return np.asarray(program(list(ALL).index(of), eta, data, x, times, key), np.float64)[:, 0]


CASES = [
    *[(in_time, of, 1.0) for of in ("vp_linear", "sub_vp", "variance_exploding")],
    *[(in_time, of, 0.9) for of in ("vp_cosine", "rectified_flow")],
    *[(in_log_snr, of, 1.0) for of in ("vp_cosine", "rectified_flow")],
]


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0, 1.5])
def test_every_eta_reaches_the_moments_of_the_mixture(eta):
    means, stds, weights = MIXTURE
    for i, (program, of, t) in enumerate(CASES):
        x = draw(program, of, eta, t, jax.random.key(i))
        mean, variance = Mixture1D(PROCESSES[of], *MIXTURE).moments()
        away = means - mean
        fourth = weights @ (away**4 + 6 * away**2 * stds**2 + 3 * stds**4)
        within_standard_errors(x, mean, np.sqrt(variance), kurtosis=fourth / variance**2)
        # And the place of each mode, which moments could miss.
        for border in (-0.45, 1.02):
            share = Mixture1D(PROCESSES[of], *MIXTURE).cdf(np.array([border]), 0.0)[0]
            assert abs((x < border).mean() - share) < 4.5 * np.sqrt(share * (1 - share) / N), of


def test_from_pure_noise_steps_in_time_are_finite_and_the_first_is_exact():
    x = jnp.asarray(rng.normal(size=(5, 2)), jnp.float32)
    for of in NO_SIGNAL_AT_ONE:
        p, D = ALL[of], lambda x, t: 0.3 * x
        steps = [
            make(p, 0.7).step(D, x, 1.0, 0.6, KEY, ())[0]
            for make in (sde_samplers.reverse_sde, sde_samplers.reverse_sde_log_snr)
        ]
        np.testing.assert_allclose(*steps, atol=1e-6)  # two programs round differently
        assert np.isfinite(steps[0]).all()


def test_eta_may_be_traced_and_the_slope_is_finite():
    p, x = process.vp_cosine(), jnp.asarray(rng.normal(size=(4, 2)), jnp.float32)

    def total(make, eta):
        D = lambda x, t: 0.4 * x  # noqa: E731
        return sampling.sample(make(p, eta), D, x, [1.0, 0.6, 0.3, 0.0], KEY)[0].sum()

    for make in (sde_samplers.reverse_sde, sde_samplers.reverse_sde_log_snr):
        value = jax.jit(jax.value_and_grad(lambda eta, make=make: total(make, eta)))
        (low, _), (_, slope), (high, _) = (value(eta) for eta in (0.599, 0.6, 0.601))
        np.testing.assert_allclose(slope, (high - low) / 0.002, rtol=5e-3)


# -------------------------------------------------------------------------------- Langevin dynamics


@jax.jit
def ula(step_size, level, x, key):
    """A chain for the marginal of GAUSSIAN under rectified flow."""
    p = process.rectified_flow()
    D = mixture_of(p, GAUSSIAN).denoise
    sampler = sde_samplers.langevin(p, step_size, level)
    return sampling.sample(sampler, D, x, sampling.uniform(60), key)[1]


@pytest.mark.parametrize(("share", "level"), [(0.1, 0.3), (0.5, 0.3), (1.2, 0.8)])
def test_unadjusted_langevin_has_the_variance_of_its_closed_form(share, level):
    v = ((1 - level) * 0.5) ** 2 + level**2
    h = share * v
    x = ula(h, level, as_column(rng.normal(size=N)), KEY)
    # After 60 steps (1 − share)^60 is left of the start: at most .002. The states of 20 steps in
    # between say the same; here the last is taken.
    within_standard_errors(x[-1], (1 - level) * 0.7, np.sqrt(v / (1 - h / (2 * v))))
    if share == 1.2:  # far from the v that is wanted, with small errors
        assert abs(float(x[-1].var()) / v - 1) > 1


def test_unadjusted_langevin_diverges_for_a_step_of_two_variances():
    v = (0.7 * 0.5) ** 2 + 0.3**2
    x = ula(2.2 * v, 0.3, as_column(rng.normal(size=N)), KEY)
    assert float(x[-1].var()) > 1e3


@jax.jit
def annealed(data, x, times, key):
    p = PROCESSES["variance_exploding"].process
    D = denoiser.GaussianMixture(p, *data).denoise
    return sampling.sample(sde_samplers.annealed_langevin(p, 0.02, 60), D, x, times, key)[0]


def test_annealed_langevin_reaches_the_modes_in_their_shares():
    o = PROCESSES["variance_exploding"]
    data = tuple(jnp.asarray(a, jnp.float32) for a in (MIXTURE[0][:, None], *MIXTURE[1:]))
    x = as_column(float(o.sigma(1.0)) * rng.normal(size=N))
    x = np.asarray(annealed(data, x, sampling.uniform(60), KEY), np.float64)[:, 0]
    for border in (-0.45, 1.02):
        share = Mixture1D(o, *MIXTURE).cdf(np.array([border]), 0.0)[0]
        # Below the modes' distance the shares are frozen by dynamics that no longer cross; what
        # the last crossings leave is worth about 2 %.
        assert abs((x < border).mean() - share) < 0.02 + 4 * np.sqrt(share * (1 - share) / N)


def counted(sampler, times, x):
    """The times at which a denoiser is asked in a run."""
    asked = []

    def D(x, t):
        jax.debug.callback(lambda t: asked.append(float(t)), t)
        return jnp.full_like(x, 0.25)

    x, _ = sampling.sample(sampler, D, x, times, KEY)
    jax.effects_barrier()
    return asked, x


def test_evaluations_are_as_many_as_said_and_the_last_step_is_the_denoiser_s():
    p, times, x = process.edm(), sampling.uniform(5), jnp.ones((3, 2))
    asked, last = counted(sde_samplers.annealed_langevin(p, 0.1, 4), times, x)
    np.testing.assert_allclose(asked, [*np.repeat(times[:5], 4), times[4]])
    assert (last == 0.25).all()
    pc = sde_samplers.predictor_corrector(sde_samplers.reverse_sde(p), p, 0.1, 2)
    asked, last = counted(pc, times, x)
    want = [t for i in range(4) for t in (times[i], times[i + 1], times[i + 1])]
    np.testing.assert_allclose(asked, [*want, times[4]])
    assert (last == 0.25).all()
    asked, _ = counted(sde_samplers.langevin(p, 0.1, 0.5), times, x)
    assert asked == [0.5] * 5


def test_a_correction_s_drift_is_snr_times_as_long_as_its_noise():
    p, s, snr = process.sub_vp(), 0.55, 0.2
    x = jnp.asarray(rng.normal(0.3, 2.0, (6, 4, 5)), jnp.float32)
    still = samplers.Sampler(lambda x: (), lambda D, x, t, s, key, state: (x, state))
    D = lambda x, t: 0.4 * jnp.cos(x)  # noqa: E731
    got, _ = sde_samplers.predictor_corrector(still, p, snr).step(D, x, 0.8, s, KEY, ())
    then = jax.random.split(KEY)[1]
    noise = np.asarray(jax.random.normal(jax.random.fold_in(then, 0), x.shape), np.float64)
    score = (float(p.alpha(s)) * np.asarray(D(x, s)) - x) / float(p.sigma(s)) ** 2
    norm = lambda v: np.linalg.norm(np.reshape(v, (6, 20)), axis=1).mean()  # noqa: E731
    h = 2 * (snr * norm(noise) / norm(score)) ** 2
    np.testing.assert_allclose(got, x + h * score + np.sqrt(2 * h) * noise, atol=1e-4)
    assert norm(h * score) / norm(np.sqrt(2 * h) * noise) == pytest.approx(snr, rel=1e-5)
    # Exact states have no noise to correct, and nothing is divided by it.
    alone = sde_samplers.predictor_corrector(still, p, snr).step(
        lambda x, t: x / p.alpha(t), x, 0.8, s, KEY, ()
    )[0]
    assert np.isfinite(alone).all()


def test_corrections_pull_a_wrong_state_back_to_the_marginal():
    # A predictor that halves the spread; forty corrections at level .5 mend it, to their bias:
    # with h = 2·snr²·v of a Gaussian, v/(1 − h/(2v)) is v/(1 − snr²).
    p, data = process.vp_linear(), ([0.0], [0.5], [1.0])
    s, snr = 0.5, 0.3
    v = (float(p.alpha(s)) * 0.5) ** 2 + float(p.sigma(s)) ** 2
    x = as_column(np.sqrt(v) / 2 * rng.normal(size=N))
    still = samplers.Sampler(lambda x: (), lambda D, x, t, s, key, state: (x, state))
    pc = sde_samplers.predictor_corrector(still, p, snr, 40)
    got, _ = jax.jit(lambda x: pc.step(mixture_of(p, data).denoise, x, 0.6, s, KEY, ()))(x)
    within_standard_errors(got, 0, np.sqrt(v / (1 - snr**2)))


def test_wrong_parameters_are_refused():
    p = process.vp_linear()
    for make in (sde_samplers.reverse_sde, sde_samplers.reverse_sde_log_snr):
        for eta in (-0.1, np.nan, np.inf):
            with pytest.raises(ValueError, match=r"eta must be in \[0, inf\), got"):
                make(p, eta)
        with pytest.raises(ValueError, match="eta must be one number, got"):
            make(p, [0.5, 1.0])
    for value in (0, -1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="step_size must be positive and finite, got"):
            sde_samplers.langevin(p, value, 0.5)
        with pytest.raises(ValueError, match="step_size must be positive and finite, got"):
            sde_samplers.annealed_langevin(p, value)
        with pytest.raises(ValueError, match="snr must be positive and finite, got"):
            sde_samplers.predictor_corrector(samplers.ddpm(p), p, value)
    for level in (0, 1.1, np.nan):
        with pytest.raises(ValueError, match=r"level must be in \(0, 1\], got"):
            sde_samplers.langevin(p, 0.1, level)
    for count in (0, 2.5, True):
        with pytest.raises(ValueError, match="steps must be a whole number at least 1, got"):
            sde_samplers.annealed_langevin(p, 0.1, count)
        with pytest.raises(ValueError, match="corrections must be a whole number at least 1, got"):
            sde_samplers.predictor_corrector(samplers.ddpm(p), p, 0.1, count)
