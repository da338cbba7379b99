"""What the recipe of clips measures: whether a drawn shape moves as shapes do, and stays itself."""

from collections.abc import Callable

import jax
import numpy as np
from flax import nnx
from jax import Array

from diffusion_course import checks, rollouts, weights
from diffusion_course.data import Dataset, clips
from diffusion_course.training.recipe import ClipRecipe

_SLACK = 0.02  # of a speed, per frame: a sixth of a pixel where frames are 16 wide


def describe(x) -> dict[str, float]:
    """How far clips keep the rules of the data, as four numbers.

    Args:
      x: clips [n, F, size, size, 3] in [-1, 1] with F >= 3.

    Returns: medians over the clips of "motion error" (root mean square distance from the best path
      of constant speed; the image is 2 wide), "colour spread" (standard deviation over the frames,
      of the channel that has most) and "size spread" (standard deviation of the lit area over the
      frames, relative to its mean); and "speeds of the data", the share of clips whose best path is
      about as fast as those of the data.
    Raises: ValueError for another shape.
    """
    seen = clips.measure(x)
    fit = clips.motion(seen.position)
    speed = np.abs(fit.velocity)
    usual = (speed > clips.SLOWEST - _SLACK) & (speed < clips.FASTEST + _SLACK)
    found = {
        "motion error": np.median(fit.error),
        "colour spread": np.median(seen.colour.std(1).max(-1)),
        "size spread": np.median(seen.size.std(1) / seen.size.mean(1)),
        "speeds of the data": usual.all(-1).mean(),
    }
    return {name: round(float(value), 4) for name, value in found.items()}


def drawer(recipe: ClipRecipe, kind: str) -> Callable:
    """Compiles the drawing of clips along a schedule, with DDIM.

    In a pyramid each frame begins a quarter of the steps after the one before it.

    Args:
      recipe: its process, kind, sampling_steps and model's shape are used.
      kind: of `rollouts.schedule`.

    Returns: ``draw(model, key, count, frames)`` -> clips [count, frames, H, W, C].
    """
    checks.one_of("kind", kind, rollouts.KINDS)
    p, steps = weights.build_process(recipe.process), recipe.sampling_steps

    def draw(model, key, count, frames):
        start, key = jax.random.split(key)
        noise = jax.random.normal(start, (count, frames, *_frame(recipe)))
        times = rollouts.schedule(kind, frames, steps, delay=max(1, steps // 4))
        D = rollouts.denoiser(model, p, recipe.kind)
        return rollouts.sample(p, D, p.sigma(1.0) * noise, times, key)[0]

    return jax.jit(draw, static_argnames=("count", "frames"))


def roller(recipe: ClipRecipe, turns: int, new: int) -> Callable:
    """Compiles longer clips: `turns` windows of some context and `new` frames of one noise level.

    Args:
      recipe: its process, kind and sampling_steps are used.
      turns: how many windows.
      new: frames of each.

    Returns: ``roll(model, context, key, context_time)`` -> [B, turns·new, …], of clean frames
      [B, C, …]; see `rollouts.extend`.
    """
    p = weights.build_process(recipe.process)
    times = rollouts.schedule("full", new, recipe.sampling_steps)

    def roll(model, context, key, context_time):
        D = rollouts.denoiser(model, p, recipe.kind)
        return rollouts.extend(p, D, context, times, turns, key, context_time=context_time)

    return jax.jit(roll, static_argnames="context_time")


def drift(x, truth: clips.Clips, frames) -> dict[str, list[float]]:
    """How many clips still show their shape, and still have their colour, at some frames.

    Args:
      x: what was made from true frames, [n, F, size, size, 3].
      truth: the clips that the true frames are of.
      frames: numbers of frames of x.

    Returns: shares of the clips, one for each number: "kind" and "colour", as `clips.recognise`
      sees them.
    """
    x = np.asarray(x)[:, list(frames)]
    seen = dict(zip(("kind", "colour"), clips.recognise(x), strict=True))
    right = {name: (getattr(truth, name) == found.T).mean(1) for name, found in seen.items()}
    return {name: [round(float(share), 4) for share in each] for name, each in right.items()}


def frame_by_frame(recipe: ClipRecipe, model: nnx.Module, key: Array, count: int, frames: int):
    """Clips of frames that know nothing of each other, [count, frames, H, W, C]: a baseline.

    Args:
      recipe: that the model was trained by.
      model: with averaged weights.
      key: a random key.
      count: of clips.
      frames: of each.
    """
    alone = drawer(recipe, "full")(model, key, count * frames, 1)
    return np.asarray(alone).reshape(count, frames, *_frame(recipe))


def measure(recipe: ClipRecipe, model: nnx.Module, test: Dataset) -> dict:
    """How well drawn clips keep the rules of the data, along each schedule.

    Args:
      recipe: that the model was trained by.
      model: with averaged weights.
      test: unseen clips; as many as the recipe's samples at least.

    Returns: for "data" (unseen clips), "frame by frame" and each of `rollouts.KINDS`, what
      `describe` finds.
    """
    count, frames, key = recipe.samples, test.x.shape[1], jax.random.key(1)
    rows = {"samples": count, "data": describe(test.x[:count])}
    rows["frame by frame"] = describe(frame_by_frame(recipe, model, key, count, frames))
    for kind in rollouts.KINDS:
        rows[kind] = describe(drawer(recipe, kind)(model, key, count, frames))
    return rows


def _frame(recipe: ClipRecipe) -> tuple[int, int, int]:
    size = recipe.model["image_size"]
    sides = (size, size) if isinstance(size, int) else tuple(size)
    return (*sides, recipe.model["image_channels"])
