"""Forward processes: how data turns into noise.

One notation for the whole course: ``x_t = alpha(t)·x0 + sigma(t)·eps`` with ``t`` in [0, 1],
where t = 0 is data and t = 1 is noise. A discrete process of T steps is the same object: step n
is the time t = n/T, and step 0 is exactly the data, so no off-by-one exists.

Schedules are built in NumPy float64 and cast once. Every pair (alpha, sigma) is written so that
sigma keeps its relative precision near t = 0, where ``sqrt(1 - alpha²)`` would lose it, and
wherever float32 cannot hold alpha, its logarithm goes on: no quotient here is ever 0/0.
Levels are float32 for times of every type.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion_course import checks
from diffusion_course.betas import (  # noqa: F401 (schedules are read as process.linear_betas)
    angle_left,
    check,
    cosine_betas,
    linear_betas,
    quadratic_betas,
    scaled_linear_betas,
    sigmoid_betas,
    zero_terminal_snr,
)

# Parameters of a process lie within these: float32 holds their squares, and what becomes of them.
_SMALLEST, _LARGEST = 1e-15, 1e15


class Process(NamedTuple):
    """The two functions of time that define ``x_t = alpha(t)·x0 + sigma(t)·eps``.

    Attributes:
      alpha: signal level; takes times of any shape, returns the same shape. alpha(0) = 1.
      sigma: noise level, a standard deviation; the same shapes. sigma(0) = 0.
      sigma_data: standard deviation of the data that preconditioning assumes (kind ``"edm"``).
      log_alpha: logarithm of alpha, for a process whose alpha falls below what float32 can hold
        (1e-38) while ratios of it still matter; by default the logarithm of alpha(t).

    >>> p = Process(alpha=lambda t: 1 - t, sigma=lambda t: t)
    >>> print(p.log_snr(0.5))
    0.0
    """

    alpha: Callable[[Array], Array]
    sigma: Callable[[Array], Array]
    sigma_data: float = 1.0
    log_alpha: Callable[[Array], Array] | None = None

    def log_snr(self, t) -> Array:
        """log(alpha²/sigma²), of any shape of t; +inf where sigma is 0, −inf where alpha is 0."""
        return 2 * (_log_alpha(self, t) - jnp.log(self.sigma(t)))

    def d_alpha(self, t) -> Array:
        """Time derivative of alpha, per unit of t."""
        return _derivative(self.alpha, t)

    def d_sigma(self, t) -> Array:
        """Time derivative of sigma, per unit of t; infinite at t = 0 where sigma ~ sqrt(t)."""
        return _derivative(self.sigma, t)


def _derivative(f: Callable, t) -> Array:
    t = _as_time(t)
    return jax.jvp(f, (t,), (jnp.ones_like(t),))[1]


def _log_alpha(p: Process, t) -> Array:
    return jnp.log(p.alpha(t)) if p.log_alpha is None else p.log_alpha(t)


def _as_time(t) -> Array:
    checks.time("t", t)
    return jnp.asarray(t, dtype=jnp.float32)


# --------------------------------------------------------------------------------------------
# Processes
# --------------------------------------------------------------------------------------------


def from_betas(betas: np.ndarray) -> Process:
    """The process of a discrete chain; ``alpha(n/T)² = alpha_bar_n`` for n = 0 … T.

    The table has T + 1 entries and entry 0 is exactly alpha = 1. Between two steps alpha is
    interpolated linearly, and ``sigma² = 1 − alpha²`` holds at every time.

    Args:
      betas: float [T], each in (0, 1); the last may be 1.

    Raises: ValueError for another shape or an entry outside the range.
    Source: Ho, Jain & Abbeel 2020, eq. 4 (arXiv:2006.11239).

    >>> p = from_betas([0.19, 0.75])
    >>> [round(float(p.alpha(n / 2)), 3) for n in range(3)]
    [1.0, 0.9, 0.45]
    """
    betas = check(betas)
    T = len(betas)
    with np.errstate(divide="ignore"):  # log 0 = −inf: a last beta of 1 leaves alpha = 0
        log_root = 0.5 * np.log1p(-betas)
    log_alpha_table = np.concatenate([[0.0], np.cumsum(log_root)])
    # 1 − alpha has a table of its own: near t = 0 it is tiny, and float32 keeps its digits.
    # Betas that float32 cannot hold leave a noise level of 1e-15, which nobody sees.
    noise_table = np.maximum(-np.expm1(log_alpha_table), 1e-30 * np.arange(T + 1))

    def place(t):
        """The step at or before t, and how far t is on the way to the next one, in [0, 1]."""
        position = _as_time(t) * T
        n = jnp.clip(jnp.floor(position).astype(jnp.int32), 0, T - 1)
        return n, position - n

    def interpolate(table, t):
        n, share = place(t)
        table = jnp.asarray(table, jnp.float32)
        step = table[n + 1] - table[n]
        # From the nearer end: exact at both, and the slope is one difference.
        return jnp.where(share < 0.5, table[n] + share * step, table[n + 1] - (1 - share) * step)

    def alpha(t):
        return interpolate(_flushed(np.exp(log_alpha_table), np), t)

    def sigma(t):
        d = interpolate(noise_table, t)
        return jnp.sqrt(d * (2 - d))

    def log_alpha(t):
        n, share = place(t)
        start, root = (jnp.asarray(a, jnp.float32) for a in (log_alpha_table, np.exp(log_root)))
        return start[n] + jnp.log(1 - share + share * root[n])

    return Process(alpha, sigma, log_alpha=log_alpha)


def _flushed(alpha, numpy=jnp):
    """The signal level, 0 where float32 cannot hold it in full."""
    return numpy.where(alpha < np.finfo(np.float32).tiny, 0, alpha)


def vp_linear(beta_min: float = 0.1, beta_max: float = 20.0) -> Process:
    """Variance-preserving SDE whose rate beta(t) grows linearly; the continuous DDPM schedule.

    ``log alpha(t) = −t²(beta_max − beta_min)/4 − t·beta_min/2``, ``sigma² = 1 − alpha²``.

    Args:
      beta_min: rate at t = 0, per unit of t.
      beta_max: rate at t = 1, at least beta_min.

    Raises: ValueError for beta_min > beta_max, or one of them outside [1e-15, 1e15].
    Source: Song et al. 2021, eq. 32–33 (arXiv:2011.13456).
    """
    log_alpha = _vp_log_alpha(beta_min, beta_max)
    return Process(
        lambda t: _flushed(jnp.exp(log_alpha(t))),
        lambda t: jnp.sqrt(-jnp.expm1(2 * log_alpha(t))),
        log_alpha=log_alpha,
    )


def sub_vp(beta_min: float = 0.1, beta_max: float = 20.0) -> Process:
    """Sub-variance-preserving SDE: alpha of `vp_linear`, sigma = 1 − alpha².

    Args:
      beta_min: rate at t = 0, per unit of t.
      beta_max: rate at t = 1, at least beta_min.

    Raises: ValueError for beta_min > beta_max, or one of them outside [1e-15, 1e15].
    Source: Song et al. 2021, eq. 28–29 (arXiv:2011.13456).
    """
    log_alpha = _vp_log_alpha(beta_min, beta_max)
    return Process(
        lambda t: _flushed(jnp.exp(log_alpha(t))),
        lambda t: -jnp.expm1(2 * log_alpha(t)),
        log_alpha=log_alpha,
    )


def _check_sizes(**parameters: float) -> None:
    for name, value in parameters.items():
        checks.within(name, value, _SMALLEST, _LARGEST)


def _vp_log_alpha(beta_min: float, beta_max: float) -> Callable[[Array], Array]:
    _check_sizes(beta_min=beta_min, beta_max=beta_max)
    if beta_min > beta_max:
        raise ValueError(f"beta_min must be at most beta_max, {beta_max}, got {beta_min}")
    # Python's numbers take on the dtype of t; NumPy's would make it float64 in x64 mode.
    start, growth = float(beta_min), float(beta_max) - float(beta_min)

    def log_alpha(t):
        t = _as_time(t)
        return -0.25 * growth * t**2 - 0.5 * start * t

    return log_alpha


def vp_cosine(s: float = 0.008) -> Process:
    """The cosine schedule in continuous time: no clip, and exactly no signal at t = 1.

    ``alpha(t) = cos((t + s)/(1 + s)·π/2)/cos(s/(1 + s)·π/2)``, ``sigma² = 1 − alpha²``. Since
    alpha(1) = 0, predict ``v`` or ``x0`` here: ``eps`` says nothing about x0 at t = 1.

    Args:
      s: offset, which keeps the first steps from being too small; at least 0.

    Raises: ValueError for s < 0.
    Source: Nichol & Dhariwal 2021, eq. 17 (arXiv:2102.09672).
    """
    rest = angle_left(s)  # (1 − t)·rest is what is left to a right angle
    full, slope = float(np.sin(rest)), float(np.tan(rest))
    # sin(b + a) of sigma below, from the nearer end of the half circle: it keeps its digits too.
    twice = 2 * rest if rest < np.pi / 4 else 2 * rest - np.pi

    def alpha(t):
        # The same ratio written twice: exactly 1 at t = 0 and exactly 0 at t = 1.
        t = _as_time(t)
        early = jnp.cos(t * rest) - jnp.sin(t * rest) / slope
        late = jnp.sin((1 - t) * rest) / full
        return jnp.where(t < 0.5, early, late)

    def sigma(t):
        # 1 − sin²a/sin²b = sin(b − a)·sin(b + a)/sin²b keeps its digits as t → 0.
        turn = _as_time(t) * rest
        return jnp.sqrt((jnp.sin(turn) / full) * (jnp.abs(jnp.sin(twice - turn)) / full))

    return Process(alpha, sigma)


def variance_exploding(sigma_min: float = 0.01, sigma_max: float = 50.0) -> Process:
    """Variance-exploding SDE: alpha = 1 and a noise level that grows geometrically.

    ``sigma(t)² = sigma_min²·((sigma_max/sigma_min)^(2t) − 1)``: the noise that has been added
    since t = 0, so that t = 0 is exactly the data.

    Args:
      sigma_min: where the geometric growth starts.
      sigma_max: about the noise level at t = 1.

    Raises: ValueError unless 1e-15 <= sigma_min < sigma_max <= 1e15.
    Source: Song et al. 2021, eq. 30–31 (arXiv:2011.13456).
    """
    _check_sizes(sigma_min=sigma_min, sigma_max=sigma_max)
    if not sigma_min < sigma_max:
        raise ValueError(f"sigma_min must be below sigma_max, {sigma_max}, got {sigma_min}")
    log_ratio, sigma_max = float(np.log(sigma_max / sigma_min)), float(sigma_max)

    def sigma(t):
        # The growth is taken out of the root, where its square might overflow.
        t = _as_time(t)
        grown = sigma_max * jnp.exp(log_ratio * (t - 1))
        return grown * jnp.sqrt(-jnp.expm1(-2 * log_ratio * t))

    return Process(lambda t: jnp.ones_like(_as_time(t)), sigma, sigma_data=0.5)


def edm(sigma_max: float = 80.0, rho: float = 7.0, sigma_data: float = 0.5) -> Process:
    """The process of EDM, alpha = 1, on the clock ``sigma(t) = sigma_max·t^rho``.

    EDM writes time as sigma itself. With alpha = 1 the clock is free, and this one has t in
    [0, 1], gives the network a well-scaled time, and makes a uniform grid nearly Karras's.

    Args:
      sigma_max: noise level at t = 1.
      rho: exponent of the clock; a larger one spends more of it on low noise.
      sigma_data: standard deviation of the data.

    Raises: ValueError unless sigma_max is in [1e-5, 1e15] and the other two in [1e-15, 1e15].
    Source: Karras et al. 2022, table 1 and eq. 5 (arXiv:2206.00364).
    """
    checks.within("sigma_max", sigma_max, 1e-5, _LARGEST)
    _check_sizes(rho=rho, sigma_data=sigma_data)
    sigma_max, rho = float(sigma_max), float(rho)

    def sigma(t):
        # A power may underflow. A line far below everything visible keeps the level falling to 0
        # at t = 0 and nowhere else.
        t = _as_time(t)
        return sigma_max * jnp.maximum(t**rho, 1e-25 * t)

    return Process(lambda t: jnp.ones_like(_as_time(t)), sigma, sigma_data=float(sigma_data))


def rectified_flow() -> Process:
    """The straight line from data to noise: alpha = 1 − t, sigma = t.

    Source: Liu, Gong & Liu 2023 (arXiv:2209.03003), with data at t = 0 as everywhere here.
    """
    return Process(lambda t: 1 - _as_time(t), _as_time)


# --------------------------------------------------------------------------------------------
# Operations on any process
# --------------------------------------------------------------------------------------------


def expand(t, like: Array) -> Array:
    """Shapes times so that they broadcast against a batch: scalar or [B] to [B, 1, …, 1].

    Args:
      t: a scalar, or one time per example [B].
      like: array [B, …].

    Raises: ValueError if t is neither.
    """
    t, shape = jnp.asarray(t), np.shape(like)
    if t.ndim == 0:
        return t
    if not shape or t.shape != shape[:1]:
        raise ValueError(
            f"t must be a scalar or of shape [B] = {list(shape[:1])}, got shape {list(t.shape)}"
        )
    return t.reshape(t.shape + (1,) * (len(shape) - 1))


def levels(p: Process, t, like: Array) -> tuple[Array, Array]:
    """(alpha(t), sigma(t)), shaped to broadcast against `like` [B, …]; t a scalar or [B]."""
    checks.time("t", t)
    return expand(p.alpha(t), like), expand(p.sigma(t), like)


def add_noise(p: Process, x0: Array, eps: Array, t) -> Array:
    """A draw from q(x_t | x0) made with the noise eps: ``alpha(t)·x0 + sigma(t)·eps``.

    Args:
      p: the process.
      x0: data [B, …].
      eps: standard normal noise of x0's shape.
      t: a scalar or one time per example [B], in [0, 1].

    Returns: x_t, float32 [B, …].
    Raises: ValueError if x0 and eps are not floating-point arrays of one shape, or t doesn't fit
      or lies outside [0, 1].
    Source: Ho, Jain & Abbeel 2020, eq. 4 (arXiv:2006.11239).

    >>> print(add_noise(rectified_flow(), np.array([4.0]), np.array([-1.0]), 0.25))
    [2.75]
    """
    x0, eps = checks.state("x0", x0), checks.state("eps", eps)
    checks.same_shape("eps", eps, "x0", x0)
    alpha, sigma = levels(p, t, x0)
    return alpha * x0 + sigma * eps


def transition(p: Process, t, s) -> tuple[Array, Array]:
    """Scale and variance of q(x_t | x_s) = N(scale·x_s, variance·I) for s < t.

    Neighbouring steps of a discrete chain give (sqrt(1 − beta), beta).

    Args:
      p: the process.
      t: the later time, of any shape.
      s: the earlier time; it broadcasts against t.

    Returns: scale alpha(t)/alpha(s) and variance sigma(t)² − scale²·sigma(s)², of t's shape.
      Where s has no signal (then t has none either) there is none to keep: (0, sigma(t)²), even for
      s = t.
    Raises: ValueError unless 0 <= s <= t <= 1.
    Source: Kingma et al. 2021, appendix A.1 (arXiv:2107.00630).
    """
    _check_order(t, s)
    return _scale(p, t, s), p.sigma(t) ** 2 * new_noise(p, t, s)


def _check_order(t, s) -> None:
    checks.time("t", t)
    checks.time("s", s)
    if checks.concrete(t, s) and (np.float32(s) > np.float32(t)).any():
        raise ValueError(f"s must be at most t, got s = {s} and t = {t}")


def _scale(p: Process, t, s) -> Array:
    """alpha(t)/alpha(s); 0 where no signal is left at s, so that there is none to keep."""
    later, earlier = _log_alpha(p, t), _log_alpha(p, s)
    signal = earlier > -jnp.inf
    return jnp.where(signal, jnp.exp(later - jnp.where(signal, earlier, 0)), 0)


def new_noise(p: Process, t, s) -> Array:
    """1 − SNR(t)/SNR(s): the part of the variance at t that was added since s, in [0, 1].

    It is 1 where there is no noise at s, or no signal at t; arguments as in `transition`.
    """
    _check_order(t, s)
    later, earlier = p.log_snr(t), p.log_snr(s)
    all_new = (earlier == jnp.inf) | (later == -jnp.inf)
    share = -jnp.expm1(jnp.where(all_new, 0, later) - jnp.where(all_new, 0, earlier))
    # Two levels that coincide may be in the wrong order by a rounding.
    return jnp.where(all_new, 1, jnp.maximum(share, 0))


def posterior(p: Process, x0: Array, x_t: Array, t, s) -> tuple[Array, Array]:
    """Mean and variance of the Gaussian q(x_s | x_t, x0) for s < t.

    With r = 1 − SNR(t)/SNR(s):
    ``mean = alpha_s·r·x0 + (alpha_t/alpha_s)(sigma_s²/sigma_t²)·x_t``, ``variance = sigma_s²·r``.
    At s = 0 the mean is x0 and the variance 0.

    Args:
      p: the process.
      x0: data [B, …].
      x_t: noisy data of the same shape.
      t: the later time; a scalar or [B].
      s: the earlier time; a scalar or [B].

    Returns: mean [B, …], and variance that broadcasts against it; float32.
    Raises: ValueError if x0 and x_t are not floating-point arrays of one shape, or not
      0 <= s <= t <= 1.
    Source: Ho, Jain & Abbeel 2020, eq. 6–7 (arXiv:2006.11239); for any s < t Kingma et al. 2021,
    appendix A.2 (arXiv:2107.00630).

    >>> p = from_betas([0.19, 0.75])
    >>> mean, variance = posterior(p, np.ones(2), np.array([0.0, 1.0]), 1.0, 0.5)
    >>> print(mean.round(3), variance.round(3))
    [0.846 0.966] 0.179
    """
    x0, x_t = checks.state("x0", x0), checks.state("x_t", x_t)
    checks.same_shape("x_t", x_t, "x0", x0)
    _check_order(t, s)
    alpha_s, sigma_s = levels(p, s, x0)
    sigma_t = expand(p.sigma(t), x0)
    scale = expand(_scale(p, t, s), x0)
    r = expand(new_noise(p, t, s), x0)
    # What is left of the noise at t; without any noise at t there is none.
    kept = sigma_s / jnp.where(sigma_t > 0, sigma_t, 1)
    mean = alpha_s * r * x0 + scale * kept**2 * x_t
    return mean, sigma_s**2 * r


def time_at(p: Process, log_snr) -> Array:
    """The time at which the log-SNR has fallen to this value, by bisection.

    It inverts `Process.log_snr`, which every process of the course lets fall with time.

    Args:
      p: the process.
      log_snr: values of any shape; they may be traced.

    Returns: float32 of that shape, in [0, 1]: 0 for a log-SNR above all that the process has, 1 for
      one below. Its derivative is 0, since a bisection has none.

    >>> p = rectified_flow()
    >>> print(time_at(p, p.log_snr(0.25)).round(3))
    0.25
    """
    wanted = jnp.asarray(log_snr, jnp.float32)

    def halve(_, interval):
        low, high = interval
        middle = (low + high) / 2
        too_clean = p.log_snr(middle) > wanted
        return jnp.where(too_clean, middle, low), jnp.where(too_clean, high, middle)

    # float32 has 24 bits of t, and more leading zeros next to t = 0.
    low, high = jax.lax.fori_loop(0, 40, halve, (jnp.zeros_like(wanted), jnp.ones_like(wanted)))
    # Of the two neighbours the later one, unless even t = 0 is noisier than that.
    return jnp.where(p.log_snr(low) <= wanted, low, high)
