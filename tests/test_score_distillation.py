"""Score distillation against the exact score of a mixture, and against integrals by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import PROCESSES

from diffusion_course import denoiser, process, score_distillation
from diffusion_course.process import add_noise

rng = np.random.default_rng(241)
p = process.vp_cosine()
MEANS = np.array([[0.9, -0.4], [-0.7, 0.5], [0.1, 1.2]])
exact = denoiser.gaussian_mixture(p, MEANS, [0.3, 0.15, 0.22], [1.0, 2.0, 0.7])
X = np.float32(rng.normal(0, 0.8, (5, 2)) + 0.3)
EPS = np.float32(rng.normal(size=(5, 2)))


def divergence(x, t, n=40):
    """KL(N(alpha·x, sigma²) ‖ p_t) of one point, by quadrature; differentiable in x."""
    nodes, weights = score_distillation.gauss_hermite(2, n)
    alpha, sigma = p.alpha(t), p.sigma(t)
    points = alpha * x + sigma * jnp.asarray(nodes, jnp.float32)
    own = -jnp.log(2 * jnp.pi * sigma**2) - 1.0  # minus the entropy
    return own - jnp.asarray(weights, jnp.float32) @ exact.log_prob(points, t)


@pytest.mark.parametrize("t", [0.2, 0.5, 0.9])
def test_the_mean_gradient_is_that_of_a_divergence(t):
    found = score_distillation.mean_gradient(p, exact.denoise, X, t, n=40)
    want = jax.vmap(jax.grad(lambda x: divergence(x, t)))(X) * p.sigma(t) / p.alpha(t)
    # The quadrature of an analytic function at 40 nodes; float32 sums of 1,600 terms.
    np.testing.assert_allclose(found, want, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("t", [0.15, 0.6])
def test_with_the_jacobian_it_is_the_gradient_of_the_training_loss(t):
    def loss(x):
        x_t = add_noise(p, x, EPS, t)
        return jnp.sum((-p.sigma(t) * exact.score(x_t, t) - EPS) ** 2)

    found = score_distillation.gradient(p, exact.denoise, X, t, EPS, jacobian=True)
    want = jax.grad(loss)(jnp.asarray(X)) / (2 * p.alpha(t))
    np.testing.assert_allclose(found, want, rtol=1e-3, atol=1e-4)


def test_without_it_no_gradient_flows_through_the_denoiser():
    def opaque(x, t):
        return np.float32(0.3) * np.array(x)  # NumPy refuses to be differentiated

    found = score_distillation.gradient(p, opaque, X, 0.4, EPS)
    assert np.isfinite(found).all()
    with pytest.raises(jax.errors.TracerArrayConversionError):
        score_distillation.gradient(p, opaque, X, 0.4, EPS, jacobian=True)


def test_times_may_differ_within_a_batch():
    t = np.float32([0.1, 0.3, 0.5, 0.7, 0.9])
    found = score_distillation.gradient(p, exact.denoise, X, t, EPS)
    for i in range(5):
        one = score_distillation.gradient(p, exact.denoise, X[i : i + 1], t[i], EPS[i : i + 1])
        np.testing.assert_allclose(found[i], one[0], atol=1e-5)


def test_subtracting_the_noise_changes_no_mean():
    n, t = 100_000, 0.6
    eps = jax.random.normal(jax.random.key(1), (n, 2))
    x = jnp.broadcast_to(X[0], (n, 2))
    with_it = score_distillation.gradient(p, exact.denoise, x, t, eps)
    without = score_distillation.gradient(p, exact.denoise, x, t, eps, control=False)
    np.testing.assert_allclose(without - with_it, eps, atol=1e-5)
    mean = score_distillation.mean_gradient(p, exact.denoise, X[:1], t)[0]
    error = 4 * np.std(with_it, axis=0) / np.sqrt(n)  # four standard errors
    assert (np.abs(with_it.mean(0) - mean) < error + 1e-4).all()


@pytest.mark.parametrize("name", ["vp_cosine", "rectified_flow", "variance_exploding"])
@pytest.mark.parametrize("t", [0.2, 0.5, 0.8])
def test_the_best_control_has_the_least_spread(name, t):
    process_, s = PROCESSES[name].process, 0.7
    gaussian = denoiser.gaussian_mixture(process_, [[0.4]], [s], [1.0])
    eps = np.float32(rng.normal(size=(4000, 1)))
    x = np.full_like(eps, 1.3)
    guess = score_distillation.gradient(process_, gaussian.denoise, x, t, eps, control=False)
    slope = np.polyfit(eps[:, 0], guess[:, 0], 1)[0]  # of a line: exact up to rounding
    best = score_distillation.best_control(process_, s**2, t)
    assert best.shape == () and slope == pytest.approx(float(best), abs=2e-3)


def test_one_particle_makes_both_gradients_equal():
    x, eps = X[:1], EPS[:1]
    for t in (0.05, 0.5, 0.95):
        own = score_distillation.own_denoiser(p, x)
        found = score_distillation.variational_gradient(p, exact.denoise, own, x, t, eps)
        want = score_distillation.gradient(p, exact.denoise, x, t, eps)
        np.testing.assert_allclose(found, want, atol=2e-5)  # x_t − alpha·x, divided by sigma


def test_particles_that_are_the_data_have_no_gradient():
    own = score_distillation.own_denoiser(p, X)
    assert not np.abs(score_distillation.variational_gradient(p, own, own, X, 0.4, EPS)).any()
    found = score_distillation.variational_gradient(p, exact.denoise, own, X, 0.4, EPS)
    x_t = add_noise(p, X, EPS, 0.4)
    points = denoiser.gaussian_mixture(p, X, np.full(5, 1e-4), np.ones(5))
    want = p.sigma(0.4) * (points.score(x_t, 0.4) - exact.score(x_t, 0.4))
    np.testing.assert_allclose(found, want, atol=1e-4)


def test_a_gradient_is_carried_back_to_the_parameters():
    matrix = np.float32(rng.normal(size=(4, 3)))

    def render(tree):
        return matrix @ tree["a"] + tree["b"]

    theta = {"a": jnp.ones(3), "b": jnp.zeros(4)}
    g = np.float32(rng.normal(size=4))
    found = score_distillation.pull_back(render, theta, g)
    np.testing.assert_allclose(found["a"], matrix.T @ g, rtol=1e-5)
    np.testing.assert_allclose(found["b"], g)
    with pytest.raises(ValueError, match=r"picture_gradient must have the shape of render\(theta"):
        score_distillation.pull_back(render, theta, g[:1])


@pytest.mark.parametrize(("dim", "n"), [(1, 4), (2, 5), (3, 3)])
def test_quadrature_knows_the_moments(dim, n):
    nodes, weights = score_distillation.gauss_hermite(dim, n)
    assert nodes.shape == (n**dim, dim) and weights.shape == (n**dim,)
    assert weights.sum() == pytest.approx(1)
    np.testing.assert_allclose(
        np.einsum("n,ni,nj->ij", weights, nodes, nodes), np.eye(dim), atol=1e-12
    )
    assert weights @ nodes[:, 0] ** 4 == pytest.approx(3)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="eps must have the shape of x0"):
        score_distillation.gradient(p, exact.denoise, X, 0.5, EPS[:2])
    with pytest.raises(ValueError, match=r"t must be in \[0, 1\]"):
        score_distillation.gradient(p, exact.denoise, X, 7.0, EPS)
    with pytest.raises(ValueError, match=r"x must have shape \[B, D\]"):
        score_distillation.mean_gradient(p, exact.denoise, X[0], 0.5)
    with pytest.raises(ValueError, match="variance must be in"):
        score_distillation.best_control(p, -1.0, 0.5)
    with pytest.raises(ValueError, match="n must be a whole number at least 1"):
        score_distillation.gauss_hermite(1, 0)
