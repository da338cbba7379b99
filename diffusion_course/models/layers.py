"""Building blocks of the networks: NHWC, and quick on a CPU as well.

Parameters are float32. Layers that compute in another `dtype` cast what they read; time and
statistics stay float32.

`GroupNorm` and `upsample` are written as sums, small products and broadcasts because the
ready-made versions cost several times as much on a CPU (the group norm 5 ×, the gradient of a
nearest-neighbour resize 20 ×).
"""

import math
import operator
from functools import partial, reduce

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from diffusion_course.checks import above, integer
from diffusion_course.models import doors, fast
from diffusion_course.models.attention import attend, count_heads

# Sinusoids are made for step numbers up to a thousand; times in [0, 1] are stretched to match.
TIME_SCALE = 1000.0

# One object for all: old versions of Flax keep initialisers in a model's structure, and models with
# initialisers of their own would be compiled one by one.
STANDARD_NORMAL = nnx.initializers.normal(1.0)


def sinusoidal_embedding(
    t: Array, dim: int, max_period: float = 10_000.0, scale: float = TIME_SCALE
) -> Array:
    """Sines and cosines of t at dim/2 geometrically spaced frequencies.

    Args:
      t: times in [0, 1], [B], float32.
      dim: an even number.
      max_period: periods run from 2π to 2π·max_period, in units of 1/scale.
      scale: factor of t. The derivative of the embedding is as large as that; a network that is
        differentiated by t needs a small one.

    Returns: float32 [B, dim], the cosines first.
    Raises: ValueError for an odd or non-positive dim, or times of any other shape or dtype.
    Source: Vaswani et al. 2017, section 3.5 (arXiv:1706.03762), for time as in DDPM.

    >>> sinusoidal_embedding(jnp.array([0.0, 0.5]), 4).round(3).tolist()[0]
    [1.0, 1.0, 0.0, 0.0]
    """
    if isinstance(dim, bool) or not isinstance(dim, int) or dim < 2 or dim % 2:
        raise ValueError(f"dim must be a positive even number, got {dim}")
    t = doors.times(t)
    frequencies = jnp.exp(-jnp.log(max_period) * jnp.arange(dim // 2) / (dim // 2))
    angles = scale * t[:, None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class Linear(nnx.Linear):
    """A dense layer over the last axis: [..., c_in] -> [..., c_out], computed in `dtype`.

    Computed by `fast.dense`. Weights start uniform with variance 1/c_in, or at zero, and are stored
    in float32.
    """

    def __init__(
        self, c_in: int, c_out: int, *, zero: bool = False, use_bias: bool = True,
        dtype=jnp.float32, rngs: nnx.Rngs,
    ):  # fmt: skip
        doors.computation(dtype)
        super().__init__(
            c_in, c_out, use_bias=use_bias, kernel_init=_start(zero), dtype=dtype, rngs=rngs
        )

    def __call__(self, x: Array) -> Array:
        bias = None if self.bias is None else self.bias[...].astype(self.dtype)
        return fast.dense(jnp.asarray(x, self.dtype), self.kernel[...].astype(self.dtype), bias)


class Conv3x3(nnx.Conv):
    """A 3×3 convolution with zeros around the image: [B, H, W, c_in] -> [B, H/s, W/s, c_out].

    Computed in `dtype` by `fast.conv3x3`; weights start as those of `Linear`.
    """

    def __init__(
        self, c_in: int, c_out: int, stride: int = 1, *, zero: bool = False,
        dtype=jnp.float32, rngs: nnx.Rngs,
    ):  # fmt: skip
        doors.computation(dtype)
        super().__init__(
            c_in, c_out, (3, 3), strides=stride, kernel_init=_start(zero), dtype=dtype, rngs=rngs
        )
        self.stride = stride

    def __call__(self, x: Array) -> Array:
        x, kernel, bias = (
            array.astype(self.dtype) for array in (x, self.kernel[...], self.bias[...])
        )
        return fast.conv3x3(x, kernel, self.stride) + bias


def _start(zero: bool):
    return nnx.initializers.zeros_init() if zero else _uniform_of_unit_gain


def _uniform_of_unit_gain(key: Array, shape: tuple[int, ...], dtype=jnp.float32, **_) -> Array:
    """Uniform numbers of variance 1/fan-in, for a kernel whose last axis is the output's.

    Source: He et al. 2015, section 2.2, without the factor 2 for ReLU (arXiv:1502.01852).
    """
    return _symmetric(key, shape, math.sqrt(3 / math.prod(shape[:-1]))).astype(dtype)


@partial(jax.jit, static_argnames=("shape", "limit"))
def _symmetric(key: Array, shape: tuple[int, ...], limit: float) -> Array:
    # Each new shape is a program of its own. Uniform numbers, drawn in a row, compile in a third
    # of the time of an array of four axes; a truncated normal would take twice that again.
    numbers = jax.random.uniform(key, (math.prod(shape),), minval=-limit, maxval=limit)
    return numbers.reshape(shape)


class TimeEmbedding(nnx.Module):
    """Sinusoids of the time, then two dense layers: [B] -> [B, dim]."""

    def __init__(self, dim: int, *, scale: float = TIME_SCALE, dtype=jnp.float32, rngs: nnx.Rngs):
        self.dim, self.scale = dim, float(scale)
        self.first = Linear(dim, dim, dtype=dtype, rngs=rngs)
        self.second = Linear(dim, dim, dtype=dtype, rngs=rngs)

    def __call__(self, t: Array) -> Array:
        sinusoids = sinusoidal_embedding(t, self.dim, scale=self.scale)
        return self.second(jax.nn.silu(self.first(sinusoids)))


class Conditioning(nnx.Module):
    """What a network is told beside the image: its time, its label, and perhaps more numbers.

    Args:
      dim: of the embedding.
      num_classes: number of labels, or None. A class more stands for "no label".
      extras: how many further numbers it is told for each example, such as the time where a jump
        ends or a guidance scale; each is embedded like the time.
      time_scale: factor of all these numbers inside their sinusoids, positive.
      dtype: of the computation.
      rngs: random number streams of the initialisation.

    Raises: ValueError for fewer than one class, fewer than 0 extras, or another time_scale.
    """

    def __init__(
        self,
        dim: int,
        num_classes: int | None,
        *,
        extras: int = 0,
        time_scale: float = TIME_SCALE,
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        if num_classes is not None:
            integer("num_classes", num_classes, 1)
        integer("extras", extras, 0)
        above("time_scale", time_scale, 0)
        self.num_classes = num_classes
        embedding = partial(TimeEmbedding, dim, scale=time_scale, dtype=dtype, rngs=rngs)
        self.time = embedding()
        # Rows of standard normal numbers, as large as what the time contributes: with nnx.Embed's
        # own 1/sqrt(dim) a network hears its labels hundreds of steps later.
        self.label = (
            None
            if num_classes is None
            else nnx.Embed(
                num_classes + 1,
                dim,
                embedding_init=STANDARD_NORMAL,
                dtype=dtype,
                rngs=rngs,
            )
        )
        self.extras = nnx.data([embedding() for _ in range(extras)])

    def __call__(self, t: Array, cond: Array | None, extras: Array | None = None) -> Array:
        """Times [B], labels [B] (None for no label), extras [B, K] (None for zeros) -> [B, dim].

        Raises: ValueError for times, labels or extras of another shape, dtype or range, or for
          labels if there are no label classes.
        """
        return reduce(operator.add, self._embedded(t, cond, extras))

    def tokens(self, t: Array, cond: Array | None, extras: Array | None = None) -> Array:
        """The same, one token for each thing that is told, instead of their sum: [B, L, dim].

        The time comes first, then the label (of a model with labels), then the further numbers.
        """
        return jnp.stack(self._embedded(t, cond, extras), axis=1)

    def _embedded(self, t: Array, cond: Array | None, extras: Array | None) -> list[Array]:
        t = doors.times(t)
        cond = doors.labels(cond, t.shape[0], self.num_classes)
        extras = doors.extras(extras, t.shape[0], len(self.extras))
        embedded = [self.time(t)]
        if cond is not None:
            embedded.append(self.label(cond))
        return embedded + [told(extras[:, k]) for k, told in enumerate(self.extras)]


def label_vectors(num_classes: int | None, dim: int, *, rngs: nnx.Rngs) -> nnx.Embed | None:
    """A vector for each label, and one for "no label", label num_classes; None without labels.

    For networks that are told nothing else; `Conditioning` has them for those with a time.

    Raises: ValueError for fewer than one class.
    """
    if num_classes is None:
        return None
    rows = integer("num_classes", num_classes, 1) + 1
    return nnx.Embed(rows, dim, embedding_init=STANDARD_NORMAL, rngs=rngs)


class GroupNorm(nnx.Module):
    """Group normalisation over NHWC: each group of channels to mean 0 and variance 1, per image.

    Statistics are computed in float32 whatever the dtype of the image.

    Args:
      channels: C.
      groups: their number, which divides C.
      rngs: random number streams; nothing is drawn from them.
      epsilon: added to the variance.

    Raises: ValueError for groups that do not divide the channels.
    Source: Wu & He 2018 (arXiv:1803.08494).
    """

    def __init__(self, channels: int, groups: int = 8, *, rngs: nnx.Rngs, epsilon: float = 1e-5):
        if integer("channels", channels, 1) % integer("groups", groups, 1):
            raise ValueError(f"groups must divide channels = {channels}, got {groups}")
        self.groups, self.epsilon = groups, epsilon
        self.scale = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))

    def __call__(self, x: Array, scale: Array | float = 0.0, shift: Array | float = 0.0) -> Array:
        """Normalises x [B, H, W, C], then multiplies by 1 + scale and adds shift, both [B, C].

        Source of scale and shift: FiLM, Perez et al. 2018 (arXiv:1709.07871).
        """
        dtype, channels = x.dtype, x.shape[-1]
        x = x.astype(jnp.float32)
        # Sums over a group, and a group's value for each of its channels, as small products: on
        # a CPU a reshape and a repeat would be computed again for every pixel.
        members = np.kron(np.eye(self.groups), np.ones(channels // self.groups))  # [G, C]
        share = members.T / (x.size // (x.shape[0] * self.groups))
        # In full float32: by default a TPU would round what it multiplies to bfloat16.
        product = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
        mean = product(x.sum(axis=(1, 2)), share @ members)
        # Centring first keeps the variance from cancelling when the mean is large.
        centred = x - mean[:, None, None]
        variance = product((centred**2).sum(axis=(1, 2)), share)
        gain = product(jax.lax.rsqrt(variance + self.epsilon), members * self.scale[...])
        gain = gain * (1 + scale)
        offset = jnp.broadcast_to(self.bias[...] * (1 + scale) + shift, gain.shape)
        return (centred * gain[:, None, None] + offset[:, None, None]).astype(dtype)


def layer_norm(x: Array, epsilon: float = 1e-6) -> Array:
    """Each token to mean 0 and variance 1, in float32, without parameters: [..., C] -> the same.

    Source: Ba, Kiros & Hinton 2016 (arXiv:1607.06450).
    """
    tokens = x.astype(jnp.float32)
    centred = tokens - tokens.mean(axis=-1, keepdims=True)
    variance = (centred**2).mean(axis=-1, keepdims=True)
    return (centred * jax.lax.rsqrt(variance + epsilon)).astype(x.dtype)


class RMSNorm(nnx.Module):
    """Each vector to mean square 1, in float32, times a learned scale: [..., C] -> the same.

    Args:
      dim: C.
      rngs: random number streams; nothing is drawn from them.
      epsilon: added to the mean square.

    Source: Zhang & Sennrich 2019, eq. 4 (arXiv:1910.07467).
    """

    def __init__(self, dim: int, *, rngs: nnx.Rngs, epsilon: float = 1e-6):
        self.epsilon = epsilon
        self.scale = nnx.Param(jnp.ones(integer("dim", dim, 1)))

    def __call__(self, x: Array) -> Array:
        vectors = x.astype(jnp.float32)
        square = (vectors**2).mean(axis=-1, keepdims=True)
        return (vectors * jax.lax.rsqrt(square + self.epsilon) * self.scale[...]).astype(x.dtype)


class ResidualBlock(nnx.Module):
    """Two 3×3 convolutions with group norm; the embedding scales and shifts between them (FiLM).

    [B, H, W, c_in], [B, dim] -> [B, H, W, c_out]. The last convolution starts at zero, so that
    the block starts as the identity (or its projection). With ``dim = None`` there is no embedding,
    and the block is called with the image alone.

    Source: He et al. 2016; FiLM: Perez et al. 2018 (arXiv:1709.07871); in this place: Dhariwal &
    Nichol 2021, section 3 (arXiv:2105.05233).
    """

    def __init__(
        self, c_in: int, c_out: int, dim: int | None, *, dtype=jnp.float32, rngs: nnx.Rngs
    ):
        options = {"dtype": dtype, "rngs": rngs}
        self.norm1 = GroupNorm(c_in, rngs=rngs)
        self.conv1 = Conv3x3(c_in, c_out, **options)
        self.film = None if dim is None else Linear(dim, 2 * c_out, **options)
        self.norm2 = GroupNorm(c_out, rngs=rngs)
        self.conv2 = Conv3x3(c_out, c_out, zero=True, **options)
        self.skip = Linear(c_in, c_out, **options) if c_in != c_out else None

    def __call__(self, x: Array, emb: Array | None = None) -> Array:
        h = self.conv1(jax.nn.silu(self.norm1(x)))
        scale, shift = 0.0, 0.0
        if self.film is not None:
            scale, shift = jnp.split(self.film(jax.nn.silu(emb)), 2, axis=-1)
        h = self.conv2(jax.nn.silu(self.norm2(h, scale, shift)))
        return h + (x if self.skip is None else self.skip(x))


class Attention(nnx.Module):
    """Self-attention over all pixels, with a residual connection: [B, H, W, C] -> the same.

    The output projection starts at zero, so that the layer starts as the identity.

    Source: Vaswani et al. 2017, section 3.2 (arXiv:1706.03762); in a U-Net: Ho et al. 2020.
    """

    def __init__(self, channels: int, head_size: int = 32, *, dtype=jnp.float32, rngs: nnx.Rngs):
        self.heads = count_heads(channels, head_size)
        self.norm = GroupNorm(channels, rngs=rngs)
        self.qkv = Linear(channels, 3 * channels, use_bias=False, dtype=dtype, rngs=rngs)
        self.out = Linear(channels, channels, zero=True, dtype=dtype, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        batch, height, width, channels = x.shape
        tokens = self.norm(x).reshape(batch, height * width, channels)
        return x + self.out(attend(self.qkv(tokens), self.heads)).reshape(x.shape)


def space_to_depth(x: Array, block: int) -> Array:
    """Moves block×block pixels into channels: [B, H, W, C] -> [B, H/b, W/b, b²·C].

    Raises: ValueError if block does not divide height and width.

    >>> space_to_depth(jnp.arange(8).reshape(1, 2, 4, 1), 2).tolist()
    [[[[0, 1, 4, 5], [2, 3, 6, 7]]]]
    """
    integer("block", block, 1)
    batch, height, width, channels = x.shape
    if height % block or width % block:
        raise ValueError(f"block must divide the image size {height}×{width}, got {block}")
    x = x.reshape(batch, height // block, block, width // block, block, channels)
    x = x.transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, height // block, width // block, block * block * channels)


def depth_to_space(x: Array, block: int) -> Array:
    """The inverse of `space_to_depth`: [B, H, W, b²·C] -> [B, b·H, b·W, C].

    Raises: ValueError if block² does not divide the channels.
    """
    integer("block", block, 1)
    batch, height, width, channels = x.shape
    if channels % block**2:
        raise ValueError(f"block² must divide the {channels} channels, got block = {block}")
    x = x.reshape(batch, height, width, block, block, channels // block**2)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height * block, width * block, -1)


def upsample(x: Array, factor: int = 2) -> Array:
    """Each pixel becomes k×k equal pixels, k = factor: [B, H, W, C] -> [B, kH, kW, C]."""
    batch, height, width, channels = x.shape
    wanted = (batch, height, factor, width, factor, channels)
    x = jnp.broadcast_to(x[:, :, None, :, None], wanted)
    return x.reshape(batch, factor * height, factor * width, channels)
