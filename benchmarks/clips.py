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
from dataclasses import replace
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


def main():
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("what", choices=("train", "measure"))
    options.add_argument("--steps", type=int, default=RECIPE["steps"])
    given = options.parse_args()
    train(given.steps) if given.what == "train" else measure()


if __name__ == "__main__":
    main()
