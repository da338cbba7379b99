"""Cascades: a small image first, then stages that enlarge it.

The first model draws an image of few pixels. Each stage is a diffusion model of images with more
pixels that is told the smaller image, with noise on it (conditioning augmentation), and the level
of this noise. Images are NHWC; a smaller image is made of averages of squares of pixels.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion_course import checks
from diffusion_course.denoiser import Denoiser
from diffusion_course.linear_gaussian import check_mixture
from diffusion_course.models.layers import upsample
from diffusion_course.process import Process, add_noise, levels
from diffusion_course.samplers import Sampler
from diffusion_course.sampling import sample, start_noise


def down(x: Array, factor: int) -> Array:
    """Averages over squares of factor × factor pixels: [B, H, W, C] -> [B, H/factor, W/factor, C].

    Args:
      x: images whose height and width are multiples of the factor.
      factor: at least 1.

    Raises: ValueError for an x that is not such an array.

    >>> down(jnp.arange(8.0).reshape(1, 2, 4, 1), 2)[0, :, :, 0].tolist()
    [[2.5, 4.5]]
    """
    x, factor = _images("x", x), checks.integer("factor", factor, 1)
    b, height, width, c = x.shape
    if height % factor or width % factor:
        raise ValueError(
            f"x must have a height and a width that are multiples of {factor}, got {height} and "
            f"{width}"
        )
    squares = x.reshape(b, height // factor, factor, width // factor, factor, c)
    return squares.mean(axis=(2, 4))


def up(x: Array, factor: int) -> Array:
    """Every pixel repeated as a square: [B, H, W, C] -> [B, factor·H, factor·W, C].

    `down` takes it back exactly.

    Args:
      x: images.
      factor: at least 1.

    Raises: ValueError for an x that is not such an array.
    """
    x, factor = _images("x", x), checks.integer("factor", factor, 1)
    return upsample(x, factor)


def _images(name: str, x) -> Array:
    x = checks.state(name, x)
    if x.ndim != 4:
        raise ValueError(f"{name} must have shape [B, H, W, C], got {list(x.shape)}")
    return x


def augment(p: Process, low: Array, eps: Array, s) -> Array:
    """Conditioning augmentation: the smaller image at level s, ``alpha(s)·low + sigma(s)·eps``.

    It is the forward process itself, applied to the condition.

    Args:
      p: the process.
      low: smaller images [B, …].
      eps: standard normal noise of the same shape.
      s: the level, a time in [0, 1]: a scalar or one per example [B]. At 0 nothing is changed.

    Raises: ValueError as `process.add_noise`.
    Source: Ho et al. 2022, section 3 (arXiv:2106.15282).
    """
    return add_noise(p, low, eps, s)


class Stage(NamedTuple):
    """One stage of a cascade.

    Attributes:
      given: ``given(low, s)``, the denoiser of larger images for smaller ones [B, …] that hold
        noise of level s, float32 [B].
      shape: of one larger image, such as (16, 16, 3).
      s: the level that the smaller images are brought to.
    """

    given: Callable[[Array, Array], Denoiser]
    shape: tuple[int, ...]
    s: float


def enlarge(p: Process, stage: Stage, low: Array, sampler: Sampler, times, key: Array) -> Array:
    """One stage: noise on the smaller images, and from new noise the larger ones.

    Args:
      p: the process, of the augmentation and of the larger images.
      stage: whose model is used.
      low: smaller images [B, …] without noise.
      sampler: from `diffusion_course.samplers`.
      times: [n + 1], strictly falling within [1, 0].
      key: a random key.

    Returns: larger images [B, *stage.shape].
    Raises: ValueError for a level outside [0, 1], and as `sampling.sample`.
    """
    low, s = checks.state("low", low), checks.number("s", stage.s)
    checks.within("s", s, 0, 1)
    key_augment, key_start, key_steps = jax.random.split(key, 3)
    told = jnp.full(len(low), s, jnp.float32)
    noisy = augment(p, low, jax.random.normal(key_augment, low.shape), told)
    start = start_noise(p, key_start, (len(low), *stage.shape), float(times[0]))
    return sample(sampler, stage.given(noisy, told), start, times, key_steps)[0]


def cascade(
    p: Process, stages: Sequence[Stage], low: Array, sampler: Sampler, times, key: Array
) -> list[Array]:
    """All stages after the first image: what each was given and what the last one makes.

    Args:
      p, sampler, times: as in `enlarge`.
      stages: from small to large.
      low: the smallest images [B, …].
      key: a random key; stage i uses ``fold_in(key, i)``.

    Returns: len(stages) + 1 arrays, the first of them `low`.
    Source: Ho et al. 2022, section 3 (arXiv:2106.15282).
    """
    images = [low]
    for i, stage in enumerate(stages):
        key_stage = jax.random.fold_in(key, i)
        images.append(enlarge(p, stage, images[-1], sampler, times, key_stage))
    return images


class LinearStage(NamedTuple):
    """The exact stage of Gaussian images, whose smaller images are ``A x``.

    Make one with `linear_stage`. All methods are exact; what `outcome` says of the images that are
    drawn holds for a sampler without error.
    """

    process: Process
    mean: np.ndarray  # [D]
    covariance: np.ndarray  # [D, D]
    A: np.ndarray  # [d, D]

    def gain(self, s: float) -> np.ndarray:
        """G(s) [D, d]: E[x | z] = mean + G (z − alpha(s)·A mean), for a smaller image at level s.

        ``G = alpha·C Aᵀ (alpha²·A C Aᵀ + sigma²·I)⁻¹``.
        """
        alpha, sigma = _level(self.process, s)
        across = alpha * self.A @ self.covariance
        spread = alpha * across @ self.A.T + sigma**2 * np.eye(len(self.A))
        return np.linalg.solve(spread, across).T

    def left(self, s: float) -> np.ndarray:
        """Cov[x | z], [D, D]: what a smaller image at level s leaves open."""
        open_ = self.covariance - _level(self.process, s)[0] * self.gain(s) @ (
            self.A @ self.covariance
        )
        return (open_ + open_.T) / 2

    def given(self, z: Array, s: float) -> Denoiser:
        """The denoiser of x for smaller images z [B, d] at level s: E[x | x_t, z]."""
        alpha_s = _level(self.process, s)[0]
        G, shift = jnp.asarray(self.gain(s), jnp.float32), alpha_s * self.A @ self.mean
        apart = z - shift.astype(np.float32)
        means = self.mean.astype(np.float32) + jnp.matmul(apart, G.T, precision="highest")
        variances, vectors = np.linalg.eigh(self.left(s))
        variances = jnp.asarray(np.maximum(variances, 0), jnp.float32)
        vectors = jnp.asarray(vectors, jnp.float32)

        def D(x, t):
            alpha, sigma = levels(self.process, t, x)
            # Nothing is open along a direction without variance, also where sigma is 0.
            spread = jnp.maximum(alpha**2 * variances + sigma**2, 1e-25)
            along = jnp.matmul(x - alpha * means, vectors, precision="highest")
            moved = alpha * variances / spread * along
            return means + jnp.matmul(moved, vectors.T, precision="highest")

        return D

    def outcome(self, mean, covariance, s: float, told: float | None = None):
        """Mean [D] and covariance [D, D] of what the stage draws from smaller images.

        Args:
          mean: of the smaller images, [d]; of true ones ``A @ mean``.
          covariance: of the smaller images, [d, d]; of true ones ``A C Aᵀ``.
          s: the level of the noise that is put on them.
          told: the level that the stage is told, if it is not the true one.
        """
        told = s if told is None else told
        alpha, sigma = _level(self.process, s)
        G = self.gain(told)
        away = alpha * np.asarray(mean) - _level(self.process, told)[0] * self.A @ self.mean
        spread = alpha**2 * np.asarray(covariance) + sigma**2 * np.eye(len(self.A))
        return self.mean + G @ away, self.left(told) + G @ spread @ G.T


def linear_stage(p: Process, mean, covariance, A) -> LinearStage:
    """The exact stage of images from N(mean, covariance), flattened, with smaller images ``A x``.

    Args:
      p: the process.
      mean: [D].
      covariance: [D, D], symmetric without negative eigenvalues.
      A: [d, D], such as ``operators.as_matrix(operators.average(…))``.

    Raises: ValueError for other shapes or values.

    >>> from diffusion_course import process
    >>> stage = linear_stage(process.vp_cosine(), [0, 0], [[2, 1], [1, 2]], [[0.5, 0.5]])
    >>> stage.gain(0.0).tolist(), stage.left(0.0).tolist()
    ([[1.0], [1.0]], [[0.5, -0.5], [-0.5, 0.5]])
    """
    means, covariances, _ = check_mixture(
        np.asarray(mean, np.float64)[None], np.asarray(covariance, np.float64)[None], [1.0]
    )
    A = np.asarray(A, np.float64)
    if A.ndim != 2 or A.shape[1] != means.shape[1]:
        raise ValueError(f"A must have shape [d, {means.shape[1]}], got {list(A.shape)}")
    return LinearStage(p, means[0], covariances[0], A)


def _level(p: Process, s: float) -> tuple[float, float]:
    checks.within("s", s, 0, 1)
    return float(p.alpha(s)), float(p.sigma(s))
