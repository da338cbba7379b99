"""The papers' formulas in NumPy float64, written without the library, for the tests to compare."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from hypothesis import settings
from scipy.special import ndtr

from diffusion_course import process

# One and the same set of examples in every run; compiling makes the first example slow.
examples = settings(deadline=None, derandomize=True, database=None, max_examples=25)

EPS32 = float(np.finfo(np.float32).eps)


class Levels(NamedTuple):
    """A process of the library beside its two functions of time in float64."""

    process: process.Process
    alpha: Callable[[np.ndarray], np.ndarray]
    sigma: Callable[[np.ndarray], np.ndarray]


def linear64(T, first, last):
    return np.array([first + (last - first) * n / max(T - 1, 1) for n in range(T)])


def quadratic64(T, first, last):
    return linear64(T, np.sqrt(first), np.sqrt(last)) ** 2


def sigmoid64(T, first, last, steepness):
    u = linear64(T, -steepness, steepness)
    return first + (last - first) * (1 + np.tanh(u / 2)) / 2


def cosine_alpha64(t, s):
    """sqrt(alpha_bar) of Nichol & Dhariwal, eq. 17."""
    return np.cos((t + s) / (1 + s) * np.pi / 2) / np.cos(s / (1 + s) * np.pi / 2)


def cosine64(T, s, max_beta):
    alpha_bar = [cosine_alpha64(n / T, s) ** 2 for n in range(T + 1)]
    return np.array([min(1 - alpha_bar[n + 1] / alpha_bar[n], max_beta) for n in range(T)])


def zero_snr64(betas):
    """Algorithm 1 of Lin et al. 2024, line by line."""
    root = np.sqrt(np.cumprod(1 - betas))
    first, last = root[0], root[-1]
    root = (root - last) * first / (first - last)
    alpha_bar = root**2
    alphas = np.concatenate([alpha_bar[:1], alpha_bar[1:] / alpha_bar[:-1]])
    return 1 - alphas


def chain_roots(betas):
    """sqrt(alpha_bar_n) for n = 0 … T."""
    return np.sqrt(np.concatenate([[1.0], np.cumprod(1 - betas)]))


def _chain(betas):
    roots, grid = chain_roots(betas), np.arange(len(betas) + 1) / len(betas)

    def alpha(t):
        return np.interp(t, grid, roots)

    return Levels(process.from_betas(betas), alpha, lambda t: np.sqrt(1 - alpha(t) ** 2))


def _vp(p, beta_min, beta_max, power):
    def integral(t):  # of beta(t) from 0 to t
        return beta_min * t + (beta_max - beta_min) * t**2 / 2

    return Levels(
        p, lambda t: np.exp(-integral(t) / 2), lambda t: (-np.expm1(-integral(t))) ** power
    )


# 1 − cos²a/cos²b loses digits near t = 0 even in float64, but only 1e-16/sigma² of them.
PROCESSES = {
    "linear chain": _chain(linear64(1000, 1e-4, 0.02)),
    "zero-SNR chain": _chain(zero_snr64(quadratic64(1000, 0.00085, 0.012))),
    "short chain": _chain(linear64(7, 0.03, 0.6)),
    "vp_linear": _vp(process.vp_linear(0.3, 13.0), 0.3, 13.0, 0.5),
    "sub_vp": _vp(process.sub_vp(0.2, 15.0), 0.2, 15.0, 1.0),
    "vp_cosine": Levels(
        process.vp_cosine(0.013),
        lambda t: cosine_alpha64(t, 0.013),
        lambda t: np.sqrt(1 - cosine_alpha64(t, 0.013) ** 2),
    ),
    "variance_exploding": Levels(
        process.variance_exploding(0.02, 31.0),
        np.ones_like,
        lambda t: np.sqrt(0.02**2 * (31.0 / 0.02) ** (2 * t) - 0.02**2),
    ),
    "edm": Levels(process.edm(70.0, 5.0, 0.6), np.ones_like, lambda t: 70.0 * t**5),
    "rectified_flow": Levels(process.rectified_flow(), lambda t: 1 - t, lambda t: 1 * t),
}
CHAINS = [name for name in PROCESSES if name.endswith("chain")]
PRESERVING = [*CHAINS, "vp_linear", "vp_cosine"]
NO_SIGNAL_AT_ONE = ["zero-SNR chain", "vp_cosine", "rectified_flow"]


def transition64(o: Levels, t, s):
    """Scale and variance of q(x_t | x_s): what is left, and what must be added to reach sigma_t."""
    scale = o.alpha(t) / o.alpha(s)
    return scale, o.sigma(t) ** 2 - scale**2 * o.sigma(s) ** 2


def posterior64(o: Levels, t, s):
    """Factor of x0, factor of x_t and variance of q(x_s | x_t, x0), by adding precisions."""
    scale, variance = transition64(o, t, s)
    precision = 1 / o.sigma(s) ** 2 + scale**2 / variance
    return o.alpha(s) / o.sigma(s) ** 2 / precision, scale / variance / precision, 1 / precision


def slope64(f, t, h=1e-6):
    """Central difference in float64: error h² of the curvature and 1e-16/h of rounding."""
    return (f(t + h) - f(t - h)) / (2 * h)


def float32_times(rng, n, low=0.01, high=0.99):
    """Random times that float32 holds exactly, so that rounding t is no part of any error."""
    return rng.uniform(low, high, n).astype(np.float32).astype(np.float64)


class Mixture1D(NamedTuple):
    """A one-dimensional Gaussian mixture under a process, in float64."""

    levels: Levels
    means: np.ndarray
    stds: np.ndarray
    weights: np.ndarray

    def parts(self, t):
        a, v = self.levels.alpha(t), self.levels.sigma(t)
        return a * self.means, np.sqrt((a * self.stds) ** 2 + v**2)

    def densities(self, x, t):
        m, d = self.parts(t)
        z = (x[:, None] - m) / d
        return self.weights * np.exp(-(z**2) / 2) / (d * np.sqrt(2 * np.pi))

    def log_prob(self, x, t):
        return np.log(self.densities(x, t).sum(1))

    def cdf(self, x, t):
        m, d = self.parts(t)
        return (self.weights * ndtr((x[:, None] - m) / d)).sum(1)

    def flow(self, x, t, s):
        """Where the probability flow takes x from time t to s: in 1-D it keeps the CDF."""
        level, low, high = self.cdf(x, t), np.full_like(x, -500.0), np.full_like(x, 500.0)
        for _ in range(80):
            middle = (low + high) / 2
            below = self.cdf(middle, s) < level
            low, high = np.where(below, middle, low), np.where(below, high, middle)
        return (low + high) / 2

    def moments(self):
        """Mean and variance of the data."""
        mean = self.weights @ self.means
        return mean, self.weights @ (self.stds**2 + (self.means - mean) ** 2)


GAUSSIAN = (np.array([0.7]), np.array([0.5]), np.array([1.0]))
MIXTURE = (np.array([-0.9, 0.4, 1.3]), np.array([0.15, 0.3, 0.08]), np.array([0.3, 0.5, 0.2]))


def as_column(x):
    """Float64 [N] to the library's float32 [N, 1]."""
    return jnp.asarray(x[:, None], jnp.float32)


def within_standard_errors(x, mean, std, errors=4.0, kurtosis=3.0):
    """Checks the sample mean and variance of independent draws x, [N]."""
    x = np.asarray(x, np.float64).ravel()
    n = len(x)
    assert abs(x.mean() - mean) < errors * std / np.sqrt(n), (x.mean(), mean)
    # The sample variance has variance (kurtosis − 1)·std⁴/n.
    assert abs(x.var() - std**2) < errors * std**2 * np.sqrt((kurtosis - 1) / n), (x.std(), std)
