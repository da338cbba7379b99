"""How good is an autoencoder, and are its latents fit for diffusion?"""

from dataclasses import dataclass

import jax
import numpy as np
from flax import nnx
from jax import Array

from diffusion_course import latent
from diffusion_course.data import Dataset
from diffusion_course.evaluation import metrics
from diffusion_course.evaluation.quality import judge_all
from diffusion_course.models.vae import VAE

_RATED = 1000  # images whose rate is computed


@dataclass(frozen=True)
class Fidelity:
    """What is left of unseen images after an encoder and a decoder, and the scale in between.

    Attributes:
      distortion: mean squared error of a pixel value.
      rate: mean KL divergence of a code to N(0, 1), in nats per image; 0 of what is no VAE.
      accuracy: share of the decoded images that the judge recognises.
      accuracy_before: the same of the images themselves.
      frechet: distance of the decoded images to the training set, in the judge's features.
      frechet_floor: the same of the images themselves.
      of: how many images.
      latents: shift and scale of each channel, measured on `of` images of the training set, and
        the standard deviation of the unseen images' latents in each channel.
    """

    distortion: float
    rate: float
    accuracy: float
    accuracy_before: float
    frechet: float
    frechet_floor: float
    of: int
    latents: dict


def measure(model: nnx.Module, classifier: nnx.Module, train: Dataset, test: Dataset) -> Fidelity:
    """Measures an autoencoder on unseen images.

    Args:
      model: with ``latents(x)`` and ``decode(z)``.
      classifier: the judge, for images of this size.
      train: what the model was trained on; shift and scale are measured on it.
      test: unseen images of the same kind.

    Raises: ValueError for a channel of the latents that never changes.
    """
    space = latent.standardised(model, train.x)
    z = latent.encode_all(space, test.x)
    y = latent.decode_all(space, z)
    moments = metrics.moments(judge_all(classifier, train.x)[1])
    (before, real), (after, decoded) = (judge_all(classifier, images) for images in (test.x, y))
    return Fidelity(
        distortion=float(((y - test.x) ** 2).mean(dtype=np.float64)),
        rate=float(_rate(model, test.x[:_RATED]).mean()) if isinstance(model, VAE) else 0.0,
        accuracy=metrics.class_accuracy(after, test.labels),
        accuracy_before=metrics.class_accuracy(before, test.labels),
        frechet=metrics.frechet(decoded, moments),
        frechet_floor=metrics.frechet(real, moments),
        of=len(test),
        latents={
            "shift": np.asarray(space.shift).tolist(),
            "scale": np.asarray(space.scale).tolist(),
            "of": len(train),
            "held_out_std": z.std(axis=(0, 1, 2), dtype=np.float64).tolist(),
        },
    )


@jax.jit
def _rate(model: VAE, x: Array) -> Array:
    return model.encode(x).kl()
