"""Distributions in the plane, where a denoiser can be drawn whole.

Each keeps to about [-1, 1] on both axes by a constant scale, never by the statistics of the
sample, so that a sample of any size comes from the same distribution.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from diffusion_course.checks import integer, one_of
from diffusion_course.data.types import Card, Dataset

SPLITS = ("train", "test")


class Mixture(NamedTuple):
    """Isotropic Gaussians: means [K, 2], stds [K], weights [K], float64, weights adding up to 1."""

    means: np.ndarray
    stds: np.ndarray
    weights: np.ndarray


def _frozen(values) -> np.ndarray:
    array = np.array(values, dtype=np.float64)
    array.flags.writeable = False
    return array


# No two means, spreads or weights are alike, so that a swapped axis, a swapped component and a
# confusion of standard deviation with variance all show.
MIXTURE = Mixture(
    means=_frozen([[-0.62, -0.35], [0.18, 0.66], [0.64, -0.42]]),
    stds=_frozen([0.12, 0.18, 0.07]),
    weights=_frozen([0.5, 0.3, 0.2]),
)


def load(
    split: str = "train", *, kind: str = "swiss_roll", n: int = 10_000, seed: int = 0
) -> Dataset:
    """Draw `n` points [n, 2] from one of the distributions in the plane.

    | kind | scale (std of x, of y) | label |
    |---|---|---|
    | ``swiss_roll`` | 0.47, 0.49 | one class |
    | ``two_moons`` | 0.55, 0.49 | upper or lower moon |
    | ``checkerboard`` | 0.58, 0.58; all inside [-1, 1] | which of 8 cells |
    | ``mixture`` | 0.53, 0.49; the parameters are `MIXTURE` | component |

    Args:
      split: "train" or "test", two independent streams of the same distribution.
      kind: name of the distribution.
      n: number of points, at least 1.
      seed: whole number, at least 0.

    Raises:
      ValueError: an argument breaks these rules.
    """
    one_of("split", split, SPLITS)
    one_of("kind", kind, KINDS)
    n = integer("n", n, minimum=1)
    seed = integer("seed", seed, minimum=0)
    draw, label_names, description = KINDS[kind]
    stream = [seed, SPLITS.index(split), tuple(KINDS).index(kind)]
    points, labels = draw(np.random.default_rng(stream), n)
    card = Card(f"toy2d/{kind}", "drawn by this library", "that of this library", description)
    return Dataset(points.astype(np.float32), labels.astype(np.int32), label_names, card)


def swiss_roll(rng: np.random.Generator, n: int):
    """A spiral of one and a half turns, r = theta / (9 pi / 2), thickened by noise of std 0.02."""
    theta = 1.5 * np.pi * (1 + 2 * rng.random(n))
    points = np.stack([theta * np.cos(theta), theta * np.sin(theta)], axis=1) / (4.5 * np.pi)
    return points + 0.02 * rng.standard_normal((n, 2)), np.zeros(n)


def two_moons(rng: np.random.Generator, n: int):
    """Two interleaved half circles of radius 0.63, noise of std 0.04."""
    lower = rng.integers(2, size=n)
    theta = np.pi * rng.random(n)
    x = np.where(lower, 1 - np.cos(theta), np.cos(theta)) - 0.5
    y = np.where(lower, 0.5 - np.sin(theta), np.sin(theta)) - 0.25
    # The moons are three radii wide and one and a half high: y is stretched to fill the square.
    points = np.stack([0.63 * x, 0.98 * y], axis=1)
    return points + 0.04 * rng.standard_normal((n, 2)), lower


def checkerboard(rng: np.random.Generator, n: int):
    """Uniform on 8 of the 16 cells of a 4 x 4 board on [-1, 1]^2; cells counted row by row."""
    cell = rng.integers(8, size=n)
    row, pair = np.divmod(cell, 2)
    column = 2 * pair + row % 2
    corner = np.stack([column, row], axis=1)
    return (corner + rng.random((n, 2))) / 2 - 1, cell


def mixture(rng: np.random.Generator, n: int):
    """The Gaussian mixture `MIXTURE`, whose exact score and density are known at every time."""
    component = np.searchsorted(np.cumsum(MIXTURE.weights)[:-1], rng.random(n), side="right")
    noise = rng.standard_normal((n, 2))
    return MIXTURE.means[component] + MIXTURE.stds[component, None] * noise, component


class Kind(NamedTuple):
    draw: Callable
    label_names: tuple[str, ...]
    description: str


KINDS = {
    "swiss_roll": Kind(swiss_roll, ("roll",), "A spiral of one and a half turns."),
    "two_moons": Kind(two_moons, ("upper moon", "lower moon"), "Two interleaved half circles."),
    "checkerboard": Kind(
        checkerboard,
        tuple(f"row {cell // 2}, {('left', 'right')[cell % 2]}" for cell in range(8)),
        "A uniform density on the dark cells of a 4 x 4 board.",
    ),
    "mixture": Kind(
        mixture,
        tuple(f"component {k}" for k in range(len(MIXTURE.weights))),
        "Three Gaussians of unlike weight and spread, with a known score.",
    ),
}
