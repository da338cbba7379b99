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
# A step goes from the time `t` to an earlier time `s`, nearer to the data. Levels come in three coordinates:
#
# - exercise 06.1 has $\bar\alpha$, with $\alpha = \sqrt{\bar\alpha}$ and $\sigma = \sqrt{1-\bar\alpha}$; the data
#   have $\bar\alpha = 1$;
# - exercise 06.2 has an angle, with $\alpha = \cos\varphi$ and $\sigma = \sin\varphi$; the data have
#   $\varphi = 0$;
# - exercises 06.3, 06.6 and 06.7 have the coordinates of equation (5), $\bar x = x/\alpha$ and
#   $\bar\sigma = \sigma/\alpha$; the data have $\bar\sigma = 0$. In these coordinates $\alpha$ is always 1, so the
#   denoiser is called as `denoise(x, 1, sigma)`.
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
# *derive and check · 20 minutes*
#
# Our networks predict $v = \alpha\,\varepsilon - \sigma\,x_0$ (chapter 02). Write one step of DDIM, equation (3),
# for such a network. The levels are given by angles: $\alpha = \cos\varphi$ and $\sigma = \sin\varphi$, with
# $\varphi_s < \varphi_t$. The standard normal `noise` is given, so that your step can be compared. The step must
# work from pure noise too, at $\varphi_t = \pi/2$, where $\alpha_t = 0$.
#
# **Expected.** An array of `x_t`'s shape. At `angle_s = 0` it is the guess $\hat x_0$, whatever the noise. With
# $\eta = 0$ your step turns the pair $(x_t, \hat v)$ by the angle $\varphi_t - \varphi_s$.
#
# <details><summary>Hint</summary>
# x_t = α·x0 + σ·ε and v = α·ε − σ·x0 are two equations. Solve them for x0 and ε: since α² + σ² = 1, nothing is
# divided. The SNR is 1/tan²φ.
# </details>


# %% exercise="06.2" role="answer"
def ddim_step(v_hat, x_t, noise, angle_t, angle_s, eta):
    """v_hat, x_t and noise [...], numbers angle_t > angle_s and eta -> x_s, [...]."""
    ### BEGIN SOLUTION return x at the level s, an array of x_t's shape
    alpha_t, sigma_t = np.cos(angle_t), np.sin(angle_t)
    alpha_s, sigma_s = np.cos(angle_s), np.sin(angle_s)
    x0, eps = alpha_t * x_t - sigma_t * v_hat, sigma_t * x_t + alpha_t * v_hat
    snr_ratio = (alpha_t * sigma_s / (sigma_t * alpha_s)) ** 2
    variance = eta**2 * sigma_s**2 * (1 - snr_ratio)
    direction = np.sqrt(sigma_s**2 - variance)
    return alpha_s * x0 + direction * eps + np.sqrt(variance) * noise
    ### END SOLUTION


# %% [markdown]
# ## 06.3
# *derive and check · 25 minutes*
#
# DDIM inversion in the coordinates of (5), from the data up a whole grid. A step down is
# $\bar x_s = \bar x_t + (\bar\sigma_s - \bar\sigma_t)\,\hat\varepsilon(\bar x_t, \bar\sigma_t)$. Solve it for
# $\bar x_t$ at a *given* $\hat\varepsilon$. This noise belongs to the upper end, which you do not know yet. So begin
# with the lower end as the guess for $\bar x_t$, evaluate $\hat\varepsilon = (\bar x - D)/\bar\sigma_t$ there, and
# compute the step. Each refinement takes the result as the new guess and computes the *same* step again. `sigmas`
# rises. It may begin with 0, the data.
#
# **Expected.** An array of `x`'s shape: the state at `sigmas[-1]`. After many refinements, Euler's method down
# the same grid returns `x`.
#
# <details><summary>Hint</summary>
# Two loops: one over the steps, and in it one that runs refinements + 1 times. In the inner loop the beginning
# of the step never changes.
# </details>


# %% exercise="06.3" role="answer"
def invert(denoise, x, sigmas, refinements):
    """denoise(x, 1, sigma), x [...] at sigmas[0], rising sigmas [N + 1], a whole number -> [...]."""
    ### BEGIN SOLUTION return the state at the last level, an array of x's shape
    for s in range(len(sigmas) - 1):
        step, sigma = sigmas[s + 1] - sigmas[s], sigmas[s + 1]
        guess = x
        for _ in range(refinements + 1):
            eps = (guess - denoise(guess, 1, sigma)) / sigma
            guess = x + step * eps
        x = guess
    return x
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
# evaluations in each step and saves `saved` in a whole run: Heun has 2 and 1 (from $t < 1$ to the data), DPM-Solver-3
# has 3 and 2,
# PNDM 1 and −9. Fit a straight line to the logarithm of the errors over the logarithm of the
# **evaluations**, by least squares.
#
# **Expected.** One number, the order: about 2 for an error that falls to a quarter where the cost
# doubles, and negative for an error that grows.
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
# *debug this · 25 minutes*
#
# Heun's method (Karras et al. 2022, algorithm 1) in the coordinates of (5): take a step, evaluate the slope there,
# and repeat the step with the mean of both slopes. `denoise` is the exact denoiser of Gaussian data, so the exact
# result is known too. Run the cell. With twice as many steps the error should become a quarter, and a single step
# to $\bar\sigma = 0$ should return the denoiser's guess. Neither is so.

# %%
from itertools import pairwise

from diffusion_course.grading.inputs import GaussianDenoiser


def broken_heun(denoise, x, sigmas):
    for sigma_t, sigma_s in pairwise(sigmas):
        slope = (x - denoise(x, 1, sigma_t)) / sigma_t
        ahead = x + (sigma_s - sigma_t) * slope
        divisor = max(sigma_s, 1e-3)  # so that nothing is divided by 0
        slope_ahead = (ahead - denoise(ahead, 1, sigma_t)) / divisor
        x = x + (sigma_s - sigma_t) * (slope + slope_ahead) / 2
    return x


exact = GaussianDenoiser(mean=3.0, std=0.5)
start = 3 + jax.random.normal(jax.random.key(0), (2000,)) * (4 + 0.5**2) ** 0.5  # at σ = 2
flow = lambda x, sigma: 3 + (x - 3) * ((sigma**2 + 0.25) / 4.25) ** 0.5
errors = []
for n in (10, 20, 40):
    ends = broken_heun(exact, start, np.linspace(2, 0.2, n + 1))
    errors.append(float(jnp.abs(ends - flow(start, 0.2)).mean()))
    print(f"{n} steps to σ = 0.2: error {errors[-1]:.4f}")
assert errors[1] > 0.4 * errors[0] and errors[2] > 0.4 * errors[1]
leap = broken_heun(exact, start, np.array([2.0, 0.0]))
print(f"one step to the data misses the guess by {jnp.abs(leap - exact(start, 1, 2.0)).mean():.2f}")
assert jnp.abs(leap - exact(start, 1, 2.0)).mean() > 0.5

# %% [markdown]
# There are **two** bugs, and neither raises an error. One of them is in every step. The other one shows only in a
# step to the data. Write the solver as it should be.
#
# **Expected.** An array of `x`'s shape: the state at `sigmas[-1]`. A step to 0 returns the denoiser's guess.
#
# <details><summary>Hint</summary>
# At which place and at which level is each slope taken? Then ask what the slope (x − D)/σ means where no noise
# is left.
# </details>


# %% exercise="06.6" role="answer"
def heun(denoise, x, sigmas):
    """denoise(x, 1, sigma), x [...] at sigmas[0], falling sigmas [N + 1], perhaps to 0 -> [...]."""
    ### BEGIN SOLUTION return the state at the last level, an array of x's shape
    for n in range(len(sigmas) - 1):
        high, low = sigmas[n], sigmas[n + 1]
        here = (x - denoise(x, 1, high)) / high
        moved = x + (low - high) * here
        if low > 0:  # no correction at the data: no noise is left that could have a slope
            there = (moved - denoise(moved, 1, low)) / low
            moved = x + (low - high) * (here + there) / 2
        x = moved
    return x
    ### END SOLUTION


# %% [markdown]
# ## 06.7
# *stretch · 40 minutes*
#
# A multistep solver of *any* order for equation (5), on *any* grid. It remembers the latest slopes
# $\hat\varepsilon$. Through the last $k$ of them goes one polynomial in $\bar\sigma$ of degree below $k$. The step
# adds the exact integral of this polynomial:
#
# $$\bar x_s = \bar x_t + \int_{\bar\sigma_t}^{\bar\sigma_s} P(\bar\sigma)\,d\bar\sigma
# = \bar x_t + \sum_{j=1}^{k} w_j\,\hat\varepsilon_j.$$
#
# Here $k$ is the order, or the number of slopes that there are if it is smaller. So the first step is Euler's. The
# weights $w_j$ depend on the grid only. (With equal steps they are those of Adams and Bashforth, which PNDM uses;
# for other grids see the further reading of the chapter, Hairer et al., chapter III.5.)
#
# **Expected.** An array of `x`'s shape, with one evaluation per step. With `order = 1` it is DDIM.
#
# <details><summary>Hint</summary>
# The weights must integrate the powers 1, σ, …, σ^(k−1) exactly. These are k linear equations for k weights:
# Σ w_j·σ_j^m = (σ_s^(m+1) − σ_t^(m+1))/(m+1). np.linalg.solve does the rest.
# </details>


# %% exercise="06.7" role="answer"
def multistep(denoise, x, sigmas, order):
    """denoise(x, 1, sigma), x [...] at sigmas[0], falling sigmas [N + 1], a whole number -> [...]."""
    ### BEGIN SOLUTION return the state at the last level, an array of x's shape
    slopes = []
    for t in range(len(sigmas) - 1):
        slopes.append((x - denoise(x, 1, sigmas[t])) / sigmas[t])
        k = min(order, len(slopes))
        power = np.arange(k)
        integral = (sigmas[t + 1] ** (power + 1) - sigmas[t] ** (power + 1)) / (power + 1)
        places = sigmas[t + 1 - k : t + 1]  # the last k levels; [m, j] below is σ_j to the m
        weights = np.linalg.solve(places[None, :] ** power[:, None], integral)
        for weight, slope in zip(weights, slopes[-k:], strict=True):
            x = x + weight * slope
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
# Sections 5, 9, 10 and 12. What does the accuracy of five steps look like?
# </details>

# %% [markdown] exercise="06.8" role="written"
# ### BEGIN SOLUTION
# 1. Accuracy saturates: it says that digits are legible, not that details and variety are
#    right. It is the same at five steps. A distance between distributions is needed (Fréchet in a
#    judge's features, with the sample count and the floor of real images), or, without fresh noise, the
#    distance to a very fine solution from the same noise. And 20 steps of Heun cost 38 or 39 evaluations, nearly
#    twice those of DDIM: compare at equal ones. In section 10 Heun loses with 10 and wins with 40.
# 2. Step doubling: draw with n and 2n steps from the same noise with η = 0 and compare; for a
#    first-order method twice the difference estimates the error. Double until it is below what matters.
#    With η = 1 the two runs use different fresh noise and end in different pictures, and their
#    distance says nothing.
#
# *One point for each part. The first needs both "accuracy is blind" and "evaluations, not steps". The
# second needs the same noise, and the reason why randomness spoils it.*
# ### END SOLUTION

# %% [markdown]
# That is all of chapter 06. You have written DDIM for a network that predicts v, walked a whole grid backwards,
# stayed on the sphere, measured orders at their price, mended Heun's method, and built a solver of any order.
# Chapter 07 bends the road towards what you ask for.
