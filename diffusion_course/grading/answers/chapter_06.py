"""Exercises of chapter 06, DDIM and fast solvers."""

import numpy as np

from diffusion_course.grading.answers.drawing import gaussian, images, levels, normal, number
from diffusion_course.grading.answers.writing import exercise
from diffusion_course.grading.exercise import Part, Written


# --- 06.1 -----------------------------------------------------------------------------------
def fresh_noise(abar, eta):
    abar_t, abar_s = abar[:-1], abar[1:]
    variance = (1 - abar_t / abar_s) * (1 - abar_s) / (1 - abar_t)
    return eta * np.sqrt(variance)


def _grid(rng, steps):
    """ᾱ of a strided grid, from noise towards the data."""
    return np.sort(rng.uniform(0.05, 0.95, steps + 1))


def _grid_to_the_data(rng):
    return [(np.append(_grid(rng, 4), 1.0), number(rng, 0.2, 0.7))]


FRESH = exercise(
    "06.1 · How much fresh noise",
    fresh_noise,
    Part("η = 1 on strided grids", 1, lambda rng: [(_grid(rng, n), 1.0) for n in (1, 7)]),
    Part("any η, and none in a step to the data", 1, _grid_to_the_data),
    mistakes="""
    that is a variance: what multiplies noise is a standard deviation
        eta * np.sqrt(variance) -> eta**2 * variance
    η multiplies the standard deviation; yours multiplies the variance
        eta * np.sqrt(variance) -> np.sqrt(eta * variance)
    that is the noise of the step itself; DDPM's posterior has less, and none at the end
        * (1 - abar_s) / (1 - abar_t) ->
    that is the noise present at s, not the part of it that is new
        np.sqrt(variance) -> np.sqrt(1 - abar_s)
    the quotient of the noise levels is upside down
        (1 - abar_s) / (1 - abar_t) -> (1 - abar_t) / (1 - abar_s)
    η is missing
        eta * np.sqrt -> np.sqrt
    the root of a negative number is nan: are t and s exchanged? ᾱ grows along the table
        abar[:-1], abar[1:] -> abar[1:], abar[:-1]
    """,
)


# --- 06.2 -----------------------------------------------------------------------------------
def ddim_step(x0_hat, x_t, noise, abar_t, abar_s, eta):
    eps = (x_t - np.sqrt(abar_t) * x0_hat) / np.sqrt(1 - abar_t)
    variance = eta**2 * (1 - abar_t / abar_s) * (1 - abar_s) / (1 - abar_t)
    direction = np.sqrt(1 - abar_s - variance)
    return np.sqrt(abar_s) * x0_hat + direction * eps + np.sqrt(variance) * noise


def _step(rng, eta, levels):
    return images(rng, 2, 4), images(rng, 2, 4), normal(rng, 2, 4), *levels, eta


def _steps_without_noise(rng):
    """The last one returns the guess, whatever η is; by itself it would give a point for that."""
    for _ in range(2):
        yield _step(rng, 0.0, levels(rng))
    yield _step(rng, 0.7, (number(rng, 0.3, 0.9), 1.0))


def _steps_with_noise(rng):
    """η² is below 1 − ᾱ_s, so that 1 − ᾱ_s − g, which is wrong, has a root."""
    for _ in range(2):
        yield _step(rng, number(rng, 0.4, 0.7), levels(rng, at_s=(0.3, 0.5)))


STEP = exercise(
    "06.2 · One step of DDIM",
    ddim_step,
    Part("without fresh noise; the last step returns the guess", 1, _steps_without_noise),
    Part("any η", 2, _steps_with_noise),
    mistakes="""
    the direction term must shrink by what the fresh noise adds: c² + g² = σ_s²
        1 - abar_s - variance -> 1 - abar_s
    variances add up, standard deviations do not: σ_s − g leaves too little
        np.sqrt(1 - abar_s - variance) -> np.sqrt(1 - abar_s) - np.sqrt(variance)
    the squares add up, c² + g² = σ_s²: g is not squared in yours
        1 - abar_s - variance -> 1 - abar_s - np.sqrt(variance)
    the fresh noise is missing, and its place is kept free
        np.sqrt(variance) * noise -> 0
    fresh noise is multiplied by its standard deviation, not by its variance
        np.sqrt(variance) * noise -> variance * noise
    the guess is multiplied by a level of the wrong end of the step
        np.sqrt(abar_s) * x0_hat -> np.sqrt(abar_t) * x0_hat
    the guess is multiplied by ᾱ; the signal level is its square root
        np.sqrt(abar_s) * x0_hat -> abar_s * x0_hat
    what is left of x_t without the guess is noise of size σ_t: divide by it
        / np.sqrt(1 - abar_t) ->
    what is left of x_t without the guess is divided by σ_t; yours by its square
        / np.sqrt(1 - abar_t) -> / (1 - abar_t)
    the predicted noise and the fresh noise are exchanged
        direction * eps + np.sqrt(variance) * noise -> direction * noise + np.sqrt(variance) * eps
    """,
)


# --- 06.3 -----------------------------------------------------------------------------------
def invert_step(denoise, x_s, abar_t, abar_s, refinements):
    alpha_t, sigma_t = np.sqrt(abar_t), np.sqrt(1 - abar_t)
    alpha_s, sigma_s = np.sqrt(abar_s), np.sqrt(1 - abar_s)
    guess = x_s
    for _ in range(refinements + 1):
        eps = (guess - alpha_t * denoise(guess, alpha_t, sigma_t)) / sigma_t
        guess = alpha_t * (x_s - sigma_s * eps) / alpha_s + sigma_t * eps
    return guess


def _climbs(rng, *refinements):
    return [(gaussian(rng), images(rng, 5), *levels(rng), n) for n in refinements]


INVERT = exercise(
    "06.3 · A step up",
    invert_step,
    Part("one evaluation", 1, lambda rng: _climbs(rng, 0, 0)),
    Part("refined, up to the exact inverse", 2, lambda rng: _climbs(rng, 1, 4, 30)),
    mistakes="""
    the step's noise belongs to its upper end: evaluate at the levels of t
        (guess - alpha_t * denoise(guess, alpha_t, sigma_t)) / sigma_t
            -> (guess - alpha_s * denoise(guess, alpha_s, sigma_s)) / sigma_s
    that is x_s again: no step was made, or x_t was rebuilt from D's guess and noise at t
        return x_s
    one evaluation too few: without refinements there is one, and each adds another
        refinements + 1 -> refinements
    one evaluation too many: without refinements there is one, and each adds another
        refinements + 1 -> refinements + 2
    the denoiser works at x_t, and must be told the levels of t, not those of s
        denoise(guess, alpha_t, sigma_t) -> denoise(guess, alpha_s, sigma_s)
    the denoiser is told α and σ; yours is told their squares
        denoise(guess, alpha_t, sigma_t) -> denoise(guess, abar_t, 1 - abar_t)
    a refinement evaluates where the last guess led, not at x_s again
        guess - alpha_t * denoise(guess -> x_s - alpha_t * denoise(x_s
    each refinement starts the step anew from x_s; yours climbs on from the last guess
        x_s - sigma_s -> guess - sigma_s
    that is the way down: the levels of the two ends are exchanged
        return invert_step(denoise, x_s, abar_s, abar_t, refinements)
    """,
)


# --- 06.4 -----------------------------------------------------------------------------------
def slerp(a, b, share):
    axes = tuple(range(1, a.ndim))
    lengths = [np.sqrt(np.sum(x**2, axis=axes, keepdims=True)) for x in (a, b)]
    cosine = np.sum(a * b, axis=axes, keepdims=True) / (lengths[0] * lengths[1])
    theta = np.arccos(cosine)
    return (np.sin((1 - share) * theta) * a + np.sin(share * theta) * b) / np.sin(theta)


def _pairs(rng, *shape):
    a = normal(rng, *shape, mean=0.1, std=1.7)
    return [(a, normal(rng, *shape, mean=-0.2, std=1.2), number(rng, 0.15, 0.4))]


def _oblique_pair(rng):
    """At about 50°: where the angle is near 90°, its cosine and its arc sine are both near 0."""
    ((a, b, share),) = _pairs(rng, 1, 9)
    across = b - a * np.sum(a * b) / np.sum(a**2)
    across *= np.linalg.norm(a) / np.linalg.norm(across)
    theta, length = np.radians(rng.uniform(46, 54)), rng.uniform(0.5, 0.8)
    b = length * (np.cos(theta) * a + np.sin(theta) * across)
    return [(a, b.astype(np.float32), share)]


SLERP = exercise(
    "06.4 · Between two noises",
    slerp,
    Part("one pair", 1, _oblique_pair),
    Part("a batch, where each pair has its own angle", 2, lambda rng: _pairs(rng, 3, 2, 3, 1)),
    mistakes="""
    that is the straight line, whose middle is too short for noise
        return (1 - share) * a + share * b
    each example has an angle of its own; yours is one for the whole batch
        range(1, a.ndim) -> range(a.ndim)
    the two shares are exchanged: at 0 the result is a
        return slerp(b, a, share)
    only the angle needs unit vectors: a and b keep their lengths
        * theta) * a -> * theta) * a / lengths[0]
        * theta) * b -> * theta) * b / lengths[1]
    the division by sin θ is missing
        / np.sin(theta) ->
    what you call θ is still the cosine of the angle
        np.arccos(cosine) -> cosine
    the product of unit vectors is the cosine of their angle, not its sine
        np.arccos -> np.arcsin
    """,
)


# --- 06.5 -----------------------------------------------------------------------------------
def fitted_order(steps, per_step, saved, errors):
    evaluations = per_step * steps - saved
    return -np.polyfit(np.log(evaluations), np.log(errors), 1)[0]


def _runs(rng, *costs):
    """More steps than there are extra evaluations, which one may subtract by mistake."""
    for per_step, saved in costs:
        steps = (max(0, -saved) + np.cumsum(rng.integers(2, 9, 6))).astype(np.float32)
        power = rng.uniform(0.8, 3.2)
        errors = rng.uniform(0.2, 3) * steps**-power * np.exp(rng.normal(0, 0.3, 6))
        yield steps, per_step, saved, errors.astype(np.float32)


ORDER = exercise(
    "06.5 · Order, at honest cost",
    fitted_order,
    Part("one evaluation per step", 1, lambda rng: _runs(rng, (1, 0))),
    Part("several, and some saved", 1, lambda rng: _runs(rng, (2, 1), (3, 2), (1, -9))),
    mistakes="""
    an order is positive: it is minus the slope
        return -right
    the fit is one over steps, or over evaluations of which none is saved; both give one slope
        np.log(evaluations) -> np.log(steps)
    what is saved makes a run cheaper; yours becomes dearer by it
        - saved -> + saved
    a power law is a line only where both axes are logarithmic
        np.log(evaluations), np.log(errors) -> evaluations, errors
    the evaluations need a logarithm too
        np.log(evaluations) -> evaluations
    the slope between the two ends ignores all the runs in the middle
        np.log(evaluations), np.log(errors) -> np.log(evaluations[::5]), np.log(errors[::5])
    """,
)


# --- 06.6 -----------------------------------------------------------------------------------
def sample(denoise, x, noises, abar, eta):
    levels = np.append(abar, 1.0)  # the last step goes to the data
    for noise, abar_t, abar_s in zip(noises, levels[:-1], levels[1:], strict=True):
        guess = denoise(x, np.sqrt(abar_t), np.sqrt(1 - abar_t))
        eps = (x - np.sqrt(abar_t) * guess) / np.sqrt(1 - abar_t)
        g = eta * np.sqrt((1 - abar_t / abar_s) * (1 - abar_s) / (1 - abar_t))
        x = np.sqrt(abar_s) * guess + np.sqrt(1 - abar_s - g**2) * eps + g * noise
    return x


def _walks(rng, steps):
    abar = np.sort(rng.uniform(0.05, 0.6, steps))
    eta = number(rng, 0.35, 0.6)  # σ² − g, which is wrong, must not become negative
    return [(gaussian(rng), images(rng, 4), normal(rng, steps, 4), abar, eta)]


BROKEN = exercise(
    "06.6 · This sampler is broken",
    sample,
    Part("a single step ends at the data", 1, lambda rng: _walks(rng, 1)),
    Part("a whole run", 3, lambda rng: _walks(rng, 6)),
    # With a single step there is no fresh noise, and no other bug than the first to be seen.
    mistakes="""
    a bug is left: the last step does not reach the data
        abar, 1.0 -> abar, abar[-1]
    both bugs are still there
        abar, 1.0 -> abar, abar[-1]
        1 - abar_s - g**2 -> 1 - abar_s
    a bug is left: the fresh noise comes on top of noise that is complete already
        1 - abar_s - g**2 -> 1 - abar_s
    variances add up, standard deviations do not: σ_s − g leaves too little
        np.sqrt(1 - abar_s - g**2) -> (np.sqrt(1 - abar_s) - g)
    how much old noise is left depends on g: σ_s·(1 − η) does not make up for it
        np.sqrt(1 - abar_s - g**2) -> np.sqrt(1 - abar_s) * (1 - eta)
    the squares of the two factors add up to σ_s²: g is not squared in yours
        1 - abar_s - g**2 -> 1 - abar_s - g
    the fresh noise is gone; the bug was elsewhere
        g * noise -> 0
    """,
    library=("diffusion_course.grading.inputs.GaussianDenoiser",),
)


# --- 06.7 -----------------------------------------------------------------------------------
def sample_2m(denoise, x, alpha, sigma):
    before = h_before = None
    for n in range(len(alpha) - 1):
        x0 = ahead = denoise(x, alpha[n], sigma[n])
        if sigma[n + 1] > 0:
            h = np.log(alpha[n + 1] / sigma[n + 1]) - np.log(alpha[n] / sigma[n])
            if n > 0:
                ahead = x0 + h / (2 * h_before) * (x0 - before)
            before, h_before = x0, h
        ratio = sigma[n + 1] / sigma[n]
        x = ratio * x + (alpha[n + 1] - alpha[n] * ratio) * ahead
    return x


def _tables(rng, *walks):
    for steps, to_data in walks:
        alpha = np.sort(rng.uniform(0.15, 0.9, steps + 1))
        sigma = np.sort(rng.uniform(0.3, 1.4, steps + 1))[::-1].copy()
        if to_data:
            alpha[-1], sigma[-1] = 1, 0
        yield gaussian(rng), images(rng, 4), alpha, sigma


def _many_steps(rng):
    return _tables(rng, (3, False), (3, True), (6, False), (6, True))


MULTISTEP = exercise(
    "06.7 · A solver with a memory",
    sample_2m,
    Part("the first step, which has no past", 1, lambda rng: _tables(rng, (1, False))),
    Part("many steps, among the noise and to the data", 2, _many_steps),
    mistakes="""
    nothing is extrapolated: that is DDIM
        h / (2 * h_before) -> 0
    the two lengths are exchanged: the new step is measured by the old one
        h / (2 * h_before) -> h_before / (2 * h)
    the guess is followed to the end of the step; the best average is in its middle
        h / (2 * h_before) -> h / h_before
    the guess is followed backwards
        h / (2 * h_before) -> -h / (2 * h_before)
    one half is right only for steps of equal length in λ
        h / (2 * h_before) -> 0.5
    what is remembered is the guess itself; yours remembers the extrapolated one
        before, h_before = x0 -> before, h_before = ahead
    a last step whose σ is not 0 extrapolates like every other
        n > 0 -> 0 < n < len(alpha) - 2
    σ has a table of its own, and need not be √(1 − α²)
        return sample_2m(denoise, x, alpha, np.sqrt(1 - alpha**2))
    """,
)


# --- 06.8 -----------------------------------------------------------------------------------
DOUBLING = Written("06.8", "How many steps?", 2)
