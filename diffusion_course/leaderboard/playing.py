"""What a submission may use, besides its own code: guidance, and the library's samplers.

A submission defines

    def sample(denoise, noise, evaluations, seed): ...

and returns images in the coordinates of `noise`, float32 [N, D]. ``denoise(x, t)`` is a function of
arrays: the network is elsewhere. A library sampler is compiled as a whole and would only call it
with traced arrays, so `along` runs it step by step.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_course import checks, sampling
from diffusion_course.samplers import Sampler


def guided(denoise: Callable, w: float) -> Callable:
    """The denoiser ``D_u + w·(D_c − D_u)``; two evaluations a call, but for w = 1 and w = 0.

    Args:
      denoise: of the game.
      w: guidance scale.
    """
    w = checks.number("w", w)

    def D(x, t, images=None):
        if w == 1:
            return denoise(x, t, images)
        without = denoise(x, t, images, null=True)
        return without if w == 0 else without + w * (denoise(x, t, images) - without)

    return D


def along(sampler: Sampler, denoise: Callable, noise, times, seed: int) -> np.ndarray:
    """Runs a sampler of the library along a grid of times, as `sampling.sample` does.

    A sampler that asks once a step, with the state it has, runs compiled between its questions.
    Any other runs operation by operation, which takes seconds.

    Args:
      sampler: from `samplers`, `solvers` or `sde_samplers`. Make it once, outside `sample`: its
        compiled step is kept with it.
      denoise: of the game, or made from it.
      noise: state at times[0], [N, D].
      times: [n + 1], strictly falling within [1, 0].
      seed: of the sampler's random numbers.

    Returns: the last state, float32 [N, D].
    Raises: ValueError for times that do not fall.
    """
    times = np.asarray(checks.falling_times("times", times))
    x, key = jnp.asarray(noise, jnp.float32), jax.random.key(seed)
    step, state = _compiled(sampler), sampler.init(x)
    try:  # without an answer yet: what does it ask?
        asked_x, asked_t = step(x, times[0], times[1], key, state, jnp.zeros_like(x))[1]
    except (_AsksOtherwise, jax.errors.UnexpectedTracerError):
        return _operation_by_operation(sampler, denoise, noise, times, key)
    if not (np.array_equal(asked_x, x) and asked_t == times[0]):
        return _operation_by_operation(sampler, denoise, noise, times, key)
    for i, (t, s) in enumerate(itertools.pairwise(times)):
        x0 = jnp.asarray(denoise(np.asarray(x), float(t)), jnp.float32)
        (x, state), _ = step(x, t, s, jax.random.fold_in(key, i), state, x0)
    return np.asarray(x)


class _AsksOtherwise(Exception):
    """The sampler's questions are not one a step, of the state it has."""


@lru_cache(maxsize=64)
def _compiled(sampler: Sampler) -> Callable:
    """A step whose denoiser's answer is an argument; it returns what was asked, too."""

    @jax.jit
    def step(x, t, s, key, state, x0):
        asked = []

        def answer(x, t):
            asked.append((x, t))
            if len(asked) > 1:
                raise _AsksOtherwise
            return x0

        moved = sampler.step(answer, x, t, s, key, state)
        return moved, asked[0]

    return step


def _operation_by_operation(sampler, denoise, noise, times, key) -> np.ndarray:
    def D(x, t):
        with jax.disable_jit(False):  # the network itself stays compiled
            return jnp.asarray(denoise(np.asarray(x), float(t)), jnp.float32)

    with jax.disable_jit():
        return np.asarray(sampling.sample(sampler, D, jnp.asarray(noise), times, key)[0])
