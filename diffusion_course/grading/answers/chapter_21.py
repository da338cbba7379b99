"""Exercises of chapter 21, Which generative model?"""

import numpy as np

from diffusion_course.grading.answers.drawing import number
from diffusion_course.grading.answers.writing import exercise
from diffusion_course.grading.exercise import Part, Written


# --- 21.1 -----------------------------------------------------------------------------------
def pay(real, fake, smooth, game):
    hedged = (1 - smooth) * _softplus(-real) + smooth * _softplus(real)
    judge = np.mean(hedged) + np.mean(_softplus(fake))
    if game == "saturating":
        return judge, -np.mean(_softplus(fake)), -_sigmoid(fake) / len(fake)
    return judge, np.mean(_softplus(-fake)), -_sigmoid(-fake) / len(fake)


def _softplus(d):
    return np.maximum(d, 0) + np.log1p(np.exp(-np.abs(d)))


def _sigmoid(d):
    return np.exp(-_softplus(-d))


def _games(rng, *rows):
    """Rows of (data, samples, game, whether some logits are huge)."""
    for N, M, game, huge in rows:
        real, fake = rng.normal(0.8, 1.4, N), rng.normal(-0.5, 1.6, M)
        if huge:
            real[:2], fake[:3] = (700, -900), (1000, -600, -1.3)
        yield real, fake, number(rng, 0.06, 0.2), game


PAY = exercise(
    "21.1 · What the players pay",
    pay,
    Part(
        "logits of ordinary size",
        2,
        lambda rng: _games(
            rng,
            (3, 4, "saturating", False),
            (5, 3, "non-saturating", False),
            (4, 6, "non-saturating", False),
        ),
    ),
    Part(
        "huge logits",
        1,
        lambda rng: _games(rng, (4, 5, "non-saturating", True), (5, 4, "saturating", True)),
    ),
    section="2 · The game of a GAN",
    mistakes="""
    the two games of the generator are exchanged
        game == "saturating" -> game != "saturating"
    the label is 1 − smooth: the data keep a share smooth of the label of samples
        hedged = (1 - smooth) * _softplus(-real) + smooth * _softplus(real)
            -> hedged = _softplus(-real)
    the label is 1 − smooth, so each data logit also pays as a sample does, a little
        + smooth * _softplus(real) ->
    the labels are exchanged: smooth is what the data miss of a whole 1
        (1 - smooth) * _softplus(-real) + smooth * _softplus(real)
            -> smooth * _softplus(-real) + (1 - smooth) * _softplus(real)
    only the label of the data is smoothed, and that of samples stays 0
        + np.mean(_softplus(fake)) -> + np.mean((1 - smooth) * _softplus(fake)
            + smooth * _softplus(-fake))
    the discriminator pays for both batches: the sum of the two means, and not half of it
        judge = np.mean(hedged) + np.mean(_softplus(fake))
            -> judge = (np.mean(hedged) + np.mean(_softplus(fake))) / 2
    data and samples each have a mean of their own, whatever their numbers are
        judge = np.mean(hedged) + np.mean(_softplus(fake))
            -> judge = 2 * np.mean(np.append(hedged, _softplus(fake)))
    the slopes are those of a mean: the number of samples is missing
        -_sigmoid(fake) / len(fake) -> -_sigmoid(fake)
        -_sigmoid(-fake) / len(fake) -> -_sigmoid(-fake)
    the slopes have the wrong sign: a larger logit is what the generator wants, in both games
        -_sigmoid(fake) / len(fake) -> _sigmoid(fake) / len(fake)
        -_sigmoid(-fake) / len(fake) -> _sigmoid(-fake) / len(fake)
    a data logit is large where the discriminator is right: the signs of the logits are exchanged
        return pay(-real, -fake, smooth, game)
    in both games every loss is minimised: the generator's saturating loss is log(1 − D)
        -np.mean(_softplus(fake)), -_sigmoid(fake) / len(fake)
            -> np.mean(_softplus(fake)), _sigmoid(fake) / len(fake)
    the slopes are those of the two games exchanged
        -_sigmoid(fake) / len(fake) -> -_sigmoid(-fake) / len(fake)
        np.mean(_softplus(-fake)), -_sigmoid(-fake) -> np.mean(_softplus(-fake)), -_sigmoid(fake)
    the discriminator's loss stands first, and then the generator's
        return judge, -np.mean(_softplus(fake)), -> return -np.mean(_softplus(fake)), judge,
        return judge, np.mean(_softplus(-fake)), -> return np.mean(_softplus(-fake)), judge,
    probabilities that are kept away from 0 and 1 change large losses: use the logits themselves
        return _clipped(real, fake, smooth, game)
    """,
)


def _clipped(real, fake, smooth, game):
    """With probabilities, and a small number that keeps the logarithms finite."""
    D_real, D_fake = (np.clip(_sigmoid(d), 1e-7, 1 - 1e-7) for d in (real, fake))
    hedged = -(1 - smooth) * np.log(D_real) - smooth * np.log(1 - D_real)
    judge = np.mean(hedged) - np.mean(np.log(1 - D_fake))
    if game == "saturating":
        return judge, np.mean(np.log(1 - D_fake)), -_sigmoid(fake) / len(fake)
    return judge, -np.mean(np.log(D_fake)), -_sigmoid(-fake) / len(fake)


# --- 21.2 -----------------------------------------------------------------------------------
def best_judge(p, q, share):
    logits = np.zeros(p.shape)
    loss, right = np.zeros(len(p)), np.zeros(len(p))
    for b, k in np.ndindex(*p.shape):
        data, made = share[b] * p[b, k], (1 - share[b]) * q[b, k]
        logits[b, k] = _log(data) - _log(made) if data or made else 0
        loss[b] += _pays(data, made) + _pays(made, data)
        right[b] += max(data, made)
    return logits, loss, right


def _log(a):
    return np.log(a) if a > 0 else -np.inf


def _pays(a, b):
    return -a * np.log(a / (a + b)) if a > 0 else 0.0


def _alphabets(rng, *rows):
    """Rows of (batch, symbols, kind: every symbol in both, some in one or none, no common one)."""
    for B, K, kind in rows:
        p, q = (rng.dirichlet(np.full(K, 1.3), B) + 0.02 for _ in range(2))
        if kind == "zeros":
            p[:, 0], q[:, 1], p[0, 2], q[0, 2] = 0, 0, 0, 0
            p[1, 2], q[1, 3] = 1e-25, 1e-25
        if kind == "apart":
            p[:, ::2], q[:, 1::2] = 0, 0
            p[0], q[0] = rng.dirichlet(np.full(K, 2.0), 2)  # an ordinary row beside them
        p, q = (a / a.sum(1, keepdims=True) for a in (p, q))
        yield p, q, np.append(number(rng, 0.2, 0.4), rng.uniform(0.55, 0.8, B - 1))


BEST_JUDGE = exercise(
    "21.2 · The best judge",
    best_judge,
    Part(
        "every symbol occurs in both",
        2,
        lambda rng: _alphabets(rng, (2, 3, "all"), (3, 5, "all"), (3, 3, "all")),
    ),
    Part(
        "symbols that occur in one of them, or in none",
        2,
        lambda rng: _alphabets(rng, (2, 5, "zeros"), (3, 4, "zeros"), (3, 4, "apart")),
    ),
    section="2 · The game of a GAN",
    mistakes="""
    the judge sees more of one kind than of the other: its best logit knows the share
        _log(data) - _log(made) -> _log(p[b, k]) - _log(q[b, k])
    the share is that of the data: yours is exchanged
        return best_judge(p, q, 1 - share)
    the logit is large for data: its sign is wrong
        _log(data) - _log(made) -> _log(made) - _log(data)
    data and samples are exchanged
        return best_judge(q, p, share)
    the loss forgets the share: data are shown with probability share
        _pays(data, made) + _pays(made, data)
            -> _pays(data, made) / share[b] + _pays(made, data) / (1 - share[b])
    the loss counts data and samples alike: it is a mean over what the judge is shown
        _pays(data, made) + _pays(made, data)
            -> (_pays(data, made) / share[b] + _pays(made, data) / (1 - share[b])) / 2
    the loss has a part for the samples, too
        _pays(data, made) + _pays(made, data) -> _pays(data, made)
    the loss is in nats
        return logits, loss, right -> return logits, loss / np.log(2), right
    that is how much the judge learns, and not what it still pays
        return logits, loss, right
            -> return logits, -share * np.log(share) - (1 - share) * np.log(1 - share) - loss, right
    the best guess is the likelier of the two, with their shares
        right[b] += max(data, made) -> right[b] += max(p[b, k], q[b, k]) / 2
    that is how often the best guess is wrong
        right[b] += max(data, made) -> right[b] += min(data, made)
    that is how often a guess is right that is drawn from the judge's probabilities
        right[b] += max(data, made) -> right[b] += (data**2 + made**2) / max(data + made, 1e-300)
    infinite logits are right: a small number that is added to a probability is not
        _log(data) - _log(made) -> np.log(data + 1e-12) - np.log(made + 1e-12)
    where a sample is hardly possible, 1 − D is rounded to 0: its logit is large, and finite
        _log(data) - _log(made) if data or made
            -> _log(data / (data + made)) - _log(1 - data / (data + made)) if data or made
    a symbol of neither gives no information: its logit is 0
        _log(data) - _log(made) if data or made else 0
            -> _log(data) - _log(made) if data or made else -np.inf
    """,
)


# --- 21.3 -----------------------------------------------------------------------------------
def after_prompt(logits, start, x, prompt, temperature):
    B, L = x.shape
    bits = np.zeros(B)
    for b in range(B):
        said = np.concatenate([start[None], logits[b]])  # row i is about token i
        for i in range(prompt[b], L):
            row = said[i] / temperature
            top = row.max()
            bits[b] += top + np.log(np.exp(row - top).sum()) - row[x[b, i]]
    return bits / (np.log(2) * (L - prompt))


def _strings(rng, *rows):
    """Rows of (shape, prompts, temperature or None, kind)."""
    for (B, L, K), prompt, temperature, kind in rows:
        logits, start = rng.normal(0.2, 1.6, (B, L, K)), rng.normal(0.4, 1.6, K)
        x = rng.integers(K, size=(B, L)).astype(np.int32)
        if kind == "huge":
            logits += 300 * rng.choice([-2.0, -1.0, 1.0, 2.0], (B, L, 1))
            logits[..., 0] += 90
            start += 400
        if kind == "forbidden":
            # The last letter is impossible: it stands in a prompt, and once behind it.
            logits[..., -1], start[-1] = -np.inf, -np.inf
            x = np.minimum(x, K - 2)
            x[0, 0], x[-1, L - 1] = K - 1, K - 1
        temperature = number(rng, 0.5, 0.8) if temperature is None else temperature
        yield logits, start, x, np.array(prompt, np.int32), temperature


AFTER_PROMPT = exercise(
    "21.3 · The bits after a prompt",
    after_prompt,
    Part(
        "no prompt",
        1,
        lambda rng: _strings(
            rng, ((2, 4, 3), (0, 0), 1.0, "any"), ((3, 5, 2), (0, 0, 0), None, "any")
        ),
    ),
    Part(
        "each string with a prompt of its own",
        2,
        lambda rng: _strings(
            rng,
            ((3, 5, 4), (2, 0, 4), None, "any"),
            ((2, 4, 3), (1, 3), 1.7, "any"),
            ((2, 3, 2), (0, 1), 1.0, "any"),
        ),
    ),
    Part(
        "huge logits, and letters that are impossible",
        1,
        lambda rng: _strings(
            rng,
            ((2, 5, 3), (1, 3), None, "huge"),
            ((3, 4, 4), (2, 0, 1), None, "forbidden"),
            ((2, 4, 3), (1, 0), 1.3, "forbidden"),
        ),
    ),
    section="4 · Densities that add up to 1",
    mistakes="""
    the logits at place i are about the next token, i + 1: yours are taken for token i
        said = np.concatenate([start[None], logits[b]]) -> said = logits[b]
    the first token has logits of its own, `start`
        for i in range(prompt[b], L): -> for i in range(max(prompt[b], 1), L):
    the shift goes the wrong way
        said = np.concatenate([start[None], logits[b]])
            -> said = np.concatenate([logits[b, 1:], start[None]])
    tokens of the prompt were given: they cost nothing
        range(prompt[b], L) -> range(L)
    the prompt is not drawn, and so it is not counted in the mean either
        (L - prompt) -> L
    that is the sum over the tokens: divide by the number of those that were drawn
        * (L - prompt) -> + 0 * prompt
    one token too many: a prompt of n tokens ends before place n
        range(prompt[b], L) -> range(max(prompt[b] - 1, 0), L)
    the first token after the prompt is drawn, too
        range(prompt[b], L) -> range(min(prompt[b] + 1, L - 1), L)
    the temperature divides the logits *before* they are normalised
        bits[b] += top + np.log(np.exp(row - top).sum()) - row[x[b, i]]
            -> row = said[i];
            bits[b] += (row.max() + np.log(np.exp(row - row.max()).sum()) - row[x[b, i]])
            / temperature
    the temperature divides: yours multiplies
        / temperature -> * temperature
    the temperature is missing
        / temperature ->
    bits, not nats
        (np.log(2) * (L - prompt)) -> (L - prompt)
    the sign is wrong: a probability below 1 costs bits
        return bits / -> return -bits /
    the normalisation is missing: a logit is not yet a log-probability
        top + np.log(np.exp(row - top).sum()) - row[x[b, i]] -> -row[x[b, i]]
    """,
)


# --- 21.4 -----------------------------------------------------------------------------------
def flow(x, z, masks, weights, biases, temperature):
    D, n = x.shape[1], len(masks)
    log_p = np.zeros(len(x))
    for mask, W, b in zip(masks, weights, biases, strict=True):
        h = np.tanh((mask * x) @ W + b)
        log_scale, shift = (1 - mask) * h[:, :D], (1 - mask) * h[:, D:]
        x = np.exp(log_scale) * x + shift
        log_p = log_p + log_scale.sum(1)
    log_p = log_p - 0.5 * np.sum(x**2, 1) / temperature**2
    log_p = log_p - D * np.log(temperature) - 0.5 * D * np.log(2 * np.pi)
    z = temperature * z
    for i in range(n)[::-1]:
        h = np.tanh((masks[i] * z) @ weights[i] + biases[i])
        log_scale, shift = (1 - masks[i]) * h[:, :D], (1 - masks[i]) * h[:, D:]
        z = (z - shift) * np.exp(-log_scale)
    return log_p, z


def _flows(rng, *rows):
    """Rows of (points, coordinates, couplings, temperature or None)."""
    for B, D, n, temperature in rows:
        masks = np.array([np.roll(np.arange(D) < (D + 1) // 2, i) for i in range(n)], float)
        if n == 4:
            masks[1] = 1 - masks[0]
            masks[2] = 0  # it changes all coordinates, and reads none
        weights, biases = rng.normal(0, 0.9, (n, D, 2 * D)), rng.normal(0.3, 0.7, (n, 2 * D))
        x, z = rng.normal(0.4, 1.3, (B, D)), rng.normal(size=(B + 1, D))
        t = number(rng, 0.6, 0.85) if temperature is None else temperature
        yield x, z, masks, weights, biases, t


FLOW = exercise(
    "21.4 · This flow is broken",
    flow,
    Part("one coupling", 1, lambda rng: _flows(rng, (2, 3, 1, 1.0), (3, 2, 1, 1.0))),
    Part("several couplings", 1, lambda rng: _flows(rng, (3, 4, 2, 1.0), (2, 3, 3, 1.0))),
    Part("any temperature", 1, lambda rng: _flows(rng, (3, 3, 4, None), (4, 2, 1, 1.4))),
    section="4 · Densities that add up to 1",
    mistakes="""
    all three bugs are still there
        log_p = log_p + log_scale.sum(1) -> log_p = log_p + h[:, :D].sum(1)
        - D * np.log(temperature) ->
        range(n)[::-1] -> range(n)
    two bugs are left: kept coordinates are counted, and the density is not that of these draws
        log_p = log_p + log_scale.sum(1) -> log_p = log_p + h[:, :D].sum(1)
        - D * np.log(temperature) ->
    two bugs are left: kept coordinates are counted, and the order of the way back is wrong
        log_p = log_p + log_scale.sum(1) -> log_p = log_p + h[:, :D].sum(1)
        range(n)[::-1] -> range(n)
    two bugs are left: one is in the order of the way back, and one in the density of the noise
        - D * np.log(temperature) ->
        range(n)[::-1] -> range(n)
    a bug is left: a coordinate that is kept changes no volume
        log_p = log_p + log_scale.sum(1) -> log_p = log_p + h[:, :D].sum(1)
    a bug is left: the density of narrower noise is higher where it is, in each coordinate
        - D * np.log(temperature) ->
    a bug is left: the last coupling is undone first
        range(n)[::-1] -> range(n)
    the density of the noise has one factor for each of the D coordinates
        D * np.log(temperature) -> np.log(temperature)
    narrower noise has a *higher* density: the sign of the logarithm is wrong
        log_p - D * np.log(temperature) -> log_p + D * np.log(temperature)
    the temperature scales standard deviations: its square divides in the exponent
        / temperature**2 -> / temperature
    the volume has the wrong sign: the flow goes from data to noise, so its log-scales add up
        log_p = log_p + log_scale.sum(1) -> log_p = log_p - log_scale.sum(1)
    all coordinates that are changed count: a sum, and no mean
        log_p + log_scale.sum(1) -> log_p + log_scale.mean(1)
    what is kept is where the mask is 1: that was right
        return flow(x, z, 1 - masks, weights, biases, temperature)
    from data to noise the couplings are applied in their order: that was right
        zip(masks, weights, biases, strict=True)
            -> zip(masks[::-1], weights[::-1], biases[::-1], strict=True)
        range(n)[::-1] -> range(n)
    undo a coupling by its steps in reverse: the shift was added last
        (z - shift) * np.exp(-log_scale) -> z * np.exp(-log_scale) - shift
    the temperature scales the noise, before any coupling: that was right
        z = temperature * z -> z = 1.0 * z
        return log_p, z -> return log_p, temperature * z
    """,
)


# --- 21.5 -----------------------------------------------------------------------------------
def vae_gap(x, W, b, noise, A, a, s):
    D, d = W.shape
    covariance = W @ W.T + np.diag(noise**2)
    far = np.sum((x - b) * np.linalg.solve(covariance, (x - b).T).T, 1)
    log_p = -0.5 * (far + np.linalg.slogdet(covariance)[1] + D * np.log(2 * np.pi))
    mean = x @ A.T + a
    error = (x - b - mean @ W.T) ** 2 + W**2 @ s**2
    said = -0.5 * np.sum(error / noise**2 + np.log(2 * np.pi * noise**2), 1)
    price = 0.5 * np.sum(mean**2 + s**2 - 1 - np.log(s**2), 1)
    precision = np.eye(d) + W.T / noise**2 @ W
    log_det = np.linalg.slogdet(precision)[1]
    return log_p, log_p - said + price, _gap_of(1 / np.diag(precision), precision, log_det)


def _gap_of(variances, precision, log_det):
    """KL divergence to a Gaussian of this precision from one with its mean and these variances."""
    each = np.diag(precision) * variances - 1 - np.log(variances)
    return 0.5 * (np.sum(each) - log_det)


def _other_way(mean, x, W, b, noise, s):
    """KL divergence to the encoder's distribution from the exact posterior: [B]."""
    covariance = np.linalg.inv(np.eye(len(s)) + W.T / noise**2 @ W)
    apart = mean - (x - b) / noise**2 @ W @ covariance
    each = (np.diag(covariance) + apart**2) / s**2 - 1 + np.log(s**2)
    return 0.5 * (np.sum(each, 1) - np.linalg.slogdet(covariance)[1])


def _vaes(rng, *rows):
    """Rows of (images, pixels, latents, kind of encoder: any, or nearly the best of its kind)."""
    for B, D, d, kind in rows:
        W, b = rng.normal(0, 0.6, (D, d)) + 0.5, rng.normal(0.5, 0.6, D)
        noise = rng.uniform(0.4, 1.2, D)
        noise[-1] = 0.1  # a pixel that is nearly free of noise
        precision = np.eye(d) + W.T / noise**2 @ W
        A = np.linalg.solve(precision, W.T / noise**2)
        a, s = -A @ b, 1 / np.sqrt(np.diag(precision))
        if kind == "any":
            A, a = A + rng.normal(0, 0.2, (d, D)), a + rng.normal(0.2, 0.3, d)
            s = s * rng.uniform(0.6, 1.7, d)
        x = b + 1.3 * rng.normal(size=(B, d)) @ W.T + 1.2 * noise * rng.normal(size=(B, D))
        yield x, W, b, noise, A, a, s


VAE_GAP = exercise(
    "21.5 · What the encoder costs",
    vae_gap,
    Part(
        "any encoder",
        3,
        lambda rng: _vaes(rng, (2, 4, 3, "any"), (3, 5, 2, "any"), (4, 2, 3, "any")),
    ),
    Part(
        "the best of its kind",
        1,
        lambda rng: _vaes(rng, (3, 3, 2, "best"), (2, 5, 3, "best")),
    ),
    section="5 · A bound, and how far below it lies",
    mistakes="""
    the least gap belongs to the best stds: those of the exact posterior are too wide for q
        _gap_of(1 / np.diag(precision), precision, log_det)
            -> _gap_of(np.diag(np.linalg.inv(precision)), precision, log_det)
    the least gap is that of the best encoder, and not that of the given stds
        _gap_of(1 / np.diag(precision), precision, log_det) -> _gap_of(s**2, precision, log_det)
    the best independent latents still miss how the latents depend on each other: it is not 0
        _gap_of(1 / np.diag(precision), precision, log_det) -> 0 * log_det
    that is the KL divergence the other way round: the encoder stands first
        _gap_of(1 / np.diag(precision), precision, log_det)
            -> 0.5 * (np.sum(np.log(np.diag(np.linalg.inv(precision)))) + log_det)
    the gap is a KL divergence in which the encoder stands first: yours is the other way round
        return log_p, log_p - said + price, -> return log_p, _other_way(mean, x, W, b, noise, s),
    the posterior knows the prior, too: its precision has an identity
        precision = np.eye(d) + W.T -> precision = W.T
    noise holds standard deviations, not variances
        return vae_gap(x, W, b, np.sqrt(noise), A, a, s)
    s holds standard deviations, not variances
        return vae_gap(x, W, b, noise, A, a, np.sqrt(s))
    pixels depend on each other through the latents: a diagonal covariance is not enough
        W @ W.T + np.diag(noise**2) -> np.diag(np.sum(W**2, 1) + noise**2)
    the latents vary, too: the pixels' variance is more than the noise
        W @ W.T + np.diag(noise**2) -> np.diag(noise**2)
    the latents are drawn: their spread adds to the error of the decoded mean
        + W**2 @ s**2 ->
    the bound has a price, the KL divergence of the encoder's distribution to N(0, I)
        said + price -> said
    the bound is log p(x | z) *less* the KL divergence to the prior
        said + price -> said - price
    the gap is log p(x) less the bound: yours is the bound
        log_p - said + price -> said - price
    the sign of the gap is wrong: the bound lies below
        log_p - said + price -> said - price - log_p
    the first number is log p(x) in nats, with its sign
        return log_p, -> return -log_p,
    the KL divergence of Gaussians has a ½
        price = 0.5 * -> price =
    """,
)


# --- 21.6 -----------------------------------------------------------------------------------
def cheapest(train, calls, copies, fixed, each, distance, limit, most, counts):
    which, seconds = [], []
    for N in counts:
        best, least = -1, np.inf
        for m, runs in enumerate(distance):
            error = np.std(runs, ddof=1) / np.sqrt(len(runs))
            batches = -(-N // (most // copies[m]))
            cost = train[m] + calls[m] * (batches * fixed[m] + N * copies[m] * each[m])
            if np.mean(runs) + 2 * error <= limit and cost < least:
                best, least = m, cost
        which.append(best)
        seconds.append(least)
    return np.array(which), np.array(seconds)


def _offers(rng, *rows):
    """Rows of (models, seeds, numbers of images, kind of the first model).

    Where it is not "good", it would be the cheapest but for its distances, and but for the second;
    where it is "cheap", it is the cheapest of all.
    """
    for M, S, counts, kind in rows:
        train = rng.uniform(20, 80, M)
        calls = rng.permutation([3, 50, 8, 1, 20, 12])
        if kind == "one error":  # far from the number of seeds
            calls = np.roll(calls, -int(np.flatnonzero(calls == 50)[0]))
        calls = calls[:M]
        copies = np.resize([2, 1, 2, 3, 1], M)
        fixed, each = rng.uniform(0.05, 0.2, M) / calls, rng.uniform(5e-3, 2e-2, M) / calls
        most, limit = 25 if M == 4 else 33, round(64 * number(rng, 1.2, 1.9)) / 64
        middle, width = rng.uniform(0.4, 0.6, M), rng.uniform(0.05, 0.12, M)
        middle[1] = 1.3  # the cheapest, and not good enough
        train[0] = 12 if kind == "one error" else 0.1 * train[0]  # far from the number of seeds
        for a in (train, fixed, each):
            a[1] *= 20 if kind == "cheap" else 0.05
        for a in (fixed, each):  # of good models, the first is the cheapest for a few images only
            a[0] *= 4 if kind == "good" else 0.1
        # Means and two standard errors, as parts of the limit.
        middle[0], width[0] = _KINDS[kind]
        if kind == "none":
            middle[:] = 1.1
        apart = rng.normal(size=(M, S))
        if kind == "just good":  # one run is far better than the others: the median is no mean
            apart[0] = rng.permutation([-1.0] + (S - 1) * [0.0])
        apart -= apart.mean(1, keepdims=True)
        # The run that is farthest from the mean is a good one: the worst may be below the limit.
        # In "narrow" it is the worst, and above the limit.
        far_above = apart.max(1) > -apart.min(1)
        apart *= np.where(far_above == (kind == "narrow"), 1, -1)[:, None]
        apart /= np.sqrt((apart**2).sum(1, keepdims=True) / (S - 1))
        distance = limit * (middle[:, None] + width[:, None] * np.sqrt(S) / 2 * apart)
        if kind == "diverged":
            distance[0, rng.integers(S)] = np.nan
        order = rng.permutation(M)
        columns = (a[order] for a in (train, calls, copies, fixed, each, distance))
        yield *columns, limit, most, np.array(counts)


_KINDS = {
    "good": (0.5, 0.1),
    "cheap": (0.5, 0.1),
    "just good": (0.6, 0.37),  # two standard deviations would be more than the limit
    "not quite": (0.7, 0.304),  # divided by √S and not √(S − 1), as if S were all
    "narrow": (0.75, 0.29),  # as if three seeds were all, but not with 1.96 standard errors
    "no bad run": (0.7, 0.32),  # every run is below the limit, but not with 1.96 standard errors
    "roomy": (0.5, 0.27),  # three standard errors fit in, and a standard deviation does not
    "exact": (1.0, 0.0),  # every run has the limit's distance, which is still good enough
    "one error": (0.78, 0.4),  # with one standard error
    "half": (0.88, 0.22),  # with an error that is divided by S, and not by its root
    "lucky": (0.95, 0.15),  # its mean alone is below the limit
    "diverged": (0.4, 0.05),
    "none": (1.1, 0.1),
}


CHEAPEST = exercise(
    "21.6 · Good enough, and cheap",
    cheapest,
    Part(
        "clear verdicts",
        2,
        lambda rng: _offers(
            rng,
            (3, 4, (7, 528, 30000), "good"),
            (5, 3, (50, 2500), "good"),
            (4, 3, (600,), "good"),
            (3, 5, (12, 900), "cheap"),
        ),
    ),
    Part(
        "near the limit",
        1,
        lambda rng: _offers(
            rng,
            (3, 4, (9, 5000), "just good"),
            (5, 3, (30, 700, 3001), "not quite"),
            (4, 3, (80, 4000), "one error"),
            (3, 5, (20, 1000), "half"),
            (4, 4, (15, 600), "exact"),
            (5, 5, (64, 9000), "lucky"),
            (3, 4, (40, 2000), "cheap"),
            (4, 3, (25, 1500), "narrow"),
            (4, 3, (35, 2500), "no bad run"),
            (3, 5, (45, 3500), "roomy"),
        ),
    ),
    Part(
        "runs that diverged, and no model at all",
        1,
        lambda rng: _offers(
            rng,
            (4, 3, (20, 800), "diverged"),
            (3, 4, (5, 90, 3000), "none"),
            (5, 4, (33, 6000), "good"),
            (4, 3, (70,), "cheap"),
        ),
    ),
    section="6 · Three maps from noise, and what a sample costs",
    mistakes="""
    a mean may be below the limit by luck: two of its standard errors must fit in, too
        np.mean(runs) + 2 * error <= limit -> np.mean(runs) <= limit
    two standard errors *more* than the mean must fit in
        np.mean(runs) + 2 * error <= limit -> np.mean(runs) - 2 * error <= limit
    the scatter of a mean is less than that of a single run, by the root of their number
        / np.sqrt(len(runs)) ->
    a standard error is divided by the root of the number of runs
        np.sqrt(len(runs)) -> len(runs)
    the mean was measured from the same few runs: divide by their number less 1
        ddof=1 -> ddof=0
    exactly two standard errors are asked, and no quantile of a distribution
        2 * error -> 1.96 * error
    a single run decides nothing: take the mean of all runs, and two standard errors of it
        np.mean(runs) + 2 * error <= limit -> np.max(runs) <= limit
    that is more than the mean and two of its standard errors
        2 * error -> 3 * error
    one standard error is less than what was asked
        2 * error -> error
    a model that diverged in one of its runs is not good enough
        np.std(runs, ddof=1) / np.sqrt(len(runs))
            -> np.nanstd(runs, ddof=1) / np.sqrt(np.sum(np.isfinite(runs)))
        np.mean(runs) + 2 -> np.nanmean(runs) + 2
    good enough means a *small* distance
        np.mean(runs) + 2 * error <= limit -> np.mean(runs) - 2 * error >= limit
    good enough comes first, and then the cost: yours has no limit
        np.mean(runs) + 2 * error <= limit and -> np.isfinite(np.mean(runs)) and
    the last batch is an evaluation like the others: round the number of batches up
        -(-N // (most // copies[m])) -> N // (most // copies[m])
    batches are whole: the fixed time is that of an evaluation, however few rows it has
        -(-N // (most // copies[m])) -> N / (most // copies[m])
    an image takes several rows of a batch
        -(-N // (most // copies[m])) -> -(-N // most)
    rows of one image stay in one batch: a batch has room for a whole number of images
        -(-N // (most // copies[m])) -> -(-N * copies[m] // most)
    each row of an image costs its time
        N * copies[m] * each[m] -> N * each[m]
    the last batch has fewer rows, and does not pay for empty ones
        N * copies[m] * each[m] -> batches * (most // copies[m]) * copies[m] * each[m]
    a batch needs several evaluations, one after the other
        calls[m] * -> 1 *
    every evaluation has its fixed time, not only the first one
        calls[m] * (batches * fixed[m] + N * copies[m] * each[m])
            -> (batches * fixed[m] + calls[m] * N * copies[m] * each[m])
    the fixed time is that of each batch
        batches * fixed[m] -> fixed[m]
    the training is paid for, too
        train[m] + calls -> calls
    the training is paid for once, not for each image
        train[m] + calls -> N * train[m] + calls
    """,
)


# --- 21.7 -----------------------------------------------------------------------------------
def one_code(x, codebook, std, start, move):
    B, L, D = x.shape
    K = len(codebook)
    fit = -0.5 * np.sum((x[:, :, None] - codebook) ** 2, -1) / std**2  # [B, L, K]
    fit = fit - 0.5 * D * np.log(2 * np.pi * std**2)
    nats, near, best = (np.zeros(B) for _ in range(3))
    with np.errstate(divide="ignore"):
        first, then = np.log(start), np.log(move)
    for b in range(B):
        z = np.argmin(np.sum((x[b, :, None] - codebook) ** 2, -1), -1)
        near[b] = -first[z[0]] - np.sum(then[z[:-1], z[1:]]) - np.sum(fit[b, np.arange(L), z])
        forward = first + fit[b, 0]
        top = first + fit[b, 0]
        for i in range(1, L):
            forward = _log_sum([forward[j] + then[j] for j in range(K)]) + fit[b, i]
            top = np.max([top[j] + then[j] for j in range(K)], 0) + fit[b, i]
        nats[b] = -_log_sum(forward)
        best[b] = -np.max(top)
    return nats, near - nats, best - nats


def _log_sum(rows):
    """log Σ exp over the first axis; −∞ where all are."""
    rows = np.asarray(rows)
    top = np.where(np.isfinite(rows.max(0)), rows.max(0), 0)
    with np.errstate(divide="ignore"):
        return top + np.log(np.sum(np.exp(rows - top), 0))


def _independent(start, move, L):
    """Each place's own distribution of codes, as if they did not depend on each other: [L, K]."""
    rows = [start]
    for _ in range(L - 1):
        rows.append(rows[-1] @ move)
    return np.array(rows)


def _greedy(x, codebook, std, start, move):
    """The excess of the code that is chosen place by place, each given the one before it."""
    nats, _, _ = one_code(x, codebook, std, start, move)
    D, paid = x.shape[2], np.zeros(len(x))
    fit = -0.5 * np.sum((x[:, :, None] - codebook) ** 2, -1) / std**2
    fit = fit - 0.5 * D * np.log(2 * np.pi * std**2)
    for b in range(len(x)):
        row = np.log(start)
        for here in fit[b]:
            z = np.argmax(row + here)
            paid[b] -= (row + here)[z]
            row = np.log(move[z])
    return paid - nats


def _codes(rng, *rows):
    """Rows of (images, places, numbers of a place, codes, kind)."""
    for B, L, D, K, kind in rows:
        # Elsewhere with more doubt: float32 cannot tell an excess of a millionth of the nats.
        codebook = rng.normal(0.3, 0.8 if kind == "any" else 0.4, (K, D))
        std = number(rng, 0.6, 0.8)
        start, move = rng.dirichlet(np.full(K, 1.5)), rng.dirichlet(np.full(K, 0.6), K) + 0.01
        if kind == "impossible":
            start[0] = 0
            move[np.arange(K), (np.arange(K) + 1) % K] = 0
        start, move = start / start.sum(), move / move.sum(1, keepdims=True)
        z = rng.integers(K, size=(B, L))
        x = codebook[z] + std * rng.normal(size=(B, L, D))
        if kind == "impossible":
            x[0, 0] = codebook[0]  # the nearest code is impossible
            z[-1] = 1
            for i in range(1, L):  # and here it is possible everywhere
                z[-1, i] = rng.choice(K, p=move[z[-1, i - 1]])
            x[-1] = codebook[z[-1]]
        if kind == "long":
            std = 0.3 * std
        yield x, codebook, std, start, move


ONE_CODE = exercise(
    "21.7 · One code in the place of all",
    one_code,
    Part(
        "few places",
        2,
        lambda rng: _codes(rng, (2, 4, 2, 3, "any"), (3, 3, 1, 4, "any"), (4, 2, 3, 2, "any")),
    ),
    Part(
        "codes that are impossible",
        1,
        lambda rng: _codes(rng, (3, 4, 2, 3, "impossible"), (2, 3, 3, 4, "impossible")),
    ),
    Part("many places", 2, lambda rng: _codes(rng, (3, 60, 2, 4, "long"), (2, 90, 3, 3, "long"))),
    section="5 · A bound, and how far below it lies",
    mistakes="""
    codes depend on the one before them: a mean over the codes of each place is not the sum
        nats[b] = -_log_sum(forward)
            -> nats[b] = -np.sum(_log_sum((np.log(_independent(start, move, L)) + fit[b]).T))
    that code is chosen place by place: one that looks worse may allow a better next one
        best - nats -> _greedy(x, codebook, std, start, move)
    the best code is not the nearest one: it must also be probable
        best - nats -> near - nats
    the nearest code is chosen without regard to its probability
        near - nats, best - nats -> best - nats, best - nats
    the second and the third are exchanged
        near - nats, best - nats -> best - nats, near - nats
    you return what the codes cost, and not how much more than the exact number
        return nats, near - nats, best - nats -> return nats, near, best
    the nearest code must be told, too: its own −log p is missing
        near[b] = -first[z[0]] - np.sum(then[z[:-1], z[1:]]) - -> near[b] = -
    row i of move belongs to the earlier code: yours is transposed
        return one_code(x, codebook, std, start, move.T)
    the first code has probabilities of its own
        return one_code(x, codebook, std, np.full(len(start), 1 / len(start)), move)
    the density of a Gaussian has a constant, and std is in it, in each of the D numbers
        fit = fit - 0.5 * D * np.log(2 * np.pi * std**2) ->
    a place has D numbers: the constant counts for each of them
        0.5 * D * np.log -> 0.5 * np.log
    std is a standard deviation: its square divides
        / std**2 -> / std
    the first number is −log p(x)
        return nats, -> return -nats,
    nats, not bits
        return nats, near - nats, best - nats
            -> return nats / np.log(2), (near - nats) / np.log(2), (best - nats) / np.log(2)
    the signs of the differences are wrong: one code costs more than all together
        near - nats, best - nats -> nats - near, nats - best
    """,
)


# --- 21.8 -----------------------------------------------------------------------------------
CASES = Written("21.8", "Which model, and when none", 3, section="8 · When not to generate")
