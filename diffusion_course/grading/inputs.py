"""Functions that exercises pass to a student's function."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, repr=False)
class GaussianDenoiser:
    """The exact denoiser of data N(mean, std²), ``D(x, alpha, sigma) -> E[x0 | x_t = x]``.

    Written with operators only, so that it serves NumPy and JAX. Chapter 02, equation (3) for a
    single component.
    """

    mean: float
    std: float

    def __call__(self, x, alpha, sigma):
        gain = alpha * self.std**2 / (alpha**2 * self.std**2 + sigma**2)
        return self.mean + gain * (x - alpha * self.mean)

    def __repr__(self) -> str:
        return f"GaussianDenoiser(mean={self.mean:.4g}, std={self.std:.4g})"


@dataclass(frozen=True, repr=False)
class TwoGroupDenoiser:
    """The exact denoiser of numbers of which one half is N(low, std²), the other N(high, std²).

    Called and written like `GaussianDenoiser`. Chapter 02, equation (3) for two components.
    """

    low: float
    high: float
    std: float

    def __call__(self, x, alpha, sigma):
        variance = alpha**2 * self.std**2 + sigma**2
        middle = (self.low + self.high) / 2
        odds = math.e ** (-alpha * (self.high - self.low) * (x - alpha * middle) / variance)
        mean = self.low + (self.high - self.low) / (1 + odds)  # of the group that x is from
        return mean + alpha * self.std**2 / variance * (x - alpha * mean)

    def __repr__(self) -> str:
        return f"TwoGroupDenoiser(low={self.low:.4g}, high={self.high:.4g}, std={self.std:.4g})"


@dataclass(frozen=True, repr=False)
class SharedGaussianDenoiser:
    """The exact denoiser of grids [..., h, w, C] of ``mean + shared·u + std·v``.

    u is one standard normal number for each grid, and v one for each value: a value tells
    something of all others of its grid. Called and written like `GaussianDenoiser`.
    """

    mean: float
    std: float
    shared: float

    def __call__(self, x, alpha, sigma):
        values = x.shape[-3] * x.shape[-2] * x.shape[-1]
        rest = x - alpha * self.mean
        level = rest.mean(axis=(-3, -2, -1), keepdims=True)
        # The level of a grid varies more than what is left without it; all else is alike.
        own = self.std**2
        wide = own + values * self.shared**2
        gain, level_gain = (alpha * v / (alpha**2 * v + sigma**2) for v in (own, wide))
        return self.mean + gain * (rest - level) + level_gain * level

    def __repr__(self) -> str:
        settings = f"mean={self.mean:.4g}, std={self.std:.4g}, shared={self.shared:.4g}"
        return f"SharedGaussianDenoiser({settings})"


@dataclass(frozen=True, repr=False)
class GaussianMeanVelocity:
    """The mean velocity of the rectified flow of data N(mean, std²), ``u(x, t, s)``.

    ``x − (t − s)·u(x, t, s)`` is where the flow that passes x [B, …] at t is at s, and u(x, t, t)
    is its velocity. Times are numbers or [B]. Written like the others; chapter 18.
    """

    mean: float
    std: float

    def __call__(self, x, t, s):
        t, s = (_beside(time, x) for time in (t, s))
        at_t, at_s = (((1 - time) ** 2 * self.std**2 + time**2) ** 0.5 for time in (t, s))
        # (at_t − at_s)/(t − s), in a form that holds at s = t, too.
        widening = (t + s - self.std**2 * (2 - t - s)) / (at_t + at_s)
        return widening / at_t * (x - (1 - t) * self.mean) - self.mean

    def __repr__(self) -> str:
        return f"GaussianMeanVelocity(mean={self.mean:.4g}, std={self.std:.4g})"


def _beside(time, x):
    """Times [B] with as many axes as x; a number as it is."""
    return time.reshape(-1, *[1] * (x.ndim - 1)) if getattr(time, "ndim", 0) else time


_KINDS = (GaussianDenoiser, TwoGroupDenoiser, SharedGaussianDenoiser, GaussianMeanVelocity)
FUNCTIONS = {kind.__name__: kind for kind in _KINDS}
