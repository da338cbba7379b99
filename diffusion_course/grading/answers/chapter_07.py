"""Exercises of chapter 07, guidance."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import numpy as np

from diffusion_course.grading.exercise import Exercise, Part, Written
from diffusion_course.grading.inputs import GaussianDenoiser


def _array(rng, *shape, mean=0.6, std=1.7):
    return rng.normal(mean, std, shape).astype(np.float32)


# --- 07.1 -----------------------------------------------------------------------------------

_OFFSET = {"course": 0, "ho-salimans": 1, "imagen": 0}


def _guided(
    conditional, unconditional, scale, convention, offset=_OFFSET, rest=lambda w: 1 - w
):  # fmt: skip
    w = offset[convention] + scale
    return w * conditional + rest(w) * unconditional


def _in_convention(convention):
    def cases(rng):
        pair = [(_array(rng, 3, 4), _array(rng, 3, 4, mean=-0.9)) for _ in range(2)]
        return [(c, u, float(rng.uniform(1.3, 6)), convention) for c, u in pair]

    return cases


CONVENTIONS = Exercise(
    id="07.1",
    title="One rule, three conventions",
    function="guided",
    parts=tuple(Part(f"convention {name!r}", 1, _in_convention(name)) for name in _OFFSET),
    oracle=_guided,
    mistakes={
        "the conditional and the unconditional estimate are exchanged": (
            lambda conditional, unconditional, *rest: _guided(unconditional, conditional, *rest)
        ),
        "this convention counts from the conditional network: its scale 0 is the course's w = 1": (
            partial(_guided, offset=dict.fromkeys(_OFFSET, 0))
        ),
        "here a scale of 1 must give the conditional estimate itself; yours has gone beyond it": (
            partial(_guided, offset=dict.fromkeys(_OFFSET, 1))
        ),
        "1 was taken off the scale: which scale gives the conditional estimate itself here?": (
            partial(_guided, offset=dict.fromkeys(_OFFSET, -1))
        ),
        "the factors must add up to 1: the push is missing its unconditional part": (
            partial(_guided, rest=lambda w: 1)
        ),
        "the unconditional estimate has the wrong sign: the factors must add up to 1": (
            partial(_guided, rest=lambda w: w - 1)
        ),
    },
)


# --- 07.2 -----------------------------------------------------------------------------------


def _class_gradient(
    x, y, alpha, sigma, means, stds, weights, variance=lambda own, noise: own**2 + noise**2,
    shrunk=True, share=np.log, half=0.5, power=None, raw=1.0, of_log=True,
):  # fmt: skip
    """grad log p(y|x_t) in closed form; the other arguments are ways to get it wrong."""
    variance = variance(alpha * stds, sigma)
    gap = x[:, None] - (alpha if shrunk else 1) * means
    scores = -2 * half * gap / variance[:, None]
    power = x.shape[1] if power is None else power
    logits = share(weights) - power / 2 * np.log(variance) - half * (gap**2).sum(-1) / variance
    r = np.exp(logits - logits.max(1, keepdims=True))
    r = r / r.sum(1, keepdims=True)
    mine = np.arange(len(x)), y
    gradient = scores[mine] - raw * (r[:, :, None] * scores).sum(1)
    return gradient if of_log else r[mine][:, None] * gradient


def _mixture(rng, classes=3, stds=(0.3, 1.1)):
    return (
        _array(rng, classes, 2, mean=0.4, std=1.2),
        rng.uniform(*stds, classes).astype(np.float32),
        rng.dirichlet(np.full(classes, 4.0)).astype(np.float32),
    )


def _near(rng):
    levels = float(rng.uniform(0.5, 0.75)), float(rng.uniform(0.6, 0.9))
    x, y = _array(rng, 9, 2, mean=0.3, std=1.1), rng.integers(3, size=9)
    return [(x, y, *levels, *_mixture(rng))]


def _far(rng):
    """So far out that every class's density is 0 in float32; each direction, every class."""
    turn = np.arange(9) * 2 * np.pi / 9 + rng.uniform(0, 1)
    x = (rng.uniform(25, 40) * np.stack([np.cos(turn), np.sin(turn)], 1)).astype(np.float32)
    levels = float(rng.uniform(0.85, 0.95)), float(rng.uniform(0.3, 0.5))
    return [(x, np.tile(np.arange(3), 3), *levels, *_mixture(rng, stds=(0.2, 0.5)))]


GRADIENT = Exercise(
    id="07.2",
    title="The exact classifier of noisy points",
    function="class_gradient",
    parts=(
        Part("classes of unlike width and share", 2, _near),
        Part("far from every class", 1, _far),
    ),
    oracle=_class_gradient,
    mistakes={
        "that is the gradient of the class's own logit; a probability is normalised over classes": (
            partial(_class_gradient, raw=0.0)
        ),
        "that is the gradient of p(y | x_t) itself; its logarithm is asked for": (
            partial(_class_gradient, of_log=False)
        ),
        "each point has a gradient of its own: yours is divided by the size of the batch": (
            lambda x, *rest: _class_gradient(x, *rest) / len(x)
        ),
        "noise widens the classes: its variance is missing": (
            partial(_class_gradient, variance=lambda own, noise: own**2)
        ),
        "the variances of a class and of the noise add up, not their standard deviations": (
            partial(_class_gradient, variance=lambda own, noise: (own + noise) ** 2)
        ),
        "the class's centre in x_t is α times its mean": partial(_class_gradient, shrunk=False),
        "the Gaussian's exponent is too large: a factor is missing there": (
            partial(_class_gradient, half=1.0)
        ),
        "Bayes' rule needs the shares of the classes": (
            partial(_class_gradient, share=lambda weights: 0)
        ),
        "everything in a logit is a logarithm, and so must the classes' shares be": (
            partial(_class_gradient, share=lambda weights: weights)
        ),
        "a wide class is thinner everywhere: the Gaussian's normalising factor is missing": (
            partial(_class_gradient, power=0)
        ),
        "the normalising factor is that of one dimension; x has several": (
            partial(_class_gradient, power=1)
        ),
    },
    # The difference of two scores in float32, which far out are large and nearly alike.
    rtol=1e-3,
    atol=1e-4,
)


# --- 07.3 -----------------------------------------------------------------------------------


def _column(level):
    return np.reshape(level, (-1, 1, 1, 1))


def _guide(
    x0, x_t, gradient, alpha, sigma, scale, factor=lambda a, s: s**2 / a, sign=1,
    strength=lambda scale: scale,
):  # fmt: skip
    alpha, sigma = _column(alpha), _column(sigma)
    pushed = x0 + sign * strength(scale) * factor(alpha, sigma) * gradient
    return pushed, (x_t - alpha * pushed) / sigma


def _without_new_noise(x0, x_t, gradient, alpha, sigma, scale):
    pushed, _ = _guide(x0, x_t, gradient, alpha, sigma, scale)
    return pushed, (x_t - _column(alpha) * x0) / _column(sigma)


def _guide_along_columns(x0, x_t, gradient, alpha, sigma, scale):
    alpha, sigma = (np.resize(level, (1, 1, x0.shape[2], 1)) for level in (alpha, sigma))
    pushed = x0 + scale * sigma**2 / alpha * gradient
    return pushed, (x_t - alpha * pushed) / sigma


def _pushes(*shape):
    def cases(rng):
        images = [_array(rng, *shape) for _ in range(3)]
        alpha, sigma = (rng.uniform(0.3, 0.95, shape[0]).astype(np.float32) for _ in range(2))
        return [(*images, alpha, sigma, float(rng.uniform(1.5, 4)))]

    return cases


PUSH = Exercise(
    id="07.3",
    title="The push, in both currencies",
    function="guide",
    parts=(
        Part("one noise level for each image", 2, _pushes(2, 4, 5, 1)),
        Part("as many images as rows and columns", 1, _pushes(3, 3, 3, 1)),
    ),
    oracle=_guide,
    mistakes={
        "ε is still that of the unguided estimate: the two no longer add up to x_t": (
            _without_new_noise
        ),
        "a σ is missing: Tweedie's formula has a variance, not a standard deviation": (
            partial(_guide, factor=lambda a, s: s / a)
        ),
        "the division by α is missing": partial(_guide, factor=lambda a, s: s**2),
        "that is one division by α too many": partial(_guide, factor=lambda a, s: s**2 / a**2),
        "σ alone is the gradient's factor in ε; in x0 it has another": (
            partial(_guide, factor=lambda a, s: s)
        ),
        "the gradient alone is no change of x0: Tweedie's formula gives its factor": (
            partial(_guide, factor=lambda a, s: 1.0)
        ),
        "the sign is wrong: the estimate must move along the gradient": partial(_guide, sign=-1),
        "the scale is never used": partial(_guide, strength=lambda scale: 1),
        "1 was added to the scale, but 0 must leave x0 as it is": (
            partial(_guide, strength=lambda scale: 1 + scale)
        ),
        "the two are in the wrong order: first x0, then ε": lambda *rest: _guide(*rest)[::-1],
        "α and σ are one number per image: they must multiply whole images": _guide_along_columns,
    },
)


# --- 07.4 -----------------------------------------------------------------------------------


def _drop(labels, u, rate, null):
    return np.where(u < rate, null, labels)


def _labels(n, rate, null):
    """Two batches: in one the first example is dropped, in the other it is kept.

    The third number is the rate, to the last bit in every precision.
    """

    def cases(rng):
        share = int(64 * rng.uniform(*rate)) / 64
        for begin in ((share / 2, share + 0.1), (share + 0.1, share / 2)):
            u = rng.random(n).astype(np.float32)
            u[:3] = *begin, share
            yield rng.integers(null, size=n), u, share, null

    return lambda rng: list(cases(rng))


DROP = Exercise(
    id="07.4",
    title="Dropping labels",
    function="drop_labels",
    parts=(
        Part("a tenth to a third of ten classes", 1, _labels(60, (0.12, 0.32), 10)),
        Part("most of four classes", 1, _labels(60, (0.6, 0.8), 4)),
    ),
    oracle=_drop,
    mistakes={
        "kept and dropped are exchanged: below the rate a label is dropped": (
            lambda labels, u, rate, null: np.where(u < rate, labels, null)
        ),
        "kept and dropped are exchanged: above the rate a label is kept": (
            lambda labels, u, rate, null: np.where(u > rate, null, labels)
        ),
        "a number that equals the rate is not below it: its label is kept": (
            lambda labels, u, rate, null: np.where(u <= rate, null, labels)
        ),
        "each example decides for itself; yours all follow the first": (
            lambda labels, u, rate, null: np.where(u[0] < rate, null, labels)
        ),
        "0 is a class like any other: the null class has a number of its own": (
            lambda labels, u, rate, null: np.where(u < rate, 0, labels)
        ),
        "−1 is no class: the null class has a number of its own": (
            lambda labels, u, rate, null: np.where(u < rate, -1, labels)
        ),
        "the null class is the number `null`, which is not always 10": (
            lambda labels, u, rate, null: np.where(u < rate, 10, labels)
        ),
        "no label was dropped": lambda labels, u, rate, null: labels,
    },
)


# --- 07.5 -----------------------------------------------------------------------------------


def _pack(x, t, labels, null, order=(0, 1), join=np.concatenate):
    t = np.broadcast_to(np.asarray(t, np.float64), len(x))
    both = labels, np.full_like(labels, null)
    return join([x, x]), join([t, t]), join([both[i] for i in order])


def _interleaved(pair):
    return np.stack(pair, 1).reshape(-1, *pair[0].shape[1:])


def _packed_with(scalar):
    def cases(rng):
        t = rng.uniform(0.1, 0.9, 5).astype(np.float32)
        x, labels = _array(rng, 5, 3, 2), rng.integers(9, size=5)
        return [(x, float(t[0]) if scalar else t, labels, 9)]

    return cases


PACK = Exercise(
    id="07.5",
    title="One evaluation instead of two",
    function="pack",
    parts=(
        Part("a time for each example", 1, _packed_with(scalar=False)),
        Part("one time for all", 1, _packed_with(scalar=True)),
    ),
    oracle=_pack,
    mistakes={
        "the halves are exchanged: the conditional one comes first": partial(_pack, order=(1, 0)),
        "pairs stand side by side; the first half must hold all conditional examples": (
            partial(_pack, join=_interleaved)
        ),
        "the second half still has labels: it must be the null class throughout": (
            partial(_pack, order=(0, 0))
        ),
        "the first half has lost its labels": partial(_pack, order=(1, 1)),
    },
)


# --- 07.6 -----------------------------------------------------------------------------------


def _sample(
    conditional, unconditional, x, alphas, w, more=0, exchanged=False, noise_of="guided",
    last=True, moved=True,
):  # fmt: skip
    """DDIM with guidance; the other arguments are ways to get it wrong."""
    if exchanged:
        conditional, unconditional = unconditional, conditional
    for a, b in pairwise(alphas if last else alphas[:-1]):
        s = np.sqrt(1 - a**2)
        c, u = conditional(x, a, s), unconditional(x, a, s)
        x0 = u + (w + more) * (c - u)
        eps = (x - a * {"guided": x0, "conditional": c, "unconditional": u}[noise_of]) / s
        x = b * x0 + (np.sqrt(1 - b**2) if moved else s) * eps
    return x


def _runs(*scales):
    """A run at each scale, which is a number or the ends of a range."""

    def cases(rng):
        for w in scales:
            alphas = np.append(np.sort(rng.uniform(0.1, 0.95, 6)), 1.0)
            someone = GaussianDenoiser(float(rng.uniform(1, 2)), float(rng.uniform(0.4, 0.8)))
            everybody = GaussianDenoiser(float(rng.uniform(-1, 0)), float(rng.uniform(1.3, 1.8)))
            scale = float(rng.uniform(*w)) if isinstance(w, tuple) else w
            yield someone, everybody, _array(rng, 5, mean=0.2, std=1.0), alphas, scale

    return lambda rng: list(cases(rng))


SAMPLER = Exercise(
    id="07.6",
    title="This guidance is broken",
    function="sample",
    parts=(
        # At w = 0 alone, exchanged denoisers and a scale that is 1 too large are the same.
        Part("small w; at 0 it is the unconditional sampler", 1, _runs(0.0, (0.2, 0.4))),
        Part("w = 1 is the conditional sampler", 1, _runs(1.0)),
        Part("w above 1", 2, _runs((2, 4))),
    ),
    oracle=_sample,
    mistakes={
        "one bug is left: the scale is counted from the conditional network": (
            partial(_sample, more=1)
        ),
        "one bug is left: the noise is not that of the guided estimate": (
            partial(_sample, noise_of="conditional")
        ),
        "both bugs are still there": partial(_sample, more=1, noise_of="conditional"),
        "the noise is the unconditional estimate's; it must be that of the guided one": (
            partial(_sample, noise_of="unconditional")
        ),
        "the two denoisers are exchanged": partial(_sample, exchanged=True),
        "the last step is missing: the samples must reach the data": partial(_sample, last=False),
        "the noise keeps its old level: after the step it must have the new one": (
            partial(_sample, moved=False)
        ),
    },
)


# --- 07.7 -----------------------------------------------------------------------------------


def _std(x, whole=False):
    axes = None if whole else tuple(range(1, x.ndim))
    return np.std(x, axis=axes, keepdims=True)


def _rescaled(
    conditional, unconditional, w, share, whole=False, power=1, part=lambda share: share,
    centred=False, more=0,
):  # fmt: skip
    """Guidance with its deviation restored; the other arguments are ways to get it wrong."""
    estimate = unconditional + (w + more) * (conditional - unconditional)
    ratio = (_std(conditional, whole) / _std(estimate, whole)) ** power
    factor = part(share) * ratio + 1 - part(share)
    axes = tuple(range(1, estimate.ndim))
    fixed = np.mean(estimate, axes, keepdims=True) if centred else 0
    return fixed + factor * (estimate - fixed)


def _to_the_unconditional(conditional, unconditional, w, share):
    estimate = unconditional + w * (conditional - unconditional)
    return estimate * (share * _std(unconditional) / _std(estimate) + 1 - share)


def _contrasts(*shape):
    def cases(rng):
        widths = rng.uniform(0.4, 2.0, (2, shape[0], *(1,) * (len(shape) - 1)))
        pair = [(width * rng.normal(0.3, 1, shape)).astype(np.float32) for width in widths]
        return [(*pair, float(rng.uniform(2, 6)), float(rng.uniform(0.6, 0.9)))]

    return cases


RESCALE = Exercise(
    id="07.7",
    title="Too much contrast",
    function="rescaled",
    parts=(
        Part("every image has a contrast of its own", 2, _contrasts(3, 4, 5, 2)),
        Part("vectors", 1, _contrasts(4, 6)),
    ),
    oracle=_rescaled,
    mistakes={
        "the deviation is each example's own, not that of the whole batch": (
            partial(_rescaled, whole=True)
        ),
        "the two parts are exchanged: at share 1 the deviation is fully restored": (
            partial(_rescaled, part=lambda share: 1 - share)
        ),
        "the share is never used: the deviation is restored in full": (
            partial(_rescaled, part=lambda share: 1)
        ),
        "the ratio is upside down: it must shrink what guidance has widened": (
            partial(_rescaled, power=-1)
        ),
        "the ratio is that of standard deviations, not of variances": (partial(_rescaled, power=2)),
        "the factor multiplies the whole example; yours leaves its mean as it was": (
            partial(_rescaled, centred=True)
        ),
        "the scale is the course's: w = 1 is the conditional estimate itself": (
            partial(_rescaled, more=1)
        ),
        "the deviation to restore is the conditional estimate's": _to_the_unconditional,
        "that is guidance without the rescaling": partial(_rescaled, part=lambda share: 0),
    },
)


# --- 07.8 -----------------------------------------------------------------------------------

BETTER = Written(id="07.8", title="A better model?", points=2)

EXERCISES = (CONVENTIONS, GRADIENT, PUSH, DROP, PACK, SAMPLER, RESCALE, BETTER)
