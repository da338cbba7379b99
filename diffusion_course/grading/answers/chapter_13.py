"""Exercises of chapter 13: Evaluation and its blind spots."""

import numpy as np
from scipy.spatial.distance import cdist
from scipy.special import gammaln, softmax
from scipy.stats import binom, hypergeom

from diffusion_course.grading.answers.drawing import number
from diffusion_course.grading.answers.writing import exercise
from diffusion_course.grading.exercise import Part, Written

# Features are float64 here, which reach the student as NumPy's arrays: nothing has to be compiled.


def _features(rng, N, D):
    """Rows whose features are correlated, of different spreads and not centred."""
    turned = np.linalg.qr(rng.normal(0, 1, (D, D)))[0]  # well conditioned, unlike any matrix
    return rng.normal(0, rng.uniform(0.6, 2.2, D), (N, D)) @ turned + rng.uniform(-2.5, 2.5, D)


# --- 13.1 -----------------------------------------------------------------------------------
def merged(means, covariances, counts):
    n = counts.sum()
    mean = (counts[:, None] * means).sum(0) / n
    away = means - mean
    within = ((counts - 1)[:, None, None] * covariances).sum(0)
    between = (counts[:, None] * away).T @ away
    return mean, (within + between) / (n - 1)


def _chunks(rng, D, *counts):
    chunks = [_features(rng, N, D) for N in counts]
    means = np.stack([x.mean(0) for x in chunks])
    covariances = [np.cov(x.T).reshape(D, D) if len(x) > 1 else np.zeros((D, D)) for x in chunks]
    return means, np.stack(covariances), np.array(counts, np.float64)


MERGED = exercise(
    "13.1 · Moments, a chunk at a time",
    merged,
    Part("two chunks of one size", 1, lambda rng: [_chunks(rng, 2, 6, 6), _chunks(rng, 1, 4, 4)]),
    Part(
        "any chunks",
        1,
        lambda rng: [
            _chunks(rng, 3, 9, 5, 14),
            _chunks(rng, 2, 3, 1, 12, 5),
            _chunks(rng, 2, 2, 1),
        ],
    ),
    section="2 · The Fréchet distance looks at two moments",
    mistakes="""
    chunks differ in mean, too, and that is part of the spread: yours is the spread within them
        (within + between) / -> within /
    a large chunk counts more: weight by the counts, the means and all that follows
        n = counts.sum() -> counts = np.full(len(counts), counts.mean()); n = counts.sum()
    the mean of the whole weights each chunk by its count
        (counts[:, None] * means).sum(0) / n -> means.mean(0)
    the squares between the chunks are counted once for each chunk: once for each row is right
        (counts[:, None] * away).T @ away -> away.T @ away
    the law of total variance is for denominators N: yours are N − 1, so add up sums of squares
        (counts - 1)[:, None, None] -> counts[:, None, None]
        (n - 1) -> n
    that is a mean of the covariances: chunks differ in mean, too, and that is part of the spread
        (counts - 1)[:, None, None] -> counts[:, None, None]
        (within + between) / (n - 1) -> within / n
    a covariance is a sum of squares divided by N − 1, one less than the chunk's number of rows
        (counts - 1)[:, None, None] -> counts[:, None, None]
    the sum over all rows is divided by their number less one, once for the whole
        (n - 1) -> (n - len(counts))
    the sum over all rows is divided by n − 1, not by n
        (n - 1) -> n
    that is the pooled spread within the chunks: chunks differ in mean, too
        (within + between) / (n - 1) -> within / (n - len(counts))
    those are sums of squares: a covariance divides them by n − 1
        (within + between) / (n - 1) -> within + between
    the means scatter about the mean of the whole set, not about 0
        away = means - mean -> away = means
    that is the covariance of another set: with every mean and spread weighted alike
        return means.mean(0), covariances.mean(0)
    """,
)


# --- 13.2 -----------------------------------------------------------------------------------
def expected_score(mean, std, real_mean, real_std, N, M):
    def shrinkage(n):
        return np.sqrt(2 / (n - 1)) * np.exp(gammaln(n / 2) - gammaln((n - 1) / 2))

    of_means = (mean - real_mean) ** 2 + std**2 / N + real_std**2 / M
    cross = shrinkage(N) * std * shrinkage(M) * real_std
    of_stds = std**2 + real_std**2 - 2 * cross
    return (of_means + of_stds).sum()


def _pairs(rng, D):
    means = rng.uniform(-2.1, 2.1, (2, D))
    stds = rng.uniform(0.4, 2.3, (2, D))
    return means[0], stds[0], means[1], stds[1]


def _alike(rng):
    for D, N, M in ((3, 2, 5), (1, 7, 2), (2, 40, 900)):
        mean, std, _, _ = _pairs(rng, D)
        yield mean, std, mean.copy(), std.copy(), N, M


def _different(rng):
    for D, N, M in ((2, 3, 4), (3, 6, 2), (1, 400, 50_000)):
        yield *_pairs(rng, D), N, M
    mean, std, real_mean, real_std = _pairs(rng, 2)  # the samples' scatter is all that counts
    yield 0.1 * mean, 3 * std, 0.1 * real_mean, 0.1 * real_std, 2, 30


EXPECTED_SCORE = exercise(
    "13.2 · What a score is on average",
    expected_score,
    Part("samples like the real examples", 2, _alike),
    Part("other samples", 2, _different),
    section="3 · How many samples? The floor falls like 1/N",
    mistakes="""
    that is the distance of the two distributions: no number of rows occurs in it
        std**2 / N + real_std**2 / M -> 0
        shrinkage(N) * std * shrinkage(M) * real_std -> std * real_std
    that is the bias alone: the distance of the two distributions belongs to the score
        return right - ((mean - real_mean) ** 2 + (std - real_std) ** 2).sum()
    an estimated mean has a scatter of its own: the difference of two has the sum of their variances
        std**2 / N + real_std**2 / M -> 0
    a variance is estimated without bias; its root, the std, is too small on average
        shrinkage(N) * std * shrinkage(M) * real_std -> std * real_std
    an estimated std scatters, too: the mean of its square is not the square of its mean
        std**2 + real_std**2 - 2 * cross -> (shrinkage(N) * std - shrinkage(M) * real_std) ** 2
    the real examples are a sample as well: their mean and their std are estimates
        std**2 / N + real_std**2 / M -> std**2 / N
        shrinkage(N) * std * shrinkage(M) * real_std -> shrinkage(N) * std * real_std
    the mean of N rows has the variance std²/N, not std²/(N − 1)
        std**2 / N + real_std**2 / M -> std**2 / (N - 1) + real_std**2 / (M - 1)
    N belongs to the samples, and M to the real examples
        return expected_score(mean, std, real_mean, real_std, M, N)
    the mean of the root of a variance: the ratio of gammas is upside down
        gammaln(n / 2) - gammaln((n - 1) / 2) -> gammaln((n - 1) / 2) - gammaln(n / 2)
    N rows leave N − 1 degrees of freedom, since their own mean is taken off
        np.sqrt(2 / (n - 1)) * np.exp(gammaln(n / 2) - gammaln((n - 1) / 2)) ->
            np.sqrt(2 / n) * np.exp(gammaln((n + 1) / 2) - gammaln(n / 2))
    the real examples have M rows, not N: their mean and their std scatter less or more
        std**2 / N + real_std**2 / M -> std**2 / N + real_std**2 / N
        shrinkage(N) * std * shrinkage(M) * real_std -> shrinkage(N) ** 2 * std * real_std
    both roots shrink the product, the real examples' too
        shrinkage(N) * std * shrinkage(M) * real_std -> shrinkage(N) * std * real_std
    that is equation (3) and the true distance: exact for many rows only
        std**2 / N + real_std**2 / M -> 1.5 * std**2 / N + 1.5 * real_std**2 / M
        std**2 + real_std**2 - 2 * cross -> (std - real_std) ** 2
    a std's variance is close to std²/(2(N − 1)) for many rows only
        std**2 + real_std**2 - 2 * cross -> (std - real_std) ** 2
            + std**2 / (2 * (N - 1)) + real_std**2 / (2 * (M - 1))
    the approximation 1 − 1/(4N) is for many rows
        np.sqrt(2 / (n - 1)) * np.exp(gammaln(n / 2) - gammaln((n - 1) / 2)) -> 1 - 1 / (4 * n)
    the approximation 1 − 1/(4(N − 1)) is for many rows
        np.sqrt(2 / (n - 1)) * np.exp(gammaln(n / 2) - gammaln((n - 1) / 2)) ->
            1 - 1 / (4 * (n - 1))
    the distance adds up over the features: yours is a mean of them
        (of_means + of_stds).sum() -> (of_means + of_stds).mean()
    """,
    rtol=1e-4,
)


# --- 13.3 -----------------------------------------------------------------------------------
def cheapest(x, real):
    def root(covariance, power=0.5):
        values, vectors = np.linalg.eigh(covariance)
        values = np.maximum(values, 0)
        return (vectors * values**power) @ vectors.T

    D = x.shape[1]
    c_x, c_real = (np.cov(z.T).reshape(D, D) for z in (x, real))
    spread, narrow = root(c_x), root(c_x, -0.5)
    stretch = narrow @ root(spread @ c_real @ spread) @ narrow
    return real.mean(0) + (x - x.mean(0)) @ stretch


def _sets(rng, *sizes):
    for N, M, D in sizes:
        yield _features(rng, N, D), _features(rng, M, D)


CHEAPEST = exercise(
    "13.3 · The cheapest way to a perfect score",
    cheapest,
    Part("any two sets", 2, lambda rng: _sets(rng, (7, 9, 2), (14, 8, 4), (5, 6, 1))),
    Part("fewer real examples than features", 1, lambda rng: _sets(rng, (13, 3, 4), (15, 4, 5))),
    section="2 · The Fréchet distance looks at two moments",
    mistakes="""
    mean and covariance are right, but this isn't the least change: the matrix must be symmetric
        stretch = narrow @ root(spread @ c_real @ spread) @ narrow ->
            stretch = narrow @ root(c_real)
    this has not even the covariance: the product of two roots is in the wrong order for rows
        stretch = narrow @ root(spread @ c_real @ spread) @ narrow ->
            stretch = root(c_real) @ narrow
    mean and covariance are right, but triangular roots turn the rows: that isn't the least change
        return real.mean(0) + (x - x.mean(0)) @ stretch ->
            factors = [np.linalg.cholesky(c + 1e-13 * np.eye(D)) for c in (c_x, c_real)];
            return real.mean(0) + (x - x.mean(0)) @ np.linalg.solve(factors[0].T, factors[1].T)
    only the mean is moved: the covariance must change, too
        (x - x.mean(0)) @ stretch -> (x - x.mean(0))
    each feature has the right spread, but the features' correlations are the old ones
        return real.mean(0) + (x - x.mean(0)) @ stretch ->
            return real.mean(0) + (x - x.mean(0)) * real.std(0, ddof=1) / x.std(0, ddof=1)
    the covariance is right; the mean of the real examples is missing
        return real.mean(0) + -> return 0 +
    the covariance is right; the mean of the samples must stay out of it: add that of the real ones
        return real.mean(0) + -> return x.mean(0) +
    the samples' mean must be taken off before they are stretched
        (x - x.mean(0)) @ stretch -> x @ stretch
    that moves the real examples to the samples, or would: the two sets are exchanged
        spread, narrow = root(c_x), root(c_x, -0.5) ->
            spread, narrow = root(c_real), root(c_real, -0.5)
        root(spread @ c_real @ spread) -> root(spread @ c_x @ spread)
    the root of the product is missing
        root(spread @ c_real @ spread) -> spread @ c_real @ spread
    between the roots of the samples' covariance stands the other one, from both sides
        root(spread @ c_real @ spread) -> root(c_real)
    both covariances have the denominator N − 1 (or both N): the two numbers of rows differ
        np.cov(z.T).reshape(D, D) for z -> np.cov(z.T, bias=True).reshape(D, D) for z
    """,
)


# --- 13.4 -----------------------------------------------------------------------------------
def precision_recall(x, real, k):
    def radii(points):
        within = cdist(points, points)
        np.fill_diagonal(within, np.inf)
        return np.sort(within, axis=1)[:, k - 1]

    between = cdist(x, real)
    in_real = between <= radii(real)
    in_x = between <= radii(x)[:, None]
    return in_real.any(axis=1).mean(), in_x.any(axis=0).mean()


def _lattice(rng, *sizes):
    """Points with whole-number features: some are equal, and many lie on the rim of a ball."""
    for N, M, D, k in sizes:
        x, real = rng.integers(-5, 7, (N, D)), rng.integers(-4, 5, (M, D))
        x[: N // 3] -= 18  # each set has a part that the other one lacks
        real[: M // 2] += 16
        x[1], real[1] = x[0], real[0]
        if k == 1:  # and far away, rows that lie twice in their set: their balls have radius 0
            x[-4:-2], real[-4:-2] = -60, -57
            x[-2:], real[-2:] = 63, 60
        if k == 1 and D == 2:  # another norm has another answer: a ball of radius 5 = ‖(3, 4)‖
            x[-6:-4], real[-4:-2] = [[200, 194], [196, 196]], [[200, 200], [203, 204]]
        yield x.astype(np.float64), real.astype(np.float64), k


BROKEN = exercise(
    "13.4 · These measures are broken",
    precision_recall,
    Part("the nearest neighbour", 2, lambda rng: _lattice(rng, (25, 34, 2, 1), (20, 15, 1, 1))),
    Part("the k-th neighbour", 2, lambda rng: _lattice(rng, (24, 17, 2, 3), (14, 26, 3, 2))),
    section="6 · Two questions instead of one: quality and variety",
    mistakes="""
    both bugs are still there
        np.fill_diagonal(within, np.inf) ->
        radii(x)[:, None] -> radii(real)
    a bug is left: each point counts as its own nearest neighbour
        np.fill_diagonal(within, np.inf) ->
    a bug is left: for recall the balls are those of the samples (yours measures coverage)
        radii(x)[:, None] -> radii(real)
    a point that lies exactly twice in its set has a neighbour at distance 0: leave out itself only
        np.fill_diagonal(within, np.inf) -> within[within == 0] = np.inf
    the radius reaches to the k-th neighbour: yours reaches one further
        [:, k - 1] -> [:, k]
    the mean over the balls was not the bug: a share of samples, then a share of real examples
        in_real.any(axis=1).mean(), in_x.any(axis=0).mean() ->
            in_real.any(axis=0).mean(), in_x.any(axis=1).mean()
    precision and recall are exchanged
        return right[::-1]
    for precision the balls are those of the real examples
        between <= radii(real) -> between <= radii(x)[:, None]
    a point on the rim of a ball is inside
        between <= radii(real) -> between < radii(real)
        between <= radii(x)[:, None] -> between < radii(x)[:, None]
    the distance was right: it is the Euclidean one
        within = cdist(points, points) -> within = cdist(points, points, "cityblock")
        between = cdist(x, real) -> between = cdist(x, real, "cityblock")
    the distance was right: it is the Euclidean one, not the greatest difference of a feature
        within = cdist(points, points) -> within = cdist(points, points, "chebyshev")
        between = cdist(x, real) -> between = cdist(x, real, "chebyshev")
    the distances were right; their squares need squared radii
        between = cdist(x, real) -> between = cdist(x, real) ** 2
    that is density, which counts the balls
        in_real.any(axis=1).mean() -> in_real.sum(axis=1).mean() / k
    """,
)


# --- 13.5 -----------------------------------------------------------------------------------
def energy_test(x, real, orders):
    n = len(x)
    z = np.concatenate([x, real])
    apart = np.sqrt(((z[:, None] - z) ** 2).sum(-1))

    def statistic(order):
        d = apart[order][:, order]
        inside, outside = d[:n, :n], d[n:, n:]
        inside = inside.sum() / (n * (n - 1))
        outside = outside.sum() / (len(outside) * (len(outside) - 1))
        return 2 * d[:n, n:].mean() - inside - outside

    found = statistic(np.arange(len(z)))
    reached = sum(statistic(order) >= found - 1e-5 for order in orders)
    return found, (1 + reached) / (1 + len(orders))


def _orders(rng, N, M, P):
    """Orders of the pooled rows; the second and third only change the order within the sets."""
    orders = np.stack([rng.permutation(N + M) for _ in range(P)])
    for row in orders[1:3]:
        row[:] = np.concatenate([rng.permutation(N), N + rng.permutation(M)])
    return orders.astype(np.int32)


def _tests(rng, shift, *sizes):
    for N, M, D, P in sizes:
        x, real = rng.normal(0.4, 1.7, (N, D)) + shift, rng.normal(0.4, 1.1, (M, D))
        yield x, real, _orders(rng, N, M, P)


def _like_twins(rng):
    """Sets that are more alike than chance makes them: the observed distance is negative."""
    x, real = rng.normal(0.4, 1.7, (6, 2)), rng.normal(0.4, 1.1, (7, 2))
    real[:6] = x + 0.1 * real[:6]
    yield x, real, _orders(rng, 6, 7, 20)


ENERGY = exercise(
    "13.5 · More than chance?",
    energy_test,
    Part("sets that differ", 1, lambda rng: _tests(rng, 2.5, (6, 5, 2, 30), (4, 9, 1, 25))),
    Part(
        "sets that are alike",
        2,
        lambda rng: [*_tests(rng, 0.2, (5, 8, 3, 24), (7, 4, 2, 41)), *_like_twins(rng)],
    ),
    section="4 · KID: no floor, and an error bar",
    mistakes="""
    no pair of a row with itself counts, so the mean is over n(n − 1) pairs: yours is too small
        (n * (n - 1)) -> (n * n)
        (len(outside) * (len(outside) - 1)) -> len(outside) ** 2
    each pair of different rows counts twice among n(n − 1): yours counts it once
        inside.sum() / -> inside.sum() / 2 /
        outside.sum() / -> outside.sum() / 2 /
    squares of distances see nothing but the means: it is the distance itself
        np.sqrt(((z[:, None] - z) ** 2).sum(-1)) -> ((z[:, None] - z) ** 2).sum(-1)
    the distance between the sets counts twice
        2 * d[:n, n:].mean() -> d[:n, n:].mean()
    that has the wrong sign: it must be large if the sets differ
        return 2 * d[:n, n:].mean() - inside - outside ->
            return inside + outside - 2 * d[:n, n:].mean()
    that is the root of the distance
        return np.sqrt(abs(right[0])), right[1]
    the order as it was observed is one of the orders, too: it counts above and below
        (1 + reached) / (1 + len(orders)) -> reached / len(orders)
    the order as it was observed counts below, too
        (1 + reached) / (1 + len(orders)) -> (1 + reached) / len(orders)
    the order as it was observed counts above, too
        (1 + reached) / (1 + len(orders)) -> reached / (1 + len(orders))
    an order that gives just the same distance reaches it
        >= found - 1e-5 -> > found + 1e-5
    that counts the orders that stay below
        >= found - 1e-5 -> < found - 1e-5
    an order that differs strongly in either direction is not meant: only larger distances count
        statistic(order) >= found - 1e-5 -> abs(statistic(order)) >= abs(found) - 1e-5
    the two numbers are the distance, then the share of orders
        return right[::-1]
    an order says which row stands at each place, not at which place each row stands
        d = apart[order][:, order] -> order = np.argsort(order); d = apart[order][:, order]
    """,
)


# --- 13.6 -----------------------------------------------------------------------------------
def copies_rank(n, N, allowed, alpha):
    m, chance = 0, 0.0
    while m < n:
        next_chance = hypergeom.sf(allowed, n + N, N, m + 1 + allowed)
        if next_chance > alpha:
            break
        m, chance = m + 1, next_chance
    return np.array([m, chance])


def _fixed_threshold(allowed, N, rate):
    """The chance that a mistake takes: a rate that is known."""
    return binom.sf(allowed, N, rate)


def _no_alarm(rng):
    for n, N, alpha in ((190, 7, 0.2), (55, 12, 0.22), (40, 30, 0.15)):  # the last: impossible
        yield n + int(rng.integers(9)), N, 0, alpha * number(rng, 0.9, 1.1)


def _alarms(rng):
    for n, N, allowed, alpha in ((90, 40, 3, 0.05), (61, 150, 9, 0.1), (25, 4, 2, 0.02)):
        yield n + int(rng.integers(9)), N, allowed, alpha * number(rng, 0.9, 1.1)
    yield 11 + int(rng.integers(9)), 3, 3, 0.05 * number(rng, 0.9, 1.1)  # as many as there are


COPIES = exercise(
    "13.6 · Copies, and how often the test is wrong",
    copies_rank,
    Part("no false alarm", 2, _no_alarm),
    Part("some false alarms", 2, _alarms),
    section="11 · Does the model copy?",
    mistakes="""
    the threshold is random itself, and all samples share it: the flags are not binomial
        hypergeom.sf(allowed, n + N, N, m + 1 + allowed) ->
            _fixed_threshold(allowed, N, (m + 1) / (n + 1))
    with n for n + 1, and a binomial: the threshold is a random number, and all samples share it
        hypergeom.sf(allowed, n + N, N, m + 1 + allowed) ->
            _fixed_threshold(allowed, N, (m + 1) / n)
    N times the rate of one image is the mean number of flags: the chance of any flag is smaller
        return np.array([alpha * (n + 1) // N, N * (alpha * (n + 1) // N) / (n + 1)])
    scipy's sf is the chance of more than its first argument: yours allows one flag less
        hypergeom.sf(allowed, n + N, N, m + 1 + allowed) ->
            hypergeom.sf(allowed - 1, n + N, N, m + 1 + allowed)
    more than `allowed`: exactly as many are still good
        hypergeom.sf(allowed, n + N, N, m + 1 + allowed) ->
            hypergeom.sf(allowed - 1, n + N, N, m + allowed)
    that is the chance that none is flagged, or only the allowed number
        m, chance = m + 1, next_chance -> m, chance = m + 1, 1 - next_chance
    the first rank whose chance is too large: take the one before
        [m, chance] -> [m + 1, hypergeom.sf(allowed, n + N, N, m + 1 + allowed)]
    count the places up to the m-th unseen image: m − 1 unseen images and `allowed` + 1 samples
        hypergeom.sf(allowed, n + N, N, m + 1 + allowed) ->
            hypergeom.sf(allowed, n + N, N, m + 2 + allowed)
    m may be as large as n
        while m < n -> while m < n - 1
    the first of the two numbers is m, the second is the probability
        return right[::-1]
    samples and unseen images are exchanged
        hypergeom.sf(allowed, n + N, N, m + 1 + allowed) ->
            hypergeom.sf(allowed, n + N, n, m + 1 + allowed)
    the smallest rank is not wanted: a large threshold finds more copies
        m, chance = m + 1, next_chance -> return np.array([1, next_chance])
    that looks at the places without the flags that are allowed
        hypergeom.sf(allowed, n + N, N, m + 1 + allowed) -> hypergeom.sf(allowed, n + N, N, m + 1)
    """,
)


# --- 13.7 -----------------------------------------------------------------------------------
def judged(counts):
    K = len(counts)
    i, j = np.nonzero(~np.eye(K, dtype=bool))
    eye = np.eye(K + 2)  # the methods, the side, ties
    left, right = eye[i] + eye[K] / 2, eye[j] - eye[K] / 2
    neither = (eye[i] + eye[j]) / 2 + eye[K + 1]
    exponents = np.stack([left, right, neither], axis=1)
    seen = counts[i, j]
    w = np.zeros(K + 2)
    for _ in range(25):
        p = softmax(exponents @ w, axis=1) * seen.sum(1, keepdims=True)
        mean = np.einsum("po,pok->pk", p, exponents) / np.maximum(p.sum(1, keepdims=True), 1e-9)
        about = exponents - mean[:, None]
        curvature = np.einsum("po,pok,pol->kl", p, about, about)
        step = np.linalg.pinv(curvature) @ np.einsum("po,pok->k", seen - p, exponents)
        w = w + step / max(1, 2 * np.abs(step).max())
    theta = w[:K] - w[:K].mean()
    return np.concatenate([theta, [w[K], np.exp(w[K + 1])]])


def _judgements(rng, K, side, nu, *never):
    """Counts [K, K, 3] with `never`: ordered pairs that were not shown."""
    theta = rng.permutation(np.linspace(-0.9, 0.8, K)) + rng.uniform(-0.15, 0.15, K)
    counts = np.zeros((K, K, 3))
    for i in range(K):
        for j in range(K):
            if i != j and (i, j) not in never:
                half = (theta[i] - theta[j] + side) / 2
                p = softmax([half, -half, np.log(nu)])
                counts[i, j] = rng.multinomial(rng.integers(30, 90), p) + 1
    return counts


def _two(rng):
    yield (_judgements(rng, 2, number(rng, 0.5, 0.9), number(rng, 0.4, 0.8)),)
    yield (_judgements(rng, 2, -number(rng, 0.5, 0.9), number(rng, 1.3, 1.8)),)


def _several(rng):
    one_sided = (0, 1), (2, 0), (1, 2)
    yield (_judgements(rng, 3, number(rng, 0.6, 0.9), number(rng, 0.4, 0.7), *one_sided),)
    apart = (0, 3), (3, 0), (1, 0), (2, 3)
    yield (_judgements(rng, 4, -number(rng, 0.4, 0.7), number(rng, 0.7, 1.2), *apart),)


STRETCH = exercise(
    "13.7 · Judges who like the left side",
    judged,
    Part("two methods", 2, _two),
    Part("several, not all shown on both sides", 3, _several),
    section="13 · Ask people",
    mistakes="""
    the side is left out of the model
        eye[i] + eye[K] / 2, eye[j] - eye[K] / 2 -> eye[i], eye[j]
    the side has the wrong sign: β is positive if the left one is preferred
        [w[K], -> [-w[K],
    β is the whole difference between left and right
        [w[K], -> [w[K] / 2,
    β divides equally between left and right: a tie has half of it in the exponent, as in the model
        neither = (eye[i] + eye[j]) / 2 + eye[K + 1] ->
            neither = (eye[i] + eye[j] - eye[K]) / 2 + eye[K + 1]
    that is the logarithm of ν
        np.exp(w[K + 1])] -> w[K + 1]]
    the strengths must add up to 0
        theta = w[:K] - w[:K].mean() -> theta = w[:K] - w[0]
    those are the exponentials of the strengths
        theta = w[:K] - w[:K].mean() -> theta = np.exp(w[:K] - w[:K].mean())
    a tie is not half a win for each: it is an outcome of its own, with ν
        exponents = np.stack([left, right, neither], axis=1) ->
            exponents = np.stack([left, right], axis=1)
        seen = counts[i, j] -> seen = counts[i, j, :2] + counts[i, j, 2:] / 2
    ties are left out: they tell, too, which methods are close
        exponents = np.stack([left, right, neither], axis=1) ->
            exponents = np.stack([left, right], axis=1)
        seen = counts[i, j] -> seen = counts[i, j, :2]
    the first index is the method on the left
        seen = counts[i, j] -> seen = counts[j, i]
    the first of the three outcomes is that the left one is preferred: yours is the right one
        seen = counts[i, j] -> seen = counts[i, j][:, [1, 0, 2]]
    an arrangement that was shown often counts more: those are shares of its judgements
        seen = counts[i, j] -> seen = counts[i, j] / np.maximum(counts[i, j].sum(1)[:, None], 1)
    the second of the three outcomes is that the right one is preferred, and the third is a tie
        seen = counts[i, j] -> seen = counts[i, j][:, [0, 2, 1]]
    in a tie both methods have half their strength in the exponent
        (eye[i] + eye[j]) / 2 + eye[K + 1] -> 0 * eye[i] + eye[K + 1]
    in a tie both methods have half their strength in the exponent: yours have all of it
        (eye[i] + eye[j]) / 2 + eye[K + 1] -> eye[i] + eye[j] + eye[K + 1]
    """,
    rtol=5e-4,  # minimisers stop at about 1e-4
    atol=2e-4,
)


# --- 13.8 -----------------------------------------------------------------------------------
REPORT = Written(
    "13.8", "A report of results", 3, section="3 · How many samples? The floor falls like 1/N"
)
