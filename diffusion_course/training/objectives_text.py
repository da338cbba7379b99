"""The losses of the recipes of captions, each as `loop.fit` takes it, and what they train on."""

import jax
import numpy as np

from diffusion_course import losses, weights
from diffusion_course.data import Dataset, shapes
from diffusion_course.models import control, lora
from diffusion_course.models.classifier import attribute_loss
from diffusion_course.models.contrastive import info_nce
from diffusion_course.training.recipe_text import (
    AdapterRecipe,
    AttributesRecipe,
    CaptionRecipe,
    ContrastiveRecipe,
    ControlRecipe,
)
from diffusion_course.training.update import Loss


def examples(recipe: CaptionRecipe, dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """What a recipe trains on: images with their answers, or with their captions.

    The few images of an adapter are repeated until they are as many as those of the six shapes that
    are kept beside them: without these a model forgets what it knew.

    Args:
      recipe: one with `held_out` never sees these combinations.
      dataset: of shapes; of an adapter the new ones.

    Source: Ruiz et al. 2022, section 3.3 (arXiv:2208.12242), prior preservation.
    """
    if isinstance(recipe, AttributesRecipe):
        return dataset.x, shapes.answers(dataset)
    if not isinstance(recipe, AdapterRecipe):
        return _with_captions(_seen(dataset, recipe.held_out))
    x, captions = _with_captions(dataset)
    if not recipe.kept:
        return x, captions
    # A ninth of the combinations is held out: of twice as many, enough are left.
    old = _seen(shapes.load("train", n=2 * recipe.kept, size=x.shape[1]), shapes.HELD_OUT)
    others = _with_captions(old.subset(np.arange(recipe.kept)))
    times = max(1, recipe.kept // len(x))
    return tuple(
        np.concatenate([np.repeat(new, times, axis=0), other])
        for new, other in zip((x, captions), others, strict=True)
    )


def _seen(dataset: Dataset, every: int) -> Dataset:
    return dataset.subset(~shapes.held_out(dataset, every))


def _with_captions(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    return dataset.x, shapes.LANGUAGE(dataset.attributes["caption"].tolist())


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


def control_objective(recipe: ControlRecipe) -> Loss:
    """The loss of a ControlNet, which sees a map of the image that is noised, such as its edges.

    Args:
      recipe: its map, process, kind and label_dropout are used.

    Returns: ``loss(model, x, captions, key, *, teacher) -> scalar``, for `loop.fit` with the base
      as the teacher.
    """
    p, seen = weights.build_process(recipe.process), control.MAPS[recipe.map]

    def loss(model, x, captions, key, *, teacher):
        key_drop, key_loss = jax.random.split(key)
        null = teacher.null_label
        captions = losses.drop_labels(key_drop, captions, null, recipe.label_dropout)
        steered = model.steer(teacher, seen(x))
        return losses.diffusion_loss(steered, p, recipe.kind, x, captions, key_loss)

    return loss


def adapter_objective(recipe: AdapterRecipe) -> Loss:
    """The loss of an adapter; no caption is dropped, so that the null caption stays what it is.

    Args:
      recipe: its process and kind are used.

    Returns: ``loss(model, x, captions, key, *, teacher) -> scalar``, for `loop.fit` with the base
      as the teacher.
    """
    p = weights.build_process(recipe.process)

    def loss(model, x, captions, key, *, teacher):
        return losses.diffusion_loss(lora.apply(teacher, model), p, recipe.kind, x, captions, key)

    return loss
