"""Exercises of chapter 26: Capstone."""

import numpy as np

from diffusion_course.grading.answers.writing import exercise
from diffusion_course.grading.exercise import Part, Written

# Everything is float64 or whole numbers; float64 reaches the student as NumPy's arrays.


# --- 26.1 -----------------------------------------------------------------------------------
def bill(times, stages, low, high):
    paid = np.zeros(len(times) - 1, int)
    for i in range(len(paid)):
        t, s = times[i], times[i + 1]
        corrected = stages == 2 and t < 1 and s > 0
        for at in (t, s) if corrected else (t,):
            paid[i] += 2 if low <= at <= high else 1
    return paid


def _grids(rng, *cases):
    """(n, the first time, stages, low, high); None for a time of the grid, "low" for one moment."""
    for n, first, stages, low, high in cases:
        inner = np.linspace(0.82, 0.22, n - 1) + rng.uniform(-0.04, 0.04, n - 1)
        times = np.array([first, *inner, 0.0])
        low = times[-3] if low is None else low
        high = times[1] if high is None else low if high == "low" else high
        yield times, stages, float(low), float(high)


BILL = exercise(
    "26.1 · The bill of a sampler",
    bill,
    Part(
        "one evaluation in a step",
        1,
        lambda rng: _grids(
            rng,
            (5, 1.0, 1, 0.5, 0.7),
            (1, 1.0, 1, 0.5, 1.0),
            (6, 0.93, 1, 0.8, 0.2),
            (5, 1, 1, 0, 1),
        ),
    ),
    Part(
        "two evaluations in a step",
        2,
        lambda rng: _grids(
            rng,
            (5, 1.0, 2, 0.5, 0.7),
            (6, 0.93, 2, 0.2, 0.95),
            (1, 1.0, 2, 0.2, 0.8),
            (1, 0.9, 2, 0, 1),
            (5, 1.0, 2, None, None),
            (5, 0.93, 2, None, "low"),
            (6, 1.0, 2, 0.9, 0.1),
            (2, 1.0, 2, 0.0, 1.0),
            (5, 0.93, 2, 0, 1),
        ),
    ),
    section="2 · The game",
    mistakes="""
    the step from t = 1 has no signal to correct with: it costs one evaluation
        t < 1 and s > 0 -> s > 0
    the step to 0 is not corrected: it costs one evaluation
        t < 1 and s > 0 -> t < 1
    the first step is corrected, too, where the grid does not begin at pure noise
        t < 1 and s > 0 -> i > 0 and s > 0
    the corrector's question is asked at the end of the step: whether it is guided, that time says
        paid[i] += 2 if low <= at <= high else 1 -> paid[i] += 2 if low <= t <= high else 1
    a guided question is two rows: one with the label, one without
        2 if low <= at <= high else 1 -> 1
    only questions inside the interval are guided
        2 if low <= at <= high else 1 -> 2
    the ends of the interval belong to it
        low <= at <= high -> low < at < high
    the upper end of the interval belongs to it
        low <= at <= high -> low <= at < high
    the lower end of the interval belongs to it
        low <= at <= high -> low < at <= high
    an interval of one moment has that moment in it
        low <= at <= high -> low < high and low <= at <= high
    where low is above high nothing is guided
        low <= at <= high -> min(low, high) <= at <= max(low, high)
    these are the steps' numbers one by one, and not their running sum
        return np.cumsum(right)
    one number for each step: the sum belongs to nobody
        return np.sum(right)
    """,
)


# --- 26.2 -----------------------------------------------------------------------------------
def drawn(alpha, sigma, means, stds):
    middle, factor = 0 * means, sigma[0] + 0 * stds  # x = middle + factor·z
    for i in range(len(alpha) - 1):
        gain = alpha[i] * stds**2 / (alpha[i] ** 2 * stds**2 + sigma[i] ** 2)
        x0_middle = means + gain * (middle - alpha[i] * means)
        x0_factor = gain * factor
        eps_middle = (middle - alpha[i] * x0_middle) / sigma[i]
        eps_factor = (factor - alpha[i] * x0_factor) / sigma[i]
        middle = alpha[i + 1] * x0_middle + sigma[i + 1] * eps_middle
        factor = alpha[i + 1] * x0_factor + sigma[i + 1] * eps_factor
    distance = np.sum((middle - means) ** 2 + (np.abs(factor) - stds) ** 2)
    return middle, np.abs(factor), distance


def _runs(rng, *cases):
    """(n, D, the first alpha): tables along a circle, and Gaussians of very different widths."""
    for n, D, first in cases:
        angles = np.sort(rng.uniform(0.15, 1.3, n - 1))[::-1]
        alpha = np.array([first, *np.cos(angles), 1.0])
        sigma = np.sqrt(1 - alpha**2)
        if first:
            alpha[1:-1] = first + (1 - first) * np.sort(rng.uniform(0.1, 0.9, n - 1))
            sigma = np.sqrt(1 - alpha**2)
        yield alpha, sigma, rng.normal(0.7, 1.2, D), rng.uniform(0.2, 1.9, D)


DRAWN = exercise(
    "26.2 · What few steps draw",
    drawn,
    Part("from pure noise", 2, lambda rng: _runs(rng, (1, 3, 0.0), (2, 3, 0.0), (4, 5, 0.0))),
    Part("from a grid that begins too late", 2, lambda rng: _runs(rng, (2, 3, 0.2), (4, 5, 0.3))),
    section="8 · A sampler with one free number",
    mistakes="""
    the run begins with σ times noise: the data's mean is not in it
        middle, factor = 0 * means -> middle, factor = alpha[0] * means
    the run begins with noise of the size σ, and not with the true spread of the states
        sigma[0] + 0 * stds -> np.sqrt(alpha[0] ** 2 * stds**2 + sigma[0] ** 2)
    the run begins with noise of the size σ: yours is 1
        sigma[0] + 0 * stds -> 1.0 + 0 * stds
    the noise of the guess comes from its own level: divide by σ there
        (factor - alpha[i] * x0_factor) / sigma[i] -> (factor - alpha[i] * x0_factor) / sigma[0]
    that is a run that draws the data exactly: what few steps draw differs
        return means, stds, 0.0
    the result is what the last step gives: yours stops one step before it
        range(len(alpha) - 1) -> range(len(alpha) - 2)
    DDIM adds no fresh noise: yours replaces the old noise by fresh one of its own
        factor = alpha[i + 1] * x0_factor + sigma[i + 1] * eps_factor -> factor = np.hypot(
            alpha[i + 1] * x0_factor, sigma[i + 1])
    the guess and its noise come from one z: their factors add up, and not their squares
        factor = alpha[i + 1] * x0_factor + sigma[i + 1] * eps_factor -> factor = np.hypot(
            alpha[i + 1] * x0_factor, sigma[i + 1] * eps_factor)
    a standard deviation is squared in the gain
        alpha[i] * stds**2 / (alpha[i] ** 2 * stds**2 -> alpha[i] * stds / (alpha[i] ** 2 * stds
    the noise's variance stands in the gain: σ²
        stds**2 + sigma[i] ** 2) -> stds**2 + sigma[i])
    the second result is a standard deviation: yours is a variance
        return middle, np.abs(factor), distance -> return middle, factor**2, distance
    the distance sums the squares: yours is its root
        return middle, np.abs(factor), distance -> return middle, np.abs(factor), distance**0.5
    the distance compares means, too
        (middle - means) ** 2 + ( -> 0 * middle + (
    the distance compares standard deviations, too
        + (np.abs(factor) - stds) ** 2 -> + 0 * factor
    the distance compares standard deviations, and not variances
        (np.abs(factor) - stds) ** 2 -> (factor**2 - stds**2) ** 2
    the distance is a sum over the coordinates: yours is a mean
        distance = np.sum( -> distance = np.mean(
    """,
)


# --- 26.3 -----------------------------------------------------------------------------------
def charge(calls, N, allowed):
    counts, served = np.zeros(N, int), 0
    for images in calls:
        new = counts + np.bincount(images[images >= 0], minlength=N)
        if new.max() > allowed:
            break
        counts, served = new, served + 1
    return counts, served


def _logs(rng, *cases):
    """(N, calls, rows, allowed, kind) of logs; −1 is an empty row."""
    for N, C, B, allowed, kind in cases:
        calls = rng.permuted(np.tile(np.resize(np.arange(N), B), (C, 1)), axis=1)
        if kind == "twice":  # an image that comes twice in a call
            calls[:, 0] = calls[:, 1]
        if kind in ("empty", "twice"):  # an empty row may also lie among the others
            calls[rng.integers(C), -1 if kind == "twice" else 1] = -1
        if kind == "late":  # one call asks for too much, and those behind it would be small
            calls[C // 2] = 1
            calls[C // 2, 0] = 0  # and its first image still has something left
            calls[C // 2 + 1 :, 1:] = -1
        yield calls.astype(np.int32), N, allowed


CHARGE = exercise(
    "26.3 · A counter that is cheated",
    charge,
    Part(
        "calls that are all served",
        1,
        lambda rng: _logs(rng, (5, 3, 4, 6, "twice"), (4, 5, 4, 5, "empty"), (5, 3, 4, 4, "empty")),
    ),
    Part(
        "calls that ask for too much",
        2,
        lambda rng: _logs(
            rng,
            (5, 3, 4, 2, "twice"),
            (4, 5, 4, 3, "late"),
            (4, 5, 4, 4, "plain"),
            (5, 3, 4, 0, "twice"),
        ),
    ),
    section="3 · Who counts?",
    mistakes="""
    an image that comes twice in a call is charged twice: counts[images] += 1 charges it once
        new = counts + np.bincount(images[images >= 0], minlength=N) -> new = counts + np.isin(
            np.arange(N), images)
    an empty row belongs to nobody: the index −1 is the last image
        np.bincount(images[images >= 0], minlength=N) -> np.bincount(images % N, minlength=N)
    a refused call is not charged
        break -> return new, served
    any image can have too much: yours looks at the first one of the call
        new.max() > allowed -> new[images[0]] > allowed
    an empty row may lie among the others: yours stops reading at the first one
        np.bincount(images[images >= 0], minlength=N) -> np.bincount(
            images[np.cumprod(images >= 0) > 0], minlength=N)
    the call that is refused is not charged, and not served
        if new.max() > allowed: -> if counts.max() > allowed:
    after a refusal nothing is served any more, however little it asks for
        break -> continue
    exactly the allowed number is still allowed
        new.max() > allowed -> new.max() >= allowed
    each image has its own budget: yours has one for all images together
        new.max() > allowed -> new.sum() > allowed * N
    the whole call is refused: yours serves its first rows
        break -> return np.minimum(new, allowed), served
    the second result is how many calls were served: yours counts rows
        return counts, served -> return counts, counts.sum()
    the second result is how many calls were served: yours is the index of the last one
        return counts, served -> return counts, served - 1
    """,
)


# --- 26.4 -----------------------------------------------------------------------------------
def place(known, told, wanted):
    inside = np.einsum("nkd,nd->nk", known, wanted)
    squares = np.einsum("nkd,nld->nkl", known, known)
    weights = np.einsum("nkl,nl->nk", np.linalg.pinv(squares, hermitian=True, rcond=1e-9), inside)
    share = np.einsum("nk,nk->n", weights, inside) / np.sum(wanted**2, axis=1)
    return np.einsum("nkd,nk->nd", told, weights), share


def _secrets(rng, *cases):
    """(N, K, D, kind): vectors in pixels, and the same ones turned by a secret rotation."""
    for N, K, D, kind in cases:
        known = rng.normal(0.5, 1.0, (N, K, D)) * rng.uniform(0.3, 3, (N, K, 1))
        wanted = rng.normal(0.4, 1.1, (N, D))
        if kind == "dependent":  # a question whose answer was known already
            known[:, -1] = 0.7 * known[:, 0] - 1.3 * known[:, 1]
        if kind == "twice":  # asked twice: singular to the last bit
            known[:, -1] = known[:, 0]
        if kind == "inside":
            wanted = np.einsum("nkd,nk->nd", known, rng.normal(0.3, 1, (N, K)))
        q = np.linalg.qr(rng.normal(size=(N, D, D)))[0]
        yield known, np.einsum("nij,nkj->nki", q, known), wanted


PLACE = exercise(
    "26.4 · What a cheat can know",
    place,
    Part("independent answers", 2, lambda rng: _secrets(rng, (3, 2, 5, ""), (2, 3, 4, "inside"))),
    Part(
        "an answer that tells nothing new",
        1,
        lambda rng: _secrets(rng, (2, 3, 5, "dependent"), (3, 3, 6, "twice")),
    ),
    section="4 · Secret coordinates",
    mistakes="""
    the vectors are not orthogonal: solve for the weights, with the table of their products
        np.linalg.pinv(squares, hermitian=True, rcond=1e-9) -> np.eye(known.shape[1]) / np.einsum(
            "nkk->nk", squares)[:, None]
    the vectors have no unit length: their products are to be solved for
        np.linalg.pinv(squares, hermitian=True, rcond=1e-9) -> np.broadcast_to(np.eye(
            known.shape[1]), squares.shape)
    that is the part in pixels: it is to be returned in the sampler's coordinates
        np.einsum("nkd,nk->nd", told, weights) -> np.einsum("nkd,nk->nd", known, weights)
    the image is known in pixels, and the answers in other coordinates: their products mean nothing
        np.einsum("nkd,nd->nk", known, wanted) -> np.einsum("nkd,nd->nk", told, wanted)
    the share is one of squared lengths: yours is of lengths
        / np.sum(wanted**2, axis=1) -> ** 0.5 / np.sum(wanted**2, axis=1) ** 0.5
    the share is that which is known: yours is the rest
        return np.einsum("nkd,nk->nd", told, weights), share -> return np.einsum(
            "nkd,nk->nd", told, weights), 1 - share
    dependent vectors have a singular table: leave out what is nearly 0 in it
        np.linalg.pinv(squares, hermitian=True, rcond=1e-9) -> np.linalg.inv(squares + 1e-2 *
            np.eye(known.shape[1]))
    one share for each image
        / np.sum(wanted**2, axis=1) -> / np.sum(wanted**2)
    """,
    rtol=1e-4,
)


# --- 26.5 -----------------------------------------------------------------------------------
def _root(matrix, power=0.5):
    values, axes = np.linalg.eigh(matrix)
    return (axes * values**power) @ axes.T


def _distance(x, mean, covariance):
    m, C = x.mean(0), np.cov(x.T)
    root = _root(C)
    cross = np.trace(_root(root @ covariance @ root))
    return np.sum((m - mean) ** 2) + np.trace(C) + np.trace(covariance) - 2 * cross


def _influence(x, mean, covariance):
    m, C = x.mean(0), np.cov(x.T)
    root, inverse = _root(C), _root(C, -0.5)
    bend = np.eye(len(m)) - inverse @ _root(root @ covariance @ root) @ inverse
    u = x - m
    return 2 * u @ (m - mean) + np.sum(u * (u @ bend), axis=1)


def apart(a, b, mean, covariance):
    gap = _distance(a, mean, covariance) - _distance(b, mean, covariance)
    phi = _influence(a, mean, covariance) - _influence(b, mean, covariance)
    return gap, np.std(phi, ddof=1) / np.sqrt(len(a))


def _samplers(rng, *cases):
    """(N, D, what b shares with a): features of two samplers, row by row from the same noise."""
    for N, D, shared in cases:
        root = rng.normal(size=(D, D))
        covariance = root @ root.T / D + 0.3 * np.eye(D)
        z, other = rng.normal(size=(2, N, D))
        a = z @ rng.normal(0.2, 0.7, (D, D)) + rng.normal(0.5, 0.6, D)
        mixed = shared * z + np.sqrt(1 - shared**2) * other
        b = mixed @ rng.normal(0.2, 0.7, (D, D)) + rng.normal(-0.4, 0.6, D)
        if shared == 1:  # the same sampler, with a little noise on top
            b = 1.1 * a + 0.1 * other
        yield a, b, rng.normal(0.3, 0.8, D), covariance


APART = exercise(
    "26.5 · How sure is a difference?",
    apart,
    Part("two samplers", 2, lambda rng: _samplers(rng, (20, 3, 0.3), (15, 2, 0.8))),
    Part("nearly the same sampler", 2, lambda rng: _samplers(rng, (20, 3, 1), (15, 2, 1))),
    section="5 · How sure is a score?",
    mistakes="""
    both samplers had the same noise: errors as if each had its own are too large
        np.std(phi, ddof=1) / np.sqrt(len(a)) -> np.hypot(np.std(_influence(a, mean, covariance),
            ddof=1), np.std(_influence(b, mean, covariance), ddof=1)) / np.sqrt(len(a))
    errors of two scores are not subtracted: the influences are, image by image
        np.std(phi, ddof=1) / np.sqrt(len(a)) -> abs(np.std(_influence(a, mean, covariance),
            ddof=1) - np.std(_influence(b, mean, covariance), ddof=1)) / np.sqrt(len(a))
    the influences are subtracted, too: yours are added
        phi = _influence(a, mean, covariance) - _influence -> phi = _influence(
            a, mean, covariance) + _influence
    that is the scatter of one influence: the error of a mean of N is smaller by √N
        / np.sqrt(len(a)) -> / 1.0
    that is a variance: the error is its root
        np.std(phi, ddof=1) / np.sqrt(len(a)) -> np.var(phi, ddof=1) / len(a)
    the difference is that of a from b: yours has the other sign
        return gap, -> return -gap,
    the difference is that of two Fréchet distances: yours is the distance between a and b
        gap = _distance(a, mean, covariance) - _distance(b, mean, covariance) -> gap = _distance(
            a, b.mean(0), np.cov(b.T))
    the spread has an influence, too: yours is that of the means alone
        phi = _influence(a, mean, covariance) - _influence(b, mean, covariance) -> phi = 2 * (
            a - a.mean(0)) @ (a.mean(0) - mean) - 2 * (b - b.mean(0)) @ (b.mean(0) - mean)
    """,
    rtol=1e-3,  # N or N − 1 in a covariance counts as wrong: it changes these numbers by 5 %
    atol=1e-4,
)


# --- 26.6 -----------------------------------------------------------------------------------
REPORT = Written("26.6", "The report of your sampler", 10, section="9 · Your capstone")
