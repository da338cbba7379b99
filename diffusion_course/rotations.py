"""Brownian motion of rotations in space, SO(3): noise for the frames of a protein.

After a time in which a free rotation vector would have gathered the variance eps² along each axis,
the rotation has turned about a uniform axis by an angle whose density is known as a series. Tables
are NumPy's, in float64.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion_course import checks

# Below this angle sin(ω/2) is taken at it: the density there is flat to 1e-8.
_LEAST = 1e-4


def density_by_waves(angle, eps: float, terms: int = 200) -> np.ndarray:
    """The density of the noised rotation, against the uniform one, at an angle ω from where it was.

    ``f(ω) = Σ_l (2l + 1)·exp(−l(l + 1)·eps²/2)·sin((l + ½)ω)/sin(ω/2)``, l = 0 … terms − 1. It
    needs about 8/eps terms.

    Args:
      angle: ω in [0, π], of any shape.
      eps: positive.
      terms: at least 1.

    Returns: float64 of angle's shape; 1 everywhere for a large eps.
    Raises: ValueError for an eps that is not positive, or an angle outside [0, π].
    Source: Nikolayev & Savyolova 1997; Leach et al. 2022, eq. 6 with eps² in the place of our
    eps²/2 (*Denoising Diffusion Probabilistic Models on SO(3)*); Yim et al. 2023, prop. 3
    (arXiv:2302.02277), with t = eps².
    """
    angle = _angles(angle, eps)[..., None]
    l = np.arange(checks.integer("terms", terms, 1))  # noqa: E741 (as in the papers)
    waves = np.sin((l + 0.5) * angle) / np.sin(angle / 2)
    return ((2 * l + 1) * np.exp(-l * (l + 1) * eps**2 / 2) * waves).sum(-1)


def density_by_turns(angle, eps: float, turns: int = 4) -> np.ndarray:
    """The same density as a sum over the ways around, k = −turns … turns. Good for a small eps.

    ``f(ω) = √(2π)·exp(eps²/8)·eps⁻³/sin(ω/2)·Σ_k (−1)^k·(ω + 2πk)·exp(−(ω + 2πk)²/(2·eps²))``,
    from `density_by_waves` by Poisson's formula.
    """
    angle = _angles(angle, eps)[..., None]
    k = np.arange(-turns, turns + 1)
    ways = angle + 2 * np.pi * k
    sign = np.where(k % 2, -1.0, 1.0)
    total = (sign * ways * np.exp(-(ways**2) / (2 * eps**2))).sum(-1)
    return np.sqrt(2 * np.pi) * np.exp(eps**2 / 8) / eps**3 * total / np.sin(angle[..., 0] / 2)


def density(angle, eps: float) -> np.ndarray:
    """`density_by_turns` below eps = 1, `density_by_waves` above: both are exact there."""
    return density_by_turns(angle, eps) if eps < 1 else density_by_waves(angle, eps, 30)


def _angles(angle, eps) -> np.ndarray:
    checks.above("eps", eps, 0)
    checks.within("angle", angle, 0, np.pi + 1e-6)
    return np.clip(np.asarray(angle, np.float64), _LEAST, np.pi)


def haar(angle) -> np.ndarray:
    """The density of the angle of a uniform rotation, ``(1 − cos ω)/π`` on [0, π]."""
    return (1 - np.cos(np.asarray(angle, np.float64))) / np.pi


def from_vector(v: Array) -> Array:
    """Rotation matrices [..., 3, 3] of rotation vectors [..., 3]: axis times angle in radians.

    Source: Rodrigues' formula, ``I + sin ω·K + (1 − cos ω)·K²``.
    """
    v = checks.state("v", v)
    angle = jnp.sqrt(jnp.maximum(jnp.sum(v**2, axis=-1), 1e-20))[..., None, None]
    x, y, z = (v / angle[..., 0])[..., 0], (v / angle[..., 0])[..., 1], (v / angle[..., 0])[..., 2]
    zero = jnp.zeros_like(x)
    rows = [[zero, -z, y], [z, zero, -x], [-y, x, zero]]
    K = jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)
    turn = jnp.matmul(K, K, precision="highest")
    return jnp.eye(3) + jnp.sin(angle) * K + (1 - jnp.cos(angle)) * turn


def uniform(key: Array, n: int) -> Array:
    """n uniform rotations [n, 3, 3], float32: of quaternions that are four standard normal numbers.

    Raises: ValueError for n < 1.
    """
    checks.random_key("key", key)
    q = jax.random.normal(key, (checks.integer("n", n, 1), 4), jnp.float32)
    w, v = q[:, :1], q[:, 1:]
    length = jnp.linalg.norm(v, axis=1, keepdims=True)
    return from_vector(2 * jnp.arctan2(length, w) * v / jnp.maximum(length, 1e-12))


def angle_of(rotation: Array) -> Array:
    """The angle of rotation matrices [..., 3, 3], in [0, π]; exact for small ones too."""
    r = jnp.asarray(rotation)
    sine = jnp.stack(
        [r[..., 2, 1] - r[..., 1, 2], r[..., 0, 2] - r[..., 2, 0], r[..., 1, 0] - r[..., 0, 1]], -1
    )
    return jnp.arctan2(jnp.linalg.norm(sine, axis=-1), jnp.trace(r, axis1=-2, axis2=-1) - 1)


def noise(key: Array, eps: float, n: int) -> Array:
    """n noised identities [n, 3, 3], float32: turned by an angle of density f·haar, about any axis.

    Args:
      key: a random key.
      eps: positive.
      n: at least 1.

    Raises: ValueError for an eps that is not positive, or n < 1.
    """
    checks.random_key("key", key)
    checks.above("eps", eps, 0)
    n = checks.integer("n", n, 1)
    # The density of the angle reaches as far as eight standard deviations, or to π.
    grid = np.linspace(0, min(np.pi, 9 * eps), 4001)
    heights = density(grid, eps) * haar(grid)
    cumulative = np.concatenate([[0], np.cumsum((heights[1:] + heights[:-1]) / 2)])
    key_angle, key_axis = jax.random.split(key)
    u = jax.random.uniform(key_angle, (n,), jnp.float32)
    angle = jnp.interp(u, jnp.asarray(cumulative / cumulative[-1]), jnp.asarray(grid))
    axis = jax.random.normal(key_axis, (n, 3), jnp.float32)
    axis = axis / jnp.linalg.norm(axis, axis=-1, keepdims=True)
    return from_vector(angle[:, None] * axis)
