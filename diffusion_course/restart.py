"""Restart sampling: go back up in noise, and come down again.

It is no `Sampler`: it owns the order in which the times are visited.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion_course import checks
from diffusion_course.denoiser import Denoiser
from diffusion_course.process import Process, transition
from diffusion_course.samplers import Sampler
from diffusion_course.sampling import sample


def restart(
    sampler: Sampler,
    p: Process,
    D: Denoiser,
    x_start: Array,
    times,
    again,
    repeats: int,
    key: Array,
) -> Array:
    """Runs a sampler down a grid of times, with one part of it taken several times more.

    Where the grid reaches again[-1], noise is added up to again[0] by the forward process, and the
    sampler comes down along `again`, `repeats` times. The noise contracts errors, as that of a
    stochastic sampler does, but all at once, so that the way down remains a smooth path. It keeps
    the exact marginals exact. Evaluations: those of `times`, and `repeats` times those of `again`.

    Args:
      sampler: a deterministic one gives the paper's method; its memory starts anew on each way.
      p: the process.
      D: the denoiser.
      x_start: state at times[0], float32 [B, …].
      times: [n + 1], strictly falling within [1, 0], known while tracing.
      again: [m + 1], strictly falling, from the noisier end of the part to the cleaner one, which
        is one of times.
      repeats: how often, at least 0.
      key: a random key.

    Returns: the last state [B, …].
    Raises: ValueError if times or again do not fall, or again[-1] is none of times or is 0.
    Source: Xu et al. 2023, algorithm 1 and section 3.1 (arXiv:2306.14878), with one interval.
    """
    x_start = checks.state("x_start", x_start)
    times, again = checks.falling_times("times", times), checks.falling_times("again", again)
    repeats = checks.integer("repeats", repeats, 0)
    checks.random_key("key", key)
    if not checks.concrete(times, again):
        raise ValueError("times and again must be known while tracing, got traced arrays")
    if again[-1] not in times[1:] or again[-1] == 0:
        raise ValueError(f"again must end at one of times between its ends, got {again[-1]}")
    low = int(np.flatnonzero(times == again[-1])[0])
    down, repeat, rest = jax.random.split(key, 3)
    scale, variance = transition(p, again[0], again[-1])

    def once_more(i, x):
        up, back = jax.random.split(jax.random.fold_in(repeat, i))
        x = scale * x + jnp.sqrt(variance) * jax.random.normal(up, x.shape, x.dtype)
        return sample(sampler, D, x, again, back)[0]

    x = sample(sampler, D, x_start, times[: low + 1], down)[0]
    x = jax.lax.fori_loop(0, repeats, once_more, x)
    return x if low == len(times) - 1 else sample(sampler, D, x, times[low:], rest)[0]
