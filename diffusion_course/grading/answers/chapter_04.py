"""Exercises of chapter 04, networks that denoise."""

from __future__ import annotations

from functools import partial

import jax.numpy as jnp
import numpy as np

from diffusion_course.grading.exercise import Exercise, Part, Written
from diffusion_course.grading.inputs import GaussianDenoiser


def _normal(rng, *shape, mean=0.0, std=1.0):
    return rng.normal(mean, std, shape).astype(np.float32)


# --- 04.1 -----------------------------------------------------------------------------------


def _normalised(
    h, groups, axes=(1, 2, 4), inside=1e-5, outside=0.0, power=0.5, ddof=0, apart=False
):
    """The norm without FiLM; the other arguments are ways to get it wrong."""
    size = h.shape[-1] // groups
    grouped = h.reshape(*h.shape[:-1], *((size, groups) if apart else (groups, size)))
    axes = (1, 2, 3) if apart else axes
    mean, variance = grouped.mean(axes, keepdims=True), grouped.var(axes, keepdims=True, ddof=ddof)
    return ((grouped - mean) / ((variance + inside) ** power + outside)).reshape(h.shape)


def _film(h, scale, shift, groups, start=1.0, **wrong):
    one = start + scale[:, None, None]
    return _normalised(h, groups, **wrong) * one + shift[:, None, None]


def _before_the_norm(h, scale, shift, groups):
    return _normalised(h * (1 + scale[:, None, None]) + shift[:, None, None], groups)


def _film_inputs(rng, batch, height, width, channels, groups):
    h = _normal(rng, batch, height, width, channels, mean=0.7, std=2.0)
    return [(h, _normal(rng, batch, channels), _normal(rng, batch, channels), groups)]


def _film_inputs_with_a_flat_group(rng):
    """One group of one image is so flat that the 1e-5 counts, and its mean is small as well."""
    ((h, scale, shift, groups),) = _film_inputs(rng, 3, 4, 5, 6, 3)
    h[1, ..., 2:4] *= 1.5e-3
    return [(h, scale, shift, groups)]


FILM = Exercise(
    id="04.1",
    title="Group norm with FiLM",
    function="film",
    parts=(
        Part("one group for all channels", 1, lambda rng: _film_inputs(rng, 3, 4, 5, 6, 1)),
        Part("several groups, one nearly flat", 1, _film_inputs_with_a_flat_group),
        Part("as many images as rows", 1, lambda rng: _film_inputs(rng, 4, 4, 4, 4, 2)),
    ),
    oracle=_film,
    mistakes={
        "the scale is added to 1, so that a network that says 0 changes nothing": (
            partial(_film, start=0.0)
        ),
        "scale and shift are exchanged": (
            lambda h, scale, shift, groups: _film(h, shift, scale, groups)
        ),
        "scale and shift come after the norm, which would undo a part of them": _before_the_norm,
        "the norm takes each image by itself; yours mixes the images of the batch": (
            partial(_film, axes=(0, 1, 2, 4))
        ),
        "the norm is over all channels of a group; yours is over each channel alone": (
            partial(_film, axes=(1, 2))
        ),
        "the norm is over all pixels as well; yours is over channels alone": (
            partial(_film, axes=(4,))
        ),
        "every group has a norm of its own; yours is one for all channels": (
            lambda h, scale, shift, groups: _film(h, scale, shift, 1)
        ),
        "a group holds neighbouring channels; in yours they are taken in turn": (
            partial(_film, apart=True)
        ),
        "divide by the standard deviation, not by the variance: a root is missing": (
            partial(_film, power=1.0)
        ),
        "the variance is the mean square: divide by the number of entries, not by one less": (
            partial(_film, ddof=1)
        ),
        "1e-5 belongs to the variance, under the root; without it a flat group is blown up": (
            partial(_film, inside=0.0)
        ),
        "1e-5 belongs to the variance, under the root; yours is added to the root": (
            partial(_film, inside=0.0, outside=1e-5)
        ),
        "1e-5 belongs to the variance, under the root; yours is 1e-6, as in some libraries": (
            partial(_film, inside=1e-6)
        ),
    },
)


# --- 04.2 -----------------------------------------------------------------------------------


def _embedding(t, dim, factor=1000.0, last=0.0, order=(0, 1), interleaved=False):
    half = dim // 2
    frequencies = 10_000.0 ** (-np.arange(half) / (half - last))
    angles = factor * t[:, None] * frequencies
    waves = [np.cos(angles), np.sin(angles)]
    waves = [waves[i] for i in order]
    if interleaved:
        return np.stack(waves, axis=-1).reshape(len(t), dim)
    return np.concatenate(waves, axis=1)


def _times(rng, n, dim):
    return [(rng.uniform(0.02, 0.98, n).astype(np.float32), dim)]


EMBEDDING = Exercise(
    id="04.2",
    title="The time as waves",
    function="time_embedding",
    parts=(
        Part("two waves", 1, lambda rng: _times(rng, 5, 4)),
        Part("many waves", 2, lambda rng: _times(rng, 4, 32)),
    ),
    oracle=_embedding,
    mistakes={
        "without the factor 1000 all times look alike (section 4)": partial(_embedding, factor=1.0),
        "the cosines come first, then the sines": partial(_embedding, order=(1, 0)),
        "all cosines come first, then all sines; yours alternate": (
            partial(_embedding, interleaved=True)
        ),
        "the exponent is divided by dim/2; with dim/2 − 1 the slowest wave is another": (
            partial(_embedding, last=1.0)
        ),
        "the exponent is divided by half of dim; yours by dim": (
            lambda t, dim: _embedding(t, dim, last=-dim / 2)
        ),
    },
    # 1000·t in float32 has an error of 6e-5, which the fastest wave passes on.
    atol=5e-4,
)


# --- 04.3 -----------------------------------------------------------------------------------


def _softmax(logits, axis=-1):
    weights = np.exp(logits - logits.max(axis, keepdims=True))
    return weights / weights.sum(axis, keepdims=True)


def _attention(q, k, v, power=0.5, axis=-1, counted=-1):
    logits = np.einsum("bqd,bkd->bqk", q, k) / q.shape[counted] ** power
    return _softmax(logits, axis) @ v


def _tokens(rng, batch, tokens, width):
    return [tuple(_normal(rng, batch, tokens, width, std=1.3) for _ in range(3))]


ATTENTION = Exercise(
    id="04.3",
    title="Attention",
    function="attention",
    parts=(
        Part("a few tokens", 1, lambda rng: _tokens(rng, 2, 3, 5)),
        Part(
            "as many tokens as features, and more",
            1,
            lambda rng: [*_tokens(rng, 3, 4, 4), *_tokens(rng, 2, 6, 3)],
        ),
    ),
    oracle=_attention,
    mistakes={
        "the products must be divided by √d, or the softmax saturates": partial(
            _attention, power=0.0
        ),
        "the products are divided by √d; yours by d": partial(_attention, power=1.0),
        "d counts the features of a token; yours is the number of tokens": (
            partial(_attention, counted=1)
        ),
        "the weights of each query add up to 1; yours of each key": partial(_attention, axis=-2),
        "queries and keys are exchanged": lambda q, k, v: _attention(k, q, v),
        "the weights multiply the values; yours the keys": lambda q, k, v: _attention(q, k, k),
        "without a softmax the weights are neither positive nor do they add up to 1": (
            lambda q, k, v: np.einsum("bqd,bkd->bqk", q, k) / q.shape[-1] ** 0.5 @ v
        ),
    },
)


# --- 04.4 -----------------------------------------------------------------------------------


def _accumulated(gradients, sizes):
    return (sizes[:, None] * gradients).sum(0) / sizes.sum()


def _clipped(gradient, limit):
    return gradient * np.minimum(1, limit / np.sqrt((gradient**2).sum(-1, keepdims=True)))


def _large_batch(gradients, sizes, limit):
    return _clipped(_accumulated(gradients, sizes), limit)


def _parts(rng, sizes, limit):
    gradients = _normal(rng, len(sizes), 7, mean=0.4, std=1.5)
    return (gradients, np.array(sizes, np.int32), float(limit))


ACCUMULATION = Exercise(
    id="04.4",
    title="A large batch in parts",
    function="accumulate",
    parts=(
        Part("equal parts, nothing to clip", 1, lambda rng: [_parts(rng, (8, 8, 8), 1000)]),
        Part("parts of unlike sizes", 1, lambda rng: [_parts(rng, (16, 5, 9, 2), 1000)]),
        Part("a gradient that must be clipped", 1, lambda rng: [_parts(rng, (16, 5, 9), 0.3)]),
    ),
    oracle=_large_batch,
    mistakes={
        "a part of twice as many images counts twice": (
            lambda gradients, sizes, limit: _clipped(gradients.mean(0), limit)
        ),
        "the mean of the gradients is wanted, not their sum": (
            lambda gradients, sizes, limit: _clipped(gradients.sum(0), limit)
        ),
        "divide by the number of all images: their gradients are averaged, not added up": (
            lambda gradients, sizes, limit: _clipped((sizes[:, None] * gradients).sum(0), limit)
        ),
        "the whole gradient is clipped, once; yours clips every part": (
            lambda gradients, sizes, limit: _accumulated(_clipped(gradients, limit), sizes)
        ),
        "clipping is missing: a gradient longer than the limit must be shortened": (
            lambda gradients, sizes, limit: _accumulated(gradients, sizes)
        ),
        "clipping limits the length of the whole gradient, not each of its entries": (
            lambda gradients, sizes, limit: np.clip(_accumulated(gradients, sizes), -limit, limit)
        ),
        "clipping only ever shortens; yours stretches a short gradient to the limit": (
            lambda gradients, sizes, limit: (
                _accumulated(gradients, sizes)
                * limit
                / np.sqrt((_accumulated(gradients, sizes) ** 2).sum())
            )
        ),
    },
)


# --- 04.5 -----------------------------------------------------------------------------------


def _reweighted(losses, part, mean_square, root=np.sqrt, power=-1):
    density = root(mean_square) / root(mean_square).mean()
    return losses * density[part] ** power


def _not_a_density(losses, part, mean_square):
    return losses / np.sqrt(mean_square)[part]


def _mean_over_the_drawn(losses, part, mean_square):
    root = np.sqrt(mean_square)[part]
    return losses / (root / root.mean())


def _drawn_losses(rng, parts, part):
    mean_square = rng.uniform(0.05, 6.0, parts)
    losses = rng.uniform(0.1, 3.0, len(part)).astype(np.float32)
    return [(losses, part.astype(np.int32), mean_square.astype(np.float32))]


IMPORTANCE = Exercise(
    id="04.5",
    title="Losses of unevenly drawn times",
    function="reweight",
    parts=(
        Part(  # each drawn, but not equally often
            "three parts",
            1,
            lambda rng: _drawn_losses(rng, 3, rng.permutation([0, 0, 1, 2, 2, 2])),
        ),
        Part("many parts", 2, lambda rng: _drawn_losses(rng, 20, rng.integers(20, size=9))),
    ),
    oracle=_reweighted,
    mistakes={
        "the density is proportional to the root of the mean square": (
            partial(_reweighted, root=lambda m: m)
        ),
        "a time that is drawn twice as often counts half, not twice": partial(_reweighted, power=1),
        "a density has the mean 1 over all parts": _not_a_density,
        "the mean of the roots is over all parts; yours is over those that were drawn": (
            _mean_over_the_drawn
        ),
        "that is the probability of a part; the density is that times the number of parts": (
            lambda losses, part, mean_square: (
                _reweighted(losses, part, mean_square) * len(mean_square)
            )
        ),
    },
)


# --- 04.6 -----------------------------------------------------------------------------------


def _step(params, ema, gradient, rate, decay):
    params = params - rate * gradient
    return params, decay * ema + (1 - decay) * params


def _average_of_the_old(params, ema, gradient, rate, decay):
    return params - rate * gradient, decay * ema + (1 - decay) * params


def _exchanged(params, ema, gradient, rate, decay):
    params = params - rate * gradient
    return params, (1 - decay) * ema + decay * params


def _rounded(x):
    return np.asarray(x, jnp.bfloat16)


def _in_bfloat16(params, ema, gradient, rate, decay):
    params = (_rounded(params) - _rounded(rate * gradient)).astype(float)
    return params, decay * ema + (1 - decay) * params


def _rounded_step(params, ema, gradient, rate, decay):
    params = params - _rounded(rate * gradient).astype(float)
    return params, decay * ema + (1 - decay) * params


def _both_bugs(params, ema, gradient, rate, decay):
    new = _in_bfloat16(params, ema, gradient, rate, decay)[0]
    return new, decay * ema + (1 - decay) * params


def _updates(rng, rate, decay):
    params, ema = _normal(rng, 6, mean=1.0, std=2.0), _normal(rng, 6, mean=0.8, std=2.0)
    return [(params, ema, _normal(rng, 6, std=1.5), rate, decay)]


UPDATE = Exercise(
    id="04.6",
    title="This training step is broken",
    function="update",
    parts=(
        Part("a large step", 1, lambda rng: _updates(rng, 0.5, 0.7)),
        Part(
            "a small step",
            2,
            lambda rng: _updates(rng, 1e-3, 0.999),
        ),
    ),
    oracle=_step,
    mistakes={
        "both bugs are still there": _both_bugs,
        "eight bits are too few for weights: a small step is rounded away": _in_bfloat16,
        "the weights are float32 now, but the step itself is still rounded to eight bits": (
            _rounded_step
        ),
        "the average must take in the weights after the step": _average_of_the_old,
        "the two factors of the average are exchanged": _exchanged,
        "the weights go against the gradient": (
            lambda params, ema, gradient, rate, decay: _step(params, ema, -gradient, rate, decay)
        ),
    },
    # Small steps must show: 1e-3 of a number of size 2, in the seventh digit.
    rtol=1e-6,
    atol=1e-6,
)


# --- 04.7 -----------------------------------------------------------------------------------


def _variance(denoise, x, alpha, sigma):
    gain = alpha * denoise.std**2 / (alpha**2 * denoise.std**2 + sigma**2)
    return np.broadcast_to(sigma**2 / alpha * gain, x.shape)


def _levels_exchanged(denoise, x, alpha, sigma):
    """In the call of the denoiser, not in the factor."""
    return sigma**2 / alpha * _variance(denoise, x, sigma, alpha) * sigma / alpha**2


def _gaussians(rng):
    denoise = GaussianDenoiser(float(rng.uniform(-2, 2)), float(rng.uniform(0.3, 2.0)))
    alpha, sigma = rng.uniform(0.2, 1.4, 2)
    return (denoise, _normal(rng, 4, std=2.0), float(alpha), float(sigma))


VARIANCE = Exercise(
    id="04.7",
    title="What the derivative of a denoiser knows",
    function="posterior_variance",
    parts=(
        Part("Gaussian data", 2, lambda rng: [_gaussians(rng) for _ in range(2)]),
        Part(
            "hardly any noise, hardly any doubt",
            1,
            lambda rng: [
                (*_gaussians(rng)[:2], float(rng.uniform(0.7, 0.9)), float(rng.uniform(0.02, 0.1)))
            ],
        ),
    ),
    oracle=_variance,
    mistakes={
        "that is the derivative alone, the share of a change in x that reaches D": (
            lambda denoise, x, alpha, sigma: _variance(denoise, x, alpha, sigma) * alpha / sigma**2
        ),
        "α is missing: x_t holds α·x0": (
            lambda denoise, x, alpha, sigma: _variance(denoise, x, alpha, sigma) * alpha
        ),
        "the factor is a variance, σ², over α; yours has σ": (
            lambda denoise, x, alpha, sigma: _variance(denoise, x, alpha, sigma) / sigma
        ),
        "in the factor before the derivative, σ and α have changed places": (
            lambda denoise, x, alpha, sigma: (
                _variance(denoise, x, alpha, sigma) * (alpha / sigma) ** 3
            )
        ),
        "denoise takes α first, then σ": _levels_exchanged,
        "the gradient of a mean is too small by the number of points; add up instead": (
            lambda denoise, x, alpha, sigma: _variance(denoise, x, alpha, sigma) / len(x)
        ),
        "that is the standard deviation; the variance is asked for": (
            lambda denoise, x, alpha, sigma: np.sqrt(_variance(denoise, x, alpha, sigma))
        ),
    },
)


# --- 04.8 -----------------------------------------------------------------------------------

ABLATION = Written(id="04.8", title="What an ablation does not say", points=2)

EXERCISES = (FILM, EMBEDDING, ATTENTION, ACCUMULATION, IMPORTANCE, UPDATE, VARIANCE, ABLATION)
