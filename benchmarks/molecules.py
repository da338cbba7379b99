"""Three networks on small molecules, with three seeds each: chapter 24's section 7.

    python benchmarks/molecules.py

An E(3)-equivariant network, and an ordinary one with and without random turns of its examples, are
trained as in the chapter. Writes benchmarks/results/molecules.json, which the chapter shows; the
chapter trains seed 0 again. Takes two minutes on two cores.
"""

import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import machine
import numpy as np
from flax import nnx

from diffusion_course import data, denoiser, losses, process, rotations, samplers, sampling
from diffusion_course.data import clouds
from diffusion_course.models import equivariant
from diffusion_course.models.mlp import MLP
from diffusion_course.training import loop, update

RECORD = Path(__file__).resolve().parent / "results" / "molecules.json"
SEEDS, STEPS, BATCH, SAMPLES = (0, 1, 2), 1500, 64, 500
P = process.vp_cosine()
TRAIN, TEST = clouds.load("peroxide", n=2000), clouds.load("peroxide", "test", n=500)
TWIST = 111.8  # degrees, of the data


class Flat(nnx.Module):
    """An ordinary network of the 12 coordinates, with the mean taken out."""

    def __init__(self, *, rngs):
        self.net = MLP(12, 64, 3, rngs=rngs)

    def __call__(self, x, t, cond=None):
        return equivariant.centre(self.net(x.reshape(len(x), 12), t).reshape(x.shape))


def types(n):
    return jnp.tile(jnp.arange(4), (n, 1))


def loss(model, x, labels, key, turned):
    key_t, key_eps, key_turn = jax.random.split(key, 3)
    if turned:
        x = jnp.einsum("bij,bnj->bni", rotations.uniform(key_turn, len(x)), x)
    t = losses.stratified_times(key_t, len(x))
    eps = equivariant.centred_noise(key_eps, x.shape)
    return losses.squared_error(model, P, "v", x, eps, t, types(len(x))).mean()


def trained(name, seed):
    rngs = nnx.Rngs(seed)
    start = equivariant.EGNN(4, 24, 3, rngs=rngs) if name == "equivariant" else Flat(rngs=rngs)
    batches = data.batches((TRAIN.x, np.zeros(len(TRAIN.x), np.int32)), BATCH, seed)
    return loop.fit(
        start, partial(loss, turned=name == "plain, turned"), batches, steps=STEPS,
        key=jax.random.key(seed), ema=0.99, optimizer=update.adam(3e-3, STEPS), progress=False,
    ).ema  # fmt: skip


@jax.jit
def error(model, degrees):
    """The training error on test molecules that are turned by these degrees, with their noise."""
    turn = rotations.from_vector(jnp.radians(degrees) * jnp.array([0.48, 0.6, 0.64]))
    keys = jax.random.split(jax.random.key(7), 4)
    x, t = jnp.asarray(TEST.x), losses.stratified_times(keys[0], len(TEST.x))

    def once(key):
        eps = equivariant.centred_noise(key, x.shape)
        return losses.squared_error(
            model, P, "v", x @ turn.T, eps @ turn.T, t, types(len(x))
        ).mean()

    return jnp.mean(jax.vmap(once)(keys))


@jax.jit
def make(model, key):
    D = denoiser.denoiser(model, P, "v", types(SAMPLES))
    begin = equivariant.centred_noise(key, (SAMPLES, 4, 3))
    return sampling.sample(samplers.ddim(P), D, begin, sampling.uniform(60), key)[0]


def measured(name, seed):
    model = trained(name, seed)
    x = np.asarray(make(model, jax.random.key(3)))
    bonds = np.stack([clouds.distances(x)[:, i, j] for i, j in ((0, 1), (1, 2), (2, 3))])
    twist = np.degrees(clouds.torsions(x)[:, 0])
    return {
        "error": round(float(error(model, 0.0)), 4),
        "turned": round(float(error(model, 180.0)), 4),
        "bonds": [round(float(value), 3) for value in bonds.mean(1)],
        "scatter": round(float(bonds.std(1).max()), 3),
        "near": round(float((np.abs(np.abs(twist) - TWIST) < 30).mean()), 3),
        "right": round(float((twist > 0).mean()), 3),
    }


def main():
    rows = {
        name: [measured(name, seed) for seed in SEEDS]
        for name in ("equivariant", "plain", "plain, turned")
    }
    settings = {"steps": STEPS, "batch": BATCH, "samples": SAMPLES, "seeds": list(SEEDS)}
    record = {"machine": machine.describe(), "settings": settings, "rows": rows}
    RECORD.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
