"""Recipes are run and measured: ``diffusion-course train NAME``.

`train` runs a recipe of `RECIPES` with the library's own `fit`, measures the result and
saves weights with their card. Chapters train with the same recipes, only shorter.
"""

import platform
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from diffusion_course import checks, data, distillation, flow_map, latent, sampling, weights
from diffusion_course.data import Dataset, toy2d
from diffusion_course.denoiser import denoiser
from diffusion_course.evaluation import metrics, points, quality, reconstructions
from diffusion_course.models.classifier import fitted
from diffusion_course.models.control import ControlNet
from diffusion_course.training import (
    captioned,
    cascaded,
    clipped,
    distributed,
    loop,
    objectives_text,
    record,
    update,
)
from diffusion_course.training.objectives import (
    autoencoder_objective,
    cascade_objective,
    classifier_objective,
    clip_objective,
    consistency_objective,
    diffusion_objective,
    latent_consistency_objective,
    mean_flow_objective,
)
from diffusion_course.training.objectives_text import (
    adapter_objective,
    attributes_objective,
    contrastive_objective,
    control_objective,
)
from diffusion_course.training.recipe import (
    AutoencoderRecipe,
    CascadeRecipe,
    ClassifierRecipe,
    ClipRecipe,
    ConsistencyRecipe,
    DiffusionRecipe,
    LatentConsistencyRecipe,
    LatentRecipe,
    MeanFlowRecipe,
)
from diffusion_course.training.recipe_text import (
    AdapterRecipe,
    AttributesRecipe,
    CaptionRecipe,
    ContrastiveRecipe,
    ControlRecipe,
    TextRecipe,
)
from diffusion_course.training.released import RECIPES, Recipe, names
from diffusion_course.training.resume import RunFolder
from diffusion_course.weights import card, features

__all__ = [
    "RECIPES",
    "AdapterRecipe",
    "AttributesRecipe",
    "AutoencoderRecipe",
    "CaptionRecipe",
    "CascadeRecipe",
    "ClassifierRecipe",
    "ClipRecipe",
    "ConsistencyRecipe",
    "ContrastiveRecipe",
    "ControlRecipe",
    "DiffusionRecipe",
    "LatentConsistencyRecipe",
    "LatentRecipe",
    "MeanFlowRecipe",
    "Recipe",
    "TextRecipe",
    "adapter_objective",
    "attributes_objective",
    "autoencoder_objective",
    "cascade_objective",
    "classifier_objective",
    "clip_objective",
    "consistency_objective",
    "contrastive_objective",
    "control_objective",
    "diffusion_objective",
    "examples",
    "few_steps",
    "judge_for",
    "latent_consistency_objective",
    "mean_flow_objective",
    "measure",
    "names",
    "prepared",
    "run",
    "train",
]

_KEEP_EVERY = 1000  # steps: of the largest recipe, 20 minutes of work are lost at most


def run(recipe: Recipe, dataset: Dataset, *, dtype: str = "float32", **options) -> record.Result:
    """Trains a recipe's model on a data set.

    With several processes (`distributed.connect`) each of them calls this with the same arguments,
    and trains on rows of every batch of its own.

    Args:
      recipe: from `RECIPES`, or your own; its batch is a multiple of the number of processes.
      dataset: what to train on; of a latent model the images, which are encoded first.
      dtype: that the network computes in, such as a profile's; its parameters, their average, the
        process and the loss stay float32.
      options: for `loop.fit`.

    Raises: ValueError for a data set with more classes than the model, and what `fit` raises.
    """
    classes = recipe.model.get("num_classes")
    if classes is not None and dataset.num_classes > classes:
        raise ValueError(
            f"dataset must have at most the model's {classes} classes, got {dataset.num_classes}"
        )
    state = options.get("state")
    start = 0 if state is None else int(state.step)
    batches = data.batches(
        examples(recipe, dataset),
        size=recipe.batch_size,
        seed=recipe.seed,
        start=start,
        rows=distributed.own_rows(recipe.batch_size),
    )
    model, objective, settings = prepared(recipe, dtype)
    key = jax.random.key(recipe.seed)
    return loop.fit(model, objective, batches, key=key, **(settings | options))


def prepared(recipe: Recipe, dtype: str = "float32") -> tuple[nnx.Module, update.Loss, dict]:
    """What `run` gives to `loop.fit` besides the batches and the key.

    Args:
      recipe: from `RECIPES`, or your own.
      dtype: as in `run`.

    Returns: the model before the first step, its loss, and the other arguments by name: ema, steps,
      optimizer, and the teacher where the loss needs one.
    """
    model, others = _start(recipe, dtype)
    settings = {"ema": recipe.ema, "steps": recipe.steps, "optimizer": _optimizer(recipe)}
    return model, _OBJECTIVES[type(recipe)](recipe), settings | others


def _start(recipe: Recipe, dtype: str) -> tuple[nnx.Module, dict]:
    """The model before the first step, and which other models `fit` needs."""
    model = weights.build(recipe.model, recipe.seed, dtype)
    if isinstance(recipe, ConsistencyRecipe):
        teacher = weights.load(recipe.teacher).model
        if isinstance(recipe, LatentConsistencyRecipe):
            distillation.begin_as(model, teacher)
        else:
            nnx.update(model, nnx.state(teacher, nnx.Param))
        return model, {"teacher": teacher, "averaged": True}
    if isinstance(recipe, AutoencoderRecipe):
        return model, {"teacher": weights.load(recipe.judge).model}
    if isinstance(recipe, ControlRecipe):
        base = weights.load(recipe.base).model
        channels, rngs = recipe.model["control_channels"], nnx.Rngs(recipe.seed)
        # The one that was built is a copy of a network that nobody has trained.
        return ControlNet(base, channels, rngs=rngs), {"teacher": base}
    if isinstance(recipe, AdapterRecipe):
        return model, {"teacher": weights.load(recipe.base).model}
    return model, {}


def examples(recipe: Recipe, dataset: Dataset) -> Dataset | tuple[np.ndarray, np.ndarray]:
    """What is trained on: the data set, its latents, or its images with answers or captions.

    Args:
      recipe: from `RECIPES`, or your own.
      dataset: as `run` is given it.

    Returns: what `data.batches` takes.
    """
    if isinstance(recipe, LatentRecipe | LatentConsistencyRecipe):
        space = weights.latent_space(recipe.autoencoder)
        return latent.encode_all(space, dataset.x), dataset.labels
    if isinstance(recipe, CaptionRecipe):
        return objectives_text.examples(recipe, dataset)
    return dataset


_OBJECTIVES = {
    AutoencoderRecipe: autoencoder_objective,
    CascadeRecipe: cascade_objective,
    ClassifierRecipe: classifier_objective,
    ClipRecipe: clip_objective,
    DiffusionRecipe: diffusion_objective,
    LatentRecipe: diffusion_objective,
    ConsistencyRecipe: consistency_objective,
    LatentConsistencyRecipe: latent_consistency_objective,
    MeanFlowRecipe: mean_flow_objective,
    AttributesRecipe: attributes_objective,
    TextRecipe: diffusion_objective,
    ContrastiveRecipe: contrastive_objective,
    ControlRecipe: control_objective,
    AdapterRecipe: adapter_objective,
}


def _optimizer(recipe: Recipe):
    return update.adam(recipe.learning_rate, recipe.steps)


def judge_for(dataset: str) -> nnx.Module:
    """The fixed classifier for a data set: the released one, or one trained now by its recipe.

    Args:
      dataset: a name for `data.load`. Where no classifier is released for it, "digits_classifier"'s
        recipe is run on it, with a progress bar.

    Returns: the classifier.
    Raises: ValueError for an unknown name, or a data set that holds no images.
    """
    name = f"{dataset}_classifier"
    if name in weights.names():
        return weights.load(name).model
    examples = data.load(dataset)
    if examples.x.ndim != 4:
        raise ValueError(f"dataset must be one of images, got {dataset!r}")
    _, size, _, channels = examples.x.shape
    shape = {"image_size": size, "image_channels": channels, "num_classes": examples.num_classes}
    recipe = RECIPES["digits_classifier"]
    recipe = replace(recipe, dataset=dataset, model=recipe.model | shape)
    return run(recipe, examples).ema


def measure(recipe: Recipe, model: nnx.Module, train: Dataset, test: Dataset) -> dict:
    """The metrics that go on the card of a recipe's model.

    Args:
      recipe: that the model was trained by.
      model: with averaged weights.
      train: what it was trained on.
      test: unseen examples of the same kind.

    Returns: for a classifier the share of unseen images that it recognises; for an autoencoder
      `reconstructions.measure`; for models of captions what `captioned` measures, for a stage of a
      cascade `cascaded`, for models of clips `clipped`; for other images `quality.measure` at
      each of the recipe's scales, or its numbers of evaluations; for points `points.measure`.
    """
    if isinstance(recipe, ClassifierRecipe):
        predicted = quality.judge_all(model, test.x)[0]
        return {"test_accuracy": metrics.class_accuracy(predicted, test.labels), "of": len(test)}
    if isinstance(recipe, AutoencoderRecipe):
        expert = fitted(judge_for(recipe.dataset), train.x.shape[1:])
        return asdict(reconstructions.measure(model, expert, train, test))
    if isinstance(recipe, CaptionRecipe):
        return captioned.measure(recipe, model, test)
    if isinstance(recipe, CascadeRecipe):
        return cascaded.measure(recipe, model, test)
    if isinstance(recipe, ClipRecipe):
        return clipped.measure(recipe, model, test)
    p = weights.build_process(recipe.process)
    if isinstance(recipe, ConsistencyRecipe | MeanFlowRecipe):
        return _measure_few_steps(recipe, model, train, test)
    settings = {
        "scales": recipe.scales,
        "samples": recipe.samples,
        "steps": recipe.sampling_steps,
    }
    if train.x.ndim == 2:
        return points.measure(model, p, recipe.kind, toy2d.MIXTURE, train, test, **settings)
    if isinstance(recipe, LatentRecipe):
        settings["space"] = weights.latent_space(recipe.autoencoder)
    expert = fitted(judge_for(recipe.dataset), train.x.shape[1:])
    found = quality.measure(model, p, recipe.kind, expert, train, test, **settings)
    return {f"w={w:g}": asdict(measured) for w, measured in found.items()}


def few_steps(recipe: ConsistencyRecipe | MeanFlowRecipe, evaluations: int) -> Callable:
    """Compiles the generation with a few-step model, on the uniform grid of times.

    Args:
      recipe: that the model was trained by.
      evaluations: of the network for each example, at least 1.

    Returns: ``generate(model, key, start, labels) -> x0``, with standard normal starts [n, …] and
      labels [n]. A consistency model draws new noise between its evaluations. A latent one makes
      latents, and takes w as one more argument, by default the recipe's.
    """
    p, times = weights.build_process(recipe.process), sampling.uniform(evaluations)
    told = isinstance(recipe, LatentConsistencyRecipe)

    @jax.jit
    def generate(model, key, start, labels, w=None):
        if w is not None and not told:
            raise ValueError(f"w must be None: a {type(recipe).__name__} is told no scale")
        if isinstance(recipe, MeanFlowRecipe):
            jump = flow_map.network_jump(model, p, recipe.kind, labels)
            return sampling.sample(flow_map.jumps(p), jump, start, times, key)[0]
        if told:
            w = recipe.guidance if w is None else w
            model = distillation.with_scale(model, w, recipe.most)
        D = denoiser(model, p, recipe.kind, labels)
        return sampling.sample(flow_map.consistency(p), D, start, times, key)[0]

    return generate


def _measure_few_steps(recipe, model: nnx.Module, train: Dataset, test: Dataset) -> dict:
    latents = isinstance(recipe, LatentConsistencyRecipe)
    space = weights.latent_space(recipe.autoencoder) if latents else None
    shape = train.x.shape[1:]
    expert = fitted(judge_for(recipe.dataset), shape)
    real = quality.reference(expert, train, test, recipe.samples)
    labels = np.arange(recipe.samples) % train.num_classes
    key_start, key = jax.random.split(jax.random.key(1))
    inside = space.shape(shape) if latents else shape
    start = jax.random.normal(key_start, (recipe.samples, *inside))
    found = {}
    for n in recipe.evaluations:
        x = np.asarray(few_steps(recipe, n)(model, key, start, labels))
        x = latent.decode_all(space, x) if latents else x
        about = {"w": recipe.guidance, "steps": n}
        measured = quality.compare(x, labels, expert, real, train, **about)
        found[f"{n} evaluation{'s' if n > 1 else ''}"] = asdict(measured)
    return found


def train(
    name: str, out: str | Path = "runs", steps: int | None = None, resume: bool = False
) -> Path:
    """Runs a recipe, measures the model and saves NAME.safetensors with its card in `out`.

    The state is kept in the folder NAME.state of `out` after every thousand steps, until the
    weights are saved. A classifier's features of the training set are released with it. With
    several processes each of them calls this and measures; number 0 alone writes.

    Args:
      name: see `names`.
      out: folder.
      steps: instead of the recipe's own number, for a trial.
      resume: go on from the kept state of an interrupted run of the same recipe.

    Returns: the path of the weights.
    Raises: ValueError for an unknown name, a bad number of steps, or a batch that the processes
      cannot share; ResumeError for a kept state
      without resume, and for resume without one, with a damaged one or with that of another recipe.
    """
    distributed.meet()
    checks.one_of("name", name, RECIPES)
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
        data=asdict(train_set.card) | {"split": "train", "examples": len(train_set)},
        recipe=asdict(recipe)
        | {
            "command": f"diffusion-course train {name}" + (f" --steps {steps}" if steps else ""),
            "minutes": round(folder.minutes, 1),
            "images_per_second": round(recipe.steps * recipe.batch_size / folder.minutes / 60),
            "device": f"{jax.devices()[0].device_kind} × {jax.device_count()}",
            "processor": platform.machine(),
            "jax": jax.__version__,
        }
        | _of_others(recipe),
        metrics=measure(recipe, ema, train_set, test_set),
    )
    if hasattr(recipe, "process"):
        described = replace(described, process=recipe.process, kind=recipe.kind)
    path = distributed.from_first(lambda: _release(out, ema, described, recipe, train_set))
    folder.remove()
    return path


def _release(out: Path, ema: nnx.Module, described: card.Card, recipe: Recipe, train: Dataset):
    """Writes weights and their card; of a classifier also what it sees in the training set."""
    path = card.save_weights(out, ema, described)
    if isinstance(recipe, ClassifierRecipe):
        moments = metrics.moments(quality.judge_all(ema, train.x)[1])
        features.save(out, recipe.dataset, moments, card.load_card(path))
    return path


def _of_others(recipe: Recipe) -> dict:
    """Which weights a recipe relies on: another training gives other ones the same name."""
    others = ("teacher", "autoencoder", "judge", "painter", "base")
    named = {other: getattr(recipe, other) for other in others if hasattr(recipe, other)}
    return {f"{key}_sha256": weights.load(name).card.sha256 for key, name in named.items()}


def _train_and_keep(recipe: Recipe, dataset: Dataset, folder: RunFolder) -> nnx.Module:
    """Runs what is left of a recipe, keeping the state; returns the model of averaged weights."""
    model = weights.build(recipe.model, recipe.seed)
    state = folder.restore(update.create_state(model, _optimizer(recipe)))
    if state is not None and int(state.step) == recipe.steps:
        return update.merge(model, state.ema)
    save = loop.Save(_KEEP_EVERY, folder.save)
    return run(recipe, dataset, save=save, state=state).ema
