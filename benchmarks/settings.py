"""Which learning rate is best for a small network that trains for a minute on two cores.

    python benchmarks/settings.py        a few minutes on two quiet cores

Every row sees the same 19,200 images of the 8×8 digits, in batches of 64, with Adam's rate falling
to 0. Chapter 04 shows the table in section 3.
"""

import argparse
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import machine
import numpy as np
from flax import nnx

from diffusion_course import data, denoiser, losses, process, samplers, sampling, setup, weights
from diffusion_course.evaluation import metrics
from diffusion_course.models.classifier import judge
from diffusion_course.models.unet import UNet
from diffusion_course.training import loop, update
from diffusion_course.weights import features

RESULTS = Path(__file__).parent / "results" / "settings.json"
IMAGES, COUNT = 19_200, 360
RATES, BATCH = (1e-4, 1e-3, 3e-3, 1e-2, 3e-2), 64
p = process.vp_cosine()


def train(rate: float, seed: int):
    """The averaged network after 19,200 images."""

    def loss(net, x, labels, key):
        key_drop, key_loss = jax.random.split(key)
        labels = losses.drop_labels(key_drop, labels, 10, 0.1)
        return losses.diffusion_loss(net, p, "v", x, labels, key_loss)

    steps = IMAGES // BATCH
    batches = data.batches(data.load("digits"), size=BATCH, seed=seed)
    net = UNet(1, (16, 32), num_classes=10, rngs=nnx.Rngs(seed))
    return loop.fit(
        net, loss, batches, steps=steps, key=jax.random.key(seed),
        optimizer=update.adam(rate, steps), progress=False,
    ).ema  # fmt: skip


@jax.jit
def draw(net, x, labels):
    D = denoiser.denoiser(net, p, "v", labels)
    return sampling.sample(samplers.ddim(p), D, x, sampling.uniform(50), jax.random.key(0))[0]


def measure(net, unseen, expert, real) -> dict:
    """Error of v on unseen digits; Fréchet distance of 360 samples."""
    error = metrics.loss_by_time(
        lambda net, *a: losses.squared_error(net, p, "v", *a),
        net, unseen.x, unseen.labels, np.array([0.05, 0.2, 0.5, 0.8]), jax.random.key(9), 2,
    ).mean()  # fmt: skip
    labels = jnp.arange(COUNT) % 10
    images = draw(net, jax.random.normal(jax.random.key(8), (COUNT, 8, 8, 1)), labels)
    distance = metrics.frechet(judge(expert.model, images)[1], real)
    return {"error": round(float(error), 4), "frechet": round(float(distance), 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=2)
    args = parser.parse_args()
    setup("cpu", quiet=True)
    unseen, expert = data.load("digits", split="test"), weights.load("digits_classifier")
    real = features.load("digits", expert.card)
    result = {"machine": machine.describe(), "images": IMAGES, "batch": BATCH, "rows": []}
    for rate in RATES:
        nets = [train(rate, seed) for seed in range(args.seeds)]
        found = [measure(net, unseen, expert, real) for net in nets]
        result["rows"].append({"rate": rate} | {k: [f[k] for f in found] for k in found[0]})
        print(result["rows"][-1], flush=True)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(machine.line(result["machine"]))


if __name__ == "__main__":
    main()
