"""The released network of clips: its training, and what chapter 23 shows of it.

    python benchmarks/clips.py train [--steps N]
    python benchmarks/clips.py measure

`train` takes about 25 minutes of processor time, and writes clips.safetensors with its card among
the released weights. `measure` takes a few minutes, and writes benchmarks/results/clips.json.
"""

import argparse
import json
import platform
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import machine
import numpy as np

from diffusion_course import process, rollouts, weights
from diffusion_course.data import batches, clips
from diffusion_course.training import loop, update
from diffusion_course.weights import card

RECORD = Path(__file__).resolve().parent / "results" / "clips.json"
# Two thirds of the parameters of adaptive norms in every block, and small enough for two cores.
MODEL = {
    "class": "VideoDiT",
    "image_size": 16,
    "image_channels": 3,
    "patch": 4,
    "width": 64,
    "depth": 3,
    "head_size": 16,
}
DATA = {"n": 20_000, "frames": 8, "size": 16, "seed": 0}
# A quarter of the clips is cut into single frames: the same network then draws images, too.
RECIPE = {"steps": 2000, "batch_size": 12, "images": 3, "learning_rate": 3e-3, "ema": 0.995,
          "seed": 0}  # fmt: skip
P, KIND = process.vp_cosine(), "v"
STEPS, CONTEXT_TIMES = 24, (0.0, 0.05, 0.2)


def loss(model, x, labels, key):
    """Three quarters of the batch as clips, a quarter as images; the mean over frames."""
    of_clips, of_images = jax.random.split(key)
    share = RECIPE["images"] / RECIPE["batch_size"]
    pictures = rollouts.as_batch(x[: RECIPE["images"]])[:, None]
    whole = rollouts.clip_loss(model, P, KIND, x[RECIPE["images"] :], None, of_clips)
    return (1 - share) * whole + share * rollouts.clip_loss(
        model, P, KIND, pictures, None, of_images
    )


def train(steps: int) -> None:
    began, spent = time.perf_counter(), time.process_time()
    examples = clips.load(**DATA)
    labels = np.zeros(len(examples.x), np.int32)
    source = batches((examples.x, labels), RECIPE["batch_size"], RECIPE["seed"])
    result = loop.fit(
        weights.build(MODEL, RECIPE["seed"]), loss, source, steps=steps,
        key=jax.random.key(RECIPE["seed"]), ema=RECIPE["ema"],
        optimizer=update.adam(RECIPE["learning_rate"], steps), progress=True, check_every=20,
    )  # fmt: skip
    about = card.Card(
        name="clips",
        model=MODEL,
        process={"name": "vp_cosine"},
        kind=KIND,
        data=DATA
        | {"name": "clips", "split": "train", "source": "drawn by this library",
           "licence": "that of this library"},
        recipe=RECIPE
        | {
            "steps": steps,
            "command": "python benchmarks/clips.py train",
            "minutes": round((time.perf_counter() - began) / 60, 1),
            "processor_minutes": round((time.process_time() - spent) / 60, 1),
            "processor": platform.machine(),
            "jax": jax.__version__,
        },
    )  # fmt: skip
    card.save_weights(weights.FOLDER, result.ema, about)


@partial(jax.jit, static_argnames=("kind", "shape"))
def drawn(model, key, kind, shape):
    """Clips of this shape (B, F) from noise, along a schedule."""
    start, key = jax.random.split(key)
    x = jax.random.normal(start, (*shape, 16, 16, 3))
    times = rollouts.schedule(kind, shape[1], STEPS, delay=STEPS // 4)
    D = rollouts.denoiser(model, P, KIND)
    return rollouts.sample(P, D, x, times, key)[0]


@partial(jax.jit, static_argnames="context_time")
def rolled(model, context, key, context_time):
    """Six windows of 4 frames of context and 4 new ones: [B, 24, 16, 16, 3]."""
    D, times = rollouts.denoiser(model, P, KIND), rollouts.schedule("full", 4, STEPS)
    return rollouts.extend(P, D, context, times, 6, key, context_time=context_time)


def about(x):
    """What chapter 23 quotes of clips [B, F, …]."""
    seen = clips.measure(x)
    fit = clips.motion(seen.position)
    speeds = np.abs(fit.velocity)
    within = (speeds > clips.SLOWEST - 0.02) & (speeds < clips.FASTEST + 0.02)
    return {
        "motion error": round(float(np.median(fit.error)), 4),
        "speed of the data": round(float(within.all(1).mean()), 3),
        "spread of colour": round(float(np.median(seen.colour.std(1).max(-1))), 4),
        "spread of size": round(float(np.median(seen.size.std(1) / seen.size.mean(1))), 4),
    }


def measure():
    found = weights.load("clips")
    model, key, n = found.model, jax.random.key(1), 48
    truth = clips.load("test", n=n, frames=32)
    rows = {"data": about(truth.x[:, :8])}
    alone = drawn(model, key, "full", (n * 8, 1))
    rows["frame by frame"] = about(np.asarray(alone).reshape(n, 8, 16, 16, 3))
    for kind in rollouts.KINDS:
        rows[kind] = about(drawn(model, key, kind, (n, 8)))
        print(kind, rows[kind], flush=True)
    long, context = {}, jnp.asarray(truth.x[:, 4:8])
    for context_time in CONTEXT_TIMES:
        made = np.asarray(rolled(model, context, key, context_time))
        windows = [about(made[:, k : k + 8]) for k in (0, 8, 16)]
        seen, given = clips.measure(made), clips.measure(truth.x[:, :8])
        colour = np.abs(seen.colour - given.colour.mean(1, keepdims=True)).max(-1)
        size = np.abs(seen.size / given.size.mean(1, keepdims=True) - 1)
        long[str(context_time)] = {
            "windows": windows,
            "colour off": [round(float(np.median(colour[:, k])), 4) for k in (0, 7, 15, 23)],
            "size off": [round(float(np.median(size[:, k])), 4) for k in (0, 7, 15, 23)],
        }
        print(context_time, long[str(context_time)], flush=True)
    settings = {"clips": n, "steps": STEPS, "context": 4, "new": 4, "turns": 6, "seed": 1}
    record = {"machine": machine.describe(), "settings": settings, "sha256": found.card.sha256,
              "rows": rows, "long": long}  # fmt: skip
    RECORD.write_text(json.dumps(record, indent=1) + "\n", "utf-8")


def main():
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("what", choices=("train", "measure"))
    options.add_argument("--steps", type=int, default=RECIPE["steps"])
    given = options.parse_args()
    train(given.steps) if given.what == "train" else measure()


if __name__ == "__main__":
    main()
