"""Notes made by synthesis: harmonics that are weaker, and die away faster, the higher they are."""

from typing import NamedTuple

import numpy as np

from diffusion_course.checks import integer, one_of

SPLITS = ("train", "test")
RATE = 4000  # samples in a second
LOWEST = 110.0  # hertz, the note A2
NOTES = 25  # two octaves in semitones


class Sounds(NamedTuple):
    """Notes.

    Attributes:
      x: float32 [n, length], of mean square 1 over all notes of the distribution.
      notes: int32 [n], semitones above the lowest one.
      rate: samples in a second.
    """

    x: np.ndarray
    notes: np.ndarray
    rate: int


def frequency(note) -> np.ndarray:
    """The fundamental of a note in hertz: an octave, twice the frequency, has twelve semitones.

    >>> frequency([0, 12]).tolist()
    [110.0, 220.0]
    """
    return LOWEST * 2.0 ** (np.asarray(note) / 12)


def load(split: str = "train", *, n: int = 500, length: int = 2048, seed: int = 0) -> Sounds:
    """Draws n notes; the first ones are the same whatever n is.

    Harmonic k of a note has amplitude 1/k and falls by a factor e every ``0.6/k`` seconds; it is
    left out where it would lie above half the rate. Phases are random, notes uniform.

    Args:
      split: "train" or "test", two independent streams.
      n: how many, at least 1.
      length: samples of each, at least 2.
      seed: a whole number, at least 0.

    Raises: ValueError for arguments that break these rules.

    >>> load(n=3, length=512).x.shape
    (3, 512)
    """
    n, length = integer("n", n, 1), integer("length", length, 2)
    seed = integer("seed", seed, 0)
    stream = [seed, SPLITS.index(one_of("split", split, SPLITS)), 24]
    picks, turns = (np.random.default_rng([*stream, part]) for part in range(2))
    notes = np.minimum((NOTES * picks.random(n)).astype(np.int32), NOTES - 1)
    harmonics = np.arange(1, int(RATE / 2 / LOWEST) + 1)
    phases = 2 * np.pi * turns.random((n, len(harmonics)))
    seconds = np.arange(length) / RATE
    x = np.zeros((n, length))
    for i, k in enumerate(harmonics):
        pitch = k * frequency(notes)
        loud = np.where(pitch < RATE / 2, 1 / k, 0.0)[:, None]
        wave = np.sin(2 * np.pi * pitch[:, None] * seconds + phases[:, i : i + 1])
        x += loud * np.exp(-seconds * k / 0.6) * wave
    return Sounds((x / _size(length)).astype(np.float32), notes, RATE)


def _size(length: int) -> float:
    """The root of the mean square over phases and notes, from the formula."""
    seconds = np.arange(length) / RATE
    k = np.arange(1, int(RATE / 2 / LOWEST) + 1)
    heard = k * frequency(np.arange(NOTES))[:, None] < RATE / 2
    power = 0.5 * np.exp(-2 * seconds * k[:, None] / 0.6).mean(1) / k**2
    return float(np.sqrt((heard * power).sum(1).mean()))
