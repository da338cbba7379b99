"""Exercises of chapter 11, Solvers: third order, stochastic, adaptive."""

import numpy as np

from diffusion_course.grading.answers.drawing import gaussian, images, normal, number
from diffusion_course.grading.answers.writing import exercise
from diffusion_course.grading.exercise import Part, Written


# --- 11.1 -----------------------------------------------------------------------------------
def moments(h, eta, K):
    c = 1 + eta**2
    m = [1 - np.exp(-c * h)]
    for j in range(1, K):
        m.append(h**j - j / c * m[-1])
    return np.array(m)


def _lengths(rng, *etas):
    return [(number(rng, 0.6, 1.7), eta, K) for eta in etas for K in (1, 2, 4)]


MOMENTS = exercise(
    "11.1 · The integrals of a noisy step",
    moments,
    Part("without noise", 1, lambda rng: _lengths(rng, 0.0)),
    Part("with any η", 1, lambda rng: _lengths(rng, number(rng, 0.4, 0.8), number(rng, 1.2, 1.5))),
    section="5 · Stochastic solvers",
    mistakes="""
    integration by parts divides by c once more: j/c, not j
        j / c * m[-1] -> j * m[-1]
    by parts, the integral of the lower power is subtracted
        h**j - j / c -> h**j + j / c
    the factor c stands inside the integral: without it all of them are too small
        return right / (1 + eta**2)
    c is 1 + η²: η is squared
        1 + eta**2 -> 1 + eta
    the exponent is c·h
        np.exp(-c * h) -> np.exp(-h)
    the weight of the power 0 is 1 − e^(−ch), not e^(−ch)
        [1 - np.exp(-c * h)] -> [np.exp(-c * h)]
    c·h takes the place of h in the exponent only; the powers are those of u
        h**j - -> (c * h)**j -
    by parts, the boundary term is h^j: the integral of the weight itself has no c
        h**j - j / c -> c * h**j - j
    the derivative of u^j has the factor j
        j / c -> 1 / c
    c is 1 + η²: yours is 1 for every η
        1 + eta**2 -> 1
    the weight is e^(−c(h − u)), large at the end of the step: yours is e^(−cu)
        h**j - j / c * m[-1] -> j / c * m[-1] - h**j * np.exp(-c * h)
    """,
)


# --- 11.2 -----------------------------------------------------------------------------------
def noise_weights(nodes, h):
    n = [np.exp(h) - 1]
    for j in range(1, len(nodes)):
        n.append(j * n[-1] - h**j)
    return np.linalg.solve(np.vander(nodes, increasing=True).T, n)


def _nodes(rng, *counts):
    for K in counts:
        back = -np.cumsum(rng.uniform(0.3, 0.9, K - 1))
        yield np.append(0.0, back), number(rng, 0.4, 1.2)


def _scattered(rng):
    """Places in no order, and none of them at the beginning of the step."""
    yield np.array([-0.8, 0.6, -0.3]) + rng.uniform(-0.1, 0.1, 3), number(rng, 0.4, 1.2)


NOISE_WEIGHTS = exercise(
    "11.2 · The same for ε",
    noise_weights,
    Part("one and two estimates", 1, lambda rng: _nodes(rng, 1, 2)),
    Part("any number, at any places", 2, lambda rng: [*_nodes(rng, 3, 4), *_scattered(rng)]),
    section="2 · The exact solution, but for one integral",
    mistakes="""
    these are the weights for x0, with e^(u − h); for ε the exponential is e^(h − u)
        np.exp(h) - 1 -> 1 - np.exp(-h)
        j * n[-1] - h**j -> h**j - j * n[-1]
    by parts: j times the integral below, minus h^j
        j * n[-1] - h**j -> j * n[-1] + h**j
    the system's rows are powers and its columns nodes: yours is transposed
        increasing=True).T -> increasing=True)
    the powers must grow from 0
        nodes, increasing=True -> nodes
    those are the integrals of the powers; the weights of the estimates solve a system
        np.linalg.solve(np.vander(nodes, increasing=True).T, n) -> np.array(n)
    the integral of e^(h − u) over the step is e^h − 1
        np.exp(h) - 1 -> np.exp(h)
    the sign belongs to the step, not to the weights, whose sum is e^h − 1
        return -right
    the places are measured from λ_t: yours are measured from the first of them
        np.vander(nodes, -> np.vander(nodes - nodes[0],
    the exponential is e^(h − u), large at the beginning of the step: yours is e^u
        j * n[-1] - h**j -> h**j * np.exp(h) - j * n[-1]
    the nodes are lengths in λ, like h: yours are divided by h
        np.vander(nodes, -> np.vander(nodes / h,
    the derivative of u^j has the factor j
        j * n[-1] -> n[-1]
    """,
)


# --- 11.3 -----------------------------------------------------------------------------------
def control(low, high, x, h, tolerance):
    size = tolerance * np.maximum(1, np.maximum(np.abs(x), np.abs(low)))
    scaled = ((high - low) / size).reshape(len(x), -1)
    error = np.sqrt(np.mean(scaled**2, axis=1)).max()
    factor = np.clip(0.9 * error ** (-1 / 3), 0.2, 5)
    return np.array([float(error <= 1), h * factor])


def _attempts(rng, *errors):
    """Attempts whose worst example has these errors, in units of what is allowed."""
    for error, shape in zip(errors, 2 * ((3, 4), (2, 3, 2, 1)), strict=False):
        # Values above and below 1 of both signs; in one half x is larger, in the other half low.
        x, low = 1.5 * normal(rng, *shape), 1.5 * normal(rng, *shape)
        tolerance = number(rng, 0.04, 0.09)  # so large that the scale of high is another one
        size = tolerance * np.maximum(1, np.maximum(np.abs(x), np.abs(low)))
        rough = normal(rng, *shape)
        rms = np.sqrt(np.mean(rough.reshape(len(x), -1) ** 2, axis=1))
        share = rng.permutation(np.append(1.0, rng.uniform(0.2, 0.9, len(x) - 1))) / rms
        high = low + error * size * rough * share.reshape(-1, *[1] * (x.ndim - 1))
        yield low, high.astype(np.float32), x, number(rng, 0.3, 0.9), tolerance


CONTROL = exercise(
    "11.3 · Accept or reject",
    control,
    Part("steps that are good, and bad", 1, lambda rng: _attempts(rng, 0.93, 1.08, 0.3, 6.0)),
    Part("the length changes by 0.2 to 5 times", 1, lambda rng: _attempts(rng, 1e-3, 400.0)),
    section="6 · Steps that choose themselves",
    mistakes="""
    the worst example decides: yours is the mean of the examples
        .max() -> .mean()
    one rms over the whole batch hides the worst example
        np.mean(scaled**2, axis=1) -> np.mean(scaled**2)
    the difference grows like h³: the root is the third one
        (-1 / 3) -> (-1 / 2)
    the difference of orders 2 and 3 grows like h³, not like h⁴: the root is the third one
        (-1 / 3) -> (-1 / 4)
    the error of an example is the rms of its numbers, not the largest of them
        np.sqrt(np.mean(scaled**2, axis=1)).max() -> np.abs(scaled).max()
    the scale is that of x and of low, not of high
        np.maximum(np.abs(x), np.abs(low)) -> np.maximum(np.abs(x), np.abs(high))
    that is the factor; the next length is h times the factor
        h * factor -> factor
    the factor is upside down: a large error needs a shorter step
        (-1 / 3) -> (1 / 3)
    the change of the length has limits, 0.2 and 5
        np.clip(0.9 * error ** (-1 / 3), 0.2, 5) -> 0.9 * error ** (-1 / 3)
    accepted and rejected are exchanged
        error <= 1 -> error > 1
    the safety factor 0.9 is missing
        0.9 * error -> error
    large values may err by more: the tolerance is relative above 1
        tolerance * np.maximum(1, np.maximum(np.abs(x), np.abs(low))) -> tolerance
    it is never stricter than the tolerance itself: max(1, |x|, |low|)
        np.maximum(1, np.maximum(np.abs(x), np.abs(low))) -> np.maximum(np.abs(x), np.abs(low))
    the order: first 1 or 0, then the next length
        return right[::-1]
    the worst example decides, not the best
        .max() -> .min()
    a rms is the root of the mean of the squares: yours is the root of their sum
        np.mean(scaled**2, axis=1) -> np.sum(scaled**2, axis=1)
    a rms is the root of the mean of the squares: the root is missing
        np.sqrt(np.mean(scaled**2, axis=1)) -> np.mean(scaled**2, axis=1)
    an example may be an image: its rms is over all its numbers
        .reshape(len(x), -1) ->
    the differences are scaled number by number: yours have one scale, from the largest number
        np.maximum(1, np.maximum(np.abs(x), np.abs(low))) ->
            max(1, np.abs(x).max(), np.abs(low).max())
    the scale is of sizes, |x| and |low|: a large negative number is large, too
        np.maximum(np.abs(x), np.abs(low)) -> np.maximum(x, low)
    the scale looks at x, too, and not at low alone
        np.maximum(np.abs(x), np.abs(low)) -> np.abs(low)
    the scale looks at low, too, and not at x alone
        np.maximum(np.abs(x), np.abs(low)) -> np.abs(x)
    the limits are 0.2·h and 5·h: yours are 0.2 and 5
        h * factor -> np.clip(0.9 * h * error ** (-1 / 3), 0.2, 5)
    after an accepted step the next length changes, too
        h * factor -> h if error <= 1 else h * factor
    after a rejected step the next length changes, too
        h * factor -> h * factor if error <= 1 else h
    a step is accepted if the error is at most 1; whether the next one is longer doesn't matter
        error <= 1 -> factor >= 1
    the differences were divided by the tolerance already: accept up to an error of 1
        error <= 1 -> error <= tolerance
    """,
)


# --- 11.4 -----------------------------------------------------------------------------------
def corrected(x_t, x0_t, x0_s, noise, at_t, at_s, eta):
    (alpha_t, sigma_t), (alpha_s, sigma_s) = at_t, at_s
    h = np.log(alpha_s / sigma_s) - np.log(alpha_t / sigma_t)
    c = 1 + eta**2
    whole = 1 - np.exp(-c * h)
    at_end = 1 - whole / (c * h)
    kept = sigma_s / sigma_t * np.exp(-(eta**2) * h)
    fresh = sigma_s * np.sqrt(1 - np.exp(-2 * eta**2 * h))
    return kept * x_t + alpha_s * ((whole - at_end) * x0_t + at_end * x0_s) + fresh * noise


def _ends(rng):
    """(α, σ) at t and at s; their squares need not add up to 1."""
    alpha, sigma = np.sort(rng.uniform(0.2, 0.9, 2)), np.sort(rng.uniform(0.3, 1.4, 2))
    return np.array([alpha[0], sigma[1]]), np.array([alpha[1], sigma[0]])


def _corrections(rng, *etas):
    for eta, shape in zip(etas, ((5,), (2, 3)), strict=True):
        states = [images(rng, *shape) for _ in range(3)]
        yield (*states, normal(rng, *shape), *_ends(rng), eta)


CORRECTED = exercise(
    "11.4 · A corrector with noise",
    corrected,
    Part("without noise", 2, lambda rng: _corrections(rng, 0.0, 0.0)),
    Part("with any η", 2, lambda rng: _corrections(rng, number(rng, 0.4, 0.8), 1.3)),
    section="5 · Stochastic solvers",
    mistakes="""
    half and half is the mean of a line only without the exponential
        at_end = 1 - whole / (c * h) -> at_end = whole / 2
    the two estimates are exchanged: the exponential prefers the end of the step
        return corrected(x_t, x0_s, x0_t, noise, at_t, at_s, eta)
    only the estimate at the beginning is used: nothing is corrected
        return corrected(x_t, x0_t, x0_t, noise, at_t, at_s, eta)
    the slope of the line is the difference of the estimates divided by h
        at_end = 1 - whole / (c * h) -> at_end = h - whole / c
    h is the difference of log(α/σ), half of that of the log-SNR
        c = 1 + eta**2 -> h, c = 2 * h, 1 + eta**2
    this is how chapter 06 counts η; in equation (4) η² stands in the exponent
        np.sqrt(1 - np.exp(-2 * eta**2 * h)) -> eta * np.sqrt(1 - np.exp(-2 * h))
    the line's integral by parts: c·h divides, not h
        whole / (c * h) -> whole / h
    the old noise shrinks by e^(−η²h) too
        * np.exp(-(eta**2) * h) ->
    η is squared in the exponent of what is kept
        np.exp(-(eta**2) * h) -> np.exp(-eta * h)
    fresh noise is multiplied by its standard deviation: take the root
        np.sqrt(1 - np.exp(-2 * eta**2 * h)) -> (1 - np.exp(-2 * eta**2 * h))
    the fresh variance is 1 − e^(−2η²h): the 2 is missing
        -2 * eta**2 -> -(eta**2)
    the fresh noise is missing
        + fresh * noise ->
    the weights belong to the probability flow; with noise c is 1 + η²
        c = 1 + eta**2 -> c = 1
    only the estimate at the end is used: the line goes through both
        return corrected(x_t, x0_s, x0_s, noise, at_t, at_s, eta)
    η is squared: in c, in what is kept and in the fresh variance
        return corrected(x_t, x0_t, x0_s, noise, at_t, at_s, eta**0.5)
    the estimates are multiplied by α at the end of the step
        + alpha_s * -> + alpha_t *
    the fresh noise has the size that belongs to σ at the end of the step
        fresh = sigma_s -> fresh = sigma_t
    a level is the pair (alpha, sigma): yours is read in the other order
        return corrected(x_t, x0_t, x0_s, noise, at_t[::-1], at_s[::-1], eta)
    """,
)


# --- 11.5 -----------------------------------------------------------------------------------
def sample_sde(denoise, x, noises, alpha, sigma):
    before = h_before = None
    for n, noise in enumerate(noises):
        x0 = ahead = denoise(x, alpha[n], sigma[n])
        if sigma[n + 1] == 0:
            return x0
        h = np.log(alpha[n + 1] / sigma[n + 1]) - np.log(alpha[n] / sigma[n])
        if n > 0:
            ahead = x0 + h / (2 * h_before) * (x0 - before)
        before, h_before = x0, h
        mean = sigma[n + 1] / sigma[n] * np.exp(-h) * x
        x = mean + alpha[n + 1] * (1 - np.exp(-2 * h)) * ahead
        x = x + sigma[n + 1] * np.sqrt(1 - np.exp(-2 * h)) * noise
    return x


def _tables(rng, *walks):
    """Walks from noise: (steps, whether to the data). Every other one has other shapes and data."""
    for number_of, (steps, to_data) in enumerate(walks):
        alpha = np.sort(rng.uniform(0.15, 0.9, steps + 1))
        sigma = np.sort(rng.uniform(0.3, 1.4, steps + 1))[::-1].copy()
        if to_data:
            alpha[-1], sigma[-1] = 1, 0
        # Wide data, whose guess follows the state, on the other side of 0; or narrow ones.
        denoise = gaussian(rng, (-2.1, -1.2), (1.3, 1.9)) if number_of % 2 else gaussian(rng)
        shape = (2, 3) if number_of % 2 else (4,)
        yield denoise, images(rng, *shape), normal(rng, steps, *shape), alpha, sigma


def _short_steps(rng):
    """Three steps of a hundredth and, between them, one of some ten-thousandths."""
    ((denoise, x, noises, _, _),) = _tables(rng, (4, False))
    lengths = np.array([0, 0.01, 2e-4, 0.012, 0.009])
    alpha = number(rng, 0.5, 0.7) * np.exp(np.cumsum(lengths) / 2)
    sigma = number(rng, 0.6, 0.8) * np.exp(-np.cumsum(lengths) / 2)
    return [(denoise, x, noises, alpha, sigma)]


BROKEN = exercise(
    "11.5 · This sampler is broken",
    sample_sde,
    Part("the first step", 1, lambda rng: _tables(rng, (1, False), (1, False))),
    Part(
        "a whole run",
        3,
        lambda rng: [*_tables(rng, (4, False), (6, True), (3, True)), *_short_steps(rng)],
    ),
    section="5 · Stochastic solvers",
    mistakes="""
    both bugs are still there
        np.sqrt(1 - np.exp(-2 * h)) -> np.sqrt(1 - np.exp(-h))
        before, h_before = x0 -> before, h_before = ahead
    a bug is left: the fresh variance and the kept noise do not add up
        np.sqrt(1 - np.exp(-2 * h)) -> np.sqrt(1 - np.exp(-h))
    a bug is left: what is remembered is not what the denoiser said
        before, h_before = x0 -> before, h_before = ahead
    the fresh noise is gone; the bug was elsewhere
        * noise -> * 0
    nothing is extrapolated any more; the bug was elsewhere
        h / (2 * h_before) -> 0
    the ratio was right: the length of this step over twice that of the step before
        h / (2 * h_before) -> h_before / (2 * h)
    the estimate is extrapolated to the middle of the step: half its length
        h / (2 * h_before) -> h / h_before
    the weight of the estimate was right: it is 1 − e^(−2h)
        (1 - np.exp(-2 * h)) * ahead -> (1 - np.exp(-h)) * ahead
    with less kept noise there is no reverse SDE: e^(−h) was right
        np.exp(-h) * x -> np.exp(-h / 2) * x
    what is kept was right: σ_s/σ_t times e^(−h), not e^(−2h)
        np.exp(-h) * x -> np.exp(-2 * h) * x
    fresh noise is multiplied by its standard deviation: the root was right
        np.sqrt(1 - np.exp(-2 * h)) -> (1 - np.exp(-2 * h))
    the fresh noise has the size that belongs to σ at the end of the step
        + sigma[n + 1] * np.sqrt -> + sigma[n] * np.sqrt
    """,
    library=("diffusion_course.grading.inputs.GaussianDenoiser",),
)


# --- 11.6 -----------------------------------------------------------------------------------
def picard(denoise, x, alpha, sigma, sweeps):
    n = len(alpha) - 1
    path = [x] * (n + 1)
    for _ in range(sweeps):
        old, path = path, [x]
        for i in range(n):
            x0 = denoise(old[i], alpha[i], sigma[i])
            keep = sigma[i + 1] / sigma[i]
            path.append(keep * path[i] + (alpha[i + 1] - alpha[i] * keep) * x0)
    return path[-1]


def _sweeps(rng, *cases):
    walks = _tables(rng, *[(steps, sweeps % 2 == 0) for steps, sweeps in cases])
    for (D, x, _, alpha, sigma), (_, sweeps) in zip(walks, cases, strict=True):
        yield D, x, alpha, sigma, sweeps


PICARD = exercise(
    "11.6 · All steps at once",
    picard,
    Part("one sweep", 1, lambda rng: _sweeps(rng, (4, 1), (3, 1))),
    Part("several, up to DDIM itself", 2, lambda rng: _sweeps(rng, (6, 2), (5, 3), (4, 4))),
    section="9 · Back up, and all at once",
    mistakes="""
    that is DDIM: a sweep evaluates all the old states, and only then takes its steps
        denoise(old[i] -> denoise(path[i]
    each step must start where the step before it in this sweep has ended
        keep * path[i] -> keep * old[i]
    one sweep too many
        range(sweeps) -> range(sweeps + 1)
    one sweep too few
        range(sweeps) -> range(sweeps - 1)
    a state is evaluated at the levels of its own time, not of the next one
        alpha[i], sigma[i]) -> alpha[i + 1], sigma[i + 1])
    the first guess is the start itself at every time
        path = [x] * (n + 1) -> path = [0 * x] * (n + 1)
    the first guess is the start itself at every later time, not 0
        path = [x] * (n + 1) -> path = [x] + [0 * x] * n
    each sweep begins at the start again: yours begins where the sweep before it has ended
        old, path = path, [x] -> old, path = path, [path[-1]]
    """,
)


# --- 11.7 -----------------------------------------------------------------------------------
def predict_correct(denoise, x, noises, alpha, sigma, eta):
    c, before = 1 + eta**2, None

    def move(x, i, slope, noise):
        h = np.log(alpha[i + 1] / sigma[i + 1]) - np.log(alpha[i] / sigma[i])
        whole = 1 - np.exp(-c * h)
        shrink = sigma[i + 1] / sigma[i] * np.exp(-(eta**2) * h)
        fresh = sigma[i + 1] * np.sqrt(1 - np.exp(-2 * eta**2 * h))
        mean = shrink * x + alpha[i + 1] * (whole * said[i] + (h - whole / c) * slope)
        return mean + fresh * noise

    lam, said, start = [], [], None
    for i, noise in enumerate(noises):
        lam.append(np.log(alpha[i] / sigma[i]))
        said.append(denoise(x, alpha[i], sigma[i]))
        slope = 0.0
        if i > 0:
            slope = (said[i] - said[i - 1]) / (lam[i] - lam[i - 1])
            x = move(start, i - 1, slope, before)
        start, before = x, noise
        if sigma[i + 1] == 0:
            return said[i]
        x = move(x, i, slope, noise)
    return x


def _runs(rng, *cases):
    for steps, eta in cases:
        for table in _tables(rng, (steps, False), (steps + 1, True)):
            yield (*table, eta)


STRETCH = exercise(
    "11.7 · Predictor, corrector, one evaluation",
    predict_correct,
    Part("without noise", 2, lambda rng: _runs(rng, (2, 0.0), (4, 0.0))),
    Part("with any η", 2, lambda rng: _runs(rng, (3, number(rng, 0.4, 0.8)), (2, 1.2))),
    section="2 · The exact solution, but for one integral",
    mistakes="""
    nothing is corrected: that is the predictor alone
        x = move(start, i - 1, slope, before) -> slope = slope + 0.0
    the corrector repeats a step with the noise of that step, not with a new one
        slope, before) -> slope, noise)
    the corrected state takes the place of the predicted one before the next step begins
        start, before = x, noise -> start, before = start if i else x, noise
    one evaluation per step: the corrected state is not evaluated again
        slope, before) -> slope, before); at_x, said[i] = said[i], denoise(x, alpha[i], sigma[i])
        return said[i] -> return at_x if i else said[i]
    a step to the data returns what was said at the predicted state, not at the corrected one
        return said[i] -> return denoise(x, alpha[i], sigma[i])
    nothing is extrapolated in the predictor
        x = move(x, i, slope, noise) -> x = move(x, i, 0.0, noise)
    the line's integral by parts divides by c
        whole / c) -> whole)
    the old noise shrinks by e^(−η²h) too
        * np.exp(-(eta**2) * h) ->
    the fresh variance is 1 − e^(−2η²h): the 2 is missing
        -2 * eta**2 -> -(eta**2)
    the corrector's line rises from the old estimate to the new one: yours falls
        (said[i] - said[i - 1]) -> (said[i - 1] - said[i])
    the step before began at a corrected state: yours is repeated from the predicted one
        said.append( -> guess = x; said.append(
        start, before = x, noise -> start, before = guess, noise
    the step before is repeated from the state where it began: yours starts from where it ended
        move(start, i - 1, -> move(x, i - 1,
    one evaluation per step: the line goes on through what was said at the predicted state
        slope, before) -> slope, before); at_x, said[i] = said[i], denoise(x, alpha[i], sigma[i]);
            slope = (said[i] - said[i - 1]) / (lam[i] - lam[i - 1])
        return said[i] -> return at_x if i else said[i]
    the corrector repeats a step with the noise of that step: yours has none
        slope, before) -> slope, 0.0)
    with noise c is 1 + η²: yours is 1 for every η
        c, before = 1 + eta**2, None -> c, before = 1, None
    the line is integrated with its weight in (4): half of h is right for a constant weight only
        (h - whole / c) -> whole * h / 2
    the line goes on from the newest estimate: yours begins at the one before
        x = move(x, i, slope, noise) -> said[i], at_x = said[i - (i > 0)], said[i];
            x = move(x, i, slope, noise); said[i] = at_x
    the last state stays as it was predicted: there is no evaluation left to correct it
        return x -> said.append(denoise(x, alpha[-1], sigma[-1]));
            lam.append(np.log(alpha[-1] / sigma[-1]));
            return move(start, i, (said[-1] - said[i]) / (lam[-1] - lam[i]), noise)
    """,
)


# --- 11.8 -----------------------------------------------------------------------------------
RACE = Written("11.8", "Which solver?", 2, section="7 · Why a guided solver breaks")
