"""Hyvärinen's and sliced score matching against algebra."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_course import losses

rng = np.random.default_rng(5)
KEY = jax.random.key(5)
A = rng.normal(0.2, 0.7, (3, 3))  # no symmetric matrix: a score need not be a gradient
b = rng.normal(size=3)
x = rng.normal(0.4, 1.3, (11, 3)).astype(np.float32)


def linear(x):
    return x @ jnp.asarray(A.T, jnp.float32) + jnp.asarray(b, jnp.float32)


def test_of_a_linear_score_the_loss_is_its_trace_and_its_square():
    s = x @ A.T + b
    want = np.trace(A) + (s**2).sum(1).mean() / 2
    assert float(losses.hyvarinen(linear, x)) == pytest.approx(want, rel=1e-5)


def test_pictures_are_summed_over_all_their_pixels():
    pictures = rng.normal(size=(4, 2, 3, 1)).astype(np.float32)

    def score(x):  # ds/dx = 3·x² − 1
        return x**3 - x

    want = np.mean([(3 * i**2 - 1 + (i**3 - i) ** 2 / 2).sum() for i in np.float64(pictures)])
    assert float(losses.hyvarinen(score, pictures)) == pytest.approx(want, rel=1e-5)
    # Without entries beside the diagonal, signs tell the trace exactly.
    assert float(losses.sliced(score, pictures, KEY)) == pytest.approx(want, rel=1e-5)


def test_a_gaussian_s_best_score_has_the_mean_and_the_variance_of_the_data():
    # s = −(x − m)/v: the gradient in m and v vanishes at the sample's mean and variance.
    values = x[:, :1]

    def loss(parameters):
        mean, variance = parameters
        return losses.hyvarinen(lambda x: -(x - mean) / variance, values)

    best = jnp.array([values.mean(), values.var()])
    assert np.abs(jax.grad(loss)(best)).max() < 1e-5  # rounding
    assert (np.linalg.eigvalsh(jax.hessian(loss)(best)) > 0).all()


def test_sliced_losses_have_hyvarinen_s_expectation_and_the_variance_of_their_probes():
    def draws(probes, n=3000):
        keys = jax.random.split(KEY, n)
        one = jax.jit(jax.vmap(lambda key: losses.sliced(linear, x, key, probes)))
        return np.asarray(one(keys), np.float64)

    want = float(losses.hyvarinen(linear, x))
    # vᵀAv has the variance Σ_{i<j} (A_ij + A_ji)² for signs v.
    variance = sum((A[i, j] + A[j, i]) ** 2 for i in range(3) for j in range(i))
    for probes in (1, 4):
        got, each = draws(probes), variance / probes / len(x)
        assert abs(got.mean() - want) < 4 * np.sqrt(each / len(got)) + 1e-5
        assert got.var() == pytest.approx(each, rel=4 * np.sqrt(2 / len(got)))


def test_both_can_be_differentiated_by_a_model_s_parameters():
    grad = jax.grad(lambda a: losses.hyvarinen(lambda x: a * x, x))(-0.5)
    # tr = 3·a and ‖s‖²/2 = a²·‖x‖²/2.
    assert float(grad) == pytest.approx(3 - 0.5 * (x.astype(float) ** 2).sum(1).mean(), rel=1e-5)
    again = jax.grad(lambda a: losses.sliced(lambda x: a * x, x, KEY))(-0.5)
    assert float(again) == pytest.approx(float(grad), rel=1e-5)


def test_what_is_no_data_or_no_score_is_refused():
    for loss in (losses.hyvarinen, lambda s, x: losses.sliced(s, x, KEY)):
        for empty in (np.float32(1.0), np.zeros((0, 3), np.float32)):
            with pytest.raises(ValueError, match=r"x must have shape \[B, …\] with B >= 1"):
                loss(linear, empty)
        with pytest.raises(ValueError, match="x must be floating-point"):
            loss(linear, np.ones((2, 3), int))
        with pytest.raises(ValueError, match=r"the score must have the shape of x, \[11, 3\]"):
            loss(lambda x: linear(x).sum(1), x)
    with pytest.raises(ValueError, match="probes must be a whole number at least 1, got 0"):
        losses.sliced(linear, x, KEY, 0)
