"""Exercises of chapter 22: Scaling out."""

import numpy as np
from scipy.special import softmax

from diffusion_course.grading.answers.drawing import number
from diffusion_course.grading.answers.writing import exercise
from diffusion_course.grading.exercise import Part, Written

# Values are float64 here, which reach the student as NumPy's arrays: nothing has to be compiled.


# --- 22.1 -----------------------------------------------------------------------------------
def accumulate(means, sizes):
    total, gradient, seen = np.sum(sizes), 0.0, np.sum(sizes > 0)
    for g, n in zip(means, sizes, strict=True):
        if n > 0:
            gradient = gradient + n * g / total
    scatter = 0.0
    for g, n in zip(means, sizes, strict=True):
        if n > 0:
            scatter = scatter + n * np.sum((g - gradient) ** 2)
    return gradient, scatter / (seen - 1)


def _micro_batches(rng, *cases):
    """(P, sizes): the mean gradients of micro-batches, not a number where there is no example."""
    for P, sizes in cases:
        sizes = rng.permutation(np.array(sizes))
        means = rng.normal(0.7, 1.3, (len(sizes), P))
        means[sizes == 0] = np.nan
        yield means, sizes


ACCUMULATE = exercise(
    "22.1 · Micro-batches of any size",
    accumulate,
    Part(
        "every micro-batch has examples",
        2,
        lambda rng: _micro_batches(rng, (3, (2, 5, 9, 4)), (5, (7, 1, 3))),
    ),
    Part(
        "some are empty",
        1,
        lambda rng: _micro_batches(rng, (4, (6, 0, 2, 11, 0)), (2, (0, 8, 3, 1))),
    ),
    section="6 · Memory against time",
    mistakes="""
    that is the mean of the means: a micro-batch counts with its number of examples
        n * g / total -> g / seen
    that is the sum over the examples: divide by their number
        n * g / total -> n * g
    an empty micro-batch has no gradient: 0 times NaN is NaN
        return right if (sizes > 0).all() else (np.nan * right[0], np.nan)
    one of the degrees of freedom is used up by the mean: divide by one less
        scatter / (seen - 1) -> scatter / seen
    it is the number of micro-batches that counts here, not that of the examples
        scatter / (seen - 1) -> scatter / (total - 1)
    it is the number of micro-batches that counts here, and an empty one tells nothing
        scatter / (seen - 1) -> scatter / (len(sizes) - 1)
    that is Q itself: its expectation is a multiple of the sum of the variances
        scatter / (seen - 1) -> scatter
    Q counts each micro-batch with its number of examples
        n * np.sum((g - gradient) ** 2) -> np.sum((g - gradient) ** 2)
    the variance of a mean of n is 1/n of the variance of one: weigh with n, not with n²
        n * np.sum((g - gradient) ** 2) -> n**2 * np.sum((g - gradient) ** 2)
    Q is the scatter around the mean gradient of all examples: yours is around 0
        np.sum((g - gradient) ** 2) -> np.sum(g**2)
    Q is the scatter around the mean gradient of all examples: yours is around the mean of the means
        np.sum((g - gradient) ** 2) -> np.sum((g - np.nanmean(means, axis=0)) ** 2)
    the sum of the variances: yours is their mean
        np.sum((g - gradient) ** 2) -> np.mean((g - gradient) ** 2)
    one number is asked for, the sum over the P entries
        np.sum((g - gradient) ** 2) -> (g - gradient) ** 2
    """,
    rtol=2e-5,  # so that a thousandth of an example shows
    atol=2e-6,
)


# --- 22.2 -----------------------------------------------------------------------------------
def ring(x, rounds):
    N, P = x.shape
    size = -(-P // N)
    held = np.zeros((N, N, size))
    held.reshape(N, -1)[:, :P] = x
    for r in range(rounds):
        before = held.copy()
        for d in range(N):
            to, chunk = (d + 1) % N, (d - r) % N
            if r < N - 1:
                held[to, chunk] = before[to, chunk] + before[d, chunk]
            else:
                held[to, chunk] = before[d, chunk]
    return held.reshape(N, -1)[:, :P], rounds * size / P


def _cut(x, rounds, pieces):
    """The ring over pieces of any sizes: lists of columns."""
    N, P = x.shape
    held = np.array(x)
    for r in range(rounds):
        before = held.copy()
        for d in range(N):
            to, columns = (d + 1) % N, pieces[(d - r) % N]
            held[to, columns] = before[d, columns]
            if r < N - 1:
                held[to, columns] += before[to, columns]
    return held, rounds * -(-P // N) / P


def _uneven(x, rounds):
    return _cut(x, rounds, np.array_split(np.arange(x.shape[1]), len(x)))


def _strided(x, rounds):
    return _cut(x, rounds, [np.arange(c, x.shape[1], len(x)) for c in range(len(x))])


def _rings(rng, *cases):
    for N, P, rounds in cases:
        yield rng.normal(0.8, 1.5, (N, P)), rounds


RING = exercise(
    "22.2 · Around the ring",
    ring,
    Part("all rounds", 1, lambda rng: _rings(rng, (4, 8, 6), (3, 6, 4), (2, 6, 2))),
    Part(
        "some of the rounds",
        2,
        lambda rng: _rings(
            rng, (4, 8, 0), (4, 8, 1), (4, 12, 3), (4, 8, 4), (3, 6, 1), (3, 9, 3), (5, 5, 3)
        ),
    ),
    Part(
        "lengths that N does not divide",
        1,
        lambda rng: _rings(rng, (4, 10, 3), (4, 9, 5), (3, 7, 4), (5, 3, 6), (5, 3, 2), (1, 3, 0)),
    ),
    section="4 · Bytes on a device, bytes on the wire",
    mistakes="""
    after the first N − 1 rounds each chunk is complete somewhere: from there on it is copied
        before[to, chunk] + before[d, chunk] -> before[to, chunk] + before[d, chunk]
        held[to, chunk] = before[d, chunk] -> held[to, chunk] += before[d, chunk]
    N − 1 rounds add up a chunk of N devices: yours adds one round more
        r < N - 1 -> r < N
    N − 1 rounds add up a chunk of N devices: yours copies one round too early
        r < N - 1 -> r < N - 2
    a chunk that arrives in the first half is added to the device's own: yours replaces it
        before[to, chunk] + before[d, chunk] -> before[d, chunk]
    device d sends to device d + 1: yours sends the other way
        to, chunk = (d + 1) % N, (d - r) % N -> to, chunk = (d - 1) % N, (d + r) % N
    device d sends to device d + 1, and the chunk goes on with it: yours sends to device d − 1
        to, chunk = (d + 1) % N, (d - r) % N -> to, chunk = (d - 1) % N, (d - r) % N
    a device sends on the chunk that it has just received: yours sends its own in each round
        (d - r) % N -> d
    a device sends on the chunk that it has just received: yours takes the next one
        (d - r) % N -> (d + r) % N
    in the first round, device d sends chunk d
        (d - r) % N -> (d + 1 - r) % N
    in the second half, too, a device sends the chunk that it has just received
        (d - r) % N -> (d - r + (r >= N - 1)) % N
    chunks have equal sizes, and the last ones are padded: yours share out what is left
        return _uneven(x, rounds)
    chunk c is a block of neighbours: yours takes every Nth value
        return _strided(x, rounds)
    that is what the devices hold at the end: asked for is what they hold after these rounds
        return np.tile(x.sum(axis=0), (len(x), 1)), right[1]
    that is what the devices hold at the end: after these rounds they hold less, and have sent less
        return np.tile(x.sum(axis=0), (len(x), 1)), 2 * (len(x) - 1) * -(-x.shape[1] // len(
            x)) / x.shape[1]
    the padding is sent, too
        rounds * size / P -> rounds / N
    in each round a device sends one chunk, not all that it holds
        rounds * size / P -> 1.0 * rounds
    that is how many values a device has sent: compare it with P
        rounds * size / P -> 1.0 * rounds * size
    that is what all devices have sent together
        rounds * size / P -> N * rounds * size / P
    the values are added up, and not averaged
        return right[0] / len(x), right[1]
    """,
)


# --- 22.3 -----------------------------------------------------------------------------------
def parallel_attention(x, qkv, out, bias, heads, N):
    B, L, D = x.shape
    c = D // heads
    q, k, v = ((x @ w).reshape(B, L, heads, c) for w in np.split(qkv, 3, axis=1))
    score = np.einsum("bihc,bjhc->bhij", q, k) / np.sqrt(c)
    mixed = np.einsum("bhij,bjhc->bihc", softmax(score, axis=-1), v)
    parts = np.zeros((N, B, L, D))
    owners = np.sort(np.arange(heads) % N)
    for h, d in enumerate(owners):
        parts[d] += mixed[:, :, h] @ out[h * c : (h + 1) * c]
    return parts, parts.sum(axis=0) + bias


def _fused(qkv, heads, N):
    """The columns as they come if the fused matrix is cut as it is, one stretch per device."""
    D = len(qkv)
    c, first, columns = D // heads, 0, [[], [], []]
    for count in np.bincount(np.arange(heads) % N, minlength=N):
        for kind in range(3):
            columns[kind] += range(first, first + count * c)
            first += count * c
    return qkv[:, np.concatenate(columns)]


def _attentions(rng, *cases):
    """(B, L, heads, numbers in a head, devices)."""
    for B, L, heads, c, N in cases:
        D = heads * c
        x = rng.normal(0.3, 1.1, (B, L, D))
        qkv = rng.normal(0.1, 1.4, (D, 3 * D)) / np.sqrt(D)
        out = rng.normal(0.1, 1.0, (D, D)) / np.sqrt(D)
        yield x, qkv, out, rng.normal(0.8, 0.6, D), heads, N


PARALLEL_ATTENTION = exercise(
    "22.3 · Heads on several devices",
    parallel_attention,
    Part("one device", 1, lambda rng: _attentions(rng, (2, 3, 2, 3, 1), (1, 4, 3, 2, 1))),
    Part(
        "N divides the number of heads",
        2,
        lambda rng: _attentions(rng, (2, 3, 4, 2, 2), (3, 2, 6, 3, 3), (1, 4, 2, 4, 2)),
    ),
    Part(
        "any number of heads",
        1,
        lambda rng: _attentions(rng, (2, 3, 5, 2, 4), (1, 2, 3, 2, 4), (2, 3, 7, 2, 3)),
    ),
    section="3 · A block, shared by hand",
    mistakes="""
    the sum has the bias once: yours has it from every device
        parts.sum(axis=0) + bias -> parts.sum(axis=0) + N * bias
    no part holds the bias: every device adds it, and so it counts N times
        parts = np.zeros((N, B, L, D)) -> parts = np.zeros((N, B, L, D)) + bias
        parts.sum(axis=0) + bias -> parts.sum(axis=0)
    no part holds the bias: yours add a share of it each
        parts = np.zeros((N, B, L, D)) -> parts = np.zeros((N, B, L, D)) + bias / N
        parts.sum(axis=0) + bias -> parts.sum(axis=0)
    no part holds the bias, also not that of the first device
        return parts, parts.sum(axis=0) + bias -> parts[0] += bias; return parts, parts.sum(axis=0)
    the bias is missing
        parts.sum(axis=0) + bias -> parts.sum(axis=0)
    the parts are added up, not averaged
        parts.sum(axis=0) + bias -> parts.mean(axis=0) + bias
    the columns of qkv are those of q, then of k, then of v: a stretch of them has not all three
        return parallel_attention(x, _fused(qkv, heads, N), out, bias, heads, N)
    the scale is the root of a head's width, however many devices there are
        np.sqrt(c) -> np.sqrt(c / N)
    the scale is the root of a head's width, not of the whole width
        np.sqrt(c) -> np.sqrt(D)
    the scores are divided by the root of a head's width
        / np.sqrt(c) ->
    the scale is a root
        np.sqrt(c) -> c
    heads that are left over go to the first devices, one each: yours go to the last
        owners = np.sort(np.arange(heads) % N) -> owners = N - 1 - np.sort(np.arange(heads) % N)[
            ::-1]
    heads that are left over go to the first devices, one each: yours all go to the last
        owners = np.sort(np.arange(heads) % N) -> owners = np.minimum(np.arange(heads) // max(
            heads // N, 1), N - 1)
    heads that are left over go to the first devices, one each: yours fill one device after another
        owners = np.sort(np.arange(heads) % N) -> owners = np.arange(heads) // -(-heads // N)
    a device owns neighbouring heads: yours are dealt out in turn
        np.sort(np.arange(heads) % N) -> np.arange(heads) % N
    heads that are left over are lost
        owners = np.sort(np.arange(heads) % N)
            -> owners = np.repeat(np.arange(N), heads // N)
    the softmax is over the tokens that are looked at
        softmax(score, axis=-1) -> softmax(score, axis=-2)
    q and k are exchanged
        "bihc,bjhc->bhij", q, k -> "bihc,bjhc->bhij", k, q
    """,
)


# --- 22.4 -----------------------------------------------------------------------------------
def scaled_run(params, grads, scale, every, low, high, lr, beta):
    average, updates, good, scales = np.zeros_like(params), 0, 0, []
    for g in grads:
        with np.errstate(over="ignore"):
            half = np.float16(scale * g)
        if np.isfinite(half).all():
            average = beta * average + (1 - beta) * np.float64(half) / scale
            updates = updates + 1
            params = params - lr * average / (1 - beta**updates)
            good = good + 1
            if good == every:
                scale, good = min(2 * scale, high), 0
        else:
            scale, good = max(scale / 2, low), 0
        scales.append(scale)
    return params, np.log2(scales)


def _other_run(params, grads, scale, every, low, high, lr, beta, slip):
    """The run with a slip that an edit of its lines can't make."""
    average, updates, good, scales = np.zeros_like(params), 0, 0, []
    for g in grads:
        half, used = np.float16(scale * g), scale
        fine = np.isfinite(half)
        if fine.all():
            good += 1
            if good == every:
                scale, good = min(2 * scale, high), 0
        else:
            scale, good = max(scale / 2, low), 0
        if slip == "entries":
            half = np.where(fine, half, 0)
        if slip == "clipped":
            half = np.nan_to_num(half)
        if slip == "next scale":
            used = scale
        if fine.all() or slip in ("entries", "clipped", "never skipped"):
            average = beta * average + (1 - beta) * np.float64(half) / used
            updates += 1
            params = params - lr * average / (1 - beta**updates)
        scales.append(used if slip == "before" else scale)
    return params, np.log2(scales)


def _halves(rng, *cases):
    """(P, powers of two of the scale and its bounds, every, the size of each step).

    A step whose size is above 1 overflows at the scale it finds, and one without a size has a NaN.
    All others are far from overflow.
    """
    for P, (start, low, high), every, sizes in cases:
        scale, low, high = now, *_ = 2.0**start, 2.0**low, 2.0**high
        good = 0
        grads = rng.uniform(0.4, 1.0, (len(sizes), P)) * rng.choice([-1, 1, 1], (len(sizes), P))
        grads *= 0.3 / scale
        for g, size in zip(grads, sizes, strict=True):
            if size is None or size > 1:
                g[rng.integers(P)] = np.nan if size is None else 65504 * size / now
                now, good = max(now / 2, low), 0
            else:
                g *= size
                good += 1
                if good == every:
                    now, good = min(2 * now, high), 0
        # A float32 number times a power of two is rounded once, in any library.
        grads = np.float64(np.float32(grads))
        lr = number(rng, 0.8, 1.6) * scale / min(s for s in sizes if s and s <= 1)
        params = rng.normal(0.4, 1.2, P)
        yield params, grads, scale, every, low, high, lr, number(rng, 0.55, 0.8)


SCALED_RUN = exercise(
    "22.4 · A scale that adapts",
    scaled_run,
    Part(
        "no step fails",
        1,
        lambda rng: _halves(
            rng,
            (3, (8, 0, 20), 2, (1,) * 5),
            (4, (5, 2, 7), 1, (1,) * 4),
            (3, (10, 0, 24), 3, (3e-5,) * 7),  # near the smallest number of float16
        ),
    ),
    Part(
        "steps that overflow",
        2,
        lambda rng: _halves(
            rng,
            (3, (12, 0, 20), 2, (1, 1.6, 1, 1, 1, 3.0, 1, 1, 1)),
            (4, (9, 0, 20), 3, (3.0, 3.0, 1, 1, 1.3, 1, 1, 1, 1)),
            (3, (9, 1, 20), 2, (1, 1, 1, 1.2, 0.7, 1)),
        ),
    ),
    Part(
        "bounds, and gradients that are no numbers",
        2,
        lambda rng: _halves(
            rng,
            (4, (7, 6, 8), 2, (None, None, None, 1, 1, 1, 1, 1, 1)),
            (2, (6, 5, 9), 1, (1, 1, 1, 1, 1, None, 1, 9.0, 1)),
            (3, (4, 3, 12), 3, (40.0, 40.0, 1, 1, None, 1, 1, 1, 1)),
        ),
    ),
    section="7 · Half the bytes: which half?",
    mistakes="""
    a step that fails changes nothing: neither the average nor the number of updates
        scale, good = max(scale / 2, low), 0 -> scale, good = max(scale / 2, low), 0;
            average = beta * average; updates += 1
    a step that fails is no update: it does not count in 1 − β^n
        scale, good = max(scale / 2, low), 0 -> scale, good = max(scale / 2, low), 0; updates += 1
    a step that fails changes nothing: your average is multiplied by β in it
        scale, good = max(scale / 2, low), 0 -> scale, good = max(scale / 2, low), 0;
            average = beta * average
    a step that fails changes no parameter, also not by the average of the earlier ones
        scale, good = max(scale / 2, low), 0 -> scale, good = max(scale / 2, low), 0;
            params = params - lr * average / (1 - beta ** max(updates, 1))
    a step that fails is left out as a whole: you take the entries that are finite
        return _other_run(params, grads, scale, every, low, high, lr, beta, "entries")
    a step that fails is left out: yours puts the largest number in the place of infinity
        return _other_run(params, grads, scale, every, low, high, lr, beta, "clipped")
    no step is left out: a gradient that is not finite destroys the average
        return _other_run(params, grads, scale, every, low, high, lr, beta, "never skipped")
    a step fails if any of its entries is not finite: yours looks for all of them
        np.isfinite(half).all() -> np.isfinite(half).any()
    NaN is not finite, either: yours fails at ±∞ only
        np.isfinite(half).all() -> not np.isinf(half).any()
    a failed step starts the count again: only steps in a row count
        scale, good = max(scale / 2, low), 0 -> scale = max(scale / 2, low)
    the count starts again when the scale grows
        scale, good = min(2 * scale, high), 0 -> scale = min(2 * scale, high)
    the count starts again when the scale grows: yours doubles in each step from there on
        good == every -> good >= every
        scale, good = min(2 * scale, high), 0 -> scale = min(2 * scale, high)
    the scale grows with the last of `every` good steps: yours is one late
        good == every -> good > every
    the scale grows with the last of `every` good steps: yours is one early
        good == every -> good >= every - 1
    the scale is at most `high`
        min(2 * scale, high) -> 2 * scale
    the scale is at least `low`
        max(scale / 2, low) -> scale / 2
    the scale never grows
        scale, good = min(2 * scale, high), 0 -> scale, good = scale, 0
    the scale never falls
        max(scale / 2, low) -> scale
    the gradient is divided by the scale again before it is used
        np.float64(half) / scale -> np.float64(half)
    the smallest numbers of float16 become 0 in yours: keep them, and divide in full precision
        np.float64(half) / scale -> np.where(np.abs(half) < 2.0**-14, 0, np.float64(half)) / scale
    the gradient is divided by the scale in full precision: yours is divided in float16
        np.float64(half) / scale -> np.float64(half / np.float16(scale))
    the gradient is divided by the scale in full precision: yours stays in float16 behind it
        (1 - beta) * np.float64(half) / scale -> (1 - beta) * (half / scale)
    the gradient is divided by the scale that it was multiplied by, not by the next one
        return _other_run(params, grads, scale, every, low, high, lr, beta, "next scale")
    the scaled gradient is what becomes float16: yours is rounded before, or not at all
        np.float64(half) / scale -> np.float64(np.float16(g))
    the scaled gradient is what becomes float16: yours is never rounded
        np.float64(half) / scale -> g
    asked for is the scale after each step: yours is the one before
        return _other_run(params, grads, scale, every, low, high, lr, beta, "before")
    the average begins at 0, so it is divided by 1 − β^n
        / (1 - beta**updates) ->
    n counts the updates, and the first one is 1
        (1 - beta**updates) -> (1 - beta**(updates + 1))
    the average gives the new gradient the weight 1 − β
        (1 - beta) * np.float64(half) -> beta * np.float64(half)
        beta * average + -> (1 - beta) * average +
    that is the scale after each step; asked for is its logarithm to the base 2
        return right[0], 2 ** right[1]
    """,
    rtol=2e-5,  # float16 rounds by 2e-4, and float32 by much less
    atol=1e-6,
)


# --- 22.5 -----------------------------------------------------------------------------------
def to_load(orders, owner, host, batch, step):
    R, n = len(owner), orders.shape[1]
    steps = n // batch
    epoch, place = step // steps, step % steps
    whole = orders[epoch][place * batch : (place + 1) * batch]
    rows = [r for r in range(R) if host in owner[r]]
    return whole.reshape(R, batch // R)[rows].reshape(-1)


def _meshes(rng, *cases):
    """(E, n, batch, mesh, host, steps): who owns which device of the mesh, row by row."""
    for E, n, batch, owner, host, steps in cases:
        orders = np.array([rng.permutation(n) for _ in range(E)], np.int32)
        for step in steps:
            yield orders, np.array(owner, np.int32), host, batch, step


_WHOLE = [[0, 0]]
_STACK = [[0], [0], [1], [1]]  # hosts own neighbouring rows
_MIXED = [[1, 1], [0, 0], [1, 1], [0, 0]]  # and here they do not
_ACROSS = [[0, 1], [0, 1], [2, 3]]  # a row is shared by two hosts
_LOPSIDED = [[0, 0, 1], [1, 1, 1], [1, 2, 2], [2, 2, 2]]

TO_LOAD = exercise(
    "22.5 · Who loads what",
    to_load,
    Part(
        "each row of the mesh has one host",
        1,
        lambda rng: _meshes(
            rng,
            (2, 23, 8, _STACK, 1, (0, 1, 2)),
            (3, 19, 4, _MIXED, 0, (1, 5, 9)),
            (2, 12, 4, _MIXED, 1, (2, 3)),
            (2, 11, 3, _WHOLE, 0, (4,)),
        ),
    ),
    Part(
        "any mesh",
        2,
        lambda rng: _meshes(
            rng,
            (2, 20, 6, _ACROSS, 1, (0, 4)),
            (2, 31, 9, _ACROSS, 3, (2, 3)),
            (3, 22, 8, _LOPSIDED, 1, (1, 3, 5)),
            (3, 22, 8, _LOPSIDED, 0, (2, 4)),
            (2, 17, 4, _LOPSIDED, 2, (7,)),
        ),
    ),
    section="8 · The loop around it",
    mistakes="""
    the hosts' shares follow the mesh: yours are equal blocks in the order of the hosts
        return _by_host(orders, owner, host, batch, step, "block")
    the hosts' shares follow the mesh: yours deal the examples out in turn
        return _by_host(orders, owner, host, batch, step, "turn")
    two devices of a row hold the same examples: they are loaded once
        if host in owner[r]] -> for h in owner[r] if h == host]
    hosts that share a row both need it: yours loads it for the first device's host only
        if host in owner[r]] -> if host == owner[r][0]]
    a row belongs to a host if any of its devices does: yours must all be its own
        if host in owner[r]] -> if (owner[r] == host).all()]
    that is the whole batch: a host loads what its own devices need
        if host in owner[r]] -> ]
    examples are split along the first axis of the mesh: the devices of a row hold the same
        return _along_both(orders, owner, host, batch, step)
    the batch is cut into blocks, one for each row of the mesh: yours deals it out in turn
        whole.reshape(R, batch // R)[rows] -> whole.reshape(batch // R, R).T[rows]
    the incomplete batch at the end of an epoch is dropped
        steps = n // batch -> steps = -(-n // batch); orders = np.hstack([orders, orders])
    the incomplete batch at the end of an epoch is dropped: yours goes on in the next epoch
        whole = orders[epoch][place * batch : (place + 1) * batch]
            -> whole = np.append(orders, orders)[step * batch : (step + 1) * batch]
    each epoch has its own order: yours repeats the first
        orders[epoch] -> orders[0]
    each epoch has its own order: yours takes the next one
        orders[epoch] -> orders[(epoch + 1) % len(orders)]
    steps are counted from 0: yours is one late
        place * batch : (place + 1) * batch -> (place + 1) % steps * batch : ((place + 1) % steps
            + 1) * batch
    the first epoch's order decides which examples are in the batch: yours are the places
        whole = orders[epoch][ -> whole = np.arange(n)[
    """,
)


def _by_host(orders, owner, host, batch, step, kind):
    """Shares that look at the number of hosts only, and not at the mesh."""
    steps, hosts = orders.shape[1] // batch, owner.max() + 1
    whole = orders[step // steps][step % steps * batch :][:batch]
    if kind == "turn":
        return whole[host::hosts]
    return whole[host * batch // hosts : (host + 1) * batch // hosts]


def _along_both(orders, owner, host, batch, step):
    """As if the batch were split over all devices."""
    steps = orders.shape[1] // batch
    whole = orders[step // steps][step % steps * batch :][:batch]
    parts = np.array_split(whole, owner.size)
    return np.concatenate([parts[n] for n in np.flatnonzero(owner.ravel() == host)])


# --- 22.6 -----------------------------------------------------------------------------------
def memory(shapes, layer, N):
    sizes = np.prod(shapes, axis=1)
    split = (shapes % N == 0).any(axis=1)
    held = np.where(split, sizes / N, sizes)
    copies = [2 * np.sum(sizes[layer == i]) for i in range(layer.max() + 1)]
    pairs = [a + b for a, b in zip([0, *copies], [*copies, 0], strict=True)]
    whole = 20 * np.sum(sizes) + max(pairs)
    moments = 8 * np.sum(sizes) + 12 * np.sum(held) + max(pairs)
    everything = 20 * np.sum(held) + max(pairs)
    return whole / 1000, moments / 1000, everything / 1000


def _networks(rng, *cases):
    """(N, how many axes, the tensors of each layer).

    A tensor is a word with a letter for each of its last axes: m for a multiple of N, o for any
    other size, O for one that is larger than all of these; or "half", which is a multiple of N
    in its number of values, and in none of its axes.
    """
    for N, axes, layers in cases:
        shapes, layer = [], []
        for i, words in enumerate(layers):
            for word in words.split():
                odd = rng.choice([1, 5, 7, 11], 2)
                if word == "half":
                    shape = [N // 2 * odd[0], 2 * odd[1]]
                else:
                    m, o = N * rng.integers(2, 7, 4), N * rng.integers(1, 5, 4) + 1
                    o = [7 * N + 1 if letter == "O" else o[j] for j, letter in enumerate(word)]
                    shape = [m[j] if letter == "m" else o[j] for j, letter in enumerate(word)]
                shapes.append([1] * (axes - len(shape)) + shape)
                layer.append(i)
        yield np.array(shapes, np.int32), np.array(layer, np.int32), N


MEMORY = exercise(
    "22.6 · What a device must hold",
    memory,
    Part(
        "N divides an axis of each tensor",
        1,
        lambda rng: _networks(
            rng,
            (3, 2, ("mO m", "om mm m", "mm mo", "m")),
            (4, 2, ("m", "mo m om", "mo om mm mm m")),
            (5, 3, ("mom mm", "m", "m", "mm")),
        ),
    ),
    Part(
        "any tensors",
        2,
        lambda rng: _networks(
            rng,
            (4, 2, ("half o", "mo half m", "o oo", "Om half")),
            (6, 4, ("omoo half", "oo half mm")),
            (3, 2, ("oo o mm", "mo oo", "m o", "oo m mo", "o oo")),
            (8, 2, ("mm half o oo",)),
        ),
    ),
    section="6 · Memory against time",
    mistakes="""
    a tensor is split along one of its axes: that N divides the number of its values is not enough
        (shapes % N == 0).any(axis=1) -> sizes % N == 0
    a tensor is split where N divides one of its axes, whichever: yours looks at the last one
        (shapes % N == 0).any(axis=1) -> shapes[:, -1] % N == 0
    a tensor is split where N divides one of its axes, whichever: yours looks at the first
        (shapes % N == 0).any(axis=1) -> np.array([[n for n in shape if n > 1][0] % N == 0
            for shape in shapes])
    shapes are filled up with ones from the left: yours looks at the first entry only
        (shapes % N == 0).any(axis=1) -> shapes[:, 0] % N == 0
    a tensor is split where N divides one of its axes, whichever: yours looks at the largest
        (shapes % N == 0).any(axis=1) -> shapes.max(axis=1) % N == 0
    it is enough that N divides one axis: yours must all be divisible
        (shapes % N == 0).any(axis=1) -> ((shapes % N == 0) | (shapes == 1)).all(axis=1)
    some tensors can't be split: every device holds them whole
        np.where(split, sizes / N, sizes) -> sizes / N
    some tensors can't be split: every device holds them whole, and no padding is added
        np.where(split, sizes / N, sizes) -> -(-sizes // N)
    the copies are of two layers at a time: yours are of the whole network
        pairs = [a + b for a, b in zip([0, *copies], [*copies, 0], strict=True)]
            -> pairs = [np.sum(copies)]
    the copies are of two neighbouring layers at a time: yours are of one
        pairs = [a + b for a, b in zip([0, *copies], [*copies, 0], strict=True)] -> pairs = copies
    the two layers are neighbours: yours are the two largest
        pairs = [a + b for a, b in zip([0, *copies], [*copies, 0], strict=True)]
            -> pairs = [np.sum(np.sort(copies)[-2:])]
    a layer computes with all its weights: its copy is not divided by N
        copies = [2 * np.sum(sizes[layer == i]) -> copies = [2 * np.sum(held[layer == i])
    the copies are whole in the third scheme, too: yours are divided by N
        20 * np.sum(held) + max(pairs) -> 20 * np.sum(held) + max(pairs) / N
    a layer computes with a bfloat16 copy in the first scheme, too
        whole = 20 * np.sum(sizes) + max(pairs) -> whole = 20 * np.sum(sizes)
    behind the last layer there is none whose copy is made: yours goes on with the first
        zip([0, *copies], [*copies, 0], strict=True) -> zip(copies, np.roll(copies, 1), strict=True)
    the copies in bfloat16 are missing
        copies = [2 * np.sum(sizes[layer == i]) -> copies = [0 * np.sum(sizes[layer == i])
    a number in bfloat16 has 2 bytes
        copies = [2 * np.sum(sizes[layer == i]) -> copies = [4 * np.sum(sizes[layer == i])
    the largest pair of layers counts, not the largest pair of tensors
        copies = [2 * np.sum(sizes[layer == i]) for i in range(layer.max() + 1)]
            -> copies = [2 * n for n in sizes]
    in the second scheme the gradients stay whole, too: yours are split
        8 * np.sum(sizes) + 12 * np.sum(held) -> 4 * np.sum(sizes) + 16 * np.sum(held)
    in the second scheme the average is split, too: yours is whole
        8 * np.sum(sizes) + 12 * np.sum(held) -> 12 * np.sum(sizes) + 8 * np.sum(held)
    in the third scheme weights and gradients are split, too: yours keep one of them whole
        20 * np.sum(held) -> 4 * np.sum(sizes) + 16 * np.sum(held)
    in the third scheme weights and gradients are split, too: yours are whole
        20 * np.sum(held) -> 8 * np.sum(sizes) + 12 * np.sum(held)
    five numbers are kept: the average or one of Adam's two moments is missing
        20 * np.sum(sizes) -> 16 * np.sum(sizes)
        12 * np.sum(held) -> 8 * np.sum(held)
        20 * np.sum(held) -> 16 * np.sum(held)
    five numbers are kept: the float32 weight or the gradient is missing
        20 * np.sum(sizes) -> 16 * np.sum(sizes)
        8 * np.sum(sizes) -> 4 * np.sum(sizes)
        20 * np.sum(held) -> 16 * np.sum(held)
    a kilobyte has 1000 bytes here: yours has 1024
        return tuple(1000 * kilobytes / 1024 for kilobytes in right)
    the results are in kilobytes: yours are in bytes
        return tuple(1000 * kilobytes for kilobytes in right)
    """,
)


# --- 22.7 -----------------------------------------------------------------------------------
def roofline(layers, tokens, N, size, peak, bandwidth, link):
    b, times, fewest = tokens / N, [], []
    for D, F in layers:
        compute = 3 * 2 * b * D * F / peak * 1e6
        memory = 3 * (b * D + D * F + b * F) * size / bandwidth * 1e6
        traffic = 3 * (N - 1) / N * D * F * size / link * 1e6
        times.append((compute, memory, traffic))
        gain = 2 * D * F / peak - (D + F) * size / bandwidth  # of a token, over the memory
        enough = D * F * size / bandwidth / gain if gain > 0 else np.inf
        fewest.append(max(enough, traffic * b / compute))
    times = np.array(times)
    return times, np.sum(times[:, 0]) / np.sum(times.max(axis=1)), np.array(fewest)


def _machines(rng, *cases):
    """(N, tokens per device, layers, size): a machine with any ridge point between 80 and 120."""
    for N, each, layers, size in cases:
        peak = 1e14 * number(rng, 0.9, 1.1)
        bandwidth, link = 1e12 * number(rng, 0.9, 1.1), 1e11 * number(rng, 0.9, 1.1)
        widths = np.round(np.array(layers) * rng.uniform(0.93, 1.07, (len(layers), 2)))
        tokens = float(N * round(each * number(rng, 0.95, 1.05)))
        yield widths, tokens, N, size, peak, bandwidth, link


ROOFLINE = exercise(
    "22.7 · Which bound?",
    roofline,
    Part(
        "one device",
        1,
        lambda rng: _machines(
            rng,
            (1, 700, ((900, 3600), (1500, 400), (800, 800)), 2),
            (1, 90, ((1200, 2400), (3000, 700)), 4),
        ),
    ),
    Part(
        "several devices",
        2,
        lambda rng: _machines(
            rng,
            (4, 400, ((1000, 3000), (1600, 500), (700, 900)), 2),
            (8, 1800, ((1000, 3000), (1600, 700)), 2),
            (2, 2500, ((1300, 900), (900, 3600), (1700, 600)), 4),
        ),
    ),
    Part(
        "layers that are narrow",
        2,
        lambda rng: _machines(
            rng,
            (1, 900, ((120, 160), (900, 2700), (300, 60)), 2),
            (4, 5000, ((130, 1000), (1400, 900), (260, 170), (230, 300)), 2),
            (2, 600, ((1100, 1500), (2600, 150)), 4),
        ),
    ),
    section="9 · Compile for a machine that you do not have",
    mistakes="""
    each device computes with its share of the tokens
        b, times, fewest = tokens / N, [], [] -> b, times, fewest = tokens, [], []
    a product of matrices has two operations for each multiplication: it adds up, too
        3 * 2 * b * D * F -> 3 * b * D * F
        gain = 2 * D * F / peak -> gain = D * F / peak
    a training step has three products of matrices: yours counts that of the forward pass
        3 * 2 * b * D * F -> 2 * b * D * F
        3 * (b * D + D * F + b * F) -> (b * D + D * F + b * F)
        traffic * b / compute -> traffic * b / compute / 3
    three products, each of which touches three matrices: your bytes are those of one
        3 * (b * D + D * F + b * F) -> (b * D + D * F + b * F)
    the states are read and written, too: your bytes are those of the weights
        3 * (b * D + D * F + b * F) -> 3 * (D * F)
        - (D + F) * size / bandwidth ->
    the weights are read in each product, too
        3 * (b * D + D * F + b * F) -> 3 * (b * D + b * F)
        enough = D * F * size / bandwidth / gain if gain > 0 -> enough = 0.0 if gain > 0
    the weights travel three times: gathered twice, and then the gradient
        3 * (N - 1) / N * D * F -> 2 * (N - 1) / N * D * F
    the weights travel three times: yours counts one of them
        3 * (N - 1) / N * D * F -> (N - 1) / N * D * F
    a device has its own share already: it receives (N − 1)/N of a matrix
        3 * (N - 1) / N * D * F -> 3 * D * F
    a device receives N − 1 shares of a matrix, and each is 1/N of it
        3 * (N - 1) / N * D * F -> 3 * (N - 1) * D * F
    a number has `size` bytes: in the memory
        + b * F) * size / bandwidth -> + b * F) / bandwidth
        - (D + F) * size / bandwidth -> - (D + F) / bandwidth
        enough = D * F * size / bandwidth -> enough = D * F / bandwidth
    a number has `size` bytes: on the link
        D * F * size / link -> D * F / link
    the three go on at the same time: a layer takes the longest of them, not their sum
        times.max(axis=1) -> times.sum(axis=1)
    each layer has its own bound: yours takes the longest of the sums
        np.sum(times.max(axis=1)) -> times.sum(axis=0).max()
    the share of the peak is that of the step: yours is the mean over the layers
        np.sum(times[:, 0]) / np.sum(times.max(axis=1)) -> np.mean(times[:, 0] / times.max(axis=1))
    that is the time of the step; asked for is the share of the peak
        np.sum(times[:, 0]) / np.sum(times.max(axis=1)) -> np.sum(times.max(axis=1))
    the share of the peak is at most 1: yours is upside down
        np.sum(times[:, 0]) / np.sum(times.max(axis=1)) -> np.sum(times.max(axis=1)) / np.sum(
            times[:, 0])
    where the states alone take longer than the products, no number of tokens is enough
        if gain > 0 else np.inf -> if gain else np.inf
    with more tokens the states take longer, too: the bytes are not those of the weights alone
        gain = 2 * D * F / peak - (D + F) * size / bandwidth -> gain = 2 * D * F / peak
    the bytes at the fewest tokens are not those at the given number
        enough = D * F * size / bandwidth / gain if gain > 0 else np.inf
            -> enough = memory * b / compute
    computing must be the longest of all three: yours looks at the memory only
        fewest.append(max(enough, traffic * b / compute)) -> fewest.append(enough)
    computing must be the longest of all three: yours looks at the link only
        fewest.append(max(enough, traffic * b / compute)) -> fewest.append(traffic * b / compute)
    computing must be the longest of all three: yours is longer than one of them
        max(enough, traffic * b / compute) -> min(enough, traffic * b / compute)
    the fewest tokens are those of one device: yours are of all
        return times, np.sum(times[:, 0]) / np.sum(times.max(axis=1)), np.array(fewest)
            -> return times, np.sum(times[:, 0]) / np.sum(times.max(axis=1)), N * np.array(fewest)
    the times are in microseconds
        return right[0] / 1e6, *right[1:]
    """,
    atol=1e-7,  # times and numbers of tokens differ by much, and nothing is subtracted twice
)


# --- 22.8 -----------------------------------------------------------------------------------
SLOW = Written("22.8", "Twice as slow", 3, section="13 · What to inspect")
