"""Samplers: pairs of pure functions that move a state from time t to an earlier time s.

A sampler knows a process and calls a denoiser; it holds no counters and no schedule. The grid of
times belongs to `diffusion_course.sampling`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from diffusion_course.denoiser import Denoiser
from diffusion_course.process import Process, concrete, levels, posterior, transition


class Sampler(NamedTuple):
    """``state = init(x)``; ``x, state = step(D, x, t, s, key, state)`` moves from t to s < t.

    Attributes:
      init: makes the sampler's memory from the start state x [B, …]; () for one that has none.
      step: takes scalar times t > s >= 0 and a random key of its own.
    """

    init: Callable[[Array], Any]
    step: Callable[[Denoiser, Array, Array, Array, Array, Any], tuple[Array, Any]]


def _no_memory(x: Array) -> tuple:
    return ()


def ddpm(process: Process, variance: str = "posterior") -> Sampler:
    """Ancestral sampler: draws x_s from q(x_s | x_t, x0 = D(x_t, t)).

    One evaluation per step, on any grid. The step to s = 0 adds no noise and returns D(x, t).

    Args:
      process: signal and noise levels.
      variance: "posterior" is the variance of q(x_s | x_t, x0), exact when the data is one point;
        "transition" is that of q(x_t | x_s), exact when the data is standard normal.

    Raises: ValueError for another variance.
    Source: Ho, Jain & Abbeel 2020, algorithm 2 and section 3.2 (arXiv:2006.11239).
    """
    if variance not in ("posterior", "transition"):
        raise ValueError(f'variance must be "posterior" or "transition", got {variance!r}')

    def step(D, x, t, s, key, state):
        mean, posterior_variance = posterior(process, D(x, t), x, t, s)
        if variance == "posterior":
            chosen = posterior_variance
        else:
            chosen = jnp.where(s > 0, transition(process, t, s)[1], 0.0)
        return mean + jnp.sqrt(chosen) * jax.random.normal(key, x.shape, x.dtype), state

    return Sampler(_no_memory, step)


def ddim(process: Process, eta: float = 0.0) -> Sampler:
    """Denoising diffusion implicit sampler.

    One evaluation per step. ``eta = 0`` is deterministic; ``eta = 1`` has the variance of the
    DDPM posterior q(x_s | x_t, x0) for *any* s < t, so a strided grid needs no special case.

    Args:
      process: signal and noise levels alpha(t), sigma(t).
      eta: the noise's standard deviation as a share of the posterior's, in [0, 1].

    Raises:
      ValueError: eta is outside [0, 1].

    Source: Song, Meng & Ermon 2021, eq. 12 and 16 (arXiv:2010.02502).
    """
    if concrete(eta) and not 0 <= eta <= 1:
        raise ValueError(f"eta must be in [0, 1], got {eta}")

    def step(D, x, t, s, key, state):
        alpha_t, sigma_t = levels(process, t, x)
        alpha_s, sigma_s = levels(process, s, x)
        x0 = D(x, t)
        eps = (x - alpha_t * x0) / sigma_t
        noise_variance = eta**2 * posterior(process, x0, x, t, s)[1]
        direction = jnp.sqrt(sigma_s**2 - noise_variance)
        noise = jnp.sqrt(noise_variance) * jax.random.normal(key, x.shape, x.dtype)
        return alpha_s * x0 + direction * eps + noise, state

    return Sampler(_no_memory, step)
