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
# # 03 · DDPM: exercises
#
# They belong to [chapter 03](../notebooks/03_ddpm.ipynb). Write each function where it says
# `raise NotImplementedError`, then run the `check` below it: it tells you at once whether the
# function is right, and if not, what is wrong. Check as often as you like.
#
# Levels are given as $\bar\alpha$: `abar_t` belongs to the step you are at and `abar_s` to an earlier
# one, nearer to the data, so `abar_s > abar_t`. The data themselves have $\bar\alpha = 1$.
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
# ## 03.1
# *derive and check · 15 minutes*
#
# Equation (2) is the posterior $q(x_{n-1}\,|\,x_n, x_0)$ of neighbouring steps. Derive it for **any** two
# levels $s < t$. From $s$ to $t$ the process is a single noising step too: which share of the
# signal's variance does it keep? Put that in the place of $\alpha_n$, and the rest follows. (Chapter 02's (6)
# gives the same in SNRs. At `abar_s = 1` its $\mathrm{SNR}(s)$ is infinite: find a form without it.)
#
# **Expected.** A tuple of two: the mean, an array of `x0`'s shape, and the variance, a number. At
# `abar_s = 1` the mean is `x0` and the variance 0.
#
# <details><summary>Hint</summary>
# ᾱ is a product over all steps so far, so the share kept between s and t is a quotient. What the step
# adds is 1 minus this share. In equation (2) it stands where β stands.
# </details>


# %% exercise="03.1" role="answer"
def posterior(x0, x_t, abar_t, abar_s):
    """x0 [...], x_t [...], numbers abar_t < abar_s -> mean [...] and variance of q(x_s|x_t,x0)."""
    ### BEGIN SOLUTION return the mean, an array of x0's shape, and the variance, a number
    kept = abar_t / abar_s  # α_n of equation (2), for a step of any length
    added = 1 - kept  # its β_n
    on_x0 = abar_s**0.5 * added / (1 - abar_t)
    on_x_t = kept**0.5 * (1 - abar_s) / (1 - abar_t)
    return on_x0 * x0 + on_x_t * x_t, added * (1 - abar_s) / (1 - abar_t)
    ### END SOLUTION


# %% [markdown]
# ## 03.2
# *implement · 10 minutes*
#
# The loss (1) is for a network that guesses $\varepsilon$. Section 6 trains one that guesses
# $v = \alpha\,\varepsilon - \sigma\,x_0$ instead. Write its loss for a batch of images, each with a level
# of its own: the square of the error, averaged over everything.
#
# **Expected.** A single number. It is 0 for an `output` that equals $v$.
#
# <details><summary>Hint</summary>
# An array [B] multiplies images [B, H, W, C] along the wrong axis, or not at all. Give it three more
# axes of length 1 first.
# </details>


# %% exercise="03.2" role="answer"
def training_loss(output, x0, eps, alpha, sigma):
    """output, x0 and eps [B, H, W, C], alpha and sigma [B] -> the mean squared error of v."""
    ### BEGIN SOLUTION return the loss, a single number
    alpha, sigma = alpha.reshape(-1, 1, 1, 1), sigma.reshape(-1, 1, 1, 1)
    v = alpha * eps - sigma * x0
    return jnp.mean((output - v) ** 2)
    ### END SOLUTION


# %% [markdown]
# ## 03.3
# *implement · 10 minutes*
#
# From $x_t$ to $x_s$: draw from the posterior of 03.1, with the network's guess `x0_hat` in the place
# of $x_0$. The standard normal `noise` is given, so that your step can be compared.
#
# **Expected.** An array of `x_t`'s shape. At `abar_s = 1` it is `x0_hat`, whatever the noise.
#
# <details><summary>Hint</summary>
# A draw from a Gaussian is its mean plus its standard deviation times the noise.
# </details>


# %% exercise="03.3" role="answer"
def ancestral_step(x0_hat, x_t, noise, abar_t, abar_s):
    """x0_hat, x_t and noise [...], numbers abar_t < abar_s -> a draw of x_s, [...]."""
    ### BEGIN SOLUTION return x at the level s, an array of x_t's shape
    kept = abar_t / abar_s
    on_guess = abar_s**0.5 * (1 - kept) / (1 - abar_t)
    on_x_t = kept**0.5 * (1 - abar_s) / (1 - abar_t)
    variance = (1 - kept) * (1 - abar_s) / (1 - abar_t)
    return on_guess * x0_hat + on_x_t * x_t + jnp.sqrt(variance) * noise
    ### END SOLUTION


# %% [markdown]
# ## 03.4
# *implement · 10 minutes*
#
# Equation (4), with the warm-up of section 5. The average begins as `start`, the network's random
# weights. After step $n = 0, 1, 2, \dots$ the network has the weights `params[n]`, and the average
# takes them in with the decay $d_n = \min\big(d,\ (1+n)/(10+n)\big)$.
#
# **Expected.** An array of `start`'s shape: the average after the last step.
#
# <details><summary>Hint</summary>
# A loop over the rows and one line of equation (4). What is the decay of the very first step, and
# how much of the random start survives it?
# </details>


# %% exercise="03.4" role="answer"
def ema(start, params, decay):
    """start [P], params [N, P] after each step, the number decay -> the average at the end, [P]."""
    ### BEGIN SOLUTION return the average after the last step, an array of start's shape
    average = start
    for n, weights in enumerate(params):
        d = min(decay, (1 + n) / (10 + n))
        average = d * average + (1 - d) * weights
    return average
    ### END SOLUTION


# %% [markdown]
# ## 03.5
# *derive and check · 15 minutes*
#
# A loss may give the noise levels different weights. One choice that trains fast is **min-SNR** (Hang et
# al. 2023): a squared error of $\hat x_0$ gets the weight $\min(\mathrm{SNR}, \gamma)$, with
# $\mathrm{SNR} = \alpha^2/\sigma^2 = e^\lambda$ and a number $\gamma$. Without the limit $\gamma$, the
# levels with hardly any noise would count most.
#
# A network that predicts $\varepsilon$ or $v$ errs in another unit (chapter 02, section 5). An error of 1 in its
# output is an
# error of how much in $\hat x_0$? Find the weight of *its* squared error, such that all three losses are
# the same loss. The process preserves variance: $\alpha^2 + \sigma^2 = 1$.
#
# **Expected.** An array of `log_snr`'s shape, for each `kind` of `"x0"`, `"eps"` and `"v"`.
#
# <details><summary>Hint</summary>
# Solve for x0 what each network says: x_t = α·x0 + σ·ε, and x0 = α·x_t − σ·v. The factor before the
# output, squared, is the factor of the weight. Then write it with the SNR alone.
# </details>


# %% exercise="03.5" role="answer"
def min_snr_weight(log_snr, gamma, kind):
    """log_snr [...], the number gamma, kind "x0", "eps" or "v" -> weights of the squared errors."""
    ### BEGIN SOLUTION return the weights, an array of log_snr's shape
    snr = jnp.exp(log_snr)
    clipped = jnp.minimum(snr, gamma)
    # The error of x0 is the output's times 1, σ/α or σ, and σ² = 1/(SNR + 1).
    return {"x0": clipped, "eps": clipped / snr, "v": clipped / (snr + 1)}[kind]
    ### END SOLUTION


# %% [markdown]
# ## 03.6
# *debug this · 20 minutes*
#
# Ancestral sampling over a table of levels, from nearly pure noise to the data. `denoise(x, alpha,
# sigma)` is the exact denoiser of Gaussian data, so the samples should have the mean of the data, and a
# single step all the way to $\bar\alpha = 1$ should return the denoiser's guess. Run the cell: they
# don't, and it doesn't.

# %%
from diffusion_course.grading.inputs import GaussianDenoiser


def broken_sample(denoise, x, noises, abar):
    for noise, abar_t, abar_s in zip(noises, abar[:-1], abar[1:], strict=True):
        guess = denoise(x, np.sqrt(abar_t), np.sqrt(1 - abar_t))
        share = abar_t / abar_s
        mean = np.sqrt(abar_t) * (1 - share) * guess + np.sqrt(share) * (1 - abar_s) * x
        x = mean / (1 - abar_t) + np.sqrt(1 - share) * noise
    return x


exact = GaussianDenoiser(mean=3.0, std=0.5)
abar = np.append(np.cos(np.linspace(1.5, 0.1, 20)) ** 2, 1.0)  # from noise to data
noises = jax.random.normal(jax.random.key(0), (21, 2000))
drawn = broken_sample(exact, noises[20], noises[:20], abar)
print(f"mean of the data {exact.mean:.2f}, of the samples {drawn.mean():.2f}")
leap = broken_sample(exact, noises[0], noises[1:2], np.array([0.5, 1.0]))
off = jnp.abs(leap - exact(noises[0], 0.5**0.5, 0.5**0.5)).mean()
print(f"a single step to the data misses the guess by {off:.2f}")
assert drawn.mean() < 2.85 and off > 0.5  # 2000 samples: the error of the mean is 0.01

# %% [markdown]
# There are **two** bugs, and neither raises an error. Write the sampler as it should be. `abar` has
# one entry more than there are `noises`, and its last is 1.
#
# **Expected.** The samples, an array of `x`'s shape. A single step to $\bar\alpha = 1$ returns the
# denoiser's guess.
#
# <details><summary>Hint</summary>
# Compare the three lines with equation (2), symbol by symbol. Then follow the last step, where ᾱ_s is
# 1, by hand: how much of the guess arrives, and how much noise?
# </details>


# %% exercise="03.6" role="answer"
def sample(denoise, x, noises, abar):
    """x [...] at the first level, noises [N, ...], abar [N + 1] up to 1 -> samples, [...]."""
    ### BEGIN SOLUTION return the samples, an array of x's shape
    for t, noise in enumerate(noises):
        abar_t, abar_s = abar[t], abar[t + 1]
        x0 = denoise(x, np.sqrt(abar_t), np.sqrt(1 - abar_t))
        kept = abar_t / abar_s
        on_x0 = np.sqrt(abar_s) * (1 - kept) / (1 - abar_t)
        on_x_t = np.sqrt(kept) * (1 - abar_s) / (1 - abar_t)
        variance = (1 - kept) * (1 - abar_s) / (1 - abar_t)  # of the posterior, 0 at the end
        x = on_x0 * x0 + on_x_t * x + np.sqrt(variance) * noise
    return x
    ### END SOLUTION


# %% [markdown]
# ## 03.7
# *stretch · 20 minutes*
#
# A step from $t$ to $s$ is drawn with the guess $\hat x_0$ in the posterior's mean, and here with the larger of
# DDPM's two variances: $\beta = 1 - \bar\alpha_t/\bar\alpha_s$, not $\tilde\beta$. How far is the posterior with the
# true $x_0$ from it? Compute the Kullback-Leibler divergence $\mathrm{KL}(\text{posterior}\,\|\,\text{step})$, in
# nats. In chapter 02's (7) both had one variance. Now even the right guess has a price.
#
# **Expected.** An array `[B]`, one number for each image or vector, never negative.
#
# <details><summary>Hint</summary>
# For one number the divergence of $\mathcal N(m_1, v_1)$ from $\mathcal N(m_2, v_2)$ is
# $\frac12\big(\frac{v_1}{v_2} - 1 - \log\frac{v_1}{v_2} + \frac{(m_1 - m_2)^2}{v_2}\big)$. An image has many numbers.
# In the means only the factor of x0 in 03.1 matters.
# </details>


# %% exercise="03.7" role="answer"
def kl_term(x0, x0_hat, abar_t, abar_s):
    """x0 and x0_hat [B, ...], numbers abar_t < abar_s < 1 -> the divergence of each, [B]."""
    ### BEGIN SOLUTION return the divergences, an array [B]
    beta = 1 - abar_t / abar_s  # the step's variance
    ratio = (1 - abar_s) / (1 - abar_t)  # of the posterior's variance to it
    on_x0 = abar_s**0.5 * beta / (1 - abar_t)
    error = (x0 - x0_hat).reshape(len(x0), -1)
    wider = ratio - 1 - np.log(ratio)
    return jnp.sum(wider + (on_x0 * error) ** 2 / beta, axis=1) / 2
    ### END SOLUTION


# %% [markdown]
# ## 03.8
# *written · 15 minutes*
#
# A friend has trained a network on points in the plane, as section 2 does. The loss fell quickly and is
# flat now, but the samples do not look like the data. It turns out that the time never reached the network.
# A second network of your friend's, which predicts $v$ for small images, has the same mistake. Nobody had
# noticed: its samples look almost as good as those of a network that hears the time.
#
# In about 150 words:
#
# 1. Why did the loss fall in the plane, and what has that network learned? Why does the mistake do so much
#    less harm on images? *(1 point)*
# 2. Name two things that your friend could have looked at in the first hour, and say what they would have
#    shown. *(1 point)*
#
# <details><summary>Hint</summary>
# Section 7 breaks a model in this way. Could you tell from a picture how much noise is on it? Could you
# tell it from a single point?
# </details>

# %% [markdown] exercise="03.8" role="written"
# ### BEGIN SOLUTION
# 1. Without the time the network learns the average of the right answers over all levels that could have
#    produced its input, weighted by how likely each level is. The loss falls to the error of that
#    average, a number like any other. A point in the plane says little about its level, so the
#    average mixes levels that are far apart. An image shows its own: its many pixels share one
#    level, and the differences between neighbouring pixels show it.
# 2. The output for one fixed input at several times: it does not change at all. The loss plotted
#    against the time: above that of a sound run where levels are hard to tell apart. Also good:
#    an exact denoiser beside it, and the gradient of the time layers (but a constant time gives them one).
#    Samples of images are no test.
#
# *One point for each part. The first needs "an average over levels" and "an image shows its own noise
# level". The second needs two observations, each with what it would show.*
# ### END SOLUTION

# %% [markdown]
# That is all of chapter 03. You have derived the posterior for steps of any length, trained and
# averaged with it, mended a sampler and priced a wrong guess. Chapter 05 adds these prices up to the
# bound.
