"""Samplers: pairs of pure functions that move a state from time t to an earlier time s.

A sampler knows a process and calls a denoiser; it holds no counters and no schedule. The grid of
times belongs to `diffusion_course.sampling`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from diffusion_course.checks import concrete
from diffusion_course.denoiser import Denoiser
from diffusion_course.process import Process, expand, levels, posterior, transition


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


def ddpm(process: Process, variance: str = "posterior", temperature: float = 1.0) -> Sampler:
    """Ancestral sampler: draws x_s from q(x_s | x_t, x0 = D(x_t, t)).

    One evaluation per step, on any grid. The step to s = 0 adds no noise and returns D(x, t).

    Args:
      process: signal and noise levels.
      variance: "posterior" is the variance of q(x_s | x_t, x0), exact when the data is one point;
        "transition" is that of q(x_t | x_s), exact when the data is standard normal.
      temperature: factor of the noise; below 1 the samples are less diverse.

    Raises: ValueError for another variance or a negative temperature.
    Source: Ho, Jain & Abbeel 2020, algorithm 2 and section 3.2 (arXiv:2006.11239).
    """
    if variance not in ("posterior", "transition"):
        raise ValueError(f'variance must be "posterior" or "transition", got {variance!r}')
    _check_temperature(temperature)

    def step(D, x, t, s, key, state):
        mean, posterior_variance = posterior(process, D(x, t), x, t, s)
        if variance == "posterior":
            chosen = posterior_variance
        else:
            chosen = jnp.where(s > 0, transition(process, t, s)[1], 0.0)
        noise = temperature * jnp.sqrt(chosen) * jax.random.normal(key, x.shape, x.dtype)
        return mean + noise, state

    return Sampler(_no_memory, step)


def ddim(process: Process, eta: float = 0.0, temperature: float = 1.0) -> Sampler:
    """Denoising diffusion implicit sampler.

    One evaluation per step. ``eta = 0`` is deterministic; ``eta = 1`` has the variance of the
    DDPM posterior q(x_s | x_t, x0) for *any* s < t, so a strided grid needs no special case.

    Args:
      process: signal and noise levels alpha(t), sigma(t).
      eta: the noise's standard deviation as a share of the posterior's, in [0, 1].
      temperature: factor of the noise, beside eta: the rest of the step knows nothing of it.

    Raises:
      ValueError: eta is outside [0, 1], or temperature is negative.

    Source: Song, Meng & Ermon 2021, eq. 12 and 16 (arXiv:2010.02502).
    """
    if concrete(eta) and not 0 <= eta <= 1:
        raise ValueError(f"eta must be in [0, 1], got {eta}")
    _check_temperature(temperature)

    def step(D, x, t, s, key, state):
        alpha_t, sigma_t = levels(process, t, x)
        alpha_s, sigma_s = levels(process, s, x)
        x0 = D(x, t)
        eps = (x - alpha_t * x0) / sigma_t
        noise_variance = eta**2 * posterior(process, x0, x, t, s)[1]
        direction = jnp.sqrt(sigma_s**2 - noise_variance)
        noise = jnp.sqrt(noise_variance) * jax.random.normal(key, x.shape, x.dtype)
        return alpha_s * x0 + direction * eps + temperature * noise, state

    return Sampler(_no_memory, step)


def _check_temperature(temperature) -> None:
    if concrete(temperature) and not temperature >= 0:
        raise ValueError(f"temperature must be at least 0, got {temperature}")


# --------------------------------------------------------------------------------------------
# Solvers of the probability flow. For fixed x0 and eps the state moves along
# alpha(s)·x0 + sigma(s)·eps, so in the coordinate sigma/alpha the slope of x/alpha is eps: DDIM is
# Euler's method there, and the solvers below are better averages of eps along the way.
# --------------------------------------------------------------------------------------------


def _look(process: Process, D: Denoiser, x: Array, t) -> tuple[Array, Array]:
    """The estimates of x0 and of eps at time t > 0."""
    alpha, sigma = levels(process, t, x)
    x0 = D(x, t)
    return x0, (x - alpha * x0) / sigma


def _gap(process: Process, t, s, like: Array) -> Array:
    """How x_s changes with the slope eps between t and s; 0 where alpha(t) is.

    ``sigma_s − alpha_s·sigma_t/alpha_t``. From a state without any signal there is no way in the
    coordinate sigma/alpha, and DDIM's step, which needs x0 only, stands alone.
    """
    alpha_t, sigma_t = levels(process, t, like)
    alpha_s, sigma_s = levels(process, s, like)
    signal = alpha_t > 0
    return jnp.where(signal, sigma_s - alpha_s * sigma_t / jnp.where(signal, alpha_t, 1.0), 0.0)


def _mix(process: Process, x0: Array, eps: Array, s) -> Array:
    alpha_s, sigma_s = levels(process, s, x0)
    return alpha_s * x0 + sigma_s * eps


def euler(process: Process) -> Sampler:
    """Euler's method for the probability flow in time: ``x_s = x_t + (s − t)·velocity``.

    One evaluation per step; order 1. It equals `ddim` for rectified flow and for `edm` with
    rho = 1, whose paths are straight in time. The step to s = 0 returns D(x, t).

    Source: Song et al. 2021, eq. 13 (arXiv:2011.13456); Lipman et al. 2023 (arXiv:2210.02747).
    """

    def step(D, x, t, s, key, state):
        x0, eps = _look(process, D, x, t)
        velocity = expand(process.d_alpha(t), x) * x0 + expand(process.d_sigma(t), x) * eps
        return jnp.where(s > 0, x + (s - t) * velocity, x0), state

    return Sampler(_no_memory, step)


def heun(process: Process) -> Sampler:
    """Heun's method in the coordinate sigma/alpha: the mean of eps at both ends of the step.

    Two evaluations per step, one for the step to s = 0, which returns D(x, t); order 2.

    Source: Karras et al. 2022, algorithm 1 (arXiv:2206.00364).
    """

    def step(D, x, t, s, key, state):
        x0, eps = _look(process, D, x, t)

        def corrected():
            predicted = _mix(process, x0, eps, s)
            there = _look(process, D, predicted, s)[1]
            return predicted + _gap(process, t, s, x) * (there - eps) / 2

        return jax.lax.cond(s > 0, corrected, lambda: x0), state

    return Sampler(_no_memory, step)


def dpm_solver_pp_2m(process: Process) -> Sampler:
    """DPM-Solver++(2M): extrapolates x0 from this step and the one before.

    One evaluation per step; order 2. The first step is DDIM's, and so is the one to s = 0, which
    returns D(x, t).

    Source: Lu et al. 2022, algorithm 2 (arXiv:2211.01095).
    """

    def init(x):
        return jnp.zeros_like(x), jnp.float32(jnp.inf)  # nothing before, from infinitely far

    def step(D, x, t, s, key, state):
        before, length_before = state
        alpha_t, sigma_t = levels(process, t, x)
        alpha_s, sigma_s = levels(process, s, x)
        length = (process.log_snr(s) - process.log_snr(t)) / 2
        # Infinite from alpha = 0 and to sigma = 0: there is nothing to extrapolate along.
        share = jnp.where(jnp.isfinite(length), length, 0.0) / (2 * length_before)
        x0 = D(x, t)
        ahead = x0 + share * (x0 - before)
        moved = sigma_s / sigma_t * x + (alpha_s - alpha_t * sigma_s / sigma_t) * ahead
        return moved, (x0, length)

    return Sampler(init, step)


def dpm_solver(process: Process, order: int = 2) -> Sampler:
    """DPM-Solver, single step: eps at one or two times between t and s, spaced in log-SNR.

    `order` evaluations per step, one for a step from alpha = 0 or to s = 0, which is DDIM's.
    Order 1 is `ddim`.

    Raises: ValueError for another order than 1, 2 or 3.
    Source: Lu et al. 2022, eq. 3.7 and algorithms 1 and 2 (arXiv:2206.00927).
    """
    steps = {1: _first_order, 2: _second_order, 3: _third_order}
    if order not in steps:
        raise ValueError(f"order must be 1, 2 or 3, got {order!r}")

    def step(D, x, t, s, key, state):
        x0, eps = _look(process, D, x, t)
        # Half a log-SNR is the paper's lambda.
        length = (process.log_snr(s) - process.log_snr(t)) / 2
        moved = jax.lax.cond(
            jnp.isfinite(length),
            lambda: steps[order](process, D, x0, eps, t, s, length),
            lambda: _mix(process, x0, eps, s),
        )
        return moved, state

    return Sampler(_no_memory, step)


def _first_order(process, D, x0, eps, t, s, length):
    return _mix(process, x0, eps, s)


def _second_order(process, D, x0, eps, t, s, length):
    middle = _between(process, t, s, 1 / 2)
    there = _look(process, D, _mix(process, x0, eps, middle), middle)[1]
    return _mix(process, x0, eps, s) + _gap(process, t, s, x0) * (there - eps)


def _third_order(process, D, x0, eps, t, s, length):
    first, second = _between(process, t, s, 1 / 3), _between(process, t, s, 2 / 3)

    def bend(u, h):  # what a slope of eps in log-SNR adds by the time u, h further on
        return -expand(process.sigma(u), x0) * (jnp.expm1(h) / h - 1)

    change = _look(process, D, _mix(process, x0, eps, first), first)[1] - eps
    x = _mix(process, x0, eps, second) + 2 * bend(second, 2 / 3 * length) * change
    change = _look(process, D, x, second)[1] - eps
    return _mix(process, x0, eps, s) + 3 / 2 * bend(s, length) * change


def _between(process: Process, t, s, share: float) -> Array:
    """The time whose log-SNR lies this share of the way from t's to s's, by bisection."""
    wanted = process.log_snr(t) + share * (process.log_snr(s) - process.log_snr(t))

    def halve(_, interval):
        low, high = interval
        middle = (low + high) / 2
        too_clean = process.log_snr(middle) > wanted
        return jnp.where(too_clean, middle, low), jnp.where(too_clean, high, middle)

    # float32 has 24 bits of t.
    low, high = jax.lax.fori_loop(0, 26, halve, (jnp.asarray(s), jnp.asarray(t)))
    return (low + high) / 2


def pndm(process: Process) -> Sampler:
    """PNDM: a linear multistep average of the last four eps, after three Runge-Kutta steps.

    Made for grids that are uniform in time. Four evaluations in each of the first three steps,
    one from then on; order 2. The step to s = 0 returns D(x, t).

    Source: Liu et al. 2022, eq. 12 and 13 and algorithm 2 (arXiv:2202.09778).
    """

    def init(x):
        return jnp.zeros((3, *x.shape), x.dtype), jnp.zeros((), jnp.int32)

    def step(D, x, t, s, key, state):
        before, count = state  # the last three eps, the newest first
        x0, eps = _look(process, D, x, t)

        def along(slope, u):  # DDIM's step to u with another eps
            return _mix(process, x0, eps, u) + _gap(process, t, u, x) * (slope - eps)

        def runge_kutta():
            middle = (t + s) / 2
            second = _look(process, D, along(eps, middle), middle)[1]
            third = _look(process, D, along(second, middle), middle)[1]
            fourth = _look(process, D, along(third, s), s)[1]
            return along((eps + 2 * second + 2 * third + fourth) / 6, s)

        def multistep():
            return along((55 * eps - 59 * before[0] + 37 * before[1] - 9 * before[2]) / 24, s)

        moved = jax.lax.cond(
            s > 0, lambda: jax.lax.cond(count < 3, runge_kutta, multistep), lambda: x0
        )
        return moved, (jnp.concatenate([eps[None], before[:2]]), count + 1)

    return Sampler(init, step)


def repaint(sampler: Sampler, process: Process, repeats: int) -> Sampler:
    """A sampler that takes every step several times, noising the state again in between.

    For inpainting: each time, the unknown pixels can agree better with the known ones. It needs
    `repeats` times the evaluations. Meant for samplers without memory.

    Raises: ValueError for repeats < 1.
    Source: Lugmayr et al. 2022, algorithm 1 (arXiv:2201.09865), with jumps of one step.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")

    def step(D, x, t, s, key, state):
        scale, variance = transition(process, t, jnp.where(s > 0, s, t / 2))

        def again(i, carry):
            x, state = carry
            down, up = jax.random.split(jax.random.fold_in(key, i))
            x_s, state = sampler.step(D, x, t, s, down, state)
            back = scale * x_s + jnp.sqrt(variance) * jax.random.normal(up, x.shape, x.dtype)
            return jnp.where((i < repeats - 1) & (s > 0), back, x_s), state

        # To s = 0 there is one step: from the data there is no way back by a transition.
        return jax.lax.fori_loop(0, jnp.where(s > 0, repeats, 1), again, (x, state))

    return Sampler(sampler.init, step)
