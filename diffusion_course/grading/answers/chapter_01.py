"""Exercises of chapter 01, the forward process."""

from __future__ import annotations

from functools import partial

import numpy as np

from diffusion_course.grading.exercise import Exercise, Part, Written


def _normal(rng, *shape, mean=0.0, std=1.0):
    return rng.normal(mean, std, shape).astype(np.float32)


# --- 01.1 -----------------------------------------------------------------------------------


def _one_step(x, beta, eps, keep=lambda beta: np.sqrt(1 - beta), add=np.sqrt):
    return keep(beta) * x + add(beta) * eps


def _rest(beta):
    """What is missing from the signal's factor to 1."""
    return 1 - np.sqrt(1 - beta)


def _any_step(rng):
    for shape in ((7,), (3, 4, 4, 1)):
        x = _normal(rng, *shape, mean=0.7, std=1.9)
        yield x, float(rng.uniform(0.05, 0.6)), _normal(rng, *shape)


ONE_STEP = Exercise(
    id="01.1",
    title="One step of noise",
    function="noise_step",
    parts=(Part("any picture, any beta", 2, lambda rng: list(_any_step(rng))),),
    oracle=_one_step,
    mistakes={
        "β is a variance: the noise must be multiplied by its square root": (
            partial(_one_step, add=lambda beta: beta)
        ),
        "1 − β is a variance: the signal must be multiplied by its square root": (
            partial(_one_step, keep=lambda beta: 1 - beta)
        ),
        "both factors are variances: what multiplies an array is a standard deviation": (
            partial(_one_step, keep=lambda beta: 1 - beta, add=lambda beta: beta)
        ),
        "the two factors are swapped": partial(
            _one_step, keep=np.sqrt, add=lambda beta: np.sqrt(1 - beta)
        ),
        "the two factors add up to 1: it is their squares that should": (
            partial(_one_step, add=_rest)
        ),
        "the two factors add up to 1: √(1 − β) is not 1 − √β": (
            partial(_one_step, keep=lambda beta: 1 - np.sqrt(beta))
        ),
        "the picture must shrink a little, or its variance grows with every step": (
            partial(_one_step, keep=lambda beta: 1.0)
        ),
        "the noise is missing": partial(_one_step, add=lambda beta: 0.0),
        "the noise is shrunk as well: √(1 − β) belongs to the picture alone": (
            partial(_one_step, add=lambda beta: np.sqrt((1 - beta) * beta))
        ),
        "the noise is added, not subtracted": partial(_one_step, add=lambda beta: -np.sqrt(beta)),
    },
)


# --- 01.2 -----------------------------------------------------------------------------------


def _alpha_bar(betas):
    return np.concatenate([[1.0], np.cumprod(1 - betas)])


def _chains(rng):
    yield (rng.uniform(0.05, 0.4, 5),)
    yield (rng.uniform(0.2, 0.7, 23),)
    yield (np.append(rng.uniform(0.05, 0.4, 3), 1.0),)  # nothing is left at the end


ALPHA_BAR = Exercise(
    id="01.2",
    title="The table of ᾱ",
    function="alpha_bar",
    parts=(
        # Away from 0.382, where β is (1 − β)².
        Part("a chain of one step", 1, lambda rng: [(rng.uniform(0.05, 0.3, 1),)]),
        Part("chains of many steps", 1, lambda rng: list(_chains(rng))),
    ),
    oracle=_alpha_bar,
    mistakes={
        "the first entry is missing: ᾱ_0, the product over no step at all": (
            lambda betas: np.cumprod(1 - betas)
        ),
        "a step keeps the share 1 − β: multiply what the steps keep, not what they replace": (
            lambda betas: np.concatenate([[1.0], np.cumprod(betas)])
        ),
        "what the steps take away doesn't add up: each takes its share of what is left": (
            lambda betas: np.concatenate([[1.0], 1 - np.cumsum(betas)])
        ),
        "that is the exponential of a sum of β, which equals ᾱ only if every β is tiny": (
            lambda betas: np.concatenate([[1.0], np.exp(-np.cumsum(betas))])
        ),
        "ᾱ belongs to variances: that is its square root, the signal level α": (
            lambda betas: np.sqrt(_alpha_bar(betas))
        ),
        "that is the noise's share of the variance; ᾱ is the signal's": (
            lambda betas: 1 - _alpha_bar(betas)
        ),
        "the first entry is a product over no step at all, and that is not 0": (
            lambda betas: np.concatenate([[0.0], np.cumprod(1 - betas)])
        ),
        "the 1 of step 0 stands at the wrong end of the table": (
            lambda betas: np.append(np.cumprod(1 - betas), 1.0)
        ),
        "the last step is missing: T betas make T + 1 entries": (
            lambda betas: _alpha_bar(betas)[:-1]
        ),
        "each entry is what one step keeps; multiply all the steps so far": (
            lambda betas: np.append(1.0, 1 - betas)
        ),
    },
    atol=1e-9,  # the last entries are small, and the ones that matter
)


# --- 01.3 -----------------------------------------------------------------------------------


def _mix(x0, eps, signal, noise):
    """signal·x0 + noise·eps with one factor per image, [B] each."""
    column = (-1, 1, 1, 1)
    return signal.reshape(column) * x0 + noise.reshape(column) * eps


def _jump(x0, eps, n, table):
    return _mix(x0, eps, np.sqrt(table[n]), np.sqrt(1 - table[n]))


def _images(rng, *shape):
    return _normal(rng, *shape, mean=0.6, std=1.7), _normal(rng, *shape)


def _both_ends(rng):
    table = _alpha_bar(np.append(rng.uniform(0.1, 0.5, 5), 1.0))
    for n in (0, 6):
        yield *_images(rng, 2, 4, 5, 1), np.full(2, n, np.int32), table


def _own_steps(rng, *shape):
    table = _alpha_bar(rng.uniform(0.1, 0.5, 8))
    n = rng.choice(np.arange(1, 8), shape[0], replace=False).astype(np.int32)
    return *_images(rng, *shape), n, table


def _jump_along(axis):
    """The jump with its factors along another axis than the first."""

    def wrong(x0, eps, n, table):
        shape = [1, 1, 1, 1]
        shape[axis] = -1
        level = table[n]
        if x0.shape[axis] not in (1, len(n)):  # as they would have to be to go through
            level = np.resize(level, x0.shape[axis])
        level = level.reshape(shape)
        return np.sqrt(level) * x0 + np.sqrt(1 - level) * eps

    return wrong


JUMP = Exercise(
    id="01.3",
    title="Any step at once",
    function="jump",
    parts=(
        Part("the ends: n = 0 is the data, n = T the noise", 1, lambda rng: list(_both_ends(rng))),
        Part("one step per image", 1, lambda rng: [_own_steps(rng, 2, 4, 5, 1)]),
        Part(
            "as many images as rows, columns and colours",
            1,
            lambda rng: [_own_steps(rng, 3, 3, 3, 3)],
        ),
    ),
    oracle=_jump,
    mistakes={
        "the noise is multiplied by its variance, not by its standard deviation": (
            lambda x0, eps, n, table: _mix(x0, eps, np.sqrt(table[n]), 1 - table[n])
        ),
        "the signal is multiplied by ᾱ: that is its factor in variances, not in values": (
            lambda x0, eps, n, table: _mix(x0, eps, table[n], np.sqrt(1 - table[n]))
        ),
        "the two factors add up to 1: it is their squares that should": (
            lambda x0, eps, n, table: _mix(x0, eps, np.sqrt(table[n]), 1 - np.sqrt(table[n]))
        ),
        "both factors are variances: what multiplies an array is a standard deviation": (
            lambda x0, eps, n, table: _mix(x0, eps, table[n], 1 - table[n])
        ),
        "signal and noise are swapped, or the steps are counted from the other end": (
            lambda x0, eps, n, table: _mix(x0, eps, np.sqrt(1 - table[n]), np.sqrt(table[n]))
        ),
        "off by one step: entry 0 of the table is the data, so step n is entry n": (
            lambda x0, eps, n, table: _jump(x0, eps, n - 1, table)
        ),
        "one step too far: the table begins with step 0, so step n is entry n": (
            lambda x0, eps, n, table: _jump(x0, eps, np.minimum(n + 1, len(table) - 1), table)
        ),
        "the steps are counted from the other end of the table": (
            lambda x0, eps, n, table: _jump(x0, eps, len(table) - 1 - n, table)
        ),
        "noise was added, but the data must be shrunk as well": (
            lambda x0, eps, n, table: _mix(x0, eps, np.ones(len(n)), np.sqrt(1 - table[n]))
        ),
        "all images are given the same mean level: each has its own n": (
            lambda x0, eps, n, table: _jump(x0, eps, np.zeros_like(n), table[n].mean(keepdims=True))
        ),
        "all images are taken to the step of the first: each has its own n": (
            lambda x0, eps, n, table: _jump(x0, eps, np.full_like(n, n[0]), table)
        ),
    }
    | {
        f"the factors change from {name} to {name}: they should change from image to image": (
            _jump_along(axis)
        )
        for axis, name in ((1, "row"), (2, "column"), (3, "colour"))
    },
)


# --- 01.4 -----------------------------------------------------------------------------------


def _cosine(T, s, angle=lambda t, s: (t + s) / (1 + s), right=np.pi / 2):
    """f(0) … f(T) of Nichol & Dhariwal 2021, eq. 17."""
    return np.cos(angle(np.arange(T + 1) / T, s) * right) ** 2


def _to_betas(alpha_bar, max_beta):
    return np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], max_beta)


def _of_another_angle(**how):
    return lambda T, s, max_beta: _to_betas(_cosine(T, s, **how), max_beta)


def _only_the_last(T, s, max_beta):
    betas = _to_betas(_cosine(T, s), 1)
    return np.append(betas[:-1], max_beta)


def _cosine_cases(rng, lowest, highest):
    for T in (int(rng.integers(5, 9)), int(rng.integers(20, 40))):
        yield T, float(rng.uniform(0.04, 0.2)), float(rng.uniform(lowest, highest))


COSINE = Exercise(
    id="01.4",
    title="The cosine schedule",
    function="cosine_betas",
    parts=(
        Part("the formula (max_beta = 1)", 1, lambda rng: list(_cosine_cases(rng, 1, 1))),
        Part("the clip", 1, lambda rng: list(_cosine_cases(rng, 0.3, 0.6))),
    ),
    oracle=lambda T, s, max_beta: _to_betas(_cosine(T, s), max_beta),
    mistakes={
        "no beta may be larger than max_beta": lambda T, s, max_beta: _to_betas(_cosine(T, s), 1),
        "the cosine is not squared": (
            lambda T, s, max_beta: _to_betas(np.sqrt(_cosine(T, s)), max_beta)
        ),
        "the offset s has no effect": lambda T, s, max_beta: _to_betas(_cosine(T, 0), max_beta),
        "with the offset the angle leads past a right angle: it isn't divided by 1 + s": (
            _of_another_angle(angle=lambda t, s: t + s)
        ),
        "all of n/T + s is divided by 1 + s: a pair of brackets is missing": (
            _of_another_angle(angle=lambda t, s: t + s / (1 + s))
        ),
        # Both end in the same huge number, f(T + 1) = f(T − 1) over f(T) = 0.
        "each f(n) is divided by f(n − 1): yours is off by one, or the quotient is upside down": (
            _of_another_angle(angle=lambda t, s: (t + t[1] + s) / (1 + s))
        ),
        "the angle must end at a right angle, which is half of π": _of_another_angle(right=np.pi),
        "that is the noise of all steps so far: a beta compares ᾱ with its neighbour": (
            lambda T, s, max_beta: np.minimum(1 - _cosine(T, s)[1:] / _cosine(T, s)[0], max_beta)
        ),
        "a beta is 1 minus a quotient of neighbours; yours is their difference": (
            lambda T, s, max_beta: np.minimum(-np.diff(_cosine(T, s)) / _cosine(T, s)[0], max_beta)
        ),
        "the quotient of neighbours is what a step keeps; a beta is what it replaces": (
            lambda T, s, max_beta: np.minimum(1 - _to_betas(_cosine(T, s), 1), max_beta)
        ),
        "max_beta is a limit for every beta, not the value of the last": _only_the_last,
        "the first beta is off: ᾱ is 1 at step 0, but f(0) isn't": (
            lambda T, s, max_beta: _to_betas(np.append(1.0, _cosine(T, s)[1:]), max_beta)
        ),
    },
)


# --- 01.5 -----------------------------------------------------------------------------------


def _log_alpha_bar(betas):
    return np.log1p(-betas).sum()


def _log_snr(log_alpha_bar):
    return log_alpha_bar - np.log(-np.expm1(log_alpha_bar))


def _terminal(betas):
    return _log_snr(_log_alpha_bar(betas))


def _product_then_log(betas):
    alpha_bar = np.prod(1 - betas)
    return np.log(alpha_bar) - np.log(1 - alpha_bar)


TERMINAL = Exercise(
    id="01.5",
    title="How noisy is the end?",
    function="terminal_log_snr",
    parts=(
        Part(
            "any schedule",
            1,
            lambda rng: [(rng.uniform(0.02, 0.1, 7),), (rng.uniform(0.05, 0.4, 30),)],
        ),
        Part("hardly any noise", 1, lambda rng: [(rng.uniform(1e-19, 1e-18, 12),)]),
        Part("hardly any signal", 1, lambda rng: [(rng.uniform(0.8, 0.95, 600),)]),
    ),
    oracle=_terminal,
    mistakes={
        "tiny β are lost in a difference from 1: neither 1 − β nor 1 − ᾱ may be computed as one": (
            lambda betas: _log_alpha_bar(betas) - np.log(1 - np.exp(_log_alpha_bar(betas)))
        ),
        "neither ᾱ nor 1/ᾱ fits into a number here, but its logarithm is an ordinary one": (
            _product_then_log
        ),
        "half of what it should be: the ratio compares variances, not standard deviations": (
            lambda betas: _terminal(betas) / 2
        ),
        "that is the ratio itself: its logarithm is missing": lambda betas: np.exp(
            _terminal(betas)
        ),
        "the ratio is upside down: the signal stands above the noise": (
            lambda betas: -_terminal(betas)
        ),
        "that is what the last step alone does: the end has all steps behind it": (
            lambda betas: np.log1p(-betas[-1]) - np.log(betas[-1])
        ),
        "that is the logarithm of ᾱ alone: the noise, 1 − ᾱ, is missing below it": _log_alpha_bar,
        "log(1 − β) is −β only if β is tiny": lambda betas: _log_snr(-np.sum(betas)),
        "the logarithms of signal and noise are added: that belongs to a product, not a ratio": (
            lambda betas: 2 * _log_alpha_bar(betas) - _terminal(betas)
        ),
        "the ratios of single steps don't multiply; the signal that they leave does": (
            lambda betas: np.sum(np.log1p(-betas) - np.log(betas))
        ),
    },
)


# --- 01.6 -----------------------------------------------------------------------------------


def _chain(
    x0,
    betas,
    eps,
    factor=np.sqrt,
    fresh=True,
    keep=lambda beta: np.sqrt(1 - beta),
    on=True,
    late=False,
):
    """Equation (1), step by step; the other arguments are ways to get it wrong."""
    path = [x0.astype(float)]
    for n, beta in enumerate(betas):
        noise = eps[min(n + late, len(eps) - 1) if fresh else 0]
        path.append(keep(beta) * path[-1 if on else 0] + factor(beta) * noise)
    return np.stack(path)


def _jumps(x0, betas, eps, fresh=True):
    """Every entry by equation (2), each with one noise."""
    levels = zip(_alpha_bar(betas)[1:], eps if fresh else eps[:1].repeat(len(eps), 0), strict=True)
    jumped = [np.sqrt(level) * x0 + np.sqrt(1 - level) * noise for level, noise in levels]
    return np.stack([x0, *jumped])


def _walks(rng, *lengths):
    for T, shape in zip(lengths, ((4,), (2, 3, 3, 1)), strict=True):
        x0 = _normal(rng, *shape, mean=0.8, std=1.6)
        yield x0, rng.uniform(0.1, 0.5, T), _normal(rng, T, *shape)


CHAIN = Exercise(
    id="01.6",
    title="A chain with two bugs",
    function="noising_chain",
    parts=(
        Part("a chain of one step", 1, lambda rng: list(_walks(rng, 1, 1))),
        Part("chains of many steps", 2, lambda rng: list(_walks(rng, 4, 7))),
    ),
    oracle=_chain,
    mistakes={
        "the factors of signal and noise add up to 1: what should, by equation (1)?": (
            lambda x0, betas, eps: _chain(x0, betas, eps, _rest)
        ),
        "one bug is left: what should the noises of two steps have to do with each other?": (
            lambda x0, betas, eps: _chain(x0, betas, eps, fresh=False)
        ),
        "it is the squares of the two factors that add up to 1, and `keep` is one of the factors": (
            partial(_chain, factor=lambda beta: np.sqrt(_rest(beta)))
        ),
        # In a chain of one step it can't be told from the first.
        "both bugs are still there": lambda x0, betas, eps: _chain(x0, betas, eps, _rest, False),
        "β is a variance, and what multiplies the noise is a standard deviation": (
            lambda x0, betas, eps: _chain(x0, betas, eps, lambda beta: beta)
        ),
        "1 − β is a variance, and what multiplies the picture is a standard deviation": (
            partial(_chain, keep=lambda beta: 1 - beta)
        ),
        "both factors are variances: what multiplies an array is a standard deviation": (
            partial(_chain, keep=lambda beta: 1 - beta, factor=lambda beta: beta)
        ),
        "each step goes on from the step before; yours starts from x_0 every time": (
            partial(_chain, on=False)
        ),
        "those are jumps from x_0 with one noise each; in a chain the old noise stays": _jumps,
        "those are jumps from x_0, all with the same noise; a chain adds new noise": (
            partial(_jumps, fresh=False)
        ),
        "the noises are off by one: the first of them, eps[0], belongs to step 1": (
            partial(_chain, late=True)
        ),
        "the data are missing: the path begins with x_0": (
            lambda x0, betas, eps: _chain(x0, betas, eps)[1:]
        ),
    },
)


# --- 01.7 -----------------------------------------------------------------------------------


def _log_levels(log_snr):
    """log ᾱ_0 … log ᾱ_T of the log-SNRs after steps 1 … T."""
    return np.append(0.0, -np.logaddexp(0, -log_snr))


def _schedule(log_snr):
    return -np.expm1(np.diff(_log_levels(log_snr)))


def _sigmoid_then_ratio(log_snr):
    alpha_bar = np.append(1.0, 1 / (1 + np.exp(-log_snr)))
    return 1 - alpha_bar[1:] / alpha_bar[:-1]


def _ladder(rng, top, bottom, T):
    """A falling ladder of log-SNRs whose rungs are not equally far apart."""
    gaps = rng.uniform(0.5, 1.5, T + 1)
    return (top + (bottom - top) * np.cumsum(gaps)[:-1] / gaps.sum(),)


LADDER = Exercise(
    id="01.7",
    title="A schedule from its log-SNR",
    function="betas_from_log_snr",
    parts=(
        Part(
            "any ladder",
            1,
            lambda rng: [_ladder(rng, 4, -7, 6), _ladder(rng, 5, -3, 11)],
        ),
        Part("a ladder close to the data", 1, lambda rng: [_ladder(rng, 60, 38, 9)]),
        Part("a ladder deep in the noise", 1, lambda rng: [_ladder(rng, -750, -790, 9)]),
    ),
    oracle=_schedule,
    mistakes={
        "close to the data a β is far smaller than 1, and a difference from 1 rounds it to 0": (
            lambda log_snr: 1 - np.exp(np.diff(_log_levels(log_snr)))
        ),
        "deep in the noise ᾱ is rounded to 0 or e^(−λ) overflows: stay in logarithms": (
            _sigmoid_then_ratio
        ),
        "λ compares variances, not standard deviations: it isn't log(α/σ)": (
            lambda log_snr: _schedule(2 * log_snr)
        ),
        "signal and noise are swapped: a large λ means much signal": (
            lambda log_snr: _schedule(-log_snr)
        ),
        "one step is missing: the first begins at the data, where ᾱ is 1": (
            lambda log_snr: _schedule(log_snr)[1:]
        ),
        "that is the noise of all steps so far: a β is what one step adds": (
            lambda log_snr: np.exp(-np.logaddexp(0, log_snr))
        ),
        "before the first step ᾱ is 1, and its logarithm isn't": (
            lambda log_snr: -np.expm1(np.diff(np.append(1.0, _log_levels(log_snr)[1:])))
        ),
        "the first beta is 0: the first step begins at the data, where ᾱ is 1": (
            lambda log_snr: np.append(0.0, _schedule(log_snr)[1:])
        ),
        "a difference of logarithms is the logarithm of a quotient: the way back is missing": (
            lambda log_snr: -np.diff(_log_levels(log_snr))
        ),
        "that is what a step keeps, 1 − β": lambda log_snr: 1 - _schedule(log_snr),
        "a beta is 1 minus a quotient of neighbours; yours is their difference": (
            lambda log_snr: -np.diff(np.exp(_log_levels(log_snr)))
        ),
    },
    atol=0.0,  # the first betas may be tiny, and the ones that matter
)


EXERCISES = (
    ONE_STEP,
    ALPHA_BAR,
    JUMP,
    COSINE,
    TERMINAL,
    CHAIN,
    LADDER,
    Written("01.8", "Right at both ends", 2),
)
