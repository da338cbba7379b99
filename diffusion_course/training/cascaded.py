"""What the recipe of a cascade's stage measures: small images that are true, and that are drawn."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import jax
import numpy as np
from flax import nnx

from diffusion_course import cascade, samplers, sampling, weights
from diffusion_course.data import Dataset
from diffusion_course.denoiser import denoiser
from diffusion_course.evaluation import metrics
from diffusion_course.models.classifier import AttributeClassifier
from diffusion_course.training import captioned
from diffusion_course.training.recipe import CascadeRecipe
from diffusion_course.training.released import RECIPES

_CHUNK = 250  # images that are drawn or judged in one call


def enlarger(recipe: CascadeRecipe, size: int) -> Callable:
    """Compiles one stage, with DDIM in as many steps as the recipe says.

    Args:
      recipe: of the stage.
      size: height and width of the large images.

    Returns: ``draw(model, low, labels, s, key)`` -> large images [B, size, size, C], of small ones
      [B, …] without noise, labels [B] and one level s.
    """
    p, times = weights.build_process(recipe.process), sampling.uniform(recipe.sampling_steps)
    shape = (size, size, recipe.model["image_channels"])

    @jax.jit
    def draw(model, low, labels, s, key):
        def given(noisy, levels):
            return denoiser(model.given(noisy, levels), p, recipe.kind, labels)

        stage = cascade.Stage(given, shape, s)
        return cascade.enlarge(p, stage, low, samplers.ddim(p), times, key)

    return draw


def stages_before(
    recipe: CascadeRecipe, count: int, key: jax.Array
) -> tuple[list[np.ndarray], np.ndarray]:
    """What the stages before this one draw, one class after the other.

    A base that is a stage itself enlarges what its own base draws, without noise on it.

    Args:
      recipe: of the stage, whose base, scales and sampling_steps are used, the last two by all
        models before it.
      count: how many.
      key: a random key.

    Returns: images of every model before the stage, small ones first, each [count, h, w, C], and
      their labels [count].
    """
    base = weights.load(recipe.base)
    size, channels = base.card.recipe["options"]["size"], base.card.model["image_channels"]
    labels = (np.arange(count) % base.card.model["num_classes"]).astype(np.int32)
    if "base" in base.card.recipe:
        key, key_before = jax.random.split(key)
        inner = replace(
            RECIPES[recipe.base], scales=recipe.scales, sampling_steps=recipe.sampling_steps
        )
        before, _ = stages_before(inner, count, key_before)
        return [*before, enlarged(inner, base.model, before[-1], labels, 0.0, key)], labels
    times, kind = sampling.uniform(recipe.sampling_steps), base.card.kind
    generate = sampling.generator(
        base.process, kind, samplers.ddim(base.process), times, (size, size, channels)
    )
    parts = [labels[i : i + _CHUNK] for i in range(0, count, _CHUNK)]
    keys = jax.random.split(key, len(parts))
    drawn = [
        generate(base.model, k, len(part), part, recipe.scales[0])
        for k, part in zip(keys, parts, strict=True)
    ]
    return [np.concatenate(drawn)], labels


def base_images(recipe: CascadeRecipe, count: int, key: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """The last images of `stages_before`, which the recipe's stage enlarges, and their labels."""
    images, labels = stages_before(recipe, count, key)
    return images[-1], labels


def enlarged(
    recipe: CascadeRecipe, model: nnx.Module, low: np.ndarray, labels: np.ndarray, s: float,
    key: jax.Array, draw: Callable | None = None,
) -> np.ndarray:  # fmt: skip
    """What a stage makes of many small images, some at a time.

    Args:
      recipe: of the stage.
      model: its network.
      low: small images [N, h, w, C] without noise.
      labels: theirs, [N].
      s: level of the noise on the small images.
      key: a random key.
      draw: from `enlarger`, where it is compiled already.

    Returns: large images [N, H, W, C].
    """
    draw = draw or enlarger(recipe, low.shape[1] * recipe.model["factor"])
    parts = range(0, len(low), _CHUNK)
    keys = jax.random.split(key, len(parts))
    x = [
        draw(model, low[i : i + _CHUNK], labels[i : i + _CHUNK], s, k)
        for i, k in zip(parts, keys, strict=True)
    ]
    return np.concatenate(x)


def features(expert: AttributeClassifier, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The judge's shapes [N] and features [N, F] of images [N, H, H, C], which are enlarged to it.

    Args:
      expert: whose first question is the shape.
      x: images of an n-th of its size.
    """
    factor = expert.image_shape[0] // x.shape[1]
    parts = [_looked_at(expert, x[i : i + _CHUNK], factor) for i in range(0, len(x), _CHUNK)]
    return tuple(np.concatenate([np.asarray(part[k]) for part in parts]) for k in (0, 1))


@partial(jax.jit, static_argnums=2)  # compiled once for all calls of `features`
def _looked_at(expert, x, factor):
    x = cascade.up(x, factor)
    return expert(x)[0].argmax(-1), expert.features(x)


def measure(recipe: CascadeRecipe, model: nnx.Module, test: Dataset) -> dict:
    """How good the large images are, made of true small ones and of those that the base draws.

    Args:
      recipe: that the model was trained by.
      model: with averaged weights.
      test: unseen images; twice the recipe's samples at least.

    Returns: for "floor" (unseen images as they are) and, of "true" and "drawn" small images, at
      every level: the Fréchet distance to the other unseen images in the judge's features, the
      share whose shape the judge finds to be their label's, and the root mean square difference
      between the small image and the average of what was made from it.
    """
    n, factor = recipe.samples, recipe.model["factor"]
    draw, row = enlarger(recipe, test.x.shape[1]), _judge_of(recipe, test)
    lows = {
        "true": (np.asarray(cascade.down(test.x[:n], factor)), test.labels[:n]),
        "drawn": base_images(recipe, n, jax.random.key(1)),
    }
    rows = {"samples": n, "floor": row(test.x[:n], test.labels[:n], lows["true"][0])}
    for name, (low, labels) in lows.items():
        for s in recipe.levels:
            x = enlarged(recipe, model, low, labels, s, jax.random.key(2), draw)
            rows[f"{name}, s={s:g}"] = row(x, labels, low)
    return rows


def _judge_of(recipe: CascadeRecipe, test: Dataset) -> Callable:
    """The row of `measure` for large images, labels and small images."""
    factor, expert = recipe.model["factor"], weights.load(recipe.judge).model
    # No more of the rest than this: the judge takes a millisecond for each of them.
    rest = metrics.moments(features(expert, test.x[recipe.samples :][:2000])[1])

    def row(x, labels, low):
        shapes, found = features(expert, x)
        return {
            "frechet": round(metrics.frechet(found, rest), 3),
            "shape": round(float((shapes == labels).mean()), 4),
            "kept": round(float(np.sqrt(((cascade.down(x, factor) - low) ** 2).mean())), 4),
        }

    return row


def measure_stack(
    recipe: CascadeRecipe, model: nnx.Module, test: Dataset, key: jax.Array
) -> dict[str, dict]:
    """A whole cascade, without noise on any condition, beside what costs nothing.

    Args:
      recipe: of the last stage.
      model: its network.
      test: as in `measure`.
      key: a random key, of the drawing.

    Returns: the rows of `measure` for "floor" and, of "true" and "drawn" small images, for the
      stage and for an "enlargement" (linear between pixels); and in "true agree" and "drawn agree",
      for every size but the last, how often the judge's four answers about the images of this size
      are those about the large images. Of the true ones the large images are true as well.
    """
    n, size = recipe.samples, test.x.shape[1]
    row, expert = _judge_of(recipe, test), weights.load(recipe.judge).model
    key_before, key_true, key_drawn = jax.random.split(key, 3)
    images, labels = stages_before(recipe, n, key_before)
    sizes = [x.shape[1] for x in images]
    true = [np.asarray(cascade.down(test.x[:n], size // low)) for low in sizes]
    draw = enlarger(recipe, size)
    from_true = enlarged(recipe, model, true[-1], test.labels[:n], 0.0, key_true, draw)
    drawn = enlarged(recipe, model, images[-1], labels, 0.0, key_drawn, draw)

    def linear(low):
        return np.asarray(jax.image.resize(low, (n, size, size, low.shape[-1]), "linear"))

    def agree(smaller, large):
        answers = captioned.judged(expert, large)
        seen = {low.shape[1]: cascade.up(low, size // low.shape[1]) for low in smaller}
        return {
            f"{side} and {size}": captioned.shares(captioned.judged(expert, x) == answers)
            for side, x in seen.items()
        }

    return {
        "floor": row(test.x[:n], test.labels[:n], true[-1]),
        "true": row(from_true, test.labels[:n], true[-1]),
        "true, enlargement": row(linear(true[-1]), test.labels[:n], true[-1]),
        "drawn": row(drawn, labels, images[-1]),
        "drawn, enlargement": row(linear(images[-1]), labels, images[-1]),
        "true agree": agree(true, test.x[:n]),
        "drawn agree": agree(images, drawn),
    }
