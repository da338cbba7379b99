"""Sequential Monte Carlo against closed forms: chains of Gaussians, and an exact posterior."""

from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import PROCESSES, posterior64

from diffusion_course import (
    denoiser,
    inverse,
    linear_gaussian,
    operators,
    particles,
    samplers,
    sampling,
)

rng = np.random.default_rng(193)
KEY = jax.random.key(193)
o = PROCESSES["vp_cosine"]
p = o.process
TIMES = np.float32([1.0, 0.8, 0.55, 0.3, 0.1, 0.0])

# Data N(MEAN, STD²) on the line. The potential is that of one noisy measurement of x0.
MEAN, STD, Y, SIGMA_Y = 0.4, 0.8, 1.3, 0.5
gaussian = denoiser.gaussian_mixture(p, [[MEAN]], [STD], [1.0])


def log_potential(x0):
    return -((x0[:, 0] - Y) ** 2) / (2 * SIGMA_Y**2)


def estimate64(t):
    """Factor and constant of D(x, t) for this data."""
    alpha, sigma = o.alpha(t), o.sigma(t)
    gain = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
    return gain, MEAN - gain * alpha * MEAN


def chain64():
    """Mean and variance of what ddpm makes of N(0, sigma(1)²) along TIMES: it is no N(MEAN, STD²).

    Every step is linear in x, as the denoiser is.
    """
    times = np.float64(TIMES)
    mean, variance = 0.0, o.sigma(times[0]) ** 2
    for t, s in pairwise(times):
        gain, constant = estimate64(t)
        of_x0, of_x, fresh = posterior64(o, t, s) if s > 0 else (1.0, 0.0, 0.0)
        factor = of_x0 * gain + of_x
        mean, variance = factor * mean + of_x0 * constant, factor**2 * variance + fresh
    return mean, variance


def tilted64():
    """E[exp(r)] and E[x0·exp(r)] over the sampler's results."""
    mean, variance = chain64()
    total = variance + SIGMA_Y**2
    z = SIGMA_Y / np.sqrt(total) * np.exp(-((Y - mean) ** 2) / (2 * total))
    return z, z * (mean * SIGMA_Y**2 + Y * variance) / total


def leader(x, t):  # neither the model nor the exact posterior
    return gaussian.denoise(x, t) + 0.3 * (1 - t)


MOVES = {
    "bootstrap": particles.bootstrap(samplers.ddpm(p), gaussian.denoise),
    "twisted": particles.twisted(p, gaussian.denoise, leader),
}
TWIST = particles.lookahead(gaussian.denoise, log_potential)


@partial(jax.jit, static_argnames=("move", "n", "runs"))
def many(move, n, runs, threshold):
    def one(key):
        start, steps = jax.random.split(key)
        noise = sampling.start_noise(p, start, (n, 1))
        found = particles.smc(MOVES[move], TWIST, noise, TIMES, steps, threshold)
        return found.log_z, found.expect(found.x)[0], found.ess

    return jax.vmap(one)(jax.random.split(KEY, runs))


# ----------------------------------------------------------------------------- the algorithm


@pytest.mark.parametrize("threshold", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("move", MOVES)
def test_the_estimate_of_the_normalising_constant_is_unbiased(move, threshold):
    log_z, mean, ess = (np.float64(part) for part in many(move, 8, 4000, threshold))
    wanted_z, wanted_x = tilted64()
    z = np.exp(log_z)
    for values, wanted in ((z, wanted_z), (z * mean, wanted_x)):
        error = values.std() / np.sqrt(len(values))
        assert abs(values.mean() - wanted) < 3 * error
        assert error < 0.02 * abs(wanted)  # a tenth of what a forgotten weight would change
    assert ess.min() >= 1 and ess.max() <= 8
    # Resampled each time, the weights of one step are evener than those of all steps together.
    if threshold == 0:
        assert ess[:, -2].mean() < np.float64(many(move, 8, 4000, 1.0)[2])[:, -2].mean()


def test_the_exact_twist_has_no_variance():
    # Data N(0, 1), whose reverse chain the "transition" variance makes exact, and a linear
    # potential c·x0. Its exact twist is exp(c·D + c²·r²/2), r² the variance of x0 given x_t, and
    # the exact leader is D + c·r². The last step adds no noise, so that x0 lacks the last r².
    c = np.float32([0.7, -0.4])
    unit = denoiser.gaussian_mixture(p, [[0.0, 0.0]], [1.0], [1.0])

    def twist(x, t):
        variance = jnp.where(t > 0, p.sigma(t) ** 2, 0.0)
        x0 = jnp.where(t > 0, unit.denoise(x, t), x)
        return x0 @ c + (c @ c) * (variance - p.sigma(TIMES[-2]) ** 2 * (t > 0)) / 2

    move = particles.twisted(
        p, unit.denoise, lambda x, t: unit.denoise(x, t) + c * p.sigma(t) ** 2, "transition"
    )
    noise = sampling.start_noise(p, KEY, (50, 2))
    found = particles.smc(move, twist, noise, TIMES, KEY, threshold=0.0)
    wanted = (c @ c) * o.alpha(np.float64(TIMES[-2])) ** 2 / 2
    assert found.log_z == pytest.approx(wanted, abs=1e-5)
    np.testing.assert_allclose(found.log_weights, -np.log(50), atol=1e-5)
    np.testing.assert_allclose(found.ess, 50, rtol=1e-5)


def test_weights_bring_dps_nearer_to_the_exact_posterior():
    means, stds, weights = [[1.0, -0.6], [-0.9, 0.7]], np.array([0.4, 0.3]), [1.0, 2.0]
    prior = denoiser.gaussian_mixture(p, means, stds, weights)
    A, y, sigma_y = operators.matrix([[0.9, 0.5]]), np.array([0.45]), 0.3
    exact = linear_gaussian.posterior(
        p, means, stds[:, None, None] ** 2 * np.eye(2), weights, A, y, sigma_y
    )
    leader = inverse.dps(prior.denoise, p, A, y[None], sigma_y)
    move = particles.twisted(p, prior.denoise, leader)
    twist = particles.lookahead(prior.denoise, inverse.log_likelihood(A, y[None], sigma_y))
    times = sampling.uniform(60)

    @jax.jit
    def both(key):
        start, steps = jax.random.split(key)
        noise = sampling.start_noise(p, start, (4000, 2))
        unweighted, _ = sampling.sample(samplers.ddpm(p), leader, noise, times, steps)
        return particles.smc(move, twist, noise, times, steps), unweighted

    found, unweighted = both(KEY)
    wanted = exact.posterior.mean()
    near = np.linalg.norm(found.expect(found.x) - wanted)
    far = np.linalg.norm(unweighted.mean(axis=0) - wanted)
    assert near < far / 2
    # Standard error 1/√(ess): .05; as much for the chain's 60 steps.
    assert near < 0.1
    assert found.log_z == pytest.approx(exact.log_evidence, abs=0.1)
    drawn = found.draw(KEY)
    np.testing.assert_allclose(drawn.mean(axis=0), found.expect(found.x), atol=0.02)


def test_where_nothing_is_possible_the_constant_is_zero_and_nothing_is_nan():
    noise = sampling.start_noise(p, KEY, (20, 1))

    @jax.jit
    def found_above(least, threshold):  # particles below `least` are worth nothing, all the time
        def twist(x, t):
            return jnp.where(x[:, 0] > least, 0.0, -jnp.inf)

        return particles.smc(MOVES["bootstrap"], twist, noise, TIMES, KEY, threshold)

    for threshold in (0.0, 1.0):
        found = found_above(1e9, threshold)
        assert found.log_z == -np.inf
        np.testing.assert_allclose(found.log_weights, -np.log(20), rtol=1e-6)
        assert (found.ess == 0).all()
        found = found_above(0.0, threshold)
        assert -5 < found.log_z < 0
        assert np.exp(found.log_weights)[found.x[:, 0] <= 0].sum() == 0


def test_a_sampler_with_memory_and_bad_arguments_are_refused():
    noise = sampling.start_noise(p, KEY, (4, 1))
    move = MOVES["bootstrap"]
    remembers = particles.bootstrap(samplers.dpm_solver_pp_2m(p), gaussian.denoise)
    for call, message in (
        (lambda: particles.smc(remembers, TWIST, noise, TIMES, KEY), "sampler must have no memory"),
        (
            lambda: particles.smc(move, TWIST, noise, TIMES[:-1], KEY),
            r"times must end at 0, where the target is, got 0\.1",
        ),
        (lambda: particles.smc(move, TWIST, noise, TIMES, KEY, 1.5), "threshold must be in"),
        (
            lambda: particles.smc(move, lambda x, t: x, noise, TIMES, KEY),
            r"log_twist\(x, t\) must have shape \[4\], .* got shape \[4, 1\]",
        ),
        (lambda: particles.smc(move, TWIST, noise, TIMES, 3), "key must be one random key"),
        (lambda: particles.twisted(p, leader, leader, "both"), "variance must be one of"),
        (lambda: particles.systematic(KEY, jnp.ones((2, 3))), r"log_weights must have shape \[N\]"),
        (lambda: particles.effective_sample_size(jnp.ones(0)), r"log_weights must have shape"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


# ---------------------------------------------------------------------------------- its parts


def test_the_effective_sample_size_counts_equal_weights():
    weights = rng.uniform(0.1, 1, 7)
    found = particles.effective_sample_size(jnp.log(jnp.float32(weights)) + 300)
    assert found == pytest.approx(weights.sum() ** 2 / (weights**2).sum(), rel=1e-4)
    for count in (1, 4, 7):
        some = jnp.where(jnp.arange(7) < count, 0.0, -jnp.inf)
        assert particles.effective_sample_size(some) == pytest.approx(count, rel=1e-6)
    assert particles.effective_sample_size(jnp.full(3, -jnp.inf)) == 0


def test_systematic_resampling_is_unbiased_and_rounds_each_count_up_or_down():
    weights = np.array([0.31, 0.0, 0.07, 0.4, 0.2, 0.02, 0.0])
    keys = jax.random.split(KEY, 4000)
    log_weights = jnp.log(jnp.float32(weights)) - 2.0
    chosen = jax.vmap(particles.systematic, (0, None))(keys, log_weights)
    counts = (np.asarray(chosen)[:, :, None] == np.arange(7)).sum(axis=1)
    wanted = 7 * weights
    # A count that is rounded up with probability q has the variance q·(1 − q).
    up = wanted % 1
    error = np.sqrt(up * (1 - up) / len(keys))
    assert (np.abs(counts.mean(axis=0) - wanted) <= 4 * error + 1e-6).all()
    assert (counts >= np.floor(wanted)).all() and (counts <= np.ceil(wanted)).all()


def test_no_particle_without_weight_is_chosen_among_very_many():
    n = 200_000
    log_weights = jnp.where(jnp.arange(n) < n // 2, 0.0, -jnp.inf)
    # The key whose number is nearest to 1: float32 rounds the last tooth of its comb to 1.
    keys = jax.random.split(KEY, 4000)
    latest = jnp.argmax(jax.vmap(jax.random.uniform)(keys))
    chosen = particles.systematic(keys[latest], log_weights)
    assert chosen.max() == n // 2 - 1
    assert particles.systematic(KEY, jnp.zeros(1)).tolist() == [0]
    assert particles.systematic(KEY, jnp.full(3, -jnp.inf)).tolist() == [0, 1, 2]
