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

DATA = "#1b4f72"
NOISE = "#9aa5ab"
PREDICTION = "#d35400"
TRUTH = "#111111"
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

    Raises: ValueError for another number of channels.
    """
    images = np.asarray(images, np.float32)
    if images.ndim < 3 or images.shape[-1] not in (1, 3):
        raise ValueError(f"images must have shape [..., H, W, 1 or 3], got shape {images.shape}")
    pixels = np.rint((np.clip(images, -1, 1) + 1) * 127.5).astype(np.uint8)
    return np.broadcast_to(pixels, (*pixels.shape[:-1], 3))


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
      label_at: where along x (0 to 1) the names stand.
    """
    ax = plt.subplots(figsize=(5, 3))[1] if ax is None else ax
    x = np.asarray(x)
    for i, (name, y) in enumerate(series.items()):
        y = np.asarray(y)
        color = SERIES[i % len(SERIES)]
        ax.plot(x, y, color=color, ls=DASHES[i % len(DASHES)])
        # Names are staggered, so that lines that lie close together stay readable.
        where = min(int((label_at + 0.07 * (i - len(series) / 2)) * len(x)), len(x) - 1)
        if np.isfinite(y[where]):
            ax.annotate(name, (x[where], y[where]), color=color, size="small",
                        xytext=(3, 3), textcoords="offset points")  # fmt: skip
    if "x" in log:
        ax.set_xscale("log")
    if "y" in log:
        ax.set_yscale("log")
    ax.set(xlabel=xlabel, ylabel=ylabel)
    return ax


def points(ax: Axes, x, color: str = DATA, size: float = 4, alpha: float = 0.4, **kwargs) -> Axes:
    """A cloud of points [N, 2] on equal, unlabelled axes."""
    x = np.asarray(x)
    ax.scatter(x[:, 0], x[:, 1], s=size, color=color, alpha=alpha, lw=0, **kwargs)
    ax.set_aspect("equal")
    return ax


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
