"""Training of two networks against each other: one step of each, in turn."""

from collections.abc import Iterable
from typing import NamedTuple

import jax
import optax
from flax import nnx
from jax import Array
from jax.flatten_util import ravel_pytree

from diffusion_course import checks
from diffusion_course.models.adversarial import (
    Discriminator,
    Game,
    Generator,
    discriminator_loss,
    generator_loss,
    non_saturating,
)
from diffusion_course.training.record import Result, Run
from diffusion_course.training.update import create_state, make_step, split


class Players(NamedTuple):
    """What `fit` returns: a `record.Result` for each of the two; sample from ``generator.ema``."""

    generator: Result
    discriminator: Result


def fit(
    generator: Generator, discriminator: Discriminator, batches: Iterable[tuple], *, steps: int,
    key: Array, game: Game | None = None, penalty: float = 1.0,
    optimizer: optax.GradientTransformation | None = None, ema: float = 0.999,
    check_every: int = 20,
) -> Players:  # fmt: skip
    """Trains both, in turn: a step of the discriminator, then one of the generator.

    Neither loss says how good the samples are: each is measured against the other player.

    Args:
      generator: it is not changed.
      discriminator: it is not changed.
      batches: yields (x [B, …], labels [B]), one for each pair of steps.
      steps: of each player.
      key: a random key.
      game: by default `non_saturating`.
      penalty: γ of `discriminator_loss`.
      optimizer: of each player; by default Adam with the rate 1e-3 and without momentum (b1 = 0),
        which would push on in a direction that the other player has already answered.
      ema: decay of the weights' moving averages, in [0, 1), with warm-up. The players circle
        around each other, and the average lies nearer to the middle.
      check_every: steps between looks at the losses on the host.

    Raises:
      ValueError: a number is out of range, or the batches end early.
      record.TrainingDiverged: a loss, a gradient or an updated parameter was not finite.
    Source: Goodfellow et al. 2014, algorithm 1 (arXiv:1406.2661).
    """
    steps = checks.integer("steps", steps, 1)
    checks.integer("check_every", check_every, 1)
    game = non_saturating() if game is None else game
    optimizer = optax.flatten(optax.adam(1e-3, b1=0.0, b2=0.99)) if optimizer is None else optimizer

    def judged(model, x, labels, key, *, teacher):
        fake = teacher(teacher.noise(key, len(x)), labels)
        return discriminator_loss(model, game, x, fake, labels, penalty)

    def forged(model, x, labels, key, *, teacher):
        return generator_loss(model, teacher, game, model.noise(key, len(x)), labels)

    models = {"generator": generator, "discriminator": discriminator}
    device = jax.devices()[0]
    g, d = (Run(model, create_state(model, optimizer), 0, device) for model in models.values())
    options = {"optimizer": optimizer, "decay": ema}
    step_d = make_step(discriminator, judged, teacher=split(generator)[0], **options)
    step_g = make_step(generator, forged, teacher=split(discriminator)[0], **options)
    tree_g, tree_d = (_unflattened(name, model) for name, model in models.items())
    key_d, key_g = jax.random.split(key)
    source = iter(batches)
    for n in range(1, steps + 1):
        batch = next(source, None)
        if batch is None:
            raise ValueError(f"batches must yield {steps}, ended after {n - 1}")
        d.advance(step_d, batch, key_d, tree_g(g.state.params))
        g.advance(step_g, batch, key_g, tree_d(d.state.params))
        if n % check_every == 0 or n == steps:
            d.check()
            g.check()
    return Players(g.result(), d.result())


def _unflattened(name: str, model: nnx.Module):
    """``vector [P] -> tree of parameters``, compiled."""
    return jax.jit(ravel_pytree(split(model, name)[1])[1])
