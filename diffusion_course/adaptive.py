"""A solver that chooses its own steps, so that the error of each stays below a tolerance.

It is no `Sampler`: it owns its loop, because nobody knows beforehand how many steps it will take.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from diffusion_course import checks
from diffusion_course.denoiser import Denoiser
from diffusion_course.process import Process, time_at
from diffusion_course.steps import denoise, hold

SAFETY, LEAST, MOST = 0.9, 0.2, 5.0  # factors of a new step's length
FIRST = 0.1  # length of the first attempt, in lambda


class Report(NamedTuple):
    """What a run has cost; int32 numbers.

    Attributes:
      evaluations: calls of the denoiser.
      accepted: steps that were taken.
      rejected: steps that were tried, found too long and tried again.
    """

    evaluations: Array
    accepted: Array
    rejected: Array


class _Run(NamedTuple):
    x: Array
    t: Array
    x0: Array  # what the denoiser says there
    h: Array  # length of the next attempt, in lambda = log(alpha/sigma)
    report: Report


def adaptive(
    p: Process,
    D: Denoiser,
    x_start: Array,
    tolerance: float,
    t_start: float = 1.0,
    t_end: float = 0.0,
    max_steps: int = 1000,
) -> tuple[Array, Report]:
    """Solves the probability flow with an embedded pair of orders 2 and 3, and step control.

    Both orders share their evaluations, and their difference estimates the error of the step. If
    the largest of the examples' rms errors, relative to ``tolerance·max(1, |x|)``, is above 1, the
    step is rejected and a shorter one is tried. An accepted step costs three evaluations and a
    rejected one two, since the first of the three is kept.

    log-SNR is infinite at both ends of time, so steps go from alpha/sigma = tolerance to
    sigma/alpha = tolerance at most. What lies outside is one step of `ddim` at each end, whose
    error is of the order of tolerance². One step size serves the whole batch. All of it is one
    compiled `lax.while_loop`, through which JAX differentiates forwards (`jax.jvp`) and not
    backwards: `jax.grad` raises an error.

    Args:
      p: signal and noise levels.
      D: the denoiser.
      x_start: state at t_start, float32 [B, …].
      tolerance: error allowed in a step, in [1e-5, 1); float32 cannot do better.
      t_start: where to begin.
      t_end: where to end, below t_start; at 0 the last step returns the denoiser's estimate.
      max_steps: attempts before it gives up.

    Returns: x at t_end [B, …] and a `Report`. A run that gives up returns NaN.
    Raises: ValueError for a tolerance or times outside these ranges.
    Source: Lu et al. 2022, appendix C (arXiv:2206.00927), DPM-Solver-23; here for x0 in the place
    of eps, as in arXiv:2211.01095.

    >>> from diffusion_course import denoiser, process
    >>> p = process.vp_cosine()
    >>> D = denoiser.gaussian_mixture(p, [[0.5]], [0.1], [1.0]).denoise
    >>> x, report = adaptive(p, D, jnp.array([[1.0]]), 1e-3)  # one standard deviation above
    >>> print(f"{x[0, 0]:.2f}", int(report.evaluations) < 100)
    0.60 True
    """
    x_start = checks.state("x_start", x_start)
    tolerance = checks.number("tolerance", tolerance)
    checks.within("tolerance", tolerance, 1e-5, 1, ends="[)")
    t_start, t_end = checks.number("t_start", t_start), checks.number("t_end", t_end)
    if checks.concrete(t_start, t_end) and not 0 <= t_end < t_start <= 1:
        raise ValueError(
            f"t_start and t_end must satisfy 0 <= t_end < t_start <= 1, got {t_start} and {t_end}"
        )
    max_steps = checks.integer("max_steps", max_steps, 1)

    # Where steps in lambda can begin and end.
    t_start, t_end = jnp.float32(t_start), jnp.float32(t_end)
    reach = -jnp.log(tolerance)
    first = jnp.maximum(jnp.where(_lambda(p, t_start) < -reach, _time(p, -reach), t_start), t_end)
    last = jnp.where(_lambda(p, t_end) > reach, _time(p, reach), t_end)
    last = jnp.minimum(last, first)

    # From a start without signal to the first of them.
    extra = first < t_start
    x = jax.lax.cond(
        extra,
        lambda: hold(p, x_start, denoise(D, x_start, t_start), t_start, first),
        lambda: x_start,
    )

    def body(run: _Run) -> _Run:
        # A step that would reach the end goes there exactly.
        aim = _lambda(p, run.t) + run.h
        s = jnp.where(aim < _lambda(p, last), jnp.maximum(_time(p, aim), last), last)
        low, high = _pair(p, D, run.x, run.x0, run.t, s)
        error = _worst((high - low) / (tolerance * _size(run.x, low)))
        good = error <= 1  # False for NaN
        x, t = jnp.where(good, high, run.x), jnp.where(good, s, run.t)
        # What the next step begins with; at t_end > 0 there is none.
        needed = good & ((t > last) | (last > t_end))
        x0 = jax.lax.cond(needed, lambda: denoise(D, x, t), lambda: run.x0)
        # The error grows like h³.
        factor = SAFETY * jnp.maximum(jnp.where(error >= 0, error, jnp.inf), 1e-6) ** (-1 / 3)
        h = (_lambda(p, s) - _lambda(p, run.t)) * jnp.clip(factor, LEAST, MOST)
        report = Report(
            run.report.evaluations + 2 + needed,
            run.report.accepted + good,
            run.report.rejected + ~good,
        )
        return _Run(x, t, x0, jnp.maximum(h, 1e-4), report)

    def unfinished(run: _Run):
        attempts = run.report.accepted + run.report.rejected
        return (run.t > last) & (attempts < max_steps)

    zero = jnp.int32(0)
    begun = Report(1 + extra.astype(jnp.int32), zero, zero)
    run = _Run(x, first, denoise(D, x, first), jnp.float32(FIRST), begun)
    run = jax.lax.while_loop(unfinished, body, run)
    # The step to the data; nothing where the last one has ended at t_end.
    x = jnp.where(t_end < last, hold(p, run.x, run.x0, run.t, t_end), run.x)
    return jnp.where(run.t > last, jnp.nan, x), run.report


def _pair(p: Process, D: Denoiser, x: Array, x0: Array, t, s) -> tuple[Array, Array]:
    """x_s of order 2 and of order 3, with two evaluations beside x0 = D(x, t)."""
    start, length = _lambda(p, t), _lambda(p, s) - _lambda(p, t)
    held = hold(p, x, x0, t, s)
    alpha_s = p.alpha(s)

    def bend(h):  # ∫_0^h e^(u − h)·u du/h: a change of x0 that grows evenly, weighed by a step h
        return 1 + jnp.expm1(-h) / h

    # A third of the way, with x0 held; order 2 is the line through both.
    first, second = _time(p, start + length / 3), _time(p, start + 2 / 3 * length)
    here = _lambda(p, first) - start
    rise = (denoise(D, hold(p, x, x0, t, first), first) - x0) / here
    low = held + alpha_s * bend(length) * length * rise
    # Two thirds, along that line; order 3 follows what is found there.
    there = _lambda(p, second) - start
    x = hold(p, x, x0, t, second) + p.alpha(second) * bend(there) * there * rise
    rise = (denoise(D, x, second) - x0) / there
    return low, held + alpha_s * bend(length) * length * rise


def _lambda(p: Process, t) -> Array:
    return p.log_snr(t) / 2


def _time(p: Process, wanted) -> Array:
    """The time whose lambda this is."""
    return time_at(p, 2 * wanted)


def _size(*states: Array) -> Array:
    return jnp.maximum(jnp.maximum(*map(jnp.abs, states)), 1.0)


def _worst(difference: Array) -> Array:
    """The largest rms of an example."""
    return jnp.sqrt(jnp.mean(difference.reshape(len(difference), -1) ** 2, axis=1)).max()
