"""Editing with a denoiser that was never trained for it: SDEdit, DDIM inversion, interpolation.

Inpainting is a function from denoisers to denoisers, `diffusion_course.guidance.inpaint`.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion_course import checks
from diffusion_course.denoiser import Denoiser
from diffusion_course.process import Process, add_noise, expand, levels
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
      x0: what to edit, float32 [B, …].
      strength: a time in [0, 1], which may be traced; at 0 the result is x0 itself.
      steps: of the way back, on a uniform grid, at least 1.
      key: a random key.

    Returns: [B, …]. Raises: ValueError if strength is outside [0, 1] or steps below 1.
    Source: Meng et al. 2022, section 3 (arXiv:2108.01073).
    """
    x0 = checks.state("x0", x0)
    strength = checks.number("strength", strength)
    checks.within("strength", strength, 0, 1)
    steps = checks.integer("steps", steps, 1)
    checks.random_key("key", key)
    # Up, in one step of noise.
    key_noise, key_steps = jax.random.split(key)
    # No sampler can step from 0 to 0: strength 0 runs with another start, and is not looked at.
    start = jnp.where(jnp.equal(strength, 0), 1.0, strength)
    x_t = add_noise(p, x0, jax.random.normal(key_noise, x0.shape, x0.dtype), start)
    # Down again, step by step.
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
      coarse: float32 [B, h, w, C].
      size: height and width of the fine pictures.
      strength: as in `sdedit`; details that are smaller than its noise are drawn anew.
      steps: of the way back, at least 1.
      key: a random key.

    Returns: [B, *size, C]. Raises: ValueError as `sdedit`, or if the size is smaller than coarse's.
    Source: the cascade of Ho et al. 2022 (arXiv:2106.15282) starts from an enlarged picture as
    well, with a network that was trained for it; SDEdit: Meng et al. 2022 (arXiv:2108.01073).
    """
    coarse = checks.state("coarse", coarse)
    size = tuple(checks.integer("each entry of size", pixels, 1) for pixels in size)
    if len(size) != 2:
        raise ValueError(f"size must be a height and a width, got {size}")
    if coarse.ndim != 4 or coarse.shape[1] > size[0] or coarse.shape[2] > size[1]:
        raise ValueError(
            f"coarse must have shape [B, h, w, C] with h and w at most {size}, "
            f"got shape {list(coarse.shape)}"
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
      x: the state at the last of the times, float32 [B, …]; the picture itself if that is 0.
      times: [n + 1], the grid that DDIM runs down, strictly falling within [1, 0].
      refinements: further evaluations per step, at least 0; may be traced.

    Returns: the state at times[0] [B, …], and after every step up [n, B, …].
    Raises: ValueError if times do not fall strictly within [1, 0] or refinements is below 0.
    Source: Song, Meng & Ermon 2021, section 5.4 (arXiv:2010.02502); the fixed point: Pan et al.
    2023 (arXiv:2309.04907).
    """
    x = checks.state("x", x)
    if checks.concrete(refinements):
        refinements = checks.integer("refinements", refinements, 0)
    up = checks.falling_times("times", times)[::-1]

    def climb(x_s, interval):
        s, t = interval
        alpha_s, sigma_s = levels(p, s, x_s)
        alpha_t, sigma_t = levels(p, t, x_s)

        # DDIM's step solved for x_t with eps or with x0 on the other side. The former divides by
        # alpha_s and learns nothing where alpha_t = 0, the latter divides by sigma_s.
        noisy = sigma_s > alpha_s
        shrink = alpha_t / jnp.where(noisy, 1.0, alpha_s)
        grow = sigma_t / jnp.where(noisy, sigma_s, 1.0)

        def arrive(_, guess):
            x0 = D(guess, t)
            checks.same_shape("D(x, t)", x0, "x", guess)
            # Without noise there is no eps to find, and none to add.
            eps = (guess - alpha_t * x0) / jnp.where(sigma_t > 0, sigma_t, 1.0)
            by_eps = shrink * x_s + (sigma_t - shrink * sigma_s) * eps
            by_x0 = grow * x_s + (alpha_t - grow * alpha_s) * x0
            return jnp.where(noisy, by_x0, by_eps)

        # The first guess is the state itself; each refinement begins where the last one led.
        x_t = jax.lax.fori_loop(0, refinements + 1, arrive, x_s)
        return x_t, x_t

    return jax.lax.scan(climb, x, (up[:-1], up[1:]))


def slerp(a: Array, b: Array, share) -> Array:
    """Interpolates between noises along the arc: each example keeps a plausible length.

    The straight line between two independent noises passes through points that are too short by
    up to sqrt(2), which no noise is. Examples that are parallel, opposite or 0 have no arc between
    them, and are interpolated linearly.

    Args:
      a: where share is 0, float32 [B, …].
      b: where share is 1, of the same shape.
      share: a number, or one per example [B].

    Returns: [B, …]. Raises: ValueError if a and b differ in shape or share has another.
    Source: Shoemake 1985; for latent noise Song, Meng & Ermon 2021, appendix D.5.

    >>> a, b = jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 1.0]])
    >>> print(slerp(a, b, 0.5).round(3))  # the line's middle is (0.5, 0.5)
    [[0.707 0.707]]
    """
    a, b = checks.state("a", a), checks.state("b", b)
    checks.same_shape("b", b, "a", a)
    checks.within("share", share, -np.inf, np.inf, ends="()")
    share = expand(jnp.asarray(share, jnp.float32), a)

    # The angle between the two, from its cosine.
    axes = tuple(range(1, a.ndim))
    products = (jnp.sum(x * y, axis=axes, keepdims=True) for x, y in ((a, b), (a, a), (b, b)))
    of_both, of_a, of_b = products
    squared = of_a * of_b
    some = squared > 0
    cosine = jnp.where(some, of_both / jnp.sqrt(jnp.where(some, squared, 1.0)), 1.0)
    # Beyond this cosine the sine of the angle is below 1e-3, and has few digits left in float32.
    arc = jnp.abs(cosine) < 1 - 5e-7
    angle = jnp.arccos(jnp.where(arc, cosine, 0.0))

    # Shares of the arc, or of the line.
    sine = jnp.sin(angle)
    share_a = jnp.where(arc, jnp.sin((1 - share) * angle) / sine, 1 - share)
    share_b = jnp.where(arc, jnp.sin(share * angle) / sine, share)
    return share_a * a + share_b * b
