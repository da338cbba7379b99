"""Coloured shapes with captions, drawn from signed distance functions.

Image i depends on (seed, split, i) alone: it is the same whatever `n` is, and whichever images
are drawn with it. All arithmetic on pixels is +, -, *, /, square roots and comparisons, which
IEEE 754 rounds exactly, so that the images are the same on every computer, bit for bit.
"""

from collections.abc import Callable

import numpy as np

from diffusion_course.checks import integer, one_of
from diffusion_course.data.types import Card, Dataset
from diffusion_course.models.text import Tokeniser

SPLITS = ("train", "test")

CARD = Card(
    name="shapes",
    source="drawn by this library",
    licence="that of this library",
    description="One coloured shape on black, with its colour, size, position and a caption.",
)

COLOURS = {  # RGB in [0, 1]
    "red": (0.90, 0.12, 0.14),
    "orange": (1.00, 0.55, 0.10),
    "yellow": (0.98, 0.90, 0.20),
    "green": (0.15, 0.72, 0.25),
    "cyan": (0.20, 0.85, 0.90),
    "blue": (0.18, 0.32, 0.95),
    "purple": (0.62, 0.22, 0.82),
    "white": (0.97, 0.97, 0.97),
}

SIZES = {  # smallest and largest radius; the image is 2 wide
    "small": (0.23, 0.27),
    "large": (0.38, 0.42),
}

# The place as a caption says it, and its centre (x to the right, y up) in units of `OFFSET`.
POSITIONS = {
    "top left": ("at the top left", -1, 1),
    "top": ("at the top", 0, 1),
    "top right": ("at the top right", 1, 1),
    "left": ("on the left", -1, 0),
    "centre": ("in the centre", 0, 0),
    "right": ("on the right", 1, 0),
    "bottom left": ("at the bottom left", -1, -1),
    "bottom": ("at the bottom", 0, -1),
    "bottom right": ("at the bottom right", 1, -1),
}

LONGEST_CAPTION = 8  # words
FREE = "*"  # the word of captions that is kept free for what a model is to learn later

OFFSET = 0.5
JITTER = 0.05  # of the centre; a large shape then still lies inside the image
TILT = 0.1  # tangent of half the largest rotation, which is 11 degrees
DIMMEST = 0.85  # brightness is uniform in [DIMMEST, 1]
CHUNK = 256  # images drawn at once, so that the working arrays stay in the processor's cache


def load(
    split: str = "train", *, n: int = 10_000, size: int = 32, seed: int = 0, new: bool = False,
    averaged: int = 1,
) -> Dataset:  # fmt: skip
    """Draw images [n, size, size, 3].

    The class is the shape. The attributes ``colour``, ``size``, ``position`` and ``caption`` are
    arrays of strings [n]; shape, colour, size and position are independent and uniform.

    With `new` all are hearts, a shape that is none of the six. Its word in captions is the free
    one, "*": so a trained model can learn it later, from a few images.

    Args:
      split: "train" or "test", two independent streams of the same distribution.
      n: number of images, at least 1.
      size: height and width in pixels, in [8, 512].
      seed: whole number in [0, 2^64).
      new: whether to draw hearts in place of the six shapes.
      averaged: the images are drawn with so many times the height and width, and are averages of
        squares of this side: what a cascade makes of the larger images.

    Raises:
      ValueError: an argument breaks these rules.
    """
    one_of("split", split, SPLITS)
    n = integer("n", n, minimum=1)
    size = integer("size", size, minimum=8, maximum=512)
    averaged = integer("averaged", averaged, minimum=1, maximum=512 // size)
    seed = integer("seed", seed, minimum=0, maximum=2**64 - 1)

    def uniform(attribute: str) -> np.ndarray:
        return _uniform(seed, SPLITS.index(split), np.arange(n, dtype=np.uint64), attribute)

    def pick(attribute: str, names) -> np.ndarray:
        return np.floor(uniform(attribute) * len(names)).astype(np.int32)

    shapes = NEW if new else SHAPES
    shape = pick("shape", shapes)
    colour, extent, position = (
        pick("colour", COLOURS),
        pick("size", SIZES),
        pick("position", POSITIONS),
    )
    brightness = DIMMEST + (1 - DIMMEST) * uniform("brightness")
    rgb = np.array(list(COLOURS.values()))[colour] * brightness[:, None]
    smallest, largest = np.array(list(SIZES.values()))[extent].T
    radius = smallest + (largest - smallest) * uniform("radius")
    place = np.array([(x, y) for _, x, y in POSITIONS.values()])[position]
    jitter = np.stack([2 * uniform("jitter x") - 1, 2 * uniform("jitter y") - 1], axis=1)
    centre = OFFSET * place + JITTER * jitter
    tilt = TILT * (2 * uniform("tilt") - 1)

    attributes = {
        "colour": np.array(list(COLOURS))[colour],
        "size": np.array(list(SIZES))[extent],
        "position": np.array(list(POSITIONS))[position],
    }
    names = np.array([FREE] if new else list(SHAPES))[shape]
    attributes["caption"] = np.array(
        [caption(*words) for words in zip(names, *attributes.values(), strict=True)]
    )
    x = draw(size * averaged, list(shapes.values()), shape, rgb, radius, centre, tilt)
    x = _averages(x, averaged) if averaged > 1 else x
    return Dataset(x, shape, tuple(shapes), CARD, attributes)


def caption(shape: str, colour: str, size: str, position: str) -> str:
    """A sentence of the four attributes.

    Raises:
      ValueError: a word is none of those that `load` uses.

    >>> caption("circle", "red", "large", "top left")
    'a large red circle at the top left'
    """
    one_of("shape", shape, (*SHAPES, FREE))
    one_of("colour", colour, COLOURS)
    one_of("size", size, SIZES)
    one_of("position", position, POSITIONS)
    return f"a {size} {colour} {shape} {POSITIONS[position][0]}"


def draw(size: int, distances, shape, rgb, radius, centre, tilt) -> np.ndarray:
    """Images [N, size, size, 3] in [-1, 1] from one row of parameters per image.

    Args:
      size: pixels a side; the image is 2 wide, and its middle is the origin.
      distances: functions such as those in `SHAPES`.
      shape: which of them, whole numbers [N].
      rgb: colours in [0, 1], [N, 3].
      radius: [N].
      centre: x to the right and y up, [N, 2].
      tilt: tangent of half the angle of a turn against the clock, [N].
    """
    images = np.empty((len(shape), size, size, 3), np.float32)
    for index, distance in enumerate(distances):
        members = np.flatnonzero(shape == index)
        for first in range(0, len(members), CHUNK):
            m = members[first : first + CHUNK]
            x, y = _shape_frame(size, radius[m], centre[m], tilt[m])
            # One pixel is 2 / size wide: full cover half a pixel inside, none half outside.
            pixels = distance(x, y) * _columns(radius[m] * size / 2)
            cover = np.clip(np.float32(0.5) - pixels, 0, 1)
            colour = rgb[m].astype(np.float32)[:, None, None]
            images[m] = 2 * cover[..., None] * colour - 1
    return images


def _averages(x: np.ndarray, side: int) -> np.ndarray:
    """Averages of squares of pixels, added in a fixed order."""
    total = np.zeros((len(x), x.shape[1] // side, x.shape[2] // side, x.shape[3]), np.float32)
    for row in range(side):
        for column in range(side):
            total += x[:, row::side, column::side]
    return total / np.float32(side**2)


def _shape_frame(size: int, radius, centre, tilt):
    """Coordinates [N, size, size] of the pixels' centres where the shape has radius 1."""
    grid = ((2 * np.arange(size) + 1) / size - 1).astype(np.float32)
    x = grid[None, None, :] - _columns(centre[:, 0])
    y = -grid[None, :, None] - _columns(centre[:, 1])  # rows count down, y counts up
    # With tilt = tan(angle / 2) a rotation takes no sine or cosine, which differ between machines.
    cos = _columns((1 - tilt**2) / ((1 + tilt**2) * radius))
    sin = _columns(2 * tilt / ((1 + tilt**2) * radius))
    return cos * x + sin * y, cos * y - sin * x


def _columns(values) -> np.ndarray:
    return np.asarray(values, np.float32)[:, None, None]


# Signed distances to shapes of radius about 1: negative inside, 0 on the outline. Outside a corner
# some return the distance to the nearest edge line, which is smaller; the outline is exact.
# Source: I. Quilez, "2D distance functions", iquilezles.org/articles/distfunctions2d.


def _circle(x, y):
    return np.sqrt(x * x + y * y) - np.float32(0.95)


def _box(x, y, half_width, half_height):
    return np.maximum(np.abs(x) - np.float32(half_width), np.abs(y) - np.float32(half_height))


def _square(x, y):
    return _box(x, y, 0.74, 0.74)


def _triangle(x, y):
    """Equilateral, point up, corners at distance 1.04."""
    cos30 = np.float32(0.8660254)
    return np.maximum(-y, cos30 * np.abs(x) + y / 2) - np.float32(0.52)


def _ring(x, y):
    return np.abs(np.sqrt(x * x + y * y) - np.float32(0.72)) - np.float32(0.23)


def _cross(x, y):
    return np.minimum(_box(x, y, 0.95, 0.28), _box(x, y, 0.28, 0.95))


def _star(x, y):
    """Five points at distance 1.05, notches at 0.47; folded onto half of one point."""
    cos36, sin36 = np.float32(0.80901699), np.float32(0.58778525)
    x = np.abs(x)
    for mirror_x in (cos36, -cos36):
        beyond = 2 * np.maximum(mirror_x * x - sin36 * y, 0)
        x, y = x - mirror_x * beyond, y + sin36 * beyond
    x, y = np.abs(x), y - np.float32(1.05)
    edge_x, edge_y = np.float32(0.47) * sin36, np.float32(0.47) * cos36 - np.float32(1.05)
    return (y * edge_x - x * edge_y) / np.sqrt(edge_x**2 + edge_y**2)


def _heart(x, y):
    """A square on its corner, and on each of its upper sides half a disc."""
    half, root = np.float32(0.82), np.float32(0.70710678)  # half the diagonal; √½
    x, y = np.abs(x), y + np.float32(0.085)  # its middle is at the origin
    disc = np.sqrt((x - half / 2) ** 2 + (y - half / 2) ** 2) - half * root
    return np.minimum((x + np.abs(y) - half) * root, disc)


SHAPES: dict[str, Callable] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "ring": _ring,
    "cross": _cross,
    "star": _star,
}

# What no model of the six has seen.
NEW: dict[str, Callable] = {"heart": _heart}

# What can be asked about an image, and the answers; `answers` gives their numbers.
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "shape": tuple(SHAPES),
    "colour": tuple(COLOURS),
    "size": tuple(SIZES),
    "position": tuple(POSITIONS),
}

# Every word of the captions, in an order that trained models rely on. No caption of the six shapes
# has the last one.
WORDS = (
    *("a", "at", "the", "on", "in"),
    *SHAPES,
    *COLOURS,
    *SIZES,
    *("top", "bottom", "left", "right", "centre"),
    FREE,
)

# Captions as the numbers that models of captions read.
LANGUAGE = Tokeniser(WORDS, LONGEST_CAPTION)

# Models of captions are trained without one of so many combinations of attributes; see `held_out`.
HELD_OUT = 9


def answers(data: Dataset) -> np.ndarray:
    """Shape, colour, size and position of each image, as places in `ATTRIBUTES`: int32 [N, 4].

    Args:
      data: from `load`, or a subset of it.

    Raises: ValueError for a data set without these attributes.

    >>> data = load("test", n=2, size=8)
    >>> words = [names[k] for k, names in zip(answers(data)[0], ATTRIBUTES.values(), strict=True)]
    >>> bool(data.attributes["caption"][0] == caption(*words))
    True
    """
    missing = [name for name in list(ATTRIBUTES)[1:] if name not in data.attributes]
    if missing or data.label_names != ATTRIBUTES["shape"]:
        raise ValueError(f"data must be of shapes, with colour, size and position, got {data!r}")
    columns = [data.labels]
    for name, values in list(ATTRIBUTES.items())[1:]:
        columns.append([values.index(value) for value in data.attributes[name]])
    return np.stack([np.asarray(column, np.int32) for column in columns], axis=1)


def held_out(data: Dataset, every: int = HELD_OUT) -> np.ndarray:
    """Which images show a combination that models of captions never see: booleans [N].

    The combinations whose four numbers from `answers` add up to a multiple of `every`. Each single
    attribute, and each pair of them, is seen all the same.

    Args:
      data: from `load`, or a subset of it.
      every: one of so many combinations is held out, at least 2.

    Raises: ValueError for a data set without these attributes, or a smaller number.

    >>> int(held_out(load("test", n=900, size=8)).sum())  # about a ninth
    105
    """
    return answers(data).sum(axis=1) % integer("every", every, minimum=2) == 0


_STREAMS = (
    "shape",
    "colour",
    "size",
    "position",
    "brightness",
    "radius",
    "jitter x",
    "jitter y",
    "tilt",
)


def _uniform(seed: int, split: int, index: np.ndarray, attribute: str) -> np.ndarray:
    """A number in [0, 1) for each index [N], a function of the four arguments and nothing else."""
    state = np.zeros_like(index)
    for part in (np.uint64(seed), np.uint64(split), index, np.uint64(_STREAMS.index(attribute))):
        state = _mix(state + part)
    return (state >> 11) * 2.0**-53


def _mix(z: np.ndarray) -> np.ndarray:
    """One output of splitmix64 (Steele, Lea & Flood 2014, fig. 14): uint64 that wrap around."""
    z = z + 0x9E3779B97F4A7C15
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB
    return z ^ (z >> 31)
