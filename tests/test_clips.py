"""Clips of a moving shape: exact paths, and what is measured in the pixels."""

import numpy as np
import pytest

from diffusion_course.data import clips, shapes


def test_the_first_clips_and_frames_do_not_depend_on_how_many_there_are():
    many, few = clips.load(n=7, frames=9, size=12), clips.load(n=3, frames=4, size=12)
    np.testing.assert_array_equal(many.x[:3, :4], few.x)
    np.testing.assert_array_equal(many.position[:3, :4], few.position)
    for other in (clips.load("test", n=3, size=12), clips.load(n=3, size=12, seed=1)):
        assert not np.array_equal(other.velocity, few.velocity)


def test_a_shape_moves_with_constant_speed_and_its_bounce_is_exact():
    found = clips.load(n=50, frames=30, size=8)
    assert np.abs(found.position).max() <= clips.WALL + 1e-12
    # Step by step with a mirror at each wall, in place of the formula.
    place, speed = found.position[:, 0].copy(), found.velocity.copy()
    bounces = 0
    for frame in range(30):
        np.testing.assert_allclose(found.position[:, frame], place, atol=1e-9)
        place = place + speed
        for side in (-1, 1):
            beyond = side * place > clips.WALL
            place = np.where(beyond, 2 * side * clips.WALL - place, place)
            speed = np.where(beyond, -speed, speed)
            bounces += beyond.sum()
    assert bounces > 100
    slow, fast = np.abs(found.velocity).min(), np.abs(found.velocity).max()
    assert clips.SLOWEST <= slow < 0.07 and 0.18 < fast <= clips.FASTEST


def test_place_size_and_colour_are_found_in_the_pixels():
    found = clips.load(n=60, size=16)
    seen = clips.measure(found.x)
    # A pixel is 1/8 wide; of a symmetric shape that is drawn with soft edges, a centroid is exact
    # to a small part of it.
    assert np.abs(seen.position - found.position).max() < 0.015
    true = np.array(list(shapes.COLOURS.values()))[found.colour]
    np.testing.assert_allclose(seen.colour, np.repeat(true[:, None], 8, 1), atol=0.03)
    # In units of the image's area, 4: a disc of .95, a square of 2·.74, a ring from .49 to .95.
    areas = np.array([np.pi * 0.95**2, 1.48**2, np.pi * (0.95**2 - 0.49**2)])
    expected = areas[found.kind] * clips.RADIUS**2 / 4
    np.testing.assert_allclose(seen.size, np.repeat(expected[:, None], 8, 1), rtol=0.08)


def test_a_frame_is_the_shape_that_shapes_draws_there():
    found = clips.load(n=2, frames=3, size=10)
    kind, rgb = found.kind[1], list(shapes.COLOURS.values())[found.colour[1]]
    alone = shapes.draw(
        10, [shapes.SHAPES[clips.KINDS[kind]]], np.zeros(1, int), np.array([rgb]),
        np.array([clips.RADIUS]), found.position[1, 2:3], np.zeros(1),
    )  # fmt: skip
    np.testing.assert_array_equal(alone[0], found.x[1, 2])


def test_the_motion_of_a_clip_is_found_and_a_shuffled_clip_has_none():
    found = clips.load(n=25, frames=8, size=8)
    fit = clips.motion(found.position)
    assert fit.error.max() < 0.005
    np.testing.assert_allclose(np.abs(fit.velocity), np.abs(found.velocity), atol=0.005)
    np.testing.assert_allclose(fit.start, found.position[:, 0], atol=0.01)
    shuffled = found.position[:, [3, 0, 6, 1, 7, 4, 2, 5]]
    assert np.median(clips.motion(shuffled).error) > 0.1
    noise = np.random.default_rng(0).normal(0, 0.03, found.position.shape)
    noisy = clips.motion(found.position + noise).error
    # Two coordinates of noise .03 each, of which four numbers of the path take their share.
    assert 0.02 < noisy.mean() < 0.03 * np.sqrt(2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "val"}, "split must be one of train, test"),
        ({"n": 0}, "n must be a whole number at least 1"),
        ({"frames": 0}, "frames must be a whole number at least 1"),
        ({"size": 4}, r"size must be a whole number in \[8, 512\]"),
        ({"seed": -1}, "seed must be a whole number at least 0"),
    ],
)
def test_clips_refuse_other_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        clips.load(**arguments)


def test_measures_refuse_other_shapes():
    with pytest.raises(ValueError, match="x must have shape"):
        clips.measure(np.zeros((4, 4), np.float32))
    with pytest.raises(ValueError, match="position must have shape"):
        clips.motion(np.zeros((3, 2, 2)))


def test_every_frame_of_the_data_is_recognised_and_so_is_a_noisy_one():
    made = clips.load("test", n=60, frames=6)
    kind, colour = clips.recognise(made.x)
    assert kind.shape == colour.shape == (60, 6) and kind.dtype == np.int32
    assert (made.kind == kind.T).all() and (made.colour == colour.T).all()
    # With noise on every pixel, some of which is then brighter than the shape's edge.
    soft = made.x + 0.1 * np.random.default_rng(0).standard_normal(made.x.shape)
    kind, colour = clips.recognise(np.clip(soft, -1, 1).astype(np.float32))
    assert (made.kind == kind.T).mean() > 0.95 and (made.colour == colour.T).mean() > 0.95
    with pytest.raises(ValueError, match="x must have shape"):
        clips.recognise(made.x[..., :2])
