"""Beta schedules of discrete chains: NumPy float64 of shape [T]; betas[n-1] belongs to step n.

`diffusion_course.process` offers them beside the processes that they make.
"""

import numpy as np

from diffusion_course import checks


def _check_beta_range(beta_start: float, beta_end: float) -> None:
    for name, beta in {"beta_start": beta_start, "beta_end": beta_end}.items():
        checks.within(name, beta, 0, 1, ends="()")
    if beta_start > beta_end:
        raise ValueError(f"beta_start must be at most beta_end, {beta_end}, got {beta_start}")


def linear_betas(T: int, beta_start: float = 1e-4, beta_end: float = 0.02) -> np.ndarray:
    """Variances that grow linearly: the schedule of DDPM, made for T = 1000.

    The end points are not rescaled for another T: a shorter chain then ends with signal left
    over, which chapter 01 shows.

    Args:
      T: number of steps.
      beta_start: variance of step 1, in (0, 1).
      beta_end: variance of step T, in (0, 1) and at least beta_start.

    Returns: float64 [T]. Raises: ValueError for T < 1 or end points outside (0, 1).
    Source: Ho, Jain & Abbeel 2020, section 4 (arXiv:2006.11239).

    >>> linear_betas(5, 0.1, 0.5).round(6).tolist()
    [0.1, 0.2, 0.3, 0.4, 0.5]
    """
    T = checks.integer("T", T, minimum=1)
    _check_beta_range(beta_start, beta_end)
    return np.linspace(beta_start, beta_end, T, dtype=np.float64)


def quadratic_betas(T: int, beta_start: float = 1e-4, beta_end: float = 0.02) -> np.ndarray:
    """Standard deviations sqrt(beta) that grow linearly, between DDPM's end points.

    Returns: float64 [T]. Raises: ValueError for T < 1 or end points outside (0, 1).
    Source: the "quad" schedule of the DDPM code base (Ho, Jain & Abbeel 2020).
    """
    T = checks.integer("T", T, minimum=1)
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
    T = checks.integer("T", T, minimum=1)
    _check_beta_range(beta_start, beta_end)
    checks.above("steepness", steepness, 0)
    u = steepness * np.linspace(-1, 1, T, dtype=np.float64)
    # The logistic curve, written so that no exponential can overflow.
    return beta_start + (beta_end - beta_start) * (1 + np.tanh(u / 2)) / 2


def cosine_betas(T: int, s: float = 0.008, max_beta: float = 0.999) -> np.ndarray:
    """Variances whose alpha_bar is a squared cosine, clipped at max_beta.

    ``alpha_bar(t) = f(t)/f(0)``, ``f(t) = cos²((t + s)/(1 + s)·π/2)``. The clip matters only for
    the last step, where alpha_bar would be 0: a max_beta of 0.999 leaves sqrt(alpha_bar_T)
    near 5e-5 for T = 1000, a smaller one leaves visible signal in x_T.

    Returns: float64 [T]. Raises: ValueError for T < 1, s < 0 or max_beta outside (0, 1).
    Source: Nichol & Dhariwal 2021, eq. 17 (arXiv:2102.09672).
    """
    T = checks.integer("T", T, minimum=1)
    checks.within("max_beta", max_beta, 0, 1, ends="()")
    rest = angle_left(s)
    t = np.arange(T + 1, dtype=np.float64) / T
    # cos((t + s)/(1 + s)·π/2) is the sine of what is left to a right angle.
    root = np.sin((1 - t) * rest)
    return np.minimum(1 - (root[1:] / root[:-1]) ** 2, max_beta)


def angle_left(s: float) -> float:
    """The angle of the cosine schedule from t = 0 to t = 1, ``π/2/(1 + s)``, in radians."""
    checks.within("s", s, 0, np.inf, ends="[)")
    # Below 1e-5 all digits of the sine are those of the angle, and the angle cancels.
    return max(float(np.pi / 2 / (1 + s)), 1e-5)


def zero_terminal_snr(betas: np.ndarray) -> np.ndarray:
    """Rescales a schedule so that the last step keeps no signal at all: alpha_bar_T = 0.

    sqrt(alpha_bar) is shifted to 0 at step T and scaled so that step 1 keeps its value. With
    such a schedule ``eps`` cannot be the training target (it says nothing about x0 at T).

    Args:
      betas: float [T], T >= 2, each in (0, 1).

    Returns: float64 [T] whose last entry is exactly 1.
    Source: Lin et al. 2024, algorithm 1 (arXiv:2305.08891).
    """
    betas = check(betas)
    if len(betas) < 2:
        raise ValueError(f"betas must have at least 2 entries, got {len(betas)}")
    # With the sums L_n of log sqrt(1 − beta) and root_n = exp(L_n), the shifted root is
    # exp(L_n)·(1 − exp(L_T − L_n)). Logarithms hold it where the root itself would be 0.
    with np.errstate(divide="ignore"):  # log 0 = −inf: nothing is left at step T
        log_keep = np.log1p(-betas)
        left = np.cumsum(log_keep[:0:-1])[::-1] / 2  # L_T − L_n for n = 1 … T − 1
        log_shift = np.log(-np.expm1(np.append(left, 0.0)))
    log_keep[1:] += 2 * np.diff(log_shift)
    return -np.expm1(log_keep)


def check(betas) -> np.ndarray:
    """`betas` as float64 [T]; ValueError unless each is in (0, 1), where the last may be 1."""
    try:
        betas = np.asarray(betas, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"betas must be real numbers of shape [T], got {betas!r}") from None
    if betas.ndim != 1 or betas.size == 0:
        raise ValueError(f"betas must have shape [T] with T >= 1, got shape {list(betas.shape)}")
    # Only the last entry may be 1 (zero terminal SNR): an earlier one leaves nothing to destroy.
    allowed = (betas > 0) & ((betas < 1) | (np.arange(betas.size) == betas.size - 1) & (betas == 1))
    if not allowed.all():
        n = int(np.argmin(allowed))
        raise ValueError(
            "betas must lie in (0, 1), where only the last may be 1, "
            f"got {betas[n]} at index {n} of {betas.size}"
        )
    return betas
