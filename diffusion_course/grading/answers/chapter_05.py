"""Exercises of chapter 05, the bound."""

import numpy as np
from scipy.special import ndtr

from diffusion_course.grading.answers.drawing import gaussian, levels, normal, number
from diffusion_course.grading.answers.writing import exercise
from diffusion_course.grading.exercise import Part, Written


# --- 05.1 -----------------------------------------------------------------------------------
def kl_bits(mean_q, log_var_q, mean_p, log_var_p):
    ratio = np.exp(log_var_q - log_var_p)
    distance = (mean_q - mean_p) ** 2 * np.exp(-log_var_p)
    nats = (ratio - 1 - np.log(ratio) + distance) / 2
    return nats.reshape(len(nats), -1).mean(1) / np.log(2)


def _gaussians(rng):
    """Mean and log-variance of q, then of p."""
    for shape in ((2, 3, 4, 1), (3, 5)):
        yield tuple(normal(rng, *shape, mean=mean, std=0.7) for mean in (0.6, -1.4, -0.5, 0.4))


def _equal_gaussians(rng):
    """Images that the model knows, beside one that it does not: all zeros would hide much."""
    mean = normal(rng, 3, 5, mean=0.6, std=1.3)
    log_var = normal(rng, 3, 5, mean=-1.0, std=0.5)
    other = mean + np.array([[0.0], [0.0], [0.9]], np.float32)
    return [(mean, log_var, other, log_var)]


KL = exercise(
    "05.1 · The price of a wrong Gaussian",
    kl_bits,
    Part("two oracles and one wrong mean", 1, _equal_gaussians),
    Part("any Gaussians", 1, _gaussians),
    section="1 · Three steps to the bound",
    mistakes="""
    that is in nats: divide by log 2
        return right * np.log(2)
    per dimension means the mean over all coordinates, and yours is their sum
        .mean(1) -> .sum(1)
    one half is missing: a Gaussian's exponent has a 2 below its variance
        return 2 * right
    the two Gaussians are exchanged: q, the truth, is the one that is averaged over
        return kl_bits(mean_p, log_var_p, mean_q, log_var_q)
    a wrong mean has a price in yours, a wrong variance has none
        ratio - 1 - np.log(ratio) + distance -> distance
    the price of a wrong variance is 0 where both are equal: a −1 is missing
        ratio - 1 - np.log(ratio) -> ratio - np.log(ratio)
    the sign of the logarithm: log(v_q/v_p) is subtracted
        - np.log(ratio) -> + np.log(ratio)
    the distance of the means is measured by the variance of p, the model
        np.exp(-log_var_p) -> np.exp(-log_var_q)
    the distance of the means is squared
        (mean_q - mean_p) ** 2 -> np.abs(mean_q - mean_p)
    those are logarithms of variances; you took them for standard deviations'
        return kl_bits(mean_q, log_var_q / 2, mean_p, log_var_p / 2)
    """,
)


# --- 05.2 -----------------------------------------------------------------------------------
def best_variance(doubt, abar_t, abar_s):
    beta = 1 - abar_t / abar_s
    beta_tilde = beta * (1 - abar_s) / (1 - abar_t)
    c = np.sqrt(abar_s) * beta / (1 - abar_t)
    return beta_tilde + c**2 * doubt


def _doubts(make, *shapes):
    def cases(rng):
        for shape in shapes or ((2, 3),):
            abar_t, abar_s = levels(rng)
            yield make(rng, abar_t, *shape).astype(np.float32), abar_t, abar_s

    return cases


def _any_doubt(rng, abar_t, *shape):
    """That of a vector is on another scale, where variances exceed 1."""
    return rng.uniform(0.05, 1.4, shape) * (30 if len(shape) == 1 else 1)


BEST_VARIANCE = exercise(
    "05.2 · Between two variances",
    best_variance,
    Part("no doubt: one point", 1, _doubts(lambda rng, abar_t, *shape: np.zeros(shape))),
    Part(
        "the doubt of standard normal data, and half of it",
        1,
        _doubts(lambda rng, abar_t, *shape: np.repeat([[1.0], [0.5]], 3, axis=1) * (1 - abar_t)),
    ),
    Part(
        "any doubt",
        1,
        _doubts(_any_doubt, (2, 3), (5,)),
    ),
    section="4 · The best variance",
    mistakes="""
    a factor of x0 is squared in the variance
        c**2 -> c
    the noise of the step, if x0 is known, is that of the posterior: less than β
        return beta_tilde -> return beta
    that is the factor of x_t, which is known; the doubt is about x0
        np.sqrt(abar_s) * beta -> np.sqrt(abar_t / abar_s) * (1 - abar_s)
    the doubt must be multiplied by c², since the step carries only a part of it
        c**2 * doubt -> doubt
    the doubt is a variance already: it must not be squared once more
        c**2 * doubt -> c**2 * doubt**2
    the factor of x0 has the signal level at s, which is √ᾱ_s
        np.sqrt(abar_s) * beta -> abar_s * beta
    the factor of x0 has the signal level of the other end, s
        np.sqrt(abar_s) * beta -> np.sqrt(abar_t) * beta
    the quotient of the noise levels in β̃ is upside down
        (1 - abar_s) / (1 - abar_t) -> (1 - abar_t) / (1 - abar_s)
    β belongs to the step from s to t: 1 − ᾱ_t/ᾱ_s
        1 - abar_t / abar_s -> 1 - abar_t
    the variance is asked for, not its root
        return np.sqrt(right)
    a straight line from β̃ to β is right only where the doubt is measured in 1 − ᾱ_t
        c**2 -> (beta - beta_tilde)
    """,
)


# --- 05.3 -----------------------------------------------------------------------------------
def bound_weight(abar_t, abar_s, kind):
    snr_t, snr_s = abar_t / (1 - abar_t), abar_s / (1 - abar_s)
    unit = {"x0": 1.0, "eps": (1 - abar_t) / abar_t, "v": 1 - abar_t}[kind]
    return (snr_s - snr_t) / 2 * unit / np.log(2)


def _pairs_of_levels(kind):
    def cases(rng):
        for count in (5, 2):
            abar_s = rng.uniform(0.3, 0.9, count)
            abar_t = abar_s * rng.uniform(0.3, 0.9, count)
            yield abar_t.astype(np.float32), abar_s.astype(np.float32), kind

    return cases


WEIGHT = exercise(
    "05.3 · From the simple loss to the bound",
    bound_weight,
    *(Part(f"kind {kind!r}", 1, _pairs_of_levels(kind)) for kind in ("eps", "x0", "v")),
    section="8 · The simple loss against the bound",
    mistakes="""
    that is in nats: divide by log 2
        return right * np.log(2)
    one half is missing, which stands before the squared distance of the means
        return 2 * right
    that is the weight for eps, which is wrong for the other kinds
        [kind] -> ["eps"]
    that is the weight for x0, which is wrong for the other kinds
        [kind] -> ["x0"]
    the sign: nearer to the data the ratio of signal to noise is larger
        return -right
    the levels of t and s are exchanged
        return bound_weight(abar_s, abar_t, kind)
    the ratio of signal to noise is one of variances: ᾱ/(1 − ᾱ), without a root
        abar_t / (1 - abar_t), abar_s / (1 - abar_s)
            -> abar_t / np.sqrt(1 - abar_t), abar_s / np.sqrt(1 - abar_s)
    the error is squared, so what turns it into one of x0 must be squared as well
        * unit -> * unit**0.5
    what turns the error into one of x0 is upside down
        * unit -> / unit
    the network is asked at t: its error turns into one of x0 with the levels of t, not s
        "eps": (1 - abar_t) / abar_t, "v": 1 - abar_t
            -> "eps": (1 - abar_s) / abar_s, "v": 1 - abar_s
    """,
)


# --- 05.4 -----------------------------------------------------------------------------------
def log_probability(x0, mean, std, levels):
    half = 1 / (levels - 1)
    upper, lower = ndtr((x0 + half - mean) / std), ndtr((x0 - half - mean) / std)
    upper = np.where(x0 >= 1 - half, 1, upper)  # the outermost bins are open
    lower = np.where(x0 <= half - 1, 0, lower)
    return np.log(upper - lower)


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


def _every_level(rng):
    """Few levels, each of them with one mean; and some of 256, of which 0.992 is no end.

    An array has the size of the others' all the same: for each shape JAX compiles anew.
    """
    few = int(rng.integers(3, 6))
    some = np.array([0, 1, 2, 7, 240, 249, 252, 253, 254, 255, 100, 130])
    for index, count in ((np.arange(12) % 2, 2), (np.arange(12) % few, few), (some, 256)):
        x0 = np.linspace(-1, 1, count)[index]
        mean, std = np.full(12, rng.uniform(-0.3, 0.4)), np.full(12, rng.uniform(0.5, 0.7))
        yield *(a.astype(np.float32) for a in (x0, mean, std)), count


PROBABILITY = exercise(
    "05.4 · The probability of a grey level",
    log_probability,
    Part("levels between the ends", 2, _between_the_ends),
    Part("the lowest and the highest level", 1, lambda rng: [*_ends(rng), *_every_level(rng)]),
    section="6 · Pixels are not real numbers",
    mistakes="""
    that is a density; a probability is an integral over the bin
        return -0.5 * ((x0 - mean) / std) ** 2 - np.log(std) - 0.5 * np.log(2 * np.pi)
    a bin ends half-way to the neighbour; yours reaches all the way
        x0 + half -> x0 + 2 * half
        x0 - half -> x0 - 2 * half
    the lowest and the highest bin are open, so that the probabilities add up to 1
        np.where(x0 >= 1 - half, 1, upper) -> upper
        np.where(x0 <= half - 1, 0, lower) -> lower
    only the outermost levels are open: with many levels there are others near −1 and 1
        x0 >= 1 - half -> x0 > 0.9
        x0 <= half - 1 -> x0 < -0.9
    the logarithm is the natural one: yours is in bits
        return right / np.log(2)
    the levels are 2/(levels − 1) apart: with both ends there is one gap less than levels
        1 / (levels - 1) -> 1 / levels
    x0 may be off by a rounding: an end is missed if it must be exactly −1 or 1
        1 - half -> 1
        half - 1 -> -1
    what is added to a probability makes an unlikely level too cheap
        upper - lower -> upper - lower + 1e-5
    the bin begins at x0 in yours; x0 lies in its middle
        x0 + half -> x0 + 2 * half
        x0 - half -> x0
    the probability itself is not asked for, but its logarithm
        return np.exp(right)
    std is a standard deviation already: no root of it
        return log_probability(x0, mean, np.sqrt(std), levels)
    """,
    rtol=5e-4,  # the difference of two float32 distribution functions
    atol=1e-4,
)


# --- 05.5 -----------------------------------------------------------------------------------
def learned_log_variance(u, beta, beta_tilde):
    share = (u + 1) / 2
    return share * np.log(beta) + (1 - share) * np.log(beta_tilde)


def _outputs(make):
    def cases(rng):
        for size in (1, 1e-4):  # early and late in a chain
            beta = size * number(rng, 0.05, 0.4)
            yield make(rng).astype(np.float32), beta, float(beta * rng.uniform(0.2, 0.6))

    return cases


LEARNED = exercise(
    "05.5 · A variance to learn",
    learned_log_variance,
    Part("the ends and the middle", 1, _outputs(lambda rng: np.array([-1.0, 0.0, 1.0]))),
    Part(
        "any output", 1, _outputs(lambda rng: np.append(rng.normal(0.4, 4, 6), 20.0).reshape(7, 1))
    ),
    section="5 · A network that learns its variance",
    mistakes="""
    the scale is logarithmic: mix the logarithms, not the variances
        return np.log((u + 1) / 2 * beta + (1 - u) / 2 * beta_tilde)
    the share of log β is (u + 1)/2, so that u = 0 is the middle
        (u + 1) / 2 -> u
    the two ends are exchanged: u = 1 is the larger one, β
        return learned_log_variance(-u, beta, beta_tilde)
    the logarithm of the variance is asked for, not the variance
        return np.exp(right)
    the logarithm is the natural one: yours is in bits
        return right / np.log(2)
    that is the logarithm of the standard deviation: half of what is asked for
        return right / 2
    nothing keeps u between −1 and 1: do not clip it
        return learned_log_variance(np.clip(u, -1, 1), beta, beta_tilde)
    """,
)


# --- 05.6 -----------------------------------------------------------------------------------
def chain_bound(denoise, x0, noises, abar):
    total = abar[0] * x0**2 / (1 - abar[0]) / 2  # the prior
    for noise, abar_t, abar_s in zip(noises, abar[:-1], abar[1:], strict=True):
        x_t = np.sqrt(abar_t) * x0 + np.sqrt(1 - abar_t) * noise
        error = (x0 - denoise(x_t, np.sqrt(abar_t), np.sqrt(1 - abar_t))) ** 2
        beta = 1 - abar_t / abar_s  # the model's variance
        if abar_s == 1:
            total = total + (error / beta + np.log(2 * np.pi * beta)) / 2
            continue
        c = np.sqrt(abar_s) * beta / (1 - abar_t)
        ratio = (1 - abar_s) / (1 - abar_t)  # of the posterior's variance to the model's
        total = total + (ratio - 1 - np.log(ratio) + c**2 * error / beta) / 2
    return total


def _chains(rng, noisy, B, size=1.0):
    noise = normal(rng, len(noisy), B)
    denoise, x0 = gaussian(rng, mean=(0.7, 1.3)), normal(rng, B, mean=size, std=0.6 * size)
    return denoise, x0, noise, np.append(np.sort(noisy), 1.0)


def _one_step(rng):
    yield _chains(rng, rng.uniform(0.4, 0.9, 1), 4)
    yield _chains(rng, np.array([0.99]), 4, size=0.05)  # so short that the bound is negative


def _whole_chains(rng):
    """The second has few, long steps: hardly any signal at first, hardly any noise in the end."""
    yield _chains(rng, rng.uniform(0.05, 0.9, 6), 4)
    yield _chains(rng, np.array([4e-4, rng.uniform(0.4, 0.6), 0.9999]), 2)


CHAIN = exercise(
    "05.6 · This bound is broken",
    chain_bound,
    Part("a single step: prior and reconstruction", 1, _one_step),
    Part("a whole chain", 3, _whole_chains),
    section="2 · The bound, written out",
    mistakes="""
    a bug is left: the model's variance is not the posterior's, and that costs bits too
        ratio - 1 - np.log(ratio) + c**2 -> c**2
    a bug is left: the denoiser is shown the cleaner end of the step
        np.sqrt(abar_t) * x0 + np.sqrt(1 - abar_t) -> np.sqrt(abar_s) * x0 + np.sqrt(1 - abar_s)
    both bugs are still there
        ratio - 1 - np.log(ratio) + c**2 -> c**2
        np.sqrt(abar_t) * x0 + np.sqrt(1 - abar_t) -> np.sqrt(abar_s) * x0 + np.sqrt(1 - abar_s)
    the model's variance is β: with β̃ in its place you bound another model, not this one
        ratio - 1 - np.log(ratio) + c**2 * error / beta -> c**2 * error / beta / ratio
    the error of the mean is measured by the model's variance, and that is not β̃
        c**2 * error / beta -> c**2 * error / beta / ratio
    the bound is asked for in nats: yours is in bits
        return right / np.log(2)
    a density of a Gaussian has 2π in it
        np.log(2 * np.pi * beta) -> np.log(beta)
    the price of a wrong variance is 0 where both are equal: a −1 is missing
        ratio - 1 - np.log(ratio) + c**2 -> ratio - np.log(ratio) + c**2
    the error of x0 reaches the mean with the factor c, and its square with c²
        c**2 * error / beta -> error / beta
    the prior has gone: x at the first level must be paid for too
        abar[0] * x0**2 / (1 - abar[0]) / 2 -> 0
    the ratio of the variances is upside down: q's stands above the model's
        (1 - abar_s) / (1 - abar_t) -> (1 - abar_t) / (1 - abar_s)
    """,
    library=("diffusion_course.grading.inputs.GaussianDenoiser",),
)


# --- 05.7 -----------------------------------------------------------------------------------
def hybrid_gradient(output, mu_tilde, beta, beta_tilde, lam):
    """By hand; the share of log β is slope·u + middle."""
    mean, u = np.split(output, 2, axis=-1)
    slope, middle = 0.5, 0.5
    v = np.exp((slope * u + middle) * np.log(beta / beta_tilde) + np.log(beta_tilde))
    off = mean - mu_tilde
    along_mean = 2 * off
    along_log_v = lam * (1 - (beta_tilde + off**2) / v) / 2
    along_u = along_log_v * slope * np.log(beta / beta_tilde)
    return np.concatenate([along_mean, along_u], axis=-1) / mean.size


def _step(rng, wrong=1.0, shape=(3, 4), size=1.0):
    """`wrong` scales the error of the mean, and `size` the variances."""
    mu_tilde = normal(rng, *shape, mean=0.6, std=1.3)
    mean = mu_tilde + np.float32(wrong) * normal(rng, *shape, mean=0.3, std=0.4)
    u = normal(rng, *shape, mean=0.2, std=0.6)
    beta = size * number(rng, 0.1, 0.4)
    beta_tilde = float(beta * rng.uniform(0.3, 0.6))
    # A large λ, so that no half of the gradient drowns in the other's rounding.
    return np.concatenate([mean, u], -1), mu_tilde, beta, beta_tilde, number(rng, 0.5, 2)


def _outputs_and_means(rng):
    """The last is of few pixels, with a step so short that loss and gradient are large."""
    yield _step(rng)
    mean_error = 0.4 * rng.permutation([1, -1])[0]
    output, mu_tilde, *rest = _step(rng, wrong=0.0, shape=(1, 2), size=1e-3)
    output[:, :2] += np.float32(mean_error)
    output[:, 3] = 40  # far above β, which nothing forbids
    yield output, mu_tilde, *rest


HYBRID = exercise(
    "05.7 · What the hybrid loss teaches",
    hybrid_gradient,
    Part("any outputs", 2, _outputs_and_means),
    Part("outputs whose mean is right", 1, lambda rng: [_step(rng, wrong=0.0)]),
    section="5 · A network that learns its variance",
    mistakes="""
    the divergence pulls at the mean: a stop_gradient is missing
        2 * off -> (2 + lam / v) * off
    nothing is learned about the variance: the stop_gradient is around too much
        [along_mean, along_u] -> [along_mean, 0 * u]
    nothing is learned about the mean: the first term needs it without stop_gradient
        [along_mean, along_u] -> [0 * off, along_u]
    without λ the divergence counts with the weight 1
        return hybrid_gradient(output, mu_tilde, beta, beta_tilde, 1.0)
    the variance must cover the error of the mean as well: it belongs into the divergence
        beta_tilde + off**2 -> beta_tilde
    u = 0 is the middle between log β̃ and log β, as in exercise 05.5
        0.5, 0.5 -> 1.0, 0.0
    β and β̃ are exchanged: u = 1 is the larger one, β
        0.5, 0.5 -> -0.5, 0.5
    the two Gaussians are exchanged: q, with the variance β̃, comes first
        1 - (beta_tilde + off**2) / v -> v / beta_tilde - 1
    the divergence is in nats; yours is in bits
        return hybrid_gradient(output, mu_tilde, beta, beta_tilde, lam / np.log(2))
    both terms are averaged over all coordinates, and yours are added up
        return right * mu_tilde.size
    """,
)


# --- 05.8 -----------------------------------------------------------------------------------
TWO_NUMBERS = Written(
    "05.8", "Two numbers", 2, section="9 · Break it on purpose: pixels without bins"
)
