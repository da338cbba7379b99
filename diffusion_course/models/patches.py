"""From an image to tokens and back: what all transformers here begin and end with."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from diffusion_course.checks import integer, one_of
from diffusion_course.models import doors
from diffusion_course.models.attention import rotary_angles
from diffusion_course.models.layers import Linear, depth_to_space, layer_norm, space_to_depth

POSITIONS = ("sin-cos", "rotary")


class Patched(nnx.Module):
    """A network whose tokens are patches. Its classes call `_open`, build blocks, call `_close`."""

    def _open(self, image_size, image_channels, patch, width, head_size, positions, options):
        size = doors.sides(image_size)
        integer("image_channels", image_channels, 1)
        if any(side % integer("patch", patch, 1) for side in size):
            raise ValueError(f"patch must divide image_size = {image_size}, got {patch}")
        doors.divisible("width", width, 4)
        if one_of("positions", positions, POSITIONS) == "rotary":
            doors.divisible("head_size with rotary positions", head_size, 4)
        self.image_shape, self.patch = (*size, image_channels), patch
        self.head_size, self.positions = head_size, positions
        self.patchify = Linear(patch**2 * image_channels, width, **options)

    def _close(self, width, adaptive, learned_variance, options):
        pixels = self.patch**2 * self.image_shape[-1] * (2 if learned_variance else 1)
        self.modulation = Linear(width, 2 * width, zero=True, **options) if adaptive else None
        self.final = Linear(width, pixels, zero=True, **options)

    def _grid(self) -> tuple[int, int]:
        return self.image_shape[0] // self.patch, self.image_shape[1] // self.patch

    def _tokens(self, x: Array) -> Array:
        """Images [B, H, W, C] as tokens [B, N, width]; sin-cos positions are added here."""
        patches = space_to_depth(x, self.patch)
        batch, rows, cols, _ = patches.shape
        tokens = self.patchify(patches.reshape(batch, rows * cols, -1))
        if self.positions == "rotary":
            return tokens
        return tokens + position_embedding(rows, cols, tokens.shape[-1]).astype(tokens.dtype)

    def _angles(self, others: int = 0) -> np.ndarray | None:
        """Rotary angles of the patches and of other tokens behind them, which are not turned."""
        if self.positions != "rotary":
            return None
        return np.pad(rotary_angles(*self._grid(), self.head_size), ((0, others), (0, 0)))

    def _pixels(self, tokens: Array, emb: Array, dtype) -> Array:
        """Tokens [B, N, width] as images; the embedding [B, width] scales and shifts the last norm,
        where that is adaptive."""
        h = layer_norm(tokens)
        if self.modulation is not None:
            shift, scale = jnp.split(self.modulation(jax.nn.silu(emb))[:, None], 2, axis=-1)
            h = h * (1 + scale) + shift
        pixels = self.final(h)
        grid = pixels.reshape(len(pixels), *self._grid(), -1)
        return depth_to_space(grid, self.patch).astype(dtype)


def position_embedding(rows: int, cols: int, dim: int) -> np.ndarray:
    """Fixed sinusoids of each patch's row (first half) and column: float32 [rows·cols, dim].

    Raises: ValueError for an empty grid, or a dim that is not a multiple of 4.
    Source: Peebles & Xie 2023, section 3.2 (arXiv:2212.09748), as in Vaswani et al. 2017.
    """
    integer("rows", rows, 1)
    integer("cols", cols, 1)
    doors.divisible("dim", dim, 4)
    row = np.repeat(sinusoids(rows, dim // 2), cols, axis=0)
    col = np.tile(sinusoids(cols, dim // 2), (rows, 1))
    return np.concatenate([row, col], axis=-1).astype(np.float32)


def sinusoids(count: int, dim: int) -> np.ndarray:
    """Cosines and sines of the places 0 … count − 1 in a sequence: [count, dim].

    Raises: ValueError for a count below 1 or an odd dim.
    Source: Vaswani et al. 2017, section 3.5 (arXiv:1706.03762).
    """
    integer("count", count, 1)
    doors.divisible("dim", dim, 2)
    frequencies = 10_000.0 ** (-np.arange(dim // 2) / (dim // 2))
    angles = np.arange(count)[:, None] * frequencies
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=-1)
