"""Sounds as pictures of their frequencies, and what one noise schedule means for each of them.

White noise is equally strong at all frequencies, and sounds are not: so under one schedule each
frequency has a log-SNR of its own, which is that of the schedule plus the logarithm of its power.
"""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy.signal import ShortTimeFFT
from scipy.signal.windows import hann

from diffusion_course import checks
from diffusion_course.process import Process, time_at


@dataclass(frozen=True)
class Transform:
    """The short-time Fourier transform: frequencies of short, overlapping pieces of a sound.

    Kept complex, it can be undone exactly.

    Attributes:
      window: samples of a piece, under a Hann window; at least 4.
      hop: samples from one piece to the next, in [1, window/2].
      rate: samples in a second.

    Raises: ValueError for sizes that break these rules.
    Source: scipy.signal.ShortTimeFFT; Griffin & Lim 1984 for the way back.

    >>> transform = Transform(64, 16, 4000)
    >>> transform.frequencies[:3].tolist()
    [0.0, 62.5, 125.0]
    """

    window: int
    hop: int
    rate: float

    def __post_init__(self):
        checks.integer("window", self.window, 4)
        checks.integer("hop", self.hop, 1, self.window // 2)
        checks.above("rate", self.rate, 0)

    def _scipy(self) -> ShortTimeFFT:
        return ShortTimeFFT(hann(self.window, sym=False), self.hop, self.rate)

    @property
    def frequencies(self) -> np.ndarray:
        """In hertz, [F] with F = window//2 + 1."""
        return self._scipy().f

    def forward(self, x) -> np.ndarray:
        """Sounds [..., L] to complex [..., F, T]. Raises: ValueError below half a window."""
        x = np.asarray(x, np.float64)
        if x.ndim < 1 or x.shape[-1] < self.window:
            raise ValueError(
                f"x must have shape [..., L] with L at least the window, {self.window}, "
                f"got shape {list(x.shape)}"
            )
        return self._scipy().stft(x)

    def inverse(self, spectrum, length: int) -> np.ndarray:
        """Complex [..., F, T] back to sounds [..., length], float64."""
        return self._scipy().istft(np.asarray(spectrum), k1=length)


def log_magnitude(spectrum, floor: float = 1e-3) -> np.ndarray:
    """The picture that is looked at: 20·log10 of the magnitude, in decibels, not below floor.

    Args:
      spectrum: complex, of any shape.
      floor: the smallest magnitude that is told apart from 0, positive.
    """
    checks.above("floor", floor, 0)
    return 20 * np.log10(np.maximum(np.abs(spectrum), floor))


def power_ratio(transform: Transform, sounds, noise) -> np.ndarray:
    """How strong sounds are against white noise of variance 1, at each frequency: [F].

    The mean of |spectrum|² over sounds and times, divided by that of the noise. Pieces that reach
    over an end of the sound are left out.

    Args:
      transform: the transform.
      sounds: [n, L].
      noise: [m, L], drawn from N(0, 1).
    """
    return _power(transform, sounds) / _power(transform, noise)


def _power(transform: Transform, x) -> np.ndarray:
    squared = np.abs(transform.forward(x)) ** 2
    edge = -(-transform.window // transform.hop)
    return squared[..., edge:-edge].mean(axis=(0, -1))


def log_snr(p: Process, power, t) -> Array:
    """The log-SNR of data with this power (a variance): ``p.log_snr(t) + log(power)``.

    Args:
      p: the process.
      power: positive, [F] or any shape that broadcasts with t.
      t: times.
    """
    checks.above("power", power, 0)
    return p.log_snr(t) + jnp.log(jnp.asarray(power, jnp.float32))


def crossing_time(p: Process, power) -> Array:
    """The time at which noise is as strong as data of this power: log-SNR 0, of power's shape.

    >>> from diffusion_course import process
    >>> print(crossing_time(process.rectified_flow(), np.array([1.0, 9.0])).round(4))
    [0.5  0.75]
    """
    checks.above("power", power, 0)
    return time_at(p, -jnp.log(jnp.asarray(power, jnp.float32)))


def ddim_gain(p: Process, power, times) -> Array:
    """The standard deviation of what DDIM makes of N(0, power), against the right one: exactly.

    With the exact denoiser of Gaussian data each step multiplies the state by a number, and the
    numbers are multiplied. 1 is right; below 1 this part of the data comes out too weak.

    Args:
      p: the process.
      power: variances, positive [F].
      times: [n + 1], falling strictly within [1, 0]; the start is noise of std sigma(times[0]).

    Returns: float32 [F]. Raises: ValueError for a power that is not positive, or other times.
    Source: Song, Meng & Ermon 2021, eq. 12 (arXiv:2010.02502), for a linear denoiser.
    """
    checks.above("power", power, 0)
    power = jnp.asarray(power, jnp.float32)
    times = jnp.asarray(checks.falling_times("times", times))
    alpha, sigma = p.alpha(times)[:, None], p.sigma(times)[:, None]
    a, s, a_next, s_next = alpha[:-1], sigma[:-1], alpha[1:], sigma[1:]
    x0 = a * power / (a**2 * power + s**2)  # the guess, for a state of 1
    eps = (1 - a * x0) / s
    return s[0] * jnp.prod(a_next * x0 + s_next * eps, axis=0) / jnp.sqrt(power)
