"""Every process as a stochastic differential equation, and its simulation forwards in time.

The levels alpha(t) and sigma(t) of a `Process` are those of the equation ``dx = f·x·dt + g·dw``
with ``f = d log(alpha)/dt`` and ``g² = d(sigma²)/dt − 2·f·sigma²``. Both come from the process by
exact derivatives, so that a process of one's own needs nothing further.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion_course import checks
from diffusion_course.process import Process

# At t = 0 sigma may start like a root, which has no slope there; g² is continued from these times.
_NEAR_ZERO = 1e-5


def drift(p: Process, t) -> Array:
    """The rate f(t) = d log(alpha)/dt of the drift f·x, per unit of t.

    It is −infinity where no signal is left, alpha(t) = 0. Such a time is refused where its value is
    known; of a traced time the result is infinite.

    Args:
      p: the process.
      t: times in [0, 1] of any shape.

    Returns: float32 of t's shape.
    Raises: ValueError for a time outside [0, 1], or one without signal.
    Source: Kingma et al. 2021 (arXiv:2107.00630); Lu et al. 2022, section 2.1 (arXiv:2206.00927).

    >>> from diffusion_course import process
    >>> print(drift(process.vp_linear(0.1, 20.0), 0.5))  # −beta(t)/2
    -5.025
    """
    _check_signal(p, t)
    t = jnp.asarray(t, jnp.float32)
    if p.log_alpha is not None:
        return jax.jvp(p.log_alpha, (t,), (jnp.ones_like(t),))[1]
    alpha, slope = jax.jvp(p.alpha, (t,), (jnp.ones_like(t),))
    return slope / alpha


def diffusion_squared(p: Process, t) -> Array:
    """g²(t) = d(sigma²)/dt − 2·f·sigma²: the variance of the noise added per unit of t.

    It equals −sigma²·d(log-SNR)/dt. At t = 0 it is the limit from the right. Where no signal is
    left it is infinite, and treated as in `drift`.

    Args:
      p: the process.
      t: times in [0, 1] of any shape.

    Returns: float32 of t's shape.
    Raises: ValueError for a time outside [0, 1], or one without signal.
    Source: as of `drift`.

    >>> from diffusion_course import process
    >>> print(*diffusion_squared(process.vp_linear(0.1, 20.0), [0.0, 0.5]).round(3))  # beta(t)
    0.1 10.05
    """
    _check_signal(p, t)
    t = jnp.asarray(t, jnp.float32)

    def inside(t):  # for t > 0
        sigma, slope = jax.jvp(p.sigma, (t,), (jnp.ones_like(t),))
        return 2 * sigma * (slope - drift(p, t) * sigma)

    start = 2 * inside(jnp.full_like(t, _NEAR_ZERO)) - inside(jnp.full_like(t, 2 * _NEAR_ZERO))
    at_zero = t == 0
    return jnp.where(at_zero, jnp.maximum(start, 0), inside(jnp.where(at_zero, _NEAR_ZERO, t)))


def _check_signal(p: Process, t) -> None:
    checks.time("t", t)
    if not checks.concrete(t):
        return
    with jax.ensure_compile_time_eval():
        log_alpha = jnp.log(p.alpha(t)) if p.log_alpha is None else p.log_alpha(t)
    if not checks.concrete(log_alpha):
        return
    empty = np.asarray(t)[np.isneginf(log_alpha)]
    if empty.size:
        raise ValueError(
            f"t must be a time with signal, alpha(t) > 0, got {empty.flat[0]}: "
            "the drift f is infinite there; stop before it"
        )


def brownian(key: Array, times, shape: tuple[int, ...]) -> Array:
    """Increments of Brownian motion over a rising grid: independent N(0, times[i+1] − times[i]).

    Sums of neighbouring increments are those of the same motion on a coarser grid.

    Args:
      key: a random key.
      times: [n + 1], rising strictly within [0, 1].
      shape: of one state.

    Returns: float32 [n, *shape]. Raises: ValueError if times do not rise, or key is none.
    """
    checks.random_key("key", key)
    times = _rising("times", times)
    root = jnp.sqrt(jnp.diff(times)).reshape(-1, *[1] * len(shape))
    return root * jax.random.normal(key, (len(times) - 1, *shape), jnp.float32)


def _rising(argument: str, times) -> np.ndarray:
    """Times [n + 1] that rise strictly within [0, 1]; ValueError if they do not."""
    if not checks.concrete(times):
        return checks.falling_times(argument, times[::-1])[::-1]
    checks.time(argument, times)
    times = np.asarray(times, np.float32)
    if times.ndim != 1 or times.size < 2:
        raise ValueError(
            f"{argument} must have shape [n + 1] with n >= 1, got shape {list(times.shape)}"
        )
    rises = np.diff(times) > 0
    if not rises.all():
        i = int(np.argmin(rises))
        raise ValueError(
            f"{argument} must rise strictly within [0, 1], got {times[i]} and then "
            f"{times[i + 1]} at index {i + 1}"
        )
    return times


def euler_maruyama(
    drift: Callable[[Array, Array], Array],
    diffusion: Callable[[Array, Array], Array],
    x: Array,
    times,
    increments: Array,
) -> tuple[Array, Array]:
    """Simulates dx = drift(x, t)·dt + diffusion(x, t)·dw along a rising grid of times.

    One step adds ``drift(x, t)·(s − t) + diffusion(x, t)·(w_s − w_t)``. The noise is an argument:
    a drift or a diffusion that drew noise itself would add it once more.

    Args:
      drift: from a state [B, …] and a scalar time to the rate of change [B, …].
      diffusion: to the noise level, a scalar or [B, …].
      x: the state at times[0], [B, …].
      times: [n + 1], rising strictly within [0, 1].
      increments: of Brownian motion [n, B, …], from `brownian`.

    Returns: the last state [B, …], and the state after every step [n, B, …].
    Raises: ValueError if times do not rise, or increments has another shape.
    Source: Maruyama 1955; Kloeden & Platen 1992, section 10.2.

    >>> still, times = jnp.zeros((3, 1, 1)), [0.0, 0.5, 0.75, 1.0]  # a path without any noise
    >>> x, path = euler_maruyama(lambda x, t: -x, lambda x, t: 1.0, jnp.ones((1, 1)), times, still)
    >>> path.ravel().tolist()
    [0.5, 0.375, 0.28125]
    """
    x, increments = checks.state("x", x), checks.state("increments", increments)
    times = _rising("times", times)
    want = (len(times) - 1, *x.shape)
    if increments.shape != want:
        raise ValueError(f"increments must have shape {list(want)}, got {list(increments.shape)}")

    def step(x, inputs):
        t, s, dw = inputs
        x = x + drift(x, t) * (s - t) + diffusion(x, t) * dw
        return x, x

    return jax.lax.scan(step, x, (times[:-1], times[1:], increments))


def forward(p: Process, x0: Array, times, key: Array) -> tuple[Array, Array]:
    """Noises data by Euler–Maruyama for ``dx = f·x·dt + g·dw``: whole paths of the process.

    For a single time `process.add_noise` draws the same marginal exactly and at once; a path
    shows how the states of one example hang together.

    Args:
      p: the process.
      x0: the state at times[0], float32 [B, …]; for times[0] = 0 it is the data.
      times: [n + 1], rising strictly within [0, 1]. The last must keep signal: f and g² are
        infinite where alpha = 0, and Euler–Maruyama ends there with the wrong variance, however
        small its steps are.
      key: a random key.

    Returns: the last state [B, …], and the state after every step [n, B, …].
    Raises: ValueError if times do not rise within [0, 1], or end without signal.
    Source: Song et al. 2021, eq. 5 (arXiv:2011.13456).
    """
    x0 = checks.state("x0", x0)
    times = _rising("times", times)
    if checks.concrete(times):
        _check_end(p, times[-1])
    return euler_maruyama(
        lambda x, t: drift(p, t) * x,
        lambda x, t: jnp.sqrt(diffusion_squared(p, t)),
        x0,
        times,
        brownian(key, times, x0.shape),
    )


def _check_end(p: Process, end) -> None:
    try:
        _check_signal(p, end)
    except ValueError:
        raise ValueError(
            f"times must end where signal is left, alpha(t) > 0, got {end}: the drift f is "
            "infinite there; stop before it"
        ) from None
