"""ControlNet: a second image steers a trained network whose parameters stay as they are."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from diffusion_course import checks
from diffusion_course.models import doors
from diffusion_course.models.layers import Conv3x3, Linear, space_to_depth
from diffusion_course.models.unet import UNet

# What a U-Net has for its way up, which a control does not have.
WAY_UP = ("up", "double", "norm_out", "conv_out")


class ControlNet(nnx.Module):
    """A trainable copy of a U-Net's encoder that reads one image more and adds to its skips.

    It is joined to the U-Net by layers that start at zero, one for each skip and one for the
    middle: at first it changes nothing at all, bit for bit. The controlling image comes in through
    another such layer, whose output is added to the copy's first features.

    The U-Net, `base`, is an argument of a call and no part of this model. So in a training such as
    ``loop.fit(control, loss, …, teacher=base)``, where the loss calls ``control.steer(teacher,
    image)``, it is frozen, and a weights file of the control holds the control alone.

    Args:
      base: a trained U-Net, whose encoder is copied; it is not changed.
      control_channels: K of the controlling images.
      rngs: random number streams; nothing is drawn from them that is used before training.

    Raises: ValueError for a base that is no U-Net, or no channels.
    Source: Zhang, Rao & Agrawala 2023, section 3.1 and 3.2 (arXiv:2302.05543).

    >>> base = UNet(1, (16, 32), num_classes=3, rngs=nnx.Rngs(0))
    >>> control = ControlNet(base, rngs=nnx.Rngs(1))
    >>> x, t, edge_map = jnp.ones((2, 8, 8, 1)), jnp.full(2, 0.5), jnp.ones((2, 8, 8, 1))
    >>> model = control.steer(base, edge_map)
    >>> bool((model(x, t, None) == base(x, t, None)).all())
    True
    """

    def __init__(self, base: UNet, control_channels: int = 1, *, rngs: nnx.Rngs):
        if not isinstance(base, UNet):
            raise ValueError(f"base must be a UNet, got {type(base).__name__}")
        self.control_channels = checks.integer("control_channels", control_channels, 1)
        graph, params = nnx.split(base)
        # Copied: two models that share their variables would be trained together.
        self.encoder = nnx.merge(graph, jax.tree.map(jnp.copy, params))
        for part in WAY_UP:
            delattr(self.encoder, part)
        dtype = base.conv_in.dtype
        first = self.encoder.conv_in.out_features
        self.first = Conv3x3(
            base.stem**2 * control_channels, first, zero=True, dtype=dtype, rngs=rngs
        )
        # Widths as the skips have them: the first convolution's, then every residual block's.
        widths = [first, *(block.conv2.out_features for block in self.encoder.down)]
        joints = [Linear(w, w, zero=True, dtype=dtype, rngs=rngs) for w in [*widths, widths[-1]]]
        self.joints = nnx.data(joints)

    def __call__(
        self,
        base: UNet,
        x: Array,
        t: Array,
        cond: Array | None = None,
        extras: Array | None = None,
        *,
        image: Array,
        strength: Array | float = 1.0,
    ) -> Array:
        """The prediction of the steered base.

        Args:
          base: the U-Net, or another of its shape: a control works for its fine-tuned versions too.
          x: images [B, H, W, C] at times t, as for the base.
          t: times [B].
          cond: labels or captions, as for the base.
          extras: as for the base.
          image: the controlling images, float32 [B, H, W, K].
          strength: factor of everything that is added, a number; 0 is the base alone.

        Raises: ValueError as the base, for an image of another shape or dtype, or for a strength
          that is not one number.
        """
        image, strength = checks.state("image", image), checks.number("strength", strength)
        wanted = (*np.shape(x)[:3], self.control_channels)
        if image.shape != wanted:
            raise ValueError(f"image must have shape {list(wanted)}, got {list(image.shape)}")
        # Both encoders hear time and caption, each with its own copy of the layers for them.
        emb, caption = base.told(t, cond, extras, len(x))
        h, skips = base.encode(base.checked(x), emb, caption)
        own, own_caption = self.encoder.told(t, cond, extras, len(x))
        added = self.first(space_to_depth(image, base.stem))
        steered, others = self.encoder.encode(base.checked(x), own, own_caption, added)
        *joints, last = self.joints
        skips = [
            skip + strength * joint(other)
            for skip, joint, other in zip(skips, joints, others, strict=True)
        ]
        h = h + strength * last(steered)
        return base.decode(h, skips, emb).astype(jnp.float32)

    def steer(self, base: UNet, image: Array, strength: Array | float = 1.0) -> Callable:
        """``model(x, t, cond)``: the base, steered by these images [B, H, W, K].

        Every sampler, guidance and loss takes it as a model. Make it inside the function that is
        compiled, from base and control as its arguments.
        """

        def model(x, t, cond=None, extras=None):
            return self(base, x, t, cond, extras, image=image, strength=strength)

        return model


def silhouettes(x: Array, background: float = -1.0, threshold: float = 0.5) -> Array:
    """Where images differ from their background: 1.0 inside and 0.0 outside, [B, H, W, 1].

    Args:
      x: images [B, H, W, C] in [−1, 1].
      background: its value in every channel.
      threshold: the least difference, in any channel, that is none of the background's.

    Raises: ValueError for an x that is not such an array.
    """
    x = doors.state(x, ("B", "H", "W", "C"))
    return jnp.any(jnp.abs(x - background) > threshold, axis=-1, keepdims=True).astype(jnp.float32)


def edges(x: Array, threshold: float = 0.25) -> Array:
    """Where images change: 1.0 on an edge and 0.0 elsewhere, [B, H, W, 1].

    A pixel lies on an edge where the gradient is long: central differences, half of what lies to
    the right less what lies to the left, and the same of rows; the largest of the channels.

    Args:
      x: images [B, H, W, C] in [−1, 1].
      threshold: the least length of the gradient, per pixel.

    Raises: ValueError for an x that is not such an array.
    Source: an edge map as in Zhang et al. 2023, section 4 (arXiv:2302.05543), there Canny's.

    >>> step = jnp.where(jnp.arange(6) < 3, -1.0, 1.0)  # the edge lies between pixels 2 and 3
    >>> edges(jnp.tile(step, (1, 4, 1))[..., None])[0, 0, :, 0].tolist()
    [0.0, 0.0, 1.0, 1.0, 0.0, 0.0]
    """
    x = doors.state(x, ("B", "H", "W", "C"))
    # Beyond the border the image goes on as it ends.
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    across = (padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]) / 2
    down = (padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]) / 2
    length = jnp.hypot(across, down).max(axis=-1, keepdims=True)
    return (length > threshold).astype(jnp.float32)


# What a control may see of an image, by the name that a recipe gives it.
MAPS = {"edges": edges, "silhouette": silhouettes}


def agreement(a: Array, b: Array) -> Array:
    """Intersection over union of two maps of 0 and 1, for each example: [B], in [0, 1].

    Two empty maps agree: 1.

    Args:
      a: [B, H, W, 1].
      b: of the same shape.

    Raises: ValueError for other shapes, or other values.

    >>> a, b = jnp.zeros((1, 2, 2, 1)).at[0, 0].set(1), jnp.ones((1, 2, 2, 1))
    >>> agreement(a, b).tolist()
    [0.5]
    """
    checks.same_shape("a", a, "b", b)
    a, b = checks.binary("a", a), checks.binary("b", b)
    axes = tuple(range(1, np.ndim(a)))
    both, either = jnp.sum(a & b, axis=axes), jnp.sum(a | b, axis=axes)
    return jnp.where(either == 0, 1.0, both / jnp.maximum(either, 1))
