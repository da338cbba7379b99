"""Sequential Monte Carlo: many samples that share their luck, for a target ``p(x0)·exp(r(x0))``.

Particles run through a sampler side by side. Those that promise a large r are weighted up, and now
and then copied in place of the others. The weights make the result right on average whatever the
promise was; how good it is decides how many particles that takes.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion_course import checks
from diffusion_course.denoiser import Denoiser
from diffusion_course.process import Process, expand, posterior, transition
from diffusion_course.samplers import Sampler, ddpm, memoryless, no_memory
from diffusion_course.steps import root

LogPotential = Callable[[Array], Array]
LogTwist = Callable[[Array, Array], Array]


class Particles(NamedTuple):
    """A weighted sample.

    Attributes:
      x: the particles [N, …].
      log_weights: logarithms of weights that sum to 1: [N].
      log_z: estimate of ``log E[exp(r(x0))]`` over the sampler's own results; the estimate of the
        expectation, exp(log_z), is unbiased for every N.
      ess: effective sample size after each step, before any resampling there: [n].
    """

    x: Array
    log_weights: Array
    log_z: Array
    ess: Array

    def expect(self, values: Array) -> Array:
        """The weighted mean of values [N, …], such as x: […]."""
        return jnp.tensordot(jnp.exp(self.log_weights), values, axes=1, precision="highest")

    def draw(self, key: Array) -> Array:
        """The particles resampled to equal weights: [N, …]."""
        return self.x[systematic(key, self.log_weights)]


def effective_sample_size(log_weights: Array) -> Array:
    """``1 / sum_i w_i²`` for weights normalised to sum 1: from 1, one particle counts, to N.

    Args:
      log_weights: [N], normalised or not.

    Returns: a number; 0 if all weights are 0.
    Source: Kong, Liu & Wong 1994, "Sequential imputations and Bayesian missing data problems".

    >>> print(f"{effective_sample_size(jnp.log(jnp.array([2.0, 2.0, 0.0]))):.2f}")
    2.00
    """
    _check_weights(log_weights)
    log_weights, total = _normalised(log_weights)
    size = jnp.exp(-jax.nn.logsumexp(2 * log_weights))
    # Rounding may give more than N.
    return jnp.where(jnp.isneginf(total), 0.0, jnp.minimum(size, log_weights.shape[0]))


def _check_weights(log_weights) -> None:
    if np.ndim(log_weights) != 1 or np.size(log_weights) == 0:
        raise ValueError(
            f"log_weights must have shape [N] with N >= 1, got shape {list(np.shape(log_weights))}"
        )


def _normalised(log_weights: Array) -> tuple[Array, Array]:
    """Log-weights that sum to 1, equal ones if all are 0, and the logarithm of their sum."""
    total = jax.nn.logsumexp(log_weights)
    equal = jnp.full_like(log_weights, -np.log(log_weights.shape[0]))
    return jnp.where(jnp.isneginf(total), equal, log_weights - total), total


def systematic(key: Array, log_weights: Array) -> Array:
    """Systematic resampling: which particles go on, N of them.

    Particle i is chosen ``N·w_i`` times on average, and that number rounded down or up each time:
    one random number shifts a comb of N teeth, 1/N apart, over the weights laid end to end.

    Args:
      key: a random key.
      log_weights: [N], normalised or not.

    Returns: indices int32 [N], rising.
    Source: Kitagawa 1996; Douc, Cappé & Moulines 2005, section 2.4 (arXiv:cs/0507025).

    >>> weights = jnp.log(jnp.array([0.5, 0.0, 0.25, 0.25]))
    >>> systematic(jax.random.key(0), weights).tolist()
    [0, 0, 2, 3]
    """
    _check_weights(log_weights)
    ends = jnp.cumsum(jnp.exp(_normalised(log_weights)[0]))
    n = log_weights.shape[0]
    teeth = (jnp.arange(n) + jax.random.uniform(key)) / n
    # Below 1 also when rounded, so that the last tooth meets no particle of weight 0.
    teeth = jnp.minimum(teeth, np.nextafter(np.float32(1), np.float32(0)))
    return jnp.searchsorted(ends / ends[-1], teeth, side="right").astype(jnp.int32)


# --------------------------------------------------------------------------------------------
# Moves: how particles go from t to s, and what that does to their weights.
# --------------------------------------------------------------------------------------------


class Move(NamedTuple):
    """``x_s, log_ratio = step(x, t, s, key)`` moves particles from time t to s < t.

    Attributes:
      check: refuses, from the start state x [N, …], what cannot be moved.
      step: gives x_s [N, …] and the log of the density of this step under the model, over that
        under the law that it was drawn from: [N].
    """

    check: Callable[[Array], Any]
    step: Callable[[Array, Array, Array, Array], tuple[Array, Array]]


def bootstrap(sampler: Sampler, D: Denoiser) -> Move:
    """The sampler's own steps, which look at no potential; the ratio is 1.

    A deterministic sampler such as `samplers.ddim` is allowed, but the copies of a particle then
    stay copies; `samplers.ddpm` moves them apart.

    Args:
      sampler: one without memory.
      D: the denoiser.

    Raises: ValueError where it runs, if the sampler has a memory.
    """
    state = memoryless(sampler, "resampling would confuse")

    def step(x, t, s, key):
        return sampler.step(D, x, t, s, key, state(x))[0], jnp.zeros(x.shape[0])

    return Move(state, step)


def twisted(p: Process, D: Denoiser, D_guided: Denoiser, variance: str = "posterior") -> Move:
    """Ancestral steps that a guided denoiser leads; the ratio repairs what guidance did.

    The model's step is that of `samplers.ddpm` with D, the particles take the one with D_guided.
    Both are Gaussians of the same variance, so their ratio is known. The last step, to s = 0, has
    no noise: a ratio could not repair it, and it is D's own.

    Args:
      p: the process.
      D: the denoiser.
      D_guided: the one that leads, such as ``inverse.dps(D, …)``.
      variance: as in `samplers.ddpm`.

    Raises: ValueError if variance is none of ddpm's.
    Source: Wu et al. 2023, algorithm 1 (arXiv:2306.17775).
    """
    model = ddpm(p, variance, temperature=0.0)  # without noise: a step's mean

    def step(x, t, s, key):
        mean = model.step(D, x, t, s, key, ())[0]
        guided = model.step(D_guided, x, t, s, key, ())[0]
        guided = jnp.where(s > 0, guided, mean)
        spread = posterior(p, x, x, t, s)[1] if variance == "posterior" else transition(p, t, s)[1]
        spread = jnp.where(s > 0, expand(spread, x), 0.0)
        x_s = guided + root(spread) * jax.random.normal(key, x.shape, x.dtype)
        # log N(x_s; mean) − log N(x_s; guided), without the difference of two large squares.
        shift = guided - mean
        each = shift * (shift / 2 - (x_s - mean)) / jnp.where(spread > 0, spread, 1.0)
        return x_s, each.reshape(x.shape[0], -1).sum(axis=1)

    return Move(no_memory, step)


def lookahead(D: Denoiser, log_potential: LogPotential) -> LogTwist:
    """The potential of the estimate, ``r(D(x, t))``, as a twist: r(x) itself at t = 0.

    It costs one evaluation more in each step.

    Args:
      D: the denoiser.
      log_potential: r, x0 [N, …] -> [N].

    Returns: a function (x, t) -> [N]. Source: Wu et al. 2023 (arXiv:2306.17775); Singhal et
    al. 2025 (arXiv:2501.06848).
    """

    def log_twist(x, t):
        return jax.lax.cond(
            t > 0, lambda: log_potential(D(x, t)), lambda: log_potential(jnp.asarray(x))
        )

    return log_twist


# --------------------------------------------------------------------------------------------
# The algorithm.
# --------------------------------------------------------------------------------------------


def smc(
    move: Move, log_twist: LogTwist, x_start: Array, times, key: Array, threshold: float = 0.5
) -> Particles:
    """Sequential Monte Carlo along a grid of times, as one compiled loop.

    In each step a particle's weight is multiplied by ``twist(x_s, s) / twist(x_t, t)`` and by the
    move's ratio. The twists of a particle's life cancel but for the last one, which is the target's
    exp(r(x0)): any twist gives the right answer on average. When the effective sample size is at
    most threshold·N, particles are resampled by their weights, which then are equal again.

    Args:
      move: `bootstrap(sampler, D)` or `twisted(p, D, D_guided)`.
      log_twist: (x [N, …], t) -> [N]; at time 0 it is the log-potential r(x0). The best one is
        ``log E[exp(r(x0)) | x_t = x]``; `lookahead` is a guess at it.
      x_start: the particles at times[0], drawn from the sampler's start: float32 [N, …].
      times: [n + 1], strictly falling within [1, 0] and ending at 0.
      key: a random key.
      threshold: in [0, 1]: 0 never resamples (importance weights), 1 always does.

    Returns: the weighted particles, the estimate of the normalising constant, and the effective
      sample sizes.
    Raises: ValueError if times do not fall to 0, x_start is not float32, threshold is outside
      [0, 1], or a twist has another shape than [N].
    Source: Del Moral, Doucet & Jasra 2006, section 3 (DOI 10.1111/j.1467-9868.2006.00553.x).

    >>> from diffusion_course import denoiser, process, samplers, sampling
    >>> p = process.vp_cosine()
    >>> gm = denoiser.gaussian_mixture(p, [[0.0]], [1.0], [1.0])  # the data: N(0, 1)
    >>> move = bootstrap(samplers.ddpm(p, "transition"), gm.denoise)
    >>> twist = lookahead(gm.denoise, lambda x0: x0[:, 0])  # the target, by exp(x0): N(1, 1)
    >>> start, steps = jax.random.split(jax.random.key(1))
    >>> noise = sampling.start_noise(p, start, (2000, 1))
    >>> found = smc(move, twist, noise, sampling.uniform(20), steps)
    >>> print(f"{found.expect(found.x)[0]:.1f} {found.log_z:.1f}")  # E[exp(x0)] = exp(½)
    1.0 0.5
    """
    x_start = checks.state("x_start", x_start)
    times = _times_to_zero(times)
    checks.random_key("key", key)
    threshold = checks.number("threshold", threshold)
    checks.within("threshold", threshold, 0, 1)
    move.check(x_start)
    n_particles = x_start.shape[0]

    def twist_at(x, t):
        values = log_twist(x, t)
        if np.shape(values) != (n_particles,):
            raise ValueError(
                f"log_twist(x, t) must have shape [{n_particles}], one number per particle, "
                f"got shape {list(np.shape(values))}"
            )
        return jnp.asarray(values, jnp.float32)

    def body(carry, inputs):
        x, twist, log_weights, log_z = carry
        i, t, s = inputs
        key_move, key_resample = jax.random.split(jax.random.fold_in(key, i))
        # Where the last step left too few particles that count, choose again: never after the
        # last step, where the weights are the result.
        x, twist, log_weights, log_z = _resample(
            key_resample, (x, twist), log_weights, log_z, threshold
        )
        # Move, and weight what came of it.
        x, log_ratio = move.step(x, t, s, key_move)
        ahead = twist_at(x, s)
        gained = log_ratio + ahead - twist
        # A particle of weight 0 stays one: −∞ − (−∞) would make it NaN.
        dead = jnp.isneginf(log_weights) | jnp.isneginf(twist)
        log_weights = jnp.where(dead, -jnp.inf, log_weights + gained)
        return (x, ahead, log_weights, log_z), effective_sample_size(log_weights)

    first = twist_at(x_start, times[0])
    start = (x_start, first, first, jnp.float32(0.0))
    steps = (np.arange(len(times) - 1, dtype=np.int32), times[:-1], times[1:])
    (x, _, log_weights, log_z), ess = jax.lax.scan(body, start, steps)
    log_weights, total = _normalised(log_weights)
    return Particles(x, log_weights, log_z + total - np.log(n_particles), ess)


def _resample(key: Array, particles, log_weights: Array, log_z: Array, threshold):
    """Particles chosen by their weights if few count; their mean weight then moves into log_z."""
    n = log_weights.shape[0]
    total = jax.nn.logsumexp(log_weights)
    few = effective_sample_size(log_weights) <= threshold * n
    chosen = jnp.where(few, systematic(key, log_weights), jnp.arange(n))
    particles = jax.tree.map(lambda part: part[chosen], particles)
    log_weights = jnp.where(few, 0.0, log_weights)
    log_z = jnp.where(few, log_z + total - np.log(n), log_z)
    return *particles, log_weights, log_z


def _times_to_zero(times):
    times = checks.falling_times("times", times)
    if checks.concrete(times) and times[-1] != 0:
        raise ValueError(f"times must end at 0, where the target is, got {times[-1]}")
    return times
