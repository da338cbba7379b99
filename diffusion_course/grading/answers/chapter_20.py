"""Exercises of chapter 20, Discrete diffusion."""

from itertools import product
from math import factorial

import numpy as np

from diffusion_course.grading.answers.drawing import number
from diffusion_course.grading.answers.writing import exercise
from diffusion_course.grading.exercise import Part, Written


# --- 20.1 -----------------------------------------------------------------------------------
def forget(betas, share, K):
    Q = np.eye(K + 1)
    for beta in betas:
        step = np.zeros((K + 1, K + 1))
        step[:K, :K] = (1 - beta) * np.eye(K) + beta * (1 - share) / K
        step[:K, K] = beta * share
        step[K, K] = 1
        Q = Q @ step
    return Q


def _drawn_once(betas, share, K):
    """The formula of the chapter's chains, in which nothing stays a mask but by being drawn."""
    kept = np.prod(1 - betas)
    drawn = np.append(np.full(K, (1 - share) / K), share)
    Q = kept * np.eye(K + 1) + (1 - kept) * drawn
    Q[K] = np.eye(K + 1)[K]
    return Q


def _never_back(betas, share, K):
    """As if no letter that was forgotten could be drawn again."""
    kept, letter = np.prod(1 - betas), np.prod(1 - betas * share)
    Q = forget(betas, share, K)
    Q[:K, :K] = kept * np.eye(K) + (letter - kept) / (K - 1) * (1 - np.eye(K))
    return Q


def _forgetting(rng, *rows):
    """Rows of (number of steps, share of masks, letters); one of 4 steps forgets everything."""
    for steps, share, K in rows:
        betas = rng.uniform(0.1, 0.45, steps)
        if steps == 4:
            betas[1] = 1.0
        yield betas, share, K


FORGET = exercise(
    "20.1 · Two ways to forget",
    forget,
    Part(
        "letters only, or the mask only", 1, lambda rng: _forgetting(rng, (3, 0.0, 2), (2, 1.0, 3))
    ),
    Part(
        "both",
        2,
        lambda rng: _forgetting(
            rng,
            *[(steps, number(rng, 0.2, 0.4), K) for steps, K in ((1, 3), (5, 2), (4, 3), (2, 5))],
        ),
    ),
    section="2 · Noise for letters",
    mistakes="""
    a letter that was forgotten for another letter may still become the mask in a later step
        return _drawn_once(betas, share, K)
    a mask stays a mask: its row is 0 but for the last entry
        step[K, K] = 1 -> step[K] = beta * np.append(np.full(K, (1 - share) / K), share)
            + (1 - beta) * np.eye(K + 1)[K]
    the row of the mask is missing
        step[K, K] = 1 -> step[K, K] = 0
    row i belongs to the state before the steps: yours is transposed
        return right.T
    a letter may be forgotten and drawn again: the diagonal is more than the chance of being kept
        return _never_back(betas, share, K)
    a forgotten letter may be drawn again: its own letter is one of the K
        (1 - beta) * np.eye(K) + beta * (1 - share) / K
            -> (1 - beta) * np.eye(K) + beta * (1 - share) / (K - 1) * (1 - np.eye(K))
    the share belongs to the mask, and 1 − share to the letters
        return forget(betas, 1 - share, K)
    probabilities of being kept multiply; those of being forgotten do not add up
        for beta in betas: -> for beta in [np.sum(betas)]:
    one of the steps is missing
        for beta in betas: -> for beta in betas[1:]:
    one of the steps is missing: all of them count
        for beta in betas: -> for beta in betas[:-1]:
    a letter becomes the mask only if it is forgotten: β times the share
        step[:K, K] = beta * share -> step[:K, K] = share
    each of the K letters gets 1/K of what is drawn
        beta * (1 - share) / K -> beta * (1 - share)
    each of the K letters gets 1/K of what is drawn: the mask is none of them
        beta * (1 - share) / K -> beta * (1 - share) / (K + 1)
    """,
)


# --- 20.2 -----------------------------------------------------------------------------------
def step_back(x, p0, Q_s, Q_ts):
    K = p0.shape[-1]
    made = np.zeros((*x.shape, len(Q_s)))
    for place in np.ndindex(*x.shape):
        here, p = x[place], p0[place]
        reach = (Q_s @ Q_ts)[:K, here]
        p = np.where(reach > 0, p, 0)
        for k in np.flatnonzero(p):
            both = Q_s[k] * Q_ts[:, here]
            made[place] += p[k] / p.sum() * both / reach[k]
    return made


def _normalised(made):
    return made / made.sum(-1, keepdims=True)


def _mean_string(x, p0, Q_s, Q_ts):
    """Bayes' rule once, with the mean of the letters in the place of a letter."""
    reach = (Q_s @ Q_ts).T[x][..., : p0.shape[-1]]
    p = _normalised(np.where(reach > 0, p0, 0))
    return _normalised((p @ Q_s[: p.shape[-1]]) * Q_ts.T[x])


def _chains(rng, *kinds):
    for kind, (B, L, K) in kinds:
        Q_s, Q_ts = (_steps(rng, kind, K) for _ in range(2))
        p0 = rng.dirichlet(np.full(K, 1.5), (B, L)).astype(np.float32)
        x = rng.integers(len(Q_s), size=(B, L)).astype(np.int32)
        x[0, :2] = len(Q_s) - 1, 0  # a mask, where there is one, and a letter
        yield x, p0, Q_s, Q_ts


def _steps(rng, kind, K):
    """A matrix of one or more steps: row i belongs to the earlier state i."""
    if kind == "any":
        return rng.dirichlet(np.full(K, 1.2), K)
    if kind == "mask":  # a mask that may turn into letters again
        return rng.dirichlet(np.full(K + 1, 1.2), K + 1)
    if kind == "neighbour":  # a letter stays, or becomes the next one
        stay = rng.uniform(0.3, 0.7, K)
        return np.diag(stay) + np.roll(np.diag(1 - stay), 1, axis=1)
    stay = rng.uniform(0.3, 0.7, K)  # "absorbing", with a probability of its own for each letter
    Q = np.eye(K + 1)
    Q[:K] = np.hstack([np.diag(stay), 1 - stay[:, None]])
    return Q


STEP_BACK = exercise(
    "20.2 · One step back in any chain",
    step_back,
    Part(
        "chains in which every change is possible",
        2,
        lambda rng: _chains(rng, ("any", (2, 4, 3)), ("mask", (3, 2, 4)), ("any", (3, 3, 3))),
    ),
    Part(
        "impossible changes",
        2,
        lambda rng: _chains(
            rng, ("absorbing", (3, 4, 2)), ("neighbour", (2, 3, 4)), ("absorbing", (2, 5, 3))
        ),
    ),
    section="2 · Noise for letters",
    mistakes="""
    you put the mean letter into Bayes' rule: mix the posteriors instead, each one normalised
        return _mean_string(x, p0, Q_s, Q_ts)
    letters that cannot have become x_t are left out, and p0 of the others must add up to 1
        p[k] / p.sum() -> p[k]
    divide by q(x_t | x_0 = k), so that each letter's posterior adds up to 1
        * both / reach[k] -> * both
    that is the step before the last: x_t has not been looked at
        Q_s[k] * Q_ts[:, here] -> Q_s[k] * reach[k]
    x_t is the later state: it chooses a column of Q_ts and of Q_s @ Q_ts, not a row
        Q_ts[:, here] -> Q_ts[here]
        (Q_s @ Q_ts)[:K, here] -> (Q_s @ Q_ts)[here, :K]
    q(x_t | x_s = j) for all j is a column of Q_ts, not a row
        Q_ts[:, here] -> Q_ts[here]
    the rows of Q_ts belong to the earlier state, x_s: yours is transposed
        return step_back(x, p0, Q_s, Q_ts.T)
    q(x_s | x_0 = k) is a row of Q_s, not a column
        Q_s[k] -> Q_s[:, k]
    Q_s comes first: the product of the matrices is in the wrong order
        (Q_s @ Q_ts) -> (Q_ts @ Q_s)
    both stretches lie between x_0 and x_t: q(x_t | x_0) is an entry of Q_s @ Q_ts
        (Q_s @ Q_ts)[:K -> Q_ts[:K
    the prior of x_s is q(x_s | x_0 = k): Q_s is missing
        Q_s[k] * Q_ts[:, here] -> Q_ts[:, here]
    """,
)


# --- 20.3 -----------------------------------------------------------------------------------
def own_pace(log_p, x0, x, alpha_t, alpha_s):
    K = log_p.shape[-1]
    lift = (alpha_s - alpha_t) / (1 - alpha_t)
    p = np.exp(log_p) * lift
    true, said = lift[x0], np.take_along_axis(p, x0[..., None], -1)[..., 0]
    cost = _cost(true, said) + _cost(1 - true, 1 - p.sum(-1))
    return np.where(x == K, cost, 0)


def _cost(a, b):
    """a·log(a/b), which is 0 at a = 0, up to rounding in float32."""
    some = a > 1e-6
    return np.where(some, a * np.log(np.where(some, a, 1) / np.where(some, b, 1)), 0)


def _paces(rng, *kinds):
    """Steps of the kinds: each letter its own pace; all the same; the last step; one pauses."""
    for kind, (B, L, K) in kinds:
        alpha_t = rng.uniform(0.05, 0.4, K)
        alpha_s = alpha_t + rng.uniform(0.15, 0.9, K) * (0.95 - alpha_t)
        if kind == "same":
            alpha_t, alpha_s = np.full(K, alpha_t[0]), np.full(K, alpha_s[0])
        if kind == "last":
            alpha_s = np.ones(K)
        x0 = rng.integers(K, size=(B, L)).astype(np.int32)
        if kind == "pause":
            alpha_s[1], x0[0, :2] = alpha_t[1], (1, 0)
        masked = rng.uniform(size=(B, L)) < 0.6
        masked[0, :2], masked[-1, -1] = True, False
        log_p = np.log(rng.dirichlet(np.full(K, 1.3), (B, L))).astype(np.float32)
        yield log_p, x0, np.where(masked, K, x0).astype(np.int32), alpha_t, alpha_s


OWN_PACE = exercise(
    "20.3 · A pace of its own for each letter",
    own_pace,
    Part("letters with one pace", 1, lambda rng: _paces(rng, ("same", (2, 4, 3)))),
    Part(
        "each letter with its own",
        2,
        lambda rng: _paces(rng, ("own", (3, 2, 4)), ("pause", (2, 3, 3)), ("own", (3, 3, 3))),
    ),
    Part("the last step", 1, lambda rng: _paces(rng, ("last", (2, 3, 4)), ("last", (3, 2, 3)))),
    section="4 · Every order at once",
    mistakes="""
    with unlike paces a mask that stays is likely a late letter's: that is the loss for one pace
        + _cost(1 - true, 1 - p.sum(-1)) ->
    that is the limit of short steps; this step has its length: compare the chances of staying
        _cost(1 - true, 1 - p.sum(-1)) -> (p.sum(-1) - true)
    the model's letters need not add up to 1: its mask may stay, too
        _cost(true, said) + _cost(1 - true, 1 - p.sum(-1)) -> -true * np.log(said / p.sum(-1))
    the network has seen the mask: do not weigh its letters by the chance to be masked once more
        p = np.exp(log_p) * lift -> p = np.exp(log_p) * (1 - alpha_t);
            p = p / p.sum(-1, keepdims=True) * lift
    the model's mask may become any letter: it stays with 1 minus the sum over all of them
        1 - p.sum(-1) -> 1 - said
    the two distributions are exchanged: the true posterior stands first in the KL divergence
        _cost(true, said) + _cost(1 - true, 1 - p.sum(-1))
            -> _cost(said, true) + _cost(1 - p.sum(-1), 1 - true)
    of those that are masked at t, (α_s − α_t)/(1 − α_t) are lifted
        / (1 - alpha_t) -> / (1 - alpha_s + (alpha_s == 1))
    the probability of being lifted is that of a letter that is masked at t: divide by 1 − α_t
        (alpha_s - alpha_t) / (1 - alpha_t) -> alpha_s - alpha_t
    1 − α_s over 1 − α_t stay masked; the others are lifted
        (alpha_s - alpha_t) / (1 - alpha_t) -> (1 - alpha_s) / (1 - alpha_t)
    a letter that is not masked costs nothing
        np.where(x == K, cost, 0) -> cost
    a string is a tuple of tokens, and the mask is K, not K − 1
        x == K -> x == K - 1
    that is the sum over the tokens of a string
        np.where(x == K, cost, 0) -> np.where(x == K, cost, 0).sum(-1)
    the sign is wrong: a KL divergence is not negative
        return np.where -> return -np.where
    the cost is that of the letter, whatever its chance to be lifted in this step: weigh it
        lift = (alpha_s - alpha_t) / (1 - alpha_t)
            -> lift = (alpha_s - alpha_t) / (1 - alpha_t); lift = np.ones(K)
    """,
)


# --- 20.4 -----------------------------------------------------------------------------------
def together(alpha, L):
    lifts = np.diff(alpha)
    evaluations = np.sum(1 - (1 - lifts) ** L)
    company = np.sum(L * lifts * (1 - (1 - lifts) ** (L - 1)))
    ways = np.zeros(L + 1)  # of lifting 0, 1, … tokens, at most one in a step
    ways[0] = 1
    for lift in lifts:
        ways[1:] += lift * ways[:-1].copy()
    return np.array([evaluations, company, factorial(L) * ways[L]])


def _of_masks(alpha):
    """The probability of being lifted in a step for those that are masked before it."""
    return np.diff(alpha) / (1 - alpha[:-1])


def _tables(rng, *rows):
    """Rows of (number of steps, number of masks); one of seven steps lifts nothing."""
    for steps, L in rows:
        lifts = rng.uniform(0.4, 1.6, steps)
        if steps == 7:
            lifts[2] = 0
        yield np.append(0, np.cumsum(lifts) / lifts.sum()), L


TOGETHER = exercise(
    "20.4 · How many tokens at once?",
    together,
    Part(
        "more steps than tokens",
        2,
        lambda rng: _tables(rng, (6, 3), (7, 2), (9, 4)),
    ),
    Part(
        "one step, one token, too few steps",
        1,
        lambda rng: _tables(rng, (1, 3), (4, 1), (4, 5), (3, 3)),
    ),
    section="3 · All 27 strings",
    mistakes="""
    a token is lifted in a step with probability α_s − α_t: a *mask* with more, but few are left
        lifts = np.diff(alpha) -> lifts = _of_masks(alpha)
    a step without an evaluation lifts none of the L tokens: 1 minus a power
        np.sum(1 - (1 - lifts) ** L) -> np.sum(lifts**L)
    the first number counts the evaluations: steps in which nothing is lifted need none
        np.sum(1 - (1 - lifts) ** L) -> float(len(lifts))
    the first number is the evaluations: yours are the steps that need none
        np.sum(1 - (1 - lifts) ** L) -> np.sum((1 - lifts) ** L)
    in company means with one at least of the *other* L − 1 tokens
        ** (L - 1) -> ** L
    each of the L tokens may be the one that is alone: the chance of one of them counts L times
        np.sum(L * lifts * (1 - (1 - lifts) ** (L - 1)))
            -> (L - np.sum(lifts * (1 - lifts) ** (L - 1)))
    the second number counts tokens: yours counts the steps that lift more than one
        np.sum(L * lifts * (1 - (1 - lifts) ** (L - 1)))
            -> np.sum(1 - (1 - lifts) ** L - L * lifts * (1 - lifts) ** (L - 1))
    the second number counts tokens, and not the share of them
        L * lifts -> lifts
    the second number counts tokens that are not alone: yours are those that are
        (1 - (1 - lifts) ** (L - 1)) -> (1 - lifts) ** (L - 1)
    that counts pairs: three tokens in one step are three tokens, but six ordered pairs
        np.sum(L * lifts * (1 - (1 - lifts) ** (L - 1))) -> np.sum(L * (L - 1) * lifts**2)
    the tokens may take their L different steps in L! orders
        factorial(L) * ways[L] -> ways[L]
    pairs of tokens are not independent of each other: count the ways to take L different steps
        factorial(L) * ways[L] -> (1 - np.sum(lifts**2)) ** (L * (L - 1) / 2)
    the steps are not equally likely
        factorial(L) * ways[L] -> np.prod(1 - np.arange(L) / len(lifts))
    the third number is the probability that *no* two tokens meet
        factorial(L) * ways[L] -> 1 - factorial(L) * ways[L]
    """,
)


# --- 20.5 -----------------------------------------------------------------------------------
def padded_loss(log_p, x0, x, lengths):
    K, L = log_p.shape[-1], x.shape[1]
    said = np.take_along_axis(log_p, x0[..., None], -1)[..., 0]
    masked = (x == K) & (np.arange(L) < lengths[:, None])
    cost = np.where(masked, -said, 0).sum(-1)
    return np.mean(lengths / masked.sum(-1) * cost)


def _padded(rng, *rows):
    """Rows of (tokens, letters, lengths of the strings); numbers of masks differ in a batch."""
    for L, K, lengths in rows:
        log_p = np.log(rng.dirichlet(np.full(K, 1.3), (len(lengths), L))).astype(np.float32)
        x0, x = (np.zeros((len(lengths), L), np.int32) for _ in range(2))
        for row, n in enumerate(lengths):
            x0[row, :n] = rng.integers(K, size=n)
            x[row] = np.append(x0[row, :n], np.full(L - n, K))
            # More masks in a later string, so that no two weights agree.
            x[row, rng.permutation(n)[: min(n, row + 1 + (n > 3))]] = K
        yield log_p, x0, x, np.array(lengths, np.int32)


BROKEN = exercise(
    "20.5 · This loss is broken",
    padded_loss,
    Part(
        "one string that is shorter than the canvas",
        1,
        lambda rng: _padded(rng, (6, 3, [4]), (6, 3, [3])),
    ),
    Part(
        "strings that fill the canvas",
        1,
        lambda rng: _padded(rng, (5, 2, [5, 5, 5]), (5, 2, [5, 5, 5])),
    ),
    Part(
        "strings of several lengths",
        1,
        lambda rng: _padded(rng, (5, 2, [3, 5, 2]), (5, 2, [2, 4, 5])),
    ),
    section="4 · Every order at once",
    mistakes="""
    all three bugs are still there
        (x == K) & (np.arange(L) < lengths[:, None]) -> x == K
        return np.mean(lengths / masked.sum(-1) * cost) -> return L * cost.sum() / masked.sum()
    two bugs are left: masks behind the end are counted, and the canvas is taken for the string
        (x == K) & (np.arange(L) < lengths[:, None]) -> x == K
        lengths / masked -> L / masked
    two bugs are left: the batch is averaged as if it were one string, masks behind the end included
        (x == K) & (np.arange(L) < lengths[:, None]) -> x == K
        return np.mean(lengths / masked.sum(-1) * cost)
            -> return np.mean(lengths) * cost.sum() / masked.sum()
    two bugs are left: the batch is averaged as if it were one string, as long as the canvas
        return np.mean(lengths / masked.sum(-1) * cost) -> return L * cost.sum() / masked.sum()
    a bug is left: a string counts once, however many masks it has; each has a weight of its own
        return np.mean(lengths / masked.sum(-1) * cost)
            -> return np.mean(lengths) * cost.sum() / masked.sum()
    a bug is left: divide the cost of each string by its own number of masks
        return np.mean(lengths / masked.sum(-1) * cost)
            -> return np.sum(lengths * cost) / masked.sum()
    a bug is left: the weight has the string's own length, not that of the canvas
        lengths / masked -> L / masked
    a bug is left: masks behind the end are no letters of the string
        (x == K) & (np.arange(L) < lengths[:, None]) -> x == K
    a bug is left: masks behind the end still count in the number of masks
        masked.sum(-1) * cost -> (x == K).sum(-1) * cost
    a bug is left: masks behind the end still count in the sum
        cost = np.where(masked -> cost = np.where(x == K
    each string has its own length: the mean of products is not the product of means
        return np.mean(lengths / masked.sum(-1) * cost)
            -> return np.mean(lengths) * np.mean(cost / masked.sum(-1))
    the loss is in nats per string, not per letter: divide by the number of strings
        return np.mean(lengths / masked.sum(-1) * cost)
            -> return np.sum(lengths / masked.sum(-1) * cost) / lengths.sum()
    the loss is in nats per string: its length multiplies
        lengths / masked -> 1 / masked
    the weight is the length over the number of masks: yours is upside down
        lengths / masked.sum(-1) -> masked.sum(-1) / lengths
    a letter that is not masked costs nothing: that was right
        (x == K) & (np.arange(L) -> (x <= K) & (np.arange(L)
    the loss is the mean over the batch: that was right
        return np.mean(lengths / masked -> return np.sum(lengths / masked
    return the mean of the batch, one number
        return np.mean(lengths / masked.sum(-1) * cost) -> return lengths / masked.sum(-1) * cost
    a string has as many letters as its length says: yours is one longer
        np.arange(L) < -> np.arange(L) <=
    """,
)


# --- 20.6 -----------------------------------------------------------------------------------
def guided_step(log_c, log_u, w, lift, kind):
    w = w[:, None, None]
    some = log_u > -np.inf
    ratio = np.where(some, log_c, 0) - np.where(some, log_u, 0)
    power = np.where(w > 0, np.where(w > 0, w, 1) * ratio, 0)
    guided = np.where(some, np.exp(log_u + power), 0)
    total = guided.sum(-1, keepdims=True)
    stay = np.full_like(total, 1 - lift)
    if kind == "letters":
        return np.concatenate([lift * guided / total, stay], -1)
    return _normalised(np.concatenate([lift * guided, stay], -1))


def _guidances(rng, *rows):
    """Rows of (kind, shape, the chance of a mask, the guidance scales, what is impossible)."""
    for kind, (B, L, K), lift, w, zeros in rows:
        log_c, log_u = (
            np.log(rng.dirichlet(np.full(K, 1.5), (B, L))).astype(np.float32) for _ in range(2)
        )
        if zeros:
            for gone, both in ((0, False), (1, True)):
                log_c[..., gone] = -np.inf
                if both:
                    log_u[..., gone] = -np.inf
            log_c, log_u = (
                (a - np.log(np.exp(a).sum(-1, keepdims=True))).astype(np.float32)
                for a in (log_c, log_u)
            )
        yield log_c, log_u, np.array(w, np.float32), lift, kind


GUIDED_STEP = exercise(
    "20.6 · Guided letters, guided steps",
    guided_step,
    Part(
        "the letters",
        1,
        lambda rng: _guidances(
            rng,
            ("letters", (2, 4, 3), number(rng, 0.1, 0.4), (0.4, 2.7), False),
            ("letters", (3, 2, 4), number(rng, 0.5, 0.8), (1.0, 0.0, 1.8), False),
        ),
    ),
    Part(
        "the steps",
        2,
        lambda rng: _guidances(
            rng,
            ("step", (3, 2, 4), number(rng, 0.1, 0.4), (0.4, 2.7, 1.6), False),
            ("step", (2, 2, 2), number(rng, 0.5, 0.8), (3.4, 1.4), False),
            ("step", (2, 3, 4), 1.0, (0.0, 2.3), False),
        ),
    ),
    Part(
        "letters that are impossible",
        1,
        lambda rng: _guidances(
            rng,
            # At a w of 0.03 a large negative number is no -inf.
            ("letters", (3, 2, 4), number(rng, 0.2, 0.7), (0.0, 0.03, 2.4), True),
            ("step", (2, 3, 5), number(rng, 0.2, 0.7), (0.0, 1.7), True),
        ),
    ),
    section="8 · Guidance",
    mistakes="""
    in a guided step the mask takes part: normalise over the letters and the mask together
        if kind == "letters": -> if kind:
    guided letters leave the mask as it is: normalise them before the mask comes in
        if kind == "letters": -> if not kind:
    the two kinds are exchanged
        if kind == "letters": -> if kind != "letters":
    the letters' probabilities must add up to 1 before they are multiplied
        lift * guided / total -> lift * guided
    the step's probabilities must add up to 1
        return _normalised(np.concatenate([lift * guided, stay], -1))
            -> return np.concatenate([lift * guided, stay], -1)
    at w = 0 the condition plays no part: a letter that it forbids keeps its probability
        power = np.where(w > 0, np.where(w > 0, w, 1) * ratio, 0)
            -> power = np.where(ratio > -np.inf, w * ratio, -np.inf)
    what the condition forbids is impossible at any w > 0: a small number in the place of 0 is not
        np.where(some, log_c, 0) -> np.where(some, np.log(np.exp(log_c) + 1e-10), 0)
    the probabilities are mixed: guidance mixes their logarithms
        guided = np.where(some, np.exp(log_u + power), 0)
            -> guided = np.exp(log_u) + w * (np.exp(log_c) - np.exp(log_u))
    guidance starts from the unconditional letters: w = 0 is unconditional, w = 1 conditional
        w = w[:, None, None] -> w = 1 + w[:, None, None]
    with and without a condition are exchanged
        return guided_step(log_u, log_c, w, lift, kind)
    guidance goes from the unconditional to the conditional: the sign of the difference is wrong
        exp(log_u + power) -> exp(log_u - power)
    the mask comes last
        return np.roll(right, 1, -1)
    a mask is lifted with the probability lift, and stays with 1 − lift
        return guided_step(log_c, log_u, w, 1 - lift, kind)
    """,
)


# --- 20.7 -----------------------------------------------------------------------------------
def parallel_loss(p, alpha):
    lifts, tokens, some = np.diff(alpha), range(p.ndim), p > 0
    made, cost = np.zeros_like(p), 0.0
    for steps in product(range(len(lifts)), repeat=p.ndim):
        chance, q = np.prod(lifts[list(steps)]), np.ones_like(p)
        for m in tokens:
            before = [n for n in tokens if steps[n] < steps[m]]
            q = q * _ratio(_of(p, [*before, m]), _of(p, before))
        made = made + chance * q
        cost = cost - chance * np.sum(p[some] * np.log(q[some]))
    entropy = -np.sum(p[some] * np.log(p[some]))
    loss = np.sum(p[some] * np.log(p[some] / made[some]))
    return np.array([loss, cost - entropy])


def _of(p, tokens):
    """The distribution of these tokens, with an axis of length 1 for each of the others."""
    return p.sum(tuple(m for m in range(p.ndim) if m not in tokens), keepdims=True)


def _ratio(a, b):
    return np.where(b > 0, a / np.where(b > 0, b, 1), 0)


def _two_only(p, alpha):
    """Either all tokens meet or none does, which is so for two."""
    meet = np.sum(np.diff(alpha) ** 2)
    q, some = np.ones_like(p), p > 0
    for m in range(p.ndim):
        q = q * _of(p, [m])
    p, q = p[some], q[some]
    made = (1 - meet) * p + meet * q
    return np.array([np.sum(p * np.log(p / made)), meet * np.sum(p * np.log(p / q))])


def _languages(rng, *rows):
    """Rows of (tokens, letters, steps, kind: any, or with impossible strings, or mostly copies)."""
    for L, K, steps, kind in rows:
        p = rng.dirichlet(np.full(K**L, 0.8)) + 0.02
        if kind == "holes":
            gone = rng.permutation(K**L)
            p[gone[: K**L // 3]], p[gone[-1]] = 0, 6e-4  # and one is very rare
        p = p.reshape((K,) * L)
        if kind == "copies":
            p[(np.arange(K),) * L] += rng.uniform(5, 9, K)
        lifts = rng.uniform(0.4, 1.6, steps)
        yield p / p.sum(), np.append(0, np.cumsum(lifts) / lifts.sum())


PARALLEL_LOSS = exercise(
    "20.7 · What parallel steps lose",
    parallel_loss,
    Part(
        "one step",
        1,
        lambda rng: _languages(rng, (2, 3, 1, "any"), (3, 2, 1, "holes"), (3, 3, 1, "copies")),
    ),
    Part("two tokens", 1, lambda rng: _languages(rng, (2, 2, 3, "any"), (2, 4, 4, "holes"))),
    Part(
        "any number",
        3,
        lambda rng: _languages(rng, (3, 2, 4, "holes"), (3, 3, 2, "any"), (4, 2, 3, "copies")),
    ),
    section="3 · All 27 strings",
    mistakes="""
    that holds for two tokens: of three, two may meet while one is alone
        return _two_only(p, alpha)
    the two numbers are exchanged: the sampler's own loss is the smaller one
        return right[::-1]
    both numbers are the bound's: the first compares with the mixture of all ways to lift the masks
        np.array([loss, cost - entropy]) -> np.array([cost - entropy, cost - entropy])
    both numbers are the sampler's: the bound is the mean of logarithms, one for each way
        np.array([loss, cost - entropy]) -> np.array([loss, loss])
    the entropy of the data must be subtracted from the bound
        cost - entropy]) -> cost])
    the KL divergence is the mean of log(p/p_T) over the data: yours is over the samples
        np.sum(p[some] * np.log(p[some] / made[some]))
            -> np.sum(made[some] * np.log(made[some] / p[some]))
    the sign of the first number is wrong
        np.array([loss, -> np.array([-loss,
    a token is drawn given those that were lifted in earlier steps: yours knows none of them
        if steps[n] < steps[m]] -> if steps[n] < 0]
    tokens that are lifted in the same step do not see each other
        if steps[n] < steps[m]] -> if (steps[n], n) < (steps[m], m)]
    the table runs from noise to data, and a token sees those that were lifted before it, not after
        if steps[n] < steps[m]] -> if steps[n] > steps[m]]
    a token is lifted in a step with probability α_s − α_t: the steps are not equally likely
        np.prod(lifts[list(steps)]) -> 1 / len(lifts) ** p.ndim
    each token is lifted at a time of its own: the chances of all of them multiply
        np.prod(lifts[list(steps)]) -> np.mean(lifts[list(steps)]) / len(lifts) ** (p.ndim - 1)
    that is in bits: nats, with the natural logarithm
        return right / np.log(2)
    strings count by their probability, and not all alike
        loss = np.sum(p[some] * np.log -> loss = np.mean(np.log
        p[some] / made[some])) -> p[some] / made[some]))
    """,
)


# --- 20.8 -----------------------------------------------------------------------------------
VERDICTS = Written(
    "20.8", "Three verdicts", 3, section="7 · Random numbers that are not what they say"
)
