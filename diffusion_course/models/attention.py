"""Attention: from queries, keys and values to mixed tokens, and rotary positions."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion_course.checks import integer
from diffusion_course.models import doors

# Angles turn by 1 per patch at most, and by 1/100 at least: an image has tens of patches a side,
# where a text, for which 10,000 is usual, has thousands of words.
ROTARY_PERIOD = 100.0


def count_heads(channels: int, head_size: int) -> int:
    """Heads of this size in a layer of this width. Raises: ValueError if they do not fit."""
    if channels % integer("head_size", head_size, 1):
        raise ValueError(f"head_size must divide channels = {channels}, got {head_size}")
    return channels // head_size


def attend(qkv: Array, heads: int) -> Array:
    """Softmax attention of every token to every token: [B, N, 3·C] -> [B, N, C].

    The last axis holds queries, keys and values, each split among the heads.

    Raises: ValueError for a width that three times the heads do not divide.
    Source: Vaswani et al. 2017, eq. 1 (arXiv:1706.03762).
    """
    return attention(*split_heads(qkv, heads))


def split_heads(projected: Array, heads: int, parts: int = 3) -> tuple[Array, ...]:
    """Parts (by default queries, keys and values), each by head: [B, N, parts·C] -> [B, H, N, d].

    Raises: ValueError for a width that parts times the heads do not divide.
    """
    batch, tokens, width = projected.shape
    if width % (parts * integer("heads", heads, 1)):
        raise ValueError(f"qkv must have {parts}·heads·n = {parts * heads}·n channels, got {width}")
    # First by parts, then by heads: the gradient is then put together in one pass.
    return tuple(
        part.reshape(batch, tokens, heads, -1).swapaxes(1, 2)
        for part in jnp.split(projected, parts, axis=-1)
    )


def attention(q: Array, k: Array, v: Array, mask: Array | None = None) -> Array:
    """Each query's mean of the values, weighted by the softmax of its products with the keys.

    The softmax is taken in float32.

    >>> one = jnp.ones((1, 1, 2, 4))  # equal keys: equal weights
    >>> v = jnp.array([0.0, 6.0]).reshape(1, 1, 2, 1)
    >>> attention(one, one, v).ravel().tolist()
    [3.0, 3.0]
    >>> attention(one, one, v, mask=jnp.array([[False, True]])).ravel().tolist()
    [6.0, 6.0]

    Args:
      q: queries [B, H, N, d] of H heads.
      k: keys [B, H, M, d].
      v: values [B, H, M, e].
      mask: which of the keys count, booleans [B, M], or [B, N, M] for each query its own (B may be
        1); None for all. Where none counts the result is 0.

    Returns: [B, N, H·e], the heads side by side.
    Source: Vaswani et al. 2017, eq. 1 (arXiv:1706.03762).
    """
    return (jax.checkpoint(_attention) if computes_again() else _attention)(q, k, v, mask)


def computes_again() -> bool:
    """Whether the gradient of `attention` computes its weights anew: on a TPU.

    They are [N, N] for each head, and to keep them costs more than to compute them where memory is
    what is slow: MNIST's DiT, with its recipe's 128 images, reads and writes 43 % of the bytes in a
    step, for 2 % more operations. (Not so with 512 images on one chip: docs/tpu.md.) A CPU needs a
    seventh longer, and on a GPU it was not measured.

    It is asked when a program is traced. (Both ways in one program, as in `fast`, would keep what
    either of them needs.)

    Source: Dao et al. 2022, section 3.1 (arXiv:2205.14135).
    """
    return jax.default_backend() == "tpu"


def _attention(q: Array, k: Array, v: Array, mask: Array | None) -> Array:
    # The softmax is divided by its sum after the product, where there is less to divide: a CPU
    # needs half the time.
    exp, total = _softmax_parts(q, k, mask)
    mixed = jnp.einsum("bhqk,bhkd->bhqd", exp.astype(v.dtype), v, **_IN_FLOAT32)
    mixed = (mixed / total).astype(v.dtype)
    return jnp.moveaxis(mixed, 1, 2).reshape(q.shape[0], q.shape[2], -1)


def attention_weights(q: Array, k: Array, mask: Array | None = None) -> Array:
    """The weights that `attention` gives the values, to look at: float32 [B, H, N, M].

    >>> one = jnp.ones((1, 1, 1, 4))
    >>> attention_weights(one, jnp.tile(one, (1, 1, 3, 1)), jnp.array([[True, False, True]]))
    Array([[[[0.5, 0. , 0.5]]]], dtype=float32)

    Args:
      q: queries [B, H, N, d].
      k: keys [B, H, M, d].
      mask: as in `attention`.

    Returns: sums of 1 over the keys, or of 0 where no key counts.
    """
    exp, total = _softmax_parts(q, k, mask)
    return exp / total


_IN_FLOAT32 = {"preferred_element_type": jnp.float32}


def _softmax_parts(q: Array, k: Array, mask: Array | None) -> tuple[Array, Array]:
    """exp of the shifted logits [B, H, N, M], and its sum over the keys [B, H, N, 1]."""
    logits = jnp.einsum("bhqd,bhkd->bhqk", q / np.sqrt(q.shape[-1]), k, **_IN_FLOAT32)
    if mask is not None:
        # Not 0, nor a large negative number: a logit that is added leaves a key some weight.
        each = mask[:, None, None] if np.ndim(mask) == 2 else mask[:, None]
        logits = jnp.where(each, logits, -jnp.inf)
    # A shift by the largest logit, which cancels, keeps exp from overflow.
    largest = jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True))
    if mask is None:
        exp = jnp.exp(logits - largest)
        return exp, exp.sum(axis=-1, keepdims=True)
    # Without any key the largest logit is −inf, and −inf − (−inf) would be NaN.
    exp = jnp.exp(logits - jnp.where(largest == -jnp.inf, 0.0, largest))
    total = exp.sum(axis=-1, keepdims=True)
    return exp, jnp.where(total == 0, 1.0, total)


def rotary_angles(rows: int, cols: int, size: int) -> np.ndarray:
    """Angles by which `rotate` turns the patches of a grid: float32 [rows·cols, size/2].

    The first half of the angles grow with the row, the second half with the column.

    Args:
      rows: of the grid.
      cols: of the grid.
      size: of a head, a multiple of 4.

    Raises: ValueError for an empty grid, or a size that is not a multiple of 4.
    Source: Su et al. 2021, section 3.2 (arXiv:2104.09864), for text; one axis after the other:
    Heo et al. 2024, section 3 (arXiv:2403.13298).

    >>> rotary_angles(2, 2, 4).tolist()
    [[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]
    """
    integer("rows", rows, 1)
    integer("cols", cols, 1)
    doors.divisible("size", size, 4)
    frequencies = ROTARY_PERIOD ** (-np.arange(size // 4) / (size // 4))
    row, col = np.divmod(np.arange(rows * cols), cols)
    angles = np.concatenate([row[:, None] * frequencies, col[:, None] * frequencies], axis=-1)
    return angles.astype(np.float32)


def rotate(x: Array, angles: Array) -> Array:
    """Turns pairs of channels, number i and number d/2 + i, by an angle: [..., N, d] -> the same.

    A query that is turned by a and a key that is turned by b have the product that they would
    have if only the key were turned, by b − a. So the attention of two patches depends on where
    one lies *from the other*. Lengths stay as they are.

    Args:
      x: queries or keys.
      angles: [N, d/2]; see `rotary_angles`. With the angle 0 nothing is turned.

    Source: Su et al. 2021, section 3.2 (arXiv:2104.09864).
    """
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1).astype(x.dtype)
