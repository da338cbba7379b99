"""How good is a model of points whose distribution is known? Its samples, and its denoiser."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from diffusion_course import checks, denoiser, samplers, sampling
from diffusion_course.data import Dataset
from diffusion_course.evaluation import metrics
from diffusion_course.process import Process, add_noise

TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)  # at which the denoisers are compared


def measure(
    model: nnx.Module, p: Process, kind: str, mixture: tuple, train: Dataset, test: Dataset,
    *, scales: Sequence[float], samples: int, steps: int,
) -> dict:  # fmt: skip
    """Samples against fresh points, and the denoiser against the exact one.

    Args:
      model: class-conditional, with a null class.
      p: the process that it was trained with.
      kind: what it predicts.
      mixture: means [K, D], stds [K] and weights [K] of the distribution.
      train: points [N, D] that the model was trained on.
      test: unseen points of the same distribution.
      scales: guidance scales w.
      samples: per scale, at least 2; at most as many as there are unseen points.
      steps: of DDIM.

    Returns: the Fréchet distance of unseen points to `train` (its floor) and of the samples at
      each w, and the mean squared distance of the denoiser to the exact one at five times.
    Raises: ValueError for a value outside its range.
    """
    checks.integer("samples", samples, minimum=2)
    generate = sampling.generator(
        p, kind, samplers.ddim(p), sampling.uniform(steps), train.x.shape[1:]
    )
    n = min(samples, len(test))
    found = {"samples": n, "frechet_floor": metrics.frechet(test.x[:n], train.x)}
    for w in scales:
        x = generate(model, jax.random.key(1), n, test.labels[:n], w)
        found[f"w={w:g}"] = {"frechet": metrics.frechet(x, train.x)}
    oracle, D = denoiser.gaussian_mixture(p, *mixture), denoiser.denoiser(model, p, kind)
    eps = jax.random.normal(jax.random.key(2), test.x[:n].shape)
    for t in TIMES:
        x_t = add_noise(p, test.x[:n], eps, t)
        error = jnp.mean((D(x_t, t) - oracle.denoise(x_t, t)) ** 2)
        found[f"squared distance to the exact denoiser, t={t}"] = float(error)
    return found
