"""What each choice of EDM buys on the 8×8 digits, and what augmentation and weight decay do.

    python benchmarks/edm.py        about five minutes on two quiet cores

Chapter 12 shows both tables and computes rows of the first one again. A small network (`MLP`) is
trained for 1,500 steps of 128 digits, three times for each row, and 360 digits are drawn with 18
steps of Heun on Karras's grid: 35 evaluations. The judge and the Fréchet distance are those of
chapter 06.

Of the first table, each row differs from "EDM" in what it says and in nothing else. The second one
trains "EDM" on 300 digits only.
"""

import argparse
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import machine
import numpy as np
import optax
from flax import nnx

from diffusion_course import data, denoiser, edm, losses, process, samplers, sampling, weights
from diffusion_course.evaluation import metrics
from diffusion_course.models.classifier import judge
from diffusion_course.models.mlp import MLP
from diffusion_course.training import loop, update
from diffusion_course.weights import features

RESULTS = Path(__file__).parent / "results" / "edm.json"
STEPS, BATCH, RATE, COUNT, FEW = 1500, 128, 2e-3, 360, 300
LEVELS = (0.02, 0.5, 20.0)


def digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    found = data.load("digits", split=split)
    return found.x.reshape(-1, 64), found.labels


TRAIN, TEST = digits("train"), digits("test")
RMS, STD = (float(f(TRAIN[0])) for f in (lambda x: np.sqrt(np.mean(x**2)), np.std))
P = process.edm(80.0, sigma_data=RMS)
GRID = sampling.karras(P, 18)

LEVELS_DRAWN = edm.log_normal_times(P)


def as_x0(kind, p, t):
    """The weight with which an error of D counts as in the row "x0": the same at every level."""
    return edm.preconditioning(p.sigma(t), p.sigma_data).out ** 2


# kind, whether the input is scaled to unit size, process, how training times are drawn, weight
ROWS = {
    "EDM": ("edm", False, P, LEVELS_DRAWN, losses.simple),  # this kind scales its input itself
    "times uniform on the clock": ("edm", False, P, losses.uniform_times, losses.simple),
    "std for sigma_data": (
        "edm", False, P._replace(sigma_data=STD), LEVELS_DRAWN, losses.simple
    ),
    "weight of x0": ("edm", False, P, LEVELS_DRAWN, as_x0),
    "x0": ("x0", True, P, LEVELS_DRAWN, losses.simple),
    "eps": ("eps", True, P, LEVELS_DRAWN, losses.simple),
    "eps, input not scaled": ("eps", False, P, LEVELS_DRAWN, losses.simple),
}  # fmt: skip


def scaled(model, p):
    """The network with an input of unit size; for kinds that do not scale it."""
    return lambda x, t, c: model(x / jnp.hypot(p.sigma(t), p.sigma_data)[:, None], t, c)


def train(row, batches, seed, classes=10, optimizer=None):
    kind, scale, p, times, weight = row

    def loss(model, x, labels, key):
        drop, rest = jax.random.split(key)
        labels = losses.drop_labels(drop, labels, classes, 0.1)
        model = scaled(model, p) if scale else model
        return losses.diffusion_loss(model, p, kind, x, labels, rest, times=times, weight=weight)

    model = MLP(64, 256, 3, num_classes=classes, rngs=nnx.Rngs(seed))
    optimizer = update.adam(RATE, STEPS) if optimizer is None else optimizer
    return loop.fit(
        model, loss, batches, steps=STEPS, key=jax.random.key(seed), optimizer=optimizer,
        progress=False,
    ).ema  # fmt: skip


def estimate(model, row, labels):
    kind, scale, p, *_ = row
    return denoiser.denoiser(scaled(model, p) if scale else model, p, kind, labels)


def measure(model, row, expert, real, seed) -> dict:
    p, labels = row[2], jnp.arange(COUNT) % 10

    @jax.jit
    def draw(model, key):
        start = sampling.start_noise(p, key, (COUNT, 64))
        D = estimate(model, row, labels)
        return sampling.sample(samplers.heun(p), D, start, GRID, key)[0]

    @jax.jit
    def error(model, t, key):
        x0, noise = jnp.asarray(TEST[0]), jax.random.normal(key, TEST[0].shape)
        D = estimate(model, row, jnp.asarray(TEST[1]))
        return jnp.sqrt(jnp.mean((D(process.add_noise(p, x0, noise, t), t) - x0) ** 2))

    seen, found = judge(expert.model, draw(model, jax.random.key(seed)).reshape(-1, 8, 8, 1))
    times = process.time_at(p, -2 * np.log(np.float32(LEVELS)))
    return {
        "frechet": round(float(metrics.frechet(found, real)), 3),
        "recognised": round(metrics.class_accuracy(seen, np.asarray(labels)), 3),
        "error": [round(float(error(model, t, jax.random.key(seed))), 4) for t in times],
    }


def ablation(seeds, expert, real) -> dict:
    table = {}
    for name, row in ROWS.items():
        table[name] = [
            measure(train(row, data.batches(TRAIN, BATCH, s), s), row, expert, real, s)
            for s in range(seeds)
        ]
        print(name, table[name], flush=True)
    return table


# ------------------------------------------------------------------ augmentation, weight decay


def shifted(x, by):
    """Digits [N, 64] moved by one column: by −1, 0 or 1; paper comes in at the side."""
    x = x.reshape(-1, 8, 8)
    moved = np.full_like(x, -1)
    moved[:, :, max(by, 0) : 8 + min(by, 0)] = x[:, :, max(-by, 0) : 8 - max(by, 0)]
    return moved.reshape(-1, 64)


def moved_batches(seed, told):
    """Each digit moved at random; `told` gives the network another label for each move."""
    rng = np.random.default_rng(seed)
    few = TRAIN[0][:FEW], TRAIN[1][:FEW]
    versions = np.stack([shifted(few[0], by) for by in (0, -1, 1)])
    while True:
        i, move = rng.integers(0, FEW, BATCH), rng.integers(0, 3, BATCH)
        yield versions[move, i], few[1][i] + 10 * move * told


def decayed(amount):
    schedule = optax.warmup_cosine_decay_schedule(RATE / 150, RATE, 150, STEPS)
    clip = optax.clip_by_global_norm(1.0)
    return optax.flatten(optax.chain(clip, optax.adamw(schedule, weight_decay=amount)))


def few_digits(seeds, expert, real) -> dict:
    row, few = ROWS["EDM"], (TRAIN[0][:FEW], TRAIN[1][:FEW])
    ways = {
        "300 digits": lambda s: (data.batches(few, BATCH, s), None),
        "weight decay 0.1": lambda s: (data.batches(few, BATCH, s), decayed(0.1)),
        "weight decay 1": lambda s: (data.batches(few, BATCH, s), decayed(1.0)),
        "moved, not told": lambda s: (moved_batches(s, False), None),
        "moved, told": lambda s: (moved_batches(s, True), None),
    }
    every = np.concatenate([shifted(few[0], by) for by in (0, -1, 1)])

    def beside_the_data(x) -> dict:
        """The share that is nearest to a moved digit, and how near a digit of the 300 is."""
        moved = (metrics.nearest(x, every)[0] >= FEW).mean()
        near = np.median(metrics.nearest(x, few[0])[1])
        return {"looks moved": round(float(moved), 3), "nearest": round(float(near), 2)}

    table = {"unseen digits": beside_the_data(TEST[0])}

    @jax.jit
    def loss(model, x, labels, key):
        return losses.diffusion_loss(model, P, "edm", x, labels, key, times=row[3])

    @jax.jit
    def draw(model, key):
        D = denoiser.denoiser(model, P, "edm", jnp.arange(COUNT) % 10)
        start = sampling.start_noise(P, key, (COUNT, 64))
        return sampling.sample(samplers.heun(P), D, start, GRID, key)[0]

    repeated = np.tile(TEST[0], (20, 1)), np.tile(TEST[1], 20)
    for name, way in ways.items():
        table[name] = []
        for seed in range(seeds):
            batches, optimizer = way(seed)
            model = train(row, batches, seed, classes=30, optimizer=optimizer)
            x = np.asarray(draw(model, jax.random.key(seed)))
            found = judge(expert.model, jnp.asarray(x).reshape(-1, 8, 8, 1))[1]
            of_unseen = float(loss(model, *repeated, jax.random.key(99)))
            distance = {"frechet": round(float(metrics.frechet(found, real)), 3)}
            row_of_seed = {"unseen loss": round(of_unseen, 4)} | beside_the_data(x) | distance
            table[name].append(row_of_seed)
        print(name, table[name], flush=True)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    seeds = parser.parse_args().seeds
    expert = weights.load("digits_classifier")
    real = features.load("digits", expert.card)
    result = {
        "machine": machine.describe(),
        "sha256": {"digits_classifier": expert.card.sha256},
        "settings": {"steps": STEPS, "batch": BATCH, "rate": RATE, "samples": COUNT},
        "ablation": ablation(seeds, expert, real),
        "few digits": few_digits(seeds, expert, real),
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(machine.line(result["machine"]))


if __name__ == "__main__":
    main()
