"""The design space of EDM: preconditioning, noise levels for training, and churn for sampling.

A noise level is written sigma as in the papers. In another process than VE it is the ratio
sigma(t)/alpha(t), the noise level of x_t/alpha(t).
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion_course import checks
from diffusion_course.losses import TimeSampler
from diffusion_course.process import Process, time_at, transition
from diffusion_course.samplers import Sampler, memoryless

MOST_CHURN = math.sqrt(2) - 1  # at most the noise that is there is added once more


class Preconditioning(NamedTuple):
    """``D(x) = skip·x + out·F(scale·x, noise)`` of a network F, at noise levels of any shape.

    Attributes:
      skip: c_skip, how much of the input is handed through.
      out: c_out, the size of what the network adds.
      scale: c_in, which gives the input unit variance.
      noise: c_noise, the noise level as the network is told of it.
    """

    skip: Array
    out: Array
    scale: Array
    noise: Array


def preconditioning(sigma, sigma_data: float = 0.5) -> Preconditioning:
    """The four coefficients of EDM.

    They follow from three demands on x = x0 + sigma·eps. The network's input and its training
    target (x0 − skip·x)/out have unit mean square, and out, the factor of the network's error, is
    the least possible. sigma_data² is the *mean square* of the data; it equals the variance only of
    data that are centred at 0.

    Args:
      sigma: noise levels of any shape, positive.
      sigma_data: root mean square of the data, positive.

    Returns: the coefficients, float32 of sigma's shape.
    Raises: ValueError for a noise level or a sigma_data that is not positive.
    Source: Karras et al. 2022, table 1 and appendix B.6 (arXiv:2206.00364).

    >>> c = preconditioning(0.5, sigma_data=0.5)  # as much noise as data
    >>> print(*(c.round(3) for c in c[:3]))
    0.5 0.354 1.414
    """
    checks.above("sigma", sigma, 0)
    sigma_data = checks.number("sigma_data", sigma_data)
    checks.above("sigma_data", sigma_data, 0)
    sigma = jnp.asarray(sigma, jnp.float32)
    total = jnp.hypot(sigma, sigma_data)
    return Preconditioning(
        skip=(sigma_data / total) ** 2,
        out=sigma * (sigma_data / total),
        scale=1 / total,
        noise=jnp.log(sigma) / 4,
    )


def log_normal_times(p: Process, mean: float = -1.2, std: float = 1.2) -> TimeSampler:
    """Times whose noise level is log-normal: log(sigma/alpha) ~ N(mean, std²).

    Most of the training then happens where the loss can still be lowered. Levels beyond those of
    the process are drawn as its last one. On a rectified flow, where sigma/alpha = t/(1 − t), these
    are the logit-normal times of flow matching (Esser et al. 2024, section 3.1, arXiv:2403.03206).

    Args:
      p: the process.
      mean: of the logarithm.
      std: of the logarithm, positive.

    Returns: a time sampler ``(key, n) -> [n]`` for `losses.diffusion_loss`; independent draws.
    Raises: ValueError for a mean that is not finite, or a std that is not positive.
    Source: Karras et al. 2022, table 1 (arXiv:2206.00364).
    """
    checks.within("mean", mean, -np.inf, np.inf, ends="()")
    checks.above("std", std, 0)

    def times(key, n):
        n = checks.integer("n", n, minimum=1)
        log_sigma = mean + std * jax.random.normal(key, (n,), jnp.float32)
        # Inside (0, 1), as all training times: at t = 0 there is nothing to predict.
        return jnp.clip(time_at(p, -2 * log_sigma), 1e-5, 1 - 1e-5)

    return times


def churn_share(amount: float, n: int) -> float:
    """gamma of each of n steps for S_churn = amount: ``min(amount/n, sqrt(2) − 1)``.

    Args:
      amount: S_churn, at least 0.
      n: number of steps, at least 1.

    Raises: ValueError for another amount or number.
    Source: Karras et al. 2022, algorithm 2 (arXiv:2206.00364).

    >>> churn_share(0.5, 50), round(churn_share(100.0, 50), 4)
    (0.01, 0.4142)
    """
    checks.within("amount", amount, 0, np.inf, ends="[)")
    return min(amount / checks.integer("n", n, 1), MOST_CHURN)


def churn(
    sampler: Sampler,
    p: Process,
    gamma,
    *,
    noise: float = 1.0,
    low: float = 0.0,
    high: float = math.inf,
) -> Sampler:
    """A sampler that adds fresh noise before each of its steps: from sigma to (1 + gamma)·sigma.

    With `samplers.heun` in it, it is EDM's stochastic sampler. With gamma = 0 or noise levels
    outside [low, high] it is the sampler itself. Where the higher level would lie beyond t = 1
    there is no time for it, and no noise is added: so it is in the first step of every grid.

    Args:
      sampler: one without memory of earlier steps, such as `samplers.heun`.
      p: the process.
      gamma: share by which the noise level rises, in [0, sqrt(2) − 1]; it may be traced. See
        `churn_share`.
      noise: standard deviation of the fresh noise, S_noise; a little above 1 makes up for a
        network that removes too much.
      low: the lowest noise level sigma/alpha at which noise is added, S_tmin.
      high: the highest, S_tmax.

    Raises: ValueError for a gamma outside its range, a noise or low below 0, or low >= high; where
      it runs, for a sampler with a memory.
    Source: Karras et al. 2022, algorithm 2 (arXiv:2206.00364).
    """
    gamma = checks.number("gamma", gamma)
    # float32 rounds the end of the range up.
    checks.within("gamma", gamma, 0, MOST_CHURN * (1 + 1e-6))
    noise = checks.non_negative("noise", noise)
    checks.within("low", low, 0, np.inf, ends="[)")
    if not low < high:
        raise ValueError(f"high must be above low, {low}, got {high}")

    def step(D, x, t, s, key, state):
        fresh, inner = jax.random.split(key)
        # Up to the time with the higher noise level …
        log_snr = p.log_snr(t)
        wanted = log_snr - 2 * jnp.log1p(gamma)
        level = jnp.exp(-log_snr / 2)
        churned = (gamma > 0) & (low <= level) & (level <= high) & (wanted > p.log_snr(1.0))
        higher = jnp.where(churned, jnp.maximum(time_at(p, wanted), t), t)
        scale, variance = transition(p, higher, t)
        # Without churn the variance is 0, where a root has no gradient.
        deviation = noise * jnp.sqrt(jnp.where(churned, variance, 1.0))
        added = deviation * jax.random.normal(fresh, x.shape, x.dtype)
        x = jnp.where(churned, scale * x + added, x)
        # … and from there down to s.
        return sampler.step(D, x, higher, s, inner, state)

    return Sampler(memoryless(sampler, "fresh noise would make wrong"), step)
