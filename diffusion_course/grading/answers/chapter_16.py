"""Exercises of chapter 16, Diffusion transformers."""

import numpy as np

from diffusion_course.grading.answers.drawing import images, normal, number
from diffusion_course.grading.answers.writing import exercise
from diffusion_course.grading.exercise import Part, Written


# --- 16.1 -----------------------------------------------------------------------------------
def image_of(tokens, H, W, p, q):
    grid = tokens.reshape(len(tokens), H // p, W // q, p, q, -1)
    return grid.transpose(0, 1, 3, 2, 4, 5).reshape(len(tokens), H, W, -1)


def _tokens(rng, *sizes):
    for B, rows, cols, p, q, C in sizes:
        yield images(rng, B, rows * cols, p * q * C), rows * p, cols * q, p, q


IMAGE_OF = exercise(
    "16.1 · From tokens to pixels",
    image_of,
    Part("square patches", 1, lambda rng: _tokens(rng, (2, 3, 4, 2, 2, 1), (3, 2, 4, 3, 3, 2))),
    Part(
        "patches of any shape",
        1,
        lambda rng: _tokens(rng, (2, 4, 3, 2, 3, 1), (1, 3, 4, 3, 2, 3), (3, 4, 2, 1, 5, 2)),
    ),
    section="2 · An image as a list of patches",
    mistakes="""
    a reshape alone puts the pixels of one patch into one row: exchange two axes in between
        .transpose(0, 1, 3, 2, 4, 5) ->
    the tokens run along the rows of patches: yours run down the columns
        H // p, W // q, p -> W // q, H // p, p
        (0, 1, 3, 2, 4, 5) -> (0, 2, 3, 1, 4, 5)
    inside a token the pixels run along the rows of the patch: yours run down its columns
        p, q, -1) -> q, p, -1)
        (0, 1, 3, 2, 4, 5) -> (0, 1, 4, 2, 3, 5)
    the channels of a pixel stand together in a token: yours stand in front of the pixels
        p, q, -1) -> -1, p, q)
        (0, 1, 3, 2, 4, 5) -> (0, 1, 4, 2, 5, 3)
    height and width of a patch are exchanged
        grid = -> p, q = q, p; H, W = H // q * p, W // p * q; grid =
    height and width of the image are exchanged
        return grid -> return grid.swapaxes(1, 2).swapaxes(3, 4)
        reshape(len(tokens), H, W, -1) -> reshape(len(tokens), W, H, -1)
    """,
)


# --- 16.2 -----------------------------------------------------------------------------------
def rotary_scores(q, k, moves, base):
    half = len(q) // 2
    frequencies = base ** (-np.arange(half // 2) / (half // 2))
    down, right = moves[:, :1] * frequencies, moves[:, 1:] * frequencies
    angles = np.concatenate([down, right], axis=1)
    along = q[:half] * k[:half] + q[half:] * k[half:]
    across = q[half:] * k[:half] - q[:half] * k[half:]
    return (np.cos(angles) @ along + np.sin(angles) @ across) / np.sqrt(len(q))


def _moves(rng, *cases):
    for d, moves in cases:
        yield images(rng, d), images(rng, d), np.array(moves), number(rng, 20.0, 60.0)


ROTARY = exercise(
    "16.2 · Rotary scores without rotations",
    rotary_scores,
    Part(
        "one angle for each axis",
        1,
        lambda rng: _moves(rng, (4, [[1, 0], [0, 2], [0, 0]]), (4, [[2, -3], [-1, 2], [0, 3]])),
    ),
    Part(
        "any number of channels",
        2,
        lambda rng: _moves(rng, (12, [[0, 3], [5, 1]]), (12, [[3, -7], [-6, -1]])),
    ),
    rtol=5e-5,
    atol=1e-5,
    section="5 · Where does a patch lie?",
    mistakes="""
    the sine has the other sign: the move leads from the query to the key
        q[half:] * k[:half] - q[:half] * k[half:] -> q[:half] * k[half:] - q[half:] * k[:half]
    the first half of the angles belongs to the rows, the second to the columns
        [down, right] -> [right, down]
    the channels that are turned together are number i and number d/2 + i: yours are neighbours
        half = len(q) // 2 ->
            half = len(q) // 2; q, k = (np.append(v[::2], v[1::2]) for v in (q, k))
    the product is divided by the root of d
        / np.sqrt(len(q)) ->
    d is the number of channels, not of pairs
        np.sqrt(len(q)) -> np.sqrt(half)
    each axis has d/4 angles, so d/4 divides the exponent
        np.arange(half // 2) / (half // 2) -> np.arange(half // 2) / half
    the frequencies fall from 1: the exponent is negative
        (-np.arange(half // 2) / (half // 2)) -> (np.arange(half // 2) / (half // 2))
    a turned pair has two terms: the one with the sine is missing
        + np.sin(angles) @ across ->
    in the cosine's term both products have a plus: a turn by 0 changes nothing
        k[:half] + q[half:] * k[half:] -> k[:half] - q[half:] * k[half:]
    this sum runs over the angles of both axes at once: each pair has the angle of one axis
        np.concatenate([down, right], axis=1) -> np.tile(down + right, 2)
    first come the angles of the rows, then those of the columns: yours alternate
        np.concatenate([down, right], axis=1) ->
            np.stack([down, right], axis=-1).reshape(len(moves), -1)
    base is an argument: another one than 10,000 is asked for
        half = len(q) // 2 -> half, base = len(q) // 2, 10000
    only the difference of the two places counts: turn one of the two, not both
        return (np.cos(angles) @ along + np.sin(angles) @ across) / np.sqrt(len(q)) ->
            return np.repeat(q @ k, len(moves)) / np.sqrt(len(q))
    """,
)


# --- 16.3 -----------------------------------------------------------------------------------
def gate_gradient(emb, branch, cotangent):
    heard = emb / (1 + np.exp(-emb))
    felt = (branch * cotangent).sum(axis=1)
    return np.concatenate([heard.T @ felt, felt.sum(axis=0)[None]])


def _branches(rng, *sizes):
    for B, N, E, C in sizes:
        yield images(rng, B, E), images(rng, B, N, C), normal(rng, B, N, C, mean=-0.4, std=0.8)


GATE = exercise(
    "16.3 · The first step of a gate",
    gate_gradient,
    Part("one image", 1, lambda rng: _branches(rng, (1, 4, 3, 5), (1, 4, 3, 5))),
    Part("a batch", 2, lambda rng: _branches(rng, (3, 5, 2, 4), (3, 5, 2, 4))),
    section="4 · Why the gates start at zero",
    mistakes="""
    the gate reads SiLU of the embedding, not the embedding
        emb / (1 + np.exp(-emb)) -> emb
    SiLU is the embedding times its sigmoid: that is the sigmoid alone
        emb / (1 + np.exp(-emb)) -> 1 / (1 + np.exp(-emb))
    a gate acts on all tokens: their contributions add up, and yours are averaged
        (branch * cotangent).sum(axis=1) -> (branch * cotangent).mean(axis=1)
    the loss adds up over the batch: nothing is divided by the number of images
        return right / len(emb)
    what a gate multiplies is the branch: the cotangent alone would be the gradient of a shift
        (branch * cotangent).sum(axis=1) -> cotangent.sum(axis=1)
    the cotangent is missing
        (branch * cotangent).sum(axis=1) -> branch.sum(axis=1)
    branch and cotangent are multiplied token by token, and only then added up
        (branch * cotangent).sum(axis=1) -> branch.sum(axis=1) * cotangent.sum(axis=1)
    each image's embedding belongs to its own branch: you add up the batch before you multiply
        heard.T @ felt -> np.outer(heard.sum(axis=0), felt.sum(axis=0))
    the bias reads no embedding: its gradient is the plain sum over batch and tokens
        felt.sum(axis=0)[None] -> (heard.sum(axis=1) @ felt)[None]
    the bias comes last
        [heard.T @ felt, felt.sum(axis=0)[None]] -> [felt.sum(axis=0)[None], heard.T @ felt]
    a step goes against the gradient; asked for is the gradient itself
        return -right
    the kernel multiplies SiLU itself: its derivative belongs to the gradient by the embedding
        emb / (1 + np.exp(-emb)) ->
            (1 + emb / (1 + np.exp(emb))) / (1 + np.exp(-emb))
    """,
)


# --- 16.4 -----------------------------------------------------------------------------------
def merge(o_x, s_x, o_c, s_c):
    top = np.maximum(s_x, s_c)
    w_x, w_c = np.exp(s_x - top)[..., None], np.exp(s_c - top)[..., None]
    return (w_x * o_x + w_c * o_c) / (w_x + w_c)


def _attended(rng, *cases):
    for shape, middle, kind in cases:
        sums = [normal(rng, *shape[:-1], mean=middle) for _ in range(2)]
        if kind == "empty":  # the context of the last example is nothing but padding
            sums[1][-1] = -np.inf
        if kind == "far":  # the queries lie far apart, and so do the two sums, in both directions
            place = np.arange(shape[-2], dtype=np.float32)
            sums = [s + 300 * place for s in sums]
            sums[1] = sums[1] + 120 * (-1) ** place
        o_x, o_c = images(rng, *shape), images(rng, *shape)
        if kind == "empty":  # with a weight that is small and not 0 it would be seen
            o_c[-1] *= 1e12
        yield o_x, sums[0], o_c, sums[1]


MERGE = exercise(
    "16.4 · Two attentions are one",
    merge,
    Part(
        "ordinary logits",
        1,
        lambda rng: _attended(rng, ((2, 3, 4), 0.7, ""), ((3, 2, 5), -0.9, "")),
    ),
    Part(
        "large logits, and no context",
        2,
        lambda rng: _attended(
            rng,
            ((2, 3, 4), 400.0, ""),
            ((2, 3, 4), -300.0, "far"),
            ((3, 2, 5), 0.5, "empty"),
        ),
    ),
    section="11 · Two streams: MMDiT",
    mistakes="""
    the results are weighted by their sums of exponentials, not half and half
        np.exp(s_x - top)[..., None], np.exp(s_c - top)[..., None] ->
            np.ones(s_x.shape)[..., None], np.ones(s_x.shape)[..., None]
    the two weights are exchanged
        return merge(o_x, s_c, o_c, s_x)
    the s are logarithms: the weights are their exponentials
        np.exp(s_x - top)[..., None], np.exp(s_c - top)[..., None] -> s_x[..., None], s_c[..., None]
    the weights must add up to 1: divide by their sum
        / (w_x + w_c) ->
    the exponential of a large number is infinite: subtract the same number from both first
        top = np.maximum(s_x, s_c) -> top = np.float32(0)
        w_x, w_c = -> s_x, s_c = np.float32(s_x), np.float32(s_c); w_x, w_c =
    each s has lost a maximum of its own: subtract the same number from both
        np.exp(s_c - top) -> np.exp(s_c - s_c.max())
        np.exp(s_x - top) -> np.exp(s_x - s_x.max())
        w_x, w_c = -> s_x, s_c = np.float32(s_x), np.float32(s_c); w_x, w_c =
    the larger one does not take all
        np.exp(s_x - top)[..., None], np.exp(s_c - top)[..., None] ->
            1.0 * (s_x >= s_c)[..., None], 1.0 * (s_x < s_c)[..., None]
    the two s may lie far apart: the exponential of their difference may be infinite too
        np.exp(s_x - top)[..., None], np.exp(s_c - top)[..., None] ->
            np.ones(s_x.shape)[..., None], np.exp(np.float32(s_c) - np.float32(s_x))[..., None]
    subtract a maximum for each query: one for all lets the others underflow to 0/0
        top = np.maximum(s_x, s_c) -> top = np.float32(max(s_x.max(), s_c.max()))
        w_x, w_c = -> s_x, s_c = np.float32(s_x), np.float32(s_c); w_x, w_c =
    no context has the weight e^(−∞) = 0: with s = 0 it would have the weight 1
        top = np.maximum(s_x, s_c) ->
            s_c = np.where(np.isinf(s_c), 0, s_c); top = np.maximum(s_x, s_c)
    """,
)


# --- 16.5 -----------------------------------------------------------------------------------
def joint_attention(image, context, counts, heads):
    (B, N), (L, C) = image.shape[1:3], context.shape[2:]
    both = np.concatenate([image, context], axis=2)
    q, k, v = both.reshape(3, B, N + L, heads, C // heads).transpose(0, 1, 3, 2, 4)
    logits = q @ k.swapaxes(-1, -2) / np.sqrt(C // heads)
    mask = np.concatenate([np.ones((B, N)), counts], axis=1)[:, None, None] > 0
    weights = np.where(mask, np.exp(logits), 0)
    weights = weights / weights.sum(axis=-1, keepdims=True)
    return (weights @ v).transpose(0, 2, 1, 3).reshape(B, N + L, C)


def _streams(rng, *sizes, apart=0.0, padding=1.0):
    for B, N, L, heads, d, padded in sizes:
        length = rng.permutation(np.linspace(1, L - 1, B).round().astype(int)) if padded else L
        counts = np.broadcast_to(np.arange(L) < np.reshape(length, (-1, 1)), (B, L)).copy()
        image, context = (normal(rng, 3, B, n, heads * d, mean=0.3, std=0.9) for n in (N, L))
        for stream in (image, context):  # all logits far below 0: no finite number stands for −∞
            stream[0] += apart
            stream[1] -= apart
        context[1][~counts] *= padding
        yield image, context, counts, heads


JOINT = exercise(
    "16.5 · This joint attention is broken",
    joint_attention,
    Part("several heads", 1, lambda rng: _streams(rng, (2, 6, 5, 4, 2, 0), (2, 6, 5, 4, 2, 0))),
    Part("padding", 1, lambda rng: _streams(rng, (3, 4, 3, 1, 5, 1), apart=4.0)),
    Part(
        "both",
        2,
        lambda rng: [
            *_streams(rng, (2, 6, 5, 4, 2, 1)),
            *_streams(rng, (2, 6, 5, 4, 2, 1), padding=100.0),
        ],
    ),
    section="11 · Two streams: MMDiT",
    mistakes="""
    both bugs are still there
        reshape(3, B, N + L, heads, C // heads).transpose(0, 1, 3, 2, 4) ->
            reshape(3, B, heads, N + L, C // heads)
        np.where(mask, np.exp(logits), 0) -> np.exp(logits * mask)
    a bug is left: this reshape gives a head the channels of other tokens
        reshape(3, B, N + L, heads, C // heads).transpose(0, 1, 3, 2, 4) ->
            reshape(3, B, heads, N + L, C // heads)
    a bug is left: padding with the logit 0 has the weight e^0 = 1, not 0
        np.where(mask, np.exp(logits), 0) -> np.exp(logits * mask)
    the weights of what is left must add up to 1: mask before the softmax, not behind it
        weights.sum(axis=-1, keepdims=True) -> np.exp(logits).sum(axis=-1, keepdims=True)
    padding may have large logits: mask the logits before the softmax, not the weights behind it
        np.exp(logits) -> np.exp(np.float32(logits - logits.max(axis=-1, keepdims=True)))
    the padding still counts
        np.where(mask, np.exp(logits), 0) -> np.exp(logits)
    the mask is upside down: True means that a token counts
        np.where(mask, np.exp(logits), 0) ->
            np.where(np.concatenate([np.ones((B, N)), 1 - counts], axis=1)[:, None, None] > 0,
            np.exp(logits), 0)
    padding is left out as a key; as a query it may stay, and its result is asked for as it is
        return (weights @ v).transpose(0, 2, 1, 3).reshape(B, N + L, C) ->
            return mask[:, 0, 0, :, None] * (weights @ v).transpose(0, 2, 1, 3).reshape(B, N + L, C)
    the result has the bug that the queries had: the heads go side by side for each token
        (weights @ v).transpose(0, 2, 1, 3) -> (weights @ v)
    the scale was right: the root of the channels of a head
        / np.sqrt(C // heads) -> / np.sqrt(C)
    the scale was right, and is missing now
        / np.sqrt(C // heads) ->
    each stream attends to itself alone: joint attention has one softmax over all tokens
        return np.concatenate([joint_attention(s, s[:, :, :0], counts[:, :0], heads)
            for s in (image, context)], axis=1)
    the weights of one query add up to 1 over the keys: yours do so over the queries
        weights = weights / weights.sum(axis=-1, keepdims=True) ->
            weights = np.exp(np.where(mask, logits, 0));
            weights = weights / weights.sum(axis=-2, keepdims=True)
    what is added to the logits is 0 for a token that counts, and −∞ for padding
        np.where(mask, np.exp(logits), 0) -> np.exp(logits + mask)
    the channels of one head stand together: you gave a head every heads-th channel
        reshape(3, B, N + L, heads, C // heads).transpose(0, 1, 3, 2, 4) ->
            reshape(3, B, N + L, C // heads, heads).transpose(0, 1, 4, 2, 3)
    """,
)


# --- 16.6 -----------------------------------------------------------------------------------
def costs(told, N, L, w, depth, rate):
    tokens = N + L * (told == "in-context")
    parameters = depth * (12 * w**2 + 9 * w)
    products = depth * (tokens * 12 * w**2 + 2 * tokens**2 * w)
    if told == "adaln-zero":
        parameters = parameters + depth * (6 * w**2 + 6 * w)
        products = products + depth * 6 * w**2
    if told == "adaln-single":
        parameters = parameters + 6 * w**2 + 6 * w + depth * 6 * w
        products = products + 6 * w**2
    if told == "cross-attention":
        parameters = parameters + depth * (4 * w**2 + 4 * w)
        products = products + depth * ((2 * N + 2 * L) * w**2 + 2 * N * L * w)
    return np.array([parameters, products, rate / products])


def _descriptions(rng, *told):
    for which in told:
        for depth in rng.permutation([2, 3, 5])[:2]:
            N, L = int(rng.integers(7, 12)), int(rng.integers(2, 6))
            yield which, N, L, int(4 * rng.integers(3, 7)), int(depth), number(rng, 2e5, 9e5)


COSTS = exercise(
    "16.6 · What a way of telling costs",
    costs,
    Part("adaLN-Zero", 1, lambda rng: _descriptions(rng, "adaln-zero")),
    Part("adaLN-single", 1, lambda rng: _descriptions(rng, "adaln-single")),
    Part("tokens", 2, lambda rng: _descriptions(rng, "in-context", "cross-attention")),
    rtol=1e-6,
    atol=1e-12,
    section="7 · Four ways to tell a network the time",
    mistakes="""
    a multiplication with its addition counts once here: your number of products is twice as large
        np.array([parameters, products, rate / products]) ->
            np.array([parameters, 2 * products, rate / products / 2])
    every dense layer has a bias, one number for each of its outputs
        12 * w**2 + 9 * w -> 12 * w**2
        6 * w**2 + 6 * w) -> 6 * w**2)
        6 * w**2 + 6 * w + -> 6 * w**2 +
        4 * w**2 + 4 * w) -> 4 * w**2)
    an attention has two products over all pairs of tokens: queries with keys, weights with values
        2 * tokens**2 * w -> tokens**2 * w
    the products of the attention itself are missing
        + 2 * tokens**2 * w) -> )
        + 2 * N * L * w) -> )
    adaLN-single has one layer for all blocks; each block has a table of 6 numbers for each channel
        6 * w**2 + 6 * w + depth * 6 * w -> depth * (6 * w**2 + 6 * w)
    the tables of the blocks are missing
        6 * w**2 + 6 * w + depth * 6 * w -> 6 * w**2 + 6 * w
    the modulation is computed once for an image, not for each token
        products + depth * 6 * w**2 -> products + depth * 6 * N * w**2
        products + 6 * w**2 -> products + 6 * N * w**2
    further tokens pass through all layers, and attend and are attended to like the others
        N + L * (told == "in-context") -> N
    in the second attention the keys and values are made from L tokens, the rest from N
        (2 * N + 2 * L) * w**2 -> 4 * N * w**2
    the heads share the channels: their number changes nothing
        2 * tokens**2 * w) -> 8 * tokens**2 * w)
    in the second attention the N patches look at the L tokens, not at each other
        2 * N * L * w -> 2 * N**2 * w
    images in a second: what the device does, divided by what an image needs
        rate / products -> products / rate
    """,
)


# --- 16.7 -----------------------------------------------------------------------------------
def around(A, alpha, sigma, a, b, c, r):
    spread = np.zeros(len(A))
    spread[: A.shape[1]] = np.linalg.svd(A, compute_uv=False) ** 2
    variance = alpha**2 * spread + sigma**2
    best = (a * alpha * spread + b * sigma) / variance
    unknown = a**2 * spread + b**2 - best**2 * variance
    lost = (best - c) ** 2 * variance
    kept = np.sort(lost)[::-1][:r]
    return np.sum(unknown) + np.sum(lost) - np.sum(kept)


def _planes(rng, *cases):
    for D, d, row, skip, r in cases:
        alpha, sigma = number(rng, 0.4, 0.8), number(rng, 0.5, 0.9)
        a, b = {"x0": (1.0, 0.0), "eps": (0.0, 1.0), "v": (-sigma, alpha)}[row]
        c = {"none": 0.0, "noise": 1 / sigma, "other": number(rng, 0.35, 0.7)}[skip]
        # Columns of different lengths, which are not at right angles.
        A = normal(rng, D, d) * rng.uniform(0.5, 1.6, d).astype(np.float32)
        yield A, alpha, sigma, a, b, c, r


AROUND = exercise(
    "16.7 · Around the bottleneck",
    around,
    Part("no skip", 1, lambda rng: _planes(rng, (5, 2, "x0", "none", 1), (4, 3, "eps", "none", 2))),
    Part(
        "ε with the skip of pure noise",
        1,
        lambda rng: _planes(rng, (6, 2, "eps", "noise", 2), (5, 3, "eps", "noise", 1)),
    ),
    Part(
        "any target, any skip",
        3,
        lambda rng: _planes(
            rng, (6, 2, "x0", "other", 3), (5, 3, "v", "other", 2), (4, 2, "eps", "other", 4)
        ),
    ),
    section="12 · What leaves the last layer: noise or image?",
    mistakes="""
    the skip is missing: it brings c·x_t to the output without the bottleneck
        (best - c) ** 2 -> best**2
    a wrong factor costs its square times the variance of the state: the variance is missing
        (best - c) ** 2 * variance -> (best - c) ** 2
    M must make up for what the skip brings: it is to say the difference of the best factor and c
        (best - c) ** 2 -> (best + c) ** 2
    the skip lies beside the bottleneck: it does not replace the rest of the best prediction
        (best - c) ** 2 * variance -> best**2 * variance - c**2 * variance
    the directions that matter are those that lose most, not those in which the data are wide
        np.sort(lost)[::-1][:r] -> lost[:r]
    the bottleneck keeps what helps most: yours keeps the least
        np.sort(lost)[::-1][:r] -> np.sort(lost)[:r]
    the best M is not the best one of full rank, truncated: the state is wider in some directions
        np.sort(lost)[::-1][:r] -> lost[np.argsort(-np.abs(best - c))[:r]]
    the directions are chosen for M, after the skip has done its part
        np.sort(lost)[::-1][:r] -> lost[np.argsort(-(best**2) * variance)[:r]]
    an error is left even without a bottleneck: the target cannot be known exactly
        np.sum(unknown) + np.sum(lost) -> np.sum(lost)
    a unit of the bottleneck removes what its direction loses; yours removes nothing
        - np.sum(kept) ->
    that is what M saves; asked for is the error that is left
        np.sum(unknown) + np.sum(lost) - np.sum(kept) -> np.sum(kept)
    variances are squares of the singular values
        compute_uv=False) ** 2 -> compute_uv=False)
    the lengths of the columns are singular values only where the columns are at right angles
        np.linalg.svd(A, compute_uv=False) ** 2 -> (A**2).sum(axis=0)
    the noise has all D directions, not only the d of the data
        np.zeros(len(A)) -> np.zeros(A.shape[1])
    the error is the sum over the D numbers, not their mean
        return right / len(A)
    """,
)


# --- 16.8 -----------------------------------------------------------------------------------
CLAIMS = Written(
    "16.8", "Smaller, faster, dead", 2, section="7 · Four ways to tell a network the time"
)
