"""A stage of a cascade with conditioning augmentation and without: chapter 23's section 3.

    python benchmarks/cascades.py

The released stage shapes_8to16 is trained on small images with noise of a random level. Its twin is
trained in the same way, on the same batches, on small images without noise. Both enlarge true small
images and those that the released base draws. Writes benchmarks/results/cascades.json, which the
chapter shows; the chapter measures a row again. Takes a quarter of an hour on two cores.
"""

import json
from dataclasses import replace
from pathlib import Path

import machine

from diffusion_course import data, weights
from diffusion_course.training import cascaded, recipes

RECORD = Path(__file__).resolve().parent / "results" / "cascades.json"
RECIPE = recipes.RECIPES["shapes_8to16"]
SEEDS = (0, 1, 2)


def stage(highest: float, seed: int):
    """The stage of this seed that is trained with levels up to `highest`."""
    if (highest, seed) == (RECIPE.highest, RECIPE.seed):
        return weights.load("shapes_8to16").model
    train = data.load(RECIPE.dataset, **RECIPE.options)
    return recipes.run(replace(RECIPE, highest=highest, seed=seed), train, progress=False).ema


def main():
    test = data.load(RECIPE.dataset, "test", **RECIPE.options)
    rows = {}
    for seed in SEEDS:
        for name, highest in (("without", 0.0), ("with", RECIPE.highest)):
            # Without augmentation no level but 0 was ever told.
            levels = RECIPE.levels if highest else (0.0,)
            found = cascaded.measure(replace(RECIPE, levels=levels), stage(highest, seed), test)
            rows[f"{name}, seed {seed}"] = found
            print(name, seed, json.dumps(found), flush=True)
    record = {
        "machine": machine.describe(),
        "seeds": list(SEEDS),
        "steps": RECIPE.steps,
        "base_sha256": weights.load(RECIPE.base).card.sha256,
        "stage_sha256": weights.load("shapes_8to16").card.sha256,
        "rows": rows,
    }
    RECORD.write_text(json.dumps(record, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
