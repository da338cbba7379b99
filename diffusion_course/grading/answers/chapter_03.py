"""Exercises of chapter 03, DDPM."""

import numpy as np

from diffusion_course.grading.answers.drawing import gaussian, images, levels, normal, number
from diffusion_course.grading.answers.writing import along, exercise
from diffusion_course.grading.exercise import Part, Written


# --- 03.1 -----------------------------------------------------------------------------------
def posterior(x0, x_t, abar_t, abar_s):
    """Equation (2) for a step of any length."""
    kept = abar_t / abar_s  # of the variance of the signal, on the way from s to t
    on_x0 = np.sqrt(abar_s) * (1 - kept) / (1 - abar_t)
    on_x_t = np.sqrt(kept) * (1 - abar_s) / (1 - abar_t)
    variance = (1 - kept) * (1 - abar_s) / (1 - abar_t)
    return on_x0 * x0 + on_x_t * x_t, variance


def _pair(rng, shape, abar_t, abar_s):
    return images(rng, *shape), images(rng, *shape), abar_t, abar_s


def _pairs(rng, ratio):
    return [_pair(rng, shape, *levels(rng, ratio)) for shape in ((2, 3), (4,))]


def _and_to_the_data(rng):
    """A step among the noise as well: where x0 is the mean, a formula isn't needed."""
    yield _pair(rng, (3, 2), *levels(rng, (0.4, 0.9)))
    yield _pair(rng, (2, 2, 1), number(rng, 0.2, 0.9), 1.0)


POSTERIOR = exercise(
    "03.1 · Bayes' rule for one step back",
    posterior,
    Part("neighbouring steps", 1, lambda rng: _pairs(rng, (0.9, 0.97))),
    Part("a long jump", 1, lambda rng: _pairs(rng, (0.05, 0.4))),
    Part("any step, and back to the data, ᾱ_s = 1", 1, _and_to_the_data),
    section="3 · Sampling: many small steps back",
    mistakes="""
    the two factors are swapped: the nearer s is to the data, the more x0 counts
        return posterior(x_t, x0, abar_t, abar_s)
    that is the variance of the step; knowing x0 as well leaves less doubt
        x_t, variance -> x_t, 1 - kept
    that is the variance present at s; knowing x_t as well leaves less doubt
        x_t, variance -> x_t, 1 - abar_s
    the second value is the standard deviation; the variance is asked for
        x_t, variance -> x_t, np.sqrt(variance)
    ᾱ and its ratio belong to variances: what multiplies an image is a square root
        np.sqrt(abar_s) -> abar_s
        np.sqrt(kept) -> kept
    in the factor of x0 stands ᾱ_s, where its square root belongs
        np.sqrt(abar_s) -> abar_s
    in the factor of x_t stands a share of the variance, where its square root belongs
        np.sqrt(kept) -> kept
    the factor of x0 holds the level of the wrong end of the step
        np.sqrt(abar_s) -> np.sqrt(abar_t)
    in the factor of x_t the step from s to t counts, not all the way from the data
        np.sqrt(kept) -> np.sqrt(abar_t)
    the noise between s and t is needed there, not all the noise since the data
        abar_t / abar_s -> abar_t
    ᾱ is a product over steps: what a step adds is not the difference of two of them
        abar_t / abar_s -> 1 - (abar_s - abar_t)
    a step keeps a share below 1: your quotient is upside down
        abar_t / abar_s -> abar_s / abar_t
    a step keeps a share of the variance; yours is its root
        abar_t / abar_s -> np.sqrt(abar_t / abar_s)
    both factors are divided by the noise at t: without it they don't add up to the mean
        on_x0 * x0 + on_x_t * x_t -> (on_x0 * x0 + on_x_t * x_t) * (1 - abar_t)
    that is the mean at s given x0 alone; x_t says something too
        on_x0 * x0 + on_x_t * x_t -> np.sqrt(abar_s) * x0
    the mean is a sum of both: neither pulls the other way
        x0 + on_x_t -> x0 - on_x_t
    the ratio of the two noises in the variance is upside down: it must be below 1
        variance = (1 - kept) * (1 - abar_s) / (1 - abar_t)
            -> variance = (1 - kept) * (1 - abar_t) / max(1 - abar_s, 1e-300)
    the variance grows with what the step adds; yours holds the share that it keeps
        variance = (1 - kept) -> variance = kept
    the second value is the variance itself, not its logarithm
        x_t, variance -> x_t, np.log(variance)
    the two results stand the other way round: the mean comes first
        on_x0 * x0 + on_x_t * x_t, variance -> variance, on_x0 * x0 + on_x_t * x_t
    """,
)


# --- 03.2 -----------------------------------------------------------------------------------
def training_loss(output, x0, eps, alpha, sigma):
    alpha, sigma = (along(0, level, x0) for level in (alpha, sigma))
    error = output - (alpha * eps - sigma * x0)
    return np.mean(error**2)


def _batches(rng, *shape):
    """Two, since a loss is a single number, and two mistakes can agree in it by chance."""
    for _ in range(2):
        alpha, sigma = (rng.uniform(0.2, 1.3, shape[0]).astype(np.float32) for _ in range(2))
        yield images(rng, *shape), images(rng, *shape), normal(rng, *shape), alpha, sigma


LOSS = exercise(
    "03.2 · The loss of a network that predicts v",
    training_loss,
    Part("one level for each image", 1, lambda rng: _batches(rng, 2, 4, 5, 1)),
    Part("as many images as rows and colours", 1, lambda rng: _batches(rng, 3, 3, 3, 3)),
    section="6 · Real digits",
    mistakes="""
    the target has the wrong sign
        output - ( -> output + (
    v is a difference: the data are subtracted from the noise
        eps - sigma -> eps + sigma
    the two levels are exchanged: the noise is multiplied by α, the data by σ
        return training_loss(output, x0, eps, sigma, alpha)
    that is the loss of a network that predicts the noise; this one predicts v
        return np.mean((output - eps) ** 2)
    that is the loss of a network that predicts the data; this one predicts v
        return np.mean((output - x0) ** 2)
    that is the loss of a network that predicts x_t, its own input; this one predicts v
        alpha * eps - sigma * x0 -> alpha * x0 + sigma * eps
    all images are given the same mean levels: each has its own
        along(0, level, x0) -> level.mean()
    the squares must be averaged over all pixels and images, not added up
        np.mean -> np.sum
    the squares must be averaged over the pixels as well as the images
        np.mean(error**2) -> np.sum(error**2) / len(error)
    the error must be squared
        error**2 -> np.abs(error)
    each error must be squared before the average, not the average
        np.mean(error**2) -> np.mean(error) ** 2
    data and noise are exchanged: v holds α of the noise and σ of the data
        alpha * eps - sigma * x0 -> alpha * x0 - sigma * eps
    no half is taken: the loss is the mean of the squares
        return right / 2
    all images are given the levels of the first: each has its own
        along(0, level, x0) -> level[0]
    α and σ multiply an array as they are: no square is taken of them
        alpha * eps - sigma * x0 -> alpha**2 * eps - sigma**2 * x0
    α and σ multiply an array as they are: no root is taken of them
        alpha * eps - sigma * x0 -> np.sqrt(alpha) * eps - np.sqrt(sigma) * x0
    the square of the mean error counts as well: that is the variance of the error
        np.mean(error**2) -> np.var(error)
    each image has the same weight: no level stands before the square
        np.mean(error**2) -> np.mean(alpha**2 * error**2)
    no root is taken: the loss is the mean of the squares
        return np.sqrt(right)
    the levels change from row to row: they are one number per image
        along(0 -> along(1
    the levels change from column to column: they are one number per image
        along(0 -> along(2
    the levels change from colour to colour: they are one number per image
        along(0 -> along(3
    """,
)


# --- 03.3 -----------------------------------------------------------------------------------
def ancestral_step(x0_hat, x_t, noise, abar_t, abar_s):
    kept = abar_t / abar_s
    on_x0 = np.sqrt(abar_s) * (1 - kept) / (1 - abar_t)
    on_x_t = np.sqrt(kept) * (1 - abar_s) / (1 - abar_t)
    variance = (1 - kept) * (1 - abar_s) / (1 - abar_t)
    return on_x0 * x0_hat + on_x_t * x_t + np.sqrt(variance) * noise


def _step_of_ddim(x0_hat, x_t, abar_t, abar_s):
    eps = (x_t - np.sqrt(abar_t) * x0_hat) / np.sqrt(1 - abar_t)
    return np.sqrt(abar_s) * x0_hat + np.sqrt(1 - abar_s) * eps


def _step(rng, shape, levels):
    return images(rng, *shape), images(rng, *shape), normal(rng, *shape), *levels


def _steps(rng):
    return [_step(rng, shape, levels(rng, (0.3, 0.9))) for shape in ((2, 4), (5,))]


def _last_steps(rng):
    """The last two: the guess alone is right in the last one only."""
    yield _step(rng, (3, 2), levels(rng, (0.3, 0.9)))
    yield _step(rng, (2, 2, 2, 1), (number(rng, 0.3, 0.9), 1.0))


STEP = exercise(
    "03.3 · One ancestral step",
    ancestral_step,
    Part("between two noisy levels", 2, _steps),
    Part("down to the data: the last step adds no noise", 1, _last_steps),
    section="3 · Sampling: many small steps back",
    mistakes="""
    noise is multiplied by a standard deviation, and the posterior gives a variance
        np.sqrt(variance) -> variance
    that is the noise of the step itself; the posterior has less, and none at the end
        np.sqrt(variance) -> np.sqrt(1 - kept)
    without fresh noise the samples lose their spread
        np.sqrt(variance) -> 0
    that is the noise present at s, of which the mean already holds a part
        np.sqrt(variance) -> np.sqrt(1 - abar_s)
    the factors of the guess and of x_t are swapped
        return ancestral_step(x_t, x0_hat, noise, abar_t, abar_s)
    ᾱ and its ratio belong to variances: what multiplies an image is a square root
        np.sqrt(abar_s) -> abar_s
        np.sqrt(kept) -> kept
    in the factor of the guess stands ᾱ_s, where its square root belongs
        np.sqrt(abar_s) -> abar_s
    in the factor of x_t stands a share of the variance, where its square root belongs
        np.sqrt(kept) -> kept
    the factor of the guess holds the level of the wrong end of the step
        np.sqrt(abar_s) -> np.sqrt(abar_t)
    the share kept between s and t is a quotient; yours is ᾱ_t, kept since the data
        abar_t / abar_s -> abar_t
    that is the noise of the step itself; the posterior has less in every step, not only in the last
        np.sqrt(variance) -> (abar_s < 1) * np.sqrt(1 - kept)
    in the factor of x_t the step from s to t counts, not all the way from the data
        np.sqrt(kept) -> np.sqrt(abar_t)
    ᾱ is a product over steps: what a step adds is not the difference of two of them
        abar_t / abar_s -> 1 - (abar_s - abar_t)
    the noise is added, not subtracted
        + np.sqrt(variance) -> - np.sqrt(variance)
    both factors are divided by the noise at t: without it they don't add up to the mean
        on_x0 * x0_hat + on_x_t * x_t -> (on_x0 * x0_hat + on_x_t * x_t) * (1 - abar_t)
    every pixel has a noise of its own; yours is the same for all
        * noise -> * noise.mean()
    the guess is taken as it is: nothing was said of a limit at −1 and 1
        x0_hat -> np.clip(x0_hat, -1, 1)
    the ratio of the two noises in the variance is upside down: it must be below 1
        variance = (1 - kept) * (1 - abar_s) / (1 - abar_t)
            -> variance = (1 - kept) * (1 - abar_t) / max(1 - abar_s, 1e-300)
    that is a step of DDIM: it keeps the noise of x_t and adds none
        return _step_of_ddim(x0_hat, x_t, abar_t, abar_s)
    the guess is noised anew: nothing of x_t is left, where the posterior keeps a part
        return np.sqrt(abar_s) * x0_hat + np.sqrt(1 - abar_s) * noise
    """,
)


# --- 03.4 -----------------------------------------------------------------------------------
def ema(start, params, decay):
    average = start
    for n, weights in enumerate(params):
        d = min(decay, (1 + n) / (10 + n))
        average = d * average + (1 - d) * weights
    return average


def _run(rng, steps, *decay):
    """Weights on both sides of 0, and start far from them."""
    for size, side in ((3, 1), (4, -1)):
        start = side * normal(rng, size, mean=-4.0, std=1.7)
        yield start, side * images(rng, steps, size), number(rng, *decay)


EMA = exercise(
    "03.4 · The average of the weights",
    ema,
    Part("the warm-up", 1, lambda rng: _run(rng, 5, 0.95, 0.999)),
    Part("after the warm-up", 1, lambda rng: _run(rng, 25, 0.3, 0.5)),
    section="5 · The average of the weights",
    mistakes="""
    the shares are exchanged: d is what the average keeps
        d * average + (1 - d) -> (1 - d) * average + d
    without the warm-up, or without its brackets, the average keeps its random start
        min(decay, (1 + n) / (10 + n)) -> decay
    (1 + n)/(10 + n) needs brackets below as well as above
        / (10 + n) -> / 10 + n
    the counter is one ahead: the first step has n = 0
        enumerate(params) -> enumerate(params, 1)
    the first row is taken as it is, but a tenth of the start must survive it
        enumerate(params) -> enumerate(params, -1)
    the first row is left out of the warm-up: it is taken as it is
        average = start -> average, params = params[0], params[1:]
        enumerate(params) -> enumerate(params, 1)
    the warm-up begins with n = 0: (1 + n)/(10 + n) is a tenth there, and yours 0
        (1 + n) / (10 + n) -> n / (10 + n)
    the warm-up begins with a tenth, and yours with a ninth
        (10 + n) -> (9 + n)
    the smaller of the two is taken, not their product
        min(decay, (1 + n) / (10 + n)) -> decay * (1 + n) / (10 + n)
    n counts the steps so far; yours is the number of all steps, in every one
        min(decay, (1 + n) / (10 + n)) -> min(decay, (1 + len(params)) / (10 + len(params)))
    the two shares must add up to 1: both are made of d_n
        (1 - d) -> (1 - decay)
    the new weights have a share as well: 1 − d_n
        (1 - d) * weights -> weights
    each step goes on from the average before it; yours from `start` every time
        d * average -> d * start
    the weights are taken in the order in which the network had them, the last row last
        return ema(start, params[::-1], decay)
    the first row is missing
        return ema(start, params[1:], decay)
    that is a plain mean over the steps: (1 + n)/(10 + n) is another warm-up
        (1 + n) / (10 + n) -> n / (1 + n)
    d_n must not rise above the decay that was asked for
        min(decay, (1 + n) / (10 + n)) -> (1 + n) / (10 + n)
    the last row is missing
        return ema(start, params[:-1], decay)
    the average begins as `start`; yours begins at 0
        return ema(0 * start, params, decay)
    no division at the end: the warm-up takes the place of such a correction
        return right / (1 - decay ** len(params))
    """,
)


# --- 03.5 -----------------------------------------------------------------------------------
def min_snr_weight(log_snr, gamma, kind):
    snr = np.exp(log_snr)
    unit = {"x0": 1.0, "eps": 1 / snr, "v": 1 / (snr + 1)}[kind]
    return np.minimum(snr, gamma) * unit


def _weights_of(kind):
    """On both sides of ±log γ, and of γ itself, which one may compare with λ by mistake."""

    def cases(rng):
        gamma = rng.uniform(3, 4.5)
        low = rng.uniform((-4.5, -4.5, -1.5, -1.5), (-2, -2, 0.8, 0.8))
        high = rng.uniform(np.log(gamma) + 0.3, gamma - 0.3, 2)
        log_snr = rng.permutation([*low, *high, gamma + rng.uniform(0.4, 1.0)]).astype(np.float32)
        yield log_snr, float(gamma), kind
        yield log_snr[:6].reshape(2, 3), number(rng, 0.4, 0.8), kind

    return cases


MIN_SNR = exercise(
    "03.5 · Min-SNR weights for every kind",
    min_snr_weight,
    *(Part(f"kind {kind!r}", 1, _weights_of(kind)) for kind in ("x0", "eps", "v")),
    section="6 · Real digits",
    mistakes="""
    errors of eps and v are errors of x0 in another unit: each kind has a factor of its own
        [kind] -> ["x0"]
    that is the weight for eps, which is wrong for the other kinds
        [kind] -> ["eps"]
    the ratio itself is needed, not its logarithm
        np.exp(log_snr) -> log_snr
    the ratio must be cut off above γ, not below
        np.minimum -> np.maximum
    γ has no effect: cut off the ratio before the factor of the kind, and not within it
        np.minimum(snr, gamma) -> snr
    the factor of the kind holds the whole ratio; only the weight of x0 is cut off
        np.exp(log_snr) -> np.minimum(np.exp(log_snr), gamma)
    γ limits the ratio, not its logarithm
        return min_snr_weight(log_snr, np.exp(gamma), kind)
    the errors are squared, so their factors are squared too
        1 / snr, "v": 1 / (snr + 1) -> snr**-0.5, "v": (snr + 1) ** -0.5
    the factor of the kind is upside down
        1 / snr, "v": 1 / (snr + 1) -> snr, "v": snr + 1
    x0 = α·x_t − σ·v: an error of v counts σ times, not α times
        1 / (snr + 1) -> snr / (snr + 1)
    x0 = α·x_t − σ·v holds v itself: no α stands below
        1 / (snr + 1) -> 1 / snr + 1
    the weights of eps and of v are exchanged
        "eps": 1 / snr, "v": 1 / (snr + 1) -> "v": 1 / snr, "eps": 1 / (snr + 1)
    the factor is squared once, and yours twice
        1 / snr, "v": 1 / (snr + 1) -> 1 / snr**2, "v": 1 / (snr + 1) ** 2
    γ is an argument; yours is 5, as in the paper
        np.minimum(snr, gamma) -> np.minimum(snr, 5.0)
    the largest weight of x0 is γ itself: nothing is divided by it
        return right / gamma
    λ is log(α²/σ²), so that e^λ is the ratio already: no root is taken
        np.exp(log_snr) -> np.exp(log_snr / 2)
    λ is log(α²/σ²), so that e^λ is the ratio already: no square is taken
        np.exp(log_snr) -> np.exp(2 * log_snr)
    above γ the weight stays at γ; yours falls to 0
        np.minimum(snr, gamma) -> np.where(snr > gamma, 0, snr)
    in the weight of v stands the ratio plus 1; a sign is wrong
        1 / (snr + 1) -> 1 / (snr - 1)
    every noise level has a ratio of its own; yours is that of the mean
        np.exp(log_snr) -> np.exp(np.mean(log_snr)) + 0 * log_snr
    the ratio is upside down: a large λ means much signal
        np.exp(log_snr) -> np.exp(-log_snr)
    """,
)


# --- 03.6 -----------------------------------------------------------------------------------
def sample(denoise, x, noises, abar):
    for noise, abar_t, abar_s in zip(noises, abar[:-1], abar[1:], strict=True):
        x0 = denoise(x, np.sqrt(abar_t), np.sqrt(1 - abar_t))
        kept = abar_t / abar_s
        on_x0 = np.sqrt(abar_s) * (1 - kept) / (1 - abar_t)
        on_x_t = np.sqrt(kept) * (1 - abar_s) / (1 - abar_t)
        variance = (1 - kept) * (1 - abar_s) / (1 - abar_t)
        x = on_x0 * x0 + on_x_t * x + np.sqrt(variance) * noise
    return x


def _run_down(rng, abar, *shape, mean=(1, 2)):
    x, noises = images(rng, *shape), normal(rng, len(abar), *shape)
    return gaussian(rng, mean), x, noises, np.append(abar, 1.0)


def _short_runs(rng):
    """One step and two: the denoiser's guess alone is right after one."""
    yield _run_down(rng, rng.uniform(0.05, 0.9, 1), 4)
    yield _run_down(rng, np.sort(rng.uniform(0.05, 0.9, 2)), 2, 2, mean=(-2, -1))


def _whole_runs(rng):
    """From nearly pure noise, in one leap to the middle, and on to almost the data."""
    middle = np.sort(rng.uniform(0.2, 0.8, 3))
    ends = [number(rng, 3e-5, 6e-5)], rng.uniform((0.998, 0.9994), (0.999, 0.9997))
    yield _run_down(rng, np.concatenate([ends[0], middle, ends[1]]), 4)
    yield _run_down(rng, np.sort(rng.uniform(0.05, 0.9, 4)), 3, 2, mean=(-2, -1))


SAMPLER = exercise(
    "03.6 · This sampler is broken",
    sample,
    Part("short runs; the last step returns the denoiser's guess", 1, _short_runs),
    Part("whole runs", 3, _whole_runs),
    section="3 · Sampling: many small steps back",
    mistakes="""
    one bug is left: noise is added that the posterior does not have, even in the last step
        np.sqrt(variance) -> np.sqrt(1 - kept)
    one bug is left: the guess at x0 is multiplied by a level of the wrong end of the step
        np.sqrt(abar_s) -> np.sqrt(abar_t)
    both bugs are still there
        np.sqrt(variance) -> np.sqrt(1 - kept)
        np.sqrt(abar_s) -> np.sqrt(abar_t)
    the last step is mended, but in all the others the posterior has less noise too
        np.sqrt(variance) -> np.sqrt(1 - kept) * (abar_s < 1)
    both bugs are still there, although the last step adds no noise any more
        np.sqrt(variance) -> np.sqrt(1 - kept) * (abar_s < 1)
        np.sqrt(abar_s) -> np.sqrt(abar_t)
    that is the noise present at s, of which the mean already holds a part
        np.sqrt(variance) -> np.sqrt(1 - abar_s)
    without fresh noise the samples lose their spread
        np.sqrt(variance) -> 0
    every step has a noise of its own; yours has the first in all of them
        * noise -> * noises[0]
    noise is multiplied by a standard deviation, not by a variance
        np.sqrt(variance) -> variance
    the denoiser takes α and σ, which are square roots
        np.sqrt(abar_t), np.sqrt(1 - abar_t) -> abar_t, 1 - abar_t
    the denoiser works at x_t, and must be told the levels of t, not those of s
        np.sqrt(abar_t), np.sqrt(1 - abar_t) -> np.sqrt(abar_s), np.sqrt(1 - abar_s)
    the guess is noised anew: nothing of x_t is left, where the posterior keeps a part
        on_x0 * x0 + on_x_t * x + np.sqrt(variance) -> np.sqrt(abar_s) * x0 + np.sqrt(1 - abar_s)
    this is a new bug: in the factor of x_t stands a share of the variance, without a root
        np.sqrt(kept) -> kept
    this is a new bug: in the factor of the guess stands ᾱ_s, without a root
        np.sqrt(abar_s) -> abar_s
    this is a new bug: the step keeps a quotient of levels; yours is all that is kept since the data
        abar_t / abar_s -> abar_t
    this is a new bug: the noise is subtracted
        + np.sqrt(variance) -> - np.sqrt(variance)
    this is a new bug: the factors of the guess and of x are exchanged
        on_x0 * x0 + on_x_t * x -> on_x0 * x + on_x_t * x0
    this is a new bug: both factors are divided by the noise at t
        on_x0 * x0 + on_x_t * x -> (on_x0 * x0 + on_x_t * x) * (1 - abar_t)
    this is a new bug: the last step is missing, or the last noise
        return sample(denoise, x, noises[:-1], abar[:-1])
    this is a new bug: the noises are taken from the last to the first
        return sample(denoise, x, noises[::-1], abar)
    this is a new bug: denoise takes α first, then σ
        np.sqrt(abar_t), np.sqrt(1 - abar_t) -> np.sqrt(1 - abar_t), np.sqrt(abar_t)
    this is a new bug: the denoiser is told the first level in every step
        np.sqrt(abar_t), np.sqrt(1 - abar_t) -> np.sqrt(abar[0]), np.sqrt(1 - abar[0])
    this is a new bug: the guess is cut off at −1 and 1, but these data lie beyond
        denoise(x, np.sqrt(abar_t), np.sqrt(1 - abar_t))
            -> np.clip(denoise(x, np.sqrt(abar_t), np.sqrt(1 - abar_t)), -1, 1)
    that is DDIM: it keeps the noise of x_t where the posterior draws some afresh
        on_x0 * x0 + on_x_t * x + np.sqrt(variance) * noise -> _step_of_ddim(x0, x, abar_t, abar_s)
    """,
    library=("diffusion_course.grading.inputs.GaussianDenoiser",),
)


# --- 03.7 -----------------------------------------------------------------------------------
def kl_term(x0, x0_hat, abar_t, abar_s):
    error = (x0 - x0_hat).reshape(len(x0), -1)
    beta = 1 - abar_t / abar_s
    posterior_variance = beta * (1 - abar_s) / (1 - abar_t)
    ratio = posterior_variance / beta
    on_x0 = np.sqrt(abar_s) * beta / (1 - abar_t)
    shifts = np.sum((on_x0 * error) ** 2, axis=1) / beta
    return (error.shape[1] * (ratio - 1 - np.log(ratio)) + shifts) / 2


def _guesses(rng):
    """The second batch is of good guesses, where the price of the wider Gaussian is the larger."""
    for shape, doubt in (((2, 3, 4, 1), 1.0), ((3, 5), 0.2)):
        x0 = images(rng, *shape)
        yield x0, x0 + doubt * images(rng, *shape), *levels(rng, (0.3, 0.7))


KL = exercise(
    "03.7 · What a wrong guess costs",
    kl_term,
    Part("images and vectors, any two levels", 3, _guesses),
    section="3 · Sampling: many small steps back",
    mistakes="""
    that is the price of the guess alone: with the right one the two differ still, in width
        error.shape[1] * (ratio - 1 - np.log(ratio)) -> 0
    this is (7) of chapter 02, where both have the posterior's variance; the step's is β here
        error.shape[1] * (ratio - 1 - np.log(ratio)) -> 0
        axis=1) / beta -> axis=1) / posterior_variance
    the wrong width has a price for each number of an image: yours is paid once for the image
        error.shape[1] * (ratio -> (ratio
    the batch is not part of it: count the numbers of one image
        error.shape[1] * (ratio -> error.size * (ratio
    a divergence adds up over the numbers of an image; yours is their mean
        return right / np.prod(x0.shape[1:])
    one half is missing: a Gaussian's exponent has a 2 below its variance
        return 2 * right
    one half is there twice
        return right / 2
    that is in bits; the divergence is asked for in nats
        return right / np.log(2)
    the divergence is from the posterior to the step, and yours from the step to the posterior
        ratio = posterior_variance / beta -> ratio = beta / posterior_variance
        axis=1) / beta -> axis=1) / posterior_variance
    the ratio of the variances is upside down
        ratio = posterior_variance / beta -> ratio = beta / posterior_variance
    the shift is measured in the second Gaussian's variance, the step's
        axis=1) / beta -> axis=1) / posterior_variance
    the shift is divided by a standard deviation, where a variance belongs
        axis=1) / beta -> axis=1) / np.sqrt(beta)
    the ratio is that of variances; yours is that of standard deviations
        ratio = posterior_variance / beta -> ratio = np.sqrt(posterior_variance / beta)
    the logarithm of the ratio is missing: as it stands, a narrower Gaussian costs less than nothing
        ratio - 1 - np.log(ratio) -> ratio - 1
    the 1 is missing: Gaussians of one width cost nothing
        ratio - 1 - np.log(ratio) -> ratio - np.log(ratio)
    the logarithm has the wrong sign
        ratio - 1 - np.log(ratio) -> ratio - 1 + np.log(ratio)
    the means are nearer to each other than the guesses: the factor of x0 is missing
        (on_x0 * error) ** 2 -> error**2
    the guess reaches the mean through the factor of x0, and the distance is squared with it
        (on_x0 * error) ** 2 -> on_x0 * error**2
    the means differ, so their difference is squared
        (on_x0 * error) ** 2 -> np.abs(on_x0 * error)
    the differences are squared one by one, and then added up
        np.sum((on_x0 * error) ** 2, axis=1) -> np.sum(on_x0 * error, axis=1) ** 2
    the guess is subtracted from x0 before the square; yours is a difference of squares
        (on_x0 * error) ** 2 -> on_x0**2 * (x0**2 - x0_hat**2).reshape(len(x0), -1)
    x0 and the guess are subtracted, not added
        x0 - x0_hat -> x0 + x0_hat
    the shift's price lacks a factor 1/ᾱ_s: the factor of x0 has √ᾱ_s, and β is 1 − ᾱ_t/ᾱ_s
        np.sqrt(abar_s) * beta -> abar_s * beta
    the factor of x0 is that of the posterior's mean, not of the forward process
        np.sqrt(abar_s) * beta / (1 - abar_t) -> np.sqrt(abar_s)
    the largest error alone doesn't count: add up the squares of all
        np.sum((on_x0 * error) ** 2, axis=1) -> np.max((on_x0 * error) ** 2, axis=1)
    the distance is squared: no root is taken of the sum of squares
        np.sum((on_x0 * error) ** 2, axis=1) -> np.sqrt(np.sum((on_x0 * error) ** 2, axis=1))
    β is the noise of the step from s to t, 1 − ᾱ_t/ᾱ_s: yours is all the noise since the data
        beta = 1 - abar_t / abar_s -> beta = 1 - abar_t
    """,
)


# --- 03.8 -----------------------------------------------------------------------------------
DEAD_INPUT = Written(
    "03.8", "A loss that falls", 2, section="7 · Break it on purpose: the dead time input"
)
