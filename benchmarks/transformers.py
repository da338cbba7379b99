"""Quality against computation: DiTs of other patches, widths and depths, at equal images seen.

    python benchmarks/transformers.py [NAME …] [--out benchmarks/results/transformers.json]

Each DiT is trained on MNIST for 6,000 steps of 128 images, with the released DiT's process, kind
and rate, and draws 5,000 digits at w = 1 with 25 steps of DDIM. A row has its parameters, the
billions of operations of its matrix products for one image, its loss on the 10,000 unseen images,
what the judge recognises and the Fréchet distance to the training set. On a GPU a row takes a
minute or two.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
from machine import describe

from diffusion_course import data, losses, samplers, sampling, weights
from diffusion_course.evaluation import metrics, quality
from diffusion_course.models import counting
from diffusion_course.process import vp_cosine
from diffusion_course.training import recipes
from diffusion_course.weights import features

STEPS, SAMPLES, CHUNK = 6000, 5000, 1000
SHAPES = [(7, 64, 2), (7, 128, 4), (7, 256, 4), (4, 64, 2), (4, 64, 8), (4, 128, 2), (4, 128, 4),
          (4, 256, 4), (2, 64, 2), (2, 64, 4), (2, 128, 2), (2, 128, 4)]  # fmt: skip
P = vp_cosine()
NETWORKS = {
    f"DiT {width}×{depth}/{patch}": {
        "class": "DiT", "image_size": 28, "patch": patch, "width": width, "depth": depth,
        "num_classes": 10,
    }
    for patch, width, depth in SHAPES
}  # fmt: skip


def train(name: str):
    """The averaged weights after the shared number of images."""
    recipe = replace(
        recipes.RECIPES["mnist_dit"], model=NETWORKS[name], steps=STEPS, batch_size=128
    )
    result = recipes.run(recipe, data.load("mnist"), progress=False)
    return result.ema, result.history.seconds


def measure(name: str, model, ruler: "Ruler") -> dict:
    generate = sampling.generator(P, "v", samplers.ddim(P), sampling.uniform(25), (28, 28, 1))
    labels = np.arange(SAMPLES) % 10
    keys = jax.random.split(jax.random.key(1), SAMPLES // CHUNK)
    parts = labels.reshape(-1, CHUNK)
    x = np.concatenate(
        [generate(model, key, CHUNK, part) for key, part in zip(keys, parts, strict=True)]
    )
    predicted, found = quality.judge_all(ruler.expert.model, x)
    of = {k: v for k, v in NETWORKS[name].items() if k != "class"}
    size = of.pop("image_size")
    return {
        "network": name,
        "parameters": counting.parameter_count(model),
        "gflops": round(sum(counting.dit_flops(size, **of).values()) / 1e9, 5),
        "unseen loss": round(ruler.loss(model), 6),
        "recognised": metrics.class_accuracy(predicted, labels),
        "frechet": round(metrics.frechet(found, ruler.real), 4),
    }


class Ruler:
    """What every row is measured with: the judge, and the same unseen images and noise."""

    def __init__(self):
        self.expert = weights.load("mnist_classifier")
        self.real = features.load("mnist", self.expert.card)
        self.test = data.load("mnist", split="test")

    def loss(self, model) -> float:
        part = jax.jit(lambda m, x, c, k: losses.diffusion_loss(m, P, "v", x, c, k))
        images = self.test.x.reshape(10, CHUNK, 28, 28, 1)
        labels = self.test.labels.reshape(10, CHUNK)
        keys = jax.random.split(jax.random.key(0), 10)
        return float(np.mean([part(model, images[i], labels[i], keys[i]) for i in range(10)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="rows; all by default")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/transformers.json"))
    options = parser.parse_args()
    rows = json.loads(options.out.read_text())["rows"] if options.out.exists() else []
    about = {"machine": describe(), "device": jax.devices()[0].device_kind,
             "steps": STEPS, "batch": 128, "samples": SAMPLES}  # fmt: skip
    ruler = Ruler()
    for name in options.names or NETWORKS:
        model, seconds = train(name)
        row = measure(name, model, ruler) | {"seconds": round(seconds)}
        rows = [*(r for r in rows if r["network"] != name), row]
        options.out.write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n")
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
