"""Exercises of chapter 10, Probability flow and likelihood."""

from itertools import pairwise

import numpy as np
from scipy.special import logsumexp
from scipy.stats import norm

from diffusion_course.grading.answers.drawing import gaussian, images, normal, number
from diffusion_course.grading.answers.writing import exercise
from diffusion_course.grading.exercise import Part, Written
from diffusion_course.grading.inputs import TwoGroupDenoiser


# --- 10.1 -----------------------------------------------------------------------------------
def pixel_bits(log_p, std, levels):
    width = 2 / ((levels - 1) * std.astype(float))
    return -(log_p / std.size + np.log(width).mean()) / np.log(2)


def _log_densities(rng, *cases):
    """Log-densities of whole images, of both signs, and the scale of each of their numbers."""
    for levels, low, high, shape in cases:
        std = np.broadcast_to(rng.uniform(low, high), shape)
        if low != high:
            std = rng.uniform(low, high, shape)
        size = int(np.prod(shape))
        log_p = size * np.append(rng.uniform(-2.2, -1.1), rng.uniform(0.4, 2.9, 1 + len(shape)))
        yield log_p.astype(np.float32), std.astype(np.float32), levels


PIXEL_BITS = exercise(
    "10.1 · Bits of standardised pixels",
    pixel_bits,
    Part(
        "not standardised",
        1,
        lambda rng: _log_densities(
            rng, (17, 1, 1, (28, 28, 1)), (256, 1, 1, (6,)), (2, 1, 1, (6,))
        ),
    ),
    Part(
        "a scale for each number",
        1,
        lambda rng: _log_densities(
            rng,
            (17, 0.2, 0.9, (6,)),
            (256, 0.3, 2.4, (6,)),
            (2, 0.1, 0.5, (6,)),
            (256, 0.05, 0.3, (28, 28, 1)),  # so many that their product is 0, also in float64
        ),
    ),
    section="12 · Break it on purpose: bits on the wrong scale",
    mistakes="""
    the width of a bin is missing: a density is not a probability
        return -log_p / std.size / np.log(2)
    K values have K − 1 gaps: the bins are 2/(K − 1) wide
        levels - 1 -> levels
    the range from −1 to 1 is 2 wide, not 1
        width = 2 -> width = 1
    dividing by the std makes the bins wider where the std is below 1: the ratio is upside down
        (levels - 1) * std.astype(float) -> (levels - 1) / std.astype(float)
    the pixels were standardised, and so were their bins
        (levels - 1) * std.astype(float) -> levels - 1 + 0 * std
    the sign: a likely image costs few bits
        return -(log_p -> return (log_p
    the sign of log p: a likely image costs few bits
        return right + 2 * log_p / std.size / np.log(2)
    narrow bins cost more bits, not fewer
        + np.log(width).mean() -> - np.log(width).mean()
    those are nats: divide by log 2
        / np.log(2) ->
    those are the bits of whole images: divide by the count of numbers
        return right * std.size
    the mean of the logarithms is wanted, not the logarithm of the mean
        np.log(width).mean() -> np.log(width.mean())
    per dimension, the logarithms of the stds are averaged like the rest: yours are added
        np.log(width).mean() -> np.log(2 / (levels - 1)) - np.log(std.astype(float)).sum()
    an image has height times width times channels numbers
        log_p / std.size -> log_p / std.shape[0]
    the product of many stds is 0 for the computer: add their logarithms
        np.log(width).mean() -> np.log(2 / (levels - 1)) - np.log(std.prod()) / std.size
    the product of many widths is 0 for the computer: add their logarithms
        np.log(width).mean() -> np.log(width.prod()) / std.size
    the width was divided by the mean of the stds: average their logarithms
        np.log(width).mean() -> np.log(2 / (levels - 1) / std.astype(float).mean())
    """,
)


# --- 10.2 -----------------------------------------------------------------------------------
def flow_divergence(jacobian, kind, alpha, sigma, d_alpha, d_sigma):
    trace = np.trace(jacobian.astype(float), axis1=1, axis2=2)
    if kind == "x0":
        on_state, on_output = d_sigma / sigma, d_alpha - alpha * d_sigma / sigma
    else:
        on_state, on_output = d_alpha / alpha, d_sigma - sigma * d_alpha / alpha
    if kind == "score":
        on_output = -sigma * on_output
    return jacobian.shape[1] * on_state + on_output * trace


def _jacobians(rng, kind):
    """One process in which both levels move, and one that only adds noise."""
    for B, D, still in ((3, 4, False), (5, 2, True)):
        alpha, sigma = rng.uniform(0.3, 0.8, B), rng.uniform(0.4, 1.6, B)
        d_alpha, d_sigma = -rng.uniform(0.5, 1.7, B), rng.uniform(0.6, 2.2, B)
        if still:
            alpha, d_alpha = np.ones(B), np.zeros(B)
        levels = (np.float32(v) for v in (alpha, sigma, d_alpha, d_sigma))
        yield images(rng, B, D, D), kind, *levels


FLOW_DIVERGENCE = exercise(
    "10.2 · Divergence of any flow",
    flow_divergence,
    Part("x0", 1, lambda rng: _jacobians(rng, "x0")),
    Part("eps", 1, lambda rng: _jacobians(rng, "eps")),
    Part("score", 1, lambda rng: _jacobians(rng, "score")),
    section="3 · The change of the density along a path",
    mistakes="""
    the state itself stands in the velocity too, once for each of the D coordinates
        jacobian.shape[1] * on_state + ->
    the state's factor counts once for each coordinate: D times
        jacobian.shape[1] * on_state -> on_state
    the velocity is the derivative of α times x0 plus the derivative of σ times ε
        return flow_divergence(jacobian, kind, alpha, sigma, alpha, sigma)
    a divergence is a trace: only the diagonal counts
        np.trace(jacobian.astype(float), axis1=1, axis2=2) -> jacobian.sum((1, 2))
    a trace is a sum, not a mean
        on_output * trace -> on_output * trace / jacobian.shape[1]
    every example has its own Jacobian: yours are added over the batch
        axis1=1, axis2=2) -> axis1=1, axis2=2).sum()
    the sign: time runs from data to noise
        return -right
    the score is −ε/σ: yours is taken for ε
        if kind == "score": -> if kind == "no":
    the score is −ε/σ: the sign
        -sigma * on_output -> sigma * on_output
    the score is −ε/σ, so ε is −σ times the score: yours divides by σ
        -sigma * on_output -> -on_output / sigma
    that is the reverse SDE's drift: the flow has half of g² on its score
        on_output * trace -> 2 * on_output * trace
        on_state, on_output = d_sigma / sigma, d_alpha - alpha * d_sigma / sigma ->
            on_state = 2 * d_sigma / sigma - d_alpha / alpha;
            on_output = d_alpha - alpha * d_sigma / sigma
    α and σ are exchanged
        return flow_divergence(jacobian, kind, sigma, alpha, d_sigma, d_alpha)
    that is half of the flow: the other estimate follows from x_t and this one, and moves too
        if kind == "x0": -> if True:
        on_state, on_output = d_sigma / sigma, d_alpha - alpha * d_sigma / sigma ->
            on_state, on_output = 0 * sigma, d_alpha if kind == "x0" else d_sigma
    that is the flow for α = 1: α moves too
        trace = np.trace( -> alpha, d_alpha = 1.0, 0.0 * d_alpha; trace = np.trace(
    that is the flow for α² + σ² = 1: here σ moves as it will
        on_state, on_output = d_sigma / sigma, d_alpha - alpha * d_sigma / sigma ->
            f = d_alpha / alpha; on_state, on_output = f - f / sigma**2, f * alpha / sigma**2
        d_sigma - sigma * d_alpha / alpha -> -d_alpha / (alpha * sigma)
    """,
)


# --- 10.3 -----------------------------------------------------------------------------------
def probe_variance(A, fourth, probes):
    A = A.astype(float)
    S = (A + A.transpose(0, 2, 1)) / 2
    square = (S**2).sum((1, 2))
    diagonal = (np.diagonal(S, axis1=1, axis2=2) ** 2).sum(1)
    return (2 * square + (fourth - 3) * diagonal) / probes


def _matrices(rng, symmetric, *cases):
    for (B, D), fourth, probes in cases:
        A = images(rng, B, D, D)
        if symmetric:
            A = (A + A.transpose(0, 2, 1)) / 2
        yield A, fourth, probes


PROBE_VARIANCE = exercise(
    "10.3 · How noisy is Hutchinson's estimate?",
    probe_variance,
    Part(
        "symmetric matrices",
        2,
        lambda rng: _matrices(
            rng, True, ((3, 4), 1.0, 1), ((3, 4), 3.0, 1), ((2, 5), number(rng, 1.6, 2.4), 5)
        ),
    ),
    Part(
        "any matrices",
        2,
        lambda rng: _matrices(
            rng, False, ((2, 5), 1.0, 3), ((3, 4), 3.0, 1), ((2, 5), number(rng, 4, 7), 7)
        ),
    ),
    section="5 · Hutchinson's estimate",
    mistakes="""
    zᵀAz knows only the symmetric part of A: yours uses A itself
        S = (A + A.transpose(0, 2, 1)) / 2 -> S = A
    zᵀAz knows only (A + Aᵀ)/2: the half is missing
        .transpose(0, 2, 1)) / 2 -> .transpose(0, 2, 1))
    each pair of coordinates stands twice in zᵀAz: the factor 2 is missing
        2 * square -> square
    the mean of n independent probes has an n-th of the variance
        ) / probes -> )
    the variance falls like 1/n; it is the standard deviation that falls like 1/√n
        ) / probes -> ) / probes**0.5
    the variance of z² is m₄ − 1, not m₄
        fourth - 3 -> fourth - 2
    the sum of squares over the whole matrix has each pair twice already: 2 times it, not 4
        2 * square + (fourth - 3) -> 4 * square + (fourth - 5)
    a pair i < j adds 4·S_ij², and the matrix has it twice: the factor 2 is missing
        2 * square + (fourth - 3) -> square + (fourth - 2)
    that is the variance for Gaussian probes, whatever the fourth moment
        (fourth - 3) * diagonal -> 0
    that is the variance for signs, whatever the fourth moment
        fourth - 3 -> -2
    the variance of z² is m₄ − 1; but the squares on the diagonal were counted twice already
        fourth - 3 -> fourth - 1
    the off-diagonal entries count too: yours has the diagonal alone
        2 * square + (fourth - 3) * diagonal -> (fourth - 1) * diagonal
    that is the standard deviation: it is its square that is wanted
        return right**0.5
    the squares of the diagonal are added: yours is the square of their sum
        2 * square + (fourth - 3) * diagonal -> 2 * (square - diagonal)
            + (fourth - 1) * np.trace(S, axis1=1, axis2=2) ** 2
    that is the second moment: the square of the trace must go
        return right + np.trace(A, axis1=1, axis2=2)**2
    """,
)


# --- 10.4 -----------------------------------------------------------------------------------
def _flow(denoise, x, sigma):
    """dx/dσ of the flow with α = 1, and its derivative by x, number by number."""
    tiny = 1e-30  # a complex step: nothing is subtracted
    slope = (x + tiny * 1j - denoise(x + tiny * 1j, 1.0, sigma)) / sigma
    return slope.real, slope.imag / tiny


def two_accounts(denoise, x, sigma):
    x, inside, volume = x.astype(float), 0.0, 0.0
    for now, then in pairwise(sigma):
        h = then - now
        slope, growth = _flow(denoise, x, now)
        inside = inside + (h * growth).sum(1)
        volume = volume + np.log(1 + h * growth).sum(1)
        x = x + h * slope
    prior = (-0.5 * (x / sigma[-1]) ** 2 - 0.5 * np.log(2 * np.pi * sigma[-1] ** 2)).sum(1)
    return prior + inside, prior + volume


def _groups(rng):
    """Two groups that have merged at the levels that are drawn with it."""
    low = number(rng, -1.4, -0.9)
    return TwoGroupDenoiser(low, low + number(rng, 1.6, 2.1), number(rng, 0.4, 0.6))


def _rising(rng, steps):
    """Levels of noise in steps that differ, up to 3 and more."""
    return np.sort(np.append(rng.uniform(0.7, 1.0), np.cumsum(rng.uniform(0.6, 1.3, steps)) + 1))


def _flows(rng, groups, *cases):
    for B, D, steps in cases:
        yield _groups(rng) if groups else gaussian(rng), images(rng, B, D), _rising(rng, steps)


TWO_ACCOUNTS = exercise(
    "10.4 · What a coarse flow says",
    two_accounts,
    Part("one step", 1, lambda rng: _flows(rng, False, (4, 1, 1), (4, 1, 1))),
    Part("several steps, two groups", 2, lambda rng: _flows(rng, True, (2, 3, 3), (2, 3, 4))),
    section="4 · Two independent checks",
    mistakes="""
    the two results are exchanged: first the integral, then the map
        return prior + inside, prior + volume -> return prior + volume, prior + inside
    both are the integral of the divergence: the map multiplies volumes
        return prior + inside, prior + volume -> return prior + inside, prior + inside
    both are the map's: the integral adds the divergence itself
        return prior + inside, prior + volume -> return prior + volume, prior + volume
    the sign of the integral: where the flow towards noise spreads, the data were denser
        prior + inside -> prior - inside
    the sign of the map's part: where the steps towards noise spread, the data were denser
        prior + volume -> prior - volume
    the sign: where the flow towards noise spreads, the data were denser
        return prior + inside, prior + volume -> return prior - inside, prior - volume
    at the last level the noise has the standard deviation σ, not 1
        (x / sigma[-1]) ** 2 - 0.5 * np.log(2 * np.pi * sigma[-1] ** 2) ->
            x**2 - 0.5 * np.log(2 * np.pi)
    a Gaussian of width σ is lower by the factor σ in each coordinate
        2 * np.pi * sigma[-1] ** 2 -> 2 * np.pi
    the prior is taken at the first level
        x / sigma[-1] -> x / sigma[0]
        np.pi * sigma[-1] -> np.pi * sigma[0]
    the derivative is the denoiser's; the flow's is (1 − D′)/σ
        slope, growth = _flow(denoise, x, now) ->
            slope, growth = _flow(denoise, x, now); growth = 1 - now * growth
    one plus h times the trace is no determinant: multiply over the coordinates
        np.log(1 + h * growth).sum(1) -> np.log(1 + (h * growth).sum(1))
    log-densities of coordinates are added, not averaged
        return tuple(value / x.shape[1] for value in right)
    the derivative belongs to the beginning of the step, before the state moves
        inside = inside + (h * growth).sum(1) ->
            growth = _flow(denoise, x + h * slope, then)[1];
            inside = inside + (h * growth).sum(1)
    a step is x + h·slope, whose derivative is 1 + h·r: yours is that of the step undone by Euler
        np.log(1 + h * growth) -> -np.log(1 - h * growth)
    the slope belongs to the beginning of the step: yours has the level of its end
        _flow(denoise, x, now) -> _flow(denoise, x, then)
    both derivatives belong to the beginning of the step: yours are those of the moved state
        slope, growth = _flow(denoise, x, now) -> slope = _flow(denoise, x, now)[0];
            growth = _flow(denoise, x + h * slope, now)[1]
    the last state's standard deviation is σ, its variance σ²: yours is too wide or too narrow
        (x / sigma[-1]) ** 2 -> (x / sigma[-1] ** 2) ** 2
        np.pi * sigma[-1] ** 2 -> np.pi * sigma[-1] ** 4
    the length of the step is missing in what the log-density gains
        (h * growth).sum(1) -> growth.sum(1)
        np.log(1 + h * growth) -> np.log(1 + growth)
    """,
)


# --- 10.5 -----------------------------------------------------------------------------------
def log_prob(denoise, x, probes, sigma):
    x, gained = x.astype(float), 0.0
    for n, (now, then) in enumerate(pairwise(sigma)):
        slope, growth = _flow(denoise, x, now)
        trace = (probes[n] ** 2 * growth).sum(2).mean(0)
        gained = gained + (then - now) * trace
        x = x + (then - now) * slope
    end = sigma[-1]
    prior = (-0.5 * (x / end) ** 2 - 0.5 * np.log(2 * np.pi * end**2)).sum(1)
    return prior + gained


def _probed(rng, *cases):
    """Where there are four probes the data are narrow, and their densities are above 1."""
    for B, D, steps, P in cases:
        denoise = _groups(rng) if D == 1 else gaussian(rng)
        x, sigma = images(rng, B, D), _rising(rng, steps)
        if P == 4:
            denoise = gaussian(rng, (-0.2, 0.2), (0.05, 0.1))
            x, sigma = normal(rng, B, D, std=0.1), 0.2 * sigma
        yield denoise, x, normal(rng, steps, P, B, D), sigma


BROKEN = exercise(
    "10.5 · This likelihood is broken",
    log_prob,
    Part("one probe", 2, lambda rng: _probed(rng, (4, 2, 1, 1), (3, 1, 4, 1))),
    Part("several probes", 2, lambda rng: _probed(rng, (4, 2, 3, 4), (3, 1, 2, 3))),
    section="5 · Hutchinson's estimate",
    mistakes="""
    all three bugs are still there
        .mean(0) -> .sum(0)
        (x / end) ** 2 - 0.5 * np.log(2 * np.pi * end**2) -> x**2 - 0.5 * np.log(2 * np.pi)
        return prior + gained -> return prior - gained
    a bug is left: how many probes there are must not matter on average
        .mean(0) -> .sum(0)
    a bug is left: which noise does the flow end in?
        (x / end) ** 2 - 0.5 * np.log(2 * np.pi * end**2) -> x**2 - 0.5 * np.log(2 * np.pi)
    a bug is left: the flow spreads on its way to noise, so what does that say of the data?
        return prior + gained -> return prior - gained
    two bugs are left: the prior, and the probes
        .mean(0) -> .sum(0)
        (x / end) ** 2 - 0.5 * np.log(2 * np.pi * end**2) -> x**2 - 0.5 * np.log(2 * np.pi)
    two bugs are left: the sign, and the probes
        .mean(0) -> .sum(0)
        return prior + gained -> return prior - gained
    two bugs are left: the sign, and the prior
        (x / end) ** 2 - 0.5 * np.log(2 * np.pi * end**2) -> x**2 - 0.5 * np.log(2 * np.pi)
        return prior + gained -> return prior - gained
    the prior's exponent is right, but its height is not: a wide Gaussian is low
        2 * np.pi * end**2 -> 2 * np.pi
    the numbers of an example are added in the trace; only the probes are averaged
        .sum(2).mean(0) -> .mean(2).mean(0)
    the probes are given: the estimate is wanted, not the exact trace
        probes[n] ** 2 * growth -> probes[n] ** 0 * growth
    the examples of a batch have nothing to do with one another: yours are averaged
        .sum(2).mean(0) -> .sum(2).mean()
    only the first probe of each step is used
        .sum(2).mean(0) -> .sum(2)[0]
    the count of the probes is P, the second axis: yours is always 2
        .mean(0) -> .sum(0) / 2
    the estimates are averaged: yours is one estimate, with the mean of the probes
        (probes[n] ** 2 * growth).sum(2).mean(0) -> (probes[n].mean(0) ** 2 * growth).sum(1)
    each step has probes of its own: yours are those of the first step
        probes[n] ** 2 -> probes[0] ** 2
    """,
    library=("diffusion_course.grading.inputs.GaussianDenoiser",),
)


# --- 10.6 -----------------------------------------------------------------------------------
def nats_from_errors(log_snr, errors):
    signal = 1 / (1 + np.exp(-log_snr))
    gap = signal - errors.astype(float)
    inside = (np.diff(log_snr) * (gap[:, 1:] + gap[:, :-1]) / 2).sum(1)
    tails = gap[:, 0] + gap[:, -1]
    return 0.5 * np.log(2 * np.pi * np.e) - 0.5 * (inside + tails)


def _errors(rng, *cases):
    """What a denoiser for N(m, s²) says at some points, or a network with an error of its own."""
    for B, N, low, high, s2, rough in cases:
        log_snr = np.sort(rng.uniform(low, high, N))
        log_snr[[0, -1]] = low, high
        snr, off2 = np.exp(log_snr), s2 * np.linspace(0.3, 3.0, B)[:, None] * rng.uniform(0.9, 1.1)
        x0_error = (off2 + snr * s2**2) / (1 + snr * s2) ** 2
        errors = snr * x0_error * (1 + rough * rng.uniform(-1, 1, (B, N)))
        yield log_snr, errors.astype(np.float32)


NATS = exercise(
    "10.6 · A likelihood without a flow",
    nats_from_errors,
    Part(
        "a wide grid",
        2,
        lambda rng: _errors(
            rng,
            (2, 60, -9.3, 8.1, number(rng, 0.3, 2.8), 0),
            (4, 80, -8.2, 9.4, 0.04, 0),  # data so narrow that their density is above 1
            (3, 41, -8.2, 9.4, number(rng, 0.3, 2.8), 0.1),
        ),
    ),
    Part(
        "a short grid, with its tails",
        2,
        lambda rng: _errors(
            rng,
            (3, 5, -1.1, 1.9, number(rng, 0.3, 2.8), 0),
            (1, 2, -0.4, 0.7, number(rng, 0.3, 2.8), 0),
            (4, 3, -2.3, 0.6, number(rng, 0.3, 2.8), 0.2),
        ),
    ),
    section="10 · The same number without a flow: I-MMSE",
    mistakes="""
    the tails beyond the grid are missing
        inside + tails -> inside
    the tail at high noise, below the first entry, is missing
        gap[:, 0] + gap[:, -1] -> gap[:, -1]
    the tail at low noise, beyond the last entry, is missing
        gap[:, 0] + gap[:, -1] -> gap[:, 0]
    the errors are those of ε: in x0 they are smaller by the factor γ
        gap = signal - errors -> gap = signal - np.exp(log_snr) * errors
    dγ is γ·dλ: the γ is missing in the Gaussian's part
        signal = 1 / (1 + np.exp(-log_snr)) -> signal = 1 / (1 + np.exp(log_snr))
    log_snr is log γ itself, a ratio of variances: no factor 2
        np.exp(-log_snr) -> np.exp(-2 * log_snr)
    log_snr is log γ itself, a ratio of variances: no factor 2, and none on its steps
        np.exp(-log_snr) -> np.exp(-2 * log_snr)
        np.diff(log_snr) -> 2 * np.diff(log_snr)
    dγ is γ·dλ: the γ is missing in the integral between the tails
        np.diff(log_snr) * (gap[:, 1:] -> np.diff(log_snr) * (gap[:, 1:] / np.exp(log_snr[1:])
        gap[:, :-1]) / 2 -> gap[:, :-1] / np.exp(log_snr[:-1])) / 2
    nats are wanted: yours are bits
        return right / np.log(2)
    a network that errs less than the Gaussian makes the image likelier: the sign of the integral
        - 0.5 * (inside -> + 0.5 * (inside
    the integral has the factor 1/2
        - 0.5 * (inside -> - (inside
    the trapezoidal rule takes the mean of two neighbours, not one of them
        (gap[:, 1:] + gap[:, :-1]) / 2 -> gap[:, :-1]
    the trapezoidal rule takes the mean of two neighbours, not the later one
        (gap[:, 1:] + gap[:, :-1]) / 2 -> gap[:, 1:]
    the integral is over λ: over γ the trapezoids are other ones
        (np.diff(log_snr) * (gap[:, 1:] + gap[:, :-1]) / 2) ->
            (np.diff(np.exp(log_snr)) * (gap[:, 1:] / np.exp(log_snr[1:])
            + gap[:, :-1] / np.exp(log_snr[:-1])) / 2)
    the tails are integrals over γ: γ times the bracket, not the bracket alone
        gap[:, 0] + gap[:, -1] -> gap[:, 0] / np.exp(log_snr[0]) + gap[:, -1] / np.exp(log_snr[-1])
    the steps of the grid differ: yours are all of the mean length
        np.diff(log_snr) -> np.diff(log_snr).mean()
    the entropy of a unit Gaussian is ½·log 2πe: the e is missing
        2 * np.pi * np.e -> 2 * np.pi
    that is the log-density: minus it is wanted
        return -right
    """,
)


# --- 10.7 -----------------------------------------------------------------------------------
def pixel_costs(x, u, mean, std, levels):
    x, u, mean, std = (np.asarray(a, float) for a in (x, u, mean, std))
    width = 2 / (levels - 1)
    to_bits = 1 / (x.shape[1] * np.log(2))
    volume = x.shape[1] * np.log(width)

    def log_p(x, variance=0.0):
        return -0.5 * (((x - mean) ** 2 + variance) / std**2 + np.log(2 * np.pi * std**2))

    uniform = log_p(x, width**2 / 12).sum(1) + volume
    weighted = logsumexp(log_p(x + width * u).sum(2), axis=0) - np.log(len(u)) + volume
    edge = width / 2
    bins = norm.cdf((x + edge - mean) / std) - norm.cdf((x - edge - mean) / std)
    return -uniform * to_bits, -weighted * to_bits, -np.log(bins).sum(1) * to_bits


def _dequantised(rng, *cases):
    """Pixels around a model that is about as wide as a bin; of many, one lies far below it."""
    for B, D, draws, levels in cases:
        width = 2 / (levels - 1)
        std = width * rng.uniform(0.5, 1.3, D)
        mean = rng.uniform(0.3, 0.7, D) * rng.choice([-1, 1], D)
        mean[-1] = abs(mean[-1])  # far below it there are levels
        spread = np.linspace(-1.8, 1.8, B)[:, None] * rng.choice([-1, 1], D)
        drawn = mean + std * spread * rng.uniform(0.5, 1, (B, D))
        if D > 1:
            drawn[0, -1] = mean[-1] - 4.4 * std[-1]
        x = np.clip(np.rint((drawn + 1) / width), 0, levels - 1) * width - 1
        u = rng.uniform(-0.5, 0.5, (draws, B, D))
        yield *(np.float32(a) for a in (x, u, mean, std)), levels


PIXEL_COSTS = exercise(
    "10.7 · Three prices of a pixel",
    pixel_costs,
    Part("one number, one draw", 2, lambda rng: _dequantised(rng, (4, 1, 1, 2), (4, 1, 1, 17))),
    Part(
        "many numbers, many draws", 2, lambda rng: _dequantised(rng, (3, 70, 4, 33), (3, 70, 4, 65))
    ),
    section="7 · Bits of pixels: dequantisation",
    mistakes="""
    the first is exact, a mean over all u: yours is a mean over the draws
        log_p(x, width**2 / 12).sum(1) -> log_p(x + width * u).sum(2).mean(0)
    the first is a mean over all u: yours is at the middle of the bin
        width**2 / 12 -> 0
    a uniform number on an interval of width w has the variance w²/12
        width**2 / 12 -> width**2 / 3
    the log of a Gaussian has half of the square: yours adds the whole variance w²/12
        width**2 / 12 -> width**2 / 6
    the third is exact: the probability of the bin, not the density in its middle times the width
        -np.log(bins).sum(1) * to_bits -> -(log_p(x).sum(1) + volume) * to_bits
    u is in units of a bin: multiply it by the width
        x + width * u -> x + u
    a mean over the draws, not a sum
        - np.log(len(u)) ->
    the logarithm of the mean density, not the mean of the logarithms
        logsumexp(log_p(x + width * u).sum(2), axis=0) - np.log(len(u)) ->
            log_p(x + width * u).sum(2).mean(0)
    a draw is a whole image: its numbers share one weight
        logsumexp(log_p(x + width * u).sum(2), axis=0) - np.log(len(u)) ->
            (logsumexp(log_p(x + width * u), axis=0) - np.log(len(u))).sum(1)
    `levels` values have levels − 1 gaps: the bins are 2/(levels − 1) wide
        2 / (levels - 1) -> 2 / levels
    a density times the width is a probability: the width is missing in the first two
        volume = x.shape[1] * np.log(width) -> volume = 0
    the width enters once for each number: yours enters the weighted price once for each image
        np.log(len(u)) + volume -> np.log(len(u)) + np.log(width)
    u is drawn around 0 already: nothing is to be taken off it
        x + width * u -> x + width * (u - 0.5)
    the width enters once for each number
        volume = x.shape[1] * np.log(width) -> volume = np.log(width)
    those are nats: divide by log 2
        x.shape[1] * np.log(2) -> x.shape[1]
    those are the bits of whole images: divide by the count of numbers
        x.shape[1] * np.log(2) -> np.log(2)
    a bin ends half a width above and below its value
        edge = width / 2 -> edge = width
    the outer bins end half a width beyond −1 and 1, like the others
        norm.cdf((x + edge - mean) / std) - norm.cdf((x - edge - mean) / std) ->
            norm.cdf(np.where(x > 1 - edge, 9e9, x + edge - mean) / std) - norm.cdf(np.where(
            x < edge - 1, -9e9, x - edge - mean) / std)
    the order: uniform, weighted, exact
        return right[::-1]
    the signs: a likely image costs few bits
        return tuple(-value for value in right)
    """,
)


# --- 10.8 -----------------------------------------------------------------------------------
ALARM = Written("10.8", "An alarm for strange pictures", 3, section="9 · Likelihood is not quality")
