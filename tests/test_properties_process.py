"""Properties over shapes, dtypes and ranges, for every public function of the mathematics.

Shapes and dtypes are looked at without compiling anything (`jax.eval_shape`). Values come in
arrays of one size, so that each operation is compiled once.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from oracles import PROCESSES, examples

from diffusion_course import bound, denoiser, losses, parameterization, process
from diffusion_course.evaluation import metrics

# Where an example traces twenty functions, fewer of them will do.
few = settings(examples, max_examples=6)

KEY = jax.random.key(0)
ALL = [o.process for o in PROCESSES.values()]
processes, kinds = st.sampled_from(ALL), st.sampled_from(parameterization.KINDS)
shapes = st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple)
unit = st.floats(0, 1, width=32)
positive = st.floats(1e-12, 1e12)


def half(x, t, cond):
    return (0.5 * x).astype(jnp.bfloat16)


def two_headed(x, t, cond):
    return jnp.concatenate([x, 0 * x], axis=-1)


def struct(shape, dtype=np.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


# Each function of two states (or one), and a scalar time or one per example: the state it returns.
OF_TWO = {
    "add_noise": lambda p, kind, x, y, t: process.add_noise(p, x, y, t),
    "posterior": lambda p, kind, x, y, t: process.posterior(p, x, y, t, 0.5 * t)[0],
    "target": lambda p, kind, x, y, t: parameterization.target(kind, p, x, y, t),
    "to_x0": lambda p, kind, x, y, t: parameterization.to_x0(kind, p, y, x, t),
    "to_eps": lambda p, kind, x, y, t: parameterization.to_eps(kind, p, y, x, t),
    "to_score": lambda p, kind, x, y, t: parameterization.to_score(kind, p, y, x, t),
    "velocity": lambda p, kind, x, y, t: parameterization.velocity(kind, p, y, x, t),
}
OF_ONE = {
    "network_output": lambda p, kind, x, t: denoiser.network_output(half, p, kind, x, t),
    "denoiser": lambda p, kind, x, t: denoiser.denoiser(half, p, kind)(x, t),
    "clip": lambda p, kind, x, t: denoiser.clip(denoiser.denoiser(half, p, kind))(x, t),
    "threshold": lambda p, kind, x, t: denoiser.dynamic_threshold(denoiser.denoiser(half, p, kind))(
        x, t
    ),
    "ideal": lambda p, kind, x, t: denoiser.ideal(p, np.zeros((3, *x.shape[1:], 1)))(
        x[..., None], t
    )[..., 0],
    "fixed": lambda p, kind, x, t: bound.fixed(p, lambda x, t: 0.5 * x, 0.5)(x, t, 0.5 * t)[0],
    "learned": lambda p, kind, x, t: bound.learned(two_headed, p, kind, 0.5)(x, t, 0.5 * t)[1],
}
PER_EXAMPLE = {
    "squared_error": lambda p, kind, x, t: losses.squared_error(half, p, kind, x, x, t, None),
    "step_term": lambda p, kind, x, t: bound.step_term(
        bound.fixed(p, lambda x, t: 0.5 * x, 0.5), p, x, x, t, 0.5 * t, 16
    ),
    "prior_term": lambda p, kind, x, t: bound.prior_term(p, x),
}


@few
@given(processes, kinds, shapes, st.booleans(), st.sampled_from([np.float32, np.float64]))
def test_states_keep_their_shape_and_are_float32(p, kind, shape, one_time, dtype):
    x, t = struct(shape, dtype), struct(() if one_time else shape[:1], dtype)
    for name, f in OF_TWO.items():
        got = jax.eval_shape(lambda x, y, t, f=f: f(p, kind, x, y, t), x, x, t)
        assert (got.shape, got.dtype) == (shape, np.float32), name
    for functions, want in ((OF_ONE, shape), (PER_EXAMPLE, shape[:1])):
        for name, f in functions.items():
            got = jax.eval_shape(lambda x, t, f=f: f(p, kind, x, t), x, t)
            assert (got.shape, got.dtype) == (want, np.float32), name


@examples
@given(processes, kinds, shapes, shapes)
def test_states_of_two_shapes_are_refused_by_name(p, kind, shape, other):
    assume(shape != other)
    x, y = np.ones(shape, np.float32), np.ones(other, np.float32)
    for f in (*OF_TWO.values(), lambda p, *a: losses.squared_error(half, p, *a, None)):
        with pytest.raises(ValueError, match=r"^(x_t|eps|y) must have the shape of (x0|x_t), \["):
            f(p, kind, x, y, 0.5)


@few
@given(processes, kinds, shapes, shapes)
def test_times_that_are_neither_one_nor_one_per_example_are_refused(p, kind, shape, times):
    assume(times != shape[:1])
    x, t = struct(shape), struct(times)
    calls = [lambda x, t, f=f: f(p, kind, x, x, t) for f in OF_TWO.values()]
    calls += [lambda x, t, f=f: f(p, kind, x, t) for n, f in OF_ONE.items() if n != "ideal"]
    for call in calls:
        with pytest.raises(ValueError, match=r"^t must be a scalar or of shape \[B\] = \["):
            jax.eval_shape(call, x, t)


@few
@given(
    processes,
    kinds,
    st.one_of(
        st.floats(1.125, width=32), st.floats(max_value=-0.125, width=32), st.just(float("nan"))
    ),
    st.integers(0, 2),
)
def test_times_outside_the_unit_interval_are_refused_by_name(p, kind, bad, place):
    x, t = np.ones((3, 2), np.float32), np.full(3, 0.5, np.float32)
    t[place] = bad
    for time in (t, float(bad)):
        for f in OF_TWO.values():
            with pytest.raises(ValueError, match=r"^t must be in \[0, 1\], got"):
                f(p, kind, x, x, time)
        for f in OF_ONE.values():
            with pytest.raises(ValueError, match=r"^t must be in \[0, 1\], got"):
                f(p, kind, x, time)


# ------------------------------------------------------------------------- schedules and levels


def _chain(betas):
    return process.from_betas([*betas, 0.5][:6])


some_process = st.one_of(
    st.lists(st.floats(1e-300, 1 - 1e-16), min_size=6, max_size=6).map(_chain),
    st.tuples(positive, positive).map(lambda b: process.vp_linear(min(b), max(b))),
    st.tuples(positive, positive).map(lambda b: process.sub_vp(min(b), max(b))),
    st.floats(0, 1e300).map(process.vp_cosine),
    st.tuples(positive, st.floats(1.01, 1e3)).map(
        lambda b: process.variance_exploding(b[0], b[0] * b[1])
    ),
    st.builds(process.edm, st.floats(1e-5, 1e15), positive, positive),
)
TIMES = np.concatenate([[0], np.geomspace(1e-6, 0.1, 16), np.linspace(0.15, 1, 16)])
TIMES = TIMES.astype(np.float32)


@examples
@given(some_process)
def test_every_process_is_safe_at_both_ends_and_between(p):
    alpha, sigma = (np.asarray(f(TIMES), np.float64) for f in (p.alpha, p.sigma))
    assert alpha.dtype == sigma.dtype and np.isfinite(alpha).all() and np.isfinite(sigma).all()
    assert alpha[0] == 1 and sigma[0] == 0 and (sigma[1:] > 0).all() and (alpha >= 0).all()
    t, s = TIMES[1:], TIMES[:-1]
    scale, variance = (np.asarray(v, np.float64) for v in process.transition(p, t, s))
    np.testing.assert_allclose(scale * alpha[:-1], alpha[1:], rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(
        scale**2 * sigma[:-1] ** 2 + variance, sigma[1:] ** 2, rtol=1e-3, atol=1e-37
    )
    x0, x_t = np.full(32, 0.7), np.full(32, -0.3)
    for value in process.posterior(p, x0, x_t, t, s):
        assert np.isfinite(value).all()
    y = np.full(33, 0.7, np.float32)
    for kind in ("x0", "v", "edm"):
        assert np.isfinite(parameterization.to_x0(kind, p, y, y, TIMES)).all()
        assert np.isfinite(losses.min_snr()(kind, p, TIMES)).all()
    for kind in ("eps", "v", "edm"):
        assert np.isfinite(parameterization.to_eps(kind, p, y, y, TIMES)).all()
    lower, upper = bound.variance_limits(p, t, s, 0.01)
    assert np.isfinite(lower).all() and np.isfinite(upper).all()


@examples
@given(st.integers(1, 300), st.floats(1e-6, 0.9), st.floats(1e-6, 0.9), st.floats(0.1, 1e4))
def test_every_schedule_of_betas_rises_within_its_ends(T, first, last, steepness):
    first, last = min(first, last), max(first, last)
    for betas in (
        process.linear_betas(T, first, last),
        process.quadratic_betas(T, first, last),
        process.scaled_linear_betas(T, first, last),
        process.sigmoid_betas(T, first, last, steepness),
    ):
        assert betas.shape == (T,) and betas.dtype == np.float64
        assert (betas >= first * (1 - 1e-9)).all() and (betas <= last * (1 + 1e-9)).all()
        assert (np.diff(betas) >= -1e-15).all()
    if T > 1:
        shifted = process.zero_terminal_snr(process.linear_betas(T, first, last))
        assert shifted[-1] == 1 and (shifted > 0).all() and (shifted[:-1] < 1).all()
        assert shifted[0] == pytest.approx(first, rel=1e-12)


@examples
@given(st.integers(1, 300), st.floats(0, 1e300), st.floats(0.01, 0.9999))
def test_cosine_betas_are_legal_for_every_offset(T, s, max_beta):
    betas = process.cosine_betas(T, s, max_beta)
    assert (betas > 0).all() and (betas <= max_beta).all()
    process.from_betas(betas)


# ------------------------------------------------------------------------- mixtures and losses


@few
@given(st.integers(1, 4), st.integers(1, 3), shapes, st.sampled_from(["means", "stds", "weights"]))
def test_mixtures_of_other_shapes_are_refused_by_name(k, d, shape, name):
    good = {"means": (k, d), "stds": (k,), "weights": (k,)}
    gm = denoiser.gaussian_mixture(ALL[0], *(np.ones(s) for s in good.values()))
    assert jax.eval_shape(gm.denoise, struct((5, d)), struct((5,))).shape == (5, d)
    assert jax.eval_shape(gm.log_prob, struct((5, d)), 0.5).shape == (5,)
    assert jax.eval_shape(lambda: gm.sample(KEY, 7)).shape == (7, d)
    with pytest.raises(
        ValueError, match=rf"^x must have shape \[B, {d}\], got shape \[5, {d + 1}\]"
    ):
        gm.score(np.ones((5, d + 1)), 0.5)
    assume(len(shape) != 2 if name == "means" else shape != (k,))
    bad = {**good, name: shape}
    with pytest.raises(ValueError, match=rf"^{name} must have shape \[K"):
        denoiser.gaussian_mixture(ALL[0], *(np.ones(s) for s in bad.values()))


@few
@given(st.integers(1, 9), st.integers(1, 40))
def test_training_times_are_float32_of_the_number_asked_for(n, T):
    importance = losses.importance_times(np.ones(T))
    samplers = [losses.uniform_times, losses.stratified_times, losses.discrete_times(T)]
    for sampler in (*samplers, importance[0]):
        got = jax.eval_shape(lambda f=sampler: f(KEY, n))
        assert (got.shape, got.dtype) == ((n,), np.float32)
        for bad in (0, -n, 2.5, True, None):
            with pytest.raises(ValueError, match=r"^n must be a whole number at least 1, got"):
                sampler(KEY, bad)


@few
@given(processes, kinds, shapes, st.integers(0, 6), st.booleans())
def test_conditions_belong_to_the_examples(p, kind, shape, rows, column):
    cond = struct((rows, 1) if column else (rows,), np.int32)

    def loss(x, cond):
        return losses.diffusion_loss(half, p, kind, x, cond, KEY)

    if rows == shape[0] and not column:
        got = jax.eval_shape(loss, struct(shape), cond)
        assert (got.shape, got.dtype) == ((), np.float32)
        return
    with pytest.raises(ValueError, match=r"^cond must be labels of shape \["):
        jax.eval_shape(loss, struct(shape), cond)


@examples
@given(st.integers(1, 6), st.integers(0, 12), st.floats(0, 1))
def test_dropped_labels_are_labels_or_the_null_class(n, null, rate):
    labels = np.arange(n) % (null + 1)
    got = jax.eval_shape(lambda labels: losses.drop_labels(KEY, labels, null, rate), labels)
    assert got.shape == (n,) and np.issubdtype(got.dtype, np.integer)
    with pytest.raises(ValueError, match=f"^labels must be in 0 … {null}, got"):
        losses.drop_labels(KEY, labels + null + 1, null, rate)
    for bad in (-0.1 - rate, 1.1 + rate, float("nan")):
        with pytest.raises(ValueError, match=r"^rate must be in \[0, 1\], got"):
            losses.drop_labels(KEY, labels, null, bad)


# ------------------------------------------------------------------------------------ the bound


@examples
@given(st.integers(2, 64), st.floats(-3, 3), st.floats(-12, 6))
def test_the_values_of_a_pixel_share_all_of_the_probability(levels, mean, log_variance):
    values = np.minimum(np.linspace(-1, 1, levels).tolist() + [9.0] * (64 - levels), 9.0)
    log_p = np.asarray(
        bound.discretized_log_likelihood(values, np.full(64, mean), log_variance, levels)
    )[:levels]
    assert np.isfinite(log_p).all() and (log_p <= 1e-6).all()
    assert np.exp(log_p.astype(np.float64)).sum() == pytest.approx(1, abs=1e-4)


@examples
@given(st.floats(-3, 3), st.floats(-160, 30), st.floats(-160, 30))
def test_the_divergence_of_two_gaussians_is_never_negative(mean, log_v, log_w):
    got = float(bound.gaussian_kl(np.float32(mean), np.float32(log_v), 0.0, np.float32(log_w)))
    assert got >= -1e-4 and not np.isnan(got)  # a difference of numbers of up to 100
    assert bound.gaussian_kl(mean, log_v, mean, log_v) == 0


@examples
@given(
    st.lists(unit, min_size=1, max_size=5),
    st.sampled_from(["rises", "does not end at 0", "has one entry", "leaves the interval"]),
)
def test_a_bound_needs_a_grid_that_falls_to_zero(times, fault):
    falling = sorted({*times, 1.0} - {0.0}, reverse=True)
    grid = {
        "rises": [0.5, *falling, 0.0],
        "does not end at 0": falling if len(falling) > 1 else [1.0, 0.5],
        "has one entry": [0.0],
        "leaves the interval": [1.5, *falling, 0.0],
    }[fault]
    with pytest.raises(ValueError, match=r"^times must"):
        bound.evaluate(None, ALL[0], np.ones((2, 1), np.float32), grid, KEY)


@examples
@given(shapes)
def test_split_outputs_are_two_halves_or_refused(shape):
    if shape[-1] % 2:
        with pytest.raises(ValueError, match=r"^y must have an even number of channels, got shape"):
            bound.split_output(np.ones(shape))
    else:
        got = jax.eval_shape(bound.split_output, struct(shape))
        assert [g.shape for g in got] == [(*shape[:-1], shape[-1] // 2)] * 2


@pytest.mark.parametrize("bad", [0, -0.5, 1.5, float("nan"), "first"])
def test_the_first_time_of_a_grid_is_in_the_unit_interval(bad):
    p = ALL[0]
    for call in (
        lambda: bound.fixed(p, None, bad),
        lambda: bound.learned(None, p, "v", bad),
        lambda: bound.variance_limits(p, 0.5, 0.25, bad),
    ):
        with pytest.raises(ValueError, match=r"^first must be"):
            call()


# ------------------------------------------------------------------------------------- metrics

matrix = st.tuples(st.integers(2, 6), st.integers(1, 3), st.integers(0, 2**31)).map(
    lambda a: np.random.default_rng(a[2]).normal(a[0], a[1], a[:2])
)


@examples
@given(matrix, st.sampled_from([np.float64, np.float32, np.float16, np.int8]), st.floats(-9, 9))
def test_distances_of_samples_are_finite_for_every_dtype(x, dtype, shift):
    x = x.astype(dtype)
    y = x[::-1] + np.asarray(shift).astype(dtype)
    assert np.isfinite(metrics.frechet(x, y)) and metrics.frechet(x, y) > -1e-5
    assert metrics.frechet(x, y) == pytest.approx(metrics.frechet(y, x), abs=1e-5)
    assert np.isfinite(metrics.mmd(x, y, bandwidth=1.5))
    index, distance = metrics.nearest(x, y)
    assert index.shape == distance.shape == (len(x),) and np.isfinite(distance).all()


@examples
@given(matrix, st.sampled_from([np.nan, np.inf, "text", None, 1j]))
def test_what_has_no_distance_is_refused_by_name(x, bad):
    worse = x.astype(object)
    worse[0, 0] = bad
    for function in (metrics.frechet, metrics.mmd, metrics.nearest):
        with pytest.raises(ValueError, match=r"^x must be (finite|an array of real numbers)"):
            function(worse, x)
        with pytest.raises(ValueError, match=r"^y must be (finite|an array of real numbers)"):
            function(x, worse)
        with pytest.raises(ValueError, match=r"^x must have shape \[N, …\]"):
            function(x[:, 0], x)
        with pytest.raises(ValueError, match=r"^x and y must have equally many features"):
            function(np.concatenate([x, x], 1), x)


@examples
@given(st.lists(st.integers(0, 4), min_size=1, max_size=20), st.integers(0, 2**31))
def test_accuracies_are_shares(labels, seed):
    predicted = np.random.default_rng(seed).integers(0, 5, len(labels))
    share = metrics.class_accuracy(predicted, labels)
    per_class = metrics.per_class_accuracy(predicted, labels, 5)
    weights = np.bincount(labels, minlength=5) / len(labels)
    assert 0 <= share <= 1 and np.nansum(per_class * weights) == pytest.approx(share)
    for bad in (np.asarray(labels) + 0.7, np.asarray(labels, float), ["a"] * len(labels)):
        with pytest.raises(ValueError, match=r"^labels must be whole numbers, got dtype"):
            metrics.class_accuracy(predicted, bad)
        with pytest.raises(ValueError, match=r"^predicted must be whole numbers, got dtype"):
            metrics.class_accuracy(bad, labels)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"x0": np.ones((2, 2), np.uint8)}, "x0 must be floating-point numbers, got dtype uint8"),
        ({"x0": np.ones((2, 2), np.float16)}, "x0 must be float32 or float64"),
        ({"times": [[0.5]]}, r"times must have shape \[N\], got shape \[1, 1\]"),
        ({"times": [0.5, 20]}, r"times must be in \[0, 1\], got 20.0 at index \[1\]"),
        ({"repeats": 0}, "repeats must be a whole number at least 1, got 0"),
        ({"repeats": 2.5}, "repeats must be a whole number at least 1, got 2.5"),
    ],
)
def test_the_loss_by_time_names_what_is_wrong(options, message):
    good = {"x0": np.ones((2, 2), np.float32), "times": [0.5], "repeats": 1}
    arguments = {**good, **options}
    with pytest.raises(ValueError, match=f"^{message}"):
        metrics.loss_by_time(None, None, cond=None, key=KEY, **arguments)
