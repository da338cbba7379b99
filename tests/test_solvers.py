"""The solvers of the probability flow: orders, evaluation counts, identities."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from oracles import EPS32, GAUSSIAN, MIXTURE, NO_SIGNAL_AT_ONE, PROCESSES, Mixture1D
from runs import ALL, EXTREME, SAMPLERS, SOLVERS, noise_of, quantile, run

from diffusion_course import denoiser, process, samplers, sampling

N = 2000  # points in every run of this file, so that they share their programs
every_solver = pytest.mark.parametrize("name", SOLVERS)

# ----------------------------------------------------------------------------------- evaluations


def expected_evaluations(name, of, times):
    """As the docstrings say, step by step."""
    p, total = ALL[of], 0
    for i, (t, s) in enumerate(pairwise(times)):
        signal = float(p.alpha(t)) > EPS32 * float(p.sigma(t))
        corrected = {
            "heun": 2,
            "dpm_solver 2": 2,
            "dpm_solver 3": 3,
            "pndm": 4 if i < 3 else 1,
        }.get(name, 1)
        total += corrected if signal and s > 0 else 1
    return total


@pytest.mark.parametrize("steps", [4, 20])
@every_solver
def test_the_denoiser_is_evaluated_exactly_as_often_as_said(name, steps):
    times = sampling.uniform(steps)
    for of in ("vp_linear", "linear chain", *NO_SIGNAL_AT_ONE, *EXTREME):
        seen = runs.evaluated(name, of, times)
        assert len(seen) == expected_evaluations(name, of, times), of
        assert min(seen) > 0  # nothing is asked at the data themselves


@pytest.mark.parametrize(
    ("name", "fewer"), [("heun", 1), ("dpm_solver 2", 1), ("dpm_solver 3", 2), ("pndm", 3)]
)
def test_nothing_is_spent_on_a_correction_of_a_step_without_signal(name, fewer):
    counts = []
    for of in ("vp_linear", "vp_cosine"):
        counts.append(len(runs.evaluated(name, of, sampling.uniform(7))))
    assert counts[0] - counts[1] == fewer


# ---------------------------------------------------------------------------------------- orders


def errors(of, data, name, counts, begin, end):
    """Root mean square errors against the exact flow map, by number of steps."""
    exact = Mixture1D(PROCESSES[of], *data)
    start = quantile(exact, np.linspace(0.03, 0.97, N), begin)
    want = exact.flow(start, begin, end)
    grids = (np.linspace(begin, end, n + 1) for n in counts)
    return np.array(
        [np.sqrt(np.mean((run(name, of, data, start, grid) - want) ** 2)) for grid in grids]
    )


def slope(counts, found):
    return -np.polyfit(np.log(counts), np.log(found), 1)[0]


ORDERS = {
    "euler": (0.85, 1.3, [24, 48, 96]),
    "dpm_solver 1": (0.85, 1.3, [24, 48, 96]),
    "heun": (1.8, 2.3, [12, 24, 48]),
    "dpm_solver_pp_2m": (1.8, 2.3, [24, 48, 96]),
    "dpm_solver 2": (1.8, 2.3, [12, 24, 48]),
    "dpm_solver 3": (2.6, 3.5, [4, 6, 9]),  # more, and float32 is all that is left
    "pndm": (1.6, 4.5, [16, 24, 36]),  # the paper proves order 2
    # Order 3, and what a warm-up of lower order leaves of it.
    "dpm_solver_pp_3m": (2.3, 2.9, [12, 24, 48]),
    "deis": (2.3, 2.9, [12, 24, 48]),
    "unipc": (2.6, 5.0, [6, 9, 12]),  # the corrector mends the warm-up too
}


@pytest.mark.parametrize("data", [GAUSSIAN, MIXTURE], ids=["Gaussian", "mixture"])
@pytest.mark.parametrize("name", ORDERS)
def test_a_solver_converges_to_the_exact_flow_with_its_order(name, data):
    low, high, counts = ORDERS[name]
    # Where the flow is smooth: a mixture's modes part below t = 0.35.
    found = errors("vp_linear", data, name, counts, 0.9, 0.4)
    assert low < slope(counts, found) < high, found


@pytest.mark.parametrize("of", ["vp_cosine", "rectified_flow"])
@pytest.mark.parametrize("name", ["heun", "dpm_solver_pp_2m"])
def test_a_first_order_step_from_pure_noise_leaves_the_order_what_it_is(name, of):
    counts = [12, 24, 48]
    found = errors(of, GAUSSIAN, name, counts, 1.0, 0.3)
    assert 1.8 < slope(counts, found) < 2.6, found


@pytest.mark.parametrize("of", NO_SIGNAL_AT_ONE)
def test_the_second_step_of_2m_from_pure_noise_is_of_second_order(of):
    exact = Mixture1D(PROCESSES[of], *GAUSSIAN)
    start = quantile(exact, np.linspace(0.03, 0.97, N), 1.0)
    lengths, found = [0.16, 0.08, 0.04], []
    for h in lengths:
        times = np.float32([1, 1 - h, 1 - 2 * h])
        between = run("dpm_solver_pp_2m", of, GAUSSIAN, start, times[:2])
        got = run("dpm_solver_pp_2m", of, GAUSSIAN, start, times)
        want = exact.flow(between, *times[1:].astype(np.float64))
        found.append(np.sqrt(np.mean((got - want) ** 2)))
    # One step of a method of order p errs by h^(p + 1) at least: 3 here, and 2 for DDIM's step.
    assert -slope(lengths, found) > 2.6, found


def test_2m_s_second_step_goes_no_further_than_x0_is_known():
    # From .999 to .5 the signal grows 600 times: drawn out that far, a network's smallest change
    # of mind between 1 and .999 would be the picture.
    p = PROCESSES["vp_cosine"].process
    sampler, x = samplers.dpm_solver_pp_2m(p), jnp.full((1, 1), 0.3)
    said = {1.0: 0.2, np.float32(0.999): 0.21}
    D = lambda x, t: jnp.full_like(x, said[float(t)])  # noqa: E731
    state = sampler.init(x)
    for t, s in ((1.0, 0.999), (0.999, 0.5)):
        t, s = jnp.float32(t), jnp.float32(s)
        shrink = p.sigma(s) / p.sigma(t)
        ahead = 0.2 if t == 1 else 0.21 + 0.01 / 2
        want = shrink * x + (p.alpha(s) - p.alpha(t) * shrink) * ahead
        x, state = sampler.step(D, x, t, s, jax.random.key(0), state)
        np.testing.assert_allclose(x, want, rtol=1e-5)


def test_better_solvers_need_fewer_evaluations():
    at_24 = {
        name: errors("vp_linear", MIXTURE, name, [24 // cost], 0.9, 0.4)[0]
        for name, cost in {"dpm_solver 1": 1, "dpm_solver_pp_2m": 1, "dpm_solver 3": 3}.items()
    }
    assert at_24["dpm_solver_pp_2m"] < at_24["dpm_solver 1"] / 5
    assert at_24["dpm_solver 3"] < at_24["dpm_solver_pp_2m"]


# ------------------------------------------------------------------------------------ identities


def test_dpm_solver_of_order_one_is_ddim():
    times, x = sampling.uniform(17), noise_of("linear chain", N)
    for n in (1, 8, 17):
        both = (run(name, "linear chain", MIXTURE, x, times[: n + 1]) for name in
                ("dpm_solver 1", "ddim"))  # fmt: skip
        np.testing.assert_allclose(*both, atol=1e-5)


@pytest.mark.parametrize("of", ["rectified_flow", "edm, straight"])
def test_euler_is_ddim_where_paths_are_straight_in_time(of):
    x = noise_of(of, N)
    euler, ddim = (run(name, of, MIXTURE, x, sampling.uniform(11)) for name in ("euler", "ddim"))
    np.testing.assert_allclose(euler, ddim, atol=5e-4)  # sigma is up to 80, in float32
    vp = (run(name, "vp_linear", MIXTURE, x / x.std(), sampling.uniform(11)) for name in
          ("euler", "ddim"))  # fmt: skip
    assert np.abs(np.subtract(*vp)).max() > 0.01


@every_solver
def test_the_last_step_returns_what_the_denoiser_says(name):
    x = np.random.default_rng(1).normal(0.3, 1.2, N)
    for of, p in ALL.items():
        gm = denoiser.gaussian_mixture(p, GAUSSIAN[0][:, None], *GAUSSIAN[1:])
        said = gm.denoise(jnp.asarray(x[:, None], jnp.float32), jnp.float32(0.2))[:, 0]
        # Two float32 programs.
        got = run(name, of, GAUSSIAN, x, [0.2, 0.0])
        np.testing.assert_allclose(got, said, rtol=1e-5, atol=1e-6, err_msg=of)


# ------------------------------------------------------------------------------------ whole runs


@every_solver
def test_whole_runs_stay_finite_and_draw_the_data(name):
    mean, std = GAUSSIAN[0][0], GAUSSIAN[1][0]
    for of in ALL:
        # Also from states without signal, where the log-SNR is infinite or float32 loses it.
        got = run(name, of, GAUSSIAN, noise_of(of, N, seed=3), sampling.uniform(60))
        assert np.isfinite(got).all(), of
        if of == "edm, straight":
            continue  # equal steps of sigma from 80 to 0: the last one alone is 1.3
        # Standard errors are std/45 and std/63. What remains of x_1's own mean and the first-order
        # steps at the ends is at most a tenth of the data's spread with 60 steps.
        assert abs(got.mean() - mean) < 0.12 * std + 4 * std / 45, of
        # Euler's method in time is three times worse where sigma grows like a power of t; the
        # extreme schedules leave few of the 60 steps to the part with any signal.
        assert abs(got.std() / std - 1) < (0.4 if name == "euler" else 0.25), (of, got.std())


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
@every_solver
def test_a_few_steps_are_finite_too(name, steps):
    for of in ALL:
        got = run(name, of, MIXTURE, noise_of(of, N), sampling.uniform(steps))
        assert np.isfinite(got).all(), of


@every_solver
def test_solvers_can_be_differentiated_and_mapped(name):
    p, x = PROCESSES["vp_cosine"].process, noise_of("vp_cosine", N)[:2]

    def result(mean):
        gm = denoiser.GaussianMixture(p, mean.reshape(1, 1), jnp.full(1, 0.5), jnp.ones(1))
        start = jnp.asarray(x[:, None], jnp.float32)
        sampler, times = SOLVERS[name](p), sampling.uniform(5)
        return sampling.sample(sampler, gm.denoise, start, times, jax.random.key(0))[0].sum()

    means = np.array([0.5, 0.69, 0.7, 0.71])
    values, slopes = jax.jit(jax.vmap(jax.value_and_grad(result)))(means)
    assert np.isfinite(slopes).all()
    # All is linear in the mean, so a secant is the slope, up to float32.
    np.testing.assert_allclose(slopes[2], (values[2] - values[0]) / 0.2, rtol=1e-3)
    # The same, not mapped: a program of `runs`.
    data = ([0.7], [0.5], [1.0])
    alone = run(name, "vp_cosine", data, np.tile(x, N // 2), sampling.uniform(5))
    np.testing.assert_allclose(values[2], alone[:2].sum(), rtol=1e-4)


# --------------------------------------------------------------------------------- bad arguments


@pytest.mark.parametrize("order", [0, 4, 2.5, "2"])
def test_other_orders_are_refused(order):
    with pytest.raises(ValueError, match=r"order must be a whole number in \[1, 3\], got"):
        samplers.dpm_solver(process.vp_linear(), order)


@pytest.mark.parametrize("name", [*SOLVERS, "sa_solver"])
@pytest.mark.parametrize("of", [*NO_SIGNAL_AT_ONE, "vp_linear"])
def test_a_run_can_be_differentiated_backwards(name, of):
    p = PROCESSES[of].process
    sampler = (SOLVERS | SAMPLERS)[name](p)

    @jax.jit
    def end(x):
        D = lambda x, t: 0.3 * x  # noqa: E731
        return sampling.sample(sampler, D, x, sampling.uniform(3), jax.random.key(0))[0]

    x = jnp.array([[1.0, -0.5]])
    both_ways = jax.grad(lambda x: end(x).sum())(x), jax.jvp(end, (x,), (jnp.ones_like(x),))[1]
    assert np.isfinite(both_ways[0]).all()
    # Each coordinate goes its own way, so that both are the diagonal of the Jacobian.
    np.testing.assert_allclose(*both_ways, rtol=1e-5, atol=1e-6)
