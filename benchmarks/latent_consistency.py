"""A latent consistency model beside its teacher: chapter 18's section 11.

    python benchmarks/latent_consistency.py

The released shapes_lcm draws shapes with 1, 2 and 4 evaluations at several w; its teacher
shapes_latent draws from the same noises with guided DDIM, each evaluation of which is two calls of
the network. All are decoded, and judged by the released classifier. Three draws of each, and the
processor time of one image. Writes benchmarks/results/latent_consistency.json, which the chapter
shows; the chapter measures a row again. Takes some four minutes of one core.
"""

import json
from pathlib import Path
from time import process_time

import jax
import jax.numpy as jnp
import machine
import numpy as np

from diffusion_course import data, guidance, latent, samplers, sampling, weights
from diffusion_course.evaluation import metrics, quality
from diffusion_course.models.classifier import fitted
from diffusion_course.training import recipes

RECORD = Path(__file__).resolve().parent / "results" / "latent_consistency.json"
RECIPE = recipes.RECIPES["shapes_lcm"]
SCALES, SEEDS, SAMPLES, FEW, REFERENCE, TIMED = (1.0, 2.0, 3.0), (0, 1, 2), 240, (1, 2, 4), 25, 15
LABELS, FIRST = np.arange(SAMPLES) % 6, 12  # so many are drawn again by the chapter


def of_teacher(steps: int):
    """``draw(model, key, start, labels, w)``: guided DDIM with so many evaluations."""
    p, times, null = weights.build_process(RECIPE.process), sampling.uniform(steps), 6

    @jax.jit
    def draw(model, key, start, labels, w):
        without = jnp.full_like(labels, null)
        D = guidance.classifier_free_batched(model, p, RECIPE.kind, labels, without, w)
        return sampling.sample(samplers.ddim(p), D, start, times, key)[0]

    return draw


def spread(x: np.ndarray) -> float:
    """Root mean square deviation of a pixel value within a class."""
    return float(np.sqrt(np.mean([x[c::6].var(axis=0) for c in range(6)])))


def main():
    student, teacher = weights.load("shapes_lcm"), weights.load("shapes_latent")
    space = weights.latent_space(RECIPE.autoencoder)
    train, test = (data.load("shapes", s, **RECIPE.options) for s in ("train", "test"))
    shape = train.x.shape[1:]
    expert = fitted(recipes.judge_for("shapes"), shape)
    moments = metrics.moments(quality.judge_all(expert, train.x)[1])
    real = test.x[[np.flatnonzero(test.labels == c)[i // 6] for i, c in enumerate(LABELS)]]
    floor = metrics.frechet(quality.judge_all(expert, real)[1], moments)

    draws = {f"DDIM, {n}": (of_teacher(n), teacher.model) for n in (REFERENCE, *FEW)}
    draws |= {f"LCM, {n}": (recipes.few_steps(RECIPE, n), student.model) for n in FEW}
    rows, first = {name: {f"w={w:g}": [] for w in SCALES} for name in draws}, {}
    for seed in SEEDS:
        key_start, key = jax.random.split(jax.random.key(seed))
        start = jax.random.normal(key_start, (SAMPLES, *space.shape(shape)))
        for w in SCALES:
            for name, (draw, model) in draws.items():
                z = np.asarray(draw(model, key, start, LABELS, w))
                if name == f"DDIM, {REFERENCE}":  # the first of them
                    of_25 = z
                x = latent.decode_all(space, z)
                seen, features = quality.judge_all(expert, x)
                found = {
                    "accuracy": metrics.class_accuracy(seen, LABELS),
                    "frechet": metrics.frechet(features, moments),
                    "to_teacher": float(np.mean((z - of_25) ** 2)),
                    "spread": spread(x),
                }
                rows[name][f"w={w:g}"].append(found)
                if (seed, w) == (0, 2):
                    first[name] = float(np.mean((z - of_25)[:FIRST] ** 2))
                print(seed, w, name, json.dumps(found), flush=True)
            # Two pictures of the teacher, of the same class and from two noises.
            apart = float(np.mean((of_25 - np.roll(of_25, 6, axis=0))[6:] ** 2))
            rows.setdefault("other noise", {}).setdefault(f"w={w:g}", []).append(apart)

    record = {
        "machine": machine.describe(),
        "samples": SAMPLES,
        "first": {"count": FIRST, "to_teacher": first},
        "seeds": list(SEEDS),
        "floor": floor,
        "spread_of_real": spread(real),
        "student_sha256": student.card.sha256,
        "teacher_sha256": teacher.card.sha256,
        "milliseconds": timed(draws, space, shape),
        "rows": rows,
    }
    RECORD.write_text(json.dumps(record, indent=1) + "\n", "utf-8")


def timed(draws: dict, space, shape) -> dict[str, float]:
    """Processor time of one image with its decoding, in milliseconds: medians, taking turns."""
    decode = jax.jit(lambda space, z: space.decode(z))
    start, label = jax.random.normal(jax.random.key(0), (1, *space.shape(shape))), np.zeros(1, int)
    taken = {name: [] for name in ("decoder alone", *draws)}
    for _ in range(TIMED + 1):
        begin = process_time()
        decode(space, start).block_until_ready()
        taken["decoder alone"].append(process_time() - begin)
        for name, (draw, model) in draws.items():
            begin = process_time()
            z = draw(model, jax.random.key(0), start, label, 2.0)
            decode(space, z).block_until_ready()
            taken[name].append(process_time() - begin)
    return {name: 1000 * float(np.median(times[1:])) for name, times in taken.items()}


if __name__ == "__main__":
    main()
