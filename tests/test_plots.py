"""Figures: the names on the lines."""

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
