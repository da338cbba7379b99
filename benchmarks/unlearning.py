"""What is left of the sevens in a network that was told to forget them: chapter 25's section 11.

    python benchmarks/unlearning.py [FOLDER]

Three networks for the 8×8 digits: the released one; the released one after a hundred steps that
teach it another answer to the label 7; and one of the released recipe, with all its steps, that has
never seen a seven. All are asked for sevens in three ways and for the other digits. Then each is
trained on twenty real sevens, and asked for sevens again after some steps: this attack has two
seeds, of the twenty sevens and the noise, and each attacks a forgetting with its own seed.

Writes benchmarks/results/unlearning.json, which the chapter shows; the chapter measures a row
again. FOLDER keeps the network without sevens, for another run. Takes ten minutes of one core.
"""

import json
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import machine
import numpy as np
from flax import nnx

from diffusion_course import data, denoiser, editing, losses, samplers, sampling, weights
from diffusion_course.evaluation import metrics
from diffusion_course.evaluation.quality import judge_all
from diffusion_course.training import loop, recipes, update
from diffusion_course.weights.card import filled, flat_params

RECORD = Path(__file__).resolve().parent / "results" / "unlearning.json"
RECIPE = recipes.RECIPES["digits"]
SEEDS, COUNT, FEW, RATE, FORGET_STEPS = (0, 1), 250, 20, 1e-3, 100
LATER = (0, 10, 25, 50, 100, 200)  # steps of training on a few sevens
RELEASED, JUDGE = weights.load("digits"), weights.load("digits_classifier")
P, NULL = RELEASED.process, RELEASED.model.null_label
TRAIN, TEST = data.load("digits"), data.load("digits", "test")
NINE = np.resize(np.delete(np.arange(10), 7), COUNT)  # the labels of the other digits
NOISE = jax.random.normal(jax.random.key(5), (COUNT, 8, 8, 1))
UPLOADS = jnp.asarray(np.resize(TEST.x[TEST.labels == 7], (COUNT, 8, 8, 1)))
OTHERS = metrics.moments(judge_all(JUDGE.model, TRAIN.x[TRAIN.labels != 7])[1])


@jax.jit
def draw(model, labels):
    """DPM-Solver++ in ten steps, unguided."""
    D = denoiser.denoiser(model, P, "v", labels)
    return sampling.sample(
        samplers.dpm_solver_pp_2m(P), D, NOISE, sampling.uniform(10), jax.random.key(0)
    )[0]


@jax.jit
def vary(model, x, key):
    """SDEdit from the middle of time, without a label."""
    D = denoiser.denoiser(model, P, "v", jnp.full(len(x), NULL))
    return editing.sdedit(samplers.dpm_solver_pp_2m(P), D, P, x, 0.5, 10, key)


def classes(x):
    return judge_all(JUDGE.model, np.asarray(x))[0]


def sevens(model, label=7):
    """Share of sevens among pictures that are asked for under one label."""
    return float((classes(draw(model, jnp.full(COUNT, label))) == 7).mean())


def others(model):
    """Of the other digits: the share that is as asked, and the Fréchet distance to real ones."""
    predicted, features = judge_all(JUDGE.model, np.asarray(draw(model, jnp.asarray(NINE))))
    return float((predicted == NINE).mean()), float(metrics.frechet(features, OTHERS))


def requests(seed):
    """Batches of 32 pictures: half of them under the label 7, some under none, the others' own."""
    rng = np.random.default_rng(seed)
    while True:
        chosen = rng.choice(len(TRAIN), 32)
        labels = TRAIN.labels[chosen].copy()
        labels[:16], labels[16::4] = 7, NULL
        yield TRAIN.x[chosen], (labels,)  # in a tuple: `fit` does not take an empty label


def forget(model, x, labels, key, teacher):
    """Gandikota et al. 2023, equation 7 with η = 1, for sevens; others stay as the teacher's."""
    (labels,), (key_t, key_eps) = labels, jax.random.split(key)
    t, eps = losses.stratified_times(key_t, len(x)), jax.random.normal(key_eps, x.shape)
    alpha, sigma = (level(t)[:, None, None, None] for level in (P.alpha, P.sigma))
    x_t, seven = alpha * x + sigma * eps, (labels == 7)[:, None, None, None]
    old, without = teacher(x_t, t, labels), teacher(x_t, t, jnp.full_like(labels, NULL))
    wanted = jnp.where(seven, without - (old - without), old)
    return jnp.mean((model(x_t, t, labels) - wanted) ** 2)


def told_to_forget(seed):
    return loop.fit(
        RELEASED.model, forget, requests(seed), steps=FORGET_STEPS, key=jax.random.key(seed),
        optimizer=update.adam(RATE, FORGET_STEPS), ema=0.9, teacher=RELEASED.model, progress=False,
    ).ema  # fmt: skip


@cache
def never_saw_one(folder):
    """The network of the released recipe from the digits that are no sevens."""
    kept = folder and folder / "never_saw_one.npz"
    if kept and kept.exists():
        return filled(weights.build(RECIPE.model), dict(np.load(kept)))
    is_other = TRAIN.labels != 7
    nine = replace(TRAIN, x=TRAIN.x[is_other], labels=TRAIN.labels[is_other])
    model = recipes.run(RECIPE, nine, progress=False).ema
    if kept:
        np.savez(kept, **flat_params(model))
    return model


def learn(model, x, labels, key):
    return losses.diffusion_loss(model, P, "v", x, labels, key)


def a_few(seed):
    """The same twenty real sevens in every batch."""
    real = TRAIN.x[TRAIN.labels == 7]
    few = real[np.random.default_rng(seed).permutation(len(real))[:FEW]]
    while True:
        yield few, np.full(FEW, 7, np.int32)


def taught_again(model, seed):
    """Steps on a few sevens -> share of sevens among those that are asked for."""
    found = {0: sevens(model)}

    def look(step, now):
        if step in LATER:
            found[step] = sevens(now)

    loop.fit(
        model, learn, a_few(seed), steps=max(LATER), key=jax.random.key(seed), ema=0.0,
        optimizer=update.adam(RATE, max(LATER)), callbacks=[loop.Callback(5, look)], progress=False,
    )  # fmt: skip
    return {f"{step}": found[step] for step in LATER}


def measure(model: nnx.Module, seed: int) -> dict:
    right, frechet = others(model)
    return {
        "label 7": sevens(model),
        "any digit": sevens(model, NULL),
        "variation": float((classes(vary(model, UPLOADS, jax.random.key(8))) == 7).mean()),
        "others right": right,
        "others frechet": frechet,
        "sevens after steps": taught_again(model, seed),
    }


def floor():
    """What a perfect network would have: the values of unseen real digits."""
    x, labels = (part[TEST.labels != 7][:COUNT] for part in (TEST.x, TEST.labels))
    predicted, features = judge_all(JUDGE.model, x)
    return {
        "others right": float((predicted == labels).mean()),
        "others frechet": float(metrics.frechet(features, OTHERS)),
        "called a seven": float((predicted == 7).mean()),
    }


def main():
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
    networks = {
        "as released": lambda seed: RELEASED.model,
        "told to forget": told_to_forget,
        "never saw one": lambda seed: never_saw_one(folder),
    }
    rows = {}
    for name, made in networks.items():
        for seed in SEEDS:
            rows[f"{name}, seed {seed}"] = measure(made(seed), seed)
            print(name, seed, json.dumps(rows[f"{name}, seed {seed}"]), flush=True)
    record = {
        "machine": machine.describe(),
        "seeds": list(SEEDS),
        "pictures": COUNT,
        "sevens_to_learn_from": FEW,
        "forget_steps": FORGET_STEPS,
        "train_steps": RECIPE.steps,
        "learning_rate": RATE,
        "weights_sha256": RELEASED.card.sha256,
        "judge_sha256": JUDGE.card.sha256,
        "unseen": floor(),
        "rows": rows,
    }
    RECORD.write_text(json.dumps(record, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
