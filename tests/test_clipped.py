"""The recipe of clips: its loss, what it draws, and the four numbers that it is measured by."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from diffusion_course import data, rollouts, weights
from diffusion_course.data import clips
from diffusion_course.training import clipped, recipes
from diffusion_course.weights import card

KEY = jax.random.key(3)
RECIPE = recipes.RECIPES["clips"]
TINY = replace(
    RECIPE,
    model={"class": "VideoDiT", "image_size": 8, "image_channels": 3, "patch": 4, "width": 16,
           "depth": 1, "head_size": 8},
    options={"n": 30, "frames": 4, "size": 8}, steps=4, batch_size=5, images=2, samples=3,
    sampling_steps=3,
)  # fmt: skip
SETS = {split: data.load("clips", split, **TINY.options) for split in clips.SPLITS}


def true_clips(n=40, frames=8, split="test"):
    return clips.load(split, n=n, frames=frames).x


def test_the_data_set_holds_the_clips_and_what_is_true_of_them():
    made, found = clips.load("test", n=30, frames=4, size=8), SETS["test"]
    np.testing.assert_array_equal(found.x, made.x)
    np.testing.assert_array_equal(found.labels, made.kind)
    assert found.label_names == clips.KINDS and found.x.shape == (30, 4, 8, 8, 3)
    for name in ("position", "velocity", "colour"):
        np.testing.assert_array_equal(found.attributes[name], getattr(made, name))


def test_the_recipe_trains_every_parameter_and_measures_every_schedule():
    result = recipes.run(TINY, SETS["train"], progress=False)
    before, after = (card.flat_params(m) for m in (weights.build(TINY.model), result.model))
    for name in before:
        assert np.abs(before[name] - after[name]).max() > 0, name
    found = recipes.measure(TINY, result.ema, SETS["train"], SETS["test"])
    assert set(found) == {"samples", "data", "frame by frame", *rollouts.KINDS}
    assert found["samples"] == 3 and found["data"]["speeds of the data"] == 1


class Spy(nnx.Module):
    """Notes what it is given, and predicts nothing."""

    def __init__(self):
        self.seen = nnx.data([])

    def __call__(self, x, t, cond):
        assert cond is None
        self.seen.append((x.shape, np.asarray(t)))
        return jnp.zeros_like(x)


@pytest.mark.parametrize(
    ("images", "shapes"),
    [(0, [(5, 4, 8, 8, 3)]), (2, [(3, 4, 8, 8, 3), (8, 1, 8, 8, 3)])],
)
def test_some_clips_of_a_batch_are_single_frames(images, shapes):
    spy = Spy()
    recipes.clip_objective(replace(TINY, images=images))(spy, SETS["train"].x[:5], None, KEY)
    assert [shape for shape, _ in spy.seen] == shapes
    assert all(t.shape == shape[:2] for shape, t in spy.seen)


def test_images_weigh_as_much_as_the_clips_that_they_were():
    # A network that predicts zero has the loss E x0², whatever the noise; here of two kinds of
    # clips: 1 where they become images, 0.25 where they stay clips.
    x = np.ones((5, 4, 8, 8, 3), np.float32)
    x[2:] = 0.5
    loss = recipes.clip_objective(TINY)(Spy(), jnp.asarray(x), None, KEY)
    np.testing.assert_allclose(loss, (2 * 1 + 3 * 0.25) / 5, rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": 5}, "images must be a whole number in .*0, 4.*got 5"),
        ({"images": -1}, "images must be a whole number"),
        ({"samples": 1}, "samples must be a whole number at least 2, got 1"),
        ({"sampling_steps": 0}, "sampling_steps must be a whole number at least 1, got 0"),
        ({"model": {"class": "VideoDiT"}}, "model must be a dict with image_size in it"),
    ],
)
def test_a_recipe_of_clips_names_what_is_wrong(change, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **change)


# What is measured.


def test_true_clips_keep_the_rules():
    found = clipped.describe(true_clips())
    # A pixel is .125 wide: a centroid is known far better than that.
    assert found["motion error"] < 0.01 and found["size spread"] < 0.02
    assert found["colour spread"] < 1e-6 and found["speeds of the data"] == 1


def test_each_number_sees_its_own_mistake_and_only_that():
    x, rng = true_clips(), np.random.default_rng(0)
    right = clipped.describe(x)

    shuffled = np.take_along_axis(x, rng.permuted(
        np.tile(np.arange(8), (40, 1)), axis=1)[..., None, None, None], axis=1)  # fmt: skip
    out_of_order = clipped.describe(shuffled)
    assert out_of_order["motion error"] > 0.1
    assert out_of_order["colour spread"] == pytest.approx(right["colour spread"], abs=1e-6)
    assert out_of_order["size spread"] == pytest.approx(right["size spread"], abs=1e-6)

    # Every second frame in another colour, of the same brightness.
    turned = x.copy()
    turned[:, ::2] = turned[:, ::2][..., [1, 2, 0]]
    other = clipped.describe(turned)
    assert other["colour spread"] > 0.05 and other["motion error"] == right["motion error"]

    still = clipped.describe(np.repeat(x[:, :1], 8, axis=1))
    assert still["speeds of the data"] < 0.1 and still["motion error"] < 0.01

    wide = np.repeat(np.repeat(x, 2, axis=2), 2, axis=3)[:, :, 8:24, 8:24]  # a shape twice as large
    mixed = x.copy()
    mixed[:, ::2] = wide[:, ::2]
    assert clipped.describe(mixed)["size spread"] > 10 * right["size spread"]


def test_drift_is_the_share_that_is_still_right():
    made = clips.load("test", n=30, frames=12)
    right = clipped.drift(made.x[:, 4:], made, (0, 3, 7))
    assert right == {"kind": [1, 1, 1], "colour": [1, 1, 1]}
    # From the fourth frame on a third of the clips is another clip's.
    mixed, other = made.x[:, 4:].copy(), np.arange(30)
    other[::3] = np.roll(other[::3], 1)
    mixed[:, 3:] = made.x[other, 7:]
    found = clipped.drift(mixed, made, (0, 3, 7))
    for name in ("kind", "colour"):
        kept = (getattr(made, name)[other] == getattr(made, name)).mean()
        assert kept < 1 and found[name] == [1, round(kept, 4), round(kept, 4)]


@pytest.mark.parametrize("kind", rollouts.KINDS)
def test_drawn_clips_are_those_of_an_exact_sampler(kind):
    # The denoiser of one clip alone: whatever the schedule, that clip is drawn.
    one = jnp.asarray(SETS["train"].x[:1])

    class Knows(nnx.Module):
        def __call__(self, x, t, cond):
            return jnp.broadcast_to(one[:, : x.shape[1]], x.shape)

    x = clipped.drawer(TINY, kind)(Knows(), KEY, 2, 4)
    np.testing.assert_allclose(x, np.repeat(one, 2, axis=0), atol=1e-5)


def test_frames_by_themselves_are_put_in_rows():
    class Counts(nnx.Module):
        def __call__(self, x, t, cond):
            assert x.shape[1] == 1
            return jnp.zeros_like(x) + jnp.arange(len(x)).reshape(-1, 1, 1, 1, 1) / 10

    x = clipped.frame_by_frame(TINY, Counts(), KEY, 2, 3)
    np.testing.assert_allclose(x[:, :, 0, 0, 0], [[0, 0.1, 0.2], [0.3, 0.4, 0.5]], atol=1e-5)


def test_a_longer_clip_goes_on_from_its_context():
    class Repeats(nnx.Module):
        """Every frame is the one before it: the context's last one goes on for ever."""

        def __call__(self, x, t, cond):
            return jnp.concatenate([x[:, :2], jnp.broadcast_to(x[:, 1:2], x[:, 2:].shape)], 1)

    context = jnp.asarray(SETS["test"].x[:2, :2])
    x = clipped.roller(TINY, turns=3, new=2)(Repeats(), context, KEY, 0.0)
    assert x.shape == (2, 6, 8, 8, 3)
    np.testing.assert_allclose(x, np.repeat(context[:, 1:2], 6, axis=1), atol=1e-5)


def test_the_released_network_draws_frames_that_agree():
    found = weights.load("clips")
    about = replace(RECIPE, samples=8, sampling_steps=8)
    told = found.card.metrics
    key = jax.random.key(1)
    together = clipped.describe(clipped.drawer(about, "full")(found.model, key, 8, 8))
    alone = clipped.describe(clipped.frame_by_frame(about, found.model, key, 8, 8))
    # 8 clips in 8 steps, where the card has 48 in 24.
    for name in ("motion error", "colour spread"):
        assert together[name] < 0.6 * alone[name], name
        assert told["full"][name] < 0.6 * told["frame by frame"][name], name
