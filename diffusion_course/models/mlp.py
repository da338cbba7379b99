"""A small network for points in the plane."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from diffusion_course.models.layers import TimeEmbedding


class MLP(nnx.Module):
    """``model(x, t, cond)`` for points [B, D]: residual dense layers that see the time.

    Args:
      dim: D.
      width: of the hidden layers; even.
      depth: number of residual layers.
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
        num_classes: int | None = None,
        rngs: nnx.Rngs,
    ):
        if depth < 1:
            raise ValueError(f"depth must be at least 1, got {depth}")
        self.null_label = num_classes
        self.time = TimeEmbedding(width, rngs=rngs)
        self.label = None if num_classes is None else nnx.Embed(num_classes + 1, width, rngs=rngs)
        self.first = nnx.Linear(dim, width, rngs=rngs)
        self.hidden = nnx.data([nnx.Linear(width, width, rngs=rngs) for _ in range(depth)])
        self.last = nnx.Linear(width, dim, kernel_init=nnx.initializers.zeros_init(), rngs=rngs)

    def __call__(self, x: Array, t: Array, cond: Array | None = None) -> Array:
        """Predicts for points x [B, D] at times t [B]; cond: labels [B] or None."""
        emb = self.time(t)
        if self.label is not None:
            emb = emb + self.label(jnp.full(t.shape, self.null_label) if cond is None else cond)
        elif cond is not None:
            raise ValueError("cond must be None: this model has no labels (num_classes=None)")
        h = self.first(x)
        for layer in self.hidden:
            h = h + layer(jax.nn.silu(h + emb))
        return self.last(jax.nn.silu(h))
