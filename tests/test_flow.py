"""Flow matching: velocities, shifts, straightness, couplings and bridges against exact oracles."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_course import (
    data,
    denoiser,
    edm,
    flow,
    losses,
    parameterization,
    process,
    samplers,
    sampling,
)

MIXTURE = [[-1.4, 0.3], [0.9, 1.1], [0.2, -0.8]], [0.3, 0.5, 0.15], [0.5, 0.2, 0.3]
PROCESSES = {
    "flow": process.rectified_flow(),
    "cosine": process.vp_cosine(),
    "linear": process.vp_linear(),
    "ve": process.variance_exploding(0.02, 8.0),
}


KEY = jax.random.key(0)


def rng(seed=0):
    return np.random.default_rng(seed)


# --- velocity -------------------------------------------------------------------------------
@pytest.mark.parametrize("name", PROCESSES)
def test_the_velocity_is_the_mean_over_the_paths_through_a_point(name):
    """Self-normalised weights of 400,000 pairs near a point, which know nothing of denoisers."""
    p, t, at = PROCESSES[name], 0.6, np.array([0.35, 0.2])
    gm = denoiser.gaussian_mixture(p, *MIXTURE)
    x0 = np.asarray(gm.sample(jax.random.key(1), 400_000), np.float64)
    alpha, sigma = (float(f(t)) for f in (p.alpha, p.sigma))
    # Given x0, the path through `at` has this x1.
    x1 = (at - alpha * x0) / sigma
    weight = np.exp(-0.5 * (x1**2).sum(1))
    slopes = float(p.d_alpha(t)) * x0 + float(p.d_sigma(t)) * x1
    mean = weight @ slopes / weight.sum()
    error = np.sqrt((weight**2) @ (slopes - mean) ** 2) / weight.sum()
    got = flow.velocity(p, gm.denoise, jnp.asarray(at[None], jnp.float32), t)[0]
    assert (np.abs(got - mean) < 4 * error + 1e-5).all()


def test_euler_and_ddim_on_a_rectified_flow_are_the_velocity():
    p = PROCESSES["flow"]
    gm = denoiser.gaussian_mixture(p, *MIXTURE)
    x = jax.random.normal(jax.random.key(0), (5, 2))
    moved = x + (0.45 - 0.7) * flow.velocity(p, gm.denoise, x, 0.7)
    for sampler in (samplers.euler(p), samplers.ddim(p), flow.bridge(0.0)):
        x_s, _ = sampler.step(gm.denoise, x, 0.7, 0.45, jax.random.key(1), ())
        np.testing.assert_allclose(x_s, moved, atol=2e-6)


def test_velocity_takes_a_time_for_each_example():
    p = PROCESSES["cosine"]
    gm = denoiser.gaussian_mixture(p, *MIXTURE)
    x, t = jax.random.normal(jax.random.key(0), (3, 2)), jnp.array([0.2, 0.5, 0.9])
    one_by_one = [flow.velocity(p, gm.denoise, x[i : i + 1], t[i]) for i in range(3)]
    together = flow.velocity(p, gm.denoise, x, t)
    np.testing.assert_allclose(together, np.concatenate(one_by_one), rtol=2e-6)


@pytest.mark.parametrize("name", PROCESSES)
def test_velocity_denoiser_and_score_are_one_knowledge(name):
    p = PROCESSES[name]
    gm = denoiser.gaussian_mixture(p, *MIXTURE)
    x, t = jnp.asarray(rng(7).normal(size=(6, 2)), jnp.float32), jnp.linspace(0.15, 0.9, 6)
    v = flow.velocity(p, gm.denoise, x, t)
    scale = float(p.sigma(0.9)) + 1  # float32 of states and levels up to this size
    x0 = parameterization.to_x0("flow", p, v, x, t)
    np.testing.assert_allclose(x0, gm.denoise(x, t), atol=3e-5 * scale)
    score = parameterization.to_score("flow", p, v, x, t)
    np.testing.assert_allclose(score, gm.score(x, t), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("make", [samplers.ddim, samplers.ddpm, samplers.dpm_solver_pp_2m])
def test_a_sampler_of_levels_does_not_see_which_process_it_runs_in(make):
    """A cosine state over alpha + sigma is a flow's state at the time sigma/(alpha + sigma)."""
    cosine, straight = PROCESSES["cosine"], PROCESSES["flow"]
    times = np.array([0.95, 0.7, 0.4, 0.15, 0.0], np.float32)
    unit = cosine.alpha(times) + cosine.sigma(times)
    x, ends = jax.random.normal(jax.random.key(0), (5, 2)), []
    for p, grid, start in (
        (cosine, times, x),
        (straight, cosine.sigma(times) / unit, x / unit[0]),
    ):
        gm = denoiser.gaussian_mixture(p, *MIXTURE)
        sampler, state = make(p), make(p).init(start)
        for i, (t, s) in enumerate(pairwise(grid)):
            start, state = sampler.step(gm.denoise, start, t, s, jax.random.key(i), state)
        ends.append(start)
    np.testing.assert_allclose(*ends, atol=1e-4)  # four steps of float32 between the clouds


# --- times ----------------------------------------------------------------------------------
def test_log_normal_levels_of_a_rectified_flow_are_logit_normal_times():
    t = edm.log_normal_times(PROCESSES["flow"], 0.4, 0.7)(jax.random.key(0), 20_000)
    logit = np.log(np.asarray(t, np.float64)) - np.log1p(-np.asarray(t, np.float64))
    assert abs(logit.mean() - 0.4) < 4 * 0.7 / np.sqrt(20_000)
    assert abs(logit.std() / 0.7 - 1) < 4 / np.sqrt(2 * 20_000)


@pytest.mark.parametrize("factor", [0.4, 1.0, 3.0])
def test_shift_multiplies_the_noise_level(factor):
    grid = np.linspace(0, 1, 9, dtype=np.float32)
    t = grid.astype(np.float64)
    closed = factor * t / (1 + (factor - 1) * t)
    np.testing.assert_allclose(flow.shift(PROCESSES["flow"], grid, factor), closed, atol=1e-6)
    p = PROCESSES["cosine"]
    moved = np.asarray(flow.shift(p, grid, factor))
    assert moved[0] == 0 and moved[-1] == 1
    ratio = lambda t: np.asarray(p.sigma(t) / p.alpha(t))  # noqa: E731
    np.testing.assert_allclose(ratio(moved[1:-1]) / ratio(grid[1:-1]), factor, rtol=2e-4)


def test_shifted_training_times_have_their_log_snr_lowered_by_twice_the_logarithm():
    p, key = PROCESSES["cosine"], jax.random.key(4)
    plain = losses.stratified_times(key, 64)
    moved = flow.shifted_times(p, 2.5)(key, 64)
    # float32 times next to 0 and 1 have log-SNRs of few digits.
    inner = (plain > 0.02) & (plain < 0.98)
    gap = (p.log_snr(plain) - p.log_snr(moved))[inner]
    np.testing.assert_allclose(gap, 2 * np.log(2.5), rtol=2e-3)
    uniform = flow.shifted_times(p, 2.5, losses.uniform_times)(key, 64)
    np.testing.assert_array_equal(uniform, flow.shift(p, losses.uniform_times(key, 64), 2.5))


def test_shift_stops_at_the_end_of_a_process_that_keeps_signal():
    assert float(flow.shift(PROCESSES["ve"], 0.9, 50.0)) == 1


# --- straightness ---------------------------------------------------------------------------
def test_straight_paths_have_none_and_others_their_integral():
    times = np.array([1.0, 0.8, 0.35, 0.0], np.float32)
    ends = rng().normal(size=(2, 4, 3, 2))
    straight = np.stack([t * ends[1] + (1 - t) * ends[0] for t in times])
    assert flow.straightness(straight, times) < 1e-11
    bent = straight + np.array([0, 1.0, -0.5, 0]).reshape(-1, 1, 1, 1) * np.arange(1, 3)
    slopes = np.array([1 / 0.2, -1.5 / 0.45, 0.5 / 0.35])  # of the bend alone, on the whole 0
    by_hand = (np.array([0.2, 0.45, 0.35]) * slopes**2).sum() * 3 * (1 + 4)
    np.testing.assert_allclose(flow.straightness(bent, times), by_hand, rtol=1e-5)


def test_straightness_of_gaussian_data_against_quadrature():
    """From N(0, 1) to N(0, v) every path is x·√(t² + (1 − t)²·v)."""
    p, v, n = PROCESSES["flow"], 0.09, 400
    gm = denoiser.gaussian_mixture(p, [[0.0]], [np.sqrt(v)], [1.0])
    x, times = jnp.array([[1.0], [-2.0]]), sampling.uniform(n)
    _, path = sampling.sample(samplers.heun(p), gm.denoise, x, times, jax.random.key(0))
    t = np.linspace(0, 1, 100_001)
    size = np.sqrt(t**2 + (1 - t) ** 2 * v)
    bend = ((1 - np.sqrt(v) - np.gradient(size, t)) ** 2)[:-1].mean()
    got = flow.straightness(jnp.concatenate([x[None], path]), times)
    np.testing.assert_allclose(got, bend * (1 + 4) / 2, rtol=2e-3)  # two points: their x² / 2


# --- couplings ------------------------------------------------------------------------------
def test_the_optimal_order_costs_least_of_all():
    x0, x1 = rng(1).normal(size=(2, 6, 2, 3))
    order = flow.optimal(x0, x1)
    assert sorted(order) == list(range(6))
    from itertools import permutations

    least = min(flow.transport_cost(x0, x1[list(other)]) for other in permutations(range(6)))
    np.testing.assert_allclose(flow.transport_cost(x0, x1[order]), least)
    assert least < flow.transport_cost(x0, x1)


def test_on_a_line_the_optimal_partners_are_sorted_alike():
    x0, x1 = rng(2).normal(size=(2, 9, 1))
    partners = x1[flow.optimal(x0, x1)]
    assert (np.argsort(partners[:, 0]) == np.argsort(x0[:, 0])).all()


def test_between_gaussians_the_optimal_partners_are_those_of_the_closed_map():
    """From N(0, I) to N(mean, root²) it is mean + root·x1, root symmetric: of any points too."""
    draws = rng(8)
    root = draws.normal(size=(3, 3))
    root = root @ root.T + 0.2 * np.eye(3)
    x1, mean = draws.normal(size=(40, 3)), np.array([1.5, -0.3, 0.8])
    x0, mixed = mean + x1 @ root, draws.permutation(40)
    np.testing.assert_array_equal(flow.optimal(x0, x1[mixed]), np.argsort(mixed))
    # Another root of the same covariance moves N(0, I) to the same Gaussian, and costs more.
    turn = np.linalg.qr(draws.normal(size=(3, 3)))[0]
    turned = mean + x1 @ turn @ root
    best = flow.transport_cost(turned, x1[flow.optimal(turned, x1)])
    assert best < 0.9 * flow.transport_cost(turned, x1)


def test_many_optimal_pairs_cost_what_the_closed_form_says():
    """W2² between Gaussians: ‖mean‖² + Σ(std − 1)²; pairs of a finite batch cost more on average.

    40 batches of 128 pairs in the plane: their bias and four standard errors are below 5 %.
    """
    draws, mean, std = rng(9), np.array([0.8, -1.1]), np.array([0.3, 1.9])
    costs = []
    for _ in range(40):
        x0, x1 = mean + std * draws.normal(size=(128, 2)), draws.normal(size=(128, 2))
        costs.append(flow.transport_cost(x0, x1[flow.optimal(x0, x1)]))
    closed, error = (mean**2).sum() + ((std - 1) ** 2).sum(), np.std(costs) / np.sqrt(40)
    assert abs(np.mean(costs) / closed - 1) < 0.05 + 4 * error / closed
    assert np.mean(costs) < 0.7 * ((mean**2).sum() + (std**2 + 1).sum())


def test_a_reflow_keeps_the_marginals_and_no_convex_cost_rises():
    p = PROCESSES["flow"]
    gm = denoiser.gaussian_mixture(p, *MIXTURE)
    x1 = jax.random.normal(jax.random.key(4), (4000, 2))
    x0, path = sampling.sample(samplers.heun(p), gm.denoise, x1, sampling.uniform(60), KEY)
    free = gm.sample(jax.random.key(5), 4000)
    for power in (1, 2, 4):
        cost = [float((jnp.linalg.norm(a - x1, axis=1) ** power).mean()) for a in (x0, free)]
        assert cost[0] < 0.95 * cost[1]
    error = np.std(free, 0) / np.sqrt(4000)
    assert (np.abs(x0.mean(0) - free.mean(0)) < 4 * np.sqrt(2) * error).all()
    np.testing.assert_allclose(np.cov(x0.T), np.cov(free.T), atol=4 * np.sqrt(2) * 0.03)
    # Straight lines between these pairs have no straightness left; the flow's paths have.
    lines = jnp.stack([(1 - t) * x0 + t * x1 for t in sampling.uniform(60)])
    before = flow.straightness(jnp.concatenate([x1[None], path]), sampling.uniform(60))
    assert flow.straightness(lines, sampling.uniform(60)) < 1e-6 < 0.1 < before


def test_labels_keep_the_noise_of_a_class_and_without_them_it_is_skewed():
    """E[x1 | class], by many batches: 0 within classes; without labels it leans to the class."""
    draws = rng(3)
    labels = np.array([0, 1, 1, 0, 1, 0, 0, 1, 1, 1])
    within, across = [], []
    for _ in range(600):
        x0 = draws.normal(0, 0.2, (10, 1)) + np.where(labels, 2.0, -2.0)[:, None]
        x1 = draws.normal(size=(10, 1))
        order = flow.optimal(x0, x1, labels)
        assert sorted(order[labels == 1]) == list(np.flatnonzero(labels == 1))
        within.append(x1[order][labels == 1])
        across.append(x1[flow.optimal(x0, x1)][labels == 1])
    error = 1 / np.sqrt(np.size(within))
    assert abs(np.mean(within)) < 4 * error and abs(np.var(within) - 1) < 4 * np.sqrt(2) * error
    assert np.mean(across) > 0.4 and np.var(across) < 0.8


def test_coupled_batches_change_the_order_of_the_noise_alone():
    x0, labels = rng(4).normal(size=(12, 2)).astype(np.float32), np.arange(12) % 3
    source = lambda: data.batches((x0, labels), 6, seed=0)  # noqa: E731
    plain = next(flow.coupled(source(), lambda x0, x1, labels: np.arange(6), seed=5))
    best = next(flow.coupled(source(), flow.optimal, seed=5))
    np.testing.assert_array_equal(plain[0], best[0])
    np.testing.assert_array_equal(plain[1][0], best[1][0])
    noise, sorted_noise = plain[1][1], best[1][1]
    assert noise.dtype == np.float32 and not np.array_equal(noise, sorted_noise)
    np.testing.assert_array_equal(np.sort(noise, 0), np.sort(sorted_noise, 0))
    assert flow.transport_cost(best[0], sorted_noise) < flow.transport_cost(plain[0], noise)


def test_paired_batches_keep_their_partners():
    x0 = np.arange(10, dtype=np.float32)[:, None]
    seen = []
    batches = flow.paired(x0, 2 * x0, 3 * np.arange(10), size=5, seed=1)
    for _ in range(2):
        x, (labels, x1) = next(batches)
        np.testing.assert_array_equal(x1, 2 * x)
        np.testing.assert_array_equal(labels, 3 * x[:, 0])
        seen += list(x[:, 0])
    assert sorted(seen) == list(range(10))


@pytest.mark.parametrize("noise", [0.3, 0.9])
def test_the_entropic_coupling_of_gaussians_against_its_closed_form(noise):
    """N(0, a) and N(0, b) on a line: covariance (√(4ab + noise⁴) − noise²)/2.

    The points are quantiles, so that no draw scatters: 200 of them miss little but the tails.
    """
    from scipy.stats import norm

    a, b, n = 0.5, 1.6, 200
    q = norm.ppf((np.arange(n) + 0.5) / n)
    x0, x1 = np.sqrt(a) * q[:, None], np.sqrt(b) * q[::-1, None]
    share = flow.entropic(x0, x1, noise, rounds=300)
    np.testing.assert_allclose(share.sum(0), 1 / n, rtol=1e-9)
    np.testing.assert_allclose(share.sum(1), 1 / n, rtol=1e-3)
    covariance = x0[:, 0] @ share @ x1[:, 0]
    closed = (np.sqrt(4 * a * b + noise**4) - noise**2) / 2
    np.testing.assert_allclose(covariance, closed, rtol=0.02)


def test_the_entropic_coupling_between_its_two_limits():
    x0, x1 = rng(5).normal(size=(2, 7, 2))
    np.testing.assert_allclose(flow.entropic(x0, x1, 100.0), 1 / 49, rtol=0.01)
    order = flow.optimal(x0, x1)
    near = flow.entropic(x0, x1, 0.05, rounds=5000)
    np.testing.assert_allclose(near[np.arange(7), order], 1 / 7, rtol=0.01)


# --- bridges --------------------------------------------------------------------------------
def test_a_bridge_between_gaussians_ends_in_the_data():
    """The Schrödinger bridge from N(0, b) to N(0, a), with its exact denoiser.

    x0 and x_t are jointly Gaussian, so E[x0 | x_t] = x_t·Cov(x0, x_t)/Var(x_t).
    """
    a, b, scale, n = 0.4, 1.7, 0.8, 20_000
    c = (np.sqrt(4 * a * b + scale**4) - scale**2) / 2

    def D(x, t):
        variance = (1 - t) ** 2 * a + t**2 * b + 2 * t * (1 - t) * c + scale**2 * t * (1 - t)
        return x * ((1 - t) * a + t * c) / variance

    key = jax.random.key(0)
    x1 = np.sqrt(b) * jax.random.normal(key, (n, 1))
    x0, path = sampling.sample(flow.bridge(scale), D, x1, sampling.uniform(200), key)
    # Of 20,000 draws four standard errors are 4 %, and 200 steps err by less than 1 %.
    np.testing.assert_allclose(np.var(x0), a, rtol=0.04)
    np.testing.assert_allclose(np.mean(x0 * x1), c, atol=4 * np.sqrt((a * b + c**2) / n) + 0.01)
    half = 0.25 * (a + b) + 0.5 * c + 0.25 * scale**2
    np.testing.assert_allclose(np.var(path[99]), half, rtol=0.04)


def test_a_step_of_the_bridge_to_a_known_end_has_the_bridges_law():
    """With all data at one point, D is exact: steps 1 → .6 → .25 have the moments of one draw."""
    x0, x1, scale = 1.5, -0.7, 0.6
    start = jnp.full((50_000, 1), x1)
    D = lambda x, t: jnp.full_like(x, x0)  # noqa: E731
    times = np.array([1.0, 0.6, 0.25], np.float32)
    x, _ = sampling.sample(flow.bridge(scale), D, start, times, jax.random.key(3))
    noise = jax.random.normal(jax.random.key(4), start.shape)
    once = flow.bridge_state(jnp.full_like(start, x0), start, noise, 0.25, scale)
    std = scale * np.sqrt(0.25 * 0.75)
    for got in (x, once):
        np.testing.assert_allclose(got.mean(), 0.75 * x0 + 0.25 * x1, atol=4 * std / 223)
        np.testing.assert_allclose(got.std(), std, rtol=4 / 316)


# --- the loss of given pairs ----------------------------------------------------------------
def test_the_loss_of_pairs_is_the_diffusion_loss_with_that_noise():
    model = lambda x, t, cond: 0.3 * x + jnp.reshape(t, (-1, 1))  # noqa: E731
    key = jax.random.key(7)
    x0 = jnp.asarray(rng(6).normal(size=(8, 3)), jnp.float32)
    key_time, key_noise = jax.random.split(key)
    eps = jax.random.normal(key_noise, x0.shape)
    p = PROCESSES["flow"]
    whole = losses.diffusion_loss(model, p, "flow", x0, None, key)
    np.testing.assert_array_equal(
        whole, losses.pair_loss(model, p, "flow", x0, eps, None, key_time)
    )
    # The target of a rectified flow is x1 − x0: a model that knows it has no loss.
    x1 = 3 * x0 + 1
    knows = lambda x, t, cond: x1 - x0  # noqa: E731
    assert losses.pair_loss(knows, p, "flow", x0, x1, None, key) < 1e-12


# --- doors ----------------------------------------------------------------------------------
X = np.zeros((3, 2), np.float32)
TWO = np.zeros((2, 3, 1))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: flow.shift(PROCESSES["flow"], 0.5, 0.0), "factor must be positive"),
        (lambda: flow.shifted_times(PROCESSES["flow"], -1.0), "factor must be positive"),
        (lambda: flow.shift(PROCESSES["flow"], 1.5, 2.0), r"t must be in \[0, 1\]"),
        (lambda: flow.straightness(TWO, [1.0, 0.5, 0.0]), r"path must have shape \[3"),
        (lambda: flow.straightness(TWO, [0.0, 1.0]), "times must fall"),
        (lambda: flow.optimal(X, X[:2]), "x1 must have the shape of x0"),
        (lambda: flow.optimal(X, X, np.zeros(2)), r"labels must have shape \[3\]"),
        (lambda: flow.optimal(X.astype(int), X), "x0 must be floating-point"),
        (lambda: flow.transport_cost(X[:0], X[:0]), "N >= 1"),
        (lambda: flow.entropic(X, X, 0.0), "noise must be positive"),
        (lambda: flow.entropic(X, X, 1.0, rounds=0), "rounds must be a whole number"),
        (lambda: flow.coupled([], flow.optimal, -1), "seed must be a whole number"),
        (lambda: flow.paired(X, X, np.zeros(2), 2, 0), r"labels must have shape \[3\]"),
        (lambda: flow.paired(X, X, np.zeros(3), 9, 0), "size must be"),
        (lambda: flow.bridge(-1.0), "scale must be"),
        (lambda: flow.bridge_state(X, X, X[:2], 0.5, 1.0), "noise must have the shape of x0"),
        (lambda: flow.bridge_state(X, X, X, 2.0, 1.0), r"t must be in \[0, 1\]"),
        (lambda: losses.pair_loss(None, PROCESSES["flow"], "v", X, X[:2], None, jax.random.key(0)),
         "x1 must have the shape of x0"),
    ],
)  # fmt: skip
def test_a_bad_argument_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_factor_of_a_shift_may_be_traced():
    p = process.rectified_flow()
    moved = jax.jit(lambda factor: flow.shift(p, jnp.float32(0.5), factor))(3.0)
    assert float(moved) == pytest.approx(0.75, abs=1e-6)
