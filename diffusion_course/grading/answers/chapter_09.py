"""Exercises of chapter 09: Score matching and SDEs."""

import numpy as np

from diffusion_course.grading.answers.drawing import gaussian, images, normal, number
from diffusion_course.grading.answers.writing import exercise
from diffusion_course.grading.exercise import Part, Written


def _either(rng, number_of):
    """The denoiser of narrow data above 0, or of wide ones below it, by turns."""
    return gaussian(rng, (-2.1, -1.2), (1.3, 1.9)) if number_of % 2 else gaussian(rng)


def _covariance(rng, *variances):
    """A matrix with these eigenvalues, in directions that are drawn; float64, a table."""
    turn, _ = np.linalg.qr(rng.normal(size=(len(variances), len(variances))))
    return (turn * variances) @ turn.T


# --- 09.1 -----------------------------------------------------------------------------------
def levels(f, g2, dt):
    alpha, variance = [1.0], [0.0]
    for rate, added, span in zip(f, g2, dt, strict=True):
        grown = np.exp(2 * rate * span)
        fresh = added * ((grown - 1) / (2 * rate) if rate != 0 else span)
        alpha.append(alpha[-1] * np.exp(rate * span))
        variance.append(variance[-1] * grown + fresh)
    return np.array(alpha), np.sqrt(variance)


def _rates(rng, *signs):
    """Rates f that shrink (−1), keep (0) or blow up (1) the signal."""
    for sign in signs:
        sign = np.array(sign)
        shape = sign.shape
        yield (
            sign * rng.uniform(0.4, 1.6, shape),
            rng.uniform(0.5, 2.5, shape),
            rng.uniform(0.2, 0.9, shape),
        )


def _with_zero(rng):
    """f = 0 among other rates, and a small rate over a long interval, which is not 0."""
    yield from _rates(rng, (0,), (-1, 0, -1), (0, 0, 1, -1, 0))
    yield rng.uniform(-0.009, -0.006, 1), rng.uniform(0.01, 0.02, 1), rng.uniform(50, 80, 1)


LEVELS = exercise(
    "09.1 · From rates to levels",
    levels,
    Part("signal that shrinks, or grows", 1, lambda rng: _rates(rng, (-1,), (-1, 1, -1, -1))),
    Part("f = 0 too", 1, _with_zero),
    section="7 · Every process is an SDE",
    mistakes="""
    that is one Euler step for each interval: solve the equations, their rates are constant
        grown = np.exp(2 * rate * span) -> grown = 1 + 2 * rate * span
        np.exp(rate * span) -> (1 + rate * span)
    that is one Euler step for α: over a whole interval it is multiplied by e^(f·dt)
        np.exp(rate * span) -> (1 + rate * span)
    α² + σ² = 1 is true of some rates only: the variance has an equation of its own
        np.array(alpha), np.sqrt(variance) -> np.array(alpha), np.sqrt(1 - np.array(alpha) ** 2)
    with f = 0 noise still arrives, with the variance g²·dt
        rate != 0 else span -> rate != 0 else 0
    with f = 0 fresh noise is added to the noise that is there
        variance[-1] * grown + fresh -> (variance[-1] * grown if rate != 0 else 0) + fresh
    the two results are exchanged: α comes first
        np.array(alpha), np.sqrt(variance) -> np.sqrt(variance), np.array(alpha)
    the noise that was there grows or shrinks as well: a variance has twice the rate of the mean
        variance[-1] * grown + fresh -> variance[-1] + fresh
    a variance changes with 2·f, the mean with f
        grown = np.exp(2 * rate * span) -> grown = np.exp(rate * span)
    fresh noise is changed by f from the moment at which it arrives: its variance is an integral
        added * ((grown - 1) / (2 * rate) if rate != 0 else span) -> added * span
    the fresh noise shrinks or grows only for the time that is left after it has arrived
        added * ((grown - 1) / (2 * rate) if rate != 0 else span) -> added * span * grown
    the integral of e^(2f·u) has 2·f below it
        (2 * rate) if rate -> rate if rate
    those are variances: σ is their root
        np.sqrt(variance) -> np.array(variance)
    g² is given, and it is a variance already: it is not squared again
        fresh = added * -> fresh = added**2 *
    α is a product over all intervals before it, not that of the last one alone
        alpha[-1] * np.exp -> np.exp
    f is negative where the signal shrinks: its sign is lost or exchanged
        grown = np.exp(2 * rate * span) -> rate, grown = -rate, np.exp(-2 * rate * span)
    """,
)


# --- 09.2 -----------------------------------------------------------------------------------
def settled(covariance, share):
    narrowest = np.linalg.eigvalsh(covariance).min()
    h = share * 2 * narrowest
    precision = np.linalg.inv(covariance)
    return np.linalg.inv(precision - h / 2 * precision @ precision)


def _clouds(rng, *variances):
    for values in variances:
        yield _covariance(rng, *(number(rng, 0.9, 1.1) * v for v in values)), number(rng, 0.3, 0.8)


def _upright(rng):
    for values in ((2.3, 0.6), (0.4,)):
        yield np.diag([number(rng, 0.9, 1.1) * v for v in values]), number(rng, 0.3, 0.8)


SETTLED = exercise(
    "09.2 · Where Langevin settles",
    settled,
    Part("along the axes", 1, _upright),
    Part("correlated", 2, lambda rng: _clouds(rng, (3.1, 0.5), (0.3, 1.6, 2.7))),
    section="3 · Langevin dynamics, and where it gets stuck",
    mistakes="""
    the largest step is twice the smallest variance: there 1 − h/v is −1
        share * 2 * narrowest -> share * narrowest
    share is not the step itself: the step is this share of the largest one
        h = share * 2 * narrowest -> h = share
    those are the variances in the directions of the eigenvectors: turn them back
        return np.diag(np.linalg.eigvalsh(right))
    that is a matrix of standard deviations: no root is taken
        return (lambda v, U: U @ np.diag(np.sqrt(v)) @ U.T)(*np.linalg.eigh(right))
    the noise of one step has the variance 2h, not h
        return right / 2
    the narrowest direction is the first to diverge: yours is bounded by the widest one
        eigvalsh(covariance).min() -> eigvalsh(covariance).max()
    step sizes are compared with variances, not with 1/variance
        np.linalg.eigvalsh(covariance).min() -> 1 / np.linalg.eigvalsh(covariance).max()
    the directions are those of the eigenvectors, not the axes
        np.linalg.eigvalsh(covariance).min() -> np.diag(covariance).min()
        np.linalg.inv(covariance) -> np.diag(1 / np.diag(covariance))
    equation (3) holds for each eigenvalue, not for each entry of the matrix
        return covariance / (1 - share * np.linalg.eigvalsh(covariance).min() / covariance)
    the largest step depends on the smallest eigenvalue, not on the smallest entry of the diagonal
        np.linalg.eigvalsh(covariance).min() -> np.diag(covariance).min()
    with a finite step the states are wider than the data: this is the data's covariance
        return covariance
    the states are wider than the data, and yours are narrower: a sign
        precision - h -> precision + h
    that is the inverse of the covariance
        return np.linalg.inv(right)
    in equation (3) h is divided by 2v: a 2 is missing
        h / 2 * precision -> h * precision
    all directions are stretched alike; but the narrow ones suffer most
        return covariance / (1 - share)
    """,
)


# --- 09.3 -----------------------------------------------------------------------------------
def fit_energy(x, centres, width, penalty):
    away = x[:, None] - centres
    square = (away**2).sum(-1)
    bumps = np.exp(-square / (2 * width**2))
    slopes = -away / width**2 * bumps[..., None]
    traces = (square / width**4 - x.shape[1] / width**2) * bumps
    gram = np.einsum("bkd,bld->kl", slopes, slopes) / len(x)
    return np.linalg.solve(gram + penalty * np.eye(len(centres)), -traces.mean(0))


def _data_and_bumps(rng, *sizes):
    """The last bump lies beside the data. Few shapes, since for each of them JAX compiles anew."""
    for B, D, K in sizes:
        centres = 1.7 * np.arange(K)[:, None] * np.resize([1, -0.4, 0.7], D) + normal(
            rng, K, D, std=0.3
        )
        x = centres[rng.integers(K - 1, size=B)] + normal(rng, B, D, mean=0.3, std=0.8)
        width, penalty = number(rng, 0.7, 1.2), number(rng, 0.1, 0.4)
        yield x, centres, width, penalty


ENERGY = exercise(
    "09.3 · A density without its constant",
    fit_energy,
    Part("numbers", 2, lambda rng: _data_and_bumps(rng, (7, 1, 3), (7, 1, 3))),
    Part("vectors", 2, lambda rng: _data_and_bumps(rng, (5, 3, 2), (5, 3, 2))),
    section="5 · Three ways to learn a score",
    mistakes="""
    the trace adds up D second derivatives, and each has its −1/w²
        x.shape[1] / width**2 -> 1 / width**2
    the second derivative of a bump has two terms: −1/w² comes from the factor x − c
        square / width**4 - x.shape[1] / width**2 -> square / width**4
    the second derivative of a bump has two terms: you have the one that does not depend on x − c
        square / width**4 - x.shape[1] / width**2 -> -x.shape[1] / width**2
    the loss is made smaller where the traces are negative: the right side has a minus
        -traces.mean(0) -> traces.mean(0)
    the mean over the data belongs to both terms: the squares are summed only
        / len(x) ->
    the mean over the data belongs to both terms: the traces are summed only
        traces.mean(0) -> traces.sum(0)
    in the loss the square has a ½, and its derivative does not
        gram + penalty -> 2 * gram + penalty
    the derivative of ½‖s‖² has no ½ left
        gram + penalty -> gram / 2 + penalty
    both terms of the loss are means over the data: with sums the penalty counts for less
        / len(x) ->
        traces.mean(0) -> traces.sum(0)
    the squares are summed over the D entries of the score: only the data are averaged
        / len(x) -> / x.size
    the trace has a second derivative for each of the D entries of x: yours has the first alone
        square / width**4 - x.shape[1] / width**2 -> away[..., 0] ** 2 / width**4 - 1 / width**2
    the gradients of two bumps overlap: the squares are a full matrix, not a diagonal
        gram + penalty -> np.diag(np.diag(gram)) + penalty
    that fits the score itself by bumps; here the score is the gradient of a sum of bumps
        slopes = -away / width**2 * bumps[..., None] -> slopes = bumps[..., None]
        traces = (square / width**4 - x.shape[1] / width**2) * bumps ->
            traces = -away.sum(-1) / width**2 * bumps
    the penalty has a ½ too: it adds `penalty` to the diagonal, once
        penalty * np.eye -> 2 * penalty * np.eye
    the penalty is missing
        penalty * np.eye -> 0 * np.eye
    the penalty is on the squares of the weights: it stands on the diagonal alone
        np.eye(len(centres)) -> np.ones((len(centres), 1))
    the gradient of a bump is divided by w², and yours by w
        -away / width**2 * bumps -> -away / width * bumps
    in the exponent ‖x − c‖² is divided by 2w²
        (2 * width**2) -> width**2
    """,
)


# --- 09.4 -----------------------------------------------------------------------------------
def predict_and_correct(denoise, x, z_p, z_c, at_t, at_s, eta, r):
    (alpha_t, sigma_t), (alpha_s, sigma_s) = at_t, at_s
    x0 = denoise(x, alpha_t, sigma_t)
    eps = (x - alpha_t * x0) / sigma_t
    k = (alpha_t * sigma_s / (alpha_s * sigma_t)) ** (2 * eta**2)
    x = alpha_s * x0 + sigma_s * (np.sqrt(k) * eps + np.sqrt(1 - k) * z_p)
    if sigma_s == 0:
        return x
    score = (alpha_s * denoise(x, alpha_s, sigma_s) - x) / sigma_s**2

    def size(a):
        return np.sqrt((a.reshape(len(a), -1) ** 2).sum(1)).mean()

    h = 2 * (r * size(z_c) / size(score)) ** 2
    return x + h * score + np.sqrt(2 * h) * z_c


def _ends(rng):
    """(α, σ) at t and at s; their squares need not add up to 1."""
    alpha, sigma = np.sort(rng.uniform(0.2, 0.9, 2)), np.sort(rng.uniform(0.3, 1.4, 2))
    return np.array([alpha[0], sigma[1]]), np.array([alpha[1], sigma[0]])


def _unequal(rng, *shape):
    """Examples of unlike size, so that a norm of all is not the mean of their norms."""
    scale = np.linspace(0.3, 2.5, shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    return (scale * images(rng, *shape)).astype(np.float32)


def _steps(rng, ratio, *etas, first=False, last=False):
    shapes = ((3, 4), (2, 3, 2, 1), (4, 5))
    for number_of, (eta, shape) in enumerate(zip(etas, shapes, strict=False)):
        at_t, at_s = _ends(rng)
        if first:
            at_t[0] = 0.0
        if last:
            at_s[:] = 1.0, 0.0
        noises = normal(rng, *shape), _unequal(rng, *shape)
        r = number(rng, *ratio) if ratio else 0.0
        yield _either(rng, number_of), _unequal(rng, *shape), *noises, at_t, at_s, eta, r


def _both_ends(rng):
    ratio = (0.15, 0.4)
    yield from _steps(rng, ratio, 0.7, 0.0, 1.2, first=True)
    yield from _steps(rng, ratio, 0.7, 0.0, last=True)


PREDICT = exercise(
    "09.4 · Predict exactly, then correct",
    predict_and_correct,
    Part("r = 0: the predictor alone", 1, lambda rng: _steps(rng, None, 0.0, 1.0, 0.6)),
    Part("with the corrector", 2, lambda rng: _steps(rng, (0.15, 0.4), 1.0, 0.0, 1.4)),
    Part("from α = 0, and to σ = 0", 1, _both_ends),
    section="11 · Predictor and corrector",
    mistakes="""
    SNR is a ratio of variances: your k is made of α/σ
        ** (2 * eta**2) -> ** (eta**2)
    η is squared in the exponent of k
        ** (2 * eta**2) -> ** (2 * eta)
    k is a share of variance: the old and the new noise have the factors √k and √(1 − k)
        np.sqrt(k) * eps -> k * eps
        np.sqrt(1 - k) * z_p -> (1 - k) * z_p
    the fresh noise of the predictor has the factor √(1 − k)
        np.sqrt(1 - k) * z_p -> (1 - k) * z_p
    that is DDIM's η; here the fresh share of the variance is 1 − k
        k = (alpha_t * sigma_s / (alpha_s * sigma_t)) ** (2 * eta**2) ->
            k = 1 - eta**2 * (1 - (alpha_t * sigma_s / (alpha_s * sigma_t)) ** 2)
    the noise in the state is what is left of x without α times x0, divided by σ
        (x - alpha_t * x0) / sigma_t -> (x - x0) / sigma_t
    the corrector is at s: its score needs the denoiser at the new state and level
        alpha_s * denoise(x, alpha_s, sigma_s) -> alpha_s * x0
    the corrector's score belongs to s: its levels are those of t
        (alpha_s * denoise(x, alpha_s, sigma_s) - x) / sigma_s**2 ->
            (alpha_t * denoise(x, alpha_t, sigma_t) - x) / sigma_t**2
    a score is divided by σ²; yours is divided by σ
        - x) / sigma_s**2 -> - x) / sigma_s
    the corrector has a noise of its own, z_c
        np.sqrt(2 * h) * z_c -> np.sqrt(2 * h) * z_p
        r * size(z_c) -> r * size(z_p)
    the size of the noise is that of the corrector's own, z_c
        r * size(z_c) -> r * size(z_p)
    one norm of the whole batch on one side only: the step grows with the batch
        / size(score) -> / size(score.reshape(1, -1))
    one norm of the whole batch on one side only: the step shrinks or grows with the batch
        size(z_c) -> size(z_c.reshape(1, -1))
    the norm of each example first, then the mean over the batch; yours is one norm of all
        .sum(1)).mean() -> .sum())
    every example has a step size of its own; equation (13) has one for the batch
        .sum(1)).mean() -> .sum(1)).reshape(-1, *[1] * (x.ndim - 1))
    the two means of norms are divided; yours is the mean of the ratios
        .sum(1)).mean() -> .sum(1))
        r * size(z_c) / size(score) -> r * (size(z_c) / size(score)).mean()
    a norm is that of a whole example: images have more than one axis
        np.sqrt((a.reshape(len(a), -1) ** 2).sum(1)).mean() -> np.sqrt((a**2).sum(-1)).mean()
    the size of the noise is the norm of the z_c that was drawn, not what it is on average
        r * size(z_c) -> r * np.sqrt(x[0].size)
    at s the score is that of the new state, not the old noise once more
        (alpha_s * denoise(x, alpha_s, sigma_s) - x) / sigma_s**2 -> -eps / sigma_s
    the 2 in equation (13) stands outside the square
        2 * (r * size -> (2 * r * size
    the 2 of equation (13) is missing
        h = 2 * (r -> h = (r
    the ratio is squared in equation (13)
        / size(score)) ** 2 -> / size(score))
    the ratio is upside down: a long score needs a small step
        r * size(z_c) / size(score) -> r * size(score) / size(z_c)
    the corrector's noise has the factor √(2h)
        np.sqrt(2 * h) * z_c -> np.sqrt(h) * z_c
    the corrector's noise is missing
        + np.sqrt(2 * h) * z_c ->
    """,
)


# --- 09.5 -----------------------------------------------------------------------------------
def sample_reverse(denoise, x, noises, times, alpha, sigma, f, g2, eta):
    for n, noise in enumerate(noises):
        x0 = denoise(x, alpha[n], sigma[n])
        if sigma[n + 1] == 0:
            return x0
        score = (alpha[n] * x0 - x) / sigma[n] ** 2
        dt = times[n + 1] - times[n]
        drift = f[n] * x - (1 + eta**2) / 2 * g2[n] * score
        x = x + drift * dt + eta * np.sqrt(g2[n] * -dt) * noise
    return x


def _walks(rng, *cases):
    """Walks of (steps, whether to the data, η), with levels and rates of no process at all."""
    for number_of, (steps, to_data, eta) in enumerate(cases):
        alpha = np.sort(rng.uniform(0.15, 0.9, steps + 1))
        sigma = np.sort(rng.uniform(0.5, 1.4, steps + 1))[::-1].copy()
        times = np.append(np.cumsum(rng.uniform(0.05, 0.15, steps))[::-1], 0.0)
        if to_data:
            alpha[-1], sigma[-1] = 1, 0
        f, g2 = -rng.uniform(0.4, 1.8, steps + 1), rng.uniform(0.5, 2.2, steps + 1)
        shape = (2, 3) if number_of % 2 else (4,)
        drawn = images(rng, *shape), normal(rng, steps, *shape)
        yield _either(rng, number_of), *drawn, times, alpha, sigma, f, g2, eta


def _usual(rng):
    return _walks(rng, (1, False, 0.0), (3, True, 1.0), (4, False, 1.0), (1, True, 0.0))


def _unusual(rng):
    between, above = number(rng, 0.4, 0.7), number(rng, 1.3, 1.7)
    yield from _walks(rng, (1, False, between), (3, False, above))
    yield from _walks(rng, (5, True, between), (2, True, above))
    for denoise, x, noises, times, *others in _walks(rng, (4, False, between)):
        yield denoise, x, noises, 1e-3 * times, *others  # short steps


BROKEN = exercise(
    "09.5 · Right where it was tested",
    sample_reverse,
    Part("η = 0 and 1, for any process", 1, _usual),
    Part("any η", 3, _unusual),
    section="14 · Break it on purpose: the wrong factor before the score",
    mistakes="""
    all three bugs are still there
        sigma[n] ** 2 -> (1 - alpha[n] ** 2)
        (1 + eta**2) / 2 -> (1 + eta) / 2
        eta * np.sqrt -> eta**2 * np.sqrt
    two bugs are left: the weight of the score, and the size of the noise
        (1 + eta**2) / 2 -> (1 + eta) / 2
        eta * np.sqrt -> eta**2 * np.sqrt
    two bugs are left: what the score is divided by, and the size of the noise
        sigma[n] ** 2 -> (1 - alpha[n] ** 2)
        eta * np.sqrt -> eta**2 * np.sqrt
    two bugs are left: what the score is divided by, and its weight
        sigma[n] ** 2 -> (1 - alpha[n] ** 2)
        (1 + eta**2) / 2 -> (1 + eta) / 2
    a bug is left: σ² is 1 − α² for some processes only
        sigma[n] ** 2 -> (1 - alpha[n] ** 2)
    a bug is left: the weight of the score
        (1 + eta**2) / 2 -> (1 + eta) / 2
    a bug is left: the size of the noise
        eta * np.sqrt -> eta**2 * np.sqrt
    dt is negative: with another sign in the drift the state moves away from the data
        drift * dt -> drift * -dt
    g² on the score was right: without it the drift and the noise do not belong together
        (1 + eta**2) / 2 * g2[n] * score -> (1 + eta**2) / 2 * score
    the variance of the noise is η²g²|dt|: it was the root of it that was right
        np.sqrt(g2[n] * -dt) -> (g2[n] * -dt)
    the noise grows like √|dt|, not like |dt|: variances add up
        np.sqrt(g2[n] * -dt) -> np.sqrt(g2[n]) * -dt
    the noise has the standard deviation η·g·√|dt|: η is outside the root
        eta * np.sqrt -> np.sqrt(eta) * np.sqrt
    a score is divided by σ²; yours is divided by σ
        sigma[n] ** 2 -> sigma[n]
    the weight of the score is that of η = 1 only
        (1 + eta**2) / 2 -> 1
    without noise one half of the score is left: that is the probability flow
        (1 + eta**2) / 2 -> eta**2
    the weight of the score is (1 + η²)/2, and yours is ((1 + η)/2)²
        (1 + eta**2) / 2 -> (1 + eta) ** 2 / 4
    a step uses the levels at its beginning
        sigma[n] ** 2 -> sigma[n + 1] ** 2
    the last step returns the denoiser's guess, not the state
        return x0 -> return x
    a step to σ = 0 returns the denoiser's guess
        sigma[n + 1] == 0 -> sigma[n + 1] < 0
    """,
    library=("diffusion_course.grading.inputs.GaussianDenoiser",),
)


# --- 09.6 -----------------------------------------------------------------------------------
def travel(x, v, z, level, slope, free, dt):
    (alpha, sigma), (dalpha, dsigma) = level, slope
    eps = (dalpha * x - alpha * v) / (dalpha * sigma - alpha * dsigma)
    score = -eps / sigma
    span = np.abs(dt)
    return x + v * dt + free * span * score + np.sqrt(2 * free * span) * z


def _journeys(rng, sign, *kinds):
    for kind, shape in zip(kinds, ((5,), (2, 3), (3, 2, 2)), strict=False):
        level = np.array([number(rng, 0.3, 0.8), number(rng, 0.5, 1.4)])
        slope = np.array([number(rng, -1.6, -0.6), number(rng, 0.7, 1.9)])
        if kind == "no signal":
            level[0] = 0.0
        if kind == "signal kept":
            level[0], slope[0] = 1.0, 0.0
        free = 0.0 if kind == "no noise" else number(rng, 0.5, 2.0)
        drawn = images(rng, *shape), images(rng, *shape), normal(rng, *shape)
        yield *drawn, level, slope, free, sign * number(rng, 0.05, 0.2)


TRAVEL = exercise(
    "09.6 · A velocity with noise",
    travel,
    Part("to the data, dt < 0", 2, lambda rng: _journeys(rng, -1, "any", "any", "no noise")),
    Part("to the noise, dt > 0", 1, lambda rng: _journeys(rng, 1, "any", "no noise", "any")),
    Part(
        "where α = 0 or where α is constant",
        1,
        lambda rng: [
            *_journeys(rng, -1, "no signal", "signal kept"),
            *_journeys(rng, 1, "signal kept", "no signal"),
        ],
    ),
    section="8 · Backwards in time",
    mistakes="""
    the score always gathers what the noise spreads: with dt < 0 your score term spreads too
        free * span * score -> free * dt * score
    the score always gathers what the noise spreads: with dt > 0 your score term spreads too
        free * span * score -> free * -dt * score
    the score points against the noise: −ε̂/σ
        score = -eps -> score = eps
    that is ε̂ with a minus: the score is divided by σ
        score = -eps / sigma -> score = -eps
    the score is ε̂ divided by σ once
        score = -eps / sigma -> score = -eps / sigma**2
    the noise has the variance 2·free·|dt|: a 2 is missing
        np.sqrt(2 * free * span) -> np.sqrt(free * span)
    the score term comes with free itself, not with one half of it
        free * span * score -> free / 2 * span * score
    the score term comes with free itself; the 2 belongs to the variance of the noise
        free * span * score -> 2 * free * span * score
    free is a variance for each unit of time, up to a factor: it stands under the root
        np.sqrt(2 * free * span) -> free * np.sqrt(2 * span)
    that is ε̂ for the straight line, α = 1 − t and σ = t; here the levels and slopes are any
        eps = (dalpha * x - alpha * v) / (dalpha * sigma - alpha * dsigma) ->
            eps = x + (1 - sigma) * v
    noise is multiplied by a standard deviation: take the root
        np.sqrt(2 * free * span) * z -> 2 * free * span * z
    free stands for η²g²/2 already, it is not squared
        return travel(x, v, z, level, slope, free**2, dt)
    that is x̂0: ε̂ is the other unknown of the two equations
        (dalpha * x - alpha * v) -> (sigma * v - dsigma * x)
    from the two equations: α̇·x − α·v holds ε̂ alone, with the factor α̇σ − ασ̇
        (dalpha * sigma - alpha * dsigma) -> (dalpha * sigma + alpha * dsigma)
    σ̇ is missing: α̇σ − ασ̇ is −1 for the straight line only
        (dalpha * sigma - alpha * dsigma) -> -1
    the velocity already has the direction of rising time: it is multiplied by dt with its sign
        v * dt -> v * span
    without noise and without score: that is the probability flow
        return x + v * dt
    the noise is missing
        + np.sqrt(2 * free * span) * z ->
    the score term is missing
        + free * span * score ->
    """,
)


# --- 09.7 -----------------------------------------------------------------------------------
def predicted(mean, covariance, times, alpha, sigma, f, g2, eta):
    one = np.eye(len(mean))
    m, S = 0 * mean, sigma[0] ** 2 * one
    for n in range(len(times) - 1):
        precision = np.linalg.inv(alpha[n] ** 2 * covariance + sigma[n] ** 2 * one)
        if sigma[n + 1] == 0:
            A, fresh = alpha[n] * covariance @ precision, 0.0
            m = mean + A @ (m - alpha[n] * mean)
        else:
            dt = times[n + 1] - times[n]
            pull = (1 + eta**2) / 2 * g2[n] * dt * precision
            A, fresh = (1 + f[n] * dt) * one + pull, eta**2 * g2[n] * -dt
            m = A @ m - pull @ mean * alpha[n]
        S = A @ S @ A.T + fresh * one
    return m, S


def _runs(rng, *cases):
    """Tables as above, for data in D dimensions."""
    for D, steps, to_data, eta in cases:
        ((_, _, _, times, alpha, sigma, f, g2, _),) = _walks(rng, (steps, to_data, eta))
        mean = rng.uniform(0.8, 2.3, D) * np.resize([1, -1], D)
        covariance = _covariance(rng, *rng.uniform(0.2, 1.8, D))
        yield mean, covariance, times, alpha, sigma, f, g2, eta


def _numbers(rng):
    return _runs(rng, (1, 1, False, 0.0), (1, 4, False, number(rng, 0.4, 0.8)))


def _vectors(rng):
    return _runs(rng, (2, 3, False, 1.0), (3, 5, False, number(rng, 1.2, 1.5)))


def _to_the_data(rng):
    return _runs(rng, (3, 1, True, 0.7), (2, 4, True, 0.0), (1, 3, True, 1.3))


PREDICTED = exercise(
    "09.7 · The bias, without a single sample",
    predicted,
    Part("numbers", 1, _numbers),
    Part("vectors whose entries are correlated", 2, _vectors),
    Part("to the data", 1, _to_the_data),
    section="8 · Backwards in time",
    mistakes="""
    those are the moments of the noisy data; a run of finite steps ends somewhere else
        return (
            alpha[-1] * mean,
            alpha[-1] ** 2 * covariance + sigma[-1] ** 2 * np.eye(len(mean)),
            )
    the run starts at N(0, σ²I), as a sampler does, not at the noisy data
        m, S = 0 * mean, sigma[0] ** 2 * one ->
            m, S = alpha[0] * mean, alpha[0] ** 2 * covariance + sigma[0] ** 2 * one
    the run starts with the variance σ², and yours is 1
        sigma[0] ** 2 * one -> one
    the run starts with the variance σ², and yours is σ
        sigma[0] ** 2 * one -> sigma[0] * one
    the run starts at noise, whose mean is 0
        0 * mean, sigma -> mean, sigma
    each entry has fresh noise of its own: it adds to the variances only
        fresh * one -> fresh
    the noisy data have the covariance α²C + σ²I: α is squared
        alpha[n] ** 2 * covariance + -> alpha[n] * covariance +
    the noisy data have the covariance α²C + σ²I: σ is squared
        sigma[n] ** 2 * one) -> sigma[n] * one)
    the noisy data have the covariance α²C + σ²I: each entry has noise of its own
        sigma[n] ** 2 * one) -> sigma[n] ** 2)
    g² is given: no root of it is taken in a variance
        eta**2 * g2[n] * -dt -> eta**2 * np.sqrt(g2[n]) * -dt
    the guesses are less spread than the data: the doubt that is left is not in them
        S = A @ S @ A.T + fresh * one ->
            S = A @ S @ A.T + fresh * one
            + (covariance - alpha[n] * A @ covariance if sigma[n + 1] == 0 else 0)
    a step multiplies the covariance from both sides
        A @ S @ A.T -> A @ S
    A from the left and A transposed from the right: yours squares each entry by itself
        A @ S @ A.T -> A**2 * S
    the fresh noise is missing in the covariance
        eta**2 * g2[n] * -dt -> 0.0
    a variance has η² and |dt|, and no root is taken
        eta**2 * g2[n] * -dt -> eta * np.sqrt(g2[n] * -dt)
    η is squared in the variance of the fresh noise
        eta**2 * g2[n] * -dt -> eta * g2[n] * -dt
    the score's weight is (1 + η²)/2
        (1 + eta**2) / 2 * g2[n] -> (1 + eta) / 2 * g2[n]
    g² is missing on the score
        (1 + eta**2) / 2 * g2[n] -> (1 + eta**2) / 2
    the score is that of the noisy data: their covariance is α²C + σ²I
        alpha[n] ** 2 * covariance + -> covariance +
    the score pulls towards the mean of the noisy data, α times that of the data
        pull @ mean * alpha[n] -> pull @ mean
    the score pulls towards the mean of the noisy data, and yours towards 0
        - pull @ mean * alpha[n] ->
    the last step returns the denoiser's guess, and it shrinks the spread
        S = A @ S @ A.T -> S = (A @ S @ A.T if sigma[n + 1] > 0 else S)
    a step to σ = 0 returns the denoiser's guess; yours is one more step of Euler–Maruyama
        sigma[n + 1] == 0 -> sigma[n + 1] < 0
    dt is negative: the score's term has another sign
        2 * g2[n] * dt -> 2 * g2[n] * -dt
    dt is negative: the term of f has another sign
        1 + f[n] * dt -> 1 - f[n] * dt
    that is exact for f alone; Euler–Maruyama multiplies by 1 + f·dt
        (1 + f[n] * dt) * one -> np.exp(f[n] * dt) * one
    """,
)


# --- 09.8 -----------------------------------------------------------------------------------
REPORT = Written("09.8", "Two dials and one verdict", 2, section="11 · Predictor and corrector")
