"""Exercises of chapter 19: Steering without retraining."""

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit, log_expit, logsumexp, softmax

from diffusion_course.grading.answers.drawing import gaussian, number
from diffusion_course.grading.answers.writing import exercise
from diffusion_course.grading.exercise import Part, Written

# States are float64 here, which reach the student as NumPy's arrays: nothing has to be compiled.


def _states(rng, *shape):
    """Values that are neither centred nor of unit size, so that a lost sign or factor shows."""
    return rng.normal(0.6, 1.7, shape)


# --- 19.1 -----------------------------------------------------------------------------------
def agree(x0, weights, groups, y, noise, spread):
    moved = np.array(x0)
    for m in range(y.shape[1]):
        w = weights * (groups == m)
        size = np.sum(w**2)
        gain = spread**2 / (spread**2 * size + noise[m] ** 2)
        moved = moved + gain * (y[:, m] - x0 @ w)[:, None] * w
    return moved


def _sums(rng, *cases):
    """Guesses and measured sums: (B, the group of each pixel, the noise of each measurement)."""
    for B, groups, noise in cases:
        weights = rng.uniform(0.3, 1.6, len(groups)) * rng.choice([-1, 1, 1], len(groups))
        x0, y = _states(rng, B, len(groups)), _states(rng, B, len(noise))
        yield x0, weights, np.array(groups), y, np.array(noise), number(rng, 1.4, 2.3)


def _noise(rng, count):
    return rng.uniform(0.4, 1.9, count)


AGREE = exercise(
    "19.1 · Pictures that agree",
    agree,
    Part(
        "without noise",
        1,
        lambda rng: _sums(
            rng, (2, (1, 0, 1, -1, 0), (0.0, 0.0)), (3, (0, -1, 2, 1, 0, 2, 2), (0.0,) * 3)
        ),
    ),
    Part(
        "with noise of different sizes",
        1,
        lambda rng: _sums(
            rng, (3, (0, 1, 0, 0, -1), _noise(rng, 2)), (2, (1, 0, 2, 1), [0, *_noise(rng, 2)])
        ),
    ),
    section="5 · ΠGDM: the guess has an error",
    mistakes="""
    a pixel that is not measured keeps its guess: the index −1 is the last group
        (groups == m) -> (groups % y.shape[1] == m)
    the residual goes back through the weights: A⁺ is not the same change for each pixel
        (y[:, m] - x0 @ w)[:, None] * w -> (y[:, m] - x0 @ w)[:, None] * (w != 0)
    that is Aᵀ: divide by A·Aᵀ, the sum of the squared weights
        gain = spread**2 / (spread**2 * size + noise[m] ** 2) -> gain = 1.0
    A·Aᵀ is the sum of the squared weights: yours is that of the weights
        np.sum(w**2) -> np.sum(w)
    A·Aᵀ is the sum of the squared weights: yours is the number of pixels
        np.sum(w**2) -> np.sum(w != 0)
    the residual y − A·x0 is added: yours has the other sign
        (y[:, m] - x0 @ w) -> (x0 @ w - y[:, m])
    only the residual y − A·x0 is new: yours adds A⁺y to the guess
        (y[:, m] - x0 @ w) -> (y[:, m])
    the null space is lost: that is A⁺y, and nothing of the guess is left
        moved = np.array(x0) -> moved = np.zeros_like(x0)
        (y[:, m] - x0 @ w) -> (y[:, m])
    with noise the picture must not agree with y exactly: y is uncertain, too
        spread**2 * size + noise[m] ** 2 -> spread**2 * size
    the guess is uncertain by its spread: without it the noise counts too much or too little
        spread**2 / (spread**2 * size + noise[m] ** 2) -> 1 / (size + noise[m] ** 2)
    variances add up, and both arguments are standard deviations
        spread**2 / (spread**2 * size + noise[m] ** 2) -> spread / (spread * size + noise[m])
    the noise is a standard deviation: square it
        noise[m] ** 2 -> noise[m]
    the spread is a standard deviation: square it
        spread**2 / (spread**2 * size -> spread / (spread * size
    above the variance of what is measured stands the guess's, spread²: it is missing
        gain = spread**2 / ( -> gain = 1 / (
    a pixel counts with its weight: yours all have the weight 1
        weights * (groups == m) -> 1.0 * (groups == m)
    each measurement has its own noise
        noise[m] ** 2 -> noise[0] ** 2
    the weights are missing in what the guess says
        x0 @ w) -> x0 @ (w != 0))
    """,
)


# --- 19.2 -----------------------------------------------------------------------------------
def exact_guess(x, level, A, y, noise, weights, means, covs):
    (alpha, sigma), D = level, x.shape[1]
    rows = np.vstack([alpha * np.eye(D), A])
    stds = np.append(np.full(D, sigma), noise)
    values = np.hstack([x, np.tile(y, (len(x), 1))])

    def told(rows, stds, values):
        apart = values[:, None] - means @ rows.T  # [B, K, R]
        spread = rows @ covs @ rows.T + np.diag(stds**2)  # [K, R, R]
        solved = np.linalg.solve(spread, apart[..., None])[..., 0]
        log_density = -np.sum(apart * solved, axis=-1) / 2
        log_density = log_density - np.linalg.slogdet(2 * np.pi * spread)[1] / 2
        guesses = means + np.einsum("kdr,bkr->bkd", covs @ rows.T, solved)
        return np.log(weights) + log_density, guesses

    joint, guesses = told(rows, stds, values)
    before, _ = told(rows[:D], stds[:D], values[:, :D])
    share = softmax(joint, axis=1)
    guess = np.einsum("bk,bkd->bd", share, guesses)
    return guess, logsumexp(joint, axis=1) - logsumexp(before, axis=1)


def _likelihood_at(guess, A, y, noise):
    """log p(y | x0 = guess), as if the guess were certain."""
    apart = y - guess @ A.T
    return -np.sum(apart**2 / noise**2 + np.log(2 * np.pi * noise**2), axis=1) / 2


def _steered(rng, *cases):
    """(B, D, K, M, kind): states of a mixture and M measurements of one of its points."""
    for B, D, K, M, kind in cases:
        means = rng.normal(0.4, 1.4, (K, D))
        roots = np.tril(rng.uniform(0.2, 0.7, (K, D, D)), -1)
        roots = roots + rng.uniform(0.5, 1.3, (K, D, 1)) * np.eye(D)
        covs = roots @ roots.swapaxes(1, 2)
        weights = rng.uniform(0.3, 1, K)
        level = np.array([number(rng, 0.4, 0.7), number(rng, 0.8, 1.3)])
        level[0] *= kind != "no signal"
        noise = rng.uniform(0.4, 1.3, M)
        noise[0] *= kind != "exact"
        if kind == "exact":  # and y speaks for a component that is rare, if there is any other
            weights[0] *= 0.01
        A = rng.normal(0.3, 0.9, (M, D))
        k = rng.integers(K, size=B) * (kind != "exact")
        x0 = means[k] + np.einsum("bde,be->bd", roots[k], rng.normal(size=(B, D)))
        x = level[0] * x0 + level[1] * rng.normal(size=(B, D))
        if kind == "far":
            x[0] = 60 * np.resize([1.0, -0.7], D)
        y = A @ x0[-1] + noise * rng.normal(size=M)
        yield x, level, A, y, noise, weights / weights.sum(), means, covs


EXACT_GUESS = exercise(
    "19.2 · A state is a measurement, too",
    exact_guess,
    # Few shapes: an answer in JAX compiles for each.
    Part("one Gaussian", 2, lambda rng: _steered(rng, (3, 2, 1, 1, ""), (2, 3, 1, 2, "exact"))),
    Part(
        "a mixture",
        2,
        lambda rng: _steered(
            rng,
            (4, 2, 3, 2, ""),
            (4, 2, 3, 2, "no signal"),
            (4, 2, 3, 2, "far"),
            (3, 3, 2, 1, "exact"),
        ),
    ),
    section="2 · Bayes' rule for a denoiser",
    mistakes="""
    y changes the weights of the components, too: yours are those that x alone gives
        softmax(joint, axis=1) -> softmax(before, axis=1)
    x and y change the weights of the components: yours are those of the data
        softmax(joint, axis=1) -> softmax(np.log(weights) + 0 * joint, axis=1)
    that is the guess from x alone: y says nothing in it
        share = softmax(joint, axis=1) -> share, guesses = softmax(before, axis=1), told(
            rows[:D], stds[:D], values[:, :D])[1]
    that is log p(x, y): the logarithm of p(y | x) is the difference to log p(x)
        logsumexp(joint, axis=1) - logsumexp(before, axis=1) -> logsumexp(joint, axis=1)
    that is log p(y), the same for all states: x tells something about y
        logsumexp(joint, axis=1) - logsumexp(before, axis=1) -> logsumexp(told(rows[D:], stds[D:],
            values[:, D:])[0], axis=1)
    DPS takes the guess from x for certain; here x0 is uncertain, and y's density is wider
        logsumexp(joint, axis=1) - logsumexp(before, axis=1) -> _likelihood_at(np.einsum(
            "bk,bkd->bd", softmax(before, axis=1), told(rows[:D], stds[:D], values[:, :D])[1]),
            A, y, noise)
    p(y | x) weighs the components by what x says of them: logsumexp of joint and of x's alone
        logsumexp(joint, axis=1) - logsumexp(before, axis=1) -> (joint - before).mean(axis=1)
    p(y | x) weighs the components by what x says of them: yours are the data's weights
        logsumexp(joint, axis=1) - logsumexp(before, axis=1) -> logsumexp(
            np.log(weights) + joint - before, axis=1)
    a level is (α, σ): the two are exchanged
        (alpha, sigma), D = level -> (sigma, alpha), D = level
    each measurement has its own noise
        np.append(np.full(D, sigma), noise) -> np.append(np.full(D, sigma), 0 * noise + noise[-1])
    the noise of a state is σ, and that of y is given
        np.append(np.full(D, sigma), noise) -> np.append(np.full(D, 1.0), noise)
    standard deviations are squared in a covariance
        np.diag(stds**2) -> np.diag(stds)
    a Gaussian density has the root of a determinant in front
        - np.linalg.slogdet(2 * np.pi * spread)[1] / 2 -> + 0.0
    it is the root of the determinant: half of its logarithm
        np.linalg.slogdet(2 * np.pi * spread)[1] / 2 -> np.linalg.slogdet(2 * np.pi * spread)[1]
    a density of R numbers has (2π)^(R/2) below it: p(y | x) keeps the part of y
        slogdet(2 * np.pi * spread) -> slogdet(spread)
    the exponent of a Gaussian density has ½ in front
        solved, axis=-1) / 2 -> solved, axis=-1)
    the weights of the data's components are missing
        np.log(weights) + log_density -> log_density
    the state is α·x0 + σ·noise: its row is α, not 1
        np.vstack([alpha * np.eye(D), A]) -> np.vstack([np.eye(D), A])
    a covariance is multiplied from both sides
        spread = rows @ covs @ rows.T + -> spread = np.stack([rows @ rows.T] * len(covs)) +
    the gain is C·Aᵀ·(A·C·Aᵀ + noise)⁻¹: C stands in it twice
        covs @ rows.T, solved -> np.stack([rows.T] * len(covs)), solved
    far from all components every density is 0 in the computer's numbers: compare their logarithms
        return np.log(weights) + log_density, guesses -> return np.log(weights * np.exp(
            log_density)), guesses
    """,
    rtol=1e-4,  # log p(y | x) is a difference of two logarithms, and 3.14 is not π
    atol=1e-5,
)


# --- 19.3 -----------------------------------------------------------------------------------
def next_power(rewards, power, share):
    kept, N = rewards[rewards > -np.inf], len(rewards)

    def too_many(step):
        log_w = step * kept
        log_ess = 2 * logsumexp(log_w) - logsumexp(2 * log_w)
        return log_ess - np.log(share * N)

    step = 1 - power
    if too_many(step) < 0:
        step = _last_above_0(too_many, step)
    return power + step, logsumexp(step * kept) - np.log(N)


def _last_above_0(falling, high):
    low = 0.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (low, middle) if falling(middle) < 0 else (middle, high)
    return low


def _rewards(rng, *cases):
    """(N, their mean, their scale, whether some are −∞, the power so far)."""
    for N, mean, scale, lost, power in cases:
        rewards = mean + scale * rng.normal(0.0, 1.0, N)
        if lost:
            rewards[rng.permutation(N)[: N // 5]] = -np.inf
        yield rewards, power, number(rng, 0.4, 0.6)


NEXT_POWER = exercise(
    "19.3 · The next power",
    next_power,
    Part(
        "any rewards",
        2,
        lambda rng: _rewards(
            rng,
            (9, 2.1, 2.9, False, 0.0),
            (14, 2.7, 4.0, False, number(rng, 0.2, 0.4)),
            (8, 0.2, 0.2, False, number(rng, 0.3, 0.6)),
        ),
    ),
    Part(
        "huge ones, and −∞",
        2,
        lambda rng: _rewards(
            rng,
            (12, 900.0, 1500.0, False, 0.0),
            (10, -3000.0, 4.0, False, number(rng, 0.1, 0.3)),
            (15, 2.0, 3.0, True, number(rng, 0.1, 0.3)),
            (10, 0.1, 0.1, True, number(rng, 0.5, 0.7)),
        ),
    ),
    section="9 · Particles: wrong guesses, right weights",
    mistakes="""
    the power is at most 1, where the target is
        step = 1 - power -> step = 60.0
    at most 1 is the power, and not how far it rises
        step = 1 - power -> step = 1.0
    that is how far the power rises; asked for is where it arrives
        return power + step -> return step
    the weights of this round are exp((new − old)·r): the old power is in the particles already
        logsumexp(step * kept) -> logsumexp((power + step) * kept)
    the particles are drawn for the old power already: they start with equal weights
        log_w = step * kept -> log_w = (power + step) * kept
    the logarithm of the mean weight: yours is that of the sum
        - np.log(N) ->
    that is the mean of the logarithms; Ẑ needs the logarithm of the mean weight
        logsumexp(step * kept) - np.log(N) -> step * np.mean(kept)
    a particle of weight 0 is a particle: the mean is over all N
        - np.log(N) -> - np.log(len(kept))
    a particle of weight 0 is a particle: the share is a share of all N
        np.log(share * N) -> np.log(share * len(kept))
    a particle of weight 0 is a particle: both the share and the mean count all N
        kept, N = rewards[rewards > -np.inf], len(rewards)
            -> kept = rewards[rewards > -np.inf]; N = len(kept)
    the effective sample size is 1/Σw² of weights that add up to 1: yours is the root of it
        log_ess = 2 * logsumexp(log_w) - logsumexp(2 * log_w)
            -> log_ess = logsumexp(log_w) - logsumexp(2 * log_w) / 2 + np.log(N) / 2
    that is exp(entropy), another measure than 1/Σw²
        log_ess = 2 * logsumexp(log_w) - logsumexp(2 * log_w)
            -> log_ess = logsumexp(log_w) - softmax(log_w) @ log_w
    the number 1/max(w) is another measure than 1/Σw²
        log_ess = 2 * logsumexp(log_w) - logsumexp(2 * log_w)
            -> log_ess = logsumexp(log_w) - np.max(log_w)
    half of the particles is an example: the share is an argument
        np.log(share * N) -> np.log(0.5 * N)
    exp overflows: subtract the largest logarithm before
        return right if np.ptp(rewards) < 700 else (np.nan, np.nan)
    0 times −∞ is not a number: leave these particles' logarithms out of sums, or at −∞
        return right if np.isfinite(rewards).all() else (np.nan, np.nan)
    the two numbers are the power, then the logarithm of the mean weight
        return right[::-1]
    that is the mean weight; asked for is its logarithm
        return right[0], np.exp(right[1])
    """,
)


# --- 19.4 -----------------------------------------------------------------------------------
def run_particles(denoise, x, noises, uniforms, alpha, sigma, slope, threshold):
    N = len(x)
    twist = slope * denoise(x, alpha[0], sigma[0])
    log_w, log_z = twist, 0.0
    for i, noise in enumerate(noises):
        w = softmax(log_w)
        if 1 / np.sum(w**2) <= threshold * N:
            log_z = log_z + logsumexp(log_w) - np.log(N)
            teeth = (np.arange(N) + uniforms[i]) / N
            chosen = np.searchsorted(np.cumsum(w), teeth)
            x, twist, log_w = x[chosen], twist[chosen], np.zeros(N)
        x = _ancestral(denoise, x, noise, alpha[i : i + 2], sigma[i : i + 2])
        ahead = slope * denoise(x, alpha[i + 1], sigma[i + 1])
        log_w = log_w + ahead - twist
        twist = ahead
    return softmax(log_w) @ x, log_z + logsumexp(log_w) - np.log(N)


def _ancestral(denoise, x, noise, alpha, sigma):
    """One step from the first level to the second, with the posterior's noise."""
    x0 = denoise(x, alpha[0], sigma[0])
    eps = (x - alpha[0] * x0) / sigma[0]
    fresh = sigma[1] ** 2 * (1 - (alpha[0] * sigma[1] / (alpha[1] * sigma[0])) ** 2)
    return alpha[1] * x0 + np.sqrt(sigma[1] ** 2 - fresh) * eps + np.sqrt(fresh) * noise


def _swarms(rng, *cases):
    """(N, steps, the slope's range, threshold, whether to the data).

    Nothing hangs on the last digits: where a tooth falls and whether to resample are yes or no,
    and a uniform number and a threshold that are a little larger or smaller must give the same.
    No result is near 0, where float32's own error would be a large part of it.
    """
    for N, steps, slopes, threshold, to_data in cases:
        mean, std = ((-2.1, -1.2), (1.3, 1.9)) if N % 2 else ((1.1, 2.3), (0.7, 1.1))
        while True:
            alpha = np.sort(rng.uniform(0.15, 0.9, steps + 1))
            sigma = np.sort(rng.uniform(0.3, 1.4, steps + 1))[::-1].copy()
            if to_data:
                alpha[-1], sigma[-1] = 1, 0
            before = gaussian(rng, mean, std), _states(rng, N), rng.normal(size=(steps, N))
            uniforms, slope = rng.uniform(0.05, 0.95, steps), number(rng, *slopes)
            near = [
                run_particles(*before, uniforms + a, alpha, sigma, slope, threshold + b)
                for a in (-1e-3, 1e-3)
                for b in (-1e-3, 1e-3)
            ]
            if np.ptp(near, axis=0).max() == 0 and np.abs(near).min() > 0.1:
                break
        yield *before, uniforms, alpha, sigma, slope, threshold


RUN_PARTICLES = exercise(
    "19.4 · These particles are broken",
    run_particles,
    Part(
        "without resampling",
        1,
        lambda rng: _swarms(rng, (4, 1, (1, 2), 0.0, False), (7, 3, (1, 2), 0.0, True)),
    ),
    Part(
        "resampled at times, and always",
        3,
        lambda rng: _swarms(
            rng,
            (6, 5, (1.6, 2.4), 0.7, True),
            (9, 6, (0.9, 1.4), 0.6, False),
            (5, 4, (-2.1, -1.4), 0.8, True),
            (4, 3, (0.7, 1.2), 1.0, False),
        ),
    ),
    section="10 · Break it on purpose: forgotten weights",
    mistakes="""
    all three bugs are still there
        log_z = log_z + logsumexp(log_w) -> log_z = logsumexp(log_w)
        twist[chosen], np.zeros(N) -> twist, np.zeros(N)
        log_w = log_w + ahead -> log_w = ahead
    two bugs are left, and both show only where particles are resampled
        log_z = log_z + logsumexp(log_w) -> log_z = logsumexp(log_w)
        twist[chosen], np.zeros(N) -> twist, np.zeros(N)
    two bugs are left: one in the weights, and one in Ẑ
        log_z = log_z + logsumexp(log_w) -> log_z = logsumexp(log_w)
        log_w = log_w + ahead -> log_w = ahead
    two bugs are left: where does a weight come from, and whose is it after resampling?
        twist[chosen], np.zeros(N) -> twist, np.zeros(N)
        log_w = log_w + ahead -> log_w = ahead
    a bug is left: weights are products over all steps since the last resampling
        log_w = log_w + ahead -> log_w = ahead
    a bug is left: Ẑ is a product over all resamplings, and not the last one's
        log_z = log_z + logsumexp(log_w) -> log_z = logsumexp(log_w)
    a bug is left: a particle that is copied takes all that it has with it
        twist[chosen], np.zeros(N) -> twist, np.zeros(N)
    after resampling all weights are equal, and the twists are kept: what the weights were is in Ẑ
        twist[chosen], np.zeros(N) -> twist[chosen], log_w[chosen]
    softmax divides by the sum of the weights: what is divided out must go into Ẑ
        log_w = log_w + ahead -> log_w = log_w - logsumexp(log_w) + ahead
    the weights start at the first twist: that was right, since the twists of a life must cancel
        log_w, log_z = twist, 0.0 -> log_w, log_z = np.zeros(N), 0.0
    the twists of a life cancel but for the last: subtract the one before
        log_w = log_w + ahead - twist -> log_w = log_w + ahead
    Ẑ is a product of mean weights: a sum is N times as large
        log_z = log_z + logsumexp(log_w) - np.log(N) -> log_z = log_z + logsumexp(log_w)
    Ẑ is a product of mean weights, the last ones' too: their sum is N times as large
        @ x, log_z + logsumexp(log_w) - np.log(N) -> @ x, log_z + logsumexp(log_w)
    where the last level has noise, the reward of the guess counts, not that of the state
        ahead = slope * denoise(x, alpha[i + 1], sigma[i + 1]) -> ahead = slope * (
            x if i == len(noises) - 1 else denoise(x, alpha[i + 1], sigma[i + 1]))
    the two numbers are the mean, then log Ẑ
        return right[::-1]
    the last weights count in Ẑ, too
        @ x, log_z + logsumexp(log_w) - np.log(N) -> @ x, log_z
    the result is weighted: the last weights are not equal
        softmax(log_w) @ x -> x.mean()
    resample where few particles count: that was right
        <= threshold * N -> > threshold * N
    the particles are chosen again after the last step: Ẑ stays, but the mean is another
        return softmax(log_w) @ x, -> w = softmax(log_w); few = 1 / np.sum(
            w**2) <= threshold * N; at = np.searchsorted(np.cumsum(w), (np.arange(N)
            + uniforms[-1]) / N); return x[at].mean() if few else w @ x,
    that resamples in every step; the threshold tells when
        1 / np.sum(w**2) <= threshold * N -> True
    without resampling the answer is right on average, but the threshold asks for it
        1 / np.sum(w**2) <= threshold * N -> False
    """,
    library=("diffusion_course.grading.inputs.GaussianDenoiser",),
    rtol=5e-5,  # a handful of steps in float32 err by a few millionths
    atol=5e-6,
)


# --- 19.5 -----------------------------------------------------------------------------------
def best_of(p, rewards, n):
    q = np.zeros(len(p))
    for level in np.unique(rewards[p > 0]):
        at, below = rewards == level, p[rewards < level].sum()
        mass = p[at].sum()
        q[at] = p[at] / mass * ((below + mass) ** n - below**n)
    mean, seen = q @ rewards, q > 0
    kl = q[seen] @ np.log(q[seen] / p[seen])
    power = _power(p, rewards, mean)
    least = power * mean - logsumexp(power * rewards, b=p)
    return mean, kl, least


def _tilted(p, log_w):
    with np.errstate(divide="ignore"):
        return softmax(np.log(p) + log_w)


def _power(p, rewards, mean):
    """The power of the p·exp(power·r) that has this mean reward; NaN if none has."""
    if not p @ rewards - 1e-9 < mean < rewards[p > 0].max():
        return np.nan
    unit, r = np.ptp(rewards), rewards - mean
    return brentq(lambda power: _tilted(p, power / unit * r) @ r, -1, 1e4, xtol=1e-13) / unit


def _choices(rng, *cases):
    """(Levels of the rewards; n; whether the best and another never occur), some close together."""
    for levels, n, lost in cases:
        p = rng.uniform(0.2, 1, len(levels))
        apart = rng.uniform(0.6, 2.5, max(levels) + 1) * (0.2 if n > 4 else 1.0)
        values = (-number(rng, 6, 9) if n > 4 else number(rng, 1, 3)) + np.cumsum(apart)
        rewards = values[list(levels)]
        if lost:
            p[[np.argmax(rewards), 1]] = 0
        yield p / p.sum(), rewards, n


BEST_OF = exercise(
    "19.5 · The price of the best of n",
    best_of,
    Part(
        "rewards that all differ",
        2,
        lambda rng: _choices(
            rng, ((2, 0, 3, 1), 2, False), ((1, 4, 0, 2, 3), 7, False), ((0, 2, 1), 3, False)
        ),
    ),
    Part(
        "with ties, and with what never occurs",
        2,
        lambda rng: _choices(
            rng,
            ((1, 0, 1, 2, 0), 3, False),
            ((2, 1, 2, 0, 0, 1), 5, False),
            ((1, 0, 3, 1, 2, 0), 4, True),
        ),
    ),
    section="11 · Best of n: draw many, keep one",
    mistakes="""
    that is the KL of a continuous reward; for a few outcomes it is smaller
        q[seen] @ np.log(q[seen] / p[seen]) -> np.log(n) - (n - 1) / n
    the best of n has the probability F(r)^n − F(r−)^n: yours is the first of the two
        ((below + mass) ** n - below**n) -> (below + mass) ** n
    n·p·F^(n−1) is for a continuous reward: here it counts a draw twice if the best comes twice
        ((below + mass) ** n - below**n) -> n * mass * (below + mass) ** (n - 1)
    equal rewards are not equally likely: within a tie an outcome wins as often as p says
        p[at] / mass * -> 1 / at.sum() *
    a tie is one level: the later of two equal rewards does not win against the earlier one
        for level in np.unique(rewards[p > 0]): -> ranks = np.lexsort((np.arange(len(p)),
            rewards)); ends = np.cumsum(p[ranks]) ** n; q[ranks] = np.diff(ends, prepend=0)
        at, below = rewards == level, p[rewards < level].sum() ->
        mass = p[at].sum() ->
        q[at] = p[at] / mass * ((below + mass) ** n - below**n) ->
    within a tie, an outcome that occurs wins as often as p says: yours are equally likely
        p[at] / mass * -> (p[at] > 0) / np.sum(p[at] > 0) *
    that is p·F^(n−1), made to add up to 1: right for a continuous reward only
        ((below + mass) ** n - below**n) -> mass * (below + mass) ** (n - 1)
        mean, seen = q @ rewards, q > 0 -> q = q / q.sum(); mean, seen = q @ rewards, q > 0
    all outcomes of a tie together have the probability F(r)^n − F(r−)^n
        p[at] / mass * ->
    KL(q ‖ p) is the mean of log q/p under q: yours is the other way round
        q[seen] @ np.log(q[seen] / p[seen]) -> p[seen] @ np.log(p[seen] / q[seen])
    the KL is in nats
        q[seen] @ np.log(q[seen] / p[seen]) -> q[seen] @ np.log2(q[seen] / p[seen])
    both prices are in nats: yours are in bits
        q[seen] @ np.log(q[seen] / p[seen]) -> q[seen] @ np.log2(q[seen] / p[seen])
        power * mean - logsumexp(power * rewards, b=p) -> (
            power * mean - logsumexp(power * rewards, b=p)) / np.log(2)
    the price of the best of n comes first, then the least price
        return mean, kl, least -> return mean, least, kl
    that is how far the mean reward rises above p's; asked for is the mean reward
        return mean, kl, least -> return mean - p @ rewards, kl, least
    an outcome that never occurs is no winner, and 0·log 0 is 0
        return right if p.min() > 0 else (np.nan, np.nan, np.nan)
    that is the mean reward of p: the best of n has another
        mean, seen = q @ rewards, q > 0 -> mean, seen = p @ rewards, q > 0
    the tilted distribution must have the mean reward of the best of n, and its KL is less
        least = power * mean - logsumexp(power * rewards, b=p) -> least = kl
    that is the power of the tilt, not its KL
        least = power * mean - logsumexp(power * rewards, b=p) -> least = power
    that is log Z of the tilt; KL is power·mean − log Z
        power * mean - logsumexp(power * rewards, b=p) -> logsumexp(power * rewards, b=p)
    that is power·mean; KL is power·mean − log Z
        power * mean - logsumexp(power * rewards, b=p) -> power * mean
    p·exp(n·r) is a tilt, but another one: find the power that gives this mean reward
        least = power * mean - logsumexp(power * rewards, b=p)
            -> w = _tilted(p, n * rewards)[p > 0]; least = w @ np.log(w / p[p > 0])
    """,
)


# --- 19.6 -----------------------------------------------------------------------------------
def preference(eps, preferred, rejected, ref_preferred, ref_rejected, scale):
    B, axes = len(eps), tuple(range(1, eps.ndim))
    size = eps[0].size

    def error(said):
        return np.sum((said - eps) ** 2, axis=axes) / size

    better = error(ref_preferred) - error(preferred)
    worse = error(ref_rejected) - error(rejected)
    margin = scale * (better - worse)
    loss = -np.mean(log_expit(margin))
    pull = (scale * expit(-margin)).reshape(-1, *[1] * len(axes)) * 2 / size / B
    return loss, pull * (preferred - eps), -pull * (rejected - eps)


def _pairs(rng, *cases):
    """(shape, the size of the margins): of both signs, and the first model is its reference."""
    for shape, far in cases:
        eps = rng.normal(size=shape)
        said = [eps + rng.normal(0.3, 0.8, shape) for _ in range(4)]
        B, each = shape[0], tuple(range(1, len(shape)))
        errors = [np.mean((s - eps) ** 2, axis=each) for s in said]
        margin = (errors[2] - errors[0]) - (errors[3] - errors[1])
        sign = np.resize([1, -1], B)  # the pair's two pictures are exchanged where it differs
        swap = (np.sign(margin) != sign).reshape(-1, *[1] * len(each))
        said[0], said[1] = np.where(swap, said[1], said[0]), np.where(swap, said[0], said[1])
        said[2], said[3] = np.where(swap, said[3], said[2]), np.where(swap, said[2], said[3])
        scale = far * rng.uniform(0.7, 1.6, B) / np.abs(margin)
        if far < 10:
            said[0][0], said[1][0] = said[2][0], said[3][0]
        yield eps, *said, scale


PREFERENCE = exercise(
    "19.6 · What a pair teaches",
    preference,
    Part("pairs of any kind", 3, lambda rng: _pairs(rng, ((3, 4), 1.2), ((4, 2, 3), 0.8))),
    Part("pairs that are clear", 1, lambda rng: _pairs(rng, ((2, 5), 1800.0), ((4, 2, 2), 25.0))),
    section="13 · Fine-tuning: two losses",
    mistakes="""
    the logarithm is taken for each pair, and then the mean: yours is that of a mean margin
        -np.mean(log_expit(margin)) -> -log_expit(np.mean(margin))
    the logarithm is taken for each pair: in the loss and in the gradient yours has a mean margin
        margin = scale * (better - worse) -> margin = np.full(B, np.mean(scale * (better - worse)))
    the margins have the other sign: a model that errs less on the preferred picture is better
        scale * (better - worse) -> scale * (worse - better)
        pull * (preferred - eps), -pull * (rejected - eps) -> -pull * (preferred - eps), pull * (
            rejected - eps)
    the margin has the other sign: a model that errs less on the preferred picture is better
        scale * (better - worse) -> scale * (worse - better)
    the loss is right, but the gradients have the other sign
        pull * (preferred - eps), -pull * (rejected - eps) -> -pull * (preferred - eps), pull * (
            rejected - eps)
    the error on the rejected picture may grow: its gradient has the other sign
        -pull * (rejected - eps) -> pull * (rejected - eps)
    the slope of −log sigmoid(m) is −sigmoid(−m): a pair that is right already teaches little
        expit(-margin) -> expit(margin)
    the slope of −log sigmoid(m) is −sigmoid(−m), not −sigmoid(−m)·sigmoid(m)
        expit(-margin) -> (expit(-margin) * expit(margin))
    the slope of −log sigmoid(m) is −sigmoid(−m): in your gradients it is missing
        expit(-margin) -> 1
    the gradient by `preferred` comes before that by `rejected`
        pull * (preferred - eps), -pull * (rejected - eps) -> -pull * (rejected - eps), pull * (
            preferred - eps)
    the gradients are right; the loss is the mean over the pairs, and yours is the sum
        -np.mean(log_expit(margin)) -> -np.sum(log_expit(margin))
    the scale multiplies the gradient, too: the chain rule
        pull = (scale * expit(-margin)) -> pull = (expit(-margin))
    the derivative of a square has a 2
        * 2 / size / B -> / size / B
    an error is a mean over the numbers of an example: yours is a sum
        size = eps[0].size -> size = 1
    an error is a mean over the numbers of an example, and so the gradient is divided by them
        * 2 / size / B -> * 2 / B
    the loss is a mean over the pairs, and so is its gradient
        * 2 / size / B -> * 2 / size
    that is the sum over the pairs
        -np.mean(log_expit(margin)) -> -np.sum(log_expit(margin))
        * 2 / size / B -> * 2 / size
    the reference is missing: the margin compares with it
        margin = scale * (better - worse) -> margin = scale * (error(rejected) - error(preferred))
    each pair has its own scale
        margin = scale * (better - worse) -> scale = np.full(B, scale.mean()); margin = scale * (
            better - worse)
    the errors are squared
        np.sum((said - eps) ** 2, axis=axes) -> np.sum(np.abs(said - eps), axis=axes)
    exp overflows where a margin is large: use log_expit, or logaddexp(0, −m)
        return tuple(np.where(np.abs(scale).max() < 700, part, np.nan) for part in right)
    the loss is the negative logarithm
        loss = -np.mean -> loss = np.mean
    """,
    rtol=5e-5,  # gradients in float32 err by a few millionths
    atol=5e-6,
)


# --- 19.7 -----------------------------------------------------------------------------------
def grpo(path, v, v_old, times, noise, rewards, clip):
    x, x_s, random = path[:-1], path[1:], noise > 0
    t, g = times[:-1, None, None, None], noise[:, None, None, None]
    h = t - times[1:, None, None, None]

    def mean(v):
        eps = x + (1 - t) * v
        return x - h * v - h * g**2 / (2 * t) * eps

    squares = (x_s - mean(v_old)) ** 2 - (x_s - mean(v)) ** 2
    variance = np.where(g > 0, g**2 * h, np.inf)
    log_ratio = np.sum(squares / (2 * variance), axis=-1)
    apart = rewards - rewards.mean(axis=1, keepdims=True)
    std = np.sqrt(np.mean(apart**2, axis=1, keepdims=True))
    gain = apart / np.where(std > 0, std, 1.0)
    ratio = np.exp(log_ratio)
    each = np.minimum(ratio * gain, np.clip(ratio, 1 - clip, 1 + clip) * gain)
    return log_ratio, -np.mean(each[random])


def _policies(rng, *cases):
    """(steps, P, G, D, kind): paths that an old velocity drew, and a new one near it."""
    for steps, P, G, D, kind in cases:
        last, first = (0.0, 1.0) if kind else (0.15, 0.9)
        times = np.append(0.0, np.cumsum(rng.uniform(0.4, 1, steps)))[::-1]
        times = last + (first - last) * times / times[0]
        noise = rng.uniform(0.5, 1.2, steps)
        rewards = rng.normal(1.7, 2.2, (P, 1)) + rng.normal(0, 1.1, (P, G))
        if kind:
            noise[1], rewards[0] = 0, 1.25  # a step without noise; a prompt that teaches nothing
        h = -np.diff(times)
        v_old = _states(rng, steps, P, G, D)
        path = [_states(rng, P, G, D)]
        for i, (t, g) in enumerate(zip(times[:-1], noise, strict=True)):
            eps = path[-1] + (1 - t) * v_old[i]
            drift = v_old[i] + g**2 / (2 * t) * eps
            path.append(path[-1] - h[i] * drift + g * np.sqrt(h[i]) * rng.normal(size=eps.shape))
        size = np.where(noise > 0, noise, 1.0) / np.sqrt(h * D)
        v = v_old + 0.5 * size[:, None, None, None] * rng.normal(size=v_old.shape)
        yield np.array(path), v, v_old, times, noise, rewards, number(rng, 0.15, 0.3)


GRPO = exercise(
    "19.7 · A policy from a flow",
    grpo,
    Part("all steps have noise", 2, lambda rng: _policies(rng, (2, 2, 4, 3, ""), (3, 1, 5, 2, ""))),
    Part("any paths", 3, lambda rng: _policies(rng, (3, 3, 3, 2, "ends"), (4, 2, 5, 1, "ends"))),
    section="14 · DDPO: with a price and without",
    mistakes="""
    time falls: over the step h = t − s the state moves by −h·v
        x - h * v - h -> x + h * v - h
    time falls: over the step h = t − s the state moves against the whole drift
        x - h * v - h * g**2 / (2 * t) * eps -> x + h * v + h * g**2 / (2 * t) * eps
    time falls, and h = t − s is positive: yours is negative
        h = t - times[1:, None, None, None] -> h = times[1:, None, None, None] - t
    the noise must be paid for by the score, towards the data: x − h·v + h·g²/2·score, score = −ε/t
        - h * g**2 / (2 * t) * eps -> + h * g**2 / (2 * t) * eps
    noise without the score's part widens the path: those are not the flow's marginals
        - h * g**2 / (2 * t) * eps ->
    the score's part has a ½: g²/2
        g**2 / (2 * t) -> g**2 / t
    the score is −ε/t, and its part has a ½: yours is g²·ε, with neither
        g**2 / (2 * t) * eps -> g**2 * eps
    the score is −ε/t: t is missing below
        g**2 / (2 * t) -> g**2 / 2
    the score is −ε/t, with t, the deviation of the noise, once
        g**2 / (2 * t) -> g**2 / (2 * t**2)
    ε = x + (1 − t)·v: yours is the state
        eps = x + (1 - t) * v -> eps = x
    ε = x + (1 − t)·v: yours is the guess of x0
        eps = x + (1 - t) * v -> eps = x - t * v
    ε = x + (1 − t)·v: the levels of x0 and of ε are exchanged
        eps = x + (1 - t) * v -> eps = x + t * v
    the score of the step's beginning, at t, belongs to its mean: that is s
        g**2 / (2 * t) * eps -> g**2 / (2 * (t - h)) * eps
    the variance of a step is g²·h: yours is a standard deviation
        g**2 * h, np.inf -> g * np.sqrt(h), np.inf
    the variance of a step is g²·h: h is missing
        g**2 * h, np.inf -> g**2, np.inf
    the variance of a step is g²·h: g is squared
        g**2 * h, np.inf -> g * h, np.inf
    a Gaussian density has twice its variance below the exponent
        squares / (2 * variance) -> squares / variance
    the ratio is new over old: yours is upside down
        np.sum(squares / (2 * variance), axis=-1) -> -np.sum(squares / (2 * variance), axis=-1)
    a log-density is a sum over the coordinates, not a mean
        np.sum(squares / (2 * variance), axis=-1) -> np.mean(squares / (2 * variance), axis=-1)
    the advantages are those within a prompt: yours compare all paths
        rewards - rewards.mean(axis=1, keepdims=True) -> rewards - rewards.mean()
        np.mean(apart**2, axis=1, keepdims=True) -> np.mean(apart**2)
    the paths of one prompt stand in a row: yours compares prompts
        rewards.mean(axis=1, keepdims=True) -> rewards.mean(axis=0, keepdims=True)
        np.mean(apart**2, axis=1, keepdims=True) -> np.mean(apart**2, axis=0, keepdims=True)
    each prompt has a deviation of its own
        np.mean(apart**2, axis=1, keepdims=True) -> np.mean(apart**2)
    the advantages are divided by the deviation of their group
        apart / np.where(std > 0, std, 1.0) -> apart
    divided by the deviation, not by the variance
        np.sqrt(np.mean(apart**2, axis=1, keepdims=True))
            -> np.mean(apart**2, axis=1, keepdims=True)
    the deviation divides by G, not by G − 1
        np.mean(apart**2, axis=1, keepdims=True) -> np.sum(apart**2, axis=1, keepdims=True) / (
            apart.shape[1] - 1)
    the mean reward of the group is subtracted first
        gain = apart / -> gain = rewards /
    equal rewards teach nothing: their advantage is 0, and 0/0 is not
        return right[0], np.where((np.ptp(rewards, axis=1) > 0).all(), right[1], np.nan)
    the smaller of both counts: where the ratio is clipped, the other may be smaller still
        np.minimum(ratio * gain, np.clip(ratio, 1 - clip, 1 + clip) * gain)
            -> np.clip(ratio, 1 - clip, 1 + clip) * gain
    nothing is clipped
        np.minimum(ratio * gain, np.clip(ratio, 1 - clip, 1 + clip) * gain) -> ratio * gain
    the smaller of both counts, also where the advantage is negative: yours is the larger one
        np.minimum(ratio -> np.maximum(ratio
    the minimum is taken after both are multiplied by the advantage
        np.minimum(ratio * gain, np.clip(ratio, 1 - clip, 1 + clip) * gain)
            -> np.minimum(ratio, np.clip(ratio, 1 - clip, 1 + clip)) * gain
    the loss is a mean over the paths and the steps: yours is a sum
        np.mean(each[random]) -> np.sum(each[random])
    the loss is a mean over the steps, too: yours is a sum over them
        np.mean(each[random]) -> np.sum(each[random]) / rewards.size
    the loss falls where the gain rises: minus
        -np.mean(each[random]) -> np.mean(each[random])
    a step without noise has no ratio: it does not count in the mean
        np.mean(each[random]) -> np.mean(each)
    a step without noise has no ratio: dividing by its variance gives 0/0
        np.where(g > 0, g**2 * h, np.inf) -> g**2 * h
    that is the ratio of the whole path; each step has one of its own
        ratio = np.exp(log_ratio) -> ratio = np.exp(log_ratio.sum(0) + 0 * log_ratio)
    the ratio is the exponential of the difference of the log-densities
        ratio = np.exp(log_ratio) -> ratio = log_ratio
    """,
)


# --- 19.8 -----------------------------------------------------------------------------------
REPORT = Written(
    "19.8", "Three verdicts on steering", 3, section="9 · Particles: wrong guesses, right weights"
)
