"""Exercises of chapter 07, guidance."""

from itertools import pairwise

import numpy as np
from scipy.special import softmax

from diffusion_course.grading.answers.drawing import gaussian, images, normal, number
from diffusion_course.grading.answers.writing import along, exercise
from diffusion_course.grading.exercise import Part, Written

# --- 07.1 -----------------------------------------------------------------------------------
_CONVENTIONS = ("course", "ho-salimans", "imagen")


def guided(conditional, unconditional, scale, convention):
    w = {"course": 0, "ho-salimans": 1, "imagen": 0}[convention] + scale
    return w * conditional + (1 - w) * unconditional


def _in_convention(convention):
    def cases(rng):
        pairs = [(images(rng, 3, 4), normal(rng, 3, 4, mean=-0.9, std=1.7)) for _ in range(2)]
        return [(*pair, number(rng, 1.3, 6), convention) for pair in pairs]

    return cases


CONVENTIONS = exercise(
    "07.1 · One rule, three conventions",
    guided,
    *(Part(f"convention {name!r}", 1, _in_convention(name)) for name in _CONVENTIONS),
    mistakes="""
    the conditional and the unconditional estimate are exchanged
        return guided(unconditional, conditional, scale, convention)
    this convention counts from the conditional network: its scale 0 is the course's w = 1
        [convention] -> ["course"]
    here a scale of 1 must give the conditional estimate itself; yours has gone beyond it
        [convention] -> ["ho-salimans"]
    1 was taken off the scale: which scale gives the conditional estimate itself here?
        [convention] + scale -> ["course"] + scale - 1
    the factors must add up to 1: the push is missing its unconditional part
        1 - w -> 1
    the unconditional estimate has the wrong sign: the factors must add up to 1
        1 - w -> w - 1
    """,
)


# --- 07.2 -----------------------------------------------------------------------------------
def class_gradient(x, y, alpha, sigma, means, stds, weights):
    """grad log p(y|x_t) in closed form."""
    variance = (alpha * stds) ** 2 + sigma**2
    gap = x[:, None] - alpha * means
    scores = -gap / variance[:, None]
    exponents = -(gap**2).sum(-1) / (2 * variance)
    r = softmax(np.log(weights) - x.shape[1] / 2 * np.log(variance) + exponents, axis=1)
    own = np.arange(len(x)), y
    return scores[own] - (r[:, :, None] * scores).sum(1)


def _mixture(rng, *stds):
    """Means, deviations and shares of three classes."""
    shares = np.full(3, 4.0)
    drawn = normal(rng, 3, 2, mean=0.4, std=1.2), rng.uniform(*stds, 3), rng.dirichlet(shares)
    return [array.astype(np.float32) for array in drawn]


def _near(rng):
    levels = number(rng, 0.5, 0.75), number(rng, 0.6, 0.9)
    x, y = normal(rng, 9, 2, mean=0.3, std=1.1), rng.integers(3, size=9)
    return [(x, y, *levels, *_mixture(rng, 0.3, 1.1))]


def _far(rng):
    """So far out that every class's density is 0 in float32; each direction, every class."""
    turn = np.arange(9) * 2 * np.pi / 9 + rng.uniform(0, 1)
    x = (rng.uniform(25, 40) * np.stack([np.cos(turn), np.sin(turn)], 1)).astype(np.float32)
    levels = number(rng, 0.85, 0.95), number(rng, 0.3, 0.5)
    return [(x, np.tile(np.arange(3), 3), *levels, *_mixture(rng, 0.2, 0.5))]


GRADIENT = exercise(
    "07.2 · The exact classifier of noisy points",
    class_gradient,
    Part("classes of unlike width and share", 2, _near),
    Part("far from every class", 1, _far),
    mistakes="""
    that is the gradient of the class's own logit; a probability is normalised over classes
        - (r[:, :, None] * scores).sum(1) ->
    that is the gradient of p(y | x_t) itself; its logarithm is asked for
        return scores[own] - (r[:, :, None] * scores).sum(1)
            -> return r[own][:, None] * (scores[own] - (r[:, :, None] * scores).sum(1))
    each point has a gradient of its own: yours is divided by the size of the batch
        return right / len(x)
    noise widens the classes: its variance is missing
        + sigma**2 ->
    the variances of a class and of the noise add up, not their standard deviations
        (alpha * stds) ** 2 + sigma**2 -> (alpha * stds + sigma) ** 2
    the class's centre in x_t is α times its mean
        alpha * means -> means
    the Gaussian's exponent is too large: a factor is missing there
        -gap / -> -2 * gap /
        (2 * variance) -> variance
    Bayes' rule needs the shares of the classes
        np.log(weights) -> 0
    everything in a logit is a logarithm, and so must the classes' shares be
        np.log(weights) -> weights
    a wide class is thinner everywhere: the Gaussian's normalising factor is missing
        x.shape[1] / 2 -> 0
    the normalising factor is that of one dimension; x has several
        x.shape[1] / 2 -> 0.5
    """,
    # The difference of two scores in float32, which far out are large and nearly alike.
    rtol=1e-3,
    atol=1e-4,
)


# --- 07.3 -----------------------------------------------------------------------------------
def guide(x0, x_t, gradient, alpha, sigma, scale):
    alpha, sigma = (along(0, level, x0) for level in (alpha, sigma))
    pushed = x0 + scale * sigma**2 / alpha * gradient
    return pushed, (x_t - alpha * pushed) / sigma


def _pushes(*shape):
    def cases(rng):
        pictures = [images(rng, *shape) for _ in range(3)]
        alpha, sigma = (rng.uniform(0.3, 0.95, shape[0]).astype(np.float32) for _ in range(2))
        return [(*pictures, alpha, sigma, number(rng, 1.5, 4))]

    return cases


PUSH = exercise(
    "07.3 · The push, in both currencies",
    guide,
    Part("one noise level for each image", 2, _pushes(2, 4, 5, 1)),
    Part("as many images as rows and columns", 1, _pushes(3, 3, 3, 1)),
    mistakes="""
    ε is still that of the unguided estimate: the two no longer add up to x_t
        alpha * pushed -> alpha * x0
    a σ is missing: Tweedie's formula has a variance, not a standard deviation
        sigma**2 / alpha -> sigma / alpha
    the division by α is missing
        sigma**2 / alpha -> sigma**2
    that is one division by α too many
        sigma**2 / alpha -> sigma**2 / alpha**2
    σ alone is the gradient's factor in ε; in x0 it has another
        sigma**2 / alpha -> sigma
    the gradient alone is no change of x0: Tweedie's formula gives its factor
        sigma**2 / alpha * gradient -> gradient
    the sign is wrong: the estimate must move along the gradient
        x0 + scale -> x0 - scale
    the scale is never used
        scale * sigma -> sigma
    1 was added to the scale, but 0 must leave x0 as it is
        scale * sigma -> (1 + scale) * sigma
    the two are in the wrong order: first x0, then ε
        return right[::-1]
    α and σ are one number per image: they must multiply whole images
        along(0 -> along(2
    """,
)


# --- 07.4 -----------------------------------------------------------------------------------
def drop_labels(labels, u, rate, null):
    return np.where(u < rate, null, labels)


def _labels(low, high, null):
    """Two batches: in one the first example is dropped, in the other it is kept.

    The third number is the rate, to the last bit in every precision.
    """

    def cases(rng):
        rate = int(64 * rng.uniform(low, high)) / 64
        for begin in ((rate / 2, rate + 0.1), (rate + 0.1, rate / 2)):
            u = rng.random(60).astype(np.float32)
            u[:3] = *begin, rate
            yield rng.integers(null, size=60), u, rate, null

    return cases


DROP = exercise(
    "07.4 · Dropping labels",
    drop_labels,
    Part("a tenth to a third of ten classes", 1, _labels(0.12, 0.32, 10)),
    Part("most of four classes", 1, _labels(0.6, 0.8, 4)),
    mistakes="""
    kept and dropped are exchanged: below the rate a label is dropped
        null, labels -> labels, null
    kept and dropped are exchanged: above the rate a label is kept
        u < rate -> u > rate
    a number that equals the rate is not below it: its label is kept
        u < rate -> u <= rate
    each example decides for itself; yours all follow the first
        u < rate -> u[0] < rate
    0 is a class like any other: the null class has a number of its own
        null, labels -> 0, labels
    −1 is no class: the null class has a number of its own
        null, labels -> -1, labels
    the null class is the number `null`, which is not always 10
        null, labels -> 10, labels
    no label was dropped
        return labels
    """,
)


# --- 07.5 -----------------------------------------------------------------------------------
def pack(x, t, labels, null):
    t = np.broadcast_to(np.asarray(t, np.float64), len(x))
    given, none = labels, np.full_like(labels, null)
    return tuple(np.concatenate(pair) for pair in ([x, x], [t, t], [given, none]))


def _packed_with(scalar):
    def cases(rng):
        t = rng.uniform(0.1, 0.9, 5).astype(np.float32)
        x, labels = images(rng, 5, 3, 2), rng.integers(9, size=5)
        return [(x, float(t[0]) if scalar else t, labels, 9)]

    return cases


PACK = exercise(
    "07.5 · One evaluation instead of two",
    pack,
    Part("a time for each example", 1, _packed_with(scalar=False)),
    Part("one time for all", 1, _packed_with(scalar=True)),
    mistakes="""
    the halves are exchanged: the conditional one comes first
        [given, none] -> [none, given]
    pairs stand side by side; the first half must hold all conditional examples
        np.concatenate(pair) -> np.stack(pair, 1).reshape(-1, *pair[0].shape[1:])
    the second half still has labels: it must be the null class throughout
        [given, none] -> [given, given]
    the first half has lost its labels
        [given, none] -> [none, none]
    """,
)


# --- 07.6 -----------------------------------------------------------------------------------
def sample(conditional, unconditional, x, alphas, w):
    for a, b in pairwise(alphas):
        s = np.sqrt(1 - a**2)
        c, u = conditional(x, a, s), unconditional(x, a, s)
        x0 = u + w * (c - u)
        eps = (x - a * x0) / s
        x = b * x0 + np.sqrt(1 - b**2) * eps
    return x


def _runs(*scales):
    """A run at each scale, which lies in a range or is a single number."""

    def cases(rng):
        for w in scales:
            alphas = np.append(np.sort(rng.uniform(0.1, 0.95, 6)), 1.0)
            someone = gaussian(rng, (1, 2))
            everybody = gaussian(rng, (-1, 0), (1.3, 1.8))
            scale = number(rng, *w) if isinstance(w, tuple) else w
            yield someone, everybody, normal(rng, 5, mean=0.2), alphas, scale

    return cases


SAMPLER = exercise(
    "07.6 · This guidance is broken",
    sample,
    # At w = 0 alone, exchanged denoisers and a scale that is 1 too large are the same.
    Part("small w; at 0 it is the unconditional sampler", 1, _runs(0.0, (0.2, 0.4))),
    Part("w = 1 is the conditional sampler", 1, _runs(1.0)),
    Part("w above 1", 2, _runs((2, 4))),
    mistakes="""
    one bug is left: the scale is counted from the conditional network
        w * (c - u) -> (w + 1) * (c - u)
    one bug is left: the noise is not that of the guided estimate
        x - a * x0 -> x - a * c
    both bugs are still there
        w * (c - u) -> (w + 1) * (c - u)
        x - a * x0 -> x - a * c
    the noise is the unconditional estimate's; it must be that of the guided one
        x - a * x0 -> x - a * u
    the two denoisers are exchanged
        return sample(unconditional, conditional, x, alphas, w)
    the last step is missing: the samples must reach the data
        alphas -> alphas[:-1]
    the noise keeps its old level: after the step it must have the new one
        np.sqrt(1 - b**2) -> s
    """,
    library=("diffusion_course.grading.inputs.GaussianDenoiser",),
)


# --- 07.7 -----------------------------------------------------------------------------------
def rescaled(conditional, unconditional, w, share):
    axes = tuple(range(1, conditional.ndim))
    estimate = unconditional + w * (conditional - unconditional)
    ratio = np.std(conditional, axes, keepdims=True) / np.std(estimate, axes, keepdims=True)
    return (share * ratio + 1 - share) * estimate


def _contrasts(*shape):
    def cases(rng):
        widths = rng.uniform(0.4, 2.0, (2, shape[0], *(1,) * (len(shape) - 1)))
        pair = [(width * rng.normal(0.3, 1, shape)).astype(np.float32) for width in widths]
        return [(*pair, number(rng, 2, 6), number(rng, 0.6, 0.9))]

    return cases


RESCALE = exercise(
    "07.7 · Too much contrast",
    rescaled,
    Part("every image has a contrast of its own", 2, _contrasts(3, 4, 5, 2)),
    Part("vectors", 1, _contrasts(4, 6)),
    mistakes="""
    the deviation is each example's own, not that of the whole batch
        tuple(range(1, conditional.ndim)) -> None
    the two parts are exchanged: at share 1 the deviation is fully restored
        share * ratio + 1 - share -> (1 - share) * ratio + share
    the share is never used: the deviation is restored in full
        share * ratio + 1 - share -> ratio
    the ratio is upside down: it must shrink what guidance has widened
        share * ratio -> share / ratio
    the ratio is that of standard deviations, not of variances
        share * ratio -> share * ratio**2
    the factor multiplies the whole example; yours leaves its mean as it was
        return (share -> middle = estimate.mean(axes, keepdims=True); return middle + (share
        - share) * estimate -> - share) * (estimate - middle)
    the scale is the course's: w = 1 is the conditional estimate itself
        w * (cond -> (w + 1) * (cond
    the deviation to restore is the conditional estimate's
        np.std(conditional -> np.std(unconditional
    that is guidance without the rescaling
        return unconditional + w * (conditional - unconditional)
    """,
)


# --- 07.8 -----------------------------------------------------------------------------------
BETTER = Written("07.8", "A better model?", 2)
