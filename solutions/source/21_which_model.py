# ---
# jupyter:
#   jupytext:
#     formats: ipynb,source//py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 21 · Which generative model?: exercises
#
# They belong to [chapter 21](../notebooks/21_which_model.ipynb). Write each function where it says
# `raise NotImplementedError`, then run the `check` below it: it tells you at once whether the
# function is right, and if not, what is wrong. Check as often as you like.
#
# Lengths of codes and prices are in nats, unless an exercise says bits.
#
# Each exercise is graded alone. A function may use JAX, NumPy and other packages, and functions and
# constants of your own in other cells. It may not use the function of another exercise; of
# `diffusion_course` it may use only what the exercise's cells import.

# %%
import importlib.util

if importlib.util.find_spec("diffusion_course") is None:  # on Colab; keeps Colab's own jax
    print("installing diffusion-course")
    # %pip install --quiet --no-deps diffusion-course
from diffusion_course import setup

course = setup()

# %% role="setup"
import jax.numpy as jnp
import numpy as np
from scipy.special import expit, log_softmax, logsumexp, xlogy
from scipy.stats import norm

from diffusion_course.grading import check

# %% [markdown]
# ## 21.1
# *warm-up · 15 minutes*
#
# A discriminator gives logits $d$: it says "data" with the probability $D = \operatorname{sigmoid}(d)$. Its loss is a
# mean cross-entropy over the data, plus one over the samples. The label of a sample is 0. The label of the data is
# not 1 but $1 - \text{smooth}$, so that the logits stay small (Salimans et al. 2016, section 3.4, arXiv:1606.03498).
#
# The generator's loss is the mean of $\log(1 - D)$ over its samples if `game` is `"saturating"`, and of $-\log D$ if
# it is `"non-saturating"`. Return the discriminator's loss, the generator's, and the slopes of the
# generator's loss by its logits, without automatic differentiation. Logits may be as large as $\pm 1000$.
#
# **Expected.** A tuple: two numbers, and an array `[M]`. The slopes are never positive.
#
# <details><summary>Hint</summary>
# The logarithm of 1 − sigmoid(d) is −softplus(d), which is −np.logaddexp(0, d) for any d. The slope of softplus is
# the sigmoid, or expit, which is imported above. What does 1 − sigmoid(d) become if you change the sign of d?
# </details>


# %% exercise="21.1" role="answer"
def pay(real, fake, smooth, game):
    """Logits real [N] and fake [M], the number smooth, game -> two losses, the slopes [M]."""
    ### BEGIN SOLUTION return a tuple: the losses of both players, and the slopes [M]
    judge = np.mean(np.logaddexp(0, -real) + smooth * real) + np.mean(np.logaddexp(0, fake))
    sign = 1 if game == "saturating" else -1
    loss = -sign * np.mean(np.logaddexp(0, sign * fake))
    return judge, loss, -expit(sign * fake) / len(fake)
    ### END SOLUTION


# %% [markdown]
# Look at a sample that the discriminator is sure about, with $d = -1000$. In the saturating game its slope is 0, and
# the generator learns nothing from it. In the other game the slope is as large as it can be.

# %% [markdown]
# ## 21.2
# *derive and check · 20 minutes*
#
# Images are one of $K$ symbols. Data have the probabilities $p$, and samples $q$. A judge is shown an example that is
# from the data with probability `share`, and else a sample. For each row, find
#
# 1. the logits of the best judge, for every symbol;
# 2. its mean cross-entropy, the least that any judge can reach;
# 3. how often it is right, if it says "data" where that is the likelier of the two.
#
# A symbol that only one of them has gives a logit of $\pm\infty$. A symbol that neither has gets the logit 0. Some
# probabilities are tiny, but not 0.
#
# **Expected.** A tuple of three arrays: `[B, K]`, `[B]` and `[B]`, the second in nats.
#
# <details><summary>Hint</summary>
# How probable is it that the judge is shown symbol k *and* that it is from the data? By Bayes' rule this gives D.
# And xlogy(0, 0), which is imported above, is 0.
# </details>


# %% exercise="21.2" role="answer"
def best_judge(p, q, share):
    """p and q [B, K], share [B] -> logits [B, K], cross-entropy [B], how often right [B]."""
    ### BEGIN SOLUTION return a tuple of three arrays: [B, K], [B] and [B]
    data, made = share[:, None] * p, (1 - share)[:, None] * q
    shown = data + made
    with np.errstate(divide="ignore", invalid="ignore"):
        logits = np.where(shown > 0, np.log(data) - np.log(made), 0.0)
    loss = np.sum(xlogy(shown, shown) - xlogy(data, data) - xlogy(made, made), axis=1)
    return logits, loss, np.sum(np.maximum(data, made), axis=1)
    ### END SOLUTION


# %% [markdown]
# At `share` = ½, $\log 2$ minus the second number is the Jensen–Shannon divergence of $p$ and $q$, and twice the
# third minus 1 is their total variation. No other judge does better. So any classifier of data against samples, judged
# on examples that it has not seen, gives lower bounds on both, up to the noise of its test. But a judge that is shown
# 90 % samples and is right in 90 % of all cases may have learned nothing.

# %% [markdown]
# ## 21.3
# *implement · 20 minutes*
#
# An autoregressive model has read a string of tokens. Its `logits[:, i]` are about the *next* token, `x[:, i + 1]`.
# Those of the first token are `start`, the same for all strings, and the last logits are about a token that is not
# there.
#
# The first `prompt` tokens of a string were given, and the model drew the others, at a temperature that divides the
# logits. What were the drawn tokens' bits? Take the mean of $-\log_2$ of the probabilities with which they were
# drawn. Logits may be in the hundreds. Those of some letters are $-\infty$: such a letter can stand in a prompt. If
# one was drawn all the same, the string's bits are $\infty$.
#
# **Expected.** An array `[B]`: bits per drawn token. Each string has at least one.
#
# <details><summary>Hint</summary>
# Put start before the logits, and drop the last ones. Then use log_softmax, which is imported above. And 0·∞ is no
# number: choose with where instead of multiplying by a mask.
# </details>


# %% exercise="21.3" role="answer"
def after_prompt(logits, start, x, prompt, temperature):
    """logits [B, L, K], start [K], x [B, L], prompt [B], temperature -> bits per drawn token, [B]."""
    ### BEGIN SOLUTION return the bits, an array [B]
    x, prompt = np.asarray(x), np.asarray(prompt)
    B, L, K = logits.shape
    first = np.broadcast_to(start, (B, 1, K))
    about = np.concatenate([first, logits[:, :-1]], axis=1) / temperature
    log_p = np.take_along_axis(log_softmax(about, axis=-1), x[..., None], axis=-1)[..., 0]
    drawn = np.arange(L) >= prompt[:, None]
    return -np.where(drawn, log_p, 0.0).sum(axis=1) / (L - prompt) / np.log(2)
    ### END SOLUTION


# %% [markdown]
# ## 21.4
# *debug this · 25 minutes*
#
# A normalising flow of affine couplings. A coupling keeps the coordinates where its mask is 1. A small network reads
# them, and gives log-scales and shifts for the others. From data to noise the couplings are applied in their
# order. The function returns the log-density of `x`. It also returns the draws that belong to the noise `z`. A
# temperature narrows the noise of the draws, and the density is meant to be that of these draws. Run the cells.


# %%
def broken_flow(x, z, masks, weights, biases, temperature):
    def coupling(i, state):
        h = jnp.tanh((masks[i] * state) @ weights[i] + biases[i])
        return jnp.split(h, 2, axis=1)

    log_det = 0.0
    for i, mask in enumerate(masks):
        log_scale, shift = coupling(i, x)
        x = jnp.where(mask == 1, x, x * jnp.exp(log_scale) + shift)
        log_det = log_det + log_scale.sum(axis=1)
    noise = x / temperature
    log_p = -0.5 * (noise**2 + jnp.log(2 * jnp.pi)).sum(axis=1) + log_det
    z = z * temperature
    for i, mask in enumerate(masks):
        log_scale, shift = coupling(i, z)
        z = jnp.where(mask == 1, z, (z - shift) * jnp.exp(-log_scale))
    return log_p, z


# %%
rng = np.random.default_rng(1)
masks = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
net = masks, rng.normal(0, 0.9, (3, 2, 4)), rng.normal(0, 0.5, (3, 4))
side = np.arange(-12, 12, 0.05)
grid = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
z, found = rng.normal(size=(20_000, 2)), {}
for T in (1.0, 0.5):
    log_p, draws = broken_flow(grid, z, *net, T)
    mass = np.exp(log_p) * 0.05**2
    total, mean, drawn = mass.sum(), (mass * grid[:, 0]).sum() / mass.sum(), draws[:, 0].mean()
    print(f"T = {T}: the density adds up to {total:.2f}. x₀: mean {mean:.2f}, of draws {drawn:.2f}")
    # The grid's sum errs by less than 1 %; a mean of 20,000 draws has an error of about 0.01.
    assert abs(total - 1) > 0.1 and abs(mean - drawn) > 0.1

# %% [markdown]
# There are **three** bugs. One of them has no effect at temperature 1, and another one has none with a single
# coupling. Write the function as it should be.
#
# **Expected.** A tuple: the log-density of `x` in nats, `[B]`, and the draws, `[N, D]`.
#
# <details><summary>Hint</summary>
# Which coordinates change a volume? Which coupling is undone first? And if noise gets narrower, what happens to its
# density?
# </details>


# %% exercise="21.4" role="answer"
def flow(x, z, masks, weights, biases, temperature):
    """x [B, D], z [N, D], masks [n, D], weights [n, D, 2D], biases [n, 2D], number -> [B], [N, D]."""
    ### BEGIN SOLUTION return a tuple: the log-density [B] and the draws [N, D]

    def own(layer, given):
        raw = np.tanh((masks[layer] * given) @ weights[layer] + biases[layer])
        return np.split(np.tile(1 - masks[layer], 2) * raw, 2, axis=1)

    code, log_det = x, 0.0
    for layer in range(len(masks)):
        stretch, move = own(layer, code)
        code, log_det = code * np.exp(stretch) + move, log_det + stretch.sum(axis=1)
    draws = temperature * z
    for layer in range(len(masks))[::-1]:
        stretch, move = own(layer, draws)
        draws = (draws - move) * np.exp(-stretch)
    return log_det + norm.logpdf(code, scale=temperature).sum(axis=1), draws
    ### END SOLUTION


# %% [markdown]
# ## 21.5
# *derive and check · 30 minutes*
#
# A VAE in which everything is linear, so that its bound can be compared with the truth. The latents are
# $z \sim N(0, I)$. The decoder makes $x = W z + b + \text{noise}\cdot\varepsilon$, with a standard deviation for each
# pixel. The encoder says $q(z \mid x) = N(A x + a, \operatorname{diag}(s^2))$. Find
#
# 1. $\log p(x)$, exactly;
# 2. the gap between it and the evidence lower bound of this encoder,
#    $\mathbb E_q \log p(x \mid z) - \mathrm{KL}(q \,\|\, N(0, I))$;
# 3. the least gap that *any* encoder of independent Gaussian latents can have. It is the same for all $x$.
#
# **Expected.** A tuple: two arrays `[B]` and a number, in nats. A gap is never negative.
#
# <details><summary>Hint</summary>
# The gap is KL(q‖p(z|x)). The exact posterior is a Gaussian with the precision I + Wᵀ·diag(1/noise²)·W. Of all
# diagonal covariances, which one makes the KL divergence least? Take the derivative by one variance.
# </details>


# %% exercise="21.5" role="answer"
def vae_gap(x, W, b, noise, A, a, s):
    """x [B, D], W [D, d], b and noise [D], A [d, D], a and s [d] -> log p(x) and gap [B], least gap."""
    ### BEGIN SOLUTION return a tuple: two arrays [B] and a number
    scaled = W.T / noise**2
    precision = np.eye(len(s)) + scaled @ W
    posterior = (x - b) @ scaled.T @ np.linalg.inv(precision)
    own = np.diag(precision)
    least = (np.log(own).sum() - np.linalg.slogdet(precision)[1]) / 2
    off = x @ A.T + a - posterior
    apart = np.sum(off @ precision * off, axis=1)
    gap = (apart + np.sum(own * s**2 - 1 - np.log(own * s**2))) / 2 + least
    # At the posterior's mean: log p(x) = log p(x, z) − log p(z | x).
    error = (x - b - posterior @ W.T) / noise
    joint = np.sum(error**2, axis=1) + np.sum(posterior**2, axis=1)
    log_norm = np.sum(np.log(2 * np.pi * noise**2)) + np.linalg.slogdet(precision)[1]
    return -(joint + log_norm) / 2, gap, least
    ### END SOLUTION


# %% [markdown]
# So the bits of a VAE are those of decoder *and* encoder, and a bad encoder makes a good decoder look bad. In this
# linear model a rotation of the latents leaves $p(x)$ as it is, and some rotation makes the precision diagonal: then the
# least gap is 0. With a network as decoder, the posterior's precision is another one for each $x$, and no rotation does
# this for all of them.

# %% [markdown]
# ## 21.6
# *implement · 25 minutes*
#
# Which model should make $N$ images? For a batch, model $m$ is evaluated `calls[m]` times, one evaluation after the
# other. In each of them an image takes `copies[m]` rows (2 with guidance). All rows of an image stand in the same
# batch, of at most `most` rows. An evaluation takes `fixed[m]` seconds, and `each[m]` more for each row. The last
# batch may be smaller. Before all this, training took `train[m]` seconds.
#
# `distance[m]` holds the Fréchet distances of $S$ runs with different seeds; NaN means that a run diverged. A model is
# good enough if no run diverged, and if their mean plus two standard errors of the mean is at most `limit`. For
# each $N$ in `counts`, find the good model with the least total time.
#
# **Expected.** A tuple: the index of the model `[C]`, whole numbers, and the seconds `[C]`. Where no model is good
# enough, they are −1 and $\infty$.
#
# <details><summary>Hint</summary>
# How many images fit into a batch, and how many batches are needed? The standard error of a mean is the standard
# deviation, with S − 1 in its denominator, divided by √S.
# </details>


# %% exercise="21.6" role="answer"
def cheapest(train, calls, copies, fixed, each, distance, limit, most, counts):
    """Six of models: five [M], distance [M, S]; two numbers, counts [C] -> models, seconds [C]."""
    ### BEGIN SOLUTION return a tuple: indices [C], whole numbers, and seconds [C]
    S = distance.shape[1]
    good = distance.mean(axis=1) + 2 * distance.std(axis=1, ddof=1) / np.sqrt(S) <= limit
    calls, copies, counts = map(np.asarray, (calls, copies, counts))
    N = counts[:, None]
    batches = np.ceil(N / (most // copies))
    seconds = train + calls * (batches * fixed + N * copies * each)
    seconds = np.where(good, seconds, np.inf)
    return np.where(good.any(), seconds.argmin(axis=1), -1), seconds.min(axis=1)
    ### END SOLUTION


# %% [markdown]
# ## 21.7
# *stretch · 40 minutes*
#
# An image's probability under a model of codes is a sum over all codes, too many to list. Here is one to be
# found. An image has $L$ places with $D$ numbers each. The first code has the probabilities `start`; `move[i, j]` is
# the probability of the code $j$ after $i$; some are 0. A place with the code $k$ is
# $N(\text{codebook}_k, \text{std}^2 I)$. Find
#
# 1. $-\log p(x)$, exactly;
# 2. how much more it costs to tell only one code and the image given this code, $-\log p(z) - \log p(x \mid z)$,
#    for the code $z$ of the nearest entries, place by place;
# 3. the same for the $z$ with the least cost.
#
# **Expected.** A tuple of three arrays `[B]`, in nats. The second is $\infty$ where the nearest entries are an
# impossible code. The third is never larger than the second, and neither is negative.
#
# <details><summary>Hint</summary>
# Go from place to place. Keep K numbers: the log-density of the places so far *and* of this place's code. One sum over
# the code before gives the next K numbers. For the best code, a maximum takes the place of the sum.
# </details>


# %% exercise="21.7" role="answer"
def one_code(x, codebook, std, start, move):
    """x [B, L, D], codebook [K, D], std, start [K], move [K, K] -> −log p(x), two excesses, [B] each."""
    ### BEGIN SOLUTION return a tuple of three arrays [B]
    far = np.sum((x[:, :, None] - codebook) ** 2, axis=-1)  # [B, L, K]
    fit = -far / (2 * std**2) - x.shape[-1] * np.log(2 * np.pi * std**2) / 2
    nearest = far.argmin(axis=-1)
    with np.errstate(divide="ignore"):
        log_start, log_move = np.log(start), np.log(move)
    every = best = log_start + fit[:, 0]  # [B, K]
    for here in np.moveaxis(fit, 1, 0)[1:]:
        every = logsumexp(every[:, :, None] + log_move, axis=1) + here
        best = np.max(best[:, :, None] + log_move, axis=1) + here
    prior = log_start[nearest[:, 0]] + log_move[nearest[:, :-1], nearest[:, 1:]].sum(axis=1)
    told = prior + np.take_along_axis(fit, nearest[..., None], axis=-1).sum(axis=(1, 2))
    log_p = logsumexp(every, axis=1)
    return -log_p, log_p - told, log_p - best.max(axis=1)
    ### END SOLUTION


# %% [markdown]
# The excess is $-\log p(z \mid x)$: it is small if the image leaves no doubt about its code. With doubt, the bits of the
# nearest code are more than those of the model.

# %% [markdown]
# ## 21.8
# *written · 20 minutes*
#
# Four models, trained for the same time (numbers invented). The distance is a mean of five seeds with its standard
# error; unseen data have 0.6.
#
# | | distance | recall | bits per dimension | 100 samples |
# |---|---|---|---|---|
# | GAN | 1.5 ± 0.3 | 0.41 | none | 0.005 s |
# | few-step, 2 evaluations | 1.6 ± 0.1 | 0.80 | none | 0.03 s |
# | diffusion | 1.2 ± 0.1 | 0.88 | at most 1.95 | 0.6 s |
# | autoregressive | 1.5 ± 0.1 | 0.87 | 1.79 | 2 s |
#
# 1. A game shows a new picture within 10 ms at every door. Players open hundreds.
# 2. An observatory stores a million pictures without loss, in few bytes.
# 3. A school has 40 photographs of each of 30 plants, and wants 1000 more of each to train a classifier.
#
# For each: which model would you choose, if any, and why? What else would you measure first?
# About 50 words. *(1 point each)*
#
# <details><summary>Hint</summary>
# Is the time of one picture a hundredth of that of 100? Which likelihood becomes a file? What must a generated
# plant know that the photographs do not show?
# </details>

# %% [markdown] exercise="21.8" role="written"
# ### BEGIN SOLUTION
# 1. Few-step: its distance cannot be told from the GAN's, and with a recall of 0.41 the GAN would soon repeat itself.
#    Many evaluations are probably too slow. Measure the time of *one* picture on the players' machines.
# 2. Autoregressive: an arithmetic coder comes within two bits per picture of its likelihood. Distance does not matter
#    here. Diffusion's number is a bound, and worse; GAN and few-step have no code. Measure the time to *decode*, and
#    the bits of an ordinary compressor.
# 3. None at first. A model of these photographs knows nothing about plants that they do not show; it may copy them or
#    mix classes up. Augment, or use features of a pretrained network. Measure accuracy on unseen *photographs*.
#
# *One point each. The first needs recall or the error bars, and the latency of one picture; the second the likelihood
# as length of a file, and decoding time or an ordinary compressor; the third a baseline without generation, and
# accuracy on unseen photographs. Another choice with a measured reason counts, too.*
# ### END SOLUTION

# %% [markdown]
# That is all of chapter 21. You have paid both players of a game and found its best judge, counted the bits behind a
# prompt, mended a flow, measured what an encoder costs, chosen a model by quality and time, and summed over
# all codes of an image. Chapter 22 makes training faster with many devices.
