"""Released weights: they load, they are what their cards say, and recipes make them."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from diffusion_course import data, samplers, sampling, weights
from diffusion_course.evaluation import metrics
from diffusion_course.evaluation.quality import compare, judge_all, measure, reference
from diffusion_course.models.classifier import judge
from diffusion_course.training import recipes, resume
from diffusion_course.weights import card, features

DIGITS = {split: data.load("digits", split=split) for split in ("train", "test")}


@pytest.mark.parametrize("name", weights.names())
def test_released_weights_load_and_match_their_card_and_recipe(name):
    released = weights.load(name)
    assert released.card.name == name
    assert all(np.isfinite(a).all() for a in card.flat_params(released.model).values())
    recipe = recipes.RECIPES[name]
    assert released.card.model == recipe.model
    assert released.card.process == recipe.process and released.card.kind == recipe.kind
    for setting in ("steps", "batch_size", "learning_rate", "ema", "label_dropout", "seed"):
        assert released.card.recipe[setting] == getattr(recipe, setting)
    assert released.card.data["licence"] and released.card.data["source"]
    assert (weights.FOLDER / f"{name}.safetensors").stat().st_size <= 4_000_000


def test_the_course_can_rely_on_these():
    needed = {"digits", "digits_classifier", "mnist", "mnist_classifier", "toy2d"}
    assert needed <= set(weights.names())


def test_released_features_are_those_of_the_released_judge():
    for name in ("digits", "mnist"):
        expert = weights.load(f"{name}_classifier")
        moments = features.load(name, expert.card)
        assert moments.count == expert.card.data["examples"]
        assert metrics.frechet(moments, moments) == pytest.approx(0, abs=1e-5)
    expert = weights.load("digits_classifier")
    found = metrics.moments(judge_all(expert.model, DIGITS["train"].x)[1])
    # The file was made on another machine: float32 features, a distance that is a square.
    assert metrics.frechet(found, features.load("digits", expert.card)) < 1e-4


def test_features_of_another_judge_or_a_damaged_file_are_refused(tmp_path):
    card = weights.load("digits_classifier").card
    with pytest.raises(ValueError, match="digits, mnist, shapes, got 'cifar10'"):
        features.load("cifar10", card)
    with pytest.raises(ValueError, match="classifier must be the one whose features mnist"):
        features.load("mnist", card)
    path = features.save(tmp_path, "digits", metrics.moments(DIGITS["train"].x), card)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(ValueError, match="must have the SHA-256 of its card"):
        features.load("digits", card, folder=tmp_path)


def test_the_judge_recognises_real_digits_that_it_has_not_seen():
    released = weights.load("digits_classifier")
    predicted = np.asarray(judge(released.model, DIGITS["test"].x)[0])
    accuracy = metrics.class_accuracy(predicted, DIGITS["test"].labels)
    assert accuracy >= 0.98
    # One image of 360 may fall the other way on another machine's float32.
    assert accuracy == pytest.approx(released.card.metrics["test_accuracy"], abs=2 / 360)


def test_released_digits_are_recognised_cover_all_classes_and_are_no_copies():
    released = weights.load("digits")
    quality = measure(
        released.model, released.process, released.card.kind, recipes.judge_for("digits"),
        DIGITS["train"], DIGITS["test"], scales=[1.0],
    )[1.0]  # fmt: skip
    assert quality.samples == 500 and quality.accuracy >= 0.97
    assert quality.worst_class >= 0.9
    assert quality.frechet < 1.6 * quality.frechet_floor and quality.frechet_samples == 360
    assert quality.exact_copies == 0 and quality.nearest > 0.7 * quality.nearest_real
    # The card's figures are these; another machine's rounding moves a few of 500 samples.
    assert quality.accuracy == pytest.approx(released.card.metrics["w=1"]["accuracy"], abs=0.01)
    assert quality.frechet == pytest.approx(released.card.metrics["w=1"]["frechet"], rel=0.1)


def test_real_images_for_comparison_come_from_the_whole_test_set():
    half, rest = DIGITS["test"].subset(np.arange(180)), DIGITS["train"].subset(np.arange(180))
    bright = rest.x * 0 + 1  # a second half that is nothing like the first
    mixed = replace(half, x=np.concatenate([half.x, bright]), labels=np.tile(half.labels, 2))
    expert = recipes.judge_for("digits")
    same, spread = (reference(expert, DIGITS["train"], part, 100) for part in (half, mixed))
    assert spread.unseen == same.unseen == 100
    assert spread.floor > 3 * same.floor and spread.nearest > same.nearest


def test_a_copying_model_would_be_noticed():
    copies = DIGITS["train"].subset(np.arange(0, 1437, 7))
    expert = recipes.judge_for("digits")
    real = reference(expert, DIGITS["train"], DIGITS["test"], len(copies))
    quality = compare(copies.x, copies.labels, expert, real, DIGITS["train"], w=1.0, steps=0)
    assert quality.exact_copies == 1 and quality.nearest < 0.1 * quality.nearest_real


SMALL = {
    "UNet": {"channels": [8, 32]},
    "Classifier": {"width": 8},
    "MLP": {"width": 16, "depth": 1},
}


@pytest.fixture
def small_recipe(monkeypatch):
    """Makes a recipe small enough for a test; its data are a few of its own kind."""

    def make(name):
        recipe = recipes.RECIPES[name]
        model = recipe.model | SMALL[recipe.model["class"]]
        few = {"samples": 20, "sampling_steps": 2, "scales": (0.0, 1.0), "batch_size": 32}
        bundled = recipe.dataset in ("toy2d", "shapes")
        if bundled:
            few["options"] = recipe.options | {"n": 100}
        else:
            sets = {split: DIGITS[split].subset(np.arange(70)) for split in DIGITS}
            monkeypatch.setattr(data, "load", lambda _, split="train": sets[split])
        if "image_size" in model and not bundled:
            model["image_size"] = 8
        recipe = replace(recipe, model=model, **few)
        monkeypatch.setitem(recipes.RECIPES, name, recipe)
        if recipe.dataset == "mnist":  # whose images are the digits' here
            digits_judge = weights.load("digits_classifier").model
            monkeypatch.setattr(recipes, "judge_for", lambda _: digits_judge)
        return recipe

    return make


@pytest.mark.parametrize("name", recipes.names())
def test_a_recipe_trains_measures_and_saves(tmp_path, small_recipe, name):
    recipe = small_recipe(name)
    path = recipes.train(name, out=tmp_path / "out", steps=2)
    released = weights.load(name, folder=path.parent)
    assert released.card.recipe["steps"] == 2
    assert released.card.data["examples"] in (70, 100)
    assert released.card.metrics
    assert not (tmp_path / "out" / f"{name}.state").exists()
    if not recipe.kind:
        moments = features.load(recipe.dataset, released.card, folder=path.parent)
        assert moments.count == released.card.data["examples"]
        assert metrics.frechet(moments, moments) == pytest.approx(0, abs=1e-6)


class Interrupted(Exception):
    pass


def interrupt(*_):
    raise Interrupted


@pytest.mark.parametrize("sitting", [4, 8])
def test_an_interrupted_recipe_goes_on_where_it_was(tmp_path, small_recipe, monkeypatch, sitting):
    small_recipe("toy2d")
    whole = recipes.train("toy2d", out=tmp_path / "whole", steps=8)
    run = recipes.run
    with monkeypatch.context() as context:  # in the middle, or after the last step
        context.setattr(recipes, "run", lambda *a, **k: run(*a, **k, stop=sitting))
        context.setattr(recipes, "measure_recipe", interrupt)
        with pytest.raises(Interrupted):
            recipes.train("toy2d", out=tmp_path / "parts", steps=8)
    with pytest.raises(resume.ResumeError, match="holds the state of an interrupted run"):
        recipes.train("toy2d", out=tmp_path / "parts", steps=8)
    parts = recipes.train("toy2d", out=tmp_path / "parts", steps=8, resume=True)
    assert whole.read_bytes() == parts.read_bytes()


def test_a_recipe_is_reproducible():
    recipe = replace(
        recipes.RECIPES["digits"], model={"class": "UNet", "channels": [8, 32], "num_classes": 10}
    )
    runs = [recipes.run(recipe, DIGITS["train"], steps=3, progress=False) for _ in range(2)]
    a, b = (card.flat_params(r.ema) for r in runs)
    assert all(np.array_equal(a[k], b[k]) for k in a)


def test_a_run_in_bfloat16_learns_the_same_and_keeps_float32_parameters():
    recipe = replace(
        recipes.RECIPES["digits"], model={"class": "UNet", "channels": [16, 32], "num_classes": 10}
    )
    coarse, fine = (
        recipes.run(recipe, DIGITS["train"], dtype=dtype, steps=4, progress=False)
        for dtype in ("bfloat16", "float32")
    )
    kinds = {leaf.dtype for leaf in jax.tree.leaves(coarse.state) if leaf.ndim}
    assert kinds == {np.dtype("float32")}
    # The same numbers are drawn; the network's part of the loss is rounded to 8 bits.
    np.testing.assert_allclose(coarse.history.loss, fine.history.loss, rtol=0.02)
    assert coarse.history.loss != fine.history.loss


def test_labels_are_dropped_in_training_and_the_null_class_is_trained():
    recipe = replace(
        recipes.RECIPES["digits"], label_dropout=1.0,
        model={"class": "UNet", "channels": [8, 32], "num_classes": 10},
    )  # fmt: skip
    before = card.flat_params(weights.build(recipe.model))["embed.label.embedding"]
    result = recipes.run(recipe, DIGITS["train"], steps=3, progress=False)
    moved = np.abs(card.flat_params(result.model)["embed.label.embedding"] - before).max(1)
    assert moved[10] > 0 and (moved[:10] == 0).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: weights.load("imagenet"), "name must be one of digits, .*got 'imagenet'"),
        (lambda: recipes.train("imagenet"), "name must be one of digits, .*got 'imagenet'"),
        (lambda: weights.build({"class": "GAN"}), "class must be one of .*got 'GAN'"),
        (
            lambda: weights.build({"class": "UNet"}, dtype="float16"),
            "dtype must be float32 or bfloat16, got 'float16'",
        ),
        (lambda: weights.build_process({"name": "expand"}), "name must be one of .*got 'expand'"),
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


def test_guidance_sharpens_the_released_digits():
    released = weights.load("digits")
    generate = sampling.generator(
        released.process, "v", samplers.ddim(released.process), sampling.uniform(20), (8, 8, 1)
    )
    expert, labels = recipes.judge_for("digits"), np.arange(100) % 10
    hits = [
        metrics.class_accuracy(
            judge(expert, generate(released.model, jax.random.key(2), 100, labels, w))[0], labels
        )
        for w in (0.0, 1.0, 2.0)
    ]
    # Without guidance the label is not used at all: one in ten, 4 standard errors of 100 draws.
    assert hits[0] < 0.1 + 4 * 0.03 and hits[1] > 0.9 and hits[2] >= hits[1] - 0.03


def test_released_mnist_digits_are_recognised():
    released, expert = weights.load("mnist"), weights.load("mnist_classifier")
    generate = sampling.generator(
        released.process, "v", samplers.ddim(released.process), sampling.uniform(20), (28, 28, 1)
    )
    labels = np.arange(200) % 10
    for w, name in ((1.0, "w=1"), (2.0, "w=2")):
        x = generate(released.model, jax.random.key(3), 200, labels, w)
        predicted, found = judge_all(expert.model, np.asarray(x))
        expected = released.card.metrics[name]["accuracy"]
        error = np.sqrt(expected * (1 - expected) / 200)
        # 200 draws, and 20 steps instead of the card's 25.
        assert metrics.class_accuracy(predicted, labels) >= expected - 4 * error - 0.01
    # Guided samples lie near real digits, whose features the package knows without the data.
    moments = features.load("mnist", expert.card)
    noise = judge_all(expert.model, np.random.default_rng(0).normal(size=(200, 28, 28, 1)))[1]
    assert metrics.frechet(found, moments) < 0.2 * metrics.frechet(noise, moments)


def test_the_documentation_quotes_the_cards():
    course = Path(__file__).parent.parent
    tables = (course / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    metrics_of = {name: weights.load(name).card.metrics for name in weights.names()}
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
