"""Clips of one coloured shape that moves with constant speed and bounces off the walls.

The first clips are the same whatever their number is. Place, speed and bounce are exact, so what a
model makes can be measured against the truth: where the shape is, how fast it goes, its colour and
its size.
"""

from typing import NamedTuple

import numpy as np

from diffusion_course.checks import integer, one_of, state
from diffusion_course.data import shapes
from diffusion_course.data.types import Card, Dataset

# Three that 16 × 16 pixels tell apart. All are symmetric: their centroid is their middle.
KINDS = ("circle", "square", "ring")
SPLITS = ("train", "test")
RADIUS = 0.4  # of every shape; the image is 2 wide
WALL = 1 - RADIUS  # how far the middle of a shape goes to each side
SLOWEST, FASTEST = 0.05, 0.2  # along each axis, per frame

CARD = Card(
    name="clips",
    source="drawn by this library",
    licence="that of this library",
    description="Clips of one coloured shape that moves with constant speed between four walls.",
)


class Clips(NamedTuple):
    """Clips and what is true of them.

    Attributes:
      x: frames [n, F, size, size, 3] float32 in [−1, 1].
      position: of the shape's middle in every frame, [n, F, 2] float64: x to the right, y up; the
        image reaches from −1 to 1.
      velocity: in the first frame, [n, 2], per frame.
      kind: the shape's number in `KINDS`, int32 [n].
      colour: its number in `shapes.COLOURS`, int32 [n].
    """

    x: np.ndarray
    position: np.ndarray
    velocity: np.ndarray
    kind: np.ndarray
    colour: np.ndarray


class Measured(NamedTuple):
    """What `measure` finds in each frame.

    Attributes:
      position: the centroid of the light, [..., 2], as `Clips.position`.
      size: the area of the light in units of the image's area, [...].
      colour: of what is lit, as bright as its brightest pixel, [..., 3] in [0, 1].
    """

    position: np.ndarray
    size: np.ndarray
    colour: np.ndarray


class Motion(NamedTuple):
    """What `motion` finds in each clip.

    Attributes:
      start: the place in the first frame, [n, 2].
      velocity: in the first frame, [n, 2].
      error: root mean square distance of the given places from that path, [n].
    """

    start: np.ndarray
    velocity: np.ndarray
    error: np.ndarray


def load(
    split: str = "train", *, n: int = 2000, frames: int = 8, size: int = 16, seed: int = 0
) -> Clips:
    """Draws n clips; the first ones are the same whatever n is.

    Kind, colour, place and velocity are independent and uniform; the speed along each axis is
    uniform in [SLOWEST, FASTEST], its sign random.

    Args:
      split: "train" or "test", two independent streams.
      n: how many, at least 1.
      frames: F, at least 1; a longer clip begins as the shorter one.
      size: height and width in pixels, in [8, 512].
      seed: a whole number, at least 0.

    Raises: ValueError for arguments that break these rules.

    >>> clips = load(n=3, frames=5, size=8)
    >>> clips.x.shape, clips.position.shape
    ((3, 5, 8, 8, 3), (3, 5, 2))
    """
    n, frames, seed = integer("n", n, 1), integer("frames", frames, 1), integer("seed", seed, 0)
    size = integer("size", size, 8, 512)
    stream = [seed, SPLITS.index(one_of("split", split, SPLITS))]
    place, speed, sign, kind, colour = (np.random.default_rng([*stream, k]) for k in range(5))
    start = WALL * (2 * place.random((n, 2)) - 1)
    velocity = SLOWEST + (FASTEST - SLOWEST) * speed.random((n, 2))
    velocity = np.where(sign.random((n, 2)) < 0.5, -velocity, velocity)
    kinds = np.floor(kind.random(n) * len(KINDS)).astype(np.int32)
    colours = np.floor(colour.random(n) * len(shapes.COLOURS)).astype(np.int32)
    position = path(start, velocity, frames)
    rgb = np.array(list(shapes.COLOURS.values()))[colours]
    each = lambda values: np.repeat(values, frames, axis=0)  # noqa: E731
    same = np.ones(n * frames)
    x = shapes.draw(
        size,
        [shapes.SHAPES[name] for name in KINDS],
        each(kinds),
        each(rgb),
        RADIUS * same,
        position.reshape(-1, 2),
        0 * same,
    )
    return Clips(x.reshape(n, frames, size, size, 3), position, velocity, kinds, colours)


def dataset(
    split: str = "train", *, n: int = 2000, frames: int = 8, size: int = 16, seed: int = 0
) -> Dataset:
    """The clips of `load` as a data set, whose labels are the kinds.

    Args:
      split, n, frames, size, seed: as in `load`.

    Returns: x [n, F, size, size, 3], and the columns position, velocity and colour.
    Raises: as `load`.

    >>> dataset(n=3, frames=5, size=8)
    Dataset('clips', x=float32 [3, 5, 8, 8, 3], 3 classes)
    """
    made = load(split, n=n, frames=frames, size=size, seed=seed)
    columns = {name: getattr(made, name) for name in ("position", "velocity", "colour")}
    return Dataset(made.x, made.kind, KINDS, CARD, columns)


def path(start, velocity, frames: int, wall: float = WALL) -> np.ndarray:
    """Places in each frame of what moves with constant speed between two walls: [..., F, 2].

    At a wall the speed along this axis changes its sign, at the exact time between two frames.

    Args:
      start: in the first frame, [..., 2], between the walls.
      velocity: there, [..., 2], per frame.
      frames: F, at least 1.
      wall: the walls stand at −wall and wall.

    Raises: ValueError for fewer than one frame.

    >>> path([0.5, 0.0], [0.2, 0.0], 3, wall=0.6)[:, 0].round(3).tolist()
    [0.5, 0.5, 0.3]
    """
    time = np.arange(integer("frames", frames, 1))[:, None]
    straight = np.asarray(start)[..., None, :] + time * np.asarray(velocity)[..., None, :]
    # Two walls are two mirrors: unfolded, the path is straight, and repeats after four walls.
    turned = np.mod(straight + wall, 4 * wall)
    return np.where(turned > 2 * wall, 4 * wall - turned, turned) - wall


def measure(x) -> Measured:
    """Where the light of each frame is, how much of it, and of which colour.

    A pixel's light is its brightest channel. What is below a tenth of the frame's brightest pixel
    counts as dark, since samples are never quite black.

    Args:
      x: frames [..., size, size, 3] in [−1, 1].

    Raises: ValueError for another shape.
    """
    x = np.asarray(state("x", x), np.float64)
    if x.ndim < 3 or x.shape[-1] != 3:
        raise ValueError(f"x must have shape [..., size, size, 3], got {list(x.shape)}")
    pixels = np.clip((x + 1) / 2, 0, 1)
    light = pixels.max(-1)
    peak = light.max((-2, -1), keepdims=True)
    light = np.where(light > 0.1 * peak, light, 0)
    total = np.maximum(light.sum((-2, -1)), 1e-9)
    rows, cols = x.shape[-3:-1]
    right = (2 * np.arange(cols) + 1) / cols - 1
    up = 1 - (2 * np.arange(rows) + 1) / rows
    across, height = (light * right).sum((-2, -1)), (light * up[:, None]).sum((-2, -1))
    brightest = peak[..., 0, 0]
    size = total / np.maximum(brightest, 1e-9) / (rows * cols)
    # Of a soft edge the colour is darker, but not another one.
    lit = np.where((light > 0)[..., None], pixels, 0).sum((-3, -2))
    colour = brightest[..., None] * lit / total[..., None]
    return Measured(np.stack([across, height], -1) / total[..., None], size, colour)


def recognise(x) -> tuple[np.ndarray, np.ndarray]:
    """Which kind and which colour each frame shows most nearly, numbers in `KINDS` and `COLOURS`.

    The colour of `shapes.COLOURS` is the nearest to the measured one. The kind is that whose
    drawing, in this colour at the measured place, differs least from the frame.

    Args:
      x: frames [..., size, size, 3] in [−1, 1].

    Returns: kind and colour, int32 [...] each.
    Raises: as `measure`.

    >>> clips = load(n=4, frames=2)
    >>> kind, colour = recognise(clips.x[:, 1])
    >>> bool((kind == clips.kind).all() and (colour == clips.colour).all())
    True
    """
    seen, x = measure(x), np.asarray(x)
    palette = np.array(list(shapes.COLOURS.values()))
    off = ((seen.colour[..., None, :] - palette) ** 2).sum(-1)
    colour = off.argmin(-1).reshape(-1)
    place, count = seen.position.reshape(-1, 2), colour.size
    drawings = [shapes.SHAPES[name] for name in KINDS]
    flat = x.reshape(count, -1)
    differ = [
        ((_drawn(x.shape[-2], drawings, k, palette[colour], place) - flat) ** 2).sum(1)
        for k in range(len(KINDS))
    ]
    kind = np.argmin(differ, axis=0)
    return tuple(a.astype(np.int32).reshape(off.shape[:-1]) for a in (kind, colour))


def _drawn(size: int, drawings, kind: int, rgb: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Frames of one kind as rows of numbers, [N, size·size·3]."""
    same = np.ones(len(place))
    kinds = np.full(len(place), kind)
    return shapes.draw(size, drawings, kinds, rgb, RADIUS * same, place, 0 * same).reshape(
        len(place), -1
    )


def motion(position, wall: float = WALL) -> Motion:
    """The path of constant speed between two walls that fits the given places best.

    Each axis is searched by itself: a grid of starts and velocities, then finer and finer ones
    about the best. Speeds are at most half as large again as those of the data.

    Args:
      position: places [n, F, 2], such as `measure` gives; F at least 3, since two places fit any.
      wall: as in `path`.

    Raises: ValueError for another shape.
    """
    position = np.asarray(position, np.float64)
    if position.ndim != 3 or position.shape[-1] != 2 or position.shape[1] < 3:
        raise ValueError(
            f"position must have shape [n, F, 2] with F >= 3, got {list(position.shape)}"
        )
    n, frames = position.shape[:2]
    start, velocity = np.zeros((n, 2)), np.zeros((n, 2))
    width_s, width_v = wall, 1.5 * FASTEST
    for points in (41, 11, 11, 11):
        grid = np.linspace(-1, 1, points)
        shift_s, shift_v = (a.ravel() for a in np.meshgrid(grid * width_s, grid * width_v))
        for i in range(n):
            tried_s = np.clip(start[i] + shift_s[:, None], -wall, wall)
            tried_v = velocity[i] + shift_v[:, None]
            misses = ((path(tried_s, tried_v, frames, wall) - position[i]) ** 2).mean(1)
            best = misses.argmin(0)
            start[i], velocity[i] = tried_s[best, [0, 1]], tried_v[best, [0, 1]]
        width_s, width_v = (2.5 * width / (points - 1) for width in (width_s, width_v))
    found = path(start, velocity, frames, wall)
    return Motion(start, velocity, np.sqrt(((found - position) ** 2).sum(-1).mean(-1)))
