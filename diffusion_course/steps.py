"""What the steps of all samplers are made of.

For fixed x0 and eps a state moves along ``alpha(s)·x0 + sigma(s)·eps``; float32 cannot hold all of
it at both ends of time, and these functions say where.
"""

import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion_course import checks
from diffusion_course.denoiser import Denoiser
from diffusion_course.process import Process, levels


def denoise(D: Denoiser, x: Array, t) -> Array:
    """D(x, t), in the precision of x. Of another shape it would broadcast, and spoil every step."""
    x0 = jnp.asarray(D(x, t), x.dtype)
    checks.same_shape("D(x, t)", x0, "x", x)
    return x0


def estimates(p: Process, D: Denoiser, x: Array, t) -> tuple[Array, Array]:
    """The estimates of x0 and of eps at time t; an eps of 0 where float32 holds no noise."""
    alpha, sigma = levels(p, t, x)
    x0 = denoise(D, x, t)
    noisy = sigma > 0
    return x0, jnp.where(noisy, (x - alpha * x0) / jnp.where(noisy, sigma, 1.0), 0.0)


def root(variance: Array) -> Array:
    """Its square root; 0, and so is the gradient, at 0 and where rounding made it negative."""
    positive = ~(variance <= 0)  # NaN stays NaN
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, variance, 1.0)), 0.0)


def state_at(p: Process, x0: Array, eps: Array, s) -> Array:
    """Where DDIM's step ends: ``alpha_s·x0 + sigma_s·eps``."""
    alpha_s, sigma_s = levels(p, s, x0)
    return alpha_s * x0 + sigma_s * eps


def has_signal(p: Process, t) -> Array:
    """Whether float32 can hold any signal beside the noise of time t.

    Where it cannot, a state says nothing about x0, sigma/alpha is infinite or nearly so, and there
    is no way in that coordinate: DDIM's step, which needs x0 only, is all that can be done.
    """
    return p.alpha(t) > np.finfo(np.float32).eps * p.sigma(t)


def can_correct(p: Process, t, s) -> Array:
    """Whether a step has signal where it begins and noise where it ends.

    The step to s = 0 has none there: it returns x0, and a correction of eps would not count.
    """
    return has_signal(p, t) & (p.sigma(s) > 0)


def hold(p: Process, x: Array, x0: Array, t, s) -> Array:
    """DDIM's step from t to s, written with x0 alone: ``(sigma_s/sigma_t)·x + …·x0``."""
    alpha_t, sigma_t = levels(p, t, x)
    alpha_s, sigma_s = levels(p, s, x)
    shrink = jnp.where(sigma_t > 0, sigma_s / jnp.where(sigma_t > 0, sigma_t, 1.0), 0.0)
    return shrink * x + (alpha_s - alpha_t * shrink) * x0
