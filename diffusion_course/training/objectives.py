"""The losses of the recipes, each as `loop.fit` takes it."""

import jax
import jax.numpy as jnp
import optax

from diffusion_course import cascade, distillation, flow_map, latent, losses, rollouts, weights
from diffusion_course.denoiser import denoiser
from diffusion_course.guidance import classifier_free_batched
from diffusion_course.training import update
from diffusion_course.training.recipe import (
    AutoencoderRecipe,
    CascadeRecipe,
    ClassifierRecipe,
    ClipRecipe,
    ConsistencyRecipe,
    DiffusionRecipe,
    LatentConsistencyRecipe,
    MeanFlowRecipe,
)


def diffusion_objective(recipe: DiffusionRecipe) -> update.Loss:
    """The loss of a class-conditional diffusion model, with label dropout.

    Args:
      recipe: its process, kind and label_dropout are used.

    Returns: ``loss(model, x, labels, key) -> scalar``, for `loop.fit`.
    Source: Ho & Salimans 2022, algorithm 1 (arXiv:2207.12598).
    """
    p, null = weights.build_process(recipe.process), recipe.model["num_classes"]

    def loss(model, x, labels, key):
        key_drop, key_loss = jax.random.split(key)
        labels = losses.drop_labels(key_drop, labels, null, recipe.label_dropout)
        return losses.diffusion_loss(model, p, recipe.kind, x, labels, key_loss)

    return loss


def cascade_objective(recipe: CascadeRecipe) -> update.Loss:
    """The loss of a stage of a cascade: what it is told is its own image, averaged and noised.

    Args:
      recipe: its process, kind, factor, highest and label_dropout are used.

    Returns: ``loss(model, x, labels, key) -> scalar``, for `loop.fit`; x are the large images.
    Source: Ho et al. 2022, section 3 (arXiv:2106.15282).
    """
    p, null = weights.build_process(recipe.process), recipe.model["num_classes"]

    def loss(model, x, labels, key):
        key_drop, key_level, key_low, key_loss = jax.random.split(key, 4)
        labels = losses.drop_labels(key_drop, labels, null, recipe.label_dropout)
        s = jax.random.uniform(key_level, (len(x),), maxval=recipe.highest)
        low = cascade.down(x, recipe.model["factor"])
        low = cascade.augment(p, low, jax.random.normal(key_low, low.shape), s)
        return losses.diffusion_loss(model.given(low, s), p, recipe.kind, x, labels, key_loss)

    return loss


def clip_objective(recipe: ClipRecipe) -> update.Loss:
    """The loss of a model of clips; some clips of a batch are cut into single frames.

    So the network learns to draw a frame that has no others beside it. A clip and a clip's worth of
    images have the same weight.

    Args:
      recipe: its process, kind and images are used.

    Returns: ``loss(model, x, labels, key) -> scalar``, for `loop.fit`; x are clips [B, F, …].
    Source: images and clips in one training: Ho et al. 2022, section 3 (arXiv:2204.03458).
    """
    p = weights.build_process(recipe.process)

    def of(model, x, key):
        return rollouts.clip_loss(model, p, recipe.kind, x, None, key)

    def loss(model, x, labels, key):
        if not recipe.images:
            return of(model, x, key)
        key_clips, key_images = jax.random.split(key)
        share = recipe.images / len(x)
        images = rollouts.as_batch(x[: recipe.images])[:, None]
        whole = of(model, x[recipe.images :], key_clips)
        return (1 - share) * whole + share * of(model, images, key_images)

    return loss


def consistency_objective(recipe: ConsistencyRecipe) -> update.Loss:
    """The loss of a consistency distillation, for `loop.fit` with a teacher and averaged weights.

    Args:
      recipe: its process, kind, guidance, grid and huber are used.

    Returns: ``loss(model, x, labels, key, *, teacher, averaged) -> scalar``.
    """
    p, kind = weights.build_process(recipe.process), recipe.kind
    distance = flow_map.pseudo_huber(recipe.huber)

    def jump(model, labels):
        return flow_map.of_denoiser(denoiser(model, p, kind, labels))

    def loss(model, x, labels, key, *, teacher, averaged):
        null = jnp.full_like(labels, recipe.model["num_classes"])
        guided = classifier_free_batched(teacher, p, kind, labels, null, recipe.guidance)
        return flow_map.consistency_loss(
            jump(model, labels), jump(averaged, labels), p, kind, x, key,
            steps=recipe.grid, teacher=guided, distance=distance,
        )  # fmt: skip

    return loss


def latent_consistency_objective(recipe: LatentConsistencyRecipe) -> update.Loss:
    """The loss of a latent consistency model, for `loop.fit` with a teacher and averaged weights.

    Args:
      recipe: its process, kind, grid, skip, least, most and huber are used.

    Returns: ``loss(model, x, labels, key, *, teacher, averaged) -> scalar``; x are latents.
    """
    p, null = weights.build_process(recipe.process), recipe.model["num_classes"]
    settings = {"steps": recipe.grid, "skip": recipe.skip, "least": recipe.least}
    settings |= {"most": recipe.most, "distance": flow_map.pseudo_huber(recipe.huber)}

    def loss(model, x, labels, key, *, teacher, averaged):
        return distillation.scaled_consistency_loss(
            model, averaged, teacher, p, recipe.kind, x, labels, null, key, **settings
        )

    return loss


def mean_flow_objective(recipe: MeanFlowRecipe) -> update.Loss:
    """The loss of a mean velocity, with label dropout.

    Args:
      recipe: its guidance and label_dropout are used.

    Returns: ``loss(model, x, labels, key) -> scalar``, for `loop.fit`.
    """
    times = flow_map.mean_flow_times()

    def loss(model, x, labels, key):
        key_drop, key_loss = jax.random.split(key)
        null = recipe.model["num_classes"]
        labels = losses.drop_labels(key_drop, labels, null, recipe.label_dropout)
        return flow_map.mean_velocity_loss(
            model, x, labels, key_loss, times=times, guidance=recipe.guidance
        )

    return loss


def autoencoder_objective(recipe: AutoencoderRecipe) -> update.Loss:
    """The loss of an autoencoder, for `loop.fit` with its judge as the teacher.

    Args:
      recipe: its beta and features are used.

    Returns: ``loss(model, x, labels, key, *, teacher) -> scalar``.
    """

    def loss(model, x, labels, key, *, teacher):
        weighed = {"beta": recipe.beta, "features": recipe.features, "classifier": teacher}
        return latent.autoencoder_loss(model, x, key, **weighed)[0]

    return loss


def classifier_objective(recipe: ClassifierRecipe) -> update.Loss:
    """Cross-entropy with label smoothing, on images that are shifted and noised a little.

    Args:
      recipe: its shift, noise and smoothing are used.

    Returns: ``loss(model, x, labels, key) -> scalar``, for `loop.fit`; x in [-1, 1].
    """
    classes, most = recipe.model["num_classes"], recipe.shift

    def moved(image, shift):
        """The image [H, W, C] with its corner moved by shift [2]; −1 comes in at the sides."""
        padded = jnp.pad(image, ((most, most), (most, most), (0, 0)), constant_values=-1)
        start = (shift[0] + most, shift[1] + most, 0)
        return jax.lax.dynamic_slice(padded, start, image.shape)

    def loss(model, x, labels, key):
        key_shift, key_noise = jax.random.split(key)
        shifts = jax.random.randint(key_shift, (x.shape[0], 2), -most, most + 1)
        x = jax.vmap(moved)(x, shifts)
        x = x + recipe.noise * jax.random.normal(key_noise, x.shape)
        targets = optax.smooth_labels(jax.nn.one_hot(labels, classes), recipe.smoothing)
        return optax.softmax_cross_entropy(model(x), targets).mean()

    return loss
