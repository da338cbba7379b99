"""Likelihoods by the probability flow: encode, decode, log-density, bits per dimension.

The probability flow moves data to noise along one path per example, and keeps account of the
volume. Everything here happens in one coordinate in which nothing divides by zero at either end of
time. Divided by ``h = sqrt(alpha² + sigma²)``, every process preserves variance:

    x/h = cos(angle)·x0 + sin(angle)·eps,        tan(angle) = sigma/alpha,

from angle 0 (data) to at most π/2 (noise). There the flow is the velocity v of `parameterization`,
and the density changes by its divergence, that is, by the trace of the denoiser's Jacobian:

    d(x/h)/d(angle)   = v = (cos·x/h − D(x, t))/sin
    d log p/d(angle)  = −(cos·d − h·tr ∂D/∂x)/sin                  (d coordinates, along the path)

Both are integrated with the classical Runge–Kutta method, which is of order 4 in the angle and
evaluates the denoiser four times per step. At angle 0 both slopes are 0 if the data have a density.
A network that was trained on exact grey levels has other slopes there: give it a grid that is dense
near 0, or end it at a time above 0.

Source: Song et al. 2021, section 4.3 and appendix D (arXiv:2011.13456).
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion_course import checks
from diffusion_course.denoiser import Denoiser
from diffusion_course.process import Process, time_at
from diffusion_course.steps import denoise

NOISES = ("rademacher", "gaussian")

# Runge–Kutta's four evaluations: how far along the step, and with which weight in it.
_REACH = np.float32([0, 1 / 2, 1 / 2, 1])
_WEIGHT = np.float32([1 / 6, 1 / 3, 1 / 3, 1 / 6])


def encode(p: Process, D: Denoiser, x: Array, times) -> Array:
    """Takes data to noise along the probability flow: what `decode` would draw it from.

    Args:
      p: signal and noise levels.
      D: the denoiser.
      x: the state at the last of the times, float32 [B, …]; the data itself if that is 0.
      times: [n + 1], strictly falling within [1, 0], as a sampler runs them.

    Returns: the state at times[0], [B, …].
    Raises: ValueError if times do not fall strictly within [1, 0], or x is not a float32 [B, …].
    Source: as of the module.

    >>> from diffusion_course import denoiser, process, sampling
    >>> p = process.vp_cosine()
    >>> gm = denoiser.gaussian_mixture(p, [[0.5]], [0.1], [1.0])  # the data: N(0.5, 0.1²)
    >>> z = encode(p, gm.denoise, jnp.array([[0.3], [0.6]]), sampling.uniform(50))
    >>> print(z.round(2).ravel())  # two standard deviations below the mean, and one above
    [-2.  1.]
    """
    x, times = _batch(x), checks.falling_times("times", times)
    return _run(p, D, x, times[::-1])[0]


def decode(p: Process, D: Denoiser, z: Array, times) -> Array:
    """Takes noise to data along the probability flow: `encode`, backwards.

    It is a sampler of order 4 with four evaluations per step, so that the two undo each other up to
    their own errors. For samples alone `samplers` has cheaper ones.

    Args:
      p: signal and noise levels.
      D: the denoiser.
      z: the state at the first of the times, float32 [B, …].
      times: [n + 1], strictly falling within [1, 0].

    Returns: the state at the last of the times, [B, …]. Raises: as `encode`.
    """
    z, times = _batch(z, "z"), checks.falling_times("times", times)
    return _run(p, D, z, times)[0]


def log_prob(
    p: Process, D: Denoiser, x: Array, times, key: Array | None = None,
    probes: int | None = None, noise: str = "rademacher",
) -> Array:  # fmt: skip
    """Log-density of data under the probability flow of a denoiser, in nats.

    It is the density of what `decode` makes of noise N(0, sigma²·I) at times[0], with sigma that of
    `sampling.start_noise`. The error of the steps is of order 4 in the angle.

    The trace is exact, at the cost of one product with the Jacobian per coordinate, or Hutchinson's
    estimate, the mean of ``zᵀJz`` over `probes` random vectors z, drawn anew at each evaluation:
    then the result is unbiased (but its exponential is not), with independent errors.

    Args:
      p: signal and noise levels.
      D: the denoiser; its estimate for one example must not depend on the others in the batch.
      x: the state at the last of the times, float32 [B, …]; the data itself if that is 0.
      times: [n + 1], strictly falling within [1, 0]; data with fine details need small steps near
        0, such as those of `sampling.log_snr_uniform`.
      key: a random key, for Hutchinson's estimate.
      probes: random vectors per evaluation, at least 1; None for the exact trace.
      noise: "rademacher" (each coordinate −1 or 1) or "gaussian", the distribution of z.

    Returns: [B]. Raises: ValueError for a wrong argument, or probes without a key.
    Source: Chen et al. 2018, theorem 1 (arXiv:1806.07366); Grathwohl et al. 2019
    (arXiv:1810.01367); Hutchinson 1990; for diffusion: Song et al. 2021, appendix D.2
    (arXiv:2011.13456).

    >>> from diffusion_course import denoiser, process, sampling
    >>> p = process.vp_cosine()
    >>> gm = denoiser.gaussian_mixture(p, [[0.0, 1.0]], [0.5], [1.0])
    >>> x = jnp.array([[0.5, 1.0]])
    >>> found = log_prob(p, gm.denoise, x, sampling.uniform(20))
    >>> print(found.round(3), gm.log_prob(x, 0.0).round(3))
    [-0.952] [-0.952]
    """
    x, times = _batch(x), checks.falling_times("times", times)
    trace = _exact_trace
    checks.one_of("noise", noise, NOISES)
    if probes is not None:
        probes = checks.integer("probes", probes, 1)
        checks.random_key("key", key)
        trace = _hutchinson(probes, noise)
    size = x[0].size
    z, gained = _run(p, D, x, times[::-1], trace, key)
    # The prior, and the volume of dividing by h at both ends.
    sigma, h = p.sigma(times[0]), jnp.hypot(p.alpha(times[-1]), p.sigma(times[-1]))
    prior = -0.5 * (_per_example((z / sigma) ** 2) + size * math.log(2 * math.pi))
    shrunk = jnp.log(sigma / jnp.hypot(p.alpha(times[0]), sigma)) + jnp.log(h)
    return prior - size * shrunk + gained


def bits_per_dim(log_p: Array, size: int, levels: int | None = None) -> Array:
    """Turns log-densities in nats into bits per dimension.

    ``−log p/(size·log 2)``, and with levels ``+ log2((levels − 1)/2)``: pixels that were scaled to
    [−1, 1] have bins of width 2/(levels − 1), and the probability of a bin is about the density
    times its width. Of pixels from `dequantize`, the mean is an upper bound on the bits per
    dimension of the discrete pixels.

    Args:
      log_p: log-densities of any shape, such as those of `log_prob`.
      size: coordinates of one example, at least 1.
      levels: number of values that a pixel can have, at least 2; None for data with a density, of
        which only differences mean something.

    Returns: of the shape of log_p.
    Raises: ValueError for a size or levels outside these ranges.
    Source: Theis, van den Oord & Bethge 2016, section 3.1 (arXiv:1511.01844).

    >>> print(bits_per_dim(-2 * jnp.log(4.0), size=2))  # density 1/4 in each coordinate
    2.0
    >>> print(bits_per_dim(64 * jnp.log(0.5), size=64, levels=17).round(4))  # uniform on [−1, 1]
    4.0
    """
    size = checks.integer("size", size, 1)
    width = 1.0
    if levels is not None:
        width = 2 / (checks.integer("levels", levels, minimum=2) - 1)
    return (-checks.state("log_p", log_p) / size - math.log(width)) / math.log(2)


def dequantize(x: Array, levels: int, key: Array) -> Array:
    """Spreads each pixel uniformly over its bin, so that discrete pixels have a density.

    Args:
      x: pixels in [−1, 1], [B, …]: multiples of 2/(levels − 1) above −1.
      levels: number of values that a pixel can have, at least 2.
      key: a random key.

    Returns: float32 of x's shape, within half a bin of x.
    Raises: ValueError for fewer than 2 levels, or a pixel between two of them.
    Source: Theis, van den Oord & Bethge 2016, section 3.1 (arXiv:1511.01844).

    >>> x = dequantize(np.zeros((1000, 1)), 17, jax.random.key(0))
    >>> print(f"{x.min():.2f} {x.max():.2f}")
    -0.06 0.06
    """
    x = checks.state("x", x)
    levels = checks.integer("levels", levels, minimum=2)
    checks.random_key("key", key)
    if checks.concrete(x):
        place = (np.asarray(x, np.float64) + 1) * (levels - 1) / 2
        between = (np.abs(place - np.rint(place)) > 1e-2) | (np.abs(np.asarray(x)) > 1 + 1e-5)
        if between.any():
            raise ValueError(
                f"x must hold the {levels} values from -1 to 1 in steps of 2/(levels - 1), "
                f"got {np.asarray(x)[between][0]}"
            )
    half = 1 / (levels - 1)
    return x + jax.random.uniform(key, x.shape, jnp.float32, -half, half)


# --------------------------------------------------------------------------------------------
# The flow in the angle
# --------------------------------------------------------------------------------------------


class _Slope(NamedTuple):
    """How the state and the log-density's account change per unit of angle."""

    v: Array  # [B, …]
    divergence: Array  # [B]


def _run(p: Process, D: Denoiser, x: Array, times, trace=None, key=None) -> tuple[Array, Array]:
    """The state at the last of the times, and the integral of the divergence over the angle, [B].

    The times may rise or fall.
    """
    h_start, h_end = (jnp.hypot(p.alpha(t), p.sigma(t)) for t in (times[0], times[-1]))
    visits, turns = _visits(p, times)

    def step(carry, inputs):
        (x, gained), (i, four, turn) = carry, inputs

        def stage(carry, inputs):
            (last, mean), (j, t, reach, weight) = carry, inputs
            # Four random vectors per step, one for each stage.
            fresh = None if key is None else jax.random.fold_in(key, 4 * i + j)
            slope = _slope(p, D, x + reach * turn * last.v, t, trace, fresh)
            mean = jax.tree.map(lambda m, s: m + weight * s, mean, slope)
            return (slope, mean), None

        nothing = _Slope(jnp.zeros_like(x), jnp.zeros_like(gained))
        stages = (np.arange(4, dtype=np.int32), four, _REACH, _WEIGHT)
        (_, mean), _ = jax.lax.scan(stage, (nothing, nothing), stages)
        return (x + turn * mean.v, gained + turn * mean.divergence), None

    start = (x / h_start, jnp.zeros(x.shape[0], x.dtype))
    steps = (np.arange(len(turns), dtype=np.int32), visits, turns)
    (x, gained), _ = jax.lax.scan(step, start, steps)
    return h_end * x, gained


def _visits(p: Process, times) -> tuple[Array, Array]:
    """The times of the four evaluations of each step, [n, 4], and the angle that it turns by, [n].

    The middle is that of the angle, not of the time. It is found without the angles themselves,
    whose differences lose digits near π/2.
    """
    times = jnp.asarray(times, jnp.float32)
    alpha, sigma = p.alpha(times), p.sigma(times)
    h = jnp.hypot(alpha, sigma)
    cos, sin = alpha / h, sigma / h
    across = sin[1:] * cos[:-1] - cos[1:] * sin[:-1]
    turns = jnp.arctan2(across, cos[1:] * cos[:-1] + sin[1:] * sin[:-1])
    middle = time_at(p, 2 * jnp.log((cos[1:] + cos[:-1]) / (sin[1:] + sin[:-1])))
    return jnp.stack([times[:-1], middle, middle, times[1:]], axis=1), turns


def _slope(p: Process, D: Denoiser, x: Array, t, trace, key) -> _Slope:
    """The velocity at the scaled state x, and its divergence if a trace is asked for."""
    alpha, sigma = p.alpha(t), p.sigma(t)
    h = jnp.hypot(alpha, sigma)
    noisy = sigma > 0
    divisor = jnp.where(noisy, sigma / h, 1.0)

    def velocity(x):
        return jnp.where(noisy, (alpha / h * x - denoise(D, h * x, t)) / divisor, 0.0)

    if trace is None:
        return _Slope(velocity(x), jnp.zeros(x.shape[0], x.dtype))
    v, push = jax.linearize(velocity, x)
    return _Slope(v, trace(push, x, key))


def _exact_trace(push, x: Array, key) -> Array:
    """The trace of the Jacobian, coordinate by coordinate, [B]; push multiplies by it."""

    def one(row):
        return _per_example(row * push(jnp.broadcast_to(row, x.shape)))

    rows = jnp.eye(x[0].size, dtype=x.dtype).reshape(-1, *x.shape[1:])
    return jax.lax.map(one, rows).sum(0)


def _hutchinson(probes: int, noise: str):
    """Hutchinson's estimate of the trace: the mean of zᵀJz over random vectors z."""
    draw = jax.random.rademacher if noise == "rademacher" else jax.random.normal

    def trace(push, x, key):
        def one(key):
            z = draw(key, x.shape, x.dtype)
            return _per_example(z * push(z))

        return jax.lax.map(one, jax.random.split(key, probes)).mean(0)

    return trace


def _per_example(values: Array) -> Array:
    return values.reshape(values.shape[0], -1).sum(1)


def _batch(x, argument: str = "x") -> Array:
    x = checks.state(argument, x)
    if x.ndim == 0 or 0 in x.shape:
        raise ValueError(
            f"{argument} must have shape [B, …] without a 0 in it, got shape {list(x.shape)}"
        )
    return x
