"""Averages whose length is chosen after the run, against sums written out over the steps."""

import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_course.training import averages
from diffusion_course.training.update import TrainState

rng = np.random.default_rng(91)


def state(step, weights):
    return TrainState(jnp.asarray(weights), jnp.zeros(3), (), jnp.int32(step), jnp.bool(False))


def run(kept, history):
    for step, weights in enumerate(history, 1):
        kept.update(state(step, weights))
    return kept


@pytest.mark.parametrize("gamma", [0.0, 0.7, 6.94, 16.97])
def test_the_width_is_the_standard_deviation_of_the_density(gamma):
    tau = (np.arange(200_000) + 0.5) / 200_000
    density = (gamma + 1) * tau**gamma
    mean = (density * tau).mean()
    deviation = np.sqrt((density * (tau - mean) ** 2).mean())
    np.testing.assert_allclose(averages.relative_width(gamma), deviation, rtol=1e-6)
    np.testing.assert_allclose(averages.exponent(deviation), gamma, rtol=1e-5, atol=1e-4)


def test_the_plain_mean_has_the_largest_width():
    np.testing.assert_allclose(averages.exponent(np.sqrt(1 / 12)), 0, atol=1e-6)
    np.testing.assert_allclose(averages.profile(7, 0.0), 1 / 7)


@pytest.mark.parametrize("gamma", [0.0, 1.0, 6.94])
def test_the_profile_is_what_the_recursion_makes_of_each_step(gamma):
    n, weights = 23, np.zeros(23)
    for step in range(1, n + 1):
        kept = averages.power_decay(step, gamma)
        weights = kept * weights + (1 - kept) * np.eye(n)[step - 1]
    np.testing.assert_allclose(averages.profile(n, gamma), weights, rtol=1e-12, atol=1e-16)
    np.testing.assert_allclose(weights.sum(), 1, rtol=1e-12)


def test_an_average_that_was_kept_is_given_back_exactly():
    history = rng.normal(2.0, 1.0, (60, 3)).astype(np.float32)
    kept = run(averages.PowerAverages((0.05, 0.2), every=20), history)
    assert [(s.step, round(s.gamma, 2)) for s in kept.snapshots[:2]] == [(20, 16.97), (20, 1.83)]
    for width in (0.05, 0.2):
        for step in (20, 40, 60):
            weights = averages.profile(step, averages.exponent(width))
            wanted = weights @ history[:step].astype(np.float64)
            np.testing.assert_allclose(kept.at(width, step), wanted, rtol=1e-9)


def test_another_average_is_the_nearest_that_the_snapshots_can_make():
    stored = [(step, gamma) for step in (32, 64, 96, 128) for gamma in (16.97, 6.94)]
    shares = averages.combination(stored, 128, 10.0)
    np.testing.assert_allclose(shares.sum(), 1, rtol=1e-12)
    profiles = np.stack([averages.profile(s, g, 128) for s, g in stored], axis=1)
    wanted = averages.profile(128, 10.0)
    miss = profiles @ shares - wanted
    # At the optimum under the condition of sum 1 the gradient is the same for every share.
    gradient = profiles.T @ miss
    np.testing.assert_allclose(gradient, gradient.mean(), atol=1e-12)
    # And it is near: a fifth of what the nearest stored profile alone leaves.
    alone = np.linalg.norm(profiles - wanted[:, None], axis=0).min()
    assert np.linalg.norm(miss) < alone / 5


def test_weights_that_never_change_are_their_own_average():
    kept = run(averages.PowerAverages(every=9), np.tile([[3.0, -1.0, 0.5]], (30, 1)))
    for width in (0.03, 0.08, 0.25):
        np.testing.assert_allclose(kept.at(width), [3.0, -1.0, 0.5], rtol=1e-10)


def test_the_first_weights_of_all_leave_no_trace():
    history = rng.normal(0, 1, (40, 2))
    kept = run(averages.PowerAverages((0.1,), every=40), history)
    late = np.concatenate([[[1e6, 1e6]], history[1:]])
    again = run(averages.PowerAverages((0.1,), every=40), late)
    # Step 1 counts (1/40)^7.94 = 2e-13.
    np.testing.assert_allclose(kept.at(0.1), again.at(0.1), atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: averages.relative_width(-1), "gamma must be above -1 and finite, got -1"),
        (lambda: averages.exponent(0.3), r"width must be in \(0, 0.288675\], got 0.3"),
        (lambda: averages.exponent(0.0), r"width must be in \(0, 0.288675\], got 0.0"),
        (lambda: averages.power_decay(0, 1.0), "step must be .*, got 0"),
        (lambda: averages.power_decay(1, -0.5), r"gamma must be in \[0, inf\), got -0.5"),
        (lambda: averages.profile(3, 1.0, 2), "length must be .*, got 2"),
        (lambda: averages.PowerAverages((), every=1), "widths must hold at least one width"),
        (lambda: averages.PowerAverages(every=0), "every must be .*, got 0"),
        (lambda: averages.combination([], 1, 1.0), "stored must hold at least one average"),
    ],
)
def test_what_cannot_be_used_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_step_left_out_and_a_step_not_reached_are_refused():
    kept = averages.PowerAverages(every=2)
    with pytest.raises(ValueError, match="at needs a snapshot: one is made every 2 steps"):
        kept.at(0.1)
    with pytest.raises(ValueError, match="state must be that of step 1, got one of step 2"):
        kept.update(state(2, np.zeros(3)))
    run(kept, np.zeros((3, 3)))
    with pytest.raises(ValueError, match=r"step must be .*, got 3"):
        kept.at(0.1, 3)
