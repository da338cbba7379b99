"""Inverse problems with a denoiser that knows nothing of them: no network is trained again.

Each method makes a denoiser from a denoiser, as guidance does, so every sampler works with it. What
they approximate is the denoiser of the posterior,
``E[x0 | x_t, y] = D + (sigma²/alpha)·∇ log p(y | x_t)``; `diffusion_course.linear_gaussian` has it
exactly for mixtures.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from diffusion_course import checks
from diffusion_course.denoiser import Denoiser
from diffusion_course.operators import Operator, check_examples
from diffusion_course.process import Process, expand, levels
from diffusion_course.samplers import Sampler
from diffusion_course.steps import has_signal


def log_likelihood(A: Operator, y: Array, sigma_y) -> Callable[[Array], Array]:
    """log p(y | x0) in nats, on A's range: pixels that a mask hides do not count.

    Args:
      A: the operator.
      y: measurements [B, *A.measured], or [1, *A.measured] for one that all examples share.
      sigma_y: standard deviation of the noise, positive.

    Returns: a function x0 [B, *A.shape] -> [B].
    Raises: ValueError if y has another shape or sigma_y is not positive.

    >>> from diffusion_course import operators
    >>> A = operators.mask([1, 0])
    >>> log_p = log_likelihood(A, jnp.array([[1.0, 0.0]]), 1.0)
    >>> print(f"{log_p(jnp.array([[1.0, 7.0]]))[0]:.3f}")  # −½ log 2π: one number is measured
    -0.919
    """
    y, sigma_y = check_examples("y", y, A.measured), _noise(sigma_y)

    def log_p(x0):
        apart = _residual(A, y, x0).reshape(x0.shape[0], -1)
        squared = jnp.sum(apart**2, axis=1) / sigma_y**2
        return -0.5 * (squared + A.rank * jnp.log(2 * jnp.pi * sigma_y**2))

    return log_p


def _noise(sigma_y):
    sigma_y = checks.number("sigma_y", sigma_y)
    checks.above("sigma_y", sigma_y, 0)
    return sigma_y


def _residual(A: Operator, y: Array, x0: Array) -> Array:
    """``y − A x0``, without what no measurement could have."""
    if y.shape[0] not in (1, x0.shape[0]):
        raise ValueError(
            f"y must hold one measurement, or one per example, {x0.shape[0]}; got {y.shape[0]}"
        )
    return A.project(y - A.apply(check_examples("D(x, t)", x0, A.shape)))


def dps(D: Denoiser, p: Process, A: Operator, y: Array, sigma_y) -> Denoiser:
    """Diffusion posterior sampling: the likelihood of y at the estimate, ``p(y | x0 = D(x, t))``.

    It takes D(x, t) for x0 as if it were certain. Early, where it is not, the likelihood is much
    too narrow and its push much too strong: with small sigma_y samplers need short steps, or
    diverge. One evaluation and its gradient per step.

    Args:
      D: the denoiser.
      p: the process.
      A: the operator.
      y: measurements [B, *A.measured], or [1, *A.measured] for one that all examples share.
      sigma_y: standard deviation of the noise, positive.

    Returns: D(x, t); where float32 holds no signal it is the one given.
    Raises: ValueError if y has another shape or sigma_y is not positive.
    Source: Chung et al. 2023, theorem 1 (arXiv:2209.14687), with the Gaussian's own factor
    1/(2·sigma_y²) of the squared residual.
    """
    y, sigma_y = check_examples("y", y, A.measured), _noise(sigma_y)

    def guided(x, t):
        x0, pull_back = jax.vjp(lambda x: D(x, t), x)
        (slope,) = pull_back(A.adjoint(_residual(A, y, x0)) / sigma_y**2)
        signal, factor = _score_factor(p, x, t)
        return x0 + jnp.where(signal, factor * slope, 0.0)

    return guided


def _score_factor(p: Process, x: Array, t) -> tuple[Array, Array]:
    """Whether there is signal at t, and ``sigma²/alpha`` there, what a score counts for in x0."""
    alpha, sigma = levels(p, t, x)
    signal = expand(has_signal(p, t), x)
    return signal, jnp.where(signal, sigma**2 / jnp.where(signal, alpha, 1.0), 0.0)


def dps_steps(sampler: Sampler, A: Operator, y: Array, step_size: float) -> Sampler:
    """A sampler that takes a step down the residual's norm after each of its own.

    ``x_s − step_size·∇_x ‖y − A D(x, t)‖``: the norm, not its square, so that the step's length
    does not shrink with the residual. It is what users of DPS run; the step size replaces the
    likelihood, and no distribution says what is right for it.

    Args:
      sampler: the sampler, any one.
      A: the operator.
      y: measurements [B, *A.measured], or [1, *A.measured] for one that all examples share.
      step_size: at least 0.

    Returns: a sampler. Raises: ValueError if y has another shape or step_size is negative.
    Source: Chung et al. 2023, algorithm 1 with the step sizes of its experiments
    (arXiv:2209.14687), each example with its own norm.
    """
    y = check_examples("y", y, A.measured)
    step_size = checks.non_negative("step_size", step_size)

    def step(D, x, t, s, key, state):
        x_s, state = sampler.step(D, x, t, s, key, state)
        x0, pull_back = jax.vjp(lambda x: D(x, t), x)
        apart = _residual(A, y, x0)
        norm = jnp.sqrt(jnp.sum(apart**2, axis=tuple(range(1, apart.ndim)), keepdims=True))
        # Where nothing is left to correct the norm has no slope.
        unit = jnp.where(norm > 0, apart / jnp.where(norm > 0, norm, 1.0), 0.0)
        (downhill,) = pull_back(A.adjoint(unit))
        return x_s + step_size * downhill, state

    return Sampler(sampler.init, step)


def pigdm(
    D: Denoiser, p: Process, A: Operator, y: Array, sigma_y, data_std: float = 1.0
) -> Denoiser:
    """Pseudo-inverse guidance: the estimate is uncertain, ``x0 | x_t ~ N(D(x, t), r²·I)``.

    So ``y | x_t ~ N(A D, r²·A Aᵀ + sigma_y²·I)``, with
    ``r² = data_std²·sigma²/(alpha²·data_std² + sigma²)``, which is exact for data from
    N(m, data_std²·I), and so is the whole method. One evaluation and its gradient per step.

    Args:
      D: the denoiser.
      p: the process.
      A: the operator.
      y: measurements [B, *A.measured], or [1, *A.measured] for one that all examples share.
      sigma_y: standard deviation of the noise, at least 0.
      data_std: of the data, one number for all pixels.

    Returns: D(x, t). Raises: ValueError if y has another shape, sigma_y is negative or data_std is
      not positive.
    Source: Song, Vahdat, Mardani & Kautz 2023, "Pseudoinverse-guided diffusion models
    for inverse problems" (ICLR 2023), with Bayes' rule's own weight.
    """
    y = check_examples("y", y, A.measured)
    sigma_y = checks.non_negative("sigma_y", sigma_y)
    data_std = checks.number("data_std", data_std)
    checks.above("data_std", data_std, 0)

    def guided(x, t):
        alpha, sigma = levels(p, t, x)
        variance = (data_std * sigma) ** 2 / ((alpha * data_std) ** 2 + sigma**2)
        x0, pull_back = jax.vjp(lambda x: D(x, t), x)
        wanted = A.adjoint(A.solve(_residual(A, y, x0), variance, sigma_y**2))
        (slope,) = pull_back(wanted)
        signal, factor = _score_factor(p, x, t)
        # factor times the Jacobian of D is the covariance of x0: without signal, r²·I stands in.
        return x0 + jnp.where(signal, factor * slope, variance * wanted)

    return guided


def ddnm(D: Denoiser, A: Operator, y: Array) -> Denoiser:
    """Null-space method: what y says of x0 replaces what the estimate says: ``x0 + A⁺(y − A x0)``.

    Then ``A x0 = y``, and a sampler ends in a picture that agrees with y exactly. It is made for
    measurements without noise, which it would reproduce as well. One evaluation, no gradient.

    Args:
      D: the denoiser.
      A: the operator.
      y: measurements [B, *A.measured], or [1, *A.measured] for one that all examples share.

    Returns: D(x, t). Raises: ValueError if y has another shape.
    Source: Wang, Yu & Zhang 2023, algorithm 1 (arXiv:2212.00490).

    >>> from diffusion_course import operators
    >>> A, y = operators.average((2, 1, 1), 1), jnp.ones((1, 2, 1, 1))
    >>> ddnm(lambda x, t: 0 * x, A, y)(jnp.zeros((1, 2, 1, 1)), 0.5).reshape(-1).tolist()
    [1.0, 1.0]
    """
    y = check_examples("y", y, A.measured)

    def consistent(x, t):
        x0 = D(x, t)
        return x0 + A.pseudo_inverse(_residual(A, y, x0))

    return consistent
