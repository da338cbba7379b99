"""How released weights are made: ``diffusion-course train NAME``.

A recipe is data; `train` runs it with the library's own `fit`, measures the result and saves
weights with their card. Chapters train with the same recipes, only shorter.
"""

import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from diffusion_course import (
    checkpoints,
    data,
    losses,
    metrics,
    samplers,
    sampling,
    weights,
)
from diffusion_course import train as training
from diffusion_course.data import Dataset
from diffusion_course.models.classifier import judge


@dataclass(frozen=True)
class Recipe:
    """Every setting of a training run.

    Attributes:
      dataset: name for `data.load`; the split "train" is used.
      model: description for `weights.build`.
      process: description for `weights.build_process`; empty for a classifier.
      kind: what the model predicts; empty for a classifier.
      steps: number of training steps.
      batch_size: images per step.
      learning_rate: peak of Adam's rate.
      ema: decay of the averaged weights.
      label_dropout: share of labels replaced by the null class.
      seed: of initialisation, batches and noise.
    """

    dataset: str
    model: dict
    process: dict
    kind: str
    steps: int
    batch_size: int = 64
    learning_rate: float = 3e-3
    ema: float = 0.999
    label_dropout: float = 0.1
    seed: int = 0


RECIPES = {
    "digits": Recipe(
        dataset="digits",
        model={"class": "UNet", "channels": [32, 64], "num_classes": 10},
        process={"name": "vp_cosine"},
        kind="v",
        steps=6000,
        learning_rate=6e-3,
    ),
    "digits_classifier": Recipe(
        dataset="digits",
        model={"class": "Classifier", "image_size": 8, "num_classes": 10},
        process={},
        kind="",
        steps=1500,
        learning_rate=2e-3,
    ),
}


def names() -> tuple[str, ...]:
    """The recipes that `train` knows."""
    return tuple(RECIPES)


def diffusion_objective(recipe: Recipe) -> training.Loss:
    """The loss of a class-conditional diffusion model, with label dropout."""
    p, null = weights.build_process(recipe.process), recipe.model["num_classes"]

    def loss(model, x, labels, key):
        key_drop, key_loss = jax.random.split(key)
        labels = losses.drop_labels(key_drop, labels, null, recipe.label_dropout)
        return losses.diffusion_loss(model, p, recipe.kind, x, labels, key_loss)

    return loss


def classifier_objective(recipe: Recipe) -> training.Loss:
    """Cross-entropy with label smoothing .05, on images shifted by up to a pixel and noised.

    Shifts and a little noise keep the judge from depending on single pixels.
    """
    classes = recipe.model["num_classes"]

    def loss(model, x, labels, key):
        key_shift, key_noise = jax.random.split(key)
        shifts = jax.random.randint(key_shift, (x.shape[0], 2), -1, 2)
        padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-1)
        x = jax.vmap(
            lambda image, s: jax.lax.dynamic_slice(image, (s[0] + 1, s[1] + 1, 0), x.shape[1:])
        )(padded, shifts)
        x = x + 0.1 * jax.random.normal(key_noise, x.shape)
        targets = optax.smooth_labels(jax.nn.one_hot(labels, classes), 0.05)
        return optax.softmax_cross_entropy(model(x), targets).mean()

    return loss


def run(recipe: Recipe, dataset: Dataset, **options) -> training.Result:
    """Trains a recipe's model on a data set; options go to `train.fit`."""
    objective = diffusion_objective(recipe) if recipe.kind else classifier_objective(recipe)
    batches = data.batches(dataset, size=recipe.batch_size, seed=recipe.seed)
    settings = {"learning_rate": recipe.learning_rate, "ema": recipe.ema, "steps": recipe.steps}
    model = weights.build(recipe.model, recipe.seed)
    key = jax.random.key(recipe.seed)
    return training.fit(model, objective, batches, key=key, **(settings | options))


@dataclass(frozen=True)
class Quality:
    """Measured quality of conditional samples at one guidance scale.

    Attributes:
      w: guidance scale.
      samples: how many, equally many of each class.
      steps: of DDIM.
      accuracy: share that the judge recognises as the class asked for.
      worst_class: the same share for the class where it is lowest.
      frechet: distance to the training set in the judge's features.
      frechet_floor: the same for the real test set.
      nearest: median distance to the nearest training image.
      nearest_real: the same for the real test set: a copying model lies far below it.
      exact_copies: share closer than a tenth of nearest_real.
    """

    w: float
    samples: int
    steps: int
    accuracy: float
    worst_class: float
    frechet: float
    frechet_floor: float
    nearest: float
    nearest_real: float
    exact_copies: float


def measure(
    generate: Callable, model: nnx.Module, classifier: nnx.Module, train: Dataset, test: Dataset,
    *, w: float, samples: int = 500, steps: int = 50, seed: int = 1,
) -> Quality:  # fmt: skip
    """Draws samples of every class and measures them; `generate` is from `sampling.generator`."""
    labels = np.arange(samples) % train.num_classes
    x = np.asarray(generate(model, jax.random.key(seed), samples, labels, w))
    predicted, features = judge(classifier, x)
    real = [np.asarray(judge(classifier, part.x)[1]) for part in (train, test)]
    near = metrics.nearest(x, train.x)[1]
    near_real = float(np.median(metrics.nearest(test.x, train.x)[1]))
    by_class = metrics.per_class_accuracy(predicted, labels, train.num_classes)
    return Quality(
        w=w,
        samples=samples,
        steps=steps,
        accuracy=metrics.class_accuracy(predicted, labels),
        worst_class=float(by_class.min()),
        frechet=metrics.frechet(features, real[0]),
        frechet_floor=metrics.frechet(real[1], real[0]),
        nearest=float(np.median(near)),
        nearest_real=near_real,
        exact_copies=float((near < 0.1 * near_real).mean()),
    )


def judge_for(dataset: str) -> nnx.Module:
    """The fixed classifier for a data set: the released one, or one trained now by its recipe.

    Args:
      dataset: a name for `data.load`. Where no classifier is released for it, "digits_classifier"'s
        recipe is run on it, with a progress bar.
    """
    name = f"{dataset}_classifier"
    if name in weights.names():
        return weights.load(name).model
    examples = data.load(dataset)
    _, size, _, channels = examples.x.shape
    shape = {"image_size": size, "image_channels": channels, "num_classes": examples.num_classes}
    recipe = RECIPES["digits_classifier"]
    recipe = replace(recipe, dataset=dataset, model=recipe.model | shape)
    return run(recipe, examples).ema


def measure_recipe(recipe: Recipe, model: nnx.Module, train: Dataset, test: Dataset) -> dict:
    """The metrics that go on the card."""
    if not recipe.kind:
        predicted = np.asarray(judge(model, test.x)[0])
        return {"test_accuracy": metrics.class_accuracy(predicted, test.labels), "of": len(test)}
    p = weights.build_process(recipe.process)
    grid = sampling.uniform(50)
    generate = sampling.generator(p, recipe.kind, samplers.ddim(p), grid, train.x.shape[1:])
    classifier = judge_for(recipe.dataset)
    values = (
        measure(generate, model, classifier, train, test, w=w) for w in (0.0, 1.0, 1.5, 2.0, 3.0)
    )
    return {f"w={quality.w:g}": asdict(quality) for quality in values}


def train(name: str, out: str | Path = "runs", steps: int | None = None) -> Path:
    """Runs a recipe, measures the model and saves NAME.safetensors with its card in `out`.

    Args:
      name: see `names`.
      out: folder.
      steps: instead of the recipe's own number, for a trial.

    Returns: the path of the weights. Raises: ValueError for an unknown name.
    """
    if name not in RECIPES:
        raise ValueError(f"name must be one of {', '.join(RECIPES)}, got {name!r}")
    recipe = RECIPES[name] if steps is None else replace(RECIPES[name], steps=steps)
    train_set, test_set = data.load(recipe.dataset), data.load(recipe.dataset, split="test")
    begin = time.perf_counter()
    result = run(recipe, train_set)
    minutes = (time.perf_counter() - begin) / 60
    card = checkpoints.Card(
        name=name,
        model=recipe.model,
        process=recipe.process,
        kind=recipe.kind,
        data=asdict(train_set.card) | {"split": "train", "examples": len(train_set)},
        recipe=asdict(recipe)
        | {
            "command": f"diffusion-course train {name}",
            "minutes": round(minutes, 1),
            "images_per_second": round(result.history.images_per_second),
            "device": f"{jax.devices()[0].device_kind} × {jax.device_count()}",
            "processor": platform.machine(),
            "jax": jax.__version__,
        },
        metrics=measure_recipe(recipe, result.ema, train_set, test_set),
    )
    return checkpoints.save_weights(out, result.ema, card)
