"""The one interface between model and sampler: a denoiser ``D(x, t) -> x0_hat``.

Guidance, clipping and conditioning are functions from denoisers to denoisers, so they compose
with every sampler. A denoiser comes from a network, or is one of the exact oracles.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion_course import checks
from diffusion_course.parameterization import row, to_x0
from diffusion_course.process import Process, expand, levels

Denoiser = Callable[[Array, Array], Array]


def network_output(model, p: Process, kind: str, x: Array, t, cond=None) -> Array:
    """Calls the network as training and sampling both must: scaled input, one time per example.

    Only the preconditioned kind "edm" scales its input, to unit variance.

    Args:
      model: ``model(x, t, cond)``, x [B, …], t [B].
      p: the process.
      kind: what the network predicts.
      x: state [B, …].
      t: a scalar or [B], in [0, 1].
      cond: labels [B], tokens [B, L] or None.

    Returns: the network's raw output [B, …]; float32, also of a network in half precision.
    Raises: ValueError if x is not a floating-point array [B, …], t is neither a scalar nor [B] in
      [0, 1], or cond is for another number of examples.
    Source: c_in of Karras et al. 2022, table 1 (arXiv:2206.00364).
    """
    x = _batch("x", x)
    checks.time("t", t)
    check_cond(cond, x)
    # The time keeps all its digits: in bfloat16, .999 would be 1.
    t = jnp.broadcast_to(expand(jnp.asarray(t, jnp.float32), x).reshape(-1), x.shape[:1])
    if kind == "edm":
        alpha, sigma = levels(p, t, x)
        x = x / jnp.hypot(alpha * p.sigma_data, sigma)
    return jnp.asarray(model(x, t, cond), jnp.float32)


def _batch(argument: str, x) -> Array:
    """A state [B, …] as float32; ValueError with the argument's name if it is none."""
    x = checks.state(argument, x)
    if x.ndim == 0:
        raise ValueError(f"{argument} must have shape [B, …], got shape {list(x.shape)}")
    return x


def check_cond(cond, x: Array) -> None:
    """ValueError unless an array of conditions has one row per example of the batch x [B, …].

    Whole numbers of shape [B, 1] are labels in a column, which would broadcast: they are refused.
    """
    if cond is None or not hasattr(cond, "shape"):
        return
    column = cond.shape[1:] == (1,) and jnp.issubdtype(cond.dtype, jnp.integer)
    if cond.shape[:1] != np.shape(x)[:1] or column:
        raise ValueError(
            f"cond must be labels of shape {list(np.shape(x)[:1])} or have one row per example, "
            f"got shape {list(cond.shape)}"
        )


def denoiser(model, p: Process, kind: str, cond=None) -> Denoiser:
    """The denoiser of a network: its output converted to an estimate of x0.

    Args:
      model: ``model(x, t, cond)``, x [B, …], t [B] in [0, 1]; make it an argument of the function
        that you jit, so that its weights are not compiled into the program.
      p: the process that the model was trained with.
      kind: what the model was trained to predict.
      cond: labels [B], tokens [B, L] or None.

    Returns: D(x, t) -> x0_hat; t a scalar or [B]. Raises: ValueError for an unknown kind.

    >>> from diffusion_course import process
    >>> D = denoiser(lambda x, t, cond: 0 * x, process.rectified_flow(), "flow")
    >>> print(D(np.array([[1.0, 2.0]]), 0.5))  # a velocity of 0: the state stays where it is
    [[1. 2.]]
    """
    row(kind, p, 0.5)  # an unknown kind is reported here, not at the first step of a sampler

    def D(x, t):
        return to_x0(kind, p, network_output(model, p, kind, x, t, cond), x, t)

    return D


def clip(D: Denoiser, low: float = -1.0, high: float = 1.0) -> Denoiser:
    """The denoiser with its estimate clipped to the range of the data.

    Samplers compute eps from x_t and this estimate, so the two stay consistent.

    Raises: ValueError unless low < high.
    Source: Ho, Jain & Abbeel 2020, code of algorithm 2.
    """
    if checks.concrete(low, high) and not np.less(low, high).all():
        raise ValueError(f"low must be below high, got {low} and {high}")
    return lambda x, t: jnp.clip(D(x, t), low, high)


def dynamic_threshold(D: Denoiser, quantile: float = 0.995, limit: float = 1.0) -> Denoiser:
    """The denoiser with each example's estimate squeezed, rather than cut, into [−limit, limit].

    Where the given quantile of an example's absolute values exceeds the limit, the example is
    clipped to that quantile and divided by it, so that strong guidance does not saturate pixels.

    Raises: ValueError unless quantile is in (0, 1] and limit is positive.
    Source: Saharia et al. 2022, Imagen, section 2.3 (arXiv:2205.11487).
    """
    checks.within("quantile", quantile, 0, 1, ends="(]")
    checks.above("limit", limit, 0)

    def squeezed(x, t):
        x0 = D(x, t)
        size = jnp.quantile(jnp.abs(x0).reshape(x0.shape[0], -1), quantile, axis=1)
        size = expand(jnp.maximum(size, limit), x0)
        return jnp.clip(x0, -size, size) * (limit / size)

    return squeezed


class GaussianMixture(NamedTuple):
    """Data from sum_k weights_k·N(means_k, stds_k²·I), with everything about x_t in closed form.

    Under ``x_t = alpha·x0 + sigma·eps`` component k becomes N(alpha·means_k, v_k·I) with
    ``v_k = alpha²·stds_k² + sigma²``. Make one with `gaussian_mixture`.
    """

    process: Process
    means: Array  # [K, D]
    stds: Array  # [K]
    weights: Array  # [K]

    def _components(self, x: Array, t):
        """Difference to each mean [B, K, D], variance [B or 1, K] and log joint [B, K]."""
        x = _batch("x", x)
        if x.shape[1:] != self.means.shape[1:]:
            raise ValueError(
                f"x must have shape [B, {self.means.shape[1]}], got shape {list(x.shape)}"
            )
        alpha, sigma = (jnp.reshape(f, (-1, 1)) for f in levels(self.process, t, x))
        # Points have no variance at t = 0: this one picks the nearest of them.
        variance = jnp.maximum((alpha * self.stds) ** 2 + sigma**2, 1e-25)
        difference = x[:, None, :] - alpha[..., None] * self.means
        squared = jnp.sum(difference**2, axis=-1)
        dim = x.shape[-1]
        log_normal = -0.5 * (squared / variance + dim * jnp.log(2 * jnp.pi * variance))
        return difference, variance, jnp.log(self.weights) + log_normal

    def responsibilities(self, x: Array, t) -> Array:
        """p(component | x_t): [B, K]; x [B, D], t a scalar or [B]."""
        return jax.nn.softmax(self._components(x, t)[2], axis=-1)

    def log_responsibilities(self, x: Array, t) -> Array:
        """log p(component | x_t): [B, K]. Finite, with a gradient, where a probability is 0."""
        return jax.nn.log_softmax(self._components(x, t)[2], axis=-1)

    def denoise(self, x: Array, t) -> Array:
        """The posterior mean E[x0 | x_t]: [B, D]; x [B, D], t a scalar or [B]."""
        difference, variance, log_joint = self._components(x, t)
        r = jax.nn.softmax(log_joint, axis=-1)
        alpha = jnp.reshape(self.process.alpha(t), (-1, 1))
        gain = alpha * self.stds**2 / variance
        return jnp.sum(r[..., None] * (self.means + gain[..., None] * difference), axis=1)

    def score(self, x: Array, t) -> Array:
        """grad_x log p_t(x): [B, D]; x [B, D], t a scalar or [B]."""
        difference, variance, log_joint = self._components(x, t)
        r = jax.nn.softmax(log_joint, axis=-1)
        return -jnp.sum((r / variance)[..., None] * difference, axis=1)

    def log_prob(self, x: Array, t) -> Array:
        """log p_t(x) in nats: [B]; x [B, D], t a scalar or [B]."""
        return jax.nn.logsumexp(self._components(x, t)[2], axis=-1)

    def sample(self, key: Array, n: int) -> Array:
        """n draws of x0: [n, D]. Raises: ValueError for n < 1."""
        n = checks.integer("n", n, minimum=1)
        key_component, key_noise = jax.random.split(key)
        k = jax.random.categorical(key_component, jnp.log(self.weights), shape=(n,))
        noise = jax.random.normal(key_noise, (n, self.means.shape[1]), jnp.float32)
        return self.means[k] + self.stds[k][:, None] * noise


def gaussian_mixture(p: Process, means, stds, weights) -> GaussianMixture:
    """The exact oracle of data that follows a mixture of isotropic Gaussians.

    Args:
      p: the process.
      means: [K, D].
      stds: [K], each >= 0 (0 is a point).
      weights: [K], positive; normalised to sum 1.

    Raises: ValueError for other shapes, a negative std or a weight that is not positive.

    >>> from diffusion_course import process
    >>> gm = gaussian_mixture(process.rectified_flow(), [[-1.0], [1.0]], [0.0, 0.0], [1, 1])
    >>> print(gm.denoise(np.array([[0.0], [9.0]]), 0.5))  # undecided, and decided
    [[0.]
     [1.]]
    """
    # NumPy's arrays can be checked inside a jitted function too, unless they are its arguments.
    asarray = np.asarray if checks.concrete(means, stds, weights) else jnp.asarray
    means, stds, weights = (asarray(a, np.float32) for a in (means, stds, weights))
    check_components(means, stds, weights)
    checks.within("stds", stds, 0, np.inf, ends="[)")
    checks.above("weights", weights, 0)
    weights = weights / weights.sum()
    return GaussianMixture(p, jnp.asarray(means), jnp.asarray(stds), jnp.asarray(weights))


def check_components(means, stds, weights) -> None:
    """Raises: ValueError unless means are [K, D], and stds and weights [K]."""
    if means.ndim != 2 or 0 in means.shape:
        raise ValueError(f"means must have shape [K, D], got shape {list(means.shape)}")
    for name, values in {"stds": stds, "weights": weights}.items():
        if values.shape != means.shape[:1]:
            raise ValueError(
                f"{name} must have shape [K] = {list(means.shape[:1])}, "
                f"got shape {list(values.shape)}"
            )


def ideal(p: Process, data) -> Denoiser:
    """The posterior mean when the data distribution is a finite set of N points.

    ``D(x, t) = sum_i w_i·x_i`` with ``w = softmax(−‖x − alpha·x_i‖²/(2·sigma²))``: the minimiser
    of the training loss on that set, and a machine that can only return its members.

    Args:
      p: the process.
      data: [N, …].

    Returns: D(x, t), x [B, …], t a scalar or [B]; at t = 0 the nearest point.
    Raises: ValueError if data is empty or not floating-point; D, if x is of another shape.
    Source: Karras et al. 2022, appendix B.3 (arXiv:2206.00364).
    """
    data = checks.state("data", data)
    if data.ndim < 2 or data.shape[0] == 0:
        raise ValueError(f"data must have shape [N, …] with N >= 1, got shape {list(data.shape)}")
    points = data.reshape(data.shape[0], -1)
    # Data far from 0 would lose in float32 what tells neighbours apart.
    centre = points.mean(axis=0)
    apart = points - centre
    half_norms = 0.5 * jnp.sum(apart**2, axis=-1)

    def D(x, t):
        x = _batch("x", x)
        if x.shape[1:] != data.shape[1:]:
            raise ValueError(
                f"x must hold examples of shape {list(data.shape[1:])}, as the data does, "
                f"got shape {list(x.shape)}"
            )
        alpha, sigma = (jnp.reshape(level, (-1, 1)) for level in levels(p, t, x))
        # ‖x‖² is the same for all i and leaves the softmax; what remains is one matrix product.
        x_apart = x.reshape(x.shape[0], -1) - alpha * centre
        products = jnp.matmul(x_apart, apart.T, precision="highest")
        gaps = alpha * products - alpha**2 * half_norms
        # sigma² may round to 0: the nearest point's logit then is 0 all the same.
        variance = jnp.maximum(sigma**2, jnp.finfo(jnp.float32).tiny)
        logits = (gaps - gaps.max(axis=-1, keepdims=True)) / variance
        mean = jnp.matmul(jax.nn.softmax(logits, axis=-1), points, precision="highest")
        return mean.reshape(x.shape)

    return D
