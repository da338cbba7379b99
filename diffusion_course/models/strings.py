"""A transformer for strings of letters: for masked, uniform and autoregressive models alike."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from diffusion_course import checks
from diffusion_course.models import doors
from diffusion_course.models.attention import attention, count_heads
from diffusion_course.models.blocks import Block, stack, through
from diffusion_course.models.layers import STANDARD_NORMAL, Conditioning, Linear, layer_norm
from diffusion_course.models.patches import sinusoids


class StringTransformer(nnx.Module):
    """``model(tokens [B, L], t [B], cond) -> logits [B, L, K]`` for the chains of `discrete`.

    Tokens are letters 0 … K − 1, and K, the mask. There is no logit for the mask. The output layer
    starts at zero: the untrained network gives every letter the same probability.

    With ``causal=True`` the same network, with as many parameters, is an autoregressive model: the
    string moves one place to the right, a mask stands before it, and each place attends to itself
    and to those before. So the logits of letter i depend on the letters before i alone.

    Args:
      letters: K.
      length: L.
      width: of a token; a multiple of head_size, and even.
      depth: number of blocks.
      head_size: width of an attention head.
      num_classes: number of labels, or None; with labels cond is [B] and ``null_label =
        num_classes``.
      features: how many numbers describe what a string is about, such as a picture's pixels; cond
        is then float32 [B, features]. Without num_classes.
      causal: whether a place sees only the letters before it.
      reads_time: whether the network is told t. A masked state says by its masks how late it is,
        and the best answer does not depend on t; in the uniform chain it does.
      rngs: random number streams of the initialisation.

    Raises: ValueError for sizes that do not fit, or for both labels and features.
    Source: the blocks are those of Peebles & Xie 2023 (arXiv:2212.09748), as in Sahoo et al. 2024
    (arXiv:2406.07524).

    >>> model = StringTransformer(5, 4, width=32, depth=1, rngs=nnx.Rngs(0))
    >>> x = jax.ShapeDtypeStruct((2, 4), jnp.int32)
    >>> jax.eval_shape(model, x, jnp.full(2, 0.5)).shape
    (2, 4, 5)
    """

    def __init__(
        self,
        letters: int,
        length: int,
        *,
        width: int = 64,
        depth: int = 2,
        head_size: int = 16,
        num_classes: int | None = None,
        features: int = 0,
        causal: bool = False,
        reads_time: bool = False,
        rngs: nnx.Rngs,
    ):
        self.letters = checks.integer("letters", letters, 1)
        self.length = checks.integer("length", length, 1)
        checks.integer("depth", depth, 1)
        doors.divisible("width", width, 2)
        if checks.integer("features", features, 0) and num_classes is not None:
            raise ValueError("features must be 0 in a model with labels (num_classes)")
        heads = count_heads(width, head_size)
        self.null_label, self.features = num_classes, features
        self.causal, self.reads_time = causal, reads_time
        self.letter = nnx.Embed(letters + 1, width, embedding_init=STANDARD_NORMAL, rngs=rngs)
        self.place = nnx.Param(jnp.asarray(sinusoids(length, width), jnp.float32))
        self.embed = Conditioning(width, num_classes, rngs=rngs)
        self.look = Linear(features, 2 * width, rngs=rngs) if features else None
        self.seen = Linear(2 * width, width, rngs=rngs) if features else None
        self.blocks = stack(partial(Block, width, heads), depth, rngs)
        self.modulation = Linear(width, 2 * width, zero=True, rngs=rngs)
        self.final = Linear(width, letters, zero=True, rngs=rngs)

    def __call__(self, x: Array, t: Array, cond: Array | None = None) -> Array:
        """Logits of every letter at every place.

        Args:
          x: tokens in 0 … K, whole numbers [B, L]. A causal model does not read the last one.
          t: times in [0, 1], float32 [B].
          cond: labels [B] in 0 … num_classes, or features [B, F]; None for no condition, which in a
            model with features is a row of zeros.

        Returns: float32 [B, L, K].
        Raises: ValueError for an argument of another shape, dtype or range.
        """
        x = self._tokens(x)
        emb = self._told(doors.times(t, x.shape[0]), cond)
        h = self.letter(x) + self.place[...]
        # Who may look at whom: [1, L, L], one row for each place that looks.
        mask = np.tril(np.ones((1, self.length, self.length), bool)) if self.causal else None

        def step(block, h, _):
            six = block.six(emb)
            return block.finish(h, attention(*block.qkv_of(h, six, None), mask), six)

        h, _ = through(step, self.blocks, h)
        shift, scale = jnp.split(self.modulation(jax.nn.silu(emb))[:, None], 2, axis=-1)
        return self.final(layer_norm(h) * (1 + scale) + shift)

    def _tokens(self, x: Array) -> Array:
        shape = np.shape(x)
        if len(shape) != 2 or shape[1] != self.length:
            raise ValueError(f"x must have shape [B, {self.length}], got {list(shape)}")
        checks.labels("x", x, shape, self.letters)
        x = jnp.asarray(x, jnp.int32)
        if self.causal:
            x = jnp.pad(x[:, :-1], ((0, 0), (1, 0)), constant_values=self.letters)
        return x

    def _told(self, t: Array, cond: Array | None) -> Array:
        """What every block is told: time, and label or features, as one vector [B, width]."""
        t = t if self.reads_time else jnp.zeros_like(t)
        if self.look is None:
            return self.embed(t, cond)
        seen = doors.extras(cond, len(t), self.features)
        return self.embed(t, None) + self.seen(jax.nn.silu(self.look(seen)))
