"""What `diagnose` says of every released diffusion model, on real images: it should say nothing.

    python benchmarks/diagnosis.py [NAME …]        six minutes on two cores

It is asked about the patients that take longest, too; the tests run the others. The limits of the
checks lie between these measurements. MNIST has to be on this computer. Names that are given are
measured again, the others kept.
"""

import argparse
import json
import time
from pathlib import Path

import jax.numpy as jnp
import machine
import numpy as np

from diffusion_course import checks, data, diagnose, latent, setup, weights
from diffusion_course.diagnosis import patients
from diffusion_course.models.control import edges
from diffusion_course.training import recipes
from diffusion_course.training.objectives_text import examples

RESULTS = Path(__file__).parent / "results" / "diagnosis.json"
COUNT = 500  # examples that the diagnosis is given
SLOW = ("blur", "out of memory", "control ignored", "guidance too strong")  # patients
MODELS = (
    "toy2d",
    "digits",
    "mnist",
    "mnist_flow",
    "mnist_dit",
    "mnist_latent",
    "mnist_consistency",
    "mnist_meanflow",
    "shapes",
    "shapes_latent",
    "shapes_text",
    "shapes_control",
)


def pairs(name: str):
    """Examples of a model's own kind: images or latents, with labels or captions."""
    recipe = recipes.RECIPES[name]
    options = {"n": 2 * COUNT} if recipe.dataset == "shapes" else {}
    test = data.load(recipe.dataset, "test", **(recipe.options | options))
    few = test.subset(np.linspace(0, len(test) - 1, min(COUNT, len(test))).round().astype(int))
    if isinstance(recipe, recipes.LatentRecipe):
        space = weights.latent_space(recipe.autoencoder)
        return latent.encode_all(space, few.x), few.labels
    if isinstance(recipe, recipes.CaptionRecipe):
        return examples(recipe, few)
    return few.x, few.labels


def ask(name: str) -> dict:
    """The report on one model."""
    released, examples_of_it = weights.load(name), pairs(name)
    jumps = (recipes.ConsistencyRecipe, recipes.MeanFlowRecipe)
    more = {"few_steps": isinstance(recipes.RECIPES[name], jumps)}
    model, sha = released.model, {name: released.card.sha256}
    if name == "shapes_control":
        # It steers the model of captions; that one is what is diagnosed.
        base, steering = weights.load("shapes_text"), released.model
        images = edges(jnp.asarray(examples_of_it[0][:64]))
        more["control"] = (lambda images: steering.steer(base.model, images), images)
        model, sha["shapes_text"] = base.model, base.card.sha256
    start = time.process_time()
    found = diagnose(model, released.process, released.card.kind, examples_of_it, **more)
    print(f"\n{name}, {time.process_time() - start:.0f} s of processor time\n{found}", flush=True)
    return {
        "sha256": sha,
        "findings": list(found.names),
        "measured": found.measured,
        "seconds": round(time.process_time() - start, 1),
    }


def examine(name: str) -> dict:
    """The report on one patient."""
    found = diagnose(**patients.PATIENTS[name].make())
    print(f"\n{name}\n{found}", flush=True)
    return {
        "sha256": {other: weights.load(other).card.sha256 for other in ("toy2d", "digits")},
        "findings": {finding.name: finding.evidence for finding in found.findings},
        "measured": found.measured,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    known = (*MODELS, *SLOW)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(known))
    args = parser.parse_args()
    for name in args.names:
        checks.one_of("NAME", name, known)
    setup("cpu", quiet=True)
    old = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    models, ill = old.get("models", {}), old.get("patients", {})
    for name in args.names or known:
        if name in MODELS:
            models[name] = ask(name)
        else:
            ill[name] = examine(name)
        result = {
            "machine": machine.describe(),
            "examples": COUNT,
            "models": {n: models[n] for n in MODELS if n in models},
            "patients": {n: ill[n] for n in SLOW if n in ill},
        }
        RESULTS.write_text(
            json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
    print(machine.line(result["machine"]))


if __name__ == "__main__":
    main()
