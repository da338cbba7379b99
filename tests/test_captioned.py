"""Recipes of captions: what they train on, where they start, and what their cards say."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from diffusion_course import data, weights
from diffusion_course.data import shapes
from diffusion_course.models import control, lora
from diffusion_course.models.layers import Linear
from diffusion_course.training import captioned, objectives_text, recipes
from diffusion_course.weights import card

COURSE = Path(__file__).resolve().parent.parent
IMAGES = {split: data.load("shapes", split, n=60, size=8) for split in ("train", "test")}
HEARTS = {split: data.load("shapes", split, n=20, size=8, new=True) for split in ("train", "test")}


class Spoken(nnx.Module):
    """A stand-in for the U-Net with captions, which compiles in a moment."""

    def __init__(self, image_channels=3, num_classes=27, *, rngs, **_):
        self.null_label = num_classes
        self.words = nnx.Param(jax.random.normal(rngs.params(), (num_classes + 1, 8)))
        self.first = Linear(image_channels, 8, rngs=rngs)
        self.last = Linear(8, image_channels, rngs=rngs)

    def __call__(self, x, t, cond=None, extras=None):
        h = self.first(x) + self.words[...][cond].mean(axis=1)[:, None, None]
        return self.last(jax.nn.silu(h)) + 0 * t[:, None, None, None]


class Quick(nnx.Module):
    """A stand-in for the judge, which sees one pixel of colour."""

    def __init__(self, image_channels=3, image_size=8, *, answers, rngs, **_):
        self.ends = np.cumsum(answers)[:-1].tolist()
        self.last = Linear(image_channels, sum(answers), rngs=rngs)

    def __call__(self, x):
        return tuple(jnp.split(self.last(x.mean(axis=(1, 2))), self.ends, axis=-1))

    def judge(self, x):
        return jnp.stack([logits.argmax(axis=-1) for logits in self(x)], axis=-1)


def captions_of(examples):
    return shapes.LANGUAGE(examples.attributes["caption"].tolist())


def test_a_judge_sees_all_combinations_and_a_model_of_captions_none_that_is_held_out():
    train = IMAGES["train"]
    x, answers = objectives_text.examples(recipes.RECIPES["shapes_judge"], train)
    assert x is train.x
    np.testing.assert_array_equal(answers, shapes.answers(train))
    for name in ("shapes_text", "shapes_clip", "shapes_control"):
        x, captions = objectives_text.examples(recipes.RECIPES[name], train)
        seen = shapes.answers(train).sum(axis=1) % 9 != 0
        assert 0 < len(x) == seen.sum() < 60
        np.testing.assert_array_equal(x, train.x[seen])
        np.testing.assert_array_equal(captions, captions_of(train)[seen])


def test_an_adapter_sees_its_few_images_as_often_as_those_that_are_kept():
    recipe, hearts = recipes.RECIPES["shapes_lora"], HEARTS["train"]
    alone = objectives_text.examples(replace(recipe, kept=0), hearts)
    for found, expected in zip(alone, (hearts.x, captions_of(hearts)), strict=True):
        np.testing.assert_array_equal(found, expected)
    x, captions = objectives_text.examples(replace(recipe, kept=47), hearts)
    new = captions[:, 3] == shapes.WORDS.index("*")
    assert new.sum() == 2 * 20 and (~new).sum() == 47 and len(x) == 87
    assert {image.tobytes() for image in x[new]} == {image.tobytes() for image in hearts.x}
    old = data.load("shapes", "train", n=94, size=8)
    held = {image.tobytes() for image in old.x[shapes.held_out(old)]}
    assert held and not held & {image.tobytes() for image in x[~new]}
    # Each image lies beside its own caption.
    red = (captions == shapes.WORDS.index("red")).any(axis=1)
    brightest = x.reshape(87, -1, 3).max(axis=1)
    assert red.any() and (brightest[red].argmax(axis=1) == 0).all()


def test_the_words_that_released_models_learnt_have_kept_their_places():
    # A model reads numbers: with another order every released one would be wrong.
    assert " ".join(shapes.WORDS) == (
        "a at the on in circle square triangle ring cross star red orange yellow green cyan blue "
        "purple white small large top bottom left right centre *"
    )
    assert [values[0] for values in shapes.ATTRIBUTES.values()] == [
        "circle", "red", "small", "top left"
    ]  # fmt: skip
    answers = [len(values) for values in shapes.ATTRIBUTES.values()]
    assert recipes.RECIPES["shapes_judge"].model["answers"] == answers


@pytest.fixture
def small(monkeypatch, tmp_path):
    """The recipes, so small that they run in a moment; the folder that they are loaded from."""
    words = {"class": "UNet", "image_channels": 3, "num_classes": 27}
    few = {"steps": 3, "batch_size": 8, "options": {"n": 60, "size": 8}}
    changes = {
        "shapes_judge": {"samples": 50, "model": {"class": "AttributeClassifier", "image_size": 8,
                         "answers": [6, 8, 2, 9]}},
        "shapes_text": {"samples": 40, "sampling_steps": 2, "scales": (0.0, 2.0), "model": words},
        "shapes_lora": {"samples": 20, "sampling_steps": 2, "kept": 20,
                        "options": {"n": 20, "size": 8, "new": True},
                        "model": {"class": "Adapter", "model": words, "rank": 2,
                                  "layers": ["last"]}},
    }  # fmt: skip
    for name, settings in changes.items():
        recipe = replace(recipes.RECIPES[name], **few | settings)
        monkeypatch.setitem(recipes.RECIPES, name, recipe)
    monkeypatch.setitem(weights._MODELS, "UNet", Spoken)
    monkeypatch.setitem(weights._MODELS, "AttributeClassifier", Quick)
    # Recipes find those that they need where the ones before have left them.
    for module in (recipes, captioned):
        monkeypatch.setattr(module.weights, "load", partial(weights.load, folder=tmp_path))
    return tmp_path


def test_a_judge_a_model_of_captions_and_an_adapter_are_trained_by_their_recipes(small):
    judge = card.load_card(recipes.train("shapes_judge", out=small))
    assert judge.metrics.keys() == {"of", "all", *shapes.ATTRIBUTES}
    assert judge.metrics["of"] == 50 and (judge.kind, judge.process) == ("", {})

    text = card.load_card(recipes.train("shapes_text", out=small))
    assert text.recipe["judge_sha256"] == judge.sha256 and text.recipe["held_out"] == 9
    assert (text.kind, text.process) == ("v", {"name": "vp_cosine"})
    held = shapes.held_out(IMAGES["test"])[:40].sum()
    for name, w in (("w=0", 0.0), ("w=2", 2.0)):
        found = text.metrics[name]
        assert (found["w"], found["samples"], found["steps"]) == (w, 40, 2)
        assert found["held_out_samples"] == held > 0
        # The whole is what its two parts are together.
        parts = (40 - held) * found["seen"] + held * found["held_out"]
        assert found["all"] * 40 == pytest.approx(parts)
        assert found["all"] <= min(found[name] for name in shapes.ATTRIBUTES)

    about = card.load_card(recipes.train("shapes_lora", out=small))
    assert about.recipe["base_sha256"] == text.sha256
    assert about.recipe["judge_sha256"] == judge.sha256
    assert about.metrics["bytes"] == 4 * 2 * (8 + 3) and about.metrics["samples"] == 20
    for name in ("with it", "without it"):
        for shown in ("new", "old"):
            assert about.metrics[name][shown].keys() == {*shapes.ATTRIBUTES, "all"}
    adapter, base = (weights.load(n, folder=small).model for n in ("shapes_lora", "shapes_text"))
    assert isinstance(adapter, lora.Adapter) and adapter.paths == ("last.kernel",)
    change = np.asarray(adapter.change("last.kernel"))
    assert np.linalg.matrix_rank(change) == 2  # it has learnt something
    after = card.flat_params(lora.apply(base, adapter))
    for path, before in card.flat_params(base).items():
        expected = before + change if path == "last.kernel" else before
        np.testing.assert_allclose(after[path], expected, rtol=1e-6)


def test_a_control_starts_as_a_copy_of_its_bases_encoder():
    recipe = recipes.RECIPES["shapes_control"]
    model, others = recipes._start(recipe, "float32")
    base = weights.load("shapes_text").model
    copied, trained = card.flat_params(model.encoder), card.flat_params(base)
    assert copied.keys() < trained.keys() and len(copied) > 50
    for name, array in copied.items():
        np.testing.assert_array_equal(array, trained[name])
    for name, array in card.flat_params(others["teacher"]).items():
        np.testing.assert_array_equal(array, trained[name])
    assert all((a == 0).all() for n, a in card.flat_params(model).items() if "joints" in n)


@pytest.mark.parametrize("name", ["shapes_control", "shapes_control_mask"])
def test_a_control_is_trained_on_the_map_that_its_recipe_names(name, monkeypatch):
    monkeypatch.setattr(objectives_text.losses, "diffusion_loss", lambda *_: 0.0)
    seen, x = [], IMAGES["train"].x[:3]

    class Watching(nnx.Module):
        null_label = shapes.LANGUAGE.padding

        def steer(self, base, image):
            seen.append(np.asarray(image))
            return base

    recipe, watching = recipes.RECIPES[name], Watching()
    loss = recipes.control_objective(recipe)
    loss(watching, x, captions_of(IMAGES["train"])[:3], jax.random.key(0), teacher=watching)
    maps = {"shapes_control": control.edges(x), "shapes_control_mask": control.silhouettes(x)}
    np.testing.assert_array_equal(seen, [maps[name]])
    assert (maps["shapes_control"] != maps["shapes_control_mask"]).any()


class Judge:
    """Says of the images that it is shown what it was told."""

    def __init__(self, said):
        self.said = said


@pytest.fixture
def knowing(monkeypatch):
    """A judge that recognises the unseen images, and answers 0 four times of any other."""
    answers = shapes.answers(IMAGES["test"])
    truth = {x.tobytes(): a for x, a in zip(IMAGES["test"].x, answers, strict=True)}

    def judged(_, x):
        rounded = np.asarray(x, np.float32)
        return np.array([truth.get(image.tobytes(), np.zeros(4, int)) for image in rounded])

    monkeypatch.setattr(captioned, "judged", judged)
    monkeypatch.setattr(captioned.weights, "load", lambda name: weights.Released(name, None, None))


def test_a_contrastive_pair_is_asked_for_its_captions_and_beside_the_judge(monkeypatch, knowing):
    unseen, own = IMAGES["test"], captions_of(IMAGES["test"])

    def painter(recipe, size):
        return lambda model, captions, w: unseen.x[:30] if w else unseen.x[:30] * 0

    class Pair(nnx.Module):
        """Finds the captions of all images but the first; scores how bright they are."""

        def __call__(self, x, captions):
            return jnp.eye(len(x)).at[0].set(jnp.arange(len(x)) == 1)

        def score(self, x, captions):
            return x.mean(axis=(1, 2, 3))

    monkeypatch.setattr(captioned, "painter", painter)
    text = replace(recipes.RECIPES["shapes_text"], samples=30, scales=(0.0, 3.0))
    monkeypatch.setitem(recipes.RECIPES, "shapes_text", text)
    found = recipes.measure(recipes.RECIPES["shapes_clip"], Pair(), IMAGES["train"], unseen)
    assert (own[0] != own[1]).any()
    assert (found["captions"], found["caption_found"]) == (30, pytest.approx(29 / 30))
    assert found["score_of_real_images"] == pytest.approx(unseen.x[:30].mean(), abs=1e-6)
    assert found["w=3"]["all"] == 1 and found["w=0"]["all"] < 0.2
    assert found["w=3"]["score"] == pytest.approx(unseen.x[:30].mean(), abs=1e-6)
    assert found["w=0"]["score"] == 0 and found["w=0"]["samples"] == 30


def test_a_control_is_measured_by_the_edges_that_were_asked_for(monkeypatch, knowing):
    unseen = IMAGES["test"]
    recipe = replace(
        recipes.RECIPES["shapes_control"],
        options={"n": 60, "size": 8}, samples=20, sampling_steps=2, strengths=(0.0, 1.0),
        scales=(0.0, 2.0),
    )  # fmt: skip
    p = weights.build_process(recipe.process)

    class Perfect(nnx.Module):
        """Returns the very image whose edges it is given at strength 1, and black at 0."""

        def steer(self, base, image, strength):
            def model(x, t, cond):
                told = (cond != shapes.LANGUAGE.padding).any(axis=1)[:, None, None, None]
                wanted = -1 + strength * (unseen.x[:20] + 1)
                alpha, sigma = (f(t)[:, None, None, None] for f in (p.alpha, p.sigma))
                # Without its caption it leaves the upper half black.
                rows = (jnp.arange(8) >= 4)[:, None, None] | told
                return (alpha * x - jnp.where(rows, wanted, -1.0)) / sigma

            return model

    class Base(nnx.Module):
        null_label = shapes.LANGUAGE.padding

    monkeypatch.setattr(captioned.weights, "load", lambda name: weights.Released(Base(), 0, None))
    found = recipes.measure(recipe, Perfect(), IMAGES["train"], unseen)
    assert list(found) == [f"strength={s}, w={w}" for w in (0, 2) for s in (0, 1)]
    edges = control.edges(unseen.x[:20])
    lower = control.edges(np.where(np.arange(8)[:, None, None] >= 4, unseen.x[:20], np.float32(-1)))
    halves = float(control.agreement(lower, edges).mean())
    assert found["strength=0, w=0"]["agreement"] == found["strength=0, w=2"]["agreement"] == 0
    assert found["strength=1, w=0"]["agreement"] == pytest.approx(halves, abs=1e-6)
    assert halves < 0.9 < found["strength=1, w=2"]["agreement"]
    assert found["strength=1, w=2"]["samples"] == 20 and found["strength=1, w=2"]["steps"] == 2


def test_drawings_are_recognised_wherever_they_stand_without_anything_trained():
    unseen = [data.load("shapes", "test", n=90, size=32, new=n, seed=3) for n in (False, True)]
    names = np.concatenate([np.array(part.label_names)[part.labels] for part in unseen])
    found = captioned.nearest_drawing(np.concatenate([part.x for part in unseen]))
    # Of 1,000 such drawings 3 are mistaken for others.
    assert (found == names).mean() >= 0.98 and set(found[90:]) <= {"heart"}


VALID = {
    "shapes_judge": [
        ({"noise": 1.1}, r"noise must be in \[0, 1\], got 1.1"),
        ({"samples": 0}, "samples must be a whole number at least 1, got 0"),
        ({"model": {"class": "AttributeClassifier"}}, "model must be a dict with answers in it"),
    ],
    "shapes_text": [({"held_out": 1}, "held_out must be a whole number at least 2, got 1")],
    "shapes_clip": [
        ({"noise": -0.1}, r"noise must be in \[0, 1\], got -0.1"),
        ({"held_out": 1}, "held_out must be a whole number at least 2, got 1"),
        ({"model": {}}, "model must be a dict with num_words in it"),
    ],
    "shapes_control": [
        ({"map": "depth"}, "map must be one of edges, silhouette, got 'depth'"),
        ({"label_dropout": 1.5}, r"label_dropout must be in \[0, 1\], got 1.5"),
        ({"held_out": 0}, "held_out must be a whole number at least 2, got 0"),
        ({"strengths": (np.nan,)}, "strengths must be in"),
        ({"scales": (np.inf,)}, "scales must be in"),
        ({"samples": 1}, "samples must be a whole number at least 2, got 1"),
        ({"sampling_steps": 0}, "sampling_steps must be a whole number at least 1, got 0"),
        ({"model": {"base": {}}}, "model must be a dict with base and control_channels in it"),
    ],
    "shapes_lora": [
        ({"guidance": np.nan}, "guidance must be in"),
        ({"samples": 1}, "samples must be a whole number at least 2, got 1"),
        ({"sampling_steps": 0}, "sampling_steps must be a whole number at least 1, got 0"),
        ({"kept": -1}, "kept must be a whole number at least 0, got -1"),
        ({"model": {"rank": 4}}, "model must be a dict with model and rank in it"),
    ],
}


@pytest.mark.parametrize("name", VALID)
def test_a_recipe_of_captions_names_a_bad_setting(name):
    for change, message in VALID[name]:
        with pytest.raises(ValueError, match=message):
            replace(recipes.RECIPES[name], **change)


def test_the_released_adapter_is_small_and_its_card_says_what_it_changes():
    found, base = weights.load("shapes_lora"), weights.load("shapes_text")
    assert found.card.recipe["base_sha256"] == base.card.sha256
    assert (weights.FOLDER / "shapes_lora.safetensors").stat().st_size < 150_000
    measured = found.card.metrics
    assert found.model.rank == 4 and len(found.model.paths) > 10
    assert measured["bytes"] == sum(a.nbytes + b.nbytes for a, b in found.model.factors().values())
    # Without it nothing is a heart; with it most are, and the six shapes are as they were.
    assert measured["without it"]["new"]["shape"] < 0.1 < 0.7 < measured["with it"]["new"]["shape"]
    assert measured["with it"]["old"]["all"] >= 0.97 <= measured["without it"]["old"]["all"]
    recorded = json.loads((COURSE / "benchmarks/results/shapes_lora.json").read_text("utf-8"))
    rows = {row["rank"]: row for row in recorded["rows"]}
    for rank, name in ((0, "without it"), (4, "with it")):
        assert {part: rows[rank][part] for part in ("new", "old")} == measured[name]
    assert rows[1]["new"]["all"] < rows[4]["new"]["all"] and rows[1]["bytes"] < rows[4]["bytes"]
    # Both sides of every product have been trained: B is no longer zero.
    assert all(np.any(np.asarray(b) != 0) for _, b in found.model.factors().values())


def test_the_released_control_steers_by_edges_and_its_card_says_how_far():
    found, base = weights.load("shapes_control"), weights.load("shapes_text")
    assert found.card.recipe["base_sha256"] == base.card.sha256
    measured = found.card.metrics
    without, alone = (measured[f"strength={s}, w=0"] for s in (0, 1))
    # By the edges alone, without a caption: the agreement, and where the shape stands.
    assert without["agreement"] < 0.15 and alone["agreement"] > without["agreement"] + 0.2
    assert without["position"] < 0.4 < 0.8 < alone["position"]
    told, both = (measured[f"strength={s}, w=2"] for s in (0, 1))
    assert both["agreement"] >= told["agreement"] and both["all"] >= 0.95
    joints = {n: a for n, a in card.flat_params(found.model).items() if n.startswith("joints")}
    assert joints and all((a != 0).any() for n, a in joints.items() if n.endswith("kernel"))


def test_the_released_control_of_masks_differs_from_that_of_edges_in_its_map_alone():
    by_mask, by_edges = (
        card.load_card(weights.FOLDER / f"{name}.safetensors")
        for name in ("shapes_control_mask", "shapes_control")
    )
    apart = {k for k, value in by_edges.recipe.items() if by_mask.recipe[k] != value}
    # The last three say how fast the computer was.
    assert apart == {"map", "command", "minutes", "images_per_second"}
    assert (weights.FOLDER / "shapes_control_mask.safetensors").stat().st_size < 1_600_000
    without, alone = (by_mask.metrics[f"strength={s}, w=0"] for s in (0, 1))
    assert without["agreement"] < 0.15 and alone["agreement"] > without["agreement"] + 0.4
    assert without["position"] < 0.4 < 0.8 < alone["position"]
