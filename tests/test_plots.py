"""Figures: the names on the lines, the colours of pixels."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest

from diffusion_course.notebook import plots


@pytest.fixture(autouse=True)
def style():
    with plt.rc_context():
        plots.use_style()
        yield
    plt.close("all")


def boxes(ax):
    ax.figure.canvas.draw()
    return [text.get_window_extent() for text in ax.texts]


def test_names_neither_overlap_nor_leave_the_axes():
    x = np.linspace(0, 1, 101)
    names = ("linear", "scaled-linear", "quadratic", "sigmoid", "cosine", "zero-SNR")
    # Bundled in the middle and apart at the end, as schedules are.
    series = {name: np.tanh(3 * x) + 0.3 * i * x**4 for i, name in enumerate(names)}
    ax = plots.curves(x, series, xlabel="x", ylabel="y")
    found = boxes(ax)
    assert [text.get_text() for text in ax.texts] == list(names)
    for i, one in enumerate(found):
        assert not any(one.overlaps(other) for other in found[i + 1 :])
        # A few pixels: the width of a text is estimated before it is drawn.
        assert ax.bbox.padded(8).fully_contains(one.x0, one.y0)
        assert ax.bbox.padded(8).fully_contains(one.x1, one.y1)


@pytest.mark.parametrize("log", ["", "x", "y", "xy"])
def test_a_name_stands_beside_its_own_line(log):
    x = np.geomspace(0.01, 10, 40)
    series = {"low": 0.02 * x, "high": 50 + 3 * x}
    ax = plots.curves(x, series, xlabel="x", ylabel="y", log=log)
    for box, y in zip(boxes(ax), series.values(), strict=True):
        at = ax.transData.transform(np.column_stack([x, y]))
        fine = np.linspace(0, len(x) - 1, 4000)
        at = np.column_stack([np.interp(fine, np.arange(len(x)), at[:, k]) for k in (0, 1)])
        assert min(np.hypot(*(at - centre).T).min() for centre in (box.p0, box.p1)) < 40


def test_limits_that_were_set_before_stay_and_infinite_values_are_no_error():
    x = np.linspace(0, 1, 50)
    ax = plt.subplots()[1]
    ax.set_ylim(-13, 13)
    with np.errstate(divide="ignore"):
        plots.curves(x, {"log-SNR": np.log(1 - x) - np.log(x)}, xlabel="t", ylabel="λ", ax=ax)
    assert ax.get_ylim() == (-13, 13)
    (box,) = boxes(ax)
    assert ax.bbox.padded(8).contains(box.x0, box.y0)


def test_a_line_without_a_finite_point_has_no_name():
    ax = plots.curves([0.0, 1.0], {"nothing": [np.nan, np.nan]}, xlabel="x", ylabel="y")
    assert not ax.texts


def test_panels_share_limits_that_hold_every_point_and_are_square():
    rng = np.random.default_rng(0)
    clouds = {"a": rng.normal(3, 1, (50, 2)), "b": rng.normal(-1, 0.1, (7, 2))}
    fig = plots.panels(clouds, "two clouds", behind=np.array([[9.0, 0.0], [np.nan, 1e9]]))
    assert [ax.get_title(loc="left") for ax in fig.axes] == ["a", "b"]
    limits = {(*ax.get_xlim(), *ax.get_ylim()) for ax in fig.axes}
    ((left, right, low, high),) = limits
    assert right - left == pytest.approx(high - low)
    every = np.concatenate([*clouds.values(), [[9.0, 0.0]]])
    assert (every > (left, low)).all() and (every < (right, high)).all()


def test_panels_in_rows_carry_labels_colors_and_the_cloud_behind():
    x, data = np.ones((3, 2)), np.zeros((2, 2))
    rows = {"exact": {"t = 1": x, "t = 0": x}, "learned": {"t = 1": x, "t = 0": x}}
    color = {"exact": plots.TRUTH}
    fig = plots.panels(rows, behind={"t = 0": data}, color=color, limits=((-2, 2), (-1, 3)))
    assert [ax.get_title(loc="left") for ax in fig.axes] == ["t = 1", "t = 0", "", ""]
    assert fig.axes[0].get_ylabel().startswith("exact")
    assert [len(ax.collections) for ax in fig.axes] == [1, 2, 1, 2]
    under, over = fig.axes[3].collections
    np.testing.assert_array_equal(under.get_offsets(), data)
    assert matplotlib.colors.to_hex(over.get_facecolor()) == plots.PREDICTION
    assert matplotlib.colors.to_hex(fig.axes[1].collections[1].get_facecolor()) == plots.TRUTH
    assert fig.axes[2].get_xlim() == (-2, 2) and fig.axes[2].get_ylim() == (-1, 3)


@pytest.mark.parametrize(
    ("clouds", "options", "message"),
    [
        ({}, {}, "at least one"),
        ({"a": np.ones((4, 3))}, {}, r"'a' must have shape \[N, 2\], got \(4, 3\)"),
        ({"a": np.ones(4)}, {}, "shape"),
        ({"r": {"a": np.ones((1, 2))}, "s": {"b": np.ones((1, 2))}}, {}, "same titles"),
        ({"a": np.ones((1, 2))}, {"behind": {"b": np.ones((1, 2))}}, "behind must name"),
        ({"a": np.ones((1, 2))}, {"color": {"b": "red"}}, "color must name"),
        ({"a": np.ones((1, 2))}, {"limits": (1, 1)}, "limits must be"),
    ],
)
def test_panels_refuse_what_they_cannot_draw(clouds, options, message):
    with pytest.raises(ValueError, match=message):
        plots.panels(clouds, **options)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_pixel_that_is_no_number_is_pink_and_no_other(channels):
    images = np.random.default_rng(0).uniform(-3, 3, (2, 4, 5, channels)).astype(np.float32)
    images[0, 1, 2, 0], images[1, 3, 4, 0] = np.inf, -np.inf
    whole = plots.to_pixels(images)
    assert whole.dtype == np.uint8 and whole.shape == (2, 4, 5, 3)
    np.testing.assert_array_equal(whole[0, 1, 2, 0], 255)
    np.testing.assert_array_equal(whole[1, 3, 4, 0], 0)
    clipped = np.clip(images, -1, 1).astype(np.float64)
    assert np.abs(whole / 127.5 - 1 - clipped).max() <= 0.5 / 127.5 + 1e-6
    images[1, 0, 3, -1] = np.nan
    marked = plots.to_pixels(images)
    assert tuple(marked[1, 0, 3]) == plots.NOT_A_NUMBER
    marked[1, 0, 3] = whole[1, 0, 3]
    np.testing.assert_array_equal(marked, whole)
