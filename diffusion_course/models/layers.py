"""Building blocks of the networks: NHWC, float32, and quick on a CPU as well.

`GroupNorm`, `upsample` and `space_to_depth` are written as reshapes, sums and broadcasts because
the ready-made versions cost several times as much on a CPU (the group norm 5 ×, the gradient of
a nearest-neighbour resize 20 ×); on accelerators they compile to the same thing.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

# Sinusoids are made for step numbers up to a thousand; times in [0, 1] are stretched to match.
_TIME_SCALE = 1000.0


def sinusoidal_embedding(t: Array, dim: int, max_period: float = 10_000.0) -> Array:
    """Sines and cosines of t at dim/2 geometrically spaced frequencies.

    Args:
      t: times in [0, 1], [B].
      dim: an even number.
      max_period: periods run from 2π to 2π·max_period, in thousandths of t.

    Returns: [B, dim]. Raises: ValueError for an odd or non-positive dim.
    Source: Vaswani et al. 2017, section 3.5 (arXiv:1706.03762), for time as in DDPM.
    """
    if dim < 2 or dim % 2:
        raise ValueError(f"dim must be a positive even number, got {dim}")
    frequencies = jnp.exp(-jnp.log(max_period) * jnp.arange(dim // 2) / (dim // 2))
    angles = _TIME_SCALE * t[:, None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class TimeEmbedding(nnx.Module):
    """Sinusoids of the time, then two dense layers: [B] -> [B, dim]."""

    def __init__(self, dim: int, *, rngs: nnx.Rngs):
        self.dim = dim
        self.first = nnx.Linear(dim, dim, rngs=rngs)
        self.second = nnx.Linear(dim, dim, rngs=rngs)

    def __call__(self, t: Array) -> Array:
        return self.second(jax.nn.silu(self.first(sinusoidal_embedding(t, self.dim))))


class GroupNorm(nnx.Module):
    """Group normalisation over NHWC: each group of channels to mean 0 and variance 1, per image.

    Source: Wu & He 2018 (arXiv:1803.08494).
    """

    def __init__(self, channels: int, groups: int = 8, *, rngs: nnx.Rngs, epsilon: float = 1e-5):
        if channels % groups:
            raise ValueError(f"groups must divide channels = {channels}, got {groups}")
        self.groups, self.epsilon = groups, epsilon
        self.scale = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))

    def __call__(self, x: Array) -> Array:
        batch, height, width, channels = x.shape
        per_group = channels // self.groups
        count = height * width * per_group

        def group_mean(channel_sums):
            sums = channel_sums.reshape(batch, self.groups, per_group).sum(-1) / count
            return jnp.repeat(sums, per_group, axis=-1)

        mean = group_mean(x.sum(axis=(1, 2)))
        # Centring first keeps the variance from cancelling when the mean is large.
        centred = x - mean[:, None, None]
        variance = group_mean((centred**2).sum(axis=(1, 2)))
        gain = self.scale[...] * jax.lax.rsqrt(variance + self.epsilon)
        return centred * gain[:, None, None] + self.bias[...]


class ResidualBlock(nnx.Module):
    """Two 3×3 convolutions with group norm; the embedding scales and shifts between them (FiLM).

    [B, H, W, c_in], [B, dim] -> [B, H, W, c_out]. The last convolution starts at zero, so that
    the block starts as the identity (or its 1×1 projection).

    Source: He et al. 2016; FiLM: Perez et al. 2018 (arXiv:1709.07871); in this place: Dhariwal &
    Nichol 2021, section 3 (arXiv:2105.05233).
    """

    def __init__(self, c_in: int, c_out: int, dim: int, *, rngs: nnx.Rngs):
        self.norm1 = GroupNorm(c_in, rngs=rngs)
        self.conv1 = nnx.Conv(c_in, c_out, (3, 3), rngs=rngs)
        self.film = nnx.Linear(dim, 2 * c_out, rngs=rngs)
        self.norm2 = GroupNorm(c_out, rngs=rngs)
        self.conv2 = zero_conv(c_out, c_out, rngs=rngs)
        self.skip = nnx.Conv(c_in, c_out, (1, 1), rngs=rngs) if c_in != c_out else None

    def __call__(self, x: Array, emb: Array) -> Array:
        h = self.conv1(jax.nn.silu(self.norm1(x)))
        scale, shift = jnp.split(self.film(jax.nn.silu(emb))[:, None, None], 2, axis=-1)
        h = self.conv2(jax.nn.silu(self.norm2(h) * (1 + scale) + shift))
        return h + (x if self.skip is None else self.skip(x))


class Attention(nnx.Module):
    """Self-attention over all pixels, with a residual connection: [B, H, W, C] -> the same.

    The output projection starts at zero, so that the layer starts as the identity.

    Source: Vaswani et al. 2017, section 3.2 (arXiv:1706.03762); in a U-Net: Ho et al. 2020.
    """

    def __init__(self, channels: int, head_size: int = 32, *, rngs: nnx.Rngs):
        if channels % head_size:
            raise ValueError(f"head_size must divide channels = {channels}, got {head_size}")
        self.heads = channels // head_size
        self.norm = GroupNorm(channels, rngs=rngs)
        self.qkv = nnx.Linear(channels, 3 * channels, use_bias=False, rngs=rngs)
        self.out = nnx.Linear(
            channels, channels, kernel_init=nnx.initializers.zeros_init(), rngs=rngs
        )

    def __call__(self, x: Array) -> Array:
        batch, height, width, channels = x.shape
        tokens = self.norm(x).reshape(batch, height * width, channels)
        qkv = self.qkv(tokens).reshape(batch, height * width, 3, self.heads, -1)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        logits = jnp.einsum("bqhd,bkhd->bhqk", q, k) / jnp.sqrt(q.shape[-1])
        mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(logits, axis=-1), v)
        return x + self.out(mixed.reshape(tokens.shape)).reshape(x.shape)


def zero_conv(c_in: int, c_out: int, *, rngs: nnx.Rngs) -> nnx.Conv:
    """A 3×3 convolution whose kernel starts at zero."""
    return nnx.Conv(c_in, c_out, (3, 3), kernel_init=nnx.initializers.zeros_init(), rngs=rngs)


def space_to_depth(x: Array, block: int) -> Array:
    """Moves block×block pixels into channels: [B, H, W, C] -> [B, H/b, W/b, b²·C].

    Raises: ValueError if block does not divide height and width.
    """
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
    batch, height, width, channels = x.shape
    if channels % block**2:
        raise ValueError(f"block² must divide the {channels} channels, got block = {block}")
    x = x.reshape(batch, height, width, block, block, channels // block**2)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height * block, width * block, -1)


def upsample(x: Array) -> Array:
    """Each pixel becomes 2×2 equal pixels: [B, H, W, C] -> [B, 2H, 2W, C]."""
    batch, height, width, channels = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None], (batch, height, 2, width, 2, channels))
    return x.reshape(batch, 2 * height, 2 * width, channels)
