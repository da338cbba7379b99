"""A transformer of clips: attention over space and over time by turns, a noise level per frame."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from diffusion_course import checks
from diffusion_course.models import doors
from diffusion_course.models.attention import attention, count_heads, split_heads
from diffusion_course.models.blocks import stack, through
from diffusion_course.models.layers import (
    TIME_SCALE,
    Conditioning,
    Linear,
    depth_to_space,
    layer_norm,
    space_to_depth,
)
from diffusion_course.models.patches import position_embedding, sinusoids


def over_space(function, tokens: Array, *others) -> Array:
    """Applies a function of sequences [·, N, C] to the places of each frame: [B, T, N, C] -> same.

    Frames become examples of the batch.

    Args:
      function: ``function(sequences [B·T, N, C], *others) -> [B·T, N, C]``.
      tokens: [B, T, N, C].
      others: further arguments, which are passed on.

    >>> tokens = jnp.arange(24.0).reshape(1, 2, 3, 4)
    >>> flipped = over_space(lambda s: s[:, ::-1], tokens)
    >>> bool((flipped == tokens[:, :, ::-1]).all())
    True
    """
    batch, frames, places, width = tokens.shape
    mixed = function(tokens.reshape(batch * frames, places, width), *others)
    return mixed.reshape(batch, frames, places, -1)


def over_time(function, tokens: Array, *others) -> Array:
    """Applies a function of sequences to the frames of each place: [B, T, N, C] -> same.

    The axes must change their order before places can become examples of the batch. A reshape
    alone gives arrays of the same shapes, and mixes frames with places.

    Args:
      function: ``function(sequences [B·N, T, C], *others) -> [B·N, T, C]``.
      tokens: [B, T, N, C].
      others: further arguments, which are passed on.

    >>> tokens = jnp.arange(24.0).reshape(1, 2, 3, 4)
    >>> flipped = over_time(lambda s: s[:, ::-1], tokens)
    >>> bool((flipped == tokens[:, ::-1]).all())
    True
    """
    batch, frames, places, width = tokens.shape
    by_place = jnp.moveaxis(tokens, 2, 1).reshape(batch * places, frames, width)
    mixed = function(by_place, *others).reshape(batch, places, frames, -1)
    return jnp.moveaxis(mixed, 1, 2)


class SpaceTimeBlock(nnx.Module):
    """Attention over space, attention over time, a dense network: [B, T, N, C] -> same.

    Each is scaled, shifted and gated by what its frame is told (adaLN-single): one modulation for
    all blocks, to which the block adds a table of its own.

    Args:
      width: C.
      heads: their number.
      dtype: of the computation.
      rngs: random number streams of the initialisation.

    Source: Ho et al. 2022, section 3 (arXiv:2204.03458), for one attention after the other; Ma et
    al. 2024, Latte (arXiv:2401.03048), in transformers; adaLN-single: Chen et al. 2024, section 2.3
    (arXiv:2310.00426).
    """

    def __init__(self, width: int, heads: int, *, dtype=jnp.float32, rngs: nnx.Rngs):
        options = {"dtype": dtype, "rngs": rngs}
        self.heads = heads
        self.table = nnx.Param(jnp.zeros(9 * width))
        self.space_qkv = Linear(width, 3 * width, **options)
        self.space_out = Linear(width, width, **options)
        self.time_qkv = Linear(width, 3 * width, **options)
        self.time_out = Linear(width, width, **options)
        self.mlp_in = Linear(width, 4 * width, **options)
        self.mlp_out = Linear(4 * width, width, **options)

    def __call__(self, x: Array, told: Array, mask: Array | None = None) -> Array:
        """Tokens x [B, T, N, C], what each frame is told [B, T, 9·C], and which frames a frame may
        see, booleans [1, T, T] (None: all) -> [B, T, N, C]."""
        nine = told + self.table[...].astype(told.dtype)
        shift_s, scale_s, gate_s, shift_t, scale_t, gate_t, shift_m, scale_m, gate_m = jnp.split(
            nine[:, :, None], 9, axis=-1
        )

        def attend(qkv, mask=None):
            return attention(*split_heads(qkv, self.heads), mask)

        h = layer_norm(x) * (1 + scale_s) + shift_s
        x = x + gate_s * self.space_out(over_space(attend, self.space_qkv(h)))
        h = layer_norm(x) * (1 + scale_t) + shift_t
        x = x + gate_t * self.time_out(over_time(attend, self.time_qkv(h), mask))
        h = layer_norm(x) * (1 + scale_m) + shift_m
        return x + gate_m * self.mlp_out(jax.nn.gelu(self.mlp_in(h)))


class VideoDiT(nnx.Module):
    """``model(x, t, cond)`` for clips x [B, F, H, W, C], with one time for each clip or each frame.

    Frames are cut into patches, or with ``tubelet > 1`` clips into boxes of that many frames
    (spacetime patches). An image is a clip of one frame; the same weights take clips of every
    length that the tubelet divides. The output layer starts at zero.

    Args:
      image_size: (H, W) of the frames, multiples of patch; one number for square ones.
      image_channels: C.
      patch: side of a patch.
      tubelet: frames in a patch. They have one noise level: with more than one, t must be [B].
      width: of a token; a multiple of head_size and of 4.
      depth: number of blocks.
      head_size: width of an attention head.
      num_classes: number of labels, or None; with labels, ``null_label = num_classes``.
      causal: whether a frame sees itself and earlier frames only.
      time_positions: whether tokens know the number of their frame. Without it the network cannot
        tell the frames' order, unless their times or the mask do.
      time_scale: factor of the time inside its sinusoids.
      dtype: of the computation; parameters and output stay float32.
      rngs: random number streams of the initialisation.

    Raises: ValueError for sizes that do not fit.
    Source: tubelets: Arnab et al. 2021, section 3.2 (arXiv:2103.15691); a time per frame: Chen et
    al. 2024, section 3.2 (arXiv:2407.01392); see `SpaceTimeBlock` for the rest.

    >>> model = VideoDiT(8, 3, patch=4, width=16, depth=1, head_size=8, rngs=nnx.Rngs(0))
    >>> x = jax.ShapeDtypeStruct((2, 5, 8, 8, 3), jnp.float32)
    >>> jax.eval_shape(model, x, jnp.full((2, 5), 0.5)).shape
    (2, 5, 8, 8, 3)
    """

    def __init__(
        self,
        image_size: int | tuple[int, int],
        image_channels: int = 3,
        *,
        patch: int = 4,
        tubelet: int = 1,
        width: int = 80,
        depth: int = 4,
        head_size: int = 20,
        num_classes: int | None = None,
        causal: bool = False,
        time_positions: bool = True,
        time_scale: float = TIME_SCALE,
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        options = {"dtype": dtype, "rngs": rngs}
        size = doors.sides(image_size)
        checks.integer("image_channels", image_channels, 1)
        checks.integer("depth", depth, 1)
        checks.integer("tubelet", tubelet, 1)
        if any(side % checks.integer("patch", patch, 1) for side in size):
            raise ValueError(f"patch must divide image_size = {image_size}, got {patch}")
        doors.divisible("width", width, 4)
        heads = count_heads(width, head_size)
        self.image_shape, self.patch, self.tubelet = (*size, image_channels), patch, tubelet
        self.null_label, self.causal, self.time_positions = num_classes, causal, time_positions
        numbers = tubelet * patch**2 * image_channels
        self.patchify = Linear(numbers, width, **options)
        self.embed = Conditioning(width, num_classes, time_scale=time_scale, **options)
        self.shared = Linear(width, 9 * width, zero=True, **options)
        self.blocks = stack(
            lambda rngs: SpaceTimeBlock(width, heads, dtype=dtype, rngs=rngs), depth, rngs
        )
        self.modulation = Linear(width, 2 * width, zero=True, **options)
        self.final = Linear(width, numbers, zero=True, **options)

    def __call__(self, x: Array, t: Array, cond: Array | None = None) -> Array:
        """Predicts for clips x at times t.

        Args:
          x: float32 [B, F, H, W, C]; the tubelet divides F.
          t: times in [0, 1], float32 [B] for whole clips or [B, F] for each frame.
          cond: labels [B] in 0 … num_classes; None for no label.

        Returns: float32 [B, F, H, W, C].
        Raises: ValueError for an argument of another shape, dtype or range.
        """
        x = doors.state(x, ("B", "F", *self.image_shape))
        batch, frames = x.shape[:2]
        if frames % self.tubelet:
            raise ValueError(f"x must hold a multiple of {self.tubelet} frames, got {frames}")
        length = frames // self.tubelet
        told = self._told(t, cond, batch, frames)
        boxes = self._boxes(x)
        tokens = self.patchify(boxes)
        rows, cols = (side // self.patch for side in self.image_shape[:2])
        width = tokens.shape[-1]
        tokens = tokens + position_embedding(rows, cols, width).astype(tokens.dtype)
        if self.time_positions:
            places = sinusoids(length, width).astype(np.float32)
            tokens = tokens + places[:, None].astype(tokens.dtype)
        mask = np.tril(np.ones((1, length, length), bool)) if self.causal else None
        modulation = self.shared(jax.nn.silu(told))

        def step(block, tokens, _):
            return block(tokens, modulation, mask)

        tokens, _ = through(step, self.blocks, tokens)
        shift, scale = jnp.split(self.modulation(jax.nn.silu(told))[:, :, None], 2, axis=-1)
        numbers = self.final(layer_norm(tokens) * (1 + scale) + shift)
        return self._frames(numbers, x.shape).astype(x.dtype)

    def _told(self, t: Array, cond: Array | None, batch: int, frames: int) -> Array:
        """The embedding of time and label, for each step of the token's time: [B, T, width]."""
        given = np.shape(t)
        length = frames // self.tubelet
        if given == (batch, frames) and self.tubelet == 1:
            each = doors.times(jnp.reshape(t, -1), batch * frames)
            cond = None if cond is None else jnp.repeat(cond, frames, axis=0)
            return self.embed(each, cond).reshape(batch, frames, -1)
        if given != (batch,):
            allowed = f"[B] = [{batch}]"
            if self.tubelet == 1:
                allowed += f" or [B, F] = [{batch}, {frames}]"
            raise ValueError(f"t must have shape {allowed}, got {list(given)}")
        told = self.embed(doors.times(t, batch), cond)
        return jnp.broadcast_to(told[:, None], (batch, length, told.shape[-1]))

    def _boxes(self, x: Array) -> Array:
        """Clips as boxes of numbers, [B, T, N, tubelet·patch²·C]."""
        batch, frames = x.shape[:2]
        patches = space_to_depth(x.reshape(-1, *x.shape[2:]), self.patch)
        places, numbers = patches.shape[1] * patches.shape[2], patches.shape[-1]
        grouped = patches.reshape(batch, frames // self.tubelet, self.tubelet, places, numbers)
        return jnp.moveaxis(grouped, 2, 3).reshape(batch, frames // self.tubelet, places, -1)

    def _frames(self, boxes: Array, shape: tuple[int, ...]) -> Array:
        """What `_boxes` has done, undone."""
        batch, frames = shape[:2]
        rows, cols = (side // self.patch for side in self.image_shape[:2])
        apart = boxes.reshape(batch, frames // self.tubelet, rows * cols, self.tubelet, -1)
        grid = jnp.moveaxis(apart, 3, 2).reshape(batch * frames, rows, cols, -1)
        return depth_to_space(grid, self.patch).reshape(shape)
