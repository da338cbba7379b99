"""The exact posterior of a linear measurement, for data from a mixture of Gaussians.

A Gaussian times a linear Gaussian likelihood is a Gaussian, so a mixture stays a mixture. It is
the oracle for every method of `diffusion_course.inverse`.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion_course import checks
from diffusion_course.operators import Operator, as_matrix
from diffusion_course.process import Process, levels


class FullMixture(NamedTuple):
    """Data from ``sum_k weights_k·N(means_k, C_k)`` with full covariances, and all of x_t exactly.

    Each covariance is held as its eigenvectors and eigenvalues, since
    ``alpha²·C_k + sigma²·I`` then is diagonal at all times. Make one with `full_mixture`.
    """

    process: Process
    means: Array  # [K, D]
    vectors: Array  # [K, D, D]: column j belongs to variances[k, j]
    variances: Array  # [K, D]
    weights: Array  # [K]

    def mean(self) -> Array:
        """E[x0]: [D]."""
        return jnp.matmul(self.weights, self.means, precision="highest")

    def covariance(self) -> Array:
        """Cov[x0]: [D, D], what is inside the components and what lies between their means."""
        exactly = partial(jnp.einsum, precision="highest")
        axes, widths = self.vectors, self.variances
        inside = exactly("k,kdj,kj,kej->de", self.weights, axes, widths, axes)
        apart = self.means - self.mean()
        return inside + exactly("k,kd,ke->de", self.weights, apart, apart)

    def _components(self, x: Array, t):
        """Along each axis: difference, variance of x_t, both [B, K, D]; and log joint [B, K]."""
        if x.ndim != 2 or x.shape[1:] != self.means.shape[1:]:
            raise ValueError(
                f"x must have shape [B, {self.means.shape[1]}], got shape {list(x.shape)}"
            )
        alpha, sigma = (jnp.reshape(f, (-1, 1, 1)) for f in levels(self.process, t, x))
        # A direction without variance has none at t = 0 either: this picks the nearest component.
        variance = jnp.maximum(alpha**2 * self.variances + sigma**2, 1e-25)
        apart = x[:, None, :] - alpha * self.means
        along = jnp.einsum("bkd,kdj->bkj", apart, self.vectors, precision="highest")
        log_normal = -0.5 * jnp.sum(along**2 / variance + jnp.log(2 * jnp.pi * variance), axis=-1)
        return along, variance, jnp.log(self.weights) + log_normal

    def denoise(self, x: Array, t) -> Array:
        """E[x0 | x_t = x]: [B, D]; x [B, D], t a scalar or [B]."""
        along, variance, log_joint = self._components(x, t)
        alpha = jnp.reshape(levels(self.process, t, x)[0], (-1, 1, 1))
        moved = alpha * self.variances / variance * along
        each = self.means + jnp.einsum("bkj,kdj->bkd", moved, self.vectors, precision="highest")
        return jnp.sum(jax.nn.softmax(log_joint, axis=-1)[..., None] * each, axis=1)

    def log_prob(self, x: Array, t) -> Array:
        """log p_t(x) in nats: [B]; x [B, D], t a scalar or [B]."""
        return jax.nn.logsumexp(self._components(x, t)[2], axis=-1)

    def sample(self, key: Array, n: int) -> Array:
        """n draws of x0: [n, D]. Raises: ValueError for n < 1."""
        n = checks.integer("n", n, 1)
        key_component, key_noise = jax.random.split(key)
        k = jax.random.categorical(key_component, jnp.log(self.weights), shape=(n,))
        noise = jax.random.normal(key_noise, (n, self.means.shape[1]), jnp.float32)
        along = jnp.sqrt(self.variances)[k] * noise
        turned = jnp.einsum("nj,ndj->nd", along, self.vectors[k], precision="highest")
        return self.means[k] + turned


def full_mixture(p: Process, means, covariances, weights) -> FullMixture:
    """The exact oracle of a mixture of Gaussians with full covariances.

    Args:
      p: the process.
      means: [K, D].
      covariances: [K, D, D], symmetric with no negative eigenvalue.
      weights: [K], positive; normalised to sum 1.

    Raises: ValueError for other shapes or values.

    >>> from diffusion_course import process
    >>> gm = full_mixture(process.rectified_flow(), [[1.0, 0.0]], [[[4.0, 0.0], [0.0, 0.0]]], [1])
    >>> gm.denoise(jnp.array([[3.0, 3.0]]), 0.5).tolist()  # the second coordinate is known: 0
    [[5.0, 0.0]]
    """
    means, covariances, weights = check_mixture(means, covariances, weights)
    variances, vectors = np.linalg.eigh(covariances)
    # Rounding may leave an eigenvalue of 0 below it.
    parts = (means, vectors, np.maximum(variances, 0), weights / weights.sum())
    return FullMixture(p, *(jnp.asarray(part, jnp.float32) for part in parts))


def check_mixture(means, covariances, weights) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The parameters of a mixture in float64."""
    means, covariances, weights = (np.asarray(a, np.float64) for a in (means, covariances, weights))
    if means.ndim != 2 or 0 in means.shape:
        raise ValueError(f"means must have shape [K, D], got shape {list(means.shape)}")
    k, d = means.shape
    for name, values, shape in (
        ("covariances", covariances, (k, d, d)),
        ("weights", weights, (k,)),
    ):
        if values.shape != shape:
            raise ValueError(
                f"{name} must have shape {list(shape)}, got shape {list(values.shape)}"
            )
    checks.above("weights", weights, 0)
    checks.within("means", means, -np.inf, np.inf, ends="()")
    checks.within("covariances", covariances, -np.inf, np.inf, ends="()")
    size = np.abs(covariances).max(axis=(1, 2), initial=0)
    skew = np.abs(covariances - covariances.swapaxes(1, 2)).max(axis=(1, 2), initial=0)
    least = np.linalg.eigvalsh(covariances).min(axis=1)
    # The parameters may have been float32.
    if (skew > 1e-5 * size).any() or (least < -1e-5 * size).any():
        raise ValueError(
            "covariances must be symmetric without negative eigenvalues, "
            f"got {least.min():.3g} as the least eigenvalue and an asymmetry of {skew.max():.3g}"
        )
    return means, covariances, weights


class Exact(NamedTuple):
    """What a measurement tells exactly.

    Attributes:
      posterior: the distribution of x0 given y.
      log_evidence: log p(y), the measurement's own log-density in nats, on A's range.
    """

    posterior: FullMixture
    log_evidence: float


def posterior(p: Process, means, covariances, weights, A: Operator, y, sigma_y: float) -> Exact:
    """The exact posterior of x0 given ``y = A x0 + sigma_y·noise``, for a mixture of Gaussians.

    Component k has its mean moved by ``G_k (y − A m_k)``, with the gain
    ``G_k = C_k Aᵀ (A C_k Aᵀ + sigma_y²·I)⁻¹``, its covariance reduced by ``G_k A C_k``, and its
    weight multiplied by the density that it gives to y.

    Args:
      p: the process, for ``posterior.denoise(x, t)`` = E[x0 | x_t = x, y].
      means: [K, D]; D is the size of an example, flattened.
      covariances: [K, D, D]; of `denoiser.gaussian_mixture` they are ``stds²·I``.
      weights: [K], positive.
      A: the operator.
      y: one measurement, [*A.measured].
      sigma_y: standard deviation of the noise, positive.

    Returns: the posterior and log p(y).
    Raises: ValueError for other shapes or values.
    Source: Bishop 2006, Pattern Recognition and Machine Learning, section 2.3.3.

    >>> from diffusion_course import operators, process
    >>> A = operators.matrix([[1.0]])
    >>> exact = posterior(process.rectified_flow(), [[0.0]], [[[4.0]]], [1.0], A, [5.0], 1.0)
    >>> exact.posterior.mean().round(3).tolist(), exact.posterior.covariance().round(3).tolist()
    ([4.0], [[0.800000011920929]])
    """
    means, covariances, weights = check_mixture(means, covariances, weights)
    checks.above("sigma_y", sigma_y, 0)
    rows, y = _on_range(A, y)
    if rows.shape[1] != means.shape[1]:
        raise ValueError(
            f"means must have shape [K, {rows.shape[1]}], as the operator measures examples of "
            f"shape {list(A.shape)}, got shape {list(means.shape)}"
        )
    # What each component says of y.
    spread = rows @ covariances @ rows.T + sigma_y**2 * np.eye(len(rows))
    apart = y - means @ rows.T
    squared = np.einsum("km,km->k", apart, np.linalg.solve(spread, apart[..., None])[..., 0])
    log_normal = -0.5 * (squared + np.linalg.slogdet(2 * np.pi * spread)[1])
    log_joint = np.log(weights / weights.sum()) + log_normal
    log_evidence = np.logaddexp.reduce(log_joint)
    # What y says of each component. The gain is solved for, spread being symmetric.
    gain = np.linalg.solve(spread, rows @ covariances).swapaxes(1, 2)
    moved = means + np.einsum("kdm,km->kd", gain, apart)
    narrowed = covariances - gain @ rows @ covariances
    narrowed = (narrowed + narrowed.swapaxes(1, 2)) / 2
    # A component that cannot have made y keeps a weight of almost 0, whose logarithm is finite.
    share = np.maximum(np.exp(log_joint - log_evidence), 1e-37)
    return Exact(full_mixture(p, moved, narrowed, share), float(log_evidence))


def _on_range(A: Operator, y) -> tuple[np.ndarray, np.ndarray]:
    """A and y in orthonormal coordinates of A's range: [rank, D] and [rank], float64.

    Pixels that a mask hides are no measurements, and must not count as such in the evidence.
    """
    y = np.asarray(y, np.float64)
    if y.shape != A.measured:
        raise ValueError(
            f"y must be one measurement of shape {list(A.measured)}, got shape {list(y.shape)}"
        )
    entries = as_matrix(A)
    left = np.linalg.svd(entries)[0][:, : A.rank]
    return left.T @ entries, left.T @ y.reshape(-1)
