"""Exercises of chapter 06, DDIM and fast solvers."""

from __future__ import annotations

from functools import partial

import numpy as np

from diffusion_course.grading.exercise import Exercise, Part, Written
from diffusion_course.grading.inputs import GaussianDenoiser


def _images(rng, *shape, mean=0.6, std=1.7):
    return rng.normal(mean, std, shape).astype(np.float32)


def _noise(rng, *shape):
    return rng.normal(size=shape).astype(np.float32)


def _levels(rng, low=0.4, high=0.85):
    """ᾱ_t and ᾱ_s of a long step, s < t; ᾱ_s is between `low` and `high`."""
    abar_s = rng.uniform(low, high)
    return float(abar_s * rng.uniform(0.3, 0.8)), float(abar_s)


def _grid(rng, steps):
    """ᾱ of a strided grid, from noise towards the data."""
    return np.sort(rng.uniform(0.05, 0.95, steps + 1))


def _gaussian(rng):
    return GaussianDenoiser(float(rng.uniform(1.1, 2.3)), float(rng.uniform(0.4, 0.8)))


# --- 06.1 -----------------------------------------------------------------------------------


def _variance(abar_t, abar_s):
    """Of DDPM's posterior, for any two levels."""
    return (1 - abar_t / abar_s) * (1 - abar_s) / (1 - abar_t)


def _fresh(abar, eta):
    return eta * np.sqrt(_variance(abar[:-1], abar[1:]))


FRESH = Exercise(
    id="06.1",
    title="How much fresh noise",
    function="fresh_noise",
    parts=(
        Part("η = 1 on strided grids", 1, lambda rng: [(_grid(rng, n), 1.0) for n in (1, 7)]),
        Part(
            "any η, and none in a step to the data",
            1,
            lambda rng: [(np.append(_grid(rng, 4), 1.0), float(rng.uniform(0.2, 0.7)))],
        ),
    ),
    oracle=_fresh,
    mistakes={
        "that is a variance: what multiplies noise is a standard deviation": (
            lambda abar, eta: eta**2 * _variance(abar[:-1], abar[1:])
        ),
        "η multiplies the standard deviation; yours multiplies the variance": (
            lambda abar, eta: np.sqrt(eta * _variance(abar[:-1], abar[1:]))
        ),
        "that is the noise of the step itself; DDPM's posterior has less, and none at the end": (
            lambda abar, eta: eta * np.sqrt(1 - abar[:-1] / abar[1:])
        ),
        "that is the noise present at s, not the part of it that is new": (
            lambda abar, eta: eta * np.sqrt(1 - abar[1:])
        ),
        "the quotient of the noise levels is upside down": (
            lambda abar, eta: (
                eta * np.sqrt((1 - abar[:-1] / abar[1:]) * (1 - abar[:-1]) / (1 - abar[1:]))
            )
        ),
        "η is missing": lambda abar, eta: _fresh(abar, 1.0),
        "the root of a negative number is nan: are t and s exchanged? ᾱ grows along the table": (
            lambda abar, eta: eta * np.sqrt(_variance(abar[1:], abar[:-1]))
        ),
    },
)


# --- 06.2 -----------------------------------------------------------------------------------


# The factor of the predicted noise in equation (3), and ways to get it wrong.
_DIRECTIONS = {
    "right": lambda sigma, g, eta: np.sqrt(sigma**2 - g**2),
    "whole": lambda sigma, g, eta: sigma,
    "difference": lambda sigma, g, eta: sigma - g,
    "g not squared": lambda sigma, g, eta: np.sqrt(sigma**2 - g),
    "share": lambda sigma, g, eta: sigma * (1 - eta),
}


def _step(
    x0_hat, x_t, noise, abar_t, abar_s, eta, direction="right", added=1.0, signal=None, divided=1
):
    """Equation (3); the other arguments are ways to get it wrong."""
    eps = (x_t - np.sqrt(abar_t) * x0_hat) / np.sqrt(1 - abar_t) ** divided
    g = eta * np.sqrt(_variance(abar_t, abar_s))
    factor = _DIRECTIONS[direction](np.sqrt(1 - abar_s), g, eta)
    x0_share = np.sqrt(abar_s) if signal is None else signal(abar_t, abar_s)
    return x0_share * x0_hat + factor * eps + added * g * noise


def _step_by_a_variance(x0_hat, x_t, noise, abar_t, abar_s, eta):
    variance = eta**2 * _variance(abar_t, abar_s)
    return _step(x0_hat, x_t, np.sqrt(variance) * noise, abar_t, abar_s, eta)


def _noises_exchanged(x0_hat, x_t, noise, abar_t, abar_s, eta):
    eps = (x_t - np.sqrt(abar_t) * x0_hat) / np.sqrt(1 - abar_t)
    rebuilt = np.sqrt(abar_t) * x0_hat + np.sqrt(1 - abar_t) * noise
    return _step(x0_hat, rebuilt, eps, abar_t, abar_s, eta)


def _step_inputs(rng, eta, levels):
    return _images(rng, 2, 4), _images(rng, 2, 4), _noise(rng, 2, 4), *levels, eta


def _steps_with_noise(rng):
    """η² is below 1 − ᾱ_s, so that 1 − ᾱ_s − g, which is wrong, has a root."""
    for _ in range(2):
        yield _step_inputs(rng, float(rng.uniform(0.4, 0.7)), _levels(rng, 0.3, 0.5))


STEP = Exercise(
    id="06.2",
    title="One step of DDIM",
    function="ddim_step",
    parts=(
        Part(
            "without fresh noise",
            1,
            lambda rng: [_step_inputs(rng, 0.0, _levels(rng)) for _ in range(2)],
        ),
        Part("any η", 1, lambda rng: list(_steps_with_noise(rng))),
        Part(
            "the last step returns the guess",
            1,
            lambda rng: [_step_inputs(rng, 0.7, (float(rng.uniform(0.3, 0.9)), 1.0))],
        ),
    ),
    oracle=_step,
    mistakes={
        "the direction term must shrink by what the fresh noise adds: c² + g² = σ_s²": (
            partial(_step, direction="whole")
        ),
        "variances add up, standard deviations do not: σ_s − g leaves too little": (
            partial(_step, direction="difference")
        ),
        "the squares add up, c² + g² = σ_s²: g is not squared in yours": (
            partial(_step, direction="g not squared")
        ),
        "the fresh noise is missing, and its place is kept free": partial(_step, added=0.0),
        "fresh noise is multiplied by its standard deviation, not by its variance": (
            _step_by_a_variance
        ),
        "the guess is multiplied by a level of the wrong end of the step": (
            partial(_step, signal=lambda abar_t, abar_s: np.sqrt(abar_t))
        ),
        "the guess is multiplied by ᾱ; the signal level is its square root": (
            partial(_step, signal=lambda abar_t, abar_s: abar_s)
        ),
        "what is left of x_t without the guess is noise of size σ_t: divide by it": (
            partial(_step, divided=0)
        ),
        "what is left of x_t without the guess is divided by σ_t; yours by its square": (
            partial(_step, divided=2)
        ),
        "the predicted noise and the fresh noise are exchanged": _noises_exchanged,
    },
)


# --- 06.3 -----------------------------------------------------------------------------------


def _invert(
    denoise, x_s, abar_t, abar_s, refinements, told="t", split="t", short=0, again=True, drift=False
):
    """DDIM's step upwards; the other arguments are ways to get it wrong.

    The denoiser is told the levels `told`; with the levels `split`, ε is computed from its answer.
    """
    alpha_t, sigma_t = np.sqrt(abar_t), np.sqrt(1 - abar_t)
    alpha_s, sigma_s = np.sqrt(abar_s), np.sqrt(1 - abar_s)
    levels = {"t": (alpha_t, sigma_t), "s": (alpha_s, sigma_s), "t²": (abar_t, 1 - abar_t)}
    alpha, sigma = levels[split]
    guess = x_s
    for _ in range(refinements + 1 - short):
        at = guess if again else x_s
        eps = (at - alpha * denoise(at, *levels[told])) / sigma
        base = guess if drift else x_s
        guess = alpha_t * (base - sigma_s * eps) / alpha_s + sigma_t * eps
    return guess


def _climbs(rng, refinements):
    return [(_gaussian(rng), _images(rng, 5), *_levels(rng), n) for n in refinements]


INVERT = Exercise(
    id="06.3",
    title="A step up",
    function="invert_step",
    parts=(
        Part("one evaluation", 1, lambda rng: _climbs(rng, (0, 0))),
        Part("refined, up to the exact inverse", 2, lambda rng: _climbs(rng, (1, 4, 30))),
    ),
    oracle=_invert,
    mistakes={
        "the step's noise belongs to its upper end: evaluate at the levels of t": (
            partial(_invert, told="s", split="s")
        ),
        "that is x_s again: no step was made, or x_t was rebuilt from D's guess and noise at t": (
            lambda denoise, x_s, abar_t, abar_s, refinements: x_s
        ),
        "one evaluation too few: without refinements there is one, and each adds another": (
            partial(_invert, short=1)
        ),
        "one evaluation too many: without refinements there is one, and each adds another": (
            partial(_invert, short=-1)
        ),
        "the denoiser works at x_t, and must be told the levels of t, not those of s": (
            partial(_invert, told="s")
        ),
        "the denoiser is told α and σ; yours is told their squares": partial(_invert, told="t²"),
        "a refinement evaluates where the last guess led, not at x_s again": (
            partial(_invert, again=False)
        ),
        "each refinement starts the step anew from x_s; yours climbs on from the last guess": (
            partial(_invert, drift=True)
        ),
        "that is the way down: the levels of the two ends are exchanged": (
            lambda denoise, x_s, abar_t, abar_s, refinements: _invert(
                denoise, x_s, abar_s, abar_t, refinements
            )
        ),
    },
)


# --- 06.4 -----------------------------------------------------------------------------------


def _slerp(a, b, share, whole=False, unit=False, divided=True, angle=np.arccos):
    """Each example along its own arc; the other arguments are ways to get it wrong."""
    axes = tuple(range(0 if whole else 1, a.ndim))
    lengths = [np.sqrt(np.sum(x**2, axis=axes, keepdims=True)) for x in (a, b)]
    theta = angle(np.sum(a * b, axis=axes, keepdims=True) / (lengths[0] * lengths[1]))
    if unit:
        a, b = a / lengths[0], b / lengths[1]
    mix = np.sin((1 - share) * theta) * a + np.sin(share * theta) * b
    return mix / np.sin(theta) if divided else mix


def _pairs(rng, *shape):
    a = _images(rng, *shape, mean=0.1)
    return [(a, _images(rng, *shape, mean=-0.2, std=1.2), float(rng.uniform(0.15, 0.4)))]


def _oblique_pair(rng):
    """At about 50°: where the angle is near 90°, its cosine and its arc sine are both near 0."""
    ((a, b, share),) = _pairs(rng, 1, 9)
    across = b - a * np.sum(a * b) / np.sum(a**2)
    across *= np.linalg.norm(a) / np.linalg.norm(across)
    theta, length = np.radians(rng.uniform(46, 54)), rng.uniform(0.5, 0.8)
    b = length * (np.cos(theta) * a + np.sin(theta) * across)
    return [(a, b.astype(np.float32), share)]


SLERP = Exercise(
    id="06.4",
    title="Between two noises",
    function="slerp",
    parts=(
        Part("one pair", 1, _oblique_pair),
        Part("a batch, where each pair has its own angle", 2, lambda rng: _pairs(rng, 3, 2, 3, 1)),
    ),
    oracle=_slerp,
    mistakes={
        "that is the straight line, whose middle is too short for noise": (
            lambda a, b, share: (1 - share) * a + share * b
        ),
        "each example has an angle of its own; yours is one for the whole batch": (
            partial(_slerp, whole=True)
        ),
        "the two shares are exchanged: at 0 the result is a": (
            lambda a, b, share: _slerp(b, a, share)
        ),
        "only the angle needs unit vectors: a and b keep their lengths": partial(_slerp, unit=True),
        "the division by sin θ is missing": partial(_slerp, divided=False),
        "what you call θ is still the cosine of the angle": partial(_slerp, angle=lambda c: c),
        "the product of unit vectors is the cosine of their angle, not its sine": (
            partial(_slerp, angle=np.arcsin)
        ),
    },
)


# --- 06.5 -----------------------------------------------------------------------------------


def _slope(x, y):
    return -np.polyfit(x, y, 1)[0]


def _order(steps, per_step, saved, errors):
    return _slope(np.log(per_step * steps - saved), np.log(errors))


def _ends_only(steps, per_step, saved, errors):
    cost = np.log(per_step * steps - saved)
    return -(np.log(errors[-1]) - np.log(errors[0])) / (cost[-1] - cost[0])


def _runs(rng, per_step, saved):
    """More steps than there are extra evaluations, which one may subtract by mistake."""
    steps = (max(0, -saved) + np.cumsum(rng.integers(2, 9, 6))).astype(np.float32)
    power = rng.uniform(0.8, 3.2)
    errors = rng.uniform(0.2, 3) * steps**-power * np.exp(rng.normal(0, 0.3, 6))
    return [(steps, per_step, saved, errors.astype(np.float32))]


ORDER = Exercise(
    id="06.5",
    title="Order, at honest cost",
    function="fitted_order",
    parts=(
        Part("one evaluation per step", 1, lambda rng: _runs(rng, 1, 0)),
        Part(
            "several, and some saved",
            1,
            lambda rng: [*_runs(rng, 2, 1), *_runs(rng, 3, 2), *_runs(rng, 1, -9)],
        ),
    ),
    oracle=_order,
    mistakes={
        "an order is positive: it is minus the slope": lambda *a: -_order(*a),
        "count evaluations, not steps": (
            lambda steps, per_step, saved, errors: _slope(np.log(steps), np.log(errors))
        ),
        "what is saved makes a run cheaper; yours becomes dearer by it": (
            lambda steps, per_step, saved, errors: _order(steps, per_step, -saved, errors)
        ),
        "a power law is a line only where both axes are logarithmic": (
            lambda steps, per_step, saved, errors: _slope(per_step * steps - saved, errors)
        ),
        "the evaluations need a logarithm too": (
            lambda steps, per_step, saved, errors: _slope(per_step * steps - saved, np.log(errors))
        ),
        "the slope between the two ends ignores all the runs in the middle": _ends_only,
    },
)


# --- 06.6 -----------------------------------------------------------------------------------


def _sample(denoise, x, noises, abar, eta, direction="right", end=None, added=1.0):
    """DDIM from a table without the data's level; the other arguments are ways to get it wrong."""
    levels = np.append(abar, abar[-1] if end == "stays" else 1.0)
    for noise, abar_t, abar_s in zip(noises, levels[:-1], levels[1:], strict=True):
        x0 = denoise(x, np.sqrt(abar_t), np.sqrt(1 - abar_t))
        x = _step(x0, x, noise, abar_t, abar_s, eta, direction, added)
    return x


def _walks(rng, steps):
    abar = np.sort(rng.uniform(0.05, 0.6, steps))
    eta = float(rng.uniform(0.35, 0.6))  # σ² − g, which is wrong, must not become negative
    return [(_gaussian(rng), _images(rng, 4), _noise(rng, steps, 4), abar, eta)]


BROKEN = Exercise(
    id="06.6",
    title="This sampler is broken",
    function="sample",
    parts=(
        Part("a single step ends at the data", 1, lambda rng: _walks(rng, 1)),
        Part("a whole run", 3, lambda rng: _walks(rng, 6)),
    ),
    oracle=_sample,
    mistakes={
        # First, since with a single step there is no fresh noise and no other bug to be seen.
        "a bug is left: the last step does not reach the data": partial(_sample, end="stays"),
        "both bugs are still there": partial(_sample, direction="whole", end="stays"),
        "a bug is left: the fresh noise comes on top of noise that is complete already": (
            partial(_sample, direction="whole")
        ),
        "variances add up, standard deviations do not: σ_s − g leaves too little": (
            partial(_sample, direction="difference")
        ),
        "how much old noise is left depends on g: σ_s·(1 − η) does not make up for it": (
            partial(_sample, direction="share")
        ),
        "the squares of the two factors add up to σ_s²: g is not squared in yours": (
            partial(_sample, direction="g not squared")
        ),
        "the fresh noise is gone; the bug was elsewhere": partial(_sample, added=0.0),
    },
)


# --- 06.7 -----------------------------------------------------------------------------------


def _multistep(
    denoise, x, alpha, sigma, share=lambda h, before: h / (2 * before), keeps="x0", stops=False
):
    """DPM-Solver++(2M); `share` of the last change of x0 is extrapolated.

    Two ways to get it wrong: to keep what was extrapolated; and to stop with it in the last step.
    """
    with np.errstate(divide="ignore"):  # infinite at the data, and not used there
        lam = np.log(alpha) - np.log(sigma)
    past = None
    for n in range(len(alpha) - 1):
        x0 = ahead = denoise(x, alpha[n], sigma[n])
        if n > 0 and sigma[n + 1] > 0 and not (stops and n == len(alpha) - 2):
            ahead = x0 + share(lam[n + 1] - lam[n], lam[n] - lam[n - 1]) * (x0 - past)
        ratio = sigma[n + 1] / sigma[n]
        x = ratio * x + (alpha[n + 1] - alpha[n] * ratio) * ahead
        past = x0 if keeps == "x0" else ahead
    return x


def _tables(rng, steps, to_data):
    alpha = np.sort(rng.uniform(0.15, 0.9, steps + 1))
    sigma = np.sort(rng.uniform(0.3, 1.4, steps + 1))[::-1].copy()
    if to_data:
        alpha[-1], sigma[-1] = 1, 0
    return _gaussian(rng), _images(rng, 4), alpha, sigma


MULTISTEP = Exercise(
    id="06.7",
    title="A solver with a memory",
    function="sample_2m",
    parts=(
        Part("the first step, which has no past", 1, lambda rng: [_tables(rng, 1, False)]),
        Part(
            "many steps, among the noise and to the data",
            2,
            lambda rng: [_tables(rng, n, to_data) for n in (3, 6) for to_data in (False, True)],
        ),
    ),
    oracle=_multistep,
    mistakes={
        "nothing is extrapolated: that is DDIM": partial(_multistep, share=lambda h, before: 0.0),
        "the two lengths are exchanged: the new step is measured by the old one": (
            partial(_multistep, share=lambda h, before: before / (2 * h))
        ),
        "the guess is followed to the end of the step; the best average is in its middle": (
            partial(_multistep, share=lambda h, before: h / before)
        ),
        "the guess is followed backwards": (
            partial(_multistep, share=lambda h, before: -h / (2 * before))
        ),
        "one half is right only for steps of equal length in λ": (
            partial(_multistep, share=lambda h, before: 0.5)
        ),
        "what is remembered is the guess itself; yours remembers the extrapolated one": (
            partial(_multistep, keeps="ahead")
        ),
        "a last step whose σ is not 0 extrapolates like every other": (
            partial(_multistep, stops=True)
        ),
        "σ has a table of its own, and need not be √(1 − α²)": (
            lambda denoise, x, alpha, sigma: _multistep(denoise, x, alpha, np.sqrt(1 - alpha**2))
        ),
    },
)


# --- 06.8 -----------------------------------------------------------------------------------

DOUBLING = Written(id="06.8", title="How many steps?", points=2)

EXERCISES = (FRESH, STEP, INVERT, SLERP, ORDER, BROKEN, MULTISTEP, DOUBLING)
