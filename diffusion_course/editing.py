"""Editing with a denoiser that was never trained for it: SDEdit, DDIM inversion, interpolation.

Inpainting is a function from denoisers to denoisers, `diffusion_course.guidance.inpaint`.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion_course.checks import concrete
from diffusion_course.denoiser import Denoiser
from diffusion_course.process import Process, add_noise, levels
from diffusion_course.samplers import Sampler
from diffusion_course.sampling import sample


def sdedit(
    sampler: Sampler, D: Denoiser, p: Process, x0: Array, strength: float, steps: int, key: Array
) -> Array:
    """Noises pictures up to the time `strength`, and denoises them again.

    The more noise, the more is drawn anew: what survives is what the noise does not hide.

    Args:
      sampler: from `diffusion_course.samplers`.
      D: the denoiser.
      p: the process.
      x0: what to edit, [B, …].
      strength: a time in [0, 1], which may be traced; at 0 the result is x0 itself.
      steps: of the way back, on a uniform grid.
      key: a random key.

    Returns: [B, …]. Raises: ValueError for a strength outside [0, 1] or steps < 1.
    Source: Meng et al. 2022, section 3 (arXiv:2108.01073).
    """
    if concrete(strength) and not 0 <= strength <= 1:
        raise ValueError(f"strength must be in [0, 1], got {strength}")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    key_noise, key_steps = jax.random.split(key)
    # No sampler can step from 0 to 0: strength 0 runs with another start, and is not looked at.
    start = jnp.where(jnp.equal(strength, 0), 1.0, strength)
    x_t = add_noise(p, x0, jax.random.normal(key_noise, x0.shape, x0.dtype), start)
    times = start * np.linspace(1, 0, steps + 1, dtype=np.float32)
    edited = sample(sampler, D, x_t, times, key_steps)[0]
    return jnp.where(jnp.equal(strength, 0), x0, edited)


def refine(
    sampler: Sampler, D: Denoiser, p: Process, coarse: Array, size: tuple[int, int],
    strength: float, steps: int, key: Array,
) -> Array:  # fmt: skip
    """Enlarges coarse pictures smoothly, and lets the denoiser draw the details: `sdedit` of them.

    With `guidance.match_coarse` as well, the result shrinks to the coarse picture exactly.

    Args:
      sampler: from `diffusion_course.samplers`.
      D: the denoiser of the fine pictures.
      p: the process.
      coarse: [B, h, w, C].
      size: height and width of the fine pictures.
      strength: as in `sdedit`; what smaller than the noise the enlarging left out is drawn anew.
      steps: of the way back.
      key: a random key.

    Returns: [B, *size, C]. Raises: ValueError as `sdedit`, or if the size is smaller than coarse's.
    Source: the cascade of Ho et al. 2022 (arXiv:2106.15282) starts from an enlarged picture as
    well, with a network that was trained for it; SDEdit: Meng et al. 2022 (arXiv:2108.01073).
    """
    if coarse.ndim != 4 or coarse.shape[1] > size[0] or coarse.shape[2] > size[1]:
        raise ValueError(
            f"coarse must have shape [B, h, w, C] with h and w at most {tuple(size)}, "
            f"got shape {coarse.shape}"
        )
    enlarged = jax.image.resize(coarse, (len(coarse), *size, coarse.shape[3]), "cubic")
    return sdedit(sampler, D, p, enlarged, strength, steps, key)


def invert(p: Process, D: Denoiser, x: Array, times, refinements: int = 0) -> tuple[Array, Array]:
    """The noise from which DDIM, at eta = 0, draws a picture: its steps, backwards.

    A step back up needs eps at its upper end, which is not known yet. DDIM inversion takes the
    state at the lower end in its place; each refinement evaluates again where that led, and the
    fixed point is the exact inverse.

    Args:
      p: the process.
      D: the denoiser.
      x: the state at the last of the times, [B, …]; the picture itself if that is 0.
      times: [n + 1], the grid that DDIM runs down, strictly falling.
      refinements: further evaluations per step; may be traced.

    Returns: the state at times[0] [B, …], and after every step up [n, B, …].
    Raises: ValueError for times that do not fall strictly within [1, 0] or refinements < 0.
    Source: Song, Meng & Ermon 2021, section 5.4 (arXiv:2010.02502); the fixed point: Pan et al.
    2023 (arXiv:2309.04907).
    """
    if concrete(refinements) and refinements < 0:
        raise ValueError(f"refinements must be at least 0, got {refinements}")
    if concrete(times):
        grid = np.asarray(times)
        if grid.ndim != 1 or grid.size < 2 or not (np.diff(grid) < 0).all():
            raise ValueError(f"times must fall strictly and have shape [n + 1], got {times}")
    up = jnp.asarray(times, jnp.float32)[::-1]

    def climb(x_s, interval):
        s, t = interval
        alpha_s, sigma_s = levels(p, s, x_s)
        alpha_t, sigma_t = levels(p, t, x_s)

        # DDIM's step solved for x_t with eps or with x0 on the other side. The former divides by
        # alpha_s and learns nothing where alpha_t = 0, the latter divides by sigma_s.
        noisy = sigma_s > alpha_s
        safe = jnp.where(noisy, sigma_s, 1.0)

        def arrive(_, guess):
            x0 = D(guess, t)
            eps = (guess - alpha_t * x0) / sigma_t
            by_eps = alpha_t / alpha_s * x_s + (sigma_t - alpha_t * sigma_s / alpha_s) * eps
            by_x0 = sigma_t / safe * x_s + (alpha_t - alpha_s * sigma_t / safe) * x0
            return jnp.where(noisy, by_x0, by_eps)

        x_t = jax.lax.fori_loop(0, refinements + 1, arrive, x_s)
        return x_t, x_t

    return jax.lax.scan(climb, x, (up[:-1], up[1:]))


def slerp(a: Array, b: Array, share) -> Array:
    """Interpolates between noises along the arc: each example keeps a plausible length.

    The straight line between two independent noises passes through points that are too short by
    up to sqrt(2), which no noise is. Parallel examples are interpolated linearly.

    Args:
      a: where share is 0, [B, …].
      b: where share is 1, of the same shape.
      share: a scalar.

    Source: Shoemake 1985; for latent noise Song, Meng & Ermon 2021, appendix D.5.
    """
    axes = tuple(range(1, a.ndim))
    lengths = [jnp.sqrt(jnp.sum(x**2, axis=axes, keepdims=True)) for x in (a, b)]
    cosine = jnp.sum(a * b, axis=axes, keepdims=True) / (lengths[0] * lengths[1])
    angle = jnp.arccos(jnp.clip(cosine, -1.0, 1.0))
    # Near an angle of 0 the ratio of the sines tends to that of the angles.
    flat = angle < 1e-3
    sine = jnp.where(flat, 1.0, jnp.sin(angle))
    of_a = jnp.where(flat, 1 - share, jnp.sin((1 - share) * angle) / sine)
    of_b = jnp.where(flat, share, jnp.sin(share * angle) / sine)
    return of_a * a + of_b * b
