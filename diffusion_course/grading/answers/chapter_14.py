"""Exercises of chapter 14, Latent diffusion."""

import itertools

import numpy as np

from diffusion_course.grading.answers.drawing import images, normal, number
from diffusion_course.grading.answers.writing import exercise
from diffusion_course.grading.exercise import Part, Written
from diffusion_course.grading.inputs import SharedGaussianDenoiser


# --- 14.1 -----------------------------------------------------------------------------------
def smaller(t, weights, clock):
    factor = np.sum(weights) / np.sqrt(np.sum(weights**2))
    if clock == "flow":
        signal, noise = 1 - t, t
        return noise / (noise + factor * signal)
    signal, noise = np.cos(np.pi * t / 2), np.sin(np.pi * t / 2)
    return 2 / np.pi * np.arctan2(noise, factor * signal)


def _clocks(rng, *filters):
    for count, (weights, clock) in enumerate(filters):
        inner = np.sort(rng.uniform(0.1, 0.9, 3 + count))
        yield np.concatenate([[0.0], inner, [1.0]]), weights, clock


def _filter(rng, *shape):
    """Weights of both signs whose sum is positive, but neither 1 nor their number."""
    weights = rng.uniform(0.4, 1.3, shape)
    weights.flat[rng.integers(weights.size)] = -rng.uniform(0.1, 0.3)
    return weights


def _averages(rng):
    sizes = (((2, 2), "flow"), ((4, 3), "cosine"), ((3, 2), "flow"), ((1, 2), "cosine"))
    return _clocks(rng, *[(np.full(size, 1 / np.prod(size)), clock) for size, clock in sizes])


def _filters(rng):
    sizes = (((2, 3), "flow"), ((3, 4), "cosine"), ((4, 2), "flow"), ((2, 2), "cosine"))
    return _clocks(rng, *[(_filter(rng, *size), clock) for size, clock in sizes])


SMALLER = exercise(
    "14.1 · A small picture has less noise",
    smaller,
    Part("block averages", 1, _averages),
    Part("any filter", 1, _filters),
    section="12 · Larger pictures need more noise. Do latents?",
    mistakes="""
    noise of independent pixels adds up in variance: the filter multiplies σ by the root of Σ w²
        np.sqrt(np.sum(weights**2)) -> np.sum(weights**2)
    α/σ grows by the factor a, and the log-SNR by 2·log a: yours grows twice as much
        (np.sum(weights**2)) -> (np.sum(weights**2)); factor = factor**2
    averaging removes noise: the time must become earlier, nearer to the data
        np.sum(weights) / np.sqrt(np.sum(weights**2))
            -> np.sqrt(np.sum(weights**2)) / np.sum(weights)
    the weights need not add up to 1: the filter changes the picture, too
        np.sum(weights) / -> 1 /
    the filter changes the noise by √(Σ w²), not by one over the root of the number of weights
        np.sum(weights) / np.sqrt(np.sum(weights**2)) -> np.sqrt(weights.size)
    the number of pixels divides the variance of the noise, and its root the standard deviation
        np.sum(weights) / np.sqrt(np.sum(weights**2)) -> weights.size
    a weight may be negative: it counts with its sign in the picture
        np.sum(weights) / -> np.sum(np.abs(weights)) /
    the small picture has less noise, and what remains of the picture is Σ w of it
        np.sum(weights) / -> np.sum(weights) ** 2 /
    a block has two sides: the filter adds up all its pixels, not those of one side
        np.sum(weights) / np.sqrt(np.sum(weights**2)) -> weights.shape[0]
    the cosine clock has another formula than the rectified flow's
        noise = np.cos(np.pi * t / 2), np.sin(np.pi * t / 2) -> noise = 1 - t, t
        2 / np.pi * np.arctan2(noise, factor * signal) -> noise / (noise + factor * signal)
    that is the angle: the cosine clock's time is the angle times 2/π
        2 / np.pi * np.arctan2 -> np.arctan2
    at t = 1 the tangent is infinite, and in float32 it is a large negative number: use arctan2
        return np.where((t == 1) & (clock == "cosine"), -1.0, right)
    """,
)


# --- 14.2 -----------------------------------------------------------------------------------
def latent_scale(counts, means, stds, variances):
    share = (counts / np.sum(counts))[:, None]
    shift = np.sum(share * means, axis=0)
    within = np.sum(share * stds**2, axis=0)
    between = np.sum(share * (means - shift) ** 2, axis=0)
    drawn = np.sum(share * variances, axis=0)
    return shift, 1 / np.sqrt(within + between + drawn)


def _as_one(counts, means, stds, variances):
    """What a single batch with the mean of the standard deviations would give."""
    share = (counts / np.sum(counts))[:, None]
    shift = np.sum(share * means, axis=0)
    between = np.sum(share * (means - shift) ** 2, axis=0)
    drawn = np.sum(share * variances, axis=0)
    return shift, 1 / np.sqrt(np.sum(share * stds, axis=0) ** 2 + between + drawn)


def _batches(rng, *sizes, far=0.0):
    """Batches of very unequal sizes; `far` is how far from 0 the channels lie."""
    for N, c in sizes:
        counts = rng.permutation(np.append(rng.integers(2, 9, N - 1), 12)).astype(np.int32)
        stds = rng.uniform(0.15, 0.5, (N, c)).astype(np.float32)
        variances = rng.uniform(0.03, 0.12, (N, c)).astype(np.float32)
        yield counts, normal(rng, N, c, mean=far - 0.7, std=0.4), stds, variances


LATENT_SCALE = exercise(
    "14.2 · Shift and scale from batches",
    latent_scale,
    Part("one batch", 1, lambda rng: _batches(rng, (1, 3), (1, 3))),
    Part("batches of any sizes", 1, lambda rng: _batches(rng, (4, 2), (4, 2))),
    Part("channels far from 0", 1, lambda rng: _batches(rng, (4, 2), (4, 2), far=150.0)),
    section="6 · Shift and scale are measured",
    mistakes="""
    batches have different sizes: a large one counts more
        (counts / np.sum(counts))[:, None] -> np.full((len(counts), 1), 1 / len(counts))
    the means of the batches differ, too: their spread belongs to the variance
        within + between + drawn -> within + drawn
    the latents are drawn: the variance that the encoder gives them belongs to theirs
        within + between + drawn -> within + between
    the latents differ within a batch, too: the square of stds belongs to the variance
        within + between + drawn -> between + drawn
    the encoder's variances are variances already: do not square them
        share * variances -> share * variances**2
    the encoder's variances add to the variance of the means, as they are
        share * variances, -> share * np.sqrt(variances),
    variances can be averaged, standard deviations cannot
        return _as_one(counts, means, stds, variances)
    the scale is 1/std: take the root
        1 / np.sqrt(within + between + drawn) -> 1 / (within + between + drawn)
    the scale multiplies latents: it is 1/std, not std
        1 / np.sqrt(within + between + drawn) -> np.sqrt(within + between + drawn)
    one scale for each channel: yours is the same for all
        1 / np.sqrt(within + between + drawn)
            -> 1 / np.sqrt(np.mean(within + between + drawn)) + 0 * shift
    what the batches' means are measured from is the mean of all latents, with its weights
        (means - shift) -> (means - means.mean(axis=0))
    the means are measured from the mean of all latents, not from 0
        (means - shift) -> means
    stds are standard deviations: square them before they are added to variances
        share * stds**2 -> share * stds
    the spread of the batches' means needs the weights of the batches, too
        between = np.sum(share * (means - shift) ** 2, axis=0) -> between = np.var(means, axis=0)
    latents are shifted by the mean, which is subtracted: shift is the mean itself
        return shift -> return -shift
    the shift comes first, then the scale
        return shift, 1 / np.sqrt(within + between + drawn)
            -> return 1 / np.sqrt(within + between + drawn), shift
    """,
)


# --- 14.3 -----------------------------------------------------------------------------------
def parts_of_the_rate(q, prior):
    N, L, K = q.shape
    wholes = itertools.product(range(K), repeat=L)  # every grid that is possible
    given = np.array([[np.prod(q[n, range(L), z]) for n in range(N)] for z in wholes])
    joint, place = given.mean(axis=1), q.mean(axis=0)
    product = np.array([np.prod(place[range(L), z]) for z in itertools.product(range(K), repeat=L)])
    information = _divergence(given, joint[:, None]) / N
    return np.array([information, _divergence(joint, product), _divergence(place, prior)])


def _divergence(p, q):
    """Σ p·log2(p/q), with 0·log 0 = 0."""
    p, q = np.broadcast_arrays(p, q)
    seen = p > 0
    return np.sum(p[seen] * np.log2(p[seen] / q[seen]))


def _encoders(rng, *sizes, sharp):
    """`sharp`: each image has one grid, with no doubt; some images may share it."""
    for N, L, K in sizes:
        q = rng.dirichlet(np.full(K, 0.8), (N, L))
        if sharp:
            q = np.eye(K)[rng.integers(K, size=(N, L))]
            q[0], q[1] = np.eye(K)[0], np.eye(K)[K - 1]  # at least two different grids
        yield q, rng.dirichlet(np.full(K, 4.0)) * 0.9 + 0.1 / K


RATE_PARTS = exercise(
    "14.3 · Three parts of a rate",
    parts_of_the_rate,
    Part("one place", 1, lambda rng: _encoders(rng, (3, 1, 4), (5, 1, 2), sharp=False)),
    Part(
        "grids",
        2,
        lambda rng: [
            *_encoders(rng, (4, 2, 3), (2, 3, 2), (3, 4, 2), sharp=False),
            *_encoders(rng, (5, 3, 3), (4, 2, 2), sharp=True),
        ],
    ),
    section="3 · Rate against distortion",
    mistakes="""
    in bits, logarithms are to the base 2
        return right * np.log(2)
    places are not independent: the information of a grid is not the sum over its places
        information = _divergence(given, joint[:, None]) / N
            -> information = _divergence(q, place) / N
    the distribution of whole grids is a mean over images, not the product of the places' means
        joint, place = given.mean(axis=1), q.mean(axis=0)
            -> place = q.mean(axis=0); joint = np.array([np.prod(place[range(L), z])
            for z in itertools.product(range(K), repeat=L)])
    this divergence is the other way round: the expectation is over the encoder's distribution
        _divergence(place, prior)]) -> _divergence(np.broadcast_to(prior, place.shape), place)])
    the expectation in the second part is over the grids, not over the product of the places
        _divergence(joint, product) -> _divergence(product, joint)
    the third part is a sum over the places, not a mean
        _divergence(place, prior)]) -> _divergence(place, prior) / L])
    the information is a mean over the images, not a sum
        joint[:, None]) / N -> joint[:, None])
    the third part compares each place on average; yours is the rate itself
        _divergence(place, prior)]) -> _divergence(q, prior) / N])
    the second part is what the places know of each other: yours still holds the prior
        _divergence(joint, product)
            -> _divergence(joint, product) + _divergence(place, prior)
    the first part is the entropy of the grids minus that of a grid when the image is known
        information = _divergence(given, joint[:, None]) / N
            -> information = -_divergence(joint, np.ones_like(joint))
    """,
)


# --- 14.4 -----------------------------------------------------------------------------------
def gradients(z, codebook, g, commitment):
    length = np.linalg.norm(z, axis=-1, keepdims=True)
    size = np.linalg.norm(codebook, axis=-1, keepdims=True)
    unit, codes = z / length, codebook / size
    k = np.argmax(unit @ codes.T, axis=-1)
    apart = 2 * (unit - codes[k]) / z.size
    at_unit = g + commitment * apart
    dz = (at_unit - unit * np.sum(unit * at_unit, axis=-1, keepdims=True)) / length
    at_codes = np.zeros(codebook.shape)
    for place in np.ndindex(*k.shape):
        at_codes[k[place]] -= apart[place]
    de = (at_codes - codes * np.sum(codes * at_codes, axis=-1, keepdims=True)) / size
    return dz, de


def _not_divided(z, codebook, g, commitment):
    """The derivatives of the loss without any division by lengths."""
    k = np.argmin(np.sum((z[..., None, :] - codebook) ** 2, axis=-1), axis=-1)
    apart = 2 * (z - codebook[k]) / z.size
    at_codes = np.zeros(codebook.shape)
    np.subtract.at(at_codes, k, apart)
    return g + commitment * apart, at_codes


def _vectors(rng, *cases, g=1.0):
    """(B, n, D, K), with more codes than are used; longer codes that are not nearer in angle."""
    for B, n, D, K in cases:
        z = images(rng, B, n, D)
        codebook = normal(rng, K, D, mean=0.4) * rng.uniform(0.2, 1.5, (K, 1))
        cotangent = g * normal(rng, B, n, D, mean=0.4, std=1.5)
        yield z, codebook.astype(np.float32), cotangent.astype(np.float32), number(rng, 0.3, 0.7)


GRADIENTS = exercise(
    "14.4 · Gradients past a rounding",
    gradients,
    Part("codes and commitment", 2, lambda rng: _vectors(rng, (2, 3, 4, 2), (3, 2, 2, 5), g=0.0)),
    Part("a decoder above them", 2, lambda rng: _vectors(rng, (3, 4, 2, 3), (2, 2, 5, 9))),
    section="4 · A codebook",
    mistakes="""
    the gradient of the decoder passes the rounding as if it were not there: z needs it
        at_unit = g + commitment * apart -> at_unit = commitment * apart
    the codes get nothing from the decoder: straight through means past them
        at_codes[k[place]] -= apart[place] -> at_codes[k[place]] += g[place] - apart[place]
    z was divided by its length: only what is across z has an effect, and it is divided, too
        (at_unit - unit * np.sum(unit * at_unit, axis=-1, keepdims=True)) / length -> at_unit
        (at_codes - codes * np.sum(codes * at_codes, axis=-1, keepdims=True)) / size -> at_codes
    the codes are divided by their lengths, too: their gradient needs the same factors as that of z
        (at_codes - codes * np.sum(codes * at_codes, axis=-1, keepdims=True)) / size -> at_codes
    a longer z turns less: divide by its length (and by that of the code for the codes)
        keepdims=True)) / length -> keepdims=True))
        keepdims=True)) / size -> keepdims=True))
    what lies along z (or a code) has no effect, since its length is divided out: take it away
        (at_unit - unit * np.sum(unit * at_unit, axis=-1, keepdims=True)) -> at_unit
        (at_codes - codes * np.sum(codes * at_codes, axis=-1, keepdims=True)) -> at_codes
    the decoder's gradient passes through the division by the length of z, too
        at_unit = g + commitment * apart -> at_unit = commitment * apart
        keepdims=True)) / length -> keepdims=True)) / length + g
    the commitment's weight belongs to z alone: the codebook loss has weight 1
        at_codes[k[place]] -= apart[place] -> at_codes[k[place]] -= commitment * apart[place]
    the derivative of a square has a 2
        2 * (unit - codes[k]) -> (unit - codes[k])
    the losses are means over all numbers of the batch, not over its vectors
        / z.size -> / k.size
    the losses are means, not sums
        / z.size ->
    the nearest code is the one of the least angle: divide both by their lengths first
        np.argmax(unit @ codes.T, axis=-1)
            -> np.argmin(np.sum((z[..., None, :] - codebook) ** 2, axis=-1), axis=-1)
    all codes must be divided by their lengths before they are compared
        np.argmax(unit @ codes.T, axis=-1) -> np.argmax(unit @ codebook.T, axis=-1)
    each loss moves one side only: the commitment must not move the codes
        at_codes[k[place]] -= apart[place] -> at_codes[k[place]] -= (1 + commitment) * apart[place]
    each loss moves one side only: the codebook loss must not move z
        at_unit = g + commitment * apart -> at_unit = g + (1 + commitment) * apart
    each loss moves one side only: without sg, both move z and the codes
        at_unit = g + commitment * apart -> at_unit = g + (1 + commitment) * apart
        at_codes[k[place]] -= apart[place] -> at_codes[k[place]] -= (1 + commitment) * apart[place]
    the commitment is the loss that moves z: its weight stands at the other loss
        at_unit = g + commitment * apart -> at_unit = g + apart
        at_codes[k[place]] -= apart[place] -> at_codes[k[place]] -= commitment * apart[place]
    z and codes are compared after the division by their lengths: this is the loss of the chapter
        return _not_divided(z, codebook, g, commitment)
    the losses are means over all numbers of the batch, not sums over each example
        / z.size -> / len(z)
    a code that serves many vectors gets the sum of their gradients
        at_codes[k[place]] -= apart[place] -> at_codes[k[place]] = -apart[place]
    the codes move towards their vectors: this sign drives them away
        at_codes[k[place]] -= apart[place] -> at_codes[k[place]] += apart[place]
    z moves towards its code: this sign drives it away
        g + commitment * apart -> g - commitment * apart
    """,
)


# --- 14.5 -----------------------------------------------------------------------------------
def follow(z, n, m, decay, least):
    codes = m / n[:, None]
    far = np.sum((z[:, None] - codes) ** 2, axis=-1)
    k, far = np.argmin(far, axis=1), np.min(far, axis=1)
    new_n, new_m = decay * n, decay * m
    for i in range(len(z)):
        new_n[k[i]] += (1 - decay) * 1
        new_m[k[i]] += (1 - decay) * z[i]
    dead = np.flatnonzero(new_n < least)
    for place, code in zip(np.argsort(-far), dead, strict=False):
        new_n[code], new_m[code] = 1, z[place]
    return new_m / new_n[:, None], new_n, new_m


def _codes(rng, *cases):
    """(N, D, K, number of codes that die). Codes that die lie far away from all vectors.

    If others are left, one of them has a single vector of the batch and lives.
    """
    for N, D, K, dying in cases:
        codes = normal(rng, K, D, mean=0.8, std=2.0)
        n = rng.uniform(6.0, 12.0, K).astype(np.float32)
        weak = min(dying, 1)  # a code that has one vector of the batch, and dies all the same
        first = dying + weak  # of those that have vectors
        if first < K - 1:
            codes[first] -= 30
            first += 1
        z = codes[rng.integers(first, K, N)] + normal(rng, N, D, mean=0.3, std=1.6)
        z[: K - dying] = codes[dying:] + normal(rng, K - dying, D, std=0.3)
        decay, least = number(rng, 0.6, 0.8), number(rng, 2.3, 2.9)
        codes[:dying] += 60 * (1 + np.arange(dying)[:, None])
        # One of them has lived up to now.
        n[:dying] = np.linspace(0.95, 0.6, dying) * least / decay
        n[dying : dying + weak] = 0.4
        order = rng.permutation(K)
        m = (codes * n[:, None])[order].astype(np.float32)
        yield rng.permutation(z).astype(np.float32), n[order], m, decay, least


def _just_enough(rng):
    """A code without vectors whose number becomes exactly `least`: it lives."""
    ((z, n, m, _, _),) = _codes(rng, (5, 3, 3, 1))
    last = int(np.argmax(m.sum(axis=1) / n))
    m[last] *= 4 / n[last]
    n[last] = 4
    return [(z, n, m, 0.5, 2.0)]


def _onto_one_side(rng):
    """A code moves towards its vectors, and then those of another are the furthest.

    They lie along an axis, the others across: the second furthest is another one where a
    distance is no Euclidean one. Two codes die.
    """
    side, noise = rng.choice([-1, 1]), normal(rng, 8, 2, std=0.005)
    one = normal(rng, 2, mean=0.8, std=0.5)
    other = one + np.array([-2.0, 14.0])
    z = one + np.outer(side * np.linspace(3.05, 3.6, 6), [1, 0])
    z = np.concatenate([z, other + np.outer([3.55, -3.5], [0.5**0.5, 0.5**0.5])]) + noise
    codes, n = np.stack([one, other, one + 60, one - 70]), np.array([4.0, 8.0, 0.4, 3.5])
    order = rng.permutation(4)
    n, m = n[order].astype(np.float32), (codes * n[:, None])[order].astype(np.float32)
    yield rng.permutation(z).astype(np.float32), n, m, number(rng, 0.5, 0.55), 2.3


FOLLOW = exercise(
    "14.5 · Codes that follow, and codes that are dead",
    follow,
    Part("all codes live", 1, lambda rng: _codes(rng, (14, 2, 3, 0), (18, 3, 4, 0))),
    Part(
        "some are dead",
        2,
        lambda rng: [
            *_codes(rng, (12, 3, 4, 1), (18, 2, 6, 3)),
            *_onto_one_side(rng),
            *_just_enough(rng),
        ],
    ),
    section="4 · A codebook",
    mistakes="""
    the old values have the weight decay, the new ones 1 − decay: yours are exchanged
        return follow(z, n, m, 1 - decay, least)
    m is an average of sums: weigh the batch's sums, not the means of its vectors
        (1 - decay) * z[i] -> (1 - decay) * z[i] / np.sum(k == k[i])
    n is an average of counts, not of shares
        (1 - decay) * 1 -> (1 - decay) / len(z)
    a code is m/n: divide the sum by the count
        return new_m / new_n[:, None], -> return new_m,
    the nearest code is sought among m/n, not among the sums m
        codes = m / n[:, None] -> codes = m
    dead codes are still dead
        new_n < least -> new_n < 0
    a code is dead if its average is low, even if this batch has used it, and not by this count
        new_n < least -> np.bincount(k, minlength=len(n)) == 0
    a code with few vectors in this batch lives, as long as its average is high enough
        new_n < least -> np.bincount(k, minlength=len(n)) < least
    the average of this batch included decides which codes are dead, not the old one
        new_n < least -> n < least
    least itself is enough: dead is below it
        new_n < least -> new_n <= least
    the vectors that are served worst get the new codes: the furthest, not the nearest
        np.argsort(-far) -> np.argsort(far)
    each dead code gets a vector of its own: the second one the second furthest
        np.argsort(-far) -> np.argsort(-far)[:1].repeat(len(n))
    only the code was moved: with its old sums it jumps back in the next step
        new_n[code], new_m[code] = 1, z[place] -> moved[code] = z[place]
        new_n, new_m = decay * n, decay * m -> new_n, new_m, moved = decay * n, decay * m, {}
        return new_m / new_n[:, None], new_n, new_m
            -> new = new_m / new_n[:, None]; [new.__setitem__(*pair) for pair in moved.items()];
            return new, new_n, new_m
    a revived code starts anew: its n, too, which is 1
        new_n[code], new_m[code] = 1, z[place] -> new_m[code] = z[place]
    the distances are those to the codes that the vectors took, before these moved
        dead = np.flatnonzero(new_n < least) -> dead = np.flatnonzero(new_n < least);
            far = np.min(np.sum((z[:, None] - new_m / new_n[:, None]) ** 2, axis=-1), axis=1)
    a revived code starts with n = 1, and with m the vector
        new_m[code] = 1, z[place] -> new_m[code] = new_n[code], z[place] * new_n[code]
    a revived code starts anew: nothing is added to its old sum
        new_n[code], new_m[code] = 1, z[place]
            -> new_n[code], new_m[code] = new_n[code] + 1, new_m[code] + z[place]
    the dead codes are taken in the order of their indices
        np.flatnonzero(new_n < least) -> np.flatnonzero(new_n < least)[::-1]
    """,
)


# --- 14.6 -----------------------------------------------------------------------------------
def inpaint(denoise, x, known, start, noises, alpha, sigma, shift, scale):
    (B, h, w, _), (H, W) = start.shape, x.shape[1:3]
    cut = (B, h, H // h, w, W // w, -1)
    given = (x.reshape(cut).mean(axis=(2, 4)) - shift) * scale
    whole = known.reshape(cut).min(axis=(2, 4))
    z, path = start, []
    for n, noise in enumerate(noises):
        x0 = denoise(z, alpha[n], sigma[n])
        eps = (z - alpha[n] * x0) / sigma[n]
        z = alpha[n + 1] * x0 + sigma[n + 1] * eps
        pasted = alpha[n + 1] * given + sigma[n + 1] * noise
        z = np.where(whole, pasted, z)
        path.append(z)
    y = z / scale + shift
    y = y.repeat(H // h, axis=1).repeat(W // w, axis=2)
    return np.stack(path), np.where(known[..., None], x, y)


def _pictures(rng, *cases, blocks=True):
    """(B, h, w, f, g, C, steps, whether to the data); `blocks`: holes are made of whole blocks."""
    for number_of, (B, h, w, f, g, C, steps, to_data) in enumerate(cases):
        known = rng.integers(0, 2, (B, h, w))
        known[0, 0, 0], known[0, -1, -1] = 1, 0
        known = known.repeat(f, axis=1).repeat(g, axis=2)
        if not blocks:
            holes = rng.uniform(size=known.shape) < 0.15
            holes[0, :f, :g] = np.arange(f * g).reshape(f, g) == 1  # one pixel of a known block
            known = np.where(holes, 1 - known, known)
            known[:, f * (h - 1) :, :g] = 1
        alpha = np.sort(rng.uniform(0.2, 0.9, steps + 1))
        sigma = np.sort(rng.uniform(0.3, 1.2, steps + 1))[::-1].copy()
        if to_data:
            alpha[-1], sigma[-1] = 1, 0
        mean, std = ((-2.1, -1.2), (1.3, 1.9)) if number_of % 2 else ((1.1, 2.3), (0.4, 0.8))
        # Only a denoiser of whole grids shows what stood in its state beside the hole.
        denoise = SharedGaussianDenoiser(
            number(rng, *mean), number(rng, *std), number(rng, 0.7, 1.1)
        )
        x, shape = images(rng, B, h * f, w * g, C), (B, h, w, C)
        shift, scale = normal(rng, C, mean=1.6, std=0.3), rng.uniform(1.8, 2.9, C)
        yield (
            denoise, x, known.astype(np.int32), normal(rng, *shape), normal(rng, steps, *shape),
            alpha, sigma, shift, scale.astype(np.float32),
        )  # fmt: skip


_ORDER = "y = z / scale + shift -> y = (z + shift) / scale"
_MASK = "known.reshape(cut).min(axis=(2, 4)) -> known.reshape(cut).max(axis=(2, 4))"
_LEVEL = "alpha[n + 1] * given + sigma[n + 1] * noise -> alpha[n] * given + sigma[n] * noise"

INPAINT = exercise(
    "14.6 · This pipeline is broken",
    inpaint,
    # Few shapes: in JAX, each of them is compiled.
    Part(
        "holes made of whole blocks",
        2,
        lambda rng: _pictures(rng, (2, 3, 2, 2, 5, 1, 3, True), (1, 5, 4, 2, 3, 2, 2, False)),
    ),
    Part(
        "any holes",
        2,
        lambda rng: _pictures(
            rng, (2, 3, 2, 2, 5, 1, 3, False), (1, 5, 4, 2, 3, 2, 2, True), blocks=False
        ),
    ),
    section="8 · Everything you know works here",
    mistakes=f"""
    all three bugs are still there
        {_ORDER}
        {_MASK}
        {_LEVEL}
    two bugs are left: one in the mask, and one in the noise of what is pasted
        {_MASK}
        {_LEVEL}
    two bugs are left: one on the way from latents to pixels, and one in what is pasted
        {_ORDER}
        {_LEVEL}
    two bugs are left: one on the way from latents to pixels, and one in the mask
        {_ORDER}
        {_MASK}
    a bug is left: encode subtracts, then multiplies; decode must undo the last of these first
        {_ORDER}
    a bug is left: the latent of a block holds all its pixels, also those of the hole
        {_MASK}
    a bug is left: what is pasted must have the noise of the level to which the step leads
        {_LEVEL}
    a block counts as known only if all its pixels are: half of them are not enough
        known.reshape(cut).min(axis=(2, 4)) -> known.reshape(cut).mean(axis=(2, 4)) > 0.5
    a block is known or it is not: with shares, what stands in the hole gets in
        known.reshape(cut).min(axis=(2, 4)) -> known.reshape(cut).mean(axis=(2, 4))
        z = np.where(whole, pasted, z) -> z = whole * pasted + (1 - whole) * z
    signal and noise of what is pasted are those of one level: the noise is still the old one
        sigma[n + 1] * noise -> sigma[n] * noise
    signal and noise of what is pasted are those of one level: the signal is still the old one
        alpha[n + 1] * given -> alpha[n] * given
    a state is what a step ends with: the known latents have been pasted into it
        path.append(z) ->
        z = np.where(whole, pasted, z) -> path.append(z); z = np.where(whole, pasted, z)
    encoding multiplies by the scale: decoding divides by it
        z / scale + shift -> z * scale + shift
    the scale divides once
        z / scale + shift -> z / scale**2 + shift
    one pixel of a block does not tell whether the block is known
        known.reshape(cut).min(axis=(2, 4)) -> known.reshape(cut)[:, :, 0, :, 0]
    the known pixels come from the picture, also those of blocks that are not known
        known[..., None], x, y)
            -> whole.repeat(H // h, axis=1).repeat(W // w, axis=2), x, y)
    the known pixels come from the picture itself: what was encoded and decoded has lost detail
        return np.stack(path), np.where(known[..., None], x, y) -> return np.stack(path), y
    the latents of the picture were right: first subtract the shift, then multiply
        (x.reshape(cut).mean(axis=(2, 4)) - shift) * scale
            -> x.reshape(cut).mean(axis=(2, 4)) * scale - shift
    the known latents are pasted in each step, not only in the last one
        whole, pasted, z) -> (n == len(noises) - 1) * whole, pasted, z)
    the next step starts from the state with what is pasted: the denoiser sees it beside the hole
        z = np.where(whole, pasted, z) -> shown = np.where(whole, pasted, z)
        path.append(z) -> path.append(shown)
    nothing is pasted before the first step: it starts from `start` as it is
        z, path = start, []
            -> path = []; z = np.where(whole, alpha[0] * given + sigma[0] * noises[0], start)
    what is pasted needs its noise
        + sigma[n + 1] * noise ->
    """,
    library=("diffusion_course.grading.inputs.GaussianDenoiser",),
)


# --- 14.7 -----------------------------------------------------------------------------------
def best_code(C, rate):
    lam, axes = np.linalg.eigh(C)
    low, high = -200.0, np.log2(lam.max())
    for _ in range(200):  # the rate falls as the level rises: halve the interval of its logarithm
        middle = (low + high) / 2
        bits = np.sum(np.maximum(np.log2(np.maximum(lam, 1e-60)) - middle, 0)) / 2
        low, high = (middle, high) if bits > rate else (low, middle)
    level = 2**middle
    d = np.minimum(level, lam)
    keep = 1 - level / np.maximum(lam, level)
    A = (axes * keep) @ axes.T
    return np.mean(d), 2 * level, A


def _equal_bits(C, rate, count):
    """The rate shared equally by the `count` largest axes (all for 0), whatever they need."""
    lam, axes = np.linalg.eigh(C)
    used = np.arange(len(C)) >= (len(C) - count if count else 0)
    d = np.where(used, lam * 2 ** (-2 * rate / used.sum()), lam)
    keep = 1 - d / np.maximum(lam, 1e-60)
    return np.mean(d), 2 * d.max(), (axes * keep) @ axes.T


def _all_axes(C, rate):
    """One level for all axes, also where it is above the variance."""
    lam, axes = np.linalg.eigh(C)
    level = 2 ** ((np.sum(np.log2(np.abs(lam))) - 2 * rate) / len(C))
    return level, 2 * level, (axes * (1 - level / lam)) @ axes.T


def _covariances(rng, *cases):
    """(D, number of axes without variance, rate in bits, scale of the variances)."""
    for D, flat, rate, scale in cases:
        lam = scale * 0.35 ** np.arange(D) * rng.uniform(0.8, 1.2, D)
        lam[D - flat :] = 0
        axes = np.linalg.qr(rng.normal(size=(D, D)))[0]
        yield (axes * rng.permutation(lam)) @ axes.T, rate * number(rng, 0.9, 1.1)


BEST_CODE = exercise(
    "14.7 · The best code there is",
    best_code,
    Part(
        "enough bits for all axes",
        1,
        lambda rng: _covariances(rng, (2, 0, 4.0, 2.3), (5, 0, 15.0, 0.05)),
    ),
    Part(
        "few bits",
        2,
        lambda rng: _covariances(rng, (3, 0, 0.4, 9.0), (5, 0, 2.0, 2.3), (4, 0, 2.5, 30.0)),
    ),
    Part(
        "data in a subspace", 1, lambda rng: _covariances(rng, (4, 2, 5.0, 2.3), (5, 1, 1.5, 0.4))
    ),
    section="3 · Rate against distortion",
    mistakes="""
    an axis whose variance is below the level gets no bits, and its error is its variance
        return _all_axes(C, rate)
    the bits are not shared equally: all axes that are used end with the same error
        return _equal_bits(C, rate, 0)
    a single axis is not enough: others get bits as soon as the level is below their variance
        return _equal_bits(C, rate, 1)
    rate is in bits: the variance falls to a quarter with each bit, not by e²
        return best_code(C, rate / np.log(2))
    an axis needs ½·log2(variance/error) bits: the ½ is missing
        1e-60)) - middle, 0)) / 2 -> 1e-60)) - middle, 0))
    the distortion is a mean over the D values, not a sum
        np.mean(d) -> np.sum(d)
    the rate's derivative by an error d is 1/(2d), with a ½: β is twice the level
        2 * level -> level
    β multiplies KL/D and the distortion is a mean, too: D leaves the comparison
        2 * level -> 2 * level / len(C)
    from the mean latents an axis shrinks by 1 − d/λ, not by its root
        keep = 1 - level / np.maximum(lam, level)
            -> keep = np.sqrt(1 - level / np.maximum(lam, level))
    A cuts off the weak axes only: the others shrink, too, since their latents are noisy
        keep = 1 - level / np.maximum(lam, level) -> keep = (lam > level) * 1.0
    the distortion comes first, then β
        return np.mean(d), 2 * level, A -> return 2 * level, np.mean(d), A
    the matrix of axes is on the wrong side: its columns are the axes
        (axes * keep) @ axes.T -> (axes.T * keep) @ axes
    that is the error of reconstructions from the mean latents: the latents are drawn
        np.mean(d) -> np.mean(d**2 / np.maximum(lam, level))
    """,
)


# --- 14.8 -----------------------------------------------------------------------------------
REPORT = Written(
    "14.8", "A report on a latent model", 2, section="14 · Break it on purpose: the forgotten scale"
)
