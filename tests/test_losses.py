import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from oracles import PROCESSES, examples, float32_times

from diffusion_course import losses, parameterization, process
from diffusion_course.models.mlp import MLP

rng = np.random.default_rng(23)

KINDS = list(parameterization.KINDS)


# ------------------------------------------------------------------------------------------ times


@pytest.mark.parametrize("n", [1, 7, 64, 1000])
def test_stratified_times_hold_one_time_in_every_stratum(n):
    t = np.asarray(losses.stratified_times(jax.random.key(n), n))
    assert t.shape == (n,) and t.dtype == np.float32
    # Rounding may put a time on the edge of its stratum, not beyond.
    place = t.astype(np.float64) * n - np.arange(n)
    assert (place >= -1e-4).all() and (place <= 1 + 1e-4).all()


@pytest.mark.parametrize("sampler", [losses.uniform_times, losses.stratified_times])
def test_times_are_uniform_and_stay_inside_the_open_interval(sampler):
    draw = jax.jit(jax.vmap(lambda key: sampler(key, 8)))
    t = np.asarray(draw(jax.random.split(jax.random.key(0), 20_000)), np.float64).ravel()
    assert t.min() > 0 and t.max() < 1
    # Shares of 10 bins: one standard error of independent draws is sqrt(.1·.9/160000) = 0.00075;
    # stratified ones vary less.
    shares = np.histogram(t, 10, (0, 1))[0] / t.size
    assert np.abs(shares - 0.1).max() < 4.5 * 0.00075


def test_each_stratum_is_uniform_within_itself():
    draw = jax.jit(jax.vmap(lambda key: losses.stratified_times(key, 3)))
    t = np.asarray(draw(jax.random.split(jax.random.key(1), 30_000)), np.float64)
    place = t * 3 - np.arange(3)
    np.testing.assert_allclose(place.mean(0), 0.5, atol=4 * np.sqrt(1 / 12 / 30_000))
    np.testing.assert_allclose(place.var(0), 1 / 12, atol=4 * np.sqrt(1 / 180 / 30_000))
    # Offsets of their own: no two strata move together.
    correlation = np.corrcoef(place.T)[np.triu_indices(3, 1)]
    assert np.abs(correlation).max() < 4 / np.sqrt(30_000)


def test_stratifying_makes_the_mean_of_a_batch_steadier():
    keys = jax.random.split(jax.random.key(2), 4000)

    def variance(sampler):
        means = jax.jit(jax.vmap(lambda key: (sampler(key, 32) ** 2).mean()))(keys)
        return np.var(np.asarray(means, np.float64))

    # For a smooth function the variance falls by about n² = 1000; the ratio of two sample
    # variances of 4000 draws is known to 10 %.
    ratio = variance(losses.uniform_times) / variance(losses.stratified_times)
    want = (1 / 5 - 1 / 9) / np.mean([_variance_of_square(i / 32, (i + 1) / 32) for i in range(32)])
    assert ratio == pytest.approx(want, rel=0.15)


def _variance_of_square(low, high):
    def moment(k):
        return (high ** (k + 1) - low ** (k + 1)) / (k + 1) / (high - low)

    return moment(4) - moment(2) ** 2


def test_importance_times_follow_the_root_of_the_mean_square_loss():
    mean_square = np.array([0.3, 2.0, 0.1, 0.7, 5.0])
    times, weight = losses.importance_times(mean_square)
    draw = jax.jit(jax.vmap(lambda key: times(key, 8)))
    t = np.asarray(draw(jax.random.split(jax.random.key(0), 5000))).ravel()
    assert t.min() > 0 and t.max() < 1
    expected = np.sqrt(mean_square) / np.sqrt(mean_square).sum()
    # One standard error of 40,000 draws is at most 0.0025.
    np.testing.assert_allclose(np.histogram(t, 5, (0, 1))[0] / t.size, expected, atol=0.01)
    middles = (np.arange(5) + 0.5) / 5
    density = 5 * expected
    np.testing.assert_allclose(weight("v", None, jnp.asarray(middles)), 1 / density, rtol=1e-5)


def test_importance_times_keep_the_expected_loss_and_lessen_its_variance():
    def loss(t):  # large near 0, as the error of v is
        return 0.05 + np.exp(-9 * t)

    grid = (np.arange(64) + 0.5) / 64
    times, weight = losses.importance_times(loss(grid) ** 2)
    draw = jax.jit(jax.vmap(lambda key: times(key, 1)))
    keys = jax.random.split(jax.random.key(3), 20_000)
    t = draw(keys)[:, 0]
    weighted = np.asarray(weight("v", None, t)) * loss(np.asarray(t))
    plain = loss(np.asarray(jax.vmap(lambda key: losses.uniform_times(key, 1))(keys))[:, 0])
    exact = 0.05 + (1 - np.exp(-9)) / 9
    assert weighted.mean() == pytest.approx(exact, abs=4 * weighted.std() / np.sqrt(len(t)))
    assert plain.mean() == pytest.approx(exact, abs=4 * plain.std() / np.sqrt(len(t)))
    assert weighted.std() < 0.2 * plain.std()


@pytest.mark.parametrize("wrong", [[], [[1.0]], [1.0, 0.0], [1.0, np.nan], [1.0, -2.0]])
def test_importance_times_need_positive_estimates(wrong):
    with pytest.raises(ValueError, match=r"^mean_square must (have shape|be positive and finite)"):
        losses.importance_times(wrong)


@pytest.mark.parametrize("T", [1, 4, 37])
def test_discrete_times_are_the_steps_of_the_chain_and_each_as_likely(T):
    n = 100_000
    t = np.asarray(losses.discrete_times(T)(jax.random.key(T), n))
    assert t.shape == (n,)
    step = np.rint(t * T).astype(int)
    np.testing.assert_allclose(t, step / T, rtol=1e-6)
    counts = np.bincount(step, minlength=T + 1)
    assert counts[0] == 0 and len(counts) == T + 1
    tolerance = 4.5 * np.sqrt((1 / T) * (1 - 1 / T) / n) + 1e-12
    assert np.abs(counts[1:] / n - 1 / T).max() < tolerance


# ---------------------------------------------------------------------------------------- weights


def test_the_simple_weight_is_one():
    w = losses.simple("v", process.vp_cosine(), jnp.asarray([0.1, 0.9]))
    np.testing.assert_array_equal(w, [1, 1])


@pytest.mark.parametrize("gamma", [1.0, 5.0])
@pytest.mark.parametrize("name", ["linear chain", "vp_cosine", "sub_vp", "edm", "rectified_flow"])
def test_min_snr_weighs_the_same_error_of_x0_equally_for_every_kind(name, gamma):
    o, t = PROCESSES[name], float32_times(rng, 12, 0.1, 0.9)
    p = o.process
    t = ((np.floor(t * 1000) + 0.5) / 1000).astype(np.float32).astype(np.float64)
    x0, error, x_t = rng.normal(0.3, 1.1, (3, 12, 4)).astype(np.float32)
    snr = (o.alpha(t) / o.sigma(t)) ** 2
    want = np.minimum(snr, gamma) * (error.astype(np.float64) ** 2).mean(-1)
    for kind in KINDS:
        # The same wrong x0, told as this kind's target at one and the same x_t.
        def tell(x0, kind=kind):
            eps = (x_t - o.alpha(t)[:, None] * x0) / o.sigma(t)[:, None]
            a, b = (np.asarray(c, np.float64)[:, None] for c in parameterization.row(kind, p, t))
            return a * x0 + b * eps

        squared = ((tell(x0.astype(np.float64) + error) - tell(x0.astype(np.float64))) ** 2).mean(
            -1
        )
        got = np.asarray(losses.min_snr(gamma)(kind, p, jnp.asarray(t))) * squared
        # Float32 levels to 5e-5, squared, and table slopes for "flow".
        np.testing.assert_allclose(got, want, rtol=2e-3, err_msg=kind)


def test_min_snr_is_the_papers_weight_for_eps_x0_and_v():
    o, t = PROCESSES["vp_cosine"], float32_times(rng, 50, 0.02)
    snr, gamma = (o.alpha(t) / o.sigma(t)) ** 2, 5.0
    weight = losses.min_snr()  # the paper's default is 5
    bounded = np.minimum(snr, gamma)
    for kind, want in {"eps": bounded / snr, "x0": bounded, "v": bounded / (snr + 1)}.items():
        np.testing.assert_allclose(weight(kind, o.process, jnp.asarray(t)), want, rtol=2e-4)


@pytest.mark.parametrize("kind", ["x0", "eps", "v", "edm", "flow"])
@pytest.mark.parametrize("p", [process.edm(), *(o.process for o in PROCESSES.values())])
def test_min_snr_is_finite_at_every_time_that_training_draws(p, kind):
    t = jnp.concatenate([jnp.asarray([1e-5, 1e-4]), jnp.linspace(1e-3, 1 - 1e-5, 500)])
    w = np.asarray(losses.min_snr()(kind, p, t))
    if kind == "flow":  # whose target itself vanishes with d_sigma at low noise
        w = w[t > 0.05]
    assert np.isfinite(w).all() and (w >= 0).all() and w.max() > 0


# ------------------------------------------------------------------------------------------- loss


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_finds_the_added_noise_has_no_loss(kind):
    # For one known point x0 the noise can be read off x_t: any other noise in the target shows.
    p = PROCESSES["vp_linear"].process
    x0 = jnp.tile(jnp.asarray([0.8, -1.7]), (256, 1))

    def model(x, t, cond):
        if kind == "edm":  # whose input comes scaled
            alpha, sigma = process.levels(p, t, x)
            x = x * jnp.sqrt((alpha * p.sigma_data) ** 2 + sigma**2)
        alpha, sigma = process.levels(p, t, x)
        return parameterization.target(kind, p, x0, (x - alpha * x0) / sigma, t)

    def times(key, n):  # clear of t = 0, where eps is divided by a small sigma
        return 0.05 + 0.9 * losses.uniform_times(key, n)

    loss = losses.diffusion_loss(model, p, kind, x0, None, jax.random.key(4), times=times)
    assert loss.shape == () and loss < 1e-6


@pytest.mark.parametrize("kind", ["eps", "v", "x0"])
def test_overfitting_one_point_drives_the_loss_far_below_its_trivial_value(kind):
    p, x0 = process.vp_cosine(), jnp.tile(jnp.asarray([[0.8, -0.5]]), (128, 1))
    graph, params = nnx.split(MLP(width=32, depth=2, rngs=nnx.Rngs(0)))
    optimizer = optax.adam(3e-3)

    def loss(params, key):
        return losses.diffusion_loss(nnx.merge(graph, params), p, kind, x0, None, key)

    @jax.jit
    def step(params, state, key):
        value, gradient = jax.value_and_grad(loss)(params, key)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, value

    state, history = optimizer.init(params), []
    for i in range(400):
        params, state, value = step(params, state, jax.random.fold_in(jax.random.key(1), i))
        history.append(float(value))
    # The untrained network is 0, so the first loss is the trivial one. With a point as data the
    # target can be known exactly; noise that was never added would leave eps at 1 and v at 0.5.
    trivial = {"eps": 1.0, "v": 0.5 + 0.5 * 0.445, "x0": 0.445}[kind]
    assert history[0] == pytest.approx(trivial, rel=0.25)
    assert np.mean(history[-50:]) < 0.15 * trivial


def test_the_loss_is_the_weighted_mean_of_the_squared_errors():
    o = PROCESSES["sub_vp"]
    x0 = rng.normal(0.4, 1.3, (6, 2, 3, 1)).astype(np.float32)
    cond, seen = jnp.arange(6), {}
    t = np.asarray([0.15, 0.3, 0.45, 0.6, 0.75, 0.9], np.float32)

    def model(x, t, cond):
        seen.update(x=x, t=t, cond=cond)
        return 0.3 * x + 0.2

    got = losses.diffusion_loss(
        model,
        o.process,
        "v",
        jnp.asarray(x0),
        cond,
        jax.random.key(7),
        times=lambda key, n: jnp.asarray(t),
        weight=lambda kind, p, t: 1 + t,
    )
    np.testing.assert_array_equal(seen["cond"], cond)
    np.testing.assert_array_equal(seen["t"], t)
    alpha, sigma = (f(t.astype(np.float64))[:, None, None, None] for f in (o.alpha, o.sigma))
    eps = (seen["x"] - alpha * x0) / sigma
    error = (0.3 * np.asarray(seen["x"]) + 0.2 - (alpha * eps - sigma * x0)) ** 2
    want = np.mean((1 + t) * error.mean((1, 2, 3)))
    assert float(got) == pytest.approx(float(want), rel=1e-4)


@pytest.mark.parametrize("sampler", [losses.uniform_times, losses.stratified_times])
def test_times_and_noise_come_from_keys_of_their_own(sampler):
    n, seen = 50_000, {}

    def model(x, t, cond):
        seen.update(x=x, t=t)
        return x

    p = process.rectified_flow()
    losses.diffusion_loss(
        model, p, "eps", jnp.zeros((n, 1)), None, jax.random.key(3), times=sampler
    )
    t = np.asarray(seen["t"], np.float64)
    eps = np.asarray(seen["x"], np.float64)[:, 0] / t
    assert abs(eps.mean()) < 4 / np.sqrt(n) and abs(eps.var() - 1) < 4 * np.sqrt(2 / n)
    place = t if sampler is losses.uniform_times else t * n % 1
    for a in (t, place):
        for b in (eps, eps**2):
            # Four standard errors of a correlation.
            assert abs(np.corrcoef(a, b)[0, 1]) < 4 / np.sqrt(n)


def test_another_key_is_another_loss_and_the_same_key_the_same():
    x0 = jnp.asarray(rng.normal(size=(8, 2)), jnp.float32)

    def loss(seed):
        model = lambda x, t, cond: x  # noqa: E731
        return losses.diffusion_loss(
            model, process.vp_cosine(), "v", x0, None, jax.random.key(seed)
        )

    assert loss(1) == loss(1) and loss(1) != loss(2)


# ------------------------------------------------------------------------------------ drop_labels


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.35, 1.0])
def test_the_given_share_of_labels_is_dropped_and_the_rest_kept(rate):
    n = 100_000
    labels = jnp.asarray(rng.integers(0, 10, n))
    got = np.asarray(losses.drop_labels(jax.random.key(1), labels, 10, rate))
    dropped = got == 10
    np.testing.assert_array_equal(got[~dropped], np.asarray(labels)[~dropped])
    assert abs(dropped.mean() - rate) <= 4 * np.sqrt(rate * (1 - rate) / n)


# ---------------------------------------------------------------------------------- bad arguments


@examples
@given(st.one_of(st.floats(max_value=-1e-9), st.floats(min_value=1.0000001), st.just(float("nan"))))
def test_a_rate_outside_the_unit_interval_is_refused(rate):
    with pytest.raises(ValueError, match=r"rate must be in \[0, 1\], got") as error:
        losses.drop_labels(jax.random.key(0), jnp.zeros(3, int), 10, rate)
    assert str(rate) in str(error.value)


@examples
@given(st.one_of(st.floats(max_value=0), st.just(float("nan"))))
def test_a_gamma_that_is_not_positive_is_refused(gamma):
    with pytest.raises(ValueError, match="gamma must be positive and finite, got") as error:
        losses.min_snr(gamma)
    assert str(gamma) in str(error.value)


@examples
@given(st.integers(-100, 0))
def test_counts_below_one_are_refused(n):
    for sampler in (losses.uniform_times, losses.stratified_times):
        with pytest.raises(ValueError, match=f"n must be a whole number at least 1, got {n}"):
            sampler(jax.random.key(0), n)
    with pytest.raises(ValueError, match=f"T must be a whole number at least 1, got {n}"):
        losses.discrete_times(n)


def test_a_null_class_that_the_labels_dtype_cannot_hold_is_not_wrapped():
    for dtype, null in ((np.uint8, 256), (np.int8, 200)):
        dropped = losses.drop_labels(jax.random.key(0), np.array([3, 4], dtype), null, 1.0)
        assert dropped.tolist() == [null, null]
