"""Random inputs that more than one chapter draws. Arrays are float32, levels Python's numbers."""

from __future__ import annotations

import numpy as np

from diffusion_course.grading.inputs import GaussianDenoiser


def number(rng, low, high):
    return float(rng.uniform(low, high))


def normal(rng, *shape, mean=0.0, std=1.0):
    return rng.normal(mean, std, shape).astype(np.float32)


def images(rng, *shape):
    """Values that are neither centred nor of unit size, so that a lost sign or factor shows."""
    return normal(rng, *shape, mean=0.6, std=1.7)


def levels(rng, ratio=(0.3, 0.8), at_s=(0.4, 0.85)):
    """ᾱ_t and ᾱ_s of a step from t to s < t: ᾱ_s in the range `at_s`, ᾱ_t/ᾱ_s in `ratio`."""
    abar_s = rng.uniform(*at_s)
    return float(abar_s * rng.uniform(*ratio)), float(abar_s)


def gaussian(rng, mean=(1.1, 2.3), std=(0.4, 0.8)):
    """The exact denoiser of Gaussian data whose mean and deviation lie in these ranges."""
    return GaussianDenoiser(number(rng, *mean), number(rng, *std))


def mask(rng, *shape):
    """About half True, with both kinds for certain."""
    drawn = rng.uniform(size=shape) < 0.5
    drawn.flat[0], drawn.flat[-1] = True, False
    return drawn
