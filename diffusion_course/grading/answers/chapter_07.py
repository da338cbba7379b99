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
    """Scales above 1, between 0 and 1, and negative; the scale 0 is in every convention another."""

    def cases(rng):
        scales = (number(rng, 1.3, 6), number(rng, 0.2, 0.8), number(rng, -2, -0.5), 0.0)
        for scale, shape in zip(scales, ((5,), (2, 3, 2), (5,), (2, 3, 2)), strict=True):
            pair = images(rng, *shape), normal(rng, *shape, mean=-0.9, std=1.7)
            yield *pair, scale, convention

    return cases


CONVENTIONS = exercise(
    "07.1 · One rule, three conventions",
    guided,
    *(Part(f"convention {name!r}", 1, _in_convention(name)) for name in _CONVENTIONS),
    section="10 · The same number under other names",
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
def drop_labels(labels, u, rate, null):
    return np.where(u < rate, null, labels)


def _labels(low, high, null):
    """In one batch the first example is dropped, in the next it is kept; in the last all are kept.

    The third number is the rate, to the last bit in every precision.
    """

    def cases(rng):
        rate = int(64 * rng.uniform(low, high)) / 64
        for size, begin in ((60, (rate / 2, rate + 0.1)), (45, (rate + 0.1, rate / 2))):
            u = rng.random(size).astype(np.float32)
            u[:3] = *begin, rate
            yield rng.integers(null, size=size), u, rate, null
        u = rng.random(45).astype(np.float32)
        u[0] = 0
        yield rng.integers(null, size=45), u, 0.0, null

    return cases


DROP = exercise(
    "07.2 · Dropping labels",
    drop_labels,
    Part("a tenth to a third of ten classes", 1, _labels(0.12, 0.32, 10)),
    Part("most of four classes", 1, _labels(0.6, 0.8, 4)),
    section="5 · Drop the label in training",
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


# --- 07.3 -----------------------------------------------------------------------------------
def guide(x0, x_t, gradient, alpha, sigma, scale):
    alpha, sigma = (along(0, level, x0) for level in (alpha, sigma))
    pushed = x0 + scale * sigma**2 / alpha * gradient
    return pushed, (x_t - alpha * pushed) / sigma


def _pushes(shape, *scales):
    def cases(rng):
        for low, high in scales:
            pictures = [images(rng, *shape) for _ in range(3)]
            alpha, sigma = (rng.uniform(0.3, 0.95, shape[0]).astype(np.float32) for _ in range(2))
            yield *pictures, alpha, sigma, number(rng, low, high)

    return cases


PUSH = exercise(
    "07.3 · The push, in both currencies",
    guide,
    Part("one noise level for each image", 2, _pushes((2, 4, 5, 3), (1.5, 4), (0.2, 0.8))),
    Part("as many images as rows and columns", 1, _pushes((3, 3, 3, 1), (1.5, 4), (-2, -1))),
    section="2 · Bayes' rule, once for every noise level",
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
    the push has no σ at all: Tweedie's formula has the noise's variance
        sigma**2 / alpha -> 1 / alpha
    ε was not divided by its level: what is left of x_t is σ times ε
        alpha * pushed) / sigma -> alpha * pushed)
    x0 is right; in ε the gradient needs the factor σ
        return pushed, (x_t - alpha * pushed) / sigma
            -> return pushed, (x_t - alpha * x0) / sigma - scale * gradient
    the sign of ε is wrong: x_t is α times the estimate, plus σ times ε
        (x_t - alpha * pushed) / sigma -> (alpha * pushed - x_t) / sigma
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
def pack(x, t, labels, null):
    t = np.broadcast_to(np.asarray(t, np.float64), len(x))
    given, none = labels, np.full_like(labels, null)
    return tuple(np.concatenate(pair) for pair in ([x, x], [t, t], [given, none]))


def _packed_with(scalar):
    def cases(rng):
        for shape, null in (((5, 3, 2), 9), ((1, 4), 3)):
            t = rng.uniform(0.1, 0.9, shape[0]).astype(np.float32)
            x, labels = images(rng, *shape), rng.integers(null, size=shape[0])
            yield x, float(t[0]) if scalar else t, labels, null

    return cases


PACK = exercise(
    "07.4 · One evaluation instead of two",
    pack,
    Part("a time for each example", 1, _packed_with(scalar=False)),
    Part("one time for all", 1, _packed_with(scalar=True)),
    section="4 · Guidance without a classifier",
    mistakes="""
    the halves are exchanged: the conditional one comes first
        [given, none] -> [none, given]
    pairs stand side by side; the first half must hold all conditional examples
        np.concatenate(pair) -> np.stack(pair, 1).reshape(-1, *pair[0].shape[1:])
    the second half still has labels: it must be the null class throughout
        [given, none] -> [given, given]
    the first half has lost its labels
        [given, none] -> [none, none]
    the null class is the number `null`, which is not always 9
        np.full_like(labels, null) -> np.full_like(labels, 9)
    the states and the labels are in the wrong order: states, times, labels
        return right[2], right[1], right[0]
    """,
)


# --- 07.5 -----------------------------------------------------------------------------------
def rescaled(conditional, unconditional, x_t, alpha, w, share):
    sigma = np.sqrt(1 - alpha**2)
    axes = tuple(range(1, x_t.ndim))
    of_class, of_all = ((alpha * x_t - x0) / sigma for x0 in (conditional, unconditional))
    v = of_all + w * (of_class - of_all)
    ratio = np.std(of_class, axes, keepdims=True) / np.std(v, axes, keepdims=True)
    return alpha * x_t - sigma * ((share * ratio + 1 - share) * v)


def _contrasts(*runs):
    """For each run a shape, and the range of w and that of share."""

    def cases(rng):
        for shape, w, share in runs:
            widths = rng.uniform(0.4, 2.0, (3, shape[0], *(1,) * (len(shape) - 1)))
            three = [(width * rng.normal(0.3, 1, shape)).astype(np.float32) for width in widths]
            yield *three, number(rng, 0.3, 0.9), number(rng, *w), number(rng, *share)

    return cases


RESCALE = exercise(
    "07.5 · Too much contrast",
    rescaled,
    Part(
        "pictures",
        2,
        _contrasts(((3, 4, 5, 2), (2, 6), (0.6, 0.9)), ((3, 4, 5, 2), (2, 6), (0.1, 0.4))),
    ),
    Part(
        "vectors; share 1 restores the deviation",
        1,
        _contrasts(((4, 6), (2, 6), (1, 1)), ((4, 6), (0, 0), (0.3, 0.8))),
    ),
    section="8 · Guided too hard, and four cures",
    mistakes="""
    that rescales the estimate of x0; the network's output is v
        of_class, of_all = ((alpha * x_t - x0) / sigma for x0 in (conditional, unconditional))
            -> of_class, of_all = conditional, unconditional
        alpha * x_t - sigma * ((share * ratio + 1 - share) * v) -> (share * ratio + 1 - share) * v
    that is v; the estimate of x0 is asked for
        return alpha * x_t - sigma * ((share -> return ((share
    the deviation is each example's own, not that of the whole batch
        tuple(range(1, x_t.ndim)) -> None
    the two parts are exchanged: at share 1 the deviation is fully restored
        share * ratio + 1 - share -> (1 - share) * ratio + share
    the share is never used: the deviation is restored in full
        share * ratio + 1 - share -> ratio
    the ratio is upside down: it must shrink what guidance has widened
        share * ratio -> share / ratio
    the ratio is that of standard deviations, not of variances
        share * ratio -> share * ratio**2
    the factor multiplies the whole example; yours leaves its mean as it was
        return alpha -> middle = v.mean(axes, keepdims=True); return alpha
        (share * ratio + 1 - share) * v) -> middle + (share * ratio + 1 - share) * (v - middle))
    the scale is the course's: w = 1 is the conditional estimate itself
        w * (of_class -> (w + 1) * (of_class
    the deviation to restore is the conditional output's
        np.std(of_class -> np.std(of_all
    that is guidance without the rescaling
        return unconditional + w * (conditional - unconditional)
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
            shape = ((5,), (2, 3))[int(rng.integers(2))]
            alphas = np.append(
                np.sort(rng.uniform(0.1, 0.95, int(rng.integers(4, 8)))), (0.9997, 1.0)
            )
            someone = gaussian(rng, (1, 2))
            everybody = gaussian(rng, (-1, 0), (1.3, 1.8))
            scale = number(rng, *w) if isinstance(w, tuple) else w
            yield someone, everybody, normal(rng, *shape, mean=0.2), alphas, scale

    return cases


SAMPLER = exercise(
    "07.6 · This guidance is broken",
    sample,
    # At w = 0 alone, exchanged denoisers and a scale that is 1 too large are the same.
    Part("small w; at 0 it is the unconditional sampler", 1, _runs(0.0, (0.2, 0.4))),
    Part("w = 1 is the conditional sampler", 1, _runs(1.0)),
    Part("w above 1", 2, _runs((2, 4))),
    section="4 · Guidance without a classifier",
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
    the scale is one too small: at w = 1 the estimate is the class's, at 0 that of everybody
        w * (c - u) -> (w - 1) * (c - u)
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
def class_gradient(x, y, alpha, sigma, means, stds, weights):
    """grad log p(y|x_t) in closed form."""
    variance = (alpha * stds) ** 2 + sigma**2
    gap = x[:, None] - alpha * means
    scores = -gap / variance[:, None]
    exponents = -(gap**2).sum(-1) / (2 * variance)
    r = softmax(np.log(weights) - x.shape[1] / 2 * np.log(variance) + exponents, axis=1)
    own = np.arange(len(x)), y
    return scores[own] - (r[:, :, None] * scores).sum(1)


_FEW, _MANY = (6, 4, 2), (4, 2, 24)  # points, classes, dimensions


def _mixture(rng, classes, dimensions, low, high, apart=1.2):
    """Means, deviations and shares of some classes."""
    means = normal(rng, classes, dimensions, mean=apart / 3, std=apart)
    drawn = means, rng.uniform(low, high, classes), rng.dirichlet(np.full(classes, 4.0))
    return [array.astype(np.float32) for array in drawn]


def _near(rng):
    """Wide classes, and the same at a size where a number added for stability shows."""
    for scale in (1.0, 0.03):
        for points, classes, dimensions in (_FEW, _FEW):
            x = normal(rng, points, dimensions, mean=0.3 * scale, std=1.1 * scale)
            levels = number(rng, 0.5, 0.75), number(rng, 0.6, 0.9) * scale
            width = 0.3 * scale, 1.1 * scale
            clouds = _mixture(rng, classes, dimensions, *width, 1.2 * scale)
            yield x, rng.integers(classes, size=points), *levels, *clouds


def _in_doubt(rng):
    """In 24 dimensions, points that either of two classes may have: the wide or the narrow one."""
    alpha, sigma, stds = number(rng, 0.6, 0.8), number(rng, 0.6, 0.8), np.array([0.3, 1.2])
    narrow, wide = (alpha * stds) ** 2 + sigma**2
    x = rng.standard_normal((4, 24))
    x *= np.sqrt(
        24 * np.log(wide / narrow) / (1 / narrow - 1 / wide) / (x**2).sum(1, keepdims=True)
    )
    means, shares = 0.1 * rng.standard_normal((2, 24)), np.array([0.4, 0.6])
    x, means, stds, shares = (a.astype(np.float32) for a in (x, means, stds, shares))
    return [(x, np.tile([0, 1], 2), alpha, sigma, means, stds, shares)]


def _rare(rng):
    """Points at the centre of a class to which hardly any data belong."""
    means, stds, shares = _mixture(rng, 4, 2, 0.3, 0.5)
    shares[1] = 3e-4
    alpha, sigma = number(rng, 0.6, 0.8), number(rng, 0.3, 0.5)
    x = alpha * means[1] + normal(rng, 6, 2, std=0.5)
    yield x, np.arange(6) % 4, alpha, sigma, means, stds, shares / shares.sum()


def _far(rng):
    """So far out that every class's density is 0 in float32; every class is asked for."""
    for points, classes, dimensions in (_FEW, _MANY):
        directions = rng.standard_normal((points, dimensions))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        x = (rng.uniform(25, 40) * directions).astype(np.float32)
        levels = number(rng, 0.85, 0.95), number(rng, 0.3, 0.5)
        y = np.arange(points) % classes
        yield x, y, *levels, *_mixture(rng, classes, dimensions, 0.2, 0.5)


GRADIENT = exercise(
    "07.7 · The exact classifier of noisy points",
    class_gradient,
    Part("classes of unlike width", 2, lambda rng: [*_near(rng), *_in_doubt(rng)]),
    Part("a rare class", 1, _rare),
    Part("far from every class", 1, _far),
    section="2 · Bayes' rule, once for every noise level",
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
    α widens a class as it moves it: in its variance α is squared
        (alpha * stds) ** 2 -> alpha * stds**2
    what adds up is variances: the deviation of a class must be squared
        (alpha * stds) ** 2 -> alpha**2 * stds
    noise counts with its variance, σ squared
        + sigma**2 -> + sigma
    α shrinks a class as well as its centre: it is missing in the variance
        (alpha * stds) ** 2 -> stds**2
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
)


# --- 07.8 -----------------------------------------------------------------------------------
BETTER = Written("07.8", "A better model?", 2, section="7 · Quality against diversity")
