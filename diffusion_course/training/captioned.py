"""What the recipes of captions measure: whether a caption is obeyed."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from diffusion_course import samplers, sampling, weights
from diffusion_course.data import Dataset, shapes
from diffusion_course.denoiser import denoiser
from diffusion_course.guidance import classifier_free
from diffusion_course.models import control, lora
from diffusion_course.models.classifier import AttributeClassifier
from diffusion_course.training.recipe_text import (
    AdapterRecipe,
    AttributesRecipe,
    CaptionRecipe,
    ContrastiveRecipe,
    ControlRecipe,
    TextRecipe,
)
from diffusion_course.training.released import RECIPES

_CHUNK = 500  # images that are drawn or judged in one call


def judged(expert: AttributeClassifier, x: np.ndarray) -> np.ndarray:
    """What a judge says of images [N, H, W, C]: places in `shapes.ATTRIBUTES`, [N, 4]."""
    each = jax.jit(lambda expert, x: expert.judge(x))
    parts = [each(expert, x[i : i + _CHUNK]) for i in range(0, len(x), _CHUNK)]
    return np.concatenate(parts)


def shares(right: np.ndarray) -> dict[str, float]:
    """How often each attribute is right, and all of them at once.

    Args:
      right: booleans [N, 4].

    >>> shares(np.array([[True, True, True, True], [True, False, True, True]]))
    {'shape': 1.0, 'colour': 0.5, 'size': 1.0, 'position': 1.0, 'all': 0.5}
    """
    found = dict(zip(shapes.ATTRIBUTES, right.mean(axis=0).tolist(), strict=True))
    return found | {"all": float(right.all(axis=1).mean())}


def nearest_drawing(x: np.ndarray) -> np.ndarray:
    """The shape, one of the six or "heart", whose drawings come nearest to each image: names [N].

    Nothing is trained: of 7,000 drawings of `shapes.load` it is the one whose silhouette agrees
    best, wherever it stands and however large it is.

    Args:
      x: images [N, H, H, 3].

    >>> nearest_drawing(shapes.load("test", n=2, size=16, seed=3, new=True).x).tolist()
    ['heart', 'heart']
    """
    sets = [
        shapes.load("train", n=n, size=x.shape[1], new=new)
        for n, new in ((6000, False), (1000, True))
    ]
    names = np.concatenate([np.array(part.label_names)[part.labels] for part in sets])
    drawn, asked = (_silhouettes(part) for part in (np.concatenate([s.x for s in sets]), x))
    both = asked @ drawn.T
    either = asked.sum(axis=1)[:, None] + drawn.sum(axis=1) - both
    return names[(both / np.maximum(either, 1)).argmax(axis=1)]


def _silhouettes(x: np.ndarray) -> np.ndarray:
    return np.asarray(control.silhouettes(x)).reshape(len(x), -1)


def painter(
    recipe: TextRecipe | AdapterRecipe, size: int
) -> Callable[[nnx.Module, np.ndarray, float], np.ndarray]:
    """Compiles the drawing of captions, with DDIM in as many steps as the recipe says.

    Args:
      recipe: of the model that draws.
      size: height and width of the images.

    Returns: ``draw(model, captions, w) -> images``, of captions [N, L] and the guidance scale w. It
      draws the same noise at every call.
    """
    p = weights.build_process(recipe.process)
    times = sampling.uniform(recipe.sampling_steps)
    generate = sampling.generator(p, recipe.kind, samplers.ddim(p), times, (size, size, 3))

    def draw(model, captions, w):
        parts = [captions[i : i + _CHUNK] for i in range(0, len(captions), _CHUNK)]
        keys = jax.random.split(jax.random.key(1), len(parts))
        drawn = [generate(model, k, len(c), c, w) for k, c in zip(keys, parts, strict=True)]
        return np.concatenate(drawn)

    return draw


def measure(recipe: CaptionRecipe, model: nnx.Module, test: Dataset) -> dict:
    """The metrics that go on the card of a recipe's model, by the function below for its kind.

    Args:
      recipe: that the model was trained by.
      model: with averaged weights.
      test: unseen images.
    """
    return _MEASURES[type(recipe)](recipe, model, test)


def measure_judge(recipe: AttributesRecipe, model: AttributeClassifier, test: Dataset) -> dict:
    """How often a judge is right about unseen images.

    Args:
      recipe: its samples is used.
      model: the judge.
      test: unseen images, at least as many.
    """
    some = test.subset(np.arange(recipe.samples))
    return {"of": len(some)} | shares(judged(model, some.x) == shapes.answers(some))


def measure_text(recipe: TextRecipe, model: nnx.Module, test: Dataset) -> dict:
    """How often a model obeys the captions of unseen images, at each guidance scale.

    Args:
      recipe: that the model was trained by.
      model: a diffusion model with captions.
      test: unseen images, at least as many as the recipe's samples.

    Returns: "w=1" and so on -> the shares of samples with each attribute and with all of them, and
      the latter for combinations that were seen in training and for those that were held out.
    """
    some = test.subset(np.arange(recipe.samples))
    wanted, held = shapes.answers(some), shapes.held_out(some, recipe.held_out)
    captions = shapes.LANGUAGE(some.attributes["caption"].tolist())
    draw, expert = painter(recipe, some.x.shape[1]), weights.load(recipe.judge).model
    found = {}
    for w in recipe.scales:
        right = judged(expert, draw(model, captions, w)) == wanted
        about = {"w": w, "samples": len(some), "steps": recipe.sampling_steps}
        apart = {"seen": right[~held], "held_out": right[held]}
        found[f"w={w:g}"] = (
            about
            | shares(right)
            | {name: float(part.all(axis=1).mean()) for name, part in apart.items()}
            | {"held_out_samples": int(held.sum())}
        )
    return found


def measure_contrastive(recipe: ContrastiveRecipe, model: nnx.Module, test: Dataset) -> dict:
    """How well a pair finds captions, and what it says of a painter's samples beside the judge.

    Args:
      recipe: that the pair was trained by; it is measured with the samples and at the scales of
        its painter's recipe.
      model: the pair.
      test: unseen images, at least as many as the painter's samples.

    Returns: the share of unseen images whose own caption scores highest among those of all of
      them; the mean score of these images; and at each scale the mean score of the samples, with
      the share in which the judge finds all attributes right.
    """
    by = RECIPES[recipe.painter]
    some = test.subset(np.arange(by.samples))
    wanted, captions = shapes.answers(some), shapes.LANGUAGE(some.attributes["caption"].tolist())
    logits = np.asarray(jax.jit(lambda m, x, c: m(x, c))(model, some.x, captions))
    own = (captions[logits.argmax(axis=1)] == captions).all(axis=1)
    score = jax.jit(lambda m, x, c: m.score(x, c).mean())
    found = {
        "captions": len(some),
        "caption_found": float(own.mean()),
        "score_of_real_images": float(score(model, some.x, captions)),
    }
    draw, expert = painter(by, some.x.shape[1]), weights.load(by.judge).model
    artist = weights.load(recipe.painter).model
    for w in by.scales:
        x = draw(artist, captions, w)
        right = judged(expert, x) == wanted
        about = {"w": w, "samples": len(some), "steps": by.sampling_steps}
        scored = {"score": float(score(model, x, captions)), "all": shares(right)["all"]}
        found[f"w={w:g}"] = about | scored
    return found


def measure_control(recipe: ControlRecipe, model: control.ControlNet, test: Dataset) -> dict:
    """How far samples have the map that was asked for, at each strength and guidance scale.

    Each sample is asked for the map, such as the edges, and the caption of one unseen image. At the
    scale 0 the caption counts for nothing.

    Args:
      recipe: that the control was trained by.
      model: the control.
      test: unseen images, at least as many as the recipe's samples.

    Returns: "strength=1, w=2" and so on -> the mean of `control.agreement` between the maps of the
      samples and those asked for, and the shares of samples with each attribute of the caption.
    """
    some = test.subset(np.arange(recipe.samples))
    seen = control.MAPS[recipe.map]
    wanted, maps = shapes.answers(some), np.asarray(seen(some.x))
    captions = shapes.LANGUAGE(some.attributes["caption"].tolist())
    base, expert = weights.load(recipe.base).model, weights.load(recipe.judge).model
    p, times = weights.build_process(recipe.process), sampling.uniform(recipe.sampling_steps)

    @jax.jit
    def draw(base, model, key, captions, maps, strength, w):
        steered = model.steer(base, maps, strength)
        told, untold = (
            denoiser(steered, p, recipe.kind, c)
            for c in (captions, jnp.full_like(captions, base.null_label))
        )
        noise = jax.random.normal(key, (*maps.shape[:3], some.x.shape[-1]))
        D = classifier_free(told, untold, w)
        return sampling.sample(samplers.ddim(p), D, noise, times, key)[0]

    found = {}
    for w in recipe.scales:
        for strength in recipe.strengths:
            parts = range(0, len(some), _CHUNK)
            keys = jax.random.split(jax.random.key(1), len(parts))
            x = np.concatenate(
                [
                    draw(base, model, key, captions[i : i + _CHUNK], maps[i : i + _CHUNK], *at)
                    for i, key, at in zip(parts, keys, [(strength, w)] * len(parts), strict=True)
                ]
            )
            agreed = float(control.agreement(seen(x), maps).mean())
            about = {"strength": strength, "w": w, "samples": len(x), "steps": len(times) - 1}
            right = shares(judged(expert, x) == wanted)
            found[f"strength={strength:g}, w={w:g}"] = about | {"agreement": agreed} | right
    return found


def measure_adapter(recipe: AdapterRecipe, model: lora.Adapter, _: Dataset) -> dict:
    """What a model draws with an adapter and without it, as `new_and_old` measures it.

    Args:
      recipe: that the adapter was trained by.
      model: the adapter.
    """
    base = weights.load(recipe.base).model
    return {
        "samples": recipe.samples,
        "w": recipe.guidance,
        "steps": recipe.sampling_steps,
        "bytes": sum(a.nbytes + b.nbytes for a, b in model.factors().values()),
        "with it": new_and_old(recipe, lora.apply(base, model)),
        "without it": new_and_old(recipe, base),
    }


def new_and_old(recipe: AdapterRecipe, model: nnx.Module) -> dict:
    """How often a model draws the new shape as asked for, and how often the six old ones.

    Args:
      recipe: of an adapter; its judge, guidance, samples and steps are used.
      model: a diffusion model with captions.

    Returns: "new" and "old" -> the shares of samples with each attribute of their caption, and with
      all of them. The new shape is told by `nearest_drawing`, since the judge does not know it.
    """
    sets = {
        name: shapes.load("test", **(recipe.options | {"n": recipe.samples, "new": name == "new"}))
        for name in ("new", "old")
    }
    expert, draw = weights.load(recipe.judge).model, painter(recipe, sets["new"].x.shape[1])
    found = {}
    for name, wanted in sets.items():
        captions = shapes.LANGUAGE(wanted.attributes["caption"].tolist())
        x = draw(model, captions, recipe.guidance)
        found[name] = shares(_right(expert, x, wanted))
    return found


def _right(expert: AttributeClassifier, x: np.ndarray, wanted: Dataset) -> np.ndarray:
    """Which attributes of images are those of a data set, of hearts too: booleans [N, 4]."""
    said, right = judged(expert, x), []
    for column, (name, values) in zip(said.T, shapes.ATTRIBUTES.items(), strict=True):
        if name == "shape":
            new = wanted.label_names == tuple(shapes.NEW)
            names = nearest_drawing(x) if new else np.array(values)[column]
            right.append(names == np.array(wanted.label_names)[wanted.labels])
        else:
            right.append(np.array(values)[column] == wanted.attributes[name])
    return np.stack(right, axis=1)


_MEASURES = {
    AttributesRecipe: measure_judge,
    TextRecipe: measure_text,
    ContrastiveRecipe: measure_contrastive,
    ControlRecipe: measure_control,
    AdapterRecipe: measure_adapter,
}
