"""What each part of a diffusion transformer buys on the 8×8 digits, and what its shape does.

    python benchmarks/transformer_parts.py        about twenty minutes of one quiet core

Chapter 16 shows its tables; the chapter's own training is the first row's first seed. A small DiT
is trained for 500 steps of 64 digits, three times for each row: the same images, noise and times in
every row, another draw of them (and of the weights) for each seed.

Of "parts", each row differs from "adaLN-Zero" in what it says and in nothing else. "shapes" changes
patch, depth and width alone. "targets" makes one token of the whole digit (64 numbers), and changes
what leaves the last layer; the loss is the same squared error of x0 for all, weighted by min-SNR.
Its samples begin at t = 0.99, since noise says nothing about x0 at t = 1.

Rows that the results hold already are kept; delete the file to start anew.
"""

import argparse
import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import machine
import numpy as np
from flax import nnx

from diffusion_course import data, denoiser, losses, process, samplers, sampling, weights
from diffusion_course.evaluation import metrics
from diffusion_course.models import counting
from diffusion_course.models.classifier import judge
from diffusion_course.models.dit import DiT
from diffusion_course.training import loop, update
from diffusion_course.weights import features

RESULTS = Path(__file__).parent / "results" / "transformer_parts.json"
STEPS, BATCH, RATE, COUNT = 500, 64, 3e-3, 360
SHAPE = {"patch": 2, "width": 48, "depth": 4, "head_size": 16}
P = process.vp_cosine()
TRAIN, TEST = (data.load("digits", split=split) for split in ("train", "test"))
LABELS = jnp.arange(COUNT) % 10
MIN_SNR = losses.min_snr(5.0)  # in terms of x0, the same weight for every kind


class Nowhere(DiT):
    """A DiT whose tokens do not know where they are: rotary positions whose angles are all 0."""

    def _angles(self, others=0):
        return None


def open_gates(model: DiT) -> DiT:
    """The model with gates that start at 1 instead of 0; everything else is as it was."""
    bias = np.array(model.blocks.modulation.bias[...]).reshape(SHAPE["depth"], 6, -1)
    bias[:, [2, 5]] = 1
    model.blocks.modulation.bias[...] = jnp.asarray(bias.reshape(SHAPE["depth"], -1))
    return model


def build(kind=DiT, **changed):
    options = SHAPE | changed
    return lambda seed: kind(8, 1, **options, num_classes=10, rngs=nnx.Rngs(seed))


PARTS = {
    "adaLN-Zero": build(),
    "gates start at 1": lambda seed: open_gates(build()(seed)),
    "adaLN-single": build(conditioning="adaln-single"),
    "in-context": build(conditioning="in-context"),
    "cross-attention": build(conditioning="cross-attention"),
    "rotary": build(positions="rotary"),
    "no positions": build(Nowhere, positions="rotary"),
    "long skips": build(long_skips=True),
    "normalised q and k": build(qk_norm=True),
}
# patch, width, depth: each needs about as many operations as the first row of "parts"
SHAPES = [(4, 96, 4), (2, 96, 1), (1, 32, 2)]
TARGETS = [(kind, width) for width in (16, 64) for kind in ("x0", "v", "eps")]


def train(model, seed: int, kind="v", weight=losses.simple):
    """500 steps; the data, their noise, times and dropped labels depend on the seed alone."""

    def loss(model, x, labels, key):
        drop, rest = jax.random.split(key)
        labels = losses.drop_labels(drop, labels, 10, 0.1)
        return losses.diffusion_loss(model, P, kind, x, labels, rest, weight=weight)

    batches = data.batches((TRAIN.x, TRAIN.labels), BATCH, seed)
    return loop.fit(model, loss, batches, steps=STEPS, key=jax.random.key(seed),
                    optimizer=update.adam(RATE, STEPS), progress=False)  # fmt: skip


@partial(jax.jit, static_argnames=("kind", "weight"))
def unseen_error(model, kind="v", weight=losses.simple):
    """The loss on all unseen digits, each at 8 times; one noise for all models."""
    x, labels = jnp.asarray(TEST.x), jnp.asarray(TEST.labels)

    def once(key):
        return losses.diffusion_loss(model, P, kind, x, labels, key, weight=weight)

    return jnp.mean(jax.lax.map(once, jax.random.split(jax.random.key(99), 8)))


@partial(jax.jit, static_argnames="kind")
def draw(model, key, kind="v", begin=1.0):
    start = jax.random.normal(key, (COUNT, 8, 8, 1))
    D, times = denoiser.denoiser(model, P, kind, LABELS), begin * sampling.uniform(20)
    return sampling.sample(samplers.dpm_solver_pp_2m(P), D, start, times, key)[0]


def measure(make, seeds: int, expert, real, kind="v", weight=losses.simple, begin=1.0) -> dict:
    rows = []
    for seed in range(seeds):
        model = train(make(seed), seed, kind, weight).ema
        seen, found = judge(expert.model, draw(model, jax.random.key(seed), kind, begin))
        rows.append({
            "error": round(float(unseen_error(model, kind, weight)), 5),
            "frechet": round(float(metrics.frechet(found, real)), 3),
            "recognised": round(metrics.class_accuracy(seen, np.asarray(LABELS)), 3),
        })  # fmt: skip
    return {"parameters": counting.parameter_count(model), "seeds": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    seeds = parser.parse_args().seeds
    expert = weights.load("digits_classifier")
    real = features.load("digits", expert.card)
    result = {
        "machine": machine.describe(),
        "sha256": {"digits_classifier": expert.card.sha256},
        "settings": {"steps": STEPS, "batch": BATCH, "rate": RATE, "samples": COUNT} | SHAPE,
        "parts": {},
        "shapes": {},
        "targets": {},
    }
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if all(known.get(name) == result[name] for name in ("sha256", "settings")):
        result |= known | {"machine": result["machine"]}  # rows of other settings are not kept
    rows = [("parts", name, make, {}) for name, make in PARTS.items()]
    for kind, width in TARGETS:
        options = {"kind": kind, "weight": MIN_SNR, "begin": 0.99}
        rows.append(("targets", f"{kind}, {width}", build(patch=8, width=width, depth=2), options))
    for patch, width, depth in SHAPES:
        make = build(patch=patch, width=width, depth=depth)
        rows.append(("shapes", f"{patch}, {width}, {depth}", make, {}))
    for table, name, make, options in rows:
        if name not in result[table]:
            result[table][name] = measure(make, seeds, expert, real, **options)
            RESULTS.write_text(json.dumps(result, indent=1) + "\n")
            print(name, result[table][name], flush=True)
    print(machine.line(result["machine"]))


if __name__ == "__main__":
    main()
