"""Exercises of chapter 18, Few steps: the flow map."""

import numpy as np

from diffusion_course.grading.answers.drawing import gaussian, images, normal, number
from diffusion_course.grading.answers.writing import exercise
from diffusion_course.grading.exercise import Part, Written
from diffusion_course.grading.inputs import GaussianMeanVelocity, TwoGroupDenoiser


def _ends(rng):
    """(α, σ) at t and at s; their squares need not add up to 1."""
    alpha, sigma = np.sort(rng.uniform(0.3, 1.3, 2)), np.sort(rng.uniform(0.3, 1.5, 2))
    return np.array([alpha[0], sigma[1]]), np.array([alpha[1], sigma[0]])


# --- 18.1 -----------------------------------------------------------------------------------
def flow_map(x, mean, cov, at_t, at_s):
    alpha_t, alpha_s = at_t[0], at_s[0]
    C_t, C_s = (a**2 * cov + s**2 * np.eye(len(cov)) for a, s in (at_t, at_s))
    stretch = _root(C_s) @ np.linalg.inv(_root(C_t))
    return alpha_s * mean + (x - alpha_t * mean) @ stretch.T


def _root(C):
    """The symmetric root of a covariance."""
    values, vectors = np.linalg.eigh(C)
    return vectors @ np.diag(np.sqrt(np.maximum(values, 0))) @ vectors.T


def _clouds(rng, *pairs):
    """States of data N(mean, cov) and pairs of levels; cov has no symmetry that hides a slip."""
    for (B, D), pair in zip(((4, 2), (2, 3), (4, 2)), pairs, strict=False):
        root = np.diag(rng.uniform(0.6, 1.4, D)) + np.tril(rng.uniform(0.5, 1.0, (D, D)), -1)
        if pair[1][1] == 0:  # data near a line: nothing is left of the noise to widen them
            root = np.hstack([root[:, :1], 0.02 * np.eye(D)])
        yield images(rng, B, D), rng.uniform(1.0, 2.0, D), root @ root.T, *pair


FLOW_MAP = exercise(
    "18.1 · The flow map of a tilted Gaussian",
    flow_map,
    Part("between two levels", 2, lambda rng: _clouds(rng, _ends(rng), _ends(rng))),
    Part(
        "from noise alone, to the data, and nowhere",
        1,
        lambda rng: _clouds(
            rng,
            (np.array([0.0, number(rng, 0.8, 1.4)]), _ends(rng)[1]),
            (_ends(rng)[0], np.array([1.0, 0.0])),
            [_ends(rng)[0]] * 2,
        ),
    ),
    section="2 · One map, three equations",
    mistakes="""
    Cholesky's roots give the right distributions, but the flow does not shear: take symmetric roots
        stretch = _root(C_s) @ np.linalg.inv(_root(C_t))
            -> stretch = np.linalg.cholesky(C_s) @ np.linalg.inv(np.linalg.cholesky(C_t))
    the coordinates are correlated: the map of each one alone is not the flow's
        stretch = _root(C_s) @ np.linalg.inv(_root(C_t))
            -> stretch = np.diag(np.sqrt(np.diag(C_s) / np.diag(C_t)))
    standard deviations stretch, not variances: take the roots of the matrices
        stretch = _root(C_s) @ np.linalg.inv(_root(C_t)) -> stretch = C_s @ np.linalg.inv(C_t)
    the root of a matrix is not that of its entries
        stretch = _root(C_s) @ np.linalg.inv(_root(C_t))
            -> stretch = np.sqrt(np.abs(C_s)) @ np.linalg.inv(np.sqrt(np.abs(C_t)))
    the map runs the other way: from t to s the levels of s are above
        _root(C_s) @ np.linalg.inv(_root(C_t)) -> _root(C_t) @ np.linalg.inv(_root(C_s))
    at s the mean is α_s·μ
        return alpha_s * mean -> return alpha_t * mean
    at t the mean of the states is α_t·μ, not μ
        x - alpha_t * mean -> x - mean
    the data's mean is forgotten
        alpha_s * mean + (x - alpha_t * mean) -> x
    α² multiplies the covariance
        (a**2 * cov -> (a * cov
    the noise adds σ² to the variances
        s**2 * np.eye -> s * np.eye
    the covariance of the data shrinks with the signal: α²·Σ
        (a**2 * cov -> (cov
    that is one step of DDIM: the estimate of x0 changes on the way, and the step holds it
        _root(C_s) @ np.linalg.inv(_root(C_t))
            -> (alpha_t * alpha_s * cov + at_t[1] * at_s[1] * np.eye(len(cov))) @ np.linalg.inv(C_t)
    """,
)


# --- 18.2 -----------------------------------------------------------------------------------
def jump_coefficients(rms, at_t, at_s):
    (alpha_t, sigma_t), (alpha_s, sigma_s) = at_t, at_s
    shared = alpha_t * alpha_s * rms**2 + sigma_t * sigma_s
    skip = shared / _square(rms, at_t)
    out = rms * (sigma_t * alpha_s - alpha_t * sigma_s) / np.sqrt(_square(rms, at_t))
    turn = np.arctan2(sigma_t, rms * alpha_t) - np.arctan2(sigma_s, rms * alpha_s)
    return np.array([skip, out, turn])


def _square(rms, level):
    """Of the states at (alpha, sigma)."""
    return level[0] ** 2 * rms**2 + level[1] ** 2


def _jumps(rng, *rows):
    """Rows of (the size of the data: small, large or tiny; the pair of levels)."""
    return [(number(rng, *_SIZES[size]), *pair) for size, pair in rows]


_SIZES = {
    "small": (0.4, 0.7),
    "large": (1.5, 2.2),
    "tiny": (0.008, 0.015),
    "huge": (2e4, 4e4),  # as of images with 16 bits
}


def _nowhere(rng, size, sign=-1):
    """A jump from a level to itself, where a difference under a root would round to below 0.

    Few levels are such: with any other a NaN would be a matter of luck. With the sign 1 it would
    round to above 0, which is seen where the data are huge. However the difference is written,
    it rounds alike.
    """
    while True:
        rms, at = number(rng, *_SIZES[size]), _ends(rng)[0]
        left = _differences(rms, *at)
        if min(sign * left) > 0 and np.ptp(left) == 0:
            return rms, at, at


def _differences(rms, alpha, sigma):
    """0, as it rounds: the mean square less what c_skip explains, at s = t."""
    squares = (
        alpha**2 * rms**2 + sigma**2,
        alpha * alpha * rms * rms + sigma * sigma,
        (alpha * rms) ** 2 + sigma**2,
    )
    return np.array([square - square**2 / square for square in squares])


JUMP_COEFFICIENTS = exercise(
    "18.2 · What a jump leaves for the network",
    jump_coefficients,
    Part(
        "between two levels",
        2,
        lambda rng: _jumps(
            rng,
            ("large", _ends(rng)),
            ("small", _ends(rng)),
            ("small", _edm(rng, 1.0)),
            ("tiny", _edm(rng, 0.01)),
        ),
    ),
    Part(
        "from noise alone, to the data, and nowhere",
        2,
        lambda rng: [
            *_jumps(
                rng,
                ("large", (np.array([0.0, number(rng, 0.8, 1.4)]), _ends(rng)[1])),
                ("small", (_ends(rng)[0], np.array([number(rng, 0.6, 0.9), 0.0]))),
            ),
            *(_nowhere(rng, size) for size in ("large", "small")),
            _nowhere(rng, "huge", sign=1),
        ],
    ),
    section="6 · The derivative, without steps: TrigFlow and MeanFlow",
    mistakes="""
    c_skip divides by the mean square of x_t: yours, with both roots, is the cosine of the angle
        shared / _square(rms, at_t) -> shared / np.sqrt(_square(rms, at_t) * _square(rms, at_s))
    that c_skip of the first consistency models is 1 at s = t too, but another one leaves less
        shared / _square(rms, at_t) -> rms**2 / ((sigma_t - sigma_s) ** 2 + rms**2)
    those are the coefficients of the first consistency models, where α = 1; and c_skip is not least
        shared / _square(rms, at_t) -> rms**2 / ((sigma_t - sigma_s) ** 2 + rms**2)
        rms * (sigma_t * alpha_s - alpha_t * sigma_s) / np.sqrt(_square(rms, at_t))
            -> rms * (sigma_t - sigma_s) / np.sqrt(rms**2 + sigma_t**2)
    cosine and sine are the coefficients of states that are divided by their root mean squares
        return np.array([np.cos(right[2]), np.sin(right[2]), right[2]])
    those are TrigFlow's for its own states, where α² + σ²/d² is 1
        return np.array([np.cos(right[2]), rms * np.sin(right[2]), right[2]])
    that is the Gaussian flow map: the x_s of a pair is not what the flow makes of x_t
        shared / _square(rms, at_t) -> np.sqrt(_square(rms, at_s) / _square(rms, at_t))
    those are the coefficients for x0: the state at s has noise, too
        skip = shared -> skip = alpha_t * rms**2
        (sigma_t * alpha_s - alpha_t * sigma_s) -> sigma_t
    the pair shares its noise as well: E[x_t·x_s] has a second term
        rms**2 + sigma_t * sigma_s -> rms**2
    c_skip divides by the mean square of x_t, where the network starts
        shared / _square(rms, at_t) -> shared / _square(rms, at_s)
    c_out is a root mean square, yours is a mean square
        rms * (sigma_t * alpha_s - alpha_t * sigma_s) / np.sqrt(_square(rms, at_t))
            -> (rms * (sigma_t * alpha_s - alpha_t * sigma_s)) ** 2 / _square(rms, at_t)
    c_out is the root mean square of what is left, not of x_s
        rms * (sigma_t * alpha_s - alpha_t * sigma_s) / np.sqrt(_square(rms, at_t))
            -> np.sqrt(_square(rms, at_s))
    what is left is a difference of two equal numbers at s = t: bring it into the form of a square
        rms * (sigma_t * alpha_s - alpha_t * sigma_s) / np.sqrt(_square(rms, at_t))
            -> np.sqrt(_square(rms, at_s) - shared**2 / _square(rms, at_t))
    at s = t exactly nothing must be left, and yours is the root of a rounding error
        rms * (sigma_t * alpha_s - alpha_t * sigma_s) / np.sqrt(_square(rms, at_t))
            -> np.sqrt(np.maximum(_square(rms, at_s) - shared**2 / _square(rms, at_t), 0))
    c_out is a size and not negative
        rms * (sigma_t * alpha_s - alpha_t * sigma_s)
            -> rms * (alpha_t * sigma_s - sigma_t * alpha_s)
    c_out is proportional to the size of the data
        rms * (sigma_t * alpha_s -> (sigma_t * alpha_s
    the turn goes from t to s: the angle at t minus that at s
        np.arctan2(sigma_t, rms * alpha_t) - np.arctan2(sigma_s, rms * alpha_s)
            -> np.arctan2(sigma_s, rms * alpha_s) - np.arctan2(sigma_t, rms * alpha_t)
    for data of another size the tangent of the angle is σ/(d·α)
        np.arctan2(sigma_t, rms * alpha_t) - np.arctan2(sigma_s, rms * alpha_s)
            -> np.arctan2(sigma_t, alpha_t) - np.arctan2(sigma_s, alpha_s)
    the tangent of the angle is σ/(d·α), noise over signal: d stands below
        np.arctan2(sigma_t, rms * alpha_t) - np.arctan2(sigma_s, rms * alpha_s)
            -> np.arctan2(rms * sigma_t, alpha_t) - np.arctan2(rms * sigma_s, alpha_s)
    that is the angle at t; the turn is the difference to the angle at s
        - np.arctan2(sigma_s, rms * alpha_s) ->
    d is a root mean square: it is squared in a mean square
        alpha_s * rms**2 -> alpha_s * rms
        skip = shared / _square(rms, at_t) -> skip = shared / (alpha_t**2 * rms + sigma_t**2)
    """,
)


def _edm(rng, scale):
    """Levels of a process with α = 1."""
    sigma_s = scale * number(rng, 0.3, 0.9)
    return np.array([1.0, sigma_s * number(rng, 1.5, 4.0)]), np.array([1.0, sigma_s])


# --- 18.3 -----------------------------------------------------------------------------------
def student_target(denoise, x, alpha, sigma):
    state, n = x, len(alpha) - 1
    for i in range(n):
        x0 = denoise(state, alpha[i], sigma[i])
        eps = (state - alpha[i] * x0) / sigma[i]
        state = alpha[i + 1] * x0 + sigma[i + 1] * eps
    shrink = sigma[n] / sigma[0]
    x0 = (state - shrink * x) / (alpha[n] - alpha[0] * shrink)
    eps = (x - alpha[0] * x0) / sigma[0]
    return alpha[0] * eps - sigma[0] * x0


def _two_groups(rng):
    low = number(rng, -1.9, -1.2)
    return TwoGroupDenoiser(low, low + number(rng, 2.6, 3.4), number(rng, 0.4, 0.6))


def _grids(rng, *grids):
    """Grids from noise: (steps, whether to the data, whether from noise alone)."""
    for number_of, (steps, to_data, from_noise) in enumerate(grids):
        alpha = np.sort(rng.uniform(0.2, 1.3, steps + 1))
        sigma = np.sort(rng.uniform(0.3, 1.4, steps + 1))[::-1].copy()
        if to_data:
            alpha[-1], sigma[-1] = number(rng, 1.05, 1.3), 0
        if from_noise:
            alpha[0] = 0
        shape = (2, 3) if number_of % 2 else (4,)
        yield _two_groups(rng), images(rng, *shape), alpha, sigma


STUDENT_TARGET = exercise(
    "18.3 · One step for many",
    student_target,
    Part("one step, and two", 1, lambda rng: _grids(rng, (1, False, False), (2, False, False))),
    Part(
        "any number, from noise alone and to the data",
        2,
        lambda rng: _grids(rng, (3, True, False), (5, False, False), (2, True, True)),
    ),
    section="4 · The semigroup: progressive distillation",
    mistakes="""
    each of the teacher's steps starts where the one before it has ended
        denoise(state, alpha[i], sigma[i]) -> denoise(x, alpha[0], sigma[0])
    that is the teacher's last estimate of x0: one step with it lands elsewhere
        x0 = (state - shrink * x) / (alpha[n] - alpha[0] * shrink) -> x0 = x0
    the student predicts at the first level: its ε is the noise of x, not of the last state
        eps = (x - alpha[0] * x0) / sigma[0] -> eps = (state - alpha[n] * x0) / (sigma[n] or 1)
    x0 and ε are right, but v is α·ε − σ·x0, with the levels at which the student predicts
        return alpha[0] * eps - sigma[0] * x0 -> return alpha[n] * eps - sigma[n] * x0
    v is α·ε − σ·x0: yours has the other sign
        return alpha[0] * eps - sigma[0] * x0 -> return sigma[0] * x0 - alpha[0] * eps
    that is the estimate of x0; the student predicts v
        return alpha[0] * eps - sigma[0] * x0 -> return x0
    that is the noise; the student predicts v
        return alpha[0] * eps - sigma[0] * x0 -> return eps
    where the teacher ends there is still noise: its state is no x0
        x0 = (state - shrink * x) / (alpha[n] - alpha[0] * shrink) -> x0 = state / alpha[n]
    that form holds for α² + σ² = 1 only; here use v = α·ε − σ·x0 itself
        return alpha[0] * eps - sigma[0] * x0 -> return (alpha[0] * x - x0) / sigma[0]
    (cos·x_t − x_s)/sin is v for α² + σ² = 1 only
        return alpha[0] * eps - sigma[0] * x0
            -> cos = alpha[0] * alpha[n] + sigma[0] * sigma[n]; return (cos * x - state) / (
            sigma[0] * alpha[n] - alpha[0] * sigma[n])
    those are the teacher's last estimates: one step with them lands elsewhere
        x0 = (state - shrink * x) / (alpha[n] - alpha[0] * shrink) -> x0 = x0
        eps = (x - alpha[0] * x0) / sigma[0] -> eps = eps
    that is where the teacher lands: find the v that leads there in one step
        return alpha[0] * eps - sigma[0] * x0 -> return state
    a step with the mean of the teacher's v does not land where the teacher does
        state, n = x, len(alpha) - 1 -> state, n, said = x, len(alpha) - 1, []
        eps = (state - alpha[i] * x0) / sigma[i]
            -> eps = (state - alpha[i] * x0) / sigma[i]; said.append(alpha[i] * eps - sigma[i] * x0)
        return alpha[0] * eps - sigma[0] * x0 -> return sum(said) / n
    α and σ are exchanged in v
        return alpha[0] * eps - sigma[0] * x0 -> return sigma[0] * eps - alpha[0] * x0
    two steps of the teacher are only one case: take all of them
        range(n) -> range(min(n, 2))
    the teacher stops one step too early
        range(n) -> range(n - 1)
    the teacher evaluates at the level of the state, not at the next one
        denoise(state, alpha[i], sigma[i]) -> denoise(state, alpha[i + 1], sigma[i + 1])
    """,
)


# --- 18.4 -----------------------------------------------------------------------------------
def spread(std, alpha, sigma, again):
    var = alpha**2 * std**2 + sigma**2
    slopes = (alpha[:-1] * alpha[1:] * std**2 + sigma[:-1] * sigma[1:]) / var[:-1]
    jumps = np.append(np.cumprod(slopes[::-1])[::-1], 1.0)
    once = jumps[0] ** 2 * var[0]
    twice = jumps[again] ** 2 * (alpha[again] ** 2 * once + sigma[again] ** 2)
    return np.sqrt(twice)


def _levels(rng, *grids):
    """Grids to the data: (steps, the level of the second evaluation)."""
    for number_of, (steps, again) in enumerate(grids):
        alpha = np.append(np.sort(rng.uniform(0.15, 0.9, steps)), 1.0)
        sigma = np.append(np.sort(rng.uniform(0.3, 1.4, steps))[::-1], 0.0)
        std = number(rng, 0.4, 0.7) if number_of % 2 else number(rng, 1.4, 1.9)
        if number_of == 1:
            alpha[0] = 0
        yield std, alpha, sigma, again


SPREAD = exercise(
    "18.4 · What a coarse grid costs",
    spread,
    Part("one evaluation", 2, lambda rng: _levels(rng, (1, 1), (3, 3), (6, 6))),
    Part("two", 2, lambda rng: _levels(rng, (1, 0), (3, 1), (6, 2), (2, 1))),
    section="5 · The derivative, in steps: consistency models",
    mistakes="""
    that is a variance: take the root
        return np.sqrt(twice) -> return twice
    that is the exact flow map, which loses nothing; the model is a mean over pairs at each level
        once = jumps[0] ** 2 * var[0] -> once = std**2
        twice = jumps[again] ** 2 * (alpha[again] ** 2 * once + sigma[again] ** 2) -> twice = once
    the slope of a jump multiplies the spread of the states where it starts
        once = jumps[0] ** 2 * var[0] -> once = jumps[0] ** 2
    the mean is taken given the noisier state: divide the covariance by its variance
        / var[:-1] -> / var[1:]
    that is the correlation of neighbours: the slope also has the ratio of their deviations
        / var[:-1] -> / np.sqrt(var[:-1] * var[1:])
    a pair shares its noise as well: the covariance has a second term
        std**2 + sigma[:-1] * sigma[1:]) -> std**2)
    that jumps to the next level only: on the way to the data all the slopes multiply
        np.append(np.cumprod(slopes[::-1])[::-1], 1.0) -> np.append(slopes, 1.0)
    that is the denoiser: the jump of a consistency model multiplies the slopes of all levels
        np.append(np.cumprod(slopes[::-1])[::-1], 1.0) -> np.append(alpha * std**2 / var, 1.0)
    the slopes are multiplied from the data's end
        np.cumprod(slopes[::-1])[::-1] -> np.cumprod(slopes)
    the spread is multiplied by the slope, the variance by its square
        once = jumps[0] ** 2 -> once = jumps[0]
        twice = jumps[again] ** 2 -> twice = jumps[again]
    the second evaluation is missing
        return np.sqrt(twice) -> return np.sqrt(once)
    noising anew keeps α times the result
        (alpha[again] ** 2 * once -> (once
    the second jump starts from what the first has made, not from the data
        (alpha[again] ** 2 * once -> (alpha[again] ** 2 * std**2
    the second jump starts at the level `again`, with its own slope
        twice = jumps[again] ** 2 -> twice = (jumps[0] if again < len(slopes) else 1) ** 2
    what is noised anew is as wide as its noise and its signal together
        * once + sigma[again] ** 2) -> * once)
    the spreads of independent numbers do not add up, their squares do
        (alpha[again] ** 2 * once + sigma[again] ** 2)
            -> (alpha[again] * np.sqrt(once) + sigma[again]) ** 2
    the step to the data's own level has a slope too
        np.append(np.cumprod(slopes[::-1])[::-1], 1.0)
            -> np.append(np.cumprod(np.append(slopes[:-1], 1.0)[::-1])[::-1], 1.0)
    the noise of σ has the variance σ²
        * once + sigma[again] ** 2) -> * once + sigma[again])
    """,
)


# --- 18.5 -----------------------------------------------------------------------------------
def sample_consistency(u, x, noises, times):
    end = times[-1]
    for i, t in enumerate(times[:-1]):
        if i > 0:
            keep = (1 - t) / (1 - end)
            x = keep * x + np.sqrt(t**2 - (keep * end) ** 2) * noises[i - 1]
        x = x - (t - end) * u(x, t, end)
    return x


def _mean_velocity(rng, mean=(1.1, 2.3)):
    return GaussianMeanVelocity(number(rng, *mean), number(rng, 0.4, 0.8))


def _schedules(rng, *rows):
    """(Evaluations, the last time)."""
    for number_of, (n, end) in enumerate(rows):
        times = np.append(np.linspace(1, end, n + 1)[:-1], end)
        times[1:-1] += rng.uniform(-0.1, 0.1, n - 1) / n
        if end == 0:
            times[-2] = 0.02  # little noise, which is not to be rounded up
        u, shape = _mean_velocity(rng), (4,)
        if number_of % 2:
            times[0], u, shape = number(rng, 0.9, 0.98), _mean_velocity(rng, (-2.3, -1.1)), (2, 3)
        yield u, images(rng, *shape), normal(rng, n - 1, *shape), times


BROKEN = exercise(
    "18.5 · This sampler is broken",
    sample_consistency,
    Part(
        "one evaluation",
        1,
        lambda rng: _schedules(rng, (1, number(rng, 0.2, 0.4)), (1, number(rng, 0.2, 0.4))),
    ),
    Part(
        "several",
        3,
        lambda rng: _schedules(
            rng, (2, number(rng, 0.2, 0.4)), (3, number(rng, 0.2, 0.4)), (3, 0.0)
        ),
    ),
    section="5 · The derivative, in steps: consistency models",
    mistakes="""
    both bugs are still there
        keep = (1 - t) / (1 - end) -> keep = 1 - t
        np.sqrt(t**2 - (keep * end) ** 2) -> t
        (t - end) -> t
    a bug is left: what is noised anew is no data, and has noise already
        keep = (1 - t) / (1 - end) -> keep = 1 - t
        np.sqrt(t**2 - (keep * end) ** 2) -> t
    a bug is left: how long is the jump?
        (t - end) * u -> t * u
    the noise that is there already counts: the two variances add up to t²
        np.sqrt(t**2 - (keep * end) ** 2) -> t
    the signal at the end is 1 − end already: it shrinks by a ratio
        keep * x -> (1 - t) * x
    the noise of the last time shrinks with the state before more is added
        np.sqrt(t**2 - (keep * end) ** 2) -> np.sqrt(t**2 - end**2)
    the signal 1 − end of the last state shrinks by a ratio, and its noise shrinks with it
        keep * x -> (1 - t) * x
        np.sqrt(t**2 - (keep * end) ** 2) -> np.sqrt(t**2 - end**2)
    the noise level is t itself: t − end is only the length of the jump
        keep * x -> (1 - (t - end)) * x
        np.sqrt(t**2 - (keep * end) ** 2) -> (t - end)
    each evaluation has noise of its own: yours takes the first again and again
        noises[i - 1] -> noises[0]
    the first noise belongs to the second evaluation
        noises[i - 1] -> noises[min(i, len(noises) - 1)]
    below the last time nothing was learnt: noise the state of the last time itself
        keep = (1 - t) / (1 - end) -> x = x - end * u(x, end, 0.0); keep = 1 - t
        np.sqrt(t**2 - (keep * end) ** 2) -> t
    noise is multiplied by a standard deviation: take the root
        np.sqrt(t**2 - (keep * end) ** 2) -> (t**2 - (keep * end) ** 2)
    standard deviations do not add up, variances do
        np.sqrt(t**2 - (keep * end) ** 2) -> (t - keep * end)
    nothing is noised after the last jump
        return x -> x = (1 - end) * x + end * noises[-1] if len(noises) else x; return x
    the model was trained down to the last time only: nothing is known of the way from there to 0
        return x -> return x - end * u(x, end, 0.0)
    that follows the flow along the grid; here each jump goes to the end and is noised anew
        if i > 0 -> if False
        (t - end) * u(x, t, end) -> (t - times[i + 1]) * u(x, t, times[i + 1])
    u is the mean velocity to the end: a velocity at one time does not lead there
        u(x, t, end) -> u(x, t, t)
    u was right: it is asked for the mean velocity to the end, not to 0
        u(x, t, end) -> u(x, t, 0.0)
    those are the samples of time 0: the jumps go to the last time
        (t - end) * u(x, t, end) -> t * u(x, t, 0.0)
        keep = (1 - t) / (1 - end) -> keep = 1 - t
        np.sqrt(t**2 - (keep * end) ** 2) -> t
    """,
    library=("diffusion_course.grading.inputs.GaussianMeanVelocity",),
)


# --- 18.6 -----------------------------------------------------------------------------------
def generator_gradient(denoise, m, c, z, eps, alpha, sigma, weight):
    alpha, sigma = alpha[:, None], sigma[:, None]
    x = m + c * z
    x_t = alpha * x + sigma * eps
    real = denoise(x_t, alpha, sigma)
    fake = m + alpha * c**2 / (alpha**2 * c**2 + sigma**2) * (x_t - alpha * m)
    size = np.mean(_absolute(x - real), axis=1, keepdims=True)
    if weight == "KL":
        size = sigma**2 / alpha**2
    pull = (fake - real) / size
    return np.mean(pull, axis=0), np.mean(pull * z, axis=0)


def _absolute(values):
    """|values|, by their real parts, so that a complex step passes."""
    return values * np.sign(values.real)


def _through(denoisers, denoise, m, c, z, eps, alpha, sigma, weight):
    """The gradient when the size is not held, and when the denoisers are not: by complex steps."""
    alpha, sigma = alpha[:, None], sigma[:, None]

    def estimates(m, c):
        x_t = alpha * (m + c * z) + sigma * eps
        gain = alpha * c**2 / (alpha**2 * c**2 + sigma**2)
        return denoise(x_t, alpha, sigma), m + gain * (x_t - alpha * m)

    def loss(m, c):
        x, (real, fake) = m + c * z, estimates(m, c)
        size = np.mean(_absolute(x - real), axis=1, keepdims=True)
        if weight == "KL":
            size = sigma**2 / alpha**2
        difference = fake - real if denoisers else held[1] - held[0]
        return np.mean(np.sum(difference / size * x, axis=1)).imag / 1e-20

    held, steps = estimates(m, c), 1e-20j * np.eye(len(m))
    return [loss(m + step, c + 0j) for step in steps], [loss(m + 0j, c + step) for step in steps]


def _far(rng):
    return gaussian(rng, (-2.1, -1.2))


def _generators(rng, denoise, B, D, weight):
    # On both sides of the data, so that x − real has both signs.
    m, c = rng.uniform(2.5, 3.5, D) * np.resize([1, -1], D), rng.uniform(0.6, 1.6, D)
    z, eps = rng.normal(0.3, 1, (B, D)), rng.normal(0, 1, (B, D))
    return [(denoise, m, c, z, eps, rng.uniform(0.3, 1.3, B), rng.uniform(0.4, 1.4, B), weight)]


GENERATOR_GRADIENT = exercise(
    "18.6 · A generator learns from two scores",
    generator_gradient,
    Part("divided by a size", 2, lambda rng: _generators(rng, _two_groups(rng), 3, 2, "size")),
    Part("the gradient of KL", 2, lambda rng: _generators(rng, _far(rng), 5, 3, "KL")),
    section="7 · The distribution: a difference of two scores",
    mistakes="""
    the generator would run away from the data: the difference is fake − real
        (fake - real) / size -> (real - fake) / size
    by c the chain rule multiplies with z
        np.mean(pull * z, axis=0) -> np.mean(pull, axis=0)
    the chain rule multiplies with z, the generator's noise; eps was added later
        np.mean(pull * z, axis=0) -> np.mean(pull * eps, axis=0)
    by c the chain rule multiplies with z, not with x
        np.mean(pull * z, axis=0) -> np.mean(pull * x, axis=0)
    each example has a size of its own, over its coordinates
        np.mean(_absolute(x - real), axis=1, keepdims=True) -> np.mean(_absolute(x - real))
    the size belongs to an example: it is a mean over its coordinates, and one number
        np.mean(_absolute(x - real), axis=1, keepdims=True) -> _absolute(x - real)
    the size is a mean over the coordinates, not a sum
        size = np.mean( -> size = np.sum(
    the size is the distance of real's estimate to x, not to the noisy x_t
        _absolute(x - real) -> _absolute(x_t - real)
    the size is measured from x to real's estimate, not to fake's
        _absolute(x - real) -> _absolute(x - fake)
    that makes every pull as large as every other: the size is the distance of x and real
        _absolute(x - real) -> _absolute(fake - real)
    the size is a mean of absolute values, not a root mean square
        np.mean(_absolute(x - real), axis=1, keepdims=True)
            -> np.sqrt(np.mean((x - real) ** 2, axis=1, keepdims=True))
    the pull of each example is divided by its size
        (fake - real) / size -> fake - real
    the loss is a mean over the examples, not a sum
        return np.mean(pull, axis=0), np.mean(pull * z, axis=0)
            -> return np.sum(pull, axis=0), np.sum(pull * z, axis=0)
    the loss is a sum over the coordinates: a mean over them as well divides by D
        return np.mean(pull, axis=0), np.mean(pull * z, axis=0)
            -> return np.mean(pull, axis=0) / len(m), np.mean(pull * z, axis=0) / len(m)
    that is the gradient through everything: the pull is held, and x alone carries a gradient
        return _through(True, denoise, m, c, z, eps, alpha, sigma, weight)
    the size belongs to the pull, and is held: no gradient flows through it
        return _through(False, denoise, m, c, z, eps, alpha, sigma, weight)
    fake is a denoiser that sees x_t, too: it is not x itself
        (fake - real) / size -> (x - real) / size
    the generator makes N(m, c²): c is a deviation and is squared in the gain of fake
        alpha * c**2 / (alpha**2 * c**2 + sigma**2) -> alpha * c / (alpha**2 * c + sigma**2)
    fakes are centred at m: at this level their mean is α·m
        (x_t - alpha * m) -> (x_t - m)
    the denoisers see the noisy points
        x_t = alpha * x + sigma * eps -> x_t = x
    that is the difference of the scores; the pull has that of the denoisers
        pull = (fake - real) / size -> pull = alpha * (fake - real) / sigma**2 / size
    KL's gradient by x_t is the difference of the scores; by x, the chain rule has an α more
        size = sigma**2 / alpha**2 -> size = sigma**2 / alpha
    the scores differ by α/σ² times the difference of the denoisers, and x_t moves by α
        size = sigma**2 / alpha**2 -> size = sigma**2
    the scores differ by α/σ² times the difference of the denoisers: σ is squared
        size = sigma**2 / alpha**2 -> size = sigma / alpha**2
    for KL both levels are squared
        size = sigma**2 / alpha**2 -> size = sigma / alpha
    the score of the fakes has KL's entropy in it already: by c nothing is added
        return np.mean(pull, axis=0), np.mean(pull * z, axis=0)
            -> return np.mean(pull, axis=0), np.mean(pull * z, axis=0) - (weight == "KL") / c
    for KL the weight is that of the scores, without any size
        size = sigma**2 / alpha**2 -> size = size * sigma**2 / alpha**2
    the weight for KL is upside down
        size = sigma**2 / alpha**2 -> size = alpha**2 / sigma**2
    KL is asked for, too, and its pull is not divided by the size
        weight == "KL" -> weight == ""
    the plain difference is KL's gradient at none of the levels
        size = sigma**2 / alpha**2 -> size = 1.0
    """,
)


# --- 18.7 -----------------------------------------------------------------------------------
def mean_target(u, teacher, x, t, s, end):
    length = (t - s)[:, None]
    if end == "t":
        v = teacher(x, t, t)
        return v - length * _slope(u, x, t, s, v, 1, 0)
    landed = x - length * u(x, t, s)
    v = teacher(landed, s, s)
    return v + length * _slope(u, x, t, s, 0, 0, 1)


def _slope(u, x, t, s, *along):
    """The derivative of u along a direction of (x, t, s), by a complex step: exact to rounding."""
    moved = (a + 1e-20j * way for a, way in zip((x, t, s), along, strict=True))
    return u(*moved).imag / 1e-20


def _pairs_of_times(rng, end):
    """From noise alone, to the data, over no time, and between; one shape for each end."""
    B, D = (4, 2) if end == "t" else (5, 3)
    s, t = np.sort(rng.uniform(0.1, 0.9, (2, B)).astype(np.float32), axis=0)
    t[0], s[1], t[2] = 1, 0, s[2]
    # Narrow data: u bends within a few hundredths, and no difference quotient is exact enough.
    u = GaussianMeanVelocity(number(rng, 1.1, 2.3), number(rng, 0.1, 0.15))
    teacher = _mean_velocity(rng, (-1.2, -0.5))
    return [(u, teacher, images(rng, B, D), t, s, end)]


STRETCH = exercise(
    "18.7 · The mean velocity from both ends",
    mean_target,
    Part("by t", 2, lambda rng: _pairs_of_times(rng, "t")),
    Part("by s", 3, lambda rng: _pairs_of_times(rng, "s")),
    section="6 · The derivative, without steps: TrigFlow and MeanFlow",
    mistakes="""
    by t the derivative has a minus
        return v - length -> return v + length
    by s the derivative has a plus: the length falls when s rises
        return v + length -> return v - length
    by t, s is held: its tangent is 0
        _slope(u, x, t, s, v, 1, 0) -> _slope(u, x, t, s, v, 1, 1)
    by t, the state moves along the path too: the tangent of x is the velocity
        _slope(u, x, t, s, v, 1, 0) -> _slope(u, x, t, s, 0, 1, 0)
    the tangents stand in the order of u's arguments: x, t, s
        _slope(u, x, t, s, v, 1, 0) -> _slope(u, x, t, s, v, 0, 1)
    by t, the time moves too: its tangent is 1
        _slope(u, x, t, s, v, 1, 0) -> _slope(u, x, t, s, v, 0, 0)
    by t, the state moves with the velocity at t; u is the mean over the whole way
        _slope(u, x, t, s, v, 1, 0) -> _slope(u, x, t, s, u(x, t, s), 1, 0)
    the path's velocity is the teacher's, not that of the u that is learnt
        v = teacher(x, t, t) -> v = u(x, t, t)
    a velocity is the mean over no time: ask the teacher for (t, t)
        v = teacher(x, t, t) -> v = teacher(x, t, s)
    by t, the derivative is multiplied by the length
        return v - length * -> return v -
    by s, the derivative is multiplied by the length
        return v + length * -> return v +
    by s, the velocity is that of the place where the jump lands
        teacher(landed, s, s) -> teacher(x, s, s)
    by s, the velocity is that at the time s, where the jump lands
        teacher(landed, s, s) -> teacher(landed, t, t)
    by s, the velocity is that at s and at the place where the jump lands
        teacher(landed, s, s) -> teacher(x, t, t)
    by s, the place is the one where u itself lands, not its teacher
        landed = x - length * u(x, t, s) -> landed = x - length * teacher(x, t, s)
    by s, the place is where the jump u lands, not a straight line along the velocity at t
        landed = x - length * u(x, t, s) -> landed = x - length * teacher(x, t, t)
    from the end s, the derivative is by s, with x and t held
        if end == "t" -> if True
    by t, the product rule has u itself: it stands on the left side
        return v - length -> return v - u(x, t, s) - length
    by s, the product rule has u itself: it stands on the left side
        return v + length -> return v - u(x, t, s) + length
    from t to s the time falls: the jump subtracts length times u
        landed = x - length * u -> landed = x + length * u
    by s, x and t are held: only s moves
        _slope(u, x, t, s, 0, 0, 1) -> _slope(u, x, t, s, v, 0, 1)
    """,
    # A jvp in float32 errs by 2e-6 here, the best difference quotient by 2e-5 or more.
    rtol=1.5e-5,
    atol=1.5e-6,
)


# --- 18.8 -----------------------------------------------------------------------------------
REPORT = Written("18.8", "Three verdicts on few steps", 3, section="8 · The wall")
