"""Clouds of points: a network that turns with them, and noise that stays in their middle.

A cloud [N, 3] that is moved, turned or mirrored is the same cloud. The network's output turns with
its input, exactly; and with each cloud's mean kept at 0, moving it is left out of the model.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from diffusion_course import checks
from diffusion_course.models import doors
from diffusion_course.models.layers import Linear, TimeEmbedding


def centre(x: Array) -> Array:
    """Clouds [..., N, 3] moved so that the mean of their points is 0."""
    return x - jnp.mean(x, axis=-2, keepdims=True)


def centred_noise(key: Array, shape: tuple[int, ...]) -> Array:
    """Standard normal noise of clouds with mean 0: `centre` of ordinary noise, float32.

    It has (N − 1)·3 independent directions; each coordinate has variance 1 − 1/N.

    Args:
      key: a random key.
      shape: [..., N, 3].

    Source: Hoogeboom et al. 2022, section 3.1 (arXiv:2203.17003).
    """
    checks.random_key("key", key)
    return centre(jax.random.normal(key, shape, jnp.float32))


def centred_log_prob(x: Array, std: float = 1.0) -> Array:
    """The log-density of `centred_noise` times std, in nats, for clouds with mean 0: [...].

    ``−‖x‖²/(2·std²) − (N − 1)·3·log(std·√(2π))``: the space that they fill has (N − 1)·3
    dimensions, not N·3.

    Args:
      x: clouds [..., N, 3] whose mean is 0.
      std: positive.

    Source: Satorras et al. 2021, *E(n) Equivariant Normalizing Flows*, appendix; Hoogeboom et al.
    2022, section 3.1 (arXiv:2203.17003).
    """
    x, std = checks.state("x", x), checks.number("std", std)
    checks.above("std", std, 0)
    dims = (x.shape[-2] - 1) * x.shape[-1]
    squared = jnp.sum(x**2, axis=(-2, -1))
    return -squared / (2 * std**2) - dims * (0.5 * np.log(2 * np.pi) + jnp.log(std))


class _Layer(nnx.Module):
    """One round of messages: each point hears from all others, then moves along the lines to them.

    ``m_ij = φ_e(h_i, h_j, d_ij², a_ij)``, ``x_i += Σ_j (x_i − x_j)/(d_ij + 1)·φ_x(m_ij)``,
    ``h_i += φ_h(h_i, Σ_j m_ij)``.
    """

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.edge = Linear(2 * width + 2, width, rngs=rngs)
        self.message = Linear(width, width, rngs=rngs)
        self.push = Linear(width, width, rngs=rngs)
        self.amount = Linear(width, 1, zero=True, rngs=rngs)
        self.node = Linear(2 * width, width, rngs=rngs)
        self.update = Linear(width, width, rngs=rngs)

    def __call__(self, x: Array, h: Array, start: Array, others: Array) -> tuple[Array, Array]:
        apart = x[:, :, None] - x[:, None]
        squared = jnp.sum(apart**2, axis=-1, keepdims=True)
        shape = (*squared.shape[:3], h.shape[-1])
        pairs = [jnp.broadcast_to(h[:, :, None], shape), jnp.broadcast_to(h[:, None], shape)]
        m = jax.nn.silu(self.edge(jnp.concatenate([*pairs, squared, start], axis=-1)))
        m = jax.nn.silu(self.message(m)) * others
        # The root of 0, a point's distance from itself, would have no derivative.
        away = apart / (jnp.sqrt(squared + 1e-8) + 1)
        amount = self.amount(jax.nn.silu(self.push(m)))
        x = x + jnp.sum(away * amount * others, axis=2)
        heard = jnp.concatenate([h, jnp.sum(m, axis=2)], axis=-1)
        return x, h + self.update(jax.nn.silu(self.node(heard)))


class EGNN(nnx.Module):
    """``model(x, t, cond)`` for clouds [B, N, 3]: an E(3)-equivariant graph network.

    Turn or mirror x, and the output is turned or mirrored alike; move x, and it stays as it is;
    exchange two points of one type, and their outputs are exchanged. The output of each cloud has
    mean 0. The untrained network is 0.

    Args:
      num_types: how many types of points there are, at least 1.
      width: of the hidden layers; even.
      depth: rounds of messages.
      rngs: random number streams of the initialisation.

    Raises: ValueError for a size that is not a positive whole number, or an odd width.
    Source: Satorras, Hoogeboom & Welling 2021, eq. 3–6 (arXiv:2102.09844); the division by
    d + 1 and the distances of the start as in Hoogeboom et al. 2022, eq. 12 (arXiv:2203.17003).

    >>> model = EGNN(2, width=8, depth=1, rngs=nnx.Rngs(0))
    >>> x, t, types = jnp.ones((5, 4, 3)), jnp.full(5, 0.5), jnp.zeros((5, 4), int)
    >>> model(x, t, types).shape
    (5, 4, 3)
    """

    def __init__(self, num_types: int = 1, width: int = 32, depth: int = 3, *, rngs: nnx.Rngs):
        self.num_types = checks.integer("num_types", num_types, 1)
        doors.divisible("width", width, 2)
        checks.integer("depth", depth, 1)
        self.types = nnx.Embed(num_types, width, rngs=rngs)
        self.time = TimeEmbedding(width, rngs=rngs)
        self.layers = nnx.data([_Layer(width, rngs=rngs) for _ in range(depth)])

    def __call__(self, x: Array, t: Array, cond: Array | None = None) -> Array:
        """Predicts for clouds x at times t.

        Args:
          x: float32 [B, N, 3].
          t: times in [0, 1], float32 [B].
          cond: types [B, N], whole numbers in 0 … num_types − 1; None if all are of type 0.

        Returns: float32 [B, N, 3]. Raises: ValueError for an argument of another shape or range.
        """
        x = doors.state(x, ("B", "N", 3))
        batch, count = x.shape[:2]
        time = self.time(doors.times(t, batch))
        cond = jnp.zeros((batch, count), jnp.int32) if cond is None else cond
        checks.labels("cond", cond, (batch, count), self.num_types - 1)
        h = self.types(jnp.asarray(cond)) + time[:, None]
        start = jnp.sum((x[:, :, None] - x[:, None]) ** 2, axis=-1, keepdims=True)
        others = (1 - jnp.eye(count))[None, :, :, None]
        end = x
        for layer in self.layers:
            end, h = layer(end, h, start, others)
        return centre(end - x)
