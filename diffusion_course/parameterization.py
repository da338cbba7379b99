"""What a network may predict, and how each prediction gives back x0 and eps.

Every training target is a row (a, b) of a 2×2 system: ``y = a·x0 + b·eps`` together with
``x_t = alpha·x0 + sigma·eps`` is solved by

    x0  = (sigma·y − b·x_t)/det
    eps = (a·x_t − alpha·y)/det        with  det = a·sigma − b·alpha.

``det`` says where a target fails: ``eps`` loses x0 as alpha → 0, ``x0`` loses eps as sigma → 0,
``v`` never does.
"""

import jax.numpy as jnp
from jax import Array

from diffusion_course import checks
from diffusion_course.process import Process, expand, levels


def _x0(p: Process, t):
    return jnp.ones_like(p.alpha(t)), jnp.zeros_like(p.sigma(t))


def _eps(p: Process, t):
    return jnp.zeros_like(p.alpha(t)), jnp.ones_like(p.sigma(t))


def _v(p: Process, t):
    return -p.sigma(t), p.alpha(t)


def _score(p: Process, t):
    return jnp.zeros_like(p.alpha(t)), -1 / p.sigma(t)


def _flow(p: Process, t):
    return p.d_alpha(t), p.d_sigma(t)


def _edm(p: Process, t):
    # The target (x0 − c_skip·x_t)/c_out of EDM, with c_skip and c_out simplified so that
    # nothing is divided by sigma.
    root = jnp.hypot(p.alpha(t) * p.sigma_data, p.sigma(t))
    return p.sigma(t) / (p.sigma_data * root), -p.alpha(t) * p.sigma_data / root


_ROWS = {"x0": _x0, "eps": _eps, "v": _v, "score": _score, "flow": _flow, "edm": _edm}
KINDS = tuple(_ROWS)


def row(kind: str, p: Process, t) -> tuple[Array, Array]:
    """The coefficients (a, b) of the target ``y = a·x0 + b·eps`` at time t, of t's shape.

    ========  =======================================  ===================
    kind      (a, b)                                   det
    ========  =======================================  ===================
    "x0"      (1, 0)                                   sigma
    "eps"     (0, 1)                                   −alpha
    "v"       (−sigma, alpha)                          −(alpha² + sigma²)
    "score"   (0, −1/sigma)                            alpha/sigma
    "flow"    (d alpha/dt, d sigma/dt)                 −1 (rectified flow)
    "edm"     from c_skip, c_out                       sigma/c_out
    ========  =======================================  ===================

    At t = 0 "score" is infinite, and so is "flow" in a process whose sigma starts like sqrt(t).

    Args:
      kind: "x0", "eps", "v", "score", "flow" or "edm".
      p: the process.
      t: times in [0, 1] of any shape.

    Raises: ValueError for an unknown kind or a time outside [0, 1].
    Source: v: Salimans & Ho 2022, appendix D (arXiv:2202.00512); flow: Lipman et al. 2023
    (arXiv:2210.02747); edm: Karras et al. 2022, table 1 (arXiv:2206.00364).
    """
    checks.one_of("kind", kind, KINDS)
    checks.time("t", t)
    return _ROWS[kind](p, jnp.asarray(t, jnp.float32))


def determinant(kind: str, p: Process, t) -> Array:
    """det = a·sigma − b·alpha of the 2×2 system, of t's shape; 0 where x0 cannot be recovered."""
    a, b = row(kind, p, t)
    return a * p.sigma(t) - b * p.alpha(t)


def _system(kind: str, p: Process, t, like: Array):
    a, b = row(kind, p, t)
    alpha, sigma = levels(p, t, like)
    a, b = expand(a, like), expand(b, like)
    return a, b, alpha, sigma, a * sigma - b * alpha


def _pair(first: str, x, second: str, y) -> tuple[Array, Array]:
    """Two states of one shape as float32; ValueError with their names if they are not."""
    x, y = checks.state(first, x), checks.state(second, y)
    checks.same_shape(second, y, first, x)
    return x, y


def target(kind: str, p: Process, x0: Array, eps: Array, t) -> Array:
    """What a network of this kind is trained to output: ``a·x0 + b·eps``.

    Args:
      kind: "x0", "eps", "v", "score", "flow" or "edm".
      p: the process.
      x0: data [B, …].
      eps: the noise that was added, of the same shape.
      t: a scalar or [B], in [0, 1].

    Returns: float32 [B, …].
    Raises: ValueError for an unknown kind, a time outside [0, 1], or x0 and eps that are not
      floating-point arrays of one shape.

    >>> from diffusion_course import process
    >>> x0, eps = jnp.array([3.0]), jnp.array([1.0])
    >>> print(target("flow", process.rectified_flow(), x0, eps, 0.25))
    [-2.]
    """
    x0, eps = _pair("x0", x0, "eps", eps)
    a, b = row(kind, p, t)
    return expand(a, x0) * x0 + expand(b, x0) * eps


def to_x0(kind: str, p: Process, y: Array, x_t: Array, t) -> Array:
    """The estimate of x0 that follows from a network's output y.

    Where sigma(t) = 0 the state is the data and the result is x_t/alpha, whatever y says. Where
    det = 0 otherwise (kind "eps" or "score" at alpha = 0) x0 cannot be recovered and the result
    is not finite.

    Args:
      kind: what y is.
      p: the process.
      y: network output [B, …].
      x_t: the state it was computed from, of the same shape.
      t: a scalar or [B], in [0, 1].

    Returns: float32 [B, …].
    Raises: ValueError for an unknown kind, a time outside [0, 1], or y and x_t that are not
      floating-point arrays of one shape.

    >>> from diffusion_course import process
    >>> y, x_t = jnp.array([-2.0]), jnp.array([2.5])
    >>> print(to_x0("flow", process.rectified_flow(), y, x_t, 0.25))
    [3.]
    """
    x_t, y = _pair("x_t", x_t, "y", y)
    _, b, alpha, sigma, det = _system(kind, p, t, x_t)
    clean = sigma == 0
    # The inner where keeps 0/0 out of the branch not taken, whose gradient would be NaN.
    solved = (sigma * y - jnp.where(clean, 0, b) * x_t) / jnp.where(clean, 1, det)
    return jnp.where(clean, x_t / jnp.where(clean, alpha, 1), solved)


def to_eps(kind: str, p: Process, y: Array, x_t: Array, t) -> Array:
    """The estimate of eps that follows from a network's output y; arguments as in `to_x0`.

    Where alpha(t) = 0 the state is noise and the result is x_t/sigma, whatever y says. Not finite
    where det = 0 otherwise: kind "x0" at sigma = 0 knows nothing about the noise.
    """
    x_t, y = _pair("x_t", x_t, "y", y)
    a, _, alpha, sigma, det = _system(kind, p, t, x_t)
    noise = alpha == 0
    solved = (a * x_t - alpha * y) / jnp.where(noise, 1, det)
    return jnp.where(noise, x_t / jnp.where(noise, sigma, 1), solved)


def to_score(kind: str, p: Process, y: Array, x_t: Array, t) -> Array:
    """The estimate of grad log p_t(x_t), ``−eps/sigma``; arguments as in `to_x0`; sigma(t) > 0.

    Source: Song et al. 2021 (arXiv:2011.13456); Vincent 2011, denoising score matching.
    """
    return -to_eps(kind, p, y, x_t, t) / expand(p.sigma(t), jnp.asarray(x_t))


def velocity(kind: str, p: Process, y: Array, x_t: Array, t) -> Array:
    """The estimate of the flow's velocity, ``d_alpha·x0 + d_sigma·eps``; arguments as in `to_x0`.

    Source: Lipman et al. 2023 (arXiv:2210.02747); Albergo et al. 2023 (arXiv:2303.08797).
    """
    x_t, y = _pair("x_t", x_t, "y", y)
    x0, eps = to_x0(kind, p, y, x_t, t), to_eps(kind, p, y, x_t, t)
    return expand(p.d_alpha(t), x_t) * x0 + expand(p.d_sigma(t), x_t) * eps
