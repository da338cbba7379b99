import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import (
    EPS32,
    MIXTURE,
    PROCESSES,
    Mixture1D,
    as_column,
    examples,
    float32_times,
    within_standard_errors,
)

from diffusion_course import denoiser, parameterization, process

rng = np.random.default_rng(22)

some_processes = pytest.mark.parametrize(
    "name", ["linear chain", "sub_vp", "vp_cosine", "variance_exploding", "rectified_flow"]
)

# Three unequal components in the plane.
MEANS = np.array([[-0.9, 0.2], [0.5, 1.1], [0.3, -0.7]])
STDS = np.array([0.2, 0.35, 0.1])
WEIGHTS = np.array([3.0, 5.0, 2.0])


def plane(p):
    return denoiser.gaussian_mixture(p, MEANS, STDS, WEIGHTS)


def states(o, t, n):
    """Typical x_t of that mixture, [n, 2]."""
    k = rng.choice(3, n, p=WEIGHTS / WEIGHTS.sum())
    x0 = MEANS[k] + STDS[k, None] * rng.normal(size=(n, 2))
    t = np.broadcast_to(t, (n,))[:, None]
    return jnp.asarray(o.alpha(t) * x0 + o.sigma(t) * rng.normal(size=(n, 2)), jnp.float32)


# --------------------------------------------------------------------------- network to denoiser


@pytest.mark.parametrize("kind", parameterization.KINDS)
@pytest.mark.parametrize("name", ["linear chain", "sub_vp", "edm", "rectified_flow"])
def test_a_network_that_outputs_the_target_denoises_perfectly(kind, name):
    p, t = PROCESSES[name].process, jnp.asarray([0.31, 0.52, 0.77])
    x0, eps = jnp.asarray(rng.normal(0.3, 1.2, (2, 3, 2, 2, 1)), jnp.float32)
    x_t = process.add_noise(p, x0, eps, t)
    cond = jnp.asarray([4, 0, 2])
    seen = []

    def model(x, t, cond):
        seen.append((x, t, cond))
        return parameterization.target(kind, p, x0, eps, t)

    D = denoiser.denoiser(model, p, kind, cond)
    # Through alpha at t = 0.77 and table slopes: a det of 0.1 multiplies the rounding.
    np.testing.assert_allclose(D(x_t, t), x0, atol=2e-2 if kind == "flow" else 2e-3)
    x, times, labels = seen[0]
    np.testing.assert_array_equal(times, t)
    np.testing.assert_array_equal(labels, cond)
    if kind != "edm":
        np.testing.assert_array_equal(x, x_t)


def test_one_time_becomes_one_per_example():
    shapes = []

    def model(x, t, cond):
        shapes.append((t.shape, t.dtype, float(t[0])))
        return x

    D = denoiser.denoiser(model, process.vp_cosine(), "v")
    for t in (0.25, np.float64(0.25), jnp.asarray(0.25), jnp.full(3, 0.25)):
        D(jnp.ones((3, 2)), t)
    assert shapes == [((3,), jnp.float32, 0.25)] * 4


@pytest.mark.parametrize("name", ["edm", "linear chain", "rectified_flow", "variance_exploding"])
def test_the_edm_network_sees_unit_variance_and_the_others_the_state(name):
    o, n = PROCESSES[name], 200_000
    for t in (0.07, 0.4, 0.93):
        x0, eps = rng.normal(0, 1, (2, n, 1))
        x = as_column(o.alpha(t) * o.process.sigma_data * x0[:, 0] + o.sigma(t) * eps[:, 0])
        seen = denoiser.network_output(lambda x, t, cond: x, o.process, "edm", x, t)
        within_standard_errors(seen, 0, 1)
        for kind in ("eps", "v"):
            seen = denoiser.network_output(lambda x, t, cond: x, o.process, kind, x, t)
            np.testing.assert_array_equal(seen, x)


def test_a_silent_edm_network_is_the_best_linear_denoiser():
    o = PROCESSES["edm"]
    x = jnp.asarray(rng.normal(0, 20, (5, 2)), jnp.float32)
    t = float32_times(rng, 5, 0.1, 0.9)
    got = denoiser.denoiser(lambda x, t, cond: 0 * x, o.process, "edm")(x, t)
    d, sigma = o.process.sigma_data, o.sigma(t)[:, None]
    np.testing.assert_allclose(got, d**2 / (d**2 + sigma**2) * x, rtol=2e-5)  # c_skip·x


@examples
@given(st.text(max_size=5).filter(lambda kind: kind not in parameterization.KINDS))
def test_an_unknown_kind_is_refused_before_the_first_call(kind):
    with pytest.raises(ValueError, match="kind must be one of"):
        denoiser.denoiser(lambda x, t, cond: x, process.vp_cosine(), kind)


# ------------------------------------------------------------------------------------------ clip


def test_clipping_changes_only_what_leaves_the_range():
    D = denoiser.clip(lambda x, t: x * t, -0.5, 0.75)
    x = jnp.asarray([[-3.0, -0.4, 0.2, 0.7, 9.0]])
    np.testing.assert_allclose(D(x, 1.0), [[-0.5, -0.4, 0.2, 0.7, 0.75]], rtol=1e-7)
    np.testing.assert_allclose(D(x, 0.5), [[-0.5, -0.2, 0.1, 0.35, 0.75]], rtol=1e-6)
    default = denoiser.clip(lambda x, t: x)
    np.testing.assert_allclose(default(jnp.asarray([[-2.0, 2.0, 0.3]]), 1.0), [[-1, 1, 0.3]])


@examples
@given(st.floats(), st.floats())
def test_a_clip_range_upside_down_is_refused(low, high):
    if low < high:
        denoiser.clip(lambda x, t: x, low, high)
        return
    with pytest.raises(ValueError, match="low must be below high, got") as error:
        denoiser.clip(lambda x, t: x, low, high)
    assert f"{low} and {high}" in str(error.value)


# ------------------------------------------------------------------------------ Gaussian mixture


@some_processes
def test_the_density_of_a_mixture_is_the_textbooks(name):
    o = PROCESSES[name]
    for t in (0.0, 0.03, 0.4, 0.97):
        x = np.asarray(states(o, t, 50), np.float64)
        a, s = float(o.alpha(t)), float(o.sigma(t))
        v = a**2 * STDS**2 + s**2
        squared = ((x[:, None] - a * MEANS) ** 2).sum(-1)
        density = (WEIGHTS / 10 * np.exp(-squared / (2 * v)) / (2 * np.pi * v)).sum(1)
        got = plane(o.process).log_prob(jnp.asarray(x, jnp.float32), t)
        # float32 distances of up to 5 standard deviations squared, from means rounded by EPS32.
        np.testing.assert_allclose(got, np.log(density), rtol=1e-4, atol=2e-3)


@pytest.mark.parametrize("t", [0.0, 0.05, 0.5, 1.0])
@some_processes
def test_the_density_of_a_mixture_integrates_to_one(name, t):
    o = PROCESSES[name]
    oracle = denoiser.gaussian_mixture(o.process, MIXTURE[0][:, None], *MIXTURE[1:])
    m, d = Mixture1D(o, *MIXTURE).parts(t)
    x = np.linspace((m - 9 * d).min(), (m + 9 * d).max(), 40_001)
    density = np.exp(np.asarray(oracle.log_prob(as_column(x), t), np.float64))
    # A grid of 40,000 points is fine enough; what remains is the rounding of log p, averaged.
    assert density.sum() * (x[1] - x[0]) == pytest.approx(1, abs=1e-4)


@some_processes
def test_the_score_is_the_gradient_of_the_density_and_tweedie_gives_the_denoiser(name):
    o, oracle = PROCESSES[name], plane(PROCESSES[name].process)
    t = float32_times(rng, 40, 0.1, 0.95)
    x = states(o, t, 40)
    gradient = jax.grad(lambda x: oracle.log_prob(x, t).sum())(x)
    score = oracle.score(x, t)
    sigma, alpha = o.sigma(t)[:, None], o.alpha(t)[:, None]
    scale = 1 / sigma
    assert (np.abs(score - gradient) < 2e-4 * (np.abs(gradient) + scale)).all()
    tweedie = (x + sigma**2 * gradient) / alpha
    # Divided by alpha, which is as small as 0.01 here.
    tolerance = 1e-4 + 2e-4 * sigma / alpha + 20 * EPS32 * np.abs(x) / alpha
    assert (np.abs(oracle.denoise(x, t) - tweedie) < tolerance).all()


@some_processes
def test_the_denoiser_is_the_posterior_mean_by_numerical_integration(name):
    o = PROCESSES[name]
    oracle = denoiser.gaussian_mixture(o.process, MIXTURE[0][:, None], *MIXTURE[1:])
    x0 = np.linspace(-3, 4, 20_001)
    means, stds, weights = MIXTURE
    prior = (weights * np.exp(-((x0[:, None] - means) ** 2) / (2 * stds**2)) / stds).sum(1)
    for t in float32_times(rng, 12, 0.2, 0.95):
        a, s = float(o.alpha(t)), float(o.sigma(t))
        x = a * rng.choice(means) + s * rng.normal()
        w = prior * np.exp(-((x - a * x0) ** 2) / (2 * s**2))
        got = oracle.denoise(as_column(np.array([x])), t)[0, 0]
        assert got == pytest.approx((w @ x0) / w.sum(), abs=2e-4)


@some_processes
def test_the_denoiser_is_the_least_squares_answer(name):
    # Residuals of E[x0 | x_t] have mean zero against any function of x_t.
    o, n, t = PROCESSES[name], 200_000, 0.35
    p = o.process
    oracle = plane(p)
    x0 = oracle.sample(jax.random.key(1), n)
    x_t = process.add_noise(p, x0, jax.random.normal(jax.random.key(2), x0.shape), t)
    residual = np.asarray(x0 - oracle.denoise(x_t, t), np.float64)
    for function in (np.ones((n, 2)), np.sin(2 * np.asarray(x_t)), np.tanh(np.asarray(x_t) ** 2)):
        product = residual * function
        assert (np.abs(product.mean(0)) < 4.5 * product.std(0) / np.sqrt(n) + 1e-6).all()


def test_a_mixture_may_be_made_inside_a_program_and_of_its_arguments():
    p, x = PROCESSES["vp_cosine"].process, jnp.asarray(rng.normal(size=(4, 2)), jnp.float32)

    def density(means, stds):
        return denoiser.gaussian_mixture(p, means, stds, WEIGHTS).log_prob(x, 0.5)

    want = plane(p).log_prob(x, 0.5)
    np.testing.assert_allclose(jax.jit(lambda: density(MEANS, STDS))(), want, rtol=1e-5)
    np.testing.assert_allclose(jax.jit(density)(MEANS, STDS), want, rtol=1e-5)
    gradient = jax.grad(lambda m: density(m, STDS).sum())(jnp.asarray(MEANS, jnp.float32))
    assert np.isfinite(gradient).all() and (np.abs(gradient) > 0).all()


def test_one_gaussian_is_linear_algebra():
    o, mean, std = PROCESSES["vp_linear"], np.array([0.7, -1.3]), 0.5
    oracle = denoiser.gaussian_mixture(o.process, mean[None], [std], [4.0])
    x, t = rng.normal(0, 1, (6, 2)), float32_times(rng, 6)
    a, s = o.alpha(t)[:, None], o.sigma(t)[:, None]
    v = a**2 * std**2 + s**2
    x32 = jnp.asarray(x, jnp.float32)
    np.testing.assert_allclose(
        oracle.denoise(x32, t), mean + a * std**2 / v * (x - a * mean), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(oracle.score(x32, t), -(x - a * mean) / v, rtol=1e-4, atol=1e-5)
    assert (oracle.responsibilities(x32, t) == 1).all()


def test_log_responsibilities_have_a_gradient_where_a_probability_is_0():
    oracle, t = plane(process.vp_cosine()), 0.2
    near = jnp.asarray(rng.normal(0, 1, (6, 2)), jnp.float32)
    log_r = oracle.log_responsibilities(near, t)
    np.testing.assert_allclose(jnp.exp(log_r), oracle.responsibilities(near, t), atol=1e-5)
    far = jnp.asarray([[30.0, -20.0], [-25.0, 40.0]])
    assert (oracle.responsibilities(far, t).min(axis=1) == 0).all()
    alone = [
        denoiser.gaussian_mixture(oracle.process, MEANS[[k]], STDS[[k]], [1.0]) for k in range(3)
    ]
    for k in range(3):
        slope = jax.grad(lambda x, k=k: oracle.log_responsibilities(x, t)[:, k].sum())(far)
        # Bayes' rule: the difference of two scores, hundreds in size, in float32.
        want = alone[k].score(far, t) - oracle.score(far, t)
        np.testing.assert_allclose(slope, want, rtol=1e-4, atol=1e-2)


def test_samples_have_the_mixture_s_moments_and_shares():
    n = 200_000
    x = np.asarray(plane(process.vp_cosine()).sample(jax.random.key(5), n), np.float64)
    w = WEIGHTS / WEIGHTS.sum()
    mean = w @ MEANS
    variance = w @ (STDS[:, None] ** 2 + (MEANS - mean) ** 2)
    for axis in (0, 1):
        # Clusters are flatter than a Gaussian, so a kurtosis of 3 is on the safe side.
        within_standard_errors(x[:, axis], mean[axis], np.sqrt(variance[axis]))
    left = (x[:, 0] < -0.3).mean()  # the first component, and 2 % of the second's and third's tails
    nearest = ((x[:, None] - MEANS) ** 2).sum(-1).argmin(1)
    near = np.abs(x - MEANS[nearest]).max(1) < 3 * STDS[nearest]
    for k in range(3):
        mine = x[near & (nearest == k)]
        # Up to 3 % of a cluster lie nearer to another's mean.
        assert abs(len(mine) / n - w[k]) < 0.03
        assert np.abs(np.median(mine, axis=0) - MEANS[k]).max() < 0.05
    assert 0.28 < left < 0.34


def test_times_may_differ_within_a_batch():
    o, oracle = PROCESSES["sub_vp"], plane(PROCESSES["sub_vp"].process)
    t = float32_times(rng, 5, 0.05).astype(np.float32)
    x = states(o, 0.4, 5)
    for f in (oracle.denoise, oracle.score, oracle.log_prob, oracle.responsibilities):
        singly = np.concatenate([f(x[i : i + 1], t[i]) for i in range(5)])
        np.testing.assert_allclose(f(x, t), singly, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(jax.jit(f)(x, t), singly, rtol=1e-4, atol=1e-4)
        mapped = jax.vmap(lambda x, t, f=f: f(x[None], t)[0])(x, t)
        np.testing.assert_allclose(mapped, singly, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["vp_cosine", "edm", "variance_exploding"])
def test_far_away_states_and_extreme_levels_stay_finite(name):
    p = PROCESSES[name].process
    x = jnp.asarray([[0.0, 0.0], [1e4, -1e4], [-3e3, 5.0]])
    gm, points = plane(p), denoiser.ideal(p, MEANS)
    for t in (1e-3, 0.1, 0.5, 1.0):
        for value in (gm.denoise(x, t), gm.score(x, t), gm.log_prob(x, t), points(x, t)):
            assert np.isfinite(value).all()
        # A mean of data stays inside the data when sigma is the only spread.
        assert (points(x, t) <= MEANS.max(0) + 1e-5).all()
        assert (points(x, t) >= MEANS.min(0) - 1e-5).all()
        # The gradient too: softmax and logsumexp, not exponentials of large numbers.
        assert np.isfinite(jax.grad(lambda x, t=t: gm.denoise(x, t).sum())(x)).all()


# ------------------------------------------------------------------------------------------ ideal


@some_processes
def test_ideal_is_the_mixture_of_points(name):
    o = PROCESSES[name]
    data = rng.normal(0.2, 0.8, (7, 3)).astype(np.float32)
    mixture = denoiser.gaussian_mixture(o.process, data, np.zeros(7), np.ones(7))
    t = float32_times(rng, 20, 0.25, 0.98)
    k = rng.integers(7, size=20)
    x = o.alpha(t)[:, None] * data[k] + o.sigma(t)[:, None] * rng.normal(size=(20, 3))
    x = jnp.asarray(x, jnp.float32)
    got = denoiser.ideal(o.process, data)(x, t)
    # Logits are differences of numbers of size |x·x_i|/sigma², rounded by EPS32.
    np.testing.assert_allclose(got, mixture.denoise(x, t), atol=1e-3)


@some_processes
def test_ideal_on_images_is_bayes_in_float64(name):
    o = PROCESSES[name]
    data = rng.uniform(-1, 1, (9, 4, 3, 2)).astype(np.float32)
    t = float32_times(rng, 12, 0.3, 0.95)
    a, s = o.alpha(t), o.sigma(t)
    x = a[:, None, None, None] * data[rng.integers(9, size=12)]
    x = (x + s[:, None, None, None] * rng.normal(size=(12, 4, 3, 2))).astype(np.float32)
    got = denoiser.ideal(o.process, data)(jnp.asarray(x), t)
    for i in range(12):
        squared = ((x[i].astype(np.float64) - a[i] * data) ** 2).sum((1, 2, 3))
        w = np.exp(-(squared - squared.min()) / (2 * s[i] ** 2))
        np.testing.assert_allclose(got[i], np.tensordot(w / w.sum(), data, 1), atol=1e-3)
        one = denoiser.ideal(o.process, data)(jnp.asarray(x[i : i + 1]), t[i])[0]
        np.testing.assert_allclose(one, got[i], atol=1e-4)


def test_ideal_returns_the_nearest_point_at_low_noise_and_the_mean_at_high_noise():
    p = process.edm()
    data = rng.normal(0, 1, (5, 2)).astype(np.float32)
    D = denoiser.ideal(p, data)
    np.testing.assert_allclose(D(jnp.asarray(data + 0.001), 0.2), data, atol=1e-6)
    # At sigma = 80 the logits differ by 0.02·|x0| at most for x of the size of the noise.
    mean = np.tile(data.mean(0), (5, 1))
    np.testing.assert_allclose(D(jnp.asarray(data), 1.0), mean, atol=2e-3)


# ----------------------------------------------------------------------------------- bad arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0.0], [1.0], [1.0]), r"means must have shape \[K, D\], got shape \[1\]"),
        ((np.zeros((0, 2)), [], []), r"means must have shape \[K, D\], got shape \[0, 2\]"),
        (([[0.0]], [1.0, 2.0], [1.0]), r"stds must have shape \[K\] = \[1\], got shape \[2\]"),
        (([[0.0]], 1.0, [1.0]), r"stds must have shape \[K\] = \[1\], got shape \[\]"),
        (([[0.0]], [1.0], [[1.0]]), r"weights must have shape \[K\] = \[1\], got shape \[1, 1\]"),
        (([[0.0]], [-0.1], [1.0]), r"stds must be in \[0, inf\), got -0.1 at index \[0\]"),
        (([[0.0]], [float("nan")], [1.0]), r"stds must be in \[0, inf\), got nan at index \[0\]"),
        (
            ([[0.0], [1.0]], [1.0, 1.0], [0.0, 1.0]),
            "weights must be positive and finite, got 0.0",
        ),
    ],
)
def test_bad_mixtures_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        denoiser.gaussian_mixture(process.vp_cosine(), *arguments)


@pytest.mark.parametrize("data", [np.zeros((0, 2)), np.zeros(3)])
def test_an_empty_dataset_has_no_ideal_denoiser(data):
    with pytest.raises(ValueError, match=r"data must have shape \[N, …\] with N >= 1, got shape"):
        denoiser.ideal(process.vp_cosine(), data)


# ------------------------------------------------------------------------- dynamic thresholding


def test_estimates_within_the_limit_are_left_alone_and_others_squeezed():
    x0 = jnp.asarray(rng.normal(0.2, 0.3, (3, 8, 8, 1)), jnp.float32)
    x0 = jnp.clip(x0, -0.9, 0.9).at[1].multiply(4).at[2].add(1.5)
    got = np.asarray(denoiser.dynamic_threshold(lambda x, t: x, 0.9)(x0, 0.5))
    np.testing.assert_array_equal(got[0], x0[0])
    for i in (1, 2):
        size = np.quantile(np.abs(np.asarray(x0[i], np.float64)), 0.9)
        assert size > 1
        np.testing.assert_allclose(got[i], np.clip(x0[i], -size, size) / size, rtol=1e-5)
    assert np.abs(got).max() <= 1


def test_the_limit_is_the_range_of_the_data():
    x0 = jnp.asarray(rng.normal(0, 5, (2, 30)), jnp.float32)
    got = denoiser.dynamic_threshold(lambda x, t: x, 1.0, limit=2.5)(x0, 0.5)
    np.testing.assert_allclose(np.abs(got).max(axis=1), 2.5, rtol=1e-6)
    ratio = got / x0  # a quantile of 1 scales and cuts nothing
    np.testing.assert_allclose(ratio, ratio[:, :1] * np.ones((1, 30)), rtol=1e-5)


@pytest.mark.parametrize(
    ("quantile", "limit", "message"),
    [
        (0.0, 1.0, r"quantile must be in \(0, 1\], got 0.0"),
        (1.2, 1.0, r"quantile must be in \(0, 1\], got 1.2"),
        (0.9, 0.0, "limit must be positive and finite, got 0.0"),
    ],
)
def test_thresholds_that_make_no_sense_are_refused(quantile, limit, message):
    with pytest.raises(ValueError, match=message):
        denoiser.dynamic_threshold(lambda x, t: x, quantile, limit)


def test_the_ideal_denoiser_tells_neighbours_apart_far_from_the_origin():
    # float64's posterior of two points, seen through noise as large as what they are apart.
    p, data, x = process.edm(), np.array([[1.0], [1.001]]), np.float32(1.0004)
    t = process.time_at(p, -2 * np.log(5e-4))
    logits = -((x - data[:, 0]) ** 2) / (2 * float(p.sigma(t)) ** 2)
    share = 1 / (1 + np.exp(logits[0] - logits[1]))
    found = denoiser.ideal(p, jnp.asarray(data, jnp.float32))(jnp.full((1, 1), x), t)
    # float32 rounds each point by up to 6e-8 and the result as much: 2e-4 of the gap.
    assert (float(found[0, 0]) - 1) / 1e-3 == pytest.approx(share, abs=1e-3)
    assert abs(share - 0.5) > 0.09  # one half is what it was taken for
