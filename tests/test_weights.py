"""Released weights: they load, they are what their cards say, and recipes make them."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from diffusion_course import checkpoints, data, metrics, recipes, samplers, sampling, weights
from diffusion_course.models.classifier import judge

DIGITS = {split: data.load("digits", split=split) for split in ("train", "test")}


@pytest.mark.parametrize("name", weights.names())
def test_released_weights_load_and_match_their_card_and_recipe(name):
    released = weights.load(name)
    assert released.card.name == name
    assert all(np.isfinite(a).all() for a in checkpoints.flat_params(released.model).values())
    recipe = recipes.RECIPES[name]
    assert released.card.model == recipe.model
    assert released.card.process == recipe.process and released.card.kind == recipe.kind
    for setting in ("steps", "batch_size", "learning_rate", "ema", "label_dropout", "seed"):
        assert released.card.recipe[setting] == getattr(recipe, setting)
    assert released.card.data["licence"] and released.card.data["source"]
    assert (weights.FOLDER / f"{name}.safetensors").stat().st_size <= 4_000_000


def test_the_digits_and_their_judge_are_released():
    assert {"digits", "digits_classifier"} <= set(weights.names())


def test_the_judge_recognises_real_digits_that_it_has_not_seen():
    released = weights.load("digits_classifier")
    predicted = np.asarray(judge(released.model, DIGITS["test"].x)[0])
    accuracy = metrics.class_accuracy(predicted, DIGITS["test"].labels)
    assert accuracy >= 0.98
    # One image of 360 may fall the other way on another machine's float32.
    assert accuracy == pytest.approx(released.card.metrics["test_accuracy"], abs=2 / 360)


def test_released_digits_are_recognised_cover_all_classes_and_are_no_copies():
    released = weights.load("digits")
    quality = recipes.measure(
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


def test_a_copying_model_would_be_noticed():
    copies = DIGITS["train"].subset(np.arange(0, 1437, 7))
    quality = recipes.measure_samples(
        copies.x, copies.labels, recipes.judge_for("digits"), DIGITS["train"], DIGITS["test"],
        w=1.0, steps=0,
    )  # fmt: skip
    assert quality.exact_copies == 1 and quality.nearest < 0.1 * quality.nearest_real


@pytest.mark.parametrize("name", recipes.names())
def test_a_recipe_trains_measures_and_saves(tmp_path, monkeypatch, name):
    few = {split: DIGITS[split].subset(np.arange(70)) for split in DIGITS}
    monkeypatch.setattr(data, "load", lambda _, split="train": few[split])
    small = {"channels": [8, 32]} if name == "digits" else {"width": 8}
    recipe = recipes.RECIPES[name]
    monkeypatch.setattr(recipes, "measure", partial(recipes.measure, samples=20))
    monkeypatch.setitem(recipes.RECIPES, name, replace(recipe, model=recipe.model | small))
    path = recipes.train(name, out=tmp_path / "out", steps=2)
    released = weights.load(name, folder=path.parent)
    assert released.card.recipe["steps"] == 2
    assert released.card.data["examples"] == 70
    assert released.card.metrics


def test_a_recipe_is_reproducible():
    recipe = replace(
        recipes.RECIPES["digits"], model={"class": "UNet", "channels": [8, 32], "num_classes": 10}
    )
    runs = [recipes.run(recipe, DIGITS["train"], steps=3, progress=False) for _ in range(2)]
    a, b = (checkpoints.flat_params(r.ema) for r in runs)
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
    before = checkpoints.flat_params(weights.build(recipe.model))["embed.label.embedding"]
    result = recipes.run(recipe, DIGITS["train"], steps=3, progress=False)
    moved = np.abs(checkpoints.flat_params(result.model)["embed.label.embedding"] - before).max(1)
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


def test_the_readme_quotes_the_cards():
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    metrics_of = {name: weights.load(name).card.metrics for name in weights.names()}
    assert f"{metrics_of['digits_classifier']['test_accuracy']:.1%} of 360 unseen" in readme
    for w in ("w=1", "w=2"):
        q = metrics_of["digits"][w]
        figures = (q["accuracy"], q["worst_class"], q["frechet"], q["nearest"])
        assert "{:.1%} | {:.0%} | {:.2f} | {:.2f}".format(*figures) in readme
