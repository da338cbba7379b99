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
# # 02 · Denoising is the posterior mean: exercises
#
# They belong to [chapter 02](../notebooks/02_denoising.ipynb), and the equations' numbers are its
# own. Write each function where it says `raise NotImplementedError`, then run the `check` below it:
# it tells you at once whether the function is right, and if not, what is wrong. Check as often as
# you like.
#
# Everywhere $x_t = \alpha\,x_0 + \sigma\,\varepsilon$ with numbers `alpha` and `sigma` that are
# given. Don't count on $\alpha^2 + \sigma^2 = 1$. Each function must work by itself: it may call
# libraries, but no function from another exercise, since each is graded alone.

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
# ## 02.1
# *warm-up · 5 minutes*
#
# Someone hands you noisy data `x` and the score $\nabla\log p_t$ at each of them. Equation (2) turns
# the score into the best guess $\mathbb E[x_0 \mid x_t]$.
#
# **Expected.** An array of `x`'s shape. Where the score is 0, the noisy data are at a peak of their
# density, and the guess is $x_t/\alpha$.
#
# <details><summary>Hint</summary>
# First step along the score, to remove the noise that you expect. What remains is α times your guess.
# </details>


# %% exercise="02.1" role="answer"
def tweedie(x, score, alpha, sigma):
    """x [...], its score [...], numbers alpha and sigma -> E[x0 | x_t = x], [...]."""
    ### BEGIN SOLUTION return the posterior mean, an array of x's shape
    return (x + sigma**2 * score) / alpha
    ### END SOLUTION


# %% [markdown]
# ## 02.2
# *implement · 10 minutes*
#
# The data are numbers from $\mathcal N(\mu, s^2)$, where `mean` is $\mu$ and `std` is $s$. Write
# $\mathbb E[x_0 \mid x_t]$, which is equation (3) with a single component.
#
# **Expected.** An array of `x`'s shape: a straight line in `x`. For $\sigma \to 0$ it tends to
# $x_t/\alpha$, for $\sigma \to \infty$ to $\mu$. Try both; the `check` does.
#
# <details><summary>Hint</summary>
# Start at the mean of the data. You see that x differs from what you expected to see, its own mean.
# By how much should that move you? By the covariance of x0 and x_t over the variance of x_t. Both
# follow from the definition of x_t in one line each.
# </details>


# %% exercise="02.2" role="answer"
def gaussian_posterior_mean(x, mean, std, alpha, sigma):
    """x [...], numbers mean, std, alpha and sigma -> E[x0 | x_t = x], [...]."""
    ### BEGIN SOLUTION return the posterior mean, an array of x's shape
    variance = alpha**2 * std**2 + sigma**2  # of x_t
    gain = alpha * std**2 / variance  # how far a surprise of 1 moves the guess
    return mean + gain * (x - alpha * mean)
    ### END SOLUTION


# %% [markdown]
# ## 02.3
# *derive and check · 15 minutes*
#
# The simplest data that a guess can be torn between: $x_0$ is $+a$ or $-a$, each with probability ½.
# Start from equation (9) with two points and simplify on paper. Everything that both weights have in
# common cancels, and one well-known function remains. Then write it down.
#
# **Expected.** An array of `x`'s shape: an odd function of `x` between $-a$ and $a$. A `check` with
# hardly any noise makes sure that large exponents do no harm.
#
# <details><summary>Hint</summary>
# Write out both squares. Only their cross terms differ, and only in sign. Weights in the ratio of
# exp(u) to exp(−u) have the difference tanh(u), once they are made to add up to 1.
# </details>


# %% exercise="02.3" role="answer"
def two_points(x, a, alpha, sigma):
    """x [...], numbers a, alpha and sigma -> E[x0 | x_t = x] for x0 = ±a, [...]."""
    ### BEGIN SOLUTION return the posterior mean, an array of x's shape
    # The squares (x ∓ αa)² share x² + (αa)²; divided by −2σ², what is left is ±u.
    u = alpha * a * x / sigma**2
    return a * jnp.tanh(u)
    ### END SOLUTION


# %% [markdown]
# ## 02.4
# *implement · 15 minutes*
#
# A data set is a finite list of points $x_i$, each as likely as the others. Write its exact
# denoiser, equation (9), for a whole batch at once. It must also survive a tiny $\sigma$. There every
# $\exp(-\|x_t - \alpha x_i\|^2 / 2\sigma^2)$ is rounded to zero, and zero divided by zero is no
# guess.
#
# **Expected.** An array `[B, D]` for `x` of shape `[B, D]` and `data` of shape `[N, D]`. Each row is
# an average of the data's rows.
#
# <details><summary>Hint</summary>
# Indexing with None gives x the shape [B, 1, D], and the differences to all data the shape
# [B, N, D]. Weights that add up to 1 don't change if all exponents of a row are raised by the same
# amount, so raise the largest to 0. The library's softmax does that for you.
# </details>


# %% exercise="02.4" role="answer"
def finite_posterior_mean(x, data, alpha, sigma):
    """x [B, D], data [N, D], numbers alpha and sigma -> E[x0 | x_t = x], [B, D]."""
    ### BEGIN SOLUTION return the posterior means, an array [B, D]
    squared = jnp.sum((x[:, None] - alpha * data) ** 2, axis=-1)  # [B, N]
    r = jax.nn.softmax(-squared / (2 * sigma**2), axis=1)  # subtracts each row's largest first
    return jnp.sum(r[:, :, None] * data, axis=1)
    ### END SOLUTION


# %% [markdown]
# ## 02.5
# *implement · 10 minutes*
#
# A network was trained on the target $y = a\,x_0 + b\,\varepsilon$. Solve the system (4) for $x_0$,
# given its output `y`, its input `x` and the numbers $a, b, \alpha, \sigma$. The `check` tries every row
# of the chapter's table and targets that are in no table, and none of the levels has
# $\alpha^2 + \sigma^2 = 1$.
#
# **Expected.** An array of `x`'s shape. From $y$ and $x_t$ that belong to the same $x_0$ and
# $\varepsilon$, it is this $x_0$.
#
# <details><summary>Hint</summary>
# Multiply each of the two equations by a number so that the noise drops out of their difference. The
# number that then stands before x0 is the determinant.
# </details>


# %% exercise="02.5" role="answer"
def solve_x0(y, x, a, b, alpha, sigma):
    """y [...], x [...], numbers a, b, alpha and sigma -> x0, [...]."""
    ### BEGIN SOLUTION return x0, an array of x's shape
    det = a * sigma - b * alpha
    return (sigma * y - b * x) / det  # σ·(first row) − b·(second row): no noise is left
    ### END SOLUTION


# %% [markdown]
# ## 02.6
# *debug this · 20 minutes*
#
# Here is DDIM, the sampler of section 7, or so it was meant. It goes down a table of levels from
# much noise to none. In each step, from level $t$ to the next level $s$, it
#
# 1. asks the denoiser for the best guess at $x_0$, given $x_t$;
# 2. works out which $\varepsilon$ would make $x_t$ out of this $x_0$;
# 3. mixes the same $x_0$ and $\varepsilon$ in the shares of level $s$.
#
# The denoiser is exact and the data are Gaussian, so the samples should have the data's mean and
# standard deviation, nearly. Run the cell: they don't.

# %%
from diffusion_course.grading.inputs import GaussianDenoiser


def broken_sampler(denoise, x, alphas, sigmas):
    steps = zip(alphas[:-1], sigmas[:-1], alphas[1:], sigmas[1:], strict=True)
    for alpha_t, sigma_t, alpha_s, sigma_s in steps:
        x0 = denoise(x, alpha_s, sigma_s)
        eps = (x - alpha_t * x0) / sigma_t
        x = alpha_s * x0 + sigma_t * eps
    return x


exact = GaussianDenoiser(mean=1.3, std=0.4)
sigmas = np.linspace(1, 0, 51)  # from pure noise to none
alphas = 1 - sigmas
noise = jax.random.normal(jax.random.key(0), (2000,))
drawn = broken_sampler(exact, noise, alphas, sigmas)
print(f"data     mean {exact.mean:.2f}, standard deviation {exact.std:.2f}")
print(f"samples  mean {drawn.mean():.2f}, standard deviation {drawn.std():.2f}")
assert drawn.std() > 2 * exact.std  # 2000 samples: the error of a std is 2 % of it

# %% [markdown]
# There are **two** bugs, and neither raises an error. Write the sampler as it should be. `denoise(x, alpha, sigma)` is the exact denoiser at a level; `alphas` and `sigmas`
# hold the levels in the order in which they are visited, `x` is the state at the first of them. Only
# the last $\sigma$ may be 0.
#
# **Expected.** The state at the last level, an array of `x`'s shape. A single step to the level
# $\alpha = 1$, $\sigma = 0$ must give the denoiser's guess itself.
#
# <details><summary>Hint</summary>
# Take a table of two levels that ends at α = 1, σ = 0, and follow the step by hand. How much noise
# does the result hold? Then ask of every level in the three lines: where is x at this moment?
# </details>


# %% exercise="02.6" role="answer"
def sampler(denoise, x, alphas, sigmas):
    """x [...] at the first of the levels, alphas [L], sigmas [L] -> x at the last, [...]."""
    ### BEGIN SOLUTION return x at the last level, an array of x's shape
    for t in range(len(alphas) - 1):
        s = t + 1
        x0 = denoise(x, alphas[t], sigmas[t])  # x is still at level t
        eps = (x - alphas[t] * x0) / sigmas[t]
        x = alphas[s] * x0 + sigmas[s] * eps  # and now at level s
    return x
    ### END SOLUTION


# %% [markdown]
# ## 02.7
# *stretch · 25 minutes*
#
# How sure can a denoiser be? Its doubt about $x_t$ is the squared error that even the best guess
# must expect, $\mathbb E\big[\|x_0 - D(x_t)\|^2 \mid x_t\big]$, the inner part of the second term of
# (11). One would think that the guess alone cannot tell. It can: where it is about to change its
# mind, it is in doubt.
#
# Differentiate equation (9) with respect to $x_t$. The matrix of slopes $\partial D/\partial x_t$ is
# the covariance of $x_0$ given $x_t$, times a number made of $\alpha$ and $\sigma$. Find the number,
# and write the doubt of a finite data set.
#
# **Expected.** An array `[B]`, one number for each row of `x`, never negative. As in 02.4, it must
# survive a tiny $\sigma$. Computing it without slopes is just as right; do both and compare.
#
# <details><summary>Hint</summary>
# The derivative of a weight is the weight, times how its exponent's derivative differs from the
# weighted average of all of them. What all exponents share drops out. The sum of the variances is
# the trace. For one point, jax.jacfwd gives the slopes; jax.vmap does it for a batch.
# </details>


# %% exercise="02.7" role="answer"
def doubt(x, data, alpha, sigma):
    """x [B, D], data [N, D], numbers alpha and sigma -> E[‖x0 − D‖² | x_t = x], [B]."""

    ### BEGIN SOLUTION return the doubt about every x, an array [B]
    def best_guess(point):  # equation (9) for a single x
        gap = point - alpha * data
        r = jax.nn.softmax(-jnp.sum(gap**2, axis=1) / (2 * sigma**2))
        return jnp.sum(r[:, None] * data, axis=0)

    slopes = jax.vmap(jax.jacfwd(best_guess))(x)  # [B, D, D]
    # ∂r_i = r_i (α/σ²)(x_i − D), so the slopes are α/σ² times the covariance.
    return sigma**2 / alpha * jnp.trace(slopes, axis1=1, axis2=2)
    ### END SOLUTION


# %% [markdown]
# ## 02.8
# *written · 15 minutes*
#
# A colleague says: "Our training loss is still far above that of your exercise 02.4. With a larger
# network and more steps it will get there, and then our model will be perfect."
#
# In about 150 words:
#
# 1. What would the samples of a model be that really reached this loss, and why? *(1 point)*
# 2. Why does a real network do something else, and which measurement, made during training, would
#    warn you that it is on its way there? *(1 point)*
#
# <details><summary>Hint</summary>
# Follow the softmax of equation (9) as σ becomes small. Then remember what the network is given:
# examples and a limited size, but no list of the training set. Section 7 has a table of two losses.
# </details>

# %% [markdown] exercise="02.8" role="written"
# ### BEGIN SOLUTION
# 1. The loss of 02.4 is the least possible on these data, and only the posterior mean *of the
#    training set* has it. As σ → 0 its softmax gives all the weight to the nearest training point,
#    so a sampler that follows it ends exactly on one. The samples are the training set, and nothing
#    else.
# 2. A real network has a limited size and training time, and its parts look at neighbourhoods and
#    are shared between places and noise levels. Where (9) is steep it cannot follow, and takes a
#    smoother function, which between the training points can be nearer to the truth. The warning is
#    the loss on unseen data at small noise: it rises while the training loss goes on falling. Just
#    as good: samples come closer to their nearest training example than unseen data do.
#
# *One point for each part. The first needs a reason: the limit of the softmax, or that the minimum
# is unique. In the second, one cause and one measurement are enough.*
# ### END SOLUTION

# %% [markdown]
# That is all of chapter 02. You have written the best denoiser of a Gaussian, of two points and of
# any data set, read its doubt off its slope, and mended a sampler that walks along it. From
# [chapter 03](../notebooks/03_ddpm.ipynb) on a network takes its place, and these functions are what
# it will be measured against.
