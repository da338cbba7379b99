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
# # 01 · The forward process: exercises
#
# They belong to [chapter 01](../notebooks/01_forward_process.ipynb). Write each function where it says
# `raise NotImplementedError`, then run the `check` below it: it tells you at once whether the
# function is right, and if not, what is wrong. Check as often as you like.
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
import jax
import jax.numpy as jnp
import numpy as np

from diffusion_course.grading import check

# %% [markdown]
# ## 01.1
# *warm-up · 5 minutes*
#
# From memory, with section 1 out of sight. One step of equation (1): shrink `x` and add the noise `eps`, for a `beta`
# in (0, 1).
#
# **Expected.** An array of `x`'s shape. A picture whose pixels have mean 0 and variance 1 keeps both.
#
# <details><summary>Hint</summary>
# Variances add up, so $\beta$ and $1-\beta$ are variances. What multiplies an array is a standard deviation.
# </details>


# %% exercise="01.1" role="answer"
def noise_step(x, beta, eps):
    """x [...], beta a number, eps [...] -> x after one step, [...]."""
    ### BEGIN SOLUTION return x after one step, an array of x's shape
    return jnp.sqrt(1 - beta) * x + jnp.sqrt(beta) * eps
    ### END SOLUTION


# %% [markdown]
# ## 01.2
# *warm-up · 5 minutes*
#
# From memory, with section 2 out of sight. The share of the signal's variance that is left after step $n$, as in
# equation (2), for every
# $n$ from 0 to $T$:
#
# $$\bar\alpha_n = \prod_{i=1}^{n} (1-\beta_i)$$
#
# `betas` is a NumPy array of float64, and `betas[0]` is $\beta_1$. Stay in NumPy: tables are made
# once, in double precision.
#
# **Expected.** An array [T + 1] that starts at 1 and falls. If the last beta is 1, it ends at 0.
#
# <details><summary>Hint</summary>
# NumPy has a function for cumulative products. What is the product of no factor at all, and whose
# place in the table is that?
# </details>


# %% exercise="01.2" role="answer"
def alpha_bar(betas):
    """betas [T], float64 -> table of alpha_bar_0 … alpha_bar_T, [T + 1]."""
    ### BEGIN SOLUTION return the table, an array of shape [T + 1]
    return np.concatenate([[1.0], np.cumprod(1 - betas)])
    ### END SOLUTION


# %% [markdown]
# ## 01.3
# *implement · 10 minutes*
#
# Training takes every picture of a batch to a step of its own, by equation (2):
#
# $$x_n = \sqrt{\bar\alpha_n}\;x_0 + \sqrt{1-\bar\alpha_n}\;\varepsilon$$
#
# The images `x0` and the noise `eps` have shape [B, H, W, C]; `n` has shape [B] and holds one step
# per image; `table` is the table of exercise 01.2.
#
# **Expected.** An array [B, H, W, C]. An image with $n = 0$ comes back unchanged; with $n = T$ and
# $\bar\alpha_T = 0$ it is exactly its noise.
#
# <details><summary>Hint</summary>
# Arrays are aligned from their <em>last</em> axis. To multiply whole images, a factor per image
# needs three more axes of length 1. Without them nothing may crash: a batch of three pictures in
# three colours goes through, wrongly.
# </details>


# %% exercise="01.3" role="answer"
def jump(x0, eps, n, table):
    """x0, eps [B, H, W, C], n [B] whole numbers, table [T + 1] -> x_n, [B, H, W, C]."""
    ### BEGIN SOLUTION return every image at its own step, an array of x0's shape
    level = table[n].reshape(-1, 1, 1, 1)  # one number per image
    return jnp.sqrt(level) * x0 + jnp.sqrt(1 - level) * eps
    ### END SOLUTION


# %% [markdown]
# ## 01.4
# *implement · 10 minutes*
#
# Nichol & Dhariwal 2021 (eq. 17) choose the curve and compute the betas from it:
#
# $$\bar\alpha_n = \frac{f(n)}{f(0)}, \qquad
# f(n) = \cos^2\!\Big(\frac{n/T + s}{1 + s}\cdot\frac{\pi}{2}\Big), \qquad
# \beta_n = 1 - \frac{\bar\alpha_n}{\bar\alpha_{n-1}}$$
#
# At the last step $\bar\alpha_T = 0$, so that $\beta_T$ would be 1. No beta may be larger than
# `max_beta`. Write it yourself, without `process.cosine_betas`.
#
# **Expected.** An array [T] that rises, and ends at `max_beta`.
#
# <details><summary>Hint</summary>
# There are $T+1$ values $f(0), \dots, f(T)$ and $T$ ratios of neighbours. In the ratio of two
# neighbours $f(0)$ cancels.
# </details>


# %% exercise="01.4" role="answer"
def cosine_betas(T, s, max_beta):
    """T a whole number, offset s >= 0, largest beta max_beta -> betas, [T]."""
    ### BEGIN SOLUTION return the betas, an array of shape [T]
    t = np.arange(T + 1) / T
    f = np.cos((t + s) / (1 + s) * np.pi / 2) ** 2
    return np.minimum(1 - f[1:] / f[:-1], max_beta)
    ### END SOLUTION


# %% [markdown]
# ## 01.5
# *derive and check · 15 minutes*
#
# By equation (4) the log-SNR after the last step is
#
# $$\lambda_T = \log\frac{\bar\alpha_T}{1-\bar\alpha_T}$$
#
# That is easily written, and easily rounded away: if all betas are around $10^{-18}$, a computer's
# $1-\bar\alpha_T$ is 0; with six hundred large ones its $\bar\alpha_T$ is. First derive an
# expression in $\ell = \log\bar\alpha_T = \sum_n \log(1-\beta_n)$ that survives both, on paper. Then
# write it.
#
# **Expected.** One number: positive if more signal than noise is left, finite for all betas in
# (0, 1).
#
# <details><summary>Hint</summary>
# A difference from 1 loses the digits of what is small. <code>log1p(u)</code> is $\log(1+u)$ and
# <code>expm1(u)</code> is $e^u-1$, and both keep their digits for tiny $u$. Of two equal expressions
# take the one without $e^{-\ell}$, which overflows where $e^{\ell}$ harmlessly becomes 0.
# </details>


# %% exercise="01.5" role="answer"
def terminal_log_snr(betas):
    """betas [T], float64 -> the log-SNR after step T, one number."""
    ### BEGIN SOLUTION return the log-SNR after the last step, one number
    log_signal = np.sum(np.log1p(-betas))  # a sum of logarithms can't underflow, a product can
    log_noise = np.log(-np.expm1(log_signal))  # log(1 - alpha_bar), without the difference
    return log_signal - log_noise
    ### END SOLUTION


# %% [markdown]
# ## 01.6
# *debug this · 15 minutes*
#
# This function should run the chain of equation (1) with the noises that it is given and return
# the whole path $x_0, \dots, x_T$. It has two bugs.


# %%
def broken_chain(x0, betas, eps):
    """x0 [...], betas [T], eps [T, ...] -> x_0 … x_T, [T + 1, ...]."""
    noise = eps[0]
    x, states = x0, [x0]
    for beta in betas:
        keep = jnp.sqrt(1 - beta)
        x = keep * x + (1 - keep) * noise
        states.append(x)
    return jnp.stack(states)


# %% [markdown]
# Its path begins at the data and ends in noise of standard deviation 1, so pictures of both
# ends look right. The middle doesn't:

# %%
from diffusion_course import process

some_betas = process.linear_betas(60, 0.01, 0.3)
p = process.from_betas(some_betas)
some_eps = jax.random.normal(jax.random.key(0), (60, 10_000))
some_path = broken_chain(jnp.full(10_000, 1.5), some_betas, some_eps)
for n in (0, 5, 10, 20, 60):
    added = some_path[n] - p.alpha(n / 60) * 1.5
    print(f"n = {n:2d}: std of the noise {added.std():.2f}, should be {p.sigma(n / 60):.2f}")

# %% [markdown]
# Write the chain without the bugs. The arguments and the result stay the same.
#
# **Expected.** An array [T + 1, ...] whose entry 0 is `x0`. With standard normal `eps`, the noise in
# entry $n$ has the standard deviation $\sqrt{1-\bar\alpha_n}$.
#
# <details><summary>Hint</summary>
# Compare the loop with equation (1), symbol by symbol. Each bug on its own would show at the end:
# one makes the noise too small, the other too large.
# </details>


# %% exercise="01.6" role="answer"
def noising_chain(x0, betas, eps):
    """x0 [...], betas [T], eps [T, ...] -> x_0 … x_T, [T + 1, ...]."""
    ### BEGIN SOLUTION return the path x_0 … x_T, an array of shape [T + 1, ...]
    path = [x0]
    for beta, fresh in zip(betas, eps, strict=True):  # every step has a noise of its own
        path.append(jnp.sqrt(1 - beta) * path[-1] + jnp.sqrt(beta) * fresh)
    return jnp.stack(path)
    ### END SOLUTION


# %% [markdown]
# ## 01.7
# *stretch · 20 minutes*
#
# A schedule is best read as log-SNR. So design it there: given the $\lambda_1 > \dots > \lambda_T$
# that you want after each step, find the betas. For a variance-preserving chain, equation (4) gives
#
# $$\bar\alpha_n = \frac{1}{1+e^{-\lambda_n}}, \qquad \bar\alpha_0 = 1, \qquad
# \beta_n = 1 - \frac{\bar\alpha_n}{\bar\alpha_{n-1}}$$
#
# Two of the three points are for betas that keep their digits where $\lambda$ is very large, as at
# 50, and where it is very negative, as at −760.
#
# **Expected.** An array [T] of numbers in (0, 1]. A $\lambda_1$ of 50 needs a first beta of about
# $e^{-50}$, not 0.
#
# <details><summary>Hint</summary>
# Stay in logarithms until the end. $\log\bar\alpha = -\log(1+e^{-\lambda})$, and
# <code>np.logaddexp(a, b)</code> is $\log(e^a+e^b)$ without overflow. A ratio is then a difference, and
# exercise 01.5 had a function for the last step.
# </details>


# %% exercise="01.7" role="answer"
def betas_from_log_snr(log_snr):
    """log_snr [T], float64: wanted after steps 1 … T, falling -> betas, [T]."""
    ### BEGIN SOLUTION return the betas, an array of shape [T]
    log_level = -np.logaddexp(0, -log_snr)  # log alpha_bar_1 … log alpha_bar_T
    log_level = np.concatenate([[0.0], log_level])  # alpha_bar_0 = 1: step 0 is the data
    return -np.expm1(np.diff(log_level))
    ### END SOLUTION


# %% [markdown]
# ## 01.8
# *written · 15 minutes*
#
# A colleague's jump is `alpha_bar * x0 + sqrt(1 - alpha_bar) * eps`. She looked at pictures at $n = 0$
# and at $n = T$, and all was well. Answer in a few sentences each:
#
# 1. Why are both ends right? Name a measurement at $n = T/2$ that finds the bug, what it should
#    give, and a data set on which it would find nothing. *(1 point)*
# 2. She trains a model with this jump and then samples with the correct formulas. Does the training
#    loss warn her? What does the model meet while sampling that it never met in training? *(1 point)*
#
# <details><summary>Hint</summary>
# What do 0 and 1 have in common that 0.3 has not? For the second question compare the log-SNR of
# her pictures at step $n$ with what the sampler takes it to be.
# </details>

# %% [markdown] exercise="01.8" role="written"
# ### BEGIN SOLUTION
# 1. The formula has $\bar\alpha$ where $\sqrt{\bar\alpha}$ belongs, and 0 and 1 are their own square
#    roots: at $n = 0$ both give $x_0$; at $n = T$, where $\bar\alpha$ is as good as 0, both give
#    $\varepsilon$. In between, measure the mean of $x_n$. It should be $\sqrt{\bar\alpha_n}\,m$, where $m$ is the
#    mean of the data, and is
#    $\bar\alpha_n\,m$, which is closer to 0. Data with $m = 0$ hide this. (The variance is an equally
#    good answer: it should be $\bar\alpha_n v + 1 - \bar\alpha_n$ and is
#    $\bar\alpha_n^2 v + 1 - \bar\alpha_n$. Data that are all the same, $v = 0$, hide that.)
# 2. No. Signal $\bar\alpha$ with noise $\sqrt{1-\bar\alpha}$ is a legitimate process, only another
#    one. The model learns it well, and its loss falls as it should. At step $n$ it has seen
#    pictures with less signal for the same noise: their log-SNR is lower by
#    $-\log\bar\alpha_n$. A correct sampler hands it pictures with more contrast than it has ever
#    seen at that step, in the middle above all, and reads its answers with the wrong factor.
#    Nothing crashes; the samples are off.
# ### END SOLUTION

# %% [markdown]
# ## What next
#
# You have every formula that a diffusion model needs to *make* noise. In
# [chapter 02](../notebooks/02_denoising.ipynb) a model learns to remove it.
