"""Exercises of chapter 24: 3-D, sound, molecules."""

import numpy as np
from scipy.special import i0e, i1e, logsumexp, softmax

from diffusion_course.grading.answers.drawing import number
from diffusion_course.grading.answers.writing import exercise
from diffusion_course.grading.exercise import Part, Written
from diffusion_course.grading.inputs import TwoGroupDenoiser

# Arrays are float64 here, which reach the student as NumPy's: nothing has to be compiled.


# --- 24.1 -----------------------------------------------------------------------------------
def shares(density, lengths):
    K, R, S = density.shape
    made = np.zeros((R, K + 1))
    for r in range(R):
        light = 1.0
        for s in range(S):
            here = density[:, r, s]
            total = here.sum()
            stopped = 1 - np.exp(-total * lengths[s])
            if total > 0:
                made[r, :K] += light * stopped * here / total
            light *= 1 - stopped
        made[r, K] = light
    return made


def _each_alone(density, lengths):
    """Every object as if the others let all light through."""
    return np.column_stack([shares(one[None], lengths)[:, 0] for one in density])


def _one_behind_the_other(density, lengths):
    """In a piece of the ray, the first object hides the next one."""
    K, R, S = density.shape
    split = np.zeros((K, R, S * K))
    for k in range(K):
        split[k, :, k::K] = density[k]
    return shares(split, np.repeat(lengths, K))


def _fields(rng, *shapes):
    """Densities: of each ray, one piece is empty and one is nearly a wall; one ray is empty."""
    for K, R, S in shapes:
        density = rng.uniform(0.2, 1.4, (K, R, S))
        if K > 1:
            density[0, :, 0] = 0
        density[:, 0, 1] = 0
        density[-1, 0, S - 2] = 40.0
        density[:, R - 1] = 0 if R == 3 else density[:, R - 1]
        yield density, rng.uniform(0.3, 1.1, S)


SHARES = exercise(
    "24.1 · Whose light is it?",
    shares,
    Part("one object", 1, lambda rng: _fields(rng, (1, 2, 5), (1, 3, 4))),
    Part("several in the same place", 2, lambda rng: _fields(rng, (3, 2, 5), (2, 3, 4))),
    section="4 · Light along a ray",
    mistakes="""
    a piece of the ray holds back 1 − exp(−density·length): yours is only right for thin ones
        1 - np.exp(-total * lengths[s]) -> np.minimum(total * lengths[s], 1)
    a piece stops 1 − exp(−density·length) of the light: in yours the density counts for all of it
        light * stopped * here / total -> light * here * lengths[s]
    that is what a piece lets through, and not what it holds back
        stopped = 1 - np.exp(-total * lengths[s]) -> stopped = np.exp(-total * lengths[s])
    what stands in front hides what is behind: multiply with the light that gets there
        += light * stopped -> += stopped
    a piece does not hide itself: the light that gets there has passed only the pieces before it
        += light * stopped -> += light * (1 - stopped) * stopped
    the pieces have different lengths: thickness is density times length
        -total * lengths[s] -> -total
    the pieces have different lengths: each has its own
        -total * lengths[s] -> -total * lengths.mean()
    an object hides the others, too: what you return knows only its own density
        return np.column_stack([_each_alone(density, lengths), right[:, -1]])
    in one piece the objects are mixed: none of them is in front of the others
        return _one_behind_the_other(density, lengths)
    in one piece the light is divided like the densities: opacities do not add up
        here / total -> (1 - np.exp(-here * lengths[s])) / np.sum(1 - np.exp(-here * lengths[s]))
    in one piece the light is divided like the densities, and not equally
        here / total -> (here > 0) / np.sum(here > 0)
    in one piece the denser object gets more, but not everything
        here / total -> (here == here.max())
    densities of objects in the same place add up: yours is their mean
        1 - np.exp(-total * -> 1 - np.exp(-here.mean() *
    densities of objects in the same place add up: yours is the largest
        1 - np.exp(-total * -> 1 - np.exp(-here.max() *
    the eye is at the first piece: you look from the other side
        return shares(density[..., ::-1], lengths[::-1])
    what comes through is multiplied from piece to piece
        light *= 1 - stopped -> light -= stopped
    the background is the last column
        return np.roll(right, 1, axis=-1)
    the background gets what all pieces let through
        made[r, K] = light -> made[r, K] = 0
    the background is hidden by the whole ray, and not only by its last piece
        made[r, K] = light -> made[r, K] = 1 - stopped
    the last piece hides the background, too
        made[r, K] = light -> made[r, K] = light / (1 - stopped)
    where there is nothing, 0 is divided by 0: such a piece shows no object
        if total > 0: -> if total >= 0:
    """,
)


# --- 24.2 -----------------------------------------------------------------------------------
def distil(theta, views, denoise, eps, alpha, sigma, weight, kind):
    gradient = np.zeros(len(theta))
    for v, A in enumerate(views):
        a, s = alpha[v], sigma[v]
        through = np.exp(-A @ theta)
        x_t = a * (1 - through) + s * eps[v]
        aside = x_t + 1e-20j  # the imaginary part is a derivative: pixels are denoised one by one
        said = (aside - a * denoise(aside, a, s)) / s
        push = said.real - eps[v]
        slope = 1e20 * said.imag if kind == "whole" else 1.0
        gradient = gradient + weight[v] * (a * through * slope * push) @ A
    return gradient / len(views)


def _scenes(rng, *rows):
    """Rows of (kind, cells M, views V, pixels D): the cells' lengths on rays, noise, and levels."""
    for kind, M, V, D in rows:
        denoise = TwoGroupDenoiser(
            number(rng, 0.05, 0.2), number(rng, 0.7, 0.95), number(rng, 0.1, 0.2)
        )
        views = rng.uniform(0.1, 0.8, (V, D, M)) * (rng.uniform(size=(V, D, M)) < 0.8)
        alpha = rng.uniform(0.5, 0.9, V)
        # Bright noise in one scene and dark noise in the other: gradients of both signs.
        eps = rng.normal(2.0 if M == 3 else -2.0, 0.5, (V, D))
        theta, weight = rng.uniform(0.2, 1.1, M), rng.uniform(40, 210, V)
        sigma = rng.uniform(0.3, 0.7, V)  # their squares need no sum of 1
        yield theta, views, denoise, eps, alpha, sigma, weight, kind


_NOISE = "said = (aside - a * denoise(aside, a, s)) / s"

DISTIL = exercise(
    "24.2 · With and without the Jacobian",
    distil,
    Part(
        "score distillation",
        2,
        lambda rng: _scenes(rng, ("distilled", 3, 2, 4), ("distilled", 5, 3, 2)),
    ),
    Part("the whole gradient", 2, lambda rng: _scenes(rng, ("whole", 3, 2, 4), ("whole", 5, 3, 2))),
    section="2 · A gradient from a denoiser",
    mistakes=f"""
    the two kinds are exchanged
        if kind == "whole" else -> if kind != "whole" else
    score distillation leaves the network's Jacobian out: yours still has it
        if kind == "whole" else 1.0 ->
    the whole gradient also goes through the network: its Jacobian is missing
        slope = 1e20 * said.imag if kind == "whole" else 1.0 -> slope = 1.0
    the noise that is told depends on x_t directly, too: you stopped only the denoised picture
        if kind == "whole" else 1.0 -> if kind == "whole" else 1 / s
    the noise that is told also depends on x_t through the denoiser: you left that out
        slope = 1e20 * said.imag if kind == "whole" -> slope = 1 / s if kind == "whole"
    the Jacobian is that of the noise that is told, and not that of the denoised picture
        slope = 1e20 * said.imag -> slope = 1e20 * denoise(aside, a, s).imag
    the noised picture holds α times the picture: its derivative has an α
        (a * through -> (through
    only the network's Jacobian goes: the α from x_t = α·x + σ·ε stays in the distilled gradient
        (a * through -> ((a if kind == "whole" else 1.0) * through
    what is compared has to be constant in the distilled gradient: yours has its derivative, too
        push = said.real - eps[v]
            -> push = said.real - eps[v] + 1e20 * said.imag * x_t * (kind == "distilled")
    the distilled gradient compares noise with noise: no further σ belongs to it
        (a * through -> ((a if kind == "whole" else a * s) * through
    what is pushed is the picture, and not the thickness: the derivative of 1 − exp is missing
        a * through * slope -> a * slope
    the light that gets through is exp(−thickness), and the picture is what does not
        x_t = a * (1 - through) -> x_t = a * through
    the sign is wrong: that of the derivative of 1 − exp(−thickness), or that of the error
        (a * through -> (-a * through
    each view has its own weight
        weight[v] * -> weight.mean() *
    the weight of the view is missing
        weight[v] * -> 1.0 *
    the loss has the factor ½, which the square's derivative cancels
        weight[v] * -> 2 * weight[v] *
    the loss has the factor ½ before a square, whose derivative has a 2
        weight[v] * -> 0.5 * weight[v] *
    the mean is over the views: yours is their sum
        return gradient / len(views) -> return gradient
    the mean is over the views; over the pixels of a picture it is a sum
        return gradient / len(views) -> return gradient / eps.size
    ε must be subtracted: the gradient has the same mean without it, but not for the noise given
        push = said.real - eps[v] -> push = said.real - eps[v] * (kind == "whole")
    ε must be subtracted: the loss compares the noise that is told with the noise that was added
        push = said.real - eps[v] -> push = said.real
    the gradient needs the noise that is told: yours compares the denoised picture with the picture
        push = said.real - eps[v] -> push = denoise(x_t, a, s) - (1 - through)
    what the denoiser tells is the picture: the noise follows from it by (x_t − α·x0)/σ
        {_NOISE} -> said = denoise(aside, a, s)
    the noise that is told is (x_t − α·x0)/σ: α is missing
        {_NOISE} -> said = (aside - denoise(aside, a, s)) / s
    the noise that is told is (x_t − α·x0)/σ: σ is missing
        {_NOISE} -> said = aside - a * denoise(aside, a, s)
    σ is a standard deviation: divide by it, and not by its square
        {_NOISE} -> said = (aside - a * denoise(aside, a, s)) / s**2
    each view has its own level: yours is that of the first one for all
        a, s = alpha[v], sigma[v] -> a, s = alpha[0], sigma[0]
    """,
)


# --- 24.3 -----------------------------------------------------------------------------------
def paced(x0, eps, power, log_snr, kind):
    T, odds = x0.shape[1], np.exp(log_snr)
    shift = power if kind == "own" else np.ones(len(power))
    alpha, sigma = np.sqrt(odds / (odds + shift)), np.sqrt(shift / (odds + shift))
    heard = power > 0
    noise = np.where(heard, sigma, 1) ** 2
    snr = np.where(heard, alpha**2 * power / noise, 0)
    x_t = alpha * np.fft.rfft(x0) + sigma * np.fft.rfft(eps)
    guess = np.where(heard, alpha * power / (alpha**2 * power + noise), 0) * x_t
    count = np.full(len(power), 2)
    count[0] = 1
    if T % 2 == 0:
        count[-1] = 1
    nats = np.sum(count * np.log(1 + snr)) / 2
    return np.fft.irfft(x_t, T), np.fft.irfft(guess, T), nats


def _coloured(x0, eps, power, log_snr):
    """One level for all, and noise of the data's own colour: another way to the same SNR."""
    alpha = (1 / (1 + np.exp(-log_snr))) ** 0.5
    tinted = np.fft.irfft(np.sqrt(power) * np.fft.rfft(eps), eps.shape[1])
    x_t = alpha * x0 + np.sqrt(1 - alpha**2) * tinted
    return x_t, alpha * x_t


def _signals(rng, *rows):
    """Rows of (kind, signals B, length T, whether some frequencies are silent)."""
    for kind, B, T, silent in rows:
        power = rng.uniform(0.5, 1.5, T // 2 + 1) * 12 / (1 + np.arange(T // 2 + 1)) ** 1.5
        if silent:
            power[[0, 2]] = 0
        white, eps = rng.normal(size=(B, T)), rng.normal(size=(B, T))
        x0 = np.fft.irfft(np.sqrt(power) * np.fft.rfft(white), T)
        yield x0, eps, power, float(rng.uniform(0.3, 1.1) * rng.choice([-1, 1])), kind


PACED = exercise(
    "24.3 · Each frequency has its pace",
    paced,
    Part("one level", 1, lambda rng: _signals(rng, ("one", 2, 8, False), ("one", 3, 11, False))),
    Part(
        "levels of its own",
        2,
        lambda rng: _signals(rng, ("own", 3, 11, False), ("own", 2, 8, False)),
    ),
    Part("silent ones", 1, lambda rng: _signals(rng, ("own", 2, 8, True), ("one", 3, 11, True))),
    section="6 · Sounds",
    mistakes="""
    the two kinds are exchanged
        if kind == "own" -> if kind != "own"
    each frequency has its own level: yours all have the same
        shift = power if kind == "own" else -> shift =
    a strong frequency needs less α for the same SNR: yours gets more
        shift = power if -> shift = 1 / np.where(power > 0, power, np.inf) if
    with "own", a silent frequency gets no noise: α is 1 there
        shift = power if -> shift = np.where(power > 0, power, 1) if
    the SNR of a frequency is α²·power/σ²: power is a variance already
        shift = power if -> shift = power**2 if
    the SNR of a frequency is α²·power/σ²: the root of the power is an amplitude
        shift = power if -> shift = np.sqrt(power) if
    that noise has the data's colour: here it is white, and α and σ change with the frequency
        return (*_coloured(x0, eps, power, log_snr), right[2]) if kind == "own" else right
    α² + σ² = 1 is asked for squares: take the roots
        return _squares(x0, eps, power, log_snr, kind)
    log_snr is the logarithm of a ratio of variances: yours is that of amplitudes
        np.exp(log_snr) -> np.exp(2 * log_snr)
    a complex coefficient is two real numbers: all but those that have no imaginary part count twice
        np.full(len(power), 2) -> np.full(len(power), 1)
    frequency 0 has no imaginary part: it counts once
        count[0] = 1 -> count[0] = 2
    if T is even, the last frequency has no imaginary part: it counts once
        if T % 2 == 0: -> if False:
    if T is odd, the last frequency is complex like the others
        if T % 2 == 0: -> if True:
    a real number tells ½·log(1 + SNR): the half is missing
        np.log(1 + snr)) / 2 -> np.log(1 + snr))
    that is in bits: nats, with the natural logarithm
        np.log(1 + snr)) / 2 -> np.log2(1 + snr)) / 2
    that is ½·log SNR: noise of the SNR 1 does not hide everything
        np.log(1 + snr)) / 2 -> np.log(np.where(snr > 0, snr, 1))) / 2
    the nats are those of one signal, which do not depend on the batch
        nats = np.sum(count -> nats = len(x0) * np.sum(count
    the nats of all frequencies add up: yours is their mean
        nats = np.sum(count * np.log(1 + snr)) / 2
            -> nats = np.sum(count * np.log(1 + snr)) / 2 / T
    the best guess shrinks by α·power/(α²·power + σ²): yours only divides by α
        np.where(heard, alpha * power / (alpha**2 * power + noise), 0) * x_t -> x_t / alpha
    the best guess shrinks by α·power/(α²·power + σ²): yours lacks the α above
        np.where(heard, alpha * power / -> np.where(heard, power /
    the best guess knows the power of each frequency: yours takes 1 for all
        np.where(heard, alpha * power / (alpha**2 * power + noise), 0)
            -> np.where(heard, alpha / (alpha**2 + noise), 0)
    the best guess of a coefficient shrinks it by α·power/(α²·power + σ²): σ is not squared in yours
        / (alpha**2 * power + noise), 0) -> / (alpha**2 * power + np.sqrt(noise)), 0)
    in power, the length T is divided out already, for the data as for the noise
        snr = np.where(heard, alpha**2 * power / noise, 0)
            -> snr = np.where(heard, alpha**2 * power * T / noise, 0)
    irfft returns an even number of values unless it is told T
        return np.fft.irfft(x_t, T), np.fft.irfft(guess, T), nats
            -> return np.fft.irfft(x_t), np.fft.irfft(guess), nats
    at a silent frequency 0 is divided by 0: it tells nothing, and its guess is 0
        return right if np.all(power > 0) or kind == "one" else (right[0], np.nan * x0, np.nan)
    a silent frequency tells nothing: it has no nats
        snr = np.where(heard, alpha**2 * power / noise, 0) -> snr = np.where(
            heard, alpha**2 * power / noise, odds * (kind == "own"))
    the noised signal and the guess are exchanged
        return right[1], right[0], right[2]
    """,
)


def _squares(x0, eps, power, log_snr, kind):
    """α² and σ² where α and σ belong, in the noised signal and in all that follows."""
    T, odds = x0.shape[1], np.exp(log_snr)
    shift = power if kind == "own" else np.ones(len(power))
    alpha, sigma = odds / (odds + shift), shift / (odds + shift)
    x_t = np.fft.irfft(alpha * np.fft.rfft(x0) + sigma * np.fft.rfft(eps), T)
    _, _, nats = paced(x0, eps, power, log_snr, kind)
    whole = alpha**2 * power + sigma**2
    gain = alpha * power / np.where(whole > 0, whole, 1)
    return x_t, np.fft.irfft(gain * np.fft.rfft(x_t), T), nats


# --- 24.4 -----------------------------------------------------------------------------------
def step(x, h, mask, into, out, mix):
    moved, told = np.zeros(x.shape), np.zeros(h.shape)
    for b, i in np.argwhere(mask):
        others = [j for j in np.flatnonzero(mask[b]) if j != i]
        heard = np.zeros(len(out))
        for j in others:
            apart = x[b, i] - x[b, j]
            near = np.sum(apart**2)
            m = np.tanh(np.concatenate([h[b, i], h[b, j], [near]]) @ into)
            moved[b, i] += apart * (m @ out) / len(others)
            heard += m
        told[b, i] = h[b, i] + heard @ mix
    return moved, told


def _clouds(rng, *rows):
    """Rows of (dimension, features F, messages H, how many atoms each cloud has, places N)."""
    for d, F, H, atoms, N in rows:
        B = len(atoms)
        mask = np.arange(N) < np.array(atoms)[:, None]
        mask = rng.permuted(mask, axis=1)
        x, h = rng.normal(0.5, 0.6, (B, N, d)), rng.normal(0.3, 0.8, (B, N, F))
        x[~mask] += 2.0  # what stands in empty places means nothing
        into = rng.normal(0, 0.5, (2 * F + 1, H))
        yield x, h, mask, into, rng.normal(0.4, 0.9, H), rng.normal(0.2, 0.7, (H, F))


STEP = exercise(
    "24.4 · A step that turns with the cloud",
    step,
    Part(
        "no empty places",
        1,
        lambda rng: _clouds(rng, (3, 2, 4, (4, 4), 4), (2, 1, 3, (5, 5, 5), 5)),
    ),
    Part(
        "clouds of different sizes",
        2,
        lambda rng: _clouds(rng, (3, 2, 4, (3, 2), 4), (2, 1, 3, (4, 1, 3), 5)),
    ),
    section="7 · Molecules",
    mistakes="""
    all three bugs are left
        return _broken(x, h, mask, into, out, mix, "turn shift empty")
    two bugs are left: shift the cloud, and fill the empty places with other numbers
        return _broken(x, h, mask, into, out, mix, "shift empty")
    two bugs are left: turn the cloud, and fill the empty places with other numbers
        return _broken(x, h, mask, into, out, mix, "turn empty")
    two bugs are left: turn the cloud, and shift it
        return _broken(x, h, mask, into, out, mix, "turn shift")
    a bug is left: fill the empty places with other numbers, and look at the atoms
        return _broken(x, h, mask, into, out, mix, "empty")
    a bug is left: turn the cloud, and look at the messages
        return _broken(x, h, mask, into, out, mix, "turn")
    a bug is left: shift the cloud, and look at the moves
        return _broken(x, h, mask, into, out, mix, "shift")
    empty places send no message now, but they still count in the mean
        (m @ out) / len(others) -> (m @ out) / (x.shape[1] - 1)
    the mean is over the other atoms, one less than there are
        (m @ out) / len(others) -> (m @ out) / (len(others) + 1)
    the move is a mean over the other atoms: yours is a sum
        (m @ out) / len(others) -> (m @ out)
    features take the sum of the messages: that was right
        told[b, i] = h[b, i] + heard @ mix
            -> told[b, i] = h[b, i] + heard @ mix / max(len(others), 1)
    an atom sends no message to itself: that was right
        if j != i] -> if True]
    an atom's own message does not move it, but its features take it in: leave it out
        if j != i] -> if True]
        (m @ out) / len(others) -> (m @ out) / max(len(others) - 1, 1)
    the message is of the *squared* distance
        near = np.sum(apart**2) -> near = np.sqrt(np.sum(apart**2))
    the atom moves along x_i − x_j: yours goes the other way
        moved[b, i] += apart -> moved[b, i] -= apart
    the direction is x_i − x_j as it is, and not of unit length
        += apart * (m @ out) -> += apart / np.sqrt(near) * (m @ out)
    the first features in a message are the receiver's, h_i: that was right
        [h[b, i], h[b, j], [near]] -> [h[b, j], h[b, i], [near]]
    asked for is the move, and not where the atom arrives
        return moved, told -> return moved + x * mask[..., None], told
    the features keep what they were: the messages are added
        told[b, i] = h[b, i] + heard -> told[b, i] = heard
    an empty place has features 0 afterwards
        return moved, told -> return moved, told + h * ~mask[..., None]
    a single atom has no others: 0 divided by 0 is no move
        return np.where((mask.sum(1) > 1)[:, None, None], right[0], np.nan), right[1]
    """,
)


def _broken(x, h, mask, into, out, mix, bugs):
    """The exercise's code with some of its bugs."""
    places = mask | ("empty" in bugs)
    apart = x[:, :, None] - x[:, None]
    near = np.abs(apart) if "turn" in bugs else apart**2
    wide = (*apart.shape[:3], h.shape[-1])
    pairs = [np.broadcast_to(a, wide) for a in (h[:, :, None], h[:, None])]
    m = np.tanh(np.concatenate([*pairs, near.sum(-1, keepdims=True)], axis=-1) @ into)
    m = m * places[:, None, :, None] * ~np.eye(x.shape[1], dtype=bool)[..., None]
    along = np.broadcast_to(x[:, None], apart.shape) if "shift" in bugs else apart
    others = np.maximum(places.sum(1) - 1, 1)[:, None, None]
    moved = np.sum(along * (m @ out)[..., None], axis=2) / others
    real = mask[..., None]
    return moved * real, (h + m.sum(2) @ mix) * real


# --- 24.5 -----------------------------------------------------------------------------------
def turned(x, template, alpha, sigma, left):
    N = len(template)
    y = template - template.mean(0)
    logs, guesses = [], []
    for chance, hand in ((1 - left, y), (left, y * [1, -1])):
        a = np.sum(x * hand, axis=(1, 2))
        b = np.sum(x[..., 1] * hand[:, 0] - x[..., 0] * hand[:, 1], axis=1)
        length = np.sqrt(a**2 + b**2)
        kappa = alpha * length / sigma**2
        logs.append(_log(chance) + np.log(i0e(kappa)) + kappa)
        sure = i1e(kappa) / i0e(kappa) / np.where(length > 0, length, 1)
        c, s = (sure * a)[:, None], (sure * b)[:, None]
        guesses.append(
            np.stack([c * hand[:, 0] - s * hand[:, 1], s * hand[:, 0] + c * hand[:, 1]], axis=-1)
        )
    share = softmax(logs, axis=0)
    far = (np.sum(x**2, axis=(1, 2)) + alpha**2 * np.sum(y**2)) / (2 * sigma**2)
    log_p = logsumexp(logs, axis=0) - far - (N - 1) * np.log(2 * np.pi * sigma**2)
    return np.einsum("kb,kbnd->bnd", share, guesses), log_p


def _log(p):
    return np.log(p) if p > 0 else -np.inf


def _molecules(rng, *rows):
    """Rows of (B, N, α, σ, the chance of the mirror image, whether a state is 0)."""
    for B, N, alpha, sigma, left, none in rows:
        template = rng.normal(0.7, 1.3, (N, 2))
        y = template - template.mean(0)
        angle = rng.uniform(0, 2 * np.pi, B)
        turn = np.stack([np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)], -1)
        flip = np.where(np.arange(B) % 2 == (left >= 0.5), 1, -1)
        hands = np.stack([np.tile(y[:, 0], (B, 1)), flip[:, None] * y[:, 1]], axis=-1)
        if left in (0, 1):
            hands[..., 1] = (1 - 2 * left) * y[:, 1]
        noise = rng.normal(size=(B, N, 2))
        x = alpha * np.einsum("bij,bnj->bni", turn.reshape(B, 2, 2), hands)
        x = x + sigma * (noise - noise.mean(1, keepdims=True))
        if none:
            x[-1] = 0
        yield x, template, alpha, sigma, left


def _turns(rng, *rows):
    for B, N, left in rows:
        yield from _molecules(
            rng, (B, N, number(rng, 0.4, 0.8), number(rng, 1.2, 1.9), left, False)
        )


_BEST = "sure = i1e(kappa) / i0e(kappa) / np.where"

TURNED = exercise(
    "24.5 · Turned, and mirrored",
    turned,
    Part("one hand", 2, lambda rng: _turns(rng, (3, 4, 0.0), (2, 3, 1.0))),
    Part(
        "both hands",
        2,
        lambda rng: _turns(rng, (3, 4, number(rng, 0.15, 0.4)), (2, 3, number(rng, 0.6, 0.85))),
    ),
    Part(
        "little noise, and a state of 0",
        1,
        lambda rng: _molecules(
            rng,
            (2, 3, number(rng, 0.8, 0.9), number(rng, 0.03, 0.04), number(rng, 0.3, 0.4), False),
            (3, 4, number(rng, 0.5, 0.8), number(rng, 0.6, 0.9), number(rng, 0.3, 0.4), True),
        ),
    ),
    section="8 · Break it on purpose: the wrong hand",
    mistakes=f"""
    that is the molecule in its most probable turn: the guess is the mean over all turns
        {_BEST} -> sure = 1 / np.where
    the most probable hand is not the guess: average both, each with its share
        share = softmax(logs, axis=0) -> share = (logs == np.max(logs, axis=0)) * 1.0
    x tells which hand is probable: yours are the shares before x is seen
        share = softmax(logs, axis=0) -> share = np.array([1 - left, left])[:, None] + 0 * kappa
    the mirror image is missing
        ((1 - left, y), (left, y * [1, -1])) -> ((1 - left, y), (left, y))
    left is the chance of the mirror image: yours is that of the template
        ((1 - left, y), (left, y * [1, -1])) -> ((left, y), (1 - left, y * [1, -1]))
    both hands are not equally probable before x is seen
        _log(chance) + -> np.log(0.5) +
    the chances of the hands are missing: 1 − left and left, before x is seen
        _log(chance) + -> 0 * chance +
    a hand's share is its integral over all turns, I₀, and not the density of its best turn
        + np.log(i0e(kappa)) + kappa) -> + kappa)
    the noise has its centre at 0: N atoms have 2(N − 1) free numbers, and not 2N
        (N - 1) * np.log -> N * np.log
    each free number has the factor 1/√(2πσ²), and an atom in the plane has two
        (N - 1) * np.log(2 * np.pi * sigma**2) -> (N - 1) / 2 * np.log(2 * np.pi * sigma**2)
    the plane has two dimensions, and not three
        (N - 1) * np.log(2 * np.pi * sigma**2) -> 1.5 * (N - 1) * np.log(2 * np.pi * sigma**2)
    the density's factor is missing, 1/√(2πσ²) for each free number
        - far - (N - 1) * np.log(2 * np.pi * sigma**2) -> - far
    the density's factor has 2π in it
        np.log(2 * np.pi * sigma**2) -> np.log(sigma**2)
    the template's centre is not at 0: subtract it, the molecule is turned about its centre
        y = template - template.mean(0) -> y = template
    the guess has the molecule's size: α belongs to the noised state
        return np.einsum("kb,kbnd->bnd", share, guesses), log_p
            -> return alpha * np.einsum("kb,kbnd->bnd", share, guesses), log_p
    the state holds α times the molecule: α is missing in what decides about the turn
        kappa = alpha * length / sigma**2 -> kappa = length / sigma**2
    the state holds α times the molecule: α² is missing before its square
        alpha**2 * np.sum(y**2) -> np.sum(y**2)
    the molecule's own square is missing in the exponent
        + alpha**2 * np.sum(y**2)) -> + 0.0)
    σ is a standard deviation: its square divides
        kappa = alpha * length / sigma**2 -> kappa = alpha * length / sigma
    the exponent is −½·|x − α·R·y|²/σ², so its middle term has no ½
        kappa = alpha * length / sigma**2 -> kappa = alpha * length / (2 * sigma**2)
    that is the logarithm of the sum over turns of 2π: their mean has I₀ alone
        return right[0], right[1] + np.log(2 * np.pi)
    the guess is turned the wrong way
        s * hand[:, 0] + c * hand[:, 1]], axis=-1) -> -s * hand[:, 0] + c * hand[:, 1]], axis=-1)
        c * hand[:, 0] - s * hand[:, 1], -> c * hand[:, 0] + s * hand[:, 1],
    the guess is the prior's mean 0: x tells the turn
        share = softmax(logs, axis=0) -> share = np.zeros_like(logs)
    with little noise I₀ overflows: take exp(−κ)·I₀(κ), and the logarithm of the rest
        return right if alpha / sigma < 10 else tuple(np.nan * a for a in right)
    where nothing is seen of a direction, 0 is divided by 0: the guess is 0 there
        return np.where(np.any(x != 0, axis=(1, 2))[:, None, None], right[0], np.nan), right[1]
    """,
)


# --- 24.6 -----------------------------------------------------------------------------------
def torus(x, points, weights, sigma, period):
    r = (x[:, None] - points + period / 2) % period - period / 2  # [B, K, d]
    if sigma < 0.3 * period:
        images = r[..., None] + period * np.arange(-4, 5)
        terms = -(images**2) / (2 * sigma**2)
        log_p = logsumexp(terms, axis=-1) - np.log(2 * np.pi * sigma**2) / 2
        slope = -np.sum(softmax(terms, axis=-1) * images, axis=-1) / sigma**2
    else:
        k = 2 * np.pi / period * np.arange(1, 9)
        wave = 2 * np.exp(-((k * sigma) ** 2) / 2)
        p = 1 + np.cos(r[..., None] * k) @ wave
        log_p = np.log(p / period)
        slope = -np.sin(r[..., None] * k) @ (k * wave) / p
    joint = np.log(weights) + log_p.sum(-1)
    share = softmax(joint, axis=1)
    return np.einsum("bk,bkd->bd", share, slope), logsumexp(joint, axis=1)


def _nearest_only(x, points, weights, sigma, period):
    """A Gaussian of the shortest way, without the longer ones."""
    return _flat((x[:, None] - points + period / 2) % period - period / 2, weights, sigma)


def _flat(r, weights, sigma):
    joint = np.log(weights) - np.sum(
        r**2 / (2 * sigma**2) + np.log(2 * np.pi * sigma**2) / 2, axis=-1
    )
    score = -np.einsum("bk,bkd->bd", softmax(joint, axis=1), r) / sigma**2
    return score, logsumexp(joint, axis=1)


def _coordinates_apart(x, points, weights, sigma, period):
    """As if the data's coordinates were independent of each other."""
    score, log_p = zip(
        *[torus(x[:, [i]], points[:, [i]], weights, sigma, period) for i in range(points.shape[1])],
        strict=True,
    )
    return np.concatenate(score, axis=1), np.sum(log_p, axis=0)


def _angles(rng, *rows):
    """Rows of (B, K, d, period, σ over it, where: far, anywhere, near or opposite to a point)."""
    for B, K, d, period, spread, where in rows:
        points, weights = rng.uniform(0, period, (K, d)), rng.uniform(0.3, 1, K)
        x = rng.uniform(-1.8 * period, 2.7 * period, (B, d))
        if where == "far":
            x = x + period * rng.choice([-7, 6], (B, d))
        elif where != "anywhere":
            turns = period * rng.integers(-1, 3, (B, d))
            half = period / 2 if where == "opposite" else 0.0
            x = points[rng.integers(K, size=B)] + half + turns
            x = x + spread * period * rng.normal(0, 1.0 if half == 0 else spread, (B, d))
        yield x, points, weights / weights.sum(), spread * period, period


def _degrees(rng):
    """A large period: only σ *over the period* tells whether the noise is little."""
    return number(rng, 300.0, 400.0)


TORUS = exercise(
    "24.6 · A Gaussian on a torus",
    torus,
    Part(
        "noise like the period",
        1,
        lambda rng: _angles(
            rng,
            (4, 3, 2, number(rng, 1.7, 2.6), number(rng, 0.16, 0.22), "far"),
            (3, 2, 1, number(rng, 0.4, 0.6), number(rng, 0.34, 0.36), "far"),
        ),
    ),
    Part(
        "little noise",
        2,
        lambda rng: _angles(
            rng,
            (4, 3, 2, number(rng, 0.2, 0.3), number(rng, 0.03, 0.04), "near"),
            (3, 2, 1, _degrees(rng), number(rng, 0.036, 0.04), "near"),
            (3, 2, 1, number(rng, 1.4, 4.1), number(rng, 0.006, 0.01), "opposite"),
            (4, 3, 2, _degrees(rng), number(rng, 0.004, 0.006), "anywhere"),
        ),
    ),
    Part(
        "much noise",
        2,
        lambda rng: _angles(
            rng,
            # Here the score is not tiny beside log p, so that a mistake in it can be named.
            (3, 2, 1, number(rng, 0.4, 0.6), number(rng, 0.5, 0.55), "anywhere"),
            (4, 3, 2, _degrees(rng), number(rng, 0.85, 0.95), "anywhere"),
            (3, 2, 1, number(rng, 1.4, 4.1), number(rng, 1.4, 1.6), "anywhere"),
        ),
    ),
    section="9 · Angles and rotations",
    mistakes="""
    that is a Gaussian on the line: on a torus many ways lead from a point to x
        return _flat(x[:, None] - points, weights, sigma)
    you only count the shortest way: the longer ones add to the density
        return _nearest_only(x, points, weights, sigma, period)
    the points count by their densities at x: yours have their weights alone
        share = softmax(joint, axis=1) -> share = weights + 0 * joint
    the weights of the points are missing
        joint = np.log(weights) + log_p.sum(-1) -> joint = log_p.sum(-1)
    the points have different weights
        joint = np.log(weights) + -> joint = -np.log(len(weights)) +
    a point has one share for all its coordinates: yours mixes each coordinate alone
        return _coordinates_apart(x, points, weights, sigma, period)
    the coordinates of the noise are independent: their log-densities add up
        log_p.sum(-1) -> log_p.mean(-1)
    only the most probable point counts in yours: weigh them all
        share = softmax(joint, axis=1) -> share = (joint == joint.max(1, keepdims=True)) * 1.0
    the period is an argument, and not 2π
        return torus(x, points, weights, sigma, 2 * np.pi)
    the score points towards the data: the sign is wrong
        return -right[0], right[1]
    that is σ² times the score
        return sigma**2 * right[0], right[1]
    that is σ times the score
        return sigma * right[0], right[1]
    σ is a standard deviation: square it
        return torus(x, points, weights, np.sqrt(sigma), period)
    σ is a standard deviation: it is squared twice in yours
        return torus(x, points, weights, sigma**2, period)
    the density's factor 1/√(2πσ²) or 1/period is missing in its logarithm
        return right[0], right[1] + points.shape[1] * (np.log(period) if sigma > 0.3 * period
            else np.log(2 * np.pi * sigma**2) / 2)
    that is the density; asked for is its logarithm
        return right[0], np.exp(right[1])
    with much noise ways of many turns count, too: yours are cut off
        return right if sigma < 0.3 * period else _few_ways(x, points, weights, sigma, period)
    with little noise every density is 0 in the computer's numbers: compare their logarithms
        return right if sigma > 0.02 * period else tuple(np.nan * a for a in right)
    the waves have the factor 2: each stands for k and for −k
        wave = 2 * np.exp -> wave = np.exp
    the wave k is damped by exp(−½(2πkσ/period)²): the ½ is missing
        np.exp(-((k * sigma) ** 2) / 2) -> np.exp(-((k * sigma) ** 2))
    """,
    rtol=1e-4,  # 3.14 is not π in log p
    atol=1e-5,
)


def _few_ways(x, points, weights, sigma, period):
    """The sum of the shortest way and its two neighbours."""
    r = (x[:, None] - points + period / 2) % period - period / 2
    ways = r[..., None] + period * np.arange(-1, 2)
    terms = -(ways**2) / (2 * sigma**2)
    log_p = logsumexp(terms, axis=-1) - np.log(2 * np.pi * sigma**2) / 2
    slope = -np.sum(softmax(terms, axis=-1) * ways, axis=-1) / sigma**2
    joint = np.log(weights) + log_p.sum(-1)
    return np.einsum("bk,bkd->bd", softmax(joint, axis=1), slope), logsumexp(joint, axis=1)


# --- 24.7 -----------------------------------------------------------------------------------
VERDICTS = Written("24.7", "Three verdicts", 3, section="3 · Where it ends")
