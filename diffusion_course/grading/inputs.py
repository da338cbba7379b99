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


FUNCTIONS = {kind.__name__: kind for kind in (GaussianDenoiser, TwoGroupDenoiser)}
