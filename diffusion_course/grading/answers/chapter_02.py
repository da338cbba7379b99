"""Exercises of chapter 02, denoising is the posterior mean."""

from __future__ import annotations

from functools import partial

import numpy as np

from diffusion_course.grading.exercise import Exercise, Part, Written
from diffusion_course.grading.inputs import GaussianDenoiser


def _levels(rng):
    """A signal and a noise level of no process in particular: alpha² + sigma² is not 1."""
    return float(rng.uniform(0.35, 0.85)), float(rng.uniform(0.7, 1.4))


def _noisy(rng, shape):
    return rng.normal(0.7, 1.9, shape).astype(np.float32)


# --------------------------------------------------------------------------------------------
# 02.1
# --------------------------------------------------------------------------------------------


def _tweedie_cases(rng):
    for shape in ((7,), (4, 3)):
        yield _noisy(rng, shape), rng.normal(-0.4, 1.3, shape).astype(np.float32), *_levels(rng)


def _tweedie(x, score, alpha, sigma, noise=lambda sigma: sigma**2, shrunk=lambda alpha: alpha):
    return (x + noise(sigma) * score) / shrunk(alpha)


TWEEDIE = Exercise(
    id="02.1",
    title="Tweedie's formula",
    function="tweedie",
    parts=(Part("any score, any level", 1, lambda rng: list(_tweedie_cases(rng))),),
    oracle=_tweedie,
    mistakes={
        "the score is multiplied by the variance of the noise, not by its standard deviation": (
            partial(_tweedie, noise=lambda sigma: sigma)
        ),
        "what is left after removing the noise is the shrunken signal: undo the factor α": (
            partial(_tweedie, shrunk=lambda alpha: 1.0)
        ),
        "α multiplies all of the signal: divide the whole sum by it, not one of its terms": (
            lambda x, score, alpha, sigma: x / alpha + sigma**2 * score
        ),
        "the whole sum is divided by α, and x is a term of it: brackets are missing": (
            lambda x, score, alpha, sigma: x + sigma**2 * score / alpha
        ),
        "the score points towards the data, so the guess goes along it and not against it": (
            partial(_tweedie, noise=lambda sigma: -(sigma**2))
        ),
        "the process has multiplied the data by α: what undoes that is a division": (
            partial(_tweedie, shrunk=lambda alpha: 1 / alpha)
        ),
        "that would be right if α were ᾱ: here α and σ themselves are given, without roots": (
            lambda x, score, alpha, sigma: (x + (1 - alpha) * score) / np.sqrt(alpha)
        ),
        "that takes the score for the noise; the two differ in their sign and by a factor": (
            partial(_tweedie, noise=lambda sigma: -sigma)
        ),
        "σ has a value of its own, and its square need not be 1 − α²": (
            lambda x, score, alpha, sigma: (x + (1 - alpha**2) * score) / alpha
        ),
        "the score alone doesn't know how much noise there is: σ is missing": (
            partial(_tweedie, noise=lambda sigma: 1.0)
        ),
    },
)


# --------------------------------------------------------------------------------------------
# 02.2
# --------------------------------------------------------------------------------------------


def _gaussian_cases(rng):
    for shape in ((6,), (2, 5)):
        mean, std = float(rng.uniform(1.1, 2.3)), float(rng.uniform(0.4, 0.8))
        yield _noisy(rng, shape), mean, std, *_levels(rng)


def _gaussian(x, mean, std, alpha, sigma):
    return mean + _gain(std, alpha, sigma) * (x - alpha * mean)


def _gain(std, alpha, sigma):
    """The covariance of x0 and x_t over the variance of x_t."""
    return alpha * std**2 / (alpha**2 * std**2 + sigma**2)


def _gaussian_with(gain):
    """The guess with another gain."""
    return lambda x, mean, std, alpha, sigma: mean + gain(std, alpha, sigma) * (x - alpha * mean)


GAUSSIAN = Exercise(
    id="02.2",
    title="The best guess for Gaussian data",
    function="gaussian_posterior_mean",
    parts=(Part("any Gaussian, any level", 2, lambda rng: list(_gaussian_cases(rng))),),
    oracle=_gaussian,
    mistakes={
        "std is a standard deviation, but variances add up: square it": (
            lambda x, mean, std, alpha, sigma: _gaussian(x, mean, std**0.5, alpha, sigma)
        ),
        "σ is a standard deviation, but variances add up: square it": (
            lambda x, mean, std, alpha, sigma: _gaussian(x, mean, std, alpha, sigma**0.5)
        ),
        "std and σ are standard deviations, but variances add up: square both": (
            lambda x, mean, std, alpha, sigma: _gaussian(x, mean, std**0.5, alpha, sigma**0.5)
        ),
        "in the covariance too the variance of the data belongs, not their standard deviation": (
            _gaussian_with(lambda std, alpha, sigma: _gain(std, alpha, sigma) / std)
        ),
        "the mean of x_t is not the mean of the data: the process shrinks it": (
            lambda x, mean, std, alpha, sigma: mean + _gain(std, alpha, sigma) * (x - mean)
        ),
        "the variance of x_t lacks the noise, so every x_t is believed: nothing is denoised": (
            lambda x, mean, std, alpha, sigma: _gaussian(x, mean, std, alpha, 0.0)
        ),
        "the gain is Cov(x0, x_t) over Var(x_t), and the covariance holds a factor α": (
            _gaussian_with(lambda std, alpha, sigma: _gain(std, alpha, sigma) / alpha)
        ),
        "in x_t the data are shrunk, so their part of its variance holds α twice": (
            _gaussian_with(lambda std, alpha, sigma: alpha * std**2 / (std**2 + sigma**2))
        ),
        "under heavy noise the guess must be the mean of the data; yours tends to zero": (
            lambda x, mean, std, alpha, sigma: _gain(std, alpha, sigma) * x
        ),
        "that is how far the guess moves from the mean of the data; add the mean": (
            lambda x, mean, std, alpha, sigma: _gain(std, alpha, sigma) * (x - alpha * mean)
        ),
        "the guess starts at the mean of the data, not at the mean of x_t": (
            lambda x, mean, std, alpha, sigma: (
                alpha * mean + _gain(std, alpha, sigma) * (x - alpha * mean)
            )
        ),
        "that is the best guess at α·x0, what is left of the data in x_t: undo the factor α": (
            lambda *arguments: arguments[3] * _gaussian(*arguments)
        ),
    },
)


# --------------------------------------------------------------------------------------------
# 02.3
# --------------------------------------------------------------------------------------------


def _two_points_cases(rng):
    for shape in ((9,), (3, 4)):
        alpha, sigma = _levels(rng)
        yield rng.normal(0.4, 1.1, shape).astype(np.float32), _half_gap(rng), alpha, sigma


def _two_points_without_doubt(rng):
    """Far out, exp overflows in float64 too; in between, both weights are rounded to 0 in float32.

    Their exponents, about −120 there, keep enough digits for whoever takes their softmax.
    """
    a, alpha = _half_gap(rng), float(rng.uniform(0.6, 0.9))
    sigma = float(alpha * a / rng.uniform(15, 16))
    near = rng.uniform(0.3, 1.2, 3) * sigma**2 / (alpha * a)  # here there is doubt all the same
    far = rng.uniform(6, 9, 4) * [1, -1, 1, -1]
    yield np.concatenate([near, far]).astype(np.float32), a, alpha, sigma


def _half_gap(rng):
    return float(rng.uniform(1.4, 2.2))


def _two_points(x, a, alpha, sigma):
    return a * np.tanh(alpha * a * x / sigma**2)


TWO_POINTS = Exercise(
    id="02.3",
    title="Two points",
    function="two_points",
    parts=(
        Part("any level", 2, lambda rng: list(_two_points_cases(rng))),
        Part("almost no noise", 1, lambda rng: list(_two_points_without_doubt(rng))),
    ),
    oracle=_two_points,
    mistakes={
        "your doubt ends too early: the two weights differ by e^(2u), while tanh(u) holds u": (
            lambda x, a, alpha, sigma: a * np.tanh(2 * alpha * a * x / sigma**2)
        ),
        "your doubt lasts too long: in (x − αa)² − (x + αa)² the cross term comes twice": (
            lambda x, a, alpha, sigma: a * np.tanh(alpha * a * x / (2 * sigma**2))
        ),
        "the noisy copies of ±a lie around ±αa: α is missing": (
            lambda x, a, alpha, sigma: a * np.tanh(a * x / sigma**2)
        ),
        "the exponent of a Gaussian is divided by the variance of the noise, not by σ": (
            lambda x, a, alpha, sigma: a * np.tanh(alpha * a * x / sigma)
        ),
        "far out the guess must be one of the two points; yours ends at ±1": (
            lambda x, a, alpha, sigma: np.tanh(alpha * a * x / sigma**2)
        ),
        "far out the guess must be one of the two points, ±a: the data are not shrunken": (
            lambda x, a, alpha, sigma: alpha * _two_points(x, a, alpha, sigma)
        ),
        "how soon doubt ends depends on the distance of the points: a is missing within": (
            lambda x, a, alpha, sigma: a * np.tanh(alpha * x / sigma**2)
        ),
        "that is the weight of +a alone: −a pulls with the rest": (
            lambda x, a, alpha, sigma: (a + _two_points(x, a, alpha, sigma)) / 2
        ),
        "the nearer point is the likelier one; the best guess is an average of both": (
            lambda x, a, alpha, sigma: a * np.sign(x)
        ),
    },
)


# --------------------------------------------------------------------------------------------
# 02.4 and 02.7: a finite set of data
# --------------------------------------------------------------------------------------------


def _finite_cases(rng):
    for _ in range(2):
        data = rng.normal(0.7, 1.6, (6, 3))
        alpha, sigma = _levels(rng)
        x = alpha * data[:4] + sigma * rng.normal(size=(4, 3))
        yield x.astype(np.float32), data.astype(np.float32), alpha, sigma


def _finite_underflow(rng):
    """Every x is at least 45σ from the nearest data: exp(−45²/2) is 0, in float64 too.

    The distances differ so much that no single number can be added to the exponents of all x. Two
    of the data are so close together that they share the weight; the others are far away.
    """
    alpha, sigma = float(rng.uniform(0.6, 0.9)), float(rng.uniform(0.01, 0.02))
    turn = rng.uniform(0, 2 * np.pi)
    gap = 2 * sigma / alpha * np.array([0, np.cos(turn), np.sin(turn)])
    data = rng.normal(0.7, 1.6, (6, 3))
    data[:, 0] = 2.5 + np.abs(data[:, 0])
    data[2] = rng.normal(-1.0, 0.3, 3)
    data[4] = data[2] + gap
    x = alpha * (data[2] + rng.uniform(0.1, 0.9, (4, 1)) * gap)
    x[:, 0] -= sigma * rng.permutation([45, 62, 75, 87])
    yield x.astype(np.float32), data.astype(np.float32), alpha, sigma


def _weights(logits, axis=1):
    r = np.exp(logits - logits.max(axis=axis, keepdims=True))
    return r / r.sum(axis=axis, keepdims=True)


def _squared(x, data, alpha):
    return np.sum((x[:, None] - alpha * data) ** 2, axis=-1)


def _finite(x, data, alpha, sigma, exponent=lambda squared, sigma: squared / (2 * sigma**2)):
    return _weights(-exponent(_squared(x, data, alpha), sigma)) @ data


def _finite_unnormalised(x, data, alpha, sigma):
    return np.exp(-_squared(x, data, alpha) / (2 * sigma**2)) @ data


def _finite_by_one_shift(x, data, alpha, sigma):
    logits = -_squared(x, data, alpha) / (2 * sigma**2)
    r = np.exp(logits - logits.max())
    return r / r.sum(axis=1, keepdims=True) @ data


def _finite_by_coordinates(x, data, alpha, sigma):
    logits = -((x[:, None] - alpha * data) ** 2) / (2 * sigma**2)
    return np.sum(_weights(logits) * data, axis=1)


FINITE = Exercise(
    id="02.4",
    title="The perfect denoiser of a data set",
    function="finite_posterior_mean",
    parts=(
        Part("any data, any level", 2, lambda rng: list(_finite_cases(rng))),
        Part("almost no noise, where exp underflows", 1, lambda rng: list(_finite_underflow(rng))),
    ),
    oracle=_finite,
    mistakes={
        "the exponent of a Gaussian has a factor ½; without it every doubt ends too early": (
            partial(_finite, exponent=lambda squared, sigma: squared / sigma**2)
        ),
        "x_t lies around the shrunken data: scale the data before you measure distances": (
            lambda x, data, alpha, sigma: _weights(-_squared(x, data, 1.0) / (2 * sigma**2)) @ data
        ),
        "x_t / α lies around the data, but its noise is larger too: σ / α": (
            lambda x, data, alpha, sigma: _finite(x, data, alpha, alpha * sigma)
        ),
        "the exponent is divided by the variance of the noise, and σ is its square root": (
            partial(_finite, exponent=lambda squared, sigma: squared / (2 * sigma))
        ),
        "a Gaussian falls with the square of the distance, yours with the distance": (
            partial(_finite, exponent=lambda squared, sigma: np.sqrt(squared) / (2 * sigma**2))
        ),
        "a squared distance is a sum over the coordinates, and you took their mean": (
            lambda x, data, alpha, sigma: _finite(x, data, alpha, sigma * np.sqrt(data.shape[1]))
        ),
        "a point has one weight, from its distance in all coordinates; yours has one for each": (
            _finite_by_coordinates
        ),
        "the weights must add up to 1 over the data, for each x; yours do over the batch": (
            lambda x, data, alpha, sigma: (
                _weights(-_squared(x, data, alpha) / (2 * sigma**2), axis=0) @ data
            )
        ),
        "the weights must add up to 1; yours don't, or are all 0 where exp underflows": (
            _finite_unnormalised
        ),
        "every row of exponents has a largest of its own; yours are raised by that of all rows": (
            _finite_by_one_shift
        ),
        "the weights are those of the shrunken data, but the guess averages the data": (
            lambda x, data, alpha, sigma: alpha * _finite(x, data, alpha, sigma)
        ),
        "the nearest point is the likeliest one; the best guess is an average of all": (
            lambda x, data, alpha, sigma: data[np.argmin(_squared(x, data, alpha), axis=1)]
        ),
    },
)


def _covariance(x, data, alpha, sigma):
    """Of x0 given x_t: [B, D, D]."""
    r = _weights(-_squared(x, data, alpha) / (2 * sigma**2))
    gap = data - (r @ data)[:, None]
    return np.einsum("bn,bni,bnj->bij", r, gap, gap)


def _doubt(x, data, alpha, sigma):
    return np.trace(_covariance(x, data, alpha, sigma), axis1=1, axis2=2)


def _doubt_from(point):
    """The squared distance from another point than the best guess, [B, D] or [1, D]."""

    def wrong(x, data, alpha, sigma):
        gap = _finite(x, data, alpha, sigma) - point(x, data)
        return _doubt(x, data, alpha, sigma) + np.sum(gap**2, axis=1)

    return wrong


def _doubt_unweighted(x, data, alpha, sigma):
    gap = data - _finite(x, data, alpha, sigma)[:, None]
    return np.mean(np.sum(gap**2, axis=2), axis=1)


DOUBT = Exercise(
    id="02.7",
    title="Doubt is the slope of the guess",
    function="doubt",
    parts=(Part("any data, any level", 3, lambda rng: list(_finite_cases(rng))),),
    oracle=_doubt,
    mistakes={
        "the slope alone is not the doubt: how σ and α enter, (9) says when differentiated": (
            lambda x, data, alpha, sigma: alpha / sigma**2 * _doubt(x, data, alpha, sigma)
        ),
        "the factor between slope and doubt is upside down": (
            lambda x, data, alpha, sigma: (alpha / sigma**2) ** 2 * _doubt(x, data, alpha, sigma)
        ),
        "x0 reaches x_t only after the factor α, so α stands between slope and doubt": (
            lambda x, data, alpha, sigma: alpha * _doubt(x, data, alpha, sigma)
        ),
        "the slope must be multiplied by the variance of the noise, not by σ": (
            lambda x, data, alpha, sigma: _doubt(x, data, alpha, sigma) / sigma
        ),
        "the squared error is a sum over the coordinates, and you took their mean": (
            lambda x, data, alpha, sigma: _doubt(x, data, alpha, sigma) / data.shape[1]
        ),
        "only a coordinate's own variance counts: the diagonal, not the whole matrix": (
            lambda x, data, alpha, sigma: _covariance(x, data, alpha, sigma).sum(axis=(1, 2))
        ),
        "doubt is measured from the best guess; yours is measured from zero": (
            _doubt_from(lambda x, data: 0.0)
        ),
        "doubt is measured from the best guess; yours is measured from x_t": (
            _doubt_from(lambda x, data: x)
        ),
        "α stands only once between slope and doubt": (
            lambda x, data, alpha, sigma: _doubt(x, data, alpha, sigma) / alpha
        ),
        "the doubt is a squared error: no root is taken": (
            lambda x, data, alpha, sigma: np.sqrt(_doubt(x, data, alpha, sigma))
        ),
        "given x_t, some of the data are likelier than others: the weights are missing": (
            _doubt_unweighted
        ),
    },
)


# --------------------------------------------------------------------------------------------
# 02.5
# --------------------------------------------------------------------------------------------


def _rows(rng, row, shapes=((5,), (3, 2))):
    for shape in shapes:
        alpha, sigma = _levels(rng)
        y = rng.normal(-0.6, 1.4, shape).astype(np.float32)
        yield y, _noisy(rng, shape), *row(rng, alpha, sigma), alpha, sigma


def _general_row(rng, alpha, sigma):
    """Far from det = 0, where rounding would show."""
    return float(rng.uniform(0.8, 1.7)), float(-rng.uniform(0.5, 1.9))


def _determinant(a, b, alpha, sigma):
    return a * sigma - b * alpha


def _solved(y, x, a, b, alpha, sigma):
    return (sigma * y - b * x) / _determinant(a, b, alpha, sigma)


SOLVE = Exercise(
    id="02.5",
    title="Any target gives back the data",
    function="solve_x0",
    parts=(
        Part("a network that predicts eps", 1, lambda rng: list(_rows(rng, lambda *_: (0.0, 1.0)))),
        Part(
            "a network that predicts v",
            1,
            lambda rng: list(_rows(rng, lambda rng, alpha, sigma: (-sigma, alpha))),
        ),
        Part("any row (a, b)", 1, lambda rng: list(_rows(rng, _general_row))),
    ),
    oracle=_solved,
    mistakes={
        "the determinant has the wrong sign": lambda y, x, a, b, alpha, sigma: (
            -_solved(y, x, a, b, alpha, sigma)
        ),
        "the determinant is a difference of two products; yours is their sum": (
            lambda y, x, a, b, alpha, sigma: (sigma * y - b * x) / (a * sigma + b * alpha)
        ),
        "the noise must drop out of the difference of the two rows; yours is their sum": (
            lambda y, x, a, b, alpha, sigma: _solved(y, -x, a, b, alpha, sigma)
        ),
        "y and x are exchanged: each row is multiplied by the other row's factor of the noise": (
            lambda y, x, a, b, alpha, sigma: _solved(x, y, a, b, alpha, sigma)
        ),
        "y is taken for the noise, whatever its row (a, b) is": (
            lambda y, x, a, b, alpha, sigma: (x - sigma * y) / alpha
        ),
        "y is taken for v, whatever its row (a, b) is": (
            lambda y, x, a, b, alpha, sigma: (alpha * x - sigma * y) / (alpha**2 + sigma**2)
        ),
        "y / b is not the noise: y holds the data too, unless a is 0": (
            lambda y, x, a, b, alpha, sigma: (x - sigma * y / b) / alpha
        ),
        "the determinant is missing: it is not 1, it depends on the row and the level": (
            lambda y, x, a, b, alpha, sigma: sigma * y - b * x
        ),
        "the determinant is −1 for v where α² + σ² = 1; not here, and not for every target": (
            lambda y, x, a, b, alpha, sigma: b * x - sigma * y
        ),
        "this is the noise, not the data: is the system solved for its other unknown?": (
            lambda y, x, a, b, alpha, sigma: (a * x - alpha * y) / _determinant(a, b, alpha, sigma)
        ),
        "a and b are exchanged: a belongs to the data, b to the noise": (
            lambda y, x, a, b, alpha, sigma: _solved(y, x, b, a, alpha, sigma)
        ),
    },
)


# --------------------------------------------------------------------------------------------
# 02.6
# --------------------------------------------------------------------------------------------


def _sampler_cases(rng, to_data):
    for steps in (1, 5):
        denoise = GaussianDenoiser(float(rng.uniform(1.1, 2.3)), float(rng.uniform(0.4, 0.8)))
        alphas = np.linspace(rng.uniform(0.1, 0.3), rng.uniform(0.8, 0.9), steps + 1)
        sigmas = np.linspace(rng.uniform(1.2, 1.6), rng.uniform(0.3, 0.4), steps + 1)
        if to_data:
            alphas[-1], sigmas[-1] = 1, 0
        yield denoise, _noisy(rng, (6,)), alphas, sigmas


def _sampler(
    denoise, x, alphas, sigmas, told=(0, 0), removed=0, signal=1, noise=1, divided=1, unused=0
):
    """A 0 stands for the level where a step starts, a 1 for the level where it ends."""
    for n in range(len(alphas) - 1 - unused):
        x0 = denoise(x, alphas[n + told[0]], sigmas[n + told[1]])
        eps = (x - alphas[n + removed] * x0) / sigmas[n] ** divided
        x = alphas[n + signal] * x0 + sigmas[n + noise] * eps
    return x


def _sampler_that_asks_once(denoise, x, alphas, sigmas):
    ends = np.array([0, -1])  # with the same x0 and eps all the way, only the ends matter
    return _sampler(denoise, x, alphas[ends], sigmas[ends])


def _sampler_of_guesses(denoise, x, alphas, sigmas):
    return denoise(_sampler(denoise, x, alphas, sigmas, unused=1), alphas[-2], sigmas[-2])


SAMPLER = Exercise(
    id="02.6",
    title="This sampler is broken",
    function="sampler",
    parts=(
        Part("steps that end among the noise", 1, lambda rng: list(_sampler_cases(rng, False))),
        Part("all the way to the data", 2, lambda rng: list(_sampler_cases(rng, True))),
    ),
    oracle=_sampler,
    mistakes={
        "both bugs are still there": partial(_sampler, told=(1, 1), noise=0),
        "one bug is left: the denoiser must be told the level at which x is, before the step": (
            partial(_sampler, told=(1, 1))
        ),
        "one bug is left: the denoiser is told α before the step, but σ after it": (
            partial(_sampler, told=(0, 1))
        ),
        "one bug is left: the denoiser is told σ before the step, but α after it": (
            partial(_sampler, told=(1, 0))
        ),
        "one bug is left: the noise that is put back is as large as before the step": (
            partial(_sampler, noise=0)
        ),
        "this is a new bug: the signal that is put back is as small as before the step": (
            partial(_sampler, signal=0)
        ),
        "this is a new bug: the noise in x is what is left without the signal at x's own level": (
            partial(_sampler, removed=1)
        ),
        "one bug is left, and a new one: until the last line x is at its old level": (
            partial(_sampler, told=(1, 1), removed=1)
        ),
        "this is a new bug: what is left without the signal is σ times the noise": (
            partial(_sampler, divided=0)
        ),
        "this is a new bug: the denoiser is asked once, not in every step": _sampler_that_asks_once,
        "this is a new bug: the last guess is returned, not the state": _sampler_of_guesses,
        "the last step is missing: a table of n levels makes n − 1 steps": (
            partial(_sampler, unused=1)
        ),
    },
)

EXERCISES = (
    TWEEDIE,
    GAUSSIAN,
    TWO_POINTS,
    FINITE,
    SOLVE,
    SAMPLER,
    DOUBT,
    Written("02.8", "The perfect model", 2),
)
