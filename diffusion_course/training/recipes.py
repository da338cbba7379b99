"""How released weights are made: ``diffusion-course train NAME``.

A recipe is data; `train` runs it with the library's own `fit`, measures the result and saves
weights with their card. Chapters train with the same recipes, only shorter.
"""

import platform
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from diffusion_course import data, denoiser, losses, samplers, sampling, weights
from diffusion_course.data import Dataset, toy2d
from diffusion_course.evaluation import metrics, quality
from diffusion_course.process import add_noise
from diffusion_course.training import loop, update
from diffusion_course.training.resume import RunFolder
from diffusion_course.weights import card, features

_KEEP_EVERY = 1000  # steps


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
      options: further arguments for `data.load`.
      scales: guidance scales at which a diffusion model is measured.
      samples: that are measured at each scale.
      sampling_steps: of DDIM for them.
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
    options: dict = field(default_factory=dict)
    scales: tuple[float, ...] = (0.0, 1.0, 1.5, 2.0, 3.0)
    samples: int = 500
    sampling_steps: int = 50


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
    "mnist": Recipe(
        dataset="mnist",
        model={"class": "UNet", "channels": [32, 64], "stem": 2, "num_classes": 10},
        process={"name": "vp_cosine"},
        kind="v",
        steps=10_000,
        learning_rate=3e-3,
        scales=(0.0, 1.0, 1.5, 2.0, 3.0, 5.0),
        samples=5000,
        sampling_steps=25,
    ),
    "mnist_classifier": Recipe(
        dataset="mnist",
        model={"class": "Classifier", "image_size": 28, "num_classes": 10, "width": 16},
        process={},
        kind="",
        steps=6000,
        learning_rate=2e-3,
    ),
    "shapes": Recipe(
        dataset="shapes",
        model={
            "class": "UNet",
            "image_channels": 3,
            "channels": [32, 64],
            "stem": 2,
            "num_classes": 6,
        },
        process={"name": "vp_cosine"},
        kind="v",
        steps=4000,
        options={"n": 30_000, "size": 24},
    ),
    "shapes_classifier": Recipe(
        dataset="shapes",
        model={
            "class": "Classifier",
            "image_channels": 3,
            "image_size": 24,
            "num_classes": 6,
            "width": 16,
        },
        process={},
        kind="",
        steps=2000,
        learning_rate=2e-3,
        options={"n": 30_000, "size": 24},
    ),
    # Points whose exact denoiser is known: what a chapter measures, it can compare with the truth.
    "toy2d": Recipe(
        dataset="toy2d",
        model={"class": "MLP", "num_classes": 3},
        process={"name": "vp_cosine"},
        kind="v",
        steps=12000,
        batch_size=512,
        learning_rate=2e-3,
        options={"kind": "mixture", "n": 100_000},
        scales=(0.0, 1.0),
        samples=20_000,
    ),
}


def names() -> tuple[str, ...]:
    """The recipes that `train` knows."""
    return tuple(RECIPES)


def diffusion_objective(recipe: Recipe) -> update.Loss:
    """The loss of a class-conditional diffusion model, with label dropout."""
    p, null = weights.build_process(recipe.process), recipe.model["num_classes"]

    def loss(model, x, labels, key):
        key_drop, key_loss = jax.random.split(key)
        labels = losses.drop_labels(key_drop, labels, null, recipe.label_dropout)
        return losses.diffusion_loss(model, p, recipe.kind, x, labels, key_loss)

    return loss


def classifier_objective(recipe: Recipe) -> update.Loss:
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


def run(recipe: Recipe, dataset: Dataset, *, dtype: str = "float32", **options) -> loop.Result:
    """Trains a recipe's model on a data set.

    Args:
      recipe: from `RECIPES`, or your own.
      dataset: what to train on.
      dtype: that the network computes in, such as a profile's; its parameters, their average, the
        process and the loss stay float32.
      options: for `train.fit`.
    """
    objective = diffusion_objective(recipe) if recipe.kind else classifier_objective(recipe)
    state = options.get("state")
    start = 0 if state is None else int(state.step)
    batches = data.batches(dataset, size=recipe.batch_size, seed=recipe.seed, start=start)
    settings = {"ema": recipe.ema, "steps": recipe.steps, "optimizer": _optimizer(recipe)}
    model = weights.build(recipe.model, recipe.seed, dtype)
    key = jax.random.key(recipe.seed)
    return loop.fit(model, objective, batches, key=key, **(settings | options))


def _optimizer(recipe: Recipe) -> optax.GradientTransformation:
    return update.adam(recipe.learning_rate, recipe.steps)


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


def measure_images(recipe: Recipe, model: nnx.Module, train: Dataset, test: Dataset) -> dict:
    """`quality.measure` for a recipe's own scales: {"w=1": {…}, …}."""
    p, classifier = weights.build_process(recipe.process), judge_for(recipe.dataset)
    found = quality.measure(
        model, p, recipe.kind, classifier, train, test,
        scales=recipe.scales, samples=recipe.samples, steps=recipe.sampling_steps,
    )  # fmt: skip
    return {f"w={w:g}": asdict(measured) for w, measured in found.items()}


def measure_points(recipe: Recipe, model: nnx.Module, train: Dataset, test: Dataset) -> dict:
    """Samples of the mixture against fresh points, and the denoiser against the exact one."""
    p = weights.build_process(recipe.process)
    times = sampling.uniform(recipe.sampling_steps)
    generate = sampling.generator(p, recipe.kind, samplers.ddim(p), times, train.x.shape[1:])
    oracle = denoiser.gaussian_mixture(p, *toy2d.MIXTURE)
    n = min(recipe.samples, len(test))
    found = {"samples": n, "frechet_floor": metrics.frechet(test.x[:n], train.x)}
    for w in recipe.scales:
        x = generate(model, jax.random.key(1), n, test.labels[:n], w)
        found[f"w={w:g}"] = {"frechet": metrics.frechet(x, train.x)}
    eps = jax.random.normal(jax.random.key(2), (n, 2))
    D = denoiser.denoiser(model, p, recipe.kind)
    for t in (0.1, 0.3, 0.5, 0.7, 0.9):
        x_t = add_noise(p, test.x[:n], eps, t)
        error = jnp.mean((D(x_t, t) - oracle.denoise(x_t, t)) ** 2)
        found[f"squared distance to the exact denoiser, t={t}"] = float(error)
    return found


def measure_classifier(recipe: Recipe, model: nnx.Module, train: Dataset, test: Dataset) -> dict:
    """Share of unseen images that it recognises."""
    predicted = quality.judge_all(model, test.x)[0]
    return {"test_accuracy": metrics.class_accuracy(predicted, test.labels), "of": len(test)}


def measure_recipe(recipe: Recipe, model: nnx.Module, train: Dataset, test: Dataset) -> dict:
    """The metrics that go on the card."""
    if not recipe.kind:
        return measure_classifier(recipe, model, train, test)
    measure = measure_points if train.x.ndim == 2 else measure_images
    return measure(recipe, model, train, test)


def train(
    name: str, out: str | Path = "runs", steps: int | None = None, resume: bool = False
) -> Path:
    """Runs a recipe, measures the model and saves NAME.safetensors with its card in `out`.

    The state is kept in the folder NAME.state of `out` after every thousand steps, until the
    weights are saved. A classifier's features of the training set are released with it.

    Args:
      name: see `names`.
      out: folder.
      steps: instead of the recipe's own number, for a trial.
      resume: go on from the kept state of an interrupted run of the same recipe.

    Returns: the path of the weights.
    Raises: ValueError for an unknown name; ResumeError for a kept state without resume, and for
      resume without one or with that of another recipe.
    """
    if name not in RECIPES:
        raise ValueError(f"name must be one of {', '.join(RECIPES)}, got {name!r}")
    recipe = RECIPES[name] if steps is None else replace(RECIPES[name], steps=steps)
    out = Path(out)
    folder = RunFolder(out / f"{name}.state", asdict(recipe), resume)
    train_set, test_set = (
        data.load(recipe.dataset, split=split, **recipe.options) for split in ("train", "test")
    )
    ema = _train_and_keep(recipe, train_set, folder)
    described = card.Card(
        name=name,
        model=recipe.model,
        process=recipe.process,
        kind=recipe.kind,
        data=asdict(train_set.card) | {"split": "train", "examples": len(train_set)},
        recipe=asdict(recipe)
        | {
            "command": f"diffusion-course train {name}" + (f" --steps {steps}" if steps else ""),
            "minutes": round(folder.minutes, 1),
            "images_per_second": round(recipe.steps * recipe.batch_size / folder.minutes / 60),
            "device": f"{jax.devices()[0].device_kind} × {jax.device_count()}",
            "processor": platform.machine(),
            "jax": jax.__version__,
        },
        metrics=measure_recipe(recipe, ema, train_set, test_set),
    )
    path = card.save_weights(out, ema, described)
    if not recipe.kind:
        moments = metrics.moments(quality.judge_all(ema, train_set.x)[1])
        features.save(out, recipe.dataset, moments, card.load_card(path))
    folder.remove()
    return path


def _train_and_keep(recipe: Recipe, dataset: Dataset, folder: RunFolder) -> nnx.Module:
    """Runs what is left of a recipe, keeping the state; returns the model of averaged weights."""
    model = weights.build(recipe.model, recipe.seed)
    state = folder.restore(update.create_state(model, _optimizer(recipe)))
    if state is not None and int(state.step) == recipe.steps:
        return update.merge(model, state.ema)
    save = loop.Save(_KEEP_EVERY, folder.save)
    return run(recipe, dataset, save=save, state=state).ema
