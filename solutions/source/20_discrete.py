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
# # 20 · Discrete diffusion: exercises
#
# They belong to [chapter 20](../notebooks/20_discrete.ipynb). Write each function where it says
# `raise NotImplementedError`, then run the `check` below it: it tells you at once whether the
# function is right, and if not, what is wrong. Check as often as you like.
#
# Strings are whole numbers `[B, L]`: the letters are $0, \dots, K-1$, and the mask is $K$. The time $s$ is earlier
# than $t$, so it is nearer to the data. A letter is still itself at time $t$ with probability $\alpha_t$. To lift a
# mask is to replace it by a letter.
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
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_course.grading import check

# %% [markdown]
# ## 20.1
# *warm-up · 15 minutes*
#
# The chapter has a chain that masks letters, and a chain that replaces them by other letters. Now a chain does
# both. In step $i$, a letter is forgotten with probability $\beta_i$. With probability `share` a forgotten letter
# becomes the mask. Otherwise it becomes one of the $K$ letters, all with equal probability, its own included. A mask
# stays a mask.
#
# Write down the matrix of all the steps together. No loop is needed.
#
# **Expected.** An array `[K + 1, K + 1]`. Row $i$ belongs to the state before the first step, and adds up to 1. The
# mask comes last.
#
# <details><summary>Hint</summary>
# Two probabilities are enough: that a letter has never been forgotten, and that it has never become the mask.
# Each is a product over the steps.
# </details>


# %% exercise="20.1" role="answer"
def forget(betas, share, K):
    """betas [N], the number share in [0, 1], a whole number K -> the matrix, [K + 1, K + 1]."""
    ### BEGIN SOLUTION return the matrix, an array [K + 1, K + 1]
    kept = np.prod(1 - betas)
    letter = np.prod(1 - betas * share)  # it is a letter still, the same or another
    Q = np.zeros((K + 1, K + 1))
    Q[:K, :K] = kept * np.eye(K) + (letter - kept) / K
    Q[:K, K] = 1 - letter
    Q[K, K] = 1
    return Q
    ### END SOLUTION


# %% [markdown]
# ## 20.2
# *implement · 25 minutes*
#
# Take equation (2) to any chain. A chain has $S$ states, and is given by two matrices, whose rows belong to the earlier
# state: `Q_s[k, j]` is $q(x_s = j \mid x_0 = k)$, and `Q_ts[j, i]` is $q(x_t = i \mid x_s = j)$. The first $K$ states
# are the letters; $S$ may be $K$ or more. A network says of each token that $x_0$ is the letter $k$ with probability
# `p0[..., k]`. Find, for each token,
#
# $$p(x_s \mid x_t) = \sum_k p_0(k)\,q(x_s \mid x_t, x_0 = k).$$
#
# Some letters $k$ cannot have become $x_t$, whatever the network says. Leave them out, and scale the probabilities of
# the others so that they add up to 1.
#
# **Expected.** An array `[B, L, S]`, which adds up to 1 over its last axis. In a masked chain, a letter stays itself.
#
# <details><summary>Hint</summary>
# By Bayes' rule, q(x_s = j | x_t, x_0 = k) = Q_s[k, j]·Q_ts[j, x_t]/q(x_t | x_0 = k). The denominator depends on k:
# to insert the network's mean into Bayes' rule gives another distribution. Rows of a transposed matrix are its columns.
# </details>


# %% exercise="20.2" role="answer"
def step_back(x, p0, Q_s, Q_ts):
    """x [B, L], p0 [B, L, K], Q_s and Q_ts [S, S] -> the probabilities of x_s, [B, L, S]."""
    ### BEGIN SOLUTION return the probabilities, an array [B, L, S]
    K = p0.shape[-1]
    reach = (Q_s @ Q_ts).T[x][..., :K]  # q(x_t | x_0 = k)
    p0 = np.where(reach > 0, p0, 0.0)
    p0 = p0 / p0.sum(-1, keepdims=True)
    return (p0 / np.where(reach > 0, reach, 1.0) @ Q_s[:K]) * Q_ts.T[x]
    ### END SOLUTION


# %% [markdown]
# ## 20.3
# *derive and check · 25 minutes*
#
# In masked diffusion, all letters have the same pace: one $\alpha$. Now each letter has its own: the letter $k$ is still
# there at time $t$ with probability $\alpha_t(k)$. Then rare letters can be lifted first, for example, and the paces can
# be learned (Shi et al. 2024, arXiv:2406.04329).
#
# For each step from $t$ back to $s$, the bound has a term $KL(q(x_s \mid x_t, x_0)\,\|\,p(x_s \mid x_t))$. Compute it,
# token by token. As in exercise 20.2, $p(x_s \mid x_t)$ is the mean of the posteriors over the network's letters.
#
# **Expected.** An array `[B, L]` in nats. It is 0 where $x_t$ is a letter. With equal paces it is
# $\frac{\alpha_s - \alpha_t}{1 - \alpha_t}\cdot(-\log p(x_0))$, the masked loss. It is finite when a letter pauses
# ($\alpha_s = \alpha_t$), and in the last step, where all $\alpha_s$ are 1.
#
# <details><summary>Hint</summary>
# A mask whose letter is k is lifted with probability r(k). Under the data the mask has two futures: it becomes x_0, or
# it stays. What is the model's probability of each of the two? And 0·log 0 is 0.
# </details>


# %% exercise="20.3" role="answer"
def own_pace(log_p, x0, x, alpha_t, alpha_s):
    """log_p [B, L, K], x0 and x = x_t [B, L], alpha_t and alpha_s [K] -> the term, nats [B, L]."""
    ### BEGIN SOLUTION return the term of each token, an array [B, L]
    log_p, x0, x = map(np.asarray, (log_p, x0, x))
    r = (alpha_s - alpha_t) / (1 - alpha_t)  # of lifting a mask
    nll = -np.take_along_axis(log_p, x0[..., None], axis=-1)[..., 0]
    true, said = 1 - r[x0], 1 - (np.exp(log_p) * r).sum(-1)  # that it stays
    ratio = np.where(true > 0, true, 1.0) / np.where(true > 0, said, 1.0)
    return np.where(x == log_p.shape[-1], r[x0] * nll + true * np.log(ratio), 0.0)
    ### END SOLUTION


# %% [markdown]
# Suppose that two letters are equally probable, and that the sampler lifts one of them early and the other one late.
# If a mask is still there near the end of sampling, its letter is probably the late one. To know this, the network
# needs the time. With equal paces it does not need it.

# %% [markdown]
# ## 20.4
# *derive and check · 20 minutes*
#
# A masked sampler starts from $L$ masks. Its table $\alpha_0 = 0 \le \alpha_1 \le \dots \le \alpha_T = 1$ runs from
# noise to data. In each step it first draws which masks are lifted. It evaluates the network only if there are any, and
# draws all their letters at once, independently of each other. Find
#
# 1. the expected number of evaluations;
# 2. the expected number of tokens that are drawn in company: in the same step as at least one other;
# 3. the probability that no token is in company. Then the sampler is exact if the network is.
#
# **Expected.** An array of three numbers. For one step and $L \ge 2$ they are 1, $L$ and 0.
#
# <details><summary>Hint</summary>
# The tokens are lifted at times that are independent of each other. What is the probability that a given token is
# lifted in step i? For 3, multiply the polynomials 1 + d_i·z of all the steps: what does the coefficient of z^L count?
# </details>


# %% exercise="20.4" role="answer"
def together(alpha, L):
    """alpha [T + 1], a whole number L -> evaluations, tokens in company, chance of none, [3]."""
    ### BEGIN SOLUTION return three numbers in an array
    d = np.diff(alpha)
    ways = np.ones(1)
    for step in d:
        ways = np.convolve(ways, [1, step])
    alone = ways[L] if len(ways) > L else 0.0
    for n in range(2, L + 1):
        alone = n * alone
    return np.array([np.sum(1 - (1 - d) ** L), np.sum(L * d * (1 - (1 - d) ** (L - 1))), alone])
    ### END SOLUTION


# %% [markdown]
# ## 20.5
# *debug this · 20 minutes*
#
# The chapter's `any_order_loss` draws the number of masks, $m$, for each string. Its weight is $L/m$. Now the strings
# have different lengths, and the canvas has $L$ places. Behind the end of a string, `x0` holds the letter 0 and `x` holds
# masks. Both mean nothing there. The loss should still be each string's own bound, averaged over the batch.
#
# In the test language all letters of a string are the same. So the entropy of a string is $\log 3$, whatever its
# length. The network is exact: it knows the letter if it sees one, and else all three are equally probable. Run the
# cells.


# %%
def broken_loss(log_p, x0, x, lengths):
    L = x.shape[1]
    nll = -jnp.take_along_axis(log_p, x0[..., None], axis=-1)[..., 0]
    masked = x == log_p.shape[-1]
    return L * jnp.where(masked, nll, 0.0).sum() / masked.sum()


# %%
rng, B, L = np.random.default_rng(0), 4000, 6
ratio = {}
for least in (6, 2):
    lengths = rng.integers(least, 6, B, endpoint=True)
    inside = np.arange(L) < lengths[:, None]
    x0 = np.where(inside, rng.integers(3, size=(B, 1)), 0)
    m = rng.integers(1, lengths, endpoint=True)  # masks: the m places that get the lowest numbers
    lowest = np.where(inside, rng.uniform(size=(B, L)), 2.0).argsort(1).argsort(1) < m[:, None]
    x = np.where(lowest | ~inside, 3, x0)
    unknown = (m == lengths)[:, None] | ~inside  # no letter is seen, or there is none
    log_p = np.log(np.where(unknown[..., None], 1 / 3, np.maximum(np.eye(3)[x0], 1e-30)))
    ratio[least] = broken_loss(log_p, x0, x, lengths) / np.log(3)
    print(f"lengths from {least} to 6: the loss is {ratio[least]:.2f} times the entropy")
# The mean of 4000 strings has a standard error of less than 4 %.
assert abs(ratio[6] - 1) > 0.2 and abs(ratio[2] - 1) > 0.2

# %% [markdown]
# There are **three** bugs. Two of them have no effect on strings that fill the canvas, and the third has none on a batch
# of one string. Write the loss as it should be. Every string has at least one mask.
#
# **Expected.** A number: the mean over the batch, in nats per string.
#
# <details><summary>Hint</summary>
# What is L in the weight L/m? Which masks are letters of a string? And is the mean of ratios the ratio of the means, if
# each string has its own m?
# </details>


# %% exercise="20.5" role="answer"
def padded_loss(log_p, x0, x, lengths):
    """log_p [B, L, K], x0 and x = x_t [B, L], lengths [B] -> the loss, a number."""
    ### BEGIN SOLUTION return the mean loss, a number
    cost = -jnp.take_along_axis(log_p, x0[..., None], axis=-1)[..., 0]
    inside = jnp.arange(x.shape[1]) < lengths[:, None]
    hidden = jnp.where(inside, x == log_p.shape[-1], False)
    each = jnp.where(hidden, cost, 0.0).sum(-1) / hidden.sum(-1)  # of a masked letter
    return jnp.mean(lengths * each)
    ### END SOLUTION


# %% [markdown]
# ## 20.6
# *implement · 20 minutes*
#
# A mask is lifted with probability $r$ (`lift`). A network gives the log-probabilities of its letter, with a condition
# (`log_c`) and without one (`log_u`). Of two distributions $p_c$ and $p_u$, guidance makes $p_u\,(p_c/p_u)^w$, and
# normalises it. This can be done in two places:
#
# - `kind="letters"`: guide the distribution of the letter. Then a mask becomes a letter with probability $r$, as
#   before.
# - `kind="step"`: guide the distribution of $x_s$ itself, over the $K$ letters and the mask. With the condition it is
#   $r\,p_c$ for letters and $1-r$ for the mask, and without it $r\,p_u$ and $1-r$. (In short steps this is the
#   guidance of rates by Nisonoff et al. 2024, arXiv:2406.01572.)
#
# Where $p_u = 0$, $p_c$ is 0, too, and the letter is impossible at any $w$. Where only $p_c = 0$, it is possible at $w = 0$
# alone. Each string has its own $w \ge 0$.
#
# **Expected.** An array `[B, L, K + 1]`, the mask last, which adds up to 1 over its last axis. At $w = 0$, $w = 1$ and
# $r = 1$ the two kinds agree.
#
# <details><summary>Hint</summary>
# Logarithms of 0 lead to NaN: −∞ − (−∞), and 0·(−∞). Ratios of probabilities are easier: 0 to the power 0 is 1. In a
# guided step, the mask's factor (p_c/p_u)^w is 1.
# </details>


# %% exercise="20.6" role="answer"
def guided_step(log_c, log_u, w, lift, kind):
    """log_c and log_u [B, L, K], w [B], the number lift, kind "letters" or "step" -> [B, L, K + 1]."""
    ### BEGIN SOLUTION return the probabilities of x_s, an array [B, L, K + 1]
    p_c, p_u, w = np.exp(log_c), np.exp(log_u), np.asarray(w)[:, None, None]
    ratio = p_c / np.where(p_u > 0, p_u, 1.0)
    q = p_u * ratio**w  # 0 to the power 0 is 1: at w = 0 the condition plays no part
    if kind == "letters":
        q = q / q.sum(-1, keepdims=True)
    made = np.append(lift * q, np.full((*q.shape[:2], 1), 1 - lift), axis=-1)
    return made / made.sum(-1, keepdims=True)
    ### END SOLUTION


# %% [markdown]
# With $Z = \sum_k p_u\,(p_c/p_u)^w$, a guided step of small $r$ lifts masks $Z$ times as often. By Jensen's
# inequality, $Z \ge 1$ for $w \ge 1$: masks are lifted earlier, and so more of them in the same early step. Rojas et al.
# 2025 (arXiv:2507.08965) found that this harms samples.

# %% [markdown]
# ## 20.7
# *stretch · 35 minutes*
#
# What do parallel steps cost? In a language, the string $(i, j, \dots)$ has the probability `p[i, j, …]`. The sampler
# of exercise 20.4 starts from masks and knows the language exactly: it draws each token given all tokens that were
# lifted in *earlier* steps. Its samples have a distribution $p_T$. Find
#
# 1. $KL(p\,\|\,p_T)$;
# 2. the bound of these $T$ steps, averaged over the strings of the language, minus their entropy. The bound is the sum
#    of $\frac{\alpha_s - \alpha_t}{1 - \alpha_t}\cdot(-\log p(x_0 \mid x_t))$ over all steps and masks, averaged over
#    $x_t$.
#
# **Expected.** An array of two numbers in nats, neither of them negative; the first is at most the second. With one
# step both are the sum of the tokens' entropies minus the entropy of the strings. Some strings may be impossible.
#
# <details><summary>Hint</summary>
# Each token is lifted in one of the T steps: list all T^L ways (itertools.product) with their probabilities. For one
# way, the probability of a string is a product of ratios of marginals. One of the two results averages these products
# over the ways, the other one their logarithms.
# </details>


# %% exercise="20.7" role="answer"
def parallel_loss(p, alpha):
    """p [K, …, K], one axis per token, alpha [T + 1] -> KL(p‖p_T) and what the bound says, [2]."""
    ### BEGIN SOLUTION return two numbers in an array
    lifts, L, log_ways = np.diff(alpha), p.ndim, []
    possible = p > 0

    def log_marginal(tokens):
        others = tuple(m for m in range(L) if m not in tokens)
        wide = np.broadcast_to(p.sum(others, keepdims=True), p.shape)
        return np.log(wide[possible])  # of the possible strings, in a row

    ways = list(itertools.product(range(len(lifts)), repeat=L))
    for way in ways:
        log_q = 0.0
        for m in range(L):
            before = [n for n in range(L) if way[n] < way[m]]
            log_q = log_q + log_marginal([*before, m]) - log_marginal(before)
        log_ways.append(log_q)
    chance = np.array([np.prod([lifts[step] for step in way]) for way in ways])
    log_ways, q = np.array(log_ways), p[possible]
    made = chance @ np.exp(log_ways)
    return np.array([q @ np.log(q / made), q @ (np.log(q) - chance @ log_ways)])
    ### END SOLUTION


# %% [markdown]
# So the bound of $T$ steps is a bound on $-\log p_T$, and its mean over the strings is never below the entropy. For a
# single string it can be below $-\log p$: a string may be *more* probable in $p_T$ than in $p$.

# %% [markdown]
# ## 20.8
# *written · 20 minutes*
#
# Three sentences from a report on masked diffusion of text. The strings have 1024 tokens.
#
# - "A language model finds our samples more probable with 5000 steps than with 500. So the extra steps pay." (The
#   sampler adds float32 Gumbel noise to the log-probabilities of all next states, the mask included, and takes the
#   largest.)
# - "Our sampler needs 64 evaluations for 1024 tokens, and the autoregressive model 1024. So ours is 16 times faster."
# - "For one held-out string in ten, our bound with $T = 8$ steps, averaged over many draws of $x_t$, is below the
#   $-\log p$ of the true model that wrote the string. So it has a bug."
#
# No verdict follows. For each, say in about 50 words what probably happened, and which measurement would show it.
# *(1 point each)*
#
# <details><summary>Hint</summary>
# How large can a float32 Gumbel number be in JAX, and which letters does it hardly ever reach in a short step? What
# must an autoregressive model with a cache compute for one more token? Whose −log p does a bound of T steps bound?
# </details>

# %% [markdown] exercise="20.8" role="written"
# ### BEGIN SOLUTION
# 1. Float32 Gumbel noise has a largest value, in JAX 15.94. In a short step the mask has nearly all the probability, so
#    rare letters hardly ever win. As with a low temperature, samples get more probable and less diverse. Measure the
#    diversity (the entropy of the letters), and repeat with `mode="high"`.
# 2. In each of 64 evaluations the masked model computes 1024 tokens. With a cache, the autoregressive model computes
#    each token once: 64 times less work. In parallel hardware the masked model may be faster all the same, for a small
#    batch. Measure seconds per string at equal quality.
# 3. It is a bound on $-\log p_T$, where $p_T$ is these steps' own distribution. Some strings are more probable in $p_T$
#    than in $p$. Evidence of a bug would be a *mean* below the entropy, by several standard errors.
#
# *One point for each. The first needs the lost letters and a measure of diversity, or better noise; the second the
# work per evaluation and seconds at equal quality; the third $p_T$ and the mean.*
# ### END SOLUTION

# %% [markdown]
# That is all of chapter 20. You have forgotten letters in two ways at once, stepped back in any chain, given each letter
# its pace, counted tokens in company, mended a loss for strings of any length, guided letters and steps, and found what
# parallel steps cost. Chapter 21 asks which generative model is the right one.
