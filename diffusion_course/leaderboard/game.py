"""The game: the harness keeps the network, and a sampler works in coordinates that it cannot know.

A sampler gets noise and may ask for the denoised image, a fixed number of times for each image.
Every image has coordinates of its own: the harness draws a rotation Q of the pixel space for each
of them and never shows it. What a sampler sees of image i is

    D_i(y, t) = Q_i D(Q_iᵀ y, t, label_i),

and what it returns is taken back by Q_iᵀ. Standard normal noise is standard normal in any
coordinates, and a sampler that adds up answers and noise commutes with Q, so an honest one loses
nothing. But whoever knows images, weights or the judge does not know where to put the pixels: all
that he can know of Q_i are the answers of image i, at most one vector for each evaluation.

The process is `PROCESS`: x_t = alpha(t)·x0 + sigma(t)·eps.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_course import checks, denoiser, process, weights

PROCESS = process.vp_cosine()
BUDGETS = (1, 2, 4, 8)
_CHUNK = 500  # rows that the network takes in one call; every call has so many
_PIECE = 1000  # rows whose rotations are looked up at once: one question may have 40,000 rows
_LARGEST = 1e6  # of any number from a submission: float32 can square it, and add such squares


class TooMany(RuntimeError):
    """A sampler has asked for more evaluations of an image than it may."""


class Backbone(NamedTuple):
    """A frozen denoiser of images.

    Attributes:
      denoise: ``denoise(x, t, labels) -> x0`` with x [B, H, W, C], t [B], labels [B]; the label
        `classes` stands for no label.
      shape: of one image, (H, W, C).
      classes: how many there are.
      together: rows that it computes at once; a call with fewer takes as long.
    """

    denoise: Callable
    shape: tuple[int, ...]
    classes: int
    together: int = 1

    @property
    def size(self) -> int:
        """Numbers in one image."""
        return int(np.prod(self.shape))


@cache
def digits() -> Backbone:
    """The released network of the 8×8 digits, compiled once."""
    released = weights.load("digits")

    @jax.jit
    def run(model, x, t, labels):
        return denoiser.denoiser(model, PROCESS, released.card.kind, labels)(x, t)

    shape = (8, 8, 1)
    run = partial(run, released.model)
    classes = released.card.model["num_classes"]
    return Backbone(partial(_in_chunks, run), shape, classes, _CHUNK)


def _in_chunks(run: Callable, x, t, labels) -> np.ndarray:
    """Any number of rows, in calls of one size: one compiled program."""
    parts = []
    for start in range(0, len(x), _CHUNK):
        rows = slice(start, start + _CHUNK)
        inputs = [np.asarray(a[rows]) for a in (x, t, labels)]
        n = len(inputs[0])
        if n < _CHUNK:
            inputs = [np.concatenate([a, np.repeat(a[:1], _CHUNK - n, axis=0)]) for a in inputs]
        parts.append(np.asarray(run(*map(jnp.asarray, inputs)))[:n])
    return np.concatenate(parts)


@dataclass(frozen=True)
class Deal:
    """What is drawn for one budget; it is the same for every submission of a run.

    Attributes:
      evaluations: that each image may have.
      seed: for the sampler's own random numbers.
      noise: standard normal, float32 [N, D], in the sampler's coordinates.
      labels: int32 [N], equally many of each class, as nearly as N allows.
      rotations: float32 [N, D, D], one orthogonal matrix for each image, of uniform (Haar) law.
    """

    evaluations: int
    seed: int
    noise: np.ndarray
    labels: np.ndarray
    rotations: np.ndarray


@dataclass(frozen=True)
class Dealer:
    """Draws the games of a run.

    Attributes:
      backbone: that is played with.
      secret: the seed, any text.
      images: N, how many are to be drawn with each budget.
    """

    backbone: Backbone
    secret: str
    images: int = 1000
    _known: dict[int, Deal] = field(default_factory=dict, repr=False, compare=False)

    def deal(self, evaluations: int) -> Deal:
        """The deal with this budget, drawn when it is first asked for."""
        evaluations = checks.integer("evaluations", evaluations, minimum=1)
        if evaluations not in self._known:
            self._known[evaluations] = self._drawn(evaluations)
        return self._known[evaluations]

    def _drawn(self, evaluations: int) -> Deal:
        n, d = checks.integer("images", self.images, minimum=2), self.backbone.size
        text = f"{evaluations} {self.secret}".encode("utf-8", "surrogatepass")
        rng = np.random.default_rng(list(hashlib.sha256(text).digest()))
        return Deal(
            evaluations=evaluations,
            seed=int(rng.integers(1 << 31)),
            noise=rng.standard_normal((n, d)).astype(np.float32),
            labels=rng.permutation(np.arange(n, dtype=np.int32) % self.backbone.classes),
            rotations=rotations(rng, n, d),
        )

    def game(self, evaluations: int) -> Game:
        """A game with this budget, for one submission."""
        return Game(self.backbone, self.deal(evaluations))


def rotations(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    """n orthogonal matrices of uniform law: float32 [n, d, d].

    The Q of a QR decomposition of a normal matrix, with the signs that make R's diagonal positive:
    without them the law depends on the algorithm.

    Args:
      rng: of NumPy.
      n: how many.
      d: their size.

    Source: Mezzadri 2007, section 5 (Notices of the AMS 54; arXiv:math-ph/0609050).
    """
    q, r = np.linalg.qr(rng.standard_normal((n, d, d)))
    return (q * np.sign(np.einsum("ndd->nd", r))[:, None, :]).astype(np.float32)


class Game:
    """Serves the denoiser for one deal, and counts.

    Attributes:
      deal: the deal.
      counts: evaluations of each image so far, [N].
      refused: why no result counts any more; empty while all is well.
    """

    def __init__(self, backbone: Backbone, deal: Deal):
        self.deal, self.refused = deal, ""
        self.counts = np.zeros(len(deal.noise), np.int64)
        self._backbone = backbone

    def denoise(self, x, t, images=None, null: bool = False) -> np.ndarray:
        """The denoised images, in the coordinates of each.

        Args:
          x: states [B, D].
          t: times in [0, 1], one for all or [B].
          images: which image each row belongs to, whole numbers [B]; by default all N in order. An
            image may come several times: every row is an evaluation of its image.
          null: without the label, as guidance needs it.

        Returns: float32 [B, D].
        Raises: ValueError for an argument of another kind; TooMany, from then on for ever.
        """
        if self.refused:
            raise TooMany(self.refused)
        x, t, images = self._checked(x, t, images)
        counts = self.counts + np.bincount(images, minlength=len(self.counts))
        if counts.max() > self.deal.evaluations:
            image = int(counts.argmax())
            self.refused = (
                f"{counts[image]} evaluations of image {image} were asked for, and "
                f"{self.deal.evaluations} are allowed"
            )
            raise TooMany(self.refused)
        self.counts = counts
        labels = self.deal.labels[images]
        if null:
            labels = np.full_like(labels, self._backbone.classes)
        return np.concatenate([
            self._served(x[piece], t[piece], images[piece], labels[piece])
            for piece in (slice(i, i + _PIECE) for i in range(0, len(x), _PIECE))
        ])  # fmt: skip

    def _served(self, x, t, images, labels) -> np.ndarray:
        q = self.deal.rotations[images]
        pixels = (x[:, None, :] @ q)[:, 0]  # Qᵀ y, as a row
        found = self._backbone.denoise(pixels.reshape(-1, *self._backbone.shape), t, labels)
        flat = np.asarray(found, np.float32).reshape(len(x), -1)
        return (q @ flat[:, :, None])[:, :, 0]

    def share(self, rows: int) -> float:
        """Which share of the network's work a call of so many rows needs; the rest is padding.

        A call with a row for every image is as large as a game can ask for.
        """
        together = min(self._backbone.together, len(self.counts))
        return rows / (together * max(1, -(-rows // together)))

    def _checked(self, x, t, images) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        x, t = array("x", x), array("t", t)
        n, d = self.deal.noise.shape
        images = np.arange(n) if images is None else np.asarray(images)
        if x.ndim != 2 or x.shape[1] != d or len(x) == 0:
            raise ValueError(f"x must have shape [B, {d}], got {list(x.shape)}")
        if images.shape != x.shape[:1] or images.dtype.kind not in "iu":
            raise ValueError(
                f"images must be whole numbers, one for each of the {len(x)} rows of x, got "
                f"{images.dtype} of shape {list(images.shape)}"
            )
        if not ((images >= 0) & (images < n)).all():
            raise ValueError(f"images must lie in 0 … {n - 1}")
        if t.shape not in ((), x.shape[:1]) or not ((t >= 0) & (t <= 1)).all():
            raise ValueError(f"t must be one time in [0, 1] or one for each row, got {_told(t)}")
        return x, np.broadcast_to(t, x.shape[:1]).copy(), images.astype(np.int64)

    def pixels(self, y) -> np.ndarray:
        """The images that a sampler has returned: float32 [N, H, W, C], clipped to [−1, 1].

        Args:
          y: [N, D] in the sampler's coordinates.

        Raises: ValueError for another shape or values that are not finite; TooMany if the sampler
          has asked for too much.
        """
        if self.refused:
            raise TooMany(self.refused)
        y = array("the result", y)
        if y.shape != self.deal.noise.shape:
            shapes = f"{list(self.deal.noise.shape)}, got {list(y.shape)}"
            raise ValueError(f"the result must have the shape of noise, {shapes}")
        pixels = (y[:, None, :] @ self.deal.rotations)[:, 0]
        return np.clip(pixels, -1, 1).reshape(-1, *self._backbone.shape)


def array(name: str, value) -> np.ndarray:
    """Float32 numbers within ±1e6; ValueError for anything else, with a traced array's reason."""
    if isinstance(value, jax.core.Tracer):
        raise ValueError(
            f"{name} must hold numbers, got a traced array: denoise cannot be called inside jit, "
            "vmap, grad or scan, where nobody could count its evaluations; loop in Python"
        )
    given = type(value).__name__
    try:
        value = np.asarray(value)
        if value.dtype.kind not in "fiu":
            raise TypeError
        with np.errstate(over="ignore"):  # infinity is refused below
            value = value.astype(np.float32)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must hold numbers, got {given}") from None
    if not np.isfinite(value).all():
        raise ValueError(f"{name} must be finite, got NaN or infinity")
    if (largest := np.abs(value).max(initial=0)) > _LARGEST:  # or a rotation makes NaN of it
        raise ValueError(f"{name} must lie within ±{_LARGEST:g}, got the size {largest:g}")
    return value


def _told(t: np.ndarray) -> str:
    return f"{t.min():g} … {t.max():g} of shape {list(t.shape)}" if t.size else "none"
