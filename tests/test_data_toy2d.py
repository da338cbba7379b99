import numpy as np
import pytest

from diffusion_course import data
from diffusion_course.data import toy2d

KINDS = ["swiss_roll", "two_moons", "checkerboard", "mixture"]


def load(kind, split="train", **options):
    return data.load("toy2d", split, kind=kind, **options)


def test_the_kinds_are_these():
    assert list(toy2d.KINDS) == KINDS


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [1, 13, 4001])
def test_any_number_of_points_can_be_drawn(kind, n):
    points = load(kind, n=n)
    assert points.x.shape == (n, 2) and points.x.dtype == np.float32
    assert points.card.name == f"toy2d/{kind}"


@pytest.mark.parametrize("kind", KINDS)
def test_seeds_and_splits_are_streams_of_their_own(kind):
    first = load(kind, n=50, seed=3)
    np.testing.assert_array_equal(first.x, load(kind, n=50, seed=3).x)
    assert not np.isin(load(kind, n=50, seed=4).x, first.x).any()
    assert not np.isin(load(kind, "test", n=50, seed=3).x, first.x).any()


@pytest.mark.parametrize("kind", KINDS)
def test_both_axes_have_about_the_scale_of_images(kind):
    x = load(kind, n=20_000).x
    assert (np.abs(x.mean(0)) < 0.2).all()
    assert ((x.std(0) > 0.45) & (x.std(0) < 0.6)).all()
    assert np.abs(x).max() < 1.7


@pytest.mark.parametrize("kind", KINDS)
def test_train_and_test_follow_one_distribution(kind):
    train, test = load(kind, n=20_000), load(kind, "test", n=20_000)
    # Two means of 20,000 values of std below 0.6 differ by 0.006 (one standard error).
    assert np.abs(train.x.mean(0) - test.x.mean(0)).max() < 5 * 0.006
    # Shares of at most 1/2 differ by 0.005 (one standard error).
    counts = [np.bincount(d.labels, minlength=d.num_classes) / 20_000 for d in (train, test)]
    assert np.abs(counts[0] - counts[1]).max() < 5 * 0.005


def test_the_mixture_has_exactly_the_exported_parameters():
    n = 60_000
    points = load("mixture", n=n)
    for k, (mean, std, weight) in enumerate(zip(*toy2d.MIXTURE, strict=True)):
        mine = points.x[points.labels == k]
        # Five standard errors each: of a share, of a mean, of a standard deviation.
        assert abs(len(mine) / n - weight) < 5 * np.sqrt(weight * (1 - weight) / n)
        assert np.abs(mine.mean(0) - mean).max() < 5 * std / np.sqrt(len(mine))
        assert np.abs(mine.std(0) - std).max() < 5 * std / np.sqrt(2 * len(mine))


def test_the_mixture_is_asymmetric_and_cannot_be_changed():
    means, stds, weights = toy2d.MIXTURE
    assert means.shape == (3, 2) and len(np.unique(np.abs(means))) == 6
    assert len(set(stds)) == len(set(weights)) == 3 and weights.sum() == pytest.approx(1)
    with pytest.raises(ValueError, match="read-only"):
        means[0] = 0


def test_the_checkerboard_s_labels_are_its_dark_cells():
    points = load("checkerboard", n=5000)
    column, row = np.floor(2 * (points.x + 1)).astype(int).T
    assert points.x.min() >= -1 and points.x.max() < 1
    assert ((column + row) % 2 == 0).all()
    np.testing.assert_array_equal(points.labels, 2 * row + column // 2)
    assert np.bincount(points.labels).min() > 500  # 625 expected, standard deviation 23


def test_the_swiss_roll_s_radius_grows_with_its_angle():
    x = load("swiss_roll", n=5000).x
    turns = np.hypot(*x.T) * 4.5 / 2  # r = theta / (4.5 pi), so theta / (2 pi) = 2.25 r
    phase = np.arctan2(x[:, 1], x[:, 0]) / (2 * np.pi)
    off = (turns - phase + 0.5) % 1 - 0.5
    # Noise of 0.02 is 0.045 turns along the radius and at most 0.01 turns across it.
    assert abs(off.std() - 0.045) < 0.005 and abs(off.mean()) < 0.005
    assert turns.min() > 0.5 and 1.9 < np.quantile(2 * turns, 0.5) / 1.5 < 2.1


def test_each_moon_is_half_a_circle_around_its_own_centre():
    points = load("two_moons", n=5000)
    for label, (centre, side) in enumerate([((-0.5, -0.25), 1), ((0.5, 0.25), -1)]):
        moon = points.x[points.labels == label] / [0.63, 0.98] - centre
        # Noise of 0.04 is at most 0.064 radii, of which the standard error is below 0.002.
        assert abs(np.hypot(*moon.T).mean() - 1) < 0.01
        assert (side * moon[:, 1] > -0.3).all()


@pytest.mark.parametrize(
    ("option", "value"),
    [("kind", "spiral"), ("kind", None), ("n", 0), ("n", 2.5), ("n", True), ("seed", -1)],
)
def test_a_bad_option_is_refused_by_name(option, value):
    with pytest.raises(ValueError, match=rf"{option} must be .*got {value!r}"):
        data.load("toy2d", **{option: value})
