from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from oracles import (
    CHAINS,
    EPS32,
    NO_SIGNAL_AT_ONE,
    PRESERVING,
    PROCESSES,
    chain_roots,
    cosine64,
    cosine_alpha64,
    examples,
    float32_times,
    linear64,
    posterior64,
    quadratic64,
    sigmoid64,
    slope64,
    transition64,
    within_standard_errors,
    zero_snr64,
)

from diffusion_course import process

rng = np.random.default_rng(20)

# Times come in arrays of this one size, so that JAX compiles each operation once for the file.
N = 256

every_process = pytest.mark.parametrize("name", PROCESSES)


def later_and_earlier(n=N, low=0.02, gap=0.03):
    """n pairs s < t, at least a little apart, that float32 holds exactly."""
    t = float32_times(rng, n, low + gap, 0.98)
    s = (low + (t - gap - low) * rng.uniform(0, 1, n)).astype(np.float32).astype(np.float64)
    return t, s


# ------------------------------------------------------------------------------ beta schedules


@pytest.mark.parametrize("T", [1, 2, 7, 1000])
def test_schedules_are_the_papers_formulas(T):
    cases = [
        (process.linear_betas(T), linear64(T, 1e-4, 0.02)),
        (process.linear_betas(T, 0.003, 0.4), linear64(T, 0.003, 0.4)),
        (process.quadratic_betas(T, 0.003, 0.4), quadratic64(T, 0.003, 0.4)),
        (process.scaled_linear_betas(T), quadratic64(T, 0.00085, 0.012)),
        (process.sigmoid_betas(T, 0.003, 0.4, 5.0), sigmoid64(T, 0.003, 0.4, 5.0)),
        (process.cosine_betas(T), cosine64(T, 0.008, 0.999)),
        (process.cosine_betas(T, 0.02, 0.7), cosine64(T, 0.02, 0.7)),
    ]
    for got, want in cases:
        assert got.dtype == np.float64 and got.shape == (T,)
        # 1 − ᾱ_n/ᾱ_{n−1} cancels: 1e-16 against betas of 4e-5.
        np.testing.assert_allclose(got, want, rtol=1e-10)


def test_schedules_have_their_published_defaults():
    linear, stable = process.linear_betas(1000), process.scaled_linear_betas(1000)
    assert (linear[0], linear[-1]) == (1e-4, 0.02)
    np.testing.assert_allclose([stable[0], stable[-1]], [0.00085, 0.012], rtol=1e-12)
    # alpha_bar_T of DDPM and of Stable Diffusion, as published implementations print them.
    np.testing.assert_allclose(np.prod(1 - linear), 4.0358e-05, rtol=1e-4)
    np.testing.assert_allclose(np.prod(1 - stable), 4.660e-03, rtol=1e-3)


def test_the_cosine_clip_touches_only_the_last_step():
    roots, t = chain_roots(process.cosine_betas(1000)), np.arange(1001) / 1000
    np.testing.assert_allclose(roots[:-1], cosine_alpha64(t[:-1], 0.008), rtol=1e-10)
    # A harder clip, at 0.02 for example, would leave 0.057 here.
    assert 0 < roots[-1] < 1e-4


@pytest.mark.parametrize("T", [2, 3, 10, 1000])
def test_zero_terminal_snr_is_algorithm_1_and_keeps_the_first_step(T):
    betas = quadratic64(T, 0.00085, 0.012)
    got = process.zero_terminal_snr(betas)
    np.testing.assert_allclose(got, zero_snr64(betas), rtol=1e-9)
    assert got[-1] == 1
    np.testing.assert_allclose(got[0], betas[0], rtol=1e-9)


@pytest.mark.parametrize("T", [2, 3, 5, 6, 11, 50, 1000])
def test_no_signal_at_all_is_left_after_zero_terminal_snr(T):
    for betas in (linear64(T, 0.01, 0.3), cosine64(T, 0.008, 0.999)):
        p = process.from_betas(process.zero_terminal_snr(betas))
        assert p.alpha(1.0) == 0 and p.sigma(1.0) == 1


# --------------------------------------------------------------------------- alpha and sigma


@every_process
def test_time_zero_is_exactly_the_data(name):
    p = PROCESSES[name].process

    def both(t):
        return p.alpha(t), p.sigma(t)

    @jax.jit
    def fused():
        shapes = [both(jnp.zeros(shape)) for shape in ((), (N,), (3, 16))]
        return shapes, jax.lax.map(both, jnp.zeros((3, 16)))

    shapes, loop = fused()
    for levels in (both(0.0), both(np.zeros(N)), *shapes, loop):
        assert (levels[0] == 1).all() and (levels[1] == 0).all()
    assert [a.shape for a, _ in shapes] == [s.shape for _, s in shapes] == [(), (N,), (3, 16)]


def test_the_cosine_process_is_exact_at_both_ends_for_every_offset():
    # cos/cos in float32 is 1 only for some offsets, and only as long as nothing is fused.
    alphas = [process.vp_cosine(s).alpha for s in (0.0, 0.001, 0.008, 0.02, 0.03, 0.1, 3.0, 1e7)]
    for alpha, fused in zip(
        alphas, jax.jit(lambda t: [a(t) for a in alphas])(np.zeros(8)), strict=True
    ):
        assert alpha(0.0) == 1 and alpha(1.0) == 0
        assert (fused == 1).all()
        assert (np.diff(alpha(np.linspace(0, 1, 4001))) < 0).all()


@pytest.mark.parametrize("name", NO_SIGNAL_AT_ONE)
def test_processes_that_promise_it_end_in_pure_noise(name):
    p = PROCESSES[name].process
    assert p.alpha(1.0) == 0
    np.testing.assert_allclose(p.sigma(1.0), 1, rtol=2 * EPS32)


@every_process
def test_levels_are_the_papers_formulas_to_float32_precision(name):
    o = PROCESSES[name]
    t = np.concatenate([np.geomspace(1e-4, 0.5, N // 2), np.linspace(0.5, 0.999, N // 2)])
    t = t.astype(np.float32).astype(np.float64)
    # exp(−6) and 1500^t multiply the rounding of t; a place in a table of 1000 steps is known to
    # 3e-5 of a step, and in its last step alpha goes from one step's worth to 0.
    np.testing.assert_allclose(o.process.alpha(t), o.alpha(t), rtol=5e-5)
    np.testing.assert_allclose(o.process.sigma(t), o.sigma(t), rtol=1e-5)


@every_process
def test_noise_levels_keep_their_digits_close_to_the_data(name):
    o = PROCESSES[name]
    t = np.geomspace(1e-6, 1e-2, N).astype(np.float32).astype(np.float64)
    if name in ("vp_cosine", "variance_exploding", *CHAINS):
        # Float64 loses 1e-16/sigma² here, up to 1e-8, still far below the tolerance.
        assert (o.sigma(t) ** 2 > 1e-10).all()
    # sqrt(1 − alpha²) in float32 would be wrong by 3e-8/sigma², which is more than 1 here.
    np.testing.assert_allclose(o.process.sigma(t), o.sigma(t), rtol=1e-5)


@pytest.mark.parametrize("name", PRESERVING)
def test_variance_preserving_levels_are_a_circle(name):
    p, t = PROCESSES[name].process, np.linspace(0, 1, N)
    # Two squares below 1, each with a few roundings of EPS32/2.
    np.testing.assert_allclose(p.alpha(t) ** 2 + p.sigma(t) ** 2, 1, atol=8 * EPS32)


@every_process
def test_log_snr_is_the_log_of_the_power_ratio_and_falls(name):
    o, t = PROCESSES[name], np.linspace(0, 1, N).astype(np.float32)
    got = np.asarray(o.process.log_snr(t))
    assert got[0] == np.inf
    assert (got[-1] == -np.inf) == (name in NO_SIGNAL_AT_ONE)
    assert (np.diff(got) < 0).all()
    inner = t[1:-1].astype(np.float64)
    want = np.log(o.alpha(inner) ** 2 / o.sigma(inner) ** 2)
    # An error of 2e-5 in alpha or sigma is 4e-5 in the log.
    np.testing.assert_allclose(got[1:-1], want, rtol=1e-6, atol=6e-5)


@pytest.mark.parametrize("T", [1, 2, 7, 250, 1000])
def test_step_n_of_a_chain_is_the_time_n_over_T(T):
    betas = linear64(T, 0.002, 0.01)
    p, n = process.from_betas(betas), np.minimum(np.arange(1001), T)
    # n/T is rounded to float32, which shifts the place in the table by up to T·EPS32 of a step.
    np.testing.assert_allclose(p.alpha(n / T), chain_roots(betas)[n], rtol=3e-6)


@every_process
def test_time_derivatives_agree_with_finite_differences(name):
    o = PROCESSES[name]
    t = float32_times(rng, N, 0.03, 0.97)
    if name in CHAINS:  # the middles of the table's intervals: at its knots there is no derivative
        T = 7 if name == "short chain" else 1000
        t = ((np.floor(t * T) + 0.5) / T).astype(np.float32).astype(np.float64)
    # A table's slope is a difference of neighbours, each rounded by EPS32/2 of itself, times T.
    for got, f, scale in [
        (o.process.d_alpha(t), o.alpha, 1.0),
        (o.process.d_sigma(t), o.sigma, float(o.sigma(1.0))),
    ]:
        rounding = 1000 * EPS32 * scale if name in CHAINS else 4 * EPS32 * scale
        np.testing.assert_allclose(got, slope64(f, t), rtol=3e-4, atol=2 * rounding)


@pytest.mark.parametrize("name", CHAINS)
def test_derivatives_of_a_chain_hold_at_both_ends_of_time(name):
    o = PROCESSES[name]
    # The slope of alpha in the first and in the last interval of the table, from inside.
    first = (o.alpha(1e-4) - 1) / 1e-4
    last = (o.alpha(1.0) - o.alpha(1 - 1e-4)) / 1e-4
    assert o.process.d_alpha(0.0) == pytest.approx(first, rel=1e-3)
    assert o.process.d_alpha(1.0) == pytest.approx(last, rel=1e-3)
    # sigma² = 1 − alpha², so sigma·sigma' = −alpha·alpha'.
    want = -float(o.alpha(1.0)) * last / float(o.sigma(1.0))
    assert o.process.d_sigma(1.0) == pytest.approx(want, rel=1e-3, abs=1e-6)


@every_process
def test_levels_work_under_jit_vmap_and_grad(name):
    p, t = PROCESSES[name].process, float32_times(rng, 6, 0.1, 0.9).astype(np.float32)

    def everything(t):
        return [f(t) for f in (p.alpha, p.sigma, p.log_snr, p.d_alpha, p.d_sigma)]

    @jax.jit
    def transformed(t):
        return everything(t), jax.vmap(everything)(t), jax.vmap(jax.grad(p.sigma))(t)

    fused, mapped, slopes = transformed(t)
    one_by_one = [everything(one) for one in t]
    for got in (fused, mapped):
        for value, want in zip(got, zip(*one_by_one, strict=True), strict=True):
            # A fused program may round differently.
            np.testing.assert_allclose(value, want, rtol=2e-5)
    np.testing.assert_allclose(slopes, fused[4], rtol=1e-5)


# ---------------------------------------------------------------------------------- add_noise


@every_process
def test_noise_is_added_with_one_time_per_example(name):
    o, t = PROCESSES[name], float32_times(rng, 5)
    x0, eps = rng.normal(0.3, 2.0, (2, 5, 4, 3, 2))
    got = process.add_noise(o.process, x0, eps, t)
    for i in range(5):
        want = o.alpha(t[i]) * x0[i] + o.sigma(t[i]) * eps[i]
        np.testing.assert_allclose(got[i], want, rtol=2e-5, atol=2e-5 * float(o.sigma(1.0)))
        one = process.add_noise(o.process, x0, eps, t[i])[i]  # a scalar time
        np.testing.assert_allclose(one, got[i], rtol=1e-5, atol=1e-5)


def test_noise_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"eps must have the shape of x0, \[3, 2\].*\[3, 1\]"):
        process.add_noise(process.vp_linear(), np.ones((3, 2)), np.ones((3, 1)), 0.5)


@pytest.mark.parametrize("shape", [(1,), (2,), (3, 1)])
def test_times_that_fit_no_batch_are_refused(shape):
    with pytest.raises(ValueError, match=r"t must be a scalar or of shape \[B\] = \[3\], got"):
        process.add_noise(process.vp_linear(), np.ones((3, 2)), np.ones((3, 2)), np.ones(shape))
    with pytest.raises(ValueError, match="t must be a scalar"):
        process.expand(np.ones(1), jnp.zeros(()))


# ------------------------------------------------------------------- transition and posterior


@every_process
def test_transitions_are_what_closes_the_gap_between_two_levels(name):
    o, (t, s) = PROCESSES[name], later_and_earlier()
    scale, variance = process.transition(o.process, t, s)
    want_scale, want_variance = transition64(o, t, s)
    np.testing.assert_allclose(scale, want_scale, rtol=5e-5)
    # 1 − SNR(t)/SNR(s) over a gap of 0.03: log-SNRs with errors of 6e-5 that differ by 0.1.
    np.testing.assert_allclose(variance, want_variance, rtol=1e-3)


@pytest.mark.parametrize(
    "betas", [linear64(1000, 1e-4, 0.02), cosine64(250, 0.008, 0.999), linear64(7, 0.03, 0.6)]
)
def test_neighbours_in_a_chain_differ_by_one_beta(betas):
    T = len(betas)
    p, n = process.from_betas(betas), np.minimum(np.arange(1, 1001), T)
    scale, variance = process.transition(p, n / T, (n - 1) / T)
    np.testing.assert_allclose(scale, np.sqrt(1 - betas[n - 1]), rtol=1e-5)
    # The log-SNR, about 10, is rounded by 1e-6; neighbours differ by no less than beta.
    np.testing.assert_allclose(variance, betas[n - 1], rtol=3e-4)


@every_process
def test_two_transitions_make_one(name):
    p = PROCESSES[name].process
    t, s = later_and_earlier(low=0.08)
    r = s / 2
    scale_ts, variance_ts = process.transition(p, t, s)
    scale_sr, variance_sr = process.transition(p, s, r)
    scale_tr, variance_tr = process.transition(p, t, r)
    np.testing.assert_allclose(scale_ts * scale_sr, scale_tr, rtol=1e-5)
    np.testing.assert_allclose(scale_ts**2 * variance_sr + variance_ts, variance_tr, rtol=5e-4)


@every_process
def test_the_transition_from_the_data_is_the_marginal(name):
    p, t = PROCESSES[name].process, np.linspace(0.05, 1, N)
    scale, variance = process.transition(p, t, 0.0)
    np.testing.assert_allclose(scale, p.alpha(t), rtol=1e-6)
    np.testing.assert_allclose(variance, p.sigma(t) ** 2, rtol=1e-6)


@pytest.mark.parametrize("name", ["linear chain", "sub_vp", "edm", "rectified_flow"])
def test_noising_step_by_step_reaches_the_closed_form(name):
    o, n = PROCESSES[name], 100_000
    times = np.linspace(0, 0.9, 38)
    x = jnp.full(n, 1.7)
    for i, (s, t) in enumerate(pairwise(times)):
        scale, variance = process.transition(o.process, t, s)
        noise = jax.random.normal(jax.random.fold_in(jax.random.key(3), i), (n,))
        x = scale * x + jnp.sqrt(variance) * noise
    within_standard_errors(x, 1.7 * float(o.alpha(0.9)), float(o.sigma(0.9)))


@every_process
def test_the_posterior_is_numerical_bayes(name):
    o, (t, s) = PROCESSES[name], later_and_earlier()
    x0, z = rng.normal(0.4, 1.3, (2, N))
    x_t = o.alpha(t) * x0 + o.sigma(t) * z
    mean, variance = process.posterior(o.process, x0, x_t, t, s)
    for i in range(24):
        scale, added = transition64(o, t[i], s[i])
        # The prior q(x_s | x0), wide enough for every x_t within a few sigma of its mean.
        grid = o.alpha(s[i]) * x0[i] + o.sigma(s[i]) * np.linspace(-9, 9, 20_001)
        log_prior = -((grid - o.alpha(s[i]) * x0[i]) ** 2) / (2 * o.sigma(s[i]) ** 2)
        log_likelihood = -((x_t[i] - scale * grid) ** 2) / (2 * added)
        w = np.exp(log_prior + log_likelihood - (log_prior + log_likelihood).max())
        w /= w.sum()
        want = w @ grid
        want_variance = w @ (grid - want) ** 2
        # Float32 levels: relative errors of 1e-3 in the share of new noise, see above.
        assert mean[i] == pytest.approx(want, abs=1e-3 * float(o.sigma(s[i])) + 1e-4)
        assert variance[i] == pytest.approx(want_variance, rel=2e-3)


@pytest.mark.parametrize("n", [10, 37, 250, 1000])
@pytest.mark.parametrize("name", ["linear chain", "sub_vp"])
def test_posterior_coefficients_hold_on_any_grid(name, n):
    o = PROCESSES[name]
    grid = (np.arange(n, 0, -1) / n).astype(np.float32).astype(np.float64)
    step = np.minimum(np.arange(999), n - 2)  # the last one again and again
    t, s = grid[:-1][step], grid[1:][step]
    ones, zeros = np.ones(999), np.zeros(999)
    of_x0, variance = process.posterior(o.process, ones, zeros, t, s)
    of_x_t, _ = process.posterior(o.process, zeros, ones, t, s)
    want_x0, want_x_t, want_variance = posterior64(o, t, s)
    # Shares of new noise below 0.01 per step, from log-SNRs that float32 knows to 1e-6.
    np.testing.assert_allclose(of_x0, want_x0, rtol=2e-3)
    np.testing.assert_allclose(of_x_t, want_x_t, rtol=1e-4)
    np.testing.assert_allclose(variance, want_variance, rtol=2e-3)


@every_process
def test_averaging_the_posterior_over_x_t_gives_back_the_marginal(name):
    o, (t, s) = PROCESSES[name], later_and_earlier()
    one, zero = np.ones(N), np.zeros(N)
    of_x0, variance = process.posterior(o.process, one, zero, t, s)
    of_x_t, _ = process.posterior(o.process, zero, one, t, s)
    mean = of_x0 + of_x_t * o.alpha(t)
    np.testing.assert_allclose(mean, o.alpha(s), rtol=1e-4)
    np.testing.assert_allclose(variance + (of_x_t * o.sigma(t)) ** 2, o.sigma(s) ** 2, rtol=1e-4)


@every_process
def test_the_posterior_at_time_zero_is_the_data_itself(name):
    p = PROCESSES[name].process
    x0, x_t = rng.normal(0.2, 3, (2, 4, 3)).astype(np.float32)
    for t in (0.01, 0.4, 1.0):
        mean, variance = process.posterior(p, x0, x_t, t, 0.0)
        np.testing.assert_array_equal(mean, x0)
        assert (variance == 0).all()


@pytest.mark.parametrize("name", NO_SIGNAL_AT_ONE)
def test_from_pure_noise_the_posterior_is_the_marginal_given_x0(name):
    p = PROCESSES[name].process
    x0, x_t = rng.normal(0.2, 3, (2, 4, 3)).astype(np.float32)
    mean, variance = process.posterior(p, x0, x_t, 1.0, 0.6)
    np.testing.assert_allclose(mean, p.alpha(0.6) * x0, rtol=1e-6)
    np.testing.assert_allclose(variance, p.sigma(0.6) ** 2, rtol=1e-6)


@every_process
def test_the_posterior_works_under_jit_vmap_and_grad(name):
    p, (t, s) = PROCESSES[name].process, later_and_earlier(5)
    x0, x_t = rng.normal(0.2, 2, (2, 5, 3)).astype(np.float32)

    def mean(x0, x_t, t, s):
        return process.posterior(p, x0, x_t, t, s)[0]

    @jax.jit
    def transformed(x0, x_t, t, s):
        gradient = jax.grad(lambda x: mean(x0, x, t, 0.5 * t).sum())(x_t)
        at_zero = jax.grad(lambda x: mean(x0, x, t, 0.0).sum())(x_t)
        return mean(x0, x_t, t, s), jax.vmap(mean)(x0, x_t, t, s), gradient, at_zero

    fused, mapped, gradient, at_zero = transformed(x0, x_t, t, s)
    want = mean(x0, x_t, t, s)
    # A fused program may round differently, by 1e-6 of a log-SNR.
    for got in (fused, mapped):
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-5)
    of_x_t = mean(np.zeros((5, 3)), np.ones((5, 3)), t, 0.5 * t)
    np.testing.assert_allclose(gradient, of_x_t, rtol=1e-4)
    assert (at_zero == 0).all()  # the mean is x0


# ----------------------------------------------------------------------------- bad arguments

betas_inside = st.floats(0.001, 0.999)
schedules = pytest.mark.parametrize(
    "schedule",
    [
        process.linear_betas,
        process.quadratic_betas,
        process.scaled_linear_betas,
        process.sigmoid_betas,
        process.cosine_betas,
    ],
)


@schedules
@pytest.mark.parametrize("T", [0, -3, 2.5, "10", None])
def test_a_number_of_steps_below_one_is_refused(schedule, T):
    with pytest.raises(ValueError, match=f"T must be a whole number at least 1, got {T!r}"):
        schedule(T)


@schedules
def test_the_number_of_steps_may_be_a_numpy_integer(schedule):
    assert schedule(np.int64(5)).shape == (5,)


@examples
@given(st.floats(-1, 2), st.floats(-1, 2))
def test_beta_ranges_outside_the_unit_interval_are_refused(first, last):
    assume(not 0 < first <= last < 1)
    for schedule in (process.linear_betas, process.quadratic_betas, process.sigmoid_betas):
        with pytest.raises(
            ValueError, match=r"^beta_(start|end) must be (in \(0, 1\)|at most)"
        ) as error:
            schedule(10, first, last)
        assert f"got {first}" in str(error.value) or f"got {last}" in str(error.value)


@examples
@given(
    st.sampled_from([1, 2, 40]).flatmap(lambda T: st.lists(betas_inside, min_size=T, max_size=T))
)
def test_every_chain_of_betas_inside_the_unit_interval_is_a_process(betas):
    p = process.from_betas(betas)
    n = np.minimum(np.arange(41), len(betas))
    t, roots = n / len(betas), chain_roots(np.array(betas))[n]
    # The place in the table is wrong by 40 roundings of at most the whole range.
    np.testing.assert_allclose(p.alpha(t), roots, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(p.alpha(t) ** 2 + p.sigma(t) ** 2, 1, atol=1e-6)


@examples
@given(
    st.lists(st.floats(0.1, 0.5), min_size=2, max_size=9),
    st.integers(0, 8),
    st.sampled_from([0.0, -0.1, 1.5, 1.0, float("nan"), float("inf")]),
)
def test_the_first_beta_outside_the_unit_interval_is_named(betas, index, bad):
    index %= len(betas)
    assume(not (bad == 1.0 and index == len(betas) - 1))
    betas[index] = bad
    with pytest.raises(ValueError, match=f"got {bad} at index {index} of {len(betas)}"):
        process.from_betas(betas)


@pytest.mark.parametrize("betas", [[], 0.1, [[0.1, 0.2]], ["a"], [[0.1], 0.2], 1j])
def test_betas_must_be_a_list_of_numbers(betas):
    with pytest.raises(ValueError, match=r"betas must (have shape|be real numbers of shape) \[T\]"):
        process.from_betas(betas)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: process.sigmoid_betas(9, steepness=0), "steepness must be positive and finite, g"),
        (lambda: process.cosine_betas(9, s=-0.1), r"s must be in \[0, inf\), got -0.1"),
        (lambda: process.cosine_betas(9, max_beta=1.0), r"max_beta must be in \(0, 1\), got 1.0"),
        (lambda: process.zero_terminal_snr([0.1]), "betas must have at least 2 entries, got 1"),
        (lambda: process.vp_linear(0.0, 2.0), r"beta_min must be in \[1e-15, 1e\+15\], got 0.0"),
        (lambda: process.vp_linear(3.0, 2.0), "beta_min must be at most beta_max, 2.0, got 3.0"),
        (lambda: process.sub_vp(3.0, 2.0), "beta_min must be at most beta_max, 2.0, got 3.0"),
        (lambda: process.sub_vp(1.0, 1e16), r"beta_max must be in \[1e-15, 1e\+15\], got 1e\+16"),
        (lambda: process.vp_cosine(-1.0), r"s must be in \[0, inf\), got -1.0"),
        (lambda: process.vp_cosine(float("nan")), r"s must be in \[0, inf\), got nan"),
        (lambda: process.vp_cosine("0"), "s must be a real number, got '0'"),
        (lambda: process.variance_exploding(2.0, 1.0), "sigma_min must be below sigma_max, 1.0, g"),
        (lambda: process.variance_exploding(0.0, 1.0), "sigma_min must be in .*, got 0.0"),
        (lambda: process.edm(sigma_max=0), r"sigma_max must be in \[1e-05, 1e\+15\], got 0"),
        (lambda: process.edm(rho=-7.0), r"rho must be in \[1e-15, 1e\+15\], got -7.0"),
        (lambda: process.edm(sigma_data=float("nan")), "sigma_data must be in .*, got nan"),
    ],
)
def test_bad_parameters_are_named_with_their_rule(call, message):
    with pytest.raises(ValueError, match=message):
        call()
