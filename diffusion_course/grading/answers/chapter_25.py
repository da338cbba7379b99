"""Exercises of chapter 25: From notebook to product."""

from math import ceil

import numpy as np
from scipy import stats

from diffusion_course.grading.answers.drawing import number
from diffusion_course.grading.answers.writing import exercise
from diffusion_course.grading.exercise import Part, Written

# Values are float64 here, which reach the student as NumPy's arrays: nothing has to be compiled.


# --- 25.1 -----------------------------------------------------------------------------------
def int8_layer(x, W):
    s, r = np.abs(x).max(1, keepdims=True) / 127, np.abs(W).max(0) / 127
    x_codes = np.round(x / np.where(s > 0, s, 1))
    W_codes = np.round(W / np.where(r > 0, r, 1))
    product = x_codes @ W_codes
    on_x, on_W = np.abs(x).sum(1, keepdims=True), np.abs(W).sum(0)
    bound = s / 2 * on_W + r / 2 * on_x + len(W) * s * r / 4
    return s * r * product, bound


def _away(a):
    """Halves away from 0."""
    return np.sign(a) * np.floor(np.abs(a) + 0.5)


def _layers(rng, *shapes):
    """Rows and columns of different sizes; the largest number of some of them is negative."""
    for B, D, C in shapes:
        x = rng.normal(0.3, 1.4, (B, D)) * rng.uniform(0.2, 4, (B, 1))
        W = rng.normal(-0.1, 0.7, (D, C)) * rng.uniform(0.1, 3, C)
        if D > 50:  # a sum that needs more than 16 bits
            x, W = np.abs(x), np.abs(W)
        x[0, D - 1] = -1.2 * np.abs(x[0]).max()
        W[0, C - 1] = -1.2 * np.abs(W[:, C - 1]).max()
        W[1, 0] = 1.2 * np.abs(W[:, 0]).max()
        yield x, W


def _halves(rng, *shapes):
    """Codes that end in a half, exactly: a row or a column has 127 units, which are powers of 2."""
    for B, D, C in shapes:
        made = []
        for count in (B, C):
            codes = rng.integers(-40, 40, (count, D)) + 0.5
            codes[:, :3] = -2.5, 0.5, 4.5  # even below, with both signs
            codes[:, 3] = np.where(rng.uniform(size=count) < 0.5, -127, 127)
            made.append(codes * 2.0 ** rng.integers(-5, 1, (count, 1)))
        yield made[0], np.roll(made[1], 1, axis=1).T.copy()


def _zeros(rng, *shapes):
    for x, W in _layers(rng, *shapes):
        x[1], W[:, 1] = 0, 0
        yield x, W


INT8_LAYER = exercise(
    "25.1 · A layer in whole numbers",
    int8_layer,
    Part("any numbers", 2, lambda rng: _layers(rng, (3, 5, 4), (2, 4, 3), (3, 60, 2))),
    Part("codes that end in a half", 1, lambda rng: _halves(rng, (3, 5, 4), (2, 6, 3))),
    Part("rows and columns of zeros", 1, lambda rng: _zeros(rng, (3, 5, 4), (2, 4, 3))),
    section="3 · Smaller: bits, zeros, steps",
    mistakes="""
    eight bits cannot hold a sum of products: add up in wider whole numbers
        x_codes @ W_codes -> x_codes.astype(np.int8) @ W_codes.astype(np.int8)
    sixteen bits cannot hold such a sum: add up in wider whole numbers
        x_codes @ W_codes -> x_codes.astype(np.int16) @ W_codes.astype(np.int16)
    the largest code is 127, and the smallest is −127: yours go to 128
        np.abs(x).max(1, keepdims=True) / 127 -> np.abs(x).max(1, keepdims=True) / 128
        np.abs(W).max(0) / 127 -> np.abs(W).max(0) / 128
    the largest number may be negative: take absolute values before the largest one is looked for
        np.abs(x).max(1, keepdims=True) -> x.max(1, keepdims=True)
        np.abs(W).max(0) / 127 -> W.max(0) / 127
    each column of W has a step of its own: yours is that of the whole matrix
        np.abs(W).max(0) -> np.abs(W).max()
    each row of x has a step of its own: yours is that of the whole matrix
        np.abs(x).max(1, keepdims=True) -> np.abs(x).max()
    both have one step for the whole matrix: each row of x and each column of W has its own
        np.abs(x).max(1, keepdims=True) -> np.abs(x).max()
        np.abs(W).max(0) -> np.abs(W).max()
    halves go to the nearest even number: yours go up
        np.round(x / np.where(s > 0, s, 1)) -> np.floor(x / np.where(s > 0, s, 1) + 0.5)
        np.round(W / np.where(r > 0, r, 1)) -> np.floor(W / np.where(r > 0, r, 1) + 0.5)
    halves go to the nearest even number: yours go away from 0
        np.round(x / np.where(s > 0, s, 1)) -> _away(x / np.where(s > 0, s, 1))
        np.round(W / np.where(r > 0, r, 1)) -> _away(W / np.where(r > 0, r, 1))
    a code is the *nearest* whole number: yours is cut off
        np.round(x / np.where(s > 0, s, 1)) -> np.trunc(x / np.where(s > 0, s, 1))
        np.round(W / np.where(r > 0, r, 1)) -> np.trunc(W / np.where(r > 0, r, 1))
    the output has the units of x and of W: multiply the product by both steps
        s * r * product -> r * product
    rounding is wrong by half a step at most, not by a whole one
        s / 2 * on_W + r / 2 * on_x + len(W) * s * r / 4 -> s * on_W + r * on_x + len(W) * s * r
    both errors together: their product adds D terms to the bound
        + len(W) * s * r / 4 ->
    the product of both errors occurs in each of the D terms of the sum
        len(W) * s * r / 4 -> s * r / 4
    an error of x is multiplied by W, and an error of W by x
        s / 2 * on_W + r / 2 * on_x -> s / 2 * on_x + r / 2 * on_W
    errors may have any signs: add up absolute values, not the numbers themselves
        np.abs(x).sum(1, keepdims=True), np.abs(W).sum(0)
            -> np.abs(x.sum(1, keepdims=True)), np.abs(W.sum(0))
    x is rounded, too: it has errors of its own
        s / 2 * on_W + r / 2 * on_x + len(W) * s * r / 4 -> r / 2 * on_x + 0 * s
    a small number added to a step moves the codes: what was a half is one no more
        np.where(s > 0, s, 1) -> (s + 1e-12)
        np.where(r > 0, r, 1) -> (r + 1e-12)
    a row or a column of zeros has the codes 0: 0/0 is no number
        np.where(s > 0, s, 1) -> s
        np.where(r > 0, r, 1) -> r
    """,
    rtol=2e-5,  # the bound is far smaller than the output
    atol=2e-7,
)


# --- 25.2 -----------------------------------------------------------------------------------
def prune(w, layer, share, kind):
    size, kept = np.abs(w), np.ones(len(w), bool)
    names = np.unique(layer)
    if kind == "relative":
        size = size / np.sqrt(np.array([np.mean(w[layer == name] ** 2) for name in layer]))
    for group in [layer == name for name in names] if kind == "layer" else [layer >= 0]:
        left = int(np.floor(share * np.sum(group)))
        for i in np.argsort(np.where(group, size, np.inf), kind="stable"):
            if left > 0 and group[i] and np.sum(kept & (layer == layer[i])) > 1:
                kept[i] = False
                left -= 1
    return np.where(kept, w, 0.0)


def _below_a_threshold(w, layer, share, kind):
    """Ties go together, and a layer may become empty."""
    size = np.abs(w)
    if kind == "relative":
        size = size / np.sqrt(np.array([np.mean(w[layer == name] ** 2) for name in layer]))
    kept = np.ones(len(w), bool)
    for group in [layer == name for name in np.unique(layer)] if kind == "layer" else [layer >= 0]:
        left = int(np.floor(share * np.sum(group)))
        if left:
            kept &= ~group | (size > np.sort(size[group])[left - 1])
    return np.where(kept, w, 0.0)


def _networks(rng, *cases):
    """Rows of (sizes of the layers, share, kind, whether magnitudes tie), the layers mixed.

    With "zeros", the first layers hold some zeros, and so does the last, of small weights.
    """
    for sizes, share, kind, ties in cases:
        for _ in range(100):
            layer = rng.permutation(np.repeat(np.arange(len(sizes)), sizes)).astype(np.int32)
            w = rng.normal(0.2 + 0.6 * layer, 1.0)
            w = np.sign(w) * np.abs(w) ** (1 + 0.7 * layer)  # the last layers have long tails
            if ties == "zeros":
                w = np.where(rng.permutation(len(w)) % 4 == 0, 0.0, w)
                w[np.flatnonzero(layer == len(sizes) - 1)[:2]] = 0.0
                w[[np.flatnonzero(layer == name)[-1] for name in range(len(sizes))]] = 0.9
            elif ties:  # a few magnitudes, with both signs, and some zeros
                w = rng.choice([-1.0, 1.0], len(layer)) * rng.integers(0, 4, len(layer)) / 4
                w[: len(sizes)] = 1.25  # no layer holds zeros alone
                layer[: len(sizes)] = np.arange(len(sizes))
            if kind == "relative" or ties in (False, "zeros"):
                w = w * 2.0 ** (-4.0 - 2 * layer)
            if ties or kind != "relative" or min(sizes) < 9 or _tells_sizes(w, layer, share):
                break
        yield w, layer, share, kind


def _tells_sizes(w, layer, share):
    """Whether every other size of a layer prunes other weights, and no two of them the same.

    Sizes with something added need not differ from each other.
    """
    sizes = (
        lambda a: np.sqrt(np.mean(a**2)),
        lambda a: np.mean(a**2),
        lambda a: np.sqrt(np.sum(a**2)),
        lambda a: np.mean(np.abs(a)),
        np.std,
        lambda a: np.max(np.abs(a)),
        lambda a: 1.0,
    )
    added = (
        lambda a: np.sqrt(np.mean(a**2)) + 1e-3,
        lambda a: np.sqrt(np.mean(a**2) + 1e-3),
    )
    gone = []
    for size in sizes + added:
        of_layers = np.array([size(w[layer == name]) for name in np.unique(layer)])
        lost = set(np.argsort(np.abs(w) / of_layers[layer])[: int(share * len(w))])
        if lost in (gone if size in sizes else gone[:1]):
            return False
        gone.append(lost)
    return True


PRUNE = exercise(
    "25.2 · Which weights go",
    prune,
    Part(
        "no two magnitudes are equal",
        2,
        lambda rng: _networks(
            rng,
            ((12, 21, 7), 0.5, "layer", False),
            ((12, 21, 7), 0.375, "global", False),
            ((24, 36, 30), 0.5, "relative", False),
            ((30, 24, 36), 0.4375, "relative", False),
            ((11, 7, 9), 0.03125, "global", False),
        ),
    ),
    Part(
        "ties",
        1,
        lambda rng: _networks(
            rng,
            ((14, 19, 8), 0.5, "layer", True),
            ((30, 25), 0.375, "global", True),
            ((23, 21, 11), 0.375, "relative", True),
        ),
    ),
    Part(
        "a layer would lose everything",
        2,
        lambda rng: _networks(
            rng,
            ((12, 9, 6), 0.75, "global", False),
            ((5, 22, 3), 0.9375, "relative", False),
            ((2, 3, 1), 0.9375, "relative", False),
            ((3, 2, 2), 0.96875, "global", False),
            ((9, 13, 6), 0.625, "global", "zeros"),
            ((1, 5, 2), 0.75, "layer", False),
        ),
    ),
    section="3 · Smaller: bits, zeros, steps",
    mistakes="""
    small means near 0: a large negative weight is not small
        size, kept = np.abs(w) -> size, kept = w + 0
    that prunes all layers together: with kind="layer" each layer loses its own share
        if kind == "layer" -> if kind == "nothing"
    that prunes each layer alone: "global" and "relative" compare the weights of all layers
        if kind == "layer" -> if kind
    "relative" compares a weight with the size of its layer
        kind == "relative" -> kind == "nothing"
    only "relative" compares a weight with the size of its layer
        kind == "relative" -> kind in ("relative", "global")
    the size of a layer is the root of the mean square: yours is the mean square
        np.sqrt(np.array([np.mean(w[layer == name] ** 2) for name in layer]))
            -> np.array([np.mean(w[layer == name] ** 2) for name in layer])
    the size of a layer is the root of the mean square: yours is the root of the sum
        np.mean(w[layer == name] ** 2) -> np.sum(w[layer == name] ** 2)
    the size of a layer is its root mean square: yours is the mean magnitude
        np.sqrt(np.array([np.mean(w[layer == name] ** 2) for name in layer]))
            -> np.array([np.mean(np.abs(w[layer == name])) for name in layer])
    the size of a layer is its root mean square: yours is its standard deviation
        np.sqrt(np.array([np.mean(w[layer == name] ** 2) for name in layer]))
            -> np.array([np.std(w[layer == name]) for name in layer])
    the size of a layer is its root mean square: yours is its largest magnitude
        np.sqrt(np.array([np.mean(w[layer == name] ** 2) for name in layer]))
            -> np.array([np.max(np.abs(w[layer == name])) for name in layer])
    equal magnitudes go together here, and layers become empty: both promises are broken
        return _below_a_threshold(w, layer, share, kind)
    of equal magnitudes the one that stands first goes first
        for i in np.argsort(np.where(group, size, np.inf), kind="stable")
            -> for i in np.lexsort((-np.arange(len(w)), np.where(group, size, np.inf)))
    a layer keeps one weight at least
        np.sum(kept & (layer == layer[i])) > 1 -> True
    if a layer must keep a weight, another layer's goes in its place
        if left > 0 and group[i] and np.sum(kept & (layer == layer[i])) > 1:
            -> if left > 0 and group[i]:
        kept[i] = False -> kept[i] = np.sum(kept & (layer == layer[i])) <= 1
    a weight that was 0 is one of its layer's, and may be the first to go
        np.sum(kept & (layer == layer[i])) > 1
            -> np.sum(kept & (layer == layer[i])) > 1 + np.sum(w[layer == layer[i]] == 0)
    the number of weights that go is rounded down
        np.floor(share -> np.ceil(share
    the share is that of the weights that go: yours stay
        share * np.sum(group) -> (1 - share) * np.sum(group)
    the weights that stay keep their values
        return np.where(kept, w, 0.0) -> return np.where(kept, w / (1 - share), 0.0)
    the small weights go: yours are the large ones
        np.where(group, size, np.inf) -> np.where(group, -size, np.inf)
    return the weights, not which of them stay
        return np.where(kept, w, 0.0) -> return np.where(kept, 1.0, 0.0)
    """,
)


# --- 25.3 -----------------------------------------------------------------------------------
def identify(z, keys, sides):
    d = z.shape[1]
    r = z @ keys.T / np.sqrt(d * np.sum(z**2, axis=1, keepdims=True))
    r = np.abs(r) if sides == 2 else r
    best, top = np.argmax(r, axis=1), np.max(r, axis=1)
    t = top * np.sqrt((d - 1) / (1 - top**2))
    log_p = stats.t.logsf(t, d - 1)
    return best, np.minimum(log_p + np.log(sides * len(keys)), 0)


def _marked(rng, *cases):
    """Rows of (images, d, keys, sides, the correlation): some images carry a key, some none.

    The first image carries a key in the wrong sign, as if its pixels had been inverted.
    """
    for B, d, K, sides, rho in cases:
        keys = np.ones((K, d))
        while np.sum(np.abs(keys @ keys.T) == d) > K:  # no key twice, in any sign
            keys = rng.choice([-1.0, 1.0], (K, d))
        z = rng.normal(size=(B, d))
        own = rng.integers(K, size=B)
        for b in range(B):
            key = keys[own[b]]
            z[b] -= (z[b] @ key) / d * key  # nothing along the key, and then what is wanted
            z[b] /= np.linalg.norm(z[b])
            along = -1.1 * rho if b == 0 else (0.02 if b == 1 and B > 2 else rho) / b**0.5
            z[b] = along * key / np.sqrt(d) + np.sqrt(1 - along**2) * z[b]
        yield z * 10 ** rng.uniform(-2.5, 1, (B, 1)), keys, sides


IDENTIFY = exercise(
    "25.3 · Whose watermark is it?",
    identify,
    Part(
        "one key",
        1,
        lambda rng: _marked(rng, (4, 16, 1, 1, 0.55), (3, 4, 1, 1, 0.85), (2, 5, 1, 2, 0.88)),
    ),
    Part(
        "several keys, one or two sides",
        2,
        lambda rng: _marked(
            rng, (4, 16, 3, 1, 0.6), (5, 12, 5, 2, 0.7), (3, 30, 2, 2, 0.45), (3, 6, 4, 1, 0.3)
        ),
    ),
    Part(
        "many pixels, certain beyond doubt",
        1,
        lambda rng: _marked(rng, (3, 784, 2, 2, 0.6), (4, 400, 1, 1, 0.8)),
    ),
    section="5 · A key in the noise",
    mistakes="""
    a rounded 1 has no logarithm of 1 − p: ask the distribution for its upper tail
        stats.t.logsf(t, d - 1) -> np.log(1 - stats.t.cdf(t, d - 1))
    the size of z is taken from z itself, so few pixels make the tail longer than the normal one
        stats.t.logsf(t, d - 1) -> stats.norm.logsf(t)
    √d·r is nearly normal in the middle, but not in the tail: its distribution is known exactly
        stats.t.logsf(t, d - 1) -> stats.norm.logsf(np.sqrt(d) * top)
    the size of z is unknown: divide by it before anything is compared
        np.sqrt(d * np.sum(z**2, axis=1, keepdims=True)) -> d
    no mean is subtracted here, so one direction more is free
        t = top * np.sqrt((d - 1) / (1 - top**2)) -> t = top * np.sqrt((d - 2) / (1 - top**2))
        logsf(t, d - 1) -> logsf(t, d - 2)
    z lies on a sphere in d dimensions: one of them is used up
        t = top * np.sqrt((d - 1) / (1 - top**2)) -> t = top * np.sqrt(d / (1 - top**2))
        logsf(t, d - 1) -> logsf(t, d)
    a correlation of noise and key needs no mean to be subtracted
        r = z @ keys.T / np.sqrt(d * np.sum(z**2, axis=1, keepdims=True))
            -> r = np.atleast_2d(np.corrcoef(z, keys)[: len(z), len(z) :])
    all the keys were tried, and the best one was chosen: each try is a chance of a false alarm
        np.log(sides * len(keys)) -> np.log(sides)
    a pattern with its sign turned counts as well where sides is 2: two chances for each key
        np.log(sides * len(keys)) -> np.log(len(keys))
    where sides is 2, a key in the wrong sign is found as well
        np.abs(r) if sides == 2 else r -> r
    where sides is 2, the best key is that with the largest magnitude
        r = np.abs(r) if sides == 2 else r ->
        top = np.argmax(r, axis=1), np.max(r, axis=1)
            -> top = np.argmax(r, axis=1), np.max(np.abs(r) if sides == 2 else r, axis=1)
    where sides is 1, a key in the wrong sign is no watermark
        np.abs(r) if sides == 2 else r -> np.abs(r)
    that is exact for independent tries: what is asked for is the bound, the sum over the tries
        np.minimum(log_p + np.log(sides * len(keys)), 0)
            -> np.log(-np.expm1(sides * len(keys) * np.log1p(-np.exp(log_p))))
    a probability is 1 at most
        np.minimum(log_p + np.log(sides * len(keys)), 0) -> log_p + np.log(sides * len(keys))
    the logarithm of the p-value is asked for
        return best, np.minimum(log_p + np.log(sides * len(keys)), 0)
            -> return best, np.exp(np.minimum(log_p + np.log(sides * len(keys)), 0))
    natural logarithms are asked for
        return best, np.minimum(log_p + np.log(sides * len(keys)), 0)
            -> return best, np.minimum(log_p + np.log(sides * len(keys)), 0) / np.log(10)
    the p-value is the chance of *at least* this correlation: yours is that of at most this
        stats.t.logsf( -> stats.t.logcdf(
    """,
    rtol=2e-5,
    atol=2e-6,
)


# --- 25.4 -----------------------------------------------------------------------------------
def alarm(x, y, orders):
    both, n = np.concatenate([x, y]), len(x)
    classes = np.unique(both)
    share = _shares(both, classes)

    def distance(a, b):
        return np.sum((_shares(a, classes) - _shares(b, classes)) ** 2 / share)

    seen, k = distance(x, y), 0
    for order in orders:
        k += distance(both[order[:n]], both[order[n:]]) >= seen - 1e-6
    return (1 + k) / (1 + len(orders))


def _shares(a, classes):
    return np.array([np.mean(a == c) for c in classes])


def _cut_at(y, orders):
    """The orders, so that the first rows are as many as y's."""
    m = len(y)
    return np.concatenate([orders[:, m:], orders[:, :m]], axis=1)


def _days(rng, *cases):
    """Rows of (N, M, the classes, n, other): only x has the first class.

    Drawn again until ties, the cut and other distances change the count: those that leave out a
    class, and some that are nearly the right one, which `other` says.
    """
    for N, M, classes, n, other in cases:
        while True:
            p = rng.dirichlet(np.full(len(classes), 3.0))
            q = rng.dirichlet(np.full(len(classes), 3.0)) * 0.4 + 0.6 * p
            q[0] = 0
            x, y = rng.choice(classes, N, p=p), rng.choice(classes, M, p=q / q.sum())
            if classes[0] not in x or (other == "means" and set(y) <= set(x)):
                continue
            orders = rng.permuted(np.tile(np.arange(N + M), (n, 1)), axis=1)
            count, *others = _counts(x, y, orders, other)
            if not 2 < count < 0.7 * n or count in others:
                continue
            if N == M or round(alarm(x, y, _cut_at(y, orders)) * (n + 1)) - 1 != count:
                break
        yield x.astype(np.int32), y.astype(np.int32), orders.astype(np.int32)


def _counts(x, y, orders, other):
    """How many orders count, by the right distance, without ties, and by other distances."""
    pool, n = np.concatenate([x, y]), len(x)
    rows = np.concatenate([np.arange(len(pool))[None], orders])
    classes = np.unique(pool)
    member = pool[rows][:, :, None] == classes  # [1 + n, N + M, classes]
    p, q, m = member[:, :n].mean(1), member[:, n:].mean(1), member[0].mean(0)
    square = (p - q) ** 2
    far = np.sum(square / m, axis=1)
    others = [np.sum(square, axis=1), np.sum(np.abs(p - q) / m, axis=1)]
    others += [np.sum((square / m)[:, np.isin(classes, y)], axis=1)]
    if other == "means":
        others += [np.sum((square / m)[:, np.isin(classes, x)], axis=1)]
        others += [np.sum(square / w, axis=1) for w in (p.mean(0), q.mean(0))]
    if other == "added":
        others += [np.sum(square / (m + 1e-3), axis=1)]
    counts = [np.sum(d[1:] >= d[0] - 1e-6) for d in [far, *others]]
    return [*counts, np.sum(far > far[0] + 1e-6)]


ALARM = exercise(
    "25.4 · This alarm is broken",
    alarm,
    Part(
        "two samples of one size",
        2,
        lambda rng: _days(rng, (8, 8, (2, 0, 1), 24, ""), (12, 12, (3, 1, 7, 2), 40, "means")),
    ),
    Part(
        "two sizes",
        2,
        lambda rng: _days(rng, (12, 6, (0, 1, 2), 24, ""), (9, 14, (4, 0, 1, 2, 6), 60, "added")),
    ),
    section="8 · Did anything change?",
    mistakes="""
    all three bugs are still there
        in orders: -> in _cut_at(y, orders):
        >= seen - 1e-6 -> > seen + 1e-6
        (1 + k) / (1 + len(orders)) -> k / len(orders)
    two bugs are left: ties do not count, and the data as they came do not count
        >= seen - 1e-6 -> > seen + 1e-6
        (1 + k) / (1 + len(orders)) -> k / len(orders)
    two bugs are left: the samples change their sizes, and the data as they came do not count
        in orders: -> in _cut_at(y, orders):
        (1 + k) / (1 + len(orders)) -> k / len(orders)
    two bugs are left: the samples change their sizes, and ties do not count
        in orders: -> in _cut_at(y, orders):
        >= seen - 1e-6 -> > seen + 1e-6
    a bug is left: a distance that is as large as the real one counts, too
        >= seen - 1e-6 -> > seen + 1e-6
    a bug is left: the data as they came are one of the orders that chance may give
        (1 + k) / (1 + len(orders)) -> k / len(orders)
    a bug is left: after an order x must have as many entries as before
        in orders: -> in _cut_at(y, orders):
    the data as they came are one order more: they count above and below
        (1 + k) / (1 + len(orders)) -> (1 + k) / len(orders)
    the data as they came count above, too
        (1 + k) / (1 + len(orders)) -> k / (1 + len(orders))
    an alarm is about large distances: yours counts the smaller ones
        >= seen - 1e-6 -> <= seen + 1e-6
    the distance was right: a class that only x has counts, too
        np.unique(both) -> np.unique(y)
    the distance was right: a class that only y has counts, too
        np.unique(both) -> np.unique(x)
    the distance was right: its denominator is the share in both samples together
        ** 2 / share) -> ** 2 / _shares(x, classes))
    the distance was right: each class has its denominator
        ** 2 / share) -> ** 2)
    the p-value is a share of the orders, not their number
        (1 + k) / (1 + len(orders)) -> 1 + k
    """,
)


# --- 25.5 -----------------------------------------------------------------------------------
def screen(good, bad, rate, base):
    false = caught = 0.0
    mixed = None
    for level in np.unique(np.concatenate([good, bad]))[::-1]:
        f, c = np.mean(good >= level), np.mean(bad >= level)
        if f > rate:
            mixed = caught + (rate - false) / (f - false) * (c - caught)
            break
        false, caught = f, c
    mixed = caught if mixed is None else mixed
    refused = base * caught + (1 - base) * false
    wrong = (1 - base) * false / refused if refused > 0 else 0.0
    return np.array([false, caught, mixed, wrong])


def _at(good, bad, level, base):
    """The rates of the filter that refuses from this level on."""
    f, c = np.mean(good >= level), np.mean(bad >= level)
    refused = base * c + (1 - base) * f
    return np.array([f, c, c, (1 - base) * f / refused if refused > 0 else 0.0])


def _scores(rng, *cases):
    """Rows of (N, M, rate, kind): all different, or eighths with ties, or apart from each other.

    The rate is a number of the good that may be refused, with a part left over or not.
    """
    for place, (N, M, allowed, kind) in enumerate(cases):
        base = number(rng, 0.03, 0.3)
        middle = -3.0 * (place % 2)  # scores may be negative
        while True:
            good, bad = middle + rng.normal(0.0, 1.0, N), middle + rng.normal(1.1, 0.9, M)
            if kind == "ties":
                good, bad = np.round(2 * good) / 2, np.round(2 * bad) / 2
            if kind == "best":  # no bad picture has as large a score as the two best good ones
                good[:2] = bad.max() + 0.3, bad.max() + 0.2
            if kind == "apart":
                bad = bad - bad.min() + good.max() + 0.2
            if kind == "same":  # the bad one of them has the best good one's score
                bad[0] = good.max()
                bad = np.minimum(bad, good.max())
            false, caught, mixed, _ = screen(good, bad, allowed / N, base)
            split = kind != "ties" or (false < np.floor(allowed) / N and mixed > caught)
            some = kind != "any" or (0.1 < caught < 0.95 and false > 0)
            if split and some:
                break
        yield good, bad, allowed / N, base


SCREEN = exercise(
    "25.5 · A filter that may refuse so many",
    screen,
    Part(
        "scores that are all different",
        2,
        lambda rng: _scores(rng, (16, 12, 3.5, "any"), (32, 9, 5.25, "any"), (32, 12, 4.5, "any")),
    ),
    Part(
        "ties",
        2,
        lambda rng: _scores(rng, (32, 24, 5.0, "ties"), (16, 20, 3.0, "ties")),
    ),
    Part(
        "nobody is refused, or all the bad ones are",
        1,
        lambda rng: _scores(
            rng,
            (16, 12, 0.0, "best"),
            (16, 12, 0.5, "same"),
            (16, 8, 0.5, "apart"),
            (16, 12, 3.0, "apart"),
            (16, 12, 16.0, "best"),
            (8, 12, 1.0, "best"),
        ),
    ),
    section="9 · Filters, and who goes around them",
    mistakes="""
    pictures with one score are refused together: yours refuses so many of them as fit
        return _at(good + 0, bad, np.sort(good)[::-1][max(0, int(rate * len(good)) - 1)], base)
            if rate * len(good) >= 1 else _at(good, bad, np.inf, base)
    a score that is equal to the threshold is refused
        np.mean(good >= level), np.mean(bad >= level) -> np.mean(good > level), np.mean(bad > level)
    the threshold may lie between the scores of good pictures: the bad ones above it cost nothing
        np.unique(np.concatenate([good, bad]))[::-1] -> np.unique(good)[::-1]
    the rate is a bound: a share that is equal to it is allowed
        if f > rate -> if f >= rate
    the rate is a bound: yours refuses more of the good ones
        return _at(good, bad, np.quantile(good, 1 - rate, method="lower"), base)
    the rate is about the good pictures, not about all
        if f > rate -> if (f * len(good) + c * len(bad)) / (len(good) + len(bad)) > rate
    good and bad are exchanged
        return screen(bad, good, rate, base)
    chance decides about one score only: what is above it is refused for certain
        mixed = caught + (rate - false) / (f - false) * (c - caught)
            -> mixed = rate / f * c
    chance refuses a share of this score's pictures, so that the good ones add up to the rate
        (rate - false) / (f - false) -> (rate - false)
    chance decides about the next score's pictures: yours refuses half of them
        (rate - false) / (f - false) -> 0.5
    chance is there to use up the rate: the third number is not the second one
        mixed = caught + (rate - false) / (f - false) * (c - caught) -> mixed = caught
    among the pictures that arrive, good ones are far more frequent than in your two samples
        return np.append(right[:3],
            [np.sum(good.size * right[0]) / max(good.size * right[0] + bad.size * right[1], 1e-9)])
    how many of the pictures that arrive are good, and how many bad, counts in the fourth number
        base * caught + (1 - base) * false -> caught + false
        (1 - base) * false / refused -> false / refused
    the share of good ones among the *refused*: divide by how many are refused
        (1 - base) * false / refused if refused > 0 else 0.0 -> (1 - base) * false
    the share of good ones among the refused: yours is that of the bad ones
        (1 - base) * false / refused if -> base * caught / refused if
    base is the share of the bad ones
        base * caught + (1 - base) * false -> (1 - base) * caught + base * false
        (1 - base) * false / refused -> base * false / refused
    where nothing is refused, no good picture is refused: 0/0 is no number
        if refused > 0 else 0.0 -> if refused > 0 else np.nan
    """,
)


# --- 25.6 -----------------------------------------------------------------------------------
def serve(arrivals, service, window, q):
    N, most = len(arrivals), len(service)
    done, free, i = np.zeros(N), 0.0, 0
    while i < N:
        full = arrivals[i + most - 1] if i + most <= N else np.inf
        start = max(free, min(arrivals[i] + window, full))
        b = min(most, np.sum(arrivals[i:] <= start))
        free = start + service[b - 1]
        done[i : i + b] = free
        i += b
    latency = done - arrivals
    return latency, np.sort(latency)[ceil(q * N) - 1]


def _queues(rng, *cases):
    """Rows of (N, most, window, load, q, ties): with ties, all times are eighths of a second.

    Without, no other request has the latency that is the percentile.
    """
    for N, most, window, load, q, ties in cases:
        while True:
            service = 0.6 + np.cumsum(rng.uniform(0.1, 0.4, most))
            gaps = rng.exponential(service[-1] / most / load, N)
            if ties:
                service, gaps = np.round(8 * service) / 8, np.round(8 * gaps) / 8
            arrivals = 0.5 + np.cumsum(gaps)
            latency, found = serve(arrivals, service, window, q)
            if ties or np.sum(np.abs(latency - found) < 5e-3) == 1:
                break
        yield arrivals, service, window, q


SERVE = exercise(
    "25.6 · The slowest of a hundred",
    serve,
    Part(
        "one at a time",
        1,
        lambda rng: _queues(rng, (16, 1, 0.0, 0.8, 0.75, False), (11, 1, 0.7, 1.5, 0.9, False)),
    ),
    Part(
        "no window",
        1,
        lambda rng: _queues(rng, (24, 4, 0.0, 0.7, 0.875, False), (15, 3, 0.0, 1.6, 0.5, False)),
    ),
    Part(
        "a window",
        2,
        lambda rng: _queues(
            rng,
            (32, 4, 0.9, 0.5, 0.9375, False),
            (23, 5, 1.3, 0.8, 0.7, False),
            (24, 3, 4.0, 0.7, 1.0, False),
            (17, 4, 60.0, 0.6, 0.25, False),
        ),
    ),
    Part(
        "events at the same time",
        1,
        lambda rng: _queues(
            rng,
            (40, 4, 0.625, 0.6, 0.75, True),
            (48, 3, 0.25, 0.9, 0.875, True),
            (40, 5, 0.0, 0.8, 0.9, True),
        ),
    ),
    section="4 · Who waits for how long",
    mistakes="""
    a user waits from arrival to answer: yours is the time of the batch alone
        latency = done - arrivals -> latency = done - starts
        done, free, i = np.zeros(N), 0.0, 0
            -> done, starts, free, i = np.zeros(N), np.zeros(N), 0.0, 0
        done[i : i + b] = free -> done[i : i + b], starts[i : i + b] = free, start
    a user waits until the answer is there: yours ends where the batch starts
        done[i : i + b] = free -> done[i : i + b] = start
    a user waits from the arrival on: yours is the time of day
        latency = done - arrivals -> latency = done + 0
    the device makes one batch at a time
        max(free, min(arrivals[i] + window, full)) -> min(arrivals[i] + window, full)
    the window is that of the request that waits longest, and runs while the device is busy
        max(free, min(arrivals[i] + window, full))
            -> min(max(free, arrivals[i]) + window, max(free, full))
    a batch that is full starts at once
        min(arrivals[i] + window, full) -> arrivals[i] + window
    a batch that is not full waits for the window
        min(arrivals[i] + window, full) -> arrivals[i]
    the server does not know that nobody comes any more: the last batch waits for its window, too
        if i + most <= N else np.inf -> if i + most <= N else arrivals[-1]
    a batch holds B requests at most
        min(most, np.sum(arrivals[i:] <= start)) -> np.sum(arrivals[i:] <= start)
        service[b - 1] -> service[min(b, most) - 1]
    a request that arrives while the window is open joins the batch
        np.sum(arrivals[i:] <= start) -> max(1, np.sum(arrivals[i:] <= max(free, arrivals[i])))
    a request that arrives just when the batch starts is in it
        np.sum(arrivals[i:] <= start) -> max(1, np.sum(arrivals[i:] < start))
    a batch has the number of its requests, and not one more
        service[b - 1] -> service[min(b, most - 1)]
    a batch that is not full takes less time
        service[b - 1] -> service[-1]
    service holds the time of a whole batch, not of a request
        service[b - 1] -> b * service[b - 1]
    a batch of b takes less than b batches of one
        service[b - 1] -> b * service[0]
    each request takes its turn: only one is in your batches
        min(most, np.sum(arrivals[i:] <= start)) -> 1
    that percentile lies between two requests: a request's own latency is asked for
        np.sort(latency)[ceil(q * N) - 1] -> np.quantile(latency, q)
    one request more: the share q of them must have this latency or less
        np.sort(latency)[ceil(q * N) - 1] -> np.sort(latency)[min(int(q * N), N - 1)]
    one request less than the share q has this latency or less
        np.sort(latency)[ceil(q * N) - 1] -> np.sort(latency)[max(0, int(q * N) - 1)]
    the percentile for the share q must be enough for q·N of the requests: yours may be below it
        np.sort(latency)[ceil(q * N) - 1] -> np.quantile(latency, q, method="lower")
    sort the latencies before you count
        np.sort(latency)[ceil -> latency[ceil
    most users wait in large batches: count requests, not batches
        np.sort(latency)[ceil(q * N) - 1]
            -> np.sort(latency[np.unique(done, return_index=True)[1]])[
                ceil(q * len(np.unique(done))) - 1]
    the share q has this latency or less: yours is what the share 1 − q has
        np.sort(latency)[ceil(q * N) - 1] -> np.sort(latency)[::-1][ceil(q * N) - 1]
    """,
)


# --- 25.7 -----------------------------------------------------------------------------------
VERDICTS = Written("25.7", "Three verdicts", 3, section="9 · Filters, and who goes around them")
