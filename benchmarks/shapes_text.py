"""Models of captions: trains them by their recipes, and measures what an adapter's rank is worth.

    python benchmarks/shapes_text.py [judge] [text] [clip] [control] [lora] [ranks] [--out runs]
        [--steps-of 1.0] [--ranks 1 4]

    judge    a classifier of all four attributes
    text     a U-Net with captions, measured by the judge for 1,000 captions at each w
    clip     the contrastive pair, and its score beside the judge's word
    control  a ControlNet of the released U-Net, from edges
    lora     an adapter of it, by which it learns a seventh shape from 24 images
    ranks    that adapter with each of the ranks in --ranks

Each writes shapes_NAME.safetensors and its card into the folder, as ``diffusion-course train``
does; `ranks` writes results/shapes_lora.json. Every part can be run alone: the models that it needs
are the released ones. Without names the first five run; on one GPU they take some minutes, on a
CPU with two cores hours.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import jax
from machine import describe

from diffusion_course import data, weights
from diffusion_course.models import lora
from diffusion_course.training import captioned, recipes

TRAINED = ("judge", "text", "clip", "control", "lora")
RESULTS = Path(__file__).parent / "results" / "shapes_lora.json"


def train(part: str, options) -> None:
    name = f"shapes_{part}"
    steps = max(1, round(recipes.RECIPES[name].steps * options.steps_of))
    path = recipes.train(name, out=options.out, steps=steps if options.steps_of != 1 else None)
    print(path.with_suffix(".json").read_text())


def ranks(options) -> None:
    of = recipes.RECIPES["shapes_lora"]
    of = replace(of, steps=max(1, round(of.steps * options.steps_of)))
    images, base = data.load("shapes", **of.options), weights.load(of.base).model
    rows = [{"rank": 0} | captioned.new_and_old(of, base)]
    for rank in options.ranks:
        recipe, start = replace(of, model=of.model | {"rank": rank}), time.perf_counter()
        adapter = recipes.run(recipe, images, progress=False).ema
        seconds = round(time.perf_counter() - start)
        size = sum(a.nbytes + b.nbytes for a, b in adapter.factors().values())
        measured = captioned.new_and_old(recipe, lora.apply(base, adapter))
        rows.append({"rank": rank, "seconds": seconds, "bytes": size} | measured)
        print(json.dumps(rows[-1]), flush=True)
    about = {
        "machine": describe(),
        "device": jax.devices()[0].device_kind,
        "steps": of.steps,
        "samples": of.samples,
    }
    RESULTS.write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[*TRAINED, "ranks", []])
    parser.add_argument("--out", type=Path, default=Path("runs"))
    parser.add_argument(
        "--steps-of", type=float, default=1.0, help="share of the steps, for a trial"
    )
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 4])
    options = parser.parse_args()
    for part in options.parts or TRAINED:
        ranks(options) if part == "ranks" else train(part, options)


if __name__ == "__main__":
    main()
