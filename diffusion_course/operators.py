"""Linear measurements of pictures: which pixels are seen, blur, averages, any matrix.

An inverse problem is ``y = A x + sigma_y·noise``: y and A are known, x is wanted. How to solve it
with a denoiser is the matter of `diffusion_course.inverse`.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion_course import checks

# Directions that a measurement shrinks below this part of the largest count as not seen at all:
# float32 rounds there what a pseudo-inverse would blow up again.
SEEN = 1e-5


class Operator(NamedTuple):
    """A linear map A of examples, with ``A Aᵀ`` diagonal in known coordinates.

    Make one with `mask`, `average`, `blur` or `matrix`. Batches go in and come out: x [B, *shape],
    y [B, *measured].

    Attributes:
      shape: of one example x.
      measured: shape of one measurement y, with as many axes.
      spectrum: the eigenvalues of ``A Aᵀ``, the squares of A's singular values: [*measured].
      apply: x -> A x.
      adjoint: y -> Aᵀ y.
      analyse: y -> its coordinates in the eigenvectors of ``A Aᵀ``.
      synthesise: the coordinates -> y.
    """

    shape: tuple[int, ...]
    measured: tuple[int, ...]
    spectrum: np.ndarray
    apply: Callable[[Array], Array]
    adjoint: Callable[[Array], Array]
    analyse: Callable[[Array], Array]
    synthesise: Callable[[Array], Array]

    @property
    def rank(self) -> int:
        """How many numbers are measured: the dimension of A's range."""
        return int((self.spectrum > 0).sum())

    def project(self, y: Array) -> Array:
        """The part of y that a measurement can have: ``A A⁺ y``."""
        return self.synthesise(self.analyse(y) * (self.spectrum > 0))

    def solve(self, y: Array, variance, noise_variance) -> Array:
        """``(variance·A Aᵀ + noise_variance·I)⁻¹ y``, a pseudo-inverse where that is singular.

        Args:
          y: [B, *measured].
          variance: a number, or one per example [B, 1, …, 1].
          noise_variance: the same.
        """
        total = variance * self.spectrum + noise_variance
        some = total > 0
        return self.synthesise(self.analyse(y) * jnp.where(some, 1 / jnp.where(some, total, 1), 0))

    def pseudo_inverse(self, y: Array) -> Array:
        """``A⁺ y``, the smallest x whose measurement is nearest to y."""
        return self.adjoint(self.solve(y, 1.0, 0.0))


def measure(A: Operator, x: Array, sigma_y, key: Array) -> Array:
    """``A x + sigma_y·noise``. Pixels that a mask hides get no noise, and stay 0.

    Args:
      A: the operator.
      x: [B, *A.shape].
      sigma_y: standard deviation of the noise, at least 0.
      key: a random key.

    Returns: y [B, *A.measured].
    Raises: ValueError if x has another shape or sigma_y is negative.

    >>> A = mask(np.array([True, False]))
    >>> measure(A, jnp.array([[3.0, 4.0]]), 0.0, jax.random.key(0)).tolist()
    [[3.0, 0.0]]
    """
    x = check_examples("x", x, A.shape)
    sigma_y = checks.non_negative("sigma_y", sigma_y)
    checks.random_key("key", key)
    y = A.apply(x)
    return y + sigma_y * A.project(jax.random.normal(key, y.shape, y.dtype))


def check_examples(argument: str, given, shape: tuple[int, ...]) -> Array:
    """A batch of this shape as float32; ValueError with the argument's name if it is none."""
    given = checks.state(argument, given)
    if given.ndim != len(shape) + 1 or given.shape[1:] != shape:
        raise ValueError(
            f"{argument} must have shape [B, {', '.join(map(str, shape))}], as the operator has "
            f"it, got shape {list(given.shape)}"
        )
    return given


def as_matrix(A: Operator) -> np.ndarray:
    """The operator as a matrix, float64, for examples and measurements flattened to vectors.

    Args:
      A: the operator.

    Returns: [M, D], M and D being the sizes of a measurement and of an example.

    >>> as_matrix(average((2, 2, 1), 2)).tolist()
    [[0.25, 0.25, 0.25, 0.25]]
    """
    size = math.prod(A.shape)
    columns = A.apply(jnp.eye(size, dtype=jnp.float32).reshape(size, *A.shape))
    return np.asarray(columns, np.float64).reshape(size, -1).T


def _same(y: Array) -> Array:
    return y


def mask(seen) -> Operator:
    """Some pixels are seen and the others are not; y has the picture's shape, with 0 for those.

    Args:
      seen: True, or 1, for pixels that are seen: of the shape of one example.

    Raises: ValueError if it holds other values, has no axis or sees nothing.

    >>> A = mask([[1, 0, 1]])
    >>> A.rank, A.apply(jnp.full((1, 1, 3), 5.0)).tolist()
    (2, [[[5.0, 0.0, 5.0]]])
    """
    seen = np.asarray(checks.binary("seen", seen))
    if seen.ndim == 0 or not seen.any():
        raise ValueError(f"seen must be an array with at least one True, got {seen!r}")
    visible = seen.astype(np.float32)

    def apply(x):
        return x * visible

    return Operator(seen.shape, seen.shape, visible, apply, apply, _same, _same)


def average(shape: tuple[int, int, int], factor: int) -> Operator:
    """Down-sampling: the mean of each block of factor × factor pixels.

    Args:
      shape: of one picture, (H, W, C).
      factor: side of a block, which divides H and W.

    Raises: ValueError if shape has not three axes, or factor does not divide H and W.

    >>> average((4, 2, 1), 2).measured
    (2, 1, 1)
    """
    shape, factor = _picture(shape), checks.integer("factor", factor, 1)
    if shape[0] % factor or shape[1] % factor:
        raise ValueError(f"factor must divide height and width of {list(shape)}, got {factor}")
    height, width, channels = shape
    h, w = height // factor, width // factor

    def apply(x):
        blocks = x.reshape(-1, h, factor, w, factor, channels)
        return blocks.mean(axis=(2, 4))

    def adjoint(y):
        return jnp.repeat(jnp.repeat(y, factor, axis=1), factor, axis=2) / factor**2

    # The blocks do not overlap, so A Aᵀ is a multiple of the identity.
    spectrum = np.full((h, w, channels), 1 / factor**2, np.float32)
    return Operator(shape, (h, w, channels), spectrum, apply, adjoint, _same, _same)


def blur(shape: tuple[int, int, int], kernel) -> Operator:
    """Convolution of every channel with one kernel; beyond an edge the opposite one continues.

    Because of these periodic edges the Fourier transform makes it diagonal.

    Args:
      shape: of one picture, (H, W, C).
      kernel: [k, l] with odd k <= H and l <= W; its middle is the pixel itself.

    Raises: ValueError if shape has not three axes, or the kernel is of another kind or 0.
    """
    shape = _picture(shape)
    kernel = np.asarray(kernel, np.float64)
    fits = kernel.ndim == 2 and all(
        k % 2 and k <= n for k, n in zip(kernel.shape, shape, strict=False)
    )
    if not fits:
        raise ValueError(
            f"kernel must have two odd sides of at most {shape[0]} and {shape[1]}, "
            f"got shape {list(kernel.shape)}"
        )
    if not (np.isfinite(kernel).all() and kernel.any()):
        raise ValueError("kernel must hold finite numbers that are not all 0")
    # The kernel as a picture, its middle moved to the corner: its transform is the operator's.
    picture = np.zeros(shape[:2])
    picture[: kernel.shape[0], : kernel.shape[1]] = kernel
    picture = np.roll(picture, [-(k // 2) for k in kernel.shape], axis=(0, 1))
    response = np.fft.fft2(picture)[:, :, None]
    size = np.abs(response)
    spectrum = np.broadcast_to(np.where(size > SEEN * size.max(), size**2, 0), shape)
    response = response.astype(np.complex64)

    def analyse(y):
        return jnp.fft.fft2(y, axes=(1, 2))

    def synthesise(coordinates):
        return jnp.fft.ifft2(coordinates, axes=(1, 2)).real

    def apply(x):
        return synthesise(analyse(x) * response)

    def adjoint(y):
        return synthesise(analyse(y) * response.conj())

    return Operator(shape, shape, spectrum.astype(np.float32), apply, adjoint, analyse, synthesise)


def gaussian_kernel(size: int, std: float) -> np.ndarray:
    """A kernel for `blur` that follows a Gaussian and sums to 1.

    Args:
      size: its side in pixels, odd.
      std: standard deviation in pixels.

    Returns: float64 [size, size]. Raises: ValueError if size is even or std is not positive.

    >>> gaussian_kernel(3, 1.0).round(2).tolist()
    [[0.08, 0.12, 0.08], [0.12, 0.2, 0.12], [0.08, 0.12, 0.08]]
    """
    size = checks.integer("size", size, 1)
    if size % 2 == 0:
        raise ValueError(f"size must be odd, got {size}")
    checks.above("std", std, 0)
    line = np.exp(-0.5 * ((np.arange(size) - size // 2) / std) ** 2)
    square = np.outer(line, line)
    return square / square.sum()


def matrix(entries) -> Operator:
    """Any linear map of vectors, through its singular value decomposition.

    Args:
      entries: [M, D].

    Raises: ValueError if it is not a matrix of finite numbers that are not all 0.

    >>> A = matrix([[1.0, 1.0]])
    >>> A.pseudo_inverse(jnp.array([[4.0]])).round(3).tolist()
    [[2.0, 2.0]]
    """
    entries = np.asarray(entries, np.float64)
    if entries.ndim != 2 or not (np.isfinite(entries).all() and entries.any()):
        raise ValueError(
            "entries must be a matrix [M, D] of finite numbers that are not all 0, "
            f"got shape {list(entries.shape)}"
        )
    left, singular, _ = np.linalg.svd(entries, full_matrices=True)
    spectrum = np.zeros(len(entries), np.float32)  # more rows than columns: the rest is 0
    spectrum[: len(singular)] = np.where(singular > SEEN * singular[0], singular**2, 0)
    entries, left = entries.astype(np.float32), left.astype(np.float32)

    def times(right):
        return lambda batch: jnp.matmul(batch, right, precision="highest")

    m, d = entries.shape
    return Operator(
        (d,), (m,), spectrum, times(entries.T), times(entries), times(left), times(left.T)
    )


def _picture(shape) -> tuple[int, int, int]:
    shape = tuple(checks.integer("each entry of shape", size, 1) for size in shape)
    if len(shape) != 3:
        raise ValueError(f"shape must be that of one picture, (H, W, C), got {list(shape)}")
    return shape
