"""A renderer small enough to read: a field of voxels, seen along parallel rays.

Everything in it is differentiable. The field fills the cube [−1, 1]³, axes in the order x (to the
right), y (up), z (towards the viewer at azimuth 0); the density is an absorption per unit of
length, and each voxel gives light of its own.
"""

import itertools
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from diffusion_course import checks


class Field(NamedTuple):
    """What fills space: density [N, N, N], not negative, and colour [N, N, N, C]."""

    density: Array
    colour: Array


def opacities(density: Array, length) -> Array:
    """What each piece of a ray keeps back: ``1 − exp(−density·length)``, in [0, 1), of their shape.

    Args:
      density: of the pieces [..., S], at least 0.
      length: of a piece; it broadcasts against density.

    Source: Max 1995, eq. 3–5; Mildenhall et al. 2020, NeRF, eq. 3 (arXiv:2003.08934).
    """
    return -jnp.expm1(-density * length)


def ray_weights(density: Array, length) -> tuple[Array, Array]:
    """How much each piece of a ray shows, and how much light comes through all of them.

    ``weight_i = T_i·opacity_i`` with the transmittance ``T_i = exp(−Σ_{j<i} density_j·length_j)``.
    The weights and what comes through add up to 1.

    Args:
      density: of the pieces from the viewer on [..., S], at least 0.
      length: of a piece; it broadcasts against density.

    Returns: weights [..., S], and the transmittance of the whole ray [...].
    Source: Mildenhall et al. 2020, NeRF, eq. 3 (arXiv:2003.08934).

    >>> half = float(jnp.log(2))  # each piece lets half of the light through
    >>> weights, through = ray_weights(jnp.full(3, half), 1.0)
    >>> print(weights.round(4), through.round(4))
    [0.5   0.25  0.125] 0.125
    """
    depth = jnp.cumsum(density * length, axis=-1)
    before = jnp.concatenate([jnp.zeros_like(depth[..., :1]), depth[..., :-1]], axis=-1)
    return jnp.exp(-before) * opacities(density, length), jnp.exp(-depth[..., -1])


def directions(azimuth, elevation=0.0) -> tuple[Array, Array, Array]:
    """The axes of a picture in space: to the right, up, and towards the viewer, each [3].

    Azimuth 0 looks at the field from +z. At azimuth 90° the viewer has walked around it to +x.

    Args:
      azimuth: in radians.
      elevation: in radians, positive above.
    """
    a, e = jnp.asarray(azimuth, jnp.float32), jnp.asarray(elevation, jnp.float32)
    ca, sa, ce, se = jnp.cos(a), jnp.sin(a), jnp.cos(e), jnp.sin(e)
    right = jnp.stack([ca, jnp.zeros_like(a), -sa])
    up = jnp.stack([-sa * se, ce, -ca * se])
    towards = jnp.stack([sa * ce, se, ca * ce])
    return right, up, towards


def rays(azimuth, size: int, samples: int, elevation=0.0, reach: float = 1.0) -> Array:
    """Points along parallel rays, one ray for each pixel: [size, size, samples, 3].

    Rows from the top down, columns from the left, samples from the viewer on; each stands in the
    middle of its piece, which is ``2·reach/samples`` long.

    Args:
      azimuth: in radians.
      size: pixels in height and width, at least 1.
      samples: points on each ray, at least 1.
      elevation: in radians.
      reach: half the width of what is seen. A cube that is turned needs √2 to be seen whole.

    Raises: ValueError for a size or number of samples below 1, or a reach that is not positive.
    """
    size, samples = checks.integer("size", size, 1), checks.integer("samples", samples, 1)
    checks.above("reach", reach, 0)
    right, up, towards = directions(azimuth, elevation)
    across = reach * ((2 * jnp.arange(size) + 1) / size - 1)
    along = reach * (1 - (2 * jnp.arange(samples) + 1) / samples)
    return (
        -across[:, None, None, None] * up
        + across[None, :, None, None] * right
        + along[None, None, :, None] * towards
    )


def look_up(values: Array, points: Array) -> Array:
    """Trilinear interpolation of a grid [N, N, N] or [N, N, N, C] at points [..., 3]; 0 outside.

    Voxel i along an axis has its centre at (2i + 1)/N − 1. Half a voxel beyond the outer centres
    the value falls to 0.
    """
    n = values.shape[0]
    places = jnp.moveaxis((points + 1) * n / 2 - 0.5, -1, 0)
    # A compiler may compute `low` twice, and round a whole-numbered place down for the weights and
    # up for the values: each voxel's weight then goes to its neighbour's value. Points in voxels'
    # centres are common, points 1e-4 voxels before them are not (and lose as much of their weight).
    low, total = jnp.floor(places + 1e-4).astype(jnp.int32), 0.0
    for corner in itertools.product((0, 1), repeat=3):
        voxel = [low[axis] + step for axis, step in enumerate(corner)]
        # From the voxel's own distance: where a compiler rounds a whole-numbered place otherwise
        # here than for `low`, as XLA of jax 0.7 does, its voxel still has the weight 1.
        near = [jnp.maximum(0, 1 - jnp.abs(places[a] - voxel[a])) for a in range(3)]
        inside = jnp.all(jnp.stack([(v >= 0) & (v < n) for v in voxel]), axis=0)
        weight = jnp.where(inside, near[0] * near[1] * near[2], 0)
        found = values[tuple(jnp.clip(v, 0, n - 1) for v in voxel)]
        total += weight.reshape(weight.shape + (1,) * (values.ndim - 3)) * found
    return total


def render(
    field: Field,
    azimuth,
    size: int,
    samples: int | None = None,
    elevation=0.0,
    background: float = 0.0,
    reach: float = 1.0,
) -> tuple[Array, Array]:
    """A picture of the field from one side, and how opaque each pixel is.

    ``colour = Σ_i weight_i·colour_i + T·background``: emission and absorption along each ray.

    Args:
      field: density [N, N, N], at least 0; colour [N, N, N, C].
      azimuth: in radians; it may be traced.
      size: pixels in height and width.
      samples: points on each ray; by default 2·N.
      elevation: in radians.
      background: what is seen where nothing is.
      reach: half the width of what is seen.

    Returns: float32 [size, size, C], and the opacity 1 − T, [size, size].
    Raises: ValueError for a field of other shapes, or as `rays`.
    Source: Max 1995, *Optical Models for Direct Volume Rendering*; Mildenhall et al. 2020, eq. 3.
    """
    density, colour = (checks.state(name, a) for name, a in zip(Field._fields, field, strict=True))
    n = density.shape[0] if density.ndim else 0
    if n == 0 or density.shape != (n, n, n):
        raise ValueError(f"density must have shape [N, N, N], got shape {list(density.shape)}")
    if colour.ndim != 4 or colour.shape[:3] != density.shape:
        raise ValueError(
            f"colour must have shape [{n}, {n}, {n}, C], got shape {list(colour.shape)}"
        )
    samples = 2 * n if samples is None else samples
    points = rays(azimuth, size, samples, elevation, reach)
    weights, through = ray_weights(look_up(density, points), 2 * reach / samples)
    seen = look_up(colour, points)
    light = jnp.einsum("hws,hwsc->hwc", weights, seen, precision="highest")
    return light + background * through[..., None], 1 - through
