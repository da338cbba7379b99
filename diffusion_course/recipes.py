"""How released weights are made: ``diffusion-course train NAME``.

A recipe is data; `train` runs it with the library's own `fit`, measures the result and saves
weights with their card. Chapters train with the same recipes, only shorter.
"""

import platform
import time
from collections.abc import Sequence
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
from diffusion_course.process import Process


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
        # The shape that learns fastest on two cores (benchmarks/time_to_quality.py).
        model={"class": "UNet", "channels": [64], "stem": 2, "num_classes": 10},
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


def run(recipe: Recipe, dataset: Dataset, *, dtype: str = "float32", **options) -> training.Result:
    """Trains a recipe's model on a data set.

    Args:
      recipe: from `RECIPES`, or your own.
      dataset: what to train on.
      dtype: that the network computes in, such as a profile's; its parameters, their average, the
        process and the loss stay float32.
      options: for `train.fit`.
    """
    objective = diffusion_objective(recipe) if recipe.kind else classifier_objective(recipe)
    batches = data.batches(dataset, size=recipe.batch_size, seed=recipe.seed)
    settings = {"ema": recipe.ema, "steps": recipe.steps}
    settings["optimizer"] = training.adam(recipe.learning_rate, recipe.steps)
    model = weights.build(recipe.model, recipe.seed, dtype)
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
      frechet: distance of the first `frechet_samples` to the training set, in the judge's features.
      frechet_floor: the same for equally many unseen real images.
      frechet_samples: how many.
      nearest: median distance to the nearest training image.
      nearest_real: the same for unseen real images: a copying model lies far below it.
      exact_copies: share closer than a tenth of nearest_real.
    """

    w: float
    samples: int
    steps: int
    accuracy: float
    worst_class: float
    frechet: float
    frechet_floor: float
    frechet_samples: int
    nearest: float
    nearest_real: float
    exact_copies: float


def measure(
    model: nnx.Module, p: Process, kind: str, classifier: nnx.Module, train: Dataset, test: Dataset,
    *, scales: Sequence[float], samples: int = 500, steps: int = 50, seed: int = 1,
) -> dict[float, Quality]:  # fmt: skip
    """Draws samples of every class with DDIM at each guidance scale, and measures them.

    Args:
      model: class-conditional, with a null class.
      p: the process that it was trained with.
      kind: what it predicts.
      classifier: the judge, for `judge`.
      train: what the model was trained on.
      test: unseen images of the same kind.
      scales: values of w.
      samples: per scale.
      steps: of DDIM.
      seed: of the samples; the same noise is used at every scale.

    Returns: w -> `Quality`.
    """
    generate = sampling.generator(
        p, kind, samplers.ddim(p), sampling.uniform(steps), train.x.shape[1:]
    )
    labels = np.arange(samples) % train.num_classes
    found = {}
    for w in scales:
        x = np.asarray(generate(model, jax.random.key(seed), samples, labels, w))
        found[w] = measure_samples(x, labels, classifier, train, test, w=w, steps=steps)
    return found


def measure_samples(
    x: np.ndarray, labels: np.ndarray, classifier: nnx.Module, train: Dataset, test: Dataset,
    *, w: float, steps: int,
) -> Quality:  # fmt: skip
    """Measures samples x [N, …] that were asked to be of these labels [N]; notes w and steps."""
    predicted, features = _judge_all(classifier, x)
    # The Fréchet distance depends on the count, so samples and unseen images are equally many.
    n = min(len(x), len(test))
    real = [_judge_all(classifier, images)[1] for images in (train.x, test.x[:n])]
    near = metrics.nearest(x, train.x)[1]
    near_real = float(np.median(metrics.nearest(test.x, train.x)[1]))
    by_class = metrics.per_class_accuracy(predicted, labels, train.num_classes)
    return Quality(
        w=w,
        samples=len(x),
        steps=steps,
        accuracy=metrics.class_accuracy(predicted, labels),
        worst_class=float(np.nanmin(by_class)),
        frechet=metrics.frechet(features[:n], real[0]),
        frechet_floor=metrics.frechet(real[1], real[0]),
        frechet_samples=n,
        nearest=float(np.median(near)),
        nearest_real=near_real,
        exact_copies=float((near < 0.1 * near_real).mean()),
    )


def _judge_all(classifier: nnx.Module, x: np.ndarray, chunk: int = 5000):
    """Classes [N] and features [N, F] of any number of images, a chunk at a time for memory."""
    parts = [judge(classifier, x[i : i + chunk]) for i in range(0, len(x), chunk)]
    return tuple(np.concatenate([np.asarray(part[k]) for part in parts]) for k in (0, 1))


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
    p, classifier = weights.build_process(recipe.process), judge_for(recipe.dataset)
    scales = (0.0, 1.0, 1.5, 2.0, 3.0)
    found = measure(model, p, recipe.kind, classifier, train, test, scales=scales)
    return {f"w={w:g}": asdict(quality) for w, quality in found.items()}


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
            "command": f"diffusion-course train {name}" + (f" --steps {steps}" if steps else ""),
            "minutes": round(minutes, 1),
            "images_per_second": round(result.history.images_per_second),
            "device": f"{jax.devices()[0].device_kind} × {jax.device_count()}",
            "processor": platform.machine(),
            "jax": jax.__version__,
        },
        metrics=measure_recipe(recipe, result.ema, train_set, test_set),
    )
    return checkpoints.save_weights(out, result.ema, card)
