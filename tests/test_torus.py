"""Angles and rotations: two series against each other, derivatives, integrals, random walks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_course import process, rotations, sampling, torus

rng = np.random.default_rng(244)
p = process.variance_exploding(0.02, 6.0)
LINE = np.linspace(-np.pi, np.pi, 2001)[:-1]
MEANS, STDS, WEIGHTS = np.array([[3.0, -1.2], [0.4, 2.9]]), [0.25, 0.5], [2.0, 1.0]
mixture = torus.wrapped_mixture(p, MEANS, STDS, WEIGHTS)


def wrapped64(x, std, turns=40):
    """The density by the definition, in float64."""
    k = np.arange(-turns, turns + 1)
    z = (np.asarray(x, np.float64)[..., None] + 2 * np.pi * k) / std
    return np.exp(-(z**2) / 2).sum(-1) / (std * np.sqrt(2 * np.pi))


@pytest.mark.parametrize("std", [0.05, 0.7, 1.9999, 2.0, 3.5, 12.0])
def test_the_wrapped_density_is_that_of_the_definition(std):
    x = np.float32(np.r_[-np.pi, rng.uniform(-np.pi, np.pi, 50), 3.14])
    found, want = torus.log_prob(x, std), np.log(np.maximum(wrapped64(x, std), 1e-300))
    seen = want > -600
    np.testing.assert_allclose(found[seen], want[seen], rtol=1e-5, atol=1e-5)
    slope = jax.vmap(jax.grad(lambda a: torus.log_prob(a, std)))(jnp.asarray(x[1:-1]))
    # Relative to the largest slope, since it passes through 0.
    found = torus.score(x[1:-1], std)
    np.testing.assert_allclose(found, slope, atol=3e-5 * float(jnp.abs(slope).max()))


def test_both_series_agree_where_both_are_long_enough():
    x = np.float32(rng.uniform(-np.pi, np.pi, 100))
    for std in (0.8, 1.3, 2.0, 3.0):
        turns = torus.log_prob_by_turns(x, std, 5)
        waves = torus.log_prob_by_waves(x, std, 12)
        np.testing.assert_allclose(np.exp(turns), np.exp(waves), atol=1e-6)


def test_each_series_fails_at_its_own_end():
    x = np.float32([3.0])
    assert np.exp(torus.log_prob_by_turns(x, 20.0, 3)) < 0.9 / (2 * np.pi)  # turns are left out
    wave = np.array(torus.log_prob_by_waves(np.float32(LINE), 0.2, 4))
    assert np.isnan(wave).any()  # a sum of four waves is negative somewhere


def test_integral_and_large_noise():
    for std in (0.3, 2.0, 5.0):
        mass = np.exp(np.float64(torus.log_prob(np.float32(LINE), std))).mean() * 2 * np.pi
        assert mass == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(np.exp(torus.log_prob(LINE, 8.0)) * 2 * np.pi, 1, atol=1e-6)


def test_angles_are_wrapped_and_stay_the_same_angle():
    x = np.float32([0.0, np.pi, -np.pi, 3 * np.pi, 7.0, -100.0])
    found = np.array(torus.wrap(x))
    assert (found >= -np.pi).all() and (found < np.pi + 1e-6).all()
    np.testing.assert_allclose(np.exp(1j * found), np.exp(1j * np.float64(x)), atol=1e-5)
    std = 0.4
    np.testing.assert_allclose(
        torus.log_prob(x + 2 * np.pi, std), torus.log_prob(x, std), atol=1e-3
    )


@pytest.mark.parametrize("t", [0.0, 0.5, 1.0])
def test_the_mixture_of_noised_angles(t):
    x = np.float32(rng.uniform(-np.pi, np.pi, (7, 2)))
    std = np.sqrt(np.square(STDS) + float(p.sigma(t)) ** 2)
    parts = [
        w / 3 * np.prod(wrapped64(x - m, s), axis=-1)
        for w, m, s in zip(WEIGHTS, MEANS, std, strict=True)
    ]
    np.testing.assert_allclose(mixture.log_prob(x, t), np.log(sum(parts)), rtol=1e-4, atol=1e-4)
    slope = jax.vmap(jax.grad(lambda a: mixture.log_prob(a[None], t)[0]))(jnp.asarray(x))
    np.testing.assert_allclose(mixture.score(x, t), slope, rtol=2e-3, atol=1e-4)


def test_noised_draws_have_the_density_of_the_mixture():
    n, t = 40_000, 0.75
    x0 = mixture.sample(jax.random.key(1), n)
    x = torus.add_noise(p, x0, jax.random.normal(jax.random.key(2), x0.shape), t)
    std = np.sqrt(np.square(STDS) + float(p.sigma(t)) ** 2)
    share = np.array(WEIGHTS)[:, None] / 3
    for order in (1, 2):  # the mean of exp(i·order·x): waves are damped
        found = np.exp(1j * order * np.float64(x)).mean(0)
        want = (share * np.exp(1j * order * MEANS - (order * std[:, None]) ** 2 / 2)).sum(0)
        assert np.abs(found - want).max() < 4 / np.sqrt(n)


def test_the_way_back_gives_the_data():
    n = 4000
    times = sampling.uniform(100)
    x, path = torus.sample(p, mixture.score, jax.random.key(3), (n, 2), times)
    assert path.shape == (100, n, 2) and (np.abs(x) <= np.pi + 1e-5).all()
    share, stds = np.array(WEIGHTS)[:, None] / 3, np.array(STDS)[:, None]
    for order in (1, 2):
        found = np.exp(1j * order * np.float64(x)).mean(0)
        want = (share * np.exp(1j * order * MEANS - (order * stds) ** 2 / 2)).sum(0)
        # Four standard errors of a mean of numbers of size 1, and the error of 100 steps.
        assert np.abs(found - want).max() < 4 / np.sqrt(n) + 0.02


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="p must have alpha = 1"):
        torus.wrapped_mixture(process.vp_cosine(), MEANS, STDS, WEIGHTS)
    with pytest.raises(ValueError, match=r"stds must have shape \[K\] = \[2\]"):
        torus.wrapped_mixture(p, MEANS, [0.1], WEIGHTS)
    with pytest.raises(ValueError, match="stds must be positive"):
        torus.wrapped_mixture(p, MEANS, [0.1, 0.0], WEIGHTS)
    with pytest.raises(ValueError, match=r"x must have shape \[B, 2\]"):
        mixture.score(np.zeros((3, 1), np.float32), 0.5)
    with pytest.raises(ValueError, match="std must be positive"):
        torus.log_prob(0.3, 0.0)


# ------------------------------------------------------------------------------------- rotations

ANGLES = np.linspace(0, np.pi, 4001)


@pytest.mark.parametrize("eps", [0.05, 0.3, 0.999, 1.0, 2.5])
def test_the_density_of_rotations_integrates_to_one(eps):
    heights = rotations.density(ANGLES, eps) * rotations.haar(ANGLES)
    assert np.trapezoid(heights, ANGLES) == pytest.approx(1, abs=1e-5)
    assert heights.min() > -1e-9
    # The mean of a character of degree l falls by exp(−l(l + 1)·eps²/2).
    for l in (1, 2):  # noqa: E741
        character = np.sin((l + 0.5) * ANGLES[1:]) / np.sin(ANGLES[1:] / 2) / (2 * l + 1)
        mean = np.trapezoid(np.r_[1, character] * heights, ANGLES)
        assert mean == pytest.approx(np.exp(-l * (l + 1) * eps**2 / 2), abs=1e-5)


def test_both_series_of_rotations_agree():
    for eps in (0.2, 0.6, 1.0, 1.5):
        waves = rotations.density_by_waves(ANGLES, eps, 120)
        turns = rotations.density_by_turns(ANGLES, eps)
        np.testing.assert_allclose(turns, waves, atol=1e-8 * waves.max())


def test_few_waves_are_too_few_for_small_noise():
    found = rotations.density_by_waves(ANGLES, 0.1, 20)
    assert found.min() < -1  # no density
    assert rotations.density(ANGLES, 0.1).min() > -1e-9


def test_noise_is_what_many_small_turns_make():
    n, steps, eps = 4000, 30, 0.9
    small = eps / np.sqrt(steps) * rng.standard_normal((steps, n, 3))
    total = np.broadcast_to(np.eye(3), (n, 3, 3))
    for v in small:
        total = np.float64(rotations.from_vector(np.float32(v))) @ total
    walked = np.trace(total, axis1=1, axis2=2)
    drawn = np.trace(np.float64(rotations.noise(jax.random.key(5), eps, n)), axis1=1, axis2=2)
    want = 3 * np.exp(-(eps**2))  # E trace = E(1 + 2 cos ω)
    error = 4 * walked.std() / np.sqrt(n)
    assert abs(walked.mean() - want) < error + 0.01  # 30 steps of the walk
    assert abs(drawn.mean() - want) < error


def test_small_noise_is_a_gaussian_of_three_dimensions():
    eps, n = 0.05, 20_000
    r = rotations.noise(jax.random.key(6), eps, n)
    angle = np.float64(rotations.angle_of(r))
    assert (angle**2).mean() == pytest.approx(3 * eps**2, rel=4 * np.sqrt(2 / 3 / n) + 1e-3)
    assert np.abs(np.float64(r).mean(0) - np.eye(3)).max() < 0.01


def test_rotation_vectors_there_and_back():
    v = np.float32(rng.normal(0, 1, (50, 3)))
    r = np.float64(rotations.from_vector(v))
    np.testing.assert_allclose(r @ r.transpose(0, 2, 1), [np.eye(3)] * 50, atol=2e-6)
    np.testing.assert_allclose(np.linalg.det(r), 1, atol=1e-5)
    length = np.linalg.norm(v, axis=1)
    want = np.where(length > np.pi, 2 * np.pi - length, length)
    np.testing.assert_allclose(rotations.angle_of(r), want, atol=1e-5)
    turned = rotations.from_vector(np.float32([0, 0, np.pi / 2])) @ np.float32([1, 0, 0])
    np.testing.assert_allclose(turned, [0, 1, 0], atol=1e-6)
    np.testing.assert_allclose(rotations.from_vector(np.zeros(3, np.float32)), np.eye(3))


def test_uniform_rotations_have_no_direction():
    n = 20_000
    r = np.float64(rotations.uniform(jax.random.key(8), n))
    assert np.abs(r.mean(0)).max() < 4 / np.sqrt(3 * n)
    # The angle has the Haar density, whose distribution function is (ω − sin ω)/π.
    angle = np.sort(rotations.angle_of(r))
    off = np.abs((angle - np.sin(angle)) / np.pi - (np.arange(n) + 0.5) / n).max()
    assert off < 2 / np.sqrt(n)  # Kolmogorov's distance: beyond it once in a thousand


def test_wrong_arguments_of_rotations_are_named():
    with pytest.raises(ValueError, match="eps must be positive"):
        rotations.density(ANGLES, 0.0)
    with pytest.raises(ValueError, match="angle must be in"):
        rotations.density([4.0], 1.0)
    with pytest.raises(ValueError, match="n must be a whole number at least 1"):
        rotations.noise(jax.random.key(0), 1.0, 0)
