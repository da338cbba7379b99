"""The doors of the mathematics: what was once NaN, broadcast, or lost its digits in silence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import PROCESSES, linear64

from diffusion_course import bound, denoiser, losses, parameterization, process, sampling
from diffusion_course.evaluation import metrics

COSINE = process.vp_cosine()
KEY = jax.random.key(0)
X = np.linspace(-1, 1, 6, dtype=np.float32).reshape(3, 2)
# One size for all times and one for all states: each operation is compiled once.
GRID = np.linspace(0, 1, 65, dtype=np.float32)
LATER, EARLIER = GRID[1:], GRID[:-1]


def x64():
    """Double precision while a program is traced (the name moved between versions of JAX)."""
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(True)
    return jax.experimental.enable_x64()


def silent(x, t, cond):
    return 0 * x


def two_headed(x, t, cond):
    return jnp.concatenate([x, x], axis=-1)


def point(p, data):
    return denoiser.ideal(p, data)


# -------------------------------------------------------- schedules that leave float32's range

EXTREME = {
    "chain to beta = .5": lambda: process.from_betas(process.linear_betas(1000, 1e-4, 0.5)),
    "20,000 steps": lambda: process.from_betas(process.linear_betas(20_000)),
    "betas of every size": lambda: process.from_betas(
        [1e-300, 1e-20, 0.5, 1e-18, 1 - 1e-16, 1e-9, 1.0]
    ),
    "zero-SNR of large betas": lambda: process.from_betas(
        process.zero_terminal_snr(np.full(1000, 0.9))
    ),
    "vp_linear to 400": lambda: process.vp_linear(0.1, 400.0),
    "vp_linear, hardly any noise": lambda: process.vp_linear(1e-15, 1e-15),
    "sub_vp to 1e15": lambda: process.sub_vp(1e-15, 1e15),
    "vp_cosine without offset": lambda: process.vp_cosine(0.0),
    "vp_cosine with a huge offset": lambda: process.vp_cosine(1e300),
    "variance_exploding, 30 decades": lambda: process.variance_exploding(1e-15, 1e15),
    "edm, rho = 100": lambda: process.edm(rho=100.0),
    "edm, rho = .01": lambda: process.edm(sigma_max=1e15, rho=0.01),
    "rectified_flow": process.rectified_flow,
    "own process, alpha below float32": lambda: process.Process(
        lambda t: jnp.exp(-150 * t), lambda t: jnp.sqrt(-jnp.expm1(-300 * t))
    ),
    "own process, sigma below float32": lambda: process.Process(
        lambda t: 1 + 0 * t, lambda t: 80 * t**60
    ),
}


@pytest.mark.parametrize("name", EXTREME)
def test_no_schedule_divides_nothing_by_nothing(name):
    p = EXTREME[name]()
    alpha, sigma = (np.asarray(f(GRID), np.float64) for f in (p.alpha, p.sigma))
    assert np.isfinite(alpha).all() and np.isfinite(sigma).all()
    assert alpha[0] == 1 and sigma[0] == 0 and (alpha >= 0).all() and (sigma >= 0).all()
    log_snr = np.asarray(p.log_snr(GRID))
    assert not np.isnan(log_snr).any() and (log_snr[1:] <= log_snr[:-1]).all()
    scale, variance = (np.asarray(v, np.float64) for v in process.transition(p, LATER, EARLIER))
    assert (scale >= 0).all() and (variance >= 0).all()
    # The step closes the gap between the two levels, whatever is left of them.
    np.testing.assert_allclose(scale * alpha[:-1], alpha[1:], rtol=2e-4, atol=1e-7)
    closed = scale**2 * sigma[:-1] ** 2 + variance
    np.testing.assert_allclose(closed, sigma[1:] ** 2, rtol=2e-4, atol=1e-30)
    one, zero = np.ones(64), np.zeros(64)
    of_x0, added = (
        np.asarray(v, np.float64) for v in process.posterior(p, one, zero, LATER, EARLIER)
    )
    of_x_t = np.asarray(process.posterior(p, zero, one, LATER, EARLIER)[0], np.float64)
    assert (added >= 0).all()
    np.testing.assert_allclose(of_x0 + of_x_t * alpha[1:], alpha[:-1], rtol=2e-4, atol=1e-7)
    before = (of_x_t * sigma[1:]) ** 2 + added
    np.testing.assert_allclose(before, sigma[:-1] ** 2, rtol=4e-4, atol=1e-30)


@pytest.mark.parametrize("name", [n for n in EXTREME if not n.startswith("own")])
def test_every_output_of_a_network_becomes_a_finite_estimate(name):
    p = EXTREME[name]()
    y, x_t = np.full(65, 0.3, np.float32), np.full(65, -0.7, np.float32)
    # Those that know x0 even without signal. A flow's slope of 0 says nothing in any precision.
    for kind in ("x0", "v", "edm"):
        assert np.isfinite(parameterization.to_x0(kind, p, y, x_t, GRID)).all(), kind
    for kind in ("eps", "v", "edm"):
        assert np.isfinite(parameterization.to_eps(kind, p, y, x_t, GRID)).all(), kind
    for kind in ("x0", "eps", "v", "edm"):
        assert np.isfinite(parameterization.target(kind, p, y, x_t, GRID)).all(), kind
        assert np.isfinite(losses.min_snr()(kind, p, GRID)).all(), kind


def test_below_float32_s_smallest_number_a_chain_still_has_its_betas():
    betas = linear64(1000, 1e-4, 0.5)
    p, n = process.from_betas(betas), np.arange(1, 1001)
    assert p.alpha(1.0) == 0  # e^−148: the point of this test
    scale, variance = process.transition(p, n / 1000, (n - 1) / 1000)
    # n/1000 is rounded by 3e-5 of a step, and log-SNRs of 300 by 1.5e-5.
    np.testing.assert_allclose(scale, np.sqrt(1 - betas), rtol=2e-4)
    np.testing.assert_allclose(variance, betas, rtol=5e-4)


def test_below_float32_s_smallest_number_the_sde_keeps_its_rate():
    p = process.vp_linear(0.1, 400.0)
    t, s = LATER.astype(np.float64), EARLIER.astype(np.float64)
    integral = 0.1 * (t - s) + 399.9 * (t**2 - s**2) / 2
    scale, variance = process.transition(p, LATER, EARLIER)
    assert p.alpha(1.0) == 0
    # A logarithm of 100 is rounded by 4e-6 in either level.
    np.testing.assert_allclose(scale, np.exp(-integral / 2), rtol=3e-5)
    np.testing.assert_allclose(variance, -np.expm1(-integral), rtol=2e-4)


def test_the_cosine_process_keeps_its_digits_for_every_offset():
    t = np.geomspace(1e-6, 0.9, 64).astype(np.float32)
    # Without an offset sigma is a sine; with a huge one alpha is a straight line.
    np.testing.assert_allclose(process.vp_cosine(0.0).sigma(t), np.sin(t * np.pi / 2), rtol=1e-6)
    far = process.vp_cosine(1e9)
    np.testing.assert_allclose(far.alpha(t), 1 - t, rtol=1e-5)
    np.testing.assert_allclose(far.sigma(t), np.sqrt(t * (2 - t.astype(np.float64))), rtol=1e-6)


def test_zero_terminal_snr_of_equal_betas_is_a_closed_form():
    # With root_n = r^n the shifted ratio is r·(1 − r^(T−n))/(1 − r^(T−n+1)); r^T is 1e-500 here.
    T, r = 1000, np.sqrt(0.1)
    n = np.arange(2, T + 1)
    keep = (r * (1 - r ** (T - n)) / (1 - r ** (T - n + 1.0))) ** 2
    got = process.zero_terminal_snr(np.full(T, 0.9))
    np.testing.assert_allclose(got, np.concatenate([[0.9], 1 - keep]), rtol=1e-12)
    assert got[-1] == 1
    small = process.zero_terminal_snr([0.5, 1e-20, 1e-20])
    np.testing.assert_allclose(small, [0.5, 0.75, 1.0], rtol=1e-12)  # roots 2e-20, 1e-20, 0


def test_sampling_from_a_reverse_model_stays_finite_where_the_signal_underflows():
    p, data = EXTREME["chain to beta = .5"](), np.array([[0.9, -0.4]], np.float32)
    reverse = bound.fixed(p, point(p, data), 1 / 6)
    start = jnp.asarray([[0.3, -1.2], [1.1, 0.4]])
    path = sampling.sample(bound.sampler(reverse), None, start, sampling.uniform(6), KEY)[1]
    assert np.isfinite(path).all()
    np.testing.assert_allclose(path[-1], np.repeat(data, 2, 0), atol=1e-5)


def test_the_bound_is_a_number_on_every_schedule():
    x0 = jnp.asarray(X)
    for name in ("chain to beta = .5", "betas of every size", "edm, rho = 100"):
        p = EXTREME[name]()
        reverse = bound.fixed(p, lambda x, t: x0, 1 / 7, "posterior")
        terms = bound.evaluate(reverse, p, x0, sampling.uniform(7), KEY)
        assert not np.isnan(terms.total).any(), name
        np.testing.assert_allclose(terms.steps[:-1], 0, atol=1e-5)


def test_points_have_a_posterior_mean_at_time_zero():
    p, data = COSINE, np.array([[-0.8, 0.1], [0.6, 0.5]], np.float32)
    x = jnp.asarray([[-0.7, 0.0], [0.55, 0.6], [5.0, -9.0]])
    nearest = data[[0, 1, 1]]
    gm = denoiser.gaussian_mixture(p, data, [0.0, 0.0], [1, 3])
    np.testing.assert_allclose(gm.denoise(x, 0.0), nearest, atol=1e-6)
    np.testing.assert_allclose(point(p, data)(x, 0.0), nearest, atol=1e-6)
    assert np.isfinite(gm.log_prob(x, 0.0)).all() and np.isfinite(gm.score(x, 0.0)).all()


def test_min_snr_has_its_limit_where_alpha_or_sigma_is_zero():
    weight, ends = losses.min_snr(5.0), np.array([0.0, 1.0], np.float32)
    np.testing.assert_allclose(weight("eps", COSINE, ends), [0, 1])  # min(SNR, γ)/SNR
    np.testing.assert_allclose(weight("x0", COSINE, ends), [5, 0], atol=1e-12)  # min(SNR, γ)
    np.testing.assert_allclose(weight("score", COSINE, ends), [0, 1])  # sigma² times that of eps


# ------------------------------------------------------------------------------------- times

TIMED = {
    "alpha": lambda t: COSINE.alpha(t),
    "sigma": lambda t: COSINE.sigma(t),
    "log_snr": lambda t: process.vp_linear().log_snr(t),
    "d_alpha": lambda t: process.from_betas([0.1, 0.2]).d_alpha(t),
    "d_sigma": lambda t: process.edm().d_sigma(t),
    "levels": lambda t: process.levels(COSINE, t, X),
    "add_noise": lambda t: process.add_noise(process.rectified_flow(), X, X, t),
    "transition": lambda t: process.transition(process.sub_vp(), t, 0.0),
    "posterior": lambda t: process.posterior(process.variance_exploding(), X, X, t, 0.0),
    "row": lambda t: parameterization.row("v", COSINE, t),
    "determinant": lambda t: parameterization.determinant("v", COSINE, t),
    "target": lambda t: parameterization.target("eps", COSINE, X, X, t),
    "to_x0": lambda t: parameterization.to_x0("x0", COSINE, X, X, t),
    "to_eps": lambda t: parameterization.to_eps("eps", COSINE, X, X, t),
    "to_score": lambda t: parameterization.to_score("v", COSINE, X, X, t),
    "velocity": lambda t: parameterization.velocity("v", COSINE, X, X, t),
    "network_output": lambda t: denoiser.network_output(silent, COSINE, "v", X, t),
    "denoiser": lambda t: denoiser.denoiser(silent, COSINE, "v")(X, t),
    "denoise": lambda t: denoiser.gaussian_mixture(COSINE, X, [1, 1, 1], [1, 1, 1]).denoise(X, t),
    "ideal": lambda t: point(COSINE, X)(X, t),
    "squared_error": lambda t: losses.squared_error(silent, COSINE, "v", X, X, t, None),
    "prior_term": lambda t: bound.prior_term(COSINE, X, t),
    "variance_limits": lambda t: bound.variance_limits(COSINE, t, 0.0, 0.1),
}
OWN = process.Process(lambda t: 1 - t, lambda t: t)  # a process that checks nothing itself


@pytest.mark.parametrize("name", TIMED)
def test_step_numbers_are_refused_where_times_are_expected(name):
    for t in (500, -0.25, np.float32(1.5), float("nan"), np.int64(2)):
        with pytest.raises(ValueError, match=r"^t must be in \[0, 1\], got .*the time n/T$"):
            TIMED[name](t)


def test_both_times_are_checked_and_their_order_and_every_entry():
    with pytest.raises(ValueError, match=r"^s must be in \[0, 1\], got 3;.*n/T$"):
        process.posterior(COSINE, X, X, 0.5, 3)
    with pytest.raises(ValueError, match=r"^s must be at most t, got s = 0.7 and t = 0.5"):
        process.transition(COSINE, 0.5, 0.7)
    with pytest.raises(ValueError, match=r"^s must be at most t"):
        process.posterior(COSINE, X, X, np.array([0.5, 0.5, 0.1]), 0.3)
    with pytest.raises(ValueError, match=r"got 250 at index \[1\] of shape \[3\]; step n of"):
        process.add_noise(OWN, X, X, np.array([0, 250, 500]))
    with pytest.raises(ValueError, match=r"^times must be in \[0, 1\], got 1000"):
        bound.evaluate(None, COSINE, X, [1000, 500, 0], KEY)
    with pytest.raises(ValueError, match=r"^times must be in \[0, 1\], got 10"):
        metrics.loss_by_time(lambda *_: 0.0, None, X, None, [10, 20], KEY)


def test_unknown_times_pass_and_a_program_has_no_check_in_it():
    def all_of_it(t):
        return [TIMED[name](t) for name in TIMED if name != "variance_limits"]

    text = str(jax.make_jaxpr(all_of_it)(jnp.float32(0.5)))
    assert "callback" not in text and "check" not in text


# ------------------------------------------------------------------------------ dtypes and shapes

STATES = {
    ("add_noise", "x0"): lambda v: process.add_noise(COSINE, v, X, 0.5),
    ("add_noise", "eps"): lambda v: process.add_noise(COSINE, X, v, 0.5),
    ("posterior", "x0"): lambda v: process.posterior(COSINE, v, X, 0.5, 0.2),
    ("posterior", "x_t"): lambda v: process.posterior(COSINE, X, v, 0.5, 0.2),
    ("target", "x0"): lambda v: parameterization.target("v", COSINE, v, X, 0.5),
    ("target", "eps"): lambda v: parameterization.target("v", COSINE, X, v, 0.5),
    ("to_x0", "y"): lambda v: parameterization.to_x0("v", COSINE, v, X, 0.5),
    ("to_x0", "x_t"): lambda v: parameterization.to_x0("v", COSINE, X, v, 0.5),
    ("to_eps", "y"): lambda v: parameterization.to_eps("v", COSINE, v, X, 0.5),
    ("to_eps", "x_t"): lambda v: parameterization.to_eps("v", COSINE, X, v, 0.5),
    ("to_score", "y"): lambda v: parameterization.to_score("v", COSINE, v, X, 0.5),
    ("velocity", "y"): lambda v: parameterization.velocity("v", COSINE, v, X, 0.5),
    ("velocity", "x_t"): lambda v: parameterization.velocity("v", COSINE, X, v, 0.5),
    ("squared_error", "eps"): lambda v: losses.squared_error(silent, COSINE, "v", X, v, 0.5, None),
    ("step_term", "x_t"): lambda v: bound.step_term(
        lambda x, t, s: (x, 0 * x), COSINE, X, v, 0.5, 0.2
    ),
}
ALONE = {
    ("network_output", "x"): lambda v: denoiser.network_output(silent, COSINE, "v", v, 0.5),
    ("denoiser", "x"): lambda v: denoiser.denoiser(silent, COSINE, "v")(v, 0.5),
    ("ideal", "data"): lambda v: point(COSINE, v),
    ("ideal", "x"): lambda v: point(COSINE, X)(v, 0.5),
    ("denoise", "x"): lambda v: denoiser.gaussian_mixture(COSINE, X, [1] * 3, [1] * 3).score(
        v, 0.5
    ),
    ("diffusion_loss", "x0"): lambda v: losses.diffusion_loss(silent, COSINE, "v", v, None, KEY),
    ("squared_error", "x0"): lambda v: losses.squared_error(silent, COSINE, "v", v, X, 0.5, None),
    ("evaluate", "x0"): lambda v: bound.evaluate(None, COSINE, v, [1.0, 0.0], KEY),
    ("prior_term", "x0"): lambda v: bound.prior_term(COSINE, v),
    ("discretized", "x0"): lambda v: bound.discretized_log_likelihood(v, 0.0, 0.0, 8),
    ("hybrid_loss", "x0"): lambda v: bound.hybrid_loss(
        two_headed, COSINE, "v", v, None, KEY, T=4, levels=None
    ),
    ("loss_by_time", "x0"): lambda v: metrics.loss_by_time(silent, None, v, None, [0.5], KEY),
}


@pytest.mark.parametrize("case", [*STATES, *ALONE], ids="-".join)
def test_pixels_and_half_precision_are_refused_by_name(case):
    call, argument = {**STATES, **ALONE}[case], case[1]
    for dtype in (np.uint8, np.int32, bool, np.float16, jnp.bfloat16, np.complex64):
        name = np.dtype(dtype).name
        with pytest.raises(ValueError, match=f"^{argument} must be float.*got dtype {name}"):
            call(np.ones((3, 2), dtype))
        # The same inside a program, where the values are unknown.
        with pytest.raises(ValueError, match=f"^{argument} must be float.*got dtype {name}"):
            jax.eval_shape(call, jax.ShapeDtypeStruct((3, 2), dtype))


@pytest.mark.parametrize("case", STATES, ids="-".join)
def test_states_that_would_broadcast_are_refused(case):
    for shape in ((3, 1), (1, 2), (2,), (3, 2, 1), ()):
        with pytest.raises(ValueError, match=r"^(eps|x_t|y) must have the shape of (x0|x_t), \["):
            STATES[case](np.ones(shape, np.float32))


def test_double_precision_arrays_become_float32():
    wide = X.astype(np.float64)
    with x64():
        for call in {**STATES, **ALONE}.values():
            if call not in (ALONE["ideal", "data"], ALONE["evaluate", "x0"]) and (
                call is not ALONE["loss_by_time", "x0"]
            ):
                assert {a.dtype for a in jax.tree.leaves(jax.eval_shape(call, wide))} == {
                    np.dtype(np.float32)
                }


@pytest.mark.parametrize("name", PROCESSES)
def test_levels_are_float32_for_times_of_every_type(name):
    p = PROCESSES[name].process

    def levels(t):
        return [f(t) for f in (p.alpha, p.sigma, p.log_snr, p.d_alpha, p.d_sigma)]

    for mode in (False, True):
        for t in (
            np.float64(0.5),
            np.float32(0.5),
            jnp.bfloat16(0.5),
            np.float16(0.5),
            np.int64(1),
        ):
            struct = jax.ShapeDtypeStruct((4,), np.dtype(type(t)) if mode or t.nbytes < 8 else "f4")
            with x64() if mode else np.errstate():
                outputs = jax.eval_shape(levels, struct)
            assert [a.dtype for a in outputs] == [np.float32] * 5
        with x64() if mode else np.errstate():
            for t in (0.5, 1, True, np.float64(0.5)):
                outputs = jax.eval_shape(lambda t=t: levels(t))
                assert [a.dtype for a in outputs] == [np.float32] * 5


def test_nothing_becomes_double_precision_in_double_precision_mode():
    p, gm = COSINE, denoiser.gaussian_mixture(COSINE, X, [1.0, 1, 1], [1.0, 1, 1])
    importance = losses.importance_times([1.0, 2.0, 3.0])
    calls = [
        lambda: losses.uniform_times(KEY, 4),
        lambda: losses.stratified_times(KEY, 4),
        lambda: losses.discrete_times(7)(KEY, 4),
        lambda: importance[0](KEY, 4),
        lambda: importance[1]("v", p, jnp.float32(0.5)),
        lambda: losses.min_snr(np.float64(5))("v", p, jnp.float32(0.5)),
        lambda: losses.diffusion_loss(silent, p, "v", X, None, KEY),
        lambda: gm.sample(KEY, 5),
        lambda: bound.evaluate(
            bound.fixed(p, lambda x, t: x, 0.5), p, X, np.array([1.0, 0.5, 0.0]), KEY
        ),
        *(lambda kind=kind: parameterization.row(kind, p, np.float64(0.5)) for kind in
          parameterization.KINDS),
    ]  # fmt: skip
    with x64():
        for call in calls:
            assert {a.dtype for a in jax.tree.leaves(jax.eval_shape(call))} == {np.dtype("f4")}


def test_a_network_in_half_precision_gets_the_time_in_full_and_answers_in_float32():
    seen = []

    def model(x, t, cond):
        seen.append(t)
        return x.astype(jnp.bfloat16)

    got = denoiser.network_output(model, COSINE, "v", X, 0.999)
    assert got.dtype == jnp.float32 and seen[0].dtype == jnp.float32
    assert (seen[0] == np.float32(0.999)).all()  # in bfloat16 it would be 1


@pytest.mark.parametrize("cond", [np.zeros((3, 1), int), np.zeros(2, int), np.zeros((), int),
                                  np.zeros((1, 3), int)])  # fmt: skip
def test_labels_in_a_column_or_of_another_number_are_refused(cond):
    for call in (
        lambda: losses.diffusion_loss(silent, COSINE, "v", X, cond, KEY),
        lambda: denoiser.network_output(silent, COSINE, "v", X, 0.5, cond),
        lambda: denoiser.denoiser(silent, COSINE, "v", cond)(X, 0.5),
    ):
        with pytest.raises(
            ValueError, match=r"^cond must be labels of shape \[3\] or have one row"
        ):
            call()
    for good in (None, np.zeros(3, int), np.zeros((3, 7), int), np.zeros((3, 1), np.float32)):
        denoiser.network_output(silent, COSINE, "v", X, 0.5, good)


def test_times_and_weights_in_a_column_are_refused():
    def column(key, n):
        return jnp.full((n, 1), 0.5)

    with pytest.raises(ValueError, match=r"^times must give shape \[3\], got shape \[3, 1\]"):
        losses.diffusion_loss(silent, COSINE, "v", X, None, KEY, times=column)
    with pytest.raises(ValueError, match=r"^weight must give shape \[3\], got shape \[3, 1\]"):
        losses.diffusion_loss(
            silent, COSINE, "v", X, None, KEY, weight=lambda kind, p, t: t[:, None]
        )
    with pytest.raises(
        ValueError, match=r"^the model's output must have the shape of x0, \[3, 2\]"
    ):
        losses.diffusion_loss(lambda x, t, cond: x[:, :1], COSINE, "v", X, None, KEY)


def test_labels_that_are_no_labels_are_not_dropped():
    for labels, message in (
        (np.zeros((3, 1), int), r"labels must be whole numbers of shape \[3\]"),
        (np.zeros(3), r"labels must be whole numbers of shape \[3\], got float64"),
        (np.array([1, 11]), r"labels must be in 0 … 10, got 1 … 11"),
    ):
        with pytest.raises(ValueError, match=message):
            losses.drop_labels(KEY, labels, 10, 0.1)
