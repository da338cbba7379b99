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
# # 05 · The bound: exercises
#
# They belong to [chapter 05](../notebooks/05_bound.ipynb). Write each function where it says
# `raise NotImplementedError`, then run the `check` below it: it tells you at once whether the
# function is right, and if not, what is wrong. Check as often as you like.
#
# Levels are given as $\bar\alpha$: `abar_t` belongs to the step you are at and `abar_s` to an earlier
# one, nearer to the data, so `abar_s > abar_t`.
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
from jax.scipy.stats import norm

from diffusion_course.grading import check

# %% [markdown]
# ## 05.1
# *warm-up · 10 minutes*
#
# Equation (4), in the unit of the chapter: the divergence of the Gaussian $q$ from the Gaussian $p$ for
# each image of a batch, in **bits per dimension**. Variances are given by their logarithms, as a network
# gives them.
#
# **Expected.** An array `[B]`. It is 0 where the two are equal, as for an oracle that knows $x_0$.
#
# <details><summary>Hint</summary>
# A nat is 1/log 2 bits. "Per dimension" is a mean over everything but the batch.
# </details>


# %% exercise="05.1" role="answer"
def kl_bits(mean_q, log_var_q, mean_p, log_var_p):
    """Four arrays [B, ...] -> KL(q || p) of each image in bits per dimension, [B]."""
    ### BEGIN SOLUTION return the divergences, an array [B]
    log_ratio = log_var_q - log_var_p
    distance = (mean_q - mean_p) ** 2 * jnp.exp(-log_var_p)
    nats = 0.5 * (jnp.exp(log_ratio) - 1 - log_ratio + distance)
    return nats.reshape(len(nats), -1).mean(1) / np.log(2)
    ### END SOLUTION


# %% [markdown]
# ## 05.2
# *derive and check · 15 minutes*
#
# Equation (6) with the levels written out: the best variance of a step from $t$ to $s$, if the doubt
# $\operatorname{Var}(x_0 \mid x_t)$ of each pixel is known. The process preserves variance,
# $\sigma^2 = 1 - \bar\alpha$.
#
# **Expected.** An array of `doubt`'s shape. Without doubt it is $\tilde\beta$. With the doubt of standard
# normal data, $1-\bar\alpha_t$, it is the $\beta$ of the step, $1-\bar\alpha_t/\bar\alpha_s$.
#
# <details><summary>Hint</summary>
# c is the factor of x0 in the posterior mean (exercise 03.1). A factor of a random number is squared
# in its variance.
# </details>


# %% exercise="05.2" role="answer"
def best_variance(doubt, abar_t, abar_s):
    """doubt [...], numbers abar_t < abar_s -> the best variance of p(x_s|x_t), [...]."""
    ### BEGIN SOLUTION return the variances, an array of doubt's shape
    beta = 1 - abar_t / abar_s  # of the whole step
    beta_tilde = beta * (1 - abar_s) / (1 - abar_t)
    c = abar_s**0.5 * beta / (1 - abar_t)
    return beta_tilde + c**2 * doubt
    ### END SOLUTION


# %% [markdown]
# ## 05.3
# *derive and check · 15 minutes*
#
# A transition with the variance $\tilde\beta$ costs a weight times the squared error of the network
# (equation 10). Write the weight that turns the **mean** squared error of the output into **bits per
# dimension**, for networks that predict $\varepsilon$, $x_0$ or $v$. The process preserves variance.
#
# **Expected.** A number, or an array if the levels are arrays, for each `kind` of `"eps"`, `"x0"`
# and `"v"`.
#
# <details><summary>Hint</summary>
# Begin with x0. An error of 1 in ε is an error of σ/α in x0, an error of 1 in v one of σ.
# </details>


# %% exercise="05.3" role="answer"
def bound_weight(abar_t, abar_s, kind):
    """abar_t < abar_s, arrays [N]; kind "eps", "x0" or "v" -> weights of the error, [N]."""
    ### BEGIN SOLUTION return the weights, an array of abar_t's shape
    snr_t, snr_s = abar_t / (1 - abar_t), abar_s / (1 - abar_s)
    nats_of_x0 = 0.5 * (snr_s - snr_t)
    error_of_x0 = {"x0": 1.0, "eps": (1 - abar_t) / abar_t, "v": 1 - abar_t}[kind]  # squared
    return nats_of_x0 * error_of_x0 / np.log(2)
    ### END SOLUTION


# %% [markdown]
# ## 05.4
# *implement · 15 minutes*
#
# Equation (9). Pixels take `levels` equally spaced values from −1 to 1. What is the logarithm of the
# probability, in nats, that a Gaussian falls into the bin of `x0`? Bins end half-way between neighbouring
# values. The lowest bin reaches to $-\infty$, the highest to $\infty$.
#
# **Expected.** An array of `x0`'s shape. Over all levels, the probabilities add up to 1.
#
# <details><summary>Hint</summary>
# norm.cdf of jax.scipy.stats is in the setup cell. The values are 2/(levels − 1) apart. Compare x0 with
# ±1 with a margin: it may be rounded.
# </details>


# %% exercise="05.4" role="answer"
def log_probability(x0, mean, std, levels):
    """x0, mean and std [...], the whole number levels -> log-probability of each pixel, [...]."""
    ### BEGIN SOLUTION return the log-probabilities, an array of x0's shape
    half = 1 / (levels - 1)
    upper = norm.cdf((x0 + half - mean) / std)
    lower = norm.cdf((x0 - half - mean) / std)
    upper = jnp.where(x0 > 1 - half, 1.0, upper)
    lower = jnp.where(x0 < -1 + half, 0.0, lower)
    return jnp.log(upper - lower)
    ### END SOLUTION


# %% [markdown]
# ## 05.5
# *implement · 5 minutes*
#
# Equation (7): a network's output `u` says where the variance lies between $\tilde\beta$ and $\beta$.
# An untrained network, $u = 0$, starts in the middle, and nothing keeps $u$ between −1 and 1.
#
# **Expected.** The **logarithm** of the variance, an array of `u`'s shape. It is $\log\tilde\beta$ at
# $u = -1$ and $\log\beta$ at $u = 1$.
#
# <details><summary>Hint</summary>
# The share of log β is (u + 1)/2. In the middle lies the geometric mean, not the arithmetic one.
# </details>


# %% exercise="05.5" role="answer"
def learned_log_variance(u, beta, beta_tilde):
    """u [...], numbers beta_tilde < beta -> log-variances, [...]."""
    ### BEGIN SOLUTION return the log-variances, an array of u's shape
    share = (u + 1) / 2
    return share * np.log(beta) + (1 - share) * np.log(beta_tilde)
    ### END SOLUTION


# %% [markdown]
# ## 05.6
# *debug this · 10 minutes*
#
# The bound of a chain of levels, from noise to the data, for single numbers. The model's variance is that
# of the transition, $\beta = 1-\bar\alpha_t/\bar\alpha_s$, and `denoise(x, alpha, sigma)` is the exact
# denoiser of Gaussian data. Run the cell: the "bound" lies far below the entropy of the data. No code
# can be that short.

# %%
from diffusion_course.grading.inputs import GaussianDenoiser


def broken_bound(denoise, x0, noises, abar):
    nats = 0.5 * (abar[0] * x0**2 / (1 - abar[0]))  # the prior
    for noise, abar_t, abar_s in zip(noises, abar[:-1], abar[1:], strict=True):
        x_t = np.sqrt(abar_s) * x0 + np.sqrt(1 - abar_s) * noise
        guess = denoise(x_t, np.sqrt(abar_t), np.sqrt(1 - abar_t))
        beta = 1 - abar_t / abar_s
        if abar_s < 1:
            c = np.sqrt(abar_s) * beta / (1 - abar_t)
            nats = nats + 0.5 * c**2 * (x0 - guess) ** 2 / beta
        else:
            nats = nats + 0.5 * (x0 - guess) ** 2 / beta + 0.5 * np.log(2 * np.pi * beta)
    return nats


exact = GaussianDenoiser(mean=0.8, std=0.5)
abar = np.append(np.cos(np.linspace(1.5, 0.1, 20)) ** 2, 1.0)  # from noise to data
noises = jax.random.normal(jax.random.key(0), (21, 4000))
x0 = exact.mean + exact.std * noises[20]
found = broken_bound(exact, x0, noises[:20], abar).mean()
entropy = 0.5 * np.log(2 * np.pi * np.e * exact.std**2)
print(f"entropy {entropy:.2f} nats, 'bound' {found:.2f} nats (4,000 numbers)")
assert found < entropy - 0.3

# %% [markdown]
# There are **two** bugs: the model sees what it must not see, and something that costs bits was
# forgotten. (The prior is right: both Gaussians have the variance $1-\bar\alpha$.) Write the bound as it
# should be. `abar` has one entry more than there are `noises`, and its last is 1.
#
# **Expected.** The bound of each number in nats, an array of `x0`'s shape.
#
# <details><summary>Hint</summary>
# What does the denoiser get in the last step? And equation (4) has two prices: is the model's variance
# that of the posterior?
# </details>


# %% exercise="05.6" role="answer"
def chain_bound(denoise, x0, noises, abar):
    """x0 [B], noises [N, B], abar [N + 1] up to 1 -> the bound of each number in nats, [B]."""
    ### BEGIN SOLUTION return the bounds, an array of x0's shape
    total = abar[0] * x0**2 / (1 - abar[0]) / 2
    for n, noise in enumerate(noises):
        abar_t, abar_s = abar[n], abar[n + 1]
        seen = np.sqrt(abar_t) * x0 + np.sqrt(1 - abar_t) * noise
        error = (x0 - denoise(seen, np.sqrt(abar_t), np.sqrt(1 - abar_t))) ** 2
        added = 1 - abar_t / abar_s  # the model's variance
        price = error / added + np.log(2 * np.pi * added)  # of the last step, to the data
        if abar_s < 1:  # of every other one
            on_x0 = np.sqrt(abar_s) * added / (1 - abar_t)
            ratio = (1 - abar_s) / (1 - abar_t)  # of the two variances, q's over the model's
            price = ratio - 1 - np.log(ratio) + on_x0**2 * error / added
        total = total + price / 2
    return total
    ### END SOLUTION


# %% [markdown]
# ## 05.7
# *stretch · 20 minutes*
#
# Equation (8) for one step. The first half of `output` is the mean $m$ of $p(x_s|x_t)$, the second half
# is $u$ of equation (7). The loss is
#
# $$\overline{(m - \tilde\mu)^2} + \lambda\,\overline{\mathrm{KL}\big(\mathcal N(\tilde\mu, \tilde\beta)\,\|\,
# \mathcal N(\operatorname{stop}(m), v(u))\big)},$$
#
# both averaged over all coordinates, the divergence in nats. Return its **gradient** with respect to
# `output`: what the network would learn from it.
#
# **Expected.** An array of `output`'s shape. Along $m$ the divergence must leave no trace.
#
# <details><summary>Hint</summary>
# Write the loss as a function of output, with jax.lax.stop_gradient around the mean where it enters the
# divergence, and let jax.grad do the rest.
# </details>


# %% exercise="05.7" role="answer"
def hybrid_gradient(output, mu_tilde, beta, beta_tilde, lam):
    """output [B, 2D], mu_tilde [B, D], numbers beta, beta_tilde, lam -> the gradient, [B, 2D]."""

    ### BEGIN SOLUTION return the gradient, an array of output's shape
    def loss(output):
        mean, u = jnp.split(output, 2, axis=-1)
        held = jax.lax.stop_gradient(mean)
        log_v = (u + 1) / 2 * np.log(beta) + (1 - u) / 2 * np.log(beta_tilde)
        ratio = beta_tilde * jnp.exp(-log_v)
        distance = (held - mu_tilde) ** 2 * jnp.exp(-log_v)
        kl = 0.5 * (ratio - 1 - jnp.log(ratio) + distance)
        return jnp.mean((mean - mu_tilde) ** 2) + lam * jnp.mean(kl)

    return jax.grad(loss)(output)
    ### END SOLUTION


# %% [markdown]
# ## 05.8
# *written · 15 minutes*
#
# Two teams report on the same 8-bit photographs. Team A: "3.1 bits/dim, and the samples look blurry."
# Team B: "−2.4 bits/dim, with better samples: our model is 5.5 bits better."
#
# In about 150 words:
#
# 1. What must team B have computed? What do you need to know before the two can be compared at all?
#    *(1 point)*
# 2. Team A retrains with the simple loss. The samples are sharp now, and its bits per dimension rise to
#    3.5. How can both be true? *(1 point)*
#
# <details><summary>Hint</summary>
# Sections 7 to 9. How many bits does a code need at least?
# </details>

# %% [markdown] exercise="05.8" role="written"
# ### BEGIN SOLUTION
# 1. A code for discrete images cannot be shorter than 0 bits, so −2.4 is no probability: it is a density,
#    taken at points of a grid, and it can be driven as low as one likes. One needs the scale of the
#    data (0 to 255, [0, 1] or [−1, 1]: each factor of two is a bit), whether the last step integrates
#    over bins or noise was added to the pixels, and whether both used the same test images. Then B must
#    recompute its number with bins.
# 2. Most bits describe details at noise below a few grey levels, which nobody sees, and the bound spends
#    most of its effort there. The simple loss spends less there and more at larger noise, where shapes are
#    decided. So the shapes improve, and the many bits for faint noise get a little more expensive.
#
# *One point for each part. The first needs "density, not probability" (or "no bins") and one further
# condition. The second needs where the bits are, and where the simple loss looks.*
# ### END SOLUTION

# %% [markdown]
# That is all of chapter 05. You have priced Gaussians in bits, derived the variance that a step should
# have, turned the simple loss into the bound, mended a bound that was too good, and held a mean still
# while its variance learned.
