"""Exercises of chapter 12, The EDM design space."""

import numpy as np

from diffusion_course.grading.answers.drawing import gaussian, images, normal, number
from diffusion_course.grading.answers.writing import exercise
from diffusion_course.grading.exercise import Part, Written


# --- 12.1 -----------------------------------------------------------------------------------
def coefficients(x0, alpha, sigma):
    square = np.mean(x0**2)
    total = alpha**2 * square + sigma**2
    skip = alpha * square / total
    out = sigma * np.sqrt(square) / np.sqrt(total)
    return np.array([skip, out, 1 / np.sqrt(total)])


def _batches(rng, *rows):
    """Rows of (α, σ). The mean square of the data is far from their variance, both not 1."""
    for (alpha, sigma), shape in zip(rows, ((7, 3), (4, 2, 3, 1), (5,)), strict=False):
        yield normal(rng, *shape, mean=1.4, std=0.9), alpha, sigma


COEFFICIENTS = exercise(
    "12.1 · Preconditioning for any data",
    coefficients,
    Part(
        "α = 1",
        1,
        lambda rng: _batches(rng, (1.0, number(rng, 0.5, 1.6)), (1.0, number(rng, 65, 80))),
    ),
    Part(
        "any α",
        1,
        lambda rng: _batches(
            rng,
            (number(rng, 0.3, 0.8), number(rng, 0.5, 0.9)),
            (number(rng, 1.3, 1.7), number(rng, 0.5, 1.6)),
            (0.0, number(rng, 0.5, 1.6)),
        ),
    ),
    section="2 · Three demands",
    mistakes="""
    the data are not centred: their mean square counts, not their variance
        np.mean(x0**2) -> np.var(x0)
    the mean square of x0 stands in α²·S² + σ² as it is: do not take its root
        np.mean(x0**2) -> np.sqrt(np.mean(x0**2))
    c_in divides by a root mean square: take the root
        1 / np.sqrt(total) -> 1 / total
    the mean square of a sum of independent things: add the squares of α·x0 and σ·ε
        total = alpha**2 * square + sigma**2 -> total = (alpha * np.sqrt(square) + sigma) ** 2
    α stands before x0 in x_t: it belongs into c_skip, too
        skip = alpha * square -> skip = square
    the signal's mean square has α squared
        total = alpha**2 -> total = alpha
    that is EDM's table for α = 1
        total = alpha**2 * square -> total = square
        skip = alpha * square -> skip = square
    α is not in c_out, except through the mean square of x_t
        out = sigma -> out = alpha * sigma
    both sizes are 1, but c_out is not the least: with a c_skip above 0 less is left to predict
        return np.array([0, np.sqrt(np.mean(x0**2)), right[2]])
    both sizes are 1, but c_out is not the least: that network predicts ε at every noise level
        return np.array([1 / alpha, sigma / alpha, right[2]]) if alpha else right
    that is c_out squared: take the root
        out = sigma * np.sqrt(square) / np.sqrt(total) -> out = sigma**2 * square / total
    σ_data = 0.5 is a number of other data
        np.mean(x0**2) -> 0.25
    the order is c_skip, c_out, c_in
        return right[[0, 2, 1]]
    """,
)


# --- 12.2 -----------------------------------------------------------------------------------
def flow_weight(t, times, mean, std, sigma_data):
    sigma = t / (1 - t)
    weight = (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2
    weight = weight * t**2
    if times == "uniform":
        z = (np.log(sigma) - mean) / std
        weight = weight * np.exp(-(z**2) / 2) / (std * np.sqrt(2 * np.pi))
        weight = weight / (t * (1 - t))
    return weight


def _flow_times(rng, times):
    for K in (3, 6):
        t = np.append(rng.uniform(0.05, 0.95, K - 2), [0.02, 0.97]).astype(np.float32)
        mean, std = number(rng, -1.6, -0.5), number(rng, 1.2, 1.8)
        yield rng.permutation(t), times, mean, std, number(rng, 0.4, 0.8)


FLOW_WEIGHT = exercise(
    "12.2 · EDM is a flow",
    flow_weight,
    Part("the times of EDM", 1, lambda rng: _flow_times(rng, "as EDM")),
    Part("uniform times", 2, lambda rng: _flow_times(rng, "uniform")),
    section="4 · Which noise levels to train at",
    mistakes="""
    an error of x0, divided by t, is one of the velocity: w(t) needs t²
        weight * t**2 -> weight
    the loss has squares: an error is divided by t, its square by t²
        weight * t**2 -> weight * t
    the velocity's error is that of x0 divided by t: w(t) multiplies with t²
        weight * t**2 -> weight / t**2
    the noise level is noise over signal, t/(1 − t)
        sigma = t / (1 - t) -> sigma = t
    signal over noise is the inverse of the noise level
        sigma = t / (1 - t) -> sigma = (1 - t) / t
    λ is upside down: that is c_out squared
        (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2
            -> (sigma * sigma_data) ** 2 / (sigma**2 + sigma_data**2)
    that is the density of log σ: its change with t is missing, 1/(t·(1 − t))
        weight / (t * (1 - t)) -> weight
    log σ is normal, not σ: the derivative is that of log σ with respect to t
        weight / (t * (1 - t)) -> weight / (1 - t) ** 2
    the derivative of log σ is 1/(t·(1 − t)): divide by t·(1 − t)
        weight / (t * (1 - t)) -> weight * (t * (1 - t))
    the density of the times multiplies: uniform times draw a likely level too seldom
        * np.exp(-(z**2) / 2) / (std * np.sqrt(2 * np.pi))
            -> / (np.exp(-(z**2) / 2) / (std * np.sqrt(2 * np.pi)))
        weight / (t * (1 - t)) -> weight * (t * (1 - t))
    a normal density is divided by s·√(2π)
        / (std * np.sqrt(2 * np.pi)) ->
    for uniform times, w also holds the density of the times that EDM draws
        times == "uniform" -> times == ""
    the data have the root mean square d, which is not 1 here
        (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2 -> (sigma**2 + 1) / sigma**2
    s is squared in the exponent: it is the standard deviation
        np.exp(-(z**2) / 2) -> np.exp(-(z**2) * std / 2)
    the exponent is −z²/2: the 2 is missing
        np.exp(-(z**2) / 2) -> np.exp(-(z**2))
    the mean m is that of log σ, not of σ
        np.log(sigma) - mean -> sigma - mean
    """,
)


# --- 12.3 -----------------------------------------------------------------------------------
def churn_flow(t, n, churn, low, high, noise):
    if t == 1:
        return np.array([1.0, 1.0, 0.0])
    ratio = t / (1 - t)
    gamma = min(churn / n, np.sqrt(2) - 1)
    if not low <= ratio <= high:
        gamma = 0.0
    up = (1 + gamma) * ratio
    higher = up / (1 + up)
    scale = (1 - higher) / (1 - t)
    std = (1 - higher) * np.sqrt(up**2 - ratio**2)
    return np.array([higher, scale, noise * std])


def _churned(rng, *rows):
    """Rows of (t, γ before its cap, the limits as shares of the ratio)."""
    for number_of, (t, gamma, low, high) in enumerate(rows):
        n = (14, 1)[number_of % 2]
        ratio = t / (1 - t) if t < 1 else number(rng, 1.5, 4)
        noise = number(rng, 1.1, 1.4) if number_of != 1 else 1.0
        yield t, n, gamma * n, low * ratio, high * ratio, noise


CHURN_FLOW = exercise(
    "12.3 · Churn on the clock of a flow",
    churn_flow,
    Part(
        "between the limits",
        2,
        lambda rng: _churned(
            rng,
            (number(rng, 0.55, 0.7), number(rng, 0.1, 0.2), 0.3, 2.5),
            (number(rng, 0.2, 0.4), number(rng, 0.2, 0.3), 0.0, np.inf),
            (number(rng, 0.75, 0.9), number(rng, 1.5, 2.5), 0.1, np.inf),
            (number(rng, 0.991, 0.995), number(rng, 0.2, 0.3), 0.1, np.inf),  # nearly, not 1
        ),
    ),
    Part(
        "at the limits and beyond",
        2,
        lambda rng: [
            *_churned(
                rng,
                # Beyond a limit: ratios below 1 and above it.
                (number(rng, 0.55, 0.7), number(rng, 0.1, 0.2), 1.05, 2.5),
                (number(rng, 0.2, 0.4), number(rng, 0.1, 0.2), 1.05, 9.0),
                (number(rng, 0.2, 0.4), number(rng, 0.2, 0.3), 0.1, 0.95),
                (number(rng, 0.65, 0.8), number(rng, 0.2, 0.3), 0.1, 0.95),
                (0.5, number(rng, 0.2, 0.3), 1.0, 4.0),  # r is the lowest level itself
                (0.75, number(rng, 0.2, 0.3), 0.2, 1.0),  # and the highest
                (1.0, number(rng, 0.2, 0.3), 0.2, np.inf),
                (1.0, number(rng, 0.6, 0.9), 0.2, 2.0),
                (number(rng, 0.55, 0.7), 0.0, 0.3, 2.5),
            )
        ],
    ),
    section="8 · Churn",
    mistakes="""
    γ is at most √2 − 1: the cap is missing
        min(churn / n, np.sqrt(2) - 1) -> churn / n
    S_churn is shared among the n steps
        churn / n -> churn
    the cap is √2 − 1, not √2
        np.sqrt(2) - 1 -> np.sqrt(2)
    the limits are forgotten: churn has its own range of noise levels
        gamma = 0.0 -> gamma = gamma
    the limits are noise levels, compared with r, not with t
        low <= ratio <= high -> low <= t <= high
    the limits themselves belong to the range
        low <= ratio <= high -> low < ratio < high
    churn raises the ratio r by γ, not the time
        up = (1 + gamma) * ratio -> up = (1 + gamma) * t / (1 - (1 + gamma) * t)
    that is the new ratio; the time is r/(1 + r)
        return np.array([np.inf if t == 1 else right[0] / (1 - right[0]), *right[1:]])
    a rectified flow keeps less signal at t': the state shrinks
        scale = (1 - higher) / (1 - t) -> scale = 1.0
    the state shrinks with the signal: (1 − t')/(1 − t), not its inverse
        scale = (1 - higher) / (1 - t) -> scale = (1 - t) / (1 - higher)
    variances add up, deviations do not
        np.sqrt(up**2 - ratio**2) -> (up - ratio)
    std is a variance: take the root
        np.sqrt(up**2 - ratio**2) -> (1 - higher) * (up**2 - ratio**2)
    the old noise shrinks with the state: what is added fills t'² from (scale·t)², not from t²
        std = (1 - higher) * np.sqrt(up**2 - ratio**2) -> std = np.sqrt(higher**2 - t**2)
    the state at t' is that of the flow: the added noise shrinks by 1 − t', too
        std = (1 - higher) * np.sqrt(up**2 - ratio**2) -> std = np.sqrt(up**2 - ratio**2)
    beyond the cap γ is the cap, not 0
        min(churn / n, np.sqrt(2) - 1) -> churn / n if churn / n < np.sqrt(2) - 1 else 0.0
    noise is missing: S_noise multiplies the std
        noise * std -> std
    noise multiplies the std, not γ
        up = (1 + gamma) * ratio -> up = (1 + noise * gamma) * ratio
        noise * std -> std
    noise is a factor of a deviation, and is not rooted
        noise * std -> np.sqrt(noise) * std
    """,
)


# --- 12.4 -----------------------------------------------------------------------------------
def joined(a, b, size_a, size_b, share):
    A, B = a.shape[-1], b.shape[-1]
    rest = 1 - share
    common = (A + B) / (rest**2 + share**2)
    from_a = np.sqrt(common / A) * rest * a / size_a
    from_b = np.sqrt(common / B) * share * b / size_b
    return np.concatenate([from_a, from_b], axis=-1)


def _branches(rng, *rows):
    """Rows of (the axes before the channels, A, B, share). The branches are correlated."""
    for before, A, B, share in rows:
        a, b = images(rng, *before, A), images(rng, *before, B)
        b = b + 0.6 * a[..., :1]
        yield a, b, number(rng, 1.3, 1.9), number(rng, 0.3, 0.5), share


JOINED = exercise(
    "12.4 · Two branches at unit size",
    joined,
    Part(
        "as many channels in both",
        1,
        lambda rng: _branches(
            rng, ((4,), 3, 3, number(rng, 0.2, 0.4)), ((2, 3), 4, 4, number(rng, 0.6, 0.8))
        ),
    ),
    Part(
        "any number, and any share",
        2,
        lambda rng: _branches(
            rng,
            ((5,), 2, 6, number(rng, 0.2, 0.4)),
            ((3, 2, 2), 5, 3, number(rng, 0.6, 0.8)),
            ((3,), 4, 2, 0.0),
            ((2,), 3, 5, 1.0),
        ),
    ),
    section="9 · Layers that keep sizes",
    mistakes="""
    the sums of squares must stand as the shares: a branch of many channels counts too much
        np.sqrt(common / A) -> np.sqrt(common / (A + B))
        np.sqrt(common / B) -> np.sqrt(common / (A + B))
    the mean square is 1 over A + B numbers: their sum of squares is A + B, not 1
        (A + B) / (rest**2 + share**2) -> 1 / (rest**2 + share**2)
    common is a ratio of squares: take the root of the whole
        np.sqrt(common / A) -> common / np.sqrt(A)
        np.sqrt(common / B) -> common / np.sqrt(B)
    the parts' sums of squares, not their sums, add up: divide by (1 − share)² + share²
        rest**2 + share**2 -> 1.0
    the branches have no unit size: divide them by size_a and size_b
        rest * a / size_a -> rest * a
        share * b / size_b -> share * b
    a branch is divided by its size, not multiplied by it
        rest * a / size_a -> rest * a * size_a
        share * b / size_b -> share * b * size_b
    the sizes are those of training, and are not measured in this batch
        a / size_a -> a / np.sqrt(np.mean(a**2))
        b / size_b -> b / np.sqrt(np.mean(b**2))
    share belongs to b, and 1 − share to a
        return joined(a, b, size_a, size_b, 1 - share)
    share is a share of amplitudes: the sums of squares stand as its square
        * rest * a -> * np.sqrt(rest) * a
        * share * b -> * np.sqrt(share) * b
        rest**2 + share**2 -> rest + share
    each branch has unit size, but share has no effect
        * rest * a -> * a * np.sqrt(A * (rest**2 + share**2) / (A + B))
        * share * b -> * b * np.sqrt(B * (rest**2 + share**2) / (A + B))
    a stands first, then b
        [from_a, from_b] -> [from_b, from_a]
    the channel counts are exchanged
        np.sqrt(common / A) -> np.sqrt(common * A / (A + B))
        np.sqrt(common / B) -> np.sqrt(common * B / (A + B))
    """,
)


# --- 12.5 -----------------------------------------------------------------------------------
def sample_edm(denoise, x, noises, alpha, sigma, gamma):
    for i, noise in enumerate(noises):
        here, there = alpha[i], alpha[i + 1]
        now, up, after = sigma[i], (1 + gamma) * sigma[i], sigma[i + 1]
        x = x + np.sqrt(up**2 - now**2) * noise
        step = after / there - up / here  # in sigma/alpha, where the path is one of x/alpha
        slope = (x - here * denoise(x, here, up)) / up
        ahead = there * (x / here + step * slope)
        if after > 0:
            second = (ahead - there * denoise(ahead, there, after)) / after
            ahead = there * (x / here + step * (slope + second) / 2)
        x = ahead
    return x


def _walks(rng, *cases):
    """Cases of (steps, whether to the data, γ). Every other one has other shapes and data."""
    for number_of, (steps, to_data, gamma) in enumerate(cases):
        # The signal grows and need not end at 1: neither α² + σ² nor α alone may be left out.
        alpha = np.exp(np.cumsum(rng.uniform(0.2, 0.4, steps + 1))) * number(rng, 0.3, 0.5)
        ratio = np.exp(-np.cumsum(rng.uniform(0.3, 0.9, steps + 1))) * number(rng, 3, 7)
        sigma = alpha * ratio
        if to_data:
            sigma[-1] = 0
        # Wide data, whose guess follows the state, on the other side of 0; or narrow ones.
        denoise = gaussian(rng, (-2.1, -1.2), (1.3, 1.9)) if number_of % 2 else gaussian(rng)
        shape = (2, 3) if number_of % 2 else (4,)
        yield denoise, images(rng, *shape), normal(rng, steps, *shape), alpha, sigma, gamma


BROKEN = exercise(
    "12.5 · This sampler is broken",
    sample_edm,
    Part("without churn", 1, lambda rng: _walks(rng, (1, False, 0.0), (3, True, 0.0))),
    Part(
        "with churn",
        3,
        lambda rng: _walks(
            rng,
            (1, False, number(rng, 0.1, 0.2)),
            (4, True, number(rng, 0.25, 0.4)),
            (3, False, number(rng, 0.25, 0.4)),
        ),
    ),
    section="14 · Break it on purpose: churn with one wrong symbol",
    mistakes="""
    all three bugs are still there
        np.sqrt(up**2 - now**2) -> (up - now)
        denoise(x, here, up) -> denoise(x, here, now)
        denoise(ahead, there, after) -> denoise(x, there, after)
    two bugs are left: the variance after the churn, and a call whose state is noisier than it says
        np.sqrt(up**2 - now**2) -> (up - now)
        denoise(x, here, up) -> denoise(x, here, now)
    two bugs are left: the variance after the churn, and a call with the wrong state
        np.sqrt(up**2 - now**2) -> (up - now)
        denoise(ahead, there, after) -> denoise(x, there, after)
    two bugs are left: one in each call of the denoiser
        denoise(x, here, up) -> denoise(x, here, now)
        denoise(ahead, there, after) -> denoise(x, there, after)
    a variance is a difference of squares of noise levels
        np.sqrt(up**2 - now**2) -> np.sqrt(up - now)
    the step begins at the higher level, and so does its slope
        slope = (x - here * denoise(x, here, up)) / up
            -> slope = (x - here * denoise(x, here, now)) / now
    a bug is left: after the churn the variance must be that of the higher level
        np.sqrt(up**2 - now**2) -> (up - now)
    a bug is left: the denoiser must be told how noisy its state is after the churn
        denoise(x, here, up) -> denoise(x, here, now)
    a bug is left: the second call must see the state that has the noise level it is told
        denoise(ahead, there, after) -> denoise(x, there, after)
    that is Euler's step alone: the second slope belongs to the state at the end of the step
        denoise(ahead, there, after)) / after -> denoise(ahead, there, after)) * 0 + slope
    Heun starts anew from the state before the Euler step: that was right
        ahead = there * (x / here + step * (slope + second) / 2)
            -> ahead = ahead + there * step * (slope + second) / 2
    this is the sampler of a process whose α is 1
        here, there = alpha[i], alpha[i + 1] -> here = there = 1.0
    churn adds the noise to x, not to x/α
        np.sqrt(up**2 - now**2) -> here * np.sqrt(up**2 - now**2)
    a step is measured in σ/α, not in σ: this line was right
        step = after / there - up / here -> step = after - up
    the state of the second call has the signal of the new time
        denoise(ahead, there, after) -> denoise(ahead, here, after)
    the second slope is that of the new time: its noise is `after`, not `up`
        denoise(ahead, there, after)) / after -> denoise(ahead, there, after)) / up
    the fresh noise is gone; the bug was elsewhere
        * noise -> * 0
    with no churn at all there is nothing to be mended there; the bugs were elsewhere
        return sample_edm(denoise, x, noises, alpha, sigma, 0.0)
    """,
    library=("diffusion_course.grading.inputs.GaussianDenoiser",),
)


# --- 12.6 -----------------------------------------------------------------------------------
def autoguided(good, bad, w, start, sigma):
    precision = w / good**2 + (1 - w) / bad**2
    named = 1 / np.sqrt(precision) if precision > 0 else np.inf
    change = w * np.log(1 + sigma**2 / good**2) + (1 - w) * np.log(1 + sigma**2 / bad**2)
    return np.array([named, start * np.exp(-change / 2)])


def _guided(rng, *rows):
    """Rows of (bad/good, w)."""
    for ratio, w in rows:
        good, sigma = number(rng, 0.4, 0.9), number(rng, 1.5, 4.0)
        yield good, ratio * good, w, float(number(rng, 1.2, 1.6) * np.hypot(good, sigma)), sigma


def _just(rng, precision):
    """A row whose p₁^w·p₀^(1−w) has this precision, small and of either sign, times 1/good²."""
    ratio = number(rng, 0.6, 0.8)
    return ratio, (ratio**-2 - precision) / (ratio**-2 - 1)


AUTOGUIDED = exercise(
    "12.6 · What autoguidance draws",
    autoguided,
    Part(
        "a density exists",
        2,
        lambda rng: _guided(
            rng,
            (number(rng, 1.4, 1.8), 1.0),
            (number(rng, 1.4, 1.8), 0.0),
            (number(rng, 1.4, 1.8), number(rng, 1.6, 2.4)),
            (number(rng, 0.7, 0.8), number(rng, 1.3, 1.6)),
            (number(rng, 0.5, 0.6), number(rng, 0.3, 0.7)),
            (number(rng, 1.4, 1.8), -number(rng, 0.1, 0.3)),
            _just(rng, 0.1),
        ),
    ),
    Part(
        "also where none exists",
        2,
        lambda rng: _guided(
            rng,
            (number(rng, 0.7, 0.8), number(rng, 3.0, 4.0)),
            (number(rng, 0.4, 0.6), number(rng, 1.8, 2.4)),
            (number(rng, 1.4, 1.8), -number(rng, 1.5, 2.0)),
            _just(rng, -0.1),
        ),
    ),
    section="11 · A bad version of itself as the guide",
    mistakes="""
    that precision is negative: the function grows without bound, and `inf` is asked for
        if precision > 0 else np.inf -> if precision > 0 else np.nan
    a negative precision is no density, whatever its size: `inf` is asked for
        1 / np.sqrt(precision) if precision > 0 else np.inf -> 1 / np.sqrt(np.abs(precision))
    where the function cannot be scaled to a density, `inf` is asked for, not 0
        if precision > 0 else np.inf -> if precision > 0 else 0.0
    w = 1 is the good model alone: yours is the convention in which 0 is
        return autoguided(good, bad, 1 + w, start, sigma)
    the density is that of the data, without the noise of the level sigma
        precision = w / good**2 + (1 - w) / bad**2
            -> precision = w / (good**2 + sigma**2) + (1 - w) / (bad**2 + sigma**2)
    the density is what the samples have only at w = 0 and w = 1: follow the equation
        start * np.exp(-change / 2) -> named * start / np.hypot(named, sigma)
    in a product of densities the precisions are weighted, not the variances
        named = 1 / np.sqrt(precision) if precision > 0 else np.inf
            -> named = np.sqrt(max(w * good**2 + (1 - w) * bad**2, 0))
    that is a variance: take the root
        named = 1 / np.sqrt(precision) -> named = 1 / precision
    the precision is 1 over the variance
        precision = w / good**2 + (1 - w) / bad**2 -> precision = w / good + (1 - w) / bad
    the weights are w for the good model and 1 − w for the bad one: yours are exchanged
        return autoguided(bad, good, w, start, sigma)
    the bad model's weight is 1 − w; yours is w − 1
        (1 - w) / bad**2 -> (w - 1) / bad**2
        (1 - w) * np.log -> (w - 1) * np.log
    that is the variance's factor; the standard deviation's is its root
        np.exp(-change / 2) -> np.exp(-change)
    on the way down the states come closer to the mean: the sign is wrong
        np.exp(-change / 2) -> np.exp(change / 2)
    the second is that of an endless high start; here it begins at sigma, with start
        start * np.exp(-change / 2) -> good**w * bad ** (1 - w)
    start is missing: the factor shrinks what the states begin with
        start * np.exp(-change / 2) -> np.exp(-change / 2)
    the order is the density, then the samples
        return right[::-1]
    """,
)


# --- 12.7 -----------------------------------------------------------------------------------
def post_hoc(widths, steps, width, step):
    squares = np.append(widths, width) ** 2
    cubics = [[1, 7, 16 - 1 / square, 12 - 1 / square] for square in squares]
    g = np.array([np.roots(cubic).real.max() for cubic in cubics])
    T = np.append(steps, step)
    K = len(widths)
    gram = np.zeros((K + 1, K + 1))
    for i in range(K + 1):
        for j in range(K + 1):
            end = min(T[i], T[j])
            height = (g[i] + 1) * (g[j] + 1) / (T[i] * T[j])
            power = (end / T[i]) ** g[i] * (end / T[j]) ** g[j]
            gram[i, j] = height * power * end / (g[i] + g[j] + 1)
    system = np.ones((K + 1, K + 1))
    system[:K, :K] = gram[:K, :K]
    system[K, K] = 0
    return np.linalg.solve(system, np.append(gram[:K, K], 1))[:K]


def _stored(rng, same_end, *rows):
    """Rows of (K, the narrowest width, the run's length); the first has a stored average, too."""
    for number_of, (K, narrowest, length) in enumerate(rows):
        widths = number(rng, *narrowest) * 1.9 ** rng.permutation(K)
        end = float(rng.integers(*length))
        shares = rng.permutation(np.linspace(0.5, 0.9, K)) + number(rng, -0.02, 0.02)
        steps = np.full(K, end) if same_end else np.round(end * shares)
        if number_of == 0:
            chosen = int(rng.integers(K))
            yield widths, steps, float(widths[chosen]), float(steps[chosen])
        wanted = end if same_end else float(np.round(number(rng, 0.75, 0.9) * end))
        yield widths, steps, number(rng, 0.08, 0.15), wanted


_TWO = 2, (0.04, 0.06), (300, 900)
_THREE = 3, (0.072, 0.078), (6, 10)  # a short run; the widest is nearly the plain mean
STRETCH = exercise(
    "12.7 · An average after the run",
    post_hoc,
    Part(
        "all end with the run",
        2,
        lambda rng: _stored(rng, True, _TWO, _THREE),
    ),
    Part(
        "they end at different steps",
        2,
        lambda rng: _stored(rng, False, _THREE, _TWO),
    ),
    section="10 · Averages whose length is chosen afterwards",
    mistakes="""
    the sum must be 1: least squares alone does not give that
        np.linalg.solve(system, np.append(gram[:K, K], 1))[:K]
            -> np.linalg.solve(gram[:K, :K], gram[:K, K])
    dividing by the sum afterwards is not the least error: the condition belongs into the system
        return np.linalg.solve(system, np.append(gram[:K, K], 1))[:K]
            -> free = np.linalg.solve(gram[:K, :K], gram[:K, K]); return free / free.sum()
    a product of two profiles ends with the earlier one
        end = min(T[i], T[j]) -> end = max(T[i], T[j])
    each profile has the power that belongs to its own step: they are exchanged
        (end / T[i]) ** g[i] * (end / T[j]) ** g[j] -> (end / T[i]) ** g[j] * (end / T[j]) ** g[i]
    the integral of a power divides by the exponent plus 1
        / (g[i] + g[j] + 1) -> / (g[i] + g[j] + 2)
    a profile has the sum 1: its factor is (γ + 1)/T^(γ + 1)
        height = (g[i] + 1) * (g[j] + 1) / (T[i] * T[j]) -> height = 1 / (T[i] * T[j])
    σ_rel is squared in the equation for γ
        np.append(widths, width) ** 2 -> np.append(widths, width)
    γ is the largest root of the cubic equation
        np.roots(cubic).real.max() -> np.sort(np.roots(cubic).real)[1]
    widths are σ_rel, not γ: solve the cubic equation first
        np.array([np.roots(cubic).real.max() for cubic in cubics]) -> np.sqrt(squares)
    the last entry is the Lagrange multiplier, no weight
        return np.append(right, 0.0)
    """,
)


# --- 12.8 -----------------------------------------------------------------------------------
REPORT = Written("12.8", "Twenty per cent better", 2, section="5 · What each choice buys")
