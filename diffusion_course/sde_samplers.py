"""Samplers made from the score: Langevin dynamics, and the reverse-time family with its dial eta.

The score is that of a denoiser, ``(alpha·D(x, t) − x)/sigma²``, so that guidance and conditioning
work here as everywhere.
"""

import jax
import jax.numpy as jnp
from jax import Array

from diffusion_course import checks
from diffusion_course.exponential import move
from diffusion_course.process import Process
from diffusion_course.samplers import Sampler, no_memory
from diffusion_course.sde import diffusion_squared, drift
from diffusion_course.steps import denoise, estimates, has_signal


def _langevin_step(x: Array, eps: Array, noise: Array, sigma, share) -> Array:
    """``x + h·score + √(2h)·noise`` for h = share·sigma², with the score as −eps/sigma.

    The square of sigma, which may be too small for float32, does not occur.
    """
    return x + sigma * (jnp.sqrt(2 * share) * noise - share * eps)


def langevin(p: Process, step_size: float, level: float) -> Sampler:
    """Unadjusted Langevin dynamics for the marginal at one time: ``x + h·score + √(2h)·noise``.

    One evaluation per step. Whatever the times of the grid are, the score is that at the time
    `level`: the grid only counts the steps. For N(0, v) the states have the variance
    ``v/(1 − h/(2v))`` in the long run, and diverge for h >= 2v. Between separate modes they
    rarely cross.

    Args:
      p: the process.
      step_size: h, in units of x².
      level: the time whose marginal is sampled, in (0, 1].

    Raises: ValueError unless step_size is positive and level is in (0, 1].
    Source: Roberts & Tweedie 1996 (Bernoulli 2); Song & Ermon 2019, eq. 4, with epsilon = 2h
    (arXiv:1907.05600).
    """
    step_size = checks.number("step_size", step_size)
    checks.above("step_size", step_size, 0)
    level = checks.number("level", level)
    checks.within("level", level, 0, 1, ends="(]")

    def step(D, x, t, s, key, state):
        eps, noise = estimates(p, D, x, level)[1], jax.random.normal(key, x.shape, x.dtype)
        sigma = p.sigma(level)
        return _langevin_step(x, eps, noise, sigma, step_size / sigma**2), state

    return Sampler(no_memory, step)


def annealed_langevin(p: Process, step_size: float = 0.1, steps: int = 10) -> Sampler:
    """Langevin dynamics at one noise level after the other, from the highest down.

    At time t it takes `steps` Langevin steps of size ``step_size·sigma(t)²``, and hands the state
    to time s as it is. The last step, to s = 0, ends with D(x, t). So it needs `steps` evaluations
    for each step of the grid, and one more at the end. Made for processes with alpha = 1, where
    neighbouring marginals overlap.

    Args:
      p: the process.
      step_size: h as a share of sigma², positive; the epsilon of the paper is 2·h at the lowest
        level.
      steps: number of Langevin steps at each level, at least 1.

    Raises: ValueError for another step_size or another number of steps.
    Source: Song & Ermon 2019, algorithm 1 (arXiv:1907.05600); the last denoising: Jolicoeur-
    Martineau et al. 2021 (arXiv:2009.05475).
    """
    step_size = checks.number("step_size", step_size)
    checks.above("step_size", step_size, 0)
    steps = checks.integer("steps", steps, 1)

    def step(D, x, t, s, key, state):
        def move(i, x):
            eps = estimates(p, D, x, t)[1]
            noise = jax.random.normal(jax.random.fold_in(key, i), x.shape, x.dtype)
            return _langevin_step(x, eps, noise, p.sigma(t), step_size)

        x = jax.lax.fori_loop(0, steps, move, x)
        return jax.lax.cond(s > 0, lambda: x, lambda: estimates(p, D, x, t)[0]), state

    return Sampler(no_memory, step)


def reverse_sde(p: Process, eta: float = 1.0) -> Sampler:
    """Euler–Maruyama for the reverse-time family, in time.

    ``dx = [f·x − (1 + eta²)/2·g²·score]·dt + eta·g·dw``, with dt = s − t < 0. All eta have the
    same marginals: eta = 0 is the probability flow, eta = 1 the reverse of the forward SDE.
    One evaluation per step; weak order 1. The step to s = 0 returns D(x, t).

    f and g² are infinite where alpha = 0. A step from there is `reverse_sde_log_snr`'s.

    Args:
      p: the process.
      eta: the noise's standard deviation as a share of g's, at least 0.

    Raises: ValueError if eta is negative.
    Source: Anderson 1982 (Stochastic Processes and their Applications 12); Song et al. 2021, eq. 6
    and 13 (arXiv:2011.13456); the family: Karras et al. 2022, eq. 6 (arXiv:2206.00364), where
    beta·sigma² is eta²·g²/2; Albergo et al. 2023 (arXiv:2303.08797), where epsilon is.

    >>> from diffusion_course import process
    >>> step = reverse_sde(process.rectified_flow(), eta=0.0).step  # f = −1/(1 − t)
    >>> x, D = jnp.full((1, 1), 4.0), lambda x, t: 0 * x  # x0 = 0: the state shrinks with t
    >>> x_s, _ = step(D, x, 0.5, 0.25, jax.random.key(0), ())
    >>> x_s.tolist()
    [[2.0]]
    """
    eta = checks.non_negative("eta", eta)
    exact = reverse_sde_log_snr(p, eta)

    def step(D, x, t, s, key, state):
        x0, eps = estimates(p, D, x, t)

        def in_time(t):
            f, g2 = drift(p, t), diffusion_squared(p, t)
            slope = f * x + (1 + eta**2) / 2 * g2 / p.sigma(t) * eps  # the score is −eps/sigma
            noise = jax.random.normal(key, x.shape, x.dtype)
            return x + slope * (s - t) + eta * jnp.sqrt(g2 * (t - s)) * noise

        in_log_snr = lambda t: exact.step(lambda x, t: x0, x, t, s, key, state)[0]  # noqa: E731
        return jax.lax.cond(has_signal(p, t) & (s > 0), in_time, in_log_snr, t), state

    return Sampler(no_memory, step)


def reverse_sde_log_snr(p: Process, eta: float = 1.0) -> Sampler:
    """The reverse-time family with its linear part solved exactly, in log-SNR.

    ``x_s = alpha_s·x0 + sigma_s·(√k·eps + √(1 − k)·noise)`` with ``k = (SNR_t/SNR_s)^(eta²)``,
    which is the solution of `reverse_sde`'s equation while x0 = D(x, t) stays as it is. One
    evaluation per step, finite at both ends of every process. eta = 0 is DDIM, eta = 1 is DDPM
    with the posterior's variance; in between `ddim` has 1 − k = eta²·(1 − SNR_t/SNR_s), the same
    for small steps.

    Args:
      p: the process.
      eta: the noise's standard deviation as a share of g's, at least 0.

    Raises: ValueError if eta is negative.
    Source: Lu et al. 2022 (arXiv:2211.01095) for eta = 0 and 1; Xue et al. 2023, eq. 14
    (arXiv:2305.14267), for every eta.

    >>> from diffusion_course import process
    >>> step = reverse_sde_log_snr(process.vp_cosine(), eta=1.5).step
    >>> x, D = jnp.ones((2, 3)), lambda x, t: 0.5 * x
    >>> x_s, _ = step(D, x, 0.2, 0.0, jax.random.key(0), ())
    >>> x_s.tolist()
    [[0.5, 0.5, 0.5], [0.5, 0.5, 0.5]]
    """
    eta = checks.non_negative("eta", eta)

    def step(D, x, t, s, key, state):
        noise = jax.random.normal(key, x.shape, x.dtype)
        return move(p, x, [denoise(D, x, t)], [t], s, eta, noise), state

    return Sampler(no_memory, step)


def predictor_corrector(
    predictor: Sampler, p: Process, snr: float = 0.16, corrections: int = 1
) -> Sampler:
    """A sampler's step to s, then Langevin steps at s that pull the state back to its marginal.

    The corrector's step is ``h = 2·(snr·‖noise‖/‖score‖)²``, so that its drift is `snr` times as
    long as its noise. The norms are Euclidean, of one example each, and averaged over the batch.
    Each correction costs one evaluation more. The step to s = 0 is the predictor's alone. It cannot
    be differentiated backwards: `jax.grad` raises an error.

    Args:
      predictor: a sampler, such as `reverse_sde(p)`.
      p: the process.
      snr: signal-to-noise ratio of a correction, positive.
      corrections: number of Langevin steps after each step, at least 1.

    Raises: ValueError for another snr or number of corrections.
    Source: Song et al. 2021, algorithms 1 and 4 (arXiv:2011.13456), epsilon there is h.
    """
    snr = checks.number("snr", snr)
    checks.above("snr", snr, 0)
    corrections = checks.integer("corrections", corrections, 1)

    def step(D, x, t, s, key, state):
        first, then = jax.random.split(key)
        x, state = predictor.step(D, x, t, s, first, state)

        def correct(i, x):
            eps = estimates(p, D, x, s)[1]
            noise = jax.random.normal(jax.random.fold_in(then, i), x.shape, x.dtype)
            size = _mean_norm(eps)  # of sigma·score; without noise there is nothing to correct
            ratio = jnp.where(size > 0, _mean_norm(noise) / jnp.where(size > 0, size, 1.0), 0.0)
            return _langevin_step(x, eps, noise, p.sigma(s), 2 * (snr * ratio) ** 2)

        return jax.lax.fori_loop(0, jnp.where(s > 0, corrections, 0), correct, x), state

    return Sampler(predictor.init, step)


def _mean_norm(x: Array) -> Array:
    return jnp.mean(jnp.linalg.norm(x.reshape(x.shape[0], -1), axis=-1))
