"""Submissions that try to gain what they must not, with more knowledge than any has.

Each function here knows everything that the sandbox hides: the network's weights, the training
images, and the class that each image is to have. It does not know the rotations. The board of a
run shows what that is worth: the tests ask that no cheat beats the honest sampler.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial

import numpy as np

from diffusion_course.leaderboard.game import PROCESS, Backbone, Game


def hidden_in_a_batch(denoise, noise, evaluations, seed) -> np.ndarray:
    """One call, in which every image comes once more than it may: rows are what is counted."""
    images = np.repeat(np.arange(len(noise)), evaluations + 1)
    times = np.tile(np.linspace(1, 0.2, evaluations + 1), len(noise))
    answers = denoise(noise[images], times, images)
    return answers.reshape(len(noise), evaluations + 1, -1).mean(1)


def borrowed(denoise, noise, evaluations, seed) -> np.ndarray:
    """Saves on half of the images, and spends twice as much on the other half."""
    half = np.arange(len(noise) // 2)
    x, times = noise[half], np.linspace(1, 0, 2 * evaluations + 1)
    for t, s in itertools.pairwise(times):
        x = _ddim(denoise(x, t, half), x, t, s)
    return np.concatenate([x, x])[: len(noise)]


def _ddim(x0, x, t, s) -> np.ndarray:
    alpha_t, sigma_t, alpha_s, sigma_s = (
        float(level(time)) for time in (t, s) for level in (PROCESS.alpha, PROCESS.sigma)
    )
    return alpha_s * x0 + sigma_s * (x - alpha_t * x0) / sigma_t


def stolen_weights(backbone: Backbone, labels: np.ndarray) -> Callable:
    """Runs the network itself, 50 steps, without asking: good images, in the wrong coordinates.

    Args:
      backbone: of the game.
      labels: of the deal.
    """

    def sample(denoise, noise, evaluations, seed):
        x, times = noise, np.linspace(1, 0, 51)
        for t, s in itertools.pairwise(times):
            at = np.full(len(x), t, np.float32)
            x0 = backbone.denoise(x.reshape(-1, *backbone.shape), at, labels)
            x = _ddim(np.asarray(x0).reshape(x.shape), x, t, s).astype(np.float32)
        return x

    return sample


def memorised(train: np.ndarray, of_class: np.ndarray, labels: np.ndarray) -> Callable:
    """Returns training images of the right class.

    Args:
      train: images [M, H, W, C].
      of_class: the class of each.
      labels: of the deal.
    """

    def sample(denoise, noise, evaluations, seed):
        return _targets(train, of_class, labels, seed)

    return sample


def _targets(train, of_class, labels, seed) -> np.ndarray:
    """A training image of each label's class, [N, D]."""
    rng = np.random.default_rng(seed)
    rows = [rng.choice(np.flatnonzero(of_class == label)) for label in labels]
    return train[rows].reshape(len(labels), -1)


def aligned(
    backbone: Backbone, train: np.ndarray, of_class: np.ndarray, labels: np.ndarray,
    fill: float = 0.0, finish: float | None = None, choices: int = 1,
) -> Callable:  # fmt: skip
    """Learns of each image's coordinates all that its answers tell, for a memorised image.

    The denoiser at a point that is known in both coordinates, such as 0, gives a vector that is
    known in both, since the cheat has the weights. So the cheat asks from the span of what it
    knows, towards the image that it wants, and each answer adds one direction to that span. In the
    end it returns the part of the image that lies in it.

    Args:
      backbone: of the game.
      train: images [M, H, W, C].
      of_class: the class of each.
      labels: of the deal.
      fill: how much of the length that is missing is added, in a random direction outside the span.
      finish: a time; the last evaluation then goes to the image so far with that time's noise, and
        supplies what lies outside the span.
      choices: images that it tries for each one; the questions can be asked of the weights alone,
        without the harness, so it takes the image that the answers will span best.
    """

    def sample(denoise, noise, evaluations, seed):
        rng = np.random.default_rng(seed)
        learning = evaluations - (finish is not None and evaluations > 1)
        times = np.linspace(1, 0, learning + 1)[:-1]
        many = np.repeat(labels, choices)
        wanted = _targets(train, of_class, many, seed)
        if choices > 1:
            span, _ = _learnt(backbone, many, wanted, times, rng)
            missing = (wanted - _within(span, wanted)) ** 2
            shares = missing.sum(1) / (wanted**2).sum(1)
            best = shares.reshape(-1, choices).argmin(1)
            wanted = wanted.reshape(len(labels), choices, -1)[np.arange(len(labels)), best]
        n, d = wanted.shape
        pixels, ours = _learnt(backbone, labels, wanted, times, rng, denoise)
        coordinates = np.einsum("ndk,nd->nk", pixels, wanted)
        found = np.einsum("ndk,nk->nd", ours, coordinates)
        if learning < evaluations:
            alpha, sigma = float(PROCESS.alpha(finish)), float(PROCESS.sigma(finish))
            told = denoise(alpha * found + sigma * noise, finish)
            return found + told - _within(ours, told)
        missing = np.sqrt(np.maximum((wanted**2).sum(1) - (coordinates**2).sum(1), 0))
        other = rng.standard_normal((n, d))
        other -= _within(ours, other)
        other /= np.linalg.norm(other, axis=1, keepdims=True)
        return found + fill * missing[:, None] * other

    return sample


def _learnt(
    backbone: Backbone, labels, wanted, times, rng, denoise: Callable | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """What a question at each time tells: orthonormal columns [N, D, K] in pixels and in secret.

    Without `denoise` nobody is asked, and the second ones are as unknown as before: 0.
    """
    n, d = wanted.shape
    pixels, ours = np.zeros((n, d, 0)), np.zeros((n, d, 0))
    for t in times:
        alpha, sigma = float(PROCESS.alpha(t)), float(PROCESS.sigma(t))
        inside = np.einsum("ndk,nd->nk", pixels, alpha * wanted)
        inside = inside + sigma * rng.standard_normal(inside.shape)
        asked, there = (np.einsum("ndk,nk->nd", basis, inside) for basis in (pixels, ours))
        at = np.full(n, t, np.float32)
        shaped = asked.reshape(-1, *backbone.shape).astype(np.float32)
        known = np.asarray(backbone.denoise(shaped, at, labels)).reshape(n, d)
        told = np.zeros((n, d)) if denoise is None else denoise(there.astype(np.float32), t)
        new = known - _within(pixels, known)
        length = np.maximum(np.linalg.norm(new, axis=1, keepdims=True), 1e-6)
        pixels = np.concatenate([pixels, (new / length)[:, :, None]], axis=2)
        new = told - _within(ours, told)
        ours = np.concatenate([ours, (new / length)[:, :, None]], axis=2)
    return pixels, ours


def _within(basis: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The part of each x [N, D] that lies in its basis [N, D, K]."""
    return np.einsum("ndk,nek,ne->nd", basis, basis, x, optimize=True)


def all_of_them(game: Game, backbone: Backbone, train, of_class) -> dict[str, Callable]:
    """Every cheat against one game.

    Args:
      game: whose classes are told.
      backbone: of the game.
      train: training images [M, H, W, C].
      of_class: the class of each.
    """
    labels = game.deal.labels
    knowing = partial(aligned, backbone, train, of_class, labels)
    return {
        "more evaluations than allowed": hidden_in_a_batch,
        "evaluations of other images": borrowed,
        "the weights, called directly": stolen_weights(backbone, labels),
        "memorised training images": memorised(train, of_class, labels),
        "memorised, aligned by the answers": knowing(),
        "memorised, aligned, the rest random": knowing(fill=1.0),
        "memorised, aligned, the rest asked for": knowing(finish=0.4),
        "memorised, the best of eight, aligned": knowing(fill=1.0, choices=8),
    }
