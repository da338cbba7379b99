"""The variational bound on the negative log-likelihood, term by term, and learned variances.

The bound of a chain of times 1 = t_n > … > t_0 = 0 is a sum of three kinds of terms, all measured
here in bits per dimension:

* the prior, ``KL(q(x_1 | x_0) ‖ N(0, sigma(1)²))``;
* one transition per step, ``KL(q(x_s | x_t, x_0) ‖ p(x_s | x_t))`` for s > 0;
* the reconstruction, ``−log p(x_0 | x_t)`` of the last step, to s = 0.

What is learned is a *reverse model*, ``reverse(x, t, s) -> (mean, log_variance)`` of p(x_s | x_t).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.stats import norm

from diffusion_course import checks
from diffusion_course.denoiser import Denoiser, network_output
from diffusion_course.losses import discrete_times
from diffusion_course.parameterization import KINDS, target, to_x0
from diffusion_course.process import Process, add_noise, expand, new_noise, posterior
from diffusion_course.samplers import Sampler

Reverse = Callable[[Array, Array, Array], tuple[Array, Array]]

_LOG_2, _LOG_2_PI = math.log(2), math.log(2 * math.pi)
# Variances below this, e^−170, are raised to it: float32 still holds the root and its inverse.
_LEAST_LOG_VARIANCE = -170.0


# --------------------------------------------------------------------------------------------
# Two distributions
# --------------------------------------------------------------------------------------------


def gaussian_kl(mean_q, log_variance_q, mean_p, log_variance_p) -> Array:
    """KL(q ‖ p) of one-dimensional Gaussians, in nats; the arguments broadcast.

    ``(v_q/v_p − 1 − log(v_q/v_p) + (m_q − m_p)²/v_p)/2``.

    >>> print(gaussian_kl(1.0, 0.0, 0.0, 0.0))  # two standard deviations of 1, one apart
    0.5
    """
    log_ratio = log_variance_q - log_variance_p
    # The root of the variance first: the variance itself may be too small for float32.
    squared = ((mean_q - mean_p) * jnp.exp(-log_variance_p / 2)) ** 2
    return (jnp.expm1(log_ratio) - log_ratio + squared) / 2


# In standard deviations: the square of a longer distance has no number in float32.
_FARTHEST = 1.8e19


def discretized_log_likelihood(x0: Array, mean: Array, log_variance: Array, levels: int) -> Array:
    """Log-probability of pixel values under a Gaussian, in nats: of the bin that each lies in.

    The range [−1, 1] holds `levels` values; bins lie halfway between neighbours, and the first and
    the last are open, so that the probabilities of all values add up to 1.

    Args:
      x0: values that are multiples of 2/(levels − 1) above −1.
      mean: of the Gaussian, of x0's shape.
      log_variance: of the Gaussian; it broadcasts.
      levels: number of values, such as 256; at least 2.

    Returns: of x0's shape; −∞, with a gradient of 0, for a bin farther out than float32 can tell.
    Raises: ValueError for fewer than 2 levels, or arrays that are not floating-point or do not fit.
    Source: Ho, Jain & Abbeel 2020, eq. 13 (arXiv:2006.11239).
    """
    levels = checks.integer("levels", levels, minimum=2)
    x0 = checks.state("x0", x0)
    checks.broadcasts("mean", mean, "x0", x0)
    checks.broadcasts("log_variance", log_variance, "x0", x0)
    half = 1 / (levels - 1)
    scale = jnp.exp(-log_variance / 2)
    upper = jnp.clip((x0 - mean + half) * scale, -_FARTHEST, _FARTHEST)
    lower = jnp.clip((x0 - mean - half) * scale, -_FARTHEST, _FARTHEST)
    below, above = norm.logcdf(upper), norm.logcdf(-lower)
    # Far from the mean the two ends of a bin have equal distribution functions in float32. Their
    # difference is taken in logarithms, and on the side where both are small.
    flip = lower > 0
    upper, lower = jnp.where(flip, -lower, upper), jnp.where(flip, -upper, lower)
    log_upper, log_lower = norm.logcdf(upper), norm.logcdf(lower)
    inside = log_upper + jnp.log1p(-jnp.exp(jnp.minimum(log_lower - log_upper, -1e-6)))
    first, last = x0 < -1 + half, x0 > 1 - half
    found = jnp.where(first, below, jnp.where(last, above, inside))
    return jnp.where(found <= norm.logcdf(-_FARTHEST), -jnp.inf, found)


# --------------------------------------------------------------------------------------------
# Reverse models
# --------------------------------------------------------------------------------------------


def variance_limits(p: Process, t, s, first: float) -> tuple[Array, Array]:
    """Logarithms of the two ends of a reverse step's variance: (posterior, transition).

    The posterior's is right if the data is one point, the transition's if it is standard normal.
    To s = 0 the posterior has no variance, and a network needs a finite number: there it is that
    of the step before, from twice `first` to `first`; in a chain of one step, from 1 to 1/2.

    Args:
      p: the process.
      t: the later time, a scalar or [B].
      s: the earlier time, of the same shape.
      first: the smallest time above 0 of the grid; the one before it is taken as far again.

    Returns: two arrays of t's shape, at least −170 each.
    Raises: ValueError unless first is in (0, 1] and 0 <= s <= t <= 1.
    Source: Ho, Jain & Abbeel 2020, section 3.2 (arXiv:2006.11239); the exception: Nichol &
    Dhariwal 2021, their code.
    """
    _check_first(first)
    last, end = jnp.asarray(s) <= 0, jnp.minimum(first, 0.5)
    before, there = jnp.where(last, 2 * end, t), jnp.where(last, end, s)
    return _log_variance(p, there, before, there), _log_variance(p, t, t, s)


def _check_first(first) -> None:
    checks.within("first", first, 0, 1, ends="(]")


def _log_variance(p: Process, level, t, s) -> Array:
    """Logarithm of sigma(level)² times the share of new noise, taken apart so as not to be 0."""
    return jnp.maximum(
        jnp.log(new_noise(p, t, s)) + 2 * jnp.log(p.sigma(level)), _LEAST_LOG_VARIANCE
    )


def fixed(p: Process, D: Denoiser, first: float, variance: str = "transition") -> Reverse:
    """The reverse model of a denoiser: the posterior with D(x, t) in the place of x0.

    The last step has the variance of its own transition too, beta_1 of a discrete chain.

    Args:
      p: the process.
      D: the denoiser.
      first: the smallest time above 0 of the grid.
      variance: "transition" or "posterior", see `variance_limits`.

    Raises: ValueError if variance is neither "posterior" nor "transition", or first not in (0, 1].
    Source: Ho, Jain & Abbeel 2020, section 3.2 (arXiv:2006.11239).
    """
    checks.one_of("variance", variance, ("posterior", "transition"))
    _check_first(first)

    def reverse(x, t, s):
        mean = posterior(p, D(x, t), x, t, s)[0]
        lower, upper = variance_limits(p, t, s, first)
        return mean, expand(lower if variance == "posterior" else upper, x)

    return reverse


def split_output(y: Array) -> tuple[Array, Array]:
    """The output of a network with a learned variance: the prediction, and where the variance lies.

    Args:
      y: [B, …, 2C].

    Returns: two arrays [B, …, C]. Raises: ValueError for an odd number of channels.

    >>> prediction, share = split_output(jnp.array([[1.0, 2.0, 3.0, 4.0]]))
    >>> print(prediction, share)
    [[1. 2.]] [[3. 4.]]
    """
    shape = np.shape(y)
    if not shape or shape[-1] % 2:
        raise ValueError(f"y must have an even number of channels, got shape {list(shape)}")
    prediction, share = jnp.split(y, 2, axis=-1)
    return prediction, share


def learned(model, p: Process, kind: str, first: float, cond=None, stop_mean=False) -> Reverse:
    """The reverse model of a network that also predicts its variance.

    The second half u of its output says where the variance lies between the two of
    `variance_limits`, on a logarithmic scale: ``log v = c·upper + (1 − c)·lower`` with
    ``c = (u + 1)/2``. Nothing keeps c inside [0, 1]. The untrained network, whose output is 0,
    starts in the middle.

    Args:
      model: ``model(x, t, cond) -> [B, …, 2C]``.
      p: the process.
      kind: what the first half predicts.
      first: the smallest time above 0 of the grid.
      cond: labels [B] or None.
      stop_mean: whether the mean passes no gradient on, as in the hybrid objective.

    Raises: ValueError for an unknown kind, or if first is not in (0, 1].
    Source: Nichol & Dhariwal 2021, eq. 15 (arXiv:2102.09672).
    """
    checks.one_of("kind", kind, KINDS)
    _check_first(first)

    def reverse(x, t, s):
        y, u = split_output(network_output(model, p, kind, x, t, cond))
        mean = posterior(p, to_x0(kind, p, y, x, t), x, t, s)[0]
        lower, upper = (expand(v, x) for v in variance_limits(p, t, s, first))
        share = (u + 1) / 2
        mean = jax.lax.stop_gradient(mean) if stop_mean else mean
        return mean, share * upper + (1 - share) * lower

    return reverse


def sampler(reverse: Reverse) -> Sampler:
    """Ancestral sampling from a reverse model; the denoiser that `sample` hands on is not asked.

    The step to s = 0 returns the mean.
    """

    def step(D, x, t, s, key, state):
        mean, log_variance = reverse(x, t, s)
        noise = jnp.exp(log_variance / 2) * jax.random.normal(key, x.shape, x.dtype)
        return jnp.where(s > 0, mean + noise, mean), state

    return Sampler(lambda x: (), step)


# --------------------------------------------------------------------------------------------
# The bound
# --------------------------------------------------------------------------------------------


class Bound(NamedTuple):
    """The bound on −log p(x0), in bits per dimension.

    Attributes:
      prior: KL of x_1's distribution to noise, [B].
      steps: one term per step, in the order of the times, [n, B]; the last is the reconstruction.
    """

    prior: Array
    steps: Array

    @property
    def total(self) -> Array:
        """The bound itself, [B]."""
        return self.prior + self.steps.sum(0)


def step_term(
    reverse: Reverse, p: Process, x0: Array, x_t: Array, t, s, levels: int | None = None
) -> Array:
    """One term of the bound in bits per dimension, [B].

    Args:
      reverse: the reverse model.
      p: the process.
      x0: data [B, …].
      x_t: a draw of q(x_t | x0).
      t: the later time, a scalar or [B].
      s: the earlier time; where it is 0 the term is the reconstruction.
      levels: number of values that a pixel can have; None for data with a density.

    Raises: ValueError if x0 and x_t are not floating-point arrays of one shape, not
      0 <= s <= t <= 1, or levels < 2.
    Source: Ho, Jain & Abbeel 2020, eq. 5 and 13 (arXiv:2006.11239).
    """
    x0, x_t = checks.state("x0", x0), checks.state("x_t", x_t)
    mean, log_variance = reverse(x_t, t, s)
    last = expand(jnp.asarray(s) <= 0, x0)
    # What the data says: the posterior. To s = 0 it has no variance, and the term is another one.
    true_mean, _ = posterior(p, x0, x_t, t, s)
    true_log_variance = jnp.where(last, 0.0, expand(_log_variance(p, s, t, s), x0))
    kl = gaussian_kl(true_mean, true_log_variance, mean, log_variance)
    if levels is None:
        distance = (x0 - mean) * jnp.exp(-log_variance / 2)
        log_likelihood = -(distance**2 + log_variance + _LOG_2_PI) / 2
    else:
        log_likelihood = discretized_log_likelihood(x0, mean, log_variance, levels)
    return _bits_per_dim(jnp.where(last, -log_likelihood, kl))


def prior_term(p: Process, x0: Array, t: float = 1.0) -> Array:
    """KL(q(x_t | x0) ‖ N(0, sigma(t)²)) in bits per dimension, [B]: 0 where alpha is.

    Sampling starts from noise of the process's own level (`sampling.start_noise`).

    Args:
      p: the process.
      x0: data [B, …].
      t: where sampling starts, with sigma(t) > 0.

    Raises: ValueError if x0 is not a floating-point array, or t lies outside [0, 1].
    """
    x0 = checks.state("x0", x0)
    log_variance = 2 * jnp.log(p.sigma(t))
    return _bits_per_dim(gaussian_kl(p.alpha(t) * x0, log_variance, 0.0, log_variance))


def _bits_per_dim(nats: Array) -> Array:
    return nats.reshape(nats.shape[0], -1).mean(1) / _LOG_2


def evaluate(
    reverse: Reverse, p: Process, x0: Array, times, key: Array, levels: int | None = None
) -> Bound:
    """All terms of the bound for a batch, with a draw of x_t of its own for each step.

    Args:
      reverse: the reverse model.
      p: the process.
      x0: data [B, …].
      times: [n + 1], strictly falling to 0.
      key: a random key; step i uses ``fold_in(key, i)``.
      levels: number of values that a pixel can have; None for data with a density.

    Raises: ValueError if the times do not fall strictly to 0 within [0, 1], x0 is not a
      floating-point array, or levels < 2.
    Source: Ho, Jain & Abbeel 2020, eq. 5 (arXiv:2006.11239).

    >>> from diffusion_course import process
    >>> p, x0 = process.vp_cosine(), jnp.array([[0.5], [-0.25]])
    >>> reverse = fixed(p, lambda x, t: x0, first=0.5, variance="posterior")
    >>> terms = evaluate(reverse, p, x0, [1.0, 0.5, 0.0], jax.random.key(0))
    >>> print(terms.steps.shape, terms.steps[0])  # a denoiser that knows the data
    (2, 2) [0. 0.]
    """
    x0 = checks.state("x0", x0)
    levels = None if levels is None else checks.integer("levels", levels, minimum=2)
    if np.ndim(times) != 1 or np.shape(times)[0] < 2:
        raise ValueError(
            f"times must have shape [n + 1] with n >= 1, got shape {list(np.shape(times))}"
        )
    checks.time("times", times)
    times = jnp.asarray(times, jnp.float32)
    if checks.concrete(times) and not (times[-1] == 0 and (np.diff(times) < 0).all()):
        raise ValueError(f"times must fall strictly and end at 0, got {times}")

    def term(inputs):
        i, t, s = inputs
        eps = jax.random.normal(jax.random.fold_in(key, i), x0.shape, jnp.float32)
        return step_term(reverse, p, x0, add_noise(p, x0, eps, t), t, s, levels)

    steps = jax.lax.map(term, (jnp.arange(len(times) - 1), times[:-1], times[1:]))
    return Bound(prior_term(p, x0, times[0]), steps)


def hybrid_loss(
    model, p: Process, kind: str, x0: Array, cond: Array | None, key: Array, *,
    T: int, levels: int | None, weight: float = 1e-3,
) -> Array:  # fmt: skip
    """L_simple, which trains the mean, plus `weight` times the bound, which trains the variance.

    The bound passes no gradient on to the mean. One step is drawn for each example, and its term
    counts T times, which estimates the sum over all steps.

    Args:
      model: ``model(x, t, cond) -> [B, …, 2C]``, see `learned`.
      p: the process.
      kind: what the first half predicts.
      x0: data [B, …].
      cond: labels [B] or None.
      key: a random key.
      T: number of steps of the chain.
      levels: number of values that a pixel can have; None for data with a density.
      weight: of the bound in bits per dimension.

    Returns: a scalar.
    Raises: ValueError if x0 is not a floating-point array, cond is for another number of examples,
      T < 1, levels < 2, or weight is negative or not finite.
    Source: Nichol & Dhariwal 2021, eq. 16 (arXiv:2102.09672).
    """
    x0, T = checks.state("x0", x0), checks.integer("T", T, minimum=1)
    checks.within("weight", weight, 0, np.inf, ends="[)")
    key_time, key_noise = jax.random.split(key)
    # A step for each example, and its noisy data.
    t = discrete_times(T)(key_time, x0.shape[0])
    eps = jax.random.normal(key_noise, x0.shape, jnp.float32)
    x_t = add_noise(p, x0, eps, t)
    # The simple loss of the first half of the output.
    output = network_output(model, p, kind, x_t, t, cond)
    error = (split_output(output)[0] - target(kind, p, x0, eps, t)) ** 2
    # The bound's term of that step. The same output again, instead of a second evaluation.
    reverse = learned(lambda *_: output, p, kind, 1 / T, cond, stop_mean=True)
    # A multiple of 1/T less 1/T is not always exactly the next one in float32.
    s = jnp.round(t * T - 1) / T
    return error.mean() + weight * T * step_term(reverse, p, x0, x_t, t, s, levels).mean()
