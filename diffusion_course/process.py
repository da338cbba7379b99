"""Forward processes: how data turns into noise.

One notation for the whole course: ``x_t = alpha(t)·x0 + sigma(t)·eps`` with ``t`` in [0, 1],
where t = 0 is data and t = 1 is noise. A discrete process of T steps is the same object: step n
is the time t = n/T, and step 0 is exactly the data, so no off-by-one exists.

Schedules are built in NumPy float64 and cast once. Every pair (alpha, sigma) is written so that
sigma keeps its relative precision near t = 0, where ``sqrt(1 - alpha²)`` would lose it.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array


class Process(NamedTuple):
    """The two functions of time that define ``x_t = alpha(t)·x0 + sigma(t)·eps``.

    Attributes:
      alpha: signal level; takes times of any shape, returns the same shape. alpha(0) = 1.
      sigma: noise level, a standard deviation; the same shapes. sigma(0) = 0.
      sigma_data: standard deviation of the data that preconditioning assumes (kind ``"edm"``).
    """

    alpha: Callable[[Array], Array]
    sigma: Callable[[Array], Array]
    sigma_data: float = 1.0

    def log_snr(self, t) -> Array:
        """log(alpha²/sigma²), of any shape of t; +inf where sigma is 0, −inf where alpha is 0."""
        return 2 * (jnp.log(self.alpha(t)) - jnp.log(self.sigma(t)))

    def d_alpha(self, t) -> Array:
        """Time derivative of alpha, per unit of t."""
        return _derivative(self.alpha, t)

    def d_sigma(self, t) -> Array:
        """Time derivative of sigma, per unit of t; infinite at t = 0 where sigma ~ sqrt(t)."""
        return _derivative(self.sigma, t)


def _derivative(f: Callable, t) -> Array:
    t = _as_time(t)
    return jax.jvp(f, (t,), (jnp.ones_like(t),))[1]


def _as_time(t) -> Array:
    return jnp.asarray(t, dtype=jnp.float32)


# --------------------------------------------------------------------------------------------
# Beta schedules of discrete chains: NumPy float64 of shape [T]; betas[n-1] belongs to step n.
# --------------------------------------------------------------------------------------------


def _check_steps(T: int) -> None:
    if not isinstance(T, int | np.integer) or T < 1:
        raise ValueError(f"T must be an integer of at least 1, got {T!r}")


def _check_beta_range(beta_start: float, beta_end: float) -> None:
    if not 0 < beta_start <= beta_end < 1:
        raise ValueError(
            "beta_start and beta_end must satisfy 0 < beta_start <= beta_end < 1, "
            f"got {beta_start} and {beta_end}"
        )


def linear_betas(T: int, beta_start: float = 1e-4, beta_end: float = 0.02) -> np.ndarray:
    """Variances that grow linearly: the schedule of DDPM, made for T = 1000.

    The end points are not rescaled for another T: a shorter chain then ends with signal left
    over, which chapter 01 shows.

    Returns: float64 [T]. Raises: ValueError for T < 1 or end points outside (0, 1).
    Source: Ho, Jain & Abbeel 2020, section 4 (arXiv:2006.11239).
    """
    _check_steps(T)
    _check_beta_range(beta_start, beta_end)
    return np.linspace(beta_start, beta_end, T, dtype=np.float64)


def quadratic_betas(T: int, beta_start: float = 1e-4, beta_end: float = 0.02) -> np.ndarray:
    """Standard deviations sqrt(beta) that grow linearly, between DDPM's end points.

    Returns: float64 [T]. Raises: ValueError for T < 1 or end points outside (0, 1).
    Source: the "quad" schedule of the DDPM code base (Ho, Jain & Abbeel 2020).
    """
    _check_steps(T)
    _check_beta_range(beta_start, beta_end)
    return np.linspace(beta_start**0.5, beta_end**0.5, T, dtype=np.float64) ** 2


def scaled_linear_betas(T: int, beta_start: float = 0.00085, beta_end: float = 0.012) -> np.ndarray:
    """The quadratic schedule with the end points of latent diffusion (Stable Diffusion).

    Returns: float64 [T]. Raises: ValueError for T < 1 or end points outside (0, 1).
    Source: Rombach et al. 2022 (arXiv:2112.10752), the "linear" schedule of its code.
    """
    return quadratic_betas(T, beta_start, beta_end)


def sigmoid_betas(
    T: int, beta_start: float = 1e-4, beta_end: float = 0.02, steepness: float = 6.0
) -> np.ndarray:
    """Variances that follow a logistic curve from beta_start to beta_end.

    Args:
      T: number of steps.
      beta_start: the curve's lower asymptote.
      beta_end: the curve's upper asymptote.
      steepness: the curve is read from −steepness to +steepness.

    Returns: float64 [T]. Raises: ValueError for T < 1, a bad range, or steepness <= 0.
    Source: Xu et al. 2022, GeoDiff (arXiv:2203.02923), whose code reads the logistic on [−6, 6].
    """
    _check_steps(T)
    _check_beta_range(beta_start, beta_end)
    if not steepness > 0:
        raise ValueError(f"steepness must be positive, got {steepness}")
    u = np.linspace(-steepness, steepness, T, dtype=np.float64)
    return beta_start + (beta_end - beta_start) / (1 + np.exp(-u))


def cosine_betas(T: int, s: float = 0.008, max_beta: float = 0.999) -> np.ndarray:
    """Variances whose alpha_bar is a squared cosine, clipped at max_beta.

    ``alpha_bar(t) = f(t)/f(0)``, ``f(t) = cos²((t + s)/(1 + s)·π/2)``. The clip matters only for
    the last step, where alpha_bar would be 0: a max_beta of 0.999 leaves sqrt(alpha_bar_T)
    near 5e-5 for T = 1000, a smaller one leaves visible signal in x_T.

    Returns: float64 [T]. Raises: ValueError for T < 1, s < 0 or max_beta outside (0, 1).
    Source: Nichol & Dhariwal 2021, eq. 17 (arXiv:2102.09672).
    """
    _check_steps(T)
    if not s >= 0:
        raise ValueError(f"s must be at least 0, got {s}")
    if not 0 < max_beta < 1:
        raise ValueError(f"max_beta must be in (0, 1), got {max_beta}")
    t = np.arange(T + 1, dtype=np.float64) / T
    alpha_bar = np.cos((t + s) / (1 + s) * np.pi / 2) ** 2
    return np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], max_beta)


def zero_terminal_snr(betas: np.ndarray) -> np.ndarray:
    """Rescales a schedule so that the last step keeps no signal at all: alpha_bar_T = 0.

    sqrt(alpha_bar) is shifted to 0 at step T and scaled so that step 1 keeps its value. With
    such a schedule ``eps`` cannot be the training target (it says nothing about x0 at T).

    Args:
      betas: float [T], T >= 2, each in (0, 1).

    Returns: float64 [T] whose last entry is exactly 1.
    Source: Lin et al. 2024, algorithm 1 (arXiv:2305.08891).
    """
    betas = _check_betas(betas)
    if len(betas) < 2:
        raise ValueError(f"betas must have at least 2 entries, got {len(betas)}")
    root = np.sqrt(np.cumprod(1 - betas))
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    alpha_bar = np.concatenate([[1.0], root**2])
    return 1 - alpha_bar[1:] / alpha_bar[:-1]


def _check_betas(betas) -> np.ndarray:
    betas = np.asarray(betas, dtype=np.float64)
    if betas.ndim != 1 or betas.size == 0:
        raise ValueError(f"betas must have shape [T] with T >= 1, got shape {betas.shape}")
    # Only the last entry may be 1 (zero terminal SNR): an earlier one leaves nothing to destroy.
    allowed = (betas > 0) & ((betas < 1) | (np.arange(betas.size) == betas.size - 1) & (betas == 1))
    if not allowed.all():
        n = int(np.argmin(allowed))
        raise ValueError(
            "betas must lie in (0, 1), where only the last may be 1, "
            f"got {betas[n]} at index {n} of {betas.size}"
        )
    return betas


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
    """
    betas = _check_betas(betas)
    T = len(betas)
    with np.errstate(divide="ignore"):  # log 0 = −inf: a last beta of 1 leaves alpha = 0
        log_alpha = np.concatenate([[0.0], 0.5 * np.cumsum(np.log1p(-betas))])

    def interpolate(values, t):
        table = jnp.asarray(values, jnp.float32)
        position = _as_time(t) * T
        n = jnp.clip(jnp.floor(position).astype(jnp.int32), 0, T - 1)
        return table[n] + (position - n) * (table[n + 1] - table[n])

    def alpha(t):
        return interpolate(np.exp(log_alpha), t)

    def sigma(t):
        # 1 − alpha has a table of its own: near t = 0 it is tiny, and float32 keeps its digits.
        d = interpolate(-np.expm1(log_alpha), t)
        return jnp.sqrt(d * (2 - d))

    return Process(alpha, sigma)


def vp_linear(beta_min: float = 0.1, beta_max: float = 20.0) -> Process:
    """Variance-preserving SDE whose rate beta(t) grows linearly; the continuous DDPM schedule.

    ``log alpha(t) = −t²(beta_max − beta_min)/4 − t·beta_min/2``, ``sigma² = 1 − alpha²``.

    Raises: ValueError unless 0 < beta_min <= beta_max.
    Source: Song et al. 2021, eq. 32–33 (arXiv:2011.13456).
    """
    log_alpha = _vp_log_alpha(beta_min, beta_max)
    return Process(
        lambda t: jnp.exp(log_alpha(_as_time(t))),
        lambda t: jnp.sqrt(-jnp.expm1(2 * log_alpha(_as_time(t)))),
    )


def sub_vp(beta_min: float = 0.1, beta_max: float = 20.0) -> Process:
    """Sub-variance-preserving SDE: alpha of `vp_linear`, sigma = 1 − alpha².

    Raises: ValueError unless 0 < beta_min <= beta_max.
    Source: Song et al. 2021, eq. 28–29 (arXiv:2011.13456).
    """
    log_alpha = _vp_log_alpha(beta_min, beta_max)
    return Process(
        lambda t: jnp.exp(log_alpha(_as_time(t))),
        lambda t: -jnp.expm1(2 * log_alpha(_as_time(t))),
    )


def _vp_log_alpha(beta_min: float, beta_max: float) -> Callable[[Array], Array]:
    if not 0 < beta_min <= beta_max:
        raise ValueError(
            f"beta_min and beta_max must satisfy 0 < beta_min <= beta_max, "
            f"got {beta_min} and {beta_max}"
        )
    return lambda t: -0.25 * t**2 * (beta_max - beta_min) - 0.5 * t * beta_min


def vp_cosine(s: float = 0.008) -> Process:
    """The cosine schedule in continuous time: no clip, and exactly no signal at t = 1.

    ``alpha(t) = cos((t + s)/(1 + s)·π/2)/cos(s/(1 + s)·π/2)``, ``sigma² = 1 − alpha²``. Since
    alpha(1) = 0, predict ``v`` or ``x0`` here: ``eps`` says nothing about x0 at t = 1.

    Raises: ValueError for s < 0.
    Source: Nichol & Dhariwal 2021, eq. 17 (arXiv:2102.09672).
    """
    if not s >= 0:
        raise ValueError(f"s must be at least 0, got {s}")
    rest = np.pi / 2 / (1 + s)  # the angle left at t = 0; the cosine of the rest is a sine
    start = np.pi / 2 - rest

    def alpha(t):
        # The same ratio written twice: exactly 1 at t = 0 and exactly 0 at t = 1.
        t = _as_time(t)
        early = jnp.cos(t * rest) - np.tan(start) * jnp.sin(t * rest)
        late = jnp.sin((1 - t) * rest) / np.sin(rest)
        return jnp.where(t < 0.5, early, late)

    def sigma(t):
        # 1 − cos²a/cos²b = sin(a−b)·sin(a+b)/cos²b keeps its digits as t → 0.
        turn = _as_time(t) * rest
        return jnp.sqrt(jnp.sin(turn) * jnp.sin(2 * start + turn)) / np.sin(rest)

    return Process(alpha, sigma)


def variance_exploding(sigma_min: float = 0.01, sigma_max: float = 50.0) -> Process:
    """Variance-exploding SDE: alpha = 1 and a noise level that grows geometrically.

    ``sigma(t)² = sigma_min²·((sigma_max/sigma_min)^(2t) − 1)``: the noise that has been added
    since t = 0, so that t = 0 is exactly the data.

    Raises: ValueError unless 0 < sigma_min < sigma_max.
    Source: Song et al. 2021, eq. 30–31 (arXiv:2011.13456).
    """
    if not 0 < sigma_min < sigma_max:
        raise ValueError(
            "sigma_min and sigma_max must satisfy 0 < sigma_min < sigma_max, "
            f"got {sigma_min} and {sigma_max}"
        )
    log_ratio = np.log(sigma_max / sigma_min)
    return Process(
        lambda t: jnp.ones_like(_as_time(t)),
        lambda t: sigma_min * jnp.sqrt(jnp.expm1(2 * log_ratio * _as_time(t))),
        sigma_data=0.5,
    )


def edm(sigma_max: float = 80.0, rho: float = 7.0, sigma_data: float = 0.5) -> Process:
    """The process of EDM, alpha = 1, on the clock ``sigma(t) = sigma_max·t^rho``.

    EDM writes time as sigma itself. With alpha = 1 the clock is free, and this one has t in
    [0, 1], gives the network a well-scaled time, and makes a uniform grid nearly Karras's.

    Raises: ValueError unless all three are positive.
    Source: Karras et al. 2022, table 1 and eq. 5 (arXiv:2206.00364).
    """
    for name, value in {"sigma_max": sigma_max, "rho": rho, "sigma_data": sigma_data}.items():
        if not value > 0:
            raise ValueError(f"{name} must be positive, got {value}")
    return Process(
        lambda t: jnp.ones_like(_as_time(t)),
        lambda t: sigma_max * _as_time(t) ** rho,
        sigma_data=sigma_data,
    )


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
    t = jnp.asarray(t)
    if t.ndim == 0:
        return t
    if t.ndim != 1 or like.ndim == 0 or t.shape[0] != like.shape[0]:
        raise ValueError(
            f"t must be a scalar or of shape [B] = {like.shape[:1]}, got shape {t.shape}"
        )
    return t.reshape(t.shape + (1,) * (like.ndim - 1))


def levels(p: Process, t, like: Array) -> tuple[Array, Array]:
    """(alpha(t), sigma(t)), shaped to broadcast against `like` [B, …]; t a scalar or [B]."""
    return expand(p.alpha(t), like), expand(p.sigma(t), like)


def add_noise(p: Process, x0: Array, eps: Array, t) -> Array:
    """A draw from q(x_t | x0) made with the noise eps: ``alpha(t)·x0 + sigma(t)·eps``.

    Args:
      p: the process.
      x0: data [B, …].
      eps: standard normal noise of x0's shape.
      t: a scalar or one time per example [B], in [0, 1].

    Raises: ValueError if the shapes of x0 and eps differ or t doesn't fit.
    Source: Ho, Jain & Abbeel 2020, eq. 4 (arXiv:2006.11239).
    """
    if jnp.shape(x0) != jnp.shape(eps):
        raise ValueError(
            f"eps must have the shape of x0, {jnp.shape(x0)}, got shape {jnp.shape(eps)}"
        )
    x0 = jnp.asarray(x0)
    alpha, sigma = levels(p, t, x0)
    return alpha * x0 + sigma * eps


def transition(p: Process, t, s) -> tuple[Array, Array]:
    """Scale and variance of q(x_t | x_s) = N(scale·x_s, variance·I) for s < t.

    Neighbouring steps of a discrete chain give (sqrt(1 − beta), beta).

    Returns: scale alpha(t)/alpha(s) and variance sigma(t)² − scale²·sigma(s)², of t's shape.
    Source: Kingma et al. 2021, appendix A.1 (arXiv:2107.00630).
    """
    return p.alpha(t) / p.alpha(s), p.sigma(t) ** 2 * _share_of_new_noise(p, t, s)


def _share_of_new_noise(p: Process, t, s) -> Array:
    """1 − SNR(t)/SNR(s): the part of the variance at t that was added since s; in [0, 1]."""
    return -jnp.expm1(p.log_snr(t) - p.log_snr(s))


def posterior(p: Process, x0: Array, x_t: Array, t, s) -> tuple[Array, Array]:
    """Mean and variance of the Gaussian q(x_s | x_t, x0) for s < t.

    With r = 1 − SNR(t)/SNR(s):
    ``mean = alpha_s·r·x0 + (alpha_t/alpha_s)(sigma_s²/sigma_t²)·x_t``, ``variance = sigma_s²·r``.
    At s = 0 the mean is x0 and the variance 0.

    Args:
      p: the process.
      x0: data [B, …].
      x_t: noisy data of the same shape.
      t: the later time, with sigma(t) > 0; a scalar or [B].
      s: the earlier time; a scalar or [B].

    Returns: mean [B, …], and variance that broadcasts against it.
    Source: Ho, Jain & Abbeel 2020, eq. 6–7 (arXiv:2006.11239); for any s < t Kingma et al. 2021,
    appendix A.2 (arXiv:2107.00630).
    """
    x0, x_t = jnp.asarray(x0), jnp.asarray(x_t)
    alpha_t, sigma_t = levels(p, t, x0)
    alpha_s, sigma_s = levels(p, s, x0)
    r = expand(_share_of_new_noise(p, t, s), x0)
    mean = alpha_s * r * x0 + (alpha_t / alpha_s) * (sigma_s / sigma_t) ** 2 * x_t
    return mean, sigma_s**2 * r
