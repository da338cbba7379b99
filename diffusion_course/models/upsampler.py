"""A U-Net that enlarges: it is told a smaller image, and how much noise that image holds."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from diffusion_course import checks
from diffusion_course.models.layers import Conv3x3, space_to_depth, upsample
from diffusion_course.models.unet import UNet


class Upsampler(nnx.Module):
    """``model.given(low, s)`` is the network ``model(x, t, cond)`` of one stage of a cascade.

    The smaller image is enlarged, pixel by pixel, and goes through a convolution of its own that is
    added to the first one's output. This is what a first convolution of the image and the enlarged
    one as further channels would compute. The level s is told as the time is.

    Args:
      factor: side of a large image over that of a small one.
      image_channels: C of both images.
      channels, blocks, stem, num_classes, dtype: as in `UNet`.
      rngs: random number streams of the initialisation.

    Raises: ValueError for sizes that do not fit.
    Source: Ho et al. 2022, section 2 and 3 (arXiv:2106.15282); the enlarged image beside the
    noisy one: Saharia et al. 2021 (arXiv:2104.07636).

    >>> model = Upsampler(2, 3, (16, 32), num_classes=6, rngs=nnx.Rngs(0))
    >>> x, low, t = jnp.ones((4, 16, 16, 3)), jnp.ones((4, 8, 8, 3)), jnp.full(4, 0.5)
    >>> model.given(low, jnp.zeros(4))(x, t, jnp.arange(4)).shape
    (4, 16, 16, 3)
    """

    def __init__(
        self,
        factor: int = 2,
        image_channels: int = 3,
        channels: tuple[int, ...] = (32, 32),
        *,
        blocks: int = 1,
        stem: int = 1,
        num_classes: int | None = None,
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.factor = checks.integer("factor", factor, 1)
        self.net = UNet(
            image_channels, channels, blocks=blocks, stem=stem, num_classes=num_classes, extras=1,
            dtype=dtype, rngs=rngs,
        )  # fmt: skip
        self.null_label = self.net.null_label
        self.low_in = Conv3x3(stem**2 * image_channels, channels[0], dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Array, t: Array, cond: Array | None = None, *, low: Array, s: Array
    ) -> Array:
        """Predicts for images x at times t.

        Args:
          x: float32 [B, H, W, C].
          t: times in [0, 1], [B].
          cond: labels [B], or None.
          low: smaller images at level s, float32 [B, H/factor, W/factor, C].
          s: their levels in [0, 1], float32 [B].

        Raises: ValueError as the U-Net, or for a low or an s that does not fit.
        """
        x, low = self.net.checked(x), checks.state("low", low)
        b, height, width, c = x.shape
        wanted = (b, height // self.factor, width // self.factor, c)
        if low.shape != wanted or height % self.factor or width % self.factor:
            raise ValueError(
                f"low must have shape {list(wanted)}, a {self.factor}-th of the sides of x, "
                f"got {list(low.shape)}"
            )
        checks.time("s", s)
        if np.shape(s) != (b,):
            raise ValueError(f"s must have shape [B] = [{b}], got {list(np.shape(s))}")
        emb, _ = self.net.told(t, cond, jnp.asarray(s, jnp.float32)[:, None], b)
        added = self.low_in(space_to_depth(upsample(low, self.factor), self.net.stem))
        return self.net.decode(*self.net.encode(x, emb, None, added), emb).astype(x.dtype)

    def given(self, low: Array, s: Array) -> Callable:
        """``model(x, t, cond)`` for these smaller images [B, …] at levels s [B].

        Every sampler, guidance and loss takes it as a model. Make it inside the function that is
        compiled, from the Upsampler as its argument.
        """

        def model(x, t, cond=None):
            return self(x, t, cond, low=low, s=s)

        return model
