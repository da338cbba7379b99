"""Exercises of chapter 08, editing."""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from diffusion_course.grading.exercise import Exercise, Part, Written
from diffusion_course.grading.inputs import GaussianDenoiser


def _images(rng, *shape, mean=0.6, std=1.7):
    return rng.normal(mean, std, shape).astype(np.float32)


def _noise(rng, *shape):
    return rng.normal(size=shape).astype(np.float32)


def _mask(rng, *shape):
    """About half True, with both kinds for certain."""
    mask = rng.uniform(size=shape) < 0.5
    mask.flat[0], mask.flat[-1] = True, False
    return mask


def _levels(rng):
    abar_s = rng.uniform(0.5, 0.9)
    return float(abar_s * rng.uniform(0.2, 0.7)), float(abar_s)


# --- 08.1 -----------------------------------------------------------------------------------


def _noised(guide, noise, level):
    return np.sqrt(level) * guide + np.sqrt(1 - level) * noise


def _start(guide, noise, strength, abar, whole=round):
    return _noised(guide, noise, abar[whole(strength * (len(abar) - 1))])


def _start_without_roots(guide, noise, strength, abar):
    level = abar[round(strength * (len(abar) - 1))]
    return level * guide + (1 - level) * noise


def _start_from_the_other_end(guide, noise, strength, abar):
    return _start(guide, noise, 1 - strength, abar)


def _start_of_a_longer_chain(guide, noise, strength, abar):
    return _noised(guide, noise, abar[min(round(strength * len(abar)), len(abar) - 1)])


def _start_unshrunk(guide, noise, strength, abar):
    return guide + np.sqrt(1 - abar[round(strength * (len(abar) - 1))]) * noise


def _start_between_two_steps(guide, noise, strength, abar):
    return _noised(guide, noise, np.interp(strength * (len(abar) - 1), range(len(abar)), abar))


def _table(rng, steps=8):
    """ᾱ of a chain; entry 0 is 1."""
    return np.cumprod(np.append(1.0, rng.uniform(0.6, 0.85, steps)))


def _start_at(rng, strength, steps):
    return _images(rng, 2, 5), _noise(rng, 2, 5), float(strength), _table(rng, steps)


def _starts_in_between(rng):
    """Strengths just above a step, just below one, and, again above, near the data."""
    steps = int(rng.integers(8, 13))
    late, middle = rng.integers(steps // 2 + 1, steps), rng.integers(2, steps)
    above, below, little = rng.uniform((0.1, -0.4, 0.1), (0.4, -0.1, 0.25))
    near = np.array([late + above, middle + below, 1 + little])
    return [_start_at(rng, strength, steps) for strength in near / steps]


START = Exercise(
    id="08.1",
    title="Where SDEdit starts",
    function="sdedit_start",
    parts=(
        Part("strengths in between", 1, _starts_in_between),
        Part("strengths 0 and 1", 1, lambda rng: [_start_at(rng, s, 8) for s in (0, 1)]),
    ),
    oracle=_start,
    mistakes={
        "ᾱ belongs to variances: what multiplies pictures and noise is a square root": (
            _start_without_roots
        ),
        "the strength is counted from the other end: 0 must leave the guide as it is": (
            _start_from_the_other_end
        ),
        "T is the number of steps, one less than the table has entries": _start_of_a_longer_chain,
        "noise was added, but the guide must be shrunk to its level as well": _start_unshrunk,
        "the nearest step is asked for, not always the one below": (
            partial(_start, whole=math.floor)
        ),
        "the nearest step is asked for, not always the one above": partial(_start, whole=math.ceil),
        "the level was taken between two steps; that of the nearest step is asked for": (
            _start_between_two_steps
        ),
    },
)


# --- 08.2 -----------------------------------------------------------------------------------


def _ddim(guess, x_t, abar_t, abar_s, of=None, divided=True):
    of = guess if of is None else of
    eps = (x_t - np.sqrt(abar_t) * of) / (np.sqrt(1 - abar_t) if divided else 1)
    return np.sqrt(abar_s) * guess + np.sqrt(1 - abar_s) * eps


def _inpainting_step(x0_hat, x_t, known, mask, abar_t, abar_s, divided=True):
    return _ddim(np.where(mask, known, x0_hat), x_t, abar_t, abar_s, divided=divided)


def _inpainting_inverted(x0_hat, x_t, known, mask, abar_t, abar_s):
    return _inpainting_step(x0_hat, x_t, known, ~mask, abar_t, abar_s)


def _inpainting_with_the_old_noise(x0_hat, x_t, known, mask, abar_t, abar_s):
    return _ddim(np.where(mask, known, x0_hat), x_t, abar_t, abar_s, of=x0_hat)


def _inpainting_in_the_noise_only(x0_hat, x_t, known, mask, abar_t, abar_s):
    return _ddim(x0_hat, x_t, abar_t, abar_s, of=np.where(mask, known, x0_hat))


def _inpainting_pasted(x0_hat, x_t, known, mask, abar_t, abar_s, shrunk=False):
    copy = (np.sqrt(abar_s) if shrunk else 1) * known
    return np.where(mask, copy, _ddim(x0_hat, x_t, abar_t, abar_s))


def _inpainting_without_roots(x0_hat, x_t, known, mask, abar_t, abar_s):
    guess = np.where(mask, known, x0_hat)
    return abar_s * guess + (1 - abar_s) * (x_t - abar_t * guess) / (1 - abar_t)


def _inpainting_ignored(x0_hat, x_t, known, mask, abar_t, abar_s):
    return _ddim(x0_hat, x_t, abar_t, abar_s)


def _steps(rng, levels):
    pictures = (_images(rng, 2, 3, 4) for _ in range(3))
    return [(*pictures, _mask(rng, 2, 3, 4), *levels)]


STEP = Exercise(
    id="08.2",
    title="One inpainting step",
    function="inpainting_step",
    parts=(
        Part("between two noisy levels", 2, lambda rng: _steps(rng, _levels(rng))),
        Part(
            "known pixels are exact in the end",
            1,
            lambda rng: _steps(rng, (float(rng.uniform(0.3, 0.9)), 1.0)),
        ),
    ),
    oracle=_inpainting_step,
    mistakes={
        "the mask is the wrong way round: it is True where a pixel is known": _inpainting_inverted,
        "the noise must come from the corrected guess; yours comes from the network's": (
            _inpainting_with_the_old_noise
        ),
        "clean pixels were pasted: at the level s the known ones must have noise too": (
            _inpainting_pasted
        ),
        "shrunk pixels were pasted: at the level s the known ones must have noise too": (
            partial(_inpainting_pasted, shrunk=True)
        ),
        "ᾱ belongs to variances: what multiplies pictures and noise is a square root": (
            _inpainting_without_roots
        ),
        "the noise was not divided by its level": partial(_inpainting_step, divided=False),
        # The first of these two is true of both, which are one and the same where ᾱ_s is 1.
        "the known pixels are not in the guess that is kept": _inpainting_ignored,
        "the known pixels count in the noise only; the guess that is kept needs them too": (
            _inpainting_in_the_noise_only
        ),
    },
)


# --- 08.3 -----------------------------------------------------------------------------------


def _jump(x_s, noise, abar_t, abar_s, signal=None, level=None):
    """Noise is added to x_s; the two functions of (abar_t, abar_s) are ways to get it wrong."""
    kept = abar_t / abar_s
    signal = np.sqrt(kept) if signal is None else signal(abar_t, abar_s)
    return signal * x_s + (np.sqrt(1 - kept) if level is None else level(abar_t, abar_s)) * noise


def _jump_from_the_data(x_s, noise, abar_t, abar_s):
    return _noised(x_s, noise, abar_t)


def _jump_without_roots(x_s, noise, abar_t, abar_s):
    return abar_t / abar_s * x_s + (1 - abar_t / abar_s) * noise


def _jump_the_other_way(x_s, noise, abar_t, abar_s):
    return _jump(x_s, noise, abar_s, abar_t)


def _jumps(rng, count, data=False):
    for _ in range(count):
        abar_t, abar_s = _levels(rng)
        yield _images(rng, 3, 4), _noise(rng, 3, 4), abar_t, 1.0 if data else abar_s


JUMP = Exercise(
    id="08.3",
    title="The jump back",
    function="jump_back",
    parts=(
        Part("any two levels", 2, lambda rng: list(_jumps(rng, 3))),
        Part("from the data, ᾱ_s = 1", 1, lambda rng: list(_jumps(rng, 1, data=True))),
    ),
    oracle=_jump,
    mistakes={
        "that noises data; x_s has noise already, and needs only what is missing": (
            _jump_from_the_data
        ),
        "that adds what the variances differ by; the old noise shrinks too, so more is missing": (
            partial(_jump, level=lambda t, s: np.sqrt(s - t))
        ),
        "standard deviations were subtracted; of independent noises the variances add up": (
            partial(_jump, level=lambda t, s: np.sqrt(1 - t) - np.sqrt(1 - s))
        ),
        "the shrunk old noise was subtracted as a standard deviation: only variances add up": (
            partial(_jump, level=lambda t, s: np.sqrt(1 - t) - np.sqrt(t / s * (1 - s)))
        ),
        "the factor of x_s was used as it is; it counts squared in the old noise's variance": (
            partial(_jump, level=lambda t, s: np.sqrt(1 - t - np.sqrt(t / s) * (1 - s)))
        ),
        "ᾱ and its ratio belong to variances: what multiplies a state is a square root": (
            _jump_without_roots
        ),
        "the noise is right, but x_s is multiplied by a ratio of variances": (
            partial(_jump, signal=lambda t, s: t / s)
        ),
        "noise is multiplied by a standard deviation, not by a variance": (
            partial(_jump, level=lambda t, s: 1 - t / s)
        ),
        "the noise at t is not all fresh: a part of it comes with x_s": (
            partial(_jump, level=lambda t, s: np.sqrt(1 - t))
        ),
        "that is the root of a negative number: are s and t exchanged?": _jump_the_other_way,
    },
)


# --- 08.4 -----------------------------------------------------------------------------------


def _hold(
    x0_hat, region, colour, inverted=False, mean_of="region", count=None, per_image=True, sign=1,
    everywhere=False,
):  # fmt: skip
    region = ~region if inverted else region
    inside = region[None, :, :, None]
    among = inside if mean_of == "region" else np.ones_like(inside)
    count = among.sum() if count is None else count(region)
    axes = (1, 2) if per_image else (0, 1, 2)
    mean = np.where(among, x0_hat, 0).sum(axes, keepdims=True) / count
    if not per_image:
        mean = mean / len(x0_hat)
    shifted = x0_hat + sign * (colour[:, None, None, :] - mean)
    return shifted if everywhere else np.where(inside, shifted, x0_hat)


def _hold_in_no_pixel(x0_hat, region, colour):
    """With a product in the place of `where`: nan if there is nothing outside of the region."""
    return _hold(x0_hat, region, colour, inverted=True) + 0 / (~region).sum()


def _hold_by_painting(x0_hat, region, colour):
    return np.where(region[None, :, :, None], colour[:, None, None, :], x0_hat)


def _hold_by_adding(x0_hat, region, colour):
    return np.where(region[None, :, :, None], x0_hat + colour[:, None, None, :], x0_hat)


def _hold_the_grey(x0_hat, region, colour):
    """One shift for all channels: the mean over the colours too."""
    inside = region[None, :, :, None]
    mean = np.where(inside, x0_hat, 0).sum((1, 2, 3), keepdims=True)
    mean = mean / (region.sum() * x0_hat.shape[-1])
    return np.where(inside, x0_hat + colour[:, None, None, :] - mean, x0_hat)


def _regions(rng, whole, *shapes):
    for n, height, width, channels in shapes:
        region = np.ones((height, width), bool) if whole else _mask(rng, height, width)
        yield _images(rng, n, height, width, channels), region, _images(rng, n, channels)


HOLD = Exercise(
    id="08.4",
    title="A region of a given colour",
    function="hold_colour",
    parts=(
        Part("the whole picture", 1, lambda rng: list(_regions(rng, True, (2, 4, 5, 3)))),
        Part(
            "a region of it",
            2,
            lambda rng: list(_regions(rng, False, (2, 4, 5, 3), (3, 3, 3, 3))),
        ),
    ),
    oracle=_hold,
    mistakes={
        "the mean must be over the region alone: divide by its number of pixels": (
            partial(_hold, count=lambda region: region.size)
        ),
        "the mean to take away is that of the region, not of the whole picture": (
            partial(_hold, mean_of="picture")
        ),
        "pixels outside of the region must stay as they are": partial(_hold, everywhere=True),
        "each image has a mean of its own: don't average over the batch": (
            partial(_hold, per_image=False)
        ),
        "the region was painted over; its pixels must keep their differences": _hold_by_painting,
        "the colour was added, but the mean that is there must go first": _hold_by_adding,
        "each colour channel has a mean of its own": _hold_the_grey,
        "the sign of the shift is wrong: it leads from the mean to the colour": (
            partial(_hold, sign=-1)
        ),
        "the region is the wrong way round: it is True where pixels are to change": (
            partial(_hold, inverted=True)
        ),
        "no pixel is left to average over: is the region the wrong way round?": _hold_in_no_pixel,
    },
)


# --- 08.5 -----------------------------------------------------------------------------------


def _edit(
    denoise, guide, mask, noises, abar, start=None, paste="s", inverted=False, early=False
):  # fmt: skip
    """SDEdit with a mask; the other arguments are ways to get it wrong."""
    x = _noised(guide, noises[0], abar[0]) if start is None else start(guide, noises[0], abar)
    mask, states = ~mask if inverted else mask, []
    fresh = noises[:-1] if early else noises[1:]
    for noise, abar_t, abar_s in zip(fresh, abar[:-1], abar[1:], strict=True):
        guess = denoise(x, np.sqrt(abar_t), np.sqrt(1 - abar_t))
        if paste == "into the guess":
            guess = np.where(mask, guide, guess)
        x = _ddim(guess, x, abar_t, abar_s)
        level = {"s": abar_s, "t": abar_t, "clean": 1.0}.get(paste)
        if level is not None:
            x = np.where(mask, _noised(guide, noise, level), x)
        states.append(x)
    return np.stack(states)


def _only_noise(guide, noise, abar):
    return noise


def _runs(rng, steps):
    noisy = np.sort(rng.uniform(0.2, 0.9, steps))
    denoise = GaussianDenoiser(mean=float(rng.uniform(1, 2)), std=float(rng.uniform(0.4, 0.8)))
    guide, noises = _images(rng, 6), _noise(rng, steps + 1, 6)
    return [(denoise, guide, _mask(rng, 6), noises, np.append(noisy, 1.0))]


EDITOR = Exercise(
    id="08.5",
    title="This editor is broken",
    function="edit",
    parts=(
        Part("a single step to the data", 2, lambda rng: _runs(rng, 1)),
        Part("a whole run", 3, lambda rng: _runs(rng, 5)),
    ),
    oracle=_edit,
    mistakes={
        "one bug is left: the guide never reaches the start, so the free part ignores it": (
            partial(_edit, start=_only_noise)
        ),
        "one bug is left: the copy has the level where the step began, and is never clean": (
            partial(_edit, paste="t")
        ),
        "both bugs are still there": partial(_edit, start=_only_noise, paste="t"),
        # The first of these two is true of both, which are the same if there is a single step.
        "the start has too little noise for the level that the first step begins at": (
            partial(_edit, start=lambda guide, noise, abar: _noised(guide, noise, abar[1]))
        ),
        "the start has no noise, and the first step begins at a noisy level": (
            partial(_edit, start=lambda guide, noise, abar: guide)
        ),
        "noise was added, but the guide must be shrunk to the level of the start as well": (
            partial(_edit, start=lambda guide, noise, abar: guide + np.sqrt(1 - abar[0]) * noise)
        ),
        "the mask is the wrong way round: it is True where the guide is to stay": (
            partial(_edit, inverted=True)
        ),
        "nothing is pasted: after every step the known part must be a copy of the guide's": (
            partial(_edit, paste="nothing")
        ),
        "clean pixels were pasted: on the way the known part must be as noisy as the rest": (
            partial(_edit, paste="clean")
        ),
        "the known part keeps the noise of the start, as in equation (2); a paste has its own": (
            partial(_edit, paste="into the guess")
        ),
        "the paste uses the noise of another step": partial(_edit, early=True),
    },
)


# --- 08.6 -----------------------------------------------------------------------------------


def _feather(
    known, x0_hat, eps_known, eps_free, m, alpha, sigma, strength=None, share=lambda m: m
):  # fmt: skip
    noise = share(m) * eps_known + share(1 - m) * eps_free
    length = np.sqrt(m**2 + (1 - m) ** 2) if strength is None else strength(m)
    return alpha * (m * known + (1 - m) * x0_hat) + sigma * noise / length


def _feather_swapped(known, x0_hat, eps_known, eps_free, m, alpha, sigma):
    return _feather(known, x0_hat, eps_known, eps_free, 1 - m, alpha, sigma)


def _feather_all_divided(known, x0_hat, eps_known, eps_free, m, alpha, sigma):
    return _feather(known, x0_hat, eps_known, eps_free, m, alpha, sigma, lambda m: 1) / np.sqrt(
        m**2 + (1 - m) ** 2
    )


def _blends(rng, soft):
    shape = (3, 5)
    m = rng.uniform(0.1, 0.9, shape).astype(np.float32) if soft else _mask(rng, *shape)
    pictures, noises = (_images(rng, *shape) for _ in range(2)), (_noise(rng, *shape) for _ in "ab")
    levels = float(rng.uniform(0.3, 0.8)), float(rng.uniform(0.5, 1.3))
    return [(*pictures, *noises, m.astype(np.float32), *levels)]


FEATHER = Exercise(
    id="08.6",
    title="A soft edge",
    function="feathered",
    parts=(
        Part("where the mask is 1 or 0", 1, lambda rng: _blends(rng, soft=False)),
        Part("in the seam", 2, lambda rng: _blends(rng, soft=True)),
    ),
    oracle=_feather,
    mistakes={
        "the blended noise is too weak in the seam": partial(_feather, strength=lambda m: 1),
        "only the noise is too weak: the blended picture must not be divided": _feather_all_divided,
        "the noise is divided by its variance; the standard deviation is needed": (
            partial(_feather, strength=lambda m: m**2 + (1 - m) ** 2)
        ),
        "the variance is right, but the shares of the noises must be those of the pictures": (
            partial(_feather, strength=lambda m: 1, share=np.sqrt)
        ),
        "the two shares are exchanged: where m is 1 the known picture counts": _feather_swapped,
    },
)


# --- 08.7 -----------------------------------------------------------------------------------

PLATE = Written(id="08.7", title="The restored licence plate", points=2)

EXERCISES = (START, STEP, JUMP, HOLD, EDITOR, FEATHER, PLATE)
