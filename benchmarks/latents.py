"""Pixels against latents: quality, training and sampling of both, on the same images.

    python benchmarks/latents.py train [--folder runs/latents]
    python benchmarks/latents.py measure [--folder runs/latents] [--out …/results/latents.json]
    python benchmarks/latents.py time [--folder runs/latents] [--out …/results/latents.json]

`train` makes the pixel model of the 32×32 shapes, by the recipe "shapes" but for the size of its
images: a minute on a GPU, two hours on two cores. MNIST's pixel model and the latent models are
released weights. `measure` draws as many samples of each model at the same guidance scales with
DDIM, decodes those of latents, and has the released classifier judge both. The time for the
samples, with the decoder's, is the median of several runs that take turns; what a training step
costs is counted by the compiler. `time` takes the times of a recording again, and leaves the rest.

The training of the autoencoder stands in a column of its own: it is spent once, for every model
that is later trained in its latents.
"""

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path
from time import perf_counter

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from machine import describe

from diffusion_course import data, latent, samplers, sampling, weights
from diffusion_course.evaluation import quality
from diffusion_course.models.classifier import fitted
from diffusion_course.training import recipes
from diffusion_course.weights import card

SCALES, SAMPLES, STEPS = (1.0, 1.5, 2.0), 1000, 50
TIMED, RUNS, W = 100, 5, 2.0
PIXELS = {
    "shapes": replace(recipes.RECIPES["shapes"], options=recipes.RECIPES["shapes_latent"].options),
    "mnist": recipes.RECIPES["mnist"],
}


def train(folder: Path) -> None:
    """Trains the pixel model of the 32×32 shapes and saves it in the folder."""
    recipe = PIXELS["shapes"]
    images = data.load(recipe.dataset, **recipe.options)
    run = recipes.run(recipe, images, progress=False)
    about = asdict(images.card) | {"examples": len(images)}
    made = card.Card(
        "shapes_pixels", recipe.model, about, asdict(recipe),
        process=recipe.process, kind=recipe.kind,
    )  # fmt: skip
    print(f"wrote {card.save_weights(folder, run.ema, made)} in {run.history.seconds:.0f} s")


def per_image(recipe, shape: tuple[int, ...]) -> float:
    """Operations of one training step for each image, as the compiler counts them."""
    model = weights.build(recipe.model)
    objective = recipes._OBJECTIVES[type(recipe)](recipe)
    fixed = {}
    if isinstance(recipe, recipes.AutoencoderRecipe):
        fixed["teacher"] = weights.load(recipe.judge).model
    graph, params = nnx.split(model)
    x, labels = jnp.zeros((recipe.batch_size, *shape)), jnp.zeros(recipe.batch_size, int)

    def step(params, x, labels, key):
        return jax.grad(lambda p: objective(nnx.merge(graph, p), x, labels, key, **fixed))(params)

    compiled = jax.jit(step).lower(params, x, labels, jax.random.key(0)).compile()
    return compiled.cost_analysis()["flops"] / recipe.batch_size


def training(recipe, shape: tuple[int, ...]) -> dict:
    """Images of a recipe's training, and its operations."""
    images, each = recipe.steps * recipe.batch_size, per_image(recipe, shape)
    return {"images": images, "operations_per_image": each, "operations": images * each}


def sampler_of(released, space, shape):
    """``draw(key, n, labels, w)``: samples of the model as images."""
    inside = shape if space is None else space.shape(shape)
    ddim = samplers.ddim(released.process)
    generate = sampling.generator(
        released.process, released.card.kind, ddim, sampling.uniform(STEPS), inside
    )

    def draw(key, n, labels, w):
        z = np.asarray(generate(released.model, key, n, labels, w))
        return z if space is None else latent.decode_all(space, z)

    return draw


def seconds(draws: dict, classes: int) -> dict[str, float]:
    """Median time of each for `TIMED` guided samples; they take turns, the first is not counted."""
    labels, taken = np.arange(TIMED) % classes, {name: [] for name in draws}
    for turn in range(RUNS + 1):
        for name, draw in draws.items():
            begin = perf_counter()
            draw(jax.random.key(turn), TIMED, labels, W)
            taken[name].append(perf_counter() - begin)
    return {name: float(np.median(times[1:])) for name, times in taken.items()}


def rivals(name: str, folder: Path) -> tuple[dict, dict]:
    """Both models of one data set, and the spaces that they work in."""
    models = {
        "pixels": weights.load("shapes_pixels", folder) if name == "shapes" else weights.load(name),
        "latents": weights.load(f"{name}_latent"),
    }
    space = weights.latent_space(recipes.RECIPES[f"{name}_latent"].autoencoder)
    return models, {"pixels": None, "latents": space}


def timed(models: dict, spaces: dict, shape: tuple[int, ...], classes: int) -> dict:
    """What `seconds` finds, as entries of the rows."""
    draws = {kind: sampler_of(models[kind], spaces[kind], shape) for kind in models}
    return {
        kind: {"seconds": taken, "samples_per_second": TIMED / taken}
        for kind, taken in seconds(draws, classes).items()
    }


def again(name: str, rows: dict, folder: Path) -> dict:
    """A recording's rows with new times."""
    test_set = data.load(name, "test", **recipes.RECIPES[f"{name}_latent"].options)
    new = timed(*rivals(name, folder), test_set.x.shape[1:], test_set.num_classes)
    rows = rows | {kind: rows[kind] | new[kind] for kind in new}
    return rows | {"ratios": ratios(rows)}


def compare(name: str, folder: Path) -> dict:
    """All that is measured on one data set."""
    pixels, latents = PIXELS[name], recipes.RECIPES[f"{name}_latent"]
    coder = recipes.RECIPES[latents.autoencoder]
    train_set, test_set = (data.load(name, split, **latents.options) for split in ("train", "test"))
    models, spaces = rivals(name, folder)
    shape, space = train_set.x.shape[1:], spaces["latents"]
    expert = fitted(recipes.judge_for(name), shape)
    rows = {}
    for kind, found in models.items():
        measured = quality.measure(
            found.model, found.process, found.card.kind, expert, train_set, test_set,
            scales=SCALES, samples=SAMPLES, steps=STEPS, space=spaces[kind],
        )  # fmt: skip
        rows[kind] = {"quality": {f"w={w:g}": asdict(q) for w, q in measured.items()}}
    for kind, times in timed(models, spaces, shape, train_set.num_classes).items():
        rows[kind] |= times
    rows["pixels"]["training"] = training(pixels, shape)
    rows["latents"]["training"] = training(latents, space.shape(shape))
    rows["latents"]["training_of_the_autoencoder"] = training(coder, shape)
    return rows | {"ratios": ratios(rows)}


def ratios(rows: dict) -> dict:
    """Latents to pixels: what the bar of the chapter is about."""
    pixels, latents = rows["pixels"], rows["latents"]
    operations = latents["training"]["operations"] / pixels["training"]["operations"]
    coder = latents["training_of_the_autoencoder"]["operations"]
    return {
        "accuracy": {
            w: latents["quality"][w]["accuracy"] / pixels["quality"][w]["accuracy"]
            for w in pixels["quality"]
        },
        "training": operations,
        "training_with_the_autoencoder": operations + coder / pixels["training"]["operations"],
        "sampling_time": latents["seconds"] / pixels["seconds"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["train", "measure", "time"])
    parser.add_argument("names", nargs="*", default=["shapes", "mnist"], metavar="NAME")
    parser.add_argument("--folder", type=Path, default=Path("runs/latents"))
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / "latents.json"
    )
    given = parser.parse_args()
    if given.what == "train":
        train(given.folder)
        return
    if given.what == "time":
        document = json.loads(given.out.read_text(encoding="utf-8"))
        found = {name: again(name, document[name], given.folder) for name in given.names}
        document |= found | {"machine_of_the_times": describe()}
        write(given.out, document)
        return
    found = {name: compare(name, given.folder) for name in given.names}
    settings = {"scales": SCALES, "samples": SAMPLES, "steps": STEPS, "timed": TIMED, "w": W}
    document = {"machine": describe(), "settings": settings} | found
    write(given.out, document)


def write(out: Path, document: dict) -> None:
    out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    for name in PIXELS.keys() & document.keys():
        print(name, json.dumps(document[name]["ratios"], indent=1))


if __name__ == "__main__":
    main()
