"""Does fresh noise help when the steps are many? DDIM and DDPM on the 8×8 digits, several seeds.

    python benchmarks/many_steps.py        about ten minutes on two cores

Chapter 06 shows this table in section 5, and computes the entry of the first seed and DDPM's 1,000
steps again. Everything is as there: 360 samples, 36 of each class, and the Fréchet distance
between the judge's features of the samples and those of the training set.
"""

import argparse
import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import machine
import numpy as np

from diffusion_course import denoiser, samplers, setup, weights
from diffusion_course.evaluation import metrics
from diffusion_course.models.classifier import judge
from diffusion_course.weights import features

RESULTS = Path(__file__).parent / "results" / "many_steps.json"
STEPS, COUNT = (5, 10, 20, 50, 200, 1000), 360
MODELS = ("digits", "digits_classifier")


@partial(jax.jit, static_argnames="p")
def draw(model, p, x, labels, steps, key, eta):
    """`steps` equal steps of DDIM; their number is an argument, so that one program serves all."""
    D, sampler = denoiser.denoiser(model, p, "v", labels), samplers.ddim(p, eta)

    def body(i, x):
        t, s = (1 - j / steps for j in (i, i + 1))
        return sampler.step(D, x, t, s, jax.random.fold_in(key, i), ())[0]

    return jax.lax.fori_loop(0, steps, body, x)


def measure(seeds: int) -> dict:
    """Fréchet distances [seeds] for each eta and number of steps, and the lowest accuracy."""
    small, expert = map(weights.load, MODELS)
    real, labels = features.load("digits", expert.card), jnp.arange(COUNT) % 10
    distance, accuracy = {}, {}
    for eta in (0.0, 1.0):
        for steps in STEPS:
            name, found = f"eta = {eta:g}, {steps} steps", []
            for seed in range(seeds):
                start, fresh = jax.random.key(8 + 100 * seed), jax.random.key(9 + 100 * seed)
                x = jax.random.normal(start, (COUNT, 8, 8, 1))
                seen, traits = judge(
                    expert.model, draw(small.model, small.process, x, labels, steps, fresh, eta)
                )
                found.append((metrics.frechet(traits, real), metrics.class_accuracy(seen, labels)))
            distance[name] = [round(float(d), 4) for d, _ in found]
            accuracy[name] = round(min(float(a) for _, a in found), 4)
            mean, scatter = np.mean(distance[name]), np.std(distance[name])
            print(f"{name}: {mean:.3f} ± {scatter:.3f}, least accuracy {accuracy[name]:.1%}")
    return {"frechet": distance, "lowest_accuracy": accuracy}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=8)
    args = parser.parse_args()
    setup("cpu", quiet=True)
    result = {
        "machine": machine.describe(),
        "sha256": {name: weights.load(name).card.sha256 for name in MODELS},
        "samples": COUNT,
        "seeds": args.seeds,
    } | measure(args.seeds)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(machine.line(result["machine"]))


if __name__ == "__main__":
    main()
