"""Exercises of chapter 04, networks that denoise."""

import jax.numpy as jnp
import numpy as np
from scipy.special import expit, softmax

from diffusion_course.grading.answers.drawing import gaussian, normal, number
from diffusion_course.grading.answers.writing import exercise
from diffusion_course.grading.exercise import Part, Written
from diffusion_course.grading.inputs import TwoGroupDenoiser


# --- 04.1 -----------------------------------------------------------------------------------
def film(h, scale, shift, groups):
    axes = (1, 2, 4)
    grouped = h.reshape(*h.shape[:-1], groups, -1)
    mean, variance = grouped.mean(axes, keepdims=True), grouped.var(axes, keepdims=True)
    normed = ((grouped - mean) / np.sqrt(variance + 1e-5)).reshape(h.shape)
    return normed * (1 + scale[:, None, None]) + shift[:, None, None]


def _batch(rng, batch, height, width, channels, groups):
    h = normal(rng, batch, height, width, channels, mean=0.7, std=2.0)
    return [(h, normal(rng, batch, channels), normal(rng, batch, channels), groups)]


def _batch_with_a_flat_group(rng):
    """One group of one image is so flat that the 1e-5 counts, and its mean is small as well."""
    ((h, scale, shift, groups),) = _batch(rng, 3, 3, 3, 6, 3)
    h[1, ..., 2:4] *= 1.5e-3
    return [(h, scale, shift, groups)]


FILM = exercise(
    "04.1 · Group norm with FiLM",
    film,
    Part("one group for all channels", 1, lambda rng: _batch(rng, 2, 4, 5, 4, 1)),
    Part("several groups, one nearly flat", 1, _batch_with_a_flat_group),
    Part("as many images as rows", 1, lambda rng: _batch(rng, 3, 3, 3, 6, 3)),
    section="3 · A U-Net, taken apart",
    mistakes="""
    the scale is added to 1, so that a network that says 0 changes nothing
        (1 + scale[:, None, None]) -> scale[:, None, None]
    scale and shift are exchanged
        return film(h, shift, scale, groups)
    scale and shift come after the norm, which would undo a part of them
        return film(h * (1 + scale[:, None, None]) + shift[:, None, None],
            0 * scale, 0 * shift, groups)
    the norm takes each image by itself; yours mixes the images of the batch
        (1, 2, 4) -> (0, 1, 2, 4)
    the norm is over all channels of a group; yours is over each channel alone
        (1, 2, 4) -> (1, 2)
    the norm is over all pixels as well; yours is over channels alone
        (1, 2, 4) -> (4,)
    every group has a norm of its own; yours is one for all channels
        return film(h, scale, shift, 1)
    a group holds neighbouring channels; in yours they are taken in turn
        groups, -1 -> -1, groups
        (1, 2, 4) -> (1, 2, 3)
    divide by the standard deviation, not by the variance: a root is missing
        np.sqrt(variance + 1e-5) -> (variance + 1e-5)
    the variance is the mean square: divide by the number of entries, not by one less
        grouped.var(axes, keepdims=True) -> grouped.var(axes, keepdims=True, ddof=1)
    the mean must be subtracted before the division
        (grouped - mean) / -> grouped /
    the division by the standard deviation is missing
        / np.sqrt(variance + 1e-5) ->
    the shift is missing
        + shift[:, None, None] ->
    the scale is missing
        normed * (1 + scale[:, None, None]) -> normed
    the scale is added to 1; yours is subtracted from it
        1 + scale -> 1 - scale
    `groups` is the number of groups, not of the channels in one
        groups, -1 -> -1, groups
    1e-5 belongs to the variance, under the root; without it a flat group is blown up
        variance + 1e-5 -> variance
    1e-5 belongs to the variance, under the root; yours is added to the root
        np.sqrt(variance + 1e-5) -> (np.sqrt(variance) + 1e-5)
    1e-5 belongs to the variance, under the root; yours is 1e-6, as in some libraries
        1e-5 -> 1e-6
    """,
)


# --- 04.2 -----------------------------------------------------------------------------------
def time_embedding(t, dim):
    half = dim // 2
    frequencies = 10_000.0 ** (-np.arange(half) / half)
    angles = 1000 * t[:, None] * frequencies
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=1)


def _times(rng, n, dim):
    """Both ends, t = 0 and t = 1, and times between them."""
    return [(np.append(rng.uniform(0.02, 0.98, n - 2), [0, 1]).astype(np.float32), dim)]


EMBEDDING = exercise(
    "04.2 · The time as waves",
    time_embedding,
    Part("one wave, and two", 1, lambda rng: _times(rng, 4, 2) + _times(rng, 5, 4)),
    Part("many waves", 2, lambda rng: _times(rng, 4, 32)),
    section="4 · Does the network hear the time?",
    mistakes="""
    without the factor 1000 all times look alike (section 4)
        1000 * t -> t
    the cosines come first, then the sines
        np.cos(angles), np.sin(angles) -> np.sin(angles), np.cos(angles)
    all cosines come first, then all sines; yours alternate
        np.concatenate( -> np.stack(
        axis=1) -> axis=-1).reshape(len(t), dim)
    the exponent is divided by dim/2; with dim/2 − 1 the slowest wave is another
        / half -> / max(half - 1, 1e-9)
    the first wave has ω = 1: i counts from 0
        -np.arange(half) / -> -np.arange(1, half + 1) /
    the base of the frequencies is 10,000, and yours is 1,000
        10_000.0 -> 1_000.0
    the angle is 1000·t·ω itself: no 2π belongs there
        1000 * t -> 2 * np.pi * 1000 * t
    both halves hold the cosines; the second should hold the sines
        np.sin(angles) -> np.cos(angles)
    the sines have the wrong sign
        np.sin(angles) -> -np.sin(angles)
    the times stand along the rows: yours lie along the columns
        axis=1) -> axis=1).T
    the exponent is divided by half of dim; yours by dim
        / half -> / dim
    """,
    # 1000·t in float32 has an error of 6e-5, which the fastest wave passes on.
    atol=5e-4,
)


# --- 04.3 -----------------------------------------------------------------------------------
def attention(q, k, v, heads):
    size = q.shape[-1] // heads
    q, k, v = (a.reshape(*a.shape[:2], heads, size) for a in (q, k, v))
    logits = np.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(size)
    weights = softmax(logits, axis=-1)
    return np.einsum("bhqk,bkhd->bqhd", weights, v).reshape(*q.shape[:2], -1)


def _tokens(rng, *cases):
    """Cases of (B, N, d) and the number of heads."""
    for (batch, tokens, size), heads in cases:
        yield *(normal(rng, batch, tokens, heads * size, std=1.3) for _ in range(3)), heads


def _large_tokens(rng):
    """Tokens so large that exp of a product overflows in float32, for every query and head."""
    q, k, v = (normal(rng, 3, 4, 8, std=1.3) for _ in range(3))
    direction = np.float32([0.1, 0.5, 0.5, 0.7, 0.5, 0.1, 0.7, 0.5])
    q = q + np.float32([[14], [16], [18], [36]]) * direction
    yield q, k + 20 * direction, v, 2


ATTENTION = exercise(
    "04.3 · Attention with heads",
    attention,
    Part("one head", 1, lambda rng: _tokens(rng, ((2, 5, 3), 1))),
    Part(
        "several heads; large products",
        1,
        lambda rng: [
            *_tokens(rng, ((3, 4, 4), 2), ((2, 5, 2), 3), ((2, 3, 5), 4)),
            *_large_tokens(rng),
        ],
    ),
    section="3 · A U-Net, taken apart",
    mistakes="""
    the exponential of a large number overflows, and ∞/∞ is no number: use a safe softmax
        softmax(logits, axis=-1)
            -> (lambda e: e / e.sum(-1, keepdims=True))(np.exp(logits.astype(np.float32)))
    the largest product of each query must be subtracted; yours is that of all
        softmax(logits, axis=-1) -> (lambda e: e / e.sum(-1, keepdims=True))(
            np.exp((logits - logits.max()).astype(np.float32)))
    that is one head for all features: each group has products and weights of its own
        return attention(q, k, v, 1)
    each head divides by the root of its own number of features, d = C/H
        np.sqrt(size) -> np.sqrt(heads * size)
    a group holds neighbouring features; yours takes every H-th
        a.reshape(*a.shape[:2], heads, size) for
            -> a.reshape(*a.shape[:2], size, heads).transpose(0, 1, 3, 2) for
    the results of the groups stand side by side; yours are interleaved
        bkhd->bqhd -> bkhd->bqdh
    a reshape to [B, H, N, d] mixes the tokens: cut the last axis only, then exchange two axes
        a.reshape(*a.shape[:2], heads, size) for
            -> a.reshape(len(a), heads, -1, size).transpose(0, 2, 1, 3) for
        v).reshape(*q.shape[:2], -1) -> v).transpose(0, 2, 1, 3).reshape(*q.shape[:2], -1)
    cut the last axis only, to [B, N, H, d], and then exchange two axes: yours cuts the tokens, too
        a.reshape(*a.shape[:2], heads, size) for
            -> a.reshape(len(a), heads, -1, size).transpose(0, 2, 1, 3) for
    C/H features in a group and H groups, not the other way round
        return attention(q, k, v, q.shape[-1] // heads)
    the weights are those of one's own head; yours are the mean over all heads
        weights = softmax(logits, axis=-1)
            -> weights = np.mean(softmax(logits, axis=-1), axis=1, keepdims=True).repeat(heads, 1)
    the products must be divided by √d, or the softmax saturates
        / np.sqrt(size) ->
    the products are divided by √d; yours by d
        np.sqrt(size) -> size
    d counts the features of a token's group; yours is the number of tokens
        np.sqrt(size) -> np.sqrt(q.shape[1])
    the weights of each query add up to 1; yours of each key
        axis=-1) -> axis=-2)
    the weights of each query add up to 1 over the keys; yours over the heads
        axis=-1) -> axis=1)
    the products are divided by √d; yours are multiplied
        / np.sqrt(size) -> * np.sqrt(size)
    the larger a product, the more it counts: a sign is wrong
        softmax(logits, axis=-1) -> softmax(-logits, axis=-1)
    the weights add up to 1 over the keys; yours do over the images of the batch
        axis=-1) -> axis=0)
    the weights must add up to 1 for each query: divide by their sum
        softmax(logits, axis=-1) -> np.exp(logits.astype(np.float32))
    the weights are transposed: row by row they belong to a query, and average the values
        softmax(logits, axis=-1) -> softmax(logits, axis=-1).transpose(0, 1, 3, 2)
    no token is hidden from another: all tokens of an image are there at once
        logits, axis -> np.where(np.tri(q.shape[1], dtype=bool), logits, -np.inf), axis
    queries and keys are exchanged
        return attention(k, q, v, heads)
    the weights multiply the values; yours the keys
        return attention(q, k, k, heads)
    without a softmax the weights are neither positive nor do they add up to 1
        softmax(logits, axis=-1) -> logits
    """,
)


# --- 04.4 -----------------------------------------------------------------------------------
def accumulate(gradients, sizes, limit):
    mean = sizes @ gradients / sizes.sum()
    return _clipped(mean, limit)


def _clipped(gradient, limit):
    return gradient * np.minimum(1, limit / np.linalg.norm(gradient, axis=-1, keepdims=True))


def _parts(rng, sizes, limit, weights=7):
    gradients = normal(rng, len(sizes), weights, mean=0.4, std=1.5)
    return [(gradients, np.array(sizes, np.int32), limit)]


def _a_single_image(rng):
    """In a part of its own, and beside a part of two."""
    return _parts(rng, (1,), 1000.0, 4) + _parts(rng, (1, 2, 1), 1000.0)


ACCUMULATION = exercise(
    "04.4 · A large batch in parts",
    accumulate,
    Part("equal parts, nothing to clip", 1, lambda rng: _parts(rng, (8, 8, 8), 1000.0)),
    Part(
        "parts of unlike sizes",
        1,
        lambda rng: _parts(rng, (16, 5, 9), 1000.0) + _a_single_image(rng),
    ),
    Part("a gradient that must be clipped", 1, lambda rng: _parts(rng, (16, 5, 9), 0.3)),
    section="7 · Memory and numbers",
    mistakes="""
    a part of twice as many images counts twice
        sizes @ gradients / sizes.sum() -> gradients.mean(0)
    the mean of the gradients is wanted, not their sum
        sizes @ gradients / sizes.sum() -> gradients.sum(0)
    divide by the number of all images: their gradients are averaged, not added up
        / sizes.sum() ->
    each mean is multiplied by the size of its part; yours is divided by it
        sizes @ gradients / sizes.sum() -> (1 / sizes) @ gradients * sizes.sum()
    the weights are the sizes themselves, not their roots
        sizes @ gradients / sizes.sum() -> np.sqrt(sizes) @ gradients / np.sqrt(sizes).sum()
    the sum was clipped, and only then divided: what is clipped is the mean
        return _clipped(sizes @ gradients, limit) / sizes.sum()
    a length is the root of the sum of squares: the root is missing
        _clipped(mean, limit) -> mean * np.minimum(1, limit / np.sum(mean**2))
    a length is the root of the sum of squares, not the sum of the absolute values
        _clipped(mean, limit) -> mean * np.minimum(1, limit / np.sum(np.abs(mean)))
    a length is the root of the sum of squares, not the largest entry
        _clipped(mean, limit) -> mean * np.minimum(1, limit / np.max(np.abs(mean)))
    every gradient is shortened a little; only one that exceeds the limit should be
        _clipped(mean, limit) -> mean * limit / (limit + np.linalg.norm(mean))
    every gradient has length 1 now: what is shorter than the limit stays as it is
        _clipped(mean, limit) -> mean / np.linalg.norm(mean)
    large entries are cut off at the limit; it is the length that is limited
        _clipped(mean, limit) -> np.minimum(mean, limit)
    the whole gradient is clipped, once; yours clips every part
        return sizes @ _clipped(gradients, limit) / sizes.sum()
    clipping is missing: a gradient longer than the limit must be shortened
        _clipped(mean, limit) -> mean
    clipping limits the length of the whole gradient, not each of its entries
        _clipped(mean, limit) -> np.clip(mean, -limit, limit)
    clipping only ever shortens; yours stretches a short gradient to the limit
        _clipped(mean, limit) -> mean * limit / np.linalg.norm(mean)
    the factor is upside down: a long gradient must become shorter
        _clipped(mean, limit) -> mean * np.minimum(1, np.linalg.norm(mean) / limit)
    """,
)


# --- 04.5 -----------------------------------------------------------------------------------
def reweight(losses, part, mean_square):
    root = np.sqrt(mean_square)
    return losses / (root / root.mean())[part]


def _drawn(rng, parts, part):
    """In the second batch one part has hardly any loss."""
    for least in (0.05, 1e-4):
        mean_square = rng.uniform(0.05, 6.0, parts)
        mean_square[part[0]] = rng.uniform(least, 2 * least)
        losses = rng.uniform(0.1, 3.0, len(part)).astype(np.float32)
        yield losses, part.astype(np.int32), mean_square.astype(np.float32)


def _three_parts(rng):
    """Each is drawn, but not equally often."""
    return _drawn(rng, 3, rng.permutation([0, 0, 1, 2, 2, 2]))


IMPORTANCE = exercise(
    "04.5 · Losses of unevenly drawn times",
    reweight,
    Part("three parts", 1, _three_parts),
    Part("many parts", 2, lambda rng: _drawn(rng, 20, rng.integers(20, size=9))),
    section="6 · One error, many losses",
    mistakes="""
    the density is proportional to the root of the mean square
        np.sqrt(mean_square) -> mean_square
    a time that is drawn twice as often counts half, not twice
        losses / -> losses *
    a density has the mean 1 over all parts
        root / root.mean() -> root
    the mean of the roots is over all parts; yours is over those that were drawn
        root.mean() -> root[part].mean()
    a density has the mean 1; yours has 1 as its largest value
        root.mean() -> root.max()
    a density has the mean 1; yours has 1 as its smallest value
        root.mean() -> root.min()
    a density has the mean 1: the mean of the roots is not the root of the mean
        root.mean() -> np.sqrt(mean_square.mean())
    the root is taken once, and yours twice
        np.sqrt(mean_square) -> mean_square**0.25
    the loss is divided by the density once, and yours twice
        losses / (root / root.mean())[part] -> losses / (root / root.mean())[part] ** 2
    parts with large losses are drawn more often, not less
        np.sqrt(mean_square) -> 1 / np.sqrt(mean_square)
    divided by the number of parts as well: the density alone is enough
        return right / len(mean_square)
    that is the probability of a part; the density is that times the number of parts
        return right * len(mean_square)
    """,
)


# --- 04.6 -----------------------------------------------------------------------------------
def update(params, ema, gradient, rate, decay):
    new = params - rate * gradient
    return new, decay * ema + (1 - decay) * new


def _rounded(x):
    return np.asarray(x, jnp.bfloat16)


def _updates(rng, rate, decay):
    for size in (6, 4):
        params, ema = normal(rng, size, mean=1.0, std=2.0), normal(rng, size, mean=0.8, std=2.0)
        yield params, ema, normal(rng, size, std=1.5), rate, decay


UPDATE = exercise(
    "04.6 · This training step is broken",
    update,
    Part("a large step", 1, lambda rng: _updates(rng, 0.5, 0.7)),
    Part("a small step", 2, lambda rng: _updates(rng, 1e-3, 0.999)),
    section="7 · Memory and numbers",
    mistakes="""
    both bugs are still there
        params - rate * gradient -> (_rounded(params) - _rounded(rate * gradient)).astype(float)
        (1 - decay) * new -> (1 - decay) * params
    eight bits are too few for weights: a small step is rounded away
        params - rate * gradient -> (_rounded(params) - _rounded(rate * gradient)).astype(float)
    the weights are float32 now, but the step itself is still rounded to eight bits
        rate * gradient -> _rounded(rate * gradient).astype(float)
    the average must take in the weights after the step
        (1 - decay) * new -> (1 - decay) * params
    the weights are right, but they are rounded to eight bits before they are returned
        return new, -> return _rounded(new).astype(float),
    the average is rounded to eight bits
        decay * ema + (1 - decay) * new
            -> _rounded(decay * ema + (1 - decay) * new).astype(float)
    the weights are rounded to eight bits before the step
        params - rate -> _rounded(params).astype(float) - rate
    the rate is missing: the step is a small share of the gradient
        rate * gradient -> gradient
    the average has no memory: it is the new weights
        decay * ema + (1 - decay) * new -> new
    the shares of an average add up to 1: the new weights have 1 − decay
        (1 - decay) * new -> new
    the average takes in the weights, not the gradient
        (1 - decay) * new -> (1 - decay) * gradient
    the step starts from the weights, not from their average
        params - rate -> ema - rate
    the new weights come first, then the average
        return new, decay * ema + (1 - decay) * new
            -> return decay * ema + (1 - decay) * new, new
    the two factors of the average are exchanged
        decay * ema + (1 - decay) * new -> (1 - decay) * ema + decay * new
    the weights go against the gradient
        params - rate -> params + rate
    """,
    # Small steps must show: 1e-3 of a number of size 2, in the seventh digit.
    rtol=1e-6,
    atol=1e-6,
)


# --- 04.7 -----------------------------------------------------------------------------------
def posterior_variance(denoise, x, alpha, sigma):
    slope = _slope(denoise, x, alpha, sigma)
    return sigma**2 / alpha * slope


def _slope(denoise, x, alpha, sigma):
    """Of a line for one Gaussian; for two groups also of the share that belongs to the upper."""
    variance = alpha**2 * denoise.std**2 + sigma**2
    slope = alpha * denoise.std**2 / variance + 0 * x
    if isinstance(denoise, TwoGroupDenoiser):
        gap, middle = denoise.high - denoise.low, (denoise.high + denoise.low) / 2
        share = expit(alpha * gap * (x - alpha * middle) / variance)
        guesses_differ = gap * sigma**2 / variance
        slope = slope + share * (1 - share) * alpha * gap / variance * guesses_differ
    return slope


def _between_two_groups(rng):
    """Points around the middle, where the doubt is largest, and at both groups."""
    low, high = number(rng, -3, -2), number(rng, 1, 2)
    alpha, sigma = number(rng, 0.5, 0.9), number(rng, 0.7, 1.1)
    middle = alpha * (low + high) / 2
    x = np.append(middle + rng.uniform(-0.9, 0.9, 5), [alpha * low, alpha * high])
    denoise = TwoGroupDenoiser(low, high, number(rng, 0.3, 0.6))
    return denoise, x.astype(np.float32), alpha, sigma


def _gaussians(rng):
    alpha, sigma = rng.uniform(0.2, 1.4, 2)
    denoise = gaussian(rng, (-2, 2), (0.3, 2.0))
    return denoise, normal(rng, 4, std=2.0), float(alpha), float(sigma)


def _wide_data(rng):
    """The variance is above 1."""
    denoise = gaussian(rng, (-2, 2), (2.5, 3.0))
    return denoise, normal(rng, 4, std=2.0), number(rng, 0.2, 0.4), number(rng, 1.2, 1.5)


def _little_noise(rng):
    return [(*_gaussians(rng)[:2], number(rng, 0.7, 0.9), number(rng, 0.02, 0.1))]


VARIANCE = exercise(
    "04.7 · What the derivative of a denoiser knows",
    posterior_variance,
    Part("Gaussian data", 1, lambda rng: [_gaussians(rng), _wide_data(rng)]),
    Part("data in two groups", 1, lambda rng: [_between_two_groups(rng) for _ in range(2)]),
    Part("hardly any noise, hardly any doubt", 1, _little_noise),
    section="2 · What the job demands",
    mistakes="""
    that is the derivative alone, the share of a change in x that reaches D
        return right * alpha / sigma**2
    α is missing: x_t holds α·x0
        return right * alpha
    the factor is a variance, σ², over α; yours has σ
        return right / sigma
    in the factor before the derivative, σ and α have changed places
        return right * (alpha / sigma) ** 3
    denoise takes α first, then σ
        _slope(denoise, x, alpha, sigma) -> _slope(denoise, x, sigma, alpha)
    α stands below once, not squared
        return right / alpha
    that is the guess itself; its derivative is asked for
        slope = _slope(denoise, x, alpha, sigma) -> slope = denoise(x, alpha, sigma)
    that is the slope of a line from 0 to the guess; the derivative is that at x itself
        slope = _slope(denoise, x, alpha, sigma) -> slope = denoise(x, alpha, sigma) / x
    every point has a slope of its own; yours is that of the first
        slope = _slope(denoise, x, alpha, sigma)
            -> slope = _slope(denoise, x, alpha, sigma)[0] + 0 * x
    the slope is that at x; yours is that of a line to x + 1
        slope = _slope(denoise, x, alpha, sigma)
            -> slope = denoise(x + 1, alpha, sigma) - denoise(x, alpha, sigma)
    each point is taken by itself; yours are the slopes of all points, added up
        return 0 * right + right.sum()
    one number for each point is asked for: the others don't depend on it
        return np.diag(right)
    that is right for one Gaussian; where the data lie in groups, the slope changes with x
        slope = _slope(denoise, x, alpha, sigma)
            -> slope = alpha * denoise.std**2 / (alpha**2 * denoise.std**2 + sigma**2) + 0 * x
    that is the derivative of the square of the guess
        slope = _slope(denoise, x, alpha, sigma)
            -> slope = 2 * denoise(x, alpha, sigma) * _slope(denoise, x, alpha, sigma)
    the gradient of a mean is too small by the number of points; add up instead
        return right / len(x)
    that is the standard deviation; the variance is asked for
        return np.sqrt(right)
    """,
)


# --- 04.8 -----------------------------------------------------------------------------------
ABLATION = Written("04.8", "What an ablation does not say", 2, section="3 · A U-Net, taken apart")
