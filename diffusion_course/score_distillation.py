"""Score distillation: a diffusion model as a teacher of whatever can be drawn.

A picture x comes from parameters theta, such as a field in space. It is noised, the denoiser looks
at it, and what the denoiser would change becomes a gradient for theta. Nothing is sampled, and the
denoiser is not trained. Every function here gives the gradient of a quantity to be made *smaller*.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion_course import checks, denoiser
from diffusion_course.denoiser import Denoiser
from diffusion_course.process import Process, add_noise, levels
from diffusion_course.steps import estimates


def gradient(
    p: Process,
    D: Denoiser,
    x: Array,
    t,
    eps: Array,
    *,
    jacobian: bool = False,
    control: bool = True,
) -> Array:
    """The score distillation gradient of pictures x, for one draw of the noise.

    Without the network's Jacobian it is ``eps_hat(x_t, t) − eps`` at ``x_t = alpha·x + sigma·eps``.
    Its mean over eps is ``sigma/alpha`` times the gradient of ``KL(q(x_t | x) ‖ p_t)``: the
    picture's noised point, against the model's noised data.

    With the Jacobian it is ``(d eps_hat/d x_t)ᵀ (eps_hat − eps)``, which is ``1/(2·alpha)`` times
    the gradient of the training loss ``‖eps_hat − eps‖²`` at this picture.

    Args:
      p: the process.
      D: denoiser of the teacher.
      x: pictures [B, …].
      t: a scalar or [B], in (0, 1].
      eps: standard normal noise of x's shape.
      jacobian: whether to go back through the denoiser.
      control: whether eps is subtracted. It has mean 0, so that without the Jacobian only the
        spread of the estimate depends on it.

    Returns: float32 of x's shape; multiply it with a weight w(t) of your choice.
    Raises: ValueError if x and eps are not floating-point arrays of one shape, or t does not fit.
    Source: Poole et al. 2022, DreamFusion, eq. 2 and 3 (arXiv:2209.14988), without w(t).

    >>> from diffusion_course import process
    >>> p = process.rectified_flow()
    >>> D = lambda x, t: 0 * x  # the data are one point, 0
    >>> x = jnp.array([[2.0]])
    >>> gradient(p, D, x, 0.5, jnp.array([[-1.0]])).tolist()  # x·alpha/sigma, whatever eps is
    [[2.0]]
    """
    x_t = add_noise(p, x, eps, t)

    def guess(state):
        return estimates(p, D, state, t)[1]

    if not jacobian:
        eps_hat = guess(x_t)
        return eps_hat - eps if control else eps_hat
    eps_hat, back = jax.vjp(guess, x_t)
    return back(eps_hat - eps if control else eps_hat)[0]


def variational_gradient(p: Process, D: Denoiser, D_own: Denoiser, x: Array, t, eps: Array):
    """The gradient of variational score distillation: the pictures know their own score.

    ``eps_hat(x_t) − eps_own(x_t)``, where D_own is a denoiser of the pictures themselves, such as
    `own_denoiser` of many particles. Its mean is ``sigma/alpha`` times the gradient of
    ``KL(q_t ‖ p_t)``, with q_t the noised particles together. For one particle
    ``eps_own = eps``, and this is `gradient`.

    Args:
      p: the process.
      D: denoiser of the teacher.
      D_own: denoiser of the pictures' distribution.
      x: pictures [B, …].
      t: a scalar or [B], in (0, 1].
      eps: standard normal noise of x's shape.

    Returns: float32 of x's shape.
    Raises: ValueError as `gradient`.
    Source: Wang et al. 2023, ProlificDreamer, eq. 9 (arXiv:2305.16213), without w(t).
    """
    x_t = add_noise(p, x, eps, t)
    return estimates(p, D, x_t, t)[1] - estimates(p, D_own, x_t, t)[1]


def own_denoiser(p: Process, particles: Array) -> Denoiser:
    """The exact denoiser of a set of pictures [N, …]: what a network would learn of them."""
    return denoiser.ideal(p, particles)


def pull_back(render: Callable, theta, picture_gradient: Array):
    """The gradient of a picture, carried back to what it was drawn from.

    ``(d render/d theta)ᵀ · picture_gradient``: the denoiser's view becomes a change of the field.

    Args:
      render: ``render(theta) -> x``.
      theta: an array, or a tree of arrays.
      picture_gradient: of the shape of x.

    Returns: a tree like theta. Raises: ValueError if the shapes do not agree.

    >>> twice = lambda theta: jnp.stack([theta, 2 * theta])
    >>> print(pull_back(twice, jnp.array(5.0), jnp.array([1.0, 10.0])))
    21.0
    """
    x, back = jax.vjp(render, theta)
    checks.same_shape("picture_gradient", picture_gradient, "render(theta)", x)
    return back(picture_gradient)[0]


def gauss_hermite(dim: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights that replace standard normal noise by a sum.

    Exact for polynomials of degree up to 2n − 1 in each coordinate; for an analytic function the
    error falls faster than any power of n.

    Args:
      dim: number of coordinates, at least 1.
      n: nodes along each, at least 1.

    Returns: nodes [n^dim, dim] and weights [n^dim] that add up to 1, float64.
    Raises: ValueError for a dim or n below 1.

    >>> nodes, weights = gauss_hermite(1, 3)
    >>> print((weights @ nodes**4).round(6))  # of a standard normal number: 3
    [3.]
    """
    dim, n = checks.integer("dim", dim, 1), checks.integer("n", n, 1)
    line, share = np.polynomial.hermite_e.hermegauss(n)
    share = share / share.sum()
    nodes = np.stack(np.meshgrid(*[line] * dim, indexing="ij"), axis=-1).reshape(-1, dim)
    weights = np.prod(np.stack(np.meshgrid(*[share] * dim, indexing="ij"), axis=-1), axis=-1)
    return nodes, weights.ravel()


def mean_gradient(p: Process, D: Denoiser, x: Array, t, n: int = 20, jacobian: bool = False):
    """`gradient` averaged over all noise: an integral by `gauss_hermite`, for points [B, D].

    Args:
      p: the process.
      D: denoiser of the teacher.
      x: points [B, D] with a small D; n^D evaluations for each.
      t: a scalar in (0, 1].
      n: nodes along each coordinate.
      jacobian: as in `gradient`.

    Returns: float32 [B, D]. Raises: ValueError for another shape.
    """
    x = checks.state("x", x)
    if x.ndim != 2:
        raise ValueError(f"x must have shape [B, D], got shape {list(x.shape)}")
    nodes, weights = gauss_hermite(x.shape[1], n)
    # Whatever is multiplied with eps alone has mean 0 and is left in: the sum is exact for it.
    eps = jnp.asarray(np.tile(nodes, (len(x), 1)), jnp.float32)
    many = jnp.repeat(x, len(nodes), axis=0)
    found = gradient(p, D, many, t, eps, jacobian=jacobian).reshape(len(x), len(nodes), -1)
    return jnp.einsum("bnd,n->bd", found, jnp.asarray(weights, jnp.float32), precision="highest")


def best_control(p: Process, variance, t) -> Array:
    """How much of eps should be subtracted: the factor of least spread for Gaussian data.

    For data of the given variance along some direction ``eps_hat`` holds
    ``c·eps`` with ``c = sigma²/(alpha²·variance + sigma²)``. Score distillation takes c = 1, which
    has less spread than 0 only where ``sigma² > alpha²·variance``.

    Args:
      p: the process.
      variance: of the data, at least 0, of any shape that broadcasts with t.
      t: times of any shape.

    Returns: float32, in [0, 1]. Raises: ValueError for a negative variance or a time not in [0, 1].
    """
    checks.within("variance", variance, 0, np.inf, ends="[)")
    t = jnp.asarray(t, jnp.float32)
    alpha, sigma = levels(p, t.reshape(-1), jnp.zeros(t.size))
    alpha, sigma = alpha.reshape(t.shape), sigma.reshape(t.shape)
    signal = alpha**2 * jnp.asarray(variance, jnp.float32)
    return sigma**2 / jnp.maximum(signal + sigma**2, jnp.finfo(jnp.float32).tiny)
