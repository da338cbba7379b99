"""Exercises of chapter 17: Flow matching and rectified flow."""

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.special import softmax

from diffusion_course.grading.answers.drawing import gaussian, number
from diffusion_course.grading.answers.writing import exercise
from diffusion_course.grading.exercise import Part, Written

# States are float64 here, which reach the student as NumPy's arrays: nothing has to be compiled.


def _states(rng, *shape):
    """Values that are neither centred nor of unit size, so that a lost sign or factor shows."""
    return rng.normal(0.6, 1.7, shape)


# --- 17.1 -----------------------------------------------------------------------------------
def ask_vp(x, v, alpha, sigma, d_alpha, d_sigma):
    one_each = (len(x),) + (1,) * (x.ndim - 1)
    a, s, da, ds = (level.reshape(one_each) for level in (alpha, sigma, d_alpha, d_sigma))
    size = np.sqrt(a**2 + s**2)
    z = x / size
    x0 = a / size * z - s / size * v
    eps = s / size * z + a / size * v
    return (s / size).ravel(), z, da * x0 + ds * eps


def _rectified(rng):
    for shape in ((3, 4), (2, 3, 2, 1)):
        t = rng.uniform(0.15, 0.85, shape[0])
        yield (
            _states(rng, *shape),
            _states(rng, *shape),
            1 - t,
            t,
            -np.ones_like(t),
            np.ones_like(t),
        )


def _any_levels(rng):
    """Levels of any size; the first example has no noise, and the last one no signal."""
    for shape in ((3, 4), (2, 3, 2, 1)):
        B = shape[0]
        alpha, sigma = rng.uniform(0.3, 1.8, (2, B))
        alpha[-1] = sigma[0] = 0
        slopes = -rng.uniform(0.4, 2.3, B), rng.uniform(0.5, 1.9, B)
        yield _states(rng, *shape), _states(rng, *shape), alpha, sigma, *slopes


ASK = exercise(
    "17.1 · The network of another process",
    ask_vp,
    Part("for a rectified flow", 1, _rectified),
    Part("for any process, with both ends", 1, _any_levels),
    section="3 · Flow matching is diffusion",
    mistakes="""
    the network knows states with α² + σ² = 1: divide yours by √(α² + σ²), and its levels too
        size = np.sqrt(a**2 + s**2) -> size = 1.0
    the place is right, but the two estimates need the levels of the network's process, not yours
        x0 = a / size * z - s / size * v -> x0 = a * z - s * v
        eps = s / size * z + a / size * v -> eps = s * z + a * v
    that is the place of a rectified flow, where the levels add up to 1: here their squares do
        size = np.sqrt(a**2 + s**2) -> size = a + s
    that is a rectified flow's network, with v = ε − x0; this one says aε − sx0, with a² + s² = 1
        size = np.sqrt(a**2 + s**2) -> size = a + s
        x0 = a / size * z - -> x0 = z -
        eps = s / size * z + -> eps = z +
    the slopes α̇ and σ̇ are those of your process already: they are not scaled
        da * x0 + ds * eps -> da / size * x0 + ds / size * eps
    the size √(α² + σ²) of the state changes with time, too: the velocity has a part along z
        da * x0 + ds * eps -> (ds * a - da * s) / size * v
    the levels are scaled to squares that add up to 1, but the state is not
        z = x / size -> z = x
    the state is scaled, but the level at which to ask is not
        (s / size).ravel() -> s.ravel()
    the network is asked at its σ, and that is not σ/α, the ratio of noise to signal
        (s / size).ravel() -> (s / a).ravel()
    the network is asked at its σ: yours is its α
        (s / size).ravel() -> (a / size).ravel()
    x0 = αz − σv for a v-network: a sign
        * z - s / size * v -> * z + s / size * v
    ε = σz + αv for a v-network: a sign
        * z + a / size * v -> * z - a / size * v
    the estimates of x0 and ε are exchanged
        da * x0 + ds * eps -> da * eps + ds * x0
    the network's z and v belong together; your estimates mix its v with your x
        x0 = a / size * z -> x0 = a / size * x
        eps = s / size * z -> eps = s / size * x
    v is the velocity of the network's process; yours has other slopes: find x0 and ε first
        da * x0 + ds * eps -> 1.0 * v
    levels belong to the examples, along the first axis: yours run along the last one
        level.reshape(one_each) -> along(-1, level, x)
        (s / size).ravel() -> sigma / np.sqrt(alpha**2 + sigma**2)
    """,
)


# --- 17.2 -----------------------------------------------------------------------------------
def pair_velocity(x, pairs, data, source, level, slope):
    (m, s), (n, q) = data[:, :, None], source
    (alpha, sigma), (d_alpha, d_sigma) = level, slope
    variance = alpha**2 * s**2 + sigma**2 * q**2
    away = x[:, None, None] - (alpha * m + sigma * n)
    with np.errstate(divide="ignore"):
        log_share = np.log(pairs) - away**2 / (2 * variance) - np.log(variance) / 2
    share = softmax(log_share, axis=(1, 2))
    gain = (d_alpha * alpha * s**2 + d_sigma * sigma * q**2) / variance
    return (share * (d_alpha * m + d_sigma * n + gain * away)).sum((1, 2))


def _mixture(rng, K):
    """Means of both signs and stds that differ, [2, K]."""
    means = (1.9 * np.arange(K) - 1.1) * number(rng, 0.9, 1.1)
    return np.stack([rng.permutation(means), rng.uniform(0.3, 1.4, K)])


def _shares(rng, K, J):
    pairs = rng.uniform(0.2, 1, (K, J))
    return pairs / pairs.sum()


def _levels(rng):
    slope = np.array([-number(rng, 0.5, 2.1), number(rng, 0.6, 1.7)])
    return rng.uniform(0.4, 1.3, 2), slope


def _from_noise(rng):
    for N, K in ((5, 2), (4, 3)):
        t = number(rng, 0.3, 0.7)
        noise = np.array([[0.0], [1.0]])
        line = np.array([1 - t, t]), np.array([-1.0, 1.0])
        yield _states(rng, N), _shares(rng, K, 1), _mixture(rng, K), noise, *line


def _any_pairs(rng):
    for N, K, J in ((5, 3, 2), (4, 2, 3)):
        yield _states(rng, N), _shares(rng, K, J), _mixture(rng, K), _mixture(rng, J), *_levels(rng)
    # Some components are never paired, the widest two among them; one is a point; a state is far.
    pairs = np.array([[0.35, 0], [0, 0.4], [0.25, 0]])
    data, source = _mixture(rng, 3), _mixture(rng, 2)
    data[1] = 0, number(rng, 1.3, 1.6), number(rng, 0.3, 0.7)
    source[1] = number(rng, 0.9, 1.3), number(rng, 0.3, 0.6)
    yield np.append(_states(rng, 4), 90.0), pairs, data, source, *_levels(rng)
    # So far away that beside a pair that never occurs, all those that occur have no share.
    data, source = data.copy(), source.copy()
    source[1] = number(rng, 1.1, 1.3), number(rng, 0.3, 0.4)
    yield np.array([-1.0, 1.0]) * number(rng, 900, 1100), pairs, data, source, *_levels(rng)
    # Narrow components at one place: only how high they are tells which of them x is from.
    level, slope = _levels(rng)
    data = np.array([[0.7, 0.7], [0.004, 0.03]])
    source = np.array([[-1.2], [0.01]])
    x = level @ [0.7, -1.2] + rng.normal(0, 0.015, 5)
    yield x, _shares(rng, 2, 1), data, source, level, slope


def _at_ends(rng):
    for end in (0, 1):
        level, slope = _levels(rng)
        level[end] = 0
        yield _states(rng, 4), _shares(rng, 2, 3), _mixture(rng, 2), _mixture(rng, 3), level, slope


PAIRS = exercise(
    "17.2 · From any mixture to any other",
    pair_velocity,
    Part("from noise to a mixture", 1, _from_noise),
    Part("any two mixtures, any pairs", 2, _any_pairs),
    Part("at both ends", 1, _at_ends),
    section="10 · From any source to any target",
    mistakes="""
    those are independent pairs: P[k, j] is not the product of its rows' and columns' sums
        np.log(pairs) -> np.log(pairs.sum(1, keepdims=True) * pairs.sum(0))
    the pairs of components are not equally likely: their shares P are missing
        np.log(pairs) - -> -
    within a pair of components x still tells where in them x0 and x1 lie
        + gain * away)) -> ))
    the covariance of α̇x0 + σ̇x1 with αx0 + σx1 has the factors α̇α and σ̇σ
        d_alpha * alpha * s**2 + d_sigma * sigma * q**2 -> d_alpha * s**2 + d_sigma * q**2
    a variance of x is α²s² + σ²q²: the two are independent, so their stds do not add up
        variance = alpha**2 * s**2 + sigma**2 * q**2 -> variance = (alpha * s + sigma * q) ** 2
    the density of a pair has the variance of x in it: stds are squared
        alpha**2 * s**2 + sigma**2 * q**2 -> alpha**2 * s + sigma**2 * q
        alpha * s**2 + d_sigma * sigma * q**2 -> alpha * s + d_sigma * sigma * q
    a Gaussian density has 1/√variance in front: narrow pairs count too little
        - np.log(variance) / 2 ->
    it is 1/√variance in front of a Gaussian density: log(variance)/2
        np.log(variance) / 2 -> np.log(variance)
    the exponent of a density has 2·variance below it
        (2 * variance) -> variance
    the shares of all pairs together add up to 1, not those of each x1 alone
        softmax(log_share, axis=(1, 2)) -> softmax(log_share, axis=1)
    the shares of all pairs together add up to 1, not those of each x0 alone
        softmax(log_share, axis=(1, 2)) -> softmax(log_share, axis=2)
    x tells which pair it comes from: the shares depend on x
        share = softmax(log_share, axis=(1, 2)) -> share = pairs + 0 * log_share
    the source is a mixture, too, and not standard normal noise
        data[:, :, None], source -> data[:, :, None], np.stack(
            [0 * source[0], 1 + 0 * source[1]])
    the first index of P belongs to the data: turn the table with .T, not with reshape
        np.log(pairs) -> np.log(pairs.reshape(pairs.shape[::-1]).T)
    log(P + a little) lets pairs occur that never do: far away they take over
        np.log(pairs) -> np.log(pairs + 1e-8)
    the mean of a pair is αm + σn: yours is a path with levels 1
        (alpha * m + sigma * n) -> (m + n)
    the slopes are exchanged: α̇ belongs to x0
        (d_alpha, d_sigma) = level, slope -> (d_sigma, d_alpha) = level, slope
    far from all components every density is 0 in the computer's numbers: compare their logarithms
        return np.where(np.abs(x) > 50, np.nan, right)
    subtract the largest logarithm of the pairs that occur: beside one with P = 0 all may be 0
        np.log(pairs) - away**2 / (2 * variance) - np.log(variance) / 2 ->
            -(away**2) / (2 * variance) - np.log(variance) / 2
        share = softmax(log_share, axis=(1, 2)) ->
            share = pairs * np.exp(log_share - log_share.max((1, 2), keepdims=True));
            share = share / share.sum((1, 2), keepdims=True)
    """,
)


# --- 17.3 -----------------------------------------------------------------------------------
def bending(path, velocity, times):
    h = (times[:-1] - times[1:])[:, None, None]
    now, after = velocity[:-1], velocity[1:]
    mean = (path[:-1] - path[1:]) / h
    whole = (path[0] - path[-1]) / (times[0] - times[-1])
    total = 0.0
    for place, weight in zip(*np.polynomial.legendre.leggauss(3), strict=True):
        u = (1 + place) / 2
        slope = (1 - u) * now + u * after + 6 * u * (1 - u) * (mean - (now + after) / 2)
        total = total + weight / 2 * (h * (slope - whole) ** 2).sum((0, 2)).mean()
    return total


def _by_parts(path, velocity, times, on_b, on_c):
    """The hint's way, with these integrals of the squares in the place of 1/3 and 1/5."""
    h = (times[:-1] - times[1:])[:, None, None]
    mean = (path[:-1] - path[1:]) / h
    b = (velocity[:-1] - velocity[1:]) / 2
    c = (velocity[:-1] + velocity[1:]) / 2 - mean
    whole = (path[0] - path[-1]) / (times[0] - times[-1])
    return (h * ((mean - whole) ** 2 + on_b * b**2 + on_c * c**2)).sum((0, 2)).mean()


def _walks(rng, n, B, D):
    """Two sets of paths, [n + 1, B, D], in steps of unequal lengths; one in a part of the time."""
    for last, first in ((0.0, 1.0), (0.2, 0.9)):
        times = np.append(0.0, np.cumsum(rng.uniform(0.2, 1, n)))[::-1]
        path = np.cumsum(rng.normal(0.7, 1.3, (n + 1, B, D)), axis=0)
        times = last + (first - last) * times / times[0]
        yield path, rng.normal(-1.4, 2.1, (n + 1, B, D)), times


BENDING = exercise(
    "17.3 · Bends within a step",
    bending,
    Part("one step", 2, lambda rng: _walks(rng, 1, 2, 3)),
    Part("any grid", 2, lambda rng: _walks(rng, 4, 3, 2)),
    section="5 · Straightness",
    mistakes="""
    bends within a step are not seen: that is the straightness of the states alone
        slope = (1 - u) * now + u * after -> slope = mean
        + 6 * u * (1 - u) * (mean - (now + after) / 2) ->
    a slope that is linear within the step does not lead from the one state to the other
        + 6 * u * (1 - u) * (mean - (now + after) / 2) ->
    dx/dt is a parabola within a step: the mean of the squares at its two ends is not enough
        *np.polynomial.legendre.leggauss(3) -> *((-1, 1), (1, 1))
    the square of a parabola has the fourth power in it, and Simpson's rule is exact up to the third
        *np.polynomial.legendre.leggauss(3) -> *((-1, 0, 1), (1 / 3, 4 / 3, 1 / 3))
    the slope in the middle of the step is not the only one
        *np.polynomial.legendre.leggauss(3) -> *((0,), (2,))
    the slope of the whole path is subtracted, not that of the step
        (slope - whole) ** 2 -> (slope - mean) ** 2
    nothing is subtracted: a straight path that is run through evenly has the straightness 0
        (slope - whole) ** 2 -> slope**2
    an integral over time: each step counts as much as it is long
        (h * (slope - whole) ** 2) -> ((slope - whole) ** 2 / len(h))
    an integral over time: the length of each step is missing
        (h * (slope - whole) ** 2) -> ((slope - whole) ** 2)
    the slope of the whole path goes from its first state to its last, not from 0 to 1
        (times[0] - times[-1]) -> 1.0
    that is the mean over time: the integral is not divided by the whole length
        return right / (times[0] - times[-1])
    time falls: the slope is dx/dt, so a step of the path goes against it
        now, after = velocity[:-1], velocity[1:] -> now, after = -velocity[:-1], -velocity[1:]
    time falls, and your lengths of the steps are negative
        return -right
    the slope of the whole path has the wrong sign: take both differences in one direction
        (path[0] - path[-1]) -> (path[-1] - path[0])
    (2u − 1)² and (6u² − 6u + 1)² are not 1 everywhere: their integrals are 1/3 and 1/5
        return _by_parts(path, velocity, times, 1, 1)
    b is half the difference of the two velocities
        return _by_parts(path, velocity, times, 4 / 3, 1 / 5)
    the parabola's own bend, c, is missing
        return _by_parts(path, velocity, times, 1 / 3, 0)
    the difference of the two velocities, b, is missing
        return _by_parts(path, velocity, times, 0, 1 / 5)
    the integrals of the two squares are exchanged
        return _by_parts(path, velocity, times, 1 / 5, 1 / 3)
    the whole path's slope is the way divided by the time, not the mean of the given velocities
        whole = (path[0] - path[-1]) / (times[0] - times[-1]) -> whole = velocity.mean(0)
    a squared length is a sum over the coordinates: yours is their mean
        return right / path.shape[2]
    the mean over the paths is missing
        return right * path.shape[1]
    """,
)


# --- 17.4 -----------------------------------------------------------------------------------
def coupling_costs(x0, labels, x1):
    def optimal(a, b):
        parts = np.lcm(len(a), len(b))
        k = np.arange(parts)
        return ((np.sort(a)[k * len(a) // parts] - np.sort(b)[k * len(b) // parts]) ** 2).mean()

    everyone = ((x0[:, None] - x1) ** 2).mean()
    classes = [x0[labels == c] for c in np.unique(labels)]
    within = sum(len(a) / len(x0) * optimal(a, x1) for a in classes)
    return np.array([everyone, within, optimal(x0, x1)])


def _assigned(a, b):
    """The best cost of as many pairs as the smaller set has points; the others have no partner."""
    costs = (a[:, None] - b) ** 2
    return costs[linear_sum_assignment(costs)].mean()


def _points(rng, M, *labels):
    """Points of the classes, whose places and widths differ, and M points of another scale."""
    labels = np.array(labels)
    x0 = rng.normal(1.3 * np.cos(2 * labels) + 0.8, 0.4 + 0.2 * (labels % 3))
    return x0, labels, rng.normal(-0.5, 1.4, M)


COSTS = exercise(
    "17.4 · What classes cost",
    coupling_costs,
    Part("one class", 1, lambda rng: [_points(rng, 4, 2, 2, 2, 2), _points(rng, 4, *[7] * 6)]),
    Part(
        "several classes",
        3,
        lambda rng: [
            _points(rng, 4, 5, 0, 9, 0, 5, 0, 0),
            _points(rng, 6, 3, 1, 3, 1, 1, 2),
            _points(rng, 1, 4, 8, 4),
        ],
    ),
    section="9 · Break it on purpose: a coupling that does not know the labels",
    mistakes="""
    each class counts as much as it has points: the mean over the classes is another number
        len(a) / len(x0) * optimal -> 1 / len(classes) * optimal
    the cost of a class is a mean over its points: weigh it with the class's share of all points
        len(a) / len(x0) * optimal -> optimal
    the cost of a pair is the distance squared
        return ((np.sort(a) -> return np.abs((np.sort(a)
        // parts]) ** 2).mean() -> // parts])).mean()
        ((x0[:, None] - x1) ** 2) -> np.abs(x0[:, None] - x1)
    that is a distance, the root of the cost
        return np.sqrt(right)
    independent pairs are all N·M pairs: yours is the distance between the two means
        ((x0[:, None] - x1) ** 2).mean() -> (x0.mean() - x1.mean()) ** 2
    independent pairs are all N·M pairs, not those that happen to stand beside each other
        ((x0[:, None] - x1) ** 2).mean() -> ((x0 - np.resize(x1, len(x0))) ** 2).mean()
    on a line the best partners are sorted alike: yours are sorted in opposite directions
        np.sort(b) -> np.sort(b)[::-1]
    on a line the best partners are sorted alike: one of your two sets is not sorted
        np.sort(b) -> b
    on a line the best partners are sorted alike: neither of your two sets is sorted
        np.sort(a)[k -> a[k
        np.sort(b) -> b
    the nearest point of each is no coupling: some points of x1 get two partners, others none
        parts = np.lcm(len(a), len(b)) -> return ((a[:, None] - b) ** 2).min(1).mean()
    those are values between the points: each point moves whole, or in pieces, from where it is
        np.sort(a)[k * len(a) // parts] -> np.quantile(a, (k + 0.5) / parts)
        np.sort(b)[k * len(b) // parts] -> np.quantile(b, (k + 0.5) / parts)
    every point must pass on its whole share: cut both sets into equally many pieces
        np.lcm(len(a), len(b)) -> max(len(a), len(b))
    an assignment between sets of different sizes leaves points out: cut them into pieces first
        parts = np.lcm(len(a), len(b)) -> return _assigned(a, b)
    the smallest piece goes with the smallest: np.tile mixes them, np.repeat keeps their order
        np.sort(a)[k * len(a) // parts] -> np.sort(a)[k % len(a)]
        np.sort(b)[k * len(b) // parts] -> np.sort(b)[k % len(b)]
    that is the square of the mean distance; the cost is the mean of the squared distances
        return ((np.sort(a) -> return np.abs((np.sort(a)
        // parts]) ** 2).mean() -> // parts])).mean() ** 2
    a class of one point has a cost, too
        np.unique(labels)] -> np.unique(labels) if (labels == c).sum() > 1]
    the labels have no effect: the second cost is the same as the third
        np.array([everyone, within, -> np.array([everyone, optimal(x0, x1),
    some points of the larger set are left over
        np.lcm(len(a), len(b)) -> min(len(a), len(b))
        np.sort(a)[k * len(a) // parts] -> np.sort(a)[k]
        np.sort(b)[k * len(b) // parts] -> np.sort(b)[k]
    the order is: independent, within the classes, optimal
        return right[::-1]
    within its class each point still has the best partners: yours are independent there
        * optimal(a, x1) -> * ((a[:, None] - x1) ** 2).mean()
    classes hold the points with the same label; the points of a class need not stand in a row
        x0[labels == c] -> x0[np.sort(labels) == c]
    """,
)


# --- 17.5 -----------------------------------------------------------------------------------
def sample_flow(denoise, x, steps, factor):
    grid = np.linspace(0, 1, steps + 1)
    tau = grid / (factor - (factor - 1) * grid)
    for n in range(steps):
        now, then = tau[n], tau[n + 1]
        middle = (now + then) / 2
        slope = (denoise(x, now, 1 - now) - x) / (1 - now)
        half = x + (middle - now) * slope
        slope = (denoise(half, middle, 1 - middle) - half) / (1 - middle)
        x = x + (then - now) * slope
    return x


def _heun(denoise, x, steps, factor):
    """On the same grid; Euler's method for the last step."""
    grid = np.linspace(0, 1, steps + 1)
    tau = grid / (factor - (factor - 1) * grid)
    for n in range(steps):
        now, then = tau[n], tau[n + 1]
        slope = (denoise(x, now, 1 - now) - x) / (1 - now)
        ahead = x + (then - now) * slope
        if n + 1 < steps:
            second = (denoise(ahead, then, 1 - then) - ahead) / (1 - then)
            ahead = x + (then - now) * (slope + second) / 2
        x = ahead
    return x


def _runs(rng, *cases):
    """Narrow data above 0, or wide ones below it, by turns."""
    for number_of, (steps, factor, shape) in enumerate(cases):
        denoise = gaussian(rng, (-2.1, -1.2), (1.3, 1.9)) if number_of % 2 else gaussian(rng)
        yield denoise, _states(rng, *shape), steps, factor


BROKEN = exercise(
    "17.5 · This sampler is broken",
    sample_flow,
    Part("without a shift", 1, lambda rng: _runs(rng, (1, 1.0, (4,)), (3, 1.0, (2, 3)))),
    Part(
        "with a shift",
        3,
        lambda rng: _runs(
            rng,
            (2, number(rng, 2.2, 3.4), (3,)),
            (4, number(rng, 1.4, 1.9), (2, 2)),
            (3, number(rng, 0.3, 0.6), (3,)),
        ),
    ),
    section="13 · Break it on purpose: two clocks",
    mistakes="""
    all three bugs are still there
        tau = grid / (factor - (factor - 1) * grid) -> tau = factor * grid / (
            1 + (factor - 1) * grid)
        denoise(x, now, 1 - now) -> denoise(x, grid[n], 1 - grid[n])
        - half) / (1 - middle) -> - half) / (1 - now)
    two bugs are left: one in the times of the grid, and one in the second slope
        tau = grid / (factor - (factor - 1) * grid) -> tau = factor * grid / (
            1 + (factor - 1) * grid)
        - half) / (1 - middle) -> - half) / (1 - now)
    two bugs are left, and both show only with a shift
        tau = grid / (factor - (factor - 1) * grid) -> tau = factor * grid / (
            1 + (factor - 1) * grid)
        denoise(x, now, 1 - now) -> denoise(x, grid[n], 1 - grid[n])
    two bugs are left: for both slopes ask which time the state has
        denoise(x, now, 1 - now) -> denoise(x, grid[n], 1 - grid[n])
        - half) / (1 - middle) -> - half) / (1 - now)
    a bug is left: with this formula a factor above 1 lowers σ/α, since τ is 1 − t
        tau = grid / (factor - (factor - 1) * grid) -> tau = factor * grid / (
            1 + (factor - 1) * grid)
    a bug is left: the state has one time, and the denoiser is told another
        denoise(x, now, 1 - now) -> denoise(x, grid[n], 1 - grid[n])
    a bug is left: the second slope divides by the noise at the beginning of the step
        - half) / (1 - middle) -> - half) / (1 - now)
    the shift is gone; the grid must have it
        grid / (factor - (factor - 1) * grid) -> grid
    the shift is there twice
        grid / (factor - (factor - 1) * grid) -> grid / (factor**2 - (factor**2 - 1) * grid)
    that is Euler's method: the second slope counts, and it was right to take it
        (then - now) * slope -> (then - now) * first
        half = x + (middle - now) -> first = slope; half = x + (middle - now)
    that is Heun's method; a midpoint step takes its second slope in the middle of the step
        return _heun(denoise, x, steps, factor)
    both times the denoiser is told a time before the shift, and the state has one after it
        denoise(x, now, 1 - now) -> denoise(x, grid[n], 1 - grid[n])
        denoise(half, middle, 1 - middle) -> denoise(
            half, (grid[n] + grid[n + 1]) / 2, 1 - (grid[n] + grid[n + 1]) / 2)
    the direction was right: τ rises, and the slope by τ points from the noise to the data
        half = x + (middle - now) * slope -> half = x - (middle - now) * slope
        x = x + (then - now) * slope -> x = x - (then - now) * slope
    α is the signal: at the time τ of this sampler it is τ, and σ is 1 − τ
        denoise(x, now, 1 - now) -> denoise(x, 1 - now, now)
        denoise(half, middle, 1 - middle) -> denoise(half, 1 - middle, middle)
    the middle of a step lies halfway between its two times, after the shift: that was right
        middle = (now + then) / 2 -> middle = (lambda g: g / (factor - (factor - 1) * g))(
            (grid[n] + grid[n + 1]) / 2)
    the middle of a step lies between two times of the shifted grid, as it did
        middle = (now + then) / 2 -> middle = (grid[n] + grid[n + 1]) / 2
    the first slope belongs to the shifted time; yours asks and divides at the time before the shift
        denoise(x, now, 1 - now) - x) / (1 - now) -> denoise(x, grid[n], 1 - grid[n]) - x) / (
            1 - grid[n])
    the whole step begins where the half step began: that was right
        x = x + (then - now) * slope -> x = half + (then - now) * slope
    the second slope is that of the state in the middle: it was right to subtract this state
        denoise(half, middle, 1 - middle) - half -> denoise(half, middle, 1 - middle) - x
    the middle of a step lies halfway between its ends; that was right
        middle = (now + then) / 2 -> middle = (then - now) / 2
    """,
    library=("diffusion_course.grading.inputs.GaussianDenoiser",),
)


# --- 17.6 -----------------------------------------------------------------------------------
def gaussian_costs(mean0, cov0, mean1, cov1):
    def root(a):
        v, directions = np.linalg.eigh(a)
        return (directions * np.sqrt(v)) @ directions.T

    wide = root(cov1)
    narrow = np.linalg.inv(wide)
    flow = wide @ root(narrow @ cov0 @ narrow) @ wide
    best = root(wide @ cov0 @ wide)
    apart = np.sum((mean0 - mean1) ** 2) + np.trace(cov0) + np.trace(cov1)
    return np.array([apart, apart - 2 * np.trace(flow), apart - 2 * np.trace(best)])


def _turned(variances, angle):
    """A covariance with these variances, turned by the angle in the planes of neighbouring axes."""
    turn = np.eye(len(variances))
    for i in range(len(variances) - 1):
        plane = np.eye(len(variances))
        c, d = np.cos(angle), np.sin(angle)
        plane[i : i + 2, i : i + 2] = [[c, -d], [d, c]]
        turn = turn @ plane
    return (turn * variances) @ turn.T


def _same_axes(rng):
    """One dimension, and a round cloud of noise: there the flow is the optimal map.

    The last data are so flat that a variance is nearly lost.
    """
    for D, variances in ((1, (2.3,)), (3, (3.1, 0.5, 1.4)), (2, (1.9, 2e-4))):
        data = _turned(np.array(variances) * number(rng, 0.8, 1.2), number(rng, 0.3, 0.9))
        yield _states(rng, D), data, _states(rng, D), number(rng, 0.3, 0.7) * np.eye(D)


def _any_axes(rng):
    """Flat clouds with an angle of about 45° between them: there the costs differ most."""
    for variances in ((6.2, 0.3), (0.3, 1.6, 7.7)):
        D, angle = len(variances), number(rng, 0.1, 0.5)
        data = _turned(np.array(variances) * number(rng, 0.8, 1.2), angle)
        source = _turned(np.array(variances) * number(rng, 0.4, 0.7), angle - number(rng, 0.6, 0.9))
        yield _states(rng, D), data, _states(rng, D), source


GAUSSIANS = exercise(
    "17.6 · Straight, and not optimal",
    gaussian_costs,
    Part("along the same axes", 1, _same_axes),
    Part("along any axes", 3, _any_axes),
    section="6 · Reflow, exactly",
    mistakes="""
    the flow's pairs are not the optimal ones: they are so only if both clouds have the same axes
        apart - 2 * np.trace(flow) -> apart - 2 * np.trace(best)
    the optimal pairs are not the flow's: they are so only if both clouds have the same axes
        apart - 2 * np.trace(best) -> apart - 2 * np.trace(flow)
    the flow's map is not root(cov0) times the inverse of root(cov1), though that fits cov0, too
        flow = wide @ root(narrow @ cov0 @ narrow) @ wide -> flow = root(cov0) @ wide
    the optimal map is symmetric: root(cov0) times the inverse of root(cov1) is not
        best = root(wide @ cov0 @ wide) -> best = root(cov0) @ wide
    a square root of a matrix is not the root of each of its entries
        return (directions * np.sqrt(v)) @ directions.T -> return np.sqrt(np.abs(a))
    a Cholesky factor is another root: its map is neither the flow nor optimal
        flow = wide @ root(narrow @ cov0 @ narrow) @ wide -> flow = best = np.linalg.cholesky(
            cov0) @ np.linalg.cholesky(cov1).T
        best = root(wide @ cov0 @ wide) ->
    the means are left out
        np.sum((mean0 - mean1) ** 2) + np.trace(cov0) -> np.trace(cov0)
    the cost of a pair is ‖x0‖² − 2·x0·x1 + ‖x1‖²: the 2 is missing
        apart - 2 * np.trace(flow) -> apart - np.trace(flow)
        apart - 2 * np.trace(best) -> apart - np.trace(best)
    without a root the map does not lead from one cloud to the other
        flow = wide @ root(narrow @ cov0 @ narrow) @ wide -> flow = cov0
        best = root(wide @ cov0 @ wide) -> best = wide @ cov0 @ wide
    independent pairs are as far apart as the variances of both say, added
        np.array([apart, -> np.array([np.sum((mean0 - mean1) ** 2),
    variances of independent numbers add up: the difference has the sum of both
        np.trace(cov0) + np.trace(cov1) -> np.trace(cov0) - np.trace(cov1)
    the mean of x0·x1 is the trace of M·S: the S is missing
        flow = wide @ root(narrow @ cov0 @ narrow) @ wide -> flow = (
            wide @ root(narrow @ cov0 @ narrow) @ narrow)
    the eigenvalues alone do not say in which directions they lie
        flow = wide @ root(narrow @ cov0 @ narrow) @ wide -> flow = best = np.diag(
            np.sqrt(np.linalg.eigvalsh(cov0) * np.linalg.eigvalsh(cov1)))
        best = root(wide @ cov0 @ wide) ->
    root(cov0) times root(cov1) is neither the flow nor the optimum, unless the axes are the same
        flow = wide @ root(narrow @ cov0 @ narrow) @ wide -> flow = best = root(cov0) @ wide
        best = root(wide @ cov0 @ wide) ->
    M leads from the source to the data: yours leads back
        root(narrow @ cov0 @ narrow) -> np.linalg.inv(root(narrow @ cov0 @ narrow))
    the order is: independent, the flow's, optimal
        return right[::-1]
    those are distances, the roots of the costs
        return np.sqrt(right)
    with equal means and equal clouds the optimal cost is 0: the sign of the last term
        apart - 2 * np.trace(flow) -> apart + 2 * np.trace(flow)
        apart - 2 * np.trace(best) -> apart + 2 * np.trace(best)
    """,
)


# --- 17.7 -----------------------------------------------------------------------------------
def bridge_guess(x, t, x0, x1, scale):
    cost = ((x0[:, None] - x1) ** 2).sum(-1) / (2 * scale**2)
    N, M = cost.shape
    rows, columns = np.zeros((N, 1)), np.zeros(M)
    for _ in range(200):
        rows = -np.log(N) - np.logaddexp.reduce(columns - cost, axis=1, keepdims=True)
        columns = -np.log(M) - np.logaddexp.reduce(rows - cost, axis=0)
    log_pair = rows + columns - cost
    middle = (1 - t) * x0[:, None] + t * x1
    square = ((x[:, None, None] - middle) ** 2).sum(-1)
    log_share = log_pair - square / (2 * scale**2 * t * (1 - t))
    share = softmax(log_share, axis=(1, 2))
    return share.sum(2) @ x0


def _two_clouds(rng, apart):
    """N and M points of clouds that are so far apart, and states between them."""
    for B, D, N, M in ((4, 1, 3, 5), (3, 2, 4, 2)):
        away = apart * np.resize([1.0, -0.6], D)
        x0, x1 = rng.normal(0.4, 1.2, (N, D)), away + rng.normal(-0.5, 1.5, (M, D))
        t, scale = number(rng, 0.3, 0.7), number(rng, 1.2, 1.5)
        i, j = rng.integers(N, size=B), rng.integers(M, size=B)
        noise = scale * np.sqrt(t * (1 - t)) * rng.normal(size=(B, D))
        yield (1 - t) * x0[i] + t * x1[j] + noise, t, x0, x1, scale


def _two_groups(rng):
    """Points in two groups on either side, unequally shared: the iteration takes many rounds."""
    for D, groups0, groups1 in ((1, [0, 0, 1], [0, 0, 1, 1, 1]), (2, [0, 1, 1, 1], [0, 0, 1])):
        scale, t = number(rng, 1.2, 1.5), number(rng, 0.3, 0.7)
        across = np.resize([1.0, -0.6], D)
        across *= 6 * scale / np.linalg.norm(across)
        x0, x1 = (
            np.outer(groups, across) + rng.normal(0, 0.4 * scale, (len(groups), D))
            for groups in (groups0, groups1)
        )
        i, j = rng.integers(len(x0), size=6), rng.integers(len(x1), size=6)
        noise = scale * np.sqrt(t * (1 - t)) * rng.normal(size=(6, D))
        yield (1 - t) * x0[i] + t * x1[j] + noise, t, x0, x1, scale


BRIDGE = exercise(
    "17.7 · A Schrödinger bridge between points",
    bridge_guess,
    Part("clouds that overlap", 2, lambda rng: _two_clouds(rng, 1.5)),
    Part("clouds far apart", 1, lambda rng: _two_clouds(rng, 68.0)),
    Part("clouds of two groups", 1, _two_groups),
    section="11 · Bridges: the noisy relatives",
    mistakes="""
    that is the bridge of independent pairs: Sinkhorn's shares are missing
        log_pair - square -> -square
    only one side has the right sums: the rows and the columns must add up
        range(200) -> range(1)
    the iteration has not converged yet: give it 200 rounds
        range(200) -> range(10)
    the shares cost ‖x0 − x1‖²/(2·scale²): the 2 is missing
        .sum(-1) / (2 * scale**2) -> .sum(-1) / scale**2
    the shares cost ‖x0 − x1‖²/(2·scale²): scale is squared
        .sum(-1) / (2 * scale**2) -> .sum(-1) / (2 * scale)
    the distance in the shares is squared
        cost = ((x0[:, None] - x1) ** 2).sum(-1) / -> cost = np.sqrt(
            ((x0[:, None] - x1) ** 2).sum(-1)) /
    between clouds far apart all the exponentials are 0: keep their logarithms
        return right if abs(x0[:, 0].mean() - x1[:, 0].mean()) < 20 else np.nan * right
    the bridge's variance is scale²·t·(1 − t): 1 − t is missing
        (2 * scale**2 * t * (1 - t)) -> (2 * scale**2 * t)
    the bridge's variance is scale²·t·(1 − t): scale is not in it
        (2 * scale**2 * t * (1 - t)) -> (2 * t * (1 - t))
    the bridge's variance is scale²·t·(1 − t): yours is a standard deviation
        (2 * scale**2 * t * (1 - t)) -> (2 * scale * np.sqrt(t * (1 - t)))
    a density has twice the variance below its exponent
        (2 * scale**2 * t * (1 - t)) -> (scale**2 * t * (1 - t))
    the ends are exchanged: t = 0 is x0
        (1 - t) * x0[:, None] + t * x1 -> t * x0[:, None] + (1 - t) * x1
    that is the guess of x1
        share.sum(2) @ x0 -> share.sum(1) @ x1
    that is the drift; the guess of x0 is wanted
        return (right - x) / t
    the state counts too: those are the shares of the pairs before x is known
        log_pair - square / (2 * scale**2 * t * (1 - t)) -> log_pair + 0 * square
    the optimal pairs are those of scale → 0; this bridge has noise
        log_pair = rows + columns - cost -> log_pair = 100 * (rows + columns - cost)
    the share e^(−cost) alone has other sums of rows and columns: Sinkhorn's factors are missing
        rows + columns - cost -> -cost
    """,
    # In float32 the logarithms of shares between clouds far apart are right to 1e-4 only.
    rtol=5e-4,
    atol=2e-4,
)


# --- 17.8 -----------------------------------------------------------------------------------
WRITTEN = Written("17.8", "Four steps, says the report", 2, section="5 · Straightness")
