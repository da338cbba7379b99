"""Released weights: they load, they are what their cards say, and recipes make them."""

import json
import os
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from oracles import examples

from diffusion_course import data, latent, samplers, sampling, weights
from diffusion_course.data import shapes
from diffusion_course.evaluation import metrics, points
from diffusion_course.evaluation.quality import compare, judge_all, measure, reference
from diffusion_course.models.layers import Conditioning, Linear
from diffusion_course.training import recipes, resume
from diffusion_course.weights import card, features

DIGITS = {split: data.load("digits", split=split) for split in ("train", "test")}
released = cache(weights.load)  # building a network anew takes seconds


@pytest.mark.parametrize("name", weights.names())
def test_released_weights_load_and_match_their_card_and_recipe(name):
    found = released(name)
    assert found.card.name == name
    assert all(np.isfinite(a).all() for a in card.flat_params(found.model).values())
    recipe = recipes.RECIPES[name]
    assert found.card.model == recipe.model
    settings = ["steps", "batch_size", "learning_rate", "ema", "seed"]
    if not hasattr(recipe, "process"):
        assert found.card.process == {} and found.card.kind == "" and found.process is None
    else:
        assert found.card.process == recipe.process and found.card.kind == recipe.kind
        settings += ["label_dropout", "guidance", "teacher", "autoencoder"]
    settings += ["beta", "features", "judge", "painter", "base", "map", "held_out"]
    settings += ["noise", "options"] if isinstance(recipe, recipes.CaptionRecipe) else []
    for setting in (s for s in settings if hasattr(recipe, s)):
        assert found.card.recipe[setting] == getattr(recipe, setting)
    assert found.card.data["licence"] and found.card.data["source"]
    assert (weights.FOLDER / f"{name}.safetensors").stat().st_size <= 8_000_000


def test_all_released_weights_together_are_small():
    assert sum(path.stat().st_size for path in weights.FOLDER.glob("*.safetensors")) <= 40_000_000


def test_a_student_has_its_teachers_network():
    for name, recipe in recipes.RECIPES.items():
        if isinstance(recipe, recipes.ConsistencyRecipe):
            teacher = released(recipe.teacher).card
            of_student = {name: v for name, v in recipe.model.items() if name != "extras"}
            told = of_student, recipe.process, recipe.kind
            assert told == (teacher.model, teacher.process, teacher.kind), name
            assert released(name).card.recipe["teacher_sha256"] == teacher.sha256, name


AUTOENCODERS = [
    n for n in weights.names() if isinstance(recipes.RECIPES[n], recipes.AutoencoderRecipe)
]


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_latents_of_images_that_nothing_was_measured_on_have_unit_scale(name):
    measured = released(name).card.metrics["latents"]
    np.testing.assert_allclose(measured["held_out_std"], 1, atol=0.02)
    recipe = recipes.RECIPES[name]
    if recipe.dataset != "shapes":  # others need a download
        return
    unseen = data.load("shapes", "test", **recipe.options | {"n": 200})
    z = latent.encode_all(weights.latent_space(name), unseen.x)
    # Of 200 images the standard deviation is known to some 3 %, since their places are no
    # independent draws.
    np.testing.assert_allclose(z.std((0, 1, 2)), 1, atol=0.1)
    y = latent.decode_all(weights.latent_space(name), z)
    assert ((y - unseen.x) ** 2).mean() < 1.5 * released(name).card.metrics["distortion"] + 1e-4


def test_weights_are_released_with_those_that_they_were_trained_or_measured_with():
    def about(name):
        return card.load_card(weights.FOLDER / f"{name}.safetensors")

    for name in weights.names():
        recipe = recipes.RECIPES[name]
        for other in ("autoencoder", "judge", "painter", "base"):
            if hasattr(recipe, other):
                of_other = about(getattr(recipe, other)).sha256
                assert about(name).recipe[f"{other}_sha256"] == of_other, name


def test_the_course_can_rely_on_these():
    needed = {"digits", "digits_classifier", "mnist", "mnist_classifier", "toy2d"}
    assert needed <= set(weights.names())


def test_released_features_are_those_of_the_released_judge():
    for name in ("digits", "mnist"):
        expert = released(f"{name}_classifier")
        moments = features.load(name, expert.card)
        assert moments.count == expert.card.data["examples"]
        assert metrics.frechet(moments, moments) == pytest.approx(0, abs=1e-5)
    expert = released("digits_classifier")
    found = metrics.moments(judge_all(expert.model, DIGITS["train"].x)[1])
    # The file was made on another machine: float32 features, a distance that is a square.
    assert metrics.frechet(found, features.load("digits", expert.card)) < 1e-4


def test_features_of_another_judge_or_a_damaged_file_are_refused(tmp_path):
    card = released("digits_classifier").card
    with pytest.raises(ValueError, match="digits, mnist, shapes, got 'cifar10'"):
        features.load("cifar10", card)
    with pytest.raises(ValueError, match="classifier must be the one whose features mnist"):
        features.load("mnist", card)
    path = features.save(tmp_path, "digits", metrics.moments(DIGITS["train"].x), card)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(ValueError, match="must have the SHA-256 of its card"):
        features.load("digits", card, folder=tmp_path)
    path.with_suffix(".json").write_text("{}")
    with pytest.raises(ValueError, match=r"must say classifier, classifier_sha256, count, sha256"):
        features.load("digits", card, folder=tmp_path)
    path.with_suffix(".json").write_text("")
    with pytest.raises(ValueError, match="is not a card: its text is not JSON"):
        features.load("digits", card, folder=tmp_path)


def test_the_judge_recognises_real_digits_that_it_has_not_seen():
    found = released("digits_classifier")
    accuracy = metrics.class_accuracy(
        judge_all(found.model, DIGITS["test"].x)[0], DIGITS["test"].labels
    )
    assert accuracy >= 0.98
    # One image of 360 may fall the other way on another machine's float32.
    assert accuracy == pytest.approx(found.card.metrics["test_accuracy"], abs=2 / 360)


def test_released_digits_are_recognised_cover_all_classes_and_are_no_copies():
    found = released("digits")
    quality = measure(
        found.model, found.process, found.card.kind, released("digits_classifier").model,
        DIGITS["train"], DIGITS["test"], scales=[1.0],
    )[1.0]  # fmt: skip
    assert quality.samples == 500 and quality.accuracy >= 0.97
    assert quality.worst_class >= 0.9
    assert quality.frechet < 1.6 * quality.frechet_floor and quality.frechet_samples == 360
    assert quality.exact_copies == 0 and quality.nearest > 0.7 * quality.nearest_real
    # The card's figures are these; another machine's rounding moves a few of 500 samples.
    assert quality.accuracy == pytest.approx(found.card.metrics["w=1"]["accuracy"], abs=0.01)
    assert quality.frechet == pytest.approx(found.card.metrics["w=1"]["frechet"], rel=0.1)


def guided(name, shape, steps, count, scales, seed):
    """Samples at several guidance scales by one compiled program, and the labels asked for."""
    found, labels = released(name), np.arange(count) % 10
    generate = sampling.generator(
        found.process, "v", samplers.ddim(found.process), sampling.uniform(steps), shape
    )
    # As arrays: the number 1 would have a program of its own, without guidance.
    draws = {
        w: generate(found.model, jax.random.key(seed), count, labels, jnp.float32(w))
        for w in scales
    }
    return draws, labels


def test_guidance_sharpens_the_released_digits():
    draws, labels = guided("digits", (8, 8, 1), 20, 100, (0.0, 1.0, 2.0), seed=2)
    expert = released("digits_classifier").model
    hits = [metrics.class_accuracy(judge_all(expert, x)[0], labels) for x in draws.values()]
    # Without guidance the label is not used at all: one in ten, 4 standard errors of 100 draws.
    assert hits[0] < 0.1 + 4 * 0.03 and hits[1] > 0.9 and hits[2] >= hits[1] - 0.03


def test_released_mnist_digits_are_recognised():
    draws, labels = guided("mnist", (28, 28, 1), 12, 60, (1.0, 2.0), seed=3)
    expert = released("mnist_classifier")
    for w, x in draws.items():
        predicted, found = judge_all(expert.model, np.asarray(x))
        expected = released("mnist").card.metrics[f"w={w:g}"]["accuracy"]
        error = np.sqrt(expected * (1 - expected) / 60)
        # 60 draws, and 12 steps instead of the card's 25.
        assert metrics.class_accuracy(predicted, labels) >= expected - 4 * error - 0.02
    # Guided samples lie near real digits, whose features the package knows without the data.
    moments = features.load("mnist", expert.card)
    noise = judge_all(expert.model, np.random.default_rng(0).normal(size=(60, 28, 28, 1)))[1]
    assert metrics.frechet(found, moments) < 0.2 * metrics.frechet(noise, moments)


CAPTIONS = data.load("shapes", "test", n=60, size=32)


def test_the_judge_of_shapes_and_the_contrastive_pair_know_unseen_images():
    found = recipes.captioned.judged(released("shapes_judge").model, CAPTIONS.x)
    np.testing.assert_array_equal(found, shapes.answers(CAPTIONS))
    pair, said = released("shapes_clip").model, CAPTIONS.attributes["caption"]
    captions = shapes.LANGUAGE(said.tolist())
    best = captions[np.asarray(pair(CAPTIONS.x, captions)).argmax(axis=1)]
    np.testing.assert_array_equal(best, captions)
    own = np.asarray(pair.score(CAPTIONS.x, captions))
    # A caption with one word changed is another image's: it scores lower.
    for word, other in (("large", "small"), ("red", "blue"), ("ring", "circle")):
        changed = np.char.replace(said, word, other)
        scores = np.asarray(pair.score(CAPTIONS.x, shapes.LANGUAGE(changed.tolist())))
        differ = changed != said
        assert differ.any() and (scores < own)[differ].all(), word


def test_released_text_model_draws_what_captions_say():
    about = replace(recipes.RECIPES["shapes_text"], samples=30, sampling_steps=8, scales=(2.0,))
    found = recipes.measure(about, released("shapes_text").model, CAPTIONS, CAPTIONS)["w=2"]
    # The card says 100 % of 1,000 in 50 steps; here 30 in 8. One of them may fail elsewhere.
    assert released("shapes_text").card.metrics["w=2"]["all"] == 1
    assert found["all"] >= 29 / 30 and found["samples"] == 30 and found["held_out_samples"] >= 1


# ------------------------------------------------------------------------------------ quality


def test_real_images_for_comparison_come_from_the_whole_test_set():
    half, rest = DIGITS["test"].subset(np.arange(180)), DIGITS["train"].subset(np.arange(180))
    bright = rest.x * 0 + 1  # a second half that is nothing like the first
    mixed = replace(half, x=np.concatenate([half.x, bright]), labels=np.tile(half.labels, 2))
    expert = released("digits_classifier").model
    same, spread = (reference(expert, DIGITS["train"], part, 100) for part in (half, mixed))
    assert spread.unseen == same.unseen == 100
    assert spread.floor > 3 * same.floor and spread.nearest > same.nearest


@pytest.fixture(scope="module")
def real():
    return reference(released("digits_classifier").model, DIGITS["train"], DIGITS["test"], 206)


def test_a_copying_model_would_be_noticed(real):
    copies = DIGITS["train"].subset(np.arange(0, 1437, 7))
    expert = released("digits_classifier").model
    quality = compare(copies.x, copies.labels, expert, real, DIGITS["train"], w=1.0, steps=0)
    assert quality.exact_copies == 1 and quality.nearest < 0.1 * quality.nearest_real


@pytest.mark.parametrize(
    ("x", "labels", "message"),
    [
        (np.zeros((9, 8, 8, 1), np.uint8), np.zeros(9, int), "x must be floating-point"),
        (np.zeros((9, 6, 8, 1)), np.zeros(9, int), r"samples of shape \[8, 8, 1\], got shape"),
        (np.zeros((1, 8, 8, 1)), np.zeros(1, int), "at least 2 samples"),
        (np.zeros((9, 8, 8, 1)), np.full(9, 3.7), "labels must be whole numbers .* got float"),
        (np.zeros((9, 8, 8, 1)), np.zeros((9, 1), int), r"labels must be whole numbers of shape"),
        (np.zeros((9, 8, 8, 1)), np.arange(9) + 2, r"labels must be in 0 … 9, got 2 … 10"),
        (np.zeros((9, 8, 8, 1)), np.arange(9) - 1, r"labels must be in 0 … 9, got -1 … 7"),
    ],
)
def test_samples_and_labels_of_another_kind_are_named(real, x, labels, message):
    with pytest.raises(ValueError, match=message):
        compare(x, labels, None, real, DIGITS["train"], w=1.0, steps=5)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"samples": 1}, "samples must be a whole number at least 2, got 1"),
        ({"samples": 20.5}, "samples must be a whole number at least 2, got 20.5"),
        ({"steps": 0}, "steps must be a whole number at least 1, got 0"),
        ({"seed": -1}, "seed must be a whole number at least 0, got -1"),
        ({"scales": [0.0, np.nan]}, r"scales must be in .* got nan at index \[1\]"),
    ],
)
def test_a_measurement_names_bad_settings(setting, message):
    p = weights.build_process({"name": "vp_cosine"})
    with pytest.raises(ValueError, match=message):
        measure(None, p, "v", None, DIGITS["train"], DIGITS["test"], **{"scales": [1.0]} | setting)


def test_images_for_the_judge_are_checked():
    for x, message in (
        (np.zeros((0, 8, 8, 1)), r"x must hold images .* got shape \[0, 8, 8, 1\]"),
        (np.zeros((8, 8, 1)), "x must hold images"),
        (np.zeros((2, 8, 8, 1), int), "x must be floating-point numbers, got dtype int"),
    ):
        with pytest.raises(ValueError, match=message):
            judge_all(None, x)
    with pytest.raises(ValueError, match="chunk must be a whole number at least 1, got 0"):
        judge_all(None, np.zeros((2, 8, 8, 1)), chunk=0)
    with pytest.raises(ValueError, match="train and test must hold examples of one shape"):
        other = replace(DIGITS["test"], x=np.zeros((360, 4, 4, 1), np.float32))
        reference(None, DIGITS["train"], other, 10)


# ------------------------------------------------------------------------------------ recipes


class Flat(nnx.Module):
    """A stand-in for the U-Net with a layer or two, which compile in a moment."""

    def __init__(
        self, image_channels=1, num_classes=None, extras=0, dtype=jnp.float32, *, rngs, **_
    ):
        self.null_label = num_classes
        self.embed = Conditioning(8, num_classes, extras=extras, dtype=dtype, rngs=rngs)
        self.first = Linear(image_channels, 8, dtype=dtype, rngs=rngs)
        self.last = Linear(8, image_channels, dtype=dtype, rngs=rngs)

    def __call__(self, x, t, cond=None, extras=None):
        h = self.first(x) + self.embed(t, cond, extras)[:, None, None, :]
        return self.last(jax.nn.silu(h)).astype(jnp.float32)


def few_examples(recipe):
    """A training and a test set of a recipe's own shape."""
    if recipe.dataset in ("toy2d", "shapes", "clips"):
        options = recipe.options | {"n": 100}
        return [data.load(recipe.dataset, split=split, **options) for split in ("train", "test")]
    size = 28 if recipe.dataset == "mnist" else 8
    sets = [DIGITS[split].subset(np.arange(70)) for split in ("train", "test")]
    return [replace(part, x=np.resize(part.x, (70, size, size, 1))) for part in sets]


def objective(recipe):
    """The recipe's loss; a consistency model's with itself as teacher and as average."""
    loss = recipes._OBJECTIVES[type(recipe)](recipe)
    if isinstance(recipe, recipes.AutoencoderRecipe):
        return partial(loss, teacher=released(recipe.judge).model)
    if isinstance(recipe, recipes.ControlRecipe | recipes.AdapterRecipe):
        return partial(loss, teacher=released(recipe.base).model)
    if not isinstance(recipe, recipes.ConsistencyRecipe):
        return loss
    return lambda model, *a: loss(model, *a, teacher=model, averaged=model)


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_fits_its_data(name):
    recipe = recipes.RECIPES[name]
    examples, _ = few_examples(recipe)
    graph, params = nnx.split(nnx.eval_shape(lambda: weights.build(recipe.model)))
    loss, x, labels = objective(recipe), examples.x[:8], examples.labels[:8]
    if isinstance(recipe, recipes.CaptionRecipe):
        x, labels = (array[:8] for array in recipes.objectives_text.examples(recipe, examples))
    if isinstance(recipe, recipes.LatentRecipe | recipes.LatentConsistencyRecipe):
        of_coder = recipes.RECIPES[recipe.autoencoder].options
        assert of_coder.keys() == recipe.options.keys()
        # A student needs no more than some of its teacher's images.
        assert all(recipe.options[k] == v for k, v in of_coder.items() if k != "n")
        whole = recipe.options == of_coder
        assert whole or (recipe.options["n"] < of_coder["n"] and hasattr(recipe, "teacher"))
        space = latent_space_of(recipes.RECIPES[recipe.autoencoder])
        x = np.zeros((8, *space.shape(x.shape[1:])), np.float32)

    def value(params, key):
        return loss(nnx.merge(graph, params), x, labels, key)

    # Traced only: whether all shapes fit is known before anything is compiled.
    found = jax.eval_shape(value, params, jax.random.key(0))
    assert (found.shape, found.dtype) == ((), jnp.float32)
    classes = examples.num_classes
    if isinstance(recipe, recipes.TextRecipe):
        classes = shapes.LANGUAGE.padding  # the words
    assert recipe.model.get("num_classes", classes) == classes


def latent_space_of(recipe):
    """The latents of a recipe's autoencoder before its training, with no scale."""
    rows = jnp.zeros(recipe.model["latent_channels"])
    return latent.LatentSpace(weights.build(recipe.model), rows, rows + 1)


def test_a_judge_is_trained_where_none_is_released(monkeypatch):
    asked = []
    monkeypatch.setattr(recipes.weights, "names", lambda: ())
    monkeypatch.setattr(
        recipes, "run", lambda *a: asked.append(a) or type("Result", (), {"ema": "expert"})
    )
    assert recipes.judge_for("digits") == "expert"
    (recipe, examples) = asked[0]
    wanted = {"class": "Classifier", "image_size": 8, "image_channels": 1, "num_classes": 10}
    assert recipe.model == wanted and recipe.dataset == "digits" and len(examples) == 1437
    with pytest.raises(ValueError, match="dataset must be one of images, got 'toy2d'"):
        recipes.judge_for("toy2d")


@pytest.fixture(scope="module")
def small():
    """Three recipes, small enough for a test: of images, points and a judge; and their data."""
    few = {"samples": 20, "sampling_steps": 2, "scales": (0.0, 1.0), "batch_size": 32}
    changes = {
        "digits": few,
        "toy2d": few | {"model": {"class": "MLP", "num_classes": 3, "width": 16, "depth": 1}},
        "digits_classifier": {"batch_size": 32, "model": {"class": "Classifier", "width": 8,
                              "num_classes": 10}},
    }  # fmt: skip
    sets = {name: few_examples(recipes.RECIPES[name]) for name in ("digits", "toy2d")}
    expert = released("digits_classifier").model
    with pytest.MonkeyPatch.context() as patch:
        for name, settings in changes.items():
            patch.setitem(
                recipes.RECIPES, name, replace(recipes.RECIPES[name], steps=8, **settings)
            )
        patch.setitem(weights._MODELS, "UNet", Flat)
        patch.setattr(data, "load", lambda name, split, **_: sets[name][split == "test"])
        patch.setattr(recipes, "judge_for", lambda _: expert)
        yield


@pytest.fixture(scope="module")
def trained(small, tmp_path_factory):
    """The folder of what the three recipes have made."""
    out = tmp_path_factory.mktemp("out")
    for name in ("digits", "toy2d", "digits_classifier"):
        path = recipes.train(name, out=out, steps=8)
        assert path == out / f"{name}.safetensors"
    return out


def test_a_recipe_leaves_weights_and_their_card_and_nothing_else(trained):
    names = {path.name for path in trained.iterdir()}
    stems = ["digits", "toy2d", "digits_classifier", "digits.features"]
    assert names == {f"{stem}.{end}" for stem in stems for end in ("safetensors", "json")}


@pytest.mark.parametrize("name", ["digits", "toy2d", "digits_classifier"])
def test_a_card_tells_how_its_weights_were_made(trained, name):
    found = weights.load(name, folder=trained)
    recipe = recipes.RECIPES[name]
    assert found.card.recipe["steps"] == 8 and found.card.recipe["batch_size"] == 32
    assert found.card.recipe["command"] == f"diffusion-course train {name} --steps 8"
    assert found.card.data["examples"] == (100 if name == "toy2d" else 70)
    assert found.card.data["split"] == "train" and found.card.model == recipe.model
    if name == "digits_classifier":
        assert found.card.metrics["of"] == 70 and 0 <= found.card.metrics["test_accuracy"] <= 1
        assert found.process is None and found.card.kind == ""
        moments = features.load("digits", found.card, folder=trained)
        assert moments.count == 70
        train = few_examples(recipes.RECIPES["digits"])[0]
        again = metrics.moments(judge_all(found.model, train.x)[1])
        assert metrics.frechet(moments, again) == pytest.approx(0, abs=1e-6)
    else:
        assert found.card.kind == "v" and found.card.process == {"name": "vp_cosine"}
        assert {"w=0", "w=1"} <= found.card.metrics.keys()
    if name == "digits":
        measured = found.card.metrics["w=1"]
        assert measured["samples"] == 20 and measured["steps"] == 2 and measured["w"] == 1
    if name == "toy2d":
        assert found.card.metrics["samples"] == 20
        assert all(f"squared distance to the exact denoiser, t={t}" in found.card.metrics
                   for t in points.TIMES)  # fmt: skip


def test_the_averaged_weights_are_released_and_not_the_last(trained, small):
    train = few_examples(recipes.RECIPES["toy2d"])[0]
    result = recipes.run(recipes.RECIPES["toy2d"], train, progress=False)
    saved = card.flat_params(weights.load("toy2d", folder=trained).model)
    for name, array in card.flat_params(result.ema).items():  # and a recipe is reproducible
        np.testing.assert_array_equal(array, saved[name])
    last = card.flat_params(result.model)
    assert any(not np.array_equal(last[name], saved[name]) for name in saved)


class Interrupted(Exception):
    pass


def interrupt(*_):
    raise Interrupted


def test_an_interrupted_recipe_goes_on_where_it_was(tmp_path, trained, small):
    run = recipes.run
    for sitting in (4, 8):  # in the middle, or after the last step
        out = tmp_path / str(sitting)
        with pytest.MonkeyPatch.context() as context:
            context.setattr(recipes, "run", lambda *a, s=sitting, **k: run(*a, **k, stop=s))
            context.setattr(recipes, "measure", interrupt)
            with pytest.raises(Interrupted):
                recipes.train("toy2d", out=out, steps=8)
        with pytest.raises(resume.ResumeError, match="holds the state of an interrupted run"):
            recipes.train("toy2d", out=out, steps=8)
        with pytest.raises(resume.ResumeError, match="differs in steps"):
            recipes.train("toy2d", out=out, steps=9, resume=True)
        parts = recipes.train("toy2d", out=out, steps=8, resume=True)
        assert (trained / "toy2d.safetensors").read_bytes() == parts.read_bytes()


def test_a_run_in_bfloat16_learns_the_same_and_keeps_float32_parameters(small):
    train = few_examples(recipes.RECIPES["digits"])[0]
    coarse, fine = (
        recipes.run(recipes.RECIPES["digits"], train, dtype=dtype, steps=4, progress=False)
        for dtype in ("bfloat16", "float32")
    )
    kinds = {leaf.dtype for leaf in jax.tree.leaves(coarse.state) if leaf.ndim}
    assert kinds == {np.dtype("float32")}
    # The same numbers are drawn; the network's part of the loss is rounded to 8 bits.
    np.testing.assert_allclose(coarse.history.loss, fine.history.loss, rtol=0.02)
    assert coarse.history.loss != fine.history.loss


def test_labels_are_dropped_in_training_and_the_null_class_is_trained(small):
    recipe = replace(recipes.RECIPES["toy2d"], label_dropout=1.0)
    before = card.flat_params(weights.build(recipe.model))["embed.label.embedding"]
    result = recipes.run(recipe, few_examples(recipe)[0], steps=3, progress=False)
    moved = np.abs(card.flat_params(result.model)["embed.label.embedding"] - before).max(1)
    assert moved[3] > 0 and (moved[:3] == 0).all()


def test_a_judge_sees_its_images_shifted_by_up_to_a_pixel_and_noised():
    recipe = recipes.ClassifierRecipe(
        dataset="digits", model={"num_classes": 2}, steps=1, smoothing=0.0
    )
    seen = []

    def model(x):
        seen.append(np.asarray(x))
        return jnp.zeros((len(x), 2)).at[:, 1].set(3.0)

    x = np.full((400, 8, 8, 1), -1.0, np.float32)
    x[:, 3, 4] = 1.0
    loss = recipes.classifier_objective(recipe)
    value = loss(model, jnp.asarray(x), jnp.ones(400, int), jax.random.key(1))
    assert float(value) == pytest.approx(np.log1p(np.exp(-3.0)), rel=1e-5)
    places = {np.unravel_index(image.argmax(), (8, 8)) for image in seen[0][..., 0]}
    assert places == {(i, j) for i in (2, 3, 4) for j in (3, 4, 5)}
    rest = np.sort(seen[0].reshape(400, -1), axis=1)[:, :-1] + 1
    assert abs(rest.mean()) < 0.01 and rest.std() == pytest.approx(0.1, rel=0.05)


FEW_STEPS = {
    recipes.ConsistencyRecipe: {
        "model": {"class": "UNet", "num_classes": 10, "channels": (8,), "stem": 2},
        "process": {"name": "vp_cosine"}, "kind": "v", "teacher": "tiny", "grid": 4, "huber": 0.1,
    },
    recipes.MeanFlowRecipe: {
        "model": {"class": "UNet", "num_classes": 10, "extras": 1},
    },
}  # fmt: skip


@pytest.mark.parametrize("make", FEW_STEPS)
def test_a_few_step_model_is_trained_and_measured_by_its_recipe(make, monkeypatch):
    recipe = make(
        dataset="digits", steps=2, batch_size=8, guidance=1.5, samples=20, evaluations=(1, 3),
        learning_rate=1e-6, **FEW_STEPS[make],
    )  # fmt: skip
    monkeypatch.setitem(weights._MODELS, "UNet", Flat)
    teacher = weights.build(recipe.model, seed=5)
    about = card.Card("tiny", recipe.model, {}, {}, sha256="of the teacher")
    found = weights.Released(teacher, about, None)
    monkeypatch.setattr(recipes.weights, "load", lambda name: {"tiny": found}[name])
    monkeypatch.setattr(recipes, "judge_for", lambda _: expert)
    expert = released("digits_classifier").model
    train, test = few_examples(recipes.RECIPES["digits"])
    model = recipes.run(recipe, train, progress=False).ema
    start = teacher if make is recipes.ConsistencyRecipe else weights.build(recipe.model)
    for name, array in card.flat_params(start).items():  # two steps of 1e-6 away from it
        np.testing.assert_allclose(card.flat_params(model)[name], array, atol=3e-6)
    measured = recipes.measure(recipe, model, train, test)
    assert list(measured) == ["1 evaluation", "3 evaluations"]
    by_teacher = {} if make is recipes.MeanFlowRecipe else {"teacher_sha256": "of the teacher"}
    assert recipes._of_others(recipe) == by_teacher
    assert [(m["steps"], m["w"], m["samples"]) for m in measured.values()] == [
        (1, 1.5, 20), (3, 1.5, 20)
    ]  # fmt: skip


TINY_VAE = recipes.AutoencoderRecipe(
    dataset="digits", model={"class": "VAE", "latent_channels": 2, "channels": [8], "stem": 2},
    steps=3, batch_size=16, beta=0.01, features=0.1, judge="digits_classifier",
)  # fmt: skip
TINY_LATENT = recipes.LatentRecipe(
    dataset="digits", model={"class": "UNet", "image_channels": 2, "num_classes": 10},
    process={"name": "vp_cosine"}, kind="v", autoencoder="digits_vae", steps=3, batch_size=16,
    scales=(0.0, 1.0), samples=20, sampling_steps=2,
)  # fmt: skip

TINY_LCM = recipes.LatentConsistencyRecipe(
    dataset="digits", model=TINY_LATENT.model | {"extras": 1}, process={"name": "vp_cosine"},
    kind="v", teacher="digits_latent", autoencoder="digits_vae", guidance=1.5, least=1.0, most=3.0,
    grid=8, skip=2, huber=0.1, steps=3, batch_size=16, samples=20, evaluations=(1, 3),
)  # fmt: skip


def test_an_autoencoder_and_a_model_of_its_latents_are_trained_by_their_recipes(
    tmp_path, monkeypatch
):
    train, test = few_examples(recipes.RECIPES["digits"])
    monkeypatch.setattr(data, "load", lambda name, split, **_: test if split == "test" else train)
    monkeypatch.setattr(recipes, "judge_for", lambda _: released("digits_classifier").model)
    monkeypatch.setitem(recipes.RECIPES, "digits_vae", TINY_VAE)
    monkeypatch.setitem(recipes.RECIPES, "digits_latent", TINY_LATENT)
    path = recipes.train("digits_vae", out=tmp_path)
    about = card.load_card(path)
    assert (about.kind, about.process, about.recipe["beta"]) == ("", {}, 0.01)
    assert about.recipe["judge_sha256"] == released("digits_classifier").card.sha256
    assert about.metrics["of"] == 70 and about.metrics["rate"] > 0
    space = weights.latent_space("digits_vae", folder=tmp_path)
    z = latent.encode_all(space, train.x)
    np.testing.assert_allclose(z.mean((0, 1, 2)), 0, atol=1e-4)  # float32, and a card in decimals
    np.testing.assert_allclose(z.std((0, 1, 2)), 1, rtol=1e-4)
    unseen = latent.encode_all(space, test.x)
    np.testing.assert_allclose(
        about.metrics["latents"]["held_out_std"], unseen.std((0, 1, 2)), rtol=1e-4
    )
    distortion = ((latent.decode_all(space, unseen) - test.x) ** 2).mean()
    assert about.metrics["distortion"] == pytest.approx(float(distortion), rel=1e-4)

    seen = []
    monkeypatch.setitem(
        recipes._OBJECTIVES, recipes.LatentRecipe,
        lambda recipe: lambda model, x, labels, key: seen.append(x.shape) or (
            recipes.diffusion_objective(recipe)(model, x, labels, key)
        ),
    )  # fmt: skip
    monkeypatch.setitem(weights._MODELS, "UNet", Flat)
    monkeypatch.setattr(recipes.weights, "latent_space", lambda name: {"digits_vae": space}[name])
    monkeypatch.setattr(
        recipes.weights, "load", partial(weights.load, folder=tmp_path)
    )  # the one who named it finds it
    about = card.load_card(recipes.train("digits_latent", out=tmp_path))
    assert seen == [(16, 4, 4, 2)]
    assert about.recipe["autoencoder"] == "digits_vae" and about.kind == "v"
    assert about.recipe["autoencoder_sha256"] == card.load_card(path).sha256
    assert about.metrics["w=1"]["samples"] == 20 and about.metrics["w=1"]["nearest"] > 0

    monkeypatch.setitem(recipes.RECIPES, "digits_lcm", TINY_LCM)
    student, others = recipes.prepared(TINY_LCM)[::2]
    told = others["teacher"], {"x": z[:3], "t": jnp.full(3, 0.5), "cond": jnp.arange(3)}
    np.testing.assert_array_equal(student(**told[1], extras=jnp.ones((3, 1))), told[0](**told[1]))
    of_teacher, about = about, card.load_card(recipes.train("digits_lcm", out=tmp_path))
    assert about.recipe["teacher_sha256"] == of_teacher.sha256
    assert [(q["steps"], q["w"], q["samples"]) for q in about.metrics.values()] == [
        (1, 1.5, 20), (3, 1.5, 20)
    ]  # fmt: skip
    generate = recipes.few_steps(TINY_LCM, 1)
    start, model = z[:3], weights.load("digits_lcm").model
    drawn = [generate(model, jax.random.key(0), start, np.arange(3), *w) for w in ((), (1.5,))]
    np.testing.assert_allclose(*drawn, atol=1e-6)
    assert np.abs(generate(model, jax.random.key(0), start, np.arange(3), 3.0) - drawn[0]).max() > 0


def test_only_a_student_that_is_told_a_scale_takes_one():
    generate = recipes.few_steps(recipes.RECIPES["mnist_consistency"], 1)
    with pytest.raises(ValueError, match="w must be None: a ConsistencyRecipe is told no scale"):
        generate(None, jax.random.key(0), np.zeros((1, 28, 28, 1)), np.zeros(1, int), w=2.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta": -1.0}, r"beta must be in \[0, 1e\+06\], got -1.0"),
        ({"features": -1.0}, r"features must be in \[0, 1e\+06\], got -1.0"),
        ({"model": {"class": "VAE"}}, "model must be a dict with latent_channels in it"),
    ],
)
def test_bad_settings_of_an_autoencoders_recipe_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY_VAE, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"skip": 9}, "skip must be a whole number"),
        ({"least": 3.0}, r"least must be in \[0, 3(.0)?\)"),
        ({"most": 0.0}, "most must be"),
        ({"guidance": 4.0}, r"guidance must be in \[1"),
        ({"model": {"num_classes": 10}}, "model must be a dict with num_classes and extras"),
    ],
)
def test_bad_settings_of_a_latent_students_recipe_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY_LCM, **settings)


VALID = {"dataset": "digits", "model": {"class": "UNet", "num_classes": 10}, "steps": 10}
DIFFUSION = VALID | {"process": {"name": "vp_cosine"}, "kind": "v"}


@pytest.mark.parametrize(
    ("make", "change", "message"),
    [
        (recipes.ClassifierRecipe, {"steps": 0}, "steps must be a whole number at least 1, got 0"),
        (recipes.ClassifierRecipe, {"ema": 1.0}, r"ema must be in \[0, 1\), got 1.0"),
        (recipes.ClassifierRecipe, {"model": {}}, "model must be a dict with num_classes"),
        (recipes.ClassifierRecipe, {"smoothing": 1.0}, r"smoothing must be in \[0, 1\)"),
        (recipes.ClassifierRecipe, {"shift": 1.5}, "shift must be a whole number"),
        (recipes.DiffusionRecipe, {"batch_size": 0}, "batch_size must be a whole number"),
        (recipes.DiffusionRecipe, {"learning_rate": np.inf}, "learning_rate must be positive"),
        (recipes.DiffusionRecipe, {"label_dropout": 1.1}, r"label_dropout must be in \[0, 1\]"),
        (recipes.DiffusionRecipe, {"samples": 1}, "samples must be a whole number at least 2"),
        (recipes.DiffusionRecipe, {"scales": (1.0, np.nan)}, "scales must be in"),
    ],
)
def test_a_recipe_names_a_bad_setting(make, change, message):
    settings = DIFFUSION if make is recipes.DiffusionRecipe else VALID
    make(**settings)
    with pytest.raises(ValueError, match=message):
        make(**settings | change)


def test_data_with_more_classes_than_the_model_are_refused():
    recipe = recipes.ClassifierRecipe(**VALID | {"model": {"class": "UNet", "num_classes": 9}})
    with pytest.raises(ValueError, match="at most the model's 9 classes, got 10"):
        recipes.run(recipe, DIGITS["train"])


# -------------------------------------------------------------------------- saving and loading


CARD = card.Card(name="tiny", model={"class": "MLP"}, data={}, recipe={})


class Holder(nnx.Module):
    """Parameters of any kind, some inside a list."""

    def __init__(self, *found):
        self.first = nnx.Param(found[0])
        self.rest = nnx.data([nnx.Param(array) for array in found[1:]])


def views(draw, array):
    """The same numbers in another order of memory."""
    how = draw(st.sampled_from(["C", "F", "transposed", "strided", "reversed", "swapped"]))
    if how == "F":
        return np.asfortranarray(array)
    if how == "transposed":
        return np.ascontiguousarray(array.T).T
    if how == "strided" and array.ndim:
        return np.repeat(array, 2, axis=-1)[..., ::2]
    if how == "reversed" and array.ndim:
        return np.ascontiguousarray(array[::-1])[::-1]
    if how == "swapped":  # the other byte order
        return array.astype(array.dtype.newbyteorder())
    return array


@st.composite
def parameters(draw):
    dtype = draw(st.sampled_from(["float32", "float64", "float16", "int32", "uint8", "bool"]))
    shape = draw(arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
    array = draw(
        arrays.arrays(dtype, shape, elements={"allow_nan": False} if "f" in dtype else None)
    )
    return views(draw, array)


def equal(a, b):
    a, b = np.asarray(a), np.asarray(b)
    assert a.dtype == b.dtype.newbyteorder("=") and a.shape == b.shape
    np.testing.assert_array_equal(a, b)


@examples
@given(st.lists(parameters(), min_size=1, max_size=3))
def test_parameters_in_any_order_of_memory_come_back_as_they_were(tmp_path_factory, found):
    folder = tmp_path_factory.mktemp("weights")
    path = card.save_weights(folder, Holder(*found), CARD)
    empty = Holder(*(np.zeros(a.shape, a.dtype.newbyteorder("=")) for a in found))
    card.load_weights(path, empty)
    for array, back in zip(found, [empty.first, *empty.rest], strict=True):
        equal(back[...], array)


def test_a_transposed_view_is_not_scrambled(tmp_path):
    kernel = np.arange(6, dtype=np.float32).reshape(2, 3).T
    path = card.save_weights(tmp_path, Holder(kernel), CARD)
    model = Holder(jnp.zeros((3, 2)))
    card.load_weights(path, model)
    assert isinstance(model.first[...], jax.Array)
    np.testing.assert_array_equal(model.first[...], [[0, 3], [1, 4], [2, 5]])


@pytest.mark.parametrize("dtype", ["bfloat16", "complex64"])
def test_a_type_that_cannot_be_saved_is_named_and_nothing_is_written(tmp_path, dtype):
    message = f"first must be of a type among float32, .*, got {dtype}"
    with pytest.raises(ValueError, match=message):
        card.save_weights(tmp_path, Holder(jnp.zeros(3, dtype)), CARD)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["", "../up", "a.b", "a/b"])
def test_a_name_is_a_file_name(tmp_path, name):
    with pytest.raises(ValueError, match="name must be a file name without a dot"):
        card.save_weights(tmp_path, Holder(np.zeros(2)), replace(CARD, name=name))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text() | st.floats(-9, 9),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=5,
)
objects = st.dictionaries(st.text(), json_values, max_size=3)


@examples
@given(objects, objects, objects, objects, st.text())
def test_a_card_of_any_text_comes_back(tmp_path_factory, model, data, recipe, metrics, kind):
    folder = tmp_path_factory.mktemp("card")
    given_card = card.Card("tiny", model, data, recipe, metrics, kind=kind + "\ud800")
    path = card.save_weights(folder, Holder(np.zeros(2)), given_card)
    assert replace(card.load_card(path), sha256="") == given_card


NO_CARDS = ["", "not json", "[]", "7", json.dumps({"surprise": 1}), "[" * 10**5, b"\xff\xfe\xff",
            json.dumps({"name": 1, "model": {}, "data": {}, "recipe": {}}),
            json.dumps({"name": "a", "model": [], "data": {}, "recipe": {}})]  # fmt: skip


@pytest.mark.parametrize("text", NO_CARDS, ids=lambda text: repr(text[:20]))
def test_a_file_that_is_no_card_is_named(tmp_path, text):
    path = card.save_weights(tmp_path, Holder(np.zeros(2)), CARD)
    path.with_suffix(".json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=r"tiny\.json is not a card"):
        card.load_card(path)


def test_names_of_weights_are_paths_in_the_model():
    names = card.flat_params(released("toy2d").model)
    assert "first.kernel" in names and "hidden.1.bias" in names
    assert names["first.kernel"].shape == (2, 128)


def test_a_damaged_file_is_refused_and_the_model_is_as_it_was(tmp_path):
    path = card.save_weights(tmp_path, Holder(np.ones(5, np.float32)), CARD)
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(bytes(content))
    model = Holder(jnp.zeros(5))
    with pytest.raises(ValueError, match="must have the SHA-256 of its card"):
        card.load_weights(path, model)
    assert (np.asarray(model.first[...]) == 0).all()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            Holder(jnp.zeros(4)),
            r"first is float32 \[4\] in the model and float32 \[5\] in the file",
        ),
        (Holder(jnp.zeros(5, jnp.float16)), r"first is float16 \[5\] in the model and float32"),
        (Holder(jnp.zeros(5), jnp.zeros(2)), r"rest.0 is float32 \[2\] in the model and missing"),
    ],
)
def test_weights_of_another_model_are_refused_by_name(tmp_path, model, message):
    path = card.save_weights(tmp_path, Holder(np.ones(5, np.float32)), CARD)
    with pytest.raises(ValueError, match=message):
        card.load_weights(path, model)


@pytest.mark.parametrize("fails", [1, 2])
def test_a_crash_leaves_the_weights_and_the_card_of_before(tmp_path, monkeypatch, fails):
    path = card.save_weights(tmp_path, Holder(np.ones(5, np.float32)), CARD)
    before = {p: p.read_bytes() for p in tmp_path.iterdir()}
    real_replace, calls = os.replace, []

    def failing(source, target):
        calls.append(target)
        if len(calls) == fails:
            raise OSError(28, "No space left on device")
        real_replace(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(OSError):
        card.save_weights(tmp_path, Holder(np.zeros(5, np.float32)), CARD)
    assert {p: p.read_bytes() for p in tmp_path.iterdir()} == before
    model = Holder(jnp.zeros(5))
    card.load_weights(path, model)
    assert (np.asarray(model.first[...]) == 1).all()


# -------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: weights.load("imagenet"), "name must be one of clips, digits, .*got 'imagenet'"),
        (lambda: recipes.train("imagenet"), "name must be one of digits, .*got 'imagenet'"),
        (lambda: weights.build({"class": "GAN"}), "class must be one of .*got 'GAN'"),
        (lambda: weights.build("MLP"), "description must be a dict with the key 'class'"),
        (lambda: weights.build({"class": "MLP", "deep": 2}), "MLP does not take .*'deep'"),
        (lambda: weights.build({"class": "MLP"}, seed=-1), "seed must be a whole number"),
        (
            lambda: weights.build({"class": "UNet"}, dtype="float16"),
            "dtype must be one of float32, bfloat16, got 'float16'",
        ),
        (lambda: weights.build_process({"name": "expand"}), "name must be one of .*got 'expand'"),
        (
            lambda: weights.build_process({"name": "vp_cosine", "x": 1}),
            "vp_cosine does not take these arguments: .*'x'",
        ),
    ],
)
def test_unknown_names_are_answered_with_the_choices(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_an_empty_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match="must be one of none, got 'digits'"):
        weights.load("digits", folder=tmp_path)


def test_cards_are_json_that_a_person_can_read():
    text = (weights.FOLDER / "digits.json").read_text(encoding="utf-8")
    assert json.loads(text)["recipe"]["command"] == "diffusion-course train digits"
    assert text.count("\n") > 20


def test_the_documentation_quotes_the_cards():
    course = Path(__file__).parent.parent
    tables = (course / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    metrics_of = {name: released(name).card.metrics for name in weights.names()}
    assert f"{metrics_of['digits_classifier']['test_accuracy']:.1%} of 360 unseen" in tables
    for w in ("w=1", "w=2"):
        q = metrics_of["digits"][w]
        figures = (q["accuracy"], q["worst_class"], q["frechet"], q["nearest"])
        assert "{:.1%} | {:.0%} | {:.2f} | {:.2f}".format(*figures) in tables
    assert f"{metrics_of['mnist_classifier']['test_accuracy']:.1%} of 10,000 unseen" in tables
    for q in metrics_of["mnist"].values():
        figures = (q["w"], q["accuracy"], q["worst_class"], q["frechet"], q["nearest"])
        row = "| {:g} | {:.1%} | {:.0%} | {:.2f} | {:.2f} |".format(*figures)
        assert row in tables or q["w"] == 0  # w = 0 knows no label
    readme = (course / "README.md").read_text(encoding="utf-8")
    q = metrics_of["mnist"]["w=2"]
    assert f"Of {q['samples']:,} MNIST digits" in readme
    assert f"(*w* = {q['w']:g}, {q['steps']} steps)" in readme
    assert f"reads {q['accuracy']:.1%} as" in " ".join(readme.split())
