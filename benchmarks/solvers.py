"""Fréchet distance of every solver on MNIST at 6, 10 and 20 evaluations.

    python benchmarks/solvers.py [--count 5000] [--out benchmarks/results/solvers.json]

The released network at w = 1, three starts, the same for all solvers, on the uniform grid from pure
noise to the data; the distance is to the judge's features of the training set. Every row is written
as soon as it is known, and a second run goes on where the first one stopped. The last rows are the
flow itself, nearly: 2M with 100 evaluations.

Written down before the first run: 2M is expected to win at 6 evaluations, and UniPC at 10 and 20.
"""

import argparse
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from machine import describe

from diffusion_course import samplers, sampling, solvers, weights
from diffusion_course.evaluation import metrics
from diffusion_course.models.classifier import judge
from diffusion_course.weights import features

BATCH = 500
BUDGETS, SEEDS = (6, 10, 20), (0, 1, 2)
FLOW = "2M", 100  # closer to the network's flow than any row of the race
SOLVERS = {
    "DDIM": samplers.ddim,
    "DDPM": samplers.ddpm,
    "Heun": samplers.heun,
    "2M": samplers.dpm_solver_pp_2m,
    "3M": solvers.dpm_solver_pp_3m,
    "SDE-2M": solvers.sde_dpm_solver_pp_2m,
    "DEIS": solvers.deis,
    "UniPC": solvers.unipc,
    "SA": solvers.sa_solver,
}


def steps_for(name: str, evaluations: int) -> int:
    """From t = 1 without signal to the data, n steps of Heun cost 2n − 2 evaluations."""
    return evaluations // 2 + 1 if name == "Heun" else evaluations


def distance(p, model, expert, real, name: str, evaluations: int, seed: int, count: int) -> float:
    times = sampling.uniform(steps_for(name, evaluations))
    generate = sampling.generator(p, "v", SOLVERS[name](p), times, (28, 28, 1))
    labels = jnp.arange(BATCH) % 10
    keys = jax.random.split(jax.random.key(seed), count // BATCH)
    found = [judge(expert.model, generate(model, key, BATCH, labels))[1] for key in keys]
    return float(metrics.frechet(np.concatenate(found), real))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=5000, help="samples per row")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/solvers.json"))
    options = parser.parse_args()
    mnist, expert = weights.load("mnist"), weights.load("mnist_classifier")
    real = features.load("mnist", expert.card)
    rows = json.loads(options.out.read_text())["rows"] if options.out.exists() else []
    known = {(row["solver"], row["evaluations"], row["seed"]) for row in rows}
    race = [(name, evaluations) for evaluations in BUDGETS for name in SOLVERS]
    for name, evaluations in [*race, FLOW]:
        for seed in SEEDS:
            if (name, evaluations, seed) in known:
                continue
            found = distance(
                mnist.process, mnist.model, expert, real, name, evaluations, seed, options.count
            )
            rows.append({"solver": name, "evaluations": evaluations, "seed": seed,
                         "frechet": round(found, 4)})  # fmt: skip
            about = {"machine": describe(), "count": options.count}
            options.out.write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n")
            print(f"{name:7} {evaluations:3} evaluations, start {seed}: {found:.3f}", flush=True)


if __name__ == "__main__":
    main()
