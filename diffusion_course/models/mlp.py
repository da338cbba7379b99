"""A small network for points in the plane."""

import jax
from flax import nnx
from jax import Array

from diffusion_course.checks import integer
from diffusion_course.models import doors
from diffusion_course.models.layers import TIME_SCALE, Conditioning, Linear


class MLP(nnx.Module):
    """``model(x, t, cond)`` for points [B, D]: residual dense layers that see the time.

    The output layer starts at zero: the untrained network is 0.

    Args:
      dim: D.
      width: of the hidden layers; even.
      depth: number of residual layers.
      learned_variance: whether the output has 2D columns, the last D for `bound.learned`.
      num_classes: number of labels, or None; with labels, ``null_label = num_classes``.
      extras: how many further numbers the model is told for each example.
      time_scale: factor of the time and of these numbers inside their sinusoids.
      rngs: random number streams of the initialisation.

    Raises: ValueError for a size that is not a positive whole number, or an odd width.

    >>> model = MLP(2, width=8, depth=1, num_classes=3, rngs=nnx.Rngs(0))
    >>> x, t = jax.numpy.ones((4, 2)), jax.numpy.full(4, 0.5)
    >>> model(x, t, jax.numpy.array([0, 1, 2, model.null_label])).shape
    (4, 2)
    """

    def __init__(
        self,
        dim: int = 2,
        width: int = 128,
        depth: int = 3,
        *,
        learned_variance: bool = False,
        num_classes: int | None = None,
        extras: int = 0,
        time_scale: float = TIME_SCALE,
        rngs: nnx.Rngs,
    ):
        integer("dim", dim, 1)
        doors.divisible("width", width, 2)
        integer("depth", depth, 1)
        self.dim, self.null_label = dim, num_classes
        self.embed = Conditioning(
            width, num_classes, extras=extras, time_scale=time_scale, rngs=rngs
        )
        self.first = Linear(dim, width, rngs=rngs)
        self.hidden = nnx.data([Linear(width, width, rngs=rngs) for _ in range(depth)])
        self.last = Linear(width, 2 * dim if learned_variance else dim, zero=True, rngs=rngs)

    def __call__(
        self, x: Array, t: Array, cond: Array | None = None, extras: Array | None = None
    ) -> Array:
        """Predicts for points x at times t.

        Args:
          x: float32 [B, D].
          t: times in [0, 1], float32 [B].
          cond: labels [B] in 0 … num_classes; None for no label.
          extras: further numbers, float32 [B, extras]; None for zeros.

        Returns: float32 [B, D], or [B, 2D] with a learned variance.
        Raises: ValueError for an argument of another shape, dtype or range, or for labels without
          label classes.
        """
        x = doors.state(x, ("B", self.dim))
        emb = self.embed(doors.times(t, x.shape[0]), cond, extras)
        h = self.first(x)
        for layer in self.hidden:
            h = h + layer(jax.nn.silu(h + emb))
        return self.last(jax.nn.silu(h))
