"""Samplers: pairs of pure functions that move a state from time t to an earlier time s.

A sampler knows a process and calls a denoiser; it holds no counters and no schedule. The grid of
times belongs to `diffusion_course.sampling`.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from diffusion_course import checks
from diffusion_course.denoiser import Denoiser
from diffusion_course.process import Process, expand, levels, posterior, time_at, transition
from diffusion_course.steps import (
    can_correct,
    denoise,
    estimates,
    has_signal,
    hold,
    root,
    state_at,
)


class Sampler(NamedTuple):
    """``state = init(x)``; ``x, state = step(D, x, t, s, key, state)`` moves from t to s < t.

    Attributes:
      init: makes the sampler's memory from the start state x [B, …]; () for one that has none.
      step: takes scalar times t > s >= 0 and a random key of its own.
    """

    init: Callable[[Array], Any]
    step: Callable[[Denoiser, Array, Array, Array, Array, Any], tuple[Array, Any]]


def no_memory(x: Array) -> tuple:
    """The `init` of a sampler that remembers nothing."""
    return ()


def memoryless(sampler: Sampler, why: str) -> Callable[[Array], Any]:
    """The sampler's `init`, which refuses one that remembers earlier steps.

    Args:
      sampler: that others are made from.
      why: what spoils a memory, for the message: "repeats would confuse".
    """

    def init(x):
        state = sampler.init(x)
        if jax.tree.leaves(state):
            raise ValueError(
                f"sampler must have no memory of earlier steps, which {why}; "
                f"got one that remembers {len(jax.tree.leaves(state))} arrays"
            )
        return state

    return init


def ddpm(p: Process, variance: str = "posterior", temperature: float = 1.0) -> Sampler:
    """Ancestral sampler: draws x_s from q(x_s | x_t, x0 = D(x_t, t)).

    One evaluation per step, on any grid. The step to s = 0 adds no noise and returns D(x, t).

    Args:
      p: signal and noise levels.
      variance: "posterior" is the variance of q(x_s | x_t, x0), exact when the data is one point;
        "transition" is that of q(x_t | x_s), exact when the data is standard normal.
      temperature: factor of the noise, at least 0; below 1 the samples are less diverse.

    Raises: ValueError if variance is neither of the two, or temperature is negative.
    Source: Ho, Jain & Abbeel 2020, algorithm 2 and section 3.2 (arXiv:2006.11239).

    >>> from diffusion_course import process
    >>> step = ddpm(process.vp_cosine()).step
    >>> x, D = jnp.ones((2, 3)), lambda x, t: 0.5 * x
    >>> x_s, _ = step(D, x, 0.2, 0.0, jax.random.key(0), ())
    >>> x_s.tolist()
    [[0.5, 0.5, 0.5], [0.5, 0.5, 0.5]]
    """
    checks.one_of("variance", variance, ("posterior", "transition"))
    temperature = checks.non_negative("temperature", temperature)

    def step(D, x, t, s, key, state):
        # What the denoiser sees at t, and the Gaussian that it implies at s.
        mean, fresh = posterior(p, denoise(D, x, t), x, t, s)
        if variance == "transition":
            fresh = jnp.where(s > 0, transition(p, t, s)[1], 0.0)
        # A draw from it.
        noise = jax.random.normal(key, x.shape, x.dtype)
        return mean + temperature * root(fresh) * noise, state

    return Sampler(no_memory, step)


def ddim(p: Process, eta: float = 0.0, temperature: float = 1.0) -> Sampler:
    """Denoising diffusion implicit sampler.

    One evaluation per step. ``eta = 0`` is deterministic; ``eta = 1`` has the variance of the
    DDPM posterior q(x_s | x_t, x0) for *any* s < t, so a strided grid needs no special case.

    Args:
      p: signal and noise levels alpha(t), sigma(t).
      eta: the noise's standard deviation as a share of the posterior's, in [0, 1].
      temperature: factor of the fresh noise, at least 0; it changes nothing else in the step.

    Raises: ValueError if eta is outside [0, 1] or temperature is negative.
    Source: Song, Meng & Ermon 2021, eq. 12 and 16 (arXiv:2010.02502).

    >>> from diffusion_course import process
    >>> step = ddim(process.rectified_flow()).step  # alpha = 1 − t, sigma = t
    >>> x, D = jnp.full((1, 1), 4.0), lambda x, t: 0 * x  # x0 = 0: the state shrinks with t
    >>> x_s, _ = step(D, x, 0.8, 0.4, jax.random.key(0), ())
    >>> x_s.tolist()
    [[2.0]]
    """
    eta = checks.number("eta", eta)
    checks.within("eta", eta, 0, 1)
    temperature = checks.non_negative("temperature", temperature)

    def step(D, x, t, s, key, state):
        alpha_s, sigma_s = levels(p, s, x)
        # What the denoiser sees at t.
        x0, eps = estimates(p, D, x, t)
        # How much of the noise at s is fresh, and how much of the old noise stays.
        fresh = eta**2 * posterior(p, x0, x, t, s)[1]
        kept = root(sigma_s**2 - fresh)
        # Both together.
        noise = jax.random.normal(key, x.shape, x.dtype)
        return alpha_s * x0 + kept * eps + temperature * root(fresh) * noise, state

    return Sampler(no_memory, step)


def repaint(sampler: Sampler, p: Process, repeats: int) -> Sampler:
    """A sampler that takes every step several times, noising the state again in between.

    For inpainting: each time, the unknown pixels can agree better with the known ones. It needs
    `repeats` times the evaluations, and one for the step to s = 0. It cannot be differentiated
    backwards: `jax.grad` raises an error.

    Args:
      sampler: one without memory, such as `ddpm` or `ddim`.
      p: the process.
      repeats: how often each step is taken, at least 1.

    Raises: ValueError if repeats is below 1 or, where it runs, if the sampler has a memory.
    Source: Lugmayr et al. 2022, algorithm 1 (arXiv:2201.09865), with jumps of one step.
    """
    repeats = checks.integer("repeats", repeats, 1)

    def step(D, x, t, s, key, state):
        scale, variance = transition(p, t, jnp.where(s > 0, s, t / 2))

        def again(i, carry):
            x, state = carry
            down, up = jax.random.split(jax.random.fold_in(key, i))
            # Down to s …
            x_s, state = sampler.step(D, x, t, s, down, state)
            # … and, but for the last time, back up to t.
            back = scale * x_s + root(variance) * jax.random.normal(up, x.shape, x.dtype)
            return jnp.where((i < repeats - 1) & (s > 0), back, x_s), state

        # To s = 0 there is one step: from the data there is no way back by a transition.
        return jax.lax.fori_loop(0, jnp.where(s > 0, repeats, 1), again, (x, state))

    return Sampler(memoryless(sampler, "repeats would confuse"), step)


# --------------------------------------------------------------------------------------------
# Solvers of the probability flow. For fixed x0 and eps the state moves along
# alpha(s)·x0 + sigma(s)·eps, so in the coordinate sigma/alpha the slope of x/alpha is eps: DDIM is
# Euler's method there, and the solvers below are better averages of eps along the way.
# --------------------------------------------------------------------------------------------


def _slope_factor(p: Process, t, s, like: Array) -> Array:
    """What a unit of eps adds to x_s between t and s; 0 where time t has no signal.

    ``sigma_s − alpha_s·sigma_t/alpha_t``.
    """
    alpha_t, sigma_t = levels(p, t, like)
    alpha_s, sigma_s = levels(p, s, like)
    signal = expand(has_signal(p, t), like)
    return jnp.where(signal, sigma_s - alpha_s * sigma_t / jnp.where(signal, alpha_t, 1.0), 0.0)


def euler(p: Process) -> Sampler:
    """Euler's method for the probability flow in time: ``x_s = x_t + (s − t)·velocity``.

    One evaluation per step; order 1. It equals `ddim` for rectified flow and for `edm` with
    rho = 1, whose paths are straight in time. The step to s = 0 returns D(x, t).

    Args:
      p: signal and noise levels, and their derivatives.

    Source: Song et al. 2021, eq. 13 (arXiv:2011.13456); Lipman et al. 2023 (arXiv:2210.02747).
    """

    def step(D, x, t, s, key, state):
        x0, eps = estimates(p, D, x, t)
        velocity = expand(p.d_alpha(t), x) * x0 + expand(p.d_sigma(t), x) * eps
        return jnp.where(s > 0, x + (s - t) * velocity, x0), state

    return Sampler(no_memory, step)


def heun(p: Process) -> Sampler:
    """Heun's method in the coordinate sigma/alpha: the mean of eps at both ends of the step.

    Two evaluations per step; order 2. A step from a state without signal, and the step to s = 0,
    which returns D(x, t), are DDIM's and cost one evaluation.

    Args:
      p: signal and noise levels.

    Source: Karras et al. 2022, algorithm 1 (arXiv:2206.00364).
    """

    def step(D, x, t, s, key, state):
        # Euler's step in sigma/alpha, which is DDIM's.
        x0, eps = estimates(p, D, x, t)
        predicted = state_at(p, x0, eps, s)

        # Second-order correction.
        def corrected():
            there = estimates(p, D, predicted, s)[1]
            return predicted + _slope_factor(p, t, s, x) * (there - eps) / 2

        return jax.lax.cond(can_correct(p, t, s), corrected, lambda: predicted), state

    return Sampler(no_memory, step)


def dpm_solver_pp_2m(p: Process) -> Sampler:
    """DPM-Solver++(2M): extrapolates x0 from this step and the one before.

    One evaluation per step; order 2. The first step is DDIM's, since nothing came before it, and
    so is the one to s = 0, which returns D(x, t).

    The extrapolation is along half the log-SNR. Where the step before began without signal that
    is −infinity there; then it is along alpha/sigma, which is 0, by at most as far as x0 is known.

    Args:
      p: signal and noise levels.

    Source: Lu et al. 2022, algorithm 2 (arXiv:2211.01095).
    """

    def extrapolation(r, t, s):
        """The factor of x0(t) − x0(r) in the mean of x0 from t to s; 0 where there is none."""
        at_r, at_t, at_s = (p.log_snr(time) / 2 for time in (r, t, s))
        signal = has_signal(p, r)
        # From r with signal along half the log-SNR; else along alpha/sigma, in units of its value
        # at t, as it is 0 at r.
        growth = jnp.expm1(jnp.minimum(at_s - at_t, math.log(2)))
        known, ahead = jnp.where(signal, at_t - at_r, 1.0), jnp.where(signal, at_s - at_t, growth)
        usable = (r > t) & can_correct(p, t, s) & (known > 0)
        return jnp.where(usable, ahead / (2 * jnp.where(usable, known, 1.0)), 0.0)

    def init(x):
        return jnp.zeros_like(x), jnp.float32(0.0)  # x0 and time of the step before; 0: none yet

    def step(D, x, t, s, key, state):
        before, r = state
        x0 = denoise(D, x, t)
        # Second order: x0 as it will be on average between t and s.
        ahead = x0 + extrapolation(r, t, s) * (x0 - before)
        # DDIM's step with it.
        return hold(p, x, ahead, t, s), (x0, jnp.asarray(t, jnp.float32))

    return Sampler(init, step)


def dpm_solver(p: Process, order: int = 2) -> Sampler:
    """DPM-Solver, single step: eps at one or two times between t and s, spaced in log-SNR.

    `order` evaluations per step. A step from a state without signal, and the step to s = 0, which
    returns D(x, t), are DDIM's and cost one. Order 1 is `ddim`.

    Args:
      p: signal and noise levels.
      order: 1, 2 or 3.

    Raises: ValueError if order is none of these.
    Source: Lu et al. 2022, eq. 3.7 and algorithms 1 and 2 (arXiv:2206.00927).
    """
    order = checks.integer("order", order, 1, 3)
    higher_order = (None, _second_order, _third_order)[order - 1]

    def step(D, x, t, s, key, state):
        x0, eps = estimates(p, D, x, t)
        first_order = state_at(p, x0, eps, s)
        if order == 1:
            return first_order, state
        moved = jax.lax.cond(
            can_correct(p, t, s),
            lambda: first_order + higher_order(p, D, x0, eps, t, s),
            lambda: first_order,
        )
        return moved, state

    return Sampler(no_memory, step)


def _second_order(p: Process, D: Denoiser, x0: Array, eps: Array, t, s) -> Array:
    """What order 2 adds to DDIM's step: eps in the middle in place of eps at t."""
    middle = _time_between(p, t, s, 1 / 2)
    there = estimates(p, D, state_at(p, x0, eps, middle), middle)[1]
    return _slope_factor(p, t, s, x0) * (there - eps)


def _third_order(p: Process, D: Denoiser, x0: Array, eps: Array, t, s) -> Array:
    """What order 3 adds to DDIM's step."""
    length = (p.log_snr(s) - p.log_snr(t)) / 2  # half a log-SNR is the paper's lambda
    # Where two levels coincide so do the states, whatever the length; e^80 is a float32.
    length = jnp.where(length > 0, jnp.minimum(length, 80.0), 1.0)

    def bend(u, h):  # what a slope of eps in log-SNR adds by the time u, h further on
        return -expand(p.sigma(u), x0) * (jnp.expm1(h) / h - 1)

    # A third of the way, by DDIM; then two thirds of it, with the slope found there.
    first, second = _time_between(p, t, s, 1 / 3), _time_between(p, t, s, 2 / 3)
    change = estimates(p, D, state_at(p, x0, eps, first), first)[1] - eps
    x = state_at(p, x0, eps, second) + 2 * bend(second, 2 / 3 * length) * change
    # Third-order correction.
    change = estimates(p, D, x, second)[1] - eps
    return 3 / 2 * bend(s, length) * change


def _time_between(p: Process, t, s, share: float) -> Array:
    """The time whose log-SNR lies this share of the way from t's to s's."""
    wanted = p.log_snr(t) + share * (p.log_snr(s) - p.log_snr(t))
    return jnp.clip(time_at(p, wanted), s, t)


def pndm(p: Process) -> Sampler:
    """PNDM: a linear multistep average of the last four eps, after three Runge-Kutta steps.

    Made for grids that are uniform in time. Four evaluations in each of the first three steps, one
    from then on; order 2. A step from a state without signal, and the step to s = 0, which returns
    D(x, t), are DDIM's and cost one evaluation.

    Args:
      p: signal and noise levels.

    Source: Liu et al. 2022, eq. 12 and 13 and algorithm 2 (arXiv:2202.09778).
    """

    def init(x):
        return jnp.zeros((3, *x.shape), x.dtype), jnp.zeros((), jnp.int32)

    def step(D, x, t, s, key, state):
        before, count = state  # the last three eps, the newest first
        x0, eps = estimates(p, D, x, t)

        def along(slope, u):  # DDIM's step to u with another eps
            return state_at(p, x0, eps, u) + _slope_factor(p, t, u, x) * (slope - eps)

        def runge_kutta():
            middle = (t + s) / 2
            second = estimates(p, D, along(eps, middle), middle)[1]
            third = estimates(p, D, along(second, middle), middle)[1]
            fourth = estimates(p, D, along(third, s), s)[1]
            return along((eps + 2 * second + 2 * third + fourth) / 6, s)

        def multistep():
            return along((55 * eps - 59 * before[0] + 37 * before[1] - 9 * before[2]) / 24, s)

        # DDIM's step where nothing can be corrected; else three steps that collect four eps, and
        # then the average of four.
        moved = jax.lax.cond(
            can_correct(p, t, s),
            lambda: jax.lax.cond(count < 3, runge_kutta, multistep),
            lambda: state_at(p, x0, eps, s),
        )
        return moved, (jnp.concatenate([eps[None], before[:2]]), count + 1)

    return Sampler(init, step)
