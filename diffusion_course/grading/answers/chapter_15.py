"""Exercises of chapter 15, Text, ControlNet, LoRA."""

import numpy as np

from diffusion_course.grading.answers.drawing import images, normal, number
from diffusion_course.grading.answers.writing import exercise
from diffusion_course.grading.exercise import Part, Written


# --- 15.1 -----------------------------------------------------------------------------------
def chain_weights(w, v):
    K = len(w)
    c = np.zeros(2 * K + 1)
    c[0] = 1
    for k in range(K):
        c[k + 1] += w[k]
        c[k] -= w[k]
        c[K + 1 + k] -= v[k]
        c[k] += v[k]
    return c


def _chains(rng, *lengths, negative=False):
    for K in lengths:
        v = rng.uniform(0.4, 1.9, K) if negative else np.zeros(K)
        if negative and K > 2:
            v[1] = 0
        yield rng.uniform(1.2, 7.5, K), v
    if not negative:
        yield np.ones(lengths[0]), np.zeros(lengths[0])


CHAIN = exercise(
    "15.1 · What each evaluation counts",
    chain_weights,
    Part("without negative prompts", 1, lambda rng: _chains(rng, 2, 1, 4)),
    Part("with them", 1, lambda rng: _chains(rng, 1, 2, 3, negative=True)),
    section="4 · The null caption, and how strongly to obey",
    mistakes="""
    a difference has two ends: a negative prompt also adds v_k to the evaluation before it
        c[k] += v[k] -> c[k] += 0
    a difference has two ends: w_k is taken from the evaluation before
        c[k] -= w[k] -> c[k] -= 0
    each difference begins at the evaluation before it, not at D_0: that is another rule
        c[k] -= w[k] -> c[0] -= w[k]
        c[k] += v[k] -> c[0] += v[k]
    the negative prompt's difference begins at the evaluation before it, D_(k−1), not at D_0
        c[k] += v[k] -> c[0] += v[k]
    the negative prompts are missing
        c[K + 1 + k] -= v[k] -> c[K + 1 + k] -= 0
        c[k] += v[k] -> c[k] += 0
    a negative prompt pushes away: its weight is −v_k
        c[K + 1 + k] -= v[k] -> c[K + 1 + k] += v[k]
        c[k] += v[k] -> c[k] -= v[k]
    the sign of one end of the negative prompt's difference is wrong
        c[k] += v[k] -> c[k] -= v[k]
    D_0 itself counts once before anything is added
        c[0] = 1 -> c[0] = 0
    these are the weights for papers' scales 1 + w: here w = 1 is plain conditioning
        c[k + 1] += w[k] -> c[k + 1] += 1 + w[k]
        c[k] -= w[k] -> c[k] -= 1 + w[k]
    N_k is compared with the evaluation that lacks the k-th condition, D_(k−1), not with D_k
        c[k] += v[k] -> c[k + 1] += v[k]
    the order is D_0 … D_K, then N_1 … N_K
        return np.concatenate([right[len(w) + 1 :], right[: len(w) + 1]])
    the evaluations stand in the opposite order
        return np.concatenate([right[: len(w) + 1][::-1], right[len(w) + 1 :]])
    """,
)


# --- 15.2 -----------------------------------------------------------------------------------
def _unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def _log_sum(logits, axis):
    top = logits.max(axis, keepdims=True)
    return np.log(np.exp(logits - top).sum(axis, keepdims=True)) + top


def contrastive(images, captions, ids, scale):
    logits = scale * (_unit(images) @ _unit(captions).T)
    same = (ids[:, None] == ids).astype(float)
    count = same.sum(axis=1)
    target = same / count
    rows = target * (_log_sum(logits, 1) - logits)
    columns = target * (_log_sum(logits, 0) - logits)
    loss = (rows.sum() + columns.sum()) / 2 / len(ids)
    return np.array([loss, np.log(count).mean()])


def _without_twins(images, captions, ids, scale):
    """The loss that leaves an image's twins out of its sums."""
    logits = scale * (_unit(images) @ _unit(captions).T)
    twins = (ids[:, None] == ids) & ~np.eye(len(ids), dtype=bool)
    logits = np.where(twins, -np.inf, logits)
    sums = (_log_sum(logits, 1).ravel() + _log_sum(logits, 0).ravel()) / 2
    return np.mean(sums - np.diag(logits))


def _together(images, captions, ids, scale):
    """The loss of the twins' probabilities, added up."""
    logits = scale * (_unit(images) @ _unit(captions).T)
    right = np.where(ids[:, None] == ids, logits, -np.inf)
    sums = [_log_sum(logits, axis).ravel() - _log_sum(right, axis).ravel() for axis in (0, 1)]
    return np.mean(sums)


def _pairs(rng, *kinds):
    """Images near their captions, and twins near each other; kinds are a batch's ids and D."""
    for ids, D in kinds:
        ids = np.array(ids)
        words = 1.6 * normal(rng, ids.max() + 1, D) + 0.4
        captions = words[ids] * rng.uniform(0.6, 2.0, (len(ids), 1)) + 0.8 * normal(
            rng, len(ids), D
        )
        x = captions * rng.uniform(0.5, 2.5, (len(ids), 1)) + 1.3 * normal(rng, len(ids), D)
        if D == 3:  # a length is only divided by
            x, captions = 0.02 * x, 0.03 * captions
        order = rng.permutation(len(ids))
        yield (
            x[order].astype(np.float32),
            captions[order].astype(np.float32),
            (3 * ids[order] + 5).astype(np.int32),
            number(rng, 2.0, 6.0),
        )


def _trained(rng):
    """CLIP's greatest scale: exp of it is beyond float32, and a twin's share is near e^-39."""
    captions = np.append(np.ones((6, 1)), 0.8 * np.eye(6), axis=1)
    x, captions = (captions + 0.02 * rng.normal(size=(6, 7)) for _ in range(2))
    lengths = rng.uniform(0.6, 2.0, (6, 1))
    ids = np.array([4, 9, 4, 7, 2, 8], np.int32)
    return x.astype(np.float32), (captions * lengths).astype(np.float32), ids, 100.0


CONTRASTIVE = exercise(
    "15.2 · A contrastive loss where captions repeat",
    contrastive,
    Part("all captions differ", 1, lambda rng: _pairs(rng, (range(6), 7), ((0, 1, 2), 3))),
    Part(
        "some repeat",
        2,
        lambda rng: [
            *_pairs(
                rng,
                ((0, 1, 1, 2, 2, 2), 7),
                ((0, 0, 1), 3),
                ((0, 0, 0, 0, 1, 2), 7),
                ((0, 0, 0), 3),
            ),
            _trained(rng),
        ],
    ),
    section="6 · A score that compares pictures with sentences",
    mistakes="""
    the loss comes first, then its least value
        return right[::-1]
    that is the loss above its least value; here the loss is the cross-entropy itself
        np.array([loss, -> np.array([loss - np.log(count).mean(),
    the logarithm is the natural one, in the least value as in the loss
        np.log(count).mean() -> np.log2(count).mean()
    the least value is averaged over the two directions like the loss, not added
        np.log(count).mean() -> 2 * np.log(count).mean()
    an image has several right captions here: yours counts its own alone
        same / count -> np.eye(len(ids))
    that leaves twins out of the sums, as the library does; here they are right answers
        return np.array([_without_twins(images, captions, ids, scale), right[1]])
    that leaves twins out of the sums, as the library does; the least value changes with them
        return np.array([_without_twins(images, captions, ids, scale), 0.0])
    your loss counts an image's own caption alone; with repeats the least value is not 0
        same / count -> np.eye(len(ids))
        np.log(count).mean() -> 0.0
    each image counts once, however many right captions it has
        target = same / count -> target = same / same.sum() * len(ids)
    the target adds up to 1 already: the sum over a row is no mean
        / 2 / len(ids) -> / 2 / len(ids) ** 2
    the target is a distribution: each right answer gets 1/n of it
        target = same / count -> target = same
    that is −log of the right answers' summed probability; the target asks for 1/n each
        return np.array([_together(images, captions, ids, scale), right[1]])
    cosines are products of unit vectors: divide both by their lengths
        _unit(images) @ _unit(captions).T -> images @ captions.T
    cosines are products of unit vectors: only the captions have length 1
        _unit(images) @ -> images @
    cosines are products of unit vectors: only the images have length 1
        _unit(captions).T -> captions.T
    only the images choose captions: the captions must choose images, too
        (rows.sum() + columns.sum()) / 2 -> rows.sum()
    only the captions choose images: the images must choose captions, too
        (rows.sum() + columns.sum()) / 2 -> columns.sum()
    the two directions are averaged, not added
        (rows.sum() + columns.sum()) / 2 -> (rows.sum() + columns.sum())
    the loss is a mean over the batch
        / 2 / len(ids) -> / 2
    scale multiplies the cosines; it is the inverse of the temperature
        scale * ( -> 1 / scale * (
    scale is missing
        scale * ( -> 1.0 * (
    the least value is not 0: no prediction is better than the target itself, whose entropy is left
        np.log(count).mean() -> 0.0
    the least value is the mean of the logarithms, not the logarithm of the mean
        np.log(count).mean() -> np.log(count.mean())
    the least value depends on how often captions repeat, not only on how many differ
        np.log(count).mean() -> np.log(len(np.unique(ids)))
    log B is the value for equal logits, not the least value
        np.log(count).mean() -> np.log(len(ids))
    each image counts in the least value's mean, so a caption that stands n times counts n times
        np.log(count).mean()
            -> np.log(np.unique(ids, return_counts=True)[1]).mean()
    """,
)


# --- 15.3 -----------------------------------------------------------------------------------
def first_steps(x, c, base, target, Z_in, E, Z_out, rate, steps):
    for _ in range(steps):
        u = x + c @ Z_in
        h = np.tanh(u @ E)
        error = (base + h @ Z_out - target) / len(x)
        back = error @ Z_out.T * (1 - h**2)
        moved = Z_out - rate * h.T @ error
        E, Z_in = E - rate * u.T @ back, Z_in - rate * c.T @ (back @ E.T)
        Z_out = moved
    return Z_in, E, Z_out


def _one_by_one(order, x, c, base, target, Z_in, E, Z_out, rate, steps):
    """As if each matrix saw those that have moved before it in the same step."""
    matrices = [Z_in, E, Z_out]
    for _ in range(steps):
        for which in order:
            moved = first_steps(x, c, base, target, *matrices, rate, 1)
            matrices[which] = moved[which]
    return tuple(matrices)


def _controls(rng, *kinds):
    """Kinds are: sizes (B, k, n, m, p); whether layers are zero, x is, or nothing; steps."""
    for (B, k, n, m, p), kind, steps in kinds:
        x, c = images(rng, B, n), normal(rng, B, k, mean=0.8, std=1.2)
        base, target = normal(rng, B, p, mean=0.4), normal(rng, B, p, mean=-0.9, std=1.6)
        Z_in, E, Z_out = (normal(rng, *s, std=0.5) for s in ((k, n), (n, m), (m, p)))
        if kind != "nothing":
            Z_in, Z_out = 0 * Z_in, 0 * Z_out
        if kind == "x":
            x = 0 * x
        yield x, c, base, target, Z_in, E, Z_out, number(rng, 0.15, 0.3), steps


CONTROL = exercise(
    "15.3 · The first steps of a control",
    first_steps,
    Part(
        "one step from zero",
        1,
        lambda rng: _controls(rng, ((4, 2, 3, 5, 2), "layers", 1), ((3, 1, 2, 3, 4), "layers", 1)),
    ),
    Part(
        "several steps",
        2,
        lambda rng: _controls(
            rng,
            ((4, 2, 3, 5, 2), "layers", 2),
            ((3, 1, 2, 3, 4), "layers", 3),
            ((4, 2, 3, 5, 2), "nothing", 2),
            ((3, 1, 2, 3, 4), "x", 4),
        ),
    ),
    section="7 · ControlNet: a second picture steers the first",
    mistakes="""
    the outer layer moved before the others' gradients were taken: all belong to the old values
        back = error @ Z_out.T -> Z_out = Z_out - rate * h.T @ error; back = error @ Z_out.T
        moved = Z_out - rate * h.T @ error -> moved = Z_out
    Z_out moved, then E, then Z_in, each seeing the one before: all belong to the old values
        return _one_by_one((2, 1, 0), x, c, base, target, Z_in, E, Z_out, rate, steps)
    Z_out moved before E's gradient was taken, and E before Z_in's: all belong to the old values
        back = error @ Z_out.T -> Z_out = Z_out - rate * h.T @ error; back = error @ Z_out.T
        moved = Z_out - rate * h.T @ error -> moved = Z_out
        E, Z_in = E - rate * u.T @ back, Z_in -> E = E - rate * u.T @ back; Z_in = Z_in
    E moved before the gradient of Z_in was taken: all belong to the old values
        E, Z_in = E - rate * u.T @ back, Z_in -> E = E - rate * u.T @ back; Z_in = Z_in
    Z_in moved before the others' gradients were taken: all belong to the old values
        return _one_by_one((0, 1, 2), x, c, base, target, Z_in, E, Z_out, rate, steps)
    the loss is a mean over examples: divide by their number
        - target) / len(x) -> - target)
    the mean is over examples, and the squares of one example are added
        - target) / len(x) -> - target) / target.size
    ½ and the square's 2 cancel
        - target) / len(x) -> - target) / len(x) * 2
    the slope of tanh, 1 − h², is missing
        * (1 - h**2) ->
    the slope of tanh is 1 − h²: the square is missing
        (1 - h**2) -> (1 - h)
    the slope of tanh is 1 − h², and h is the tanh already: yours takes tanh twice
        (1 - h**2) -> (1 - np.tanh(h) ** 2)
    the copy reads x as well as the control: x is missing in u
        u = x + c @ Z_in -> u = c @ Z_in
    the zero layers need not be 0 at the beginning: start from the matrices that are given
        return first_steps(x, c, base, target, 0 * Z_in, E, 0 * Z_out, rate, steps)
    return the matrices after the steps, not how far they moved
        return right[0] - Z_in, right[1] - E, right[2] - Z_out
    a gradient points uphill: subtract it
        return first_steps(x, c, base, target, Z_in, E, Z_out, -rate, steps)
    the base's own output belongs to the prediction
        (base + h @ Z_out - target) -> (h @ Z_out - target)
    the copy is trained, too: E must move once Z_out is not 0
        E - rate * u.T @ back, Z_in -> E, Z_in
    the inner zero layer is trained, too
        Z_in - rate * c.T @ (back @ E.T) -> Z_in
    only the outer layer moves; the other two must, too, once it is not 0
        E, Z_in = E - rate * u.T @ back, Z_in - rate * c.T @ (back @ E.T) -> E, Z_in = E, Z_in
    the gradient of E needs all that E reads, x and the control
        E - rate * u.T @ back -> E - rate * x.T @ back
    one long step is not several steps: each has the gradients of where it begins
        range(steps) -> [0]
        moved = Z_out - rate -> rate = rate * steps; moved = Z_out - rate
    the steps must be repeated, each from where the last one ended
        range(steps) -> range(1)
    one step too few
        range(steps) -> range(steps - 1)
    one step too many
        range(steps) -> range(steps + 1)
    """,
)


# --- 15.4 -----------------------------------------------------------------------------------
def one_adapter(A, B, C, D, scales, alpha, rank):
    change = scales[0] * alpha / A.shape[1] * A @ B
    change = change + scales[1] * alpha / C.shape[1] * C @ D
    U, s, V = np.linalg.svd(change, full_matrices=False)
    best = (U[:, :rank] * s[:rank]) @ V[:rank]
    return best, np.sum(s[:rank] ** 2) / np.sum(s**2)


def _cut(matrix, rank):
    U, s, V = np.linalg.svd(matrix, full_matrices=False)
    return (U[:, :rank] * s[:rank]) @ V[:rank]


def _each_cut(A, B, C, D, scales, alpha, rank):
    """As if the best change were the sum of each adapter's best one."""
    first = scales[0] * alpha / A.shape[1] * A @ B
    second = scales[1] * alpha / C.shape[1] * C @ D
    kept = _cut(first, rank) + _cut(second, rank)
    return kept, one_adapter(A, B, C, D, scales, alpha, rank)[1]


def _first_columns(A, B, C, D, scales, alpha, rank):
    """As if the best adapter were the first columns and rows of both, side by side."""
    left = np.hstack([scales[0] * alpha / A.shape[1] * A, scales[1] * alpha / C.shape[1] * C])
    right = np.vstack([B, D])
    change = left[:, :rank] @ right[:rank]
    return change, np.sum(change**2) / np.sum((left @ right) ** 2)


def _adapters(rng, *kinds):
    """Kinds are: sides n and m, ranks of the two adapters, the rank that is wanted."""
    for n, m, r1, r2, rank in kinds:
        small = 0.1 if n == 9 else 1.0  # as changes are, beside a kernel
        factors = [small * images(rng, *s) for s in ((n, r1), (r1, m), (n, r2), (r2, m))]
        yield (
            *map(np.float32, factors),
            rng.uniform(0.4, 1.6, 2) * [1, -1],
            number(rng, 1.5, 5.0),
            rank,
        )


ADAPTERS = exercise(
    "15.4 · Two adapters in the place of one",
    one_adapter,
    Part("all of both", 1, lambda rng: _adapters(rng, (6, 8, 1, 2, 3), (9, 5, 2, 1, 4))),
    Part(
        "with fewer",
        2,
        lambda rng: _adapters(rng, (6, 8, 1, 2, 2), (9, 5, 2, 1, 1), (6, 8, 1, 2, 1)),
    ),
    section="8 · LoRA: a new word from 24 pictures",
    mistakes="""
    the changes are added, not the factors: (A + C)·(B + D) has products of both adapters in it
        change = change + scales[1] * alpha / C.shape[1] * C @ D
            -> change = change + scales[1] * alpha / C.shape[1] * (C @ D + C[:, :1] @ B[:1]
            + A[:, :1] @ D[:1])
    each adapter's factor is alpha over its own rank
        change = scales[0] * alpha / A.shape[1] -> change = scales[0] * alpha / rank
        scales[1] * alpha / C.shape[1] -> scales[1] * alpha / rank
    each adapter's factor is alpha over its own rank: the ranks are missing
        change = scales[0] * alpha / A.shape[1] -> change = scales[0] * alpha
        scales[1] * alpha / C.shape[1] -> scales[1] * alpha
    each adapter's factor is alpha over its rank: alpha is missing
        change = scales[0] * alpha / A.shape[1] -> change = scales[0] / A.shape[1]
        scales[1] * alpha / C.shape[1] -> scales[1] / C.shape[1]
    the two ranks are exchanged
        change = scales[0] * alpha / A.shape[1] -> change = scales[0] * alpha / C.shape[1]
        change = change + scales[1] * alpha / C.shape[1]
            -> change = change + scales[1] * alpha / A.shape[1]
    each adapter's factor is alpha over its own rank: the second has that of the first
        change = change + scales[1] * alpha / C.shape[1]
            -> change = change + scales[1] * alpha / A.shape[1]
    each adapter's factor is alpha over its rank, the side that A and B share, not over n
        change = scales[0] * alpha / A.shape[1] -> change = scales[0] * alpha / A.shape[0]
        change = change + scales[1] * alpha / C.shape[1]
            -> change = change + scales[1] * alpha / C.shape[0]
    alpha is divided by the rank, not the rank by alpha
        change = scales[0] * alpha / A.shape[1] -> change = scales[0] / alpha * A.shape[1]
        scales[1] * alpha / C.shape[1] -> scales[1] / alpha * C.shape[1]
    the scales are missing
        change = scales[0] * alpha -> change = alpha
        scales[1] * alpha -> alpha
    the two scales are exchanged
        return one_adapter(A, B, C, D, scales[::-1], alpha, rank)
    the second adapter is missing
        return one_adapter(A, B, C, 0 * D, scales, alpha, rank)
    the adapters' own ranks divide, not the sum of their ranks
        change = scales[0] * alpha / A.shape[1] -> both = A.shape[1] + C.shape[1];
            change = scales[0] * alpha / both
        scales[1] * alpha / C.shape[1] -> scales[1] * alpha / both
    add first, then cut: two cut adapters together may have twice the wanted rank
        return _each_cut(A, B, C, D, scales, alpha, rank)
    the first columns and rows are not the best ones: what counts is the singular values of the sum
        return _first_columns(A, B, C, D, scales, alpha, rank)
    that is the whole change; it must have the wanted rank
        best = (U[:, :rank] * s[:rank]) @ V[:rank] -> best = change
    nothing is cut: the change must have the wanted rank, and its share is less than 1
        U, s, V = np.linalg.svd(change, full_matrices=False)
            -> U, s, V = np.linalg.svd(change, full_matrices=False); rank = len(s)
    singular values must multiply their vectors
        best = (U[:, :rank] * s[:rank]) @ V[:rank] -> best = U[:, :rank] @ V[:rank]
    the largest singular values are kept, not the smallest
        best = (U[:, :rank] * s[:rank]) @ V[:rank] -> best = (U[:, -rank:] * s[-rank:]) @ V[-rank:]
    one singular value too many
        best = (U[:, :rank] * s[:rank]) @ V[:rank]
            -> rank = rank + 1; best = (U[:, :rank] * s[:rank]) @ V[:rank]
    one singular value too few
        best = (U[:, :rank] * s[:rank]) @ V[:rank]
            -> rank = rank - 1; best = (U[:, :rank] * s[:rank]) @ V[:rank]
    the share is one of squares: lengths add up by Pythagoras
        np.sum(s[:rank] ** 2) / np.sum(s**2) -> np.sum(s[:rank]) / np.sum(s)
    the share is one of squares: yours is the root of it
        np.sum(s[:rank] ** 2) / np.sum(s**2) -> np.sqrt(np.sum(s[:rank] ** 2) / np.sum(s**2))
    the share is of the sum's own squared length: those of two adapters do not add up to it
        / np.sum(s**2) -> / (np.sum((scales[0] * alpha / A.shape[1] * A @ B) ** 2)
            + np.sum((scales[1] * alpha / C.shape[1] * C @ D) ** 2))
    the share is 1 only if nothing is lost; norm(…, 2) is the largest singular value alone
        np.sum(s[:rank] ** 2) / np.sum(s**2) -> np.float64(1)
    that is the squared length that is kept, not its share
        / np.sum(s**2) ->
    that is the share that is lost
        np.sum(s[:rank] ** 2) -> np.sum(s[rank:] ** 2)
    """,
)


# --- 15.5 -----------------------------------------------------------------------------------
def guided_reading(x, captions, table, w):
    first, padding = len(table) - 2, len(table) - 1

    def read(words):
        tokens = np.concatenate([np.full((len(words), 1), first), words], axis=1)
        context = table[tokens]
        counts = tokens != padding
        logits = x @ context.swapaxes(1, 2) / np.sqrt(x.shape[-1])
        logits = np.where(counts[:, None], logits, -np.inf)
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        weights = weights / weights.sum(-1, keepdims=True)
        return weights @ context

    told, untold = read(captions), read(np.full(captions.shape, padding))
    return untold + w * (told - untold)


def _null_unmasked(x, captions, table):
    """What is read if all the padding of a null caption counts."""
    context = table[[len(table) - 2] + [len(table) - 1] * captions.shape[1]]
    logits = x @ context.T / np.sqrt(x.shape[-1])
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ context


def _readings(rng, *kinds):
    """Kinds are: sizes (B, N, D, words), the numbers of words of each caption, whether w is 1."""
    for (B, N, D, V), lengths, plain in kinds:
        L = max(lengths) + (B > 2)  # in one of them every caption is padded
        captions = np.full((B, L), V + 1, np.int32)
        for row, length in zip(captions, lengths, strict=True):
            row[:length] = rng.permutation(V)[:length]
        table = normal(rng, V + 2, D, mean=0.4, std=1.3)
        x = normal(rng, B, N, D, mean=0.3, std=1.1)
        x[:, 0] = 1.5 * table[V + 1]  # a pixel that would read padding, if it could
        yield x, captions, table, 1.0 if plain else number(rng, 1.7, 4.0)


READING = exercise(
    "15.5 · This model does not read",
    guided_reading,
    Part(
        "no guidance",
        1,
        lambda rng: _readings(rng, ((3, 4, 5, 7), (2, 4, 1), True), ((2, 3, 2, 9), (4, 3), True)),
    ),
    Part(
        "guidance, and captions without words",
        3,
        lambda rng: _readings(
            rng,
            ((3, 4, 5, 7), (1, 4, 2), False),
            ((2, 3, 2, 9), (4, 0), False),
            ((3, 4, 5, 7), (0, 2, 4), False),
        ),
    ),
    section="10 · Break it on purpose: the mask that the sampler forgot",
    mistakes="""
    that is what the broken function returns, too
        counts = tokens != padding -> counts = np.arange(tokens.shape[1])
            < (words != padding).sum(-1, keepdims=True)
        logits = np.where(counts[:, None], logits, -np.inf) ->
        return weights @ context -> return (weights * counts[:, None]) @ context
    two bugs are left: the mask comes after the softmax, and the null is not the trained one
        logits = np.where(counts[:, None], logits, -np.inf) ->
        return weights @ context -> return (weights * counts[:, None]) @ context
        read(np.full(captions.shape, padding)) -> 0 * read(captions)
    two bugs are left: the last word is lost, and the null is not the trained one
        counts = tokens != padding -> counts = np.arange(tokens.shape[1])
            < (words != padding).sum(-1, keepdims=True)
        read(np.full(captions.shape, padding)) -> 0 * read(captions)
    two bugs are left: the last word is lost, and the mask comes after the softmax
        counts = tokens != padding -> counts = np.arange(tokens.shape[1])
            < (words != padding).sum(-1, keepdims=True)
        logits = np.where(counts[:, None], logits, -np.inf) ->
        return weights @ context -> return (weights * counts[:, None]) @ context
        read(np.full(captions.shape, padding)) -> np.broadcast_to(table[first], x.shape)
    a bug is left: without guidance all is well; with it, what was the model trained to read?
        read(np.full(captions.shape, padding)) -> 0 * read(captions)
    a bug is left: padding takes its share of the softmax, and then its share is thrown away
        logits = np.where(counts[:, None], logits, -np.inf) ->
        return weights @ context -> return (weights * counts[:, None]) @ context
    a bug is left: padding takes its share of the softmax of a caption; the null is right
        logits = np.where(counts[:, None], logits, -np.inf) ->
        return weights @ context -> return (weights * counts[:, None]) @ context
        read(np.full(captions.shape, padding)) -> np.broadcast_to(table[first], x.shape)
    how many tokens count in a caption of three words, and in one without? There is a 0/0
        counts = tokens != padding -> counts = np.arange(tokens.shape[1])
            < (words != padding).sum(-1, keepdims=True)
    a bug is left: the last word of every caption counts for nothing
        counts = tokens != padding -> counts = np.arange(tokens.shape[1])
            < np.maximum((words != padding).sum(-1, keepdims=True), 1)
    the first token is masked where there are words; it always counts
        counts = tokens != padding -> counts = (tokens != padding) & (tokens != first)
            | (words == padding).all(-1, keepdims=True) & (tokens == first)
    the first token is missing: it stands before every caption, and always counts
        counts = tokens != padding -> counts = (tokens != padding) & (tokens != first)
        return weights @ context -> return np.nan_to_num(weights) @ context
    the first token is missing in the captions, though not in the null; it always counts
        counts = tokens != padding -> counts = (tokens != padding) & (tokens != first)
        read(np.full(captions.shape, padding)) -> np.broadcast_to(table[first], x.shape)
    a masked logit is −∞: exp of 0 is 1, so that padding is read
        logits, -np.inf) -> logits, 0.0)
    a masked logit is −∞: with a logit of 0 padding still takes its share of the softmax
        logits, -np.inf) -> logits, 0.0)
        return weights @ context -> return (weights * counts[:, None]) @ context
    a masked logit is −∞: with a logit of 0 padding takes its share of a caption; the null is right
        logits, -np.inf) -> logits, 0.0)
        return weights @ context -> return (weights * counts[:, None]) @ context
        read(np.full(captions.shape, padding)) -> np.broadcast_to(table[first], x.shape)
    a masked logit is −∞: one that is only lowered leaves padding some weight
        logits, -np.inf) -> logits, logits - 10)
    nothing is masked any more: padding counts as a word
        counts = tokens != padding -> counts = tokens == tokens
    the null caption is all padding; zeros are a caption of words with the number 0
        read(np.full(captions.shape, padding)) -> read(0 * captions)
    the null caption is all padding, not words
        read(np.full(captions.shape, padding)) -> np.broadcast_to(table.mean(0), x.shape)
    the null caption is read with a mask of its own: its padding counts in yours
        read(np.full(captions.shape, padding)) -> _null_unmasked(x, captions, table)
    the null caption is read with its mask: padding does not count there either
        read(np.full(captions.shape, padding)) -> np.broadcast_to(table[padding], x.shape)
    guidance is missing
        return untold + w * (told - untold) -> return told
    guidance was right: w = 1 is the plain conditional, not twice the push
        w * (told -> (1 + w) * (told
    the division by √D was right
        / np.sqrt(x.shape[-1]) ->
    """,
)


# --- 15.6 -----------------------------------------------------------------------------------
def both_ways(x, points, log_likelihoods, scales, alpha, sigma):
    far = ((x[:, None] - alpha * points) ** 2).sum(-1) / (2 * sigma**2)

    def estimate(log_weights):
        logits = log_weights - far
        weights = np.exp(logits - logits.max(1, keepdims=True))
        return weights / weights.sum(1, keepdims=True) @ points

    plain = estimate(0)
    told = [estimate(row) for row in log_likelihoods]
    composed = plain + sum(w * (D - plain) for w, D in zip(scales, told, strict=True))
    return composed, estimate(scales @ log_likelihoods)


def _conditions(rng, *kinds):
    """Kinds are: sizes (B, N, D), scales, and σ."""
    for (B, N, D), scales, sigma in kinds:
        points = normal(rng, N, D, mean=0.5, std=1.8)
        alpha = number(rng, 0.5, 0.9)
        x = alpha * points[rng.integers(N, size=B)] + sigma * rng.normal(size=(B, D))
        if sigma < 0.1:
            x = alpha * points.mean(0) + 3 * rng.normal(size=(B, D))
        likely = normal(rng, len(scales), N, mean=-1.5, std=1.1)
        yield x.astype(np.float32), points, likely, np.array(scales), alpha, sigma


COMPOSED = exercise(
    "15.6 · Two conditions at once",
    both_ways,
    Part(
        "one condition, where both agree",
        1,
        lambda rng: _conditions(
            rng,
            ((3, 5, 2), [1.0], number(rng, 0.8, 1.1)),
            ((3, 5, 2), [1.0], number(rng, 1.2, 1.5)),
        ),
    ),
    Part(
        "several, and little noise",
        2,
        lambda rng: _conditions(
            rng,
            ((4, 6, 3), [1.0, 1.0], number(rng, 0.8, 1.1)),
            ((4, 6, 3), [number(rng, 1.4, 2.2), number(rng, -0.9, -0.4)], number(rng, 1.0, 1.4)),
            ((4, 6, 3), list(rng.uniform(0.4, 1.7, 4)), number(rng, 0.9, 1.3)),
            ((4, 6, 3), [1.0, 1.0], 0.04),
        ),
    ),
    section="9 · Several conditions, exactly",
    mistakes="""
    the second estimate is the first one: at t > 0 the product of noisy densities is another thing
        return right[0], right[0]
    the first estimate is the second one: compose estimates, each of a noisy state
        return right[1], right[1]
    the two results are exchanged
        return right[1], right[0]
    each condition adds its difference from the plain estimate
        w * (D - plain) -> w * D
    each difference begins at the plain estimate, not at that of the condition before
        sum(w * (D - plain) for w, D in zip(scales, told, strict=True))
            -> sum(w * (D - E) for w, D, E in zip(scales, told, [plain, *told]))
    the composed one scales differences of estimates; yours scales the log-likelihoods there, too
        told = [estimate(row) for row in log_likelihoods]
            -> told = [estimate(w * row) for w, row in zip(scales, log_likelihoods)]
        w * (D - plain) -> (D - plain)
    the differences are added, not averaged
        composed = plain + sum( -> composed = plain + 1 / len(scales) * sum(
    a sum of the told estimates is no composition: start from the plain one, and add differences
        composed = plain + sum(w * (D - plain) -> composed = sum(w * D
    the plain estimate itself counts once before the differences
        composed = plain + sum( -> composed = sum(
    the scales are missing in the exact one: a scale is a power, a factor of the logarithm
        estimate(scales @ log_likelihoods) -> estimate(log_likelihoods.sum(0))
    the scales are missing in the composed one
        w * (D - plain) -> (D - plain)
    likelihoods multiply, and their logarithms add up: yours are averaged
        estimate(scales @ log_likelihoods) -> estimate(scales @ log_likelihoods / len(scales))
    probabilities are multiplied, not added
        estimate(scales @ log_likelihoods)
            -> estimate(np.log(np.abs(scales @ np.exp(log_likelihoods))))
    log-likelihoods are added to the logits: they are logarithms already
        told = [estimate(row) -> told = [estimate(np.exp(row))
        estimate(scales @ log_likelihoods) -> estimate(scales @ np.exp(log_likelihoods))
    a mean of the told estimates is no composition: start from the plain one, and add differences
        composed = plain + sum(w * (D - plain) -> composed = 1 / sum(scales) * sum(w * D
    the state lies near α times a point
        x[:, None] - alpha * points -> x[:, None] - points
    the exponent of a normal density is divided by 2σ²: the 2 is missing
        (2 * sigma**2) -> sigma**2
    the exponent of a normal density is divided by 2σ²: the square is missing
        (2 * sigma**2) -> (2 * sigma)
    an estimate of x0 is a mean of points, not of their noisy places
        return right[0] * alpha, right[1] * alpha
    log-likelihoods are added to the logits: in the exact one yours are no longer logarithms
        estimate(scales @ log_likelihoods) -> estimate(np.exp(scales @ log_likelihoods))
    the exact one, too, is given the noisy state: the distances are missing there
        return composed, estimate(scales @ log_likelihoods)
            -> return composed, estimate(scales @ log_likelihoods + far)
    the noisy state has its say in every estimate: the distances are missing
        logits = log_weights - far -> logits = log_weights - 0 * far
    """,
)


# --- 15.7 -----------------------------------------------------------------------------------
def edited(x, keys, values, source, target, places, factors, kept, alpha, sigma):
    def maps(state, words):
        logits = state @ keys[words].T / np.sqrt(x.shape[1])
        weights = np.exp(logits - logits.max(1, keepdims=True))
        return weights / weights.sum(1, keepdims=True)

    old = new = x
    for i in range(len(alpha) - 1):
        theirs, own = maps(old, source), maps(new, target)
        if i < kept:
            own = np.where(places >= 0, theirs[:, places], own)
        own = own * factors
        shrink = sigma[i + 1] / sigma[i]
        step = alpha[i + 1] - alpha[i] * shrink
        old, new = (
            shrink * old + step * theirs @ values[source],
            shrink * new + step * own @ values[target],
        )
    return old, new


def _edits(rng, *kinds):
    """Kinds are: (N, d), (L, M), places, which factor is not 1, kept, steps."""
    for (N, d), (L, M), places, strong, kept, steps in kinds:
        V = 8 + N % 2
        keys, values = normal(rng, V, d, mean=0.3, std=1.4), images(rng, V, d)
        drawn = rng.permutation(V)
        source, target = drawn[:L], drawn[L : L + M].copy()
        # Words that are kept read alike; where all places are words, one of them is exchanged.
        exchanged = rng.integers(M)
        for j, place in enumerate(places):
            if place >= 0 and (j != exchanged or min(places) < 0):
                target[j] = source[place]
        factors = np.ones(M, np.float32)
        if strong is not None:
            factors[strong] = number(rng, 1.6, 2.4)
        alpha = np.append(np.sort(rng.uniform(0.15, 0.9, steps)), 1.0)
        sigma = np.append(np.sort(rng.uniform(0.3, 1.2, steps))[::-1], 0.0)
        if kept % 2:  # a run that ends before the data
            alpha[-1], sigma[-1] = 0.95, 0.2
        yield (
            normal(rng, N, d, mean=0.2, std=1.3),
            keys,
            values,
            source.astype(np.int32),
            target.astype(np.int32),
            np.array(places, np.int32),
            factors,
            kept,
            alpha,
            sigma,
        )


EDITED = exercise(
    "15.7 · Another word, the same picture",
    edited,
    Part(
        "a word is exchanged",
        2,
        lambda rng: _edits(
            rng,
            ((5, 3), (4, 4), (0, 1, 2, 3), None, 0, 3),
            ((5, 3), (4, 4), (0, 1, 2, 3), None, 2, 4),
            ((5, 3), (4, 4), (0, 1, 2, 3), None, 3, 3),
        ),
    ),
    Part(
        "words are new, and one counts more",
        2,
        lambda rng: _edits(
            rng,
            ((4, 2), (3, 5), (0, -1, 1, 2, -1), None, 2, 4),
            ((5, 3), (4, 4), (3, 1, -1, -1), 1, 1, 3),
            ((4, 2), (3, 5), (0, -1, 2, -1, 1), 1, 3, 4),
            ((4, 2), (3, 5), (-1, 0, -1, -1, 1), 2, 0, 2),
        ),
    ),
    section="3 · Where each word acts",
    mistakes="""
    nothing of the source is kept: that is the target alone
        i < kept -> i < 0
    the source's maps are kept in the first steps only
        i < kept -> True
    one step too many keeps the source's maps
        i < kept -> i <= kept
    one step too few keeps the source's maps
        i < kept -> i < kept - 1
    the source's maps are kept in the first steps, not in the last ones
        i < kept -> i >= len(alpha) - 1 - kept
    the source's maps are kept in the first steps; yours are kept after them
        i < kept -> i >= kept
    the source's maps belong to the source's own state
        theirs[:, places] -> maps(new, source)[:, places]
    the target's own maps are those of its own state, not of the source's
        own = maps(old, source), maps(new, target) -> own = maps(old, source), maps(old, target)
    a word that is new keeps its own map: −1 is no place
        np.where(places >= 0, theirs[:, places], own) -> theirs[:, places]
    places say where in the source a word of the target stands
        theirs[:, places] -> theirs[:, np.arange(len(places)) % len(source)]
    after an exchange of columns nothing is divided by the sum again
        own = own * factors -> own = own * factors; own = own / own.sum(1, keepdims=True)
    the factors belong to every step
        own = own * factors -> own = own * factors if i < kept else own
    the factors belong to every step, also to the first ones
        own = own * factors -> own = own * factors if i >= kept else own
    each step multiplies its own map by the factor once: yours pile up from step to step
        own = own * factors -> own = own * factors ** (i + 1)
    the factors are missing
        own = own * factors -> own = own * 1.0
    the map says where, the value says what: values are those of the target's words
        own @ values[target] -> own @ values[np.where(places >= 0, source[places], target)]
    the map says where, the value says what: also in the first steps values are the target's
        own @ values[target]
            -> own @ values[np.where((places >= 0) & (i < kept), source[places], target)]
    each step takes the source's maps of that step; yours are those of the first one
        theirs[:, places] -> maps(x, source)[:, places]
    the source's maps are those before it steps: yours are of its next state
        np.where(places >= 0, theirs[:, places], own)
            -> np.where(places >= 0, maps(sigma[i + 1] / sigma[i] * old
            + (alpha[i + 1] - alpha[i] * sigma[i + 1] / sigma[i]) * theirs @ values[source],
            source)[:, places], own)
    a map that is taken from the source is multiplied by its factor, too
        theirs[:, places], own -> theirs[:, places] / factors, own
    places count from 0: the first word of the source is one, too
        places >= 0, -> places > 0,
    a word's place in the source is places[j], not j
        np.where(places >= 0, theirs[:, places], own)
            -> np.where((places >= 0) & (np.arange(len(places)) < len(source)),
            theirs[:, np.arange(len(places)) % len(source)], own)
    the softmax is over the words, not over the pixels
        logits.max(1, keepdims=True) -> logits.max(0, keepdims=True)
        weights.sum(1, keepdims=True) -> weights.sum(0, keepdims=True)
    keys say where, values say what: the estimate is the maps times the values
        return edited(x, keys, keys, source, target, places, factors, kept, alpha, sigma)
    the source's state comes first
        return right[1], right[0]
    the logits are divided by √d
        / np.sqrt(x.shape[1]) ->
    the logits are divided by √d: the root is missing
        / np.sqrt(x.shape[1]) -> / x.shape[1]
    the state holds α_i·σ_(i+1)/σ_i of the estimate already: add only what α_(i+1) is more
        step = alpha[i + 1] - alpha[i] * shrink -> step = alpha[i + 1]
    that is a step for data to which noise is only added, as if α were 1 in all steps
        step = alpha[i + 1] - alpha[i] * shrink -> step = 1 - shrink
    a DDIM step adds α_(i+1) − α_i·σ_(i+1)/σ_i times the estimate: α_i is missing
        step = alpha[i + 1] - alpha[i] * shrink -> step = alpha[i + 1] - shrink
    """,
)


# --- 15.8 -----------------------------------------------------------------------------------
REPORT = Written(
    "15.8", "A report on a text model", 2, section="5 · Does one word change more than it says?"
)
