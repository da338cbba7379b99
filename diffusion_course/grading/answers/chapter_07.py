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


def _guided(conditional, unconditional, scale, convention, offset=_OFFSET):
    return unconditional + (offset[convention] + scale) * (conditional - unconditional)


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
        "the factors must add up to 1: the push is missing its unconditional part": (
            lambda conditional, unconditional, scale, convention: (
                unconditional + (_OFFSET[convention] + scale) * conditional
            )
        ),
    },
)


# --- 07.2 -----------------------------------------------------------------------------------


def _class_gradient(
    x, y, alpha, sigma, means, stds, weights, noisy=True, shrunk=True, shares=True,
    normaliser=True, raw=1.0,
):  # fmt: skip
    """grad log p(y|x_t) in closed form; the other arguments are ways to get it wrong."""
    variance = (alpha * stds) ** 2 + (sigma**2 if noisy else 0)
    gap = x[:, None] - (alpha if shrunk else 1) * means
    scores = -gap / variance[:, None]
    logits = -x.shape[1] / 2 * np.log(variance) * normaliser - (gap**2).sum(-1) / (2 * variance)
    logits = logits + (np.log(weights) if shares else 0)
    r = np.exp(logits - logits.max(1, keepdims=True))
    r = r / r.sum(1, keepdims=True)
    return scores[np.arange(len(x)), y] - raw * (r[:, :, None] * scores).sum(1)


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
        "each point has a gradient of its own: yours is divided by the size of the batch": (
            lambda x, *rest: _class_gradient(x, *rest) / len(x)
        ),
        "the sign is wrong: the push must lead towards the class": (
            lambda *arguments: -_class_gradient(*arguments)
        ),
        "noise widens the classes: its variance is missing": partial(_class_gradient, noisy=False),
        "the class's centre in x_t is α times its mean": partial(_class_gradient, shrunk=False),
        "Bayes' rule needs the shares of the classes": partial(_class_gradient, shares=False),
        "a wide class is thinner everywhere: the Gaussian's normalising factor is missing": (
            partial(_class_gradient, normaliser=False)
        ),
    },
    # The difference of two scores in float32, which far out are large and nearly alike.
    rtol=1e-3,
    atol=1e-4,
)


# --- 07.3 -----------------------------------------------------------------------------------


def _column(level):
    return np.reshape(level, (-1, 1, 1, 1))


def _guide(x0, x_t, gradient, alpha, sigma, scale, factor=lambda a, s: s**2 / a, sign=1):
    alpha, sigma = _column(alpha), _column(sigma)
    pushed = x0 + sign * scale * factor(alpha, sigma) * gradient
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
        "a σ is missing: the score counts σ times in ε, and σ²/α times in x0": (
            partial(_guide, factor=lambda a, s: s / a)
        ),
        "σ is a standard deviation; the factor has a variance, divided by α": (
            partial(_guide, factor=lambda a, s: s**2)
        ),
        "the gradient alone is no change of x0: Tweedie's formula gives its factor": (
            partial(_guide, factor=lambda a, s: 1.0)
        ),
        "the sign is wrong: the estimate must move along the gradient": partial(_guide, sign=-1),
        "α and σ are one number per image: they must multiply whole images": _guide_along_columns,
    },
)


# --- 07.4 -----------------------------------------------------------------------------------


def _drop(labels, u, rate, null):
    return np.where(u < rate, null, labels)


def _labels(n, rate, null):
    """Two batches: in one the first example is dropped, in the other it is kept."""

    def cases(rng):
        share = float(rng.uniform(*rate))
        for begin in ((share / 2, share + 0.1), (share + 0.1, share / 2)):
            u = rng.random(n).astype(np.float32)
            u[:2] = begin
            yield rng.integers(null, size=n), u, share, null

    return lambda rng: list(cases(rng))


DROP = Exercise(
    id="07.4",
    title="Dropping labels",
    function="drop_labels",
    parts=(
        Part("a tenth to a third of ten classes", 1, _labels(60, (0.1, 0.3), 10)),
        Part("most of four classes", 1, _labels(60, (0.6, 0.8), 4)),
    ),
    oracle=_drop,
    mistakes={
        "kept and dropped are exchanged: below the rate a label is dropped": (
            lambda labels, u, rate, null: np.where(u < rate, labels, null)
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


def _sample(conditional, unconditional, x, alphas, w, more=0, own_noise=True, exchanged=False):
    """DDIM with guidance; the other arguments are ways to get it wrong."""
    if exchanged:
        conditional, unconditional = unconditional, conditional
    for a, b in pairwise(alphas):
        s = np.sqrt(1 - a**2)
        c, u = conditional(x, a, s), unconditional(x, a, s)
        x0 = u + (w + more) * (c - u)
        eps = (x - a * (x0 if own_noise else c)) / s
        x = b * x0 + np.sqrt(1 - b**2) * eps
    return x


def _runs(w):
    def cases(rng):
        alphas = np.append(np.sort(rng.uniform(0.1, 0.95, 6)), 1.0)
        someone = GaussianDenoiser(float(rng.uniform(1, 2)), float(rng.uniform(0.4, 0.8)))
        everybody = GaussianDenoiser(float(rng.uniform(-1, 0)), float(rng.uniform(1.3, 1.8)))
        scale = float(rng.uniform(2, 4)) if w is None else w
        return [(someone, everybody, _array(rng, 5, mean=0.2, std=1.0), alphas, scale)]

    return cases


SAMPLER = Exercise(
    id="07.6",
    title="This guidance is broken",
    function="sample",
    parts=(
        Part("w = 0 is the unconditional sampler", 1, _runs(0.0)),
        Part("w = 1 is the conditional sampler", 1, _runs(1.0)),
        Part("w above 1", 2, _runs(None)),
    ),
    oracle=_sample,
    mistakes={
        "one bug is left: the scale is counted from the conditional network": (
            partial(_sample, more=1)
        ),
        "one bug is left: the noise is not that of the guided estimate": (
            partial(_sample, own_noise=False)
        ),
        "both bugs are still there": partial(_sample, more=1, own_noise=False),
        "the two denoisers are exchanged": partial(_sample, exchanged=True),
    },
)


# --- 07.7 -----------------------------------------------------------------------------------


def _std(x, whole=False):
    axes = None if whole else tuple(range(1, x.ndim))
    return np.std(x, axis=axes, keepdims=True)


def _rescaled(conditional, unconditional, w, share, whole=False, swapped=False, upside_down=False):
    estimate = unconditional + w * (conditional - unconditional)
    ratio = _std(conditional, whole) / _std(estimate, whole)
    ratio = 1 / ratio if upside_down else ratio
    share = 1 - share if swapped else share
    return estimate * (share * ratio + 1 - share)


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
            partial(_rescaled, swapped=True)
        ),
        "the ratio is upside down: it must shrink what guidance has widened": (
            partial(_rescaled, upside_down=True)
        ),
        "the deviation to restore is the conditional estimate's": _to_the_unconditional,
        "that is guidance without the rescaling": (
            lambda conditional, unconditional, w, share: _rescaled(
                conditional, unconditional, w, 0.0
            )
        ),
    },
)


# --- 07.8 -----------------------------------------------------------------------------------

BETTER = Written(id="07.8", title="A better model?", points=2)

EXERCISES = (CONVENTIONS, GRADIENT, PUSH, DROP, PACK, SAMPLER, RESCALE, BETTER)
