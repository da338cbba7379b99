"""Sampling in parallel over time: all steps of a path at once, again and again until they agree.

It is no `Sampler`: it owns its loop, and looks at many times in one evaluation.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion_course import checks
from diffusion_course.denoiser import Denoiser
from diffusion_course.process import Process, expand
from diffusion_course.steps import denoise


def picard(
    p: Process,
    D: Denoiser,
    x_start: Array,
    times,
    tolerance: float = 0.0,
    window: int | None = None,
) -> tuple[Array, Array]:
    """DDIM (eta = 0) by Picard iteration: a guess of the whole path, improved by sweeps.

    A sweep evaluates the denoiser at every state of a window in one batch, and then takes all the
    steps with these estimates, which costs next to nothing. The first state of the window is
    right, so each sweep makes at least one more state right: after at most n sweeps the path is
    that of `ddim`, up to rounding. Usually few are needed. The work is `sweeps·window`
    evaluations, more than DDIM's; the time is that of `sweeps` batches, if the device has room.

    All of it is one compiled `lax.while_loop`, through which JAX differentiates forwards and not
    backwards: `jax.grad` raises an error.

    Args:
      p: signal and noise levels.
      D: the denoiser; it is mapped over times with `jax.vmap`, so its conditions are those of B.
      x_start: state at times[0], float32 [B, …].
      times: [n + 1], strictly falling within [1, 0].
      tolerance: a state is taken as right when a sweep changes no example of it by more, rms; at
        least 0.
      window: how many states are looked at together, 1 to n; None for all n.

    Returns: the last state [B, …], and the number of sweeps, int32.
    Raises: ValueError if times do not fall strictly, tolerance is negative or window too large.
    Source: Shih et al. 2023, algorithm 1 (arXiv:2305.16317).

    >>> from diffusion_course import denoiser, process
    >>> p = process.vp_cosine()
    >>> D = denoiser.gaussian_mixture(p, [[0.5]], [0.1], [1.0]).denoise
    >>> x, sweeps = picard(p, D, jnp.array([[1.0]]), np.linspace(1, 0, 51), tolerance=1e-4)
    >>> print(f"{x[0, 0]:.2f}", bool(sweeps < 25))
    0.59 True
    """
    x_start = checks.state("x_start", x_start)
    times = checks.falling_times("times", times)
    n = len(times) - 1
    window = n if window is None else checks.integer("window", window, 1, n)
    tolerance = checks.number("tolerance", tolerance)
    checks.within("tolerance", tolerance, 0, np.inf, ends="[)")

    # DDIM's step: x_s = keep·x_t + gain·x0. To s = 0 it is (0, 1).
    times = jnp.asarray(times)
    alpha, sigma = p.alpha(times), p.sigma(times)
    keep = sigma[1:] / sigma[:-1]
    gain = alpha[1:] - alpha[:-1] * keep

    def sweep(carry):
        path, right, sweeps = carry
        # States up to `right` are; the last windows reach back, so as to keep their size.
        begin = jnp.minimum(right, n - window)
        cut = lambda a, length=window: jax.lax.dynamic_slice_in_dim(a, begin, length)  # noqa: E731
        old = cut(path, window + 1)
        x0 = jax.vmap(partial(denoise, D))(old[:-1], cut(times))

        def step(x, inputs):
            keep, gain, x0 = inputs
            x = keep * x + gain * x0
            return x, x

        last, new = jax.lax.scan(step, old[0], (cut(keep), cut(gain), x0))
        # The next state is right, and those after it as far as nothing has changed.
        change = jnp.sqrt(jnp.mean((new - old[1:]).reshape(*new.shape[:2], -1) ** 2, axis=2)).max(1)
        same = jnp.cumprod(change[:-1] <= tolerance).sum()
        # What lies beyond the window begins as the window ends.
        path = jnp.where(expand(jnp.arange(n + 1) > begin + window, path), last, path)
        path = jax.lax.dynamic_update_slice_in_dim(path, new, begin + 1, axis=0)
        return path, jnp.maximum(begin + 1 + same, right + 1), sweeps + 1

    path = jnp.broadcast_to(x_start, (n + 1, *x_start.shape))
    start = path, jnp.int32(0), jnp.int32(0)
    path, _, sweeps = jax.lax.while_loop(lambda carry: carry[1] < n, sweep, start)
    return path[-1], sweeps
