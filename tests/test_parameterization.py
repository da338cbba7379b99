import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import (
    CHAINS,
    EPS32,
    MIXTURE,
    PROCESSES,
    Mixture1D,
    as_column,
    examples,
    float32_times,
    slope64,
)

from diffusion_course import denoiser, parameterization, process

rng = np.random.default_rng(21)

KINDS = ["x0", "eps", "v", "score", "flow", "edm"]
every_kind = pytest.mark.parametrize("kind", KINDS)
every_process = pytest.mark.parametrize("name", PROCESSES)
# One of each sort: table, curved, alpha = 1, straight.
some_processes = pytest.mark.parametrize(
    "name", ["linear chain", "sub_vp", "vp_cosine", "edm", "rectified_flow"]
)


# Times and states come in arrays of this one size, so that JAX compiles each operation once.
N = 60


def inner_times(name, n=N):
    """Times inside (0, 1), in a chain inside its intervals, where the derivative is one number."""
    t = float32_times(rng, n, 0.05, 0.95)
    if name in CHAINS:
        T = 7 if name == "short chain" else 1000
        t = ((np.floor(t * T) + 0.5) / T).astype(np.float32).astype(np.float64)
    return t


def row64(kind, o, t):
    """The targets as their papers define them, with x_t = alpha·x0 + sigma·eps put in."""
    alpha, sigma = o.alpha(t), o.sigma(t)
    if kind == "edm":
        # c_skip·x_t is the best linear guess of x0 for data of std sigma_data; c_out makes the
        # rest's variance 1. With alpha = 1 these are Karras et al.'s table 1.
        d = o.process.sigma_data
        c_skip = alpha * d**2 / (alpha**2 * d**2 + sigma**2)
        c_out = np.sqrt(d**2 - c_skip * alpha * d**2)
        return (1 - c_skip * alpha) / c_out, -c_skip * sigma / c_out
    return {
        "x0": (1 + 0 * t, 0 * t),
        "eps": (0 * t, 1 + 0 * t),
        "v": (-sigma, alpha),
        "score": (0 * t, -1 / sigma),
        "flow": (slope64(o.alpha, t), slope64(o.sigma, t)),
    }[kind]


def test_the_kinds_are_these():
    assert list(parameterization.KINDS) == KINDS


@every_kind
@every_process
def test_rows_are_the_papers_targets(kind, name):
    o, t = PROCESSES[name], inner_times(name)
    a, b = row64(kind, o, t)
    got_a, got_b = parameterization.row(kind, o.process, t)
    # "flow" in a chain: differences of neighbours in a float32 table, times 1000 steps.
    atol = 2000 * EPS32 if kind == "flow" else 0
    np.testing.assert_allclose(got_a, a, rtol=5e-4, atol=atol)
    np.testing.assert_allclose(got_b, b, rtol=5e-4, atol=atol)


@every_process
def test_determinants_are_those_of_the_table(name):
    o, t = PROCESSES[name], inner_times(name)
    alpha, sigma, d = o.alpha(t), o.sigma(t), o.process.sigma_data
    c_out = sigma * d / np.sqrt(alpha**2 * d**2 + sigma**2)
    want = {
        "x0": sigma,
        "eps": -alpha,
        "v": -(alpha**2 + sigma**2),
        "score": alpha / sigma,
        "edm": sigma / c_out,
    }
    if name == "rectified_flow":
        want["flow"] = -1 + 0 * t
    for kind, det in want.items():
        np.testing.assert_allclose(
            parameterization.determinant(kind, o.process, t), det, rtol=5e-5, err_msg=kind
        )


@pytest.mark.parametrize("name", ["zero-SNR chain", "vp_cosine", "rectified_flow"])
def test_pure_noise_hides_x0_from_eps_and_score_alone(name):
    p = PROCESSES[name].process
    for kind in KINDS:
        lost = float(parameterization.determinant(kind, p, 1.0)) == 0
        assert lost == (kind in ("eps", "score"))
        y, x_t = np.full((N, 2), 0.3, np.float32), np.full((N, 2), 1.1, np.float32)
        x0 = parameterization.to_x0(kind, p, y, x_t, 1.0)
        assert np.isfinite(x0).all() != lost
        # The state then is the noise, whatever the output says.
        eps = parameterization.to_eps(kind, p, y, x_t, 1.0)
        np.testing.assert_allclose(eps, x_t, rtol=1e-6)


@every_kind
@every_process
def test_targets_give_back_x0_and_eps(kind, name):
    o, t = PROCESSES[name], inner_times(name)
    p = o.process
    x0 = rng.normal(0.4, 1.7, (N, 3, 2, 2)).astype(np.float32)
    eps = rng.normal(0, 1, x0.shape).astype(np.float32)
    for time in (t, t[3]):
        x_t = process.add_noise(p, x0, eps, time)
        y = parameterization.target(kind, p, x0, eps, time)
        a, b = (np.reshape(c, (-1, 1, 1, 1)) for c in row64(kind, o, time))
        alpha, sigma = (np.reshape(f(time), (-1, 1, 1, 1)) for f in (o.alpha, o.sigma))
        det = np.abs(a * sigma - b * alpha)
        # Solving multiplies the rounding of y, x_t and the coefficients by the terms over det.
        size = np.abs(x0) + np.abs(eps)
        y_size = np.abs(a * x0) + np.abs(b * eps)
        x_size = np.abs(alpha * x0) + np.abs(sigma * eps)
        bound = 16 * EPS32 * (size + (np.abs(sigma) * y_size + np.abs(b) * x_size) / det)
        error = np.abs(parameterization.to_x0(kind, p, y, x_t, time) - x0)
        assert (error < bound).all(), (error / bound).max()
        bound = 16 * EPS32 * (size + (np.abs(a) * x_size + np.abs(alpha) * y_size) / det)
        error = np.abs(parameterization.to_eps(kind, p, y, x_t, time) - eps)
        assert (error < bound).all(), (error / bound).max()


@every_kind
@some_processes
def test_any_output_splits_the_state_into_signal_and_noise(kind, name):
    o, t = PROCESSES[name], inner_times(name)
    y, x_t = rng.normal(0.3, 1.4, (2, N, 2)).astype(np.float32)
    x0 = parameterization.to_x0(kind, o.process, y, x_t, t)
    eps = parameterization.to_eps(kind, o.process, y, x_t, t)
    size = np.abs(o.alpha(t)[:, None] * x0) + np.abs(o.sigma(t)[:, None] * eps)
    # The two solutions share one det, so their rounding is relative to their size.
    error = np.abs(process.add_noise(o.process, x0, eps, t) - x_t)
    assert (error < 5e-5 * (size + np.abs(x_t))).all()


def test_v_is_the_paper_s_velocity_on_the_circle():
    # Salimans & Ho: v = alpha·eps − sigma·x0, so x0 = alpha·x_t − sigma·v when alpha² + sigma² = 1.
    o, t = PROCESSES["vp_cosine"], float32_times(rng, N)
    x0, eps = rng.normal(0.2, 1.5, (2, N, 2)).astype(np.float32)
    alpha, sigma = o.alpha(t)[:, None], o.sigma(t)[:, None]
    v = alpha * eps - sigma * x0
    got = parameterization.target("v", o.process, x0, eps, t)
    np.testing.assert_allclose(got, v, atol=2e-5)
    y, x_t = rng.normal(0.2, 1.5, (2, N, 2)).astype(np.float32)
    got = parameterization.to_x0("v", o.process, y, x_t, t)
    np.testing.assert_allclose(got, alpha * x_t - sigma * y, atol=2e-5)


@every_process
def test_edm_targets_have_unit_variance_and_nothing_that_x_t_could_tell(name):
    o, t = PROCESSES[name], inner_times(name)
    a, b = (np.asarray(c, np.float64) for c in parameterization.row("edm", o.process, t))
    d, alpha, sigma = o.process.sigma_data, o.alpha(t), o.sigma(t)
    np.testing.assert_allclose((a * d) ** 2 + b**2, 1, rtol=1e-4)
    covariance = a * alpha * d**2 + b * sigma
    np.testing.assert_allclose(covariance / np.sqrt((alpha * d) ** 2 + sigma**2), 0, atol=5e-5)


@every_kind
@some_processes
def test_the_posterior_mean_gives_the_gradient_of_the_log_density(kind, name):
    o = PROCESSES[name]
    mixture = Mixture1D(o, *MIXTURE)
    t = np.repeat(inner_times(name, 5), N // 5)
    alpha, sigma = o.alpha(t), o.sigma(t)
    x = alpha * rng.choice(MIXTURE[0], N) + 1.3 * sigma * rng.normal(size=N)
    want = np.array(
        [
            slope64(lambda x, t=t: mixture.log_prob(x, t), x)[0]
            for x, t in zip(x[:, None], t, strict=True)
        ]
    )
    # E[x0 | x] by Tweedie from that slope, and E[eps | x]: the target is linear in both.
    x0 = (x + sigma**2 * want) / alpha
    a, b = row64(kind, o, t)
    y = as_column(a * x0 - b * sigma * want)
    got = parameterization.to_score(kind, o.process, y, as_column(x), t)[:, 0]
    # eps is a difference of x_t and alpha·x0 divided by sigma, and divided again.
    tolerance = 1e-4 * np.abs(want) + 40 * EPS32 * (np.abs(x) + alpha) / sigma**2
    # Table slopes of "flow" are rounded by 1000·EPS32 of their own.
    tolerance = tolerance * (100 if kind == "flow" and name in CHAINS else 1)
    assert (np.abs(got - want) < tolerance).all()


@every_kind
@some_processes
def test_velocity_is_the_time_derivative_of_the_exact_flow(kind, name):
    o, data = PROCESSES[name], MIXTURE
    mixture = Mixture1D(o, *data)
    oracle = denoiser.gaussian_mixture(o.process, data[0][:, None], *data[1:])
    times = inner_times(name, N // 3)
    xs, wants = [], []
    for t in times[:3]:
        alpha, sigma = float(o.alpha(t)), float(o.sigma(t))
        # Within the modes: between them the flow map is steep, and differences of it inexact.
        x = alpha * (data[0] + 0.5 * data[1]) + 0.5 * sigma
        h = 1e-5
        wants.append((mixture.flow(x, t, t + h) - mixture.flow(x, t, t - h)) / (2 * h))
        xs.append(x)
    t, x, want = np.resize(np.repeat(times[:3], 3), N), np.resize(xs, N), np.resize(wants, N)
    alpha, sigma = o.alpha(t), o.sigma(t)
    x0 = oracle.denoise(as_column(x), t)
    eps = (as_column(x) - alpha[:, None].astype(np.float32) * x0) / sigma[:, None].astype(
        np.float32
    )
    y = parameterization.target(kind, o.process, x0, eps, t)
    got = parameterization.velocity(kind, o.process, y, as_column(x), t)[:, 0]
    scale = np.abs(slope64(o.alpha, t)) + np.abs(slope64(o.sigma, t))
    # float32 through eps = (x − alpha·x0)/sigma: EPS32·|x|/sigma, and the conversions.
    tolerance = 1e-3 * np.abs(want) + scale * (1e-4 + 40 * EPS32 * (1 + np.abs(x)) / sigma)
    assert (np.abs(got - want) < tolerance).all(), (got, want)


def test_velocity_of_flow_is_the_output_itself():
    for name in ("vp_linear", "vp_cosine", "rectified_flow", "short chain"):
        p, t = PROCESSES[name].process, inner_times(name)
        y, x_t = rng.normal(0.3, 2, (2, N, 2)).astype(np.float32)
        got = parameterization.velocity("flow", p, y, x_t, t)
        np.testing.assert_allclose(got, y, rtol=1e-3, atol=1e-3)


@every_kind
@every_process
def test_at_time_zero_the_state_is_the_data_whatever_the_output(kind, name):
    p = PROCESSES[name].process
    y, x = rng.normal(0.3, 2, (2, N, 2)).astype(np.float32)
    for t in (0.0, np.zeros(N)):
        np.testing.assert_array_equal(parameterization.to_x0(kind, p, y, x, t), x)
    mixed = np.resize([0.0, 0.5, 0.0, 0.9], N)
    np.testing.assert_array_equal(parameterization.to_x0(kind, p, y, x, mixed)[::2], x[::2])


@every_process
def test_gradients_stay_finite_at_time_zero(name):
    p, t = PROCESSES[name].process, np.array([0.0, 0.5, 0.0, 0.9])
    y, x = rng.normal(0.3, 2, (2, 4, 3)).astype(np.float32)

    @jax.jit
    def gradients(y, x):
        def total(kind):
            return lambda y, x: parameterization.to_x0(kind, p, y, x, t).sum()

        return [jax.grad(total(kind), (0, 1))(y, x) for kind in KINDS]

    for to_y, to_x in gradients(y, x):
        assert np.isfinite(to_y).all() and np.isfinite(to_x).all()
        assert (to_y[::2] == 0).all() and (to_x[::2] == 1).all()
        assert (to_y[1::2] != 0).all()


@every_kind
def test_a_chain_s_last_step_is_solved_with_its_own_slopes(kind):
    # At t = 1 exactly, where an implementation that clips t would see half of each slope.
    o = PROCESSES["linear chain"]
    x0, eps = rng.normal(0.4, 1.2, (2, 3, 2)).astype(np.float32)
    slope = (o.alpha(1.0) - o.alpha(0.9999)) / 1e-4
    alpha, sigma = float(o.alpha(1.0)), float(o.sigma(1.0))
    if kind == "flow":
        y = slope * x0 - alpha * slope / sigma * eps
    else:
        a, b = row64(kind, o, np.float64(1.0))
        y = a * x0 + b * eps
    x_t = alpha * x0 + sigma * eps
    got = parameterization.to_x0(kind, o.process, y, x_t, 1.0)
    # x0 is the difference of numbers near 1 divided by alpha = 0.0064; slopes are good to 1e-4.
    np.testing.assert_allclose(got, x0, atol=5e-2)


@pytest.mark.parametrize("name", ["linear chain", "sub_vp", "edm"])
def test_conversions_work_under_jit_and_vmap(name):
    p, t = PROCESSES[name].process, inner_times(name).astype(np.float32)
    y, x = rng.normal(0.3, 1, (2, N, 2)).astype(np.float32)
    functions = (parameterization.to_x0, parameterization.to_eps, parameterization.velocity)

    def convert(y, x, t):
        return jnp.array([[f(kind, p, y, x, t) for f in functions] for kind in KINDS])

    want = convert(y, x, t)
    both = jax.jit(lambda *a: (convert(*a), jax.vmap(convert, out_axes=2)(*a)))
    for got in both(y, x, t):
        # A fused program rounds differently; a det near 0 multiplies that.
        scale = np.abs(want).max((2, 3), keepdims=True)
        assert (np.abs(got - want) < 1e-3 * scale).all()


@examples
@given(st.text(max_size=8).filter(lambda kind: kind not in KINDS))
def test_an_unknown_kind_is_refused_with_the_known_ones(kind):
    p, x = PROCESSES["vp_cosine"].process, jnp.ones((2, 2))
    for call in (
        lambda: parameterization.row(kind, p, 0.5),
        lambda: parameterization.determinant(kind, p, 0.5),
        lambda: parameterization.target(kind, p, x, x, 0.5),
        lambda: parameterization.to_x0(kind, p, x, x, 0.5),
        lambda: parameterization.to_eps(kind, p, x, x, 0.5),
        lambda: parameterization.velocity(kind, p, x, x, 0.5),
    ):
        with pytest.raises(ValueError, match="kind must be one of x0, eps, v, score, flow, edm"):
            call()
