"""The generative models that `which_model.py` compares: how each is trained, drawn from and read.

Every contender is trained on the same batches of the 8×8 digits, by steps whose learning rate is
an argument: one compiled step serves all rates and seeds.
"""

import resource
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from diffusion_course import (
    bound,
    data,
    denoiser,
    flow_map,
    guidance,
    latent,
    likelihood,
    losses,
    process,
    samplers,
    sampling,
)
from diffusion_course.models import adversarial as players
from diffusion_course.models import autoregressive, quantize
from diffusion_course.models.coupling import CouplingFlow
from diffusion_course.models.quantize import VQVAE
from diffusion_course.models.unet import UNet
from diffusion_course.models.vae import ConditionalVAE
from diffusion_course.training import adversarial, update

BATCH, LEVELS, SIZE, CLASSES = 64, 17, 8, 10
RATES = (1e-3, 3e-3, 1e-2)
# For two models the best of the usual three was the last one.
HIGHER = (3e-3, 1e-2, 3e-2)
EMA = 0.999
p = process.vp_cosine()


class Contender(NamedTuple):
    """A way to make digits.

    Attributes:
      train: ``train(rate, seed, budget) -> models, record``: the budget is in processor seconds.
      draws: the ways to draw from it: name -> ``draw(models, labels, key) -> images``.
      bits: ``bits(models, x, labels, key) -> [B]`` in bits per dimension, or None.
      rates: the learning rates that are tried.
      likelihood: what the bits are.
      told: what it can be told, and how, without being trained again.
    """

    train: Callable
    draws: dict[str, Callable]
    bits: Callable | None
    rates: tuple[float, ...]
    likelihood: str
    told: str


def processor_seconds() -> float:
    """User and system time of this process, of all its threads."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def parameters(*models) -> int:
    return sum(leaf.size for m in models for leaf in jax.tree.leaves(nnx.state(m, nnx.Param)))


# --------------------------------------------------------------------------------------------
# Steps and budgets
# --------------------------------------------------------------------------------------------


class Trainee(NamedTuple):
    """A compiled step, the state before it, and the processor seconds that one step takes.

    Attributes:
      start: ``start(seed) -> state``.
      step: ``step(state, rate, batch, key) -> state, loss``; the old state is used up.
      seconds: of a step.
    """

    start: Callable
    step: Callable
    seconds: float


def optimizer(b1: float = 0.9, b2: float = 0.999) -> optax.GradientTransformation:
    """Adam behind clipping, with a learning rate that `with_rate` sets."""
    adam = optax.inject_hyperparams(optax.adam, static_args=("b1", "b2"))
    return optax.flatten(
        optax.chain(optax.clip_by_global_norm(1.0), adam(learning_rate=0.0, b1=b1, b2=b2))
    )


def with_rate(state: update.TrainState, rate: float) -> update.TrainState:
    clip, adam = state.opt_state
    rates = adam.hyperparams | {"learning_rate": jnp.float32(rate)}
    return state._replace(opt_state=(clip, adam._replace(hyperparams=rates)))


def cosine(rate: float, steps: int) -> Iterator[float]:
    """Linear warm-up over a tenth of the steps, then down to 0, as `update.adam`."""
    warmup = max(1, min(200, steps // 10))
    for n in range(steps):
        rise = min(1.0, (n + 1) / warmup)
        yield rate * rise * (1 + np.cos(np.pi * max(0, n - warmup) / max(1, steps - warmup))) / 2


def constant(rate: float, steps: int) -> Iterator[float]:
    return iter([rate] * steps)


def rehearsed(start, step, batches) -> Trainee:
    """Compiles the step, and takes the least time of a few short runs: others use the machine."""
    state, least = start(0), np.inf
    state, loss = step(state, 1e-4, next(batches), jax.random.key(0))
    jax.block_until_ready(loss)
    for _ in range(4):
        begin = processor_seconds()
        for _ in range(8):
            state, loss = step(state, 1e-4, next(batches), jax.random.key(0))
        jax.block_until_ready(loss)
        least = min(least, (processor_seconds() - begin) / 8)
    return Trainee(start, step, least)


def run(trainee: Trainee, rates: Iterator[float], batches, seed: int):
    """All steps, and what they took."""
    state, loss, key = trainee.start(seed), None, jax.random.key(seed)
    begin, wall = processor_seconds(), time.perf_counter()
    steps = 0
    for steps, rate in enumerate(rates, 1):
        state, loss = trainee.step(state, rate, next(batches), key)
        if steps % 20 == 0:  # no queue of steps that still wait
            jax.block_until_ready(loss)
    jax.block_until_ready(loss)
    return state, {
        "steps": steps,
        "processor seconds": round(processor_seconds() - begin, 1),
        "seconds": round(time.perf_counter() - wall, 1),
        "last loss": float(loss),
    }


def digits(seed: int) -> Iterator:
    return data.batches(data.load("digits"), size=BATCH, seed=seed)


def trainee_of(make: Callable, loss: Callable, batches: Iterator, **options) -> Trainee:
    """One network, trained with one loss; ``make(rngs)`` builds it."""
    step = update.make_step(make(nnx.Rngs(0)), loss, optimizer(), EMA, **options)

    def start(seed):
        return update.create_state(make(nnx.Rngs(seed)), optimizer())

    def at_rate(state, rate, batch, key):
        return step(with_rate(state, rate), batch, key)

    return rehearsed(start, at_rate, batches)


def averaged(model: nnx.Module, state: update.TrainState) -> nnx.Module:
    return update.merge(model, state.ema)


def single(make: Callable, loss: Callable) -> Callable:
    """``train`` of a contender that is one network."""
    prepared = cache(lambda: trainee_of(make, loss, digits(0)))

    def train(rate, seed, budget):
        trainee = prepared()
        steps = max(1, round(budget / trainee.seconds))
        state, record = run(trainee, cosine(rate, steps), digits(seed), seed)
        model = averaged(make(nnx.Rngs(0)), state)
        return model, record | {"parameters": parameters(model), "failed": bool(state.failed)}

    return train


def per_pixel(nats: jax.Array) -> jax.Array:
    """Nats of a discrete image in bits per pixel."""
    return -nats / (SIZE**2 * np.log(2))


# --------------------------------------------------------------------------------------------
# One contender after the other
# --------------------------------------------------------------------------------------------


def gan() -> Contender:
    """Generator and discriminator; sampled with the generator's averaged weights."""
    kinds, game = {"num_classes": CLASSES}, players.non_saturating()
    make_g = lambda seed: players.Generator(SIZE, **kinds, rngs=nnx.Rngs(seed))  # noqa: E731
    make_d = lambda seed: players.Discriminator(SIZE, **kinds, rngs=nnx.Rngs(100 + seed))  # noqa: E731
    adam = optimizer(b1=0.0, b2=0.99)

    def start(seed):
        return tuple(update.create_state(make(seed), adam) for make in (make_g, make_d))

    @cache
    def prepared():
        take = adversarial.make_steps(make_g(0), make_d(0), game, 1.0, adam, EMA)

        def step(state, rate, batch, key):
            (g, d), (key_g, key_d) = state, jax.random.split(key)
            d, _ = take.discriminator(with_rate(d, rate), batch, key_d, g.params)
            g, loss = take.generator(with_rate(g, rate), batch, key_g, d.params)
            return (g, d), loss

        return rehearsed(start, step, digits(0))

    def train(rate, seed, budget):
        trainee = prepared()
        steps = max(1, round(budget / trainee.seconds))
        (g, d), record = run(trainee, constant(rate, steps), digits(seed), seed)
        model = averaged(make_g(0), g)
        count = parameters(model, make_d(0))
        return model, record | {"parameters": count, "failed": bool(g.failed | d.failed)}

    def draw(model, labels, key):
        return model(model.noise(key, len(labels)), labels)

    return Contender(
        train, {"GAN": draw}, None, (3e-4, 1e-3, 3e-3), "none: it has no density",
        "labels; anything else by a search for the noise",
    )  # fmt: skip


def vae() -> Contender:
    """A Gaussian of the pixel values, cut into the bins of the grey levels, decodes the latents."""

    def log_p_given(model, x, z, labels):
        mean, log_variance = model.decode(z, labels), model.log_variance[...]
        each = bound.discretized_log_likelihood(x, mean, log_variance, LEVELS)
        return each.reshape(len(x), -1).sum(axis=1)

    def elbo(model, x, labels, key):
        code = model.encode(x, labels)
        return log_p_given(model, x, code.sample(key), labels) - code.kl()

    def loss(model, x, labels, key):
        return -elbo(model, x, labels, key).mean()

    def bits(model, x, labels, key):
        one = lambda k: elbo(model, x, labels, k)  # noqa: E731
        return per_pixel(jax.lax.map(one, jax.random.split(key, 16)).mean(axis=0))

    def means(model, labels, key):
        return model.decode(jax.random.normal(key, (len(labels), model.latent_channels)), labels)

    def pixels(model, labels, key):
        key_z, key_x = jax.random.split(key)
        x = means(model, labels, key_z)
        return x + jnp.exp(model.log_variance[...] / 2) * jax.random.normal(key_x, x.shape)

    make = lambda rngs: ConditionalVAE(CLASSES, SIZE, rngs=rngs)  # noqa: E731
    return Contender(
        single(make, loss), {"VAE, means": means, "VAE, pixels drawn": pixels}, bits, HIGHER,
        "upper bound (evidence lower bound) on discrete pixels",
        "labels; images near a given one, by its code",
    )  # fmt: skip


def pixel_cnn() -> Contender:
    """One distribution of 17 levels for each pixel, given those before it."""

    def log_p(model, x, labels):
        return autoregressive.log_prob(model, autoregressive.to_levels(x[..., 0], LEVELS), labels)

    def loss(model, x, labels, key):
        return -log_p(model, x, labels).mean()

    def bits(model, x, labels, key):
        return per_pixel(log_p(model, x, labels))

    def draw(model, labels, key):
        index = autoregressive.sample(model, len(labels), key, labels)
        return autoregressive.from_levels(index, LEVELS)[..., None]

    def make(rngs):
        size = {"width": 32, "depth": 4, "num_classes": CLASSES}
        return autoregressive.PixelCNN(LEVELS, SIZE, **size, rngs=rngs)

    return Contender(
        single(make, loss), {"autoregressive, pixels": draw}, bits, HIGHER,
        "exact, on discrete pixels", "labels; the pixels before a given one",
    )  # fmt: skip


def codes() -> Contender:
    """Half the budget for a grid of 4×4 codes (a VQ-VAE), half for a model of the codes."""
    shape = {"latent_channels": 8, "codes": 64, "channels": (64,), "stem": 2}
    train_set = data.load("digits")

    def make_vq(rngs):
        vq = VQVAE(1, **shape, rngs=rngs)
        # The codes begin where the encoder's vectors are, or most of them would never be nearest.
        z = vq.encoder(train_set.x[:BATCH])
        nowhere = jnp.zeros(shape["codes"])
        vq.codebook[...] = quantize.revive(vq.codebook[...], nowhere, z, rngs.params())
        return vq

    def make_prior(rngs):
        size = {"width": 64, "depth": 4, "num_classes": CLASSES}
        return autoregressive.PixelCNN(shape["codes"], SIZE // 2, **size, rngs=rngs)

    def loss_vq(model, x, labels, key):
        return latent.autoencoder_loss(model, x, key)[0]

    def loss_prior(model, index, labels, key):
        return -autoregressive.log_prob(model, index, labels).mean()

    indices = jax.jit(lambda vq, x: vq.index(x))
    decoded = jax.jit(lambda vq, index: vq.decode_index(index))

    def coded(vq, seed):
        index = np.asarray(indices(vq, train_set.x))
        return data.batches((index, train_set.labels), size=BATCH, seed=seed)

    @cache
    def prepared():
        first = trainee_of(make_vq, loss_vq, digits(0))
        return first, trainee_of(make_prior, loss_prior, coded(make_vq(nnx.Rngs(0)), 0))

    def train(rate, seed, budget):
        first, second = prepared()
        states, records, vq, batches = [], [], None, digits(seed)
        for make, trainee in ((make_vq, first), (make_prior, second)):
            steps = max(1, round(budget / 2 / trainee.seconds))
            batches = batches if vq is None else coded(vq, seed)
            state, record = run(trainee, cosine(rate, steps), batches, seed)
            vq = averaged(make(nnx.Rngs(0)), state) if vq is None else vq
            states.append(state)
            records.append(record)
        prior = averaged(make_prior(nnx.Rngs(0)), states[1])
        index = indices(vq, train_set.x)
        error = latent.reconstruction(train_set.x, decoded(vq, index)).mean()
        both = {k: sum(r[k] for r in records) for k in ("processor seconds", "seconds")}
        return (vq, prior, float(error)), both | {
            "steps": [r["steps"] for r in records],
            "last loss": records[1]["last loss"],
            "parameters": parameters(vq, prior),
            "failed": any(bool(s.failed) for s in states),
            "squared error of the codes": round(float(error), 4),
            "codes in use": round(float(quantize.perplexity(index, shape["codes"])), 1),
        }

    def draw(models, labels, key):
        vq, prior, _ = models
        return vq.decode_index(autoregressive.sample(prior, len(labels), key, labels))

    def bits(models, x, labels, key):
        # A code for certain: the bound is its log-probability, and the pixels' given the code.
        vq, prior, error = models
        index = vq.index(x)
        log_variance = jnp.log(error)
        pixels = bound.discretized_log_likelihood(x, vq.decode_index(index), log_variance, LEVELS)
        total = autoregressive.log_prob(prior, index, labels)
        return per_pixel(total + pixels.reshape(len(x), -1).sum(axis=1))

    return Contender(
        train, {"autoregressive, VQ codes": draw}, bits, RATES,
        "upper bound on discrete pixels: the code's bits, and the pixels' given the code under a "
        "Gaussian with the variance of the training error",
        "labels; the codes before a given one",
    )  # fmt: skip


def couplings() -> Contender:
    """A normalising flow of pixels that are spread over their bins."""

    def log_p(model, x, labels, key):
        x = likelihood.dequantize(x, LEVELS, key)
        return model.log_prob(x.reshape(len(x), -1), labels)

    def loss(model, x, labels, key):
        return -log_p(model, x, labels, key).mean()

    def bits(model, x, labels, key):
        one = lambda k: log_p(model, x, labels, k)  # noqa: E731
        nats = jax.lax.map(one, jax.random.split(key, 16)).mean(axis=0)
        return likelihood.bits_per_dim(nats, SIZE**2, LEVELS)

    def draw(model, labels, key):
        z = jax.random.normal(key, (len(labels), SIZE**2))
        return model.inverse(z, labels).reshape(-1, SIZE, SIZE, 1)

    make = lambda rngs: CouplingFlow(  # noqa: E731
        SIZE**2, width=128, depth=12, num_classes=CLASSES, rngs=rngs
    )
    return Contender(
        single(make, loss), {"normalising flow": draw}, bits, RATES,
        "upper bound on discrete pixels, by uniform dequantisation (16 draws)",
        "labels; images near a given one, by its noise",
    )  # fmt: skip


def diffusion() -> Contender:
    """The U-Net of the released digits, v-prediction on the cosine process."""

    def loss(model, x, labels, key):
        key_drop, key_loss = jax.random.split(key)
        labels = losses.drop_labels(key_drop, labels, CLASSES, 0.1)
        return losses.diffusion_loss(model, p, "v", x, labels, key_loss)

    def draw(model, labels, key, steps, w):
        D = denoiser.denoiser(model, p, "v", labels)
        if w != 1:
            null = jnp.full_like(labels, CLASSES)
            D = guidance.classifier_free_batched(model, p, "v", labels, null, w)
        start = jax.random.normal(key, (len(labels), SIZE, SIZE, 1))
        return sampling.sample(samplers.ddim(p), D, start, sampling.uniform(steps), key)[0]

    # Up to a log-SNR of 6.9, where noise of .03 leaves the grey levels, .125 apart, almost certain.
    # With as many equal steps of time the released weights need 2.6 bits, here 2.0. The grid is
    # made out here: under jit, where `bits` runs, its ends would be traced.
    times = sampling.log_snr_uniform(p, 100, t_min=0.02, t_max=0.999)

    def bits(model, x, labels, key):
        D = denoiser.denoiser(model, p, "v", labels)
        reverse = bound.fixed(p, D, times[-2], "posterior")
        return bound.evaluate(reverse, p, x, times, key, levels=LEVELS).total

    make = lambda rngs: UNet(1, (64,), stem=2, num_classes=CLASSES, rngs=rngs)  # noqa: E731
    ways = {"50 steps": (50, 1.0), "50 steps, w = 2": (50, 2.0), "4 steps": (4, 1.0)}
    draws = {f"diffusion, {n}": partial(draw, steps=s, w=w) for n, (s, w) in ways.items()}
    return Contender(
        single(make, loss), draws, bits, RATES,
        "upper bound on discrete pixels (100 steps of equal log-SNR, variance of the posterior)",
        "labels, more or less strongly; known pixels, any linear measurement or reward by guidance",
    )  # fmt: skip


def mean_flow() -> Contender:
    """MeanFlow from nothing: the same U-Net, which is told how far to jump."""
    straight, times = process.rectified_flow(), flow_map.mean_flow_times()

    def loss(model, x, labels, key):
        return flow_map.mean_velocity_loss(model, x, labels, key, times=times)

    def draw(model, labels, key, evaluations):
        key_start, key = jax.random.split(key)
        start = jax.random.normal(key_start, (len(labels), SIZE, SIZE, 1))
        jump = flow_map.network_jump(model, straight, "flow", labels)
        grid = sampling.uniform(evaluations)
        return sampling.sample(flow_map.jumps(straight), jump, start, grid, key)[0]

    def make(rngs):
        told = {"num_classes": CLASSES, "extras": 1, "time_scale": 20.0}
        return UNet(1, (64,), stem=2, **told, rngs=rngs)

    draws = {f"few-step (MeanFlow), {n}": partial(draw, evaluations=n) for n in (1, 2, 4)}
    return Contender(
        single(make, loss), draws, None, RATES, "none: a jump has no density that is known",
        "labels; known pixels with several evaluations",
    )  # fmt: skip


ALL = {
    "diffusion": diffusion,
    "GAN": gan,
    "VAE": vae,
    "autoregressive, pixels": pixel_cnn,
    "normalising flow": couplings,
    "few-step (MeanFlow)": mean_flow,
    "autoregressive, VQ codes": codes,
}
