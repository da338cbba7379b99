"""Exercises of chapter 08, editing."""

import numpy as np

from diffusion_course.grading.answers.drawing import images, levels, mask, normal, number
from diffusion_course.grading.answers.writing import exercise
from diffusion_course.grading.exercise import Part, Written
from diffusion_course.grading.inputs import SharedGaussianDenoiser


def _levels(rng):
    return levels(rng, ratio=(0.2, 0.7), at_s=(0.5, 0.9))


NEAR_DATA = 0.9996, 0.9999  # ᾱ_t and ᾱ_s where a number added for stability shows


# --- 08.1 -----------------------------------------------------------------------------------
def sdedit_start(guide, noise, strength, abar):
    level = abar[round(strength * (len(abar) - 1))]
    return np.sqrt(level) * guide + np.sqrt(1 - level) * noise


def _start_at(rng, strength, steps, *shape):
    """The last level is next to nothing."""
    guide, noise = images(rng, *shape), normal(rng, *shape)
    kept = rng.uniform(0.6, 0.85, steps)
    kept[-1] = 1e-4
    return guide, noise, float(strength), np.cumprod(np.append(1.0, kept))


def _starts_in_between(rng):
    """Strengths just above a step, just below one, and, again above, near the data."""
    above, below, little = rng.uniform((0.1, -0.4, 0.1), (0.4, -0.1, 0.25))
    late, middle = rng.integers(6, 10), rng.integers(2, 7)
    yield _start_at(rng, (late + above) / 10, 10, 2, 5)
    yield _start_at(rng, (middle + below) / 8, 8, 3, 2, 2)
    yield _start_at(rng, (1 + little) / 13, 13, 2, 5)


START = exercise(
    "08.1 · Where SDEdit starts",
    sdedit_start,
    Part("strengths in between", 1, _starts_in_between),
    Part("strengths 0 and 1", 1, lambda rng: [_start_at(rng, s, 8 + 3 * s, 2, 5) for s in (0, 1)]),
    section="2 · SDEdit: start half way",
    mistakes="""
    ᾱ belongs to variances: what multiplies pictures and noise is a square root
        np.sqrt(level) -> level
        np.sqrt(1 - level) -> (1 - level)
    the strength is counted from the other end: 0 must leave the guide as it is
        return sdedit_start(guide, noise, 1 - strength, abar)
    T is the number of steps, one less than the table has entries
        round(strength * (len(abar) - 1)) -> min(round(strength * len(abar)), len(abar) - 1)
    noise was added, but the guide must be shrunk to its level as well
        np.sqrt(level) * guide -> guide
    the nearest step is asked for, not always the one below
        round(strength -> int(strength
    the nearest step is asked for, not always the one above
        round(strength * (len(abar) - 1)) -> -int(-strength * (len(abar) - 1) // 1)
    the level was taken between two steps; that of the nearest step is asked for
        abar[round(strength * (len(abar) - 1))]
            -> np.interp(strength * (len(abar) - 1), range(len(abar)), abar)
    """,
)


# --- 08.2 -----------------------------------------------------------------------------------
def inpainting_step(x0_hat, x_t, known, mask, abar_t, abar_s):
    guess = np.where(mask, known, x0_hat)
    eps = (x_t - np.sqrt(abar_t) * guess) / np.sqrt(1 - abar_t)
    return np.sqrt(abar_s) * guess + np.sqrt(1 - abar_s) * eps


def _step(rng, levels, *shape):
    return *(images(rng, *shape) for _ in range(3)), mask(rng, *shape), *levels


def _steps(rng):
    return [_step(rng, _levels(rng), 2, 3, 4), _step(rng, NEAR_DATA, 3, 5)]


def _last_steps(rng):
    return [_step(rng, (number(rng, 0.3, 0.9), 1.0), 2, 3, 4)]


STEP = exercise(
    "08.2 · One inpainting step",
    inpainting_step,
    Part("between two noisy levels", 2, _steps),
    Part("known pixels are exact in the end", 1, _last_steps),
    section="3 · Inpainting: a denoiser that knows some pixels",
    # The first of the last two is true of both, which are one and the same where ᾱ_s is 1.
    mistakes="""
    the mask is the wrong way round: it is True where a pixel is known
        mask -> ~mask
    the noise must come from the corrected guess; yours comes from the network's
        np.sqrt(abar_t) * guess -> np.sqrt(abar_t) * x0_hat
    clean pixels were pasted: at the level s the known ones must have noise too
        return np.where(mask, known, right)
    shrunk pixels were pasted: at the level s the known ones must have noise too
        return np.where(mask, np.sqrt(abar_s) * known, right)
    ᾱ belongs to variances: what multiplies pictures and noise is a square root
        np.sqrt(abar_t) -> abar_t
        np.sqrt(1 - abar_t) -> (1 - abar_t)
        np.sqrt(abar_s) -> abar_s
        np.sqrt(1 - abar_s) -> (1 - abar_s)
    the noise was not divided by its level
        / np.sqrt(1 - abar_t) ->
    the known pixels are not in the guess that is kept
        np.where(mask, known, x0_hat) -> x0_hat
    the known pixels count in the noise only; the guess that is kept needs them too
        np.sqrt(abar_s) * guess -> np.sqrt(abar_s) * x0_hat
    """,
)


# --- 08.3 -----------------------------------------------------------------------------------
def jump_back(x_s, eps_s, noise, abar_t, abar_s):
    kept = abar_t / abar_s
    x_t = np.sqrt(kept) * x_s + np.sqrt(1 - kept) * noise
    old, fresh = np.sqrt(kept * (1 - abar_s)), np.sqrt(1 - kept)
    return x_t, (old * eps_s + fresh * noise) / np.sqrt(1 - abar_t)


def _jump(rng, levels, *shape):
    return images(rng, *shape), normal(rng, *shape), normal(rng, *shape), *levels


def _jumps(rng):
    shapes = (3, 4), (5,), (5,)
    return [*(_jump(rng, _levels(rng), *shape) for shape in shapes), _jump(rng, NEAR_DATA, 5)]


def _jumps_from_data(rng):
    return [_jump(rng, (number(rng, 0.1, 0.6), 1.0), 3, 4)]


JUMP = exercise(
    "08.3 · The jump back",
    jump_back,
    Part("any two levels", 2, _jumps),
    Part("from the data, ᾱ_s = 1", 1, _jumps_from_data),
    section="3 · Inpainting: a denoiser that knows some pixels",
    mistakes="""
    that noises data; x_s has noise already, and needs only what is missing
        abar_t / abar_s -> abar_t
    that adds what the variances differ by; the old noise shrinks too, so more is missing
        x_s + np.sqrt(1 - kept) -> x_s + np.sqrt(abar_s - abar_t)
    standard deviations were subtracted; of independent noises the variances add up
        x_s + np.sqrt(1 - kept) -> x_s + (np.sqrt(1 - abar_t) - np.sqrt(1 - abar_s))
    the shrunk old noise was subtracted as a standard deviation: only variances add up
        x_s + np.sqrt(1 - kept) -> x_s + (np.sqrt(1 - abar_t) - np.sqrt(kept * (1 - abar_s)))
    the factor of x_s was used as it is; it counts squared in the old noise's variance
        x_s + np.sqrt(1 - kept) -> x_s + np.sqrt(1 - abar_t - np.sqrt(kept) * (1 - abar_s))
    ᾱ and its ratio belong to variances: what multiplies a state is a square root
        np.sqrt(kept) * x_s + np.sqrt(1 - kept) -> kept * x_s + (1 - kept)
    the noise is right, but x_s is multiplied by a ratio of variances
        np.sqrt(kept) * x_s -> kept * x_s
    noise is multiplied by a standard deviation, not by a variance
        x_s + np.sqrt(1 - kept) -> x_s + (1 - kept)
    the noise at t is not all fresh: a part of it comes with x_s
        x_s + np.sqrt(1 - kept) -> x_s + np.sqrt(1 - abar_t)
    that is the root of a negative number: are s and t exchanged?
        return jump_back(x_s, eps_s, noise, abar_s, abar_t)
    the state is right, but its noise is not the fresh one alone: the old noise is in it, too
        (old * eps_s + fresh * noise) / np.sqrt(1 - abar_t) -> noise
    the state is right, but its noise is not the old one: fresh noise has come
        (old * eps_s + fresh * noise) / np.sqrt(1 - abar_t) -> eps_s
    the old noise has shrunk with the signal: its part of the variance is kept·(1 − ᾱ_s)
        np.sqrt(kept * (1 - abar_s)), -> np.sqrt(1 - abar_s),
    the old noise has the factor of x_s and the level at s: one of the two is missing
        np.sqrt(kept * (1 - abar_s)), -> np.sqrt(kept),
    the noise of a state has the variance 1: divide by its level at t
        / np.sqrt(1 - abar_t) ->
    the level at t is a standard deviation: you divided by the variance
        / np.sqrt(1 - abar_t) -> / (1 - abar_t)
    the noise is that of x_t: divide by the level at t, not at s
        / np.sqrt(1 - abar_t) -> / np.sqrt(max(1 - abar_s, 1e-300))
    the variances of the two parts are added, and yours are averaged: each part has its own factor
        (old * eps_s + fresh * noise) / np.sqrt(1 - abar_t) -> (eps_s + noise) / np.sqrt(2)
    the signal is not noise: what is left of x_t without √ᾱ_t·x0 is its noise
        (old * eps_s + fresh * noise) -> x_t
    the two results stand the other way round: the state comes first
        return x_t, (old * eps_s + fresh * noise) / np.sqrt(1 - abar_t)
            -> return (old * eps_s + fresh * noise) / np.sqrt(1 - abar_t), x_t
    """,
)


# --- 08.4 -----------------------------------------------------------------------------------
def hold_colour(x0_hat, region, colour):
    inside, wanted = region[None, :, :, None], colour[:, None, None, :]
    mean = np.where(inside, x0_hat, 0).sum((1, 2), keepdims=True) / region.sum()
    return np.where(inside, x0_hat + wanted - mean, x0_hat)


def _regions(rng, whole, *shapes):
    for n, height, width, channels in shapes:
        region = np.ones((height, width), bool) if whole else mask(rng, height, width)
        yield images(rng, n, height, width, channels), region, images(rng, n, channels)


HOLD = exercise(
    "08.4 · A region of a given colour",
    hold_colour,
    Part("the whole picture", 1, lambda rng: _regions(rng, True, (2, 4, 5, 3), (4, 3, 2, 1))),
    Part("a region of it", 2, lambda rng: _regions(rng, False, (2, 4, 5, 3), (3, 3, 3, 3))),
    section="6 · Shape, colour and place",
    mistakes="""
    the mean must be over the region alone: divide by its number of pixels
        region.sum() -> region.size
    the mean to take away is that of the region, not of the whole picture
        np.where(inside, x0_hat, 0).sum((1, 2), keepdims=True) / region.sum()
            -> x0_hat.mean((1, 2), keepdims=True)
    pixels outside of the region must stay as they are
        np.where(inside, x0_hat + wanted - mean, x0_hat) -> x0_hat + wanted - mean
    each image has a mean of its own: don't average over the batch
        (1, 2), keepdims=True) / -> (0, 1, 2), keepdims=True) / len(x0_hat) /
    the region was painted over; its pixels must keep their differences
        x0_hat + wanted - mean -> wanted
    the colour was added, but the mean that is there must go first
        wanted - mean -> wanted
    each colour channel has a mean of its own
        (1, 2), keepdims=True) / -> (1, 2, 3), keepdims=True) / x0_hat.shape[-1] /
    the sign of the shift is wrong: it leads from the mean to the colour
        + wanted - mean -> - wanted + mean
    the region is the wrong way round: it is True where pixels are to change
        return hold_colour(x0_hat, ~region, colour)
    no pixel is left to average over: is the region the wrong way round?
        return hold_colour(x0_hat, ~region, colour) + 0 / (~region).sum()
    """,
)


# --- 08.5 -----------------------------------------------------------------------------------
def edit(denoise, guide, mask, noises, abar):
    """SDEdit with a mask."""
    x, states = _noised(guide, noises[0], abar[0]), []
    for noise, abar_t, abar_s in zip(noises[1:], abar[:-1], abar[1:], strict=True):
        guess = denoise(x, np.sqrt(abar_t), np.sqrt(1 - abar_t))
        eps = (x - np.sqrt(abar_t) * guess) / np.sqrt(1 - abar_t)
        x = np.where(mask, _noised(guide, noise, abar_s), _noised(guess, eps, abar_s))
        states.append(x)
    return np.stack(states)


def _noised(picture, noise, level):
    return np.sqrt(level) * picture + np.sqrt(1 - level) * noise


def _run(rng, noisy, *shape):
    """From the first of these levels, through the others, to the data."""
    steps = len(noisy)
    guide, noises = images(rng, *shape), normal(rng, steps + 1, *shape)
    # Only a denoiser of whole pictures shows what was pasted into its state beside a free pixel.
    denoise = SharedGaussianDenoiser(
        number(rng, 1, 2), number(rng, 0.4, 0.8), number(rng, 0.7, 1.1)
    )
    return denoise, guide, mask(rng, *shape), noises, np.append(noisy, 1.0)


def _single_steps(rng):
    return [_run(rng, [level], 2, 3, 1) for level in (number(rng, 0.2, 0.9), NEAR_DATA[0])]


def _whole_runs(rng):
    """One in the middle, and one that begins and ends where a number added for stability shows."""
    middle = np.sort(rng.uniform(0.2, 0.9, 5))
    return [_run(rng, middle, 2, 3, 1), _run(rng, [2e-4, 6e-4, NEAR_DATA[0]], 2, 1, 3, 2)]


EDITOR = exercise(
    "08.5 · This editor is broken",
    edit,
    Part("a single step to the data", 2, _single_steps),
    Part("a whole run", 3, _whole_runs),
    section="4 · Break it on purpose: the wrong noise under the mask",
    # Of the two starts with too little noise the first is true of both: in a single step they are
    # the same.
    mistakes="""
    one bug is left: the guide never reaches the start, so the free part begins without it
        _noised(guide, noises[0], abar[0]) -> noises[0]
    one bug is left: the copy has the level where the step began, and is never clean
        _noised(guide, noise, abar_s) -> _noised(guide, noise, abar_t)
    both bugs are still there
        _noised(guide, noises[0], abar[0]) -> noises[0]
        _noised(guide, noise, abar_s) -> _noised(guide, noise, abar_t)
    the start has too little noise for the level that the first step begins at
        noises[0], abar[0] -> noises[0], abar[1]
    the start has no noise, and the first step begins at a noisy level
        _noised(guide, noises[0], abar[0]) -> guide
    noise was added, but the guide must be shrunk to the level of the start as well
        _noised(guide, noises[0], abar[0]) -> guide + np.sqrt(1 - abar[0]) * noises[0]
    the mask is the wrong way round: it is True where the guide is to stay
        np.where(mask -> np.where(~mask
    nothing is pasted: after every step the known part must be a copy of the guide's
        np.where(mask, _noised(guide, noise, abar_s), _noised(guess, eps, abar_s))
            -> _noised(guess, eps, abar_s)
    clean pixels were pasted: on the way the known part must be as noisy as the rest
        _noised(guide, noise, abar_s) -> guide
    the known part keeps the noise of the start, as in equation (2); a paste has its own
        eps = (x -> guess = np.where(mask, guide, guess); eps = (x
        np.where(mask, _noised(guide, noise, abar_s), _noised(guess, eps, abar_s))
            -> _noised(guess, eps, abar_s)
    the paste uses the noise of another step
        noises[1:] -> noises[:-1]
    the next step must begin at the pasted state: yours pastes into the states that it returns only
        x = np.where(mask, _noised(guide, noise, abar_s), _noised(guess, eps, abar_s))
            -> x = _noised(guess, eps, abar_s)
        states.append(x) -> states.append(np.where(mask, _noised(guide, noise, abar_s), x))
    the next step must begin at the state that is returned, with noise in its known part
        states.append(x) -> states.append(x); x = np.where(mask, guide, x)
    the known part is pasted after every step, not only after the last one
        np.where(mask, _noised -> np.where(mask & (abar_s == 1), _noised
    the guide is noised as a whole for the start, its known part as well
        _noised(guide, noises[0], abar[0])
            -> np.where(mask, noises[0], _noised(guide, noises[0], abar[0]))
    a state is what a step ends with: the known part has been pasted into it
        x = np.where(mask, _noised(guide, noise, abar_s), _noised(guess, eps, abar_s))
            -> x = _noised(guess, eps, abar_s)
        states.append(x) -> states.append(x); x = np.where(mask, _noised(guide, noise, abar_s), x)
    """,
    library=("diffusion_course.grading.inputs.GaussianDenoiser",),
)


# --- 08.6 -----------------------------------------------------------------------------------
def feathered(known, x0_hat, eps_known, eps_free, m, alpha, sigma):
    noise = m * eps_known + (1 - m) * eps_free
    length = np.sqrt(m**2 + (1 - m) ** 2)
    return alpha * (m * known + (1 - m) * x0_hat) + sigma * noise / length


def _blend(rng, soft):
    for shape in ((3, 5), (2, 2, 4)):
        m = rng.uniform(0.1, 0.9, shape) if soft else mask(rng, *shape)
        both = number(rng, 0.3, 0.8), number(rng, 0.5, 1.3)
        pictures, noises = [images(rng, *shape) for _ in "ab"], [normal(rng, *shape) for _ in "ab"]
        yield *pictures, *noises, m.astype(np.float32), *both


FEATHER = exercise(
    "08.6 · A soft edge",
    feathered,
    Part("where the mask is 1 or 0", 1, lambda rng: _blend(rng, soft=False)),
    Part("in the seam", 2, lambda rng: _blend(rng, soft=True)),
    section="4 · Break it on purpose: the wrong noise under the mask",
    mistakes="""
    the blended noise is too weak in the seam
        / length ->
    only the noise is too weak: the blended picture must not be divided
        alpha * (m -> alpha / length * (m
    the noise is divided by its variance; the standard deviation is needed
        np.sqrt(m**2 + (1 - m) ** 2) -> m**2 + (1 - m) ** 2
    the variance is right, but the shares of the noises must be those of the pictures
        m * eps_known + (1 - m) -> np.sqrt(m) * eps_known + np.sqrt(1 - m)
        / length ->
    the two shares are exchanged: where m is 1 the known picture counts
        return feathered(known, x0_hat, eps_known, eps_free, 1 - m, alpha, sigma)
    """,
)


# --- 08.7 -----------------------------------------------------------------------------------
PLATE = Written("08.7", "The restored licence plate", 2, section="7 · From coarse to fine")
