"""The solvers of the probability flow: orders, evaluation counts, identities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import GAUSSIAN, MIXTURE, PROCESSES, Mixture1D, as_column
from test_samplers import _quantile, oracle

from diffusion_course import denoiser, process, samplers, sampling

rng = np.random.default_rng(52)

SOLVERS = {
    "euler": samplers.euler,
    "heun": samplers.heun,
    "dpm_solver_pp_2m": samplers.dpm_solver_pp_2m,
    "dpm_solver 1": lambda p: samplers.dpm_solver(p, 1),
    "dpm_solver 2": lambda p: samplers.dpm_solver(p, 2),
    "dpm_solver 3": lambda p: samplers.dpm_solver(p, 3),
    "pndm": samplers.pndm,
}
every_solver = pytest.mark.parametrize("make", SOLVERS.values(), ids=SOLVERS.keys())

# evaluations of n > 3 steps on a grid that ends at 0, from a state with some signal
COUNTS = {
    "euler": lambda n: n,
    "heun": lambda n: 2 * n - 1,
    "dpm_solver_pp_2m": lambda n: n,
    "dpm_solver 1": lambda n: n,
    "dpm_solver 2": lambda n: 2 * n - 1,
    "dpm_solver 3": lambda n: 3 * n - 2,
    "pndm": lambda n: n + 9,
}


@pytest.mark.parametrize("steps", [4, 7, 20])
@pytest.mark.parametrize("name", SOLVERS)
def test_the_denoiser_is_evaluated_exactly_as_often_as_said(name, steps):
    o, seen = PROCESSES["vp_linear"], []
    exact = oracle(o, GAUSSIAN)

    def counted(x, t):
        jax.debug.callback(lambda t: seen.append(float(t)), t)
        return exact.denoise(x, t)

    x, _ = sampling.sample(
        SOLVERS[name](o.process),
        counted,
        jnp.ones((3, 1)),
        sampling.uniform(steps),
        jax.random.key(0),
    )
    jax.block_until_ready(x)
    jax.effects_barrier()
    assert len(seen) == COUNTS[name](steps)
    assert min(seen) > 0  # nothing is asked at the data themselves


def errors(o, data, make, counts, begin, end, grid):
    """Root mean square errors against the exact flow map, by number of steps."""
    exact = Mixture1D(o, *data)
    start = _quantile(exact, np.linspace(0.03, 0.97, 41), begin)
    want = exact.flow(start, begin, end)
    found = []
    for n in counts:
        x, _ = sampling.sample(
            make(o.process),
            oracle(o, data).denoise,
            as_column(start),
            grid(begin, end, n),
            jax.random.key(0),
        )
        found.append(np.sqrt(np.mean((np.asarray(x, np.float64)[:, 0] - want) ** 2)))
    return np.array(found)


def in_time(begin, end, n):
    return np.linspace(begin, end, n + 1).astype(np.float32)


ORDERS = {
    "euler": (0.85, 1.3, [24, 48, 96]),
    "dpm_solver 1": (0.85, 1.3, [24, 48, 96]),
    "heun": (1.8, 2.3, [12, 24, 48]),
    "dpm_solver_pp_2m": (1.8, 2.3, [24, 48, 96]),
    "dpm_solver 2": (1.8, 2.3, [12, 24, 48]),
    "dpm_solver 3": (2.6, 3.5, [4, 6, 9]),  # more, and float32 is all that is left
    "pndm": (1.6, 4.5, [16, 24, 36]),  # the paper proves order 2
}


@pytest.mark.parametrize("data", [GAUSSIAN, MIXTURE], ids=["Gaussian", "mixture"])
@pytest.mark.parametrize("name", ORDERS)
def test_a_solver_converges_to_the_exact_flow_with_its_order(name, data):
    low, high, counts = ORDERS[name]
    # Where the flow is smooth: a mixture's modes part below t = 0.35.
    found = errors(PROCESSES["vp_linear"], data, SOLVERS[name], counts, 0.9, 0.4, in_time)
    slope = -np.polyfit(np.log(counts), np.log(found), 1)[0]
    assert low < slope < high, found


def test_dpm_solver_of_order_one_is_ddim():
    p = PROCESSES["linear chain"].process
    gm = denoiser.gaussian_mixture(p, [[0.8, -1.0], [-1.5, 0.2]], [0.4, 0.7], [0.3, 0.7])
    x = jnp.asarray(rng.normal(0.2, 1.1, (9, 2)), jnp.float32)
    results = [
        sampling.sample(make(p), gm.denoise, x, sampling.uniform(17), jax.random.key(0))[1]
        for make in (lambda p: samplers.dpm_solver(p, 1), samplers.ddim)
    ]
    np.testing.assert_allclose(*results, atol=1e-5)


@pytest.mark.parametrize(
    "p", [process.rectified_flow(), process.edm(rho=1.0)], ids=["rectified flow", "edm"]
)
def test_euler_is_ddim_where_paths_are_straight_in_time(p):
    gm = denoiser.gaussian_mixture(p, [[0.8], [-1.5]], [0.4, 0.7], [0.3, 0.7])
    x = sampling.start_noise(p, jax.random.key(1), (9, 1))
    euler, ddim = (
        sampling.sample(make(p), gm.denoise, x, sampling.uniform(11), jax.random.key(0))[0]
        for make in (samplers.euler, samplers.ddim)
    )
    np.testing.assert_allclose(euler, ddim, atol=2e-4)  # sigma is up to 80, in float32


@every_solver
@pytest.mark.parametrize("name", ["linear chain", "zero-SNR chain", "vp_cosine", "edm", "sub_vp"])
def test_the_last_step_returns_exactly_what_the_denoiser_says(make, name):
    p = PROCESSES[name].process
    x = jnp.asarray(rng.normal(0.3, 1.2, (5, 3)), jnp.float32)
    D = lambda x, t: 0.3 * x + t  # noqa: E731
    step = make(p).step
    got, _ = step(D, x, jnp.float32(0.2), jnp.float32(0.0), jax.random.key(0), make(p).init(x))
    np.testing.assert_allclose(got, D(x, 0.2), rtol=1e-6)


@every_solver
@pytest.mark.parametrize("name", PROCESSES)
def test_whole_runs_stay_finite_and_draw_the_data(make, name):
    # Also from states without signal (zero-SNR, cosine, rectified flow), where log-SNR is infinite.
    o = PROCESSES[name]
    x = sampling.start_noise(o.process, jax.random.key(3), (4000, 1))
    run = jax.jit(
        lambda x: sampling.sample(
            make(o.process), oracle(o, GAUSSIAN).denoise, x, sampling.uniform(60), jax.random.key(0)
        )[0]
    )
    got = np.asarray(run(x), np.float64)
    assert np.isfinite(got).all()
    mean, std = GAUSSIAN[0][0], GAUSSIAN[1][0]
    # Standard errors are std/63 and std/89. What remains of x_1's own mean and the first-order
    # steps at the ends is at most a tenth of the data's spread with 60 steps.
    assert abs(got.mean() - mean) < 0.12 * std + 4 * std / 63
    # Euler's method in time is three times worse where sigma grows like a power of t.
    assert abs(got.std() / std - 1) < (0.35 if make is samplers.euler else 0.2)


def test_better_solvers_need_fewer_evaluations():
    o = PROCESSES["vp_linear"]
    at_24 = {
        name: errors(o, MIXTURE, SOLVERS[name], [24 // cost], 0.9, 0.4, in_time)[0]
        for name, cost in {"dpm_solver 1": 1, "dpm_solver_pp_2m": 1, "dpm_solver 3": 3}.items()
    }
    assert at_24["dpm_solver_pp_2m"] < at_24["dpm_solver 1"] / 5
    assert at_24["dpm_solver 3"] < at_24["dpm_solver_pp_2m"]


def test_solvers_can_be_differentiated_and_mapped():
    p = PROCESSES["vp_cosine"].process

    def result(scale, make):
        D = lambda x, t: scale * jnp.tanh(x)  # noqa: E731
        x = jnp.ones((2, 1))
        return sampling.sample(make(p), D, x, sampling.uniform(5), jax.random.key(0))[0].sum()

    for make in SOLVERS.values():
        slope = jax.grad(result)(0.7, make)
        step = 1e-2
        secant = (result(0.7 + step, make) - result(0.7 - step, make)) / (2 * step)
        np.testing.assert_allclose(slope, secant, rtol=2e-3)  # the secant's own error is step²
        many = jax.vmap(lambda scale, make=make: result(scale, make))(jnp.array([0.5, 0.7]))
        np.testing.assert_allclose(many[1], result(0.7, make), rtol=1e-4)


@pytest.mark.parametrize("order", [0, 4, 2.5, "2"])
def test_other_orders_are_refused(order):
    with pytest.raises(ValueError, match="order must be 1, 2 or 3, got"):
        samplers.dpm_solver(process.vp_linear(), order)


# ------------------------------------------------------------------------------- temperature


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


def test_a_negative_temperature_is_refused():
    for make in (samplers.ddpm, samplers.ddim):
        with pytest.raises(ValueError, match="temperature must be at least 0, got -1"):
            make(process.vp_linear(), temperature=-1)
