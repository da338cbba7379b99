"""Layers that keep the size of what flows through them, and a network made of them.

In an ordinary network weights and activations grow as long as it is trained. Here every layer
hands on activations of unit mean square, whatever its weights; a weight's size has then no effect
on the output, only on how far an update turns it, and `forced_norm` holds that size fixed.

Source: Karras et al. 2024, EDM2 (arXiv:2312.02696).
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array

from diffusion_course.checks import integer, within
from diffusion_course.models import doors
from diffusion_course.models.layers import STANDARD_NORMAL, sinusoidal_embedding

# Root of the mean square of silu(z) for z ~ N(0, 1).
_SILU = 0.5964692
_EPSILON = 1e-4  # keeps a row of zeros from 0/0


def unit_columns(weight: Array) -> Array:
    """A matrix [n, m] whose columns have the length 1; of unit entries it is a 1/sqrt(n)-th.

    >>> unit_columns(jnp.array([[3.0, 0.0], [4.0, 2.0]])).round(3).tolist()
    [[0.6000000238418579, 0.0], [0.800000011920929, 1.0]]
    """
    length = jnp.linalg.norm(weight, axis=0, keepdims=True)
    return weight / (length + _EPSILON * math.sqrt(weight.shape[0]))


def mp_silu(x: Array) -> Array:
    """silu, divided by the root mean square that it has on standard normal numbers.

    Source: Karras et al. 2024, eq. 81 (arXiv:2312.02696).
    """
    return jax.nn.silu(x) / _SILU


def mp_sum(a: Array, b: Array, share: float = 0.5) -> Array:
    """(1 − share)·a + share·b at unit size, for uncorrelated a and b of unit size.

    Args:
      a: an array.
      b: one that broadcasts against it.
      share: of b, in [0, 1].

    Raises: ValueError for a share outside [0, 1].
    Source: Karras et al. 2024, eq. 88 (arXiv:2312.02696).
    """
    within("share", share, 0, 1)
    return ((1 - share) * a + share * b) / jnp.hypot(1.0 - share, share)


class MPLinear(nnx.Module):
    """A dense layer without bias: [..., n] -> [..., m]; unit size in, unit size out.

    Args:
      c_in: n.
      c_out: m.
      rngs: random number streams of the initialisation.

    Source: Karras et al. 2024, eq. 47 and section 2.3 (arXiv:2312.02696).
    """

    def __init__(self, c_in: int, c_out: int, *, rngs: nnx.Rngs):
        shape = integer("c_in", c_in, 1), integer("c_out", c_out, 1)
        # Only the columns' directions count: see `forced_norm`.
        self.direction = nnx.Param(STANDARD_NORMAL(rngs.params(), shape, jnp.float32))

    def __call__(self, x: Array, gain: Array | float = 1.0) -> Array:
        return x @ (gain * unit_columns(self.direction[...]))


class MagnitudeMLP(nnx.Module):
    """`mlp.MLP` of layers that keep sizes: ``model(x, t, cond)`` for points [B, D].

    The input should have unit mean square, as kind "edm" gives it. The output starts at zero.

    Args:
      dim: D.
      width: of the hidden layers; even.
      depth: number of residual blocks.
      num_classes: number of labels, or None; with labels, ``null_label = num_classes``.
      rngs: random number streams of the initialisation.

    Raises: ValueError for a size that is not a positive whole number, or an odd width.
    Source: Karras et al. 2024, figure 21 (arXiv:2312.02696), with dense layers.

    >>> model = MagnitudeMLP(2, width=8, depth=1, rngs=nnx.Rngs(0))
    >>> model(jnp.ones((4, 2)), jnp.full(4, 0.5)).tolist()[0]
    [0.0, 0.0]
    """

    def __init__(
        self,
        dim: int = 2,
        width: int = 128,
        depth: int = 3,
        *,
        num_classes: int | None = None,
        rngs: nnx.Rngs,
    ):
        integer("dim", dim, 1)
        doors.divisible("width", width, 2)
        integer("depth", depth, 1)
        self.dim, self.width, self.null_label = dim, width, num_classes
        self.time = MPLinear(width, width, rngs=rngs)
        self.label = (
            None
            if num_classes is None
            else MPLinear(integer("num_classes", num_classes, 1) + 1, width, rngs=rngs)
        )
        # A channel of ones beside the data stands in for the biases.
        self.first = MPLinear(dim + 1, width, rngs=rngs)
        self.blocks = nnx.data([_Block(width, rngs=rngs) for _ in range(depth)])
        self.last = MPLinear(width, dim, rngs=rngs)
        self.gain = nnx.Param(jnp.zeros(()))

    def __call__(self, x: Array, t: Array, cond: Array | None = None) -> Array:
        """Predicts for points x at times t.

        Args:
          x: float32 [B, D].
          t: times in [0, 1], float32 [B].
          cond: labels [B] in 0 … num_classes; None for no label.

        Returns: float32 [B, D].
        Raises: ValueError for an argument of another shape, dtype or range, or for labels without
          label classes.
        """
        h = self.hidden(x, t, cond)[-1]
        return self.last(h, self.gain[...])

    def hidden(self, x: Array, t: Array, cond: Array | None = None) -> list[Array]:
        """The activations [B, width] after the first layer and after each block; as `__call__`."""
        x = doors.state(x, ("B", self.dim))
        emb = self._embed(doors.times(t, x.shape[0]), cond)
        h = [self.first(jnp.concatenate([x, jnp.ones_like(x[:, :1])], axis=1))]
        for block in self.blocks:
            h.append(block(h[-1], emb))
        return h

    def _embed(self, t: Array, cond: Array | None) -> Array:
        # Half of the mean square of a sinusoid is missing; of a one-hot row all but a K-th.
        emb = self.time(math.sqrt(2) * sinusoidal_embedding(t, self.width))
        classes = self.null_label
        labels = doors.labels(cond, len(t), classes)
        if labels is not None:
            one_hot = math.sqrt(classes + 1) * jax.nn.one_hot(labels, classes + 1)
            emb = mp_sum(emb, self.label(one_hot))
        return mp_silu(emb)


class _Block(nnx.Module):
    """A residual block; the embedding scales its hidden channels, from a gain of 0 on."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.first, self.second, self.scale = (MPLinear(width, width, rngs=rngs) for _ in range(3))
        self.gain = nnx.Param(jnp.zeros(()))

    def __call__(self, x: Array, emb: Array) -> Array:
        h = self.first(mp_silu(x)) * (1 + self.scale(emb, self.gain[...]))
        return mp_sum(x, self.second(mp_silu(h)), 0.3)


def forced_norm() -> optax.GradientTransformation:
    """After an update, gives every column [n] of an `MPLinear` the length sqrt(n).

    It goes last: ``optax.chain(optax.adam(schedule), forced_norm())``. Without it the columns
    grow, since a gradient is perpendicular to a weight whose length has no effect, and every
    update then turns them by less.

    Source: Karras et al. 2024, section 2.3 and algorithm 1 (arXiv:2312.02696).
    """

    def update(updates, state, params=None):
        if params is None:
            raise ValueError("params must be given: forced_norm needs the weights themselves")

        def held(path, change, weight):
            if not any("direction" in str(part) for part in path):
                return change
            moved = weight + change
            length = jnp.linalg.norm(moved, axis=0, keepdims=True)
            return moved * (np.sqrt(weight.shape[0]) / length) - weight

        return jax.tree_util.tree_map_with_path(held, updates, params), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
