"""Exercises of chapter 03, DDPM."""

from __future__ import annotations

from functools import partial

import numpy as np

from diffusion_course.grading.exercise import Exercise, Part, Written
from diffusion_course.grading.inputs import GaussianDenoiser


def _images(rng, *shape, mean=0.6, std=1.7):
    return rng.normal(mean, std, shape).astype(np.float32)


def _noise(rng, *shape):
    return rng.normal(size=shape).astype(np.float32)


def _levels(rng, ratio):
    """ᾱ_t and ᾱ_s of two steps s < t whose ratio lies in a range."""
    abar_s = rng.uniform(0.4, 0.85)
    return float(abar_s * rng.uniform(*ratio)), float(abar_s)


# --- 03.1 -----------------------------------------------------------------------------------


def _posterior(
    x0,
    x_t,
    abar_t,
    abar_s,
    kept=lambda abar_t, abar_s: abar_t / abar_s,
    on_x0=lambda abar_t, abar_s: np.sqrt(abar_s),
    on_x_t=lambda abar_t, kept: np.sqrt(kept),
    variance=lambda added, abar_t, abar_s: added * (1 - abar_s) / (1 - abar_t),
):
    """Equation (2) for a step of any length; the last four arguments are ways to get it wrong."""
    kept = kept(abar_t, abar_s)  # of the variance of the signal, on the way from s to t
    mean = on_x0(abar_t, abar_s) * (1 - kept) * x0 + on_x_t(abar_t, kept) * (1 - abar_s) * x_t
    return mean / (1 - abar_t), variance(1 - kept, abar_t, abar_s)


# The ways that more than one exercise knows.
_NO_ROOT_ON_X0 = {"on_x0": lambda abar_t, abar_s: abar_s}
_NO_ROOT_ON_X_T = {"on_x_t": lambda abar_t, kept: kept}
_WRONG_END = {"on_x0": lambda abar_t, abar_s: np.sqrt(abar_t)}
_ALL_THE_NOISE = {"kept": lambda abar_t, abar_s: abar_t}
_OF_THE_STEP = {"variance": lambda added, abar_t, abar_s: added}
_PRESENT_AT_S = {"variance": lambda added, abar_t, abar_s: 1 - abar_s}


def _swapped(x0, x_t, abar_t, abar_s):
    return _posterior(x_t, x0, abar_t, abar_s)


def _a_standard_deviation(x0, x_t, abar_t, abar_s):
    mean, variance = _posterior(x0, x_t, abar_t, abar_s)
    return mean, np.sqrt(variance)


def _pairs(rng, ratio):
    return [(_images(rng, 2, 3), _images(rng, 2, 3), *_levels(rng, ratio)) for _ in range(2)]


def _to_the_data(rng):
    return [(_images(rng, 2, 3), _images(rng, 2, 3), float(rng.uniform(0.2, 0.9)), 1.0)]


POSTERIOR = Exercise(
    id="03.1",
    title="Bayes' rule for one step back",
    function="posterior",
    parts=(
        Part("neighbouring steps", 1, lambda rng: _pairs(rng, (0.9, 0.97))),
        Part("a long jump", 1, lambda rng: _pairs(rng, (0.05, 0.4))),
        Part("back to the data, ᾱ_s = 1", 1, _to_the_data),
    ),
    oracle=_posterior,
    mistakes={
        "the two factors are swapped: the nearer s is to the data, the more x0 counts": _swapped,
        "that is the variance of the step; knowing x0 as well leaves less doubt": (
            partial(_posterior, **_OF_THE_STEP)
        ),
        "that is the variance present at s; knowing x_t as well leaves less doubt": (
            partial(_posterior, **_PRESENT_AT_S)
        ),
        "the second value is the standard deviation; the variance is asked for": (
            _a_standard_deviation
        ),
        "ᾱ and its ratio belong to variances: what multiplies an image is a square root": (
            partial(_posterior, **_NO_ROOT_ON_X0, **_NO_ROOT_ON_X_T)
        ),
        "in the factor of x0 stands ᾱ_s, where its square root belongs": (
            partial(_posterior, **_NO_ROOT_ON_X0)
        ),
        "in the factor of x_t stands a share of the variance, where its square root belongs": (
            partial(_posterior, **_NO_ROOT_ON_X_T)
        ),
        "the factor of x0 holds the level of the wrong end of the step": (
            partial(_posterior, **_WRONG_END)
        ),
        "in the factor of x_t the step from s to t counts, not all the way from the data": (
            partial(_posterior, on_x_t=lambda abar_t, kept: np.sqrt(abar_t))
        ),
        "the noise between s and t is needed there, not all the noise since the data": (
            partial(_posterior, **_ALL_THE_NOISE)
        ),
        "ᾱ is a product over steps: what a step adds is not the difference of two of them": (
            partial(_posterior, kept=lambda abar_t, abar_s: 1 - (abar_s - abar_t))
        ),
    },
)


# --- 03.2 -----------------------------------------------------------------------------------


def _column(level, like):
    return np.reshape(level, (-1,) + (1,) * (like.ndim - 1))


def _target(x0, eps, alpha, sigma):
    return _column(alpha, eps) * eps - _column(sigma, x0) * x0


def _loss(output, x0, eps, alpha, sigma, of=lambda error: np.mean(error**2)):
    return of(output - _target(x0, eps, alpha, sigma))


def _loss_for(target):
    """Of a network that predicts something else."""
    return lambda output, *rest: np.mean((output - target(*rest)) ** 2)


def _loss_along(axis):
    """The loss with its levels along another axis than the first."""

    def wrong(output, x0, eps, alpha, sigma):
        shape = [1, 1, 1, 1]
        shape[axis] = -1
        levels = []
        for level in (alpha, sigma):
            if x0.shape[axis] not in (1, len(level)):  # as they would have to be to go through
                level = np.resize(level, x0.shape[axis])
            levels.append(level.reshape(shape))
        return np.mean((output - (levels[0] * eps - levels[1] * x0)) ** 2)

    return wrong


def _batches(rng, *shape):
    """Two, since a loss is a single number, and two mistakes can agree in it by chance."""
    for _ in range(2):
        alpha, sigma = (rng.uniform(0.2, 1.3, shape[0]).astype(np.float32) for _ in range(2))
        yield _images(rng, *shape), _images(rng, *shape), _noise(rng, *shape), alpha, sigma


LOSS = Exercise(
    id="03.2",
    title="The loss of a network that predicts v",
    function="training_loss",
    parts=(
        Part("one level for each image", 1, lambda rng: list(_batches(rng, 2, 4, 5, 1))),
        Part("as many images as rows and colours", 1, lambda rng: list(_batches(rng, 3, 3, 3, 3))),
    ),
    oracle=_loss,
    mistakes={
        "the target has the wrong sign": (
            lambda output, *rest: np.mean((output + _target(*rest)) ** 2)
        ),
        "v is a difference: the data are subtracted from the noise": (
            lambda output, x0, eps, alpha, sigma: _loss(output, -x0, eps, alpha, sigma)
        ),
        "the two levels are exchanged: the noise is multiplied by α, the data by σ": (
            lambda output, x0, eps, alpha, sigma: _loss(output, x0, eps, sigma, alpha)
        ),
        "that is the loss of a network that predicts the noise; this one predicts v": (
            _loss_for(lambda x0, eps, alpha, sigma: eps)
        ),
        "that is the loss of a network that predicts the data; this one predicts v": (
            _loss_for(lambda x0, eps, alpha, sigma: x0)
        ),
        "that is the loss of a network that predicts x_t, its own input; this one predicts v": (
            _loss_for(lambda x0, eps, alpha, sigma: -_target(eps, -x0, alpha, sigma))
        ),
        "all images are given the same mean levels: each has its own": (
            lambda output, x0, eps, alpha, sigma: _loss(
                output, x0, eps, alpha.mean(keepdims=True), sigma.mean(keepdims=True)
            )
        ),
        "the squares must be averaged over all pixels and images, not added up": (
            partial(_loss, of=lambda error: np.sum(error**2))
        ),
        "the squares must be averaged over the pixels as well as the images": (
            partial(_loss, of=lambda error: np.sum(error**2) / len(error))
        ),
        "the error must be squared": partial(_loss, of=lambda error: np.mean(np.abs(error))),
        "each error must be squared before the average, not the average": (
            partial(_loss, of=lambda error: np.mean(error) ** 2)
        ),
        "no root is taken: the loss is the mean of the squares": (
            partial(_loss, of=lambda error: np.sqrt(np.mean(error**2)))
        ),
    }
    | {
        f"the levels change from {name} to {name}: they are one number per image": (
            _loss_along(axis)
        )
        for axis, name in ((1, "row"), (2, "column"), (3, "colour"))
    },
)


# --- 03.3 -----------------------------------------------------------------------------------


def _step(x0_hat, x_t, noise, abar_t, abar_s, spread=np.sqrt, **wrong):
    mean, variance = _posterior(x0_hat, x_t, abar_t, abar_s, **wrong)
    return mean + spread(variance) * noise


def _step_of_ddim(x0_hat, x_t, noise, abar_t, abar_s):
    eps = (x_t - np.sqrt(abar_t) * x0_hat) / np.sqrt(1 - abar_t)
    return _step_with_new_noise(x0_hat, x_t, eps, abar_t, abar_s)


def _step_with_new_noise(x0_hat, x_t, noise, abar_t, abar_s):
    return np.sqrt(abar_s) * x0_hat + np.sqrt(1 - abar_s) * noise


def _step_inputs(rng, levels):
    return (_images(rng, 2, 4), _images(rng, 2, 4), _noise(rng, 2, 4), *levels)


STEP = Exercise(
    id="03.3",
    title="One ancestral step",
    function="ancestral_step",
    parts=(
        Part(
            "between two noisy levels",
            2,
            lambda rng: [_step_inputs(rng, _levels(rng, (0.3, 0.9))) for _ in range(2)],
        ),
        Part(
            "the last step adds no noise",
            1,
            lambda rng: [_step_inputs(rng, (float(rng.uniform(0.3, 0.9)), 1.0))],
        ),
    ),
    oracle=_step,
    mistakes={
        "noise is multiplied by a standard deviation, and the posterior gives a variance": (
            partial(_step, spread=lambda variance: variance)
        ),
        "that is the noise of the step itself; the posterior has less, and none at the end": (
            partial(_step, **_OF_THE_STEP)
        ),
        "without fresh noise the samples lose their spread": partial(_step, spread=lambda v: 0 * v),
        "that is the noise present at s, of which the mean already holds a part": (
            partial(_step, **_PRESENT_AT_S)
        ),
        "the factors of the guess and of x_t are swapped": (
            lambda x0_hat, x_t, *rest: _step(x_t, x0_hat, *rest)
        ),
        "ᾱ and its ratio belong to variances: what multiplies an image is a square root": (
            partial(_step, **_NO_ROOT_ON_X0, **_NO_ROOT_ON_X_T)
        ),
        "in the factor of the guess stands ᾱ_s, where its square root belongs": (
            partial(_step, **_NO_ROOT_ON_X0)
        ),
        "in the factor of x_t stands a share of the variance, where its square root belongs": (
            partial(_step, **_NO_ROOT_ON_X_T)
        ),
        "the factor of the guess holds the level of the wrong end of the step": (
            partial(_step, **_WRONG_END)
        ),
        "the share kept between s and t is a quotient; yours is ᾱ_t, kept since the data": (
            partial(_step, **_ALL_THE_NOISE)
        ),
        "that is a step of DDIM: it keeps the noise of x_t and adds none": _step_of_ddim,
        "the guess is noised anew: nothing of x_t is left, where the posterior keeps a part": (
            _step_with_new_noise
        ),
    },
)


# --- 03.4 -----------------------------------------------------------------------------------


def _warm(n, decay):
    return min(decay, (1 + n) / (10 + n))


def _average(start, params, decay, factor=_warm, first=0):
    for n, row in enumerate(params, start=first):
        d = factor(n, decay)
        start = d * start + (1 - d) * row
    return start


def _corrected(start, params, decay):
    return _average(start, params, decay) / (1 - decay ** len(params))


def _run(rng, steps, decay):
    start = _images(rng, 3, mean=-4.0)
    return [(start, _images(rng, steps, 3), float(rng.uniform(*decay)))]


EMA = Exercise(
    id="03.4",
    title="The average of the weights",
    function="ema",
    parts=(
        Part("the warm-up", 1, lambda rng: _run(rng, 5, (0.95, 0.999))),
        Part("after the warm-up", 1, lambda rng: _run(rng, 25, (0.3, 0.5))),
    ),
    oracle=_average,
    mistakes={
        "the shares are exchanged: d is what the average keeps": (
            partial(_average, factor=lambda n, decay: 1 - _warm(n, decay))
        ),
        "without the warm-up, or without its brackets, the average keeps its random start": (
            partial(_average, factor=lambda n, decay: decay)
        ),
        "(1 + n)/(10 + n) needs brackets below as well as above": (
            partial(_average, factor=lambda n, decay: min(decay, (1 + n) / 10 + n))
        ),
        "the counter is one ahead: the first step has n = 0": partial(_average, first=1),
        "the first row is taken as it is, but a tenth of the start must survive it": (
            partial(_average, first=-1)
        ),
        "the first row is left out of the warm-up: it is taken as it is": (
            lambda start, params, decay: _average(params[0], params[1:], decay, first=1)
        ),
        "d_n must not rise above the decay that was asked for": (
            partial(_average, factor=lambda n, decay: (1 + n) / (10 + n))
        ),
        "the last row is missing": (
            lambda start, params, decay: _average(start, params[:-1], decay)
        ),
        "the average begins as `start`; yours begins at 0": (
            lambda start, params, decay: _average(0 * start, params, decay)
        ),
        "no division at the end: the warm-up takes the place of such a correction": _corrected,
    },
)


# --- 03.5 -----------------------------------------------------------------------------------


def _weight(log_snr, gamma, kind, least=np.minimum, of="right"):
    snr = np.exp(log_snr)
    return least(snr, gamma) * _UNITS[of](snr)[kind]


# What turns the weight of a squared error of x0 into that of the kind, and ways to get it wrong.
_UNITS = {
    "right": lambda snr: {"x0": 1.0, "eps": 1 / snr, "v": 1 / (snr + 1)},
    "not squared": lambda snr: {"x0": 1.0, "eps": snr**-0.5, "v": (snr + 1) ** -0.5},
    "upside down": lambda snr: {"x0": 1.0, "eps": snr, "v": snr + 1},
    "α for σ": lambda snr: {"x0": 1.0, "eps": 1 / snr, "v": snr / (snr + 1)},
    "eps of v": lambda snr: {"x0": 1.0, "eps": 1 / snr, "v": 1 / snr + 1},
}


def _from_the_logarithm(log_snr, gamma, kind):
    return np.minimum(log_snr, gamma) * _UNITS["right"](log_snr)[kind]


def _cut_within(log_snr, gamma, kind):
    """With a factor made of the clipped ratio."""
    return _weight(np.minimum(log_snr, np.log(gamma)), gamma, kind)


def _weights_of(kind):
    """On both sides of ±log γ, and of γ itself, which one may compare with λ by mistake."""

    def cases(rng):
        gamma = rng.uniform(3, 4.5)
        low = rng.uniform((-4.5, -4.5, -1.5, -1.5), (-2, -2, 0.8, 0.8))
        high = rng.uniform(np.log(gamma) + 0.3, gamma - 0.3, 2)
        log_snr = rng.permutation([*low, *high, gamma + rng.uniform(0.4, 1.0)])
        return [(log_snr.astype(np.float32), float(gamma), kind)]

    return cases


MIN_SNR = Exercise(
    id="03.5",
    title="Min-SNR weights for every kind",
    function="min_snr_weight",
    parts=tuple(Part(f"kind {kind!r}", 1, _weights_of(kind)) for kind in ("x0", "eps", "v")),
    oracle=_weight,
    mistakes={
        "errors of eps and v are errors of x0 in another unit: each kind has a factor of its own": (
            lambda log_snr, gamma, kind: _weight(log_snr, gamma, "x0")
        ),
        "that is the weight for eps, which is wrong for the other kinds": (
            lambda log_snr, gamma, kind: _weight(log_snr, gamma, "eps")
        ),
        "the ratio itself is needed, not its logarithm": _from_the_logarithm,
        "the ratio must be cut off above γ, not below": partial(_weight, least=np.maximum),
        "γ has no effect: cut off the ratio before the factor of the kind, and not within it": (
            partial(_weight, least=lambda snr, gamma: snr)
        ),
        "the factor of the kind holds the whole ratio; only the weight of x0 is cut off": (
            _cut_within
        ),
        "γ limits the ratio, not its logarithm": (
            lambda log_snr, gamma, kind: _weight(log_snr, np.exp(gamma), kind)
        ),
        "the errors are squared, so their factors are squared too": (
            partial(_weight, of="not squared")
        ),
        "the factor of the kind is upside down": partial(_weight, of="upside down"),
        "x0 = α·x_t − σ·v: an error of v counts σ times, not α times": (
            partial(_weight, of="α for σ")
        ),
        "x0 = α·x_t − σ·v holds v itself: no α stands below": partial(_weight, of="eps of v"),
        "the ratio is upside down: a large λ means much signal": (
            lambda log_snr, gamma, kind: _weight(-log_snr, gamma, kind)
        ),
    },
)


# --- 03.6 -----------------------------------------------------------------------------------


def _sample(
    denoise,
    x,
    noises,
    abar,
    told=lambda abar_t, abar_s: (np.sqrt(abar_t), np.sqrt(1 - abar_t)),
    last=1,
    fresh=True,
    **wrong,
):
    """Ancestral sampling; the last arguments are ways to get it wrong."""
    for n in range(len(noises)):
        abar_t, abar_s = abar[n], abar[n + 1]
        x0 = denoise(x, *told(abar_t, abar_s))
        noise = noises[n if fresh else 0] * (last if n == len(noises) - 1 else 1)
        x = _step(x0, x, noise, abar_t, abar_s, **wrong)
    return x


def _sample_with(step):
    """A sampler that makes another step."""

    def wrong(denoise, x, noises, abar):
        for noise, abar_t, abar_s in zip(noises, abar[:-1], abar[1:], strict=True):
            x0 = denoise(x, np.sqrt(abar_t), np.sqrt(1 - abar_t))
            x = step(x0, x, noise, abar_t, abar_s)
        return x

    return wrong


def _runs(rng, steps):
    noisy = np.sort(rng.uniform(0.05, 0.9, steps))
    denoise = GaussianDenoiser(mean=float(rng.uniform(1, 2)), std=float(rng.uniform(0.4, 0.8)))
    return [(denoise, _images(rng, 4), _noise(rng, steps, 4), np.append(noisy, 1.0))]


SAMPLER = Exercise(
    id="03.6",
    title="This sampler is broken",
    function="sample",
    parts=(
        Part("the last step returns the denoiser's guess", 1, lambda rng: _runs(rng, 1)),
        Part("a whole run", 3, lambda rng: _runs(rng, 6)),
    ),
    oracle=_sample,
    mistakes={
        "one bug is left: noise is added that the posterior does not have, even in the last step": (
            partial(_sample, **_OF_THE_STEP)
        ),
        "one bug is left: the guess at x0 is multiplied by a level of the wrong end of the step": (
            partial(_sample, **_WRONG_END)
        ),
        "both bugs are still there": partial(_sample, **_OF_THE_STEP, **_WRONG_END),
        "the last step is mended, but in all the others the posterior has less noise too": (
            partial(_sample, **_OF_THE_STEP, last=0)
        ),
        "both bugs are still there, although the last step adds no noise any more": (
            partial(_sample, **_OF_THE_STEP, **_WRONG_END, last=0)
        ),
        "that is the noise present at s, of which the mean already holds a part": (
            partial(_sample, **_PRESENT_AT_S)
        ),
        "without fresh noise the samples lose their spread": partial(
            _sample, spread=lambda v: 0 * v
        ),
        "every step has a noise of its own; yours has the first in all of them": (
            partial(_sample, fresh=False)
        ),
        "noise is multiplied by a standard deviation, not by a variance": (
            partial(_sample, spread=lambda v: v)
        ),
        "the denoiser takes α and σ, which are square roots": (
            partial(_sample, told=lambda abar_t, abar_s: (abar_t, 1 - abar_t))
        ),
        "the denoiser works at x_t, and must be told the levels of t, not those of s": (
            partial(_sample, told=lambda abar_t, abar_s: (np.sqrt(abar_s), np.sqrt(1 - abar_s)))
        ),
        "the guess is noised anew: nothing of x_t is left, where the posterior keeps a part": (
            _sample_with(_step_with_new_noise)
        ),
        "that is DDIM: it keeps the noise of x_t where the posterior draws some afresh": (
            _sample_with(_step_of_ddim)
        ),
    },
)


# --- 03.7 -----------------------------------------------------------------------------------


def _snr(abar):
    return abar / (1 - abar)


def _squared(x0, x0_hat):
    return ((x0 - x0_hat) ** 2).reshape(len(x0), -1)


def _kl(x0, x0_hat, abar_t, abar_s):
    return (_snr(abar_s) - _snr(abar_t)) / 2 * _squared(x0, x0_hat).sum(1)


def _kl_by(divide):
    """Half the squared distance of the means, divided by something."""

    def wrong(x0, x0_hat, abar_t, abar_s):
        factor = np.sqrt(abar_s) * (1 - abar_t / abar_s) / (1 - abar_t)
        added = 1 - abar_t / abar_s
        variance = added * (1 - abar_s) / (1 - abar_t)
        return divide(factor, variance, added) / 2 * _squared(x0, x0_hat).sum(1)

    return wrong


def _guesses(rng):
    for shape in ((2, 3, 4, 1), (3, 5)):
        yield _images(rng, *shape), _images(rng, *shape), *_levels(rng, (0.3, 0.9))


KL = Exercise(
    id="03.7",
    title="What a wrong guess costs",
    function="kl_term",
    parts=(Part("images and vectors, any two levels", 3, lambda rng: list(_guesses(rng))),),
    oracle=_kl,
    mistakes={
        "a divergence adds up over the pixels of an image; yours is their mean": (
            lambda x0, x0_hat, abar_t, abar_s: (
                (_snr(abar_s) - _snr(abar_t)) / 2 * _squared(x0, x0_hat).mean(1)
            )
        ),
        "one half is missing: a Gaussian's exponent has a 2 below its variance": (
            lambda *arguments: 2 * _kl(*arguments)
        ),
        "that is the ratio at s alone; what counts is what the step from t to s brings": (
            lambda x0, x0_hat, abar_t, abar_s: _snr(abar_s) / 2 * _squared(x0, x0_hat).sum(1)
        ),
        "the two levels are exchanged, and a divergence is never negative": (
            lambda x0, x0_hat, abar_t, abar_s: _kl(x0, x0_hat, abar_s, abar_t)
        ),
        "both Gaussians have the same variance, so the difference of their means is squared": (
            lambda x0, x0_hat, abar_t, abar_s: (
                (_snr(abar_s) - _snr(abar_t)) / 2 * np.sqrt(_squared(x0, x0_hat)).sum(1)
            )
        ),
        "the distance is squared: no root is taken of the sum of squares": (
            lambda x0, x0_hat, abar_t, abar_s: (
                (_snr(abar_s) - _snr(abar_t)) / 2 * np.sqrt(_squared(x0, x0_hat).sum(1))
            )
        ),
        "the ratios themselves are subtracted, not their logarithms": (
            lambda x0, x0_hat, abar_t, abar_s: (
                np.log(_snr(abar_s) / _snr(abar_t)) / 2 * _squared(x0, x0_hat).sum(1)
            )
        ),
        "the quotient of the ratios prices an error of ε; an error of x0 costs their difference": (
            lambda x0, x0_hat, abar_t, abar_s: (
                (_snr(abar_s) / _snr(abar_t) - 1) / 2 * _squared(x0, x0_hat).sum(1)
            )
        ),
        "the guess reaches the mean through the factor of x0, and the distance is squared": (
            _kl_by(lambda factor, variance, added: factor / variance)
        ),
        "the means are nearer to each other than the guesses: the factor of x0 is missing": (
            _kl_by(lambda factor, variance, added: 1 / variance)
        ),
        "divided by the variance of the step; it is the posterior's that counts": (
            _kl_by(lambda factor, variance, added: factor**2 / added)
        ),
        "divided by a standard deviation, where a variance belongs": (
            _kl_by(lambda factor, variance, added: factor**2 / np.sqrt(variance))
        ),
    },
)


# --- 03.8 -----------------------------------------------------------------------------------

DEAD_INPUT = Written(id="03.8", title="A loss that falls", points=2)

EXERCISES = (POSTERIOR, LOSS, STEP, EMA, MIN_SNR, SAMPLER, KL, DEAD_INPUT)
