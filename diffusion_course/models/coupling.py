"""A normalising flow: an invertible network between data and noise, whose volume is known."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from diffusion_course import checks
from diffusion_course.models import doors
from diffusion_course.models.layers import Linear, label_vectors


class CouplingFlow(nnx.Module):
    """Affine couplings: data [B, D] to noise of the same size, and back, both in one pass.

    A coupling leaves half of the coordinates as they are, and scales and shifts the others by what
    a network makes of that half. So it is undone without inverting the network, its Jacobian is
    triangular, and ``log |det|`` is the sum of the log-scales. It starts as the identity.

    Args:
      dim: D, at least 2. Of an image, the pixels in their order.
      width: of the networks' hidden layers.
      depth: number of couplings. Coupling i splits the coordinates by a binary digit of their
        index, and coupling i + 1 exchanges the halves: rows, columns and coarser blocks in turn.
      num_classes: number of labels, or None; with labels ``null_label = num_classes``.
      rngs: random number streams of the initialisation.

    Raises: ValueError for sizes that do not fit.
    Source: Dinh, Sohl-Dickstein & Bengio 2017, eq. 4–8 (arXiv:1605.08803).

    >>> flow = CouplingFlow(2, width=8, depth=2, rngs=nnx.Rngs(0))
    >>> x = jnp.array([[0.3, -2.0]])
    >>> z, log_det = flow(x)
    >>> bool((flow.inverse(z) == x).all()), log_det.tolist()
    (True, [0.0])
    """

    def __init__(
        self, dim: int, *, width: int = 128, depth: int = 8, num_classes: int | None = None,
        rngs: nnx.Rngs,
    ):  # fmt: skip
        self.dim, self.null_label = checks.integer("dim", dim, 2), num_classes
        checks.integer("width", width, 1)
        self.label = label_vectors(num_classes, width, rngs=rngs)
        depth = checks.integer("depth", depth, 1)
        self.couplings = nnx.data([Coupling(dim, i, width, rngs=rngs) for i in range(depth)])

    def __call__(self, x: Array, cond: Array | None = None) -> tuple[Array, Array]:
        """The noise that belongs to x [B, D], and log |det| of the map's Jacobian: [B, D], [B].

        Args:
          x: float32 [B, D].
          cond: labels [B] in 0 … num_classes, or None for no label.

        Raises: ValueError for an argument of another shape, dtype or range.
        """
        x, told = self._door(x, cond)
        total = jnp.zeros(len(x))
        for coupling in self.couplings:
            log_scale, shift = coupling(x, told)
            x = x * jnp.exp(log_scale) + shift
            total = total + log_scale.sum(axis=1)
        return x, total

    def inverse(self, z: Array, cond: Array | None = None) -> Array:
        """The data that belong to noise z [B, D]: [B, D]. Arguments and errors as of a call."""
        z, told = self._door(z, cond)
        for coupling in reversed(self.couplings):
            log_scale, shift = coupling(z, told)
            z = (z - shift) * jnp.exp(-log_scale)
        return z

    def log_prob(self, x: Array, cond: Array | None = None) -> Array:
        """Log-density of x in nats: that of its noise under N(0, 1), and the volume. [B]."""
        z, log_det = self(x, cond)
        return -0.5 * ((z**2).sum(axis=1) + self.dim * math.log(2 * math.pi)) + log_det

    def _door(self, x: Array, cond: Array | None) -> tuple[Array, Array | None]:
        x = doors.state(x, ("B", self.dim))
        cond = doors.labels(cond, len(x), self.null_label)
        return x, None if cond is None else self.label(cond)


class Coupling(nnx.Module):
    """Log-scale and shift of each coordinate, both 0 where `mask` is 1: [B, D] -> two [B, D].

    Only coordinates where the mask is 1 are read.
    """

    def __init__(self, dim: int, number: int, width: int, *, rngs: nnx.Rngs):
        digits = max(1, math.ceil(math.log2(dim)))
        digit = (np.arange(dim) >> (number // 2) % digits) & 1
        # A tuple: an array would be a parameter to NNX.
        self.mask = tuple(float(kept) for kept in (digit if number % 2 else 1 - digit))
        self.first = Linear(dim, width, rngs=rngs)
        self.second = Linear(width, width, rngs=rngs)
        self.last = Linear(width, 2 * dim, zero=True, rngs=rngs)

    def __call__(self, x: Array, told: Array | None) -> tuple[Array, Array]:
        mask = jnp.asarray(self.mask)
        h = self.first(mask * x)
        h = self.second(jax.nn.silu(h if told is None else h + told))
        log_scale, shift = jnp.split(self.last(jax.nn.silu(h)), 2, axis=-1)
        # Bounded: a scale that runs away is not undone in float32.
        return (1 - mask) * 2 * jnp.tanh(log_scale / 2), (1 - mask) * shift
