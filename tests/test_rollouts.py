"""A noise level per frame: every schedule draws the same clips if the denoiser is exact."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_course import denoiser as image_denoiser
from diffusion_course import process, rollouts
from diffusion_course.parameterization import target

P = process.vp_cosine()
KEY = jax.random.key(0)


def memory(rho, frames, scale=1.0):
    """Covariance of a stationary autoregression of order 1."""
    place = np.arange(frames)
    return scale**2 * rho ** np.abs(place[:, None] - place)


def covariance_made(D, times, frames):
    """Covariance of what a linear sampler draws, without any draw: its map, applied to a basis."""
    basis = jnp.eye(frames)[:, :, None]
    drawn = jax.jit(lambda x: rollouts.sample(P, D, x, times, KEY)[0])(basis)
    still = drawn[..., 0]  # row b: where the noise e_b goes
    return np.asarray(still.T @ still)


# A covariance of no special form: a schedule must not rely on memory of one frame.
GENERAL = np.array([[1.3, 0.8, 0.1, 0.3], [0.8, 0.9, -0.2, 0.2], [0.1, -0.2, 0.7, 0.5],
                    [0.3, 0.2, 0.5, 1.1]])  # fmt: skip


@pytest.mark.parametrize("kind", rollouts.KINDS)
def test_every_schedule_gives_the_joint_covariance_with_the_exact_denoiser(kind):
    D = rollouts.GaussianClips(P, GENERAL).denoise
    gaps = []
    for steps in (50, 200):
        times = rollouts.schedule(kind, 4, steps, delay=steps // 5)
        gaps.append(np.abs(covariance_made(D, times, 4) - GENERAL).max())
    # DDIM is of first order: four times as many steps leave a quarter of the error.
    assert gaps[1] < 0.02 and gaps[1] < 0.4 * gaps[0]


def test_the_exact_denoiser_is_the_best_linear_guess_with_a_time_for_each_frame():
    mean = np.array([0.5, -1.0, 0.2, 2.0])
    exact = rollouts.GaussianClips(P, GENERAL, mean)
    t = jnp.array([[0.0, 0.3, 0.9, 1.0], [0.7, 0.2, 0.2, 0.5]])
    x = jax.random.normal(KEY, (2, 4, 3)) * 2
    found = exact.denoise(x, t)
    for b in range(2):
        alpha, sigma = np.asarray(P.alpha(t[b]), np.float64), np.asarray(P.sigma(t[b]), np.float64)
        # By information, in place of a gain: precision of the prior and of what is seen. A frame
        # without noise is seen with a tiny one.
        sigma = np.maximum(sigma, 1e-4)
        precision = np.linalg.inv(GENERAL) + np.diag((alpha / sigma) ** 2)
        told = np.linalg.solve(GENERAL, mean)[:, None] + (alpha / sigma**2)[:, None] * x[b]
        np.testing.assert_allclose(found[b], np.linalg.solve(precision, told), atol=2e-3)
    np.testing.assert_allclose(found[0, 0], x[0, 0], atol=1e-5)  # without noise: as it is


def test_the_ideal_denoiser_of_clips_weighs_whole_clips():
    clips = np.asarray(jax.random.normal(KEY, (7, 3, 2, 2)))
    D = rollouts.ideal(P, clips)
    x = jax.random.normal(jax.random.key(2), (4, 3, 2, 2))
    # With equal times a clip is one large picture.
    flat = image_denoiser.ideal(P, clips.reshape(7, 12))(x.reshape(4, 12), 0.6)
    np.testing.assert_allclose(D(x, 0.6).reshape(4, 12), flat, atol=1e-5)
    # By hand, with a level for each frame.
    t = np.array([[0.2, 0.9, 0.5]] * 4, np.float32)
    alpha, sigma = (np.asarray(f(t))[0] for f in (P.alpha, P.sigma))
    gaps = (np.asarray(x)[:, None] - alpha[:, None, None] * clips) ** 2
    logits = -(gaps.sum((3, 4)) / (2 * sigma**2)).sum(2)
    weights = np.exp(logits - logits.max(1, keepdims=True))
    weights /= weights.sum(1, keepdims=True)
    by_hand = np.einsum("bn,nfhw->bfhw", weights, clips)
    np.testing.assert_allclose(D(x, t), by_hand, atol=1e-5)
    # One frame without noise decides which clip it is.
    known = x.at[:, 1].set(clips[5, 1])
    found = D(known, np.array([1.0, 0.0, 0.9], np.float32))
    np.testing.assert_allclose(found, np.repeat(clips[5:6], 4, 0), atol=1e-4)


def test_draws_of_the_exact_process_have_its_moments():
    exact = rollouts.GaussianClips(P, GENERAL, 0.7)
    x = np.asarray(exact.sample(KEY, 5, (4000,)))
    assert x.shape == (5, 4, 4000)
    flat = np.moveaxis(x, 1, 0).reshape(4, -1)
    # 20,000 draws: standard errors below .013.
    np.testing.assert_allclose(np.cov(flat), GENERAL, atol=0.05)
    np.testing.assert_allclose(flat.mean(1), 0.7, atol=0.04)


def test_the_matrices_of_times_have_these_rows():
    full = rollouts.schedule("full", 3, 4)
    np.testing.assert_allclose(full, np.repeat(np.linspace(1, 0, 5)[:, None], 3, 1))
    one_by_one = rollouts.schedule("autoregressive", 3, 2)
    assert one_by_one.tolist() == [
        [1, 1, 1], [0.5, 1, 1], [0, 1, 1], [0, 0.5, 1], [0, 0, 1], [0, 0, 0.5], [0, 0, 0],
    ]  # fmt: skip
    pyramid = rollouts.schedule("pyramid", 4, 10, delay=3)
    assert pyramid.shape == (10 + 9 + 1, 4)
    assert (np.diff(pyramid, axis=1) >= 0).all() and (np.diff(pyramid, axis=0) <= 0).all()
    np.testing.assert_allclose(pyramid[5], [0.5, 0.8, 1, 1])
    for kind, delay in (("full", 0), ("autoregressive", 10)):
        same = rollouts.schedule("pyramid", 4, 10, delay=delay)
        np.testing.assert_array_equal(rollouts.schedule(kind, 4, 10), same)


def test_a_frame_whose_time_does_not_fall_stays_and_is_seen():
    D = rollouts.GaussianClips(P, memory(0.9, 2)).denoise
    times = np.stack([np.zeros(101), np.linspace(1, 0, 101)], axis=1)
    start = jnp.stack([jnp.full((1, 2000), 1.5), jax.random.normal(KEY, (1, 2000))], axis=1)
    for eta in (0.0, 1.0):  # with fresh noise as well
        draw = jax.jit(lambda x, eta=eta: rollouts.sample(P, D, x, times, KEY, eta)[0])
        made = np.asarray(draw(start))
        np.testing.assert_array_equal(made[:, 0], 1.5)
        # N(.9·1.5, 1 − .81); 2,000 draws: standard errors .010 and .007, and 100 steps.
        assert abs(made[:, 1].mean() - 1.35) < 0.04 and abs(made[:, 1].std() - 0.436) < 0.03


def test_a_long_rollout_drifts_as_the_recurrence_of_its_turns_says():
    rho, extra, turns, steps = 0.95, 0.05, 40, 60
    wrong = rollouts.GaussianClips(P, [[1, rho], [rho, 1 + extra]]).denoise
    times, first = rollouts.schedule("full", 1, steps), jax.random.normal(KEY, (1, 1, 3000))
    for noise in (0.0, 0.2):
        made = jax.jit(
            lambda x, noise=noise: rollouts.extend(
                P, wrong, x, times, turns, jax.random.key(1), context_time=noise
            )
        )(first)
        assert made.shape == (1, turns, 3000)
        # What a unit of the context and a unit of noise become in a turn.
        both = np.concatenate([np.full((steps + 1, 1), noise), times], axis=1)
        turned = rollouts.sample(P, wrong, jnp.eye(2)[None], both, KEY)[0]
        a, g = np.asarray(turned, float)[0, 1]
        alpha, sigma = float(P.alpha(noise)), float(P.sigma(noise))
        assert a == pytest.approx(rho * alpha, abs=0.02)
        assert g == pytest.approx(np.sqrt(1 + extra - (rho * alpha) ** 2), abs=0.02)
        variance = 1.0
        for n in range(turns):
            variance = a**2 * (alpha**2 * variance + sigma**2) + g**2
            # Standard error of a variance from 3,000 draws 2.6 %.
            if n % 13 == 0 or n == turns - 1:
                assert np.var(made[0, n]) == pytest.approx(variance, rel=0.09)
        jumps = np.asarray(made[0, 1:] - made[0, :-1])[-20:]
        expected = 2 * variance * (1 - a * alpha)  # at the end it no longer changes
        assert (jumps**2).mean() == pytest.approx(expected, rel=0.05)


def test_several_frames_of_context_and_several_new_ones_keep_the_process():
    rho = 0.8
    D = rollouts.GaussianClips(P, memory(rho, 5)).denoise
    exact = rollouts.GaussianClips(P, memory(rho, 2))
    first = exact.sample(KEY, 1, (3000,))
    times = rollouts.schedule("pyramid", 3, 60, delay=20)
    made = jax.jit(lambda x: rollouts.extend(P, D, x, times, 3, KEY))(first)
    assert made.shape == (1, 9, 3000)
    x = np.concatenate([first, made], axis=1)[0]
    # 3,000 draws: standard errors below .026; and 60 steps.
    np.testing.assert_allclose(np.cov(x), memory(rho, 11), atol=0.12)


def test_a_network_is_asked_and_trained_frame_by_frame():
    seen = {}

    def model(x, t, cond):
        seen.update(x=x, t=t, cond=cond)
        return 0.3 * x

    x, t = jax.random.normal(KEY, (2, 3, 4, 5)), jnp.array([[0.1, 0.5, 1.0], [0.9, 0.2, 0.0]])
    guess = rollouts.denoiser(model, P, "v", jnp.array([1, 2]))(x, t)
    alpha, sigma = (np.asarray(f(t))[..., None, None] for f in (P.alpha, P.sigma))
    np.testing.assert_allclose(guess, alpha * x - sigma * 0.3 * x, atol=1e-6)
    assert seen["t"].shape == (2, 3) and seen["cond"].tolist() == [1, 2]
    # The target of "v" per frame; a model that knows it has no loss.
    x0 = jnp.full((6, 4, 2, 2), 0.5)

    def knows(x, t, cond):
        a, s = (f(t)[..., None, None] for f in (P.alpha, P.sigma))
        eps = (x - a * 0.5) / s
        flat = [rollouts.as_batch(v) for v in (jnp.full_like(x, 0.5), eps)]
        return target("v", P, *flat, t.reshape(-1)).reshape(x.shape)

    assert rollouts.clip_loss(knows, P, "v", x0, None, KEY) < 1e-8
    nothing = rollouts.clip_loss(lambda x, t, cond: 0 * x, P, "v", x0, None, KEY)
    assert 0.3 < nothing < 1.2  # between the squares of x0 and of eps


def test_a_third_of_the_clips_shares_its_time_and_a_third_has_context():
    t, counts = rollouts.frame_times(KEY, 300, 6)
    t, counts = np.asarray(t), np.asarray(counts)
    assert t.shape == counts.shape == (300, 6) and t.min() >= 0 and t.max() <= 1
    same = np.ptp(t, axis=1) == 0
    assert same[::3].all() and not same[1::3].any() and counts[:, -1].all()
    assert counts[::3].all() and counts[1::3].all() and not counts[2::3].all(1).any()
    for row, known in zip(t[2::3], counts[2::3], strict=True):
        assert (np.diff(known.astype(int)) >= 0).all()  # context first
        assert np.ptp(row[known]) == 0 and (row[~known] <= rollouts.CLEAN).all()
    lengths = (~counts[2::3]).sum(1)
    assert set(lengths) == {1, 2, 3, 4, 5}
    alone, counted = rollouts.frame_times(KEY, 9, 1)
    assert alone.shape == (9, 1) and counted.all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rollouts.schedule("fast", 3, 2), "kind must be one of full, pyramid, auto"),
        (lambda: rollouts.schedule("pyramid", 3, 2, 3), r"delay must be a whole number in \[0"),
        (lambda: rollouts.GaussianClips(P, np.ones((2, 3))), r"covariance must have shape \[F"),
        (lambda: rollouts.GaussianClips(P, np.ones((2, 2))), "covariance must be symmetric and"),
        (lambda: rollouts.GaussianClips(P, np.eye(2)).denoise(jnp.ones((1, 3, 1)), 0.5),
         r"x must have shape \[B, 2, …\]"),
        (lambda: rollouts.ideal(P, np.ones((2, 3, 4)))(jnp.ones((1, 2, 4)), 0.5), "x must hold cl"),
        (lambda: run([[1.0, 1], [0.5, 0.5]], frames=3), r"times must have shape \[n \+ 1, F\]"),
        (lambda: run([[0.5, 1.0], [0.6, 0.5]]), "times must not rise along any frame, got 0.5"),
        (lambda: run([[1.5, 1.0], [0.6, 0.5]]), r"times must be in \[0, 1\]"),
        (lambda: run([[1.0, 1], [0, 0]], 1.5), r"eta must be in \[0, 1\]"),
        (lambda: rollouts.denoiser(None, P, "edm"), "kind must be one of x0, eps, v"),
        (lambda: rollouts.clip_loss(None, P, "v", jnp.ones(3), None, KEY), "x0 must have shape"),
        (lambda: rollouts.extend(P, None, jnp.ones((1, 1, 2)), [[1.0], [0]], 0, KEY), "turns must"),
        (lambda: rollouts.extend(P, None, jnp.ones((1, 1)), [[1.0], [0]], 1, KEY, context_time=2),
         r"context_time must be in \[0, 1\]"),
    ],
)  # fmt: skip
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def run(times, eta=0.0, frames=2):
    x = jnp.ones((1, frames, 2))
    return rollouts.sample(P, lambda x, t: x, x, times, KEY, eta)
