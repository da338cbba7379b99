"""The transformer of clips: which token hears which, and a time for each frame."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from diffusion_course.models import video


def awake(seed=0, **options):
    """A small network whose zero layers are not zero, so that everything counts."""
    settings = {"patch": 4, "width": 16, "depth": 2, "head_size": 8} | options
    model = video.VideoDiT((8, 12), 2, **settings, rngs=nnx.Rngs(seed))
    rng = np.random.default_rng(seed)

    def fill(leaf):
        return jnp.asarray(rng.normal(0, 0.3, leaf.shape), jnp.float32)

    nnx.update(model, jax.tree.map(fill, nnx.state(model, nnx.Param)))
    return model


def clips(batch=3, frames=5, seed=1):
    return jax.random.normal(jax.random.key(seed), (batch, frames, 8, 12, 2))


def changed(model, x, t, place):
    """Which frames of which clips change when one frame does: booleans [B, F]."""
    other = x.at[place].add(1.0)
    run = jax.jit(lambda x: model(x, t))
    return np.abs(np.asarray(run(x) - run(other))).max((2, 3, 4)) > 1e-6


def test_every_frame_hears_every_other_one_of_its_clip_and_none_of_another_clip():
    model, x, t = awake(), clips(), jnp.full(3, 0.4)
    heard = changed(model, x, t, (1, 3))
    assert heard[1].all() and not heard[[0, 2]].any()


def test_a_causal_model_hears_no_later_frame():
    model, x, t = awake(causal=True), clips(), jnp.full(3, 0.4)
    heard = changed(model, x, t, (1, 3))
    assert heard[1].tolist() == [False, False, False, True, True] and not heard[[0, 2]].any()


def test_one_time_for_a_clip_is_the_same_as_equal_times_of_its_frames():
    model, x, t = awake(), clips(), jnp.array([0.1, 0.5, 0.9])
    each = jnp.repeat(t[:, None], 5, axis=1)
    np.testing.assert_allclose(model(x, t), model(x, each), atol=1e-5)
    later = each.at[1, 2].set(0.7)
    apart = np.abs(np.asarray(model(x, each) - model(x, later))).max((2, 3, 4))
    assert (apart[1] > 1e-5).all() and (apart[[0, 2]] == 0).all()


def test_without_positions_of_time_the_order_of_frames_is_unknown():
    x, order = clips(), jnp.array([3, 0, 4, 1, 2])
    t = jnp.full(3, 0.4)
    for known in (False, True):
        model = awake(time_positions=known)
        gap = np.abs(np.asarray(model(x[:, order], t) - model(x, t)[:, order])).max()
        assert gap > 1e-2 if known else gap < 1e-5


def test_with_times_per_frame_they_and_the_frames_are_permuted_together():
    model, x, order = awake(time_positions=False), clips(), jnp.array([3, 0, 4, 1, 2])
    t = jax.random.uniform(jax.random.key(4), (3, 5))
    np.testing.assert_allclose(model(x[:, order], t[:, order]), model(x, t)[:, order], atol=1e-5)


def test_an_image_is_a_clip_of_one_frame_in_which_attention_over_time_does_nothing_new():
    model, x = awake(), clips(frames=1)
    assert model(x, jnp.full(3, 0.2)).shape == x.shape
    longer = model(jnp.repeat(x, 2, axis=1), jnp.full(3, 0.2))
    assert np.abs(np.asarray(longer[:, :1] - model(x, jnp.full(3, 0.2)))).max() > 1e-4


@pytest.mark.parametrize("tubelet", [1, 2, 3])
def test_boxes_and_frames_are_inverses_and_keep_their_numbers_together(tubelet):
    model, x = awake(tubelet=tubelet), clips(frames=6)
    boxes = model._boxes(x)
    assert boxes.shape == (3, 6 // tubelet, 6, tubelet * 32)
    np.testing.assert_array_equal(model._frames(boxes, x.shape), x)
    # The box of the first row, second column, second step of time.
    box = x[1, tubelet : 2 * tubelet, :4, 4:8]
    assert set(np.ravel(boxes[1, 1, 1]).tolist()) == set(np.ravel(box).tolist())
    assert model(x, jnp.full(3, 0.3)).shape == x.shape


def test_attention_over_space_stays_in_a_frame_and_over_time_at_a_place():
    tokens = jax.random.normal(jax.random.key(0), (2, 3, 4, 5))

    def blend(s):
        return jnp.broadcast_to(s.mean(1, keepdims=True), s.shape)

    def mean(axis):
        return np.broadcast_to(tokens.mean(axis, keepdims=True), tokens.shape)

    np.testing.assert_allclose(video.over_space(blend, tokens), mean(2), atol=1e-6)
    np.testing.assert_allclose(video.over_time(blend, tokens), mean(1), atol=1e-6)


def test_labels_are_heard_and_the_untrained_network_is_zero():
    model, x, t = awake(num_classes=3), clips(), jnp.full((3, 5), 0.5)
    gap = np.abs(np.asarray(model(x, t, jnp.array([0, 1, 2])) - model(x, t)))
    assert (gap.max((1, 2, 3, 4)) > 1e-4).all()
    fresh = video.VideoDiT(8, 1, patch=2, width=8, head_size=4, depth=1, rngs=nnx.Rngs(0))
    assert not np.any(fresh(jnp.ones((2, 3, 8, 8, 1)), jnp.ones(2)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch": 3}, "patch must divide image_size"),
        ({"width": 18, "head_size": 9}, "width must be a multiple of 4"),
        ({"head_size": 5}, "head_size must divide channels"),
        ({"depth": 0}, "depth must be a whole number at least 1"),
        ({"tubelet": 0}, "tubelet must be a whole number at least 1"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        awake(**options)


@pytest.mark.parametrize(
    ("tubelet", "frames", "t", "message"),
    [
        (1, 5, jnp.zeros((3, 4)), r"t must have shape \[B\] = \[3\] or \[B, F\] = \[3, 5\], got"),
        (2, 4, jnp.zeros((3, 4)), r"t must have shape \[B\] = \[3\], got \[3, 4\]"),
        (2, 5, jnp.zeros(3), "x must hold a multiple of 2 frames, got 5"),
        (1, 5, jnp.full((3, 5), 1.5), r"t must be in \[0, 1\]"),
    ],
)
def test_calls_that_do_not_fit_are_refused(tubelet, frames, t, message):
    with pytest.raises(ValueError, match=message):
        awake(tubelet=tubelet)(clips(frames=frames), t)
