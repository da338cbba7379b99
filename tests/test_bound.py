"""The variational bound: closed forms, tightness, and what the gradients reach."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.integrate import quad
from scipy.stats import norm

from diffusion_course import bound, denoiser, losses, process, samplers, sampling
from diffusion_course.models.mlp import MLP
from diffusion_course.models.unet import UNet

CHAIN = process.from_betas(process.linear_betas(40, 1e-3, 0.3))
COSINE = process.vp_cosine()
RNG = np.random.default_rng(3)


@pytest.mark.parametrize("seed", range(4))
def test_kl_of_gaussians_is_the_integral(seed):
    m, n, u, v = np.random.default_rng(seed).normal([0.3, -0.5, -1.0, 0.7], 0.5)
    q, r = norm(m, np.exp(u / 2)), norm(n, np.exp(v / 2))
    expected = quad(lambda x: q.pdf(x) * (q.logpdf(x) - r.logpdf(x)), -15, 15)[0]
    assert bound.gaussian_kl(m, u, n, v) == pytest.approx(expected, rel=1e-5)


def test_kl_of_equal_gaussians_is_zero():
    assert bound.gaussian_kl(0.3, -2.0, 0.3, -2.0) == 0


@pytest.mark.parametrize(("mean", "std"), [(0.1, 0.3), (-1.2, 0.05), (0.99, 2.0)])
def test_probabilities_of_all_pixel_values_add_up_to_one(mean, std):
    values = jnp.linspace(-1, 1, 16)
    log_p = bound.discretized_log_likelihood(values, mean, 2 * jnp.log(std), 16)
    assert jnp.exp(log_p).sum() == pytest.approx(1, abs=1e-5)  # 16 float32 roundings


def test_the_discretized_likelihood_is_the_probability_of_the_bin():
    values = np.linspace(-1, 1, 256)
    mean, std = 0.2, 0.15
    edges = np.concatenate([[-np.inf], (values[1:] + values[:-1]) / 2, [np.inf]])
    expected = np.log(np.diff(norm.cdf(edges, mean, std)))
    found = bound.discretized_log_likelihood(
        jnp.asarray(values, jnp.float32), mean, 2 * np.log(std), 256
    )
    near = np.abs(values - mean) < 4 * std
    # A bin holds a hundredth of the mass: float32's relative error grows a hundredfold.
    np.testing.assert_allclose(found[near], expected[near], atol=2e-4)


def test_the_discretized_likelihood_stays_finite_far_from_the_mean():
    def value(mean):
        return bound.discretized_log_likelihood(jnp.float32(0.5), mean, -9.0, 256)

    # At 45 standard deviations the two distribution functions are equal in float32.
    for mean in (0.0, -1.0, 1.0):
        assert jnp.isfinite(value(mean)) and jnp.isfinite(jax.grad(value)(mean))
        density = norm.logpdf(0.5, mean, np.exp(-4.5)) + np.log(2 / 255)
        assert value(mean) == pytest.approx(density, rel=0.05)  # a bin is not a point


def test_the_bound_of_a_denoiser_that_knows_the_data_is_zero_above_the_last_step():
    x0 = jnp.asarray(RNG.normal(0.4, 0.7, (5, 3)), jnp.float32)
    reverse = bound.fixed(CHAIN, lambda x, t: x0, 1 / 40, "posterior")
    terms = bound.evaluate(reverse, CHAIN, x0, sampling.uniform(40), jax.random.key(0))
    # Float32: the variance of small steps is a difference of numbers near 1.
    np.testing.assert_allclose(terms.steps[:-1], 0, atol=1e-5)
    assert (jnp.abs(terms.steps[-1]) > 0.1).all()


def gaussian_reverse(p, std):
    """The exact reverse of data N(0, std²): everything is jointly Gaussian."""

    def reverse(x, t, s):
        scale, variance = process.transition(p, t, s)
        total_s = (p.alpha(s) * std) ** 2 + p.sigma(s) ** 2
        total_t = (p.alpha(t) * std) ** 2 + p.sigma(t) ** 2
        gain = scale * total_s / total_t
        return gain * x, jnp.broadcast_to(jnp.log(total_s * variance / total_t), x.shape)

    return reverse


@pytest.mark.parametrize(("p", "n"), [(CHAIN, 2), (CHAIN, 40), (COSINE, 1), (COSINE, 7)])
def test_the_bound_is_tight_for_the_exact_reverse(p, n):
    std, count = 0.35, 20_000
    x0 = std * jax.random.normal(jax.random.key(1), (count, 1))
    terms = bound.evaluate(gaussian_reverse(p, std), p, x0, sampling.uniform(n), jax.random.key(2))
    # q's marginal at t = 1 against the noise that sampling starts from is not counted in -log p.
    total = terms.total - jnp.mean(terms.prior)
    alpha, sigma = float(p.alpha(1.0)), float(p.sigma(1.0))
    kl_of_marginal = bound.gaussian_kl(
        0.0, np.log((alpha * std) ** 2 + sigma**2), 0.0, 2 * np.log(sigma)
    )
    mutual = terms.prior.mean() - kl_of_marginal / np.log(2)  # I(x_0; x_1)
    entropy = 0.5 * np.log2(2 * np.pi * np.e * std**2)
    error = float(jnp.std(terms.total)) / np.sqrt(count)
    assert float(total.mean() + mutual) == pytest.approx(entropy, abs=4 * error + 1e-4)


def test_transition_variance_is_exact_for_standard_normal_data():
    x0 = jax.random.normal(jax.random.key(3), (20_000, 2))
    p = COSINE
    D = denoiser.gaussian_mixture(p, np.zeros((1, 2)), np.ones(1), np.ones(1)).denoise
    totals, errors = {}, {}
    for variance in ("transition", "posterior"):
        reverse = bound.fixed(p, D, 1 / 10, variance)
        terms = bound.evaluate(reverse, p, x0, sampling.uniform(10), jax.random.key(4))
        totals[variance] = float(terms.total.mean())
        errors[variance] = float(terms.total.std()) / np.sqrt(len(x0))
    entropy = 0.5 * np.log2(2 * np.pi * np.e)
    assert totals["transition"] == pytest.approx(entropy, abs=4 * errors["transition"])
    assert totals["posterior"] > entropy + 0.1


@pytest.mark.parametrize(("t", "s"), [(0.5, 0.475), (1.0, 0.6), (0.3, 0.05)])
def test_the_limits_are_the_two_variances(t, s):
    lower, upper = bound.variance_limits(CHAIN, t, s, 1 / 40)
    x = jnp.ones((1, 1))
    assert jnp.exp(lower) == pytest.approx(float(process.posterior(CHAIN, x, x, t, s)[1]), rel=1e-5)
    assert jnp.exp(upper) == pytest.approx(float(process.transition(CHAIN, t, s)[1]), rel=1e-5)
    assert lower < upper


def test_at_the_last_step_the_lower_limit_is_that_of_the_step_before():
    first = 1 / 40
    last = bound.variance_limits(CHAIN, first, 0.0, first)
    before = bound.variance_limits(CHAIN, 2 * first, first, first)
    assert last[0] == before[0] and jnp.isfinite(last[1])
    betas = process.linear_betas(40, 1e-3, 0.3)
    assert jnp.exp(last[1]) == pytest.approx(betas[0], rel=1e-4)


@pytest.mark.parametrize("p", [CHAIN, COSINE], ids=["chain", "cosine"])
def test_a_chain_of_one_step_has_limits_too(p):
    lower, upper = bound.variance_limits(p, 1.0, 0.0, 1.0)
    x = jnp.ones((1, 1))
    expected = float(process.posterior(p, x, x, 1.0, 0.5)[1])
    assert jnp.exp(lower) == pytest.approx(expected, rel=1e-5) and lower < upper
    reverse = bound.fixed(p, lambda x, t: 0.5 * x, 1.0, "posterior")
    terms = bound.evaluate(reverse, p, jnp.ones((3, 2)), sampling.uniform(1), jax.random.key(0))
    assert jnp.isfinite(terms.total).all()


@pytest.mark.parametrize(("u", "weights"), [(1.0, (0, 1)), (-1.0, (1, 0)), (0.0, (0.5, 0.5))])
def test_the_output_interpolates_the_logarithms_of_the_variances(u, weights):
    def model(x, t, cond):
        return jnp.concatenate([0.3 * x, jnp.full_like(x, u)], axis=-1)

    x = jnp.asarray(RNG.normal(size=(4, 2)), jnp.float32)
    mean, log_variance = bound.learned(model, CHAIN, "eps", 1 / 40)(x, 0.5, 0.4)
    limits = bound.variance_limits(CHAIN, 0.5, 0.4, 1 / 40)
    expected = sum(w * v for w, v in zip(weights, limits, strict=True))
    np.testing.assert_allclose(log_variance, jnp.full_like(x, expected), rtol=1e-5)
    D = denoiser.denoiser(lambda x, t, cond: 0.3 * x, CHAIN, "eps")
    np.testing.assert_allclose(mean, bound.fixed(CHAIN, D, 1 / 40)(x, 0.5, 0.4)[0], rtol=1e-6)


@pytest.mark.parametrize("variance", ["posterior", "transition"])
def test_sampling_from_a_fixed_reverse_is_ddpm(variance):
    def D(x, t):
        return jnp.tanh(x)

    x, times, key = (
        jax.random.normal(jax.random.key(5), (3, 2)),
        sampling.uniform(9),
        jax.random.key(6),
    )
    reverse = bound.fixed(CHAIN, D, float(times[-2]), variance)
    found = sampling.sample(bound.sampler(reverse), D, x, times, key)[1]
    expected = sampling.sample(samplers.ddpm(CHAIN, variance), D, x, times, key)[1]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def two_headed(params, x):
    return jnp.concatenate([params["mean"] * x, params["variance"] * x], axis=-1)


def hybrid(params, x0, key, **options):
    def model(x, t, cond):
        return two_headed(params, x)

    return bound.hybrid_loss(model, CHAIN, "eps", x0, None, key, T=40, levels=None, **options)


def test_the_bound_trains_the_variance_and_not_the_mean():
    params = {"mean": jnp.float32(0.6), "variance": jnp.float32(0.2)}
    x0, key = jnp.asarray(RNG.normal(0.2, 0.8, (50, 3)), jnp.float32), jax.random.key(7)
    small, large = (jax.grad(hybrid)(params, x0, key, weight=weight) for weight in (1e-3, 1.0))
    assert small["mean"] == large["mean"] != 0
    assert large["variance"] == pytest.approx(1000 * float(small["variance"]), rel=1e-4) != 0

    def simple(mean):
        return losses.diffusion_loss(
            lambda x, t, cond: mean * x, CHAIN, "eps", x0, None, key,
            times=losses.discrete_times(40),
        )  # fmt: skip

    assert small["mean"] == pytest.approx(float(jax.grad(simple)(params["mean"])), rel=1e-5)


def test_the_hybrid_loss_estimates_the_whole_bound():
    params = {"mean": jnp.float32(0.6), "variance": jnp.float32(0.2)}
    x0 = jnp.asarray(RNG.normal(0.2, 0.8, (40_000, 1)), jnp.float32)

    def model(x, t, cond):
        return two_headed(params, x)

    terms = bound.evaluate(
        bound.learned(model, CHAIN, "eps", 1 / 40),
        CHAIN,
        x0,
        sampling.uniform(40),
        jax.random.key(8),
    )
    exact = float(terms.steps.sum(0).mean())
    drawn = [
        float(hybrid(params, x0, jax.random.key(k), weight=1.0)
              - hybrid(params, x0, jax.random.key(k), weight=0.0))
        for k in range(9, 14)
    ]  # fmt: skip
    # Five estimates of 40,000 draws each; their own scatter says how well their mean is known.
    assert abs(np.mean(drawn) - exact) < 4 * np.std(drawn, ddof=1) / np.sqrt(5) + 0.01 * abs(exact)


def test_networks_with_a_learned_variance_start_in_the_middle_and_have_two_outputs():
    t, images, points = jnp.array([0.3, 0.8]), jnp.ones((2, 8, 8, 3)), jnp.ones((2, 2))
    networks = [
        (lambda: UNet(3, (16, 32), stem=1, learned_variance=True, rngs=nnx.Rngs(0)), images),
        (lambda: UNet(3, (16, 32), stem=2, learned_variance=True, rngs=nnx.Rngs(0)), images),
        (lambda: MLP(2, 16, learned_variance=True, rngs=nnx.Rngs(0)), points),
    ]
    # Made and called in one program each: eagerly, every operation would be one.
    for make, x in networks:
        prediction, share = jax.jit(lambda make=make, x=x: bound.split_output(make()(x, t)))()
        assert prediction.shape == share.shape == x.shape and (share == 0).all()


def test_every_term_and_gradient_is_finite_at_the_ends():
    def total(scale):
        def model(x, t, cond):
            return jnp.concatenate([scale * x, scale * x], axis=-1)

        x0 = jnp.linspace(-1, 1, 256).reshape(64, 4)
        reverse = bound.learned(model, COSINE, "v", 1 / 20)
        terms = bound.evaluate(reverse, COSINE, x0, sampling.uniform(20), jax.random.key(1), 256)
        return terms.total.mean()

    assert jnp.isfinite(total(0.3)) and jnp.isfinite(jax.grad(total)(0.3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: bound.fixed(CHAIN, lambda x, t: x, 0.1, "large"),
            "variance must .*got 'large'",
        ),
        (
            lambda: bound.split_output(jnp.ones((2, 3))),
            r"y must have an even number of channels, got shape \[2, 3\]",
        ),
        (
            lambda: bound.discretized_log_likelihood(jnp.ones(2), 0.0, 0.0, 1),
            "levels must be a whole number at least 2, got 1",
        ),
        (
            lambda: bound.evaluate(None, CHAIN, jnp.ones((2, 1)), [1.0, 0.5], jax.random.key(0)),
            "times must fall strictly and end at 0",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_bin_beyond_what_float32_holds_has_no_probability_and_no_gradient():
    found, *slopes = _with_gradients([0.5, -0.5, 1.0, -1.0], 0.0, [-107.0, -95.0, -107.0, -95.0])
    assert found.tolist() == [-np.inf] * 4
    for slope in slopes:
        assert slope.tolist() == [0] * 4


@pytest.mark.parametrize("log_variance", [-88.0, -100.0, -107.0, -120.0, -170.0])
def test_a_bin_that_holds_the_whole_gaussian_has_all_probability_and_no_gradient(log_variance):
    x0 = np.float32([1, -1, 1 / 255, 1, -1])
    mean = np.float32([1, -1, 1 / 255, 3, -2.5])
    for values in _with_gradients(x0, mean, log_variance):
        assert values.tolist() == [0] * 5


def _with_gradients(x0, mean, log_variance):
    """The values, and the gradients of their sum by mean and log_variance."""
    x0 = jnp.asarray(x0)
    mean, log_variance = (jnp.broadcast_to(jnp.float32(a), x0.shape) for a in (mean, log_variance))

    def total(mean, log_variance):
        found = bound.discretized_log_likelihood(x0, mean, log_variance, 256)
        return found.sum(), found

    slopes, found = jax.grad(total, argnums=(0, 1), has_aux=True)(mean, log_variance)
    return found, *slopes
