"""Exercises of chapter 06, DDIM and fast solvers."""

from itertools import pairwise

import numpy as np

from diffusion_course.grading.answers.drawing import gaussian, images, normal, number
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
    section="2 · One network, many processes",
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
def ddim_step(v_hat, x_t, noise, angle_t, angle_s, eta):
    alpha_t, sigma_t = np.cos(angle_t), np.sin(angle_t)
    alpha_s, sigma_s = np.cos(angle_s), np.sin(angle_s)
    x0 = alpha_t * x_t - sigma_t * v_hat
    eps = sigma_t * x_t + alpha_t * v_hat
    ratio = (alpha_t * sigma_s / (sigma_t * alpha_s)) ** 2  # of the SNR at t to that at s
    variance = eta**2 * sigma_s**2 * (1 - ratio)
    direction = np.sqrt(sigma_s**2 - variance)
    return alpha_s * x0 + direction * eps + np.sqrt(variance) * noise


def _step(rng, shape, angle_t, angle_s, eta):
    return images(rng, *shape), images(rng, *shape), normal(rng, *shape), angle_t, angle_s, eta


def _rotations(rng):
    """Among the noise, from pure noise, and to the data."""
    low, high = number(rng, 0.3, 0.7), number(rng, 0.9, 1.4)
    for shape, ends in (((2, 4), (high, low)), ((3,), (np.pi / 2, high)), ((2, 4), (low, 0.0))):
        yield _step(rng, shape, *ends, 0.0)


def _steps_with_noise(rng):
    """η² is below σ_s², so that σ_s² − g, which is wrong, has a root; and a step to the data."""
    for shape in ((2, 4), (3,)):
        angle_s = number(rng, 0.8, 1.0)
        yield _step(rng, shape, angle_s + number(rng, 0.2, 0.45), angle_s, number(rng, 0.4, 0.7))
        # A short step: 1 − SNR_t/SNR_s is small, and nothing may be added to what is divided.
        yield _step(rng, shape, angle_s / 2 + number(rng, 0.008, 0.012), angle_s / 2, 0.9)
    yield _step(rng, (3,), number(rng, 0.4, 1.2), 0.0, 0.7)


STEP = exercise(
    "06.2 · A step for a network that predicts v",
    ddim_step,
    Part("without fresh noise, from pure noise and to the data too", 1, _rotations),
    Part("any η", 2, _steps_with_noise),
    section="3 · DDIM, written out",
    mistakes="""
    v̂ is not the noise: what v says about it is ε = σ_t·x_t + α_t·v
        sigma_t * x_t + alpha_t * v_hat -> v_hat
    the signs: v = α·ε − σ·x0, so that x0 has a minus before v, and ε a plus
        return ddim_step(-v_hat, x_t, noise, angle_t, angle_s, eta)
    v = α·ε − σ·x0: solved for x0 it has a minus before v
        alpha_t * x_t - sigma_t * v_hat -> alpha_t * x_t + sigma_t * v_hat
    α and σ are exchanged: α is the cosine of the angle, and σ its sine
        return ddim_step(v_hat, x_t, noise, np.pi / 2 - angle_t, np.pi / 2 - angle_s, eta)
    the direction term must shrink by what the fresh noise adds: c² + g² = σ_s²
        sigma_s**2 - variance -> sigma_s**2
    variances add up, standard deviations do not: σ_s − g leaves too little
        np.sqrt(sigma_s**2 - variance) -> sigma_s - np.sqrt(variance)
    the squares add up, c² + g² = σ_s²: g is not squared in yours
        sigma_s**2 - variance -> sigma_s**2 - np.sqrt(variance)
    the fresh noise is missing, and its place is kept free
        np.sqrt(variance) * noise -> 0
    fresh noise is multiplied by its standard deviation, not by its variance
        np.sqrt(variance) * noise -> variance * noise
    η multiplies the standard deviation; yours multiplies the variance
        eta**2 -> eta
    SNR is a ratio of variances: the quotient of the levels must be squared
        (sigma_t * alpha_s)) ** 2 -> (sigma_t * alpha_s))
    that is the fresh noise of a step that forgets x_t: the SNR at t is missing
        (1 - ratio) -> 1
    the guess is multiplied by the signal level of the wrong end of the step
        alpha_s * x0 -> alpha_t * x0
    the predicted noise and the fresh noise are exchanged
        direction * eps + np.sqrt(variance) * noise -> direction * noise + np.sqrt(variance) * eps
    """,
)


# --- 06.3 -----------------------------------------------------------------------------------
def invert(denoise, x, sigmas, refinements):
    for sigma_s, sigma_t in pairwise(sigmas):
        guess = x
        for _ in range(refinements + 1):
            eps = (guess - denoise(guess, 1.0, sigma_t)) / sigma_t
            guess = x + (sigma_t - sigma_s) * eps
        x = guess
    return x


def _climbs(rng, *walks):
    """Rising levels: from the data (0), or from a noisy state."""
    for shape, steps, refinements, from_data in walks:
        sigmas = np.cumsum(rng.uniform(0.2, 0.6, steps + 1))
        sigmas -= sigmas[0] * from_data
        yield gaussian(rng), images(rng, *shape), sigmas, refinements


def _one_step_up(rng):
    return _climbs(rng, ((5,), 1, 0, True), ((2, 3), 1, 0, False))


def _whole_way_up(rng):
    return _climbs(
        rng, ((5,), 5, 0, True), ((2, 3), 3, 1, True), ((5,), 4, 3, False), ((5,), 2, 30, True)
    )


INVERT = exercise(
    "06.3 · The whole way up",
    invert,
    Part("one step, one evaluation", 1, _one_step_up),
    Part("a grid, refined up to the exact inverse", 2, _whole_way_up),
    section="7 · Inversion: from a picture to its noise",
    mistakes="""
    the denoiser works at the upper end, and must be told the level there
        denoise(guess, 1.0, sigma_t) -> denoise(guess, 1.0, sigma_s)
    in these coordinates the signal level is 1 at every time
        denoise(guess, 1.0, sigma_t)
            -> denoise(guess, 1 / np.sqrt(1 + sigma_t**2), sigma_t / np.sqrt(1 + sigma_t**2))
    what is left without the guess is noise of size σ: divide by it
        )) / sigma_t -> ))
    the length of the step is the difference of the levels
        (sigma_t - sigma_s) * eps -> sigma_t * eps
    the sign: on the way up noise is added
        (sigma_t - sigma_s) -> (sigma_s - sigma_t)
    one evaluation too few: without refinements there is one, and each adds another
        refinements + 1 -> refinements
    one evaluation too many: without refinements there is one, and each adds another
        refinements + 1 -> refinements + 2
    a refinement evaluates where the last guess led, not at the beginning of the step again
        (guess - denoise(guess, -> (x - denoise(x,
    each refinement starts the step anew from its beginning; yours climbs on from the last guess
        x + (sigma_t -> guess + (sigma_t
    every step begins where the last one ended; yours begins at the data again
        x = guess ->
        return x -> return guess
    """,
)


# --- 06.4 -----------------------------------------------------------------------------------
def slerp(a, b, share):
    axes = tuple(range(1, a.ndim))
    lengths = [np.sqrt(np.sum(x**2, axis=axes, keepdims=True)) for x in (a, b)]
    cosine = np.sum(a * b, axis=axes, keepdims=True) / (lengths[0] * lengths[1])
    theta = np.arccos(cosine)
    return (np.sin((1 - share) * theta) * a + np.sin(share * theta) * b) / np.sin(theta)


def _pairs(rng, *shape, size=1.0):
    a = size * normal(rng, *shape, mean=0.1, std=1.7)
    b = size * normal(rng, *shape, mean=-0.2, std=1.2)
    return [(a.astype(np.float32), b.astype(np.float32), number(rng, 0.15, 0.4))]


def _batches(rng):
    """Noises as they are, and faint ones: nothing may be added to a length."""
    return _pairs(rng, 3, 2, 3, 1) + _pairs(rng, 3, 2, 3, 1, size=0.01)


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
    Part("a batch, where each pair has its own angle", 2, _batches),
    section="8 · Between two noises",
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
    near 0 an angle is its sine, but not here: divide by sin θ
        / np.sin(theta) -> / theta
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
    for count, (per_step, saved) in enumerate(costs, start=5):
        steps = (max(0, -saved) + np.cumsum(rng.integers(2, 9, count))).astype(np.float32)
        # The last solver diverges: its error grows with the steps.
        power = rng.uniform(0.8, 3.2) if count < 7 else -0.7
        errors = rng.uniform(0.2, 3) * steps**-power * np.exp(rng.normal(0, 0.3, count))
        yield steps, per_step, saved, errors.astype(np.float32)


ORDER = exercise(
    "06.5 · Order, at honest cost",
    fitted_order,
    Part("one evaluation per step", 1, lambda rng: _runs(rng, (1, 0))),
    Part("several, and some saved", 1, lambda rng: _runs(rng, (2, 1), (3, 2), (1, -9))),
    section="9 · Faster: better averages of ε",
    mistakes="""
    the order is minus the slope: it is positive where the error falls
        return -right
    count evaluations: so many in each step, less what is saved in the run; neither may be left out
        np.log(evaluations) -> np.log(steps)
    what is saved makes a run cheaper; yours becomes dearer by it
        - saved -> + saved
    a power law is a line only where both axes are logarithmic
        np.log(evaluations), np.log(errors) -> evaluations, errors
    the evaluations need a logarithm too
        np.log(evaluations) -> evaluations
    the slope between the two ends ignores all the runs in the middle
        np.log(evaluations), np.log(errors) -> np.log(evaluations[[0, -1]]), np.log(errors[[0, -1]])
    """,
)


# --- 06.6 -----------------------------------------------------------------------------------
def heun(denoise, x, sigmas):
    for sigma_t, sigma_s in pairwise(sigmas):
        slope = (x - denoise(x, 1.0, sigma_t)) / sigma_t
        ahead = x + (sigma_s - sigma_t) * slope
        if sigma_s > 0:  # at the data there is no noise left that could have a slope
            there = (ahead - denoise(ahead, 1.0, sigma_s)) / sigma_s
            ahead = x + (sigma_s - sigma_t) * (slope + there) / 2
        x = ahead
    return x


def _falls(rng, *walks):
    """Falling levels, to the data or to a level that is still noisy."""
    for shape, steps, to_data in walks:
        sigmas = np.cumsum(rng.uniform(0.2, 0.7, steps + 1))[::-1].copy()
        sigmas[-1] *= not to_data
        side = rng.permutation([1, -1])[0] if steps < 2 else (-1) ** steps  # of the data's mean
        yield gaussian(rng, mean=sorted((1.1 * side, 2.3 * side))), images(rng, *shape), sigmas


def _among_the_noise(rng):
    return _falls(rng, ((4,), 1, False), ((2, 3), 5, False))


def _to_the_data(rng):
    return _falls(rng, ((4,), 1, True), ((2, 3), 2, True), ((4,), 6, True))


BROKEN = exercise(
    "06.6 · This solver is broken",
    heun,
    Part("steps among the noise", 2, _among_the_noise),
    Part("to the data", 2, _to_the_data),
    section="9 · Faster: better averages of ε",
    mistakes="""
    a bug is left: the second slope is taken at the new place, but not at its level
        denoise(ahead, 1.0, sigma_s) -> denoise(ahead, 1.0, sigma_t)
    a bug is left: a step to σ = 0 has no second slope, and half of it is lost in yours
        if sigma_s > 0 -> if True
        denoise(ahead, 1.0, sigma_s)) / sigma_s
            -> denoise(ahead, 1.0, max(sigma_s, 1e-3))) / max(sigma_s, 1e-3)
    a bug is left: a step to σ = 0 ends at the denoiser's guess, without a correction
        if sigma_s > 0 -> if True
        denoise(ahead, 1.0, sigma_s)) / sigma_s
            -> denoise(ahead, 1.0, sigma_s)) / max(sigma_s, 1e-3)
    both bugs are still there
        if sigma_s > 0 -> if True
        denoise(ahead, 1.0, sigma_s)) / sigma_s
            -> denoise(ahead, 1.0, sigma_t)) / max(sigma_s, 1e-3)
    without a second slope it is Euler's method: of order one
        (slope + there) / 2 -> slope
    the mean of the two slopes is asked for; yours takes the second one alone
        (slope + there) / 2 -> there
    the mean of two slopes is half their sum
        (slope + there) / 2 -> (slope + there)
    the corrected step starts from x again, and not from where the first one led
        ahead = x + (sigma_s - sigma_t) * (slope + there) / 2
            -> ahead = ahead + (sigma_s - sigma_t) * (slope + there) / 2
    the second slope belongs to the new place; yours asks the denoiser at the old one
        denoise(ahead, 1.0, sigma_s) -> denoise(x, 1.0, sigma_s)
    a last step whose σ is not 0 is corrected like every other
        sigma_s > 0 -> sigma_s > sigmas[-1]
    """,
    library=("diffusion_course.grading.inputs.GaussianDenoiser",),
)


# --- 06.7 -----------------------------------------------------------------------------------
def multistep(denoise, x, sigmas, order):
    slopes, places = [], []
    for sigma_t, sigma_s in pairwise(sigmas):
        slopes.insert(0, (x - denoise(x, 1.0, sigma_t)) / sigma_t)
        places.insert(0, sigma_t)
        known = min(order, len(slopes))
        powers = np.arange(known)[:, None]
        # The weights that integrate each power below `known` exactly, from t to s.
        integrals = (sigma_s ** (powers + 1) - sigma_t ** (powers + 1)) / (powers + 1)
        weights = np.linalg.solve(np.array(places[:known]) ** powers, integrals)[:, 0]
        x = x + sum(w * slope for w, slope in zip(weights, slopes, strict=False))
    return x


_EQUAL = {1: (1,), 2: (3 / 2, -1 / 2), 3: (23 / 12, -16 / 12, 5 / 12),
          4: (55 / 24, -59 / 24, 37 / 24, -9 / 24)}  # fmt: skip


def _multisteps(rng, *walks):
    for shape, steps, order, to_data in walks:
        (walk,) = _falls(rng, (shape, steps, to_data))
        yield *walk, order


def _one_slope(rng):
    return _multisteps(rng, ((4,), 3, 1, False), ((2, 3), 4, 1, True), ((4,), 1, 3, False))


def _two_slopes(rng):
    return _multisteps(rng, ((4,), 2, 2, False), ((2, 3), 5, 2, True))


def _more_slopes(rng):
    return _multisteps(rng, ((4,), 3, 3, False), ((2, 3), 6, 3, True), ((4,), 7, 4, True))


MULTISTEP = exercise(
    "06.7 · A solver of any order",
    multistep,
    Part("order 1, and a first step", 1, _one_slope),
    Part("order 2", 1, _two_slopes),
    Part("orders 3 and 4", 2, _more_slopes),
    section="9 · Faster: better averages of ε",
    mistakes="""
    nothing is remembered: that is DDIM, whatever the order
        min(order, len(slopes)) -> 1
    those weights belong to steps of equal length
        weights = -> weights = (sigma_s - sigma_t) * np.array(_EQUAL[known]) #
    with fewer slopes than the order, use those that there are
        min(order, len(slopes)) -> order if len(slopes) >= order else 1
    the slopes that count are the latest; yours remembers the first ones
        slopes.insert(0, -> slopes.insert(len(slopes),
        places.insert(0, -> places.insert(len(places),
    that is a polynomial's value at the end of the step; its integral over the step is asked for
        (sigma_s ** (powers + 1) - sigma_t ** (powers + 1)) / (powers + 1)
            -> (sigma_s - sigma_t) * sigma_s**powers
    that is a polynomial's value at the middle of the step; its integral is exact for any order
        (sigma_s ** (powers + 1) - sigma_t ** (powers + 1)) / (powers + 1)
            -> (sigma_s - sigma_t) * ((sigma_s + sigma_t) / 2) ** powers
    the integral of a power has its exponent plus one below it
        ) / (powers + 1) -> )
    the order is the number of slopes; yours uses one more
        min(order, -> min(order + 1,
    the slope is the noise that the denoiser sees, (x − D)/σ
        (x - denoise(x, 1.0, sigma_t)) / sigma_t) -> denoise(x, 1.0, sigma_t))
    """,
)


# --- 06.8 -----------------------------------------------------------------------------------
DOUBLING = Written("06.8", "How many steps?", 2, section="5 · Twenty steps against a thousand")
