"""Training of two networks against each other: one step of each, in turn."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import optax
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
from diffusion_course.training import update
from diffusion_course.training.mesh import Layout, device_mesh
from diffusion_course.training.record import Result, Run


class Players(NamedTuple):
    """Something of each of the two players: a compiled step, or a `record.Result`.

    A step is ``step(state, (x, labels), key, other) -> state, loss``, where `other` holds the other
    player's parameters [P], which do not change; the old state is used up.
    """

    generator: Callable | Result
    discriminator: Callable | Result


def make_steps(
    generator: Generator, discriminator: Discriminator, game: Game, penalty: float,
    optimizer: optax.GradientTransformation, decay: float,
) -> Players:  # fmt: skip
    """Compiles one step of each player; arguments as of `fit`, and decay is its ema."""

    def judged(model, x, labels, key, *, teacher):
        fake = teacher(teacher.noise(key, len(x)), labels)
        return discriminator_loss(model, game, x, fake, labels, penalty)

    def forged(model, x, labels, key, *, teacher):
        return generator_loss(model, teacher, game, model.noise(key, len(x)), labels)

    def step_of(player, loss, other):
        graph, like = update.split(other)
        tree = jax.jit(ravel_pytree(like)[1])
        step = update.make_step(player, loss, optimizer, decay, teacher=graph)
        return lambda state, batch, key, vector: step(state, batch, key, tree(vector))

    return Players(
        step_of(generator, forged, discriminator), step_of(discriminator, judged, generator)
    )


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

    Returns: a `record.Result` for each; sample from ``generator.ema``.
    Raises:
      ValueError: a number is out of range, or the batches end early.
      record.TrainingDiverged: a loss, a gradient or an updated parameter was not finite.
    Source: Goodfellow et al. 2014, algorithm 1 (arXiv:1406.2661).
    """
    steps = checks.integer("steps", steps, 1)
    checks.integer("check_every", check_every, 1)
    game = non_saturating() if game is None else game
    optimizer = optax.flatten(optax.adam(1e-3, b1=0.0, b2=0.99)) if optimizer is None else optimizer
    take = make_steps(generator, discriminator, game, penalty, optimizer, ema)
    layout = Layout(device_mesh(devices=jax.devices()[:1]))
    g, d = (
        Run(model, update.create_state(model, optimizer), 0, layout)
        for model in (generator, discriminator)
    )
    key_g, key_d = jax.random.split(key)
    source = iter(batches)
    for n in range(1, steps + 1):
        batch = next(source, None)
        if batch is None:
            raise ValueError(f"batches must yield {steps}, ended after {n - 1}")
        d.advance(take.discriminator, batch, key_d, g.state.params)
        g.advance(take.generator, batch, key_g, d.state.params)
        if n % check_every == 0 or n == steps:
            d.check()
            g.check()
    return Players(g.result(), d.result())
