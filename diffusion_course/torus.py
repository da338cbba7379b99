"""Diffusion of angles: on a circle, and on a torus of several of them.

An angle is a point of a circle, not a number: 179° and −179° are neighbours. Noise is Brownian
motion that goes around, the wrapped Gaussian, and it ends in the uniform distribution.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion_course import checks
from diffusion_course.denoiser import check_components
from diffusion_course.process import Process, expand

# Below this std the sum over turns is used, above it the one over waves; with `TURNS` and `WAVES`
# terms what is left out is below 1e-13 on both sides.
SWITCH = 2.0
TURNS, WAVES = 3, 4


def wrap(x) -> Array:
    """The same angles in [−π, π), float32.

    >>> print(wrap(jnp.array([0.0, 4.0, -7.0])).round(3))
    [ 0.    -2.283 -0.717]
    """
    return jnp.mod(jnp.asarray(x, jnp.float32) + jnp.pi, 2 * jnp.pi) - jnp.pi


def log_prob_by_turns(x: Array, std, turns: int = TURNS) -> Array:
    """log of ``Σ_k N(x + 2πk; 0, std²)``: all the ways around. Good for a small std.

    Args:
      x: angles in [−π, π], of any shape.
      std: positive; it broadcasts with x.
      turns: k runs from −turns to turns.
    """
    return jax.nn.logsumexp(_turns(x, std, turns)[1], axis=-1)


def _turns(x, std, turns):
    """x + 2πk and its log-density under N(0, std²), for all k: [..., 2·turns + 1]."""
    x, std = jnp.asarray(x)[..., None], jnp.asarray(std, jnp.float32)[..., None]
    unrolled = x + 2 * jnp.pi * jnp.arange(-turns, turns + 1)
    return unrolled, -0.5 * (unrolled / std) ** 2 - jnp.log(std * np.sqrt(2 * np.pi))


def log_prob_by_waves(x: Array, std, waves: int = WAVES) -> Array:
    """log of ``(1 + 2·Σ_n exp(−n²·std²/2)·cos(n·x))/(2π)``, n = 1 … waves. Good for a large std.

    The same function as `log_prob_by_turns`, by Poisson's formula: noise damps wave n by
    ``exp(−n²·std²/2)``, and only the uniform part is left at last. With too few waves the sum may
    be negative, and its logarithm NaN.
    """
    return jnp.log(_waves(x, std, waves)[0]) - np.log(2 * np.pi)


def _waves(x, std, waves):
    """The sum over waves and its derivative."""
    n = jnp.arange(1, waves + 1)
    angle = jnp.asarray(x)[..., None] * n
    damped = 2 * jnp.exp(-0.5 * (n * jnp.asarray(std, jnp.float32)[..., None]) ** 2)
    value = 1 + jnp.sum(damped * jnp.cos(angle), axis=-1)
    return value, -jnp.sum(n * damped * jnp.sin(angle), axis=-1)


def log_prob(x: Array, std) -> Array:
    """log-density of the wrapped Gaussian N(0, std²) on the circle, in nats; exact to float32.

    Args:
      x: angles of any shape.
      std: positive; it broadcasts with x.

    Source: Mardia & Jupp 2000, *Directional Statistics*, section 3.5.7.

    >>> print((jnp.exp(log_prob(0.0, 100.0)) * 2 * jnp.pi).round(4))  # uniform
    1.0
    """
    x, std = _arguments(x, std)
    small, large = jnp.minimum(std, SWITCH), jnp.maximum(std, SWITCH)
    return jnp.where(std < SWITCH, log_prob_by_turns(x, small), log_prob_by_waves(x, large))


def score(x: Array, std) -> Array:
    """The derivative of `log_prob` in x: of the broadcast shape of x and std."""
    x, std = _arguments(x, std)
    small, large = jnp.minimum(std, SWITCH), jnp.maximum(std, SWITCH)
    unrolled, logs = _turns(x, small, TURNS)
    by_turns = -jnp.sum(jax.nn.softmax(logs, axis=-1) * unrolled, axis=-1) / small**2
    value, slope = _waves(x, large, WAVES)
    return jnp.where(std < SWITCH, by_turns, slope / value)


def _arguments(x, std):
    checks.above("std", std, 0)
    return wrap(x), jnp.asarray(std, jnp.float32)


class WrappedMixture(NamedTuple):
    """Angles from ``sum_k weights_k·wrapped N(means_k, stds_k²·I)``, and all of x_t exactly.

    Noise adds its variance: component k becomes wrapped N(means_k, stds_k² + sigma(t)²). Make one
    with `wrapped_mixture`.
    """

    process: Process
    means: Array  # [K, D]
    stds: Array  # [K]
    weights: Array  # [K]

    def _components(self, x: Array, t):
        """Difference to each mean [B, K, D], std [B or 1, K, 1] and log joint [B, K]."""
        x = checks.state("x", x)
        if x.ndim != 2 or x.shape[1:] != self.means.shape[1:]:
            raise ValueError(
                f"x must have shape [B, {self.means.shape[1]}], got shape {list(x.shape)}"
            )
        checks.time("t", t)
        sigma = jnp.reshape(expand(self.process.sigma(t), x), (-1, 1))
        std = jnp.sqrt(self.stds**2 + sigma**2)[..., None]
        apart = wrap(x[:, None] - self.means)
        return apart, std, jnp.log(self.weights) + jnp.sum(log_prob(apart, std), axis=-1)

    def log_prob(self, x: Array, t) -> Array:
        """log p_t(x) in nats: [B]; x [B, D], t a scalar or [B]."""
        return jax.nn.logsumexp(self._components(x, t)[2], axis=-1)

    def score(self, x: Array, t) -> Array:
        """grad_x log p_t(x): [B, D]; x [B, D], t a scalar or [B]."""
        apart, std, log_joint = self._components(x, t)
        return jnp.sum(jax.nn.softmax(log_joint, axis=-1)[..., None] * score(apart, std), axis=1)

    def sample(self, key: Array, n: int) -> Array:
        """n draws of x0: [n, D] in [−π, π). Raises: ValueError for n < 1."""
        n = checks.integer("n", n, 1)
        key_component, key_noise = jax.random.split(key)
        k = jax.random.categorical(key_component, jnp.log(self.weights), shape=(n,))
        noise = jax.random.normal(key_noise, (n, self.means.shape[1]), jnp.float32)
        return wrap(self.means[k] + self.stds[k][:, None] * noise)


def wrapped_mixture(p: Process, means, stds, weights) -> WrappedMixture:
    """The exact oracle of angles that follow a mixture of wrapped Gaussians.

    Args:
      p: a process with alpha = 1, such as `process.variance_exploding(0.01, 10)`: an angle cannot
        be scaled. A sigma(1) of 5 leaves 4e-6 of the first wave.
      means: [K, D] in radians.
      stds: [K], positive.
      weights: [K], positive; normalised to sum 1.

    Raises: ValueError for a process that scales, other shapes, or a value that is not positive.
    """
    means, stds, weights = (np.asarray(a, np.float32) for a in (means, stds, weights))
    if not np.allclose(p.alpha(jnp.array([0.3, 1.0])), 1):
        raise ValueError("p must have alpha = 1 at all times: an angle cannot be scaled")
    check_components(means, stds, weights)
    checks.above("stds", stds, 0)
    checks.above("weights", weights, 0)
    return WrappedMixture(p, wrap(means), jnp.asarray(stds), jnp.asarray(weights / weights.sum()))


def add_noise(p: Process, x0: Array, eps: Array, t) -> Array:
    """A draw from q(x_t | x0) on the torus: ``wrap(x0 + sigma(t)·eps)``, for angles [B, D]."""
    x0, eps = checks.state("x0", x0), checks.state("eps", eps)
    checks.same_shape("eps", eps, "x0", x0)
    checks.time("t", t)
    return wrap(x0 + expand(p.sigma(t), x0) * eps)


def sample(
    p: Process, score_of: Callable, key: Array, shape: tuple[int, ...], times
) -> tuple[Array, Array]:
    """Angles by the reversed motion: a step in the tangent, then around the circle.

    From t to s: ``x + Δ·score(x, t) + √(Δ·sigma_s²/sigma_t²)·z`` with
    ``Δ = sigma_t² − sigma_s²``, wrapped. It starts uniform, and adds no noise in a last step to 0.

    Args:
      p: the process, with alpha = 1.
      score_of: ``score_of(x, t) -> [B, D]`` with a scalar t.
      key: a random key.
      shape: [B, D].
      times: [n + 1], falling strictly within [1, 0].

    Returns: the angles [B, D] in [−π, π), and the state after every step [n, B, D].
    Raises: ValueError if times do not fall.
    Source: De Bortoli et al. 2022, algorithm 1 (arXiv:2202.02763); Jing et al. 2022, section 3.1
    (arXiv:2206.01729). The variance is that of the ancestral step of DDPM.
    """
    checks.random_key("key", key)
    times = jnp.asarray(checks.falling_times("times", times))
    key_start, key_steps = jax.random.split(key)
    x = jax.random.uniform(key_start, shape, jnp.float32, -jnp.pi, jnp.pi)

    def step(x, inputs):
        t, s, key = inputs
        new = p.sigma(t) ** 2 - p.sigma(s) ** 2
        kept = p.sigma(s) / p.sigma(t)
        noise = jax.random.normal(key, x.shape, jnp.float32)
        x = wrap(x + new * score_of(x, t) + jnp.sqrt(new) * kept * noise)
        return x, x

    keys = jax.random.split(key_steps, len(times) - 1)
    return jax.lax.scan(step, x, (times[:-1], times[1:], keys))
