"""Solvers that own their loop: chosen steps, all times at once, back up in noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import quick_compiler
from oracles import GAUSSIAN, MIXTURE, PROCESSES, Mixture1D
from runs import one_of_all, quantile

from diffusion_course import denoiser, process, samplers, sampling
from diffusion_course.adaptive import adaptive
from diffusion_course.parallel import picard
from diffusion_course.restart import restart

NAMES = ("vp_linear", "vp_cosine", "edm")
KEY = jax.random.key(8)
N = 60
seen = []  # the times of the last run


def counted(D):
    def counting(x, t):
        jax.debug.callback(lambda t: seen.append(float(t)), t)
        return D(x, t)

    return counting


def oracle(p, data):
    return denoiser.GaussianMixture(p, jnp.float32(data[0])[:, None], *map(jnp.float32, data[1:]))


# ------------------------------------------------------------------------------------- adaptive


def program(watch):
    """One for all; the one that calls Python is compiled anew in every run of the tests."""

    @jax.jit
    def solve(index, x, tolerance, begin, end):
        p = one_of_all(index, NAMES)
        return adaptive(p, watch(oracle(p, MIXTURE).denoise), x, tolerance, begin, end)

    return solve


SOLVE, WATCHED = program(lambda D: D), program(counted)


def solved(of, tolerance, begin=1.0, end=0.0, solve=SOLVE):
    """rms error against the exact flow, and the report."""
    exact = Mixture1D(PROCESSES[of], *MIXTURE)
    x = quantile(exact, np.linspace(0.03, 0.97, N), begin)
    seen.clear()
    got, report = solve(
        NAMES.index(of), jnp.float32(x)[:, None], jnp.float32(tolerance), begin, end
    )
    got = np.float64(got)[:, 0]
    jax.effects_barrier()
    want = exact.flow(x, begin, max(end, 1e-9))
    return np.sqrt(np.mean((got - want) ** 2)), report


@pytest.mark.parametrize("of", NAMES)
@pytest.mark.parametrize(("begin", "end"), [(1.0, 0.0), (0.9, 0.2)])
def test_the_error_follows_the_tolerance(of, begin, end):
    tolerances = 10.0 ** -np.arange(2, 6)
    errors, reports = zip(*(solved(of, tol, begin, end) for tol in tolerances), strict=True)
    # Above 1e-6, which float32 leaves.
    assert (errors < 10 * tolerances + 1e-6).all(), errors
    assert 0.8 < np.polyfit(np.log(tolerances), np.log(errors), 1)[0] < 1.2, errors
    assert any(report.rejected > 0 for report in reports)


def test_every_evaluation_is_counted_and_none_is_at_the_data():
    for of in NAMES:
        for begin, end in ((1.0, 0.0), (0.9, 0.2)):
            with quick_compiler():
                _, report = solved(of, 1e-2, begin, end, WATCHED)
            assert len(seen) == report.evaluations, of
            assert min(seen) > 0
            steps = 3 * report.accepted + 2 * report.rejected
            # One more where a step leads from t_start to the first that can be measured in lambda,
            # and one where the last goes to the data.
            assert 0 <= report.evaluations - steps <= 2


def test_an_extreme_tolerance_is_refused_or_costs_what_it_must():
    p, D = process.vp_cosine(), lambda x, t: 0.3 * x
    for bad in (0, 1e-6, 1, float("nan")):
        with pytest.raises(ValueError, match=r"tolerance must be in \[1e-05, 1\), got"):
            adaptive(p, D, jnp.ones((1, 1)), bad)
    for begin, end in ((0.2, 0.2), (0.1, 0.5), (1.1, 0.0)):
        with pytest.raises(ValueError, match=r"must satisfy 0 <= t_end < t_start <= 1, got"):
            adaptive(p, D, jnp.ones((1, 1)), 1e-2, begin, end)


@jax.jit
def short(x):
    p = process.vp_cosine()
    return adaptive(p, oracle(p, GAUSSIAN).denoise, x, 1e-3, max_steps=3)


def test_a_run_that_gives_up_says_so():
    x, report = short(jnp.ones((2, 1)))
    assert np.isnan(x).all() and report.accepted + report.rejected == 3


def test_it_has_a_derivative_forwards_and_none_backwards():
    p = process.vp_cosine()
    run = lambda x: adaptive(p, oracle(p, GAUSSIAN).denoise, x, 1e-3)[0]  # noqa: E731
    x = jnp.full((1, 1), 0.4)
    got, slope = jax.jit(lambda x: jax.jvp(run, (x,), (jnp.ones_like(x),)))(x)
    # The flow of a Gaussian is a line: from N(0, 1) to N(.7, .5²).
    np.testing.assert_allclose(got, 0.7 + 0.5 * x, atol=2e-3)
    np.testing.assert_allclose(slope, 0.5, atol=2e-3)
    with pytest.raises(ValueError, match="Reverse-mode differentiation does not work"):
        jax.grad(lambda x: run(x).sum())(x)


# --------------------------------------------------------------------------------------- Picard

GRID = sampling.uniform(24)


@pytest.mark.parametrize("of", NAMES)
def test_picard_s_fixed_point_is_the_sequential_run(of):
    p = PROCESSES[of].process
    D = oracle(p, MIXTURE).denoise
    x = sampling.start_noise(p, KEY, (N, 1))
    want, _ = sampling.sample(samplers.ddim(p), D, x, GRID, KEY)
    # Every sum has the order of the sequential one; D's own rounding differs in a batch of all.
    got, sweeps = picard(p, D, x, GRID)
    np.testing.assert_allclose(got, want, atol=5e-6)
    assert 1 < sweeps <= 24
    loose, fewer = picard(p, D, x, GRID, tolerance=1e-2)
    assert fewer < sweeps
    assert 0 < np.abs(loose - want).max() < 0.1


def test_a_window_of_one_is_sequential_and_a_larger_one_needs_fewer_sweeps():
    p = process.vp_cosine()
    D = oracle(p, MIXTURE).denoise
    x = sampling.start_noise(p, KEY, (N, 1))
    want, _ = sampling.sample(samplers.ddim(p), D, x, GRID, KEY)
    counts = []
    for window in (1, 7, 24):
        got, sweeps = picard(p, D, x, GRID, window=window)
        np.testing.assert_allclose(got, want, atol=5e-6)
        counts.append(int(sweeps))
    assert counts[0] == 24 > counts[1] > counts[2]


def test_picard_maps_a_denoiser_with_labels_over_times():
    p, labels = process.vp_cosine(), jnp.array([0, 3, 1])
    D = denoiser.denoiser(lambda x, t, y: 0.2 * x + y[:, None] * t[:, None], p, "x0", labels)
    x = jnp.ones((3, 2))
    got, _ = picard(p, D, x, sampling.uniform(5), window=3)
    want, _ = sampling.sample(samplers.ddim(p), D, x, sampling.uniform(5), KEY)
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_picard_refuses_what_it_cannot_use():
    p, D = process.vp_cosine(), lambda x, t: 0 * x
    with pytest.raises(ValueError, match=r"window must be a whole number in \[1, 24\], got 25"):
        picard(p, D, jnp.ones((1, 1)), GRID, window=25)
    with pytest.raises(ValueError, match=r"tolerance must be in \[0, inf\), got -1"):
        picard(p, D, jnp.ones((1, 1)), GRID, tolerance=-1)
    with pytest.raises(ValueError, match="times must fall strictly"):
        picard(p, D, jnp.ones((1, 1)), GRID[::-1])


# -------------------------------------------------------------------------------------- Restart


DOWN = np.float32([1, 0.85, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.04, 0])
PART = np.float32([0.6, 0.5, 0.4, 0.3])


def again(repeats, x, D, key=KEY, p=PROCESSES["vp_linear"].process):
    return restart(samplers.dpm_solver_pp_2m(p), p, D, x, DOWN, PART, repeats, key)


def test_restart_costs_its_grid_and_every_repeat():
    D = counted(lambda x, t: 0.3 * x)
    for repeats in (0, 1, 4):
        seen.clear()
        with quick_compiler():
            jax.block_until_ready(again(repeats, jnp.ones((2, 1)), D))
        jax.effects_barrier()
        assert len(seen) == 10 + 3 * repeats


def test_without_repeats_it_is_the_sampler_and_with_them_it_draws_noise():
    p = PROCESSES["vp_linear"].process
    D = oracle(p, GAUSSIAN).denoise
    x = jax.random.normal(KEY, (N, 1))
    # Its memory starts anew at .3: from there on it is another run.
    x_low = sampling.sample(samplers.dpm_solver_pp_2m(p), D, x, DOWN[:7], KEY)[0]
    want = sampling.sample(samplers.dpm_solver_pp_2m(p), D, x_low, DOWN[6:], KEY)[0]
    np.testing.assert_allclose(again(0, x, D), want, atol=1e-5)
    run = jax.jit(lambda k: again(1, x, D, jax.random.key(k)))
    one, other = run(1), run(2)
    assert np.abs(one - other).min() > 1e-4


def test_restart_contracts_an_error_of_the_start_and_keeps_the_marginals():
    p = PROCESSES["vp_linear"].process
    D = oracle(p, GAUSSIAN).denoise
    run = jax.jit(lambda x: [again(r, x, D) for r in (0, 1, 3)])
    x = jax.random.normal(KEY, (20_000, 1))
    none, once, thrice = (np.float64(y) for y in run(x))
    # 20,000 draws: 4 standard errors are 1.4 % of the std each, and few steps have a bias.
    for y in (none, once, thrice):
        assert abs(y.mean() - 0.7) < 0.03 and abs(y.std() / 0.5 - 1) < 0.08
    moved = [np.float64(y) for y in run(x + 1.0)]
    gaps = [np.abs(a - b).mean() for a, b in zip(moved, (none, once, thrice), strict=True)]
    # Each round multiplies a gap by the correlation of x_low with what comes back to it.
    assert gaps[1] < 0.8 * gaps[0] and gaps[2] < 0.8**2 * gaps[1]


def test_a_part_that_does_not_fit_its_grid_is_refused():
    p, D, times = process.vp_cosine(), lambda x, t: 0 * x, np.array([1, 0.6, 0.3, 0.0])
    for part in ([0.9, 0.4], [0.9, 0.0], [0.9, 0.31]):
        with pytest.raises(ValueError, match="again must end at one of times between its"):
            restart(samplers.ddim(p), p, D, jnp.ones((1, 1)), times, np.array(part), 1, KEY)
    with pytest.raises(ValueError, match="repeats must be a whole number at least 0, got -1"):
        restart(samplers.ddim(p), p, D, jnp.ones((1, 1)), times, np.array([0.9, 0.3]), -1, KEY)
