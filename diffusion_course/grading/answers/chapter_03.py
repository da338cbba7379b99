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


def _posterior(x0, x_t, abar_t, abar_s):
    kept = abar_t / abar_s  # of the variance of the signal, on the way from s to t
    on_x0 = np.sqrt(abar_s) * (1 - kept) / (1 - abar_t)
    on_x_t = np.sqrt(kept) * (1 - abar_s) / (1 - abar_t)
    return on_x0 * x0 + on_x_t * x_t, (1 - kept) * (1 - abar_s) / (1 - abar_t)


def _swapped(x0, x_t, abar_t, abar_s):
    return _posterior(x_t, x0, abar_t, abar_s)


def _of_the_step(x0, x_t, abar_t, abar_s):
    return _posterior(x0, x_t, abar_t, abar_s)[0], 1 - abar_t / abar_s


def _a_standard_deviation(x0, x_t, abar_t, abar_s):
    mean, variance = _posterior(x0, x_t, abar_t, abar_s)
    return mean, np.sqrt(variance)


def _without_roots(x0, x_t, abar_t, abar_s):
    kept = abar_t / abar_s
    mean = (abar_s * (1 - kept) * x0 + kept * (1 - abar_s) * x_t) / (1 - abar_t)
    return mean, _posterior(x0, x_t, abar_t, abar_s)[1]


def _of_neighbours(x0, x_t, abar_t, abar_s):
    """With 1 − ᾱ_t, the noise since the data, where the noise of the step belongs."""
    on_x0 = np.sqrt(abar_s) * (1 - abar_t) / (1 - abar_t)
    on_x_t = np.sqrt(abar_t) * (1 - abar_s) / (1 - abar_t)
    return on_x0 * x0 + on_x_t * x_t, 1 - abar_s


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
        "that is the variance of the step; knowing x0 as well leaves less doubt": _of_the_step,
        "the second value is the standard deviation; the variance is asked for": (
            _a_standard_deviation
        ),
        "ᾱ and its ratio belong to variances: what multiplies an image is a square root": (
            _without_roots
        ),
        "the noise between s and t is needed there, not all the noise since the data": (
            _of_neighbours
        ),
    },
)


# --- 03.2 -----------------------------------------------------------------------------------


def _column(level, like):
    return np.reshape(level, (-1,) + (1,) * (like.ndim - 1))


def _target(x0, eps, alpha, sigma):
    return _column(alpha, eps) * eps - _column(sigma, x0) * x0


def _loss(output, x0, eps, alpha, sigma):
    return np.mean((output - _target(x0, eps, alpha, sigma)) ** 2)


def _loss_along_channels(output, x0, eps, alpha, sigma):
    alpha, sigma = (np.resize(level, x0.shape[-1]) for level in (alpha, sigma))
    return np.mean((output - (alpha * eps - sigma * x0)) ** 2)


def _batches(rng, *shape):
    alpha, sigma = (rng.uniform(0.2, 1.3, shape[0]).astype(np.float32) for _ in range(2))
    return [(_images(rng, *shape), _images(rng, *shape), _noise(rng, *shape), alpha, sigma)]


LOSS = Exercise(
    id="03.2",
    title="The loss of a network that predicts v",
    function="training_loss",
    parts=(
        Part("one level for each image", 1, lambda rng: _batches(rng, 2, 4, 5, 1)),
        Part("as many images as rows and colours", 1, lambda rng: _batches(rng, 3, 3, 3, 3)),
    ),
    oracle=_loss,
    mistakes={
        "the target has the wrong sign": (
            lambda output, *rest: np.mean((output + _target(*rest)) ** 2)
        ),
        "the two levels are exchanged: the noise is multiplied by α, the data by σ": (
            lambda output, x0, eps, alpha, sigma: _loss(output, x0, eps, sigma, alpha)
        ),
        "that is the loss of a network that predicts the noise; this one predicts v": (
            lambda output, x0, eps, alpha, sigma: np.mean((output - eps) ** 2)
        ),
        "the squares must be averaged over all pixels and images, not added up": (
            lambda output, *rest: np.sum((output - _target(*rest)) ** 2)
        ),
        "the error must be squared": lambda output, *rest: np.mean(np.abs(output - _target(*rest))),
        "α and σ are one number per image: they must multiply whole images": _loss_along_channels,
    },
)


# --- 03.3 -----------------------------------------------------------------------------------


def _step(x0_hat, x_t, noise, abar_t, abar_s, spread=np.sqrt):
    mean, variance = _posterior(x0_hat, x_t, abar_t, abar_s)
    return mean + spread(variance) * noise


def _step_with_all_its_noise(x0_hat, x_t, noise, abar_t, abar_s):
    mean, _ = _posterior(x0_hat, x_t, abar_t, abar_s)
    return mean + np.sqrt(1 - abar_t / abar_s) * noise


def _step_with_the_noise_present(x0_hat, x_t, noise, abar_t, abar_s):
    mean, _ = _posterior(x0_hat, x_t, abar_t, abar_s)
    return mean + np.sqrt(1 - abar_s) * noise


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
            _step_with_all_its_noise
        ),
        "without fresh noise the samples lose their spread": partial(_step, spread=lambda v: 0 * v),
        "that is the noise present at s, of which the mean already holds a part": (
            _step_with_the_noise_present
        ),
    },
)


# --- 03.4 -----------------------------------------------------------------------------------


def _average(start, params, decay, warmed=True, first=0, exchanged=False):
    for n, row in enumerate(params, start=first):
        d = min(decay, (1 + n) / (10 + n)) if warmed else decay
        d = 1 - d if exchanged else d
        start = d * start + (1 - d) * row
    return start


def _never_capped(start, params, decay):
    return _average(start, params, 1.0)


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
        "the shares are exchanged: d is what the average keeps": partial(_average, exchanged=True),
        "without the warm-up the average holds on to its random start": (
            partial(_average, warmed=False)
        ),
        "the counter is one ahead: the first step has n = 0": partial(_average, first=1),
        "d_n must not rise above the decay that was asked for": _never_capped,
    },
)


# --- 03.5 -----------------------------------------------------------------------------------


def _weight(log_snr, gamma, kind, least=np.minimum):
    snr = np.exp(log_snr)
    return least(snr, gamma) / {"x0": 1.0, "eps": snr, "v": snr + 1}[kind]


def _from_the_logarithm(log_snr, gamma, kind):
    return np.minimum(log_snr, gamma) / {"x0": 1.0, "eps": log_snr, "v": log_snr + 1}[kind]


def _weights_of(kind):
    def cases(rng):
        return [(rng.uniform(-4.5, 5.5, 7).astype(np.float32), float(rng.uniform(3, 8)), kind)]

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
    },
)


# --- 03.6 -----------------------------------------------------------------------------------


def _sample(denoise, x, noises, abar, root=False, wide=False, level=1, spread=np.sqrt):
    """Ancestral sampling; the other arguments are ways to get it wrong."""
    for t, noise in enumerate(noises):
        seen, s = abar[t], t + 1
        pair = (seen, 1 - seen) if root else (np.sqrt(seen), np.sqrt(1 - seen))
        x0 = denoise(x, *pair)
        kept = abar[t] / abar[s]
        on_x0 = np.sqrt(abar[t + level]) * (1 - kept) / (1 - abar[t])
        on_x_t = np.sqrt(kept) * (1 - abar[s]) / (1 - abar[t])
        variance = (1 - kept) * (1 if wide else (1 - abar[s]) / (1 - abar[t]))
        x = on_x0 * x0 + on_x_t * x + spread(variance) * noise
    return x


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
            partial(_sample, wide=True)
        ),
        "one bug is left: the guess at x0 is multiplied by a level of the wrong end of the step": (
            partial(_sample, level=0)
        ),
        "both bugs are still there": partial(_sample, wide=True, level=0),
        "without fresh noise the samples lose their spread": partial(
            _sample, spread=lambda v: 0 * v
        ),
        "noise is multiplied by a standard deviation, not by a variance": (
            partial(_sample, spread=lambda v: v)
        ),
        "the denoiser takes α and σ, which are square roots": partial(_sample, root=True),
    },
)


# --- 03.7 -----------------------------------------------------------------------------------


def _snr(abar):
    return abar / (1 - abar)


def _squared(x0, x0_hat):
    return ((x0 - x0_hat) ** 2).reshape(len(x0), -1)


def _kl(x0, x0_hat, abar_t, abar_s):
    return (_snr(abar_s) - _snr(abar_t)) / 2 * _squared(x0, x0_hat).sum(1)


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
    },
)


# --- 03.8 -----------------------------------------------------------------------------------

DEAD_INPUT = Written(id="03.8", title="A loss that falls", points=2)

EXERCISES = (POSTERIOR, LOSS, STEP, EMA, MIN_SNR, SAMPLER, KL, DEAD_INPUT)
