"""Exercises of chapter 05, the bound."""

from __future__ import annotations

from functools import partial

import numpy as np
from scipy.special import ndtr

from diffusion_course.grading.exercise import Exercise, Part, Written
from diffusion_course.grading.inputs import GaussianDenoiser

_LOG_2 = np.log(2)


def _numbers(rng, *shape, mean=0.6, std=1.3):
    return rng.normal(mean, std, shape).astype(np.float32)


def _levels(rng):
    """ᾱ_t < ᾱ_s of a step that is neither short nor near an end."""
    abar_s = float(rng.uniform(0.4, 0.85))
    return float(abar_s * rng.uniform(0.3, 0.8)), abar_s


# --- 05.1 -----------------------------------------------------------------------------------


def _each(nats, reduce=np.mean):
    return reduce(nats.reshape(len(nats), -1), axis=1)


def _nats(mean_q, log_var_q, mean_p, log_var_p):
    ratio = np.exp(log_var_q - log_var_p)
    distance = (mean_q - mean_p) ** 2 * np.exp(-log_var_p)
    return (ratio - 1 - np.log(ratio) + distance) / 2


def _bits(*gaussians):
    return _each(_nats(*gaussians)) / _LOG_2


def _of_deviations(mean_q, log_var_q, mean_p, log_var_p):
    return _bits(mean_q, log_var_q / 2, mean_p, log_var_p / 2)


def _means_only(mean_q, log_var_q, mean_p, log_var_p):
    return _each((mean_q - mean_p) ** 2 * np.exp(-log_var_p) / 2) / _LOG_2


def _gaussians(rng):
    for shape in ((2, 3, 4, 1), (3, 5)):
        yield tuple(
            _numbers(rng, *shape, mean=mean, std=0.7) for mean in (0.6, -1.4, -0.5, 0.4)
        )  # mean and log-variance of q, then of p


def _equal_gaussians(rng):
    """Images that the model knows, beside one that it does not: all zeros would hide much."""
    mean, log_var = _numbers(rng, 3, 4), _numbers(rng, 3, 4, mean=-1.0, std=0.5)
    other = mean + np.array([[0.0], [0.0], [0.9]], np.float32)
    return [(mean, log_var, other, log_var)]


KL = Exercise(
    id="05.1",
    title="The price of a wrong Gaussian",
    function="kl_bits",
    parts=(
        Part("two oracles and one wrong mean", 1, _equal_gaussians),
        Part("any Gaussians", 1, lambda rng: list(_gaussians(rng))),
    ),
    oracle=_bits,
    mistakes={
        "that is in nats: divide by log 2": lambda *g: _each(_nats(*g)),
        "per dimension means the mean over all coordinates, and yours is their sum": (
            lambda *g: _each(_nats(*g), np.sum) / _LOG_2
        ),
        "one half is missing: a Gaussian's exponent has a 2 below its variance": (
            lambda *g: 2 * _bits(*g)
        ),
        "the two Gaussians are exchanged: q, the truth, is the one that is averaged over": (
            lambda mean_q, log_var_q, mean_p, log_var_p: _bits(mean_p, log_var_p, mean_q, log_var_q)
        ),
        "a wrong mean has a price in yours, a wrong variance has none": _means_only,
        "those are logarithms of variances; you took them for standard deviations'": (
            _of_deviations
        ),
    },
)


# --- 05.2 -----------------------------------------------------------------------------------


def _best(doubt, abar_t, abar_s):
    beta = 1 - abar_t / abar_s
    c = np.sqrt(abar_s) * beta / (1 - abar_t)
    return beta * (1 - abar_s) / (1 - abar_t) + c**2 * doubt


def _best_not_squared(doubt, abar_t, abar_s):
    beta = 1 - abar_t / abar_s
    c = np.sqrt(abar_s) * beta / (1 - abar_t)
    return beta * (1 - abar_s) / (1 - abar_t) + c * doubt


def _best_from_beta(doubt, abar_t, abar_s):
    beta = 1 - abar_t / abar_s
    return beta + abar_s * (beta / (1 - abar_t)) ** 2 * doubt


def _best_along_x_t(doubt, abar_t, abar_s):
    beta = 1 - abar_t / abar_s
    on_x_t = np.sqrt(abar_t / abar_s) * (1 - abar_s) / (1 - abar_t)
    return beta * (1 - abar_s) / (1 - abar_t) + on_x_t**2 * doubt


def _best_interpolated(doubt, abar_t, abar_s):
    beta = 1 - abar_t / abar_s
    beta_tilde = beta * (1 - abar_s) / (1 - abar_t)
    return beta_tilde + (beta - beta_tilde) * doubt


def _doubts(make):
    def cases(rng):
        levels = _levels(rng)
        return [(make(rng, *levels).astype(np.float32), *levels)]

    return cases


BEST_VARIANCE = Exercise(
    id="05.2",
    title="Between two variances",
    function="best_variance",
    parts=(
        Part("no doubt: one point", 1, _doubts(lambda rng, t, s: np.zeros((2, 3)))),
        Part(
            "the doubt of standard normal data, and half of it",
            1,
            _doubts(lambda rng, t, s: np.repeat([[1.0], [0.5]], 3, axis=1) * (1 - t)),
        ),
        Part("any doubt", 1, _doubts(lambda rng, t, s: rng.uniform(0.05, 1.4, (3, 4)))),
    ),
    oracle=_best,
    mistakes={
        "a factor of x0 is squared in the variance": _best_not_squared,
        "the noise of the step, if x0 is known, is that of the posterior: less than β": (
            _best_from_beta
        ),
        "that is the factor of x_t, which is known; the doubt is about x0": _best_along_x_t,
        "the doubt must be multiplied by c², since the step carries only a part of it": (
            lambda doubt, abar_t, abar_s: _best(0 * doubt, abar_t, abar_s) + doubt
        ),
        "the doubt is a variance already: it must not be squared once more": (
            lambda doubt, abar_t, abar_s: _best(doubt**2, abar_t, abar_s)
        ),
        "a straight line from β̃ to β is right only where the doubt is measured in 1 − ᾱ_t": (
            _best_interpolated
        ),
    },
)


# --- 05.3 -----------------------------------------------------------------------------------


def _weight(abar_t, abar_s, kind, power=1.0, at_s=False):
    """In bits; the other arguments are ways to get the conversion of the error wrong."""
    snr_t, snr_s = abar_t / (1 - abar_t), abar_s / (1 - abar_s)
    abar = abar_s if at_s else abar_t
    unit = {"x0": 1.0, "eps": (1 - abar) / abar, "v": 1 - abar}[kind]
    return (snr_s - snr_t) / 2 * unit**power / _LOG_2


def _weight_of_alphas(abar_t, abar_s, kind):
    """With α²/σ where α²/σ² belongs."""
    snr_t, snr_s = abar_t / np.sqrt(1 - abar_t), abar_s / np.sqrt(1 - abar_s)
    unit = {"x0": 1.0, "eps": (1 - abar_t) / abar_t, "v": 1 - abar_t}[kind]
    return (snr_s - snr_t) / 2 * unit / _LOG_2


def _pairs_of_levels(kind):
    def cases(rng):
        abar_s = rng.uniform(0.3, 0.9, 5)
        abar_t = abar_s * rng.uniform(0.3, 0.9, 5)
        return [(abar_t.astype(np.float32), abar_s.astype(np.float32), kind)]

    return cases


WEIGHT = Exercise(
    id="05.3",
    title="From the simple loss to the bound",
    function="bound_weight",
    parts=tuple(Part(f"kind {kind!r}", 1, _pairs_of_levels(kind)) for kind in ("eps", "x0", "v")),
    oracle=_weight,
    mistakes={
        "that is in nats: divide by log 2": lambda *a: _weight(*a) * _LOG_2,
        "one half is missing, which stands before the squared distance of the means": (
            lambda *a: 2 * _weight(*a)
        ),
        "that is the weight for eps, which is wrong for the other kinds": (
            lambda abar_t, abar_s, kind: _weight(abar_t, abar_s, "eps")
        ),
        "that is the weight for x0, which is wrong for the other kinds": (
            lambda abar_t, abar_s, kind: _weight(abar_t, abar_s, "x0")
        ),
        "the sign: nearer to the data the ratio of signal to noise is larger": (
            lambda *a: -_weight(*a)
        ),
        "the levels of t and s are exchanged": (
            lambda abar_t, abar_s, kind: _weight(abar_s, abar_t, kind)
        ),
        "the ratio of signal to noise is one of variances: ᾱ/(1 − ᾱ), without a root": (
            _weight_of_alphas
        ),
        "the error is squared, so what turns it into one of x0 must be squared as well": (
            partial(_weight, power=0.5)
        ),
        "what turns the error into one of x0 is upside down": partial(_weight, power=-1.0),
        "the network is asked at t: its error turns into one of x0 with the levels of t, not s": (
            partial(_weight, at_s=True)
        ),
    },
)


# --- 05.4 -----------------------------------------------------------------------------------


def _probability(x0, mean, std, levels, width=1.0, closed=False, shift=0.0, exact=False, more=0.0):
    """Log-probability of a bin; the other arguments are ways to get it wrong."""
    half = width / (levels - 1)
    upper = ndtr((x0 + half + shift / (levels - 1) - mean) / std)
    lower = ndtr((x0 - half + shift / (levels - 1) - mean) / std)
    if not closed:
        end = 1 if exact else 1 - 1 / (levels - 1)
        upper, lower = np.where(x0 >= end, 1, upper), np.where(x0 <= -end, 0, lower)
    return np.log(upper - lower + more)


def _density(x0, mean, std, levels):
    return -0.5 * ((x0 - mean) / std) ** 2 - np.log(std) - 0.5 * np.log(2 * np.pi)


def _pixels(rng, x0, levels, off, edge=0.0):
    """Means that lie `off` standard deviations above a grey level, or above the edge of its bin."""
    std = rng.uniform(0.15, 0.4, x0.shape)
    mean = x0 + edge + rng.uniform(*off, x0.shape) * std
    return *(a.astype(np.float32) for a in (x0, mean, std)), levels


def _between_the_ends(rng):
    """Some likely levels; and some of a probability near 1e-4, to which nothing may be added."""
    levels = int(rng.integers(9, 14))
    x0 = -1 + 2 * rng.integers(1, levels - 1, (3, 4)) / (levels - 1)
    yield _pixels(rng, x0, levels, (-1.5, 1.5))
    yield _pixels(rng, x0, levels, (3.6, 3.8), edge=1 / (levels - 1))


def _ends(rng):
    """The ends among other levels, exact in the first row and off by a rounding in the others."""
    levels = int(rng.integers(9, 14))
    end = levels - 1
    index = np.array([[0, end, 3, 2], [end, 2, 0, 4], [1, 0, end, 3]])
    x0 = (-1 + 2 * index / end).astype(np.float32)
    x0[1:] = np.nextafter(x0[1:], np.float32(0))
    yield _pixels(rng, x0, levels, (-1.5, 1.5))


PROBABILITY = Exercise(
    id="05.4",
    title="The probability of a grey level",
    function="log_probability",
    parts=(
        Part("levels between the ends", 2, lambda rng: list(_between_the_ends(rng))),
        Part("the lowest and the highest level", 1, lambda rng: list(_ends(rng))),
    ),
    oracle=_probability,
    mistakes={
        "that is a density; a probability is an integral over the bin": _density,
        "a bin ends half-way to the neighbour; yours reaches all the way": (
            partial(_probability, width=2.0)
        ),
        "the lowest and the highest bin are open, so that the probabilities add up to 1": (
            partial(_probability, closed=True)
        ),
        "x0 may be off by a rounding: an end is missed if it must be exactly −1 or 1": (
            partial(_probability, exact=True)
        ),
        "what is added to a probability makes an unlikely level too cheap": (
            partial(_probability, more=1e-5)
        ),
        "the bin begins at x0 in yours; x0 lies in its middle": partial(_probability, shift=1.0),
        "the probability itself is not asked for, but its logarithm": (
            lambda *a: np.exp(_probability(*a))
        ),
        "std is a standard deviation already: no root of it": (
            lambda x0, mean, std, levels: _probability(x0, mean, np.sqrt(std), levels)
        ),
    },
    rtol=1e-3,  # the difference of two float32 distribution functions
    atol=1e-4,
)


# --- 05.5 -----------------------------------------------------------------------------------


def _learned(u, beta, beta_tilde):
    share = (u + 1) / 2
    return share * np.log(beta) + (1 - share) * np.log(beta_tilde)


def _learned_on_a_straight_scale(u, beta, beta_tilde):
    share = (u + 1) / 2
    return np.log(share * beta + (1 - share) * beta_tilde)


def _learned_within(u, beta, beta_tilde):
    return _learned(np.clip(u, -1, 1), beta, beta_tilde)


def _outputs(make):
    def cases(rng):
        beta = float(rng.uniform(0.05, 0.4))
        return [(make(rng).astype(np.float32), beta, float(beta * rng.uniform(0.2, 0.6)))]

    return cases


LEARNED = Exercise(
    id="05.5",
    title="A variance to learn",
    function="learned_log_variance",
    parts=(
        Part("the ends and the middle", 1, _outputs(lambda rng: np.array([-1.0, 0.0, 1.0]))),
        Part("any output", 1, _outputs(lambda rng: rng.normal(0.4, 1.2, (3, 4)))),
    ),
    oracle=_learned,
    mistakes={
        "the scale is logarithmic: mix the logarithms, not the variances": (
            _learned_on_a_straight_scale
        ),
        "the share of log β is (u + 1)/2, so that u = 0 is the middle": (
            lambda u, beta, beta_tilde: _learned(2 * u - 1, beta, beta_tilde)
        ),
        "the two ends are exchanged: u = 1 is the larger one, β": (
            lambda u, beta, beta_tilde: _learned(-u, beta, beta_tilde)
        ),
        "the logarithm of the variance is asked for, not the variance": (
            lambda *a: np.exp(_learned(*a))
        ),
        "nothing keeps u between −1 and 1: do not clip it": _learned_within,
    },
)


# --- 05.6 -----------------------------------------------------------------------------------


def _chain(
    denoise, x0, noises, abar, peeks=False, forgets=False, prior=True, other=False, tilde=False
):
    """The bound of a chain in nats; the other arguments are ways to get it wrong."""
    total = prior * abar[0] * x0**2 / (1 - abar[0]) / 2
    for noise, abar_t, abar_s in zip(noises, abar[:-1], abar[1:], strict=True):
        seen = abar_s if peeks else abar_t
        x_t = np.sqrt(seen) * x0 + np.sqrt(1 - seen) * noise
        error = (x0 - denoise(x_t, np.sqrt(abar_t), np.sqrt(1 - abar_t))) ** 2
        beta = 1 - abar_t / abar_s
        if abar_s == 1:
            total = total + (error / beta + np.log(2 * np.pi * beta)) / 2
            continue
        c = np.sqrt(abar_s) * beta / (1 - abar_t)
        ratio = (1 - abar_s) / (1 - abar_t)
        ratio = 1 / ratio if other else ratio
        of_variance = 0 if forgets else ratio - 1 - np.log(ratio)
        of_mean = c**2 * error / (beta * (1 - abar_s) / (1 - abar_t) if tilde else beta)
        total = total + (of_variance + of_mean) / 2
    return total


def _chains(rng, steps):
    noisy = np.sort(rng.uniform(0.05, 0.9, steps))
    denoise = GaussianDenoiser(mean=float(rng.uniform(0.7, 1.3)), std=float(rng.uniform(0.4, 0.8)))
    noise = rng.normal(size=(steps, 4)).astype(np.float32)
    return [(denoise, _numbers(rng, 4, mean=1.0, std=0.6), noise, np.append(noisy, 1.0))]


CHAIN = Exercise(
    id="05.6",
    title="This bound is broken",
    function="chain_bound",
    parts=(
        Part("a single step: prior and reconstruction", 1, lambda rng: _chains(rng, 1)),
        Part("a whole chain", 3, lambda rng: _chains(rng, 6)),
    ),
    oracle=_chain,
    mistakes={
        "a bug is left: the model's variance is not the posterior's, and that costs bits too": (
            partial(_chain, forgets=True)
        ),
        "a bug is left: the denoiser is shown the cleaner end of the step": (
            partial(_chain, peeks=True)
        ),
        "both bugs are still there": partial(_chain, forgets=True, peeks=True),
        "the model's variance is β: with β̃ in its place you bound another model, not this one": (
            partial(_chain, forgets=True, tilde=True)
        ),
        "the error of the mean is measured by the model's variance, and that is not β̃": (
            partial(_chain, tilde=True)
        ),
        "the prior has gone: x at the first level must be paid for too": (
            partial(_chain, prior=False)
        ),
        "the ratio of the variances is upside down: q's stands above the model's": (
            partial(_chain, other=True)
        ),
    },
)


# --- 05.7 -----------------------------------------------------------------------------------


def _gradient(
    output,
    mu_tilde,
    beta,
    beta_tilde,
    lam,
    leaks=False,
    learns=True,
    teaches=True,
    covers=True,
    slope=0.5,
    middle=0.5,
    reverse=False,
):
    """By hand; `leaks` and so on are paths that a gradient should not take, or should.

    The share of log β is slope·u + middle.
    """
    mean, u = np.split(output, 2, axis=-1)
    v = np.exp(_learned(2 * (slope * u + middle) - 1, beta, beta_tilde))
    off = mean - mu_tilde
    along_mean = teaches * 2 * off + leaks * lam * off / v
    along_log_v = v / beta_tilde - 1 if reverse else 1 - (beta_tilde + covers * off**2) / v
    along_u = learns * lam * along_log_v / 2 * slope * np.log(beta / beta_tilde)
    return np.concatenate([along_mean, along_u], axis=-1) / mean.size


def _step(rng, wrong=1.0):
    """`wrong` scales the error of the mean."""
    mu_tilde = _numbers(rng, 3, 4)
    mean = mu_tilde + np.float32(wrong) * _numbers(rng, 3, 4, mean=0.3, std=0.4)
    u = _numbers(rng, 3, 4, mean=0.2, std=0.6)
    beta = float(rng.uniform(0.1, 0.4))
    beta_tilde = float(beta * rng.uniform(0.3, 0.6))
    # A large λ, so that no half of the gradient drowns in the other's rounding.
    return np.concatenate([mean, u], -1), mu_tilde, beta, beta_tilde, float(rng.uniform(0.5, 2))


HYBRID = Exercise(
    id="05.7",
    title="What the hybrid loss teaches",
    function="hybrid_gradient",
    parts=(
        Part("any outputs", 2, lambda rng: [_step(rng), _step(rng)]),
        Part("outputs whose mean is right", 1, lambda rng: [_step(rng, wrong=0.0)]),
    ),
    oracle=_gradient,
    mistakes={
        "the divergence pulls at the mean: a stop_gradient is missing": (
            partial(_gradient, leaks=True)
        ),
        "nothing is learned about the variance: the stop_gradient is around too much": (
            partial(_gradient, learns=False)
        ),
        "nothing is learned about the mean: the first term needs it without stop_gradient": (
            partial(_gradient, teaches=False)
        ),
        "without λ the divergence counts with the weight 1": (
            lambda output, mu_tilde, beta, beta_tilde, lam: _gradient(
                output, mu_tilde, beta, beta_tilde, 1.0
            )
        ),
        "the variance must cover the error of the mean as well: it belongs into the divergence": (
            partial(_gradient, covers=False)
        ),
        "u = 0 is the middle between log β̃ and log β, as in exercise 05.5": (
            partial(_gradient, slope=1.0, middle=0.0)
        ),
        "β and β̃ are exchanged: u = 1 is the larger one, β": partial(_gradient, slope=-0.5),
        "the two Gaussians are exchanged: q, with the variance β̃, comes first": (
            partial(_gradient, reverse=True)
        ),
        "the divergence is in nats; yours is in bits": (
            lambda output, mu_tilde, beta, beta_tilde, lam: _gradient(
                output, mu_tilde, beta, beta_tilde, lam / _LOG_2
            )
        ),
        "both terms are averaged over all coordinates, and yours are added up": (
            lambda *a: _gradient(*a) * a[1].size
        ),
    },
)


# --- 05.8 -----------------------------------------------------------------------------------

TWO_NUMBERS = Written(id="05.8", title="Two numbers", points=2)

EXERCISES = (KL, BEST_VARIANCE, WEIGHT, PROBABILITY, LEARNED, CHAIN, HYBRID, TWO_NUMBERS)
