"""Exercises of chapter 02, denoising is the posterior mean."""

import numpy as np
from scipy.special import softmax

from diffusion_course.grading.answers.drawing import gaussian, normal, number
from diffusion_course.grading.answers.writing import exercise
from diffusion_course.grading.exercise import Part, Written


def _levels(rng):
    """A signal and a noise level of no process in particular: alpha² + sigma² is not 1."""
    return number(rng, 0.35, 0.85), number(rng, 0.7, 1.4)


def _noisy(rng, *shape):
    return normal(rng, *shape, mean=0.7, std=1.9)


# --- 02.1 -----------------------------------------------------------------------------------
def tweedie(x, score, alpha, sigma):
    return (x + sigma**2 * score) / alpha


def _scores(rng):
    for shape in ((7,), (4, 3)):
        yield _noisy(rng, *shape), normal(rng, *shape, mean=-0.4, std=1.3), *_levels(rng)


TWEEDIE = exercise(
    "02.1 · Tweedie's formula",
    tweedie,
    Part("any score, any level", 1, _scores),
    section="2 · Tweedie's formula",
    mistakes="""
    the score is multiplied by the variance of the noise, not by its standard deviation
        sigma**2 -> sigma
    what is left after removing the noise is the shrunken signal: undo the factor α
        / alpha ->
    α multiplies all of the signal: divide the whole sum by it, not one of its terms
        return x / alpha + sigma**2 * score
    the whole sum is divided by α, and x is a term of it: brackets are missing
        return x + sigma**2 * score / alpha
    the score points towards the data, so the guess goes along it and not against it
        x + sigma -> x - sigma
    the process has multiplied the data by α: what undoes that is a division
        / alpha -> * alpha
    that would be right if α were ᾱ: here α and σ themselves are given, without roots
        return (x + (1 - alpha) * score) / np.sqrt(alpha)
    that takes the score for the noise; the two differ in their sign and by a factor
        sigma**2 -> -sigma
    σ has a value of its own, and its square need not be 1 − α²
        sigma**2 -> (1 - alpha**2)
    α has been divided away twice: the signal was multiplied by it once
        / alpha -> / alpha**2
    α is given as it is: its root belongs to processes that are told ᾱ
        / alpha -> / np.sqrt(alpha)
    α and σ are exchanged
        return tweedie(x, score, sigma, alpha)
    the score is multiplied by the whole variance of the noise: no ½ comes with it
        sigma**2 * score -> sigma**2 * score / 2
    the score alone doesn't know how much noise there is: σ is missing
        sigma**2 * score -> score
    """,
)


# --- 02.2 -----------------------------------------------------------------------------------
def gaussian_posterior_mean(x, mean, std, alpha, sigma):
    gain = alpha * std**2 / (alpha**2 * std**2 + sigma**2)  # Cov(x0, x_t) / Var(x_t)
    return mean + gain * (x - alpha * mean)


def _gaussians(rng):
    for shape, sign in (((6,), 1), ((2, 5), -1)):
        mean, std = sign * number(rng, 1.1, 2.3), number(rng, 0.4, 0.8)
        yield _noisy(rng, *shape), mean, std, *_levels(rng)


def _extreme_gaussians(rng):
    """Hardly any noise on data that are nearly alike; and noise that hides the data."""
    alpha, sigma = number(rng, 0.7, 0.9), number(rng, 0.004, 0.008)
    mean, std = number(rng, -2.3, -1.1), number(rng, 0.006, 0.012)
    x = alpha * (mean + std * rng.normal(size=6)) + sigma * rng.normal(size=6)
    yield x.astype(np.float32), mean, std, alpha, sigma
    alpha, sigma = number(rng, 0.02, 0.05), number(rng, 9, 14)
    yield normal(rng, 6, std=10.0), number(rng, 1.1, 2.3), number(rng, 3.0, 4.0), alpha, sigma


GAUSSIAN = exercise(
    "02.2 · The best guess for Gaussian data",
    gaussian_posterior_mean,
    Part("any Gaussian, any level", 1, _gaussians),
    Part("hardly any noise, and hardly any signal", 1, _extreme_gaussians),
    section="3 · The exact denoiser of a mixture, written out",
    mistakes="""
    std is a standard deviation, but variances add up: square it
        return gaussian_posterior_mean(x, mean, std**0.5, alpha, sigma)
    σ is a standard deviation, but variances add up: square it
        return gaussian_posterior_mean(x, mean, std, alpha, sigma**0.5)
    std and σ are standard deviations, but variances add up: square both
        return gaussian_posterior_mean(x, mean, std**0.5, alpha, sigma**0.5)
    in the covariance too the variance of the data belongs, not their standard deviation
        alpha * std**2 -> alpha * std
    the mean of x_t is not the mean of the data: the process shrinks it
        x - alpha * mean -> x - mean
    the variance of x_t lacks the noise, so every x_t is believed: nothing is denoised
        + sigma**2 ->
    the gain is Cov(x0, x_t) over Var(x_t), and the covariance holds a factor α
        alpha * std**2 -> std**2
    in x_t the data are shrunk, so their part of its variance holds α twice
        alpha**2 * std**2 -> std**2
    in x_t the data are shrunk by α, so in its variance α is squared
        alpha**2 * std**2 -> alpha * std**2
    variances add up, not standard deviations: no double product belongs below
        (alpha**2 * std**2 + sigma**2) -> (alpha * std + sigma) ** 2
    that share is for standard deviations; covariance and variance are made of squares
        alpha * std**2 / (alpha**2 * std**2 + sigma**2) -> std / (alpha * std + sigma)
    the covariance holds α once: x0 itself is not shrunk
        alpha * std**2 / -> alpha**2 * std**2 /
    x_t is taken for x0 plus noise: α is missing everywhere
        return gaussian_posterior_mean(x, mean, std, 1.0, sigma)
    x_t/α lies around the data, but its noise is larger too: σ/α
        return gaussian_posterior_mean(x / alpha, mean, std, 1.0, sigma)
    that share is the noise's: the more noise, the less x_t moves the guess
        alpha * std**2 / -> sigma**2 /
    the roles of std and σ are exchanged: the more noise, the less x_t moves the guess
        return gaussian_posterior_mean(x, mean, sigma, alpha, std)
    the covariance is divided by the variance of x_t, not by its standard deviation
        (alpha**2 * std**2 + sigma**2) -> np.sqrt(alpha**2 * std**2 + sigma**2)
    the guess moves towards the surprise, not away from it
        mean + gain -> mean - gain
    a surprise is a difference: what you expected to see is subtracted from x
        x - alpha * mean -> x + alpha * mean
    x itself is no surprise: subtract what you expected to see
        gain * (x - alpha * mean) -> gain * x
    x_t and the mean are weighted by their precisions; before x_t a factor α is missing
        return right + (1 - alpha) * x * std**2 / (alpha**2 * std**2 + sigma**2)
    the weighted sum is divided by the sum of the weights; yours is multiplied by it
        return right * (alpha**2 / sigma**2 + 1 / std**2) ** 2
    the precisions below are 1/std² and α²/σ²: in yours α is not squared
        return right * (alpha**2 / sigma**2 + 1 / std**2) / (alpha / sigma**2 + 1 / std**2)
    under heavy noise the guess must be the mean of the data; yours tends to zero
        mean + gain * (x - alpha * mean) -> gain * x
    that is how far the guess moves from the mean of the data; add the mean
        mean + gain -> gain
    the guess starts at the mean of the data, not at the mean of x_t
        mean + gain -> alpha * mean + gain
    that is the best guess at α·x0, what is left of the data in x_t: undo the factor α
        return alpha * right
    """,
)


# --- 02.3 -----------------------------------------------------------------------------------
def two_points(x, a, alpha, sigma):
    return a * np.tanh(alpha * a * x / sigma**2)


def _pairs(rng):
    for shape in ((7,), (3, 4)):
        alpha, sigma = _levels(rng)
        yield normal(rng, *shape, mean=0.4, std=1.1), number(rng, 1.4, 2.2), alpha, sigma


def _pairs_without_doubt(rng):
    """Far out, exp overflows in float64 too; in between, both weights are rounded to 0 in float32.

    Their exponents, about −120 there, keep enough digits for whoever takes their softmax.
    """
    a, alpha = number(rng, 1.4, 2.2), number(rng, 0.6, 0.9)
    sigma = float(alpha * a / rng.uniform(15, 16))
    near = rng.uniform(0.3, 1.2, 3) * sigma**2 / (alpha * a)  # here there is doubt all the same
    far = rng.uniform(6, 9, 4) * [1, -1, 1, -1]
    yield np.concatenate([near, far]).astype(np.float32), a, alpha, sigma


TWO_POINTS = exercise(
    "02.3 · Two points",
    two_points,
    Part("any level", 2, _pairs),
    Part("almost no noise", 1, _pairs_without_doubt),
    section="7 · A perfect denoiser only memorises",
    mistakes="""
    your doubt ends too early: the two weights differ by e^(2u), while tanh(u) holds u
        alpha * a -> 2 * alpha * a
    your doubt lasts too long: in (x − αa)² − (x + αa)² the cross term comes twice
        sigma**2 -> (2 * sigma**2)
    the noisy copies of ±a lie around ±αa: α is missing
        alpha * a -> a
    the exponent of a Gaussian is divided by the variance of the noise, not by σ
        sigma**2 -> sigma
    far out the guess must be one of the two points; yours ends at ±1
        a * np.tanh -> np.tanh
    far out the guess must be one of the two points, ±a: the data are not shrunken
        return alpha * right
    how soon doubt ends depends on the distance of the points: a is missing within
        alpha * a -> alpha
    far out both exponentials overflow, or vanish: ∞/∞ is no number, and a safe function exists
        np.tanh(alpha * a * x / sigma**2)
            -> (lambda u: (np.exp(u) - np.exp(-u)) / (np.exp(u) + np.exp(-u)))(
                alpha * a * x / sigma**2)
    far out on one side the exponential overflows: ∞/∞ is no number, and a safe function exists
        np.tanh(alpha * a * x / sigma**2)
            -> (lambda u: (1 - np.exp(-2 * u)) / (1 + np.exp(-2 * u)))(alpha * a * x / sigma**2)
    far out on the other side the exponential overflows: ∞/∞ is no number
        np.tanh(alpha * a * x / sigma**2)
            -> (lambda u: (np.exp(2 * u) - 1) / (np.exp(2 * u) + 1))(alpha * a * x / sigma**2)
    the sign is wrong: the guess lies on the side of x
        return -right
    α stands on the wrong side: the noisy copies lie closer together than the points
        alpha * a * x -> a * x / alpha
    α is squared, but only one factor is left of the cross term
        alpha * a -> alpha**2 * a
    a is squared, but only one factor is left of the cross term
        alpha * a -> alpha * a**2
    the noisy copies lie around ±αa: both factors are missing within
        alpha * a * x -> x
    the data are two points, not a Gaussian with their variance
        sigma**2 -> (alpha**2 * a**2 + sigma**2)
    that is the weight of +a alone: −a pulls with the rest
        return (a + right) / 2
    the nearer point is the likelier one; the best guess is an average of both
        return a * np.sign(x)
    """,
)


# --- 02.4 -----------------------------------------------------------------------------------
def finite_posterior_mean(x, data, alpha, sigma):
    squared = np.sum((x[:, None] - alpha * data) ** 2, axis=-1)
    r = softmax(-squared / (2 * sigma**2), axis=1)
    return r @ data


def _data(rng, std=1.6):
    """Fewer x than data; and, twice, as many as data and coordinates."""
    for B, N, D in ((4, 6, 3), (2, 2, 2), (2, 2, 2)):
        data = rng.normal(0.7, std, (N, D))
        alpha, sigma = _levels(rng)
        x = alpha * data[rng.integers(N, size=B)] + sigma * rng.normal(size=(B, D))
        yield x.astype(np.float32), data.astype(np.float32), alpha, sigma


def _data_far_away(rng):
    """Every x is at least 45σ from the nearest data: exp(−45²/2) is 0, in float64 too.

    The distances differ so much that no single number can be added to the exponents of all x. Two
    of the data are so close together that they share the weight; the others are far away.
    """
    alpha, sigma = number(rng, 0.6, 0.9), number(rng, 0.01, 0.02)
    turn = rng.uniform(0, 2 * np.pi)
    gap = 2 * sigma / alpha * np.array([0, np.cos(turn), np.sin(turn)])
    data = rng.normal(0.7, 1.6, (6, 3))
    data[:, 0] = 2.5 + np.abs(data[:, 0])
    data[2] = rng.normal(-1.0, 0.3, 3)
    data[4] = data[2] + gap
    x = alpha * (data[2] + rng.uniform(0.1, 0.9, (4, 1)) * gap)
    x[:, 0] -= sigma * rng.permutation([45, 62, 75, 87])
    yield x.astype(np.float32), data.astype(np.float32), alpha, sigma


FINITE = exercise(
    "02.4 · The perfect denoiser of a data set",
    finite_posterior_mean,
    Part("any data, any level", 2, _data),
    Part("almost no noise, where exp underflows", 1, _data_far_away),
    section="7 · A perfect denoiser only memorises",
    mistakes="""
    the exponent of a Gaussian has a factor ½; without it every doubt ends too early
        2 * sigma**2 -> sigma**2
    x_t lies around the shrunken data: scale the data before you measure distances
        alpha * data -> data
    x_t / α lies around the data, but its noise is larger too: σ / α
        return finite_posterior_mean(x, data, alpha, alpha * sigma)
    the exponent is divided by the variance of the noise, and σ is its square root
        2 * sigma**2 -> 2 * sigma
    a Gaussian falls with the square of the distance, yours with the distance
        -squared -> -np.sqrt(squared)
    a squared distance is a sum over the coordinates, and you took their mean
        np.sum( -> np.mean(
    a point has one weight, from its distance in all coordinates; yours has one for each
        np.sum((x[:, None] - alpha * data) ** 2, axis=-1) -> (x[:, None] - alpha * data) ** 2
        r @ data -> np.sum(r * data, axis=1)
    the weights must add up to 1 over the data, for each x; yours do over the batch
        axis=1 -> axis=0
    the weights must add up to 1; yours don't, or are all 0 where exp underflows
        softmax(-squared / (2 * sigma**2), axis=1) -> np.exp(-squared / (2 * sigma**2))
    with a tiny σ every exp is rounded to 0, and 0/0 is no number: raise the largest to 1 first
        softmax(-squared / (2 * sigma**2), axis=1) -> np.exp(-squared / (2 * sigma**2))
        r @ data -> r / r.sum(axis=1, keepdims=True) @ data
    the weights of each x add up to 1 by themselves; yours do over the whole batch
        softmax(-squared / (2 * sigma**2), axis=1) -> softmax(-squared / (2 * sigma**2), axis=None)
    the further away a point lies, the less likely it is: a sign is missing
        -squared -> squared
    α belongs to the data: it is they that were shrunk, not x
        x[:, None] - alpha * data -> alpha * x[:, None] - data
    a Gaussian falls with the sum of the squares; yours with the sum of the absolute values
        (x[:, None] - alpha * data) ** 2 -> np.abs(x[:, None] - alpha * data)
    σ is missing: how fast a weight falls depends on the noise
        / (2 * sigma**2) ->
    the squared length of α·x_i differs from point to point: it doesn't cancel
        -squared / (2 * sigma**2) -> alpha * x @ data.T / sigma**2
    α is undone once too often: the guess averages the data, which no α has shrunk
        return right / alpha
    every row of exponents has a largest of its own; yours are raised by that of all rows
        softmax(-squared / (2 * sigma**2), axis=1)
            -> np.exp((squared.min() - squared) / (2 * sigma**2))
        r @ data -> r / r.sum(axis=1, keepdims=True) @ data
    the weights are those of the shrunken data, but the guess averages the data
        return alpha * right
    the nearest point is the likeliest one; the best guess is an average of all
        r @ data -> data[np.argmax(r, axis=1)]
    """,
)


# --- 02.5 -----------------------------------------------------------------------------------
def solve_x0(y, x, a, b, alpha, sigma):
    det = a * sigma - b * alpha
    return (sigma * y - b * x) / det


def _rows(rng, row):
    for shape in ((5,), (3, 2)):
        alpha, sigma = _levels(rng)
        y = normal(rng, *shape, mean=-0.6, std=1.4)
        yield y, _noisy(rng, *shape), *row(alpha, sigma), alpha, sigma


def _any_rows(rng):
    """Far from det = 0, where rounding would show."""
    return _rows(rng, lambda *_: (number(rng, 0.8, 1.7), float(-rng.uniform(0.5, 1.9))))


def _noise_and_score(rng):
    yield from _rows(rng, lambda *_: (0.0, 1.0))
    yield from _rows(rng, lambda alpha, sigma: (0.0, -1 / sigma))


def _of_v(rng):
    return _rows(rng, lambda alpha, sigma: (-sigma, alpha))


def _all_the_others(rng):
    yield from _rows(rng, lambda *_: (1.0, 0.0))
    yield from _rows(rng, lambda *_: (-1.0, 1.0))  # on a straight way from the data to the noise
    yield from _any_rows(rng)


SOLVE = exercise(
    "02.5 · Any target gives back the data",
    solve_x0,
    Part("a network that predicts eps or the score", 1, _noise_and_score),
    Part("a network that predicts v", 1, _of_v),
    Part("one that predicts x0 or the flow, and any row (a, b)", 1, _all_the_others),
    section="5 · Five names for one answer",
    mistakes="""
    the determinant has the wrong sign
        return -right
    the determinant is a difference of two products; yours is their sum
        a * sigma - b -> a * sigma + b
    the noise must drop out of the difference of the two rows; yours is their sum
        sigma * y - b -> sigma * y + b
    y and x are exchanged: each row is multiplied by the other row's factor of the noise
        return solve_x0(x, y, a, b, alpha, sigma)
    y is taken for the noise, whatever its row (a, b) is
        return (x - sigma * y) / alpha
    y is taken for v, whatever its row (a, b) is
        return (alpha * x - sigma * y) / (alpha**2 + sigma**2)
    y / b is not the noise: y holds the data too, unless a is 0
        return (x - sigma * y / b) / alpha
    the determinant is missing: it is not 1, it depends on the row and the level
        / det ->
    the determinant is −1 for v where α² + σ² = 1; not here, and not for every target
        return b * x - sigma * y
    in the determinant α and σ have changed places
        a * sigma - b * alpha -> a * alpha - b * sigma
    the determinant divides; yours multiplies
        / det -> * det
    y must be multiplied as well, or the noise doesn't drop out of the difference
        sigma * y - b * x -> y - b * x
    x must be multiplied as well, or the noise doesn't drop out of the difference
        b * x -> x
    σ stands before y without a square
        sigma * y -> sigma**2 * y
    y is taken for v, and α² + σ² for 1
        return alpha * x - sigma * y
    y is taken for the score, whatever its row (a, b) is
        return (x + sigma**2 * y) / alpha
    y is taken for the data, whatever its row (a, b) is
        return y
    x_t is taken for the noise: y − b·x_t still holds a part of it
        return (y - b * x) / a
    this is the noise, not the data: is the system solved for its other unknown?
        sigma * y - b * x -> a * x - alpha * y
    a and b are exchanged: a belongs to the data, b to the noise
        return solve_x0(y, x, b, a, alpha, sigma)
    """,
)


# --- 02.6 -----------------------------------------------------------------------------------
def sampler(denoise, x, alphas, sigmas):
    for t in range(len(alphas) - 1):
        s = t + 1
        x0 = denoise(x, alphas[t], sigmas[t])
        eps = (x - alphas[t] * x0) / sigmas[t]
        x = alphas[s] * x0 + sigmas[s] * eps
    return x


def _walks(rng, to_data):
    """One step and many, for data on either side of 0."""
    for steps, shape, mean in ((1, (6,), (1.1, 2.3)), (5, (2, 3), (-2.3, -1.1))):
        denoise = gaussian(rng, mean)
        alphas = np.linspace(rng.uniform(0.1, 0.3), rng.uniform(0.8, 0.9), steps + 1)
        sigmas = np.linspace(rng.uniform(1.2, 1.6), rng.uniform(0.3, 0.4), steps + 1)
        if to_data:
            alphas[-1], sigmas[-1] = 1, 0
        yield denoise, _noisy(rng, *shape), alphas, sigmas


SAMPLER = exercise(
    "02.6 · This sampler is broken",
    sampler,
    Part("steps that end among the noise", 1, lambda rng: _walks(rng, to_data=False)),
    Part("all the way to the data", 2, lambda rng: _walks(rng, to_data=True)),
    section="7 · A perfect denoiser only memorises",
    mistakes="""
    both bugs are still there
        alphas[t], sigmas[t]) -> alphas[s], sigmas[s])
        + sigmas[s] -> + sigmas[t]
    one bug is left: the denoiser must be told the level at which x is, before the step
        alphas[t], sigmas[t]) -> alphas[s], sigmas[s])
    one bug is left: the denoiser is told α before the step, but σ after it
        alphas[t], sigmas[t]) -> alphas[t], sigmas[s])
    one bug is left: the denoiser is told σ before the step, but α after it
        alphas[t], sigmas[t]) -> alphas[s], sigmas[t])
    one bug is left: the noise that is put back is as large as before the step
        + sigmas[s] -> + sigmas[t]
    this is a new bug: the signal that is put back is as small as before the step
        x = alphas[s] -> x = alphas[t]
    this is a new bug: the noise in x is what is left without the signal at x's own level
        x - alphas[t] -> x - alphas[s]
    one bug is left, and a new one: until the last line x is at its old level
        alphas[t], sigmas[t]) -> alphas[s], sigmas[s])
        x - alphas[t] -> x - alphas[s]
    this is a new bug: what is left without the signal is σ times the noise
        / sigmas[t] ->
    this is a new bug: x holds the signal α·x0, not x0 itself
        x - alphas[t] * x0 -> x - x0
    this is a new bug: what is left without the signal is σ times the noise, not σ² times
        / sigmas[t] -> / sigmas[t] ** 2
    this is a new bug: σ is a standard deviation, which multiplies the noise without a square
        + sigmas[s] * -> + sigmas[s] ** 2 *
    this is a new bug: the signal is put back unshrunk, but the new level has an α too
        x = alphas[s] * x0 -> x = x0
    this is a new bug: no noise is put back
        + sigmas[s] * eps ->
    this is a new bug: each step ends at the denoiser's guess, without the new level
        alphas[s] * x0 + sigmas[s] * eps -> x0
    this is a new bug: x is mixed again in the shares that it had, so that nothing moves
        alphas[s] * x0 + sigmas[s] -> alphas[t] * x0 + sigmas[t]
    this is a new bug: the noise is subtracted where it must be put back
        x0 + sigmas[s] -> x0 - sigmas[s]
    this is a new bug: denoise takes α first, then σ
        alphas[t], sigmas[t]) -> sigmas[t], alphas[t])
    this is a new bug: the denoiser is told the first level in every step
        alphas[t], sigmas[t]) -> alphas[0], sigmas[0])
    this is a new bug: the levels hold a σ of their own, which need not be √(1 − α²)
        / sigmas[t] -> / np.sqrt(1 - alphas[t] ** 2)
        + sigmas[s] -> + np.sqrt(1 - alphas[s] ** 2)
    this is a new bug: the noise is divided by √(1 − α²), but σ has a value of its own
        / sigmas[t] -> / np.sqrt(1 - alphas[t] ** 2)
    this is a new bug: √(1 − α²) of the noise is put back, but σ has a value of its own
        + sigmas[s] -> + np.sqrt(1 - alphas[s] ** 2)
    this is a new bug: the denoiser is asked once, not in every step
        return sampler(denoise, x, alphas[:: len(alphas) - 1], sigmas[:: len(sigmas) - 1])
    this is a new bug: the last guess is returned, not the state
        return x -> return x0
    the last step is missing: a table of n levels makes n − 1 steps
        len(alphas) - 1 -> len(alphas) - 2
    """,
    library=("diffusion_course.grading.inputs.GaussianDenoiser",),
)


# --- 02.7 -----------------------------------------------------------------------------------
def doubt(x, data, alpha, sigma):
    squared = np.sum((x[:, None] - alpha * data) ** 2, axis=-1)
    r = softmax(-squared / (2 * sigma**2), axis=1)
    gap = data - (r @ data)[:, None]
    return np.einsum("bn,bnd->b", r, gap**2)


def _doubt_far_away(rng):
    """Every x is at least 16σ from the nearest data, so that each exp is 0 in float32.

    Two of the data share the weight. The exponents, about −130, keep enough digits, and so does
    the mean of the squares minus the square of the mean, since both are small.
    """
    alpha, sigma = number(rng, 0.6, 0.9), number(rng, 0.01, 0.02)
    data = rng.normal(0.7, 1.6, (6, 3))
    data[:, 0] = 2.5 + np.abs(data[:, 0])
    gap = sigma / alpha * np.array([0.2, 1.0, 0.1])
    data[1], data[3] = gap, gap * [1, -1, 1]
    x = np.stack([-rng.uniform(16, 17, 4), *rng.uniform(-0.3, 0.3, (2, 4))], axis=1) * sigma
    yield x.astype(np.float32), data.astype(np.float32), alpha, sigma


DOUBT = exercise(
    "02.7 · Doubt is the slope of the guess",
    doubt,
    # Nearer together: a difference of squares is right too, as long as some doubt is left.
    Part("any data, any level", 2, lambda rng: _data(rng, std=1.1)),
    Part("almost no noise, where exp underflows", 1, _doubt_far_away),
    section="9 · What to inspect",
    atol=1e-4,  # a difference of squares in float32, where the doubt itself is small
    mistakes="""
    the slope alone is not the doubt: how σ and α enter, (9) says when differentiated
        return alpha / sigma**2 * right
    the factor between slope and doubt is upside down
        return (alpha / sigma**2) ** 2 * right
    x0 reaches x_t only after the factor α, so α stands between slope and doubt
        return alpha * right
    the slope must be multiplied by the variance of the noise, not by σ
        return right / sigma
    the squared error is a sum over the coordinates, and you took their mean
        return right / data.shape[1]
    only a coordinate's own variance counts: the diagonal, not the whole matrix
        gap**2 -> gap.sum(axis=2, keepdims=True) ** 2
    doubt is measured from the best guess; yours is measured from zero
        (r @ data)[:, None] -> 0 * x[:, None]
    doubt is measured from the best guess; yours is measured from x_t
        (r @ data)[:, None] -> x[:, None]
    α stands only once between slope and doubt
        return right / alpha
    the mean of the squares minus the square of the mean: yours has the sign of the reverse
        return -right
    the square of the mean is subtracted from the mean of the squares; yours is added
        return right + 2 * np.sum((softmax(-np.sum((x[:, None] - alpha * data) ** 2, axis=-1)
            / (2 * sigma**2), axis=1) @ data) ** 2, axis=1)
    the weights add up to 1 already: a sum over the data is wanted, not another mean
        return right / len(data)
    the weights are squared, but only the distances are
        r, gap**2 -> r**2, gap**2
    the distances are squared: their absolute values are something else
        gap**2 -> np.abs(gap)
    the data themselves are uncertain, not α·x0
        gap = data -> gap = alpha * data
    the doubt is about x0, not about α·x0
        return alpha**2 * right
    that is the expected distance from x_t, in its own units; doubt is measured from the guess
        r, gap**2 -> r, squared[:, :, None]
    one number for each x is asked for: add up the coordinates
        "bn,bnd->b" -> "bn,bnd->bd"
    with a tiny σ every exp is rounded to 0, and 0/0 is no number: raise the largest to 1 first
        r = softmax(-squared / (2 * sigma**2), axis=1)
            -> r = np.exp((-squared / (2 * sigma**2)).astype(np.float32)).astype(float);
                r = r / r.sum(axis=1, keepdims=True)
    the doubt is a squared error: no root is taken
        return np.sqrt(right)
    given x_t, some of the data are likelier than others: the weights are missing
        r, gap**2 -> 0 * r + 1 / len(data), gap**2
    """,
)


# --- 02.8 -----------------------------------------------------------------------------------
PERFECT = Written("02.8", "The perfect model", 2, section="7 · A perfect denoiser only memorises")
