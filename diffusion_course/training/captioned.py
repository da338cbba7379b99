"""How the recipes of captions train and what they measure: whether a caption is obeyed."""

from collections.abc import Callable

import jax
import numpy as np
from flax import nnx

from diffusion_course import samplers, sampling, weights
from diffusion_course.data import Dataset, shapes
from diffusion_course.models.classifier import AttributeClassifier, attribute_loss
from diffusion_course.models.contrastive import info_nce
from diffusion_course.training.recipe_text import AttributesRecipe, ContrastiveRecipe, TextRecipe
from diffusion_course.training.update import Loss

_CHUNK = 500  # images that are drawn or judged in one call


def examples(recipe, dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """What a recipe trains on: images with their answers, or with their captions.

    Args:
      recipe: of a judge, or of a model of captions, which never sees a held-out combination.
      dataset: of shapes.
    """
    if isinstance(recipe, AttributesRecipe):
        return dataset.x, shapes.answers(dataset)
    seen = dataset.subset(~shapes.held_out(dataset, recipe.held_out))
    return seen.x, shapes.LANGUAGE(seen.attributes["caption"].tolist())


def attributes_objective(recipe: AttributesRecipe) -> Loss:
    """The loss of a classifier of attributes, on images that are noised a little.

    Args:
      recipe: its noise is used.

    Returns: ``loss(model, x, answers, key) -> scalar``, for `loop.fit`.
    """

    def loss(model, x, answers, key):
        noisy = x + recipe.noise * jax.random.normal(key, x.shape)
        return attribute_loss(model(noisy), answers)

    return loss


def contrastive_objective(recipe: ContrastiveRecipe) -> Loss:
    """The loss of a contrastive pair, on images that are noised a little.

    Args:
      recipe: its noise is used.

    Returns: ``loss(model, x, captions, key) -> scalar``, for `loop.fit`.
    """

    def loss(model, x, captions, key):
        noisy = x + recipe.noise * jax.random.normal(key, x.shape)
        return info_nce(model(noisy, captions), captions)

    return loss


def judged(expert: AttributeClassifier, x: np.ndarray) -> np.ndarray:
    """What a judge says of images [N, H, W, C]: places in `shapes.ATTRIBUTES`, [N, 4]."""
    each = jax.jit(lambda expert, x: expert.judge(x))
    parts = [each(expert, x[i : i + _CHUNK]) for i in range(0, len(x), _CHUNK)]
    return np.concatenate(parts)


def shares(right: np.ndarray) -> dict[str, float]:
    """How often each attribute is right, and all of them at once.

    Args:
      right: booleans [N, 4].

    >>> shares(np.array([[True, True, True, True], [True, False, True, True]]))
    {'shape': 1.0, 'colour': 0.5, 'size': 1.0, 'position': 1.0, 'all': 0.5}
    """
    found = dict(zip(shapes.ATTRIBUTES, right.mean(axis=0).tolist(), strict=True))
    return found | {"all": float(right.all(axis=1).mean())}


def painter(recipe: TextRecipe) -> Callable[[nnx.Module, np.ndarray, float], np.ndarray]:
    """Compiles the drawing of captions, with DDIM in as many steps as the recipe says.

    Args:
      recipe: of the model that draws.

    Returns: ``draw(model, captions, w) -> images``, of captions [N, L] and the guidance scale w. It
      draws the same noise at every call.
    """
    p, size = weights.build_process(recipe.process), recipe.options["size"]
    times = sampling.uniform(recipe.sampling_steps)
    generate = sampling.generator(p, recipe.kind, samplers.ddim(p), times, (size, size, 3))

    def draw(model, captions, w):
        parts = [captions[i : i + _CHUNK] for i in range(0, len(captions), _CHUNK)]
        keys = jax.random.split(jax.random.key(1), len(parts))
        drawn = [generate(model, k, len(c), c, w) for k, c in zip(keys, parts, strict=True)]
        return np.concatenate(drawn)

    return draw


def measure_judge(recipe: AttributesRecipe, model: AttributeClassifier, test: Dataset) -> dict:
    """How often a judge is right about unseen images.

    Args:
      recipe: its samples is used.
      model: the judge.
      test: unseen images, at least as many.
    """
    some = test.subset(np.arange(recipe.samples))
    return {"of": len(some)} | shares(judged(model, some.x) == shapes.answers(some))


def measure_text(recipe: TextRecipe, model: nnx.Module, test: Dataset) -> dict:
    """How often a model obeys the captions of unseen images, at each guidance scale.

    Args:
      recipe: that the model was trained by.
      model: a diffusion model with captions.
      test: unseen images, at least as many as the recipe's samples.

    Returns: "w=1" and so on -> the shares of samples with each attribute and with all of them, and
      the latter for combinations that were seen in training and for those that were held out.
    """
    some = test.subset(np.arange(recipe.samples))
    wanted, held = shapes.answers(some), shapes.held_out(some, recipe.held_out)
    captions = shapes.LANGUAGE(some.attributes["caption"].tolist())
    draw, expert = painter(recipe), weights.load(recipe.judge).model
    found = {}
    for w in recipe.scales:
        right = judged(expert, draw(model, captions, w)) == wanted
        about = {"w": w, "samples": len(some), "steps": recipe.sampling_steps}
        apart = {"seen": right[~held], "held_out": right[held]}
        found[f"w={w:g}"] = (
            about
            | shares(right)
            | {name: float(part.all(axis=1).mean()) for name, part in apart.items()}
            | {"held_out_samples": int(held.sum())}
        )
    return found


def measure_contrastive(
    recipe: ContrastiveRecipe, by: TextRecipe, model: nnx.Module, test: Dataset
) -> dict:
    """How well a pair finds captions, and what it says of a painter's samples beside the judge.

    Args:
      recipe: that the pair was trained by.
      by: the recipe of its painter, at whose scales and with whose samples it is measured.
      model: the pair.
      test: unseen images, at least as many as the painter's samples.

    Returns: the share of unseen images whose own caption scores highest among those of all of
      them; the mean score of these images; and at each scale the mean score of the samples, with
      the share in which the judge finds all attributes right.
    """
    some = test.subset(np.arange(by.samples))
    wanted, captions = shapes.answers(some), shapes.LANGUAGE(some.attributes["caption"].tolist())
    logits = np.asarray(jax.jit(lambda m, x, c: m(x, c))(model, some.x, captions))
    own = (captions[logits.argmax(axis=1)] == captions).all(axis=1)
    score = jax.jit(lambda m, x, c: m.score(x, c).mean())
    found = {
        "captions": len(some),
        "caption_found": float(own.mean()),
        "score_of_real_images": float(score(model, some.x, captions)),
    }
    draw, expert = painter(by), weights.load(by.judge).model
    artist = weights.load(recipe.painter).model
    for w in by.scales:
        x = draw(artist, captions, w)
        right = judged(expert, x) == wanted
        about = {"w": w, "samples": len(some), "steps": by.sampling_steps}
        scored = {"score": float(score(model, x, captions)), "all": shares(right)["all"]}
        found[f"w={w:g}"] = about | scored
    return found
