"""A stage of a cascade with conditioning augmentation and without: chapter 23's section 3.

    python benchmarks/cascades.py
    python benchmarks/cascades.py --stack

The released stage shapes_8to16 is trained on small images with noise of a random level. Its twin is
trained in the same way, on the same batches, on small images without noise. Both enlarge true small
images and those that the released base draws. Then the whole cascade of released weights draws, 8,
16 and 32 pixels a side, beside a linear enlargement and a model that draws 32 pixels at once; with
`--stack` this alone is measured, and what is recorded of the rest stays. Writes
benchmarks/results/cascades.json, which the chapter shows; the chapter measures rows again. Takes
half an hour on two cores.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import jax
import machine
import numpy as np

from diffusion_course import data, samplers, sampling, weights
from diffusion_course.data import shapes
from diffusion_course.evaluation import metrics
from diffusion_course.training import cascaded, recipes

RECORD = Path(__file__).resolve().parent / "results" / "cascades.json"
RECIPE, LAST = (recipes.RECIPES[name] for name in ("shapes_8to16", "shapes_16to32"))
LAST = replace(LAST, samples=150)  # three times, for the whole cascade
SEEDS = (0, 1, 2)


def stage(highest: float, seed: int):
    """The stage of this seed that is trained with levels up to `highest`."""
    if (highest, seed) == (RECIPE.highest, RECIPE.seed):
        return weights.load("shapes_8to16").model
    train = data.load(RECIPE.dataset, **RECIPE.options)
    return recipes.run(replace(RECIPE, highest=highest, seed=seed), train, progress=False).ema


def stages() -> dict:
    """Both kinds of stages, three seeds each."""
    test = data.load(RECIPE.dataset, "test", **RECIPE.options)
    rows = {}
    for seed in SEEDS:
        for name, highest in (("without", 0.0), ("with", RECIPE.highest)):
            # Without augmentation no level but 0 was ever told.
            levels = RECIPE.levels if highest else (0.0,)
            found = cascaded.measure(replace(RECIPE, levels=levels), stage(highest, seed), test)
            rows[f"{name}, seed {seed}"] = found
            print(name, seed, json.dumps(found), flush=True)
    return {
        "machine": machine.describe(),
        "seeds": list(SEEDS),
        "steps": RECIPE.steps,
        "base_sha256": weights.load(RECIPE.base).card.sha256,
        "stage_sha256": weights.load("shapes_8to16").card.sha256,
        "rows": rows,
    }


def pixels(test, key) -> dict:
    """What one network draws of 32 × 32 pixels at once.

    No released model of these pixels is told the shape alone: this one is told the whole caption.
    """
    some, rest = test.subset(np.arange(LAST.samples)), test.x[LAST.samples :][:2000]
    captions = shapes.LANGUAGE(some.attributes["caption"].tolist())
    x = at_once(key, captions)
    expert = weights.load(LAST.judge).model
    (seen, found), (_, others) = (cascaded.features(expert, images) for images in (x, rest))
    far = metrics.frechet(found, metrics.moments(others))
    return {"frechet": round(far, 3), "shape": round(float((seen == some.labels).mean()), 4)}


def at_once(key, captions) -> np.ndarray:
    """Images of 32 × 32 pixels of captions [N, L], by the network that is told them."""
    found = weights.load("shapes_text")
    p, times = found.process, sampling.uniform(LAST.sampling_steps)
    generate = sampling.generator(p, found.card.kind, samplers.ddim(p), times, (32, 32, 3))
    return np.asarray(generate(found.model, key, len(captions), captions, 1.0))


def seconds_a_picture(count: int = 50) -> dict:
    """Processor seconds of the drawing alone, three times after the compilation."""
    base, middle, last = (weights.load(n) for n in ("shapes_8", "shapes_8to16", "shapes_16to32"))
    text, labels = weights.load("shapes_text"), (np.arange(count) % 6).astype(np.int32)
    p, times = base.process, sampling.uniform(LAST.sampling_steps)
    first = sampling.generator(p, base.card.kind, samplers.ddim(p), times, (8, 8, 3))
    whole = sampling.generator(p, text.card.kind, samplers.ddim(p), times, (32, 32, 3))
    to_16, to_32 = cascaded.enlarger(RECIPE, 16), cascaded.enlarger(LAST, 32)
    captions = shapes.LANGUAGE(
        data.load("shapes", "test", n=count, size=32).attributes["caption"].tolist()
    )

    def cascade(key):
        small = first(base.model, key, count, labels, 1.0)
        large = to_16(middle.model, small, labels, 0.0, key)
        return to_32(last.model, large, labels, 0.0, key)

    def spent(draw) -> list[float]:
        found = []
        for seed in range(4):
            start = time.process_time()
            jax.block_until_ready(draw(jax.random.key(seed)))
            found.append(round((time.process_time() - start) / count, 4))
        return found[1:]

    def pixels(key):
        return whole(text.model, key, count, captions, 1.0)

    return {"cascade": spent(cascade), "pixels": spent(pixels)}


def stack() -> dict:
    """The whole cascade of released weights, three draws: other noise and other true pictures."""
    model, draws = weights.load("shapes_16to32").model, []
    for seed in SEEDS:
        n = LAST.samples + 2000
        test = data.load(LAST.dataset, "test", n=n, size=LAST.options["size"], seed=seed)
        found = cascaded.measure_stack(LAST, model, test, jax.random.key(seed))
        found["pixels"] = pixels(test, jax.random.key(seed))
        draws.append(found)
        print(seed, json.dumps(found), flush=True)
    names = ("shapes_8", "shapes_8to16", "shapes_16to32", "shapes_text")
    return {
        "machine": machine.describe(),
        "samples": LAST.samples,
        "steps": LAST.sampling_steps,
        "draws": draws,
        "processor_seconds_a_picture": seconds_a_picture(),
        "sha256": {name: weights.load(name).card.sha256 for name in names},
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--stack", action="store_true", help="measure the whole cascade alone")
    asked = parser.parse_args()
    record = json.loads(RECORD.read_text("utf-8")) if RECORD.exists() else {}
    if not asked.stack:
        record |= stages()
    record["stack"] = stack()
    RECORD.write_text(json.dumps(record, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
