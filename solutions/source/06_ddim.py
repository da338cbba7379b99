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
# # 06 · DDIM and fast solvers: exercises
#
# They belong to [chapter 06](../notebooks/06_ddim.ipynb). Write each function where it says
# `raise NotImplementedError`, then run the `check` below it: it tells you at once whether the
# function is right, and if not, what is wrong. Check as often as you like.
#
# Levels are given as $\bar\alpha$, with $\alpha = \sqrt{\bar\alpha}$ and
# $\sigma = \sqrt{1-\bar\alpha}$: `abar_t` belongs to the step you are at and `abar_s` to an earlier
# time, nearer to the data, so `abar_s > abar_t`. The data themselves have $\bar\alpha = 1$. Tables run
# from noise to data.
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
# ## 06.1
# *warm-up · 10 minutes*
#
# Equation (2): the standard deviation $g$ of the fresh noise in every step of a grid. The grid is
# strided, so that neighbours in `abar` may be hundreds of training steps apart. At $\eta = 1$ it must
# be DDPM's.
#
# **Expected.** An array `[N]` for a table of $N + 1$ levels; 0 for a step to $\bar\alpha = 1$.
#
# <details><summary>Hint</summary>
# Write the SNR as ᾱ/(1 − ᾱ) and simplify: the variance is that of the posterior in exercise 03.1. Two
# slices of the table are all you need.
# </details>


# %% exercise="06.1" role="answer"
def fresh_noise(abar, eta):
    """abar [N + 1] from noise to data, the number eta -> standard deviations g of each step, [N]."""
    ### BEGIN SOLUTION return the standard deviations, an array [N]
    abar_t, abar_s = abar[:-1], abar[1:]
    variance = (1 - abar_t / abar_s) * (1 - abar_s) / (1 - abar_t)
    return eta * np.sqrt(variance)
    ### END SOLUTION


# %% [markdown]
# ## 06.2
# *implement · 15 minutes*
#
# Equation (3). The standard normal `noise` is given, so that your step can be compared.
#
# **Expected.** An array of `x_t`'s shape. At `abar_s = 1` it is `x0_hat`, whatever the noise.
#
# <details><summary>Hint</summary>
# Three terms: the guess at the new signal level, the predicted noise, the fresh noise. The squares of
# the last two factors must add up to 1 − ᾱ_s.
# </details>


# %% exercise="06.2" role="answer"
def ddim_step(x0_hat, x_t, noise, abar_t, abar_s, eta):
    """x0_hat, x_t and noise [...], numbers abar_t < abar_s and eta -> x_s, [...]."""
    ### BEGIN SOLUTION return x at the level s, an array of x_t's shape
    eps = (x_t - abar_t**0.5 * x0_hat) / (1 - abar_t) ** 0.5
    variance = eta**2 * (1 - abar_t / abar_s) * (1 - abar_s) / (1 - abar_t)
    direction = (1 - abar_s - variance) ** 0.5
    return abar_s**0.5 * x0_hat + direction * eps + variance**0.5 * noise
    ### END SOLUTION


# %% [markdown]
# ## 06.3
# *derive and check · 20 minutes*
#
# Invert a step of DDIM with $\eta = 0$: from $x_s$ to the $x_t$ from which it came. Solve equation (3) for
# $x_t$ at a *given* $\hat\varepsilon$. That noise belongs to $x_t$ at time $t$, so evaluate
# `denoise(guess, alpha_t, sigma_t)`. Begin with `x_s` as the guess; each refinement takes the result as
# the new guess and computes the step again. Here $\bar\alpha_t$ is never 0: the formula that keeps
# $\hat\varepsilon$ is enough.
#
# **Expected.** An array of `x_s`'s shape. After many refinements, a step of DDIM from it returns
# `x_s`.
#
# <details><summary>Hint</summary>
# Without noise, (3) has two unknowns, x0 and ε. Solve it for x0, then write x_t with both. A loop runs
# refinements + 1 times; x_s itself never changes in it.
# </details>


# %% exercise="06.3" role="answer"
def invert_step(denoise, x_s, abar_t, abar_s, refinements):
    """denoise(x, alpha, sigma), x_s [...], abar_t < abar_s, a whole number -> x_t, [...]."""
    ### BEGIN SOLUTION return x at the level t, an array of x_s's shape
    alpha_t, sigma_t = abar_t**0.5, (1 - abar_t) ** 0.5
    alpha_s, sigma_s = abar_s**0.5, (1 - abar_s) ** 0.5
    guess = x_s
    for _ in range(refinements + 1):
        eps = (guess - alpha_t * denoise(guess, alpha_t, sigma_t)) / sigma_t
        x0 = (x_s - sigma_s * eps) / alpha_s  # what the step down would have used
        guess = alpha_t * x0 + sigma_t * eps
    return guess
    ### END SOLUTION


# %% [markdown]
# ## 06.4
# *implement · 10 minutes*
#
# Equation (7), for batches: example `i` of the result lies on the arc from `a[i]` to `b[i]`. Examples
# may be vectors or images.
#
# **Expected.** An array of `a`'s shape; at `share = 0` it is `a`, at 1 it is `b`.
#
# <details><summary>Hint</summary>
# jnp.sum takes a tuple of axes, and keepdims=True keeps the result ready for broadcasting. All axes but
# the first belong to one example.
# </details>


# %% exercise="06.4" role="answer"
def slerp(a, b, share):
    """a and b [B, ...], a number in (0, 1) -> between them along the arc, [B, ...]."""
    ### BEGIN SOLUTION return the interpolated noises, an array of a's shape
    axes = tuple(range(1, a.ndim))
    lengths = [jnp.sqrt(jnp.sum(x**2, axis=axes, keepdims=True)) for x in (a, b)]
    cosine = jnp.sum(a * b, axis=axes, keepdims=True) / (lengths[0] * lengths[1])
    theta = jnp.arccos(cosine)
    mix = jnp.sin((1 - share) * theta) * a + jnp.sin(share * theta) * b
    return mix / jnp.sin(theta)
    ### END SOLUTION


# %% [markdown]
# ## 06.5
# *implement · 10 minutes*
#
# A solver was run with several numbers of steps and its errors were measured. It takes `per_step`
# evaluations in each step and saves `saved` in a whole run: Heun has 2 and 1, DPM-Solver-3 has 3 and 2,
# PNDM 1 and −9. Fit a straight line to the logarithm of the errors over the logarithm of the
# **evaluations**, by least squares.
#
# **Expected.** One number, the order: about 2 for an error that falls to a quarter where the cost
# doubles.
#
# <details><summary>Hint</summary>
# jnp.polyfit(x, y, 1) returns slope and intercept. An error that falls has a negative slope.
# </details>


# %% exercise="06.5" role="answer"
def fitted_order(steps, per_step, saved, errors):
    """steps [N], whole numbers per_step and saved, errors [N] -> the fitted order, a number."""
    ### BEGIN SOLUTION return the order, a single number
    evaluations = per_step * steps - saved
    slope, _ = jnp.polyfit(jnp.log(evaluations), jnp.log(errors), 1)
    return -slope
    ### END SOLUTION


# %% [markdown]
# ## 06.6
# *debug this · 20 minutes*
#
# DDIM with $\eta$ over a table of levels. As in many libraries, the table holds the levels of the *chain*,
# so that its last entry is $\bar\alpha_1 < 1$, and the sampler must know by itself where the last step
# goes. `denoise(x, alpha, sigma)` is the exact denoiser of Gaussian data. Run the cell: the samples have
# too much spread, and a single step returns something else than the denoiser's guess.

# %%
from diffusion_course.grading.inputs import GaussianDenoiser


def broken_sample(denoise, x, noises, abar, eta):
    levels = np.append(abar, abar[-1])
    for noise, abar_t, abar_s in zip(noises, levels[:-1], levels[1:], strict=True):
        guess = denoise(x, np.sqrt(abar_t), np.sqrt(1 - abar_t))
        eps = (x - np.sqrt(abar_t) * guess) / np.sqrt(1 - abar_t)
        g = eta * np.sqrt((1 - abar_t / abar_s) * (1 - abar_s) / (1 - abar_t))
        x = np.sqrt(abar_s) * guess + np.sqrt(1 - abar_s) * eps + g * noise
    return x


exact = GaussianDenoiser(mean=3.0, std=0.5)
abar = np.cos(np.linspace(1.55, 0.3, 60)) ** 2  # 60 steps; the data's level is not in it
noises = jax.random.normal(jax.random.key(0), (61, 2000))
for eta in (0.0, 1.0):
    drawn = broken_sample(exact, noises[60], noises[:60], abar, eta)
    print(f"eta = {eta}: std of the samples {drawn.std():.2f}, of the data {exact.std:.2f}")
    assert drawn.std() > 0.53  # 2000 samples: the standard error is 0.01
leap = broken_sample(exact, noises[0], noises[1:2], np.array([0.5]), 0.0)
off = jnp.abs(leap - exact(noises[0], 0.5**0.5, 0.5**0.5)).mean()
print(f"a single step misses the guess by {off:.2f}")
assert off > 0.5

# %% [markdown]
# There are **two** bugs, and neither raises an error. One of them hides at $\eta = 0$. Write the sampler
# as it should be. `abar` has as many entries as there are `noises`.
#
# **Expected.** The samples, an array of `x`'s shape. With a single level, the result is the denoiser's
# guess.
#
# <details><summary>Hint</summary>
# To which level does the last step go, and to which should it go? Then add up the squares of the two
# factors before eps and noise.
# </details>


# %% exercise="06.6" role="answer"
def sample(denoise, x, noises, abar, eta):
    """x [...] at the level abar[0], noises [N, ...], abar [N] below 1, eta -> samples, [...]."""
    ### BEGIN SOLUTION return the samples, an array of x's shape
    ends = np.append(abar[1:], 1.0)  # the last step goes to the data
    for n, noise in enumerate(noises):
        abar_t, abar_s = abar[n], ends[n]
        x0 = denoise(x, np.sqrt(abar_t), np.sqrt(1 - abar_t))
        eps = (x - np.sqrt(abar_t) * x0) / np.sqrt(1 - abar_t)
        variance = eta**2 * (1 - abar_t / abar_s) * (1 - abar_s) / (1 - abar_t)
        old = np.sqrt(1 - abar_s - variance)  # the squares add up to 1 − ᾱ_s
        x = np.sqrt(abar_s) * x0 + old * eps + np.sqrt(variance) * noise
    return x
    ### END SOLUTION


# %% [markdown]
# ## 06.7
# *stretch · 20 minutes*
#
# DPM-Solver++(2M), equation (8), over tables of $\alpha$ and $\sigma$ from noise to data, of any process:
# $\alpha^2 + \sigma^2$ need not be 1. With $\lambda = \log(\alpha/\sigma)$, a step has the length
# $h = \lambda_s - \lambda_t$. The first step, and a step to $\sigma = 0$, do not extrapolate.
#
# **Expected.** The samples, an array of `x`'s shape. One evaluation of `denoise(x, alpha, sigma)` per
# step is enough.
#
# <details><summary>Hint</summary>
# Keep two things from step to step: the last guess and the last h. Compute λ only where σ is not 0, or
# don't use it there.
# </details>


# %% exercise="06.7" role="answer"
def sample_2m(denoise, x, alpha, sigma):
    """denoise(x, alpha, sigma), x [...] at the first level, alpha, sigma [N + 1] -> samples, [...]."""
    ### BEGIN SOLUTION return the samples, an array of x's shape
    before = h_before = None
    for t in range(len(alpha) - 1):
        s = t + 1
        x0 = ahead = denoise(x, alpha[t], sigma[t])
        if sigma[s] > 0:
            h = np.log(alpha[s] / sigma[s]) - np.log(alpha[t] / sigma[t])
            if before is not None:
                ahead = x0 + h / (2 * h_before) * (x0 - before)
            before, h_before = x0, h
        x = sigma[s] / sigma[t] * x + (alpha[s] - alpha[t] * sigma[s] / sigma[t]) * ahead
    return x
    ### END SOLUTION


# %% [markdown]
# ## 06.8
# *written · 15 minutes*
#
# A colleague compares samplers for an image model: DDIM with 20 steps, Heun with 20 steps, and DDPM
# with 1000. The classifier recognises 99 % of all three. "So quality is equal", the report says, "and Heun
# is as cheap as DDIM."
#
# In about 150 words:
#
# 1. What is wrong with both halves of the conclusion, and what should have been measured instead?
#    *(1 point)*
# 2. No ground truth is at hand. How would you find out how many steps of DDIM *this* model needs, and
#    why does your method not work with $\eta = 1$? *(1 point)*
#
# <details><summary>Hint</summary>
# Sections 5, 9 and 12. What does the accuracy of five steps look like?
# </details>

# %% [markdown] exercise="06.8" role="written"
# ### BEGIN SOLUTION
# 1. Accuracy saturates: it says that digits are legible, not that their details and their variety are
#    right, and it is the same at five steps. A distance between distributions is needed (Fréchet in a
#    judge's features, with the sample count and the floor of real images), or the distance to a very fine
#    solution from the same noise. And 20 steps of Heun cost 39 evaluations, twice those of DDIM: compare
#    at equal evaluations, where Heun may well lose.
# 2. Step doubling: draw with n and 2n steps from the same noise with η = 0 and compare; for a
#    first-order method twice the difference estimates the error. Double until it is below what matters.
#    With η = 1 the two runs use different fresh noise and end in different pictures, so that their
#    distance says nothing about the error; only distributions could be compared.
#
# *One point for each part. The first needs both "accuracy is blind" and "evaluations, not steps". The
# second needs the same noise, and the reason why randomness spoils it.*
# ### END SOLUTION

# %% [markdown]
# That is all of chapter 06. You have written DDIM with its dial, walked it backwards, stayed on the
# sphere, measured orders at their price, and mended the two most common bugs. Chapter 07 bends the road
# towards what you ask for.
