"""A small network for points in the plane."""

import jax
from flax import nnx
from jax import Array

from diffusion_course.models.layers import Conditioning, Linear


class MLP(nnx.Module):
    """``model(x, t, cond)`` for points [B, D]: residual dense layers that see the time.

    Args:
      dim: D.
      width: of the hidden layers; even.
      depth: number of residual layers.
      learned_variance: whether the output has 2D columns, the last D for `bound.learned`.
      num_classes: number of labels, or None; with labels, ``null_label = num_classes``.
      rngs: random number streams of the initialisation.

    Raises: ValueError if depth is below 1.
    """

    def __init__(
        self,
        dim: int = 2,
        width: int = 128,
        depth: int = 3,
        *,
        learned_variance: bool = False,
        num_classes: int | None = None,
        rngs: nnx.Rngs,
    ):
        if depth < 1:
            raise ValueError(f"depth must be at least 1, got {depth}")
        self.null_label = num_classes
        self.embed = Conditioning(width, num_classes, rngs=rngs)
        self.first = Linear(dim, width, rngs=rngs)
        self.hidden = nnx.data([Linear(width, width, rngs=rngs) for _ in range(depth)])
        self.last = Linear(width, 2 * dim if learned_variance else dim, zero=True, rngs=rngs)

    def __call__(self, x: Array, t: Array, cond: Array | None = None) -> Array:
        """Predicts for points x [B, D] at times t [B]; cond: labels [B] or None."""
        emb = self.embed(t, cond)
        h = self.first(x)
        for layer in self.hidden:
            h = h + layer(jax.nn.silu(h + emb))
        return self.last(jax.nn.silu(h))
