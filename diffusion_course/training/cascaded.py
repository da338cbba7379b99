"""What the recipe of a cascade's stage measures: small images that are true, and that are drawn."""

from collections.abc import Callable

import jax
import numpy as np
from flax import nnx

from diffusion_course import cascade, samplers, sampling, weights
from diffusion_course.data import Dataset
from diffusion_course.denoiser import denoiser
from diffusion_course.evaluation import metrics
from diffusion_course.models.classifier import AttributeClassifier
from diffusion_course.training.recipe import CascadeRecipe

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


def base_images(recipe: CascadeRecipe, count: int, key: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """Small images that the recipe's base draws, one class after the other.

    Args:
      recipe: of the stage, whose base, scales and sampling_steps are used.
      count: how many.
      key: a random key.

    Returns: images [count, h, w, C] and their labels [count].
    """
    base = weights.load(recipe.base)
    size, channels = base.card.recipe["options"]["size"], base.card.model["image_channels"]
    times, kind = sampling.uniform(recipe.sampling_steps), base.card.kind
    generate = sampling.generator(
        base.process, kind, samplers.ddim(base.process), times, (size, size, channels)
    )
    labels = (np.arange(count) % base.card.model["num_classes"]).astype(np.int32)
    parts = [labels[i : i + _CHUNK] for i in range(0, count, _CHUNK)]
    keys = jax.random.split(key, len(parts))
    drawn = [
        generate(base.model, k, len(part), part, recipe.scales[0])
        for k, part in zip(keys, parts, strict=True)
    ]
    return np.concatenate(drawn), labels


def features(expert: AttributeClassifier, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The judge's shapes [N] and features [N, F] of images [N, H, H, C], which are enlarged to it.

    Args:
      expert: whose first question is the shape.
      x: images of an n-th of its size.
    """
    factor = expert.image_shape[0] // x.shape[1]

    @jax.jit
    def each(expert, x):
        x = cascade.up(x, factor)
        return expert(x)[0].argmax(-1), expert.features(x)

    parts = [each(expert, x[i : i + _CHUNK]) for i in range(0, len(x), _CHUNK)]
    return tuple(np.concatenate([np.asarray(part[k]) for part in parts]) for k in (0, 1))


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
    expert, draw = weights.load(recipe.judge).model, enlarger(recipe, test.x.shape[1])
    # No more of the rest than this: the judge takes a millisecond for each of them.
    rest = metrics.moments(features(expert, test.x[n : n + 2000])[1])

    def row(x, labels, low):
        shapes, found = features(expert, x)
        return {
            "frechet": round(metrics.frechet(found, rest), 3),
            "shape": round(float((shapes == labels).mean()), 4),
            "kept": round(float(np.sqrt(((cascade.down(x, factor) - low) ** 2).mean())), 4),
        }

    lows = {
        "true": (np.asarray(cascade.down(test.x[:n], factor)), test.labels[:n]),
        "drawn": base_images(recipe, n, jax.random.key(1)),
    }
    rows = {"samples": n, "floor": row(test.x[:n], test.labels[:n], lows["true"][0])}
    for name, (low, labels) in lows.items():
        for s in recipe.levels:
            parts = range(0, n, _CHUNK)
            keys = jax.random.split(jax.random.key(2), len(parts))
            x = [
                draw(model, low[i : i + _CHUNK], labels[i : i + _CHUNK], s, k)
                for i, k in zip(parts, keys, strict=True)
            ]
            rows[f"{name}, s={s:g}"] = row(np.concatenate(x), labels, low)
    return rows
