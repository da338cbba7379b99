"""Exercises of chapter 23: Cascades and video."""

import numpy as np
from scipy.special import softmax

from diffusion_course.grading.answers.drawing import number
from diffusion_course.grading.answers.writing import exercise
from diffusion_course.grading.exercise import Part, Written

# Arrays are float64 here, which reach the student as NumPy's: nothing has to be compiled.


# --- 23.1 -----------------------------------------------------------------------------------
def condition(low, eps, log_snr, error, k):
    wanted = np.exp(-log_snr)
    ratio = np.maximum(wanted, error)  # of all noise to the image, as variances
    alpha = 1 / np.sqrt(1 + ratio)
    sigma = alpha * np.sqrt(ratio - error)
    a, s = alpha[:, None, None, None], sigma[:, None, None, None]
    noised = a * low + s * eps
    rows, columns = (np.arange(k * n) // k for n in low.shape[1:3])
    return noised[:, rows][:, :, columns], -np.log(ratio)


def _conditions(rng, noisy):
    """Images without errors, or with less and with more than the level; B takes 3 and 4."""
    for B, h, w, C, k in ((4, 2, 3, 4, 2), (3, 3, 2, 1, 3)):
        log_snr = rng.uniform(0.4, 2.6, B)
        log_snr[0] += 6 * (not noisy)  # hardly any noise
        # Each second image has more noise than its level allows, and the last one has none.
        part = np.where(np.arange(B) % 2, rng.uniform(1.6, 2.9, B), rng.uniform(0.2, 0.7, B))
        part[-1] = 0 if B == 3 else part[-1]
        error = np.exp(-log_snr) * part * noisy
        low, eps = rng.normal(1.5, 3.0, (B, h, w, C)), rng.normal(0.3, 1.0, (B, h, w, C))
        yield low, eps, log_snr, error, k


_AXES = "a, s = alpha[:, None, None, None], sigma[:, None, None, None]"
_NOISE = "sigma = alpha * np.sqrt(ratio - error)"

CONDITION = exercise(
    "23.1 · As noisy as it says",
    condition,
    Part("true images", 1, lambda rng: _conditions(rng, 0.0)),
    Part("images with errors", 2, lambda rng: _conditions(rng, 1.0)),
    section="2 · Noise on the condition",
    # Where nothing is added, σ² − α²·error is 0: in float32 up to 1e-7, and its root 3e-4.
    rtol=1e-5,
    atol=2.6e-4,
    mistakes=f"""
    the errors are noise already: add only what is missing
        {_NOISE} -> sigma = alpha * np.sqrt(ratio)
    the errors shrink with the image: in the condition their variance is α²·error
        {_NOISE} -> sigma = np.sqrt(np.maximum(alpha**2 * ratio - error, 0))
    the errors are a part of the level: in yours they come on top of it
        ratio = np.maximum(wanted, error) -> ratio = wanted + error
    the errors are noise, too: yours adds all the noise of the level beside them
        ratio = np.maximum(wanted, error) -> ratio = wanted
        {_NOISE} -> sigma = alpha * np.sqrt(ratio)
    error is a variance: you took its root
        np.maximum(wanted, error) -> np.maximum(wanted, np.sqrt(error))
        np.sqrt(ratio - error) -> np.sqrt(ratio - np.sqrt(error))
    variances are subtracted, and not standard deviations
        {_NOISE} -> sigma = alpha * (np.sqrt(ratio) - np.sqrt(error))
    that is a variance: what multiplies noise is a standard deviation
        {_NOISE} -> sigma = alpha**2 * (ratio - error)
    error is a variance: you squared it
        np.maximum(wanted, error) -> np.maximum(wanted, error**2)
        np.sqrt(ratio - error) -> np.sqrt(ratio - error**2)
    an image that is too noisy has an SNR of its own: that is what the second stage is told
        -np.log(ratio) -> log_snr
    an image that is too noisy has an SNR of its own: its α belongs to it, too
        1 / np.sqrt(1 + ratio) -> 1 / np.sqrt(1 + wanted)
        {_NOISE} -> sigma = alpha * np.sqrt(np.maximum(wanted - error, 0))
    where the image is noisier than the level, a negative variance has no root
        alpha = 1 / np.sqrt(1 + ratio) -> alpha = 1 / np.sqrt(1 + wanted)
        {_NOISE} -> sigma = alpha * np.sqrt(wanted - error)
    where the image is noisier than the level, add nothing: yours turns the sign of the variance
        {_NOISE} -> sigma = alpha * np.sqrt(np.abs(wanted - error))
    that is the variance α²: multiply the image by its root
        a, s = alpha[:, -> a, s = alpha[:, None, None, None] ** 2, sigma[:, None, None, None] #
    the variance is kept: the image shrinks as the noise grows
        noised = a * low + s * eps -> noised = low + s * eps
    the SNR is a ratio of variances: its logarithm is log(α²/σ²)
        wanted = np.exp(-log_snr) -> wanted = np.exp(-2 * log_snr)
        -np.log(ratio) -> -np.log(ratio) / 2
    the sign of the log-SNR: the larger it is, the less noise there is
        wanted = np.exp(-log_snr) -> wanted = np.exp(log_snr)
        -np.log(ratio) -> np.log(ratio)
    the second stage is told the logarithm: yours is the ratio
        -np.log(ratio) -> 1 / ratio
    the second stage is told the logarithm of SNR: yours has the other sign
        -np.log(ratio) -> np.log(ratio)
    what is told counts the noise that was added, but not the errors
        return right[0], -np.log(np.abs(np.exp(-log_snr) - error))
    each image has its own level: yours changes along the channels
        {_AXES} -> a, s = along(3, alpha, low), along(3, sigma, low)
    each image has its own level: yours changes along the rows
        {_AXES} -> a, s = along(1, alpha, low), along(1, sigma, low)
    each image has its own level: yours changes along the columns
        {_AXES} -> a, s = along(2, alpha, low), along(2, sigma, low)
    each image has its own level: yours is that of the first one for all
        {_AXES} -> a, s = alpha[0], sigma[0]
    a pixel becomes a block of k by k: yours repeats the whole image
        np.arange(k * n) // k -> np.arange(k * n) % n
    the noise was given: add it, and do not subtract it
        a * low + s * eps -> a * low - s * eps
    the image is missing
        a * low + s * eps -> s * eps
    no noise is added
        a * low + s * eps -> a * low
    """,
)


# --- 23.2 -----------------------------------------------------------------------------------
def shifted(t, more, kind):
    k = np.sqrt(more)
    if kind == "flow":
        return k * t / (1 + (k - 1) * t), (1 + (k - 1) * t) ** 2 / k
    if kind == "cosine":
        s, c = np.sin(np.pi * t / 2), np.cos(np.pi * t / 2)
        return 2 / np.pi * np.arctan2(k * s, c), (c**2 + k**2 * s**2) / k
    return k * t, 1 / k + 0 * t


def _times(rng, kind):
    """Times with both ends; larger and smaller images, whose pixels are no square number."""
    for N, more in ((5, number(rng, 2.2, 7.5)), (7, number(rng, 0.2, 0.6))):
        t = np.append(np.sort(rng.uniform(0.08, 0.92, N - 2)), 1.0)
        t = np.insert(t, 0, 0.0)
        # The largest time leads beyond 80, where a list of times may end.
        yield (t if kind != "edm" else t * number(rng, 60, 80)), more, kind


SHIFTED = exercise(
    "23.2 · The same picture, larger",
    shifted,
    Part("α = 1 − t", 2, lambda rng: _times(rng, "flow")),
    Part("α = cos", 2, lambda rng: _times(rng, "cosine")),
    Part("α = 1", 1, lambda rng: _times(rng, "edm")),
    section="4 · Other sizes, other shapes, last levels",
    mistakes="""
    the variance of noise falls with the number of pixels: its deviation falls less
        k = np.sqrt(more) -> k = more
    the SNR is a ratio of variances: you took one root too many
        k = np.sqrt(more) -> k = more**0.25
    the larger image needs more noise, and not less
        return shifted(t, 1 / more, kind)
    more is a number of pixels: it is squared in yours
        k = np.sqrt(more) -> k = more**2
    that is dt'/dt: where times are spread out, they become rare
        return right[0], 1 / right[1]
    the factor is taken at t, but t' is where the shift leads from t
        return right[0], shifted(right[0], more, kind)[1]
    the second result is the factor dt/dt': yours is the ratio t/t'
        return right[0], np.where(t > 0, t, 1) / np.where(t > 0, right[0], 1)
    the density changes, too: its factor is not 1
        return right[0], 1 + 0 * t
    σ/α is scaled, and that is a part of the factor, too: 1/√more is missing
        return right[0], right[1] * np.sqrt(more)
    each kind has its own α: yours takes 1 − t for all
        return shifted(t, more, "flow")
    each kind has its own α: yours takes the cosine for all
        return shifted(t, more, "cosine")
    with α = 1 nothing but σ = t is scaled: yours does that for all kinds
        return shifted(t, more, "edm")
    a time is at most 1: yours scales t, and cuts it off
        return np.clip(np.sqrt(more) * t, 0, 1 if kind != "edm" else None), right[1]
    with α = 1 there is no last time: yours ends at 80
        return np.minimum(right[0], 80), right[1]
    with α = 1 there is no last time: yours ends at 1
        return np.minimum(right[0], 1), right[1]
    cos(πt/2) is 0 at t = 1, so π/2 stands in both directions
        np.arctan2(k * s, c) -> np.arctan2(k * s, c) * np.pi / 2
    t = 1 stays 1: in float32 the tangent of π/2 is a large negative number
        return np.where((t == 1) & (kind == "cosine"), -1, right[0]), right[1]
    t = 1 stays 1: there σ/α is infinite, and ∞/∞ is no number
        return np.where(t == 1, np.nan, right[0]), np.where(t == 1, np.nan, right[1])
    """,
)


# --- 23.3 -----------------------------------------------------------------------------------
def bucketed(sizes, tokens, patch, widest):
    fitting = []
    for rows in range(1, tokens + 1):
        columns = tokens // rows
        wide = max(rows, columns) / min(rows, columns)
        if tokens // columns == rows and wide <= widest:
            fitting.append((rows, columns))
    shapes = patch * np.array(fitting)
    chosen, kept = [], []
    for height, width in np.asarray(sizes, float):
        far = np.log(height / width) - np.log(shapes[:, 0] / shapes[:, 1])
        best = shapes[np.abs(far).argmin()]
        scale = max(best[0] / height, best[1] / width)  # so that nothing stays empty
        chosen.append(best)
        kept.append(best[0] * best[1] / (scale**2 * height * width))
    return np.array(chosen), np.array(kept)


def _pool(tokens, widest, which="right"):
    """Pairs of rows and columns: the right ones, or those of a slip."""
    r, c = (a.ravel() for a in np.indices((tokens + 1, tokens + 1))[:, 1:, 1:])
    wide = np.maximum(r, c) / np.minimum(r, c)
    tall, broad = (r + 1) * c > tokens, r * (c + 1) > tokens
    chosen = {
        "right": tall & broad & (wide <= widest),
        "tall": tall & (wide <= widest),
        "broad": broad & (wide <= widest),
        "all": wide <= widest,
        "any width": tall & broad,
        "below": tall & broad & (wide < widest),
        "not tall": tall & broad & (r / c <= widest),
        "not broad": tall & broad & (c / r <= widest),
        "full": (r * c == tokens) & (wide <= widest),
        "nearly tall": ((r + 0.5) * c > tokens) & broad & (wide <= widest),
        "nearly broad": tall & (r * (c + 0.5) > tokens) & (wide <= widest),
        "square": (r == np.floor(np.sqrt(tokens))) & (r == c),
    }[which]
    fits = chosen & (r * c <= tokens)
    return np.stack([r[fits], c[fits]], axis=-1)


_MEASURES = {
    "log": np.log,
    "linear": lambda x: x,
    "inverse": lambda x: 1 / x,
    "root": np.sqrt,
    "angle": np.arctan,
}


def _assigned(sizes, pool, measure="log"):
    """Each image's nearest bucket."""
    return pool[_distances(sizes, pool, measure).argmin(1)]


def _distances(sizes, pool, measure="log"):
    f = _MEASURES[measure]
    return np.abs(f(sizes[:, :1] / sizes[:, 1:]) - f(pool[:, 0] / pool[:, 1]))


_SLIPS = (
    *("tall", "broad", "nearly tall", "nearly broad", "full"),
    *("any width", "below", "not tall", "not broad"),
)


def _pictures(rng, *rows):
    """Rows of (N, tokens, patch, widest): for each slip an image that it sends elsewhere."""
    for N, tokens, patch, widest in rows:
        aspect = np.exp(rng.uniform(-1.9, 1.9, 20_000))
        width = rng.uniform(300, 900, 20_000)
        sizes = np.rint(np.stack([aspect * width, width], axis=-1)).astype(int)
        right = _pool(tokens, widest)
        first, second = np.sort(_distances(sizes, right), axis=1)[:, :2].T
        sizes = sizes[second - first > 0.003]  # none lies in the middle
        best = _assigned(sizes, right)
        picked = []
        for which in _SLIPS:
            picked += _one(rng, best, _assigned(sizes, _pool(tokens, widest, which)))
        for change in (-1, 1):
            picked += _one(rng, best, _assigned(sizes, _pool(tokens + change, widest)))
        for measure in ("linear", "inverse", "root", "angle"):
            picked += _one(rng, best, _assigned(sizes, right, measure))
        picked += list(rng.integers(len(sizes), size=N))
        yield sizes[rng.permutation(picked[:N])].astype(np.int32), tokens, patch, widest


def _one(rng, best, other):
    """The place of an image that goes to another bucket, if there is one."""
    places = np.flatnonzero((best != other).any(1))
    return [rng.choice(places)] if len(places) else []


def _slipped(sizes, tokens, patch, widest, which="right", measure="log"):
    """What a slip in the choice of buckets, or in the distance, makes."""
    sizes = np.asarray(sizes, float)
    best = patch * _assigned(sizes, _pool(tokens, widest, which), measure)
    ratio = (sizes[:, 0] / sizes[:, 1]) / (best[:, 0] / best[:, 1])
    return best, np.minimum(ratio, 1 / ratio)


BUCKETED = exercise(
    "23.3 · Buckets",
    bucketed,
    Part(
        "wide and tall images",
        3,
        lambda rng: _pictures(
            rng,
            (16, int(rng.choice([63, 80, 99])), 8, number(rng, 1.7, 1.95)),
            (18, int(rng.choice([27, 48])), 14, 3.0),  # 9 by 3 and 12 by 4 are as wide as allowed
            (18, int(rng.choice([5, 7])), 14, number(rng, 7.5, 9.0)),  # with one row, one column
        ),
    ),
    section="4 · Other sizes, other shapes, last levels",
    mistakes="""
    sizes are (height, width), and a landscape is wider than high: in yours they are exchanged
        return right[0][:, ::-1], right[1]
    your buckets have the other orientation: a landscape loses most of its area
        far = np.log(height / width) -> far = np.log(width / height)
    a landscape image needs a landscape bucket: yours does not tell the two directions apart
        far = np.log(height / width) -> far = np.abs(np.log(height / width))
    ratios are compared by their logarithms: yours compares height/width
        return _slipped(sizes, tokens, patch, widest, measure="linear")
    ratios are compared by their logarithms: yours compares width/height
        return _slipped(sizes, tokens, patch, widest, measure="inverse")
    the two sides are measured in pixels: a token has patch of them in each direction
        return right[0] // patch, right[1]
    tokens are counted, and not pixels
        return right[0] // patch * patch**2, right[1]
    ratios are compared by their logarithms: yours compares their roots
        return _slipped(sizes, tokens, patch, widest, measure="root")
    ratios are compared by their logarithms: yours compares angles
        return _slipped(sizes, tokens, patch, widest, measure="angle")
    some of your buckets could get another row
        return _slipped(sizes, tokens, patch, widest, "broad")
    some of your buckets could get another column
        return _slipped(sizes, tokens, patch, widest, "tall")
    many of your buckets could get another row or column: they waste tokens
        return _slipped(sizes, tokens, patch, widest, "all")
    a bucket need not use all the tokens: (5, 7) is one for 36
        return _slipped(sizes, tokens, patch, widest, "full")
    no bucket is narrower than widest allows
        return _slipped(sizes, tokens, patch, widest, "any width")
    a bucket may be exactly as narrow as widest
        return _slipped(sizes, tokens, patch, widest, "below")
    widest holds for wide buckets, too
        return _slipped(sizes, tokens, patch, widest, "not tall")
    widest holds for tall buckets, too
        return _slipped(sizes, tokens, patch, widest, "not broad")
    every image has the square bucket in yours
        return _slipped(sizes, tokens, patch, widest, "square")
    the image must cover the bucket: yours leaves empty stripes
        scale = max( -> scale = min(
    that is the share that is cut off
        return right[0], 1 - right[1]
    the share is one of areas: yours is squared
        return right[0], right[1] ** 2
    the share is one of areas: yours has a root
        return right[0], np.sqrt(right[1])
    the image is scaled before it is cut: a large image does not lose more than a small one
        (scale**2 * height * width) -> (height * width)
    the scale of an area is that of a length, squared
        (scale**2 * height * width) -> (scale * height * width)
    the share is that of the image, and not the scale
        kept.append(best[0] * best[1] / (scale**2 * height * width)) -> kept.append(scale)
    """,
)


# --- 23.4 -----------------------------------------------------------------------------------
def over_time(x, lengths, query, key, value):
    made = np.zeros(x.shape)
    B, F = x.shape[:2]
    heads, d = query.shape[1:]
    for b in range(B):
        clip = np.arange(F) < lengths[b]
        seen = (clip[:, None] & clip) | np.eye(F, dtype=bool)
        for head in range(heads):
            q, k, v = (x[b] @ m[:, head] for m in (query, key, value))  # [F, h, w, d or C]
            logits = np.einsum("fijd,gijd->ijfg", q, k) / np.sqrt(d)
            weights = softmax(np.where(seen, logits, -np.inf), axis=-1)
            made[b] += np.einsum("ijfg,gijc->fijc", weights, v)
    return made


def _broken(x, lengths, query, key, value, bugs):
    """The exercise's code with some of its bugs."""
    B, F, h, w, C = x.shape
    rows = x.reshape(B, F, h * w, C)
    mixed = x.reshape(B, h * w, F, C) if "places" in bugs else rows.swapaxes(1, 2)
    q, k, v = (np.einsum("bnfc,chd->bnhfd", mixed, m) for m in (query, key, value))
    logits = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
    clip = np.arange(F) < np.asarray(lengths)[:, None]
    both = clip[:, None] & (clip[:, :, None] | ("images" in bugs))
    seen = (both | np.eye(F, dtype=bool))[:, None, None]
    logits = logits * seen if "clip" in bugs else np.where(seen, logits, -np.inf)
    made = (softmax(logits, axis=-1) @ v).sum(2)
    return (made if "places" in bugs else made.swapaxes(1, 2)).reshape(x.shape)


def _overflowing(logits):
    return np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)


def _clips(rng, *rows, size=0.9):
    """Rows of (F, h, w, C, heads, d, the lengths of the clips); `size` of queries and keys."""
    for F, h, w, C, heads, d, lengths in rows:
        B = len(lengths)
        x = rng.normal(0.4, 1.2, (B, F, h, w, C))
        query, key = rng.normal(0.2, size, (2, C, heads, d))
        yield x, np.array(lengths), query, key, rng.normal(0.3, 0.8, (C, heads, C))


OVER_TIME = exercise(
    "23.4 · Frames that listen to each other",
    over_time,
    Part(
        "clips without images",
        1,
        lambda rng: _clips(rng, (5, 2, 3, 2, 3, 4, (5, 5)), (4, 3, 2, 3, 2, 2, (4, 4, 4))),
    ),
    Part(
        "clips and images",
        3,
        lambda rng: _clips(rng, (5, 2, 3, 2, 3, 4, (3, 2)), (4, 3, 2, 3, 2, 2, (0, 3, 1))),
    ),
    # So large that some logits of images lie below −1000, which is then no mask.
    Part("large logits", 1, lambda rng: _clips(rng, (4, 3, 2, 3, 2, 2, (4, 2, 1)), size=30.0)),
    section="6 · Attention over space, attention over time",
    mistakes="""
    frames and places are still mixed: reshape keeps the order of the numbers and moves no axis
        return _broken(x, lengths, query, key, value, ["places"])
    places are still mixed, and images still listen to the clip
        return _broken(x, lengths, query, key, value, ["places", "images"])
    places are still mixed, and a logit of 0 still has a weight
        return _broken(x, lengths, query, key, value, ["places", "clip"])
    that still has all three bugs
        return _broken(x, lengths, query, key, value, ["places", "clip", "images"])
    the images still listen to the clip
        return _broken(x, lengths, query, key, value, ["images"])
    a large negative number is no mask where some logits are still lower
        np.where(seen, logits, -np.inf) -> np.where(seen, logits, -1000)
    a logit of 0 is no mask: its weight is exp(0)
        return _broken(x, lengths, query, key, value, ["clip"])
    images still listen to the clip, and a logit of 0 still has a weight
        return _broken(x, lengths, query, key, value, ["clip", "images"])
    the images are not one clip: each of them listens to itself alone
        (clip[:, None] & clip) | -> (clip[:, None] == clip) |
    an image listens to itself: without that, its output is 0 divided by 0
        | np.eye(F, dtype=bool) -> | np.zeros((F, F), dtype=bool)
    an image listens to itself: its output is not 0
        made[b] += -> made[b] += clip[:, None, None, None] *
    the images take part: they are masked for the clip, and the clip for them
        seen = (clip[:, None] & clip) | np.eye(F, dtype=bool) -> seen = np.ones((F, F), dtype=bool)
    where the exponential of a logit is infinite, weights are no numbers: subtract the largest logit
        weights = softmax(np.where(seen, logits, -np.inf), axis=-1)
            -> weights = _overflowing(np.where(seen, logits, -np.inf))
    the clip still listens to the images
        (clip[:, None] & clip) | -> clip[:, None] | (np.zeros((F, F)) > 0) |
    a frame of the clip listens to itself, too
        (clip[:, None] & clip) | np.eye(F, dtype=bool)
            -> (clip[:, None] & clip) ^ np.eye(F, dtype=bool)
    an image goes through the heads like the others: its output is not the image
        made[b] += np.einsum -> made[b] += np.where(clip[:, None, None, None], 0, x[b] / heads)
            + clip[:, None, None, None] * np.einsum
    all frames of a clip listen to each other: yours do to earlier ones only
        (clip[:, None] & clip) | -> (np.tril(clip[:, None] & clip)) |
    each example has a clip of its own length: yours is the first one's for all
        lengths[b] -> lengths[0]
    the frame number lengths[b] is an image already
        np.arange(F) < lengths[b] -> np.arange(F) <= lengths[b]
    the clip comes first, the images last
        np.arange(F) < lengths[b] -> np.arange(F) >= F - lengths[b]
    the attention runs over space: each place has to look at its own past and future
        return _over_space(x, query, key, value)
    the logits are divided by the root of a head's size, and not of the channels'
        / np.sqrt(d) -> / np.sqrt(len(query))
    the logits are divided by the root of a head's size
        / np.sqrt(d) -> / d
    the logits are divided by the root of a head's size, and not of all heads together
        / np.sqrt(d) -> / np.sqrt(heads * d)
    the division of the logits is missing
        / np.sqrt(d) ->
    the weights of a frame add up to 1 over what it listens to
        axis=-1) -> axis=-2)
    the heads' outputs are added
        return over_time(x, lengths, query, key, value) / query.shape[1]
    only the first head counts in yours
        return over_time(x, lengths, query[:, :1], key[:, :1], value[:, :1])
    queries and keys are exchanged
        return over_time(x, lengths, key, query, value)
    the sum with x is not asked for
        return x + right
    """,
)


def _over_space(x, query, key, value):
    """Attention within each frame."""
    B, F, h, w, C = x.shape
    turned = np.moveaxis(x.reshape(B, F, h * w, C), 2, 1)[:, :, :, None]  # places as frames
    every = np.full(B, h * w)
    return np.moveaxis(over_time(turned, every, query, key, value)[:, :, :, 0], 1, 2).reshape(
        x.shape
    )


# --- 23.5 -----------------------------------------------------------------------------------
def timetable(grid, known, frames, window, steady):
    steps = len(grid) - 1
    lag = 0 if window >= frames else -(-steps // window)
    last = steps + lag * (frames - 1)
    times = np.zeros((last + 1, known + frames))
    for m in range(last + 1):
        for f in range(frames):
            times[m, known + f] = grid[min(max(m - lag * f, 0), steps)]
    before = times[:-1]
    return times, np.where(before == 0, steady, before)


def _tables(rng, *rows):
    """Rows of (steps, known, frames, window): two times lie below the level that is told."""
    for steps, known, frames, window in rows:
        inside = np.sort(rng.uniform(0.12, 0.95, steps - 3))[::-1]
        small = [number(rng, 0.025, 0.035), number(rng, 0.01, 0.02)]
        grid = np.concatenate([[1], inside, small, [0]])
        yield grid, known, frames, window, number(rng, 0.04, 0.1)


TIMETABLE = exercise(
    "23.5 · A window that slides",
    timetable,
    Part("all frames at once", 1, lambda rng: _tables(rng, (4, 0, 3, 3), (5, 2, 4, 5))),
    Part("one frame after the other", 1, lambda rng: _tables(rng, (4, 0, 3, 1), (5, 2, 4, 1))),
    Part(
        "a window in between",
        2,
        lambda rng: _tables(rng, (6, 0, 4, 3), (5, 2, 4, 2), (5, 1, 5, 4), (7, 1, 3, 2)),
    ),
    section="7 · A noise level for each frame",
    mistakes="""
    your window sometimes holds one frame too many: round the lag up
        -(-steps // window) -> steps // window
    a smaller lag keeps the window, too
        -(-steps // window) -> steps // window + 1
    the lag is counted in steps: yours lets each frame wait for as many steps as the window holds
        -(-steps // window) -> window
    a window of one frame is an extreme: yours goes one by one always
        -(-steps // window) -> steps
    if all frames fit into the window, they need not wait for each other
        0 if window >= frames else ->
    if all frames just fit into the window, they need not wait for each other
        window >= frames -> window > frames
    known frames are done: they take no place in the window
        lag = 0 if window >= frames -> lag = 0 if window >= known + frames
    known frames are not changed any more: the window is free for the others
        -(-steps // window) -> -(-steps // max(window - known, 1))
    that is the schedule in which all frames go together
        lag = 0 if window >= frames else -(-steps // window) -> lag = 0
    the first frame is the first that is done
        m - lag * f, -> m - lag * (frames - 1 - f),
    the table ends where the last frame is done
        last = steps + lag * (frames - 1) -> last = steps
    the table ends where the last frame is done: yours has rows too many
        last = steps + lag * (frames - 1) -> last = steps + lag * frames
    the grid is given: yours has equal steps
        grid[min(max(m - lag * f, 0), steps)] -> 1 - min(max(m - lag * f, 0), steps) / steps
    known frames have the time 0 from the first row on
        before = times[:-1] -> times[:, :known] = 1; before = times[:-1]
    a finished frame has the time 0: steady is only what the network is told
        return times, -> return np.where(times == 0, steady, times),
    what the network is told belongs to the row before the step
        before = times[:-1] -> before = times[1:]
    the network is told another time than 0 for frames that are finished
        np.where(before == 0, steady, before) -> before
    steady is told for frames that are finished: others are told their time, if it is small, too
        np.where(before == 0, steady, before) -> np.maximum(before, steady)
    a frame in its last step is not finished yet: the network is told its time before the step
        np.where(before == 0, steady, before) -> np.where(times[1:] == 0, steady, before)
    steady is told for frames that are finished, and not for those that wait
        np.where(before == 0, -> np.where((before == 0) | (before == 1),
    known frames are finished, too: steady is told for them
        (before == 0, steady, before)
            -> ((before == 0) & (np.arange(known + frames) >= known), steady, before)
    steady is told for all that are finished, and not only for known frames
        (before == 0, steady, before)
            -> ((before == 0) & (np.arange(known + frames) < known), steady, before)
    known frames come first
        times[m, known + f] -> times[m, f]
    """,
)


# --- 23.6 -----------------------------------------------------------------------------------
def rollout(r, c, told, added, bias):
    N = len(r)
    lags = np.abs(np.arange(N)[:, None] - np.arange(N))
    seen = r[lags[:c, :c]] + told**2 * np.eye(c)
    gain = np.linalg.solve(seen, r[c:0:-1])  # of the earliest of the frames first
    left = r[0] - gain @ r[c:0:-1]
    # Each frame as a sum of the first frames and of independent noises, and its mean.
    parts, mean = np.zeros((N, c + 2 * N)), np.zeros(N)
    parts[:c, :c] = np.linalg.cholesky(r[lags[:c, :c]])
    for n in range(c, N):
        parts[n] = gain @ parts[n - c : n]
        parts[n, c + n] = np.sqrt(left)
        parts[n, c + N + n] = added * np.sqrt(gain @ gain)
        mean[n] = gain @ mean[n - c : n] + bias
    return mean, parts @ parts.T


def _covariance(rng, N, waves):
    """E[x_i x_j] by the distance in time: a slow part and one that swings, or the slow one only."""
    lag = np.arange(N)
    slow = number(rng, 0.8, 1.6) * number(rng, 0.75, 0.9) ** lag
    swing = number(rng, 0.7, 1.4) * number(rng, 0.8, 0.92) ** lag
    return slow + waves * swing * np.cos(number(rng, 0.7, 1.2) * lag)


def _rollouts(rng, *rows):
    """Rows of (N, c, whether it swings, told, added); a number of 0 stays, 1 is drawn."""
    for N, c, waves, told, added in rows:
        level = number(rng, 0.4, 0.7)
        added = added * (level if told else number(rng, 0.4, 0.7))
        bias = number(rng, 0.1, 0.3) * (1 if N % 2 else -1)
        yield _covariance(rng, N, waves), c, told * level, added, bias


_GAIN = "gain = np.linalg.solve(seen, r[c:0:-1])"
_SHOWN = "parts[n, c + N + n] = added * np.sqrt(gain @ gain)"

ROLLOUT = exercise(
    "23.6 · Does it drift?",
    rollout,
    Part("no noise", 2, lambda rng: _rollouts(rng, (6, 1, 1, 0, 0), (9, 3, 1, 0, 0))),
    Part("noise that is told", 1, lambda rng: _rollouts(rng, (6, 1, 0, 1, 1), (9, 3, 1, 1, 1))),
    Part(
        "one without the other",
        1,
        lambda rng: _rollouts(
            rng, (6, 2, 1, 1, 0), (9, 3, 1, 0, 1), (6, 2, 1, 1, number(rng, 0.4, 1.8))
        ),
    ),
    section="8 · Long clips drift",
    mistakes=f"""
    the model sees the last c frames: yours looks at the first ones always
        gain @ parts[n - c : n] -> gain @ parts[:c]
        gain @ mean[n - c : n] -> gain @ mean[:c]
    the latest frame is the nearest: your gains are in the other order
        {_GAIN} -> gain = np.linalg.solve(seen, r[1 : c + 1])
        left = r[0] - gain @ r[c:0:-1] -> left = r[0] - gain @ r[1 : c + 1]
    your gains, and what they explain, have opposite orders
        left = r[0] - gain @ r[c:0:-1] -> gain = gain[::-1]; left = r[0] - gain @ r[c:0:-1]
    the model knows c frames only: yours draws given all frames before
        return _sees_everything(r, c, told, added, bias)
    the frames that are seen tell something of each other, too: their covariance is missing
        {_GAIN} -> gain = r[c:0:-1] / seen[0, 0]
    the model sees c frames: yours sees one
        return _sees_one(r, c, told, added, bias)
    told and added are exchanged
        return rollout(r, c, added, told, bias)
    the model was trained on noisy frames: its gains know of the noise
        return rollout(r, c, 0, added, bias)
    noise is added to the frames before they are shown: it makes the next one uncertain
        return rollout(r, c, told, 0, bias)
    the noise that is told is not always the noise that is added
        return rollout(r, c, told, told, bias)
    the model knows the noise that it was told of: your gains are those of the added noise
        told**2 * np.eye(c) -> added**2 * np.eye(c)
    only what is shown gets noise: the first c frames stay as they are
        np.linalg.cholesky(r[lags[:c, :c]])
            -> np.linalg.cholesky(r[lags[:c, :c]] + added**2 * np.eye(c))
    told is a standard deviation
        told**2 * np.eye(c) -> told * np.eye(c)
    added is a standard deviation
        = added * np.sqrt(gain @ gain) -> = np.sqrt(added * gain @ gain)
    noise on what is seen leaves more uncertain: yours has the right mean, but too little variance
        left = r[0] - gain @ r[c:0:-1]
            -> left = r[0] - np.linalg.solve(r[lags[:c, :c]], r[c:0:-1]) @ r[c:0:-1]
    the model draws a frame: yours is the mean of what it draws
        parts[n, c + n] = np.sqrt(left) -> parts[n, c + n] = 0
    what is left uncertain is a variance: it is squared in yours
        parts[n, c + n] = np.sqrt(left) -> parts[n, c + n] = left
    the frames that are seen explain a part: what is drawn has less variance than r[0]
        parts[n, c + n] = np.sqrt(left) -> parts[n, c + n] = np.sqrt(r[0])
    the drawn frame has no noise: that is only on what is seen
        parts[n, c + n] = np.sqrt(left) -> parts[n, c + n] = np.sqrt(left + told**2)
    the noise is shown to the model, and no frame keeps it
        return right[0], right[1] + added**2 * np.diag(np.arange(len(r)) >= c)
    the noises of the frames are independent: their variances add up
        np.sqrt(gain @ gain) -> gain.sum()
    the noise that is added goes through the gains, too
        added * np.sqrt(gain @ gain) -> added
    each step draws the noise afresh: yours keeps the noise of a frame
        {_SHOWN} -> parts[n, N + n : c + N + n] = added * gain
    a frame that is too bright makes the next one brighter: the bias is passed on
        gain @ mean[n - c : n] + bias -> bias
    what is drawn is too large by bias, and not what is shown
        gain @ mean[n - c : n] + bias -> gain @ (mean[n - c : n] + bias)
    the bias is passed on by the gains: yours adds up without a limit
        gain @ mean[n - c : n] + bias -> mean[n - 1] + bias
    each frame that is drawn gets the bias, and not only the first
        gain @ mean[n - c : n] + bias -> gain @ mean[n - c : n] + bias * (n == c)
    the first c frames are true: they have no bias
        mean[n] = gain -> mean[:c] = bias; mean[n] = gain
    that is the mean of the products: the covariance is without the means
        return mean, parts @ parts.T -> return mean, parts @ parts.T + np.outer(mean, mean)
    that is the true process: the model has forgotten what lies more than c frames back
        return mean, parts @ parts.T -> return mean, r[lags]
    frames are not independent of each other
        return mean, parts @ parts.T -> return mean, np.diag(np.diag(parts @ parts.T))
    """,
)


def _sees_everything(r, c, told, added, bias):
    N = len(r)
    lags = np.abs(np.arange(N)[:, None] - np.arange(N))
    mean, made = np.zeros(N), r[lags]
    for n in range(c, N):
        gain = np.linalg.solve(r[lags[:n, :n]] + told**2 * np.eye(n), r[n:0:-1])
        mean[n] = gain @ mean[:n] + bias
        made[n, :n] = made[:n, n] = gain @ made[:n, :n]
        made[n, n] = gain @ made[:n, :n] @ gain + added**2 * gain @ gain + r[0] - gain @ r[n:0:-1]
    return mean, made


def _sees_one(r, c, told, added, bias):
    N = len(r)
    lags = np.abs(np.arange(N)[:, None] - np.arange(N))
    mean, made, gain = np.zeros(N), r[lags], r[1] / (r[0] + told**2)
    for n in range(c, N):
        mean[n] = gain * mean[n - 1] + bias
        made[n, :n] = made[:n, n] = gain * made[n - 1, :n]
        made[n, n] = gain**2 * (made[n - 1, n - 1] + added**2) + r[0] - gain * r[1]
    return mean, made


# --- 23.7 -----------------------------------------------------------------------------------
SHARP = Written("23.7", "Sharp, and wrong", 3, section="3 · A trained stage")
