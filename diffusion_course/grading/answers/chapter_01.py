"""Exercises of chapter 01, the forward process."""

import numpy as np

from diffusion_course.grading.answers.drawing import images, normal, number
from diffusion_course.grading.answers.writing import along, exercise
from diffusion_course.grading.exercise import Part, Written


# --- 01.1 -----------------------------------------------------------------------------------
def noise_step(x, beta, eps):
    return np.sqrt(1 - beta) * x + np.sqrt(beta) * eps


def _any_step(rng):
    """The last two betas are near the ends of (0, 1), where nothing may be rounded up or cut."""
    steps = (((7,), (0.05, 0.4)), ((3, 4, 4, 1), (0.6, 0.8)))
    ends = (((2, 3), (2e-4, 5e-4)), ((5,), (0.9995, 0.9998)))
    for shape, betas in steps + ends:
        yield normal(rng, *shape, mean=0.7, std=1.9), number(rng, *betas), normal(rng, *shape)


ONE_STEP = exercise(
    "01.1 · One step of noise",
    noise_step,
    Part("any picture, any beta", 2, _any_step),
    section="1 · One small step",
    mistakes="""
    β is a variance: the noise must be multiplied by its square root
        np.sqrt(beta) -> beta
    1 − β is a variance: the signal must be multiplied by its square root
        np.sqrt(1 - beta) -> (1 - beta)
    both factors are variances: what multiplies an array is a standard deviation
        np.sqrt(beta) -> beta
        np.sqrt(1 - beta) -> (1 - beta)
    the two factors are swapped
        return noise_step(x, 1 - beta, eps)
    the two factors add up to 1: it is their squares that should
        np.sqrt(beta) -> (1 - np.sqrt(1 - beta))
    the two factors add up to 1: √(1 − β) is not 1 − √β
        np.sqrt(1 - beta) -> (1 - np.sqrt(beta))
    the picture must shrink a little, or its variance grows with every step
        np.sqrt(1 - beta) * x -> x
    the noise is missing
        + np.sqrt(beta) * eps ->
    the noise is shrunk as well: √(1 − β) belongs to the picture alone
        np.sqrt(beta) -> np.sqrt((1 - beta) * beta)
    the noise is added, not subtracted
        + np.sqrt(beta) -> - np.sqrt(beta)
    β is a variance already: its square root multiplies the noise, and 1 − β² belongs nowhere
        return noise_step(x, beta**2, eps)
    the picture is missing
        np.sqrt(1 - beta) * x ->
    """,
)


# --- 01.2 -----------------------------------------------------------------------------------
def alpha_bar(betas):
    return np.concatenate([[1.0], np.cumprod(1 - betas)])


def _chains(rng):
    yield (rng.uniform(0.05, 0.4, 5),)
    yield (rng.uniform(0.2, 0.7, 23),)
    yield (np.append(rng.uniform(0.05, 0.4, 3), 1.0),)  # nothing is left at the end


ALPHA_BAR = exercise(
    "01.2 · The table of ᾱ",
    alpha_bar,
    # Away from 0.382, where β is (1 − β)².
    Part("a chain of one step", 1, lambda rng: [(rng.uniform(0.05, 0.3, 1),)]),
    Part("chains of many steps", 1, _chains),
    section="2 · All steps in one jump",
    mistakes="""
    the first entry is missing: ᾱ_0, the product over no step at all
        return np.cumprod(1 - betas)
    a step keeps the share 1 − β: multiply what the steps keep, not what they replace
        1 - betas -> betas
    what the steps take away doesn't add up: each takes its share of what is left
        np.cumprod(1 - betas) -> 1 - np.cumsum(betas)
    that is the exponential of a sum of β, which equals ᾱ only if every β is tiny
        np.cumprod(1 - betas) -> np.exp(-np.cumsum(betas))
    ᾱ belongs to variances: that is its square root, the signal level α
        return np.sqrt(right)
    that is the noise's share of the variance; ᾱ is the signal's
        return 1 - right
    the first entry is a product over no step at all, and that is not 0
        [1.0] -> [0.0]
    the 1 of step 0 stands at the wrong end of the table
        return np.append(np.cumprod(1 - betas), 1.0)
    the last step is missing: T betas make T + 1 entries
        return right[:-1]
    what is left is a share of a share: multiply what the steps keep, don't add it up
        np.cumprod -> np.cumsum
    a β is a variance already: a step keeps the share 1 − β, not 1 − β²
        1 - betas -> 1 - betas**2
    betas[0] belongs to the first step: yours begins with the last one
        1 - betas -> 1 - betas[::-1]
    each entry is what one step keeps; multiply all the steps so far
        np.cumprod(1 - betas) -> 1 - betas
    """,
    atol=1e-9,  # the last entries are small, and the ones that matter
)


# --- 01.3 -----------------------------------------------------------------------------------
def jump(x0, eps, n, table):
    level = along(0, table[n], x0)
    return np.sqrt(level) * x0 + np.sqrt(1 - level) * eps


def _both_ends(rng):
    table = alpha_bar(np.append(rng.uniform(0.1, 0.5, 5), 1.0))
    for n in (0, 6):
        yield images(rng, 2, 4, 5, 1), normal(rng, 2, 4, 5, 1), np.full(2, n, np.int32), table


def _own_steps(rng, *shape):
    table = alpha_bar(rng.uniform(0.1, 0.5, 8))
    n = rng.choice(np.arange(1, 8), shape[0], replace=False).astype(np.int32)
    return [(images(rng, *shape), normal(rng, *shape), n, table)]


JUMP = exercise(
    "01.3 · Any step at once",
    jump,
    Part("the ends: n = 0 is the data, n = T the noise", 1, _both_ends),
    Part("one step per image", 1, lambda rng: _own_steps(rng, 2, 4, 5, 1)),
    Part("as many images as rows, columns and colours", 1, lambda rng: _own_steps(rng, 3, 3, 3, 3)),
    section="2 · All steps in one jump",
    mistakes="""
    the noise is multiplied by its variance, not by its standard deviation
        np.sqrt(1 - level) -> (1 - level)
    the signal is multiplied by ᾱ: that is its factor in variances, not in values
        np.sqrt(level) -> level
    the two factors add up to 1: it is their squares that should
        np.sqrt(1 - level) -> (1 - np.sqrt(level))
    both factors are variances: what multiplies an array is a standard deviation
        np.sqrt(level) -> level
        np.sqrt(1 - level) -> (1 - level)
    signal and noise are swapped, or the steps are counted from the other end
        return jump(eps, x0, n, table)
    off by one step: entry 0 of the table is the data, so step n is entry n
        table[n] -> table[n - 1]
    one step too far: the table begins with step 0, so step n is entry n
        table[n] -> table[np.minimum(n + 1, len(table) - 1)]
    the steps are counted from the other end of the table
        table[n] -> table[len(table) - 1 - n]
    noise was added, but the data must be shrunk as well
        np.sqrt(level) * x0 -> x0
    all images are given the same mean level: each has its own n
        along(0, table[n], x0) -> table[n].mean()
    all images are taken to the step of the first: each has its own n
        along(0, table[n], x0) -> table[n[0]]
    the noise is added, not subtracted
        + np.sqrt(1 - level) -> - np.sqrt(1 - level)
    the noise is missing
        + np.sqrt(1 - level) * eps ->
    the data are missing
        np.sqrt(level) * x0 ->
    the table holds ᾱ, a share of the variance: its root is α, and its square belongs nowhere
        table[n] -> table[n] ** 2
    the factors change from row to row: they should change from image to image
        along(0 -> along(1
    the factors change from column to column: they should change from image to image
        along(0 -> along(2
    the factors change from colour to colour: they should change from image to image
        along(0 -> along(3
    """,
)


# --- 01.4 -----------------------------------------------------------------------------------
def cosine_betas(T, s, max_beta):
    """Nichol & Dhariwal 2021, eq. 17."""
    t = np.arange(T + 1) / T
    f = np.cos((t + s) / (1 + s) * (np.pi / 2)) ** 2
    return np.minimum(1 - f[1:] / f[:-1], max_beta)


def _cosine_cases(rng, lowest, highest):
    """A few steps, some, and one; and many, with the smallest offset that is allowed, s = 0."""
    for T in (int(rng.integers(5, 9)), int(rng.integers(20, 40)), 1):
        yield T, number(rng, 0.04, 0.2), number(rng, lowest, highest)
    yield int(rng.integers(300, 400)), 0.0, number(rng, lowest, highest)


COSINE = exercise(
    "01.4 · The cosine schedule",
    cosine_betas,
    Part("the formula (max_beta = 1)", 1, lambda rng: _cosine_cases(rng, 1, 1)),
    Part("the clip", 1, lambda rng: _cosine_cases(rng, 0.3, 0.6)),
    section="5 · Six schedules side by side",
    mistakes="""
    no beta may be larger than max_beta
        max_beta -> 1
    the cosine is not squared
        ) ** 2 -> )
    the offset s has no effect
        (t + s) / (1 + s) -> t
    with the offset the angle leads past a right angle: it isn't divided by 1 + s
        (t + s) / (1 + s) -> (t + s)
    the offset is the argument s; yours is 0.008, as in the paper
        (t + s) / (1 + s) -> (t + 0.008) / 1.008
    n/T runs from 0 to 1: it is not n that the offset is added to
        (t + s) / -> (t * T + s) /
    n/T runs from 0 to 1, so n is divided by T, not by T + 1
        / T -> / (T + 1)
    all of n/T + s is divided by 1 + s: a pair of brackets is missing
        (t + s) / (1 + s) -> (t + s / (1 + s))
    each f(n) is divided by f(n − 1): yours is off by one, or the quotient is upside down
        (t + s) / (1 + s) -> (t + t[1] + s) / (1 + s)
    the angle must end at a right angle, which is half of π
        np.pi / 2 -> np.pi
    that is the noise of all steps so far: a beta compares ᾱ with its neighbour
        f[:-1] -> f[0]
    a beta is 1 minus a quotient of neighbours; yours is their difference
        1 - f[1:] / f[:-1] -> -np.diff(f) / f[0]
    the quotient of neighbours is what a step keeps; a beta is what it replaces
        1 - f[1:] / f[:-1] -> f[1:] / f[:-1]
    max_beta is a limit for every beta, not the value of the last
        return np.append(cosine_betas(T, s, 1)[:-1], max_beta)
    the first beta is off: ᾱ is 1 at step 0, but f(0) isn't
        f[:-1] -> np.append(1.0, f[1:-1])
    """,
)


# --- 01.5 -----------------------------------------------------------------------------------
def terminal_log_snr(betas):
    log_signal = np.log1p(-betas).sum()
    return log_signal - np.log(-np.expm1(log_signal))


def _schedules(rng):
    return [(rng.uniform(0.02, 0.1, 7),), (rng.uniform(0.05, 0.4, 30),)]


def _and_ordinary(rng, extreme):
    return [(extreme,), (rng.uniform(0.05, 0.3, 9),)]


TERMINAL = exercise(
    "01.5 · How noisy is the end?",
    terminal_log_snr,
    Part("any schedule", 1, _schedules),
    # An ordinary schedule as well: from the extreme alone, one mistake looks like another.
    Part("hardly any noise", 1, lambda rng: _and_ordinary(rng, rng.uniform(1e-19, 1e-18, 12))),
    Part("hardly any signal", 1, lambda rng: _and_ordinary(rng, rng.uniform(0.8, 0.95, 600))),
    section="6 · The last step: what is left at $t = 1$",
    mistakes="""
    tiny β are lost in a difference from 1: neither 1 − β nor 1 − ᾱ may be computed as one
        -np.expm1(log_signal) -> 1 - np.exp(log_signal)
    ᾱ as a number is rounded, with tiny β to 1 and with many large ones to 0: stay in logarithms
        return np.log(np.prod(1 - betas)) - np.log(1 - np.prod(1 - betas))
    half of what it should be: the ratio compares variances, not standard deviations
        return right / 2
    that is the ratio itself: its logarithm is missing
        return np.exp(right)
    the ratio is upside down: the signal stands above the noise
        return -right
    that is what the last step alone does: the end has all steps behind it
        np.log1p(-betas).sum() -> np.log1p(-betas[-1])
    that is the logarithm of ᾱ alone: the noise, 1 − ᾱ, is missing below it
        return np.log1p(-betas).sum()
    log(1 − β) is −β only if β is tiny
        np.log1p(-betas).sum() -> -np.sum(betas)
    the logarithms of signal and noise are added: that belongs to a product, not a ratio
        log_signal - np.log -> log_signal + np.log
    twice what it should be: ᾱ and 1 − ᾱ are variances already, and need no square
        return 2 * right
    that has base 10 or 2 somewhere: all logarithms here are natural
        np.log(-np.expm1(log_signal)) -> np.log10(-np.expm1(log_signal))
    the steps' logarithms add up to that of ᾱ_T; yours are averaged
        np.log1p(-betas).sum() -> np.log1p(-betas).mean()
    the ratios of single steps don't multiply; the signal that they leave does
        return np.sum(np.log1p(-betas) - np.log(betas))
    """,
)


# --- 01.6 -----------------------------------------------------------------------------------
def noising_chain(x0, betas, eps):
    path = [x0]
    for beta, fresh in zip(betas, eps, strict=True):
        path.append(np.sqrt(1 - beta) * path[-1] + np.sqrt(beta) * fresh)
    return np.stack(path)


def _walks(rng, *lengths, ends=()):
    """Every beta is ordinary, but for those given, which begin the walk."""
    for T, shape in zip(lengths, ((4,), (2, 3, 3, 1)), strict=True):
        x0 = normal(rng, *shape, mean=0.8, std=1.6)
        yield x0, np.append(ends, rng.uniform(0.1, 0.5, T - len(ends))), normal(rng, T, *shape)


CHAIN = exercise(
    "01.6 · A chain with two bugs",
    noising_chain,
    Part("a chain of one step", 1, lambda rng: _walks(rng, 1, 1)),
    Part("chains of many steps", 2, lambda rng: _walks(rng, 4, 7, ends=(3e-4, 0.9997))),
    section="1 · One small step",
    # "both bugs" can't be told from the first in a chain of one step.
    mistakes="""
    the factors of signal and noise add up to 1: what should, by equation (1)?
        np.sqrt(beta) -> (1 - np.sqrt(1 - beta))
    one bug is left: what should the noises of two steps have to do with each other?
        * fresh -> * eps[0]
    it is the squares of the two factors that add up to 1, and `keep` is one of the factors
        np.sqrt(beta) -> np.sqrt(1 - np.sqrt(1 - beta))
    both bugs are still there
        np.sqrt(beta) * fresh -> (1 - np.sqrt(1 - beta)) * eps[0]
    β is a variance, and what multiplies the noise is a standard deviation
        np.sqrt(beta) -> beta
    1 − β is a variance, and what multiplies the picture is a standard deviation
        np.sqrt(1 - beta) -> (1 - beta)
    both factors are variances: what multiplies an array is a standard deviation
        np.sqrt(beta) -> beta
        np.sqrt(1 - beta) -> (1 - beta)
    each step goes on from the step before; yours starts from x_0 every time
        path[-1] -> x0
    those are jumps from x_0 with one noise each; in a chain the old noise stays
        zip(betas, -> zip(1 - np.cumprod(1 - betas),
        path[-1] -> x0
    those are jumps from x_0, all with the same noise; a chain adds new noise
        zip(betas, -> zip(1 - np.cumprod(1 - betas),
        path[-1] -> x0
        * fresh -> * eps[0]
    the noises are off by one: the first of them, eps[0], belongs to step 1
        eps, -> [*eps[1:], eps[-1]],
    the noises are late by one: the first of them, eps[0], belongs to step 1
        eps, -> [eps[-1], *eps[:-1]],
    every step has the last noise: each has one of its own
        * fresh -> * eps[-1]
    the two factors are exchanged: a small β adds a little noise
        np.sqrt(1 - beta) * path[-1] + np.sqrt(beta) -> np.sqrt(beta) * path[-1] + np.sqrt(1 - beta)
    the picture must shrink a little in every step
        np.sqrt(1 - beta) * path[-1] -> path[-1]
    both are multiplied by the factor of the signal; that of the noise is √β
        np.sqrt(beta) -> np.sqrt(1 - beta)
    both are multiplied by the factor of the noise; that of the signal is √(1 − β)
        np.sqrt(1 - beta) -> np.sqrt(beta)
    the data are missing: the path begins with x_0
        np.stack(path) -> np.stack(path[1:])
    """,
    library=("diffusion_course.process",),
)


# --- 01.7 -----------------------------------------------------------------------------------
def betas_from_log_snr(log_snr):
    log_level = np.append(0.0, -np.logaddexp(0, -log_snr))  # log ᾱ_0 … log ᾱ_T
    return -np.expm1(np.diff(log_level))


def _ladder(rng, top, bottom, T):
    """A falling ladder of log-SNRs whose rungs are not equally far apart."""
    gaps = rng.uniform(0.5, 1.5, T + 1)
    return (top + (bottom - top) * np.cumsum(gaps)[:-1] / gaps.sum(),)


def _and_any_ladder(rng, top, bottom):
    return [_ladder(rng, top, bottom, 9), _ladder(rng, 3, -4, 5)]


LADDER = exercise(
    "01.7 · A schedule from its log-SNR",
    betas_from_log_snr,
    Part("any ladder", 1, lambda rng: [_ladder(rng, 4, -7, 6), _ladder(rng, 5, -3, 11)]),
    # An ordinary ladder as well: from the extreme alone, one mistake looks like another.
    Part("a ladder close to the data", 1, lambda rng: _and_any_ladder(rng, 60, 38)),
    Part("a ladder deep in the noise", 1, lambda rng: _and_any_ladder(rng, -750, -790)),
    section="4 · One number says how noisy",
    mistakes="""
    close to the data a β is far smaller than 1, and a difference from 1 rounds it to 0
        -np.expm1(np.diff(log_level)) -> 1 - np.exp(np.diff(log_level))
    ᾱ as a number is rounded, near the data to 1 and deep in the noise to 0: stay in logarithms
        0.0, -np.logaddexp(0, -log_snr) -> 1.0, 1 / (1 + np.exp(-log_snr))
        -np.expm1(np.diff(log_level)) -> 1 - log_level[1:] / log_level[:-1]
    λ compares variances, not standard deviations: it isn't log(α/σ)
        return betas_from_log_snr(2 * log_snr)
    λ is log(α²/σ²), not its double: it compares variances, and they are not squared again
        return betas_from_log_snr(log_snr / 2)
    each ᾱ is divided by the one before it, or your logarithm of ᾱ has the wrong sign
        np.diff(log_level) -> -np.diff(log_level)
    a β compares variances: no root of their quotient is taken
        np.diff(log_level) -> np.diff(log_level) / 2
    a β compares variances: their quotient is not squared
        np.diff(log_level) -> 2 * np.diff(log_level)
    a difference from 1 has a sign: 1 − e^d, not e^d − 1
        -np.expm1 -> np.expm1
    λ is the logarithm of a ratio, not of ᾱ: the 1 below ᾱ is missing
        -np.logaddexp(0, -log_snr) -> log_snr
    signal and noise are swapped: a large λ means much signal
        return betas_from_log_snr(-log_snr)
    one step is missing: the first begins at the data, where ᾱ is 1
        return right[1:]
    that is the noise of all steps so far: a β is what one step adds
        return np.exp(-np.logaddexp(0, log_snr))
    before the first step ᾱ is 1, and its logarithm isn't
        0.0, -> 1.0,
    the first beta is 0: the first step begins at the data, where ᾱ is 1
        return np.append(0.0, right[1:])
    a difference of logarithms is the logarithm of a quotient: the way back is missing
        -np.expm1(np.diff(log_level)) -> -np.diff(log_level)
    that is what a step keeps, 1 − β
        return 1 - right
    a beta is 1 minus a quotient of neighbours; yours is their difference
        -np.expm1(np.diff(log_level)) -> -np.diff(np.exp(log_level))
    """,
    atol=0.0,  # the first betas may be tiny, and the ones that matter
)


# --- 01.8 -----------------------------------------------------------------------------------
BOTH_ENDS = Written(
    "01.8",
    "Right at both ends",
    2,
    section="9 · Break it on purpose: a variance in place of a standard deviation",
)
