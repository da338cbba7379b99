"""The exact solution between two times, with a polynomial through past evaluations in it.

Write lambda = log(alpha/sigma), half the log-SNR, and h = lambda_s − lambda_t for the length of a
step. The probability flow (eta = 0), the reverse SDE (eta = 1) and all between them and beyond have
one exact solution, but for an integral over x0:

    x_s = (sigma_s/sigma_t)·e^(−eta²·h)·x_t
          + alpha_s·∫_0^h c·e^(−c·(h − u))·x0(lambda_t + u) du
          + sigma_s·sqrt(1 − e^(−2·eta²·h))·noise,          c = 1 + eta².

A solver puts a polynomial in the place of x0: the one through what the denoiser has said at the
last few times. The exponential is integrated exactly; only the polynomial is wrong.

All are first-order where float32 holds no signal (lambda = −infinity), and from there on gain one
order with each step.

Source: Lu et al. 2022 (arXiv:2211.01095), proposition 4.1 for eta = 0, and their solution of the
SDE for eta = 1; Xue et al. 2023, eq. 14 (arXiv:2305.14267), for every eta.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from diffusion_course import checks
from diffusion_course.process import Process, expand, levels
from diffusion_course.samplers import Sampler
from diffusion_course.steps import can_correct, denoise, has_signal, root

# What takes the place of the integral of a line that rises by 1 in a step: g is c·h.
LINES = {
    "exact": lambda g: 1 - _moments(g, 0)[0] / g,
    "bh1": lambda g: g / 2,
    "bh2": lambda g: -jnp.expm1(-g) / 2,
}


class _Memory(NamedTuple):
    """What a multistep method remembers of the steps before."""

    x: Array  # the state where the last step began, corrected if there is a corrector
    noise: Array  # what that step drew
    x0: Array  # what the denoiser said, the newest first, [kept, B, …]
    times: Array  # and when, [kept]; 0 for what is not there yet


def multistep(p: Process, order: int, corrector: int = 0, eta=0.0, B: str = "exact") -> Sampler:
    """Predictor through `order` evaluations, and corrector through `corrector` and the new one."""
    kept = max(order - 1, corrector)
    is_flow = checks.concrete(eta) and not callable(eta) and eta == 0

    def init(x):
        noise = jnp.zeros((), x.dtype) if is_flow else jnp.zeros_like(x)
        return _Memory(x, noise, jnp.zeros((kept, *x.shape), x.dtype), jnp.zeros(kept, jnp.float32))

    def dial(t):
        return eta(t) if callable(eta) else eta

    def step(D, x, t, s, key, memory):
        x0 = denoise(D, x, t)
        # Corrector: the step before once more, with the new evaluation at its end.
        if corrector:
            known = memory.times[0] > t
            r = jnp.where(known, memory.times[0], t)
            said = [memory.x0[0], x0, *memory.x0[1:corrector]]
            when = [r, t, *memory.times[1:corrector]]
            again = move(p, memory.x, said, when, t, dial(r), memory.noise, B)
            x = jnp.where(known & can_correct(p, r, t), again, x)
        # Predictor.
        noise = memory.noise if is_flow else jax.random.normal(key, x.shape, x.dtype)
        said, when = [x0, *memory.x0[: order - 1]], [t, *memory.times[: order - 1]]
        moved = move(p, x, said, when, s, dial(t), noise, B)
        return moved, _Memory(
            x,
            noise,
            jnp.concatenate([x0[None], memory.x0])[:kept],
            jnp.append(jnp.asarray(t, jnp.float32), memory.times)[:kept],
        )

    return Sampler(init, step)


def move(p: Process, x: Array, said, when, s, eta, noise: Array, B: str = "exact") -> Array:
    """The exact solution from when[0] to s, with a polynomial in the place of x0.

    Args:
      p: signal and noise levels.
      x: the state at when[0].
      said: what the denoiser said, [B, …] each: the polynomial goes through all of them.
      when: and at which times.
      s: where to go.
      eta: how much noise is added and removed, at least 0.
      noise: standard normal, of x's shape.
      B: one of `LINES`, for where a line takes the place of the polynomial.

    Returns: the state at s.
    """
    t = when[0]
    alpha_t, sigma_t = levels(p, t, x)
    alpha_s, sigma_s = levels(p, s, x)
    lambdas = p.log_snr(jnp.stack([jnp.asarray(time, jnp.float32) for time in (s, *when)])) / 2
    # Where both are −∞ their difference has no slope, and a maximum with 0 would pass on its NaN.
    ahead = lambdas[0] > lambdas[1]
    h = jnp.where(ahead, jnp.where(ahead, lambdas[0], 0.0) - jnp.where(ahead, lambdas[1], 0.0), 0.0)
    # As if x0 stayed what it is at t. The length is infinite where one of the levels is 0.
    reverse = expand(eta**2 * jnp.minimum(h, 1e30), x)
    shrink = jnp.where(sigma_t > 0, sigma_s / jnp.where(sigma_t > 0, sigma_t, 1.0), 0.0)
    shrink = shrink * jnp.exp(-reverse)
    moved = shrink * x + (alpha_s - alpha_t * shrink) * said[0]
    # What the polynomial adds; an evaluation counts if float32 tells its place from the others'.
    usable, places = [can_correct(p, t, s) & (h > 0)], [jnp.float32(0.0)]
    there = has_signal(p, jnp.stack(when[1:])) if len(when) > 1 else ()
    for time, signal, where in zip(when[1:], there, lambdas[2:], strict=True):
        seen = usable[-1] & signal & (time > 0)
        place = jnp.where(seen, where, 0.0) - jnp.where(seen, lambdas[1], 0.0)
        usable.append(seen & jnp.stack([place != other for other in places]).all())
        places.append(place)
    rises = divided_differences(places, said, usable)
    length = jnp.where(usable[0], h, 1.0)
    moved = moved + alpha_s * _added(places, rises, usable, length, 1 + eta**2, B)
    # Fresh noise.
    return moved + sigma_s * root(-jnp.expm1(-2 * reverse)) * noise


def _added(places, rises, usable, h, c, B: str) -> Array:
    """The weighted mean over a step of a polynomial in Newton's form, without its first term."""
    highest = len(rises) - 1
    moments = [m / c**j for j, m in enumerate(_moments(c * h, highest))]
    added, newton = jnp.zeros_like(rises[0]), [1.0]  # coefficients of (u − places[0])·…
    for j in range(1, highest + 1):
        place = places[j - 1]
        newton = [a - place * b for a, b in zip([0.0, *newton], [*newton, 0.0], strict=True)]
        weight = sum(a * m for a, m in zip(newton, moments, strict=False))
        if j == 1 and B != "exact":
            only_a_line = ~usable[2] if highest > 1 else True
            weight = jnp.where(only_a_line, h * LINES[B](c * h), weight)
        added = added + weight * rises[j]
    return added


def divided_differences(places, values, usable) -> list[Array]:
    """Newton's coefficients of the polynomial through (place, value); 0 from the first unusable."""
    rises, row = [values[0]], list(values)
    for j in range(1, len(values)):
        gaps = [places[i + j] - places[i] for i in range(len(values) - j)]
        gaps = [jnp.where(gap == 0, 1.0, gap) for gap in gaps]
        row = [(b - a) / gap for a, b, gap in zip(row[:-1], row[1:], gaps, strict=True)]
        rises.append(jnp.where(usable[j], row[0], 0.0))
    return rises


def _moments(g, highest: int) -> list[Array]:
    """``∫_0^g e^(u − g)·u^j du`` for j = 0 … highest and g >= 0."""
    # By parts each follows from the one below …
    up = [-jnp.expm1(-g)]
    for j in range(1, highest + 1):
        up.append(g**j - j * up[-1])
    # … but for small g that subtracts nearly equal numbers; then from the one above.
    small = jnp.minimum(g, 1.0)
    terms = (
        (-1) ** k * math.factorial(highest) / math.factorial(highest + k + 1) * small**k
        for k in range(10)
    )
    down = [small ** (highest + 1) * sum(terms)]
    for j in range(highest, 0, -1):
        down.insert(0, (small**j - down[0]) / j)
    return [jnp.where(g < 1, low, high) for low, high in zip(down, up, strict=True)]
