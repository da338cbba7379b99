"""Static figures: one look for the whole course.

The same thing has the same colour everywhere (`DATA`, `NOISE`, `PREDICTION`, `TRUTH`), and the
colours differ in lightness too, so that figures are readable in grey. Functions draw on axes
they are given, or make a figure; they return what they drew on and never call ``plt.show``.
"""

import io
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

DATA = "#1b4f72"
NOISE = "#9aa5ab"
PREDICTION = "#d35400"
TRUTH = "#111111"
NOT_A_NUMBER = (255, 0, 255)  # RGB of a pixel that is NaN; no shape has this colour
# For several curves of equal rank: they also fall in lightness, and differ in dash.
SERIES = ("#12355b", "#b3541e", "#3a7d5d", "#8c5fa8", "#c79b2b", "#7f8c8d")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)))


def use_style() -> None:
    """Sets matplotlib's defaults for the course: small files, quiet axes, 80 dpi."""
    plt.rcParams.update(
        {
            "figure.dpi": 80,
            "savefig.dpi": 80,
            "figure.constrained_layout.use": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlesize": "medium",
            "axes.titlelocation": "left",
            "image.cmap": "gray",
            "legend.frameon": False,
        }
    )


def to_pixels(images) -> np.ndarray:
    """Images in [−1, 1] to uint8 RGB: [..., H, W, 1 or 3] -> [..., H, W, 3]; clipped.

    A pixel with NaN is bright pink, where black would look like a picture. Infinities are clipped.
    (A colour may be clipped to the same pink.)

    Raises: ValueError for another number of channels.
    """
    images = np.asarray(images, np.float32)
    if images.ndim < 3 or images.shape[-1] not in (1, 3):
        raise ValueError(f"images must have shape [..., H, W, 1 or 3], got shape {images.shape}")
    pixels = np.rint((np.clip(np.nan_to_num(images), -1, 1) + 1) * 127.5).astype(np.uint8)
    bad = np.isnan(images).any(-1, keepdims=True)
    return np.where(bad, np.uint8(NOT_A_NUMBER), np.broadcast_to(pixels, (*pixels.shape[:-1], 3)))


def tile(images, columns: int, gap: int = 1) -> np.ndarray:
    """Puts images [N, H, W, 1 or 3] into one uint8 picture, row by row, on a light ground."""
    pixels = to_pixels(images)
    n, height, width, _ = pixels.shape
    rows = -(-n // columns)
    cell = np.array([height + gap, width + gap])
    canvas = np.full((*(cell * (rows, columns) + gap), 3), 235, np.uint8)
    for i, picture in enumerate(pixels):
        top, left = gap + cell * divmod(i, columns)
        canvas[top : top + height, left : left + width] = picture
    return canvas


def image_grid(
    rows: Sequence, labels: Sequence[str] | None = None, title: str = "", scale: float = 0.6
) -> Figure:
    """One row of pictures for each entry of rows ([N, H, W, C]), with its label at the left.

    Args:
      rows: arrays [N, H, W, 1 or 3] in [−1, 1].
      labels: one text per row, or None.
      title: of the figure.
      scale: inches per picture.
    """
    if labels is not None and len(labels) != len(rows):
        raise ValueError(f"labels must have {len(rows)} entries, one per row, got {len(labels)}")
    columns = max(len(row) for row in rows)
    size = (scale * columns + (1.2 if labels is not None else 0), scale * len(rows) + 0.3)
    fig, axes = plt.subplots(len(rows), 1, figsize=size, squeeze=False)
    for i, (ax, row) in enumerate(zip(axes[:, 0], rows, strict=True)):
        ax.imshow(tile(row, columns), interpolation="nearest")
        ax.set_xticks([])
        ax.set_yticks([])
        ax.spines[:].set_visible(False)
        if labels is not None:
            ax.set_ylabel(labels[i], rotation=0, ha="right", va="center")
    fig.suptitle(title, x=0.02, ha="left", size="medium")
    return fig


def curves(
    x,
    series: Mapping[str, np.ndarray],
    *,
    xlabel: str,
    ylabel: str,
    ax: Axes | None = None,
    log: str = "",
    label_at: float = 0.75,
) -> Axes:
    """Lines that carry their own names, so that no legend is needed.

    Args:
      x: [N].
      series: name -> values [N].
      xlabel: symbol and words.
      ylabel: symbol and words.
      ax: where to draw; a new figure without it.
      log: the axes that are logarithmic: "", "x", "y" or "xy".
      label_at: where along its line (0 to 1) a name stands if there is room; if not, where the
        least is in its way. Limits that are set before the call are respected.
    """
    ax = plt.subplots(figsize=(5, 3))[1] if ax is None else ax
    if "x" in log:
        ax.set_xscale("log")
    if "y" in log:
        ax.set_yscale("log")
    lines = {}
    for i, (name, y) in enumerate(series.items()):
        style = {"color": SERIES[i % len(SERIES)], "ls": DASHES[i % len(DASHES)]}
        lines[name] = ax.plot(np.asarray(x), np.asarray(y), **style)[0]
    ax.set(xlabel=xlabel, ylabel=ylabel)
    _name_lines(ax, lines, label_at)
    return ax


def _name_lines(ax: Axes, lines: Mapping[str, Line2D], label_at: float) -> None:
    """Writes each name beside its line, where it meets the fewest other lines and names."""
    ax.autoscale_view()  # lines don't move the limits until something asks for them
    em = 10 * 0.833 * ax.figure.dpi / 72  # pixels of "small" type
    paths = {name: _path_in_pixels(ax, line) for name, line in lines.items()}
    frame = ax.get_window_extent()
    taken = []
    for name, path in paths.items():
        if not len(path):
            continue
        width, height, gap = 0.6 * em * len(name), 1.1 * em, 0.3 * em
        best = None
        for at in np.linspace(0, 1, 41):
            px, py = path[int(at * (len(path) - 1))]
            for side, left in ((1, px), (-1, px), (1, px - width), (-1, px - width)):
                low = py + gap if side > 0 else py - gap - height
                box = (left - gap, low, left + width + gap, low + height)
                inside = (frame.x0 <= box[0] and box[2] <= frame.x1
                          and frame.y0 <= box[1] and box[3] <= frame.y1)  # fmt: skip
                cost = abs(at - label_at) + 100 * (not inside)
                cost += sum(_points_in(box, other) for other in paths.values()) / em
                cost += sum(20 for other in taken if _overlap(box, other))
                if best is None or cost < best[0]:
                    best = cost, box, (left, low)
        taken.append(best[1])
        ax.annotate(name, ax.transData.inverted().transform(best[2]), size="small",
                    color=lines[name].get_color(), annotation_clip=False)  # fmt: skip


def _path_in_pixels(ax: Axes, line: Line2D) -> np.ndarray:
    """The visible part of a line, about one point per pixel, [M, 2]."""
    with np.errstate(divide="ignore", invalid="ignore"):
        corners = ax.transData.transform(np.column_stack([line.get_xdata(), line.get_ydata()]))
    corners = corners[np.isfinite(corners).all(1)]
    if len(corners) < 2:
        return corners
    length = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(corners, axis=0).T))])
    spots = np.arange(0, length[-1] + 1)
    path = np.column_stack([np.interp(spots, length, corners[:, k]) for k in (0, 1)])
    return path[[ax.bbox.contains(*point) for point in path]]


def _points_in(box, path: np.ndarray) -> int:
    x0, y0, x1, y1 = box
    return int(
        np.sum((path[:, 0] > x0) & (path[:, 0] < x1) & (path[:, 1] > y0) & (path[:, 1] < y1))
    )


def _overlap(a, b) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def points(ax: Axes, x, color: str = DATA, size: float = 4, alpha: float = 0.4, **kwargs) -> Axes:
    """A cloud of points [N, 2] on equal, unlabelled axes."""
    x = np.asarray(x)
    ax.scatter(x[:, 0], x[:, 1], s=size, color=color, alpha=alpha, lw=0, **kwargs)
    ax.set_aspect("equal")
    return ax


def panels(
    clouds: Mapping,
    title: str = "",
    *,
    behind=None,
    color: str | Mapping[str, str] = PREDICTION,
    limits: Sequence | None = None,
    size: float = 4,
    alpha: float = 0.4,
    scale: float = 2.6,
) -> Figure:
    """Clouds of points side by side on the same equal axes, each under its title.

    The axes are `fig.axes`, row by row: draw arrows or further points there.

    Args:
      clouds: title -> points [N, 2], for one row; for several, the row's label -> such a mapping,
        with the same titles in each.
      title: of the figure.
      behind: points [M, 2] that lie in `DATA`'s colour under every panel, or title -> points.
      color: of the points; or title or row's label -> its color, `PREDICTION` for all others.
      limits: (low, high) of both axes, or ((low, high), (low, high)) of x and y; without it, a
        square that holds every point.
      size: of a point.
      alpha: opacity of a point.
      scale: inches per panel.

    Raises:
      ValueError: no panel, points that are not [N, 2], rows with different titles, or a title in
        behind or color that no panel has.
    """
    nested = all(isinstance(row, Mapping) for row in clouds.values())
    rows = clouds if nested else {"": clouds}
    rows = {
        label: {name: _cloud(name, x) for name, x in row.items()} for label, row in rows.items()
    }
    names = list(next(iter(rows.values()), ()))
    if not names or any(list(row) != names for row in rows.values()):
        given = {label: list(row) for label, row in rows.items()}
        raise ValueError(
            f"clouds must have the same titles, at least one, in each row, got {given}"
        )
    under = {} if behind is None else behind
    under = under if isinstance(under, Mapping) else dict.fromkeys(names, under)
    under = {name: _cloud(name, x) for name, x in under.items()}
    colors = color if isinstance(color, Mapping) else dict.fromkeys(names, color)
    for argument, keys, known in (("behind", under, names), ("color", colors, [*names, *rows])):
        if unknown := [key for key in keys if key not in known]:
            raise ValueError(f"{argument} must name some of {known}, got {unknown}")

    drawn = [x for row in rows.values() for x in row.values()] + list(under.values())
    (left, right), (low, high) = _square(drawn) if limits is None else _pair_of_limits(limits)
    shape = (len(rows), len(names))
    height = scale * (high - low) / (right - left)
    figsize = (scale * shape[1] + 0.5, height * shape[0] + 0.5 + 0.3 * bool(title))
    fig, axes = plt.subplots(*shape, figsize=figsize, sharex=True, sharey=True, squeeze=False)
    for line, (label, row) in zip(axes, rows.items(), strict=True):
        for ax, (name, x) in zip(line, row.items(), strict=True):
            if name in under:
                points(ax, under[name], DATA, size, alpha=0.5)
            points(ax, x, colors.get(name, colors.get(label, PREDICTION)), size, alpha)
            ax.set(xlim=(left, right), ylim=(low, high))
            ax.locator_params(nbins=5)
        line[0].set_ylabel(f"{label}\n\n$x_2$" if label else "$x_2$")
    for ax, name in zip(axes[0], names, strict=True):
        ax.set_title(name)
    for ax in axes[-1]:
        ax.set_xlabel("$x_1$")
    fig.suptitle(title, x=0.02, ha="left", size="medium")
    return fig


def _cloud(name: str, x) -> np.ndarray:
    x = np.asarray(x)
    if x.ndim != 2 or x.shape[1] != 2:
        raise ValueError(f"the points of {name!r} must have shape [N, 2], got {x.shape}")
    return x


def _square(clouds: Sequence[np.ndarray]):
    """Limits of x and y, equally far apart, that hold every finite point with a margin."""
    every = np.concatenate(clouds)
    every = every[np.isfinite(every).all(1)]
    if not len(every):
        return (-1.0, 1.0), (-1.0, 1.0)
    lowest, highest = every.min(0), every.max(0)
    half = 0.54 * max((highest - lowest).max(), 1e-3)
    return [(float(c - half), float(c + half)) for c in (lowest + highest) / 2]


def _pair_of_limits(limits):
    if np.ndim(limits) == 1:
        limits = (limits, limits)
    if np.shape(limits) != (2, 2) or any(low >= high for low, high in limits):
        raise ValueError(f"limits must be (low, high) or two such pairs, got {limits}")
    return limits


def plane(low: float = -2.0, high: float = 2.0, n: int = 21) -> np.ndarray:
    """A regular grid of points in the plane, [n², 2] float32: the start of `arrows`."""
    u = np.linspace(low, high, n, dtype=np.float32)
    return np.stack(np.meshgrid(u, u), axis=-1).reshape(-1, 2)


def arrows(ax: Axes, start, end, color: str = PREDICTION, scale: float = 1.0) -> Axes:
    """Arrows from start [N, 2] towards end [N, 2], drawn to `scale` of their length."""
    start, end = np.asarray(start), np.asarray(end)
    move = scale * (end - start)
    ax.quiver(
        start[:, 0], start[:, 1], move[:, 0], move[:, 1],
        color=color, angles="xy", scale_units="xy", scale=1, width=0.004,
    )  # fmt: skip
    ax.set_aspect("equal")
    return ax


def to_png(fig: Figure, close: bool = True) -> bytes:
    """The figure as PNG bytes at the course's resolution; closes it unless told otherwise."""
    buffer = io.BytesIO()
    # No metadata: the same figure is the same bytes, whichever version drew it.
    fig.savefig(buffer, format="png", metadata={"Software": None})
    if close:
        plt.close(fig)
    return buffer.getvalue()
